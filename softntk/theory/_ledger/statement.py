"""Records of the ledger: a statement, the case that it is measured on, and the measurement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Case = dict[str, Any]
"""Arrays and numbers by name, and a seed for what is drawn during the measurement."""

EQUALITY_TOLERANCE = 1e-8
"""Largest relative error with which an equality counts as held."""

ROUNDING_TOLERANCE = 1e-9
"""Relative excess over a bound that counts as rounding."""


class Instance(NamedTuple):
    """One measured instance of the statement value ≤ bound.

    A lower bound is stored the other way round: the promised number is the value, and the
    measured one is the bound.

    Attributes:
        bound: the promised number; of an equality the tolerance.
        value: the measured number; of an equality the relative error.
    """

    bound: float
    value: float

    @property
    def holds(self) -> bool:
        """Return whether value ≤ bound up to rounding; never with NaN."""
        return bool(self.value <= self.bound + ROUNDING_TOLERANCE * abs(self.bound))


@dataclass(frozen=True)
class Statement:
    """A definition, lemma or theorem that can be measured.

    Attributes:
        reference: the paper's letter as in MATHEMATICS.md#sources, and the name of the statement
            there; unique.
        statement: the claim in symbols.
        sample: draws a case.
        check: measures a case; None where a premise is not met, so that it is no instance.
        axes: one letter for each axis of each array of the case. Axes with the same letter are cut
            together when a counterexample is made smaller.
        equality: whether the value is a relative error.
        count: number of instances in a quick run.
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


def equal(actual: ArrayLike, desired: ArrayLike) -> Instance:
    """Measure an equality: the largest |actual − desired| over the largest |desired|."""
    actual_array = np.asarray(actual, np.float64)
    desired_array = np.asarray(desired, np.float64)
    if actual_array.shape != desired_array.shape:
        raise ValueError(
            f"actual must have the shape of desired, {desired_array.shape}, "
            f"got {actual_array.shape}."
        )
    # Relative to the largest entry; absolute where all entries are zero.
    scale = float(np.max(np.abs(desired_array), initial=0.0))
    largest_error = float(np.max(np.abs(actual_array - desired_array), initial=0.0))
    return Instance(EQUALITY_TOLERANCE, largest_error / (scale if scale > 0 else 1.0))
