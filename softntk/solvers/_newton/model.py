"""What second-order steps have in common: the model in coordinates that suit it, how a trial is
judged, what came of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._linalg.products import product


class Trial(NamedTuple):
    """The loss around a point."""

    value: Float[Array, ""]
    """At the point."""
    after: Callable[[Float[Array, " d"]], Float[Array, ""]]
    """After a step; +inf for NaN."""
    slope: Callable[[Float[Array, " d"]], Float[Array, ""]]
    """⟨∇L, step⟩ after a step."""


class Spectrum(NamedTuple):
    """The model L + gᵀs + ½sᵀHs in coordinates y, s = T y, in which the metric is the identity and
    H diagonal.
    """

    values: Float[Array, " k"]
    """Of H relative to the metric, ascending."""
    back: Float[Array, "d k"]
    """T."""
    slope: Float[Array, " k"]
    """Tᵀg."""
    negative: Bool[Array, ""]
    """Whether the smallest value is below zero by more than rounding."""

    def step(self, y: Float[Array, " k"]) -> Float[Array, " d"]:
        """T y."""
        return product(self.back, y)

    def decrease(self, y: Float[Array, " k"]) -> Float[Array, ""]:
        """By how much the model falls."""
        return -jnp.sum(y * (self.slope + 0.5 * self.values * y))


class Outcome(NamedTuple):
    """A step and what is to be remembered of it."""

    step: Float[Array, " d"]
    damping: Float[Array, ""]
    """The radius, or μ."""
    kind: Array
    negative: Array
    """Whether negative curvature was seen, beyond rounding."""
    smallest: Array
    """The smallest curvature seen, relative to the metric; zero where it was not looked for."""
    evaluations: Array
    """Of the loss."""
    predicted: Array
    """The decrease of the model, of a damped step; zero for others."""


def outcome(
    step: Float[Array, " d"],
    damping: Any,
    kind: Any,
    negative: Any = False,
    smallest: Any = 0.0,
    evaluations: Any = 0,
    predicted: Any = 0.0,
) -> Outcome:
    """An outcome of fixed dtypes, so that branches agree."""
    real = lambda value: jnp.asarray(value, step.dtype)
    whole = lambda value: jnp.asarray(value, jnp.int32)
    rest = jnp.asarray(negative), real(smallest), whole(evaluations), real(predicted)
    return Outcome(step, real(damping), whole(kind), *rest)


def judge(
    trial: Trial, step: Float[Array, " d"], slope: Float[Array, ""], predicted: Float[Array, ""]
) -> Float[Array, ""]:
    """Actual over predicted decrease of the loss.

    Where the predicted one is so small that the actual one drowns in the rounding of the loss, the
    actual one is taken from the slopes ⟨∇L, s⟩ at both ends, −½(before + after), which is right to
    third order and loses no digits.
    """
    after = trial.after(step)
    close = predicted <= jnp.sqrt(jnp.finfo(predicted.dtype).eps) * jnp.abs(trial.value)
    by_slopes = lambda: -0.5 * (slope + trial.slope(step))
    actual = lax.cond(close & jnp.isfinite(after), by_slopes, lambda: trial.value - after)
    ratio = jnp.where(predicted > 0, actual / jnp.where(predicted > 0, predicted, 1), -1)
    # the end of the descent: nothing was promised
    ratio = jnp.where((predicted == 0) & (actual >= 0), 1, ratio)
    return jnp.where(jnp.isfinite(ratio), ratio, -1)
