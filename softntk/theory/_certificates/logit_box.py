r"""Enclosures of the factors of a Jacobian on a box of logits, |z_r − z⁰_r| ≤ δ_r.

With bounds u⁻, u⁺ of an activation on an interval, and the like of u' and u'',

    Σu⁻ =: α⁻ ≤ α ≤ α⁺ := Σu⁺,
    u'⁻/α^± ≤ u'/α ≤ u'⁺/α^∓,        |u''/α| ≤ max |u''|/α⁻,

with the end of α that makes a bound larger, as long as α⁻ > 0 (always, for e^z). Without the
normaliser α = 1. For e^z + κz, whose derivatives increase, the bounds are values at the ends, and
one exponential e^δ serves all. All of it in float64, rounded outward.

Symbols, with row i of x and unit r; all of u carries the factor e^{−c_i}, which cancels in u/α and
prevents overflow:

    z⁰         logits                              [n, m]
    c          shift of a row (zero without α)     [n, 1]
    _power     e^{z⁰ − c}                          [n, m]
    _unit      κe^{−c}                             [n, 1]
    total      α e^{−c}                            [n, 1]
    centre     u'/α at z⁰                          [n, m]
    values     u/α at z⁰                           [n, m]
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from softntk._linalg.rigorous import EPS, Interval, slack
from softntk.activations import Enclosure

Matrix = Float[np.ndarray, "n m"]
RowTotals = Float[np.ndarray, "n 1"]

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

    @property
    def modulus(self) -> Matrix:
        """A bound of |u'/α|, [n, m]."""
        return np.maximum(self.upper, -self.lower)


class _UnitBounds(NamedTuple):
    """Bounds of the units on a box, in the unit of the row.

    Attributes:
        u: of u, [n, m].
        moduli: of the terms of both ends of u, to which their rounding is relative, [n, m].
        du: of u', [n, m].
        d2u: above |u''|, [n, m].
    """

    u: Interval
    moduli: Interval
    du: Interval
    d2u: Matrix


class _ExponentialUnits:
    """Units u = e^z + κz, whose bounds on any box come from the exponentials at its centre.

    Attributes:
        u: at the centre, [n, m].
        du: u' at the centre, [n, m].
    """

    def __init__(self, z: Matrix, shift: RowTotals, slope: float) -> None:
        self._power = np.exp(z - shift)
        self._linear = z if slope else None
        self._unit = slope * np.exp(-shift) if slope else np.zeros((len(z), 1))
        self.u = self._power if self._linear is None else self._power + self._unit * z
        self.du = self._power + self._unit

    def on_box(self, delta: Matrix) -> _UnitBounds:
        """Return bounds on the box of half-widths δ."""
        # 1. e^{z⁰ ± δ} bound the exponentials, as they increase.
        factor = np.exp(delta)
        upper = self._power * factor
        lower = self._power / factor
        # 2. e^z is its own derivative and its own modulus, so that one array serves all.
        if self._linear is None:
            ends = Interval(lower, upper)
            return _UnitBounds(ends, ends, ends, upper)
        # 3. The linear part has signs.
        moduli = self._unit * (np.abs(self._linear) + delta)
        return _UnitBounds(
            u=Interval(
                lower + self._unit * (self._linear - delta),
                upper + self._unit * (self._linear + delta),
            ),
            moduli=Interval(lower + moduli, upper + moduli),
            du=Interval(lower + self._unit, upper + self._unit),
            d2u=upper,
        )


class _EnclosedUnits:
    """Units of any activation with an enclosure.

    Attributes:
        u: at the centre, [n, m].
        du: u' at the centre, [n, m].
    """

    def __init__(self, z: Matrix, shift: RowTotals, enclosure: Enclosure) -> None:
        self._z = z
        self._shift = shift
        self._enclosure = enclosure
        self.u, self.du, _, _ = enclosure.jet(z, shift).values

    def on_box(self, delta: Matrix) -> _UnitBounds:
        """Return bounds on the box of half-widths δ."""
        # The ends are rounded outward.
        lower = np.nextafter(self._z - delta, -np.inf)
        upper = np.nextafter(self._z + delta, np.inf)
        u, du, d2u = self._enclosure.bounds(lower, upper, self._shift, orders=(0, 1, 2))
        return _UnitBounds(u, Interval(u.modulus, u.modulus), du, d2u.modulus)


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
        enclosure: Enclosure,
        normalized: bool,
        x: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, "d m"],
        copies: int,
    ) -> None:
        self.normalized = normalized
        self.copies = copies
        # 1. Logits and shift.
        z = x @ weights
        shift = enclosure.shift(z) if normalized else np.zeros((len(z), 1))
        slope = enclosure.exponential_slope
        self._is_exponential = slope == 0
        self._slack = slack(z.shape[1] * copies)
        # 2. The rounding of the logits, of z − c and of the exponential, as a half-width δ.
        self.start = EPS * (
            (x.shape[1] + LOGIT_ROUNDINGS) * (np.abs(x) @ np.abs(weights))
            + LOGIT_ROUNDINGS * np.abs(z - shift)
            + LOGIT_ROUNDINGS * np.abs(shift)
        )
        # 3. u, α, u/α and u'/α at the logits.
        self._units = (
            _EnclosedUnits(z, shift, enclosure)
            if slope is None
            else _ExponentialUnits(z, shift, slope)
        )
        self.total = self._sum_units(self._units.u) if normalized else np.ones((len(z), 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            self.centre = self._units.du / self.total
            self.values = self._units.u / self.total

    def slopes(self, delta: Matrix) -> SlopeBounds | None:
        """Return bounds of the slopes on the box of half-widths δ, [n, m].

        None where the normaliser may vanish, or something overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            units = self._units.on_box(delta)
            inverse = self._inverse_total(units)
            if inverse is None:
                return None
            lower, upper = _times_positive(units.du, inverse)
            # e^z is its own derivative: one array serves both.
            second = upper if units.d2u is units.du.upper else units.d2u * inverse.upper
            bounds = SlopeBounds(lower, upper, second)
        return bounds if np.isfinite(bounds.modulus).all() and np.isfinite(second).all() else None

    def value_errors(self) -> Matrix:
        """Return how far u/α may lie from ``values``, by the rounding of the logits, [n, m]."""
        # The rounding of a logit is a relative error of e^z, and of α. For other functions, whose
        # terms may cancel, it is not.
        if self._is_exponential:
            return 2 * np.expm1(self.start).max() * np.abs(self.values)
        units = self._units.on_box(self.start)
        inverse = self._inverse_total(units)
        assert inverse is not None
        lower, upper = _times_positive(units.u, inverse)
        return np.maximum(upper - self.values, self.values - lower)

    def _inverse_total(self, units: _UnitBounds) -> Interval | None:
        """Return bounds of 1/α, rounded outward; None where α may vanish or overflows."""
        largest_total = smallest_total = self.total
        if self.normalized:
            # Rounding is relative to the sums of the moduli of all terms.
            largest_total = self._sum_units(units.u.upper) + self._slack * self._sum_units(
                units.moduli.upper
            )
            smallest_total = self._sum_units(units.u.lower) - self._slack * self._sum_units(
                units.moduli.lower
            )
        if not (smallest_total > 0).all() or not np.isfinite(largest_total).all():
            return None
        return Interval((1 - self._slack) / largest_total, (1 + self._slack) / smallest_total)

    def _sum_units(self, terms: Matrix) -> RowTotals:
        """Return the sums over all units, each counted as often as it occurs."""
        return self.copies * np.sum(terms, axis=1, keepdims=True)


def _times_positive(terms: Interval, factor: Interval) -> tuple[Matrix, Matrix]:
    """Return the lower and the upper ends of the products with a positive factor, [n, 1]."""
    lower = terms.lower * factor.lower
    upper = terms.upper * factor.upper
    # A negative term is extreme at the other end of the factor.
    if (terms.lower < 0).any():
        lower = np.minimum(lower, terms.lower * factor.upper)
        upper = np.maximum(upper, terms.upper * factor.lower)
    return lower, upper
