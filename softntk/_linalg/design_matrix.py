"""Products with the design matrix A [n, d] of a regression: dense, BCOO, or a lineax operator.

The routines of :mod:`softntk.curvature` and :mod:`softntk.regression` use A through these functions
only:

    times(A, V)           A V               V [d] or [d, r]
    adjoint(A, V)         Aᵀ V              V [n] or [n, r]
    gram(A, D)            Aᵀ diag(D) A      one symmetric product, [d, d]
    gram_diagonal(A, D)   its diagonal, [d]
    row_squares(A)        ‖a_i‖², [n]; row_squares(A, R): ‖a_i R‖²
    row_norms(A)          ‖a_i‖ without overflow, [n]
    scale_to_unit(A)      A over a power of two near its largest entry
    scale_rows(A, s)      diag(s) A
    take_rows(A, i)       rows by index, dense
    embed_rows(A, …)      S A for a sparse S [size, n]
    entries(A)            the stored entries of a BCOO, all entries of any other matrix
    to_dense(A)           A as an array
    stack_rows(parts)     several matrices on top of each other
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.typing import DesignMatrix
from softntk._linalg.design_matrix_checks import as_design_matrix as as_design_matrix
from softntk._linalg.design_matrix_checks import check_design_matrix as check_design_matrix
from softntk._linalg.design_matrix_checks import dtype as dtype
from softntk._linalg.design_matrix_checks import implicit as implicit
from softntk._linalg.design_matrix_checks import is_operator as is_operator
from softntk._linalg.design_matrix_checks import is_sparse as is_sparse
from softntk._linalg.design_matrix_checks import shape as shape
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product

BLOCK_ROWS = 4096
"""Rows of a block of the Gram product, whose weighted copy stays in the cache."""

TILE_COLUMNS = 256
"""Columns of a tile of the upper half of the Gram matrix."""

SPARSE_COLUMNS = 8
"""Columns that a sparse matrix is multiplied with at a time, where there are many."""


def times(A: DesignMatrix, V: Float[Array, "d *r"]) -> Float[Array, "n *r"]:
    """Return A V."""
    if is_operator(A):
        mv = A.operator.mv
        return mv(V) if V.ndim == 1 else jax.vmap(mv, 1, 1)(V)
    return _sparse_times(A, V) if is_sparse(A) else product(A, V)


@jax.jit
def adjoint(A: DesignMatrix, V: Float[Array, "n *r"]) -> Float[Array, "d *r"]:
    """Return Aᵀ V."""
    if is_operator(A):
        mv = A.operator.transpose().mv
        return mv(V) if V.ndim == 1 else jax.vmap(mv, 1, 1)(V)
    if is_sparse(A):
        return _sparse_adjoint(A, V)
    # Vᵀ A and not Aᵀ V: on a CPU XLA copies A, which is stored by rows, before it forms Aᵀ V.
    return product(V, A) if V.ndim == 1 else product(V.T, A).T


def to_dense(A: DesignMatrix) -> Float[Array, "n d"]:
    """Return A as an array."""
    if is_operator(A):
        return A.operator.as_matrix()
    return A.todense() if is_sparse(A) else A


@jax.jit
def gram(A: DesignMatrix, D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """Return Aᵀ diag(D) A, exactly symmetric."""
    if is_sparse(A):
        return _sparse_gram(A, D)
    A = to_dense(A)
    return lax.platform_dependent(
        A, D, cpu=_blocked_gram, default=lambda A, D: _symmetric(product(A.T, D[:, None] * A))
    )


@jax.jit
def gram_diagonal(A: DesignMatrix, D: Float[Array, " n"]) -> Float[Array, " d"]:
    """Return the diagonal of Aᵀ diag(D) A, Σ_i D_i A_ij²."""
    if is_sparse(A):
        rows, columns = A.indices.T
        terms = A.data * (A.data * D.at[rows].get(mode="fill", fill_value=0))
        return jnp.zeros(A.shape[1], A.dtype).at[columns].add(terms, mode="drop")
    A = to_dense(A)
    # Multiplied in this order, as in the Gram matrix: A² alone may overflow.
    return jnp.sum(A * (A * D[:, None]), axis=0)


def _symmetric(G: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Return the symmetric part of a square matrix."""
    return 0.5 * (G + G.T)


def _blocked_gram(A: Float[Array, "n d"], D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """Return Aᵀ diag(D) A from blocks of rows, computing only tiles of the upper half.

    The weighted copy of a block is still in the cache when it is multiplied.
    """
    n, d = A.shape
    block_size = min(BLOCK_ROWS, n)
    tile_starts = range(0, d, TILE_COLUMNS)

    def add_block(start: int | Array, size: int, tiles: list[Array]) -> list[Array]:
        rows, weights = (lax.dynamic_slice_in_dim(part, start, size) for part in (A, D))
        weighted_rows = weights[:, None] * rows
        return [
            tile + product(rows[:, left : left + TILE_COLUMNS].T, weighted_rows[:, left:])
            for left, tile in zip(tile_starts, tiles, strict=True)
        ]

    # 1. Sum over the full blocks, then add the incomplete last one.
    tiles = [jnp.zeros((min(TILE_COLUMNS, d - left), d - left), A.dtype) for left in tile_starts]
    tiles = lax.fori_loop(
        0, n // block_size, lambda i, tiles: add_block(i * block_size, block_size, tiles), tiles
    )
    if n % block_size:
        tiles = add_block(n - n % block_size, n % block_size, tiles)
    # 2. Put the tiles together and mirror them. Tiles on the diagonal are whole squares, of which
    #    only the upper half is used.
    padded_tiles = [
        jnp.pad(tile, ((0, 0), (left, 0))) for left, tile in zip(tile_starts, tiles, strict=True)
    ]
    upper = jnp.concatenate(padded_tiles)
    return jnp.triu(upper) + jnp.triu(upper, 1).T


# Products with a BCOO. Its own products are as fast in the cache, and five times slower out of it
# (measured on a CPU). Entries beyond the shape are padding: reads fill in zero, writes are dropped.
def _sparse_times(A: DesignMatrix, V: Float[Array, "d *r"]) -> Float[Array, "n *r"]:
    """Return A V for a BCOO A."""
    rows, columns = A.indices.T
    terms = _align_entries(A.data, V) * V.at[columns].get(mode="fill", fill_value=0)
    result = jnp.zeros((A.shape[0], *V.shape[1:]), A.dtype)
    return result.at[rows].add(terms, mode="drop", indices_are_sorted=A.indices_sorted)


def _sparse_adjoint(A: DesignMatrix, V: Float[Array, "n *r"]) -> Float[Array, "d *r"]:
    """Return Aᵀ V for a BCOO A."""
    rows, columns = A.indices.T
    terms = _align_entries(A.data, V) * V.at[rows].get(mode="fill", fill_value=0)
    return jnp.zeros((A.shape[1], *V.shape[1:]), A.dtype).at[columns].add(terms, mode="drop")


def _align_entries(data: Float[Array, " z"], V: Float[Array, "m *r"]) -> Float[Array, "z ..."]:
    """Return the entries with as many axes as V has."""
    return data if V.ndim == 1 else data[:, None]


def _sparse_gram(A: DesignMatrix, D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """Return Aᵀ diag(D) A for a BCOO A, a block of columns at a time.

    It takes 2 nnz d multiplications, and no more memory than a few products with A.
    """
    # The last block overlaps the one before it, so that all have the same size.
    d = A.shape[1]
    size = min(d, SPARSE_COLUMNS)
    block_starts = jnp.minimum(jnp.arange(-(-d // size)) * size, d - size)

    def gram_columns(start: Array) -> Float[Array, "size d"]:
        unit_vectors = (jnp.arange(d)[:, None] == start + jnp.arange(size)[None]).astype(A.dtype)
        return _sparse_adjoint(A, D[:, None] * _sparse_times(A, unit_vectors)).T

    rows = lax.map(gram_columns, block_starts).reshape(-1, d)
    row_indices = (block_starts[:, None] + jnp.arange(size)[None]).reshape(-1)
    return _symmetric(jnp.zeros((d, d), A.dtype).at[row_indices].set(rows))


@jax.jit
def row_squares(A: DesignMatrix, right: Float[Array, "d k"] | None = None) -> Float[Array, " n"]:
    """Return ‖a_i‖², or ‖a_i R‖² for R = ``right``."""
    if not is_sparse(A):
        return jnp.sum((to_dense(A) if right is None else times(A, right)) ** 2, axis=1)
    if right is None:
        return jnp.zeros(A.shape[0], A.dtype).at[A.indices[:, 0]].add(A.data**2, mode="drop")
    # A few columns of R at a time, so that A R is never stored.
    column_blocks = (
        jnp.pad(right, ((0, 0), (0, -right.shape[1] % SPARSE_COLUMNS)))
        .reshape(len(right), -1, SPARSE_COLUMNS)
        .transpose(1, 0, 2)
    )

    def add_squares(total: Array, block: Array) -> tuple[Array, None]:
        return total + jnp.sum(_sparse_times(A, block) ** 2, axis=1), None

    return lax.scan(add_squares, jnp.zeros(A.shape[0], A.dtype), column_blocks)[0]


@jax.jit
def row_norms(A: DesignMatrix) -> Float[Array, " n"]:
    """Return ‖a_i‖, [n], without overflow or underflow of the squares."""
    if not is_sparse(A):
        return scaled_norm(to_dense(A), axis=1)
    # Each row is divided by a power of two near its largest entry, as in `scaled_norm`.
    rows = A.indices[:, 0]
    row_maxima = jnp.zeros(A.shape[0], A.dtype).at[rows].max(jnp.abs(A.data), mode="drop")
    row_scales = binary_scale(row_maxima[:, None], axis=1)[:, 0]
    terms = (A.data / row_scales.at[rows].get(mode="fill", fill_value=1)) ** 2
    return row_scales * jnp.sqrt(jnp.zeros(A.shape[0], A.dtype).at[rows].add(terms, mode="drop"))


def entries(A: DesignMatrix) -> Float[Array, "..."]:
    """Return the entries of A: the stored ones of a BCOO, all of any other matrix."""
    return A.data if is_sparse(A) else to_dense(A)


@jax.jit
def scale_to_unit(A: DesignMatrix) -> DesignMatrix:
    """Return A over the largest power of two up to max|A_ij|; an operator becomes dense."""
    values = entries(A)
    scaled_values = values / jnp.squeeze(binary_scale(values))
    return _with_data(A, scaled_values) if is_sparse(A) else scaled_values


@jax.jit
def take_rows(A: DesignMatrix, indices: Int[Array, " s"]) -> Float[Array, "s d"]:
    """Return rows of A by distinct ascending indices, dense; an index of n gives a row of zeros."""
    n, d = shape(A)
    if is_sparse(A):
        # For each row of A its position among the indices; rows that are not taken get an index
        # beyond the result, where writes are dropped.
        new_rows = jnp.full(n + 1, len(indices)).at[indices].set(jnp.arange(len(indices)))[:n]
        rows, columns = A.indices.T
        targets = new_rows.at[rows].get(mode="fill", fill_value=len(indices))
        return jnp.zeros((len(indices), d), A.dtype).at[targets, columns].add(A.data, mode="drop")
    return to_dense(A).at[indices].get(mode="fill", fill_value=0)


def embed_rows(
    A: DesignMatrix, buckets: Int[Array, "z n"], signs: Float[Array, "z n"], size: int
) -> Float[Array, "size d"]:
    """Return S A for a sparse S [size, n] with z nonzero entries in each column.

    Column i of S has the entry ``signs[k, i]`` in row ``buckets[k, i]``, for each k.
    """
    d = shape(A)[1]
    # For each k, where in S A the entries (BCOO) or rows (dense) of A are added, and with which
    # values.
    if is_sparse(A):
        rows, columns = A.indices.T
        positions = [(h.at[rows].get(mode="fill", fill_value=size), columns) for h in buckets]
        values = [A.data * s.at[rows].get(mode="fill", fill_value=0) for s in signs]
    else:
        A = to_dense(A)
        positions = [(h,) for h in buckets]
        values = [A * s[:, None] for s in signs]
    embedded = jnp.zeros((size, d), dtype(A))
    for position, value in zip(positions, values, strict=True):
        embedded = embedded.at[position].add(value, mode="drop")
    return embedded


@jax.jit
def scale_rows(A: DesignMatrix, scale: Float[Array, " n"]) -> DesignMatrix:
    """Return diag(scale) A; an operator becomes dense."""
    if is_sparse(A):
        rows = A.indices[:, 0]
        return _with_data(A, A.data * scale.at[rows].get(mode="fill", fill_value=0))
    return scale[:, None] * to_dense(A)


def _with_data(A: DesignMatrix, data: Float[Array, " z"]) -> DesignMatrix:
    """Return a BCOO with the indices of A and other entries."""
    return type(A)(
        (data, A.indices),
        shape=A.shape,
        indices_sorted=A.indices_sorted,
        unique_indices=A.unique_indices,
    )


def stack_rows(parts: Sequence[DesignMatrix]) -> DesignMatrix:
    """Return the matrices stacked by rows; all of them must be sparse, or none.

    Raises:
        ValueError: some are sparse and some are not.
    """
    are_sparse = [is_sparse(part) for part in parts]
    if all(are_sparse):
        from jax.experimental.sparse import bcoo_concatenate

        return bcoo_concatenate(parts, dimension=0)
    if any(are_sparse):
        raise ValueError(
            "operators must share one matrix, or all have sparse ones, or none; got a mixture."
        )
    return jnp.concatenate([to_dense(part) for part in parts])
