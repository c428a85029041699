"""Functions of users whose compiled parts close over data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from softntk import solvers
from softntk._core.visible_constants import trace_function, with_visible_constants

W = jnp.ones(3)


def data(seed):
    X = np.random.default_rng(seed).normal(size=(20, 3))
    return jnp.asarray(X, jnp.float32), jnp.asarray(X @ np.array([1.0, -2.0, 3.0]), jnp.float32)


def jitted(X, y):
    return jax.jit(lambda w: jnp.mean((X @ w - y) ** 2))


def nested(X, y):
    inner = jax.jit(lambda w: X @ w)
    return lambda w: jnp.mean((jax.jit(lambda w: inner(2 * w))(w) / 2 - y) ** 2)


def with_own_derivative(X, y):
    @jax.custom_jvp
    def loss(w):
        return jnp.mean((jax.jit(lambda w: X @ w)(w) - y) ** 2)

    loss.defjvp(lambda primals, tangents: (loss(*primals), 7 * jnp.sum(tangents[0])))
    return lambda w: loss(w) + jitted(X, y)(w)


LOSSES = {"jitted": jitted, "nested": nested, "own derivative": with_own_derivative}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_derivatives_stay(name):
    loss = LOSSES[name](*data(0))
    visible = with_visible_constants(loss, W)
    assert visible is not loss
    for weights in (W, jnp.arange(3.0)):
        np.testing.assert_allclose(visible(weights), loss(weights), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(visible)(weights), jax.grad(loss)(weights), rtol=1e-5)


@pytest.mark.parametrize("name", ["jitted", "nested"])
def test_constants_belong_to_the_program_around(name):
    loss = LOSSES[name](*data(0))
    sizes = {constant.size for constant in jax.make_jaxpr(loss)(W).consts}
    visible = with_visible_constants(loss, W)
    visible_sizes = {constant.size for constant in jax.make_jaxpr(visible)(W).consts}
    assert 60 not in sizes
    assert 60 in visible_sizes


def test_functions_that_hide_nothing_are_returned():
    for loss in (lambda w: jnp.sum(w**2), lambda w: jnp.sum(jax.nn.relu(w) * W)):
        assert with_visible_constants(loss, W) is loss


def test_a_traced_function_is_a_pytree_of_its_constants():
    X, y = data(0)
    traced = trace_function(jitted(X, y), jax.ShapeDtypeStruct((3,), jnp.float32))
    doubled = jax.tree.map(lambda leaf: leaf, traced)
    np.testing.assert_allclose(doubled(W), jitted(X, y)(W), rtol=1e-6)


@pytest.mark.parametrize("name", ["jitted", "nested"])
@pytest.mark.parametrize("run", ["minimise", "train"])
def test_other_data_compile_nothing_and_give_their_own_result(compilations, name, run):
    """The minimum is that of the loss's own data: the solution of the normal equations."""
    for seed in (1, 2):
        X, y = data(seed)
        y = y + jnp.sin(jnp.arange(20.0) * seed)
        compilations.clear()
        if run == "minimise":
            weights = solvers.minimise(LOSSES[name](X, y), W).value
        else:
            weights = solvers.train(LOSSES[name](X, y), W, optax.sgd(0.2), 400).value
        wanted = np.linalg.lstsq(np.asarray(X, np.float64), np.asarray(y, np.float64))[0]
        np.testing.assert_allclose(weights, wanted, rtol=2e-3, atol=1e-3)
    assert compilations == []


@pytest.mark.parametrize("run", ["minimise", "train"])
def test_derivatives_by_traced_data_stay(run):
    """Of what a compiled loss closes over: as of the solution of the normal equations."""
    X, y = data(3)

    def weights(scale):
        loss = jitted(X, scale * y)
        if run == "minimise":
            return solvers.minimise(loss, W, rtol=1e-5).value
        return solvers.train(loss, jnp.zeros(3), optax.sgd(0.2), 400).value

    wanted = np.linalg.lstsq(np.asarray(X, np.float64), np.asarray(y, np.float64))[0]
    np.testing.assert_allclose(jax.jacobian(weights)(1.0), wanted, rtol=2e-3, atol=1e-3)
