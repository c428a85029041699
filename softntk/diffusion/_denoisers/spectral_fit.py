r"""Kernel least squares in the span of M landmarks, along the whole path of gradient flow at once.

With landmarks Z, the features φ(z) = Rᵀk(Z, z), R Rᵀ = K_ZZ⁻¹, span the best approximation of the
kernel by M functions: ⟨φ(z), φ(z')⟩ ≈ k(z, z'), with equality at landmarks. Gradient flow on
1/(2N) Σ ‖wᵀφ(z_i) − y_i‖² from zero gives, with G = ΦᵀΦ/N = V E Vᵀ and b = Φᵀy/N,

    w(τ) = V f_τ(E) Vᵀ b,     f_τ(e) = (1 − e^{−τe})/e   (ridge regression: 1/(e + 1/τ)).

So one decomposition of an M × M matrix gives the fit at every stopping time. Sums over other
samples give the error of every such fit: ‖y‖²/N' − 2⟨w, b'⟩ + ⟨w, G'w⟩. Samples are read once, in
blocks; nothing of size N² or N·M is stored.

    ========  ===================================  ==========
    symbol    name                                 shape
    ========  ===================================  ==========
    Z         ``landmarks``                        [M, p]
    R         ``whitening_matrix``                 [M, M]
    ΦᵀΦ, Φᵀy  ``Moments.gram``, ``Moments.right``  [M, M], [M, k]
    E, V      ``eigenvalues``, ``vectors``         [M], [M, M]
    Vᵀb       ``Path.components``                  [M, k]
    τ         ``tau``, a stopping time             []
    ========  ===================================  ==========

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
BLOCK_ROWS = 2048
"""Number of samples whose features are formed at once."""

STOPPING_TIME_COUNT = 81
"""Number of stopping times that are tried, over ten decades."""

DEGREES_OF_FREEDOM_FACTOR = 1.4
"""Inflation of the degrees of freedom in cross-validation, as in ``theory.noise_level``."""

SMALL_EXPONENT = 1e-6
"""Below this τe the filter f_τ(e) is τ to rounding."""


class Moments(NamedTuple):
    """Sums over samples.

    Attributes:
        gram: ΦᵀΦ, [M, M].
        right: Φᵀy, [M, k].
        squares: ‖y‖² of each output, [k].
        count: number of samples, a scalar.
    """

    gram: Array
    right: Array
    squares: Array
    count: Array


class Path(NamedTuple):
    """A decomposition G = VEVᵀ, which gives the fit at every stopping time.

    Attributes:
        eigenvalues: E, [M], ascending.
        vectors: V, [M, M].
        components: VᵀΦᵀy/N, [M, k].
    """

    eigenvalues: Array
    vectors: Array
    components: Array

    def weights(self, tau: Array, kind: str) -> Float[Array, "M k"]:
        """Return w(τ) for the filter ``kind``."""
        filter_values = filter_function(self.eigenvalues, tau, kind)
        return product(self.vectors, filter_values[:, None] * self.components)


def filter_function(eigenvalues: Float[Array, " M"], tau: Array, kind: str) -> Float[Array, " M"]:
    """Return f_τ(e), without cancellation at small τe."""
    # Ridge regression with ridge N/τ has the filter 1/(e + 1/τ).
    if kind == "ridge":
        return tau / (1 + tau * eigenvalues)
    exponents = tau * eigenvalues
    # (1 − e^{−τe})/e = τ (1 − e^{−x})/x with x = τe, which tends to τ.
    is_resolved = exponents > SMALL_EXPONENT
    safe_exponents = jnp.where(is_resolved, exponents, 1)
    return tau * jnp.where(is_resolved, -jnp.expm1(-exponents) / safe_exponents, 1.0)


@partial(jax.jit, static_argnums=0)
def whitening(
    kernel_of: Callable, sigma: Array, landmarks: Float[Array, "M p"]
) -> Float[Array, "M M"]:
    """Return R with R Rᵀ = K_ZZ⁻¹, zero where the kernel's eigenvalues are rounding."""
    # R = V E^{−1/2}, for K_ZZ = V E Vᵀ.
    eigenvalues, eigenvectors = jnp.linalg.eigh(kernel_of(sigma, landmarks))
    rounding = len(eigenvalues) * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    is_resolved = eigenvalues > rounding
    inverse_roots = jnp.where(is_resolved, 1 / jnp.sqrt(jnp.where(is_resolved, eigenvalues, 1)), 0)
    return inverse_roots[None, :] * eigenvectors


@partial(jax.jit, static_argnums=0)
def moments(
    kernel_of: Callable,
    sigma: Array,
    landmarks: Float[Array, "M p"],
    whitening_matrix: Float[Array, "M M"],
    points: Float[Array, "N p"],
    targets: Float[Array, "N k"],
    mask: Float[Array, " N"],
) -> Moments:
    """Return the sums over those samples whose mask is 1, not 0, in one pass."""
    # 1. Split the samples into blocks; the last one is filled up with zeros, mask 0.
    block_rows = min(BLOCK_ROWS, len(points))
    blocks = (
        split_into_blocks(points, block_rows),
        split_into_blocks(targets, block_rows),
        split_into_blocks(mask, block_rows),
    )

    # 2. Add up the sums of all blocks.
    def add_block(total: Moments, block: tuple[Array, Array, Array]) -> tuple[Moments, None]:
        z, y, block_mask = block
        # A kernel need not be defined at the zeros of the last block: a landmark replaces them.
        z = jnp.where(block_mask[:, None] > 0, z, landmarks[:1])
        features = block_mask[:, None] * product(kernel_of(sigma, z, landmarks), whitening_matrix)
        y = block_mask[:, None] * y
        block_sums = Moments(
            product(features.T, features),
            product(features.T, y),
            jnp.sum(y**2, axis=0),
            jnp.sum(block_mask),
        )
        return Moments(*map(jnp.add, total, block_sums)), None

    dtype = targets.dtype
    landmark_count = len(landmarks)
    output_count = targets.shape[1]
    zero_sums = Moments(
        jnp.zeros((landmark_count, landmark_count), dtype),
        jnp.zeros((landmark_count, output_count), dtype),
        jnp.zeros(output_count, dtype),
        jnp.zeros((), dtype),
    )
    return lax.scan(add_block, zero_sums, blocks)[0]


@jax.jit
def path(sums: Moments) -> Path:
    """Return the decomposition of G = ΦᵀΦ/N."""
    # Rounding may make an eigenvalue of G slightly negative.
    eigenvalues, vectors = jnp.linalg.eigh(sums.gram / sums.count)
    components = product(vectors.T, sums.right / sums.count)
    return Path(jnp.maximum(eigenvalues, 0), vectors, components)


def stopping_grid(fit_path: Path) -> Float[Array, " g"]:
    """Return stopping times to try, evenly in their logarithm.

    They start before the first direction is learnt, and end where the smallest is rounding.
    """
    dtype = fit_path.eigenvalues.dtype
    return jnp.logspace(-2, 8, STOPPING_TIME_COUNT, dtype=dtype) / fit_path.eigenvalues[-1]


@partial(jax.jit, static_argnums=3)
def held_out_errors(
    fit_path: Path, held_out: Moments, taus: Float[Array, " g"], kind: str
) -> Float[Array, " g"]:
    """Return 1/N' Σ ‖wᵀφ − y‖² over held-out samples, for every stopping time."""

    def error_at(tau: Array) -> Array:
        weights = fit_path.weights(tau, kind)
        # ‖y − Φw‖², expanded into the sums: no sample is read again.
        total_error = (
            jnp.sum(weights * product(held_out.gram, weights))
            - 2 * jnp.sum(weights * held_out.right)
            + jnp.sum(held_out.squares)
        )
        return total_error / held_out.count

    return lax.map(error_at, taus)


def noise_and_norm(fit_path: Path, sums: Moments) -> tuple[float, float]:
    """Return the standard deviation of the labels' noise and the norm of the function below it.

    Both are averages over the outputs, by generalised cross-validation as in
    :func:`softntk.theory.noise_level`. The N − M directions outside of the landmarks' span have
    eigenvalue zero.
    """
    # 1. Convert to float64 on the host, and select the eigenvalues beyond rounding.
    sample_count = int(sums.count)
    output_count = sums.right.shape[1]
    eigenvalues = np.asarray(fit_path.eigenvalues, np.float64)
    components = np.asarray(fit_path.components, np.float64)
    machine_epsilon = float(jnp.finfo(fit_path.eigenvalues.dtype).eps)
    is_resolved = eigenvalues > len(eigenvalues) * machine_epsilon * eigenvalues[-1]
    # 2. Project the targets on the eigenvectors of the N × N kernel; one more direction has all
    # that lies outside of the span.
    projections = np.sqrt(sample_count / eigenvalues[is_resolved])[:, None]
    projections = projections * components[is_resolved]
    squares = np.asarray(sums.squares, np.float64)
    outside_squares = np.maximum(squares - np.sum(projections**2, axis=0), 0)
    outside_count = sample_count - len(projections)
    kernel_eigenvalues = sample_count * eigenvalues[is_resolved]
    smallest_ridge = 1e-3 * sample_count * float(eigenvalues[is_resolved].min())
    if outside_count > 0:
        projections = np.concatenate([projections, np.sqrt(outside_squares)[None]])
        kernel_eigenvalues = np.append(kernel_eigenvalues, 0.0)
    # 3. Choose the ridge by cross-validation: it gives the variance, and the fit with its norm.
    ridge, variance = cross_validated_ridge(
        kernel_eigenvalues,
        projections,
        smallest_ridge,
        DEGREES_OF_FREEDOM_FACTOR,
        max(outside_count - 1, 0),
    )
    coefficients = components / (eigenvalues + ridge / sample_count)[:, None]
    norm = np.sqrt(np.sum(coefficients**2) / output_count)
    return float(np.sqrt(variance)), float(norm)
