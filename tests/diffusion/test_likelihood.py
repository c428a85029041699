"""Log-likelihoods are those of known distributions."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_close, slow_except

from softntk.diffusion import (
    GaussianMixture,
    constant_sde,
    cosine_sde,
    log_likelihood,
    vp_sde,
)
from softntk.diffusion._sampling import likelihood
from softntk.solution import NumericalError

SDE = vp_sde()
AT = 1e-5
NOTHING_LEFT = [
    vp_sde(beta_max=80.0),
    constant_sde(10.0, horizon=10.0),
    cosine_sde(final_alpha=1e-9),
]


def two_modes(d, dtype):
    """Two Gaussians, whose mean is not 0."""
    rng = np.random.default_rng(d)
    mean, roots = rng.normal(size=d) / np.sqrt(d), rng.normal(size=(2, d, d)) / np.sqrt(d)
    covariances = 0.3 * roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(d)
    arrays = np.array([0.25, 0.75]), np.stack([1.5 * mean, -0.5 * mean]) + 3, covariances
    return GaussianMixture(*(jnp.asarray(a, dtype) for a in arrays))


@pytest.mark.parametrize(
    ("d", "dtype"),
    slow_except([(2, "float32"), (2, "float64"), (8, "float32"), (8, "float64")], (2, "float64")),
    indirect=["dtype"],
)
def test_a_mixture(d, dtype):
    mixture = two_modes(d, dtype)
    x = mixture.sample(jax.random.key(1), 40)
    found = log_likelihood(SDE, lambda t, x: mixture.score(SDE, t, x), x)
    assert found.dtype == dtype
    assert np.abs(found - mixture.log_density(SDE, AT, x)).max() < 1e-3


GAUSSIANS = [
    ((3.0, -1.0), (0.3, 2.0), 20),
    ((50.0,), (10.0,), 1),
    ((0.0, 9.0, 1.0), (1.0, 0.1, 3.0), 2),
]


@pytest.mark.parametrize(("mean", "spread", "rows"), slow_except(GAUSSIANS, GAUSSIANS[0]))
def test_a_gaussian_is_known_to_the_last_digit(mean, spread, rows, x64):
    """What is left of its mean and covariance at T is not forgotten; fewer rows than dimensions,
    too.
    """
    mean, spread = np.array(mean), np.array(spread)
    data = GaussianMixture(
        jnp.ones(1), jnp.asarray(mean)[None], jnp.asarray(np.diag(spread**2))[None]
    )
    x = data.sample(jax.random.key(0), rows)
    found = log_likelihood(
        SDE, lambda t, x: data.score(SDE, t, x), x, min_time=1e-3, rtol=1e-9, atol=1e-9
    )
    alpha, h = float(SDE.alpha(1e-3)), float(SDE.variance(1e-3))
    deviation = np.sqrt(alpha**2 * spread**2 + h)
    desired = scipy.stats.norm.logpdf(np.asarray(x), alpha * mean, deviation).sum(axis=1)
    assert_close(found, desired, rtol=1e-7)


@pytest.mark.parametrize("sde", slow_except(NOTHING_LEFT, NOTHING_LEFT[1]))
def test_processes_that_leave_nothing_of_the_data(sde):
    data = two_modes(2, "float32")
    x = data.sample(jax.random.key(1), 40)
    found = log_likelihood(sde, lambda t, x: data.score(sde, t, x), x)
    assert np.abs(found - data.log_density(sde, AT, x)).max() < 1e-3


@pytest.mark.parametrize("probes", slow_except([1, 16], 1))
@pytest.mark.slow
def test_the_random_trace_is_unbiased(probes, x64):
    mixture = two_modes(3, "float64")
    x = jnp.tile(mixture.sample(jax.random.key(1), 2), (200, 1))
    found = log_likelihood(
        SDE,
        lambda t, x: mixture.score(SDE, t, x),
        x,
        key=jax.random.key(2),
        trace="hutchinson",
        probes=probes,
        rtol=1e-4,
    )
    error = np.asarray(found).reshape(200, 2) - np.asarray(mixture.log_density(SDE, AT, x[:2]))
    deviation = error.std(axis=0)
    assert (deviation * np.sqrt(probes) > 0.05).all()
    assert (deviation * np.sqrt(probes) < 2).all()
    assert (np.abs(error.mean(axis=0)) < 4 * deviation / np.sqrt(200)).all()


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
@pytest.mark.slow
def test_data_on_a_line_have_a_density_that_grows(dtype):
    """N(0, diag(1, 0)): at min_time the missing dimension contributes the density of N(0, h)."""
    line = GaussianMixture(
        jnp.ones(1, dtype), jnp.zeros((1, 2), dtype), jnp.diag(jnp.array([1.0, 0.0], dtype))[None]
    )
    x = jnp.asarray([[0.5, 0.0], [-1.0, 0.002]], dtype)
    found = log_likelihood(SDE, lambda t, x: line.score(SDE, t, x), x)
    h = float(SDE.variance(AT))
    desired = scipy.stats.norm.logpdf(np.asarray(x, np.float64), 0, [1.0, np.sqrt(h)]).sum(axis=1)
    assert np.abs(found - desired).max() < 2e-3


def narrow(t, x):
    """The score of N(0, ¼ I)."""
    return -x / (SDE.alpha(t) ** 2 / 4 + SDE.variance(t))


@pytest.mark.slow
def test_transformations(x64):
    x = jnp.array([[0.3, -0.2], [1.0, 0.5]])
    plain = log_likelihood(SDE, narrow, x)
    jitted = jax.jit(lambda x: log_likelihood(SDE, narrow, x))(x)
    assert_close(jitted, plain)


@pytest.mark.slow
def test_under_vmap(x64):
    x = jnp.array([[0.3, -0.2], [1.0, 0.5]])
    plain = log_likelihood(SDE, narrow, x)
    assert_close(
        jax.vmap(lambda x: log_likelihood(SDE, narrow, x))(x[:, None])[:, 0], plain, rtol=1e-4
    )
    random = lambda key: log_likelihood(SDE, narrow, x, key=key, trace="hutchinson")
    assert_close(
        jax.vmap(random)(jax.random.split(jax.random.key(0), 2)),
        jnp.stack([plain, plain]),
        rtol=1e-4,
    )


@pytest.mark.slow
def test_gradients(x64):
    """∇ log p is the score; by the variance of the model, that of a Gaussian."""
    x = jnp.array([[0.3, -0.2], [1.0, 0.5]])
    assert_close(
        jax.grad(lambda x: log_likelihood(SDE, narrow, x, rtol=1e-8).sum())(x),
        narrow(AT, x),
        rtol=2e-4,
    )
    of_variance = lambda v: log_likelihood(
        SDE, lambda t, x: -x / (SDE.alpha(t) ** 2 * v + SDE.variance(t)), x, rtol=1e-8
    ).sum()
    assert_close(
        jax.grad(of_variance)(0.25), jnp.sum(x**2) / (2 * 0.25**2) - 4 / (2 * 0.25), rtol=1e-3
    )


@pytest.mark.slow
def test_nothing_is_compiled_twice():
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(lambda t, x: -x, 1)
    for scale in (0.5, 1.0, 2.0):
        log_likelihood(SDE, traced, jnp.full((2, 2), scale))


def test_failures_are_told():
    x = jnp.array([[0.5, 0.5], [2.0, 0.0]])
    bad = lambda t, x: jnp.where(x[:, :1] > 1, jnp.nan, -x)
    with pytest.raises(NumericalError, match=r"NONFINITE_SCORE: A score is NaN"):
        log_likelihood(SDE, bad, x)
    found = log_likelihood(SDE, bad, x, throw=False)
    assert np.isneginf(found[1])
    assert_close(found[0], -0.25 - np.log(2 * np.pi), rtol=1e-3)
    with pytest.raises(NumericalError, match=r"MAX_STEPS: .* Allow more max_steps"):
        log_likelihood(SDE, narrow, x, max_steps=2)
    assert np.isneginf(log_likelihood(SDE, narrow, x, max_steps=2, throw=False)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones(3)}, "x must have shape [n, d]"),
        ({"x": jnp.ones((2, 2), int)}, "x must be a floating-point array"),
        ({"x": jnp.array([[jnp.nan]])}, "x must be finite"),
        (
            {"trace": "exakt"},
            "trace must be one of ['exact', 'hutchinson'], got 'exakt'. Did you mean 'exact'?",
        ),
        ({"trace": "hutchinson"}, 'trace="hutchinson" needs a key'),
        ({"probes": 0}, "probes must be a positive integer, got 0."),
        ({"min_time": 0.0}, "min_time must lie between 0 and the horizon 1, got 0.0"),
        ({"min_time": 2.0}, "min_time must lie between 0 and the horizon 1, got 2.0"),
        ({"max_steps": 0}, "max_steps must be a positive integer, got 0."),
        ({"rtol": 0.0}, "rtol must lie between 1.2e-06"),
        ({"atol": 0.0}, "atol must be a positive finite number, got 0.0."),
        (
            {"score_fn": lambda t, x: x.sum()},
            "score_fn must return the shape of x, (2, 2), got ().",
        ),
    ],
)
def test_bad_input(change, message, untyped):
    with pytest.raises(ValueError, match=re.escape(message)):
        log_likelihood(**({"sde": SDE, "score_fn": narrow, "x": jnp.ones((2, 2))} | change))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_density_of_noise_is_that_of_its_score(rows, x64):
    """A Gaussian in three dimensions, told by its score alone, a few rows at a time."""
    rng = np.random.default_rng(0)
    root, mean, x = rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=(rows, 3))
    covariance = root @ root.T + np.eye(3)
    precision = jnp.asarray(np.linalg.inv(covariance))
    found = likelihood._log_density_of_noise(
        lambda t, x: (mean[None] - x) @ precision, jnp.asarray(1.0), jnp.asarray(x)
    )
    distribution: Any = scipy.stats.multivariate_normal
    desired = distribution.logpdf(x, mean, covariance)
    assert_close(found, np.atleast_1d(desired))
