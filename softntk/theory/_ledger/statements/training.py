"""Statements of [G] about the network while it is trained: perturbed weights, one step, many steps,
and diffusion.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softntk import ntk
from softntk.theory import bounds
from softntk.theory._ledger import oracles as oracles
from softntk.theory._ledger.statement import (
    Case,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements.networks import (
    FAILURE,
    calm,
    draw,
    growth,
    near,
    network,
    smallest,
    wide,
)
from softntk.theory._perturbation.measure import perturbation

_AXES = {"x": "nd", "W": "dm", "a": "mk", "Y": "nk"}
_WITHOUT = bounds.Constants(step_exponent=0.0, steps_exponent=0.0)
"""e^B without its powers in η and T: a step that is e^{16B} times as large, and so a stronger
statement that can be run.
"""


def _near_start(rng: np.random.Generator) -> Case:
    return {
        **draw(rng, sigma=0.2),
        "R": float(10 ** rng.uniform(-4, -2)),
        "seed": int(rng.integers(2**31)),
    }


def _moves(case: Case) -> list[np.ndarray]:
    """Moves of every neuron by R: random, towards a point, and apart by the sign of the readout."""
    rng, W, x = np.random.default_rng(case["seed"]), case["W"], case["x"]
    unit = lambda v: v / np.linalg.norm(v, axis=0, keepdims=True)
    towards = [np.repeat(unit(point[:, None]), W.shape[1], axis=1) for point in x]
    signs = case["a"][:, 0][None, :]
    found = [
        unit(rng.normal(size=W.shape)),
        unit(W),
        -unit(W),
        *towards,
        *(signs * move for move in towards),
    ]
    return [W + case["R"] * move for move in found]


def _largest(case: Case, size: Any) -> float:
    return float(max(size(W) for W in _moves(case)))


# --- perturbed weights
# --------------------------------------------------------------------------------------------


def _moved_powers(case: Case) -> Instance | None:
    R, before = case["R"], np.exp(case["x"] @ case["W"])
    bound = R * math.exp(growth(case) + R)
    return (
        Instance(bound, _largest(case, lambda W: np.abs(np.exp(case["x"] @ W) - before).max()))
        if calm(case)
        else None
    )


def _moved_normaliser(case: Case) -> Instance | None:
    R, alpha = case["R"], lambda W: np.exp(case["x"] @ W).sum(axis=1)
    bound = R * math.exp(3 * growth(case) + 2 * R) / len(case["a"])
    value = _largest(case, lambda W: np.abs(1 / alpha(W) - 1 / alpha(case["W"])).max())
    return Instance(bound, value) if calm(case) else None


def _moved_shares(case: Case) -> Instance | None:
    R, f = case["R"], oracles.softmax(case["x"] @ case["W"])
    bound = R * math.exp(5 * growth(case) + 3 * R) / len(case["a"])
    return (
        Instance(bound, _largest(case, lambda W: np.abs(oracles.softmax(case["x"] @ W) - f).max()))
        if calm(case)
        else None
    )


def _moved_kernel(case: Case) -> Instance | None:
    n, k = case["Y"].shape
    H = oracles.kernel(case["W"], case["a"], case["x"])
    bound = bounds.perturbation_bound(case["R"], n, k=k, sigma=case["sigma"], failure=FAILURE)
    value = _largest(case, lambda W: np.linalg.norm(oracles.kernel(W, case["a"], case["x"]) - H))
    return Instance(bound, value) if calm(case, bounds.AS_REMEMBERED) else None


def _our_kernel(case: Case) -> Instance:
    net, params = network(case)
    found = perturbation(
        net,
        params,
        case["x"],
        case["R"],
        key=jax.random.key(case["seed"]),
        kinds=("random",),
        trials=1,
    )
    moves = [*_moves(case), np.asarray(found.worst.hidden[0])]
    H = oracles.kernel(case["W"], case["a"], case["x"])
    value = max(np.linalg.norm(oracles.kernel(W, case["a"], case["x"]) - H) for W in moves)
    return Instance(float(found.ours_frobenius[0]), float(value))


def _wide_move(rng: np.random.Generator) -> Case:
    return {**wide(rng), "R": float(10 ** rng.uniform(-7, -5.5)), "seed": int(rng.integers(2**31))}


def _moved_eigenvalue(case: Case) -> Instance | None:
    (n, k), lowest = case["Y"].shape, smallest(case)
    promised = bounds.smallest_eigenvalue(
        case["R"], n, lowest, k=k, sigma=case["sigma"], failure=FAILURE
    )
    seen = min(
        np.linalg.eigvalsh(oracles.kernel(W, case["a"], case["x"]))[0] for W in _moves(case)[:3]
    )
    return (
        Instance(float(seen), promised) if near(case) and calm(case, bounds.AS_REMEMBERED) else None
    )


# --- one step
# -----------------------------------------------------------------------------------------------------


def _step(rng: np.random.Generator) -> Case:
    """Somewhere near the start, where λ_min(H) ≥ λ/2 mostly."""
    case = draw(rng, (3, 8, 2, 1024), 0.2)
    return {**case, "W": case["W"] + 0.02 * rng.normal(size=case["W"].shape)}


def _rate(case: Case) -> float:
    n, k = case["Y"].shape
    return bounds.learning_rate(
        "softmax", n, smallest(case), k=k, sigma=case["sigma"], failure=FAILURE, constants=_WITHOUT
    )


class _Parts:
    """‖r₊‖² = ‖r‖² + C₁ + C₂ + C₃: along the kernel, beyond first order, and of second order."""

    def __init__(self, case: Case) -> None:
        W, a, x, Y = (case[name] for name in "WaxY")
        self.rate, F = _rate(case), oracles.forward(W, a, x)
        r = F - Y
        after = oracles.forward(W - self.rate * oracles.gradient(W, a, x, r), a, x)
        H = oracles.kernel(W, a, x)
        linear = -self.rate * (H @ r.ravel()).reshape(r.shape)
        self.lowest, self.lambda_ = float(np.linalg.eigvalsh(H)[0]), smallest(case)
        self.before, self.after = float(np.sum(r**2)), float(np.sum((after - Y) ** 2))
        self.first = 2 * float(np.sum(r * linear))
        self.rest = 2 * float(np.sum(r * (after - F - linear)))
        self.square = float(np.sum((after - F) ** 2))


def _decomposition(case: Case) -> Instance:
    parts = _Parts(case)
    return equal(parts.before + parts.first + parts.rest + parts.square, parts.after)


def _along(case: Case) -> Instance | None:
    parts = _Parts(case)
    value = parts.rate * parts.lambda_ * parts.before
    return Instance(-parts.first, value) if parts.lowest >= parts.lambda_ / 2 else None


def _beyond(case: Case) -> Instance:
    parts = _Parts(case)
    return Instance(0.1 * parts.rate * parts.lambda_ * parts.before, abs(parts.rest))


def _second(case: Case) -> Instance | None:
    parts, nk = _Parts(case), case["Y"].size
    bound = parts.rate**2 * nk**2 * math.exp(16 * growth(case, bounds.AS_REMEMBERED)) * parts.before
    return Instance(bound, parts.square) if calm(case, bounds.AS_REMEMBERED) else None


def _descent(case: Case) -> Instance | None:
    parts = _Parts(case)
    promised = 1 - bounds.descent_factor(parts.lambda_, parts.rate)
    return (
        Instance(1 - parts.after / parts.before, promised)
        if parts.lowest >= parts.lambda_ / 2
        else None
    )


def _gradient(case: Case) -> Instance | None:
    residual = oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]
    sizes = np.linalg.norm(oracles.gradient(case["W"], case["a"], case["x"], residual), axis=0)
    scale = math.exp(3 * growth(case)) * math.sqrt(residual.size / len(case["a"]))
    return (
        Instance(scale * float(np.linalg.norm(residual)), float(sizes.max()))
        if calm(case)
        else None
    )


# --- many steps
# ---------------------------------------------------------------------------------------------------


def _start(rng: np.random.Generator) -> Case:
    return {**draw(rng, (2, 8, 1, 512), 0.2), "accuracy": float(10 ** rng.uniform(-3, -1))}


def _train(case: Case, steps: int) -> np.ndarray:
    W, a, x, Y, rate = case["W"], case["a"], case["x"], case["Y"], _rate(case)
    scale = math.sqrt(len(a))
    for _ in range(steps):
        f = np.exp(x @ W)
        f /= f.sum(axis=1, keepdims=True)
        inner = (scale * f @ a - Y) @ a.T
        W = W - rate * scale * x.T @ (f * (inner - np.sum(f * inner, axis=1, keepdims=True)))
    return W


def _ball(case: Case) -> Instance | None:
    n, k = case["Y"].shape
    if not near(case):
        return None
    D = bounds.radius(
        "softmax",
        n,
        smallest(case),
        float(np.linalg.norm(case["Y"])),
        len(case["a"]),
        k=k,
        sigma=case["sigma"],
        failure=FAILURE,
    )
    return Instance(D, float(np.linalg.norm(_train(case, 500) - case["W"], axis=0).max()))


def _theorem(case: Case) -> Instance | None:
    n, k = case["Y"].shape
    if not near(case):
        return None
    steps = bounds.required_steps(
        "softmax",
        n,
        smallest(case),
        case["accuracy"],
        k=k,
        sigma=case["sigma"],
        failure=FAILURE,
        constants=_WITHOUT,
    )
    W = _train(case, math.ceil(steps))
    return Instance(
        case["accuracy"], float(np.sum((oracles.forward(W, case["a"], case["x"]) - case["Y"]) ** 2))
    )


def _linear(case: Case) -> Instance:
    H = oracles.limit(case["x"], case["sigma"])
    rate, F = 1 / float(np.linalg.eigvalsh(H)[-1]), np.zeros_like(case["Y"])
    for _ in range(30):
        F = F - rate * H @ (F - case["Y"])
    return equal(ntk.predict_gd(jnp.asarray(H), jnp.asarray(case["Y"]), rate, np.array([30]))[0], F)


# --- diffusion
# ----------------------------------------------------------------------------------------------------


def _mixture(rng: np.random.Generator) -> Case:
    """X₀ of two Gaussians on the line, X_t = αX₀ + √h noise, and two guesses of the score."""
    return {
        "means": rng.uniform(-1.5, 1.5, size=2),
        "deviations": rng.uniform(0.3, 1, size=2),
        "alpha": float(rng.uniform(0.2, 0.95)),
        "guesses": rng.normal(size=(2, 3)),
    }


class _Grid:
    """The density of (X₀, X_t) on a grid: sums are integrals to rounding, because everything is
    smooth and decays.
    """

    def __init__(self, case: Case) -> None:
        self.alpha = case["alpha"]
        self.h = 1 - self.alpha**2
        normal = lambda x, mean, variance: (
            np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        )
        self.x = np.linspace(-10, 10, 801)
        self.mesh = self.x[1] - self.x[0]
        x0, xt = self.x[:, None], self.x[None, :]
        density = 0.5 * sum(
            normal(x0, mean, s**2)
            for mean, s in zip(case["means"], case["deviations"], strict=True)
        )
        self.joint = self.mesh**2 * density * normal(xt, self.alpha * x0, self.h)
        self.marginal = self.joint.sum(axis=0)
        safe = np.where(self.marginal > 0, self.marginal, 1)
        self.posterior = (self.x[:, None] * self.joint).sum(axis=0) / safe
        conditional = -(xt - self.alpha * x0) / self.h
        self.score = (conditional * self.joint).sum(axis=0) / safe
        self.denoising = lambda s: np.sum(self.joint * (s[None] - conditional) ** 2)

    def guess(self, coefficients: np.ndarray) -> np.ndarray:
        return coefficients[0] * np.sin(self.x) + coefficients[1] * self.x + coefficients[2]


def _constant(case: Case) -> Instance:
    grid = _Grid(case)
    first, second = (grid.guess(c) for c in case["guesses"])
    matching = lambda s: np.sum(grid.marginal * (s - grid.score) ** 2)
    return equal(grid.denoising(first) - grid.denoising(second), matching(first) - matching(second))


def _identity(case: Case) -> Instance:
    grid = _Grid(case)
    f = grid.guess(case["guesses"][0])
    s, truth = (grid.alpha * f - grid.x) / grid.h, (grid.alpha * grid.posterior - grid.x) / grid.h
    weighed = (grid.alpha / grid.h) ** 2 * np.sum(grid.marginal * (f - grid.posterior) ** 2)
    noisy = np.sum(grid.joint * (f[None] - grid.x[:, None]) ** 2)
    noise = np.sum(grid.joint * (grid.posterior[None] - grid.x[:, None]) ** 2)
    both = [np.sum(grid.marginal * (s - grid.score) ** 2), np.sum(grid.marginal * (s - truth) ** 2)]
    return equal([*both, noisy], [weighed, weighed, (grid.h / grid.alpha) ** 2 * weighed + noise])


STATEMENTS = (
    Statement(
        "[G] perturbed exp",
        "|exp(⟨w̃_r, x_i⟩) − exp(⟨w_r, x_i⟩)| ≤ R e^{B+R} for ‖w̃_r − w_r‖ ≤ R",
        _near_start,
        _moved_powers,
        _AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] perturbed 1/α",
        "|1/α̃_i − 1/α_i| ≤ R e^{3B+2R}/m",
        _near_start,
        _moved_normaliser,
        _AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] perturbed softmax",
        "|f̃_ir − f_ir| ≤ R e^{5B+3R}/m",
        _near_start,
        _moved_shares,
        _AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] lemma: perturbed kernel",
        "‖H(W̃) − H(0)‖_F ≤ R n k e^{10B}, R ≤ 0.01",
        _near_start,
        _moved_kernel,
        _AXES,
        count=20,
    ),
    Statement(
        "[ours] perturbed kernel",
        "‖H(W̃) − H(0)‖_F ≤ our bound (theory.perturbation), R ≤ 0.01",
        _near_start,
        _our_kernel,
        _AXES,
        count=5,
        source="ours",
    ),
    Statement(
        "[G] lemma: λ_min(H(W̃))",
        "λ_min(H(W̃)) ≥ ¾λ − R n k e^{10B}",
        _wide_move,
        _moved_eigenvalue,
        _AXES,
        count=10,
    ),
    Statement(
        "[G] one step: C₁ + C₂ + C₃",
        "‖r₊‖² = ‖r‖² + C₁ + C₂ + C₃, C₁ = −2η rᵀHr, C₂ = 2⟨r, F₊ − F + ηHr⟩, C₃ = ‖F₊ − F‖²",
        _step,
        _decomposition,
        _AXES,
        True,
        20,
    ),
    Statement(
        "[G] one step: C₁", "C₁ ≤ −mηλ‖r‖² where λ_min(H) ≥ λ/2", _step, _along, _AXES, count=20
    ),
    Statement(
        "[G] one step: C₂",
        "|C₂| ≤ 0.1 mηλ‖r‖²; scaled: η without e^{−16B}",
        _step,
        _beyond,
        _AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] one step: C₃",
        "C₃ ≤ η²m²n²k²e^{16B}‖r‖²; scaled: η without e^{−16B}",
        _step,
        _second,
        _AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] induction: descent",
        "‖r₊‖² ≤ (1 − mηλ/2)‖r‖² (told of 1 − ‖r₊‖²/‖r‖²); scaled: η without e^{−16B}",
        _step,
        _descent,
        _AXES,
        count=20,
    ),
    Statement("[G] induction: gradient", "‖∂L/∂w_r‖ ≤ e^{3B}√(nk)‖r‖", draw, _gradient, _AXES),
    Statement(
        "[G] induction: radius",
        "‖w_r(τ) − w_r(0)‖ ≤ D = 4m⁻¹λ⁻¹e^{3B}√(nk)‖Y − F(0)‖, 500 steps; scaled: m = 512, η without e^{−16B}",
        _start,
        _ball,
        _AXES,
        count=5,
    ),
    Statement(
        "[G] main theorem",
        "‖F(T) − Y‖² ≤ ε; scaled: m = 512, η and T without e^{16B}",
        _start,
        _theorem,
        _AXES,
        count=5,
    ),
    Statement(
        "[G] linear dynamics", "F(τ) − Y = (I − ηH)^τ (F(0) − Y)", draw, _linear, _AXES, True, 10
    ),
    Statement(
        "[G] diffusion: denoising",
        "E‖s − ∇log p(X_t | X₀)‖² − E‖s − ∇log p_t‖² does not depend on s",
        _mixture,
        _constant,
        equality=True,
        count=10,
    ),
    Statement(
        "[G] diffusion: regression",
        "E‖s − ∇log p_t‖² = (α/h)² E‖f − E[X₀ | X_t]‖², and E‖f − X₀‖² is h²/α² times it plus noise",
        _mixture,
        _identity,
        equality=True,
        count=10,
    ),
)
