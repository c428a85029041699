"""Your own network: a flax convolution and an equinox perceptron, without a line written for softntk.

All that is needed is ``apply_fn(params, x) -> [n, k]``. On 8 × 8 digits each network

1. shows its kernel, and the largest step that gradient descent may take under it;
2. is trained by gradient descent on the cross-entropy, as its kernel predicts until it moves;
3. is fitted by natural gradient, with a weight decay that the evidence chooses;
4. gets error bars, from the Laplace posterior at these weights.

Prints what it finds, and saves a picture: the training loss, measured and predicted, and the
probabilities of digits that were not trained on against how often they were right.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import BLUE, ORANGE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import softntk as sn
from softntk import calibration

CLASSES = 10
DECAYS = (0.1, 1.0)
COLOURS = (BLUE, ORANGE)


class Convolution(nn.Module):
    """A convolution, a pooling and a dense layer, in flax."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits, [n, 10], of images [n, 8, 8]."""
        x = nn.gelu(nn.Conv(self.channels, (3, 3))(x[..., None]))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class Perceptron(eqx.Module):
    """Two hidden layers, in equinox; called with one image."""

    layers: eqx.nn.MLP

    def __init__(self, width: int, key: jax.Array) -> None:
        self.layers = eqx.nn.MLP(64, CLASSES, width, depth=2, activation=jax.nn.gelu, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits, [10], of an image [8, 8]."""
        return self.layers(x.ravel())


def make_networks(width: int) -> dict[str, tuple[Callable, Any]]:
    """Return both as a function of parameters and images, and their parameters."""
    convolution = Convolution(channels=width // 8)
    params = convolution.init(jax.random.key(0), jnp.zeros((1, 8, 8)))
    perceptron = Perceptron(width, jax.random.key(1))
    return {
        "flax convolution": (convolution.apply, params),
        "equinox perceptron": (lambda model, x: jax.vmap(model)(x), perceptron),
    }


@dataclass(frozen=True)
class Report:
    """What was found for one network."""

    name: str
    largest_eigenvalue: float
    measured: np.ndarray
    predicted: np.ndarray
    newton_steps: int
    decay: float
    seconds: float
    probabilities: np.ndarray
    plain_probabilities: np.ndarray
    labels: np.ndarray


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy, summed over the points."""
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def floating_leaves(params: Any) -> list[jax.Array]:
    """Return the weights among the leaves: an equinox module also holds functions."""
    return [leaf for leaf in jax.tree.leaves(params) if eqx.is_inexact_array(leaf)]


def compare_descent(
    apply_fn: Callable, params: Any, x: jax.Array, labels: jax.Array, steps: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return λ_max of the kernel, and the losses of gradient descent, measured and predicted."""
    op = sn.ntk.operator(apply_fn, params, x)
    largest = float(sn.ntk.extreme_eigenvalues(op).largest)
    # The curvature of the cross-entropy in an output is at most a half.
    rate = 0.5 / largest
    trained = sn.solvers.train(
        lambda weights: cross_entropy(apply_fn(weights, x), labels), params, optax.sgd(rate), steps
    )
    outputs = sn.ntk.predict_gd(op, labels, rate, np.arange(steps + 1), loss="cross_entropy")
    predicted = jax.vmap(lambda f: cross_entropy(f, labels))(outputs)
    return largest, np.asarray(trained.stats["loss"]), np.asarray(predicted)


def fit(
    apply_fn: Callable, params: Any, x: jax.Array, labels: jax.Array, decay: float
) -> tuple[sn.solution.Solution, sn.ntk.LaplacePosterior]:
    """Fit with a weight decay by natural gradient, and return the posterior at the minimum too."""

    def loss(weights: Any) -> jax.Array:
        square = sum(jnp.sum(leaf**2) for leaf in floating_leaves(weights))
        return cross_entropy(apply_fn(weights, x), labels) + 0.5 * decay * square

    # Twelve steps: from there on the loss falls by a few per cent, over many steps.
    tx = sn.solvers.natural_gradient(apply_fn, x, labels, loss="cross_entropy", weight_decay=decay)
    solution = sn.solvers.minimise(loss, params, tx, rtol=1e-2, max_steps=12, throw=False)
    # The prior of the posterior is the weight decay: ridge = λ, around zero.
    posterior = sn.ntk.laplace(
        apply_fn, solution.value, x, labels, likelihood="softmax", ridge=decay
    )
    return solution, posterior


def study(name: str, network: tuple[Callable, Any], data: Sequence[Any], steps: int) -> Report:
    """Run all four on one network."""
    apply_fn, params = network
    x, labels, x_test, labels_test = data
    largest, measured, predicted = compare_descent(apply_fn, params, x, labels, steps)
    start = time.perf_counter()
    fits = {decay: fit(apply_fn, params, x, labels, decay) for decay in DECAYS}
    seconds = time.perf_counter() - start
    decay = max(fits, key=lambda decay: float(fits[decay][1].log_evidence))
    solution, posterior = fits[decay]
    return Report(
        name=name,
        largest_eigenvalue=largest,
        measured=measured,
        predicted=predicted,
        newton_steps=int(solution.stats["steps"]),
        decay=decay,
        seconds=seconds,
        probabilities=np.asarray(posterior.predict(x_test).probabilities),
        plain_probabilities=np.asarray(jax.nn.softmax(apply_fn(solution.value, x_test))),
        labels=labels_test,
    )


def make_table(reports: Sequence[Report]) -> Table:
    """Return a table with a column for each network."""
    table = Table(title="networks of your own")
    table.add_column("")
    for report in reports:
        table.add_column(report.name, justify="right")

    def add(text: str, cell: Callable[[Report], str]) -> None:
        table.add_row(text, *map(cell, reports))

    add("largest eigenvalue of the kernel", lambda r: f"{r.largest_eigenvalue:.0f}")
    add("loss after descent, measured", lambda r: f"{r.measured[-1]:.2f}")
    add("loss after descent, predicted", lambda r: f"{r.predicted[-1]:.2f}")
    add("weight decay of largest evidence", lambda r: f"{r.decay:g}")
    add("steps of natural gradient", lambda r: str(r.newton_steps))
    add("seconds of all fits and posteriors", lambda r: f"{r.seconds:.0f}")
    for text, field in (("network", "plain_probabilities"), ("posterior", "probabilities")):
        add(
            f"accuracy of the {text}",
            lambda r, field=field: (
                f"{100 * float(calibration.accuracy(getattr(r, field), r.labels)):.1f} %"
            ),
        )
        add(
            f"−log p of the {text}",
            lambda r, field=field: (
                f"{float(calibration.negative_log_likelihood(getattr(r, field), r.labels)):.3f}"
            ),
        )
    return table


def draw(reports: Sequence[Report], path: Path) -> None:
    """Draw losses, measured and predicted, and reliability curves."""
    figure, (left, right) = make_figure(1, 2, 13, 5)
    right.plot([0, 1], [0, 1], color="grey", lw=1)
    for report, colour in zip(reports, COLOURS, strict=True):
        steps = np.arange(len(report.measured))
        left.plot(steps, report.predicted, color=colour, lw=2.2, label=f"{report.name}, predicted")
        left.plot(
            steps, report.measured, "o", color=colour, ms=5, markevery=max(1, len(steps) // 20),
            label="measured",
        )  # fmt: skip
        curve = calibration.reliability_curve(
            report.probabilities, report.labels, bins=6, strategy="quantile"
        )
        accuracy = curve.accuracy
        ends = np.stack([accuracy.value - accuracy.lower, accuracy.upper - accuracy.value])
        right.errorbar(
            curve.confidence, accuracy.value, yerr=ends, fmt="-o", capsize=3, color=colour,
            label=report.name,
        )  # fmt: skip
    left.set(xlabel="steps of gradient descent", ylabel="training cross-entropy", ylim=(0, None))
    left.legend(frameon=False)
    right.set(xlabel="confidence of the posterior", ylabel="accuracy, with 95 % intervals")
    right.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="half a minute: 40 digits, width 32")
    parser.add_argument("--points", type=int, default=100, help="digits to train on (default 100)")
    parser.add_argument("--width", type=int, default=64, help="of the perceptron (default 64)")
    parser.add_argument("--steps", type=int, default=60, help="of gradient descent (default 60)")
    options = parser.parse_args(arguments)
    if options.small:
        options.points, options.width, options.steps = 40, 32, 10
    X, labels = load_digits(return_X_y=True)
    images = jnp.asarray(X.reshape(-1, 8, 8) / 16, jnp.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[: options.points], order[options.points : options.points + 500]
    data = (images[train], jnp.asarray(labels[train]), images[test], labels[test])
    reports = [
        study(name, network, data, options.steps)
        for name, network in make_networks(options.width).items()
    ]
    console = Console()
    console.print(make_table(reports))
    draw(reports, options.output)
    console.print(f"picture: {options.output.name}")
    return reports


if __name__ == "__main__":
    main()
