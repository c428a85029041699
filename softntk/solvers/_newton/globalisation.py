r"""Damped steps: a model with its spectrum, a trust region or Levenberg and Marquardt's μ, and the
loss as the judge.

    trust region            min gᵀs + ½ sᵀHs   subject to   ‖s‖_M ≤ Δ,
    Levenberg–Marquardt     (H + μM) s = −g.

Both are solved exactly in the coordinates of :class:`~softntk.solvers._newton.model.Spectrum`,
negative curvature and the hard case included, so that another Δ or μ costs O(dk) and one evaluation
of the loss.

Source: Moré and Sorensen (1983), SIAM J. Sci. Stat. Comput. 4, 553–572; Conn, Gould and Toint
(2000), Trust-Region Methods, chapter 7; Nielsen (1999), IMM-REP-1999-05 (how μ changes).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softntk._linalg.norms import scaled_norm
from softntk.solvers._diagnostics import Step
from softntk.solvers._newton.model import (
    Outcome,
    Spectrum,
    Trial,
    judge,
    outcome,
)

GOOD = 0.25  # of the predicted decrease: Newton's step is taken, a region is kept
_ENOUGH = 0.01  # of the predicted decrease: any other step is taken
_TRIALS = 30  # evaluations of the loss a step, at most
_HALVINGS = 100  # of the interval that holds the multiplier
_GROWTH, _SHRINKAGE = 3.0, 0.25
_FIRST_MU = 1e-3  # relative to the metric
_REACH = 1.0  # residuals that a first step may move the predictions by, as the linearisation says


class Damping(NamedTuple):
    """One kind: where it starts, the y for a damping, and the damping after a trial; the third
    argument is the loss.
    """

    kind: Step
    start: Callable[[Spectrum, Array, Array], Array]
    solve: Callable[[Spectrum, Array, Array], Array]
    adapt: Callable[[Array, Array, Array, Array], Array]
    """(damping, ratio, ‖y‖, how many were rejected before) → damping."""
    after_newton: Callable[[Array, Array], Array]
    """(damping, the predicted decrease of Newton's step, which was good) → damping."""


def search(damping: Damping, model: Spectrum, trial: Trial, level: Float[Array, ""]) -> Outcome:
    """The first step, with stronger and stronger damping, that makes the loss fall; none if thirty
    do not.
    """

    def attempt(carry: tuple) -> tuple:
        count, level, *_ = carry
        y = damping.solve(model, level, trial.value)
        step, predicted = model.step(y), model.decrease(y)
        ratio = judge(trial, step, jnp.dot(model.slope, y), predicted)
        level = damping.adapt(level, ratio, scaled_norm(y), count)
        return count + 1, level, step, predicted, ratio > _ENOUGH

    start = damping.start(model, level, trial.value)
    begun = (
        jnp.asarray(0, jnp.int32),
        start,
        jnp.zeros(model.back.shape[0], start.dtype),
        jnp.zeros_like(start),
        jnp.asarray(False),
    )
    count, level, step, predicted, found = lax.while_loop(
        lambda c: (c[0] < _TRIALS) & ~c[-1], attempt, begun
    )
    kind = jnp.where(model.negative, Step.NEGATIVE_CURVATURE, damping.kind)
    kind = jnp.where(found, kind, Step.REJECTED)
    step, predicted = jnp.where(found, step, 0), jnp.where(found, predicted, 0)
    return outcome(step, level, kind, model.negative, model.values[0], count, predicted)


def _region(
    model: Spectrum, radius: Float[Array, ""], value: Float[Array, ""]
) -> Float[Array, " k"]:
    """The y of the smallest slope·y + ½Σ values y² on ‖y‖ ≤ radius."""
    values, slope, eps = model.values, model.slope, jnp.finfo(model.values.dtype).eps
    least = jnp.maximum(-values[0], 0)
    at = lambda multiplier: (
        -slope / jnp.where(values + multiplier == 0, jnp.inf, values + multiplier)
    )
    inside = (values[0] > 0) & (scaled_norm(at(jnp.zeros_like(least))) <= radius)

    def halve(_: Any, bracket: tuple) -> tuple:
        low, high = bracket
        middle = 0.5 * (low + high)
        long = scaled_norm(at(middle)) > radius
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    bracket = (least, least + scaled_norm(slope) / radius)
    multiplier = lax.fori_loop(0, _HALVINGS, halve, bracket)[1]
    # The hard case: no slope along the smallest curvature, which then has to be gone along to the
    # boundary.
    flat = values - values[0] <= 8 * eps * jnp.max(jnp.abs(values))
    rest = jnp.where(flat, 0, -slope / jnp.where(flat, 1, values + least))
    along_rest = scaled_norm(rest) / radius
    room = 1 - along_rest**2
    level = scaled_norm(jnp.where(flat, slope, 0)) <= 8 * eps * scaled_norm(slope)
    hard = (values[0] <= 0) & (room > 0) & level
    along = rest.at[0].add(jnp.where(slope[0] > 0, -1, 1) * radius * jnp.sqrt(jnp.maximum(room, 0)))
    return jnp.where(inside, at(jnp.zeros_like(least)), jnp.where(hard, along, at(multiplier)))


def _first_radius(model: Spectrum, radius: Array, value: Array) -> Array:
    """Before anything is known: the length of the Gauss–Newton step; at a stationary point, that of
    the residual.
    """
    length = scaled_norm(model.slope)
    residual = jnp.sqrt(2 * jnp.abs(value))
    small = jnp.sqrt(jnp.finfo(value.dtype).eps)
    natural = jnp.where(length > small * residual, length, residual + length)
    return jnp.where(radius > 0, radius, jnp.where(natural > 0, natural, 1))


def _next_radius(radius: Array, ratio: Array, size: Array, count: Array) -> Array:
    grown = jnp.where((ratio > 0.75) & (size > 0.9 * radius), _GROWTH * radius, radius)
    return jnp.where(ratio < GOOD, _SHRINKAGE * jnp.where(size > 0, size, radius), grown)


def _damped(model: Spectrum, mu: Float[Array, ""], value: Float[Array, ""]) -> Float[Array, " k"]:
    """The y of (values + μ) y = −slope, with μ as large at least as makes the model convex.

    The smallest curvature, if negative, is gone along even where there is no slope: no further than
    the residual is long. At a stationary point, where nothing else is to be won, by a part of it
    that shrinks as μ grows.
    """
    least, small = jnp.maximum(-model.values[0], 0), jnp.sqrt(jnp.finfo(value.dtype).eps)
    shifted = model.values + jnp.where(least > 0, least * (1 + small) + mu, mu)
    residual = jnp.sqrt(2 * jnp.abs(value))
    stationary = scaled_norm(model.slope) <= small * residual
    part = jnp.where(least > 0, least / (least + mu), 0)
    kick = jnp.where(stationary, (least * small + mu) * part, least * small) * residual
    enough = jnp.maximum(jnp.abs(model.slope[0]), kick)
    slope = model.slope.at[0].set(
        jnp.where(model.slope[0] > 0, 1, -1)
        * jnp.where(model.negative, enough, jnp.abs(model.slope[0]))
    )
    return jnp.where(shifted > 0, -slope / jnp.where(shifted > 0, shifted, 1), 0)


def _first_mu(model: Spectrum, mu: Float[Array, ""], value: Float[Array, ""]) -> Float[Array, ""]:
    """Return a μ whose step is no longer than the residual, beyond which no model is to be trusted.

    In the metric of Gauss–Newton ‖y‖ is what the predictions move, and √(2L) what they have to.
    """
    residual = scaled_norm(model.slope) + jnp.sqrt(2 * jnp.abs(value))
    # A model that has proved right, so that μ was lowered, may go further.
    reach = (
        _REACH * residual * jnp.maximum(1, _FIRST_MU / jnp.maximum(mu, jnp.finfo(mu.dtype).tiny))
    )

    def is_long(mu: Array) -> Array:
        return (scaled_norm(_damped(model, mu, value)) > reach) & (mu < 1 / jnp.finfo(mu.dtype).eps)

    return lax.while_loop(
        is_long, lambda mu: 4 * mu, jnp.maximum(mu, jnp.sqrt(jnp.finfo(mu.dtype).eps))
    )


def _next_mu(mu: Array, ratio: Array, size: Array, count: Array) -> Array:
    lowered = mu * jnp.maximum(1 / 3, 1 - (2 * jnp.clip(ratio, 0, 1) - 1) ** 3)
    return jnp.where(ratio > _ENOUGH, lowered, jnp.ldexp(mu, count + 1))


DAMPINGS = {
    "trust_region": Damping(
        Step.TRUST_REGION,
        _first_radius,
        _region,
        _next_radius,
        lambda radius, predicted: jnp.where(
            radius > 0, jnp.maximum(radius, jnp.sqrt(2 * jnp.maximum(predicted, 0))), radius
        ),
    ),
    "levenberg_marquardt": Damping(
        Step.LEVENBERG_MARQUARDT,
        _first_mu,
        _damped,
        _next_mu,
        lambda mu, predicted: mu / 10,
    ),
}
"""By name. Another is one entry more."""
