"""Networks of equinox."""

from typing import Any

import equinox as eqx
import jax

from own_networks.record import OwnNetwork, cast, draw


class EquinoxConvolution(eqx.Module):
    """A convolution of one image, with dropout."""

    convolution: eqx.nn.Conv2d
    dropout: eqx.nn.Dropout
    readout: eqx.nn.Linear
    slope: float = 0.1

    def __init__(self, key: jax.Array):
        self.convolution = eqx.nn.Conv2d(1, 2, 2, key=key)
        self.dropout = eqx.nn.Dropout(0.5)
        self.readout = eqx.nn.Linear(8, 2, key=key)

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None, inference: bool = False
    ) -> jax.Array:
        """Return the outputs."""
        x = jax.nn.leaky_relu(self.convolution(x), self.slope)
        return self.readout(self.dropout(x, key=key, inference=inference).reshape(-1))


def equinox_mlp(dtype: str) -> OwnNetwork:
    """Return a module whose activation is among its leaves."""
    model = cast(eqx.nn.MLP(3, 2, 4, 1, jax.nn.gelu, key=jax.random.key(0)), dtype)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    return OwnNetwork(
        lambda model, x: jax.vmap(model)(x),
        model,
        draw(0, 5, 3, dtype=dtype),
        {},
        weights,
        lambda weights, x: jax.vmap(eqx.combine(weights, static))(x),
    )


def equinox_scalar(dtype: str) -> OwnNetwork:
    """Return a module with one number a row."""
    model = cast(eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0)), dtype)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    return OwnNetwork(
        lambda model, x: jax.vmap(model)(x),
        model,
        draw(0, 5, 3, dtype=dtype),
        {},
        weights,
        lambda weights, x: jax.vmap(eqx.combine(weights, static))(x)[:, None],
    )


def equinox_convolution(dtype: str) -> OwnNetwork:
    """Return a convolution with a key and a flag as further arguments."""
    model = cast(EquinoxConvolution(jax.random.key(0)), dtype)
    weights, static = eqx.partition(model, eqx.is_inexact_array)

    def apply_fn(
        model: EquinoxConvolution, x: jax.Array, key: jax.Array, inference: bool
    ) -> jax.Array:
        return jax.vmap(lambda image: model(image, key=key, inference=inference))(x)

    def outputs(weights: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda image: eqx.combine(weights, static)(image, inference=True))(x)

    apply_kwargs = {"key": jax.random.key(1), "inference": True}
    return OwnNetwork(
        apply_fn, model, draw(0, 4, 1, 3, 3, dtype=dtype), apply_kwargs, weights, outputs
    )
