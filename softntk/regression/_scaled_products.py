"""Products, norms and singular values on the host that saturate instead of overflowing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale, host_norm
from softntk.regression._problem import Problem

# e^t is a number of float64 below this t.
MAX_EXPONENT = 700.0


def multiply(*factors: float) -> float:
    """Return the product of numbers ≥ 0, infinite where it overflows; zero times infinity is 0."""
    return 0.0 if 0.0 in factors else math.prod(map(float, factors))


def exp_or_inf(t: float) -> float:
    """Return e^t, infinite where it overflows."""
    return math.exp(t) if t < MAX_EXPONENT else math.inf


def bound_singular_values(p: Problem) -> tuple[float, float]:
    """Return (‖A‖ from above, σ_min(A) from below); zero where σ_min may be rounding."""
    n, d = p.shape
    eps = float(np.finfo(p.dtype).eps)
    if matrices.is_sparse(p.A):
        # A sparse matrix has no QR here, and its Gram matrix squares the condition number.
        square, scale = _scaled_gram(p.A)
        eigenvalues = np.linalg.eigvalsh(np.asarray(square, np.float64))
        error = 2 * math.sqrt(n) * eps * eigenvalues[-1]
        max_value = math.sqrt(max(eigenvalues[-1] + error, 0.0))
        min_value = math.sqrt(max(eigenvalues[0] - error, 0.0))
    else:
        scaled_matrix, scale = _on_host_scaled(p.A)
        singular_values = np.linalg.svd(np.linalg.qr(scaled_matrix, mode="r"), compute_uv=False)
        error = 2 * math.sqrt(n) * eps * singular_values[0]
        max_value = singular_values[0] + error
        min_value = max(singular_values[-1] - error, 0.0)
    # A of fewer rows than columns has a null space.
    return float(max_value) * float(scale), float(min_value) * float(scale) if n >= d else 0.0


@jax.jit
def _scaled_gram(A: matrices.DesignMatrix) -> tuple[Array, Array]:
    """Return AᵀA/s² and s."""
    n, _ = matrices.shape(A)
    scaled_matrix = matrices.scale_to_unit(A)
    scale = binary_scale(matrices.entries(A)).squeeze()
    return matrices.gram(scaled_matrix, jnp.ones(n, matrices.dtype(A))), scale


def _on_host_scaled(A: matrices.DesignMatrix) -> tuple[np.ndarray, float]:
    """Return A/s in float64, dense, and s, the largest modulus; nothing is compiled for it."""
    matrix = np.asarray(matrices.to_dense(A), np.float64)
    max_entry = float(np.abs(matrix).max(initial=0))
    scale = max_entry if max_entry > 0 else 1.0
    return matrix / scale, scale


def adjoint_norm(p: Problem, v: Float[np.ndarray, " n"]) -> float:
    """Return ‖Aᵀv‖, with A and v scaled to order one first."""
    max_entry = float(np.abs(v).max())
    if max_entry == 0:
        return 0.0
    unit_vector = v / max_entry
    if matrices.is_sparse(p.A):
        product, scale = _scaled_adjoint(p.A, jnp.asarray(unit_vector, p.dtype))
    else:
        scaled_matrix, scale = _on_host_scaled(p.A)
        product = scaled_matrix.T @ np.asarray(unit_vector, np.float64)
    product_norm = float(host_norm(np.asarray(product, np.float64)))
    return multiply(product_norm, max_entry, float(scale))


@jax.jit
def _scaled_adjoint(A: matrices.DesignMatrix, v: Array) -> tuple[Array, Array]:
    """Return (A/s)ᵀv and s."""
    scale = binary_scale(matrices.entries(A)).squeeze()
    return matrices.adjoint(matrices.scale_to_unit(A), v), scale
