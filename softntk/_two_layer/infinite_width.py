"""Kernels of two-layer networks of infinite width, from the points.

Two things are done here that variances alone would not allow:

- homogeneous activations (relu, identity, threshold) see every row in a unit of its own, a power of
  two: their kernels do not depend on the unit of the points, and none is too large or too small to
  be squared. So does what is nearly so (crrelu), whose moments are told the units;
- where two points are nearly parallel, the angle between them comes from their difference.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from softntk._core.meshes import place_automatically
from softntk._core.validation import is_hashable
from softntk._linalg.angles import sine_between_rows
from softntk._linalg.norms import binary_scale
from softntk._linalg.products import product
from softntk._two_layer.architecture import Architecture
from softntk.activations import Activation, infinite_limit

KERNELS = ("nngp", "ntk")


def infinite_kernels(
    architecture: Architecture, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None
) -> dict[str, Float[Array, "n1 n2"]]:
    """Return {"nngp", "ntk"} of infinite width: E[φφ'] and ⟨x, x'⟩ E[φ̇φ̇'] (+ E[φφ'] with a
    trained readout).
    """
    activation = architecture.activation
    function: Any = _kernels
    # a traced number must not stay behind in a program that is kept
    if activation.traced or not is_hashable(activation):
        function = function.__wrapped__
    settings = partial(
        function,
        activation=activation,
        normalized=architecture.normalized,
        bias=architecture.bias,
        trained=architecture.train_readout,
    )
    sigma, scale = (
        jnp.asarray(number, x1.dtype) for number in (architecture.sigma, architecture.kernel_scale)
    )
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

    With x = b·x̃ for a unit b a row (one, unless u is homogeneous of degree p) and E the moments of
    x̃ at σ = 1 then:

        E[φφ']   = E[φφ'](x̃) (σ²bb')^p,   E[φ̇φ̇'] = E[φ̇φ̇'](x̃) (σ²bb')^(p−1),   with p = 0 if normalized.
    """
    moments = activation.moments
    degree = 1 if moments.in_units else moments.degree
    has_units = degree is not None
    x1, units1, valid1 = _in_units(x1, sigma, bias, has_units)
    x2_, units2, valid2 = (
        (x1, units1, valid1) if x2 is None else _in_units(x2, sigma, bias, has_units)
    )
    squares1, squares2 = (jnp.sum(x * x, axis=1) for x in (x1, x2_))
    dots = _inner_products(x1, x2_, squares1, same=x2 is None)
    dots, sines = (
        sine_between_rows(x1, x2_, dots, same=x2 is None) if moments.angular else (dots, None)
    )
    variance = jnp.ones_like(sigma) if has_units else sigma**2
    variances = (variance * squares1[:, None], variance * dots, variance * squares2[None, :])
    units = _units_of_pairs(sigma * units1, sigma * units2) if moments.in_units else None
    nngp, slopes = infinite_limit(activation.name, moments, normalized, *variances, sines, units)
    valid = valid1[:, None] & valid2[None, :]
    ntk = jnp.where(slopes == 0, 0, dots) * slopes  # dots or slopes may be infinite
    if degree == 1 and not normalized:
        nngp = nngp * units1[:, None] * units2[None, :] * sigma**2
        ntk = ntk * units1[:, None] * units2[None, :]
    elif has_units and normalized:
        ntk = ntk / sigma**2
    nngp, ntk = scale * nngp, scale * ntk
    if trained:
        ntk = ntk + nngp
    return _saturate(nngp, valid), _saturate(ntk, valid)


def _inner_products(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"], squares: Float[Array, " n1"], same: bool
) -> Float[Array, "n1 n2"]:
    """Return x1 x2ᵀ, if both are the same with the diagonal to the last bit."""
    dots = product(x1, x2.T)
    return jnp.where(jnp.eye(len(x1), dtype=bool), squares[:, None], dots) if same else dots


def _units_of_pairs(
    units1: Float[Array, " n1"], units2: Float[Array, " n2"]
) -> tuple[Float[Array, "n1 1"], Float[Array, "1 n2"]]:
    """Return the units of rows and columns, cut off where u is homogeneous to rounding, so that
    their squares fit.
    """
    limit = float(jnp.finfo(units1.dtype).max) ** 0.25
    return jnp.minimum(units1, limit)[:, None], jnp.minimum(units2, limit)[None, :]


def _in_units(
    x: Float[Array, "n d"], sigma: Float[Array, ""], bias: bool, has_units: bool
) -> tuple[Float[Array, "n e"], Float[Array, " n"], Bool[Array, " n"]]:
    """Return the rows with the bias as a feature, divided by their units; the units; and which rows
    are inside the domain.
    """
    if bias:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    if has_units:
        units = binary_scale(x, 1)
        valid = jnp.all(jnp.isfinite(x), axis=1)
    else:
        units = jnp.ones_like(x[:, :1])
        valid = jnp.isfinite(jnp.sum(x * x, axis=1)) & jnp.isfinite(
            sigma**2 * jnp.sum(x * x, axis=1)
        )
    return jnp.where(valid[:, None], x / units, 0), units[:, 0], valid


def _saturate(kernel: Float[Array, "n1 n2"], valid: Bool[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    limits = jnp.finfo(kernel.dtype)
    outside = ~valid | jnp.isnan(kernel) | jnp.isposinf(kernel)
    return jnp.where(outside, jnp.inf, jnp.maximum(kernel, float(limits.min)))
