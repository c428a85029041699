"""The compiled loop against a Python loop, and what it says when the loss explodes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, points

import softntk as sn
from softntk.solution import NumericalError, Result


def loss(params, x, y):
    return 0.5 * jnp.sum((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


@pytest.mark.parametrize(
    "tx",
    [sn.solvers.gradient_descent(0.05), optax.adam(0.01), optax.lbfgs()],
    ids=["gd", "adam", "lbfgs"],
)
def test_equals_a_python_loop(tx, x64):
    x, y = points(0, 6, 3), points(1, 6, 2)
    start = {"w": points(2, 3, 4), "v": points(3, 4, 2)}
    sol = sn.solvers.train(loss, start, tx, 12, x, y, snapshot_every=4)
    value_fn = lambda p: loss(p, x, y)

    @jax.jit
    def one_step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = optax.with_extra_args_support(tx).update(grad, state, params, **extra)
        return value, optax.apply_updates(params, updates), state

    params, state, losses, seen = start, tx.init(start), [], []
    for step in range(12):
        seen += [params] if step % 4 == 0 else []
        value, params, state = one_step(params, state)
        losses.append(float(value))
    np.testing.assert_allclose(sol.stats["loss"], [*losses, float(value_fn(params))], rtol=1e-10)
    for name in start:
        np.testing.assert_allclose(sol.value[name], params[name], rtol=1e-8)
        np.testing.assert_allclose(
            sol.stats["snapshots"][name], [p[name] for p in [*seen, params]], rtol=1e-8
        )
    assert sol.check() is sol


def test_goes_on_from_its_state():
    tx, f = optax.adam(0.1), lambda x: jnp.sum(x**4)
    whole = sn.solvers.train(f, jnp.ones(3), tx, 10)
    assert whole.stats["loss"].shape == (11,)
    assert set(whole.stats) == {"loss"}
    assert jax.tree.structure(whole.state) == jax.tree.structure(tx.init(jnp.ones(3)))


def test_divergence_stops_at_the_last_good_point_and_says_so():
    f = lambda x: jnp.sum(x**2)
    sol = sn.solvers.train(f, jnp.array([1e18]), sn.solvers.gradient_descent(10.0), 50)
    assert Result(int(sol.result)) is Result.DIVERGED
    assert np.isfinite(f(sol.value))
    assert not np.isnan(sol.stats["loss"]).any()
    assert np.isposinf(sol.stats["loss"][-1])
    assert "smaller learning rate" in sol.advice
    with pytest.raises(NumericalError, match="DIVERGED: .*learning rate"):
        sol.check()


def test_a_bad_start_is_told_apart():
    sol = sn.solvers.train(
        lambda x: jnp.sum(x), jnp.array([jnp.nan]), sn.solvers.gradient_descent(0.1), 3
    )
    assert Result(int(sol.result)) is Result.NONFINITE_INPUT


def test_every_result_has_advice():
    assert all(len(code.advice) > 20 for code in Result)


def test_second_call_does_not_compile_again(compilations):
    """Neither with the same loss and transform, which are not even traced, nor with new ones."""
    traces = []

    def make_loss(scale):
        def loss(x):
            traces.append(scale)
            return jnp.sum(scale * x**2)

        return loss

    starts = jnp.ones(3), 2 * jnp.ones(3)
    first_scale, second_scale = jnp.arange(3.0), jnp.ones(3)
    loss, tx = make_loss(first_scale), sn.solvers.gradient_descent(0.1)
    sn.solvers.train(loss, starts[0], tx, 4)
    compilations.clear()
    traces.clear()
    again = sn.solvers.train(loss, starts[1], tx, 4)
    assert traces == []
    fresh = sn.solvers.train(
        make_loss(second_scale), starts[0], sn.solvers.gradient_descent(0.1), 4
    )
    assert compilations == []
    assert_close(again.value, starts[1] * (1 - 0.2 * first_scale) ** 4, "float32")
    assert_close(fresh.value, starts[0] * (1 - 0.2 * second_scale) ** 4, "float32")


@pytest.mark.parametrize(
    ("steps", "every", "message"),
    [
        (0, None, "steps must be a positive integer, got 0"),
        (10, 3, "snapshot_every must divide steps, got 3 and 10"),
        (10, 0, "snapshot_every must be"),
    ],
)
def test_bad_counts(steps, every, message):
    with pytest.raises(ValueError, match=message):
        sn.solvers.train(
            lambda x: jnp.sum(x**2),
            jnp.ones(2),
            sn.solvers.gradient_descent(0.1),
            steps,
            snapshot_every=every,
        )


@pytest.mark.parametrize("place", ["loss", "transform", "argument"])
def test_derivatives_by_what_is_closed_over(place, x64):
    """Five steps of x ↦ x − 2η(x − s c) from zero end at s c (1 − (1 − 2η)⁵)."""
    centre = jnp.arange(1.0, 4.0)

    def end(number):
        scale = 1.0 if place == "transform" else number
        tx = sn.solvers.gradient_descent(number if place == "transform" else 0.1)
        if place == "argument":
            found = sn.solvers.train(
                lambda x, s: jnp.sum((x - s * centre) ** 2), jnp.zeros(3), tx, 5, number
            )
        else:
            found = sn.solvers.train(
                lambda x: jnp.sum((x - scale * centre) ** 2), jnp.zeros(3), tx, 5
            )
        return jnp.sum(found.value)

    rate = 0.15 if place == "transform" else 0.1
    desired = 6 * 10 * (1 - 2 * rate) ** 4 if place == "transform" else 6 * (1 - 0.8**5)
    at = rate if place == "transform" else 1.3
    assert_close(jax.grad(end)(at), desired, rtol=1e-12)
    assert_close(jax.jit(jax.grad(end))(at), desired, rtol=1e-12)
    assert_close(jax.vmap(jax.grad(end))(jnp.array([at, at])), [desired] * 2, rtol=1e-12)
