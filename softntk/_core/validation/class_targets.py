"""Targets of a classification, labels or probabilities, as probabilities [n, k]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.validation.arrays import as_dtype, as_integers, as_real_array, check_shape
from softntk._core.validation.scalars import check_integer, is_concrete

# Largest deviation of the sum of probabilities from one: rounding in float32.
SUM_TOLERANCE = 1e-4


def as_targets(
    y: object,
    n: int,
    classes: object,
    dtype: jnp.dtype,
    advice: str = "Give classes=, or probabilities [n, k].",
) -> Float[Array, "n k"]:
    """Return labels [n] or probabilities [n, k] as probabilities [n, k], k ≥ 2.

    ``advice`` says how to give the number of classes where the labels do not show it.
    """
    # 1. The number of classes, if it is given.
    array = as_real_array("y", y)
    k = None if classes is None else check_integer("classes", classes, at_least=2)

    # 2. Labels: integers of shape [n].
    if array.ndim == 1:
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"y must be integer labels [n] or probabilities [n, k], got {array.dtype} of shape "
                f"{array.shape}. Convert labels, e.g. y.astype(int)."
            )
        return jax.nn.one_hot(*_count_classes(array, n, k, advice), dtype=dtype)

    # 3. Probabilities.
    check_shape("y", array, (n, "k" if k is None else k))
    if array.shape[1] < 2:
        raise ValueError(
            f"y must have at least two classes, got shape {array.shape}. Of labels take the one "
            "column, y[:, 0]; of probabilities of one class give both, [n, 2]."
        )
    probabilities = as_dtype("y", array, dtype)
    if is_concrete(array):
        check_probabilities(
            "y", np.asarray(array), "pass counts as sample_weight times probabilities"
        )
    return probabilities


def _count_classes(array: Any, n: int, classes: int | None, advice: str) -> tuple[Array, int]:
    """Return checked labels, and the number of classes: the largest label and one if None."""
    labels = as_labels("y", array, classes)
    check_shape("y", labels, (n,))
    if classes is not None:
        return labels, classes
    if not is_concrete(array):
        raise ValueError(
            "y must be known where it decides the number of classes, got traced labels. " + advice
        )
    largest = int(np.max(np.asarray(array)))
    if largest == 0:
        raise ValueError(
            "y must have at least two classes, got the label 0 alone. If there are more than these "
            "data show, say how many. " + advice
        )
    return labels, largest + 1


def as_labels(name: str, y: object, classes: int | None = None) -> Int[Array, " n"]:
    """Return integer labels from 0 on, below ``classes`` if that is known."""
    # What was passed is looked at: under jit known labels are traced once they are converted.
    array = as_real_array(name, y)
    labels = as_integers(name, array, ("n",))
    if not is_concrete(array):
        return labels
    lowest = int(np.min(np.asarray(array)))
    largest = int(np.max(np.asarray(array)))
    if lowest < 0:
        raise ValueError(f"{name} must hold labels from 0 on, got {lowest}.")
    if classes is not None and largest >= classes:
        raise ValueError(
            f"{name} must hold labels below the number of classes, {classes}, got {largest}."
        )
    return labels


def check_probabilities(
    name: str, probabilities: np.ndarray, advice: str, tolerance: float = SUM_TOLERANCE
) -> None:
    """Refuse negative probabilities and rows that do not sum to one.

    Args:
        name: name of the argument, for error messages.
        probabilities: known numbers, [n, k].
        advice: what to do instead of dividing by the sums.
        tolerance: largest deviation of a sum from one.

    Raises:
        ValueError: there are such rows; the message quotes the worst one.
    """
    lowest = probabilities.min()
    if lowest < 0:
        raise ValueError(f"{name} must hold probabilities, got {lowest}.")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    worst_row = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst_row] - 1) > tolerance:
        raise ValueError(
            f"{name} must hold probabilities that sum to one in each row, got the sum "
            f"{sums[worst_row]:.6g} in row {worst_row}. Divide by the sums, or {advice}."
        )
