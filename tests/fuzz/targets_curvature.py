"""Targets: structured operators."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, long


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
            *(jnp.asarray(part, draw.dtype) for part in (self.A, self.D, self.U, self.M)),
            ridge=jnp.asarray(self.ridge, draw.dtype),
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


def near(draw: Draw, parts: Parts, want: Any, factor: float = 64.0) -> Any:
    """Return the check that a result is the matrix wanted, up to the rounding of its entries."""
    return lambda result: compare(result, want, factor * draw.eps, draw, size=parts.size)


@target("curvature.structured.StructuredOperator.as_matrix")
def as_matrix(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, near(draw, parts, parts.matrix))


@target("curvature.structured.StructuredOperator.diagonal")
def diagonal(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, near(draw, parts, np.diag(parts.matrix)))


@target("curvature.structured.StructuredOperator.trace")
def trace(draw: Draw) -> Call:
    parts = Parts(draw)
    return Call({"self": parts.operator}, near(draw, parts, np.trace(parts.matrix)))


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
        {"self": parts.operator}, lambda result: near(draw, parts, want)(result.as_matrix())
    )


@target("curvature.structured.StructuredOperator.with_ridge", ridge="real")
def with_ridge(draw: Draw) -> Call:
    parts = Parts(draw)
    ridge = float(draw.rounded(np.array(parts.size)))
    want = parts.matrix + ridge * np.eye(draw.d)
    return Call(
        {"self": parts.operator, "ridge": ridge},
        lambda result: near(draw, parts, want)(result.as_matrix()),
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
