"""The default transform's program without damped steps, and the complete one that takes over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_except

from softntk import regression, solvers
from softntk._core import closures
from softntk.solvers import Step
from softntk.solvers._diagnostics import find_diagnostics
from softntk.solvers._minimise import host_chunks

RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.normal(size=(60, 4)), jnp.float32)
TARGET = jnp.asarray(RNG.normal(size=4), jnp.float32)
CONVEX = regression.softmax(A, jnp.full(60, 1 / 60), weights=1.0)
INDEFINITE = regression.softmax(A, jax.nn.softmax(A @ TARGET))


def kinds_of_steps(problem, x0, count):
    """The kinds of the steps that the default transform takes, one call of ``update`` each."""
    transform = solvers.approx_newton(
        problem.hessian, gauss_newton=problem.gauss_newton, damping="levenberg_marquardt"
    )
    state = transform.init(x0)
    kinds = []
    for _ in range(count):
        value, grad = problem.value_and_gradient(x0)
        updates, state = transform.update(
            grad, state, x0, value=value, grad=grad, value_fn=lambda x: problem(x)
        )
        x0 = x0 + updates
        diagnostics = find_diagnostics(state)
        assert diagnostics is not None
        kinds.append(int(diagnostics.kind))
    return kinds


def test_a_convex_run_compiles_no_damped_step(monkeypatch):
    """And the programs of a run that needs one are two."""
    flags = []
    advance = host_chunks.advance

    def recorded(*arguments, postpones_damping):
        flags.append(postpones_damping)
        return advance(*arguments, postpones_damping=postpones_damping)

    monkeypatch.setattr(host_chunks, "advance", recorded)
    for problem, x0, programs in (
        (CONVEX, jnp.ones(4), {True}),
        (INDEFINITE, 3 - TARGET, {True, False}),
    ):
        flags.clear()
        closures._PROGRAM_CACHE.clear()
        solution = solvers.minimise(problem, x0)
        assert set(flags) == programs
        assert solution.stats["steps"] > 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", slow_except(["convex", "indefinite"], "indefinite"))
def test_the_run_is_that_of_the_complete_program(name):
    """One loop under jit has the complete program: the same steps, but for rounding."""
    rows = jnp.asarray(A, jnp.float64)
    target = jnp.asarray(TARGET, jnp.float64)
    problem = {
        "convex": regression.softmax(rows, jnp.full(60, 1 / 60), weights=1.0),
        "indefinite": regression.softmax(rows, jax.nn.softmax(rows @ target)),
    }[name]
    x0 = 3 - target
    solution = solvers.minimise(problem, x0)
    steps = int(solution.stats["steps"])
    one_loop = jax.jit(lambda x0: solvers.minimise(problem, x0, max_steps=100))(x0)
    assert int(one_loop.stats["steps"]) == steps
    losses = np.asarray(one_loop.stats["loss"])[: steps + 1]
    np.testing.assert_allclose(solution.stats["loss"], losses, rtol=1e-6, atol=1e-20)
    assert solution.state[0].diagnostics.kind != Step.POSTPONED


@pytest.mark.slow
def test_the_indefinite_run_needs_damping_after_some_steps_or_at_once():
    kinds = kinds_of_steps(INDEFINITE, 3 - TARGET, 5)
    assert set(kinds) - {Step.NEWTON}
    assert set(kinds_of_steps(CONVEX, jnp.ones(4), 3)) == {Step.NEWTON}


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Also where the part before the checkpoint already needed damping."""
    x0 = 3 - TARGET
    whole = solvers.minimise(INDEFINITE, x0)
    steps = int(whole.stats["steps"])
    for stop in range(1, steps):
        path = tmp_path / f"after {stop}"
        solvers.minimise(INDEFINITE, x0, max_steps=stop, checkpoint=path, throw=False)
        resumed = solvers.minimise(INDEFINITE, x0, checkpoint=path)
        np.testing.assert_array_equal(resumed.value, whole.value)
        np.testing.assert_array_equal(resumed.stats["loss"], whole.stats["loss"])
