"""Targets: feature learning, by its definitions in long double."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, first_message, long
from fuzz.targets_activations import factors, network


@target("theory.feature_learning.hermite", degree="count0", z="elements")
def hermite(draw: Draw) -> Call:
    degree = draw.pick(0, 1, 2, 5)
    z = draw.rounded(draw.normal(draw.m) * draw.pick(1.0, 1e-20, 100.0))
    polynomial = np.polynomial.hermite_e.HermiteE.basis(degree)
    want = polynomial(long(z)) / math.sqrt(math.factorial(degree))
    size = (1 + np.abs(z)) ** degree
    return Call(
        {"degree": degree, "z": draw.cast(z)},
        lambda result: compare(result, want, 64 * draw.eps, draw, size=size),
    )


@target("theory.feature_learning.target", kind="choice", direction="array", degree="count")
def feature_target(draw: Draw) -> Call:
    kind = draw.pick("hermite", "polynomial", "composition", "staircase")
    direction = draw.rounded(draw.normal(draw.d) * draw.scale())

    def check(function: Any) -> str | None:
        x = draw.normal(5, draw.d)
        z = (
            x
            @ (direction / np.abs(direction).max())
            / np.linalg.norm(direction / np.abs(direction).max())
        )
        got = function(jnp.asarray(x, draw.dtype))
        if kind != "hermite":
            return finite(got)
        return compare(got[:, 0], (z**2 - 1) / math.sqrt(2), 1e3 * draw.eps, draw, size=10.0)

    return Call({"kind": kind, "direction": draw.cast(direction), "degree": 2}, check)


@target(
    "theory.feature_learning.corrupt",
    kind="choice",
    y="array",
    size="nonnegative",
    key="key?",
    gram="gram?",
)
def corrupt(draw: Draw) -> Call:
    kind = draw.pick("gaussian", "flips", "adversarial")
    y = draw.rounded(draw.normal(4, 1) * draw.scale())
    size = 0.5
    arguments = {
        "kind": kind,
        "y": draw.cast(y),
        "size": size,
        "key": draw.key(),
        "gram": jnp.eye(4, dtype=draw.dtype),
    }

    def check(result: Any) -> str | None:
        got = np.asarray(result, np.float64)
        if kind == "flips":
            return compare(np.abs(got), np.abs(y), 0, draw) or (
                None if (got * y < 0).sum() in (2, 0) else "not two flips"
            )
        if kind == "adversarial":
            room = 1e3 * draw.eps * np.abs(y).max() + 1e-4
            error = abs(np.linalg.norm(got - y) - 1.0)
            return (
                None
                if error <= room or np.abs(y).max() * draw.eps > 1e-3
                else f"noise of norm {np.linalg.norm(got - y)}"
            )
        return finite(got)

    return Call(arguments, check)


@target("theory.feature_learning.features", net="net", params="params", x="rows")
def features(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x = draw.points(scale=1.0)
    want = factors(params, x, "softmax")[0]

    def check(result: Any) -> str | None:
        return compare(result, want, 1e3 * draw.eps, draw, size=np.abs(want).max() * 3)

    return Call({"net": net, "params": params, "x": draw.cast(x)}, check)


@target(
    "theory.feature_learning.one_step",
    net="net",
    params="params",
    x="rows",
    y="array",
    learning_rate="positive",
)
def one_step(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x, y = draw.points(scale=1.0), draw.normal(draw.n, draw.k)
    rate = draw.positive() * draw.scale(5)
    arguments = {
        "net": net,
        "params": params,
        "x": draw.cast(x),
        "y": draw.cast(y),
        "learning_rate": rate,
    }

    def check(result: Any) -> str | None:
        _, outputs, g = factors(params, x, "softmax")
        gradient = np.einsum("id,ik,ikm->dm", long(x), outputs - y, g)
        want = long(params.hidden) - rate * gradient
        size = np.abs(long(params.hidden)).max() + rate * np.abs(g).max() * np.abs(x).max() * 30
        return compare(result.hidden, want, 64 * draw.eps, draw, size=size)

    return Call(arguments, check)


@target(
    "theory.feature_learning.ridge_features",
    train="rows",
    y="array",
    test="rows",
    ridge="positive?",
)
def ridge_features(draw: Draw) -> Call:
    train, test, y = draw.normal(5, 3), draw.normal(2, 3), draw.normal(5, 2)
    unit = draw.scale(15)
    train, test = draw.rounded(train * unit), draw.rounded(test * unit)
    ridge = float(draw.rounded(np.array(unit**2 * 0.1)))
    want = (test / unit) @ np.linalg.solve(
        (train / unit).T @ (train / unit) + ridge / unit**2 * np.eye(3), (train / unit).T @ y
    )
    arguments = {
        "train": draw.cast(train),
        "y": draw.cast(y),
        "test": draw.cast(test),
        "ridge": ridge,
    }
    return Call(arguments, lambda result: compare(result, want, 1e3 * draw.eps, draw, size=10.0))


@target(
    "theory.feature_learning.alignment", params="params", params_after="params", direction="array"
)
def alignment(draw: Draw) -> Call:
    _, params, _ = network(draw, "softmax")
    after = params.replace(hidden=params.hidden + draw.pick(0.0, 1.0, 1e-3))
    direction = draw.rounded(draw.normal(draw.d) * draw.scale())
    unit = direction / np.abs(direction).max()
    unit = unit / np.linalg.norm(unit)
    hidden = np.asarray(params.hidden, float)
    want = np.linalg.norm(unit @ hidden) / np.linalg.norm(hidden)

    def check(result: Any) -> str | None:
        return first_message(
            never_nan(result), compare(result.before, want, 1e3 * draw.eps, draw, size=1.0)
        )

    return Call({"params": params, "params_after": after, "direction": draw.cast(direction)}, check)
