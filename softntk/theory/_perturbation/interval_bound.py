"""A bound on the change of a two-layer network's kernel while no neuron moves by more than R.

Interval arithmetic on everything the kernel is made of: steps 1 to 5 of the proof in the docstring
of :func:`softntk.theory.perturbation`, in float64 on the host.

Symbols, with n points, m units and k outputs:

    z     logits                                       [n, m]
    δ     ‖x_i‖R, the largest move of a logit          [n, 1]
    u     activation at the logits                     [n, m]
    α     Σ_r u_r (one without the normaliser)         [n, 1]
    a     readout                                      [m, k]
    μ     ⟨a, u⟩/α                                     [n, k]
    g     γ (u'/α)(a − μ), with rows (i, ℓ)            [nk, m]
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from softntk import activations
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import Interval, perron_norm
from softntk._two_layer.architecture import row_vectors
from softntk.networks import Architecture, Parameters, row_factors
from softntk.theory._arguments import with_bias_feature
from softntk.theory._perturbation.softmax_bound import SoftmaxExpansion

RADIUS_MARGIN = 1e-9
"""Relative margin on R that covers the rounding of the enclosures."""

MIN_NORMALISER_RATIO = 1e-14
"""A normaliser below this part of the sum of moduli may be all rounding."""


class IntervalBound:
    """The function from R to a (Frobenius, spectral) bound of ‖H(W̃) − H(W)‖.

    It must be called where JAX has float64.

    Attributes:
        architecture: the network.
        params: W.
        x: points, [n, d].
    """

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        self.architecture = architecture
        self.params = params
        self.x = x
        rows = row_factors(architecture, params, x)
        m, k = params.readout.shape
        self._g = np.asarray(row_vectors(rows, params.readout)).reshape(-1, m)
        self._features = np.asarray(rows.features)
        inner_products = x @ x.T + (0.0 if params.bias is None else 1.0)
        self._inner_products = np.kron(np.abs(inner_products), np.ones((k, k)))
        # For a softmax alone there is a second bound, which is usually the smaller one.
        is_softmax = architecture.activation == activations.get("exp") and architecture.normalized
        self._expansion = SoftmaxExpansion(architecture, params, x) if is_softmax else None

    def __call__(self, R: float) -> tuple[float, float]:
        """Return the smallest of the available bounds; zero for R = 0, +inf where there is none."""
        if R == 0:
            return 0.0, 0.0
        R = R * (1 + RADIUS_MARGIN)
        hidden_change, readout_change = self._entry_bounds(R)
        bounds = [_norm_bounds(hidden_change + readout_change)]
        if self._expansion is not None:
            # Steps 6 to 8 bound the part of the hidden weights; that of the readout is added.
            hidden_norms = self._expansion.norms(R)
            readout_norms = _norm_bounds(readout_change)
            bounds.append((hidden_norms[0] + readout_norms[0], hidden_norms[1] + readout_norms[1]))
        return min(bound[0] for bound in bounds), min(bound[1] for bound in bounds)

    def _entry_bounds(self, R: float) -> tuple[np.ndarray, np.ndarray]:
        """Return bounds on the change of each entry of H, [nk, nk].

        The first is for the part of the hidden weights, the second for that of a trained readout.
        """
        infinite = np.full(self._inner_products.shape, np.inf)
        zero = np.zeros(self._inner_products.shape)
        has_readout = self.architecture.train_readout
        # Overflow gives infinite bounds, and NaN becomes infinite below.
        with np.errstate(all="ignore"):
            enclosures = _enclose_factors(self.architecture, self.params, self.x, R)
            if enclosures is None:
                return infinite, infinite if has_readout else zero
            g_interval, feature_interval = enclosures
            hidden_change = self._inner_products * _gram_change(self._g, *g_interval)
            readout_change = np.kron(
                _gram_change(self._features, *feature_interval),
                np.eye(self.params.readout.shape[1]),
            )
            hidden_change, readout_change = (
                np.where(np.isnan(change), np.inf, change)
                for change in (hidden_change, readout_change)
            )
        return hidden_change, readout_change if has_readout else zero


def _norm_bounds(change: Float[np.ndarray, "p p"]) -> tuple[float, float]:
    """Return bounds on the (Frobenius, spectral) norm of every matrix below these entries."""
    # ‖E‖_F and, by Perron and Frobenius, ‖E‖₂.
    with np.errstate(over="ignore"):
        frobenius = float(host_norm(change))
    return frobenius, min(frobenius, perron_norm(change))


def _enclose_factors(
    architecture: Architecture, params: Parameters, x: np.ndarray, R: float
) -> tuple[Interval, Interval] | None:
    """Return enclosures of g, [nk, m], and of the features γu/α, [n, m]; None without a bound."""
    # 1. Logits, and how far they move.
    activation = architecture.activation
    a = np.asarray(params.readout)
    enclosure = activation.enclosure
    if enclosure is None:
        return None
    z = x @ np.asarray(params.hidden)
    if params.bias is not None:
        z = z + np.asarray(params.bias)
    delta = R * host_norm(with_bias_feature(x, params), axis=1, keepdims=True)
    shift = activation.log_scale(jnp.asarray(z)) if architecture.normalized else 0.0

    # 2. u and u', in units of e^shift, evaluated as in the network itself.
    def evaluate(t: np.ndarray) -> list[Interval]:
        jet = [np.asarray(part) for part in activation.jet(jnp.asarray(t), shift)]
        return [Interval(part, part) for part in jet]

    u, slopes = enclosure.ranges(evaluate, z - delta, z + delta, orders=(0, 1))
    # 3. Without a normaliser g = γu'a.
    m = z.shape[1]
    kernel_root = np.sqrt(architecture.kernel_scale)
    if not architecture.normalized:
        gamma = Interval(kernel_root / np.sqrt(m), kernel_root / np.sqrt(m))
        return _row_products(gamma * slopes, Interval(a.T[None], a.T[None])), gamma * u
    # 4. With it, α must be positive beyond rounding, and μ moves too.
    alpha = Interval(*(np.sum(end, axis=1, keepdims=True) for end in u))
    moduli = np.sum(np.maximum(np.abs(u.lower), np.abs(u.upper)), axis=1, keepdims=True)
    if not np.all(alpha.lower > MIN_NORMALISER_RATIO * moduli):
        return None
    gamma = kernel_root * np.sqrt(m)
    scaled_inverse = Interval(gamma / alpha.upper, gamma / alpha.lower)
    means = mean_interval(a, u)
    centred_readout = Interval(
        *((a[None] - end[:, None, :]).transpose(0, 2, 1) for end in (means.upper, means.lower))
    )
    return _row_products(slopes * scaled_inverse, centred_readout), u * scaled_inverse


def _row_products(slopes: Interval, readout: Interval) -> Interval:
    """Return the interval of slopes [n, m] times readout [n, k, m], as rows [nk, m]."""
    # Slopes are shared by all outputs of a row.
    products = Interval(*(end[:, None, :] for end in slopes)) * readout
    return Interval(*(end.reshape(-1, end.shape[-1]) for end in products))


def mean_interval(a: Float[np.ndarray, "m k"], u: Interval) -> Interval:
    """Return the exact range of ⟨a_ℓ, u⟩/1ᵀu for every u_r in its interval with 1ᵀu > 0, [n, k].

    A ratio of linear functions is largest at a corner of the box. Where it takes its largest value
    μ⁺, ⟨a − μ⁺, u⟩ has its largest value, zero. So u_r is at its upper end for a_r > μ⁺ and at its
    lower end for a_r < μ⁺. With the units sorted by a only m + 1 corners have to be compared.
    """
    # At a corner the units below a threshold of a have one end of u, and those above the other.
    lower_ends = []
    upper_ends = []
    for column in a.T:
        order = np.argsort(column)
        sorted_column = column[order]
        lower = u.lower[:, order]
        upper = u.upper[:, order]
        lower_ends.append(_corner_ratios(sorted_column, upper, lower).min(axis=1))
        upper_ends.append(_corner_ratios(sorted_column, lower, upper).max(axis=1))
    return Interval(np.stack(lower_ends, axis=1), np.stack(upper_ends, axis=1))


def _corner_ratios(a: np.ndarray, leading: np.ndarray, trailing: np.ndarray) -> np.ndarray:
    """Return ⟨a, u⟩/1ᵀu at the corners t = 0 … m, [n, m + 1].

    At corner t the first t units have the values ``leading`` and the others ``trailing``.
    """

    def split_sums(leading: np.ndarray, trailing: np.ndarray) -> np.ndarray:
        zero = np.zeros((len(leading), 1))
        # All m + 1 splits at once: prefix sums of one array plus suffix sums of the other.
        prefix_sums = np.concatenate([zero, np.cumsum(leading, axis=1)], axis=1)
        suffix_sums = np.concatenate([zero, np.cumsum(trailing[:, ::-1], axis=1)], axis=1)
        return prefix_sums + suffix_sums[:, ::-1]

    return split_sums(a * leading, a * trailing) / split_sums(leading, trailing)


def _gram_change(g: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return a bound on |g̃g̃ᵀ − ggᵀ|, entry by entry, for every g̃ in the interval.

    With c = g + s the middle of the interval and w its half-width, g̃ = c + e with |e| ≤ w.
    """
    # Rounding may leave g itself outside of the interval.
    lower = np.minimum(lower, g)
    upper = np.maximum(upper, g)
    s = 0.5 * ((upper - g) - (g - lower))
    w = 0.5 * ((upper - g) + (g - lower))
    c = np.abs(g + s)
    # ccᵀ − ggᵀ = sgᵀ + gsᵀ + ssᵀ, and then the terms with e.
    mixed = s @ g.T
    return np.abs(mixed + mixed.T + s @ s.T) + (c @ w.T + w @ (c + w).T)
