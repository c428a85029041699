r"""Statistical leverage scores: how much each row matters to the column space of a matrix.

    τ_i = ‖(Q)_i‖² = a_iᵀ (AᵀA)⁺ a_i,        A = QR,        0 ≤ τ_i ≤ 1,        Σ τ_i = rank A.

Exactly by a QR decomposition, O(n d²). Approximately, by one of a sketch: with S A = Q'R, (1±ε)-spectrally as AᵀA, and G
Gaussian [d, k] / √k,

    τ̃_i = ‖(A R⁻¹ G)_i‖²        (G left out where d ≤ k),

in O(nnz(A) (ζ + k) + d³ log) with ζ entries in each column of S and k = O(log n) directions.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.curvature import leverage
    >>> A = jnp.concatenate([jnp.eye(3), jnp.array([[1.0, 0.0, 0.0]])])
    >>> [round(float(t), 3) for t in leverage.scores(A)]
    [0.5, 1.0, 1.0, 0.5]

Source: Drineas, Magdon-Ismail, Mahoney and Woodruff (2012), JMLR 13, 3475-3506; Nelson and Nguyen (2013), FOCS (sparse S);
arXiv 2309.13482 and 2304.10411 use them for the approximate Newton method.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._validation import check_finite, check_floating, check_positive_int, is_concrete
from softntk.curvature import _matrices as matrices

_ENTRIES = 4  # in each column of the sketch
_OVERSAMPLING = 32  # rows of the sketch for each column of A: singular values are then right to about √(1/32)
_TAIL = 41.0  # directions for each log(100 n): all row norms are right to a factor of 1.4 but with probability 1/100


def scores(A: Any, weights: Float[Array | np.ndarray, " n"] | None = None) -> Float[Array, " n"]:
    r"""The leverage scores of diag(√D) A, by QR.

    Args:
        A: [n, d], dense, BCOO or a lineax operator; made dense.
        weights: D ≥ 0, [n]; one if None.

    Returns:
        [n], in [0, 1], summing to the rank. Singular values below 10 d ε of the largest count as zero.

    Raises:
        ValueError: as :func:`softntk.regression.problem` of A; weights of another shape, negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(v), 5) for v in scores(jnp.array([[1.0], [2.0], [2.0]]))]
        [0.11111, 0.44444, 0.44444]

    Source: see the module.
    """
    A = _weighted(A, weights)
    return _scores(A)


def approximate_scores(
    key: PRNGKeyArray,
    A: Any,
    weights: Float[Array | np.ndarray, " n"] | None = None,
    *,
    rows: int | None = None,
    directions: int | None = None,
) -> Float[Array, " n"]:
    r"""The leverage scores of diag(√D) A within a factor of 2, in time proportional to the nonzero entries of A.

    Args:
        key: of the sketch.
        A: [n, d], dense, BCOO or a lineax operator, of full column rank.
        weights: D ≥ 0, [n]; one if None.
        rows: of the sketch; 32 d, at least 512, if None. If n is no more, the scores are exact.
        directions: k; 41 log(100 n) if None, enough for all n rows with probability 0.99. No effect where d is no more.

    Returns:
        [n], at most 1; +inf where the sketch is not of full rank (R is singular): use :func:`scores` or a ridge's rows then.

    Raises:
        ValueError: as :func:`scores`; rows or directions not positive, or fewer rows than d.

    Example:
        >>> import jax
        >>> A = jax.random.normal(jax.random.key(0), (2000, 5)) * jax.numpy.ones((2000, 1)).at[:3].set(100.0)
        >>> ratio = approximate_scores(jax.random.key(1), A) / scores(A)
        >>> bool((ratio > 0.5).all() and (ratio < 2).all())
        True

    Source: see the module.
    """
    A = _weighted(A, weights)
    n, d = matrices.shape(A)
    for name, value in (("rows", rows), ("directions", directions)):
        if value is not None:
            check_positive_int(name, value)
    rows = _OVERSAMPLING * max(d, 16) if rows is None else rows
    if rows < d:
        raise ValueError(f"rows must be at least the number of columns, {d}, got {rows}.")
    if n <= rows:
        return _scores(A)
    directions = math.ceil(_TAIL * math.log(100 * n)) if directions is None else directions
    return _approximate(key, A, rows, directions if directions < d else None)


def _weighted(A: Any, weights: Float[Array | np.ndarray, " n"] | None) -> Any:
    A = matrices.checked("A", A)
    if weights is None:
        return A
    n, dtype = matrices.shape(A)[0], matrices.dtype(A)
    check_floating("weights", weights)
    if jnp.shape(weights) != (n,):
        raise ValueError(f"weights must have shape {(n,)}, got {jnp.shape(weights)}.")
    check_finite("weights", weights)
    if is_concrete(weights) and np.any(np.asarray(weights) < 0):
        raise ValueError(f"weights must not be negative, got {float(np.min(np.asarray(weights)))}.")
    return matrices.scaled_rows(A, jnp.sqrt(jnp.asarray(weights, dtype)))


@jax.jit
def _scores(A: Any) -> Float[Array, " n"]:
    A = matrices.dense(A)
    # Rows of very different scales: QR is accurate row by row only if each column of R is; the scale of columns drops out.
    size = jnp.max(jnp.abs(A), axis=0, keepdims=True)
    Q, R = jnp.linalg.qr(A / jnp.where(size > 0, size, 1))
    U, values, _ = jnp.linalg.svd(R, full_matrices=False)
    rank = values > 10 * A.shape[1] * jnp.finfo(A.dtype).eps * values[0]
    return jnp.minimum(jnp.sum(jnp.where(rank, matrices.product(Q, U), 0) ** 2, axis=1), 1)


@jax.jit(static_argnums=(2, 3))
def _approximate(key: PRNGKeyArray, A: Any, rows: int, directions: int | None) -> Float[Array, " n"]:
    n, d = matrices.shape(A)
    sketch_key, directions_key = jax.random.split(key)
    # One entry in each of ζ blocks of rows; its place and its sign from the same random bits.
    entries = min(_ENTRIES, rows)
    block = rows // entries
    bits = jax.random.bits(sketch_key, (entries, n), jnp.uint32)
    buckets = ((bits >> 1) % block).astype(jnp.int32) + block * jnp.arange(entries)[:, None]
    signs = (1 - 2 * (bits & 1).astype(jnp.int32)).astype(matrices.dtype(A)) / math.sqrt(entries)
    R = jnp.linalg.qr(matrices.embedded(A, buckets, signs, rows), mode="r")
    right = jnp.eye(d, dtype=R.dtype)
    if directions is not None:
        right = jax.random.normal(directions_key, (d, directions), R.dtype) / math.sqrt(directions)
    found = matrices.row_squares(A, jax.scipy.linalg.solve_triangular(R, right))
    told = jnp.abs(jnp.diagonal(R)) > 10 * d * jnp.finfo(R.dtype).eps * jnp.linalg.norm(R, axis=0)
    return jnp.where(jnp.isfinite(found) & told.all(), jnp.minimum(found, 1), jnp.inf)
