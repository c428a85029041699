"""Rates of a process may be traced: derivatives in them; and one precision beside another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from softntk import diffusion
from softntk.diffusion import metrics
from softntk.diffusion.metrics import _score_error

KEY = jax.random.key(0)
X = np.asarray(np.random.default_rng(0).normal(size=(5, 2)))

PROCESSES = {
    "beta_min": (lambda b: diffusion.vp_sde(b, 20.0), 0.3),
    "beta_max": (lambda b: diffusion.vp_sde(0.1, b), 15.0),
    "horizon": (lambda b: diffusion.vp_sde(0.1, 20.0, horizon=b), 1.5),
    "rate": (diffusion.constant_sde, 4.0),
    "offset": (diffusion.cosine_sde, 0.02),
    "final_alpha": (lambda b: diffusion.cosine_sde(final_alpha=b), 0.05),
    "cosine horizon": (lambda b: diffusion.cosine_sde(horizon=b), 1.5),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_schedules_have_derivatives_in_their_numbers(name, x64):
    make, at = PROCESSES[name]

    def values(b):
        sde = make(b)
        of_time = [f(0.4) for f in (sde.rate, sde.integral, sde.alpha, sde.variance, sde.log_snr)]
        times = sde.sample_times(KEY, 2, centre=1.0), sde.sample_times(KEY, 2)
        return jnp.concatenate(
            [jnp.stack([*of_time, sde.time(0.3), sde.weight(0.4, "likelihood")]), *times]
        )

    slope, step = jax.jit(jax.jacfwd(values))(at), 1e-5 * at
    numerical = (values(at + step) - values(at - step)) / (2 * step)
    np.testing.assert_allclose(slope, numerical, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(jax.jit(values)(at), values(at), rtol=1e-12)


def test_a_traced_process_is_a_pytree_and_keeps_dtypes(x64):
    sde = jax.jit(lambda b: diffusion.vp_sde(0.1, b))(jnp.asarray(20.0))
    assert [float(leaf) for leaf in jax.tree.leaves(sde)] == [20.0]
    t = jnp.asarray([0.1, 0.5], jnp.float32)
    for value in (
        sde.rate(t),
        sde.integral(t),
        sde.alpha(t),
        sde.variance(t),
        sde.log_snr(t),
        sde.time(t),
    ):
        assert value.dtype == np.float32
    assert_close(sde.alpha(t), diffusion.vp_sde().alpha(t), "float32")
    each = jax.vmap(lambda b: diffusion.vp_sde(0.1, b).alpha(0.5))(jnp.asarray([5.0, 20.0]))
    assert_close(each, [diffusion.vp_sde(0.1, b).alpha(0.5) for b in (5.0, 20.0)])


def test_times_after_every_horizon_are_refused(untyped):
    with pytest.raises(ValueError, match=r"t must lie in \(0, horizon\], got inf"):
        jax.jit(
            lambda b: diffusion.vp_sde(0.1, 20.0, horizon=b).perturb(KEY, jnp.inf, jnp.ones((1, 2)))
        )(1.0)


def test_the_score_of_data_has_a_derivative_in_the_rate(x64):
    """Of N(0, 1) everything stands still; of a point at the origin s = −x/h, ds/dβ = x h'/h²."""
    normal = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
    point = diffusion.EmpiricalDistribution(jnp.zeros((1, 2)))
    slope = lambda of: jax.jacfwd(lambda b: of.score(diffusion.constant_sde(b), 0.2, X))(3.0)
    assert np.abs(slope(normal)).max() < 1e-12
    h = 1 - np.exp(-0.6)
    assert_close(slope(point), X * 0.2 * np.exp(-0.6) / h**2)


def test_draws_have_derivatives_in_the_rate(x64):
    def draws(b):
        sde = diffusion.vp_sde(0.1, b)
        return diffusion.sample(KEY, sde, lambda t, x: -x / (1 + sde.variance(t)), (2, 1), steps=3)

    numerical = (draws(15.001) - draws(14.999)) / 0.002
    assert_close(jax.jacfwd(draws)(15.0), numerical, rtol=1e-5)


@pytest.mark.slow
def test_the_likelihood_has_a_derivative_in_the_rate(x64):
    """Of N(0, 4) noised until T₀."""

    def variance(b):
        sde = diffusion.vp_sde(0.1, b)
        return lambda t: 4 * sde.alpha(t) ** 2 + sde.variance(t)

    def found(b):
        v = variance(b)
        sde = diffusion.vp_sde(0.1, b)
        return diffusion.log_likelihood(
            sde, lambda t, x: -x / v(t), X, min_time=0.05, rtol=1e-8, atol=1e-8
        ).sum()

    def exact(b):
        v = variance(b)(0.05)
        return jnp.sum(-(X**2) / (2 * v) - jnp.log(2 * jnp.pi * v) / 2)

    assert_close(jax.grad(found)(15.0), jax.grad(exact)(15.0), rtol=1e-4)


# One precision beside another


@pytest.fixture(params=["standard", "strict"])
def promotion(request):
    with jax.numpy_dtype_promotion(request.param):
        yield request.param


SINGLE = jnp.asarray(np.random.default_rng(1).normal(size=(12, 2)), jnp.float32)


def mixture(dtype="float32"):
    return diffusion.GaussianMixture(
        *(np.asarray(a, dtype) for a in ([0.5, 0.5], [[1, 0], [-1, 0]], [0.1 * np.eye(2)] * 2))
    )


def test_float32_stays_float32_when_x64_is_on(promotion, x64):
    sde, of = diffusion.vp_sde(), mixture()
    half: Any = lambda t, x: 0.5 * x
    t = jnp.full(12, 0.2)
    for value in (
        sde.perturb(KEY, t, SINGLE),
        of.score(sde, t, SINGLE),
        of.denoise(sde, 0.1, SINGLE),
        of.log_density(sde, np.float64(0.1), SINGLE),
        of.sample(KEY, 3),
        diffusion.EmpiricalDistribution(SINGLE).score(sde, 0.1, SINGLE),
        diffusion.score(sde, half)(t, SINGLE),
        metrics.energy_distance(SINGLE, SINGLE + 1).upper,
        metrics.mmd(SINGLE, SINGLE + 1).lower,
        metrics.sliced_wasserstein(KEY, SINGLE, SINGLE + 1, projections=4).value,
        metrics.nearest_training_point(SINGLE, SINGLE + 1).distance,
        metrics.memorisation(SINGLE, SINGLE + 1, SINGLE + 2).fraction.upper,
        metrics.score_error(KEY, sde, lambda t, x: -x, of, jnp.asarray(0.3), n=4).relative.upper,
    ):
        assert value.dtype == np.float32
    assert of.score(sde, 0.1, SINGLE.astype("float64")).dtype == np.float64
    assert mixture("float64").score(sde, 0.1, SINGLE).dtype == np.float64


@pytest.mark.parametrize("method", ["sde", pytest.param("ode", marks=pytest.mark.slow)])
def test_draws_with_a_score_of_another_precision(method, promotion, x64):
    of, sde = mixture(), diffusion.vp_sde()
    draws = diffusion.sample(
        KEY, sde, lambda t, x: of.score(sde, t, x.astype("float32")), (3, 2), method, steps=4
    )
    assert draws.dtype == np.float64
    assert np.isfinite(draws).all()


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["network", "kernel", "linearised", "likelihood"])
def test_fits_in_float32_when_x64_is_on(fit, promotion, x64):
    sde = diffusion.vp_sde()
    f = {
        "network": lambda: diffusion.fit_denoiser(
            KEY, sde, SINGLE, width=8, steps=3, batch_size=8, times=2
        ),
        "kernel": lambda: diffusion.kernel_denoiser(
            KEY, sde, SINGLE, landmarks=6, draws=1, sigma=1.0, times=2
        ),
        "linearised": lambda: diffusion.linearised_denoiser(
            KEY, sde, SINGLE, width=8, steps=3, times=2
        ),
        "likelihood": lambda: lambda t, x: diffusion.log_likelihood(sde, lambda t, x: -x, x),
    }[fit]()
    value = f(0.3, SINGLE)
    assert value.dtype == np.float32
    assert np.isfinite(value).all()


def test_ordinary_calls_meet_no_nan():
    sde, of = diffusion.vp_sde(), mixture()
    with jax.debug_nans(True):
        of.score(sde, 0.1, SINGLE)
        diffusion.EmpiricalDistribution(SINGLE).score(sde, 1e-3, SINGLE)
        sde.sample_times(KEY, 5, centre=40.0)
        diffusion.sample(KEY, sde, lambda t, x: -x, (3, 2), steps=3)
        metrics.energy_distance(SINGLE, SINGLE)
        metrics.sliced_wasserstein(KEY, SINGLE, SINGLE, projections=4)
        metrics.nearest_training_point(SINGLE, SINGLE)


def test_the_error_of_a_score_of_zero_has_a_derivative():
    """Where the truth is zero the relative error is +inf, and stays so."""
    score = jnp.asarray(X, jnp.float32)
    slope = jax.grad(lambda s: _score_error._compare(s, jnp.zeros_like(s))[1].upper)(score)
    assert not np.asarray(slope).any()
