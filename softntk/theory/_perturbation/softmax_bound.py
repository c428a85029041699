"""A bound on the change of a softmax network's kernel: derivative plus second-order remainder.

Steps 6 to 8 of the proof in the docstring of :func:`softntk.theory.perturbation`, in float64 on the
host.

Symbols, with n points, m units and k outputs; a row (i, ℓ) stands for a point and an output:

    f     softmax of the logits of a row           [n, m]
    a     readout                                  [m, k]
    α     a_ℓ − μ_iℓ, the centred readout          [n, k, m]
    s     f∘α, so that γs = g                      [nk, m]
    ν     ⟨f_i, s_jℓ'⟩                             [n, nk]
    c     ⟨s_iℓ, s_jℓ'⟩                            [nk, nk]
    A     half the range of a_ℓ                    [k]
    δ     ‖x_i‖R, the largest move of a logit      [n]
"""

import numpy as np
from jaxtyping import Float

from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import perron_norm
from softntk.networks import Architecture, Parameters
from softntk.theory._arguments import with_bias_feature

CANCELLATION_MARGIN = 1e-12
"""Rounding of Q relative to the sum of the positive terms that it is a difference of."""

MIN_PROBABILITY = 1e-300
"""Smallest weight h_r of a unit, so that quotients by it stay finite."""


def _as_rows(values: Float[np.ndarray, "n k m"]) -> Float[np.ndarray, "p m"]:
    """Return [n, k, m] as rows [nk, m]."""
    return values.reshape(-1, values.shape[-1])


def _row_sums(values: Float[np.ndarray, "p m"]) -> Float[np.ndarray, "p 1"]:
    """Return the sum of each row as a column."""
    return values.sum(axis=1, keepdims=True)


class SoftmaxExpansion:
    """Bounds of ‖H(W̃) − H(W)‖ for a softmax network, without the part of a trained readout.

    Attributes:
        f: the softmax of each row, [n, m].
        lengths: ‖x_i‖, with a 1 appended under bias, [n].
        inner_products: γ²|⟨x_i, x_j⟩|, with rows (i, ℓ), [nk, nk].
        centred_readout: α, [n, k, m].
        half_ranges: A, [k].
        k: number of outputs.
        derivative_norms: bounds of the (Frobenius, spectral) norm of DH along moves of length one.
        total_norms: bounds of the (Frobenius, spectral) norm of H(W̃) − H(W) for any W̃.
    """

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        readout = np.asarray(params.readout)
        self.k = params.readout.shape[1]
        # 1. The softmax.
        z = x @ np.asarray(params.hidden)
        if params.bias is not None:
            z = z + np.asarray(params.bias)
        points = with_bias_feature(x, params)
        self.lengths = host_norm(points, axis=1)
        # The shift by the largest logit prevents overflow and cancels.
        power = np.exp(z - z.max(axis=1, keepdims=True))
        self.f = power / power.sum(axis=1, keepdims=True)
        # 2. γ²|⟨x_i, x_j⟩|, the centred readout, and the half-ranges of the readout.
        inner_products = np.kron(np.abs(points @ points.T), np.ones((self.k, self.k)))
        self.inner_products = inner_products * architecture.kernel_scale * z.shape[1]
        self.centred_readout = readout.T[None] - (self.f @ readout)[:, :, None]
        self.half_ranges = 0.5 * (readout.max(axis=0) - readout.min(axis=0))
        # 3. The bounds that do not depend on the radius.
        self.derivative_norms = self._derivative_norms(points)
        self.total_norms = self._total_norms()

    def norms(self, R: float) -> tuple[float, float]:
        """Return the (Frobenius, spectral) bound for a move of at most R."""
        remainder = self._remainder(R)
        with np.errstate(over="ignore", invalid="ignore"):
            remainder_norm = float(host_norm(remainder))
            frobenius = R * self.derivative_norms[0] + remainder_norm
            spectral = R * self.derivative_norms[1] + min(perron_norm(remainder), remainder_norm)
        return (
            min(frobenius, self.total_norms[0]),
            min(spectral, frobenius, self.total_norms[1]),
        )

    def _total_norms(self) -> tuple[float, float]:
        """Return the bound of step 8 for any move: |H| at W plus the largest possible |H|."""
        # ‖g_iℓ‖ ≤ γA_ℓ wherever the weights are, because the variance of a is at most A².
        s = (self.f[:, None] * self.centred_readout).reshape(len(self.inner_products), -1)
        largest_norms = np.tile(self.half_ranges, len(self.f))
        entries = np.abs(s @ s.T) + np.outer(largest_norms, largest_norms)
        change = self.inner_products * entries
        return float(host_norm(change)), perron_norm(change)

    def _derivative_norms(self, points: Float[np.ndarray, "n c"]) -> tuple[float, float]:
        """Return bounds of step 6 on the norms of DH along moves of length one."""
        # 1. One distribution h for all rows: 2 λ_max(Σ_i W_i x_i x_iᵀ)^{1/2}.
        h = np.maximum(self.f.mean(axis=0), MIN_PROBABILITY)
        weighted_squares = self.inner_products**2 * self._squared_moves(self.f**2 / (h / h.sum()))
        point_weights = weighted_squares.sum(axis=1).reshape(-1, self.k).sum(axis=1)
        coupling = (points.T * point_weights) @ points
        coupled_norm = 2 * float(np.linalg.eigvalsh(coupling)[-1]) ** 0.5
        # 2. h = f_i for each row: entry by entry.
        roots = np.sqrt(self._squared_moves(self.f))
        entries = np.repeat(self.lengths, self.k)[:, None] * self.inner_products * roots
        # Both factors of ⟨g, g'⟩ move.
        entries = entries + entries.T
        frobenius = min(coupled_norm, float(host_norm(entries)))
        return frobenius, min(frobenius, perron_norm(entries))

    def _squared_moves(self, p: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "p p"]:
        """Return Q[iℓ, jℓ'] = Σ_r p_ir (α_iℓr (s_jℓ'r − ν) − c)², rounded up.

        The square is expanded into matrix products: positive terms minus twice the mixed ones.
        """
        # (α(s − ν) − c)² = α²s² + c² + ν²α² − 2 (cαs + να²s − cνα), summed with weights p.
        f = self.f[:, None]
        alpha = self.centred_readout
        p = p[:, None]
        s = _as_rows(f * alpha)
        first_moments = _as_rows(p * alpha)
        second_moments = _as_rows(p * alpha**2)
        c = s @ s.T
        nu = np.repeat(self.f @ s.T, self.k, axis=0)
        weight_sums = np.repeat(_row_sums(p[:, 0]), self.k, axis=0)
        positive = (
            second_moments @ (s**2).T + c**2 * weight_sums + nu**2 * _row_sums(second_moments)
        )
        mixed = (
            c * (first_moments @ s.T)
            + nu * (second_moments @ s.T)
            - c * nu * _row_sums(first_moments)
        )
        return np.maximum(positive - 2 * mixed, 0) + CANCELLATION_MARGIN * positive

    def _remainder(self, R: float) -> Float[np.ndarray, "p p"]:
        """Return the bound of step 7 on |H(W̃) − H(W) − DH(W̃ − W)|, entry by entry."""
        delta = (R * self.lengths)[:, None, None]
        half_ranges = self.half_ranges[None, :, None]
        with np.errstate(over="ignore", invalid="ignore"):
            # |g|, |∂g| and |∂²g| over γ, on the whole box.
            f = np.exp(2 * delta) * self.f[:, None]
            b = np.abs(self.centred_readout) + half_ranges * delta
            g = _as_rows(f * b)
            first_derivative = _as_rows(f * (delta * (2 * b + half_ranges)))
            second_derivative = _as_rows(f * (delta**2 * (4 * b + 6 * half_ranges)))
            # ½(⟨|∂²g|, |g|⟩ + 2⟨|∂g|, |∂g|⟩ + ⟨|g|, |∂²g|⟩)
            mixed = second_derivative @ g.T
            sums = mixed + mixed.T + 2 * first_derivative @ first_derivative.T
            remainder = 0.5 * self.inner_products * sums
        return np.where(np.isnan(remainder), np.inf, remainder)
