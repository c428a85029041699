"""Gradient descent as an optax transform: the contract every transform has to keep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import softntk as sn
from softntk.solvers._diagnostics import find_diagnostics


def quadratic(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_steps_are_those_of_the_textbook(momentum, dtype):
    tx = sn.solvers.gradient_descent(0.1, momentum)
    x: Any = jnp.array([1.0, -2.0])
    state, velocity, expected = tx.init(x), np.zeros(2), np.array([1.0, -2.0])
    for _ in range(5):
        value, grad = jax.value_and_grad(quadratic)(x)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=quadratic)
        x = optax.apply_updates(x, updates)
        velocity = np.array([1.0, 3.0]) * expected + (momentum or 0) * velocity
        expected = expected - 0.1 * velocity
    np.testing.assert_allclose(x, expected, rtol=1e-5 if dtype == "float32" else 1e-13)


def test_takes_a_schedule_and_chains_with_a_line_search():
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    sol = sn.solvers.train(quadratic, jnp.ones(2), sn.solvers.gradient_descent(schedule), 2)
    np.testing.assert_allclose(sol.value, [0.5 * 0.75, -0.5 * 0.25])
    tx = optax.chain(
        sn.solvers.gradient_descent(1.0),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=20),
    )
    assert sn.solvers.train(quadratic, jnp.ones(2), tx, 50).stats["loss"][-1] < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a positive finite number, got 0.0"),
        ({"learning_rate": 0.1, "momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.1, "nesterov": True}, "nesterov=True needs a momentum"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        sn.solvers.gradient_descent(**options)


def test_diagnostics_are_found_by_their_type():
    """In chained and injected states, the first one; first-order methods have none."""
    x = jnp.ones(2)
    newton = sn.solvers.approx_newton(jax.hessian(quadratic)(x), damping="levenberg_marquardt")
    inject = optax.inject_hyperparams(lambda scale: optax.chain(newton, optax.scale(scale)))
    for tx in (newton, optax.chain(optax.clip(1.0), newton), inject(scale=1.0)):
        found = find_diagnostics(tx.init(x))
        assert isinstance(found, sn.solvers.StepDiagnostics)
        assert int(found.kind) == sn.solvers.Step.NONE
    assert find_diagnostics(optax.adam(0.1).init(x)) is None


def test_fields_of_diagnostics_are_attributes_of_the_state():
    x = jnp.ones((1, 2))
    net = lambda params, x: x @ params
    for tx, params in (
        (sn.solvers.scale_by_approx_newton(jnp.eye(2)), x[0]),
        (sn.solvers.natural_gradient(net, x, jnp.ones((1, 1))), x.T),
    ):
        state = tx.init(params)
        assert isinstance(state, sn.solvers.NewtonState | sn.solvers.NaturalGradientState)
        assert state.kind is state.diagnostics.kind
        assert state.result is state.diagnostics.result
        assert state.damping is state.diagnostics.damping
        assert state.negative_curvature is state.diagnostics.negative_curvature
        assert state.distortion is state.diagnostics.model_error
        assert "solvers.Step" in str(type(state).kind.__doc__)
