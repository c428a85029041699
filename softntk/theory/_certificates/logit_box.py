r"""What the factors of a Jacobian can become while no logit moves by more than δ: enclosures on a
box of logits.

For u = e^z or e^z + z, which increase and have increasing slopes, with every |z_r − z⁰_r| ≤ δ_r,

    Σu(z⁰ − δ) =: α⁻ ≤ α ≤ α⁺ := Σu(z⁰ + δ),      u'(z⁰ − δ)/α⁺ ≤ u'/α ≤ u'(z⁰ + δ)/α⁻,      |u''/α| ≤ e^{z⁰ + δ}/α⁻,

as long as α⁻ > 0 (always, for e^z). Without the normaliser α = 1. All of it in float64, rounded
outward.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from softntk._linalg.rigorous import EPS, slack

Matrix = Float[np.ndarray, "n m"]

INCREASING = ("exp", "res_exp")
"""Activations that these enclosures are proved for."""


class Slopes(NamedTuple):
    """Of u'/α (or u') on a box, [n, m]."""

    low: Matrix
    high: Matrix
    bend: Matrix
    """Above |u''/α|."""


class Box:
    """A network's logits, and what a box around them encloses.

    Attributes:
        start: δ that covers the rounding of the logits themselves, [n, m].
        centre: u'/α as computed, [n, m].
        values: u/α (or u), [n, m].
    """

    def __init__(
        self,
        activation: str,
        normalized: bool,
        x: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, "d m"],
        copies: int,
    ) -> None:
        self.normalized, self.copies = normalized, copies
        z = x @ weights
        shift = np.max(z, axis=1, keepdims=True) if normalized else np.zeros((len(z), 1))
        if activation == "res_exp":
            shift = np.maximum(shift, 0)
        self._power = np.exp(z - shift)
        self._linear = z if activation == "res_exp" else None
        self._unit = np.exp(-shift) if activation == "res_exp" else np.zeros((len(z), 1))
        self._slack = slack(z.shape[1] * copies)
        self.start = EPS * (
            (x.shape[1] + 8) * (np.abs(x) @ np.abs(weights))
            + 8 * np.abs(z - shift)
            + 8 * np.abs(shift)
        )
        u = self._power if self._linear is None else self._power + self._unit * z
        self.total = (
            copies * np.sum(u, axis=1, keepdims=True) if normalized else np.ones((len(z), 1))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            self.centre, self.values = (self._power + self._unit) / self.total, u / self.total

    def slopes(self, delta: Matrix) -> Slopes | None:
        """On the box of half-widths δ; None where the normaliser may vanish, or something
        overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            factor = np.exp(delta)
            high, low = self._power * factor, self._power / factor
            largest, smallest = self._totals(high, low, delta)
            if not (smallest > 0).all() or not np.isfinite(largest).all():
                return None
            up, down = 1 + self._slack, 1 - self._slack
            above, below = up / smallest, down / largest
            if self._linear is None:  # then u'' = u'
                bend = high * above
                found = Slopes(low * below, bend, bend)
            else:
                found = Slopes(
                    (low + self._unit) * below, (high + self._unit) * above, high * above
                )
        return found if np.isfinite(found.high).all() else None

    def _totals(self, high: Matrix, low: Matrix, delta: Matrix) -> tuple[np.ndarray, np.ndarray]:
        if not self.normalized:
            return self.total, self.total
        sizes_high, sizes_low = high, low
        if self._linear is not None:
            sizes = self._unit * (np.abs(self._linear) + delta)
            sizes_high, sizes_low = high + sizes, low + sizes
            high, low = (
                high + self._unit * (self._linear + delta),
                low + self._unit * (self._linear - delta),
            )
        add = lambda part: self.copies * np.sum(part, axis=1, keepdims=True)
        return add(high) + self._slack * add(sizes_high), add(low) - self._slack * add(sizes_low)
