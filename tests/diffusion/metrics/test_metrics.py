"""Metrics of samples: against SciPy, loops over all pairs and closed forms; programs and derivatives
of all metrics.
"""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from helpers import assert_close, cache_size, normal, points

from softntk import diffusion
from softntk.diffusion import metrics
from softntk.diffusion.metrics import _pairwise, _score_error

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)


def samples(dtype="float64", n=13, m=8, d=3):
    return points(0, n, d, dtype), 0.5 + 2 * points(1, m, d, dtype)


def widths(estimate):
    return np.asarray(estimate.upper - estimate.lower)


# Sliced Wasserstein


@pytest.mark.parametrize(
    ("n", "m", "dtype"), [(13, 13, "float64"), (13, 8, "float32"), (1, 5, "float64")]
)
def test_wasserstein_on_a_line_is_that_of_scipy(n, m, dtype, x64):
    x, y = samples(dtype, n, m, 1)
    found = metrics.sliced_wasserstein(KEY, x, y, projections=3, order=1)
    assert_close(found.value, scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]), dtype)
    # both with n·m points of equal mass
    repeated = np.sort(np.repeat(x[:, 0], m)), np.sort(np.repeat(y[:, 0], n))
    second = metrics.sliced_wasserstein(KEY, x, y, projections=3)
    assert_close(second.value, np.sqrt(np.mean((repeated[0] - repeated[1]) ** 2)), dtype)
    assert widths(second) < 1e-3


def test_sliced_wasserstein_averages_over_directions(x64):
    x, y = samples(n=13, m=8)
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(20_000, 3))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    u, v = (
        np.repeat(np.sort(np.asarray(x) @ theta.T, 0), 8, 0),
        np.repeat(np.sort(np.asarray(y) @ theta.T, 0), 13, 0),
    )
    for order in (1, 2):
        found = metrics.sliced_wasserstein(KEY, x, y, projections=20_000, order=order)
        expected = np.mean(np.abs(u - v) ** order) ** (1 / order)
        assert abs(float(found) / expected - 1) < 0.01
        assert found.lower < found.value < found.upper


@pytest.mark.slow
def test_coverage_over_directions_for_a_shift(x64):
    """W_p along θ of a shifted sample is |θ·v|: E|θ·v|² = |v|²/d and in three dimensions E|θ·v| =
    |v|/2.
    """
    x = 100 + points(0, 10, 3)
    y = x + jnp.array([[1.0, 2.0, 2.0]])
    for order, exact in ((2, 3 / math.sqrt(3)), (1, 1.5)):
        distance = jax.jit(partial(metrics.sliced_wasserstein, projections=64, order=order))
        found = jax.lax.map(
            lambda key, f=distance: f(key, x, y), jax.random.split(KEY, 500), batch_size=100
        )
        assert 0.92 < coverage(found, exact) < 0.975


def test_sliced_wasserstein_of_gaussians(x64):
    """W_2 of two normals of one covariance is the length of the shift: sliced, |v|/√d."""
    x, y = jax.random.normal(KEY, (2, 4000, 4))
    found = metrics.sliced_wasserstein(KEY, x, y + 2.0, projections=500)
    # four standard deviations over the directions
    assert abs(float(found) - 4 / math.sqrt(4)) < widths(found) < 0.25


def test_far_from_the_origin_sliced_distances_keep_their_digits():
    x = jnp.round(points(0, 50, 3, "float32") * 1024) / 1024  # so that adding 1024 is exact
    near, far = (float(metrics.sliced_wasserstein(KEY, x + c, x[:40] + c)) for c in (0, 1024))
    assert abs(far / near - 1) < 2e-6


# Energy distance and MMD


def brute(x, y, rho):
    """2E ρ(X, Y) − E ρ(X, X') − E ρ(Y, Y'), a loop over all pairs."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    own = lambda a: np.mean(
        [rho(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]
    )
    return 2 * np.mean([rho(p, q) for p in x for q in y]) - own(x) - own(y)


def test_discrepancies_are_those_of_all_pairs(dtype):
    x, y = samples(
        dtype, *((40, 70) if dtype == "float64" else (13, 8))
    )  # more and fewer than are compared at once
    distance = lambda p, q: np.linalg.norm(p - q)
    for found, rho in (
        (metrics.energy_distance(x, y), distance),
        (
            metrics.mmd(x, y, bandwidth=0.7),
            lambda p, q: 1 - np.exp(-(distance(p, q) ** 2) / (2 * 0.7**2)),
        ),
    ):
        assert_close(found.value, brute(x, y, rho), dtype)
        assert found.lower <= found.value <= found.upper
        assert found.value.dtype == dtype


def test_median_bandwidth(dtype):
    x, y = samples(dtype)
    pooled = np.concatenate([x, y])
    expected = np.median(scipy.spatial.distance.pdist(pooled.astype(np.float64)))
    assert_close(metrics.median_bandwidth(x, y), expected, dtype)
    assert_close(
        metrics.mmd(x, y).value,
        metrics.mmd(x, y, bandwidth=float(expected)).value,
        dtype,
        rtol=1e-4,
    )
    assert float(metrics.median_bandwidth(x[:1].repeat(3, 0), x[:1].repeat(2, 0))) == 1
    long = points(2, 1700, 3, dtype)
    assert_close(metrics.median_bandwidth(long, y), metrics.median_bandwidth(long[::4], y), dtype)


def test_discrepancies_keep_their_digits_in_float32(x64):
    """Tight clusters far apart, and a kernel far wider than the data: both are lost by |x|² − 2x·y
    + |y|² and by 1 − k.
    """
    x, y = 300 + 1e-3 * points(0, 30, 2), 300 + 2e-3 * points(1, 20, 2)
    x32, y32 = x.astype("float32"), y.astype("float32")
    exact = metrics.energy_distance(x32.astype("float64"), y32.astype("float64"))
    chex.assert_trees_all_close(metrics.energy_distance(x32, y32), exact, rtol=1e-4)
    x, y = points(0, 30, 2), points(1, 20, 2)
    found = metrics.mmd(x.astype("float32"), y.astype("float32"), bandwidth=1e3)
    chex.assert_trees_all_close(found, metrics.mmd(x, y, bandwidth=1e3), rtol=1e-3)


def test_identical_points_are_at_distance_zero():
    x = jnp.full((4, 2), 0.1)
    for found in (metrics.energy_distance(x, x), metrics.mmd(x, x)):
        assert float(found) == float(found.lower) == float(found.upper) == 0


def coverage(estimate, truth):
    return float(((estimate.lower <= truth) & (truth <= estimate.upper)).mean())


NARROW, WIDE = (partial(metrics.mmd, bandwidth=bandwidth) for bandwidth in (1.0, 5.0))


# Training points


def test_nearest_points_are_those_of_all_pairs(dtype):
    x, train = samples(dtype, 40, 70)
    everything = scipy.spatial.distance.cdist(
        np.asarray(x, np.float64), np.asarray(train, np.float64)
    )
    found = metrics.nearest_training_point(x, train)
    assert_close(found.distance, everything.min(1), dtype)
    assert (found.index == everything.argmin(1)).all()
    own = scipy.spatial.distance.cdist(np.asarray(train, np.float64), np.asarray(train, np.float64))
    np.fill_diagonal(own, np.inf)
    itself = metrics.nearest_training_point(train, train, exclude_self=True)
    assert_close(itself.distance, own.min(1), dtype)
    assert (itself.index == own.argmin(1)).all()


def test_copies_are_at_distance_zero_far_from_the_origin():
    train = 1e4 + points(0, 300, 5, "float32")
    found = metrics.nearest_training_point(train[::-1], train)
    assert (found.distance == 0).all()
    assert (found.index == jnp.arange(300)[::-1]).all()
    twice = jnp.concatenate([train, train])
    found = metrics.nearest_training_point(twice, twice, exclude_self=True)
    assert (found.distance == 0).all()
    assert (found.index == (jnp.arange(600) + 300) % 600).all()


def test_memorisation_tells_copies_from_fresh_draws():
    dtype = "float32"
    train, fresh, held_out = (points(seed, 400, 2, dtype) for seed in (0, 1, 2))
    honest = metrics.memorisation(fresh, train, held_out)
    assert 0.8 < float(honest.ratio) < 1.25
    assert 0.02 < float(honest.fraction) < 0.1
    copied = metrics.memorisation(jnp.concatenate([train[:200], fresh[200:]]), train, held_out)
    assert 0.5 <= float(copied.fraction) < 0.6
    assert copied.fraction.lower < 0.5 < copied.fraction.value < copied.fraction.upper
    assert float(copied.distance) < float(honest.distance)
    assert_close(copied.ratio, copied.distance / copied.held_out_distance, dtype)
    nearest = lambda x: np.linalg.norm(
        np.asarray(x)[:, None] - np.asarray(train)[None], axis=2
    ).min(1)
    assert_close(honest.distance, np.median(nearest(fresh)), dtype)
    assert_close(honest.held_out_distance, np.median(nearest(held_out)), dtype)
    for quantile in (0.05, 0.5):
        found = metrics.memorisation(fresh, train, held_out, quantile=quantile).fraction
        assert_close(
            found.value, np.mean(nearest(fresh) <= np.quantile(nearest(held_out), quantile)), dtype
        )


# All of them


def everything(x, y):
    return (
        metrics.sliced_wasserstein(KEY, x, y, projections=8),
        metrics.energy_distance(x, y),
        metrics.mmd(x, y, bandwidth=1.0),
        metrics.mmd(x, y),
        metrics.nearest_training_point(x, y),
        metrics.memorisation(x, y, x[:4]),
    )


@pytest.mark.slow
def test_programs_and_batches():
    x, y = samples("float32")
    compiled = jax.jit(jax.vmap(everything, in_axes=(0, None)))(jnp.stack([x, x + 1]), y)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[0], compiled), everything(x, y), rtol=1e-4
    )


@pytest.mark.parametrize(
    "metric",
    [metrics.energy_distance, NARROW, partial(metrics.sliced_wasserstein, KEY, projections=8)],
    ids=lambda f: str(f)[:20],
)
@pytest.mark.slow
def test_derivatives(metric, x64):
    x, y = samples()
    value, step = jax.jit(lambda x: metric(x, y).value), 1e-6
    numerical = (value(x.at[2, 1].add(step)) - value(x.at[2, 1].add(-step))) / (2 * step)
    assert_close(jax.grad(value)(x)[2, 1], numerical, rtol=1e-6)


@pytest.mark.slow
def test_nothing_compiles_twice():
    x, y = samples("float32")
    truth = normal("float32")
    score = jax.jit(lambda t, x: -x)
    t = jnp.array([0.1, 0.2])
    once = lambda key, x, y: (
        everything(x, y),
        metrics.score_error(key, SDE, score, truth, t, n=10),
    )
    once(KEY, x, y)
    caches = _score_error._draw, _pairwise.discrepancy, _pairwise.nearest, _pairwise.median, score
    sizes = [cache_size(f) for f in caches]
    once(jax.random.key(1), x + 1, y + 1)
    assert [cache_size(f) for f in caches] == sizes


@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_ten_thousand_points_need_no_square_memory(bandwidth):
    many = jax.ShapeDtypeStruct((10_000, 16), jnp.float32)
    width = None if bandwidth is None else jax.ShapeDtypeStruct((), jnp.float32)
    for program in (
        _pairwise.discrepancy.lower(many, many, width),
        _pairwise.nearest.lower(many, many, False),
    ):
        # all distances are 400 MB
        memory = program.compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 40e6
