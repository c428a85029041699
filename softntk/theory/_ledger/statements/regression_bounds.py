"""Statements of [S], [D] and [H] about sizes, the normaliser, and Lipschitz constants.

β is a lower bound of the normaliser α on the ball ‖x‖ ≤ R everywhere in this file: n e^{−‖A‖R} for
exp, n(e^{−‖A‖R} − ‖A‖R) for e^z + z. At a single point the ball is that of radius ‖x‖.
"""

import math
from collections.abc import Callable

import numpy as np

from softntk import regression
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement
from softntk.theory._ledger.statements.regression_cases import (
    REGRESSION_AXES,
    ball_radius,
    build_problem,
    draw_regression,
    largest_norm,
    point_norm,
    target_in_simplex,
)

# --- sizes


def check_activation_norm(name: str, factor: float) -> Callable[[Case], Instance]:
    """Return a check of ‖u‖ ≤ factor √n e^{R²}."""

    def check(case: Case) -> Instance:
        # |z_i| ≤ ‖A‖‖x‖ ≤ R² for each of n entries, and |e^z + z| ≤ 2e^{|z|}
        bound = factor * math.sqrt(len(case["A"])) * math.exp(largest_norm(case) ** 2)
        u = oracles.activation(name, case["A"] @ case["x"])
        return Instance(bound, float(np.linalg.norm(u)))

    return check


def check_prediction_norm(name: str) -> Callable[[Case], Instance | None]:
    """Return a check of ‖f‖ ≤ 1."""

    def check(case: Case) -> Instance | None:
        value = float(np.linalg.norm(oracles.prediction(name, case["A"] @ case["x"])))
        return Instance(1.0, value) if math.isfinite(value) else None

    return check


def normaliser_bound(case: Case, name: str, radius: float, which: str = "paper") -> float:
    """Return β on the ball ‖x‖ ≤ radius, the paper's or ours."""
    problem = regression.problem(case["A"], np.zeros(len(case["A"])), name)
    return getattr(regression.normaliser(problem, radius), which)


def check_normaliser(name: str, which: str) -> Callable[[Case], Instance]:
    """Return a check of β ≤ α, with the paper's β for exp or with ours for the activation."""

    def check(case: Case) -> Instance:
        # Every e^{z_i} is at least e^{−‖A‖R}.
        bounded_activation = name if which == "ours" else "exp"
        beta = normaliser_bound(case, bounded_activation, point_norm(case), which)
        return Instance(float(oracles.activation(name, case["A"] @ case["x"]).sum()), beta)

    return check


def check_positive_normaliser(case: Case) -> Instance:
    """Check α ≥ 0 for e^z + z, as −⟨Ax, 1⟩ ≤ ⟨exp(Ax), 1⟩."""
    # As a sum of exponentials against a linear term, so that the value is not just zero.
    z = case["A"] @ case["x"]
    return Instance(float(np.exp(z).sum()), -float(z.sum()))


# --- Lipschitz constants


def distance(case: Case) -> float:
    """Return ‖x − y‖."""
    return float(np.linalg.norm(case["x"] - case["y"]))


def activations_at_both_points(name: str, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return u(Ax) and u(Ay)."""
    u_x = oracles.activation(name, case["A"] @ case["x"])
    u_y = oracles.activation(name, case["A"] @ case["y"])
    return u_x, u_y


def check_activation_lipschitz(name: str) -> Callable[[Case], Instance]:
    """Return a check of the Lipschitz constant of u in x."""

    def check(case: Case) -> Instance:
        R = largest_norm(case)
        u_x, u_y = activations_at_both_points(name, case)
        # |e^a − e^b| ≤ e^{R²}|a − b|, and ‖A(x − y)‖ ≤ R‖x − y‖; the factor 2√n is the papers'
        linear_part = R if name == "res_exp" else 0
        constant = 2 * math.sqrt(len(case["A"])) * R * math.exp(R**2) + linear_part
        return Instance(constant * distance(case), float(np.linalg.norm(u_x - u_y)))

    return check


def check_normaliser_lipschitz(name: str) -> Callable[[Case], Instance]:
    """Return a check of |Δα| ≤ √n ‖Δu‖."""

    def check(case: Case) -> Instance:
        # Cauchy and Schwarz: |⟨Δu, 1⟩| ≤ ‖Δu‖ √n
        u_x, u_y = activations_at_both_points(name, case)
        bound = math.sqrt(len(u_x)) * float(np.linalg.norm(u_x - u_y))
        return Instance(bound, abs(float(u_x.sum() - u_y.sum())))

    return check


def check_inverse_lipschitz(name: str) -> Callable[[Case], Instance]:
    """Return a check of |Δ(1/α)| ≤ β⁻²|Δα|, with the β of exp, which [S] uses as remembered."""

    def check(case: Case) -> Instance:
        # 1/α(x) − 1/α(y) = −Δα/(α(x) α(y)), where both α are at least β
        alpha_x, alpha_y = (float(u.sum()) for u in activations_at_both_points(name, case))
        beta = normaliser_bound(case, "exp", ball_radius(case))
        return Instance(beta**-2 * abs(alpha_x - alpha_y), abs(1 / alpha_x - 1 / alpha_y))

    return check


def paper_constant(case: Case, name: str, exponent: float) -> float:
    """Return β⁻²n^{3/2}e^{qR²} with R = max(‖A‖, ‖x‖, ‖y‖, 4); +inf without a positive β."""
    # Without a positive β, or where e^{qR²} overflows (e^{690} is close to the largest float), the
    # statement says nothing.
    beta = normaliser_bound(case, name, ball_radius(case))
    R = max(largest_norm(case), 4.0)
    log_power = exponent * R**2
    if beta <= 0 or log_power > 690:
        return math.inf
    return len(case["A"]) ** 1.5 / beta**2 * math.exp(log_power)


def check_lemma_chain(case: Case) -> Instance:
    """Compare the constant of ‖Δf‖ that the lemmas add up to with β⁻²n^{3/2}e^{3R²}.

    ‖Δf‖ ≤ β⁻¹‖Δu‖ + |Δ(1/α)| ‖u‖, with the lemmas on ‖Δu‖, |Δα|, |Δ(1/α)| and ‖u‖. Both sides are
    divided by β⁻²n^{3/2}e^{2R²}, so that the value says how far e^{2R²} is exceeded.
    """
    # β ≤ n, so that the second term in the bracket is at most e^{−R²}.
    R = max(largest_norm(case), 4.0)
    beta_share = normaliser_bound(case, "exp", ball_radius(case)) / len(case["A"])
    return Instance(math.exp(R**2), 2 * R * (1 + beta_share * math.exp(-(R**2))))


def check_lipschitz(
    name: str, quantity: str, exponent: float | None
) -> Callable[[Case], Instance | None]:
    """Return a check of the change of a quantity between two points.

    Args:
        name: the activation.
        quantity: "predict", "gradient" or "hessian".
        exponent: q of the paper's constant; None for ours, from regression.lipschitz.
    """

    def measure(case: Case, x: np.ndarray) -> np.ndarray:
        A = case["A"]
        z = A @ x
        if quantity == "predict":
            return oracles.prediction(name, z)
        if quantity == "gradient":
            return A.T @ oracles.logit_gradient(name, z, case["b"])
        return A.T @ oracles.logit_hessian(name, z, case["b"]) @ A

    def check(case: Case) -> Instance | None:
        if exponent is None:
            problem = build_problem(case, name, weighted=False)
            constants = regression.lipschitz(problem, ball_radius(case))
            constant = getattr(constants, quantity).ours
        else:
            constant = paper_constant(case, name, exponent)
        if not math.isfinite(constant):
            return None
        change = measure(case, case["x"]) - measure(case, case["y"])
        # Spectral norm of a Hessian, Euclidean norm of a vector.
        order = 2 if change.ndim == 2 else None
        return Instance(constant * distance(case), float(np.linalg.norm(change, order)))

    return check


def centred_case(rng: np.random.Generator) -> Case:
    """Draw small logits, where u = e^z + z has bounds at all."""
    return draw_regression(rng, scale=0.1)


# --- moved solutions


def check_moved_solution(name: str) -> Callable[[Case], Instance | None]:
    """Return a check of the target for which x has the residual that y has for b.

    u(Ay) − α(y)b = u(Ax) − α(x)b̃ gives ‖b̃ − b‖ ≤ (‖Δu‖ + |Δα| ‖b‖)/|α(x)|, and the lemmas on
    u and α with ‖b‖ ≤ 1 give the constant.
    """

    def check(case: Case) -> Instance | None:
        u_x, u_y = activations_at_both_points(name, case)
        alpha_x = float(u_x.sum())
        R = largest_norm(case)
        if not target_in_simplex(case) or alpha_x == 0:
            return None
        # Solve u(Ay) − α(y)b = u(Ax) − α(x)b̃ for b̃.
        moved_target = (u_x - u_y + u_y.sum() * case["b"]) / alpha_x
        root_n = math.sqrt(len(u_x))
        constant = (1 + root_n) * 2 * root_n * R * math.exp(R**2) / abs(alpha_x)
        shift = float(np.linalg.norm(moved_target - case["b"]))
        return Instance(constant * distance(case), shift)

    return check


LIPSCHITZ_QUANTITIES = (("predict", "f", 3), ("gradient", "∇L", 8), ("hessian", "∇²L", 20))
"""Quantity, its symbol, and q of the paper's constant: 3 is what the lemmas give, 8 and 20 are as
remembered.
"""


def lipschitz_statements(
    letter: str,
    name: str,
    claim_suffix: str,
    sample: Callable[[np.random.Generator], Case],
    count: int,
) -> tuple[Statement, ...]:
    """Return two rows for each quantity: the paper's constant, and ours."""
    statements = []
    for quantity, symbol, exponent in LIPSCHITZ_QUANTITIES:
        statements += [
            Statement(
                f"[{letter}] Lipschitz: {symbol}",
                f"‖Δ{symbol}‖ ≤ β⁻²n^{{3/2}}e^{{{exponent}R²}}‖x − y‖, R ≥ 4, {claim_suffix}",
                sample,
                check_lipschitz(name, quantity, float(exponent)),
                REGRESSION_AXES,
                count=count,
                source="ours" if quantity == "predict" else "as remembered",
            ),
            Statement(
                f"[ours] Lipschitz: {symbol}, {name}",
                f"‖Δ{symbol}‖ ≤ our constant times ‖x − y‖, {claim_suffix}",
                sample,
                check_lipschitz(name, quantity, None),
                REGRESSION_AXES,
                count=count,
                source="ours",
            ),
        ]
    return tuple(statements)


STATEMENTS = (
    # Sizes of u and f.
    Statement(
        "[D] lemma: ‖exp(Ax)‖",
        "‖exp(Ax)‖ ≤ √n e^{R²}, ‖A‖, ‖x‖ ≤ R",
        draw_regression,
        check_activation_norm("exp", 1.0),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] lemma: ‖u(x)‖",
        "‖exp(Ax) + Ax‖ ≤ 2√n e^{R²}",
        draw_regression,
        check_activation_norm("res_exp", 2.0),
        REGRESSION_AXES,
    ),
    Statement(
        "[D] lemma: ‖f‖ ≤ 1",
        "‖f‖ ≤ ‖f‖₁ = 1 for u = e^z",
        draw_regression,
        check_prediction_norm("exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] lemma: ‖f‖ ≤ 1",
        "‖f‖ ≤ ‖f‖₁ = 1 for u = e^z + z",
        draw_regression,
        check_prediction_norm("res_exp"),
        REGRESSION_AXES,
    ),
    # The normaliser from below.
    Statement(
        "[D] lemma: α ≥ β",
        "⟨exp(Ax), 1⟩ ≥ β = n e^{−‖A‖R}, here R = ‖x‖",
        draw_regression,
        check_normaliser("exp", "paper"),
        REGRESSION_AXES,
    ),
    Statement(
        "[ours] α from below, exp",
        "⟨exp(Ax), 1⟩ ≥ our β (regression.normaliser)",
        draw_regression,
        check_normaliser("exp", "ours"),
        REGRESSION_AXES,
        source="ours",
    ),
    Statement(
        "[S] lemma: α ≥ β",
        "⟨exp(Ax) + Ax, 1⟩ ≥ n e^{−‖A‖R}, the β of exp, here R = ‖x‖",
        draw_regression,
        check_normaliser("res_exp", "paper"),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] lemma: α > 0",
        "⟨exp(Ax) + Ax, 1⟩ ≥ 0 (as −⟨Ax, 1⟩ ≤ ⟨exp(Ax), 1⟩), so that f is defined",
        draw_regression,
        check_positive_normaliser,
        REGRESSION_AXES,
    ),
    Statement(
        "[ours] α from below, res_exp",
        "⟨exp(Ax) + Ax, 1⟩ ≥ our β, which may be zero",
        centred_case,
        check_normaliser("res_exp", "ours"),
        REGRESSION_AXES,
        source="ours",
    ),
    # Lipschitz constants of u, α and 1/α, and what they add up to for f.
    Statement(
        "[D] Lipschitz: u",
        "‖exp(Ax) − exp(Ay)‖ ≤ 2√n R e^{R²}‖x − y‖",
        draw_regression,
        check_activation_lipschitz("exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] Lipschitz: u",
        "‖u(x) − u(y)‖ ≤ (2√n R e^{R²} + R)‖x − y‖",
        draw_regression,
        check_activation_lipschitz("res_exp"),
        REGRESSION_AXES,
        source="ours",
    ),
    Statement(
        "[D] Lipschitz: α",
        "|α(x) − α(y)| ≤ √n ‖exp(Ax) − exp(Ay)‖",
        draw_regression,
        check_normaliser_lipschitz("exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] Lipschitz: α",
        "|α(x) − α(y)| ≤ √n ‖u(x) − u(y)‖",
        draw_regression,
        check_normaliser_lipschitz("res_exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[D] Lipschitz: 1/α",
        "|1/α(x) − 1/α(y)| ≤ β⁻²|α(x) − α(y)|, β = n e^{−‖A‖R}, ‖x‖, ‖y‖ ≤ R",
        draw_regression,
        check_inverse_lipschitz("exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[S] Lipschitz: 1/α",
        "|1/α(x) − 1/α(y)| ≤ β⁻²|α(x) − α(y)| for u = e^z + z, with the β of exp",
        draw_regression,
        check_inverse_lipschitz("res_exp"),
        REGRESSION_AXES,
    ),
    Statement(
        "[D] Lipschitz: f, chain of lemmas",
        "2R(1 + e^{−R²}β/n) ≤ e^{R²}, R ≥ 4: the lemmas on u, α and 1/α give ‖Δf‖ ≤ "
        "β⁻²n^{3/2}e^{2R²} times the left side, hence e^{3R²}",
        draw_regression,
        check_lemma_chain,
        REGRESSION_AXES,
        source="ours",
    ),
    # Lipschitz constants of f, ∇L and ∇²L: the papers', and ours.
    *lipschitz_statements(
        "D", "exp", "u = e^z, β = n e^{−‖A‖R}, ‖x‖, ‖y‖ ≤ R", draw_regression, 60
    ),
    *lipschitz_statements(
        "S", "res_exp", "u = e^z + z, β = n(e^{−‖A‖R} − ‖A‖R) > 0", centred_case, 30
    ),
    # Targets that make up for a move of x.
    *(
        Statement(
            f"[H] corollary: moved solutions, {name}",
            "u(Ay) − α(y)b = u(Ax) − α(x)b̃ for a b̃ with "
            f"‖b̃ − b‖ ≤ 2√n(1 + √n) R e^{{R²}}‖x − y‖/|α(x)|, u = {name}, ‖b‖ ≤ 1",
            draw_regression,
            check_moved_solution(name),
            REGRESSION_AXES,
            source="ours",
        )
        for name in ("exp", "cosh", "sinh")
    ),
)
