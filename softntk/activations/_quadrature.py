"""Gaussian moments by Gauss–Hermite quadrature, for activations without closed forms."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk._core.validation import (
    check_callable,
    check_count,
    is_hashable,
)
from softntk._linalg.angles import cosine, safe_sqrt
from softntk.activations._closed_forms import Jet, Scalars, unscale
from softntk.activations._moments import Moments

JetFunction = Callable[[Scalars, Scalars | float], Jet]
# (q11, q12, q22) -> a moment, without a shift
PlainMoment = Callable[[Scalars, Scalars, Scalars], Scalars]
ShiftedMoment = Callable[[Scalars, Scalars, Scalars, Scalars | float], Scalars]

# E[u] counts as zero (an odd function) where it is below this fraction of E[|u|], by quadrature.
MIN_RELATIVE_MEAN = 1e-5


def quadrature_moments(jet: Callable[[Scalars, Scalars | float], Jet], order: int = 48) -> Moments:
    """Return Gaussian moments by Gauss–Hermite quadrature.

    Use it for an activation without closed forms; its growth is taken to be zero.

    E[φ(g₁, g₂)] = Σ_ab ω_a ω_b φ(√q11 t_a, √q22 (ρ t_a + √(1−ρ²) t_b)),  ρ = q12/√(q11 q22).

    Args:
        jet: ``(z, c) -> e^{-c}(u, u', u'')``.
        order: number of nodes in each of the two dimensions. Analytic functions converge
            geometrically, the faster the smaller √q is against the distance of their poles from the
            real line: softplus (poles at ±iπ) has relative errors of 2e-9 at q = 4, 1e-4 at q = 30
            and 6e-4 at q = 100. A kink costs accuracy (about 1/order).

    Returns:
        The :class:`Moments`. Each entry of an array costs order² evaluations of u, of which
        ``order`` at a time are in memory.

    Raises:
        ValueError: jet is not such a function, or order is not a positive integer.

    Example:
        >>> from softntk import activations
        >>> moments = quadrature_moments(activations.get("exp").jet)
        >>> round(float(moments.mean(1.0, 0.0)), 4)  # E[e^g] = √e
        1.6487

    Source: MATHEMATICS.md#gaussian-moments.
    """
    check_callable("jet", jet, "a function (z, c) -> (u, u', u'')")
    make = _make_moments if is_hashable(jet) else _make_moments.__wrapped__
    return make(jet, check_count("order", order))


@dataclass(frozen=True)
class _QuadratureMoments(Moments):
    """Moments by quadrature, which are pickled as the arguments that made them.

    Attributes:
        source: (jet, order).
    """

    source: tuple[Callable, int] | None = None

    def __reduce__(self) -> tuple:
        """Return the call that makes the moments again."""
        return quadrature_moments, self.source


def _check_jet(jet: JetFunction) -> None:
    """Refuse a function that does not return three arrays of the shape of z."""
    jet_requirement = (
        "jet must return (u, u', u'') of the shape of z for (z, c), in floating-point numbers"
    )
    default_dtype = jax.dtypes.canonicalize_dtype(float)
    try:
        value = jax.eval_shape(lambda z: jet(z, 0.0), jax.ShapeDtypeStruct((3,), default_dtype))
    except Exception as error:
        error_reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{jet_requirement}, but it fails: {error_reason}") from error
    parts = value if isinstance(value, tuple | list) else ()
    has_shape_of_z = [
        getattr(part, "shape", None) == (3,) and jnp.issubdtype(part.dtype, jnp.floating)
        for part in parts
    ]
    if has_shape_of_z != [True] * 3:
        raise ValueError(f"{jet_requirement}, got {value}.")


def _on_last_axis(nodes: np.ndarray, like: Scalars) -> Scalars:
    """Return the nodes on a new last axis behind those of an array, in its dtype."""
    return jnp.asarray(nodes, like.dtype).reshape((1,) * like.ndim + (-1,))


@lru_cache  # equal functions have the same moments, so that nothing is compiled again
def _make_moments(jet: JetFunction, order: int) -> Moments:
    """Return the moments of a hashable jet.

    | symbol | meaning | shape |
    |---|---|---|
    | t, w | nodes and weights of E[·] under N(0, 1) | [order] |
    | z1 | first variable at one of its nodes, √q11 t_a | that of the q's |
    | z2 | second variable at all of its nodes, given the first | [..., order] |
    | d11, d12, d22 | tangents of q11, q12, q22 | that of the q's |
    """
    # 1. Nodes and weights for the standard normal distribution.
    _check_jet(jet)
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / math.sqrt(2 * math.pi)

    # 2. Any expectation, by a loop over the nodes of g₁ and a sum over those of g₂.
    def expect(i: int, j: int, times_g1: bool = False) -> PlainMoment:
        """Return the function E[u⁽ⁱ⁾(g₁) u⁽ʲ⁾(g₂)], or E[g₁ u⁽ⁱ⁾(g₁) u⁽ʲ⁾(g₂)]."""

        def moment(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
            _, rho, sines = cosine(q11, q12, q22)
            t = _on_last_axis(nodes, q12)
            w = jnp.asarray(weights, q12.dtype)
            orthogonal_part = sines[..., None] * t

            def add_node(a: Array, total: Scalars) -> Scalars:
                z1 = safe_sqrt(q11) * t[..., a]
                z2 = safe_sqrt(q22)[..., None] * ((rho * t[..., a])[..., None] + orthogonal_part)
                values = jet(z1, 0.0)[i] * (z1 if times_g1 else 1)
                return total + w[a] * values * jnp.matmul(jet(z2, 0.0)[j], w)

            # The loop starts at zeros that vary over a mesh as rho does.
            return jax.lax.fori_loop(0, order, add_node, 0 * rho)

        return moment

    # 3. Derivatives by Price: ∂E[f g]/∂q12 = E[f'g'], ∂E[f g]/∂q11 = ½E[f''g]. The quadrature
    # itself has none at equal points, where √(1−ρ²) vanishes. Stein's lemma replaces the third
    # derivative of u: E[g₁ u''u'] = q11 E[(u'')'u'] + q12 E[u''u''].
    @jax.custom_jvp
    def covariance(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
        return expect(0, 0)(q11, q12, q22)

    @covariance.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
        q11, q12, q22 = primals
        d11, d12, d22 = tangents
        variance_part = 0.5 * (
            expect(2, 0)(q11, q12, q22) * d11 + expect(2, 0)(q22, q12, q11) * d22
        )
        return covariance(q11, q12, q22), derivative(q11, q12, q22) * d12 + variance_part

    @jax.custom_jvp
    def derivative(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
        return expect(1, 1)(q11, q12, q22)

    @derivative.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
        q11, q12, q22 = primals
        d11, d12, d22 = tangents
        curvature_moment = expect(2, 2)(q11, q12, q22)

        def third_derivative_moment(q1: Scalars, q2: Scalars) -> Scalars:
            by_stein = expect(2, 1, True)(q1, q12, q2) - q12 * curvature_moment
            return jnp.where(q1 > 0, by_stein / jnp.where(q1 > 0, q1, 1), 0)

        return derivative(q11, q12, q22), curvature_moment * d12 + 0.5 * (
            third_derivative_moment(q11, q22) * d11 + third_derivative_moment(q22, q11) * d22
        )

    def mean(q: Scalars, s: Scalars | float) -> Scalars:
        values = jet(safe_sqrt(q)[..., None] * _on_last_axis(nodes, q), 0.0)[0]
        return jnp.matmul(values, jnp.asarray(weights, q.dtype)) * unscale(q, s)

    # 4. Decide on the host whether E[u] is zero, even if the caller is being traced.
    with jax.ensure_compile_time_eval():
        values = np.asarray(jet(jnp.asarray(nodes, float), 0.0)[0])
    mean_modulus = weights @ np.abs(values)
    return _QuadratureMoments(
        mean=mean,
        covariance=_with_shift(covariance),
        derivative=_with_shift(derivative),
        positive_mean=bool(abs(weights @ values) > MIN_RELATIVE_MEAN * mean_modulus),
        source=(jet, order),
    )


def _with_shift(moment: PlainMoment) -> ShiftedMoment:
    """Return the moment of broadcast variances, times e^{-s}."""

    def shifted(q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float) -> Scalars:
        return moment(*jnp.broadcast_arrays(q11, q12, q22)) * unscale(q12, s)

    return shifted
