"""Norms that neither over- nor underflow: x is divided by a power of two near its largest entry
before it is squared.

‖x‖ = s ‖x/s‖,  s = 2^⌊log₂ max|x|⌋.  Dividing by a power of two rounds nothing, so the result is
that of the plain formula wherever the plain formula is right, and ‖2^k x‖ = 2^k ‖x‖ to the last
bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Axes = int | tuple[int, ...] | None


def _power_bits(x: Float[Array, "..."], axis: Axes) -> tuple[Array, Array]:
    """Return the largest power of two below max|x| as bits, and whether max|x| is a positive
    number.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    limits = jnp.finfo(x.dtype)
    # Not at the ends of the range, where the reciprocal of a power of two leaves it.
    inner = lax.clamp(
        jnp.asarray(8 * float(limits.tiny), x.dtype),
        largest,
        jnp.asarray(float(limits.max) / 8, x.dtype),
    )
    # A power of two is a number without its mantissa.
    bits = lax.bitcast_convert_type(inner, jnp.dtype(f"uint{limits.bits}"))
    return (bits >> limits.nmant) << limits.nmant, (largest > 0) & (largest < jnp.inf)


def binary_scale(x: Float[Array, "..."], axis: Axes = None) -> Float[Array, "..."]:
    """Return the largest power of two below max|x| along the axes, which stay with length one.

    It is one for zeros and for what is not finite, and carries no gradient.
    """
    bits, ordinary = _power_bits(x, axis)
    return jnp.where(ordinary, lax.bitcast_convert_type(bits, x.dtype), 1)


def binary_exponent(x: Float[Array, "..."], axis: Axes = None) -> Int[Array, "..."]:
    """Return log₂ of :func:`binary_scale`, an integer, along the axes, which stay with length one."""
    bits, ordinary = _power_bits(x, axis)
    limits = jnp.finfo(x.dtype)
    exponent = (bits >> limits.nmant).astype(jnp.int32) - (limits.maxexp - 1)
    return jnp.where(ordinary, exponent, 0)


def power_of_two(exponent: Int[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Return 2^exponent, between the smallest and the largest power that are normal numbers."""
    limits = jnp.finfo(dtype)
    biased = jnp.clip(exponent, limits.minexp, limits.maxexp - 1) + (limits.maxexp - 1)
    bits = biased.astype(jnp.dtype(f"uint{limits.bits}")) << limits.nmant
    return lax.bitcast_convert_type(bits, dtype)


def _inverse_scale(x: Float[Array, "..."], axis: Axes) -> Float[Array, "..."]:
    """Return 1/:func:`binary_scale`: its exponent is the negative one, about the bias."""
    bits, ordinary = _power_bits(x, axis)
    limits = jnp.finfo(x.dtype)
    twice_bias = jnp.asarray((2 * limits.maxexp - 2) << limits.nmant, bits.dtype)
    return jnp.where(ordinary, lax.bitcast_convert_type(twice_bias - bits, x.dtype), 1)


def scaled_norm(
    x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """Return the Euclidean norm of x along the axes (None: of all entries), whatever the unit of x.

    Its derivative at x = 0 is zero. NaN and infinities go through.
    """
    inverse = _inverse_scale(x, axis)
    total = jnp.sum((x * inverse) ** 2, axis=axis, keepdims=True)
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    # A quotient, which XLA computes once; a product it would compute again for each use of the
    # norm.
    norm = root / inverse
    return norm if keepdims else jnp.squeeze(norm, axis)


def tree_norm(tree: Any) -> Float[Array, ""]:
    """Return the Euclidean norm of all floating-point leaves of a pytree together."""
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
    """Return what :func:`scaled_norm` does, of a NumPy array on the host, in its own precision."""
    x = np.asarray(x)
    largest = np.max(np.abs(x), axis=axis, keepdims=True, initial=0)
    ordinary = (largest > 0) & np.isfinite(largest)
    _, exponent = np.frexp(np.where(ordinary, largest, 1))
    scale = np.where(
        ordinary,
        np.ldexp(np.ones_like(largest), np.maximum(exponent - 1, np.finfo(x.dtype).minexp)),
        1,
    )
    norm = scale * np.sqrt(np.sum((x / scale) ** 2, axis=axis, keepdims=True))
    return norm if keepdims else np.squeeze(norm, axis)
