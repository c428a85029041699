"""Targets: regressions, their losses, derivatives and bounds, against formulas in long double."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import ACTIVATIONS, compare, first_message, long

FORMS = ("normalized", "rescaled", "plain")
METHODS = (
    "__call__",
    "predict",
    "residual",
    "logits",
    "gradient",
    "hessian",
    "gauss_newton",
    "check",
    "value_and_gradient",
)


class Regression:
    """A regression in float64 with its loss and derivatives by the formulas of the textbook, in
    long double.
    """

    def __init__(self, draw: Draw, activation: str | None = None, form: str | None = None) -> None:
        self.activation = (
            draw.pick("exp", "res_exp", "cosh", "sinh") if activation is None else activation
        )
        self.form = draw.pick(*FORMS) if form is None else form
        unit = 1.0 if draw.mild else draw.pick(1.0, 1.0, 1e-12, 1e12)
        self.A = draw.points(6, draw.d, unit)
        self.x = draw.rounded(
            draw.normal(draw.d) / unit * (1.0 if draw.mild else draw.pick(1.0, 1e-3, 3.0))
        )
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
                # ∇²(½‖f − b‖²) by differentiating v∘(c − φ): see the table of section 4 of the
                # mathematics.
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
        self.size_hessian = (
            rows * np.abs(A).max() * (4 * big * (big + self.size_residual) * 6 + (w**2).max())
        )
        self.resolved = bool(np.abs(z).max() < 30 and kept > 1e-2 and (1 / big) < 1e12)

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        arrays = (jnp.asarray(array, draw.dtype) for array in (self.A, self.b))
        return sn.regression.problem(
            *arrays,
            activation=self.activation,
            form=self.form,
            weights=jnp.asarray(self.w, draw.dtype),
        )

    def compare(self, draw: Draw, method: str, result: Any) -> str | None:
        """Return what is wrong with the result of a method."""
        if not self.resolved or self.amplification * draw.eps > 1e-4:
            return None if method in ("hessian", "gauss_newton") else never_nan(result)
        rtol = 64 * draw.eps * self.amplification
        if method == "check":
            return None if int(result) == 0 else sn.solution.Result(int(result)).name
        if method == "value_and_gradient":
            return first_message(
                *(
                    self.compare(draw, *pair)
                    for pair in zip(("__call__", "gradient"), result, strict=True)
                )
            )
        want, size = {
            "__call__": (self.loss, self.size_loss),
            "predict": (self.predicted, self.size_residual),
            "residual": (self.residual, self.size_residual),
            "logits": (self.z, np.abs(self.A).sum(1) * np.abs(self.x).max()),
            "gradient": (self.gradient, self.size_gradient),
            "hessian": (self.hessian, self.size_hessian),
            "gauss_newton": (self.gauss_newton, self.size_hessian),
        }[method]
        if method in ("hessian", "gauss_newton"):
            got = result.as_matrix()
            # what exceeds the precision is infinite as a whole
            if np.abs(want).max() > 1e-3 * draw.largest:
                return never_nan(got)
        else:
            got = result
        return compare(
            got, want, rtol, draw, size=size, what=f"{self.form} {self.activation} {method}"
        )


def _register_method(method: str) -> None:
    previous: dict[str, Any] = {"previous": "through?"} if method == "check" else {}

    @target(f"regression.Problem.{method}", x="through", **previous)
    def make(draw: Draw) -> Call:
        regression = Regression(draw)
        arguments = {"self": regression.problem(draw), "x": draw.cast(regression.x)}
        return Call(arguments, lambda result: regression.compare(draw, method, result))


for _method in METHODS:
    _register_method(_method)


# --- what makes problems
# --------------------------------------------------------------------------------------------


def _register_member(name: str, activation: str, form: str) -> None:
    @target(f"regression.{name}", A="rows", b="array", weights="weights")
    def make(draw: Draw) -> Call:
        regression = Regression(draw, activation, form)
        arguments = {
            "A": draw.cast(regression.A),
            "b": draw.cast(regression.b),
            "weights": draw.cast(regression.w),
        }

        def check(p: Any) -> str | None:
            x = jnp.asarray(regression.x, draw.dtype)
            return first_message(
                regression.compare(draw, "__call__", p(x)),
                regression.compare(draw, "gradient", p.gradient(x)),
            )

        return Call(arguments, check)


for _name, _activation, _form in (
    ("softmax", "exp", "normalized"),
    ("resnet_softmax", "res_exp", "normalized"),
    ("exponential", "exp", "plain"),
):
    _register_member(_name, _activation, _form)


@target(
    "regression.hyperbolic", A="rows", b="array", kind="choice", form="choice", weights="weights"
)
def hyperbolic(draw: Draw) -> Call:
    regression = Regression(draw, draw.pick("cosh", "sinh"), draw.pick(*FORMS))
    arguments = {
        "A": draw.cast(regression.A),
        "b": draw.cast(regression.b),
        "kind": regression.activation,
    }
    arguments |= {"form": regression.form, "weights": draw.cast(regression.w)}

    def check(p: Any) -> str | None:
        return regression.compare(
            draw, "gradient", p.gradient(jnp.asarray(regression.x, draw.dtype))
        )

    return Call(arguments, check)


@target(
    "regression.problem",
    A="rows",
    b="array",
    activation="activation",
    form="choice",
    weights="weights",
)
def problem(draw: Draw) -> Call:
    regression = Regression(draw)
    arguments = {
        "A": draw.cast(regression.A),
        "b": draw.cast(regression.b),
        "activation": regression.activation,
    }
    arguments |= {"form": regression.form, "weights": draw.cast(regression.w)}

    def check(p: Any) -> str | None:
        return regression.compare(draw, "hessian", p.hessian(jnp.asarray(regression.x, draw.dtype)))

    return Call(arguments, check)
