"""Natural gradient against the dense Gauss–Newton step, and what it promises for wide networks;
step sizes of the theory.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, dense_jacobian, points, slow_except

import softntk as sn
from softntk._output_losses import OUTPUT_LOSSES
from softntk.solution import Result
from softntk.solvers import _function_space, step_sizes


def problem(family, dtype, n=9, d=4, k=2, width=64):
    net = sn.networks.two_layer(family, width=width, out_dim=k)
    _, params = net.init_fn(jax.random.key(0), (-1, d))
    params, x = cast(params, dtype), points(1, n, d, dtype)
    y = jnp.asarray(np.sin(3 * np.asarray(x[:, :k])), dtype)
    return net, params, x, y, lambda p: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)


@pytest.mark.parametrize("family", ["softmax", pytest.param("relu", marks=pytest.mark.slow)])
def test_step_is_that_of_the_dense_jacobian(family, x64):
    net, params, x, y, loss = problem(family, "float64")
    ridge = 1e-3
    tx = sn.solvers.natural_gradient(net, x, y, ridge=ridge, rtol=1e-12, damped=False)
    step, state = tx.update(jax.grad(loss)(params), tx.init(params), params)
    J = np.asarray(dense_jacobian(net.apply_fn, params, x)).reshape(y.size, -1)
    r = np.asarray(net.apply_fn(params, x) - y).reshape(-1)
    rho = ridge * np.trace(J @ J.T) / y.size
    # the other side of the identity
    wanted = -np.linalg.solve(J.T @ J + rho * np.eye(J.shape[1]), J.T @ r)
    assert_close(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(step)]), wanted, rtol=1e-8
    )
    assert isinstance(state, sn.solvers.NaturalGradientState)
    assert float(state.distortion) < 1e-10


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
def test_fits_in_a_few_steps(dtype):
    net, params, x, y, loss = problem("softmax", dtype, width=512)
    tx = sn.solvers.natural_gradient(net, x, y)
    sol = sn.solvers.minimise(loss, params, tx, rtol=1e-3, max_steps=10)
    assert sol.stats["loss"][-1] < 1e-7 * sol.stats["loss"][0]
    assert sol.stats["loss"].dtype == dtype
    assert np.all(np.diff(sol.stats["loss"]) < 0)


@pytest.mark.slow
def test_any_apply_fn_and_any_multiple_of_the_loss(x64):
    net, params, x, y, loss = problem("softmax", "float64")
    one, two = (sn.solvers.natural_gradient(f, x, y) for f in (net, net.apply_fn))
    sols = [
        sn.solvers.minimise(f, params, tx, rtol=1e-6)
        for f, tx in ((loss, one), (lambda p: 3 * loss(p) / 7, two))
    ]
    assert_close(net.apply_fn(sols[0].value, x), net.apply_fn(sols[1].value, x), rtol=1e-4)


def test_a_gradient_of_another_loss_is_refused():
    net, params, x, y, _loss = problem("softmax", "float32")
    tx = sn.solvers.natural_gradient(net, x, y)
    other = lambda p: jnp.sum(p.hidden**2)  # falls along no step towards y
    sol = sn.solvers.minimise(other, params, tx, max_steps=3, throw=False)
    assert Result(int(sol.result)) is Result.FOREIGN_LOSS
    assert "approx_newton" in sol.advice
    assert_close(sol.value.hidden, params.hidden)


def test_a_start_that_fits_is_a_success():
    net, params, x, _y, _ = problem("softmax", "float32")
    for targets in (net.apply_fn(params, x), net.apply_fn(params, x) * (1 + 1e-7)):
        loss = lambda p, targets=targets: 0.5 * jnp.sum((net.apply_fn(p, x) - targets) ** 2)
        tx = sn.solvers.natural_gradient(net, x, targets)
        sol = sn.solvers.minimise(loss, params, tx, throw=False)
        assert Result(int(sol.result)) is Result.SUCCESSFUL


def test_images_vectors_of_targets_and_constant_leaves(x64):
    images = points(0, 6, 16).reshape(6, 4, 4, 1)
    params = {"w": points(1, 16, 1), "scale": jnp.array(2), "activation": jnp.tanh}
    apply_fn = lambda p, x: (p["scale"] * p["activation"](x.reshape(len(x), -1) @ p["w"]))[:, 0]
    y = jnp.sin(3 * images[:, 0, 0, 0])
    loss = lambda p: 0.5 * jnp.sum((apply_fn(p, images) - y) ** 2)
    tx = sn.solvers.natural_gradient(apply_fn, images, y, ridge=1e-3, rtol=1e-12, damped=False)
    sol = sn.solvers.minimise(loss, params, tx, max_steps=1, throw=False)
    jacobian = jax.jacobian(lambda w: apply_fn(params | {"w": w}, images))(params["w"])[..., 0]
    J, r = np.asarray(jacobian), np.asarray(apply_fn(params, images) - y)
    rho = 1e-3 * np.trace(J @ J.T) / len(r)
    step = -np.linalg.solve(J.T @ J + rho * np.eye(16), J.T @ r)
    path = params["w"][:, 0] + step
    # minimise returns the better of start and end; the state tells nothing of the step.
    best = path if loss(params | {"w": path[:, None]}) < loss(params) else params["w"][:, 0]
    assert_close(sol.value["w"][:, 0], best, rtol=1e-8)


def test_bad_input(untyped):
    net, params, x, y, loss = problem("softmax", "float32")
    with pytest.raises(ValueError, match=r"y must have shape \[n, k\]"):
        sn.solvers.natural_gradient(net, x, y[:-1])
    with pytest.raises(ValueError, match="y must be finite"):
        sn.solvers.natural_gradient(net, x, y.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="ridge must be a positive"):
        sn.solvers.natural_gradient(net, x, y, ridge=0.0)
    tx = sn.solvers.natural_gradient(net, x, y)
    with pytest.raises(ValueError, match="needs value and value_fn"):
        tx.update(jax.grad(loss)(params), tx.init(params), params)
    with pytest.raises(ValueError, match="update needs params"):
        tx.update(jax.grad(loss)(params), tx.init(params))


@pytest.mark.parametrize("rule", ["fastest", "heavy_ball", "nesterov"])
def test_step_sizes_reach_the_rate_of_the_theory(rule, x64):
    values = np.geomspace(0.1, 10, 7)
    found = getattr(step_sizes, rule)(0.1, 10.0)
    options = (found,) if rule == "fastest" else (*found, rule == "nesterov")
    root = np.sqrt(100.0)
    rate = {
        "fastest": 99 / 101,
        "heavy_ball": (root - 1) / (root + 1),
        "nesterov": np.sqrt(1 - 1 / root),
    }[rule]
    # The worst of the errors: just so for the first, times about the steps for the second, less for
    # the third.
    least, most = {"fastest": (1.0, 1.0), "heavy_ball": (1.0, 1e3), "nesterov": (0.0, 1.0)}[rule]
    x = jnp.ones(7)
    sol = sn.solvers.train(
        lambda x: 0.5 * jnp.sum(values * x**2), x, sn.solvers.gradient_descent(*options), 400
    )
    seen = float(np.max(np.abs(sol.value)))
    assert least * rate**400 * (1 - 1e-9) <= seen <= most * rate**400 * (1 + 1e-9)


def test_step_sizes_of_extreme_spectra():
    assert 0 < step_sizes.fastest(1e308, 1.7e308) < 1e-307
    for rule in (step_sizes.heavy_ball, step_sizes.nesterov):
        rate, momentum = rule(1e-300, 1e300)
        assert 0 < rate < 1e-299
        assert 0.99 < momentum < 1
        sn.solvers.gradient_descent(rate, momentum)


def test_the_step_of_the_paper():
    np.testing.assert_allclose(
        step_sizes.paper(0.5, 3, 2, 10), 0.1 * 0.5 / (10 * 9 * 4) * np.exp(-16.0)
    )
    for bad in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf)):
        with pytest.raises(ValueError, match="smallest must|largest must"):
            step_sizes.fastest(*bad)


def test_a_network_of_two_layer_takes_rows():
    net = sn.networks.two_layer("softmax", width=8)
    with pytest.raises(ValueError, match=r"x must have shape \[n, d\]"):
        sn.solvers.natural_gradient(net, jnp.ones((4, 3, 2)), jnp.ones((4, 1)))


def test_of_a_linear_model_the_prediction_is_right(x64):
    """F(w) = w: with ρ = 9 a tenth of the residual goes, the loss falls by 1 − 0.9², and ρ is
    lowered.
    """
    y = jnp.asarray([[1.0], [-2.0], [0.5]])
    tx = sn.solvers.natural_gradient(lambda w, x: x @ w, jnp.eye(3), y, ridge=9.0)
    w = jnp.zeros((3, 1))

    def loss(w):
        return 0.5 * jnp.sum((w - y) ** 2)

    value, grad = jax.value_and_grad(loss)(w)
    step, state = tx.update(grad, tx.init(w), w, value=value, grad=grad, value_fn=loss)
    assert_close(step, 0.1 * y, rtol=1e-6)
    assert isinstance(state, sn.solvers.NaturalGradientState)
    assert float(state.damping) == pytest.approx(0.9)
    assert int(state.evaluations) == 1


@pytest.mark.parametrize("size", [1e-12, 1e6])
def test_the_tolerance_is_relative_to_the_residual(size, x64):
    """Of a linear model whose outputs have kernels of their own, so that conjugate gradients take
    several steps: the step of dense least squares, whatever is left to fit.
    """
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2, 12, 8)), size * rng.normal(size=(12, 2))

    def net(w, x):
        return jnp.stack([x @ w[0], (x * jnp.arange(1.0, 9)[None]) @ w[1]], axis=1)

    tx = sn.solvers.natural_gradient(
        net, jnp.asarray(X[0]), jnp.asarray(y), ridge=1e-2, rtol=1e-9, damped=False
    )
    w = jnp.zeros((2, 8))
    start = tx.init(w)
    assert isinstance(start, sn.solvers.NaturalGradientState)
    assert not start.fits
    blocks = (X[0], X[0] * np.arange(1.0, 9))
    grad = -np.stack([J.T @ y[:, i] for i, J in enumerate(blocks)])
    step, state = tx.update(jnp.asarray(grad), tx.init(w), w)
    rho = 1e-2 * np.mean([np.sum(J**2, axis=1).mean() for J in blocks])
    wanted = [
        np.linalg.solve(J.T @ J + rho * np.eye(8), J.T @ y[:, i]) for i, J in enumerate(blocks)
    ]
    assert_close(step, wanted, rtol=1e-6)
    assert isinstance(state, sn.solvers.NaturalGradientState)
    assert float(state.distortion) < 1e-8


def test_the_model_of_a_step_is_that_of_the_dense_jacobian(x64):
    """⟨∇L, s⟩ and −⟨∇L, s⟩ − ½‖Js‖², with a damping as large as the kernel."""
    J, g = np.random.default_rng(0).normal(size=(6, 4)), np.arange(1.0, 7.0)
    K = (J @ J.T).reshape(3, 2, 3, 2)
    kernel: Any = SimpleNamespace(mv=lambda v: jnp.einsum("ikjl,jl->ik", K, v))
    outputs = jnp.asarray(g.reshape(3, 2))
    mean_kernel = np.einsum("ikjk->ij", K) / 2
    system = _function_space.FunctionSpaceSystem(
        kernel=kernel,
        mean_kernel=jnp.asarray(mean_kernel),
        kernel_scale=jnp.asarray(np.trace(mean_kernel) / 3),
        curvature=OUTPUT_LOSSES["squared"].curvature(outputs, 0 * outputs),
        decay=0.0,
        decayed_params=None,
        pull_back=lambda v: (J.T @ v.reshape(-1),),
        decayed_outputs=None,
    )
    found = _function_space.solve_dual(system, jnp.ones(()), 1e-12, 50)
    shift = np.trace(K.reshape(6, 6)) / 6
    step = -np.linalg.solve(J.T @ J + shift * np.eye(4), J.T @ g)
    slope = step @ J.T @ g
    assert_close(found.step, step)
    assert_close(found.slope, slope)
    assert_close(found.predicted_decrease, -slope - 0.5 * np.sum((J @ step) ** 2))
    # Before any product all of the right side is left.
    assert_close(_function_space.solve_dual(system, jnp.ones(()), 1e-12, 0).solve_error, 1.0)
