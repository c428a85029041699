r"""Functions of a symmetric matrix that gradient descent and gradient flow are made of, with their
derivatives.

    decay        d(λ) = (1 − ηλ)^τ             e^{−λt}              what is left of a component of the residual
    mean         c(λ) = (1 − d(λ))/λ           the same             what has been added up along it

    filtered:  V f(Λ) Vᵀ R  for H = V Λ Vᵀ and f = d or c

The derivative of f(H) in the direction E is V (f[λ_i, λ_j] ∘ VᵀEV) Vᵀ with the divided differences
f[λ, μ] = (f(λ) − f(μ))/(λ − μ), f[λ, λ] = f'(λ) (Daleckii and Krein; Löwner): no 1/(λ_i − λ_j)
appears, and equal eigenvalues, where eigenvectors have no derivative, are as good as any others.
The divided differences are computed without cancellation:

    d[λ, μ] = −η a^{τ−1} ψ(1 − b/a),   a = 1 − ηλ, b = 1 − ημ, |a| ≥ |b|,   ψ(x) = (1 − (1 − x)^τ)/x   (descent)
    d[λ, μ] = −e^{−λt} (1 − e^{−δt})/δ,   δ = μ − λ ≥ 0                                                (flow)
    c[λ, μ] = −d[0, λ, μ],   by the largest gap of the three points, or by a series where they are close.

Source: Higham (2008), Functions of Matrices, Theorem 3.11; Bhatia (1997), Matrix Analysis, section
V.3.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Integer

from softntk._linalg.gram_arrays import rounding
from softntk._linalg.norms import binary_scale
from softntk._linalg.products import product

_SERIES_TERMS = 12  # x^12/14! at x = ½ is below the rounding of float64
_SERIES_SPREAD = 0.5

# Symbols: lam, mu eigenvalues of H in units of its own scale; bound, 1/(what rounding leaves of a
# zero eigenvalue).


class Descent(NamedTuple):
    """Gradient descent: learning rates η and numbers of steps τ, [s] each, or one of them."""

    rates: Float[Array, " s"]
    steps: Integer[Array, " s"]

    @property
    def clock(self) -> Array:
        """What may be differentiated in: η."""
        return self.rates

    @property
    def length(self) -> Array:
        """ητ."""
        return self.rates * self.steps.astype(self.rates.dtype)

    @property
    def inverse_count(self) -> Array:
        """1/τ."""
        return 1 / jnp.maximum(self.steps, 1).astype(self.rates.dtype)

    def in_unit(self, unit: Array) -> "Descent":
        """Return the same descent for eigenvalues that are counted in this unit."""
        return Descent(_bounded(self.rates * unit), self.steps)

    def decay(self, lam: Array) -> Array:
        """Return (1 − ηλ)^τ."""
        return _power(_bounded(self.rates * lam), self.steps)

    def mean(self, lam: Array) -> Array:
        """Return (1 − (1 − ηλ)^τ)/λ."""
        return self.rates * _partial_sum(_bounded(self.rates * lam), self.steps)

    def bounded(self, lam: Array) -> Array:
        """Return where d stays below one, so that c is at most 1/λ."""
        return self.rates * lam <= 2

    def slope(self, lam: Array, mu: Array, bound: Array) -> Array:
        """Return d[λ, μ]."""
        first, second = _bounded(self.rates * lam), _bounded(self.rates * mu)
        swap = jnp.abs(1 - second) > jnp.abs(1 - first)
        larger, smaller = jnp.where(swap, second, first), jnp.where(swap, first, second)
        base = 1 - larger
        ratio_gap = (smaller - larger) / jnp.where(base == 0, 1, base)  # 1 − b/a
        total = self.rates * _partial_sum(ratio_gap, self.steps)
        return -_power(larger, jnp.maximum(self.steps - 1, 0)) * jnp.minimum(total, bound)

    def drift(self, lam: Array) -> Array:
        """Return ∂c/∂η = τ(1 − ηλ)^{τ−1}; that of d is −λ times it."""
        steps = self.steps
        return steps.astype(lam.dtype) * _power(
            _bounded(self.rates * lam), jnp.maximum(steps - 1, 0)
        )


class Flow(NamedTuple):
    """Gradient flow: times t ≥ 0, [s], or one of them."""

    times: Float[Array, " s"]

    @property
    def clock(self) -> Array:
        """What may be differentiated in: t."""
        return self.times

    @property
    def length(self) -> Array:
        """Return t."""
        return self.times

    @property
    def inverse_count(self) -> Array:
        """Zero: flow is descent in infinitely many steps."""
        return jnp.zeros_like(self.times)

    def in_unit(self, unit: Array) -> "Flow":
        """Return the same flow for eigenvalues that are counted in this unit."""
        return Flow(_bounded(self.times * unit))

    def decay(self, lam: Array) -> Array:
        """Return e^{−λt}."""
        return jnp.exp(_below_root(-_bounded(lam * self.times)))

    def mean(self, lam: Array) -> Array:
        """Return (1 − e^{−λt})/λ."""
        exponent = _below_root(-_bounded(lam * self.times))
        return jnp.where(lam == 0, self.times, -jnp.expm1(exponent) / jnp.where(lam == 0, 1, lam))

    def bounded(self, lam: Array) -> Array:
        """Return True: d never exceeds one where λ ≥ 0."""
        return jnp.ones(lam.shape, bool)

    def slope(self, lam: Array, mu: Array, bound: Array) -> Array:
        """Return d[λ, μ]."""
        return -self.decay(jnp.minimum(lam, mu)) * jnp.minimum(self.mean(jnp.abs(lam - mu)), bound)

    def drift(self, lam: Array) -> Array:
        """Return ∂c/∂t = e^{−λt}; that of d is −λ times it."""
        return self.decay(lam)


Clock = Descent | Flow


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _filtered(
    adds_up: bool, size: int, clock: Clock, matrix: Float[Array, "p p"], right: Float[Array, "p k"]
) -> Float[Array, "s p k"]:
    """Return f(H) R at each of the s moments, f = c if it ``adds_up``, else d; differentiable in
    all but τ.

    H is symmetrised. An eigenvalue that is negative by no more than rounding counts as zero, and
    1/λ of one that rounding may have made is not known: c stays below what the precision resolves,
    where descent does not diverge. What diverges saturates at the root of the largest number.

    Args:
        adds_up: c or d.
        size: n by which rounding is judged, 2√n ε λ_max.
        clock: the moments.
        matrix: H.
        right: R.
    """
    spectrum = _decompose(size, matrix)
    components = product(spectrum.vectors.T, right)
    weights = jax.vmap(lambda moment: _weights(adds_up, spectrum, moment))(
        clock.in_unit(spectrum.unit)
    )
    moved = product(spectrum.vectors, weights[:, :, None] * components[None])
    return moved / spectrum.unit if adds_up else moved


def _filtered_jvp(adds_up: bool, size: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    clock, matrix, right = primals
    clock_tangent, matrix_tangent, right_tangent = tangents
    spectrum = _decompose(size, matrix)
    vectors = spectrum.vectors
    moments = clock.in_unit(spectrum.unit)
    components = product(vectors.T, right)
    weights = jax.vmap(lambda moment: _weights(adds_up, spectrum, moment))(moments)
    out = product(vectors, weights[:, :, None] * components[None])
    change = jnp.zeros_like(out)
    if _moves(right_tangent):
        change = change + weights[:, :, None] * product(vectors.T, right_tangent)[None]
    clock_tangent = clock_tangent[0]
    if _moves(clock_tangent):
        drifts = jax.vmap(lambda moment: moment.drift(spectrum.values))(moments)
        drifts = drifts if adds_up else -spectrum.values[None, :] * drifts
        change = (
            change
            + (spectrum.unit * clock_tangent)[:, None, None] * drifts[:, :, None] * components[None]
        )
    if _moves(matrix_tangent):
        direction = 0.5 * (matrix_tangent + matrix_tangent.T) / spectrum.unit
        direction = product(product(vectors.T, direction), vectors)

        # reverse mode computes the [p, p] divided differences again instead of keeping s of them
        @jax.checkpoint
        def along(moment: Clock) -> Array:
            differences = _differences(adds_up, spectrum, moment)
            return product(differences * direction, components)

        change = change + lax.map(along, moments)
    change = product(vectors, change)
    return (out / spectrum.unit, change / spectrum.unit) if adds_up else (out, change)


_filtered.defjvp(_filtered_jvp, symbolic_zeros=True)
filtered = jax.jit(_filtered, static_argnums=(0, 1))


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


class _Spectrum(NamedTuple):
    values: Float[Array, " p"]  # in units of unit; what rounding made negative is zero
    vectors: Float[Array, "p p"]
    unit: Float[Array, ""]  # a power of two
    bound: Float[Array, ""]  # 1/(2√n ε λ_max)


def _decompose(size: int, matrix: Array) -> _Spectrum:
    unit = binary_scale(matrix).reshape(())
    values, vectors = jnp.linalg.eigh(matrix / unit)
    noise = rounding(size, jnp.max(jnp.abs(lax.stop_gradient(values))))
    values = jnp.where((values < 0) & (values >= -noise), 0, values)
    # Eigenvalues of a matrix of zeros are known exactly: there c is ητ, up to the root of the
    # largest number.
    root = 2.0 ** (jnp.finfo(matrix.dtype).maxexp // 2 - 1)
    bound = jnp.where(noise > 0, 1 / jnp.where(noise > 0, noise, 1), root)
    return _Spectrum(values, vectors, unit, bound)


def _weights(adds_up: bool, spectrum: _Spectrum, moment: Clock) -> Float[Array, " p"]:
    if not adds_up:
        return moment.decay(spectrum.values)
    means = moment.mean(spectrum.values)
    return jnp.where(_clipped(means, spectrum, moment), spectrum.bound, means)


def _clipped(means: Array, spectrum: _Spectrum, moment: Clock) -> Array:
    return (means > spectrum.bound) & (spectrum.values >= 0) & moment.bounded(spectrum.values)


def _differences(adds_up: bool, spectrum: _Spectrum, moment: Clock) -> Float[Array, "p p"]:
    """Return f[λ_i, λ_j] for all pairs of eigenvalues."""
    lam, mu = spectrum.values[:, None], spectrum.values[None, :]
    if not adds_up:
        return moment.slope(lam, mu, spectrum.bound)
    clipped = _clipped(moment.mean(spectrum.values), spectrum, moment)
    weights, gap = _weights(True, spectrum, moment), lam - mu
    secant = jnp.where(
        gap == 0, 0, (weights[:, None] - weights[None, :]) / jnp.where(gap == 0, 1, gap)
    )
    return jnp.where(
        clipped[:, None] | clipped[None, :], secant, _curve(moment, lam, mu, spectrum.bound)
    )


def _curve(moment: Clock, lam: Array, mu: Array, bound: Array) -> Array:
    """Return c[λ, μ] = −d[0, λ, μ]: by the largest gap, or by its series where the function hardly
    bends between the three.
    """
    low, high = jnp.minimum(lam, mu), jnp.maximum(lam, mu)
    least, most = jnp.minimum(low, 0), jnp.maximum(high, 0)
    middle = jnp.clip(jnp.zeros_like(low), low, high)
    length = jnp.minimum(moment.length, bound)
    close = (most - least) * length < _SERIES_SPREAD
    spread = jnp.where(close, 1, most - least)
    secant = (moment.slope(least, middle, bound) - moment.slope(middle, most, bound)) / spread
    # −(ητ)² Σ_k (−1)^k Π_{i ≤ k+1} (1 − i/τ)/(i + 1) h_k(ητλ, ητμ), h_k the complete homogeneous
    # polynomials.
    first, second = jnp.where(close, lam * length, 0), jnp.where(close, mu * length, 0)
    inverse = moment.inverse_count
    coefficient = 0.5 * (1 - inverse)
    polynomial = jnp.ones_like(first)
    power = jnp.ones_like(second)
    total = coefficient * polynomial
    for k in range(1, _SERIES_TERMS):
        power = power * second
        polynomial = first * polynomial + power
        coefficient = -coefficient * (1 - (k + 1) * inverse) / (k + 2)
        total = total + coefficient * polynomial
    return jnp.where(close, -length * length * total, secant)


def _power(t: Array, steps: Array) -> Array:
    """Return (1 − t)^τ without losing the digits of a small t, saturating where |1 − t| > 1."""
    magnitude = jnp.where(
        t < 1, jnp.log1p(-jnp.where(t < 1, t, 0)), jnp.log(jnp.where(t > 1, t - 1, 1))
    )
    power = jnp.exp(_below_root(steps.astype(t.dtype) * magnitude))
    power = jnp.where((steps % 2 == 1) & (t > 1), -power, power)
    return jnp.where(t == 1, (steps == 0).astype(t.dtype), power)


def _partial_sum(t: Array, steps: Array) -> Array:
    """Return (1 − (1 − t)^τ)/t = Σ_{j<τ} (1 − t)^j."""
    small = t < 0.5  # through expm1, where nothing is lost by it
    inner = jnp.where(small, t, 0)
    count = steps.astype(t.dtype)
    learnt = jnp.where(
        small,
        -jnp.expm1(_below_root(count * jnp.log1p(-inner))),
        1 - _power(jnp.where(small, 1, t), steps),
    )
    return jnp.where(t == 0, count, learnt / jnp.where(t == 0, 1, t))


def _below_root(exponent: Array) -> Array:
    """Return the exponent, at most that of the root of the largest number."""
    return jnp.minimum(exponent, 0.5 * jnp.log(jnp.finfo(exponent.dtype).max))


def _bounded(x: Array) -> Array:
    """Return x within the range of its precision: what was infinite becomes the largest number."""
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest)
