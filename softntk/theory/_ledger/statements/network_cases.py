"""Random networks that the statements of [G] are measured on, and the premises of these statements.

| entry of a case | meaning | shape |
|---|---|---|
| x | points in the unit ball | [n, d] |
| W, a | hidden weights, readout ±1 | [d, m], [m, k] |
| Y | targets in [−1, 1] | [n, k] |
| sigma | standard deviation of W at the start | number |
"""

import math

import jax.numpy as jnp
import numpy as np

from softntk import networks
from softntk.theory import bounds
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case

FAILURE_PROBABILITY = 0.1
"""δ of every statement about random weights."""

ONE_UNIT = bounds.Constants(concentration=math.sqrt(2))
"""C = √2 in B, a choice of ours: with it B bounds the logits of one unit with probability 1 − δ,
because P(|N(0, 1)| > t) ≤ e^{−t²/2}. The C of the paper is not known; the default is 1.
"""

NETWORK_AXES = {"x": "nd", "W": "dm", "a": "mk", "Y": "nk"}
"""Axes of the arrays of a case, by letter."""

DEFAULT_SHAPE = (4, 6, 2, 128)
"""(n, d, k, m) of the networks that are drawn."""


def draw_points(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Draw points in the unit ball, none near zero, [n, d]."""
    # A direction, and a radius in [½, 1].
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * rng.uniform(0.5, 1, size=(n, 1))


def draw_network(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int] = DEFAULT_SHAPE,
    sigma: float | None = None,
) -> Case:
    """Draw points, weights and readouts in pairs ±a, and targets; shape is (n, d, k, m)."""
    # The double trick: units in pairs with opposite readouts, so that F = 0.
    n, d, k, m = shape
    sigma = float(rng.choice([0.1, 0.3, 1.0])) if sigma is None else sigma
    half_weights = sigma * rng.normal(size=(d, m // 2))
    half_readout = rng.choice([-1.0, 1.0], size=(m // 2, k))
    return {
        "x": draw_points(rng, n, d),
        "W": np.concatenate([half_weights, half_weights], axis=1),
        "a": np.concatenate([half_readout, -half_readout]),
        "Y": rng.uniform(-1, 1, size=(n, k)),
        "sigma": sigma,
    }


def perturbed_case(rng: np.random.Generator) -> Case:
    """Draw a network whose weights have left the start, so that pairs differ."""
    # 0.3 is the middle one of the standard deviations of the weights.
    case = draw_network(rng)
    return {**case, "W": case["W"] + 0.3 * rng.normal(size=case["W"].shape)}


def wide_network_case(rng: np.random.Generator) -> Case:
    """Draw a network wide enough for H(0) to be close to H* in most draws."""
    return draw_network(rng, (3, 8, 2, 8192), 0.2)


def build_network(
    case: Case, parameterization: str = "ntk", sigma: float = 1.0
) -> tuple[networks.Network, networks.Parameters]:
    """Return the network of softntk with these weights; sigma enters its infinite kernel only."""
    m, k = case["a"].shape
    net = networks.two_layer(
        "softmax", width=m, out_dim=k, sigma=sigma, parameterization=parameterization
    )
    return net, networks.Parameters(hidden=jnp.asarray(case["W"]), readout=jnp.asarray(case["a"]))


def growth(case: Case, constants: bounds.Constants = ONE_UNIT) -> float:
    """Return B."""
    n, k = case["Y"].shape
    return bounds.growth(n, k, case["sigma"], FAILURE_PROBABILITY, constants)


def logits_bounded_by_B(case: Case, constants: bounds.Constants = ONE_UNIT) -> bool:
    """Return whether B bounds all logits: the event on which the lemmas of [G] hold."""
    return bool(np.abs(case["x"] @ case["W"]).max() <= growth(case, constants))


def smallest_eigenvalue(case: Case) -> float:
    """Return λ, the smallest eigenvalue of H*."""
    return float(np.linalg.eigvalsh(oracles.limit_kernel(case["x"], case["sigma"]))[0])


def kernel_concentrated(case: Case) -> bool:
    """Return whether ‖H(0) − H*‖_F ≤ λ/4."""
    limit = oracles.limit_kernel(case["x"], case["sigma"], case["a"].shape[1])
    deviation = np.linalg.norm(oracles.kernel(case["W"], case["a"], case["x"]) - limit)
    return bool(deviation <= smallest_eigenvalue(case) / 4)
