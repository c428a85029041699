"""Samples have the distribution whose score they were made from."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_close, slow_except

from softntk.diffusion import GaussianMixture, constant_sde, cosine_sde, sample, vp_sde

SDE = vp_sde()
MIN_TIME = 1e-3
SPREAD = 0.15


def ring(d=2, dtype="float32"):
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.zeros((8, d))
    means[:, 0], means[:, 1] = 2 * np.cos(angles), 2 * np.sin(angles)
    covariances = np.tile(SPREAD**2 * np.eye(d), (8, 1, 1))
    return GaussianMixture(
        jnp.full(8, 1 / 8, dtype), jnp.asarray(means, dtype), jnp.asarray(covariances, dtype)
    )


def minus_x(t, x):
    return -x


def wide(t, x):
    """The score of N(0, 9 I)."""
    return -x / (9 * SDE.alpha(t) ** 2 + SDE.variance(t))


def sliced_wasserstein(x, y, directions=64):
    """The root mean square, over directions, of the Wasserstein-2 distance of projections; as many
    x as y.
    """
    axes = np.random.default_rng(0).normal(size=(x.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    return np.sqrt(np.mean((np.sort(x @ axes, axis=0) - np.sort(y @ axes, axis=0)) ** 2))


def assert_from_the_ring(x, mixture, sde=SDE, at=MIN_TIME, spread_error=0.02):
    """Every sample at a mode, each mode as often as another, the right deviation around it; close
    to exact draws.
    """
    x, alpha = np.asarray(x, np.float64), float(sde.alpha(at))
    distances = np.linalg.norm(x[:, None] - alpha * np.asarray(mixture.means, np.float64), axis=2)
    mode = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 8 * SPREAD
    assert scipy.stats.chisquare(np.bincount(mode, minlength=8)).pvalue > 1e-3
    within = x - alpha * np.asarray(mixture.means, np.float64)[mode]
    deviation = np.sqrt(alpha**2 * SPREAD**2 + float(sde.variance(at)))
    assert abs(within.std() / deviation - 1) < spread_error
    assert np.abs(within.mean(axis=0)).max() < 5 * deviation / np.sqrt(len(x))
    exact = [
        np.asarray(
            sde.perturb(jax.random.key(k), at, mixture.sample(jax.random.key(k + 10), len(x)))
        )
        for k in (1, 2, 3)
    ]
    floor = np.mean([sliced_wasserstein(exact[i], exact[j]) for i, j in ((0, 1), (1, 2), (2, 0))])
    assert np.mean([sliced_wasserstein(x, y) for y in exact]) < 2 * floor


@pytest.mark.optimised
@pytest.mark.parametrize(("method", "options"), [("sde", {"steps": 50}), ("ode", {})])
def test_the_ring_is_sampled(method, options):
    """The reverse equation in so few steps only because they are those of the shifted method:
    Euler's are off by 8 per cent.
    """
    mixture = ring()
    x = sample(
        jax.random.key(0), SDE, lambda t, x: mixture.score(SDE, t, x), (4096, 2), method, **options
    )
    assert x.dtype == np.float32
    assert_from_the_ring(x, mixture, spread_error=0.04)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("sde", [constant_sde(), cosine_sde(), constant_sde(10.0, horizon=10.0)])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sde", {}),
        ("sde", {"steps": 100, "corrector_steps": 1}),
        ("ode", {}),
        ("ode", {"min_time": 1e-4}),
    ],
)
def test_the_ring_is_sampled_by_every_process(sde, method, options, dtype):
    mixture = ring(8, dtype)
    x = sample(
        jax.random.key(3), sde, lambda t, x: mixture.score(sde, t, x), (8192, 8), method, **options
    )
    assert x.dtype == dtype
    assert_from_the_ring(x, mixture, sde, options.get("min_time", MIN_TIME))


def normal(mean, covariance):
    return GaussianMixture(jnp.ones(1, mean.dtype), mean[None], covariance[None])


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("options", "dtype"),
    slow_except(
        list(itertools.product([{}, {"steps": 60, "corrector_steps": 2}], ["float32", "float64"])),
        ({}, "float32"),
        ({"steps": 60, "corrector_steps": 2}, "float64"),
    ),
    indirect=["dtype"],
)
@pytest.mark.slow
def test_moments_of_a_gaussian_by_the_reverse_equation(options, dtype):
    mean, covariance = jnp.asarray([1.0, -0.5], dtype), jnp.asarray([[0.5, 0.3], [0.3, 0.4]], dtype)
    of_data = normal(mean, covariance)
    x = sample(jax.random.key(2), SDE, lambda t, x: of_data.score(SDE, t, x), (8192, 2), **options)
    assert x.dtype == dtype
    assert_close(x.mean(axis=0), mean, rtol=0.03)
    assert_close(np.cov(x, rowvar=False), covariance, rtol=0.06)


def test_langevin_steps_have_the_size_of_their_signal_to_noise_ratio():
    """Steps ε = 2 r² ‖z‖²/‖s‖² with s = −x leave the variance v = (1 − ε)² v + 2ε with ε = 2 r²/v:
    v = 1 + r².
    """
    x = sample(
        jax.random.key(0), SDE, minus_x, (8192, 2), steps=8, corrector_steps=20, corrector_snr=0.5
    )
    assert float(jnp.var(x)) == pytest.approx(1.25, rel=0.03)


def test_the_flow_of_a_gaussian_is_the_affine_map(dtype):
    """(x_t − α_t μ)/√v_t stays what it is along the flow, v = α² σ² + h."""
    mean, spread = np.array([1.0, -0.5, 0.0]), np.array([0.3, 2.0, 0.01])
    of_data = normal(jnp.asarray(mean, dtype), jnp.asarray(np.diag(spread**2), dtype))
    tight: dict[str, Any] = (
        {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
    )
    x = sample(
        jax.random.key(2), SDE, lambda t, x: of_data.score(SDE, t, x), (50, 3), "ode", **tight
    )
    start = jax.random.normal(
        jax.random.split(jax.random.split(jax.random.key(2), 1)[0])[0], (50, 3)
    )
    alpha, deviation = (
        [float(SDE.alpha(t)) for t in (1.0, MIN_TIME)],
        [
            np.sqrt(float(SDE.alpha(t)) ** 2 * spread**2 + float(SDE.variance(t)))
            for t in (1.0, MIN_TIME)
        ],
    )
    desired = (
        alpha[1] * mean
        + (np.asarray(start, np.float64) - alpha[0] * mean) * deviation[1] / deviation[0]
    )
    assert_close(x, desired, rtol=1e-7 if dtype == "float64" else 1e-4)


@pytest.mark.slow
def test_one_row_in_a_thousand_is_still_accurate():
    """A mode that almost nobody meets: the mean error over rows would not see them."""
    mixture = GaussianMixture(
        jnp.array([0.999, 0.001]), jnp.array([[0.0], [3.0]]), jnp.array([[[1.0]], [[1e-4]]])
    )
    draw = functools.partial(
        sample, jax.random.key(0), SDE, lambda t, x: mixture.score(SDE, t, x), (4000, 1), "ode"
    )
    assert float(jnp.max(jnp.abs(draw() - draw(rtol=2e-6, atol=2e-6)))) < 0.02


MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.5]])


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
def test_moments_hold_the_batch_to_the_mean_and_covariance_of_the_data(dtype):
    def contracting(t, x):
        """The score of a Gaussian with a third of the variance, about another mean."""
        spread = SDE.alpha(t) ** 2 * jnp.asarray(COVARIANCE / 3, dtype) + SDE.variance(t) * jnp.eye(
            2, dtype=dtype
        )
        return -jnp.linalg.solve(spread, (x - SDE.alpha(t) * 0.2).T).T

    free, held = (
        np.asarray(
            sample(jax.random.key(0), SDE, contracting, (2000, 2), moments=moments, steps=50),
            np.float64,
        )
        for moments in (None, (MEAN, COVARIANCE))
    )
    alpha, h = float(SDE.alpha(MIN_TIME)), float(SDE.variance(MIN_TIME))
    expected = alpha**2 * COVARIANCE + h * np.eye(2)
    assert np.trace(np.cov(free.T)) < 0.5 * np.trace(expected)
    np.testing.assert_allclose(held.mean(0), alpha * MEAN, rtol=1e-3)
    axes = np.linalg.eigh(COVARIANCE)[1]
    variances = np.diag(axes.T @ np.cov(held.T, bias=True) @ axes)
    np.testing.assert_allclose(variances, np.diag(axes.T @ expected @ axes), rtol=2e-3)


@pytest.mark.slow
def test_moments_change_little_where_the_score_is_exact():
    mixture = ring(4)
    mean, covariance = np.zeros(4), SPREAD**2 * np.eye(4) + np.diag([2.0, 2.0, 0.0, 0.0])
    x = sample(
        jax.random.key(0),
        SDE,
        lambda t, x: mixture.score(SDE, t, x),
        (8192, 4),
        moments=(mean, covariance),
    )
    assert_from_the_ring(x, mixture)


@pytest.mark.parametrize(("horizon", "least"), [(1.0, 0.6), (0.3, 0.2)])
def test_the_noise_of_a_step_is_that_of_its_length(horizon, least):
    """Of a single point at zero, whose denoiser is zero: one step from ρ to ρ₁ gains ρ₁ − ρ."""
    sde = vp_sde(horizon=horizon)
    score = lambda t, x: -x / sde.variance(t)
    x = sample(jax.random.key(0), sde, score, (40000, 1), steps=1, min_time=least)
    before, after = (float(jnp.exp(sde.log_snr(t))) for t in (horizon, least))
    variance = (before * (1 + before) + after - before) / (after * (1 + after))
    assert np.var(np.asarray(x)) == pytest.approx(variance, rel=0.03)
