r"""Row sampling: Aᵀ diag(D) A from a few rows, and how well that went.

A sample draws s rows with replacement, row i with probability π_i, and weighs it by count / (s π_i), so that

    Ã = Σ_drawn  count_i/(s π_i) · D_i a_i a_iᵀ,        E[Ã] = Aᵀ diag(D) A.

With π proportional to the leverage scores of diag(√D) A and s = O(d log d / ε²), (1 − ε) AᵀDA ≼ Ã ≼ (1 + ε) AᵀDA. Row norms
give that only up to the condition number, uniform sampling only for incoherent A: a row that alone spans a direction is missed.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.curvature import sketch
    >>> A = jax.random.normal(jax.random.key(0), (5000, 4))
    >>> pi = sketch.probabilities("leverage", A)
    >>> sample = sketch.draw(jax.random.key(1), pi, 400)
    >>> bool(sketch.distortion(sample.gram(A), A.T @ A) < 0.5)
    True

Source: arXiv 2304.10411 and 2309.13482 (the sparsifier of the approximate Newton method); Drineas and Mahoney (2018),
Lectures on randomized numerical linear algebra.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk import activations
from softntk._records import record
from softntk._validation import check_positive_int
from softntk.curvature import _matrices as matrices
from softntk.curvature import leverage
from softntk.curvature.structured import StructuredOperator

_KINDS = ("uniform", "row_norm", "leverage", "approximate_leverage")


@record
class Sample:
    """Rows that were drawn, each once.

    Attributes:
        indices: ascending, [s]; n (no row) where rows were drawn repeatedly and places are left over.
        scales: count / (s π), [s]; zero there.
    """

    indices: Int[Array, " s"]
    scales: Float[Array, " s"]

    def gram(self, A: Any, weights: Float[Array, " n"] | None = None) -> Float[Array, "d d"]:
        """Ã for A [n, d] and D, [n] (one if None)."""
        D = self.scales if weights is None else self.scales * self._of(weights)
        return matrices.gram(matrices.take(matrices.checked("A", A), self.indices), D)

    def _of(self, values: Float[Array, " n"]) -> Float[Array, " s"]:
        return jnp.asarray(values).at[self.indices].get(mode="fill", fill_value=0)


def probabilities(
    kind: str, A: Any, weights: Float[Array | np.ndarray, " n"] | None = None, key: PRNGKeyArray | None = None
) -> Float[Array, " n"]:
    r"""π, [n]: how likely a draw is each row of diag(√D) A.

    Args:
        kind: "leverage" (exact scores, O(n d²)), "approximate_leverage" (in O(nnz)), "row_norm" (∝ D_i ‖a_i‖²) or "uniform".
        A: [n, d], dense, BCOO or a lineax operator.
        weights: D ≥ 0, [n]; one if None.
        key: for approximate scores; ``jax.random.key(0)`` if None.

    Returns:
        [n], positive where a row is not zero, summing to one.

    Raises:
        ValueError: another kind; as :func:`softntk.curvature.leverage.scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> probabilities("row_norm", jnp.array([[1.0], [2.0]])).tolist()
        [0.20000000298023224, 0.800000011920929]

    Source: see the module.
    """
    if kind not in _KINDS:
        raise ValueError(activations.unknown("kind", kind, dict.fromkeys(_KINDS)))
    if kind == "leverage":
        sizes = leverage.scores(A, weights)
    elif kind == "approximate_leverage":
        sizes = leverage.approximate_scores(jax.random.key(0) if key is None else key, A, weights)
    else:
        A = leverage._weighted(A, weights)
        sizes = matrices.row_squares(A) if kind == "row_norm" else jnp.ones(matrices.shape(A)[0], matrices.dtype(A))
    return sizes / jnp.sum(sizes)


def draw(key: PRNGKeyArray, pi: Float[Array, " n"], size: int) -> Sample:
    r"""``size`` rows with replacement, row i with probability π_i.

    Args:
        key: of the draws.
        pi: π, [n], summing to one.
        size: s.

    Returns:
        A :class:`Sample`.

    Raises:
        ValueError: size not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sample = draw(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 8)
        >>> sample.indices[:2].tolist(), float(sample.scales.sum()) > 0
        ([0, 2], True)

    Source: see the module.
    """
    check_positive_int("size", size)
    n = len(pi)
    # By the inverse of the cumulative sum; a uniform number at its very end must not leave the rows that can be drawn.
    ladder = jnp.cumsum(pi)
    uniform = jax.random.uniform(key, (size,), pi.dtype) * ladder[-1]
    last = jnp.searchsorted(ladder, ladder[-1])  # the first row that reaches the end
    drawn = jnp.minimum(jnp.searchsorted(ladder, uniform, side="right"), last)
    indices, counts = jnp.unique(drawn, size=size, fill_value=n, return_counts=True)
    chance = pi.at[indices].get(mode="fill", fill_value=1)
    return Sample(indices=indices, scales=jnp.where(indices < n, counts.astype(pi.dtype) / (size * chance), 0))


def sketched(op: StructuredOperator, sample: Sample) -> StructuredOperator:
    r"""The operator with Aᵀ diag(D) A replaced by its sample; the low-rank part and the ridge stay exact.

    Args:
        op: Aᵀ (diag(D) + U M Uᵀ) A + ρ I.
        sample: of the rows of diag(√|D|) A.

    Returns:
        A structured operator on [s + r] rows: those drawn, and the columns of AᵀU. Never tagged positive semidefinite: a
        sampled first term may be too small for a negative second one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.curvature.structured import StructuredOperator
        >>> H = StructuredOperator(jnp.eye(2), jnp.ones(2), jnp.ones((2, 1)), jnp.eye(1))
        >>> every = Sample(indices=jnp.arange(2), scales=jnp.ones(2))
        >>> bool((sketched(H, every).as_matrix() == H.as_matrix()).all())
        True

    Source: arXiv 2309.13482, the approximate Newton method; MATH.md section 4.
    """
    rows, columns = matrices.take(op.matrix, sample.indices), op.columns()
    r = columns.shape[1]
    return StructuredOperator(
        jnp.concatenate([rows, columns.T]),
        jnp.concatenate([sample.scales * sample._of(op.logit_diagonal), jnp.zeros(r, op.dtype)]),
        jnp.concatenate([jnp.zeros((len(rows), r), op.dtype), jnp.eye(r, dtype=op.dtype)]),
        op.core,
        op.ridge,
    )


def distortion(
    approximate: Float[Array, "d d"] | lx.AbstractLinearOperator, exact: Float[Array, "d d"] | lx.AbstractLinearOperator
) -> Float[Array, ""]:
    r"""The smallest ε with (1 − ε) H ≼ H̃ ≼ (1 + ε) H: max |λ − 1| over the generalized eigenvalues H̃v = λHv.

    Args:
        approximate: H̃, [d, d], symmetric: a matrix or an operator.
        exact: H, positive semidefinite. On its null space (eigenvalues below d ε of the largest) H̃ must vanish too.

    Returns:
        A scalar; +inf where H has a negative eigenvalue, or H̃ is not zero where H is.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(distortion(jnp.diag(jnp.array([1.0, 3.0])), jnp.diag(jnp.array([1.0, 2.0])))), 5)
        0.5

    Source: see the module.
    """
    return _distortion(*(op.as_matrix() if isinstance(op, lx.AbstractLinearOperator) else op for op in (approximate, exact)))


@jax.jit
def _distortion(approximate: Float[Array, "d d"], exact: Float[Array, "d d"]) -> Float[Array, ""]:
    # Columns of one scale, so that rank is not decided by units.
    unit = jnp.sqrt(jnp.maximum(jnp.diagonal(exact), 0))
    unit = jnp.where(unit > 0, unit, 1)
    approximate, exact = (part / (unit[:, None] * unit[None, :]) for part in (approximate, exact))
    values, vectors = jnp.linalg.eigh(exact)
    noise = len(values) * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    kept = values > noise
    scaled = vectors / jnp.sqrt(jnp.where(kept, values, 1))[None, :]
    rotated = matrices.product(scaled.T, matrices.product(approximate, scaled))
    both = kept[:, None] & kept[None, :]
    found = jnp.max(jnp.abs(jnp.linalg.eigvalsh(jnp.where(both, rotated, jnp.eye(len(values), dtype=values.dtype))) - 1))
    outside = jnp.max(jnp.where(both, 0, jnp.abs(matrices.product(vectors.T, matrices.product(approximate, vectors)))))
    legal = (values[0] >= -noise) & (outside <= 1e3 * noise)
    return jnp.where(legal & jnp.isfinite(found), found, jnp.inf)
