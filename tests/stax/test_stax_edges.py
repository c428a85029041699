"""The layers of softntk.stax at the edges: no normaliser, traced numbers, points without limit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    layers = (stax.Dense(4, W_std=sigma * 3**0.5), stax.CRReLU(epsilon), stax.Dense(1))
    theirs: Any = stax.serial(*layers)[2](x, None, ("nngp", "ntk"))
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
        kernel: Any = stax.serial(*layers)[2](x, None, "ntk")
        return jnp.sum(kernel)

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
