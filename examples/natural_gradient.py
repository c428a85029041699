"""Natural gradient on handwritten digits: softmax, ReLU and exp networks fitted in a handful of
steps.

Two-layer networks learn ten outputs of scikit-learn's 8 × 8 digits. Natural gradient solves with
the neural tangent kernel, (JJᵀ + ρ)⁻¹, which is never formed; beside it gradient descent, at the
step that is fastest under the kernel at the start, and Adam. The picture shows the training loss
against steps and against time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import FAMILY_COLOURS, make_figure, make_parser, save_figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import softntk as sn

FAMILIES = ("softmax", "relu", "exp")
STYLES = {"natural gradient": "-", "Adam": "--", "gradient descent": ":"}


@dataclass(frozen=True)
class Run:
    """One optimiser on one network."""

    family: str
    optimiser: str
    losses: np.ndarray
    seconds: float
    accuracy: float
    """On digits that were not trained on."""


def digits(n: int) -> tuple[jax.Array, jax.Array, jax.Array, np.ndarray]:
    """Training points on the unit sphere and centred targets; test points and labels."""
    X, y = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order] - X.mean(axis=0), y[order]
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    x = jnp.asarray(X[:n], jnp.float32)
    return (
        x,
        jnp.asarray(np.eye(10)[y[:n]] - 0.1, jnp.float32),
        jnp.asarray(X[n:], jnp.float32),
        np.asarray(y[n:]),
    )


def train(family: str, width: int, data: tuple, steps: int, goal: float, seed: int) -> list[Run]:
    """The three optimisers from the same start."""
    x, y, x_test, labels = data
    net = sn.networks.two_layer(family, width=width, out_dim=10)
    _, params = net.init_fn(jax.random.key(seed), (-1, x.shape[1]))
    loss = lambda p: 0.5 * jnp.mean(jnp.sum((net.apply_fn(p, x) - y) ** 2, axis=1))
    largest = float(sn.ntk.extreme_eigenvalues(sn.ntk.operator(net, params, x)).largest) / len(x)
    first: dict[str, tuple[Any, int]] = {
        "natural gradient": (sn.solvers.natural_gradient(net, x, y), 30),
        "Adam": (optax.adam(optax.cosine_decay_schedule(1e-2, steps)), steps),
        # λ_min is next to nothing beside λ_max: 2/(λ_max + λ_min), with a little room for a kernel
        # that moves.
        "gradient descent": (sn.solvers.gradient_descent(1.8 / largest), steps),
    }
    runs = []
    for name, (tx, most) in first.items():
        # The first call compiles.
        options: dict[str, Any] = {
            "rtol": 0.0,
            "step_tol": 1e-12,
            "atol": _gradient_at(goal),
            "throw": False,
        }
        sn.solvers.minimise(loss, params, tx, max_steps=1, **options)
        start = time.perf_counter()
        sol = sn.solvers.minimise(loss, params, tx, max_steps=most, **options)
        seconds = time.perf_counter() - start
        right = np.argmax(net.apply_fn(sol.value, x_test), axis=1) == labels
        runs.append(Run(family, name, np.asarray(sol.stats["loss"]), seconds, float(right.mean())))
    return runs


def _gradient_at(goal: float) -> float:
    """A gradient that is small enough for the loss to be below the goal, whatever the kernel of
    these networks.
    """
    return 1e-2 * goal**0.5


def picture(runs: Sequence[Run], goal: float, path: Path) -> None:
    """Loss against steps and time."""
    figure, panels = make_figure(1, 2, 13, 4.8, sharey=True)
    for run in runs:
        steps = np.arange(len(run.losses))
        look: dict[str, Any] = {
            "color": FAMILY_COLOURS[run.family],
            "ls": STYLES[run.optimiser],
            "lw": 2.2,
        }
        if run.optimiser == "natural gradient":
            look |= {"marker": "o", "ms": 6}
        panels[0].plot(np.maximum(steps, 0.7), run.losses, **look)
        panels[1].plot(
            np.maximum(steps, 0.7) * run.seconds / max(len(steps) - 1, 1), run.losses, **look
        )
    for axes, name in zip(panels, ("steps", "seconds (steps of a mean length)"), strict=True):
        axes.axhline(goal, color="grey", lw=0.8)
        axes.set(xscale="log", yscale="log", xlabel=name)
    panels[0].set(ylabel="training loss", ylim=(1e-12, None))
    lines = [
        Line2D([], [], color=colour, lw=2.2, label=name) for name, colour in FAMILY_COLOURS.items()
    ]
    lines += [
        Line2D([], [], color="black", ls=style, lw=2.2, label=name)
        for name, style in STYLES.items()
    ]
    figure.legend(handles=lines, frameon=False, loc="outside lower center", ncols=6)
    save_figure(figure, path)


def table(runs: Sequence[Run], goal: float) -> Table:
    """One row a run."""
    out = Table(title="handwritten digits")
    for name in (
        "network",
        "optimiser",
        "steps",
        f"steps to {goal:.0e}",
        "seconds",
        "loss",
        "test accuracy",
    ):
        out.add_column(name, justify="left" if name in ("network", "optimiser") else "right")
    for r in runs:
        there = np.flatnonzero(r.losses <= goal)
        reached = str(there[0]) if len(there) else "not reached"
        cells = [
            str(len(r.losses) - 1),
            reached,
            f"{r.seconds:.1f}",
            f"{r.losses[-1]:.1e}",
            f"{100 * r.accuracy:.1f} %",
        ]
        out.add_row(r.family, r.optimiser, *cells)
    return out


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: 60 digits, width 256")
    parser.add_argument(
        "--points", type=int, default=1000, help="digits to train on (default 1000)"
    )
    parser.add_argument("--width", type=int, default=2048, help="of the networks (default 2048)")
    parser.add_argument(
        "--steps", type=int, default=1000, help="of gradient descent and Adam (default 1000)"
    )
    options = parser.parse_args(arguments)
    if options.small:
        options.points, options.width, options.steps = 60, 256, 40
    goal, data = 1e-8, digits(options.points)
    runs = [
        run
        for family in FAMILIES
        for run in train(family, options.width, data, options.steps, goal, seed=0)
    ]
    console = Console()
    console.print(table(runs, goal))
    picture(runs, goal, options.output)
    console.print(f"picture: {options.output.name}")
    return runs


if __name__ == "__main__":
    main()
