r"""Quantiles of a normal distribution cut to an interval, however far out in its tail.

Near the centre the quantile z follows from the smaller of its two tails, and this from sums of
probabilities, in logarithms, in which nothing cancels (upper signs for z > 0):

    log Φ(−|z|) = log((1 − u) Φ(∓a) + u Φ(∓b)).

Newton's method solves for −|z|. log Φ is concave, so that the method does not overshoot if it
starts on the left of the solution.

Let e be the end next to the centre. If it lies beyond ``TAIL_START`` deviations, s = (z² − e²)/2
has an exponential distribution, but for a factor 1 + O(s/e²) in the density. There the distance
from e is computed, which keeps its digits.

    ========  =====================================================
    symbol    meaning
    ========  =====================================================
    u         ``uniform``, in [0, 1)
    a, b      ``standard_lower``, ``standard_upper``: the ends, standardised
    z         the quantile, standardised
    ========  =====================================================
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float

TAIL_START = 100.0
"""Distance from the centre, in deviations, from which the exponential tail is used."""

NEWTON_STEPS = 6
"""Enough from log-probabilities of −0.7 to −5000 for the last digit of float64."""

MAX_STANDARD_END = 1e15
"""Bound on standardised ends: their squares stay in the range of float32."""


def truncated_normal_quantile(
    uniform: Float[Array, "..."],
    lower: ArrayLike,
    upper: ArrayLike,
    centre: ArrayLike,
    deviation: ArrayLike,
) -> Float[Array, "..."]:
    """Return the quantiles of N(centre, deviation²) cut to [lower, upper], elementwise.

    Args:
        uniform: u in [0, 1); its dtype is that of the result.
        lower: the lower end of the interval.
        upper: the upper end.
        centre: mean of the normal distribution before the cut.
        deviation: standard deviation of that distribution.
    """
    # 1. Standardise the ends.
    lower, upper, centre, deviation = (
        jnp.asarray(parameter, uniform.dtype) for parameter in (lower, upper, centre, deviation)
    )
    standard_lower = jnp.clip((lower - centre) / deviation, -MAX_STANDARD_END, MAX_STANDARD_END)
    standard_upper = jnp.clip((upper - centre) / deviation, -MAX_STANDARD_END, MAX_STANDARD_END)
    # 2. Solve for the quantile as if the interval met the centre.
    clipped_lower = jnp.minimum(standard_lower, TAIL_START)
    quantile = centre + deviation * _standard_quantile(
        uniform, clipped_lower, jnp.maximum(standard_upper, -TAIL_START)
    )
    # 3. Replace it where the interval lies in the upper or in the lower tail.
    interval_width = jnp.minimum((upper - lower) / deviation, MAX_STANDARD_END)
    upper_tail = lower + deviation * _distance_from_end(uniform, standard_lower, interval_width)
    lower_tail = upper - deviation * _distance_from_end(
        1 - uniform, -standard_upper, interval_width
    )
    quantile = jnp.where(
        standard_lower > TAIL_START,
        upper_tail,
        jnp.where(standard_upper < -TAIL_START, lower_tail, quantile),
    )
    return jnp.clip(quantile, lower, upper)


def _standard_quantile(uniform: Array, lower: Array, upper: Array) -> Array:
    """Return the quantile of N(0, 1) between lower and upper."""
    # 1. Form the logarithms of both tails, log Φ(z) and log Φ(−z), without cancellation.
    log_u = jnp.log(uniform)
    log_one_minus_u = jnp.log1p(-uniform)
    left_tail = jnp.logaddexp(log_one_minus_u + log_ndtr(lower), log_u + log_ndtr(upper))
    right_tail = jnp.logaddexp(log_one_minus_u + log_ndtr(-lower), log_u + log_ndtr(-upper))
    # 2. Solve for −|z| from the smaller tail, which is at most ½.
    smaller_tail = jnp.minimum(jnp.minimum(left_tail, right_tail), -math.log(2))

    def newton_step(_: int, z: Array) -> Array:
        log_probability = log_ndtr(z)
        log_slope = -(z**2) / 2 - math.log(2 * math.pi) / 2 - log_probability
        return z + (smaller_tail - log_probability) * jnp.exp(-log_slope)

    z = lax.fori_loop(0, NEWTON_STEPS, newton_step, -jnp.sqrt(-2 * smaller_tail))
    # 3. Restore the sign.
    return jnp.where(left_tail <= right_tail, z, -z)


def _distance_from_end(uniform: Array, lower: Array, interval_width: Array) -> Array:
    """Return z − lower of N(0, 1) on [lower, lower + width], for an end far above 0."""
    lower = jnp.maximum(lower, 1)
    exponent = interval_width * (lower + interval_width / 2)
    s = jnp.minimum(-jnp.log1p(uniform * jnp.expm1(-exponent)), exponent)
    # The root of (z² − lower²)/2 = s, without cancellation.
    return 2 * s / (lower * (1 + jnp.sqrt(1 + 2 * (s / lower) / lower)))
