"""Arguments that several functions of the package take: times, points, and what functions of users
return.

They are converted first and checked after, as in ``softntk._core.validation``, whose names and
messages these follow.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_floating,
    as_real_array,
    as_rows,
    check_number,
    is_concrete,
)

Number = float | Float[Array, ""]
"""A hyperparameter: a Python number, or one that is traced."""

_SHORTEST_TIME = 1e-25  # before it the variance of the noise may not be a number of float32


class Process(Protocol):
    """What the checks need to know of a noising process."""

    @property
    def horizon(self) -> Any:
        """T."""
        ...

    def variance(self, t: ArrayLike) -> Array:
        """h(t)."""
        ...


def as_real(name: str, x: object, *, finite: bool = True) -> Float[Array, "..."]:
    """Return x as a floating-point array; integers in JAX's default precision.

    Raises:
        ValueError: no real numbers; not finite, where that is asked for.
    """
    array = as_real_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    return as_floating(name, array, finite=finite)


def as_times(sde: Process, t: object, name: str = "t") -> Float[Array, "..."]:
    """Return times in (0, T] as an array.

    Raises:
        ValueError: no real numbers, or some outside (0, horizon], where they are known.
    """
    times = as_real(name, t, finite=False)
    if not all(map(is_concrete, jax.tree.leaves(t))):
        return times
    values = np.asarray(t, np.float64)  # what was given: under jit whatever JAX converts is traced
    horizon = float(sde.horizon) * (1 + 1e-6) if is_concrete(sde.horizon) else np.inf
    if not ((values > 0) & (values < horizon)).all():
        upper = f"{sde.horizon:g}" if is_concrete(sde.horizon) else "horizon"
        raise ValueError(
            f"{name} must lie in (0, {upper}], got {values.min():g} … {values.max():g}. At 0 there is no noise, "
            "and the score of data that fill no volume is infinite."
        )
    if values.min() < _SHORTEST_TIME:
        variance = sde.variance(jnp.asarray(values.min(), times.dtype))
        if is_concrete(variance) and float(variance) < float(jnp.finfo(variance.dtype).tiny):
            raise ValueError(
                f"{name} must leave some noise, got {values.min():g}, where its variance is no number of {variance.dtype}. "
                "Take later times."
            )
    return times


def columns_of_times(t: ArrayLike, x: Array) -> Float[Array, "n 1"]:
    """Return a scalar or [n] as [n, 1], in the dtype of x.

    Raises:
        ValueError: another shape.
    """
    n = x.shape[0]
    if jnp.shape(t) not in ((), (n,)):
        raise ValueError(
            f"t must be a scalar or of shape ({n},), one time a row of x, got shape {jnp.shape(t)}."
        )
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), (n,))[:, None]


def as_points(sde: Process, t: object, x: object, d: int | None = None) -> tuple[Array, Array]:
    """Return times in (0, T] and points [n, d] as arrays; points of any dimension if none is given.

    Raises:
        ValueError: times or points that are refused.
    """
    points = as_rows("x", x)
    times = as_times(sde, t)
    if d is not None and points.shape[1] != d:
        raise ValueError(
            f"x must have shape [n, {d}], the dimension of the distribution, got {points.shape}."
        )
    return times, points


def check_min_time(sde: Process, min_time: object, *, traced: bool = False) -> Any:
    """Return a first time in (0, horizon).

    Raises:
        ValueError: no such number, or a traced one where it has to be known.
    """
    try:
        number = check_number("min_time", min_time, above=0)
        if is_concrete(number) and is_concrete(sde.horizon) and not number < sde.horizon:
            raise ValueError
    except ValueError:
        upper = f"{sde.horizon:g}" if is_concrete(sde.horizon) else "of the process"
        raise ValueError(
            f"min_time must lie between 0 and the horizon {upper}, got {min_time!r}: at 0 the score diverges. "
            "1e-3 is a usual choice."
        ) from None
    if is_concrete(number):
        as_times(sde, number, "min_time")  # there is some noise
    return number if traced else check_known("min_time", number)


def check_hyperparameter(name: str, value: object, *, above: int | None = None) -> Any:
    """Return a number that may be traced, and otherwise is one of JAX's default precision too.

    Raises:
        ValueError: no such number, or one that over- or underflows there.
    """
    number = check_number(name, value, above=above)
    if not is_concrete(number):
        return number
    dtype = np.dtype(jnp.result_type(float))
    with np.errstate(over="ignore", under="ignore"):
        rounded = dtype.type(number)  # on the host: under jit whatever JAX converts is traced
    if not np.isfinite(rounded):
        raise ValueError(
            f"{name} must be finite in {dtype}, got {value!r}. Change the unit, or enable jax_enable_x64."
        )
    if number and not rounded:
        raise ValueError(
            f"{name} must be a number of {dtype}, got {value!r}, which rounds to zero."
        )
    return number


def check_known(name: str, value: object) -> Any:
    """Return a value that is known when a program is compiled, or on the host.

    Raises:
        ValueError: it is traced.
    """
    if any(not is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"{name} must be known before the program runs, got a value traced by jit, vmap or grad. "
            f"Pass {name} as it is, from outside of the transformation."
        )
    return value


def as_output(name: str, value: object, x: Array) -> Array:
    """Return what a function of (t, x) gave for x, in the dtype of x.

    Raises:
        ValueError: no array of the shape of x, or none of real numbers.
    """
    array = value if isinstance(value, jax.Array | np.ndarray) else None
    if array is None:
        raise ValueError(
            f"{name} must return an array of the shape of x, {x.shape}, got {type(value).__name__}."
        )
    if array.shape != x.shape:
        raise ValueError(f"{name} must return the shape of x, {x.shape}, got {array.shape}.")
    if not jnp.issubdtype(array.dtype, jnp.floating) and not jnp.issubdtype(
        array.dtype, jnp.integer
    ):
        raise ValueError(f"{name} must return real numbers, got dtype {array.dtype}.")
    return jnp.asarray(array, x.dtype)


def widest(*arrays: Array) -> Any:
    """Return the floating-point dtype of most bits."""
    return max((array.dtype for array in arrays), key=lambda dtype: jnp.finfo(dtype).bits)
