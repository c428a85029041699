"""What the examples share: the options of their command lines, colours, figures."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import softntk as sn

# Okabe and Ito (2008): colours that are told apart by colour-blind readers.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
FAMILY_COLOURS = {"softmax": BLUE, "relu": ORANGE, "exp": GREEN}
FAMILY_MARKERS = {"softmax": "o", "relu": "s", "exp": "^"}


class _SwitchCacheOn(argparse.Action):
    """An option without a value that keeps compiled programs in the user's cache folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, sn.compilation_cache())


def make_parser(script: str, description: str | None, small: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every example has: where to, how large, what is kept.

    Args:
        script: ``__file__`` of the example; the picture goes beside it.
        description: its docstring.
        small: what a small run does, for ``--help``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    picture = Path(script).with_suffix(".png")
    parser.add_argument("--output", type=Path, default=picture, help="where the picture goes")
    parser.add_argument("--small", action="store_true", help=small)
    kept = "keep compiled programs for the next run, in the user's cache folder"
    parser.add_argument("--cache", action=_SwitchCacheOn, nargs=0, help=kept)
    return parser


def make_figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its panels, in the style of the gallery; sizes in inches."""
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Save a figure, at the resolution of the gallery unless told otherwise, and close it."""
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
