"""Gram arrays [n, n] or [n, n, k, k] of kernels, and the symmetric matrices they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_floating,
    as_jax_array,
    check_number,
    is_concrete,
)
from softntk._core.validation.on_host import MAX_ASYMMETRY

Number = float | int | np.number | Float[Array | np.ndarray, ""]
"""A real number of Python, NumPy or JAX."""

Gram = Float[Array | np.ndarray, "n n"] | Float[Array | np.ndarray, "n n k k"]
"""A kernel between points and themselves: of one output, or of k outputs."""


def as_gram(gram: object, name: str = "gram") -> Float[Array, "n n"] | Float[Array, "n n k k"]:
    """Return a checked Gram array, [n, n] or [n, n, k, k], in a precision with factorisations.

    Raises:
        ValueError: gram is a function, or an array that is not [n, n] or [n, n, k, k], empty,
            not finite, not symmetric, of integers, or in half precision.
    """
    # 1. Type and shape.
    label = name if name == "gram" else f"{name} as gram"
    if callable(gram):
        raise ValueError(
            f"{label} must be an array or an operator, got {type(gram).__name__}. "
            "ntk.kernel_operator(kernel_fn, x) makes one of a kernel function."
        )
    array = as_floating(name, gram, half=False, empty=True)
    shape = array.shape
    if len(shape) not in (2, 4) or shape[0] != shape[1] or shape[2:3] != shape[3:4] or 0 in shape:
        raise ValueError(f"{label} must have shape [n, n] or [n, n, k, k], got {shape}.")
    # 2. Symmetry, up to the rounding of kernels in half precision.
    if is_concrete(array):
        # A known array may have been captured by a function that is traced.
        with jax.ensure_compile_time_eval():
            asymmetry, max_entry = map(float, _asymmetry(array))
        if asymmetry > MAX_ASYMMETRY * max_entry:
            raise ValueError(
                f"{label} must be symmetric, but differs from its transpose by {asymmetry:.3g} "
                f"(largest entry {max_entry:.3g}). Pass the train-train kernel."
            )
    return array


@jax.jit
def _asymmetry(gram: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the largest difference from the transpose, and the largest entry."""
    matrix = as_cross_matrix(gram)
    return jnp.max(jnp.abs(matrix - matrix.T)), jnp.max(jnp.abs(matrix))


def as_matrix(gram: Gram, name: str = "gram") -> Float[Array, "p p"]:
    """Return a Gram array as a matrix: itself, or [n·k, n·k] with the output as the fast index.

    Raises:
        ValueError: as for :func:`as_gram`.
    """
    return as_cross_matrix(as_gram(gram, name))


def as_cross_matrix(
    cross: Float[Array | np.ndarray, "t n"] | Float[Array | np.ndarray, "t n k k"],
) -> Float[Array, "q p"]:
    """Return a kernel between t test and n training points as a matrix: itself, or [t·k, n·k]."""
    cross = as_jax_array(cross)
    if cross.ndim == 2:
        return cross
    return cross.transpose(0, 2, 1, 3).reshape(cross.shape[0] * cross.shape[2], -1)


def rounding(size: int, largest: Float[Array, ""]) -> Float[Array, ""]:
    """Return 2√n ε λ_max, a bound of the rounding error of computed eigenvalues.

    It is larger than the error that LAPACK states.

    Args:
        size: number of rows of the matrix.
        largest: λ_max.
    """
    return 2 * size**0.5 * float(jnp.finfo(largest.dtype).eps) * largest


def as_scalar(name: str, value: object, dtype: DTypeLike, **bounds: Any) -> Float[Array, ""]:
    """Return a number as a scalar array, within the bounds of ``check_number`` also when rounded.

    Raises:
        ValueError: value is not a real number, or out of bounds.
    """
    # A positive number may be zero, and a finite one infinite, in the precision of the problem.
    number = check_number(name, value, **bounds)
    if is_concrete(number):
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.asarray(number, dtype))
        try:
            check_number(name, rounded, **bounds)
        except ValueError:
            raise ValueError(
                f"{name} must lie in the range of {np.dtype(dtype)}, got {value!r}. "
                "Change the unit."
            ) from None
    return jnp.asarray(number, dtype)
