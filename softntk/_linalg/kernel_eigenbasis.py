"""Kernels decomposed in float64 on the host, and generalised cross-validation along their
eigenvectors.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import as_floating
from softntk._core.validation.on_host import as_double, as_host_targets, check_known, on_host
from softntk._linalg.gram_arrays import Gram, as_matrix
from softntk._linalg.norms import host_norm

_GRID = 60
_ZOOMS = 4


class Decomposition(NamedTuple):
    """Eigenvalues, ascending, eigenvectors, and how far the matrix they make is from the kernel, in
    operator norm.
    """

    values: np.ndarray
    vectors: np.ndarray
    error: float


def decompose(gram: Gram) -> Decomposition:
    """Decompose the kernel, [n, n] or as [nk, nk], in float64.

    The error is 2√n ε λ_max with ε of the kernel's own precision (its entries are rounded), plus
    half of its asymmetry.

    Raises:
        ValueError: as :func:`softntk._linalg.gram_arrays.as_matrix`; a traced kernel.
    """
    check_known("gram", gram)
    with on_host():  # what is float64 stays so
        if getattr(gram, "dtype", None) == np.longdouble:
            gram = as_double("gram", gram)
        gram = gram if callable(gram) or isinstance(gram, np.ndarray) else as_floating("gram", gram)
        as_matrix(gram)
    matrix = np.asarray(gram, np.float64)
    if matrix.ndim == 4:
        matrix = matrix.transpose(0, 2, 1, 3).reshape(matrix.shape[0] * matrix.shape[2], -1)
    asymmetry = 0.5 * float(host_norm(matrix - matrix.T))
    values, vectors = np.linalg.eigh(0.5 * matrix + 0.5 * matrix.T)
    eps = float(max(jnp.finfo(gram.dtype).eps, np.finfo(np.float64).eps))
    return Decomposition(
        values, vectors, 2 * len(values) ** 0.5 * eps * float(np.abs(values).max()) + asymmetry
    )


def as_target_matrix(gram: Gram, y: Float[Array | np.ndarray, "..."]) -> np.ndarray:
    """Return the targets in float64 as columns that the kernel acts on: [n, k], or [nk, 1] for a
    kernel of all outputs.

    Raises:
        ValueError: integer, not finite, or not of the shape of the kernel.
    """
    shape = np.shape(gram)
    if len(shape) == 4:
        return as_host_targets("y", y, shape[0], shape[2]).reshape(-1, 1)
    return as_host_targets("y", y, shape[0] if shape else 0)


def check_positive_part(name: str, values: np.ndarray) -> None:
    """Refuse eigenvalues, ascending, of which none is positive."""
    if not values[-1] > 0:
        what = "have a positive eigenvalue" if name == "gram" else "have a positive one among them"
        raise ValueError(
            f"{name} must {what}, but the largest is {values[-1]:.3g}. Is it a kernel?"
        )


def target_unit(x: np.ndarray) -> float:
    """Return a power of two near max|x|, one for zeros: dividing by it rounds nothing, and squares
    stay in range.
    """
    largest = float(np.max(np.abs(x), initial=0.0))
    if not (largest > 0 and math.isfinite(largest)):
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1021))


def cross_validated_ridge(
    values: np.ndarray,
    components: np.ndarray,
    smallest: float,
    inflation: float = 1.0,
    outside: int = 0,
) -> tuple[float, float]:
    """Return the ridge of the least generalised cross-validation n‖(I−A)y‖²/tr(I−γA)², and the
    noise variance it leaves.

    With w = ρ/(λ+ρ), the eigenvalues of I − A: V(ρ) = n Σ w²c² / (Σ (1 − γ(1−w)))² and σ² = Σ w²c²
    / (k Σ w).

    Args:
        values: λ, [n], at least zero.
        components: of the targets along the eigenvectors, [n, k]; all of them share the ridge.
        smallest: of the ridges tried; below it the kernel is not known.
        outside: directions besides these, of eigenvalue zero, along which the targets have no
            component.
        inflation: γ, what a degree of freedom costs; above 1, no ridge is chosen that fits more
            than n/γ of them.

    Returns:
        (ρ, σ²).
    """
    largest = float(values.max())
    unit = target_unit(components)
    squares = np.sum((components / unit) ** 2, axis=1)
    freedom = components.shape[1] * (len(values) + outside)
    if not largest > 0:  # nothing is fitted, whatever the ridge
        return max(smallest, float(np.finfo(float).tiny)), unit * unit * float(
            squares.sum() / freedom
        )
    low = np.log(smallest)
    high = np.log(largest) + np.log(1e3)
    # V may have several minima: the first grid is as fine as the spectrum needs
    for _ in range(_ZOOMS):
        grid = np.exp(np.linspace(low, high, _GRID))
        w = grid[:, None] / (values[None] + grid[:, None])
        left = np.sum(1 - inflation * (1 - w), axis=1) + outside
        criterion = np.where(left > 0, (w**2 @ squares) / np.where(left > 0, left, 1) ** 2, np.inf)
        best = int(np.argmin(criterion))
        low = np.log(grid[max(best - 1, 0)])
        high = np.log(grid[min(best + 1, _GRID - 1)])
    ridge = float(grid[best])
    w = ridge / (values + ridge)
    return ridge, unit * unit * float(
        w**2 @ squares / (components.shape[1] * (np.sum(w) + outside))
    )
