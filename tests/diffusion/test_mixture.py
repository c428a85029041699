"""Known distributions: their densities, scores and denoisers agree with each other and with
quadrature.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from helpers import assert_close, cast, slow_except

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
        np.log(w)
        + scipy.stats.multivariate_normal(alpha * m, alpha**2 * c + h * np.eye(len(m)))
        .logpdf(x)
        .reshape(len(x))
        for w, m, c in zip(
            *(np.asarray(a) for a in (of.weights, of.means, of.covariances)), strict=True
        )
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
@pytest.mark.parametrize("sde", slow_except([SDE, cosine_sde()], SDE))
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
    ("kind", "dtype"),
    slow_except(BOTH_IN_BOTH, ("mixture", "float32"), ("data", "float64")),
    indirect=["dtype"],
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
    of = GaussianMixture(
        jnp.asarray(weights), jnp.asarray(means)[:, None], jnp.asarray(deviations**2)[:, None, None]
    )
    alpha, noise = float(SDE.alpha(t)), np.sqrt(float(SDE.variance(t)))
    grid = np.linspace(-5, 5, 40_001)
    prior = sum(
        w * scipy.stats.norm.pdf(grid, m, s)
        for w, m, s in zip(weights, means, deviations, strict=True)
    )
    x = np.array([-1.3, 0.1, 0.9, 2.0])
    joint = prior * scipy.stats.norm.pdf(x[:, None], alpha * grid, noise)
    evidence = scipy.integrate.simpson(joint, x=grid)
    at = jnp.asarray(x)[:, None]
    assert_close(
        compiled("denoise")(of, t, at)[:, 0],
        scipy.integrate.simpson(joint * grid, x=grid) / evidence,
        rtol=1e-8,
    )
    assert_close(compiled("log_density")(of, t, at), np.log(evidence), rtol=1e-8)


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
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


def test_the_density_of_data_is_the_mean_of_those_around_them(x64):
    data, x = np.array([[0.0, 1.0], [2.0, 0.5]]), np.array([[0.3, -0.2]])
    alpha, h = float(SDE.alpha(0.5)), float(SDE.variance(0.5))
    densities = [np.prod(scipy.stats.norm.pdf(x, alpha * row, h**0.5)) for row in data]
    found = EmpiricalDistribution(jnp.asarray(data)).log_density(SDE, 0.5, jnp.asarray(x))
    assert_close(found, [np.log(np.mean(densities))], rtol=1e-9)


@pytest.mark.slow
def test_data_are_a_mixture_of_points(x64):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)) + 10)  # far from 0
    points, functions = EmpiricalDistribution(data), {name: compiled(name) for name in NAMES}
    of = GaussianMixture(
        jnp.full(20, 1 / 20), data, jnp.zeros((20, 2, 2)) + 1e-14 * jnp.eye(2)[None]
    )
    for t in AT:
        # 300 rows: more than one block of queries
        x = SDE.perturb(jax.random.key(0), t, jnp.tile(data, (15, 1)))
        for function in functions.values():
            assert_close(function(points, t, x), function(of, t, x), rtol=1e-7)
    nearest = jnp.argmin(jnp.sum((data - 10) ** 2, axis=1))
    assert_close(
        functions["denoise"](points, 1e-6, jnp.full((1, 2), 10.0))[0], data[nearest], rtol=1e-6
    )


@pytest.mark.parametrize("name", slow_except(NAMES, "score"))
@pytest.mark.parametrize(
    ("kind", "dtype"), slow_except(BOTH_IN_BOTH, ("mixture", "float64")), indirect=["dtype"]
)
@pytest.mark.slow
def test_a_time_for_each_row_and_transformations(kind, name, dtype):
    of = (
        mixture(2, dtype=dtype)
        if kind == "mixture"
        else EmpiricalDistribution(jnp.asarray([[0.0, 1.0], [2.0, 0.5]], dtype))
    )
    x, t = spread_out(2, dtype)[:4], jnp.asarray([0.01, 0.1, 0.5, 1.0], dtype)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    function = compiled(name)
    together = function(of, t, x)
    assert together.dtype == dtype
    assert_close(getattr(of, name)(SDE, t, x), together, rtol=rtol)
    assert_close(
        jnp.concatenate([function(of, t[i], x[i : i + 1]) for i in range(4)]), together, rtol=rtol
    )
    assert_close(jax.vmap(lambda t, x: function(of, t, x[None])[0])(t, x), together, rtol=rtol)


def dense_log_density(weights, means, covariances, t, x):
    """By Cholesky factors, which have a derivative everywhere."""
    alpha, noise = SDE.alpha(t), SDE.variance(t) * jnp.eye(means.shape[1])
    each = [
        jnp.log(w)
        + jax.vmap(jax.scipy.stats.multivariate_normal.logpdf, (0, None, None))(
            x, alpha * m, alpha**2 * c + noise
        )
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(each), axis=0)


def test_the_derivative_in_a_covariance_whose_eigenvalues_are_equal(x64):
    """½α²(C⁻¹rrᵀC⁻¹ − C⁻¹) of each row, with r = x − αμ."""
    mean, x, t = jnp.asarray([[1.0, -1.0]]), spread_out(2), 0.3
    slope = jax.grad(lambda c: GaussianMixture(jnp.ones(1), mean, c).log_density(SDE, t, x).sum())(
        0.5 * jnp.eye(2)[None]
    )
    alpha, h = float(SDE.alpha(t)), float(SDE.variance(t))
    inverse, away = np.eye(2) / (0.5 * alpha**2 + h), np.asarray(x) - alpha * np.asarray(mean)
    assert_close(
        slope[0], alpha**2 / 2 * (inverse @ away.T @ away @ inverse - len(x) * inverse), rtol=1e-10
    )


@pytest.mark.parametrize("kind", ["isotropic", "generic", "singular"])
@pytest.mark.parametrize("name", [*NAMES, "slope", "covariances"])
@pytest.mark.slow
def test_derivatives_in_the_covariances(name, kind, x64):
    """Of a mixture, against automatic differentiation; that of the slope is the second derivative
    of the density.
    """
    of, x, t = mixture(3, modes=2), spread_out(3)[:3], 0.3
    covariances = {
        "isotropic": jnp.tile(0.5 * jnp.eye(3), (2, 1, 1)),
        "generic": of.covariances,
        "singular": jnp.tile(jnp.diag(jnp.array([1.0, 1.0, 0.0])), (2, 1, 1)),
    }[kind]
    symmetric = lambda c: (c + c.swapaxes(1, 2)) / 2
    made = lambda c: GaussianMixture(of.weights, of.means, symmetric(c))
    dense = lambda c, x: dense_log_density(of.weights, of.means, symmetric(c), t, x)
    score = lambda c: jax.grad(lambda x: dense(c, x).sum())(x)
    ours, theirs = {
        "log_density": (lambda c: made(c).log_density(SDE, t, x), lambda c: dense(c, x)),
        "score": (lambda c: made(c).score(SDE, t, x), score),
        "denoise": (
            lambda c: made(c).denoise(SDE, t, x),
            lambda c: (x + SDE.variance(t) * score(c)) / SDE.alpha(t),
        ),
        "slope": (
            jax.grad(lambda c: made(c).log_density(SDE, t, x).sum()),
            jax.grad(lambda c: dense(c, x).sum()),
        ),
        "covariances": (lambda c: made(c).covariances, symmetric),
    }[name]
    assert_close(jax.jacobian(ours)(covariances), jax.jacobian(theirs)(covariances), rtol=1e-9)


@pytest.mark.slow
def test_draws_can_be_differentiated_in_the_covariances(x64):
    """E XXᵀ follows Σ."""
    made = lambda c: GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), c).sample(
        jax.random.key(0), 40_000
    )
    second = lambda c: made(c).T @ made(c) / 40_000
    direction = jnp.array([[[0.5, 1.0], [1.0, -0.3]]])
    assert_close(jax.jvp(second, (jnp.eye(2)[None],), (direction,))[1], direction[0], rtol=0.05)


@pytest.mark.parametrize(
    ("d", "scale", "t"),
    slow_except([(2, 100.0, 1e-5), (16, 30.0, 1e-5), (2, 1e6, 0.5)], (2, 100.0, 1e-5)),
)
def test_points_that_are_far_apart_for_the_noise(d, scale, t):
    """Weights of e to the power of ten to the ten: the nearest point is the answer."""
    data = scale * jax.random.normal(jax.random.key(0), (300, d))
    x = SDE.perturb(jax.random.key(1), t, data)
    assert_close(compiled("denoise")(EmpiricalDistribution(data), t, x), data, rtol=1e-6)
    assert np.isfinite(EmpiricalDistribution(data).score(SDE, t, x)).all()


@pytest.mark.parametrize("n", [pytest.param(32, marks=pytest.mark.optimised, id="optimised"), 33])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("variances", [(0.1, 0.5), (0.5, 0.5)])
def test_points_whose_squares_overflow_have_the_score_of_the_nearest_mode(n, d, variances):
    """XLA computes the same square with several roundings, and their difference overflows as well."""
    modes = GaussianMixture(
        jnp.array([0.3, 0.7]),
        jnp.array(np.random.default_rng(0).normal(size=(2, d)), jnp.float32),
        jnp.asarray(np.einsum("c,ij->cij", variances, np.eye(d)), jnp.float32),
    )
    x = 1e25 * jax.random.normal(jax.random.key(0), (n, d))
    alpha, h = float(SDE.alpha(1e-3)), float(SDE.variance(1e-3))
    assert_close(modes.score(SDE, 1e-3, x), -x / (alpha**2 * 0.5 + h), rtol=1e-5)
    posterior_slope = alpha * 0.5 / (alpha**2 * 0.5 + h)
    assert_close(modes.denoise(SDE, 1e-3, x), posterior_slope * x, rtol=1e-5)
    assert (modes.log_density(SDE, 1e-3, x) == -np.inf).all()


@pytest.mark.slow
def test_draws_have_the_moments(x64):
    of = mixture(3, seed=4)
    x = np.asarray(of.sample(jax.random.key(0), 40_000))
    weights, means = np.asarray(of.weights), np.asarray(of.means)
    mean = weights @ means
    covariance = np.einsum("c,cij->ij", weights, np.asarray(of.covariances)) + (
        weights * (means - mean).T
    ) @ (means - mean)
    assert_close(x.mean(axis=0), mean, rtol=0.05)
    assert_close(np.cov(x, rowvar=False), covariance, rtol=0.05)
    data = EmpiricalDistribution(jnp.arange(4.0)[:, None])
    counts = np.bincount(
        np.asarray(data.sample(jax.random.key(1), 4000)[:, 0]).astype(int), minlength=4
    )
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
        (
            lambda: GaussianMixture(ONE, TWO, jnp.eye(2)),
            "weights must be of shape (1,) and covariances (1, 2, 2)",
        ),
        (lambda: GaussianMixture(jnp.ones(2) / 2, TWO, EYE), "weights must be of shape (1,)"),
        (
            lambda: GaussianMixture(2 * ONE, TWO, EYE),
            "weights must be positive and sum to one, got [2.] of sum 2.",
        ),
        (
            lambda: GaussianMixture(jnp.array([1.5, -0.5]), jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
            "weights must be positive",
        ),
        (
            lambda: GaussianMixture(ONE, TWO.astype(int), EYE),
            "means must be a floating-point array",
        ),
        (
            lambda: GaussianMixture(ONE, TWO, EYE.astype(int)),
            "covariances must be a floating-point array",
        ),
        (lambda: GaussianMixture(ONE, TWO * jnp.nan, EYE), "means must be finite"),
        (lambda: GaussianMixture(ONE, TWO, EYE * jnp.inf), "covariances must be finite"),
        (lambda: GaussianMixture(ONE, TWO, -EYE), "covariances must be positive semidefinite"),
        (
            lambda: GaussianMixture(ONE, TWO, EYE.at[0, 0, 1].set(0.5)),
            "covariances must be symmetric",
        ),
        (
            lambda: GaussianMixture(ONE, TWO, EYE).sample(jax.random.key(0), 0),
            "n must be a positive integer, got 0.",
        ),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 0.0, TWO), "t must lie in (0, 1]"),
        (lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 1.5, TWO), "t must lie in (0, 1]"),
        (
            lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, 0.5, jnp.ones((3, 3))),
            "x must have shape [n, 2]",
        ),
        (
            lambda: GaussianMixture(ONE, TWO, EYE).score(SDE, jnp.ones(2) / 2, TWO),
            "t must be a scalar or of shape (1,)",
        ),
        (
            lambda: GaussianMixture(ONE, TWO, EYE).denoise(SDE, 0.5, TWO * jnp.nan),
            "x must be finite",
        ),
        (lambda: EmpiricalDistribution(jnp.ones(3)), "x0 must have shape [n, d]"),
        (lambda: EmpiricalDistribution(jnp.ones((3, 2), int)), "x0 must be a floating-point array"),
        (
            lambda: EmpiricalDistribution(TWO).sample(jax.random.key(0), 0),
            "n must be a positive integer",
        ),
        (
            lambda: EmpiricalDistribution(TWO).log_density(SDE, 0.5, jnp.ones((3, 3))),
            "x must have shape [n, 2]",
        ),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
