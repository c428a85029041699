"""Arguments of the layers of softntk.stax: what is wrong is named, lists and tables are converted."""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import softntk as sn
from softntk import stax


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: stax.Softmax(temperature=0.0),
            "temperature must be a positive finite number, got 0.0",
        ),
        (lambda: stax.NormalizedActivation("erf"), "'erf' layer has no infinite limit"),
        (
            lambda: stax.NormalizedActivation(sn.activations.from_function(jnp.tanh, "tanh")),
            "'tanh' layer has no infinite limit",
        ),
        (
            lambda: stax.Softmax(channel_axis="c"),
            "channel_axis of Softmax must be an integer, got 'c'",
        ),
        (
            lambda: stax.Softmax(channel_axis=2)[0](jax.random.key(0), (3, 4)),
            "Softmax normalizes over channel_axis 2",
        ),
        (
            lambda: stax.ResSoftmax(channel_axis=0)[1]((), jnp.ones((2, 3))),
            "ResSoftmax normalizes over channel_axis 0",
        ),
        (lambda: stax.CRReLU(float("nan")), "epsilon must be a finite number, got nan"),
        (lambda: stax.NormalizedActivation("tanhh"), "activation must be one of"),
        (
            lambda: stax.serial(stax.Dense(1), stax.Softmax())[0](jax.random.key(0), (-1, 3)),
            "Softmax needs at least two",
        ),
        (
            lambda: stax.Softmax()[1]((), jnp.ones((2, 1))),
            "Softmax needs at least two channels.*shape .2, 1.",
        ),
        (
            lambda: stax.serial(stax.Dense(4), stax.Softmax(), stax.Threshold())[2](
                np.ones((2, 3))
            ),
            "Threshold needs a Gaussian",
        ),
        (
            lambda: stax.serial(stax.Dense(4), stax.ResSoftmax())[2](np.full((2, 3), np.nan)),
            "ResSoftmax got .* not finite",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


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
