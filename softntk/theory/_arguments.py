"""Arguments that the functions of this package share, checked: networks, weights and points."""

import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import as_floating, as_rows
from softntk._core.validation.on_host import check_known, in_double, on_host
from softntk._two_layer.architecture import check_parameters as check_two_layer_parameters
from softntk.networks import Network, Parameters


def check_network(name: str, net: object) -> Network:
    """Return a network of :func:`softntk.networks.two_layer`; refuse anything else."""
    if not isinstance(net, Network):
        raise ValueError(
            f"{name} must be a network of softntk.networks.two_layer, got {type(net).__name__}."
        )
    return net


def check_parameters(name: str, params: object, net: Network, *, finite: bool = True) -> Parameters:
    """Return the weights of a network as JAX arrays; refuse those of another network."""
    params = check_weights(name, params, finite=finite)
    # The shapes must be those of the architecture, not only fit each other.
    check_two_layer_parameters(net.architecture, params)
    return params


def check_weights(name: str, params: object, *, finite: bool = True) -> Parameters:
    """Return the weights of any two-layer network as JAX arrays in their own precision."""
    if not isinstance(params, Parameters):
        raise ValueError(
            f"{name} must be the Parameters that net.init_fn makes, got {type(params).__name__}."
        )
    # The width of the hidden weights decides the shapes of readout and bias.
    hidden = as_floating(f"{name}.hidden", params.hidden, ("d", "m"), finite=finite)
    width = hidden.shape[1]
    readout = as_floating(f"{name}.readout", params.readout, (width, "k"), finite=finite)
    bias = params.bias
    if bias is not None:
        bias = as_floating(f"{name}.bias", bias, (width,), finite=finite)
    return Parameters(hidden=hidden, readout=readout, bias=bias)


def as_points(name: str, x: object, params: Parameters) -> Float[Array, "n d"]:
    """Return points [n, d] that have as many features as the hidden weights have rows."""
    points = as_rows(name, x)
    features = params.hidden.shape[0]
    if points.shape[1] != features:
        raise ValueError(
            f"{name} must have the {features} features that params.hidden has, "
            f"got shape {points.shape}."
        )
    return points


def as_host_points(name: str, x: object, params: Parameters) -> np.ndarray:
    """Return the points of :func:`as_points` in float64 on the host; refuse traced ones."""
    check_known(name, x)
    with on_host():
        return in_double(x, as_points(name, x, params))


def with_bias_feature(points: np.ndarray, params: Parameters) -> np.ndarray:
    """Return points [n, d] with one more feature that is one, if the network has a bias.

    ⟨(x, 1), (w, b)⟩ = ⟨x, w⟩ + b: the bias is the weight of that feature.
    """
    if params.bias is None:
        return points
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)
