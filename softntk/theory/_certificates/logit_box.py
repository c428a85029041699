r"""Enclosures of the factors of a Jacobian on a box of logits, |z_r − z⁰_r| ≤ δ_r.

For u = e^z or e^z + z, which increase and have increasing slopes,

    Σu(z⁰ − δ) =: α⁻ ≤ α ≤ α⁺ := Σu(z⁰ + δ),
    u'(z⁰ − δ)/α⁺ ≤ u'/α ≤ u'(z⁰ + δ)/α⁻,
    |u''/α| ≤ e^{z⁰ + δ}/α⁻,

as long as α⁻ > 0 (always, for e^z). Without the normaliser α = 1. All of it in float64, rounded
outward.

Symbols, with row i of x and unit r; all exponentials carry the factor e^{−c_i}, which cancels in
u/α and prevents overflow:

    z⁰         logits                              [n, m]
    c          shift of a row (zero without α)     [n, 1]
    _power     e^{z⁰ − c}                          [n, m]
    _unit      e^{−c} for e^z + z, zero for e^z    [n, 1]
    total      α e^{−c}                            [n, 1]
    centre     u'/α at z⁰                          [n, m]
    values     u/α at z⁰                           [n, m]
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from softntk._linalg.rigorous import EPS, slack

Matrix = Float[np.ndarray, "n m"]
RowTotals = Float[np.ndarray, "n 1"]

ENCLOSED_ACTIVATIONS = ("exp", "res_exp")
"""Activations that these enclosures are proved for."""

LOGIT_ROUNDINGS = 8
"""Roundings counted for each of: the sum of a logit, its shift, and the exponential."""


class SlopeBounds(NamedTuple):
    """Bounds of u'/α (u' without the normaliser) and of the second derivative on a box.

    Attributes:
        lower: below u'/α, [n, m].
        upper: above u'/α, [n, m].
        second: above |u''/α|, [n, m].
    """

    lower: Matrix
    upper: Matrix
    second: Matrix


class LogitBox:
    """A network's logits, with enclosures of its slopes on boxes around them.

    Attributes:
        start: δ that covers the rounding of the logits themselves, [n, m].
        centre: u'/α as computed, [n, m].
        values: u/α (or u), [n, m].
        total: α in the unit of the row, [n, 1]; one without the normaliser.
    """

    def __init__(
        self,
        activation: str,
        normalized: bool,
        x: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, "d m"],
        copies: int,
    ) -> None:
        self.normalized = normalized
        self.copies = copies
        has_linear_part = activation == "res_exp"
        # 1. Logits and shift; e^z + z needs c ≥ 0, so that its linear part does not overflow.
        z = x @ weights
        shift = np.max(z, axis=1, keepdims=True) if normalized else np.zeros((len(z), 1))
        if has_linear_part:
            shift = np.maximum(shift, 0)
        self._power = np.exp(z - shift)
        self._linear = z if has_linear_part else None
        self._unit = np.exp(-shift) if has_linear_part else np.zeros((len(z), 1))
        self._slack = slack(z.shape[1] * copies)
        # 2. The rounding of the logits, of z − c and of the exponential, as a half-width δ.
        self.start = EPS * (
            (x.shape[1] + LOGIT_ROUNDINGS) * (np.abs(x) @ np.abs(weights))
            + LOGIT_ROUNDINGS * np.abs(z - shift)
            + LOGIT_ROUNDINGS * np.abs(shift)
        )
        # 3. u, α, u/α and u'/α at the logits.
        u = self._power if self._linear is None else self._power + self._unit * z
        self.total = (
            copies * np.sum(u, axis=1, keepdims=True) if normalized else np.ones((len(z), 1))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            self.centre = (self._power + self._unit) / self.total
            self.values = u / self.total

    def slopes(self, delta: Matrix) -> SlopeBounds | None:
        """Return bounds of the slopes on the box of half-widths δ, [n, m].

        None where the normaliser may vanish, or something overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            # e^{z⁰ ± δ} bound the exponentials, as they increase.
            factor = np.exp(delta)
            upper_power = self._power * factor
            lower_power = self._power / factor
            largest_total, smallest_total = self._total_bounds(upper_power, lower_power, delta)
            # α⁻ ≤ 0: the normaliser may vanish somewhere in the box.
            if not (smallest_total > 0).all() or not np.isfinite(largest_total).all():
                return None
            # 1/α from above and from below, rounded outward.
            inverse_upper = (1 + self._slack) / smallest_total
            inverse_lower = (1 - self._slack) / largest_total
            second = upper_power * inverse_upper
            if self._linear is None:
                # e^z is its own derivative, so that one array serves u' and u''.
                bounds = SlopeBounds(lower_power * inverse_lower, second, second)
            else:
                bounds = SlopeBounds(
                    (lower_power + self._unit) * inverse_lower,
                    (upper_power + self._unit) * inverse_upper,
                    second,
                )
        return bounds if np.isfinite(bounds.upper).all() else None

    def _total_bounds(
        self, upper_power: Matrix, lower_power: Matrix, delta: Matrix
    ) -> tuple[RowTotals, RowTotals]:
        """Return α⁺ and α⁻; rounding is relative to the sums of the moduli of all terms."""
        if not self.normalized:
            return self.total, self.total
        # For e^z all terms are positive and their own moduli; the linear part of e^z + z has signs.
        if self._linear is None:
            upper_terms = upper_moduli = upper_power
            lower_terms = lower_moduli = lower_power
        else:
            moduli = self._unit * (np.abs(self._linear) + delta)
            upper_moduli = upper_power + moduli
            lower_moduli = lower_power + moduli
            upper_terms = upper_power + self._unit * (self._linear + delta)
            lower_terms = lower_power + self._unit * (self._linear - delta)
        return (
            self._sum_units(upper_terms) + self._slack * self._sum_units(upper_moduli),
            self._sum_units(lower_terms) - self._slack * self._sum_units(lower_moduli),
        )

    def _sum_units(self, terms: Matrix) -> RowTotals:
        """Return the sums over all units, each counted as often as it occurs."""
        return self.copies * np.sum(terms, axis=1, keepdims=True)
