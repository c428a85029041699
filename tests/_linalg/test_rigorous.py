"""Directed rounding, and bounds of eigenvalues from either side: as close as stated."""

import math

import numpy as np
from helpers import assert_close

from softntk._linalg import rigorous

EPS = 2.0**-52


def test_slack_and_eigenvalues_from_below_are_as_close_as_stated():
    assert rigorous.slack(10) == 4 * (10 + 64) * EPS
    H = np.diag([1.0, 3.0])
    room = (2 + 2) * EPS * (4.0 + 2 * 3.0)
    found = rigorous.smallest_eigenvalue(H, 0.25)
    assert_close((0.75 - found) / EPS, (2 * room + 4 * EPS * 3.0) / EPS, rtol=0.05)
    assert rigorous.smallest_eigenvalue(np.array([[np.nan]]), 0.0) == -math.inf
    assert rigorous.smallest_eigenvalue(np.eye(2), math.nan) == -math.inf
    assert rigorous.perron_norm(np.zeros((2, 2))) == 0.0
    assert rigorous.perron_norm(np.array([[1.0, math.inf], [math.inf, 1.0]])) == math.inf
    M = np.array([[1.0, 2.0, 0.5], [2.0, 1.0, 3.0], [0.5, 3.0, 2.0]])
    top = np.linalg.eigvalsh(M)[-1]
    assert top <= rigorous.perron_norm(M) <= 1.003 * top
    assert_close(rigorous.perron_norm(np.array([[2.0, 1.0], [1.0, 2.0]])), 3.0, rtol=1e-3)


def test_eigenvalues_that_are_computed_too_large_are_not_proved(monkeypatch):
    """The factorisation is of H − (t + c tr) I, with t a margin 2 c tr below what was computed."""
    H = np.diag([1.0, 3.0])
    margin = (2 + 2) * EPS * (4.0 + 2 * 3.0)
    computed = np.linalg.eigvalsh(H)
    for error, is_proved in ((0.5, True), (1.5, False)):
        wrong = computed + error * margin
        monkeypatch.setattr(np.linalg, "eigvalsh", lambda H, wrong=wrong: wrong)
        assert math.isfinite(rigorous.smallest_eigenvalue(H, 0.0)) == is_proved
