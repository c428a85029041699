"""Checks of several numbers and arrays that are to be combined by broadcasting."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation.arrays import as_real_array, is_floating
from softntk._core.validation.scalars import check_number


def as_scalars(**values: object) -> tuple[Float[Array, "..."], ...]:
    """Return numbers and arrays as arrays of one floating-point dtype and of matching ranks.

    Python numbers and integers take the dtype of the other arguments. Values are not checked.

    Args:
        values: the arguments by name.
    """
    # 1. The frequent case needs no conversion.
    originals: list[Any] = list(values.values())
    if _are_alike(originals):
        return tuple(originals)
    # 2. Convert each; Python integers may be too large for NumPy's.
    arrays = []
    for name, value in values.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        array = np.asarray(check_number(name, value)) if is_integer else as_real_array(name, value)
        arrays.append(array)
    # 3. Python numbers do not decide the common dtype.
    array_dtypes = [
        jax.dtypes.canonicalize_dtype(array.dtype)
        for array, value in zip(arrays, originals, strict=True)
        if not isinstance(value, int | float)
    ]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(float, *array_dtypes))
    # 4. Leading axes of length one: JAX may be configured to refuse implicit ones.
    rank = max(array.ndim for array in arrays)
    with np.errstate(over="ignore"):
        return tuple(jnp.asarray(_with_rank(array, rank)).astype(dtype) for array in arrays)


def check_shapes_broadcast(arguments: Mapping[str, object], arrays: Sequence[jax.Array]) -> None:
    """Refuse arrays whose shapes do not broadcast; ``arguments`` has their names."""
    shapes = [array.shape for array in arrays]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        names = ", ".join(arguments)
        raise ValueError(
            f"{names} must have shapes that broadcast, got {', '.join(map(str, shapes))}."
        ) from None


def _with_rank(array: jax.Array | np.ndarray, rank: int) -> jax.Array | np.ndarray:
    """Return the array with leading axes of length one; a scalar stays a scalar."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array


def _are_alike(values: list[Any]) -> bool:
    """Return whether these are JAX arrays of one floating-point dtype and one rank, or scalars."""
    # A weakly typed scalar would take part in promotion like a Python number.
    if not all(
        isinstance(value, jax.Array) and not getattr(value, "weak_type", True) for value in values
    ):
        return False
    dtype = values[0].dtype
    ranks = {value.ndim for value in values} - {0}
    return (
        len(ranks) <= 1
        and all(value.dtype == dtype for value in values)
        and is_floating(dtype)
        and jax.dtypes.canonicalize_dtype(dtype) == dtype
    )
