"""Lists, vectors, numbers of any library and values beyond float32 mean what they say in all
functions of theory.
"""

# Arguments of other types, which are converted, are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import softntk as sn
from softntk.theory import bounds, generalisation, lazy
from softntk.theory import feature_learning as fl

X = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
Y = np.array([[0.1], [0.2], [0.1]], np.float32)
GRAM = np.eye(3) + 0.1
KEY = jax.random.key(0)
NET = sn.networks.two_layer("softmax", width=8)
PARAMS = NET.init_fn(KEY, (-1, 2))[1]
OTHER = sn.networks.two_layer("softmax", width=8, out_dim=2).init_fn(KEY, (-1, 2))[1]


def regression():
    return sn.regression.softmax(jnp.eye(3), jnp.ones(3) / 3, 0.1)


def test_targets_of_one_output_may_be_a_vector(untyped):
    """Lists, vectors and other precisions mean what they say."""
    rows = X.tolist()
    np.testing.assert_array_equal(
        fl.one_step(NET, PARAMS, rows, Y[:, 0], 0.1).hidden,
        fl.one_step(NET, PARAMS, X, Y, 0.1).hidden,
    )
    np.testing.assert_array_equal(fl.ridge_features(X, Y[:, 0], rows), fl.ridge_features(X, Y, X))
    assert (
        generalisation.rkhs_norm(GRAM.tolist(), Y[:, 0]).total
        == generalisation.rkhs_norm(GRAM, Y).total
    )
    assert generalisation.noise_level(GRAM, Y[:, 0]) == generalisation.noise_level(GRAM, Y)
    assert sn.theory.risk_bound(GRAM, Y[:, 0]).bound == sn.theory.risk_bound(GRAM, Y).bound
    one = sn.theory.certify_convergence(NET, PARAMS, X, Y[:, 0])
    assert one == sn.theory.certify_convergence(NET, PARAMS, X, Y)
    assert fl.corrupt("gaussian", Y[:, 0], 0.0, key=KEY).shape == (3, 1)
    two = sn.networks.two_layer("softmax", width=8, out_dim=2)
    with pytest.raises(ValueError, match=r"y must have shape \[n, k\] = \[3, 2\]"):
        fl.one_step(two, OTHER, X, Y[:, 0], 0.1)


def test_numbers_of_any_library(untyped):
    plain = bounds.required_width("softmax", 3, 0.125, sigma=0.5)
    assert plain == bounds.required_width(
        "softmax", np.int64(3), np.float32(0.125), sigma=jnp.float32(0.5)
    )
    assert type(bounds.learning_rate("relu", np.int32(3), np.float64(0.1))) is float
    values = np.array([1e-13, 1e-14])
    stop = generalisation.early_stopping_time(
        None, 1e-18, learning_rate=0.9 / np.float64(1e-13), eigenvalues=values
    )
    assert type(stop.steps) is int
    assert stop.steps > 2**63
    assert_close(stop.steps * 0.9 / 1e-13, stop.time)
    assert stop == generalisation.early_stopping_time(
        None, 1e-18, learning_rate=0.9 / 1e-13, eigenvalues=values.tolist()
    )


def test_values_beyond_float32_are_what_they_are_in_float64(untyped):
    """In float64 on the host, whether or not JAX has float64."""
    y = np.array([[1e300], [1.0], [0.0]])
    assert_close(generalisation.rkhs_norm(np.eye(3), y).total, 1e300)
    assert_close(generalisation.rkhs_norm(1e200 * np.eye(3), y).total, 1e200)
    assert not sn.theory.certify_convergence(NET, PARAMS, X, y).holds
    assert not sn.theory.certify_convergence(NET, PARAMS, 1e200 * X.astype(float), Y).holds
    assert not sn.theory.certify_minimum(regression(), np.array([1e300, 0.0, 0.0])).holds
    for call, name in [
        (lambda: fl.one_step(NET, PARAMS, X, y, 0.1), "y"),
        (lambda: lazy.distances(NET, PARAMS, X, y, learning_rate=0.1, steps=1), "y"),
        (lambda: fl.features(NET, PARAMS, 1e39 * X.astype(float)), "x"),
        (
            lambda: lazy.distances(
                NET, PARAMS, np.float32(3e38) * X, Y, learning_rate=0.1, steps=1
            ),
            "x",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must .*finite"):
            call()
