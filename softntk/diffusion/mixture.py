r"""Distributions whose scores are known at every noise level: Gaussian mixtures, and a data set itself.

X_0 ~ Σ_c w_c N(μ_c, Σ_c) is noised to X_t ~ Σ_c w_c N(αμ_c, C_c),  C_c = α²Σ_c + hI, so with the posterior weights
π_c(x) ∝ w_c N(x; αμ_c, C_c),

    ∇log p_t(x) = −Σ_c π_c C_c⁻¹(x − αμ_c),        E[X_0 | X_t = x] = Σ_c π_c (μ_c + αΣ_c C_c⁻¹(x − αμ_c)).

π is a softmax of log-densities, so nothing under- or overflows far from all modes. Each Σ_c is decomposed once,
C_c = U(α²Λ + h)Uᵀ: every t costs products only, and h > 0 is all that it takes for singular covariances.

Derivatives in Σ do not go through the decomposition, which has none where eigenvalues are equal. U and Λ count as constants,
and R = UᵀΣU − Λ, zero but for its derivatives, enters to second order: with V = α²Λ + h and E = α²R,

    C_c⁻¹ = U(V⁻¹ − V⁻¹EV⁻¹ + V⁻¹EV⁻¹EV⁻¹)Uᵀ,    log det C_c = log det V + tr(V⁻¹E) − ½ tr(V⁻¹EV⁻¹E).

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk import diffusion
    >>> sde = diffusion.vp_sde()
    >>> mixture = diffusion.GaussianMixture(jnp.ones(2) / 2, jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.01))
    >>> x = mixture.sample(jax.random.key(0), 5)
    >>> mixture.score(sde, 0.1, x).shape, mixture.denoise(sde, 0.1, x).shape
    ((5, 1), (5, 1))

Source: MATH.md section 5; Efron (2011), JASA 106, 1602-1614, for Tweedie's formula.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._validation import check_finite, check_floating, check_positive_int, check_rows, is_concrete
from softntk.diffusion.sde import VPSDE, check_points, columns_of_times

Points = Float[Array | np.ndarray, "n d"]
Times = Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"] | float

_QUERIES = 256  # rows compared with a whole data set at once


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    r"""Σ_c w_c N(μ_c, Σ_c) in d dimensions, with density, score and denoiser at every time of a process. A pytree.

    Density, score and denoiser may be differentiated twice in all arguments, in Σ too; draws once.

    Args:
        weights: w, [c], positive, of sum one.
        means: μ, [c, d].
        covariances: Σ, [c, d, d], symmetric, positive semidefinite.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, weights that are no probabilities, covariances that are not
            symmetric positive semidefinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> normal = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> normal.score(vp_sde(), 0.3, jnp.array([[1.0, -2.0]])).round(4).tolist()  # −x: it stays standard normal
        [[-1.0, 2.0]]

    Source: MATH.md section 5.
    """

    def __init__(
        self,
        weights: Float[Array | np.ndarray, " c"],
        means: Float[Array | np.ndarray, "c d"],
        covariances: Float[Array | np.ndarray, "c d d"],
    ) -> None:
        """Check, and decompose the covariances."""
        _check_mixture(weights, means, covariances)
        self.weights, self.means = jnp.asarray(weights), jnp.asarray(means)
        covariances = jnp.asarray(covariances)
        spreads, self._axes = jnp.linalg.eigh(lax.stop_gradient(covariances))
        self._spreads = jnp.maximum(spreads, 0)
        self._rest = None  # R; where nothing is traced there is no derivative to be had
        if not is_concrete(covariances):
            turned = jnp.einsum("cji,cjk,ckl->cil", self._axes, covariances, self._axes, precision="highest")
            self._rest = (turned + turned.swapaxes(1, 2)) / 2 - jax.vmap(jnp.diag)(self._spreads)

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Weights, means, eigenvalues, eigenvectors, and what the covariances are beside these."""
        return (self.weights, self.means, self._spreads, self._axes, self._rest), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "GaussianMixture":
        """What was flattened."""
        self = object.__new__(cls)
        self.weights, self.means, self._spreads, self._axes, self._rest = leaves
        return self

    @property
    def covariances(self) -> Float[Array, "c d d"]:
        """Σ, from its decomposition."""
        inner = jax.vmap(jnp.diag)(self._spreads) + (0 if self._rest is None else self._rest)
        return jnp.einsum("cie,cef,cjf->cij", self._axes, inner, self._axes)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Independent draws of X_0, [n, d].

        Raises:
            ValueError: n not a positive integer.
        """
        check_positive_int("n", n)
        of_mode, of_noise = jax.random.split(key)
        mode = jax.random.choice(of_mode, len(self.weights), (n,), p=self.weights)
        normal = jax.random.normal(of_noise, (n, self.means.shape[1]), self.means.dtype)
        roots = jnp.sqrt(self._spreads)
        noise = roots[mode] * normal
        if self._rest is not None:  # the derivative of a root
            sums = roots[:, :, None] + roots[:, None, :]
            noise = noise + jnp.einsum("nij,nj->ni", (self._rest / jnp.where(sums > 0, sums, jnp.inf))[mode], normal)
        return self.means[mode] + jnp.einsum("nie,ne->ni", self._axes[mode], noise)

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """The log-density log p_t(x), [n].

        Args:
            sde: the noising process.
            t: in (0, T], a scalar or [n].
            x: [n, d].

        Raises:
            ValueError: t outside (0, T]; x of another dimension, no floating-point matrix or not finite.
        """
        logits, _, _, _ = self._parts(sde, t, x)
        return jax.nn.logsumexp(logits, axis=1)

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """∇log p_t(x), [n, d]; arguments and errors as :meth:`log_density`."""
        logits, whitened, _, _ = self._parts(sde, t, x)
        return -jnp.einsum("nc,cie,nce->ni", jax.nn.softmax(logits, axis=1), self._axes, whitened)

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """E[X_0 | X_t = x], [n, d]; arguments and errors as :meth:`log_density`."""
        logits, whitened, alpha, _ = self._parts(sde, t, x)
        shift = alpha[:, :, None] * (self._spreads[None] * whitened + self._beside(whitened))
        weights = jax.nn.softmax(logits, axis=1)
        return jnp.matmul(weights, self.means, precision="highest") + jnp.einsum("nc,cie,nce->ni", weights, self._axes, shift)

    def _beside(self, v: Array) -> Array | float:
        """R v of each mode, [n, c, d]."""
        return 0.0 if self._rest is None else jnp.einsum("cij,ncj->nci", self._rest, v, precision="highest")

    def _parts(self, sde: VPSDE, t: Times, x: Points) -> tuple[Array, Array, Array, Array]:
        """Joint log-densities [n, c], C_c⁻¹(x − αμ_c) in the axes of each mode [n, c, d], α and h [n, 1]."""
        x = check_points(sde, t, x, self.means.shape[1])
        time = columns_of_times(t, x)
        alpha, h = sde.alpha(time), sde.variance(time)
        variances = (alpha**2)[:, :, None] * self._spreads[None] + h[:, :, None]
        centred = x[:, None, :] - alpha[:, :, None] * self.means[None]
        along = jnp.einsum("nci,cie->nce", centred, self._axes, precision="highest")
        whitened, log_volume = along / variances, jnp.sum(jnp.log(variances), axis=2)
        if self._rest is not None:
            scaled = (alpha**2)[:, :, None] / variances
            once = scaled * self._beside(whitened)
            whitened = whitened - once + scaled * self._beside(once)
            log_volume = log_volume + jnp.einsum("cii,nci->nc", self._rest, scaled)
            log_volume = log_volume - jnp.einsum("cij,cij,nci,ncj->nc", self._rest, self._rest, scaled, scaled) / 2
        quadratic = jnp.sum(along * whitened, axis=2) + log_volume
        logits = jnp.log(self.weights)[None] - (quadratic + x.shape[1] * math.log(2 * math.pi)) / 2
        return logits, whitened, alpha, h


@jax.tree_util.register_pytree_node_class
class EmpiricalDistribution:
    r"""The data set itself as a distribution: N points of weight 1/N.

    Its exact denoiser is attention over the data: E[X_0 | X_t = x] = Σ_i softmax_i(−|x − αx_i|²/(2h)) x_i. Sampling with its
    score gives the data back: the estimator that has no error on the training loss, and does not generalise.

    Args:
        x0: [N, d].

    Raises:
        ValueError: no finite floating-point matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> two = EmpiricalDistribution(jnp.array([[0.0], [1.0]]))
        >>> two.denoise(vp_sde(), 1e-4, jnp.array([[0.9]])).round(4).tolist()
        [[1.0]]

    Source: MATH.md section 5, for p_0 the empirical measure.
    """

    def __init__(self, x0: Float[Array | np.ndarray, "N d"]) -> None:
        """Check, and centre the data: differences of squares keep more digits."""
        check_rows("x0", x0)
        self.points = jnp.asarray(x0)
        self._centre = jnp.mean(self.points, axis=0)

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """The data and their mean."""
        return (self.points, self._centre), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "EmpiricalDistribution":
        """What was flattened."""
        self = object.__new__(cls)
        self.points, self._centre = leaves
        return self

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Points drawn with replacement, [n, d].

        Raises:
            ValueError: n not a positive integer.
        """
        check_positive_int("n", n)
        return jax.random.choice(key, self.points, (n,))

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """The log-density log p_t(x), [n]; arguments and errors as :meth:`GaussianMixture.log_density`."""
        return self._attend(sde, t, x)[0]

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """E[X_0 | X_t = x], [n, d]; arguments and errors as :meth:`GaussianMixture.log_density`."""
        return self._attend(sde, t, x)[1]

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """∇log p_t(x) = (αE[X_0 | x] − x)/h, [n, d]; arguments and errors as :meth:`GaussianMixture.log_density`."""
        denoised = self._attend(sde, t, x)[1]
        time = columns_of_times(t, denoised)
        return (sde.alpha(time) * denoised - jnp.asarray(x)) / sde.variance(time)

    def _attend(self, sde: VPSDE, t: Times, x: Points) -> tuple[Array, Array]:
        x = check_points(sde, t, x, self.points.shape[1])
        times = columns_of_times(t, x)[:, 0]
        centred = self.points - self._centre[None]
        squares = jnp.sum(centred**2, axis=1)

        def of_row(row: tuple[Array, Array]) -> tuple[Array, Array]:
            time, point = row
            alpha, h = sde.alpha(time), sde.variance(time)
            point = point - alpha * self._centre
            logits = alpha * (jnp.matmul(centred, point, precision="highest") - alpha * squares / 2) / h
            # XLA computes large logits again for each use, with other roundings: none may exceed the largest, which stays in.
            nearest = jnp.argmax(logits)
            behind = logits - logits[nearest]
            behind = jnp.where((behind > 0) | (jnp.arange(len(centred)) == nearest), 0, behind)
            density = logits[nearest] + jax.nn.logsumexp(behind) - jnp.sum(point**2) / (2 * h)
            density = density - math.log(len(centred)) - len(point) / 2 * jnp.log(2 * math.pi * h)
            return density, self._centre + jnp.matmul(jax.nn.softmax(behind), centred, precision="highest")

        return lax.map(of_row, (times, x), batch_size=_QUERIES)


def _check_mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> None:
    check_rows("means", means)
    for name, value in (("weights", weights), ("covariances", covariances)):
        check_floating(name, value)
        check_finite(name, value)
    c, d = jnp.shape(means)
    if jnp.shape(weights) != (c,) or jnp.shape(covariances) != (c, d, d):
        raise ValueError(
            f"for means of shape {(c, d)}, weights must be of shape {(c,)} and covariances {(c, d, d)}, "
            f"got {jnp.shape(weights)} and {jnp.shape(covariances)}. A variance v a coordinate is v * jnp.eye(d)."
        )
    if is_concrete(weights):
        values = np.asarray(weights, np.float64)
        if not (values > 0).all() or abs(values.sum() - 1) > 1e-5:
            raise ValueError(f"weights must be positive and sum to one, got {values} of sum {values.sum():.6g}.")
    if is_concrete(covariances):
        values = np.asarray(covariances, np.float64)
        largest = np.abs(values).max(axis=(1, 2))
        if (np.abs(values - values.transpose(0, 2, 1)).max(axis=(1, 2)) > 1e-5 * largest).any():
            raise ValueError("covariances must be symmetric, at least one is not.")
        smallest = np.linalg.eigvalsh(values)[:, 0]
        if (smallest < -1e-5 * largest).any():
            raise ValueError(f"covariances must be positive semidefinite, the smallest eigenvalues are {smallest}.")
