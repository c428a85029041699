"""Eigendecomposition of kernels in float64 on the host, and the ridge by cross-validation."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import as_floating
from softntk._core.validation.on_host import as_double, as_host_targets, check_known, on_host
from softntk._linalg.gram_arrays import Gram, as_gram
from softntk._linalg.norms import host_norm

GRID_SIZE = 60
"""Ridges tried in each pass of the search for the minimum of the criterion."""

ZOOM_PASSES = 4
"""Passes of that search, each between the neighbours of the best ridge of the pass before."""


class Decomposition(NamedTuple):
    """The eigendecomposition of a kernel, K ≈ V diag(λ) Vᵀ.

    Attributes:
        values: λ, [n], ascending.
        vectors: V, [n, n], eigenvectors in columns.
        error: bound of ‖K − V diag(λ) Vᵀ‖ in operator norm.
    """

    values: np.ndarray
    vectors: np.ndarray
    error: float


def decompose(gram: Gram) -> Decomposition:
    """Return the eigendecomposition of a kernel, as a matrix [n, n] or [nk, nk], in float64.

    The error is 2√n ε λ_max with ε of the kernel's own precision (its entries are rounded), plus
    half of its asymmetry.

    Raises:
        ValueError: as for :func:`softntk._linalg.gram_arrays.as_gram`; a traced kernel.
    """
    # 1. Check the kernel, in a context where float64 is not rounded to float32.
    check_known("gram", gram)
    with on_host():
        if getattr(gram, "dtype", None) == np.longdouble:
            gram = as_double("gram", gram)
        # A NumPy array stays what it is, and as_gram refuses a function with a message of its own.
        if not (callable(gram) or isinstance(gram, np.ndarray)):
            gram = as_floating("gram", gram)
        as_gram(gram)
    # 2. Decompose the symmetric part of its matrix; halves first, because the sum may overflow.
    matrix = np.asarray(gram, np.float64)
    if matrix.ndim == 4:
        matrix = matrix.transpose(0, 2, 1, 3).reshape(matrix.shape[0] * matrix.shape[2], -1)
    asymmetry = 0.5 * float(host_norm(matrix - matrix.T))
    values, vectors = np.linalg.eigh(0.5 * matrix + 0.5 * matrix.T)
    eps = float(max(jnp.finfo(gram.dtype).eps, np.finfo(np.float64).eps))
    rounding_error = 2 * len(values) ** 0.5 * eps * float(np.abs(values).max())
    return Decomposition(values, vectors, rounding_error + asymmetry)


def as_target_matrix(gram: Gram, y: Float[Array | np.ndarray, "..."]) -> np.ndarray:
    """Return the targets in float64 as columns [n, k], or [nk, 1] for a kernel of all outputs.

    Raises:
        ValueError: y is of integers, not finite, or does not fit the kernel.
    """
    shape = np.shape(gram)
    if len(shape) == 4:
        return as_host_targets("y", y, shape[0], shape[2]).reshape(-1, 1)
    return as_host_targets("y", y, shape[0] if shape else 0)


def check_positive_part(name: str, values: np.ndarray) -> None:
    """Refuse ascending eigenvalues of which none is positive."""
    if not values[-1] > 0:
        is_gram = name == "gram"
        requirement = "a positive eigenvalue" if is_gram else "a positive one among them"
        raise ValueError(
            f"{name} must have {requirement}, but the largest is {values[-1]:.3g}. Is it a kernel?"
        )


def target_unit(x: np.ndarray) -> float:
    """Return a power of two near max|x|, and one for zeros.

    Dividing by it rounds nothing, and squares of the quotients do not overflow.
    """
    max_modulus = float(np.max(np.abs(x), initial=0.0))
    if not (max_modulus > 0 and math.isfinite(max_modulus)):
        return 1.0
    # Above the smallest normal number, which is 2^-1022.
    return math.ldexp(1.0, max(math.frexp(max_modulus)[1] - 1, -1021))


def cross_validated_ridge(
    values: np.ndarray,
    components: np.ndarray,
    smallest: float,
    inflation: float = 1.0,
    outside: int = 0,
) -> tuple[float, float]:
    """Return the ridge that minimises generalised cross-validation, and its noise variance.

    The criterion is V(ρ) = n‖(I−A)y‖²/tr(I−γA)² with A = K (K + ρI)⁻¹. With the eigenvalues
    w = ρ/(λ+ρ) of I − A,

        V(ρ) = n Σ w²c² / (Σ (1 − γ(1−w)))²,        σ² = Σ w²c² / (k Σ w).

    Args:
        values: λ, [n], not negative.
        components: c, components of the targets along the eigenvectors, [n, k]; all k columns share
            the ridge.
        smallest: smallest ridge tried; the kernel is not accurate below it.
        inflation: γ, the cost of a degree of freedom; above 1, no ridge is chosen that fits more
            than n/γ of them.
        outside: number of further directions with eigenvalue zero, in which the targets have no
            component. They count in n and in the trace.

    Returns:
        (ρ, σ²).
    """
    # 1. A zero kernel fits nothing, whatever the ridge.
    max_value = float(values.max())
    unit = target_unit(components)
    squares = np.sum((components / unit) ** 2, axis=1)
    if not max_value > 0:
        target_count = components.shape[1] * (len(values) + outside)
        variance = unit * unit * float(squares.sum() / target_count)
        return max(smallest, float(np.finfo(float).tiny)), variance
    # 2. Search on a logarithmic grid, and refine between the neighbours of the best point. V may
    #    have several minima: the first grid is as fine as the spectrum needs.
    log_lower = np.log(smallest)
    log_upper = np.log(max_value) + np.log(1e3)
    for _ in range(ZOOM_PASSES):
        ridges = np.exp(np.linspace(log_lower, log_upper, GRID_SIZE))
        w = ridges[:, None] / (values[None] + ridges[:, None])
        residual_freedom = np.sum(1 - inflation * (1 - w), axis=1) + outside
        is_allowed = residual_freedom > 0
        divisor = np.where(is_allowed, residual_freedom, 1) ** 2
        criterion = np.where(is_allowed, (w**2 @ squares) / divisor, np.inf)
        best_index = int(np.argmin(criterion))
        log_lower = np.log(ridges[max(best_index - 1, 0)])
        log_upper = np.log(ridges[min(best_index + 1, GRID_SIZE - 1)])
    # 3. The noise variance that this ridge leaves.
    ridge = float(ridges[best_index])
    w = ridge / (values + ridge)
    residual_freedom = components.shape[1] * (np.sum(w) + outside)
    return ridge, unit * unit * float(w**2 @ squares / residual_freedom)
