r"""A low-rank factor of a Gram operator, and the preconditioner made of it.

    F = pivoted_cholesky(op, key, rank)                 [size, rank], K ≈ FFᵀ
    P = make_preconditioner(op, key, rank, ridge)       P⁻¹ ≈ (FFᵀ + (ridge + δ) I)⁻¹

F is computed from ``rank`` rows of K, with random pivots drawn in blocks; δ is the mean diagonal of
K − FFᵀ.

Source: Chen, Epperly, Tropp and Webber (2023), arXiv 2207.06503 (random pivots); Frangella, Tropp
and Udell (2021), arXiv 2110.02820 (the low-rank factor as a preconditioner).
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._linalg.products import product
from softntk.ntk._operators.base import GramOperator


@partial(jax.jit, static_argnames=("rank", "block"))
def pivoted_cholesky(
    op: GramOperator, key: PRNGKeyArray, rank: int, block: int = 64
) -> tuple[Float[Array, "size rank"], Float[Array, " size"]]:
    r"""Return a partial Cholesky factor with random pivots, weighted by the diagonal of K − FFᵀ.

    ``block`` pivots S are drawn at a time. With R = K − FFᵀ, the new columns are R_{:S}
    (R_SS)^{-1/2}. The root is taken by eigenvectors, so that a pivot that is a combination of
    others in its block gives a zero column instead of a division by rounding.

    Args:
        op: the operator, K.
        key: random key of the pivots.
        rank: number of columns, at most the size of op; rounded up to whole blocks.
        block: pivots at a time.

    Returns:
        F [size, rank] and the diagonal of K − FFᵀ, [size], whose sum is the error in trace norm.
        The cost is rank rows of K and size · rank² multiplications. Arguments are not checked:
        :func:`softntk.ntk.solve` has checked them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import ntk
        >>> from softntk.ntk._solve.preconditioner import pivoted_cholesky
        >>> op = ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(6)[:, :2] + 1.0)  # rank 2
        >>> factor, residual_diagonal = pivoted_cholesky(op, jax.random.key(0), rank=2, block=2)
        >>> factor.shape, bool(jnp.max(residual_diagonal) < 1e-5)
        ((6, 2), True)

    Source: arXiv 2207.06503, Algorithm 2 (random pivots), in blocks.
    """
    # F grows by a block of columns at a time; the diagonal of R = K − FFᵀ is updated with it.
    diagonal = op.diagonal()
    block_count = -(-rank // block)
    eps = jnp.finfo(diagonal.dtype).eps

    def add_block(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, residual_diagonal = state
        pivot_weights = jnp.where(residual_diagonal > 10 * eps * diagonal, residual_diagonal, 0)
        # 1. Draw pivots without replacement, with Gumbel's trick.
        scores = jnp.log(pivot_weights) + jax.random.gumbel(
            jax.random.fold_in(key, i), residual_diagonal.shape, residual_diagonal.dtype
        )
        pivots = lax.top_k(scores, block)[1]
        # 2. Rows of R = K − FFᵀ at the pivots, and the inverse root of the block R_SS.
        rows = op.rows(pivots) - product(factor[pivots], factor.T)
        pivot_matrix = 0.5 * (rows[:, pivots] + rows[:, pivots].T)
        values, vectors = jnp.linalg.eigh(pivot_matrix)
        is_resolved = (values > 10 * eps * jnp.max(diagonal)) & (values > 0)
        inverse_roots = jnp.where(is_resolved, 1 / jnp.sqrt(jnp.where(is_resolved, values, 1)), 0)

        # 3. New columns of F, and the diagonal that they leave.
        columns = product(rows.T, vectors * inverse_roots[None, :])
        factor = lax.dynamic_update_slice_in_dim(factor, columns, i * block, axis=1)
        return factor, jnp.maximum(residual_diagonal - jnp.sum(columns**2, axis=1), 0)

    factor = jnp.zeros((len(diagonal), block_count * block), diagonal.dtype)
    return lax.fori_loop(0, block_count, add_block, (factor, diagonal))


class Preconditioner(eqx.Module):
    """The map v ↦ (FFᵀ + δI)⁻¹ v = (v − F (FᵀF + δI)⁻¹ Fᵀv)/δ (Woodbury).

    Attributes:
        factor: F.
        inner_factor: Cholesky factor of FᵀF + δI.
        shift: δ.
    """

    factor: Float[Array, "size rank"]
    inner_factor: Float[Array, "rank rank"]
    shift: Float[Array, ""]

    def __call__(self, v: Float[Array, "size r"]) -> Float[Array, "size r"]:
        """Return P⁻¹v."""
        inner = jax.scipy.linalg.cho_solve((self.inner_factor, True), product(self.factor.T, v))
        return (v - product(self.factor, inner)) / self.shift


class CompletePreconditioner(eqx.Module):
    """The map v ↦ (K + δI)⁻¹ v by the Cholesky factor of the complete matrix.

    Attributes:
        cholesky_factor: Cholesky factor of K + δI; δ is the ridge, or more if rounding requires
            it.
    """

    cholesky_factor: Float[Array, "size size"]

    def __call__(self, v: Float[Array, "size r"]) -> Float[Array, "size r"]:
        """Return P⁻¹v."""
        return jax.scipy.linalg.cho_solve((self.cholesky_factor, True), v)


def make_preconditioner(
    op: GramOperator, key: PRNGKeyArray, rank: int, ridge: Float[Array, ""]
) -> Preconditioner | CompletePreconditioner:
    """Return a preconditioner from ``rank`` random rows of the operator, or from all of them.

    Args:
        op: the operator, K.
        key: random key of the pivots.
        rank: number of rows, 1 … size; the size itself factorises the complete matrix.
        ridge: added to the diagonal of K.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import ntk
        >>> from softntk.ntk._solve.preconditioner import make_preconditioner
        >>> op = ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(6))
        >>> inverse = make_preconditioner(op, jax.random.key(0), 6, jnp.array(1.0))
        >>> round(float(inverse(jnp.ones((6, 1)))[0, 0]), 5)
        0.5
    """
    if rank == op.in_size():
        return _factorise_matrix(op, ridge)
    factor, residual_diagonal = pivoted_cholesky(op, key, rank, min(64, rank))
    return _factorise_low_rank(factor, jnp.mean(residual_diagonal) + ridge)


def _regularised_cholesky(
    matrix: Float[Array, "p p"], shift: Float[Array, ""]
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """Return the Cholesky factor of matrix + shift, and the shift.

    The shift is raised to the rounding error of the largest eigenvalue. As the entries may have
    larger errors than rounding, it is then multiplied by ten until the factorisation succeeds. For
    a matrix of zeros without a shift it is one.
    """
    # 1. The smallest shift that rounding allows; the trace bounds the largest eigenvalue.
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    shift = jnp.maximum(shift, 4 * float(jnp.finfo(matrix.dtype).eps) * jnp.trace(matrix))
    shift = jnp.where(shift == 0, 1, shift)

    # 2. Raise it until the factorisation succeeds.
    def has_failed(state: tuple[Array, Array]) -> Array:
        # The factor of an infinite matrix is never finite: stop when the shift reaches the trace.
        return ~jnp.all(jnp.isfinite(state[0])) & (state[1] < jnp.trace(matrix))

    def raise_shift(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.linalg.cholesky(matrix + 10 * state[1] * identity), 10 * state[1]

    return lax.while_loop(
        has_failed, raise_shift, (jnp.linalg.cholesky(matrix + shift * identity), shift)
    )


@jax.jit
def _factorise_matrix(op: GramOperator, ridge: Float[Array, ""]) -> CompletePreconditioner:
    """Return the preconditioner from the complete matrix."""
    return CompletePreconditioner(_regularised_cholesky(op.as_matrix(), ridge)[0])


@jax.jit
def _factorise_low_rank(
    factor: Float[Array, "size rank"], shift: Float[Array, ""]
) -> Preconditioner:
    """Return the preconditioner FFᵀ + shift."""
    inner_factor, shift = _regularised_cholesky(product(factor.T, factor), shift)
    return Preconditioner(factor, inner_factor, shift)
