"""Statements of [G] about the kernel after every hidden weight vector has moved by at most R."""

import math
from collections.abc import Callable

import jax
import numpy as np

from softntk.theory import bounds
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement
from softntk.theory._ledger.statements.network_cases import (
    FAILURE_PROBABILITY,
    NETWORK_AXES,
    build_network,
    draw_network,
    draw_points,
    growth,
    kernel_concentrated,
    logits_bounded_by_B,
    smallest_eigenvalue,
    wide_network_case,
)
from softntk.theory._perturbation.measure import perturbation

RELU_DRAWS = 20
"""Draws of the weights for one quantile of the change of a ReLU kernel."""


def ball_case(rng: np.random.Generator) -> Case:
    """Draw a network at its start, a radius R ≤ 0.01, and a seed."""
    return {
        **draw_network(rng, sigma=0.2),
        "R": float(10 ** rng.uniform(-4, -2)),
        "seed": int(rng.integers(2**31)),
    }


def wide_ball_case(rng: np.random.Generator) -> Case:
    """Draw a wide network and a radius so small that the bound on eigenvalues says something."""
    return {
        **wide_network_case(rng),
        "R": float(10 ** rng.uniform(-7, -5.5)),
        "seed": int(rng.integers(2**31)),
    }


def perturbed_weights(case: Case) -> list[np.ndarray]:
    """Return weights in which every unit has moved by R.

    The directions are random, along the weights, against them, towards each point, and towards or
    away from each point by the sign of the readout.
    """
    rng = np.random.default_rng(case["seed"])
    W = case["W"]

    def normalise(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v, axis=0, keepdims=True)

    # Each of these raises one logit of every unit as fast as R allows.
    towards_points = [
        np.repeat(normalise(point[:, None]), W.shape[1], axis=1) for point in case["x"]
    ]
    signs = case["a"][:, 0][None, :]
    directions = [
        normalise(rng.normal(size=W.shape)),
        normalise(W),
        -normalise(W),
        *towards_points,
        *(signs * direction for direction in towards_points),
    ]
    return [W + case["R"] * direction for direction in directions]


def largest_change(case: Case, change: Callable[[np.ndarray], float]) -> float:
    """Return the largest change over all perturbed weights."""
    return float(max(change(W) for W in perturbed_weights(case)))


# --- softmax, step by step


def check_powers(case: Case) -> Instance | None:
    """Check that exp(z) changes by at most R e^{B+R}."""
    # |e^{z̃} − e^z| ≤ e^{max(z, z̃)}|z̃ − z|, and |z̃ − z| ≤ R in the unit ball.
    if not logits_bounded_by_B(case):
        return None
    R = case["R"]
    powers = np.exp(case["x"] @ case["W"])
    value = largest_change(case, lambda W: np.abs(np.exp(case["x"] @ W) - powers).max())
    return Instance(R * math.exp(growth(case) + R), value)


def check_inverse_normaliser(case: Case) -> Instance | None:
    """Check that 1/α changes by at most R e^{3B+2R}/m."""
    # |Δα| ≤ mR e^{B+R}, over α ≥ m e^{−B} and α̃ ≥ m e^{−B−R}.
    if not logits_bounded_by_B(case):
        return None
    R = case["R"]

    def inverse_normaliser(W: np.ndarray) -> np.ndarray:
        return 1 / np.exp(case["x"] @ W).sum(axis=1)

    start = inverse_normaliser(case["W"])
    value = largest_change(case, lambda W: np.abs(inverse_normaliser(W) - start).max())
    return Instance(R * math.exp(3 * growth(case) + 2 * R) / len(case["a"]), value)


def check_shares(case: Case) -> Instance | None:
    """Check that the entries of the softmax change by at most R e^{5B+3R}/m."""
    # |Δf| ≤ |Δe^z|/α̃ + e^z|Δ(1/α)|, by the two lemmas before.
    if not logits_bounded_by_B(case):
        return None
    R = case["R"]
    f = oracles.softmax(case["x"] @ case["W"])
    value = largest_change(case, lambda W: np.abs(oracles.softmax(case["x"] @ W) - f).max())
    return Instance(R * math.exp(5 * growth(case) + 3 * R) / len(case["a"]), value)


def kernel_change(case: Case) -> float:
    """Return the largest ‖H(W̃) − H(W)‖_F of the softmax network over all perturbed weights."""
    H = oracles.kernel(case["W"], case["a"], case["x"])
    return largest_change(
        case, lambda W: float(np.linalg.norm(oracles.kernel(W, case["a"], case["x"]) - H))
    )


def check_kernel(case: Case) -> Instance | None:
    """Check the change of the softmax kernel against R n k e^{10B}, the bound of [G]."""
    # The default C of B is the one that the bound itself is computed with.
    if not logits_bounded_by_B(case, bounds.AS_REMEMBERED):
        return None
    n, k = case["Y"].shape
    bound = bounds.perturbation_bound(
        case["R"], n, k=k, sigma=case["sigma"], failure=FAILURE_PROBABILITY
    )
    return Instance(bound, kernel_change(case))


def check_our_kernel_bound(case: Case) -> Instance:
    """Check the change of the softmax kernel against the bound of theory.perturbation."""
    # One trial is enough: the package's own search is only one more source of perturbed weights.
    net, params = build_network(case)
    measured = perturbation(
        net,
        params,
        case["x"],
        case["R"],
        key=jax.random.key(case["seed"]),
        kinds=("random",),
        trials=1,
    )
    # The worst weights that softntk found count as well.
    weights = [*perturbed_weights(case), np.asarray(measured.worst.hidden[0])]
    H = oracles.kernel(case["W"], case["a"], case["x"])
    value = max(np.linalg.norm(oracles.kernel(W, case["a"], case["x"]) - H) for W in weights)
    return Instance(float(measured.ours_frobenius[0]), float(value))


def check_eigenvalue(case: Case) -> Instance | None:
    """Check λ_min(H(W̃)) ≥ ¾λ − R n k e^{10B}. A lower bound, stored the other way round."""
    if not (kernel_concentrated(case) and logits_bounded_by_B(case, bounds.AS_REMEMBERED)):
        return None
    n, k = case["Y"].shape
    promised = bounds.smallest_eigenvalue(
        case["R"],
        n,
        smallest_eigenvalue(case),
        k=k,
        sigma=case["sigma"],
        failure=FAILURE_PROBABILITY,
    )
    # Three of the directions are enough: eigenvalues of large kernels take longer than norms.
    measured = min(
        np.linalg.eigvalsh(oracles.kernel(W, case["a"], case["x"]))[0]
        for W in perturbed_weights(case)[:3]
    )
    return Instance(float(measured), promised)


# --- the other activations


def check_exp_kernel(case: Case) -> Instance | None:
    """Check the change of the plain exp kernel against 2.05 R n k e^{2B}."""
    if not logits_bounded_by_B(case) or case["R"] > 0.01:
        return None
    # An entry of H is a mean of ±e^{z + z'}, and each of the two logits moves by at most R, so that
    # an entry changes by at most e^{2B}(e^{2R} − 1), which is at most 2.05 R e^{2B} for R ≤ 0.01.
    start_kernel = oracles.plain_kernel("exp", case["W"], case["a"], case["x"])

    def change(W: np.ndarray) -> float:
        moved_kernel = oracles.plain_kernel("exp", W, case["a"], case["x"])
        return float(np.linalg.norm(moved_kernel - start_kernel))

    bound = 2.05 * case["R"] * case["Y"].size * math.exp(2 * growth(case))
    return Instance(bound, largest_change(case, change))


def relu_case(rng: np.random.Generator) -> Case:
    """Draw few points, a width and a radius, and a seed for the weights."""
    # Widths and radii with n²e^{−mR/10} small, in most draws.
    n = int(rng.integers(1, 4))
    k = int(rng.integers(1, 3))
    return {
        "x": draw_points(rng, n, 5),
        "k": k,
        "sigma": float(rng.uniform(0.5, 1)),
        "m": int(rng.choice([1024, 2048])),
        "R": float(rng.uniform(0.05, 0.2)),
        "seed": int(rng.integers(2**31)),
    }


def relu_kernel_change(case: Case, weights: Case) -> float:
    """Return the largest change of a ReLU kernel when units switch at one of the points."""
    W = weights["W"]
    x = weights["x"]
    H = oracles.plain_kernel("relu", W, weights["a"], x)
    changes = []
    for point in x:
        # Every unit moves across the plane on which it switches at this point, if R allows it;
        # or all units move to one side, so that what switches on does not make up for the rest.
        step = case["R"] * point[:, None] / np.linalg.norm(point)
        for moved_weights in (W - step * np.sign(point @ W), W - step, W + step):
            H_moved = oracles.plain_kernel("relu", moved_weights, weights["a"], x)
            changes.append(np.linalg.norm(H_moved - H))
    return float(max(changes))


def check_relu_kernel(case: Case) -> Instance | None:
    """Check the (1 − δ)-quantile of the change of the ReLU kernel against 2 R n k/σ."""
    x, k, sigma, m, R = (case[name] for name in ("x", "k", "sigma", "m", "R"))
    n = len(x)
    # Units stand in pairs, so that m/2 of them are independent.
    if n**2 * math.exp(-m / 2 * R / 10) > FAILURE_PROBABILITY:
        return None
    # The probability is over the weights, hence a quantile of independent draws.
    rng = np.random.default_rng(case["seed"])
    changes = []
    for _ in range(RELU_DRAWS):
        weights = {**draw_network(rng, (n, x.shape[1], k, m), sigma), "x": x}
        changes.append(relu_kernel_change(case, weights))
    bound = bounds.perturbation_bound(
        R, n, family="relu", k=k, sigma=sigma, failure=FAILURE_PROBABILITY
    )
    return Instance(bound, float(np.quantile(changes, 1 - FAILURE_PROBABILITY)))


STATEMENTS = (
    # Softmax, step by step: each row uses those before.
    Statement(
        "[G] perturbed exp",
        "|exp(⟨w̃_r, x_i⟩) − exp(⟨w_r, x_i⟩)| ≤ R e^{B+R} for ‖w̃_r − w_r‖ ≤ R",
        ball_case,
        check_powers,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] perturbed 1/α",
        "|1/α̃_i − 1/α_i| ≤ R e^{3B+2R}/m",
        ball_case,
        check_inverse_normaliser,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] perturbed softmax",
        "|f̃_ir − f_ir| ≤ R e^{5B+3R}/m",
        ball_case,
        check_shares,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] lemma: perturbed kernel",
        "‖H(W̃) − H(0)‖_F ≤ R n k e^{10B}, R ≤ 0.01",
        ball_case,
        check_kernel,
        NETWORK_AXES,
        count=20,
    ),
    Statement(
        "[ours] perturbed kernel",
        "‖H(W̃) − H(0)‖_F ≤ our bound (theory.perturbation), R ≤ 0.01",
        ball_case,
        check_our_kernel_bound,
        NETWORK_AXES,
        count=5,
        source="ours",
    ),
    # The other activations.
    Statement(
        "[ours] perturbed kernel, exp",
        "‖H(W̃) − H(0)‖_F ≤ 2.05 R n k e^{2B} for u = e^z, not normalized, R ≤ 0.01, "
        "where B bounds the logits",
        ball_case,
        check_exp_kernel,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] lemma: perturbed kernel, ReLU",
        "‖H(W̃) − H(0)‖_F ≤ 2 R n k/σ with probability 1 − δ where n²e^{−mR/10} ≤ δ "
        "(arXiv 1906.03593)",
        relu_case,
        check_relu_kernel,
        {"x": "nd"},
        count=10,
    ),
    # What is left of the smallest eigenvalue.
    Statement(
        "[G] lemma: λ_min(H(W̃))",
        "λ_min(H(W̃)) ≥ ¾λ − R n k e^{10B}",
        wide_ball_case,
        check_eigenvalue,
        NETWORK_AXES,
        count=10,
    ),
)
