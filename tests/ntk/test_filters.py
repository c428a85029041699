"""Derivatives of predicted training, where eigenvectors have none: against loops, matrix
exponentials and mpmath.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import assert_close, points
from jax.scipy.linalg import expm

import softntk as sn

STEPS = [0, 1, 5, 17]


def loop(kernel, y, rate, cross):
    """Training and test outputs, and the sum of η(Y − F), at each number of steps, one step after
    the other.
    """
    f = jnp.zeros_like(y)
    weights = jnp.zeros_like(y)
    train = []
    test = []
    added = []
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            train.append(f)
            test.append(cross @ weights)
            added.append(weights)
        weights = weights + rate * (y - f)
        f = kernel @ weights
    return jnp.stack(train), jnp.stack(test), jnp.stack(added)


def predicted(kernel, y, rate, cross):
    steps = np.array(STEPS)
    return (
        sn.ntk.predict_gd(kernel, y, rate, steps),
        sn.ntk.predict_gd(kernel, y, rate, steps, cross=cross),
        sn.ntk.gd_coefficients(kernel, y, rate, steps),
    )


def symmetric(matrix):
    return 0.5 * (matrix + matrix.T)


def kernel_of(eigenvalues):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray(symmetric(basis @ np.diag(eigenvalues) @ basis.T))


KERNELS = {
    "equal eigenvalues": [1.0, 1.0, 1.0, 2.5],
    "nearly equal, and zero": [1.0, 1.0 + 1e-9, 0.0, 1e-12],
    "negative ones": [2.0, -0.3, -0.3, 0.5],
}


@pytest.mark.parametrize("kind", KERNELS)
def test_derivatives_of_descent_are_those_of_a_loop(kind, x64):
    kernel = kernel_of(KERNELS[kind])
    y, cross = points(1, 4, 2), points(2, 3, 4)
    weights = [points(3 + i, 4 * rows, 2).reshape(4, rows, 2) for i, rows in enumerate((4, 3, 4))]
    direction = symmetric(points(9, 4, 4))

    def total(outputs, kernel, y, rate, cross):
        return sum(
            jnp.sum(w * out)
            for w, out in zip(weights, outputs(kernel, y, rate, cross), strict=True)
        )

    def values_and_tangents(outputs, kernel):
        value, tangent = jax.jvp(lambda k: outputs(k, y, 0.9, cross), (kernel,), (direction,))
        return *value, *tangent

    # 0.9 · 2.5 > 2: the largest of the first kernel diverges.
    arguments = (kernel, y, jnp.asarray(0.9), cross)
    ours, theirs = (
        jax.jit(jax.grad(lambda *a, f=f: total(f, *a), (0, 1, 2, 3)))(*arguments)
        for f in (predicted, loop)
    )
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(one, symmetric(other) if i == 0 else other, rtol=1e-9)
    for one, other in zip(
        *(jax.jit(lambda k, f=f: values_and_tangents(f, k))(kernel) for f in (predicted, loop)),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-9)


@pytest.mark.parametrize("kind", KERNELS)
def test_derivatives_of_flow_are_those_of_matrix_exponentials(kind, x64):
    kernel = kernel_of(KERNELS[kind])
    y, cross, times = points(1, 4, 1), points(2, 3, 4), jnp.array([0.1, 1.0, 7.0])
    train_weights, test_weights = (
        points(3, 12, 1).reshape(3, 4, 1),
        points(4, 9, 1).reshape(3, 3, 1),
    )

    def exact(kernel, times):
        whole = jnp.block([[-kernel, jnp.zeros((4, 3))], [-cross, jnp.zeros((3, 3))]])
        moved = jnp.stack([expm(t * whole) for t in times]) @ jnp.concatenate(
            [-y, jnp.zeros((3, 1))]
        )
        return y[None] + moved[:, :4], moved[:, 4:]

    def ours(kernel, times):
        return sn.ntk.predict_flow(kernel, y, times), sn.ntk.predict_flow(
            kernel, y, times, cross=cross
        )

    def total(outputs, kernel, times):
        train, test = outputs(kernel, times)
        return jnp.sum(train_weights * train) + jnp.sum(test_weights * test)

    one, other = (
        jax.jit(jax.grad(lambda *a, f=f: total(f, *a), (0, 1)))(kernel, times)
        for f in (ours, exact)
    )
    assert_close(one[0], symmetric(other[0]), rtol=1e-9)
    assert_close(one[1], other[1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["orthogonal points", "a repeated point"])
def test_derivatives_in_the_points(kind):
    """What kernel inducing points, distillation and hyperparameters of kernels ask for, in float32."""
    x = jax.random.normal(jax.random.key(0), (4, 3)) / 2
    x = jnp.eye(4) if kind == "orthogonal points" else jnp.concatenate([x, x[:1]])
    y = jnp.arange(1.0, len(x) + 1)[:, None]
    net = sn.networks.two_layer("softmax", width=2)

    @jax.jit
    def gradients(x):
        kernel, chain = jax.vjp(lambda z: net.kernel_fn(z, None, "ntk"), x)

        def by_loop(kernel):
            f = jnp.zeros_like(y)
            for _ in range(5):
                f = f - 1e-3 * kernel @ (f - y)
            return jnp.sum(f**2)

        by_descent = lambda kernel: jnp.sum(sn.ntk.predict_gd(kernel, y, 1e-3, [5]) ** 2)
        by_flow = lambda kernel: jnp.sum(sn.ntk.predict_flow(kernel, y, jnp.array([5e-3])) ** 2)
        return [chain(jax.grad(f)(kernel))[0] for f in (by_loop, by_descent, by_flow)]

    desired, descent, flow = gradients(x)
    assert_close(descent, desired, rtol=1e-4)
    assert_close(flow, desired, rtol=0.1)  # five small steps


def exact_difference(function, one, other):
    """(f(λ) − f(μ))/(λ − μ) of doubles, in 60 digits."""
    with mpmath.workdps(60):
        one, other = mpmath.mpf(float(one)), mpmath.mpf(float(other))
        return float(
            (function(one) - function(other)) / (one - other)
            if one != other
            else mpmath.diff(function, one)
        )


def sums(lam, count):
    """What is added up by descent with η = 1, by flow (count None) until t = 3."""
    if count is None:
        return -mpmath.expm1(-3 * lam) / lam if lam else mpmath.mpf(3)
    return (1 - (1 - lam) ** count) / lam if lam else mpmath.mpf(count)


@pytest.mark.parametrize("count", [None, 1, 2, 7, 1000])
def test_divided_differences_lose_no_digits(count, dtype):
    """The derivative of c along the off-diagonal of diag(λ, μ) is c[λ, μ]."""
    small = [0.0, 1e-7, 1e-3, 3e-3] if count == 1000 else [0.0, 1e-6, 1e-3, 0.1, 0.16]
    levels = np.array([*small, 0.7, 0.7 + 1e-6, 1.0, 1.3, 1.9], dtype)
    pairs = jnp.asarray([(a, b) for a in levels for b in levels if a < b], dtype)
    off = jnp.asarray([[0.0, 1.0], [1.0, 0.0]], dtype)
    y = jnp.asarray([[0.0], [1.0]], dtype)

    def difference(pair):
        def image(kernel):
            if count is None:
                cross = jnp.eye(2, dtype=dtype)
                return sn.ntk.predict_flow(kernel, y, jnp.full(1, 3, dtype), cross=cross)[0, 0, 0]
            return sn.ntk.gd_coefficients(kernel, y, 1.0, np.array([count]))[0, 0, 0]

        return jax.jvp(image, (jnp.diag(pair),), (off,))[1]

    actual = jax.jit(jax.vmap(difference))(pairs)
    desired = np.array(
        [exact_difference(lambda lam: sums(lam, count), *pair) for pair in np.asarray(pairs)]
    )
    # After one step c is the same for every eigenvalue.
    size = 1e-6 * np.max(np.abs(desired)) or 1.0
    error = np.abs(actual - desired) / np.maximum(np.abs(desired), size)
    assert np.max(error) < (1e-4 if dtype == "float32" else 1e-9)


def test_derivatives_of_higher_order_where_eigenvalues_differ(x64):
    root, y = points(0, 4, 4), points(1, 4, 1)
    weights = points(2, 16, 1).reshape(4, 4, 1)
    ours, theirs = (
        jax.jit(
            jax.hessian(lambda r, f=f: jnp.sum(weights * f(r @ r.T, y, 0.4, jnp.zeros((1, 4)))[0]))
        )(root)
        for f in (predicted, loop)
    )
    assert_close(ours, theirs, rtol=1e-8)


def test_no_nan_is_made_on_the_way():
    kernel, y = jnp.ones((3, 3)), jnp.arange(3.0)
    with jax.debug_nans(True):
        for kernel in (jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.eye(3)):
            gradient = jax.grad(lambda k: jnp.sum(sn.ntk.predict_gd(k, y, 0.5, [0, 3]) ** 2))(
                kernel
            )
            assert np.isfinite(gradient).all()
            gradient = jax.grad(
                lambda k: jnp.sum(sn.ntk.predict_flow(k, y, jnp.array([0.0, 1.0, jnp.inf])) ** 2)
            )(kernel)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (3, 2)])
def test_starts_have_the_shape_of_the_kernel(shape, untyped):
    kernel = np.einsum("ij,lm->ijlm", np.eye(4), np.eye(2))
    with pytest.raises(ValueError, match="f0 must have shape .* with the n .and k. of the kernel"):
        sn.ntk.predict_gd(kernel, np.ones((4, 2)), 0.1, [1], np.ones(shape))


def test_the_derivative_in_the_learning_rate_is_that_of_the_power(x64):
    """∂/∂η (1 − (1 − ηλ)^τ) = τλ(1 − ηλ)^{τ−1}, and both of the sum of steps without λ."""
    values, y, steps = np.array([0.8, 4.0, 6.8]), np.array([[1.0], [-2.0], [0.5]]), np.array(STEPS)
    rate = 0.225
    kernel = jnp.diag(jnp.asarray(values))
    powers = np.array([t * (1 - rate * values) ** (t - 1) if t else np.zeros(3) for t in STEPS])
    shares = 1 - (1 - rate * values) ** steps[:, None]
    for function, factor in ((sn.ntk.predict_gd, values), (sn.ntk.gd_coefficients, np.ones(3))):
        moved = lambda rate, f=function: f(kernel, jnp.asarray(y), rate, steps)
        value, found = jax.jvp(moved, (jnp.asarray(rate),), (jnp.asarray(1.0),))
        assert_close(value, (factor * shares / values)[:, :, None] * y[None], rtol=1e-12)
        assert_close(found, (factor * powers)[:, :, None] * y[None], rtol=1e-12)
