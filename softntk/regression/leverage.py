r"""The inverse of leverage scores: positive scalings s of the rows of A with given scores.

    σ(s) = diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹) = τ,        S = diag(s).

In t = −2 log s, σ is a gradient: with Ω = diag(e^t),

    φ(t) = log det(AᵀΩA),    ∇φ = σ,    ∇²φ = diag(σ) − P∘P ≽ 0,        P = Ω^½A (AᵀΩA)⁻¹ AᵀΩ^½,

because ∂σ_i/∂t_j = σ_i δ_ij − P_ij² for the projection P (rows of P∘P sum to σ: P² = P). So what is to be solved is the
minimisation of a **convex** function, φ(t) − ⟨τ, t⟩. It does not see a common factor of s (Σσ = d); the gauge Σ log s = 0 is
fixed by adding (Σt)²/2n, which makes it strictly convex where A does not decompose into blocks.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (4, 2))
    >>> p = sn.regression.leverage(A, jnp.full(4, 0.5))
    >>> t = jnp.zeros(4)
    >>> for _ in range(300):  # a step of one is safe: the Hessian is at most I
    ...     t = t - p.gradient(t)
    >>> bool(jnp.abs(p.predict(t) - 0.5).max() < 1e-3), bool(jnp.abs(t.sum()) < 1e-4)
    (True, True)

Source: arXiv 2404.13785 (inverting leverage scores); the convex form: Barthe (1998), Inventiones 134, 335-361.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._records import function_record
from softntk._validation import check_finite, check_floating, check_rows, is_concrete
from softntk.curvature._matrices import product
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
        """The function that is minimal where the scores are the target; +inf where AᵀΩA is singular in this precision."""
        return _value(self, self._checked(t))

    def scalings(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """S = e^{−t/2}."""
        return jnp.exp(-0.5 * self._checked(t))

    def predict(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """σ, the leverage scores at s = e^{−t/2}."""
        return jnp.sum(_basis(self, self._checked(t)) ** 2, axis=1)

    def residual(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """σ − τ."""
        return self.predict(t) - self.target

    def gradient(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        """σ − τ + Σt/n."""
        return self.residual(t) + jnp.mean(self._checked(t))

    def hessian(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """diag(σ) − P∘P + 11ᵀ/n, positive semidefinite; a product takes O(n d²), and n² numbers are never held."""
        t = self._checked(t)
        structure = jax.ShapeDtypeStruct(t.shape, t.dtype)
        return lx.FunctionLinearOperator(_Product(_basis(self, t)), structure, lx.positive_semidefinite_tag)

    def gauss_newton(self, t: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """The Hessian itself: the function is convex."""
        return self.hessian(t)

    def check(self, t: Float[Array, " n"]) -> Int[Array, ""]:
        """SUCCESSFUL, NONFINITE_INPUT, or NOT_DEFINITE where AᵀΩA is singular in this precision."""
        t = self._checked(t)
        finite = jnp.isfinite(t).all() & jnp.isfinite(self.A).all() & jnp.isfinite(self.target).all()
        code = jnp.where(jnp.isfinite(_value(self, t)), Result.SUCCESSFUL, Result.NOT_DEFINITE)
        return jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)

    def _checked(self, t: Any) -> Float[Array, " n"]:
        if jnp.shape(t) != self.target.shape:
            raise ValueError(f"t must have shape {self.target.shape}, got {jnp.shape(t)}.")
        return jnp.asarray(t, self.A.dtype)


def leverage(A: Float[Array | np.ndarray, "n d"], target: Float[Array | np.ndarray, " n"]) -> LeverageProblem:
    r"""Find s > 0 whose leverage scores diag(S⁻¹A (AᵀS⁻²A)⁻¹ AᵀS⁻¹) are the target.

    A solution exists if and only if τ lies in the relative interior of the polytope of bases of A (Barthe): Σ_{i∈I} τ_i is less
    than the rank of the rows I for every set I that A does not split off. For rows in general position that is 0 < τ_i < 1 and
    Στ = d, which is checked; so is Σ τ < 1 on every class of parallel rows. What else is infeasible shows as t without a bound.

    Args:
        A: [n, d], of rank d, without rows of zeros.
        target: τ, [n].

    Returns:
        A :class:`LeverageProblem` in t = −2 log s with Σt = 0 at the solution: minimise ``p(t)``, then ``p.scalings(t)``.

    Raises:
        ValueError: shapes that do not fit, integers, NaN; rank below d; a target that is not feasible (outside of (0, 1), of
            another sum than d, or of sum ≥ 1 on parallel rows), unless n = d, where all scores are one.

    Example:
        >>> import jax.numpy as jnp
        >>> p = leverage(jnp.array([[1.0], [2.0]]), jnp.array([0.5, 0.5]))
        >>> [round(float(v), 5) for v in p.predict(jnp.log(jnp.array([4.0, 1.0])))]
        [0.5, 0.5]

    Source: arXiv 2404.13785; see the module.
    """
    check_rows("A", A)
    check_floating("target", target)
    n = jnp.shape(A)[0]
    if jnp.shape(target) != (n,):
        raise ValueError(f"target must have shape {(n,)}, one score a row, got {jnp.shape(target)}.")
    check_finite("target", target)
    if is_concrete(A) and is_concrete(target):
        _check_feasible(np.asarray(A, np.float64), np.asarray(target, np.float64))
    return LeverageProblem(jnp.asarray(A), jnp.asarray(target, jnp.result_type(A)))


def _check_feasible(A: np.ndarray, target: np.ndarray) -> None:
    n, d = A.shape
    rank = int(np.linalg.matrix_rank(A))
    norms = np.linalg.norm(A, axis=1)
    if rank < d or norms.min() == 0:
        raise ValueError(
            f"A must have full column rank {d} and no rows of zeros, got rank {rank}, {int((norms == 0).sum())} such rows."
        )
    if abs(target.sum() - d) > 1e-4 * d:
        raise ValueError(f"target must sum to the rank of A, {d}, got {target.sum():.6g}: leverage scores always do.")
    if n == d:  # every score is one, whatever s
        if np.abs(target - 1).max() > 1e-6:
            raise ValueError("target must be one everywhere for a square A.")
        return
    if target.min() <= 0 or target.max() >= 1:
        raise ValueError(f"target must lie strictly between 0 and 1, got {target.min():.3g} … {target.max():.3g}.")
    unit = A / norms[:, None]
    first = np.argmax(np.abs(unit) > 1e-7, axis=1)
    unit = unit * np.sign(unit[np.arange(n), first])[:, None]
    _, labels = np.unique(np.round(unit, 7), axis=0, return_inverse=True)
    sums = np.bincount(labels.ravel(), target)
    if sums.max() >= 1 and d > 1:
        raise ValueError(f"target must sum to less than one over parallel rows, got {sums.max():.3g}: their rank is one.")


class _Product(eqx.Module):
    """v ↦ σ∘v − (P∘P)v + mean(v), with P = QQᵀ: (P∘P)v is the diagonal of P diag(v) P."""

    basis: Float[Array, "n d"]

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        Q = self.basis
        inner = product(Q.T, v[:, None] * Q)
        return jnp.sum(Q**2, axis=1) * v - jnp.sum(product(Q, inner) * Q, axis=1) + jnp.mean(v)


def _rows(p: LeverageProblem, t: Float[Array, " n"]) -> tuple[Float[Array, "n d"], Float[Array, ""]]:
    """Ω^½A up to a factor e^{c/2}, and c."""
    c = jax.lax.stop_gradient(jnp.max(t))
    return jnp.exp(0.5 * (t - c))[:, None] * p.A, c


@jax.jit
def _basis(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, "n d"]:
    return jnp.linalg.qr(_rows(p, t)[0])[0]


@jax.jit
def _value(p: LeverageProblem, t: Float[Array, " n"]) -> Float[Array, ""]:
    rows, c = _rows(p, t)
    diagonal = jnp.abs(jnp.diagonal(jnp.linalg.qr(rows, mode="r")))
    tiny = jnp.finfo(t.dtype).tiny
    log_det = 2 * jnp.sum(jnp.log(jnp.maximum(diagonal, tiny))) + len(diagonal) * c
    value = log_det - jnp.dot(p.target, t) + 0.5 * jnp.sum(t) ** 2 / len(t)
    return jnp.where(jnp.isfinite(value) & (diagonal.min() > tiny), value, jnp.inf)
