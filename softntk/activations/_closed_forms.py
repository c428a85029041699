"""The jets and the Gaussian moments that :mod:`softntk.activations` has in closed form, as plain
functions.

A jet is ``(z, c) -> e^{-c} (u, u', u'')``; a moment of (g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]])
takes ``(q11, q12, q22, s)`` and is multiplied by e^{-s}. E[u'(g₁) u'(g₂)] is the derivative of
E[u(g₁) u(g₂)] in q12. What depends on the angle between g₁ and g₂ takes its sine as a fifth
argument, for those who know more digits of it (:mod:`softntk._linalg.angles`).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from softntk._linalg.angles import (
    angle_to_pi,
    arc_cosine_1,
    cosine,
    half_sqrt_determinant,
    safe_sqrt,
    sine,
)

Scalars = Float[Array, "..."]
Jet = tuple[Scalars, Scalars, Scalars]
Units = tuple[Scalars, Scalars]


# --- shifts
# -------------------------------------------------------------------------------------------------------


def unscale(z: Scalars, c: Scalars | float) -> Scalars:
    return jnp.exp(-jnp.asarray(c, z.dtype))


def no_scale(z: Scalars) -> Scalars:
    return jnp.zeros((*z.shape[:-1], 1), z.dtype)


def largest(z: Scalars) -> Scalars:
    return jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def largest_or_zero(z: Scalars) -> Scalars:
    return jnp.maximum(largest(z), 0)


def largest_modulus(z: Scalars) -> Scalars:
    return largest(jnp.abs(z))


# --- the exponential family: exp, res_exp, cosh, sinh
# -------------------------------------------------------------


def exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    e = jnp.exp(z - c)
    return e, e, e


def res_exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    e, s = jnp.exp(z - c), unscale(z, c)
    return e + z * s, e + s, e


def hyperbolic(z: Scalars, c: Scalars | float) -> tuple[Scalars, Scalars]:
    up, down = 0.5 * jnp.exp(z - c), 0.5 * jnp.exp(-z - c)
    # up - down would cancel near zero; 2 sinh(z) e^{-c} has a form that does not.
    small = jnp.abs(z) < 1
    sinh = jnp.where(small, jnp.sinh(jnp.where(small, z, 0)) * unscale(z, c), up - down)
    return up + down, sinh


def cosh_jet(z: Scalars, c: Scalars | float) -> Jet:
    cosh, sinh = hyperbolic(z, c)
    return cosh, sinh, cosh


def sinh_jet(z: Scalars, c: Scalars | float) -> Jet:
    cosh, sinh = hyperbolic(z, c)
    return sinh, cosh, sinh


def half(q: Scalars) -> Scalars:
    return 0.5 * q


def exp(t: Scalars) -> Scalars:
    """e^t, saturating just below the largest number (a sum of four still fits), so that 0 · e^t is
    0 and not NaN.
    """
    return jnp.exp(jnp.minimum(t, math.log(float(jnp.finfo(t.dtype).max)) - 2))


def exp_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return exp(0.5 * q - s)


def _exponent(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return (q11 + q22)/2 + q12 − s: what the first sum rounds off comes last, when the large
    terms have cancelled.
    """
    a, b = 0.5 * q11, 0.5 * q22
    total = a + b
    part = total - a
    rounded_off = (a - (total - part)) + (b - part)
    return ((total - s) + q12) + rounded_off


def exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return exp(_exponent(q11, q12, q22, s))


def exp_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return e^{q12}, twice."""
    both = exp(q12 + jnp.zeros_like(q11 + q22))
    return both, both


def constants(q11: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """Return E[e^{g₁}] + E[e^{g₂}] + 1: with Stein's E[g₁ e^{g₂}] = q12 E[e^{g₂}], all that z adds
    to e^z.
    """
    return exp(0.5 * q11 - s) + exp(0.5 * q22 - s) + exp(jnp.zeros_like(q11 + q22) - s)


def res_exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    plain = exp_covariance(q11, q12, q22, s) + q12 * constants(q11, q22, s)
    # Where e^{(q11+q22)/2} saturates, two terms of opposite sign would both: there it multiplies
    # their sum.
    half_way = exp(0.5 * _exponent(q11, jnp.zeros_like(q12), q22, s))
    limit = exp(jnp.asarray(jnp.inf, q12.dtype))
    ratio = res_exp_ratios(q11, q12, q22)[0]
    beyond = (half_way >= jnp.sqrt(limit)) & (
        jnp.abs(ratio) > float(jnp.finfo(q12.dtype).tiny) ** 0.5
    )
    return jnp.where(beyond, jnp.clip(ratio * half_way * half_way, -limit, limit), plain)


def res_exp_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return exp_covariance(q11, q12, q22, s) + constants(q11, q22, s)


def res_exp_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return e^{q12} + q12 r and e^{q12} + r, with r = e^{-q11/2} + e^{-q22/2} + e^{-(q11+q22)/2}."""
    decay1, decay2 = jnp.exp(-0.5 * q11), jnp.exp(-0.5 * q22)
    rest = decay1 + decay2 + decay1 * decay2
    return exp(q12) + q12 * rest, exp(q12) + rest


def cosh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return 0.5 * exp_covariance(q11, q12, q22, s) + 0.5 * exp_covariance(q11, -q12, q22, s)


def sinh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # e^{(q11+q22)/2} sinh(q12): the difference of two exponentials would cancel near q12 = 0.
    small = jnp.abs(q12) < 1
    # By halves: the product may fit where the exponential does not, and 0 · e^t is 0.
    half_way = exp(0.5 * _exponent(q11, jnp.zeros_like(q12), q22, s))
    limit = exp(jnp.asarray(jnp.inf, q12.dtype))
    near = jnp.clip(jnp.sinh(jnp.where(small, q12, 0)) * half_way * half_way, -limit, limit)
    size = jnp.abs(q12)
    far = -0.5 * jnp.sign(q12) * exp_covariance(q11, size, q22, s) * jnp.expm1(-2 * size)
    return jnp.where(small, near, far)


def cosh_ratios(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Return cosh(q12) and sinh(q12)."""
    q12 = q12 + jnp.zeros_like(q11 + q22)
    small = jnp.abs(q12) < 1
    up, down = 0.5 * exp(q12), 0.5 * exp(-q12)
    return up + down, jnp.where(small, jnp.sinh(jnp.where(small, q12, 0)), up - down)


# --- relu: the arc-cosine kernels of Cho and Saul (2009)
# ----------------------------------------------------------


def relu_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    return jax.nn.relu(z) * s, (z > 0) * s, jnp.zeros_like(z)


def relu_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return safe_sqrt(q / (2 * jnp.pi)) * unscale(q, s)


def relu_covariance(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    norms, cos, sines = cosine(q11, q12, q22, sines)
    return norms * (arc_cosine_1(cos, sines) / (2 * jnp.pi)) * unscale(q12, s)


def relu_derivative(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    _, cos, sines = cosine(q11, q12, q22, sines)
    return angle_to_pi(cos, sines) / (2 * jnp.pi) * unscale(q12, s)


# --- CRReLU: max(0, z) + ε z e^{-z²/2}
# ------------------------------------------------------------------------------


def crrelu_jet(epsilon: float | Scalars, z: Scalars, c: Scalars | float) -> Jet:
    s, near = unscale(z, c), jnp.clip(z, -1e3, 1e3)  # beyond, the bump is zero
    bump = jnp.asarray(epsilon, z.dtype) * jnp.exp(-0.5 * near**2)
    return (
        (jax.nn.relu(z) + near * bump) * s,
        ((z > 0) + (1 - near**2) * bump) * s,
        near * (near**2 - 3) * bump * s,
    )


def _crrelu_parts(
    q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None
) -> tuple[Scalars, Scalars]:
    """Return what ε has before it in E[u(g₁) u(g₂)], besides relu, over q12; and √D.

    e^{-g²/2} tilts the Gaussian: with it, E[g₁₊ g₂ e^{-g₂²/2}] = q12 (1+q22)^{-3/2} / 2 by Stein,
    and E[g₁ g₂ e^{-(g₁²+g₂²)/2}] = q12 D^{-3/2},  D = (1+q11)(1+q22) − q12².
    """
    first = 0.5 * ((1 + q11) ** -1.5 + (1 + q22) ** -1.5)
    return first, 2 * half_sqrt_determinant(1.0, q11, q12, q22, sines)


def _times_units(
    q11: Scalars, q12: Scalars, q22: Scalars, units: Units | None
) -> tuple[Scalars, Scalars, Scalars]:
    """Return the variances of b g, which may underflow where nothing but their sum with one counts."""
    if units is None:
        return q11, q12, q22
    b1, b2 = units
    return b1 * q11 * b1, b1 * q12 * b2, b2 * q22 * b2


def crrelu_covariance(
    epsilon: float | Scalars,
    q11: Scalars,
    q12: Scalars,
    q22: Scalars,
    s: Scalars | float,
    sines: Scalars | None = None,
    units: Units | None = None,
) -> Scalars:
    # u(b z)/b = z₊ + ε z e^{-(bz)²/2}: units stand in the exponentials only.
    epsilon = jnp.asarray(epsilon, q12.dtype)
    first, root_determinant = _crrelu_parts(*_times_units(q11, q12, q22, units), sines)
    bump = q12 * (epsilon * first + epsilon**2 * root_determinant**-3)
    return relu_covariance(q11, q12, q22, s, sines) + bump * unscale(q12, s)


def crrelu_derivative(
    epsilon: float | Scalars,
    q11: Scalars,
    q12: Scalars,
    q22: Scalars,
    s: Scalars | float,
    sines: Scalars | None = None,
    units: Units | None = None,
) -> Scalars:
    epsilon = jnp.asarray(epsilon, q12.dtype)
    full = _times_units(q11, q12, q22, units)
    first, root_determinant = _crrelu_parts(*full, sines)
    # q12 may be beyond √(q11 q22) where a kernel has exploded; squared over √D twice it still fits.
    second = (
        root_determinant**-3
        + 3 * (full[1] / root_determinant / root_determinant) ** 2 / root_determinant
    )
    return relu_derivative(q11, q12, q22, s, sines) + (
        epsilon * first + epsilon**2 * second
    ) * unscale(q12, s)


# --- threshold: 1 for z > 0
# ---------------------------------------------------------------------------------------


def threshold_jet(z: Scalars, c: Scalars | float) -> Jet:
    zero = jnp.zeros_like(z - c)
    return jnp.where(jnp.isnan(z), z, (z > 0) * unscale(z, c)), zero, zero


def threshold_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.where(q > 0, 0.5, 0).astype(q.dtype) * unscale(q, s)


def threshold_covariance(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    # The slope of relu has these values too. Where a variance is zero, so is u.
    return jnp.where((q11 > 0) & (q22 > 0), relu_derivative(q11, q12, q22, s, sines), 0)


def threshold_derivative(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    return jnp.zeros_like(q11 + q12 + q22 - s)


# --- identity and erf
# ---------------------------------------------------------------------------------------------


def identity_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    return z * s, jnp.ones_like(z) * s, jnp.zeros_like(z)


def erf_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    slope = (2 / math.sqrt(math.pi)) * jnp.exp(-(z**2)) * s
    return erf(z) * s, slope, -2 * jnp.clip(z, -1e3, 1e3) * slope  # beyond, the slope is zero


@jax.custom_jvp
def _erf_covariance(q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars) -> Scalars:
    """Return (2/π) arcsin(2 q12 / √((1 + 2 q11)(1 + 2 q22))) (Williams 1997), as an arctangent:
    nothing cancels.
    """
    return (2 / jnp.pi) * jnp.arctan2(q12, half_sqrt_determinant(2.0, q11, q12, q22, sines))


@_erf_covariance.defjvp
def _erf_covariance_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    q11, q12, q22, _ = primals
    d11, d12, d22, _ = tangents
    around = q12 / (1 + 2 * q11) * d11 + q12 / (1 + 2 * q22) * d22
    return _erf_covariance(*primals), (2 / jnp.pi) / half_sqrt_determinant(2.0, *primals) * (
        d12 - around
    )


def erf_covariance(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    sines = sine(q11, q12, q22) if sines is None else sines
    return _erf_covariance(q11, q12, q22, sines) * unscale(q12, s)


def erf_derivative(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    return (2 / jnp.pi) / half_sqrt_determinant(2.0, q11, q12, q22, sines) * unscale(q12, s)


def identity_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return q12 * unscale(q12, s) * jnp.ones_like(q11 + q22)


def identity_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return unscale(q12, s) * jnp.ones_like(q11 + q12 + q22)


def zero_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.zeros_like(q - s)
