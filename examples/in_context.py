"""Attention regression on an in-context task: which of the examples in a prompt are of my class?

A prompt is a set of labelled digits; every query digit should attend to the prompt's digits of its
own class, evenly. One matrix X is fitted by Gauss–Newton on one prompt: min ½‖softmax_rows(A₁ X
A₂ᵀ) − B‖², B the even attention. It never sees a label, only who belongs together. On new prompts,
of other digits, labels are then read through the attention. Prints how that compares with plain
similarity (X a multiple of the identity), and saves a picture of the attention that was learned.
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
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import softntk as sn

COLOURS = {
    "learned": BLUE,
    "similarity": ORANGE,
}
MARKERS = {"learned": "o", "similarity": "s"}


@dataclass(frozen=True)
class Prompt:
    """Queries and labelled examples, each sorted by class."""

    queries: jax.Array
    query_labels: np.ndarray
    examples: jax.Array
    labels: np.ndarray

    @property
    def target(self) -> jax.Array:
        """Even attention to the examples of one's own class."""
        same = self.query_labels[:, None] == self.labels[None, :]
        return jnp.asarray(same / same.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Report:
    """What was learned, and how well labels are read by it."""

    losses: list[float]
    sizes: list[int]
    accuracies: dict[str, list[float]]
    prompt: Prompt
    attention: dict[str, np.ndarray]


def features(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of scikit-learn's digits, of mean square one; labels; in an order of
    chance.
    """
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    x = PCA(dimension, random_state=0).fit_transform(images)
    order = np.random.default_rng(0).permutation(len(x))
    return (x / np.sqrt(np.mean(x**2)))[order], labels[order]


def prompt(x: np.ndarray, labels: np.ndarray, queries: int, size: int, seed: int) -> Prompt:
    """``size`` examples, as many of each class as can be, and queries among the rest."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[: size // 10] for c in range(10)]
    )
    rest = rng.permutation(np.setdiff1d(np.arange(len(x)), chosen))[:queries]
    rest = rest[np.argsort(labels[rest], kind="stable")]
    return Prompt(jnp.asarray(x[rest]), labels[rest], jnp.asarray(x[chosen]), labels[chosen])


def fit(p: sn.regression.Attention, start: jax.Array, steps: int) -> tuple[jax.Array, list[float]]:
    """Gauss–Newton with Levenberg–Marquardt damping: smaller after a step that helps, larger after
    one that does not.
    """
    x, damping = start, 1e-3
    losses = [float(p(x))]
    for _ in range(steps):
        matrix, gradient = p.gauss_newton(x).as_matrix(), p.gradient(x).ravel()
        scale = jnp.mean(jnp.diagonal(matrix))
        for _ in range(12):
            step = jnp.linalg.solve(
                matrix + damping * scale * jnp.eye(len(matrix)), -gradient
            ).reshape(x.shape)
            better = float(p(x + step)) < losses[-1]
            damping *= 0.3 if better else 4.0
            if better:
                x = x + step
                break
        losses.append(float(p(x)))
    return x, losses


def read(attention: jax.Array, of: Prompt) -> float:
    """How often the class that gets most of the attention is the right one."""
    votes = np.asarray(attention) @ np.eye(10)[of.labels]
    return float(np.mean(np.argmax(votes, axis=1) == of.query_labels))


def investigate(options: argparse.Namespace, sizes: Sequence[int]) -> Report:
    """Fit on a prompt of the first half of the digits, test on prompts of the second."""
    x, labels = features(options.dimension)
    half = len(x) // 2
    train = prompt(x[:half], labels[:half], options.queries, sizes[-1], seed=0)
    problem = sn.regression.attention(
        train.queries, train.examples, train.target, weights=options.weight
    )
    learned, losses = fit(problem, 0.1 * jnp.eye(options.dimension), options.steps)
    # Plain similarity, with the temperature that is best on the training prompt.
    scales = np.geomspace(0.01, 10, 30)
    similarity = (
        jnp.eye(options.dimension)
        * scales[np.argmin([float(problem(s * jnp.eye(options.dimension))) for s in scales])]
    )
    matrices = {"learned": learned, "similarity": similarity}
    accuracies: dict[str, list[float]] = {name: [] for name in matrices}
    for size in sizes:
        prompts = [
            prompt(x[half:], labels[half:], options.queries, size, seed)
            for seed in range(options.prompts)
        ]
        for name, X in matrices.items():
            found = [
                read(sn.regression.attention(q.queries, q.examples, q.target).predict(X), q)
                for q in prompts
            ]
            accuracies[name].append(float(np.mean(found)))
    last = prompts[0]
    p = sn.regression.attention(last.queries, last.examples, last.target)
    attention = {name: np.asarray(p.predict(X)) for name, X in matrices.items()}
    return Report(losses, list(sizes), accuracies, last, attention)


def table(report: Report) -> Table:
    """One row a size of the prompt."""
    out = Table(title="new digits, labels read through the attention: share that is right")
    for name in ("examples", *report.accuracies):
        out.add_column(name, justify="right")
    for i, size in enumerate(report.sizes):
        out.add_row(str(size), *(f"{values[i]:.3f}" for values in report.accuracies.values()))
    return out


def picture(report: Report, path: Path) -> None:
    """The attention of new queries, learned and by similarity; the fit; accuracies over the size of
    the prompt.
    """
    figure, panels = make_figure(1, 4, 17, 4.4, width_ratios=[1.15, 1.15, 1, 1])
    per_class = len(report.prompt.labels) // 10
    for axes, (name, values) in zip(panels, report.attention.items(), strict=False):
        image = axes.imshow(
            values * per_class,
            aspect="auto",
            cmap="cividis",
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        middles = [np.mean(np.flatnonzero(report.prompt.query_labels == c)) for c in range(10)]
        axes.set_yticks(middles, [str(c) for c in range(10)])
        axes.set_xticks((np.arange(10) + 0.5) * per_class - 0.5, [str(c) for c in range(10)])
        axes.set(
            xlabel="examples in the prompt, by class",
            ylabel="new queries, by class" if name == "learned" else "",
        )
        axes.set_title(
            f"Attention, {'learned' if name == 'learned' else 'plain similarity'}", fontsize=12
        )
    figure.colorbar(image, ax=panels[1], label="attention × examples a class")
    panels[2].plot(
        range(len(report.losses)), report.losses, "-o", color=COLOURS["learned"], mfc="white", ms=5
    )
    panels[2].set(xlabel="Gauss–Newton step", ylabel="loss on the training prompt", ylim=(0, None))
    panels[2].set_title("Attention regression", fontsize=12)
    for name, values in report.accuracies.items():
        errors = 100 * (1 - np.array(values))
        panels[3].plot(
            report.sizes,
            errors,
            "-" + MARKERS[name],
            color=COLOURS[name],
            mfc="white",
            ms=7,
            label=name,
        )
    panels[3].set(
        xscale="log",
        xlabel="examples in the prompt",
        ylabel="new queries read wrongly (%)",
        ylim=(0, None),
    )
    panels[3].set_xticks(report.sizes, [str(size) for size in report.sizes])
    panels[3].minorticks_off()
    panels[3].set_title("In context, on new digits", fontsize=12)
    panels[3].legend(frameon=False, fontsize=11)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run it as the command line asks for it."""
    parser = make_parser(
        __file__, __doc__, small="a few seconds: fewer digits, components and steps"
    )
    parser.add_argument(
        "--queries", type=int, default=300, help="digits that ask, in each prompt (default 300)"
    )
    parser.add_argument(
        "--dimension", type=int, default=16, help="principal components (default 16)"
    )
    parser.add_argument(
        "--weight", type=float, default=3e-4, help="w, on the logits (default 0.0003)"
    )
    parser.add_argument("--steps", type=int, default=12, help="Gauss–Newton steps (default 12)")
    parser.add_argument(
        "--prompts", type=int, default=10, help="new prompts to average over (default 10)"
    )
    options = parser.parse_args(arguments)
    sizes = [10, 20, 50, 100, 200]
    if options.small:
        options.queries, options.dimension, options.steps, options.prompts, sizes = (
            80,
            6,
            10,
            2,
            [10, 50],
        )
    with jax.enable_x64(True):
        report = investigate(options, sizes)
    console = Console()
    console.print(table(report))
    picture(report, options.output)
    console.print(
        f"loss {report.losses[0]:.3f} → {report.losses[-1]:.3f}; picture: {options.output.name}"
    )
    return report


if __name__ == "__main__":
    main()
