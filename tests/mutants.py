"""Draw small faults in the numerical code, one at a time, and see whether the tests notice them.

    uv run --with pytest-cov tests/mutants.py map                  # once: which test runs which line (as long as the suite)
    uv run tests/mutants.py run --count 300 --seed 1 --jobs 2      # minutes to an hour; goes on where it was stopped
    uv run tests/mutants.py show --count 300 --seed 1              # the table, and the faults that nothing noticed

A fault changes one operator, comparison, constant, sign, index or term of the code; docstrings, annotations, messages and the
arguments of errors are left alone. It is *killed* if a test fails that runs its line (or takes five times its time), the
cheapest of them first. Faults that change nothing that can be observed are listed with their reason in EQUIVALENT.
"""

import argparse
import ast
import concurrent.futures
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "mutants"
MAX_TEST_SECONDS = 60.0  # of the tests that one fault is run against, as they took alone
MAX_TESTS = 40
TIMEOUT_FACTOR = 5.0
UNNUMERICAL = ("__init__.py", "__main__.py", "_progress.py", "nt.py", "solution.py")

EQUIVALENT: dict[str, str] = {}
"""Faults that change nothing: "file: before → after" and why."""

SWAPPED_OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.Mod: "//",
    ast.FloorDiv: "/",
}
OPERATOR_SYMBOLS = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Mod: "%",
    ast.FloorDiv: "//",
}
SWAPPED_COMPARISONS = {"<": ("<=", ">"), "<=": ("<", ">="), ">": (">=", "<"), ">=": (">", "<="), "==": ("!=",), "!=": ("==",)}
SWAPPED_NAMES = {
    "max": "min",
    "min": "max",
    "maximum": "minimum",
    "minimum": "maximum",
    "argmax": "argmin",
    "argmin": "argmax",
    "sum": "mean",
    "cos": "sin",
    "sin": "cos",
    "expm1": "exp",
    "log1p": "log",
    "triu": "tril",
    "ceil": "floor",
    "floor": "ceil",
    "all": "any",
    "any": "all",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: bytes ``start`` to ``end`` of a file become ``after``."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def label(self) -> str:
        """What is shown of it."""
        return f"{self.path}:{self.line}: {self.before!r} → {self.after!r}"


class _Collector(ast.NodeVisitor):
    """Collect every fault that one file can have."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source, self.mutants = path, source.encode(), []
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line.encode()))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def add(self, node: ast.AST, start: int, end: int, after: str) -> None:
        before = self.source[start:end].decode()
        self.mutants.append(Mutant(self.path, node.lineno, start, end, before, after))

    def add_operator(self, node: ast.AST, left: ast.AST, right: ast.AST, symbol: str, others: tuple[str, ...]) -> None:
        start, end = self.span(left)[1], self.span(right)[0]
        place = self.source[start:end].decode().find(symbol)
        if place >= 0:
            begin = start + len(self.source[start:end].decode()[:place].encode())
            for other in others:
                self.add(node, begin, begin + len(symbol), other)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        kind = type(node.op)
        texts = any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right))
        if kind in SWAPPED_OPERATORS and not texts:
            self.add_operator(node, node.left, node.right, OPERATOR_SYMBOLS[kind], (SWAPPED_OPERATORS[kind],))
            if kind in (ast.Add, ast.Sub):  # a term is dropped
                self.add(node, self.span(node.left)[1], self.span(node)[1], "")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Invert):
            start = self.span(node)[0]
            self.add(node, start, start + 1, " ")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        symbols = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, node.comparators, strict=False):
            symbol = symbols.get(type(op))
            if symbol:
                self.add_operator(node, left, right, symbol, SWAPPED_COMPARISONS[symbol])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        symbol, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.add_operator(node, left, right, symbol, (other,))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, *self.span(node), str(not node.value))
        elif isinstance(node.value, int):
            self.add(node, *self.span(node), str(node.value + 1))
        elif isinstance(node.value, float):
            self.add(node, *self.span(node), repr(2 * node.value if node.value else 1.0))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner in ("jnp", "np", "lax") and node.attr in SWAPPED_NAMES:
            end = self.span(node)[1]
            self.add(node, end - len(node.attr), end, SWAPPED_NAMES[node.attr])
        self.generic_visit(node)

    # What is no numerical code.
    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave errors alone."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave messages alone."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """Leave annotations alone."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None), *node.body):
            self.visit(part)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Leave imports alone."""


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def all_mutants() -> list[Mutant]:
    """Return every fault of every file of the package, but for what only talks: messages, tables, command lines."""
    mutants = []
    for path in sorted((ROOT / "softntk").rglob("*.py")):
        if path.name in UNNUMERICAL or path.parent.name == "_validation":
            continue
        source = path.read_text()
        collector = _Collector(str(path.relative_to(ROOT)), source)
        collector.visit(ast.parse(source))
        mutants += collector.mutants
    return mutants


def draw(count: int, seed: int, under: str = "") -> list[Mutant]:
    """Return so many faults, of different lines, drawn evenly from all (or from those of one folder)."""
    pool = [mutant for mutant in all_mutants() if mutant.path.startswith(f"softntk/{under}")]
    random.Random(seed).shuffle(pool)
    chosen, lines = [], set()
    for mutant in pool:
        if (mutant.path, mutant.line) not in lines:
            lines.add((mutant.path, mutant.line))
            chosen.append(mutant)
    return chosen[:count]


# --- which test runs which line -----------------------------------------------------------------------------------


def make_map() -> None:
    """Run the suite once under coverage, with the test as context, and keep lines × tests and their durations."""
    CACHE.mkdir(parents=True, exist_ok=True)
    data = CACHE / "coverage"
    environment = {**os.environ, "COVERAGE_FILE": str(data)}
    options = ["--cov=softntk", "--cov-context=test", "--cov-report=", "--durations=0", "--durations-min=0.005"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-2000:])
    seconds: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[1] in ("call", "setup", "teardown") and words[0].endswith("s"):
            seconds[words[2]] += float(words[0][:-1])
    import coverage

    measured = coverage.CoverageData(str(data))
    measured.read()
    lines = {}
    for file in measured.measured_files():
        contexts = measured.contexts_by_lineno(file)
        by_line = {str(n): sorted({c.split("|")[0] for c in tests if c}) for n, tests in contexts.items()}
        lines[str(Path(file).relative_to(ROOT))] = {n: tests for n, tests in by_line.items() if tests}
    (CACHE / "map.json").write_text(json.dumps({"seconds": seconds, "lines": lines}))


def tests_of(mutant: Mutant, known: dict) -> list[str]:
    """Return the tests that run the line of a fault, the cheapest first."""
    lines = known["lines"].get(mutant.path, {})
    tests = lines.get(str(mutant.line)) or next(
        (lines[str(n)] for n in range(mutant.line, mutant.line - 12, -1) if str(n) in lines), []
    )
    ordered = sorted(tests, key=lambda test: known["seconds"].get(test, 0.01))
    chosen, total = [], 0.0
    for test in ordered[:MAX_TESTS]:
        total += known["seconds"].get(test, 0.01)
        if chosen and total > MAX_TEST_SECONDS:
            break
        chosen.append(test)
    return chosen


# --- running ------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, tests: list[str], seconds: float) -> str:
    """Return "killed", "survived" or "untested", from a copy of the tree that has the fault."""
    if not tests:
        return "untested"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("softntk", "tests", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
        target = Path(folder) / mutant.path
        source = target.read_bytes()
        target.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests],
                cwd=folder, env=environment, capture_output=True, text=True, check=False,
                timeout=60 + TIMEOUT_FACTOR * seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "killed"
    if done.returncode == 0:
        return "survived"
    if done.returncode in (1, 2):  # a test failed, or the package can no longer be imported
        return "killed"
    return f"no verdict ({done.returncode}): {done.stdout[-300:]}"


def run(count: int, seed: int, jobs: int, under: str) -> None:
    """Judge the faults that were not judged before; each verdict is written at once."""
    known = json.loads((CACHE / "map.json").read_text())
    file = CACHE / f"verdicts_{seed}{under.replace('/', '_')}.json"
    verdicts = json.loads(file.read_text()) if file.exists() else {}
    todo = [mutant for mutant in draw(count, seed, under) if mutant.label not in verdicts]

    def task(mutant: Mutant) -> tuple[Mutant, str]:
        tests = tests_of(mutant, known)
        return mutant, judge(mutant, tests, sum(known["seconds"].get(test, 0.01) for test in tests))

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for mutant, verdict in pool.map(task, todo):
            verdicts[mutant.label] = verdict
            file.write_text(json.dumps(verdicts, indent=1, ensure_ascii=False))
            print(f"{verdict:9} {mutant.label}", flush=True)


def show(count: int, seed: int, under: str) -> None:
    """Print the table of verdicts and the faults that survived."""
    verdicts = json.loads((CACHE / f"verdicts_{seed}{under.replace('/', '_')}.json").read_text())
    labels = [mutant.label for mutant in draw(count, seed, under) if mutant.label in verdicts]
    counts = Counter("equivalent" if label in EQUIVALENT else verdicts[label] for label in labels)
    print(dict(counts), f"killed {counts['killed']} of {len(labels) - counts['equivalent']} that are not equivalent")
    for label in labels:
        if verdicts[label] != "killed":
            print(f"{verdicts[label]:9} {label}  {EQUIVALENT.get(label, '')}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("map", "run", "show"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--under", default="", help="a folder or file of softntk/, all of it by default")
    arguments = parser.parse_args()
    if arguments.command == "map":
        make_map()
    elif arguments.command == "run":
        run(arguments.count, arguments.seed, arguments.jobs, arguments.under)
    else:
        show(arguments.count, arguments.seed, arguments.under)


if __name__ == "__main__":
    main()
