"""The unified scheme of ResNet and softmax on real rows: its landscape, its Hessian in two parts,
where it is convex.

The rows are patients of scikit-learn's diabetes table (10 standardised columns); the target shares
out the fourth power of the disease's progression, so that b lies in the simplex and few patients
hold most of it. Newton steps on the structured Hessian find a minimum; then the loss is drawn over
the two stiffest directions there (white: above 1.5), its spectrum beside those of its diagonal and
rank-two parts, and the smallest eigenvalue over random points of a ball as the weight w shrinks,
beside the w from which on convexity is proved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _common import BLUE, GREEN, ORANGE, PURPLE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import softntk as sn
from softntk.regression import Problem

COLOURS = {
    "res_exp": BLUE,
    "exp": ORANGE,
    "diagonal": GREEN,
    "rank two": PURPLE,
}
NAMES = {"res_exp": "ResNet-softmax", "exp": "softmax"}


@dataclass(frozen=True)
class Found:
    """A minimum of one member of the family, and what the Hessian is made of there."""

    activation: str
    value: jax.Array
    losses: list[float]
    spectrum: np.ndarray
    diagonal: np.ndarray
    low_rank: np.ndarray


@dataclass(frozen=True)
class Convexity:
    """The smallest eigenvalue over random points of a ball, for each weight; and from where on
    theory has it positive.
    """

    activation: str
    weights: np.ndarray
    smallest: np.ndarray
    promised: float
    largest_convex: float


def rows(n: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """A, [n, 10], and shares of the progression, [n]."""
    A, y = (np.asarray(part, np.float64)[:n] for part in load_diabetes(return_X_y=True))
    A = (A - A.mean(axis=0)) / A.std(axis=0)
    return jnp.asarray(scale * A), jnp.asarray(y**4 / np.sum(y**4))


def minimise(p: Problem, steps: int) -> tuple[jax.Array, list[float]]:
    """Newton steps on the positive part where the Hessian is not definite, halved until the loss
    falls.
    """
    x = jnp.zeros(p.shape[1])
    losses = [float(p(x))]
    for _ in range(steps):
        factored = p.hessian(x).factorise()
        if int(factored.result) or int(factored.negative_eigenvalues()):
            factored = p.gauss_newton(x).with_ridge(1e-12).factorise()
        step = factored.solve(-p.gradient(x))
        for halving in range(40):
            trial = x + 0.5**halving * step
            if float(p(trial)) < losses[-1]:
                x = trial
                break
        losses.append(float(p(x)))
    return x, losses


def investigate(activation: str, A: jax.Array, b: jax.Array, weight: float, steps: int) -> Found:
    """Minimise, and take the Hessian apart: H = AᵀDA + (AᵀU) M (AᵀU)ᵀ."""
    p = sn.regression.problem(A, b, activation, weights=weight)
    x, losses = minimise(p, steps)
    H = p.hessian(x)
    spectrum = np.linalg.eigvalsh(H.as_matrix())
    diagonal = np.linalg.eigvalsh(H.regular_part().as_matrix())
    V = H.columns()
    low_rank = np.linalg.eigvalsh(V @ H.core @ V.T)
    return Found(activation, x, losses, spectrum, diagonal, low_rank)


def convexity(activation: str, A: jax.Array, b: jax.Array, radius: float, points: int) -> Convexity:
    """λ_min of the Hessian at random points of ‖x‖ ≤ R, for falling weights."""
    free = sn.regression.problem(A, b, activation)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(points, A.shape[1]))
    x *= (
        radius
        * rng.random((points, 1)) ** (1 / A.shape[1])
        / np.linalg.norm(x, axis=1, keepdims=True)
    )
    hessians = jax.lax.map(lambda x: free.hessian(x).as_matrix(), jnp.asarray(x))
    weights = np.geomspace(1e-4, 3, 40)
    gram = np.asarray(A.T @ A)
    smallest = np.array(
        [np.linalg.eigvalsh(np.asarray(hessians) + w**2 * gram)[:, 0].min() for w in weights]
    )
    promised = sn.regression.convexity_weight(free, 1e-9, radius).ours
    bad = weights[smallest <= 0]
    return Convexity(activation, weights, smallest, promised, float(bad.max()) if len(bad) else 0.0)


def surface(
    p: Problem, found: Found, size: int, span: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss over the two stiffest directions of the Hessian, around the minimum."""
    vectors = np.linalg.eigh(np.asarray(p.hessian(found.value).as_matrix()))[1]
    first, second = jnp.asarray(vectors[:, -1]), jnp.asarray(vectors[:, -2])
    s, t = np.linspace(-span, span, size), np.linspace(-span, span, size)
    at = jax.jit(
        jax.vmap(
            jax.vmap(lambda s, t: p(found.value + s * first + t * second), (0, None)), (None, 0)
        )
    )
    return s, t, np.asarray(at(jnp.asarray(s), jnp.asarray(t)))


def picture(
    found: Sequence[Found], convex: Sequence[Convexity], surfaces: Sequence[tuple], path: Path
) -> None:
    """Two landscapes, the spectra, the convexity."""
    figure, panels = make_figure(1, 4, 18, 4.6)
    for axes, f, (s, t, loss) in zip(panels, found, surfaces, strict=False):
        shown = np.ma.masked_invalid(np.where(loss < 1.5, loss, np.nan))
        image = axes.contourf(s, t, np.log10(shown), levels=20, cmap="cividis")
        axes.plot(0, 0, "o", color="white", mec="black", ms=8)
        axes.set(xlabel="stiffest direction", ylabel="second stiffest" if axes is panels[0] else "")
        axes.set_title(f"{NAMES[f.activation]}: the loss, $\\log_{{10}} L$", fontsize=12)
        figure.colorbar(image, ax=axes)
    f = found[0]
    for values, name, marker in (
        (f.spectrum, "Hessian", "o"),
        (f.diagonal, "diagonal", "s"),
        (f.low_rank, "rank two", "^"),
    ):
        colour = COLOURS.get(name, "black")
        rank = np.arange(1, len(values) + 1)
        panels[2].plot(
            rank,
            values,
            marker,
            color=colour,
            mfc="white",
            ms=7,
            mew=1.6,
            label=f"{name} part" if name != "Hessian" else name,
        )
    scale = np.abs(f.spectrum).max()
    panels[2].set_yscale("symlog", linthresh=1e-2 * scale)
    panels[2].axhline(0, color="grey", lw=0.8)
    panels[2].set(xlabel="rank", ylabel="eigenvalue", xticks=[1, 4, 7, 10])
    panels[2].set_title(f"{NAMES[f.activation]}: the Hessian at its minimum", fontsize=12)
    panels[2].legend(frameon=False, fontsize=11)
    for c in convex:
        style = "-" if c.activation == "res_exp" else "--"
        panels[3].plot(
            c.weights,
            c.smallest,
            style,
            color=COLOURS[c.activation],
            lw=2,
            label=NAMES[c.activation],
        )
        if np.isfinite(c.promised):
            panels[3].axvline(c.promised, color=COLOURS[c.activation], ls=":", lw=1.6)
    panels[3].axhline(0, color="grey", lw=0.8)
    largest = max(np.abs(c.smallest).max() for c in convex)
    panels[3].set(xscale="log", xlabel="weight w", ylabel="smallest eigenvalue in the ball")
    panels[3].set_yscale("symlog", linthresh=1e-3 * largest)
    panels[3].set_xlim(1e-3, None)
    panels[3].set_title("Convex from where on (dotted: proved)", fontsize=12)
    panels[3].legend(frameon=False, fontsize=11, loc="upper left")
    save_figure(figure, path)


def table(found: Sequence[Found], convex: Sequence[Convexity]) -> Table:
    """One column a member."""
    out = Table(title="regression of shares of progression on the diabetes table")
    out.add_column("", no_wrap=True)
    for f in found:
        out.add_column(NAMES[f.activation], justify="right")
    lines = {
        "loss": [f"{f.losses[-1]:.3e}" for f in found],
        "eigenvalues of the Hessian": [
            f"{f.spectrum[0]:.1e} … {f.spectrum[-1]:.1e}" for f in found
        ],
        "of its rank-two part": [f"{f.low_rank[0]:.1e} … {f.low_rank[-1]:.1e}" for f in found],
        "seen to be convex from w": [f"{c.largest_convex:.2g}" for c in convex],
        "proved to be convex from w": [f"{c.promised:.2g}" for c in convex],
    }
    for name, cells in lines.items():
        out.add_row(name, *cells)
    return out


def main(arguments: Sequence[str] | None = None) -> tuple[list[Found], list[Convexity]]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: 60 patients, few points")
    parser.add_argument("--rows", type=int, default=100, help="patients (default 100)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the standardised columns (default 1)"
    )
    parser.add_argument(
        "--weight", type=float, default=1e-2, help="w at the minimum (default 0.01)"
    )
    parser.add_argument(
        "--radius",
        type=float,
        default=1.0,
        help="of the ball in which convexity is looked for (default 1)",
    )
    options = parser.parse_args(arguments)
    size, points, steps = 81, 500, 30
    if options.small:
        options.rows, size, points, steps = 60, 15, 20, 10
    with jax.enable_x64(True):
        A, b = rows(options.rows, options.scale)
        found = [investigate(name, A, b, options.weight, steps) for name in NAMES]
        convex = [convexity(name, A, b, options.radius, points) for name in NAMES]
        problems = [
            sn.regression.problem(A, b, f.activation, weights=options.weight) for f in found
        ]
        surfaces = [surface(p, f, size, 8.0) for p, f in zip(problems, found, strict=True)]
        console = Console()
        console.print(table(found, convex))
        picture(found, convex, surfaces, options.output)
    console.print(f"picture: {options.output.name}")
    return found, convex


if __name__ == "__main__":
    main()
