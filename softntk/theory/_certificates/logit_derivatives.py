"""Gradient and Hessian of a regression at a point, with bounds of their rounding errors.

The gradient is evaluated in long double, from formulas that are written out again here: they are
independent of ``regression/_forms.py``, so that a certificate does not rest on the code that it
checks.

Symbols, with z = Ax the logits, α = 1ᵀu their normaliser and w the weights; a modulus is the sum of
the absolute values of the terms that a quantity is a sum of, which its rounding is relative to:

    v    u' (plain, rescaled), u'/α (normalized)                     [n]
    v₂   u'' or u''/α                                                [n]
    f    u/α                                                         [n]
    r    u − b (plain), u − αb (rescaled), f − b (normalized)        [n]
    s    r (plain), r − ⟨b, r⟩1 (rescaled), r − ⟨r, f⟩1 (normalized) [n]
    ∇L   Aᵀ(v∘s + w²∘z)                                              [d]
    ∇²L  Aᵀ(diag(v² + v₂∘s + w²) + rank two)A                        [d, d]
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import EPS, slack
from softntk.activations import Enclosure
from softntk.regression import Problem

LONG_DOUBLE_SLACK = 4 * 64 * float(np.finfo(np.longdouble).eps)
"""Relative rounding of a sum in long double per term, with a safety factor."""

DOUBLE_CONDITION = EPS / float(np.finfo(np.longdouble).eps)
"""How much larger the rounding of a jet is that is evaluated in float64 only."""

LongVector = Float[np.ndarray, " n"]


class Derivatives(NamedTuple):
    """Derivatives of the loss at x₀ with bounds of their errors, in norm.

    Attributes:
        gradient: ∇L, [d].
        gradient_error: above the error of the gradient.
        hessian: ∇²L, [d, d].
        hessian_error: above the error of the Hessian, in spectral norm.
    """

    gradient: Float[np.ndarray, " d"]
    gradient_error: float
    hessian: Float[np.ndarray, "d d"]
    hessian_error: float


class LogitDerivatives(NamedTuple):
    """Factors of the derivatives in the logits, and moduli of those that are sums.

    Attributes:
        v: [n].
        second: v₂, [n].
        second_moduli: of v₂, [n].
        slope_moduli: of v, [n].
        s: [n].
        residual_moduli: of s, [n].
        rank_two_norm: above the norm that the rank-two part adds to ∇²L in the logits.
        condition: how much the rounding of a sum is amplified, by exponentials of large logits and
            by a normaliser that cancels.
    """

    v: LongVector
    second: LongVector
    second_moduli: LongVector
    slope_moduli: LongVector
    s: LongVector
    residual_moduli: LongVector
    rank_two_norm: float
    condition: float


def evaluate_derivatives(p: Problem, x0: Float[np.ndarray, " d"]) -> Derivatives:
    """Return ∇L in long double, rounded at the end, and ∇²L in float64, with their errors."""
    # 1. Logits, and everything that is a function of them.
    A, w, x = (np.asarray(part, np.longdouble) for part in (p.A, p.weights, x0))
    n, d = A.shape
    z = A @ x
    logit_moduli = np.abs(A) @ np.abs(x)
    parts = evaluate_in_logits(p, z)
    # Each entry is a sum over rows of A, of products with sums over its columns.
    term_count = n + d + 64
    relative_error = term_count * LONG_DOUBLE_SLACK * parts.condition
    # 2. The gradient, Aᵀ(v∘s + w²∘z).
    logit_gradient = parts.v * parts.s + w * w * z
    gradient_moduli = parts.slope_moduli * parts.residual_moduli + w * w * np.abs(z)
    gradient = np.asarray(A.T @ logit_gradient, np.float64)
    # 3. The Hessian, Aᵀ(D + U M Uᵀ)A, in float64.
    operator = p.hessian(jnp.asarray(x0))
    diagonal, factors, core = (
        np.asarray(part, np.float64)
        for part in (operator.logit_diagonal, operator.factors, operator.core)
    )
    A64 = np.asarray(p.A)
    projected = A64.T @ factors
    hessian = A64.T @ (diagonal[:, None] * A64) + projected @ core @ projected.T
    # 4. Errors. ‖∇²L‖ in the logits, from moduli, bounds how an error of the logits enters.
    diagonal_moduli = parts.slope_moduli**2 + parts.second_moduli * parts.residual_moduli + w * w
    logit_curvature = float(np.max(diagonal_moduli)) + parts.rank_two_norm
    matrix_norm = float(host_norm(A64))
    sum_error = float(host_norm(np.abs(A.T) @ gradient_moduli)) * relative_error
    logit_error = 1.01 * matrix_norm * logit_curvature * relative_error
    gradient_error = sum_error + logit_error * float(host_norm(logit_moduli))
    return Derivatives(
        gradient=gradient,
        gradient_error=gradient_error + slack(1) * float(host_norm(gradient)),
        hessian=(hessian + hessian.T) / 2,
        hessian_error=slack(term_count) * parts.condition * matrix_norm**2 * logit_curvature,
    )


def evaluate_in_logits(p: Problem, z: LongVector) -> LogitDerivatives:
    """Return the factors of the derivatives at logits z in long double, with their moduli."""
    # 1. The activation; e^{−shift} cancels in u/α and prevents overflow.
    b = np.asarray(p.b, np.longdouble)
    enclosure = p.activation.enclosure
    assert enclosure is not None
    shift = enclosure.shift(z) if p.form == "normalized" else np.zeros(1, np.longdouble)
    jet = enclosure.jet(z, shift)
    u, du, d2u, _ = (np.asarray(part, np.longdouble) for part in jet.values)
    moduli, slope_moduli, second_moduli, _ = (
        np.asarray(part, np.longdouble) for part in jet.moduli
    )
    condition = _condition(enclosure, z, shift)
    # 2. Plain: r = u − b, and no rank-two part.
    if p.form == "plain":
        return LogitDerivatives(
            v=du,
            second=d2u,
            second_moduli=second_moduli,
            slope_moduli=slope_moduli,
            s=u - b,
            residual_moduli=moduli + np.abs(b),
            rank_two_norm=0.0,
            condition=condition,
        )
    alpha = u.sum()
    alpha_modulus = moduli.sum()
    # 3. Rescaled: r = u − αb.
    if p.form == "rescaled":
        r = u - alpha * b
        r_moduli = moduli + alpha_modulus * np.abs(b)
        # The rank-two part is ‖b‖²vvᵀ − v(v∘b)ᵀ − (v∘b)vᵀ: add the norms of its terms.
        slope_square = slope_moduli @ slope_moduli
        target_slopes = slope_moduli * b
        rank_two_norm = slope_square * (b @ b) + 2 * np.sqrt(
            slope_square * (target_slopes @ target_slopes)
        )
        return LogitDerivatives(
            v=du,
            second=d2u,
            second_moduli=second_moduli,
            slope_moduli=slope_moduli,
            s=r - b @ r,
            residual_moduli=r_moduli + np.abs(b) @ r_moduli,
            rank_two_norm=float(rank_two_norm),
            condition=condition,
        )
    # 4. Normalized: f = u/α and r = f − b. A normaliser that cancels costs digits in both factors.
    f = u / alpha
    f_moduli = moduli / abs(alpha)
    v_moduli = slope_moduli / abs(alpha)
    r = f - b
    r_moduli = f_moduli + np.abs(b)
    s_moduli = r_moduli + r_moduli @ f_moduli
    mixed_moduli = v_moduli * (f_moduli + s_moduli)
    #    The rank-two part is ‖f‖²vvᵀ − vmᵀ − mvᵀ, m = v∘(f + s): add the norms of its terms.
    slope_square = v_moduli @ v_moduli
    rank_two_norm = slope_square * (f_moduli @ f_moduli) + 2 * np.sqrt(
        slope_square * (mixed_moduli @ mixed_moduli)
    )
    cancellation = float(alpha_modulus / abs(alpha))
    return LogitDerivatives(
        v=du / alpha,
        second=d2u / alpha,
        second_moduli=second_moduli / abs(alpha),
        slope_moduli=v_moduli,
        s=r - r @ f,
        residual_moduli=s_moduli,
        rank_two_norm=float(rank_two_norm),
        condition=condition * (1 + cancellation) ** 2,
    )


def _condition(enclosure: Enclosure, z: LongVector, shift: Float[np.ndarray, " 1"]) -> float:
    """Return how much the rounding of the logits is amplified by the activation."""
    # Exponentials of z − c, or of −z²; the sums of moduli count everything else.
    condition = float(4 + np.abs(z - shift).max() + np.abs(z).max())
    if enclosure.gaussian:
        condition += 2 * float(np.square(z).max())
    return condition if enclosure.extended else condition * DOUBLE_CONDITION
