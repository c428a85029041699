"""Evaluation of a distribution's density, score or denoiser at checked times and points."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from softntk.diffusion._arguments import as_points
from softntk.diffusion._noising_process import VPSDE, check_sde
from softntk.diffusion._types import Points, Times


def evaluate_compiled(
    method: Callable, distribution: Any, dimension: int, sde: VPSDE, t: Times, x: Points
) -> Any:
    """Return ``method(distribution, sde, t, x)`` after checks, compiled where possible.

    Args:
        method: an unbound method of the distribution's class.
        distribution: a pytree.
        dimension: d.
        sde: the noising process.
        t: times in (0, T], a scalar or [n].
        x: points, [n, d].

    Raises:
        ValueError: t is outside (0, T]; x is not a finite floating-point matrix of that dimension.
    """
    t, x = as_points(check_sde(sde), t, x, dimension)
    if all(map(eqx.is_array, jax.tree.leaves(sde))):
        return _call_compiled(method, distribution, sde, t, x)
    # A user's process that is no pytree cannot be an argument of a compiled program.
    return method(distribution, sde, t, x)


@jax.jit(static_argnums=0)
def _call_compiled(method: Callable, distribution: Any, sde: VPSDE, t: Array, x: Array) -> Any:
    """Return ``method(distribution, sde, t, x)`` from one compiled program."""
    return method(distribution, sde, t, x)
