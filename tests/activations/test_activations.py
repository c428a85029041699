"""Every activation × every law: derivatives against autodiff, moments against quadrature, shifts
that cancel, huge logits.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from activation_references import REFERENCE, SMOOTH
from helpers import assert_close

from softntk import activations
from softntk.activations import ACTIVATIONS

COVARIANCES = [
    (0.7, 0.3, 0.9),
    (1.3, -0.6, 0.5),
    (0.2, 0.0, 1.5),
    (1.0, 1.0, 1.0),
    (0.8, -0.8, 0.8),
]

every = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


def arrays(q: Sequence[float]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return q11, q12 and q22 as arrays."""
    q11, q12, q22 = q
    return jnp.asarray(q11), jnp.asarray(q12), jnp.asarray(q22)


def plane_quadrature(f, q11, q12, q22):
    """E f(g₁, g₂) by the trapezoidal rule on a wide grid of independent normals: spectrally exact
    for smooth f.
    """
    t = np.linspace(-12, 12, 1201)
    w = np.exp(-(t**2) / 2)
    w /= w.sum()
    rho = q12 / np.sqrt(q11 * q22)
    s1, s2 = np.meshgrid(t, t, indexing="ij")
    return np.einsum(
        "a,b,ab",
        w,
        w,
        f(np.sqrt(q11) * s1, np.sqrt(q22) * (rho * s1 + np.sqrt(max(0, 1 - rho**2)) * s2)),
    )


def ray_quadrature(power, q11, q12, q22):
    """E[g₁₊^p g₂₊^p]: in polar coordinates the radius is elementary and the angle a smooth integral
    over the active sector.
    """
    rho = q12 / np.sqrt(q11 * q22)
    angle = np.arccos(np.clip(rho, -1, 1))
    sector = (angle - np.pi / 2, np.pi / 2)
    if sector[0] >= sector[1]:
        return 0.0
    integrand = lambda phi: (np.cos(phi) * np.cos(phi - angle)) ** power
    radius = 2.0 if power else 1.0  # ∫ r^{2p+1} e^{-r²/2} dr
    return (
        radius
        * np.sqrt(q11 * q22) ** power
        * scipy.integrate.quad(integrand, *sector, epsabs=1e-13)[0]
        / (2 * np.pi)
    )


def test_reference_covers_the_table():
    assert set(REFERENCE) == set(ACTIVATIONS)


@every
def test_u_and_derivatives(name, dtype):
    a, z = ACTIVATIONS[name], jnp.linspace(-4.0, 4.0, 41) + 0.03
    assert_close(a.u(z), REFERENCE[name](np.asarray(z, np.float64)), dtype)
    assert_close(a.du(z), jax.vmap(jax.grad(a.u))(z), dtype)
    if name in ("relu", "identity", "threshold"):
        np.testing.assert_array_equal(a.d2u(z), 0)
    else:
        assert_close(a.d2u(z), jax.vmap(jax.grad(a.du))(z), dtype)
    assert a.u(z).dtype == a.du(z).dtype == a.d2u(z).dtype == z.dtype == dtype


@every
def test_shift_divides_by_its_exponential(name, dtype):
    a, z, c = ACTIVATIONS[name], jnp.linspace(-3.0, 3.0, 7), jnp.asarray(1.5)
    for shifted, plain in zip(a.jet(z, c), a.jet(z, 0.0), strict=True):
        np.testing.assert_allclose(
            shifted, plain * np.exp(-1.5), rtol=1e-5 if dtype == "float32" else 1e-13
        )


@every
@pytest.mark.parametrize("sign", [-1, 1])
def test_huge_logits_are_finite_under_their_own_shift(name, sign, dtype):
    a, z = ACTIVATIONS[name], sign * jnp.array([[1e4, 9.9e3, -1e4, 0.0]])
    c = a.log_scale(z)
    assert c.shape == (1, 1)
    for value in a.jet(z, c):
        assert np.isfinite(value).all()
    assert np.abs(a.jet(z, c)[0]).max() > 0


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("q", COVARIANCES)
def test_moments_of_smooth_activations(name, q, x64):
    a, f = ACTIVATIONS[name], REFERENCE[name]
    args = arrays(q)
    slope = lambda z: np.asarray(jax.vmap(jax.grad(a.u))(jnp.asarray(z).ravel())).reshape(z.shape)
    exact = (
        plane_quadrature(lambda x, y: f(x) * f(y), *q),
        plane_quadrature(lambda x, y: slope(x) * slope(y), *q),
    )
    got = a.moments.covariance(*args, 0.0), a.moments.derivative(*args, 0.0)
    np.testing.assert_allclose(got, exact, rtol=2e-12, atol=1e-14)  # some of them vanish
    mean = plane_quadrature(lambda x, _: f(x), q[0], 0.0, 1.0)
    assert abs(a.moments.mean(args[0], 0.0) - mean) < 1e-12 * (1 + abs(mean))
    assert a.moments.positive_mean == (abs(mean) > 1e-9)


@pytest.mark.parametrize("q", COVARIANCES)
def test_moments_of_relu(q, x64):
    moments, args = ACTIVATIONS["relu"].moments, arrays(q)
    np.testing.assert_allclose(
        moments.covariance(*args, 0.0), ray_quadrature(1, *q), rtol=1e-10, atol=1e-14
    )
    np.testing.assert_allclose(
        moments.derivative(*args, 0.0), ray_quadrature(0, *q), rtol=1e-10, atol=1e-14
    )
    assert_close(
        moments.mean(args[0], 0.0),
        scipy.integrate.quad(
            lambda t: np.sqrt(q[0]) * t * np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi),
            0,
            np.inf,
            epsabs=1e-13,
        )[0],
    )


def quadrant_quadrature(f, q11, q12, q22):
    """E f(g₁, g₂) for a function that is smooth but at the axes: Gauss–Legendre in each quadrant."""
    nodes, weights = np.polynomial.legendre.leggauss(150)
    covariance, total = np.array([[q11, q12], [q12, q22]]), 0.0
    t, w = (nodes + 1) / 2, weights / 2
    for s1, s2 in itertools.product((1, -1), repeat=2):
        g1, g2 = np.meshgrid(s1 * t * 11 * np.sqrt(q11), s2 * t * 11 * np.sqrt(q22), indexing="ij")
        g = np.stack([g1, g2])
        density = np.exp(-0.5 * np.einsum("iab,ij,jab->ab", g, np.linalg.inv(covariance), g))
        density *= 121 * np.sqrt(q11 * q22) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
        total += np.einsum("a,b,ab", w, w, density * f(g1, g2))
    return total


@pytest.mark.parametrize("q", [q for q in COVARIANCES if abs(q[1]) < np.sqrt(q[0] * q[2])])
def test_moments_of_crrelu(q, x64):
    epsilon = 0.7  # so large that its square counts
    a, args = activations.crrelu(epsilon), arrays(q)
    f = lambda z: np.maximum(z, 0) + epsilon * z * np.exp(-(z**2) / 2)
    slope = lambda z: (z > 0) + epsilon * (1 - z**2) * np.exp(-(z**2) / 2)
    got = a.moments.covariance(*args, 0.0), a.moments.derivative(*args, 0.0)
    exact = (
        quadrant_quadrature(lambda x, y: f(x) * f(y), *q),
        quadrant_quadrature(lambda x, y: slope(x) * slope(y), *q),
    )
    np.testing.assert_allclose(got, exact, rtol=1e-10)
    assert_close(
        a.moments.mean(args[0], 0.0), ACTIVATIONS["relu"].moments.mean(args[0], 0.0)
    )  # the rest is odd


@pytest.mark.parametrize("q", COVARIANCES)
def test_moments_of_threshold(q, x64):
    moments, args = ACTIVATIONS["threshold"].moments, arrays(q)
    np.testing.assert_allclose(
        moments.covariance(*args, 0.0), ray_quadrature(0, *q), rtol=1e-10, atol=1e-14
    )
    assert (moments.derivative(*args, 0.0), moments.mean(args[0], 0.0)) == (0, 0.5)
    zero = jnp.zeros(())
    assert (moments.covariance(zero, zero, args[2], 0.0), moments.mean(zero, 0.0)) == (0, 0)


def test_a_normalized_sum_is_one_or_lost(dtype):
    z = jnp.array([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [0.3, -0.2, 1.0]])
    for name in ("exp", "res_exp", "cosh"):
        assert_close(
            jnp.sum(activations.normalize(ACTIVATIONS[name], z), axis=1), np.ones(3), dtype
        )
    assert np.isposinf(activations.normalize(ACTIVATIONS["sinh"], jnp.array([[1.0, -1.0]]))).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_gauss_hermite_agrees_with_closed_forms(name, x64):
    a = ACTIVATIONS[name]
    by_quadrature = activations.quadrature_moments(a.jet, order=64)
    q11, q12, q22 = (jnp.array(v) for v in zip(*COVARIANCES, strict=True))
    for which in ("covariance", "derivative"):
        exact, approximate = (
            getattr(m, which)(q11, q12, q22, 0.0) for m in (a.moments, by_quadrature)
        )
        assert_close(approximate, exact, rtol=1e-10)


@every
def test_a_shift_divides_every_moment_by_its_exponential(name, x64):
    moments, q = ACTIVATIONS[name].moments, arrays((0.7, 0.3, 0.9))
    calls: list[tuple[Callable[..., jax.Array], Sequence[jax.Array]]] = [
        (moments.mean, q[:1]),
        (moments.covariance, q),
        (moments.derivative, q),
    ]
    for moment, arguments in calls:
        assert_close(moment(*arguments, 0.8), moment(*arguments, 0.0) * np.exp(-0.8), rtol=1e-12)


@every
def test_growth_cancels_and_keeps_huge_arguments_finite(name, dtype):
    moments = ACTIVATIONS[name].moments
    q11, q12, q22 = jnp.asarray(0.7), jnp.asarray(0.3), jnp.asarray(0.9)
    s = moments.growth(q11) + moments.growth(q22)
    plain, scaled = moments.covariance(q11, q12, q22, 0.0), moments.covariance(q11, q12, q22, s)
    np.testing.assert_allclose(scaled, plain * np.exp(-float(s)), rtol=1e-5)
    big = jnp.asarray(1e4)
    assert np.isfinite(moments.covariance(big, jnp.asarray(1.0), big, 2 * moments.growth(big)))
    assert np.isfinite(moments.mean(big, moments.growth(big)))
    for q in (0.0, 1e4):  # saturated or exact, never NaN
        assert not np.isnan(moments.derivative(big, jnp.asarray(q), big, 0.0))


@every
def test_gradients_at_equal_points_are_finite(name, dtype):
    """Where θ = 0 the arc-cosine kernels have their trap: ∞ − ∞ in the chain rule."""
    moments = ACTIVATIONS[name].moments
    for f in (moments.covariance, moments.derivative):
        for q12 in (1.0, -1.0):
            grads = jax.grad(lambda a, b, c, f=f: f(a, b, c, 0.0), (0, 1, 2))(
                *(jnp.asarray(v) for v in (1.0, q12, 1.0))
            )
            assert np.isfinite(grads).all()


def test_relu_covariance_gradient_at_zero_angle(x64):
    """E[g₊²] = q/2 along q11 = q12 = q22 = q."""
    covariance = ACTIVATIONS["relu"].moments.covariance
    assert_close(jax.grad(lambda q: covariance(q, q, q, 0.0))(1.7), 0.5)


def test_any_function_becomes_an_activation(dtype):
    swish = activations.from_function(jax.nn.swish, "swish")
    z = jnp.linspace(-3.0, 3.0, 13)
    assert_close(swish.du(z), jax.vmap(jax.grad(jax.nn.swish))(z), dtype)
    assert_close(swish.d2u(z), jax.vmap(jax.grad(jax.grad(jax.nn.swish)))(z), dtype)
    reference = lambda z: z / (1 + np.exp(-z))
    exact = plane_quadrature(lambda x, y: reference(x) * reference(y), 0.7, 0.3, 0.9)
    q = arrays((0.7, 0.3, 0.9))
    np.testing.assert_allclose(swish.moments.covariance(*q, 0.0), exact, rtol=1e-5)


def test_infinite_logits_have_a_share_or_make_the_row_infinite(dtype):
    """NaN only where z is: softmax of −∞ is zero, a sum that is infinite is outside of the domain."""
    z = jnp.array(
        [[np.inf, 0.0], [-np.inf, 0.0], [np.inf, -np.inf], [-np.inf, -np.inf], [np.nan, 0.0]]
    )
    for name in ACTIVATIONS:
        shares = activations.normalize(name, z)
        assert np.isnan(shares[4]).all()
        assert not np.isnan(shares[:4]).any()
    exp = activations.normalize("exp", z)
    assert exp[1].tolist() == [0, 1]
    assert np.isposinf(exp[np.array([0, 2, 3])]).all()


@every
def test_derivatives_have_limits(name):
    """At ±∞, where e^{−z²} is zero and z infinite."""
    for derivative in (ACTIVATIONS[name].u, ACTIVATIONS[name].du, ACTIVATIONS[name].d2u):
        assert not np.isnan(derivative(jnp.array([-np.inf, np.inf]))).any()


@pytest.mark.parametrize(
    ("name", "want"),
    [("exp", (1.0, 1.0)), ("res_exp", (1.0, 2.0)), ("sinh", (0.0, 1.0)), ("erf", (0, -8 / np.pi))],
)
def test_derivatives_at_variance_zero_are_not_halved(name, want):
    """Of the kernels at q11 = q22 = q, q12 = 0, in q: one-sided, as q is not negative."""
    for index, slope in enumerate(want):
        assert_close(
            jax.grad(lambda q, i=index: ACTIVATIONS[name].limit(q, 0.0 * q, q, False)[i])(0.0),
            slope,
            rtol=1e-6,
        )
