"""How large an activation and its derivatives are on intervals: what the bounds of a regression are
made of.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Suprema(NamedTuple):
    """Of |u|, |u'|, |u''|, |u'''| at each sample."""

    u: np.ndarray
    du: np.ndarray
    d2u: np.ndarray
    d3u: np.ndarray


def _exponential(low: np.ndarray, high: np.ndarray, shift: float) -> Suprema:
    return Suprema(*[np.exp(high - shift)] * 4)


def _residual_exponential(low: np.ndarray, high: np.ndarray, shift: float) -> Suprema:
    one, top = np.exp(-shift), np.exp(high - shift)
    return Suprema(
        np.maximum(np.abs(np.exp(low - shift) + one * low), np.abs(top + one * high)),
        top + one,
        top,
        top,
    )


def _hyperbolic(low: np.ndarray, high: np.ndarray, shift: float) -> tuple[np.ndarray, np.ndarray]:
    r = np.maximum(np.abs(low), np.abs(high))
    grown, shrunk = 0.5 * np.exp(r - shift), 0.5 * np.exp(-r - shift)
    return grown + shrunk, grown - shrunk


def _identity(low: np.ndarray, high: np.ndarray, shift: float) -> Suprema:
    one = np.full_like(low, np.exp(-shift))
    return Suprema(one * np.maximum(np.abs(low), np.abs(high)), one, 0 * one, 0 * one)


# e^{−shift} times the suprema on low ≤ z ≤ high; all are reached at an end.
SUPREMA: dict[str, Callable[[np.ndarray, np.ndarray, float], Suprema]] = {
    "exp": _exponential,
    "res_exp": _residual_exponential,
    "cosh": lambda *interval: Suprema(*_hyperbolic(*interval), *_hyperbolic(*interval)),
    "sinh": lambda *interval: Suprema(*_hyperbolic(*interval)[::-1], *_hyperbolic(*interval)[::-1]),
    "identity": _identity,
}
