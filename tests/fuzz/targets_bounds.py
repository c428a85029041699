"""Targets: leverage regressions, and bounds of regressions."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, long
from fuzz.targets_regression import Regression

LEVERAGE_METHODS = (
    "__call__",
    "predict",
    "residual",
    "scalings",
    "gradient",
    "hessian",
    "gauss_newton",
    "check",
)


class LeverageCase:
    """log det(Aᵀ diag(e^t) A) − ⟨τ, t⟩ + (Σt)²/2n by its definition."""

    def __init__(self, draw: Draw) -> None:
        self.unit = 1.0 if draw.mild else draw.pick(1.0, 1e-8, 1e8)
        self.A = draw.rounded(draw.normal(6, draw.d) * self.unit)
        self.target = draw.rounded(np.full(6, draw.d / 6))
        self.t = draw.rounded(draw.normal(6) * (1.0 if draw.mild else draw.pick(0.0, 1.0, 2.0)))

    def scores(self) -> np.ndarray:
        """Return σ."""
        rows = np.exp(self.t / 2)[:, None] * self.A / self.unit
        return (np.linalg.qr(rows)[0] ** 2).sum(1)

    def loss(self) -> float:
        """Return the loss."""
        rows = np.exp(self.t / 2)[:, None] * self.A / self.unit
        log_det = np.linalg.slogdet(rows.T @ rows)[1] + 2 * self.A.shape[1] * np.log(self.unit)
        return log_det - self.target @ self.t + self.t.sum() ** 2 / 12

    def problem(self, draw: Draw) -> Any:
        """Return the problem of softntk."""
        return sn.regression.leverage(
            jnp.asarray(self.A, draw.dtype), jnp.asarray(self.target, draw.dtype)
        )


def _register_leverage(method: str) -> None:
    @target(f"regression.LeverageProblem.{method}", t="through")
    def make(draw: Draw) -> Call:
        case = LeverageCase(draw)

        def check(result: Any) -> str | None:
            if method == "check":
                return None if int(result) == 0 else str(int(result))
            scores = case.scores()
            if method in ("hessian", "gauss_newton"):
                rows = np.exp(case.t / 2)[:, None] * case.A / case.unit
                basis = np.linalg.qr(rows)[0]
                want = np.diag(scores) - (basis @ basis.T) ** 2 + 1 / 6
                return compare(result.as_matrix(), want, 1e5 * draw.eps, draw, size=1.0)
            want = {
                "__call__": case.loss,
                "predict": lambda: scores,
                "residual": lambda: scores - case.target,
                "gradient": lambda: scores - case.target + case.t.sum() / 6,
                "scalings": lambda: np.exp(-case.t / 2),
            }[method]()
            return compare(result, want, 1e4 * draw.eps, draw, size=1 + np.abs(want).max())

        return Call({"self": case.problem(draw), "t": draw.cast(case.t)}, check)


for _method in LEVERAGE_METHODS:
    _register_leverage(_method)


@target("regression.leverage", A="rows", target="array")
def leverage(draw: Draw) -> Call:
    case = LeverageCase(draw)
    arguments = {"A": draw.cast(case.A), "target": draw.cast(case.target)}
    return Call(
        arguments,
        lambda p: compare(
            p(jnp.asarray(case.t, draw.dtype)), case.loss(), 1e4 * draw.eps, draw, size=10.0
        ),
    )


# --- bounds: laws, by points of the ball
# -----------------------------------------------------------------------------


def _ball(draw: Draw) -> tuple[Regression, Any, float, np.ndarray]:
    regression = Regression(draw, draw.pick("exp", "res_exp", "cosh"), "normalized")
    radius = 0.5 / (np.abs(regression.A).max() or 1.0)
    if draw.chance(0.2):
        radius *= draw.pick(1e-6, 1e3)
    points = draw.normal(5, draw.d)
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * radius
    return regression, regression.problem(draw), float(radius), points


@target("regression.normaliser", p="object", radius="positive", centre="array?")
def normaliser(draw: Draw) -> Call:
    regression, p, radius, points = _ball(draw)

    def check(result: Any) -> str | None:
        z = long(regression.A) @ long(points).T
        u = {"exp": np.exp, "res_exp": lambda t: np.exp(t) + t, "cosh": np.cosh}[
            regression.activation
        ]
        least = float(u(z).sum(0).min())
        ours = float(result.ours)
        return (
            None
            if ours <= least + 1e-4 * abs(least) + 1e-4
            else f"α ≥ {ours} but {least} at a point of the ball"
        )

    return Call({"p": p, "radius": radius, "centre": None}, check)


@target(
    "regression.lipschitz",
    p="object",
    radius="positive",
    centre="array?",
    exponents="three numbers",
)
def lipschitz(draw: Draw) -> Call:
    regression, p, radius, points = _ball(draw)

    def check(result: Any) -> str | None:
        message = never_nan([result.predict.ours, result.gradient.ours, result.hessian.ours])
        if message or regression.w.any():
            return message
        first, second = (p.predict(jnp.asarray(point, draw.dtype)) for point in points[:2])
        change, distance = (
            np.linalg.norm(np.asarray(first - second, float)),
            np.linalg.norm(points[0] - points[1]),
        )
        allowed = float(result.predict.ours) * distance * 1.01 + 100 * draw.eps
        return None if not change > allowed else f"predict moves by {change}, promised {allowed}"

    return Call({"p": p, "radius": radius, "centre": None}, check)


@target(
    "regression.convexity_weight",
    p="object",
    strength="positive",
    radius="positive?",
    constant="nonnegative",
)
def convexity_weight(draw: Draw) -> Call:
    regression, p, radius, points = _ball(draw)
    strength = 0.5 * float(np.abs(regression.A).max() ** 2 or 1.0)
    strength = float(draw.rounded(np.array(strength)))

    def check(result: Any) -> str | None:
        weight = float(result.ours)
        if np.isnan(weight):
            return "NaN"
        if not weight < 1e3:
            return None
        heavier = sn.regression.problem(p.A, p.b, activation=regression.activation, weights=weight)
        matrix = np.asarray(heavier.hessian(jnp.asarray(points[0], draw.dtype)).as_matrix(), float)
        lowest = np.linalg.eigvalsh(matrix)[0]
        room = 1e3 * draw.eps * np.abs(matrix).max()
        return (
            None
            if lowest >= strength - room
            else f"λ_min = {lowest} < {strength} with w = {weight}"
        )

    return Call({"p": p, "strength": strength, "radius": radius}, check)
