"""Keys of traced programs: equal for what does the same, different for what does not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from softntk._core.program_key import MAX_COMPARED_SIZE, _parameter_key, program_key


def key(function, *arguments):
    return program_key(jax.make_jaxpr(function)(*arguments).jaxpr)


def fresh_loop(steps=5, rate=0.5):
    """A program with every kind of inner program, of functions that are made anew."""

    def program(x, flag):
        def step(carry, row):
            carry = lax.cond(flag, lambda z: z * rate, lambda z: jax.nn.relu(z) - row, carry)
            return carry, jnp.sum(carry)

        carry, sums = lax.scan(step, x, jnp.arange(float(steps)))
        carry = lax.while_loop(lambda z: jnp.sum(z) > 1, lambda z: z / 2, carry)
        inner = jax.jit(lambda z: jnp.linalg.cholesky(z @ z.T + jnp.eye(3)))
        return jax.vmap(partial(jnp.dot, carry))(inner(jnp.outer(carry, carry))), sums

    return program


X = jnp.ones(3)


def test_fresh_functions_have_the_same_key():
    arguments = X, jnp.asarray(True)
    first, second = (key(fresh_loop(), *arguments) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_gradients_and_closed_over_arrays_do_not_matter():
    def of(x):
        return jax.value_and_grad(lambda p: jnp.sum(jax.nn.softmax(p * x)[:2]))

    assert key(of(X), X) == key(of(2 * X), X)


@pytest.mark.parametrize(
    "other",
    [
        fresh_loop(steps=6),
        fresh_loop(rate=0.25),
        lambda x, flag: fresh_loop()(x + 1, flag),
        lambda x, flag: fresh_loop()(x, ~flag),
        lambda x, flag: fresh_loop()(x, flag)[0],
    ],
)
def test_other_programs_have_another_key(other):
    arguments = X, jnp.asarray(True)
    assert key(other, *arguments) != key(fresh_loop(), *arguments)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x - x[0], lambda x: x[0] - x),
        (lambda x: (x, x + 1), lambda x: (x + 1, x)),
        (lambda x: x.astype(jnp.float16), lambda x: x.astype(jnp.bfloat16)),
        (lambda x: jnp.sum(x, keepdims=True), lambda x: jnp.sum(x)),
        (lambda x: x.at[0].add(1.0), lambda x: x.at[0].set(1.0)),
        (lambda x: lax.sort(x), lambda x: -lax.sort(-x)),
        (
            lambda x: jnp.dot(x, x, precision="highest"),
            lambda x: jnp.dot(x, x, precision="default"),
        ),
        (lambda x: x + np.float32(1), lambda x: x + np.float32(2)),
    ],
)
def test_small_differences_are_seen(first, second):
    assert key(first, X) != key(second, X)
    assert key(first, X) == key(lambda x: first(x), X)


def test_shapes_and_dtypes_of_inputs_are_seen():
    square = jnp.square
    assert key(square, X) != key(square, jnp.ones(4))
    assert key(square, X) != key(square, X.astype(jnp.bfloat16))
    assert key(square, 1.0) != key(square, jnp.float32(1))  # weakly typed or not


def test_functions_in_parameters_are_compared_by_identity():
    def call(function):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        return lambda x: jax.pure_callback(function, shape, x)

    assert key(call(np.sin), X) == key(call(np.sin), X)
    assert key(call(np.sin), X) != key(call(np.cos), X)
    assert key(call(lambda x: x), X) != key(call(lambda x: x), X)


def test_derivative_rules_are_no_part_of_the_key():
    def with_slope(slope):
        @jax.custom_jvp
        def identity(x):
            return 1.0 * x

        identity.defjvp(lambda x, t: (x[0], slope * t[0]))
        return identity

    assert key(with_slope(1.0), X) == key(with_slope(2.0), X)
    # Once differentiated the rule is part of the program.
    gradients = [jax.grad(lambda x, s=slope: jnp.sum(with_slope(s)(x))) for slope in (1.0, 2.0)]
    assert key(gradients[0], X) != key(gradients[1], X)


def test_few_numbers_are_compared_by_value_and_many_by_identity():
    few, many = (np.ones(MAX_COMPARED_SIZE + extra, np.float32) for extra in (0, 1))
    for convert in (np.asarray, jnp.asarray):
        assert _parameter_key(convert(few)) == _parameter_key(convert(few.copy()))
        assert _parameter_key(convert(few)) != _parameter_key(convert(2 * few))
        assert _parameter_key(convert(many)) != _parameter_key(convert(many.copy()))
    assert _parameter_key(many) == _parameter_key(many)


def test_traced_arrays_are_equal_to_nothing():
    keys = []

    @jax.jit
    def inside(x):
        keys.extend(_parameter_key(x) for _ in range(2))
        return x

    with jax.checking_leaks():
        inside(X)
    assert keys[0] != keys[1]
