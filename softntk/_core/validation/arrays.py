"""Arguments that are arrays: converted first, checked after."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.validation.scalars import check_number, is_concrete, is_masked

Shape = Sequence[int | str]
"""Of an array: integers for given lengths, names for free ones, and "…" first or last for any
number of axes there.
"""


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
        name: of the argument, for messages.
        x: an array of any library, a list of numbers, a pandas table, a number.
        shape: what it must have, or None for any.
        finite: refuse NaN and infinity, where the values are known. Numbers beyond the largest of
            the precision that JAX works in are refused anyway.
        half: False refuses float16 and bfloat16, for what LAPACK has to do.
        empty: allow an axis of length zero.

    Raises:
        ValueError: it is no such array.
    """
    array = as_real_array(name, x)
    _check_floating(name, array.dtype)
    if not half and jnp.finfo(array.dtype).bits < 32:
        raise ValueError(
            f"{name} must be float32 or float64, got {array.dtype}: factorisations do not exist for it. "
            f"Convert it, e.g. {name}.astype('float32')."
        )
    if shape is not None:
        check_shape(name, array, shape)
    if not empty and 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}.")
    if finite:
        check_finite(name, array)
    elif isinstance(array, np.ndarray):
        _check_range(name, array, jax.dtypes.canonicalize_dtype(array.dtype))
    return as_jax_array(array)


def as_jax_array(array: jax.Array | np.ndarray) -> jax.Array:
    """Return an array of JAX, in a precision that it works in; one that is such already at once."""
    if isinstance(array, jax.Array) and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype:
        return array
    with np.errstate(over="ignore"):
        return jnp.asarray(array)


def as_scalars(**values: object) -> tuple[Float[Array, "..."], ...]:
    """Return numbers and arrays, by the name of the argument, as arrays of one floating-point dtype
    and broadcasting ranks.

    Python numbers and integers take the dtype of the others. Values are not checked.
    """
    given: list[Any] = list(values.values())
    if _are_alike(given):
        return tuple(given)
    arrays = []
    for name, value in values.items():
        large = isinstance(value, int) and not isinstance(value, bool)
        array = np.asarray(check_number(name, value)) if large else as_real_array(name, value)
        arrays.append(array)
    fixed = [
        jax.dtypes.canonicalize_dtype(array.dtype)
        for array, value in zip(arrays, given, strict=True)
        if not isinstance(value, int | float)
    ]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(float, *fixed))
    rank = max(array.ndim for array in arrays)
    with np.errstate(over="ignore"):
        return tuple(jnp.asarray(_with_rank(array, rank)).astype(dtype) for array in arrays)


def check_shapes_broadcast(given: Mapping[str, object], arrays: Sequence[jax.Array]) -> None:
    """Refuse arrays, by the name of the argument, whose shapes do not broadcast."""
    shapes = [array.shape for array in arrays]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        names = ", ".join(given)
        raise ValueError(
            f"{names} must have shapes that broadcast, got {', '.join(map(str, shapes))}."
        ) from None


def _with_rank(array: jax.Array | np.ndarray, rank: int) -> jax.Array | np.ndarray:
    """Return the array with axes of length one before its own; a scalar stays one."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array


def _are_alike(values: list[Any]) -> bool:
    """Return whether these are JAX arrays of one floating-point dtype whose ranks broadcast as they
    are.
    """
    if not all(
        isinstance(value, jax.Array) and not getattr(value, "weak_type", True) for value in values
    ):
        return False
    dtype = values[0].dtype
    ranks = {value.ndim for value in values} - {0}
    return (
        len(ranks) <= 1
        and all(value.dtype == dtype for value in values)
        and _is_floating(dtype)
        and jax.dtypes.canonicalize_dtype(dtype) == dtype
    )


def as_rows(
    name: str, x: object, features: int | None = None, *, half: bool = True
) -> Float[Array, "n d"]:
    """Return x as a finite floating-point matrix [n, d] with at least one row and one column, and d
    = ``features``.
    """
    array = as_real_array(name, x)
    _check_floating(name, array.dtype)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have shape [n, d], one row a point, got shape {array.shape}. Reshape it, e.g. {name}.reshape(n, -1)."
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

    None stands for x1 again.
    """
    first = as_rows(names[0], x1)
    if x2 is None:
        return first, None
    second = as_rows(names[1], x2)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[1]} must have as many features as {names[0]}, got shapes {first.shape} and {second.shape}."
        )
    if first.dtype != second.dtype:
        raise ValueError(
            f"{names[1]} must have the dtype of {names[0]}, got {first.dtype} and {second.dtype}. Convert one of them."
        )
    return first, second


def as_integers(name: str, x: object, shape: Shape | None = None) -> Int[Array, "..."]:
    """Return x as an array of integers, which must fit the integers that JAX works in."""
    array = as_real_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers, got dtype {array.dtype}. Convert it, e.g. {name}.astype(int)."
        )
    if shape is not None:
        check_shape(name, array, shape)
    if isinstance(array, np.ndarray) and array.size:
        limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if int(array.max()) > limits.max or int(array.min()) < limits.min:
            raise ValueError(
                f"{name} must lie between {limits.min} and {limits.max}, the integers of JAX here, got up to "
                f"{int(array.max())}. Enable jax_enable_x64 for larger ones."
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
    """Return x as a JAX array of a floating-point dtype that something else decides: integers are
    converted, too.

    ``finite=False`` lets NaN and infinity pass, but not numbers that only the conversion would make
    infinite.
    """
    if isinstance(x, jax.Array) and x.dtype == dtype:
        return _as_same_dtype(name, x, shape, finite)
    array = as_real_array(name, x)
    if shape is not None:
        check_shape(name, array, shape)
    if finite and _is_floating(array.dtype):
        check_finite(name, array)
    if is_concrete(array):
        _check_range(name, np.asarray(array), dtype)
    with np.errstate(over="ignore"):
        return jnp.asarray(array, dtype)


def _as_same_dtype(
    name: str, x: jax.Array, shape: Shape | None, finite: bool
) -> Float[Array, "..."]:
    """Return an array that has the dtype already, checked."""
    if not finite and (shape is None or x.shape == tuple(shape)):
        return x
    if shape is not None:
        check_shape(name, x, shape)
    if finite and _is_floating(x.dtype):
        check_finite(name, x)
    return jnp.asarray(x, x.dtype) if x.weak_type else as_jax_array(x)


def _check_range(name: str, array: np.ndarray, dtype: jax.typing.DTypeLike) -> None:
    """Refuse numbers that only the conversion to another precision would make infinite."""
    if array.dtype == dtype:
        return
    with np.errstate(over="ignore"):
        beyond = np.isinf(array.astype(dtype)) & np.isfinite(array)
    if beyond.any():
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype)}, got {int(beyond.sum())} entries beyond "
            "its largest number. Change the unit, or use float64 for everything."
        )


def as_weights(
    name: str, x: object, dtype: jax.typing.DTypeLike, *shapes: tuple[int, ...]
) -> Float[Array, "..."]:
    """Return x as finite numbers that are not negative, of one of the shapes and of a given dtype;
    traced ones pass.
    """
    weights = as_dtype(name, x, dtype)
    if weights.shape not in shapes:
        wanted = " or ".join(
            f"have shape {list(shape)}" if shape else "be a scalar" for shape in shapes
        )
        raise ValueError(f"{name} must {wanted}, got shape {weights.shape}.")
    if is_concrete(weights) and bool((np.asarray(weights) < 0).any()):
        raise ValueError(f"{name} must not be negative, got {float(np.min(np.asarray(weights)))}.")
    return weights


def as_real_array(name: str, x: object) -> jax.Array | np.ndarray:
    """Return x as an array of real numbers of JAX or NumPy."""
    array = x if isinstance(x, jax.Array) else _convert(name, x)
    if not _is_real(array.dtype):
        raise ValueError(
            f"{name} must be real numbers, got {_describe(x)} of dtype {array.dtype}. Convert it "
            f"first, e.g. {name}.astype('float32')."
        )
    return array


def _convert(name: str, x: object) -> jax.Array | np.ndarray:
    """Return a list, a table or an array of another library as an array of JAX or NumPy."""
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
            f"{name} must have no masked entries: what is behind a mask means nothing. Remove the rows that have some, or fill "
            f"them, e.g. {name}.filled(0.0)."
        )
    holds_jax = any(isinstance(leaf, jax.Array) for leaf in leaves)
    try:
        array = jnp.asarray(x) if holds_jax else np.asarray(x)
    except (TypeError, ValueError) as error:
        kind = type(x).__name__
        raise ValueError(f"{name} must be an array of numbers, got {kind}: {error}") from None
    if isinstance(array, np.ndarray) and array.dtype == np.longdouble:
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            array = array.astype(np.float64)
    return array


@lru_cache
def _is_real(dtype: jnp.dtype) -> bool:
    number = jnp.issubdtype(dtype, jnp.number)
    return number and not jnp.issubdtype(dtype, jnp.complexfloating)


@lru_cache
def _is_floating(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _describe(x: object) -> str:
    return "an array" if isinstance(x, jax.Array | np.ndarray) else f"a {type(x).__name__}"


def check_shape(name: str, x: Any, shape: Shape) -> None:
    """Refuse another shape: an integer must be met, a name stands for any length, "…" for any
    number of axes.
    """
    actual = jnp.shape(x)
    fixed = [length for length in shape if length != "…"]
    enough = len(actual) >= len(fixed) if len(fixed) < len(shape) else len(actual) == len(fixed)
    ends = actual[len(actual) - len(fixed) :] if shape and shape[0] == "…" else actual[: len(fixed)]
    if not enough or any(
        isinstance(want, int) and want != got for want, got in zip(fixed, ends, strict=True)
    ):
        raise ValueError(
            f"{name} must have shape [{', '.join(map(str, shape))}], got shape {actual}."
        )


def _check_floating(name: str, dtype: jnp.dtype) -> None:
    """Refuse integers and Booleans: they would silently be promoted, usually to the wrong
    precision.
    """
    if not _is_floating(dtype):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {dtype}. Convert it first, e.g. {name}.astype('float32')."
        )


def check_finite(name: str, x: object) -> None:
    """Refuse NaN and infinity, where the values are known, in the precision that JAX works in."""
    if not is_concrete(x):
        return
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    if isinstance(given, np.ndarray):
        with np.errstate(over="ignore"):  # what overflows is refused below
            finite = np.isfinite(
                given.astype(jax.dtypes.canonicalize_dtype(given.dtype), copy=False)
            )
    elif given.is_fully_addressable and all(device.platform == "cpu" for device in given.devices()):
        finite = np.isfinite(np.asarray(given))
    else:
        finite = jnp.isfinite(given)
    if bool(finite.all()):
        return
    finite = np.asarray(finite)
    first = tuple(int(i) for i in np.argwhere(~finite)[0])
    if isinstance(given, np.ndarray) and np.isfinite(given).all():
        raise ValueError(
            f"{name} must be finite in {jax.dtypes.canonicalize_dtype(given.dtype)}, got {int((~finite).sum())} entries beyond "
            f"its largest number, the first at {name}{list(first)}. Change the unit, or enable jax_enable_x64."
        )
    raise ValueError(
        f"{name} must be finite, got {int((~finite).sum())} NaN or infinite entries, the first at {name}{list(first)}. "
        "Remove or impute them."
    )
