r"""A preconditioner of the curvature of cross-entropy: one block [d̃, d̃] for each class.

The block of class c, Ãᵀ diag(s∘p_c∘(1 − p_c)) Ã + diag(w²), is the exact diagonal block of the
curvature. All of it would cost k Gram products, as much as d/4 products with the curvature each.
So it is taken from a few rows, drawn by their leverage scores times s_i Σ_c p_ic(1 − p_ic), and
mixed with a constant, the Gram matrix ÃᵀSÃ of all rows times the mean of p_c(1 − p_c): that bounds
the block from below in directions which the sample misses.

At p = 1/k, the start of a run, the blocks are the bound ½(I − 11ᵀ/k) ⊗ ÃᵀSÃ up to a factor.

The curvature does not change the mean over classes, and multiplies it with w² alone. With Π = the
projection onto coefficients whose sum over classes is zero, the preconditioner is

    P⁻¹ = Π B⁻¹ Π + (I − Π) diag(w²)⁺,        B = blockdiag(B_c) = RᵀR.

Without Π the k equal directions of the blocks would be as many small eigenvalues of P⁻¹H. Where it
costs few products B is one block for all classes together, from a sample as well.

Source: Böhning (1992), Ann. Inst. Statist. Math. 44, 197–200 (the bound); Cohen, Lee, Musco, Musco,
Peng and Sidford (2015), ITCS (sampling by leverage scores of a related matrix).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale
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
MAX_ROWS_PER_COLUMN = 100
SAMPLE_PRODUCTS = 4
# New blocks are computed after a step that took more products than this part of what they cost, and
# more than this number.
REFRESH_SHARE = 0.25
MIN_REFRESH_PRODUCTS = 5
# One block for all classes is taken where it costs no more products than that; rows of its sample.
MAX_JOINT_PRODUCTS = 4.0
JOINT_ROWS_PER_COLUMN = 40
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
        scales: D, by which each block has a unit diagonal, [k, d̃]; R = LᵀD⁻¹. Where one block
            serves all classes, [1, d̃k].
        inverse_roots: L⁻¹ of the scaled block of each class, float32, [k, d̃, d̃]; None where the
            blocks are diagonal.
        gauge_scale: 1/w by rows of coefficients, zero where w is, [d̃]; None with a reference class.
        gram: ÃᵀSÃ, or that of a sample, [d̃, d̃]; None where the blocks are diagonal.
        scores: leverage scores of the rows of Ã, [n]; None where the blocks are diagonal.
        refresh_above: products of a step above which computing it anew pays.
    """

    scales: Float[Array, "b e"]
    inverse_roots: Float[Array, "b e e"] | None
    gauge_scale: Float[Array, " e"] | None
    gram: Float[Array, "e e"] | None
    scores: Float[Array, " n"] | None
    refresh_above: Int[Array, ""]

    def solve_root(self, y: Float[Array, "q *r"]) -> Float[Array, "p *r"]:
        """Return S y on flat parameters, row-major, of one vector or of columns."""
        columns = y.reshape(len(y), -1)
        size = self.scales.size
        V = columns[:size].reshape(*self.scales.shape, -1)
        if self.inverse_roots is not None:
            V = _narrow_product(self.inverse_roots.transpose(0, 2, 1), V)
        # [blocks, d̃, r] → [d̃, blocks, r]; a joint block is row-major already.
        v = (self.scales[:, :, None] * V).transpose(1, 0, 2).reshape(size, -1)
        if self.gauge_scale is not None:
            V = v.reshape(len(self.gauge_scale), -1, v.shape[1])
            V = V - jnp.mean(V, axis=1, keepdims=True)
            gauge = self.gauge_scale[:, None] * columns[size:] / V.shape[1] ** 0.5
            v = (V + gauge[:, None]).reshape(size, -1)
        return v.reshape(size, *y.shape[1:])

    def solve_root_transposed(self, v: Float[Array, "p *r"]) -> Float[Array, "q *r"]:
        """Return Sᵀ v of flat parameters, of one vector or of columns."""
        size = self.scales.size
        columns = v.reshape(size, -1)
        gauge_parts = []
        if self.gauge_scale is not None:
            V = columns.reshape(len(self.gauge_scale), -1, columns.shape[1])
            mean = jnp.mean(V, axis=1, keepdims=True)
            columns = (V - mean).reshape(size, -1)
            gauge_parts = [self.gauge_scale[:, None] * mean[:, 0] * V.shape[1] ** 0.5]
        block_count, e = self.scales.shape
        blocks = columns.reshape(e, block_count, -1).transpose(1, 0, 2)
        blocks = self.scales[:, :, None] * blocks
        if self.inverse_roots is not None:
            blocks = _narrow_product(self.inverse_roots, blocks)
        stacked = jnp.concatenate([blocks.reshape(size, -1), *gauge_parts])
        return stacked.reshape(len(stacked), *v.shape[1:])


def _narrow_product(M: Float[Array, "k e e"], V: Float[Array, "k e r"]) -> Float[Array, "k e r"]:
    """Return M V, computed in float32 after V has been scaled into its range."""
    unit = binary_scale(V)
    return product(M, (V / unit).astype(M.dtype)).astype(V.dtype) * unit


def _inverse_root(block: Float[Array, "e e"]) -> tuple[Array, Array]:
    """Return the scale of a block to a unit diagonal, and L⁻¹ of the scaled block, in float32.

    Products with it are several times as fast as triangular solves, one vector at a time. A
    preconditioner needs no more digits than float32 has, and float64 would take twice as long.
    """
    diagonal = jnp.diagonal(block)
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    scaled = (block * scale[:, None] * scale[None]).astype(jnp.float32)
    factor = factorise(scaled, BLOCK_ROUNDINGS)
    root = factor.solve_root_transposed(jnp.eye(len(block), dtype=jnp.float32))
    return scale, root


def class_blocks(
    op: CrossEntropyOperator, previous: ClassBlocks | None, *, has_gauge: bool
) -> ClassBlocks:
    """Return the preconditioner of a curvature, after checking the previous one.

    Args:
        op: the curvature.
        previous: one at another point, whose constant part and scores are used again; or None.
        has_gauge: whether every class has coefficients.

    Raises:
        ValueError: previous is no such preconditioner.
    """
    if previous is not None and not isinstance(previous, ClassBlocks):
        raise ValueError(
            "previous must be what preconditioner returned at another point, or None, got "
            f"{type(previous).__name__}."
        )
    return _class_blocks(op, previous, has_gauge=has_gauge)


@jax.jit(static_argnames="has_gauge")
def _class_blocks(
    op: CrossEntropyOperator, previous: ClassBlocks | None, *, has_gauge: bool
) -> ClassBlocks:
    """Return the preconditioner of a curvature."""
    # 1. Without room for blocks: the diagonal of the curvature.
    n, d = matrices.shape(op.matrix)
    k = op.probabilities.shape[1]
    has_intercept = op.container is not None
    e = d + has_intercept
    w = jnp.sqrt(penalty_column(op)[:, 0])
    gauge_scale = jnp.where(w > 0, 1 / jnp.where(w > 0, w, 1), 0) if has_gauge else None
    if k * e**2 > MAX_BLOCK_ENTRIES or matrices.is_operator(op.matrix):
        return ClassBlocks(
            _diagonal_roots(op), None, gauge_scale, None, None, jnp.int32(MIN_REFRESH_PRODUCTS)
        )

    # 2. The constant part: one Gram matrix for all classes, and leverage scores from its factor.
    if previous is None:
        gram, scores = _constant_part(op, e)
    else:
        assert previous.gram is not None
        assert previous.scores is not None
        gram, scores = previous.gram, previous.scores

    # 3. How many rows, and whether all classes share a block.
    is_joint, size, refresh_above = _plan(n, e, k)

    # 4. The blocks, of the constant part alone at the first point.
    sampled = None if previous is None else _sampled_operator(op, scores, size)
    make_blocks = _joint_block if is_joint else _separate_blocks
    scales, roots = lax.map(_inverse_root, make_blocks(op, gram, sampled))
    return ClassBlocks(scales, roots, gauge_scale, gram, scores, jnp.int32(refresh_above))


def _plan(n: int, e: int, k: int) -> tuple[bool, int, int]:
    """Return whether all classes share a block, the rows of a sample, and ``refresh_above``.

    Counted in products with the curvature, 4 n d̃ k operations each, new blocks cost their Gram
    products and roots.
    """
    joint_size = min(n, JOINT_ROWS_PER_COLUMN * e)
    joint_cost = (joint_size * e * k / 2 + 2 * (e * k) ** 2) / (4 * n)
    is_joint = joint_cost <= MAX_JOINT_PRODUCTS
    affordable_rows = 4 * SAMPLE_PRODUCTS * n // e
    separate_size = min(n, max(e, min(affordable_rows, MAX_ROWS_PER_COLUMN * e)))
    size = joint_size if is_joint else separate_size
    cost = joint_cost if is_joint else (size * e + 2 * e**2) / (4 * n)
    return is_joint, size, max(MIN_REFRESH_PRODUCTS, int(REFRESH_SHARE * cost))


def _joint_block(
    op: CrossEntropyOperator, gram: Float[Array, "e e"], sampled: CrossEntropyOperator | None
) -> Float[Array, "1 p p"]:
    """Return one block for all classes: the constant part, mixed with a sample if there is one."""
    penalty = jnp.repeat(penalty_column(op)[:, 0], op.probabilities.shape[1])
    constant = jnp.kron(gram, _mean_curvature(op)) + jnp.diag(penalty)
    if sampled is None:
        return constant[None]
    return ((1 - CONSTANT_SHARE) * sampled.as_matrix() + CONSTANT_SHARE * constant)[None]


def _separate_blocks(
    op: CrossEntropyOperator, gram: Float[Array, "e e"], sampled: CrossEntropyOperator | None
) -> Float[Array, "k e e"]:
    """Return a block for each class: the constant part, mixed with a sample if there is one."""
    penalty = jnp.diag(penalty_column(op)[:, 0])[None]
    constant = jnp.diagonal(_mean_curvature(op))[:, None, None] * gram[None] + penalty
    if sampled is None:
        return constant
    sampled_blocks = _sampled_blocks(op, sampled) + penalty
    return (1 - CONSTANT_SHARE) * sampled_blocks + CONSTANT_SHARE * constant


def _mean_curvature(op: CrossEntropyOperator) -> Float[Array, "k k"]:
    """Return the mean of diag(p_i) − p_i p_iᵀ over the rows, weighted by s."""
    weighted = op.row_weights[:, None] * op.probabilities
    total = jnp.maximum(jnp.sum(op.row_weights), jnp.finfo(weighted.dtype).tiny)
    # 1 − p for the diagonal, which keeps its sign.
    diagonal = jnp.sum(weighted * (1 - op.probabilities), axis=0)
    products = product(weighted.T, op.probabilities)
    off_diagonal = products - jnp.diag(jnp.diagonal(products))
    return (jnp.diag(diagonal) - off_diagonal) / total


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


def _sampled_operator(
    op: CrossEntropyOperator, scores: Float[Array, " n"], size: int
) -> CrossEntropyOperator:
    """Return the curvature on rows that are drawn by s_i Σ_c p_ic(1 − p_ic) times their scores."""
    traces = op.row_weights * jnp.sum(op.probabilities * (1 - op.probabilities), axis=1)
    sample = _sample_rows(traces * scores, size)
    return CrossEntropyOperator(
        matrices.take_rows(op.matrix, sample.indices),
        _take(op.probabilities, sample),
        sample.scales * _take(op.row_weights, sample),
        op.squared_weights,
        op.container,
    )


def _sampled_blocks(
    op: CrossEntropyOperator, sampled: CrossEntropyOperator
) -> Float[Array, "k e e"]:
    """Return Ãᵀ diag(s∘p_c∘(1 − p_c)) Ã of a sample of rows, for each class c."""
    # 1. The Gram matrices of the sample, one class after the other.
    has_intercept = op.container is not None

    def block(probabilities: Float[Array, " s"]) -> Float[Array, "e e"]:
        D = sampled.row_weights * (probabilities * (1 - probabilities))
        return gram_with_intercept(sampled.matrix, D, intercept=has_intercept)

    blocks = lax.map(block, sampled.probabilities.T)
    # 2. Their right diagonals, where features may be rare.
    if matrices.is_sparse(op.matrix):
        D = op.row_weights[:, None] * (op.probabilities * (1 - op.probabilities))
        diagonals = jax.vmap(lambda column: _gram_diagonal(op, column), 1)(D)
        blocks = jax.vmap(_with_diagonal)(blocks, diagonals)
    return blocks
