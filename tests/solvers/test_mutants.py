"""Single lines of the second-order steps that no other test would miss: counts, sizes and levels."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import softntk as sn
from softntk._linalg import scaled_cholesky
from softntk.solvers._minimise import default_transform as default
from softntk.solvers._minimise import host_chunks
from softntk.solvers._newton import globalisation, krylov_steps, row_sampler
from softntk.solvers._newton.model import DiagonalModel

minimise = sn.solvers.minimise


@pytest.mark.parametrize(
    ("values", "products"), [(np.arange(1.0, 21.0), 20), (-np.arange(1.0, 21.0), 9)]
)
def test_products_end_soon_after_the_first_negative_curvature(values, products, x64):
    """All of them where the curvature is convex; else the first and eight more."""
    H = jnp.diag(jnp.asarray(values))
    g = jnp.asarray(np.random.default_rng(0).normal(size=20))
    space = krylov_steps.krylov_model(lambda v: H @ v, None, g, jnp.ones(()), 0.0, 20)
    assert int(space.products) == products


@pytest.mark.parametrize(("least", "negative"), [(-1e-3, True), (-1e-14, False), (1e-3, False)])
def test_curvature_is_negative_beyond_the_rounding_of_the_largest(least, negative, x64):
    """4 d ε ‖H‖ = 7e-14 · 4."""
    values = jnp.asarray([least, 1.0, 2.0, 4.0])
    space = krylov_steps.krylov_model(lambda v: values * v, None, jnp.ones(4), jnp.ones(()), 0.0, 4)
    assert bool(space.model.is_indefinite) == negative


@pytest.mark.parametrize(
    ("ratio", "size", "wanted"),
    [
        (0.9, 2.0, "longer"),  # the model is good, and the radius is what held the step back
        (0.9, 1.0, "same"),
        (0.5, 2.0, "same"),
        (0.1, 2.0, "shorter"),
    ],
)
def test_the_trust_radius_grows_only_where_it_held_a_good_step_back(ratio, size, wanted):
    radius = float(globalisation._next_radius(*map(jnp.asarray, (2.0, ratio, size, 1))))
    assert {"longer": radius > 2, "same": radius == 2, "shorter": radius < size}[wanted]


def test_a_first_step_is_no_longer_than_the_residual(x64):
    """|slope|/μ ≤ |slope| where the loss is zero: 0.15 is raised fourfold until μ ≥ 1."""
    model = DiagonalModel(jnp.asarray([1e-12]), jnp.eye(1), jnp.asarray([3.0]), jnp.asarray(False))
    assert float(
        globalisation._first_mu(model, jnp.asarray(0.15), jnp.asarray(0.0))
    ) == pytest.approx(2.4)


def test_the_measured_contraction_is_that_of_the_distances(x64):
    """Of steps that halve the distance, all of them shorter than one."""
    p = sn.regression.softmax(jnp.eye(2), jnp.full(2, 0.5), weights=1.0)
    path = np.outer([0.8, 0.4, 0.2, 0.1, 0.0], [0.6, 0.8])
    found = sn.solvers.contraction(p, path, np.zeros(4))
    np.testing.assert_allclose(found.measured, [0.5, 0.5, 0.5, 0.0], rtol=1e-12)
    np.testing.assert_allclose(found.distance, [0.8, 0.4, 0.2, 0.1, 0.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "columns", "kind", "size"),
    [
        (120, 3, jnp.asarray, 30),
        (119, 3, jnp.asarray, None),
        (200, 2, jnp.asarray, None),
        (40, 2, sparse.BCOO.fromdense, 20),
        (39, 2, sparse.BCOO.fromdense, None),
    ],
)
def test_long_regressions_are_sampled(rows, columns, kind, size, monkeypatch, untyped):
    """Ten rows a column, where there are forty and enough columns, or twenty of a sparse matrix."""
    monkeypatch.setattr(default, "MIN_SAMPLED_COLUMNS", 3)
    monkeypatch.setattr(default, "approx_newton", lambda *_, **options: options)
    problem = sn.regression.problem(kind(jnp.ones((rows, columns))), jnp.full(rows, 1 / rows))
    assert default.default_transform(problem).get("sketch_size") == size


def test_a_sample_of_all_rows_takes_each_once():
    op = sn.regression.softmax(
        jnp.arange(1.0, 7.0)[:, None], jnp.full(6, 1 / 6), weights=1.0
    ).hessian(jnp.zeros(1))
    sampler = row_sampler.initial_sampler(op)
    every = row_sampler.draw(sampler, op, jax.random.key(0), 6)
    assert every.indices.tolist() == list(range(6))
    assert every.scales.tolist() == [1.0] * 6
    some = row_sampler.draw(sampler, op, jax.random.key(0), 3)
    assert len(some.indices) == 3
    assert (some.scales != 1).any()


@pytest.mark.parametrize(
    ("steps", "seconds", "wanted"),
    [(10, 0.12, 20), (200, 0.12, 256), (10, 0.2, 10), (10, 0.5, 10), (10, 0.7, 5), (1, 0.7, 1)],
)
def test_chunks_take_about_a_third_of_a_second(steps, seconds, wanted):
    assert host_chunks._next_chunk_steps(steps, seconds) == wanted


def test_an_undamped_step_has_a_least_curvature(x64):
    """√ε of the largest, also where there is none."""
    values, g = np.array([4.0, 0.0, -1.0]), np.array([1.0, 2.0, 3.0])
    space = krylov_steps.krylov_model(
        lambda v: jnp.asarray(values) * v, None, jnp.asarray(g), jnp.ones(()), 0.0, 3
    )
    step = krylov_steps.undamped_step(space).step
    np.testing.assert_allclose(step[::2], [-1 / 4, -3], rtol=1e-6)
    np.testing.assert_allclose(step[1], -2 / (4 * np.sqrt(np.finfo(float).eps)), rtol=1e-6)


def test_places_that_are_not_reached_repeat_the_last_entry(x64):
    def loss(x):
        return 3 + jnp.sum((x - 1) ** 2)

    run = jax.jit(lambda x: minimise(loss, x, optax.sgd(0.5), max_steps=4).stats)
    there = run(jnp.ones(2))
    assert there["loss"].tolist() == [3.0] * 5
    assert there["gradient_norm"].tolist() == [0.0] * 5
    one_step = run(jnp.zeros(2))
    assert one_step["loss"].tolist() == [5.0] + [3.0] * 4
    assert one_step["gradient_norm"].tolist() == [np.sqrt(8.0)] + [0.0] * 4


def test_a_finished_run_that_is_resumed_has_its_history_on_the_host(tmp_path):
    tx = optax.sgd(0.25)
    for _ in range(2):
        sol = minimise(lambda x: jnp.sum(x**2), jnp.ones(2), tx, checkpoint=tmp_path / "run")
        assert all(isinstance(sol.stats[name], np.ndarray) for name in ("loss", "step_norm"))


@pytest.mark.parametrize(
    ("learned", "level", "distortion", "wanted"),
    [
        (False, 0, 2.0, 0),  # new scores first
        (True, 0, 2.0, 1),  # then more rows
        (True, 1, 2.0, 2),
        (True, 2, 2.0, 2),  # there are no more
        (True, 0, 50.0, 2),  # hopeless: all of them
        (True, 0, 0.5, 0),  # good enough
    ],
)
def test_levels_of_a_sample(learned, level, distortion, wanted, x64):
    A = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)))
    p = sn.regression.softmax(A, jnp.full(40, 1 / 40), weights=1.0)
    op = p.hessian(jnp.zeros(3))
    sampler = row_sampler.initial_sampler(op)._replace(
        has_leverage_scores=jnp.asarray(learned), size_index=jnp.asarray(level, jnp.int32)
    )
    factor = scaled_cholesky.factorise(op.as_matrix())
    new = row_sampler.refresh_scores(
        sampler, op, jax.random.key(0), factor, jnp.asarray(distortion), 1.0, 2
    )
    assert int(new.size_index) == wanted
    assert bool(new.has_leverage_scores) == (learned or distortion > 1)


@pytest.mark.parametrize(
    ("sizes", "cg_steps"),
    [((2000,), None), ((2001,), 40), ((1000, 1001), 40), ((1000, 1000), None)],
)
def test_what_is_formed_as_a_matrix_without_rows(sizes, cg_steps, monkeypatch, untyped):
    """The size of all leaves together decides."""
    leaves = tuple(jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes)
    problem = SimpleNamespace(hessian=lambda x: x, structure=(leaves, None))
    monkeypatch.setattr(default, "approx_newton", lambda *_, **options: options)
    assert default.default_transform(problem)["cg_steps"] == cg_steps
