"""Arguments that every estimator has: weights of samples, labels, and how a run ended."""

import numbers
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets

from softntk.solution import Result


def as_sample_weight(sample_weight: Any, samples: int, dtype: Any) -> np.ndarray:
    """Return a weight for each sample, ones if there are none.

    Raises:
        ValueError: weights of another number, negative, not finite, or all zero.
    """
    if sample_weight is None:
        return np.ones(samples, dtype)
    # One number is the weight of every sample, as in scikit-learn.
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(samples, sample_weight)
    weights = check_array(
        sample_weight, ensure_2d=False, allow_nd=True, dtype=dtype, input_name="sample_weight"
    )
    if weights.shape != (samples,):
        raise ValueError(
            f"sample_weight must have shape ({samples},), one weight a sample, got {weights.shape}."
        )
    if np.any(weights < 0):
        raise ValueError(f"sample_weight must not be negative, got {weights.min():.3g}.")
    if not np.any(weights > 0):
        raise ValueError("sample_weight must not be zero for all samples.")
    return weights


def as_labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, sorted, and the number of the class of each sample.

    Raises:
        ValueError: y holds no labels, or those of one class.
    """
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    check_has_classes(labels)
    return classes, labels


def check_has_classes(labels: np.ndarray) -> None:
    """Refuse labels of one class, for instance those whose samples have a positive weight."""
    if len(np.unique(labels)) < 2:
        raise ValueError(
            "y must hold labels of at least two classes, with positive weights, "
            "but holds one class."
        )


def check_not_interrupted(result: Any) -> Result:
    """Return the code of a run that was not interrupted.

    Raises:
        KeyboardInterrupt: it was, so that a search around it stops too.
    """
    code = Result(int(result))
    if code is Result.INTERRUPTED:
        raise KeyboardInterrupt
    return code


def report_result(result: Any, hint: str) -> None:
    """Warn if a run did not succeed, with the advice of its code and a hint.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    code = check_not_interrupted(result)
    if code is not Result.SUCCESSFUL:
        warnings.warn(f"{code.name}: {code.advice} {hint}", ConvergenceWarning, stacklevel=3)
