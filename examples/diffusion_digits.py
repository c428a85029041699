"""Digits drawn by a two-layer softmax network that learnt the score of scikit-learn's 8 × 8 digits.

The denoiser is fitted to 1,400 digits; its samples are compared with the other 397, beside those of
a Gaussian with the same covariance and of a kernel density estimate whose bandwidth has the largest
cross-validated likelihood. Prints the energy distance, how many a linear classifier (trained on
real digits) is sure of, the median distance to the nearest training digit and how many lie as near
to one as the nearest twentieth of the digits not seen: a sampler that copies scores well on the
first two. Saves generated digits beside real ones and beside their nearest neighbours.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _common import BLUE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from softntk import diffusion

SDE = diffusion.vp_sde()
MIN_TIME = 3e-3  # noise of deviation 0.03, where a step of grey is 0.125
SURE = 0.8


def digits(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of n digits for training pixels, in [−1, 1], and labels; pixels of the others."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = (pixels[order] / 8 - 1).astype(np.float32), labels[order]
    return pixels[:n], labels[:n], pixels[1400:]


@dataclass(frozen=True)
class Report:
    """A source of digits, against digits that none of them saw."""

    name: str
    samples: np.ndarray
    energy: float
    """Energy distance; of the real digits to those for training."""
    error: float
    """Half of its 95 % interval."""
    sure: float
    """Share of the samples that the classifier gives a class with more than SURE."""
    nearest: float
    """Median distance to the nearest training digit."""
    near: float
    """Share of the samples as near to one as the nearest twentieth of the digits not seen."""


def report(
    name: str,
    samples: np.ndarray,
    train: np.ndarray,
    unseen: np.ndarray,
    classifier: LogisticRegression,
) -> Report:
    """Measure."""
    energy = diffusion.metrics.energy_distance(
        jnp.asarray(samples), jnp.asarray(train if samples is unseen else unseen)
    )
    sure = np.mean(classifier.predict_proba(samples).max(1) > SURE)
    copies = diffusion.memorisation(samples, train, unseen)
    interval = float(energy.upper - energy.lower) / 2
    return Report(
        name,
        samples,
        float(energy),
        interval,
        float(sure),
        float(copies.distance),
        float(copies.fraction),
    )


def show(reports: Sequence[Report]) -> Table:
    """One row a source."""
    out = Table(title="against 397 digits that were not seen")
    for name in (
        "digits",
        "energy distance",
        f"classified with > {SURE:.0%}",
        "distance to training digits",
        "very near to one",
    ):
        out.add_column(name, justify="left" if name == "digits" else "right")
    for r in reports:
        out.add_row(
            r.name,
            f"{r.energy:.4f} ± {r.error:.4f}",
            f"{r.sure:.1%}",
            f"{r.nearest:.2f}",
            f"{r.near:.1%}",
        )
    return out


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images of 8 × 8 as one, with a line between."""
    rows = len(images) // columns
    padded = np.pad(
        images.reshape(rows, columns, 8, 8),
        ((0, 0), (0, 0), (0, 1), (0, 1)),
        constant_values=np.nan,
    )
    return padded.transpose(0, 2, 1, 3).reshape(rows * 9, columns * 9)[:-1, :-1]


def picture(reports: Sequence[Report], train: np.ndarray, path: Path) -> None:
    """Real, generated, their nearest neighbours, and the two others."""
    figure, panels = make_figure(1, 5, 16, 3.9)
    by_name = {r.name: r.samples for r in reports}
    drawn = by_name["softmax network"][:64]
    shown = {
        "real, not seen": by_name["real"][:64],
        "softmax network": drawn,
        "their nearest training digits": train[
            np.asarray(diffusion.nearest_training_point(drawn, train).index)
        ],
        "Gaussian": by_name["Gaussian"][:64],
        "kernel density": by_name["kernel density"][:64],
    }
    colours = plt.get_cmap("gray_r").with_extremes(bad=BLUE)
    for panel, (name, images) in zip(panels, shown.items(), strict=True):
        panel.imshow(grid(images, 8), cmap=colours, vmin=-1, vmax=1)
        panel.set(title=name, xticks=[], yticks=[])
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Run everything."""
    parser = make_parser(__file__, __doc__, small="seconds instead of minutes")
    options = parser.parse_args(arguments)
    small, console = options.small, Console()
    train, labels, unseen = digits(400 if small else 1400)
    classifier = LogisticRegression(max_iter=3000).fit(train, labels)
    x0, key = jnp.asarray(train), jax.random.key(1)
    start = time.perf_counter()
    denoiser = diffusion.fit_denoiser(
        key,
        SDE,
        x0,
        width=64 if small else 1024,
        steps=300 if small else 30000,
        min_time=MIN_TIME,
        progress=not small,
    )
    fitted = time.perf_counter()
    draws = (200 if small else 1000, 64)
    moments = (jnp.mean(x0, axis=0), jnp.cov(x0.T))
    drawn = diffusion.sample(
        jax.random.key(3), SDE, diffusion.score(SDE, denoiser), draws, min_time=MIN_TIME, moments=moments,
        steps=100, corrector_steps=2, corrector_snr=0.3,
    )  # fmt: skip
    console.print(
        f"fit {fitted - start:.0f} s, {draws[0]} samples {time.perf_counter() - fitted:.1f} s, compiling included"
    )
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.1, 0.6, 13)}, cv=5).fit(
        train
    )
    console.print(
        f"bandwidth of the kernel density estimate: {search.best_params_['bandwidth']:.2f}"
    )
    sources = {
        "real": unseen,
        "softmax network": np.asarray(drawn),
        "Gaussian": np.random.default_rng(1)
        .multivariate_normal(train.mean(0), np.cov(train.T), draws[0])
        .astype(np.float32),
        "kernel density": search.best_estimator_.sample(draws[0], random_state=1).astype(
            np.float32
        ),
    }
    reports = [
        report(name, samples, train, unseen, classifier) for name, samples in sources.items()
    ]
    console.print(show(reports))
    picture(reports, train, options.output)
    return reports


if __name__ == "__main__":
    main()
