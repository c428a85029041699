r"""Distributions whose scores are known at every noise level: Gaussian mixtures and data sets.

The data set itself, :class:`EmpiricalDistribution`, is defined in ``_empirical_distribution``.

X_0 ~ Σ_c w_c N(μ_c, Σ_c) is noised to X_t ~ Σ_c w_c N(αμ_c, C_c), C_c = α²Σ_c + hI. With the
posterior weights π_c(x) ∝ w_c N(x; αμ_c, C_c),

    ∇log p_t(x) = −Σ_c π_c C_c⁻¹(x − αμ_c),
    E[X_0 | X_t = x] = Σ_c π_c (μ_c + αΣ_c C_c⁻¹(x − αμ_c)).

π is a softmax of log-densities, so nothing under- or overflows far from all modes. Each Σ_c is
decomposed once, C_c = U(α²Λ + h)Uᵀ, after which every t costs products only. h > 0 makes C_c
invertible for singular covariances too.

Derivatives in Σ do not go through the decomposition, which has none where eigenvalues are equal. U
and Λ count as constants, and R = UᵀΣU − Λ, which is zero in value but not in its derivatives,
enters to second order. With V = α²Λ + h and E = α²R,

    C_c⁻¹ = U(V⁻¹ − V⁻¹EV⁻¹ + V⁻¹EV⁻¹EV⁻¹)Uᵀ,
    log det C_c = log det V + tr(V⁻¹E) − ½ tr(V⁻¹EV⁻¹E).

    ======  =================  ============  ==================================
    symbol  name               shape         meaning
    ======  =================  ============  ==================================
    Λ       ``_eigenvalues``   [c, d]        of the covariances
    U       ``_eigenvectors``  [c, d, d]     of the covariances, as columns
    R       ``_residual``      [c, d, d]     UᵀΣU − Λ
    V       ``variances``      [n, c, d]     α²Λ + h
    ======  =================  ============  ==================================

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk import diffusion
    >>> sde = diffusion.vp_sde()
    >>> means = jnp.array([[-1.0], [1.0]])
    >>> mixture = diffusion.GaussianMixture(jnp.ones(2) / 2, means, jnp.full((2, 1, 1), 0.01))
    >>> x = mixture.sample(jax.random.key(0), 5)
    >>> mixture.score(sde, 0.1, x).shape, mixture.denoise(sde, 0.1, x).shape
    ((5, 1), (5, 1))

Source: MATHEMATICS.md#diffusion; Efron (2011), JASA 106, 1602-1614, for Tweedie's formula.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    as_floating,
    as_rows,
    check_count,
    check_key,
    is_concrete,
)
from softntk._linalg.norms import binary_scale
from softntk.diffusion._arguments import check_symmetric, columns_of_times, widest_dtype
from softntk.diffusion._empirical_distribution import (
    EmpiricalDistribution as EmpiricalDistribution,
)
from softntk.diffusion._evaluation import evaluate_compiled
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import Points, Times

WEIGHT_TOLERANCE = 1e-5
"""Largest deviation of the sum of the weights from one."""

EIGENVALUE_TOLERANCE = 1e-5
"""Size of a negative eigenvalue that counts as rounding, relative to the largest entry."""


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    r"""A Gaussian mixture Σ_c w_c N(μ_c, Σ_c) in d dimensions, a pytree.

    Its density, score and denoiser are exact at every time of a noising process: use it as the
    truth in experiments. These three may be differentiated twice in all arguments, Σ included;
    draws may be differentiated once.

    Args:
        weights: w, [c], positive, of sum one.
        means: μ, [c, d].
        covariances: Σ, [c, d, d], symmetric, positive semidefinite.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, weights that are not positive with sum
            one, covariances that are not symmetric positive semidefinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> normal = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> x = jnp.array([[1.0, -2.0]])
        >>> normal.score(vp_sde(), 0.3, x).round(4).tolist()  # −x: it stays standard normal
        [[-1.0, 2.0]]

    Source: MATHEMATICS.md#diffusion.
    """

    def __init__(
        self,
        weights: Float[Array | np.ndarray, " c"],
        means: Float[Array | np.ndarray, "c d"],
        covariances: Float[Array | np.ndarray, "c d d"],
    ) -> None:
        """Check the arguments, and decompose the covariances."""
        self.weights, self.means, covariances = _as_mixture(weights, means, covariances)
        eigenvalues, self._eigenvectors = jnp.linalg.eigh(lax.stop_gradient(covariances))
        self._eigenvalues = jnp.maximum(eigenvalues, 0)
        # R only carries derivatives. It is None where nothing is traced, as there are none then.
        self._residual = None
        if not is_concrete(covariances):
            rotated = jnp.einsum(
                "cji,cjk,ckl->cil",
                self._eigenvectors,
                covariances,
                self._eigenvectors,
                precision="highest",
            )
            symmetrised = (rotated + rotated.swapaxes(1, 2)) / 2
            self._residual = symmetrised - jax.vmap(jnp.diag)(self._eigenvalues)

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Return weights, means, eigenvalues Λ, eigenvectors U and R = UᵀΣU − Λ."""
        # The covariances are not stored: their decomposition is.
        leaves = (self.weights, self.means, self._eigenvalues, self._eigenvectors, self._residual)
        return leaves, None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "GaussianMixture":
        """Return the mixture with these leaves, which may be any objects."""
        self = object.__new__(cls)
        self.weights, self.means, self._eigenvalues, self._eigenvectors, self._residual = leaves
        return self

    @property
    def covariances(self) -> Float[Array, "c d d"]:
        """The covariances Σ, from their decomposition."""
        residual = 0 if self._residual is None else self._residual
        rotated = jax.vmap(jnp.diag)(self._eigenvalues) + residual
        return jnp.einsum("cie,cef,cjf->cij", self._eigenvectors, rotated, self._eigenvectors)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Return independent draws of X_0, [n, d].

        Raises:
            ValueError: n is not a positive integer.
        """
        n = check_count("n", n)
        mode_key, noise_key = jax.random.split(check_key("key", key))
        # A mode for each draw, then μ + U√Λ ε.
        modes = jax.random.choice(mode_key, len(self.weights), (n,), p=self.weights)
        normal = jax.random.normal(noise_key, (n, self.means.shape[1]), self.means.dtype)
        deviations = jnp.sqrt(self._eigenvalues)
        noise = deviations[modes] * normal
        if self._residual is not None:
            # The derivative of the matrix root √Σ in the eigenbasis, R_ij/(√λ_i + √λ_j).
            root_sums = deviations[:, :, None] + deviations[:, None, :]
            root_derivative = self._residual / jnp.where(root_sums > 0, root_sums, jnp.inf)
            noise = noise + jnp.einsum("nij,nj->ni", root_derivative[modes], normal)
        return self.means[modes] + jnp.einsum("nie,ne->ni", self._eigenvectors[modes], noise)

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """Return the log-density log p_t(x), [n].

        Args:
            sde: the noising process.
            t: times in (0, T], a scalar or [n].
            x: points, [n, d].

        Raises:
            ValueError: t is outside (0, T]; x is not a finite floating-point matrix of the
                mixture's dimension.
        """
        return self._evaluate(GaussianMixture._log_density, sde, t, x)

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return ∇log p_t(x), [n, d]; arguments and errors as :meth:`log_density`."""
        return self._evaluate(GaussianMixture._score, sde, t, x)

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return E[X_0 | X_t = x], [n, d]; arguments and errors as :meth:`log_density`."""
        return self._evaluate(GaussianMixture._denoise, sde, t, x)

    def __repr__(self) -> str:
        modes, d = jnp.shape(self.means)
        return f"GaussianMixture({modes} modes in {d} dimensions, {self.means.dtype})"

    def _evaluate(self, method: Callable, sde: VPSDE, t: Times, x: Points) -> Array:
        """Return ``method(self, sde, t, x)`` at checked times and points."""
        return evaluate_compiled(method, self, self.means.shape[1], sde, t, x)

    def _log_density(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, " n"]:
        """Return log p_t(x), the logsumexp of the joint log-densities."""
        posterior = self._posterior(sde, t, x)
        unit = posterior.unit[:, 0]
        # Add the term common to all modes, which the logits lack.
        log_sum = jax.nn.logsumexp(posterior.logits, axis=1)
        return log_sum - posterior.min_square[:, 0] * unit * unit / 2

    def _score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """Return −Σ_c π_c C_c⁻¹(x − αμ_c)."""
        posterior = self._posterior(sde, t, x)
        weights = jax.nn.softmax(posterior.logits, axis=1)
        return -posterior.unit * jnp.einsum(
            "nc,cie,nce->ni", weights, posterior.eigenvectors, posterior.whitened
        )

    def _denoise(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """Return Σ_c π_c (μ_c + αΣ_c C_c⁻¹(x − αμ_c)), with Σ_c = U(Λ + R)Uᵀ."""
        posterior = self._posterior(sde, t, x)
        whitened = posterior.whitened
        eigenvalues = self._eigenvalues.astype(whitened.dtype)
        shift = posterior.alpha[:, :, None] * (
            eigenvalues[None] * whitened + self._apply_residual(whitened)
        )
        weights = jax.nn.softmax(posterior.logits, axis=1)
        mean = jnp.matmul(weights, self.means.astype(weights.dtype), precision="highest")
        return mean + posterior.unit * jnp.einsum(
            "nc,cie,nce->ni", weights, posterior.eigenvectors, shift
        )

    def _apply_residual(self, v: Array) -> Array | float:
        """Return R v of each mode, [n, c, d], or 0 where R is not stored."""
        if self._residual is None:
            return 0.0
        residual = self._residual.astype(v.dtype)
        return jnp.einsum("cij,ncj->nci", residual, v, precision="highest")

    def _posterior(self, sde: VPSDE, t: Array, x: Array) -> "_Posterior":
        """Return posterior logits and whitened points, scaled so that no square overflows.

        The logits lack a term that is the same for all modes: min_square · unit²/2, of the nearest
        mode.
        """
        # 1. Bring all arrays to one dtype.
        dtype = widest_dtype(x, self.means)
        x, means, eigenvalues, eigenvectors = (
            array.astype(dtype) for array in (x, self.means, self._eigenvalues, self._eigenvectors)
        )
        time = columns_of_times(t, x)
        alpha = sde.alpha(time)
        h = sde.variance(time)
        # 2. Rotate x − αμ into the eigenbasis of each mode, and divide by V = α²Λ + h.
        variances = (alpha**2)[:, :, None] * eigenvalues[None] + h[:, :, None]
        centred = x[:, None, :] - alpha[:, :, None] * means[None]
        rotated = jnp.einsum("nci,cie->nce", centred, eigenvectors, precision="highest")
        # A power of two, so that scaling does not round.
        unit = jnp.maximum(binary_scale(rotated, (1, 2)), 1)
        rotated = rotated / unit
        whitened = rotated / variances
        log_volume = jnp.sum(jnp.log(variances), axis=2)
        # 3. Add the terms of first and second order in E = α²R, which carry derivatives in Σ.
        if self._residual is not None:
            scaled_precisions = (alpha**2)[:, :, None] / variances
            first_order = scaled_precisions * self._apply_residual(whitened)
            second_order = scaled_precisions * self._apply_residual(first_order)
            whitened = whitened - first_order + second_order
            residual = self._residual.astype(dtype)
            log_volume = log_volume + jnp.einsum("cii,nci->nc", residual, scaled_precisions)
            squared_trace = jnp.einsum(
                "cij,cij,nci,ncj->nc", residual, residual, scaled_precisions, scaled_precisions
            )
            log_volume = log_volume - squared_trace / 2
        # 4. Form the logits from squared distances less the smallest one. XLA computes the squares
        # anew for each use, with other roundings, and unit² makes any difference large. So the
        # difference is set to zero for the nearest mode, and to at least zero for the others.
        unit = unit[:, :, 0]
        squares = jnp.sum(rotated * whitened, axis=2)
        nearest = jnp.argmin(squares, axis=1)[:, None]
        min_square = lax.stop_gradient(jnp.min(squares, axis=1, keepdims=True))
        is_nearest = jnp.arange(squares.shape[1])[None] == nearest
        excess = jnp.where(is_nearest, 0, jnp.maximum(squares - min_square, 0))
        excess = _with_derivatives_of(squares, lax.stop_gradient(excess))
        quadratic = excess * unit * unit + log_volume
        log_weights = jnp.log(self.weights.astype(dtype))[None]
        logits = log_weights - (quadratic + x.shape[1] * math.log(2 * math.pi)) / 2
        return _Posterior(logits, whitened, eigenvectors, alpha, min_square, unit)


class _Posterior(NamedTuple):
    """The posterior of a mixture at points x and times t.

    Attributes:
        logits: joint log-densities of modes and points, up to a term common to all modes, [n, c].
        whitened: C_c⁻¹(x − αμ_c)/unit in the eigenbasis of each mode, [n, c, d].
        eigenvectors: U, [c, d, d].
        alpha: α, [n, 1].
        min_square: |C_c^{-1/2}(x − αμ_c)|²/unit² of the nearest mode, [n, 1].
        unit: a power of two, at least one, [n, 1].
    """

    logits: Array
    whitened: Array
    eigenvectors: Array
    alpha: Array
    min_square: Array
    unit: Array


@jax.custom_jvp
def _with_derivatives_of(original: Array, value: Array) -> Array:
    """Return ``value``, with the derivatives of ``original``."""
    del original
    return value


@_with_derivatives_of.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The value keeps its derivatives where it is differentiated once more.
    return _with_derivatives_of(*primals), tangents[0]


def _as_mixture(weights: object, means: object, covariances: object) -> tuple[Array, Array, Array]:
    """Return the arrays of a mixture, in the widest of their dtypes.

    Raises:
        ValueError: they do not describe a mixture.
    """
    # 1. Convert. Values are checked as they were passed: under jit a converted array is traced.
    passed_weights = weights
    passed_covariances = covariances
    means = as_rows("means", means, half=False)
    weights = as_floating("weights", weights, half=False)
    covariances = as_floating("covariances", covariances, half=False)
    c, d = means.shape
    # 2. Check shapes.
    if weights.shape != (c,) or covariances.shape != (c, d, d):
        raise ValueError(
            f"for means of shape {(c, d)}, weights must be of shape {(c,)} and covariances "
            f"{(c, d, d)}, got {weights.shape} and {covariances.shape}. A variance v a coordinate "
            "is v * jnp.eye(d)."
        )
    # 3. Check that weights are probabilities and covariances semidefinite, where they are known.
    if all(map(is_concrete, jax.tree.leaves(passed_weights))):
        _check_probabilities(np.asarray(passed_weights, np.float64))
    if all(map(is_concrete, jax.tree.leaves(passed_covariances))):
        _check_semidefinite(np.asarray(passed_covariances, np.float64))
    dtype = widest_dtype(weights, means, covariances)
    return weights.astype(dtype), means.astype(dtype), covariances.astype(dtype)


def _check_probabilities(weights: np.ndarray) -> None:
    """Check that weights are positive and sum to one up to rounding."""
    if not (weights > 0).all() or abs(weights.sum() - 1) > WEIGHT_TOLERANCE:
        raise ValueError(
            f"weights must be positive and sum to one, got {weights} of sum {weights.sum():.6g}."
        )


def _check_semidefinite(covariances: np.ndarray) -> None:
    """Check that covariances are symmetric and positive semidefinite up to rounding."""
    # Tolerances are relative to each matrix.
    largest_entries = np.abs(covariances).max(axis=(1, 2))
    check_symmetric("covariances", covariances)
    smallest_eigenvalues = np.linalg.eigvalsh(covariances)[:, 0]
    if (smallest_eigenvalues < -EIGENVALUE_TOLERANCE * largest_entries).any():
        raise ValueError(
            "covariances must be positive semidefinite, the smallest eigenvalues are "
            f"{smallest_eigenvalues}."
        )
