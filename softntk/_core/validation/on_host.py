"""Arguments that are needed on the host, in float64 whatever the precision of JAX."""

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
"""Targets of a regression, [n, k]; [n] stands for one output."""


# How much a kernel may differ from its transpose, relative to its largest entry: far above rounding
# in float32, far below what a wrong kernel shows.
MAX_ASYMMETRY = 1e-3


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Return a context in which arrays are converted in float64 and at once, even inside jit."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        yield


def check_known(name: str, value: object) -> None:
    """Refuse values that jit, vmap or grad traces."""
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"{name} must be known, but is traced. "
            "Call this outside of jax.jit, jax.vmap and jax.grad."
        )


def known_number(name: str, value: object, **bounds: Any) -> float:
    """Return a number checked by ``check_number``, and refuse a traced one."""
    number = check_number(name, value, **bounds)
    check_known(name, number)
    return number


def in_double(original: object, checked: Array) -> np.ndarray:
    """Return an argument in float64, from its original if that is a NumPy array.

    The checked JAX array may hold a copy in a lower precision.
    """
    return np.asarray(original if isinstance(original, np.ndarray) else checked, np.float64)


def as_double(
    name: str, x: object, shape: Shape | None = None, *, integers: bool = False
) -> np.ndarray:
    """Return a finite array in float64 on the host, whatever its precision.

    ``integers=True`` also accepts integers.
    """
    check_known(name, x)
    with on_host():
        if integers:
            # Anything but integers goes through the check for floating-point arrays below.
            with contextlib.suppress(ValueError):
                x = np.asarray(as_integers(name, x), np.float64)
        return in_double(x, as_floating(name, x, shape))


def as_host_targets(name: str, y: object, samples: int, outputs: int | None = None) -> np.ndarray:
    """Return targets [n, k] in float64 on the host; [n] is one output."""
    # Converted twice: by JAX for the checks, and from NumPy's original, which has all digits.
    check_known(name, y)
    with on_host():
        targets = as_targets(name, y, samples, outputs)
        return in_double(y, targets).reshape(targets.shape)


def as_targets(
    name: str, y: object, samples: int, outputs: int | None = None
) -> Float[Array, "n k"]:
    """Return targets [n, k], one row for each point; [n] is one output."""
    array = as_floating(name, y)
    array_shape = array.shape
    if array.ndim == 1 and outputs in (None, 1):
        array = array[:, None]
    if array.ndim != 2 or array.shape[0] != samples or outputs not in (None, array.shape[1]):
        expected_outputs = "k" if outputs is None else outputs
        raise ValueError(
            f"{name} must have shape [n, k] = [{samples}, {expected_outputs}], one row of targets "
            f"a point, got shape {array_shape}."
        )
    return array


def as_kernel_of(y: Array, name: str, matrix: object) -> np.ndarray:
    """Return a symmetric matrix with one row for each row of y, in float64 on the host."""
    # The tolerance is loose: kernels may have been computed in float32.
    array = as_double(name, matrix)
    if array.shape != 2 * (len(y),):
        raise ValueError(
            f"{name} must have shape [n, n] with the n = {len(y)} rows of y, "
            f"got shape {array.shape}."
        )
    if np.abs(array - array.T).max() > MAX_ASYMMETRY * np.abs(array).max():
        raise ValueError(
            f"{name} must be symmetric, but differs from its transpose. "
            "Pass the train-train kernel."
        )
    return array
