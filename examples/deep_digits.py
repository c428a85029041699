"""Depth on handwritten digits: infinitely wide softmax and ReLU networks of depth 1 to 8, fully
connected and convolutional.

Each is used twice, as a Gaussian process (GP, its NNGP kernel) and as what gradient descent would
train it to (its NTK), with the same small ridge. Prints the test accuracy over random splits, and
saves a picture: test errors against depth, and how much of each kernel is left to tell two digits
apart, beside the depth scale that the fixed point promises. Deep softmax networks are ordered: that
rest shrinks with every layer, so everything is computed in float64.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import BLUE, ORANGE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import softntk as sn
from softntk import nt, stax

NETWORKS = {
    # Layer, variances of weights and biases; and what softntk.ntk.fixed_point asks for.
    "softmax": (stax.Softmax, 0.25, 0.05, "exp", True),
    "ReLU": (stax.Relu, 2.0, 0.01, "relu", False),
}
KERNELS = {"nngp": "GP", "ntk": "NTK"}
COLOURS = {
    "softmax": BLUE,
    "ReLU": ORANGE,
}
STYLES = {"nngp": "--o", "ntk": "-s"}


@dataclass(frozen=True)
class Row:
    """One kernel of one network: test accuracies over the splits, and the part of the kernel that
    differs between digits.
    """

    network: str
    convolutional: bool
    depth: int
    kernel: str
    accuracies: np.ndarray
    contrast: float

    @property
    def accuracy(self) -> float:
        """The mean over the splits."""
        return float(self.accuracies.mean())

    @property
    def spread(self) -> float:
        """The standard deviation over the splits."""
        return float(self.accuracies.std())


def digits(n: int) -> tuple[jax.Array, np.ndarray]:
    """Images, [n, 8, 8, 1], centred and scaled to pixels of variance one; labels."""
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(images))[:n]
    x = images[order] - images.mean(axis=0)
    x *= 8 / np.linalg.norm(x, axis=1, keepdims=True)
    return jnp.asarray(x).reshape(n, 8, 8, 1), labels[order]


def network(name: str, convolutional: bool, depth: int):
    """The kernel function of a network of so many hidden layers, on images; convolutions see 3 × 3
    pixels and keep the size.
    """
    layer, weight, bias, *_ = NETWORKS[name]
    scale = (weight**0.5, bias**0.5)
    affine = lambda: (
        stax.Conv(1, (3, 3), (1, 1), "SAME", *scale) if convolutional else stax.Dense(1, *scale)
    )
    hidden = [part for _ in range(depth) for part in (affine(), layer())]
    ends = [stax.Flatten(), *hidden] if not convolutional else [*hidden, stax.Flatten()]
    return stax.serial(*ends, stax.Dense(1, *scale))[2]


def accuracies(
    gram: jax.Array, labels: np.ndarray, train: int, splits: int, ridge: float
) -> np.ndarray:
    """Ridge regression onto the ten classes on random splits; the ridge is in units of the contrast
    of the kernel.
    """
    y = jnp.eye(10)[labels] - 0.1
    out = []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(labels))
        one, other = order[:train], order[train:]
        outputs = sn.ntk.kernel_regression(
            gram[np.ix_(one, one)],
            y[one],
            ridge=ridge * contrast(gram)[1],
            cross=gram[np.ix_(other, one)],
        )
        out.append(np.mean(np.argmax(np.asarray(outputs), axis=1) == labels[other]))
    return np.array(out)


def contrast(gram: jax.Array) -> tuple[float, float]:
    """Mean of the diagonal minus mean of all entries, ½E‖φ − φ'‖² over features of digits; over the
    diagonal, and itself.
    """
    diagonal = float(jnp.mean(jnp.diagonal(gram)))
    rest = diagonal - float(jnp.mean(gram))
    return rest / diagonal, rest


def investigate(options: argparse.Namespace, depths: Sequence[int]) -> list[Row]:
    """All networks and depths."""
    x, labels = digits(options.points)
    cases = [(name, conv, depth) for conv in (False, True) for name in NETWORKS for depth in depths]
    rows = []
    for name, conv, depth in track(
        cases, "kernels and regressions", console=Console(stderr=True), transient=True
    ):
        kernel_fn = nt.batch(
            jax.jit(network(name, conv, depth), static_argnames="get"), batch_size=options.batch
        )
        for get, gram in kernel_fn(x, None, tuple(KERNELS))._asdict().items():
            found = accuracies(
                jnp.asarray(gram), labels, options.train, options.splits, options.ridge
            )
            rows.append(Row(name, conv, depth, get, found, contrast(jnp.asarray(gram))[0]))
    return rows


def series(rows: Sequence[Row], name: str, conv: bool, get: str) -> list[Row]:
    """The rows of one network and kernel, by depth."""
    return [r for r in rows if (r.network, r.convolutional, r.kernel) == (name, conv, get)]


def table(rows: Sequence[Row], options: argparse.Namespace) -> Table:
    """One line a network and kernel, one column a depth."""
    depths = sorted({r.depth for r in rows})
    spread = 100 * np.mean([r.spread for r in rows])
    title = f"test accuracy (%) by depth, {options.train} training digits, mean of {options.splits} splits (spread {spread:.1f})"
    out = Table(title=title)
    out.add_column("network", no_wrap=True)
    for depth in depths:
        out.add_column(str(depth), justify="right")
    for conv in (False, True):
        out.add_row("convolutional" if conv else "fully connected", style="bold")
        for name in NETWORKS:
            for get, kernel in KERNELS.items():
                out.add_row(
                    f"{name}, {kernel}",
                    *(f"{100 * r.accuracy:.1f}" for r in series(rows, name, conv, get)),
                )
        out.add_section()
    return out


def depth_scale(name: str) -> float:
    """ξ: two inputs' distance shrinks like e^{−depth/ξ}."""
    _, weight, bias, activation, normalized = NETWORKS[name]
    found = sn.ntk.fixed_point(
        activation, normalized=normalized, weight_variance=weight, bias_variance=bias
    )
    return float(found.depth_scale) if bool(found.exists) else np.inf


def picture(rows: Sequence[Row], path: Path) -> None:
    """Errors against depth, and contrasts."""
    figure, panels = make_figure(1, 3, 15, 4.6)
    depths = sorted({r.depth for r in rows})
    for axes, conv in zip(panels, (False, True), strict=False):
        for name in NETWORKS:
            for get, kernel in KERNELS.items():
                found = series(rows, name, conv, get)
                mean, error = (
                    100 * np.array([f(r) for r in found])
                    for f in (lambda r: 1 - r.accuracy, standard_error)
                )
                axes.errorbar(
                    depths,
                    mean,
                    error,
                    fmt=STYLES[get],
                    color=COLOURS[name],
                    mfc="white",
                    ms=6,
                    capsize=2,
                    label=f"{name}, {kernel}",
                )
        axes.set_title("Convolutional" if conv else "Fully connected", fontsize=12)
        axes.set(xlabel="depth (hidden layers)", ylabel="test error (%)", xticks=depths)
    low, high = (f(axes.get_ylim()[i] for axes in panels[:2]) for i, f in enumerate((min, max)))
    for axes in panels[:2]:
        axes.set_ylim(low, high)
    panels[0].legend(frameon=False, fontsize=11, loc="best")
    for name in NETWORKS:
        for get, kernel in KERNELS.items():
            found = series(rows, name, False, get)
            panels[2].plot(
                depths,
                [r.contrast for r in found],
                STYLES[get],
                color=COLOURS[name],
                mfc="white",
                ms=6,
                label=f"{name}, {kernel}",
            )
    last = series(rows, "softmax", False, "nngp")[-1]
    decay = np.exp((depths[-1] - np.array(depths)) / depth_scale("softmax"))
    panels[2].plot(
        depths,
        last.contrast * decay,
        ":",
        color="grey",
        lw=2,
        label="$e^{-\\mathrm{depth}/\\xi}$ of softmax",
    )
    panels[2].set(
        yscale="log",
        xlabel="depth (hidden layers)",
        ylabel="1 − mean / diagonal of the kernel",
        xticks=depths,
    )
    panels[2].set_title("What is left to tell digits apart", fontsize=12)
    panels[2].legend(frameon=False, fontsize=11, loc="lower left")
    save_figure(figure, path)


def standard_error(row: Row) -> float:
    """Of the mean over the splits."""
    return row.spread / len(row.accuracies) ** 0.5


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: 200 digits, depths 1 and 3")
    parser.add_argument(
        "--points",
        type=int,
        default=1750,
        help="digits in all, a multiple of the batch (default 1750)",
    )
    parser.add_argument("--train", type=int, default=500, help="of them to train on (default 500)")
    parser.add_argument(
        "--splits", type=int, default=20, help="random splits to average over (default 20)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=250,
        help="rows and columns of the kernel at a time (default 250)",
    )
    parser.add_argument(
        "--ridge", type=float, default=1e-2, help="in units of the kernel's contrast (default 0.01)"
    )
    options = parser.parse_args(arguments)
    depths = range(1, 9)
    if options.small:
        options.points, options.train, options.splits, options.batch, depths = (
            200,
            100,
            2,
            100,
            (1, 3),
        )
    with jax.enable_x64(True):
        rows = investigate(options, depths)
        console = Console()
        console.print(table(rows, options))
        picture(rows, options.output)
    console.print(f"picture: {options.output.name}")
    return rows


if __name__ == "__main__":
    main()
