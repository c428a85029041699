"""Draw small faults in the numerical code, one at a time, and see whether the tests notice them.

    uv run --with pytest-cov tests/mutants.py map                  # once: which test runs which line (as long as the suite)
    uv run tests/mutants.py run --count 300 --seed 1 --jobs 2      # minutes to an hour; goes on where it was stopped
    uv run tests/mutants.py show --count 300 --seed 1              # the table, and the faults that nothing noticed

A fault changes one operator, comparison, constant, sign, index or term of the code; docstrings,
annotations, messages and the arguments of errors are left alone. It is *killed* if a test fails
that runs its line (or takes five times its time): those of its subject first, of these the cheapest,
then those beside them. Slow tests are in no map: what only they run is said to survive. Faults that
change nothing that can be observed stand in mutants_equivalent.txt with their reason.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import queue
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mutants_faults import Mutant, all_mutants
from mutants_map import ROOT, CoverageMap, make_map

CACHE = ROOT / "build" / "mutants"
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
TIMEOUT_FACTOR = 5.0


def equivalent() -> dict[str, str]:
    """Return the faults that change nothing, and why: lines "label | reason"."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines() if EQUIVALENT.exists() else []
    return dict(line.rsplit(" | ", 1) for line in lines if " | " in line)


def draw(count: int, seed: int, under: str = "") -> list[Mutant]:
    """Return so many faults, of different lines, drawn evenly from all (or from those of one
    folder).
    """
    pool = [mutant for mutant in all_mutants() if mutant.path.startswith(f"softntk/{under}")]
    random.Random(seed).shuffle(pool)
    chosen, lines = [], set()
    for mutant in pool:
        if (mutant.path, mutant.line) not in lines:
            lines.add((mutant.path, mutant.line))
            chosen.append(mutant)
    return chosen[:count]


# --- running
# ------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, tests: list[str], seconds: float, folder: Path) -> str:
    """Return "killed", "survived" or "untested", from a copy of the tree into which the fault is
    put for as long.
    """
    if not tests:
        return "untested"
    target, original = folder / mutant.path, ROOT / mutant.path
    source = original.read_bytes()
    target.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    process = FORKS.Process(target=_run_tests, args=(str(folder), tests))
    try:
        process.start()
        process.join(60 + TIMEOUT_FACTOR * seconds)
        if process.is_alive():
            return "killed"
    finally:
        process.kill()
        process.join()
        shutil.copy2(original, target)
    if process.exitcode == 0:
        return "survived"
    # A test failed, the package can no longer be imported (4: by conftest.py), or the interpreter
    # died.
    died = process.exitcode is None or process.exitcode < 0
    return "killed" if died or process.exitcode in (1, 2, 4) else f"no verdict ({process.exitcode})"


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["jax", "equinox", "lineax", "optax", "flax", "scipy.stats", "pytest", "jaxtyping", "beartype"]
)
"""What every run imports, once for all."""


def _run_tests(folder: str, tests: list[str]) -> None:
    import pytest

    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False  # the copies stay, and so do their compiled modules
    output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # What is imported already is not rewritten, says pytest.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    os._exit(
        pytest.main(
            [
                "-q",
                "-x",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                "-m",
                "slow or not slow",
                *quiet,
                *tests,
            ]
        )
    )


def make_copy(job: int) -> Path:
    """Return a copy of the tree, for the faults of one job."""
    folder = Path(tempfile.mkdtemp(prefix=f"mutants{job}_"))
    for name in ("softntk", "tests", "examples", "benchmarks"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def read_verdicts(seed: int) -> tuple[Path, dict[str, str]]:
    """Return the file of the verdicts of a seed, and what it holds."""
    file = CACHE / f"verdicts_{seed}.json"
    return file, json.loads(file.read_text()) if file.exists() else {}


def run(mutants: list[Mutant], seed: int, jobs: int, again: bool) -> None:
    """Judge the faults that were not judged before; each verdict is written at once."""
    known = CoverageMap(CACHE)
    file, verdicts = read_verdicts(seed)
    done = {label for label, verdict in verdicts.items() if verdict == "killed" or not again}
    todo = [
        mutant
        for mutant in mutants
        if mutant.label not in done and mutant.label not in equivalent()
    ]
    folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for job in range(jobs):
        folders.put(make_copy(job))
    nothing = Mutant("softntk/__init__.py", 1, 0, 0, "", "no fault")
    folder = folders.get()
    verdict = judge(nothing, ["tests/_linalg/test_norms.py"], 10.0, folder)
    folders.put(folder)
    if verdict != "survived":
        raise RuntimeError(f"the tests fail without a fault: {verdict}")

    def task(mutant: Mutant) -> tuple[Mutant, str]:
        tests = known.tests_of(mutant.path, mutant.line)
        folder = folders.get()
        try:
            return mutant, judge(mutant, tests, sum(map(known.seconds_of, tests)), folder)
        finally:
            folders.put(folder)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for mutant, verdict in pool.map(task, todo):
            verdicts[mutant.label] = verdict
            file.write_text(json.dumps(verdicts, indent=1, ensure_ascii=False))
            print(f"{verdict:9} line {mutant.line}: {mutant.label}", flush=True)


def show(mutants: list[Mutant], seed: int) -> None:
    """Print the table of verdicts and the faults that survived."""
    _, verdicts = read_verdicts(seed)
    reasons = equivalent()
    verdicts |= dict.fromkeys(reasons, "equivalent")
    labels = [mutant.label for mutant in mutants if mutant.label in verdicts]
    counts = Counter(verdicts[label] for label in labels)
    print(
        dict(counts),
        f"killed {counts['killed']} of {len(labels) - counts['equivalent']} that are not equivalent",
    )
    for label in labels:
        if verdicts[label] != "killed":
            print(f"{verdicts[label]:9} {label}  {reasons.get(label, '')}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("map", "run", "show"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--under", default="", help="a folder or file of softntk/, all of it by default"
    )
    parser.add_argument(
        "--at",
        nargs="*",
        help="every fault of these places, as in ntk/_depth.py:210, in place of a sample",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="judge again what survived, with what the map knows now",
    )
    options = parser.parse_args()
    if options.command == "map":
        make_map(CACHE)
        return
    if options.at:
        mutants = [
            mutant
            for mutant in all_mutants()
            if f"{mutant.path}:{mutant.line}"[len("softntk/") :] in options.at
        ]
    else:
        mutants = draw(options.count, options.seed, options.under)
    if options.command == "run":
        run(mutants, options.seed, options.jobs, options.again)
    else:
        show(mutants, options.seed)


if __name__ == "__main__":
    main()
