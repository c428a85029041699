"""Closed forms for exp, res_exp, cosh and sinh: jets, shifts and Gaussian moments.

The symbols are those of :mod:`softntk.activations._closed_forms`. Every function here grows like
e^{|z|}, so jets are shifted by the largest logit of a row, and moments by ``growth(q) = q/2``.
"""

import math

import jax
import jax.numpy as jnp

from softntk.activations._closed_forms import Jet, Scalars, unscale

# Distance of the exponent of a saturated exponential from that of the largest number. As e² > 4,
# the sum of four such exponentials does not overflow.
SATURATION_MARGIN = 2


# --- shifts: e^{-c} u(z) is of order one along the row ---


def row_maximum(z: Scalars) -> Scalars:
    """Return max z of every row, without a gradient."""
    return jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def row_maximum_or_zero(z: Scalars) -> Scalars:
    """Return max(0, max z) of every row."""
    return jnp.maximum(row_maximum(z), 0)


def row_maximum_modulus(z: Scalars) -> Scalars:
    """Return max |z| of every row."""
    return row_maximum(jnp.abs(z))


# --- jets ---


def exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    """Return the jet of e^z."""
    e = jnp.exp(z - c)
    return e, e, e


def res_exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    """Return the jet of e^z + z."""
    e = jnp.exp(z - c)
    scale = unscale(z, c)
    return e + z * scale, e + scale, e


def hyperbolic(z: Scalars, c: Scalars | float) -> tuple[Scalars, Scalars]:
    """Return e^{-c} cosh(z) and e^{-c} sinh(z)."""
    half_exp = 0.5 * jnp.exp(z - c)
    half_exp_minus = 0.5 * jnp.exp(-z - c)
    sinh = _accurate_sinh(z, half_exp - half_exp_minus, unscale(z, c))
    return half_exp + half_exp_minus, sinh


def _accurate_sinh(z: Scalars, difference: Scalars, scale: Scalars | float) -> Scalars:
    """Return scale · sinh z: the difference of two exponentials, but not where it cancels."""
    near_zero = jnp.abs(z) < 1
    return jnp.where(near_zero, jnp.sinh(jnp.where(near_zero, z, 0)) * scale, difference)


def cosh_jet(z: Scalars, c: Scalars | float) -> Jet:
    """Return the jet of cosh z."""
    cosh, sinh = hyperbolic(z, c)
    return cosh, sinh, cosh


def sinh_jet(z: Scalars, c: Scalars | float) -> Jet:
    """Return the jet of sinh z."""
    cosh, sinh = hyperbolic(z, c)
    return sinh, cosh, sinh


# --- Gaussian moments ---


def half_variance(q: Scalars) -> Scalars:
    """Return q/2, the growth of the exponential family: log E[e^g] for g ~ N(0, q)."""
    return 0.5 * q


def saturated_exp(t: Scalars) -> Scalars:
    """Return e^t, saturated just below the largest number, so that 0 · e^t is 0 and not NaN."""
    largest_exponent = math.log(float(jnp.finfo(t.dtype).max)) - SATURATION_MARGIN
    return jnp.exp(jnp.minimum(t, largest_exponent))


def exp_mean(q: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[e^g] = e^{q/2 − s}."""
    return saturated_exp(0.5 * q - s)


def _exponent(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return (q11 + q22)/2 + q12 − s, with the rounding error of the first sum added last.

    The error is computed exactly (Knuth's two-sum). It is added when the large terms have
    cancelled, where it is no longer lost.
    """
    a = 0.5 * q11
    b = 0.5 * q22
    total = a + b
    b_as_added = total - a
    rounding_error = (a - (total - b_as_added)) + (b - b_as_added)
    return ((total - s) + q12) + rounding_error


def exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[e^{g₁} e^{g₂}] = e^{(q11 + q22)/2 + q12 − s}."""
    return saturated_exp(_exponent(q11, q12, q22, s))


def exp_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return covariance and derivative of e^z over the means: e^{q12}, both."""
    ratio = saturated_exp(q12 + jnp.zeros_like(q11 + q22))
    return ratio, ratio


def residual_factor(q11: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return r = e^{-s} (E[e^{g₁}] + E[e^{g₂}] + 1), which the summand z of res_exp contributes.

    Stein's lemma gives E[g₁ e^{g₂}] = q12 E[e^{g₂}] and E[g₁ g₂] = q12, so the covariance of
    e^z + z is that of e^z plus q12 r, and the derivative is that of e^z plus r.
    """
    constant = saturated_exp(jnp.zeros_like(q11 + q22) - s)
    return saturated_exp(0.5 * q11 - s) + saturated_exp(0.5 * q22 - s) + constant


def res_exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[u(g₁) u(g₂)] for u = e^z + z."""
    direct = exp_covariance(q11, q12, q22, s) + q12 * residual_factor(q11, q22, s)
    # Where e^{(q11+q22)/2} saturates, two terms of opposite sign would both saturate. There their
    # sum, the ratio, is multiplied by the square root of that exponential, twice.
    root_scale = saturated_exp(0.5 * _exponent(q11, jnp.zeros_like(q12), q22, s))
    largest_exp = saturated_exp(jnp.asarray(jnp.inf, q12.dtype))
    ratio = res_exp_ratios(q11, q12, q22)[0]
    saturates = (root_scale >= jnp.sqrt(largest_exp)) & (
        jnp.abs(ratio) > float(jnp.finfo(q12.dtype).tiny) ** 0.5
    )
    from_ratio = jnp.clip(ratio * root_scale * root_scale, -largest_exp, largest_exp)
    return jnp.where(saturates, from_ratio, direct)


def res_exp_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[u'(g₁) u'(g₂)] for u = e^z + z."""
    return exp_covariance(q11, q12, q22, s) + residual_factor(q11, q22, s)


def res_exp_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return covariance and derivative of e^z + z over the means: e^{q12} + q12 ρ and e^{q12} + ρ.

    ρ = e^{-q11/2} + e^{-q22/2} + e^{-(q11+q22)/2}.
    """
    decay1 = jnp.exp(-0.5 * q11)
    decay2 = jnp.exp(-0.5 * q22)
    residual_ratio = decay1 + decay2 + decay1 * decay2
    return (
        saturated_exp(q12) + q12 * residual_ratio,
        saturated_exp(q12) + residual_ratio,
    )


def cosh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[cosh g₁ cosh g₂] = e^{(q11 + q22)/2 − s} cosh(q12)."""
    return 0.5 * exp_covariance(q11, q12, q22, s) + 0.5 * exp_covariance(q11, -q12, q22, s)


def sinh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[sinh g₁ sinh g₂] = e^{(q11 + q22)/2 − s} sinh(q12)."""
    # 1. Near q12 = 0 the difference of two exponentials would cancel. There sinh(q12) is multiplied
    #    by the square root of the exponential, twice: the product may fit where the exponential
    #    does not, and 0 · e^t is 0.
    near_zero = jnp.abs(q12) < 1
    root_scale = saturated_exp(0.5 * _exponent(q11, jnp.zeros_like(q12), q22, s))
    largest_exp = saturated_exp(jnp.asarray(jnp.inf, q12.dtype))
    sinh_near_zero = jnp.sinh(jnp.where(near_zero, q12, 0))
    product = jnp.clip(sinh_near_zero * root_scale * root_scale, -largest_exp, largest_exp)
    # 2. Away from it: sinh t = sign(t) e^{|t|} (1 − e^{-2|t|}) / 2.
    modulus = jnp.abs(q12)
    half_difference = (
        -0.5 * jnp.sign(q12) * exp_covariance(q11, modulus, q22, s) * jnp.expm1(-2 * modulus)
    )
    return jnp.where(near_zero, product, half_difference)


def cosh_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return covariance and derivative of cosh over the means: cosh(q12) and sinh(q12)."""
    q12 = q12 + jnp.zeros_like(q11 + q22)
    half_exp = 0.5 * saturated_exp(q12)
    half_exp_minus = 0.5 * saturated_exp(-q12)
    return half_exp + half_exp_minus, _accurate_sinh(q12, half_exp - half_exp_minus, 1.0)
