r"""Damped steps: a trust region or Levenberg and Marquardt's μ, adapted until the loss falls.

    trust region            min gᵀs + ½ sᵀHs   subject to   ‖s‖_M ≤ Δ,
    Levenberg–Marquardt     (H + μM) s = −g.

Both are solved exactly in the coordinates of :class:`~softntk.solvers._newton.model.DiagonalModel`,
negative curvature and the hard case included, so that another Δ or μ costs O(dk) and one evaluation
of the loss. They are tried where Newton's step is not accepted (:func:`newton_or_damped_step`).

| symbol | meaning | shape |
|---|---|---|
| λ, c | curvatures and gradient of the model, ``curvatures``, ``gradient`` | [k], [k] |
| y | coordinates of the step; ‖y‖ is its length in the metric | [k] |
| Δ, μ | ``radius``, ``mu`` | [], [] |

Source: Moré and Sorensen (1983), SIAM J. Sci. Stat. Comput. 4, 553–572; Conn, Gould and Toint
(2000), Trust-Region Methods, chapter 7; Nielsen (1999), IMM-REP-1999-05 (how μ changes).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._linalg.norms import scaled_norm
from softntk.solvers._diagnostics import Step
from softntk.solvers._newton.model import (
    DiagonalModel,
    LossAlongStep,
    Scalar,
    StepResult,
    decrease_ratio,
    postponed_step,
    step_result,
)

Coordinates = Float[Array, " k"]
Count = Int[Array, ""]

# Ratio of actual to predicted decrease above which Newton's step is taken and a radius is kept.
NEWTON_DECREASE_RATIO = 0.25
# Ratio above which any other step is taken.
MIN_DECREASE_RATIO = 0.01
# Ratio above which a radius grows, if the step was longer than this fraction of the radius.
GROWTH_DECREASE_RATIO = 0.75
BOUNDARY_FRACTION = 0.9
# Trials of one step, each with one evaluation of the loss.
MAX_LOSS_EVALUATIONS = 30
# Halvings of the interval that holds the multiplier: more than the bits of a float64.
MULTIPLIER_BISECTIONS = 100
# Factors on the radius after a good and after a poor step.
RADIUS_GROWTH = 3.0
RADIUS_SHRINKAGE = 0.25
# A μ below it shows that the model has predicted well. In units of the metric.
INITIAL_MU = 1e-3
# Longest first step, as a multiple of the length of the residual.
MAX_RESIDUAL_MULTIPLE = 1.0


class Damping(NamedTuple):
    """One kind of damping: how Δ or μ is chosen, and the step that it gives.

    Attributes:
        kind: the :class:`softntk.solvers.Step` that it makes.
        start: (model, damping, value of the loss) → the damping of the first trial.
        solve: (model, damping, value of the loss) → y.
        adapt: (damping, ratio of decreases, ‖y‖, number of trials before) → the next damping.
        after_newton: (damping, predicted decrease of Newton's step) → the next damping, after an
            undamped step was taken.
    """

    kind: Step
    start: Callable[[DiagonalModel, Scalar, Scalar], Scalar]
    solve: Callable[[DiagonalModel, Scalar, Scalar], Coordinates]
    adapt: Callable[[Scalar, Scalar, Scalar, Count], Scalar]
    after_newton: Callable[[Scalar, Scalar], Scalar]


class NewtonCandidate(NamedTuple):
    """The undamped minimiser of a model, which is taken if the loss falls as the model predicts.

    Attributes:
        step: s.
        slope: ⟨g, s⟩.
        predicted_decrease: decrease of the model by s.
        is_usable: whether the model is convex, so that s minimises it.
        smallest_curvature: the smallest eigenvalue of H in the metric; zero if not computed.
    """

    step: Float[Array, " d"]
    slope: Scalar
    predicted_decrease: Scalar
    is_usable: Bool[Array, ""]
    smallest_curvature: float | Scalar = 0.0


def newton_or_damped_step(
    candidate: NewtonCandidate,
    method: Damping,
    loss: LossAlongStep,
    damping: Scalar,
    damped_step: Callable[[], StepResult],
    *,
    postpones_damping: bool,
) -> StepResult:
    """Return Newton's step if the loss falls as its model predicts, else the damped step.

    With ``postpones_damping`` no damped step is computed; the kind is then POSTPONED.
    """
    # 1. Whether the loss falls as predicted; a candidate that is not usable is not evaluated.
    is_accepted = lax.cond(
        candidate.is_usable,
        lambda: (
            decrease_ratio(loss, candidate.step, candidate.slope, candidate.predicted_decrease)
            > NEWTON_DECREASE_RATIO
        ),
        lambda: jnp.asarray(False),
    )
    newton_evaluations = candidate.is_usable.astype(jnp.int32)

    # 2. One of the two steps.
    def take_newton_step() -> StepResult:
        return step_result(
            candidate.step,
            method.after_newton(damping, candidate.predicted_decrease),
            Step.NEWTON,
            False,
            candidate.smallest_curvature,
            newton_evaluations,
        )

    def take_damped_step() -> StepResult:
        if postpones_damping:
            return postponed_step(candidate.step, damping)
        result = damped_step()
        return result._replace(evaluations=result.evaluations + newton_evaluations)

    return lax.cond(is_accepted, take_newton_step, take_damped_step)


class _Trial(NamedTuple):
    """The last trial of :func:`search`.

    Attributes:
        count: number of trials so far.
        damping: Δ or μ for the next trial.
        step: the step that was tried.
        predicted_decrease: its decrease of the model.
        accepted: whether the loss fell enough.
    """

    count: Count
    damping: Scalar
    step: Float[Array, " d"]
    predicted_decrease: Scalar
    accepted: Bool[Array, ""]


def search(
    method: Damping, model: DiagonalModel, loss: LossAlongStep, damping: Scalar
) -> StepResult:
    """Return the first step, under stronger and stronger damping, that decreases the loss.

    If thirty trials find none, the step is zero and its kind REJECTED.
    """

    # 1. A trial: the step of this damping, judged by the model's prediction.
    def try_step(trial: _Trial) -> _Trial:
        y = method.solve(model, trial.damping, loss.value)
        step = model.step(y)
        predicted_decrease = model.decrease(y)
        slope = jnp.dot(model.gradient, y)
        ratio = decrease_ratio(loss, step, slope, predicted_decrease)
        next_damping = method.adapt(trial.damping, ratio, scaled_norm(y), trial.count)
        accepted = ratio > MIN_DECREASE_RATIO
        return _Trial(trial.count + 1, next_damping, step, predicted_decrease, accepted)

    def is_unfinished(trial: _Trial) -> Bool[Array, ""]:
        return (trial.count < MAX_LOSS_EVALUATIONS) & ~trial.accepted

    # 2. The first damping depends on the model, later ones on how the last trial went.
    first_damping = method.start(model, damping, loss.value)
    first_trial = _Trial(
        count=jnp.asarray(0, jnp.int32),
        damping=first_damping,
        step=jnp.zeros(model.basis.shape[0], first_damping.dtype),
        predicted_decrease=jnp.zeros_like(first_damping),
        accepted=jnp.asarray(False),
    )
    trial = lax.while_loop(is_unfinished, try_step, first_trial)

    # 3. The last trial, if it was accepted.
    kind = jnp.where(model.is_indefinite, Step.NEGATIVE_CURVATURE, method.kind)
    return step_result(
        jnp.where(trial.accepted, trial.step, 0),
        trial.damping,
        jnp.where(trial.accepted, kind, Step.REJECTED),
        model.is_indefinite,
        model.curvatures[0],
        trial.count,
        jnp.where(trial.accepted, trial.predicted_decrease, 0),
    )


def _solve_trust_region(model: DiagonalModel, radius: Scalar, value: Scalar) -> Coordinates:
    """Return the minimiser of cᵀy + ½ Σ λ y² in ‖y‖ ≤ radius."""
    # 1. The interior solution y = −c/λ, if the model is convex and it is short enough.
    curvatures = model.curvatures
    gradient = model.gradient
    eps = jnp.finfo(curvatures.dtype).eps
    min_multiplier = jnp.maximum(-curvatures[0], 0)

    def solution_at(multiplier: Scalar) -> Coordinates:
        shifted = curvatures + multiplier
        return -gradient / jnp.where(shifted == 0, jnp.inf, shifted)

    newton_coordinates = solution_at(jnp.zeros_like(min_multiplier))
    is_interior = (curvatures[0] > 0) & (scaled_norm(newton_coordinates) <= radius)

    # 2. Else the multiplier ν with ‖c/(λ + ν)‖ = radius, by bisection.
    def halve(_: Array | int, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        lower, upper = bracket
        middle = 0.5 * (lower + upper)
        too_long = scaled_norm(solution_at(middle)) > radius
        return jnp.where(too_long, middle, lower), jnp.where(too_long, upper, middle)

    # ‖c/(λ + ν)‖ ≤ ‖c‖/(ν − max(−λ₀, 0)), which is the radius at the upper end.
    bracket = (min_multiplier, min_multiplier + scaled_norm(gradient) / radius)
    multiplier = lax.fori_loop(0, MULTIPLIER_BISECTIONS, halve, bracket)[1]

    # 3. Hard case (Conn, Gould, Toint, section 7.3.1): the gradient is orthogonal to the lowest
    # eigenspace, so the secular equation has no root; complete the solution on the other
    # eigenvectors with one of the lowest until it reaches the boundary.
    lowest_eigenspace = curvatures - curvatures[0] <= 8 * eps * jnp.max(jnp.abs(curvatures))
    other_shifted = jnp.where(lowest_eigenspace, 1, curvatures + min_multiplier)
    other_coordinates = jnp.where(lowest_eigenspace, 0, -gradient / other_shifted)
    relative_length = scaled_norm(other_coordinates) / radius
    boundary_gap = 1 - relative_length**2
    lowest_gradient = scaled_norm(jnp.where(lowest_eigenspace, gradient, 0))
    is_orthogonal = lowest_gradient <= 8 * eps * scaled_norm(gradient)
    is_hard_case = (curvatures[0] <= 0) & (boundary_gap > 0) & is_orthogonal
    lowest_sign = jnp.where(gradient[0] > 0, -1, 1)
    lowest_length = lowest_sign * radius * jnp.sqrt(jnp.maximum(boundary_gap, 0))
    hard_solution = other_coordinates.at[0].add(lowest_length)

    boundary_solution = jnp.where(is_hard_case, hard_solution, solution_at(multiplier))
    return jnp.where(is_interior, newton_coordinates, boundary_solution)


def _first_radius(model: DiagonalModel, radius: Scalar, value: Scalar) -> Scalar:
    """Return the radius; before the first step, where it is zero, the length of M⁻¹g.

    At a stationary point it is the length of the residual, √(2L).
    """
    # In these coordinates M = I, and −M⁻¹g is −c.
    gradient_norm = scaled_norm(model.gradient)
    residual_norm = jnp.sqrt(2 * jnp.abs(value))
    root_eps = jnp.sqrt(jnp.finfo(value.dtype).eps)
    natural_radius = jnp.where(
        gradient_norm > root_eps * residual_norm, gradient_norm, residual_norm + gradient_norm
    )
    first_radius = jnp.where(natural_radius > 0, natural_radius, 1)
    return jnp.where(radius > 0, radius, first_radius)


def _next_radius(radius: Scalar, ratio: Scalar, step_length: Scalar, count: Count) -> Scalar:
    """Return a larger radius after a good step that it limited, a smaller one after a poor step."""
    limits_step = step_length > BOUNDARY_FRACTION * radius
    grows = (ratio > GROWTH_DECREASE_RATIO) & limits_step
    kept_or_grown = jnp.where(grows, RADIUS_GROWTH * radius, radius)
    shrunk = RADIUS_SHRINKAGE * jnp.where(step_length > 0, step_length, radius)
    return jnp.where(ratio < NEWTON_DECREASE_RATIO, shrunk, kept_or_grown)


def _radius_after_newton(radius: Scalar, predicted_decrease: Scalar) -> Scalar:
    """Return a radius that contains Newton's step, of length √(2 · predicted decrease)."""
    newton_length = jnp.sqrt(2 * jnp.maximum(predicted_decrease, 0))
    return jnp.where(radius > 0, jnp.maximum(radius, newton_length), radius)


def _solve_levenberg_marquardt(model: DiagonalModel, mu: Scalar, value: Scalar) -> Coordinates:
    """Return the solution of (λ + μ) y = −c, with μ large enough to make the model convex.

    Differs from the textbook: a step has a part along the most negative curvature even where the
    gradient has none. That part is at most as long as the residual. At a stationary point, where no
    other direction decreases the loss, it is a fraction of that length which shrinks as μ grows.
    """
    # 1. Shift the spectrum above zero, by a little more than −λ₀.
    convex_shift = jnp.maximum(-model.curvatures[0], 0)
    root_eps = jnp.sqrt(jnp.finfo(value.dtype).eps)
    convex_mu = jnp.where(convex_shift > 0, convex_shift * (1 + root_eps) + mu, mu)
    shifted = model.curvatures + convex_mu

    # 2. Raise the gradient along the lowest eigenvector, so that the step has a part there.
    residual_norm = jnp.sqrt(2 * jnp.abs(value))
    is_stationary = scaled_norm(model.gradient) <= root_eps * residual_norm
    fraction = jnp.where(convex_shift > 0, convex_shift / (convex_shift + mu), 0)
    stationary_gradient = (convex_shift * root_eps + mu) * fraction
    min_gradient = (
        jnp.where(is_stationary, stationary_gradient, convex_shift * root_eps) * residual_norm
    )
    lowest_gradient = jnp.abs(model.gradient[0])
    raised_gradient = jnp.maximum(lowest_gradient, min_gradient)
    lowest_sign = jnp.where(model.gradient[0] > 0, 1, -1)
    gradient = model.gradient.at[0].set(
        lowest_sign * jnp.where(model.is_indefinite, raised_gradient, lowest_gradient)
    )

    # 3. Solve; zero where the shifted curvature is zero.
    return jnp.where(shifted > 0, -gradient / jnp.where(shifted > 0, shifted, 1), 0)


def _first_mu(model: DiagonalModel, mu: Scalar, value: Scalar) -> Scalar:
    """Return a μ whose step is no longer than the residual: beyond it no model is reliable.

    In the Gauss–Newton metric ‖y‖ is the change of the predictions, and √(2L) the change that is
    needed.
    """
    limits = jnp.finfo(mu.dtype)
    residual_norm = scaled_norm(model.gradient) + jnp.sqrt(2 * jnp.abs(value))
    # A model that predicted well, so that μ was lowered, may go further.
    reliability = jnp.maximum(1, INITIAL_MU / jnp.maximum(mu, limits.tiny))
    max_length = MAX_RESIDUAL_MULTIPLE * residual_norm * reliability

    def is_too_long(mu: Scalar) -> Bool[Array, ""]:
        step_length = scaled_norm(_solve_levenberg_marquardt(model, mu, value))
        return (step_length > max_length) & (mu < 1 / limits.eps)

    return lax.while_loop(is_too_long, lambda mu: 4 * mu, jnp.maximum(mu, jnp.sqrt(limits.eps)))


def _next_mu(mu: Scalar, ratio: Scalar, step_length: Scalar, count: Count) -> Scalar:
    """Return Nielsen's μ: smaller after a good prediction, 2^(count + 1) μ after a rejection."""
    # Nielsen's cubic: a third for ratio 1, unchanged for ratio ½, up to doubled for ratio 0.
    lowered = mu * jnp.maximum(1 / 3, 1 - (2 * jnp.clip(ratio, 0, 1) - 1) ** 3)
    return jnp.where(ratio > MIN_DECREASE_RATIO, lowered, jnp.ldexp(mu, count + 1))


def _mu_after_newton(mu: Scalar, predicted_decrease: Scalar) -> Scalar:
    """Return a tenth of μ, because an undamped step was good."""
    return mu / 10


DAMPINGS = {
    "trust_region": Damping(
        kind=Step.TRUST_REGION,
        start=_first_radius,
        solve=_solve_trust_region,
        adapt=_next_radius,
        after_newton=_radius_after_newton,
    ),
    "levenberg_marquardt": Damping(
        kind=Step.LEVENBERG_MARQUARDT,
        start=_first_mu,
        solve=_solve_levenberg_marquardt,
        adapt=_next_mu,
        after_newton=_mu_after_newton,
    ),
}
"""The kinds of damping by name; a new one is one more entry."""
