"""Networks of plain JAX."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from own_networks.record import OwnNetwork, draw


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
