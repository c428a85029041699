"""Targets: cross-entropy and its curvature, against formulas in long double."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, long

METHODS = (
    "__call__",
    "logits",
    "predict",
    "gradient",
    "value_and_gradient",
    "hessian",
    "gauge_fixed_hessian",
    "gauss_newton",
    "check",
    "preconditioner",
)


class Classification:
    """A classification without an intercept, with its loss and derivatives in long double."""

    def __init__(self, draw: Draw) -> None:
        self.A = draw.points(6, draw.d, 1.0)
        self.labels = np.asarray([0, 1, 2, 0, 1, 2])
        self.w = draw.pick(0.5, 2.0)
        scale = 1.0 if draw.mild else draw.pick(0.0, 1.0, 30.0, 1e-10)
        self.x = draw.rounded(scale * draw.normal(draw.d, 3))
        A, X = long(self.A), long(self.x)
        self.Z = A @ X
        odds = np.exp(self.Z - self.Z.max(1, keepdims=True))
        self.P = odds / odds.sum(1, keepdims=True)
        losses = np.log(odds.sum(1)) + self.Z.max(1) - self.Z[np.arange(6), self.labels]
        self.loss = losses.sum() + self.w**2 * (X**2).sum() / 2
        self.gradient = A.T @ (self.P - np.eye(3)[self.labels]) + self.w**2 * X
        curvature = np.einsum("ic,cb->icb", self.P, np.eye(3)) - np.einsum(
            "ic,ib->icb", self.P, self.P
        )
        matrix = np.einsum("ij,icb,il->jclb", A, curvature, A).reshape(3 * draw.d, -1)
        self.matrix = matrix + self.w**2 * np.eye(len(matrix))

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        return sn.regression.cross_entropy(
            jnp.asarray(self.A, draw.dtype), self.labels, weights=self.w, intercept=False
        )

    def compare(self, draw: Draw, method: str, result: Any) -> str | None:
        """Return what is wrong with the result of a method."""
        rtol = 64 * draw.eps * (1 + float(np.abs(self.Z).max()))
        size = 10 * (1 + float(np.abs(self.A).max())) ** 2 * (1 + float(np.abs(self.x).max()))
        if method == "check":
            # Without a penalty on anything the points could be separable; here w > 0.
            return None if int(result) == 0 else sn.solution.Result(int(result)).name
        if method == "value_and_gradient":
            return self.compare(draw, "__call__", result[0]) or self.compare(
                draw, "gradient", result[1]
            )
        if method == "preconditioner":
            return never_nan(result.scales)
        if method in ("hessian", "gauge_fixed_hessian", "gauss_newton"):
            return compare(result.as_matrix(), self.matrix, rtol, draw, size=10 * size)
        want, factor = {
            "__call__": (self.loss, 6 * size),
            "logits": (self.Z, size),
            "predict": (self.P, 1.0),
            "gradient": (self.gradient, size),
        }[method]
        return compare(result, want, rtol, draw, size=factor)


def _register(method: str) -> None:
    previous: dict[str, Any] = {"previous": "object?"} if method == "preconditioner" else {}

    @target(f"regression.CrossEntropy.{method}", x="through", **previous)
    def make(draw: Draw) -> Call:
        case = Classification(draw)
        arguments = {"self": case.problem(draw), "x": draw.cast(case.x)}
        return Call(arguments, lambda result: case.compare(draw, method, result))


for _method in METHODS:
    _register(_method)


@target("regression.CrossEntropy.is_recession", direction="through")
def is_recession(draw: Draw) -> Call:
    case = Classification(draw)
    arguments = {"self": case.problem(draw), "direction": draw.cast(case.x)}
    # Everything is penalised.
    return Call(arguments, lambda result: "a recession" if bool(result) else None)


@target("regression.CrossEntropy.lacks_minimiser", x="through", start="through")
def lacks_minimiser(draw: Draw) -> Call:
    case = Classification(draw)
    arguments = {"self": case.problem(draw), "x": draw.cast(case.x), "start": draw.cast(case.x)}
    return Call(arguments, lambda result: "no minimiser" if bool(result) else None)


@target("regression.CrossEntropy.zeros")
def zeros(draw: Draw) -> Call:
    case = Classification(draw)
    return Call({"self": case.problem(draw)}, lambda result: compare(result, 0 * case.x, 0, draw))


@target("regression.CrossEntropyOperator.mv", vector="through")
def product(draw: Draw) -> Call:
    case = Classification(draw)
    operator = case.problem(draw).hessian(jnp.asarray(case.x, draw.dtype))
    want = (case.matrix @ long(case.x).reshape(-1)).reshape(case.x.shape)
    size = 100 * (1 + float(np.abs(case.A).max())) ** 2 * (1 + float(np.abs(case.x).max()))
    rtol = 64 * draw.eps * (1 + float(np.abs(case.Z).max()))
    return Call(
        {"self": operator, "vector": draw.cast(case.x)},
        lambda result: compare(result, want, rtol, draw, size=size),
    )


@target("regression.CrossEntropyOperator.as_matrix")
def matrix(draw: Draw) -> Call:
    case = Classification(draw)
    operator = case.problem(draw).hessian(jnp.asarray(case.x, draw.dtype))

    def check(result: Any) -> str | None:
        result = np.asarray(result, np.float64)
        return None if np.array_equal(result, result.T) else "not symmetric"

    return Call({"self": operator}, check)


@target(
    "regression.cross_entropy",
    A="rows",
    y="integers0",
    weights="weights",
    sample_weight="weights?",
    intercept="flag",
    class_weight="object?",
    classes="count?",
    reference="flag",
)
def cross_entropy(draw: Draw) -> Call:
    case = Classification(draw)
    arguments = {
        "A": draw.cast(case.A),
        "y": case.labels,
        "weights": case.w,
        "intercept": False,
    }

    def check(p: Any) -> str | None:
        return case.compare(draw, "gradient", p.gradient(jnp.asarray(case.x, draw.dtype)))

    return Call(arguments, check)
