"""Preconditioned conjugate gradients for many right-hand sides.

    symbol      meaning                                       shape
    K, P        a positive definite matrix, preconditioner    [size, size]
    x, r, p     solution, residual, search direction          [size, columns]
    α, β        step length, weight of the old direction      [1, columns]

The columns share the products with K and nothing else. Two things differ from the textbook: a
column that has reached its goal stops while others go on, and a column whose direction has no
positive curvature stops for good.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Multiply = Callable[[Float[Array, "size columns"]], Float[Array, "size columns"]]


class CgState(NamedTuple):
    """State of conjugate gradients between steps.

    Attributes:
        x: the approximate solution, [size, columns].
        residual: y − K x as the recurrence updates it, [size, columns].
        direction: the next search direction p, [size, columns].
        inner_products: ⟨r, P⁻¹r⟩ of the residual r, [1, columns].
        is_stuck: columns whose direction has no positive curvature, [1, columns].
        step: number of steps.
    """

    x: Array
    residual: Array
    direction: Array
    inner_products: Array
    is_stuck: Array
    step: Array


def start(y: Float[Array, "size columns"], inverse: Multiply | None) -> CgState:
    """Return the state of conjugate gradients at x = 0."""
    preconditioned = y if inverse is None else inverse(y)
    inner_products = jnp.sum(y * preconditioned, axis=0, keepdims=True)
    return CgState(
        x=jnp.zeros_like(y),
        residual=y,
        direction=preconditioned,
        inner_products=inner_products,
        is_stuck=jnp.zeros(inner_products.shape, bool),
        step=jnp.zeros((), int),
    )


def advance(
    multiply: Multiply,
    inverse: Multiply | None,
    state: CgState,
    goals: Array,
    steps: Array | int,
    residual_norm: Callable[[Float[Array, "size r"]], Float[Array, "1 r"]] | None = None,
) -> CgState:
    """Return the state after at most ``steps`` steps, or when all columns are below their goals.

    A column stops when its residual is below its goal, or its direction has no positive curvature.

    Args:
        multiply: v ↦ K v, for v [size, columns].
        inverse: v ↦ P⁻¹v, or None.
        state: where to start.
        goals: norms of the residual to reach, [1, columns].
        steps: maximal number of steps.
        residual_norm: in which residuals are measured, a column each; None: the Euclidean norm.
    """

    def is_unfinished(s: CgState) -> Array:
        if residual_norm is None:
            norms = jnp.linalg.norm(s.residual, axis=0, keepdims=True)
        else:
            norms = residual_norm(s.residual)
        return (norms > goals) & ~s.is_stuck

    def take_step(s: CgState) -> CgState:
        # 1. The step along p: α = ⟨r, P⁻¹r⟩ / ⟨p, K p⟩.
        is_active = is_unfinished(s)
        image = multiply(s.direction)
        curvature = jnp.sum(s.direction * image, axis=0, keepdims=True)
        is_positive = curvature > 0
        step_length = jnp.where(
            is_active & is_positive, s.inner_products / jnp.where(is_positive, curvature, 1), 0
        )
        residual = s.residual - step_length * image

        # 2. The next direction: P⁻¹r + β p with β = ⟨r, P⁻¹r⟩ / its last value.
        preconditioned = residual if inverse is None else inverse(residual)
        inner_products = jnp.sum(residual * preconditioned, axis=0, keepdims=True)
        last_products = jnp.where(s.inner_products > 0, s.inner_products, 1)
        direction_weight = jnp.where(is_active, inner_products / last_products, 0)
        return CgState(
            x=s.x + step_length * s.direction,
            residual=residual,
            direction=preconditioned + direction_weight * s.direction,
            inner_products=inner_products,
            is_stuck=s.is_stuck | (is_active & ~is_positive),
            step=s.step + 1,
        )

    return lax.while_loop(lambda s: (s.step < steps) & jnp.any(is_unfinished(s)), take_step, state)
