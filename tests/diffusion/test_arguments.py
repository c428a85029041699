"""Wrong arguments of all functions of the package: each is named, and what to do is said; what can
be converted is.
"""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from helpers import assert_close
from small_denoisers import KEY, SDE, X, fit, kernel, linearised

from softntk import diffusion
from softntk.diffusion import metrics
from softntk.diffusion._sampling import probability_flow

MIXTURE = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
DATA = diffusion.EmpiricalDistribution(X)
NO_NUMBERS = {
    "None": None,
    "a name": "abc",
    "a dict": {"x": 1.0},
    "complex": X + 1j,
    "bool": X > 0,
    "integers": X.astype(int),
    "objects": X.astype(object),
    "ragged": [[1.0], [1.0, 2.0]],
    "a sparse matrix": scipy.sparse.csr_matrix(X),
    "a function": len,
    "NaN": X * np.nan,
    "beyond float32": np.full((40, 2), 1e39),
    "a row": X[0],
    "no rows": X[:0],
}


def minus_x(t, x):
    return -x


def sample(**options):
    return diffusion.sample(
        **{"key": KEY, "sde": SDE, "score_fn": minus_x, "shape": (3, 2)} | options
    )


def likelihood(**options):
    return diffusion.log_likelihood(**{"sde": SDE, "score_fn": minus_x, "x": X} | options)


def score_error(**options):
    arguments = {
        "key": KEY,
        "sde": SDE,
        "score_fn": minus_x,
        "distribution": MIXTURE,
        "t": jnp.asarray(0.3),
        "n": 5,
    }
    return metrics.score_error(**arguments | options)


# Of each function that takes points, the argument and a call with others in its place.
POINTS = {
    "perturb": ("x0", lambda x: SDE.perturb(KEY, 0.5, x)),
    "mixture means": (
        "means",
        lambda x: diffusion.GaussianMixture(jnp.ones(1), x, jnp.eye(2)[None]),
    ),
    "mixture score": ("x", lambda x: MIXTURE.score(SDE, 0.5, x)),
    "mixture density": ("x", lambda x: MIXTURE.log_density(SDE, 0.5, x)),
    "data": ("x0", diffusion.EmpiricalDistribution),
    "data denoise": ("x", lambda x: DATA.denoise(SDE, 0.5, x)),
    "score": ("x", lambda x: diffusion.score(SDE, minus_x)(0.5, x)),
    "fit": ("x0", lambda x: fit(x0=x)),
    "kernel": ("x0", lambda x: kernel(x0=x)),
    "linearised": ("x0", lambda x: linearised(x0=x)),
    "likelihood": ("x", lambda x: likelihood(x=x)),
    "energy": ("x", lambda x: metrics.energy_distance(x, X)),
    "energy y": ("y", lambda x: metrics.energy_distance(X, x)),
    "mmd": ("y", lambda x: metrics.mmd(X, x)),
    "bandwidth": ("x", lambda x: metrics.median_bandwidth(x, X)),
    "sliced": ("y", lambda x: metrics.sliced_wasserstein(KEY, X, x)),
    "nearest": ("train", lambda x: metrics.nearest_training_point(X, x)),
    "memorisation": ("held_out", lambda x: metrics.memorisation(X, X, x)),
}


@pytest.mark.parametrize("name", POINTS)
def test_points_that_are_none(name, untyped):
    argument, call = POINTS[name]
    for value in NO_NUMBERS.values():
        with pytest.raises(ValueError, match=f"^{argument} must "):
            call(value)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: MIXTURE.score(SDE, 0.5, x),
        lambda x: DATA.denoise(SDE, jnp.full(40, 0.5), x),
        lambda x: SDE.perturb(KEY, [0.5] * 40, x),
        lambda x: metrics.energy_distance(x, X + 1),
        lambda x: metrics.memorisation(x, X, X + 1),
    ],
)
def test_lists_and_tables_are_converted(call, untyped):
    pandas = pytest.importorskip("pandas")
    desired = jax.tree.leaves(call(X))
    for same in (X.tolist(), pandas.DataFrame(X), jnp.asarray(X)):
        for actual, right in zip(jax.tree.leaves(call(same)), desired, strict=True):
            assert_close(actual, right, "float32")


WRONG = [
    # names and flags, also of another type, also unhashable
    ("method must be one of", lambda: sample(method="sd")),
    ("method must be one of", lambda: sample(method=["sde"])),
    ("trace must be one of", lambda: likelihood(trace={})),
    ("family must be one of", lambda: fit(family=["relu"])),
    ("family must be one of", lambda: kernel(family=None)),
    ("family must be one of", lambda: linearised(family=3)),
    ("filter must be one of", lambda: kernel(filter=["flow"])),
    ("stopping must be a positive", lambda: kernel(stopping=["holdout"])),
    ("weighting must be one of", lambda: fit(weighting=("noise",))),
    ("kind must be one of", lambda: SDE.weight(0.5, None)),
    ("throw must be True or False", lambda: sample(throw=1)),
    ("throw must be True or False", lambda: likelihood(throw="no")),
    ("throw must be True or False", lambda: fit(throw=None)),
    ("progress must be True or False", lambda: sample(progress="yes")),
    ("progress must be True or False", lambda: kernel(progress=1)),
    ("progress must be True or False", lambda: fit(progress=0)),
    ("train_readout must be True or False", lambda: fit(train_readout=1)),
    ("train_readout must be True or False", lambda: kernel(train_readout="no")),
    ("train_readout must be True or False", lambda: linearised(train_readout=None)),
    (
        "exclude_self must be True or False",
        lambda: metrics.nearest_training_point(X, X, exclude_self="no"),
    ),
    # keys
    ("key must be a random key", lambda: sample(key=0)),
    ("key must be a random key", lambda: fit(key=None)),
    ("key must be a random key", lambda: kernel(key="abc")),
    ("key must be a random key", lambda: linearised(key=X)),
    ("key must be one key", lambda: score_error(key=jax.random.split(KEY, 2))),
    ("key must be a random key", lambda: metrics.sliced_wasserstein(1, X, X)),
    ("key must be a random key", lambda: SDE.perturb(1.0, 0.5, X)),
    ("key must be a random key", lambda: SDE.sample_times(None, 3)),
    ("key must be a random key", lambda: MIXTURE.sample(0, 3)),
    ("key must be a random key", lambda: DATA.sample(X, 3)),
    ("key must be a random key", lambda: likelihood(trace="hutchinson", key=3)),
    # processes and functions, swapped ones too
    ("key must be a random key", lambda: diffusion.sample(SDE, KEY, minus_x, (3, 2))),
    ("sde must be a noising process", lambda: sample(sde=minus_x, score_fn=SDE)),
    ("sde must be a noising process", lambda: sample(sde=diffusion.VPSDE)),
    ("sde must be a noising process", lambda: likelihood(sde=None)),
    ("sde must be a noising process", lambda: fit(sde=1.0)),
    ("sde must be a noising process", lambda: kernel(sde=diffusion.vp_sde)),
    ("sde must be a noising process", lambda: linearised(sde=diffusion.VPSDE())),
    ("sde must be a noising process", lambda: score_error(sde=MIXTURE)),
    ("sde must be a noising process", lambda: diffusion.score(minus_x, SDE)),
    ("sde must be a noising process", lambda: MIXTURE.score(0.5, SDE, X)),
    ("sde must be a noising process", lambda: DATA.log_density(X, 0.5, X)),
    ("score_fn must be a function", lambda: sample(score_fn=X)),
    ("score_fn must be a function", lambda: likelihood(score_fn=MIXTURE)),
    ("score_fn must be a function", lambda: score_error(score_fn="score")),
    (
        "score_fn must be a score, got a Denoiser. Use diffusion.score",
        lambda: sample(score_fn=kernel(times=[0.3])),
    ),
    ("denoiser must be a function", lambda: diffusion.score(SDE, X)),
    ("denoiser must be an estimate", lambda: diffusion.score(SDE, diffusion.score(SDE, minus_x))),
    ("distribution must have methods sample", lambda: score_error(distribution=X)),
    ("distribution must be a pytree", lambda: score_error(distribution=Unregistered())),
    # what functions return
    (
        "score_fn must return the shape of x, (3, 2), got (3,)",
        lambda: sample(score_fn=lambda t, x: x[:, 0]),
    ),
    ("score_fn must return an array", lambda: sample(score_fn=lambda t, x: None)),
    ("score_fn must return real numbers", lambda: sample(score_fn=lambda t, x: 1j * x)),
    ("score_fn must return real numbers", lambda: likelihood(score_fn=lambda t, x: x > 0)),
    ("score_fn must return an array", lambda: score_error(score_fn=lambda t, x: (x, x))),
    ("denoiser must return an array", lambda: diffusion.score(SDE, lambda t, x: [0.0])(0.5, X)),
    (
        "denoiser must return real numbers",
        lambda: diffusion.score(SDE, lambda t, x: x + 0j)(0.5, X),
    ),
    # numbers
    ("min_time must lie between 0 and the horizon 1", lambda: sample(min_time="1e-3")),
    ("min_time must lie between 0 and the horizon 1", lambda: likelihood(min_time=None)),
    ("min_time must lie between 0 and the horizon 1", lambda: fit(min_time=True)),
    ("min_time must lie between 0 and the horizon 1", lambda: kernel(min_time=[0.1])),
    ("min_time must lie between 0 and the horizon 1", lambda: SDE.sample_times(KEY, 3, 1j)),
    ("min_time must leave some noise", lambda: sample(min_time=5e-324)),
    ("min_time must leave some noise", lambda: likelihood(min_time=1e-44)),
    ("min_time must leave some noise", lambda: SDE.sample_times(KEY, 3, 1e-44)),
    ("min_time must be known before", lambda: jax.jit(lambda t: sample(min_time=t))(0.1)),
    ("rtol must be a", lambda: sample(rtol="small")),
    ("rtol must lie between", lambda: likelihood(rtol=1.0)),
    ("rtol must be a", lambda: likelihood(rtol=np.nan)),
    ("atol must be a positive", lambda: sample(atol=None)),
    ("corrector_snr must be a positive", lambda: sample(corrector_snr=np.inf)),
    ("corrector_steps must be a non-negative integer", lambda: sample(corrector_steps=1.0)),
    ("steps must be a positive integer", lambda: sample(steps=True)),
    ("steps must be a positive integer", lambda: linearised(steps=2.5)),
    ("max_steps must be a positive integer", lambda: likelihood(max_steps="many")),
    ("probes must be a positive integer", lambda: likelihood(probes=None)),
    ("batch_size must be a positive integer", lambda: sample(batch_size=2.0)),
    ("batch_size must be a positive integer", lambda: fit(batch_size="all")),
    ("width must be a positive integer", lambda: fit(width=8.0)),
    ("width must be even", lambda: linearised(width=7)),
    ("draws must be a positive integer", lambda: fit(draws=None)),
    ("draws must be a positive integer", lambda: linearised(draws=-1)),
    ("landmarks must be a positive integer", lambda: kernel(landmarks=8.5)),
    ("validation must be a finite number", lambda: kernel(validation="some", stopping="holdout")),
    ("sigma must be a positive", lambda: fit(sigma="1")),
    ("sigma must be a positive", lambda: kernel(sigma=np.nan)),
    ("sigma must be a positive", lambda: linearised(sigma=True)),
    (
        "sigma must be known before",
        lambda: jax.grad(lambda s: linearised(sigma=s)(0.3, X).sum())(1.0),
    ),
    ("x0 must be fitted outside of jit", lambda: jax.jit(lambda x: linearised()(0.3, x))(X)),
    ("learning_rate must be a positive", lambda: linearised(learning_rate=-1.0)),
    ("ema must be a finite number", lambda: fit(ema=None)),
    ("ema must lie in [0, 1)", lambda: fit(ema=-0.1)),
    ("tx must be an optax transform", lambda: fit(tx="adam")),
    ("checkpoint must be the path", lambda: fit(checkpoint=3)),
    ("levels must be a pair", lambda: fit(levels=None)),
    ("levels must be a pair", lambda: fit(levels=(1.0, 2.0, 3.0))),
    ("the mean in levels must be", lambda: fit(levels=("a", 1.0))),
    ("times must be", lambda: fit(times="eight")),
    ("times must", lambda: kernel(times=[])),
    ("times must be a positive integer or a sequence", lambda: linearised(times=0.5)),
    ("times must be finite", lambda: kernel(times=[0.1, np.nan])),
    ("times must be a positive integer", lambda: kernel(times=True)),
    (
        "quantile must be a finite number",
        lambda: metrics.memorisation(X, X, X + 1, quantile="half"),
    ),
    ("bandwidth must be a positive", lambda: metrics.mmd(X, X, bandwidth="median")),
    ("bandwidth must be a positive", lambda: metrics.mmd(X, X, bandwidth=np.ones(2))),
    ("order must be", lambda: metrics.sliced_wasserstein(KEY, X, X, order=True)),
    ("order must be", lambda: metrics.sliced_wasserstein(KEY, X, X, order=[1])),
    ("n must be a positive integer", lambda: MIXTURE.sample(KEY, 2.0)),
    ("n must be an integer of at least 2", lambda: score_error(n="10")),
    ("spread must be a positive", lambda: SDE.sample_times(KEY, 3, spread=None)),
    ("centre must be a finite number", lambda: SDE.sample_times(KEY, 3, centre="middle")),
    ("spread must be finite in float32", lambda: SDE.sample_times(KEY, 3, centre=0.0, spread=1e39)),
    (
        "spread must be a number of float32",
        lambda: SDE.sample_times(KEY, 3, centre=0.0, spread=1e-50),
    ),
    ("beta_max must be finite in float32", lambda: diffusion.vp_sde(0.1, 1e39)),
    ("beta_min must be a positive", lambda: diffusion.vp_sde("0.1")),
    ("beta_max must be a positive", lambda: diffusion.vp_sde(0.1, None)),
    ("horizon must be a positive", lambda: diffusion.constant_sde(1.0, horizon=[1.0])),
    ("rate must be a positive", lambda: diffusion.constant_sde(np.ones(2))),
    ("final_alpha must be a positive", lambda: diffusion.cosine_sde(final_alpha=np.nan)),
    (
        "offset and final_alpha must leave an angle",
        lambda: diffusion.cosine_sde(final_alpha=1 - 1e-15),
    ),
    ("offset and final_alpha must leave an angle", lambda: diffusion.cosine_sde(1e20)),
    # times
    ("t must lie in (0, 1]", lambda: MIXTURE.denoise(SDE, [0.5] * 39 + [np.nan], X)),
    ("t must leave some noise", lambda: MIXTURE.score(SDE, 1e-37, X)),
    ("t must be", lambda: MIXTURE.score(SDE, "early", X)),
    ("t must be", lambda: diffusion.score(SDE, minus_x)(None, X)),
    ("t must be real numbers", lambda: SDE.alpha(0.5 + 1j)),
    ("t must be", lambda: SDE.rate({})),
    ("log_snr must be", lambda: SDE.time("0")),
    ("t must be a scalar or of shape (40,)", lambda: SDE.perturb(KEY, np.full((40, 1), 0.5), X)),
    ("t must not be empty", lambda: SDE.perturb(KEY, np.zeros(0), X)),
    ("t must be a scalar or of shape [k]", lambda: score_error(t=jnp.full((2, 2), 0.5))),
    # half precision before LAPACK
    ("x0 must be float32 or float64", lambda: kernel(x0=X.astype(np.float16))),
    ("x0 must be float32 or float64", lambda: fit(x0=jnp.asarray(X, jnp.bfloat16))),
    ("x must be float32 or float64", lambda: likelihood(x=X.astype(np.float16))),
    (
        "means must be float32 or float64",
        lambda: diffusion.GaussianMixture(
            jnp.ones(1), jnp.zeros((1, 2), jnp.float16), jnp.eye(2)[None]
        ),
    ),
    # mixtures
    (
        "weights must be positive and sum to one",
        lambda: diffusion.GaussianMixture(
            np.array([1.0, 0.0]), np.zeros((2, 1)), np.ones((2, 1, 1))
        ),
    ),
    (
        "weights must be",
        lambda: diffusion.GaussianMixture("equal", np.zeros((2, 1)), np.ones((2, 1, 1))),
    ),
    ("covariances must be", lambda: diffusion.GaussianMixture(np.ones(1), np.zeros((1, 2)), None)),
    # shapes and moments
    ("shape must be (n, d)", lambda: sample(shape=None)),
    ("shape must be (n, d)", lambda: sample(shape="32")),
    ("shape must be (n, d)", lambda: sample(shape=3)),
    ("shape[1] must be a positive integer", lambda: sample(shape=(3, "2"))),
    ("moments must be a pair", lambda: sample(moments=3.0)),
    ("moments must be", lambda: sample(moments=("mean", np.eye(2)), shape=(200, 2))),
    (
        "the covariance in moments must be symmetric",
        lambda: sample(moments=(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), shape=(200, 2)),
    ),
    # fits run on the host
    ("x0 must be known before", lambda: jax.jit(lambda x: kernel(x0=x)(0.3, X))(X)),
    ("key must be known before", lambda: jax.jit(lambda key: fit(key=key)(0.3, X))(KEY)),
    (
        "sde must be known before",
        lambda: jax.jit(lambda b: linearised(sde=diffusion.vp_sde(0.1, b))(0.3, X))(9.0),
    ),
]


class Unregistered:
    """A distribution that JAX does not know."""

    def sample(self, key, n):
        return jnp.zeros((n, 1))

    def score(self, sde, t, x):
        return -x


@pytest.mark.parametrize(
    ("message", "call"), WRONG, ids=[f"{i}-{message[:30]}" for i, (message, _) in enumerate(WRONG)]
)
def test_wrong_arguments_are_named(message, call, untyped):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_an_abstract_process_says_what_to_take():
    with pytest.raises(NotImplementedError, match=r"Take vp_sde\(\)"):
        diffusion.VPSDE().alpha(0.5)


def test_integers_are_times_and_moments(untyped):
    assert_close(SDE.alpha(1), SDE.alpha(1.0))
    assert_close(SDE.alpha(np.array([1])), SDE.alpha(jnp.ones(1)))
    assert_close(MIXTURE.score(SDE, 1, X), -X, "float32")
    moments = ([0, 0], [[1, 0], [0, 1]])
    assert sample(moments=moments, shape=(100, 2), steps=2).shape == (100, 2)
    assert diffusion.vp_sde(np.float64(0.5), 2) == diffusion.vp_sde(0.5, 2.0)
    assert diffusion.constant_sde(jnp.float32(2)) == diffusion.constant_sde(2.0)


def test_tolerances_come_back_in_order():
    assert probability_flow.check_tolerances(1e-3, 1e-5, jnp.float32) == (1e-3, 1e-5)
    assert probability_flow.check_tolerances(np.float32(0.5), 7, jnp.float32) == (0.5, 7.0)


def test_half_precision_is_compared_in_float32():
    x, y = jnp.asarray(X, jnp.bfloat16), jnp.asarray(X + 1, jnp.bfloat16)
    estimate = metrics.energy_distance(x, y)
    assert estimate.value.dtype == np.float32
    assert_close(
        estimate.value,
        metrics.energy_distance(x.astype("float32"), y.astype("float32")).value,
        "float32",
    )
