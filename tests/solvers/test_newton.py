"""Approximate Newton as an optax transform: the contract, exactness against dense NumPy, the
sample, other people's loops.
"""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, slow_except
from jax import lax
from small_regressions import after, regression

import softntk as sn
from softntk.solution import Result
from softntk.solvers._diagnostics import Step

scale_by, approx_newton = sn.solvers.scale_by_approx_newton, sn.solvers.approx_newton
COMBINATIONS = list(
    itertools.product((None, 4), (None, 2), (None, "trust_region", "levenberg_marquardt"))
)
NAMES = ("sketch_size", "cg_steps", "damping")
DENSE = [(s, k, damping) for s, k, damping in COMBINATIONS if s is None]


def combination(p, sketch_size, cg_steps, damping, **options):
    return scale_by(
        p.hessian, sketch_size=sketch_size, cg_steps=cg_steps, damping=damping, **options
    )


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


CONTRACT = {"descent": None} | {"{} {} {}".format(*combined): combined for combined in COMBINATIONS}


@pytest.mark.parametrize("name", slow_except(CONTRACT, "descent", "4 2 trust_region"))
def test_shapes_and_dtypes_never_change(name, dtype):
    """Traced only: what lax.cond and lax.while_loop would refuse, and unknown arguments are let
    through.
    """
    p = regression(dtype)
    combined = CONTRACT[name]
    tx = combination(p, *combined) if combined else sn.solvers.gradient_descent(0.1, 0.9)
    x = jax.ShapeDtypeStruct((3,), dtype)
    state = jax.eval_shape(tx.init, x)
    updates, new = jax.eval_shape(lambda s, x: after(tx, p, s, x, unknown="argument"), state, x)
    assert types(updates) == types(x)
    assert types(new) == types(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, slow_except(COMBINATIONS, (None, None, "trust_region")))
def test_in_scan_and_cond_under_jit(sketch_size, cg_steps, damping, x64):
    p = regression()
    tx = combination(p, sketch_size, cg_steps, damping)

    def step(carry, skipped):
        x, state = carry
        updates, state = lax.cond(
            skipped, lambda: (jnp.zeros_like(x), state), lambda: after(tx, p, state, x)
        )
        return (x - updates, state), p(x)

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def run(p, x):
        return lax.scan(step, (x, tx.init(x)), jnp.arange(4) == 1)

    for start in (jnp.zeros(3), jnp.zeros(3) + 0.1):
        (x, state), losses = run(p, start)
        assert int(state.count) == 3
        assert int(state.result) == Result.SUCCESSFUL
        assert float(losses[2]) == float(losses[1])
        assert float(p(x)) < float(losses[0]) or (sketch_size and damping is None)


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, slow_except(DENSE, (None, None, None)))
def test_pytrees_of_mixed_shapes(sketch_size, cg_steps, damping, x64):
    """As the same problem on a flat vector."""
    p = regression(d=4)
    flat = jnp.array([0.3, -0.2, 0.1, 0.4])
    split = lambda x: {"matrix": x[:2].reshape(2, 1), "rest": (x[2], x[3:])}
    join = lambda tree: jnp.concatenate(
        [tree["matrix"].ravel(), tree["rest"][0][None], tree["rest"][1]]
    )
    loss, tree = lambda tree: p(join(tree)), split(flat)

    def curvature(tree):
        H = p.hessian(join(tree))
        return lx.FunctionLinearOperator(
            lambda v: split(H.mv(join(v))), jax.eval_shape(lambda: tree), lx.symmetric_tag
        )

    tx = scale_by(curvature, cg_steps=cg_steps, damping=damping)
    state = tx.init(tree)
    update = lambda tree, state: tx.update(
        jax.grad(loss)(tree), state, tree, value=loss(tree), value_fn=loss
    )
    updates, new = jax.jit(update)(tree, state)
    assert types(updates) == types(tree)
    assert types(new) == types(state)
    on_flat = combination(p, sketch_size, cg_steps, damping)
    assert_close(
        join(updates), jax.jit(lambda x: after(on_flat, p, on_flat.init(x), x)[0])(flat), rtol=1e-9
    )


@pytest.mark.slow
def test_pytrees_of_mixed_precision(x64):
    tree = {"a": jnp.ones(2, "float32"), "b": jnp.ones(1, "float64")}
    curvature = lambda tree: lx.FunctionLinearOperator(
        lambda v: jax.tree.map(lambda leaf: 2 * leaf, v),
        jax.eval_shape(lambda: tree),
        lx.symmetric_tag,
    )
    tx = scale_by(curvature, cg_steps=2)
    updates, _ = jax.eval_shape(lambda tree: tx.update(tree, tx.init(tree), tree), tree)
    assert types(updates) == types(tree)


@pytest.mark.parametrize(NAMES, slow_except(DENSE, (None, None, "trust_region")))
def test_one_step_solves_a_quadratic(sketch_size, cg_steps, damping, dtype):
    """CG with as many steps as there are clusters of eigenvalues: two."""
    p = sn.regression.problem(
        np.diag([1.0, 1.0, 3.0]).astype(dtype), np.ones(3, dtype), "identity", "plain"
    )
    tx, x = combination(p, sketch_size, cg_steps, damping), jnp.array([5.0, -4.0, 3.0], dtype)
    updates, state = jax.jit(lambda x: after(tx, p, tx.init(x), x))(x)
    assert_close(x - updates, np.array([1, 1, 1 / 3]), dtype)
    assert int(state.kind) == Step.NEWTON


@pytest.mark.parametrize("sketch_size", slow_except([None, 12], None))
def test_the_undamped_step_is_that_of_numpy(sketch_size, dtype):
    """On softmax regression, against jax.hessian and a dense solve; a sample of all rows is the
    matrix itself.
    """
    p, x = regression(dtype, weights=1.0), jnp.array([0.3, -0.2, 0.5], dtype)
    tx = scale_by(p.hessian, sketch_size=sketch_size)
    (updates, state), H, g = jax.jit(
        lambda x: (after(tx, p, tx.init(x), x), jax.hessian(p)(x), jax.grad(p)(x))
    )(x)
    assert_close(updates, np.linalg.solve(np.float64(H), np.float64(g)), dtype)
    assert int(state.kind) == Step.NEWTON
    assert float(state.distortion) < 100 * np.finfo(dtype).eps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cg_steps", "damping"), slow_except([c[1:] for c in DENSE], (2, "trust_region"))
)
def test_a_sample_of_all_rows_is_exact(cg_steps, damping, x64):
    p = regression(weights=1.0)
    x = jnp.array([0.3, -0.2, 0.5])
    exact, sampled = scale_by(p.hessian, damping=damping), combination(p, 12, cg_steps, damping)
    (wanted, _), (found, _) = jax.jit(
        lambda x: [after(tx, p, tx.init(x), x) for tx in (exact, sampled)]
    )(x)
    assert_close(found, wanted, rtol=1e-9)


@pytest.mark.slow
def test_without_damping_a_curvature_that_is_not_convex_gives_a_descent_direction(x64):
    p = sn.regression.problem(np.eye(3), np.full(3, 4.0), "cosh", "plain")
    x = jnp.array([0.5, 1.0, 1.8])  # below 1.4 the second derivatives are negative
    H, M, g = (
        np.asarray(part)
        for part in (p.hessian(x).as_matrix(), p.gauss_newton(x).as_matrix(), p.gradient(x))
    )
    transforms = [
        scale_by(p.hessian),
        scale_by(p.hessian, gauss_newton=p.gauss_newton),
        scale_by(p.hessian, cg_steps=3),
    ]
    found = jax.jit(lambda x: [after(tx, p, tx.init(x), x) for tx in transforms])(x)
    absolute = g / np.abs(np.diag(H))
    for (updates, state), wanted in zip(found, (absolute, g / np.diag(M), absolute), strict=True):
        assert bool(state.negative_curvature)
        assert_close(updates, wanted, rtol=1e-8)


DAMPED = [
    (*combined, dtype)
    for combined in COMBINATIONS
    if combined[2] is not None
    for dtype in ("float32", "float64")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    (*NAMES, "precision"), slow_except(DAMPED, (None, None, "levenberg_marquardt", "float32"))
)
def test_a_damped_step_never_increases_the_loss(sketch_size, cg_steps, damping, precision):
    """From anywhere; the loss is that which the transform was given."""
    with jax.enable_x64(precision == "float64"):
        p = regression(precision, weights=0.01, scale=2.0, form="rescaled", activation="cosh")
        tx = combination(p, sketch_size, cg_steps, damping, gauss_newton=p.gauss_newton)

        @jax.jit
        def run(x):
            updates, state = after(tx, p, tx.init(x), x)
            return p(x - updates) / p(x), state.kind

        starts = jnp.asarray(np.random.default_rng(1).normal(size=(20, 3)), precision)
        ratios, kinds = zip(*map(run, starts), strict=True)
        assert max(ratios) <= 1 + 4 * np.finfo(precision).eps
        assert np.mean(np.array(ratios) < 1) > 0.9
        assert len(set(map(int, kinds))) > 1 or cg_steps, "more than Newton's step is to be tried"


LOOPS = {
    "backtracking": lambda p: approx_newton(p.hessian),
    "zoom": lambda p: approx_newton(p.hessian, linesearch=optax.scale_by_zoom_linesearch(20)),
    "clipped before": lambda p: optax.chain(
        optax.clip_by_global_norm(0.05), approx_newton(p.hessian)
    ),
    "scaled behind": lambda p: optax.chain(
        scale_by(p.hessian, gauss_newton=p.gauss_newton), optax.scale(-0.5)
    ),
    "damped": lambda p: approx_newton(p.hessian, damping="trust_region"),
    "sampled": lambda p: approx_newton(
        p.hessian, sketch_size=6, cg_steps=2, damping="levenberg_marquardt"
    ),
}


@pytest.mark.parametrize("name", slow_except(LOOPS, "clipped before"))
def test_in_a_loop_of_optax(name, x64):
    p = regression(weights=0.2, scale=2.0)
    tx, x = LOOPS[name](p), jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(p)(x)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=p)
        return optax.apply_updates(x, updates), state

    state, before = tx.init(x), float(jnp.linalg.norm(p.gradient(x)))
    for _ in range(60):
        x, state = step(x, state)
    assert float(jnp.linalg.norm(p.gradient(x))) < 1e-7 * before


@pytest.mark.parametrize("name", slow_except(LOOPS, "damped"))
def test_in_optimistix(name, x64):
    optx = pytest.importorskip("optimistix")
    p = regression(weights=0.2, scale=2.0)
    solver = optx.OptaxMinimiser(LOOPS[name](p), rtol=1e-9, atol=1e-12)
    found = optx.minimise(lambda x, _: p(x), solver, jnp.array([1.0, -2.0, 0.5]), max_steps=100)
    assert float(jnp.linalg.norm(p.gradient(found.value))) < 1e-7


def test_what_changes_a_damped_step_is_refused(x64):
    p = regression(weights=0.2, scale=2.0)
    with pytest.raises(
        ValueError, match=r'damping="trust_region" and a line search exclude each other'
    ):
        approx_newton(
            p.hessian, damping="trust_region", linesearch=optax.scale_by_zoom_linesearch(5)
        )
    tx = optax.chain(scale_by(p.hessian, damping="trust_region"), optax.scale(-0.5))
    sol = sn.solvers.minimise(p, jnp.array([1.0, -2.0, 0.5]), tx, throw=False)
    assert int(sol.result) == Result.STEP_CHANGED
    assert "line search" in sol.advice
    assert float(p(sol.value)) <= float(sol.stats["loss"][0])


def test_what_is_refused(untyped):
    p, x = regression("float32"), jnp.zeros(3, "float32")
    other, dense = (
        regression("float32", d=2),
        lambda x: lx.MatrixLinearOperator(jnp.eye(3), lx.symmetric_tag),
    )
    make: Any = scale_by
    tx = scale_by(p.hessian, damping="trust_region")
    wrong_size, plain = scale_by(lambda x: other.hessian(x[:2])), make(lambda x: jnp.eye(3))
    for call, message in (
        (lambda: tx.update(x, tx.init(x)), "update needs params"),
        (lambda: tx.update(x, tx.init(x), x), 'damping="trust_region" needs value and value_fn'),
        (lambda: tx.update(x, tx.init(x), x, value=p(x)), "needs value and value_fn"),
        (
            lambda: wrong_size.update(x, wrong_size.init(x), x),
            r"of shapes \(3,\); it is one on \(2,\)",
        ),
        (lambda: plain.update(x, plain.init(x), x), "curvature must return a lineax operator, got"),
        (
            lambda: scale_by(dense, sketch_size=2).init(x),
            "needs a curvature with rows to draw, .* got MatrixLinearOperator",
        ),
        (lambda: make(3.0), "curvature must be a function of the params, a matrix or a lineax"),
        (lambda: scale_by(jnp.ones((2, 3))), "curvature must be a square matrix"),
        (
            lambda: scale_by(jnp.eye(2)).update(x, tx.init(x), x),
            "curvature must be a matrix of the 3 numbers",
        ),
        (
            lambda: scale_by(p.hessian, damping="trust-region"),
            "damping must be one of .* Did you mean 'trust_region'",
        ),
        (
            lambda: scale_by(p.hessian, sketch_size=0),
            "sketch_size must be a positive integer, got 0",
        ),
        (lambda: make(p.hessian, cg_steps=1.5), "cg_steps must be a positive integer, got 1.5"),
        (
            lambda: scale_by(p.hessian, max_distortion=0.0),
            "max_distortion must be a positive finite number",
        ),
        (
            lambda: scale_by(p.hessian, initial_damping=-1.0),
            "initial_damping must be a positive finite number",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_not_finite_moves_nothing(dtype):
    p = regression(dtype)
    tx, x = scale_by(p.hessian), jnp.ones(3, dtype)
    updates, state = jax.jit(lambda g: tx.update(g, tx.init(x), x))(x * jnp.nan)
    assert (updates == 0).all()
    assert int(state.result) == Result.NONFINITE_INPUT
