"""Targets: regressions through attention and through two layers, against their definitions and
differences.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import ACTIVATIONS, compare, long
from fuzz.targets_regression import METHODS


def _softmax_rows(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numerical_gradient(loss: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """Return a gradient by differences of four points in long double, right to about 1e-12."""
    x, h = long(x), np.longdouble(1e-4)
    gradient = np.zeros(x.shape, np.longdouble)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape, np.longdouble)
        step[index] = h
        near, far = loss(x + step) - loss(x - step), loss(x + 2 * step) - loss(x - 2 * step)
        gradient[index] = (8 * near - far) / (12 * h)
    return gradient


class AttentionCase:
    """An attention regression by its definition."""

    def __init__(self, draw: Draw) -> None:
        self.A1, self.A2 = draw.points(3, 2, 1.0), draw.points(3, 2, 1.0)
        self.B = np.abs(draw.normal(3, 3))
        self.w = draw.pick(0.0, 0.5)
        self.x = draw.rounded(
            draw.normal(2, 2) * (1.0 if draw.mild else draw.pick(0.0, 1.0, 10.0, 1e-10))
        )

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return Z."""
        return long(self.A1) @ long(x) @ long(self.A2).T

    def loss(self, x: np.ndarray) -> Any:
        """Return the loss."""
        residual = _softmax_rows(self.logits(x)) - self.B
        return ((residual**2).sum() + self.w**2 * (self.logits(x) ** 2).sum()) / 2

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        return sn.regression.attention(
            *(jnp.asarray(a, draw.dtype) for a in (self.A1, self.A2, self.B)), weights=self.w
        )


def hessian_of(gradient: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the matrix of second derivatives by differences of a gradient."""
    columns = []
    for index in np.ndindex(*x.shape):
        columns.append(
            numerical_gradient(
                lambda s, index=index: gradient(long(x) + _unit(x.shape, index) * s)[0], np.zeros(1)
            )
        )
    return np.array(columns)


def _unit(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    unit = np.zeros(shape, np.longdouble)
    unit[index] = 1
    return unit


def _attention_check(draw: Draw, case: AttentionCase, method: str) -> Callable[[Any], str | None]:
    rtol = 1e3 * draw.eps * (1 + np.abs(case.logits(case.x)).max())

    def check(result: Any) -> str | None:
        predicted = _softmax_rows(case.logits(case.x))
        if method == "check":
            return None if int(result) == 0 else str(int(result))
        if method in ("hessian", "gauss_newton"):
            return _operator_law(draw, result, case.loss, case.x, method)
        want = {
            "__call__": lambda: case.loss(case.x),
            "logits": lambda: case.logits(case.x),
            "predict": lambda: predicted,
            "residual": lambda: predicted - case.B,
            "gradient": lambda: numerical_gradient(case.loss, case.x),
        }[method]()
        size = 3 + np.abs(want).max()
        return compare(result, want, rtol + 1e-11, draw, size=size)

    return check


def _operator_law(
    draw: Draw, operator: Any, loss: Callable[[np.ndarray], Any], x: np.ndarray, method: str
) -> str | None:
    """Compare a product ⟨v, Hv⟩ with a second difference of the loss; for Gauss–Newton only that it
    is not negative.
    """
    direction = np.ones(x.shape) / x.size**0.5
    product = float(
        np.sum(np.asarray(operator.mv(jnp.asarray(direction, draw.dtype)), np.float64) * direction)
    )
    if method == "gauss_newton":
        return None if product >= -1e3 * draw.eps else f"⟨v, Gv⟩ = {product}"
    h = np.longdouble(1e-3)
    near, far = (
        loss(x + s * h * direction) + loss(x - s * h * direction) - 2 * loss(long(x))
        for s in (1, 2)
    )
    want = (16 * near - far) / (12 * h**2)
    return compare(product, want, 1e4 * draw.eps + 1e-8, draw, size=10 + abs(want))


def _register_attention(method: str) -> None:
    @target(f"regression.Attention.{method}", x="through")
    def make(draw: Draw) -> Call:
        case = AttentionCase(draw)
        return Call(
            {"self": case.problem(draw), "x": draw.cast(case.x)},
            _attention_check(draw, case, method),
        )


for _method in METHODS[:-1]:
    _register_attention(_method)


@target(
    "regression.attention",
    A1="rows",
    A2="rows",
    B="array",
    values="rows?",
    weights="nonnegative",
    activation="activation",
)
def attention(draw: Draw) -> Call:
    case = AttentionCase(draw)
    arguments = {
        "A1": draw.cast(case.A1),
        "A2": draw.cast(case.A2),
        "B": draw.cast(case.B),
        "weights": case.w,
    }

    def check(p: Any) -> str | None:
        return _attention_check(draw, case, "gradient")(p.gradient(jnp.asarray(case.x, draw.dtype)))

    return Call(arguments, check)


def _operator(draw: Draw) -> tuple[Any, AttentionCase]:
    case = AttentionCase(draw)
    return case.problem(draw).hessian(jnp.asarray(case.x, draw.dtype)), case


@target("regression.AttentionOperator.as_matrix")
def attention_matrix(draw: Draw) -> Call:
    operator, _ = _operator(draw)

    def check(result: Any) -> str | None:
        columns = [
            np.asarray(operator.mv(jnp.asarray(_unit((2, 2), index), draw.dtype)))
            for index in np.ndindex(2, 2)
        ]
        want = np.stack([column.reshape(-1) for column in columns], 1)
        return compare(result, want, 256 * draw.eps, draw, size=1 + np.abs(want).max())

    return Call({"self": operator}, check)


@target("regression.AttentionOperator.mv", vector="through")
def attention_mv(draw: Draw) -> Call:
    operator, case = _operator(draw)
    ones = np.ones((2, 2)) / 2
    arguments = {"self": operator, "vector": draw.cast(ones)}
    return Call(
        arguments,
        lambda result: (
            never_nan(result) or _operator_law(draw, operator, case.loss, case.x, "hessian")
        ),
    )


@target("regression.AttentionOperator.transpose")
def attention_transpose(draw: Draw) -> Call:
    operator, _ = _operator(draw)
    return Call(
        {"self": operator}, lambda result: None if result is operator else "another operator"
    )


class TwoLayerCase:
    """½‖softmax(A₂ u(A₁x)) − b‖² + ½‖w A₁x‖² by its definition."""

    def __init__(self, draw: Draw) -> None:
        self.inner = draw.pick("cosh", "identity")
        self.A1, self.A2, self.b = (
            draw.points(3, draw.d, 1.0),
            draw.points(4, 3, 1.0),
            np.abs(draw.normal(4)),
        )
        self.w = draw.pick(0.0, 0.5)
        self.x = draw.rounded(
            draw.normal(draw.d) * (1.0 if draw.mild else draw.pick(0.0, 1.0, 1e-10))
        )

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return h(A₂ g(A₁x))."""
        return _softmax_rows(long(self.A2) @ ACTIVATIONS[self.inner][0](long(self.A1) @ long(x)))

    def loss(self, x: np.ndarray) -> Any:
        """Return the loss."""
        return (
            ((self.predict(x) - self.b) ** 2).sum()
            + self.w**2 * ((long(self.A1) @ long(x)) ** 2).sum()
        ) / 2

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        arrays = (jnp.asarray(a, draw.dtype) for a in (self.A1, self.A2, self.b))
        return sn.regression.two_layer(*arrays, inner=self.inner, outer="softmax", weights=self.w)


def _register_two_layer(method: str) -> None:
    @target(f"regression.ResidualProblem.{method}", x="through")
    def make(draw: Draw) -> Call:
        case = TwoLayerCase(draw)

        def check(result: Any) -> str | None:
            if method == "check":
                return None if int(result) == 0 else str(int(result))
            if method in ("hessian", "gauss_newton"):
                return _operator_law(draw, result, case.loss, case.x, method)
            want = {
                "__call__": lambda: case.loss(case.x),
                "predict": lambda: case.predict(case.x),
                "residual": lambda: case.predict(case.x) - case.b,
                "gradient": lambda: numerical_gradient(case.loss, case.x),
            }[method]()
            steepness = 1 + np.cosh(np.abs(case.A1 @ case.x)).max() * np.abs(case.A2).max() * 10
            return compare(
                result, want, 1e3 * draw.eps * steepness + 1e-11, draw, size=3 + np.abs(want).max()
            )

        return Call({"self": case.problem(draw), "x": draw.cast(case.x)}, check)


for _method in ("__call__", "predict", "residual", "gradient", "hessian", "gauss_newton", "check"):
    _register_two_layer(_method)


@target(
    "regression.two_layer",
    A1="rows",
    A2="rows",
    b="array",
    inner="activation",
    outer="activation",
    weights="weights",
)
def two_layer(draw: Draw) -> Call:
    case = TwoLayerCase(draw)
    arguments = {"A1": draw.cast(case.A1), "A2": draw.cast(case.A2), "b": draw.cast(case.b)}
    arguments |= {"inner": case.inner, "outer": "softmax", "weights": case.w}

    def check(p: Any) -> str | None:
        return compare(
            p(jnp.asarray(case.x, draw.dtype)),
            case.loss(case.x),
            1e4 * draw.eps,
            draw,
            size=3 + case.loss(case.x),
        )

    return Call(arguments, check)
