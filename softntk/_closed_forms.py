"""The jets and the Gaussian moments that :mod:`softntk.activations` has in closed form, as plain functions.

A jet is ``(z, c) -> e^{-c} (u, u', u'')``; a moment of (g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]]) takes ``(q11, q12, q22, s)``
and is multiplied by e^{-s}. E[u'(g₁) u'(g₂)] is the derivative of E[u(g₁) u(g₂)] in q12.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

Scalars = Float[Array, "..."]
Jet = tuple[Scalars, Scalars, Scalars]


# --- shifts -------------------------------------------------------------------------------------------------------


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


# --- the exponential family: exp, res_exp, cosh, sinh -------------------------------------------------------------


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
    """e^t, saturating just below the largest number (a sum of four still fits), so that 0 · e^t is 0 and not NaN."""
    return jnp.exp(jnp.minimum(t, math.log(float(jnp.finfo(t.dtype).max)) - 2))


def exp_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return exp(0.5 * q - s)


def exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return exp(q12 + (0.5 * (q11 + q22) - s))


def constants(q11: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """E[e^{g₁}] + E[e^{g₂}] + 1: with Stein's E[g₁ e^{g₂}] = q12 E[e^{g₂}], all that z adds to e^z."""
    return exp(0.5 * q11 - s) + exp(0.5 * q22 - s) + exp(jnp.zeros_like(q11 + q22) - s)


def res_exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return exp_covariance(q11, q12, q22, s) + q12 * constants(q11, q22, s)


def res_exp_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return exp_covariance(q11, q12, q22, s) + constants(q11, q22, s)


def cosh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return 0.5 * exp_covariance(q11, q12, q22, s) + 0.5 * exp_covariance(q11, -q12, q22, s)


def sinh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # e^{(q11+q22)/2} sinh(q12), through expm1 because the difference of two exponentials cancels near q12 = 0.
    magnitude = -0.5 * exp_covariance(q11, jnp.abs(q12), q22, s) * jnp.expm1(-2 * jnp.abs(q12))
    return jnp.sign(q12) * magnitude


# --- relu: the arc-cosine kernels of Cho and Saul (2009) ----------------------------------------------------------


def relu_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    return jax.nn.relu(z) * s, (z > 0) * s, jnp.zeros_like(z)


def root(q: Scalars) -> Scalars:
    """√q for q ≥ 0, with a finite derivative (zero) at zero, where the true one is infinite."""
    return jnp.where(q > 0, jnp.sqrt(jnp.where(q > 0, q, 1)), 0)


def cosine(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """(√(q11 q22), cos θ).

    Within a few units of rounding of ±1 the angle is lost (arccos doubles the digits that are missing), so there the
    cosine is *set* to ±1: equal points get the exact kernel instead of one that is wrong by the root of the precision.
    """
    positive = (q11 > 0) & (q22 > 0)
    norms = jnp.sqrt(jnp.where(positive, q11, 1)) * jnp.sqrt(jnp.where(positive, q22, 1))  # a product would underflow
    cos = jnp.where(positive, q12 / norms, 0)
    eps = 8 * jnp.finfo(cos.dtype).eps
    snapped = jnp.where(1 - jnp.abs(cos) < eps, jnp.sign(cos), cos)
    # The value is set, the derivative is not: second derivatives at equal points need it.
    return jnp.where(positive, norms, 0), cos + jax.lax.stop_gradient(snapped - cos)


def angle_left(cos: Scalars) -> Scalars:
    """π − θ, with a finite derivative (zero) at θ = 0 and π, where the true one is infinite."""
    inside = jnp.abs(cos) < 1
    angle = jnp.pi - jnp.arccos(jnp.where(inside, cos, 0))
    return jnp.where(inside, angle, jnp.where(cos > 0, jnp.pi, 0).astype(cos.dtype))


@jax.custom_jvp
def arc_cosine_1(cos: Scalars) -> Scalars:
    """Sin θ + (π − θ) cos θ. Its derivative in cos θ is π − θ; the chain rule through arccos would give ∞ − ∞ at θ = 0."""
    return jnp.sqrt((1 - cos) * (1 + cos)) + angle_left(cos) * cos


@arc_cosine_1.defjvp
def arc_cosine_1_jvp(primals: tuple[Scalars], tangents: tuple[Scalars]) -> tuple[Scalars, Scalars]:
    (cos,), (dcos,) = primals, tangents
    return arc_cosine_1(cos), angle_left(cos) * dcos


def relu_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return root(q / (2 * jnp.pi)) * unscale(q, s)


def relu_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    norms, cos = cosine(q11, q12, q22)
    return norms * arc_cosine_1(cos) / (2 * jnp.pi) * unscale(q12, s)


def relu_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return angle_left(cosine(q11, q12, q22)[1]) / (2 * jnp.pi) * unscale(q12, s)


# --- CRReLU: max(0, z) + ε z e^{-z²/2} ------------------------------------------------------------------------------


def crrelu_jet(epsilon: float, z: Scalars, c: Scalars | float) -> Jet:
    s, near = unscale(z, c), jnp.clip(z, -1e3, 1e3)  # beyond, the bump is zero
    bump = epsilon * jnp.exp(-0.5 * near**2)
    return (jax.nn.relu(z) + near * bump) * s, ((z > 0) + (1 - near**2) * bump) * s, near * (near**2 - 3) * bump * s


def _crrelu_parts(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """Of E[u(g₁) u(g₂)], besides relu's: what ε and ε² stand before, over q12.

    e^{-g²/2} tilts the Gaussian: with it, E[g₁₊ g₂ e^{-g₂²/2}] = q12 (1+q22)^{-3/2} / 2 by Stein, and
    E[g₁ g₂ e^{-(g₁²+g₂²)/2}] = q12 D^{-3/2},  D = (1+q11)(1+q22) − q12² = 1 + q11 + q22 + (q11 q22 − q12²).
    """
    gap = q11 * q22 - q12**2
    gap = jnp.where(gap < 0, 0, gap)  # by rounding
    return 0.5 * ((1 + q11) ** -1.5 + (1 + q22) ** -1.5), 1 + q11 + q22 + gap


def crrelu_covariance(epsilon: float, q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    first, determinant = _crrelu_parts(q11, q12, q22)
    return relu_covariance(q11, q12, q22, s) + q12 * (epsilon * first + epsilon**2 * determinant**-1.5) * unscale(q12, s)


def crrelu_derivative(epsilon: float, q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    first, determinant = _crrelu_parts(q11, q12, q22)
    second = determinant**-1.5 + 3 * q12**2 * determinant**-2.5
    return relu_derivative(q11, q12, q22, s) + (epsilon * first + epsilon**2 * second) * unscale(q12, s)


# --- threshold: 1 for z > 0 ---------------------------------------------------------------------------------------


def threshold_jet(z: Scalars, c: Scalars | float) -> Jet:
    zero = jnp.zeros_like(z - c)
    return jnp.where(jnp.isnan(z), z, (z > 0) * unscale(z, c)), zero, zero


def threshold_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.where(q > 0, 0.5, 0).astype(q.dtype) * unscale(q, s)


def threshold_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # The slope of relu has these values too. Where a variance is zero, so is u.
    return jnp.where((q11 > 0) & (q22 > 0), relu_derivative(q11, q12, q22, s), 0)


def threshold_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return jnp.zeros_like(q11 + q12 + q22 - s)


# --- identity and erf ---------------------------------------------------------------------------------------------


def identity_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    return z * s, jnp.ones_like(z) * s, jnp.zeros_like(z)


def erf_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = unscale(z, c)
    slope = (2 / math.sqrt(math.pi)) * jnp.exp(-(z**2)) * s
    return erf(z) * s, slope, -2 * z * slope


def erf_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # Williams (1997).
    return (2 / jnp.pi) * jnp.arcsin(2 * q12 / jnp.sqrt((1 + 2 * q11) * (1 + 2 * q22))) * unscale(q12, s)


def erf_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return (4 / jnp.pi) / jnp.sqrt((1 + 2 * q11) * (1 + 2 * q22) - 4 * q12**2) * unscale(q12, s)


def identity_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return q12 * unscale(q12, s) * jnp.ones_like(q11 + q22)


def identity_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return unscale(q12, s) * jnp.ones_like(q11 + q12 + q22)


def zero_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.zeros_like(q - s)
