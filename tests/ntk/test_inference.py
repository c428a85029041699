"""Kernel regression and Gaussian processes against dense float64 linear algebra."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, points, slow_except

import softntk as sn
from softntk import nt
from softntk.networks import two_layer
from softntk.ntk import _inference
from softntk.solution import NumericalError


def problem(kind, dtype, n=40, t=7):
    """Kernel, cross kernel and prior variance as arrays and as operators; the matrices in float64;
    targets.
    """
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
    return (
        arrays,
        (op, op.cross(tests)),
        [np.asarray(k, float) for k in dense],
        prior,
        points(2, n, outputs, dtype),
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_except(
        [("infinite width", "float32"), ("empirical", "float64")], ("empirical", "float64")
    ),
    indirect=["dtype"],
)
def test_regression_and_posterior(kind, dtype):
    arrays, operators, (matrix, cross), prior, y = problem(kind, dtype)
    ridge = 0.05
    inverse = np.linalg.inv(matrix + ridge * np.eye(len(matrix)))
    mean = (cross @ inverse @ np.asarray(y, float).reshape(len(matrix), -1)).reshape(7, -1)
    variance = np.asarray(prior, float) - np.diag(cross @ inverse @ cross.T).reshape(prior.shape)
    f0, f0_test = points(3, *y.shape, dtype=dtype), points(4, 7, y.shape[1], dtype)
    rtol = 1e-4 if dtype == "float32" else 1e-8
    shifted = (cross @ inverse @ np.asarray(y - f0, float).reshape(len(matrix), -1)).reshape(
        7, -1
    ) + np.asarray(f0_test)
    for gram, k in (arrays, operators):
        assert_close(sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=k), mean, rtol=rtol)
        ours = sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=k, f0=f0, f0_test=f0_test)
        assert_close(ours, shifted, rtol=rtol)
        posterior = sn.ntk.gp_posterior(gram, y, noise=ridge, cross=k, prior=prior)
        assert_close(posterior.mean, mean, rtol=rtol)
        assert_close(posterior.variance, variance, rtol=rtol)


@pytest.mark.parametrize(("given", "taken"), [(None, 1e-6), (0.1, 0.1)])
def test_a_tolerance_that_is_given_is_the_one_that_is_taken(given, taken, monkeypatch):
    class Solved(Exception):
        pass

    def solve(*_, rtol, **__):
        raise Solved(rtol)

    monkeypatch.setattr(_inference, "solve", solve)
    x = points(0, 4, 2, "float32")
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, x)
    with pytest.raises(Solved, match=f"^{taken}$"):
        sn.ntk.kernel_regression(op, x, ridge=1.0, cross=op.cross(x), rtol=given)


@pytest.mark.slow
def test_agrees_with_neural_tangents_gp_inference(x64):
    """Theirs adds diag_reg times the mean diagonal; the kernel is theirs in both."""
    net = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))
    x, tests, y = points(0, 40, 4), points(1, 7, 4), points(2, 40, 3)
    gram, cross, prior = (
        net[2](x, None, "nngp"),
        net[2](tests, x, "nngp"),
        jnp.diag(net[2](tests, None, "nngp")),
    )
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
        (
            lambda: sn.ntk.kernel_regression(**good, ridge=-1.0),
            "ridge must be a finite number (of )?at least 0, got -1.0",
        ),
        (lambda: sn.ntk.kernel_regression(**good, ridge=np.nan), "ridge must be a finite number"),
        (
            lambda: sn.ntk.kernel_regression(**{**good, "cross": gram[:, :2]}, ridge=1.0),
            "cross must have shape",
        ),
        (
            lambda: sn.ntk.gp_posterior(**good, noise=-1.0, prior=y[:2, 0]),
            "noise must be a finite number",
        ),
        (
            lambda: sn.ntk.gp_posterior(**good, noise=1.0, prior=y[:, 0]),
            r"prior must have shape \(2,\), got \(3,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_derivatives_are_those_of_a_dense_solve(dtype):
    """In the points, the targets and the ridge, by a matrix and by an operator, inside jit."""
    net = two_layer("softmax", width=2, sigma=0.8)
    x, tests, y = points(0, 8, 3, dtype), points(1, 2, 3, dtype), points(2, 8, 1, dtype)[:, 0]

    def dense(x, y, ridge):
        matrix = net.kernel_fn(x, None, "nngp") + ridge * jnp.eye(8, dtype=dtype)
        cross = net.kernel_fn(tests, x, "nngp")
        mean = cross @ jnp.linalg.solve(matrix, y)
        variance = 1.5 - jnp.diag(cross @ jnp.linalg.solve(matrix, cross.T))
        return jnp.sum(jnp.sin(mean)) + jnp.sum(mean) + jnp.sum(jnp.cos(variance))

    def ours(x, y, ridge, form):
        if form == "operator":
            op = sn.ntk.kernel_operator(net.kernel_fn, x, "nngp")
            gram, cross = op, op.cross(tests)
        else:
            gram, cross = net.kernel_fn(x, None, "nngp"), net.kernel_fn(tests, x, "nngp")
        mean = sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=cross)
        posterior = sn.ntk.gp_posterior(
            gram, y, noise=ridge, cross=cross, prior=jnp.full(2, 1.5, dtype)
        )
        assert mean.shape == posterior.mean.shape == (2, 1)
        return (
            jnp.sum(jnp.sin(mean)) + jnp.sum(posterior.mean) + jnp.sum(jnp.cos(posterior.variance))
        )

    ridge = jnp.asarray(0.2, dtype)
    desired = jax.jit(jax.grad(dense, (0, 1, 2)))(x, y, ridge)
    for form in ("matrix", "operator"):
        actual = jax.jit(jax.grad(lambda *a, form=form: ours(*a, form=form), (0, 1, 2)))(
            x, y, ridge
        )
        for left, right in zip(actual, desired, strict=True):
            assert_close(left, right, rtol=5e-4 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e25])
def test_units(unit):
    root = np.asarray(points(0, 6, 6, "float32"))
    gram, cross, y = (
        root @ root.T,
        np.asarray(points(1, 2, 6, "float32")),
        np.asarray(points(2, 6, 1, "float32")),
    )
    prior = np.asarray([400.0, 500.0], np.float32)
    one = sn.ntk.gp_posterior(gram, y, noise=0.1, cross=cross, prior=prior)
    c = np.float32(unit)
    other = sn.ntk.gp_posterior(c * gram, y / c, noise=0.1 * unit, cross=c * cross, prior=c * prior)
    assert_close(np.asarray(other.mean, float) * unit, one.mean, rtol=1e-3)
    assert_close(np.asarray(other.variance, float) / unit, one.variance, rtol=1e-3)
    mean = sn.ntk.kernel_regression(c * gram, y / c, ridge=0.1 * unit, cross=c * cross)
    assert_close(np.asarray(mean, float) * unit, one.mean, rtol=1e-3)


def test_no_answer_where_the_residual_says_that_there_is_none():
    """A ridge that is lost in the rounding of the kernel, and targets that the kernel does not
    contain.
    """
    gram, y = (
        jnp.ones((2, 2)) * jnp.asarray([[1.0, 1.0], [1.0, 1.0 + 2e-7]]),
        jnp.array([1.0, -1.0]),
    )
    regress = lambda gram, y: sn.ntk.kernel_regression(gram, y, ridge=1e-9, cross=jnp.ones((1, 2)))
    factor = np.linalg.cholesky(np.asarray(gram, np.float64) + 1e-9 * np.eye(2))
    assert np.isfinite(factor).all()
    with pytest.raises(NumericalError, match="NOT_DEFINITE"):
        regress(jnp.ones((2, 2)), y)
    assert np.isposinf(jax.jit(regress)(jnp.ones((2, 2)), y)).all()
    assert_close(regress(gram, jnp.zeros(2)), [[0.0]])


def test_targets_that_are_large_or_far_from_their_start():
    gram, cross = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([[1.0, 0.0]])
    large = sn.ntk.kernel_regression(
        gram, jnp.array([3e38, 1.0]), ridge=1.0, cross=cross, f0=jnp.array([-3e38, 1.0])
    )
    assert_close(large, [[3e38]], rtol=1e-6)
    overflow = sn.ntk.kernel_regression(gram, jnp.array([3e38, 1.0]), ridge=0.0, cross=4 * cross)
    assert np.asarray(overflow) == np.finfo(np.float32).max


def test_without_promotion_and_beside_float64():
    gram, y = jnp.eye(2), jnp.array([1.0, 2.0])
    with jax.numpy_dtype_promotion("strict"):
        assert_close(
            sn.ntk.kernel_regression(gram, y, ridge=1.0, cross=gram), [[0.5], [1.0]], rtol=1e-6
        )
        sn.ntk.gp_posterior(gram, y, noise=1.0, cross=gram, prior=jnp.ones(2))
        jax.grad(lambda ridge: sn.ntk.kernel_regression(gram, y, ridge=ridge, cross=gram)[0, 0])(
            1.0
        )
    with jax.enable_x64(True):
        out = sn.ntk.kernel_regression(gram, y, ridge=np.float64(1.0), cross=gram)
        assert out.dtype == np.float32
        op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, gram)
        assert sn.ntk.kernel_regression(op, y, ridge=1.0, cross=op.cross(gram)).dtype == np.float32


WRONG = {
    "gram": [None, "K", {}, np.eye(3) * 1j, np.eye(3, dtype=np.float16), np.eye(3, dtype=bool)],
    "y": [
        None,
        "y",
        np.ones(3) * 1j,
        np.ones(3, bool),
        np.array([1e300, 0, 0]),
        np.ones(2, np.float32),
    ],
    "ridge": [None, "1", 1j, True, np.inf, np.ones(3), 1e39],
    "cross": [None, "k", {}, np.eye(3) * 1j, np.ones((1, 2), np.float32)],
    "f0": ["f", {}, np.array([1e300, 0, 0])],
    "progress": ["yes", 1, None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_arguments_are_named(name, value, untyped):
    good = {
        "gram": np.eye(3, dtype=np.float32),
        "y": [1.0, 2.0, 3.0],
        "ridge": 0.1,
        "cross": np.eye(3, dtype=np.float32),
    }
    with pytest.raises(ValueError, match=name):
        sn.ntk.kernel_regression(**{**good, name: value})


@pytest.mark.parametrize(
    "prior",
    [None, "1", [-1.0, 1.0, 1.0], [np.nan, 1.0, 1.0], np.ones(3, int), np.ones(2, np.float32)],
)
def test_wrong_priors_are_named(prior, untyped):
    y: Any = [1.0, 2.0, 3.0]
    gram = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="prior"):
        sn.ntk.gp_posterior(gram, y, noise=0.1, cross=gram, prior=prior)
