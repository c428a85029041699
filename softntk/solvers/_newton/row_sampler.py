r"""The sampled Hessian of the approximate Newton method, which learns from one step for the next
which rows matter.

Row i of diag(√|D|)A is drawn with a chance proportional to |D_i| q_i, where q_i estimates
a_iᵀP⁻¹a_i. At first q_i = ‖a_i‖²; once a sample has been factorised, P̃ = RᵀR, its leverage scores
cost one pass over A,

    q_i = ‖a_i R⁻¹ G‖²,        G Gaussian, [d, k] / √k.

A poor first sample still gives scores that are right to its own distortion, and the next one drawn
with them is good (repeated sampling). If the measured ε stays too large, the next sample is four
times as large, and at last all of A.

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

_DIRECTIONS = 8  # of the estimate of scores: right to a factor of two
_GROWTH = 4  # of a sample that is too poor, before it is all of A
_HOPELESS = 10.0  # times the distortion that is allowed: more rows of the same kind will not do
_PROGRESS = 0.1  # of the loss, by which a step on the sample alone should lower it
_UNIFORM = 0.01  # of the draws: no row that could matter is out of reach


class Sampler(NamedTuple):
    """What is remembered from step to step."""

    scores: Float[Array, " n"]
    """q."""
    learned: Bool[Array, ""]
    """Whether they come from a factor, and not from the rows' norms."""
    trusted: Bool[Array, ""]
    """Whether steps that are the sample's own have got on, where the curvature is not convex."""
    watched: Float[Array, ""]
    """The loss before such a step, or +inf."""
    level: Int[Array, ""]
    """Of the sample's size: see ``sizes``."""


def sizes(op: StructuredOperator, size: int) -> tuple[int, ...]:
    """The rows of a sample at each level: s, 4s and at last all of them."""
    n = matrices.shape(op.matrix)[0]
    return (*(rows for rows in (size, _GROWTH * size) if rows < n), n)


def start(op: StructuredOperator) -> Sampler:
    """Scores by the rows' norms."""
    yes, no, unknown = jnp.asarray(True), jnp.asarray(False), jnp.asarray(jnp.inf, op.dtype)
    return Sampler(matrices.row_squares(op.matrix), no, yes, unknown, jnp.asarray(0, jnp.int32))


def draw(sampler: Sampler, op: StructuredOperator, key: PRNGKeyArray, size: int) -> Sample:
    """A sample of ``size`` rows; all of them if that is all there are."""
    n = matrices.shape(op.matrix)[0]
    if size == n:
        return Sample(indices=jnp.arange(n), scales=jnp.ones(n, op.dtype))
    chances = jnp.abs(op.logit_diagonal) * sampler.scores
    chances = jnp.where(jnp.isfinite(chances), chances, 0)
    total = jnp.sum(chances)
    pi = (
        jnp.where(total > 0, (1 - _UNIFORM) * chances / jnp.where(total > 0, total, 1), 0)
        + _UNIFORM / n
    )
    return sketch.draw(key, pi / jnp.sum(pi), size)


def matrix(op: StructuredOperator, sample: Sample) -> Matrix:
    """The sampled operator, [d, d]; its low-rank part and ridge exact."""
    if matrices.shape(op.matrix)[0] == len(sample.indices):
        return op.as_matrix()
    return sketch.sketched(op, sample).as_matrix()


def watch(sampler: Sampler, value: Float[Array, ""]) -> Sampler:
    """To be asked at the next step how much the loss fell."""
    return sampler._replace(watched=value)


def judge(sampler: Sampler, value: Float[Array, ""]) -> Sampler:
    """Steps that are the sample's own are trusted no more once the loss falls by less than a tenth."""
    watching = jnp.isfinite(sampler.watched)
    slow = watching & ~(value <= sampler.watched - _PROGRESS * jnp.abs(sampler.watched))
    return sampler._replace(
        trusted=sampler.trusted & ~slow, watched=jnp.full_like(sampler.watched, jnp.inf)
    )


def learn(
    sampler: Sampler,
    op: StructuredOperator,
    key: PRNGKeyArray,
    factor: Factor,
    distortion: Float[Array, ""],
    most: float,
    top: int,
) -> Sampler:
    """Where ε was above ``most``: scores from this factor, and, if the scores came from one
    already, a larger sample.
    """

    def again() -> Sampler:
        d = len(factor.scale)
        few = d > _DIRECTIONS
        directions = (
            jax.random.normal(key, (d, _DIRECTIONS), op.dtype) / _DIRECTIONS**0.5
            if few
            else jnp.eye(d, dtype=op.dtype)
        )
        right = factor.solve_root(directions)
        level = jnp.minimum(sampler.level + sampler.learned.astype(sampler.level.dtype), top)
        level = jnp.where(sampler.learned & ~(distortion <= _HOPELESS * most), top, level).astype(
            sampler.level.dtype
        )
        scores = matrices.row_squares(op.matrix, right)
        return sampler._replace(scores=scores, learned=jnp.asarray(True), level=level)

    return lax.cond(distortion <= most, lambda: sampler, again)
