"""Checks of arguments: one function for each kind of argument, shared by the whole library.

Each takes the name of the argument first and returns the value, converted: lists, pandas tables and NumPy arrays become JAX
arrays, NumPy scalars become Python numbers. What does not fit raises a ValueError that names the argument, what came and what
to do. Conversion comes first: what is finite in float64 and infinite in the precision that JAX works in is refused.

What is known only at run time (values inside jit) is not checked; every function states what it returns then.

    as_floating       an array of floating-point numbers, of any or of a given shape
    as_rows, as_pair  points [n, d], one row a point; two sets of them that a kernel can compare
    as_scalars        numbers and arrays that are to be combined, of one dtype
    as_integers       an array of integers
    as_dtype          real numbers, in the precision of what they belong to; as_weights: none of them negative
    check_number      one real number, within bounds
    check_positive, check_positive_int, check_integer
    check_flag        True or False
    check_choice      one name of several
    check_key         one random key
    check_callable    a function
"""

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

Shape = Sequence[int | str]
"""Of an array: integers for given lengths, names for free ones, and "…" first or last for any number of axes there."""


def is_concrete(x: Any) -> bool:
    """Return whether the values of x can be looked at now, i.e. x is not traced by jit, vmap or grad."""
    return not isinstance(x, jax.core.Tracer)


# --- arrays -------------------------------------------------------------------------------------------------------


def as_floating(
    name: str, x: Any, shape: Shape | None = None, *, finite: bool = True, half: bool = True, empty: bool = False
) -> Float[Array, "..."]:
    """Return x as a floating-point JAX array.

    Args:
        name: of the argument, for messages.
        x: an array of any library, a list of numbers, a pandas table, a number.
        shape: what it must have, or None for any.
        finite: refuse NaN and infinity, where the values are known.
        half: False refuses float16 and bfloat16, for what LAPACK has to do.
        empty: allow an axis of length zero.

    Raises:
        ValueError: it is no such array.
    """
    array = _as_array(name, x)
    check_floating(name, array)
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
    with np.errstate(over="ignore"):
        return jnp.asarray(array)


def as_scalars(**values: Any) -> tuple[Float[Array, "..."], ...]:
    """Return numbers and arrays, by the name of the argument, as arrays of one floating-point dtype and broadcasting ranks.

    Python numbers and integers take the dtype of the others. Values are not checked.
    """
    arrays = []
    for name, value in values.items():
        large = isinstance(value, int) and not isinstance(value, bool)
        array = np.asarray(check_number(name, value)) if large else _as_array(name, value)
        arrays.append(array)
    fixed = [
        jax.dtypes.canonicalize_dtype(array.dtype)
        for array, value in zip(arrays, values.values(), strict=True)
        if not isinstance(value, int | float)
    ]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(float, *fixed))
    rank = max(array.ndim for array in arrays)
    with np.errstate(over="ignore"):
        return tuple(
            jnp.asarray(array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim else array).astype(dtype)
            for array in arrays
        )


def as_rows(name: str, x: Any, features: int | None = None, *, half: bool = True) -> Float[Array, "n d"]:
    """Return x as a finite floating-point matrix [n, d] with at least one row and one column, and d = ``features``."""
    array = _as_array(name, x)
    check_floating(name, array)
    if array.ndim != 2:
        raise ValueError(
            f"{name} must have shape [n, d], one row a point, got shape {array.shape}. Reshape it, e.g. {name}.reshape(n, -1)."
        )
    if 0 in array.shape:
        raise ValueError(f"{name} must have at least one row and one column, got shape {array.shape}.")
    if features is not None and array.shape[1] != features:
        raise ValueError(f"{name} must have {features} features, got shape {array.shape}.")
    return as_floating(name, array, half=half)


def as_pair(
    x1: Any, x2: Any, names: tuple[str, str] = ("x1", "x2")
) -> tuple[Float[Array, "n1 d"], Float[Array, "n2 d"] | None]:
    """Return two sets of points that a kernel can compare: as many features, the same dtype. None stands for x1 again."""
    first = as_rows(names[0], x1)
    if x2 is None:
        return first, None
    second = as_rows(names[1], x2)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{names[1]} must have as many features as {names[0]}, got shapes {first.shape} and {second.shape}.")
    if first.dtype != second.dtype:
        raise ValueError(
            f"{names[1]} must have the dtype of {names[0]}, got {first.dtype} and {second.dtype}. Convert one of them."
        )
    return first, second


def as_integers(name: str, x: Any, shape: Shape | None = None) -> Int[Array, "..."]:
    """Return x as an array of integers, which must fit the integers that JAX works in."""
    array = _as_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got dtype {array.dtype}. Convert it, e.g. {name}.astype(int).")
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
    name: str, x: Any, dtype: jax.typing.DTypeLike, shape: Shape | None = None, *, finite: bool = True
) -> Float[Array, "..."]:
    """Return x as a JAX array of a floating-point dtype that something else decides: integers are converted, too.

    ``finite=False`` lets NaN and infinity pass, but not numbers that only the conversion would make infinite.
    """
    fits = isinstance(x, jax.Array) and x.dtype == dtype
    if fits and not finite and (shape is None or x.shape == tuple(shape)):
        return x
    array = x if fits else _as_array(name, x)
    if shape is not None:
        check_shape(name, array, shape)
    if finite and jnp.issubdtype(array.dtype, jnp.floating):
        check_finite(name, array)
    with np.errstate(over="ignore"):
        converted = jnp.asarray(array, dtype)
    if array.dtype != dtype and is_concrete(converted):
        beyond = ~np.isfinite(np.asarray(converted)) & np.isfinite(np.asarray(array))
        if beyond.any():
            raise ValueError(
                f"{name} must be finite in {converted.dtype}, got {int(beyond.sum())} entries beyond its largest number. "
                "Change the unit, or use float64 for everything."
            )
    return converted


def as_weights(name: str, x: Any, dtype: jax.typing.DTypeLike, *shapes: tuple[int, ...]) -> Float[Array, "..."]:
    """Return x as finite numbers that are not negative, of one of the shapes and of a given dtype; traced ones pass."""
    weights = as_dtype(name, x, dtype)
    if weights.shape not in shapes:
        wanted = " or ".join(f"have shape {list(shape)}" if shape else "be a scalar" for shape in shapes)
        raise ValueError(f"{name} must {wanted}, got shape {weights.shape}.")
    if is_concrete(weights) and bool((np.asarray(weights) < 0).any()):
        raise ValueError(f"{name} must not be negative, got {float(np.min(np.asarray(weights)))}.")
    return weights


def _as_array(name: str, x: Any) -> jax.Array | np.ndarray:
    """Return x as an array of real numbers of JAX or NumPy."""
    if isinstance(x, jax.Array):
        array = x
    elif type(x).__module__.startswith("scipy.sparse"):
        raise ValueError(
            f"{name} must be a dense array, got {type(x).__name__}. Use {name}.toarray(); of the matrix of a regression, "
            "jax.experimental.sparse.BCOO.from_scipy_sparse."
        )
    elif x is None or isinstance(x, str | bytes | dict | set | type) or callable(x):
        raise ValueError(f"{name} must be an array of numbers, got {type(x).__name__}.")
    else:
        try:
            holds_jax = isinstance(x, list | tuple) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
            array = jnp.asarray(x) if holds_jax else np.asarray(x)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be an array of numbers, got {type(x).__name__}: {error}") from None
    if isinstance(array, np.ndarray) and array.dtype == np.longdouble:
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            array = array.astype(np.float64)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} must be real numbers, got {_describe(x)} of dtype {array.dtype}. Convert it first, e.g. "
            f"{name}.astype('float32')."
        )
    return array


def _describe(x: Any) -> str:
    return "an array" if isinstance(x, jax.Array | np.ndarray) else f"a {type(x).__name__}"


def check_shape(name: str, x: Any, shape: Shape) -> None:
    """Refuse another shape: an integer must be met, a name stands for any length, "…" for any number of axes."""
    actual = jnp.shape(x)
    fixed = [length for length in shape if length != "…"]
    enough = len(actual) >= len(fixed) if len(fixed) < len(shape) else len(actual) == len(fixed)
    ends = actual[len(actual) - len(fixed) :] if shape and shape[0] == "…" else actual[: len(fixed)]
    if not enough or any(isinstance(want, int) and want != got for want, got in zip(fixed, ends, strict=True)):
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got shape {actual}.")


def check_floating(name: str, x: Any) -> None:
    """Refuse integers and Booleans: an integer x would silently be promoted, usually to the wrong precision."""
    dtype = _as_array(name, x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {dtype}. Convert it first, e.g. {name}.astype('float32')."
        )


def check_finite(name: str, x: Any) -> None:
    """Refuse NaN and infinity, where the values are known, in the precision that JAX works in."""
    if not is_concrete(x):
        return
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    if isinstance(given, np.ndarray):
        with np.errstate(over="ignore"):  # what overflows is refused below
            finite = np.isfinite(given.astype(jax.dtypes.canonicalize_dtype(given.dtype), copy=False))
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


def check_rows(name: str, x: Any) -> None:
    """Refuse what :func:`as_rows` does."""
    as_rows(name, x)


def check_pair(x1: Any, x2: Any) -> None:
    """Refuse what :func:`as_pair` does."""
    as_pair(x1, x2)


# --- numbers ------------------------------------------------------------------------------------------------------


def check_number(
    name: str,
    value: Any,
    *,
    above: int | float | None = None,
    at_least: int | float | None = None,
    below: int | float | None = None,
    at_most: int | float | None = None,
    infinite: bool = False,
) -> Any:
    """Return one real number as a Python float, or as it is if it is traced.

    Args:
        name: of the argument.
        value: a Python, NumPy or JAX number.
        above: it must be larger.
        at_least: it must not be smaller.
        below: it must be smaller.
        at_most: it must not be larger.
        infinite: allow ±∞.

    Raises:
        ValueError: it is no number, or out of bounds; the message states the bounds.
    """
    wanted = _describe_bounds(above, at_least, below, at_most, infinite)
    scalar = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    if scalar and not isinstance(value, int | float):
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        scalar = real and np.ndim(value) == 0
    if not scalar:
        raise ValueError(f"{name} must be {wanted}, got {_short(value)}.")
    if not is_concrete(value):
        return value
    number = float(value) if not isinstance(value, int) or abs(value) < 1 << 1000 else float("inf")
    fits = (np.isfinite(number) or (infinite and not np.isnan(number))) and not (
        (above is not None and not number > above)
        or (at_least is not None and not number >= at_least)
        or (below is not None and not number < below)
        or (at_most is not None and not number <= at_most)
    )
    if not fits:
        raise ValueError(f"{name} must be {wanted}, got {_short(value)}.")
    return number


def _describe_bounds(
    above: int | float | None,
    at_least: int | float | None,
    below: int | float | None,
    at_most: int | float | None,
    infinite: bool,
) -> str:
    if above == 0 and below is None and at_most is None:
        return f"a positive {'' if infinite else 'finite '}number"
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("above", above), ("at least", at_least), ("below", below), ("at most", at_most))
        if bound is not None
    ]
    return " ".join([f"a {'' if infinite else 'finite '}number", " and ".join(bounds)]).strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_positive(name: str, value: Any) -> Any:
    """Return a positive finite number; a traced one passes."""
    return check_number(name, value, above=0)


def check_integer(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return a Python, NumPy or JAX integer as a Python one, within the bounds."""
    wanted = {0: "a non-negative integer", 1: "a positive integer", None: "an integer"}.get(at_least)
    wanted = f"an integer of at least {at_least}" if wanted is None else wanted
    wanted = wanted if at_most is None else f"{wanted} of at most {at_most}"
    try:
        integer = None if isinstance(value, bool | np.bool_) or not is_concrete(value) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or (at_least is not None and integer < at_least) or (at_most is not None and integer > at_most):
        raise ValueError(f"{name} must be {wanted}, got {_short(value)}.")
    return integer


def check_positive_int(name: str, value: object) -> int:
    """Return an integer of at least one."""
    return check_integer(name, value, at_least=1)


def check_flag(name: str, value: object) -> bool:
    """Return True or False, and refuse what only counts as one of them."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {_short(value)}.")
    return bool(value)


# --- names, keys, functions -----------------------------------------------------------------------------------------


def check_choice(name: str, value: Any, options: Iterable[str]) -> str:
    """Return a name that is among the options.

    Raises:
        ValueError: it is not; the message lists them, and the nearest.
    """
    known = list(options)
    if isinstance(value, str) and value in known:
        return value
    nearest = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{name} must be one of {sorted(known)}, got {_short(value)}.{hint}")


def check_key(name: str, key: Any) -> PRNGKeyArray:
    """Return one random key, of ``jax.random.key`` or of the older ``PRNGKey``."""
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key  # pyright: ignore[reportReturnType]
            raise ValueError(f"{name} must be one key, got {key.shape} of them. Take one of them, or use jax.vmap.")
        if key.dtype == jnp.uint32 and key.ndim == 1:
            return jnp.asarray(key)  # pyright: ignore[reportReturnType]
    raise ValueError(f"{name} must be a random key, got {_short(key)}. Make one: jax.random.key(0).")


def check_callable(name: str, function: Any, what: str = "a function") -> Any:
    """Return a function; ``what`` it should be is said otherwise."""
    if not callable(function):
        raise ValueError(f"{name} must be {what}, got {_short(function)}.")
    return function
