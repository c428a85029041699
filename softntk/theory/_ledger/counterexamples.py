"""Shrinking of counterexamples: a failing case is made smaller for as long as it still fails.

Three kinds of smaller cases are tried, in this order: shorter axes (halves of an axis, or one
index fewer), halved numbers, and numbers rounded to one digit. The first that still fails by a
margin replaces the case, and the search starts again from it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from softntk.theory._ledger.statement import Case, Instance, Statement

MAX_SHRINK_ATTEMPTS = 400
"""Smaller cases tried for one counterexample."""

MIN_HALVED_SIZE = 0.1
"""Numbers of at most this size are not halved."""

MIN_RELATIVE_EXCESS = 0.01
"""Excess relative to the bound by which a smaller case must fail, or half of the first excess."""

MAX_PRINTED_ENTRIES = 12
"""Arrays with more entries are printed by their shape."""


class RecordingCase(dict[str, Any]):
    """A case that records the names of the entries that are read.

    Attributes:
        used: the names read so far.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)


def measure(statement: Statement, case: Case) -> Instance | None:
    """Measure a case; None where a matrix that must be inverted is singular."""
    try:
        return statement.check(case)
    except np.linalg.LinAlgError:
        return None


def relative_excess(instance: Instance | None) -> float:
    """Return (value − bound)/|bound| of a failing instance, zero if it holds or is not finite."""
    if instance is None or instance.holds or not np.isfinite(instance).all():
        return 0.0
    # Relative, because bounds differ by powers of ten between statements.
    return (instance.value - instance.bound) / max(abs(instance.bound), np.finfo(float).tiny)


def shrink(statement: Statement, case: Case) -> tuple[Case, str]:
    """Return a smaller case that fails too, and a description of it."""
    # 1. Find the entries that the measurement reads; nothing else needs to be shrunk or printed.
    recording_case = RecordingCase(case)
    instance = statement.check(recording_case)
    assert instance is not None
    min_excess = min(MIN_RELATIVE_EXCESS, 0.5 * relative_excess(instance))

    # 2. Accept the first smaller case that still fails clearly, until there is none.
    attempt_count = 0
    is_shrinking = True
    while is_shrinking:
        is_shrinking = False
        for smaller_case in _smaller_cases(case, statement.axes, recording_case.used):
            attempt_count += 1
            if attempt_count > MAX_SHRINK_ATTEMPTS:
                break
            candidate = measure(statement, smaller_case)
            if candidate is None or candidate.holds:
                continue
            if relative_excess(candidate) >= min_excess:
                case = smaller_case
                instance = candidate
                is_shrinking = True
                break

    # 3. Describe the entries that count.
    description = ", ".join(
        f"{name} = {format_entry(value)}"
        for name, value in case.items()
        if name in recording_case.used
    )
    return case, f"{description}: {instance.value:.4g} > {instance.bound:.4g}"


def _smaller_cases(case: Case, axes: Mapping[str, str], used: set[str]) -> Iterator[Case]:
    """Yield smaller cases of all three kinds; only the entries that are used are changed."""
    # The most readable simplification first. A seed is no size, so it is not halved.
    yield from _cases_of_shorter_axes(case, axes)
    yield from _cases_of_half_the_numbers(case, used - {"seed"})
    yield from _cases_of_round_numbers(case, used)


def _cases_of_shorter_axes(case: Case, axes: Mapping[str, str]) -> Iterator[Case]:
    """Yield cases in which one letter's axes are shorter, in all arrays together."""
    axis_sizes = {
        letter: size
        for name, letters in axes.items()
        for letter, size in zip(letters, case[name].shape, strict=True)
    }
    for letter, size in axis_sizes.items():
        for indices in _shorter_index_lists(size):
            yield {
                name: _take(value, axes[name], letter, indices)
                if letter in axes.get(name, "")
                else value
                for name, value in case.items()
            }


def _shorter_index_lists(size: int) -> Iterator[list[int]]:
    """Yield the indices of each half of an axis, then, where it is short, all but one."""
    if size > 1:
        yield list(range(size // 2))
        yield list(range(size // 2, size))
    for left_out in range(size if 2 < size <= 8 else 0):
        yield [i for i in range(size) if i != left_out]


def _cases_of_half_the_numbers(case: Case, used: set[str]) -> Iterator[Case]:
    """Yield cases in which one entry is halved."""
    for name, value in case.items():
        if name not in used:
            continue
        # Counts stay integers, at least one.
        if isinstance(value, int) and value > 1:
            yield {**case, name: value // 2}
        elif (
            isinstance(value, float | np.ndarray)
            and np.size(value)
            and np.max(np.abs(value)) > MIN_HALVED_SIZE
        ):
            yield {**case, name: value / 2}


def _cases_of_round_numbers(case: Case, used: set[str]) -> Iterator[Case]:
    """Yield cases in which one entry is rounded to one digit."""
    for name, value in case.items():
        if name in used and isinstance(value, float | np.ndarray) and np.size(value):
            # A number that is round already is no smaller case.
            rounded_value = _round_to_one_digit(value)
            if not np.array_equal(rounded_value, value):
                yield {**case, name: rounded_value}


def _take(value: np.ndarray, letters: str, letter: str, indices: list[int]) -> np.ndarray:
    """Keep the given indices on every axis that carries the letter."""
    for axis, axis_letter in enumerate(letters):
        if axis_letter == letter:
            value = np.take(value, indices, axis=axis)
    return value


def _round_to_one_digit(value: float | np.ndarray) -> float | np.ndarray:
    """Round to one digit of the largest entry."""
    largest_entry = float(np.max(np.abs(value)))
    if largest_entry == 0 or not np.isfinite(largest_entry):
        return value
    # The position of the leading digit.
    digits = -int(np.floor(np.log10(largest_entry)))
    # Adding zero turns −0 into 0.
    rounded_value = np.round(value, digits) + 0.0
    return float(rounded_value) if isinstance(value, float) else rounded_value


def format_entry(value: float | int | str | np.ndarray) -> str:
    """Format an entry of a case: four digits, and the shape of a large array."""
    if isinstance(value, np.ndarray):
        if value.size > MAX_PRINTED_ENTRIES:
            return "[" + ", ".join(map(str, value.shape)) + "]"
        text = np.array2string(value, precision=4, separator=", ", floatmode="maxprec")
        return text.replace("\n", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
