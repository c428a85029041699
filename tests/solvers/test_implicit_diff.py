"""Derivatives of minimisers in what the loss and the transform close over: against central
differences.
"""

import itertools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, slow_except
from jax.experimental import sparse

import softntk as sn

minimise = sn.solvers.minimise


# How the minimiser moves: θ → x*(θ), for derivatives against central differences.


def regression_of(theta, kind="dense"):
    """θ: A, [5, 2], b and weights, [5] each."""
    A, b, w = theta[:10].reshape(5, 2), theta[10:15], theta[15:]
    if kind == "sparse":
        A = sparse.BCOO(
            (theta[:10], jnp.stack([jnp.repeat(jnp.arange(5), 2), jnp.tile(jnp.arange(2), 5)], 1)),
            shape=(5, 2),
        )
    return minimise(sn.regression.softmax(A, b, weights=w), jnp.zeros(2), rtol=1e-12).value


def function_of(theta, tx=None):
    return minimise(
        lambda x: jnp.sum((x - theta[:2]) ** 2) + jnp.sum(theta[2] * x**4),
        theta[:2],
        tx,
        rtol=1e-12,
    ).value


def function_by_curvature_of(theta):
    """The transform closes over θ, too."""
    curvature = lambda x: lx.DiagonalLinearOperator(2 + 12 * theta[2] * x**2)
    return function_of(
        theta, optax.chain(sn.solvers.scale_by_approx_newton(curvature), optax.scale(-1.0))
    )


def tree_of(theta):
    loss = lambda tree: (
        (tree["a"] - theta[0]) ** 2
        + (tree["b"][0] - tree["a"] * theta[1]) ** 2
        + 0.1 * tree["a"] ** 4
    )
    found = minimise(loss, {"a": jnp.zeros(()), "b": [jnp.zeros(())]}, rtol=1e-12).value
    return jnp.stack([found["a"], found["b"][0]])


DATA = jnp.asarray(np.random.default_rng(0).uniform(0.2, 1.0, size=20), "float32")
MOVING = {
    "A, b, weights": (regression_of, DATA),
    "sparse": (lambda theta: regression_of(theta, "sparse"), DATA),
    "plain function": (function_of, DATA[:3]),
    "own transform": (function_by_curvature_of, DATA[:3]),
    "pytree": (tree_of, DATA[:2]),
}
JACOBIANS = {
    "reverse": jax.jacrev,
    "forward": jax.jacfwd,
    "reverse, jit": lambda f: jax.jit(jax.jacrev(f)),
    "forward, jit": lambda f: jax.jit(jax.jacfwd(f)),
    "reverse of jit": lambda f: jax.jacrev(jax.jit(f)),
    "vmap": lambda f: lambda theta: jax.vmap(jax.jacrev(f))(jnp.stack([theta, theta + 0.1]))[0],
}
WAYS = list(itertools.product(MOVING, JACOBIANS))


@pytest.mark.parametrize(
    ("case", "way"),
    slow_except(WAYS, ("plain function", "reverse, jit")),
)
def test_derivatives_against_differences(case, way, x64):
    f, theta = MOVING[case][0], MOVING[case][1].astype("float64")
    found, run = JACOBIANS[way](f)(theta), jax.jit(f)
    assert found.shape == (2, len(theta))
    for direction in np.random.default_rng(1).normal(size=(3, len(theta))):
        step = 1e-5 * direction
        wanted = (run(theta + step) - run(theta - step)) / 2e-5
        assert_close(found @ direction, wanted, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", slow_except(["A, b, weights", "plain function"], "plain function"))
def test_second_derivatives_against_differences(case, x64):
    """In the last entry of θ, a weight."""
    f, theta = MOVING[case][0], MOVING[case][1].astype("float64")
    of = lambda w: jnp.sum(f(theta.at[-1].set(w)) * jnp.array([1.0, -2.0]))
    found, slope = jax.jit(jax.hessian(of))(theta[-1]), jax.jit(jax.grad(of))
    assert_close(found, (slope(theta[-1] + 1e-5) - slope(theta[-1] - 1e-5)) / 2e-5, rtol=1e-5)
