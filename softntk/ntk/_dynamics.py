r"""Training dynamics that a kernel predicts: gradient descent and gradient flow.

Both are functions of the kernel H applied to the residual r = F(0) − Y
(:mod:`softntk.ntk._spectral_filters`),

    F(τ) = Y + d_τ(H) r,    F_test(τ) = F_test(0) − H_test c_τ(H) r,    c_τ(λ) = (1 − d_τ(λ))/λ,

with d_τ(λ) = (1 − ηλ)^τ for descent and e^{−λτ} for flow. A matrix is decomposed once for all τ.
With an operator the functions are computed in the Krylov space of r, without eigenvectors of H.
Derivatives are those of a function of a matrix, so that equal eigenvalues cause no trouble.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from softntk._core.validation import (
    as_floating,
    as_integers,
    check_number,
    is_concrete,
)
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk._linalg.lanczos import Tridiagonal, lanczos
from softntk._linalg.products import product
from softntk.ntk._arguments import (
    Cross,
    Problem,
    Targets,
    TestTargets,
    as_problem,
    saturate_outputs,
)
from softntk.ntk._operators.base import CrossOperator, GramOperator
from softntk.ntk._spectral_filters import (
    Descent,
    Flow,
    TrainingTimes,
    apply_filter,
)
from softntk.solution import NumericalError, Result

Steps = Integer[Array | np.ndarray, " s"] | Sequence[int]

# Products with an operator, which are as many as the Lanczos vectors that are stored: at most, for
# the first approximation, and inside jit, where no error can be tested.
_MAX_KRYLOV_DIMENSION = 512
_MIN_KRYLOV_DIMENSION = 16
_TRACED_KRYLOV_DIMENSION = 128
_NONFINITE_MESSAGE = f"{Result.NONFINITE_PRODUCT.name}: {Result.NONFINITE_PRODUCT.advice}"
# Operators up to this size are formed, which takes no longer than the products would.
_MAX_FORMED_SIZE = 256


def predict_gd(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Return outputs of gradient descent on ½ΣΣ(F−Y)² after each number of steps, for a kernel.

    Under a constant kernel F(τ) = Y + (I − ηH)^τ (F(0) − Y), for all τ at once. Use it to see what
    gradient descent on a wide network would do, without training. The powers are computed as
    sign^τ exp(τ log|1 − ηλ|) without forming 1 − ηλ, so that they are exact to rounding for small
    ηλ and millions of steps.

    Args:
        gram: H on the training points: [n, n] (the same for every output, outputs independent) or
            [n, n, k, k] (:func:`softntk.ntk.empirical` with ``outputs="full"``), symmetric; or an
            operator on [n] or [n, k]. An operator is multiplied as often as the accuracy requires:
            at most 512 times, about √(τηλ_max) times for a few digits.
        y: targets, [n, k]; [n] is k = 1, also for f0 and f0_test.
        learning_rate: η > 0. That of neural_tangents is n·k times as large: its loss is a mean.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]. None stands for those of the network, if gram is the
            :func:`~softntk.ntk.operator` of one, else for zero (antisymmetric initialisation).
        cross: kernel between t test points and the training points, [t, n], [t, n, k, k], or
            ``op.cross(x_test)``. With it, the outputs at the test points are returned.
        f0_test: outputs at the test points at the start, [t, k]. None stands for those of the
            network, as for f0; but for zero if f0 is given as zeros.
        rtol: error of the outputs relative to max|F(0) − Y|, with an operator (default 1e-5, 1e-9
            in float64).

    Returns:
        [s, n, k], or [s, t, k] with ``cross``. The powers of a divergent component (ηλ > 2)
        saturate at the root of the largest number, and no output exceeds the largest number. It is
        differentiable in gram, y, f0, cross, f0_test and learning_rate, in both modes, also where
        eigenvalues are equal; a second time where they differ.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, an
            asymmetric gram, η not positive, steps negative, not integers or beyond the integers of
            JAX.
        NumericalError: an operator whose Krylov space did not reach rtol. Inside jit, where that
            cannot be seen, 128 products are made.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> gram = jnp.diag(jnp.array([1.0, 0.5]))
        >>> out = ntk.predict_gd(gram, jnp.ones((2, 1)), 0.5, jnp.array([0, 1, 2]))
        >>> out[:, :, 0].tolist()
        [[0.0, 0.0], [0.5, 0.25], [0.75, 0.4375]]

    Source: arXiv 2405.03251, Definition 3.8 and Lemma 3.9 (dynamics of the prediction);
    MATHEMATICS.md#training-dynamics.
    """
    steps = _as_steps(steps)
    problem = as_problem(gram, y, f0, cross, f0_test, own_start=True)
    times = _as_descent(learning_rate, steps, problem)
    return _predict(times, gram, problem, coefficients=False, rtol=rtol)


def gd_coefficients(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    rtol: float | None = None,
) -> Float[Array, "s n k"]:
    r"""Return the coefficients c of gradient descent, F_test(τ) = F_test(0) + H_test c.

    Use it to evaluate trained networks at many test points, or to reuse one solve for several sets
    of them.

    c = H⁻¹(I − (I − ηH)^τ)(Y − F(0)) = η Σ_{s<τ} (Y − F(s)), which exists for a singular H too. The
    weights of the linearised network have moved by Jᵀc. So the linearised network can be evaluated
    anywhere by one derivative along that direction, while :func:`predict_gd` needs the kernel
    between training and test points.

    Args:
        gram: H, as for :func:`predict_gd`.
        y: targets, [n, k].
        learning_rate: η > 0.
        steps: non-negative integers [s].
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        rtol: error of c relative to its largest entry, with an operator; default as for
            :func:`predict_gd`.

    Returns:
        c, [s, n, k].

    Raises:
        ValueError: as for :func:`predict_gd`.
        NumericalError: as for :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> gd_coefficients(jnp.eye(1), jnp.ones((1, 1)), 0.5, jnp.array([1, 2]))[:, 0, 0].tolist()
        [0.5, 0.75]

    Source: MATHEMATICS.md#training-dynamics.
    """
    steps = _as_steps(steps)
    problem = as_problem(gram, y, f0, None, None, own_start=True)
    times = _as_descent(learning_rate, steps, problem)
    # The residual of the problem is F(0) − Y.
    return -_predict(times, gram, problem, coefficients=True, rtol=rtol)


def _as_steps(steps: Steps) -> Integer[Array, " s"]:
    """Return numbers of steps as an integer array, checked."""
    if isinstance(steps, np.ndarray | jax.Array) and (
        steps.ndim != 1 or not jnp.issubdtype(steps.dtype, jnp.integer)
    ):
        raise ValueError(
            f"steps must be a vector of integers [s], got shape {steps.shape}, dtype {steps.dtype}."
        )
    step_counts = as_integers("steps", steps, ("s",))
    if is_concrete(step_counts) and np.any(np.asarray(step_counts) < 0):
        raise ValueError(f"steps must not be negative, got {int(np.min(step_counts))}.")
    return step_counts


def _as_descent(learning_rate: Number, steps: Array, problem: Problem) -> Descent:
    """Return the training times of descent in the precision of the problem."""
    rates = as_scalar("learning_rate", learning_rate, problem.y.dtype, above=0)
    return Descent(jnp.broadcast_to(rates, steps.shape), steps)


def predict_flow(
    gram: Gram | GramOperator,
    y: Targets,
    times: Float[Array | np.ndarray, " s"],
    f0: Targets | None = None,
    *,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Return outputs of gradient flow, dθ/dt = −∇ ½ΣΣ(F−Y)², at each time, for a constant kernel.

    Use it for statements that hold for every small step size; :func:`predict_gd` predicts steps of
    a given size.

    F(t) = Y + e^{−Ht} (F(0) − Y): the limit of gradient descent at t = ητ as η → 0. An eigenvalue
    that is negative by no more than rounding counts as zero; along one that is clearly negative F
    grows, as descent does.

    Args:
        gram: H on the training points, as for :func:`predict_gd`.
        y: targets, [n, k].
        times: ≥ 0, [s], in units of learning rate × steps; infinity is allowed (what training
            converges to).
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        cross: kernel between test and training points, as for :func:`predict_gd`.
        f0_test: outputs at the test points at the start, [t, k]; None as for :func:`predict_gd`.
        rtol: as for :func:`predict_gd`.

    Returns:
        [s, n, k], or [s, t, k] with ``cross``; differentiable as :func:`predict_gd` is, in times
        instead of learning_rate.

    Raises:
        ValueError: as for :func:`predict_gd`; times negative or NaN.
        NumericalError: as for :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> out = ntk.predict_flow(jnp.eye(1), jnp.ones((1, 1)), jnp.array([0.0, 1.0, jnp.inf]))
        >>> [round(float(v), 4) for v in out[:, 0, 0]]  # 1 − e^{−t}
        [0.0, 0.6321, 1.0]

    Source: MATHEMATICS.md#training-dynamics; Jacot, Gabriel and Hongler (2018), arXiv 1806.07572,
    section 5.
    """
    flow_times = as_floating("times", times, ("s",), finite=False, empty=True)
    if is_concrete(flow_times) and not np.all(np.asarray(flow_times) >= 0):
        raise ValueError(f"times must be non-negative numbers, got {np.asarray(flow_times)}.")
    problem = as_problem(gram, y, f0, cross, f0_test, own_start=True)
    flow = Flow(flow_times.astype(problem.y.dtype))
    return _predict(flow, gram, problem, coefficients=False, rtol=rtol)


def _predict(
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
    if is_sum and problem.cross is not None:
        size = len(problem.matrix)
        vectors = product(
            problem.cross, vectors.reshape(len(vectors), size, problem.residual.size // size)
        ).reshape(-1, *problem.start.shape)
    return _to_outputs(is_sum, vectors, problem)


@partial(jax.jit, static_argnums=0)
def _predict_by_formed_operator(
    is_sum: bool, times: TrainingTimes, op: GramOperator, problem: Problem
) -> Array:
    """Return the prediction of a small operator, from its matrix."""
    matrix = op.as_matrix().astype(problem.y.dtype)
    vectors = _apply_filter(is_sum, times, matrix, problem.residual)
    return _to_outputs(is_sum, _apply_cross(vectors, problem), problem)


def _to_outputs(is_sum: bool, vectors: Float[Array, "s rows k"], problem: Problem) -> Array:
    """Return F from d(H) r, F_test from H_test c(H) r, or c(H) r itself, in the units of Y."""
    if not is_sum:
        return saturate_outputs(problem.scale * (problem.y[None] / problem.scale + vectors))
    if problem.cross is None:
        return saturate_outputs(problem.scale * vectors)
    return saturate_outputs(problem.scale * (problem.start[None] / problem.scale - vectors))


def _apply_cross(vectors: Float[Array, "s n k"], problem: Problem) -> Float[Array, "s rows k"]:
    """Return the products of a cross operator with the vectors; the vectors without one."""
    if not isinstance(problem.cross, CrossOperator):
        return vectors
    # The s times are the columns of one product.
    columns = jnp.moveaxis(vectors, 0, -1)  # [n, k, s]
    if len(problem.cross.gram.shape) == 1:
        columns = columns.reshape(len(columns), -1)
    images = problem.cross.mm(columns).reshape(*problem.start.shape, -1)
    return jnp.moveaxis(images, -1, 0).astype(vectors.dtype)


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
        return _apply_cross(stacked.astype(problem.y.dtype), problem)

    # 2. Inside jit no error can be tested: one dimension for all.
    size = op.in_size()
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((op, times, problem))):
        return _to_outputs(is_sum, approximate(min(_TRACED_KRYLOV_DIMENSION, size)), problem)

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
    return _to_outputs(is_sum, estimate, problem)


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
