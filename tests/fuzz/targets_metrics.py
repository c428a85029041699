"""Targets: distances of samples, against sums over all pairs in long double; laws of units."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, long

OVERFLOW = r"overflow|largest|too large|squared|distance|unit"


def _samples(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    unit = 1.0 if draw.mild else draw.pick(1.0, 1e-30, 1e15, 1e-8)
    x, y = draw.points(4, draw.d, 1.0), draw.points(5, draw.d, 1.0)
    if draw.chance(0.2):
        y[:4] = x
    return draw.rounded(x * unit), draw.rounded(y * unit)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((long(x)[:, None] - long(y)[None]) ** 2).sum(2))


def _discrepancy(x: np.ndarray, y: np.ndarray, function: Any) -> Any:
    across, first, second = (function(_distances(*pair)) for pair in ((x, y), (x, x), (y, y)))
    n, m = len(x), len(y)
    return 2 * across.mean() - first.sum() / (n * (n - 1)) - second.sum() / (m * (m - 1))


def _interval(draw: Draw, result: Any, want: Any, size: Any) -> str | None:
    ordered = (
        float(result.lower)
        <= float(result.value) * (1 + 1e-3) + 1e-3 * float(size)
        <= float(result.upper) + 2e-2 * float(size)
    )
    return first_message(
        compare(result.value, want, 256 * draw.eps, draw, size=size),
        never_nan([result.lower, result.upper]),
        None
        if ordered or float(size) > 1e30
        else f"interval {result.lower} … {result.upper} around {result.value}",
    )


@target("diffusion.energy_distance", x="rows", y="rows")
def energy_distance(draw: Draw) -> Call:
    x, y = _samples(draw)
    want, size = (
        _discrepancy(x, y, lambda r: r),
        max(_distances(x, y).max(), _distances(x, x).max(), _distances(y, y).max()),
    )
    arguments = {"x": draw.cast(x), "y": draw.cast(y)}
    return Call(arguments, lambda result: _interval(draw, result, want, size), refusals=OVERFLOW)


@target("diffusion.mmd", x="rows", y="rows", bandwidth="positive?")
def mmd(draw: Draw) -> Call:
    x, y = _samples(draw)
    size = float(max(_distances(x, y).max(), _distances(x, x).max(), _distances(y, y).max())) or 1.0
    bandwidth = float(draw.rounded(np.array(size * draw.pick(0.5, 1.0, 10.0))))
    want = _discrepancy(x, y, lambda r: -np.expm1(-((r / bandwidth) ** 2) / 2))
    arguments = {"x": draw.cast(x), "y": draw.cast(y), "bandwidth": bandwidth}
    return Call(arguments, lambda result: _interval(draw, result, want, 1.0), refusals=OVERFLOW)


@target("diffusion.metrics.median_bandwidth", x="rows", y="rows")
def median_bandwidth(draw: Draw) -> Call:
    x, y = _samples(draw)
    both = np.concatenate([x, y])
    distances = _distances(both, both)

    def check(result: Any) -> str | None:
        positive = distances[distances > 0]
        if not len(positive):
            return compare(result, 1.0, 1e-6, draw)
        got = float(result)
        good = positive.min() * (1 - 1e-4) - draw.tiny <= got <= positive.max() * (1 + 1e-4)
        return None if good else f"{got} outside of {positive.min()} … {positive.max()}"

    return Call({"x": draw.cast(x), "y": draw.cast(y)}, check, refusals=OVERFLOW)


@target(
    "diffusion.sliced_wasserstein",
    key="key",
    x="rows",
    y="rows",
    projections="count",
    order="count",
)
def sliced_wasserstein(draw: Draw) -> Call:
    x, _ = _samples(draw)
    factor = draw.pick(1.0, 2.0, 0.5)
    y = draw.rounded(x * factor)
    key = draw.key()
    arguments = {
        "key": key,
        "x": draw.cast(x),
        "y": draw.cast(y),
        "projections": 4,
        "order": draw.pick(1, 2),
    }
    size = float(np.abs(x).max())

    def check(result: Any) -> str | None:
        if factor == 1.0:
            return compare(result.value, 0.0, 64 * draw.eps, draw, size=size)
        unit = size or 1.0
        scaled = {
            name: jnp.asarray(array / unit, draw.dtype) for name, array in (("x", x), ("y", y))
        }
        reference = sn.diffusion.sliced_wasserstein(**(arguments | scaled))
        return compare(
            result.value, long(float(reference.value)) * unit, 1e3 * draw.eps, draw, size=size
        )

    return Call(arguments, check, refusals=OVERFLOW)


@target("diffusion.nearest_training_point", x="rows", train="rows", exclude_self="flag")
def nearest_training_point(draw: Draw) -> Call:
    x, train = _samples(draw)
    want = _distances(x, train).min(1)
    arguments = {"x": draw.cast(x), "train": draw.cast(train), "exclude_self": False}
    size = np.abs(x).max() + np.abs(train).max()
    return Call(
        arguments,
        lambda result: compare(result.distance, want, 32 * draw.eps, draw, size=size),
        refusals=OVERFLOW,
    )


@target("diffusion.memorisation", x="rows", train="rows", held_out="rows", quantile="fraction")
def memorisation(draw: Draw) -> Call:
    x, train = _samples(draw)
    held_out = draw.rounded(draw.normal(4, draw.d) * (np.abs(train).max() or 1.0))
    want = np.median(_distances(x, train).min(1).astype(float))
    arguments = {
        "x": draw.cast(x),
        "train": draw.cast(train),
        "held_out": draw.cast(held_out),
        "quantile": 0.1,
    }
    size = np.abs(x).max() + np.abs(train).max()

    def check(result: Any) -> str | None:
        return first_message(
            never_nan(result), compare(result.distance, want, 64 * draw.eps, draw, size=size)
        )

    return Call(arguments, check, refusals=OVERFLOW + "|held_out")


@target(
    "diffusion.score_error",
    key="key",
    sde="object",
    score_fn="callable",
    distribution="object",
    t="numbers",
    n="count",
)
def score_error(draw: Draw) -> Call:
    sde = sn.diffusion.vp_sde()
    normal = sn.diffusion.GaussianMixture(
        jnp.ones(1, draw.dtype), jnp.zeros((1, 3), draw.dtype), jnp.eye(3, dtype=draw.dtype)[None]
    )
    factor = draw.pick(1.0, 2.0)

    def score(t: Any, x: Any) -> Any:
        return -factor * x

    arguments = {"key": draw.key(), "sde": sde, "score_fn": score, "distribution": normal}
    arguments |= {"t": jnp.asarray([0.5], draw.dtype), "n": 8}
    want = [(factor - 1) ** 2]
    return Call(
        arguments, lambda result: compare(result.relative.value, want, 1e-3, draw, size=1.0)
    )
