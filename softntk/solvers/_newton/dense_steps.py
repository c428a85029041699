r"""Steps on a curvature that is a matrix, [d, d]: Newton's, or a damped one by its spectrum.

Damped steps are measured in a metric M, the Gauss–Newton matrix or the diagonal of |H|. The first
measures a step by how much it changes the predictions, so that neither units nor the condition of
the data matter: on rows of heavy-tailed scale it takes half as many steps as the diagonal. It costs
a second Gram product and the eigenvectors of R⁻ᵀHR⁻¹, M = RᵀR, but only where Newton's step is
rejected.

The Gauss–Newton matrix may vanish in a direction where H does not (if the loss depends on the
direction of x only, Mx = 0 and Hx = −g), and steps are then very short. So where a step promises
little, one in the diagonal metric is tried as well, and the better one is taken.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from softntk._core.trees import select
from softntk._core.typing import Matrix, Vector
from softntk._linalg.products import product
from softntk._linalg.scaled_cholesky import factorise
from softntk.solvers._diagnostics import Step
from softntk.solvers._newton.globalisation import (
    Damping,
    NewtonCandidate,
    newton_or_damped_step,
    search,
)
from softntk.solvers._newton.model import (
    DiagonalModel,
    LossAlongStep,
    Scalar,
    StepResult,
    step_result,
)

# Roundings that are added to the metric, so that steps stay finite where it is singular.
METRIC_ROUNDINGS = 64
# Predicted decrease relative to the loss, below which a step in the diagonal metric is tried too.
MIN_PREDICTED_DECREASE = 0.01


def jacobi_metric(H: Matrix) -> Matrix:
    """Return the metric of Jacobi, diag |H_ii|."""
    # Zeros become tiny, so that the metric is definite.
    sizes = jnp.abs(jnp.diagonal(H))
    return jnp.diag(jnp.maximum(sizes, jnp.finfo(H.dtype).eps * jnp.max(sizes)))


def diagonalise(H: Matrix, M: Matrix, g: Vector, rounding: Vector | None = None) -> DiagonalModel:
    """Return the model in the eigenvectors of R⁻ᵀHR⁻¹, M = RᵀR.

    Args:
        H: the curvature.
        M: the metric.
        g: the gradient.
        rounding: r, if H_jk was computed with an error of at most r_j r_k; None if the error is a
            few ε |H_jk|.
    """
    # 1. Eigenvectors V of R⁻ᵀHR⁻¹; the basis is T = R⁻¹V.
    factor = factorise(M, METRIC_ROUNDINGS)
    relative_curvature = factor.solve_root_transposed(factor.solve_root_transposed(H).T)
    curvatures, vectors = jnp.linalg.eigh(0.5 * (relative_curvature + relative_curvature.T))
    basis = factor.solve_root(vectors)

    # 2. The smallest curvature vᵀHv counts as negative if rounding of its terms cannot explain it.
    v = basis[:, 0]
    smallest = jnp.dot(v, product(H, v))
    sum_of_terms = jnp.dot(jnp.abs(v), product(jnp.abs(H), jnp.abs(v)))
    error_bound = 4 * len(g) * jnp.finfo(H.dtype).eps * sum_of_terms
    if rounding is not None:
        error_bound = error_bound + jnp.dot(jnp.abs(v), rounding) ** 2
    return DiagonalModel(curvatures, basis, product(basis.T, g), smallest < -error_bound)


def newton_step(H: Matrix, g: Vector) -> tuple[Vector, Bool[Array, ""]]:
    """Return −H⁻¹g, refined once, and whether H is positive definite; a zero step if it is not."""
    # One refinement: the residual g + H s is computed with the unfactorised H.
    factor = factorise(H)
    step = -factor.inverse(g)
    step = step - factor.inverse(g + product(H, step))
    usable = factor.definite & jnp.isfinite(step).all()
    return jnp.where(usable, step, 0), usable


def damped_step(
    H: Matrix,
    metric: Callable[[], Matrix] | None,
    g: Vector,
    method: Damping,
    loss: LossAlongStep,
    damping: Scalar,
    rounding: Callable[[], Vector] | None = None,
    *,
    postpones_damping: bool = False,
) -> StepResult:
    """Return Newton's step if the loss falls as its model predicts, else a damped step.

    Args:
        H: the curvature.
        metric: computes the metric of the damped step, which is tried before the diagonal one;
            None for the diagonal one alone.
        g: the gradient.
        method: the kind of damping.
        loss: the loss along steps.
        damping: the radius or μ.
        rounding: computes r of :func:`diagonalise`, or None.
        postpones_damping: leave the damped step out and report the kind POSTPONED in its place.
    """
    # 1. Newton's step; its model predicts the decrease −½⟨g, s⟩.
    step, is_definite = newton_step(H, g)
    slope = jnp.dot(g, step)
    candidate = NewtonCandidate(step, slope, -0.5 * slope, is_definite)

    # 2. The damped step that replaces it where it is not accepted.
    def search_in(M: Matrix, damping: Scalar) -> StepResult:
        model = diagonalise(H, M, g, None if rounding is None else rounding())
        return search(method, model, loss, damping)

    def search_in_metrics() -> StepResult:
        if metric is None:
            return search_in(jacobi_metric(H), damping)
        return _search_in_both_metrics(H, metric, g, loss, damping, search_in)

    return newton_or_damped_step(
        candidate, method, loss, damping, search_in_metrics, postpones_damping=postpones_damping
    )


def _search_in_both_metrics(
    H: Matrix,
    metric: Callable[[], Matrix],
    g: Vector,
    loss: LossAlongStep,
    damping: Scalar,
    search_in: Callable[[Matrix, Scalar], StepResult],
) -> StepResult:
    """Return a step in the metric or, where that predicts little, the better of two metrics.

    The search is in a loop, and not called twice, so that the program contains it once.
    """

    # 1. The step with the smaller loss.
    def better_of(first: StepResult, second: StepResult) -> StepResult:
        second_wins = loss.at(second.step) < loss.at(first.step)
        # Each metric has its own damping: the radius or μ of the first is kept for the next step.
        chosen = select(second_wins, second._replace(damping=damping), first)
        return chosen._replace(evaluations=first.evaluations + second.evaluations + 2)

    # 2. Once in the metric and, if that predicts little, once in the diagonal one.
    def is_unfinished(carry: tuple[Int[Array, ""], StepResult]) -> Bool[Array, ""]:
        count, best = carry
        predicts_little = best.predicted_decrease < MIN_PREDICTED_DECREASE * jnp.abs(loss.value)
        return (count == 0) | ((count == 1) & predicts_little)

    def search_next(
        carry: tuple[Int[Array, ""], StepResult],
    ) -> tuple[Int[Array, ""], StepResult]:
        count, best = carry
        is_first = count == 0
        M = lax.cond(is_first, metric, lambda: jacobi_metric(H))
        result = search_in(M, jnp.where(is_first, damping, 0))
        return count + 1, lax.cond(is_first, lambda: result, lambda: better_of(best, result))

    no_step = step_result(jnp.zeros_like(g), damping, Step.NONE)
    start = (jnp.zeros((), jnp.int32), no_step)
    return lax.while_loop(is_unfinished, search_next, start)[1]


def undamped_step(H: Matrix, metric: Callable[[], Matrix] | None, g: Vector) -> StepResult:
    """Return Newton's step where H is positive definite, else a descent direction.

    That is −M⁻¹g with a metric, and −|H|⁻¹g without one.
    """
    step, is_definite = newton_step(H, g)

    def modified_step() -> StepResult:
        # 1. −|H|⁻¹g, the small eigenvalues raised to √ε times the largest.
        d = len(g)
        eps = jnp.finfo(H.dtype).eps
        eigenvalues, vectors = jnp.linalg.eigh(H)
        largest = jnp.max(jnp.abs(eigenvalues))
        is_indefinite = eigenvalues[0] < -4 * d * eps * largest
        divisors = jnp.maximum(jnp.abs(eigenvalues), jnp.sqrt(eps) * largest)
        absolute_step = -product(vectors, product(vectors.T, g) / divisors)
        if metric is None:
            return step_result(absolute_step, 0.0, Step.ABSOLUTE, is_indefinite, eigenvalues[0])

        # 2. −M⁻¹g, if M is positive definite.
        factor = factorise(metric(), METRIC_ROUNDINGS)
        return step_result(
            jnp.where(factor.definite, -factor.inverse(g), absolute_step),
            0.0,
            jnp.where(factor.definite, Step.GAUSS_NEWTON, Step.ABSOLUTE),
            is_indefinite,
            eigenvalues[0],
        )

    # A step that is not finite (for example where H = 0) is replaced by steepest descent.
    result = lax.cond(is_definite, lambda: step_result(step, 0.0, Step.NEWTON), modified_step)
    return result._replace(step=jnp.where(jnp.isfinite(result.step).all(), result.step, -g))
