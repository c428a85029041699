"""Functions with equal traces share one compiled program, and keep their own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softntk._core import shared_programs
from softntk._core.shared_programs import share_program

X = jnp.arange(3.0)


def call(function, *arguments):
    run, constants = share_program(function, arguments)
    return run(constants, *arguments)


def make_loss(scale):
    return lambda tree: {"sum": jnp.sum(scale * jnp.sin(tree["x"])), "x": tree["x"]}


def test_fresh_functions_of_other_arrays_compile_once(compilations):
    scales = [jnp.arange(3.0) + i for i in range(3)]
    call(make_loss(scales[0]), {"x": X})
    compilations.clear()
    for scale in scales:
        result = call(make_loss(scale), {"x": X})
        np.testing.assert_allclose(result["sum"], np.sum(np.asarray(scale) * np.sin(X)), rtol=1e-6)
    assert compilations == []


def test_another_number_is_another_program():
    results = [float(call(lambda x, c=c: c * x[1], X)) for c in (2.0, 3.0)]
    assert results == [2.0, 3.0]


def with_slope(slope):
    @jax.custom_jvp
    def identity(x):
        return 1.0 * x

    identity.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
    return identity


@pytest.mark.parametrize("slope", [2.0, 5.0])
def test_every_function_has_its_own_derivatives(slope):
    for other in (1.0, slope):  # the program of the first is shared, its rule is not
        run, constants = share_program(with_slope(other), (X,))
        np.testing.assert_array_equal(run(constants, X), X)
    gradient = jax.grad(lambda x: jnp.sum(run(constants, x)))(X)
    np.testing.assert_array_equal(gradient, np.full(3, slope))
    batched = jax.vmap(lambda x: run(constants, x))(jnp.ones((2, 3)))
    assert batched.shape == (2, 3)


def test_old_programs_are_forgotten(monkeypatch):
    monkeypatch.setattr(shared_programs, "_PROGRAMS", {})
    monkeypatch.setattr(shared_programs, "MAX_SHARED_PROGRAMS", 2)
    for number in (1.0, 2.0, 1.0, 3.0):
        assert float(call(lambda x, c=number: c + x[0], X)) == number
    assert len(shared_programs._PROGRAMS) == 2
    keys = list(shared_programs._PROGRAMS)
    call(lambda x: 1.0 + x[0], X)
    assert set(keys) == set(shared_programs._PROGRAMS)


def test_a_program_may_be_called_inside_of_another():
    inner, constants = share_program(make_loss(X), ({"x": X},))
    result = jax.jit(lambda x: inner(constants, {"x": x})["sum"])(X)
    np.testing.assert_allclose(result, np.sum(np.arange(3) * np.sin(np.arange(3))), rtol=1e-6)
