"""The ledger as a table: for the terminal, with rich or without, and as Markdown."""

import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from softntk.theory._ledger.run import Row

LEDGER_PATH = Path(__file__).parent.with_name("LEDGER.md")

COLUMN_HEADINGS = (
    "reference",
    "statement",
    "held",
    "tightness, median",
    "worst",
    "error",
    "source",
)

NO_NUMBER = "–"
"""Printed where a number is infinite or not known."""

INTRODUCTION = """\
# What the papers state, measured

{rows} statements (definitions, lemmas, theorems) of [G] arXiv 2405.03251 and [S] arXiv 2309.13482,
of [D] 2304.10411 and [H] 2305.00660 where [S] builds on them, and bounds of ours, in float64 on
{instances} random instances. An instance is a number that a statement promises and the number that
it is about, measured by NumPy or dense automatic differentiation. Where a premise is not met
(weights outside the event of a lemma, for example) there is no instance. Tightness is the promised
number over the measured one: 1 is exact, less than 1 a failure, and {no_number} stands where all
measured numbers were zero or negative. Definitions and formulas have the largest relative error
instead. `softntk` computes the bounds.

The papers' full text was not at hand. {printed} rows are "printed": an abstract, or another public
page about the paper, shows them in this form. {remembered} are "as remembered": constants,
exponents and conditions were written from memory. {ours} are "ours": bounds of softntk, and steps
of the papers' proofs with constants that were derived here. What was found are the numbers beside
them; a remembered row that fails may be a fault of memory and not of the paper. Where a proof needs
a width or a number of steps that nobody can run, the statement says what was scaled. Constants that
Ω hides are 1. β is a lower bound of the normaliser α on the ball of radius R, everywhere. The
constant C in the bound B on logits is a choice of ours.

{failing} statements fail. Below the table are their counterexamples, the smallest that cutting
axes, halving numbers and rounding found; "a > b" is the measured number against the promised one.
Most come from u = e^z + z, whose α may be small or negative.

Made by `python -m softntk.theory --write`.

"""


def cells(row: Row) -> tuple[str, ...]:
    """Return the entries of a line, in the order of the headings."""
    median = ""
    worst = ""
    if row.tightness is not None:
        median = _format_number(row.tightness.median)
        worst = _format_number(row.tightness.worst)
    return (
        row.reference,
        row.statement,
        f"{row.held} of {row.instances}",
        median,
        worst,
        "" if row.error is None else _format_number(row.error),
        row.source,
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the text of LEDGER.md."""
    # 1. The introduction with its counts.
    failing_rows = [row for row in rows if row.counterexample is not None]
    source_counts = Counter(row.source for row in rows)
    introduction = INTRODUCTION.format(
        rows=len(rows),
        instances=f"{sum(row.instances for row in rows):,}",
        failing=len(failing_rows),
        no_number=NO_NUMBER,
        printed=source_counts["printed"],
        remembered=source_counts["as remembered"],
        ours=source_counts["ours"],
    )

    # 2. The table, and the counterexamples below it.
    lines = [
        introduction + _markdown_line(COLUMN_HEADINGS),
        _markdown_line(["---"] * len(COLUMN_HEADINGS)),
        *(_markdown_line(cells(row)) for row in rows),
        "",
        "## Counterexamples",
        "",
        *(f"- **{row.reference}** ({row.statement}): {row.counterexample}" for row in failing_rows),
    ]
    return "\n".join(lines) + "\n"


def on_terminal() -> bool:
    """Return whether there is a terminal, and rich to draw on it."""
    return importlib.util.find_spec("rich") is not None and sys.stdout.isatty()


def show(rows: Sequence[Row]) -> None:
    """Print the table: with rich on a terminal, otherwise as plain lines."""
    # 1. The table.
    if on_terminal():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for heading in COLUMN_HEADINGS:
            table.add_column(heading, overflow="fold")
        for row in rows:
            style = None if row.held == row.instances else "red"
            table.add_row(*map(escape, cells(row)), style=style)
        Console().print(table)
    else:
        for row in rows:
            # An equality has an error, a bound has a tightness.
            reference, statement, held, median, worst, error, _ = cells(row)
            numbers = f"error {error}" if error else f"tightness {median} (worst {worst})"
            print(f"{reference:<45} {held:>12}  {numbers:<36} {statement}")

    # 2. Counterexamples, and the count.
    for row in rows:
        if row.counterexample is not None:
            print(f"{row.reference} fails: {row.counterexample}")
    held_count = sum(row.held == row.instances for row in rows)
    print(f"{held_count} of {len(rows)} statements held on every instance.")


def _markdown_line(entries: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    # A bar within an entry would end it.
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _format_number(value: float) -> str:
    """Format to three digits; with an exponent outside of 0.001 … 10,000."""
    if not math.isfinite(value):
        return NO_NUMBER
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
