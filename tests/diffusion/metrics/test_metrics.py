"""Metrics of scores and samples: against SciPy, loops over all pairs, closed forms; their intervals
by simulation.
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
from helpers import assert_close, points

from softntk import diffusion
from softntk.diffusion import metrics
from softntk.diffusion.metrics import _pairwise, _score_error

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Normal:
    """N(0, σ²I) in three dimensions: X_t is normal of variance α²σ² + h."""

    sigma: jax.Array

    def sample(self, key, n):
        return self.sigma * jax.random.normal(key, (n, 3), self.sigma.dtype)

    def score(self, sde, t, x):
        return -x / self.variance(sde, t)

    def variance(self, sde, t):
        return sde.alpha(t) ** 2 * self.sigma**2 + sde.variance(t)


def normal(dtype="float64"):
    return Normal(sigma=jnp.asarray(0.5, dtype))


def samples(dtype="float64", n=13, m=8, d=3):
    return points(0, n, d, dtype), 0.5 + 2 * points(1, m, d, dtype)


def widths(estimate):
    return np.asarray(estimate.upper - estimate.lower)


# Score error


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


@partial(jax.jit, static_argnames=("metric", "n", "m", "d"))
def simulate(keys, metric, n, m, d, shift, scale):
    """The metric of n draws of N(0, I) and m of N(shift, scale² I), once a key."""

    def one(key):
        of_x, of_y = jax.random.split(key)
        return metric(
            jax.random.normal(of_x, (n, d)), shift + scale * jax.random.normal(of_y, (m, d))
        )

    return jax.lax.map(one, keys, batch_size=50)


def covers(metric, exact, n, m, d, shift, scale, repetitions=300):
    """The mean is exact, and the interval contains it as often as it should."""
    found = simulate(jax.random.split(KEY, repetitions), metric, n, m, d, shift, scale)
    assert abs(float(found.value.mean()) - exact) < 4 * float(found.value.std()) / math.sqrt(
        repetitions
    )
    assert 0.91 < coverage(found, exact) < 0.99, (
        f"{coverage(found, exact)} for a shift of {shift} and a scale of {scale}"
    )


def energy_of_normals(shift, scale):
    """The energy distance on a line: E|Z| of normal differences in closed form."""

    def absolute(mean, deviation):
        z = mean / deviation
        return deviation * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + mean * (
            1 - 2 * scipy.stats.norm.cdf(-z)
        )

    return (
        2 * absolute(shift, math.hypot(1, scale))
        - absolute(0, math.sqrt(2))
        - absolute(0, math.sqrt(2) * scale)
    )


def mmd_of_normals(shift, scale, d, bandwidth):
    """E k(X, Y) is a normal density in closed form."""
    kernel = lambda mean, variance: (
        (1 + variance / bandwidth**2) ** (-d / 2)
        * math.exp(-d * mean**2 / (2 * (bandwidth**2 + variance)))
    )
    return kernel(0, 2) + kernel(0, 2 * scale**2) - 2 * kernel(shift, 1 + scale**2)


# From equal distributions over those that are hardly told apart to different ones.
REGIMES = [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.0, 2.0)]
NARROW, WIDE = (partial(metrics.mmd, bandwidth=bandwidth) for bandwidth in (1.0, 5.0))


@pytest.mark.optimised
@pytest.mark.slow
def test_coverage_of_the_energy_distance():
    """On a line one eigenvalue dominates: the limit for equal distributions is as skew as it can
    be.
    """
    for shift, scale in REGIMES:
        covers(metrics.energy_distance, energy_of_normals(shift, scale), 64, 32, 1, shift, scale)


@pytest.mark.optimised
@pytest.mark.slow
def test_coverage_of_mmd():
    """In five dimensions many eigenvalues matter."""
    for shift, scale in REGIMES:
        covers(NARROW, mmd_of_normals(shift, scale, 5, 1.0), 32, 64, 5, shift, scale)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("d", [1, 5])
@pytest.mark.parametrize(("n", "m"), [(64, 64), (192, 64)])
def test_coverage_at_length(n, m, d, x64):
    for shift, scale in [*REGIMES, (0.1, 1.0), (0.0, 1.3)]:
        for metric, bandwidth in ((NARROW, 1.0), (WIDE, 5.0)):
            covers(metric, mmd_of_normals(shift, scale, d, bandwidth), n, m, d, shift, scale, 1000)
        if d == 1:
            covers(
                metrics.energy_distance,
                energy_of_normals(shift, scale),
                n,
                m,
                d,
                shift,
                scale,
                1000,
            )


@pytest.mark.optimised
def test_the_interval_is_not_wider_than_it_need_be():
    """Far from equality it is the normal one, ± 1.96 standard deviations of the estimate."""
    found = simulate(jax.random.split(KEY, 300), metrics.energy_distance, 64, 32, 1, 2.5, 1.0)
    assert (
        abs(float(jnp.median(found.upper - found.lower) / (2 * 1.96 * found.value.std())) - 1)
        < 0.15
    )


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


def test_wilson_interval(x64):
    train = jnp.arange(20.0)[:, None]
    held_out = train + 0.1
    for copies in (0, 7, 20):
        x = train + jnp.where(jnp.arange(20)[:, None] < copies, 0, 0.3)
        fraction = metrics.memorisation(x, train, held_out).fraction
        expected = scipy.stats.binomtest(copies, 20).proportion_ci(method="wilson")
        assert_close(
            [fraction.value, fraction.lower, fraction.upper], [copies / 20, *expected], rtol=1e-6
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
    sizes = [f._cache_size() for f in caches]
    once(jax.random.key(1), x + 1, y + 1)
    assert [f._cache_size() for f in caches] == sizes


@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_ten_thousand_points_need_no_square_memory(bandwidth):
    many = jax.ShapeDtypeStruct((10_000, 16), jnp.float32)
    width = None if bandwidth is None else jax.ShapeDtypeStruct((), jnp.float32)
    for program in (
        _pairwise.discrepancy.lower(many, many, width),
        _pairwise.nearest.lower(many, many, False),
    ):
        # all distances are 400 MB
        assert program.compile().memory_analysis().temp_size_in_bytes < 40e6


X = np.ones((4, 2), np.float32)
BAD_PAIRS = [
    ("x", "floating-point", X.astype(int), X),
    ("x", "shape", X[0], X),
    ("{second}", "columns", X, X[:, :1]),
    ("{second}", "finite", X, np.full_like(X, np.nan)),
    ("{second}", "dtype", X, X.astype(np.float64)),
]


@pytest.mark.parametrize(("name", "message", "x", "y"), BAD_PAIRS)
def test_bad_samples(name, message, x, y, untyped, x64):
    for second, metric in (
        ("y", partial(metrics.sliced_wasserstein, KEY)),
        ("y", metrics.energy_distance),
        ("y", metrics.mmd),
        ("y", metrics.median_bandwidth),
        ("train", metrics.nearest_training_point),
        ("train", lambda x, train: metrics.memorisation(x, train, x)),
    ):
        with pytest.raises(ValueError, match=f"^{name.format(second=second)} must .*{message}"):
            metric(x, y)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must have at least 2 rows", lambda: metrics.energy_distance(X[:1], X)),
        ("y must have at least 2 rows", lambda: metrics.mmd(X, X[:1])),
        (
            "x must have at least 2 rows",
            lambda: metrics.nearest_training_point(X[:1], X[:1], exclude_self=True),
        ),
        (
            "x must be train itself",
            lambda: metrics.nearest_training_point(X[:3], X, exclude_self=True),
        ),
        (
            "projections must be an integer of at least 2, got 0",
            lambda: metrics.sliced_wasserstein(KEY, X, X, projections=0),
        ),
        (
            "projections must be an integer of at least 2, got 1",
            lambda: metrics.sliced_wasserstein(KEY, X, X, projections=1),
        ),
        (
            "order must be a positive integer of at most 2",
            lambda: metrics.sliced_wasserstein(KEY, X, X, order=3),
        ),
        ("bandwidth must be a positive", lambda: metrics.mmd(X, X, bandwidth=0.0)),
        (
            "quantile must be a finite number above 0 and below 1",
            lambda: metrics.memorisation(X, X, X + 1, quantile=1.0),
        ),
        ("held_out must be points that are not in train", lambda: metrics.memorisation(X, X, X)),
        ("held_out must have as many columns", lambda: metrics.memorisation(X, X, X[:, :1])),
        (
            "n must be an integer of at least",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 0.1, n=1),
        ),
        (
            "t must be a floating-point",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 1),
        ),
        (
            "t must be a scalar or of shape",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), np.ones(0)),
        ),
        (
            "t must lie in",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 0.0),
        ),
        (
            "t must lie in",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), math.nan),
        ),
    ],
)
def test_bad_arguments(message, call, untyped):
    with pytest.raises(ValueError, match=message):
        call()
