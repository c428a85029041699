"""Gaussian moments and limits where precision ends: over all magnitudes, near equal points, at
zero; derivatives there.
"""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sweep_moments
from activation_references import PRECISE
from helpers import assert_close

import softntk as sn
from softntk import activations
from softntk.activations import ACTIVATIONS, Moments

every = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


def test_the_sweep_covers_the_table():
    """But for softplus, whose integrals have no closed form that 110 digits could be had from."""
    assert set(ACTIVATIONS) == {*sweep_moments.MOMENTS, "softplus"}


@pytest.mark.parametrize("name", sorted(sweep_moments.MOMENTS))
def test_every_moment_over_all_magnitudes(name, dtype):
    """Forty units of rounding of the result and of the q's; saturation with the right sign; never
    NaN.
    """
    for row in sweep_moments.sweep(
        name, dtype, [1e-30, 1.0, 80.0, 1e30], [-1.0, 0.3, 1 - 1e-7, 1.0]
    ):
        assert row.units < 40, row


def test_the_sweep_sees_an_error():
    point, limits = (mp.mpf(1), mp.mpf(0.5), mp.mpf(2)), jnp.finfo("float64")
    right = float(sweep_moments.exact("relu", "covariance", point, ()).value)
    assert sweep_moments.judge(right, "covariance", "relu", point, (), limits)[0] < 2
    assert (
        sweep_moments.judge(right * (1 + 1e-12), "covariance", "relu", point, (), limits)[0] > 100
    )


@pytest.mark.parametrize("name", ["crrelu", "erf", "gelu", "relu", "res_exp"])
def test_the_closed_forms_of_the_sweep_are_integrals(name):
    """By Gauss–Legendre in each quadrant, in mpmath: no formula of ours."""
    u, (a, c, b) = PRECISE[name], (0.7, 0.3, 0.9)
    with mp.workdps(20):
        determinant = mp.mpf(a) * b - mp.mpf(c) ** 2
        density = lambda x, y: mp.exp(-(b * x * x - 2 * c * x * y + a * y * y) / (2 * determinant))
        ends = [-8, -3, 0, 3, 8]
        total = mp.quad(lambda x, y: u(x) * u(y) * density(x, y), ends, ends, maxdegree=4)
        total /= 2 * mp.pi * mp.sqrt(determinant)
        want = sweep_moments.MOMENTS[name](mp.mpf(a), mp.mpf(c), mp.mpf(b))[0].value
        assert abs(total - want) < 1e-7 * abs(want)


def softplus_integrals(q11, rho, q22):
    """E u, E uu' and E u'u' of softplus by the trapezoidal rule, whose error is e^{−2π²/step}.

    The step is at most a third of a unit of the logits, and of a standard deviation.
    """
    t = np.arange(-12, 12, 0.3 / max(1, np.sqrt(max(q11, q22))))
    w = np.exp(-(t**2) / 2)
    w /= w.sum()
    first = np.sqrt(q11) * t
    second = np.sqrt(q22) * (rho * t[:, None] + np.sqrt(1 - rho**2) * t)
    u, du = lambda z: np.logaddexp(z, 0), lambda z: 0.5 * (1 + np.tanh(z / 2))
    return w @ u(first), (w * u(first)) @ u(second) @ w, (w * du(first)) @ du(second) @ w


@pytest.mark.parametrize(
    "variances", [(1e-12, 1e-12), (0.3, 0.3), (2.0, 1e-3), (30.0, 7.0), (900.0, 400.0)]
)
@pytest.mark.parametrize("rho", [-0.999, -0.3, 0.0, 0.8, 0.999999])
def test_moments_of_softplus_are_integrals(variances, rho, dtype):
    """At variances of all sizes at which a grid can be fine enough, and in both precisions; times
    e^{−s}.
    """
    q11, q22 = variances
    s = 0.7
    q12 = rho * np.sqrt(q11 * q22)
    wanted = softplus_integrals(q11, rho, q22)
    softplus = ACTIVATIONS["softplus"].moments
    covariance: Any = softplus.covariance
    derivative: Any = softplus.derivative
    sine = np.sqrt(1 - rho**2)
    found = [
        softplus.mean(q11, s),
        covariance(q11, q12, q22, s, sine),
        derivative(q11, q12, q22, s, sine),
    ]
    # Relative to √E[u²]√E[u'²]: for ρ near −1 the covariance is the rest of a cancellation.
    sizes = [wanted[0], max(wanted[1], np.sqrt(q11 * q22) / 7), 0.5]
    for value, want, size in zip(found, wanted, sizes, strict=True):
        assert (
            abs(np.exp(s) * float(value) - want) <= (1e-13 if dtype == "float64" else 1e-6) * size
        )


def test_softplus_of_huge_variances_is_relu(dtype):
    q = jnp.asarray([1e30, -0.4e30, 2e30])
    for found, want in zip(
        ACTIVATIONS["softplus"].limit(*q, normalized=False),
        ACTIVATIONS["relu"].limit(*q, normalized=False),
        strict=True,
    ):
        assert_close(found, want, dtype)


@pytest.mark.parametrize("name", ["gelu", "softplus"])
def test_derivatives_of_kernels_near_zero_keep_their_digits(name):
    """In float32, where the terms of ∂/∂q11 cancel, against float64."""
    for q in ([1e-3, 5e-4, 1e-3], [0.99, -0.9, 0.99], [1.01, 1.0, 1.01], [40.0, 39.0, 40.0]):
        for which in (0, 1):
            f = lambda q, w=which: ACTIVATIONS[name].limit(*q, normalized=False)[w]
            with jax.enable_x64(True):
                want = np.asarray(jax.grad(f)(jnp.asarray(q, "float64")))
            with jax.enable_x64(False):
                found = np.asarray(jax.grad(f)(jnp.asarray(q, "float32")))
            np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e9, 1e18, 1e25])
def test_relu_is_homogeneous_over_the_whole_precision(scale):
    q = jnp.asarray([1.0, 0.3, 2.0])
    limit = ACTIVATIONS["relu"].limit
    value, slope = limit(*(scale * q), normalized=False)
    assert_close(value / scale, limit(*q, normalized=False)[0], "float32")
    assert_close(slope, limit(*q, normalized=False)[1], "float32")
    normalized, _ = limit(*(scale * q), normalized=True)
    assert_close(normalized, limit(*q, normalized=True)[0], "float32")


@pytest.mark.parametrize("q11", [1e6, 1e7, 1e9, 1e30])
def test_res_exp_between_a_large_and_a_small_point(q11):
    slope = ACTIVATIONS["res_exp"].limit(
        jnp.float32(q11), jnp.float32(0.0), jnp.float32(0.5), True
    )[1]
    assert_close(slope, 1 + np.exp(-0.25), "float32")


@pytest.mark.parametrize("q", [1e3, 1e6, 1e8, 1e30])
def test_erf_on_the_diagonal(q, dtype):
    value, slope = ACTIVATIONS["erf"].limit(q, q, q, False)
    assert_close(slope, 4 / np.pi / np.sqrt(1 + 4 * q), dtype)
    assert_close(
        1 - value,
        1 - 2 / np.pi * np.arctan2(2 * q, np.sqrt(1 + 4 * q)),
        rtol=0.2 if q < 1e8 else np.inf,
    )


def test_derivatives_near_zero_are_finite_and_right(dtype):
    z = jnp.array([1e-20, 2e-20, 3e-20])
    for name in ("relu", "crrelu", "identity", "erf"):
        gradient = jax.grad(lambda z, name=name: activations.normalize(name, z)[0])(z)
        assert_close(gradient, np.array([5.0, -1.0, -1.0]) / 36e-20, dtype)
    q = jnp.array([1e-20, 0.0, 1e-20])
    relu, threshold = (
        jax.grad(lambda q, n=n: sum(ACTIVATIONS[n].limit(*q, normalized=False)))(q)
        for n in ("relu", "threshold")
    )
    slope = 1e20 / (2 * np.pi)
    # the slope's own derivative outweighs ¼
    assert_close(relu, [1 / (4 * np.pi), slope, 1 / (4 * np.pi)], dtype)
    assert_close(relu[0], 1 / (4 * np.pi), dtype)
    assert_close(threshold, [0, slope, 0], dtype)


def test_cosh_is_right_next_to_zero(dtype):
    """Its derivative is sinh: neither u' nor E[u'u'] may cancel, and E[u'u'] has the slope e^q
    cosh(0).
    """
    cosh = ACTIVATIONS["cosh"]
    z = jnp.asarray([1e-12, 1e-6, 1e-3, 0.5, 0.999, 1.001, -1e-6])
    np.testing.assert_allclose(
        cosh.du(z), np.sinh(np.asarray(z, np.float64)), rtol=1e-6 if dtype == "float32" else 1e-14
    )
    slopes = cosh.limit(0.5, z, 0.5, False)[1]
    np.testing.assert_allclose(
        slopes,
        np.exp(0.5) * np.sinh(np.asarray(z, np.float64)),
        rtol=1e-6 if dtype == "float32" else 1e-14,
    )
    for normalized, factor in ((False, np.exp(0.5)), (True, 1.0)):
        slope = jax.grad(lambda q12, n=normalized: cosh.limit(0.5, q12, 0.5, n)[1])
        for q12 in (0.0, 1e-9, -0.3, 2.0):
            assert_close(slope(q12), factor * np.cosh(q12), dtype)


@pytest.mark.parametrize("name", ["relu", "erf", "crrelu", "threshold", "softplus", "gelu"])
def test_gradients_are_those_of_float64_differences(name, x64):
    """The rules of the arc-cosine kernels and of the determinant, away from equal points."""
    q = jnp.asarray([0.7, 0.3, 0.9])
    for which in (0, 1):
        f = lambda q, w=which: ACTIVATIONS[name].limit(*q, normalized=False)[w]
        h = 1e-5
        differences = [(f(q.at[i].add(h)) - f(q.at[i].add(-h))) / (2 * h) for i in range(3)]
        np.testing.assert_allclose(jax.grad(f)(q), differences, rtol=1e-7, atol=1e-9)
        second = [
            (jax.grad(f)(q.at[i].add(h)) - jax.grad(f)(q.at[i].add(-h))) / (2 * h) for i in range(3)
        ]
        np.testing.assert_allclose(jax.hessian(f)(q), second, rtol=1e-6, atol=1e-8)


def test_a_normalized_limit_divides_by_both_means(x64):
    """Moments of an activation without closed forms for ratios, of different means at the two
    points.
    """
    exp = ACTIVATIONS["exp"].moments
    plain = activations.from_function(
        jnp.exp, "plain", Moments(exp.mean, exp.covariance, exp.derivative, exp.growth)
    )
    assert_close(plain.limit(0.5, 0.2, 1.7, True), [np.exp(0.2)] * 2)
    flat = Moments(lambda q, s: 2 + q, lambda a, c, b, s: c, lambda a, c, b, s: jnp.ones_like(c))
    assert_close(
        activations.from_function(jnp.exp, "flat", flat).limit(1.0, 0.6, 2.0, True),
        [0.6 / 12, 1 / 12],
    )


def test_a_slope_without_limit_saturates():
    """∞ · 0: normalized relu at a point of zeros, before which Θ is zero."""
    assert activations.chain(jnp.asarray(0.0), jnp.asarray(jnp.inf)) > 1e30
    assert activations.chain(jnp.asarray(jnp.inf), jnp.asarray(0.0)) == 0
    assert activations.chain(jnp.asarray(2.0), jnp.asarray(3.0)) == 6
    assert np.isfinite(jax.grad(lambda t: activations.chain(t, jnp.asarray(jnp.inf)))(0.0))


def test_epsilon_of_crrelu_is_traced(x64):
    f = lambda e: (
        sum(activations.crrelu(e).limit(0.7, 0.3, 0.9, False)) + activations.crrelu(e).u(-0.4)
    )
    assert_close(jax.grad(f)(0.3), (f(0.3 + 1e-6) - f(0.3 - 1e-6)) / 2e-6, rtol=1e-8)
    assert_close(jax.jit(f)(0.3), f(0.3))


@every
def test_activations_are_pickled_and_equal(name):
    again = pickle.loads(pickle.dumps(ACTIVATIONS[name]))
    assert again == ACTIVATIONS[name]
    assert hash(again) == hash(ACTIVATIONS[name])


def test_own_activations_are_pickled_and_equal(x64):
    one, two = (activations.from_function(abs, "abs") for _ in range(2))
    again = pickle.loads(pickle.dumps(one))
    assert one == two == again
    variance: Any = 0.5
    assert_close(again.moments.mean(variance, 0.0), one.moments.mean(variance, 0.0))


def test_strict_promotion_and_nan_checks():
    q = jnp.asarray([0.0, 0.3, 2.0])
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        for activation in ACTIVATIONS.values():
            f = lambda q, a=activation: sum(jnp.sum(v) for v in a.limit(q, 0.5 * q, q, False))
            assert np.isfinite(jax.grad(f)(q)).all()
        sn.ntk.propagate("relu", 1.0, 0.5, np.float32(1.0), 2, normalized=True, weight_variance=0.5)
        sn.ntk.fixed_point("exp", normalized=True, weight_variance=jnp.float32(0.3), max_steps=3)


def test_a_normalized_limit_at_a_point_of_zeros_is_infinite_and_its_derivative_no_nan():
    """E[u] = 0 at one of the two points is enough."""
    relu = ACTIVATIONS["relu"]
    for q11, q22 in ((0.0, 1.0), (1.0, 0.0)):
        assert np.isposinf(relu.limit(q11, 0.0, q22, True)).all()
    slope = jax.grad(lambda q22: jnp.where(q22 > 0, relu.limit(1.0, 0.0, q22, True)[0], 0.0))(0.0)
    assert slope == 0


def test_the_kernel_of_erf_moves_with_both_variances(x64):
    """(2/π) arcsin(2 q12/√((1 + 2 q11)(1 + 2 q22))), differentiated along the imaginary axis."""
    q = np.array([0.7, 0.3, 0.9])

    def plain(q11, q12, q22):
        return 2 / np.pi * np.arcsin(2 * q12 / np.sqrt((1 + 2 * q11) * (1 + 2 * q22)))

    wanted = [plain(*(q + 1e-20j * direction)).imag / 1e-20 for direction in np.eye(3)]
    found = jax.grad(lambda q: ACTIVATIONS["erf"].limit(*q, normalized=False)[0])(jnp.asarray(q))
    assert_close(found, wanted, rtol=1e-12)


def test_slopes_of_a_function_of_your_own_move_with_small_variances(x64):
    """E[u'(g₁)u'(g₂)] of u = z²: u' = 2z, hence 4 q12; of u = z³, 9 E[g₁²g₂²] = 9(q11 q22 + 2 q12²)."""
    q = jnp.asarray([0.4, 0.1, 0.3])
    for u, wanted in ((jnp.square, [0, 4, 0]), (lambda z: z**3, [9 * 0.3, 3.6, 9 * 0.4])):
        own = activations.from_function(u, "own")
        found = jax.grad(lambda q, own=own: own.limit(*q, normalized=False)[1])(q)
        assert_close(found, wanted, rtol=1e-9)
