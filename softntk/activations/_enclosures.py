"""What is proved about an activation on intervals: the record that certificates and bounds read.

An :class:`Enclosure` has a jet of its own, in NumPy, of u and three derivatives, and the points
where each of them turns or jumps. Between these points a derivative is monotone, so that its range
on an interval lies between its values at the ends and at the points inside. Nothing here uses the
closed forms that networks and regressions are computed from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from softntk._core.validation import check_callable, check_flag
from softntk._linalg.rigorous import EPS, Interval

Values = np.ndarray
"""Numbers of any shape in any precision of NumPy, up to ``numpy.longdouble``."""

EVALUATION_ROUNDINGS = 16
"""Roundings counted for one evaluation of a jet, relative to its moduli."""

SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)
"""The smallest normal number, by which a value that underflows may be off."""

LARGEST_GAUSSIAN_LOGIT = 1e3
"""|z| beyond which e^{−z²/2} is zero in any precision."""

ORDERS = (0, 1, 2, 3)
"""Orders of the derivatives of a jet."""


class HostJet(NamedTuple):
    """u and three derivatives times e^{−shift}, and the moduli that rounding is relative to.

    Attributes:
        values: (u, u', u'', u''').
        moduli: the sums of the absolute values of the terms of each.
    """

    values: tuple[Values, Values, Values, Values]
    moduli: tuple[Values, Values, Values, Values]


class Suprema(NamedTuple):
    """Suprema of an activation and three derivatives, on one interval for each sample.

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


def no_shift(z: Values) -> Values:
    """Return the shift of a function that does not overflow: zero for every row."""
    return np.zeros((*z.shape[:-1], 1), z.dtype)


def _at_least_float64(ends: Values) -> Values:
    """Return ends of intervals in float64, or in the longer precision that they have."""
    return np.asarray(ends, np.promote_types(np.asarray(ends).dtype, np.float64))


@dataclass(frozen=True)
class Enclosure:
    """What is proved about an activation u, from which certificates and bounds are made.

    Use it to give certificates to an activation of your own: ``Activation(…, enclosure=…)``, or the
    argument of :func:`softntk.activations.from_function`.

    Attributes:
        jet: ``(z, shift) ->`` :class:`HostJet`, by NumPy, elementwise, in the precision of z;
            shift broadcasts against z.
        turning_points: the points where each of u, u', u'' and u''' changes its direction, a tuple
            for each. Rounded numbers will do: a function is flat where it turns.
        shift: ``z [..., m] -> c [..., 1]``, the shift for which e^{−c} u is of order one along the
            last axis; zero for functions that do not overflow.
        jumps: points where a derivative jumps, that of order ``jump_order``. Below this order u is
            continuous, above it nothing is known on intervals with such a point.
        jump_order: 0 if u jumps itself, 1 if u' does.
        convex: whether u is convex.
        gaussian: whether the jet has factors like e^{−z²}, whose relative error grows with z².
        extended: whether the jet is accurate in ``numpy.longdouble``, and not in float64 only.
        exponential_slope: κ if u = e^z + κz, for which there are closer bounds of Σu; None for
            any other u.
        surrogate: name of a smooth activation in the table, if u' is constant between its jumps. A
            search by gradients replaces u' by that of the surrogate.

    Raises:
        ValueError: a jet or a shift that is no function, a flag that is not True or False, turning
            points that are not four tuples, a jump_order that is not 0 or 1.

    Example:
        >>> import numpy as np
        >>> from softntk import activations
        >>> cosh = activations.get("cosh").enclosure
        >>> value, slope = cosh.bounds(np.array([-1.0]), np.array([2.0]), orders=(0, 1))
        >>> float(value.lower[0].round(6)), float(slope.upper[0].round(6))  # 1 at zero, sinh 2
        (1.0, 3.62686)

    Source: Moore, Kearfott and Cloud (2009), Introduction to Interval Analysis, chapter 5.
    """

    jet: Callable[..., HostJet]
    turning_points: tuple[tuple[float, ...], ...] = ((), (), (), ())
    shift: Callable[[Values], Values] = no_shift
    jumps: tuple[float, ...] = ()
    jump_order: int = 1
    convex: bool = False
    gaussian: bool = False
    extended: bool = True
    exponential_slope: float | None = None
    surrogate: str | None = None

    def __post_init__(self) -> None:
        """Check the fields whose faults would show late."""
        check_callable("jet", self.jet, "a function (z, shift) -> HostJet")
        check_callable("shift", self.shift, "a function of the logits")
        for flag in ("convex", "gaussian", "extended"):
            check_flag(flag, getattr(self, flag))
        if self.jump_order not in (0, 1):
            raise ValueError(f"jump_order must be 0 or 1, got {self.jump_order!r}.")
        if len(self.turning_points) != len(ORDERS):
            raise ValueError(
                "turning_points must be four tuples, of u, u', u'' and u''', got "
                f"{self.turning_points!r}."
            )

    def ranges(
        self,
        evaluate: Callable[[np.ndarray], Sequence[Interval]],
        lower: Values,
        upper: Values,
        orders: Sequence[int] = ORDERS,
    ) -> list[Interval]:
        """Return the ranges of derivatives on [lower, upper], by any evaluation of them.

        Args:
            evaluate: ``t -> (interval of u, of u', …)`` around the values at t.
            lower: the lower ends.
            upper: the upper ends, of the same shape.
            orders: orders of the derivatives; 0 is u itself.
        """
        lower = _at_least_float64(lower)
        upper = _at_least_float64(upper)
        at_lower = evaluate(lower)
        at_upper = evaluate(upper)
        one_entry = (1,) * lower.ndim
        results = []
        for order in orders:
            least = np.minimum(at_lower[order].lower, at_upper[order].lower)
            largest = np.maximum(at_lower[order].upper, at_upper[order].upper)
            # 1. Values where the derivative turns or jumps, on the intervals with such a point.
            for point, sides in self._inner_points(order):
                is_inside = (lower <= point) & (point <= upper)
                if not is_inside.any():
                    continue
                inner = [evaluate(np.full(one_entry, side, lower.dtype))[order] for side in sides]
                least = np.minimum.reduce(
                    [least, *(np.where(is_inside, end.lower, least) for end in inner)]
                )
                largest = np.maximum.reduce(
                    [largest, *(np.where(is_inside, end.upper, largest) for end in inner)]
                )
            # 2. The derivative of a jump is not bounded.
            if order > self.jump_order:
                for jump in self.jumps:
                    is_inside = (lower <= jump) & (jump <= upper)
                    least = np.where(is_inside, -np.inf, least)
                    largest = np.where(is_inside, np.inf, largest)
            results.append(Interval(least, largest))
        return results

    def _inner_points(self, order: int) -> list[tuple[float, tuple[float, ...]]]:
        """Return points with the arguments at which a derivative must be evaluated around them."""
        points: list[tuple[float, tuple[float, ...]]] = [
            (point, (point,)) for point in self.turning_points[order]
        ]
        # A jump has a value on either side.
        jumps = self.jumps if order >= self.jump_order else ()
        for jump in jumps:
            # In float64 also for longer numbers: any point beside the jump has the limit there, as
            # a derivative is monotone up to the next turning point.
            below = float(np.nextafter(jump, -np.inf)) - SMALLEST_NORMAL
            above = float(np.nextafter(jump, np.inf)) + SMALLEST_NORMAL
            points.append((jump, (below, jump, above)))
        return points

    def bounds(
        self,
        lower: Values,
        upper: Values,
        shift: Values | float = 0.0,
        orders: Sequence[int] = ORDERS,
    ) -> list[Interval]:
        """Return ranges of e^{−shift} times derivatives on [lower, upper], rounded outward.

        Every rounding error of an evaluation in float64 is counted. An end is NaN where an overflow
        leaves nothing known.

        Args:
            lower: the lower ends.
            upper: the upper ends, of the same shape.
            shift: the shift, which broadcasts against the ends.
            orders: orders of the derivatives; 0 is u itself.

        Returns:
            One :class:`~softntk._linalg.rigorous.Interval` for each order.
        """

        def evaluate(t: np.ndarray) -> list[Interval]:
            jet = self.jet(t, shift)
            rounding = EVALUATION_ROUNDINGS * EPS * self.condition(t, shift)
            # What underflows is multiplied by z, or by e^{−shift}, afterwards.
            underflow = SMALLEST_NORMAL * (1 + np.abs(t)) * np.maximum(1, np.exp(-shift))
            errors = [rounding * modulus + underflow for modulus in jet.moduli]
            return [
                Interval(value - error, value + error)
                for value, error in zip(jet.values, errors, strict=True)
            ]

        return self.ranges(evaluate, lower, upper, orders)

    def condition(self, z: Values, shift: Values | float) -> Values:
        """Return the factor, at least one, by which exponentials amplify rounding errors of z."""
        # Even and odd functions have exponentials of |z| − shift.
        amplification = 1 + np.maximum(np.abs(z - shift), np.abs(np.abs(z) - shift))
        if self.gaussian:
            clipped_z = np.clip(z, -LARGEST_GAUSSIAN_LOGIT, LARGEST_GAUSSIAN_LOGIT)
            amplification = amplification + 2 * clipped_z**2
        return amplification

    def suprema(self, lower: Values, upper: Values, shift: Values | float = 0.0) -> Suprema:
        """Return e^{−shift} times the suprema of the four moduli on intervals [lower, upper].

        They are not rounded outward: the caller adds a margin for rounding. Arguments are those of
        :meth:`bounds`.
        """

        def evaluate(t: np.ndarray) -> list[Interval]:
            return [Interval(value, value) for value in self.jet(t, shift).values]

        return Suprema(*(interval.modulus for interval in self.ranges(evaluate, lower, upper)))
