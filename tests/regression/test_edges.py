"""Units, overflows and lost normalisers: never NaN, and ``check`` says what loss, gradient and
curvature then are.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, slow_except

import softntk as sn
from softntk.regression import _bounds
from softntk.solution import Result

A, B, X = (
    np.random.default_rng(0).normal(size=(4, 2)),
    np.array([0.1, 0.2, 0.3, 0.4]),
    np.array([0.8, -0.5]),
)
A[2] = 0


@jax.jit
def everything(p, x):
    return {
        "loss": p(x),
        "gradient": p.gradient(x),
        "derivative": jax.grad(p)(x),
        "predict": p.predict(x),
        "residual": p.residual(x),
        "hessian": p.hessian(x).as_matrix(),
        "gauss_newton": p.gauss_newton(x).as_matrix(),
        "product": p.hessian(x).mv(x),
        "check": p.check(x),
    }


def judge(p, x):
    """Nothing is NaN, and what is called successful is finite; the code."""
    values = {name: np.asarray(value) for name, value in everything(p, x).items()}
    code = int(values.pop("check"))
    for name, value in values.items():
        assert not np.isnan(value).any(), name
        assert code != Result.SUCCESSFUL or np.isfinite(value).all(), name
    assert (
        code == Result.SUCCESSFUL
        or not all(np.isfinite(v).all() for v in values.values())
        or not values["hessian"].any()
    )
    return code


@pytest.mark.parametrize(
    ("activation", "form"),
    [
        ("relu", "normalized"),
        ("res_exp", "normalized"),
        ("sinh", "rescaled"),
        ("exp", "plain"),
        ("identity", "plain"),
    ],
)
def test_check_agrees_with_what_is_computed(activation, form):
    codes = set()
    for unit, size in itertools.product([1.0, 1e-20, 1e20], [1e-30, 1.0, 100.0, 1e19, 1e30]):
        x = size * X / unit
        if np.abs(x).max() < 1e38:
            p = sn.regression.problem(jnp.asarray(unit * A, "float32"), B, activation, form)
            codes.add(judge(p, jnp.asarray(x, "float32")))
    assert (
        {Result.SUCCESSFUL, Result.OVERFLOW}
        <= codes
        <= {Result.SUCCESSFUL, Result.OVERFLOW, Result.NORMALISER_LOST}
    )


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_unit_of_the_matrix_is_that_of_the_inverse_point(unit):
    with jax.enable_x64(True):
        wide = sn.regression.resnet_softmax(A, B, weights=0.1)
        value, gradient = wide.value_and_gradient(jnp.asarray(X))
        step = np.linalg.solve(wide.hessian(jnp.asarray(X)).as_matrix(), gradient)
    p = sn.regression.resnet_softmax(jnp.asarray(unit * A, "float32"), B, weights=0.1)
    x = jnp.asarray(X / unit, "float32")
    assert_close(p(x), value, "float32")
    assert_close(p.gradient(x) / np.float32(unit), gradient, "float32")
    factored = p.hessian(x).factorise()
    assert int(factored.result) == Result.SUCCESSFUL
    assert_close(factored.solve(p.gradient(x)) * np.float32(unit), step, rtol=1e-3)


@pytest.mark.parametrize("activation", ["relu", "identity", "erf", "crrelu", "sinh"])
def test_tiny_and_huge_normalisers(activation):
    """At logits of 1e-19, whose sum has a square below float32; homogeneous ones also at 1e30."""
    p = sn.regression.problem(np.eye(3, dtype="float32"), np.full(3, 0.5), activation)
    z = np.array([1.0, 2.0, 3.0])
    f = z / z.sum()
    wanted = (f - 0.5 - (f - 0.5) @ f) / z.sum()
    for unit in [1e-19, 1e30] if activation in ("relu", "identity") else [1e-19]:
        x = jnp.asarray(unit * z, "float32")
        assert_close(p.predict(x), f, "float32")
        for gradient in (p.gradient(x), jax.grad(p)(x)):
            assert_close(np.asarray(gradient, np.float64) * unit, wanted, "float32")


def test_outside_of_the_domain_no_derivative_is_nan(dtype):
    """In the target and the weights, too, and for functions that have no value at zero."""
    logarithm = sn.activations.from_function(jnp.log, "log", sn.activations.get("relu").moments)
    for activation, x in (
        ("exp", jnp.array([1e4, 0.0], dtype)),
        (logarithm, jnp.array([-1.0, 1.0], dtype)),
    ):

        def loss(x, b, w, activation=activation):
            return sn.regression.problem(jnp.eye(2, dtype=dtype), b, activation, "plain", w)(x)

        data = (x, jnp.ones(2, dtype), jnp.asarray(0.5, dtype))
        assert np.isposinf(loss(*data))
        for transform in (jax.grad, jax.jacfwd):
            for derivative in transform(loss, (0, 1, 2))(*data):
                assert not np.asarray(derivative).any()
    inside = jnp.array([0.5, 2.0], dtype)
    gradient = jax.grad(
        sn.regression.problem(jnp.eye(2, dtype=dtype), jnp.ones(2, dtype), logarithm, "plain")
    )(inside)
    assert_close(gradient, (np.log([0.5, 2.0]) - 1) / np.array([0.5, 2.0]), dtype)


def test_neighbours_outside_of_their_domain(dtype):
    eye = jnp.eye(2, dtype=dtype)

    def attention(x, B, w):
        return sn.regression.attention(eye, eye, B, weights=w, activation="identity")(x)

    def two_layer(x, b, w):
        return sn.regression.two_layer(eye, eye, b, inner="identity", outer="exp", weights=w)(x)

    for loss, data in (
        (attention, (0 * eye, eye)),
        (two_layer, (jnp.full(2, 1e4, dtype), jnp.ones(2, dtype))),
    ):
        data = (*data, jnp.asarray(0.1, dtype))
        assert np.isposinf(loss(*data))
        for derivative in jax.grad(loss, (0, 1, 2))(*data):
            assert not np.asarray(derivative).any()


def test_attention_says_what_it_computes(dtype):
    """Its Hessian is the derivative of its gradient (and not Gauss–Newton's), and overflows are
    told.
    """
    rng = np.random.default_rng(1)
    A1, A2, target, x = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((3, 2), (4, 2), (3, 4), (2, 2))
    )
    p = sn.regression.attention(A1, A2, target, weights=0.3)
    powers = np.exp(np.asarray(A1 @ x @ A2.T, np.float64))
    assert_close(p.residual(x), powers / powers.sum(axis=1, keepdims=True) - target, dtype)
    assert_close(
        p.hessian(x).mv(x),
        jax.jvp(jax.grad(p), (x,), (x,))[1],
        rtol=1e-3 if dtype == "float32" else 1e-9,
    )
    assert_close(p.gauss_newton(x).as_matrix(), p.gauss_newton(x).as_matrix().T)
    codes = {judge(p, x), int(p.check(x * jnp.nan))}
    if dtype == "float32":
        codes |= {
            judge(sn.regression.attention(1e20 * A1, A2, target), 1e-20 * x),
            judge(p, 1e30 * x),
        }
    assert codes == {
        Result.SUCCESSFUL,
        Result.NONFINITE_INPUT,
        *([Result.OVERFLOW] if dtype == "float32" else []),
    }


def test_two_layers_and_leverage_say_what_they_compute():
    eye = jnp.eye(2)
    p = sn.regression.two_layer(eye, eye, jnp.ones(2), inner="identity", outer="exp")
    assert judge_plain(p, jnp.array([0.1, 0.2])) == Result.SUCCESSFUL
    assert judge_plain(p, jnp.array([40.0, 0.0])) == Result.SUCCESSFUL
    assert judge_plain(p, jnp.array([44.3, 0.0])) == Result.OVERFLOW
    assert int(p.check(jnp.array([jnp.nan, 0.0]))) == Result.NONFINITE_INPUT
    assert np.isposinf(p(jnp.array([jnp.nan, 0.0])))
    p = sn.regression.leverage(np.array([[1.0], [2.0]], "float32"), np.ones(2) / 2)
    assert judge_plain(p, jnp.zeros(2)) == Result.SUCCESSFUL
    assert judge_plain(p, jnp.full(2, 1e30)) == Result.OVERFLOW
    assert int(p.check(jnp.array([jnp.nan, 0.0]))) == Result.NONFINITE_INPUT
    assert int(p.check(jnp.array([jnp.inf, 0.0]))) == Result.NONFINITE_INPUT


def judge_plain(p, x):
    code = int(p.check(x))
    for value in (
        p(x),
        p.gradient(x),
        p.hessian(x).mv(jnp.ones(2)),
        p.gauss_newton(x).mv(jnp.ones(2)),
    ):
        assert not np.isnan(value).any()
        assert code != Result.SUCCESSFUL or np.isfinite(value).all()
    return code


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_leverage_problems_have_no_unit(unit):
    rows = np.random.default_rng(0).normal(size=(6, 2))
    one, other = (
        sn.regression.leverage((c * rows).astype("float32"), np.full(6, 1 / 3)) for c in (1.0, unit)
    )
    t = jnp.linspace(-1, 1, 6)
    assert_close(other.predict(t), one.predict(t), "float32")
    assert_close(other(t), float(one(t)) + 4 * np.log(unit), "float32")
    assert int(other.check(t)) == Result.SUCCESSFUL


def test_one_row_one_column_and_rows_of_zeros(dtype):
    for shape in ((1, 1), (1, 3), (3, 1)):
        for activation, form in (("exp", "normalized"), ("cosh", "rescaled"), ("res_exp", "plain")):
            p = sn.regression.problem(
                np.zeros(shape, dtype), np.full(shape[0], 0.5), activation, form, 0.5
            )
            assert_close(p.gradient(jnp.ones(shape[1], dtype)) + 1, np.ones(shape[1]), dtype)
            assert int(p.check(jnp.ones(shape[1], dtype))) == Result.SUCCESSFUL
    single = sn.regression.softmax(np.ones((1, 1), dtype), np.array([0.25]))
    assert_close(single(jnp.array([7.0], dtype)), 0.5 * 0.75**2, dtype)


@pytest.mark.parametrize("wide", slow_except([False, True], True))
def test_strict_promotion_and_float32_beside_float64(wide):
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        p = sn.regression.resnet_softmax(jnp.asarray(A, "float32"), B, weights=0.1)
        for name, value in everything(p, jnp.asarray(X, "float32")).items():
            assert value.dtype == (jnp.int32 if name == "check" else jnp.float32), name
        eye = jnp.eye(2, dtype="float32")
        for q, x in (
            (sn.regression.attention(eye, eye, eye), eye),
            (sn.regression.two_layer(eye, eye, jnp.ones(2, "float32"), inner="cosh"), eye[0]),
            (sn.regression.leverage(jnp.ones((2, 1), "float32"), np.ones(2) / 2), eye[0]),
        ):
            for value in (q(x), q.gradient(x), q.predict(x), q.hessian(x).mv(x), jax.grad(q)(x)):
                assert value.dtype == jnp.float32
            assert int(q.check(x)) == Result.SUCCESSFUL
        assert np.isfinite(_bounds.lipschitz(p, 1.0, jnp.asarray(X, "float32")).predict.ours)


# --- bounds
# -------------------------------------------------------------------------------------------------------


def majorants(first, second, third, shift_sum, size):
    """The derivatives at zero of (F + m₁t + …)/(1 − at − …), by automatic differentiation: those of
    u/α are no larger.
    """

    def quotient(t):
        above = size + first * t + second * t**2 / 2 + third * t**3 / 6
        return above / (1 - shift_sum * t - second * t**2 / 2 - third * t**3 / 6)

    derivatives = [quotient]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    return [float(derivative(0.0)) for derivative in derivatives]


def test_general_bounds_are_those_of_the_quotient_of_majorants(x64):
    """Normalized cosh around zero, where the suprema and α ≥ n are known by hand."""
    rows, b, radius = (
        np.array([[0.3, 0.1], [-0.2, 0.4], [0.1, 0.2]]),
        np.array([0.2, 0.3, 0.5]),
        1.5,
    )
    reach = np.linalg.norm(rows, axis=1) * radius
    up, slope = np.cosh(reach) / 3, np.sinh(reach) / 3
    F, f1, f2, f3 = majorants(
        slope.max(), up.max(), slope.max(), np.linalg.norm(slope), np.linalg.norm(up)
    )
    p = sn.regression.problem(rows, b, "cosh")
    spectral = np.linalg.norm(rows, 2)
    residual = np.linalg.norm(1 / 3 - b) + f1 * spectral * radius
    c = min(F + np.linalg.norm(b), residual)
    bound = _bounds.lipschitz(p, radius)
    wanted = [f1 * spectral, (f1**2 + c * f2) * spectral**2, (c * f3 + 3 * f1 * f2) * spectral**3]
    assert_close([part.ours for part in bound], wanted, rtol=1e-4)
    weight = _bounds.convexity_weight(p, 0.5, radius).ours
    smallest = np.linalg.svd(rows, compute_uv=False)[-1]
    assert_close(weight**2, (F + np.linalg.norm(b)) * f2 + 0.5 / smallest**2, rtol=1e-4)


def test_bounds_around_a_centre_far_away(x64):
    """Normalized at logits of ±1000 they stay finite; not normalized they are those of u itself,
    without any shift.
    """
    rows, b = np.array([[1.0, 0.1], [0.9, -0.1], [0.8, 0.0]]), np.full(3, 1 / 3)
    far = np.array([1000.0, 0.0])
    for activation in ("exp", "res_exp"):
        bound = _bounds.lipschitz(sn.regression.problem(rows, b, activation), 0.01, far)
        assert all(np.isfinite(part.ours) for part in bound)
    near, radius = np.array([2.0, 1.0]), 0.5
    tops = np.exp(rows @ near + radius * np.linalg.norm(rows, axis=1))
    bound = _bounds.lipschitz(sn.regression.exponential(rows, b), radius, near)
    assert_close(bound.predict.ours, tops.max() * np.linalg.norm(rows, 2), rtol=1e-4)
    assert _bounds.normaliser(sn.regression.softmax(rows, b), 1e300, near).ours == 0.0


@pytest.mark.parametrize("unit", [1e-25, 1e-10, 1e10, 1e25])
def test_bounds_are_homogeneous(unit):
    """Of A → cA with a radius in the inverse unit, where squares leave float32."""
    rows, b = np.random.default_rng(0).normal(size=(5, 2)), np.full(5, 0.2)
    centre = np.array([0.3, -0.2])
    for activation, form in (("res_exp", "normalized"), ("cosh", "rescaled")):
        one, other = (
            sn.regression.problem((c * rows).astype("float32"), b, activation, form)
            for c in (1.0, unit)
        )
        first = _bounds.lipschitz(one, 0.25, centre)
        second = _bounds.lipschitz(other, 0.25 / unit, (centre / unit).astype("float32"))
        for power, (mine, its) in enumerate(zip(first, second, strict=True)):
            assert_close(its.ours / unit ** (power + 1), mine.ours, rtol=1e-3)
        assert_close(
            _bounds.normaliser(other, 0.25 / unit, (centre / unit).astype("float32")).ours,
            _bounds.normaliser(one, 0.25, centre).ours,
            rtol=1e-3,
        )
    softmax = sn.regression.softmax((unit * rows).astype("float32"), b)
    weight = _bounds.convexity_weight(softmax, unit**2).ours
    assert_close(
        weight,
        _bounds.convexity_weight(sn.regression.softmax(rows.astype("float32"), b), 1.0).ours,
        rtol=1e-3,
    )


def test_bounds_never_break_down():
    for A in (np.zeros((3, 2)), np.ones((1, 1)), np.full((3, 2), 1e30)):
        p = sn.regression.problem(A.astype("float32"), np.ones(len(A)), "res_exp")
        for radius in (1e-300, 1.0, 1e300):
            found = [
                *_bounds.lipschitz(p, radius),
                _bounds.normaliser(p, radius),
                _bounds.convexity_weight(p, 1.0, radius),
            ]
            assert not np.isnan(found).any()
    heavy = sn.regression.softmax(np.eye(2, dtype="float32"), np.ones(2), weights=1e30)
    assert not np.isnan(_bounds.lipschitz(heavy, 1.0)).any()
    with jax.enable_x64(True):
        heavy = sn.regression.softmax(np.eye(2), np.ones(2), weights=1e200)
        assert _bounds.lipschitz(heavy, 1.0).gradient.ours == np.inf
        thin = sn.regression.softmax(1e-200 * np.eye(2), np.ones(2))
        assert (
            np.isposinf(_bounds.convexity_weight(thin, 1e200).ours)
            or _bounds.convexity_weight(thin, 1e200).ours > 1e299
        )
