"""Cholesky factors of symmetric matrices, computed after scaling the diagonal to one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._core.typing import Matrix as Matrix
from softntk._core.typing import Vector as Vector


class Factor(NamedTuple):
    """The factorisation P = S⁻¹ L Lᵀ S⁻¹ of a symmetric matrix P, S diagonal.

    With the root R = Lᵀ S⁻¹ it reads P = RᵀR.

    Attributes:
        lower: L, [d, d], lower triangular; the identity if P is not positive definite, so that
            solves stay finite.
        scale: the diagonal of S, [d].
        definite: whether P is positive definite.
    """

    lower: Matrix
    scale: Vector
    definite: Bool[Array, ""]

    def inverse(self, v: Vector) -> Vector:
        """Return P⁻¹ v."""
        return self.scale * jax.scipy.linalg.cho_solve((self.lower, True), self.scale * v)

    def solve_root(self, V: Float[Array, "d *r"]) -> Float[Array, "d *r"]:
        """Return R⁻¹ V with P = RᵀR."""
        scale = self.scale if V.ndim == 1 else self.scale[:, None]
        return scale * jax.scipy.linalg.solve_triangular(self.lower, V, lower=True, trans=1)

    def solve_root_transposed(self, V: Float[Array, "d *r"]) -> Float[Array, "d *r"]:
        """Return R⁻ᵀ V with P = RᵀR."""
        scale = self.scale if V.ndim == 1 else self.scale[:, None]
        return jax.scipy.linalg.solve_triangular(self.lower, scale * V, lower=True)


def factorise(P: Matrix, floor: int = 0) -> Factor:
    """Return the Cholesky factor of P, whose diagonal is scaled to one first.

    Args:
        P: symmetric, [d, d].
        floor: multiples of the rounding unit that are added to the scaled diagonal.
    """
    # 1. Scale; entries that are not positive stay, and show in the factor below.
    diagonal = jnp.diagonal(P)
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    identity = jnp.eye(len(P), dtype=P.dtype)
    # 2. Factorise.
    lower = jnp.linalg.cholesky(
        P * (scale[:, None] * scale[None, :]) + floor * jnp.finfo(P.dtype).eps * identity
    )
    # 3. With a floor a zero on the diagonal is allowed.
    definite = (
        jnp.isfinite(lower).all()
        & jnp.all(jnp.diagonal(lower) > 0)
        & (jnp.all(diagonal > 0) | (floor > 0))
    )
    return Factor(jnp.where(definite, lower, identity), scale, definite)
