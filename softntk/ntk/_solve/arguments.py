"""Arguments of ``ntk.solve``, checked and converted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    as_floating,
    check_integer,
    check_key,
    check_number,
    is_concrete,
)
from softntk.ntk._operators.base import GramOperator

MAX_COMPLETE_SIZE = 7000  # up to this size the complete matrix is factorised: 200 MB of float32
MAX_PRECONDITIONER_ENTRIES = 200_000_000  # of a larger operator: 800 MB of float32
DEFAULT_RANK = 2500  # of its preconditioner, if the entries allow it


def check_operator(op: object) -> None:
    """Raise if op is no operator, or one in half precision."""
    if not isinstance(op, GramOperator):
        raise ValueError(
            "op must be an operator of ntk.operator or ntk.kernel_operator, "
            f"got {type(op).__name__}. "
            "For a matrix use jax.scipy.linalg.solve, or ntk.kernel_regression."
        )
    if jnp.finfo(op.dtype).bits < 32:
        raise ValueError(
            f"op must be float32 or float64, got an operator on {op.dtype}. "
            "Make it of points in float32."
        )


def as_columns(op: GramOperator, y: object) -> tuple[Float[Array, "size r"], bool]:
    """Return y as [size, r], and whether it is a single vector without the last axis."""
    array = as_floating("y", y, empty=True)
    is_single_vector = array.shape == op.shape
    if not is_single_vector and (array.shape[:-1] != op.shape or array.shape[-1] == 0):
        raise ValueError(f"y must have shape {op.shape} or {(*op.shape, 'r')}, got {array.shape}.")
    return array.reshape(op.in_size(), -1), is_single_vector


def as_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return the key, or the default one."""
    return jax.random.key(0) if key is None else check_key("key", key)


def check_rank(rank: object, size: int) -> int:
    """Return the rank of the preconditioner, checked; None is the default for this size."""
    if rank is None:
        return (
            size
            if size <= MAX_COMPLETE_SIZE
            else min(DEFAULT_RANK, MAX_PRECONDITIONER_ENTRIES // size)
        )
    number = check_integer("rank", rank)
    if not 0 <= number <= size:
        raise ValueError(
            f"rank must lie between 0 and the size {size} of the operator, got {number}."
        )
    return number


def check_rtol(rtol: object, dtype: str) -> float:
    """Return the relative residual to reach, checked; None is the default of this precision."""
    if rtol is None:
        return 1e-5 if dtype == "float32" else 1e-10
    # Conjugate gradients stagnate at a few units of rounding.
    min_rtol = 10 * float(jnp.finfo(dtype).eps)
    number = check_number("rtol", rtol)
    if not is_concrete(number) or not min_rtol <= number < 1:
        raise ValueError(
            f"rtol must lie between {min_rtol:.2g}, what {dtype} can give, and 1, got {rtol!r}. "
            "Below that use refine=True, or operators in float64."
        )
    return number
