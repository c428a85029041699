"""Statements of [S] and [D] about the approximate Newton method, and the theorem of Kantorovich."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from softntk import regression
from softntk.theory._certificates.minimum import certify_minimum
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement
from softntk.theory._ledger.statements.regression_cases import (
    REGRESSION_AXES,
    build_problem,
    draw_regression,
)

STRONG_WEIGHT = 2.0
"""w of the strongly convex regressions."""

DISTANCE_RATIO = 1000
"""Factor by which the counted iterations must reduce the distance from the minimiser."""


def strongly_convex_case(rng: np.random.Generator, shape: tuple[int, int] = (6, 3)) -> Case:
    """Draw a strongly convex softmax regression, a start, and the error εE of its Hessians.

    E is symmetric with ‖E‖ = 1, "start" is the direction from the minimiser to the start.
    """
    case = draw_regression(rng, shape, 0.5)
    # A reflection: all eigenvalues of E are ±1.
    rotation = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))[0]
    return {
        **case,
        "w": np.full(shape[0], STRONG_WEIGHT),
        "start": rng.normal(size=shape[1]),
        "distance": float(10 ** rng.uniform(-3, 0)),
        "epsilon": float(rng.choice([0.0, 0.05, 0.2])),
        "E": rotation @ np.diag(rng.choice([-1.0, 1.0], size=shape[1])) @ rotation.T,
    }


def ill_conditioned_case(rng: np.random.Generator) -> Case:
    """Draw a strongly convex case with columns of different lengths: condition numbers to 1e4."""
    case = strongly_convex_case(rng, (3, 2))
    return {
        **case,
        "A": case["A"] * 10 ** rng.uniform(-2, 0, size=2),
        "distance": float(10 ** rng.uniform(-6, -2)),
    }


def exact_case(rng: np.random.Generator) -> Case:
    """Draw an ill-conditioned case with exact Hessians."""
    return {**ill_conditioned_case(rng), "epsilon": 0.0}


def hessian(case: Case, x: np.ndarray) -> np.ndarray:
    """Return ∇²L(x)."""
    A = case["A"]
    return A.T @ (oracles.logit_hessian("exp", A @ x, case["b"]) + np.diag(case["w"] ** 2)) @ A


def gradient(case: Case, x: np.ndarray) -> np.ndarray:
    """Return ∇L(x)."""
    A = case["A"]
    return A.T @ (oracles.logit_gradient("exp", A @ x, case["b"]) + case["w"] ** 2 * (A @ x))


def find_minimiser(case: Case) -> np.ndarray:
    """Return x*, by Newton's method from zero."""
    # No line search: with ‖B‖ ≤ 1.25 beside w² = 4 every Newton step contracts.
    x = np.zeros(case["A"].shape[1])
    for _ in range(50):
        x = x - np.linalg.solve(hessian(case, x), gradient(case, x))
    return x


def approximate_step(case: Case, x: np.ndarray) -> np.ndarray:
    """Take a Newton step with H̃ = L(I + εE)Lᵀ for H = LLᵀ, so that (1 − ε)H ≼ H̃ ≼ (1 + ε)H."""
    # The oracle's Hessian is exact; all error is in E, as large as (1 ± ε) allows.
    root = np.linalg.cholesky(hessian(case, x))
    H = root @ (np.eye(len(x)) + case["epsilon"] * case["E"]) @ root.T
    return x - np.linalg.solve(H, gradient(case, x))


class Start(NamedTuple):
    """A minimiser and a start, with the constants of the theorems.

    Attributes:
        minimiser: x*, [d].
        x: the start, [d].
        strength: l = λ_min(∇²L(x*)).
        lipschitz: M, a Lipschitz constant of ∇²L on a ball that holds both.
    """

    minimiser: np.ndarray
    x: np.ndarray
    strength: float
    lipschitz: float


def find_start(case: Case, distance: float) -> Start:
    """Return the start at the given distance from the minimiser."""
    # Constants of the theorem: l at the minimiser, M on a ball that holds both points.
    minimiser = find_minimiser(case)
    x = minimiser + distance * case["start"] / np.linalg.norm(case["start"])
    strength = float(np.linalg.eigvalsh(hessian(case, minimiser))[0])
    radius = float(max(np.linalg.norm(minimiser), np.linalg.norm(x)))
    constants = regression.lipschitz(build_problem(case, "exp"), radius)
    return Start(minimiser, x, strength, constants.hessian.ours)


def contraction_premise(case: Case, start: Start) -> bool:
    """Return whether rM < l and ‖E‖ ≤ 1."""
    is_close = case["distance"] * start.lipschitz < start.strength
    return bool(is_close and np.linalg.norm(case["E"], 2) <= 1 + 1e-9)


def check_contraction(euclidean: bool) -> Callable[[Case], Instance | None]:
    """Return a check of r₊ ≤ 2(ε + rM/(l − rM)) r, in the norm of the papers or of ∇²L(x*)."""

    def check(case: Case) -> Instance | None:
        start = find_start(case, case["distance"])
        if not contraction_premise(case, start):
            return None
        # The norm of ∇²L(x*) is that of Lᵀx for ∇²L(x*) = LLᵀ.
        x_after = approximate_step(case, start.x)
        curvature_change = case["distance"] * start.lipschitz
        factor = 2 * (case["epsilon"] + curvature_change / (start.strength - curvature_change))
        root = np.eye(len(start.x))
        if not euclidean:
            root = np.linalg.cholesky(hessian(case, start.minimiser)).T
        return Instance(
            factor * float(np.linalg.norm(root @ (start.x - start.minimiser))),
            float(np.linalg.norm(root @ (x_after - start.minimiser))),
        )

    return check


def check_euclidean_contraction(case: Case) -> Instance | None:
    """Check r₊ ≤ [√κ ε/(1 − ε) + Mr/(2(1 − ε)(l − Mr))] r, κ the condition number of ∇²L(x)."""
    # ‖I − H̃⁻¹H‖ ≤ √κ ε/(1 − ε) in the Euclidean norm; the rest is Newton's own error.
    start = find_start(case, case["distance"])
    if not contraction_premise(case, start):
        return None
    epsilon = case["epsilon"]
    curvature_change = case["distance"] * start.lipschitz
    condition_number = float(np.linalg.cond(hessian(case, start.x)))
    approximation_part = math.sqrt(condition_number) * epsilon / (1 - epsilon)
    newton_part = curvature_change / (2 * (1 - epsilon) * (start.strength - curvature_change))
    distance = float(np.linalg.norm(start.x - start.minimiser))
    distance_after = float(np.linalg.norm(approximate_step(case, start.x) - start.minimiser))
    return Instance((approximation_part + newton_part) * distance, distance_after)


def check_iteration_count(case: Case) -> Instance | None:
    """Check the distance after ⌈log₂ 1000⌉ steps from where 2(ε + rM/(l − rM)) ≤ ½."""
    # The distance from which the factor 2(ε + rM/(l − rM)) is at most ½.
    unit_start = find_start(case, 1.0)
    newton_share = 0.25 - case["epsilon"]
    distance = newton_share / (1 + newton_share) * unit_start.strength / unit_start.lipschitz
    start = find_start(case, min(distance, 1.0))
    x = start.x
    initial_distance = float(np.linalg.norm(x - start.minimiser))
    for _ in range(math.ceil(math.log2(DISTANCE_RATIO))):
        x = approximate_step(case, x)
    final_distance = float(np.linalg.norm(x - start.minimiser))
    return Instance(initial_distance / DISTANCE_RATIO, final_distance)


def check_kantorovich(case: Case) -> Instance | None:
    """Check ‖x* − x₀‖ against the certified error."""
    # A tenth of the distance, so that most starts have a certificate.
    start = find_start(case, 0.1 * case["distance"])
    certificate = certify_minimum(build_problem(case, "exp"), start.x)
    if not certificate.holds:
        return None
    return Instance(certificate.error, float(np.linalg.norm(start.x - start.minimiser)))


NEWTON_AXES = {**REGRESSION_AXES, "start": "d", "E": "dd"}

STATEMENTS = (
    # One step, in the norm of the papers and in that of the Hessian.
    Statement(
        "[S] lemma: one Newton step",
        "r₊ ≤ 2rM/(l − rM) r, r = ‖x − x*‖, u = e^z, our M",
        exact_case,
        check_contraction(True),
        NEWTON_AXES,
        count=40,
    ),
    Statement(
        "[S] lemma: one approximate Newton step",
        "r₊ ≤ 2(ε + rM/(l − rM)) r, r = ‖x − x*‖, (1 − ε)H ≼ H̃ ≼ (1 + ε)H",
        ill_conditioned_case,
        check_contraction(True),
        NEWTON_AXES,
        count=40,
    ),
    Statement(
        "[ours] one approximate Newton step",
        "r₊ ≤ 2(ε + ‖x − x*‖M/(l − ‖x − x*‖M)) r, r = ‖x − x*‖ in the norm of ∇²L(x*)",
        ill_conditioned_case,
        check_contraction(False),
        NEWTON_AXES,
        count=40,
        source="ours",
    ),
    Statement(
        "[ours] one approximate Newton step, Euclidean",
        "r₊ ≤ [√κ ε/(1 − ε) + Mr/(2(1 − ε)(l − Mr))] r, r = ‖x − x*‖, κ = cond ∇²L(x)",
        ill_conditioned_case,
        check_euclidean_contraction,
        NEWTON_AXES,
        count=40,
        source="ours",
    ),
    # Many steps, and a bound that is known before the minimiser is.
    Statement(
        "[S] theorem: iterations",
        "log₂(r₀/ε) steps to ε where the factor is at most ½, u = e^z, our M",
        strongly_convex_case,
        check_iteration_count,
        NEWTON_AXES,
        count=10,
    ),
    Statement(
        "[ours] Kantorovich",
        "‖x* − x₀‖ ≤ the error of theory.certify_minimum",
        strongly_convex_case,
        check_kantorovich,
        NEWTON_AXES,
        count=10,
        source="ours",
    ),
)
