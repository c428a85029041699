"""Targets: metrics of probabilities and of Gaussian predictions, against sums in long double."""

from typing import Any

import numpy as np
import scipy.stats

from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, long

CLASSES: dict[str, Any] = {"probabilities": "array", "labels": "integers0"}
GAUSSIANS: dict[str, Any] = {"mean": "array", "variance": "weights", "y": "array"}


def _predictions(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, 3] or [n], zeros and ones among them, and labels."""
    scale = 1.0 if draw.mild else draw.pick(1.0, 30.0, 0.0)
    odds = np.exp(draw.normal(draw.n, 3) * scale)
    if draw.chance(0.3):
        odds[0] = np.eye(3)[0]
    p = draw.rounded(odds / odds.sum(1, keepdims=True))
    if draw.mild or draw.random() < 0.7:
        return p, draw.generator.integers(0, 3, draw.n)
    return p[:, 0], draw.generator.integers(0, 2, draw.n)


def _arguments(draw: Draw, p: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"probabilities": draw.cast(p), "labels": labels}


def _both_columns(p: np.ndarray) -> Any:
    return long(p if p.ndim == 2 else np.stack([1 - p, p], axis=1))


def _interval(draw: Draw, result: Any, want: Any, size: float) -> str | None:
    room = 1e-6 * size
    ordered = result.lower <= result.value + room <= result.upper + 2 * room
    return first_message(
        compare(result.value, want, 64 * draw.eps, draw, size=size),
        never_nan([result.lower, result.upper]),
        None if bool(ordered) else f"interval {result.lower} … {result.upper}",
    )


@target("calibration.accuracy", **CLASSES)
def accuracy(draw: Draw) -> Call:
    p, labels = _predictions(draw)
    want = (_both_columns(p).argmax(1) == labels).mean()
    return Call(_arguments(draw, p, labels), lambda result: _interval(draw, result, want, 1.0))


@target("calibration.brier_score", **CLASSES)
def brier_score(draw: Draw) -> Call:
    p, labels = _predictions(draw)
    columns = _both_columns(p)
    want = ((columns - np.eye(columns.shape[1])[labels]) ** 2).sum(1).mean()
    want = want / 2 if p.ndim == 1 else want
    return Call(_arguments(draw, p, labels), lambda result: _interval(draw, result, want, 1.0))


@target("calibration.negative_log_likelihood", **CLASSES)
def negative_log_likelihood(draw: Draw) -> Call:
    p, labels = _predictions(draw)
    true = _both_columns(p)[np.arange(len(p)), labels]
    with np.errstate(divide="ignore"):
        want = -np.log(true).mean()

    def check(result: Any) -> str | None:
        # XLA takes numbers below the smallest normal one for zero.
        if true.min() == 0 or (true.min() < draw.tiny and np.isinf(result.value)):
            return (
                None if np.isposinf([result.value, result.lower, result.upper]).all() else "finite"
            )
        return _interval(draw, result, want, 1.0 + float(want))

    return Call(_arguments(draw, p, labels), check)


@target(
    "calibration.expected_calibration_error",
    **CLASSES,
    bins="count",
    norm="rule",
    strategy="choice",
)
def expected_calibration_error(draw: Draw) -> Call:
    p, labels = _predictions(draw)
    arguments = _arguments(draw, p, labels) | {"bins": 1, "strategy": "uniform"}
    arguments |= {"norm": "max" if draw.mild else draw.pick(1, "max")}
    columns = _both_columns(p)
    confidences = columns.max(1) if p.ndim == 2 else long(p)
    outcomes = columns.argmax(1) == labels if p.ndim == 2 else labels
    want = abs((outcomes - confidences).mean())
    return Call(arguments, lambda result: _interval(draw, result, want, 1.0))


@target("calibration.reliability_curve", **CLASSES, bins="count", strategy="choice")
def reliability_curve(draw: Draw) -> Call:
    p, labels = _predictions(draw)
    arguments = _arguments(draw, p, labels) | {"bins": 4, "strategy": "uniform"}
    confidences = p.max(1) if p.ndim == 2 else p
    want = np.histogram(-confidences, [-1.0, -0.75, -0.5, -0.25, 0.0])[0][::-1]

    def check(result: Any) -> str | None:
        counts = np.asarray(result.count)
        near_edge = np.abs(confidences[:, None] - [0.25, 0.5, 0.75, 0.0]).min() < 1e-6
        wrong = not near_edge and not np.array_equal(counts, want)
        return f"counts {counts}, not {want}" if wrong else never_nan(result)

    return Call(arguments, check)


def _gaussians(draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit = 1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e12)
    mean = draw.rounded(unit * draw.normal(draw.n, draw.k))
    variance = draw.rounded(unit**2 * np.exp(draw.normal(draw.n, draw.k)))
    return mean, variance, draw.rounded(mean + unit * draw.normal(draw.n, draw.k))


@target("calibration.coverage", **GAUSSIANS, level="fraction")
def coverage(draw: Draw) -> Call:
    mean, variance, y = _gaussians(draw)
    arguments = {name: draw.cast(x) for name, x in zip(GAUSSIANS, (mean, variance, y), strict=True)}
    residuals = np.abs(y - mean) / np.sqrt(variance)
    quantile = scipy.stats.norm.ppf(0.95)
    low, high = ((residuals <= quantile * (1 + shift)).mean() for shift in (-1e-4, 1e-4))

    def check(result: Any) -> str | None:
        fits = low - 1e-5 <= float(result.value) <= high + 1e-5
        return never_nan(result) if fits else f"{result.value}, not {low} … {high}"

    return Call(arguments | {"level": 0.9}, check)


@target("calibration.gaussian_negative_log_likelihood", **GAUSSIANS)
def gaussian_negative_log_likelihood(draw: Draw) -> Call:
    mean, variance, y = _gaussians(draw)
    arguments = {name: draw.cast(x) for name, x in zip(GAUSSIANS, (mean, variance, y), strict=True)}
    residuals = (long(y) - long(mean)) ** 2 / long(variance)
    want = (0.5 * (np.log(2 * np.pi * long(variance)) + residuals)).sum(1).mean()
    size = 200.0 + float(residuals.max())
    return Call(arguments, lambda result: _interval(draw, result, want, size))
