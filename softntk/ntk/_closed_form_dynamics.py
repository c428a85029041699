r"""Predictions by functions of the kernel: descent and flow on ½‖F − Y‖² in closed form.

The filters are those of :mod:`softntk.ntk._spectral_filters`. A matrix is decomposed once for all
times; with a large operator the filter is computed in the Krylov space of the residual.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import check_number, is_concrete
from softntk._linalg.gram_arrays import Gram
from softntk._linalg.lanczos import Tridiagonal, lanczos
from softntk.ntk._arguments import Problem, apply_cross, saturate_outputs
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_filters import TrainingTimes, apply_filter
from softntk.solution import NumericalError, Result

# Products with an operator, which are as many as the Lanczos vectors that are stored: at most, for
# the first approximation, and inside jit, where no error can be tested.
_MAX_KRYLOV_DIMENSION = 512
_MIN_KRYLOV_DIMENSION = 16
_TRACED_KRYLOV_DIMENSION = 128
_NONFINITE_MESSAGE = f"{Result.NONFINITE_PRODUCT.name}: {Result.NONFINITE_PRODUCT.advice}"
# Operators up to this size are formed, which takes no longer than the products would.
_MAX_FORMED_SIZE = 256


def predict_in_closed_form(
    times: TrainingTimes,
    gram: Gram | GramOperator,
    problem: Problem,
    *,
    coefficients: bool,
    rtol: float | None,
) -> Float[Array, "s rows k"]:
    """Return F, or the coefficients c(H) r if ``coefficients``."""
    if rtol is not None:
        check_number("rtol", rtol, above=0)
    # 1. Choose between the filters d, for outputs at the training points, and c, for a sum.
    is_sum = coefficients or problem.cross is not None

    # 2. A matrix, a small operator, a large operator.
    if not isinstance(gram, GramOperator):
        return _predict_by_matrix(is_sum, times, problem)
    if gram.in_size() <= _MAX_FORMED_SIZE:
        outputs = _predict_by_formed_operator(is_sum, times, gram, problem)
        # Saturation leaves infinity only where there was a NaN.
        if is_concrete(outputs) and np.isinf(np.asarray(outputs)).any():
            raise NumericalError(_NONFINITE_MESSAGE)
        return outputs
    return _predict_by_krylov(is_sum, times, gram, problem, rtol)


def _apply_filter(
    is_sum: bool, times: TrainingTimes, matrix: Array, residual: Array
) -> Float[Array, "s n k"]:
    """Return f(H) r.

    A matrix [n, n] acts on each output by itself, a matrix [n·k, n·k] on all outputs together, the
    output being the fast index.
    """
    vectors = apply_filter(is_sum, len(matrix), times, matrix, residual.reshape(len(matrix), -1))
    return vectors.reshape(-1, *residual.shape)


@partial(jax.jit, static_argnums=0)
def _predict_by_matrix(is_sum: bool, times: TrainingTimes, problem: Problem) -> Array:
    """Return the prediction of a Gram matrix, and of a cross kernel that is a matrix."""
    assert problem.matrix is not None
    vectors = _apply_filter(is_sum, times, problem.matrix, problem.residual)
    return to_outputs(is_sum, apply_cross(vectors, problem) if is_sum else vectors, problem)


@partial(jax.jit, static_argnums=0)
def _predict_by_formed_operator(
    is_sum: bool, times: TrainingTimes, op: GramOperator, problem: Problem
) -> Array:
    """Return the prediction of a small operator, from its matrix."""
    matrix = op.as_matrix().astype(problem.y.dtype)
    vectors = _apply_filter(is_sum, times, matrix, problem.residual)
    return to_outputs(is_sum, apply_cross(vectors, problem), problem)


def to_outputs(is_sum: bool, vectors: Float[Array, "s rows k"], problem: Problem) -> Array:
    """Return F from d(H) r, F_test from H_test c(H) r, or c(H) r itself, in the units of Y."""
    if not is_sum:
        return saturate_outputs(problem.scale * (problem.y[None] / problem.scale + vectors))
    if problem.cross is None:
        return saturate_outputs(problem.scale * vectors)
    return saturate_outputs(problem.scale * (problem.start[None] / problem.scale - vectors))


def _predict_by_krylov(
    is_sum: bool, times: TrainingTimes, op: GramOperator, problem: Problem, rtol: float | None
) -> Array:
    """Return the prediction from Krylov spaces of the residual, doubled until nothing changes."""
    # 1. Start vectors: one for each output of a kernel on [n], a single one for a kernel on [n, k].
    if rtol is None:
        rtol = 1e-5 if op.dtype == jnp.float32 else 1e-9
    residual = problem.residual.astype(op.dtype)
    starts = residual.T if len(op.shape) == 1 else residual[None]

    def approximate(dimension: int) -> Array:
        # [k, s, n] for a kernel on [n], [1, s, n, k] for one on [n, k].
        vectors = _filter_by_krylov(is_sum, op, starts, times, dimension)
        stacked = jnp.moveaxis(vectors, 0, -1) if len(op.shape) == 1 else vectors[0]  # [s, n, k]
        return apply_cross(stacked.astype(problem.y.dtype), problem)

    # 2. Inside jit no error can be tested: one dimension for all.
    size = op.in_size()
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((op, times, problem))):
        return to_outputs(is_sum, approximate(min(_TRACED_KRYLOV_DIMENSION, size)), problem)

    # 3. Double the dimension until the change is below rtol: for outputs relative to the residual,
    # for coefficients relative to themselves.
    coefficients = is_sum and problem.cross is None
    residual_max = float(jnp.max(jnp.abs(residual)))
    dimension = min(_MIN_KRYLOV_DIMENSION, size)
    estimate = approximate(dimension)
    while dimension < size:
        if not np.isfinite(np.asarray(estimate)).all():
            raise NumericalError(_NONFINITE_MESSAGE)
        if dimension >= _MAX_KRYLOV_DIMENSION:
            raise NumericalError(
                f"{Result.MAX_STEPS.name}: {dimension} products with the operator do not give "
                f"rtol={rtol:.1g}. Ask for fewer steps (an earlier time), a larger rtol, or "
                "float64."
            )
        dimension = min(2 * dimension, size)
        refined_estimate = approximate(dimension)
        change = float(jnp.max(jnp.abs(refined_estimate - estimate)))
        estimate = refined_estimate
        scale = float(jnp.max(jnp.abs(refined_estimate))) if coefficients else residual_max
        if change <= rtol * scale:
            break
    return to_outputs(is_sum, estimate, problem)


def _filter_by_krylov(
    is_sum: bool, op: GramOperator, starts: Array, times: TrainingTimes, dimension: int
) -> Array:
    """Return f(H) r at each time for every start vector r, [c, s, *shape].

    f(H) r ≈ ‖r‖ Q f(T) e₁ with the Lanczos vectors Q and the tridiagonal matrix T.
    """
    size = op.in_size()

    def filter_start(krylov_space: Tridiagonal) -> Array:
        first_unit_vector = jnp.zeros((dimension, 1), krylov_space.matrix.dtype).at[0].set(1)
        coefficients = apply_filter(is_sum, size, times, krylov_space.matrix, first_unit_vector)
        return krylov_space.combine(coefficients[:, :, 0])

    return jax.vmap(filter_start)(_krylov_spaces(op, starts, dimension))


def _compute_krylov_spaces(
    op: GramOperator, starts: Float[Array, "c ..."], dimension: int
) -> Tridiagonal:
    """Return the Lanczos decomposition from every start vector."""
    return jax.vmap(lambda v: lanczos(op, v, dimension))(starts)


_krylov_spaces = jax.jit(_compute_krylov_spaces, static_argnums=2)
