r"""The sampled Hessian: a sampler of rows whose scores improve from one step to the next.

Row i of diag(√|D|)A is drawn with probability proportional to |D_i| q_i, where q_i estimates
a_iᵀP⁻¹a_i. At first q_i = ‖a_i‖²; once a sample has been factorised, P̃ = RᵀR, its leverage scores
cost one pass over A,

    q_i = ‖a_i R⁻¹ G‖²,        G Gaussian, [d, k] / √k.

A poor first sample still gives scores that are right up to its own distortion, and a sample drawn
with these is good (repeated sampling). If the measured ε stays too large, the next sample is four
times as large, and in the end all of A.

Source: arXiv 2309.13482, the approximate Newton method; Cohen, Lee, Musco, Musco, Peng and Sidford
(2015), ITCS, Uniform sampling for matrix approximation; Drineas, Magdon-Ismail, Mahoney and
Woodruff (2012), JMLR 13, 3475–3506.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softntk._linalg import design_matrix as matrices
from softntk._linalg.scaled_cholesky import Factor, Matrix
from softntk.curvature import sketch
from softntk.curvature.sketch import Sample
from softntk.curvature.structured import StructuredOperator

# Columns of G, so many that scores are right up to a factor of two.
SCORE_DIRECTIONS = 8
# Factor by which a sample grows that is too poor, before all rows are taken.
SAMPLE_GROWTH = 4
# Multiple of the allowed distortion above which all rows are taken at once: a sample of
# SAMPLE_GROWTH times the size would be too poor as well.
HOPELESS_DISTORTION_RATIO = 10.0
# Relative decrease of the loss that a step on the sample alone has to reach.
MIN_LOSS_DECREASE = 0.1
# Share of uniform draws, so that every row can be drawn.
UNIFORM_SHARE = 0.01


class Sampler(NamedTuple):
    """Scores of the rows, and how well samples have served.

    Attributes:
        scores: q, one per row.
        has_leverage_scores: whether q comes from a factor, and not from the norms of the rows.
        reliable: whether steps computed from samples alone have decreased the loss enough, where
            the curvature is not convex.
        loss_before: the loss before such a step; +inf if the last step was of another kind.
        size_index: which of :func:`sample_sizes` is used.
    """

    scores: Float[Array, " n"]
    has_leverage_scores: Bool[Array, ""]
    reliable: Bool[Array, ""]
    loss_before: Float[Array, ""]
    size_index: Int[Array, ""]


def sample_sizes(op: StructuredOperator, size: int) -> tuple[int, ...]:
    """Return the possible numbers of rows of a sample: s, 4s and all of them."""
    n = matrices.shape(op.matrix)[0]
    return (*(rows for rows in (size, SAMPLE_GROWTH * size) if rows < n), n)


def initial_sampler(op: StructuredOperator) -> Sampler:
    """Return a sampler whose scores are the squared norms of the rows."""
    return Sampler(
        scores=matrices.row_squares(op.matrix),
        has_leverage_scores=jnp.asarray(False),
        reliable=jnp.asarray(True),
        loss_before=jnp.asarray(jnp.inf, op.dtype),
        size_index=jnp.asarray(0, jnp.int32),
    )


def draw(sampler: Sampler, op: StructuredOperator, key: PRNGKeyArray, size: int) -> Sample:
    """Return a sample of ``size`` rows; if these are all, each of them once."""
    n = matrices.shape(op.matrix)[0]
    if size == n:
        return Sample(indices=jnp.arange(n), scales=jnp.ones(n, op.dtype))
    # Rows whose score overflowed are drawn by the uniform share alone.
    weights = jnp.abs(op.logit_diagonal) * sampler.scores
    weights = jnp.where(jnp.isfinite(weights), weights, 0)
    total = jnp.sum(weights)
    divisor = jnp.where(total > 0, total, 1)
    by_scores = jnp.where(total > 0, (1 - UNIFORM_SHARE) * weights / divisor, 0)
    probabilities = by_scores + UNIFORM_SHARE / n
    return sketch.draw(key, probabilities / jnp.sum(probabilities), size)


def sampled_matrix(op: StructuredOperator, sample: Sample) -> Matrix:
    """Return the sampled operator as a matrix [d, d]; its low-rank part and ridge are exact."""
    if matrices.shape(op.matrix)[0] == len(sample.indices):
        return op.as_matrix()
    return sketch.sketched(op, sample).as_matrix()


def remember_loss(sampler: Sampler, value: Float[Array, ""]) -> Sampler:
    """Store the loss so that the next step can check whether the sampled model made progress."""
    return sampler._replace(loss_before=value)


def update_reliability(sampler: Sampler, value: Float[Array, ""]) -> Sampler:
    """Mark samples as unreliable if a step from one decreased the loss by less than a tenth."""
    # Without a loss from before, the last step was not one on the sample alone.
    has_loss = jnp.isfinite(sampler.loss_before)
    loss_bound = sampler.loss_before - MIN_LOSS_DECREASE * jnp.abs(sampler.loss_before)
    too_slow = has_loss & ~(value <= loss_bound)
    return sampler._replace(
        reliable=sampler.reliable & ~too_slow,
        loss_before=jnp.full_like(sampler.loss_before, jnp.inf),
    )


def refresh_scores(
    sampler: Sampler,
    op: StructuredOperator,
    key: PRNGKeyArray,
    factor: Factor,
    distortion: Float[Array, ""],
    max_distortion: float,
    last_index: int,
) -> Sampler:
    """Return the sampler with new scores, and perhaps a larger size, where ε is too large.

    Args:
        sampler: the sampler that drew the sample.
        op: the operator that is sampled.
        key: random key of the directions G.
        factor: R of the sample.
        distortion: the measured ε.
        max_distortion: the ε up to which nothing changes.
        last_index: index of :func:`sample_sizes` that stands for all rows.
    """

    def with_new_scores() -> Sampler:
        # 1. Scores ‖a_i R⁻¹ G‖²; in few dimensions G is the identity and they are exact.
        d = len(factor.scale)
        if d > SCORE_DIRECTIONS:
            gaussian = jax.random.normal(key, (d, SCORE_DIRECTIONS), op.dtype)
            directions = gaussian / SCORE_DIRECTIONS**0.5
        else:
            directions = jnp.eye(d, dtype=op.dtype)
        scores_root = factor.solve_root(directions)

        # 2. A larger sample only if the scores were leverage scores already.
        had_scores = sampler.has_leverage_scores
        index = sampler.size_index
        next_index = jnp.minimum(index + had_scores.astype(index.dtype), last_index)
        is_hopeless = ~(distortion <= HOPELESS_DISTORTION_RATIO * max_distortion)
        new_index = jnp.where(had_scores & is_hopeless, last_index, next_index)
        return sampler._replace(
            scores=matrices.row_squares(op.matrix, scores_root),
            has_leverage_scores=jnp.asarray(True),
            size_index=new_index.astype(index.dtype),
        )

    return lax.cond(distortion <= max_distortion, lambda: sampler, with_new_scores)
