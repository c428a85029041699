"""How far a two-layer network's kernel can move while no neuron moves by more than R: enclosures of
all it is made of.

The proof is in the docstring of :func:`softntk.theory.perturbation`; here is its arithmetic, in
float64 on the host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from softntk import activations
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import perron_norm
from softntk._two_layer.architecture import row_vectors
from softntk.networks import Architecture, Parameters, row_factors
from softntk.theory._perturbation.softmax_bound import Expansion

_ROUNDING = 1e-9  # relative, added to R
_KEPT = 1e-14  # of a normaliser that is no more than rounding

# How u and u' behave: monotone, or as a function of |z|.
_SHAPES: dict[str, tuple[str, str]] = {
    "exp": ("increasing", "increasing"),
    "res_exp": ("increasing", "increasing"),
    "relu": ("increasing", "increasing"),
    "identity": ("increasing", "increasing"),
    "cosh": ("even", "increasing"),
    "sinh": ("increasing", "even"),
    "erf": ("increasing", "bump"),
}


class Interval(NamedTuple):
    """Ends, entry by entry."""

    low: np.ndarray
    high: np.ndarray

    def __mul__(self, other: Any) -> "Interval":
        """The interval of the products."""
        ends = [one * two for one in self for two in other]
        return Interval(np.minimum.reduce(ends), np.maximum.reduce(ends))


class LocalBound:
    """R ↦ (Frobenius, spectral) norm that ‖H(W̃) − H(W)‖ does not exceed; to be called in float64."""

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        self.architecture, self.params, self.x = architecture, params, x
        rows, (m, k) = row_factors(architecture, params, x), params.readout.shape
        self._g, self._features = (
            np.asarray(row_vectors(rows, params.readout)).reshape(-1, m),
            np.asarray(rows.features),
        )
        self._dots = np.kron(
            np.abs(x @ x.T + (0.0 if params.bias is None else 1.0)), np.ones((k, k))
        )
        softmax = architecture.activation == activations.get("exp") and architecture.normalized
        self._expansion = Expansion(architecture, params, x) if softmax else None

    def __call__(self, R: float) -> tuple[float, float]:
        """The least of the bounds there are; zero for no move, +inf where nothing is known."""
        if R == 0:
            return 0.0, 0.0
        R = R * (1 + _ROUNDING)
        weights, readout = self._changes(R)
        bounds = [_norms(weights + readout)]
        if self._expansion is not None:
            one, two = self._expansion.norms(R), _norms(readout)
            bounds.append((one[0] + two[0], one[1] + two[1]))
        return min(b[0] for b in bounds), min(b[1] for b in bounds)

    def _changes(self, R: float) -> tuple[np.ndarray, np.ndarray]:
        """Above the change of what the hidden weights and a trained readout add to H, entry by
        entry, [nk, nk].
        """
        unknown, nothing = np.full(self._dots.shape, np.inf), np.zeros(self._dots.shape)
        trained = self.architecture.train_readout
        with np.errstate(all="ignore"):  # infinities are meant, and what is undefined is infinite
            enclosed = _factors(self.architecture, self.params, self.x, R)
            if enclosed is None:
                return unknown, unknown if trained else nothing
            weights = self._dots * _gram_change(self._g, *enclosed[0])
            readout = np.kron(
                _gram_change(self._features, *enclosed[1]), np.eye(self.params.readout.shape[1])
            )
            weights, readout = (
                np.where(np.isnan(part), np.inf, part) for part in (weights, readout)
            )
        return weights, readout if trained else nothing


def _norms(change: Float[np.ndarray, "p p"]) -> tuple[float, float]:
    """(Frobenius, spectral) norm that no matrix below these entries exceeds."""
    with np.errstate(over="ignore"):
        frobenius = float(host_norm(change))
    return frobenius, min(frobenius, perron_norm(change))


def _factors(
    architecture: Architecture, params: Parameters, x: np.ndarray, R: float
) -> tuple[Interval, Interval] | None:
    """Enclosures of g, [nk, m], and of the features, [n, m]."""
    activation, a = architecture.activation, np.asarray(params.readout)
    if activation.name not in _SHAPES or activation != activations.get(activation.name):
        return None
    z = x @ np.asarray(params.hidden)
    if params.bias is not None:
        z = z + np.asarray(params.bias)
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    delta = R * host_norm(x, axis=1, keepdims=True)
    shift = activation.log_scale(jnp.asarray(z)) if architecture.normalized else 0.0
    u, slopes = (
        _range(
            lambda t, order=order: np.asarray(activation.jet(jnp.asarray(t), shift)[order]),
            shape,
            z,
            delta,
        )
        for order, shape in enumerate(_SHAPES[activation.name])
    )
    m, outer = z.shape[1], np.sqrt(architecture.kernel_scale)
    if not architecture.normalized:
        scale = Interval(outer / np.sqrt(m), outer / np.sqrt(m))
        return _flat(scale * slopes, Interval(a.T[None], a.T[None])), scale * u
    total = Interval(*(np.sum(end, axis=1, keepdims=True) for end in u))
    size = np.sum(np.maximum(np.abs(u.low), np.abs(u.high)), axis=1, keepdims=True)
    if not np.all(total.low > _KEPT * size):
        return None
    inverse = Interval(outer * np.sqrt(m) / total.high, outer * np.sqrt(m) / total.low)
    means = mean_range(a, u)
    centred = Interval(
        *((a[None] - end[:, None, :]).transpose(0, 2, 1) for end in (means.high, means.low))
    )
    return _flat(slopes * inverse, centred), u * inverse


def _flat(slopes: Interval, readout: Interval) -> Interval:
    """The products, [nk, m]."""
    product = Interval(*(end[:, None, :] for end in slopes)) * readout
    return Interval(*(end.reshape(-1, end.shape[-1]) for end in product))


def _range(
    f: Callable[[np.ndarray], np.ndarray], shape: str, z: np.ndarray, delta: np.ndarray
) -> Interval:
    """What f takes on [z − δ, z + δ]."""
    if shape == "increasing":
        return Interval(f(z - delta), f(z + delta))
    near, far = f(np.maximum(np.abs(z) - delta, 0)), f(np.abs(z) + delta)
    return Interval(near, far) if shape == "even" else Interval(far, near)


def mean_range(a: Float[np.ndarray, "m k"], u: Interval) -> Interval:
    """Exactly what ⟨a_ℓ, u⟩/1ᵀu takes while every u_r is in its interval and 1ᵀu > 0, [n, k].

    A ratio of linear functions is largest at a corner: where it is μ⁺, ⟨a − μ⁺, u⟩ is at its
    largest, zero, so u_r is at its upper end for a_r > μ⁺ and at its lower end for a_r < μ⁺. With
    the units sorted by a only m + 1 corners are left.
    """
    ends = []
    for column in a.T:
        order = np.argsort(column)
        column, low, high = column[order], u.low[:, order], u.high[:, order]
        ends.append(
            (_corners(column, high, low).min(axis=1), _corners(column, low, high).max(axis=1))
        )
    return Interval(*(np.stack(end, axis=1) for end in zip(*ends, strict=True)))


def _corners(a: np.ndarray, first: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The ratio with the first t units at one end and the rest at the other, t = 0 … m, [n, m + 1]."""

    def sums(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        zero = np.zeros((len(one), 1))
        before = np.concatenate([zero, np.cumsum(one, axis=1)], axis=1)
        after = np.concatenate([zero, np.cumsum(two[:, ::-1], axis=1)], axis=1)[:, ::-1]
        return before + after

    return sums(a * first, a * rest) / sums(first, rest)


def _gram_change(g: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Above |g̃g̃ᵀ − ggᵀ| for g̃ in the interval: by its middle c = g + s and its half-width w, g̃
    = c + e, |e| ≤ w.
    """
    low, high = np.minimum(low, g), np.maximum(high, g)
    s, w = 0.5 * ((high - g) - (g - low)), 0.5 * ((high - g) + (g - low))
    c = np.abs(g + s)
    across = s @ g.T
    return np.abs(across + across.T + s @ s.T) + (c @ w.T + w @ (c + w).T)
