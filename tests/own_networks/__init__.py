"""Networks as users bring them: of plain JAX, flax.linen, flax.nnx and equinox, as one table.

Each entry of ``OWN_NETWORKS`` is a function ``dtype -> OwnNetwork``. The oracle is by hand: which
of the parameters are weights, and how outputs come from them, is written out for each network in
the manner of its library. Nothing of softntk is used.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from own_networks.equinox_modules import equinox_convolution, equinox_mlp, equinox_scalar
from own_networks.flax_modules import (
    LinenConvolution,
    linen_convolution,
    linen_mlp,
    nnx_module,
    nnx_split,
    nnx_state,
)
from own_networks.plain_functions import (
    attention_over_tokens,
    counters_and_keys,
    dataclass_weights,
    one_number_a_row,
    plain_dict,
    unit_inputs,
)
from own_networks.record import OwnNetwork, cast, draw

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
