"""Predicted training against training, step by step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close, cache_size, cast, points, slow_except

import softntk as sn
from softntk.networks import two_layer
from softntk.ntk import _closed_form_dynamics as _dynamics
from softntk.solution import NumericalError


def linear_descent(matrix, y, eta, steps, f0):
    """Gradient descent on ½|F − Y|² with a constant kernel, one step after the other."""
    matrix, y, out = np.asarray(matrix, np.float64), np.asarray(y, np.float64).reshape(-1), {}
    f = np.zeros_like(y) if f0 is None else np.asarray(f0, np.float64).reshape(-1)
    for step in range(max(steps) + 1):
        out[step] = f.copy()
        f = f - eta * matrix @ (f - y)
    return np.array([out[s] for s in steps])


@pytest.mark.parametrize(
    ("dtype", "with_start", "relative_rate", "outputs"),
    slow_except(
        itertools.product(
            ["float32", "float64"], [False, True], [0.01, 1.0, 1.3, 1.999], ["full", "mean"]
        ),
        ("float32", False, 1.999, "full"),
        ("float64", True, 0.01, "full"),
    ),
    indirect=["dtype"],
)
def test_predict_gd_is_step_by_step_descent(outputs, with_start, relative_rate, dtype):
    net = two_layer("softmax", width=64, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x, y = points(1, 6, 4, dtype), points(2, 6, 2, dtype)
    f0 = net.apply_fn(params, x) if with_start else None
    gram = sn.ntk.empirical(net, params, x, outputs=outputs)
    matrix = (
        np.asarray(gram.transpose(0, 2, 1, 3)).reshape(12, 12)
        if outputs == "full"
        else np.kron(gram, np.eye(2))
    )
    eta, steps = relative_rate / float(np.linalg.eigvalsh(matrix)[-1]), [0, 1, 2, 3, 100, 1000, 17]
    predicted = sn.ntk.predict_gd(gram, y, eta, jnp.array(steps), f0)
    desired = linear_descent(matrix, y, eta, steps, f0).reshape(7, 6, 2)
    assert_close(predicted, desired, rtol=1e-10 if dtype == "float64" else 3e-4)
    assert predicted.dtype == dtype
    assert_close(jax.jit(sn.ntk.predict_gd)(gram, y, eta, jnp.array(steps), f0), predicted, dtype)


def test_predict_gd_keeps_small_rates_over_millions_of_steps():
    """In float32 1 − 1e-7 is a coarse number: its millionth power, formed naively, is off in the
    second digit.
    """
    out = sn.ntk.predict_gd(jnp.eye(1), jnp.ones((1, 1)), 3e-7, jnp.array([1_000_000]))
    assert_close(out[0, 0, 0], 1 - np.exp(1e6 * np.log1p(-3e-7)), rtol=1e-6)


def test_exact_annihilation_and_divergence(dtype):
    out = sn.ntk.predict_gd(jnp.eye(2), jnp.ones((2, 1)), 1.0, jnp.array([0, 1, 5]))
    np.testing.assert_array_equal(out[:, :, 0], [[0, 0], [1, 1], [1, 1]])
    assert np.isfinite(
        sn.ntk.predict_gd(jnp.eye(2), jnp.ones((2, 1)), 5.0, jnp.array([10**6, 10**6 + 1]))
    ).all()


@pytest.mark.slow
@pytest.mark.optimised
def test_a_wide_softmax_network_trains_as_predicted():
    """Width 2¹⁴: the measured loss stays within 5 % of the prediction until it has fallen to 1 % of
    its start.
    """
    net = two_layer("softmax", width=2**14, sigma=0.5)
    x, y = points(0, 16, 8, "float32"), jnp.sign(points(1, 16, 1, "float32"))
    _, params = net.init_fn(jax.random.key(2), (-1, 8))
    gram = sn.ntk.empirical(net, params, x)
    eta = 1.0 / float(sn.ntk.extreme_eigenvalues(gram)[1])
    steps = np.unique(np.round(np.geomspace(1, 4000, 60)).astype(int))
    predicted = 0.5 * np.sum(
        (np.asarray(sn.ntk.predict_gd(gram, y, eta, jnp.asarray(steps))) - np.asarray(y)) ** 2,
        (1, 2),
    )
    loss = lambda p, x, y: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)
    measured = np.asarray(
        sn.solvers.train(loss, params, sn.solvers.gradient_descent(eta), 4000, x, y).stats["loss"]
    )
    early = predicted > 0.01 * measured[0]
    assert not early.all()
    assert np.max(np.abs(measured[steps][early] / predicted[early] - 1)) < 0.05


def linear_flow(matrix, cross, residual, time):
    """∫ of the linear equation for test and training outputs together, by SciPy's matrix
    exponential.
    """
    n, t = len(matrix), len(cross)
    whole = np.zeros((n + t, n + t))
    whole[:n, :n], whole[n:, :n] = -matrix, -cross
    moved = scipy.linalg.expm(whole * time) @ np.concatenate(
        [residual, np.zeros((t, residual.shape[1]))]
    )
    return moved[:n], moved[n:]


def problem(kind, dtype, n=14, t=5):
    """A kernel in two forms (array, operator), its cross kernel likewise, targets and starts; all
    matrices in float64 too.
    """
    x, tests = points(0, n, 4, dtype), points(1, t, 4, dtype)
    if kind == "independent outputs":
        net = two_layer("softmax", width=2, sigma=0.8)
        op = sn.ntk.kernel_operator(net.kernel_fn, x, block_size=6)
        gram, cross = net.kernel_fn(x, None, "ntk"), net.kernel_fn(tests, x, "ntk")
        outputs, dense = 3, (gram, cross)
    else:
        net = two_layer("softmax", width=64, out_dim=2, antisymmetric=False)
        params = cast(net.init_fn(jax.random.key(0), (-1, 4))[1], dtype)
        op = sn.ntk.operator(net, params, x, block_size=6)
        gram, cross = sn.ntk.empirical(net, params, x), sn.ntk.empirical(net, params, tests, x)
        outputs, dense = (
            2,
            [k.transpose(0, 2, 1, 3).reshape(k.shape[0] * 2, -1) for k in (gram, cross)],
        )
    y, f0, f0_test = (points(2 + i, rows, outputs, dtype) for i, rows in enumerate((n, n, t)))
    return (
        (gram, cross),
        (op, op.cross(tests)),
        [np.asarray(k, float) for k in dense],
        y,
        f0,
        f0_test,
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_except(
        [("independent outputs", "float32"), ("all outputs", "float64")], ("all outputs", "float64")
    ),
    indirect=["dtype"],
)
@pytest.mark.slow
def test_descent_and_flow_on_training_and_test_points(kind, dtype):
    arrays, operators, (matrix, cross), y, f0, f0_test = problem(kind, dtype)
    residual = np.asarray(f0 - y, float).reshape(len(matrix), -1)
    largest = np.linalg.eigvalsh(matrix)[-1]
    rtol = 1e-4 if dtype == "float32" else 1e-8

    eta, steps = 1.3 / largest, [0, 1, 7, 60]
    train, test, weights = {}, {}, np.zeros_like(residual)
    for step in range(61):
        train[step] = residual + matrix @ weights
        test[step] = np.asarray(f0_test, float).reshape(len(cross), -1) + cross @ weights
        weights = weights - eta * (residual + matrix @ weights)
    for gram, k in (arrays, operators):
        predicted = sn.ntk.predict_gd(gram, y, eta, np.array(steps), f0)
        assert_close(
            predicted - y[None], np.array([train[s] for s in steps]).reshape(4, *y.shape), rtol=rtol
        )
        predicted = sn.ntk.predict_gd(gram, y, eta, np.array(steps), f0, cross=k, f0_test=f0_test)
        assert_close(
            predicted, np.array([test[s] for s in steps]).reshape(4, *f0_test.shape), rtol=rtol
        )

    times = np.array([0.0, 1.0, 40.0]) / largest
    flows = [linear_flow(matrix, cross, residual, t) for t in times]
    for gram, k in (arrays, operators):
        flow = sn.ntk.predict_flow(gram, y, times.astype(dtype), f0)
        assert_close(
            flow - y[None], np.array([f[0] for f in flows]).reshape(3, *y.shape), rtol=rtol
        )
        flow = sn.ntk.predict_flow(gram, y, times.astype(dtype), f0, cross=k, f0_test=f0_test)
        desired = np.array([f[1] for f in flows]).reshape(3, *f0_test.shape)
        assert_close(flow - f0_test[None], desired, rtol=rtol)


@pytest.mark.slow
def test_the_end_of_the_flow_is_ridgeless_regression(x64):
    arrays, _, (matrix, cross), y, f0, f0_test = problem("independent outputs", "float64")
    out = sn.ntk.predict_flow(
        arrays[0], y, np.array([np.inf]), f0, cross=arrays[1], f0_test=f0_test
    )
    assert_close(out[0], f0_test + cross @ np.linalg.solve(matrix, y - f0), rtol=1e-7)
    assert_close(sn.ntk.predict_flow(arrays[0], y, np.array([np.inf]), f0)[0], y)


def test_a_singular_kernel_moves_what_it_can(dtype):
    """Two equal points with different targets: the mean is learnt, and nothing grows with time
    along the difference.
    """
    gram, y = jnp.ones((2, 2), dtype), jnp.asarray([[1.0], [3.0]], dtype)
    out = sn.ntk.predict_flow(gram, y, jnp.asarray([jnp.inf], dtype), cross=jnp.ones((1, 2), dtype))
    assert_close(out[0], [[2.0]], rtol=1e-5)
    out = sn.ntk.predict_gd(gram, y, 0.1, np.array([10**8]), cross=jnp.ones((1, 2), dtype))
    assert_close(out[0], [[2.0]], rtol=1e-5)


@pytest.mark.slow
def test_an_operator_needs_few_products_early_and_says_when_they_do_not_suffice(monkeypatch):
    x = points(0, 600, 3, "float32")
    net = two_layer("softmax", width=2)
    op = sn.ntk.kernel_operator(net.kernel_fn, x)
    jax.clear_caches()  # the programs of all functions share one table, and a full one forgets
    before = cache_size(_dynamics._krylov_spaces)
    sn.ntk.predict_gd(op, x[:, :1], 1e-3, np.array([5]))
    assert cache_size(_dynamics._krylov_spaces) == before + 2  # 16 and 32 products
    inside = jax.jit(lambda op: sn.ntk.predict_gd(op, x[:, :1], 1e-3, np.array([5])))(op)
    assert_close(inside, sn.ntk.predict_gd(op, x[:, :1], 1e-3, np.array([5])), rtol=1e-4)
    monkeypatch.setattr(_dynamics, "_MAX_KRYLOV_DIMENSION", 32)
    with pytest.raises(NumericalError, match="MAX_STEPS: 32 products"):
        sn.ntk.predict_flow(
            op, jnp.sign(x[:, :1]), np.array([1e9], np.float32), cross=op.cross(x[:4] + 0.1)
        )


def test_divergent_coefficients_and_test_points_keep_their_signs(dtype):
    """1 − (1 − ηλ)^τ of both parities, past any bound that 1/λ would set."""
    gram, y, steps = (
        jnp.diag(jnp.asarray([1.0, 0.5], dtype)),
        jnp.ones((2, 1), dtype),
        np.array([10, 11, 20, 21]),
    )
    desired = 1 - np.stack([(-5.0) ** steps, (-2.0) ** steps], 1)
    assert_close(sn.ntk.predict_gd(gram, y, 6.0, steps)[:, :, 0], desired, dtype)
    assert_close(sn.ntk.predict_gd(gram, y, 6.0, steps, cross=gram)[:, :, 0], desired, dtype)
    coefficients = np.asarray(sn.ntk.gd_coefficients(gram, y, 6.0, steps))[:, :, 0]
    assert_close(coefficients * np.diag(gram), desired, dtype)


def test_what_diverges_saturates_and_leaves_the_rest_alone():
    gram, y = jnp.diag(jnp.array([1.0, 0.5])), 1e20 * jnp.ones((2, 1))
    for steps, sign in ((100, -1), (101, 1)):
        first, second = np.asarray(sn.ntk.predict_gd(gram, y, 3.9, jnp.array([steps])))[0, :, 0]
        assert first == sign * np.finfo(np.float32).max
        assert abs(second / (1e20 * (1 - (-0.95) ** steps)) - 1) < 1e-4
        assert np.isfinite(
            sn.ntk.predict_gd(gram, y, 3.9, jnp.array([steps]), cross=jnp.ones((1, 2)))
        ).all()
    # Residuals beyond the largest number.
    out = sn.ntk.predict_gd(
        jnp.eye(1), jnp.full((1, 1), 3e38), 0.5, [0, 1, 2], jnp.full((1, 1), -3e38)
    )
    assert_close(out[:, 0, 0], [-3e38, 0.0, 1.5e38], rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e10, 1e30])
def test_units_of_the_kernel_and_of_the_targets(unit):
    root = np.asarray(points(0, 6, 6, "float32"))
    gram, cross, y = (
        root @ root.T,
        np.asarray(points(1, 2, 6, "float32")),
        np.asarray(points(2, 6, 2, "float32")),
    )
    scaled = (np.float32(unit) * gram, np.float32(unit) * cross)
    steps, times = [0, 3, 50], np.array([0.0, 1.0, 20.0], np.float32)
    assert_close(
        sn.ntk.predict_gd(scaled[0], y, 0.3 / unit, steps, cross=scaled[1]),
        sn.ntk.predict_gd(gram, y, 0.3, steps, cross=cross),
        rtol=1e-4,
    )
    assert_close(
        sn.ntk.predict_flow(scaled[0], y, times / np.float32(unit), cross=scaled[1]),
        sn.ntk.predict_flow(gram, y, times, cross=cross),
        rtol=1e-4,
    )
    coefficients = sn.ntk.gd_coefficients(gram, np.float32(unit) * y, 0.3, steps)
    assert_close(coefficients / unit, sn.ntk.gd_coefficients(gram, y, 0.3, steps), rtol=1e-5)


def test_a_kernel_of_zeros(dtype):
    gram, y = jnp.zeros((2, 2), dtype), jnp.ones((2, 1), dtype)
    assert_close(sn.ntk.predict_gd(gram, y, 0.1, [0, 10**9]), np.zeros((2, 2, 1)))
    assert_close(sn.ntk.gd_coefficients(gram, y, 0.1, [1, 10**9])[:, 0, 0], [0.1, 1e8], dtype)
    assert_close(
        sn.ntk.predict_flow(gram, y, jnp.asarray([1.0, jnp.inf], dtype)), np.zeros((2, 2, 1))
    )


def test_flow_of_an_indefinite_matrix_is_the_limit_of_descent():
    """λ = −1 of 3 is not rounding: e^{−Ht} as it is."""
    gram, y = np.array([[1.0, 2.0], [2.0, 1.0]], np.float32), np.array([[1.0], [0.0]], np.float32)
    desired = y - scipy.linalg.expm(-2.0 * gram) @ y
    assert_close(sn.ntk.predict_flow(gram, y, np.array([2.0], np.float32))[0], desired, rtol=1e-5)
    assert_close(sn.ntk.predict_gd(gram, y, 1e-4, [20000])[0], desired, rtol=1e-3)
    cross = np.array([[0.5, -1.0]], np.float32)
    test = cross @ np.linalg.solve(gram, np.eye(2) - scipy.linalg.expm(-2.0 * gram)) @ y
    assert_close(
        sn.ntk.predict_flow(gram, y, np.array([2.0], np.float32), cross=cross)[0], test, rtol=1e-5
    )
    assert np.isfinite(sn.ntk.predict_flow(gram, y, np.array([1e6, np.inf], np.float32))).all()


@pytest.mark.parametrize("antisymmetric", [False, True])
def test_the_start_is_that_of_the_network_behind_an_operator(antisymmetric):
    net = two_layer("softmax", width=32, out_dim=2, antisymmetric=antisymmetric)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, tests, y = points(0, 5, 3, "float32"), points(1, 2, 3, "float32"), points(2, 5, 2, "float32")
    gram, cross = sn.ntk.empirical(net, params, x), sn.ntk.empirical(net, params, tests, x)
    f0, f0_test = (
        (None, None) if antisymmetric else (net.apply_fn(params, x), net.apply_fn(params, tests))
    )
    op = sn.ntk.operator(net, params, x, block_size=2)
    assert_close(
        sn.ntk.predict_gd(op, y, 0.1, [0, 4]),
        sn.ntk.predict_gd(gram, y, 0.1, [0, 4], f0),
        rtol=1e-5,
    )
    test = sn.ntk.predict_gd(gram, y, 0.1, [0, 4], f0, cross=cross, f0_test=f0_test)
    assert_close(sn.ntk.predict_gd(op, y, 0.1, [0, 4], cross=op.cross(tests)), test, rtol=1e-5)
    # Zeros that are given are zeros: a centred network.
    centred = sn.ntk.predict_gd(
        op, y, 0.1, [0, 4], np.zeros((5, 2), np.float32), cross=op.cross(tests)
    )
    np.testing.assert_array_equal(centred[0], 0)
    if not antisymmetric:
        own = sn.ntk.operator(net.apply_fn, params, x, block_size=2)
        assert_close(
            sn.ntk.predict_gd(own, y, 0.1, [0, 4], cross=own.cross(tests)), test, rtol=1e-4
        )


def test_float32_beside_float64_and_without_promotion():
    gram, y = jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((2, 1))
    desired = np.array([[0.5, 0.25], [0.75, 0.4375]])
    with jax.numpy_dtype_promotion("strict"):
        assert_close(
            sn.ntk.predict_gd(gram, y, 0.5, jnp.array([1, 2]))[:, :, 0], desired, rtol=1e-6
        )
        assert_close(sn.ntk.gd_coefficients(gram, y, 0.5, [1, 2])[:, 1, 0], [0.5, 0.875], rtol=1e-6)
        assert sn.ntk.predict_flow(gram, y, jnp.array([1.0]), cross=gram).shape == (1, 2, 1)
        jax.grad(lambda k: jnp.sum(sn.ntk.predict_gd(k, y, 0.5, [1, 2], cross=gram)))(gram)
        op = sn.ntk.kernel_operator(lambda a, b: jnp.matmul(a, b.T), gram)
        assert sn.ntk.predict_gd(op, y, 0.5, [1]).shape == (1, 2, 1)
    with jax.enable_x64(True):
        for rate in (0.5, np.float64(0.5), jnp.asarray(0.5)):
            out = jax.jit(sn.ntk.predict_gd)(gram, y, rate, np.array([1, 2]))
            assert out.dtype == np.float32
            assert_close(out[:, :, 0], desired, rtol=1e-6)


def test_derivatives_by_an_operator_are_those_of_its_matrix(x64):
    x, tests, y = points(0, 4, 3), points(1, 2, 3), points(2, 4, 1)
    kernel_fn = lambda a, b: jnp.exp(a @ b.T)

    def by_operator(x, y, rate):
        op = sn.ntk.kernel_operator(kernel_fn, x)
        return jnp.sum(jnp.sin(sn.ntk.predict_gd(op, y, rate, [2, 5], cross=op.cross(tests))))

    def by_matrix(x, y, rate):
        return jnp.sum(
            jnp.sin(sn.ntk.predict_gd(kernel_fn(x, x), y, rate, [2, 5], cross=kernel_fn(tests, x)))
        )

    one, other = (jax.jit(jax.grad(f, (0, 1, 2)))(x, y, 0.2) for f in (by_operator, by_matrix))
    for left, right in zip(one, other, strict=True):
        assert_close(left, right, rtol=1e-8)


def test_a_large_network_that_cancels_starts_at_zero():
    """What rounding leaves of an antisymmetric network is measured by the outputs of its halves."""
    net = two_layer("softmax", width=64)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    # Neither equal halves of a sum nor powers of two: their sums are not zero but for rounding.
    readout = np.array(jax.random.normal(jax.random.key(1), (64, 1)))
    readout[32:] = -readout[:32]
    order = np.random.default_rng(0).permutation(64)
    params = params.replace(
        hidden=params.hidden[:, order], readout=jnp.asarray(1e5 * readout[order])
    )
    x, y = points(0, 5, 3, "float32"), points(2, 5, 1, "float32")
    assert np.abs(net.apply_fn(params, x)).max() > 1e-4
    op = sn.ntk.operator(net, params, x)
    assert np.abs(sn.ntk.predict_gd(op, y, 1e-9, [0])).max() < 1e-5


def test_as_many_products_as_there_are_points_are_exact(monkeypatch):
    """The limit of products is not reached by a space that is exhausted."""
    monkeypatch.setattr(_dynamics, "_MAX_KRYLOV_DIMENSION", 16)
    monkeypatch.setattr(_dynamics, "_MAX_FORMED_SIZE", 8)
    x, y = points(0, 16, 3, "float32"), points(1, 16, 2, "float32")
    net = two_layer("softmax", width=2)
    op = sn.ntk.kernel_operator(net.kernel_fn, x)
    times = np.array([0.3, 1.0, 2.0], np.float32)
    found = sn.ntk.predict_flow(op, y, times)
    gram = net.kernel_fn(x, None, "ntk")
    assert_close(found, sn.ntk.predict_flow(gram, y, times), "float32")
