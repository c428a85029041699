"""Kernels of two-layer networks of infinite width, from the points.

Two steps need the points, and not only their variances:

- For homogeneous activations (relu, identity, threshold) each row is divided by a power of two of
  its own. So the kernels do not depend on the unit of the points, and no square over- or
  underflows. The same is done for nearly homogeneous ones (crrelu), whose moments receive the
  units.
- Where two points are nearly parallel, the angle between them is computed from their difference.
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

KERNEL_NAMES = ("nngp", "ntk")
"""Names of the two kernels, in the order in which they are computed."""


def infinite_kernels(
    architecture: Architecture, x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None
) -> dict[str, Float[Array, "n1 n2"]]:
    """Return the kernels of infinite width, by name.

    "nngp" is E[φφ'], "ntk" is ⟨x, x'⟩ E[φ̇φ̇'], plus E[φφ'] with a trained readout.
    """
    # 1. The cached program only for hashable activations: a traced number must not leak into it.
    activation = architecture.activation
    kernel_program: Any = _kernels
    if activation.traced or not is_hashable(activation):
        kernel_program = kernel_program.__wrapped__
    bound_program = partial(
        kernel_program,
        activation=activation,
        normalized=architecture.normalized,
        bias=architecture.bias,
        trained=architecture.train_readout,
    )
    # 2. Call it, on meshes of any kind.
    sigma = jnp.asarray(architecture.sigma, x1.dtype)
    scale = jnp.asarray(architecture.kernel_scale, x1.dtype)
    array_arguments = (sigma, scale) if x2 is None else (sigma, scale, x2)
    return dict(
        zip(KERNEL_NAMES, place_automatically(bound_program, x1, *array_arguments), strict=True)
    )


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
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Return (NNGP, NTK).

    Each row is x = b·x̃ with a unit b. For u homogeneous of degree p, with E the moments of x̃ at
    σ = 1,

        E[φφ']   = E[φφ'](x̃) (σ²bb')^p,
        E[φ̇φ̇'] = E[φ̇φ̇'](x̃) (σ²bb')^(p−1),

    where p = 0 if normalized. The same holds with p = 1 for a nearly homogeneous u (crrelu), whose
    moments receive the units σb. For any other u every unit is one.
    """
    # 1. Divide the rows by their units.
    moments = activation.moments
    is_same = x2 is None
    degree = 1 if moments.in_units else moments.degree
    has_units = degree is not None
    rows1, units1, is_valid1 = _split_units(x1, sigma, bias, has_units)
    rows2, units2, is_valid2 = (
        (rows1, units1, is_valid1) if is_same else _split_units(x2, sigma, bias, has_units)
    )
    # 2. Variances of the two Gaussians, and the angle between them where the moments use it.
    squares1, squares2 = (jnp.sum(x * x, axis=1) for x in (rows1, rows2))
    dots = _inner_products(rows1, rows2, squares1, same=is_same)
    sines = None
    if moments.angular:
        dots, sines = sine_between_rows(rows1, rows2, dots, same=is_same)
    variance = jnp.ones_like(sigma) if has_units else sigma**2
    variances = (variance * squares1[:, None], variance * dots, variance * squares2[None, :])
    pair_units = _clip_units(sigma * units1, sigma * units2) if moments.in_units else None
    # 3. Moments, and the NTK from them; dots or slopes may be infinite.
    nngp, slopes = infinite_limit(
        activation.name, moments, normalized, *variances, sines, pair_units
    )
    valid = is_valid1[:, None] & is_valid2[None, :]
    ntk = jnp.where(slopes == 0, 0, dots) * slopes
    # 4. Multiply the units back in. Plain with p = 0 is the threshold: its slopes are zero.
    if degree == 1 and not normalized:
        nngp = nngp * units1[:, None] * units2[None, :] * sigma**2
        ntk = ntk * units1[:, None] * units2[None, :]
    elif has_units and normalized:
        ntk = ntk / sigma**2
    nngp = scale * nngp
    ntk = scale * ntk
    if trained:
        ntk = ntk + nngp
    return _saturate(nngp, valid), _saturate(ntk, valid)


def _inner_products(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"], squares: Float[Array, " n1"], same: bool
) -> Float[Array, "n1 n2"]:
    """Return x1 x2ᵀ; if both are the same, its diagonal equals the squares to the last bit."""
    # A variance and a covariance of equal points must agree: the angle between them is then zero.
    dots = product(x1, x2.T)
    return jnp.where(jnp.eye(len(x1), dtype=bool), squares[:, None], dots) if same else dots


def _clip_units(
    units1: Float[Array, " n1"], units2: Float[Array, " n2"]
) -> tuple[Float[Array, "n1 1"], Float[Array, "1 n2"]]:
    """Return the units as a column and a row, clipped so that their products do not overflow.

    Beyond the limit a nearly homogeneous activation is homogeneous to rounding.
    """
    # A fourth root, so that also the square of the product of two units is finite.
    max_unit = float(jnp.finfo(units1.dtype).max) ** 0.25
    return jnp.minimum(units1, max_unit)[:, None], jnp.minimum(units2, max_unit)[None, :]


def _split_units(
    x: Float[Array, "n d"], sigma: Float[Array, ""], bias: bool, has_units: bool
) -> tuple[Float[Array, "n e"], Float[Array, " n"], Bool[Array, " n"]]:
    """Return rows divided by their units, the units, and which rows are inside the domain.

    A bias is a further feature, equal to one.
    """
    if bias:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    # Without units the squares themselves must be finite, also after multiplication by σ².
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
    """Return the kernel with +inf for invalid pairs and overflow, and no entry of −inf."""
    dtype_limits = jnp.finfo(kernel.dtype)
    # NaN comes from ∞ − ∞ or 0 · ∞, in pairs that overflow.
    is_infinite = ~valid | jnp.isnan(kernel) | jnp.isposinf(kernel)
    return jnp.where(is_infinite, jnp.inf, jnp.maximum(kernel, float(dtype_limits.min)))
