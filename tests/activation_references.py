"""Every activation of the table, written out once more for the tests: by NumPy, and by mpmath."""

import mpmath as mp
import numpy as np
import scipy.special

from softntk.activations import ACTIVATIONS, Enclosure

REFERENCE = {
    "exp": np.exp,
    "res_exp": lambda z: np.exp(z) + z,
    "cosh": np.cosh,
    "sinh": np.sinh,
    "relu": lambda z: np.maximum(z, 0),
    "crrelu": lambda z: np.maximum(z, 0) + 0.01 * z * np.exp(-(z**2) / 2),
    "threshold": lambda z: np.where(z > 0, 1.0, 0.0),
    "softplus": lambda z: np.logaddexp(z, 0),
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "identity": lambda z: z,
    "erf": scipy.special.erf,
}
"""u, elementwise, by NumPy and SciPy in float64."""

PRECISE = {
    "exp": mp.exp,
    "res_exp": lambda z: mp.exp(z) + z,
    "cosh": mp.cosh,
    "sinh": mp.sinh,
    "relu": lambda z: max(z, mp.mpf(0)),
    "crrelu": lambda z: max(z, mp.mpf(0)) + mp.mpf(0.01) * z * mp.exp(-(z**2) / 2),
    "threshold": lambda z: mp.mpf(1 if z > 0 else 0),
    "softplus": lambda z: max(z, mp.mpf(0)) + mp.log1p(mp.exp(-abs(z))),
    "gelu": lambda z: z * mp.erfc(-z / mp.sqrt(2)) / 2,
    "identity": lambda z: z,
    "erf": mp.erf,
}
"""u of a number of mpmath."""


def enclosure_of(name: str) -> Enclosure:
    """Return the enclosure of an activation of the table."""
    enclosure = ACTIVATIONS[name].enclosure
    assert enclosure is not None
    return enclosure


SMOOTH = sorted(name for name in ACTIVATIONS if not enclosure_of(name).jumps)
"""Activations whose slope does not jump."""
