"""Cholesky factors of symmetric matrices whose diagonal is scaled to one first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Bool, Float

Matrix = Float[Array, "d d"]


Vector = Float[Array, " d"]


class Factor(NamedTuple):
    """P = S⁻¹LLᵀS⁻¹, S diagonal, of a symmetric matrix P."""

    lower: Matrix
    scale: Vector
    definite: Bool[Array, ""]
    """Whether P is positive definite; if not, L is the identity."""

    def inverse(self, v: Vector) -> Vector:
        """P⁻¹v."""
        return self.scale * jax.scipy.linalg.cho_solve((self.lower, True), self.scale * v)

    def halved(self, V: Float[Array, "d *r"]) -> Float[Array, "d *r"]:
        """R⁻¹V with P = RᵀR."""
        scale = self.scale if V.ndim == 1 else self.scale[:, None]
        return scale * jax.scipy.linalg.solve_triangular(self.lower, V, lower=True, trans=1)

    def halved_transposed(self, V: Float[Array, "d *r"]) -> Float[Array, "d *r"]:
        """R⁻ᵀV."""
        scale = self.scale if V.ndim == 1 else self.scale[:, None]
        return jax.scipy.linalg.solve_triangular(self.lower, scale * V, lower=True)


def factorise(P: Matrix, floor: int = 0) -> Factor:
    """By Cholesky, of a diagonal scaled to one; ``floor`` roundings are added to it."""
    diagonal = jnp.diagonal(P)
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    identity = jnp.eye(len(P), dtype=P.dtype)
    lower = jnp.linalg.cholesky(
        P * (scale[:, None] * scale[None, :]) + floor * jnp.finfo(P.dtype).eps * identity
    )
    definite = (
        jnp.isfinite(lower).all()
        & jnp.all(jnp.diagonal(lower) > 0)
        & (jnp.all(diagonal > 0) | (floor > 0))
    )
    return Factor(jnp.where(definite, lower, identity), scale, definite)
