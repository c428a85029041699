"""Coverage and likelihood of Gaussian predictions, by SciPy, and how often intervals hold the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_close

from softntk import calibration


def gaussians(seed, n=50, k=2, dtype="float64"):
    generator = np.random.default_rng(seed)
    mean = generator.normal(size=(n, k))
    variance = np.exp(generator.normal(size=(n, k)))
    y = mean + np.sqrt(variance) * generator.normal(size=(n, k))
    return [np.asarray(array, dtype) for array in (mean, variance, y)]


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_coverage_by_scipy(level, dtype):
    mean, variance, y = gaussians(0, dtype=dtype)
    lower, upper = scipy.stats.norm.interval(level, mean.astype(float), np.sqrt(variance))
    inside = ((lower <= y) & (y <= upper)).mean()
    found = calibration.coverage(mean, variance, y, level)
    assert_close(float(found), inside, dtype)
    # Wilson's interval of as many draws as there are rows.
    wilson = scipy.stats.binomtest(round(50 * inside), 50).proportion_ci(0.95, "wilson")
    if round(50 * inside) == 50 * inside:
        assert_close([found.lower, found.upper], list(wilson), rtol=1e-5)


def test_likelihood_by_scipy(dtype):
    mean, variance, y = gaussians(1, dtype=dtype)
    rows = -scipy.stats.norm.logpdf(y.astype(float), mean, np.sqrt(variance)).sum(1)
    half_width = 1.959964 * rows.std(ddof=1) / np.sqrt(50)
    found = calibration.gaussian_negative_log_likelihood(mean, variance, y)
    desired = [rows.mean(), rows.mean() - half_width, rows.mean() + half_width]
    assert_close([found.value, found.lower, found.upper], desired, dtype)


def test_shapes_of_variances_and_one_output(dtype):
    mean, variance, y = gaussians(2, dtype=dtype)
    for metric in (calibration.coverage, calibration.gaussian_negative_log_likelihood):
        wide = metric(mean, np.repeat(variance[:, :1], 2, axis=1), y)
        assert float(metric(mean, variance[:, 0], y)) == float(wide)
        assert float(metric(mean, 0.7, y)) == float(metric(mean, np.full_like(mean, 0.7), y))
        column = metric(mean[:, :1], variance[:, :1], y[:, :1])
        assert float(metric(mean[:, 0], variance[:, 0], y[:, 0])) == float(column)
        assert float(metric(mean[:, 0], variance[:, 0], y[:, :1])) == float(column)
        assert column.value.dtype == dtype


def test_variances_of_zero(untyped):
    """Certain predictions cover what they hit; as densities they are refused."""
    mean, y = np.array([1.0, 2.0], np.float32), np.array([1.0, 2.5], np.float32)
    assert float(calibration.coverage(mean, 0.0, y)) == 0.5
    with pytest.raises(ValueError, match="variance must be positive, got 0. Add the variance"):
        calibration.gaussian_negative_log_likelihood(mean, np.zeros(2, np.float32), y)
    inside = jax.jit(calibration.gaussian_negative_log_likelihood)(mean, jnp.zeros(2), y)
    assert [float(inside.value), float(inside.lower), float(inside.upper)] == [np.inf] * 3


def test_the_unit_does_not_matter():
    mean, variance, y = gaussians(3, dtype="float32")
    unit = np.float32(1e-12)
    found = calibration.gaussian_negative_log_likelihood(unit * mean, unit**2 * variance, unit * y)
    plain = calibration.gaussian_negative_log_likelihood(mean, variance, y)
    assert_close(float(found) - float(plain), 2 * np.log(unit), rtol=1e-5)
    covered = calibration.coverage(unit * mean, unit**2 * variance, unit * y)
    assert float(covered) == float(calibration.coverage(mean, variance, y))


def test_derivatives_by_hand(x64):
    mean, variance, y = gaussians(4, 10, 1)
    loss = lambda *arguments: calibration.gaussian_negative_log_likelihood(*arguments).value
    by_mean, by_variance = jax.grad(loss, (0, 1))(mean, variance, y)
    assert_close(by_mean, -(y - mean) / variance / 10)
    assert_close(by_variance, (1 / variance - (y - mean) ** 2 / variance**2) / 20)


def test_in_a_batch_and_compiled(dtype):
    arrays = [
        jnp.stack(parts)
        for parts in zip(*(gaussians(s, dtype=dtype) for s in range(3)), strict=True)
    ]
    for metric in (calibration.coverage, calibration.gaussian_negative_log_likelihood):
        found = jax.jit(jax.vmap(metric))(*arrays)
        singles = [metric(*(part[i] for part in arrays)) for i in range(3)]
        assert_close(found.value, [single.value for single in singles], dtype)
        assert_close(found.upper, [single.upper for single in singles], dtype)


@pytest.mark.optimised
def test_intervals_hold_the_truth():
    """The level, of a calibrated predictor, and the expected loss: in 93 % of 400 or more."""

    def draw(key):
        y = jax.random.normal(key, (100,))
        loss = calibration.gaussian_negative_log_likelihood(jnp.zeros(100), 1.0, y)
        return calibration.coverage(jnp.zeros(100), 1.0, y, 0.8), loss

    covered, loss = jax.vmap(draw)(jax.random.split(jax.random.key(0), 400))
    for found, truth in ((covered, 0.8), (loss, 0.5 * np.log(2 * np.pi) + 0.5)):
        assert 0.93 <= float(((found.lower <= truth) & (truth <= found.upper)).mean()) < 0.99
