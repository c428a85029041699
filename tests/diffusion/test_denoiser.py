"""The coordinates that all denoisers share, and the score they mean."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, ring, slow_except

import softntk as sn
from softntk import diffusion
from softntk.diffusion._denoisers.base import Denoiser
from softntk.diffusion._denoisers.coordinates import fit_coordinates
from softntk.diffusion._denoisers.noisy_samples import time_embedding

SDE = diffusion.vp_sde()


def data(dtype, n=200, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(
        rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d), dtype
    )


def lifted(frame, t, x):
    return frame.network_input(SDE, t, frame.skip_and_out(SDE, t, x)[0])


@pytest.mark.parametrize("t", slow_except([1e-3, 0.2, 1.0], 0.2))
def test_linear_part_is_exact_for_gaussian_data(t, dtype):
    x0 = data(dtype)
    mean, cov = np.asarray(x0, np.float64).mean(0), np.cov(np.asarray(x0, np.float64).T, bias=True)
    normal = diffusion.GaussianMixture(
        jnp.ones(1, dtype), jnp.asarray(mean[None], dtype), jnp.asarray(cov[None], dtype)
    )
    x = SDE.perturb(jax.random.key(1), t, x0)
    linear, scale = fit_coordinates(SDE, x0, 4, 1e-3).skip_and_out(SDE, t, x)
    assert_close(linear, normal.denoise(SDE, t, x), rtol=1e-3 if dtype == "float32" else 1e-10)
    alpha, h = float(SDE.alpha(t)), float(SDE.variance(t))
    # what conditioning leaves
    left = cov - alpha**2 * cov @ np.linalg.solve(alpha**2 * cov + h * np.eye(3), cov)
    assert_close(
        scale[:, 0] ** 2,
        np.full(len(x), np.trace(left) / 3),
        rtol=1e-3 if dtype == "float32" else 1e-9,
    )


def test_lifted_inputs_lie_on_the_sphere_a_typical_one_at_45_degrees(dtype):
    x0 = data(dtype, n=2000)
    for t in (0.01, 0.5):
        z = lifted(fit_coordinates(SDE, x0, 4, 1e-3), t, SDE.perturb(jax.random.key(1), t, x0))
        assert_close(jnp.linalg.norm(z, axis=1), jnp.ones(len(z)), dtype)
        # of the point before it was divided by its norm
        squared = (1 / np.asarray(z[:, -1], np.float64) ** 2 - 1).mean()
        assert squared == pytest.approx(1, rel=0.1)


def test_directions_without_variance_do_not_count():
    x0 = data("float32").at[:, 1].set(2.0)
    x = SDE.perturb(jax.random.key(1), 0.3, x0)
    frame = fit_coordinates(SDE, x0, 4, 1e-3)
    assert_close(lifted(frame, 0.3, x), lifted(frame, 0.3, x.at[:, 1].add(7.0)), rtol=1e-5)


def test_data_that_the_noise_drowns_have_no_direction():
    """All that is left of z is its last coordinate."""
    frame = fit_coordinates(SDE, data("float32"), 2, 1e-3)
    drowned = dataclasses.replace(frame, eigenvalues=jnp.zeros(3))
    x = drowned.mean[None] + jnp.asarray([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    assert_close(drowned.network_input(SDE, 0.5, x), [[0, 0, 0, 1]] * 2)


def test_a_denoiser_says_what_it_is():
    frame = fit_coordinates(SDE, data("float32"), [0.02, 0.1, 0.3, 0.35], 1e-3)
    f = Denoiser(predictor=jnp.tanh, frame=frame, sde=SDE, result=jnp.asarray(0), stats={})
    assert "3 dimensions, 4 noise levels" in repr(f)


def test_place_among_the_knots(dtype):
    frame = fit_coordinates(SDE, data(dtype), [0.02, 0.1, 0.3, 0.35], 1e-3)
    close: dict[str, Any] = {"rtol": 1e-3 if dtype == "float32" else 1e-7}
    assert_close(frame.noise_coordinate(SDE, SDE.time(frame.noise_levels)), np.arange(4), **close)
    middle = (frame.noise_levels[1:] + frame.noise_levels[:-1]) / 2
    assert_close(frame.noise_coordinate(SDE, SDE.time(middle)), np.arange(3) + 0.5, **close)
    assert frame.noise_coordinate(SDE, 1e-3) == 3
    assert frame.noise_coordinate(SDE, 1.0) == 0


def test_bumps_add_up_smoothly(dtype):
    psi = np.asarray(time_embedding(jnp.linspace(0, 9, 91, dtype=dtype), 10), np.float64)
    assert_close(np.sum(psi**2, axis=1), np.ones(91), dtype)
    within = np.sum(psi, axis=1)[30:61]
    assert within.max() / within.min() - 1 < 1e-3
    assert (np.argmax(psi, axis=1)[::10] == np.arange(10)).all()


@pytest.mark.slow
def test_kernels_are_interpolated_between_two_knots(x64):
    frame = fit_coordinates(SDE, data("float64"), 3, 1e-3)
    f = FITS["kernel"](jax.random.key(0), data("float64", n=60), times=3)
    z = lifted(frame, 0.3, data("float64")[:5])
    at = [f.predictor(jnp.full(1, j, z.dtype), z) for j in range(3)]
    assert_close(f.predictor(jnp.full(1, 1.3, z.dtype), z), 0.7 * at[1] + 0.3 * at[2], rtol=1e-12)


def test_knots_reach_from_the_least_time_to_where_nothing_is_left():
    knots = fit_coordinates(SDE, data("float32"), 6, 0.01).noise_levels
    assert_close(SDE.time(knots[-1]), 0.01, rtol=1e-4)
    assert len(knots) == 6
    assert bool(jnp.all(jnp.diff(knots) > 0))
    assert_close(
        SDE.time(fit_coordinates(SDE, data("float32"), [0.3, 0.1], 0.01).noise_levels),
        [0.3, 0.1],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_score_of_the_exact_denoiser_is_the_exact_score(dtype):
    mixture = diffusion.GaussianMixture(
        jnp.asarray([0.3, 0.7], dtype),
        jnp.asarray([[0.0, 1.0], [1.0, -1.0]], dtype),
        jnp.stack([0.1 * jnp.eye(2, dtype=dtype)] * 2),
    )
    x = SDE.perturb(jax.random.key(0), 0.3, mixture.sample(jax.random.key(1), 50))
    score = diffusion.score(SDE, lambda t, x: mixture.denoise(SDE, t, x))
    for t in (0.3, jnp.full(50, 0.3, dtype)):
        assert_close(
            score(t, x), mixture.score(SDE, t, x), rtol=1e-4 if dtype == "float32" else 1e-11
        )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("denoiser", "t", "x", "message"),
    [
        (jnp.zeros_like, 0.0, jnp.ones((3, 2)), "t must lie in"),
        (jnp.zeros_like, -0.1, jnp.ones((3, 2)), "t must lie in"),
        (jnp.zeros_like, 2.0, jnp.ones((3, 2)), "t must lie in"),
        (jnp.zeros_like, 0.5, jnp.ones(3), "x must have shape"),
        (lambda x: x[:1], 0.5, jnp.ones((3, 2)), "must return the shape of x"),
        (lambda x: x[:, 0], 0.5, jnp.ones((3, 2)), "must return the shape of x"),
    ],
)
def test_a_score_refuses_what_it_cannot_mean(denoiser, t, x, message):
    with pytest.raises(ValueError, match=message):
        diffusion.score(SDE, lambda t, x: denoiser(x))(t, x)


def test_denoising_loss_is_the_error_and_a_constant_that_is_the_same_for_all():
    """E|f − X_0|² − E|f − E[X_0|X_t]|² = E Var(X_0|X_t), whatever f is; by chance up to 1/√N."""
    mixture = ring()
    x0 = mixture.sample(jax.random.key(0), 50_000)
    for t in (0.05, 0.3):
        x = SDE.perturb(jax.random.key(1), t, x0)
        best = mixture.denoise(SDE, t, x)
        square = lambda u: float(jnp.mean(jnp.sum(u**2, axis=1)))
        estimators = (
            x,
            jnp.zeros_like(x),
            best,
            fit_coordinates(SDE, x0, 3, 1e-3).skip_and_out(SDE, t, x)[0],
        )
        for f in estimators:
            by_chance = float(jnp.std(2 * jnp.sum((f - best) * (best - x0), axis=1))) / np.sqrt(
                len(x0)
            )
            assert abs(square(f - x0) - square(f - best) - square(best - x0)) < 5 * by_chance + 1e-5


FITS = {
    "network": lambda key, x0, **options: diffusion.fit_denoiser(
        key, SDE, x0, width=32, steps=3, **options
    ),
    "kernel": lambda key, x0, **options: diffusion.kernel_denoiser(
        key, SDE, x0, landmarks=40, draws=1, sigma=1.0, **options
    ),
    "linearised": lambda key, x0, **options: diffusion.linearised_denoiser(
        key, SDE, x0, width=32, steps=30, sigma=1.0, **options
    ),
}


@pytest.mark.parametrize(
    ("fit", "dtype"),
    slow_except(itertools.product(FITS, ("float32", "float64")), ("network", "float32")),
    indirect=["dtype"],
)
def test_all_denoisers_serve_the_same(fit, dtype):
    """One time or many, compiled or not, mapped or not; in the precision of the data; the linear
    denoiser far away.
    """
    x0 = data(dtype, n=60)
    f = FITS[fit](jax.random.key(0), x0, times=3)
    x = x0[:7]
    assert f(0.3, x).dtype == dtype
    once = f(0.3, x)
    close: dict[str, Any] = {"rtol": 1e-4 if dtype == "float32" else 1e-9}
    assert_close(f(jnp.full(7, 0.3, dtype), x), once, **close)
    assert_close(jax.jit(lambda f, t, x: f(t, x))(f, 0.3, x), once, **close)
    assert_close(jax.vmap(lambda row: f(0.3, row[None])[0])(x), once, **close)
    assert f.result == sn.solution.Result.SUCCESSFUL
    assert "did what" in f.advice
    far = f(0.3, 1e4 * jnp.ones((1, 3), dtype))
    assert bool(jnp.isfinite(far).all())


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("fit", slow_except(FITS, "kernel"))
def test_bad_data_and_times(fit):
    run = lambda x0, **options: FITS[fit](jax.random.key(0), x0, **options)
    x0 = data("float32", n=60)
    with pytest.raises(ValueError, match="x0 must be finite"):
        run(x0.at[3, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="at least two rows"):
        run(x0[:1])
    with pytest.raises(ValueError, match="rows that differ"):
        run(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"x0 must have shape \[n, d\]"):
        run(x0[0])
    with pytest.raises(ValueError, match="floating-point"):
        run(jnp.ones((5, 2), int))
    with pytest.raises(ValueError, match="min_time must lie between"):
        run(x0, min_time=0.0)
    with pytest.raises(ValueError, match="times must lie in"):
        run(x0, times=[0.2, 1.5])
    with pytest.raises(ValueError, match="times must be a positive integer"):
        run(x0, times=0)
    f = run(x0, times=2)
    with pytest.raises(ValueError, match="t must lie in"):
        f(0.0, x0)
    with pytest.raises(ValueError, match="x must have shape"):
        f(0.3, x0[:, :2])
    with pytest.raises(ValueError, match="t must be a scalar or of shape"):
        f(jnp.full(3, 0.3), x0[:4])
    constant = run(x0.at[:, 1].set(2.0), times=2)(0.3, x0.at[:, 1].set(2.0))
    # a constant column stays about what it is
    assert_close(constant[:, 1], np.full(60, 2.0), rtol=0.3)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_directions_have_no_unit(unit):
    """Where noise is a small part of the data's spread, in whatever unit both are."""
    x0 = data("float32")
    t = 1e-4
    coordinates, scaled = (fit_coordinates(SDE, c * x0, [t], t) for c in (1.0, unit))
    assert_close(
        scaled.network_input(SDE, 1e-9, unit * x0[:5]),
        coordinates.network_input(SDE, 1e-9, x0[:5]),
        rtol=1e-2,
    )


def test_two_rows_are_data_and_one_is_none():
    rows = data("float32", n=2)
    assert fit_coordinates(SDE, rows, 2, 1e-3).mean.shape == (3,)
    with pytest.raises(ValueError, match="at least two rows"):
        fit_coordinates(SDE, rows[:1], 2, 1e-3)
