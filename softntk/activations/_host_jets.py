"""Jets of the activations of the table in NumPy, for the enclosures of certificates and bounds.

Each takes ``(z, shift)`` and returns a :class:`~softntk.activations._enclosures.HostJet`. They are
written without the closed forms of :mod:`softntk.activations._closed_forms`, in which networks and
regressions are computed: a certificate does not rest on the code that it checks.
"""

import math

import numpy as np
import scipy  # its parts are imported at first use: scipy.special takes long

from softntk.activations._enclosures import LARGEST_GAUSSIAN_LOGIT, HostJet, Values

# --- shifts: e^{−c} u is of order one along the last axis ---


def row_maximum(z: Values) -> Values:
    """Return max z of every row."""
    return np.max(z, axis=-1, keepdims=True)


def row_maximum_or_zero(z: Values) -> Values:
    """Return max(0, max z) of every row."""
    return np.maximum(row_maximum(z), 0)


def row_maximum_modulus(z: Values) -> Values:
    """Return max |z| of every row."""
    return row_maximum(np.abs(z))


def _products(*values: Values) -> HostJet:
    """Return the jet of functions that are single terms: values are their own moduli."""
    u, du, d2u, d3u = values
    return HostJet((u, du, d2u, d3u), (np.abs(u), np.abs(du), np.abs(d2u), np.abs(d3u)))


def _unscale(z: Values, shift: Values | float) -> Values:
    """Return e^{−shift} in the precision of z."""
    return np.asarray(np.exp(-np.asarray(shift, z.dtype)))


# --- the exponential family ---


def exp_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of e^z, which is its own derivative."""
    power = np.exp(z - shift)
    return HostJet((power, power, power, power), (power, power, power, power))


def res_exp_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of e^z + z."""
    power = np.exp(z - shift)
    scale = _unscale(z, shift)
    du = power + scale
    return HostJet(
        (power + scale * z, du, power, power), (power + scale * np.abs(z), du, power, power)
    )


def _hyperbolic(z: Values, shift: Values | float) -> tuple[Values, Values]:
    """Return e^{−shift} times cosh z and sinh z."""
    # The larger of the two exponentials is that of |z|, and nothing cancels in expm1.
    larger_power = np.exp(np.abs(z) - shift)
    cosh = larger_power * (1 + np.exp(-2 * np.abs(z))) / 2
    sinh = -np.sign(z) * larger_power * np.expm1(-2 * np.abs(z)) / 2
    return cosh, sinh


def cosh_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of cosh z."""
    cosh, sinh = _hyperbolic(z, shift)
    return HostJet((cosh, sinh, cosh, sinh), (cosh, cosh, cosh, np.abs(sinh)))


def sinh_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of sinh z."""
    cosh, sinh = _hyperbolic(z, shift)
    return HostJet((sinh, cosh, sinh, cosh), (cosh, cosh, np.abs(sinh), cosh))


# --- functions without a shift of their own ---


def identity_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of z."""
    scale = _unscale(z, shift) + np.zeros_like(z)
    return _products(scale * z, scale, 0 * scale, 0 * scale)


def relu_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of max(0, z), between its jumps; u'(0) = 0."""
    scale = _unscale(z, shift) + np.zeros_like(z)
    slope = np.where(z > 0, scale, 0)
    return _products(scale * np.maximum(z, 0), slope, 0 * scale, 0 * scale)


def threshold_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of 1{z > 0}, between its jumps."""
    scale = _unscale(z, shift) + np.zeros_like(z)
    return _products(np.where(z > 0, scale, 0), 0 * scale, 0 * scale, 0 * scale)


def crrelu_jet(epsilon: float, z: Values, shift: Values | float) -> HostJet:
    """Return the jet of max(0, z) + ε z e^{−z²/2}, between its jumps."""
    relu = relu_jet(z, shift).values
    t = np.clip(z, -LARGEST_GAUSSIAN_LOGIT, LARGEST_GAUSSIAN_LOGIT)
    gaussian = epsilon * _unscale(z, shift) * np.exp(-0.5 * t**2)
    # Each derivative of e^{−t²/2} is a Hermite polynomial times it.
    corrections = (
        t * gaussian,
        (1 - t**2) * gaussian,
        (t**3 - 3 * t) * gaussian,
        (-(t**4) + 6 * t**2 - 3) * gaussian,
    )
    modulus = np.abs(gaussian)
    correction_moduli = (
        np.abs(t) * modulus,
        (1 + t**2) * modulus,
        (np.abs(t) ** 3 + 3 * np.abs(t)) * modulus,
        (t**4 + 6 * t**2 + 3) * modulus,
    )
    u, du, d2u, d3u = map(np.add, relu, corrections)
    moduli = map(np.add, map(np.abs, relu), correction_moduli)
    return HostJet((u, du, d2u, d3u), tuple(moduli))  # pyright: ignore[reportArgumentType]


def erf_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of erf z, in float64."""
    z = np.asarray(z, np.float64)
    scale = _unscale(z, shift)
    t = np.clip(z, -LARGEST_GAUSSIAN_LOGIT, LARGEST_GAUSSIAN_LOGIT)
    du = 2 / math.sqrt(math.pi) * np.exp(-(t**2)) * scale
    values = (scipy.special.erf(z) * scale, du, -2 * t * du, (4 * t**2 - 2) * du)
    u, _, d2u, _ = values
    return HostJet(values, (np.abs(u), du, np.abs(d2u), (4 * t**2 + 2) * du))


def softplus_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of log(1 + e^z), whose derivatives are products of logistic functions."""
    scale = _unscale(z, shift)
    decay = np.exp(-np.abs(z))
    # σ(z) and σ(−z) without an exponential that overflows; 1 − 2σ(z) = −tanh(z/2).
    larger_share = 1 / (1 + decay)
    smaller_share = decay / (1 + decay)
    du = scale * np.where(z > 0, larger_share, smaller_share)
    d2u = scale * larger_share * smaller_share
    return _products(scale * (np.maximum(z, 0) + np.log1p(decay)), du, d2u, -np.tanh(z / 2) * d2u)


def gelu_jet(z: Values, shift: Values | float) -> HostJet:
    """Return the jet of z Φ(z), Φ the normal distribution, in float64."""
    z = np.asarray(z, np.float64)
    scale = _unscale(z, shift)
    t = np.clip(z, -LARGEST_GAUSSIAN_LOGIT, LARGEST_GAUSSIAN_LOGIT)
    distribution = scale * 0.5 * scipy.special.erfc(-t / math.sqrt(2))
    density = scale * np.exp(-0.5 * t**2) / math.sqrt(2 * math.pi)
    u = np.where(z > 0, z, t) * distribution
    values = (u, distribution + t * density, (2 - t**2) * density, (t**3 - 4 * t) * density)
    moduli = (
        np.abs(u),
        distribution + np.abs(t) * density,
        (2 + t**2) * density,
        (np.abs(t) ** 3 + 4 * np.abs(t)) * density,
    )
    return HostJet(values, moduli)
