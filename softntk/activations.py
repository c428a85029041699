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
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from softntk import _closed_forms as forms
from softntk._closed_forms import Jet, Scalars


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


def _largest(q: Scalars) -> float:
    return 0.25 * float(jnp.finfo(q.dtype).max) ** 0.5


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

    def limit(self, q11: Scalars, q12: Scalars, q22: Scalars, normalized: bool) -> tuple[Scalars, Scalars]:
        r"""What a layer of infinitely many units makes of a Gaussian input: (E[φφ'], E[φ̇φ̇']).

        φ = u, or u / E[u] normalized: the mean over the units, m⁻¹ Σ u, concentrates on E[u].

        Args:
            q11: variance of the input at the first point.
            q12: covariance.
            q22: variance at the second point; all three broadcast.
            normalized: divide by the mean.

        Returns:
            Both kernels; finite wherever the mathematics is, because the shift cancels. +inf where E[u] is zero at this
            variance (relu at q = 0).

        Raises:
            ValueError: normalized, but E[u] = 0.

        Example:
            >>> import jax.numpy as jnp
            >>> q = jnp.asarray([0.5, 0.2, 0.7])
            >>> [round(float(v), 4) for v in get("exp").limit(*q, normalized=True)]  # both e^{q12}
            [1.2214, 1.2214]

        Source: MATH.md section 2.
        """
        moments = self.moments
        if normalized and not moments.positive_mean:
            raise ValueError(
                f"a normalized {self.name!r} layer has no infinite limit: E[u] = 0, so its normaliser does not "
                "concentrate. Use an activation of positive mean, or do not normalize."
            )
        # Products of two stay finite, and so do differences: variances that have exploded saturate, they do not become NaN.
        # Variances that rounding has left below zero are zero.
        q11, q22 = (jnp.clip(q, 0, _largest(q)) for q in (q11, q22))
        q12 = jnp.clip(q12, -_largest(q12), _largest(q12))
        s1, s2 = (moments.growth(q) if normalized else jnp.zeros_like(q) for q in (q11, q22))
        covariance, derivative = moments.covariance(q11, q12, q22, s1 + s2), moments.derivative(q11, q12, q22, s1 + s2)
        if not normalized:
            return covariance, derivative
        total = moments.mean(q11, s1) * moments.mean(q22, s2)
        scale = 1 / jnp.where(total == 0, 1, total)
        return jnp.where(total == 0, jnp.inf, scale * covariance), jnp.where(total == 0, jnp.inf, scale * derivative)


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

    def expect(first: int, second: int, tilted: bool = False) -> Callable[[Scalars, Scalars, Scalars], Scalars]:
        """E[u⁽ⁱ⁾(g₁) u⁽ʲ⁾(g₂)], tilted E[g₁ …]."""

        def moment(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
            _, rho = forms.cosine(q11, q12, q22)
            t, w = _on_last_axis(nodes, q12), jnp.asarray(weights, q12.dtype)
            across = forms.root((1 - rho) * (1 + rho))[..., None] * t

            def add(a: Array, total: Scalars) -> Scalars:
                z1 = forms.root(q11) * t[..., a]
                z2 = forms.root(q22)[..., None] * ((rho * t[..., a])[..., None] + across)
                values = jet(z1, 0.0)[first] * (z1 if tilted else 1)
                return total + w[a] * values * jnp.matmul(jet(z2, 0.0)[second], w)

            return jax.lax.fori_loop(0, order, add, jnp.zeros_like(q12))

        return moment

    # Derivatives by Price: ∂E[f g]/∂q12 = E[f'g'], ∂E[f g]/∂q11 = ½E[f''g]. The quadrature itself has none at equal points,
    # where √(1−ρ²) vanishes. The third derivative of u is left out by Stein: E[g₁ u''u'] = q11 E[(u'')'u'] + q12 E[u''u''].
    @jax.custom_jvp
    def covariance(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
        return expect(0, 0)(q11, q12, q22)

    @covariance.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
        (q11, q12, q22), (d11, d12, d22) = primals, tangents
        around = 0.5 * (expect(2, 0)(q11, q12, q22) * d11 + expect(2, 0)(q22, q12, q11) * d22)
        return covariance(q11, q12, q22), derivative(q11, q12, q22) * d12 + around

    @jax.custom_jvp
    def derivative(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
        return expect(1, 1)(q11, q12, q22)

    @derivative.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
        (q11, q12, q22), (d11, d12, d22) = primals, tangents
        second = expect(2, 2)(q11, q12, q22)

        def third(q: Scalars, other: Scalars) -> Scalars:
            return jnp.where(q > 0, (expect(2, 1, True)(q, q12, other) - q12 * second) / jnp.where(q > 0, q, 1), 0)

        return derivative(q11, q12, q22), second * d12 + 0.5 * (third(q11, q22) * d11 + third(q22, q11) * d22)

    def shifted(moment: Callable) -> Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]:
        return lambda q11, q12, q22, s: moment(*jnp.broadcast_arrays(q11, q12, q22)) * forms.unscale(q12, s)

    def mean(q: Scalars, s: Scalars | float) -> Scalars:
        values = jet(forms.root(q)[..., None] * _on_last_axis(nodes, q), 0.0)[0]
        return jnp.matmul(values, jnp.asarray(weights, q.dtype)) * forms.unscale(q, s)

    with jax.ensure_compile_time_eval():  # whatever is being traced around it
        values = np.asarray(jet(jnp.asarray(nodes, float), 0.0)[0])
    positive = bool(abs(weights @ values) > 1e-5 * (weights @ np.abs(values)))
    return Moments(mean=mean, covariance=shifted(covariance), derivative=shifted(derivative), positive_mean=positive)


def chain(ntk: Scalars, slope: Scalars) -> Scalars:
    """Θ E[φ̇φ̇'] of a layer, from Θ before it; saturates far below infinity, where the next layer's sum would make NaN of it.

    Example:
        >>> import jax.numpy as jnp
        >>> float(chain(jnp.asarray(jnp.inf), jnp.asarray(0.0)))
        0.0
    """
    largest = 1e-6 * float(jnp.finfo(slope.dtype).max)
    return jnp.clip(jnp.where(slope == 0, 0, ntk) * slope, -largest, largest)


def normalize(activation: Activation, z: Scalars) -> Scalars:
    """u(z) / 1ᵀu(z) along the last axis; +inf where 1ᵀu is lost against 1ᵀ|u| in rounding, NaN only if z is.

    Args:
        activation: u.
        z: logits [..., m]; ±1e4 are harmless.

    Returns:
        [..., m], summing to one.

    Example:
        >>> import jax.numpy as jnp
        >>> normalize(get("exp"), jnp.array([1e4, 1e4])).tolist()
        [0.5, 0.5]

    Source: MATH.md section 1 (the shift, and where the domain ends).
    """
    u = activation.jet(z, activation.log_scale(z))[0]
    total = jnp.sum(u, axis=-1, keepdims=True)
    kept = is_kept(u, total)
    return jnp.where(jnp.isnan(total), total, jnp.where(kept, u / jnp.where(kept, total, 1), jnp.inf))


def is_kept(u: Scalars, total: Scalars) -> Bool[Array, "..."]:
    """Whether the normaliser 1ᵀu along the last axis is more than what rounding of 1ᵀ|u| may leave."""
    return jnp.abs(total) > 4 * jnp.finfo(u.dtype).eps * jnp.sum(jnp.abs(u), axis=-1, keepdims=True)


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
        s = forms.unscale(z, c)
        return u(z) * s, d1 * s, d2 * s

    return Activation(name, jet, moments or quadrature_moments(jet), forms.no_scale)


def crrelu(epsilon: float = 0.01) -> Activation:
    """CRReLU, max(0, z) + ε z e^{−z²/2}: relu with a corrected slope on the negative side; "crrelu" in the table has ε = 0.01.

    Args:
        epsilon: ε.

    Returns:
        The activation, its moments in closed form.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(crrelu(0.5).u(jnp.asarray(-1.0))), 4)  # −½ e^{−½}
        -0.3033

    Source: the moments are derived in ``softntk/_closed_forms.py``, by tilting the Gaussian with e^{−g²/2}.
    """
    return _crrelu(float(epsilon))


@lru_cache  # equal activations are one object, so that nothing is compiled again
def _crrelu(epsilon: float) -> Activation:
    moments = Moments(forms.relu_mean, partial(forms.crrelu_covariance, epsilon), partial(forms.crrelu_derivative, epsilon))
    return Activation("crrelu", partial(forms.crrelu_jet, epsilon), moments, forms.no_scale)


# --- the table ----------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation(
            "exp", forms.exp_jet, Moments(forms.exp_mean, forms.exp_covariance, forms.exp_covariance, forms.half), forms.largest
        ),
        Activation(
            "res_exp",
            forms.res_exp_jet,
            Moments(forms.exp_mean, forms.res_exp_covariance, forms.res_exp_derivative, forms.half),
            forms.largest_or_zero,
        ),
        Activation(
            "cosh",
            forms.cosh_jet,
            Moments(forms.exp_mean, forms.cosh_covariance, forms.sinh_covariance, forms.half),
            forms.largest_modulus,
        ),
        Activation(
            "sinh",
            forms.sinh_jet,
            Moments(forms.zero_mean, forms.sinh_covariance, forms.cosh_covariance, forms.half, positive_mean=False),
            forms.largest_modulus,
        ),
        crrelu(),
        Activation(
            "threshold",
            forms.threshold_jet,
            Moments(forms.threshold_mean, forms.threshold_covariance, forms.threshold_derivative),
            forms.no_scale,
        ),
        Activation(
            "relu", forms.relu_jet, Moments(forms.relu_mean, forms.relu_covariance, forms.relu_derivative), forms.no_scale
        ),
        Activation(
            "identity",
            forms.identity_jet,
            Moments(forms.zero_mean, forms.identity_covariance, forms.identity_derivative, positive_mean=False),
            forms.no_scale,
        ),
        Activation(
            "erf",
            forms.erf_jet,
            Moments(forms.zero_mean, forms.erf_covariance, forms.erf_derivative, positive_mean=False),
            forms.no_scale,
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
