"""Statements of [G] and [N] about score estimation: regression, and Theorem 6.6's four errors."""

import math

import numpy as np

from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement, equal
from softntk.theory._ledger.statements.score_cases import (
    DESCENT_STEPS,
    NARROW_WIDTH,
    TRAIN_SIZE,
    ScoreProblem,
    score_case,
)

# --- score matching is regression


def mixture_case(rng: np.random.Generator) -> Case:
    """Draw a mixture of two Gaussians, α, and coefficients of two guessed functions."""
    return {
        "means": rng.uniform(-1.5, 1.5, size=2),
        "deviations": rng.uniform(0.3, 1, size=2),
        "alpha": float(rng.uniform(0.2, 0.95)),
        "guesses": rng.normal(size=(2, 3)),
    }


class DensityGrid:
    """The density of (X₀, X_t) on a grid.

    Sums over the grid are integrals up to rounding, because everything is smooth and decays.

    Attributes:
        alpha: α.
        h: 1 − α².
        x: the grid of both variables, [801].
        mesh: its spacing.
        joint: probability of a cell, [x₀, x_t].
        marginal: probability of a cell of X_t, [x_t].
        conditional_score: ∇log p(x_t | x₀), [x₀, x_t].
        posterior_mean: E[X₀ | X_t], [x_t].
        score: ∇log p_t, [x_t].
    """

    def __init__(self, case: Case) -> None:
        self.alpha = case["alpha"]
        self.h = 1 - self.alpha**2
        self.x = np.linspace(-10, 10, 801)
        self.mesh = self.x[1] - self.x[0]
        x0 = self.x[:, None]
        xt = self.x[None, :]

        # 1. The density of X₀, and with it that of the pair.
        density = 0.5 * sum(
            self._normal_density(x0, mean, deviation**2)
            for mean, deviation in zip(case["means"], case["deviations"], strict=True)
        )
        self.joint = self.mesh**2 * density * self._normal_density(xt, self.alpha * x0, self.h)
        self.marginal = self.joint.sum(axis=0)

        # 2. Expectations given X_t; where the density underflows they count for nothing.
        divisor = np.where(self.marginal > 0, self.marginal, 1)
        self.posterior_mean = (x0 * self.joint).sum(axis=0) / divisor
        self.conditional_score = -(xt - self.alpha * x0) / self.h
        self.score = (self.conditional_score * self.joint).sum(axis=0) / divisor

    @staticmethod
    def _normal_density(x: np.ndarray, mean: np.ndarray | float, variance: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    def denoising_loss(self, s: np.ndarray) -> float:
        """Return E‖s − ∇log p(X_t | X₀)‖²."""
        return float(np.sum(self.joint * (s[None] - self.conditional_score) ** 2))

    def score_error(self, s: np.ndarray) -> float:
        """Return E‖s − ∇log p_t‖²."""
        return float(np.sum(self.marginal * (s - self.score) ** 2))

    def guess(self, coefficients: np.ndarray) -> np.ndarray:
        """Return a function on the grid that depends on three coefficients."""
        return coefficients[0] * np.sin(self.x) + coefficients[1] * self.x + coefficients[2]


def check_denoising(case: Case) -> Instance:
    """Compare the differences of both losses between two guessed scores."""
    # The difference of both losses is a constant of the data (Vincent, 2011), which cancels here.
    grid = DensityGrid(case)
    first_score, second_score = (grid.guess(coefficients) for coefficients in case["guesses"])
    return equal(
        grid.denoising_loss(first_score) - grid.denoising_loss(second_score),
        grid.score_error(first_score) - grid.score_error(second_score),
    )


def check_regression(case: Case) -> Instance:
    """Compare errors of a score with errors of the regression that it comes from."""
    grid = DensityGrid(case)
    f = grid.guess(case["guesses"][0])

    # 1. The score made from f, and the one made from the posterior mean.
    s = (grid.alpha * f - grid.x) / grid.h
    exact_score = (grid.alpha * grid.posterior_mean - grid.x) / grid.h
    score_errors = [grid.score_error(s), float(np.sum(grid.marginal * (s - exact_score) ** 2))]

    # 2. Errors of f, against the posterior mean and against X₀.
    posterior_error = np.sum(grid.marginal * (f - grid.posterior_mean) ** 2)
    weighted_error = (grid.alpha / grid.h) ** 2 * posterior_error
    label_error = np.sum(grid.joint * (f[None] - grid.x[:, None]) ** 2)
    label_noise = np.sum(grid.joint * (grid.posterior_mean[None] - grid.x[:, None]) ** 2)
    return equal(
        [*score_errors, label_error],
        [
            weighted_error,
            weighted_error,
            (grid.h / grid.alpha) ** 2 * weighted_error + label_noise,
        ],
    )


# --- Theorem 6.6: the four errors (symbols in score_cases.py)

WIDTH_FACTOR = 16
"""The larger width over the smaller one, at which coupling errors are compared."""

COUPLING_RATIO = 0.75
"""Coupling error at the larger width over that at the smaller one, at most; 1/4 is expected, up to
the noise of ten draws.
"""

COMPETITOR_COUNT = 200
"""Functions of the same norm that F_H is compared with."""


def check_four_errors(case: Case) -> Instance:
    """Check E‖F_net − f*‖² against four times the sum of the four squares, on new points."""
    # (a + b + c + d)² ≤ 4(a² + b² + c² + d²).
    *parts, total = ScoreProblem(case).errors()
    bound = 4 * sum(float(np.mean(part**2)) for part in parts)
    return Instance(bound, float(np.mean(total**2)))


def check_coupling(case: Case) -> Instance:
    """Check that the coupling error at the larger width is at most ¾ of that at the smaller."""
    # The kernel of width m is off by m^{−1/2}, and the network leaves its linearisation.
    problem = ScoreProblem(case)
    rng = np.random.default_rng(case["seed"] + 1)
    narrow_error = problem.coupling_error(NARROW_WIDTH, rng)
    wide_error = problem.coupling_error(WIDTH_FACTOR * NARROW_WIDTH, rng)
    return Instance(COUPLING_RATIO * narrow_error, wide_error)


def check_label_mismatch(case: Case) -> Instance:
    """Check E‖F_K − F_K*‖² on the training points, exactly from the covariance of the labels."""
    # Kernel descent is linear in the labels, and the noise X₀ − f* is independent between samples
    # and of mean zero. With P = I − (I − ηH)^τ, E‖P noise‖² = Σ P_ij² Var_j.
    problem = ScoreProblem(case)
    contraction = np.eye(TRAIN_SIZE) - problem.rate * problem.gram
    learned = np.eye(TRAIN_SIZE) - np.linalg.matrix_power(contraction, DESCENT_STEPS)
    expected_error = float(np.sum(learned**2 * problem.label_variance[None]))
    time = problem.rate * DESCENT_STEPS
    bound = float(np.sum(np.minimum(time * problem.eigenvalues, 1) ** 2))
    return Instance(float(problem.label_variance.max()) * bound, expected_error)


def check_early_stopping(case: Case) -> Instance:
    """Check ‖F_K* − F_H‖ on the training points against ‖F_H‖_K/√(2et) + ‖F_H − f*‖."""
    # F_H is learnt up to (1 − ηλ)^τ ≤ e^{−tλ}, and λe^{−2tλ} ≤ 1/(2et); f* − F_H is not enlarged.
    problem = ScoreProblem(case)
    ridge_output = problem.gram @ problem.ridge_coefficients
    stopped_output = problem.gram @ oracles.kernel_descent(
        problem.gram, problem.targets, problem.rate, DESCENT_STEPS
    )
    norm = math.sqrt(float(np.sum(problem.ridge_coefficients * ridge_output)))
    time = problem.rate * DESCENT_STEPS
    misfit = float(np.linalg.norm(ridge_output - problem.targets))
    return Instance(
        norm / math.sqrt(2 * math.e * time) + misfit,
        float(np.linalg.norm(stopped_output - ridge_output)),
    )


def check_approximation(case: Case) -> Instance:
    """Compare ‖F_H − f*‖ on the training points with functions whose norm is at most that of F_H.

    The competitors are perturbations of F_H of many sizes, scaled to its norm.
    """
    # Ridge regression minimises ‖F − f*‖² + ρ‖F‖_K², so no F of the same norm is closer to f*.
    problem = ScoreProblem(case)
    rng = np.random.default_rng(case["seed"] + 2)
    coefficients = problem.ridge_coefficients

    def squared_norms(c: np.ndarray) -> np.ndarray:
        return np.sum(c * (problem.gram @ c), axis=0)

    # The scaling to the norm of F_H makes every one of them a competitor.
    sizes = 10 ** rng.uniform(-4, 1, size=COMPETITOR_COUNT) * np.linalg.norm(coefficients)
    noise = rng.normal(size=(TRAIN_SIZE, COMPETITOR_COUNT))
    competitors = coefficients + sizes * noise
    competitors = competitors * np.sqrt(squared_norms(coefficients) / squared_norms(competitors))
    distances = np.linalg.norm(problem.gram @ competitors - problem.targets, axis=0)
    ridge_distance = np.linalg.norm(problem.gram @ coefficients - problem.targets)
    return Instance(float(distances.min()), float(ridge_distance))


STATEMENTS = (
    # Score matching is regression.
    Statement(
        "[G] diffusion: denoising",
        "E‖s − ∇log p(X_t | X₀)‖² − E‖s − ∇log p_t‖² does not depend on s",
        mixture_case,
        check_denoising,
        equality=True,
        count=10,
    ),
    Statement(
        "[G] diffusion: regression",
        "E‖s − ∇log p_t‖² = (α/h)² E‖f − E[X₀ | X_t]‖², "
        "and E‖f − X₀‖² is h²/α² times it plus noise",
        mixture_case,
        check_regression,
        equality=True,
        count=10,
    ),
    # The error of a network that was trained, and its four parts.
    Statement(
        "[G] theorem 6.6: four errors",
        "E‖F_net − f*‖² ≤ 4(coupling² + label mismatch² + early stopping² + approximation²) "
        "on new points, each error from its own formula",
        score_case,
        check_four_errors,
        count=20,
    ),
    Statement(
        "[G] theorem 6.6: coupling",
        "‖F_net − F_K‖ falls with the width: at 16m at most ¾ of that at m; scaled: m = 64",
        score_case,
        check_coupling,
        count=5,
        source="ours",
    ),
    Statement(
        "[G] theorem 6.6: label mismatch",
        "E‖F_K − F_K*‖² ≤ max Var(X₀ | X_t) Σ min(tλ_i, 1)² on the data, t = ητ",
        score_case,
        check_label_mismatch,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] theorem 6.6: early stopping",
        "‖F_K* − F_H‖ ≤ ‖F_H‖_K/√(2et) + ‖F_H − f*‖ on the data",
        score_case,
        check_early_stopping,
        count=20,
        source="ours",
    ),
    Statement(
        "[G] theorem 6.6: approximation",
        "‖F_H − f*‖ ≤ ‖F − f*‖ on the data for all F with ‖F‖_K ≤ ‖F_H‖_K, F_H = H(H + ρI)⁻¹f*",
        score_case,
        check_approximation,
        count=20,
        source="ours",
    ),
)
