r"""Structured Hessians of regressions u(Ax) as lineax operators: diagonal plus low rank.

    H = Aᵀ (diag(D) + U M Uᵀ) A + ρ I,        A [n, d], D [n], U [n, r], M [r, r] symmetric, ρ ≥ 0.

A product costs two with A, the matrix one symmetric Gram product. Solving splits H into the
*regular* part R = Aᵀ diag(D) A + ρ I = LLᵀ, by Cholesky, and the r columns L⁻¹AᵀU = QT, by QR:

    H = L ((I − QQᵀ) + Q K Qᵀ) Lᵀ,        K = I + T M Tᵀ,        det H = det R · det K.

M, which may be singular, is not inverted. For D with negative entries or A of rank below d the
Cholesky factorisation of R may fail, which the result says. Otherwise H has as many negative
eigenvalues as the r × r matrix K (Sylvester).

Example:
    >>> import jax.numpy as jnp, lineax as lx
    >>> from softntk.curvature.structured import StructuredOperator
    >>> A = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> H = StructuredOperator(A, jnp.ones(3), jnp.ones((3, 1)), -0.1 * jnp.eye(1))
    >>> [[round(float(v), 4) for v in row] for row in H.as_matrix()]
    [[1.6, 0.4], [0.4, 4.1]]
    >>> bool(jnp.allclose(H.mv(H.factorise().solve(jnp.ones(2))), 1.0)), lx.is_symmetric(H)
    (True, True)

Source: arXiv 2309.13482 (the structure of the Hessian), arXiv 2304.10411;
MATHEMATICS.md#regression-forms.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
from jaxtyping import Array, Float

from softntk._core.operator_tags import register_tags
from softntk._core.typing import DesignMatrix
from softntk._core.validation import as_dtype, check_flag, check_number
from softntk._core.validation.arrays import MIN_FACTORISATION_BITS
from softntk._linalg import design_matrix as matrices
from softntk._linalg.extreme_eigenvalues import Extremes, extreme_eigenvalues
from softntk._linalg.products import product
from softntk.curvature import _factorisation
from softntk.curvature._factorisation import Factorisation as Factorisation


class StructuredOperator(lx.AbstractLinearOperator):
    """Aᵀ (diag(D) + U M Uᵀ) A + ρ I, symmetric, on vectors [d].

    Attributes:
        matrix: A, [n, d]: dense, a ``jax.experimental.sparse.BCOO`` without duplicates, or a lineax
            operator.
        logit_diagonal: D, [n], the weights of the regression included.
        factors: U, [n, r].
        core: M, [r, r], symmetric.
        ridge: ρ, a scalar.
        positive_semidefinite: whether H is known to be, by construction; the value of
            ``lineax.is_positive_semidefinite``.
    """

    matrix: DesignMatrix
    logit_diagonal: Float[Array, " n"]
    factors: Float[Array, "n r"]
    core: Float[Array, "r r"]
    ridge: Float[Array, ""] | float
    positive_semidefinite: bool = eqx.field(static=True)

    def __init__(
        self,
        matrix: DesignMatrix,
        logit_diagonal: object,
        factors: Any,
        core: object,
        ridge: object = 0.0,
        positive_semidefinite: bool = False,
    ) -> None:
        """Convert everything to the precision of the matrix, and check shapes, but no values."""
        self.matrix = matrices.as_design_matrix("matrix", matrices.implicit(matrix))
        n, _ = matrices.shape(self.matrix)
        dtype = matrices.dtype(self.matrix)
        self.logit_diagonal = as_dtype("logit_diagonal", logit_diagonal, dtype, (n,), finite=False)
        rank = factors.shape[1] if isinstance(factors, jax.Array) and factors.ndim == 2 else "r"
        self.factors = as_dtype("factors", factors, dtype, (n, rank), finite=False)
        r = self.factors.shape[1]
        # Values that are not finite are allowed: they lead to +∞ later.
        self.core = as_dtype("core", core, dtype, (r, r), finite=False)
        self.ridge = _as_ridge(ridge, dtype)
        self.positive_semidefinite = check_flag("positive_semidefinite", positive_semidefinite)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the vectors it acts on."""
        return self.logit_diagonal.dtype

    @property
    def shape(self) -> tuple[int]:
        """The shape of the vectors it acts on: (d,)."""
        return (matrices.shape(self.matrix)[1],)

    def mv(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return H v, by two products with A; infinite, never NaN, where it overflows."""
        return _mm(self, as_dtype("vector", vector, self.dtype, self.shape, finite=False))

    def mm(self, vectors: Float[Array, "d s"]) -> Float[Array, "d s"]:
        """Return H V for s vectors at once."""
        return _mm(self, as_dtype("vectors", vectors, self.dtype, (*self.shape, "s"), finite=False))

    def as_matrix(self) -> Float[Array, "d d"]:
        """Return the matrix H, exactly symmetric; entries that overflow are infinite, never NaN."""
        return _as_matrix(self)

    def regular_part(self) -> "StructuredOperator":
        """Return R = Aᵀ diag(D) A + ρ I."""
        # No low-rank term: U with no columns. D may be negative, so that the tag is dropped.
        empty = jnp.zeros((len(self.logit_diagonal), 0), self.dtype)
        return dataclasses.replace(
            self, factors=empty, core=jnp.zeros((0, 0), self.dtype), positive_semidefinite=False
        )

    def columns(self) -> Float[Array, "d r"]:
        """Return V = AᵀU."""
        return matrices.adjoint(self.matrix, self.factors)

    def diagonal(self) -> Float[Array, " d"]:
        """Return the diagonal of H, without forming H."""
        return _diagonal(self)

    def trace(self) -> Float[Array, ""]:
        """Return the sum of the diagonal."""
        return jnp.sum(self.diagonal())

    def factorise(self) -> "Factorisation":
        """Return the factors of H, for many solves: see :func:`factorise`."""
        return factorise(self)

    def positive_part(self) -> "StructuredOperator":
        """Return the operator with max(D, 0) and (U M Uᵀ)₊: see :func:`positive_part`."""
        return positive_part(self)

    def extreme_eigenvalues(self, **options: Any) -> Extremes:
        """Return the result of :func:`softntk.ntk.extreme_eigenvalues`, with its options."""
        return extreme_eigenvalues(self, **options)

    def with_ridge(self, ridge: float | Float[Array, ""]) -> "StructuredOperator":
        """Return H + ``ridge`` I; a negative or traced ridge drops the positive tag."""
        ridge = check_number("ridge", ridge)
        is_positive = self.positive_semidefinite and isinstance(ridge, float) and ridge >= 0
        return dataclasses.replace(
            self, ridge=self.ridge + ridge, positive_semidefinite=is_positive
        )

    def transpose(self) -> "StructuredOperator":
        """Return the operator itself, which is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of the vectors it acts on."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as ``in_structure``."""
        return self.in_structure()


def _as_ridge(ridge: object, dtype: jnp.dtype) -> float | Float[Array, ""]:
    """Return a number in the range of the precision."""
    # Python numbers stay what they are: an array would have to be transferred to the device.
    ridge = check_number("ridge", ridge)
    if isinstance(ridge, float) and abs(ridge) <= float(jnp.finfo(dtype).max):
        return ridge
    return as_dtype("ridge", ridge, dtype, ())


def check_operator(name: str, op: object, *, half: bool = True) -> StructuredOperator:
    """Return a structured operator; refuse anything else, and half precision if ``half=False``."""
    if not isinstance(op, StructuredOperator):
        raise ValueError(
            f"{name} must be a StructuredOperator, e.g. p.hessian(x) of a regression p, "
            f"got {type(op).__name__}."
        )
    if not half and jnp.finfo(op.dtype).bits < MIN_FACTORISATION_BITS:
        raise ValueError(
            f"{name} must be float32 or float64, got {op.dtype}: factorisations do not exist for "
            "it. Convert the matrix."
        )
    return op


def factorise(op: StructuredOperator) -> Factorisation:
    """Return factors of H, for many solves: Cholesky of the regular part, QR of the columns.

    Use it where several right-hand sides, the determinant or the inertia of H are needed.

    Args:
        op: the operator, [d, d]. Its regular part must be positive definite for the result to be
            SUCCESSFUL: positive D on rows of full column rank, or a ridge.

    Returns:
        A :class:`Factorisation`; its ``result`` depends on the residual of a test solve.

    Raises:
        ValueError: op is not a StructuredOperator, or in half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> D = jnp.array([1.0, -3.0])  # H is indefinite, H + 4I is not; 7 is NOT_DEFINITE
        >>> H = StructuredOperator(jnp.eye(2), D, jnp.zeros((2, 0)), jnp.zeros((0, 0)))
        >>> solve = factorise(H.with_ridge(4.0)).solve
        >>> int(factorise(H).result), solve(jnp.array([5.0, 1.0])).round(5).tolist()
        (7, [1.0, 1.0])

    Source: see the module; Higham (2002), Accuracy and Stability of Numerical Algorithms, chapter
    12 (refinement).
    """
    return _factorisation.factorise(check_operator("op", op, half=False))


def positive_part(op: StructuredOperator) -> StructuredOperator:
    """Return Aᵀ (max(D, 0) + (U M Uᵀ)₊) A + max(ρ, 0) I, positive semidefinite and ≽ H.

    Use it as a curvature model where H itself may be indefinite. (U M Uᵀ)₊ keeps the eigenvectors
    of positive eigenvalues: with U = Q T, those of T M Tᵀ, r × r. It may differ from H also where H
    is positive semidefinite: the negative part of one term may be outweighed by the other term.

    Args:
        op: the operator, [d, d].

    Returns:
        An operator with the same A and min(n, r) factors, tagged positive semidefinite.

    Raises:
        ValueError: op is not a StructuredOperator, or in half precision.

    Example:
        >>> import jax.numpy as jnp
        >>> D = jnp.array([1.0, -3.0])
        >>> H = StructuredOperator(jnp.eye(2), D, jnp.ones((2, 1)), -jnp.eye(1))
        >>> positive_part(H).as_matrix().tolist()
        [[1.0, 0.0], [0.0, 0.0]]

    Source: MATHEMATICS.md#regression-forms (negative D where w is small).
    """
    check_operator("op", op, half=False)
    factors, core = _positive_factors(op.factors, op.core)
    diagonal = jnp.maximum(op.logit_diagonal, 0)
    ridge = max(op.ridge, 0.0) if isinstance(op.ridge, float) else jnp.maximum(op.ridge, 0)
    return StructuredOperator(op.matrix, diagonal, factors, core, ridge, positive_semidefinite=True)


@jax.jit
def _positive_factors(
    U: Float[Array, "n r"], M: Float[Array, "r r"]
) -> tuple[Float[Array, "n q"], Float[Array, "q q"]]:
    """Return factors and a diagonal core of (U M Uᵀ)₊."""
    Q, T = jnp.linalg.qr(U)
    values, vectors = jnp.linalg.eigh(product(T, product(M, T.T)))
    return product(Q, vectors), jnp.diag(jnp.maximum(values, 0))


def weighted_sum(
    operators: Sequence[StructuredOperator], weights: Sequence[float] | Float[Array, " k"]
) -> StructuredOperator:
    r"""Return Σ_k c_k H_k as one structured operator.

    Use it for losses that are sums. Operators of one matrix A (the same object) share it: diagonals
    add, and factors are concatenated. Different matrices are stacked by rows.

    Args:
        operators: H_k, at least one, all on [d].
        weights: c, one for each.

    Returns:
        The sum; tagged positive semidefinite if all are and the weights are known not to be
        negative.

    Raises:
        ValueError: there is no operator, or not one weight for each; operators differ in d or
            dtype; of different matrices some are sparse and some dense.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.eye(2)
        >>> one = StructuredOperator(A, jnp.ones(2), jnp.ones((2, 1)), jnp.eye(1))
        >>> weighted_sum([one, one], [1.0, 2.0]).as_matrix().tolist()
        [[6.0, 3.0], [3.0, 6.0]]

    Source: arXiv 2307.02419 (many regressions at once).
    """
    # 1. The core is block diagonal in any case.
    operators = _checked_operators(operators)
    scales = _checked_scales(weights, len(operators), operators[0].dtype)
    is_positive = _is_known_positive(operators, scales)
    core = jax.scipy.linalg.block_diag(
        *(c * op.core for c, op in zip(scales, operators, strict=True))
    )
    ridge = sum(c * op.ridge for c, op in zip(scales, operators, strict=True))
    diagonals = [c * op.logit_diagonal for c, op in zip(scales, operators, strict=True)]
    # 2. One matrix: no product is made twice.
    matrix = operators[0].matrix
    if all(op.matrix is matrix for op in operators):
        factors = jnp.concatenate([op.factors for op in operators], axis=1)
        diagonal = jnp.sum(jnp.stack(diagonals), axis=0)
        return StructuredOperator(matrix, diagonal, factors, core, ridge, is_positive)
    # 3. Different matrices: Σ c_k A_kᵀ(…)A_k, with the A_k stacked by rows.
    stacked = matrices.stack_rows([op.matrix for op in operators])
    factors = jax.scipy.linalg.block_diag(*(op.factors for op in operators))
    diagonal = jnp.concatenate(diagonals)
    return StructuredOperator(stacked, diagonal, factors, core, ridge, is_positive)


def _is_known_positive(
    operators: Sequence[StructuredOperator], scales: Sequence[float | Array]
) -> bool:
    """Return whether a weighted sum is known to be positive semidefinite."""
    are_nonnegative = all(isinstance(scale, float) and scale >= 0 for scale in scales)
    return are_nonnegative and all(op.positive_semidefinite for op in operators)


def _checked_operators(operators: object) -> list[StructuredOperator]:
    """Return a list of operators that can be added."""
    if not isinstance(operators, list | tuple) or not operators:
        raise ValueError(
            "operators must be a list of StructuredOperators, at least one, "
            f"got {type(operators).__name__}."
        )
    for i, op in enumerate(operators):
        check_operator(f"operators[{i}]", op)
    sizes = [op.shape[0] for op in operators]
    if len(set(sizes)) > 1:
        raise ValueError(f"operators must all act on vectors of one size, got sizes {sizes}.")
    if len({op.dtype for op in operators}) > 1:
        raise ValueError(
            f"operators must have one dtype, got {[str(op.dtype) for op in operators]}. "
            "Convert some."
        )
    return list(operators)


def _checked_scales(weights: object, count: int, dtype: jnp.dtype) -> list[float | Array]:
    """Return ``count`` numbers: Python floats where the values are known, else tracers."""
    if isinstance(weights, list | tuple):
        scales = [check_number(f"weights[{i}]", weight) for i, weight in enumerate(weights)]
    else:
        array = as_dtype("weights", weights, dtype, ("k",))
        scales = [check_number(f"weights[{i}]", array[i]) for i in range(len(array))]
    if len(scales) != count:
        raise ValueError(
            f"operators and weights must be as many, got {count} operators and "
            f"{len(scales)} weights."
        )
    return [scale if isinstance(scale, float) else jnp.asarray(scale, dtype) for scale in scales]


@jax.jit
def _mm(op: StructuredOperator, V: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return H V: V → Z = AV → DZ + U M UᵀZ → Aᵀ(…) + ρV."""
    # The products of the middle factor are on n numbers, or r: nothing of size n × n is formed.
    Z = matrices.times(op.matrix, V)
    D = op.logit_diagonal if Z.ndim == 1 else op.logit_diagonal[:, None]
    low_rank = product(op.factors, product(op.core, product(op.factors.T, Z)))
    # NaN comes from ∞ − ∞, an overflow: callers test for it by isfinite.
    image = matrices.adjoint(op.matrix, D * Z + low_rank) + op.ridge * V
    return jnp.where(jnp.isnan(image), jnp.inf, image)


@jax.jit
def _as_matrix(op: StructuredOperator) -> Float[Array, "d d"]:
    """Return H, by one Gram product of which only half is computed."""
    # The low-rank term is symmetrised, as M need be symmetric up to rounding only.
    V = op.columns()
    low_rank = product(V, product(op.core, V.T))
    regular = matrices.gram(op.matrix, op.logit_diagonal)
    matrix = regular + 0.5 * (low_rank + low_rank.T) + op.ridge * jnp.eye(len(V), dtype=op.dtype)
    return jnp.where(jnp.isnan(matrix), jnp.inf, matrix)


@jax.jit
def _diagonal(op: StructuredOperator) -> Float[Array, " d"]:
    """Return the diagonal of H."""
    V = op.columns()
    return (
        matrices.gram_diagonal(op.matrix, op.logit_diagonal)
        + jnp.sum(product(V, op.core) * V, axis=1)
        + op.ridge
    )


register_tags(StructuredOperator, positive=lambda operator: operator.positive_semidefinite)
lx.diagonal.register(StructuredOperator, lambda operator: operator.diagonal())


@lx.materialise.register(StructuredOperator)
def _(operator: StructuredOperator) -> lx.MatrixLinearOperator:
    tags = {lx.symmetric_tag}
    if operator.positive_semidefinite:
        tags.add(lx.positive_semidefinite_tag)
    return lx.MatrixLinearOperator(operator.as_matrix(), frozenset(tags))
