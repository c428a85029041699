"""Statements of [G] and [N] about score estimation: regression, and Theorem 6.6's four errors.

The data are a mixture of two Gaussians on the line, X_t = αX₀ + √h noise with h = 1 − α². The four
errors are measured at one time t, where a network and its kernel are fitted to X₀ by gradient
descent, and the target is f*(x) = E[X₀ | X_t = x]:

    F_net − f* = (F_net − F_K) + (F_K − F_K*) + (F_K* − F_H) + (F_H − f*)

| symbol | meaning |
|---|---|
| F_net | the network, trained on the noisy labels X₀ |
| F_K, F_K* | gradient descent with H*, on the labels X₀ and on the labels f*(X_t) |
| F_H | kernel ridge regression on f*(X_t): a function with a small norm in the kernel's space |
"""

import math
from typing import NamedTuple

import numpy as np

from softntk.theory._ledger import oracles
from softntk.theory._ledger.statement import Case, Instance, Statement, equal

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


# --- Theorem 6.6

TRAIN_SIZE = 10
TEST_SIZE = 40
DESCENT_STEPS = 60
WEIGHT_DEVIATION = 0.5
"""σ of the networks and of the kernel."""

RIDGE_FRACTION = 0.01
"""Ridge of F_H over the largest eigenvalue of the kernel."""

NARROW_WIDTH = 64
WIDTH_FACTOR = 16
WIDTH_DRAWS = 10
"""Networks of each width whose coupling errors are averaged."""

COUPLING_RATIO = 0.75
"""Coupling error at the larger width over that at the smaller one, at most; 1/4 is expected, up to
the noise of ten draws.
"""

COMPETITOR_COUNT = 200
"""Functions of the same norm that F_H is compared with."""


def score_case(rng: np.random.Generator) -> Case:
    """Draw a mixture, α, and a seed for samples and weights."""
    return {
        "means": rng.uniform(-1.5, 1.5, size=2),
        "deviations": rng.uniform(0.3, 1, size=2),
        "alpha": float(rng.uniform(0.2, 0.95)),
        "seed": int(rng.integers(2**31)),
    }


class ScoreErrors(NamedTuple):
    """The four parts of F_net − f* on new points, and their sum.

    Attributes:
        coupling: F_net − F_K, [TEST_SIZE].
        label_mismatch: F_K − F_K*.
        early_stopping: F_K* − F_H.
        approximation: F_H − f*.
        total: F_net − f*, measured directly.
    """

    coupling: np.ndarray
    label_mismatch: np.ndarray
    early_stopping: np.ndarray
    approximation: np.ndarray
    total: np.ndarray


class ScoreProblem:
    """Noisy samples at one time, their exact targets, and regression with the infinite kernel.

    Attributes:
        labels: X₀, [TRAIN_SIZE, 1].
        targets: f*(X_t), [TRAIN_SIZE, 1].
        label_variance: the variance of X₀ given X_t, [TRAIN_SIZE].
        test_targets: f* on new points, [TEST_SIZE, 1].
        inputs: (X_t, 2)/4, the inputs of kernel and network, [TRAIN_SIZE, 2].
        test_inputs: those of the new points, [TEST_SIZE, 2].
        gram: H* of the training points.
        test_gram: H* between new and training points.
        eigenvalues: of gram.
        eigenvectors: of gram.
        rate: η = 1/(2λ_max).
        ridge_coefficients: of F_H, [TRAIN_SIZE, 1].
    """

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case["seed"])
        means = case["means"]
        deviations = case["deviations"]
        alpha = case["alpha"]

        # 1. Draw X₀ and X_t, for training and for the test.
        size = TRAIN_SIZE + TEST_SIZE
        component = rng.integers(2, size=size)
        x0 = means[component] + deviations[component] * rng.normal(size=size)
        xt = alpha * x0 + math.sqrt(1 - alpha**2) * rng.normal(size=size)
        posterior_mean, variance = oracles.posterior_moments(xt, means, deviations, alpha)
        self.labels = x0[:TRAIN_SIZE, None]
        self.targets = posterior_mean[:TRAIN_SIZE, None]
        self.label_variance = variance[:TRAIN_SIZE]
        self.test_targets = posterior_mean[TRAIN_SIZE:, None]

        # 2. The kernel on the inputs.
        inputs = np.stack([xt, np.full(size, 2.0)], axis=1) / 4
        self.inputs = inputs[:TRAIN_SIZE]
        self.test_inputs = inputs[TRAIN_SIZE:]
        full_gram = oracles.limit_kernel(inputs, WEIGHT_DEVIATION)
        self.gram = full_gram[:TRAIN_SIZE, :TRAIN_SIZE]
        self.test_gram = full_gram[TRAIN_SIZE:, :TRAIN_SIZE]
        self.eigenvalues, self.eigenvectors = np.linalg.eigh(self.gram)
        largest = float(self.eigenvalues[-1])
        self.rate = 0.5 / largest

        # 3. F_H, by ridge regression on the exact targets.
        shifted_gram = self.gram + RIDGE_FRACTION * largest * np.eye(TRAIN_SIZE)
        self.ridge_coefficients = np.linalg.solve(shifted_gram, self.targets)

    def predict_by_kernel(self, labels: np.ndarray) -> np.ndarray:
        """Return kernel gradient descent on labels, on new points."""
        return self.test_gram @ oracles.kernel_descent(self.gram, labels, self.rate, DESCENT_STEPS)

    def predict_by_network(self, width: int, rng: np.random.Generator) -> np.ndarray:
        """Return a trained network of this width on new points; units start in pairs ±a."""
        half_weights = WEIGHT_DEVIATION * rng.normal(size=(2, width // 2))
        half_readout = rng.choice([-1.0, 1.0], size=(width // 2, 1))
        W = np.concatenate([half_weights, half_weights], axis=1)
        a = np.concatenate([half_readout, -half_readout])
        for _ in range(DESCENT_STEPS):
            residual = oracles.forward(W, a, self.inputs) - self.labels
            W = W - self.rate * oracles.gradient(W, a, self.inputs, residual)
        return oracles.forward(W, a, self.test_inputs)

    def coupling_error(self, width: int, rng: np.random.Generator) -> float:
        """Return the root mean square of F_net − F_K over new points and networks."""
        kernel_output = self.predict_by_kernel(self.labels)
        errors = [
            np.mean((self.predict_by_network(width, rng) - kernel_output) ** 2)
            for _ in range(WIDTH_DRAWS)
        ]
        return float(np.sqrt(np.mean(errors)))

    def learned_noise(self) -> np.ndarray:
        """Return F_K − F_K* on new points: H_test H⁻¹(I − (I − ηH)^τ)(X₀ − f*), by eigenvalues."""
        powers = -np.expm1(DESCENT_STEPS * np.log1p(-self.rate * self.eigenvalues))
        is_zero = self.eigenvalues == 0
        filters = np.where(
            is_zero,
            DESCENT_STEPS * self.rate,
            powers / np.where(is_zero, 1, self.eigenvalues),
        )
        noise = self.eigenvectors.T @ (self.labels - self.targets)
        return self.test_gram @ self.eigenvectors @ (filters[:, None] * noise)

    def errors(self) -> ScoreErrors:
        """Return the four errors on new points, each from its own formula."""
        network_output = self.predict_by_network(NARROW_WIDTH, np.random.default_rng(0))
        ridge_output = self.test_gram @ self.ridge_coefficients
        return ScoreErrors(
            coupling=network_output - self.predict_by_kernel(self.labels),
            label_mismatch=self.learned_noise(),
            early_stopping=self.predict_by_kernel(self.targets) - ridge_output,
            approximation=ridge_output - self.test_targets,
            total=network_output - self.test_targets,
        )


def check_four_errors(case: Case) -> Instance:
    """Check E‖F_net − f*‖² against four times the sum of the four squares, on new points."""
    *parts, total = ScoreProblem(case).errors()
    bound = 4 * sum(float(np.mean(part**2)) for part in parts)
    return Instance(bound, float(np.mean(total**2)))


def check_coupling(case: Case) -> Instance:
    """Compare the coupling error at two widths."""
    problem = ScoreProblem(case)
    rng = np.random.default_rng(case["seed"] + 1)
    narrow_error = problem.coupling_error(NARROW_WIDTH, rng)
    wide_error = problem.coupling_error(WIDTH_FACTOR * NARROW_WIDTH, rng)
    return Instance(COUPLING_RATIO * narrow_error, wide_error)


def check_label_mismatch(case: Case) -> Instance:
    """Check E‖F_K − F_K*‖² on the training points, exactly from the covariance of the labels."""
    problem = ScoreProblem(case)
    contraction = np.eye(TRAIN_SIZE) - problem.rate * problem.gram
    learned = np.eye(TRAIN_SIZE) - np.linalg.matrix_power(contraction, DESCENT_STEPS)
    expected_error = float(np.sum(learned**2 * problem.label_variance[None]))
    time = problem.rate * DESCENT_STEPS
    bound = float(np.sum(np.minimum(time * problem.eigenvalues, 1) ** 2))
    return Instance(float(problem.label_variance.max()) * bound, expected_error)


def check_early_stopping(case: Case) -> Instance:
    """Check ‖F_K* − F_H‖ on the training points against ‖F_H‖_K/√(2et) + ‖F_H − f*‖."""
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
    problem = ScoreProblem(case)
    rng = np.random.default_rng(case["seed"] + 2)
    coefficients = problem.ridge_coefficients

    def squared_norms(c: np.ndarray) -> np.ndarray:
        return np.sum(c * (problem.gram @ c), axis=0)

    sizes = 10 ** rng.uniform(-4, 1, size=COMPETITOR_COUNT) * np.linalg.norm(coefficients)
    noise = rng.normal(size=(TRAIN_SIZE, COMPETITOR_COUNT))
    competitors = coefficients + sizes * noise
    competitors = competitors * np.sqrt(squared_norms(coefficients) / squared_norms(competitors))
    distances = np.linalg.norm(problem.gram @ competitors - problem.targets, axis=0)
    ridge_distance = np.linalg.norm(problem.gram @ coefficients - problem.targets)
    return Instance(float(distances.min()), float(ridge_distance))


STATEMENTS = (
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
