r"""Functions of a symmetric matrix that describe gradient descent and gradient flow.

    filter      descent                 flow                    meaning
    d(λ)        (1 − ηλ)^τ              e^{−λt}                 decay of a component of the residual
    c(λ)        (1 − d(λ))/λ            (1 − d(λ))/λ            sum of the component over training

    apply_filter:  V f(Λ) Vᵀ R  for H = V Λ Vᵀ and f = d or c

Derivatives. In the direction E, the derivative of f(H) is V (f[λ_i, λ_j] ∘ VᵀEV) Vᵀ, with the
divided differences f[λ, μ] = (f(λ) − f(μ))/(λ − μ) and f[λ, λ] = f'(λ) (Daleckii and Krein;
Löwner). No 1/(λ_i − λ_j) of the derivative of an eigenvector appears, so equal eigenvalues need no
special case. The divided differences are computed without cancellation.

    descent:  d[λ, μ] = −η a^{τ−1} ψ(1 − b/a)
              with a = 1 − ηλ, b = 1 − ημ, |a| ≥ |b|, and ψ(x) = (1 − (1 − x)^τ)/x
    flow:     d[λ, μ] = −e^{−λt} (1 − e^{−δt})/δ  with δ = μ − λ ≥ 0
    both:     c[λ, μ] = −d[0, λ, μ]
              by the largest gap of the three points, or by a series where they are close

Symbols in the code:

    lam, mu     eigenvalues of H, in units of its own scale
    bound       1/(the largest eigenvalue that may be the rounding of zero)

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
from softntk.ntk._row_scales import saturate

_SERIES_TERMS = 12  # x^12/14! at x = ½ is below the rounding of float64
_SERIES_SPREAD = 0.5  # the series is used where λ and μ times the total time differ by less


class Descent(NamedTuple):
    """Gradient descent for several numbers of steps, or for one of them.

    Attributes:
        rates: learning rates η, [s].
        steps: numbers of steps τ, [s].
    """

    rates: Float[Array, " s"]
    steps: Integer[Array, " s"]

    @property
    def total_time(self) -> Array:
        """The product ητ."""
        return self.rates * self.steps.astype(self.rates.dtype)

    @property
    def inverse_count(self) -> Array:
        """The inverse number of steps, 1/τ."""
        return 1 / jnp.maximum(self.steps, 1).astype(self.rates.dtype)

    def in_units(self, unit: Array) -> "Descent":
        """Return the same descent for eigenvalues in this unit."""
        return Descent(saturate(self.rates * unit), self.steps)

    def decay(self, lam: Array) -> Array:
        """Return (1 − ηλ)^τ."""
        return _power(saturate(self.rates * lam), self.steps)

    def accumulate(self, lam: Array) -> Array:
        """Return (1 − (1 − ηλ)^τ)/λ."""
        return self.rates * _partial_sum(saturate(self.rates * lam), self.steps)

    def stays_below_one(self, lam: Array) -> Array:
        """Return where descent does not diverge, that is, where |d| ≤ 1."""
        return self.rates * lam <= 2

    def divided_difference(self, lam: Array, mu: Array, bound: Array) -> Array:
        """Return d[λ, μ]."""
        rate_lam = saturate(self.rates * lam)
        rate_mu = saturate(self.rates * mu)
        is_swapped = jnp.abs(1 - rate_mu) > jnp.abs(1 - rate_lam)
        # a = 1 − first is the base of larger modulus, b = 1 − second the other.
        first = jnp.where(is_swapped, rate_mu, rate_lam)
        second = jnp.where(is_swapped, rate_lam, rate_mu)
        base = 1 - first
        ratio_gap = (second - first) / jnp.where(base == 0, 1, base)  # 1 − b/a
        partial_sum = self.rates * _partial_sum(ratio_gap, self.steps)
        return -_power(first, jnp.maximum(self.steps - 1, 0)) * jnp.minimum(partial_sum, bound)

    def time_derivative(self, lam: Array) -> Array:
        """Return ∂c/∂η = τ(1 − ηλ)^{τ−1}; that of d is −λ times it."""
        steps = self.steps
        return steps.astype(lam.dtype) * _power(
            saturate(self.rates * lam), jnp.maximum(steps - 1, 0)
        )


class Flow(NamedTuple):
    """Gradient flow at several times, or at one of them.

    Attributes:
        times: t ≥ 0, [s].
    """

    times: Float[Array, " s"]

    @property
    def total_time(self) -> Array:
        """The time t."""
        return self.times

    @property
    def inverse_count(self) -> Array:
        """Zero: flow is the limit of descent in infinitely many steps."""
        return jnp.zeros_like(self.times)

    def in_units(self, unit: Array) -> "Flow":
        """Return the same flow for eigenvalues in this unit."""
        return Flow(saturate(self.times * unit))

    def decay(self, lam: Array) -> Array:
        """Return e^{−λt}."""
        return jnp.exp(_clip_exponent(-saturate(lam * self.times)))

    def accumulate(self, lam: Array) -> Array:
        """Return (1 − e^{−λt})/λ."""
        exponent = _clip_exponent(-saturate(lam * self.times))
        return jnp.where(lam == 0, self.times, -jnp.expm1(exponent) / jnp.where(lam == 0, 1, lam))

    def stays_below_one(self, lam: Array) -> Array:
        """Return True everywhere: flow never diverges where λ ≥ 0."""
        return jnp.ones(lam.shape, bool)

    def divided_difference(self, lam: Array, mu: Array, bound: Array) -> Array:
        """Return d[λ, μ]."""
        return -self.decay(jnp.minimum(lam, mu)) * jnp.minimum(
            self.accumulate(jnp.abs(lam - mu)), bound
        )

    def time_derivative(self, lam: Array) -> Array:
        """Return ∂c/∂t = e^{−λt}; that of d is −λ times it."""
        return self.decay(lam)


TrainingTimes = Descent | Flow


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _apply_filter(
    is_sum: bool,
    size: int,
    times: TrainingTimes,
    matrix: Float[Array, "p p"],
    rhs: Float[Array, "p k"],
) -> Float[Array, "s p k"]:
    """Return f(H) R at each of the s times, differentiable in everything but τ.

    H is symmetrised. An eigenvalue that is negative by no more than rounding counts as zero. An
    eigenvalue that may be rounding of zero has no meaningful inverse, so c is clipped there, unless
    descent diverges. A component that diverges saturates at the root of the largest number.

    Args:
        is_sum: whether f is c, the sum over training, or d, the decay.
        size: n in the rounding error 2√n ε λ_max.
        times: when to evaluate.
        matrix: H.
        rhs: R.
    """
    spectrum = _decompose(size, matrix)
    components = product(spectrum.vectors.T, rhs)
    filter_values = jax.vmap(lambda time: _filter_values(is_sum, spectrum, time))(
        times.in_units(spectrum.unit)
    )
    filtered_vectors = product(spectrum.vectors, filter_values[:, :, None] * components[None])
    return filtered_vectors / spectrum.unit if is_sum else filtered_vectors


def _apply_filter_jvp(
    is_sum: bool, size: int, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """Return f(H) R and its tangent, by divided differences."""
    times, matrix, rhs = primals
    times_tangent, matrix_tangent, rhs_tangent = tangents
    spectrum = _decompose(size, matrix)
    vectors = spectrum.vectors
    scaled_times = times.in_units(spectrum.unit)
    # 1. The value, in the basis of eigenvectors.
    components = product(vectors.T, rhs)
    filter_values = jax.vmap(lambda time: _filter_values(is_sum, spectrum, time))(scaled_times)
    value = product(vectors, filter_values[:, :, None] * components[None])

    # 2. Its tangents in R, in η or t, and in H; symbolic zeros cost nothing.
    tangent = jnp.zeros_like(value)
    if _is_nonzero(rhs_tangent):
        tangent = tangent + filter_values[:, :, None] * product(vectors.T, rhs_tangent)[None]
    times_tangent = times_tangent[0]  # of η or t, the first field
    if _is_nonzero(times_tangent):
        time_slopes = jax.vmap(lambda time: time.time_derivative(spectrum.values))(scaled_times)
        time_slopes = time_slopes if is_sum else -spectrum.values[None, :] * time_slopes
        tangent = (
            tangent
            + (spectrum.unit * times_tangent)[:, None, None]
            * time_slopes[:, :, None]
            * components[None]
        )
    if _is_nonzero(matrix_tangent):
        matrix_direction = 0.5 * (matrix_tangent + matrix_tangent.T) / spectrum.unit
        matrix_direction = product(product(vectors.T, matrix_direction), vectors)

        # Reverse mode computes the [p, p] divided differences again instead of storing s of them.
        @jax.checkpoint
        def multiply_differences(time: TrainingTimes) -> Array:
            differences = _divided_differences(is_sum, spectrum, time)
            return product(differences * matrix_direction, components)

        tangent = tangent + lax.map(multiply_differences, scaled_times)

    # 3. Back from the basis and the units.
    tangent = product(vectors, tangent)
    return (value / spectrum.unit, tangent / spectrum.unit) if is_sum else (value, tangent)


_apply_filter.defjvp(_apply_filter_jvp, symbolic_zeros=True)
apply_filter = jax.jit(_apply_filter, static_argnums=(0, 1))


def _is_nonzero(tangent: Any) -> bool:
    """Return whether a tangent is an array, and no symbolic zero."""
    return not isinstance(tangent, SymbolicZero)


class _Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of H.

    Attributes:
        values: eigenvalues in units of ``unit``; what rounding made negative is zero.
        vectors: eigenvectors, as columns.
        unit: a power of two near the largest entry of H.
        bound: 1/(2√n ε λ_max), the largest c that the precision resolves.
    """

    values: Float[Array, " p"]
    vectors: Float[Array, "p p"]
    unit: Float[Array, ""]
    bound: Float[Array, ""]


def _decompose(size: int, matrix: Array) -> _Spectrum:
    """Return the eigenvalues of a matrix, with what rounding made negative set to zero."""
    unit = binary_scale(matrix).reshape(())
    values, vectors = jnp.linalg.eigh(matrix / unit)
    rounding_error = rounding(size, jnp.max(jnp.abs(lax.stop_gradient(values))))
    values = jnp.where((values < 0) & (values >= -rounding_error), 0, values)
    # Eigenvalues of a matrix of zeros are known exactly: there c is ητ, up to the root of the
    # largest number.
    max_root = 2.0 ** (jnp.finfo(matrix.dtype).maxexp // 2 - 1)
    bound = jnp.where(
        rounding_error > 0, 1 / jnp.where(rounding_error > 0, rounding_error, 1), max_root
    )
    return _Spectrum(values, vectors, unit, bound)


def _filter_values(is_sum: bool, spectrum: _Spectrum, time: TrainingTimes) -> Float[Array, " p"]:
    """Return f of all eigenvalues."""
    if not is_sum:
        return time.decay(spectrum.values)
    sums = time.accumulate(spectrum.values)
    return jnp.where(_is_clipped(sums, spectrum, time), spectrum.bound, sums)


def _is_clipped(sums: Array, spectrum: _Spectrum, time: TrainingTimes) -> Array:
    """Return where c is above what the precision resolves."""
    return (sums > spectrum.bound) & (spectrum.values >= 0) & time.stays_below_one(spectrum.values)


def _divided_differences(
    is_sum: bool, spectrum: _Spectrum, time: TrainingTimes
) -> Float[Array, "p p"]:
    """Return f[λ_i, λ_j] for all pairs of eigenvalues."""
    lam = spectrum.values[:, None]
    mu = spectrum.values[None, :]
    if not is_sum:
        return time.divided_difference(lam, mu, spectrum.bound)
    clipped = _is_clipped(time.accumulate(spectrum.values), spectrum, time)

    # Where c is clipped it is no longer smooth, and the plain quotient of differences is used.
    filter_values = _filter_values(True, spectrum, time)
    eigenvalue_gap = lam - mu
    secant = jnp.where(
        eigenvalue_gap == 0,
        0,
        (filter_values[:, None] - filter_values[None, :])
        / jnp.where(eigenvalue_gap == 0, 1, eigenvalue_gap),
    )
    return jnp.where(
        clipped[:, None] | clipped[None, :],
        secant,
        _second_difference(time, lam, mu, spectrum.bound),
    )


def _second_difference(time: TrainingTimes, lam: Array, mu: Array, bound: Array) -> Array:
    """Return c[λ, μ] = −d[0, λ, μ].

    It is the difference of two divided differences over the largest gap of the three points, or a
    series where they are close.
    """
    # 1. The three points in order, and their largest gap.
    lower = jnp.minimum(lam, mu)
    upper = jnp.maximum(lam, mu)
    lowest = jnp.minimum(lower, 0)
    highest = jnp.maximum(upper, 0)
    middle = jnp.clip(jnp.zeros_like(lower), lower, upper)
    length = jnp.minimum(time.total_time, bound)
    is_close = (highest - lowest) * length < _SERIES_SPREAD
    spread = jnp.where(is_close, 1, highest - lowest)
    secant = (
        time.divided_difference(lowest, middle, bound)
        - time.divided_difference(middle, highest, bound)
    ) / spread

    # 2. Close points:
    # −(ητ)² Σ_k (−1)^k Π_{i ≤ k+1} (1 − i/τ)/(i + 1) h_k(ητλ, ητμ), h_k the complete homogeneous
    # polynomials.
    scaled_lam = jnp.where(is_close, lam * length, 0)
    scaled_mu = jnp.where(is_close, mu * length, 0)
    inverse_count = time.inverse_count
    coefficient = 0.5 * (1 - inverse_count)
    polynomial = jnp.ones_like(scaled_lam)
    power = jnp.ones_like(scaled_mu)
    series = coefficient * polynomial
    for k in range(1, _SERIES_TERMS):
        power = power * scaled_mu
        polynomial = scaled_lam * polynomial + power
        coefficient = -coefficient * (1 - (k + 1) * inverse_count) / (k + 2)
        series = series + coefficient * polynomial
    return jnp.where(is_close, -length * length * series, secant)


def _power(t: Array, steps: Array) -> Array:
    """Return (1 − t)^τ with all digits for a small t, saturating where |1 − t| > 1."""
    magnitude = jnp.where(
        t < 1, jnp.log1p(-jnp.where(t < 1, t, 0)), jnp.log(jnp.where(t > 1, t - 1, 1))
    )
    power = jnp.exp(_clip_exponent(steps.astype(t.dtype) * magnitude))
    power = jnp.where((steps % 2 == 1) & (t > 1), -power, power)
    return jnp.where(t == 1, (steps == 0).astype(t.dtype), power)


def _partial_sum(t: Array, steps: Array) -> Array:
    """Return (1 − (1 − t)^τ)/t = Σ_{j<τ} (1 − t)^j."""
    is_small = t < 0.5  # through expm1, which cancels no digits there
    small_t = jnp.where(is_small, t, 0)
    count = steps.astype(t.dtype)
    numerator = jnp.where(
        is_small,
        -jnp.expm1(_clip_exponent(count * jnp.log1p(-small_t))),
        1 - _power(jnp.where(is_small, 1, t), steps),
    )
    return jnp.where(t == 0, count, numerator / jnp.where(t == 0, 1, t))


def _clip_exponent(exponent: Array) -> Array:
    """Return the exponent, at most the logarithm of the root of the largest number."""
    return jnp.minimum(exponent, 0.5 * jnp.log(jnp.finfo(exponent.dtype).max))
