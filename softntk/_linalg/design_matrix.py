"""The matrix A [n, d] of a regression, whatever it is made of: dense, BCOO, or a lineax operator.

Every routine of :mod:`softntk.curvature` and :mod:`softntk.regression` asks for one of these few
products and nothing else:

    times(A, V)      A V           V [d] or [d, r]
    adjoint(A, V)    Aᵀ V          V [n] or [n, r]
    gram(A, D)       Aᵀ diag(D) A  one symmetric product, [d, d]
    squares(A, D)    its diagonal, [d]
    row_squares(A)   ‖a_i‖², [n]; row_squares(A, R) ‖a_i R‖²
    row_norms(A)     ‖a_i‖, whatever the unit
    unit_scaled(A)   A over a power of two near its largest entry
    take(A, i)       some rows, dense
    embedded(A, …)   S A for a sparse random S
    scaled_rows(A, s)
"""

import sys
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.validation import as_rows, check_finite, is_concrete
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product

Matrix = Any
"""[n, d]: an array, a ``jax.experimental.sparse.BCOO``, or a lineax operator from [d] to [n]."""

_BLOCK = 4096  # rows whose weighted copy stays in the cache
_TILE = 256  # columns of a tile of the symmetric half
_COLUMNS = 8  # at a time, in products of a sparse matrix with many


def is_sparse(A: Matrix) -> bool:
    """Whether A is a BCOO; without importing ``jax.experimental.sparse`` for those who have none."""
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(A, sparse.BCOO)


class Implicit(eqx.Module):
    """A lineax operator whose functions are static, so that it is an argument of jitted functions
    like any other matrix.
    """

    arrays: Any
    static: Any = eqx.field(static=True)

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """The operator itself."""
        return eqx.combine(self.arrays, self.static)


def implicit(A: Matrix) -> Matrix:
    """A lineax operator as :class:`Implicit`; any other matrix as it is."""
    return (
        Implicit(*eqx.partition(A, eqx.is_array)) if isinstance(A, lx.AbstractLinearOperator) else A
    )


def is_operator(A: Matrix) -> bool:
    """Whether A is a lineax operator, as :func:`check_design_matrix` returns it."""
    return isinstance(A, Implicit)


def as_design_matrix(name: str, A: Matrix) -> Matrix:
    """Return what a structured operator holds: arrays of JAX, BCOOs and operators as they are,
    others checked.
    """
    if isinstance(A, jax.Array) and A.ndim == 2 and jnp.issubdtype(A.dtype, jnp.floating):
        return A
    return A if isinstance(A, Implicit) or is_sparse(A) else check_design_matrix(name, A)


def shape(A: Matrix) -> tuple[int, int]:
    """(n, d)."""
    return (A.operator.out_size(), A.operator.in_size()) if is_operator(A) else A.shape


def dtype(A: Matrix) -> jnp.dtype:
    """Of the entries."""
    return jnp.result_type(A.operator.out_structure().dtype if is_operator(A) else A.dtype)


def check_design_matrix(name: str, A: Matrix, *, half: bool = True) -> Matrix:
    """Return A as the routines want it.

    Args:
        name: of the argument.
        A: an array, a list of rows, a table; a BCOO; a lineax operator.
        half: False refuses float16 and bfloat16, for what LAPACK has to do.

    Raises:
        ValueError: another sparse format, integers, NaN or infinities, an empty matrix, indices out
            of bounds, an operator that is not from [d] to [n].
    """
    if isinstance(A, lx.MatrixLinearOperator):
        A = A.matrix
    if isinstance(A, lx.AbstractLinearOperator):
        A = _checked_operator(name, A)
    elif is_sparse(A):
        A = _checked_sparse(name, A)
    elif not isinstance(A, Implicit):
        A = _checked_array(name, A)
    if not half and jnp.finfo(dtype(A)).bits < 32:
        raise ValueError(
            f"{name} must be float32 or float64, got {dtype(A)}: factorisations do not exist for it. Convert it, e.g. "
            f"{name}.astype('float32')."
        )
    return A


def _checked_operator(name: str, A: lx.AbstractLinearOperator) -> Matrix:
    """Return an operator from [d] to [n] as :class:`Implicit`."""
    structures = (A.in_structure(), A.out_structure())
    if not all(
        isinstance(one, jax.ShapeDtypeStruct) and len(one.shape) == 1 and one.shape != (0,)
        for one in structures
    ):
        raise ValueError(
            f"{name} must be an operator from vectors [d] to vectors [n], n, d ≥ 1, got {structures}."
        )
    if not jnp.issubdtype(structures[1].dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point operator, got {structures}.")
    return implicit(A)


def _checked_array(name: str, A: Any) -> Float[Array, "n d"]:
    """Return rows of numbers; of the sparse formats only BCOO is known here."""
    if type(A).__module__.startswith(("scipy.sparse", "jax.experimental.sparse")):
        raise ValueError(
            f"{name} must be an array, a jax.experimental.sparse.BCOO or a lineax operator, got {type(A).__name__}. "
            "Of SciPy's matrices BCOO.from_scipy_sparse makes one."
        )
    return as_rows(name, A)


def _checked_sparse(name: str, A: Any) -> Any:
    """Return a BCOO that is [n, d], finite, without duplicates, and whose indices are what its
    flags say.
    """
    if A.ndim != 2 or A.n_batch or A.n_dense or 0 in A.shape:
        raise ValueError(
            f"{name} must be a BCOO of shape [n, d] without batch or dense dimensions and n, d ≥ 1, got {A!r}."
        )
    if not jnp.issubdtype(A.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {A.dtype}. Convert it, e.g. before fromdense."
        )
    if not jnp.issubdtype(A.indices.dtype, jnp.integer):
        raise ValueError(f"{name}.indices must be integers, got dtype {A.indices.dtype}.")
    check_finite(f"{name}.data", A.data)
    if is_concrete(A.indices):
        _check_indices(name, A)
    return A if A.unique_indices else A.sum_duplicates(nse=A.nse)


def _check_indices(name: str, A: Any) -> None:
    n, d = A.shape
    rows, columns = A.indices.T
    # Entries beyond the shape are padding, which JAX makes itself; they hold zeros.
    padding = (rows >= n) | (columns >= d)
    lost = padding & (A.data != 0) if is_concrete(A.data) else False
    if bool(jnp.any(lost | (rows < 0) | (columns < 0))):
        raise ValueError(
            f"{name}.indices must lie in [0, {n}) and [0, {d}), got others, whose entries would be lost."
        )
    if A.indices_sorted:
        order = jnp.arange(len(rows))
    elif A.unique_indices:
        order = jnp.lexsort((columns, rows))
    else:
        return
    rows, columns, padding = (part[order] for part in (rows, columns, padding))
    steps, across = jnp.diff(rows), jnp.diff(columns)
    between = ~(padding[1:] | padding[:-1])
    if bool(jnp.any(between & ((steps < 0) | ((steps == 0) & (across < 0))))):
        raise ValueError(
            f"{name}.indices must be sorted, as {name}.indices_sorted says, got others. Use sort_indices()."
        )
    if A.unique_indices and bool(jnp.any(between & (steps == 0) & (across == 0))):
        raise ValueError(
            f"{name}.indices must be unique, as {name}.unique_indices says, got others. Use sum_duplicates()."
        )


def times(A: Matrix, V: Float[Array, "d *r"]) -> Float[Array, "n *r"]:
    """A V."""
    if is_operator(A):
        mv = A.operator.mv
        return mv(V) if V.ndim == 1 else jax.vmap(mv, 1, 1)(V)
    return _sparse_times(A, V) if is_sparse(A) else product(A, V)


@jax.jit
def adjoint(A: Matrix, V: Float[Array, "n *r"]) -> Float[Array, "d *r"]:
    """Aᵀ V."""
    if is_operator(A):
        mv = A.operator.transpose().mv
        return mv(V) if V.ndim == 1 else jax.vmap(mv, 1, 1)(V)
    if is_sparse(A):
        return _sparse_adjoint(A, V)
    # From the left, as A lies in memory: XLA's Aᵀ V copies A on a CPU.
    return product(V, A) if V.ndim == 1 else product(V.T, A).T


def to_dense(A: Matrix) -> Float[Array, "n d"]:
    """A as an array."""
    if is_operator(A):
        return A.operator.as_matrix()
    return A.todense() if is_sparse(A) else A


@jax.jit
def gram(A: Matrix, D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """Aᵀ diag(D) A, exactly symmetric."""
    if is_sparse(A):
        return _sparse_gram(A, D)
    A = to_dense(A)
    return lax.platform_dependent(
        A, D, cpu=_blocked_gram, default=lambda A, D: _symmetric(product(A.T, D[:, None] * A))
    )


@jax.jit
def gram_diagonal(A: Matrix, D: Float[Array, " n"]) -> Float[Array, " d"]:
    """The diagonal of Aᵀ diag(D) A, Σ_i D_i A_ij²."""
    if is_sparse(A):
        rows, columns = A.indices.T
        terms = A.data * (A.data * D.at[rows].get(mode="fill", fill_value=0))
        return jnp.zeros(A.shape[1], A.dtype).at[columns].add(terms, mode="drop")
    A = to_dense(A)
    # in this order, as in the Gram matrix: A² alone may overflow
    return jnp.sum(A * (A * D[:, None]), axis=0)


def _symmetric(G: Float[Array, "d d"]) -> Float[Array, "d d"]:
    return 0.5 * (G + G.T)


def _blocked_gram(A: Float[Array, "n d"], D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """By blocks of rows, whose weighted copy is in the cache when it is multiplied, and the tiles
    of the upper half only.
    """
    n, d = A.shape
    size = min(_BLOCK, n)
    edges = range(0, d, _TILE)

    def add(start: Any, size: int, tiles: list[Array]) -> list[Array]:
        rows, weights = (lax.dynamic_slice_in_dim(part, start, size) for part in (A, D))
        weighted = weights[:, None] * rows
        return [
            tile + product(rows[:, left : left + _TILE].T, weighted[:, left:])
            for left, tile in zip(edges, tiles, strict=True)
        ]

    tiles = [jnp.zeros((min(_TILE, d - left), d - left), A.dtype) for left in edges]
    tiles = lax.fori_loop(0, n // size, lambda i, tiles: add(i * size, size, tiles), tiles)
    if n % size:
        tiles = add(n - n % size, n % size, tiles)
    upper = jnp.concatenate(
        [jnp.pad(tile, ((0, 0), (left, 0))) for left, tile in zip(edges, tiles, strict=True)]
    )
    return jnp.triu(upper) + jnp.triu(upper, 1).T


# BCOO's own products are as fast in the cache, and five times slower out of it (measured on a CPU).
def _sparse_times(A: Any, V: Float[Array, "d *r"]) -> Float[Array, "n *r"]:
    rows, columns = A.indices.T
    terms = _over(A.data, V) * V.at[columns].get(mode="fill", fill_value=0)
    out = jnp.zeros((A.shape[0], *V.shape[1:]), A.dtype)
    return out.at[rows].add(terms, mode="drop", indices_are_sorted=A.indices_sorted)


def _sparse_adjoint(A: Any, V: Float[Array, "n *r"]) -> Float[Array, "d *r"]:
    rows, columns = A.indices.T
    terms = _over(A.data, V) * V.at[rows].get(mode="fill", fill_value=0)
    return jnp.zeros((A.shape[1], *V.shape[1:]), A.dtype).at[columns].add(terms, mode="drop")


def _over(data: Float[Array, " z"], V: Float[Array, "m *r"]) -> Float[Array, "z ..."]:
    return data if V.ndim == 1 else data[:, None]


def _sparse_gram(A: Any, D: Float[Array, " n"]) -> Float[Array, "d d"]:
    """A block of columns at a time: 2 nnz d multiplications, and no more memory than a few products
    with A.
    """
    d, size = A.shape[1], min(A.shape[1], _COLUMNS)
    starts = jnp.minimum(jnp.arange(-(-d // size)) * size, d - size)

    def columns(start: Array) -> Float[Array, "size d"]:
        unit = (jnp.arange(d)[:, None] == start + jnp.arange(size)[None]).astype(A.dtype)
        return _sparse_adjoint(A, D[:, None] * _sparse_times(A, unit)).T

    rows = lax.map(columns, starts).reshape(-1, d)
    index = (starts[:, None] + jnp.arange(size)[None]).reshape(-1)
    return _symmetric(jnp.zeros((d, d), A.dtype).at[index].set(rows))


@jax.jit
def row_squares(A: Matrix, right: Float[Array, "d k"] | None = None) -> Float[Array, " n"]:
    """‖a_i‖², or ‖a_i R‖²."""
    if not is_sparse(A):
        return jnp.sum((to_dense(A) if right is None else times(A, right)) ** 2, axis=1)
    if right is None:
        return jnp.zeros(A.shape[0], A.dtype).at[A.indices[:, 0]].add(A.data**2, mode="drop")
    blocks = (
        jnp.pad(right, ((0, 0), (0, -right.shape[1] % _COLUMNS)))
        .reshape(len(right), -1, _COLUMNS)
        .transpose(1, 0, 2)
    )

    def add(total: Array, block: Array) -> tuple[Array, None]:
        return total + jnp.sum(_sparse_times(A, block) ** 2, axis=1), None

    return lax.scan(add, jnp.zeros(A.shape[0], A.dtype), blocks)[0]


@jax.jit
def row_norms(A: Matrix) -> Float[Array, " n"]:
    """Return ‖a_i‖, [n], without squaring what would overflow or vanish."""
    if not is_sparse(A):
        return scaled_norm(to_dense(A), axis=1)
    rows = A.indices[:, 0]
    largest = jnp.zeros(A.shape[0], A.dtype).at[rows].max(jnp.abs(A.data), mode="drop")
    scale = binary_scale(largest[:, None], axis=1)[:, 0]
    terms = (A.data / scale.at[rows].get(mode="fill", fill_value=1)) ** 2
    return scale * jnp.sqrt(jnp.zeros(A.shape[0], A.dtype).at[rows].add(terms, mode="drop"))


def entries(A: Matrix) -> Float[Array, "..."]:
    """Return the numbers that A consists of."""
    return A.data if is_sparse(A) else to_dense(A)


@jax.jit
def scale_to_unit(A: Matrix) -> Matrix:
    """Return A over the largest power of two below its largest entry; an operator becomes dense."""
    scaled = entries(A)
    scaled = scaled / jnp.squeeze(binary_scale(scaled))
    return _with_data(A, scaled) if is_sparse(A) else scaled


@jax.jit
def take_rows(A: Matrix, indices: Int[Array, " s"]) -> Float[Array, "s d"]:
    """Rows of A by ascending and different indices, dense; an index of n gives a row of zeros."""
    n, d = shape(A)
    if is_sparse(A):
        # Where each row of A goes: its place among the indices, or nowhere.
        place = jnp.full(n + 1, len(indices)).at[indices].set(jnp.arange(len(indices)))[:n]
        rows, columns = A.indices.T
        target = place.at[rows].get(mode="fill", fill_value=len(indices))
        return jnp.zeros((len(indices), d), A.dtype).at[target, columns].add(A.data, mode="drop")
    return to_dense(A).at[indices].get(mode="fill", fill_value=0)


def embed_rows(
    A: Matrix, buckets: Int[Array, "z n"], signs: Float[Array, "z n"], size: int
) -> Float[Array, "size d"]:
    """S A for the sparse S [size, n] whose column i has the entry signs[k, i] in row buckets[k, i],
    for each k of z.
    """
    d = shape(A)[1]
    if is_sparse(A):
        rows, columns = A.indices.T
        entries = [(h.at[rows].get(mode="fill", fill_value=size), columns) for h in buckets]
        values = [A.data * s.at[rows].get(mode="fill", fill_value=0) for s in signs]
    else:
        entries, A = [(h,) for h in buckets], to_dense(A)
        values = [A * s[:, None] for s in signs]
    out = jnp.zeros((size, d), dtype(A))
    for where, value in zip(entries, values, strict=True):
        out = out.at[where].add(value, mode="drop")
    return out


@jax.jit
def scale_rows(A: Matrix, scale: Float[Array, " n"]) -> Matrix:
    """diag(scale) A; an operator becomes dense."""
    if is_sparse(A):
        rows = A.indices[:, 0]
        return _with_data(A, A.data * scale.at[rows].get(mode="fill", fill_value=0))
    return scale[:, None] * to_dense(A)


def _with_data(A: Any, data: Float[Array, " z"]) -> Any:
    return type(A)(
        (data, A.indices),
        shape=A.shape,
        indices_sorted=A.indices_sorted,
        unique_indices=A.unique_indices,
    )


def stack_rows(parts: Sequence[Matrix]) -> Matrix:
    """By rows; all sparse, or none of them.

    Raises:
        ValueError: a mixture.
    """
    sparse = [is_sparse(part) for part in parts]
    if all(sparse):
        from jax.experimental.sparse import bcoo_concatenate

        return bcoo_concatenate(parts, dimension=0)
    if any(sparse):
        raise ValueError(
            "operators must share one matrix, or all have sparse ones, or none; got a mixture."
        )
    return jnp.concatenate([to_dense(part) for part in parts])
