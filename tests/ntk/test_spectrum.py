"""Spectra by Lanczos against dense decompositions in NumPy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import assert_close, points, slow_except
from scipy import stats

from softntk import ntk
from softntk._linalg import lanczos
from softntk.networks import two_layer

NET = two_layer("softmax", width=2)


def kernels(kind, dtype, n=120):
    """An operator and the matrix it stands for, in float64 from the same points."""
    x = np.array(points(0, n, 6, dtype))
    if kind == "two equal rows":
        x[1] = x[0]
    if kind == "rank deficient":
        x[:, 2:] = 0
    kernel_fn = (
        (lambda a, b: a @ b.T) if kind == "linear" else lambda a, b: NET.kernel_fn(a, b, "ntk")
    )
    with jax.enable_x64(True):
        matrix = np.asarray(kernel_fn(*[jnp.asarray(x, "float64")] * 2))
    return ntk.kernel_operator(kernel_fn, x, block_size=50), matrix


KINDS = ["generic", "two equal rows", "rank deficient", "linear"]


@pytest.mark.parametrize(
    ("dtype", "kind", "steps"),
    slow_except(
        [
            (dtype, *case)
            for dtype, case in itertools.product(
                ["float32", "float64"], [("generic", 12), *((k, 120) for k in KINDS)]
            )
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
    for ends in (
        ntk.extreme_eigenvalues(op, steps=steps, dense_size=1),
        ntk.extreme_eigenvalues(op),
    ):
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
    """With few steps the lower end is not found, and the bound covers what is missing; it closes as
    the steps grow.
    """
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
        assert (
            abs(float(smallest) - desired[0])
            < (1e-4 if dtype == "float32" else 1e-12) * desired[-1]
        )
        assert_close(largest, desired[-1], dtype)
    full = gram.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3)
    assert_close(ntk.extreme_eigenvalues(full)[1], desired[-1], dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"), [("generic", "float64"), ("linear", "float32")], indirect=["dtype"]
)
def test_density_of_states(kind, dtype):
    op, matrix = kernels(kind, dtype)
    eigenvalues = np.linalg.eigvalsh(matrix)
    exact, probed = (
        ntk.spectral_density(op),
        ntk.spectral_density(op, dense_size=1, steps=20, probes=64),
    )
    ridge = 0.3
    for function in (lambda t: t, lambda t: t**2, lambda t: t / (t + ridge)):
        desired = np.mean(function(eigenvalues))
        assert_close(exact.mean(function), desired, rtol=1e-4 if dtype == "float32" else 1e-10)
        assert exact.standard_error(function) == 0
        # Five standard errors: 64 probes, one seed.
        assert (
            abs(float(probed.mean(function)) - desired)
            < 5 * probed.standard_error(function) + 1e-4 * desired
        )
    levels = np.quantile(eigenvalues, [0.1, 0.5, 0.9]) + 1e-3
    assert_close(
        exact.cumulative(levels), [np.mean(eigenvalues <= level) for level in levels], rtol=1e-5
    )
    grid = np.linspace(-5, 1.1 * eigenvalues[-1] + 5, 2001)
    for measure in (exact, probed):
        assert_close(np.trapezoid(measure.density(grid, 0.5), grid), 1.0, rtol=1e-3)
    dimensions = ntk.effective_dimension(exact, np.array([0.0, ridge]))
    assert_close(
        dimensions[1],
        np.sum(eigenvalues / (eigenvalues + ridge)),
        rtol=1e-4 if dtype == "float32" else 1e-10,
    )
    assert_close(ntk.effective_dimension(op, ridge), dimensions[1], rtol=1e-6)
    assert jax.tree.leaves(jax.jit(ntk.spectral_density)(matrix.astype(dtype)))


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float64"), indirect=True)
def test_quadrature_of_the_targets_is_exact_for_polynomials(dtype):
    op, matrix = kernels("generic", dtype)
    y = np.array(points(3, 120, 3, dtype))
    y[:, 2] = 0
    exact, probed = ntk.target_alignment(op, y), ntk.target_alignment(op, y, steps=4, dense_size=1)
    for power in range(8):
        image = np.asarray(y, float)
        for _ in range(power):
            image = matrix @ image
        desired = np.sum(y * image, axis=0) / np.maximum(
            np.sum(np.asarray(y, float) ** 2, axis=0), 1e-300
        )
        for measure in (exact, probed):
            assert_close(
                measure.rows(lambda t, p=power: t**p),
                desired,
                rtol=1e-3 if dtype == "float32" else 1e-9,
            )
    values, vectors = np.linalg.eigh(matrix)
    shares = (vectors.T @ y[:, 0]) ** 2 / np.sum(y[:, 0] ** 2)
    assert_close(exact.rows(lambda t: t > values[60])[0], np.sum(shares[61:]), rtol=0.05)


def test_all_outputs_at_once(x64):
    net = two_layer("softmax", width=32, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x, y = points(1, 20, 4), points(2, 20, 2)
    op, gram = ntk.operator(net, params, x), ntk.empirical(net, params, x)
    seen = [
        ntk.target_alignment(g, y, steps=40, dense_size=size).rows(jnp.sqrt)
        for g, size in ((op, 1), (op, 99), (gram, 99))
    ]
    assert_close(seen[0], seen[2], rtol=1e-6)
    assert_close(seen[1], seen[2], rtol=1e-6)
    for one, other in zip(
        ntk.extreme_eigenvalues(op, dense_size=1), ntk.extreme_eigenvalues(gram), strict=True
    ):
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
        (
            lambda: ntk.extreme_eigenvalues(np.array([[1.0, 2.0], [0.0, 1.0]], np.float32)),
            "gram must be symmetric",
        ),
        (lambda: ntk.extreme_eigenvalues(np.ones((3,), np.float32)), "gram must have shape"),
        (lambda: ntk.extreme_eigenvalues(op, steps=0), "steps must be a positive integer, got 0"),
        (lambda: ntk.spectral_density(op, probes=0), "probes must be a positive integer, got 0"),
        (lambda: ntk.target_alignment(op, y[:9]), r"y must have shape \[n, k\]"),
        (
            lambda: ntk.target_alignment(np.ones((10, 10, 2, 2)), np.ones((10, 3))),
            r"y must have shape \[n, k\]",
        ),
        (lambda: ntk.target_alignment(op, y * np.nan), "y must be finite"),
        (lambda: ntk.target_alignment(op, y.astype(int)), "y must be a floating-point array"),
        (lambda: ntk.effective_dimension(op, -1.0), "ridge must not be negative, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("unit", [1e-30, 1e-25, 1e25, 1e30])
def test_units(unit):
    """Lanczos, quadrature and alignment of c K: eigenvalues times c, the same weights."""
    x, y = np.asarray(points(0, 30, 5, "float32")), np.asarray(points(1, 30, 1, "float32"))
    op = ntk.kernel_operator(lambda a, b: a @ b.T, x)
    scaled = ntk.kernel_operator(lambda a, b: np.float32(unit) * (a @ b.T), x)
    ends, others = (ntk.extreme_eigenvalues(k, steps=9, dense_size=1) for k in (op, scaled))
    for one, other in zip(jax.tree.leaves(ends), jax.tree.leaves(others), strict=True):
        assert abs(float(other) / unit - float(one)) < 3e-4 * float(ends.largest)
    for call in (
        ntk.spectral_density,
        lambda op, **options: ntk.target_alignment(op, y, **options),
    ):
        one, other = call(op, steps=4, dense_size=1), call(scaled, steps=4, dense_size=1)
        assert_close(np.asarray(other.nodes, float) / unit, one.nodes, rtol=1e-4)
        assert_close(other.weights, one.weights, rtol=1e-3)
        dimension = ntk.effective_dimension(other, np.float32(0.3 * unit))
        assert_close(dimension, ntk.effective_dimension(one, 0.3), rtol=1e-4)
    large = ntk.target_alignment(op, np.float32(unit) * y)
    assert_close(large.weights, ntk.target_alignment(op, y).weights, rtol=1e-4)


@pytest.mark.parametrize("dense_size", [0, 100])
def test_kernels_of_zeros_and_of_one_point(dense_size):
    dtype = "float32"
    zero = ntk.kernel_operator(lambda a, b: 0 * (a @ b.T), np.ones((4, 2), dtype))
    one = ntk.kernel_operator(lambda a, b: a @ b.T, np.ones((1, 2), dtype))
    ends = ntk.extreme_eigenvalues(zero, dense_size=dense_size)
    assert_close(np.asarray([*ends]), [0, 0])
    assert not ends.resolved
    assert_close(np.asarray([*ntk.extreme_eigenvalues(one, dense_size=dense_size)]), [2, 2], dtype)
    for op, node in ((zero, 0), (one, 2)):
        measure = ntk.spectral_density(op, dense_size=dense_size)
        assert_close(measure.mean(lambda t: t), node, dtype)
        assert_close(measure.cumulative(np.array([node + 1e-3])), [1], dtype)
        y = np.ones((op.shape[0], 1), dtype)
        assert_close(
            ntk.target_alignment(op, y, dense_size=dense_size).rows(lambda t: t), [node], dtype
        )
        assert_close(
            ntk.effective_dimension(measure, np.array([0.0, 2.0])), [node / 2, node / 4], dtype
        )


def test_effective_dimension_at_the_edges():
    gram = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    assert_close(
        ntk.effective_dimension(gram, np.array([0.0, 1.0, 1e38, 1e-38])),
        [2, 7 / 6, 0, 2],
        rtol=1e-6,
    )
    assert_close(ntk.effective_dimension(1.5e38 * gram, 3e38), 0.5 + 1 / 3, rtol=1e-6)
    slope = jax.grad(lambda ridge: ntk.effective_dimension(gram, ridge))(1.0)
    assert_close(slope, -(1 / 4 + 2 / 9), rtol=1e-5)


def test_density_is_of_a_positive_bandwidth(untyped):
    measure = ntk.spectral_density(jnp.diag(jnp.array([1.0, 3.0])))
    grid = np.array([0.5, 1.0, 2.9], np.float32)
    desired = (
        sum(np.exp(-0.5 * ((grid - t) / 0.2) ** 2) for t in (1, 3)) / (0.2 * np.sqrt(2 * np.pi)) / 2
    )
    assert_close(measure.density(grid, 0.2), desired, rtol=1e-5)
    assert_close(measure.density(list(map(float, grid)), np.float32(0.2)), desired, rtol=1e-5)
    assert np.shape(measure.density(1.0, 0.2)) == ()
    bandwidths: tuple[Any, ...] = (0.0, -1.0, np.nan, np.inf, None, "1", True, 1e-60)
    for bandwidth in bandwidths:
        with pytest.raises(ValueError, match="bandwidth"):
            measure.density(grid, bandwidth)
    wrong_levels: tuple[Any, ...] = (np.nan, np.array([1.0, np.nan]), None, "1", np.array([1j]))
    for levels in wrong_levels:
        with pytest.raises(ValueError, match="levels"):
            measure.density(levels, 0.2)
        with pytest.raises(ValueError, match="levels"):
            measure.cumulative(levels)
    assert float(measure.cumulative(np.inf)) == 1
    slope = jax.grad(lambda width: measure.density(grid, width)[0])(0.2)
    assert np.isfinite(slope)


def test_targets_without_an_axis_of_outputs():
    gram, y = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([3.0, 4.0])
    assert_close(ntk.target_alignment(gram, y).weights, [[0.36, 0.64]], rtol=1e-6)
    assert_close(ntk.target_alignment(gram, 1e20 * y).weights, [[0.36, 0.64]], rtol=1e-6)
    np.testing.assert_array_equal(ntk.target_alignment(gram, 0 * y).weights, 0)


GRAM = np.eye(3, dtype=np.float32)
BAD_GRAMS = [
    None,
    "K",
    {},
    1.0,
    GRAM * 1j,
    GRAM.astype(bool),
    GRAM.astype(np.float16),
    np.diag([1e39, 1.0]),
    lambda a, b: a,
]


@pytest.mark.parametrize("gram", BAD_GRAMS)
def test_kernels_that_are_none_are_named(gram, untyped):
    for call in (
        ntk.extreme_eigenvalues,
        ntk.spectral_density,
        lambda g: ntk.effective_dimension(g, 1.0),
    ):
        with pytest.raises(ValueError, match="op"):
            call(gram)
    with pytest.raises(ValueError, match="op"):
        ntk.target_alignment(gram, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [None, "1", 1.5, True, -1]),
        ("dense_size", [None, "1", 1.5, True, -1]),
        ("key", [0, "key", np.ones(2), 1.0]),
        ("probes", [None, 1.5, True]),
        ("ridge", [None, "1", 1j, np.nan, True, -1.0, [-1.0], np.array([1j])]),
    ],
)
def test_wrong_options_are_named(name, values, untyped):
    calls: list[Any] = [ntk.effective_dimension] if name == "ridge" else [ntk.spectral_density]
    if name in ("steps", "dense_size", "key"):
        calls.append(ntk.extreme_eigenvalues)
    for value in values:
        for call in calls:
            with pytest.raises(ValueError, match=name):
                call(GRAM, **{name: value})
    with pytest.raises(ValueError, match="options"):
        ntk.effective_dimension(ntk.spectral_density(GRAM), 1.0, steps=3)
    with pytest.raises(ValueError, match="function"):
        ntk.spectral_density(GRAM).mean(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("sign", [-1, 1])
def test_beyond_the_nodes_an_eigenvalue_is_where_the_polynomial_says(sign, x64):
    """p(λ) ~ Π(λ − θ_i), with ‖p(K)v‖ = 1, is the inverse of the component at the end of what is
    possible.
    """
    values = np.linspace(-1.0, 2.0, 30)
    found = lanczos.lanczos(lx.DiagonalLinearOperator(jnp.asarray(values)), jnp.ones(30), 5)
    distance = float(lanczos.distance_beyond(found, sign, np.log(30**-0.5)))
    nodes = np.asarray(found.nodes)
    outermost = nodes[-1] if sign > 0 else nodes[0]
    at = lambda x: np.prod(np.abs(x - nodes[:, None]), axis=0)
    p = at(outermost + sign * distance).item() / np.linalg.norm(at(values) * 30**-0.5)
    assert p == pytest.approx(30**0.5, rel=1e-9)
    assert sign * (outermost + sign * distance) >= sign * values[-1 if sign > 0 else 0]


@pytest.mark.parametrize("huge", [10**400, -(10**400), np.float64(1e39)])
def test_levels_beyond_the_precision_are_named(huge, untyped):
    measure = ntk.spectral_density(jnp.eye(2))
    for function in (measure.cumulative, lambda levels: measure.density(levels, 0.1)):
        with pytest.raises(ValueError, match="levels must be"):
            function(huge)
    with pytest.raises(ValueError, match="bandwidth must"):
        measure.density(1.0, huge)


def test_an_exhausted_krylov_space_is_cut_off_and_changes_no_bound(x64):
    """Three eigenvalues are found in three steps; more steps say the same."""
    values = np.repeat([0.5, 1.0, 3.0], [20, 15, 5])
    op = lx.DiagonalLinearOperator(jnp.asarray(values))
    start = jnp.asarray(np.random.default_rng(0).normal(size=40))
    short, long = (lanczos.lanczos(op, start, steps) for steps in (3, 9))
    assert int(short.valid_steps) == int(long.valid_steps) == 3
    assert_close(np.unique(np.round(np.asarray(long.nodes)[[0, -1]], 9)), [0.5, 3.0])
    assert not np.asarray(long.basis[3:]).any()
    for sign in (-1, 1):
        distances = [
            lanczos.distance_beyond(
                found._replace(log_beta_sum=short.log_beta_sum), sign, np.log(1e-6)
            )
            for found in (short, long)
        ]
        assert_close(distances[1], distances[0], rtol=1e-6)


def test_density_is_a_sum_of_gaussians(x64):
    values = np.array([0.5, 1.0, 3.0])
    measure = ntk.spectral_density(jnp.diag(jnp.asarray(values)))
    levels = np.array([0.0, 0.7, 2.9])
    desired = stats.norm.pdf(levels[:, None], values[None], 0.4).mean(axis=1)
    assert_close(measure.density(levels, 0.4), desired, rtol=1e-12)
