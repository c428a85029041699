"""What depth does to softmax networks: the phase diagram of their infinite widths beside ReLU and
erf, and finite widths.

A grid of weight and bias variances: where the variance of a deep network comes to rest, whether
near inputs grow together (ordered) or apart (chaotic), and how many layers until they cannot be
told apart. Then, for finite softmax networks, the distance of the empirical NTK to its limit
against width and depth. Prints both, and saves a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _common import BLUE, GREEN, ORANGE, PURPLE, make_figure, make_parser, save_figure
from matplotlib.colors import LogNorm
from rich.console import Console
from rich.table import Table

import softntk as sn
from softntk import nt, stax
from softntk.ntk._depth import FixedPoint

STACKS = {"softmax": ("exp", True, 0.5), "ReLU": ("relu", False, 3.0), "erf": ("erf", False, 3.0)}
"""Activation, normalized, and the largest weight variance shown."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Phases:
    """Fixed points over a grid, [bias, weight]."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    found: FixedPoint


@dataclass(frozen=True)
class Distances:
    """Relative Frobenius distances of finite softmax networks of one depth to the infinite width,
    against the width.
    """

    depth: int
    widths: list[int]
    nngp: list[float]
    ntk: list[float]


def phases(name: str, size: int) -> Phases:
    """The fixed points of one kind of network."""
    activation, normalized, largest = STACKS[name]
    weight, bias = np.linspace(0.01, 1, size) * largest, np.linspace(0, 1, size)
    grid = jnp.asarray(weight)[None], jnp.asarray(bias)[:, None]
    return Phases(
        name,
        weight,
        bias,
        sn.ntk.fixed_point(
            activation, normalized=normalized, weight_variance=grid[0], bias_variance=grid[1]
        ),
    )


def distances(depth: int, widths: Sequence[int], draws: int) -> Distances:
    """Of softmax networks inside of the ordered phase, σ_w² = 0.25 and σ_b² = 0.05, on eight points
    of a sphere.
    """
    x = jax.random.normal(jax.random.key(0), (8, 16))
    x = x * (16**0.5 / jnp.linalg.norm(x, axis=1, keepdims=True))
    nngp, ntk = [], []
    for width in widths:
        layers = [
            part
            for _ in range(depth)
            for part in (stax.Dense(width, 0.5, 0.05**0.5), stax.Softmax())
        ]
        init_fn, apply_fn, kernel_fn = stax.serial(*layers, stax.Dense(1, 0.5, 0.05**0.5))
        _, features, _ = stax.serial(*layers)
        limit = [jnp.asarray(kernel_fn(x, None, get)) for get in ("nngp", "ntk")]
        empirical = nt.empirical_ntk_fn(apply_fn, vmap_axes=0)

        def sample(key, init_fn=init_fn, features=features, empirical=empirical, width=width):
            _, params = init_fn(key, x.shape)
            f = jnp.asarray(features(params[:-1], x))
            return 0.25 * f @ f.T / width + 0.05, empirical(x, None, params)

        gaps = jax.lax.map(sample, jax.random.split(jax.random.key(1), draws))
        for out, gap, k in zip((nngp, ntk), gaps, limit, strict=True):
            out.append(
                float(jnp.mean(jnp.linalg.norm(gap - k[None], axis=(1, 2))) / jnp.linalg.norm(k))
            )
    return Distances(depth, list(widths), nngp, ntk)


def table(found: Sequence[Distances]) -> Table:
    """One row a depth and width."""
    out = Table(
        title="softmax networks, σ_w² = 0.25, σ_b² = 0.05: relative distance to the infinite width"
    )
    for name in ("depth", "width", "NNGP", "NTK"):
        out.add_column(name, justify="right")
    for d in found:
        for row in zip(d.widths, d.nngp, d.ntk, strict=True):
            out.add_row(str(d.depth), str(row[0]), f"{row[1]:.4f}", f"{row[2]:.4f}")
        out.add_section()
    return out


def picture(diagrams: Sequence[Phases], found: Sequence[Distances], path: Path) -> None:
    """Three phase diagrams, and distances against width."""
    plt.rcParams["hatch.color"] = "#999999"
    figure, panels = make_figure(1, 4, 17, 4.4)
    for axes, p in zip(panels, diagrams, strict=False):
        exists, scale = np.asarray(p.found.exists), np.asarray(p.found.depth_scale)
        shown = np.ma.masked_where(~exists, np.clip(scale, 0.3, 300))
        image = axes.pcolormesh(
            p.weight,
            p.bias,
            shown,
            norm=LogNorm(0.3, 300),
            cmap="cividis",
            shading="nearest",
            rasterized=True,
        )
        if not exists.all():
            axes.contourf(
                p.weight, p.bias, ~exists, levels=[0.5, 1.5], colors="none", hatches=["//"]
            )
        slope = np.where(exists, np.asarray(p.found.slope), np.nan)
        if np.nanmax(slope) > 1.001:
            axes.contour(p.weight, p.bias, slope, levels=[1.0], colors="white", linewidths=2)
        axes.set(
            xlabel="weight variance $\\sigma_w^2$",
            ylabel="bias variance $\\sigma_b^2$" if p.name == "softmax" else "",
        )
        axes.set_title(p.name, fontsize=12)
    style = {
        "ha": "center",
        "va": "center",
        "fontsize": 12,
        "bbox": {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 2},
    }
    panels[0].text(0.1, 0.15, "ordered", **style)
    panels[0].text(0.38, 0.6, "explodes", **style)
    panels[1].text(0.9, 0.5, "ordered", **style)
    panels[1].text(2.55, 0.5, "explodes", **style)
    panels[2].text(0.7, 0.6, "ordered", **style)
    panels[2].text(2.5, 0.12, "chaotic", **style)
    figure.colorbar(image, ax=panels[2], label="depth scale ξ (layers)")
    for d, colour, marker in zip(found, COLOURS, MARKERS, strict=False):
        panels[3].plot(
            d.widths,
            d.ntk,
            "-" + marker,
            color=colour,
            ms=6,
            mfc="white",
            mew=1.6,
            lw=1.6,
            label=f"depth {d.depth}",
        )
    guide = found[-1].ntk[0] * 1.3 * (np.array(found[-1].widths) / found[-1].widths[0]) ** -0.5
    panels[3].plot(found[-1].widths, guide, ":", color="grey", label="width$^{-1/2}$")
    panels[3].set(
        xscale="log",
        yscale="log",
        xlabel="width",
        ylabel="relative distance of the NTK",
        ylim=(0.009, 0.3),
    )
    panels[3].set_xticks(found[-1].widths, [str(width) for width in found[-1].widths])
    panels[3].set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
    panels[3].minorticks_off()
    panels[3].set_title("Finite softmax networks and their limit", fontsize=12)
    panels[3].legend(frameon=False, fontsize=11, ncols=2, loc="lower left")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> tuple[list[Phases], list[Distances]]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: a coarse grid, narrow networks")
    parser.add_argument(
        "--size", type=int, default=160, help="points of the grid along each axis (default 160)"
    )
    parser.add_argument(
        "--draws", type=int, default=64, help="networks to average over (default 64)"
    )
    options = parser.parse_args(arguments)
    depths, widths = [1, 2, 4, 8], [32, 64, 128, 256, 512]
    if options.small:
        options.size, options.draws, depths, widths = 12, 4, [1, 2], [32, 128]
    diagrams = [phases(name, options.size) for name in STACKS]
    found = [distances(depth, widths, options.draws) for depth in depths]
    console = Console()
    for p in diagrams:
        ordered = np.asarray(p.found.exists & (p.found.slope <= 1))
        share, rest = 100 * ordered.mean(), 100 * np.asarray(p.found.exists).mean()
        console.print(
            f"{p.name}: ordered on {share:.0f} %, chaotic on {rest - share:.0f} %, explodes on {100 - rest:.0f} % of the grid"
        )
    console.print(table(found))
    picture(diagrams, found, options.output)
    console.print(f"picture: {options.output.name}")
    return diagrams, found


if __name__ == "__main__":
    main()
