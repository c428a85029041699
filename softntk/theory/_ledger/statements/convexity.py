"""Statements of [S] and [D] about the Hessian B in the logits: its parts, its size, convexity."""

import math
from collections.abc import Callable

import numpy as np

from softntk import regression
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import (
    EQUALITY_TOLERANCE,
    Case,
    Instance,
    Statement,
    equal,
)
from softntk.theory._ledger.statements.regression_cases import (
    REGRESSION_AXES,
    build_problem,
    draw_regression,
    point_norm,
    tall_case,
    target_in_simplex,
)

STRENGTH = 0.1
"""l, the strong convexity for which the weights are chosen."""

DOMINANCE_FACTOR = 10.0
"""w² ≥ 10C makes AᵀW²A a 10 % approximation of the Hessian."""

SOFTMAX_HESSIAN_SIZE = 1.25
"""C with −C ≼ B ≼ C for softmax and b in the simplex (MATHEMATICS.md#regression-bounds)."""

# --- the parts of B


def hessian_parts(name: str, case: Case) -> dict[str, np.ndarray]:
    """Return B₁ … B₄ in the order of [D], from the quotient rule: v = u'/α, s = c − ⟨c, f⟩."""
    # B₁ and B₂ come from differentiating α, B₃ from JᵀJ, B₄ from u''.
    z = case["A"] @ case["x"]
    u = oracles.activation(name, z)
    alpha = float(u.sum())
    linear_slope = 1.0 if name == "res_exp" else 0.0
    f = u / alpha
    v = (np.exp(z) + linear_slope) / alpha
    second_derivative = np.exp(z) / alpha
    c = f - case["b"]
    s = c - c @ f
    mixed = np.outer(v, v * (f + s))
    return {
        "B₁": f @ f * np.outer(v, v),
        "B₂": -(mixed + mixed.T),
        "B₃": np.diag(v * v),
        "B₄": np.diag(second_derivative * s),
    }


def check_sum_of_parts(case: Case) -> Instance | None:
    """Compare B₁ + B₂ + B₃ + B₄ with B, where α is not lost against its terms."""
    z = case["A"] @ case["x"]
    if abs(oracles.activation("res_exp", z).sum()) < 0.5:
        return None
    parts = hessian_parts("res_exp", case)
    return equal(sum(parts.values()), oracles.logit_hessian("res_exp", z, case["b"]))


def check_part_size(name: str, part: str, bound: float) -> Callable[[Case], Instance | None]:
    """Return a check of the norm of one part."""

    def check(case: Case) -> Instance | None:
        if not target_in_simplex(case):
            return None
        value = float(np.linalg.norm(hessian_parts(name, case)[part], 2))
        return Instance(bound, value) if math.isfinite(value) else None

    return check


def check_hessian_size(name: str, constant: float) -> Callable[[Case], Instance | None]:
    """Return a check of −C ≼ B ≼ C."""

    def check(case: Case) -> Instance | None:
        if not target_in_simplex(case):
            return None
        B = oracles.logit_hessian(name, case["A"] @ case["x"], case["b"])
        return Instance(constant, float(np.linalg.norm(B, 2))) if np.isfinite(B).all() else None

    return check


# --- convexity


def check_semidefinite(case: Case) -> Instance | None:
    """Measure −λ_min(AᵀBA) for e^z + z, relative to the norms of the four parts of B."""
    # The parts may cancel: the size of AᵀBA itself may be all rounding, so that it is no scale.
    A = case["A"]
    H = A.T @ oracles.logit_hessian("res_exp", A @ case["x"], case["b"]) @ A
    if not (target_in_simplex(case) and np.isfinite(H).all() and np.any(A)):
        return None
    parts = hessian_parts("res_exp", case).values()
    scale = sum(float(np.linalg.norm(A.T @ part @ A, 2)) for part in parts)
    return Instance(EQUALITY_TOLERANCE, max(-float(np.linalg.eigvalsh(H)[0]), 0.0) / scale)


def check_convexity(name: str, which: str) -> Callable[[Case], Instance | None]:
    """Return a check of l ≤ λ_min(∇²L) with the weights that the paper's or our bound asks for."""

    def check(case: Case) -> Instance | None:
        A = case["A"]
        problem = build_problem(case, name, weighted=False)
        radius = None if name == "exp" else point_norm(case)
        weight = getattr(regression.convexity_weight(problem, STRENGTH, radius), which)
        if not (math.isfinite(weight) and target_in_simplex(case)):
            return None
        # The same weight for every sample, as small as the bound allows.
        B = oracles.logit_hessian(name, A @ case["x"], case["b"])
        H = A.T @ (B + weight**2 * np.eye(len(A))) @ A
        return Instance(float(np.linalg.eigvalsh(H)[0]), STRENGTH) if np.isfinite(H).all() else None

    return check


def pole_case(rng: np.random.Generator) -> Case:
    """Draw a case where α = ⟨exp(Ax) + Ax, 1⟩ is small, if it has a zero along x."""
    case = draw_regression(rng, (3, 2), 1.0)

    def normaliser(t: float) -> float:
        return float(oracles.activation("res_exp", t * case["A"] @ case["x"]).sum())

    # Bisection for the multiple of x at which α has the wanted size.
    lower = 0.0
    upper = 5.0
    target_size = 10 ** rng.uniform(-2, 0)
    for _ in range(40 if normaliser(upper) < target_size else 0):
        middle = (lower + upper) / 2
        if normaliser(middle) < target_size:
            upper = middle
        else:
            lower = middle
    return {**case, "x": (upper if lower > 0 else 1.0) * case["x"]}


def centred_tall_case(rng: np.random.Generator) -> Case:
    """Draw a case of full rank with small logits."""
    return draw_regression(rng, (6, 3), 0.1)


# --- weights that outweigh the Hessian


def dominated_case(rng: np.random.Generator) -> Case:
    """Draw a case of full rank, and factors ≥ 1 by which w² exceeds what is needed."""
    return {**tall_case(rng), "excess": 1 + rng.exponential(size=6) * rng.choice([0, 1])}


def weight_gram(case: Case, size: float) -> np.ndarray:
    """Return AᵀW²A with w² = 10 C times the factors of the case."""
    # A factor of one makes the premise w² ≥ 10C an equality.
    weights = DOMINANCE_FACTOR * size * case["excess"]
    return case["A"].T @ (weights[:, None] * case["A"])


def dominance_premise(case: Case) -> bool:
    """Return whether b lies in the simplex, w² ≥ 10C, and A has full rank."""
    # AᵀW²A must be positive definite, because its norm is used.
    has_full_rank = np.linalg.matrix_rank(case["A"]) == case["A"].shape[1]
    return bool(target_in_simplex(case) and has_full_rank and (case["excess"] >= 1).all())


def check_softmax_dominance(case: Case) -> Instance | None:
    """Measure ∇²L against AᵀW²A for softmax with w² ≥ 12.5."""
    if not dominance_premise(case):
        return None
    A = case["A"]
    # C I ≼ W²/10 gives both inequalities at once.
    G = weight_gram(case, SOFTMAX_HESSIAN_SIZE)
    H = G + A.T @ oracles.logit_hessian("exp", A @ case["x"], case["b"]) @ A
    return Instance(1 / DOMINANCE_FACTOR, oracles.spectral_distortion(H, G))


def check_dominance(case: Case) -> Instance | None:
    """Measure ∇²L against AᵀW²A for e^z + z with C = ‖B‖ at this x."""
    A = case["A"]
    B = oracles.logit_hessian("res_exp", A @ case["x"], case["b"])
    if not (dominance_premise(case) and np.isfinite(B).all()):
        return None
    G = weight_gram(case, float(np.linalg.norm(B, 2)))
    return Instance(1 / DOMINANCE_FACTOR, oracles.spectral_distortion(G + A.T @ B @ A, G))


def check_constant_factorisation(case: Case) -> Instance | None:
    """Measure the contraction of x ← x − (AᵀW²A)⁻¹∇L, from anywhere, in the norm of AᵀW²A."""
    if not dominance_premise(case):
        return None
    A = case["A"]
    b = case["b"]
    # x₊ − x* = (I − G⁻¹H̄)(x − x*) with 0.9G ≼ H̄ ≼ 1.1G, H̄ the mean Hessian on the way to x*
    G = weight_gram(case, SOFTMAX_HESSIAN_SIZE)
    root = np.linalg.cholesky(G).T

    # 1. The minimiser, by Newton's method; the loss is strongly convex.
    minimiser = np.zeros(A.shape[1])
    for _ in range(30):
        hessian = G + A.T @ oracles.logit_hessian("exp", A @ minimiser, b) @ A
        gradient = G @ minimiser + A.T @ oracles.logit_gradient("exp", A @ minimiser, b)
        minimiser = minimiser - np.linalg.solve(hessian, gradient)

    # 2. One step with the constant matrix.
    x = case["x"]
    gradient = G @ x + A.T @ oracles.logit_gradient("exp", A @ x, b)
    x_after = x - np.linalg.solve(G, gradient)
    distance = float(np.linalg.norm(root @ (x - minimiser)))
    distance_after = float(np.linalg.norm(root @ (x_after - minimiser)))
    return Instance(distance / DOMINANCE_FACTOR, distance_after)


DOMINANCE_AXES = {**REGRESSION_AXES, "excess": "n"}
PART_SIZES = (("B₁", 1.0), ("B₂", 6.0), ("B₃", 1.0), ("B₄", 2.0))

STATEMENTS = (
    # B and its parts.
    Statement(
        "[S] Hessian: B = B₁ + B₂ + B₃ + B₄",
        "f·f vvᵀ − v(v∘(f + s))ᵀ − (v∘(f + s))vᵀ + diag(v²) + diag(u''/α ∘ s)",
        tall_case,
        check_sum_of_parts,
        REGRESSION_AXES,
        equality=True,
    ),
    *(
        Statement(
            f"[D] size of {part}",
            f"‖{part}‖ ≤ {bound:g} for u = e^z, b ≥ 0, ‖b‖₁ ≤ 1",
            draw_regression,
            check_part_size("exp", part, bound),
            REGRESSION_AXES,
            source="ours",
        )
        for part, bound in PART_SIZES
    ),
    Statement(
        "[D] lemma: −20 I ≼ B ≼ 20 I",
        "for u = e^z, b ≥ 0, ‖b‖₁ ≤ 1",
        draw_regression,
        check_hessian_size("exp", 20.0),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] lemma: −20 I ≼ B ≼ 20 I",
        "for u = e^z + z, b ≥ 0, ‖b‖₁ ≤ 1",
        draw_regression,
        check_hessian_size("res_exp", 20.0),
        REGRESSION_AXES,
    ),
    # Convexity, without weights and with them.
    Statement(
        "[S] Hessian is PSD without weights",
        "AᵀBA ≽ 0, w = 0, as the abstract reads",
        draw_regression,
        check_semidefinite,
        REGRESSION_AXES,
        equality=True,
        source="printed",
    ),
    Statement(
        "[D] lemma: convexity",
        "∇²L ≽ l I for w² ≥ 20 + l/σ_min(A)²",
        tall_case,
        check_convexity("exp", "paper"),
        REGRESSION_AXES,
    ),
    Statement(
        "[ours] convexity, exp",
        "∇²L ≽ l I for w² ≥ C + l/σ_min(A)², our C (regression.convexity_weight)",
        tall_case,
        check_convexity("exp", "ours"),
        REGRESSION_AXES,
        source="ours",
    ),
    Statement(
        "[S] lemma: convexity",
        "∇²L ≽ l I for w² ≥ 20 + l/σ_min(A)², u = e^z + z",
        pole_case,
        check_convexity("res_exp", "paper"),
        REGRESSION_AXES,
    ),
    Statement(
        "[ours] convexity, res_exp",
        "∇²L ≽ l I for w² ≥ C + l/σ_min(A)², u = e^z + z, our C",
        centred_tall_case,
        check_convexity("res_exp", "ours"),
        REGRESSION_AXES,
        count=30,
        source="ours",
    ),
    # Weights that outweigh B.
    Statement(
        "[ours] W² ≈ B + W², softmax",
        "0.9 AᵀW²A ≼ ∇²L ≼ 1.1 AᵀW²A at every x for w² ≥ 12.5, u = e^z, b in the simplex",
        dominated_case,
        check_softmax_dominance,
        DOMINANCE_AXES,
        source="ours",
    ),
    Statement(
        "[ours] W² ≈ B + W²",
        "0.9 AᵀW²A ≼ ∇²L ≼ 1.1 AᵀW²A where −C ≼ B ≼ C and w² ≥ 10C, u = e^z + z",
        dominated_case,
        check_dominance,
        DOMINANCE_AXES,
        source="ours",
    ),
    Statement(
        "[ours] one factorisation for all steps",
        "‖x₊ − x*‖ ≤ ‖x − x*‖/10 in the norm of AᵀW²A from any x, x₊ = x − (AᵀW²A)⁻¹∇L, "
        "u = e^z, b in the simplex, w² ≥ 12.5",
        dominated_case,
        check_constant_factorisation,
        DOMINANCE_AXES,
        source="ours",
    ),
)
