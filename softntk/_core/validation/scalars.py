"""Checks of single values: numbers, flags, names from a list, random keys, functions."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

LARGEST_INTEGER = 1 << 1000
"""Beyond this an integer counts as infinite."""

LARGEST_COUNT = 2**31 - 1
"""Largest loop counter: an int32 in compiled programs, whatever the precision."""

MAX_QUOTED_LENGTH = 60
"""Characters of a wrong value that an error message quotes."""

COMPARISONS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}
"""Words of an error message → the comparison of a number with its bound."""


def is_concrete(x: object) -> bool:
    """Return whether the values of x are known now: it is not traced by jit, vmap or grad."""
    return not isinstance(x, jax.core.Tracer)


def is_hashable(value: object) -> bool:
    """Return whether a value can be a static argument of a compiled program."""
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
    """Return one real number as a Python float; a traced one is returned unchecked.

    Args:
        name: name of the argument, for error messages.
        value: a Python, NumPy or JAX number.
        above: what the number must exceed.
        at_least: the smallest number allowed.
        below: what the number must stay below.
        at_most: the largest number allowed.
        infinite: whether ±∞ is allowed.

    Raises:
        ValueError: value is not a real number, or out of bounds; the message states the bounds.
    """
    # 1. Refuse everything that is no single real number.
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    if not _is_scalar(value):
        raise ValueError(
            f"{name} must be {_describe_bounds(bounds, infinite)}, got {_quote(value)}."
        )
    if not is_concrete(value):
        return value
    # 2. Convert. float() raises an OverflowError for integers beyond its range.
    is_huge = isinstance(value, int) and abs(value) >= LARGEST_INTEGER
    number = float("inf") if is_huge else float(value)
    # 3. Compare with the bounds.
    is_allowed = np.isfinite(number) or (infinite and not np.isnan(number))
    if not is_allowed or not all(
        bound is None or COMPARISONS[words](number, bound) for words, bound in bounds.items()
    ):
        raise ValueError(
            f"{name} must be {_describe_bounds(bounds, infinite)}, got {_quote(value)}."
        )
    return number


def _is_scalar(value: object) -> bool:
    """Return whether a value is one real number of Python, NumPy or JAX."""
    # Booleans are integers in Python, but not here.
    if isinstance(value, bool) or is_masked(value):
        return False
    if isinstance(value, int | float):
        return True
    if not isinstance(value, np.number | np.ndarray | jax.Array) or np.ndim(value) != 0:
        return False
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)


def _describe_bounds(bounds: dict[str, int | float | None], infinite: bool) -> str:
    """Return the bounds in words, as "a finite number above 0 and at most 1"."""
    if bounds["above"] == 0 and bounds["below"] is None and bounds["at most"] is None:
        return f"a positive {'' if infinite else 'finite '}number"
    limits = " and ".join(
        f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None
    )
    return f"a {'' if infinite else 'finite '}number {limits}".strip()


def _quote(value: object) -> str:
    """Return the repr of a value, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_LENGTH else f"{text[: MAX_QUOTED_LENGTH - 3]}..."


def check_positive(name: str, value: object) -> Any:
    """Return a positive finite number; a traced one passes."""
    return check_number(name, value, above=0)


def check_integer(
    name: str, value: object, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return a Python, NumPy or JAX integer as a Python one, within the bounds."""
    # 1. What the message asks for.
    names = {0: "a non-negative integer", 1: "a positive integer", None: "an integer"}
    requirement = names.get(at_least, f"an integer of at least {at_least}")
    requirement = requirement if at_most is None else f"{requirement} of at most {at_most}"
    # 2. Convert, without Booleans.
    try:
        is_invalid = (
            isinstance(value, bool | np.bool_) or is_masked(value) or not is_concrete(value)
        )
        integer = None if is_invalid else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        integer = None
    # 3. Compare with the bounds.
    if (
        integer is None
        or (at_least is not None and integer < at_least)
        or (at_most is not None and integer > at_most)
    ):
        raise ValueError(f"{name} must be {requirement}, got {_quote(value)}.")
    return integer


def check_positive_int(name: str, value: object) -> int:
    """Return a positive integer."""
    return check_integer(name, value, at_least=1)


def check_count(name: str, value: object, at_least: int = 1) -> int:
    """Return an integer that a loop counter of a compiled program can reach."""
    # Checked twice, so that the message for a small value does not mention the upper bound.
    count = check_integer(name, value, at_least=at_least)
    return check_integer(name, count, at_least=at_least, at_most=LARGEST_COUNT)


def check_flag(name: str, value: object) -> bool:
    """Return True or False; other values that Python counts as true or false are refused."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {_quote(value)}.")
    return bool(value)


def check_choice(name: str, value: object, options: Iterable[str]) -> str:
    """Return a name that is among the options.

    Raises:
        ValueError: the name is not among them; the message lists the options and suggests the
            nearest one.
    """
    option_names = list(options)
    if isinstance(value, str) and value in option_names:
        return value
    nearest = difflib.get_close_matches(value, option_names, n=1) if isinstance(value, str) else []
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{name} must be one of {sorted(option_names)}, got {_quote(value)}.{hint}")


def check_key(name: str, key: object) -> PRNGKeyArray:
    """Return one random key, made by ``jax.random.key`` or by the older ``PRNGKey``."""
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key  # pyright: ignore[reportReturnType]
            raise ValueError(
                f"{name} must be one key, got an array of keys of shape {key.shape}. "
                "Take one of them, or use jax.vmap."
            )
        # The older kind of key is an array of two integers.
        if key.dtype == jnp.uint32 and key.shape == jax.random.key_data(jax.random.key(0)).shape:
            return jnp.asarray(key)  # pyright: ignore[reportReturnType]
    raise ValueError(
        f"{name} must be a random key, got {_quote(key)}. Make one: jax.random.key(0)."
    )


def check_callable(name: str, function: object, what: str = "a function") -> Any:
    """Return a function; the message for anything else says that it must be ``what``."""
    if not callable(function):
        raise ValueError(f"{name} must be {what}, got {_quote(function)}.")
    return function
