"""Every small fault that the numerical code can have, for :mod:`mutants`: one operator, comparison,
constant, sign, index or term is another.
"""

import ast
import dataclasses
from collections import Counter

from mutants_map import ROOT

UNNUMERICAL = ("__init__.py", "__main__.py", "progress.py", "old_paths.py", "solution.py")

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
SWAPPED_COMPARISONS = {
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=",),
    "!=": ("==",),
}
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
    """One fault: bytes ``start`` to ``end`` of a file become ``after``; ``label`` is the line
    before and after it, with a number where an earlier line of the file has the same.
    """

    path: str
    line: int
    start: int
    end: int
    after: str
    label: str


_Placed = ast.expr | ast.stmt
"""What has a line and a column."""


class _Collector(ast.NodeVisitor):
    """Collect every fault that one file can have."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source, self.mutants = path, source.encode(), []
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line.encode()))

    def span(self, node: _Placed) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def add(self, node: _Placed, start: int, end: int, after: str) -> None:
        begin = self.source.rfind(b"\n", 0, start) + 1
        stop = (self.source + b"\n").find(b"\n", end)
        before = " ".join(self.source[begin:stop].decode().split())
        changed = " ".join(
            (self.source[begin:start] + after.encode() + self.source[end:stop]).decode().split()
        )
        line = 1 + self.source.count(b"\n", 0, start)
        self.mutants.append(
            Mutant(self.path, line, start, end, after, f"{self.path}: {before} → {changed}")
        )

    def add_operator(
        self, node: _Placed, left: ast.expr, right: ast.expr, symbol: str, others: tuple[str, ...]
    ) -> None:
        start, end = self.span(left)[1], self.span(right)[0]
        place = self.source[start:end].decode().find(symbol)
        if place >= 0:
            begin = start + len(self.source[start:end].decode()[:place].encode())
            for other in others:
                self.add(node, begin, begin + len(symbol), other)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        kind = type(node.op)
        texts = any(
            isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right)
        )
        if kind in SWAPPED_OPERATORS and not texts:
            self.add_operator(
                node, node.left, node.right, OPERATOR_SYMBOLS[kind], (SWAPPED_OPERATORS[kind],)
            )
            if kind in (ast.Add, ast.Sub):  # a term is dropped
                self.add(node, self.span(node.left)[1], self.span(node)[1], "")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Invert):
            start = self.span(node)[0]
            self.add(node, start, start + 1, " ")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        symbols = {
            ast.Lt: "<",
            ast.LtE: "<=",
            ast.Gt: ">",
            ast.GtE: ">=",
            ast.Eq: "==",
            ast.NotEq: "!=",
        }
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
        for part in (
            *node.args.defaults,
            *(d for d in node.args.kw_defaults if d is not None),
            *node.body,
        ):
            self.visit(part)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Leave imports alone."""


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def all_mutants() -> list[Mutant]:
    """Return every fault of every file of the package, but for what only talks: messages, tables,
    command lines.
    """
    mutants = []
    for path in sorted((ROOT / "softntk").rglob("*.py")):
        if path.name in UNNUMERICAL or path.parent.name == "validation":
            continue
        source = path.read_text()
        collector = _Collector(str(path.relative_to(ROOT)), source)
        collector.visit(ast.parse(source))
        mutants += numbered(collector.mutants)
    return mutants


def numbered(mutants: list[Mutant]) -> list[Mutant]:
    """Return the faults of a file, the second of equal lines with " (2)" behind its label."""
    counts: Counter[str] = Counter()
    distinct = []
    for mutant in sorted(mutants, key=lambda mutant: mutant.start):
        counts[mutant.label] += 1
        number = counts[mutant.label]
        label = mutant.label if number == 1 else f"{mutant.label} ({number})"
        distinct.append(dataclasses.replace(mutant, label=label))
    return distinct
