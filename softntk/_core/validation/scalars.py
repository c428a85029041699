"""Arguments that are one thing: a number, a flag, a name of several, a random key, a function."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray


def is_concrete(x: object) -> bool:
    """Return whether the values of x can be looked at now, i.e.

    x is not traced by jit, vmap or grad.
    """
    return not isinstance(x, jax.core.Tracer)


def is_hashable(value: object) -> bool:
    """Return whether a value can be an argument that a program is compiled for."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_masked(value: object) -> bool:
    """Return whether a value is an array of numpy.ma that has masked entries."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


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
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    if not _is_scalar(value):
        raise ValueError(
            f"{name} must be {_describe_bounds(bounds, infinite)}, got {_short(value)}."
        )
    if not is_concrete(value):
        return value
    number = (
        float("inf") if isinstance(value, int) and abs(value) >= LARGEST_INTEGER else float(value)
    )
    allowed = np.isfinite(number) or (infinite and not np.isnan(number))
    if not allowed or not all(
        bound is None or FITS[words](number, bound) for words, bound in bounds.items()
    ):
        raise ValueError(
            f"{name} must be {_describe_bounds(bounds, infinite)}, got {_short(value)}."
        )
    return number


LARGEST_INTEGER = 1 << 1000
"""Beyond this an integer counts as infinite."""

FITS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}


def _is_scalar(value: object) -> bool:
    """Return whether a value is one real number of Python, NumPy or JAX."""
    if isinstance(value, bool) or is_masked(value):
        return False
    if isinstance(value, int | float):
        return True
    if not isinstance(value, np.number | np.ndarray | jax.Array) or np.ndim(value) != 0:
        return False
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)


def _describe_bounds(bounds: dict[str, int | float | None], infinite: bool) -> str:
    if bounds["above"] == 0 and bounds["below"] is None and bounds["at most"] is None:
        return f"a positive {'' if infinite else 'finite '}number"
    limits = " and ".join(
        f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None
    )
    return f"a {'' if infinite else 'finite '}number {limits}".strip()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_positive(name: str, value: object) -> Any:
    """Return a positive finite number; a traced one passes."""
    return check_number(name, value, above=0)


def check_integer(
    name: str, value: Any, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return a Python, NumPy or JAX integer as a Python one, within the bounds."""
    wanted = {0: "a non-negative integer", 1: "a positive integer", None: "an integer"}.get(
        at_least
    )
    wanted = f"an integer of at least {at_least}" if wanted is None else wanted
    wanted = wanted if at_most is None else f"{wanted} of at most {at_most}"
    try:
        is_other = isinstance(value, bool | np.bool_) or is_masked(value) or not is_concrete(value)
        integer = None if is_other else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        integer = None
    if (
        integer is None
        or (at_least is not None and integer < at_least)
        or (at_most is not None and integer > at_most)
    ):
        raise ValueError(f"{name} must be {wanted}, got {_short(value)}.")
    return integer


def check_positive_int(name: str, value: object) -> int:
    """Return an integer of at least one."""
    return check_integer(name, value, at_least=1)


LARGEST_COUNT = 2**31 - 1
"""Of the counters of loops, which are int32 in compiled programs whatever the precision."""


def check_count(name: str, value: object, at_least: int = 1) -> int:
    """Return an integer that a compiled program can count to."""
    count = check_integer(name, value, at_least=at_least)
    return check_integer(name, count, at_least=at_least, at_most=LARGEST_COUNT)


def check_flag(name: str, value: object) -> bool:
    """Return True or False, and refuse what only counts as one of them."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {_short(value)}.")
    return bool(value)


def check_choice(name: str, value: object, options: Iterable[str]) -> str:
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


def check_key(name: str, key: object) -> PRNGKeyArray:
    """Return one random key, of ``jax.random.key`` or of the older ``PRNGKey``."""
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key  # pyright: ignore[reportReturnType]
            raise ValueError(
                f"{name} must be one key, got {key.shape} of them. Take one of them, or use jax.vmap."
            )
        if key.dtype == jnp.uint32 and key.shape == jax.random.key_data(jax.random.key(0)).shape:
            return jnp.asarray(key)  # pyright: ignore[reportReturnType]
    raise ValueError(
        f"{name} must be a random key, got {_short(key)}. Make one: jax.random.key(0)."
    )


def check_callable(name: str, function: Any, what: str = "a function") -> Any:
    """Return a function; ``what`` it should be is said otherwise."""
    if not callable(function):
        raise ValueError(f"{name} must be {what}, got {_short(function)}.")
    return function
