"""Targets: theory. Closed forms in long double; certificates by laws."""

import math
from typing import Any

import mpmath

from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare

SIZES: dict[str, Any] = {
    "n": "count",
    "smallest": "positive",
    "k": "count",
    "sigma": "positive",
    "failure": "fraction",
    "constants": "object",
}


class Sizes:
    """n, λ, k, σ, δ, and the logarithm of everything by mpmath."""

    def __init__(self, draw: Draw) -> None:
        self.family = draw.pick("softmax", "exp", "relu")
        self.n, self.k = draw.pick(1, 5, 1000, 10**6), draw.pick(1, 10)
        self.smallest = draw.positive() * (1.0 if draw.mild else draw.pick(1.0, 1e-30, 1e30))
        self.sigma = draw.positive(0.1, 2.0)
        self.failure = draw.pick(0.1, 1e-10, 0.999)

    @property
    def arguments(self) -> dict[str, Any]:
        """What all functions take."""
        return {
            "n": self.n,
            "smallest": self.smallest,
            "k": self.k,
            "sigma": self.sigma,
            "failure": self.failure,
        }

    @property
    def growth(self) -> Any:
        """B."""
        return max(mpmath.mpf(self.sigma) * mpmath.sqrt(self.logs), mpmath.mpf(1))

    @property
    def logs(self) -> Any:
        """The logarithm of nk/δ."""
        return mpmath.log(mpmath.mpf(self.n) * self.k / mpmath.mpf(self.failure))

    @property
    def square(self) -> Any:
        """n²k²/λ²."""
        return (mpmath.mpf(self.n) * self.k / mpmath.mpf(self.smallest)) ** 2

    def power(self, exponent: float) -> Any:
        """e^{exponent · B}; one for relu."""
        return mpmath.mpf(1) if self.family == "relu" else mpmath.exp(exponent * self.growth)


def same_number(result: Any, want: Any, rtol: float = 1e-11) -> str | None:
    """Compare floats with a number of mpmath; beyond the largest is infinity, below the smallest
    zero.
    """
    got = float(result)
    largest, smallest = mpmath.mpf(1.7976931348623157e308), mpmath.mpf(1e-307)
    if abs(want) > largest * (1 - 1e-9):
        good = math.isinf(got) or abs(got) > 1e307
    else:
        good = abs(got - want) <= rtol * abs(want) + smallest
    return (
        None
        if good
        else f"{'NaN, ' if math.isnan(got) else ''}{got} instead of {mpmath.nstr(want, 17)}"
    )


@target("theory.required_width", family="choice", **SIZES)
def required_width(draw: Draw) -> Call:
    s = Sizes(draw)
    want = s.square * s.power(18) * s.logs ** (1 if s.family == "relu" else 2)
    return Call({"family": s.family, **s.arguments}, lambda result: same_number(result, want))


@target("theory.required_steps", family="choice", accuracy="positive", **SIZES)
def required_steps(draw: Draw) -> Call:
    s = Sizes(draw)
    accuracy = draw.pick(1e-3, 1e-300, 1.0)
    want = 20 * s.square * s.power(16) * max(mpmath.log(mpmath.mpf(s.n) * s.k / accuracy), 0)
    return Call(
        {"family": s.family, **s.arguments, "accuracy": accuracy},
        lambda result: same_number(result, want),
    )


@target(
    "theory.bounds.growth",
    n="count",
    k="count",
    sigma="positive",
    failure="fraction",
    constants="object",
)
def growth(draw: Draw) -> Call:
    s = Sizes(draw)
    arguments = {"n": s.n, "k": s.k, "sigma": s.sigma, "failure": s.failure}
    return Call(arguments, lambda result: same_number(result, s.growth))


@target(
    "theory.bounds.learning_rate",
    family="choice",
    parameterization="choice",
    width="count?",
    **SIZES,
)
def learning_rate(draw: Draw) -> Call:
    s = Sizes(draw)
    parameterization = draw.pick("ntk", "paper")
    want = mpmath.mpf("0.1") * mpmath.mpf(s.smallest) / (mpmath.mpf(s.n) * s.k) ** 2 / s.power(16)
    want = want / 64 if parameterization == "paper" else want
    arguments = {
        "family": s.family,
        **s.arguments,
        "parameterization": parameterization,
        "width": 64,
    }
    return Call(arguments, lambda result: same_number(result, want))


@target(
    "theory.bounds.descent_factor",
    smallest="positive",
    rate="positive",
    parameterization="choice",
    width="count?",
)
def descent_factor(draw: Draw) -> Call:
    smallest = draw.positive() * draw.scale(100)
    share = draw.pick(1.0, 1e-3, 1.9)
    rate = share / smallest
    arguments = {"smallest": smallest, "rate": rate, "parameterization": "ntk", "width": None}
    return Call(arguments, lambda result: compare(result, 1 - share / 2, 1e-12, draw, size=1.0))


@target(
    "theory.bounds.perturbation_bound",
    R="positive",
    family="choice",
    parameterization="choice",
    width="count?",
    **({name: kind for name, kind in SIZES.items() if name != "smallest"}),
)
def perturbation_bound(draw: Draw) -> Call:
    s = Sizes(draw)
    R = draw.positive() * (1.0 if draw.mild else draw.pick(1.0, 1e-300, 1e300))
    move = mpmath.mpf(R) * s.n * s.k
    want = 2 * move / mpmath.mpf(s.sigma) if s.family == "relu" else move * s.power(10)
    arguments = {
        "R": R,
        "n": s.n,
        "family": s.family,
        "k": s.k,
        "sigma": s.sigma,
        "failure": s.failure,
    }
    return Call(arguments, lambda result: same_number(result, want))


@target(
    "theory.bounds.smallest_eigenvalue",
    R="positive",
    family="choice",
    parameterization="choice",
    width="count?",
    **SIZES,
)
def smallest_eigenvalue(draw: Draw) -> Call:
    s = Sizes(draw)
    R = draw.positive() * (1e-6 if draw.mild else draw.pick(1.0, 1e-12, 1e-300))
    move = mpmath.mpf(R) * s.n * s.k
    lost = 2 * move / mpmath.mpf(s.sigma) if s.family == "relu" else move * s.power(10)
    want = mpmath.mpf("0.75") * mpmath.mpf(s.smallest) - lost
    cancels = abs(want) < 1e-6 * lost
    arguments = {"R": R, "family": s.family, **s.arguments}
    return Call(
        arguments, lambda result: never_nan(result) if cancels else same_number(result, want, 1e-5)
    )


@target(
    "theory.bounds.radius",
    family="choice",
    residual="positive",
    width="count",
    parameterization="choice",
    **SIZES,
)
def radius(draw: Draw) -> Call:
    s = Sizes(draw)
    residual, width = draw.positive() * draw.scale(100), draw.pick(16, 10**9)
    want = (
        4
        / mpmath.sqrt(width)
        / mpmath.mpf(s.smallest)
        * s.power(3)
        * mpmath.sqrt(mpmath.mpf(s.n) * s.k)
        * mpmath.mpf(residual)
    )
    arguments = {"family": s.family, **s.arguments, "residual": residual, "width": width}
    return Call(arguments, lambda result: same_number(result, want))


@target("theory.bounds.table", accuracy="positive", **SIZES)
def table(draw: Draw) -> Call:
    s = Sizes(draw)

    def check(rows: Any) -> str | None:
        for row in rows:
            s.family = row.family
            message = same_number(
                row.width, s.square * s.power(18) * s.logs ** (1 if s.family == "relu" else 2)
            )
            if message or len(str(row)) < 10:
                return message
        return None

    return Call(s.arguments | {"accuracy": 1e-3}, check)
