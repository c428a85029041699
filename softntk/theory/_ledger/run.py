"""The runner of the ledger: random instances of each statement, and one row of results for it."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from softntk._core.progress import Progress
from softntk._core.validation import check_flag, check_integer
from softntk.theory._ledger.counterexamples import measure, shrink
from softntk.theory._ledger.statement import Case, Instance, Statement
from softntk.theory._ledger.statements import (
    convexity,
    initialisation,
    networks,
    newton,
    perturbation,
    regression,
    regression_bounds,
    row_sampling,
    score_estimation,
    training,
)

STATEMENTS: tuple[Statement, ...] = (
    *networks.STATEMENTS,
    *initialisation.STATEMENTS,
    *perturbation.STATEMENTS,
    *training.STATEMENTS,
    *score_estimation.STATEMENTS,
    *regression.STATEMENTS,
    *regression_bounds.STATEMENTS,
    *convexity.STATEMENTS,
    *row_sampling.STATEMENTS,
    *newton.STATEMENTS,
)

FULL_RUN_FACTOR = 20
"""Instances of a full run for each instance of a quick one."""

DRAWS_PER_INSTANCE = 30
"""Cases drawn for each instance wanted, because premises may not be met."""


class Tightness(NamedTuple):
    """Bound divided by value: at one the bound is attained, below one the statement fails.

    Attributes:
        median: over the instances.
        worst: the smallest of the instances.
    """

    median: float
    worst: float


@dataclass(frozen=True)
class Row:
    """A statement and the results of its instances.

    Attributes:
        reference: the paper, by its letter in MATHEMATICS.md#sources, and the name of the statement
            there.
        statement: the claim in symbols.
        instances: number of measured instances.
        held: number of instances that agreed.
        tightness: bound over measured value; None for equalities.
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
    r"""Return every statement of the papers that can be run, measured on random instances.

    Use it to see how tight a bound is before relying on it, or to test a statement of your own.
    An instance is a bound β(case) and the value v(case) that it is about, by NumPy or dense
    automatic differentiation; it holds if v ≤ β. The tightness is β/v. Where an instance fails the
    row has a counterexample, made smaller for as long as it still fails: axes are cut, numbers
    halved, and rounded to a digit.

    The papers' full text was not at hand. Except for what their abstracts print, statements,
    constants and exponents are as remembered. A row that fails may therefore be a fault of memory
    and not of the paper. Statements about widths that nobody can run say what was scaled.

    Args:
        quick: True takes about half a minute; False measures twenty times as many instances.
        match: run only statements with this text in their reference, such as "[S]" or "Hessian".
        seed: seed of all random numbers; rows do not depend on each other.
        progress: show the statement that is being run.
        statements: your own; None for those of the papers.

    Returns:
        A list of :class:`Row`, one for each statement.

    Raises:
        ValueError: no statement that matches; two statements with one reference; statements that
            are no list of :class:`Statement`; seed negative; quick or progress no flag.

    Example:
        >>> for row in ledger(match="lemma: ‖f‖"):  # softmax, and e^z + z
        ...     print(row.reference, row.held == row.instances, row.counterexample)
        [D] lemma: ‖f‖ ≤ 1 True None
        [S] lemma: ‖f‖ ≤ 1 False A = [[1.], [0.]], x = [-0.6]: 1.055 > 1

    Source: [G] arXiv 2405.03251, [S] 2309.13482, and where [S] builds on them [D] 2304.10411 and
    [H] 2305.00660: MATHEMATICS.md#sources.
    """
    # 1. Select the statements.
    quick = check_flag("quick", quick)
    progress = check_flag("progress", progress)
    seed = check_integer("seed", seed, at_least=0)
    if not isinstance(match, str):
        raise ValueError(f"match must be part of a reference, as '[S] lemma' is, got {match!r}.")
    candidates = STATEMENTS if statements is None else _check_statements(statements)
    selected = tuple(statement for statement in candidates if match in statement.reference)
    if not selected:
        raise ValueError(f"match must be part of a reference, as '[S] lemma' is, got {match!r}.")
    references = [statement.reference for statement in selected]
    if len(set(references)) < len(references):
        repeated = next(name for name in references if references.count(name) > 1)
        raise ValueError(f"statements must have a reference each, got {repeated!r} twice.")

    # 2. Run them in float64; overflow and NaN are results here, not errors.
    progress_line = Progress(progress, "ledger")
    rows = []
    try:
        with jax.enable_x64(True), np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for statement in selected:
                progress_line.show(statement.reference)
                instance_count = statement.count * (1 if quick else FULL_RUN_FACTOR)
                rows.append(_run_statement(statement, instance_count, seed))
    finally:
        progress_line.close()
    return rows


def _check_statements(statements: Sequence[Statement]) -> tuple[Statement, ...]:
    """Refuse what is not a list of at least one Statement."""
    if not (
        isinstance(statements, list | tuple)
        and statements
        and all(isinstance(item, Statement) for item in statements)
    ):
        raise ValueError(
            f"statements must be a list of at least one Statement, got {statements!r}."
        )
    return tuple(statements)


def replay(row: Row, statements: Sequence[Statement] = STATEMENTS) -> Instance | None:
    """Measure the counterexample of a row again; use it to look into a failure."""
    if row.case is None:
        raise ValueError(f"row must have a counterexample, got {row.reference!r}, which held.")
    statement = next(statement for statement in statements if statement.reference == row.reference)
    # In float64 and with overflow as a result, as in the run that found it.
    with jax.enable_x64(True), np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return statement.check(dict(row.case))


def _run_statement(statement: Statement, count: int, seed: int) -> Row:
    """Measure ``count`` instances of a statement, and shrink the first failing case."""
    # 1. Draw cases until enough of them meet the premises. The generator depends on the reference,
    #    so that a row does not change when others are added.
    rng = np.random.default_rng([seed, zlib.crc32(statement.reference.encode())])
    instances: list[Instance] = []
    failing_case: Case | None = None
    for _ in range(DRAWS_PER_INSTANCE * count):
        case = statement.sample(rng)
        instance = measure(statement, case)
        if instance is None:
            continue
        instances.append(instance)
        if failing_case is None and not instance.holds:
            failing_case = case
        if len(instances) == count:
            break

    # 2. Shrink the counterexample.
    description = None
    if failing_case is not None:
        failing_case, description = shrink(statement, failing_case)

    # 3. Summarise.
    tightness = None
    largest_error = None
    if statement.equality:
        largest_error = max((instance.value for instance in instances), default=None)
    elif instances:
        tightness = _find_tightness(instances)
    return Row(
        reference=statement.reference,
        statement=statement.statement,
        instances=len(instances),
        held=sum(instance.holds for instance in instances),
        tightness=tightness,
        error=largest_error,
        counterexample=description,
        source=statement.source,
        case=failing_case,
    )


def _find_tightness(instances: Sequence[Instance]) -> Tightness:
    """Return median and smallest bound/value; infinite where the value is not positive."""
    # An instance whose value is not positive says nothing about how tight the bound is.
    ratios = np.array(
        [
            instance.bound / instance.value if instance.value > 0 else np.inf
            for instance in instances
        ]
    )
    return Tightness(float(np.median(ratios)), float(np.min(ratios)))
