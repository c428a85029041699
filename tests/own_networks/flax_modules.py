"""Networks of flax.linen and flax.nnx."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from own_networks.record import OwnNetwork, cast, draw

# --- flax.linen
# -----------------------------------------------------------------------------------------------------


class LinenMLP(nn.Module):
    """A perceptron."""

    features: list[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the outputs."""
        for width in self.features[:-1]:
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)


class LinenConvolution(nn.Module):
    """A convolution with batch normalisation and dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """Return the outputs."""
        x = nn.Conv(2, (2, 2))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.swish(x))
        return nn.Dense(2)(x.reshape(len(x), -1))


def linen_mlp(dtype: str) -> OwnNetwork:
    """Return the ``apply`` of a perceptron with a list of widths, on its variables."""
    model, x = LinenMLP([4, 2]), draw(0, 5, 3, dtype=dtype)
    variables = cast(model.init(jax.random.key(0), x), dtype)
    return OwnNetwork(
        model.apply,
        variables,
        x,
        {},
        variables["params"],
        lambda p, x: model.apply({"params": p}, x),
    )


def linen_convolution(dtype: str) -> OwnNetwork:
    """Return images through batch normalisation and dropout, both at rest, with the arguments that
    flax needs.
    """
    model, x = LinenConvolution(), draw(0, 4, 3, 3, 1, dtype=dtype)
    variables = cast(model.init(jax.random.key(0), x, train=False), dtype)
    stats = jax.tree.map(lambda leaf: leaf + 0.25, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    apply_kwargs = {"train": False, "rngs": {"dropout": jax.random.key(1)}, "mutable": False}

    def outputs(weights: Any, x: jax.Array) -> Any:
        return model.apply({"params": weights, "batch_stats": stats}, x, train=False)

    return OwnNetwork(model.apply, variables, x, apply_kwargs, variables["params"], outputs)


# --- flax.nnx
# -------------------------------------------------------------------------------------------------------


class NNXConvolution(nnx.Module):
    """A convolution with batch normalisation and dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(1, 2, (2, 2), rngs=rngs)
        self.normalisation = nnx.BatchNorm(2, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.readout = nnx.Linear(18, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the outputs."""
        x = self.dropout(nnx.swish(self.normalisation(self.convolution(x))))
        return self.readout(x.reshape(len(x), -1))


class NNXMLP(nnx.Module):
    """A perceptron."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.readout = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array, scale: Any = 1.0) -> jax.Array:
        """Return the outputs."""
        return scale * self.readout(nnx.gelu(self.hidden(x)))


def nnx_module(dtype: str) -> OwnNetwork:
    """Return a module itself as the parameters: with running averages, keys and counters in it."""
    model = cast(NNXConvolution(nnx.Rngs(0)), dtype)
    graph, weights, others = nnx.split(model, nnx.Param, ...)
    return OwnNetwork(
        lambda model, x: model(x),
        model,
        draw(0, 4, 3, 3, 1, dtype=dtype),
        {},
        weights,
        lambda weights, x: nnx.merge(graph, weights, others)(x),
    )


def nnx_state(dtype: str) -> OwnNetwork:
    """Return the whole state of a module."""
    graph, state = nnx.split(cast(NNXConvolution(nnx.Rngs(0)), dtype))
    weights, others = nnx.split_state(state, nnx.Param, ...)
    return OwnNetwork(
        lambda state, x: nnx.merge(graph, state)(x),
        state,
        draw(0, 4, 3, 3, 1, dtype=dtype),
        {},
        weights,
        lambda weights, x: nnx.merge(graph, weights, others)(x),
    )


def nnx_split(dtype: str) -> OwnNetwork:
    """Return the parameters of a module, split off, and a further argument."""
    graph, weights = nnx.split(cast(NNXMLP(nnx.Rngs(0)), dtype), nnx.Param)
    scale = jnp.asarray(2.0, dtype)
    return OwnNetwork(
        lambda weights, x, scale: nnx.merge(graph, weights)(x, scale),
        weights,
        draw(0, 5, 3, dtype=dtype),
        {"scale": scale},
        weights,
        lambda weights, x: nnx.merge(graph, weights)(x, 2.0),
    )
