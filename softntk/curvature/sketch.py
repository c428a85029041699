r"""Row sampling: an estimate of Aᵀ diag(D) A from a few random rows, and its error.

A sample draws s rows with replacement, row i with probability π_i. A row that was drawn count_i
times gets the weight count_i/(s π_i), so that

    Ã = Σ_drawn  count_i/(s π_i) · D_i a_i a_iᵀ,        E[Ã] = Aᵀ diag(D) A.

With π proportional to the leverage scores of diag(√D) A and s = O(d log d / ε²),

    (1 − ε) AᵀDA ≼ Ã ≼ (1 + ε) AᵀDA.

Row norms give this only up to the condition number of A. Uniform sampling gives it only for
incoherent A: it misses a row that alone spans a direction.

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

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core.records import record
from softntk._core.typing import DesignMatrix
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
from softntk._linalg.products import product
from softntk.curvature import leverage
from softntk.curvature.structured import StructuredOperator, check_operator

SUM_TOLERANCE = 1e-4
"""Largest deviation of the sum of probabilities from one: rounding in float32."""

SYMMETRY_TOLERANCE = 1e-3
"""Largest |A − Aᵀ| of a symmetric matrix A, relative to its largest entry."""

NULL_SPACE_TOLERANCE = 1e3
"""Multiples of the rounding error of H up to which H̃ counts as zero on the null space of H."""

PROBABILITY_KINDS = ("uniform", "row_norm", "leverage", "approximate_leverage")


@record
class Sample:
    """The rows of a sample, each listed once.

    Attributes:
        indices: distinct row indices, ascending, [s]. Where rows were drawn repeatedly, the list is
            filled up with n, which is no row.
        scales: count / (s π), [s]; zero for the index n.
    """

    indices: Int[Array, " s"]
    scales: Float[Array, " s"]

    def gram(
        self, A: DesignMatrix, weights: Float[Array | np.ndarray, " n"] | None = None
    ) -> Float[Array, "d d"]:
        """Return Ã for A, [n, d], and the weights D, [n] (one if None).

        Raises:
            ValueError: A is not a matrix that :func:`softntk.regression.problem` takes, or has
                fewer rows than the sample was drawn from; weights are of another shape or not
                finite.
        """
        A = matrices.check_design_matrix("A", A)
        n, _ = matrices.shape(A)
        dtype = matrices.dtype(A)
        self._check_rows("A", n)
        # Ã = Σ_i scales_i D_i a_i a_iᵀ over the listed rows; those with the index n have scale 0.
        D = self.scales.astype(dtype)
        if weights is not None:
            D = D * self._select(as_dtype("weights", weights, dtype, (n,)))
        return matrices.gram(matrices.take_rows(A, self.indices), D)

    def _check_rows(self, name: str, n: int) -> None:
        """Refuse a matrix with fewer rows than the sample was drawn from.

        Indices may be n, which stands for no row, where the scale is zero.
        """
        if not (is_concrete(self.indices) and is_concrete(self.scales)):
            return
        indices, scales = np.asarray(self.indices), np.asarray(self.scales)
        if np.any((indices > n) | ((indices == n) & (scales != 0))):
            raise ValueError(
                f"{name} must have the rows that the sample was drawn from, got {n} and the index "
                f"{indices.max()}."
            )

    def _select(self, values: Float[Array, " n"]) -> Float[Array, " s"]:
        """Return the values of the sampled rows; zero for the index n."""
        return values.at[self.indices].get(mode="fill", fill_value=0)


def probabilities(
    kind: str,
    A: DesignMatrix,
    weights: Float[Array | np.ndarray, " n"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, " n"]:
    r"""Return π, [n], the probability that a draw is each row of diag(√D) A.

    Use it with :func:`draw`. It does not depend on the units of A and D.

    Args:
        kind: "leverage" (exact scores, O(n d²)), "approximate_leverage" (in O(nnz)), "row_norm" (∝
            D_i ‖a_i‖²) or "uniform".
        A: [n, d], dense, BCOO or a lineax operator.
        weights: D ≥ 0, [n]; one if None.
        key: random key of approximate scores; ``jax.random.key(0)`` if None.

    Returns:
        [n], positive where a row is not zero, summing to one; uniform where all rows are zero.

    Raises:
        ValueError: an unknown kind; key is not a random key; and as for
            :func:`softntk.curvature.leverage.scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> probabilities("row_norm", jnp.array([[1.0], [2.0]])).tolist()
        [0.20000000298023224, 0.800000011920929]

    Source: see the module.
    """
    # 1. Check the arguments. The default key makes approximate scores reproducible.
    kind = check_choice("kind", kind, PROBABILITY_KINDS)
    key = jax.random.key(0) if key is None else check_key("key", key)
    # 2. The sizes that the probabilities are proportional to.
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
    """Return sizes divided by their sum, and equal probabilities if all sizes are zero."""
    # Scaled first, so that the sum does not overflow; a power of two does not round.
    sizes = sizes / binary_scale(sizes)
    total = jnp.sum(sizes)
    return jnp.where(total == 0, 1 / len(sizes), sizes / jnp.where(total == 0, 1, total))


def draw(key: PRNGKeyArray, pi: Float[Array | np.ndarray, " n"], size: int) -> Sample:
    r"""Return ``size`` rows drawn with replacement, row i with probability π_i.

    Use it to replace AᵀDA by a sum over a few rows, when n is much larger than d.

    Args:
        key: random key of the draws.
        pi: π, [n], not negative, summing to one (a traced one is not checked).
        size: s, the number of draws.

    Returns:
        A :class:`Sample`.

    Raises:
        ValueError: key is not a random key; pi is not [n], negative, not finite, or does not sum to
            one; size is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sample = draw(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 8)
        >>> sample.indices[:2].tolist(), float(sample.scales.sum()) > 0
        ([0, 2], True)

    Source: see the module.
    """
    key = check_key("key", key)
    pi = as_floating("pi", pi, ("n",), half=False)
    # Checked in float64 on the host, where a sum of many numbers has little rounding.
    if is_concrete(pi):
        host_pi = np.asarray(pi, np.float64)
        if host_pi.min() < 0:
            raise ValueError(
                f"pi must not be negative, got {host_pi.min():.3g}. Take sketch.probabilities."
            )
        if abs(host_pi.sum() - 1) > SUM_TOLERANCE:
            raise ValueError(f"pi must sum to one, got {host_pi.sum():.6g}. Divide it by its sum.")
    return _draw(key, pi, check_positive_int("size", size))


@jax.jit(static_argnums=2)
def _draw(key: PRNGKeyArray, pi: Float[Array, " n"], size: int) -> Sample:
    """Return the sample for checked arguments."""
    # 1. Invert the cumulative sum. A uniform number at its very end must not give a row of
    #    probability zero: `last` is the first row that reaches the end.
    n = len(pi)
    cdf = jnp.cumsum(pi)
    uniform = jax.random.uniform(key, (size,), pi.dtype) * cdf[-1]
    last = jnp.searchsorted(cdf, cdf[-1])
    draws = jnp.minimum(jnp.searchsorted(cdf, uniform, side="right"), last)
    # 2. List each row once, with the number of its draws.
    indices, counts = jnp.unique(draws, size=size, fill_value=n, return_counts=True)
    probability = pi.at[indices].get(mode="fill", fill_value=1) / jnp.where(
        cdf[-1] == 0, 1, cdf[-1]
    )
    is_row = (indices < n) & (probability > 0)
    scales = counts.astype(pi.dtype) / (size * jnp.where(is_row, probability, 1))
    return Sample(indices=indices, scales=jnp.where(is_row, scales, 0))


def sketched(op: StructuredOperator, sample: Sample) -> StructuredOperator:
    r"""Return an operator with its term Aᵀ diag(D) A replaced by a sample.

    Use it for the approximate Newton method. The low-rank term and the ridge stay exact.

    Args:
        op: Aᵀ (diag(D) + U M Uᵀ) A + ρ I.
        sample: a sample of the rows of diag(√|D|) A.

    Returns:
        A structured operator on [s + r] rows: those drawn, and the columns of AᵀU. It is never
        tagged positive semidefinite: the sampled first term may be smaller than the exact one, and
        then a negative second term may outweigh it.

    Raises:
        ValueError: op is not a StructuredOperator, or has fewer rows than the sample was drawn
            from; sample is not a :class:`Sample`.

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
    sample._check_rows("op", matrices.shape(op.matrix)[0])  # noqa: SLF001
    # The r columns of AᵀU are further rows, without diagonal, on which U is the identity.
    rows = matrices.take_rows(op.matrix, sample.indices)
    columns = op.columns()
    r = columns.shape[1]
    row_weights = sample.scales.astype(op.dtype) * sample._select(op.logit_diagonal)  # noqa: SLF001
    return StructuredOperator(
        jnp.concatenate([rows, columns.T]),
        jnp.concatenate([row_weights, jnp.zeros(r, op.dtype)]),
        jnp.concatenate([jnp.zeros((len(rows), r), op.dtype), jnp.eye(r, dtype=op.dtype)]),
        op.core,
        op.ridge,
    )


def distortion(
    approximate: Float[Array, "d d"] | lx.AbstractLinearOperator,
    exact: Float[Array, "d d"] | lx.AbstractLinearOperator,
) -> Float[Array, ""]:
    r"""Return the smallest ε with (1 − ε) H ≼ H̃ ≼ (1 + ε) H.

    It is max |λ − 1| over the generalized eigenvalues H̃v = λHv. Use it to measure the quality of a
    sample.

    Args:
        approximate: H̃, [d, d], symmetric: a matrix or an operator.
        exact: H, positive semidefinite. On its null space (eigenvalues below d ε of the largest) H̃
            must vanish too.

    Returns:
        A scalar; +inf where H has a negative eigenvalue, or H̃ is not zero where H is. A common
        factor of both drops out.

    Raises:
        ValueError: the two are not square matrices or operators of one size, not symmetric, not
            finite, or in half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> approximate = jnp.diag(jnp.array([1.0, 3.0]))
        >>> round(float(distortion(approximate, jnp.diag(jnp.array([1.0, 2.0])))), 5)
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


def _symmetric(name: str, op: object) -> Float[Array, "d d"]:
    """Return a checked symmetric matrix, or the matrix of an operator."""
    matrix = as_floating(
        name,
        op.as_matrix() if isinstance(op, lx.AbstractLinearOperator) else op,
        ("d", "d"),
        half=False,
    )
    if len(matrix) != matrix.shape[1]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}.")
    if is_concrete(matrix):
        array = np.asarray(matrix)
        if np.abs(array - array.T).max() > SYMMETRY_TOLERANCE * np.abs(array).max():
            raise ValueError(
                f"{name} must be symmetric. Take its symmetric part, 0.5 * ({name} + {name}.T)."
            )
    return matrix


@jax.jit
def _distortion(approximate: Float[Array, "d d"], exact: Float[Array, "d d"]) -> Float[Array, ""]:
    """Return the distortion of checked matrices."""
    # 1. One scale for all, and then one for each column, so that units do not decide the rank.
    scale = binary_scale(exact)
    approximate = approximate / scale
    exact = exact / scale
    unit = jnp.sqrt(jnp.maximum(jnp.diagonal(exact), 0))
    unit = jnp.where(unit > 0, unit, 1)
    approximate, exact = (part / (unit[:, None] * unit[None, :]) for part in (approximate, exact))
    # 2. The range of H: eigenvalues above rounding.
    values, vectors = jnp.linalg.eigh(exact)
    rounding_error = len(values) * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    in_range = values > rounding_error
    # 3. Eigenvalues of H^{-1/2} H̃ H^{-1/2} on the range. The identity elsewhere has only the
    #    eigenvalue one, whose distance from one is zero.
    scaled_vectors = vectors / jnp.sqrt(jnp.where(in_range, values, 1))[None, :]
    whitened = product(scaled_vectors.T, product(approximate, scaled_vectors))
    in_block = in_range[:, None] & in_range[None, :]
    identity = jnp.eye(len(values), dtype=values.dtype)
    epsilon = jnp.max(jnp.abs(jnp.linalg.eigvalsh(jnp.where(in_block, whitened, identity)) - 1))
    # 4. On the null space of H, H̃ must vanish.
    rotated = product(vectors.T, product(approximate, vectors))
    null_part = jnp.max(jnp.where(in_block, 0, jnp.abs(rotated)))
    is_valid = (values[0] >= -rounding_error) & (null_part <= NULL_SPACE_TOLERANCE * rounding_error)
    return jnp.where(is_valid & jnp.isfinite(epsilon), epsilon, jnp.inf)
