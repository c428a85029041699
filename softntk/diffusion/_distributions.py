r"""Distributions whose scores are known at every noise level: Gaussian mixtures, and a data set
itself.

X_0 ~ Σ_c w_c N(μ_c, Σ_c) is noised to X_t ~ Σ_c w_c N(αμ_c, C_c),  C_c = α²Σ_c + hI, so with the
posterior weights π_c(x) ∝ w_c N(x; αμ_c, C_c),

    ∇log p_t(x) = −Σ_c π_c C_c⁻¹(x − αμ_c),        E[X_0 | X_t = x] = Σ_c π_c (μ_c + αΣ_c C_c⁻¹(x − αμ_c)).

π is a softmax of log-densities, so nothing under- or overflows far from all modes. Each Σ_c is
decomposed once, C_c = U(α²Λ + h)Uᵀ: every t costs products only, and h > 0 is all that it takes for
singular covariances.

Derivatives in Σ do not go through the decomposition, which has none where eigenvalues are equal. U
and Λ count as constants, and R = UᵀΣU − Λ, zero but for its derivatives, enters to second order:
with V = α²Λ + h and E = α²R,

    C_c⁻¹ = U(V⁻¹ − V⁻¹EV⁻¹ + V⁻¹EV⁻¹EV⁻¹)Uᵀ,    log det C_c = log det V + tr(V⁻¹E) − ½ tr(V⁻¹EV⁻¹E).

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk import diffusion
    >>> sde = diffusion.vp_sde()
    >>> mixture = diffusion.GaussianMixture(jnp.ones(2) / 2, jnp.array([[-1.0], [1.0]]), jnp.full((2, 1, 1), 0.01))
    >>> x = mixture.sample(jax.random.key(0), 5)
    >>> mixture.score(sde, 0.1, x).shape, mixture.denoise(sde, 0.1, x).shape
    ((5, 1), (5, 1))

Source: MATHEMATICS.md#diffusion; Efron (2011), JASA 106, 1602-1614, for Tweedie's formula.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
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
from softntk.diffusion._arguments import as_points, columns_of_times, widest
from softntk.diffusion._sde import VPSDE, check_sde

Points = Float[Array | np.ndarray, "n d"]
Times = Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"] | float

_QUERIES = 256  # rows compared with a whole data set at once


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    r"""Σ_c w_c N(μ_c, Σ_c) in d dimensions, with density, score and denoiser at every time of a
    process. A pytree.

    Density, score and denoiser may be differentiated twice in all arguments, in Σ too; draws once.

    Args:
        weights: w, [c], positive, of sum one.
        means: μ, [c, d].
        covariances: Σ, [c, d, d], symmetric, positive semidefinite.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, weights that are no probabilities,
            covariances that are not symmetric positive semidefinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> normal = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> normal.score(vp_sde(), 0.3, jnp.array([[1.0, -2.0]])).round(4).tolist()  # −x: it stays standard normal
        [[-1.0, 2.0]]

    Source: MATHEMATICS.md#diffusion.
    """

    def __init__(
        self,
        weights: Float[Array | np.ndarray, " c"],
        means: Float[Array | np.ndarray, "c d"],
        covariances: Float[Array | np.ndarray, "c d d"],
    ) -> None:
        """Check, and decompose the covariances."""
        self.weights, self.means, covariances = _as_mixture(weights, means, covariances)
        spreads, self._axes = jnp.linalg.eigh(lax.stop_gradient(covariances))
        self._spreads = jnp.maximum(spreads, 0)
        self._rest = None  # R; where nothing is traced there is no derivative to be had
        if not is_concrete(covariances):
            turned = jnp.einsum(
                "cji,cjk,ckl->cil", self._axes, covariances, self._axes, precision="highest"
            )
            self._rest = (turned + turned.swapaxes(1, 2)) / 2 - jax.vmap(jnp.diag)(self._spreads)

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Return weights, means, eigenvalues, eigenvectors, and what the covariances are beside
        these.
        """
        return (self.weights, self.means, self._spreads, self._axes, self._rest), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "GaussianMixture":
        """Build what was flattened."""
        self = object.__new__(cls)
        self.weights, self.means, self._spreads, self._axes, self._rest = leaves
        return self

    @property
    def covariances(self) -> Float[Array, "c d d"]:
        """Return Σ, from its decomposition."""
        inner = jax.vmap(jnp.diag)(self._spreads) + (0 if self._rest is None else self._rest)
        return jnp.einsum("cie,cef,cjf->cij", self._axes, inner, self._axes)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Return independent draws of X_0, [n, d].

        Raises:
            ValueError: n not a positive integer.
        """
        n = check_count("n", n)
        of_mode, of_noise = jax.random.split(check_key("key", key))
        mode = jax.random.choice(of_mode, len(self.weights), (n,), p=self.weights)
        normal = jax.random.normal(of_noise, (n, self.means.shape[1]), self.means.dtype)
        roots = jnp.sqrt(self._spreads)
        noise = roots[mode] * normal
        if self._rest is not None:  # the derivative of a root
            sums = roots[:, :, None] + roots[:, None, :]
            noise = noise + jnp.einsum(
                "nij,nj->ni", (self._rest / jnp.where(sums > 0, sums, jnp.inf))[mode], normal
            )
        return self.means[mode] + jnp.einsum("nie,ne->ni", self._axes[mode], noise)

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """Return the log-density log p_t(x), [n].

        Args:
            sde: the noising process.
            t: in (0, T], a scalar or [n].
            x: [n, d].

        Raises:
            ValueError: t outside (0, T]; x of another dimension, no floating-point matrix or not
                finite.
        """
        return _in_one_program(GaussianMixture._log_density, self, sde, t, x)

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return ∇log p_t(x), [n, d]; arguments and errors as :meth:`log_density`."""
        return _in_one_program(GaussianMixture._score, self, sde, t, x)

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return E[X_0 | X_t = x], [n, d]; arguments and errors as :meth:`log_density`."""
        return _in_one_program(GaussianMixture._denoise, self, sde, t, x)

    def __repr__(self) -> str:
        modes, d = jnp.shape(self.means)
        return f"GaussianMixture({modes} modes in {d} dimensions, {self.means.dtype})"

    def _log_density(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, " n"]:
        parts = self._parts(sde, t, x)
        return (
            jax.nn.logsumexp(parts.logits, axis=1)
            - parts.least[:, 0] * parts.unit[:, 0] * parts.unit[:, 0] / 2
        )

    def _score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        parts = self._parts(sde, t, x)
        weights = jax.nn.softmax(parts.logits, axis=1)
        return -parts.unit * jnp.einsum("nc,cie,nce->ni", weights, parts.axes, parts.whitened)

    def _denoise(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        parts = self._parts(sde, t, x)
        spreads = self._spreads.astype(parts.whitened.dtype)
        shift = parts.alpha[:, :, None] * (
            spreads[None] * parts.whitened + self._beside(parts.whitened)
        )
        weights = jax.nn.softmax(parts.logits, axis=1)
        mean = jnp.matmul(weights, self.means.astype(weights.dtype), precision="highest")
        return mean + parts.unit * jnp.einsum("nc,cie,nce->ni", weights, parts.axes, shift)

    def _beside(self, v: Array) -> Array | float:
        """Return R v of each mode, [n, c, d]."""
        return (
            0.0
            if self._rest is None
            else jnp.einsum("cij,ncj->nci", self._rest.astype(v.dtype), v, precision="highest")
        )

    def _parts(self, sde: VPSDE, t: Array, x: Array) -> "_Parts":
        """Return posterior weights and whitened points, in a unit in which squares of points far
        away do not overflow.

        What is left out of the logits is the same for all modes: least · unit²/2, of the mode that
        is nearest.
        """
        dtype = widest(x, self.means)
        x, means, spreads, axes = (
            each.astype(dtype) for each in (x, self.means, self._spreads, self._axes)
        )
        time = columns_of_times(t, x)
        alpha = sde.alpha(time)
        h = sde.variance(time)
        variances = (alpha**2)[:, :, None] * spreads[None] + h[:, :, None]
        centred = x[:, None, :] - alpha[:, :, None] * means[None]
        along = jnp.einsum("nci,cie->nce", centred, axes, precision="highest")
        unit = jnp.maximum(binary_scale(along, (1, 2)), 1)
        along = along / unit
        whitened = along / variances
        log_volume = jnp.sum(jnp.log(variances), axis=2)
        if self._rest is not None:
            scaled = (alpha**2)[:, :, None] / variances
            once = scaled * self._beside(whitened)
            whitened = whitened - once + scaled * self._beside(once)
            rest = self._rest.astype(dtype)
            log_volume = log_volume + jnp.einsum("cii,nci->nc", rest, scaled)
            log_volume = (
                log_volume - jnp.einsum("cij,cij,nci,ncj->nc", rest, rest, scaled, scaled) / 2
            )
        unit = unit[:, :, 0]
        squares = jnp.sum(along * whitened, axis=2)
        least = lax.stop_gradient(jnp.min(squares, axis=1, keepdims=True))
        # XLA may compute the squares again for this use, with other roundings: none may fall below
        # the least.
        behind = squares - least
        behind = behind + lax.stop_gradient(jnp.maximum(-behind, 0))
        quadratic = behind * unit * unit + log_volume
        logits = (
            jnp.log(self.weights.astype(dtype))[None]
            - (quadratic + x.shape[1] * math.log(2 * math.pi)) / 2
        )
        return _Parts(logits, whitened, axes, alpha, least, unit)


class _Parts(NamedTuple):
    """A mixture at points x and times t.

    Attributes:
        logits: joint log-densities of modes and points, but for the same number for all modes, [n,
            c].
        whitened: C_c⁻¹(x − αμ_c)/unit in the axes of each mode, [n, c, d].
        axes: U, [c, d, d].
        alpha: α, [n, 1].
        least: |C_c^{-1/2}(x − αμ_c)|²/unit² of the nearest mode, [n, 1].
        unit: a power of two, at least one, [n, 1].
    """

    logits: Array
    whitened: Array
    axes: Array
    alpha: Array
    least: Array
    unit: Array


@jax.tree_util.register_pytree_node_class
class EmpiricalDistribution:
    r"""The data set itself as a distribution: N points of weight 1/N.

    Its exact denoiser is attention over the data: E[X_0 | X_t = x] = Σ_i softmax_i(−|x −
    αx_i|²/(2h)) x_i. Sampling with its score gives the data back: the estimator that has no error
    on the training loss, and does not generalise.

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

    Source: MATHEMATICS.md#diffusion, for p_0 the empirical measure.
    """

    def __init__(self, x0: Float[Array | np.ndarray, "N d"]) -> None:
        """Check, and centre the data: differences of squares keep more digits."""
        self.points = as_rows("x0", x0)
        unit = binary_scale(self.points)
        self._centre = jnp.mean(self.points / unit, axis=0) * unit[0]

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Return the data and their mean."""
        return (self.points, self._centre), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "EmpiricalDistribution":
        """Build what was flattened."""
        self = object.__new__(cls)
        self.points, self._centre = leaves
        return self

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Return points drawn with replacement, [n, d].

        Raises:
            ValueError: n not a positive integer.
        """
        n = check_count("n", n)
        return jax.random.choice(check_key("key", key), self.points, (n,))

    def __repr__(self) -> str:
        rows, d = jnp.shape(self.points)
        return f"EmpiricalDistribution({rows} points in {d} dimensions, {self.points.dtype})"

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """Return the log-density log p_t(x), [n]; arguments and errors as
        :meth:`GaussianMixture.log_density`.
        """
        return _in_one_program(EmpiricalDistribution._attend, self, sde, t, x)[0]

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return E[X_0 | X_t = x], [n, d]; arguments and errors as
        :meth:`GaussianMixture.log_density`.
        """
        return _in_one_program(EmpiricalDistribution._attend, self, sde, t, x)[1]

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return ∇log p_t(x) = (αE[X_0 | x] − x)/h, [n, d]; arguments and errors as
        :meth:`GaussianMixture.log_density`.
        """
        return _in_one_program(EmpiricalDistribution._score, self, sde, t, x)

    def _score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        denoised = self._attend(sde, t, x)[1]
        time = columns_of_times(t, denoised)
        return (sde.alpha(time) * denoised - x) / sde.variance(time)

    def _attend(self, sde: VPSDE, t: Array, x: Array) -> tuple[Array, Array]:
        """Return log-densities and denoised points; logits ⟨c_i, p⟩ − α|c_i|²/2 in units of the
        points and of the data.
        """
        x = x.astype(widest(x, self.points))
        times = columns_of_times(t, x)[:, 0]
        centre = self._centre.astype(x.dtype)
        centred = self.points.astype(x.dtype) - centre[None]
        unit = binary_scale(centred)[0, 0]
        directions = centred / unit
        squares = jnp.sum(directions**2, axis=1)

        def attend_one(row: tuple[Array, Array]) -> tuple[Array, Array]:
            time, point = row
            alpha = sde.alpha(time)
            h = sde.variance(time)
            point = point - alpha * centre
            distance = binary_scale(point)[0]
            largest = jnp.maximum(unit, distance)
            dots = jnp.matmul(directions, point / distance, precision="highest")
            logits = (distance / largest) * dots - (unit / largest) * (alpha * squares / 2)
            # XLA computes large logits again for each use, with other roundings: none may exceed
            # the largest, which stays in.
            nearest = jnp.argmax(logits)
            behind = (logits - logits[nearest]) * (alpha * unit) * largest / h
            behind = jnp.where((behind > 0) | (jnp.arange(len(centred)) == nearest), 0, behind)
            away = point - alpha * centred[nearest]
            density = jax.nn.logsumexp(behind) - jnp.sum(away**2) / (2 * h)
            density = density - math.log(len(centred)) - len(point) / 2 * jnp.log(2 * math.pi * h)
            return density, centre + jnp.matmul(
                jax.nn.softmax(behind), centred, precision="highest"
            )

        return lax.map(attend_one, (times, x), batch_size=_QUERIES)


def _dimension(distribution: Any) -> int:
    points = (
        distribution.means if isinstance(distribution, GaussianMixture) else distribution.points
    )
    return points.shape[1]


def _in_one_program(method: Callable, distribution: Any, sde: VPSDE, t: Times, x: Points) -> Any:
    """Return what a method of a distribution gives at checked times and points, compiled where its
    arguments are arrays.
    """
    t, x = as_points(check_sde(sde), t, x, _dimension(distribution))
    if all(map(eqx.is_array, jax.tree.leaves(sde))):
        return _run(method, distribution, sde, t, x)
    # A process of a user that is no pytree: no argument of a program.
    return method(distribution, sde, t, x)


@jax.jit(static_argnums=0)
def _run(method: Callable, distribution: Any, sde: VPSDE, t: Array, x: Array) -> Any:
    return method(distribution, sde, t, x)


def _as_mixture(weights: Any, means: Any, covariances: Any) -> tuple[Array, Array, Array]:
    """Return the arrays of a mixture, in the widest of their dtypes.

    Raises:
        ValueError: they do not describe one.
    """
    given = weights, covariances  # under jit whatever JAX converts is traced
    means = as_rows("means", means, half=False)
    weights = as_floating("weights", weights, half=False)
    covariances = as_floating("covariances", covariances, half=False)
    c, d = means.shape
    if weights.shape != (c,) or covariances.shape != (c, d, d):
        raise ValueError(
            f"for means of shape {(c, d)}, weights must be of shape {(c,)} and covariances {(c, d, d)}, "
            f"got {weights.shape} and {covariances.shape}. A variance v a coordinate is v * jnp.eye(d)."
        )
    if all(map(is_concrete, jax.tree.leaves(given[0]))):
        values = np.asarray(given[0], np.float64)
        if not (values > 0).all() or abs(values.sum() - 1) > 1e-5:
            raise ValueError(
                f"weights must be positive and sum to one, got {values} of sum {values.sum():.6g}."
            )
    if all(map(is_concrete, jax.tree.leaves(given[1]))):
        values = np.asarray(given[1], np.float64)
        largest = np.abs(values).max(axis=(1, 2))
        check_symmetric("covariances", values)
        smallest = np.linalg.eigvalsh(values)[:, 0]
        if (smallest < -1e-5 * largest).any():
            raise ValueError(
                f"covariances must be positive semidefinite, the smallest eigenvalues are {smallest}."
            )
    dtype = widest(weights, means, covariances)
    return weights.astype(dtype), means.astype(dtype), covariances.astype(dtype)


def check_symmetric(name: str, matrices: np.ndarray) -> None:
    """Refuse matrices [c, d, d] of which one is not symmetric."""
    largest = np.abs(matrices).max(axis=(1, 2))
    if (np.abs(matrices - matrices.transpose(0, 2, 1)).max(axis=(1, 2)) > 1e-5 * largest).any():
        raise ValueError(f"{name} must be symmetric, at least one is not.")
