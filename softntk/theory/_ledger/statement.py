"""What a line of the ledger is made from: a statement, how to draw an instance of it, and how to
measure one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Case = dict[str, Any]
"""An instance by the names of its parts: arrays, numbers, and a seed for what is drawn while
measuring.
"""

TOLERANCE = 1e-8
"""Of equalities, relative."""

_ROUNDING = 1e-9


class Instance(NamedTuple):
    """One instance, measured: the statement is value ≤ bound. Lower bounds are turned round.

    Attributes:
        bound: what the statement promises; of an equality the tolerance.
        value: what was seen; of an equality the relative error.
    """

    bound: float
    value: float

    @property
    def holds(self) -> bool:
        """Whether value ≤ bound, but for rounding; never with NaN."""
        return bool(self.value <= self.bound + _ROUNDING * abs(self.bound))


@dataclass(frozen=True)
class Statement:
    """A definition, lemma or theorem that can be measured.

    Attributes:
        reference: the paper's letter as in MATHEMATICS.md#sources, and what it calls the statement;
            unique.
        statement: in symbols.
        sample: draws a case.
        check: measures it; None where the premises are not met, so that it is no instance.
        axes: a letter for each axis of each array of the case: what is cut together when a
            counterexample is made smaller.
        equality: whether value is a relative error.
        count: instances of a quick run.
        source: "printed" (in the abstract), "as remembered", or "ours": a bound of ours, or a step
            of the papers' proofs with constants that were derived here.
    """

    reference: str
    statement: str
    sample: Callable[[np.random.Generator], Case]
    check: Callable[[Case], Instance | None]
    axes: Mapping[str, str] = field(default_factory=dict)
    equality: bool = False
    count: int = 60
    source: str = "as remembered"


def equal(actual: Any, desired: Any) -> Instance:
    """|actual − desired| against the largest entry of the latter."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    if actual.shape != desired.shape:
        raise ValueError(
            f"actual must have the shape of desired, {desired.shape}, got {actual.shape}."
        )
    size = float(np.max(np.abs(desired), initial=0.0))
    return Instance(
        TOLERANCE,
        float(np.max(np.abs(actual - desired), initial=0.0)) / (size if size > 0 else 1.0),
    )
