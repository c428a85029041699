r"""Factor a structured operator once, solve many: see :mod:`softntk.curvature.structured` for the
operator.

Everything happens for H/s, s a power of two near the largest entry of Aᵀ diag(D) A and ρ, so that
units do not matter:

    H/s = R + V M Vᵀ,    R = LLᵀ,    L⁻¹V = Q T,    H/s = L ((I − QQᵀ) + Q K Qᵀ) Lᵀ,    K = I + T M Tᵀ.

The textbook's Woodbury formula subtracts two solutions that agree to all digits once V M Vᵀ
outweighs R by 1/ε. Here the orthogonal complement of Q and its span are solved for apart, so that
nothing is subtracted that is not orthogonal.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.records import record
from softntk._core.validation import as_dtype
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_exponent, power_of_two, scaled_norm
from softntk._linalg.products import product
from softntk.solution import Result

if TYPE_CHECKING:
    from softntk.curvature.structured import StructuredOperator

MAX_RESIDUAL = 1e-2
"""What ‖Hx − g‖/‖g‖ may be for x to count as a solution: more is left where H is singular in this
precision.
"""
_REFINEMENTS = 2
_NO_EXPONENT = -(1 << 14)  # of zero: below that of every number


@record
class Factorisation:
    """What solves with a :class:`~softntk.curvature.structured.StructuredOperator` for O(d²) each.

    Attributes:
        regular: R, [d, d], the regular part over the scale s.
        cholesky: its lower factor L; the identity where R is not positive definite.
        columns: V, [d, r].
        core: M, [r, r].
        basis: Q, [d, q], orthonormal.
        capacitance: K = I + T M Tᵀ, [q, q].
        inner: its eigenvalues: those of H relative to R that are not one.
        exponent: log₂ s, an integer.
        result: SUCCESSFUL, NOT_DEFINITE where the regular part is not positive definite, or H
            singular, in this precision, STAGNATED where a solution leaves more than 1 % of its
            right-hand side, or NONFINITE_INPUT.
    """

    regular: Float[Array, "d d"]
    cholesky: Float[Array, "d d"]
    columns: Float[Array, "d r"]
    core: Float[Array, "r r"]
    basis: Float[Array, "d q"]
    capacitance: Float[Array, "q q"]
    inner: Float[Array, " q"]
    exponent: Int[Array, ""]
    result: Int[Array, ""]

    def solve(self, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
        """Return H⁻¹ times one vector or several, [d] or [d, s], refined twice.

        +inf where ``result`` is not SUCCESSFUL, and in the columns whose residual stays above 1 %
        of the right-hand side. Derivatives are those of the solution, whatever the factors are.
        """
        d = len(self.regular)
        right = as_dtype("right", right, self.regular.dtype, finite=False)
        if right.ndim not in (1, 2) or len(right) != d:
            raise ValueError(f"right must have shape [{d}] or [{d}, s], got shape {right.shape}.")
        return _solve(self, right)

    def log_determinant(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return (sign, log|det H|); (0, −inf) where ``result`` is not SUCCESSFUL."""
        return _log_determinant(self)

    def negative_eigenvalues(self) -> Int[Array, ""]:
        """Return how many eigenvalues of H are negative; −1 where ``result`` is not SUCCESSFUL.

        With R = LLᵀ, H has the inertia of I + L⁻¹V M VᵀL⁻ᵀ (Sylvester), whose eigenvalues are
        ``inner`` and ones.
        """
        return jnp.where(self.result == Result.SUCCESSFUL, jnp.sum(self.inner < 0), -1).astype(
            jnp.int32
        )


def _times(factored: Factorisation, x: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return (H/s) x."""
    low_rank = product(factored.columns, product(factored.core, product(factored.columns.T, x)))
    return product(factored.regular, x) + low_rank


def _solve_once(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return L⁻ᵀ ((I − QQᵀ) + Q K⁻¹ Qᵀ) L⁻¹ g."""
    L, Q = factored.cholesky, factored.basis
    outside = jax.scipy.linalg.solve_triangular(L, right, lower=True)
    inside = product(Q.T, outside)
    outside = outside - product(Q, inside)
    again = product(Q.T, outside)  # what rounding left of the span in the complement
    outside = outside - product(Q, again)
    if Q.shape[1]:
        inside = jnp.linalg.solve(factored.capacitance, inside + again)
    return jax.scipy.linalg.solve_triangular(L.T, outside + product(Q, inside), lower=False)


def _refined(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return the solution of the smallest residual, column by column.

    A loop, whose first step is the solution itself: the solve stands in the program once.
    """

    def refine(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        solution, residual = carry
        refined = solution + _solve_once(factored, residual)
        residual_refined = right - _times(factored, refined)
        better = scaled_norm(residual_refined, axis=0) < scaled_norm(residual, axis=0)
        better |= step == 0
        return jnp.where(better, refined, solution), jnp.where(better, residual_refined, residual)

    return lax.fori_loop(0, 1 + _REFINEMENTS, refine, (jnp.zeros_like(right), right))[0]


@jax.jit
def _solve(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    constants = lax.stop_gradient(factored)
    solution = lax.custom_linear_solve(
        lambda x: _times(factored, x), right, lambda _, g: _refined(constants, g), symmetric=True
    )
    residual = lax.stop_gradient(right) - _times(constants, lax.stop_gradient(solution))
    small = scaled_norm(residual, axis=0) <= MAX_RESIDUAL * scaled_norm(
        lax.stop_gradient(right), axis=0
    )
    solved = (factored.result == Result.SUCCESSFUL) & small
    return jnp.where(solved, _times_power(solution, -factored.exponent), jnp.inf)


@jax.jit
def _log_determinant(factored: Factorisation) -> tuple[Float[Array, ""], Float[Array, ""]]:
    successful = factored.result == Result.SUCCESSFUL
    d = len(factored.regular)
    scale = (
        d
        * factored.exponent.astype(factored.regular.dtype)
        * jnp.log(jnp.asarray(2, factored.regular.dtype))
    )
    low_rank = jnp.sum(jnp.log(jnp.abs(jnp.where(successful, factored.inner, 1))))
    # The same, det(I + M VᵀR⁻¹V), for its derivatives: those of Q and T do not exist for columns of
    # zeros.
    V = factored.columns
    W = product(V.T, jax.scipy.linalg.cho_solve((factored.cholesky, True), V))
    small = jnp.where(
        successful,
        jnp.eye(V.shape[1], dtype=V.dtype) + product(factored.core, W),
        jnp.eye(V.shape[1], dtype=V.dtype),
    )
    differentiable = jnp.linalg.slogdet(small)[1] if V.shape[1] else jnp.zeros((), V.dtype)
    low_rank = lax.stop_gradient(low_rank) + differentiable - lax.stop_gradient(differentiable)
    value = 2 * jnp.sum(jnp.log(jnp.diagonal(factored.cholesky))) + low_rank + scale
    sign = jnp.prod(jnp.sign(factored.inner))
    return jnp.where(successful, sign, 0), jnp.where(successful, value, -jnp.inf)


@jax.jit
def factorise(op: "StructuredOperator") -> Factorisation:
    """Return the factors of a checked operator."""
    exponent, A, D, V, M, ridge = _scaled_parts(op)
    d, dtype = len(V), V.dtype
    eye = jnp.eye(d, dtype=dtype)
    R = matrices.gram(A, D) + ridge * eye
    finite = jnp.isfinite(R).all() & jnp.isfinite(V).all() & jnp.isfinite(M).all()
    cholesky = jnp.linalg.cholesky(jnp.where(finite, R, eye))
    eps = d * jnp.finfo(dtype).eps
    # Pivots that are rounding of the diagonal they came from: R is singular, though its factor is
    # finite.
    pivots = jnp.diagonal(cholesky) ** 2
    definite = finite & jnp.isfinite(cholesky).all() & jnp.all(pivots > 4 * eps * jnp.diagonal(R))
    cholesky = jnp.where(definite, cholesky, eye)
    # No derivative goes through Q, T and K: solutions and determinants have their own.
    columns, core = (jnp.where(finite, part, 0) for part in lax.stop_gradient((V, M)))
    Q, T = jnp.linalg.qr(
        jax.scipy.linalg.solve_triangular(lax.stop_gradient(cholesky), columns, lower=True)
    )
    small = product(T, product(core, T.T))
    small = 0.5 * (small + small.T)
    capacitance = jnp.eye(len(T), dtype=dtype) + small
    inner = jnp.linalg.eigvalsh(capacitance)
    # And where an eigenvalue relative to R is rounding of the terms that cancel in it, H is
    # singular.
    regular = jnp.all(jnp.abs(inner) > 4 * eps * (1 + jnp.max(jnp.abs(small), initial=0)))
    code = jnp.where(definite & regular, Result.SUCCESSFUL, Result.NOT_DEFINITE)
    factored = Factorisation(
        regular=R,
        cholesky=cholesky,
        columns=V,
        core=M,
        basis=Q,
        capacitance=jnp.where(regular, capacitance, jnp.eye(len(T), dtype=dtype)),
        inner=inner,
        exponent=exponent,
        result=jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32),
    )
    # Judged by one solve, whose right-hand side has a share of every direction, and the residual of
    # the operator itself.
    probe = jnp.cos(jnp.arange(1, d + 1, dtype=dtype) ** 2) * jnp.sqrt(jnp.abs(jnp.diagonal(R)))
    solution = _refined(lax.stop_gradient(factored), lax.stop_gradient(probe))
    z = matrices.times(A, solution)
    z = D * z + product(op.factors, product(M, product(op.factors.T, z)))
    residual = probe - matrices.adjoint(A, z) - ridge * solution
    stagnated = (factored.result == Result.SUCCESSFUL) & ~(
        scaled_norm(residual) <= 0.5 * MAX_RESIDUAL * scaled_norm(probe)
    )
    return dataclasses.replace(
        factored, result=jnp.where(stagnated, Result.STAGNATED, factored.result).astype(jnp.int32)
    )


def _scaled_parts(op: "StructuredOperator") -> tuple[Array, Any, Array, Array, Array, Array]:
    """Return log₂ s, and Â, D̂, ÂᵀU, M̂, ρ̂ with H = s (Âᵀ diag(D̂) Â + (ÂᵀU) M̂ (ÂᵀU)ᵀ + ρ̂ I)."""
    A, entries = matrices.scale_to_unit(op.matrix), matrices.entries(op.matrix)
    dtype = op.dtype
    ridge = jnp.asarray(op.ridge, dtype)
    square = 2 * _exponent(entries)
    exponent = jnp.maximum(square + _exponent(op.logit_diagonal), _exponent(ridge))
    exponent = jnp.where(exponent < _NO_EXPONENT // 2, 0, exponent)
    D = _times_power(op.logit_diagonal, square - exponent)
    M = _times_power(op.core, square - exponent)
    return exponent, A, D, matrices.adjoint(A, op.factors), M, _times_power(ridge, -exponent)


def _exponent(x: Float[Array, "..."]) -> Int[Array, ""]:
    """Return ⌊log₂ max|x|⌋."""
    exponent = jnp.reshape(binary_exponent(x), ())
    return jnp.where(jnp.any(lax.stop_gradient(x) != 0), exponent, _NO_EXPONENT)


def _times_power(x: Float[Array, "..."], exponent: Int[Array, ""]) -> Float[Array, "..."]:
    """Return 2^exponent x; as four factors, because the power itself may be out of range where the
    product is not.
    """
    quarter = jnp.sign(exponent) * (jnp.abs(exponent) // 4)
    for part in (quarter, quarter, quarter, exponent - 3 * quarter):
        x = x * power_of_two(part, x.dtype)
    return x
