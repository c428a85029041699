"""Scalar activations u with their derivatives and Gaussian moments: the object under every network and regression.

An :class:`Activation` answers two questions, both in a form that does not overflow:

- ``jet(z, c)`` is ``e^{-c} (u, u', u'')`` at z, for a shift c that ``log_scale(z)`` proposes, one number a row.
  In a normalized quantity such as ``u / 1ᵀu`` the shift cancels, so logits of ±1e4 are harmless.
- ``moments`` are Gaussian expectations times ``e^{-s}``, for a shift s that ``growth(q)`` proposes: in the ratios that
  the infinite limit of a normalized network consists of it cancels, and they stay finite.

``ACTIVATIONS`` is the table of them; a new activation is one entry, and everything in softntk works for it.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import activations
    >>> res_exp = activations.get("res_exp")
    >>> float(res_exp.u(jnp.zeros(()))), float(res_exp.du(jnp.zeros(())))
    (1.0, 2.0)
    >>> swish = activations.from_function(lambda z: z / (1 + jnp.exp(-z)), "swish")
    >>> round(float(swish.moments.mean(jnp.ones(()), 0.0)), 4)  # E[swish(g)], g ~ N(0, 1), by quadrature
    0.2066
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

Scalars = Float[Array, "..."]
Jet = tuple[Scalars, Scalars, Scalars]


@dataclass(frozen=True)
class Moments:
    """Gaussian moments of u: what an infinitely wide layer sees.

    For ``(g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]])``, ``g ~ N(0, q)`` and any shift s,

    - ``mean(q, s)``                      = e^{-s} E[u(g)]
    - ``covariance(q11, q12, q22, s)``    = e^{-s} E[u(g₁) u(g₂)]
    - ``derivative(q11, q12, q22, s)``    = e^{-s} E[u'(g₁) u'(g₂)]

    Arguments broadcast. ``growth(q)`` is the shift for which ``mean`` is of order one: q/2 for the exponential family,
    zero for everything of polynomial growth; ``growth(q11) + growth(q22)`` serves the other two.
    What does not fit the precision even so saturates near its largest number.
    """

    mean: Callable[[Scalars, Scalars | float], Scalars]
    covariance: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    derivative: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    growth: Callable[[Scalars], Scalars] = jnp.zeros_like
    positive_mean: bool = True
    """False where E[u] = 0 for every q (odd functions): then a normalized layer has no infinite limit."""


@dataclass(frozen=True)
class Activation:
    """An activation u with u' and u'', safe against overflow, and its Gaussian moments.

    Attributes:
        name: as it appears in the table and in messages.
        jet: ``(z, c) -> e^{-c} (u(z), u'(z), u''(z))``, elementwise; c broadcasts against z.
        log_scale: ``z [..., m] -> c [..., 1]``, the shift for which e^{-c} u(z) is of order one along the last axis.
            Zero for functions that do not overflow. It carries no gradient: nothing depends on it but rounding.
        moments: the :class:`Moments` of u.
    """

    name: str
    jet: Callable[[Scalars, Scalars | float], Jet]
    moments: Moments
    log_scale: Callable[[Scalars], Scalars]

    def u(self, z: Scalars) -> Scalars:
        """The function itself, elementwise."""
        return self.jet(z, 0.0)[0]

    def du(self, z: Scalars) -> Scalars:
        """Its first derivative u', elementwise."""
        return self.jet(z, 0.0)[1]

    def d2u(self, z: Scalars) -> Scalars:
        """Its second derivative u'', elementwise."""
        return self.jet(z, 0.0)[2]


# --- shifts -------------------------------------------------------------------------------------------------------


def _unscale(z: Scalars, c: Scalars | float) -> Scalars:
    return jnp.exp(-jnp.asarray(c, z.dtype))


def _no_scale(z: Scalars) -> Scalars:
    return jnp.zeros((*z.shape[:-1], 1), z.dtype)


def _largest(z: Scalars) -> Scalars:
    return jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def _largest_or_zero(z: Scalars) -> Scalars:
    return jnp.maximum(_largest(z), 0)


def _largest_modulus(z: Scalars) -> Scalars:
    return _largest(jnp.abs(z))


# --- the exponential family: exp, res_exp, cosh, sinh -------------------------------------------------------------


def _exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    e = jnp.exp(z - c)
    return e, e, e


def _res_exp_jet(z: Scalars, c: Scalars | float) -> Jet:
    e, s = jnp.exp(z - c), _unscale(z, c)
    return e + z * s, e + s, e


def _hyperbolic(z: Scalars, c: Scalars | float) -> tuple[Scalars, Scalars]:
    up, down = 0.5 * jnp.exp(z - c), 0.5 * jnp.exp(-z - c)
    # up - down would cancel near zero; 2 sinh(z) e^{-c} has a form that does not.
    small = jnp.abs(z) < 1
    sinh = jnp.where(small, jnp.sinh(jnp.where(small, z, 0)) * _unscale(z, c), up - down)
    return up + down, sinh


def _cosh_jet(z: Scalars, c: Scalars | float) -> Jet:
    cosh, sinh = _hyperbolic(z, c)
    return cosh, sinh, cosh


def _sinh_jet(z: Scalars, c: Scalars | float) -> Jet:
    cosh, sinh = _hyperbolic(z, c)
    return sinh, cosh, sinh


def _half(q: Scalars) -> Scalars:
    return 0.5 * q


def _exp(t: Scalars) -> Scalars:
    """e^t, saturating just below the largest number (a sum of four still fits), so that 0 · e^t is 0 and not NaN."""
    return jnp.exp(jnp.minimum(t, math.log(float(jnp.finfo(t.dtype).max)) - 2))


def _exp_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return _exp(0.5 * q - s)


def _exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return _exp(q12 + (0.5 * (q11 + q22) - s))


def _constants(q11: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    """E[e^{g₁}] + E[e^{g₂}] + 1: with Stein's E[g₁ e^{g₂}] = q12 E[e^{g₂}], all that z adds to e^z."""
    return _exp(0.5 * q11 - s) + _exp(0.5 * q22 - s) + _exp(jnp.zeros_like(q11 + q22) - s)


def _res_exp_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return _exp_covariance(q11, q12, q22, s) + q12 * _constants(q11, q22, s)


def _res_exp_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return _exp_covariance(q11, q12, q22, s) + _constants(q11, q22, s)


def _cosh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return 0.5 * _exp_covariance(q11, q12, q22, s) + 0.5 * _exp_covariance(q11, -q12, q22, s)


def _sinh_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # e^{(q11+q22)/2} sinh(q12), through expm1 because the difference of two exponentials cancels near q12 = 0.
    magnitude = -0.5 * _exp_covariance(q11, jnp.abs(q12), q22, s) * jnp.expm1(-2 * jnp.abs(q12))
    return jnp.sign(q12) * magnitude


# --- relu: the arc-cosine kernels of Cho and Saul (2009) ----------------------------------------------------------


def _relu_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = _unscale(z, c)
    return jax.nn.relu(z) * s, (z > 0) * s, jnp.zeros_like(z)


def _cosine(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars]:
    """(√(q11 q22), cos θ).

    Within a few units of rounding of ±1 the angle is lost (arccos doubles the digits that are missing), so there the
    cosine is *set* to ±1: equal points get the exact kernel instead of one that is wrong by the root of the precision.
    """
    norms = jnp.sqrt(jnp.where(q11 * q22 > 0, q11 * q22, 1))
    cos = jnp.where(q11 * q22 > 0, q12 / norms, 0)
    eps = 8 * jnp.finfo(cos.dtype).eps
    cos = jnp.where(1 - jnp.abs(cos) < eps, jnp.sign(cos), cos)
    return jnp.where(q11 * q22 > 0, norms, 0), cos


def _angle_left(cos: Scalars) -> Scalars:
    """π − θ, with a finite derivative (zero) at θ = 0 and π, where the true one is infinite."""
    inside = jnp.abs(cos) < 1
    angle = jnp.pi - jnp.arccos(jnp.where(inside, cos, 0))
    return jnp.where(inside, angle, jnp.where(cos > 0, jnp.pi, 0).astype(cos.dtype))


@jax.custom_jvp
def _arc_cosine_1(cos: Scalars) -> Scalars:
    """Sin θ + (π − θ) cos θ. Its derivative in cos θ is π − θ; the chain rule through arccos would give ∞ − ∞ at θ = 0."""
    return jnp.sqrt((1 - cos) * (1 + cos)) + _angle_left(cos) * cos


@_arc_cosine_1.defjvp
def _arc_cosine_1_jvp(primals: tuple[Scalars], tangents: tuple[Scalars]) -> tuple[Scalars, Scalars]:
    (cos,), (dcos,) = primals, tangents
    return _arc_cosine_1(cos), _angle_left(cos) * dcos


def _relu_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.sqrt(q / (2 * jnp.pi)) * _unscale(q, s)


def _relu_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    norms, cos = _cosine(q11, q12, q22)
    return norms * _arc_cosine_1(cos) / (2 * jnp.pi) * _unscale(q12, s)


def _relu_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return _angle_left(_cosine(q11, q12, q22)[1]) / (2 * jnp.pi) * _unscale(q12, s)


# --- identity and erf ---------------------------------------------------------------------------------------------


def _identity_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = _unscale(z, c)
    return z * s, jnp.ones_like(z) * s, jnp.zeros_like(z)


def _erf_jet(z: Scalars, c: Scalars | float) -> Jet:
    s = _unscale(z, c)
    slope = (2 / math.sqrt(math.pi)) * jnp.exp(-(z**2)) * s
    return erf(z) * s, slope, -2 * z * slope


def _erf_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    # Williams (1997).
    return (2 / jnp.pi) * jnp.arcsin(2 * q12 / jnp.sqrt((1 + 2 * q11) * (1 + 2 * q22))) * _unscale(q12, s)


def _erf_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return (4 / jnp.pi) / jnp.sqrt((1 + 2 * q11) * (1 + 2 * q22) - 4 * q12**2) * _unscale(q12, s)


def _identity_covariance(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return q12 * _unscale(q12, s) * jnp.ones_like(q11 + q22)


def _identity_derivative(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
    return _unscale(q12, s) * jnp.ones_like(q11 + q12 + q22)


def _zero_mean(q: Scalars, s: Scalars | float) -> Scalars:
    return jnp.zeros_like(q - s)


# --- any other function: quadrature -------------------------------------------------------------------------------


def _on_last_axis(nodes: np.ndarray, like: Scalars) -> Scalars:
    return jnp.asarray(nodes, like.dtype).reshape((1,) * like.ndim + (-1,))


def quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int = 48) -> Moments:
    """Gaussian moments by Gauss–Hermite quadrature, for an activation without closed forms (growth zero).

    E[φ(g₁, g₂)] = Σ_ab ω_a ω_b φ(√q11 t_a, √q22 (ρ t_a + √(1−ρ²) t_b)),  ρ = q12/√(q11 q22).

    Args:
        jet: ``(z, c) -> e^{-c}(u, u', u'')``.
        order: nodes a dimension. Analytic functions converge geometrically; a kink costs accuracy (about 1/order).

    Returns:
        The :class:`Moments`; arrays of any shape cost order² evaluations an entry, in memory order at a time.

    Raises:
        ValueError: order is not positive.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}.")
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)

    def expect(which: int) -> Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]:
        def moment(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
            q11, q12, q22 = jnp.broadcast_arrays(q11, q12, q22)
            _, rho = _cosine(q11, q12, q22)
            t, w = _on_last_axis(nodes, q12), jnp.asarray(weights, q12.dtype)
            across = jnp.sqrt((1 - rho) * (1 + rho))[..., None] * t

            def add(a: Array, total: Scalars) -> Scalars:
                z1 = jnp.sqrt(q11) * t[..., a]
                z2 = jnp.sqrt(q22)[..., None] * ((rho * t[..., a])[..., None] + across)
                return total + w[a] * jet(z1, 0.0)[which] * jnp.matmul(jet(z2, 0.0)[which], w)

            return jax.lax.fori_loop(0, order, add, jnp.zeros_like(q12)) * _unscale(q12, s)

        return moment

    def mean(q: Scalars, s: Scalars | float) -> Scalars:
        values = jet(jnp.sqrt(q)[..., None] * _on_last_axis(nodes, q), 0.0)[0]
        return jnp.matmul(values, jnp.asarray(weights, q.dtype)) * _unscale(q, s)

    return Moments(mean=mean, covariance=expect(0), derivative=expect(1))


def from_function(
    u: Callable[[Scalars], Scalars],
    name: str,
    moments: Moments | None = None,
) -> Activation:
    """An :class:`Activation` from any elementwise function: u', u'' by forward-mode differentiation, moments by quadrature.

    Args:
        u: elementwise, twice differentiable almost everywhere. It is evaluated as it is, so a function of exponential
            growth that must survive huge logits deserves a jet of its own, like those in this file.
        name: for messages.
        moments: closed forms, where you have them; otherwise :func:`quadrature_moments`.

    Returns:
        The activation, ready for ``networks.two_layer(activation=…)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> softplus = from_function(jax.nn.softplus, "softplus")
        >>> float(softplus.du(jnp.zeros(())))
        0.5
    """

    def jet(z: Scalars, c: Scalars | float) -> Jet:
        def slope(z: Scalars) -> Scalars:
            return jax.jvp(u, (z,), (jnp.ones_like(z),))[1]

        d1, d2 = jax.jvp(slope, (z,), (jnp.ones_like(z),))
        s = _unscale(z, c)
        return u(z) * s, d1 * s, d2 * s

    return Activation(name, jet, moments or quadrature_moments(jet), _no_scale)


# --- the table ----------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("exp", _exp_jet, Moments(_exp_mean, _exp_covariance, _exp_covariance, _half), _largest),
        Activation(
            "res_exp",
            _res_exp_jet,
            Moments(_exp_mean, _res_exp_covariance, _res_exp_derivative, _half),
            _largest_or_zero,
        ),
        Activation(
            "cosh",
            _cosh_jet,
            Moments(_exp_mean, _cosh_covariance, _sinh_covariance, _half),
            _largest_modulus,
        ),
        Activation(
            "sinh",
            _sinh_jet,
            Moments(_zero_mean, _sinh_covariance, _cosh_covariance, _half, positive_mean=False),
            _largest_modulus,
        ),
        Activation("relu", _relu_jet, Moments(_relu_mean, _relu_covariance, _relu_derivative), _no_scale),
        Activation(
            "identity",
            _identity_jet,
            Moments(_zero_mean, _identity_covariance, _identity_derivative, positive_mean=False),
            _no_scale,
        ),
        Activation(
            "erf",
            _erf_jet,
            Moments(_zero_mean, _erf_covariance, _erf_derivative, positive_mean=False),
            _no_scale,
        ),
    )
}
"""Every named activation; ``ACTIVATIONS["mine"] = …`` makes a new one known to the whole library."""


def get(activation: str | Activation) -> Activation:
    """The activation of that name, or the activation itself.

    Raises:
        ValueError: the name is not in ``ACTIVATIONS``; the message lists the known ones and suggests the nearest.
    """
    if isinstance(activation, Activation):
        return activation
    if activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    raise ValueError(unknown("activation", activation, ACTIVATIONS))


def unknown(what: str, name: object, known: Mapping[str, object]) -> str:
    """The message for a name that is in no table: what was got, what there is, and the nearest to it."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} must be one of {sorted(known)}, got {name!r}.{hint}"
