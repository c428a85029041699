"""Numbers with an interval of 95 %."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from softntk._core.records import record

_Z = 1.959964  # the normal quantile


@record
class Estimate:
    """A number that was estimated, with an interval of 95 %; ``float`` gives the number.

    Attributes:
        value: the estimate.
        lower: where the interval begins.
        upper: where it ends.
    """

    value: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]

    def __float__(self) -> float:
        return float(self.value)


def safe_sqrt(x: Array) -> Array:
    """Return the square root, 0 of what is negative, with derivative 0 there."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def normal(value: Array, variance: Array, least: float = -math.inf) -> Estimate:
    """Return the normal interval, cut at the least value that is possible."""
    half = _Z * safe_sqrt(variance)
    return Estimate(value=value, lower=jnp.maximum(value - half, least), upper=value + half)


def score_interval(
    value: Array, slope: Array, variance: Array, most: Array | float = math.inf
) -> Estimate:
    """Return all truths μ ≤ most with |value − μ| ≤ z √(slope · μ + variance).

    Where value is negative it counts as 0 under the root.
    """
    shift = _Z**2 * slope / 2
    excess = _Z**2 * (slope * jnp.maximum(value, 0) + variance)
    half = safe_sqrt(shift**2 + excess)
    wide = half > 0
    # half − shift without cancellation
    below = jnp.where(wide, excess / jnp.where(wide, shift + half, 1), 0)
    return Estimate(
        value=value,
        lower=value - below,
        upper=jnp.clip(value + shift + half, value, jnp.maximum(most, value)),
    )


def wilson(fraction: Array, n: int) -> Estimate:
    """Return a fraction of n independent draws, with Wilson's interval.

    The interval is not empty at 0 and 1, and lies between them.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    shrink = 1 / (1 + _Z**2 / n)
    centre = shrink * (fraction + _Z**2 / (2 * n))
    half = shrink * _Z * jnp.sqrt(fraction * (1 - fraction) / n + (_Z / (2 * n)) ** 2)
    return Estimate(
        value=fraction,
        lower=jnp.clip(centre - half, 0, fraction),
        upper=jnp.clip(centre + half, fraction, 1),
    )
