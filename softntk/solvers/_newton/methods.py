"""The four methods of approximate Newton: exact, sampled, by products, and both.

| symbol | meaning | shape |
|---|---|---|
| H, M | the curvature, the metric of the damping (Gauss–Newton) | [d, d] |
| g | the incoming updates, flattened: the gradient | [d] |
| ε | ``distortion`` of a sample P of H, (1 − ε)P ≼ H ≼ (1 + ε)P | [] |
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core.trees import select
from softntk._core.typing import Matrix, Vector
from softntk._linalg import design_matrix as matrices
from softntk._linalg import scaled_cholesky
from softntk._linalg.norms import scaled_norm
from softntk._linalg.products import product
from softntk.curvature.structured import StructuredOperator
from softntk.solvers._newton import dense_steps, krylov_steps, row_sampler
from softntk.solvers._newton.curvature_model import (
    CurvatureModel,
    Options,
    require_rows,
)
from softntk.solvers._newton.globalisation import DAMPINGS
from softntk.solvers._newton.model import LossAlongStep, Scalar, StepResult
from softntk.solvers._newton.row_sampler import Sampler
from softntk.solvers._newton.state import NewtonState

# Limits of the relative residual to which conjugate gradients solve.
LOOSEST_CG_RTOL = 0.1
TIGHTEST_CG_RTOL = 1e-4
# Exponent of Eisenstat and Walker: the residual shrinks faster than the gradient.
CG_RTOL_EXPONENT = 1.5
# Products that measure the ε of a sample where no conjugate gradients do.
DISTORTION_PRODUCTS = 4


class SampleDiagnostics(NamedTuple):
    """What a step measured of its sample and its products.

    Attributes:
        distortion: a lower bound of ε; zero without a sample.
        rows: number of rows of the sample; zero without one.
        products: number of products with H.
        sampler: the sampler for the next step; None without a sample.
    """

    distortion: Scalar
    rows: int | Int[Array, ""]
    products: Int[Array, ""]
    sampler: Sampler | None


Method = Callable[
    [Options, CurvatureModel, Vector, LossAlongStep, NewtonState],
    tuple[StepResult, SampleDiagnostics],
]


def _dense_step(
    options: Options,
    H: Matrix,
    metric: Callable[[], Matrix] | None,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
    rounding: Callable[[], Vector] | None = None,
) -> StepResult:
    """Return a step on a matrix, damped if the options say so."""
    if options.damping is None:
        return dense_steps.undamped_step(H, metric, g)
    method = DAMPINGS[options.damping]
    return dense_steps.damped_step(
        H,
        metric,
        g,
        method,
        loss,
        state.damping,
        rounding,
        postpones_damping=options.postpones_damping,
    )


def _krylov_step(
    options: Options,
    space: krylov_steps.KrylovModel,
    loss: LossAlongStep,
    state: NewtonState,
    fallback: Callable[[], StepResult] | None = None,
) -> StepResult:
    """Return a step on a Krylov space, damped if the options say so."""
    if options.damping is None:
        return krylov_steps.undamped_step(space)
    method = DAMPINGS[options.damping]
    return krylov_steps.damped_step(
        space, method, loss, state.damping, fallback, postpones_damping=options.postpones_damping
    )


def _row_rounding(operator: lx.AbstractLinearOperator) -> Callable[[], Vector] | None:
    """Return a function that computes r with |ΔH_jk| ≤ r_j r_k, ΔH the rounding of a structured H.

    H = Aᵀ(D + UMUᵀ)A is a sum over rows, of which positive and negative ones cancel; their rounding
    does not. So the bound has |D| and |U||M||U|ᵀ, the latter by Cauchy and Schwarz: r_j² = γ Σ_i
    w_i A_ij², γ = 4(d + √n) ε. None for other operators.
    """
    if not isinstance(operator, StructuredOperator):
        return None

    # The weights w_i = |D_i| + Σ_j (|U||M||U|ᵀ)_ij.
    def rounding() -> Float[Array, " d"]:
        n, d = matrices.shape(operator.matrix)
        factors = jnp.abs(operator.factors)
        core_sums = product(jnp.abs(operator.core), jnp.sum(factors, axis=0))
        row_weights = jnp.abs(operator.logit_diagonal) + product(factors, core_sums)
        gamma = 4 * (d + n**0.5) * float(jnp.finfo(operator.dtype).eps)
        return jnp.sqrt(gamma * matrices.gram_diagonal(operator.matrix, row_weights))

    return rounding


def _exact(
    options: Options,
    model: CurvatureModel,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
) -> tuple[StepResult, SampleDiagnostics]:
    """Return a step on the matrix H."""
    metric = model.dense_metric(g.dtype)
    H = model.operator.as_matrix().astype(g.dtype)
    result = _dense_step(options, H, metric, g, loss, state, _row_rounding(model.operator))
    no_products = jnp.zeros((), jnp.int32)
    return result, SampleDiagnostics(jnp.zeros((), g.dtype), 0, no_products, None)


def _sampled(
    options: Options,
    model: CurvatureModel,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
) -> tuple[StepResult, SampleDiagnostics]:
    """Return a step on a sample of H, the papers' method.

    Where the curvature is not convex, the decrease of the loss tells whether a sample is good
    enough; elsewhere ε does.
    """
    # 1. All rows, if samples have not decreased the loss.
    operator = require_rows(model.operator)
    sizes = _sample_sizes(options, model)
    last_index = len(sizes) - 1
    assert state.sampler is not None
    sampler = row_sampler.update_reliability(state.sampler, loss.value)
    sampler = sampler._replace(
        size_index=jnp.where(sampler.reliable, sampler.size_index, last_index)
    )
    row_key, direction_key = _step_keys(options, state)

    # 2. A step on the sample.
    def step_with(size: int) -> tuple[StepResult, scaled_cholesky.Factor]:
        sample = row_sampler.draw(sampler, operator, row_key, size)
        H = row_sampler.sampled_matrix(operator, sample)
        result = _dense_step(options, H, model.sampled_metric(sample), g, loss, state)
        return result, scaled_cholesky.factorise(H)

    result, factor = lax.switch(sampler.size_index, [partial(step_with, size) for size in sizes])

    # 3. ε, from a few products.
    space = krylov_steps.krylov_model(
        model.product, factor, g, loss.value, 0.0, DISTORTION_PRODUCTS
    )
    distortion = jnp.where(factor.definite, space.distortion, jnp.inf)
    refreshed = row_sampler.refresh_scores(
        sampler, operator, direction_key, factor, distortion, options.max_distortion, last_index
    )

    # 4. The sampler for the next step.
    is_convex = factor.definite & ~space.model.is_indefinite
    with_loss = row_sampler.remember_loss(sampler, loss.value)
    next_sampler = select(is_convex, refreshed, with_loss)
    rows = jnp.asarray(sizes)[sampler.size_index]
    return result, SampleDiagnostics(distortion, rows, space.products, next_sampler)


def _by_products(
    options: Options,
    model: CurvatureModel,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
) -> tuple[StepResult, SampleDiagnostics]:
    """Return a step by conjugate gradients without a sample."""
    assert options.cg_steps is not None
    rtol = _cg_rtol(g, state)
    space = krylov_steps.krylov_model(
        model.product, state.preconditioner, g, loss.value, rtol, options.cg_steps
    )
    result = _krylov_step(options, space, loss, state)
    return result, SampleDiagnostics(jnp.zeros((), g.dtype), 0, space.products, None)


def _preconditioned(
    options: Options,
    model: CurvatureModel,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
) -> tuple[StepResult, SampleDiagnostics]:
    """Return a step by conjugate gradients that a sample preconditions, or a dense step.

    Dense steps are taken where the sample is not positive definite: on the sample while such steps
    decrease the loss, on H itself when they do not, or when no sample preconditions well.
    """
    # 1. Whether samples have decreased the loss.
    sizes = _sample_sizes(options, model)
    last_index = len(sizes) - 1
    assert state.sampler is not None
    sampler = row_sampler.update_reliability(state.sampler, loss.value)

    def exact_step() -> StepResult:
        return _exact(options, model, g, loss, state)[0]

    def sampled_step() -> tuple[StepResult, SampleDiagnostics]:
        return _preconditioned_step(options, model, g, loss, state, sampler, sizes, exact_step)

    # 2. Undamped steps need only be descent directions: a line search follows.
    if options.damping is None:
        return sampled_step()
    no_sample = SampleDiagnostics(
        distortion=jnp.zeros((), g.dtype),
        rows=jnp.zeros((), jnp.int32),
        products=jnp.zeros((), jnp.int32),
        sampler=sampler,
    )
    # 3. Damped: H itself where a sample would have all rows, or has failed where L is not convex.
    use_exact = (sampler.size_index == last_index) | (state.negative_curvature & ~sampler.reliable)
    return lax.cond(use_exact, lambda: (exact_step(), no_sample), sampled_step)


def _preconditioned_step(
    options: Options,
    model: CurvatureModel,
    g: Vector,
    loss: LossAlongStep,
    state: NewtonState,
    sampler: Sampler,
    sizes: tuple[int, ...],
    exact_step: Callable[[], StepResult],
) -> tuple[StepResult, SampleDiagnostics]:
    """Return a step of :func:`_preconditioned` that draws a sample."""
    # 1. The sampled H, and its factor. Damped steps on all rows are exact and draw no sample.
    operator = require_rows(model.operator)
    last_index = len(sizes) - 1
    row_key, direction_key = _step_keys(options, state)
    drawn_sizes = sizes if options.damping is None else sizes[:-1] or sizes
    draws = [partial(row_sampler.draw, sampler, operator, row_key, size) for size in drawn_sizes]
    size_index = jnp.minimum(sampler.size_index, len(drawn_sizes) - 1)
    rows = jnp.asarray(drawn_sizes, jnp.int32)[size_index]

    def on_sample(sampled: StructuredOperator) -> Matrix:
        branches = [lambda draw=draw: row_sampler.sampled_matrix(sampled, draw()) for draw in draws]
        return lax.switch(sampler.size_index, branches)

    H = on_sample(operator)
    factor = scaled_cholesky.factorise(H)
    exact_metric = model.metric
    metric = None if exact_metric is None else lambda: on_sample(require_rows(exact_metric()))

    # 2. A dense step, where the sample is not positive definite.
    def dense_on_sample() -> StepResult:
        return _dense_step(options, H, metric, g, loss, state)

    def take_dense_step() -> tuple[StepResult, SampleDiagnostics]:
        if options.damping:
            result = lax.cond(sampler.reliable, dense_on_sample, exact_step)
        else:
            result = dense_on_sample()
        with_loss = row_sampler.remember_loss(sampler, loss.value)
        no_distortion = jnp.zeros((), g.dtype)
        no_products = jnp.zeros((), jnp.int32)
        return result, SampleDiagnostics(no_distortion, rows, no_products, with_loss)

    # 3. Conjugate gradients, where it is.
    def take_krylov_step() -> tuple[StepResult, SampleDiagnostics]:
        assert options.cg_steps is not None
        rtol = _cg_rtol(g, state)
        space = krylov_steps.krylov_model(
            model.product, factor, g, loss.value, rtol, options.cg_steps
        )
        result = _krylov_step(options, space, loss, state, exact_step)
        refreshed = row_sampler.refresh_scores(
            sampler,
            operator,
            direction_key,
            factor,
            space.distortion,
            options.max_distortion,
            last_index,
        )
        # Negative curvature says nothing about the sample: the scores stay.
        next_sampler = select(space.model.is_indefinite, sampler, refreshed)
        return result, SampleDiagnostics(space.distortion, rows, space.products, next_sampler)

    return lax.cond(factor.definite, take_krylov_step, take_dense_step)


def _cg_rtol(g: Vector, state: NewtonState) -> Scalar:
    """Return the relative residual to solve to: the faster the gradient shrinks, the smaller.

    Convergence is then faster than linear.
    """
    # Eisenstat and Walker's second choice; the loosest at the first step.
    last_norm = state.gradient_norm
    shrinkage = scaled_norm(g) / jnp.where(last_norm > 0, last_norm, jnp.inf)
    rtol = jnp.clip(shrinkage**CG_RTOL_EXPONENT, TIGHTEST_CG_RTOL, LOOSEST_CG_RTOL)
    return jnp.where(last_norm > 0, rtol, LOOSEST_CG_RTOL)


def _step_keys(options: Options, state: NewtonState) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of this step's sample, and of the directions that estimate scores."""
    # By the count, so that a resumed run draws the same rows.
    row_key, direction_key = jax.random.split(jax.random.fold_in(options.key, state.count))
    return row_key, direction_key


def _sample_sizes(options: Options, model: CurvatureModel) -> tuple[int, ...]:
    """Return the possible numbers of rows of a sample."""
    assert options.sketch_size is not None
    return row_sampler.sample_sizes(require_rows(model.operator), options.sketch_size)


METHODS: dict[tuple[bool, bool], Method] = {
    (False, False): _exact,
    (True, False): _sampled,
    (False, True): _by_products,
    (True, True): _preconditioned,
}
"""The methods by (whether there is a sample, whether there are products)."""
