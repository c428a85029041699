"""Calibration of predictions: whether probabilities and error bars are what they say.

    classes     :func:`expected_calibration_error`, :func:`reliability_curve`, the proper scores
                :func:`brier_score` and :func:`negative_log_likelihood`, and :func:`accuracy`
    regression  :func:`coverage` of intervals, :func:`gaussian_negative_log_likelihood`

Each number is an :class:`Estimate` with an interval of 95 %, over samples drawn independently. All
are pure functions for ``jit`` and ``vmap``. A calibration error alone does not rank predictors, a
proper score does; the calibration error says which part of it recalibration may remove.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import calibration
    >>> probabilities = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> labels = jnp.array([0, 0, 1, 1])
    >>> score = calibration.brier_score(probabilities, labels)
    >>> bool(score.lower <= score.value <= score.upper), round(float(score), 3)
    (True, 0.25)

Source: MATHEMATICS.md#calibration; the docstrings name the others.
"""

from softntk._linalg.intervals import Estimate as Estimate
from softntk.calibration._binning import ReliabilityCurve as ReliabilityCurve
from softntk.calibration._binning import expected_calibration_error as expected_calibration_error
from softntk.calibration._binning import reliability_curve as reliability_curve
from softntk.calibration._regression import coverage as coverage
from softntk.calibration._regression import (
    gaussian_negative_log_likelihood as gaussian_negative_log_likelihood,
)
from softntk.calibration._scores import accuracy as accuracy
from softntk.calibration._scores import brier_score as brier_score
from softntk.calibration._scores import negative_log_likelihood as negative_log_likelihood
