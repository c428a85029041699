"""Command line of the ledger: ``python -m softntk.theory [--quick | --write] [--match TEXT]``."""

import argparse

from softntk.theory._ledger import table
from softntk.theory._ledger.run import ledger


def main(arguments: list[str] | None = None) -> None:
    """Run the ledger and print it; ``--write`` stores a full run in LEDGER.md."""
    parser = argparse.ArgumentParser(
        prog="python -m softntk.theory", description="Every statement of the papers, measured."
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute, not several")
    parser.add_argument("--write", action="store_true", help="fill LEDGER.md; full runs only")
    parser.add_argument(
        "--match",
        default="",
        metavar="TEXT",
        help="only statements with this text in their reference",
    )
    options = parser.parse_args(arguments)
    if options.write and (options.quick or options.match):
        parser.error("--write is for full runs: leave out --quick and --match")
    rows = ledger(options.quick, match=options.match, progress=table.on_terminal())
    table.show(rows)
    if options.write:
        table.LEDGER_PATH.write_text(table.markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
