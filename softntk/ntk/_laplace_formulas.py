"""Formulas of the linearised Laplace posterior: its factor, evidence, covariance, probabilities.

The symbols are those of :mod:`softntk.ntk._laplace`.
"""

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._linalg.products import product
from softntk._output_losses import OUTPUT_LOSSES, OutputCurvature

# The loss −log p(y|f) of each likelihood, but for the normalisation of the Gaussian.
LIKELIHOODS = {"gaussian": "squared", "softmax": "cross_entropy"}
# π/8 of the probit approximation.
PROBIT_FACTOR = np.pi / 8
# Bytes of the largest matrix that is factorised.
MAX_MATRIX_BYTES = 2**33


def check_matrix_size(size: int, dtype: jnp.dtype) -> None:
    """Refuse a matrix that does not fit into memory."""
    size_in_bytes = size**2 * jnp.dtype(dtype).itemsize
    if size_in_bytes > MAX_MATRIX_BYTES:
        raise ValueError(
            f"x and y give a matrix [{size}, {size}] of {size_in_bytes / 2**30:.0f} GiB, more than "
            f"{MAX_MATRIX_BYTES / 2**30:.0f} GiB. Take a subset of the points: the covariance is "
            "then larger than it need be, never too small."
        )


def _curvature(likelihood: str, noise: Array, outputs: Array, targets: Array) -> OutputCurvature:
    """Return the curvature of −log p(Y|F) in the outputs, Λ = I/noise for the Gaussian."""
    curvature = OUTPUT_LOSSES[LIKELIHOODS[likelihood]].curvature(outputs, targets)
    if likelihood == "softmax":
        return curvature
    deviation = jnp.sqrt(noise)
    return curvature._replace(root=lambda t: t / deviation, root_transposed=lambda t: t / deviation)


def output_factor(
    likelihood: str,
    ridge: Array,
    noise: Array,
    outputs: Float[Array, "n k"],
    targets: Float[Array, "n k"],
    kernel: Float[Array, "n n k k"],
) -> Float[Array, "p p"]:
    """Return L of QᵀKQ + δI."""
    # K [n·k, n·k] → QᵀK → (QᵀK Q)
    n, k = outputs.shape
    curvature = _curvature(likelihood, noise, outputs, targets)
    rows = jax.vmap(curvature.root_transposed)
    half = rows(kernel.transpose(0, 2, 1, 3).reshape(n * k, n, k)).reshape(n * k, n * k)
    whitened = rows(half.T.reshape(n * k, n, k)).reshape(n * k, n * k)
    whitened = 0.5 * (whitened + whitened.T)
    return jnp.linalg.cholesky(whitened + ridge * jnp.eye(n * k, dtype=outputs.dtype))


def sum_log_diagonal(factor: Float[Array, "*s p p"]) -> Float[Array, ""]:
    """Return ½ log det(LLᵀ), summed over all factors L."""
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)))


@jax.jit(static_argnums=0)
def factorise(
    likelihood: str,
    ridge: Array,
    noise: Array,
    outputs: Float[Array, "n k"],
    targets: Float[Array, "n k"],
    kernel: Float[Array, "n n k k"],
    distance: Float[Array, ""],
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """Return L of QᵀKQ + δI, and the log evidence."""
    factor = output_factor(likelihood, ridge, noise, outputs, targets, kernel)
    losses = OUTPUT_LOSSES[LIKELIHOODS[likelihood]].values(outputs, targets)
    log_likelihood = -jnp.sum(losses) / noise
    if likelihood == "gaussian":
        log_likelihood = log_likelihood - 0.5 * outputs.size * jnp.log(2 * jnp.pi * noise)
    half_log_det = sum_log_diagonal(factor) - 0.5 * outputs.size * jnp.log(ridge)
    return factor, log_likelihood - 0.5 * ridge * distance - half_log_det


@jax.jit(static_argnums=0)
def posterior_covariance(
    likelihood: str,
    ridge: Array,
    noise: Array,
    factor: Float[Array, "p p"],
    outputs: Float[Array, "n k"],
    targets: Float[Array, "n k"],
    kernel: Float[Array, "t k k"],
    cross: Float[Array, "t n k k"],
) -> Float[Array, "t k k"]:
    """Return (K_** − K_*X Q (QᵀKQ + δI)⁻¹ QᵀK_X*)/δ of each test point."""
    t, n, k = cross.shape[:3]
    curvature = _curvature(likelihood, noise, outputs, targets)
    rows = cross.transpose(0, 2, 1, 3).reshape(t * k, n, k)
    right = jax.vmap(curvature.root_transposed)(rows).reshape(t * k, n * k)
    solved = jax.scipy.linalg.solve_triangular(factor, right.T, lower=True)  # [n·k, t·k]
    columns = solved.T.reshape(t, k, n * k)
    return (kernel - product(columns, columns.transpose(0, 2, 1))) / ridge


def class_probabilities(
    means: Float[Array, "t k"],
    covariance: Float[Array, "t k k"],
    draws: int | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "t k"]:
    """Return the mean of softmax(f): by the probit approximation, or over draws of f."""
    if draws is None or key is None:
        return probit_probabilities(means, covariance)
    return sampled_probabilities(key, draws, means, covariance)


@jax.jit
def probit_probabilities(
    means: Float[Array, "t k"], covariance: Float[Array, "t k k"]
) -> Float[Array, "t k"]:
    """Return softmax(f/√(1 + π/8 Var f)), or the same of the logistic function."""
    variances = jnp.maximum(jnp.diagonal(covariance, axis1=1, axis2=2), 0)
    return _probabilities(means / jnp.sqrt(1 + PROBIT_FACTOR * variances))


def _probabilities(logits: Float[Array, "*s k"]) -> Float[Array, "*s k"]:
    """Return softmax along the outputs, or the logistic function of a single one."""
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


@jax.jit(static_argnums=1)
def sampled_probabilities(
    key: PRNGKeyArray, draws: int, means: Float[Array, "t k"], covariance: Float[Array, "t k k"]
) -> Float[Array, "t k"]:
    """Return the mean of softmax(f) over draws of f ~ N(mean, covariance)."""
    # By eigenvectors: the covariance may be singular up to rounding.
    eigenvalues, vectors = jnp.linalg.eigh(covariance)
    roots = vectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None, :]

    def add_draw(total: Array, draw_key: PRNGKeyArray) -> tuple[Array, None]:
        noise = jax.random.normal(draw_key, means.shape, means.dtype)
        logits = means + jnp.einsum("tij,tj->ti", roots, noise, precision="highest")
        return total + _probabilities(logits), None

    total, _ = jax.lax.scan(add_draw, jnp.zeros_like(means), jax.random.split(key, draws))
    return total / draws
