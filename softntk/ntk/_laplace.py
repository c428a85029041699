r"""Linearised Laplace posterior of a network: error bars of outputs and probabilities.

The network is linearised at trained weights θ, f(x) = F(x) + J(x)(ϑ − θ), under the prior
ϑ ~ N(μ, I/δ). With Λ = QQᵀ the curvature of −log p(Y|F) in the outputs, K = JJᵀ on the training
points and J_* at a test point,

    Cov f(x) = J_* (JᵀΛJ + δI)⁻¹ J_*ᵀ = (1/δ) [K_** − K_*X Q (QᵀKQ + δI)⁻¹ Qᵀ K_X*],
    log p(Y) ≈ log p(Y|F) − ½δ‖θ − μ‖² − ½ log det(I + QᵀKQ/δ),

so that there are as many unknowns as outputs, whatever the number of weights, and one Cholesky
factorisation.

| symbol | meaning | shape |
|---|---|---|
| K, QᵀKQ + δI = LLᵀ | the kernel, the matrix that is factorised | [n·k, n·k] |
| K_X* | ``cross``, the kernel between training and test points | [n·k, t·k] |
| δ | ``ridge``, the precision of the prior | [] |

Source: MacKay (1992), Neural Computation 4, 720–736 (probit approximation: 448–472); Immer, Korzepa
and Bauer (2021), AISTATS, Improving predictions of Bayesian neural nets via local linearization;
MATHEMATICS.md#laplace.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import (
    check_choice,
    check_integer,
    check_key,
    check_shape,
    is_concrete,
)
from softntk._linalg.gram_arrays import Number, as_scalar
from softntk._output_losses import (
    OUTPUT_LOSSES,
    check_targets,
    complete_targets,
)
from softntk.networks import Network
from softntk.ntk._empirical.kernel import as_parameters, as_points, empirical
from softntk.ntk._laplace_formulas import (
    LIKELIHOODS,
    check_matrix_size,
    class_probabilities,
    factorise,
    posterior_covariance,
)
from softntk.ntk._user_functions import bind
from softntk.solution import NumericalError, Result

# Test points whose kernel is computed at a time.
BLOCK_POINTS = 64


@record
class LaplacePrediction:
    """A posterior at test points.

    Attributes:
        mean: of the outputs f, [t, k]: those of the network.
        covariance: of the outputs of each point, [t, k, k], without the noise of the targets.
        probabilities: of the classes, [t, k], for the softmax likelihood (of class 1, [t, 1], if
            there is one output); None for the Gaussian.
    """

    mean: Float[Array, "t k"]
    covariance: Float[Array, "t k k"]
    probabilities: Float[Array, "t k"] | None

    @property
    def variance(self) -> Float[Array, "t k"]:
        """Variance of each output, [t, k]: the diagonal of the covariance."""
        return jnp.diagonal(self.covariance, axis1=1, axis2=2)


class LaplacePosterior(eqx.Module):
    """The posterior of :func:`softntk.ntk.laplace`, to be asked at test points.

    Attributes:
        log_evidence: log p(Y), by Laplace's approximation, [].
        ridge: δ, [].
        noise: variance of the targets, [], of the Gaussian likelihood; one for softmax.
        factor: L, [n·k, n·k].
        outputs: F on the training points, [n, k].
        targets: Y, [n, k].
        x: the training points, [n, …].
        params: θ.
        net: the network.
        apply_kwargs: its further arguments.
        likelihood: "gaussian" or "softmax".
    """

    log_evidence: Float[Array, ""]
    ridge: Float[Array, ""]
    noise: Float[Array, ""]
    factor: Float[Array, "p p"]
    outputs: Float[Array, "n k"]
    targets: Float[Array, "n k"]
    x: Float[Array, "n ..."]
    params: Any
    net: Any = eqx.field(static=True)
    apply_kwargs: Any
    likelihood: str = eqx.field(static=True)

    def predict(
        self,
        x: Float[Array | np.ndarray, "t ..."],
        *,
        draws: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> LaplacePrediction:
        """Return means, covariances and probabilities at test points.

        Args:
            x: [t, …].
            draws: None: probabilities by the probit approximation, softmax(f/√(1 + π/8 Var f)).
                A number: the mean of softmax over so many draws of f, which also knows the
                covariance between outputs.
            key: of the draws.

        Raises:
            ValueError: x of another shape than the training points; draws without a key or with
                the Gaussian likelihood.
        """
        # 1. Check.
        points = as_points("x", x)
        check_shape("x", points, ("t", *self.x.shape[1:]))
        points = points.astype(self.x.dtype)
        if draws is not None:
            draws = check_integer("draws", draws, at_least=1)
            key = check_key("key", key)
            if self.likelihood == "gaussian":
                raise ValueError('draws are for likelihood="softmax": f itself is Gaussian.')

        # 2. Means and covariances, a block of points at a time.
        means = _outputs(self.net, self.params, points, self.apply_kwargs)
        blocks = [
            self._covariance(points[start : start + BLOCK_POINTS])
            for start in range(0, len(points), BLOCK_POINTS)
        ]
        covariance = jnp.concatenate(blocks)

        # 3. Probabilities.
        probabilities = None
        if self.likelihood == "softmax":
            probabilities = class_probabilities(means, covariance, draws, key)
        return LaplacePrediction(mean=means, covariance=covariance, probabilities=probabilities)

    def _covariance(self, points: Array) -> Float[Array, "t k k"]:
        """Return (K_** − WᵀW)/δ with W = L⁻¹QᵀK_X*."""
        t = jnp.arange(len(points))
        kernel = _kernel(self.net, self.params, points, None, self.apply_kwargs)[t, t]
        cross = _kernel(self.net, self.params, points, self.x, self.apply_kwargs)
        return posterior_covariance(
            self.likelihood,
            self.ridge,
            self.noise,
            self.factor,
            self.outputs,
            self.targets,
            kernel,
            cross,
        )


def laplace(
    net: Network | tuple | Any,
    params: Any,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "n ..."] | Int[Array | np.ndarray, " n"],
    *,
    likelihood: str = "gaussian",
    ridge: Number = 1.0,
    noise: Number = 1.0,
    prior_mean: Any = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> LaplacePosterior:
    r"""Return the linearised Laplace posterior of a trained network.

    Use it for error bars and calibrated probabilities of a network that is trained already, and to
    compare ridges by their evidence. The weights should minimise −log p(Y|F) + ½δ‖θ − μ‖²: a sum
    over the points. Training on the mean loss with weight decay λ is δ = nλ.

    Args:
        net: as for :func:`softntk.ntk.empirical`: a network of ``two_layer``, a triple, or an
            ``apply_fn(params, x)``.
        params: θ, trained.
        x: training points, [n, …].
        y: targets, [n, k] or [n]; with softmax integer labels [n], probabilities [n, k], or
            probabilities of class 1 for one output.
        likelihood: "gaussian", y = f + noise, or "softmax".
        ridge: δ > 0, precision of the prior of each weight that is trained.
        noise: variance of the Gaussian likelihood, > 0.
        prior_mean: μ, a pytree like params; None for zero. (For a network that is trained without
            weight decay from random weights, these weights.)
        apply_kwargs: further arguments of apply_fn.

    Returns:
        A :class:`LaplacePosterior`: ``.predict(x)`` gives mean, variance and probabilities,
        ``.log_evidence`` is differentiable in ridge, noise and what the kernel depends on, under
        jit too. Memory and time are those of a Cholesky factorisation [n·k, n·k].

    Raises:
        ValueError: shapes that do not fit, an unknown likelihood, targets that do not fit it, ridge
            or noise not positive, n·k too large for a matrix (the message says its size).
        NumericalError: QᵀKQ + δI is not positive definite in this precision.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=64, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> x = jax.random.normal(jax.random.key(1), (20, 4))
        >>> posterior = sn.ntk.laplace(net, params, x, jnp.arange(20) % 3, likelihood="softmax")
        >>> prediction = posterior.predict(x[:2])
        >>> prediction.probabilities.shape, prediction.variance.shape
        ((2, 3), (2, 3))

    Source: see the module.
    """
    # 1. Check the arguments.
    check_choice("likelihood", likelihood, LIKELIHOODS)
    loss = OUTPUT_LOSSES[LIKELIHOODS[likelihood]]
    points = as_points("x", x)
    targets = check_targets(loss, y, len(points), points.dtype)
    outputs = _outputs(net, params, points, apply_kwargs)
    dtype = outputs.dtype
    targets = complete_targets(targets, outputs).astype(dtype)
    precision = as_scalar("ridge", ridge, dtype, above=0)
    variance = as_scalar("noise", noise, dtype, above=0)
    if likelihood == "softmax" and not (is_concrete(noise) and float(noise) == 1):
        raise ValueError('noise is of likelihood="gaussian"; softmax has none.')
    check_matrix_size(outputs.size, dtype)

    # 2. The kernel, its factor, and the evidence.
    kernel = _kernel(net, params, points, None, apply_kwargs)
    distance = _squared_distance(net, params, prior_mean, points, apply_kwargs)
    factor, log_evidence = factorise(
        likelihood, precision, variance, outputs, targets, kernel, distance.astype(dtype)
    )
    if is_concrete(factor) and not np.isfinite(np.asarray(factor[-1, -1])):
        raise NumericalError(
            f"{Result.NOT_DEFINITE.name}: the kernel plus ridge is not positive definite in "
            f"{dtype}. Use a larger ridge, or float64."
        )
    return LaplacePosterior(
        log_evidence=log_evidence,
        ridge=precision,
        noise=variance,
        factor=factor,
        outputs=outputs,
        targets=targets,
        x=points,
        params=params,
        net=net,
        apply_kwargs=apply_kwargs,
        likelihood=likelihood,
    )


def _outputs(net: Any, params: Any, x: Array, apply_kwargs: Any) -> Float[Array, "n k"]:
    """Return F(x), [n, k]."""
    if isinstance(net, Network):
        return net.apply_fn(as_parameters(net.architecture, params), x)
    function = bind(net, params, x, apply_kwargs)
    return function(function.weights, x)


def _kernel(
    net: Any, params: Any, x1: Array, x2: Array | None, apply_kwargs: Any
) -> Float[Array, "n1 n2 k k"]:
    """Return the empirical kernel of all outputs."""
    return empirical(net, params, x1, x2, apply_kwargs=apply_kwargs)


def _shapes(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return the structure of a pytree and the shapes of its leaves."""
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _squared_distance(
    net: Any, params: Any, prior_mean: Any, x: Array, apply_kwargs: Any
) -> Float[Array, ""]:
    """Return ‖θ − μ‖² over the weights that are trained."""
    if prior_mean is not None and _shapes(prior_mean) != _shapes(params):
        raise ValueError(
            "prior_mean must be a pytree like params, with leaves of the same shapes, got "
            f"{type(prior_mean).__name__}."
        )
    if isinstance(net, Network):
        names = (
            ("hidden", "bias", "readout")
            if net.architecture.train_readout
            else (
                "hidden",
                "bias",
            )
        )
        weights, means = (
            [getattr(tree, name) for name in names if getattr(tree, name) is not None]
            for tree in (params, params if prior_mean is None else prior_mean)
        )
    else:
        weights = list(bind(net, params, x, apply_kwargs).weights)
        means = weights
        if prior_mean is not None:
            means = list(bind(net, prior_mean, x, apply_kwargs).weights)
    if prior_mean is None:
        return sum((jnp.sum(weight**2) for weight in weights), jnp.zeros(()))
    terms = [jnp.sum((a - b) ** 2) for a, b in zip(weights, means, strict=True)]
    return sum(terms, jnp.zeros(()))
