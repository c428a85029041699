"""Quadratic models and the loss along a step, which all second-order steps share.

| symbol | meaning | shape |
|---|---|---|
| L, g, H | loss, gradient, curvature at the current point | [], [d], [d, d] |
| M | metric in which steps are measured, M = RᵀR | [d, d] |
| T | basis with TᵀMT = I and TᵀHT = diag(λ) | [d, k] |
| λ, c | curvatures, gradient Tᵀg in that basis | [k], [k] |
| s = T y | a step, and its coordinates | [d], [k] |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk._core.typing import Vector
from softntk._linalg.products import product
from softntk.solvers._diagnostics import Step

Scalar = Float[Array, ""]


class LossAlongStep(NamedTuple):
    """The loss L around the current point, as a function of the step.

    Attributes:
        value: L at the current point.
        at: s ↦ L after the step s; +inf for NaN.
        slope_at: s ↦ ⟨∇L, s⟩ after the step s.
    """

    value: Scalar
    at: Callable[[PyTree], Scalar]
    slope_at: Callable[[PyTree], Scalar]


class DiagonalModel(NamedTuple):
    """The model L + gᵀs + ½sᵀHs in coordinates s = T y where the metric is I and H is diagonal.

    Attributes:
        curvatures: λ, eigenvalues of H relative to the metric, ascending.
        basis: T.
        gradient: c = Tᵀg.
        is_indefinite: whether the smallest curvature is below zero by more than rounding.
    """

    curvatures: Float[Array, " k"]
    basis: Float[Array, "d k"]
    gradient: Float[Array, " k"]
    is_indefinite: Bool[Array, ""]

    def step(self, y: Float[Array, " k"]) -> Float[Array, " d"]:
        """Return the step T y."""
        return product(self.basis, y)

    def decrease(self, y: Float[Array, " k"]) -> Scalar:
        """Return the decrease of the model by the step T y, −(cᵀy + ½ Σ λ y²)."""
        return -jnp.sum(y * (self.gradient + 0.5 * self.curvatures * y))


class StepResult(NamedTuple):
    """A step, with all that the state of the transform records of it.

    Attributes:
        step: s.
        damping: the trust-region radius or μ for the next step; zero without damping.
        kind: a :class:`softntk.solvers.Step`.
        negative_curvature: whether H had a negative eigenvalue, beyond rounding.
        smallest_curvature: the smallest eigenvalue of H in the metric; zero if not computed.
        evaluations: number of loss evaluations.
        predicted_decrease: decrease of the model by a damped step; zero for other steps.
    """

    step: Vector
    damping: Scalar
    kind: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    smallest_curvature: Scalar
    evaluations: Int[Array, ""]
    predicted_decrease: Scalar


def step_result(
    step: Vector,
    damping: float | Scalar,
    kind: int | Int[Array, ""],
    negative_curvature: bool | Bool[Array, ""] = False,
    smallest_curvature: float | Scalar = 0.0,
    evaluations: int | Int[Array, ""] = 0,
    predicted_decrease: float | Scalar = 0.0,
) -> StepResult:
    """Return a :class:`StepResult` of fixed dtypes, so that branches of ``lax.cond`` agree."""
    return StepResult(
        step=step,
        damping=jnp.asarray(damping, step.dtype),
        kind=jnp.asarray(kind, jnp.int32),
        negative_curvature=jnp.asarray(negative_curvature),
        smallest_curvature=jnp.asarray(smallest_curvature, step.dtype),
        evaluations=jnp.asarray(evaluations, jnp.int32),
        predicted_decrease=jnp.asarray(predicted_decrease, step.dtype),
    )


def postponed_step(g: Vector, damping: Scalar) -> StepResult:
    """Return no step, for a damped one that the program leaves out."""
    return step_result(jnp.zeros_like(g), damping, Step.POSTPONED)


def decrease_ratio(
    loss: LossAlongStep, step: PyTree, slope: Scalar, predicted_decrease: Scalar
) -> Scalar:
    """Return the actual over the predicted decrease of the loss, −1 where it is not finite.

    Args:
        loss: the loss around the current point.
        step: s.
        slope: ⟨∇L, s⟩ at the current point.
        predicted_decrease: decrease of the model by s.
    """
    loss_after = loss.at(step)

    # Differs from the textbook: where the predicted decrease is so small that the actual one is
    # lost in the rounding of the loss, the trapezium rule gives it from the slopes ⟨∇L, s⟩ at both
    # ends, −½(before + after), which is right to third order and loses no digits.
    is_small = predicted_decrease <= jnp.sqrt(jnp.finfo(predicted_decrease.dtype).eps) * jnp.abs(
        loss.value
    )
    actual_decrease = lax.cond(
        is_small & jnp.isfinite(loss_after),
        lambda: -0.5 * (slope + loss.slope_at(step)),
        lambda: loss.value - loss_after,
    )
    divisor = jnp.where(predicted_decrease > 0, predicted_decrease, 1)
    ratio = jnp.where(predicted_decrease > 0, actual_decrease / divisor, -1)
    # At the end of a run the model predicts no decrease: any step that does not increase is right.
    ratio = jnp.where((predicted_decrease == 0) & (actual_decrease >= 0), 1, ratio)
    return jnp.where(jnp.isfinite(ratio), ratio, -1)
