"""What width does: concentration of the kernel, stability of λ_min, linear convergence, for
softmax, ReLU and exp side by side.

Twenty points on the unit sphere of R^16, targets of norm 1, networks of many widths and seeds,
compared at equal λ_min: every output is scaled so that its infinite-width kernel H* has λ_min = 1.
Gradient descent runs with η = 1/λ_max(H*) for as long as the theorem's factor 1 − ηλ_min/2 on ‖r‖²
needs for 1e-3. Beside the widths at which that succeeds, the smallest one for which
``certify_convergence`` proves convergence before the first step. Slopes are least squares over the
seeds, with 95 % bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import FAMILY_COLOURS, make_figure, make_parser, save_figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import softntk as sn

FAMILIES = ("softmax", "relu", "exp")
GOAL = 1e-3  # of ‖r‖²


@dataclass(frozen=True)
class Report:
    """One family; arrays [widths, seeds] unless said otherwise."""

    family: str
    widths: np.ndarray
    concentration: np.ndarray
    """‖H(0) − H*‖₂, in units of λ_min."""
    drift: np.ndarray
    """‖H(T) − H(0)‖₂, the same."""
    smallest: np.ndarray
    """The least λ_min(H_t) of a few t, the same."""
    squares: np.ndarray
    """‖r_t‖²/‖r_0‖² of the widest networks, [seeds, T]."""
    success: np.ndarray
    promised: float
    """1 − ηλ_min/2."""
    certified: int | None

    def slope(self, name: str) -> tuple[float, float]:
        """Of the logarithm of a quantity over that of the width: mean over seeds and half of the 95
        % band.
        """
        values = np.log(getattr(self, name))
        slopes = [np.polyfit(np.log(self.widths), column, 1)[0] for column in values.T]
        return float(np.mean(slopes)), float(1.96 * np.std(slopes, ddof=1) / len(slopes) ** 0.5)


def study(
    family: str, widths: Sequence[int], seeds: int, x: np.ndarray, y: np.ndarray, certify: bool
) -> Report:
    """Everything about one family."""
    limit = np.asarray(sn.networks.two_layer(family, width=2).kernel_fn(x, None, "ntk"), np.float64)
    values = np.linalg.eigvalsh(limit)
    # the network F/scale has λ_min = 1: F with targets scale·y, and η/scale²
    scale = values[0] ** 0.5
    target, rate = jnp.asarray(scale * y, jnp.float32), 1 / values[-1]
    promised = 1 - values[0] * rate / 2
    steps = int(np.ceil(np.log(GOAL) / np.log(promised)))
    points = jnp.asarray(x, jnp.float32)
    rows: list[Any] = []
    for m in widths:
        net = sn.networks.two_layer(family, width=int(m))

        def run(key: jax.Array, net: sn.networks.Network = net) -> tuple:
            _, start = net.init_fn(key, (-1, x.shape[1]))
            residual = lambda W: net.apply_fn(replace(start, hidden=W), points) - target
            loss = lambda W: 0.5 * jnp.sum(residual(W) ** 2)
            kernel = lambda W: (
                sn.ntk.empirical(net, replace(start, hidden=W), points, outputs="mean") / values[0]
            )

            def step(W: jax.Array, _: None) -> tuple:
                value, grad = jax.value_and_grad(loss)(W)
                return W - rate * grad, 2 * value

            def quarter(W: jax.Array, _: None) -> tuple:
                W, squares = jax.lax.scan(step, W, length=-(-steps // 4))
                return W, (squares, kernel(W))

            first = kernel(start.hidden)
            _, (squares, kernels) = jax.lax.scan(quarter, start.hidden, length=4)
            squares = squares.ravel()[:steps] / squares[0, 0]
            norm = lambda H: jnp.linalg.norm(H, 2)
            smallest = jnp.min(
                jax.vmap(lambda H: jnp.linalg.eigvalsh(H)[0])(
                    jnp.concatenate([first[None], kernels])
                )
            )
            return (
                norm(first - jnp.asarray(limit / values[0], jnp.float32)),
                norm(kernels[-1] - first),
                smallest,
                squares,
            )

        rows.append(
            [
                np.asarray(part)
                for part in jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(int(m)), seeds))
            ]
        )
    concentration, drift, smallest, squares = zip(*rows, strict=True)
    success = np.stack([s[:, -1] <= GOAL for s in squares])
    make = lambda m: sn.networks.two_layer(family, width=m)
    options: dict[str, Any] = {
        "key": jax.random.key(0),
        "smallest": 4096,
        "largest": 2**17,
        "precision": 0.2,
    }
    certified = (
        sn.theory.certified_width(make, x, scale * y, **options).width
        if certify and family != "relu"
        else None
    )
    return Report(
        family=family,
        widths=np.asarray(widths),
        concentration=np.stack(concentration),
        drift=np.stack(drift),
        smallest=np.stack(smallest),
        squares=squares[-1],
        success=success,
        promised=promised,
        certified=certified,
    )


def table(reports: Sequence[Report]) -> Table:
    """One row a family."""
    out = Table(title="at equal λ_min; slopes over the width with 95 % bands")
    names = (
        "network",
        "‖H(0)−H*‖ slope",
        "‖H(T)−H(0)‖ slope",
        "λ_min ≥ ½ from",
        "1−ηλ/2 kept from",
        "rate seen",
        "promised",
        "proved from",
    )
    for name in names:
        out.add_column(name, justify="left" if name == "network" else "right")
    for r in reports:
        slopes = [
            f"{mean:.2f} ± {band:.2f}"
            for mean, band in (r.slope("concentration"), r.slope("drift"))
        ]
        tail = r.squares[:, len(r.squares[0]) // 2 :]
        seen = float(np.median((tail[:, -1] / tail[:, 0]) ** (1 / (tail.shape[1] - 1))))
        cells = [
            _first(r.widths, r.smallest >= 0.5),
            _first(r.widths, r.success),
            f"{seen:.4f}",
            f"{r.promised:.4f}",
        ]
        out.add_row(
            r.family, *slopes, *cells, "no proof" if r.certified is None else str(r.certified)
        )
    return out


def _first(widths: np.ndarray, good: np.ndarray) -> str:
    """The smallest width from which on all seeds are good."""
    all_good = good.all(axis=1)
    bad = np.flatnonzero(~all_good)
    start = 0 if not len(bad) else bad[-1] + 1
    return str(widths[start]) if start < len(widths) else f"> {widths[-1]}"


def picture(reports: Sequence[Report], path: Path) -> None:
    """Concentration and drift, λ_min, loss."""
    figure, panels = make_figure(1, 3, 14, 4.8)
    for r in reports:
        colour = FAMILY_COLOURS[r.family]
        for name, style in (("concentration", "-"), ("drift", "--")):
            _band(panels[0], r.widths, getattr(r, name), colour, style)
        _band(panels[1], r.widths, r.smallest, colour, "-")
        if r.certified is not None:
            panels[1].axvline(r.certified, color=colour, ls=":", lw=2)
        _band(panels[2], np.arange(r.squares.shape[1]), r.squares.T, colour, "-")
        panels[2].plot(r.promised ** np.arange(r.squares.shape[1]), ":", color=colour, lw=2)
    panels[0].set(xscale="log", yscale="log", xlabel="width m", ylabel="in units of λ_min(H*)")
    panels[0].set_title("‖H(0) − H*‖ (solid), ‖H(T) − H(0)‖ (dashed)")
    panels[1].axhline(0.5, color="grey", lw=0.8)
    panels[1].set(
        xscale="log", xlabel="width m", ylabel="least λ_min(H_t) / λ_min(H*)", ylim=(0, 1.1)
    )
    panels[1].set_title("λ_min while training; proved (dotted)")
    panels[2].set(
        yscale="log", xlabel="steps, η = 1/λ_max", ylabel="‖r_t‖²/‖r_0‖², widest networks"
    )
    panels[2].set_title("seen (solid), 1 − ηλ_min/2 (dotted)")
    lines = [
        Line2D([], [], color=FAMILY_COLOURS[r.family], lw=2.2, label=r.family) for r in reports
    ]
    figure.legend(handles=lines, frameon=False, loc="outside lower center", ncols=4)
    save_figure(figure, path)


def _band(axes: Any, x: np.ndarray, values: np.ndarray, colour: str, style: str) -> None:
    """Median over the second axis, and all of it."""
    axes.plot(x, np.median(values, axis=1), style, color=colour, lw=2.2)
    axes.fill_between(x, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, lw=0)


def main(argv: Sequence[str] | None = None) -> list[Report]:
    """Train, measure, print, draw."""
    parser = make_parser(__file__, __doc__, small="few points, narrow networks")
    options = parser.parse_args(argv)
    n, d, seeds, widths = (
        (6, 6, 4, 2 ** np.arange(6, 11)) if options.small else (20, 16, 10, 2 ** np.arange(7, 15))
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 1))
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y)
    reports = [
        study(family, widths.tolist(), seeds, x, y, not options.small) for family in FAMILIES
    ]
    Console(width=150).print(table(reports))
    picture(reports, options.output)
    return reports


if __name__ == "__main__":
    main()
