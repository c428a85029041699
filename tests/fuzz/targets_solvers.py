"""Targets: solvers, step sizes, solutions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, first_message, long
from fuzz.targets_activations import network
from fuzz.targets_regression import Regression


def _ends(draw: Draw) -> tuple[float, float]:
    scale = draw.scale(30)
    smallest = draw.positive() * scale
    return smallest, smallest * (1.0 if draw.chance(0.2) else 10.0 ** draw.generator.uniform(0, 12))


@target("solvers.step_sizes.fastest", smallest="positive", largest="positive")
def fastest(draw: Draw) -> Call:
    smallest, largest = _ends(draw)
    return Call(
        {"smallest": smallest, "largest": largest},
        lambda result: compare(result, 2 / (long(largest) + smallest), 1e-14, draw),
    )


@target("solvers.step_sizes.heavy_ball", smallest="positive", largest="positive")
def heavy_ball(draw: Draw) -> Call:
    smallest, largest = _ends(draw)
    low, high = np.sqrt(long(smallest)), np.sqrt(long(largest))

    def check(result: Any) -> str | None:
        want = 4 / (low + high) ** 2
        return first_message(
            compare(result[0], want, 1e-14, draw),
            compare(result[1], ((high - low) / (high + low)) ** 2, 1e-14, draw, size=1.0),
        )

    return Call({"smallest": smallest, "largest": largest}, check)


@target("solvers.step_sizes.nesterov", smallest="positive", largest="positive")
def nesterov(draw: Draw) -> Call:
    smallest, largest = _ends(draw)
    ratio = np.sqrt(long(largest) / long(smallest))

    def check(result: Any) -> str | None:
        return first_message(
            compare(result[0], 1 / long(largest), 1e-14, draw),
            compare(result[1], (ratio - 1) / (ratio + 1), 1e-14, draw, size=1.0),
        )

    return Call({"smallest": smallest, "largest": largest}, check)


@target(
    "solvers.step_sizes.paper",
    smallest="positive",
    n="count",
    k="count",
    width="count",
    B="positive",
    constant="positive",
    exponent="real",
)
def paper(draw: Draw) -> Call:
    numbers = {
        "smallest": draw.positive() * draw.scale(30),
        "n": draw.pick(1, 100, 10**6),
        "k": 2,
        "width": draw.pick(1, 10**7),
    }
    B = draw.positive(1.0, 3.0)
    want = (
        0.1
        * long(numbers["smallest"])
        / (numbers["width"] * 4.0 * float(numbers["n"]) ** 2)
        * np.exp(-16 * long(B))
    )
    return Call(numbers | {"B": B}, lambda result: compare(result, want, 1e-12, draw))


# --- transforms
# -----------------------------------------------------------------------------------------------------


def _descend(learning_rate: Any, momentum: Any = None, nesterov: Any = False) -> Any:
    tx = sn.solvers.gradient_descent(learning_rate, momentum, nesterov)
    x = jnp.ones(3)
    return tx.update(2 * x, tx.init(x), x)[0]


@target(
    "solvers.gradient_descent",
    _descend,
    learning_rate="rate",
    momentum="momentum?",
    nesterov="flag",
)
def gradient_descent(draw: Draw) -> Call:
    rate = float(np.float32(draw.positive() * draw.scale(15)))
    arguments = {"learning_rate": rate, "momentum": draw.pick(None, 0.5)}
    return Call(arguments, lambda result: compare(result, -2 * rate * np.ones(3), 1e-6, draw))


NEWTON: dict[str, Any] = {
    "curvature": "callable",
    "gauss_newton": "callable?",
    "sketch_size": "count?",
    "max_distortion": "positive?",
    "cg_steps": "count?",
    "preconditioner": "object?",
    "damping": "choice?",
    "key": "key?",
}


def _newton_step(
    draw: Draw, arguments: dict[str, Any], regression: Regression, result: Any
) -> str | None:
    x = jnp.asarray(regression.x, draw.dtype)
    p = regression.problem(draw)
    value, gradient = p.value_and_gradient(x)
    update, _ = result.update(gradient, result.init(x), x, value=value, grad=gradient, value_fn=p)
    return finite(update) if np.isfinite(float(value)) else never_nan(update)


@target(
    "solvers.scale_by_approx_newton",
    initial_damping="positive",
    slow=True,
    laws_only=True,
    **NEWTON,
)
def scale_by_approx_newton(draw: Draw) -> Call:
    regression = Regression(draw, "exp", "normalized")
    arguments = {
        "curvature": regression.problem(draw).hessian,
        "damping": draw.pick(None, "levenberg_marquardt"),
    }
    return Call(arguments, lambda result: _newton_step(draw, arguments, regression, result))


@target("solvers.approx_newton", linesearch="transform?", slow=True, laws_only=True, **NEWTON)
def approx_newton(draw: Draw) -> Call:
    regression = Regression(draw, "exp", "normalized")
    arguments = {
        "curvature": regression.problem(draw).hessian,
        "damping": draw.pick(None, "trust_region"),
    }
    return Call(arguments, lambda result: _newton_step(draw, arguments, regression, result))


@target(
    "solvers.natural_gradient",
    slow=True,
    laws_only=True,
    net="apply",
    x="rows",
    y="array",
    loss="choice",
    weight_decay="nonnegative",
    ridge="positive",
    rtol="positive?",
    max_cg_steps="count",
    damped="flag",
)
def natural_gradient(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x, y = draw.points(scale=1.0), draw.normal(draw.n, draw.k)
    name = draw.pick("squared", "cross_entropy") if draw.k > 1 else "squared"
    if name == "cross_entropy":
        y = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    decay = draw.pick(0.0, 0.1)
    arguments = {
        "net": net,
        "x": draw.cast(x),
        "y": draw.cast(y),
        "loss": name,
        "weight_decay": decay,
        "ridge": 1e-6,
        "damped": False,
    }

    def check(tx: Any) -> str | None:
        def loss(params: Any) -> Any:
            outputs = net.apply_fn(params, jnp.asarray(x, draw.dtype))
            targets = jnp.asarray(y, draw.dtype)
            penalty = 0.5 * decay * jnp.sum(params.hidden**2)
            if name == "squared":
                return 0.5 * jnp.sum((outputs - targets) ** 2) + penalty
            return -jnp.sum(targets * jax.nn.log_softmax(outputs)) + penalty

        gradient = jax.grad(loss)(params)
        return finite(tx.update(gradient, tx.init(params), params)[0])

    return Call(arguments, check)


# --- runs
# -----------------------------------------------------------------------------------------------------------


@target(
    "solvers.minimise",
    slow=True,
    may_fail=True,
    problem="loss",
    x0="array",
    tx="transform?",
    rtol="fraction?",
    max_steps="count0",
    throw="flag",
    progress="flag",
    atol="nonnegative",
    step_tol="nonnegative",
    checkpoint="path?",
    theory="flag",
)
def minimise(draw: Draw) -> Call:
    regression = Regression(draw, draw.pick("exp", "res_exp"), "normalized")
    if draw.random() < 0.7:
        regression.w = np.ones(6)
    p = regression.problem(draw)
    arguments = {"problem": p, "x0": draw.cast(regression.x), "throw": False}

    def check(solution: Any) -> str | None:
        value = np.asarray(solution.value, np.float64)
        if int(solution.result) != sn.solution.Result.SUCCESSFUL:
            return finite(value)
        start = np.linalg.norm(regression.gradient.astype(float))
        regression.x = value
        regression._derive()
        end = np.linalg.norm(regression.gradient.astype(float))
        room = 1e3 * draw.eps * regression.size_gradient * regression.amplification
        allowed = (1e-4 if draw.dtype == "float32" else 1e-8) * start + room
        return (
            None
            if end <= allowed
            else f"SUCCESSFUL with ‖∇L‖ = {end}, at the start {start}, allowed {allowed}"
        )

    return Call(arguments, check)


def _square(params: Any, target: Any = 0.0) -> Any:
    return 0.5 * jnp.sum((params - target) ** 2)


@target(
    "solvers.train",
    loss="callable",
    params="tree",
    tx="transform",
    steps="count",
    snapshot_every="count?",
)
def train(draw: Draw) -> Call:
    start = draw.rounded(draw.normal(3) * draw.scale(15))
    arguments = {
        "loss": _square,
        "params": jnp.asarray(start, draw.dtype),
        "tx": _sgd,
        "steps": 4,
        "snapshot_every": 2,
    }

    def check(solution: Any) -> str | None:
        losses = 0.5 * (long(start) ** 2).sum() * 0.25 ** np.arange(5)
        return first_message(
            compare(solution.value, start / 16, 32 * draw.eps, draw),
            compare(solution.stats["loss"], losses, 64 * draw.eps, draw),
        )

    return Call(arguments, check)


_sgd = sn.solvers.gradient_descent(0.5)


@target("solvers.contraction", slow=True, problem="object", path="rows", distortion="nonnegatives")
def contraction(draw: Draw) -> Call:
    regression = Regression(draw, "exp", "normalized")
    path = regression.x[None] + draw.normal(3, draw.d) * 0.1
    arguments = {
        "problem": regression.problem(draw),
        "path": draw.cast(path),
        "distortion": jnp.zeros(2, draw.dtype),
    }
    distance = np.linalg.norm(draw.rounded(path) - draw.rounded(path)[-1], axis=1)

    def check(result: Any) -> str | None:
        return never_nan(result.promised) or compare(result.distance, distance, 1e-4, draw)

    return Call(arguments, check)


@target("solution.Solution.check", may_fail=True)
def solution_check(draw: Draw) -> Call:
    code = draw.pick(0, 0, 3)
    solution = sn.solution.Solution(
        value=jnp.ones(2), result=jnp.asarray(code, jnp.int32), stats={}, state=None
    )
    return Call(
        {"self": solution}, lambda result: None if result is solution else "another solution"
    )
