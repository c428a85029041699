"""The regression problem on which the four errors of Theorem 6.6 in [G] are measured.

The data are a mixture of two Gaussians on the line, X_t = αX₀ + √h noise with h = 1 − α². At one
time t a network and its kernel are fitted to X₀ by gradient descent. The target is
f*(x) = E[X₀ | X_t = x], and

    F_net − f* = (F_net − F_K) + (F_K − F_K*) + (F_K* − F_H) + (F_H − f*).

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
from softntk.theory._ledger.statement import Case

TRAIN_SIZE = 10
"""Number of training points."""

TEST_SIZE = 40
"""Number of new points on which errors are measured."""

DESCENT_STEPS = 60
"""Steps of gradient descent of the network and of its kernel."""

WEIGHT_DEVIATION = 0.5
"""σ of the networks and of the kernel."""

RIDGE_FRACTION = 0.01
"""Ridge of F_H over the largest eigenvalue of the kernel."""

NARROW_WIDTH = 64
"""Width of the network whose errors are measured, and the smaller of the two that are compared."""

WIDTH_DRAWS = 10
"""Networks of each width whose coupling errors are averaged."""


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
        test_inputs: the same inputs of the new points, [TEST_SIZE, 2].
        gram: H* of the training points.
        test_gram: H* between new and training points.
        eigenvalues: eigenvalues of ``gram``, ascending.
        eigenvectors: eigenvectors of ``gram``, as columns.
        rate: η = 1/(2λ_max).
        ridge_coefficients: c with F_H = Σ c_i K(·, x_i), [TRAIN_SIZE, 1].
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
        # The double trick, as in network_cases.draw_network, for one output.
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
        # The kernel's output is the same for all networks.
        kernel_output = self.predict_by_kernel(self.labels)
        errors = [
            np.mean((self.predict_by_network(width, rng) - kernel_output) ** 2)
            for _ in range(WIDTH_DRAWS)
        ]
        return float(np.sqrt(np.mean(errors)))

    def learned_noise(self) -> np.ndarray:
        """Return F_K − F_K* on new points: H_test H⁻¹(I − (I − ηH)^τ)(X₀ − f*), by eigenvalues."""
        # 1 − (1 − ηλ)^τ without cancellation, where λ is small
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
        # The seed of the network is the same for all cases; only its inputs vary.
        network_output = self.predict_by_network(NARROW_WIDTH, np.random.default_rng(0))
        ridge_output = self.test_gram @ self.ridge_coefficients
        return ScoreErrors(
            coupling=network_output - self.predict_by_kernel(self.labels),
            label_mismatch=self.learned_noise(),
            early_stopping=self.predict_by_kernel(self.targets) - ridge_output,
            approximation=ridge_output - self.test_targets,
            total=network_output - self.test_targets,
        )
