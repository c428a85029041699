"""Normalized activations u / 1ᵀu along the last axis."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from softntk._core.validation import as_floating
from softntk._linalg.norms import binary_scale
from softntk.activations._activation import Activation
from softntk.activations._closed_forms import Scalars
from softntk.activations._table import get


def normalize(activation: str | Activation, z: Scalars) -> Scalars:
    """Return u(z) / 1ᵀu(z) along the last axis, also for logits whose exponentials overflow.

    Use it wherever softmax of another function than exp is needed. It is +inf where 1ᵀu is lost
    against 1ᵀ|u| in rounding, and NaN only if z is.

    Args:
        activation: u, by name or itself.
        z: logits [..., m]; ±1e4 are harmless. A logit of −∞ has the share zero if u vanishes
            there (exp).

    Returns:
        [..., m], summing to one; +inf also where a sum is infinite.

    Raises:
        ValueError: an unknown name; z is not an array of real numbers with an axis of units.

    Example:
        >>> import jax.numpy as jnp
        >>> normalize("exp", jnp.array([1e4, 1e4])).tolist()
        [0.5, 0.5]

    Source: MATHEMATICS.md#activations (the shift, and where the domain ends).
    """
    # 1. Check, and evaluate u with the shift that keeps it of order one.
    activation = get(activation)
    z = as_floating("z", z, ("…", "m"), finite=False, empty=True)
    if z.shape[-1] == 0:
        raise ValueError(f"z must have at least one unit along its last axis, got shape {z.shape}.")
    u = activation.jet(z, activation.log_scale(z))[0]
    # 2. Scale by a power of two: the derivative divides by the square of the sum, which would
    #    underflow.
    u = u / binary_scale(u, -1)
    total = jnp.sum(u, axis=-1, keepdims=True)
    # 3. Divide where the sum is more than rounding.
    resolved = normaliser_is_resolved(u, total)
    shares = jnp.where(resolved, u, 0) / jnp.where(resolved, total, 1)
    has_nan = jnp.any(jnp.isnan(z), axis=-1, keepdims=True)
    return jnp.where(has_nan, jnp.nan, jnp.where(resolved, shares, jnp.inf))


def normaliser_is_resolved(u: Scalars, total: Scalars) -> Bool[Array, "..."]:
    """Return whether the normaliser 1ᵀu along the last axis exceeds the rounding error of 1ᵀ|u|.

    Use it before dividing by a sum of terms of both signs.

    Args:
        u: the terms, [..., m].
        total: their sum 1ᵀu, [..., 1].

    Returns:
        Booleans, [..., 1].

    Example:
        >>> import jax.numpy as jnp
        >>> u = jnp.array([[1.0, -1.0], [1.0, -0.5]])
        >>> normaliser_is_resolved(u, u.sum(axis=-1, keepdims=True)).tolist()
        [[False], [True]]

    Source: MATHEMATICS.md#activations (the domain).
    """
    return jnp.abs(total) > 4 * jnp.finfo(u.dtype).eps * jnp.sum(jnp.abs(u), axis=-1, keepdims=True)
