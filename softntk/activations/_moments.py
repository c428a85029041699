"""Gaussian moments of an activation, and the kernels of an infinitely wide layer made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from softntk._core.validation import (
    as_dtype,
    as_scalars,
    check_callable,
    check_flag,
    check_integer,
)
from softntk.activations._closed_forms import Scalars


@dataclass(frozen=True)
class Moments:
    """Gaussian moments of u, from which the kernels of an infinitely wide layer are made.

    For ``(g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]])``, ``g ~ N(0, q)`` and any shift s,

    - ``mean(q, s)``                      = e^{-s} E[u(g)]
    - ``covariance(q11, q12, q22, s)``    = e^{-s} E[u(g₁) u(g₂)]
    - ``derivative(q11, q12, q22, s)``    = e^{-s} E[u'(g₁) u'(g₂)]

    Arguments broadcast. What still exceeds the precision saturates near its largest number.

    Attributes:
        mean: ``(q, s)``, the first of the three.
        covariance: ``(q11, q12, q22, s)``, the second.
        derivative: ``(q11, q12, q22, s)``, the third.
        growth: ``q ->`` the shift for which ``mean`` is of order one: q/2 for the exponential
            family, zero for everything of polynomial growth. ``growth(q11) + growth(q22)`` is the
            shift of the moments of two variables.
        positive_mean: False where E[u] = 0 for every q (odd functions). Then a normalized layer has
            no infinite limit.
        ratios: ``(q11, q12, q22) ->`` covariance and derivative over E[u(g₁)] E[u(g₂)], where a
            closed form is better than dividing.
        angular: covariance and derivative take the sine of the angle between g₁ and g₂ as a fifth
            argument. None stands for the sine that the variances give.
        degree: where u(c z) = c^degree u(z) for c > 0. Then kernels of networks do not depend on
            the unit of the points.
        in_units: covariance and derivative take units (b₁, b₂) of g₁ and g₂ as a sixth argument,
            and are then those of u(b z)/b, of order one for any b; E[u(b g)]/b is E[u(g)]. So
            points may be so small that their variances underflow.
    """

    mean: Callable[[Scalars, Scalars | float], Scalars]
    covariance: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    derivative: Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]
    growth: Callable[[Scalars], Scalars] = jnp.zeros_like
    positive_mean: bool = True
    ratios: Callable[[Scalars, Scalars, Scalars], tuple[Scalars, Scalars]] | None = None
    angular: bool = False
    degree: int | None = None
    in_units: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and let the moments take Python numbers as well as arrays."""
        for flag in ("positive_mean", "angular", "in_units"):
            check_flag(flag, getattr(self, flag))
        if self.ratios is not None:
            check_callable("ratios", self.ratios)
        if self.degree is not None:
            check_integer("degree", self.degree)
        for field, variance_names in _VARIANCE_NAMES.items():
            moment = getattr(self, field)
            if not isinstance(moment, _CheckedMoment):
                checked = _CheckedMoment(check_callable(field, moment), variance_names)
                object.__setattr__(self, field, checked)


# The variances that each moment takes, by their names in messages.
_VARIANCE_NAMES = {
    "mean": ("q",),
    "growth": ("q",),
    "covariance": ("q11", "q12", "q22"),
    "derivative": ("q11", "q12", "q22"),
}


@dataclass(frozen=True)
class _CheckedMoment:
    """A moment that converts its variances to arrays of one dtype; equal for equal functions.

    Attributes:
        function: the moment.
        names: those of its variances, for messages.
    """

    function: Callable[..., Scalars]
    names: tuple[str, ...]

    def __call__(self, *args: Any) -> Scalars:
        """Return the moment of numbers or arrays.

        Args:
            args: the variances, then the shift s, the sine and the units, as many as are given.
        """
        variance_count = len(self.names)
        variances = as_scalars(**dict(zip(self.names, args, strict=False)))
        # 1. A variance that rounding left below zero is zero. A maximum would do the same, but its
        #    derivative at zero is one half.
        converted: list[Any] = [
            q if name == "q12" else jnp.where(q < 0, 0, q)
            for name, q in zip(self.names, variances, strict=False)
        ]
        # 2. Shift and sine in the dtype of the variances; units pass as they are.
        dtype = variances[0].dtype
        for name, value in zip(("s", "sines"), args[variance_count:], strict=False):
            is_missing = name == "sines" and value is None
            converted.append(None if is_missing else as_dtype(name, value, dtype, finite=False))
        return self.function(*converted, *args[variance_count + 2 :])


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
    """Return the kernels (E[φφ'], E[φ̇φ̇']) of a layer of infinitely many units.

    :meth:`softntk.activations.Activation.limit` checks its arguments and calls this. Use it
    directly for arrays of one dtype, or in units (see :class:`Moments`).

    Args:
        name: the name of the activation, for messages.
        moments: the moments of u.
        normalized: whether φ is u / E[u], and not u.
        q11: variance of the input at the first point.
        q12: covariance.
        q22: variance at the second point; all three broadcast.
        sines: the sine of the angle between both inputs, for angular moments; None: that of the
            variances.
        units: (b₁, b₂), for moments in units; None: one.

    Returns:
        Both kernels; +inf where E[u] is zero at a variance.

    Raises:
        ValueError: normalized, but E[u] = 0 for every variance.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import activations
        >>> moments = activations.get("exp").moments
        >>> kernels = infinite_limit("exp", moments, True, *jnp.array([0.5, 0.2, 0.7]))
        >>> [round(float(kernel), 4) for kernel in kernels]  # both e^{q12}
        [1.2214, 1.2214]

    Source: MATHEMATICS.md#gaussian-moments.
    """
    if normalized and not moments.positive_mean:
        raise ValueError(
            f"a normalized {name!r} layer has no infinite limit: E[u] = 0, so its normaliser does "
            "not concentrate. Use an activation of positive mean, or do not normalize."
        )
    # 1. Let exploded variances saturate, so that they do not become NaN.
    largest = 0.5 * float(jnp.finfo(q12.dtype).max)
    q11, q22 = (jnp.where(q < 0, 0, jnp.minimum(q, largest)) for q in (q11, q22))
    q12 = jnp.clip(q12, -largest, largest)
    # 2. Take the ratios in closed form, where there is one.
    if normalized and moments.ratios is not None:
        return _clip_both(moments.ratios(q11, q12, q22), largest)
    # 3. Otherwise evaluate the moments, with shifts that cancel when they are divided.
    shift1, shift2 = (moments.growth(q) if normalized else jnp.zeros_like(q) for q in (q11, q22))
    extra_args = (sines,) if moments.angular else ()
    if moments.in_units:
        extra_args = (sines, units)
    covariance = moments.covariance(q11, q12, q22, shift1 + shift2, *extra_args)
    derivative = moments.derivative(q11, q12, q22, shift1 + shift2, *extra_args)
    pair = _clip_both((covariance, derivative), largest)
    if not normalized:
        return pair
    return _divide_by_means(pair, moments.mean(q11, shift1), moments.mean(q22, shift2))


def _clip_both(pair: tuple[Scalars, Scalars], largest: float) -> tuple[Scalars, Scalars]:
    """Return both arrays, clipped to ±largest."""
    return jnp.clip(pair[0], -largest, largest), jnp.clip(pair[1], -largest, largest)


def _divide_by_means(
    pair: tuple[Scalars, Scalars], mean1: Scalars, mean2: Scalars
) -> tuple[Scalars, Scalars]:
    """Return both moments over the two means, infinite where a mean is zero."""
    vanishes = (mean1 == 0) | (mean2 == 0)
    mean1, mean2 = (jnp.where(mean == 0, 1, mean) for mean in (mean1, mean2))
    # One after the other: a product of two means may underflow, and XLA would form it.
    ratio1, ratio2 = (
        jnp.where(vanishes, jnp.inf, lax.optimization_barrier(moment / mean1) / mean2)
        for moment in pair
    )
    return ratio1, ratio2


def chain(ntk: Scalars, slope: Scalars) -> Scalars:
    """Return Θ E[φ̇φ̇'], the tangent kernel behind a layer, from the kernel Θ before it.

    Use it in a kernel recursion in place of the product. It saturates far below the largest number,
    so that the sum of the next layer does not overflow. It is that bound, whatever Θ, where the
    slope is infinite: there the point is outside of the domain.

    Args:
        ntk: Θ.
        slope: E[φ̇φ̇'], of :func:`infinite_limit`.

    Returns:
        The product, saturated as above.

    Example:
        >>> import jax.numpy as jnp
        >>> float(chain(jnp.asarray(jnp.inf), jnp.asarray(0.0)))
        0.0
    """
    largest = 1e-6 * float(jnp.finfo(slope.dtype).max)
    is_infinite = jnp.isposinf(slope)
    # Zero times an infinite Θ is zero here.
    safe_ntk = jnp.where(is_infinite | (slope == 0), 0, ntk)
    propagated = safe_ntk * jnp.where(is_infinite, 0, slope)
    return jnp.where(is_infinite, largest, jnp.clip(propagated, -largest, largest))
