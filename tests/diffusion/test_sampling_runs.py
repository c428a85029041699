"""Runs of sampling: batched, interrupted, mapped, differentiated, compiled once; scores that fail and
wrong arguments are named.
"""

import functools
import itertools
import re
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, ring, slow_except

from softntk._core.progress import Progress
from softntk.diffusion import sample, vp_sde
from softntk.diffusion._sampling import score_functions
from softntk.solution import NumericalError

SDE = vp_sde()


def minus_x(t, x):
    return -x


def wide(t, x):
    """The score of N(0, 9 I)."""
    return -x / (9 * SDE.alpha(t) ** 2 + SDE.variance(t))


def nan_beyond_one(t, x):
    return jnp.where(x[:, :1] > 1, jnp.nan, -x)


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
    traced: Any = chex.assert_max_traces(minus_x, 1)
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
    make: Any = Scaled
    scaled = make(np.ones(2, np.float32))
    assert sample(jax.random.key(0), SDE, scaled, (3, 2), steps=5).shape == (3, 2)


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
