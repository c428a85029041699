r"""Statistical leverage scores: how much each row matters to the column space of a matrix.

    τ_i = ‖(Q)_i‖² = a_iᵀ (AᵀA)⁺ a_i,        A = QR,        0 ≤ τ_i ≤ 1,        Σ τ_i = rank A.

Exactly by a QR decomposition, O(n d²). Approximately, by one of a sketch: with S A = Q'R,
(1±ε)-spectrally as AᵀA, and G Gaussian [d, k] / √k,

    τ̃_i = ‖(A R⁺ G)_i‖²        (G left out where d ≤ k),

in O(nnz(A) (ζ + k) + d³ log) with ζ entries in each column of S and k = O(log n) directions. A
common factor of A or of the weights changes nothing, and is taken out before anything is squared.

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import as_weights, check_key, check_positive_int
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale

_ENTRIES = 4  # in each column of the sketch
# rows of the sketch for each column of A: singular values are then right to about √(1/32)
_OVERSAMPLING = 32
# directions for each log(100 n): all row norms are right to a factor of 1.4 but with probability
# 1/100
_TAIL = 41.0


def scores(A: Any, weights: Float[Array | np.ndarray, " n"] | None = None) -> Float[Array, " n"]:
    r"""Return the leverage scores of diag(√D) A, by QR.

    Args:
        A: [n, d], dense, BCOO or a lineax operator; made dense.
        weights: D ≥ 0, [n]; one if None.

    Returns:
        [n], in [0, 1], summing to the rank. Singular values below 10 d ε of the largest count as
        zero. Differentiable in A and D, also where D_i = 0, as far as the rank stays the same.

    Raises:
        ValueError: as :func:`softntk.regression._problem` of A; half precision; weights of another
            shape, negative or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(v), 5) for v in scores(jnp.array([[1.0], [2.0], [2.0]]))]
        [0.11111, 0.44444, 0.44444]

    Source: see the module.
    """
    return _exact(*arguments(A, weights))


def approximate_scores(
    key: PRNGKeyArray,
    A: Any,
    weights: Float[Array | np.ndarray, " n"] | None = None,
    *,
    rows: int | None = None,
    directions: int | None = None,
) -> Float[Array, " n"]:
    r"""Return the leverage scores of diag(√D) A within a factor of 2, in time proportional to the
    nonzero entries of A.

    Args:
        key: of the sketch.
        A: [n, d], dense, BCOO or a lineax operator.
        weights: D ≥ 0, [n]; one if None.
        rows: of the sketch; 32 d, at least 512, if None. If n is no more, the scores are exact.
        directions: k; 41 log(100 n) if None, enough for all n rows with probability 0.99. No effect
            where d is no more.

    Returns:
        [n], in [0, 1]. Singular values of the sketch below 10 d ε of the largest count as zero, as
        in :func:`scores`.

    Raises:
        ValueError: as :func:`scores`; no key; rows or directions not positive, or fewer rows than
            d.

    Example:
        >>> import jax
        >>> A = jax.random.normal(jax.random.key(0), (2000, 5)) * jax.numpy.ones((2000, 1)).at[:3].set(100.0)
        >>> ratio = approximate_scores(jax.random.key(1), A) / scores(A)
        >>> bool((ratio > 0.5).all() and (ratio < 2).all())
        True

    Source: see the module.
    """
    key = check_key("key", key)
    A, D = arguments(A, weights)
    n, d = matrices.shape(A)
    for name, value in (("rows", rows), ("directions", directions)):
        if value is not None:
            check_positive_int(name, value)
    rows = _OVERSAMPLING * max(d, 16) if rows is None else int(rows)
    if rows < d:
        raise ValueError(f"rows must be at least the number of columns, {d}, got {rows}.")
    if n <= rows:
        return _exact(A, D)
    directions = math.ceil(_TAIL * math.log(100 * n)) if directions is None else int(directions)
    return _approximate(key, weighted(A, D), rows, directions if directions < d else None)


def arguments(A: Any, weights: Any, *, half: bool = False) -> tuple[Any, Float[Array, " n"] | None]:
    """Return A and the weights, checked."""
    A = matrices.check_design_matrix("A", A, half=half)
    return A, None if weights is None else as_weights(
        "weights", weights, matrices.dtype(A), (matrices.shape(A)[0],)
    )


@jax.jit
def weighted(A: Any, weights: Float[Array, " n"] | None) -> Any:
    """Return diag(√D) A up to a factor: both are brought to entries of order one."""
    A = matrices.scale_to_unit(A)
    return (
        A if weights is None else matrices.scale_rows(A, jnp.sqrt(weights / binary_scale(weights)))
    )


class _Decomposition(NamedTuple):
    """Of M = diag(√D) A."""

    basis: Float[Array, "n q"]
    """An orthonormal basis of its columns; zero in directions that rounding alone spans."""
    right: Float[Array, "d q"]
    """R⁺ with M R⁺ = the basis."""


def _decomposed(M: Float[Array, "n d"]) -> _Decomposition:
    # Rows of very different scales: QR is accurate row by row only if each column of R is; the
    # scale of columns drops out.
    size = _column_size(M)
    Q, R = jnp.linalg.qr(M / size[None])
    inverse, rotation = _pseudoinverse(R)
    return _Decomposition(matrices.product(Q, rotation), inverse / size[:, None])


def _column_size(M: Float[Array, "n d"]) -> Float[Array, " d"]:
    size = jnp.max(jnp.abs(M), axis=0)
    return jnp.where(size > 0, size, 1)


def _pseudoinverse(R: Float[Array, "q d"]) -> tuple[Float[Array, "d q"], Float[Array, "q q"]]:
    """Return V Σ⁺ and U of R = U Σ Vᵀ, zero where a singular value is rounding of the largest."""
    U, values, V = jnp.linalg.svd(R, full_matrices=False)
    resolved = values > 10 * R.shape[1] * jnp.finfo(R.dtype).eps * values[0]
    inverse = jnp.where(resolved, 1 / jnp.where(resolved, values, 1), 0)
    return V.T * inverse[None], jnp.where(resolved[None], U, 0)


@jax.jit
def _exact(A: Any, weights: Float[Array, " n"] | None) -> Float[Array, " n"]:
    A = matrices.to_dense(A)
    A = A / binary_scale(A, axis=0)  # the unit of each column drops out
    weights = jnp.ones(len(A), A.dtype) if weights is None else weights / binary_scale(weights)
    return _scores(A, weights)


@jax.custom_jvp
def _scores(A: Float[Array, "n d"], weights: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.minimum(jnp.sum(_decomposed(jnp.sqrt(weights)[:, None] * A).basis ** 2, axis=1), 1)


@_scores.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """τ_i = D_i a_iᵀG⁺a_i with G = AᵀDA, so that no square root and no singular vector is
    differentiated.

    With G⁺ = BBᵀ and Y = AB,  dτ_i = dD_i ‖y_i‖² + 2 D_i ⟨y_i, Bᵀda_i⟩ − D_i y_iᵀ (BᵀdG B) y_i.
    """
    A, D = primals
    dA, dD = tangents
    B = _decomposed(jnp.sqrt(D)[:, None] * A).right
    Y, dY = matrices.product(A, B), matrices.product(dA, B)
    moved = matrices.product(Y.T, D[:, None] * dY)
    moved = moved + moved.T + matrices.product(Y.T, dD[:, None] * Y)
    direct = dD * jnp.sum(Y**2, axis=1) + 2 * D * jnp.sum(Y * dY, axis=1)
    return _scores(A, D), direct - D * jnp.sum(matrices.product(Y, moved) * Y, axis=1)


@jax.jit(static_argnums=(2, 3))
def _approximate(
    key: PRNGKeyArray, A: Any, rows: int, directions: int | None
) -> Float[Array, " n"]:
    n, d = matrices.shape(A)
    dtype = matrices.dtype(A)
    sketch_key, directions_key = jax.random.split(key)
    # One entry in each of ζ blocks of rows; its place and its sign from the same random bits.
    entries = min(_ENTRIES, rows)
    block = rows // entries
    bits = jax.random.bits(sketch_key, (entries, n), jnp.uint32)
    buckets = ((bits >> 1) % block).astype(jnp.int32) + block * jnp.arange(
        entries, dtype=jnp.int32
    )[:, None]
    signs = (1 - 2 * (bits & 1).astype(jnp.int32)).astype(dtype) / math.sqrt(entries)
    R = jnp.linalg.qr(matrices.embed_rows(A, buckets, signs, rows), mode="r")
    # Columns of one scale, so that rank is not decided by units.
    size = _column_size(R)
    right = _pseudoinverse(R / size[None])[0] / size[:, None]
    if directions is not None:
        right = matrices.product(
            right, jax.random.normal(directions_key, (d, directions), dtype) / math.sqrt(directions)
        )
    return jnp.minimum(matrices.row_squares(A, right), 1)
