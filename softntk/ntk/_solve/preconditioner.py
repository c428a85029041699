r"""A low-rank factor of a Gram operator, and the preconditioner made of it.

    F = pivoted_cholesky(op, rank, key)     [size, rank],  K ≈ FFᵀ from rank rows of K, randomly pivoted in blocks
    P = Preconditioner.of(op, F, ridge)     P⁻¹ ≈ (FFᵀ + (ridge + what F leaves of the mean diagonal) I)⁻¹

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
    r"""Return a partial Cholesky factor with random pivots: each drawn in proportion to the
    diagonal of K − FFᵀ.

    ``block`` pivots S at a time: with R = K − FFᵀ, the new columns are R_{:S} (R_SS)^{-1/2}, the
    root taken by eigenvectors so that a pivot that others of its block have already explained gives
    a zero column instead of a division by rounding.

    Args:
        op: the operator, K.
        key: of the draws.
        rank: number of columns, at most the size of op; rounded up to whole blocks.
        block: pivots at a time.

    Returns:
        F [size, rank] and the diagonal of K − FFᵀ, [size], which shows how good it is. Costs rank
        rows of K and size · rank² multiplications. Nothing is checked: :func:`softntk.ntk.solve`
        has checked before.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import ntk
        >>> from softntk.ntk._solve.preconditioner import pivoted_cholesky
        >>> op = ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(6)[:, :2] + 1.0)  # rank 2
        >>> factor, left = pivoted_cholesky(op, jax.random.key(0), rank=2, block=2)
        >>> factor.shape, bool(jnp.max(left) < 1e-5)
        ((6, 2), True)

    Source: arXiv 2207.06503, Algorithm 2 (random pivots), in blocks.
    """
    diagonal = op.diagonal()
    rounds = -(-rank // block)
    eps = jnp.finfo(diagonal.dtype).eps

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = state
        chance = jnp.where(left > 10 * eps * diagonal, left, 0)
        # Without replacement, by Gumbel's trick.
        scores = jnp.log(chance) + jax.random.gumbel(
            jax.random.fold_in(key, i), left.shape, left.dtype
        )
        pivots = lax.top_k(scores, block)[1]
        rows = op.rows(pivots) - product(factor[pivots], factor.T)
        own = 0.5 * (rows[:, pivots] + rows[:, pivots].T)
        values, vectors = jnp.linalg.eigh(own)
        good = (values > 10 * eps * jnp.max(diagonal)) & (values > 0)
        scale = jnp.where(good, 1 / jnp.sqrt(jnp.where(good, values, 1)), 0)
        columns = product(rows.T, vectors * scale[None, :])
        factor = lax.dynamic_update_slice_in_dim(factor, columns, i * block, axis=1)
        return factor, jnp.maximum(left - jnp.sum(columns**2, axis=1), 0)

    start = jnp.zeros((len(diagonal), rounds * block), diagonal.dtype), diagonal
    return lax.fori_loop(0, rounds, add, start)


class Preconditioner(eqx.Module):
    """v ↦ (FFᵀ + δI)⁻¹ v = (v − F (FᵀF + δI)⁻¹ Fᵀv)/δ (Woodbury), with the Cholesky factor of the
    small matrix.
    """

    factor: Float[Array, "size rank"]
    small: Float[Array, "rank rank"]
    shift: Float[Array, ""]

    def __call__(self, v: Float[Array, "size r"]) -> Float[Array, "size r"]:
        """Return P⁻¹v."""
        inner = jax.scipy.linalg.cho_solve((self.small, True), product(self.factor.T, v))
        return (v - product(self.factor, inner)) / self.shift


class CompletePreconditioner(eqx.Module):
    """v ↦ (K + δI)⁻¹ v by the Cholesky factor of the whole; δ is the ridge, unless rounding asks
    for more.
    """

    whole: Float[Array, "size size"]

    def __call__(self, v: Float[Array, "size r"]) -> Float[Array, "size r"]:
        """Return P⁻¹v."""
        return jax.scipy.linalg.cho_solve((self.whole, True), v)


def precondition(
    op: GramOperator, key: PRNGKeyArray, rank: int, ridge: Float[Array, ""]
) -> Preconditioner | CompletePreconditioner:
    """Return a preconditioner made of ``rank`` randomly pivoted rows of the operator, or of all of
    them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import ntk
        >>> from softntk.ntk._solve.preconditioner import precondition
        >>> op = ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(6))
        >>> round(float(precondition(op, jax.random.key(0), 6, jnp.array(1.0))(jnp.ones((6, 1)))[0, 0]), 5)
        0.5
    """
    if rank == op.in_size():
        return _complete(op, ridge)
    factor, left = pivoted_cholesky(op, key, rank, min(64, rank))
    return _factorise(factor, jnp.mean(left) + ridge)


def _regular(
    matrix: Float[Array, "p p"], shift: Float[Array, ""]
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """Return the Cholesky factor of matrix + shift, and the shift.

    It is raised where it is below rounding of the largest eigenvalue, and tenfold as often as the
    matrix, of entries that were not computed to rounding, is still not definite. Of a matrix of
    zeros without a shift it is one.
    """
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    shift = jnp.maximum(shift, 4 * float(jnp.finfo(matrix.dtype).eps) * jnp.trace(matrix))
    shift = jnp.where(shift == 0, 1, shift)

    def failed(state: tuple[Array, Array]) -> Array:
        # An infinite matrix never succeeds: the shift stops at its size.
        return ~jnp.all(jnp.isfinite(state[0])) & (state[1] < jnp.trace(matrix))

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.linalg.cholesky(matrix + 10 * state[1] * identity), 10 * state[1]

    return lax.while_loop(failed, again, (jnp.linalg.cholesky(matrix + shift * identity), shift))


@jax.jit
def _complete(op: GramOperator, ridge: Float[Array, ""]) -> CompletePreconditioner:
    return CompletePreconditioner(_regular(op.as_matrix(), ridge)[0])


@jax.jit
def _factorise(factor: Float[Array, "size rank"], shift: Float[Array, ""]) -> Preconditioner:
    small, shift = _regular(product(factor.T, factor), shift)
    return Preconditioner(factor, small, shift)
