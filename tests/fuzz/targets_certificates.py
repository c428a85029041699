"""Targets: certificates and measurements of networks.

What is promised is tried; most compile for long.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import finite, first_message
from fuzz.targets_activations import network
from fuzz.targets_regression import Regression


@target(
    "theory.certify_convergence",
    slow=True,
    laws_only=True,
    net="net",
    params="params",
    x="rows",
    y="array",
)
def certify_convergence(draw: Draw) -> Call:
    net, params, _ = network(draw)
    x = draw.points(scale=1.0)
    y = draw.normal(draw.n, draw.k) * draw.pick(1e-9, 1.0)
    arguments = {"net": net, "params": params, "x": draw.cast(x), "y": draw.cast(y)}

    def check(result: Any) -> str | None:
        numbers = [
            result.learning_rate,
            result.rate,
            result.flow_rate,
            result.residual_norm,
            result.progress,
        ]
        if not result.holds:
            return never_nan(numbers)
        good = result.learning_rate > 0 and 0 <= result.rate < 1 and np.isfinite(result.radius)
        return None if good else f"holds with {numbers}"

    return Call(arguments, check)


@target("theory.certify_minimum", slow=True, laws_only=True, p="object", x0="array")
def certify_minimum(draw: Draw) -> Call:
    regression = Regression(draw, draw.pick("exp", "res_exp", "cosh"), None)

    def check(result: Any) -> str | None:
        if not result.holds:
            return None if result.radius == 0 else f"does not hold with radius {result.radius}"
        good = (
            0 <= result.error <= result.radius <= result.convex_radius * (1 + 1e-9)
            and np.isfinite(result.bars).all()
        )
        return (
            None
            if good
            else f"error {result.error}, radius {result.radius}, convex_radius {result.convex_radius}"
        )

    return Call({"p": regression.problem(draw), "x0": draw.cast(regression.x)}, check)


STATEMENT = "[S] definition: f"
"""What is run of the ledger: one statement."""


def _make(width: int) -> Any:
    return sn.networks.two_layer("softmax", width=width, out_dim=2)


@target(
    "theory.certified_width",
    slow=True,
    laws_only=True,
    make="callable",
    x="rows",
    y="array",
    key="key",
    smallest="count",
    largest="count",
    precision="fraction",
)
def certified_width(draw: Draw) -> Call:
    arguments = {
        "make": _make,
        "x": draw.cast(draw.points(scale=1.0)),
        "y": draw.cast(draw.normal(draw.n, draw.k)),
    }
    arguments |= {"key": draw.key(), "smallest": 64, "largest": 128, "precision": 0.5}

    def check(result: Any) -> str | None:
        return None if result.width in (None, *range(64, 130)) else f"width {result.width}"

    return Call(arguments, check)


@target(
    "theory.perturbation",
    slow=True,
    laws_only=True,
    net="net",
    params="params",
    x="rows",
    radii="positive",
    key="key",
    kinds="object",
    trials="count",
    ascent_steps="count",
    path="path of weights?",
    failure="fraction",
    constants="object",
)
def perturbation(draw: Draw) -> Call:
    net, params, _ = network(draw)
    arguments = {
        "net": net,
        "params": params,
        "x": draw.cast(draw.points(scale=1.0)),
        "radii": 0.01,
        "key": draw.key(),
    }
    arguments |= {"kinds": ("random",), "trials": 2, "ascent_steps": 1}

    def check(result: Any) -> str | None:
        held = np.all(result.frobenius <= np.asarray(result.ours_frobenius) * (1 + 1e-9))
        return first_message(
            never_nan([result.frobenius, result.ours_frobenius]),
            None if held else "beyond our bound",
        )

    return Call(arguments, check, refusals="domain")


@target("theory.Perturbation.of", slow=True, laws_only=True, kind="choice")
def perturbation_of(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x = jnp.asarray(draw.points(scale=1.0), draw.dtype)
    found = sn.theory.perturbation(
        net, params, x, 0.01, key=draw.key(), kinds=("random",), trials=1, ascent_steps=1
    )
    return Call(
        {"self": found, "kind": "random"}, lambda result: finite(np.asarray(result.frobenius))
    )


@target(
    "theory.ledger",
    slow=True,
    laws_only=True,
    quick="flag",
    match="text",
    seed="count0",
    progress="flag",
    statements="object?",
)
def ledger(draw: Draw) -> Call:
    arguments = {
        "quick": True,
        "match": STATEMENT,
        "seed": draw.integers(3),
        "progress": False,
        "statements": None,
    }
    return Call(arguments, lambda rows: None if rows else "no rows")


@target(
    "theory.lazy.distances",
    slow=True,
    laws_only=True,
    net="net",
    params="params",
    x="rows",
    y="array",
    learning_rate="positive",
    steps="count",
    x_test="rows?",
    at="integers0?",
    scale="positive",
)
def distances(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    arguments = {
        "net": net,
        "params": params,
        "x": draw.cast(draw.points(scale=1.0)),
        "y": draw.cast(draw.normal(draw.n, draw.k)),
    }
    arguments |= {"learning_rate": 1e-3, "steps": 2, "scale": draw.pick(1.0, 100.0)}

    def check(result: Any) -> str | None:
        return first_message(never_nan(result), finite([result.loss, result.weights]))

    return Call(arguments, check)
