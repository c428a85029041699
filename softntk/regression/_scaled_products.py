"""Products, norms and singular values on the host that saturate instead of overflowing."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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
    A = matrices.scale_to_unit(p.A)
    scale = float(binary_scale(matrices.entries(p.A)).squeeze())
    if matrices.is_sparse(A):
        # A sparse matrix has no QR here. The Gram matrix squares the condition number.
        gram = np.asarray(matrices.gram(A, jnp.ones(n, p.dtype)), np.float64)
        eigenvalues = np.linalg.eigvalsh(gram)
        error = 2 * math.sqrt(n) * eps * eigenvalues[-1]
        max_value = math.sqrt(max(eigenvalues[-1] + error, 0.0))
        min_value = math.sqrt(max(eigenvalues[0] - error, 0.0))
    else:
        # R of the QR decomposition has the singular values of A.
        triangle = np.asarray(jnp.linalg.qr(A, mode="r"), np.float64)
        singular_values = np.linalg.svd(triangle, compute_uv=False)
        error = 2 * math.sqrt(n) * eps * singular_values[0]
        max_value = singular_values[0] + error
        min_value = max(singular_values[-1] - error, 0.0)
    # A of fewer rows than columns has a null space.
    return float(max_value) * scale, float(min_value) * scale if n >= d else 0.0


def adjoint_norm(p: Problem, v: Float[np.ndarray, " n"]) -> float:
    """Return ‖Aᵀv‖, with A and v scaled to order one first."""
    A = matrices.scale_to_unit(p.A)
    scale = float(binary_scale(matrices.entries(p.A)).squeeze())
    max_entry = float(np.abs(v).max())
    if max_entry == 0:
        return 0.0
    scaled_product = matrices.adjoint(A, jnp.asarray(v / max_entry, p.dtype))
    return multiply(float(host_norm(np.asarray(scaled_product, np.float64))), max_entry, scale)
