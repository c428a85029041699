"""Gaussian moments of an activation: the record of them, and quadrature for functions that have no
closed forms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk._core.validation import (
    as_dtype,
    as_scalars,
    check_callable,
    check_count,
    check_flag,
    check_integer,
    is_hashable,
)
from softntk._linalg.angles import cosine, safe_sqrt
from softntk.activations import _closed_forms as forms
from softntk.activations._closed_forms import Jet, Scalars


@dataclass(frozen=True)
class Moments:
    """Gaussian moments of u: what an infinitely wide layer sees.

    For ``(g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]])``, ``g ~ N(0, q)`` and any shift s,

    - ``mean(q, s)``                      = e^{-s} E[u(g)]
    - ``covariance(q11, q12, q22, s)``    = e^{-s} E[u(g₁) u(g₂)]
    - ``derivative(q11, q12, q22, s)``    = e^{-s} E[u'(g₁) u'(g₂)]

    Arguments broadcast. ``growth(q)`` is the shift for which ``mean`` is of order one: q/2 for the
    exponential family, zero for everything of polynomial growth; ``growth(q11) + growth(q22)``
    serves the other two. What does not fit the precision even so saturates near its largest number.
    """

    mean: Callable[[Scalars, Scalars | float], Scalars]
    covariance: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    derivative: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    growth: Callable[[Scalars], Scalars] = jnp.zeros_like
    positive_mean: bool = True
    """False where E[u] = 0 for every q (odd functions): then a normalized layer has no infinite
    limit.
    """
    ratios: Callable[[Scalars, Scalars, Scalars], tuple[Scalars, Scalars]] | None = None
    """``(q11, q12, q22)`` -> covariance and derivative over E[u(g₁)] E[u(g₂)], where a closed form
    is better than dividing.
    """
    angular: bool = False
    """Covariance and derivative take the sine of the angle between g₁ and g₂ as a fifth argument;
    None: that of the q's.
    """
    degree: int | None = None
    """Where u(c z) = c^degree u(z) for c > 0: then kernels of networks do not depend on the unit of
    the points.
    """
    in_units: bool = False
    """Covariance and derivative take units (b₁, b₂) of g₁ and g₂ as a sixth argument, and are then
    those of u(b z)/b, of order one for any b; E[u(b g)]/b is E[u(g)]. So points may be so small
    that their variances underflow."""

    def __post_init__(self) -> None:
        """Let the moments take Python numbers as well as arrays."""
        for flag in ("positive_mean", "angular", "in_units"):
            check_flag(flag, getattr(self, flag))
        if self.ratios is not None:
            check_callable("ratios", self.ratios)
        if self.degree is not None:
            check_integer("degree", self.degree)
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
    """A function of variances, which are converted to arrays of one dtype; equal for equal
    functions.
    """

    function: Callable
    names: tuple[str, ...]

    def __call__(self, *args: Any) -> Scalars:
        count = len(self.names)
        variances = as_scalars(**dict(zip(self.names, args, strict=False)))
        # A variance that rounding left below zero is zero; not by a maximum, whose derivative at
        # zero is halved.
        given: list[Any] = [
            q if name == "q12" else jnp.where(q < 0, 0, q)
            for name, q in zip(self.names, variances, strict=False)
        ]
        for name, value in zip(("s", "sines"), args[count:], strict=False):
            unknown = name == "sines" and value is None
            given.append(
                None if unknown else as_dtype(name, value, variances[0].dtype, finite=False)
            )
        return self.function(*given, *args[count + 2 :])


def infinite_limit(
    name: str,
    moments: Moments,
    normalized: bool,
    q11: Scalars,
    q12: Scalars,
    q22: Scalars,
    sines: Scalars | None = None,
    units: tuple[Scalars, Scalars] | None = None,
) -> tuple[Scalars, Scalars]:
    """Return what :meth:`softntk.activations.Activation.limit` does, of arrays of one dtype; in
    units, if these are given.
    """
    if normalized and not moments.positive_mean:
        raise ValueError(
            f"a normalized {name!r} layer has no infinite limit: E[u] = 0, so its normaliser does not "
            "concentrate. Use an activation of positive mean, or do not normalize."
        )
    # Exploded variances saturate, they do not become NaN.
    largest = 0.5 * float(jnp.finfo(q12.dtype).max)
    q11, q22 = (jnp.where(q < 0, 0, jnp.minimum(q, largest)) for q in (q11, q22))
    q12 = jnp.clip(q12, -largest, largest)
    if normalized and moments.ratios is not None:
        return _clip_both(moments.ratios(q11, q12, q22), largest)
    shift1, shift2 = (moments.growth(q) if normalized else jnp.zeros_like(q) for q in (q11, q22))
    further = (sines,) if moments.angular else ()
    if moments.in_units:
        further = (sines, units)
    covariance = moments.covariance(q11, q12, q22, shift1 + shift2, *further)
    derivative = moments.derivative(q11, q12, q22, shift1 + shift2, *further)
    pair = _clip_both((covariance, derivative), largest)
    if not normalized:
        return pair
    return _divide_by_means(pair, moments.mean(q11, shift1), moments.mean(q22, shift2))


def _clip_both(pair: tuple[Scalars, Scalars], largest: float) -> tuple[Scalars, Scalars]:
    return jnp.clip(pair[0], -largest, largest), jnp.clip(pair[1], -largest, largest)


def _divide_by_means(
    pair: tuple[Scalars, Scalars], mean1: Scalars, mean2: Scalars
) -> tuple[Scalars, Scalars]:
    """Return both over the means, infinite where one of these is zero."""
    vanishes = (mean1 == 0) | (mean2 == 0)
    mean1, mean2 = (jnp.where(mean == 0, 1, mean) for mean in (mean1, mean2))
    # One after the other: a product of two means may underflow.
    ratio1, ratio2 = (jnp.where(vanishes, jnp.inf, moment / mean1 / mean2) for moment in pair)
    return ratio1, ratio2


# --- any other function: quadrature
# -------------------------------------------------------------------------------


def _on_last_axis(nodes: np.ndarray, like: Scalars) -> Scalars:
    return jnp.asarray(nodes, like.dtype).reshape((1,) * like.ndim + (-1,))


def quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int = 48) -> Moments:
    """Return Gaussian moments by Gauss–Hermite quadrature, for an activation without closed forms
    (growth zero).

    E[φ(g₁, g₂)] = Σ_ab ω_a ω_b φ(√q11 t_a, √q22 (ρ t_a + √(1−ρ²) t_b)),  ρ = q12/√(q11 q22).

    Args:
        jet: ``(z, c) -> e^{-c}(u, u', u'')``.
        order: nodes a dimension. Analytic functions converge geometrically; a kink costs accuracy
            (about 1/order).

    Returns:
        The :class:`Moments`; arrays of any shape cost order² evaluations an entry, in memory order
        at a time.

    Raises:
        ValueError: jet is no function of that kind, order no positive integer.
    """
    check_callable("jet", jet, "a function (z, c) -> (u, u', u'')")
    make = _quadrature_moments if is_hashable(jet) else _quadrature_moments.__wrapped__
    return make(jet, check_count("order", order))


@dataclass(frozen=True)
class _QuadratureMoments(Moments):
    """Moments by quadrature, which are pickled as the function that they are of."""

    source: tuple[Callable, int] | None = None

    def __reduce__(self) -> tuple:
        return quadrature_moments, self.source


def _check_jet(jet: Callable) -> None:
    """Refuse a function that is no jet."""
    wanted = "jet must return (u, u', u'') of the shape of z for (z, c), in floating-point numbers"
    try:
        out = jax.eval_shape(
            lambda z: jet(z, 0.0), jax.ShapeDtypeStruct((3,), jax.dtypes.canonicalize_dtype(float))
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{wanted}, but it fails: {reason}") from error
    parts = out if isinstance(out, tuple | list) else ()
    alike = [
        getattr(part, "shape", None) == (3,) and jnp.issubdtype(part.dtype, jnp.floating)
        for part in parts
    ]
    if alike != [True] * 3:
        raise ValueError(f"{wanted}, got {out}.")


@lru_cache  # equal functions have the same moments, so that nothing is compiled again
def _quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int) -> Moments:
    _check_jet(jet)
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)

    def expect(
        first: int, second: int, tilted: bool = False
    ) -> Callable[[Scalars, Scalars, Scalars], Scalars]:
        """E[u⁽ⁱ⁾(g₁) u⁽ʲ⁾(g₂)], tilted E[g₁ …]."""

        def moment(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
            _, rho, sines = cosine(q11, q12, q22)
            t, w = _on_last_axis(nodes, q12), jnp.asarray(weights, q12.dtype)
            across = sines[..., None] * t

            def add(a: Array, total: Scalars) -> Scalars:
                z1 = safe_sqrt(q11) * t[..., a]
                z2 = safe_sqrt(q22)[..., None] * ((rho * t[..., a])[..., None] + across)
                values = jet(z1, 0.0)[first] * (z1 if tilted else 1)
                return total + w[a] * values * jnp.matmul(jet(z2, 0.0)[second], w)

            return jax.lax.fori_loop(0, order, add, 0 * rho)  # varies over a mesh as rho does

        return moment

    # Derivatives by Price: ∂E[f g]/∂q12 = E[f'g'], ∂E[f g]/∂q11 = ½E[f''g]. The quadrature itself
    # has none at equal points, where √(1−ρ²) vanishes. The third derivative of u is left out by
    # Stein: E[g₁ u''u'] = q11 E[(u'')'u'] + q12 E[u''u''].
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
            return jnp.where(
                q > 0,
                (expect(2, 1, True)(q, q12, other) - q12 * second) / jnp.where(q > 0, q, 1),
                0,
            )

        return derivative(q11, q12, q22), second * d12 + 0.5 * (
            third(q11, q22) * d11 + third(q22, q11) * d22
        )

    def shifted(
        moment: Callable,
    ) -> Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]:
        return lambda q11, q12, q22, s: (
            moment(*jnp.broadcast_arrays(q11, q12, q22)) * forms.unscale(q12, s)
        )

    def mean(q: Scalars, s: Scalars | float) -> Scalars:
        values = jet(safe_sqrt(q)[..., None] * _on_last_axis(nodes, q), 0.0)[0]
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


def chain(ntk: Scalars, slope: Scalars) -> Scalars:
    """Return Θ E[φ̇φ̇'] of a layer, from Θ before it.

    It saturates far below infinity, where the next layer's sum would make NaN of it, and where the
    slope is infinite: there the point is outside of the domain, whatever Θ.

    Example:
        >>> import jax.numpy as jnp
        >>> float(chain(jnp.asarray(jnp.inf), jnp.asarray(0.0)))
        0.0
    """
    largest = 1e-6 * float(jnp.finfo(slope.dtype).max)
    outside = jnp.isposinf(slope)
    inside = jnp.where(outside | (slope == 0), 0, ntk) * jnp.where(outside, 0, slope)
    return jnp.where(outside, largest, jnp.clip(inside, -largest, largest))
