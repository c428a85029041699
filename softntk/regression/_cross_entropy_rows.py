"""Cross-entropy of single rows: losses, probabilities and gradients in the logits.

| symbol | meaning | shape |
|---|---|---|
| Z, P | logits, probabilities softmax(z_i) | [n, k] |
| Y, s | targets in the simplex, weights of rows | [n, k], [n] |
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class RowValues(NamedTuple):
    """What the loss and its derivatives need of each row.

    Attributes:
        losses: logsumexp(z_i) − ⟨y_i, z_i⟩, [n]; zero for rows without weight.
        probabilities: P, [n, k].
        in_domain: whether the logits of a row are finite, or its weight is zero, [n].
    """

    losses: Float[Array, " n"]
    probabilities: Float[Array, "n k"]
    in_domain: Bool[Array, " n"]


def with_reference(Z: Float[Array, "n c"], reference: bool) -> Float[Array, "n k"]:
    """Return logits with a first column of zeros, where class 0 has none of its own."""
    return jnp.pad(Z, ((0, 0), (1, 0))) if reference else Z


def evaluate_rows(
    Z: Float[Array, "n k"], target: Float[Array, "n k"], row_weights: Float[Array, " n"]
) -> RowValues:
    """Return losses and probabilities of rows with the logits Z."""
    # 1. Rows without weight, and rows outside of the domain, get logits of zero.
    is_counted = row_weights > 0
    in_domain = jnp.isfinite(Z).all(axis=1) | ~is_counted
    Z = jnp.where((in_domain & is_counted)[:, None], Z, 0)
    # 2. Relative to the largest logit. Where all other classes underflow the loss is log1p of what
    #    they sum to, which keeps its digits.
    is_highest = jnp.argmax(Z, axis=1)[:, None] == jnp.arange(Z.shape[1])[None]
    highest = jnp.sum(jnp.where(is_highest, Z, 0), axis=1, keepdims=True)
    shifted = Z - highest
    exponentials = jnp.exp(shifted)
    other_sum = jnp.sum(jnp.where(is_highest, 0, exponentials), axis=1)
    probabilities = exponentials / (1 + other_sum)[:, None]
    # 3. logsumexp(z) − ⟨y, z⟩; the last term is rounding, and the derivative by y.
    excess = highest[:, 0] * (1 - jnp.sum(target, axis=1))
    losses = jnp.log1p(other_sum) - jnp.sum(target * shifted, axis=1) + excess
    return RowValues(jnp.where(is_counted, losses, 0), probabilities, in_domain)


# The functions below are those of :mod:`softntk._linalg.row_passes`: rows (Y, s), and sums of the
# losses and of rows outside of the domain. With a reference class Z has no column for it.


def sum_losses(
    Z: Float[Array, "b c"], rows: tuple[Array, Array]
) -> tuple[tuple[()], tuple[Array, Array]]:
    """Return no rows, and the sums."""
    return (), _evaluate_with_reference(Z, rows)[1]


def find_probabilities(
    Z: Float[Array, "b c"], rows: tuple[Array, Array]
) -> tuple[Float[Array, "b c"], tuple[Array, Array]]:
    """Return the probabilities of the columns of Z, and the sums."""
    values, sums = _evaluate_with_reference(Z, rows)
    return values.probabilities[:, -Z.shape[1] :], sums


def differentiate_rows(
    Z: Float[Array, "b c"], rows: tuple[Array, Array]
) -> tuple[Float[Array, "b c"], tuple[Array, Array]]:
    """Return s∘(P − Y), and the sums."""
    target, row_weights = rows
    values, sums = _evaluate_with_reference(Z, rows)
    logit_gradient = row_weights[:, None] * (values.probabilities - target)
    return logit_gradient[:, -Z.shape[1] :], sums


def _evaluate_with_reference(
    Z: Float[Array, "b c"], rows: tuple[Array, Array]
) -> tuple[RowValues, tuple[Array, Array]]:
    """Return the values of rows, and the sums."""
    target, row_weights = rows
    values = evaluate_rows(with_reference(Z, target.shape[1] > Z.shape[1]), target, row_weights)
    return values, (jnp.dot(row_weights, values.losses), jnp.sum(~values.in_domain))
