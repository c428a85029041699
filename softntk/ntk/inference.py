r"""Regression with a kernel: ridge regression, and the Gaussian process whose posterior mean it is.

With K on the training points and k_* between test and training points,

    mean = F_test(0) + k_* (K + ridge I)⁻¹ (Y − F(0)),     variance = k_** − k_* (K + ridge I)⁻¹ k_*ᵀ.

A matrix is factorised (Cholesky); an operator is solved with, by :func:`softntk.ntk.solve`.
"""

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float

from softntk._records import record
from softntk._validation import check_finite, check_floating, is_concrete
from softntk.ntk._contractions import product
from softntk.ntk._gram import Gram, as_cross_matrix, as_matrix
from softntk.ntk._solve import solve
from softntk.ntk.dynamics import Cross, Targets, TestTargets, check_problem
from softntk.ntk.gram_operators import CrossOperator, GramOperator
from softntk.solution import NumericalError, Result

_RTOL = {"float32": 1e-6, "float64": 1e-10}


def kernel_regression(
    gram: Gram | GramOperator,
    y: Targets,
    *,
    ridge: float | Float[Array, ""],
    cross: Cross,
    f0: Targets | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
    progress: bool = False,
) -> Float[Array, "t k"]:
    r"""Kernel ridge regression: predictions F_test(0) + k_* (K + ridge I)⁻¹ (Y − F(0)).

    With ridge 0, what gradient descent converges to under a constant kernel (:func:`softntk.ntk.predict_flow` at infinity).

    Args:
        gram: K, [n, n] for each output by itself or [n, n, k, k], or an operator on [n] or [n, k].
        y: targets, [n, k].
        ridge: ≥ 0, in the units of the kernel.
        cross: kernel between test and training points, [t, n], [t, n, k, k], or ``op.cross(x_test)``.
        f0: outputs at the start, [n, k]; zero if None.
        f0_test: the same at the test points, [t, k]; zero if None.
        rtol: relative residual of the solve with an operator (default 1e-6, 1e-10 in float64), refined in float64.
        progress: show the solve.

    Returns:
        [t, k].

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, ridge negative.
        NumericalError: K + ridge I is not positive definite in this precision, or the solve did not reach rtol. Inside jit the
            result is +inf then (dense only; solving with an operator is not for jit).

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(0), (60, 3))
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, x[:50])
        >>> sn.ntk.kernel_regression(op, x[:50, :1], ridge=0.1, cross=op.cross(x[50:])).shape
        (10, 1)

    Source: arXiv 2405.03251, section 4 (kernel regression with the NTK); Arora et al. (2019), arXiv 1904.11955, Theorem 3.2.
    """
    y, residual, start = _checked(gram, y, ridge, f0, cross, f0_test)
    if isinstance(gram, GramOperator) and isinstance(cross, CrossOperator):
        weights = _solved(gram, -residual, ridge, rtol, progress)
        columns = weights if len(gram.shape) == 1 else weights[..., None]
        return start + cross.mm(columns).reshape(start.shape)
    assert not isinstance(gram, GramOperator)
    assert not isinstance(cross, CrossOperator)
    factor = _cholesky(as_matrix(gram), ridge)
    weights = jax.scipy.linalg.cho_solve((factor, True), -residual.reshape(len(factor), -1))
    return _resolved(start + product(as_cross_matrix(cross), weights).reshape(start.shape))


@record
class Posterior:
    """A Gaussian process after the data.

    Attributes:
        mean: [t, k].
        variance: of the noise-free function at each test point, [t], the same for every output; or [t, k].
    """

    mean: Float[Array, "t k"]
    variance: Float[Array, " t"] | Float[Array, "t k"]


def gp_posterior(
    gram: Gram | GramOperator,
    y: Targets,
    *,
    noise: float | Float[Array, ""],
    cross: Cross,
    prior: Float[Array | np.ndarray, " t"] | Float[Array | np.ndarray, "t k"],
    rtol: float | None = None,
    progress: bool = False,
) -> Posterior:
    r"""Posterior mean and variance of the Gaussian process that an infinitely wide network is at initialisation.

    Args:
        gram: NNGP kernel on the training points, [n, n] or [n, n, k, k], or an operator.
        y: observations, [n, k].
        noise: their variance, ≥ 0.
        cross: kernel between test and training points, [t, n], [t, n, k, k], or ``op.cross(x_test)``.
        prior: variance of the process at the test points, the diagonal of their own kernel: [t], or [t, k] for kernels with
            outputs (``op.at(x_test).diagonal()``, reshaped).
        rtol: of the solves with an operator.
        progress: show them.

    Returns:
        :class:`Posterior`. Variances that rounding makes negative are zero.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, noise negative.
        NumericalError: as :func:`kernel_regression`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> post = ntk.gp_posterior(jnp.eye(1), jnp.ones((1, 1)), noise=1.0, cross=jnp.ones((1, 1)), prior=jnp.ones(1))
        >>> round(float(post.mean[0, 0]), 5), round(float(post.variance[0]), 5)
        (0.5, 0.5)

    Source: Lee et al. (2018), arXiv 1711.00165, equations (8) and (9); the kernels are those of MATH.md section 2.
    """
    y, _, start = _checked(gram, y, noise, None, cross, None, "noise")
    check_floating("prior", prior)
    operator = isinstance(gram, GramOperator)
    outputs = gram.shape[1:] if operator else jnp.shape(gram)[2:3]
    if jnp.shape(prior) != (len(start), *outputs):
        raise ValueError(f"prior must have shape {(len(start), *outputs)}, got {jnp.shape(prior)}.")
    check_finite("prior", prior)
    prior = jnp.asarray(prior)
    if isinstance(gram, GramOperator) and isinstance(cross, CrossOperator):
        matrix = cross.as_matrix()
        stacked = jnp.concatenate([y.reshape(gram.in_size(), -1), matrix.T], axis=1)
        solved = _solved(gram, stacked.reshape(*gram.shape, -1), noise, rtol, progress).reshape(stacked.shape)
        columns = stacked.shape[1] - len(matrix)
        mean, reduction = product(matrix, solved[:, :columns]), jnp.sum(matrix * solved[:, columns:].T, axis=1)
    else:
        assert not isinstance(gram, GramOperator)
        assert not isinstance(cross, CrossOperator)
        matrix, factor = as_cross_matrix(cross), _cholesky(as_matrix(gram), noise)
        half = jax.scipy.linalg.solve_triangular(factor, matrix.T, lower=True)
        mean = product(matrix, jax.scipy.linalg.cho_solve((factor, True), y.reshape(len(factor), -1)))
        reduction = jnp.sum(half * half, axis=0)
    variance = _resolved(prior - reduction.reshape(prior.shape))
    return Posterior(mean=_resolved(mean.reshape(start.shape)), variance=jnp.maximum(variance, 0))


def _checked(
    gram: Gram | GramOperator,
    y: Targets,
    ridge: float | Array,
    f0: Targets | None,
    cross: Cross,
    f0_test: TestTargets | None,
    name: str = "ridge",
) -> tuple[Array, Array, Array]:
    if is_concrete(ridge) and not (np.ndim(ridge) == 0 and ridge >= 0 and np.isfinite(ridge)):
        raise ValueError(f"{name} must be a finite number of at least 0, got {ridge!r}.")
    if not isinstance(gram, GramOperator):
        as_matrix(gram)
    return check_problem(gram, y, f0, cross, f0_test)


def _cholesky(matrix: Float[Array, "p p"], ridge: float | Array) -> Float[Array, "p p"]:
    factor = jnp.linalg.cholesky(matrix + ridge * jnp.eye(len(matrix), dtype=matrix.dtype))
    if is_concrete(factor) and not np.isfinite(np.asarray(factor)).all():
        raise NumericalError(f"{Result.NOT_DEFINITE.name}: {Result.NOT_DEFINITE.advice}")
    return factor


def _solved(op: GramOperator, right: Array, ridge: float | Array, rtol: float | None, progress: bool) -> Array:
    solution = solve(op, right, ridge=float(ridge), rtol=rtol or _RTOL[str(op.dtype)], refine=True, progress=progress)
    return solution.check().value.astype(op.dtype)


def _resolved(values: Array) -> Array:
    """NaN, from a factorisation that failed inside jit, becomes +inf."""
    return jnp.where(jnp.isnan(values), jnp.inf, values)
