"""Intervals of sample metrics: how often they hold the truth, by simulation; Wilson's, by SciPy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import scipy.spatial
import scipy.stats
from helpers import assert_close

from softntk.diffusion import metrics

KEY = jax.random.key(0)


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
