"""Checks of arguments that several functions of the package take.

They cover times, points, hyperparameters, and the arrays that users' functions return. As in
``softntk._core.validation``, arguments are converted first and checked afterwards.
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

MIN_CHECKED_TIME = 1e-25
"""Before this time the variance of the noise may underflow in float32: it is checked there."""

HORIZON_TOLERANCE = 1e-6
"""Relative excess of a time over the horizon that counts as rounding."""

SYMMETRY_TOLERANCE = 1e-5
"""Largest |A − Aᵀ| of a symmetric matrix A, relative to its largest entry."""


class Process(Protocol):
    """The part of a noising process that the checks use."""

    @property
    def horizon(self) -> Any:
        """T, the last time."""
        ...

    def variance(self, t: ArrayLike) -> Array:
        """Return h(t)."""
        ...


def as_real(name: str, x: object, *, finite: bool = True) -> Float[Array, "..."]:
    """Return x as a floating-point array; integers become JAX's default precision.

    Raises:
        ValueError: x is not real, or not finite where ``finite`` is set.
    """
    array = as_real_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    return as_floating(name, array, finite=finite)


def as_times(sde: Process, t: object, name: str = "t") -> Float[Array, "..."]:
    """Return times in (0, T] as an array.

    Raises:
        ValueError: t is not real, or a time that is not traced lies outside (0, horizon] or leaves
            no noise.
    """
    # 1. Convert; the values of traced times cannot be checked.
    times = as_real(name, t, finite=False)
    if not all(map(is_concrete, jax.tree.leaves(t))):
        return times
    # 2. Check the range on the host: under jit every array that JAX converts is traced.
    host_times = np.asarray(t, np.float64)
    # A traced horizon gives no upper bound.
    upper_bound = np.inf
    if is_concrete(sde.horizon):
        upper_bound = float(sde.horizon) * (1 + HORIZON_TOLERANCE)
    if not ((host_times > 0) & (host_times < upper_bound)).all():
        upper_text = f"{sde.horizon:g}" if is_concrete(sde.horizon) else "horizon"
        raise ValueError(
            f"{name} must lie in (0, {upper_text}], got {host_times.min():g} … "
            f"{host_times.max():g}. At 0 there is no noise, "
            "and the score of data that fill no volume is infinite."
        )
    # 3. Check that the variance of the noise does not underflow.
    if host_times.min() < MIN_CHECKED_TIME:
        variance = sde.variance(jnp.asarray(host_times.min(), times.dtype))
        if is_concrete(variance) and float(variance) < float(jnp.finfo(variance.dtype).tiny):
            raise ValueError(
                f"{name} must leave some noise, got {host_times.min():g}, where its variance is no "
                f"number of {variance.dtype}. Take later times."
            )
    return times


def columns_of_times(t: ArrayLike, x: Array) -> Float[Array, "n 1"]:
    """Return times, a scalar or [n], as a column [n, 1] in the dtype of x.

    Raises:
        ValueError: t has another shape.
    """
    n = x.shape[0]
    if jnp.shape(t) not in ((), (n,)):
        raise ValueError(
            f"t must be a scalar or of shape ({n},), one time a row of x, got shape {jnp.shape(t)}."
        )
    # As a column it multiplies rows of x.
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), (n,))[:, None]


def as_points(sde: Process, t: object, x: object, d: int | None = None) -> tuple[Array, Array]:
    """Return times in (0, T] and points [n, d] as arrays; d = None allows any dimension.

    Raises:
        ValueError: invalid times or points.
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
        ValueError: min_time is not such a number, or traced where ``traced`` is not set.
    """
    try:
        # One message for all reasons: the inner error only leads to it.
        number = check_number("min_time", min_time, above=0)
        if is_concrete(number) and is_concrete(sde.horizon) and not number < sde.horizon:
            raise ValueError
    except ValueError:
        upper_text = f"{sde.horizon:g}" if is_concrete(sde.horizon) else "of the process"
        raise ValueError(
            f"min_time must lie between 0 and the horizon {upper_text}, got {min_time!r}: at 0 the "
            "score diverges. 1e-3 is a usual choice."
        ) from None
    if is_concrete(number):
        # Called for its check that the variance of the noise does not underflow.
        as_times(sde, number, "min_time")
    return number if traced else check_known("min_time", number)


def check_hyperparameter(name: str, value: object, *, above: int | None = None) -> Any:
    """Return a number that may be traced; a concrete one must fit JAX's default precision.

    Raises:
        ValueError: value is not such a number, or over- or underflows in that precision.
    """
    number = check_number(name, value, above=above)
    if not is_concrete(number):
        return number
    dtype = np.dtype(jnp.result_type(float))
    # Rounded on the host: under jit every array that JAX converts is traced.
    with np.errstate(over="ignore", under="ignore"):
        rounded = dtype.type(number)
    if not np.isfinite(rounded):
        raise ValueError(
            f"{name} must be finite in {dtype}, got {value!r}. Change the unit, or enable "
            "jax_enable_x64."
        )
    if number and not rounded:
        raise ValueError(
            f"{name} must be a number of {dtype}, got {value!r}, which rounds to zero."
        )
    return number


def check_known(name: str, value: object) -> Any:
    """Return a value that no JAX transformation traces.

    Raises:
        ValueError: value is traced.
    """
    if any(not is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"{name} must be known before the program runs, got a value traced by jit, vmap or "
            f"grad. Pass {name} as it is, from outside of the transformation."
        )
    return value


def check_symmetric(name: str, matrices: np.ndarray) -> None:
    """Check that all matrices [c, d, d] are symmetric up to rounding.

    Raises:
        ValueError: at least one matrix is not symmetric.
    """
    # Each matrix of the stack has a tolerance of its own.
    largest_entry = np.abs(matrices).max(axis=(1, 2))
    asymmetry = np.abs(matrices - matrices.transpose(0, 2, 1)).max(axis=(1, 2))
    if (asymmetry > SYMMETRY_TOLERANCE * largest_entry).any():
        raise ValueError(f"{name} must be symmetric, at least one is not.")


def as_output(name: str, value: object, x: Array) -> Array:
    """Return the result of a user's function of (t, x), in the dtype of x.

    Raises:
        ValueError: value is not an array of real numbers of the shape of x.
    """
    # Lists and Python numbers are refused: a function of a whole batch returns an array.
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


def widest_dtype(*arrays: Array) -> np.dtype:
    """Return the floating-point dtype with the most bits."""
    return max((array.dtype for array in arrays), key=lambda dtype: jnp.finfo(dtype).bits)
