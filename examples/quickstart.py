"""Softmax, ReLU and exp networks on handwritten digits: what their kernels predict, and what
training does.

For each family, at one width, prints λ_min and condition number of the empirical and of the
infinite-width kernel, their distance, the training loss measured and predicted, test accuracies,
and how far weights and kernel moved; then saves a picture.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import FAMILY_COLOURS, FAMILY_MARKERS, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import softntk as sn

FAMILIES = ("softmax", "relu", "exp")


@dataclass(frozen=True)
class Data:
    """Digits as unit vectors, labels as rows of ±1/k that sum to zero."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    labels_test: np.ndarray


@dataclass(frozen=True)
class Report:
    """What was found out about one family."""

    family: str
    spectrum: np.ndarray
    infinite_spectrum: np.ndarray
    kernel_distance: float
    learning_rate: float
    losses: np.ndarray
    steps: np.ndarray
    predicted: np.ndarray
    network_accuracy: float
    kernel_accuracy: float
    weights_moved: float
    kernel_moved: float
    distances: np.ndarray
    seconds: float


def digits(n: int, classes: int, seed: int) -> Data:
    """The 8 × 8 digits of scikit-learn, centred and scaled to unit norm: n for training, the rest
    for testing.
    """
    images, labels = load_digits(n_class=classes, return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], labels[order]
    x = images - images[:n].mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.eye(classes)[labels] - 1 / classes
    train, test = slice(None, n), slice(n, None)
    x_train, y_train, x_test = (jnp.asarray(v, jnp.float32) for v in (x[train], y[train], x[test]))
    return Data(x_train, y_train, x_test, np.asarray(labels[test]))


def network(family: str, width: int, outputs: int, sigma: float) -> sn.networks.Network:
    """The family at one width; everything else alike."""
    return sn.networks.two_layer(family, width=width, out_dim=outputs, sigma=sigma)


def relative_distance(kernel: jax.Array, reference: jax.Array) -> float:
    """‖K − K*‖_F / ‖K*‖_F."""
    return float(jnp.linalg.norm(kernel - reference) / jnp.linalg.norm(reference))


def accuracy(outputs: np.ndarray | jax.Array, labels: np.ndarray) -> float:
    """Fraction of rows whose largest output is that of the label."""
    return float(np.mean(np.argmax(np.asarray(outputs), axis=1) == labels))


def kernel_regression(net: sn.networks.Network, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Spectrum of the infinite-width NTK and the outputs of its regression on the test points, in
    float64.
    """
    with jax.enable_x64(True):
        x, x_test = (np.asarray(v, np.float64) for v in (data.x, data.x_test))
        gram = np.asarray(net.kernel_fn(x, None, "ntk"))
        outputs = np.asarray(net.kernel_fn(x_test, x, "ntk")) @ np.linalg.solve(
            gram, np.asarray(data.y, np.float64)
        )
    return np.linalg.eigvalsh(gram), outputs


def distances_to_infinite_width(
    family: str, widths: Sequence[int], seeds: int, sigma: float, data: Data
) -> np.ndarray:
    """Mean over seeds of the relative distance of the empirical to the infinite-width kernel, one a
    width.
    """
    result = []
    for width in widths:
        net = network(family, width, data.y.shape[1], sigma)
        limit = net.kernel_fn(data.x, None, "ntk")
        gaps = []
        for seed in range(seeds):
            _, params = net.init_fn(jax.random.key(100 + seed), (-1, data.x.shape[1]))
            kernel = sn.ntk.empirical(net, params, data.x, outputs="mean")
            gaps.append(relative_distance(kernel, limit))
        result.append(np.mean(gaps))
    return np.array(result)


def investigate(
    family: str, data: Data, width: int, sigma: float, steps: int, widths: Sequence[int], seeds: int
) -> Report:
    """Kernel at the start, prediction, training, kernel at the end."""
    start = time.perf_counter()
    net = network(family, width, data.y.shape[1], sigma)
    _, params = net.init_fn(jax.random.key(0), (-1, data.x.shape[1]))
    gram = sn.ntk.empirical(net, params, data.x)
    n, _, k, _ = gram.shape
    spectrum = np.linalg.eigvalsh(
        np.asarray(gram.transpose(0, 2, 1, 3), np.float64).reshape(n * k, n * k)
    )
    mean_kernel = jnp.einsum("ijll->ij", gram) / k
    infinite_spectrum, kernel_outputs = kernel_regression(net, data)

    learning_rate = 1 / float(spectrum[-1])
    shown = np.unique(
        np.concatenate([shown_steps(steps), np.geomspace(1, steps, 40).round()])
    ).astype(int)
    predicted = sn.ntk.predict_gd(gram, data.y, learning_rate, jnp.asarray(shown))

    def loss(p: sn.networks.Parameters) -> jax.Array:
        return 0.5 * jnp.sum((net.apply_fn(p, data.x) - data.y) ** 2)

    trained = sn.solvers.train(
        loss, params, sn.solvers.gradient_descent(learning_rate), steps
    ).check()
    kernel_after = sn.ntk.empirical(net, trained.value, data.x, outputs="mean")
    return Report(
        family=family,
        spectrum=spectrum,
        infinite_spectrum=infinite_spectrum,
        kernel_distance=relative_distance(mean_kernel, net.kernel_fn(data.x, None, "ntk")),
        learning_rate=learning_rate,
        losses=np.asarray(trained.stats["loss"]),
        steps=shown,
        predicted=0.5 * np.sum((np.asarray(predicted) - np.asarray(data.y)) ** 2, axis=(1, 2)),
        network_accuracy=accuracy(net.apply_fn(trained.value, data.x_test), data.labels_test),
        kernel_accuracy=accuracy(kernel_outputs, data.labels_test),
        weights_moved=relative_distance(trained.value.hidden, params.hidden),
        kernel_moved=relative_distance(kernel_after, mean_kernel),
        distances=distances_to_infinite_width(family, widths, seeds, sigma, data),
        seconds=time.perf_counter() - start,
    )


def shown_steps(last: int) -> list[int]:
    """The steps that the table shows: 0, the powers of ten, the last."""
    return [0, *(s for s in (10, 100, 1000, 10_000) if s < last), last]


def table(reports: Sequence[Report], title: str) -> Table:
    """One column a family, one row a quantity."""
    out = Table(title=title)
    out.add_column("", no_wrap=True)
    for r in reports:
        out.add_column(r.family, justify="right")

    def row(name: str, cell) -> None:
        out.add_row(name, *(cell(r) for r in reports))

    for name, spectrum in (
        ("empirical", lambda r: r.spectrum),
        ("infinite", lambda r: r.infinite_spectrum),
    ):
        row(f"λ_min, {name} kernel", lambda r, s=spectrum: f"{s(r)[0]:.3g}")
        row(f"condition, {name} kernel", lambda r, s=spectrum: f"{s(r)[-1] / s(r)[0]:.3g}")
    row("relative distance of the two", lambda r: f"{r.kernel_distance:.3f}")
    row("learning rate 1/λ_max", lambda r: f"{r.learning_rate:.3g}")
    last = reports[0].steps[-1]
    for at in (int(np.searchsorted(reports[0].steps, step)) for step in shown_steps(last)):
        row(
            f"loss at step {reports[0].steps[at]}, measured",
            lambda r, at=at: f"{r.losses[r.steps[at]]:.4g}",
        )
        row("  predicted by the kernel at the start", lambda r, at=at: f"{r.predicted[at]:.4g}")
    row("test accuracy, trained network", lambda r: f"{r.network_accuracy:.3f}")
    row("test accuracy, infinite-width kernel", lambda r: f"{r.kernel_accuracy:.3f}")
    row("weights moved, relative", lambda r: f"{r.weights_moved:.3g}")
    row("kernel moved, relative", lambda r: f"{r.kernel_moved:.3g}")
    row("seconds", lambda r: f"{r.seconds:.1f}")
    return out


def picture(reports: Sequence[Report], widths: Sequence[int], path: Path) -> None:
    """Loss measured over predicted, spectra, distance to infinite width."""
    figure, (losses, spectra, distances) = make_figure(1, 3, 15, 4.6)
    for i, r in enumerate(reports):
        colour, marker = FAMILY_COLOURS[r.family], FAMILY_MARKERS[r.family]
        positive = r.steps > 0
        # Softmax and exp have the same kernel up to scale: broad under narrow and staggered dots
        # keep both visible.
        losses.plot(
            r.steps[positive], r.predicted[positive], color=colour, lw=5 - 2 * i if i < 2 else 1.5
        )
        dots = r.steps[positive][i :: len(reports) + 1]
        losses.plot(
            dots, r.losses[dots], marker, color=colour, ms=6, mfc="white", mew=1.6, label=r.family
        )
        k = len(r.spectrum) / len(r.infinite_spectrum)
        spectra.plot(np.arange(1, len(r.spectrum) + 1) / k, r.spectrum[::-1], color=colour, lw=2)
        rank = np.arange(1, len(r.infinite_spectrum) + 1)
        spectra.plot(rank, r.infinite_spectrum[::-1], "--", color=colour, lw=1.6)
        distances.plot(
            widths,
            r.distances,
            "-" + marker,
            color=colour,
            ms=6,
            mfc="white",
            mew=1.6,
            lw=1.6,
            label=r.family,
        )
    losses.plot([], [], color="grey", lw=2, label="predicted by the kernel")
    losses.set(
        xscale="log",
        yscale="log",
        xlabel="step of gradient descent",
        ylabel="training loss ½‖F − Y‖²",
    )
    losses.set_title("Training: measured (dots), predicted (lines)", fontsize=12)
    spectra.plot([], [], color="grey", lw=2, label="empirical")
    spectra.plot([], [], "--", color="grey", lw=1.6, label="infinite width")
    spectra.set(
        xscale="log", yscale="log", xlabel="rank, per output", ylabel="eigenvalue of the NTK"
    )
    spectra.set_title("Spectra on the training digits", fontsize=12)
    guide = reports[0].distances[0] * np.sqrt(widths[0] / np.asarray(widths)) * 0.6
    distances.plot(widths, guide, ":", color="grey", label="width$^{-1/2}$")
    distances.set(xscale="log", yscale="log", xlabel="width", ylabel="‖H − H*‖ / ‖H*‖")
    distances.set_xscale("log", base=2)
    distances.set_title("Distance to the infinite width", fontsize=12)
    for axes in (losses, spectra, distances):
        axes.legend(frameon=False, fontsize=11)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Run the comparison as the command line asks for it."""
    parser = make_parser(
        __file__, __doc__, small="a few seconds: 40 digits of 3 classes, width 256, 100 steps"
    )
    parser.add_argument("--points", type=int, default=200, help="training digits (default 200)")
    parser.add_argument(
        "--classes",
        type=int,
        default=10,
        help="digits 0 … classes − 1, one output each (default 10)",
    )
    parser.add_argument("--width", type=int, default=4096, help="hidden units, even (default 4096)")
    parser.add_argument(
        "--sigma",
        type=float,
        default=1.0,
        help="standard deviation of the hidden weights (default 1)",
    )
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps of gradient descent (default 1000)"
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="networks a width in the third panel (default 5)"
    )
    options = parser.parse_args(arguments)
    if options.small:
        options.points, options.classes, options.width, options.steps, options.seeds = (
            40,
            3,
            256,
            100,
            1,
        )
    widths = [options.width // 2**i for i in ((5, 0) if options.small else (4, 3, 2, 1, 0))]
    data = digits(options.points, options.classes, seed=0)
    reports = [
        investigate(
            family, data, options.width, options.sigma, options.steps, widths, options.seeds
        )
        for family in FAMILIES
    ]
    title = f"{options.points} digits, {options.classes} outputs, width {options.width}, σ = {options.sigma:g}"
    console = Console()
    console.print(table(reports, title))
    picture(reports, widths, options.output)
    console.print(f"picture: {options.output.name}")
    return reports


if __name__ == "__main__":
    main()
