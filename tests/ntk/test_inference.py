"""Kernel regression and Gaussian processes against dense float64 linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tools import assert_close, cast, first, points

import softntk as sn
from softntk import nt
from softntk.networks import two_layer
from softntk.solution import NumericalError


def problem(kind, dtype, n=40, t=7):
    """Kernel, cross kernel and prior variance as arrays and as operators; the matrices in float64; targets."""
    x, tests = points(0, n, 4, dtype), points(1, t, 4, dtype)
    if kind == "infinite width":
        net = two_layer("softmax", width=2, sigma=0.8)
        op = sn.ntk.kernel_operator(net.kernel_fn, x, "nngp", block_size=16)
        arrays = net.kernel_fn(x, None, "nngp"), net.kernel_fn(tests, x, "nngp")
        dense, outputs = arrays, 3
    else:
        net = two_layer("softmax", width=64, out_dim=2, antisymmetric=False)
        params = cast(net.init_fn(jax.random.key(0), (-1, 4))[1], dtype)
        op = sn.ntk.operator(net, params, x, block_size=16)
        arrays = sn.ntk.empirical(net, params, x), sn.ntk.empirical(net, params, tests, x)
        dense, outputs = [k.transpose(0, 2, 1, 3).reshape(k.shape[0] * 2, -1) for k in arrays], 2
    prior = op.at(tests).diagonal().reshape((t, *op.shape[1:]))
    return arrays, (op, op.cross(tests)), [np.asarray(k, float) for k in dense], prior, points(2, n, outputs, dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    first([("infinite width", "float32"), ("empirical", "float64")], ("empirical", "float64")),
    indirect=["dtype"],
)
def test_regression_and_posterior(kind, dtype):
    arrays, operators, (matrix, cross), prior, y = problem(kind, dtype)
    ridge = 0.05
    inverse = np.linalg.inv(matrix + ridge * np.eye(len(matrix)))
    mean = (cross @ inverse @ np.asarray(y, float).reshape(len(matrix), -1)).reshape(7, -1)
    variance = np.asarray(prior, float) - np.diag(cross @ inverse @ cross.T).reshape(prior.shape)
    f0, f0_test = points(3, *y.shape, dtype), points(4, 7, y.shape[1], dtype)
    rtol = 1e-4 if dtype == "float32" else 1e-8
    shifted = (cross @ inverse @ np.asarray(y - f0, float).reshape(len(matrix), -1)).reshape(7, -1) + np.asarray(f0_test)
    for gram, k in (arrays, operators):
        assert_close(sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=k), mean, rtol=rtol)
        ours = sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=k, f0=f0, f0_test=f0_test)
        assert_close(ours, shifted, rtol=rtol)
        posterior = sn.ntk.gp_posterior(gram, y, noise=ridge, cross=k, prior=prior)
        assert_close(posterior.mean, mean, rtol=rtol)
        assert_close(posterior.variance, variance, rtol=rtol)


@pytest.mark.slow
def test_agrees_with_neural_tangents_gp_inference(x64):
    """Theirs adds diag_reg times the mean diagonal; the kernel is theirs in both."""
    net = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))
    x, tests, y = points(0, 40, 4), points(1, 7, 4), points(2, 40, 3)
    gram, cross, prior = net[2](x, None, "nngp"), net[2](tests, x, "nngp"), jnp.diag(net[2](tests, None, "nngp"))
    theirs = nt.predict.gp_inference(net[2](x, None), y, diag_reg=0.1)(
        get="nngp", k_test_train=cross, k_test_test=net[2](tests, None, "nngp")
    )
    noise = 0.1 * float(jnp.mean(jnp.diag(gram)))
    ours = sn.ntk.gp_posterior(gram, y, noise=noise, cross=cross, prior=prior)
    assert_close(ours.mean, theirs.mean, rtol=1e-9)
    assert_close(ours.variance, jnp.diag(theirs.covariance), rtol=1e-9)


def test_a_singular_kernel_is_an_error_outside_jit_and_infinite_inside():
    gram, y = -jnp.eye(3), jnp.ones((3, 1))
    regress = lambda gram: sn.ntk.kernel_regression(gram, y, ridge=0.5, cross=jnp.ones((2, 3)))
    with pytest.raises(NumericalError, match="NOT_DEFINITE.*larger ridge"):
        regress(gram)
    assert np.isposinf(jax.jit(regress)(gram)).all()
    assert np.isfinite(jax.jit(regress)(-gram)).all()


def test_bad_input(untyped):
    gram, y = np.eye(3, dtype=np.float32), np.ones((3, 1), np.float32)
    good = {"gram": gram, "y": y, "cross": gram[:2]}
    for call, message in [
        (lambda: sn.ntk.kernel_regression(**good, ridge=-1.0), "ridge must be a finite number (of )?at least 0, got -1.0"),
        (lambda: sn.ntk.kernel_regression(**good, ridge=np.nan), "ridge must be a finite number"),
        (lambda: sn.ntk.kernel_regression(**{**good, "cross": gram[:, :2]}, ridge=1.0), "cross must have shape"),
        (lambda: sn.ntk.gp_posterior(**good, noise=-1.0, prior=y[:2, 0]), "noise must be a finite number"),
        (lambda: sn.ntk.gp_posterior(**good, noise=1.0, prior=y[:, 0]), r"prior must have shape \(2,\), got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
