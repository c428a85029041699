"""The recursion of variances and correlations through equal layers, and its fixed points.

| symbol | meaning |
|---|---|
| q | variance of a pre-activation |
| V(q) | variance after the next layer, σ_w² E[φ²] + σ_b² |
| c | correlation of two inputs of variance q |
| C(c) | correlation after the next layer, (σ_w² E[φφ'] + σ_b²)/V(q) |

The search for q* = V(q*) is a loop that cannot be differentiated in reverse mode. It need not be:
derivatives are implicit, dq* = ∂V/∂θ dθ / (1 − V'(q*)), and likewise for c*.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk.activations import Activation

Scalars = Float[Array, "..."]

MAX_NEWTON_STEPS = 30  # at criticality each one halves the distance to q*
ROUNDING_UNITS = 8  # changes below this many units of rounding count as zero
ZERO_VARIANCE = 1e-30  # a variance below it is zero if V(0) = 0


@dataclass(frozen=True)
class Recursion:
    """V and C of one layer.

    Attributes:
        activation: u.
        normalized: φ = u/E[u].
        weight: σ_w².
        bias: σ_b², of the shape of weight.
    """

    activation: Activation
    normalized: bool
    weight: Scalars
    bias: Scalars

    def variance(self, q: Scalars) -> Scalars:
        """Return V(q)."""
        return self.weight * self.activation.limit(q, q, q, self.normalized)[0] + self.bias

    def variance_slope(self, q: Scalars) -> Scalars:
        """Return V'(q), at a positive number near zero for q = 0."""
        # relu has V = √q √q, whose second derivatives are only rounding errors at zero.
        moments = self.activation.moments
        is_rough = moments.degree is not None or moments.in_units
        positive_q = to_positive(q) if is_rough else _positive_with_derivative(q)
        return jax.jvp(self.variance, (positive_q,), (jnp.ones_like(q),))[1]

    def slope(self, q: Scalars) -> Scalars:
        """Return χ = σ_w² E[φ̇²]."""
        positive_q = _positive_with_derivative(q)
        return (
            self.weight
            * self.activation.limit(positive_q, positive_q, positive_q, self.normalized)[1]
        )

    def correlation(self, q: Scalars, c: Scalars) -> tuple[Scalars, Scalars]:
        """Return C(c) and C'(c).

        Both are divided by V at a positive q, not by q, so that they exist for q = 0 too.
        """
        positive_q = to_positive(q)
        # A variance of zero has no bias: its derivative in the bias would be that of a jump.
        bias = jnp.where(q == positive_q, self.bias, lax.stop_gradient(self.bias))
        moment, _ = self.activation.limit(positive_q, positive_q, positive_q, self.normalized)
        scale = self.weight * moment + bias
        is_zero = scale == 0  # then all correlations are one
        scale = jnp.where(is_zero, 1, scale)
        value, slope = self.activation.limit(
            positive_q, c * positive_q, positive_q, self.normalized
        )
        value = (self.weight * value + bias) / scale
        slope = self.weight * slope * positive_q / scale
        return jnp.where(is_zero, 1, value), jnp.where(is_zero, 0, slope)


def to_positive(q: Scalars) -> Scalars:
    """Return q, or a small positive number if q is smaller.

    At zero relu has no slopes; at a positive number it has.
    """
    return jnp.maximum(q, jnp.finfo(q.dtype).tiny ** 0.25)


def _positive_with_derivative(q: Scalars) -> Scalars:
    """Return :func:`to_positive` with derivative one, also at zero."""
    return q + lax.stop_gradient(to_positive(q) - q)


def fixed_variance(recursion: Recursion, max_steps: int) -> tuple[Scalars, Bool[Array, "..."]]:
    """Return q*, or one where there is none, and whether it exists.

    q* has implicit derivatives of every order.
    """
    # 1. The search, from 1 or else from 0, without derivatives.
    search = _detach_function(
        lambda start: _search_variance(recursion, max_steps, start), recursion.weight
    )
    q, exists = search(_fill_like(recursion.weight, 1.0))
    q_zero, exists_zero = search(_fill_like(recursion.weight, 0.0))
    # Zero may be a fixed point that is unstable; only a stable one counts.
    exists_zero &= recursion.variance_slope(q_zero) <= 1
    q = jnp.where(exists, q, jnp.where(exists_zero, q_zero, 1))
    exists |= exists_zero

    # 2. The equation V(q) − q = 0 for the implicit derivatives. Its value is taken at q, its slope
    # at a positive variance, because V may have no slope at zero.
    def residual(q: Scalars) -> Scalars:
        positive_q = _positive_with_derivative(q)
        fixed_q = lax.stop_gradient(q)
        return (
            recursion.variance(positive_q)
            + recursion.variance(fixed_q)
            - recursion.variance(lax.stop_gradient(positive_q))
            - q
        )

    # At criticality the derivative is infinite; this large number replaces it.
    max_slope = 1 / (ROUNDING_UNITS * float(jnp.finfo(q.dtype).eps))
    return _with_implicit_derivative(residual, q, exists, -max_slope), exists


def fixed_correlation(
    recursion: Recursion, q: Scalars, exists: Bool[Array, "..."], max_steps: int
) -> Scalars:
    """Return c*, iterated from c = ½, with implicit derivatives."""

    def iterate(start: Scalars) -> Scalars:
        return lax.fori_loop(
            0, max_steps, lambda _, c: jnp.clip(recursion.correlation(q, c)[0], -1, 1), start
        )

    c = _detach_function(iterate, q)(_fill_like(q, 0.5))
    return _with_implicit_derivative(lambda c: recursion.correlation(q, c)[0] - c, c, exists, 0.0)


def _search_variance(
    recursion: Recursion, max_steps: int, start: Scalars
) -> tuple[Scalars, Bool[Array, "..."]]:
    """Return the limit of V iterated from the start, and whether there is one."""
    limits = jnp.finfo(start.dtype)
    rounding_error = ROUNDING_UNITS * limits.eps
    max_variance = 0.01 * float(limits.max) ** 0.5
    next_variance = recursion.variance

    def relative_change(q: Scalars) -> Scalars:
        """Return |V(q) − q|/q; below a few units of rounding q is at rest."""
        return jnp.abs(next_variance(q) - q) / jnp.maximum(q, limits.tiny)

    # 1. The iteration, until all are at rest or have exploded.
    def is_moving(state: tuple[Array, Scalars]) -> Bool[Array, ""]:
        steps, q = state
        return (steps < max_steps) & jnp.any(
            (relative_change(q) > rounding_error) & (q < max_variance)
        )

    def iterate(state: tuple[Array, Scalars]) -> tuple[Array, Scalars]:
        steps, q = state
        return steps + 1, jnp.where(q < max_variance, next_variance(q), q)

    iterated = lax.while_loop(is_moving, iterate, (jnp.zeros((), int), start))[1]

    # 2. Newton's method, where it helps; at criticality each step halves the distance.
    def improve(_: Array | int, q: Scalars) -> Scalars:
        value, slope = jax.jvp(next_variance, (q,), (jnp.ones_like(q),))
        candidate = q + jnp.where(slope < 1, (value - q) / jnp.where(slope < 1, 1 - slope, 1), 0)
        is_improved = (
            (candidate >= 0.5 * iterated)
            & (candidate <= 2 * iterated)
            & (jnp.abs(next_variance(candidate) - candidate) < jnp.abs(value - q))
        )
        return jnp.where(is_improved, candidate, q)

    q = lax.fori_loop(0, MAX_NEWTON_STEPS, improve, iterated)
    is_zero = (next_variance(jnp.zeros_like(q)) == 0) & (q < ZERO_VARIANCE)
    q = jnp.where(is_zero, 0, q)
    return q, (q < max_variance) & (is_zero | (relative_change(q) <= rounding_error))


def _detach_function(function: Callable[[Scalars], Any], like: Scalars) -> Callable[[Scalars], Any]:
    """Return a function of an array of this shape whose result carries no derivatives.

    That includes derivatives in what the function closes over.
    """
    converted, closed_over = jax.closure_convert(function, like)
    constants = [lax.stop_gradient(value) for value in closed_over]
    return lambda x: converted(x, *constants)


def _with_implicit_derivative(
    residual: Callable[[Scalars], Scalars],
    root: Scalars,
    exists: Bool[Array, "..."],
    critical_inverse: float,
) -> Scalars:
    """Return the root of an elementwise function, with derivatives in what that closes over.

    Args:
        residual: the function.
        root: a point where it is zero.
        exists: whether it is zero there; elsewhere ``critical_inverse`` replaces the derivative.
        critical_inverse: replaces the inverse slope of the function where the slope is zero up to
            rounding.
    """

    def divide(linear: Callable[[Scalars], Scalars], change: Scalars) -> Scalars:
        slope = linear(jnp.ones_like(change))
        is_regular = exists & (jnp.abs(slope) > ROUNDING_UNITS * jnp.finfo(slope.dtype).eps)
        return change * jnp.where(is_regular, 1 / jnp.where(is_regular, slope, 1), critical_inverse)

    return lax.custom_root(residual, lax.stop_gradient(root), lambda _, start: start, divide)


def _fill_like(x: Scalars, number: float) -> Scalars:
    """Return the number in the shape of x, varying over a mesh as x does; NaN where x is NaN."""
    return jnp.where(jnp.isnan(x), x, number)
