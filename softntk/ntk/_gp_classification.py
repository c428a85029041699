r"""Classification by the Gaussian process of an infinitely wide network.

The latent functions F [n, k] have the prior N(0, K), the labels the probabilities softmax(f). At
the mode F̂ of the posterior, with Λ the curvature of −log p(Y|F) there and E = (K + Λ⁻¹)⁻¹,

    mean f(x)  = k_*X K⁻¹ F̂,
    Cov f(x)   = k_** − k_*X E k_X*,
    log p(Y)   ≈ log p(Y|F̂) − ½ ⟨F̂, K⁻¹ F̂⟩ − ½ log det(I + KΛ).

It is the posterior of :func:`softntk.ntk.laplace` with the kernel of infinite width in the place of
JJᵀ/δ.

Source: Williams and Barber (1998), IEEE Trans. Pattern Anal. Mach. Intell. 20, 1342–1351;
Rasmussen and Williams (2006), section 3.5; MATHEMATICS.md#laplace.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softntk._core.validation import (
    as_floating,
    check_integer,
    check_key,
    check_shape,
    is_concrete,
)
from softntk._core.validation.class_targets import as_targets
from softntk._linalg.gram_arrays import Gram, as_cross_matrix, as_gram
from softntk._linalg.products import product
from softntk._output_losses import check_targets, complete_targets
from softntk.ntk._arguments import as_prior
from softntk.ntk._laplace import LaplacePrediction
from softntk.ntk._laplace_formulas import (
    check_matrix_size,
    class_probabilities,
    posterior_covariance,
)
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._posterior_modes import (
    LOSS,
    ClassFactor,
    Factor,
    FullFactor,
    class_covariance,
    find_mode,
)
from softntk.solution import NumericalError, Result

CrossArray = Float[Array | np.ndarray, "t n"] | Float[Array | np.ndarray, "t n k k"]
PriorArray = Float[Array | np.ndarray, " t"] | Float[Array | np.ndarray, "t k k"]


class ClassificationPosterior(eqx.Module):
    """The posterior of :func:`softntk.ntk.gp_classification`, to be asked at test points.

    Attributes:
        log_evidence: log p(Y), by Laplace's approximation, []; differentiable in the kernel.
        mode: F̂, the latent functions at the training points, [n, k].
        weights: K⁻¹F̂ = Y − softmax(F̂), [n, k].
        targets: Y, [n, k].
        has_converged: whether the mode was found.
        steps: Newton steps.
        factor: of E.
        has_class_kernel: whether the kernel is [n, n], the same for every class.
    """

    log_evidence: Float[Array, ""]
    mode: Float[Array, "n k"]
    weights: Float[Array, "n k"]
    targets: Float[Array, "n k"]
    has_converged: Bool[Array, ""]
    steps: Int[Array, ""]
    factor: Factor
    has_class_kernel: bool = eqx.field(static=True)

    def predict(
        self,
        cross: CrossArray,
        prior: PriorArray,
        *,
        draws: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> LaplacePrediction:
        """Return means, covariances and probabilities at test points.

        Args:
            cross: kernel between test and training points, [t, n] or [t, n, k, k], as the gram.
            prior: kernel of each test point with itself, [t] or [t, k, k].
            draws: None: probabilities by the probit approximation. A number: the mean of softmax
                over so many draws of f, which also knows the covariance between classes.
            key: of the draws.

        Raises:
            ValueError: shapes that do not fit, a negative prior, NaN; draws without a key.
        """
        # 1. Check.
        n, k = self.mode.shape
        dtype = self.mode.dtype
        outputs = () if self.has_class_kernel else (k, k)
        kernel = as_floating("cross", cross, empty=True)
        if kernel.shape[1:] != (n, *outputs):
            raise ValueError(f"cross must have shape {('t', n, *outputs)}, got {kernel.shape}.")
        shape = (len(kernel), *outputs)
        if self.has_class_kernel:
            variances = as_prior(prior, shape)
        else:
            # Covariances of different classes may be negative.
            variances = as_floating("prior", prior, empty=True)
            check_shape("prior", variances, shape)
        if draws is not None:
            draws = check_integer("draws", draws, at_least=1)
            key = check_key("key", key)

        # 2. Means and covariances.
        kernel, variances = kernel.astype(dtype), variances.astype(dtype)
        if isinstance(self.factor, ClassFactor):
            means = product(kernel, self.weights)
            covariance = class_covariance(self.factor, kernel, variances)
        else:
            means, covariance = self._full_prediction(self.factor, kernel, variances)
        return LaplacePrediction(
            mean=means,
            covariance=covariance,
            probabilities=class_probabilities(means, covariance, draws, key),
        )

    def _full_prediction(
        self, factor: FullFactor, cross: Array, prior: Array
    ) -> tuple[Array, Array]:
        """Return means and covariances of a kernel of all outputs."""
        if self.has_class_kernel:
            cross, prior = cross[:, :, None, None], prior[:, None, None]
        means = product(as_cross_matrix(cross), self.weights.reshape(-1))
        one = jnp.ones((), prior.dtype)
        covariance = posterior_covariance(
            "softmax", one, one, factor.triangle, self.mode, self.targets, prior, cross
        )
        return means.reshape(len(cross), -1), covariance


def gp_classification(
    gram: Gram | GramOperator,
    y: Int[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "n k"],
    *,
    classes: int | None = None,
) -> ClassificationPosterior:
    r"""Return the Laplace posterior of a Gaussian process whose observations are classes.

    Use it to classify with the kernel of an infinitely wide network, with calibrated probabilities,
    and to choose the kernel by ``.log_evidence``. The prior is N(0, K): multiply the kernel by the
    variance that logits should have. For a network that is trained already, see
    :func:`softntk.ntk.laplace`.

    Args:
        gram: K on the training points, [n, n], the same for every class; [n, n, k, k]; or an
            operator, which is formed.
        y: labels 0 … k − 1, integers [n]; or probabilities, [n, k].
        classes: k, for a gram [n, n] and labels that may not show the last class. 1: two classes
            with one latent function, p = 1/(1 + e^{−f}).

    Returns:
        A :class:`ClassificationPosterior`: ``.predict(cross, prior)`` gives mean, covariance and
        probabilities, ``.log_evidence`` is differentiable in gram, under jit too. Time is that of k
        Cholesky factorisations [n, n] a Newton step (some ten), or of one [n·k, n·k].

    Raises:
        ValueError: shapes that do not fit, labels out of range, a gram that is not symmetric or not
            finite, n·k too large for a matrix.
        NumericalError: I + QᵀKQ is not positive definite in this precision, or the mode was not
            found. Inside jit nothing is raised: read ``.has_converged``.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(0), (20, 3))
        >>> kernel = lambda a, b: 4 * net.kernel_fn(a, b, "nngp")
        >>> posterior = sn.ntk.gp_classification(kernel(x, x), jnp.arange(20) % 3)
        >>> prior = jnp.diagonal(kernel(x[:5], x[:5]))
        >>> posterior.predict(kernel(x[:5], x), prior).probabilities.shape
        (5, 3)

    Source: see the module.
    """
    # 1. The kernel, and the targets it decides the shape of.
    kernel = _as_kernel(gram)
    targets = _as_class_targets(y, kernel, classes)
    has_class_kernel = kernel.ndim == 2
    if has_class_kernel and targets.shape[1] == 1:
        kernel = kernel[:, :, None, None]
    if kernel.ndim == 4:
        check_matrix_size(targets.size, kernel.dtype)

    # 2. The mode.
    mode = find_mode(kernel, targets)
    _check_mode(mode.log_evidence, mode.has_converged)
    return ClassificationPosterior(
        log_evidence=mode.log_evidence,
        mode=mode.outputs,
        weights=mode.weights,
        targets=targets,
        has_converged=mode.has_converged,
        steps=mode.steps,
        factor=mode.factor,
        has_class_kernel=has_class_kernel,
    )


def _as_kernel(gram: object) -> Array:
    """Return the kernel as an array [n, n] or [n, n, k, k]."""
    if not isinstance(gram, GramOperator):
        return as_gram(gram)
    check_matrix_size(gram.in_size(), gram.dtype)
    matrix = gram.as_matrix()
    if len(gram.shape) == 1:
        return as_gram(matrix)
    n, k = gram.shape
    return as_gram(matrix.reshape(n, k, n, k).transpose(0, 2, 1, 3))


def _as_class_targets(y: object, kernel: Array, classes: object) -> Float[Array, "n k"]:
    """Return targets [n, k], with the k of the kernel, of ``classes``, or of the labels."""
    n = len(kernel)
    k = None if classes is None else check_integer("classes", classes, at_least=1)
    if kernel.ndim == 4:
        if k is not None and k != kernel.shape[2]:
            raise ValueError(f"classes must be that of gram, {kernel.shape[2]}, got {k}.")
        k = kernel.shape[2]
    targets = check_targets(LOSS, y, n, kernel.dtype)
    if (targets.ndim == 2 and targets.shape[1] > 1) or k is None:
        targets = as_targets(y, n, k, kernel.dtype)
    if k is None:
        return targets
    return complete_targets(targets, jnp.zeros((n, k), kernel.dtype))


def _check_mode(log_evidence: Array, has_converged: Array) -> None:
    """Raise if there is no mode, as far as the numbers are known."""
    if not is_concrete(log_evidence):
        return
    if not np.isfinite(np.asarray(log_evidence)):
        raise NumericalError(
            f"{Result.NOT_DEFINITE.name}: the identity and the kernel in the metric of the labels "
            f"are not positive definite in {log_evidence.dtype}. Divide the kernel by a number, or "
            "use float64."
        )
    if not np.asarray(has_converged):
        raise NumericalError(
            f"{Result.MAX_STEPS.name}: no mode was found: the kernel's entries are too large for "
            f"{log_evidence.dtype}. Divide it by a number, or use float64."
        )
