"""Predicted training against training, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tools import assert_close, points

import softntk as sn
from softntk.networks import two_layer


def linear_descent(matrix, y, eta, steps, f0):
    """Gradient descent on ½|F − Y|² with a constant kernel, one step after the other."""
    matrix, y, out = np.asarray(matrix, np.float64), np.asarray(y, np.float64).reshape(-1), {}
    f = np.zeros_like(y) if f0 is None else np.asarray(f0, np.float64).reshape(-1)
    for step in range(max(steps) + 1):
        out[step] = f.copy()
        f = f - eta * matrix @ (f - y)
    return np.array([out[s] for s in steps])


@pytest.mark.parametrize("outputs", ["full", "mean"])
@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("relative_rate", [0.01, 1.0, 1.3, 1.999])
def test_predict_gd_is_step_by_step_descent(outputs, with_start, relative_rate, dtype):
    net = two_layer("softmax", width=64, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x, y = points(1, 6, 4, dtype), points(2, 6, 2, dtype)
    f0 = net.apply_fn(params, x) if with_start else None
    gram = sn.ntk.empirical(net, params, x, outputs=outputs)
    matrix = np.asarray(gram.transpose(0, 2, 1, 3)).reshape(12, 12) if outputs == "full" else np.kron(gram, np.eye(2))
    eta, steps = relative_rate / float(np.linalg.eigvalsh(matrix)[-1]), [0, 1, 2, 3, 100, 1000, 17]
    predicted = sn.ntk.predict_gd(gram, y, eta, jnp.array(steps), f0)
    desired = linear_descent(matrix, y, eta, steps, f0).reshape(7, 6, 2)
    assert_close(predicted, desired, rtol=1e-10 if dtype == "float64" else 3e-4)
    assert predicted.dtype == dtype
    assert_close(jax.jit(sn.ntk.predict_gd)(gram, y, eta, jnp.array(steps), f0), predicted, dtype)


def test_predict_gd_keeps_small_rates_over_millions_of_steps():
    """In float32 1 − 1e-7 is a coarse number: its millionth power, formed naively, is off in the second digit."""
    out = sn.ntk.predict_gd(jnp.eye(1), jnp.ones((1, 1)), 3e-7, jnp.array([1_000_000]))
    assert_close(out[0, 0, 0], 1 - np.exp(1e6 * np.log1p(-3e-7)), rtol=1e-6)


def test_exact_annihilation_and_divergence(dtype):
    out = sn.ntk.predict_gd(jnp.eye(2), jnp.ones((2, 1)), 1.0, jnp.array([0, 1, 5]))
    np.testing.assert_array_equal(out[:, :, 0], [[0, 0], [1, 1], [1, 1]])
    assert np.isfinite(sn.ntk.predict_gd(jnp.eye(2), jnp.ones((2, 1)), 5.0, jnp.array([10**6, 10**6 + 1]))).all()


@pytest.mark.optimised
def test_a_wide_softmax_network_trains_as_predicted():
    """Width 2¹⁴: the measured loss stays within 5 % of the prediction until it has fallen to 1 % of its start."""
    net = two_layer("softmax", width=2**14, sigma=0.5)
    x, y = points(0, 16, 8, "float32"), jnp.sign(points(1, 16, 1, "float32"))
    _, params = net.init_fn(jax.random.key(2), (-1, 8))
    gram = sn.ntk.empirical(net, params, x)
    eta = 1.0 / float(sn.ntk.extreme_eigenvalues(gram)[1])
    steps = np.unique(np.round(np.geomspace(1, 4000, 60)).astype(int))
    predicted = 0.5 * np.sum((np.asarray(sn.ntk.predict_gd(gram, y, eta, jnp.asarray(steps))) - np.asarray(y)) ** 2, (1, 2))
    loss = lambda p, x, y: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)
    measured = np.asarray(sn.solvers.train(loss, params, sn.solvers.gradient_descent(eta), 4000, x, y).stats["loss"])
    early = predicted > 0.01 * measured[0]
    assert not early.all()
    assert np.max(np.abs(measured[steps][early] / predicted[early] - 1)) < 0.05


BAD = [
    ({"gram": np.ones((2, 3), np.float32)}, r"gram must have shape \[n, n\] or \[n, n, k, k\], got \(2, 3\)"),
    ({"gram": np.ones((2, 2, 2), np.float32)}, "gram must have shape"),
    ({"gram": np.ones((0, 0), np.float32)}, "gram must have shape"),
    ({"gram": np.eye(2, dtype=int)}, "gram must be a floating-point array"),
    ({"gram": np.array([[1, np.nan], [np.nan, 1]], np.float32)}, "gram must be finite"),
    ({"gram": np.array([[1, 2], [0, 1]], np.float32)}, "gram must be symmetric"),
    ({"y": np.ones(2, np.float32)}, r"y must have shape \[n, k\]"),
    ({"y": np.ones((3, 1), np.float32)}, "y must have shape"),
    ({"y": np.ones((2, 1), int)}, "y must be a floating-point array"),
    ({"y": np.full((2, 1), np.nan, np.float32)}, "y must be finite"),
    ({"f0": np.ones((2, 2), np.float32)}, "f0 must have the shape of y"),
    ({"learning_rate": -1.0}, "learning_rate must be a positive finite number, got -1.0"),
    ({"steps": np.array([-1])}, "steps must not be negative, got -1"),
    ({"steps": np.array([0.5])}, "steps must be a vector of integers"),
    ({"steps": np.array(3)}, "steps must be a vector of integers"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message, untyped):
    good = {"gram": np.eye(2, dtype=np.float32), "y": np.ones((2, 1), np.float32), "learning_rate": 0.1, "steps": np.array([1])}
    with pytest.raises(ValueError, match=message):
        sn.ntk.predict_gd(**{**good, **change})
