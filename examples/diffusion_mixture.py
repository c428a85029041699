"""Scores of a 2-D mixture, learnt by networks, by their kernels and by the dynamics between them;
then samples.

Eight modes of standard deviation 0.15 on a circle of radius 2, whose score is known exactly at
every time. Two-layer softmax, res_softmax, ReLU and exp networks and kernel regression with the
infinite-width kernels, all from the same data; the error of the score over t, samples, and what
early stopping is worth: the error on both sides of the stopping time at one noise level, with the
times that hold-out, the local Rademacher rule and the least worst risk choose. The loss that is
trained, on noisy labels, differs from the error against the truth by a constant that is the same
for all estimators (what no one can predict): both are measured. Last the coupling of the paper: how
far the network, its linearisation and the kernel are from each other after the same gradient
descent, over the width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import BLUE, GREEN, ORANGE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table

from softntk import diffusion

COLOURS = {
    "softmax": BLUE,
    "res_softmax": "#56B4E9",
    "relu": ORANGE,
    "exp": GREEN,
}
SDE = diffusion.vp_sde()
RULES = {"holdout": ORANGE, "rademacher": BLUE, "least_risk": GREEN}
STOPPED_AT = 0.15  # the time t at which early stopping is looked at
SHOWN_AT = 0.2  # the time of the score fields
GRID = (
    np.stack(np.meshgrid(np.linspace(-2.8, 2.8, 15), np.linspace(-2.8, 2.8, 15)), -1)
    .reshape(-1, 2)
    .astype(np.float32)
)


def ring(d: int = 2) -> diffusion.GaussianMixture:
    """The mixture; in more dimensions the circle lies in the plane of the first two."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.zeros((8, d), np.float32)
    means[:, :2] = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return diffusion.GaussianMixture(
        jnp.full(8, 1 / 8), jnp.asarray(means), jnp.tile(0.15**2 * jnp.eye(d), (8, 1, 1))
    )


@dataclass(frozen=True)
class Estimate:
    """One estimator."""

    name: str
    family: str
    seconds: float
    errors: np.ndarray
    """Relative score error at each time."""
    samples: np.ndarray
    distance: float
    """Sliced Wasserstein distance of the samples to draws of the mixture, relative to that of other
    draws.
    """
    field: np.ndarray
    """The score on ``GRID`` at ``SHOWN_AT``."""
    losses: tuple[float, float]
    """Mean square distance of the denoiser to the data and to the exact denoiser, at t = 0.2."""


@dataclass(frozen=True)
class Stopping:
    """The error along gradient flow at one noise level."""

    times: np.ndarray
    errors: np.ndarray
    chosen: dict[str, tuple[float, float]]
    """(time, error) of each rule."""


@dataclass(frozen=True)
class Coupling:
    """Distances relative to the kernel estimator; [widths]."""

    widths: np.ndarray
    distances: dict[str, np.ndarray]


def losses(denoiser: diffusion.Denoiser, mixture: diffusion.GaussianMixture) -> tuple[float, float]:
    """E|f − X₀|² and E|f − E[X₀|X_t]|² at t = 0.2."""
    x0 = mixture.sample(jax.random.key(7), 100_000)
    x = SDE.perturb(jax.random.key(8), 0.2, x0)
    found = denoiser(0.2, x)
    square = lambda u: float(jnp.mean(jnp.sum(u**2, axis=1)))
    return square(found - x0), square(found - mixture.denoise(SDE, 0.2, x))


def estimate(
    kind: str,
    family: str,
    x0: jax.Array,
    times: np.ndarray,
    draws: int,
    steps: int,
    mixture: diffusion.GaussianMixture,
) -> Estimate:
    """Fit, measure, sample."""
    start = time.perf_counter()
    key = jax.random.key(1)
    if kind == "network":
        denoiser = diffusion.fit_denoiser(key, SDE, x0, family=family, steps=steps)
    else:
        denoiser = diffusion.kernel_denoiser(key, SDE, x0, family=family)
    seconds = time.perf_counter() - start
    score = diffusion.score(SDE, denoiser)
    errors = diffusion.metrics.score_error(
        jax.random.key(2), SDE, jax.jit(score), mixture, jnp.asarray(times, jnp.float32)
    )
    samples = diffusion.sample(jax.random.key(3), SDE, score, (draws, x0.shape[1]))
    true, other = (mixture.sample(jax.random.key(seed), draws) for seed in (4, 5))
    distances = [
        float(diffusion.metrics.sliced_wasserstein(jax.random.key(6), x, true).value)
        for x in (samples, other)
    ]
    relative, ratio = np.asarray(errors.relative.value), distances[0] / distances[1]
    field = np.asarray(score(SHOWN_AT, GRID))
    return Estimate(
        kind,
        family,
        seconds,
        relative,
        np.asarray(samples),
        ratio,
        field,
        losses(denoiser, mixture),
    )


def stopping(x0: jax.Array, mixture: diffusion.GaussianMixture, points: int) -> Stopping:
    """One noise draw a data point, so that there is something to overfit."""
    at = jnp.asarray([STOPPED_AT], jnp.float32)

    def fit(rule: str | float) -> tuple[float, float]:
        denoiser = diffusion.kernel_denoiser(
            jax.random.key(1),
            SDE,
            x0,
            times=[STOPPED_AT],
            draws=1,
            sigma=4.0,
            landmarks=len(x0),
            stopping=rule,
        )
        error = diffusion.metrics.score_error(
            jax.random.key(2), SDE, diffusion.score(SDE, denoiser), mixture, at
        )
        return float(denoiser.stats["time"][0]), float(error.relative.value[0])

    chosen = {rule: fit(rule) for rule in RULES}
    times = chosen["holdout"][0] * 10.0 ** np.linspace(-3, 4, points)
    return Stopping(times, np.array([fit(float(t))[1] for t in times]), chosen)


def coupling(x0: jax.Array, widths: Sequence[int], steps: int) -> Coupling:
    """The same samples, first weights and gradient descent for all three."""
    at, key, distances = 0.2, jax.random.key(1), []
    x = SDE.perturb(jax.random.key(2), at, ring().sample(jax.random.key(3), 2000))
    for width in widths:
        linearised = diffusion.linearised_denoiser(
            key, SDE, x0, times=[at], width=width, sigma=1.0, steps=steps
        )
        rate = linearised.stats["learning_rate"]
        network = diffusion.fit_denoiser(
            key, SDE, x0, times=[at], width=width, sigma=1.0, steps=steps, batch_size=None, ema=0.0, tx=optax.sgd(rate),
            train_readout=False,
        )  # fmt: skip
        kernel = diffusion.kernel_denoiser(
            key, SDE, x0, times=[at], sigma=1.0, draws=1, landmarks=len(x0), stopping=rate * steps
        )
        f, g, k = (np.asarray(denoiser(at, x)) for denoiser in (network, linearised, kernel))
        distances.append(
            [np.linalg.norm(a - b) / np.linalg.norm(k) for a, b in ((f, g), (g, k), (f, k))]
        )
    names = ("network – linearised", "linearised – kernel", "network – kernel")
    return Coupling(np.asarray(widths), dict(zip(names, np.array(distances).T, strict=True)))


def table(estimates: Sequence[Estimate]) -> Table:
    """One row an estimator."""
    out = Table(
        title="relative score error (squared norms): mean over t, at t = 0.05; sliced Wasserstein distance of\n"
        "samples over that of true draws; denoising loss at t = 0.2, and without the error of the denoiser"
    )
    for name in (
        "estimator",
        "network",
        "fit (s)",
        "mean",
        "at 0.05",
        "samples",
        "loss",
        "without",
    ):
        out.add_column(name, justify="left" if name in ("estimator", "network") else "right")
    for e in estimates:
        numbers = (e.errors.mean(), e.errors[0], e.distance, e.losses[0], e.losses[0] - e.losses[1])
        out.add_row(e.name, e.family, f"{e.seconds:.0f}", *(f"{number:.4f}" for number in numbers))
    return out


def picture(
    estimates: Sequence[Estimate],
    times: np.ndarray,
    stopped: Stopping,
    coupled: Coupling,
    path: Path,
) -> None:
    """Score fields over samples above; errors, stopping and coupling below."""
    figure, panels = make_figure(2, 3, 14, 9)
    shown = [e for e in estimates if e.family == "softmax"]
    mixture = ring()
    true = np.asarray(mixture.sample(jax.random.key(4), len(shown[0].samples)))
    exact = np.asarray(mixture.score(SDE, SHOWN_AT, GRID))
    rows = [(f"draws, exact score at t = {SHOWN_AT}", true, exact)]
    rows += [(f"the same of the softmax {e.name}", e.samples, e.field) for e in shown]
    for panel, (name, points, field) in zip(panels[0], rows, strict=True):
        panel.scatter(
            *points[:3000].T,
            s=2,
            color="0.5" if points is true else "#56B4E9",
            alpha=0.4,
            linewidths=0,
        )
        panel.quiver(*GRID.T, *field.T, angles="xy", scale=80, width=0.003, color="0.1")
        panel.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="x₁", ylabel="x₂")
    errors, stop, couple = panels[1]
    for e in estimates:
        errors.plot(
            times,
            e.errors,
            color=COLOURS[e.family],
            ls="-" if e.name == "network" else "--",
            label=f"{e.family} {e.name}",
        )
    errors.axhline(0.05, color="0.6", lw=1)
    errors.set(
        yscale="log",
        ylim=(1e-5, 1),
        xlabel="time t",
        ylabel="relative score error",
        title="networks (—) and kernels (- -)",
    )
    errors.legend(fontsize=8, ncols=2)
    stop.plot(stopped.times, stopped.errors, color="0.3")
    for (rule, (t, error)), marker in zip(stopped.chosen.items(), "osD", strict=True):
        stop.plot(t, error, marker, ms=9, color=RULES[rule], label=rule.replace("_", " "))
    stop.set(
        xscale="log",
        yscale="log",
        xlabel="training time (learning rate × steps)",
        ylabel="relative score error",
    )
    stop.set_title(f"early stopping, t = {STOPPED_AT}, one draw a point")
    stop.legend()
    for (name, values), colour in zip(
        coupled.distances.items(), (BLUE, ORANGE, GREEN), strict=True
    ):
        slope = np.polyfit(np.log(coupled.widths), np.log(values), 1)[0]
        couple.loglog(
            coupled.widths, values, "o-", color=colour, label=f"{name}: slope {slope:.2f}"
        )
    couple.axhline(0.05, color="0.6", lw=1)
    couple.set(
        xlabel="width m", ylabel="relative distance", title="the same training, three estimators"
    )
    couple.legend(fontsize=9)
    save_figure(figure, path)


def dimensions(
    console: Console, counts: Sequence[int], dims: Sequence[int]
) -> dict[int, np.ndarray]:
    """The kernel estimator's error against n, in more dimensions, averaged over t."""
    times = jnp.asarray([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    out = Table(title="kernel estimator: relative score error against the number of data points")
    for name in ("dimension", *(f"n = {n}" for n in counts), "slope"):
        out.add_column(name, justify="right")
    found = {}
    for d in dims:
        mixture, row = ring(d), []
        for n in counts:
            denoiser = diffusion.kernel_denoiser(
                jax.random.key(1), SDE, mixture.sample(jax.random.key(n), n)
            )
            score = jax.jit(diffusion.score(SDE, denoiser))
            error = diffusion.metrics.score_error(jax.random.key(2), SDE, score, mixture, times)
            row.append(float(error.relative.value.mean()))
        found[d] = np.array(row)
        slope = np.polyfit(np.log(counts), np.log(row), 1)[0]
        out.add_row(str(d), *(f"{value:.4f}" for value in row), f"{slope:.2f}")
    console.print(out)
    return found


def main(
    arguments: Sequence[str] | None = None,
) -> tuple[list[Estimate], Stopping, Coupling, dict[int, np.ndarray]]:
    """Run everything."""
    parser = make_parser(__file__, __doc__, small="seconds instead of minutes")
    options = parser.parse_args(arguments)
    small, console = options.small, Console()
    mixture = ring()
    x0 = mixture.sample(jax.random.key(0), 512 if small else 4096)
    times = np.linspace(0.05, 1, 4 if small else 20)
    kinds = [
        (kind, family)
        for family in (("softmax",) if small else COLOURS)
        for kind in ("network", "kernel")
    ]
    estimates = [
        estimate(
            kind, family, x0, times, 1000 if small else 10000, 300 if small else 16000, mixture
        )
        for kind, family in kinds
    ]
    console.print(table(estimates))
    stopped = stopping(x0[: 256 if small else 1024], mixture, 5 if small else 29)
    best, last = stopped.errors.min(), stopped.errors[-1]
    for rule, (_, error) in stopped.chosen.items():
        console.print(
            f"stopping by {rule}: error {error:.4f}, {error / best:.2f} times the best one ({last:.4f} at last)"
        )
    coupled = coupling(
        x0[: 64 if small else 512],
        (256, 1024) if small else (256, 1024, 4096, 16384),
        50 if small else 300,
    )
    for name, values in coupled.distances.items():
        console.print(
            f"{name}: {', '.join(f'{v:.4f}' for v in values)} at widths {', '.join(map(str, coupled.widths))}"
        )
    found = dimensions(
        console, (256, 512) if small else (256, 1024, 4096), (2,) if small else (2, 8, 32)
    )
    picture(estimates, times, stopped, coupled, options.output)
    return estimates, stopped, coupled, found


if __name__ == "__main__":
    main()
