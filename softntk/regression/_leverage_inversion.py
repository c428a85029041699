r"""The inverse of leverage scores: positive scalings s of the rows of A with given scores.

    σ(s) = diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹) = τ,        S = diag(s).

In t = −2 log s, σ is a gradient: with Ω = diag(e^t),

    φ(t) = log det(AᵀΩA),    ∇φ = σ,    ∇²φ = diag(σ) − P∘P ≽ 0,        P = Ω^½A (AᵀΩA)⁻¹ AᵀΩ^½,

because ∂σ_i/∂t_j = σ_i δ_ij − P_ij² for the projection P (rows of P∘P sum to σ: P² = P). So what is
to be solved is the minimisation of a **convex** function, φ(t) − ⟨τ, t⟩. It does not see a common
factor of s (Σσ = d); the gauge Σ log s = 0 is fixed by adding (Σt)²/2n, which makes it strictly
convex where A does not decompose into blocks.

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
from typing import Any, NamedTuple

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


@function_record
class LeverageProblem:
    """log det(Aᵀ diag(e^t) A) − ⟨τ, t⟩ + (Σt)²/2n, convex in t; a frozen pytree.

    Attributes:
        A: [n, d], of rank d.
        target: τ, [n].
    """

    A: Float[Array, "n d"]
    target: Float[Array, " n"]

    def __call__(self, t: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the function that is minimal where the scores are the target; +inf where AᵀΩA is
        singular numerically.
        """
        return _value(self, self._checked(t))

    def scalings(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the scalings s = e^{−t/2}."""
        return jnp.exp(-0.5 * self._checked(t))

    def predict(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ, the leverage scores at s = e^{−t/2}; +inf where they are lost, as the loss is."""
        return _predict(self, self._checked(t))

    def residual(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ − τ."""
        return self.predict(t) - self.target

    def gradient(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return σ − τ + Σt/n."""
        return self.residual(t) + jnp.mean(self._checked(t))

    def hessian(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """Return diag(σ) − P∘P + 11ᵀ/n, positive semidefinite; a product takes O(n d²), and n²
        numbers are never held.
        """
        t = self._checked(t)
        structure = jax.ShapeDtypeStruct(t.shape, t.dtype)
        return lx.FunctionLinearOperator(
            _Product(_decomposed(self.A, t).basis), structure, lx.positive_semidefinite_tag
        )

    def gauss_newton(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """Return the Hessian itself: the function is convex."""
        return self.hessian(t)

    def check(self, t: Float[Array, " n"]) -> Int[Array, ""]:
        """Return SUCCESSFUL, NONFINITE_INPUT, NOT_DEFINITE where AᵀΩA is singular numerically, or
        OVERFLOW of the loss.
        """
        t = self._checked(t)
        finite = (
            jnp.isfinite(t).all() & jnp.isfinite(self.A).all() & jnp.isfinite(self.target).all()
        )
        fits = jnp.isfinite(_value(self, t)) & jnp.isfinite(self.gradient(t)).all()
        lost = jnp.where(_decomposed(self.A, t).definite, Result.OVERFLOW, Result.NOT_DEFINITE)
        code = jnp.where(fits, Result.SUCCESSFUL, lost)
        return jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)

    def _checked(self, t: Any) -> Float[Array, " n"]:
        return as_dtype("t", t, self.A.dtype, self.target.shape, finite=False)


def leverage(
    A: Float[Array | np.ndarray, "n d"], target: Float[Array | np.ndarray, " n"]
) -> LeverageProblem:
    r"""Return the problem of finding s > 0 whose leverage scores diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹) are
    the target.

    A solution exists if and only if τ lies in the relative interior of the polytope of bases of A
    (Barthe): Σ_{i∈I} τ_i is less than the rank of the rows I for every set I that A does not split
    off. For rows in general position that is 0 < τ_i < 1 and Στ = d, which is checked; so is Στ on
    every class of parallel rows: one if they split off, less than one otherwise. What else is
    infeasible shows as t without a bound.

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


def _check_feasible(A: np.ndarray, target: np.ndarray) -> None:
    n, d = A.shape
    rank = int(np.linalg.matrix_rank(A))
    norms = np.linalg.norm(A, axis=1)
    if rank < d or norms.min() == 0:
        raise ValueError(
            f"A must have full column rank {d} and no rows of zeros, got rank {rank}, {int((norms == 0).sum())} such rows."
        )
    if abs(target.sum() - d) > 1e-4 * d:
        raise ValueError(
            f"target must sum to the rank of A, {d}, got {target.sum():.6g}: leverage scores always do."
        )
    if target.min() <= 0 or target.max() > 1:
        raise ValueError(
            f"target must lie between 0 and 1, got {target.min():.3g} … {target.max():.3g}."
        )
    # Parallel rows have rank one; they share a sum of one if and only if they split off.
    unit = A / norms[:, None]
    first = np.argmax(np.abs(unit) > 1e-7, axis=1)
    unit = unit * np.sign(unit[np.arange(n), first])[:, None]
    labels = np.unique(np.round(unit, 7), axis=0, return_inverse=True)[1].ravel()
    for label, total in enumerate(np.bincount(labels, target)):
        others = A[labels != label]
        splits = len(others) == 0 or int(np.linalg.matrix_rank(others)) < d
        if total > 1 + 1e-6 or (total > 1 - 1e-6) != splits:
            rows = np.flatnonzero(labels == label).tolist()
            raise ValueError(
                f"target must sum to {'one' if splits else 'less than one'} over the parallel rows {rows[:5]}, got {total:.6g}."
            )


class _Product(eqx.Module):
    """v ↦ σ∘v − (P∘P)v + mean(v)."""

    basis: Float[Array, "n d"]

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return _spread(self.basis, v) + jnp.mean(v)


class _Decomposed(NamedTuple):
    """Of Ω^½A, the rows in their own order."""

    basis: Float[Array, "n d"]
    log_det: Float[Array, ""]
    definite: Bool[Array, ""]


@jax.jit
def _decomposed(A: Float[Array, "n d"], t: Float[Array, " n"]) -> _Decomposed:
    n, d = A.shape
    c = jax.lax.stop_gradient(jnp.max(t))
    unit = jnp.squeeze(binary_scale(A))
    rows = jnp.exp(0.5 * (t - c))[:, None] * (A / unit)
    # Householder's QR is accurate row by row if the heavy rows come first and columns are pivoted.
    size = jax.lax.stop_gradient(scaled_norm(rows, axis=1))
    order = jnp.argsort(-size)
    Q, R, _ = jax.scipy.linalg.qr(
        jax.lax.stop_gradient(rows)[order], mode="economic", pivoting=True
    )
    diagonal = jnp.abs(jnp.diagonal(R))
    tiny = jnp.finfo(t.dtype).tiny
    log_det = 2 * jnp.sum(jnp.log(jnp.maximum(diagonal, tiny)))
    # No determinant exceeds √(n over d) times the product of the d longest rows (Cauchy and Binet):
    # what does is rounding.
    most = 2 * jnp.sum(jnp.log(jnp.maximum(size[order][:d], tiny))) + math.log(math.comb(n, d)) + 1
    definite = (
        jnp.isfinite(log_det)
        & (diagonal.min() > tiny)
        & (size[order][d - 1] > tiny)
        & (log_det <= most)
    )
    return _Decomposed(
        jnp.zeros_like(Q).at[order].set(Q), log_det + d * (c + 2 * jnp.log(unit)), definite
    )


@jax.custom_jvp
def _log_det(A: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, ""]:
    """Its gradient in t is σ; it has none in A."""
    return _decomposed(A, t).log_det


@partial(_log_det.defjvp, symbolic_zeros=True)
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (A, t), (dA, dt) = primals, tangents
    return _log_det(A, t), jnp.dot(_scores(A, t), _in_t_only(dA, t, dt))


@jax.custom_jvp
def _scores(A: Float[Array, "n d"], t: Float[Array, " n"]) -> Float[Array, " n"]:
    """σ, whose Jacobian in t is diag(σ) − P∘P; it has none in A."""
    return jnp.sum(_decomposed(A, t).basis ** 2, axis=1)


@partial(_scores.defjvp, symbolic_zeros=True)
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (A, t), (dA, dt) = primals, tangents
    return _scores(A, t), _spread(_decomposed(A, t).basis, _in_t_only(dA, t, dt))


def _in_t_only(dA: Any, t: Float[Array, " n"], dt: Any) -> Float[Array, " n"]:
    if not isinstance(dA, SymbolicZero):
        raise NotImplementedError(
            "leverage problems are differentiable in t and the target, not in A."
        )
    return jnp.zeros_like(t) if isinstance(dt, SymbolicZero) else dt


def _spread(Q: Float[Array, "n d"], v: Float[Array, " n"]) -> Float[Array, " n"]:
    """σ∘v − (P∘P)v, with P = QQᵀ: (P∘P)v is the diagonal of P diag(v) P."""
    return jnp.sum(Q**2, axis=1) * v - jnp.sum(product(Q, product(Q.T, v[:, None] * Q)) * Q, axis=1)


@jax.jit
def _value(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, ""]:
    definite = _decomposed(p.A, jax.lax.stop_gradient(t)).definite
    t = jnp.where(definite, t, jax.lax.stop_gradient(t))
    value = _log_det(p.A, t) - jnp.dot(p.target, t) + 0.5 * jnp.sum(t) ** 2 / len(t)
    return jnp.where(definite & jnp.isfinite(value), value, jnp.inf)


@jax.jit
def _predict(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.where(_decomposed(p.A, t).definite, _scores(p.A, t), jnp.inf)
