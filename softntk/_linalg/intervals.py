"""Estimates with an interval of 95 %: normal, score and Wilson intervals of metrics."""

import math

import jax.numpy as jnp
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


def normal(value: Array, variance: Array, lower_bound: float = -math.inf) -> Estimate:
    """Return the normal interval, cut at the lower bound of possible values."""
    half_width = NORMAL_QUANTILE * safe_sqrt(variance)
    lower_end = jnp.maximum(value - half_width, lower_bound)
    return Estimate(value=value, lower=lower_end, upper=value + half_width)


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


def wilson(fraction: Array, n: int) -> Estimate:
    """Return a fraction of n independent draws, with Wilson's interval.

    The interval is not empty at 0 and 1, and lies between them.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    # The roots p of (fraction − p)² = z² p (1 − p)/n.
    z = NORMAL_QUANTILE
    shrinkage = 1 / (1 + z**2 / n)
    centre = shrinkage * (fraction + z**2 / (2 * n))
    half_width = shrinkage * z * jnp.sqrt(fraction * (1 - fraction) / n + (z / (2 * n)) ** 2)
    return Estimate(
        value=fraction,
        lower=jnp.clip(centre - half_width, 0, fraction),
        upper=jnp.clip(centre + half_width, fraction, 1),
    )
