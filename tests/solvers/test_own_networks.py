"""One step of natural gradient on networks as users bring them, against dense least squares with a
hand-made Jacobian.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, slow_except
from jax.flatten_util import ravel_pytree
from own_networks import OWN_NETWORKS

import softntk as sn


@pytest.mark.parametrize("name", slow_except(OWN_NETWORKS, "linen_mlp", "equinox_mlp"))
def test_a_step_is_that_of_dense_least_squares(name, dtype):
    net = OWN_NETWORKS[name](dtype)
    outputs = np.asarray(net.outputs(net.weights, net.x), np.float64)
    y = outputs + 0.1 * np.cos(np.arange(outputs.size)).reshape(outputs.shape)
    jacobian = net.jacobian().reshape(outputs.size, -1)
    ridge = 1e-2

    def function(params, x):
        return net.apply_fn(params, x, **net.apply_kwargs)

    def loss(params):
        return (
            jnp.sum((function(params, net.x).reshape(outputs.shape) - jnp.asarray(y, dtype)) ** 2)
            / 2
        )

    rtol = 1e-5 if dtype == "float32" else 1e-12
    transform = sn.solvers.natural_gradient(
        function, net.x, jnp.asarray(y, dtype), ridge=ridge, rtol=rtol, damped=False
    )
    solution = sn.solvers.minimise(loss, net.params, transform, max_steps=1, throw=False)

    gram = jacobian @ jacobian.T
    damped = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    flat, unravel = ravel_pytree(net.weights)
    moved = unravel(
        flat + jnp.asarray(jacobian.T @ np.linalg.solve(damped, (y - outputs).ravel()), flat.dtype)
    )
    desired = np.asarray(net.outputs(moved, net.x)) - outputs
    actual = np.asarray(function(solution.value, net.x)).reshape(outputs.shape) - outputs
    assert_close(actual, desired, rtol=5e-3 if dtype == "float32" else 1e-8)
