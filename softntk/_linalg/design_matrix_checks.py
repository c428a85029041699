"""Kinds of design matrices, and the checks that they pass before anything is computed.

A design matrix A [n, d] is an array, a BCOO, or a lineax operator. An operator is wrapped as
:class:`Implicit`; everything else is used as it is.
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from softntk._core.typing import DesignMatrix
from softntk._core.validation import as_rows, check_finite, is_concrete
from softntk._core.validation.arrays import MIN_FACTORISATION_BITS


def is_sparse(A: DesignMatrix) -> bool:
    """Return whether A is a BCOO."""
    # If A is one, the module is loaded already: never import it here, because that takes time.
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(A, sparse.BCOO)


class Implicit(eqx.Module):
    """A lineax operator split into arrays and static parts, so that jitted functions accept it.

    Attributes:
        arrays: the operator with None in the place of everything that is no array.
        static: the operator with None in the place of its arrays.
    """

    arrays: Any
    static: Any = eqx.field(static=True)

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """The operator itself."""
        return eqx.combine(self.arrays, self.static)


def implicit(A: DesignMatrix) -> DesignMatrix:
    """Return a lineax operator as :class:`Implicit`, and any other matrix as it is."""
    if isinstance(A, lx.AbstractLinearOperator):
        return Implicit(*eqx.partition(A, eqx.is_array))
    return A


def is_operator(A: DesignMatrix) -> bool:
    """Return whether A is a lineax operator, as :func:`check_design_matrix` returns it."""
    return isinstance(A, Implicit)


def as_design_matrix(name: str, A: DesignMatrix) -> DesignMatrix:
    """Return the matrix of a structured operator; only what is no JAX type yet is checked.

    Structured operators are built inside jit, where a full check would be repeated for nothing.
    """
    if isinstance(A, jax.Array) and A.ndim == 2 and jnp.issubdtype(A.dtype, jnp.floating):
        return A
    return A if isinstance(A, Implicit) or is_sparse(A) else check_design_matrix(name, A)


def shape(A: DesignMatrix) -> tuple[int, int]:
    """Return (n, d)."""
    return (A.operator.out_size(), A.operator.in_size()) if is_operator(A) else A.shape


def dtype(A: DesignMatrix) -> jnp.dtype:
    """Return the dtype of the entries."""
    return jnp.result_type(A.operator.out_structure().dtype if is_operator(A) else A.dtype)


def check_design_matrix(name: str, A: DesignMatrix, *, half: bool = True) -> DesignMatrix:
    """Return A, checked, in the form that :mod:`softntk._linalg.design_matrix` works with.

    Args:
        name: name of the argument, for error messages.
        A: an array, a list of rows, a table; a BCOO; a lineax operator.
        half: False refuses float16 and bfloat16, for which LAPACK has no factorisations.

    Raises:
        ValueError: A is in another sparse format, holds integers, NaN or infinities, is empty, has
            indices out of bounds, or is an operator that does not map [d] to [n].
    """
    # 1. Each kind has its own check; an `Implicit` has passed it.
    if isinstance(A, lx.MatrixLinearOperator):
        A = A.matrix
    if isinstance(A, lx.AbstractLinearOperator):
        A = _checked_operator(name, A)
    elif is_sparse(A):
        A = _checked_sparse(name, A)
    elif not isinstance(A, Implicit):
        A = _checked_array(name, A)
    # 2. The precision, for any kind.
    if not half and jnp.finfo(dtype(A)).bits < MIN_FACTORISATION_BITS:
        raise ValueError(
            f"{name} must be float32 or float64, got {dtype(A)}: factorisations do not exist for "
            f"it. Convert it, e.g. {name}.astype('float32')."
        )
    return A


def _checked_operator(name: str, A: lx.AbstractLinearOperator) -> DesignMatrix:
    """Return an operator from [d] to [n] as :class:`Implicit`."""
    structures = (A.in_structure(), A.out_structure())
    if not all(
        isinstance(part, jax.ShapeDtypeStruct) and len(part.shape) == 1 and part.shape != (0,)
        for part in structures
    ):
        raise ValueError(
            f"{name} must be an operator from vectors [d] to vectors [n], n, d ≥ 1, "
            f"got {structures}."
        )
    if not jnp.issubdtype(structures[1].dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point operator, got {structures}.")
    return implicit(A)


def _checked_array(name: str, A: object) -> Float[Array, "n d"]:
    """Return a dense matrix, and refuse sparse formats other than BCOO."""
    if type(A).__module__.startswith(("scipy.sparse", "jax.experimental.sparse")):
        raise ValueError(
            f"{name} must be an array, a jax.experimental.sparse.BCOO or a lineax operator, "
            f"got {type(A).__name__}. BCOO.from_scipy_sparse converts a matrix of SciPy."
        )
    return as_rows(name, A)


def _checked_sparse(name: str, A: DesignMatrix) -> DesignMatrix:
    """Return a BCOO [n, d] without duplicates; refuse one that is not finite or flagged wrongly."""
    if A.ndim != 2 or A.n_batch or A.n_dense or 0 in A.shape:
        raise ValueError(
            f"{name} must be a BCOO of shape [n, d] without batch or dense dimensions and "
            f"n, d ≥ 1, got {A!r}."
        )
    if not jnp.issubdtype(A.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point array, got dtype {A.dtype}. "
            "Convert it, e.g. before fromdense."
        )
    if not jnp.issubdtype(A.indices.dtype, jnp.integer):
        raise ValueError(f"{name}.indices must be integers, got dtype {A.indices.dtype}.")
    check_finite(f"{name}.data", A.data)
    if is_concrete(A.indices):
        _check_indices(name, A)
    return A if A.unique_indices else A.sum_duplicates(nse=A.nse)


def _check_indices(name: str, A: DesignMatrix) -> None:
    """Refuse a BCOO with indices out of bounds, or not sorted or unique though flagged as such."""
    # 1. Bounds. Entries beyond the shape are padding, which JAX makes itself; they hold zeros.
    n, d = A.shape
    rows, columns = A.indices.T
    is_padding = (rows >= n) | (columns >= d)
    is_lost = is_padding & (A.data != 0) if is_concrete(A.data) else False
    if bool(jnp.any(is_lost | (rows < 0) | (columns < 0))):
        raise ValueError(
            f"{name}.indices must lie in [0, {n}) and [0, {d}), got others, whose entries would "
            "be lost."
        )
    # 2. An order in which duplicates are neighbours; without flags there is nothing to check.
    if A.indices_sorted:
        order = jnp.arange(len(rows))
    elif A.unique_indices:
        order = jnp.lexsort((columns, rows))
    else:
        return
    rows, columns, is_padding = (part[order] for part in (rows, columns, is_padding))
    # 3. Compare neighbours, without padding.
    row_steps = jnp.diff(rows)
    column_steps = jnp.diff(columns)
    are_entries = ~(is_padding[1:] | is_padding[:-1])
    descends = (row_steps < 0) | ((row_steps == 0) & (column_steps < 0))
    if bool(jnp.any(are_entries & descends)):
        raise ValueError(
            f"{name}.indices must be sorted, as {name}.indices_sorted says, got others. "
            "Use sort_indices()."
        )
    is_duplicate = (row_steps == 0) & (column_steps == 0)
    if A.unique_indices and bool(jnp.any(are_entries & is_duplicate)):
        raise ValueError(
            f"{name}.indices must be unique, as {name}.unique_indices says, got others. "
            "Use sum_duplicates()."
        )
