r"""Regression with a kernel: ridge regression, and the Gaussian process whose mean it is.

With K on the training points and k_* between test and training points,

    mean     = F_test(0) + k_* (K + ridge I)⁻¹ (Y − F(0))
    variance = k_** − k_* (K + ridge I)⁻¹ k_*ᵀ

A matrix is factorised (Cholesky); with an operator the systems are solved by
:func:`softntk.ntk.solve`.
"""

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Bool, Float

from softntk._core.records import record
from softntk._core.validation import (
    check_flag,
    check_number,
    is_concrete,
)
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product
from softntk.ntk._arguments import (
    Cross,
    Problem,
    Targets,
    TestTargets,
    as_prior,
    as_problem,
    saturate_outputs,
)
from softntk.ntk._operators.base import CrossOperator, GramOperator
from softntk.ntk._solve.driver import solve
from softntk.solution import NumericalError, Result, Solution

# Default relative residuals of solves with an operator, by precision.
_SOLVE_RTOL = {"float32": 1e-6, "float64": 1e-10}
_MAX_RELATIVE_RESIDUAL = 0.01  # above it a solution is refused


def kernel_regression(
    gram: Gram | GramOperator,
    y: Targets,
    *,
    ridge: Number,
    cross: Cross,
    f0: Targets | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
    progress: bool = False,
) -> Float[Array, "t k"]:
    r"""Return kernel ridge regression's predictions, F_test(0) + k_* (K + ridge I)⁻¹ (Y − F(0)).

    Use it as a baseline for a trained network, or with noisy targets. With ridge 0 it is what
    gradient descent converges to under a constant kernel (:func:`softntk.ntk.predict_flow` at
    infinity).

    Args:
        gram: K, [n, n] for each output by itself or [n, n, k, k], or an operator on [n] or [n, k].
        y: targets, [n, k]; [n] is k = 1, also for f0 and f0_test.
        ridge: ≥ 0, in the units of the kernel.
        cross: kernel between test and training points, [t, n], [t, n, k, k], or
            ``op.cross(x_test)``.
        f0: outputs at the start, [n, k]; None for zero, also if gram is the operator of a network.
            If the regression stands for a network whose outputs at the start are not zero, give
            them here.
        f0_test: outputs at the test points at the start, [t, k]; None for zero.
        rtol: relative residual of the solve with an operator (default 1e-6, 1e-10 in float64),
            refined in float64. Inside jit and grad it is refined in the precision of the operator.
        progress: show the progress of the solve with an operator.

    Returns:
        Predictions, [t, k]; differentiable in all of gram, y, ridge, cross, f0, f0_test.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, ridge
            negative.
        NumericalError: K + ridge I is not positive definite in this precision, or the solve did not
            reach rtol. Inside jit, vmap and grad nothing is raised: the result is +inf where the
            residual of the solve is above 1 %.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(0), (60, 3))
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, x[:50])
        >>> sn.ntk.kernel_regression(op, x[:50, :1], ridge=0.1, cross=op.cross(x[50:])).shape
        (10, 1)

    Source: arXiv 2405.03251, section 4 (kernel regression with the NTK); Arora et al. (2019), arXiv
    1904.11955, Theorem 3.2.
    """
    # 1. Check the arguments.
    check_number("ridge", ridge, at_least=0)
    rtol = None if rtol is None else check_number("rtol", rtol, above=0, below=1)
    check_flag("progress", progress)
    _check_cross_is_given(cross)
    problem = as_problem(gram, y, f0, cross, f0_test)
    ridge = as_scalar("ridge", ridge, problem.y.dtype, at_least=0)

    # 2. Solve by conjugate gradients with an operator, by Cholesky with a matrix.
    if isinstance(gram, GramOperator) and isinstance(problem.cross, CrossOperator):
        weights = _solve_operator(gram, -problem.residual, ridge, rtol, progress)
        columns = weights if len(gram.shape) == 1 else weights[..., None]
        fitted = problem.cross.mm(columns).reshape(problem.start.shape)
    else:
        assert isinstance(problem.cross, jax.Array)
        weights, _, unit = solve_by_cholesky(problem, -problem.residual, ridge)
        fitted = _apply_cross(problem.cross, unit, weights).reshape(problem.start.shape)
    return _to_outputs(problem.scale, problem.start, fitted)


@jax.jit
def _apply_cross(cross: Array, unit: Array, weights: Array) -> Array:
    """Return (cross/unit) · weights, for weights that are unit times the coefficients."""
    return product(cross / unit, weights)


@jax.jit
def _to_outputs(scale: Array, start: Array, fitted: Array) -> Array:
    """Return the sum of the start and the fit, in the units of the targets."""
    return saturate_outputs(scale * (start / scale + fitted))


def _check_cross_is_given(cross: object) -> None:
    """Raise if there is no cross kernel."""
    if cross is None:
        raise ValueError("cross must be the kernel between test and training points, got None.")


@record
class Posterior:
    """The posterior of a Gaussian process at test points.

    Attributes:
        mean: posterior mean, [t, k].
        variance: posterior variance of the noise-free function, [t] if it is the same for every
            output, else [t, k].
    """

    mean: Float[Array, "t k"]
    variance: Float[Array, " t"] | Float[Array, "t k"]


def gp_posterior(
    gram: Gram | GramOperator,
    y: Targets,
    *,
    noise: Number,
    cross: Cross,
    prior: Float[Array | np.ndarray, " t"] | Float[Array | np.ndarray, "t k"],
    rtol: float | None = None,
    progress: bool = False,
) -> Posterior:
    r"""Return mean and variance of the Gaussian process of an infinitely wide network, given data.

    Use it with the NNGP kernel; for the mean alone :func:`kernel_regression` is cheaper.

    Args:
        gram: NNGP kernel on the training points, [n, n] or [n, n, k, k], or an operator.
        y: observations, [n, k]; [n] is k = 1.
        noise: the variance of the observations' noise, ≥ 0.
        cross: kernel between test and training points, [t, n], [t, n, k, k], or
            ``op.cross(x_test)``.
        prior: variance of the process at the test points, the diagonal of their own kernel: [t], or
            [t, k] for kernels with outputs (``op.at(x_test).diagonal()``, reshaped).
        rtol: relative residual of the solves with an operator, as for :func:`kernel_regression`.
        progress: show the progress of these solves.

    Returns:
        :class:`Posterior`. Variances that rounding makes negative are zero.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, noise or prior negative.
        NumericalError: as for :func:`kernel_regression`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> y = jnp.ones((1, 1))
        >>> cross = jnp.ones((1, 1))
        >>> post = ntk.gp_posterior(jnp.eye(1), y, noise=1.0, cross=cross, prior=jnp.ones(1))
        >>> round(float(post.mean[0, 0]), 5), round(float(post.variance[0]), 5)
        (0.5, 0.5)

    Source: Lee et al. (2018), arXiv 1711.00165, equations (8) and (9); the kernels are those of
    MATHEMATICS.md#infinite-width.
    """
    # 1. Check the arguments.
    check_number("noise", noise, at_least=0)
    rtol = None if rtol is None else check_number("rtol", rtol, above=0, below=1)
    check_flag("progress", progress)
    _check_cross_is_given(cross)
    problem = as_problem(gram, y, None, cross, None)
    noise = as_scalar("noise", noise, problem.y.dtype, at_least=0)
    outputs = gram.shape[1:] if isinstance(gram, GramOperator) else jnp.shape(gram)[2:3]
    prior_variances = as_prior(prior, (len(problem.start), *outputs))

    # 2. An operator: one solve for the targets and the columns of k_*ᵀ together.
    if isinstance(gram, GramOperator) and isinstance(problem.cross, CrossOperator):
        matrix = problem.cross.as_matrix()
        rhs = -problem.residual.reshape(gram.in_size(), -1)
        stacked_rhs = jnp.concatenate([rhs.astype(matrix.dtype), matrix.T], axis=1)
        columns = stacked_rhs.reshape(*gram.shape, -1)
        solutions = _solve_operator(gram, columns, noise, rtol, progress)
        solutions = solutions.reshape(stacked_rhs.shape)
        output_count = rhs.shape[1]
        mean = product(matrix, solutions[:, :output_count])
        reduction = jnp.sum(matrix * solutions[:, output_count:].T, axis=1)
    # 3. A matrix K + noise I = LLᵀ: the reduction is ‖L⁻¹ k_*ᵀ‖².
    else:
        assert isinstance(problem.cross, jax.Array)
        weights, factor, unit = solve_by_cholesky(problem, -problem.residual, noise)
        matrix = problem.cross / unit
        root_solution = jax.scipy.linalg.solve_triangular(factor, matrix.T, lower=True)
        mean = product(matrix, weights)
        reduction = unit * jnp.sum(root_solution * root_solution, axis=0)

    # 4. What the data explain is subtracted; rounding may leave a negative variance, set to zero.
    variance = saturate_outputs(
        prior_variances.astype(reduction.dtype) - reduction.reshape(prior_variances.shape)
    )
    mean = saturate_outputs(problem.scale * mean.reshape(problem.start.shape))
    return Posterior(mean=mean, variance=jnp.maximum(variance, 0))


def solve_by_cholesky(problem: Problem, rhs: Array, ridge: Array) -> tuple[Array, Array, Array]:
    """Solve with a kernel matrix, and check the solution by its residual.

    Returns:
        unit · (K + ridge I)⁻¹ rhs as columns; the Cholesky factor of (K + ridge I)/unit; and unit.

    Raises:
        NumericalError: there is no solution, or its residual is above 1 %. Inside jit the solution
            is NaN then.
    """
    assert problem.matrix is not None
    weights, is_resolved, factor, unit = _cholesky_solve(problem.matrix, rhs, ridge)
    if is_concrete(is_resolved) and not np.asarray(is_resolved).all():
        raise NumericalError(f"{Result.NOT_DEFINITE.name}: {Result.NOT_DEFINITE.advice}")
    return weights, factor, unit


@jax.jit
def _cholesky_solve(
    matrix: Array, rhs: Array, ridge: Array
) -> tuple[Array, Bool[Array, " r"], Array, Array]:
    """Solve (K + ridge I) weights = rhs in units of the matrix.

    Returns:
        The weights, NaN where the residual is too large; whether it is small enough; the Cholesky
        factor; and the unit.
    """
    size = len(matrix)
    # In units of the larger of K and the ridge, so that their sum does not overflow.
    unit = jnp.maximum(binary_scale(matrix).reshape(()), binary_scale(ridge))
    ridged_matrix = matrix / unit + ridge.astype(unit.dtype) / unit * jnp.eye(
        size, dtype=unit.dtype
    )
    factor = jnp.linalg.cholesky(ridged_matrix)
    # Cholesky gives NaN or digits of noise where the matrix is not definite: test the residual.
    columns = rhs.reshape(size, -1)
    weights = jax.scipy.linalg.cho_solve((factor, True), columns)
    residual_norms = scaled_norm(columns - product(ridged_matrix, weights), axis=0)
    is_resolved = residual_norms <= _MAX_RELATIVE_RESIDUAL * scaled_norm(columns, axis=0)
    return jnp.where(is_resolved[None, :], weights, jnp.nan), is_resolved, factor, unit


def _solve_operator(
    op: GramOperator, rhs: Array, ridge: Array, rtol: float | None, progress: bool
) -> Array:
    """Return (K + ridge I)⁻¹ rhs; inside jit NaN where the residual is above 1 %."""
    # Outside jit, solve refines in float64, tests the residual and raises. Inside jit it can do
    # none of these, and the residual is tested here.
    outside_jit = all(is_concrete(leaf) for leaf in jax.tree.leaves((op, rhs, ridge)))
    if rtol is None and outside_jit:
        rtol = _SOLVE_RTOL[str(op.dtype)]
    solution: Solution = solve(
        op,
        rhs.astype(op.dtype),
        ridge=ridge,
        rtol=rtol,
        refine=outside_jit,
        progress=progress,
        throw=outside_jit,
    )
    if outside_jit:
        return solution.check().value.astype(op.dtype)
    return jnp.where(solution.stats["residual"] <= _MAX_RELATIVE_RESIDUAL, solution.value, jnp.nan)
