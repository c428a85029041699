"""The ledger as a table: for the terminal, with rich or without, and as Markdown."""

import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from softntk.theory._ledger.run import Row

PATH = Path(__file__).parent.with_name("LEDGER.md")

_HEADINGS = ("reference", "statement", "held", "tightness, median", "worst", "error", "source")

_INTRODUCTION = """\
# What the papers state, measured

{rows} statements (definitions, lemmas, theorems) of [G] arXiv 2405.03251 and [S] arXiv 2309.13482, of [D] 2304.10411 and
[H] 2305.00660 where [S] builds on them, and bounds of ours, in float64 on {instances} random instances. An instance is a number
that a statement promises and the number it is about, found by NumPy or dense automatic differentiation; where a premise is
not met (weights outside the event of a lemma, say) there is none. Tightness is what is promised over what was seen: 1 is
exact, less than 1 a failure, {none} where all was negative or nothing was seen; definitions and formulas have the largest
relative error instead. `softntk` computes the bounds.

The papers' full text was not at hand. {printed} rows are "printed": an abstract, or another public page about the paper,
shows them in this form. {remembered} are "as remembered": constants, exponents and conditions were written from memory.
{ours} are "ours": bounds of softntk, and steps of the papers' proofs with constants that were derived here. What was found
are the numbers beside them; a remembered row that fails may be a fault of memory and not of the paper. Where a proof needs
a width or a number of steps that nobody can run, the statement says what was scaled. What Ω hides is 1.

{failing} statements fail. Below the table are their counterexamples, the smallest that cutting axes, halving numbers and
rounding found; "a > b" is what was seen against what is promised. Most come from u = e^z + z, whose α may be small or negative.

Made by `python -m softntk.theory --write`.

"""


def cells(row: Row) -> tuple[str, ...]:
    """A line, in the order of the headings."""
    median, worst = ("", "") if row.tightness is None else map(_number, row.tightness)
    error = "" if row.error is None else _number(row.error)
    return (
        row.reference,
        row.statement,
        f"{row.held} of {row.instances}",
        median,
        worst,
        error,
        row.source,
    )


def markdown(rows: Sequence[Row]) -> str:
    """LEDGER.md."""
    failing = [row for row in rows if row.counterexample is not None]
    sources = Counter(row.source for row in rows)
    lines = [
        _INTRODUCTION.format(
            rows=len(rows),
            instances=f"{sum(row.instances for row in rows):,}",
            failing=len(failing),
            none="–",
            printed=sources["printed"],
            remembered=sources["as remembered"],
            ours=sources["ours"],
        )
        + _line(_HEADINGS),
        _line(["---"] * len(_HEADINGS)),
        *(_line(cells(row)) for row in rows),
        "",
        "## Counterexamples",
        "",
        *(f"- **{row.reference}** ({row.statement}): {row.counterexample}" for row in failing),
    ]
    return "\n".join(lines) + "\n"


def on_terminal() -> bool:
    """Whether there is a terminal, and rich to draw on it."""
    return importlib.util.find_spec("rich") is not None and sys.stdout.isatty()


def show(rows: Sequence[Row]) -> None:
    """Print the table, with rich on a terminal if it is there."""
    if on_terminal():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for heading in _HEADINGS:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(
                *map(escape, cells(row)), style=None if row.held == row.instances else "red"
            )
        Console().print(table)
    else:
        for row in rows:
            reference, statement, held, median, worst, error, _ = cells(row)
            numbers = f"error {error}" if error else f"tightness {median} (worst {worst})"
            print(f"{reference:<45} {held:>12}  {numbers:<36} {statement}")
    for row in rows:
        if row.counterexample is not None:
            print(f"{row.reference} fails: {row.counterexample}")
    print(
        f"{sum(row.held == row.instances for row in rows)} of {len(rows)} statements held on every instance."
    )


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
