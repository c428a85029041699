"""Kernels decomposed in float64 on the host, and generalised cross-validation along their eigenvectors."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._validation import check_finite, check_floating
from softntk.ntk._gram import Gram, as_matrix

_GRID = 60
_ZOOMS = 4


class Decomposition(NamedTuple):
    """Eigenvalues, ascending, eigenvectors, and how far the matrix they make is from the kernel, in operator norm."""

    values: np.ndarray
    vectors: np.ndarray
    error: float


def decompose(gram: Gram) -> Decomposition:
    """The kernel, [n, n] or as [nk, nk], in float64.

    The error is 2√n ε λ_max with ε of the kernel's own precision (its entries are rounded), plus half of its asymmetry.

    Raises:
        ValueError: as :func:`softntk.ntk._gram.as_matrix`.
    """
    as_matrix(gram)
    matrix = np.asarray(gram, np.float64)
    if matrix.ndim == 4:
        matrix = matrix.transpose(0, 2, 1, 3).reshape(matrix.shape[0] * matrix.shape[2], -1)
    asymmetry = 0.5 * float(np.linalg.norm(matrix - matrix.T))
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    eps = float(jnp.finfo(np.asarray(gram).dtype).eps)
    return Decomposition(values, vectors, 2 * len(values) ** 0.5 * eps * float(np.abs(values).max()) + asymmetry)


def targets(gram: Gram, y: Float[Array | np.ndarray, "..."]) -> np.ndarray:
    """The targets in float64 as columns that the decomposed kernel acts on: [n, k], or [nk, 1] for a kernel of all outputs.

    Raises:
        ValueError: integer, not finite, or not of the shape of the kernel.
    """
    check_floating("y", y)
    shape = jnp.shape(gram)
    if jnp.ndim(y) != 2 or len(y) != shape[0] or (len(shape) == 4 and jnp.shape(y)[1] != shape[2]) or 0 in jnp.shape(y):
        wanted = (shape[0], *shape[2:3], "k")[:2]
        raise ValueError(f"y must have shape [n, k] with the n (and k) of the kernel, {wanted}, got {jnp.shape(y)}.")
    check_finite("y", y)
    return np.asarray(y, np.float64).reshape(-1 if len(shape) == 4 else len(y), 1 if len(shape) == 4 else jnp.shape(y)[1])


def cross_validated_ridge(
    values: np.ndarray, components: np.ndarray, smallest: float, inflation: float = 1.0, outside: int = 0
) -> tuple[float, float]:
    """The ridge of the least generalised cross-validation n‖(I−A)y‖²/tr(I−γA)², and the noise variance it leaves.

    With w = ρ/(λ+ρ), the eigenvalues of I − A: V(ρ) = n Σ w²c² / (Σ (1 − γ(1−w)))² and σ² = Σ w²c² / (k Σ w).

    Args:
        values: λ, [n], at least zero.
        components: of the targets along the eigenvectors, [n, k]; all of them share the ridge.
        smallest: of the ridges tried; below it the kernel is not known.
        outside: directions besides these, of eigenvalue zero, along which the targets have no component.
        inflation: γ, what a degree of freedom costs; above 1, no ridge is chosen that fits more than n/γ of them.

    Returns:
        (ρ, σ²).
    """
    squares = np.sum(components**2, axis=1)
    low, high = np.log(smallest), np.log(1e3 * values.max())
    for _ in range(_ZOOMS):  # V may have several minima: the first grid is as fine as the spectrum needs
        grid = np.exp(np.linspace(low, high, _GRID))
        w = grid[:, None] / (values[None] + grid[:, None])
        left = np.sum(1 - inflation * (1 - w), axis=1) + outside
        criterion = np.where(left > 0, (w**2 @ squares) / np.where(left > 0, left, 1) ** 2, np.inf)
        best = int(np.argmin(criterion))
        low, high = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, _GRID - 1)])
    ridge = float(grid[best])
    w = ridge / (values + ridge)
    return ridge, float(w**2 @ squares / (components.shape[1] * (np.sum(w) + outside)))
