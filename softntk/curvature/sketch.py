r"""Row sampling: Aᵀ diag(D) A from a few rows, and how well that went.

A sample draws s rows with replacement, row i with probability π_i, and weighs it by count / (s
π_i), so that

    Ã = Σ_drawn  count_i/(s π_i) · D_i a_i a_iᵀ,        E[Ã] = Aᵀ diag(D) A.

With π proportional to the leverage scores of diag(√D) A and s = O(d log d / ε²), (1 − ε) AᵀDA ≼ Ã ≼
(1 + ε) AᵀDA. Row norms give that only up to the condition number, uniform sampling only for
incoherent A: a row that alone spans a direction is missed.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.curvature import sketch
    >>> A = jax.random.normal(jax.random.key(0), (5000, 4))
    >>> pi = sketch.probabilities("leverage", A)
    >>> sample = sketch.draw(jax.random.key(1), pi, 400)
    >>> bool(sketch.distortion(sample.gram(A), A.T @ A) < 0.5)
    True

Source: arXiv 2304.10411 and 2309.13482 (the sparsifier of the approximate Newton method); Drineas
and Mahoney (2018), Lectures on randomized numerical linear algebra.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import (
    as_dtype,
    as_floating,
    check_choice,
    check_key,
    check_positive_int,
    is_concrete,
)
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale
from softntk.curvature import leverage
from softntk.curvature.structured import StructuredOperator, check_operator

# by which given probabilities may miss a sum of one: rounding, of float32 at least
_TOTAL_TOLERANCE = 1e-4
# by which a matrix may differ from its transpose, relative to its largest entry
_SYMMETRY_TOLERANCE = 1e-3

_KINDS = ("uniform", "row_norm", "leverage", "approximate_leverage")


@record
class Sample:
    """Rows that were drawn, each once.

    Attributes:
        indices: ascending, [s]; n (no row) where rows were drawn repeatedly and places are left
            over.
        scales: count / (s π), [s]; zero there.
    """

    indices: Int[Array, " s"]
    scales: Float[Array, " s"]

    def gram(
        self, A: Any, weights: Float[Array | np.ndarray, " n"] | None = None
    ) -> Float[Array, "d d"]:
        """Return Ã for A [n, d] and D, [n] (one if None)."""
        A = matrices.check_design_matrix("A", A)
        n, dtype = matrices.shape(A)[0], matrices.dtype(A)
        if is_concrete(self.indices) and int(jnp.max(self.indices)) > n:
            raise ValueError(
                f"A must have the rows that the sample was drawn from, got {n} and the index {self.indices.max()}."
            )
        D = self.scales.astype(dtype)
        if weights is not None:
            D = D * self._of(as_dtype("weights", weights, dtype, (n,)))
        return matrices.gram(matrices.take_rows(A, self.indices), D)

    def _of(self, values: Float[Array, " n"]) -> Float[Array, " s"]:
        return values.at[self.indices].get(mode="fill", fill_value=0)


def probabilities(
    kind: str,
    A: Any,
    weights: Float[Array | np.ndarray, " n"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, " n"]:
    r"""Return π, [n]: how likely a draw is each row of diag(√D) A, whatever the units of A and D.

    Args:
        kind: "leverage" (exact scores, O(n d²)), "approximate_leverage" (in O(nnz)), "row_norm" (∝
            D_i ‖a_i‖²) or "uniform".
        A: [n, d], dense, BCOO or a lineax operator.
        weights: D ≥ 0, [n]; one if None.
        key: for approximate scores; ``jax.random.key(0)`` if None.

    Returns:
        [n], positive where a row is not zero, summing to one; uniform where all rows are zero.

    Raises:
        ValueError: another kind; no key; as :func:`softntk.curvature.leverage.scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> probabilities("row_norm", jnp.array([[1.0], [2.0]])).tolist()
        [0.20000000298023224, 0.800000011920929]

    Source: see the module.
    """
    kind = check_choice("kind", kind, _KINDS)
    key = jax.random.key(0) if key is None else check_key("key", key)
    if kind == "leverage":
        sizes = leverage.scores(A, weights)
    elif kind == "approximate_leverage":
        sizes = leverage.approximate_scores(key, A, weights)
    else:
        A, D = leverage.arguments(A, weights, half=True)
        sizes = jnp.ones(matrices.shape(A)[0], matrices.dtype(A))
        if kind == "row_norm":
            sizes = matrices.row_squares(leverage.weighted(A, D))
    return _normalised(sizes)


@jax.jit
def _normalised(sizes: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return sizes over their sum, and equal ones where all are zero."""
    sizes = sizes / binary_scale(sizes)
    total = jnp.sum(sizes)
    return jnp.where(total == 0, 1 / len(sizes), sizes / jnp.where(total == 0, 1, total))


def draw(key: PRNGKeyArray, pi: Float[Array | np.ndarray, " n"], size: int) -> Sample:
    r"""Return ``size`` rows drawn with replacement, row i with probability π_i.

    Args:
        key: of the draws.
        pi: π, [n], not negative, summing to one (a traced one is not checked).
        size: s.

    Returns:
        A :class:`Sample`.

    Raises:
        ValueError: no key; pi of another shape, negative, not finite or of another sum; size not
            positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sample = draw(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 8)
        >>> sample.indices[:2].tolist(), float(sample.scales.sum()) > 0
        ([0, 2], True)

    Source: see the module.
    """
    key = check_key("key", key)
    pi = as_floating("pi", pi, ("n",), half=False)
    if is_concrete(pi):
        given = np.asarray(pi, np.float64)
        if given.min() < 0:
            raise ValueError(
                f"pi must not be negative, got {given.min():.3g}. Take sketch.probabilities."
            )
        if abs(given.sum() - 1) > _TOTAL_TOLERANCE:
            raise ValueError(f"pi must sum to one, got {given.sum():.6g}. Divide it by its sum.")
    return _draw(key, pi, check_positive_int("size", size))


@jax.jit(static_argnums=2)
def _draw(key: PRNGKeyArray, pi: Float[Array, " n"], size: int) -> Sample:
    n = len(pi)
    # By the inverse of the cumulative sum; a uniform number at its very end must not leave the rows
    # that can be drawn.
    cdf = jnp.cumsum(pi)
    uniform = jax.random.uniform(key, (size,), pi.dtype) * cdf[-1]
    last = jnp.searchsorted(cdf, cdf[-1])  # the first row that reaches the end
    drawn = jnp.minimum(jnp.searchsorted(cdf, uniform, side="right"), last)
    indices, counts = jnp.unique(drawn, size=size, fill_value=n, return_counts=True)
    probability = pi.at[indices].get(mode="fill", fill_value=1) / jnp.where(
        cdf[-1] == 0, 1, cdf[-1]
    )
    drawn_once = (indices < n) & (probability > 0)
    scales = counts.astype(pi.dtype) / (size * jnp.where(drawn_once, probability, 1))
    return Sample(indices=indices, scales=jnp.where(drawn_once, scales, 0))


def sketched(op: StructuredOperator, sample: Sample) -> StructuredOperator:
    r"""Return the operator with Aᵀ diag(D) A replaced by its sample; the low-rank part and the
    ridge stay exact.

    Args:
        op: Aᵀ (diag(D) + U M Uᵀ) A + ρ I.
        sample: of the rows of diag(√|D|) A.

    Returns:
        A structured operator on [s + r] rows: those drawn, and the columns of AᵀU. Never tagged
        positive semidefinite: a sampled first term may be too small for a negative second one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.curvature.structured import StructuredOperator
        >>> H = StructuredOperator(jnp.eye(2), jnp.ones(2), jnp.ones((2, 1)), jnp.eye(1))
        >>> every = Sample(indices=jnp.arange(2), scales=jnp.ones(2))
        >>> bool((sketched(H, every).as_matrix() == H.as_matrix()).all())
        True

    Source: arXiv 2309.13482, the approximate Newton method; MATHEMATICS.md#row-sampling.
    """
    check_operator("op", op)
    if not isinstance(sample, Sample):
        raise ValueError(f"sample must be what sketch.draw returns, got {type(sample).__name__}.")
    rows, columns = matrices.take_rows(op.matrix, sample.indices), op.columns()
    r = columns.shape[1]
    return StructuredOperator(
        jnp.concatenate([rows, columns.T]),
        jnp.concatenate(
            [sample.scales.astype(op.dtype) * sample._of(op.logit_diagonal), jnp.zeros(r, op.dtype)]
        ),
        jnp.concatenate([jnp.zeros((len(rows), r), op.dtype), jnp.eye(r, dtype=op.dtype)]),
        op.core,
        op.ridge,
    )


def distortion(
    approximate: Float[Array, "d d"] | lx.AbstractLinearOperator,
    exact: Float[Array, "d d"] | lx.AbstractLinearOperator,
) -> Float[Array, ""]:
    r"""Return the smallest ε with (1 − ε) H ≼ H̃ ≼ (1 + ε) H: max |λ − 1| over the generalized
    eigenvalues H̃v = λHv.

    Args:
        approximate: H̃, [d, d], symmetric: a matrix or an operator.
        exact: H, positive semidefinite. On its null space (eigenvalues below d ε of the largest) H̃
            must vanish too.

    Returns:
        A scalar; +inf where H has a negative eigenvalue, or H̃ is not zero where H is. A common
        factor of both drops out.

    Raises:
        ValueError: no matrices or operators, of different sizes, not symmetric, not finite, or in
            half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(distortion(jnp.diag(jnp.array([1.0, 3.0])), jnp.diag(jnp.array([1.0, 2.0])))), 5)
        0.5

    Source: see the module.
    """
    approximate = _symmetric("approximate", approximate)
    exact = _symmetric("exact", exact)
    if approximate.shape != exact.shape:
        raise ValueError(
            f"approximate must have the shape of exact, got {approximate.shape} and {exact.shape}."
        )
    return _distortion(approximate.astype(exact.dtype), exact)


def _symmetric(name: str, op: Any) -> Float[Array, "d d"]:
    matrix = as_floating(
        name,
        op.as_matrix() if isinstance(op, lx.AbstractLinearOperator) else op,
        ("d", "d"),
        half=False,
    )
    if len(matrix) != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}.")
    if is_concrete(matrix):
        given = np.asarray(matrix)
        if np.abs(given - given.T).max() > _SYMMETRY_TOLERANCE * np.abs(given).max():
            raise ValueError(
                f"{name} must be symmetric. Take its symmetric part, 0.5 * ({name} + {name}.T)."
            )
    return matrix


@jax.jit
def _distortion(approximate: Float[Array, "d d"], exact: Float[Array, "d d"]) -> Float[Array, ""]:
    # One scale for all, and then one for each column, so that rank is not decided by units.
    scale = binary_scale(exact)
    approximate = approximate / scale
    exact = exact / scale
    unit = jnp.sqrt(jnp.maximum(jnp.diagonal(exact), 0))
    unit = jnp.where(unit > 0, unit, 1)
    approximate, exact = (part / (unit[:, None] * unit[None, :]) for part in (approximate, exact))
    values, vectors = jnp.linalg.eigh(exact)
    noise = len(values) * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    kept = values > noise
    scaled = vectors / jnp.sqrt(jnp.where(kept, values, 1))[None, :]
    rotated = matrices.product(scaled.T, matrices.product(approximate, scaled))
    both = kept[:, None] & kept[None, :]
    found = jnp.max(
        jnp.abs(
            jnp.linalg.eigvalsh(jnp.where(both, rotated, jnp.eye(len(values), dtype=values.dtype)))
            - 1
        )
    )
    outside = jnp.max(
        jnp.where(
            both, 0, jnp.abs(matrices.product(vectors.T, matrices.product(approximate, vectors)))
        )
    )
    legal = (values[0] >= -noise) & (outside <= 1e3 * noise)
    return jnp.where(legal & jnp.isfinite(found), found, jnp.inf)
