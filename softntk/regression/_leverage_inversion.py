r"""The inverse of leverage scores: positive scalings s of the rows of A with given scores.

    σ(s) = diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹) = τ,        S = diag(s).

In t = −2 log s, σ is a gradient: with Ω = diag(e^t),

    φ(t) = log det(AᵀΩA),    ∇φ = σ,    ∇²φ = diag(σ) − P∘P ≽ 0,        P = Ω^½A (AᵀΩA)⁻¹ AᵀΩ^½,

because ∂σ_i/∂t_j = σ_i δ_ij − P_ij² for the projection P (rows of P∘P sum to σ: P² = P). So the
problem is the minimisation of a **convex** function, φ(t) − ⟨τ, t⟩. It does not depend on a common
factor of s (Σσ = d). Adding (Σt)²/2n fixes that factor by Σ log s = 0, and makes the function
strictly convex where A does not decompose into blocks.

| symbol | meaning | shape |
|---|---|---|
| A | matrix of rank d | [n, d] |
| s, t | scalings, t = −2 log s | [n] |
| σ, τ | leverage scores, and their target | [n] |
| Ω | diag(e^t) | [n, n] |
| P = QQᵀ | projection on the range of Ω^½A, with orthonormal basis Q | [n, n], [n, d] |

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (4, 2))
    >>> p = sn.regression.leverage(A, jnp.full(4, 0.5))
    >>> t = jnp.zeros(4)
    >>> for _ in range(300):  # a step of one is safe: the Hessian is at most I
    ...     t = t - p.gradient(t)
    >>> bool(jnp.abs(p.predict(t) - 0.5).max() < 1e-3), bool(jnp.abs(t.sum()) < 1e-4)
    (True, True)

Source: arXiv 2404.13785 (inverting leverage scores); the convex form: Barthe (1998), Inventiones
134, 335-361.
"""

import math
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from softntk._core.records import function_record
from softntk._core.validation import (
    as_dtype,
    as_floating,
    as_rows,
    is_concrete,
)
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk._linalg.products import product
from softntk.solution import Result

# Relative error that the sum of a target may have.
SUM_TOLERANCE = 1e-4
# Error that the sum of a target over a class of parallel rows may have.
CLASS_TOLERANCE = 1e-6
# Rows are parallel if their unit vectors agree to this many decimals.
PARALLEL_DECIMALS = 7
# Entries of a unit vector up to this size count as zero.
MIN_UNIT_ENTRY = 1e-7


@function_record
class LeverageProblem:
    """The loss log det(Aᵀ diag(e^t) A) − ⟨τ, t⟩ + (Σt)²/2n, convex in t; a frozen pytree.

    It is differentiable in t and the target, but not in A.

    Attributes:
        A: [n, d], of rank d.
        target: τ, [n].
    """

    A: Float[Array, "n d"]
    target: Float[Array, " n"]

    def __call__(self, t: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the loss, minimal where the scores are the target.

        It is +inf where AᵀΩA is singular numerically.
        """
        return _value(self, self._checked(t))

    def scalings(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the scalings s = e^{−t/2}."""
        return jnp.exp(-0.5 * self._checked(t))

    def predict(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ, the leverage scores at s = e^{−t/2}; +inf where AᵀΩA is singular."""
        return _predict(self, self._checked(t))

    def residual(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ − τ."""
        return self.predict(t) - self.target

    def gradient(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ − τ + Σt/n."""
        return self.residual(t) + jnp.mean(self._checked(t))

    def hessian(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """Return diag(σ) − P∘P + 11ᵀ/n, positive semidefinite.

        A product takes O(n d²) operations and O(n d) memory.
        """
        t = self._checked(t)
        structure = jax.ShapeDtypeStruct(t.shape, t.dtype)
        product_with_hessian = _HessianProduct(_decompose(self.A, t).basis)
        return lx.FunctionLinearOperator(
            product_with_hessian, structure, lx.positive_semidefinite_tag
        )

    def gauss_newton(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """Return the Hessian itself: the function is convex."""
        return self.hessian(t)

    def check(self, t: Float[Array, " n"]) -> Int[Array, ""]:
        """Return SUCCESSFUL, NONFINITE_INPUT, NOT_DEFINITE or OVERFLOW; works under jit.

        NOT_DEFINITE: AᵀΩA is singular numerically. OVERFLOW is that of the loss or its gradient.
        """
        t = self._checked(t)
        inputs_finite = (
            jnp.isfinite(t).all() & jnp.isfinite(self.A).all() & jnp.isfinite(self.target).all()
        )
        results_finite = jnp.isfinite(_value(self, t)) & jnp.isfinite(self.gradient(t)).all()
        definite = _decompose(self.A, t).definite
        failure_code = jnp.where(definite, Result.OVERFLOW, Result.NOT_DEFINITE)
        code = jnp.where(results_finite, Result.SUCCESSFUL, failure_code)
        return jnp.where(inputs_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)

    def _checked(self, t: object) -> Float[Array, " n"]:
        """Return t as a vector [n] of the dtype of A, finite or not."""
        return as_dtype("t", t, self.A.dtype, self.target.shape, finite=False)


def leverage(
    A: Float[Array | np.ndarray, "n d"], target: Float[Array | np.ndarray, " n"]
) -> LeverageProblem:
    r"""Return the problem of finding scalings s > 0 of the rows with given leverage scores.

    Use it to weight rows so that each has the influence that you choose. The scores are
    diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹).

    A solution exists if and only if τ lies in the relative interior of the polytope of bases of A
    (Barthe): Σ_{i∈I} τ_i is less than the rank of the rows I for every set I that A does not split
    off. For rows in general position that is 0 < τ_i < 1 and Στ = d, which is checked; so is Στ on
    every class of parallel rows: one if they split off, less than one otherwise. For any other
    infeasible target t grows without a bound.

    Args:
        A: [n, d], of rank d, without rows of zeros.
        target: τ, [n].

    Returns:
        A :class:`LeverageProblem` in t = −2 log s with Σt = 0 at the solution: minimise ``p(t)``,
        then ``p.scalings(t)``.

    Raises:
        ValueError: shapes that do not fit, integers, NaN; rank below d; a target that is not
            feasible (outside of (0, 1), of another sum than d, or wrong on parallel rows).

    Example:
        >>> import jax.numpy as jnp
        >>> p = leverage(jnp.array([[1.0], [2.0]]), jnp.array([0.5, 0.5]))
        >>> [round(float(v), 5) for v in p.predict(jnp.log(jnp.array([4.0, 1.0])))]
        [0.5, 0.5]

    Source: arXiv 2404.13785; see the module.
    """
    if matrices.is_sparse(A) or isinstance(A, lx.AbstractLinearOperator):
        raise ValueError(
            f"A must be a dense array, got {type(A).__name__}. Take its todense() or as_matrix()."
        )
    A = as_rows("A", A, half=False)
    target = as_dtype("target", as_floating("target", target, (len(A),)), A.dtype, finite=False)
    if is_concrete(A) and is_concrete(target):
        _check_feasible(np.asarray(A, np.float64), np.asarray(target, np.float64))
    return LeverageProblem(A, target)


def _check_feasible(A: Float[np.ndarray, "n d"], target: Float[np.ndarray, " n"]) -> None:
    """Refuse a matrix without full rank, and a target that is not feasible."""
    # 1. Ranks and sums.
    n, d = A.shape
    rank = int(np.linalg.matrix_rank(A))
    norms = np.linalg.norm(A, axis=1)
    if rank < d or norms.min() == 0:
        raise ValueError(
            f"A must have full column rank {d} and no rows of zeros, got rank {rank}, "
            f"{int((norms == 0).sum())} such rows."
        )
    if abs(target.sum() - d) > SUM_TOLERANCE * d:
        raise ValueError(
            f"target must sum to the rank of A, {d}, got {target.sum():.6g}: leverage scores "
            "always do."
        )
    if target.min() <= 0 or target.max() > 1:
        raise ValueError(
            f"target must lie between 0 and 1, got {target.min():.3g} … {target.max():.3g}."
        )
    # 2. Classes of parallel rows: equal unit vectors whose first nonzero entry is positive.
    unit_rows = A / norms[:, None]
    pivot_column = np.argmax(np.abs(unit_rows) > MIN_UNIT_ENTRY, axis=1)
    unit_rows = unit_rows * np.sign(unit_rows[np.arange(n), pivot_column])[:, None]
    rounded_rows = np.round(unit_rows, PARALLEL_DECIMALS)
    class_labels = np.unique(rounded_rows, axis=0, return_inverse=True)[1].ravel()
    # 3. A class has rank one. It has a sum of one if and only if it splits off, that is if the rank
    #    of the remaining rows is less than d.
    for class_label, class_sum in enumerate(np.bincount(class_labels, target)):
        remaining_rows = A[class_labels != class_label]
        splits_off = len(remaining_rows) == 0 or int(np.linalg.matrix_rank(remaining_rows)) < d
        is_one = class_sum > 1 - CLASS_TOLERANCE
        if class_sum > 1 + CLASS_TOLERANCE or is_one != splits_off:
            rows = np.flatnonzero(class_labels == class_label).tolist()
            expected_sum = "one" if splits_off else "less than one"
            raise ValueError(
                f"target must sum to {expected_sum} over the parallel rows {rows[:5]}, got "
                f"{class_sum:.6g}."
            )


class _HessianProduct(eqx.Module):
    """The map v ↦ σ∘v − (P∘P)v + mean(v).

    Attributes:
        basis: Q, [n, d].
    """

    basis: Float[Array, "n d"]

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the product with v."""
        return _score_derivative(self.basis, v) + jnp.mean(v)


class _Decomposition(NamedTuple):
    """QR decomposition of Ω^½A.

    Attributes:
        basis: Q, with the rows in the order of A, [n, d].
        log_det: log det(AᵀΩA).
        definite: whether AᵀΩA is definite numerically.
    """

    basis: Float[Array, "n d"]
    log_det: Float[Array, ""]
    definite: Bool[Array, ""]


@jax.jit
def _decompose(A: Float[Array, "n d"], t: Float[Array, " n"]) -> _Decomposition:
    """Return the decomposition of Ω^½A; it carries no gradient."""
    # 1. Scale A and Ω to order one; the logarithms of the scales are added at the end.
    n, d = A.shape
    max_t = jax.lax.stop_gradient(jnp.max(t))
    unit_scale = jnp.squeeze(binary_scale(A))
    rows = jnp.exp(0.5 * (t - max_t))[:, None] * (A / unit_scale)
    # 2. Householder's QR is accurate row by row if the heaviest rows come first and columns are
    #    pivoted.
    row_norms = jax.lax.stop_gradient(scaled_norm(rows, axis=1))
    order = jnp.argsort(-row_norms)
    Q, R, _ = jax.scipy.linalg.qr(
        jax.lax.stop_gradient(rows)[order], mode="economic", pivoting=True
    )
    diagonal = jnp.abs(jnp.diagonal(R))
    smallest_normal = jnp.finfo(t.dtype).tiny
    log_det = 2 * jnp.sum(jnp.log(jnp.maximum(diagonal, smallest_normal)))
    # 3. No determinant exceeds √(n over d) times the product of the d longest rows (Cauchy and
    #    Binet). A larger one is rounding.
    sorted_norms = row_norms[order]
    max_log_det = (
        2 * jnp.sum(jnp.log(jnp.maximum(sorted_norms[:d], smallest_normal)))
        + math.log(math.comb(n, d))
        + 1
    )
    definite = (
        jnp.isfinite(log_det)
        & (diagonal.min() > smallest_normal)
        & (sorted_norms[d - 1] > smallest_normal)
        & (log_det <= max_log_det)
    )
    return _Decomposition(
        jnp.zeros_like(Q).at[order].set(Q),
        log_det + d * (max_t + 2 * jnp.log(unit_scale)),
        definite,
    )


# The derivatives are given by hand: ∇ log det = σ, and the Jacobian of σ is diag(σ) − P∘P.


@jax.custom_jvp
def _log_det(A: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, ""]:
    """Return log det(AᵀΩA), whose gradient in t is σ; differentiating it in A is an error."""
    return _decompose(A, t).log_det


@partial(_log_det.defjvp, symbolic_zeros=True)
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    A, t = primals
    dA, dt = tangents
    return _log_det(A, t), jnp.dot(_scores(A, t), _tangent_of_t(dA, t, dt))


@jax.custom_jvp
def _scores(A: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return σ, with Jacobian diag(σ) − P∘P in t; differentiating it in A is an error."""
    return jnp.sum(_decompose(A, t).basis ** 2, axis=1)


@partial(_scores.defjvp, symbolic_zeros=True)
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    A, t = primals
    dA, dt = tangents
    basis = _decompose(A, t).basis
    return _scores(A, t), _score_derivative(basis, _tangent_of_t(dA, t, dt))


def _tangent_of_t(
    dA: Array | SymbolicZero, t: Float[Array, " n"], dt: Array | SymbolicZero
) -> Float[Array, " n"]:
    """Return dt as an array; refuse a tangent of A."""
    if not isinstance(dA, SymbolicZero):
        raise NotImplementedError(
            "leverage problems are differentiable in t and the target, not in A."
        )
    return jnp.zeros_like(t) if isinstance(dt, SymbolicZero) else dt


def _score_derivative(Q: Float[Array, "n d"], v: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return σ∘v − (P∘P)v, with P = QQᵀ: (P∘P)v is the diagonal of P diag(v) P."""
    scores = jnp.sum(Q**2, axis=1)
    weighted_projection = product(Q, product(Q.T, v[:, None] * Q))
    return scores * v - jnp.sum(weighted_projection * Q, axis=1)


@jax.jit
def _value(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, ""]:
    """Return the loss, with a derivative of zero where AᵀΩA is singular."""
    definite = _decompose(p.A, jax.lax.stop_gradient(t)).definite
    t = jnp.where(definite, t, jax.lax.stop_gradient(t))
    value = _log_det(p.A, t) - jnp.dot(p.target, t) + 0.5 * jnp.sum(t) ** 2 / len(t)
    return jnp.where(definite & jnp.isfinite(value), value, jnp.inf)


@jax.jit
def _predict(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the leverage scores, +inf where AᵀΩA is singular."""
    return jnp.where(_decompose(p.A, t).definite, _scores(p.A, t), jnp.inf)
