r"""Bounds in the logits z = Ax on a ball, from which ``_bounds.py`` makes those in x.

The proofs are in the docstrings of :mod:`softntk.regression._bounds`. Symbols:

| symbol | meaning | shape |
|---|---|---|
| z | logits at the centre of the ball | [n] |
| α | normaliser 1ᵀu | |
| F, a | norms of the vectors of suprema of u/α and u'/α | |
| m1, m2, m3 | largest suprema of u'/α, u''/α, u'''/α | |
| c, f1, f2, f3 | bounds of the residual and its first three derivatives along a unit vector | |

Everything runs on the host in float64, with margins for what was computed in the dtype of A.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import slack
from softntk.activations import Enclosure, missing_enclosure_reason
from softntk.regression._problem import Problem
from softntk.regression._scaled_products import (
    adjoint_norm,
    bound_singular_values,
    multiply,
)

# Relative error that norms and logits, computed in the precision of A, may have.
ROUNDING_MARGIN = 1e-6
# Units in the last place by which a residual may be off, relative to the numbers it is the
# difference of.
CANCELLATION_ULPS = 1e3


class Ball(NamedTuple):
    """The ball ‖x − c‖ ≤ R, with the logits at its centre.

    Attributes:
        radius: R.
        logits: z = Ac at the centre, [n].
        centre_norm: ‖c‖.
    """

    radius: float
    logits: Float[np.ndarray, " n"]
    centre_norm: float


def _residual_range(p: Problem) -> float:
    """Return o = 1 + max b − min b, which bounds max c − min c for the softmax residual c."""
    b = np.asarray(p.b, np.float64)
    return 1.0 + float(b.max() - b.min())


def softmax_derivative_bounds(p: Problem) -> tuple[float, float, float]:
    """Return bounds of f', ∇²L and ∇³L in the logits for softmax, for any logits."""
    o = _residual_range(p)
    return 0.5, 0.25 + 0.5 * o, math.sqrt(2) * o + 0.592


def negative_curvature(p: Problem, radius: float | None) -> float:
    """Return C ≥ 0 for which ∇²L + C I ≽ 0 in the logits.

    Args:
        p: the problem.
        radius: the radius of a ball around zero, in x; None for a C that holds everywhere, for
            softmax only.
    """
    if radius is None:
        return 0.5 * _residual_range(p)
    c, _, f2, _ = residual_bounds(p, Ball(radius, np.zeros(p.shape[0]), 0.0))
    return multiply(c, f2)


def _logit_interval(
    p: Problem, ball: Ball
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return lower and upper bounds of the logits on the ball."""
    row_norms = np.asarray(matrices.row_norms(p.A), np.float64) * (1 + ROUNDING_MARGIN)
    with np.errstate(over="ignore", invalid="ignore"):
        # The logits at the centre are rounded, relative to ‖a_i‖‖c‖.
        half_width = row_norms * (ball.radius + ROUNDING_MARGIN * ball.centre_norm)
        return ball.logits - half_width, ball.logits + half_width


def bound_normaliser(p: Problem, ball: Ball, shift: float) -> float:
    """Return a lower bound of e^{−shift} α on the ball; −inf where none is known."""
    enclosure = p.activation.enclosure
    if enclosure is None:
        return -math.inf
    z = ball.logits
    radius = ball.radius * (1 + ROUNDING_MARGIN)
    # Rounding may change the logits at the centre by this much.
    max_row_norm = float(np.asarray(matrices.row_norms(p.A), np.float64).max())
    logit_error = ROUNDING_MARGIN * ball.centre_norm * max_row_norm
    with np.errstate(over="ignore", invalid="ignore"):
        if enclosure.exponential_slope is None:
            return _bound_sum(p, enclosure, ball, shift, logit_error)
        exp_sum = _bound_exp_sum(p, z, radius, shift, logit_error)
    if enclosure.exponential_slope == 0:
        return exp_sum
    # e^z + κz adds κΣz, which is linear: it falls by at most ‖Aᵀ1‖R.
    linear_sum = enclosure.exponential_slope * (
        float(z.sum()) - len(z) * logit_error - multiply(adjoint_norm(p, np.ones_like(z)), radius)
    )
    return exp_sum + multiply(math.exp(-shift), abs(linear_sum)) * math.copysign(1, linear_sum)


def _bound_sum(
    p: Problem, enclosure: Enclosure, ball: Ball, shift: float, logit_error: float
) -> float:
    """Return a lower bound of e^{−shift} Σu: Σ min u, and Σu(Ac) − ‖Aᵀu'(Ac)‖R for convex u."""
    # 1. The sum of the least values on the intervals of the logits.
    lower, upper = _logit_interval(p, ball)
    least = enclosure.bounds(lower, upper, shift, orders=(0,))[0].lower
    interval_sum = _sum_below(least, slack(len(least)) * np.abs(least))
    if not enclosure.convex:
        return interval_sum
    # 2. The tangent at the centre, which lies below a convex function.
    jet = enclosure.jet(ball.logits, shift)
    slopes = jet.values[1]
    centre_sum = _sum_below(jet.values[0], ROUNDING_MARGIN * jet.moduli[0])
    if not math.isfinite(centre_sum):
        return math.inf if centre_sum > 0 else interval_sum
    max_decrease = multiply(adjoint_norm(p, slopes), ball.radius * (1 + ROUNDING_MARGIN))
    max_decrease += multiply(float(np.abs(slopes).sum()), logit_error)
    return max(interval_sum, centre_sum - max_decrease)


def _sum_below(values: Float[np.ndarray, " n"], errors: Float[np.ndarray, " n"]) -> float:
    """Return a lower bound of the sum of values with these errors; −inf where it is not known."""
    total = float(values.sum())
    return -math.inf if math.isnan(total) else total - float(errors.sum())


def _bound_exp_sum(
    p: Problem, z: Float[np.ndarray, " n"], radius: float, shift: float, logit_error: float
) -> float:
    """Return a lower bound of e^{−shift} Σ e^z: α(c) e^{−‖Aᵀf‖R}, f the softmax of z."""
    max_logit = float(z.max())
    powers = np.exp(z - max_logit)
    # Logits of zero have no rounding error.
    centre_sum = float(powers.sum()) * (1 - ROUNDING_MARGIN * z.any())
    log_decrease = multiply(adjoint_norm(p, powers / powers.sum()), radius) + logit_error
    return centre_sum * float(np.exp(max_logit - shift - log_decrease))


def residual_bounds(p: Problem, ball: Ball) -> list[float]:
    """Return bounds of the residual and its first three derivatives along a unit vector of logits.

    Each is infinite where nothing is known.
    """
    _check_enclosure(p)
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = _residual_bounds_or_nan(p, ball)
    return [math.inf if math.isnan(bound) else float(bound) for bound in bounds]


def _check_enclosure(p: Problem) -> Enclosure:
    """Return the enclosure of the activation, whose slope must not jump."""
    enclosure = p.activation.enclosure
    if enclosure is None:
        raise ValueError(
            f"p must have another activation. {missing_enclosure_reason(p.activation)}"
        )
    if enclosure.jumps:
        raise ValueError(
            "p must have another activation: there are no bounds for "
            f"{p.activation.name!r}, whose slope jumps, so that its Hessian has no Lipschitz "
            "constant."
        )
    return enclosure


def _residual_bounds_or_nan(p: Problem, ball: Ball) -> tuple:
    """Return :func:`residual_bounds`, NaN where infinities are subtracted or divided."""
    # 1. Suprema of u and its derivatives, scaled where only u/α counts.
    enclosure = _check_enclosure(p)
    shift = float(enclosure.shift(ball.logits)[0]) if p.form == "normalized" else 0.0
    u, du, d2u, d3u = enclosure.suprema(*_logit_interval(p, ball), shift)
    b_norm = float(host_norm(np.asarray(p.b, np.float64)))
    # 2. Rescaled and plain residuals are linear in u. They are u − αb and u − b, so that b counts
    #    in the derivatives of the first only.
    if p.form != "normalized":
        is_rescaled = p.form == "rescaled"
        derivative_b = b_norm if is_rescaled else 0.0
        return (
            host_norm(u) + b_norm * (float(u.sum()) if is_rescaled else 1.0),
            du.max() + multiply(derivative_b, float(host_norm(du))),
            d2u.max() * (1 + derivative_b),
            d3u.max() * (1 + derivative_b),
        )
    # 3. Normalized: by the derivatives of u/α.
    alpha = np.float64(bound_normaliser(p, ball, shift))
    if not alpha > 0:
        return (math.inf,) * 4
    F, a = (host_norm(part) / alpha for part in (u, du))
    m1, m2, m3 = (part.max() / alpha for part in (du, d2u, d3u))
    return (
        F + b_norm,
        m1 + F * a,
        m2 + 2 * m1 * a + F * (m2 + 2 * a**2),
        m3 + 3 * m2 * a + 3 * m1 * m2 + 6 * m1 * a**2 + F * (m3 + 6 * a * m2 + 6 * a**3),
    )


def loss_derivative_bounds(
    p: Problem, ball: Ball, centre: Float[Array | np.ndarray, " d"] | None
) -> tuple[float, float, float]:
    """Return bounds of the first derivative of predict, of ∇²L and of ∇³L, in the logits.

    The weights are not counted.
    """
    # 1. The derivative of predict: that of u itself, unless normalized.
    c, f1, f2, f3 = residual_bounds(p, ball)
    predict = f1
    if p.form != "normalized":
        with np.errstate(over="ignore", invalid="ignore"):
            du_suprema = _check_enclosure(p).suprema(*_logit_interval(p, ball), 0.0).du
        predict = float(np.nan_to_num(du_suprema, nan=math.inf).max())
    if not np.isfinite([f1, f2, f3]).all():
        return predict, math.inf, math.inf
    # 2. Another bound of the residual: its norm at the centre, with the rounding error of the
    #    difference, plus the most that it changes on the ball.
    x = jnp.zeros(p.shape[1], p.dtype) if centre is None else jnp.asarray(centre, p.dtype)
    centre_residual = float(host_norm(np.asarray(p.residual(x), np.float64)))
    with np.errstate(over="ignore", invalid="ignore"):
        rounding_error = CANCELLATION_ULPS * float(np.finfo(p.dtype).eps) * c
        centre_bound = centre_residual * (1 + ROUNDING_MARGIN) + rounding_error
        c = min(c, centre_bound + multiply(f1, bound_singular_values(p)[0], ball.radius))
        # 3. The product rule on ½‖r‖².
        return predict, multiply(f1, f1) + multiply(c, f2), multiply(c, f3) + 3 * multiply(f1, f2)
