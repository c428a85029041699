r"""Directions along which a cross-entropy falls forever: its minimiser is then at infinity.

V is one if no row of positive weight loses by it and one gains: with dZ = Ã V,

    dz_ic = max_b dz_ib   for all c with y_ic > 0,    dz_ib < dz_ic   for one row and one b,

and V is not penalised. Along it every row's loss falls or stays, for any start. Separable data have
such directions, a class without rows beside an intercept has one, targets of full support have
none. Comparisons allow for rounding: |error of dz_ic| ≤ γ ‖ã_i‖ ‖v_c‖.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._core.typing import DesignMatrix
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import scaled_norm
from softntk._linalg.row_passes import times_with_intercept


def is_recession(
    A: DesignMatrix,
    target: Float[Array, "n k"],
    row_weights: Float[Array, " n"],
    squared_weights: Float[Array, "e 1"],
    V: Float[Array, "e k"],
) -> Bool[Array, ""]:
    """Return whether the unpenalised part of V is a direction of recession.

    Args:
        A: [n, d].
        target: Y.
        row_weights: s.
        squared_weights: w² by rows of V.
        V: [d, k], or [d + 1, k] with an intercept; one column for each class.
    """
    # 1. The change of the logits along what is not penalised, V of order one.
    V = jnp.where(squared_weights == 0, V, 0)
    V = jnp.where(jnp.isfinite(V).all(), V, 0)
    size = jnp.max(jnp.abs(V))
    V = V / jnp.where(size > 0, size, 1)
    n, d = matrices.shape(A)
    # An intercept alone, where all else has a penalty, needs no product with A.
    dZ = lax.cond(
        jnp.any(V[:d] != 0),
        lambda: times_with_intercept(A, V),
        lambda: jnp.zeros((n, V.shape[1]), V.dtype) + jnp.sum(V[d:], axis=0, keepdims=True),
    )

    # 2. The rounding of each row.
    gamma = 4 * (d + 1) * float(jnp.finfo(V.dtype).eps)
    if matrices.is_operator(A):
        # Its rows are not known without its matrix; the longest change stands for them.
        lengths = jnp.full(n, jnp.max(jnp.abs(dZ)))
    else:
        lengths = matrices.row_norms(A)
    has_intercept = len(V) > d
    rounding = gamma * (lengths + has_intercept) * jnp.max(scaled_norm(V, axis=0))

    # 3. No row may lose, and one has to gain.
    is_counted = row_weights > 0
    highest = jnp.max(dZ, axis=1)
    lowest_of_target = jnp.min(jnp.where(target > 0, dZ, jnp.inf), axis=1)
    lowest = jnp.min(dZ, axis=1)
    keeps = lowest_of_target >= highest - rounding
    gains = lowest < highest - rounding
    return jnp.all(keeps | ~is_counted) & jnp.any(gains & is_counted)


def absent_classes(
    target: Float[Array, "n k"], row_weights: Float[Array, " n"]
) -> Bool[Array, " k"]:
    """Return which classes have no row of positive weight, where there are such rows."""
    is_counted = row_weights > 0
    is_present = jnp.any((target > 0) & is_counted[:, None], axis=0)
    return ~is_present & jnp.any(is_counted)
