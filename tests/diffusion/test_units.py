"""Laws "x → c x": metrics, known distributions and frames do not depend on the unit of the data,
and never say NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
from helpers import assert_close, points

from softntk import diffusion
from softntk._linalg.intervals import normal, score_interval
from softntk.diffusion import metrics
from softntk.diffusion._denoisers.coordinates import fit_coordinates

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)
UNITS = [1e-30, 1e-22, 1e-12, 1e10, 1e19, 1e30]


def ends(estimate):
    return [float(estimate.value), float(estimate.lower), float(estimate.upper)]


@pytest.fixture(scope="module")
def samples():
    """Two samples that are told apart, in float32, with their distances."""
    x, y = np.asarray(points(0, 40, 2, "float32")), np.asarray(0.7 + points(1, 30, 2, "float32"))
    return x, y, scipy.spatial.distance.cdist(x.astype(np.float64), y.astype(np.float64))


@pytest.mark.parametrize("unit", UNITS)
def test_metrics_are_homogeneous(unit, samples):
    x, y, distances = samples
    unit = np.float32(unit)
    near = metrics.nearest_training_point(unit * x, unit * y)
    assert (np.asarray(near.index) == distances.argmin(axis=1)).all()
    assert_close(np.asarray(near.distance, np.float64) / unit, distances.min(axis=1), "float32")
    for metric in (
        metrics.energy_distance,
        lambda x, y: metrics.sliced_wasserstein(KEY, x, y, projections=16),
    ):
        assert_close(
            np.array(ends(metric(unit * x, unit * y))) / unit, ends(metric(x, y)), rtol=1e-4
        )
    assert_close(
        float(metrics.median_bandwidth(unit * x, unit * y)) / unit,
        float(metrics.median_bandwidth(x, y)),
        "float32",
    )
    assert_close(ends(metrics.mmd(unit * x, unit * y)), ends(metrics.mmd(x, y)), rtol=1e-3)
    given = metrics.mmd(unit * x, unit * y, bandwidth=float(0.5 * unit))
    assert_close(ends(given), ends(metrics.mmd(x, y, bandwidth=0.5)), rtol=1e-3)
    copies, plain = (
        metrics.memorisation(unit * x, unit * y, unit * x[::-1]),
        metrics.memorisation(x, y, x[::-1]),
    )
    assert_close(float(copies.ratio), float(plain.ratio), "float32")
    assert float(copies.fraction) == float(plain.fraction)
    assert_close(float(copies.distance) / unit, float(plain.distance), "float32")


def test_points_of_very_different_sizes_are_no_copies():
    """1e-15 beside 1: squares of differences in the unit of the largest point would vanish."""
    train = jnp.asarray([[3e-15], [1e-15], [1.0]])
    near = metrics.nearest_training_point(jnp.asarray([[0.0], [2.9e-15], [0.9]]), train)
    assert near.index.tolist() == [1, 0, 2]
    assert_close(near.distance, [1e-15, 1e-16, 0.1], rtol=1e-5)


def test_bandwidths_beyond_the_range_are_limits(samples):
    x, y, _ = samples
    assert float(metrics.mmd(x, y, bandwidth=1e30)) == 0
    assert float(metrics.mmd(x, y, bandwidth=1e300)) == 0
    assert float(metrics.mmd(x, y, bandwidth=1e-300)) == 0  # no pair has a kernel: 1 of each mean
    both = jnp.concatenate([x, x])
    assert_close(
        float(metrics.mmd(both, y, bandwidth=1e-300)), 1 / 79, "float32"
    )  # each point and its copy


@pytest.mark.parametrize("n", [2, 5, 50])
@pytest.mark.parametrize("copies", ["reversed", "rounded", "moved a little"])
def test_intervals_of_copies_are_in_order_and_within_what_is_possible(n, copies):
    x = points(n, n, 3, "float32")
    x = jnp.round(4 * x) if copies == "rounded" else x
    y = x[::-1] + (1e-5 if copies == "moved a little" else 0)
    diameter = float(np.max(scipy.spatial.distance.cdist(np.asarray(x), np.asarray(y))))
    for estimate, same, largest in (
        (metrics.energy_distance(x, y), metrics.energy_distance(x, x), 2 * diameter),
        (metrics.mmd(x, y, bandwidth=1.0), metrics.mmd(x, x, bandwidth=1.0), 2.0),
    ):
        value, lower, upper = ends(estimate)
        assert lower <= value <= upper <= largest * (1 + 1e-6)
        assert_close([value, lower, upper], ends(same), rtol=2e-3)


def test_nothing_depends_on_the_order_of_rows(samples):
    x, y, _ = samples
    order = np.random.default_rng(0).permutation(len(x))
    for metric in (metrics.energy_distance, lambda x, y: metrics.mmd(x, y, bandwidth=0.3)):
        assert_close(ends(metric(x[order], y[::-1])), ends(metric(x, y)), rtol=1e-4)
        assert_close(ends(metric(y, x)), ends(metric(x, y)), rtol=1e-4)


def interval_by_hand(x, y):
    """The interval of the docstring of ``energy_distance``, by loops in float64."""
    n, m = len(x), len(y)
    xx, yy, xy = (scipy.spatial.distance.cdist(a, b) for a, b in ((x, x), (y, y), (x, y)))
    own_x, own_y = xx.sum(1) / (n - 1), yy.sum(1) / (m - 1)
    g_x, g_y = xy.mean(1) - own_x, xy.mean(0) - own_y
    value = g_x.mean() + g_y.mean()

    def variance_within(rho, means, itself):
        return np.mean(
            [
                np.mean(
                    [(rho[i, j] - means[i]) ** 2 for j in range(len(rho)) if j != i or not itself]
                )
                for i in range(len(rho))
            ]
        )

    zeta_x = variance_within(xx, own_x, True) - own_x.var()
    zeta_y = variance_within(yy, own_y, True) - own_y.var()
    zeta_xy = np.mean((xy - xy.mean(1)[:, None]) ** 2) - xy.mean(0).var()
    second = max(2 * zeta_x / n**2 + 2 * zeta_y / m**2 + 4 * zeta_xy / (n * m), 0)
    first = 4 * g_x.var(ddof=1) / n + 4 * g_y.var(ddof=1) / m
    largest = 4 * np.sqrt(zeta_x) / (n - 3) + 4 * np.sqrt(zeta_y) / (m - 3)
    biased = value + own_x.mean() / n + own_y.mean() / m
    slope = min(max(first / biased, (first - second) / max(value, np.sqrt(second))), largest)
    mu = np.linspace(-10, 10, 2_000_001)
    inside = mu[(value - mu) ** 2 <= 1.959964**2 * (slope * np.maximum(mu, 0) + second)]
    return value, inside.min(), inside.max()


@pytest.mark.parametrize(("n", "m", "shift"), [(9, 7, 1.5), (12, 20, 0.6), (6, 30, 1.0)])
def test_the_interval_is_that_of_the_docstring(n, m, shift, x64):
    """Of a clear difference: all μ with |U − μ| ≤ 1.96 √(κμ + v)."""
    x, y = np.asarray(points(3, n, 2)), np.asarray(shift + points(4, m, 2))
    value, _, upper = interval_by_hand(x, y)
    estimate = metrics.energy_distance(x, y)
    assert_close(float(estimate), value)
    assert float(estimate.upper) == pytest.approx(upper, abs=3e-5)


def test_estimates_in_closed_form(x64):
    plain = normal(jnp.asarray(1.0), jnp.asarray(0.25))
    assert_close(ends(plain), [1, 1 - 0.979982, 1.979982])
    assert float(normal(jnp.asarray(1.0), jnp.asarray(4.0), 0.0).lower) == 0
    # (2 − μ)² = z² (3 μ + 1) at both ends
    estimate = score_interval(jnp.asarray(2.0), jnp.asarray(3.0), jnp.asarray(1.0))
    for end in (estimate.lower, estimate.upper):
        assert float((2 - end) ** 2) == pytest.approx(1.959964**2 * (3 * float(end) + 1), rel=1e-9)
    negative = score_interval(jnp.asarray(-1.0), jnp.asarray(0.0), jnp.asarray(1.0))
    assert_close(ends(negative), [-1, -2.959964, 0.959964])
    assert ends(score_interval(jnp.asarray(2.0), jnp.asarray(3.0), jnp.asarray(1.0), 5.0))[2] == 5
    assert ends(score_interval(jnp.asarray(0.5), jnp.asarray(0.0), jnp.asarray(0.0))) == [0.5] * 3


@pytest.mark.parametrize("variance", [1e-30, 1.0, 1e37])
def test_score_errors_are_relative_in_every_unit(variance):
    """Scores go as the inverse of the data: squares of 1e-19 are no numbers of float32."""
    truth = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), variance * jnp.eye(2)[None])
    error = metrics.score_error(
        KEY, SDE, lambda t, x: 0.9 * truth.score(SDE, t, x), truth, jnp.asarray(0.9), n=50
    )
    assert_close(ends(error.relative), [0.01] * 3, rtol=2e-3)


def test_the_error_against_a_score_of_zero():
    flat = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.full((1, 1, 1), 1e38))
    for factor, relative in ((1.0, np.inf), (0.0, 0.0)):
        error = metrics.score_error(
            KEY,
            SDE,
            lambda t, x, a=factor: a * jnp.ones_like(x),
            Zero(flat),
            jnp.asarray(0.5),
            n=10,
        )
        assert float(error.relative) == relative
        assert float(error.absolute) == factor


@jax.tree_util.register_pytree_node_class
class Zero:
    """A distribution whose score is zero."""

    def __init__(self, of):
        self.of = of

    def tree_flatten(self):
        return (self.of,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def sample(self, key, n):
        return jnp.zeros((n, 1))

    def score(self, sde, t, x):
        return jnp.zeros_like(x)


FAR = np.array([[1e20, 0.0], [1e20, 1e20], [-1e30, 3.0], [0.3, 0.0]], np.float32)


def test_a_mixture_far_away():
    """Near infinity the mode of the largest quadratic form is left alone; log p is −∞ where it is
    below the least number.
    """
    of = diffusion.GaussianMixture(
        jnp.asarray([0.5, 0.5]),
        jnp.asarray([[1.0, 0.0], [-1.0, 0.0]]),
        jnp.stack([0.01 * jnp.eye(2), 0.04 * jnp.eye(2)]),
    )
    alpha, h = float(SDE.alpha(0.1)), float(SDE.variance(0.1))
    wide = alpha**2 * 0.04 + h
    assert_close(of.score(SDE, 0.1, FAR)[:3], -FAR[:3] / wide, rtol=1e-5)
    assert_close(of.denoise(SDE, 0.1, FAR)[:3], alpha * 0.04 / wide * FAR[:3], rtol=1e-5)
    assert np.isneginf(of.log_density(SDE, 0.1, FAR)[:3]).all()
    assert_close(of.log_density(SDE, 0.1, FAR)[3:], of.log_density(SDE, 0.1, FAR[3:]), "float32")
    near = 1e-5 * FAR[:2]  # backwards the squares have to be numbers
    gradient = jax.grad(lambda x: of.log_density(SDE, 0.1, x).sum())(near)
    assert_close(gradient, -near / wide, rtol=1e-5)
    with jax.enable_x64(True):
        exact = diffusion.GaussianMixture(
            *(np.asarray(a, np.float64) for a in (of.weights, of.means, of.covariances))
        )
        middle = np.array([[30.0, -4.0]])
        desired = (
            np.asarray(exact.log_density(SDE, 0.1, middle)),
            np.asarray(exact.score(SDE, 0.1, middle)),
        )
    assert_close(of.log_density(SDE, 0.1, middle.astype(np.float32)), desired[0], rtol=1e-5)
    assert_close(of.score(SDE, 0.1, middle.astype(np.float32)), desired[1], rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-25, 1e18, 1e30])
def test_data_in_any_unit(unit):
    unit = np.float32(unit)
    data = unit * np.asarray([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]], np.float32)
    of = diffusion.EmpiricalDistribution(data)
    x = unit * np.asarray([[0.8, 0.1], [0.1, 1.5]], np.float32)
    denoised = np.asarray(of.denoise(SDE, 0.01, x), np.float64)
    # drowned, or alone
    desired = np.stack([data[0], data[2]]) if unit > 1 else np.stack([data.mean(0)] * 2)
    assert_close(denoised / unit, desired.astype(np.float64) / unit, rtol=1e-5)
    assert np.isfinite(of.score(SDE, 0.01, x)).all()
    assert not np.isnan(of.log_density(SDE, 0.01, x)).any()


def test_the_nearest_of_the_data_far_away():
    of = diffusion.EmpiricalDistribution(jnp.asarray([[1.0, 0.0], [-1.0, 0.0]]))
    assert_close(of.denoise(SDE, 0.1, FAR)[:3], [[1, 0], [1, 0], [-1, 0]], "float32")
    assert np.isneginf(of.log_density(SDE, 0.1, FAR)[:3]).all()


def test_one_point_and_equal_points():
    alpha, h = float(SDE.alpha(0.2)), float(SDE.variance(0.2))
    x = np.asarray([[0.5, -2.0], [3.0, 3.0]], np.float32)
    desired = -np.sum((x - alpha * np.array([2.0, 1.0])) ** 2, axis=1) / (2 * h) - np.log(
        2 * np.pi * h
    )
    for rows in (1, 3):
        of = diffusion.EmpiricalDistribution(jnp.tile(jnp.asarray([[2.0, 1.0]]), (rows, 1)))
        assert_close(of.log_density(SDE, 0.2, x), desired, "float32")
        assert_close(of.denoise(SDE, 0.2, x), np.tile([[2.0, 1.0]], (2, 1)), "float32")
        assert (np.asarray(of.sample(KEY, 4)) == [2.0, 1.0]).all()


def test_the_frame_of_data_in_nanometres(x64):
    """In float32, against the same in float64: eigenvalues, where their squares are no numbers of
    float32.
    """
    x0 = 1e-12 * (points(0, 300, 3) * jnp.asarray([1.0, 2.0, 3.0])[None] + 1)
    exact, frame = (
        fit_coordinates(SDE, x0, [0.01], 1e-3),
        fit_coordinates(SDE, x0.astype("float32"), [0.01], 1e-3),
    )
    assert_close(frame.eigenvalues, exact.eigenvalues, rtol=1e-5)
    assert_close(frame.mean, exact.mean, rtol=1e-5)
    assert_close(frame.log_variance, exact.log_variance, "float32")
    covariance = np.cov(np.asarray(x0).T, bias=True)
    assert_close(
        float(exact.log_variance),
        np.log(np.trace(covariance @ covariance) / np.trace(covariance)),
        rtol=1e-9,
    )
    assert_close(exact.eigenvalues, np.linalg.eigvalsh(covariance), rtol=1e-9)


def test_eigenvalues_that_round_below_zero_are_zero():
    line = jnp.arange(50.0)[:, None] * jnp.asarray([[1.0, 2.0, -1.0, 0.3]]) / 50
    frame = fit_coordinates(SDE, line, [0.1], 1e-3)
    assert float(frame.eigenvalues.min()) >= 0
    assert float(frame.eigenvalues[:-1].max()) < 1e-6 * float(frame.eigenvalues[-1])
    assert np.isfinite(frame.network_input(SDE, 0.1, line)).all()


@pytest.mark.parametrize("unit", [1e-25, 1e13, 1e25])
def test_data_that_the_noise_does_not_meet_are_refused(unit):
    x0 = np.float32(unit) * points(0, 50, 2, "float32")
    with pytest.raises(ValueError, match="x0 must .* standardise x0"):
        diffusion.kernel_denoiser(KEY, SDE, x0, times=[0.1], landmarks=10)


def test_a_kernel_denoiser_of_data_that_the_noise_drowns():
    x0 = 1e-10 * points(0, 64, 2, "float32")
    f = diffusion.kernel_denoiser(KEY, SDE, x0, times=[0.1], landmarks=16, draws=1, sigma=2.0)
    mean, deviation = np.asarray(x0).mean(0), np.asarray(x0).std()
    assert np.abs(np.asarray(f(0.1, x0[:2])) - mean).max() < 0.5 * deviation


@pytest.mark.parametrize("sigma", [20.0, 1e-30])
def test_a_sigma_whose_kernel_is_no_number_is_named(sigma):
    x0 = points(0, 40, 2, "float32")
    with pytest.raises(ValueError, match="sigma must give a kernel that float32 can hold"):
        diffusion.kernel_denoiser(KEY, SDE, x0, times=[0.1], landmarks=10, draws=1, sigma=sigma)


def test_of_two_points_each_the_upper_end_is_what_is_possible():
    """Twice the largest distance of all, which only some of the points are ends of."""
    estimate = metrics.energy_distance(jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [20.0]]))
    assert float(estimate.upper) == pytest.approx(40)


COMPARISONS = {
    "energy distance": lambda x, y, unit: metrics.energy_distance(x, y).value / unit,
    "its upper end": lambda x, y, unit: metrics.energy_distance(x, y).upper / unit,
    "mmd": lambda x, y, unit: metrics.mmd(x, y, unit).value,
    "mmd at the median": lambda x, y, unit: metrics.mmd(x, y).value,
    "median": lambda x, y, unit: metrics.median_bandwidth(x, y) / unit,
    "nearest": lambda x, y, unit: jnp.sum(metrics.nearest_training_point(x, y).distance) / unit,
    "memorisation": lambda x, y, unit: metrics.memorisation(x, y, x[::-1] + y[:1]).ratio,
}


@pytest.mark.parametrize("unit", UNITS)
def test_mmd_has_a_derivative_in_its_bandwidth(unit, x64):
    rng = np.random.default_rng(0)
    x, y = (np.float32(unit * rng.normal(size=(n, 2))) for n in (40, 30))
    of_bandwidth = lambda x, y: lambda b: metrics.mmd(x, y, b).value
    exact = of_bandwidth(jnp.asarray(x, float), jnp.asarray(y, float))
    slope = (exact(unit * (1.2 + 1e-6)) - exact(unit * (1.2 - 1e-6))) / 2e-6
    assert_close(unit * jax.grad(exact)(1.2 * unit), slope, rtol=1e-6)
    assert_close(
        unit * float(jax.grad(of_bandwidth(x, y))(jnp.float32(1.2 * unit))), slope, rtol=1e-3
    )


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", COMPARISONS)
def test_gradients_of_comparisons_have_the_digits_of_float32(name, unit, x64):
    """Backwards, float32 as float64 and float64 as differences: cotangents of squared distances
    would underflow.
    """
    rng = np.random.default_rng(0)
    x, y, move = (rng.normal(size=(n, 2)) for n in (300, 201, 300))
    compare = lambda x, y: COMPARISONS[name](x, y, unit)
    gradient = jax.grad(compare)
    points, others = (np.float32(unit * values) for values in (x, y))
    exact = unit * gradient(jnp.asarray(points, float), jnp.asarray(others, float))
    assert_close(unit * np.asarray(gradient(points, others), float), exact, rtol=1e-4)
    h = 1e-6 * unit
    ends = [compare(points + sign * h * move, jnp.asarray(others, float)) for sign in (1, -1)]
    assert_close(jnp.sum(exact * move), (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
