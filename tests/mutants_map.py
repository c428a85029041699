"""Which test runs which line, for :mod:`mutants`: measured once, and found again in files that have
changed since.
"""

import difflib
import functools
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_TEST_SECONDS = 100.0
"""Of the tests that one fault is run against, as they took when the map was made: longer than the
longest of them.
"""


def make_map(folder: Path) -> None:
    """Run the suite once under coverage, with the test as context, and keep lines × tests,
    durations and sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "coverage"
    environment = {**os.environ, "COVERAGE_FILE": str(data)}
    options = [
        "--cov=softntk",
        "--cov-context=test",
        "--cov-report=",
        "--durations=0",
        "--durations-min=0.005",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-2000:])
    seconds: dict[str, float] = defaultdict(float)
    for line in done.stdout.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[1] in ("call", "setup", "teardown") and words[0].endswith("s"):
            seconds[words[2]] += float(words[0][:-1])
    import coverage  # pyright: ignore[reportMissingImports]  # comes with pytest-cov, for this alone

    measured = coverage.CoverageData(str(data))
    measured.read()
    lines, sources = {}, {}
    for file in measured.measured_files():
        contexts = measured.contexts_by_lineno(file)
        by_line = {
            str(n): sorted({c.split("|")[0] for c in tests if c}) for n, tests in contexts.items()
        }
        name = str(Path(file).relative_to(ROOT))
        lines[name] = {n: tests for n, tests in by_line.items() if tests}
        sources[name] = Path(file).read_text()
    (folder / "map.json").write_text(
        json.dumps({"seconds": seconds, "lines": lines, "sources": sources})
    )


class CoverageMap:
    """The tests of each line."""

    def __init__(self, folder: Path) -> None:
        known = json.loads((folder / "map.json").read_text())
        self.seconds, self.lines, self.sources = known["seconds"], known["lines"], known["sources"]
        self.collected = _collect()

    def seconds_of(self, test: str) -> float:
        """Return how long a test took."""
        return self.seconds.get(test, 0.01)

    def tests_of(self, path: str, line: int) -> list[str]:
        """Return the tests that run a line, and those beside them; the subject's first, and the
        cheapest of these.

        A program that one test has compiled runs in the next without its lines being run again, so
        that those beside a test in its file may run a line of which the map does not say so.
        """
        subject = f"tests/{Path(path).parts[1].removesuffix('.py')}/"
        path, line = self._place_then(path, line)
        lines = self.lines.get(path, {})
        near = [str(number) for number in range(line, line - 12, -1)]
        tests = next(
            (lines[number] for number in near if number in lines), None
        ) or self._tests_of_constant(path, line)
        running = self.collected.intersection(tests)
        files = {_file_of(test) for test in running if test.startswith(subject)}
        timed = self.collected.intersection(self.seconds)
        beside = {test for test in timed if _file_of(test) in files} - running

        def order(test: str) -> tuple[bool, bool, float]:
            return test in beside, not test.startswith(subject), self.seconds_of(test)

        chosen, total = [], 0.0
        for test in sorted(running | beside, key=order):
            seconds = self.seconds_of(test)
            if not chosen or total + seconds <= MAX_TEST_SECONDS:
                chosen.append(test)
                total += seconds
        return chosen

    def _place_then(self, path: str, line: int) -> tuple[str, int]:
        """Return where a line of today stood when the map was made: in its file, or wherever its
        text has come from.
        """
        if path in self.sources:
            return path, self._lines_then(path)[line]
        text = (ROOT / path).read_text().splitlines()[line - 1].strip()
        for other, source in self.sources.items():
            for number, candidate in enumerate(source.splitlines(), 1):
                if candidate.strip() == text:
                    return other, number
        return path, line

    @functools.cache  # noqa: B019  one map lives as long as the process
    def _lines_then(self, path: str) -> list[int]:
        """Return for each line of today, from 1 on, the line then; of new lines the one before."""
        then, now = self.sources[path].splitlines(), (ROOT / path).read_text().splitlines()
        numbers = [0] * (len(now) + 1)
        for block in difflib.SequenceMatcher(None, then, now, autojunk=False).get_matching_blocks():
            for i in range(block.size):
                numbers[block.b + i + 1] = block.a + i + 1
        for i in range(1, len(numbers)):
            numbers[i] = numbers[i] or numbers[i - 1]
        return numbers

    def _tests_of_constant(self, path: str, line: int) -> list[str]:
        """Return the tests that run a line which reads what a line defines, or any line of its
        file.
        """
        source = self.sources.get(path, "").splitlines()
        lines = self.lines.get(path, {})
        name = re.match(r"\w+", source[line - 1]) if 0 < line <= len(source) else None
        reads = [
            lines.get(str(i + 1), [])
            for i, text in enumerate(source)
            if name and re.search(rf"\b{name[0]}\b", text)
        ]
        return sorted(
            {test for tests in (reads if any(reads) else lines.values()) for test in tests}
        )


def _file_of(test: str) -> str:
    """Return the file that a test stands in."""
    return test.partition("::")[0]


def _collect() -> frozenset[str]:
    """Return the tests that there are now."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "slow or not slow"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return frozenset(line for line in done.stdout.splitlines() if "::" in line)
