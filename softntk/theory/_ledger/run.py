"""The ledger: every statement run on random instances, with its tightness, or with its smallest
counterexample.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from softntk._core.progress import Progress
from softntk._core.validation import check_flag, check_integer
from softntk.theory._ledger.statement import Case, Instance, Statement
from softntk.theory._ledger.statements.networks import STATEMENTS as _NETWORKS
from softntk.theory._ledger.statements.newton import STATEMENTS as _NEWTON
from softntk.theory._ledger.statements.regression import STATEMENTS as _REGRESSION
from softntk.theory._ledger.statements.training import STATEMENTS as _TRAINING

STATEMENTS: tuple[Statement, ...] = (*_NETWORKS, *_TRAINING, *_REGRESSION, *_NEWTON)

_FULL = 20  # times the instances of a quick run
_DRAWS = 30  # for each instance wanted: premises may not be met
_ATTEMPTS = 400  # to make a counterexample smaller
_SMALL = 0.1  # what need not be halved
_MARGIN = 0.01  # by how much, relative, a smaller counterexample must fail


class Tightness(NamedTuple):
    """Bound over value: one is exact, below one the statement fails."""

    median: float
    worst: float


@dataclass(frozen=True)
class Row:
    """A statement and what came of it.

    Attributes:
        reference: the paper, by its letter in MATHEMATICS.md#sources, and what it calls the
            statement.
        statement: in symbols.
        instances: how many were measured.
        held: how many of them agreed.
        tightness: bound over the largest value that was seen, of each instance; None for
            equalities.
        error: the largest relative error of an equality; None for bounds.
        counterexample: the smallest one found, in words; None if every instance held.
        source: "printed" (in the abstract), "as remembered" (the full text was not at hand), or
            "ours": a bound of ours, or a step of the papers' proofs with constants derived here.
        case: the counterexample itself, or None.
    """

    reference: str
    statement: str
    instances: int
    held: int
    tightness: Tightness | None
    error: float | None
    counterexample: str | None
    source: str
    case: Mapping[str, Any] | None = field(default=None, repr=False)


def ledger(
    quick: bool = True,
    *,
    match: str = "",
    seed: int = 0,
    progress: bool = False,
    statements: Sequence[Statement] | None = None,
) -> list[Row]:
    r"""Return every statement of the papers that can be run, on random instances: a row each.

    An instance is a bound β(case) and the value v(case) that it is about, by NumPy or dense
    automatic differentiation; it holds if v ≤ β. The tightness is β/v. Where an instance fails the
    row has a counterexample, made smaller for as long as it still fails: axes are cut, numbers
    halved, and rounded to a digit.

    The papers' full text was not at hand: but for what their abstracts print, statements, constants
    and exponents are as remembered, and a row that fails is a failure of that. Statements about
    widths that nobody can run say what was scaled.

    Args:
        quick: in half a minute; otherwise with twenty times the instances.
        match: run only statements with this text in their reference, as "[S]" or "Hessian".
        seed: of everything; rows do not depend on each other.
        progress: show the statement that is being run.
        statements: of your own; those of the papers if None.

    Returns:
        A list of :class:`Row`.

    Raises:
        ValueError: no statement that matches; two statements with one reference.

    Example:
        >>> for row in ledger(match="lemma: ‖f‖"):  # softmax, and e^z + z
        ...     print(row.reference, row.held == row.instances, row.counterexample)
        [D] lemma: ‖f‖ ≤ 1 True None
        [S] lemma: ‖f‖ ≤ 1 False A = [[1.], [0.]], x = [-0.6]: 1.055 > 1

    Source: [G] arXiv 2405.03251, [S] 2309.13482, and where [S] builds on them [D] 2304.10411 and
    [H] 2305.00660: MATHEMATICS.md#sources.
    """
    quick = check_flag("quick", quick)
    progress = check_flag("progress", progress)
    seed = check_integer("seed", seed, at_least=0)
    if not isinstance(match, str):
        raise ValueError(f"match must be part of a reference, as '[S] lemma' is, got {match!r}.")
    chosen = STATEMENTS if statements is None else _checked_statements(statements)
    chosen = tuple(statement for statement in chosen if match in statement.reference)
    references = [statement.reference for statement in chosen]
    if not chosen:
        raise ValueError(f"match must be part of a reference, as '[S] lemma' is, got {match!r}.")
    if len(set(references)) < len(references):
        twice = next(name for name in references if references.count(name) > 1)
        raise ValueError(f"statements must have a reference each, got {twice!r} twice.")
    line, rows = Progress(progress, "ledger"), []
    try:
        with jax.enable_x64(True), np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for statement in chosen:
                line.show(statement.reference)
                rows.append(_run(statement, statement.count * (1 if quick else _FULL), seed))
    finally:
        line.close()
    return rows


def _checked_statements(statements: Any) -> tuple[Statement, ...]:
    if not (
        isinstance(statements, list | tuple)
        and statements
        and all(isinstance(one, Statement) for one in statements)
    ):
        raise ValueError(
            f"statements must be a list of at least one Statement, got {statements!r}."
        )
    return tuple(statements)


def replay(row: Row, statements: Sequence[Statement] = STATEMENTS) -> Instance | None:
    """The counterexample of a row measured again."""
    if row.case is None:
        raise ValueError(f"row must have a counterexample, got {row.reference!r}, which held.")
    statement = next(statement for statement in statements if statement.reference == row.reference)
    with jax.enable_x64(True), np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return statement.check(dict(row.case))


def _run(statement: Statement, count: int, seed: int) -> Row:
    rng = np.random.default_rng([seed, zlib.crc32(statement.reference.encode())])
    found: list[Instance] = []
    failing: Case | None = None
    for _ in range(_DRAWS * count):
        case = statement.sample(rng)
        instance = _measured(statement, case)
        if instance is None:
            continue
        found.append(instance)
        if failing is None and not instance.holds:
            failing = case
        if len(found) == count:
            break
    text = None
    if failing is not None:
        failing, text = _shrunk(statement, failing)
    return Row(
        reference=statement.reference,
        statement=statement.statement,
        instances=len(found),
        held=sum(instance.holds for instance in found),
        tightness=None if statement.equality or not found else _tightness(found),
        error=max((instance.value for instance in found), default=None)
        if statement.equality
        else None,
        counterexample=text,
        source=statement.source,
        case=failing,
    )


def _measured(statement: Statement, case: Case) -> Instance | None:
    """No instance where a matrix that must be inverted is singular."""
    try:
        return statement.check(case)
    except np.linalg.LinAlgError:
        return None


def _tightness(found: list[Instance]) -> Tightness:
    ratios = np.array(
        [instance.bound / instance.value if instance.value > 0 else np.inf for instance in found]
    )
    return Tightness(float(np.median(ratios)), float(np.min(ratios)))


# --- counterexamples
# ----------------------------------------------------------------------------------------------


class _Watched(dict[str, Any]):
    """A case that remembers which of its parts are looked at."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)


def _excess(instance: Instance | None) -> float:
    """By how much it fails, relative to the bound; zero if it does not, or if that is lost in
    infinities.
    """
    if (
        instance is None
        or instance.holds
        or not np.isfinite([instance.bound, instance.value]).all()
    ):
        return 0.0
    return (instance.value - instance.bound) / max(abs(instance.bound), np.finfo(float).tiny)


def _shrunk(statement: Statement, case: Case) -> tuple[Case, str]:
    """A smaller case that fails too, and what it says."""
    watched = _Watched(case)
    instance, attempts = statement.check(watched), 0
    assert instance is not None
    enough = min(_MARGIN, 0.5 * _excess(instance))
    shrinking = True
    while shrinking:
        shrinking = False
        for smaller in _smaller(case, statement.axes, watched.used):
            attempts += 1
            if attempts > _ATTEMPTS:
                break
            tried = _measured(statement, smaller)
            if tried is not None and not tried.holds and _excess(tried) >= enough:
                case, instance, shrinking = smaller, tried, True
                break
    parts = ", ".join(
        f"{name} = {_text(value)}" for name, value in case.items() if name in watched.used
    )
    return case, f"{parts}: {instance.value:.4g} > {instance.bound:.4g}"


def _smaller(case: Case, axes: Mapping[str, str], used: set[str]) -> Iterator[Case]:
    """Axes cut in half or by any one, then the numbers that count halved, then rounded."""
    yield from _cases_of_shorter_axes(case, axes)
    yield from _cases_of_half_the_numbers(case, used - {"seed"})
    yield from _cases_of_round_numbers(case, used)


def _cases_of_shorter_axes(case: Case, axes: Mapping[str, str]) -> Iterator[Case]:
    sizes = {
        letter: size
        for name, letters in axes.items()
        for letter, size in zip(letters, case[name].shape, strict=True)
    }
    for letter, size in sizes.items():
        for indices in _shorter(size):
            yield {
                name: _cut(value, axes[name], letter, indices)
                if letter in axes.get(name, "")
                else value
                for name, value in case.items()
            }


def _shorter(size: int) -> Iterator[list[int]]:
    """Yield the indices of each half of an axis, then, where it is short, all but one."""
    if size > 1:
        yield list(range(size // 2))
        yield list(range(size // 2, size))
    for left in range(size if 2 < size <= 8 else 0):
        yield [i for i in range(size) if i != left]


def _cases_of_half_the_numbers(case: Case, used: set[str]) -> Iterator[Case]:
    for name, value in case.items():
        if name not in used:
            continue
        if isinstance(value, int) and value > 1:
            yield {**case, name: value // 2}
        elif (
            isinstance(value, float | np.ndarray)
            and np.size(value)
            and np.max(np.abs(value)) > _SMALL
        ):
            yield {**case, name: value / 2}


def _cases_of_round_numbers(case: Case, used: set[str]) -> Iterator[Case]:
    for name, value in case.items():
        if name in used and isinstance(value, float | np.ndarray) and np.size(value):
            rounded = _rounded(value)
            if not np.array_equal(rounded, value):
                yield {**case, name: rounded}


def _cut(value: np.ndarray, letters: str, letter: str, kept: list[int]) -> np.ndarray:
    for axis, one in enumerate(letters):
        if one == letter:
            value = np.take(value, kept, axis=axis)
    return value


def _rounded(value: Any) -> Any:
    """To one digit of the largest entry."""
    largest = float(np.max(np.abs(value)))
    if largest == 0 or not np.isfinite(largest):
        return value
    digits = -int(np.floor(np.log10(largest)))
    rounded = np.round(value, digits) + 0.0  # no −0
    return float(rounded) if isinstance(value, float) else rounded


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.size > 12:
            return "[" + ", ".join(map(str, value.shape)) + "]"
        return np.array2string(value, precision=4, separator=", ", floatmode="maxprec").replace(
            "\n", ""
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
