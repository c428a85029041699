"""Run the fuzzer: ``PYTHONPATH=. python tests/fuzz/run.py --cases 50000 --seed 0 [--package ntk]
[--seconds 600] [--slow]``.

Prints a table of functions × cases × findings, the slowest functions, and the findings, one of each
kind in full. A case is (seed, index): ``--start`` goes on where another run stopped, ``--only
INDEX`` repeats one.
"""

import argparse
import collections
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

jax.config.update("jax_traceback_filtering", "off")
jax.config.update("jax_disable_most_optimizations", True)

import fuzz.targets  # noqa: E402, F401  registers every target
from fuzz.cases import TARGETS, Finding, make_case, timed  # noqa: E402

CACHE_CASES = 5000
"""Cases after which compiled programs are let go."""


def main() -> int:
    """Run the cases that the command line asks for, and return 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument(
        "--package",
        default="",
        help="targets whose name starts so; several with commas",
    )
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument(
        "--slow", action="store_true", help="valid calls of what compiles for long, too"
    )
    parser.add_argument("--wrong", type=float, default=0.65, help="the share of wrong calls")
    parser.add_argument(
        "--few", action="store_true", help="one precision and shape for each function"
    )
    parser.add_argument(
        "--each", type=int, default=3, help="findings shown for each function and kind"
    )
    parser.add_argument("--write", help="a file for the findings")
    options = parser.parse_args()
    names = [name for name in sorted(TARGETS) if name.startswith(tuple(options.package.split(",")))]
    targets = [TARGETS[name] for name in names]
    indices = (
        [options.only]
        if options.only is not None
        else range(options.start, options.start + options.cases)
    )
    counts = collections.Counter[str]()
    seconds: dict[str, float] = collections.defaultdict(float)
    findings: list[Finding] = []
    end = time.monotonic() + options.seconds
    index = options.start
    for index in indices:
        case = make_case(targets, options.seed, index, options.slow, options.wrong, options.few)
        finding, elapsed = timed(case)
        counts[case.target.name] += 1
        seconds[case.target.name] += elapsed
        if finding:
            findings.append(finding)
        if (index + 1) % CACHE_CASES == 0:
            jax.clear_caches()
        if time.monotonic() > end:
            break
    print(
        f"{sum(counts.values())} cases, seed {options.seed}, up to index {index}, {sum(seconds.values()):.0f} s"
    )
    _print_table(counts, findings, seconds)
    _print_findings(findings, options.each)
    if options.write:
        Path(options.write).write_text(
            "\n".join(_lines(findings, options.each)) + "\n", encoding="utf-8"
        )
    return bool(findings)


def _print_table(
    counts: collections.Counter[str], findings: list[Finding], seconds: dict[str, float]
) -> None:
    by_kind = collections.Counter((finding.target, finding.kind) for finding in findings)
    print(f"{'function':58} {'cases':>6} {'found':>6} {'s':>7}")
    for name in sorted(counts):
        kinds = {kind: count for (target, kind), count in sorted(by_kind.items()) if target == name}
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(f"{name:58} {counts[name]:6} {sum(kinds.values()):6} {seconds[name]:7.1f}  {words}")
    total = collections.Counter(finding.kind for finding in findings)
    print(f"{len(findings)} findings: {dict(total)}")
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:8]
    print("slowest:", ", ".join(f"{name} {seconds[name]:.1f} s" for name in slowest))


def _print_findings(findings: list[Finding], each: int) -> None:
    for line in _lines(findings, each):
        print(line)


def _lines(findings: list[Finding], each: int) -> list[str]:
    groups: dict[tuple[str, str], dict[str, Finding]] = collections.defaultdict(dict)
    for finding in findings:
        groups[finding.kind, finding.target].setdefault(finding.text.split("→")[0], finding)
    lines = []
    for (kind, name), distinct in sorted(
        groups.items(), key=lambda item: (item[0][0], -len(item[1]))
    ):
        lines.append(f"{kind}: {name} ({len(distinct)} different)")
        lines += [
            f"    #{finding.index} {finding.text}" for finding in list(distinct.values())[:each]
        ]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
