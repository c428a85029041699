"""How far the kernel of a softmax network can move: its derivative, and what is left of second
order.

The proof is in the docstring of :func:`softntk.theory.perturbation` (there f is the softmax, s =
f(a − μ), γs = g).
"""

import numpy as np
from jaxtyping import Float

from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import perron_norm
from softntk.networks import Architecture, Parameters

_ROUNDING = 1e-12  # of the sums that Q is the difference of


class Expansion:
    """Bounds of ‖H(W̃) − H(W)‖ for a softmax network, without what a trained readout adds; in
    float64 on the host.
    """

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        self.a, self.k = np.asarray(params.readout), params.readout.shape[1]
        z, points = x @ np.asarray(params.hidden), x
        if params.bias is not None:
            z, points = (
                z + np.asarray(params.bias),
                np.concatenate([x, np.ones((len(x), 1))], axis=1),
            )
        self.lengths = host_norm(points, axis=1)
        f = np.exp(z - z.max(axis=1, keepdims=True))
        self.f = f / f.sum(axis=1, keepdims=True)
        self.dots = np.kron(np.abs(points @ points.T), np.ones((self.k, self.k)))
        self.dots = self.dots * architecture.kernel_scale * z.shape[1]  # γ² ⟨x_i, x_j⟩
        self.centred = self.a.T[None] - (self.f @ self.a)[:, :, None]
        self.half = 0.5 * (self.a.max(axis=0) - self.a.min(axis=0))
        self.first, self.most = self._derivative(points), self._whole()

    def norms(self, R: float) -> tuple[float, float]:
        """(Frobenius, spectral) of a move of at most R."""
        rest = self._remainder(R)
        with np.errstate(over="ignore", invalid="ignore"):
            frobenius = R * self.first[0] + float(host_norm(rest))
            spectral = R * self.first[1] + min(perron_norm(rest), float(host_norm(rest)))
        return min(frobenius, self.most[0]), min(spectral, frobenius, self.most[1])

    def _whole(self) -> tuple[float, float]:
        """Whatever the move: |H| as it is and as large as it can be."""
        s = (self.f[:, None] * self.centred).reshape(len(self.dots), -1)
        sizes = np.tile(self.half, len(self.f))
        change = self.dots * (np.abs(s @ s.T) + np.outer(sizes, sizes))
        return float(host_norm(change)), perron_norm(change)

    def _derivative(self, points: Float[np.ndarray, "n c"]) -> tuple[float, float]:
        """Above the norms of DH along moves of length one."""
        h = np.maximum(self.f.mean(axis=0), 1e-300)
        weights = self.dots**2 * self._squares(self.f**2 / (h / h.sum()))
        per_point = weights.sum(axis=1).reshape(-1, self.k).sum(axis=1)
        coupled = 2 * float(np.linalg.eigvalsh((points.T * per_point) @ points)[-1]) ** 0.5
        entries = (
            np.repeat(self.lengths, self.k)[:, None] * self.dots * np.sqrt(self._squares(self.f))
        )
        entries = entries + entries.T
        frobenius = min(coupled, float(host_norm(entries)))
        return frobenius, min(frobenius, perron_norm(entries))

    def _squares(self, p: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "p p"]:
        """Q[iℓ, jℓ'] = Σ_r p_ir (α_iℓr (s_jℓ'r − ν) − c)², expanded into matrix products, and
        rounded up.
        """
        flat = lambda v: v.reshape(-1, v.shape[-1])
        f, alpha, p = self.f[:, None], self.centred, p[:, None]
        s, one, two = flat(f * alpha), flat(p * alpha), flat(p * alpha**2)
        c, nu = s @ s.T, np.repeat(self.f @ s.T, self.k, axis=0)
        sums = lambda v: v.sum(axis=1, keepdims=True)
        zeroth = np.repeat(sums(p[:, 0]), self.k, axis=0)
        positive = two @ (s**2).T + c**2 * zeroth + nu**2 * sums(two)
        mixed = c * (one @ s.T) + nu * (two @ s.T) - c * nu * sums(one)
        return np.maximum(positive - 2 * mixed, 0) + _ROUNDING * positive

    def _remainder(self, R: float) -> Float[np.ndarray, "p p"]:
        """Above |H(W̃) − H(W) − DH(W̃ − W)|, entry by entry."""
        delta = (R * self.lengths)[:, None, None]
        half = self.half[None, :, None]
        with np.errstate(over="ignore", invalid="ignore"):
            f = np.exp(2 * delta) * self.f[:, None]
            b = np.abs(self.centred) + half * delta
            flat = lambda v: v.reshape(-1, v.shape[-1])
            zero, one, two = (
                flat(f * v) for v in (b, delta * (2 * b + half), delta**2 * (4 * b + 6 * half))
            )
            cross = two @ zero.T
            rest = 0.5 * self.dots * (cross + cross.T + 2 * one @ one.T)
        return np.where(np.isnan(rest), np.inf, rest)
