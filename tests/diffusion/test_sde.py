"""Schedules: one set of laws for all of them."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from helpers import assert_close, slow_except

from softntk.diffusion import constant_sde, cosine_sde, vp_sde
from softntk.diffusion._noising_process import WEIGHTINGS

PROCESSES = {
    "linear": vp_sde(),
    "long": vp_sde(0.5, 3.0, horizon=2.5),
    "constant": constant_sde(4.0, horizon=2.0),
    "cosine": cosine_sde(),
    "far cosine": cosine_sde(0.1, 0.05, horizon=3.0),
}


@pytest.fixture(params=slow_except(PROCESSES, "linear", "cosine"))
def sde(request):
    return PROCESSES[request.param]


def times(sde, n=200):
    """From 1e-6 to T."""
    return jnp.asarray(
        sde.horizon
        * np.concatenate([np.geomspace(1e-6, 0.1, n // 2), np.linspace(0.11, 1, n // 2)])
    )


def test_variance_is_preserved(sde, dtype):
    t = times(sde).astype(dtype)
    for value in (sde.alpha(t), sde.variance(t), sde.log_snr(t), sde.rate(t), sde.integral(t)):
        assert value.dtype == dtype
    assert_close(sde.alpha(t) ** 2 + sde.variance(t), np.ones(len(t)), dtype)
    assert float(sde.alpha(0.0)) == 1
    assert float(sde.variance(0.0)) == 0


@pytest.mark.parametrize("offset", [0.008, 0.5])
def test_the_cosine_schedule_is_that_of_its_paper(offset, x64):
    """α(t) = f(t)/f(0) with f(t) = cos((π/2)(t + s)/(1 + s)), in a time that ends where α = 0.1."""
    f = lambda t: np.cos(np.pi / 2 * (t + offset) / (1 + offset))
    t = np.linspace(0.1, 0.9, 9)
    end: Any = scipy.optimize.brentq(lambda t: f(t) / f(0) - 0.1, 0, 1, xtol=1e-14)
    assert_close(cosine_sde(offset, 0.1).alpha(t), f(t * end) / f(0))


def test_noise_is_that_of_the_key(x64):
    """X_t = α X_0 + √h ε: whoever knows the key knows ε."""
    process, key, x0 = vp_sde(), jax.random.key(3), jnp.arange(6.0).reshape(3, 2)
    noise = jax.random.normal(key, (3, 2), x0.dtype)
    alpha = np.exp(-0.5 * (0.1 * 0.4 + 19.9 * 0.4**2 / 2))
    assert_close(process.perturb(key, 0.4, x0), alpha * x0 + np.sqrt(1 - alpha**2) * noise)


def test_the_integral_is_that_of_the_rate(sde, x64):
    t = times(sde)
    assert_close(jax.vmap(jax.grad(sde.integral))(t) / sde.rate(t), np.ones(len(t)), rtol=1e-9)
    by_quadrature = scipy.integrate.quad(
        lambda t: float(sde.rate(t)), 0, 0.7 * sde.horizon, epsabs=0, epsrel=1e-10
    )[0]
    assert_close(sde.integral(0.7 * sde.horizon), by_quadrature, rtol=1e-9)


def test_log_snr_and_its_inverse(sde, dtype):
    t = times(sde).astype(dtype)
    snr = sde.log_snr(t)
    assert (jnp.diff(snr) < 0).all()
    early = t < sde.horizon / 2
    assert_close(snr[early], jnp.log(sde.alpha(t) ** 2 / sde.variance(t))[early], dtype)
    assert_close(sde.time(snr) / t, np.ones(len(t)), rtol=1e-9 if dtype == "float64" else 1e-5)
    assert float(sde.time(-1e4)) == pytest.approx(sde.horizon)


def test_single_precision_keeps_small_variances_and_small_signals(sde):
    with jax.enable_x64(True):
        t = times(sde).astype("float32").astype("float64")
        variance, alpha = np.asarray(sde.variance(t)), np.asarray(sde.alpha(t))
    t = jnp.asarray(np.asarray(t), jnp.float32)
    assert sde.variance(t).dtype == np.float32
    assert np.max(np.abs(np.asarray(sde.variance(t)) / variance - 1)) < 5e-6
    assert np.max(np.abs(np.asarray(sde.alpha(t)) / alpha - 1)) < 3e-4


def test_the_ends():
    assert_close(vp_sde().alpha(1.0), np.exp(-(0.1 + 20) / 4), rtol=1e-5)
    assert_close(cosine_sde(final_alpha=1e-3).alpha(1.0), 1e-3, rtol=1e-4)  # 0.7 % off as √(1 − h)
    assert_close(constant_sde(2.0).alpha(1.0), np.exp(-1), rtol=1e-6)
    assert hash(vp_sde()) == hash(vp_sde())
    assert vp_sde() != vp_sde(0.2)
    assert not jax.tree.leaves(vp_sde())


def test_perturbed_moments(sde, dtype):
    t = 0.3 * sde.horizon
    x0 = jnp.tile(jnp.asarray([[2.0, -1.0]], dtype), (20_000, 1))
    x = sde.perturb(jax.random.key(0), t, x0)
    assert x.dtype == dtype
    deviation = np.sqrt(float(sde.variance(t)))
    assert np.abs(x.mean(axis=0) - sde.alpha(t) * x0[0]).max() < 5 * deviation / np.sqrt(20_000)
    assert_close(np.cov(x, rowvar=False), deviation**2 * np.eye(2), rtol=0.05)
    assert_close(jax.jit(sde.perturb)(jax.random.key(0), t, x0), x, dtype)


def test_a_time_for_each_row(x64):
    t = jnp.array([1e-9, 1.0])
    x = vp_sde().perturb(jax.random.key(0), t, 100 * jnp.ones((2, 50)))
    assert jnp.abs(x[0] - 100).max() < 1e-3
    assert jnp.abs(x[1].mean()) < 2


def test_uniform_times(sde, dtype):
    t = np.asarray(sde.sample_times(jax.random.key(0), 4000, 0.2))
    assert t.dtype == dtype
    assert t.min() >= 0.2
    assert t.max() <= sde.horizon
    assert scipy.stats.kstest(t, scipy.stats.uniform(0.2, sde.horizon - 0.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("centre", [-3.0, 0.5, 40.0])
def test_times_normal_in_the_log_snr(sde, centre, dtype):
    t = sde.sample_times(jax.random.key(0), 4000, 1e-2, centre=centre, spread=1.5)
    assert t.dtype == dtype
    assert t.min() >= 1e-2 * (1 - 1e-4)
    assert t.max() <= sde.horizon
    low, high = ((float(sde.log_snr(end)) - centre) / 1.5 for end in (sde.horizon, 1e-2))
    if high > -5:  # otherwise the interval is far in the tail, and only the bounds are asked for
        law = scipy.stats.truncnorm(low, high, centre, 1.5)
        assert scipy.stats.kstest(np.asarray(sde.log_snr(t), np.float64), law.cdf).pvalue > 1e-3


def test_weights(sde, x64):
    t = times(sde)
    ratio, h = np.exp(np.asarray(sde.log_snr(t))), np.asarray(sde.variance(t))
    rate = np.asarray(sde.rate(t))
    desired = {
        "denoising": np.ones(len(t)),
        "noise": ratio,
        "score": ratio / h,
        "likelihood": rate * ratio / h,
    }
    assert set(desired) == set(WEIGHTINGS)
    for kind, value in desired.items():
        assert_close(sde.weight(t, kind) / value, np.ones(len(t)), rtol=1e-9)


SDE = vp_sde()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vp_sde(0.0), "beta_min must be a positive finite number, got 0.0."),
        (lambda: vp_sde(2.0, 1.0), "beta_max must be at least beta_min = 2, got 1.0."),
        (lambda: vp_sde(horizon=np.inf), "horizon must be a positive finite number, got inf."),
        (lambda: constant_sde(-1.0), "rate must be a positive finite number, got -1.0."),
        (lambda: cosine_sde(0.0), "offset must be a positive finite number, got 0.0."),
        (lambda: cosine_sde(final_alpha=1.0), "final_alpha must lie between 0 and 1, got 1.0."),
        (lambda: SDE.check_times(0.0), "t must lie in (0, 1], got 0 … 0."),
        (lambda: SDE.check_times(np.array([0.5, 1.1])), "t must lie in (0, 1], got 0.5 … 1.1."),
        (lambda: SDE.check_times(np.nan), "t must lie in (0, 1]"),
        (lambda: SDE.sample_times(jax.random.key(0), 0), "n must be a positive integer, got 0."),
        (
            lambda: SDE.sample_times(jax.random.key(0), 3, 0.0),
            "min_time must lie between 0 and the horizon 1, got 0.0",
        ),
        (
            lambda: SDE.sample_times(jax.random.key(0), 3, 1.0),
            "min_time must lie between 0 and the horizon 1, got 1.0",
        ),
        (
            lambda: SDE.sample_times(jax.random.key(0), 3, spread=0.0),
            "spread must be a positive finite number, got 0.0.",
        ),
        (
            lambda: SDE.sample_times(jax.random.key(0), 3, centre=np.nan),
            "centre must be a finite number, got nan.",
        ),
        (lambda: SDE.weight(0.0, "score"), "t must lie in (0, 1]"),
        (lambda: SDE.perturb(jax.random.key(0), 2.0, jnp.ones((3, 2))), "t must lie in (0, 1]"),
        (
            lambda: SDE.weight(0.5, "scores"),
            "kind must be one of ['denoising', 'likelihood', 'noise', 'score'], got 'scores'.",
        ),
        (lambda: SDE.perturb(jax.random.key(0), 0.5, jnp.ones(3)), "x0 must have shape [n, d]"),
        (
            lambda: SDE.perturb(jax.random.key(0), 0.5, jnp.ones((3, 2), int)),
            "x0 must be a floating-point array",
        ),
        (
            lambda: SDE.perturb(jax.random.key(0), 0.5, jnp.full((3, 2), jnp.nan)),
            "x0 must be finite",
        ),
        (
            lambda: SDE.perturb(jax.random.key(0), jnp.ones(2), jnp.ones((3, 2))),
            "t must be a scalar or of shape (3,)",
        ),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_derivatives_at_the_start(sde, dtype):
    """λ falls from +∞ with slope −∞ there; all others have their one-sided derivatives."""
    start = jnp.zeros(())
    for derivative in (jax.grad(sde.log_snr), jax.jacfwd(sde.log_snr)):
        assert np.isneginf(derivative(start))
        assert np.isneginf(jax.vmap(derivative)(jnp.array([0.0, 0.5]))[0])
    slope = float(sde.rate(start))
    for function, want in ((sde.integral, slope), (sde.alpha, -slope / 2), (sde.variance, slope)):
        assert_close(jax.grad(function)(start), want, dtype)
    h = 1e-3
    middle = jnp.asarray(0.5)
    assert_close(
        jax.grad(sde.log_snr)(middle),
        (sde.log_snr(0.5 + h) - sde.log_snr(0.5 - h)) / (2 * h),
        rtol=1e-3,
    )


def test_times_of_infinite_ratios(sde):
    assert float(sde.time(jnp.inf)) == 0
    for ratio in (-jnp.inf, -1e30):
        assert_close(sde.time(ratio), sde.horizon, rtol=1e-6)
        assert float(jax.grad(sde.time)(ratio)) == 0
