"""Targets: regressions, their losses, derivatives and bounds, against formulas in long double."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import ACTIVATIONS, compare, first_message, long

FORMS = ("normalized", "rescaled", "plain")
METHODS = ("__call__", "predict", "residual", "logits", "gradient", "hessian", "gauss_newton", "check", "value_and_gradient")


class Regression:
    """A regression in float64 with its loss and derivatives by the formulas of the textbook, in long double."""

    def __init__(self, draw: Draw, activation: str | None = None, form: str | None = None) -> None:
        self.activation = draw.pick("exp", "res_exp", "cosh", "sinh") if activation is None else activation
        self.form = draw.pick(*FORMS) if form is None else form
        unit = 1.0 if draw.mild else draw.pick(1.0, 1.0, 1e-12, 1e12)
        self.A = draw.points(6, draw.d, unit)
        self.x = draw.rounded(draw.normal(draw.d) / unit * (1.0 if draw.mild else draw.pick(1.0, 1e-3, 3.0)))
        if draw.chance(0.1):
            self.x = np.zeros(draw.d)
        self.b = draw.rounded(np.abs(draw.normal(6)) * draw.pick(1.0, 0.1))
        self.w = draw.rounded(np.abs(draw.normal(6)) * draw.pick(0.0, 1.0))
        self._derive()

    def _derive(self) -> None:
        A, b, w, z = long(self.A), long(self.b), long(self.w), long(self.A) @ long(self.x)
        u, du, d2u = (function(z) for function in ACTIVATIONS[self.activation])
        total = u.sum()
        with np.errstate(all="ignore"):
            if self.form == "normalized":
                u, du, d2u = u / total, du / total, d2u / total
                self.predicted, residual = u, u - b
                J = np.diag(du) - np.outer(u, du)
                s = residual - residual @ u
                H = np.diag(du**2 + d2u * s)
                # ∇²(½‖f − b‖²) by differentiating v∘(c − φ): see the table of section 4 of the mathematics.
                U = np.stack([du, du * (u + residual - residual @ u)], 1)
                H = H + U @ np.array([[u @ u, -1], [-1, 0]]) @ U.T
                slope = du * s
            elif self.form == "rescaled":
                self.predicted, residual = u, u - total * b
                J = np.diag(du) - np.outer(b, du)
                s = residual - b @ residual
                H, slope = J.T @ J + np.diag(d2u * s), du * s
            else:
                self.predicted, residual = u, u - b
                J = np.diag(du)
                H, slope = J.T @ J + np.diag(d2u * residual), du * residual
        self.z, self.residual = z, residual
        weight = np.diag(w**2)
        self.loss = (residual @ residual + (w * z) @ (w * z)) / 2
        self.gradient = A.T @ (slope + w**2 * z)
        self.hessian = A.T @ (H + weight) @ A
        self.gauss_newton = A.T @ (J.T @ J + weight) @ A
        spread = 1 + np.abs(self.z).max()
        kept = np.abs(total) / np.abs(ACTIVATIONS[self.activation][0](z)).sum()
        self.amplification = float(spread / kept**3) if self.form == "normalized" else float(spread)
        big = np.abs(np.concatenate([u, du, d2u, residual, b, self.predicted])).max()
        rows = np.abs(A).sum(0).max()
        self.size_residual = big * (1 + (np.abs(b).max() * 6 if self.form == "rescaled" else 0))
        self.size_loss = 6 * self.size_residual**2 + (w * z) @ (w * z)
        self.size_gradient = rows * (big * self.size_residual * 6 + (np.abs(w**2 * z)).max())
        self.size_hessian = rows * np.abs(A).max() * (4 * big * (big + self.size_residual) * 6 + (w**2).max())
        self.resolved = bool(np.abs(z).max() < 30 and kept > 1e-2 and (1 / big) < 1e12)

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        arrays = (jnp.asarray(array, draw.dtype) for array in (self.A, self.b))
        return sn.regression.problem(
            *arrays, activation=self.activation, form=self.form, weights=jnp.asarray(self.w, draw.dtype)
        )

    def compare(self, draw: Draw, method: str, result: Any) -> str | None:
        """Return what is wrong with the result of a method."""
        if not self.resolved or self.amplification * draw.eps > 1e-4:
            return None if method in ("hessian", "gauss_newton") else never_nan(result)
        rtol = 64 * draw.eps * self.amplification
        if method == "check":
            return None if int(result) == 0 else sn.solution.Result(int(result)).name
        if method == "value_and_gradient":
            return first_message(*(self.compare(draw, *pair) for pair in zip(("__call__", "gradient"), result, strict=True)))
        want, size = {
            "__call__": (self.loss, self.size_loss),
            "predict": (self.predicted, self.size_residual),
            "residual": (self.residual, self.size_residual),
            "logits": (self.z, np.abs(self.A).sum(1) * np.abs(self.x).max()),
            "gradient": (self.gradient, self.size_gradient),
            "hessian": (self.hessian, self.size_hessian),
            "gauss_newton": (self.gauss_newton, self.size_hessian),
        }[method]
        got = result.as_matrix() if method in ("hessian", "gauss_newton") else result
        return compare(got, want, rtol, draw, size=size, what=f"{self.form} {self.activation} {method}")


def _register_method(method: str) -> None:
    previous = {"previous": "through?"} if method == "check" else {}

    @target(f"regression.Problem.{method}", x="through", **previous)
    def make(draw: Draw) -> Call:
        regression = Regression(draw)
        arguments = {"self": regression.problem(draw), "x": draw.cast(regression.x)}
        return Call(arguments, lambda result: regression.compare(draw, method, result))


for _method in METHODS:
    _register_method(_method)


# --- what makes problems --------------------------------------------------------------------------------------------


def _register_member(name: str, activation: str, form: str) -> None:
    @target(f"regression.{name}", A="rows", b="array", weights="weights")
    def make(draw: Draw) -> Call:
        regression = Regression(draw, activation, form)
        arguments = {"A": draw.cast(regression.A), "b": draw.cast(regression.b), "weights": draw.cast(regression.w)}

        def check(p: Any) -> str | None:
            x = jnp.asarray(regression.x, draw.dtype)
            return first_message(
                regression.compare(draw, "__call__", p(x)), regression.compare(draw, "gradient", p.gradient(x))
            )

        return Call(arguments, check)


for _name, _activation, _form in (
    ("softmax", "exp", "normalized"),
    ("resnet_softmax", "res_exp", "normalized"),
    ("exponential", "exp", "plain"),
):
    _register_member(_name, _activation, _form)


@target("regression.hyperbolic", A="rows", b="array", kind="choice", form="choice", weights="weights")
def hyperbolic(draw: Draw) -> Call:
    regression = Regression(draw, draw.pick("cosh", "sinh"), draw.pick(*FORMS))
    arguments = {"A": draw.cast(regression.A), "b": draw.cast(regression.b), "kind": regression.activation}
    arguments |= {"form": regression.form, "weights": draw.cast(regression.w)}

    def check(p: Any) -> str | None:
        return regression.compare(draw, "gradient", p.gradient(jnp.asarray(regression.x, draw.dtype)))

    return Call(arguments, check)


@target("regression.problem", A="rows", b="array", activation="activation", form="choice", weights="weights")
def problem(draw: Draw) -> Call:
    regression = Regression(draw)
    arguments = {"A": draw.cast(regression.A), "b": draw.cast(regression.b), "activation": regression.activation}
    arguments |= {"form": regression.form, "weights": draw.cast(regression.w)}

    def check(p: Any) -> str | None:
        return regression.compare(draw, "hessian", p.hessian(jnp.asarray(regression.x, draw.dtype)))

    return Call(arguments, check)


# --- attention, two layers ------------------------------------------------------------------------------------------


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
        self.x = draw.rounded(draw.normal(2, 2) * (1.0 if draw.mild else draw.pick(0.0, 1.0, 10.0, 1e-10)))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return Z."""
        return long(self.A1) @ long(x) @ long(self.A2).T

    def loss(self, x: np.ndarray) -> Any:
        """Return the loss."""
        residual = _softmax_rows(self.logits(x)) - self.B
        return ((residual**2).sum() + self.w**2 * (self.logits(x) ** 2).sum()) / 2

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        return sn.regression.attention(*(jnp.asarray(a, draw.dtype) for a in (self.A1, self.A2, self.B)), weights=self.w)


def hessian_of(gradient: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return the matrix of second derivatives by differences of a gradient."""
    columns = []
    for index in np.ndindex(*x.shape):
        columns.append(numerical_gradient(lambda s, index=index: gradient(long(x) + _unit(x.shape, index) * s)[0], np.zeros(1)))
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


def _operator_law(draw: Draw, operator: Any, loss: Callable[[np.ndarray], Any], x: np.ndarray, method: str) -> str | None:
    """Compare a product ⟨v, Hv⟩ with a second difference of the loss; for Gauss–Newton only that it is not negative."""
    direction = np.ones(x.shape) / x.size**0.5
    product = float(np.sum(np.asarray(operator.mv(jnp.asarray(direction, draw.dtype)), np.float64) * direction))
    if method == "gauss_newton":
        return None if product >= -1e3 * draw.eps else f"⟨v, Gv⟩ = {product}"
    h = np.longdouble(1e-3)
    near, far = (loss(x + s * h * direction) + loss(x - s * h * direction) - 2 * loss(long(x)) for s in (1, 2))
    want = (16 * near - far) / (12 * h**2)
    return compare(product, want, 1e4 * draw.eps + 1e-8, draw, size=10 + abs(want))


def _register_attention(method: str) -> None:
    @target(f"regression.Attention.{method}", x="through")
    def make(draw: Draw) -> Call:
        case = AttentionCase(draw)
        return Call({"self": case.problem(draw), "x": draw.cast(case.x)}, _attention_check(draw, case, method))


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
    arguments = {"A1": draw.cast(case.A1), "A2": draw.cast(case.A2), "B": draw.cast(case.B), "weights": case.w}

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
        columns = [np.asarray(operator.mv(jnp.asarray(_unit((2, 2), index), draw.dtype))) for index in np.ndindex(2, 2)]
        want = np.stack([column.reshape(-1) for column in columns], 1)
        return compare(result, want, 256 * draw.eps, draw, size=1 + np.abs(want).max())

    return Call({"self": operator}, check)


@target("regression.AttentionOperator.mv", vector="through")
def attention_mv(draw: Draw) -> Call:
    operator, case = _operator(draw)
    ones = np.ones((2, 2)) / 2
    arguments = {"self": operator, "vector": draw.cast(ones)}
    return Call(arguments, lambda result: never_nan(result) or _operator_law(draw, operator, case.loss, case.x, "hessian"))


@target("regression.AttentionOperator.transpose")
def attention_transpose(draw: Draw) -> Call:
    operator, _ = _operator(draw)
    return Call({"self": operator}, lambda result: None if result is operator else "another operator")


class TwoLayerCase:
    """½‖softmax(A₂ u(A₁x)) − b‖² + ½‖w A₁x‖² by its definition."""

    def __init__(self, draw: Draw) -> None:
        self.inner = draw.pick("cosh", "identity")
        self.A1, self.A2, self.b = draw.points(3, draw.d, 1.0), draw.points(4, 3, 1.0), np.abs(draw.normal(4))
        self.w = draw.pick(0.0, 0.5)
        self.x = draw.rounded(draw.normal(draw.d) * (1.0 if draw.mild else draw.pick(0.0, 1.0, 1e-10)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return h(A₂ g(A₁x))."""
        return _softmax_rows(long(self.A2) @ ACTIVATIONS[self.inner][0](long(self.A1) @ long(x)))

    def loss(self, x: np.ndarray) -> Any:
        """Return the loss."""
        return (((self.predict(x) - self.b) ** 2).sum() + self.w**2 * ((long(self.A1) @ long(x)) ** 2).sum()) / 2

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
            return compare(result, want, 1e3 * draw.eps * steepness + 1e-11, draw, size=3 + np.abs(want).max())

        return Call({"self": case.problem(draw), "x": draw.cast(case.x)}, check)


for _method in ("__call__", "predict", "residual", "gradient", "hessian", "gauss_newton", "check"):
    _register_two_layer(_method)


@target("regression.two_layer", A1="rows", A2="rows", b="array", inner="activation", outer="activation", weights="weights")
def two_layer(draw: Draw) -> Call:
    case = TwoLayerCase(draw)
    arguments = {"A1": draw.cast(case.A1), "A2": draw.cast(case.A2), "b": draw.cast(case.b)}
    arguments |= {"inner": case.inner, "outer": "softmax", "weights": case.w}

    def check(p: Any) -> str | None:
        return compare(p(jnp.asarray(case.x, draw.dtype)), case.loss(case.x), 1e4 * draw.eps, draw, size=3 + case.loss(case.x))

    return Call(arguments, check)
