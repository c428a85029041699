"""How far may the weights move before the kernel is another one? Softmax, exp and ReLU side by
side.

Proofs that a wide network trains keep its neural tangent kernel H positive definite while every
neuron moves by at most R. So ‖H(W̃) − H(W)‖ is measured in units of the λ_min(H) that it eats up:
for random moves, for the worst that gradient ascent finds, as the paper bounds it, and as we do. R,
the size σ of the weights and the width are varied. What can be seen:

- Softmax: the normaliser takes away what all units do together. For small weights that leaves the
  factor σ of the move of exp, and where weights are large no few units run away with the kernel.
- exp: the same kernel at infinite width, on the sphere, up to a factor; but it moves more at both
  ends.
- ReLU: units flip at their kinks, so that the kernel jumps: like √R for random moves, not like R.
  Small moves cost most here, large ones least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import FAMILY_COLOURS, make_figure, make_parser, save_figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table

import softntk as sn
from softntk import theory

FAMILIES = ("softmax", "exp", "relu")
SIGMA, RADIUS = 0.5, 0.01  # where they are not varied


@dataclass(frozen=True)
class Row:
    """One network and one radius; the last four are spectral norms in units of λ_min(H)."""

    family: str
    sigma: float
    width: int
    radius: float
    smallest: float
    """λ_min(H(W))."""
    random: float
    adversarial: float
    ours: float
    paper: float


def sphere(n: int, d: int) -> jax.Array:
    """Points of norm one."""
    x = np.random.default_rng(0).normal(size=(n, d))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


def measure(
    family: str, x: jax.Array, width: int, sigma: float, radii: Sequence[float]
) -> list[Row]:
    """The kernel's changes at these radii."""
    net = sn.networks.two_layer(family, width=width, sigma=sigma)
    _, params = net.init_fn(jax.random.key(0), (-1, x.shape[1]))
    found = theory.perturbation(net, params, x, radii, key=jax.random.key(1))
    random, worst = found.of("random"), found.of("adversarial")
    return [
        Row(
            family,
            sigma,
            width,
            R,
            found.smallest,
            float(random.spectral[i]) / found.smallest,
            float(worst.spectral[i]) / found.smallest,
            float(worst.ours_spectral[i]) / found.smallest,
            float(worst.paper[i]) / found.smallest,
        )
        for i, R in enumerate(radii)
    ]


def proven_radius(rows: Sequence[Row]) -> float:
    """The R up to which our bound stays below λ_min, between two that were looked at."""
    moving = [r for r in rows if r.ours > 0]
    return float(
        np.exp(np.interp(0.0, np.log([r.ours for r in moving]), np.log([r.radius for r in moving])))
    )


def picture(sweeps: dict[str, list[Row]], path: Path) -> None:
    """The change of the kernel against R, σ and width."""
    figure, panels = make_figure(1, 3, 13, 5, sharey=True)
    looks: dict[str, dict[str, Any]] = {
        "adversarial": {"ls": "-", "lw": 2.4, "marker": "o", "ms": 6},
        "random": {"ls": ":", "lw": 1.8},
        "ours": {"ls": "--", "lw": 1.8},
        "paper": {"ls": "-.", "lw": 1.2},
    }
    names = {
        "radius": "R, the move of every neuron",
        "sigma": "σ, the size of the weights",
        "width": "width",
    }
    for axes, (name, rows) in zip(panels, sweeps.items(), strict=True):
        for family in FAMILIES:
            chosen = [r for r in rows if r.family == family]
            for kind, look in looks.items():
                axes.plot(
                    [getattr(r, name) for r in chosen],
                    [getattr(r, kind) for r in chosen],
                    color=FAMILY_COLOURS[family],
                    **look,
                )
        axes.axhline(1, color="grey", lw=0.8)
        axes.set(xscale="log", yscale="log", xlabel=names[name])
        if name != "radius":
            axes.set_xticks(sorted({getattr(r, name) for r in rows}))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
    panels[0].set(ylabel="‖H(W̃) − H(W)‖ / λ_min(H)", ylim=(1e-4, 1e8))
    lines = [
        Line2D([], [], color=colour, lw=2.4, label=family)
        for family, colour in FAMILY_COLOURS.items()
    ]
    titles = {
        "adversarial": "worst found",
        "random": "random",
        "ours": "our bound",
        "paper": "the paper's bound",
    }
    lines += [
        Line2D([], [], color="black", label=titles[kind], **look) for kind, look in looks.items()
    ]
    figure.legend(handles=lines, frameon=False, loc="outside lower center", ncols=7)
    save_figure(figure, path)


def table(sweeps: dict[str, list[Row]]) -> Table:
    """The ends of what was varied, and all σ; one row a network and a radius."""
    out = Table(
        title="the change of the kernel in units of its λ_min", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in ("network", "σ", "m", "R", "λ_min", "random", "worst", "ours", "paper"):
        out.add_column(name, justify="left" if name == "network" else "right")
    for family in FAMILIES:
        rows = {name: [r for r in sweep if r.family == family] for name, sweep in sweeps.items()}
        shown = (
            rows["sigma"]
            + rows["radius"][:: len(rows["radius"]) - 1]
            + rows["width"][:: len(rows["width"]) - 1]
        )
        for r in shown:
            changes = (f"{v:.1e}" for v in (r.random, r.adversarial, r.ours, r.paper))
            out.add_row(
                r.family,
                f"{r.sigma:g}",
                str(r.width),
                f"{r.radius:.0e}",
                f"{r.smallest:.2g}",
                *changes,
            )
        out.add_section()
    return out


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Run it as the command line asks for it."""
    parser = make_parser(
        __file__, __doc__, small="a few seconds: 20 points, width 128, fewer sizes"
    )
    parser.add_argument(
        "--points", type=int, default=50, help="on the unit sphere in R^20 (default 50)"
    )
    parser.add_argument("--width", type=int, default=1024, help="of the networks (default 1024)")
    options = parser.parse_args(arguments)
    radii, sigmas, widths = (
        np.geomspace(1e-4, 1, 9),
        (0.1, 0.2, 0.5, 1.0, 2.0),
        (128, 256, 512, 1024, 2048, 4096),
    )
    if options.small:
        options.points, options.width = 20, 128
        radii, sigmas, widths = np.geomspace(1e-3, 1, 4), (0.1, 2.0), (64, 128)
    x, m = sphere(options.points, 20), options.width
    sweeps = {
        "radius": [row for f in FAMILIES for row in measure(f, x, m, SIGMA, radii.tolist())],
        "sigma": [
            row for f in FAMILIES for sigma in sigmas for row in measure(f, x, m, sigma, [RADIUS])
        ],
        "width": [
            row
            for f in FAMILIES
            for width in widths
            for row in measure(f, x, width, SIGMA, [RADIUS])
        ],
    }
    console = Console()
    console.print(table(sweeps))
    for family in FAMILIES:
        rows = [r for r in sweeps["radius"] if r.family == family]
        ours, theirs = proven_radius(rows), rows[0].radius / rows[0].paper
        console.print(
            f"{family}: λ_min stays positive up to R = {ours:.1e} by our proof, {theirs:.1e} by the paper's"
        )
    picture(sweeps, options.output)
    console.print(f"picture: {options.output.name}")
    return sweeps


if __name__ == "__main__":
    main()
