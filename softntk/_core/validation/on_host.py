"""Arguments whose values must be known, converted to float64 on the host whatever the precision of
JAX is.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_floating,
    as_integers,
    check_number,
    is_concrete,
)
from softntk._core.validation.arrays import Shape

Targets = Float[Array | np.ndarray, "n k"] | Float[Array | np.ndarray, " n"]
"""[n, k]; [n] stands for one output."""


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Convert arrays with float64, and at once, also of what is known inside of jit."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        yield


def check_known(name: str, value: object) -> None:
    """Refuse what jit, vmap or grad traces, where the values must be looked at."""
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"{name} must be known, but is traced. Call this outside of jax.jit, jax.vmap and jax.grad."
        )


def known_number(name: str, value: object, **bounds: Any) -> float:
    """Return a number of :func:`softntk._core.validation.check_number` that is not traced."""
    number = check_number(name, value, **bounds)
    check_known(name, number)
    return number


def in_double(given: object, checked: Array) -> np.ndarray:
    """Return what was given in float64: itself if it is NumPy's, of which JAX may hold a copy in
    another precision.
    """
    return np.asarray(given if isinstance(given, np.ndarray) else checked, np.float64)


def as_double(
    name: str, x: object, shape: Shape | None = None, *, integers: bool = False
) -> np.ndarray:
    """Return a finite array in float64 on the host, whatever its precision is and whether JAX has
    float64 here.
    """
    check_known(name, x)
    with on_host():
        if integers:
            with contextlib.suppress(ValueError):  # of what are no integers the next line judges
                x = np.asarray(as_integers(name, x), np.float64)
        return in_double(x, as_floating(name, x, shape))


def as_host_targets(name: str, y: object, samples: int, outputs: int | None = None) -> np.ndarray:
    """Return targets [n, k] in float64 on the host; [n] is one output."""
    check_known(name, y)
    with on_host():
        targets = as_targets(name, y, samples, outputs)
        return in_double(y, targets).reshape(targets.shape)


def as_targets(name: str, y: Any, samples: int, outputs: int | None = None) -> Float[Array, "n k"]:
    """Return targets [n, k], one row a point; [n] is one output."""
    array = as_floating(name, y)
    if array.ndim == 1 and outputs in (None, 1):
        array = array[:, None]
    if array.ndim != 2 or array.shape[0] != samples or outputs not in (None, array.shape[1]):
        wanted = "k" if outputs is None else outputs
        raise ValueError(
            f"{name} must have shape [n, k] = [{samples}, {wanted}], one row of targets a point, got shape {np.shape(y)}."
        )
    return array


def as_kernel_of(y: Array, name: str, matrix: object) -> np.ndarray:
    """Return a symmetric matrix of as many rows as y, in float64 on the host."""
    array = as_double(name, matrix)
    if array.shape != 2 * (len(y),):
        raise ValueError(
            f"{name} must have shape [n, n] with the n = {len(y)} rows of y, got shape {array.shape}."
        )
    if np.abs(array - array.T).max() > 1e-3 * np.abs(array).max():
        raise ValueError(
            f"{name} must be symmetric, but differs from its transpose. Pass the train-train kernel."
        )
    return array
