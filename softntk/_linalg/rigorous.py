"""Intervals, and bounds of eigenvalues and norms that hold with the rounding errors of float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

EPS = float(np.finfo(np.float64).eps)
"""The rounding unit ε of float64."""

MAX_POWER_STEPS = 60
"""Steps of the power method for a norm; it usually ends after a few."""


class Interval(NamedTuple):
    """An interval for each entry of an array.

    Attributes:
        lower: the lower ends.
        upper: the upper ends, of the same shape.
    """

    lower: np.ndarray
    upper: np.ndarray

    @property
    def modulus(self) -> np.ndarray:
        """The largest modulus in each interval."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    def __mul__(self, other: "Interval") -> "Interval":
        """Return the interval of the products."""
        # The extremes of a product are at the four pairs of ends.
        products = [end * other_end for end in self for other_end in other]
        return Interval(np.minimum.reduce(products), np.maximum.reduce(products))


def slack(terms: int) -> float:
    """Return a bound of the rounding error of a sum of products, relative to that of their moduli.

    The constant leaves a margin for rounding in the factors themselves.

    Args:
        terms: number of products in the sum.
    """
    return 4 * (terms + 64) * EPS


def smallest_eigenvalue(H: Float[np.ndarray, "n n"], error: float) -> float:
    """Return a lower bound of λ_min for every symmetric matrix within ``error`` of H.

    The distance is in spectral norm; the bound may be negative. A Cholesky factorisation in
    floating point that runs to its end proves

        H − tI + c tr(H − tI) I ≻ 0,        c = γ_{n+1}/(1 − γ_{n+1})

    (Rump 2006, Verification of positive definiteness, Theorem 2.3; Demmel 1989). t is taken twice
    as far below the computed λ_min as that theorem asks for, which leaves as much for the rounding
    of the eigenvalue.
    """
    # 1. The computed eigenvalues, whose rounding is not known yet.
    n = len(H)
    if not (np.isfinite(H).all() and np.isfinite(error)):
        return -np.inf
    computed = np.linalg.eigvalsh(H)
    if not np.isfinite(computed).all():
        return -np.inf
    # 2. Shift by more than the rounding of the factorisation, which the trace bounds.
    spectral_radius = float(np.abs(computed).max(initial=0.0))
    trace_bound = float(np.abs(np.diag(H)).sum()) + n * spectral_radius
    rounding_margin = (n + 2) * EPS * trace_bound
    t = float(computed[0]) - 2 * rounding_margin
    # 3. The factorisation is the proof.
    shifted = H - (t + rounding_margin) * np.eye(n)
    try:
        np.linalg.cholesky((shifted + shifted.T) / 2)
    except np.linalg.LinAlgError:
        return -np.inf
    return t - error - 4 * EPS * spectral_radius


def perron_norm(M: Float[np.ndarray, "n n"], start: Float[np.ndarray, " n"] | None = None) -> float:
    """Return an upper bound of the spectral norm of all matrices that M bounds entry by entry.

    M is symmetric, with entries that are not negative. For any v > 0 the norm is at most
    max (Mv)_i/v_i (Collatz and Wielandt); v comes from a few steps of the power method.

    Args:
        M: bounds of the moduli of the entries, [n, n].
        start: positive start vector of the power method; the root of the diagonal if None.
    """
    if not M.any():
        return 0.0
    if not np.isfinite(M).all():
        return np.inf
    v = np.sqrt(np.diag(M)) if start is None else start
    # The bound needs positive entries: hence what is added here and below.
    v = v + 1e-3 * v.max() + np.finfo(float).tiny
    best = np.inf
    for _ in range(MAX_POWER_STEPS):
        w = M @ v
        bound = float((w / v).max())
        if bound >= best * (1 - 1e-3):
            best = min(best, bound)
            break
        best = bound
        v = w / w.max() + 1e-12
    return best * (1 + slack(len(M)))
