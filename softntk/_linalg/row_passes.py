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

BLOCK_ENTRIES = 2**18
"""Entries of a block, which stays in the cache: 2 MB in float64."""

MIN_BLOCK_ROWS = 64
"""Rows of a block, where they are very long."""

RowFunction = Callable[[Array, PyTree], tuple[PyTree, PyTree]]
"""(rows of Ã V, data of the same rows) → (rows of R, sums over these rows)."""

BlockFunction = Callable[[Array, PyTree], tuple[PyTree, PyTree]]
"""(rows of A, data of the same rows) → (rows of a result, sums over these rows)."""


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
def map_rows(
    function: RowFunction, A: DesignMatrix, V: Float[Array, "e r"], rows: PyTree
) -> tuple[PyTree, PyTree]:
    """Return (R, sums) = f(Ã V, rows), without Ã V in memory.

    Args:
        function: f. It treats rows independently; what it returns as sums is added up.
        A: the design matrix.
        V: [d, r], or [d + 1, r] with an intercept.
        rows: arrays whose first axis is that of the rows of A.
    """

    def at_once(A: DesignMatrix, V: Array, rows: PyTree) -> tuple[PyTree, PyTree]:
        return function(times_with_intercept(A, V), rows)

    def in_blocks(A: DesignMatrix, V: Array, rows: PyTree) -> tuple[PyTree, PyTree]:
        return _map_blocks(
            lambda block, block_rows: function(times_with_intercept(block, V), block_rows), A, rows
        )

    return _by_platform(at_once, in_blocks, A, V, rows)


@map_rows.defjvp
def _(function: RowFunction, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Return the result and its tangent, computed at once.

    The transpose of a slice in a loop would add a matrix of the size of A in each round.
    """

    def at_once(A: DesignMatrix, V: Array, rows: PyTree) -> tuple[PyTree, PyTree]:
        return function(times_with_intercept(A, V), rows)

    return jax.jvp(at_once, primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def adjoint_of_rows(
    function: RowFunction, A: DesignMatrix, V: Float[Array, "e r"], rows: PyTree
) -> tuple[Float[Array, "e r"], PyTree]:
    """Return (Ãᵀ R, sums) for (R, sums) = f(Ã V, rows); the arguments of :func:`map_rows`."""

    def in_blocks(A: DesignMatrix, V: Array, rows: PyTree) -> tuple[Array, PyTree]:
        # Transposed, as a block lies in memory.
        def block_terms(block: Array, block_rows: PyTree) -> tuple[tuple, PyTree]:
            R, sums = function(times_with_intercept(block, V), block_rows)
            return (), (product(R.T, block), jnp.sum(R, axis=0), sums)

        _, (adjoint, row_sum, sums) = _map_blocks(block_terms, A, rows)
        has_intercept = len(V) > A.shape[1]
        stacked = [adjoint.T, row_sum[None]] if has_intercept else [adjoint.T]
        return jnp.concatenate(stacked), sums

    return _by_platform(partial(_adjoint_at_once, function), in_blocks, A, V, rows)


@adjoint_of_rows.defjvp
def _(function: RowFunction, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Return the result and its tangent, as for :func:`map_rows`."""
    return jax.jvp(partial(_adjoint_at_once, function), primals, tangents)


def _adjoint_at_once(
    function: RowFunction, A: DesignMatrix, V: Float[Array, "e r"], rows: PyTree
) -> tuple[Float[Array, "e r"], PyTree]:
    """Return (Ãᵀ R, sums) from two passes over A."""
    R, sums = function(times_with_intercept(A, V), rows)
    return adjoint_with_intercept(A, R, intercept=len(V) > matrices.shape(A)[1]), sums


def _by_platform(
    at_once: Callable[..., PyTree],
    in_blocks: Callable[..., PyTree],
    A: DesignMatrix,
    V: Float[Array, "e r"],
    rows: PyTree,
) -> PyTree:
    """Return ``in_blocks(A, V, rows)`` for a large dense A on a CPU, else ``at_once``."""
    if matrices.is_sparse(A) or matrices.is_operator(A) or A.shape[0] <= _block_rows(A):
        return at_once(A, V, rows)
    # Other devices have no such cache, and are slowed down by a loop.
    return lax.platform_dependent(A, V, rows, cpu=in_blocks, default=at_once)


def _block_rows(A: Float[Array, "n d"]) -> int:
    """Return the number of rows of a block."""
    return max(MIN_BLOCK_ROWS, BLOCK_ENTRIES // A.shape[1])


def _map_blocks(
    function: BlockFunction, A: Float[Array, "n d"], rows: PyTree
) -> tuple[PyTree, PyTree]:
    """Return a function's results on blocks of rows, put together, and its sums, added up."""
    n = A.shape[0]
    size = _block_rows(A)
    block_count = n // size

    def block_result(start: Array | int, length: int) -> tuple[PyTree, PyTree]:
        block, block_rows = jax.tree.map(
            lambda part: lax.dynamic_slice_in_dim(part, start, length), (A, rows)
        )
        return function(block, block_rows)

    # 1. Empty results, in the shapes of a block's.
    shapes, sum_shapes = jax.eval_shape(lambda: block_result(0, size))
    results = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape[1:]), leaf.dtype), shapes)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sum_shapes)

    def put(carry: tuple[PyTree, PyTree], start: Array | int, length: int) -> tuple[PyTree, PyTree]:
        results, sums = carry
        block_rows, block_sums = block_result(start, length)
        results = jax.tree.map(
            lambda leaf, part: lax.dynamic_update_slice_in_dim(leaf, part, start, 0),
            results,
            block_rows,
        )
        return results, jax.tree.map(jnp.add, sums, block_sums)

    # 2. The incomplete last block, then the others.
    carry = (results, sums)
    if n % size:
        carry = put(carry, block_count * size, n % size)
    return lax.fori_loop(0, block_count, lambda i, carry: put(carry, i * size, size), carry)
