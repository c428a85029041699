"""Errors of scores: those that are known in closed form; their intervals by simulation."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, normal, points

from softntk import diffusion
from softntk.diffusion import metrics

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)


def widths(estimate):
    return np.asarray(estimate.upper - estimate.lower)


def test_a_score_with_a_known_error(dtype):
    truth, t, offset = (
        normal(dtype),
        jnp.array([0.01, 0.5], dtype),
        jnp.array([[3.0, 0.0, -4.0]], dtype),
    )
    scaled = metrics.score_error(
        KEY, SDE, jax.jit(lambda t, x: 1.1 * truth.score(SDE, t, x)), truth, t, n=4096
    )
    assert_close(
        scaled.relative.value, [0.01] * 2, dtype, rtol=1e-5 if dtype == "float32" else 1e-12
    )
    assert (widths(scaled.relative) < 1e-6).all()
    assert_close(scaled.t, t)
    moved = metrics.score_error(
        KEY, SDE, jax.jit(lambda t, x: truth.score(SDE, t, x) + offset), truth, t, n=4096
    )
    assert_close(
        moved.absolute.value, [25.0] * 2, dtype, rtol=1e-4 if dtype == "float32" else 1e-12
    )
    expected = 25 * truth.variance(SDE, t) / 3  # E‖s*‖² = d/variance
    # four standard deviations
    assert (np.abs(moved.relative.value - expected) < widths(moved.relative)).all()
    assert (widths(moved.relative) < 0.1 * expected).all()
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(moved))


@pytest.mark.slow
def test_score_errors_of_mixtures_and_data(x64):
    mixture = diffusion.GaussianMixture(
        jnp.array([0.3, 0.7]), points(0, 2, 2), 0.1 * jnp.stack([jnp.eye(2)] * 2)
    )
    for truth in (mixture, diffusion.EmpiricalDistribution(points(1, 20, 2))):
        score = jax.jit(lambda t, x, truth=truth: 0.8 * truth.score(SDE, t, x))
        error = metrics.score_error(KEY, SDE, score, truth, 0.3, n=20)
        assert error.relative.value.shape == ()
        assert_close(error.relative.value, 0.04)


def test_score_error_in_a_program_and_of_a_vector_of_times(x64):
    truth = normal()
    error = jax.jit(lambda key, t: metrics.score_error(key, SDE, lambda t, x: -x, truth, t, n=100))
    t = jnp.array([0.1, 0.4])
    chex.assert_trees_all_close(
        error(KEY, t), metrics.score_error(KEY, SDE, lambda t, x: -x, truth, t, n=100), rtol=1e-12
    )
    with pytest.raises(ValueError, match="score_fn must return the shape"):
        metrics.score_error(KEY, SDE, lambda t, x: x[:, :1], truth, 0.1)
    with pytest.raises(ValueError, match="score_fn must be finite, got 100 of 100"):
        metrics.score_error(KEY, SDE, lambda t, x: x * jnp.nan, truth, 0.1, n=100)


@pytest.mark.optimised
@pytest.mark.slow
def test_coverage_of_the_score_error(x64):
    truth, t = normal(), 0.05
    wrong = lambda t, x: -x - 0.3 * jnp.sin(3 * x)
    error = jax.jit(lambda key: metrics.score_error(key, SDE, wrong, truth, t, n=200))
    found = jax.lax.map(error, jax.random.split(KEY, 1000), batch_size=50)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    variance = float(truth.variance(SDE, t))
    x = nodes * math.sqrt(variance)
    absolute = (
        3 * np.sum(weights * (x / variance - x - 0.3 * np.sin(3 * x)) ** 2) / math.sqrt(2 * math.pi)
    )
    for estimate, exact in ((found.absolute, absolute), (found.relative, absolute * variance / 3)):
        assert 0.92 < coverage(estimate, exact) < 0.97


def coverage(estimate, truth):
    return float(((estimate.lower <= truth) & (truth <= estimate.upper)).mean())
