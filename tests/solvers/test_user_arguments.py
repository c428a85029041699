"""Arguments as users pass them: modules, further arguments, wrong kinds of everything."""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close

import softntk as sn
from softntk.solution import Result
from softntk.solvers import step_sizes

minimise, train = sn.solvers.minimise, sn.solvers.train
SGD = optax.sgd(0.1)


def bowl(x):
    return jnp.sum((x - 1) ** 2)


# --- leaves that are no floats
# -----------------------------------------------------------------------


def model_and_loss():
    """Return a module with functions among its leaves, and its loss on ten points."""
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (10, 2))
    return model, lambda model: jnp.mean((jax.vmap(model)(x) - 1.0) ** 2)


def test_modules_are_minimised_and_trained_on_their_arrays():
    model, loss = model_and_loss()
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    by_hand = train(lambda arrays: loss(eqx.combine(arrays, rest)), arrays, SGD, 5)
    trained = train(loss, model, SGD, 5)
    minimised = minimise(loss, model, SGD, max_steps=5, throw=False)
    assert jax.tree.structure(trained.value) == jax.tree.structure(model)
    for sol in (trained, minimised):
        assert_close(loss(sol.value), by_hand.stats["loss"][-1], rtol=1e-5)
    assert minimised.value.activation is model.activation


def test_integer_leaves_and_keys_are_constants(x64):
    params = {"w": jnp.zeros(2), "scale": jnp.array(2), "key": jax.random.key(3), "steps": 4}

    def loss(params):
        return jnp.sum((params["scale"] * params["w"] - params["steps"]) ** 2)

    for sol in (minimise(loss, params), train(loss, params, SGD, 200)):
        assert_close(sol.value["w"], [2.0, 2.0], rtol=1e-8)
        assert int(sol.value["scale"]) == 2
        assert sol.value["steps"] == 4


# --- args
# --------------------------------------------------------------------------------------------


def shifted(params, c, *, power=2):
    return jnp.sum((params["x"] - c["shift"]) ** power) + 0.5 * c["weight"] * jnp.sum(
        params["x"] ** 2
    )


def test_arguments_of_the_loss_move_the_minimiser(x64):
    """x* = 2 shift/(2 + weight)."""
    start = {"x": jnp.zeros(2)}

    def of(shift, weight):
        args = ({"shift": shift, "weight": weight},)
        return minimise(shifted, start, SGD, args=args, rtol=1e-12).value["x"]

    shift = jnp.array([1.0, -2.0])
    assert_close(of(shift, 2.0), shift / 2, rtol=1e-10)
    assert_close(jax.jacobian(of)(shift, 2.0), np.eye(2) / 2, rtol=1e-8)
    assert_close(jax.jacfwd(of, argnums=1)(shift, 2.0), -2 * shift / 16, rtol=1e-8)
    assert_close(
        jax.jacfwd(jax.jacrev(of, argnums=1), argnums=1)(shift, 2.0), 4 * shift / 64, rtol=1e-6
    )
    assert_close(
        jax.jit(jax.vmap(of, (None, 0)))(shift, jnp.array([0.0, 2.0])),
        [shift, shift / 2],
        rtol=1e-8,
    )


def test_nothing_is_compiled_again_for_other_values_of_arguments(caplog):
    start = {"x": jnp.zeros(2)}

    def compiled(c):
        caplog.clear()
        with jax.log_compiles():
            minimise(shifted, start, SGD, args=(c,), max_steps=5, throw=False)
        return "Finished XLA compilation" in caplog.text

    assert compiled({"shift": 1.0, "weight": 2.0})
    assert not compiled({"shift": 3.0, "weight": 5.0})
    assert compiled({"shift": np.ones(2, "float32"), "weight": 5.0})


# --- a matrix as curvature
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["NumPy", "list", "operator", "function"])
def test_a_matrix_is_a_curvature(kind, x64, untyped):
    H = np.array([[3.0, 1.0], [1.0, 2.0]])
    kinds = {
        "NumPy": H,
        "list": H.tolist(),
        "operator": lx.MatrixLinearOperator(jnp.asarray(H), lx.symmetric_tag),
        "function": lambda _: lx.MatrixLinearOperator(jnp.asarray(H), lx.symmetric_tag),
    }

    def loss(x):
        return 0.5 * x @ jnp.asarray(H) @ x - jnp.sum(x)

    sol = minimise(loss, jnp.ones(2), sn.solvers.approx_newton(kinds[kind]))
    assert int(sol.stats["steps"]) <= 2
    assert_close(sol.value, np.linalg.solve(H, np.ones(2)), rtol=1e-9)


def test_a_matrix_is_a_curvature_of_a_pytree(x64):
    H = np.array([[3.0, 1.0], [1.0, 2.0]])

    def loss(tree):
        x = jnp.stack([tree["a"], tree["b"][0]])
        return 0.5 * x @ jnp.asarray(H) @ x - jnp.sum(x)

    tx = sn.solvers.approx_newton(H, damping="trust_region")
    sol = minimise(loss, {"a": jnp.ones(()), "b": jnp.ones(1)}, tx)
    assert_close([sol.value["a"], sol.value["b"][0]], np.linalg.solve(H, np.ones(2)), rtol=1e-9)


# --- results
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "sinh", "identity"])
def test_a_start_outside_of_the_domain_gives_what_the_problem_says(activation):
    A = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    p = sn.regression.problem(A, np.full(6, 1 / 6, "float32"), activation, "normalized", 0.1)
    start = jnp.zeros(3)
    sol = minimise(p, start, SGD, throw=False, max_steps=3)
    assert int(sol.result) == int(p.check(start)) == Result.NORMALISER_LOST
    assert "normaliser" in sol.advice


# --- what is refused
# -------------------------------------------------------------------------------------

X = jnp.zeros(2)
REFUSED = {
    "tx by name": (
        lambda: minimise(bowl, X, "adam"),
        r"tx must be an optax transform, got 'adam'. Write optax.adam",
    ),
    "tx uncalled": (
        lambda: minimise(bowl, X, optax.adam),
        "tx must be an optax transform.* Call it: adam",
    ),
    "tx a number": (lambda: minimise(bowl, X, 0.1), "tx must be an optax transform, got 0.1"),
    "start and tx swapped": (lambda: minimise(bowl, SGD, X), "tx must be an optax transform"),
    "problem a string": (
        lambda: minimise("softmax", X),
        "problem must be a function of the params",
    ),
    "problem a class": (lambda: minimise(dict, X), "problem must be a function of the params"),
    "loss with aux": (
        lambda: minimise(lambda x: (bowl(x), x), X),
        "problem must return a scalar.* got a tuple",
    ),
    "loss of integers": (
        lambda: minimise(lambda x: jnp.array(1), X),
        "problem must return a floating-point scalar",
    ),
    "x0 None": (lambda: minimise(bowl, None), "x0 must hold at least one array"),
    "x0 a list": (lambda: minimise(bowl, [0.0, 1.0]), r"x0 must be an array, .* jnp.asarray\(x0"),
    "x0 integers": (lambda: minimise(bowl, jnp.zeros(2, int)), "x0 must be a floating-point array"),
    "x0 Boolean": (lambda: minimise(bowl, jnp.zeros(2, bool)), "x0 must be a floating-point array"),
    "x0 complex": (lambda: minimise(bowl, jnp.zeros(2, complex)), "x0 must be real, got complex"),
    "x0 a string": (lambda: minimise(bowl, "zero"), "x0 must be an array, or a pytree of arrays"),
    "x0 of objects": (
        lambda: minimise(bowl, np.array([None, 1], object)),
        "x0 must hold arrays of numbers",
    ),
    "x0 empty": (lambda: minimise(bowl, jnp.zeros((2, 0))), "x0 must not hold empty arrays"),
    "args no tuple": (
        lambda: minimise(bowl, X, SGD, args=jnp.ones(2)),
        r"args must be a tuple.* args=\(value,\)",
    ),
    "args of a problem": (
        lambda: minimise(sn.regression.softmax(np.eye(2), np.ones(2) / 2), X, args=(1.0,)),
        "args are for plain functions",
    ),
    "rtol a string": (
        lambda: minimise(bowl, X, SGD, rtol="small"),
        "rtol must be a finite number, got 'small'",
    ),
    "rtol NaN": (lambda: minimise(bowl, X, SGD, rtol=float("nan")), "rtol must be a finite number"),
    "atol infinite": (
        lambda: minimise(bowl, X, SGD, atol=float("inf")),
        "atol must be a finite number",
    ),
    "max_steps Boolean": (
        lambda: minimise(bowl, X, SGD, max_steps=True),
        "max_steps must be a non-negative integer",
    ),
    "max_steps None": (
        lambda: minimise(bowl, X, SGD, max_steps=None),
        "max_steps must be a non-negative integer",
    ),
    "throw yes": (
        lambda: minimise(bowl, X, SGD, throw="yes"),
        "throw must be True or False, got 'yes'",
    ),
    "progress 1": (lambda: minimise(bowl, X, SGD, progress=1), "progress must be True or False"),
    "checkpoint a flag": (
        lambda: minimise(bowl, X, SGD, checkpoint=True),
        "checkpoint must be a path or None",
    ),
    "traced steps": (
        lambda: jax.jit(lambda n: minimise(bowl, X, SGD, max_steps=n).value)(3),
        "max_steps must be a non-negative integer",
    ),
    "traced tolerance": (
        lambda: jax.jit(lambda r: minimise(bowl, X, SGD, rtol=r).value)(1e-3),
        "rtol must be known",
    ),
    "train by name": (lambda: train(bowl, X, "adam", 3), "tx must be an optax transform"),
    "train a vector": (
        lambda: train(lambda x: x, X, SGD, 3),
        r"loss must return a scalar.* got shape \(2,\)",
    ),
    "train with aux": (
        lambda: train(lambda x: (bowl(x), x), X, SGD, 3),
        "loss must return a scalar.* got a tuple",
    ),
    "train nothing": (lambda: train(bowl, {}, SGD, 3), "params must hold at least one array"),
    "train integers": (
        lambda: train(bowl, jnp.zeros(2, int), SGD, 3),
        "params must be a floating-point array",
    ),
    "train no function": (lambda: train(None, X, SGD, 3), "loss must be a function"),
    "train half a step": (
        lambda: train(bowl, X, SGD, 1.5),
        "steps must be a positive integer, got 1.5",
    ),
    "rate NaN": (
        lambda: sn.solvers.gradient_descent(float("nan")),
        "learning_rate must be a positive",
    ),
    "rate a string": (
        lambda: sn.solvers.gradient_descent("0.1"),
        "learning_rate must be a positive",
    ),
    "momentum a string": (
        lambda: sn.solvers.gradient_descent(0.1, "0.9"),
        "momentum must be a finite number",
    ),
    "nesterov yes": (
        lambda: sn.solvers.gradient_descent(0.1, 0.9, "yes"),
        "nesterov must be True or False",
    ),
    "constant NaN": (
        lambda: step_sizes.paper(0.5, 3, 1, 4, constant=float("nan")),
        "constant must be a positive",
    ),
    "constant negative": (
        lambda: step_sizes.paper(0.5, 3, 1, 4, constant=-1.0),
        "constant must be a positive",
    ),
    "exponent NaN": (
        lambda: step_sizes.paper(0.5, 3, 1, 4, exponent=float("nan")),
        "exponent must be",
    ),
    "eigenvalue a string": (lambda: step_sizes.fastest("1", 2.0), "smallest must be a positive"),
    "damping unhashable": (
        lambda: sn.solvers.approx_newton(np.eye(2), damping=["x"]),
        "damping must be one of",
    ),
    "no key": (lambda: sn.solvers.approx_newton(np.eye(2), key=0), "key must be a random key"),
    "line search by name": (
        lambda: sn.solvers.approx_newton(np.eye(2), linesearch="zoom"),
        "linesearch must be an optax",
    ),
    "curvature of half": (
        lambda: sn.solvers.approx_newton(jnp.eye(2, dtype="bfloat16")),
        "curvature must be float32",
    ),
    "curvature NaN": (
        lambda: sn.solvers.approx_newton(np.full((2, 2), np.nan)),
        "curvature must be finite",
    ),
    "path NaN": (
        lambda: sn.solvers.contraction(
            sn.regression.softmax(np.eye(3), np.ones(3) / 3, 0.1),
            np.full((3, 3), np.nan),
            np.zeros(2),
        ),
        "path must be finite",
    ),
    "contraction of nothing": (
        lambda: sn.solvers.contraction(None, np.zeros((3, 3)), np.zeros(2)),
        "problem must be one of softntk.regression",
    ),
    "net None": (
        lambda: sn.solvers.natural_gradient(None, jnp.ones((2, 3)), jnp.ones(2)),
        "net must be a network",
    ),
    "x a string": (
        lambda: sn.solvers.natural_gradient(bowl, "x", jnp.ones(2)),
        "x must be an array",
    ),
    "damped 1": (
        lambda: sn.solvers.natural_gradient(bowl, jnp.ones((2, 3)), jnp.ones(2), damped=1),
        "damped must be True or False",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_named(case, untyped):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
