"""Targets and weights of a classification, as probabilities [n, k] and one weight a row [n]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_dtype,
    as_integers,
    as_real_array,
    as_weights,
    check_choice,
    check_integer,
    check_shape,
    is_concrete,
)

# Largest deviation of the sum of probabilities from one: rounding in float32.
SUM_TOLERANCE = 1e-4


def as_targets(y: object, n: int, classes: object, dtype: jnp.dtype) -> Float[Array, "n k"]:
    """Return labels [n] or probabilities [n, k] as probabilities [n, k], k ≥ 2."""
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
        return jax.nn.one_hot(*_as_labels(array, n, k), dtype=dtype)

    # 3. Probabilities.
    check_shape("y", array, (n, "k" if k is None else k))
    if array.shape[1] < 2:
        raise ValueError(
            f"y must have at least two classes, got shape {array.shape}. Of labels take the one "
            "column, y[:, 0]; of probabilities of one class give both, [n, 2]."
        )
    probabilities = as_dtype("y", array, dtype)
    if is_concrete(array):
        _check_probabilities(np.asarray(array))
    return probabilities


def _as_labels(array: Any, n: int, classes: int | None) -> tuple[Array, int]:
    """Return checked labels, and the number of classes: the largest label and one if None."""
    labels = as_integers("y", array, (n,))
    # What was passed is looked at: under jit known labels are traced once they are converted.
    if not is_concrete(array):
        if classes is None:
            raise ValueError(
                "y must be known where it decides the number of classes, got traced labels. Give "
                "classes=, or probabilities [n, k]."
            )
        return labels, classes
    lowest = int(np.min(np.asarray(array)))
    largest = int(np.max(np.asarray(array)))
    if lowest < 0:
        raise ValueError(f"y must hold labels from 0 on, got {lowest}.")
    if classes is None and largest == 0:
        raise ValueError(
            "y must have at least two classes, got the label 0 alone. If there are more than these "
            "data show, say how many: classes=2."
        )
    if classes is not None and largest >= classes:
        raise ValueError(f"y must hold labels below classes={classes}, got {largest}.")
    return labels, largest + 1 if classes is None else classes


def _check_probabilities(probabilities: np.ndarray) -> None:
    """Refuse negative probabilities and rows that do not sum to one."""
    lowest = probabilities.min()
    if lowest < 0:
        raise ValueError(f"y must hold probabilities, got {lowest}.")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    worst_row = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst_row] - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"y must hold probabilities that sum to one in each row, got the sum "
            f"{sums[worst_row]:.6g} in row {worst_row}. Divide by the sums, or pass counts as "
            "sample_weight times probabilities."
        )


def as_row_weights(
    sample_weight: object, class_weight: object, target: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Return s, [n], the product of the weight of each row and that of its class.

    The weight of a row whose target is no single class is the mean of the classes' weights.
    """
    n, k = target.shape
    dtype = target.dtype
    # 1. The weights of rows.
    if sample_weight is None:
        row_weights = jnp.ones(n, dtype)
    else:
        row_weights = as_weights("sample_weight", sample_weight, dtype, (n,))
    if class_weight is None:
        return row_weights
    # 2. The weights of classes; a class without rows has none.
    if isinstance(class_weight, str):
        check_choice("class_weight", class_weight, ("balanced",))
        class_totals = jnp.sum(row_weights[:, None] * target, axis=0)
        is_present = class_totals > 0
        balanced = jnp.sum(class_totals) / (k * jnp.where(is_present, class_totals, 1))
        class_weights = jnp.where(is_present, balanced, 0)
    else:
        class_weights = as_weights("class_weight", class_weight, dtype, (k,))
    return row_weights * jnp.sum(target * class_weights[None], axis=1)
