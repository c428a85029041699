"""Gaussian moments of an activation: the record of them, and quadrature for functions that have no closed forms."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk import _closed_forms as forms
from softntk._angles import cosine, root
from softntk._closed_forms import Jet, Scalars
from softntk._validation import as_scalars, check_callable, check_positive_int


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
    ratios: Callable[[Scalars, Scalars, Scalars], tuple[Scalars, Scalars]] | None = None
    """``(q11, q12, q22)`` -> covariance and derivative over E[u(g₁)] E[u(g₂)], where a closed form is better than dividing."""
    angular: bool = False
    """Covariance and derivative take the sine of the angle between g₁ and g₂ as a fifth argument; None: that of the q's."""
    degree: int | None = None
    """Where u(c z) = c^degree u(z) for c > 0: then kernels of networks do not depend on the unit of the points."""

    def __post_init__(self) -> None:
        """Let the moments take Python numbers as well as arrays."""
        for field, names in _VARIANCES.items():
            moment = getattr(self, field)
            if not isinstance(moment, _Moment):
                object.__setattr__(self, field, _Moment(check_callable(field, moment), names))


_VARIANCES = {
    "mean": ("q",),
    "growth": ("q",),
    "covariance": ("q11", "q12", "q22"),
    "derivative": ("q11", "q12", "q22"),
}


@dataclass(frozen=True)
class _Moment:
    """A function of variances, which are converted to arrays of one dtype; equal for equal functions."""

    function: Callable
    names: tuple[str, ...]

    def __call__(self, *args: Any) -> Scalars:
        count = len(self.names)
        return self.function(*as_scalars(**dict(zip(self.names, args[:count], strict=True))), *args[count:])


# --- any other function: quadrature -------------------------------------------------------------------------------


def _on_last_axis(nodes: np.ndarray, like: Scalars) -> Scalars:
    return jnp.asarray(nodes, like.dtype).reshape((1,) * like.ndim + (-1,))


def quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int = 48) -> Moments:
    """Return Gaussian moments by Gauss–Hermite quadrature, for an activation without closed forms (growth zero).

    E[φ(g₁, g₂)] = Σ_ab ω_a ω_b φ(√q11 t_a, √q22 (ρ t_a + √(1−ρ²) t_b)),  ρ = q12/√(q11 q22).

    Args:
        jet: ``(z, c) -> e^{-c}(u, u', u'')``.
        order: nodes a dimension. Analytic functions converge geometrically; a kink costs accuracy (about 1/order).

    Returns:
        The :class:`Moments`; arrays of any shape cost order² evaluations an entry, in memory order at a time.

    Raises:
        ValueError: jet is no function, order no positive integer.
    """
    return _quadrature_moments(check_callable("jet", jet), check_positive_int("order", order))


@dataclass(frozen=True)
class _QuadratureMoments(Moments):
    """Moments by quadrature, which are pickled as the function that they are of."""

    source: tuple[Callable, int] | None = None

    def __reduce__(self) -> tuple:
        return quadrature_moments, self.source


@lru_cache  # equal functions have the same moments, so that nothing is compiled again
def _quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int) -> Moments:
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)

    def expect(first: int, second: int, tilted: bool = False) -> Callable[[Scalars, Scalars, Scalars], Scalars]:
        """E[u⁽ⁱ⁾(g₁) u⁽ʲ⁾(g₂)], tilted E[g₁ …]."""

        def moment(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
            _, rho, sines = cosine(q11, q12, q22)
            t, w = _on_last_axis(nodes, q12), jnp.asarray(weights, q12.dtype)
            across = sines[..., None] * t

            def add(a: Array, total: Scalars) -> Scalars:
                z1 = root(q11) * t[..., a]
                z2 = root(q22)[..., None] * ((rho * t[..., a])[..., None] + across)
                values = jet(z1, 0.0)[first] * (z1 if tilted else 1)
                return total + w[a] * values * jnp.matmul(jet(z2, 0.0)[second], w)

            return jax.lax.fori_loop(0, order, add, 0 * rho)  # varies over a mesh as rho does

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
        values = jet(root(q)[..., None] * _on_last_axis(nodes, q), 0.0)[0]
        return jnp.matmul(values, jnp.asarray(weights, q.dtype)) * forms.unscale(q, s)

    with jax.ensure_compile_time_eval():  # whatever is being traced around it
        values = np.asarray(jet(jnp.asarray(nodes, float), 0.0)[0])
    positive = bool(abs(weights @ values) > 1e-5 * (weights @ np.abs(values)))
    return _QuadratureMoments(
        mean=mean,
        covariance=shifted(covariance),
        derivative=shifted(derivative),
        positive_mean=positive,
        source=(jet, order),
    )
