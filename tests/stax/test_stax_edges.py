"""The layers of softntk.stax at the edges: no normaliser, traced numbers, points without limit,
wrong arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import assert_close, points

import softntk as sn
from softntk import stax


@pytest.mark.parametrize("epsilon", [0.3, 0.7])
def test_crrelu_divides_by_nothing(epsilon, x64):
    """Kernel and function are those of the activation, at any variance: W_std = σ√d, and their
    first NTK is σ² times ours.
    """
    sigma, x = 2.0, points(0, 4, 3)
    activation = sn.activations.crrelu(epsilon)
    ours = sn.networks.two_layer(activation=activation, width=4, sigma=sigma).kernel_fn(x)
    theirs = stax.serial(stax.Dense(4, W_std=sigma * 3**0.5), stax.CRReLU(epsilon), stax.Dense(1))[
        2
    ](x, None, ("nngp", "ntk"))
    assert_close(theirs.nngp, ours.nngp, rtol=1e-12)
    assert_close(theirs.ntk, sigma**2 * ours.ntk + ours.nngp, rtol=1e-12)
    z = np.linspace(-2, 2, 9)[None]
    assert_close(
        stax.CRReLU(epsilon)[1]((), z), np.maximum(z, 0) + epsilon * z * np.exp(-(z**2) / 2)
    )


def test_temperature_and_epsilon_are_traced(x64):
    x = points(0, 3, 2)

    def total(temperature, epsilon):
        layers = (
            stax.Dense(4),
            stax.CRReLU(epsilon),
            stax.Dense(4),
            stax.Softmax(temperature),
            stax.Dense(1),
        )
        return jnp.sum(stax.serial(*layers)[2](x, None, "ntk"))

    for i, gradient in enumerate(jax.grad(total, (0, 1))(1.5, 0.3)):
        h = 1e-6 * np.eye(2)[i]
        assert_close(
            gradient,
            (total(1.5 + h[0], 0.3 + h[1]) - total(1.5 - h[0], 0.3 - h[1])) / 2e-6,
            rtol=1e-7,
        )


@jax.numpy_rank_promotion("allow")
def test_empty_patches_saturate_under_jit():
    x = jnp.zeros((2, 3, 3, 1)).at[0, 0, 0, 0].set(1.0)
    layers = (
        stax.Conv(4, (2, 2)),
        stax.NormalizedActivation("relu"),
        stax.Flatten(),
        stax.Dense(1),
    )
    kernel = jax.jit(lambda x: stax.serial(*layers)[2](x, None, "ntk"))(x)
    assert not np.isnan(kernel).any()
    assert np.all(kernel > 1e30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda t=t: stax.Softmax(t), "temperature must be a positive finite")
            for t in (-1.0, "1", None, 1j, True, np.inf, [1.0])
        ),
        *(
            (lambda e=e: stax.CRReLU(e), "epsilon must be")
            for e in ("1", None, 1j, True, float("inf"))
        ),
        *(
            (lambda c=c: stax.ResSoftmax(c), "channel_axis of ResSoftmax must be")
            for c in ("1", None, 1.0, True)
        ),
        *(
            (lambda a=a: stax.NormalizedActivation(a), "activation must be one of")
            for a in (None, 3, [], "rellu")
        ),
        *(
            (lambda x=x: stax.CRReLU()[1]((), x), "inputs must be")
            for x in (np.array([[1j]]), np.array([[1, 2]]))
        ),
        *(
            (lambda x=x: stax.Softmax()[1]((), x), "inputs must be")
            for x in ("abc", None, jnp.sin, float, object(), 1j, True)
        ),
        (lambda: stax.Softmax()[1]((), scipy.sparse.eye_array(2)), "inputs must be a dense array"),
        (
            lambda: stax.Softmax()[1]((), np.ma.masked_array([[1.0, 2.0]], [[True, False]])),
            "inputs must have no masked",
        ),
        (lambda: stax.Softmax()[1]((), np.zeros((2, 0))), "Softmax needs at least two channels"),
        (lambda: stax.Softmax()[0](jax.random.key(0), None), "input_shape of Softmax must be"),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_take_lists_and_tables(untyped):
    rows = [[0.0, 1.0], [2.0, 0.5]]
    for make in (stax.Softmax, stax.CRReLU):
        want = make()[1]((), jnp.array(rows))
        for inputs in (rows, np.array(rows), pd.DataFrame(rows)):
            np.testing.assert_array_equal(make()[1]((), inputs), want)


def test_a_temperature_divides_the_logits(x64):
    """Softmax(τ) of Dense(W_std) is Softmax(1) of Dense(W_std/τ), but for the slope of the latter."""
    x = points(0, 3, 2)
    one, two = (
        stax.serial(stax.Dense(4, W_std=width), stax.Softmax(temperature), stax.Dense(1))[2](
            x, None, "nngp"
        )
        for width, temperature in ((3.0, 2.0), (1.5, 1.0))
    )
    assert_close(one, two, rtol=1e-12)
