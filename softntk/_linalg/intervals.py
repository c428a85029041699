"""Estimates with an interval of 95 %: normal, score, Wilson and Chernoff intervals."""

import math

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._linalg.angles import safe_sqrt

NORMAL_QUANTILE = 1.959964
"""z, the 97.5 % quantile of N(0, 1)."""


@record
class Estimate:
    """A number that was estimated, with an interval of 95 %; ``float`` gives the number.

    Attributes:
        value: the estimate.
        lower: the lower end of the interval.
        upper: the upper end.
    """

    value: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    def __float__(self) -> float:
        return float(self.value)


def normal(
    value: Array, variance: Array, lower_bound: float = -math.inf, upper_bound: float = math.inf
) -> Estimate:
    """Return the normal interval, cut at the bounds of possible values.

    An infinite value is its own interval.
    """
    half_width = jnp.where(jnp.isinf(value), 0, NORMAL_QUANTILE * safe_sqrt(variance))
    lower_end = jnp.maximum(value - half_width, lower_bound)
    return Estimate(
        value=value, lower=lower_end, upper=jnp.minimum(value + half_width, upper_bound)
    )


def mean_interval(
    values: Float[Array, " n"], lower_bound: float = -math.inf, upper_bound: float = math.inf
) -> Estimate:
    """Return the mean of independent values, with its normal interval.

    One value has no spread: its interval reaches to the bounds. Infinite values have an infinite
    mean, which is then the whole interval.
    """
    n = len(values)
    if n == 1:
        variance = jnp.asarray(math.inf, values.dtype)
    else:
        variance = jnp.var(jnp.where(jnp.isinf(values), 0, values), ddof=1) / n
    return normal(jnp.mean(values), variance, lower_bound, upper_bound)


def score_interval(
    value: Array, slope: Array, variance: Array, upper_bound: Array | float = math.inf
) -> Estimate:
    """Return all μ ≤ upper_bound with |value − μ| ≤ z √(slope · μ + variance).

    Where value is negative it counts as 0 under the root.
    """
    # The ends are the roots of a quadratic, value + shift ± √(shift² + excess).
    shift = NORMAL_QUANTILE**2 * slope / 2
    excess = NORMAL_QUANTILE**2 * (slope * jnp.maximum(value, 0) + variance)
    root = safe_sqrt(shift**2 + excess)
    has_width = root > 0
    # root − shift, as excess/(root + shift): nothing cancels.
    lower_distance = jnp.where(has_width, excess / jnp.where(has_width, shift + root, 1), 0)
    return Estimate(
        value=value,
        lower=value - lower_distance,
        upper=jnp.clip(value + shift + root, value, jnp.maximum(upper_bound, value)),
    )


def wilson(fraction: Array, n: int | Float[Array, "..."]) -> Estimate:
    """Return a fraction of n independent draws, with Wilson's interval.

    The interval is not empty at 0 and 1, and lies between them. Without draws it is [0, 1].

    Args:
        fraction: the share of successes, of any shape.
        n: the number of draws, one or one for each fraction.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    # The roots p of (fraction − p)² = z² p (1 − p)/n.
    z = NORMAL_QUANTILE
    centre = (n * fraction + z**2 / 2) / (n + z**2)
    half_width = z * safe_sqrt(n * fraction * (1 - fraction) + z**2 / 4) / (n + z**2)
    return Estimate(
        value=fraction,
        lower=jnp.clip(centre - half_width, 0, fraction),
        upper=jnp.clip(centre + half_width, fraction, 1),
    )


def chernoff(fraction: Array, n: Float[Array, "..."], error: float) -> Estimate:
    """Return a fraction of n independent events, with an interval that is proven for every n.

    It holds all p with n KL(fraction ‖ p) ≤ log(2/error), and misses the mean of the probabilities
    of the events, which may differ, with a probability of at most ``error``. Without events it is
    [0, 1].

    Args:
        fraction: the share of the events that happened, of any shape.
        n: the number of events, one for each fraction.
        error: the probability that the interval may miss, in (0, 1).

    Source: Hoeffding (1963), J. Am. Stat. Assoc. 58, 13-30, Theorem 1.
    """
    # KL grows from the fraction to 0 and to 1: bisection between the fraction and each end.
    max_divergence = math.log(2 / error)

    def find_end(end: float) -> Array:
        def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            inner, outer = bracket
            middle = (inner + outer) / 2
            divergence = xlogy(fraction, fraction / middle) + xlogy(
                1 - fraction, (1 - fraction) / (1 - middle)
            )
            is_inside = n * divergence <= max_divergence
            return jnp.where(is_inside, middle, inner), jnp.where(is_inside, outer, middle)

        bracket = (fraction, jnp.full_like(fraction, end))
        return lax.fori_loop(0, jnp.finfo(fraction.dtype).nmant + 2, halve, bracket)[1]

    return Estimate(value=fraction, lower=find_end(0.0), upper=find_end(1.0))
