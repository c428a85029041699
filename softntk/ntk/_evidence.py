"""Evidence of a Gaussian process for regression."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import check_number
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk.ntk._arguments import Targets, as_problem
from softntk.ntk._inference import solve_by_cholesky


def gp_log_evidence(gram: Gram, y: Targets, *, noise: Number) -> Float[Array, ""]:
    r"""Return log N(Y; 0, K + noise I), the log marginal likelihood of a kernel.

    Use it to compare kernels, noises and widths of weights without held-out data, or to choose them
    by :func:`softntk.ntk.fit_hyperparameters`. For class labels there is
    ``gp_classification(…).log_evidence``.

        log p(Y) = −½ ⟨Y, (K + noise I)⁻¹ Y⟩ − ½ log det(K + noise I) − ½ nk log 2π

    Args:
        gram: K, [n, n] for each output by itself, or [n, n, k, k].
        y: observations, [n, k]; [n] is k = 1.
        noise: the variance of the observations' noise, ≥ 0.

    Returns:
        A scalar, differentiable in gram, y and noise.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, noise
            negative; an operator (``op.as_matrix()`` forms it).
        NumericalError: K + noise I is not positive definite in this precision. Inside jit the
            result is NaN then.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> round(float(ntk.gp_log_evidence(jnp.eye(2), jnp.ones(2), noise=1.0)), 4)
        -3.031

    Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, equation (5.8).
    """
    check_number("noise", noise, at_least=0)
    problem = as_problem(gram, y, None, None, None)
    if problem.matrix is None:
        raise ValueError("gram must be an array here, got an operator: pass op.as_matrix().")
    noise = as_scalar("noise", noise, problem.y.dtype, at_least=0)
    # The factor is that of (K + noise I)/unit, and the weights are unit times the solution.
    weights, factor, unit = solve_by_cholesky(problem, problem.residual, noise)
    residuals = problem.residual.reshape(len(factor), -1)
    columns = residuals.shape[1]
    quadratic = problem.scale * jnp.sum(residuals * (weights * (problem.scale / unit)))
    log_unit = len(factor) * jnp.log(unit)
    log_determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + log_unit
    constant = problem.y.size * np.log(2 * np.pi)
    return -0.5 * (quadratic + columns * log_determinant + constant)
