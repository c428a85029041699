"""Known distributions: their densities, scores and denoisers agree with each other and with quadrature."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from tools import assert_close, cast, first

from softntk.diffusion import EmpiricalDistribution, GaussianMixture, cosine_sde, vp_sde

SDE = vp_sde()
AT = (1e-3, 0.2, 1.0)


def mixture(d, modes=3, seed=0, rank=None, dtype="float64"):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(modes, d, rank or d)) / np.sqrt(d)
    weights = rng.uniform(0.2, 1, modes)
    arrays = weights / weights.sum(), rng.normal(size=(modes, d)), roots @ roots.transpose(0, 2, 1)
    return GaussianMixture(*(jnp.asarray(a, dtype) for a in arrays))


def scipy_density(of, sde, t, x):
    alpha, h, x = float(sde.alpha(t)), float(sde.variance(t)), np.asarray(x)
    logs = [
        np.log(w) + scipy.stats.multivariate_normal(alpha * m, alpha**2 * c + h * np.eye(len(m))).logpdf(x).reshape(len(x))
        for w, m, c in zip(*(np.asarray(a) for a in (of.weights, of.means, of.covariances)), strict=True)
    ]
    return scipy.special.logsumexp(logs, axis=0)


BOTH_IN_BOTH = list(itertools.product(["mixture", "data"], ["float32", "float64"]))
NAMES = ("log_density", "score", "denoise")


def compiled(name, sde=SDE):
    """A method as a function (distribution, t, x), in one program."""
    return jax.jit(lambda of, t, x: getattr(of, name)(sde, t, x))


def spread_out(d, dtype="float64"):
    """Near the modes, and 50 standard deviations away."""
    near = np.random.default_rng(1).normal(size=(6, d))
    return jnp.asarray(np.concatenate([near, 50 * np.eye(d)[:1], -50 * np.eye(d)[-1:]]), dtype)


@pytest.mark.parametrize("d", [1, 2, 8, 32])
@pytest.mark.parametrize("sde", first([SDE, cosine_sde()], SDE))
def test_density_and_score(d, sde, x64):
    of, x = mixture(d), spread_out(d)
    log_density, score = compiled("log_density", sde), compiled("score", sde)
    slope = jax.jit(jax.grad(lambda x, t: of.log_density(sde, t, x).sum()))
    for t in AT:
        assert_close(log_density(of, t, x), scipy_density(of, sde, t, x), rtol=1e-10)
        found, desired = score(of, t, x), slope(x, t)
        assert_close(found[:6], desired[:6], rtol=1e-8)
        assert_close(found[6:], desired[6:], rtol=1e-8)


@pytest.mark.parametrize(
    ("kind", "dtype"), first(BOTH_IN_BOTH, ("mixture", "float32"), ("data", "float64")), indirect=["dtype"]
)
def test_tweedie(kind, dtype):
    """E[X_0 | x] = (x + h ∇log p)/α, and both by the density's derivative."""
    of = mixture(3, dtype=dtype)
    of = of if kind == "mixture" else EmpiricalDistribution(of.sample(jax.random.key(0), 20))
    x = spread_out(3, dtype)[:6]
    slopes = jax.jit(jax.grad(lambda x, t: of.log_density(SDE, t, x).sum()))
    score, denoise = compiled("score"), compiled("denoise")
    for t in (0.05, 0.3):
        alpha, h = float(SDE.alpha(t)), float(SDE.variance(t))
        denoised = denoise(of, t, x)
        assert denoised.dtype == dtype
        tolerance = 1e-9 if dtype == "float64" else 1e-4
        assert_close((x + h * score(of, t, x)) / alpha, denoised, rtol=tolerance)
        assert_close((x + h * slopes(x, t)) / alpha, denoised, rtol=10 * tolerance)


@pytest.mark.parametrize("t", [0.01, 0.2, 0.9])
def test_denoising_in_one_dimension_is_an_integral(t, x64):
    weights, means, deviations = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.4, 0.2])
    of = GaussianMixture(jnp.asarray(weights), jnp.asarray(means)[:, None], jnp.asarray(deviations**2)[:, None, None])
    alpha, noise = float(SDE.alpha(t)), np.sqrt(float(SDE.variance(t)))
    grid = np.linspace(-5, 5, 40_001)
    prior = sum(w * scipy.stats.norm(m, s).pdf(grid) for w, m, s in zip(weights, means, deviations, strict=True))
    x = np.array([-1.3, 0.1, 0.9, 2.0])
    joint = prior * scipy.stats.norm(alpha * grid, noise).pdf(x[:, None])
    evidence = scipy.integrate.simpson(joint, x=grid)
    at = jnp.asarray(x)[:, None]
    assert_close(compiled("denoise")(of, t, at)[:, 0], scipy.integrate.simpson(joint * grid, x=grid) / evidence, rtol=1e-8)
    assert_close(compiled("log_density")(of, t, at), np.log(evidence), rtol=1e-8)


@pytest.mark.parametrize("dtype", first(["float32", "float64"], "float32"), indirect=True)
@pytest.mark.slow
def test_singular_covariances(dtype):
    """A line and a point in R³: finite wherever there is noise, and the same as in float64."""
    covariances = np.zeros((2, 3, 3))
    covariances[0] = np.outer([1, 2, 2], [1, 2, 2]) / 9
    arrays = np.array([0.5, 0.5]), np.array([[0.0, 0, 0], [1, 1, 1]]), covariances
    of = GaussianMixture(*(jnp.asarray(a, dtype) for a in arrays))
    x = spread_out(3, dtype)
    with jax.enable_x64(True):
        exact = GaussianMixture(*(jnp.asarray(a) for a in arrays))
        both = compiled("score"), compiled("log_density")
        desired = {t: [np.asarray(f(exact, t, cast(x, "float64"))) for f in both] for t in AT}
        assert_close(desired[0.2][1], scipy_density(exact, SDE, 0.2, x), rtol=1e-9)
    for t, (score, density) in desired.items():
        assert_close(both[0](of, t, x), score, rtol=1e-9 if dtype == "float64" else 1e-3)
        assert_close(both[1](of, t, x), density, rtol=1e-9 if dtype == "float64" else 1e-3)
    assert np.isfinite(of.sample(jax.random.key(0), 5)).all()


@pytest.mark.slow
def test_data_are_a_mixture_of_points(x64):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)) + 10)  # far from 0
    points, functions = EmpiricalDistribution(data), {name: compiled(name) for name in NAMES}
    of = GaussianMixture(jnp.full(20, 1 / 20), data, jnp.zeros((20, 2, 2)) + 1e-14 * jnp.eye(2)[None])
    for t in AT:
        x = SDE.perturb(jax.random.key(0), t, jnp.tile(data, (15, 1)))  # 300 rows: more than one block of queries
        for function in functions.values():
            assert_close(function(points, t, x), function(of, t, x), rtol=1e-7)
    nearest = jnp.argmin(jnp.sum((data - 10) ** 2, axis=1))
    assert_close(functions["denoise"](points, 1e-6, jnp.full((1, 2), 10.0))[0], data[nearest], rtol=1e-6)


@pytest.mark.parametrize("name", first(NAMES, "score"))
@pytest.mark.parametrize(("kind", "dtype"), first(BOTH_IN_BOTH, ("mixture", "float64")), indirect=["dtype"])
@pytest.mark.slow
def test_a_time_for_each_row_and_transformations(kind, name, dtype):
    of = mixture(2, dtype=dtype) if kind == "mixture" else EmpiricalDistribution(jnp.asarray([[0.0, 1.0], [2.0, 0.5]], dtype))
    x, t = spread_out(2, dtype)[:4], jnp.asarray([0.01, 0.1, 0.5, 1.0], dtype)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    function = compiled(name)
    together = function(of, t, x)
    assert together.dtype == dtype
    assert_close(getattr(of, name)(SDE, t, x), together, rtol=rtol)
    assert_close(jnp.concatenate([function(of, t[i], x[i : i + 1]) for i in range(4)]), together, rtol=rtol)
    assert_close(jax.vmap(lambda t, x: function(of, t, x[None])[0])(t, x), together, rtol=rtol)


@pytest.mark.slow
def test_draws_have_the_moments(x64):
    of = mixture(3, seed=4)
    x = np.asarray(of.sample(jax.random.key(0), 40_000))
    weights, means = np.asarray(of.weights), np.asarray(of.means)
    mean = weights @ means
    covariance = np.einsum("c,cij->ij", weights, np.asarray(of.covariances)) + (weights * (means - mean).T) @ (means - mean)
    assert_close(x.mean(axis=0), mean, rtol=0.05)
    assert_close(np.cov(x, rowvar=False), covariance, rtol=0.05)
    data = EmpiricalDistribution(jnp.arange(4.0)[:, None])
    counts = np.bincount(np.asarray(data.sample(jax.random.key(1), 4000)[:, 0]).astype(int), minlength=4)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.slow
def test_covariances_come_back(x64):
    of = mixture(4, rank=2)
    again = GaussianMixture(of.weights, of.means, of.covariances)
    assert_close(again.covariances, of.covariances)
    assert np.linalg.matrix_rank(np.asarray(of.covariances), tol=1e-10).tolist() == [2, 2, 2]


ONE, TWO = jnp.ones(1), jnp.zeros((1, 2))
EYE = jnp.eye(2)[None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixture(ONE, TWO, jnp.eye(2)), "weights must be of shape (1,) and covariances (1, 2, 2)"),
        (lambda: GaussianMixture(jnp.ones(2) / 2, TWO, EYE), "weights must be of shape (1,)"),
        (lambda: GaussianMixture(2 * ONE, TWO, EYE), "weights must be positive and sum to one, got [2.] of sum 2."),
        (lambda: GaussianMixture(jnp.array([1.5, -0.5]), jnp.zeros((2, 1)), jnp.ones((2, 1, 1))), "weights must be positive"),
        (lambda: GaussianMixture(ONE, TWO.astype(int), EYE), "means must be a floating-point array"),
        (lambda: GaussianMixture(ONE, TWO, EYE.astype(int)), "covariances must be a floating-point array"),
        (lambda: GaussianMixture(ONE, TWO * jnp.nan, EYE), "means must be finite"),
        (lambda: GaussianMixture(ONE, TWO, EYE * jnp.inf), "covariances must be finite"),
        (lambda: GaussianMixture(ONE, TWO, -EYE), "covariances must be positive semidefinite"),
        (lambda: GaussianMixture(ONE, TWO, EYE.at[0, 0, 1].set(0.5)), "covariances must be symmetric"),
        (lambda: GaussianMixture(ONE, TWO, EYE).sample(jax.random.key(0), 0), "n must be a positive integer, got 0."),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 0.0, TWO), "t must lie in (0, 1]"),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 1.5, TWO), "t must lie in (0, 1]"),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 0.5, jnp.ones((3, 3))), "x must have shape [n, 2]"),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, jnp.ones(2) / 2, TWO), "t must be a scalar or of shape (1,)"),
        (lambda: GaussianMixture(ONE, TWO, EYE).denoise(SDE, 0.5, TWO * jnp.nan), "x must be finite"),
        (lambda: EmpiricalDistribution(jnp.ones(3)), "x0 must have shape [n, d]"),
        (lambda: EmpiricalDistribution(jnp.ones((3, 2), int)), "x0 must be a floating-point array"),
        (lambda: EmpiricalDistribution(TWO).sample(jax.random.key(0), 0), "n must be a positive integer"),
        (lambda: EmpiricalDistribution(TWO).log_density(SDE, 0.5, jnp.ones((3, 3))), "x must have shape [n, 2]"),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
