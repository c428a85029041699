"""Checks of array arguments: each is converted first and checked afterwards."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.validation.scalars import is_concrete, is_masked

Shape = Sequence[int | str]
"""A required shape: integers are fixed lengths, names are free ones.

"…" as first or last entry stands for any number of axes.
"""

MIN_FACTORISATION_BITS = 32
"""Bits of the smallest dtype that has matrix factorisations in LAPACK."""


def as_floating(
    name: str,
    x: object,
    shape: Shape | None = None,
    *,
    finite: bool = True,
    half: bool = True,
    empty: bool = False,
) -> Float[Array, "..."]:
    """Return x as a floating-point JAX array.

    Args:
        name: name of the argument, for error messages.
        x: an array of any library, a list of numbers, a pandas table, a number.
        shape: the required shape, or None for any.
        finite: refuse NaN and infinity, where the values are known. Finite numbers that overflow in
            the precision of JAX are refused in any case.
        half: False refuses float16 and bfloat16, for which LAPACK has no factorisations.
        empty: allow an axis of length zero.

    Raises:
        ValueError: x is not such an array.
    """
    # 1. Convert, and check the dtype.
    array = as_real_array(name, x)
    _check_floating(name, array.dtype)
    if not half and jnp.finfo(array.dtype).bits < MIN_FACTORISATION_BITS:
        raise ValueError(
            f"{name} must be float32 or float64, got {array.dtype}: factorisations do not exist "
            f"for it. Convert it, e.g. {name}.astype('float32')."
        )
    # 2. Check the shape.
    if shape is not None:
        check_shape(name, array, shape)
    if not empty and 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
    # 3. Check the values, before the conversion to the precision of JAX may change them.
    if finite:
        check_finite(name, array)
    elif isinstance(array, np.ndarray):
        _check_range(name, array, jax.dtypes.canonicalize_dtype(array.dtype))
    return as_jax_array(array)


def as_jax_array(array: jax.Array | np.ndarray) -> jax.Array:
    """Return an array as a JAX array in a precision that JAX works in, without checks."""
    if isinstance(array, jax.Array) and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
        return array
    with np.errstate(over="ignore"):
        return jnp.asarray(array)


def as_rows(
    name: str, x: object, features: int | None = None, *, half: bool = True
) -> Float[Array, "n d"]:
    """Return x as a finite, non-empty floating-point matrix [n, d]; d = ``features`` if given."""
    # The shape is checked here, for a message about points; `as_floating` checks the values.
    array = as_real_array(name, x)
    _check_floating(name, array.dtype)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have shape [n, d], one row a point, got shape {array.shape}. "
            f"Reshape it, e.g. {name}.reshape(n, -1)."
        )
    if 0 in array.shape:
        raise ValueError(
            f"{name} must have at least one row and one column, got shape {array.shape}."
        )
    if features is not None and array.shape[1] != features:
        raise ValueError(f"{name} must have {features} features, got shape {array.shape}.")
    return as_floating(name, array, half=half)


def as_pair(
    x1: object, x2: object, names: tuple[str, str] = ("x1", "x2")
) -> tuple[Float[Array, "n1 d"], Float[Array, "n2 d"] | None]:
    """Return two sets of points that a kernel can compare: as many features, the same dtype.

    ``x2 = None`` stands for x1 and is returned as None.
    """
    points1 = as_rows(names[0], x1)
    if x2 is None:
        return points1, None
    points2 = as_rows(names[1], x2)
    if points1.shape[1] != points2.shape[1]:
        raise ValueError(
            f"{names[1]} must have as many features as {names[0]}, got shapes {points1.shape} "
            f"and {points2.shape}."
        )
    # Promotion would hide that half of the digits are missing in one of them.
    if points1.dtype != points2.dtype:
        raise ValueError(
            f"{names[1]} must have the dtype of {names[0]}, got {points1.dtype} and "
            f"{points2.dtype}. Convert one of them."
        )
    return points1, points2


def as_integers(name: str, x: object, shape: Shape | None = None) -> Int[Array, "..."]:
    """Return x as an array of integers, which must fit the integer dtype of JAX."""
    # Floating-point numbers are refused even where they are whole: they may be rounded already.
    array = as_real_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers, got dtype {array.dtype}. "
            f"Convert it, e.g. {name}.astype(int)."
        )
    if shape is not None:
        check_shape(name, array, shape)
    # JAX would cut off the upper bits of larger ones silently.
    if isinstance(array, np.ndarray) and array.size:
        limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if int(array.max()) > limits.max or int(array.min()) < limits.min:
            raise ValueError(
                f"{name} must lie between {limits.min} and {limits.max}, the integers of JAX here, "
                f"got up to {int(array.max())}. Enable jax_enable_x64 for larger ones."
            )
    return jnp.asarray(array)


def as_dtype(
    name: str,
    x: object,
    dtype: jax.typing.DTypeLike,
    shape: Shape | None = None,
    *,
    finite: bool = True,
) -> Float[Array, "..."]:
    """Return x, which may hold integers, as a JAX array of a given floating-point dtype.

    Use it where another argument decides the precision. ``finite=False`` accepts NaN and infinity,
    but not finite numbers that overflow in this dtype.
    """
    # 1. The frequent case needs no conversion.
    if isinstance(x, jax.Array) and x.dtype == dtype:
        return _as_same_dtype(name, x, shape, finite)
    # 2. Check the values as they were passed, and then that they fit the new precision.
    array = as_real_array(name, x)
    if shape is not None:
        check_shape(name, array, shape)
    if finite and is_floating(array.dtype):
        check_finite(name, array)
    if is_concrete(array):
        _check_range(name, np.asarray(array), dtype)
    with np.errstate(over="ignore"):
        return jnp.asarray(array, dtype)


def _as_same_dtype(
    name: str, x: jax.Array, shape: Shape | None, finite: bool
) -> Float[Array, "..."]:
    """Return a checked array that has the right dtype already."""
    # Nothing to check: the most frequent call, from products with operators.
    if not finite and (shape is None or x.shape == tuple(shape)):
        return x
    if shape is not None:
        check_shape(name, x, shape)
    if finite and is_floating(x.dtype):
        check_finite(name, x)
    return jnp.asarray(x, x.dtype) if x.weak_type else as_jax_array(x)


def _check_range(name: str, array: np.ndarray, dtype: jax.typing.DTypeLike) -> None:
    """Refuse finite numbers that become infinite in another precision."""
    if array.dtype == dtype:
        return
    with np.errstate(over="ignore"):
        overflows = np.isinf(array.astype(dtype)) & np.isfinite(array)
    if overflows.any():
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype)}, got {int(overflows.sum())} entries "
            "beyond its largest number. Change the unit, or use float64 for everything."
        )


def as_weights(
    name: str, x: object, dtype: jax.typing.DTypeLike, *shapes: tuple[int, ...]
) -> Float[Array, "..."]:
    """Return x as finite non-negative numbers of a given dtype and of one of the shapes.

    Traced values are not checked.
    """
    # 1. Convert; NaN and infinity are refused here.
    weights = as_dtype(name, x, dtype)
    # 2. Check the shape, then the sign of known values.
    if weights.shape not in shapes:
        requirement = " or ".join(
            f"have shape {list(shape)}" if shape else "be a scalar" for shape in shapes
        )
        raise ValueError(f"{name} must {requirement}, got shape {weights.shape}.")
    if is_concrete(weights) and bool((np.asarray(weights) < 0).any()):
        raise ValueError(f"{name} must not be negative, got {float(np.min(np.asarray(weights)))}.")
    return weights


def as_real_array(name: str, x: object) -> jax.Array | np.ndarray:
    """Return x as a JAX or NumPy array of real numbers."""
    array = x if isinstance(x, jax.Array) else _convert(name, x)
    if not _is_real(array.dtype):
        raise ValueError(
            f"{name} must be real numbers, got {_describe(x)} of dtype {array.dtype}. Convert it "
            f"first, e.g. {name}.astype('float32')."
        )
    return array


def _convert(name: str, x: object) -> jax.Array | np.ndarray:
    """Return a list, a table or an array of another library as a JAX or NumPy array."""
    # 1. Refuse what NumPy would accept but convert to something useless.
    if type(x).__module__.startswith("scipy.sparse"):
        raise ValueError(
            f"{name} must be a dense array, got {type(x).__name__}. Use {name}.toarray(); of the "
            "matrix of a regression, jax.experimental.sparse.BCOO.from_scipy_sparse."
        )
    if x is None or isinstance(x, str | bytes | dict | set | type) or callable(x):
        raise ValueError(f"{name} must be an array of numbers, got {type(x).__name__}.")
    leaves = jax.tree.leaves(x) if isinstance(x, list | tuple) else [x]
    if any(map(is_masked, leaves)):
        raise ValueError(
            f"{name} must have no masked entries: what is behind a mask means nothing. Remove the "
            f"rows that have some, or fill them, e.g. {name}.filled(0.0)."
        )
    # 2. Convert; only JAX can stack tracers.
    holds_jax = any(isinstance(leaf, jax.Array) for leaf in leaves)
    try:
        array = jnp.asarray(x) if holds_jax else np.asarray(x)
    except (TypeError, ValueError) as error:
        kind = type(x).__name__
        raise ValueError(f"{name} must be an array of numbers, got {kind}: {error}") from None
    # 3. JAX does not know extended precision. Numbers that overflow are refused later as infinite.
    if isinstance(array, np.ndarray) and array.dtype == np.longdouble:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    return array


@lru_cache
def _is_real(dtype: jnp.dtype) -> bool:
    """Return whether a dtype is one of integers or real numbers."""
    is_number = jnp.issubdtype(dtype, jnp.number)
    return is_number and not jnp.issubdtype(dtype, jnp.complexfloating)


@lru_cache
def is_floating(dtype: jnp.dtype) -> bool:
    """Return whether a dtype is one of real floating-point numbers."""
    return jnp.issubdtype(dtype, jnp.floating)


def _describe(x: object) -> str:
    """Return the type of an argument in words."""
    return "an array" if isinstance(x, jax.Array | np.ndarray) else f"a {type(x).__name__}"


def check_shape(name: str, x: Any, shape: Shape) -> None:
    """Refuse an array of another shape than required (:data:`Shape`)."""
    # 1. The lengths to compare: all of them, or the first or last ones next to "…".
    actual = jnp.shape(x)
    required = [length for length in shape if length != "…"]
    has_ellipsis = len(required) < len(shape)
    rank_fits = len(actual) >= len(required) if has_ellipsis else len(actual) == len(required)
    is_suffix = bool(shape) and shape[0] == "…"
    compared = actual[len(actual) - len(required) :] if is_suffix else actual[: len(required)]
    # 2. Names match any length.
    if not rank_fits or any(
        isinstance(length, int) and length != actual_length
        for length, actual_length in zip(required, compared, strict=True)
    ):
        raise ValueError(
            f"{name} must have shape [{', '.join(map(str, shape))}], got shape {actual}."
        )


def _check_floating(name: str, dtype: jnp.dtype) -> None:
    """Refuse integers and Booleans, which would be promoted silently, usually to a wrong dtype."""
    if not is_floating(dtype):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {dtype}. Convert it first, "
            f"e.g. {name}.astype('float32')."
        )


def check_finite(name: str, x: object) -> None:
    """Refuse NaN, infinity and numbers that overflow in the precision of JAX, where known."""
    if not is_concrete(x):
        return
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    # 1. Which entries are finite: by NumPy on a CPU, which compiles nothing; else where they are.
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(
                array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
            )
    elif array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices()):
        is_finite = np.isfinite(np.asarray(array))
    else:
        is_finite = jnp.isfinite(array)
    if bool(is_finite.all()):
        return
    # 2. Say how many are not, and where the first one is.
    is_finite = np.asarray(is_finite)
    bad_count = int((~is_finite).sum())
    position = [int(i) for i in np.argwhere(~is_finite)[0]]
    if isinstance(array, np.ndarray) and np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite in {jax.dtypes.canonicalize_dtype(array.dtype)}, got "
            f"{bad_count} entries beyond its largest number, the first at {name}{position}. "
            "Change the unit, or enable jax_enable_x64."
        )
    raise ValueError(
        f"{name} must be finite, got {bad_count} NaN or infinite entries, the first at "
        f"{name}{position}. Remove or impute them."
    )
