"""Samples have the distribution whose score they were made from."""

import functools
import itertools
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_close, slow_except

from softntk._core.progress import Progress
from softntk.diffusion import GaussianMixture, constant_sde, cosine_sde, sample, vp_sde
from softntk.diffusion._sampling import score_functions
from softntk.solution import NumericalError

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


def nan_beyond_one(t, x):
    return jnp.where(x[:, :1] > 1, jnp.nan, -x)


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


def test_the_flow_of_a_gaussian_is_the_affine_map(dtype):
    """(x_t − α_t μ)/√v_t stays what it is along the flow, v = α² σ² + h."""
    mean, spread = np.array([1.0, -0.5, 0.0]), np.array([0.3, 2.0, 0.01])
    of_data = normal(jnp.asarray(mean, dtype), jnp.asarray(np.diag(spread**2), dtype))
    tight = {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
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


@pytest.mark.parametrize(
    ("method", "dtype"),
    slow_except(
        list(itertools.product(["sde", "ode"], ["float32", "float64"])),
        ("sde", "float32"),
        ("ode", "float64"),
    ),
    indirect=["dtype"],
)
@pytest.mark.slow
def test_under_vmap(method, dtype):
    options = {"method": method, "steps": 5}
    keys = jax.random.split(jax.random.key(4), 2)
    many = jax.vmap(lambda key: sample(key, SDE, wide, (5, 3), **options))(keys)
    assert many.dtype == dtype
    assert_close(many[1], sample(keys[1], SDE, wide, (5, 3), **options), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_differentiable_in_what_the_score_closes_over(method, x64):
    """In the mean m of N(m, 1)."""
    options = {"method": method, "steps": 10, "rtol": 1e-9, "atol": 1e-9}
    draw = lambda m: sample(
        jax.random.key(1), SDE, lambda t, x: SDE.alpha(t) * m - x, (2, 1), **options
    ).sum()
    step = 1e-4
    assert_close(jax.grad(draw)(0.3), (draw(0.3 + step) - draw(0.3 - step)) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("method", slow_except(["sde", "ode"], "sde"))
def test_a_score_that_is_not_finite_is_told(method):
    draw = functools.partial(
        sample, jax.random.key(0), SDE, nan_beyond_one, (64, 2), method, steps=20
    )
    with pytest.raises(
        NumericalError, match=r"NONFINITE_SCORE: A score is NaN .* Look at score_fn"
    ):
        draw()
    for x in (draw(throw=False), jax.jit(lambda: draw())()):
        bad = np.asarray(jnp.isinf(x))
        assert not np.isnan(x).any()
        assert (bad.all(axis=1) == bad.any(axis=1)).all()
        assert 0 < bad[:, 0].sum() < 64  # the other rows are not harmed
    fine = sample(jax.random.key(0), SDE, minus_x, (64, 2), method, steps=20)
    good = ~np.isinf(draw(throw=False)[:, 0])
    assert_close(draw(throw=False)[good], fine[good], rtol=1e-3)


def test_steps_that_run_out_are_told():
    with pytest.raises(NumericalError, match=r"MAX_STEPS: .* Allow more max_steps"):
        sample(jax.random.key(0), SDE, wide, (4, 2), "ode", max_steps=3)
    assert np.isposinf(
        sample(jax.random.key(0), SDE, wide, (4, 2), "ode", max_steps=3, throw=False)
    ).all()


class Scaled(eqx.Module):
    factor: jax.Array

    def __call__(self, t, x):
        return -self.factor[None] * x


class Plain:
    def __init__(self):
        self.calls = 0

    def score(self, t, x):
        self.calls += 1
        return -x


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_nothing_is_compiled_twice(method):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(minus_x, 1)
    for seed in range(3):
        sample(jax.random.key(seed), SDE, traced, (3, 2), method, steps=5)
    plain, counts = Plain(), []
    for seed in range(3):
        sample(jax.random.key(seed), SDE, plain.score, (3, 2), method, steps=5)
        counts.append(plain.calls)
    assert counts[0] == counts[2]


def test_arrays_of_the_score_are_arguments_of_the_program():
    """A pytree may change its arrays and is not compiled anew; a closure's arrays are no constants
    of the program.
    """
    traces = 0

    class Counted(eqx.Module):
        factor: jax.Array

        def __call__(self, t, x):
            nonlocal traces
            traces += 1
            return -self.factor[None] * x

        def again(self, t, x):
            return self(t, x)

    draw = lambda score: sample(jax.random.key(0), SDE, score, (3, 2), steps=5)
    one = draw(Counted(jnp.ones(2)))
    before = traces
    assert not np.allclose(one, draw(Counted(2 * jnp.ones(2))))
    assert traces == before
    assert_close(draw(Counted(jnp.ones(2)).again), one, "float32")
    bound = score_functions.as_pytree(Counted(jnp.ones(2)).again, (3, 2), jnp.float32)
    assert [leaf.shape for leaf in jax.tree.leaves(bound)] == [(2,)]
    of_method = score_functions.as_pytree(ring().score, (3, 2), jnp.float32)
    assert (8, 2) in [leaf.shape for leaf in jax.tree.leaves(of_method) if eqx.is_array(leaf)]
    large = jnp.ones((300, 2))
    converted = score_functions.as_pytree(
        lambda t, x: -x * large.mean(axis=0)[None], (3, 2), jnp.float32
    )
    assert [leaf.shape for leaf in jax.tree.leaves(converted) if eqx.is_array(leaf)] == [(300, 2)]


@pytest.mark.slow
def test_a_mixture_s_method_and_numpy_records_are_scores():
    class Record:
        def __init__(self, factor):
            self.factor = factor

        def score(self, t, x):
            return -self.factor[None] * x

    jax.tree_util.register_pytree_node(
        Record, lambda r: ((r.factor,), None), lambda _, leaves: Record(*leaves)
    )
    one = sample(jax.random.key(0), SDE, Record(np.ones(2, np.float32)).score, (3, 2), steps=5)
    assert_close(one, sample(jax.random.key(0), SDE, minus_x, (3, 2), steps=5), "float32")
    assert sample(
        jax.random.key(0), SDE, Scaled(np.ones(2, np.float32)), (3, 2), steps=5
    ).shape == (3, 2)


@pytest.mark.slow
def test_batches(monkeypatch):
    shown = []
    monkeypatch.setattr(Progress, "show", lambda self, text: shown.append(text))
    x = sample(jax.random.key(0), SDE, minus_x, (7, 2), steps=5, batch_size=3, progress=True)
    assert shown == ["3 of 7", "6 of 7", "7 of 7"]
    assert x.shape == (7, 2)
    assert len(np.unique(np.asarray(x))) == 14
    assert_close(
        jax.jit(lambda key: sample(key, SDE, minus_x, (7, 2), steps=5, batch_size=3))(
            jax.random.key(0)
        ),
        x,
        "float32",
    )
    assert sample(jax.random.key(0), SDE, minus_x, (2, 2), steps=5, batch_size=3).shape == (2, 2)


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


def test_a_row_that_is_lost_is_lost_alone_under_moments():
    score = lambda t, x: jnp.where(x[:, :1] > 2, jnp.nan, -x)
    x = sample(
        jax.random.key(0),
        SDE,
        score,
        (500, 2),
        steps=30,
        throw=False,
        moments=(np.zeros(2), np.eye(2)),
    )
    lost = np.isinf(np.asarray(x)).all(axis=1)
    assert 0 < lost.sum() < 500
    assert np.isfinite(np.asarray(x)[~lost]).all()
    assert np.asarray(x)[~lost].max(axis=0)[1] > 1.5


def test_an_interrupt_keeps_what_is_done(monkeypatch):
    compile_with_score, calls = score_functions.compile_with_score, []

    def compile_interrupted(*arguments):
        draw = compile_with_score(*arguments)

        def interrupted(*arguments):
            calls.append(None)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return draw(*arguments)

        return interrupted

    whole = sample(jax.random.key(0), SDE, minus_x, (10, 2), steps=5, batch_size=3)
    monkeypatch.setattr(score_functions, "compile_with_score", compile_interrupted)
    np.testing.assert_array_equal(
        sample(jax.random.key(0), SDE, minus_x, (10, 2), steps=5, batch_size=3), whole[:6]
    )
    calls[:] = [None, None]
    with pytest.raises(KeyboardInterrupt):
        sample(jax.random.key(0), SDE, minus_x, (10, 2), steps=5, batch_size=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3,)}, "shape must be (n, d), n samples in d dimensions, got (3,)."),
        ({"shape": (3, 0)}, "shape[1] must be a positive integer, got 0."),
        ({"shape": (3.0, 2)}, "shape[0] must be a positive integer, got 3.0."),
        ({"method": "od"}, "method must be one of ['ode', 'sde'], got 'od'. Did you mean 'ode'?"),
        ({"min_time": 0.0}, "min_time must lie between 0 and the horizon 1, got 0.0"),
        ({"min_time": 1.0}, "min_time must lie between 0 and the horizon 1, got 1.0"),
        ({"min_time": float("nan")}, "min_time must lie between"),
        ({"steps": 0}, "steps must be a positive integer, got 0."),
        ({"max_steps": 0}, "max_steps must be a positive integer, got 0."),
        ({"corrector_steps": -1}, "corrector_steps must be a non-negative integer, got -1."),
        ({"corrector_snr": 0.0}, "corrector_snr must be a positive finite number, got 0.0."),
        (
            {"rtol": 1e-12},
            "rtol must lie between 1.2e-06, what float32 can give, and 1, got 1e-12.",
        ),
        ({"atol": -1.0}, "atol must be a positive finite number, got -1.0."),
        (
            {"moments": np.zeros((3, 2))},
            "moments must be a pair, mean and covariance, got 3 of them.",
        ),
        (
            {"moments": (np.zeros(2), -np.eye(2)), "shape": (200, 2)},
            "must have no negative eigenvalue, got -1",
        ),
        (
            {"moments": (np.zeros(3), np.eye(2))},
            "moments must be a mean [2] and a covariance [2, 2], got (3,) and (2, 2).",
        ),
        ({"moments": (np.zeros(2), np.full((2, 2), np.nan))}, "moments must be finite"),
        ({"moments": (np.zeros(2), np.eye(2)), "method": "ode"}, 'moments are for method="sde"'),
        ({"moments": (np.zeros(2), np.eye(2))}, "moments need batches of at least 100 rows, got 3"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0."),
        (
            {"score_fn": lambda t, x: x[:, 0]},
            "score_fn must return the shape of x, (3, 2), got (3,).",
        ),
    ],
)
def test_bad_input(change, message, untyped):
    arguments = {
        "key": jax.random.key(0),
        "sde": SDE,
        "score_fn": minus_x,
        "shape": (3, 2),
    } | change
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**arguments)


def test_progress_needs_concrete_keys():
    with pytest.raises(ValueError, match="progress needs to know when a batch is done"):
        jax.jit(lambda key: sample(key, SDE, minus_x, (3, 2), progress=True))(jax.random.key(0))


@pytest.mark.parametrize(("horizon", "least"), [(1.0, 0.6), (0.3, 0.2)])
def test_the_noise_of_a_step_is_that_of_its_length(horizon, least):
    """Of a single point at zero, whose denoiser is zero: one step from ρ to ρ₁ gains ρ₁ − ρ."""
    sde = vp_sde(horizon=horizon)
    score = lambda t, x: -x / sde.variance(t)
    x = sample(jax.random.key(0), sde, score, (40000, 1), steps=1, min_time=least)
    before, after = (float(jnp.exp(sde.log_snr(t))) for t in (horizon, least))
    variance = (before * (1 + before) + after - before) / (after * (1 + after))
    assert np.var(np.asarray(x)) == pytest.approx(variance, rel=0.03)
