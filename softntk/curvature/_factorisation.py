r"""Factorisation of a structured operator, for many solves (:mod:`softntk.curvature.structured`).

Everything is computed for H/s, s a power of two near the largest entry of Aᵀ diag(D) A and ρ, so
that units do not matter:

    H/s = R + V M Vᵀ,    R = LLᵀ,    L⁻¹V = Q T,
    H/s = L ((I − QQᵀ) + Q K Qᵀ) Lᵀ,    K = I + T M Tᵀ.

The textbook's Woodbury formula subtracts two solutions that agree to all digits once V M Vᵀ
outweighs R by 1/ε. Here the components in the span of Q and in its orthogonal complement are solved
for separately, so that only orthogonal vectors are subtracted.
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
"""Largest ‖Hx − g‖/‖g‖ of a solution x; it is larger where H is singular in this precision."""

REFINEMENT_STEPS = 2
"""Steps of iterative refinement after the first solve."""

ZERO_EXPONENT = -(1 << 14)
"""Exponent that stands for zero: below that of every floating-point number."""


@record
class Factorisation:
    """Factors of a :class:`~softntk.curvature.structured.StructuredOperator`; solves cost O(d²).

    Attributes:
        regular: R, [d, d], the regular part over the scale s.
        cholesky: the lower factor L of R; the identity where R is not positive definite.
        columns: V, [d, r].
        core: M, [r, r].
        basis: Q, [d, q], orthonormal.
        capacitance: K = I + T M Tᵀ, [q, q]; the identity where K is singular.
        inner: the eigenvalues of K: those of H relative to R that are not one. Ones where K is
            singular.
        inner_vectors: the eigenvectors of K, as columns.
        exponent: log₂ s, an integer.
        result: SUCCESSFUL, NOT_DEFINITE where the regular part is not positive definite, or H
            singular, in this precision, STAGNATED where the residual of a test solve is more than
            half a per cent of its right-hand side, or NONFINITE_INPUT.
    """

    regular: Float[Array, "d d"]
    cholesky: Float[Array, "d d"]
    columns: Float[Array, "d r"]
    core: Float[Array, "r r"]
    basis: Float[Array, "d q"]
    capacitance: Float[Array, "q q"]
    inner: Float[Array, " q"]
    inner_vectors: Float[Array, "q q"]
    exponent: Int[Array, ""]
    result: Int[Array, ""]

    def solve(self, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
        """Return H⁻¹ times one vector or several, [d] or [d, s], refined twice.

        The result is +inf where ``result`` is not SUCCESSFUL, and in columns whose residual stays
        above 1 % of the right-hand side. Derivatives are those of the exact solution.

        Raises:
            ValueError: right is not of real numbers, or not of shape [d] or [d, s].
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
        """Return the number of negative eigenvalues; −1 where ``result`` is not SUCCESSFUL.

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
    """Return L⁻ᵀ ((I − QQᵀ) + Q K⁻¹ Qᵀ) L⁻¹ g, for g = ``right``."""
    L = factored.cholesky
    Q = factored.basis
    # 1. Split L⁻¹ g into coordinates in the span of Q and the complement.
    complement = jax.scipy.linalg.solve_triangular(L, right, lower=True)
    coordinates = product(Q.T, complement)
    complement = complement - product(Q, coordinates)
    # 2. Split the complement once more: rounding has left a part of the span in it.
    correction = product(Q.T, complement)
    complement = complement - product(Q, correction)
    # 3. Solve in the span by the eigenvectors of K, and add. An LU factorisation of K would be as
    #    large a program as all of this one.
    vectors = factored.inner_vectors
    eigenvalues = factored.inner if right.ndim == 1 else factored.inner[:, None]
    coordinates = product(vectors, product(vectors.T, coordinates + correction) / eigenvalues)
    combined = complement + product(Q, coordinates)
    return jax.scipy.linalg.solve_triangular(L.T, combined, lower=False)


def _solve_refined(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return the refined solution with the smallest residual, column by column.

    The first step of the loop is the solve itself, so that the program contains it only once.
    """

    def refine(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        solution, residual = carry
        refined = solution + _solve_once(factored, residual)
        new_residual = right - _times(factored, refined)
        is_better = scaled_norm(new_residual, axis=0) < scaled_norm(residual, axis=0)
        is_better |= step == 0
        return jnp.where(is_better, refined, solution), jnp.where(is_better, new_residual, residual)

    return lax.fori_loop(0, 1 + REFINEMENT_STEPS, refine, (jnp.zeros_like(right), right))[0]


@jax.jit
def _solve(factored: Factorisation, right: Float[Array, "d *s"]) -> Float[Array, "d *s"]:
    """Return the solution, +inf where the factorisation failed or the residual is too large."""
    # 1. The solve is exact for derivatives: they solve with the same operator.
    constants = lax.stop_gradient(factored)
    solution = lax.custom_linear_solve(
        lambda x: _times(factored, x),
        right,
        lambda _, g: _solve_refined(constants, g),
        symmetric=True,
    )
    # 2. Check the residual, and multiply by the scale.
    residual = lax.stop_gradient(right) - _times(constants, lax.stop_gradient(solution))
    right_norm = scaled_norm(lax.stop_gradient(right), axis=0)
    is_accurate = scaled_norm(residual, axis=0) <= MAX_RESIDUAL * right_norm
    is_solved = (factored.result == Result.SUCCESSFUL) & is_accurate
    return jnp.where(is_solved, _times_power(solution, -factored.exponent), jnp.inf)


@jax.jit
def _log_determinant(factored: Factorisation) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sign of det H, and log|det H| = log det R + log|det K| + d log s."""
    is_successful = factored.result == Result.SUCCESSFUL
    # 1. d log s.
    d = len(factored.regular)
    log_scale = (
        d
        * factored.exponent.astype(factored.regular.dtype)
        * jnp.log(jnp.asarray(2, factored.regular.dtype))
    )
    # 2. log|det K|, by its eigenvalues.
    log_low_rank = jnp.sum(jnp.log(jnp.abs(jnp.where(is_successful, factored.inner, 1))))
    # 3. Its derivatives, from det K = det(I + M VᵀR⁻¹V): Q and T have none for columns of zeros.
    V = factored.columns
    W = product(V.T, jax.scipy.linalg.cho_solve((factored.cholesky, True), V))
    low_rank_matrix = jnp.where(
        is_successful,
        jnp.eye(V.shape[1], dtype=V.dtype) + product(factored.core, W),
        jnp.eye(V.shape[1], dtype=V.dtype),
    )
    log_smooth = jnp.linalg.slogdet(low_rank_matrix)[1] if V.shape[1] else jnp.zeros((), V.dtype)
    log_low_rank = lax.stop_gradient(log_low_rank) + log_smooth - lax.stop_gradient(log_smooth)
    # 4. The sum; R is positive definite, so that the sign is that of det K.
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factored.cholesky))) + log_low_rank + log_scale
    sign = jnp.prod(jnp.sign(factored.inner))
    return jnp.where(is_successful, sign, 0), jnp.where(is_successful, log_det, -jnp.inf)


@jax.jit
def factorise(op: "StructuredOperator") -> Factorisation:
    """Return the factors of a checked operator."""
    # 1. The regular part R = LLᵀ of H/s.
    exponent, A, D, V, M, ridge = _scaled_parts(op)
    d = len(V)
    dtype = V.dtype
    eye = jnp.eye(d, dtype=dtype)
    R = matrices.gram(A, D) + ridge * eye
    is_finite = jnp.isfinite(R).all() & jnp.isfinite(V).all() & jnp.isfinite(M).all()
    cholesky = jnp.linalg.cholesky(jnp.where(is_finite, R, eye))
    # A pivot that is rounding of its diagonal entry: R is singular, though its factor is finite.
    rounding_unit = d * jnp.finfo(dtype).eps
    pivots = jnp.diagonal(cholesky) ** 2
    has_factor = is_finite & jnp.isfinite(cholesky).all()
    is_definite = has_factor & jnp.all(pivots > 4 * rounding_unit * jnp.diagonal(R))
    cholesky = jnp.where(is_definite, cholesky, eye)
    # 2. L⁻¹V = QT and K = I + T M Tᵀ. No derivative goes through Q, T and K: solutions and
    #    determinants have their own.
    columns, core = (jnp.where(is_finite, part, 0) for part in lax.stop_gradient((V, M)))
    Q, T = jnp.linalg.qr(
        jax.scipy.linalg.solve_triangular(lax.stop_gradient(cholesky), columns, lower=True)
    )
    low_rank = product(T, product(core, T.T))
    low_rank = 0.5 * (low_rank + low_rank.T)
    capacitance = jnp.eye(len(T), dtype=dtype) + low_rank
    inner, inner_vectors = jnp.linalg.eigh(capacitance)
    # An eigenvalue of K that is rounding of the terms that cancel in it: H is singular.
    max_term = 1 + jnp.max(jnp.abs(low_rank), initial=0)
    is_regular = jnp.all(jnp.abs(inner) > 4 * rounding_unit * max_term)
    code = jnp.where(is_definite & is_regular, Result.SUCCESSFUL, Result.NOT_DEFINITE)
    factored = Factorisation(
        regular=R,
        cholesky=cholesky,
        columns=V,
        core=M,
        basis=Q,
        capacitance=jnp.where(is_regular, capacitance, jnp.eye(len(T), dtype=dtype)),
        inner=jnp.where(is_regular, inner, 1),
        inner_vectors=inner_vectors,
        exponent=exponent,
        result=jnp.where(is_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32),
    )
    # 3. Test the factors by one solve, whose right-hand side has a component in every direction,
    #    and by the residual of the operator itself. The test allows half of what `solve` allows.
    probe = jnp.cos(jnp.arange(1, d + 1, dtype=dtype) ** 2) * jnp.sqrt(jnp.abs(jnp.diagonal(R)))
    solution = _solve_refined(lax.stop_gradient(factored), lax.stop_gradient(probe))
    z = matrices.times(A, solution)
    z = D * z + product(op.factors, product(M, product(op.factors.T, z)))
    residual = probe - matrices.adjoint(A, z) - ridge * solution
    is_accurate = scaled_norm(residual) <= 0.5 * MAX_RESIDUAL * scaled_norm(probe)
    has_stagnated = (factored.result == Result.SUCCESSFUL) & ~is_accurate
    result = jnp.where(has_stagnated, Result.STAGNATED, factored.result).astype(jnp.int32)
    return dataclasses.replace(factored, result=result)


def _scaled_parts(op: "StructuredOperator") -> tuple[Array, Any, Array, Array, Array, Array]:
    """Return log₂ s, and Â, D̂, ÂᵀU, M̂, ρ̂ with H = s (Âᵀ diag(D̂) Â + (ÂᵀU) M̂ (ÂᵀU)ᵀ + ρ̂ I)."""
    # Exponents are added as integers: the scales themselves may be out of range.
    A = matrices.scale_to_unit(op.matrix)
    entries = matrices.entries(op.matrix)
    ridge = jnp.asarray(op.ridge, op.dtype)
    square_exponent = 2 * _exponent(entries)
    exponent = jnp.maximum(square_exponent + _exponent(op.logit_diagonal), _exponent(ridge))
    exponent = jnp.where(exponent < ZERO_EXPONENT // 2, 0, exponent)
    D = _times_power(op.logit_diagonal, square_exponent - exponent)
    M = _times_power(op.core, square_exponent - exponent)
    return exponent, A, D, matrices.adjoint(A, op.factors), M, _times_power(ridge, -exponent)


def _exponent(x: Float[Array, "..."]) -> Int[Array, ""]:
    """Return ⌊log₂ max|x|⌋, and a very negative number for zeros."""
    exponent = jnp.reshape(binary_exponent(x), ())
    return jnp.where(jnp.any(lax.stop_gradient(x) != 0), exponent, ZERO_EXPONENT)


def _times_power(x: Float[Array, "..."], exponent: Int[Array, ""]) -> Float[Array, "..."]:
    """Return 2^exponent x."""
    # As four factors: the power itself may be out of range where the product is not.
    quarter = jnp.sign(exponent) * (jnp.abs(exponent) // 4)
    for part in (quarter, quarter, quarter, exponent - 3 * quarter):
        x = x * power_of_two(part, x.dtype)
    return x
