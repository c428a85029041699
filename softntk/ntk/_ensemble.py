r"""What an ensemble of infinitely wide networks predicts, each trained from its own initialisation.

At the start the networks are draws f_0 of a Gaussian process with mean zero and covariance K, the
NNGP kernel. Gradient flow with the kernel Θ, the NTK, then adds the same linear map of each draw,

    f_t(x) = f_0(x) + A_t (Y − f_0(X)),    A_t = Θ_xX c_t(Θ),    c_t(λ) = (1 − e^{−λt})/λ,

so that f_t is Gaussian too. On the training points ΘA = 1 − d_t(Θ) with d_t(λ) = e^{−λt}:

    at other points       mean A_t Y,           covariance K_xx − A_t K_Xx − K_xX A_tᵀ + A_t K A_tᵀ
    at training points    mean Y − d_t(Θ) Y,    covariance d_t(Θ) K d_t(Θ)

For gradient descent d_τ(λ) = (1 − ηλ)^τ and c_τ(λ) = (1 − d_τ(λ))/λ
(:mod:`softntk.ntk._spectral_filters`, whose derivatives do not mind equal eigenvalues).

| symbol | meaning | shape |
|---|---|---|
| Θ, Θ_xX | ``gram``, ``cross`` | [p, p], [q, p] |
| K, K_xX, diag K_xx | ``nngp``, ``nngp_cross``, ``prior`` | [p, p], [q, p], [q] |
| A_tᵀ or d_t(Θ) | ``weights`` | [s, p, q] |

with p and q the numbers of training and of other points, times k for kernels with outputs.

Source: Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and Pennington (2019), arXiv 1902.06720,
equation (16); MATHEMATICS.md#ensembles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation import as_floating, check_number
from softntk._linalg.gram_arrays import Gram, Number, as_cross_matrix, as_gram
from softntk._linalg.norms import binary_scale
from softntk._linalg.products import product
from softntk.ntk._arguments import (
    Problem,
    Targets,
    apply_cross,
    as_prior,
    as_problem,
    saturate_outputs,
)
from softntk.ntk._closed_form_dynamics import to_outputs
from softntk.ntk._dynamics_arguments import Steps, as_descent, as_flow_times, as_steps
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_filters import Flow, TrainingTimes, apply_filter

CrossArray = Float[Array | np.ndarray, "t n"] | Float[Array | np.ndarray, "t n k k"]


@record
class EnsemblePrediction:
    """The distribution of the outputs of trained networks over their initialisations.

    Attributes:
        mean: of the outputs, [s, n, k], or [s, t, k] at test points.
        variance: of the outputs, [s, n] or [s, t] if it is the same for every output, else with a
            last axis k. Targets that carry noise of their own vary by that in addition.
    """

    mean: Float[Array, "s rows k"]
    variance: Float[Array, "s rows"] | Float[Array, "s rows k"]


def predict_ensemble(
    gram: Gram,
    nngp: Gram,
    y: Targets,
    times: Float[Array | np.ndarray, " s"] | Steps,
    *,
    learning_rate: Number | None = None,
    cross: CrossArray | None = None,
    nngp_cross: CrossArray | None = None,
    prior: Float[Array | np.ndarray, " t"] | Float[Array | np.ndarray, "t k"] | None = None,
) -> EnsemblePrediction:
    r"""Return mean and variance of infinitely wide networks in training, over initialisations.

    Use it for the error bars of a deep ensemble without training one, and to see how they shrink
    in training. The networks are trained on ½ΣΣ(F−Y)² to the end or not; targets are taken as they
    are, without noise. With gram = nngp, when the last layer alone is trained, infinite time
    gives :func:`softntk.ntk.gp_posterior` with noise zero; otherwise it is no posterior of any
    prior. A network that starts at zero (``antisymmetric=True``) has no such spread:
    :func:`softntk.ntk.predict_flow` predicts all of them. Of trained networks at hand take the mean
    and the standard deviation.

    Args:
        gram: Θ, the NTK on the training points, [n, n] (the same for every output) or [n, n, k, k],
            symmetric; ``kernel_fn(x, None, "ntk")``.
        nngp: K, the covariance of the outputs at the start, in the shape of gram;
            ``kernel_fn(x, None, "nngp")``.
        y: targets, [n, k]; [n] is k = 1.
        times: ≥ 0, [s], of gradient flow in units of learning rate × steps; infinity is allowed.
            With learning_rate numbers of steps, non-negative integers.
        learning_rate: η > 0 of gradient descent; None for gradient flow.
        cross: Θ between test and training points, [t, n] or [t, n, k, k]. With it, the outputs at
            the test points are returned, and nngp_cross and prior are needed.
        nngp_cross: K between test and training points, in the shape of cross.
        prior: the variance of the outputs at the start at the test points, the diagonal of their
            own NNGP kernel: [t], or [t, k] for kernels with outputs.

    Returns:
        An :class:`EnsemblePrediction`, whose mean is that of :func:`softntk.ntk.predict_flow` or
        :func:`softntk.ntk.predict_gd` from zero. Variances that rounding makes negative are zero;
        components that diverge saturate. Times beyond 1/(ελ_max) see the rounding of gram: use
        float64 for them, and for variances far below the prior. It is differentiable in every
        array and in learning_rate, also where eigenvalues are equal. s·n·(t + k) numbers are
        stored.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, an
            asymmetric kernel, a negative prior or time, η not positive, operators instead of
            arrays, one of cross, nngp_cross and prior without the others.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> gram, y = jnp.eye(1), jnp.ones((1, 1))
        >>> out = ntk.predict_ensemble(gram, 2 * gram, y, jnp.array([0.0, jnp.inf]))
        >>> out.mean[:, 0, 0].tolist(), out.variance[:, 0].tolist()
        ([0.0, 1.0], [2.0, 0.0])
        >>> half = jnp.full((1, 1), 0.5)
        >>> tests = {"cross": half, "nngp_cross": half, "prior": jnp.ones(1)}
        >>> ntk.predict_ensemble(gram, gram, y, jnp.array([jnp.inf]), **tests).variance.tolist()
        [[0.75]]

    Source: Lee et al. (2019), arXiv 1902.06720, equation (16); MATHEMATICS.md#ensembles.
    """
    # 1. Check the NTK and the targets as for predicted training.
    for name, kernel in (("gram", gram), ("nngp", nngp)):
        if isinstance(kernel, GramOperator):
            raise ValueError(
                f"{name} must be an array here, got an operator. Pass the kernel itself, e.g. "
                "kernel_fn(x, None)."
            )
    problem = as_problem(gram, y, None, cross, None)

    # 2. Check the covariances at the start, and bring all to one precision.
    cross_shape = None if cross is None else np.shape(cross)
    covariances = _as_covariances(nngp, np.shape(gram), nngp_cross, cross_shape, prior)
    arrays = jax.tree.leaves((problem, covariances))
    dtype = jnp.result_type(*(array.dtype for array in arrays))
    problem, covariances = jax.tree.map(lambda array: array.astype(dtype), (problem, covariances))

    # 3. Flow or descent.
    if learning_rate is None:
        training: TrainingTimes = Flow(as_flow_times(times).astype(dtype))
    else:
        check_number("learning_rate", learning_rate, above=0)
        training = as_descent(learning_rate, as_steps(times, "times"), problem)
    return _predict(training, problem, covariances)


class _Covariances(NamedTuple):
    """Covariances of the outputs at the start.

    Attributes:
        matrix: K, [p, p].
        cross: K_xX, [q, p]; None for predictions at the training points.
        prior: the diagonal of K_xx, [t] or [t, k]; of K at the training points.
    """

    matrix: Float[Array, "p p"]
    cross: Float[Array, "q p"] | None
    prior: Float[Array, "..."]


def _as_covariances(
    nngp: object,
    gram_shape: tuple[int, ...],
    nngp_cross: object,
    cross_shape: tuple[int, ...] | None,
    prior: object,
) -> _Covariances:
    """Return the NNGP kernels, checked against the shapes of the NTK.

    Raises:
        ValueError: kernels of other shapes than those of the NTK; one of the kernels at the test
            points without the others.
    """
    # 1. On the training points.
    kernel = as_gram(nngp, "nngp")
    if kernel.shape != gram_shape:
        raise ValueError(f"nngp must have the shape of gram, got {kernel.shape} and {gram_shape}.")
    matrix = as_cross_matrix(kernel)
    at_tests = {"nngp_cross": nngp_cross, "prior": prior}
    if cross_shape is None:
        for name, value in at_tests.items():
            if value is not None:
                raise ValueError(
                    f"{name} goes with cross, the NTK between test and training points, which is "
                    "missing."
                )
        own_shape = gram_shape[:1] + gram_shape[2:3]
        return _Covariances(matrix, None, jnp.diagonal(matrix).reshape(own_shape))

    # 2. At the test points.
    for name, value in at_tests.items():
        if value is None:
            raise ValueError(f"{name} must be given with cross, got None.")
    cross_kernel = as_floating("nngp_cross", nngp_cross, empty=True)
    if cross_kernel.shape != cross_shape:
        raise ValueError(
            f"nngp_cross must have the shape of cross, got {cross_kernel.shape} and {cross_shape}."
        )
    prior_shape = cross_kernel.shape[:1] + cross_kernel.shape[2:3]
    return _Covariances(matrix, as_cross_matrix(cross_kernel), as_prior(prior, prior_shape))


@jax.jit
def _predict(
    times: TrainingTimes, problem: Problem, covariances: _Covariances
) -> EnsemblePrediction:
    """Return the prediction of checked arguments."""
    # 1. The filter of the residual and of the columns of Θ_xXᵀ, from one decomposition.
    assert problem.matrix is not None
    size = len(problem.matrix)
    is_sum = isinstance(problem.cross, jax.Array)
    if isinstance(problem.cross, jax.Array):
        columns = problem.cross.T
    else:
        columns = jnp.eye(size, dtype=problem.matrix.dtype)
    residual = problem.residual.reshape(size, -1)
    stacked = jnp.concatenate([residual, columns], axis=1)
    filtered = apply_filter(is_sum, size, times, problem.matrix, stacked)
    output_count = residual.shape[1]
    vectors = filtered[:, :, :output_count].reshape(-1, *problem.residual.shape)
    weights = filtered[:, :, output_count:]

    # 2. The mean, as predicted training has it.
    mean = to_outputs(is_sum, apply_cross(vectors, problem) if is_sum else vectors, problem)

    # 3. The variance, in units of the covariances.
    units = [binary_scale(part).reshape(()) for part in (covariances.matrix, covariances.prior)]
    unit = jnp.maximum(*units)
    images = product(covariances.matrix / unit, weights)
    if covariances.cross is None:
        variance = jnp.sum(weights * images, axis=1)
    else:
        # K_xx − 2AK_Xx + AKAᵀ, of which the last two have a factor in common.
        change = images - 2 * (covariances.cross / unit).T[None]
        prior = covariances.prior.reshape(1, -1) / unit
        variance = prior + jnp.sum(weights * change, axis=1)
    variance = saturate_outputs(unit * jnp.maximum(variance, 0))
    return EnsemblePrediction(mean=mean, variance=variance.reshape(-1, *covariances.prior.shape))
