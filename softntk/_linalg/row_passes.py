"""One pass over a design matrix A [n, d] for Ãᵀ f(Ã V): a block of rows is read once, used twice.

The two products of a gradient or a curvature, Ã V and Ãᵀ R, read A from memory twice, and with few
columns V that is what they cost. Here a block of rows is multiplied with V, f is applied, and the
block is multiplied again while it is still in the cache.

Ã is A, or (A, 1) where V [d + 1, r] has a last row for an intercept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from softntk._core.typing import DesignMatrix
from softntk._linalg import design_matrix as matrices
from softntk._linalg.products import product

BLOCK_ROWS = 4096
"""Rows of a block, which stays in the cache."""

RowFunction = Callable[[Array, PyTree], tuple[Array, PyTree]]
"""(rows of Ã V, data of the same rows) → (rows of R, sums over these rows)."""


def times_with_intercept(A: DesignMatrix, V: Float[Array, "e r"]) -> Float[Array, "n r"]:
    """Return Ã V."""
    d = matrices.shape(A)[1]
    return matrices.times(A, V) if len(V) == d else matrices.times(A, V[:d]) + V[d:]


def adjoint_with_intercept(
    A: DesignMatrix, R: Float[Array, "n r"], *, intercept: bool
) -> Float[Array, "e r"]:
    """Return Ãᵀ R."""
    adjoint = matrices.adjoint(A, R)
    return jnp.concatenate([adjoint, jnp.sum(R, axis=0)[None]]) if intercept else adjoint


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def adjoint_of_rows(
    function: RowFunction, A: DesignMatrix, V: Float[Array, "e r"], rows: PyTree
) -> tuple[Float[Array, "e r"], PyTree]:
    """Return (Ãᵀ R, sums) for (R, sums) = f(Ã V, rows).

    Args:
        function: f. It treats rows independently; what it returns as sums is added up.
        A: the design matrix.
        V: [d, r], or [d + 1, r] with an intercept.
        rows: arrays whose first axis is that of the rows of A.
    """
    if matrices.is_sparse(A) or matrices.is_operator(A) or A.shape[0] <= BLOCK_ROWS:
        return _at_once(function, A, V, rows)
    # Other devices have no such cache, and are slowed down by a loop.
    return lax.platform_dependent(
        A, V, rows, cpu=partial(_in_blocks, function), default=partial(_at_once, function)
    )


@adjoint_of_rows.defjvp
def _(function: RowFunction, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Return the result and its tangent, computed at once.

    The transpose of a slice in a loop would add a matrix of the size of A in each round.
    """
    return jax.jvp(partial(_at_once, function), primals, tangents)


def _at_once(
    function: RowFunction, A: DesignMatrix, V: Float[Array, "e r"], rows: PyTree
) -> tuple[Float[Array, "e r"], PyTree]:
    """Return (Ãᵀ R, sums) from two passes over A."""
    R, sums = function(times_with_intercept(A, V), rows)
    return adjoint_with_intercept(A, R, intercept=len(V) > matrices.shape(A)[1]), sums


def _in_blocks(
    function: RowFunction, A: Float[Array, "n d"], V: Float[Array, "e r"], rows: PyTree
) -> tuple[Float[Array, "e r"], PyTree]:
    """Return (Ãᵀ R, sums) from one pass over A."""
    n, d = A.shape
    block_count = n // BLOCK_ROWS

    def block_terms(start: Array | int, size: int) -> tuple[Array, Array, PyTree]:
        block, block_rows = jax.tree.map(
            lambda part: lax.dynamic_slice_in_dim(part, start, size), (A, rows)
        )
        R, sums = function(times_with_intercept(block, V), block_rows)
        # Transposed, as the block lies in memory.
        return product(R.T, block), jnp.sum(R, axis=0), sums

    def add_block(i: Array, total: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
        return jax.tree.map(jnp.add, total, block_terms(i * BLOCK_ROWS, BLOCK_ROWS))

    # The incomplete last block, then the others.
    if n % BLOCK_ROWS:
        total = block_terms(block_count * BLOCK_ROWS, n % BLOCK_ROWS)
    else:
        shapes = jax.eval_shape(lambda: block_terms(0, BLOCK_ROWS))
        total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    adjoint, row_sum, sums = lax.fori_loop(0, block_count, add_block, total)
    stacked = [adjoint.T] if len(V) == d else [adjoint.T, row_sum[None]]
    return jnp.concatenate(stacked), sums
