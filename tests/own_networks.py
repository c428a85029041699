"""Networks as users bring them: of plain JAX, flax.linen, flax.nnx and equinox, as one table.

Each entry of ``OWN_NETWORKS`` is a function ``dtype -> OwnNetwork``. The oracle is by hand: which
of the parameters are weights, and how outputs come from them, is written out for each network in
the manner of its library. Nothing of softntk is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class OwnNetwork(NamedTuple):
    """A function of the user's and what it is called with.

    Attributes:
        apply_fn: ``apply_fn(params, x, **apply_kwargs)`` is [n, k] or [n].
        params: the weights, with whatever else the library keeps beside them.
        x: points, [n, …].
        apply_kwargs: further arguments.
        weights: what is differentiated by, arrays alone.
        outputs: ``outputs(weights, x)`` is [n, k], by hand.
    """

    apply_fn: Callable
    params: Any
    x: jax.Array
    apply_kwargs: dict[str, Any]
    weights: Any
    outputs: Callable

    def jacobian(self, x: jax.Array | None = None) -> np.ndarray:
        """Return the derivative of all outputs at x in all weights, [n, k, p]."""
        points = self.x if x is None else x
        leaves = jax.tree.leaves(jax.jit(jax.jacobian(self.outputs))(self.weights, points))
        shape = jax.eval_shape(self.outputs, self.weights, points).shape
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(*shape, -1) for leaf in leaves], axis=-1
        )

    def kernel(self, x1: jax.Array | None = None, x2: jax.Array | None = None) -> np.ndarray:
        """Return the empirical kernel, [n1, n2, k, k]."""
        return np.einsum("ilp,jmp->ijlm", self.jacobian(x1), self.jacobian(x2))


def draw(seed: int, *shape: int, dtype: str) -> jax.Array:
    """Return normal numbers that both precisions hold exactly."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32), dtype)


def cast(tree: Any, dtype: str) -> Any:
    """Return the tree with its floating-point arrays in this precision."""

    def convert(leaf: Any) -> Any:
        floating = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(convert, tree)


# --- plain JAX
# ------------------------------------------------------------------------------------------------------


def plain_dict(dtype: str) -> OwnNetwork:
    """Return two layers in a dictionary."""
    params = {
        "hidden": draw(0, 3, 5, dtype=dtype),
        "bias": draw(1, 5, dtype=dtype),
        "readout": draw(2, 5, 2, dtype=dtype),
    }

    def apply_fn(params: dict, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["hidden"] + params["bias"][None]) @ params["readout"]

    return OwnNetwork(apply_fn, params, draw(3, 5, 3, dtype=dtype), {}, params, apply_fn)


def one_number_a_row(dtype: str) -> OwnNetwork:
    """Return a function whose outputs are [n]."""
    weights = draw(0, 3, dtype=dtype)

    def apply_fn(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ weights)

    return OwnNetwork(
        apply_fn,
        weights,
        draw(1, 5, 3, dtype=dtype),
        {},
        weights,
        lambda w, x: apply_fn(w, x)[:, None],
    )


def unit_inputs(dtype: str) -> OwnNetwork:
    """Return a function that divides its inputs by their norms."""
    weights = draw(0, 3, 2, dtype=dtype)

    def apply_fn(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh((x / jnp.linalg.norm(x, axis=1, keepdims=True)) @ weights)

    return OwnNetwork(apply_fn, weights, draw(1, 5, 3, dtype=dtype), {}, weights, apply_fn)


def counters_and_keys(dtype: str) -> OwnNetwork:
    """Return nested tuples with None, integers, Booleans, a key, a name and a function among the
    weights.
    """
    weights = draw(0, 3, 2, dtype=dtype)
    params = (
        weights,
        None,
        [jnp.array(3), np.arange(2), jnp.array(True), 7],
        {"key": jax.random.key(0), "name": "tanh", "activation": jnp.tanh},
    )

    def apply_fn(params: tuple, x: jax.Array) -> jax.Array:
        weights, _, (scale, _, _, layers), rest = params
        assert layers == 7  # stays a number of Python
        assert rest["name"] == "tanh"
        return scale.astype(x.dtype) * rest["activation"](x @ weights)

    return OwnNetwork(
        apply_fn, params, draw(1, 5, 3, dtype=dtype), {}, weights, lambda w, x: 3 * jnp.tanh(x @ w)
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    """Weights as a dataclass."""

    hidden: jax.Array
    readout: jax.Array


def dataclass_weights(dtype: str) -> OwnNetwork:
    """Return a dataclass with a scale and a flag as further arguments."""
    params = Layers(hidden=draw(0, 3, 4, dtype=dtype), readout=draw(1, 4, 2, dtype=dtype))

    def apply_fn(
        params: Layers, x: jax.Array, scale: Any = 1.0, *, smooth: bool = False
    ) -> jax.Array:
        hidden = x @ params.hidden
        return scale * ((jnp.tanh(hidden) if smooth else jnp.maximum(hidden, 0)) @ params.readout)

    apply_kwargs = {"scale": jnp.asarray(0.5, dtype), "smooth": True}
    return OwnNetwork(
        apply_fn,
        params,
        draw(2, 5, 3, dtype=dtype),
        apply_kwargs,
        params,
        lambda p, x: apply_fn(p, x, 0.5, smooth=True),
    )


def attention_over_tokens(dtype: str) -> OwnNetwork:
    """Return attention among the tokens of a row, of inputs [n, tokens, d]."""
    params = {"query": draw(0, 3, 3, dtype=dtype), "value": draw(1, 3, 2, dtype=dtype)}

    def apply_fn(params: dict, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(x @ params["query"] @ x.transpose(0, 2, 1), axis=-1)
        return (weights @ x @ params["value"]).mean(axis=1)

    return OwnNetwork(apply_fn, params, draw(2, 5, 4, 3, dtype=dtype), {}, params, apply_fn)


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

    def outputs(weights: Any, x: jax.Array) -> jax.Array:
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


# --- equinox
# --------------------------------------------------------------------------------------------------------


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


OWN_NETWORKS: dict[str, Callable[[str], OwnNetwork]] = {
    make.__name__: make
    for make in (
        plain_dict,
        one_number_a_row,
        unit_inputs,
        counters_and_keys,
        dataclass_weights,
        attention_over_tokens,
        linen_mlp,
        linen_convolution,
        nnx_module,
        nnx_state,
        nnx_split,
        equinox_mlp,
        equinox_scalar,
        equinox_convolution,
    )
}
"""All of them by name."""


# --- what rows do to each other
# -------------------------------------------------------------------------------------


def interacting_rows(dtype: str) -> dict[str, OwnNetwork]:
    """Return functions whose outputs at a row depend on the other rows: normalised by the batch,
    and with one key for all.
    """
    plain = plain_dict(dtype)

    def centred(params: dict, x: jax.Array) -> jax.Array:
        return plain.apply_fn(params, x - jnp.mean(x, axis=0, keepdims=True))

    def dropped(params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
        return plain.apply_fn(params, x * jax.random.bernoulli(key, 0.5, x.shape))

    model, x = LinenConvolution(), draw(0, 4, 3, 3, 1, dtype=dtype)
    variables = cast(model.init(jax.random.key(0), x, train=False), dtype)

    def normalised(variables: dict, x: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    def by_hand(weights: Any, x: jax.Array) -> jax.Array:
        return normalised({"params": weights, "batch_stats": variables["batch_stats"]}, x)

    key = jax.random.key(0)
    return {
        "centred": plain._replace(apply_fn=centred, outputs=centred),
        "dropped": plain._replace(
            apply_fn=dropped, apply_kwargs={"key": key}, outputs=lambda p, x: dropped(p, x, key)
        ),
        "normalised": OwnNetwork(normalised, variables, x, {}, variables["params"], by_hand),
    }
