"""Norms that neither over- nor underflow.

The vector is divided by a power of two near its largest entry before it is squared:

    ‖x‖ = s ‖x/s‖,        s = 2^⌊log₂ max|x|⌋.

Dividing by a power of two rounds nothing. So the result equals that of the plain formula wherever
the plain formula does not overflow, and ‖2^k x‖ = 2^k ‖x‖ to the last bit.

Outside of ``jax.jit`` each norm is compiled as one program. Otherwise each of its dozen small
operations would be compiled and dispatched by itself.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

Axes = int | tuple[int, ...] | None
"""Axes of an array to reduce; None for all of them."""


def _power_bits(x: Float[Array, "..."], axis: Axes) -> tuple[Array, Array]:
    """Return the bits of the largest power of two up to max|x|, and whether 0 < max|x| < ∞."""
    max_modulus = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    limits = jnp.finfo(x.dtype)
    # Clamped away from the ends of the range, where the reciprocal of a power of two leaves it. The
    # constants are NumPy's: each one of JAX would be a program of its own.
    clamped = lax.clamp(
        np.asarray(8 * float(limits.tiny), x.dtype),
        max_modulus,
        np.asarray(float(limits.max) / 8, x.dtype),
    )
    # A power of two is a number without its mantissa.
    bits = lax.bitcast_convert_type(clamped, jnp.dtype(f"uint{limits.bits}"))
    return (bits >> limits.nmant) << limits.nmant, (max_modulus > 0) & (max_modulus < jnp.inf)


@partial(jax.jit, static_argnames="axis", inline=True)
def binary_scale(x: Float[Array, "..."], axis: Axes = None) -> Float[Array, "..."]:
    """Return the largest power of two up to max|x| along the axes, which stay with length one.

    Use it to bring numbers to order one before they are squared or multiplied. It is one where
    max|x| is zero or not finite, and carries no gradient. Near the ends of the range it is cut, so
    that its reciprocal is in the range too.
    """
    bits, is_regular = _power_bits(x, axis)
    return jnp.where(is_regular, lax.bitcast_convert_type(bits, x.dtype), 1)


@partial(jax.jit, static_argnames="axis", inline=True)
def binary_exponent(x: Float[Array, "..."], axis: Axes = None) -> Int[Array, "..."]:
    """Return log₂ of :func:`binary_scale`, an integer, along the axes; they keep length one."""
    bits, is_regular = _power_bits(x, axis)
    limits = jnp.finfo(x.dtype)
    exponent = (bits >> limits.nmant).astype(jnp.int32) - (limits.maxexp - 1)
    return jnp.where(is_regular, exponent, 0)


def power_of_two(exponent: Int[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Return 2^exponent, clipped to the range of normal numbers."""
    limits = jnp.finfo(dtype)
    biased_exponent = jnp.clip(exponent, limits.minexp, limits.maxexp - 1) + (limits.maxexp - 1)
    bits = biased_exponent.astype(jnp.dtype(f"uint{limits.bits}")) << limits.nmant
    return lax.bitcast_convert_type(bits, dtype)


def _inverse_scale(x: Float[Array, "..."], axis: Axes) -> Float[Array, "..."]:
    """Return 1/:func:`binary_scale`, from the negative exponent."""
    bits, is_regular = _power_bits(x, axis)
    limits = jnp.finfo(x.dtype)
    # Stored exponents are e + bias, so that −e is stored as 2 bias − (e + bias).
    double_bias = np.asarray((2 * limits.maxexp - 2) << limits.nmant, bits.dtype)
    return jnp.where(is_regular, lax.bitcast_convert_type(double_bias - bits, x.dtype), 1)


@partial(jax.jit, static_argnames=("axis", "keepdims"), inline=True)
def scaled_norm(
    x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """Return the Euclidean norm of x along the axes (None: of all entries), in any unit.

    Its derivative at x = 0 is zero. The norm of NaN and infinities is NaN or infinite.
    """
    inverse_scale = _inverse_scale(x, axis)
    square_sum = jnp.sum((x * inverse_scale) ** 2, axis=axis, keepdims=True)
    root = jnp.where(square_sum == 0, 0, jnp.sqrt(jnp.where(square_sum == 0, 1, square_sum)))
    # XLA computes a quotient once; it would compute a product again for each use of the norm.
    norm = root / inverse_scale
    return norm if keepdims else jnp.squeeze(norm, axis)


def tree_norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm of all floating-point leaves of a pytree, as of one vector."""
    leaves = [
        leaf
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not leaves:
        return jnp.zeros(())
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
    norms = [scaled_norm(leaf.astype(dtype)) for leaf in leaves]
    return norms[0] if len(norms) == 1 else scaled_norm(jnp.stack(norms))


def host_norm(x: Any, axis: int | None = None, *, keepdims: bool = False) -> np.ndarray:
    """Return :func:`scaled_norm` of a NumPy array, computed on the host in its own precision."""
    x = np.asarray(x)
    max_modulus = np.max(np.abs(x), axis=axis, keepdims=True, initial=0)
    is_regular = (max_modulus > 0) & np.isfinite(max_modulus)
    _, exponent = np.frexp(np.where(is_regular, max_modulus, 1))
    # frexp returns mantissas in [½, 1): the power below is one less.
    power = np.maximum(exponent - 1, np.finfo(x.dtype).minexp)
    scale = np.where(is_regular, np.ldexp(np.ones_like(max_modulus), power), 1)
    norm = scale * np.sqrt(np.sum((x / scale) ** 2, axis=axis, keepdims=True))
    return norm if keepdims else np.squeeze(norm, axis)
