"""A network on training points: its outputs, its kernel and the params that move."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from softntk._core.validation import as_floating
from softntk.networks import Network

Params = PyTree


class NetworkAtPoints(NamedTuple):
    """A network on the training points, as a function of its floating-point params.

    Attributes:
        kernel_of: the argument of :func:`softntk.ntk.operator`, a network or a function.
        params: the params that are not constant.
        outputs: params → F, [n, k].
        decayed_params: the params that a penalty decays, zeros in place of the others.
    """

    kernel_of: Network | Callable[[Params, Array], Array]
    params: Params
    outputs: Callable[[Params], Array]
    decayed_params: Params


def as_points(net: Any, x: Any) -> Float[Array, "n ..."]:
    """Return points as a floating-point array, one a row."""
    x = as_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must have shape [n, …], one row a point, got a number.")
    if isinstance(net, Network) and x.ndim != 2:
        raise ValueError(
            "x must have shape [n, d], one row a point, for a network of two_layer, "
            f"got shape {x.shape}."
        )
    return x


def bind_network(
    net: Any, apply_fn: Callable, x: Array, params: Params, value_fn: Callable | None
) -> tuple[NetworkAtPoints, Array]:
    """Return the network on the points, and the points as rows of the kernel."""
    if isinstance(net, Network):
        decayed_params = params
        if not net.architecture.train_readout:
            decayed_params = params.replace(readout=jnp.zeros_like(params.readout))
        network = NetworkAtPoints(net, params, lambda params: apply_fn(params, x), decayed_params)
        _check_outputs(network, len(x))
        return network, x
    # minimise hides constant leaves from the transform; its value_fn completes the params.
    complete = getattr(value_fn, "complete", lambda params: params)
    params, constants = eqx.partition(params, eqx.is_inexact_array)

    def apply_to_rows(params: Params, rows: Array) -> Array:
        points = rows.reshape(-1, *x.shape[1:])
        outputs = apply_fn(complete(eqx.combine(params, constants)), points)
        shape = getattr(outputs, "shape", None)
        if not shape or shape[0] != len(points):
            raise ValueError(
                f"net must return one array of outputs [n, k] for {len(points)} points, got "
                f"{type(outputs).__name__ if shape is None else shape}."
            )
        return jnp.reshape(outputs, (len(points), -1))

    rows = x.reshape(len(x), -1)
    outputs = partial(apply_to_rows, rows=rows)
    network = NetworkAtPoints(apply_to_rows, params, outputs, params)
    _check_outputs(network, len(x))
    return network, rows


def _check_outputs(network: NetworkAtPoints, n: int) -> None:
    """Raise ValueError for outputs that have not one row a point."""
    outputs = jax.eval_shape(network.outputs, network.params)
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != n:
        raise ValueError(
            f"net must return outputs [n, k] for {n} points, got "
            f"{type(outputs).__name__ if shape is None else shape}."
        )
