"""Spectra by Lanczos against dense decompositions in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tools import assert_close, first, points

from softntk import ntk
from softntk.networks import two_layer

NET = two_layer("softmax", width=2)


def kernels(kind, dtype, n=120):
    """An operator and the matrix it stands for, in float64 from the same points."""
    x = np.array(points(0, n, 6, dtype))
    if kind == "two equal rows":
        x[1] = x[0]
    if kind == "rank deficient":
        x[:, 2:] = 0
    kernel_fn = (lambda a, b: a @ b.T) if kind == "linear" else lambda a, b: NET.kernel_fn(a, b, "ntk")
    with jax.enable_x64(True):
        matrix = np.asarray(kernel_fn(*[jnp.asarray(x, "float64")] * 2))
    return ntk.kernel_operator(kernel_fn, x, block_size=50), matrix


KINDS = ["generic", "two equal rows", "rank deficient", "linear"]


@pytest.mark.parametrize(
    ("dtype", "kind", "steps"),
    first(
        [
            (dtype, *case)
            for dtype, case in itertools.product(["float32", "float64"], [("generic", 12), *((k, 120) for k in KINDS)])
        ],
        ("float32", "generic", 12),
        ("float32", "two equal rows", 120),
        ("float64", "generic", 120),
        ("float64", "linear", 120),
    ),
    indirect=["dtype"],
)
def test_ends_are_within_their_bounds(kind, steps, dtype):
    op, matrix = kernels(kind, dtype)
    desired = np.linalg.eigvalsh(matrix)
    for ends in (ntk.extreme_eigenvalues(op, steps=steps, dense_size=1), ntk.extreme_eigenvalues(op)):
        smallest, largest = ends
        assert abs(float(smallest) - desired[0]) <= ends.smallest_error
        assert abs(float(largest) - desired[-1]) <= ends.largest_error
        assert not ends.resolved or desired[0] > 0
    assert bool(ends.resolved) == (kind == "generic")
    if steps == 120:
        full = ntk.extreme_eigenvalues(op, steps=steps, dense_size=1)
        assert full.largest_error < 1e-4 * desired[-1]
        assert bool(full.resolved) == (kind == "generic")


def test_the_bound_is_not_idle(x64):
    """With few steps the lower end is not found, and the bound covers what is missing; it closes as the steps grow."""
    op, matrix = kernels("generic", "float64")
    desired, errors = np.linalg.eigvalsh(matrix), []
    for steps in (8, 30, 60):
        ends = ntk.extreme_eigenvalues(op, steps=steps, dense_size=1)
        assert 1e-10 < float(ends.smallest) - desired[0] < ends.smallest_error
        errors.append(float(ends.smallest_error) / desired[0])
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_a_matrix(dtype):
    root = np.random.default_rng(0).normal(size=(12, 12)).astype(dtype)
    gram = (root @ root.T).astype(dtype)
    desired = np.linalg.eigvalsh(gram.astype(np.float64))
    for call in (ntk.extreme_eigenvalues, jax.jit(ntk.extreme_eigenvalues)):
        smallest, largest = call(gram)
        assert abs(float(smallest) - desired[0]) < (1e-4 if dtype == "float32" else 1e-12) * desired[-1]
        assert_close(largest, desired[-1], dtype)
    full = gram.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3)
    assert_close(ntk.extreme_eigenvalues(full)[1], desired[-1], dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("generic", "float64"), ("linear", "float32")], indirect=["dtype"])
def test_density_of_states(kind, dtype):
    op, matrix = kernels(kind, dtype)
    eigenvalues = np.linalg.eigvalsh(matrix)
    exact, probed = ntk.spectral_density(op), ntk.spectral_density(op, dense_size=1, steps=20, probes=64)
    ridge = 0.3
    for function in (lambda t: t, lambda t: t**2, lambda t: t / (t + ridge)):
        desired = np.mean(function(eigenvalues))
        assert_close(exact.mean(function), desired, rtol=1e-4 if dtype == "float32" else 1e-10)
        assert exact.standard_error(function) == 0
        # Five standard errors: 64 probes, one seed.
        assert abs(float(probed.mean(function)) - desired) < 5 * probed.standard_error(function) + 1e-4 * desired
    levels = np.quantile(eigenvalues, [0.1, 0.5, 0.9]) + 1e-3
    assert_close(exact.cumulative(levels), [np.mean(eigenvalues <= level) for level in levels], rtol=1e-5)
    grid = np.linspace(-5, 1.1 * eigenvalues[-1] + 5, 2001)
    for measure in (exact, probed):
        assert_close(np.trapezoid(measure.density(grid, 0.5), grid), 1.0, rtol=1e-3)
    dimensions = ntk.effective_dimension(exact, np.array([0.0, ridge]))
    assert_close(dimensions[1], np.sum(eigenvalues / (eigenvalues + ridge)), rtol=1e-4 if dtype == "float32" else 1e-10)
    assert_close(ntk.effective_dimension(op, ridge), dimensions[1], rtol=1e-6)
    assert jax.tree.leaves(jax.jit(ntk.spectral_density)(matrix.astype(dtype)))


@pytest.mark.parametrize("dtype", first(["float32", "float64"], "float64"), indirect=True)
def test_quadrature_of_the_targets_is_exact_for_polynomials(dtype):
    op, matrix = kernels("generic", dtype)
    y = np.array(points(3, 120, 3, dtype))
    y[:, 2] = 0
    exact, probed = ntk.target_alignment(op, y), ntk.target_alignment(op, y, steps=4, dense_size=1)
    for power in range(8):
        image = np.asarray(y, float)
        for _ in range(power):
            image = matrix @ image
        desired = np.sum(y * image, axis=0) / np.maximum(np.sum(np.asarray(y, float) ** 2, axis=0), 1e-300)
        for measure in (exact, probed):
            assert_close(measure.rows(lambda t, p=power: t**p), desired, rtol=1e-3 if dtype == "float32" else 1e-9)
    values, vectors = np.linalg.eigh(matrix)
    shares = (vectors.T @ y[:, 0]) ** 2 / np.sum(y[:, 0] ** 2)
    assert_close(exact.rows(lambda t: t > values[60])[0], np.sum(shares[61:]), rtol=0.05)


def test_all_outputs_at_once(x64):
    net = two_layer("softmax", width=32, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x, y = points(1, 20, 4), points(2, 20, 2)
    op, gram = ntk.operator(net, params, x), ntk.empirical(net, params, x)
    seen = [ntk.target_alignment(g, y, steps=40, dense_size=size).rows(jnp.sqrt) for g, size in ((op, 1), (op, 99), (gram, 99))]
    assert_close(seen[0], seen[2], rtol=1e-6)
    assert_close(seen[1], seen[2], rtol=1e-6)
    for one, other in zip(ntk.extreme_eigenvalues(op, dense_size=1), ntk.extreme_eigenvalues(gram), strict=True):
        assert_close(one, other, rtol=1e-8)


def test_products_that_are_not_finite_are_infinite():
    op = ntk.kernel_operator(lambda a, b: jnp.exp(100 * (a @ b.T)), points(0, 9, 2, "float32") * 3)
    for ends in (ntk.extreme_eigenvalues(op, dense_size=1), ntk.extreme_eigenvalues(op)):
        assert np.isposinf([*ends, ends.smallest_error]).all()
        assert not ends.resolved


def test_bad_input(untyped):
    op, _ = kernels("generic", "float32", n=10)
    y = np.ones((10, 1), np.float32)
    for call, message in [
        (lambda: ntk.extreme_eigenvalues(np.array([[1.0, 2.0], [0.0, 1.0]], np.float32)), "gram must be symmetric"),
        (lambda: ntk.extreme_eigenvalues(np.ones((3,), np.float32)), "gram must have shape"),
        (lambda: ntk.extreme_eigenvalues(op, steps=0), "steps must be a positive integer, got 0"),
        (lambda: ntk.spectral_density(op, probes=0), "probes must be a positive integer, got 0"),
        (lambda: ntk.target_alignment(op, y[:9]), r"y must have shape \[n, k\]"),
        (lambda: ntk.target_alignment(op, y * np.nan), "y must be finite"),
        (lambda: ntk.target_alignment(op, y.astype(int)), "y must be a floating-point array"),
        (lambda: ntk.effective_dimension(op, -1.0), "ridge must not be negative, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
