"""Statements of [G] about the weights at the start, the kernel there, and the table of widths."""

import math
from collections.abc import Callable

import numpy as np

from softntk.theory import bounds
from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement, equal
from softntk.theory._ledger.statements.network_cases import (
    FAILURE_PROBABILITY,
    NETWORK_AXES,
    ONE_UNIT,
    draw_network,
    draw_points,
    growth,
    kernel_concentrated,
    logits_bounded_by_B,
    smallest_eigenvalue,
    wide_network_case,
)

# --- the bound B on logits


def logit_cases(largest_width: int) -> Callable[[np.random.Generator], Case]:
    """Return a sampler of points and a width m: m = 1, or one of three widths."""

    def sample(rng: np.random.Generator) -> Case:
        n = int(rng.choice((1, 4, 16)))
        k = int(rng.choice((1, 3)))
        d = int(rng.choice((2, 4)))
        # m = 1 measures one unit, as the lemma for one r says
        m = 1 if largest_width == 1 else int(rng.choice([16, 128, largest_width]))
        return {
            "x": draw_points(rng, n, d),
            "k": k,
            "sigma": float(rng.uniform(0.5, 2)),
            "m": m,
            "seed": int(rng.integers(2**31)),
        }

    return sample


def largest_logit_quantile(case: Case) -> float:
    """Return the (1 − δ)-quantile of max |⟨w_r, x_i⟩| over i and r, from many draws of W."""
    # All draws at once, as the columns of one matrix.
    x = case["x"]
    draw_count = 4000 if case["m"] == 1 else 300
    rng = np.random.default_rng(case["seed"])
    W = case["sigma"] * rng.normal(size=(x.shape[1], draw_count * case["m"]))
    largest_logits = np.abs(x @ W).max(axis=0).reshape(draw_count, case["m"]).max(axis=1)
    return float(np.quantile(largest_logits, 1 - FAILURE_PROBABILITY))


def check_largest_logit(constants: bounds.Constants) -> Callable[[Case], Instance]:
    """Return a check of max |⟨w_r, x_i⟩| ≤ B, with the logarithm of nk/δ in B."""

    def check(case: Case) -> Instance:
        B = bounds.growth(len(case["x"]), case["k"], case["sigma"], FAILURE_PROBABILITY, constants)
        return Instance(B, largest_logit_quantile(case))

    return check


def check_largest_logit_of_every_unit(case: Case) -> Instance:
    """Check max |⟨w_r, x_i⟩| ≤ B, with the logarithm of nkm/δ in B and C = √2."""
    # A union bound over n points and m units: nm e^{−t²/2} ≤ δ/k for t² = 2 log(nkm/δ).
    units = case["k"] * case["m"]
    B = bounds.growth(len(case["x"]), units, case["sigma"], FAILURE_PROBABILITY, ONE_UNIT)
    return Instance(B, largest_logit_quantile(case))


# --- lemmas on the event that B bounds the logits


def check_powers(case: Case) -> Instance | None:
    """Check e^{−B} ≤ exp(z) ≤ e^B."""
    # By the premise |z| ≤ B, because exp is monotone. One number stands for both inequalities.
    if not logits_bounded_by_B(case):
        return None
    powers = np.exp(case["x"] @ case["W"])
    return Instance(math.exp(growth(case)), float(max(powers.max(), 1 / powers.min())))


def check_normaliser(case: Case) -> Instance | None:
    """Check α ≥ m e^{−B}."""
    # A sum of m terms, each at least e^{−B}. A lower bound, stored the other way round.
    if not logits_bounded_by_B(case):
        return None
    alpha = np.exp(case["x"] @ case["W"]).sum(axis=1).min()
    return Instance(float(alpha), len(case["a"]) * math.exp(-growth(case)))


def check_shares(case: Case) -> Instance | None:
    """Check f_ir ≤ e^{2B}/m."""
    # A numerator of at most e^B over a sum of at least m e^{−B}.
    if not logits_bounded_by_B(case):
        return None
    f = oracles.softmax(case["x"] @ case["W"])
    return Instance(math.exp(2 * growth(case)) / len(case["a"]), float(f.max()))


def check_share_norm(case: Case) -> Instance | None:
    """Check ‖f_i‖ ≤ e^{2B}/√m."""
    # √m times the largest entry.
    if not logits_bounded_by_B(case):
        return None
    f = oracles.softmax(case["x"] @ case["W"])
    bound = math.exp(2 * growth(case)) / math.sqrt(len(case["a"]))
    return Instance(bound, float(np.linalg.norm(f, axis=1).max()))


def check_power_norm(case: Case) -> Instance | None:
    """Check ‖exp(Wᵀx_i)‖ ≤ √m e^B."""
    # √m times the largest power.
    if not logits_bounded_by_B(case):
        return None
    powers = np.exp(case["x"] @ case["W"])
    bound = math.sqrt(len(case["a"])) * math.exp(growth(case))
    return Instance(bound, float(np.linalg.norm(powers, axis=1).max()))


def check_initial_loss(case: Case) -> Instance:
    """Check ‖F(0) − Y‖² ≤ nk."""
    # F(0) = 0, so that the loss is ‖Y‖².
    residual = oracles.forward(case["W"], case["a"], case["x"]) - case["Y"]
    return Instance(float(case["Y"].size), float(np.sum(residual**2)))


# --- concentration of the kernel


def concentration_case(rng: np.random.Generator) -> Case:
    """Draw few points, one of two widths, and a seed for the weights."""
    n = int(rng.integers(1, 5))
    k = int(rng.integers(1, 3))
    sigma = float(rng.choice([0.1, 0.25, 0.5]))
    return {
        "x": draw_points(rng, n, 6),
        "k": k,
        "sigma": sigma,
        "m": int(rng.choice([256, 2048])),
        "seed": int(rng.integers(2**31)),
    }


def check_concentration(case: Case) -> Instance:
    """Measure ‖H(0) − H*‖_F at the width m.

    The bound at the required width is λ/4; at the width m it is multiplied by √(required/m).
    """
    # Errors fall like m^{−1/2}; the widths of the theorem itself cannot be run.
    x, k, sigma, m = (case[name] for name in ("x", "k", "sigma", "m"))
    rng = np.random.default_rng(case["seed"])
    limit = oracles.limit_kernel(x, sigma, k)
    smallest = float(np.linalg.eigvalsh(limit)[0])
    required_width = bounds.required_width(
        "softmax", len(x), smallest, k=k, sigma=sigma, failure=FAILURE_PROBABILITY
    )
    errors = []
    for _ in range(20):
        weights = draw_network(rng, (len(x), x.shape[1], k, m), sigma)
        errors.append(np.linalg.norm(oracles.kernel(weights["W"], weights["a"], x) - limit))
    return Instance(
        smallest / 4 * math.sqrt(required_width / m),
        float(np.quantile(errors, 1 - FAILURE_PROBABILITY)),
    )


def check_initial_eigenvalue(case: Case) -> Instance | None:
    """Check λ_min(H(0)) ≥ ¾λ."""
    # Weyl: no eigenvalue moves by more than ‖H(0) − H*‖. A lower bound, stored the other way round.
    if not kernel_concentrated(case):
        return None
    eigenvalues = np.linalg.eigvalsh(oracles.kernel(case["W"], case["a"], case["x"]))
    return Instance(float(eigenvalues[0]), 0.75 * smallest_eigenvalue(case))


# --- the table of widths


def table_case(rng: np.random.Generator) -> Case:
    """Draw the numbers that the table depends on."""
    return {
        "n": int(rng.integers(2, 1000)),
        "smallest": float(10 ** rng.uniform(-3, 0)),
        "accuracy": float(10 ** rng.uniform(-6, -1)),
        "sigma": float(rng.uniform(0.05, 1)),
    }


def check_table_order(case: Case) -> Instance:
    """Check that ReLU needs the least, and exp as much as softmax."""
    # Zero fails wherever exp and softmax differ.
    relu, exp, softmax = bounds.table(
        case["n"], case["smallest"], case["accuracy"], sigma=case["sigma"]
    )
    is_equal = exp.width == softmax.width and exp.steps == softmax.steps
    ratio = min(softmax.width / relu.width, softmax.steps / relu.steps)
    return Instance(ratio if is_equal else 0.0, 1.0)


def check_vanishing_exponent(case: Case) -> Instance:
    """Compare the exponent of n beyond 2 in the width, without logarithms, at n² and at n."""

    # The exponent at n² is the value: it must not exceed the one at n.
    def excess_exponent(n: int) -> float:
        B = bounds.growth(n, 1, case["sigma"], FAILURE_PROBABILITY)
        width = bounds.required_width(
            "softmax", n, 1.0, sigma=case["sigma"], failure=FAILURE_PROBABILITY
        )
        log_log = math.log(math.log(n / FAILURE_PROBABILITY))
        exponent = (math.log(width) - 2 * log_log) / math.log(n) - 2
        assert math.isclose(exponent, 18 * B / math.log(n), rel_tol=1e-6)
        return exponent

    return Instance(excess_exponent(case["n"]), excess_exponent(case["n"] ** 2))


def width_case(rng: np.random.Generator) -> Case:
    """Draw numbers whose width for every unit is a finite float."""
    return {
        "n": int(rng.integers(2, 1000)),
        "smallest": float(10 ** rng.uniform(-3, 0)),
        "sigma": float(rng.uniform(0.05, 0.4)),
    }


def concentration_for_every_unit(case: Case, log_width: float) -> float:
    """Return the C with which C√log(n/δ) is √2 √log(nm/δ)."""
    # required_width knows log(nk/δ) only; another C in B has the same effect as m in it.
    log_ratio = math.log(case["n"] / FAILURE_PROBABILITY)
    return math.sqrt(2 * (log_ratio + log_width) / log_ratio)


def check_width_for_every_unit(case: Case) -> Instance:
    """Compare log m of the required width with B for every unit with log m of the oracle."""
    log_width = oracles.log_width_for_every_unit(
        case["n"], 1, case["smallest"], case["sigma"], FAILURE_PROBABILITY
    )
    constants = bounds.Constants(concentration=concentration_for_every_unit(case, log_width))
    width = bounds.required_width(
        "softmax",
        case["n"],
        case["smallest"],
        sigma=case["sigma"],
        failure=FAILURE_PROBABILITY,
        constants=constants,
    )
    return equal(math.log10(width), log_width / math.log(10))


def check_width_beside(case: Case) -> Instance:
    """Compare log₁₀ of the width with B for every unit with log₁₀ of the width with C = 1."""
    log_width = oracles.log_width_for_every_unit(
        case["n"], 1, case["smallest"], case["sigma"], FAILURE_PROBABILITY
    )
    width = bounds.required_width(
        "softmax", case["n"], case["smallest"], sigma=case["sigma"], failure=FAILURE_PROBABILITY
    )
    return Instance(log_width / math.log(10), math.log10(width))


STATEMENTS = (
    # B, which is to bound the logits.
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = 1",
        "for one r and all i with probability 1 − δ, B = max(Cσ√log(nk/δ), 1); "
        "C is a choice of ours, here the default 1",
        logit_cases(1),
        check_largest_logit(bounds.AS_REMEMBERED),
        {"x": "nd"},
    ),
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, C = √2",
        "for one r and all i with probability 1 − δ, B = max(Cσ√log(nk/δ), 1); "
        "C = √2 is a choice of ours, which P(|N(0, 1)| > t) ≤ e^{−t²/2} proves",
        logit_cases(1),
        check_largest_logit(ONE_UNIT),
        {"x": "nd"},
        source="ours",
    ),
    Statement(
        "[G] lemma: |⟨w_r, x_i⟩| ≤ B, every r",
        "for all m neurons r and all i with probability 1 − δ, C = √2: B has no m in it",
        logit_cases(1024),
        check_largest_logit(ONE_UNIT),
        {"x": "nd"},
        count=20,
    ),
    Statement(
        "[ours] |⟨w_r, x_i⟩| ≤ B, every r",
        "for all m neurons r and all i with probability 1 − δ, B = max(√2σ√log(nkm/δ), 1)",
        logit_cases(1024),
        check_largest_logit_of_every_unit,
        {"x": "nd"},
        count=20,
        source="ours",
    ),
    # What follows where it does.
    Statement(
        "[G] lemma: exp(⟨w_r, x_i⟩)",
        "e^{−B} ≤ exp(⟨w_r, x_i⟩) ≤ e^B where B bounds the logits",
        draw_network,
        check_powers,
        NETWORK_AXES,
        source="ours",
    ),
    Statement(
        "[G] lemma: ‖exp(Wᵀx_i)‖",
        "‖exp(Wᵀx_i)‖ ≤ √m e^B",
        draw_network,
        check_power_norm,
        NETWORK_AXES,
        source="ours",
    ),
    Statement(
        "[G] lemma: α from below",
        "α_i ≥ m e^{−B}",
        draw_network,
        check_normaliser,
        NETWORK_AXES,
        source="ours",
    ),
    Statement(
        "[G] lemma: entries of softmax",
        "f_ir ≤ e^{2B}/m",
        draw_network,
        check_shares,
        NETWORK_AXES,
        source="ours",
    ),
    Statement(
        "[G] lemma: ‖f_i‖",
        "‖f_i‖ ≤ e^{2B}/√m",
        draw_network,
        check_share_norm,
        NETWORK_AXES,
        source="ours",
    ),
    # The kernel and the loss at the start.
    Statement(
        "[G] lemma: H(0) near H*",
        "‖H(0) − H*‖_F ≤ λ/4 with probability 1 − δ at m = λ⁻²n²k²e^{18B}log²(nk/δ); "
        "scaled: at m/s it is √s times that",
        concentration_case,
        check_concentration,
        {"x": "nd"},
        count=15,
    ),
    Statement(
        "[G] lemma: λ_min(H(0))",
        "λ_min(H(0)) ≥ ¾λ where ‖H(0) − H*‖_F ≤ λ/4",
        wide_network_case,
        check_initial_eigenvalue,
        NETWORK_AXES,
        count=20,
    ),
    Statement(
        "[G] lemma: loss at the start",
        "‖F(0) − Y‖² ≤ nk for targets in [−1, 1]",
        draw_network,
        check_initial_loss,
        NETWORK_AXES,
    ),
    # The table.
    Statement(
        "[G] table: order",
        "width and steps: relu ≤ exp = softmax",
        table_case,
        check_table_order,
    ),
    Statement(
        "[G] table: n^{2+o(1)}",
        "the exponent beyond 2, 18B/log n, falls with n",
        table_case,
        check_vanishing_exponent,
    ),
    Statement(
        "[ours] width with B for every r",
        "m = λ⁻²n²k²e^{18B}log²(nk/δ) with B = max(√2σ√log(nkm/δ), 1), m on both sides: "
        "log₁₀ m by theory.bounds.required_width and by iteration",
        width_case,
        check_width_for_every_unit,
        equality=True,
        source="ours",
    ),
    Statement(
        "[ours] width beside that with C = 1",
        "log₁₀ of the width with B for every r ≥ log₁₀ of required_width with C = 1 "
        "(41 beside 15.5 for n = 100, σ = 0.3, λ = δ = 0.1)",
        width_case,
        check_width_beside,
        source="ours",
    ),
)
