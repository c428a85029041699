"""Beyond the kernel regime, and what kernels promise: softmax against ReLU.

When does a network leave its linearisation (width, output scale, σ)? What is one large gradient
step on the hidden weights worth, against random features? What does noise in the labels cost, when
should descent stop, and how far is the risk bound from the risk? Prints a table and saves a picture
with a panel for each question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import BLUE, GREEN, ORANGE, PURPLE, make_figure, make_parser, save_figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.table import Table

import softntk as sn
from softntk.theory import feature_learning as fl
from softntk.theory import generalisation, lazy
from softntk.theory.generalisation import _risk

FAMILIES = ("softmax", "relu")
COLOURS = {"softmax": BLUE, "relu": ORANGE}
MARKERS = {"softmax": "o", "relu": "s"}
NOISE = {"gaussian": GREEN, "flips": PURPLE, "adversarial": "#E69F00"}
TARGETS = {
    "single index": ("polynomial", 3, 1),
    "hierarchical": ("staircase", 3, 3),
}  # kind, degree, directions


@dataclass(frozen=True)
class Curve:
    """A panel's line: what was measured against what."""

    panel: str
    family: str
    kind: str
    at: np.ndarray
    values: np.ndarray
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def slope(self) -> float:
        """Of the logarithms, by least squares."""
        return float(np.polyfit(np.log(self.at), np.log(self.values), 1)[0])


def sphere(seed: int, n: int, d: int) -> jax.Array:
    """Points on the unit sphere."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


@cache
def network(family: str, width: int, sigma: float, pairs: bool) -> sn.networks.Network:
    """Compiled once, whatever the seed and the scale."""
    return sn.networks.two_layer(family, width=width, sigma=sigma, antisymmetric=pairs)


def departure(
    family: str,
    width: int,
    seeds: int,
    *,
    sigma: float = 0.5,
    scale: float = 1.0,
    pairs: bool = True,
) -> float:
    """Relative distance to the linearisation where that has lost 90 % of its loss; geometric mean
    over the starts.
    """
    x, y, found = sphere(0, 24, 8), jnp.sign(sphere(1, 24, 1)), []
    net = network(family, width, sigma, pairs)
    for seed in range(seeds):
        _, params = net.init_fn(jax.random.key(seed), (-1, 8))
        # What an independent start is at first is not to be unlearnt: it would grow with the scale.
        gram, targets = sn.ntk.empirical(net, params, x), y + scale * net.apply_fn(params, x)
        rate, steps = 1 / float(sn.ntk.extreme_eigenvalues(gram).largest), jnp.arange(1, 2001)
        line = sn.ntk.predict_gd(gram, y, rate, steps)
        there = np.flatnonzero(jnp.sum((line - y[None]) ** 2, axis=(1, 2)) < 0.1 * 24)
        last = int(there[0]) + 1 if len(there) else 2000
        run = lazy.distances(
            net, params, x, targets, learning_rate=rate, steps=last, at=[last], scale=scale
        )
        found.append(float(run.train[0]))
    return float(np.exp(np.mean(np.log(found))))


def departures(
    widths: Sequence[int], scales: Sequence[float], sigmas: Sequence[float], seeds: int
) -> list[Curve]:
    """Distance to the linearisation against width, output scale and σ."""
    out, middle = [], widths[len(widths) // 2]
    for family in FAMILIES:
        for kind, pairs in (("antisymmetric start", True), ("independent start", False)):
            values = [departure(family, width, seeds, pairs=pairs) for width in widths]
            out.append(Curve("width", family, kind, np.array(widths, float), np.array(values)))
            values = [
                departure(family, middle, seeds, scale=scale, pairs=pairs) for scale in scales
            ]
            out.append(Curve("scale", family, kind, np.array(scales, float), np.array(values)))
            values = [
                departure(family, middle, seeds, sigma=sigma, pairs=pairs) for sigma in sigmas
            ]
            out.append(Curve("sigma", family, kind, np.array(sigmas, float), np.array(values)))
    return out


def one_steps(d: int, width: int, n: int, sizes: Sequence[float]) -> list[Curve]:
    """Alignment and test error after one step of each size, s√m/n, and the error of random
    features.
    """
    out = []
    x, fresh, tests = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(n, d))) for seed in range(3)
    )
    for family in FAMILIES:
        # Independent units: of antisymmetric ones half are copies, and the smallest step already
        # doubles the features.
        net = sn.networks.two_layer(family, width=width, sigma=d**-0.5, antisymmetric=False)
        _, params = net.init_fn(jax.random.key(0), (-1, d))
        start = net.apply_fn(params, x)
        for name, (kind, degree, directions) in TARGETS.items():
            axes = jnp.eye(d)[:, :directions]
            f = fl.target(kind, axes, degree)

            def error(p: sn.networks.Parameters, net: Any = net, f: Any = f) -> float:
                predicted = fl.ridge_features(
                    fl.features(net, p, fresh), f(fresh), fl.features(net, p, tests)
                )
                return float(jnp.mean((predicted - f(tests)) ** 2) / jnp.var(f(tests)))

            stepped = [
                fl.one_step(net, params, x, f(x) + start, size * width**0.5 / n) for size in sizes
            ]
            aligned = [fl.alignment(params, after, axes) for after in stepped]
            shares = np.array([float(a.after) for a in aligned])
            extra = {
                "random": error(params),
                "change": float(aligned[0].change),
                "before": float(aligned[0].before),
            }
            out.append(Curve("alignment", family, name, np.array(sizes), shares, extra))
            out.append(
                Curve(
                    name,
                    family,
                    name,
                    np.array(sizes),
                    np.array([error(after) for after in stepped]),
                    extra,
                )
            )
    return out


def regression_target(x: jax.Array) -> jax.Array:
    """Of norm that kernels like: a linear and a quadratic part."""
    return 0.5 * x[:, :1] + x[:, 1:2] * x[:, 2:3]


def kernels(family: str, x: jax.Array, tests: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The infinite-width NTK at σ = 1."""
    kernel_fn = sn.networks.two_layer(family, width=2).kernel_fn
    return kernel_fn(x, None, "ntk"), kernel_fn(tests, x, "ntk")


def noises(n: int, levels: Sequence[float]) -> list[Curve]:
    """Test error of the softmax kernel against the size of the noise, of each kind: interpolating,
    and stopped.
    """
    x, tests = sphere(2, n, 5), sphere(3, 1000, 5)
    gram, cross = kernels("softmax", x, tests)
    truth, clean = regression_target(x), regression_target(tests)
    size, norm = float(jnp.sqrt(jnp.mean(truth**2))), generalisation.rkhs_norm(gram, truth).total
    found: dict[tuple[str, str], list[float]] = {}
    for level in levels:
        time = generalisation.early_stopping_time(gram, level * size, norm=norm).time
        for kind in NOISE:
            # Flipping a share p of the labels is noise of root mean square 2√p of theirs.
            amount = (level / 2) ** 2 if kind == "flips" else level * size
            y = fl.corrupt(kind, truth, amount, key=jax.random.key(1), gram=gram)
            times = jnp.array([time, jnp.inf])
            out = sn.ntk.predict_flow(gram, y, times, cross=cross)
            for name, f in zip(("stopped", "interpolating"), out, strict=True):
                found.setdefault((kind, name), []).append(
                    float(jnp.mean((f - clean) ** 2) / jnp.mean(clean**2))
                )
    return [
        Curve("noise", "softmax", f"{k}, {name}", np.array(levels), np.array(v))
        for (k, name), v in found.items()
    ]


def promises(sizes: Sequence[int], noise: float) -> list[Curve]:
    """Risk of gradient flow stopped by the rule, and its bound, over n; the error over time at one
    n.
    """
    out, tests = [], sphere(3, 2000, 5)
    clean = regression_target(tests)
    for family in FAMILIES:
        errors, bounds = [], []
        for n in sizes:
            x, key = sphere(2, n, 5), jax.random.key(n)
            gram, cross = kernels(family, x, tests)
            y = regression_target(x) + noise * jax.random.normal(key, (n, 1))
            seen = clean + noise * jax.random.normal(jax.random.key(0), clean.shape)
            norm = generalisation.rkhs_norm(gram, regression_target(x)).total
            estimated = float(generalisation.noise_level(gram, y)[0])
            stop = generalisation.early_stopping_time(gram, estimated, norm=norm)
            bound = _risk.risk_bound(gram, y, 0.1, time=stop.time)
            errors.append(
                float(jnp.mean(jnp.minimum(jnp.abs(cross @ bound.coefficients - seen), 1)))
            )
            bounds.append(float(bound.bound[0]))
            if n == sizes[-2]:
                times = np.geomspace(stop.time / 300, stop.time * 3e4, 80)
                path = sn.ntk.predict_flow(
                    gram, y, jnp.asarray(np.append(times, stop.time)), cross=cross
                )
                mse = np.asarray(jnp.mean((path - clean[None]) ** 2, axis=(1, 2)))
                extra = {
                    "time": stop.time,
                    "error": mse[-1],
                    "noise": estimated,
                    "n": n,
                    "norm": norm,
                }
                out.append(Curve("time", family, "", times, mse[:-1], extra))
        out.append(Curve("risk", family, "test error", np.array(sizes, float), np.array(errors)))
        out.append(Curve("risk", family, "bound", np.array(sizes, float), np.array(bounds)))
    return out


PANELS = {
    "width": ("Width", "width m", "distance to the linearisation"),
    "scale": ("Output scale", "output scale s", "distance to the linearisation"),
    "sigma": ("Size of the weights", "σ", "distance to the linearisation"),
    "alignment": (
        "One step: weights turn to the target",
        "step size η n/√m",
        "share of ‖W‖ in its directions",
    ),
    "single index": ("… single-index target", "step size η n/√m", "test error / variance"),
    "hierarchical": ("… hierarchical target", "step size η n/√m", "test error / variance"),
    "noise": ("Noise in the labels, softmax NTK", "noise / signal", "test error / signal²"),
    "time": ("When to stop", "time (learning rate × steps)", "test error (squared)"),
    "risk": ("Risk and its bound", "training points n", "E min(1, |f − y|)"),
}


def draw(axes: Any, curve: Curve) -> None:
    """One line, in the colour of its network (or kind of noise)."""
    dashed = curve.kind in ("independent start", "hierarchical", "bound") or curve.kind.endswith(
        "interpolating"
    )
    style = "--" if dashed and curve.panel != "hierarchical" else "-"
    colour = NOISE[curve.kind.split(",")[0]] if curve.panel == "noise" else COLOURS[curve.family]
    look = (
        {}
        if curve.panel == "time"
        else {"marker": MARKERS[curve.family], "ms": 5.5, "mfc": "white", "mew": 1.5}
    )
    axes.plot(curve.at, curve.values, ls=style, color=colour, lw=1.9, **look)
    if curve.panel == "time":
        axes.plot(
            curve.extra["time"],
            curve.extra["error"],
            "*",
            color=colour,
            ms=17,
            mec="black",
            zorder=3,
        )
    if curve.panel in TARGETS:
        axes.axhline(curve.extra["random"], color=colour, ls=":", lw=1.9)


def picture(curves: Sequence[Curve], path: Path) -> None:
    """Nine panels."""
    figure, grid = make_figure(3, 3, 14, 12)
    for axes, (name, (title, xlabel, ylabel)) in zip(grid.flat, PANELS.items(), strict=True):
        for curve in curves:
            if curve.panel == name:
                draw(axes, curve)
        linear = name in ("alignment", *TARGETS)
        axes.set(xscale="log", yscale="linear" if linear else "log", xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize=13)
        if linear:
            axes.set_ylim(0, 1)
        if name in ("width", "scale", "sigma", "noise", "risk"):
            ticks = next(curve.at for curve in curves if curve.panel == name)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    black = lambda style, label: Line2D([], [], color="black", ls=style, lw=1.9, label=label)
    starts = [black("-", "antisymmetric start"), black("--", "independent start")]
    legends = {
        "width": (starts, "lower left"),
        "alignment": ([black("-", "single index"), black("--", "hierarchical")], "upper left"),
        "single index": ([black("-", "one step"), black(":", "random features")], "lower left"),
        "noise": (
            [black("-", "stopped by the rule"), black("--", "interpolating")]
            + [Line2D([], [], color=colour, lw=3, label=kind) for kind, colour in NOISE.items()],
            "upper left",
        ),
        "time": (
            [
                Line2D(
                    [],
                    [],
                    color="grey",
                    marker="*",
                    ms=14,
                    mec="black",
                    ls="",
                    label="the rule stops here",
                )
            ],
            "best",
        ),
        "risk": ([black("-", "test error"), black("--", "bound (90 %)")], (0.02, 0.28)),
    }
    for axes, name in zip(grid.flat, PANELS, strict=True):
        if name in legends:
            handles, place = legends[name]
            axes.legend(
                handles=handles,
                frameon=False,
                fontsize=10.5,
                loc=place,
                ncols=2 if name == "noise" else 1,
            )
        if name == "noise":
            axes.set_ylim(None, 3e4)
    look = {"ms": 8, "mfc": "white", "mew": 1.8, "lw": 2.2}
    families = [
        Line2D(
            [], [], color=COLOURS[f], marker=MARKERS[f], label={"relu": "ReLU"}.get(f, f), **look
        )
        for f in FAMILIES
    ]
    figure.legend(handles=families, frameon=False, loc="outside upper center", ncols=2, fontsize=14)
    save_figure(figure, path, dpi=100)


def table(curves: Sequence[Curve]) -> Table:
    """One row a line of the picture."""
    out = Table(title="distances, one step, noise, stopping, risk")
    for name in ("panel", "network", "line", "first", "last", "remark"):
        out.add_column(name, justify="right" if name in ("first", "last") else "left")
    for c in curves:
        remark = ""
        if c.panel in ("width", "scale", "sigma"):
            remark = f"slope {c.slope:+.2f}"
        elif c.panel in TARGETS:
            best = int(np.argmin(c.values))
            remark = f"best {c.values[best]:.3f} at {c.at[best]:.3g}; random features {c.extra['random']:.3f}"
        elif c.panel == "alignment":
            remark = f"of the change {c.extra['change']:.3f}, before {c.extra['before']:.3f}"
        elif c.panel == "time":
            ratio = c.extra["error"] / c.values.min()
            remark = f"the rule: t = {c.extra['time']:.3g}, {ratio:.2f} × the least error; σ̂ = {c.extra['noise']:.3f}"
        first, last = (
            f"{v:.3g} at {t:.3g}" for v, t in ((c.values[0], c.at[0]), (c.values[-1], c.at[-1]))
        )
        out.add_row(c.panel, c.family, c.kind, first, last, remark)
    return out


def main(arguments: Sequence[str] | None = None) -> list[Curve]:
    """Run it as the command line asks for it."""
    parser = make_parser(__file__, __doc__, small="a few seconds: width 512, 300 points")
    parser.add_argument(
        "--width", type=int, default=8192, help="largest of the first panel (default 8192)"
    )
    parser.add_argument(
        "--points", type=int, default=1500, help="samples of the one-step experiment (default 1500)"
    )
    options = parser.parse_args(arguments)
    small = options.small
    if small:
        options.width, options.points = 512, 300
    widths = [options.width // 4**i for i in ((1, 0) if small else (3, 2, 1, 0))]
    scales, sigmas = (
        ((1.0, 8.0), (0.5, 1.0))
        if small
        else ((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0))
    )
    sizes = tuple(np.geomspace(0.1, 10, 3 if small else 7).tolist())
    with jax.enable_x64(True):  # distances of 1e-4 between functions are measured
        curves = departures(widths, scales, sigmas, 1 if small else 3)
        curves += one_steps(*((12, 64) if small else (32, 384)), options.points, sizes)
        curves += noises(100 if small else 400, (0.1, 0.6) if small else (0.1, 0.2, 0.4, 0.8))
        curves += promises((50, 100, 200) if small else (50, 100, 200, 400, 800), 0.1)
    console = Console()
    console.print(table(curves))
    picture(curves, options.output)
    console.print(f"picture: {options.output.name}")
    return curves


if __name__ == "__main__":
    main()
