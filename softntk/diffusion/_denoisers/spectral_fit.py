r"""Kernel least squares in the span of M landmarks, along the whole path of gradient flow at once.

With landmarks Z, the features φ(z) = Rᵀk(Z, z), R Rᵀ = K_ZZ⁻¹, span the best approximation of the
kernel by M functions: ⟨φ(z), φ(z')⟩ ≈ k(z, z'), exactly so at landmarks. Gradient flow on 1/(2N) Σ
‖wᵀφ(z_i) − y_i‖² from zero gives, with G = ΦᵀΦ/N = V E Vᵀ and b = Φᵀy/N,

    w(τ) = V f_τ(E) Vᵀ b,     f_τ(e) = (1 − e^{−τe})/e   (ridge regression: 1/(e + 1/τ)),

so one decomposition of an M × M matrix knows every stopping time, and sums over other samples know
the error of every one of them: ‖y‖²/N' − 2⟨w, b'⟩ + ⟨w, G'w⟩. Samples are read once, in blocks;
nothing of size N² or N·M is held.

Source: Williams and Seeger (2001), NIPS 13 (Nyström); Rudi, Camoriano and Rosasco (2015), arXiv
1507.04717 (M of the order of √N loses nothing); Yao, Rosasco and Caponnetto (2007), Constr. Approx.
26, 289-315 (early stopping as a filter).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from softntk._linalg.blocks import split_into_blocks
from softntk._linalg.kernel_eigenbasis import cross_validated_ridge
from softntk._linalg.products import product

FILTERS = ("flow", "ridge")
_BLOCK = 2048
_GRID = 81  # stopping times tried, over ten decades
_INFLATION = 1.4  # of the degrees of freedom, as in theory.noise_level


class Moments(NamedTuple):
    """Sums over samples: ΦᵀΦ [M, M], Φᵀy [M, k], ‖y‖² [k] and how many."""

    gram: Array
    right: Array
    squares: Array
    count: Array


class Path(NamedTuple):
    """A decomposition G = VEVᵀ and the targets along it, VᵀΦᵀy/N; of ascending eigenvalues."""

    eigenvalues: Array
    vectors: Array
    components: Array

    def weights(self, tau: Array, kind: str) -> Float[Array, "M k"]:
        """Return w(τ)."""
        return product(
            self.vectors, filtered(self.eigenvalues, tau, kind)[:, None] * self.components
        )


def filtered(eigenvalues: Float[Array, " M"], tau: Array, kind: str) -> Float[Array, " M"]:
    """Return f_τ(e), without cancellation at small τe."""
    if kind == "ridge":
        return tau / (1 + tau * eigenvalues)
    product_ = tau * eigenvalues
    return tau * jnp.where(
        product_ > 1e-6, -jnp.expm1(-product_) / jnp.where(product_ > 1e-6, product_, 1), 1.0
    )


@partial(jax.jit, static_argnums=0)
def whitening(
    kernel_of: Callable, sigma: Array, landmarks: Float[Array, "M p"]
) -> Float[Array, "M M"]:
    """Return R with R Rᵀ = K_ZZ⁻¹, zero where the kernel is lost in rounding."""
    values, vectors = jnp.linalg.eigh(kernel_of(sigma, landmarks))
    kept = values > len(values) * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)[None, :] * vectors


@partial(jax.jit, static_argnums=0)
def moments(
    kernel_of: Callable,
    sigma: Array,
    landmarks: Float[Array, "M p"],
    root: Float[Array, "M M"],
    points: Float[Array, "N p"],
    targets: Float[Array, "N k"],
    there: Float[Array, " N"],
) -> Moments:
    """Return the sums over those samples that are there (1, not 0), in one pass."""
    size = min(_BLOCK, len(points))
    blocks = (
        split_into_blocks(points, size),
        split_into_blocks(targets, size),
        split_into_blocks(there, size),
    )

    def add(total: Moments, block: tuple[Array, Array, Array]) -> tuple[Moments, None]:
        z, y, one = block
        # The last block is filled up with zeros, at which a kernel need not be defined: a landmark
        # stands in.
        z = jnp.where(one[:, None] > 0, z, landmarks[:1])
        features, y = one[:, None] * product(kernel_of(sigma, z, landmarks), root), one[:, None] * y
        here = Moments(
            product(features.T, features),
            product(features.T, y),
            jnp.sum(y**2, axis=0),
            jnp.sum(one),
        )
        return Moments(*map(jnp.add, total, here)), None

    m, k, dtype = len(landmarks), targets.shape[1], targets.dtype
    zero = Moments(
        jnp.zeros((m, m), dtype),
        jnp.zeros((m, k), dtype),
        jnp.zeros(k, dtype),
        jnp.zeros((), dtype),
    )
    return lax.scan(add, zero, blocks)[0]


@jax.jit
def path(sums: Moments) -> Path:
    """Return the decomposition of G = ΦᵀΦ/N."""
    values, vectors = jnp.linalg.eigh(sums.gram / sums.count)
    return Path(jnp.maximum(values, 0), vectors, product(vectors.T, sums.right / sums.count))


def grid(found: Path) -> Float[Array, " g"]:
    """Return stopping times to try, from before the first direction is learnt to where rounding is."""
    return jnp.logspace(-2, 8, _GRID, dtype=found.eigenvalues.dtype) / found.eigenvalues[-1]


@partial(jax.jit, static_argnums=3)
def held_out_errors(
    found: Path, others: Moments, taus: Float[Array, " g"], kind: str
) -> Float[Array, " g"]:
    """Return 1/N' Σ ‖wᵀφ − y‖² over other samples, for every stopping time."""

    def one(tau: Array) -> Array:
        w = found.weights(tau, kind)
        quadratic = (
            jnp.sum(w * product(others.gram, w))
            - 2 * jnp.sum(w * others.right)
            + jnp.sum(others.squares)
        )
        return quadratic / others.count

    return lax.map(one, taus)


def noise_and_norm(found: Path, sums: Moments) -> tuple[float, float]:
    """Return the standard deviation of the labels' noise, and norm of the function below it, for
    each output on average.

    Both by generalised cross-validation, as in :func:`softntk.theory.noise_level`: the N − M
    directions outside of the span have eigenvalue zero.
    """
    n, k = int(sums.count), sums.right.shape[1]
    values, components = (
        np.asarray(part, np.float64) for part in (found.eigenvalues, found.components)
    )
    known = values > len(values) * float(jnp.finfo(found.eigenvalues.dtype).eps) * values[-1]
    along = np.sqrt(n / values[known])[:, None] * components[known]
    rest = np.maximum(np.asarray(sums.squares, np.float64) - np.sum(along**2, axis=0), 0)
    outside = n - len(along)  # of these one direction has all that is left of the targets
    padded = n * values[known]
    if outside > 0:
        along, padded = np.concatenate([along, np.sqrt(rest)[None]]), np.append(padded, 0.0)
    smallest = 1e-3 * n * float(values[known].min())
    ridge, variance = cross_validated_ridge(
        padded, along, smallest, _INFLATION, max(outside - 1, 0)
    )
    norm = np.sqrt(np.sum((components / (values + ridge / n)[:, None]) ** 2) / k)
    return float(np.sqrt(variance)), float(norm)
