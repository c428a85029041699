"""Kernels of two-layer networks of infinite width, from the points.

Two things are done here that variances alone would not allow:

- homogeneous activations (relu, identity, threshold) see every row in a unit of its own, a power of two: their kernels do not
  depend on the unit of the points, and none is too large or too small to be squared;
- where two points are nearly parallel, the angle between them comes from their difference.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from softntk._angles import between_rows
from softntk._meshes import place_automatically
from softntk._norms import binary_scale
from softntk._two_layer import Architecture, product
from softntk.activations import Activation

KERNELS = ("nngp", "ntk")


def infinite_kernels(
    architecture: Architecture, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None
) -> dict[str, Float[Array, "n1 n2"]]:
    """Return {"nngp", "ntk"} of infinite width: E[φφ'] and ⟨x, x'⟩ E[φ̇φ̇'] (+ E[φφ'] with a trained readout)."""
    activation = architecture.activation
    function: Any = _kernels
    if activation.traced:  # a traced number must not stay behind in a program that is kept
        function = function.__wrapped__
    settings = partial(
        function,
        activation=activation,
        normalized=architecture.normalized,
        bias=architecture.bias,
        trained=architecture.train_readout,
    )
    sigma, scale = (jnp.asarray(number, x1.dtype) for number in (architecture.sigma, architecture.kernel_scale))
    others = (sigma, scale) if x2 is None else (sigma, scale, x2)
    return dict(zip(KERNELS, place_automatically(settings, x1, *others), strict=True))


@partial(jax.jit, static_argnames=("activation", "normalized", "bias", "trained"))
def _kernels(
    x1: Float[Array, "n1 d"],
    sigma: Float[Array, ""],
    scale: Float[Array, ""],
    x2: Float[Array, "n2 d"] | None = None,
    *,
    activation: Activation,
    normalized: bool,
    bias: bool,
    trained: bool,
) -> tuple[Any, Any]:
    """Return (NNGP, NTK).

    With x = b·x̃ for a unit b a row (one, unless u is homogeneous of degree p) and E the moments of x̃ at σ = 1 then:

        E[φφ']   = E[φφ'](x̃) (σ²bb')^p,   E[φ̇φ̇'] = E[φ̇φ̇'](x̃) (σ²bb')^(p−1),   with p = 0 if normalized.
    """
    degree = activation.moments.degree
    homogeneous = degree is not None
    x1, units1, valid1 = _in_units(x1, sigma, bias, homogeneous)
    x2_, units2, valid2 = (x1, units1, valid1) if x2 is None else _in_units(x2, sigma, bias, homogeneous)
    squares1, squares2 = (jnp.sum(x * x, axis=1) for x in (x1, x2_))
    dots = product(x1, x2_.T)
    if x2 is None:  # the diagonal to the last bit
        dots = jnp.where(jnp.eye(x1.shape[0], dtype=bool), squares1[:, None], dots)
    sines = None
    if activation.moments.angular:
        dots, sines = between_rows(x1, x2_, dots, same=x2 is None)
    variance = jnp.ones_like(sigma) if homogeneous else sigma**2
    nngp, slopes = activation.limit(
        variance * squares1[:, None], variance * dots, variance * squares2[None, :], normalized, sines
    )
    valid = valid1[:, None] & valid2[None, :]
    ntk = jnp.where(slopes == 0, 0, dots) * slopes  # dots or slopes may be infinite
    if homogeneous and degree == 1 and not normalized:
        nngp = nngp * units1[:, None] * units2[None, :] * sigma**2
        ntk = ntk * units1[:, None] * units2[None, :]
    elif homogeneous and normalized:
        ntk = ntk / sigma**2
    nngp, ntk = scale * nngp, scale * ntk
    if trained:
        ntk = ntk + nngp
    return _saturate(nngp, valid), _saturate(ntk, valid)


def _in_units(
    x: Float[Array, "n d"], sigma: Float[Array, ""], bias: bool, homogeneous: bool
) -> tuple[Float[Array, "n e"], Float[Array, " n"], Bool[Array, " n"]]:
    """Return the rows with the bias as a feature, divided by their units; the units; and which rows are inside the domain."""
    if bias:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    if homogeneous:
        units = binary_scale(x, 1)
        valid = jnp.all(jnp.isfinite(x), axis=1)
    else:
        units = jnp.ones_like(x[:, :1])
        valid = jnp.isfinite(jnp.sum(x * x, axis=1)) & jnp.isfinite(sigma**2 * jnp.sum(x * x, axis=1))
    return jnp.where(valid[:, None], x / units, 0), units[:, 0], valid


def _saturate(kernel: Float[Array, "n1 n2"], valid: Bool[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    limits = jnp.finfo(kernel.dtype)
    outside = ~valid | jnp.isnan(kernel) | jnp.isposinf(kernel)
    return jnp.where(outside, jnp.inf, jnp.maximum(kernel, float(limits.min)))
