"""One precision beside another: every transform on float32 and float64, with x64 on and off, and
under strict promotion.

Programs are traced, not run, where that shows it: carries of loops whose dtypes drift are refused
while tracing.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import softntk as sn
from softntk.solution import Result

minimise = sn.solvers.minimise
PRECISIONS = [("float32", False), ("float32", True), ("float64", True)]
METHODS = list(
    itertools.product((None, 4), (None, 2), (None, "trust_region", "levenberg_marquardt"))
)


@pytest.fixture
def strict() -> Iterator[None]:
    """Refuse every silent promotion."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def regression(dtype: str, activation: str = "exp") -> sn.regression.Problem:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(12, 3)).astype(dtype)
    b = rng.dirichlet(np.ones(12)).astype(dtype)
    return sn.regression.problem(A, b, activation, "normalized", 0.3)


def newton(method: tuple) -> Callable[[Any], Any]:
    sketch_size, cg_steps, damping = method
    return lambda p: sn.solvers.approx_newton(
        p.hessian,
        gauss_newton=p.gauss_newton,
        sketch_size=sketch_size,
        cg_steps=cg_steps,
        damping=damping,
    )


TRANSFORMS = {
    "default": lambda p: None,
    "descent": lambda p: sn.solvers.gradient_descent(0.1, 0.9),
} | {"{} {} {}".format(*method): newton(method) for method in METHODS}


@pytest.mark.parametrize(("dtype", "wide"), PRECISIONS)
def test_every_transform_keeps_its_dtypes(dtype, wide, strict):
    with jax.enable_x64(wide):
        p = regression(dtype)
        x0 = jnp.zeros(3, dtype)
        for name, make in TRANSFORMS.items():
            tx = make(p)
            sol = jax.eval_shape(lambda x, tx=tx: minimise(p, x, tx, max_steps=3), x0)
            assert sol.value.dtype == dtype, name
            assert sol.stats["loss"].dtype == dtype, name
            assert sol.stats["gradient_norm"].dtype == dtype, name


@pytest.mark.parametrize(("dtype", "wide"), PRECISIONS)
def test_plain_functions_training_and_derivatives_keep_their_dtypes(dtype, wide, strict):
    with jax.enable_x64(wide):
        start = {"a": jnp.zeros(3, dtype), "b": [jnp.zeros((), dtype)]}

        def loss(tree, c):
            return jnp.sum((tree["a"] - c) ** 2) + jnp.sum((tree["b"][0] - tree["a"]) ** 2)

        def of(c):
            tx = optax.sgd(0.1)  # optax' Adam and L-BFGS are not made for strict promotion
            return minimise(loss, start, tx, args=(c,), max_steps=3).value["b"][0]

        c = jnp.ones((), dtype)
        assert jax.eval_shape(jax.grad(of), c).dtype == dtype
        assert jax.eval_shape(jax.grad(jax.grad(of)), c).dtype == dtype
        for tx in (optax.sgd(0.1, 0.9), sn.solvers.gradient_descent(0.1)):
            sol = jax.eval_shape(lambda c, tx=tx: sn.solvers.train(loss, start, tx, 3, c), c)
            assert sol.stats["loss"].dtype == dtype


@pytest.mark.parametrize(("dtype", "wide"), PRECISIONS)
@pytest.mark.parametrize("make", [optax.adam, lambda _: optax.lbfgs(), lambda _: None])
def test_transforms_of_optax_keep_their_dtypes(make, dtype, wide):
    with jax.enable_x64(wide):
        tx = make(0.1)
        start = jnp.zeros(3, dtype)
        sol = jax.eval_shape(lambda x: minimise(lambda x: jnp.sum((x - 1) ** 2), x, tx), start)
        assert sol.value.dtype == sol.stats["loss"].dtype == dtype


@pytest.mark.parametrize(("dtype", "wide"), PRECISIONS)
@pytest.mark.parametrize("damped", [True, False])
def test_natural_gradient_keeps_its_dtypes(damped, dtype, wide, strict):
    with jax.enable_x64(wide):
        params = {"w": jnp.ones((3, 2), dtype) / 4}
        x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), dtype)
        y = jnp.ones((5, 2), dtype)

        def apply_fn(params, x):
            return jnp.tanh(x @ params["w"])

        def loss(params):
            return 0.5 * jnp.sum((apply_fn(params, x) - y) ** 2)

        tx = sn.solvers.natural_gradient(apply_fn, x, y, damped=damped)
        sol = jax.eval_shape(lambda params: minimise(loss, params, tx, max_steps=3), params)
        assert sol.value["w"].dtype == dtype


@pytest.mark.parametrize("activation", ["exp", "res_exp"])
def test_float32_beside_x64_gives_what_float32_gives(activation):
    p = regression("float32", activation)
    alone = minimise(p, np.zeros(3, "float32"))
    with jax.enable_x64(True):
        q = regression("float32", activation)
        beside = minimise(q, jnp.zeros(3, "float32"))
        exact = minimise(regression("float64", activation), jnp.zeros(3)).value
    assert beside.value.dtype == jnp.float32
    for sol in (alone, beside):
        assert np.abs(np.asarray(sol.value) - np.asarray(exact)).max() < 1e-3


@pytest.mark.parametrize("c", [1e-30, 1e-25, 1.0, 1e20, 1e30])
def test_minimisers_do_not_depend_on_the_unit_of_the_loss(c):
    """In float32, where c² leaves the range; by a descent that is told the unit, L-BFGS, and
    Newton's method.
    """

    def loss(x):
        return c * jnp.sum((x - 1) ** 2)

    matrix = 2 * c * np.eye(2, dtype="float32")
    newton = sn.solvers.approx_newton
    transforms = {
        "sgd": optax.sgd(0.4 / c),
        "default": None,
        "newton": newton(matrix, damping="levenberg_marquardt"),
        "region": newton(matrix, damping="trust_region"),
        "products": newton(matrix, damping="trust_region", cg_steps=2),
        "levels": newton(matrix, damping="levenberg_marquardt", cg_steps=2),
    }
    for name, tx in transforms.items():
        sol = minimise(loss, jnp.zeros(2), tx, throw=False)
        assert int(sol.result) == Result.SUCCESSFUL, name
        assert np.abs(np.asarray(sol.value) - 1).max() < 1e-3, name


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e10, 1e18])
def test_minimisers_move_with_the_unit_of_the_points(unit):
    rng = np.random.default_rng(2)
    A = rng.normal(size=(12, 2)).astype("float32")
    b = np.exp(A @ [1.0, -1.0])
    b = (b / b.sum()).astype("float32")
    best = minimise(sn.regression.softmax(A, b), np.zeros(2, "float32"), rtol=1e-4)
    sol = minimise(
        sn.regression.softmax(np.float32(unit) * A, b), np.zeros(2, "float32"), rtol=1e-4
    )
    assert np.abs(np.asarray(sol.value, float) * unit - np.asarray(best.value)).max() < 1e-2
    ratio = np.asarray(sol.stats["gradient_norm"][0], float) / best.stats["gradient_norm"][0]
    assert abs(ratio / unit - 1) < 1e-2


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_plain_functions_move_with_the_unit_of_the_params(unit):
    sol = minimise(lambda x: jnp.sum((unit * x - 1) ** 2), jnp.zeros(3), rtol=1e-4)
    assert np.abs(np.asarray(sol.value, float) * unit - 1).max() < 1e-2


def test_nothing_trips_debug_nans(x64):
    with jax.debug_nans(True):
        p = regression("float64")
        minimise(p, jnp.zeros(3))
        minimise(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3))
        quadratic = lx.DiagonalLinearOperator(jnp.ones(3))
        tx = sn.solvers.approx_newton(quadratic, cg_steps=2, damping="trust_region")
        minimise(lambda x: 0.5 * jnp.sum((x - 1) ** 2), jnp.zeros(3), tx)


@pytest.mark.parametrize("unit", [1e-16, 1e-8, 1e8, 1e13])
def test_plain_functions_may_have_any_unit(unit):
    def loss(x, unit):
        return jnp.sum((x / unit - 1) ** 2 * jnp.array([1.0, 30.0]))

    sol = sn.solvers.minimise(loss, jnp.zeros(2), args=(unit,))
    np.testing.assert_allclose(sol.value / unit, 1, atol=1e-4)
    assert int(sol.stats["steps"]) < 12


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_regressions_inside_jit_may_have_any_unit(unit):
    A = jax.random.normal(jax.random.key(0), (12, 2))
    b = jax.nn.softmax(A @ jnp.array([1.0, -1.0]))

    @jax.jit
    def solve(A):
        sol = sn.solvers.minimise(
            sn.regression.softmax(A, b), jnp.zeros(2), throw=False, max_steps=100
        )
        return sol.value, sol.result, sol.stats["gradient_norm"][0]

    value, result, slope = solve(unit * A)
    assert int(result) == 0
    np.testing.assert_allclose(value * unit, [1, -1], atol=1e-4)
    first = jax.grad(lambda x: sn.regression.softmax(A, b)(x))(jnp.zeros(2))
    np.testing.assert_allclose(slope / unit, np.linalg.norm(first), rtol=1e-4)
