"""minimise: what it reaches, what it reports, and how its result moves with the problem."""

import gc
import itertools
import weakref

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, slow_except
from jax.experimental import sparse

import softntk as sn
from softntk.solution import NumericalError, Result

minimise, approx_newton = sn.solvers.minimise, sn.solvers.approx_newton
FORMS = ("normalized", "rescaled", "plain")
KINDS = {
    "dense": jnp.asarray,
    "sparse": sparse.BCOO.fromdense,  # with 64 rows and 3 columns the steps are sampled
    "operator": lambda A: (
        lx.MatrixLinearOperator(A)
        @ lx.IdentityLinearOperator(jax.ShapeDtypeStruct((A.shape[1],), A.dtype))
    ),
}


def regression(
    dtype="float64", *, n=12, weights=0.3, seed=0, activation="exp", form="normalized", scale=1.0
):
    rng = np.random.default_rng(seed)
    A, b = scale * rng.normal(size=(n, 3)), rng.dirichlet(np.ones(n))
    return sn.regression.problem(A.astype(dtype), b.astype(dtype), activation, form, weights)


def parabola(x):
    return jnp.sum((x - 1) ** 2)


def wells(x):
    return jnp.sum((x**2 - 1) ** 2)


def assert_minimum(p, x, start, rtol=2e-9):
    """By automatic differentiation of the loss, not by the closed forms that were descended."""
    slope, curvature = jax.jit(lambda p, x: (jax.grad(p)(x), jax.hessian(p)(x)))(p, x)
    values = np.linalg.eigvalsh(curvature)
    assert np.linalg.norm(slope) <= rtol * np.linalg.norm(p.gradient(start))
    assert values[0] >= -1e-10 * values[-1]


GRID = list(itertools.product(sn.activations.ACTIVATIONS, FORMS, KINDS))


@pytest.mark.parametrize(
    ("activation", "form", "kind"), slow_except(GRID, ("res_exp", "normalized", "dense"))
)
def test_every_regression(activation, form, kind, x64):
    """With noise where the minimum is smooth and attained; kinks and what only depends on
    directions get reachable targets.
    """
    rng, wanted, start = (
        np.random.default_rng(0),
        jnp.array([0.4, 0.3, 0.6]),
        jnp.array([0.5, 0.4, 0.4]),
    )
    A = jnp.asarray(rng.normal(size=(64, 3)) + 0.7)
    reachable = activation in ("relu", "crrelu") or (
        form == "normalized" and activation in ("sinh", "identity", "erf")
    )
    weights = 0.0 if reachable else 0.1
    b = sn.regression.problem(A, jnp.ones(64), activation, form, weights).predict(wanted)
    b = (
        b
        / (jnp.sum(b) if form == "rescaled" else 1)
        * (1 + (0 if reachable else 0.3) * rng.normal(size=64))
    )
    p = sn.regression.problem(KINDS[kind](A), b, activation, form, weights)
    sol = minimise(p, start)
    assert_minimum(p, sol.value, start)
    assert int(sol.stats["steps"]) < 40
    jax.clear_caches()  # a process may hold some hundred such programs, no more


@pytest.mark.slow
@pytest.mark.parametrize("seed", slow_except(range(5), 0))
def test_heavy_tailed_rows_at_a_tiny_regularisation(seed, x64):
    rng = np.random.default_rng(seed)
    A = (
        rng.normal(size=(12, 3))
        * np.abs(rng.standard_t(1, size=(12, 1)))
        * np.array([1.0, 10.0, 100.0])
    )
    p = sn.regression.softmax(A, rng.dirichlet(np.ones(12)), weights=1e-6)
    sol = minimise(p, jnp.zeros(3))
    assert_minimum(p, sol.value, jnp.zeros(3))


def quartic(damping, cg_steps):
    return approx_newton(
        lambda x: lx.DiagonalLinearOperator(12 * x**2 - 4), damping=damping, cg_steps=cg_steps
    )


DAMPINGS = list(itertools.product(("trust_region", "levenberg_marquardt"), (None, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("damping", "cg_steps"), slow_except(DAMPINGS, ("trust_region", None)))
def test_saddles_are_left(damping, cg_steps, x64):
    """The gradient is exactly zero at the start: only the curvature tells."""
    sol = minimise(wells, jnp.zeros(3), quartic(damping, cg_steps))
    assert_close(jnp.abs(sol.value), np.ones(3), rtol=1e-6)
    assert int(sol.stats["steps"]) < 60


def test_the_default_leaves_a_saddle(x64):
    p = sn.regression.problem(jnp.eye(3)[:, :2] + 0.1, jnp.full(3, 4.0), "cosh", "plain")
    assert float(jnp.linalg.norm(p.gradient(jnp.zeros(2)))) == 0
    sol = minimise(p, jnp.zeros(2))
    assert float(p(sol.value)) < 0.5 * float(p(jnp.zeros(2)))
    assert np.linalg.eigvalsh(p.hessian(sol.value).as_matrix())[0] > 0


TRANSFORMS = {
    "adam": optax.adam(0.1),
    "sgd": optax.sgd(1.0),
    "descent": sn.solvers.gradient_descent(1.0, 0.5, nesterov=True),
    "lbfgs": optax.lbfgs(),
    "zoom": optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(TRANSFORMS, "adam"))
def test_any_transform_of_optax(name, dtype):
    p, start = regression(dtype), jnp.zeros(3, dtype)
    sol = minimise(p, start, TRANSFORMS[name], rtol=1e-4, max_steps=2000)
    assert sol.value.dtype == dtype
    assert float(jnp.linalg.norm(jax.grad(p)(sol.value))) <= 1.1e-4 * float(
        jnp.linalg.norm(jax.grad(p)(start))
    )


@pytest.mark.slow
def test_pytrees_and_plain_functions(dtype):
    start = {"matrix": jnp.ones((2, 2), dtype), "rest": (jnp.zeros((), dtype),)}
    loss = lambda tree: (
        jnp.sum((tree["matrix"] @ jnp.array([1.0, 2.0], dtype) - tree["rest"][0] - 3) ** 2)
        + wells(tree["matrix"])
    )
    sol = minimise(loss, start, optax.sgd(0.02), rtol=1e-4)
    assert jax.eval_shape(lambda: sol.value) == jax.eval_shape(lambda: start)
    assert float(optax.tree.norm(jax.grad(loss)(sol.value))) <= 1.1e-4 * float(
        optax.tree.norm(jax.grad(loss)(start))
    )


@pytest.mark.slow
def test_stats_and_jit_and_vmap(x64):
    """One loop for all targets, against one run for each."""
    p, most = regression(), 12
    B = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(12), size=3))
    solve = lambda b: minimise(
        sn.regression.softmax(p.A, b, weights=p.weights), jnp.zeros(3), max_steps=most
    )
    every = jax.jit(jax.vmap(solve))(B)
    for i, b in enumerate(B):
        one, sol = jax.tree.map(lambda leaf, i=i: leaf[i], every), solve(b)
        steps = int(sol.stats["steps"])
        assert 0 < steps < most
        assert_close(one.value, sol.value, rtol=1e-12)
        assert (int(one.result), int(one.stats["steps"])) == (Result.SUCCESSFUL, steps)
        for name, extra in (
            ("loss", 1),
            ("gradient_norm", 1),
            ("step_norm", 0),
            ("damping", 0),
            ("distortion", 0),
        ):
            assert sol.stats[name].shape == (steps + extra,)
            assert one.stats[name].shape == (most + extra,)
            assert_close(one.stats[name][: steps + extra], sol.stats[name], rtol=1e-6)
            assert (one.stats[name][steps + extra :] == one.stats[name][steps + extra - 1]).all()
        q = sn.regression.softmax(p.A, b, weights=0.3)
        assert_close(sol.stats["loss"][[0, -1]], [q(jnp.zeros(3)), q(sol.value)])


@pytest.mark.slow
def test_nothing_to_do(x64):
    tx = optax.sgd(0.1)
    for run in (lambda f: f, jax.jit):
        looked = run(lambda x: minimise(parabola, x, tx, max_steps=0, throw=False))(jnp.zeros(3))
        assert int(looked.result) == Result.MAX_STEPS
        assert (looked.value == 0).all()
        assert (looked.stats["loss"].tolist(), looked.stats["step_norm"].shape) == ([3.0], (0,))
        there = run(lambda x: minimise(parabola, x, tx))(jnp.ones(3))
        assert (int(there.result), int(there.stats["steps"])) == (Result.SUCCESSFUL, 0)


@pytest.mark.slow
def test_looking_is_the_same_under_jit(x64):
    p = regression()
    look = lambda x: minimise(p, x, max_steps=0, atol=10.0, throw=False).result
    assert int(look(jnp.ones(3))) == int(jax.jit(look)(jnp.ones(3)))


@pytest.mark.slow
def test_steps_run_out_at_the_best_point(x64):
    sol = minimise(parabola, jnp.zeros(2), optax.sgd(0.9), max_steps=3, throw=False)
    assert Result(int(sol.result)) is Result.MAX_STEPS
    assert_close(sol.stats["loss"], 2 * 0.64 ** np.arange(4))
    with pytest.raises(NumericalError, match="MAX_STEPS: The steps ran out"):
        minimise(parabola, jnp.zeros(2), optax.sgd(0.9), max_steps=3)
    up = minimise(wells, jnp.full(2, 0.9), optax.sgd(0.3), max_steps=4, throw=False)
    assert float(wells(up.value)) == up.stats["loss"].min()


def test_divergence_keeps_the_best_point(dtype):
    sol = minimise(parabola, jnp.zeros(2, dtype), optax.sgd(10.0), throw=False)
    assert Result(int(sol.result)) is Result.DIVERGED
    assert (sol.value == 0).all()
    assert np.isfinite(sol.stats["loss"]).all()
    with pytest.raises(NumericalError, match="DIVERGED: .* smaller learning rate"):
        minimise(parabola, jnp.zeros(2, dtype), optax.sgd(10.0))


@pytest.mark.parametrize(
    "damping", slow_except([None, "trust_region", "levenberg_marquardt"], "trust_region")
)
def test_where_the_loss_is_not_defined_it_steps_back(damping, x64):
    barrier = lambda x: jnp.sum(x - jnp.log(x))
    tx = approx_newton(lambda x: lx.DiagonalLinearOperator(1 / x**2), damping=damping)
    sol = minimise(barrier, jnp.array([5.0, 1.5]), tx)
    assert_close(sol.value, np.ones(2), rtol=1e-8)


def test_not_a_number_at_the_start():
    for problem in (parabola, regression("float32")):
        sol = minimise(problem, jnp.array([0.0, jnp.nan, 0.0]), optax.sgd(0.1), throw=False)
        assert (int(sol.result), int(sol.stats["steps"])) == (Result.NONFINITE_INPUT, 0)


@pytest.mark.slow
def test_nothing_is_compiled_twice(caplog):
    tx, start = optax.sgd(0.1), jnp.zeros(3)

    def compiled(problem, x, tx):
        caplog.clear()
        with jax.log_compiles():
            minimise(problem, x, tx, throw=False, max_steps=5)
        return "Finished XLA compilation" in caplog.text

    assert compiled(regression("float32"), start, tx)
    assert not compiled(regression("float32", seed=1), start + 1, tx)
    assert compiled(regression("float32", n=13), start, tx)
    assert not compiled(regression("float32", weights=0.1), start, tx)


@pytest.mark.slow
def test_without_a_transform_a_function_gets_lbfgs_for_as_long_as_it_lives(x64):
    def run():
        loss = lambda x: wells(x) + parabola(x)
        assert_close(minimise(loss, jnp.array([3.0, 0.5])).value, np.ones(2), rtol=1e-7)
        return weakref.ref(loss)

    gone = run()
    gc.collect()
    assert gone() is None, "the compiled program keeps what it was compiled for"


@pytest.mark.slow
def test_theory_beside_practice(x64):
    p = sn.regression.softmax(
        np.random.default_rng(0).normal(size=(12, 3)) / 4, np.full(12, 1 / 12), weights=0.5
    )
    sol = minimise(p, jnp.array([1.0, -1.0, 0.5]), approx_newton(p.hessian), theory=True)
    found, path, steps = sol.stats["contraction"], sol.stats["path"], int(sol.stats["steps"])
    assert path.shape == (steps + 1, 3)
    assert_close(path[[0, -1]], [[1.0, -1.0, 0.5], sol.value])
    assert_close(found.distance, np.linalg.norm(path - path[-1], axis=1))
    assert_close(found.strength, np.linalg.eigvalsh(p.hessian(sol.value).as_matrix())[0], rtol=1e-8)
    assert found.measured.shape == found.promised.shape == found.along_path.shape == (steps,)
    assert_close(found.measured[:-1], found.distance[1:-1] / found.distance[:-2])
    assert (found.measured <= found.along_path).all()
    assert (found.along_path <= found.promised).all()
    assert found.along_path[-1] < 0.5
    with pytest.raises(
        ValueError, match="theory=True needs a problem of softntk.regression.problem, got function"
    ):
        minimise(parabola, jnp.zeros(2), optax.sgd(0.1), theory=True)


@pytest.mark.slow
def test_progress_is_shown_and_changes_nothing(capsys):
    tx = optax.sgd(0.1)
    quiet = minimise(parabola, jnp.zeros(2), tx)
    assert capsys.readouterr() == ("", "")
    loud = minimise(parabola, jnp.zeros(2), tx, progress=True)
    assert capsys.readouterr().err == ""
    assert (loud.stats["loss"] == quiet.stats["loss"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"x0": np.zeros(2, int)},
            "x0 must be a floating-point array, or hold some, got dtype int",
        ),
        ({"x0": {}}, "x0 must hold at least one array"),
        ({"problem": 1.0}, "problem must be a function of the params, got float"),
        ({"problem": lambda x: x}, r"problem must return a scalar, the loss; got shape \(2,\)"),
        ({"rtol": 1e-9}, "rtol must lie between 1.2e-07, what float32 can give, and 1, got 1e-09"),
        ({"rtol": 0.0}, "rtol must lie between"),
        ({"rtol": 1.0}, "rtol must lie between"),
        ({"atol": -1.0}, "atol must be a finite number at least 0, got -1.0"),
        ({"step_tol": np.nan}, "step_tol must be a finite number at least 0, got nan"),
        ({"max_steps": -1}, "max_steps must be a non-negative integer, got -1"),
        ({"max_steps": 1.5}, "max_steps must be a non-negative integer, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message, untyped):
    with pytest.raises(ValueError, match=message):
        minimise(
            **(
                {"problem": parabola, "x0": np.zeros(2, "float32"), "tx": optax.sgd(0.1)}
                | arguments
            )
        )


@pytest.mark.slow
def test_of_equal_losses_the_smaller_gradient_is_returned(x64):
    """A start so near that the loss is at its least, in rounding, long before the gradient is."""
    for seed in range(6):
        p = regression(seed=seed)
        near = minimise(p, np.zeros(3), rtol=1e-10).value + 1e-6
        solution = minimise(p, near, rtol=1e-15, throw=False)
        assert (
            jnp.linalg.norm(p.gradient(solution.value)) <= 2 * solution.stats["gradient_norm"].min()
        )


@pytest.mark.parametrize("seed", [4, 5])
def test_float32_that_can_get_no_further_says_so(seed):
    """Heavy-tailed rows, condition 1e3: the gradient's floor lies above what is asked, and the loss
    jumps by rounding.
    """
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(2000, 5)) @ (
        np.geomspace(1, 1e-3, 5)[:, None] * np.linalg.qr(rng.normal(size=(5, 5)))[0]
    )
    A *= np.abs(rng.standard_t(2.0, size=(2000, 1)))
    z = A @ rng.normal(size=5)
    b = np.exp(np.clip(z / z.std(), -8, 8) + 0.5 * rng.normal(size=2000))
    p = sn.regression.problem(A.astype("float32"), (b / b.sum()).astype("float32"), weights=1e-7)
    solution = minimise(p, np.zeros(5, "float32"), rtol=1e-6, max_steps=400, throw=False)
    assert solution.result == Result.STAGNATED
    assert solution.stats["steps"] < 150


@pytest.mark.parametrize("options", [{"progress": True}, {"theory": True}, {"checkpoint": "file"}])
def test_what_needs_numbers_is_refused_under_jit(options):
    problem = sn.regression.softmax(np.eye(3, 2), np.ones(3) / 3)
    with pytest.raises(ValueError, match="do not work under jit or vmap"):
        jax.jit(lambda x: minimise(problem, x, optax.sgd(0.1), **options))(jnp.zeros(2))


def test_the_minimum_does_not_depend_on_the_transform(x64):
    """Also where the transform holds a traced number: its derivative is zero, and the search runs."""

    def end(rate):
        tx = sn.solvers.gradient_descent(rate)
        return jnp.sum(minimise(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(2), tx).value)

    value, slope = jax.jvp(end, (0.1,), (1.0,))
    assert float(value) == pytest.approx(6, rel=1e-6)
    assert float(slope) == float(jax.grad(end)(0.1)) == 0
