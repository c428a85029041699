r"""Steps on a curvature that is a matrix, [d, d]: Newton's by Cholesky, else by its spectrum.

The metric M is the Gauss–Newton matrix, or the diagonal of |H|. With the first, steps are measured
by how much they change the predictions, so that neither units nor the condition of the data matter:
on rows of heavy-tailed scale half as many steps are taken as with a diagonal. It costs a second
Gram product and the eigenvectors of C⁻¹HC⁻ᵀ, M = CCᵀ, and only where Newton's step is rejected.

Gauss–Newton may vanish in a direction where H does not (a loss of the direction of x only: Mx = 0,
Hx = −g), and steps are then very short: where a step promises little, one in the diagonal metric is
tried as well, and the better one taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Bool, Int

from softntk._linalg.products import product
from softntk._linalg.scaled_cholesky import Matrix, Vector, factorise
from softntk.solvers._diagnostics import Step
from softntk.solvers._newton.globalisation import NEWTON_DECREASE_RATIO, Damping, search
from softntk.solvers._newton.model import (
    DiagonalModel,
    LossAlongStep,
    Scalar,
    StepResult,
    decrease_ratio,
    postponed_step,
    step_result,
)

# Roundings that are added to the metric, so that steps stay finite where it is singular.
METRIC_ROUNDINGS = 64
# Relative decrease of the loss: a step that predicts less is compared with one in the diagonal
# metric.
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
        rounding: r, where |H_jk| was computed with an error of r_j r_k; None: of a few ε |H_jk|.
    """
    # 1. Eigenvectors V of R⁻ᵀHR⁻¹; the basis is T = R⁻¹V.
    factor = factorise(M, METRIC_ROUNDINGS)
    relative_curvature = factor.solve_root_transposed(factor.solve_root_transposed(H).T)
    curvatures, vectors = jnp.linalg.eigh(0.5 * (relative_curvature + relative_curvature.T))
    basis = factor.solve_root(vectors)

    # 2. The smallest curvature vᵀHv is negative if it is below the rounding of the sum's terms.
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
        metric: of the damped step, tried before the diagonal one; None: the diagonal one alone.
        g: the gradient.
        method: of the damping.
        loss: the loss along steps.
        damping: the radius or μ.
        rounding: r of :func:`diagonalise`, computed if needed.
        postpones_damping: leave the damped step out; its kind is POSTPONED.
    """
    # 1. Newton's step.
    step, is_definite = newton_step(H, g)
    slope = jnp.dot(g, step)
    predicted_decrease = -0.5 * slope
    is_accepted = lax.cond(
        is_definite,
        lambda: decrease_ratio(loss, step, slope, predicted_decrease) > NEWTON_DECREASE_RATIO,
        lambda: jnp.asarray(False),
    )
    newton_evaluations = is_definite.astype(jnp.int32)

    # 2. Damped steps, where it is not accepted.
    def search_in(M: Matrix, damping: Scalar) -> StepResult:
        model = diagonalise(H, M, g, None if rounding is None else rounding())
        return search(method, model, loss, damping)

    def take_newton_step() -> StepResult:
        next_damping = method.after_newton(damping, predicted_decrease)
        return step_result(step, next_damping, Step.NEWTON, evaluations=newton_evaluations)

    def take_damped_step() -> StepResult:
        if postpones_damping:
            return postponed_step(g, damping)
        if metric is None:
            result = search_in(jacobi_metric(H), damping)
        else:
            result = _search_in_both_metrics(H, metric, g, loss, damping, search_in)
        return result._replace(evaluations=result.evaluations + newton_evaluations)

    return lax.cond(is_accepted, take_newton_step, take_damped_step)


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
        chosen = jax.tree.map(
            lambda a, b: jnp.where(second_wins, a, b), second._replace(damping=damping), first
        )
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

    # A step that is not finite (H = 0, say) is replaced by that of steepest descent.
    result = lax.cond(is_definite, lambda: step_result(step, 0.0, Step.NEWTON), modified_step)
    return result._replace(step=jnp.where(jnp.isfinite(result.step).all(), result.step, -g))
