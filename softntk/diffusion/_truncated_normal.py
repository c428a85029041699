r"""Quantiles of a normal distribution cut to an interval, however far out in its tail the interval
is.

Near the centre the smaller of the two tails of the answer z, from logarithms of probabilities only,
so that nothing cancels:

    log Φ(−|z|) = log((1 − u) Φ(∓a) + u Φ(∓b)),   by Newton's method on log Φ, which is concave: from the left it does not
                                                  overshoot.

Beyond ``_FAR`` deviations the tail is that of an exponential distribution in s = (z² − e²)/2, e the
end next to the centre, but for a factor 1 + O(s/e²): there the distance from that end is what keeps
its digits.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float

_FAR = 100.0
_NEWTON_STEPS = 6  # from log-probabilities of −0.7 to −5000 to the last digit of float64
_LARGEST_END = 1e15


def truncated_normal_quantile(
    uniform: Float[Array, "..."],
    lower: ArrayLike,
    upper: ArrayLike,
    centre: ArrayLike,
    deviation: ArrayLike,
) -> Float[Array, "..."]:
    """Return the quantiles of N(centre, deviation²) given that it lies between lower and upper,
    elementwise.

    Args:
        uniform: u in [0, 1); its dtype is that of the result.
        lower: where the interval begins.
        upper: where it ends.
        centre: of the normal distribution.
        deviation: of the normal distribution.
    """
    lower, upper, centre, deviation = (
        jnp.asarray(each, uniform.dtype) for each in (lower, upper, centre, deviation)
    )
    first = jnp.clip((lower - centre) / deviation, -_LARGEST_END, _LARGEST_END)
    last = jnp.clip((upper - centre) / deviation, -_LARGEST_END, _LARGEST_END)
    near = jnp.minimum(first, _FAR)
    quantile = centre + deviation * _standard_quantile(uniform, near, jnp.maximum(last, -_FAR))
    width = jnp.minimum((upper - lower) / deviation, _LARGEST_END)
    above = lower + deviation * _distance_from_end(uniform, first, width)
    below = upper - deviation * _distance_from_end(1 - uniform, -last, width)
    quantile = jnp.where(first > _FAR, above, jnp.where(last < -_FAR, below, quantile))
    return jnp.clip(quantile, lower, upper)


def _standard_quantile(uniform: Array, first: Array, last: Array) -> Array:
    """Return z of N(0, 1) between first and last."""
    log_above, log_below = jnp.log(uniform), jnp.log1p(-uniform)
    left = jnp.logaddexp(log_below + log_ndtr(first), log_above + log_ndtr(last))
    right = jnp.logaddexp(log_below + log_ndtr(-first), log_above + log_ndtr(-last))
    tail = jnp.minimum(jnp.minimum(left, right), -math.log(2))

    def newton_step(_: int, z: Array) -> Array:
        log_probability = log_ndtr(z)
        log_slope = -(z**2) / 2 - math.log(2 * math.pi) / 2 - log_probability
        return z + (tail - log_probability) * jnp.exp(-log_slope)

    z = lax.fori_loop(0, _NEWTON_STEPS, newton_step, -jnp.sqrt(-2 * tail))
    return jnp.where(left <= right, z, -z)


def _distance_from_end(uniform: Array, first: Array, width: Array) -> Array:
    """Return z − first of N(0, 1) between first and first + width, where first is far above 0."""
    first = jnp.maximum(first, 1)
    exponent = width * (first + width / 2)
    s = jnp.minimum(-jnp.log1p(uniform * jnp.expm1(-exponent)), exponent)
    return 2 * s / (first * (1 + jnp.sqrt(1 + 2 * (s / first) / first)))
