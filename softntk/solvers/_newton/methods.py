"""The four methods of approximate Newton: exact, on a sample, by products, and by products that a
sample preconditions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._linalg import design_matrix as matrices
from softntk._linalg import scaled_cholesky
from softntk._linalg.norms import scaled_norm
from softntk._linalg.products import product
from softntk.curvature.structured import StructuredOperator
from softntk.solvers._newton import dense_steps, krylov_steps, row_sampler
from softntk.solvers._newton.globalisation import DAMPINGS
from softntk.solvers._newton.model import Outcome, Trial
from softntk.solvers._newton.row_sampler import Sampler
from softntk.solvers._newton.state import NewtonState

Params = Any
Curvature = Callable[[Params], lx.AbstractLinearOperator]

_LOOSEST, _TIGHTEST = 0.1, 1e-4  # relative residuals of the conjugate gradients
_MEASURED = 4  # products that measure the ε of a sample which no conjugate gradients use


class Options(NamedTuple):
    """What :func:`softntk.solvers.scale_by_approx_newton` was asked for."""

    curvature: Curvature
    gauss_newton: Curvature | None
    sketch_size: int | None
    max_distortion: float
    cg_steps: int | None
    damping: str | None
    initial_damping: float
    key: PRNGKeyArray


class Model(NamedTuple):
    """The curvature at a point, on flat vectors."""

    operator: lx.AbstractLinearOperator
    metric: Callable[[], lx.AbstractLinearOperator] | None
    product: Callable[[Float[Array, " d"]], Float[Array, " d"]]


class Seen(NamedTuple):
    """What a step learned about its sample."""

    distortion: Any
    rows: Any
    products: Any
    sampler: Sampler | None


def make_model(options: Options, params: Params, flat: Float[Array, " d"]) -> Model:
    """The curvature at the params, checked."""
    operator = _checked("curvature", options.curvature(params), params)
    _, unravel = ravel_pytree(params)

    def product(v: Float[Array, " d"]) -> Float[Array, " d"]:
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    gauss_newton = options.gauss_newton
    metric = (
        None
        if gauss_newton is None
        else lambda: _checked("gauss_newton", gauss_newton(params), params)
    )
    return Model(operator, metric, product)


def _checked(name: str, operator: Any, params: Params) -> lx.AbstractLinearOperator:
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(f"{name} must return a lineax operator, got {type(operator).__name__}.")
    got = jax.tree.map(lambda leaf: leaf.shape, operator.in_structure())
    want = jax.tree.map(jnp.shape, params)
    if got != want:
        raise ValueError(
            f"{name} must be an operator on the params, of shapes {want}; it is one on {got}."
        )
    return operator


def structured(operator: lx.AbstractLinearOperator) -> StructuredOperator:
    """The operator itself, if it has rows to draw."""
    if not isinstance(operator, StructuredOperator):
        raise ValueError(
            f"sketch_size needs a curvature with rows to draw, a softntk.curvature.StructuredOperator, got "
            f"{type(operator).__name__}. Without sketch_size any operator will do."
        )
    return operator


def _solved(
    options: Options,
    H: Float[Array, "d d"],
    metric: Callable[[], Float[Array, "d d"]] | None,
    g: Float[Array, " d"],
    trial: Trial,
    state: NewtonState,
    rounding: Callable[[], Float[Array, " d"]] | None = None,
) -> Outcome:
    if options.damping is None:
        return dense_steps.undamped(H, metric, g)
    return dense_steps.damped(
        H, metric, g, DAMPINGS[options.damping], trial, state.damping, rounding
    )


def _rounding_of(operator: lx.AbstractLinearOperator) -> Callable[[], Float[Array, " d"]] | None:
    """Return r with which |ΔH_jk| ≤ r_j r_k is the rounding of a structured H, a sum over rows.

    Positive and negative rows cancel in H, their rounding does not: with |D| and |U||M||U|ᵀ
    instead, the latter bounded by Cauchy and Schwarz, r_j² = γ Σ_i w_i A_ij², γ = 4(d + √n) ε.
    """
    if not isinstance(operator, StructuredOperator):
        return None

    def rounding() -> Float[Array, " d"]:
        n, d = matrices.shape(operator.matrix)
        factors = jnp.abs(operator.factors)
        others = product(jnp.abs(operator.core), jnp.sum(factors, axis=0))
        weights = jnp.abs(operator.logit_diagonal) + product(factors, others)
        gamma = 4 * (d + n**0.5) * float(jnp.finfo(operator.dtype).eps)
        return jnp.sqrt(gamma * matrices.gram_diagonal(operator.matrix, weights))

    return rounding


def _exact(
    options: Options, model: Model, g: Array, trial: Trial, state: NewtonState
) -> tuple[Outcome, Seen]:
    made = model.metric
    metric = None if made is None else lambda: made().as_matrix().astype(g.dtype)
    H = model.operator.as_matrix().astype(g.dtype)
    outcome = _solved(options, H, metric, g, trial, state, _rounding_of(model.operator))
    return outcome, Seen(jnp.zeros((), g.dtype), 0, jnp.zeros((), jnp.int32), None)


def _sketched(
    options: Options, model: Model, g: Array, trial: Trial, state: NewtonState
) -> tuple[Outcome, Seen]:
    """The papers' method.

    Where the curvature is not convex a sample is judged by how the loss falls, else by its ε.
    """
    operator, sizes, made = structured(model.operator), _sizes(options, model), model.metric
    assert state.sampler is not None
    before, top = row_sampler.judge(state.sampler, trial.value), len(sizes) - 1
    before = before._replace(level=jnp.where(before.trusted, before.level, top))
    draws, directions = _keys(options, state)

    def with_rows(size: int) -> tuple[Outcome, scaled_cholesky.Factor]:
        sample = row_sampler.draw(before, operator, draws, size)
        H = row_sampler.matrix(operator, sample)
        metric = (
            None
            if made is None
            else lambda made=made: row_sampler.matrix(structured(made()), sample)
        )
        return _solved(options, H, metric, g, trial, state), scaled_cholesky.factorise(H)

    outcome, factor = lax.switch(before.level, [partial(with_rows, size) for size in sizes])
    space = krylov_steps.krylov(model.product, factor, g, trial.value, 0.0, _MEASURED)
    distortion = jnp.where(factor.definite, space.distortion, jnp.inf)
    learned = row_sampler.learn(
        before, operator, directions, factor, distortion, options.max_distortion, top
    )
    convex, watching = (
        factor.definite & ~space.model.negative,
        row_sampler.watch(before, trial.value),
    )
    learned = jax.tree.map(lambda new, old: jnp.where(convex, new, old), learned, watching)
    return outcome, Seen(distortion, jnp.asarray(sizes)[before.level], space.products, learned)


def _by_products(
    options: Options, model: Model, g: Array, trial: Trial, state: NewtonState
) -> tuple[Outcome, Seen]:
    """Conjugate gradients without a preconditioner."""
    assert options.cg_steps is not None
    space = krylov_steps.krylov(
        model.product, None, g, trial.value, _rtol(g, state), options.cg_steps
    )
    if options.damping is None:
        outcome = krylov_steps.undamped(space)
    else:
        outcome = krylov_steps.damped(space, DAMPINGS[options.damping], trial, state.damping)
    return outcome, Seen(jnp.zeros((), g.dtype), 0, space.products, None)


def _preconditioned(
    options: Options, model: Model, g: Array, trial: Trial, state: NewtonState
) -> tuple[Outcome, Seen]:
    """Conjugate gradients preconditioned by a sample where that is convex, dense steps where it is
    not.

    Those are the sample's own while they get on, and exact when they do not, or when no sample
    preconditions well.
    """
    operator, sizes, steps, made = (
        structured(model.operator),
        _sizes(options, model),
        options.cg_steps,
        model.metric,
    )
    assert state.sampler is not None
    assert steps is not None
    before = row_sampler.judge(state.sampler, trial.value)
    draws, directions = _keys(options, state)
    none, nothing = jnp.zeros((), jnp.int32), jnp.zeros((), g.dtype)
    top = len(sizes) - 1

    def exact() -> Outcome:
        return _exact(options, model, g, trial, state)[0]

    def by_sample() -> tuple[Outcome, Seen]:
        # the last is exact, if damped
        levels = sizes if options.damping is None else sizes[:-1] or sizes
        drawn = [partial(row_sampler.draw, before, operator, draws, size) for size in levels]
        H = lax.switch(
            before.level, [lambda draw=draw: row_sampler.matrix(operator, draw()) for draw in drawn]
        )
        factor = scaled_cholesky.factorise(H)

        def metric() -> Float[Array, "d d"]:
            assert made is not None
            like = structured(made())
            return lax.switch(
                before.level, [lambda draw=draw: row_sampler.matrix(like, draw()) for draw in drawn]
            )

        def sampled() -> Outcome:
            return _solved(options, H, None if made is None else metric, g, trial, state)

        def dense() -> tuple[Outcome, Seen]:
            outcome = lax.cond(before.trusted, sampled, exact) if options.damping else sampled()
            return outcome, Seen(nothing, rows, none, row_sampler.watch(before, trial.value))

        def products() -> tuple[Outcome, Seen]:
            space = krylov_steps.krylov(
                model.product, factor, g, trial.value, _rtol(g, state), steps
            )
            if options.damping is None:
                outcome = krylov_steps.undamped(space)
            else:
                outcome = krylov_steps.damped(
                    space, DAMPINGS[options.damping], trial, state.damping, exact
                )
            learned = row_sampler.learn(
                before, operator, directions, factor, space.distortion, options.max_distortion, top
            )
            # Negative curvature says nothing about the sample.
            learned = jax.tree.map(
                lambda new, old: jnp.where(space.model.negative, old, new), learned, before
            )
            return outcome, Seen(space.distortion, rows, space.products, learned)

        rows = jnp.asarray(levels, jnp.int32)[jnp.minimum(before.level, len(levels) - 1)]
        return lax.cond(factor.definite, products, dense)

    if options.damping is None:
        return by_sample()
    hopeless = (before.level == top) | (state.negative_curvature & ~before.trusted)
    return lax.cond(hopeless, lambda: (exact(), Seen(nothing, none, none, before)), by_sample)


def _rtol(g: Float[Array, " d"], state: NewtonState) -> Float[Array, ""]:
    """How exactly to solve: as the gradient has shrunk in the last step, so that convergence is
    faster than linear.
    """
    shrunk = scaled_norm(g) / jnp.where(state.gradient_norm > 0, state.gradient_norm, jnp.inf)
    return jnp.where(state.gradient_norm > 0, jnp.clip(shrunk**1.5, _TIGHTEST, _LOOSEST), _LOOSEST)


def _keys(options: Options, state: NewtonState) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Of this step's sample, and of the directions that estimate scores."""
    draws, directions = jax.random.split(jax.random.fold_in(options.key, state.count))
    return draws, directions


def _sizes(options: Options, model: Model) -> tuple[int, ...]:
    assert options.sketch_size is not None
    return row_sampler.sizes(structured(model.operator), options.sketch_size)


METHODS = {
    (False, False): _exact,
    (True, False): _sketched,
    (False, True): _by_products,
    (True, True): _preconditioned,
}
"""By whether there is a sample, and whether there are products."""
