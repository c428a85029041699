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
    square, scale = _scaled_square(p.A)
    square = np.asarray(square, np.float64)
    if matrices.is_sparse(p.A):
        # The Gram matrix squares the condition number.
        eigenvalues = np.linalg.eigvalsh(square)
        error = 2 * math.sqrt(n) * eps * eigenvalues[-1]
        max_value = math.sqrt(max(eigenvalues[-1] + error, 0.0))
        min_value = math.sqrt(max(eigenvalues[0] - error, 0.0))
    else:
        singular_values = np.linalg.svd(square, compute_uv=False)
        error = 2 * math.sqrt(n) * eps * singular_values[0]
        max_value = singular_values[0] + error
        min_value = max(singular_values[-1] - error, 0.0)
    # A of fewer rows than columns has a null space.
    return float(max_value) * float(scale), float(min_value) * float(scale) if n >= d else 0.0


@jax.jit
def _scaled_square(A: matrices.DesignMatrix) -> tuple[Array, Array]:
    """Return a small matrix with the singular values of A/s, and s; their squares if A is sparse.

    Dense: R of the QR decomposition. A sparse matrix has no QR here: its Gram matrix.
    """
    n, _ = matrices.shape(A)
    scaled_matrix = matrices.scale_to_unit(A)
    scale = binary_scale(matrices.entries(A)).squeeze()
    if matrices.is_sparse(A):
        return matrices.gram(scaled_matrix, jnp.ones(n, matrices.dtype(A))), scale
    return jnp.linalg.qr(scaled_matrix, mode="r"), scale


def adjoint_norm(p: Problem, v: Float[np.ndarray, " n"]) -> float:
    """Return ‖Aᵀv‖, with A and v scaled to order one first."""
    max_entry = float(np.abs(v).max())
    if max_entry == 0:
        return 0.0
    product, scale = _scaled_adjoint(p.A, jnp.asarray(v / max_entry, p.dtype))
    product_norm = float(host_norm(np.asarray(product, np.float64)))
    return multiply(product_norm, max_entry, float(scale))


@jax.jit
def _scaled_adjoint(A: matrices.DesignMatrix, v: Array) -> tuple[Array, Array]:
    """Return (A/s)ᵀv and s."""
    scale = binary_scale(matrices.entries(A)).squeeze()
    return matrices.adjoint(matrices.scale_to_unit(A), v), scale
