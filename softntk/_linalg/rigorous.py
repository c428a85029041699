"""Bounds that hold with the rounding of float64 counted: eigenvalues from below, norms from above."""

import numpy as np
from jaxtyping import Float

EPS = float(np.finfo(np.float64).eps)


def slack(terms: int) -> float:
    """Return what a sum of so many products may be off by, relative to that of their moduli, with
    room for what they are of.
    """
    return 4 * (terms + 64) * EPS


def smallest_eigenvalue(H: Float[np.ndarray, "n n"], error: float) -> float:
    """Return a lower bound of λ_min for every symmetric matrix within ``error`` of H (in spectral
    norm); may be negative.

    A Cholesky factorisation in floating point that runs to its end proves H − tI + c tr(H − tI) I ≻
    0, with c = γ_{n+1}/(1 − γ_{n+1}) (Rump 2006, Verification of positive definiteness, Theorem
    2.3; Demmel 1989). t is taken twice as far below the computed λ_min as that theorem asks for,
    which leaves as much for the rounding of the eigenvalue.
    """
    n = len(H)
    if not (np.isfinite(H).all() and np.isfinite(error)):
        return -np.inf
    computed = np.linalg.eigvalsh(H)
    if not np.isfinite(computed).all():
        return -np.inf
    size = float(np.abs(computed).max(initial=0.0))
    room = (n + 2) * EPS * (float(np.abs(np.diag(H)).sum()) + n * size)
    t = float(computed[0]) - 2 * room
    shifted = H - (t + room) * np.eye(n)
    try:
        np.linalg.cholesky((shifted + shifted.T) / 2)
    except np.linalg.LinAlgError:
        return -np.inf
    return t - error - 4 * EPS * size


def perron_norm(M: Float[np.ndarray, "n n"], start: Float[np.ndarray, " n"] | None = None) -> float:
    """Return an upper bound of the spectral norm of every matrix that is bounded by the symmetric M
    ≥ 0, entry by entry.

    For any v > 0 it is at most max (Mv)_i/v_i (Collatz and Wielandt); v comes from a few rounds of
    the power method.
    """
    if not M.any():
        return 0.0
    if not np.isfinite(M).all():
        return np.inf
    v = np.sqrt(np.diag(M)) if start is None else start
    v = v + 1e-3 * v.max() + np.finfo(float).tiny
    best = np.inf
    for _ in range(60):
        w = M @ v
        bound = float((w / v).max())
        if bound >= best * (1 - 1e-3):
            best = min(best, bound)
            break
        best = bound
        v = w / w.max() + 1e-12
    return best * (1 + slack(len(M)))
