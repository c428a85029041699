"""Intervals that enclose kernels at moved weights: means, products and ranges, against draws."""

import itertools

import numpy as np
from helpers import assert_close

from softntk._linalg.rigorous import Interval
from softntk.theory._perturbation.interval_bound import _gram_change, mean_interval


def test_the_interval_of_means_is_exact():
    """Against all corners of the box."""
    rng = np.random.default_rng(0)
    for a in (rng.normal(size=(7, 3)), rng.choice([-1.0, 1.0], size=(7, 3)), np.ones((7, 3))):
        low = rng.normal(size=(2, 7)) * 0.1 + 0.3
        high = low + rng.random((2, 7))
        ends = np.array(list(itertools.product([0, 1], repeat=7)))
        corners = np.where(ends[:, None], high, low)
        ratios = corners @ a / corners.sum(-1, keepdims=True)
        found = mean_interval(a, Interval(low, high))
        assert_close(found.lower, ratios.min(0))
        assert_close(found.upper, ratios.max(0))


def test_change_of_a_gram_matrix_is_enclosed():
    """Against all corners of intervals that lie askew around g."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(2, 3))
    low, high = g - 0.1 * rng.random((2, 3)), g + 2 * rng.random((2, 3))
    ends = np.array(list(itertools.product([0, 1], repeat=6))).reshape(-1, 2, 3)
    moved = np.where(ends, high, low)
    most = np.abs(np.einsum("cir,cjr->cij", moved, moved) - g @ g.T).max(0)
    found = _gram_change(g, low, high)
    assert np.all(most <= found)
    assert np.all(found <= 2 * most)


def test_products_of_intervals_hold_the_products_of_their_numbers():
    rng = np.random.default_rng(0)
    ends = np.sort(rng.normal(size=(2, 50, 2)), axis=-1)
    one, two = (Interval(low, high) for low, high in np.moveaxis(ends, -1, 1))
    corners = np.array([a * b for a in one for b in two])
    inside = np.array([rng.uniform(*one) * rng.uniform(*two) for _ in range(100)])
    found = one * two
    assert np.array_equal(found.lower, corners.min(axis=0))
    assert np.array_equal(found.upper, corners.max(axis=0))
    assert (found.lower <= inside).all()
    assert (inside <= found.upper).all()
