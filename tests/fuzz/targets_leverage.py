"""Targets: leverage scores, samples of rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, long
from fuzz.targets_curvature import Parts, near


def _rows(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    A = draw.points(6, draw.d, 1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e12))
    weights = np.abs(draw.normal(6))
    if draw.chance(0.3):
        weights[:2] = 0
    return A, draw.rounded(weights * (1.0 if draw.mild else draw.pick(1.0, 1e-8, 1e8)))


def exact_scores(A: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Return leverage scores by the singular values of the scaled rows, or None where the rank is
    not clear.
    """
    rows = np.sqrt(weights)[:, None] * A
    size = np.abs(rows).max()
    if size == 0:
        return np.zeros(len(A))
    basis, values, _ = np.linalg.svd(rows / size, full_matrices=False)
    if ((values < 1e-2) & (values > 1e-13)).any():
        return None
    return (basis[:, values > 1e-2] ** 2).sum(1)


@target("curvature.leverage.scores", A="rows", weights="nonnegatives?")
def scores(draw: Draw) -> Call:
    A, weights = _rows(draw)

    def check(result: Any) -> str | None:
        want = exact_scores(A, weights)
        return (
            finite(result)
            if want is None
            else compare(result, want, 1e4 * draw.eps, draw, size=1.0)
        )

    return Call({"A": draw.cast(A), "weights": draw.cast(weights)}, check)


@target(
    "curvature.leverage.approximate_scores",
    key="key",
    A="rows",
    weights="nonnegatives?",
    rows="count?",
    directions="count?",
)
def approximate_scores(draw: Draw) -> Call:
    A, weights = _rows(draw)

    def check(result: Any) -> str | None:
        want = exact_scores(A, weights)
        if want is None or round(want.sum()) < draw.d:
            return never_nan(result)
        ratio = np.asarray(result, np.float64)[want > 1e-3] / want[want > 1e-3]
        return (
            None
            if (ratio >= 0.4).all() and (ratio <= 2.5).all()
            else f"{np.asarray(result)} for {want}"
        )

    return Call({"key": draw.key(), "A": draw.cast(A), "weights": draw.cast(weights)}, check)


@target(
    "curvature.sketch.probabilities", kind="choice", A="rows", weights="nonnegatives?", key="key?"
)
def probabilities(draw: Draw) -> Call:
    A, weights = _rows(draw)
    kind = draw.pick("leverage", "approximate_leverage", "row_norm", "uniform")
    arguments = {"kind": kind, "A": draw.cast(A), "weights": draw.cast(weights), "key": None}

    def check(result: Any) -> str | None:
        values = np.asarray(result, np.float64)
        if kind == "row_norm" and (weights[:, None] * A != 0).any():
            squares = long(weights) * (long(A) ** 2).sum(1)
            return compare(values, squares / squares.sum(), 32 * draw.eps, draw)
        good = (
            np.isfinite(values).all()
            and (values >= 0).all()
            and abs(values.sum() - 1) < 1e3 * draw.eps
        )
        return None if good else f"{'NaN ' if np.isnan(values).any() else ''}{values.tolist()}"

    return Call(arguments, check, refusals=r"\b(weights|A)\b")


@target("curvature.sketch.draw", key="key", pi="nonnegatives", size="count")
def draw_rows(draw: Draw) -> Call:
    pi = np.abs(draw.normal(6))
    pi = draw.rounded(pi / pi.sum())

    def check(sample: Any) -> str | None:
        kept = np.asarray(sample.indices) < 6
        counts = (
            np.asarray(sample.scales, np.float64)[kept] * 5 * pi[np.asarray(sample.indices)[kept]]
        )
        return compare(counts.sum(), 5.0, 64 * draw.eps, draw, what="number of draws")

    return Call({"key": draw.key(), "pi": draw.cast(pi), "size": 5}, check)


def _sample(draw: Draw) -> Any:
    return sn.curvature.sketch.Sample(
        indices=jnp.asarray([0, 2, 3]), scales=jnp.asarray(np.array([1.5, 2.0, 0.5]), draw.dtype)
    )


@target("curvature.sketch.Sample.gram", A="rows", weights="array?")
def sample_gram(draw: Draw) -> Call:
    A, weights = _rows(draw)
    rows = long(A)[[0, 2, 3]]
    factors = np.array([1.5, 2.0, 0.5]) * weights[[0, 2, 3]]
    want, size = (
        rows.T @ (factors[:, None] * rows),
        (np.abs(rows.T) @ (factors[:, None] * np.abs(rows))).max(),
    )
    arguments = {"self": _sample(draw), "A": draw.cast(A), "weights": draw.cast(weights)}
    return Call(arguments, lambda result: compare(result, want, 64 * draw.eps, draw, size=size))


@target("curvature.sketch.sketched", op="object", sample="object")
def sketched(draw: Draw) -> Call:
    parts = Parts(draw)
    rows, scales = np.array([0, 2, 3]), np.array([1.5, 2.0, 0.5])
    A, V = long(parts.A), long(parts.A).T @ long(parts.U)
    want = (
        A[rows].T @ ((scales * parts.D[rows])[:, None] * A[rows])
        + V @ long(parts.M) @ V.T
        + parts.ridge * np.eye(draw.d)
    )
    arguments = {"op": parts.operator, "sample": _sample(draw)}
    return Call(arguments, lambda result: near(draw, parts, want, 256.0)(result.as_matrix()))


@target("curvature.sketch.distortion", approximate="gram", exact="gram")
def distortion(draw: Draw) -> Call:
    exact = draw.gram(3, 1.0 if draw.mild else draw.pick(1.0, 1e-20, 1e15))
    factor = draw.positive(0.5, 2.0)
    approximate = draw.rounded(factor * exact)

    def check(result: Any) -> str | None:
        values = np.linalg.eigvalsh(exact / (np.abs(exact).max() or 1.0))
        clear = values[0] > 1e-3
        want = abs(factor - 1) if np.abs(exact).max() > 0 else 0.0
        return compare(result, want, 1e5 * draw.eps, draw, size=1.0) if clear else never_nan(result)

    return Call({"approximate": draw.cast(approximate), "exact": draw.cast(exact)}, check)
