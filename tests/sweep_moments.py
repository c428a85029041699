"""Every Gaussian moment, limit and step through a layer, over sixty orders of magnitude, against
closed forms in 110 digits.

``python tests/sweep_moments.py`` sweeps the large grid and prints a table: the worst error of every
activation in units of rounding. A unit is what rounding of the result, and of each q, is worth
there: eps · (size of the terms) + Σ |f(q (1 + eps)) − f(q)|. The variances are taken as exact
numbers, so the second part counts only where a moment is ill-conditioned (exponentials of large
numbers, angles near zero). Values beyond the precision must saturate with the right sign; none may
be NaN.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from softntk import ntk
from softntk.activations import ACTIVATIONS

mp.mp.dps = 110

EPSILON = mp.mpf(0.01)
"""Of crrelu in the table, as a double."""
WEIGHT, BIAS = 0.75, 0.125

SMALL = ([1e-30, 1e-3, 1.0, 80.0, 1e7, 1e30], [-1.0, -0.3, 0.0, 1 - 1e-7, 1.0])
LARGE = (
    [float(f"1e{k}") for k in range(-30, 31, 3)] + [0.3, 7.0, 40.0, 88.0, 170.0, 700.0],
    [-1.0, -1 + 1e-7, -0.9, -1e-7, 0.0, 1e-12, 0.5, 0.999, 1 - 1e-5, 1 - 1e-7, 1 - 1e-15, 1.0],
)


class Value(NamedTuple):
    """A moment, and the size of the terms that it is the sum of."""

    value: Any
    size: Any


# --- closed forms
# -------------------------------------------------------------------------------------------------


def _exponential(a: Any, c: Any, b: Any, sign: int = 1) -> Any:
    return mp.exp((a + b) / 2 + sign * c)


def _angle(a: Any, c: Any, b: Any) -> Any:
    return mp.acos(max(mp.mpf(-1), min(mp.mpf(1), c / mp.sqrt(a * b))))


def _sum(*terms: Any) -> Value:
    return Value(mp.fsum(terms), mp.fsum(abs(term) for term in terms))


def _exact(value: Any) -> Value:
    return Value(value, abs(value))


def exp_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return covariance and derivative of e^z."""
    value = _exact(_exponential(a, c, b))
    return value, value


def res_exp_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of e^z + z, by E[g₁ e^{g₂}] = q12 e^{q22/2}."""
    ends = (mp.exp(a / 2), mp.exp(b / 2), mp.mpf(1))
    return _sum(_exponential(a, c, b), *(c * e for e in ends)), _sum(_exponential(a, c, b), *ends)


def cosh_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of cosh."""
    up, down = _exponential(a, c, b), _exponential(a, c, b, -1)
    return _exact((up + down) / 2), _exact((up - down) / 2)


def sinh_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of sinh."""
    covariance, derivative = cosh_moments(a, c, b)
    return derivative, covariance


def relu_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of relu: Cho and Saul."""
    theta, norms = _angle(a, c, b), mp.sqrt(a * b)
    covariance = norms * (mp.sin(theta) + (mp.pi - theta) * mp.cos(theta)) / (2 * mp.pi)
    return Value(covariance, norms), Value((mp.pi - theta) / (2 * mp.pi), mp.mpf(0.5))


def threshold_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of the step."""
    return relu_moments(a, c, b)[1], Value(mp.mpf(0), mp.mpf(0))


def crrelu_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of relu(z) + ε z e^{−z²/2}: by Stein, as g e^{−g²/2} tilts the Gaussian."""
    determinant = (1 + a) * (1 + b) - min(c**2, a * b)
    outer = EPSILON / 2 * (mp.power(1 + a, -1.5) + mp.power(1 + b, -1.5))
    inner = EPSILON**2 * mp.power(determinant, -1.5)
    tail = EPSILON**2 * 3 * c**2 * mp.power(determinant, -2.5)
    covariance, derivative = relu_moments(a, c, b)
    bump, slope = c * (outer + inner), outer + inner + tail
    return (
        Value(covariance.value + bump, covariance.size + abs(bump)),
        Value(derivative.value + slope, derivative.size + abs(slope)),
    )


def identity_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of z."""
    return _exact(c), _exact(mp.mpf(1))


def erf_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of erf: Williams."""
    product = (1 + 2 * a) * (1 + 2 * b)
    sine = 2 * c / mp.sqrt(product)
    return _exact(2 / mp.pi * mp.asin(sine)), _exact(
        4 / mp.pi / mp.sqrt(product - 4 * min(c**2, a * b))
    )


def gelu_moments(a: Any, c: Any, b: Any) -> tuple[Value, Value]:
    """Return those of z Φ(z): by Stein, with the orthant probability of variances 1 + q."""
    p, r = 1 + a, 1 + b
    determinant = p * r - min(c**2, a * b)
    density = 1 / (2 * mp.pi * mp.sqrt(determinant))
    probability = (mp.pi - mp.acos(c / mp.sqrt(p * r))) / (2 * mp.pi)
    inverses = 1 / p + 1 / r
    area = a * b - min(c**2, a * b)
    return (
        _sum(c * probability, area * density, c**2 * inverses * density),
        _sum(probability, c * inverses * density, c / determinant * density),
    )


MOMENTS: dict[str, Callable] = {
    name.removesuffix("_moments"): function
    for name, function in list(globals().items())
    if name.endswith("_moments")
}
MEANS: dict[str, Callable] = {
    "exp": lambda q: mp.exp(q / 2),
    "res_exp": lambda q: mp.exp(q / 2),
    "cosh": lambda q: mp.exp(q / 2),
    "relu": lambda q: mp.sqrt(q / (2 * mp.pi)),
    "crrelu": lambda q: mp.sqrt(q / (2 * mp.pi)),
    "threshold": lambda q: mp.mpf(0.5),
    "gelu": lambda q: q / mp.sqrt(2 * mp.pi * (1 + q)),
}


# --- what is computed, and what it should be
# ----------------------------------------------------------------------


class Row(NamedTuple):
    """The worst case of one quantity: its error in units of rounding, and relative to the size of
    its terms.
    """

    name: str
    quantity: str
    units: float
    relative: float
    where: tuple


def grid(sizes: list[float], correlations: list[float], dtype: str) -> np.ndarray:
    """Return (q11, q12, q22), [points, 3], rounded to the precision."""
    rows = [
        (a, rho * np.sqrt(a) * np.sqrt(b), b)
        for (a, b), rho in itertools.product(
            itertools.combinations_with_replacement(sizes, 2), correlations
        )
    ]
    return np.asarray(rows).astype(dtype)


def computed(name: str, points: np.ndarray) -> dict[str, np.ndarray]:
    """Return what softntk says, by the name of the quantity."""
    activation, (a, c, b) = ACTIVATIONS[name], jnp.asarray(points).T
    moments, out = activation.moments, {}
    shift = moments.growth(a) + moments.growth(b)
    out["covariance"], out["derivative"] = (
        moments.covariance(a, c, b, 0.0),
        moments.derivative(a, c, b, 0.0),
    )
    if name in ("exp", "res_exp", "cosh", "sinh"):
        out["covariance, shifted"] = moments.covariance(a, c, b, shift)
        out["derivative, shifted"] = moments.derivative(a, c, b, shift)
    out["mean"], out["mean, shifted"] = moments.mean(a, 0.0), moments.mean(a, moments.growth(a))
    for normalized in (False, True) if moments.positive_mean else (False,):
        suffix = ", normalized" if normalized else ""
        out[f"limit{suffix}"], out[f"slope{suffix}"] = activation.limit(a, c, b, normalized)
        step = ntk.propagate(
            activation,
            a,
            c,
            b,
            1,
            normalized=normalized,
            weight_variance=WEIGHT,
            bias_variance=BIAS,
        )
        out[f"layer{suffix}"], out[f"NTK{suffix}"] = step.covariance[1], step.ntk[1]
        out[f"variance{suffix}"] = step.variance1[1]
    return {quantity: np.asarray(value) for quantity, value in out.items()}


def exact(name: str, quantity: str, point: tuple, shifts: tuple) -> Value:
    """Return what it should be."""
    a, c, b = point
    c = max(-mp.sqrt(a * b), min(mp.sqrt(a * b), c))
    what, _, how = quantity.partition(", ")
    if what == "mean":
        value = MEANS[name](a) if name in MEANS else mp.mpf(0)
        return _exact(value * mp.exp(-shifts[0] if how else 0))
    if what == "variance":
        c, b = a, a
    covariance, derivative = MOMENTS[name](a, c, b)
    factor = mp.mpf(1)
    if how == "shifted":
        factor = mp.exp(-shifts[1])
    elif how == "normalized":
        factor = 1 / (MEANS[name](a) * MEANS[name](b))
    covariance, derivative = (
        Value(v.value * factor, v.size * factor) for v in (covariance, derivative)
    )
    layer = Value(WEIGHT * covariance.value + BIAS, WEIGHT * covariance.size + BIAS)
    if what in ("covariance", "limit"):
        return covariance
    if what in ("derivative", "slope"):
        return derivative
    if what in ("layer", "variance"):
        return layer
    return Value(
        layer.value + WEIGHT * derivative.value * c, layer.size + WEIGHT * derivative.size * abs(c)
    )


def judge(
    got: float, quantity: str, name: str, point: tuple, shifts: tuple, limits: Any
) -> tuple[float, float]:
    """Return the error in units of rounding and relative to the terms; infinite where it is NaN or
    saturates wrongly.
    """
    if np.isnan(got):
        return np.inf, np.inf
    eps, largest = mp.mpf(float(limits.eps)), mp.mpf(float(limits.max))
    want = exact(name, quantity, point, shifts)
    # A slope that is beyond the precision saturates before it is multiplied.
    slope = exact(name, quantity.replace("NTK", "slope"), point, shifts)
    if quantity.startswith("NTK") and slope.size > largest:
        return (0.0, 0.0) if got > 0 or want.value < 0 else (np.inf, np.inf)
    # where a term saturates, the sum may; chain() saturates at 1e-6 of the largest number
    if want.size > 1e-8 * largest:
        # Of two terms that saturate, with signs of their own, the sum has the sign of either.
        signed = (got > 0) == (want.value > 0) or quantity.startswith("NTK")
        saturated = abs(got) > 1e-9 * float(largest) and signed
        ordinary = (
            want.size < largest and abs(mp.mpf(float(got)) - want.value) <= 100 * eps * want.size
        )
        wrong = not (saturated or ordinary or abs(want.value) < 1e-8 * want.size)
        return (np.inf, np.inf) if wrong and abs(want.value) > 1e-8 * largest else (0.0, 0.0)
    if np.isinf(got):
        return np.inf, np.inf
    change = mp.mpf(0)
    for i, sign in itertools.product(range(3), (1, -1)):
        moved = tuple(q * (1 + sign * eps) if i == j else q for j, q in enumerate(point))
        change += abs(exact(name, quantity, moved, shifts).value - want.value)
    error = abs(mp.mpf(float(got)) - want.value)
    tiny = mp.mpf(float(limits.tiny))
    return float(error / (eps * want.size + change + tiny)), float(error / (want.size + tiny))


def sweep(name: str, dtype: str, sizes: list[float], correlations: list[float]) -> Iterator[Row]:
    """Yield the worst case of each quantity of one activation, in one precision."""
    with jax.enable_x64(dtype == "float64"):
        points = grid(sizes, correlations, dtype)
        results = computed(name, points)
        growth = ACTIVATIONS[name].moments.growth
        first, second = (np.asarray(growth(jnp.asarray(points[:, k]))) for k in (0, 2))
        sums = first + second
    exact_points = [tuple(mp.mpf(float(q)) for q in row) for row in points]
    for quantity, values in results.items():
        worst = Row(name, quantity, 0.0, 0.0, ())
        for point, got, one, both in zip(exact_points, values, first, sums, strict=True):
            shifts = (mp.mpf(float(one)), mp.mpf(float(both)))
            units, relative = judge(float(got), quantity, name, point, shifts, jnp.finfo(dtype))
            if units > worst.units:
                worst = Row(name, quantity, units, relative, (*map(float, point), float(got)))
        yield worst


def main() -> int:
    """Print the table of the large grid; 1 if anything is beyond 40 units."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="the grid of the tests")
    parser.add_argument("names", nargs="*", default=sorted(MOMENTS))
    options = parser.parse_args()
    failures = 0
    for name, dtype in itertools.product(options.names, ("float32", "float64")):
        rows = list(sweep(name, dtype, *(SMALL if options.small else LARGE)))
        for row in rows:
            if row.units > 40:
                failures += 1
                print("  ", row)
        worst = max(rows, key=lambda row: row.units)
        relative = max(row.relative for row in rows)
        print(
            f"{name:10} {dtype}: {worst.units:8.2g} units ({worst.quantity}), largest relative error {relative:.2g}",
            flush=True,
        )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
