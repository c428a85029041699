"""The infinite-width limit of two-layer networks: against quadrature and neural_tangents, at near
points, and in any unit.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sweep_moments
from helpers import assert_close, cache_size, points, slow_except

import softntk as sn
from softntk.networks import two_layer


def quadrature_kernels(family, sigma, x, y):
    """(NNGP, NTK without readout) at two points from E over a plane of Gaussian logits, normaliser
    replaced by its mean.
    """
    t = np.linspace(-12, 12, 1601)
    w = np.exp(-(t**2) / 2)
    w /= w.sum()
    u = {"res_softmax": lambda z: np.exp(z) + z}.get(family, np.exp)
    du = {"res_softmax": lambda z: np.exp(z) + 1}.get(family, np.exp)
    q11, q12, q22 = sigma**2 * x @ x, sigma**2 * x @ y, sigma**2 * y @ y
    g1 = np.sqrt(q11) * t[:, None] + 0 * t
    g2 = q12 / np.sqrt(q11) * t[:, None] + np.sqrt(max(0.0, q22 - q12**2 / q11)) * t
    mean = lambda f: np.einsum("a,b,ab", w, w, f)
    norm = mean(u(g1)) * mean(u(g2)) if "softmax" in family else 1.0
    return mean(u(g1) * u(g2)) / norm, x @ y * mean(du(g1) * du(g2)) / norm


@pytest.mark.parametrize("family", ["softmax", "res_softmax", "exp"])
@pytest.mark.parametrize("bias", slow_except([False, True], True))
def test_infinite_kernels_equal_quadrature(family, bias, x64):
    x1, x2 = points(0, 4, 3), points(1, 3, 3)
    net = two_layer(family, width=8, sigma=0.8, bias=bias)
    for other in (None, x2):
        kernels = net.kernel_fn(x1, other)
        lift = lambda x: (
            np.concatenate([x, np.ones((len(x), 1))], axis=1) if bias else np.asarray(x)
        )
        pairs = [
            [quadrature_kernels(family, 0.8, p, q) for q in lift(x1 if other is None else other)]
            for p in lift(x1)
        ]
        assert_close(kernels.nngp, np.array(pairs)[..., 0])
        assert_close(kernels.ntk, np.array(pairs)[..., 1])


def test_relu_kernels_equal_neural_tangents_and_are_exact_on_the_diagonal(x64):
    """The relu oracle by quadrature is in test_activations; here the kernel of the whole network."""
    x = points(0, 5, 3)
    ours = two_layer("relu", width=8, sigma=0.7).kernel_fn(x)
    squares = np.sum(np.asarray(x) ** 2, axis=1)
    np.testing.assert_array_equal(np.diag(ours.ntk), squares / 2)
    assert_close(np.diag(ours.nngp), 0.49 * squares / 2, rtol=1e-15)


RELU = two_layer("relu", width=2)


def exact_relu(a, b):
    """NTK of relu in float64, the angle by differences of unit vectors."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    norms_a, norms_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    u, v = a / norms_a[..., None], b / norms_b[..., None]
    theta = 2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    return norms_a * norms_b * np.cos(theta) * (np.pi - theta) / (2 * np.pi)


# --- near points
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_nearly_equal_and_nearly_opposite_points(bias):
    """A few copies a row (picked out one by one), and more than that (all differences)."""
    noise = np.random.default_rng(0).normal(size=(60, 3))
    near = np.asarray([1.0, 0.3, 0.2]) + noise * 10.0 ** -np.arange(60)[:, None].clip(0, 7)
    x = jnp.asarray(near * np.where(np.arange(60) % 3, 1, -1)[:, None], jnp.float32)
    net = two_layer("relu", width=2, bias=bias)
    lift = lambda x: np.concatenate([x, np.ones((len(x), 1))], 1) if bias else x
    for count in (4, 60):
        for other in (None, x[:count]):
            want = exact_relu(lift(x[:count]), lift(x[:count]))
            assert_close(net.kernel_fn(x[:count], other, "ntk"), want, rtol=2e-6)


def test_crrelu_at_near_points():
    """The slope is that of an angle of 2e-4, which products of float32 do not know."""
    x = np.asarray([0.6, 0.8, 0.1], np.float32)
    y = x + np.asarray([1e-4, -2e-4, 1e-4], np.float32)
    q11, q12, q22 = (mpmath.fdot(a.tolist(), b.tolist()) for a, b in ((x, x), (x, y), (y, y)))
    kernel = two_layer(activation="crrelu", width=2).kernel_fn(
        jnp.asarray(x[None]), jnp.asarray(y[None]), "ntk"
    )
    assert_close(kernel, [[q12 * sweep_moments.crrelu_moments(q11, q12, q22)[1].value]], rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "threshold", "erf", "crrelu"])
def test_equal_points_in_two_sets_have_the_kernel_of_one(activation):
    net = two_layer(activation=activation, width=2, sigma=8.0)
    x = points(0, 20, 300, "float32")
    for one, two in zip(net.kernel_fn(x), net.kernel_fn(x, x + 0.0), strict=True):
        assert_close(two, one, rtol=2e-6)
        assert_close(np.diag(two), np.diag(one), rtol=2e-6)


def test_near_points_under_transformations():
    x = jnp.asarray([[1.0, 0.3], [1.0, 0.3001], [-1.0, -0.3]])
    kernel = lambda a, b: RELU.kernel_fn(a, b, "ntk")
    want = exact_relu(x, x)
    by_pairs = jax.vmap(jax.vmap(lambda a, b: kernel(a[None], b[None])[0, 0], (None, 0)), (0, None))
    assert_close(by_pairs(x, x), want, rtol=2e-6)
    assert_close(jax.jit(kernel)(x, x), want, rtol=2e-6)
    for gradient in jax.grad(lambda a, b: jnp.sum(kernel(a, b)), (0, 1))(x, x):
        assert np.isfinite(gradient).all()
    with jax.enable_x64(True):
        far = points(0, 3, 2)
        gradient = jax.grad(lambda a: jnp.sum(kernel(a, far[:2]) ** 2))(far)
        differences = [
            (
                jnp.sum(kernel(far.at[i, j].add(1e-6), far[:2]) ** 2)
                - jnp.sum(kernel(far.at[i, j].add(-1e-6), far[:2]) ** 2)
            )
            / 2e-6
            for i in range(3)
            for j in range(2)
        ]
        assert_close(gradient.ravel(), differences, rtol=1e-6)


def test_equal_networks_share_programs():
    from softntk._two_layer import infinite_width

    x = points(0, 5, 7, "float32")
    two_layer("softmax", width=4, sigma=0.3).kernel_fn(x)
    before = cache_size(infinite_width._kernels)
    two_layer("softmax", width=8, sigma=0.7).kernel_fn(x)
    assert cache_size(infinite_width._kernels) == before
    assert (
        two_layer("relu", width=4)
        == two_layer("relu", width=4)
        != two_layer("relu", width=4, sigma=2.0)
    )
    assert hash(two_layer("relu", width=4)) == hash(two_layer("relu", width=4))


@pytest.mark.parametrize("activation", ["relu", "crrelu"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("unit1", "unit2"),
    [(1e-25, 1e-25), (1e-19, 1e-19), (1e-25, 1.0), (1e25, 1e-20), (1e10, 1e10), (1e-3, 1e3)],
)
def test_kernels_in_float32_whatever_the_unit(activation, normalize, unit1, unit2, x64):
    """As in float64, whose range is wide enough for the squares of the points; the exact point is
    zero nowhere.
    """
    net = sn.networks.two_layer(activation=activation, width=2, normalize=normalize, sigma=1.5)
    rng = np.random.default_rng(0)
    x1, x2 = (
        (unit * rng.normal(size=(n, 4))).astype(np.float32) for unit, n in ((unit1, 4), (unit2, 3))
    )
    limits = np.finfo(np.float32)
    for kernel, want in zip(
        net.kernel_fn(x1, x2), net.kernel_fn(x1.astype(float), x2.astype(float)), strict=True
    ):
        want = np.clip(want, -limits.max, limits.max)
        np.testing.assert_allclose(
            kernel, want, rtol=1e-5, atol=1e-6 * np.max(np.abs(want)) + 8 * limits.tiny
        )


def test_near_zero_crrelu_is_relu_with_another_slope(x64):
    """u(z) = max(0, z) + ε z + O(z³): the normalized limit of small points is that of a homogeneous
    function.
    """
    near = lambda x: sn.networks.two_layer(
        activation=sn.activations.crrelu(0.3), width=2, normalize=True
    ).kernel_fn(x, None)
    points = np.random.default_rng(1).normal(size=(3, 2))
    for unit in (1e-12, 1e-25, 1e-30):
        for kernel, want in zip(
            near((unit * points).astype(np.float32)), near(1e-9 * points), strict=True
        ):
            np.testing.assert_allclose(kernel, want, rtol=2e-5, atol=1e-6)
