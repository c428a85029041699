r"""Hessians of regressions u(Ax), normalized or not: diagonal plus low rank between Aᵀ and A, as lineax operators.

    H = Aᵀ (diag(D) + U M Uᵀ) A + ρ I,        A [n, d], D [n], U [n, r], M [r, r] symmetric, ρ ≥ 0.

A product costs two with A, the matrix one symmetric Gram product. Solving splits H into the *regular* part
R = Aᵀ diag(D) A + ρ I, by Cholesky, and the r columns V = AᵀU (Woodbury):

    H⁻¹g = R⁻¹g − R⁻¹V (I + M W)⁻¹ M VᵀR⁻¹g,        W = VᵀR⁻¹V,        det H = det R · det(I + M W).

Nothing is inverted that may be singular: M is not, and for D with negative entries or A of rank below d the Cholesky factor of
R fails, which the result says. Otherwise the eigenvalues of one r × r matrix tell how many of H are negative (Sylvester).

Example:
    >>> import jax.numpy as jnp, lineax as lx
    >>> from softntk.curvature.structured import StructuredOperator
    >>> A = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> H = StructuredOperator(A, jnp.ones(3), jnp.ones((3, 1)), -0.1 * jnp.eye(1))
    >>> [[round(float(v), 4) for v in row] for row in H.as_matrix()]
    [[1.6, 0.4], [0.4, 4.1]]
    >>> bool(jnp.allclose(H.mv(H.factorise().solve(jnp.ones(2))), 1.0)), lx.is_symmetric(H)
    (True, True)

Source: arXiv 2309.13482 (the structure of the Hessian), arXiv 2304.10411; MATH.md section 4.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
from jaxtyping import Array, Float, Int

from softntk._operators import answer
from softntk._records import record
from softntk._validation import is_concrete
from softntk.curvature import _matrices as matrices
from softntk.solution import Result

if TYPE_CHECKING:
    from softntk.ntk.spectrum import Extremes

_product = matrices.product


class StructuredOperator(lx.AbstractLinearOperator):
    """Aᵀ (diag(D) + U M Uᵀ) A + ρ I, symmetric, on vectors [d].

    Attributes:
        matrix: A, [n, d]: dense, a ``jax.experimental.sparse.BCOO`` without duplicates, or a lineax operator.
        logit_diagonal: D, [n], the weights of the regression included.
        factors: U, [n, r].
        core: M, [r, r], symmetric.
        ridge: ρ, a scalar.
        positive_semidefinite: whether it is known to be, by construction; what ``lineax.is_positive_semidefinite`` answers.
    """

    matrix: Any = eqx.field(converter=matrices.implicit)
    logit_diagonal: Float[Array, " n"]
    factors: Float[Array, "n r"]
    core: Float[Array, "r r"]
    ridge: Float[Array, ""] | float = 0.0
    positive_semidefinite: bool = eqx.field(static=True, default=False)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the vectors it acts on."""
        return self.logit_diagonal.dtype

    @property
    def shape(self) -> tuple[int]:
        """Of the vectors it acts on: (d,)."""
        return (matrices.shape(self.matrix)[1],)

    def mv(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """The product with one vector: two products with A."""
        if jnp.shape(vector) != self.shape:
            raise ValueError(f"vector must have shape {self.shape}, got {jnp.shape(vector)}.")
        return _mm(self, jnp.asarray(vector, self.dtype))

    def mm(self, vectors: Float[Array, "d s"]) -> Float[Array, "d s"]:
        """The products with s vectors at once."""
        if jnp.shape(vectors)[:-1] != self.shape:
            raise ValueError(f"vectors must have shape {(*self.shape, 's')}, got {jnp.shape(vectors)}.")
        return _mm(self, jnp.asarray(vectors, self.dtype))

    def as_matrix(self) -> Float[Array, "d d"]:
        """The matrix itself, exactly symmetric: one weighted Gram product, of which only half is computed."""
        return _as_matrix(self)

    def regular_part(self) -> "StructuredOperator":
        """R = Aᵀ diag(D) A + ρ I."""
        empty = jnp.zeros((len(self.logit_diagonal), 0), self.dtype)
        return dataclasses.replace(self, factors=empty, core=jnp.zeros((0, 0), self.dtype), positive_semidefinite=False)

    def columns(self) -> Float[Array, "d r"]:
        """V = AᵀU."""
        return matrices.adjoint(self.matrix, self.factors)

    def diagonal(self) -> Float[Array, " d"]:
        """The diagonal, without the matrix."""
        return _diagonal(self)

    def trace(self) -> Float[Array, ""]:
        """The sum of the diagonal."""
        return jnp.sum(self.diagonal())

    def factorise(self) -> "Factorisation":
        """Factor once, solve many: see :class:`Factorisation`."""
        return factorise(self)

    def positive_part(self) -> "StructuredOperator":
        """The same with max(D, 0) and the positive eigenvalues of U M Uᵀ: positive semidefinite, and at least as large as H."""
        return positive_part(self)

    def extreme_eigenvalues(self, **options: Any) -> "Extremes":
        """(smallest, largest) with error bounds, by :func:`softntk.ntk.extreme_eigenvalues`, whose options it takes."""
        from softntk.ntk.spectrum import extreme_eigenvalues

        return extreme_eigenvalues(self, **options)

    def with_ridge(self, ridge: float | Float[Array, ""]) -> "StructuredOperator":
        """The same plus ``ridge`` I; a negative one loses the tag of being positive semidefinite."""
        known = is_concrete(ridge) and bool(ridge >= 0)
        positive = self.positive_semidefinite and known
        return dataclasses.replace(self, ridge=self.ridge + ridge, positive_semidefinite=positive)

    def transpose(self) -> "StructuredOperator":
        """Itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what it acts on."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """The same as ``in_structure``."""
        return self.in_structure()


@record
class Factorisation:
    """What solves with a :class:`StructuredOperator` for O(d²) each.

    Attributes:
        regular: R, [d, d].
        cholesky: its lower factor L; NaN where R is not positive definite.
        columns: V, [d, r].
        core: M, [r, r].
        solved: R⁻¹V, [d, r].
        capacitance: I + M W, [r, r].
        inner: the eigenvalues of I + T M Tᵀ with TᵀT = W: those of H relative to R that are not one.
        result: SUCCESSFUL, or NOT_DEFINITE where R is not positive definite, or H singular, in this precision.
    """

    regular: Float[Array, "d d"]
    cholesky: Float[Array, "d d"]
    columns: Float[Array, "d r"]
    core: Float[Array, "r r"]
    solved: Float[Array, "d r"]
    capacitance: Float[Array, "r r"]
    inner: Float[Array, " q"]
    result: Int[Array, ""]

    def solve(self, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
        """H⁻¹ times one vector or several, [d] or [d, s], refined twice; +inf where ``result`` is not SUCCESSFUL."""
        found = _woodbury(self, right)
        for _ in range(2):
            product = _product(self.regular, found) + _product(
                self.columns, _product(self.core, _product(self.columns.T, found))
            )
            found = found + _woodbury(self, right - product)
        return jnp.where(self.result == Result.SUCCESSFUL, found, jnp.inf)

    def log_determinant(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(sign, log|det H|); (0, −inf) where ``result`` is not SUCCESSFUL."""
        ok = self.result == Result.SUCCESSFUL
        value = 2 * jnp.sum(jnp.log(jnp.diagonal(self.cholesky))) + jnp.sum(jnp.log(jnp.abs(self.inner)))
        return jnp.where(ok, jnp.prod(jnp.sign(self.inner)), 0), jnp.where(ok, value, -jnp.inf)

    def negative_eigenvalues(self) -> Int[Array, ""]:
        """How many eigenvalues of H are negative; −1 where ``result`` is not SUCCESSFUL.

        With R = LLᵀ, H has the inertia of I + L⁻¹V M VᵀL⁻ᵀ (Sylvester), whose eigenvalues are ``inner`` and ones.
        """
        return jnp.where(self.result == Result.SUCCESSFUL, jnp.sum(self.inner < 0), -1)


def _woodbury(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    base = jax.scipy.linalg.cho_solve((factored.cholesky, True), right)
    correction = _solve_small(factored.capacitance, _product(factored.core, _product(factored.columns.T, base)))
    return base - _product(factored.solved, correction)


@jax.jit
def factorise(op: StructuredOperator) -> Factorisation:
    """Cholesky of the regular part and Woodbury for the columns; see the module.

    Args:
        op: the operator, [d, d]. Its regular part must be positive definite for the result to be SUCCESSFUL: positive D on
            rows of full column rank, or a ridge.

    Returns:
        A :class:`Factorisation`.

    Example:
        >>> import jax.numpy as jnp
        >>> H = StructuredOperator(jnp.eye(2), jnp.array([1.0, -3.0]), jnp.zeros((2, 0)), jnp.zeros((0, 0)))
        >>> int(factorise(H).result), factorise(H.with_ridge(4.0)).solve(jnp.array([5.0, 1.0])).round(5).tolist()
        (7, [1.0, 1.0])

    Source: see the module; Higham (2002), Accuracy and Stability of Numerical Algorithms, chapter 12 (refinement).
    """
    V, R = op.columns(), op.regular_part().as_matrix()
    cholesky = jnp.linalg.cholesky(R)
    eps = len(R) * jnp.finfo(R.dtype).eps
    # Pivots that are rounding of the diagonal they came from: R is singular, though its factor is finite.
    definite = jnp.isfinite(cholesky).all() & jnp.all(jnp.diagonal(cholesky) ** 2 > 4 * eps * jnp.diagonal(R))
    half = jnp.linalg.qr(jax.scipy.linalg.solve_triangular(cholesky, V, lower=True), mode="r")
    small = _product(half, _product(op.core, half.T))
    inner = jnp.linalg.eigvalsh(jnp.where(definite, small + jnp.eye(len(half), dtype=op.dtype), 0))
    # And where an eigenvalue relative to R is rounding of the terms that cancel in it, H is singular.
    regular = jnp.all(jnp.abs(inner) > 4 * eps * (1 + jnp.max(jnp.abs(small), initial=0)))
    solved = jax.scipy.linalg.cho_solve((cholesky, True), V)
    return Factorisation(
        regular=R,
        cholesky=cholesky,
        columns=V,
        core=op.core,
        solved=solved,
        capacitance=jnp.eye(V.shape[1], dtype=op.dtype) + _product(op.core, _product(V.T, solved)),
        inner=inner,
        result=jnp.where(definite & regular, Result.SUCCESSFUL, Result.NOT_DEFINITE).astype(jnp.int32),
    )


def positive_part(op: StructuredOperator) -> StructuredOperator:
    """Aᵀ (max(D, 0) + (U M Uᵀ)₊) A + max(ρ, 0) I: positive semidefinite, and at least as large as H.

    (U M Uᵀ)₊ keeps the eigenvectors of positive eigenvalues: with U = Q T, those of T M Tᵀ, r × r. Where H is positive
    semidefinite already it may still differ: the negative part of one term may have been outweighed by the other.

    Args:
        op: the operator, [d, d].

    Returns:
        One of the same matrix A, with min(n, r) factors.

    Example:
        >>> import jax.numpy as jnp
        >>> H = StructuredOperator(jnp.eye(2), jnp.array([1.0, -3.0]), jnp.ones((2, 1)), -jnp.eye(1))
        >>> positive_part(H).as_matrix().tolist()
        [[1.0, 0.0], [0.0, 0.0]]

    Source: MATH.md section 4 (negative D where w is small).
    """
    factors, core = _positive_factors(op.factors, op.core)
    diagonal, ridge = jnp.maximum(op.logit_diagonal, 0), jnp.maximum(op.ridge, 0)
    return StructuredOperator(op.matrix, diagonal, factors, core, ridge, positive_semidefinite=True)


@jax.jit
def _positive_factors(U: Float[Array, "n r"], M: Float[Array, "r r"]) -> tuple[Float[Array, "n q"], Float[Array, "q q"]]:
    Q, T = jnp.linalg.qr(U)
    values, vectors = jnp.linalg.eigh(_product(T, _product(M, T.T)))
    return _product(Q, vectors), jnp.diag(jnp.maximum(values, 0))


def weighted_sum(operators: Sequence[StructuredOperator], weights: Sequence[float] | Float[Array, " k"]) -> StructuredOperator:
    r"""Σ_k c_k H_k as one structured operator.

    Operators that share one matrix A (the same object) share it in the sum: diagonals add, factors stand side by side.
    Others are stacked by rows.

    Args:
        operators: at least one, all on [d].
        weights: c, one for each.

    Returns:
        The sum; tagged positive semidefinite if all are and the weights are known not to be negative.

    Raises:
        ValueError: none given, other numbers of weights or other d, several matrices of which some are sparse and some dense.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.eye(2)
        >>> one = StructuredOperator(A, jnp.ones(2), jnp.ones((2, 1)), jnp.eye(1))
        >>> weighted_sum([one, one], [1.0, 2.0]).as_matrix().tolist()
        [[6.0, 3.0], [3.0, 6.0]]

    Source: arXiv 2307.02419 (many regressions at once).
    """
    operators = list(operators)
    if not operators or len(operators) != len(weights) or len({op.shape for op in operators}) != 1:
        raise ValueError(
            f"operators and weights must be as many, at least one, all operators on vectors of one size, got sizes "
            f"{[op.shape[0] for op in operators]} and {len(weights)} weights."
        )
    positive = all(op.positive_semidefinite for op in operators) and all(is_concrete(c) and c >= 0 for c in weights)
    core = jax.scipy.linalg.block_diag(*(c * op.core for c, op in zip(weights, operators, strict=True)))
    ridge = sum(c * op.ridge for c, op in zip(weights, operators, strict=True))
    diagonals = [c * op.logit_diagonal for c, op in zip(weights, operators, strict=True)]
    matrix = operators[0].matrix
    if all(op.matrix is matrix for op in operators):
        factors = jnp.concatenate([op.factors for op in operators], axis=1)
        return StructuredOperator(matrix, jnp.sum(jnp.stack(diagonals), axis=0), factors, core, ridge, positive)
    stacked = matrices.stacked([op.matrix for op in operators])
    factors = jax.scipy.linalg.block_diag(*(op.factors for op in operators))
    return StructuredOperator(stacked, jnp.concatenate(diagonals), factors, core, ridge, positive)


def _solve_small(matrix: Float[Array, "r r"], right: Float[Array, "r *s"]) -> Float[Array, "r *s"]:
    return jnp.linalg.solve(matrix, right) if len(matrix) else right


@jax.jit
def _mm(op: StructuredOperator, V: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    Z = matrices.times(op.matrix, V)
    D = op.logit_diagonal if Z.ndim == 1 else op.logit_diagonal[:, None]
    return (
        matrices.adjoint(op.matrix, D * Z + _product(op.factors, _product(op.core, _product(op.factors.T, Z)))) + op.ridge * V
    )


@jax.jit
def _as_matrix(op: StructuredOperator) -> Float[Array, "d d"]:
    V = op.columns()
    low_rank = _product(V, _product(op.core, V.T))
    regular = matrices.gram(op.matrix, op.logit_diagonal)
    return regular + 0.5 * (low_rank + low_rank.T) + op.ridge * jnp.eye(len(V), dtype=op.dtype)


@jax.jit
def _diagonal(op: StructuredOperator) -> Float[Array, " d"]:
    V = op.columns()
    return matrices.squares(op.matrix, op.logit_diagonal) + jnp.sum(_product(V, op.core) * V, axis=1) + op.ridge


answer(StructuredOperator, positive=lambda operator: operator.positive_semidefinite)
lx.diagonal.register(StructuredOperator, lambda operator: operator.diagonal())


@lx.materialise.register(StructuredOperator)
def _(operator: StructuredOperator) -> lx.MatrixLinearOperator:
    tags = [lx.symmetric_tag, *([lx.positive_semidefinite_tag] if operator.positive_semidefinite else [])]
    return lx.MatrixLinearOperator(operator.as_matrix(), frozenset(tags))
