"""Inner products of rows whose squares overflow: powers of two are taken out first.

    x_i = 2^{e_i} x̂_i,  1 ≤ max|x̂_i| < 4,  e_i even
    ⟨x_i, x_j⟩ G_ij = (⟨x̂_i, x̂_j⟩ G_ij) 2^{e_i + e_j}

The last factor is multiplied in two halves, so that an intermediate result leaves the range of the
precision only if the final one does. Multiplying by a power of two rounds nothing, so within the
range the numbers are those of the plain formula.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from softntk._linalg.norms import binary_exponent, power_of_two


class ScaledRows(NamedTuple):
    """Rows x_i = 2^{e_i} x̂_i, as the factors of their inner products.

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


def to_even(exponents: Int[Array, "..."]) -> Int[Array, "..."]:
    """Return the largest even numbers that are at most the exponents."""
    return (exponents >> 1) << 1


def scale_rows(x: Float[Array, "n e"]) -> ScaledRows:
    """Return the rows of x as x̂ and e."""
    # Even, so that the root 2^{e/2} is a power of two as well.
    exponents = to_even(binary_exponent(x, axis=1)[:, 0])
    return ScaledRows(times_power_of_two(x, -exponents[:, None]), exponents)


def scale_all(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Int[Array, ""]]:
    """Return x̂ and one even e for the whole array."""
    exponent = to_even(binary_exponent(x).reshape(()))
    return times_power_of_two(x, -exponent), exponent


def times_power_of_two(x: Float[Array, "..."], exponents: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return x · 2^exponents, multiplied in two halves so that 2^exponents itself may overflow."""
    first_half = jnp.clip(exponents >> 1, *_exponent_range(x.dtype))
    second_half = jnp.clip(exponents - first_half, *_exponent_range(x.dtype))
    return x * power_of_two(first_half, x.dtype) * power_of_two(second_half, x.dtype)


def _exponent_range(dtype: jnp.dtype) -> tuple[int, int]:
    """Return the smallest and the largest exponent that one of the halves may have."""
    # Powers below minexp are subnormal, and those near maxexp overflow when they are multiplied.
    limits = jnp.finfo(dtype)
    return int(limits.minexp), int(limits.maxexp) - 2


def saturate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x with infinities replaced by the largest number of the precision; NaN stays."""
    max_number = jnp.finfo(x.dtype).max
    return jnp.clip(x, -max_number, max_number)
