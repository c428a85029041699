"""Statements of [G] about training: one step of gradient descent, many steps, linear dynamics."""

import math

import jax.numpy as jnp
import numpy as np

from softntk import ntk
from softntk.theory import bounds
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement, equal
from softntk.theory._ledger.statements.network_cases import (
    FAILURE_PROBABILITY,
    NETWORK_AXES,
    draw_network,
    growth,
    kernel_concentrated,
    logits_bounded_by_B,
    smallest_eigenvalue,
)

LARGER_STEPS = bounds.Constants(step_exponent=0.0, steps_exponent=0.0)
"""e^B without its powers in η and T. The step is e^{16B} times as large, which makes a stronger
statement, and one that can be run.
"""

BALL_STEPS = 500
"""Steps of training after which the distance from the start is compared with D."""


def learning_rate(case: Case) -> float:
    """Return η of [G] without e^{−16B}."""
    n, k = case["Y"].shape
    return bounds.learning_rate(
        "softmax",
        n,
        smallest_eigenvalue(case),
        k=k,
        sigma=case["sigma"],
        failure=FAILURE_PROBABILITY,
        constants=LARGER_STEPS,
    )


# --- one step


def step_case(rng: np.random.Generator) -> Case:
    """Draw weights close to the start, where λ_min(H) ≥ λ/2 in most draws."""
    # Pairs come apart, so that the outputs are not zero.
    case = draw_network(rng, (3, 8, 2, 1024), 0.2)
    return {**case, "W": case["W"] + 0.02 * rng.normal(size=case["W"].shape)}


class LossChange:
    """One step of gradient descent: ‖r₊‖² = ‖r‖² + C₁ + C₂ + C₃.

    Attributes:
        rate: η.
        smallest: λ, the smallest eigenvalue of H*.
        kernel_smallest: λ_min(H).
        loss_before: ‖r‖².
        loss_after: ‖r₊‖².
        linear_change: C₁ = −2η rᵀHr, along the kernel.
        nonlinear_change: C₂ = 2⟨r, F₊ − F + ηHr⟩, beyond first order.
        squared_change: C₃ = ‖F₊ − F‖².
    """

    def __init__(self, case: Case) -> None:
        W, a, x, Y = (case[name] for name in "WaxY")
        self.rate = learning_rate(case)
        self.smallest = smallest_eigenvalue(case)

        # 1. The outputs before and after the step, and their change to first order.
        F = oracles.forward(W, a, x)
        r = F - Y
        F_after = oracles.forward(W - self.rate * oracles.gradient(W, a, x, r), a, x)
        H = oracles.kernel(W, a, x)
        linear = -self.rate * (H @ r.ravel()).reshape(r.shape)

        # 2. The parts of ‖r₊‖² − ‖r‖².
        self.kernel_smallest = float(np.linalg.eigvalsh(H)[0])
        self.loss_before = float(np.sum(r**2))
        self.loss_after = float(np.sum((F_after - Y) ** 2))
        self.linear_change = 2 * float(np.sum(r * linear))
        self.nonlinear_change = 2 * float(np.sum(r * (F_after - F - linear)))
        self.squared_change = float(np.sum((F_after - F) ** 2))


def check_decomposition(case: Case) -> Instance:
    """Compare the sum of the parts with ‖r₊‖²."""
    # (r + Δ)² = r² + 2rΔ + Δ², with Δ split into its linear part and what is beyond.
    step = LossChange(case)
    total = step.loss_before + step.linear_change + step.nonlinear_change + step.squared_change
    return equal(total, step.loss_after)


def check_linear_change(case: Case) -> Instance | None:
    """Check C₁ ≤ −ηλ‖r‖²."""
    # rᵀHr ≥ (λ/2)‖r‖². In the scaling of the paper m stands beside η.
    step = LossChange(case)
    if step.kernel_smallest < step.smallest / 2:
        return None
    return Instance(-step.linear_change, step.rate * step.smallest * step.loss_before)


def check_nonlinear_change(case: Case) -> Instance:
    """Check |C₂| ≤ 0.1 ηλ‖r‖²."""
    # C₂ is of second order in η, and small steps are what makes it harmless.
    step = LossChange(case)
    bound = 0.1 * step.rate * step.smallest * step.loss_before
    return Instance(bound, abs(step.nonlinear_change))


def check_squared_change(case: Case) -> Instance | None:
    """Check C₃ ≤ η²n²k²e^{16B}‖r‖²."""
    # ‖F₊ − F‖ ≤ η‖H̄‖‖r‖, with no entry of the mean kernel H̄ above e^{8B}.
    if not logits_bounded_by_B(case, bounds.AS_REMEMBERED):
        return None
    step = LossChange(case)
    B = growth(case, bounds.AS_REMEMBERED)
    bound = step.rate**2 * case["Y"].size ** 2 * math.exp(16 * B) * step.loss_before
    return Instance(bound, step.squared_change)


def check_descent(case: Case) -> Instance | None:
    """Check the relative decrease 1 − ‖r₊‖²/‖r‖² ≥ ηλ/2."""
    # As a decrease and not as a factor near one, whose tightness would always be one.
    step = LossChange(case)
    if step.kernel_smallest < step.smallest / 2:
        return None
    promised = 1 - bounds.descent_factor(step.smallest, step.rate)
    return Instance(1 - step.loss_after / step.loss_before, promised)


def check_unit_gradient(case: Case) -> Instance | None:
    """Check max ‖∂L/∂w_r‖ ≤ e^{3B}√(nk/m)‖r‖."""
    # No entry of g exceeds 2e^{2B}/√m, and 2 ≤ e^B.
    if not logits_bounded_by_B(case):
        return None
    residual = oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]
    gradient = oracles.gradient(case["W"], case["a"], case["x"], residual)
    factor = math.exp(3 * growth(case)) * math.sqrt(residual.size / len(case["a"]))
    bound = factor * float(np.linalg.norm(residual))
    return Instance(bound, float(np.linalg.norm(gradient, axis=0).max()))


# --- many steps


def start_case(rng: np.random.Generator) -> Case:
    """Draw a network at its start, and an accuracy to train it to."""
    return {**draw_network(rng, (2, 8, 1, 512), 0.2), "accuracy": float(10 ** rng.uniform(-3, -1))}


def train(case: Case, steps: int) -> np.ndarray:
    """Return the hidden weights after gradient descent on ½‖F − Y‖²."""
    W, a, x, Y = (case[name] for name in "WaxY")
    rate = learning_rate(case)
    scale = math.sqrt(len(a))
    # Written out for speed: logits stay small, so that exp needs no shift.
    for _ in range(steps):
        f = np.exp(x @ W)
        f /= f.sum(axis=1, keepdims=True)
        slopes = (scale * f @ a - Y) @ a.T
        centred_slopes = slopes - np.sum(f * slopes, axis=1, keepdims=True)
        W = W - rate * scale * x.T @ (f * centred_slopes)
    return W


def check_radius(case: Case) -> Instance | None:
    """Check the largest distance of a unit from its start against D."""
    # The steps add up to a geometric series in (1 − ηλ/2)^{1/2}.
    if not kernel_concentrated(case):
        return None
    n, k = case["Y"].shape
    D = bounds.radius(
        "softmax",
        n,
        smallest_eigenvalue(case),
        float(np.linalg.norm(case["Y"])),
        len(case["a"]),
        k=k,
        sigma=case["sigma"],
        failure=FAILURE_PROBABILITY,
    )
    distances = np.linalg.norm(train(case, BALL_STEPS) - case["W"], axis=0)
    return Instance(D, float(distances.max()))


def check_theorem(case: Case) -> Instance | None:
    """Check ‖F(T) − Y‖² ≤ ε after the T steps of the theorem."""
    # T without e^{16B}, which belongs to the step size without e^{−16B}.
    if not kernel_concentrated(case):
        return None
    n, k = case["Y"].shape
    required_steps = bounds.required_steps(
        "softmax",
        n,
        smallest_eigenvalue(case),
        case["accuracy"],
        k=k,
        sigma=case["sigma"],
        failure=FAILURE_PROBABILITY,
        constants=LARGER_STEPS,
    )
    W = train(case, math.ceil(required_steps))
    residual = oracles.forward(W, case["a"], case["x"]) - case["Y"]
    return Instance(case["accuracy"], float(np.sum(residual**2)))


def check_linear_dynamics(case: Case) -> Instance:
    """Compare the closed form of kernel gradient descent with thirty steps of it."""
    # The oracle keeps coefficients c with F = Hc.
    H = oracles.limit_kernel(case["x"], case["sigma"])
    rate = 1 / float(np.linalg.eigvalsh(H)[-1])
    F = H @ oracles.kernel_descent(H, case["Y"], rate, 30)
    closed_form = ntk.predict_gd(jnp.asarray(H), jnp.asarray(case["Y"]), rate, np.array([30]))[0]
    return equal(closed_form, F)


STATEMENTS = (
    # One step, and the size of its parts.
    Statement(
        "[G] one step: C₁ + C₂ + C₃",
        "‖r₊‖² = ‖r‖² + C₁ + C₂ + C₃, C₁ = −2η rᵀHr, C₂ = 2⟨r, F₊ − F + ηHr⟩, C₃ = ‖F₊ − F‖²",
        step_case,
        check_decomposition,
        NETWORK_AXES,
        equality=True,
        count=20,
    ),
    Statement(
        "[G] one step: C₁",
        "C₁ ≤ −mηλ‖r‖² where λ_min(H) ≥ λ/2",
        step_case,
        check_linear_change,
        NETWORK_AXES,
        count=20,
    ),
    Statement(
        "[G] one step: C₂",
        "|C₂| ≤ 0.1 mηλ‖r‖²; scaled: η without e^{−16B}",
        step_case,
        check_nonlinear_change,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] one step: C₃",
        "C₃ ≤ η²m²n²k²e^{16B}‖r‖²; scaled: η without e^{−16B}",
        step_case,
        check_squared_change,
        NETWORK_AXES,
        count=20,
        source="ours",
    ),
    # The induction over steps: as long as weights are near their start, the loss falls and no
    # gradient is large, so that they stay there.
    Statement(
        "[G] induction: descent",
        "‖r₊‖² ≤ (1 − mηλ/2)‖r‖² (as 1 − ‖r₊‖²/‖r‖² ≥ mηλ/2); scaled: η without e^{−16B}",
        step_case,
        check_descent,
        NETWORK_AXES,
        count=20,
    ),
    Statement(
        "[G] induction: gradient",
        "‖∂L/∂w_r‖ ≤ e^{3B}√(nk)‖r‖",
        draw_network,
        check_unit_gradient,
        NETWORK_AXES,
    ),
    Statement(
        "[G] induction: radius",
        "‖w_r(τ) − w_r(0)‖ ≤ D = 4m⁻¹λ⁻¹e^{3B}√(nk)‖Y − F(0)‖, 500 steps; "
        "scaled: m = 512, η without e^{−16B}",
        start_case,
        check_radius,
        NETWORK_AXES,
        count=5,
    ),
    # What it proves, and the dynamics of a kernel that does not change.
    Statement(
        "[G] main theorem",
        "‖F(T) − Y‖² ≤ ε; scaled: m = 512, η and T without e^{16B}",
        start_case,
        check_theorem,
        NETWORK_AXES,
        count=5,
    ),
    Statement(
        "[G] linear dynamics",
        "F(τ) − Y = (I − ηH)^τ (F(0) − Y)",
        draw_network,
        check_linear_dynamics,
        NETWORK_AXES,
        equality=True,
        count=10,
    ),
)
