"""What users do with results: read, print, keep, and ask for advice; also of many at once."""

import builtins
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softntk as sn
from softntk.solution import NumericalError, Result, Solution

minimise = sn.solvers.minimise
SGD = optax.sgd(0.1)


def bowl(x):
    return jnp.sum((x - 1) ** 2)


def of(code, **stats):
    return Solution(value=jnp.zeros(2), result=jnp.int32(code), stats=stats, state=None)


def test_a_solution_survives_pickling():
    sol = minimise(bowl, jnp.zeros(2), SGD)
    again = pickle.loads(pickle.dumps(sol))
    assert again.advice == sol.advice
    assert int(again.result) == Result.SUCCESSFUL
    assert again.check() is again
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(sol), strict=True):
        np.testing.assert_array_equal(left, right)


def test_many_solutions_count_their_results(untyped):
    many = Solution(value=jnp.zeros((3, 2)), result=jnp.array([0, 3, 3]), stats={}, state=None)
    assert many.advice.startswith("1 of 3 SUCCESSFUL: The routine did what it was asked for.")
    assert "2 of 3 MAX_STEPS: The steps ran out" in many.advice
    with pytest.raises(NumericalError, match="2 of 3 MAX_STEPS"):
        many.check()
    fine = Solution(value=jnp.zeros((2, 2)), result=jnp.zeros(2, int), stats={}, state=None)
    assert fine.check() is fine


def test_advice_under_jit_says_where_to_look():
    def advise(x):
        return len(minimise(bowl, x, SGD).advice)

    with pytest.raises(ValueError, match="advice and check.* need a result that is known"):
        jax.jit(advise)(jnp.zeros(2))


def test_advice_names_the_routine():
    of_minimise, of_solve = of(Result.MAX_STEPS, gradient_norm=0), of(Result.MAX_STEPS, residual=0)
    assert "minimise" in of_minimise.advice
    assert "rank" not in of_minimise.advice
    assert "ntk.solve" in of_solve.advice
    assert "minimise" not in of_solve.advice
    assert "minimise" not in of(Result.MAX_STEPS).advice


def test_a_solution_is_printed_in_one_line():
    sol = minimise(bowl, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}["a"], SGD)
    text = repr(sol)
    assert text.startswith("Solution(result=SUCCESSFUL, value=float32[2, 3], steps=")
    assert len(text) < 200
    assert "\n" not in text


def test_progress_without_rich_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("rich"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install rich"):
        minimise(bowl, jnp.zeros(2), SGD, progress=True)
