"""Inner products of rows whose squares leave the precision: the powers of two are taken out first.

    x_i = 2^{e_i} x̂_i, 1 ≤ max|x̂_i| < 4, e_i even:    ⟨x_i, x_j⟩ G_ij = (⟨x̂_i, x̂_j⟩ G_ij) 2^{e_i + e_j}

The last factor is multiplied in two halves, so that nothing between leaves the range unless the
result does. Powers of two round nothing: in the range the numbers are those of the plain formula.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class ScaledRows(NamedTuple):
    """Rows x_i = 2^{e_i} x̂_i.

    Attributes:
        values: x̂, [n, e].
        exponents: e, [n], even.
    """

    values: Float[Array, "n e"]
    exponents: Int[Array, " n"]

    @property
    def roots(self) -> Float[Array, " n"]:
        """2^{e_i / 2}."""
        return power_of_two(self.exponents >> 1, self.values.dtype)


def power_of_two(exponents: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Return 2^exponents, of exponents that normal numbers of the precision have."""
    # From the bits: ldexp takes some thirty operations, and as long to compile.
    limits = jnp.finfo(dtype)
    bits = (exponents.astype(_bits_type(dtype)) + (1 - int(limits.minexp))) << int(limits.nmant)
    return lax.bitcast_convert_type(bits, dtype)


def largest_exponent(x: Float[Array, "..."], axis: int | tuple[int, ...] | None = None) -> Int[Array, "..."]:
    """Return ⌊log₂ max|x|⌋ along the axes, which stay with length one: the exponent of ``binary_scale``."""
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    limits = jnp.finfo(x.dtype)
    ordinary = (largest > 0) & jnp.isfinite(largest)
    bounded = jnp.clip(largest, 8 * float(limits.tiny), float(limits.max) / 8)
    bits = lax.bitcast_convert_type(bounded, _bits_type(x.dtype))
    exponents = (bits >> int(limits.nmant)) - (1 - int(limits.minexp))
    return jnp.where(ordinary, exponents, 0).astype(jnp.int32)


def _bits_type(dtype: jnp.dtype) -> jnp.dtype:
    """Return the integers of as many bits."""
    return jnp.dtype(f"int{8 * jnp.dtype(dtype).itemsize}")


def to_even(exponents: Int[Array, "..."]) -> Int[Array, "..."]:
    """Return the largest even numbers that are not above."""
    return (exponents >> 1) << 1


def scale_rows(x: Float[Array, "n e"]) -> ScaledRows:
    """Return the rows of x as x̂ and e."""
    exponents = to_even(largest_exponent(x, axis=1)[:, 0])
    return ScaledRows(times_power_of_two(x, -exponents[:, None]), exponents)


def scale_all(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Int[Array, ""]]:
    """Return x̂ and one even e for the whole array."""
    exponent = to_even(largest_exponent(x).reshape(()))
    return times_power_of_two(x, -exponent), exponent


def times_power_of_two(x: Float[Array, "..."], exponents: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return x · 2^exponents, in two halves."""
    half = jnp.clip(exponents >> 1, *(_half_range(x.dtype)))
    other = jnp.clip(exponents - half, *(_half_range(x.dtype)))
    return x * power_of_two(half, x.dtype) * power_of_two(other, x.dtype)


def _half_range(dtype: jnp.dtype) -> tuple[int, int]:
    limits = jnp.finfo(dtype)
    return int(limits.minexp), int(limits.maxexp) - 2


def saturate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x with infinities as the largest number of the precision."""
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)
