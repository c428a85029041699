"""Arguments of norms, ranks, risk bounds and stopping times: what is wrong is named."""

import numpy as np
import pytest

from softntk.theory.generalisation._early_stopping import early_stopping_time
from softntk.theory.generalisation._norms_and_ranks import (
    effective_rank,
    noise_level,
    rkhs_norm,
)
from softntk.theory.generalisation._risk import risk_bound


def test_bad_input(untyped):
    gram, y = np.eye(3), np.ones((3, 1))
    lopsided = np.array([[1.0, 2.0], [0.0, 1.0]])
    for call, message in [
        (lambda: rkhs_norm(lopsided, y[:2]), "gram must be symmetric"),
        (lambda: rkhs_norm(gram[:2], y), "gram must have shape|y must have shape"),
        (lambda: rkhs_norm(gram.astype(int), y), "gram must be a floating-point array"),
        (lambda: rkhs_norm(gram, y * np.nan), "y must be finite"),
        (lambda: rkhs_norm(gram, y[:2]), r"y must have shape \[n, k\]"),
        (lambda: rkhs_norm(gram, y[:2, 0]), r"y must have shape \[n, k\]"),
        (lambda: rkhs_norm(gram, y.astype(int)), "y must be a floating-point array"),
        (
            lambda: risk_bound(gram, y, 0.0),
            "failure must be a finite number above 0 and below 1, got 0.0",
        ),
        (
            lambda: risk_bound(gram, y, 1.0),
            "failure must be a finite number above 0 and below 1, got 1.0",
        ),
        (
            lambda: risk_bound(gram, y, np.nan),
            "failure must be a finite number above 0 and below 1, got nan",
        ),
        (
            lambda: risk_bound(gram, y, ridge=-1.0),
            "ridge must be a finite number at least 0, got -1.0",
        ),
        (lambda: risk_bound(gram, y, time=0.0), "time must be a positive number, got 0.0"),
        (lambda: risk_bound(gram, y, time=1.0, ridge=1.0), "ridge and time are two predictors"),
        (lambda: risk_bound(gram, y, ratio=1.0), "ratio must be a finite number above 1"),
        (lambda: risk_bound(gram, y, unit=0.0), "unit must be a positive"),
        (
            lambda: risk_bound(np.ones((3, 3, 1, 1)), y),
            r"gram must have shape \[n, n\], got \(3, 3, 1, 1\)",
        ),
        (lambda: risk_bound(lopsided, y[:2]), "gram must be symmetric"),
        (lambda: effective_rank(None), "give gram or eigenvalues"),
        (
            lambda: effective_rank(gram, eigenvalues=np.ones(3)),
            "give either gram or eigenvalues, got both",
        ),
        (
            lambda: effective_rank(None, eigenvalues=np.array([1.0, -1.0])),
            "eigenvalues must be finite, not negative",
        ),
        (
            lambda: effective_rank(None, eigenvalues=np.array([1e-6, -1e-7])),
            "eigenvalues must be finite, not negative",
        ),
        (lambda: effective_rank(0 * gram), "gram must have a positive eigenvalue"),
        (lambda: noise_level(gram, y * np.inf), "y must be finite"),
        (lambda: noise_level(-gram, y), "gram must have a positive eigenvalue"),
        (lambda: early_stopping_time(gram, 0.0), "noise must be a positive finite number, got 0.0"),
        (lambda: early_stopping_time(gram, -1.0), "noise must be a positive finite number"),
        (lambda: early_stopping_time(gram, np.nan), "noise must be a positive finite number"),
        (lambda: early_stopping_time(gram, 1.0, norm=0.0), "norm must be a positive finite number"),
        (
            lambda: early_stopping_time(gram, 1.0, constant=-1.0),
            "constant must be a positive finite number, got -1.0",
        ),
        (
            lambda: early_stopping_time(gram, 1.0, learning_rate=1.5),
            "learning_rate must be at most 1/λ_max = 1, .* got 1.5",
        ),
        (lambda: early_stopping_time(lopsided, 1.0), "gram must be symmetric"),
        (lambda: early_stopping_time(gram * np.nan, 1.0), "gram must be finite"),
        (
            lambda: early_stopping_time(None, 1.0, eigenvalues=np.array([])),
            "eigenvalues must not be empty",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
