r"""A preconditioner of the curvature of cross-entropy: one block [d̃, d̃] for each class.

The block of class c, Ãᵀ diag(s∘p_c∘(1 − p_c)) Ã + diag(w²), is the exact diagonal block of the
curvature. All of it would cost k Gram products, as much as d/4 products with the curvature each.
So it is taken from a few rows, drawn by their leverage scores times s_i Σ_c p_ic(1 − p_ic), and
mixed with a constant, the Gram matrix ÃᵀSÃ of all rows times the mean of p_c(1 − p_c): that bounds
the block from below in directions which the sample misses.

At p = 1/k, the start of a run, the blocks are the bound ½(I − 11ᵀ/k) ⊗ ÃᵀSÃ up to a factor.

The curvature does not change the mean over classes, and multiplies it with w² alone. With Π = the
projection onto coefficients whose sum over classes is zero, the preconditioner is

    P⁻¹ = Π B⁻¹ Π + (I − Π) diag(w²)⁺,        B = blockdiag(B_c) = RᵀR,

without which the k equal directions of the blocks would be as many small eigenvalues of P⁻¹H.

Source: Böhning (1992), Ann. Inst. Statist. Math. 44, 197–200 (the bound); Cohen, Lee, Musco, Musco,
Peng and Sidford (2015), ITCS (sampling by leverage scores of a related matrix).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

from softntk._linalg import design_matrix as matrices
from softntk._linalg.products import product
from softntk._linalg.row_passes import times_with_intercept
from softntk._linalg.scaled_cholesky import factorise
from softntk.curvature import sketch
from softntk.regression._cross_entropy_operator import (
    CrossEntropyOperator,
    gram_with_intercept,
    penalty_column,
)

# Rows of a sample for each row of a block, at most, and the products with the curvature that a
# sample may cost.
MAX_ROWS_PER_COLUMN = 20
SAMPLE_PRODUCTS = 15
# Numbers in all blocks, above which only their diagonals are used.
MAX_BLOCK_ENTRIES = 2**26
# Share of the constant part.
CONSTANT_SHARE = 0.1
# Share of draws that are uniform, so that every row can be drawn.
UNIFORM_SHARE = 0.05
# Columns of a Gaussian matrix that estimates leverage scores to a factor of two.
SCORE_DIRECTIONS = 8
# Roundings that are added to a block with a unit diagonal, so that singular ones have a factor.
BLOCK_ROUNDINGS = 64


class ClassBlocks(NamedTuple):
    """A preconditioner P of the curvature, by a root: P⁻¹ = S Sᵀ, S = [Π R⁻¹, (I − Π) diag(1/w)].

    Attributes:
        inverse_roots: R⁻ᵀ of the block of each class, [k, d̃, d̃]; of diagonal blocks their
            diagonals, [k, d̃].
        gauge_scale: 1/w by rows of coefficients, zero where w is, [d̃]; None with a reference class.
        gram: ÃᵀSÃ, or that of a sample, [d̃, d̃]; None where the blocks are diagonal.
        scores: leverage scores of the rows of Ã, [n]; None where the blocks are diagonal.
    """

    inverse_roots: Float[Array, "k e *e"]
    gauge_scale: Float[Array, " e"] | None
    gram: Float[Array, "e e"] | None
    scores: Float[Array, " n"] | None

    def solve_root(self, y: Float[Array, "q *r"]) -> Float[Array, "p *r"]:
        """Return S y on flat parameters, row-major, of one vector or of columns."""
        columns = y.reshape(len(y), -1)
        k, e = self.inverse_roots.shape[:2]
        blocks = columns[: k * e].reshape(k, e, -1)
        if self.inverse_roots.ndim == 2:
            V = self.inverse_roots[:, :, None] * blocks
        else:
            V = product(self.inverse_roots.transpose(0, 2, 1), blocks)
        if self.gauge_scale is not None:
            V = V - jnp.mean(V, axis=0, keepdims=True)
            gauge = self.gauge_scale[:, None] * columns[k * e :] / k**0.5
            V = V + gauge[None]
        return V.transpose(1, 0, 2).reshape(k * e, *y.shape[1:])

    def solve_root_transposed(self, v: Float[Array, "p *r"]) -> Float[Array, "q *r"]:
        """Return Sᵀ v of flat parameters, of one vector or of columns."""
        k, e = self.inverse_roots.shape[:2]
        V = v.reshape(e, k, -1).transpose(1, 0, 2)
        mean = jnp.mean(V, axis=0, keepdims=True)
        if self.gauge_scale is not None:
            V = V - mean
        if self.inverse_roots.ndim == 2:
            blocks = self.inverse_roots[:, :, None] * V
        else:
            blocks = product(self.inverse_roots, V)
        parts = [blocks.reshape(k * e, -1)]
        if self.gauge_scale is not None:
            parts.append(self.gauge_scale[:, None] * mean[0] * k**0.5)
        stacked = jnp.concatenate(parts)
        return stacked.reshape(len(stacked), *v.shape[1:])


def _inverse_root(block: Float[Array, "e e"]) -> Float[Array, "e e"]:
    """Return R⁻ᵀ of a block RᵀR.

    Products with it are several times as fast as triangular solves, one vector at a time.
    """
    factor = factorise(block, BLOCK_ROUNDINGS)
    return factor.solve_root_transposed(jnp.eye(len(block), dtype=block.dtype))


@jax.jit(static_argnames="has_gauge")
def class_blocks(
    op: CrossEntropyOperator, previous: ClassBlocks | None, *, has_gauge: bool
) -> ClassBlocks:
    """Return the preconditioner of a curvature.

    Args:
        op: the curvature.
        previous: one at another point, whose constant part and scores are used again; or None.
        has_gauge: whether every class has coefficients.
    """
    # 1. Without room for blocks: the diagonal of the curvature.
    d = matrices.shape(op.matrix)[1]
    k = op.probabilities.shape[1]
    has_intercept = op.container is not None
    e = d + has_intercept
    w = jnp.sqrt(penalty_column(op)[:, 0])
    gauge_scale = jnp.where(w > 0, 1 / jnp.where(w > 0, w, 1), 0) if has_gauge else None
    if k * e**2 > MAX_BLOCK_ENTRIES or matrices.is_operator(op.matrix):
        return ClassBlocks(_diagonal_roots(op), gauge_scale, None, None)

    # 2. At the first point: one Gram matrix for all classes, and leverage scores from its factor.
    D = op.row_weights[:, None] * (op.probabilities * (1 - op.probabilities))
    penalty = jnp.diag(w**2)
    if previous is None:
        gram, scores = _constant_part(op, e)
        mean = jnp.sum(D) / (k * jnp.maximum(jnp.sum(op.row_weights), _tiny(D)))
        inverse_root = _inverse_root(mean * gram + penalty)
        inverse_roots = jnp.broadcast_to(inverse_root, (k, e, e))
        return ClassBlocks(inverse_roots, gauge_scale, gram, scores)

    # 3. Later: blocks of a sample, mixed with the constant part.
    assert previous.gram is not None
    assert previous.scores is not None
    sampled = _sampled_blocks(op, D, jnp.sum(D, axis=1) * previous.scores, e)
    means = jnp.sum(D, axis=0) / jnp.maximum(jnp.sum(op.row_weights), _tiny(D))
    constant = means[:, None, None] * previous.gram[None]
    mixed = (1 - CONSTANT_SHARE) * sampled + CONSTANT_SHARE * constant
    blocks = mixed + penalty[None]
    return ClassBlocks(lax.map(_inverse_root, blocks), gauge_scale, previous.gram, previous.scores)


def _tiny(x: Array) -> float:
    """Return the smallest normal number, to divide by where a sum is zero."""
    return float(jnp.finfo(x.dtype).tiny)


def _diagonal_roots(op: CrossEntropyOperator) -> Float[Array, "k e"]:
    """Return the inverse roots of the diagonals of the blocks."""
    k = op.probabilities.shape[1]
    diagonal = lx.diagonal(op).reshape(-1, k).T
    largest = jnp.max(diagonal)
    floor = jnp.finfo(diagonal.dtype).eps * jnp.where(largest > 0, largest, 1)
    return lax.rsqrt(jnp.maximum(diagonal, floor))


def _sample_rows(weights: Float[Array, " n"], size: int) -> sketch.Sample:
    """Return a sample by weights of the rows, some of it uniform; each row once if it is all."""
    n = len(weights)
    if size >= n:
        return sketch.Sample(indices=jnp.arange(n), scales=jnp.ones(n, weights.dtype))
    weights = jnp.where(jnp.isfinite(weights), weights, 0)
    total = jnp.sum(weights)
    by_weight = weights / jnp.where(total > 0, total, 1)
    probabilities = (1 - UNIFORM_SHARE) * by_weight + UNIFORM_SHARE / n
    return sketch.draw(jax.random.key(0), probabilities / jnp.sum(probabilities), size)


def _constant_part(
    op: CrossEntropyOperator, e: int
) -> tuple[Float[Array, "e e"], Float[Array, " n"]]:
    """Return ÃᵀSÃ, of a sample of rows where A is sparse, and leverage scores of the rows."""
    # 1. The Gram matrix; that of a BCOO would cost nnz·d.
    n, _ = matrices.shape(op.matrix)
    has_intercept = op.container is not None
    if matrices.is_sparse(op.matrix):
        lengths = matrices.row_squares(op.matrix) + has_intercept
        sample = _sample_rows(op.row_weights * lengths, min(n, MAX_ROWS_PER_COLUMN * e))
        weights = sample.scales * _take(op.row_weights, sample)
        rows = matrices.take_rows(op.matrix, sample.indices)
        gram = gram_with_intercept(rows, weights, intercept=has_intercept)
        gram = _with_diagonal(gram, _gram_diagonal(op, op.row_weights))
    else:
        gram = gram_with_intercept(op.matrix, op.row_weights, intercept=has_intercept)

    # 2. Scores ‖ã_i R⁻¹ G‖² with a few random directions G.
    penalty = jnp.diag(penalty_column(op)[:, 0])
    factor = factorise(gram + penalty, BLOCK_ROUNDINGS)
    directions = jax.random.normal(jax.random.key(1), (e, SCORE_DIRECTIONS), gram.dtype)
    images = times_with_intercept(op.matrix, factor.solve_root(directions))
    return gram, jnp.sum(images**2, axis=1) / SCORE_DIRECTIONS


def _take(values: Float[Array, " n *k"], sample: sketch.Sample) -> Float[Array, " s *k"]:
    """Return the entries of a sample; zero for its index n, which is no row."""
    return values.at[sample.indices].get(mode="fill", fill_value=0)


def _gram_diagonal(op: CrossEntropyOperator, D: Float[Array, " n"]) -> Float[Array, " e"]:
    """Return the diagonal of Ãᵀ diag(D) Ã."""
    diagonal = matrices.gram_diagonal(op.matrix, D)
    return diagonal if op.container is None else jnp.append(diagonal, jnp.sum(D))


def _with_diagonal(gram: Float[Array, "e e"], diagonal: Float[Array, " e"]) -> Float[Array, "e e"]:
    """Return a sampled Gram matrix scaled to the right diagonal; features may be rare."""
    sampled_diagonal = jnp.diagonal(gram)
    is_sampled = sampled_diagonal > 0
    scale = jnp.sqrt(
        jnp.where(is_sampled, diagonal / jnp.where(is_sampled, sampled_diagonal, 1), 0)
    )
    return scale[:, None] * gram * scale[None] + jnp.diag(jnp.where(is_sampled, 0, diagonal))


def _sampled_blocks(
    op: CrossEntropyOperator, D: Float[Array, "n k"], weights: Float[Array, " n"], e: int
) -> Float[Array, "k e e"]:
    """Return Ãᵀ diag(D_c) Ã of a sample of rows, for each class c."""
    # 1. As many rows as cost a few products with the curvature, 4 n e k operations each.
    n, _ = matrices.shape(op.matrix)
    affordable_rows = 4 * SAMPLE_PRODUCTS * n // e
    size = min(n, max(e, min(affordable_rows, MAX_ROWS_PER_COLUMN * e)))
    sample = _sample_rows(weights, size)

    # 2. Their Gram matrices, one class after the other.
    rows = matrices.take_rows(op.matrix, sample.indices)
    sampled_D = sample.scales[:, None] * _take(D, sample)
    has_intercept = op.container is not None
    blocks = lax.map(
        lambda column: gram_with_intercept(rows, column, intercept=has_intercept), sampled_D.T
    )
    if matrices.is_sparse(op.matrix):
        diagonals = jax.vmap(lambda column: _gram_diagonal(op, column), 1)(D)
        blocks = jax.vmap(_with_diagonal)(blocks, diagonals)
    return blocks
