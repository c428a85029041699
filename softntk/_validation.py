"""Checks of arguments that several modules share: each raises a ValueError that names the argument, what came and what to do.

What is known only at run time (values inside jit) is not checked here; every function states what it returns then.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def is_concrete(x: Any) -> bool:
    """Whether the values of x can be looked at now, i.e. x is not traced by jit, vmap or grad."""
    return not isinstance(x, jax.core.Tracer)


def check_floating(name: str, x: ArrayLike) -> None:
    """Refuse integers and Booleans: an integer x would silently be promoted, usually to the wrong precision."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {dtype}. Convert it first, e.g. {name}.astype('float32')."
        )


def check_finite(name: str, x: ArrayLike) -> None:
    """Refuse NaN and infinity, where the values are known."""
    if not is_concrete(x):
        return
    bad = ~np.isfinite(np.asarray(x, dtype=np.float64))  # float64: NumPy knows no bfloat16
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite, got {int(bad.sum())} NaN or infinite entries, the first at {name}{list(first)}. "
            "Remove or impute them."
        )


def check_rows(name: str, x: ArrayLike) -> None:
    """A finite floating-point matrix [n, d] with at least one row and one column."""
    check_floating(name, x)
    if jnp.ndim(x) != 2:
        raise ValueError(
            f"{name} must have shape [n, d], one row a point, got shape {jnp.shape(x)}. Reshape it, e.g. {name}.reshape(n, -1)."
        )
    if 0 in jnp.shape(x):
        raise ValueError(f"{name} must have at least one row and one column, got shape {jnp.shape(x)}.")
    check_finite(name, x)


def check_pair(x1: ArrayLike, x2: ArrayLike | None) -> None:
    """Two sets of points that a kernel can compare: the same number of features, the same dtype. None stands for x1 again."""
    check_rows("x1", x1)
    if x2 is None:
        return
    check_rows("x2", x2)
    if jnp.shape(x1)[1] != jnp.shape(x2)[1]:
        raise ValueError(f"x2 must have as many features as x1, got shapes {jnp.shape(x1)} and {jnp.shape(x2)}.")
    if jnp.result_type(x1) != jnp.result_type(x2):
        raise ValueError(
            f"x2 must have the dtype of x1, got {jnp.result_type(x1)} and {jnp.result_type(x2)}. Convert one of them."
        )


def check_positive_int(name: str, value: object) -> None:
    """A Python or NumPy integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """A positive finite number; a traced one passes."""
    if is_concrete(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
