"""Weights of the rows of a classification."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from softntk._core.validation import as_weights, check_choice


def as_row_weights(
    sample_weight: object, class_weight: object, target: Float[Array, "n k"]
) -> Float[Array, " n"]:
    """Return s, [n], the product of the weight of each row and that of its class.

    The weight of a row whose target is no single class is the mean of the classes' weights.
    """
    n, k = target.shape
    dtype = target.dtype
    # 1. The weights of rows.
    if sample_weight is None:
        row_weights = jnp.ones(n, dtype)
    else:
        row_weights = as_weights("sample_weight", sample_weight, dtype, (n,))
    if class_weight is None:
        return row_weights
    # 2. The weights of classes; a class without rows has none.
    if isinstance(class_weight, str):
        check_choice("class_weight", class_weight, ("balanced",))
        class_totals = jnp.sum(row_weights[:, None] * target, axis=0)
        is_present = class_totals > 0
        balanced = jnp.sum(class_totals) / (k * jnp.where(is_present, class_totals, 1))
        class_weights = jnp.where(is_present, balanced, 0)
    else:
        class_weights = as_weights("class_weight", class_weight, dtype, (k,))
    return row_weights * jnp.sum(target * class_weights[None], axis=1)
