"""The recursion of variances and correlations through equal layers, and where it comes to rest,
with implicit derivatives.

| symbol | meaning |
|---|---|
| q | variance of a pre-activation |
| V(q) | variance behind the next layer, σ_w² E[φ²] + σ_b² |
| c | correlation of two inputs of variance q |
| C(c) | correlation behind the next layer, (σ_w² E[φφ'] + σ_b²)/V(q) |

The search for q* = V(q*) is a loop that has no derivative backwards and needs none:
dq* = ∂V/∂θ dθ / (1 − V'(q*)), and c* alike.
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

NEWTON_STEPS = 30


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
        """Return V'(q), next to zero for q = 0."""
        # Of √q √q, which relu's V is, second derivatives are rounding at zero.
        moments = self.activation.moments
        is_rough = moments.degree is not None or moments.in_units
        near = positive(q) if is_rough else _live_positive(q)
        return jax.jvp(self.variance, (near,), (jnp.ones_like(q),))[1]

    def slope(self, q: Scalars) -> Scalars:
        """Return χ = σ_w² E[φ̇²]."""
        near = _live_positive(q)
        return self.weight * self.activation.limit(near, near, near, self.normalized)[1]

    def correlation(self, q: Scalars, c: Scalars) -> tuple[Scalars, Scalars]:
        """Return C(c) and C'(c), over the next variance, which is q itself at rest: so a variance
        of zero has them too.
        """
        near = positive(q)
        # A variance of zero has no bias. Its derivative in one would be that of a jump.
        bias = jnp.where(q == near, self.bias, lax.stop_gradient(self.bias))
        scale = self.weight * self.activation.limit(near, near, near, self.normalized)[0] + bias
        vanishes = scale == 0  # then all correlations are one
        scale = jnp.where(vanishes, 1, scale)
        value, slope = self.activation.limit(near, c * near, near, self.normalized)
        value = (self.weight * value + bias) / scale
        return jnp.where(vanishes, 1, value), jnp.where(
            vanishes, 0, self.weight * slope * near / scale
        )


def positive(q: Scalars) -> Scalars:
    """Return q, or a number next to zero: at zero relu has no slopes, next to it it has."""
    return jnp.maximum(q, jnp.finfo(q.dtype).tiny ** 0.25)


def _live_positive(q: Scalars) -> Scalars:
    """Return the same with derivative one, also at zero."""
    return q + lax.stop_gradient(positive(q) - q)


def variance_at_rest(recursion: Recursion, max_steps: int) -> tuple[Scalars, Bool[Array, "..."]]:
    """Return q*, one where there is none, and whether it exists; q* has implicit derivatives of
    every order.
    """
    # 1. The search, from 1 or else from 0, without derivatives.
    search = _without_derivative(
        lambda start: _search_variance(recursion, max_steps, start), recursion.weight
    )
    q, exists = search(_like(recursion.weight, 1.0))
    q_zero, exists_zero = search(_like(recursion.weight, 0.0))
    # From where it starts nothing moves: it is at rest only if that is stable.
    exists_zero &= recursion.variance_slope(q_zero) <= 1
    q = jnp.where(exists, q, jnp.where(exists_zero, q_zero, 1))
    exists |= exists_zero

    # 2. The equation that it solves. The slope in q is that next to zero, all else is at q.
    def gap(q: Scalars) -> Scalars:
        near = _live_positive(q)
        fixed = lax.stop_gradient(q)
        return (
            recursion.variance(near)
            + recursion.variance(fixed)
            - recursion.variance(lax.stop_gradient(near))
            - q
        )

    steep = 1 / (8 * float(jnp.finfo(q.dtype).eps))  # the derivative at criticality, for infinity
    return _with_implicit_derivative(gap, q, exists, -steep), exists


def correlation_at_rest(
    recursion: Recursion, q: Scalars, exists: Bool[Array, "..."], max_steps: int
) -> Scalars:
    """Return c* from c = ½, with implicit derivatives."""

    def iterate(start: Scalars) -> Scalars:
        return lax.fori_loop(
            0, max_steps, lambda _, c: jnp.clip(recursion.correlation(q, c)[0], -1, 1), start
        )

    c = _without_derivative(iterate, q)(_like(q, 0.5))
    return _with_implicit_derivative(lambda c: recursion.correlation(q, c)[0] - c, c, exists, 0.0)


def _search_variance(
    recursion: Recursion, max_steps: int, start: Scalars
) -> tuple[Scalars, Bool[Array, "..."]]:
    """Return where V, iterated from the start, comes to rest, and whether it does."""
    limits = jnp.finfo(start.dtype)
    noise = 8 * limits.eps
    largest = 0.01 * float(limits.max) ** 0.5
    after = recursion.variance

    def gap(q: Scalars) -> Scalars:
        """Relative; below a few units of rounding q is at rest."""
        return jnp.abs(after(q) - q) / jnp.maximum(q, limits.tiny)

    # 1. The iteration, until all are at rest or have exploded.
    def moves(state: tuple[Array, Scalars]) -> Bool[Array, ""]:
        steps, q = state
        return (steps < max_steps) & jnp.any((gap(q) > noise) & (q < largest))

    def step(state: tuple[Array, Scalars]) -> tuple[Array, Scalars]:
        steps, q = state
        return steps + 1, jnp.where(q < largest, after(q), q)

    iterated = lax.while_loop(moves, step, (jnp.zeros((), int), start))[1]

    # 2. Newton's method, where it helps; at criticality it halves the distance a step.
    def improve(_: Array | int, q: Scalars) -> Scalars:
        value, slope = jax.jvp(after, (q,), (jnp.ones_like(q),))
        new = q + jnp.where(slope < 1, (value - q) / jnp.where(slope < 1, 1 - slope, 1), 0)
        near = (
            (new >= 0.5 * iterated)
            & (new <= 2 * iterated)
            & (jnp.abs(after(new) - new) < jnp.abs(value - q))
        )
        return jnp.where(near, new, q)

    q = lax.fori_loop(0, NEWTON_STEPS, improve, iterated)
    vanished = (after(jnp.zeros_like(q)) == 0) & (q < 1e-30)
    q = jnp.where(vanished, 0, q)
    return q, (q < largest) & (vanished | (gap(q) <= noise))


def _without_derivative(
    function: Callable[[Scalars], Any], like: Scalars
) -> Callable[[Scalars], Any]:
    """Return a function of an array of this shape whose result is a constant, also in what it
    closes over.
    """
    converted, closed_over = jax.closure_convert(function, like)
    constants = [lax.stop_gradient(value) for value in closed_over]
    return lambda x: converted(x, *constants)


def _with_implicit_derivative(
    gap: Callable[[Scalars], Scalars], root: Scalars, exists: Bool[Array, "..."], critical: float
) -> Scalars:
    """Return the root of an elementwise function, with derivatives in what that closes over.

    Args:
        gap: the function.
        root: where it is zero.
        exists: where that is so.
        critical: what stands for one over the slope of the function where that vanishes in
            rounding.
    """

    def divide(linear: Callable[[Scalars], Scalars], change: Scalars) -> Scalars:
        slope = linear(jnp.ones_like(change))
        is_regular = exists & (jnp.abs(slope) > 8 * jnp.finfo(slope.dtype).eps)
        return change * jnp.where(is_regular, 1 / jnp.where(is_regular, slope, 1), critical)

    return lax.custom_root(gap, lax.stop_gradient(root), lambda _, start: start, divide)


def _like(x: Scalars, number: float) -> Scalars:
    """Return the number in the shape of x, and varying over a mesh as x does."""
    return jnp.where(jnp.isnan(x), x, number)
