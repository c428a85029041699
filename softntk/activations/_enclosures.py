"""Suprema of an activation and its derivatives on intervals, from which regression bounds are made.

All suprema are reached at an end of the interval: u and its derivatives are increasing here, or
their moduli are even and increase with |z|.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Suprema(NamedTuple):
    """Suprema of an activation and three derivatives on one interval a sample.

    Attributes:
        u: e^{−shift} max |u|, [n].
        du: e^{−shift} max |u'|, [n].
        d2u: e^{−shift} max |u''|, [n].
        d3u: e^{−shift} max |u'''|, [n].
    """

    u: np.ndarray
    du: np.ndarray
    d2u: np.ndarray
    d3u: np.ndarray


def _exponential(lower: np.ndarray, upper: np.ndarray, shift: float) -> Suprema:
    """Return the suprema of e^z, which is its own derivative."""
    # Positive and increasing.
    return Suprema(*[np.exp(upper - shift)] * 4)


def _residual_exponential(lower: np.ndarray, upper: np.ndarray, shift: float) -> Suprema:
    """Return the suprema of e^z + z."""
    # The function is increasing and may be negative at the lower end; its derivatives are positive
    # and increasing.
    scale = np.exp(-shift)
    upper_exp = np.exp(upper - shift)
    return Suprema(
        np.maximum(
            np.abs(np.exp(lower - shift) + scale * lower), np.abs(upper_exp + scale * upper)
        ),
        upper_exp + scale,
        upper_exp,
        upper_exp,
    )


def _hyperbolic(
    lower: np.ndarray, upper: np.ndarray, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the suprema of cosh z and |sinh z|."""
    # Both moduli are even and increase with |z|.
    modulus = np.maximum(np.abs(lower), np.abs(upper))
    half_exp = 0.5 * np.exp(modulus - shift)
    half_exp_minus = 0.5 * np.exp(-modulus - shift)
    return half_exp + half_exp_minus, half_exp - half_exp_minus


def _cosh(lower: np.ndarray, upper: np.ndarray, shift: float) -> Suprema:
    """Return the suprema of cosh z."""
    cosh, sinh = _hyperbolic(lower, upper, shift)
    return Suprema(cosh, sinh, cosh, sinh)


def _sinh(lower: np.ndarray, upper: np.ndarray, shift: float) -> Suprema:
    """Return the suprema of |sinh z|."""
    cosh, sinh = _hyperbolic(lower, upper, shift)
    return Suprema(sinh, cosh, sinh, cosh)


def _identity(lower: np.ndarray, upper: np.ndarray, shift: float) -> Suprema:
    """Return the suprema of |z|."""
    scale = np.full_like(lower, np.exp(-shift))
    return Suprema(scale * np.maximum(np.abs(lower), np.abs(upper)), scale, 0 * scale, 0 * scale)


# (lower, upper, shift) -> e^{−shift} times the suprema on lower ≤ z ≤ upper.
SUPREMA: dict[str, Callable[[np.ndarray, np.ndarray, float], Suprema]] = {
    "exp": _exponential,
    "res_exp": _residual_exponential,
    "cosh": _cosh,
    "sinh": _sinh,
    "identity": _identity,
}
