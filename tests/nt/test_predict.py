"""Predicted training and inference of neural_tangents through softntk.nt: against SciPy and dense
linear algebra.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close, points

from softntk import nt

stax = nt.stax
pytestmark = pytest.mark.usefixtures("their_rank_promotion")


@pytest.fixture
def problem(x64):
    kernel_fn = stax.serial(stax.Dense(1, 1.2, 0.1), stax.Erf(), stax.Dense(1, 1.2, 0.1))[2]
    x, x_test = points(0, 6, 4), points(1, 3, 4)
    return kernel_fn, x, x_test, points(2, 6, 2)


def test_gradient_descent_mse(problem):
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predict_fn = nt.predict.gradient_descent_mse(gram, y, learning_rate=3.0)
    for t in (0.0, 2.0, 50.0):
        weights = np.linalg.solve(
            gram, (np.eye(6) - scipy.linalg.expm(-np.asarray(gram) * 3 * t / 12)) @ np.asarray(y)
        )
        for call in (predict_fn, jax.jit(predict_fn)):
            train, test = call(t, 0.0, 0.0, cross)
            np.testing.assert_allclose(train, np.asarray(gram) @ weights, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(test, np.asarray(cross) @ weights, rtol=1e-8, atol=1e-12)
    _, test = predict_fn(None, 0.0, 0.0, cross)
    assert_close(test, np.asarray(cross) @ np.linalg.solve(gram, y), rtol=1e-9)


@pytest.mark.parametrize("t", [None, 5.0])
def test_gradient_descent_mse_with_a_traced_kernel(problem, t):
    """The factorisation is taken out of jit and vmap when it can be, and must not be when the
    kernel itself is traced.
    """
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predict = lambda k, c: nt.predict.gradient_descent_mse(k, y)(t, 0.0, 0.0, c)[1]
    desired = predict(gram, cross)
    assert_close(jax.jit(predict)(gram, cross), desired)
    scales = jnp.array([1.0, 2.0])
    assert_close(jax.vmap(lambda s: predict(gram, s * cross))(scales)[1], 2 * desired)
    assert_close(jax.vmap(lambda s: predict(s * gram, s * cross))(scales)[0], desired)
    outside = nt.predict.gradient_descent_mse(gram, y)
    inside = jax.jit(lambda c: outside(t, 0.0, 0.0, c)[1])
    assert_close(inside(cross), desired)
    # nothing leaked from the trace into the cache
    assert_close(outside(t, 0.0, 0.0, cross)[1], desired)


@pytest.mark.parametrize("t", [None, 5.0])
def test_traced_regularisation(problem, t):
    """A regularisation that is differentiated keeps the factorisation inside of the trace, though
    the kernel is known.
    """
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predictions = [
        lambda reg: nt.predict.gradient_descent_mse(gram, y, diag_reg=reg)(t, 0.0, 0.0, cross)[1]
    ]
    if t is None:
        predictions.append(lambda reg: nt.predict.gp_inference(gram, y, diag_reg=reg)("ntk", cross))
    for predict in predictions:
        regs = np.array([0.1 - 1e-5, 0.1 + 1e-5])
        below, above = predict(regs[0]), predict(regs[1])
        for actual, desired in zip(
            jax.vmap(predict)(jnp.asarray(regs)), (below, above), strict=True
        ):
            assert_close(actual, desired)
        assert_close(jax.jit(jax.jacfwd(predict))(0.1), (above - below) / 2e-5, rtol=1e-6)


def test_gradient_descent_ode(problem):
    kernel_fn, x, _, y = problem
    gram = kernel_fn(x, None, "ntk")
    predict_fn = nt.predict.gradient_descent(lambda f, y: 0.5 * jnp.mean((f - y) ** 2), gram, y)
    out = predict_fn(jnp.array([1.0, 10.0]), 0.0)
    for i, t in enumerate((1.0, 10.0)):
        assert_close(
            out[i],
            (np.eye(6) - scipy.linalg.expm(-np.asarray(gram) * t / 12)) @ np.asarray(y),
            rtol=1e-5,
        )


def test_gp_inference_and_ensembles(problem):
    kernel_fn, x, x_test, y = problem
    k = {
        (a, b): kernel_fn(p, q, ("nngp", "ntk"))
        for (a, p), (b, q) in itertools.product([("d", x), ("t", x_test)], repeat=2)
    }
    reg = 1e-3
    nngp, ntk = (np.asarray(getattr(k["d", "d"], g)) for g in ("nngp", "ntk"))
    nngp_reg, ntk_reg = (m + reg * np.trace(m) / 6 * np.eye(6) for m in (nngp, ntk))
    cross, cross_nngp = np.asarray(k["t", "d"].ntk), np.asarray(k["t", "d"].nngp)
    to_data = cross @ np.linalg.inv(ntk_reg)
    mean = to_data @ np.asarray(y)
    covariance = (
        np.asarray(k["t", "t"].nngp)
        + to_data @ nngp @ to_data.T
        - to_data @ cross_nngp.T
        - cross_nngp @ to_data.T
    )
    posterior = np.asarray(k["t", "t"].nngp) - cross_nngp @ np.linalg.solve(nngp_reg, cross_nngp.T)
    direct = nt.predict.gp_inference(k["d", "d"], y, diag_reg=reg)(
        ("nngp", "ntk"), k["t", "d"], k["t", "t"]
    )
    ensemble = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=reg)(
        x_test=x_test, compute_cov=True
    )
    for out in (direct, ensemble):
        assert_close(out.ntk.mean, mean, rtol=1e-8)
        assert_close(out.ntk.covariance, covariance, rtol=1e-8)
        assert_close(out.nngp.covariance, posterior, rtol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_max_learning_rate(problem, momentum):
    kernel_fn, x, _, _ = problem
    gram = kernel_fn(x, None, "ntk")
    desired = 2 * (1 + momentum) * 12 / np.linalg.eigvalsh(gram)[-1]
    assert_close(nt.predict.max_learning_rate(gram, 12, momentum), desired, rtol=1e-9)
    assert_close(
        nt.predict.max_learning_rate(gram[..., None, None] * np.eye(2), None, momentum),
        desired,
        rtol=1e-9,
    )
