"""Checkpoints: the same bits as without them, whatever happens on the way; what is no checkpoint of
this run is refused.
"""

import itertools
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import slow_except

import softntk as sn
from softntk._core import checkpoint as checkpoints
from softntk._core.progress import Progress
from softntk.solution import Result

minimise = sn.solvers.minimise


def regression(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return sn.regression.softmax(
        rng.normal(size=(30, 3)).astype(dtype),
        rng.dirichlet(np.ones(30)).astype(dtype),
        weights=0.1,
    )


def sampled(p):
    return sn.solvers.approx_newton(p.hessian, sketch_size=20, max_distortion=0.1)


TRANSFORMS = {
    "adam": lambda p: optax.adam(0.05),
    "momentum": lambda p: optax.sgd(1.0, 0.9),
    "lbfgs": lambda p: optax.lbfgs(),
    "default": lambda p: None,
    "sampled": sampled,
    "sampled, cg": lambda p: sn.solvers.approx_newton(
        p.hessian, sketch_size=20, cg_steps=3, damping="trust_region"
    ),
}


def numbers(sol):
    return [
        checkpoints._as_numpy(jnp.asarray(leaf))
        for leaf in jax.tree.leaves((sol.value, sol.stats, sol.state, sol.result))
    ]


def assert_same(one, other):
    """To the last bit."""
    for left, right in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(left, right)


CASES = list(itertools.product(TRANSFORMS, ("float32", "float64")))


@pytest.mark.parametrize(
    ("name", "precision"), slow_except(CASES, ("momentum", "float64"), ("default", "float32"))
)
def test_resumed_runs_have_the_same_bits(name, precision, tmp_path):
    """Stopped after one step, after two, and once more when it is over already."""
    with jax.enable_x64(precision == "float64"):
        p, start, file = regression(precision), jnp.full(3, 4.0, precision), tmp_path / "run"
        tx, options = TRANSFORMS[name](p), {"throw": False, "rtol": 1e-5}
        whole = minimise(p, start, tx, max_steps=40, **options)
        assert int(whole.stats["steps"]) > 2
        for most in (1, 2):
            part = minimise(p, start, tx, max_steps=most, checkpoint=file, **options)
            assert (int(part.result), int(part.stats["steps"])) == (Result.MAX_STEPS, most)
        for _ in range(2):
            assert_same(minimise(p, start, tx, max_steps=40, checkpoint=file, **options), whole)


def test_a_finished_run_stays_finished(tmp_path):
    tx, file = optax.sgd(0.1), tmp_path / "run"
    whole = minimise(bowl, jnp.zeros(2), tx, checkpoint=file)
    assert_same(
        minimise(bowl, jnp.zeros(2), tx, max_steps=int(whole.stats["steps"]), checkpoint=file),
        whole,
    )


@pytest.mark.slow
def test_the_path_is_kept_too(x64, tmp_path):
    p, start = regression("float64"), jnp.ones(3)
    whole = minimise(p, start, theory=True)
    minimise(p, start, theory=True, max_steps=2, throw=False, checkpoint=tmp_path / "run")
    found = minimise(p, start, theory=True, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(found.stats["path"], whole.stats["path"])
    np.testing.assert_array_equal(
        found.stats["contraction"].measured, whole.stats["contraction"].measured
    )


def bowl(x):
    return jnp.sum((x - 1) ** 2)


@pytest.mark.slow
def test_a_smaller_tolerance_goes_on(tmp_path):
    tx, file = optax.sgd(0.1), tmp_path / "run"
    minimise(bowl, jnp.zeros(2), tx, rtol=1e-2, checkpoint=file)
    found = minimise(bowl, jnp.zeros(2), tx, rtol=1e-4, checkpoint=file)
    assert found.stats["gradient_norm"][-1] <= 1e-4 * found.stats["gradient_norm"][0]
    assert_same(found, minimise(bowl, jnp.zeros(2), tx, rtol=1e-4))


def test_what_is_no_checkpoint_of_this_run_is_refused_and_left_alone(tmp_path):
    tx, file, x = optax.sgd(0.1), tmp_path / "run", jnp.zeros(2)
    run = lambda f=bowl, x=x, tx=tx, **options: minimise(
        f, x, tx, max_steps=3, throw=False, checkpoint=file, **options
    )
    run()
    good = file.read_bytes()
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    other = (tmp_path / "other.npz").read_bytes()
    for content in (good[: len(good) // 2], good[:-1], b"", b"some notes\n", other):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="(damaged|no checkpoint).* It was left as it is"):
            run()
        assert file.read_bytes() == content
    file.write_bytes(good)
    for foreign in (
        lambda: run(f=lambda x: 2 * bowl(x)),
        # the same loss and gradient at the start
        lambda: run(f=lambda x: bowl(x) + 1e-3 * jnp.sum(x**3)),
        lambda: run(x=jnp.ones(2)),
        lambda: run(x=jnp.zeros(3)),
        lambda: run(tx=optax.sgd(0.2)),
        lambda: run(tx=optax.adam(0.1)),
    ):
        with pytest.raises(
            ValueError, match="belongs to another problem, start, precision or transform"
        ):
            foreign()
        assert file.read_bytes() == good
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match="belongs to another problem, start, precision"),
    ):
        run(x=jnp.zeros(2, "float64"))
    assert file.read_bytes() == good
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        minimise(bowl, x, tx, max_steps=3, throw=False, checkpoint=tmp_path)


@pytest.mark.slow
def test_a_byte_that_changed_is_seen_or_does_not_matter(tmp_path):
    tx, file, rng = optax.sgd(0.1), tmp_path / "run", np.random.default_rng(0)
    run = lambda: minimise(bowl, jnp.zeros(2), tx, max_steps=3, throw=False, checkpoint=file)
    whole, good, refused = run(), file.read_bytes(), 0
    for position in rng.choice(len(good), 60, replace=False):
        content = bytearray(good)
        content[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        try:
            assert_same(run(), whole)
        except ValueError:
            refused += 1
            assert file.read_bytes() == content
    assert refused > 10


@pytest.mark.parametrize("where", ["show", "save"])
def test_ctrl_c_returns_the_best_point_and_can_be_resumed(where, tmp_path, monkeypatch):
    """While the line is written, after the file was; or while the file is written, whose
    predecessor has to survive.
    """
    tx, calls, file = optax.sgd(0.05), [], tmp_path / "run"
    whole = minimise(bowl, jnp.zeros(2), tx)

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    owner, name = (Progress, "show") if where == "show" else (checkpoints.os, "replace")
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        part = minimise(bowl, jnp.zeros(2), tx, checkpoint=file)
    assert Result(int(part.result)) is Result.INTERRUPTED
    assert 0 < int(part.stats["steps"]) < int(whole.stats["steps"])
    assert len(part.stats["loss"]) == int(part.stats["steps"]) + 1
    assert float(bowl(part.value)) == part.stats["loss"].min() < part.stats["loss"][0]
    assert_same(minimise(bowl, jnp.zeros(2), tx, checkpoint=file), whole)


ENDLESS = """
import sys
import jax.numpy as jnp, optax, softntk as sn
sn.solvers.minimise(lambda x: jnp.sum(jnp.cosh(x)), jnp.ones(2000), optax.sgd(1e-7), max_steps=10**9, checkpoint=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.optimised
def test_killed_at_any_moment_a_whole_checkpoint_remains(tmp_path):
    """SIGKILL, ten times, each time the next process goes on from the file."""
    file, moments, steps = tmp_path / "run", random.Random(0), 0
    tx, loss, start = optax.sgd(1e-7), lambda x: jnp.sum(jnp.cosh(x)), jnp.ones(2000)
    for _ in range(10):
        before = file.stat().st_mtime_ns if file.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)])
        deadline = time.monotonic() + 60
        while (
            not (file.exists() and file.stat().st_mtime_ns > before) and time.monotonic() < deadline
        ):
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = minimise(loss, start, tx, max_steps=1, throw=False, checkpoint=file)
        assert int(found.stats["steps"]) > steps
        steps = int(found.stats["steps"])
        assert len(found.stats["loss"]) == steps + 1
        assert np.isfinite(found.stats["loss"]).all()
    whole = minimise(loss, start, tx, max_steps=steps, throw=False)
    assert_same(found, whole)
