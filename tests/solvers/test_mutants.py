"""Single lines of the second-order steps that no other test would miss: counts, sizes and levels."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close
from jax.experimental import sparse

import softntk as sn
from softntk._linalg import scaled_cholesky
from softntk.solution import Result
from softntk.solvers._minimise import default_transform as default
from softntk.solvers._minimise import host_chunks, plateaus, stopping_rules
from softntk.solvers._newton import dense_steps, globalisation, krylov_steps, row_sampler
from softntk.solvers._newton.model import DiagonalModel, LossAlongStep

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


def test_negative_curvature_is_seen_when_conjugate_gradients_see_it(x64):
    """From the pivots of T: its diagonal is positive."""
    values = np.array([-0.5, *range(1, 40)])
    g = np.random.default_rng(0).normal(size=40)
    residual, direction, count = g, g, 1
    while (curvature := direction @ (values * direction)) > 0:
        square = residual @ residual
        residual = residual - square / curvature * values * direction
        direction = residual + residual @ residual / square * direction
        count += 1
    assert 1 < count < 30
    space = krylov_steps.krylov_model(
        lambda v: jnp.asarray(values) * v, None, jnp.asarray(g), jnp.ones(()), 0.0, 40
    )
    assert int(space.products) == count + 8


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
    options: Any = default.default_transform(problem)
    assert options.get("sketch_size") == size


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
    problem: Any = SimpleNamespace(hessian=lambda x: x, structure=(leaves, None))
    monkeypatch.setattr(default, "approx_newton", lambda *_, **options: options)
    options: Any = default.default_transform(problem)
    assert options["cg_steps"] == cg_steps


def test_newtons_step_is_refined_once():
    """Its residual, of 60 systems in float32 of condition 1e4, is that of rounding alone."""
    rng = np.random.default_rng(0)
    residuals = []
    for _ in range(60):
        Q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
        H = ((Q * np.geomspace(1, 1e4, 12)) @ Q.T).astype("float32")
        H = (H + H.T) / 2
        g = (H.astype(float) @ rng.normal(size=12)).astype("float32")
        step, usable = dense_steps.newton_step(jnp.asarray(H), jnp.asarray(g))
        assert usable
        residuals.append(
            np.linalg.norm(H.astype(float) @ np.asarray(step, float) + g) / np.linalg.norm(g)
        )
    assert np.mean(residuals) < 1.2e-7


def test_an_undamped_dense_step_is_by_the_moduli_of_the_curvature(x64):
    """−|H|⁻¹g; a direction without curvature counts as √ε of the largest."""
    values, g = np.array([4.0, 1e-12, -1.0, 0.1]), np.array([1.0, 2.0, 3.0, 4.0])
    found = dense_steps.undamped_step(jnp.diag(jnp.asarray(values)), None, jnp.asarray(g))
    least = 4 * np.sqrt(np.finfo(float).eps)
    np.testing.assert_allclose(found.step, -g / np.maximum(np.abs(values), least), rtol=1e-9)
    assert found.negative_curvature


@pytest.mark.parametrize(
    ("ratio", "count", "wanted"),
    [
        (1.0, 0, 1 / 3),
        (0.75, 0, 0.875),
        (0.5, 0, 1.0),
        (0.25, 0, 1.125),
        (3.0, 0, 1 / 3),
        (-1.0, 0, 2.0),
        (-1.0, 2, 8.0),
    ],
)
def test_the_damping_of_levenberg_and_marquardt_moves_as_nielsen_says(ratio, count, wanted, x64):
    """By max(1/3, 1 − (2ϱ − 1)³) after a good step, and by 2, 4, 8, … after one bad one and more."""
    adapt = globalisation.DAMPINGS["levenberg_marquardt"].adapt
    found = adapt(*map(jnp.asarray, (0.6, ratio, 1.0, count)))
    assert float(found) == pytest.approx(0.6 * wanted)


def test_no_more_products_are_made_than_are_asked_for(x64):
    """Also where the first curvature that is seen is negative."""
    g = jnp.asarray(np.random.default_rng(0).normal(size=20))
    values = -jnp.arange(1.0, 21.0)
    space = krylov_steps.krylov_model(lambda v: values * v, None, g, jnp.ones(()), 0.0, 5)
    assert int(space.products) == 5


def test_without_any_curvature_the_model_is_finite(x64):
    space = krylov_steps.krylov_model(
        lambda v: 0 * v, None, jnp.arange(1.0, 5), jnp.ones(()), 0.0, 4
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(space))
    assert not space.model.is_indefinite


@pytest.mark.parametrize("curvature", [1.0, -1.0])
def test_evaluations_are_counted_once_each(curvature, x64):
    """Of a loss that falls less than the model says: the step of Newton is tried, then damped ones."""
    seen = []

    def after(step):
        jax.debug.callback(lambda: seen.append(1))
        return 1 - 0.02 * jnp.sum(step) + jnp.sum(step**2)

    values = curvature * jnp.asarray([1.0, 2.0, 3.0])
    trial = LossAlongStep(jnp.ones(()), after, lambda step: jnp.sum((2 * step - 0.02) * step))
    g = -jnp.ones(3)
    space = krylov_steps.krylov_model(lambda v: values * v, None, g, jnp.ones(()), 0.0, 3)
    damping = globalisation.DAMPINGS["trust_region"]
    found = krylov_steps.damped_step(space, damping, trial, jnp.asarray(1.0))
    jax.effects_barrier()
    assert len(seen) > 1
    assert int(found.evaluations) == len(seen)


def test_rows_are_drawn_by_their_scores(x64):
    """A row that is all that matters is in every sample."""
    A = np.full((200, 1), 1e-3)
    A[17] = 1.0
    op = sn.regression.problem(A, np.full(200, 0.1), "exp", "plain", 1.0).hessian(jnp.zeros(1))
    sampler = row_sampler.initial_sampler(op)
    assert row_sampler.sample_sizes(op, 20) == (20, 80, 200)
    assert row_sampler.sample_sizes(op, 20)[int(sampler.size_index)] == 20
    draws = jax.vmap(lambda key: row_sampler.draw(sampler, op, key, 20).indices)(
        jax.random.split(jax.random.key(0), 50)
    )
    assert (np.asarray(draws) == 17).any(axis=1).all()


def test_what_is_promised_at_a_minimum_without_strength_is_nothing(x64):
    """A Hessian with a kernel, whose least eigenvalue is zero: no rate, not a number of no meaning."""
    p = sn.regression.problem(np.diag([1.0, 0.0]), np.zeros(2), "identity", "plain")
    found = sn.solvers.contraction(p, np.array([[1.0, 0], [0.5, 0], [0, 0], [0, 0]]), np.zeros(3))
    assert found.strength == 0
    assert np.isposinf(found.promised).all()
    assert np.isposinf(found.along_path).all()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_flat_ends_are_judged_in_any_unit(unit, x64):
    """A curvature in one of fifty directions, which the power method has to find."""
    first, last = np.zeros(50), np.full(50, 100.0)
    curved = np.zeros(50)
    curved[31] = 1.0

    def gradient(x, large=1.9):
        x = np.asarray(x)
        if np.linalg.norm(x) < 50:
            return unit * (1.0 + x)
        return unit * (0.5 + large * curved * (x - last))

    assert not plateaus.has_flattened_on_host(gradient, first, last, 1.0)
    assert plateaus.has_flattened_on_host(lambda x: gradient(x, 1.4), first, last, 1.0)


def test_a_line_search_lets_no_loss_rise(x64):
    """Newton's step for a tenth of the curvature is ten times too long."""
    H = np.diag([1.0, 2.0])
    tx = sn.solvers.approx_newton(0.1 * H)

    def loss(x):
        return 0.5 * x @ jnp.asarray(H) @ x

    x = jnp.ones(2)
    value, grad = jax.value_and_grad(loss)(x)
    step, _ = tx.update(grad, tx.init(x), x, value=value, grad=grad, value_fn=loss)
    assert loss(optax.apply_updates(x, step)) < value


def test_a_method_with_curvature_does_not_creep(x64):
    """Steps that lower the loss by less than the root of its rounding are given up."""
    tx = sn.solvers.approx_newton(1e10 * np.eye(2))
    found = minimise(lambda x: 1 + 0.5 * jnp.sum(x**2), jnp.ones(2), tx, max_steps=60, throw=False)
    assert found.result == Result.STAGNATED
    assert int(found.stats["steps"]) < 60


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_losses_differ_from_eight_roundings_on_in_any_unit(unit, x64, untyped):
    size = jnp.asarray(unit)
    carry: Any = SimpleNamespace(
        value=size, norm=size, smallest_norm=size, last_improved_loss=size, stalled=jnp.asarray(0)
    )
    for roundings, improves in ((4, False), (16, True)):
        value = size * (1 - roundings * np.finfo(float).eps)
        point: Any = SimpleNamespace(value=value, norm=size, diagnostics=None)
        assert bool(stopping_rules.measure_improvement(carry, point).improved) == improves


@pytest.mark.parametrize("damping", [None, "trust_region"])
def test_a_curvature_that_is_not_computed_is_zero(damping, x64):
    """Newton's step of a quadratic is taken without eigenvalues."""
    p = sn.regression.problem(np.eye(2), np.ones(2), "identity", "plain")
    tx = sn.solvers.approx_newton(p.hessian, damping=damping)
    x = jnp.zeros(2)
    grad = p.gradient(x)
    state: Any  # of a chain
    step, state = tx.update(grad, tx.init(x), x, value=p(x), grad=grad, value_fn=p)
    assert_close(step, np.ones(2), rtol=1e-6)
    assert float(state[0].smallest_curvature) == 0


def test_steps_without_curvature_have_derivatives(x64):
    """−1/λ along a curvature, none where there is none."""
    model = DiagonalModel(
        jnp.asarray([0.0, 2.0]), jnp.eye(2), jnp.asarray([0.0, 1.0]), jnp.asarray(False)
    )
    solve = globalisation.DAMPINGS["levenberg_marquardt"].solve
    slopes = jax.grad(
        lambda g: jnp.sum(solve(model._replace(gradient=g), jnp.zeros(()), jnp.ones(())))
    )(model.gradient)
    assert slopes.tolist() == [0.0, -0.5]
