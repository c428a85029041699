"""Targets: structured operators, leverage scores, samples of rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, first_message, long


class Parts:
    """The parts of Aᵀ(diag(D) + U M Uᵀ)A + ρI, in float64, and the operator."""

    def __init__(self, draw: Draw) -> None:
        n = 6
        unit = 1.0 if draw.mild else draw.pick(1.0, 1e-10, 1e8)
        self.A = draw.rounded(draw.normal(n, draw.d) * unit)
        if draw.chance(0.15):
            self.A[:, -1] = self.A[:, 0]
        scale = draw.scale(8)
        self.D = draw.rounded(np.abs(draw.normal(n)) * scale)
        self.U = draw.rounded(draw.normal(n, 2))
        self.M = draw.rounded(np.array([[1.0, -0.5], [-0.5, 0.0]]) * scale * draw.pick(1.0, 1e-3))
        self.ridge = (
            0.0 if draw.mild else draw.pick(0.0, float(draw.rounded(np.array(scale * unit**2))))
        )
        self.operator = sn.curvature.structured.StructuredOperator(
            *(
                jnp.asarray(part, draw.dtype)
                for part in (self.A, self.D, self.U, self.M, self.ridge)
            )
        )

    @property
    def matrix(self) -> np.ndarray:
        """The matrix, in long double."""
        A, U = long(self.A), long(self.U)
        return A.T @ (np.diag(long(self.D)) + U @ long(self.M) @ U.T) @ A + self.ridge * np.eye(
            A.shape[1]
        )

    @property
    def size(self) -> float:
        """What the rounding errors of its entries are relative to."""
        U = np.abs(self.U)
        return float(
            (np.abs(self.A.T) @ (np.diag(self.D) + U @ np.abs(self.M) @ U.T) @ np.abs(self.A)).max()
            + self.ridge
        )

    @property
    def condition(self) -> float:
        """Of the matrix, scaled."""
        return float(np.linalg.cond((self.matrix / (self.size or 1.0)).astype(float)))


def _near(draw: Draw, parts: Parts, want: Any, factor: float = 64.0) -> Any:
    return lambda result: compare(result, want, factor * draw.eps, draw, size=parts.size)


@target("curvature.structured.StructuredOperator.as_matrix")
def as_matrix(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, _near(draw, parts, parts.matrix))


@target("curvature.structured.StructuredOperator.diagonal")
def diagonal(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, _near(draw, parts, np.diag(parts.matrix)))


@target("curvature.structured.StructuredOperator.trace")
def trace(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, _near(draw, parts, np.trace(parts.matrix)))


@target("curvature.structured.StructuredOperator.transpose")
def transpose(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call(
        {"self": parts.operator},
        lambda result: None if result is parts.operator else "another operator",
    )


@target("curvature.structured.StructuredOperator.columns")
def columns(draw: Draw) -> Call:
    parts = Parts(draw)
    want, size = long(parts.A).T @ long(parts.U), np.abs(parts.A.T) @ np.abs(parts.U)
    return Call(
        {"self": parts.operator},
        lambda result: compare(result, want, 32 * draw.eps, draw, size=size),
    )


@target("curvature.structured.StructuredOperator.regular_part")
def regular_part(draw: Draw) -> Call:
    parts = Parts(draw)
    A = long(parts.A)
    want = A.T @ np.diag(long(parts.D)) @ A + parts.ridge * np.eye(draw.d)
    return Call(
        {"self": parts.operator}, lambda result: _near(draw, parts, want)(result.as_matrix())
    )


@target("curvature.structured.StructuredOperator.with_ridge", ridge="real")
def with_ridge(draw: Draw) -> Call:
    parts = Parts(draw)
    ridge = float(draw.rounded(np.array(parts.size)))
    want = parts.matrix + ridge * np.eye(draw.d)
    return Call(
        {"self": parts.operator, "ridge": ridge},
        lambda result: _near(draw, parts, want)(result.as_matrix()),
    )


@target("curvature.structured.StructuredOperator.mv", vector="through")
def mv(draw: Draw) -> Call:
    parts = Parts(draw)
    vector = draw.normal(draw.d)
    want = parts.matrix @ long(vector)
    arguments = {"self": parts.operator, "vector": draw.cast(vector)}
    return Call(
        arguments,
        lambda result: compare(
            result, want, 256 * draw.eps, draw, size=parts.size * np.abs(vector).sum()
        ),
    )


@target("curvature.structured.StructuredOperator.mm", vectors="through")
def mm(draw: Draw) -> Call:
    parts = Parts(draw)
    vectors = draw.normal(draw.d, 2)
    want = parts.matrix @ long(vectors)
    arguments = {"self": parts.operator, "vectors": draw.cast(vectors)}
    return Call(
        arguments,
        lambda result: compare(
            result, want, 256 * draw.eps, draw, size=parts.size * np.abs(vectors).sum()
        ),
    )


def _is_above(draw: Draw, parts: Parts) -> Any:
    def check(result: Any) -> str | None:
        positive = np.asarray(result.as_matrix(), np.float64)
        size = max(parts.size, float(np.abs(positive).max())) or 1.0
        room = -256 * draw.eps
        difference = np.linalg.eigvalsh(positive / size - (parts.matrix / size).astype(float))[0]
        lowest = np.linalg.eigvalsh(positive / size)[0]
        return (
            None
            if min(difference, lowest) >= room
            else f"eigenvalues {lowest}, {difference} (relative) below zero"
        )

    return check


@target("curvature.structured.StructuredOperator.positive_part")
def positive_part_method(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, _is_above(draw, parts))


@target("curvature.structured.positive_part", op="object")
def positive_part(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"op": parts.operator}, _is_above(draw, parts))


@target("curvature.structured.StructuredOperator.extreme_eigenvalues")
def extreme_eigenvalues(draw: Draw) -> Call:
    parts = Parts(draw)

    def check(result: Any) -> str | None:
        size = parts.size or 1.0
        values = np.linalg.eigvalsh((parts.matrix / size).astype(float)) * size
        got = np.array([float(value) for value in result])
        return compare(got, values[[0, -1]], 256 * draw.eps, draw, size=size)

    return Call({"self": parts.operator}, check)


def _solve_check(draw: Draw, parts: Parts, right: np.ndarray) -> Any:
    """A solve that is SUCCESSFUL has a small residual."""

    def check(factorisation: Any) -> str | None:
        value = np.asarray(factorisation.solve(jnp.asarray(right, draw.dtype)))
        if int(factorisation.result) != sn.solution.Result.SUCCESSFUL:
            return never_nan(value)
        if not np.isfinite(value).all():
            return None if parts.condition > 1e-3 / draw.eps else f"SUCCESSFUL and {value.tolist()}"
        residual = np.abs(long(right) - parts.matrix @ long(value)).max()
        allowed = (
            1e3 * draw.eps * parts.size * np.abs(long(value)).sum() + 1e-2 * np.abs(right).max()
        )
        return (
            None
            if residual <= allowed
            else f"SUCCESSFUL with a residual of {float(residual)} for {right.tolist()}"
        )

    return check


@target("curvature.structured.factorise", op="object")
def factorise(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"op": parts.operator}, _solve_check(draw, parts, draw.normal(draw.d)))


@target("curvature.structured.StructuredOperator.factorise")
def factorise_method(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, _solve_check(draw, parts, draw.normal(draw.d)))


@target("curvature.structured.Factorisation.solve", right="through")
def solve(draw: Draw) -> Call:
    parts = Parts(draw)
    right = draw.normal(draw.d)
    factorisation = sn.curvature.structured.factorise(parts.operator)

    def check(result: Any) -> str | None:
        return _solve_check(draw, parts, right)(factorisation) or never_nan(result)

    return Call({"self": factorisation, "right": draw.cast(right)}, check)


@target("curvature.structured.Factorisation.log_determinant")
def log_determinant(draw: Draw) -> Call:
    parts = Parts(draw)
    factorisation = sn.curvature.structured.factorise(parts.operator)

    def check(result: Any) -> str | None:
        if (
            int(factorisation.result) != sn.solution.Result.SUCCESSFUL
            or parts.condition > 1e-3 / draw.eps
        ):
            return never_nan(result)
        size = parts.size
        sign, value = np.linalg.slogdet((parts.matrix / size).astype(float))
        want = value + draw.d * np.log(size)
        return first_message(
            compare(result[0], sign, 0.0, draw, what="sign"),
            compare(
                result[1],
                want,
                256 * draw.eps,
                draw,
                size=parts.condition + abs(want),
                what="log det",
            ),
        )

    return Call({"self": factorisation}, check)


@target("curvature.structured.Factorisation.negative_eigenvalues")
def negative_eigenvalues(draw: Draw) -> Call:
    parts = Parts(draw)
    factorisation = sn.curvature.structured.factorise(parts.operator)

    def check(result: Any) -> str | None:
        if (
            int(factorisation.result) != sn.solution.Result.SUCCESSFUL
            or parts.condition > 1e-3 / draw.eps
        ):
            return None
        want = int((np.linalg.eigvalsh((parts.matrix / parts.size).astype(float)) < 0).sum())
        return None if int(result) == want else f"{int(result)} instead of {want}"

    return Call({"self": factorisation}, check)


def _weighted_sum(operators: Any, weights: Any) -> Any:
    return sn.curvature.structured.weighted_sum(operators, weights)


@target("curvature.structured.weighted_sum", _weighted_sum, operators="object", weights="array")
def weighted_sum(draw: Draw) -> Call:
    first, second = Parts(draw), Parts(draw)
    weights = draw.normal(2)
    want = weights[0] * first.matrix + weights[1] * second.matrix
    size = np.abs(weights).sum() * max(first.size, second.size)

    def check(result: Any) -> str | None:
        return compare(result.as_matrix(), want, 128 * draw.eps, draw, size=size)

    return Call(
        {"operators": [first.operator, second.operator], "weights": draw.cast(weights)}, check
    )


# --- leverage scores and samples
# ------------------------------------------------------------------------------------


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
    return Call(arguments, lambda result: _near(draw, parts, want, 256.0)(result.as_matrix()))


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
