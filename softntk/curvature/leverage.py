r"""Statistical leverage scores: the influence of each row on the column space of a matrix.

    τ_i = ‖(Q)_i‖² = a_iᵀ (AᵀA)⁺ a_i,        A = QR,        0 ≤ τ_i ≤ 1,        Σ τ_i = rank A.

Exact scores take a QR decomposition of A, O(n d²). Approximate ones take that of a sketch: with
S A = Q'R, RᵀR within (1±ε) of AᵀA spectrally, and G Gaussian [d, k] / √k,

    τ̃_i = ‖(A R⁺ G)_i‖²        (G left out where d ≤ k),

in O(nnz(A) (ζ + k) + d³ log) with ζ entries in each column of S and k = O(log n) directions. A
common factor of A or of the weights does not change the scores, and is divided out before anything
is squared.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.curvature import leverage
    >>> A = jnp.concatenate([jnp.eye(3), jnp.array([[1.0, 0.0, 0.0]])])
    >>> [round(float(t), 3) for t in leverage.scores(A)]
    [0.5, 1.0, 1.0, 0.5]

Source: Drineas, Magdon-Ismail, Mahoney and Woodruff (2012), JMLR 13, 3475-3506; Nelson and Nguyen
(2013), FOCS (sparse S); arXiv 2309.13482 and 2304.10411 use them for the approximate Newton method.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.typing import DesignMatrix
from softntk._core.validation import as_weights, check_key, check_positive_int
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale
from softntk._linalg.products import product

SKETCH_ENTRIES = 4
"""ζ, nonzero entries in each column of the sketch."""

ROWS_PER_COLUMN = 32
"""Rows of the sketch for each column of A: singular values have an error of about √(1/32)."""

DIRECTIONS_PER_LOG = 41.0
"""Random directions over log(100 n): enough for all row norms within a factor of 1.4, with
probability 0.99."""

MIN_SINGULAR_RATIO = 10
"""Multiples of d ε below which a singular value, relative to the largest, counts as zero."""


def scores(
    A: DesignMatrix, weights: Float[Array | np.ndarray, " n"] | None = None
) -> Float[Array, " n"]:
    r"""Return the leverage scores of diag(√D) A, by QR.

    Use it where a QR decomposition of A, O(n d²), is affordable; else
    :func:`approximate_scores`.

    Args:
        A: [n, d], dense, BCOO or a lineax operator; made dense.
        weights: D ≥ 0, [n]; one if None.

    Returns:
        [n], in [0, 1], summing to the rank. Singular values below 10 d ε of the largest count as
        zero. Differentiable in A and D, also where D_i = 0, as long as the rank stays the same.

    Raises:
        ValueError: A is not a matrix that :func:`softntk.regression.problem` takes, or in half
            precision; weights are of another shape, negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(v), 5) for v in scores(jnp.array([[1.0], [2.0], [2.0]]))]
        [0.11111, 0.44444, 0.44444]

    Source: see the module.
    """
    return _exact(*arguments(A, weights))


def approximate_scores(
    key: PRNGKeyArray,
    A: DesignMatrix,
    weights: Float[Array | np.ndarray, " n"] | None = None,
    *,
    rows: int | None = None,
    directions: int | None = None,
) -> Float[Array, " n"]:
    r"""Return the leverage scores of diag(√D) A within a factor of 2, by a random sketch.

    Use it for tall or sparse A: the time is proportional to the number of nonzero entries.

    Args:
        key: random key of the sketch.
        A: [n, d], dense, BCOO or a lineax operator.
        weights: D ≥ 0, [n]; one if None.
        rows: rows of the sketch; 32 d, at least 512, if None. If n is not larger, the scores are
            exact.
        directions: k; 41 log(100 n) if None, enough for all n rows with probability 0.99. It has no
            effect if d is not larger.

    Returns:
        [n], in [0, 1]. Singular values of the sketch below 10 d ε of the largest count as zero, as
        in :func:`scores`.

    Raises:
        ValueError: as for :func:`scores`; key is not a random key; rows or directions are not
            positive, or rows is less than d.

    Example:
        >>> import jax
        >>> scale = jax.numpy.ones((2000, 1)).at[:3].set(100.0)
        >>> A = scale * jax.random.normal(jax.random.key(0), (2000, 5))
        >>> ratio = approximate_scores(jax.random.key(1), A) / scores(A)
        >>> bool((ratio > 0.5).all() and (ratio < 2).all())
        True

    Source: see the module.
    """
    # 1. Check the arguments, and fill in defaults.
    key = check_key("key", key)
    A, D = arguments(A, weights)
    n, d = matrices.shape(A)
    for name, value in (("rows", rows), ("directions", directions)):
        if value is not None:
            check_positive_int(name, value)
    rows = ROWS_PER_COLUMN * max(d, 16) if rows is None else int(rows)
    if rows < d:
        raise ValueError(f"rows must be at least the number of columns, {d}, got {rows}.")
    # 2. A sketch as large as A itself would save nothing.
    if n <= rows:
        return _exact(A, D)
    directions = (
        math.ceil(DIRECTIONS_PER_LOG * math.log(100 * n)) if directions is None else int(directions)
    )
    # 3. As many directions as columns would save nothing either: then none are drawn.
    return _approximate(key, weighted(A, D), rows, directions if directions < d else None)


def arguments(
    A: DesignMatrix, weights: object, *, half: bool = False
) -> tuple[DesignMatrix, Float[Array, " n"] | None]:
    """Return the checked matrix and weights, for functions that take both.

    ``half=True`` accepts half precision.
    """
    A = matrices.check_design_matrix("A", A, half=half)
    return A, None if weights is None else as_weights(
        "weights", weights, matrices.dtype(A), (matrices.shape(A)[0],)
    )


@jax.jit
def weighted(A: DesignMatrix, weights: Float[Array, " n"] | None) -> DesignMatrix:
    """Return diag(√D) A up to a factor: A and D are scaled to entries of order one."""
    A = matrices.scale_to_unit(A)
    if weights is None:
        return A
    # Weights are scaled before the root, so that no product of the two over- or underflows.
    return matrices.scale_rows(A, jnp.sqrt(weights / binary_scale(weights)))


class _Decomposition(NamedTuple):
    """An orthonormal basis of the columns of M = diag(√D) A.

    Attributes:
        basis: the basis, [n, q]; zero in directions that are spanned by rounding alone.
        right: R⁺, [d, q], with M R⁺ = the basis.
    """

    basis: Float[Array, "n q"]
    right: Float[Array, "d q"]


def _column_basis(M: Float[Array, "n d"]) -> _Decomposition:
    """Return the basis of the columns of M."""
    # The scale of columns does not change their span. For rows of very different scales, QR is
    # accurate in each row only if all columns have one scale.
    column_scales = _column_maxima(M)
    Q, R = jnp.linalg.qr(M / column_scales[None])
    inverse, rotation = _pseudoinverse(R)
    return _Decomposition(product(Q, rotation), inverse / column_scales[:, None])


def _column_maxima(M: Float[Array, "n d"]) -> Float[Array, " d"]:
    """Return the largest modulus in each column; one for columns of zeros."""
    maxima = jnp.max(jnp.abs(M), axis=0)
    return jnp.where(maxima > 0, maxima, 1)


def _pseudoinverse(R: Float[Array, "q d"]) -> tuple[Float[Array, "d q"], Float[Array, "q q"]]:
    """Return V Σ⁺ and U of R = U Σ Vᵀ, zero where a singular value is rounding of the largest."""
    U, values, V = jnp.linalg.svd(R, full_matrices=False)
    min_ratio = MIN_SINGULAR_RATIO * R.shape[1] * jnp.finfo(R.dtype).eps
    is_resolved = values > min_ratio * values[0]
    inverse = jnp.where(is_resolved, 1 / jnp.where(is_resolved, values, 1), 0)
    return V.T * inverse[None], jnp.where(is_resolved[None], U, 0)


@jax.jit
def _exact(A: DesignMatrix, weights: Float[Array, " n"] | None) -> Float[Array, " n"]:
    """Return the exact scores of a checked matrix."""
    # The unit of each column does not matter.
    A = matrices.to_dense(A)
    A = A / binary_scale(A, axis=0)
    weights = jnp.ones(len(A), A.dtype) if weights is None else weights / binary_scale(weights)
    return _scores(A, weights)


@jax.custom_jvp
def _scores(A: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the squared row norms of the basis."""
    return jnp.minimum(jnp.sum(_column_basis(jnp.sqrt(weights)[:, None] * A).basis ** 2, axis=1), 1)


@_scores.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Return the scores and their derivative, without that of a root or a singular vector.

    τ_i = D_i a_iᵀG⁺a_i with G = AᵀDA. With G⁺ = BBᵀ and Y = AB,

        dτ_i = dD_i ‖y_i‖² + 2 D_i ⟨y_i, Bᵀda_i⟩ − D_i y_iᵀ (BᵀdG B) y_i.
    """
    A, D = primals
    dA, dD = tangents
    B = _column_basis(jnp.sqrt(D)[:, None] * A).right
    Y = product(A, B)
    dY = product(dA, B)
    # BᵀdG B, by the product rule.
    gram_change = product(Y.T, D[:, None] * dY)
    gram_change = gram_change + gram_change.T + product(Y.T, dD[:, None] * Y)
    row_change = dD * jnp.sum(Y**2, axis=1) + 2 * D * jnp.sum(Y * dY, axis=1)
    return _scores(A, D), row_change - D * jnp.sum(product(Y, gram_change) * Y, axis=1)


@jax.jit(static_argnums=(2, 3))
def _approximate(
    key: PRNGKeyArray, A: DesignMatrix, rows: int, directions: int | None
) -> Float[Array, " n"]:
    """Return the scores by a sparse sketch, with random directions unless these are None."""
    n, d = matrices.shape(A)
    dtype = matrices.dtype(A)
    sketch_key, directions_key = jax.random.split(key)
    # 1. S has one entry in each of ζ blocks of rows; position and sign use the same random bits.
    entry_count = min(SKETCH_ENTRIES, rows)
    block_rows = rows // entry_count
    bits = jax.random.bits(sketch_key, (entry_count, n), jnp.uint32)
    block_starts = block_rows * jnp.arange(entry_count, dtype=jnp.int32)[:, None]
    buckets = ((bits >> 1) % block_rows).astype(jnp.int32) + block_starts
    signs = (1 - 2 * (bits & 1).astype(jnp.int32)).astype(dtype) / math.sqrt(entry_count)
    # 2. R of S A, and R⁺; with columns of one scale, so that units do not decide the rank.
    R = jnp.linalg.qr(matrices.embed_rows(A, buckets, signs, rows), mode="r")
    column_scales = _column_maxima(R)
    right = _pseudoinverse(R / column_scales[None])[0] / column_scales[:, None]
    # 3. Row norms of A R⁺, estimated from k random combinations of its columns.
    if directions is not None:
        gaussian = jax.random.normal(directions_key, (d, directions), dtype)
        right = product(right, gaussian / math.sqrt(directions))
    # An exact score is at most one; an estimate need not be.
    return jnp.minimum(matrices.row_squares(A, right), 1)
