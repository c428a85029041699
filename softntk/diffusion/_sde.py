r"""Variance-preserving noising processes: dX = −½ g(t) X dt + √g(t) dB on [0, T], started at data.

With I(t) = ∫₀ᵗ g,

    X_t | X_0 ~ N(α(t) X_0, h(t) I),
    α = e^{−I/2},    h = 1 − α² = −expm1(−I),    log-SNR λ = log(α²/h) = −log expm1(I).

Everything follows from I and its inverse, so a schedule is three functions: g, I and I⁻¹. h is
never computed as a difference: near t = 0 it keeps all of its digits.

    ======  ============  ====================================
    symbol  name          meaning
    ======  ============  ====================================
    g       ``rate``      rate of the noise
    I       ``integral``  ∫₀ᵗ g
    α       ``alpha``     factor on the signal
    h       ``variance``  variance of the noise, in each coordinate
    λ       ``log_snr``   logarithm of the signal-to-noise ratio
    T       ``horizon``   the last time
    ======  ============  ====================================

Example:
    >>> from softntk.diffusion import sde
    >>> noising = sde.vp_sde()
    >>> values = noising.alpha(0.5), noising.variance(0.5), noising.log_snr(0.5)
    >>> [round(float(v), 4) for v in values]
    [0.2812, 0.9209, -2.4551]

Source: Song et al. (2021), arXiv 2011.13456, section 3.4 (VP); arXiv 2405.03251, the section on
diffusion; MATHEMATICS.md#diffusion.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from softntk._core.validation import check_number, is_concrete
from softntk.diffusion._arguments import as_real, check_hyperparameter
from softntk.diffusion._noising_process import VPSDE as VPSDE
from softntk.diffusion._process_record import apply_to_number, in_dtype, process_record
from softntk.diffusion._types import Number

MIN_ANGLE_WIDTH = 1e-6
"""Least difference between the last and the first angle of a cosine schedule."""


@process_record
class LinearVPSDE(VPSDE):
    """A process whose rate g rises linearly; see :func:`vp_sde`.

    Attributes:
        beta_min: g(0).
        beta_max: g(T).
        horizon: T.
    """

    beta_min: Number
    beta_max: Number
    horizon: Number

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) = β_min + (β_max − β_min) t/T."""
        time = as_real("t", t, finite=False)
        time_fraction = time / in_dtype(self.horizon, time.dtype)
        slope = in_dtype(self.beta_max - self.beta_min, time.dtype)
        return in_dtype(self.beta_min, time.dtype) + slope * time_fraction

    def integral(self, t: ArrayLike) -> Array:
        """Return I(t) = β_min t + (β_max − β_min) t²/(2T), from the fraction t/T."""
        time = as_real("t", t, finite=False)
        # From t/T, as t² may leave the range of the precision.
        time_fraction = time / in_dtype(self.horizon, time.dtype)
        linear_term = in_dtype(self.beta_min * self.horizon, time.dtype)
        quadratic_term = in_dtype((self.beta_max - self.beta_min) * self.horizon, time.dtype)
        return time_fraction * (linear_term + quadratic_term * time_fraction / 2)

    def _time_of_integral(self, integral: Array) -> Array:
        """Return the root of I(t) = integral, without cancellation, also for a constant rate."""
        linear_term = in_dtype(self.beta_min * self.horizon, integral.dtype)
        quadratic_term = in_dtype((self.beta_max - self.beta_min) * self.horizon, integral.dtype)
        root = jnp.sqrt(jnp.maximum(linear_term**2 + 2 * quadratic_term * integral, 0))
        # The textbook's (root − linear)/quadratic cancels, and is 0/0 for a constant rate.
        time_fraction = 2 * integral / (linear_term + root)
        return in_dtype(self.horizon, integral.dtype) * time_fraction


@process_record
class CosineVPSDE(VPSDE):
    """A process whose signal falls as a cosine; see :func:`cosine_sde`.

    Attributes:
        start: θ(0), the angle at t = 0.
        end: θ(T), the angle at the horizon, below π/2.
        horizon: T.
    """

    start: Number
    end: Number
    horizon: Number

    def _angle(self, time_fraction: Array) -> Array:
        """Return θ at the fraction t/T."""
        start_angle = in_dtype(self.start, time_fraction.dtype)
        return start_angle + in_dtype(self.end - self.start, time_fraction.dtype) * time_fraction

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) = 2 θ' tan θ(t)."""
        time = as_real("t", t, finite=False)
        horizon = in_dtype(self.horizon, time.dtype)
        time_fraction = time / horizon
        angle_width = in_dtype(self.end - self.start, time.dtype)
        return 2 * angle_width / horizon * jnp.tan(self._angle(time_fraction))

    def integral(self, t: ArrayLike) -> Array:
        """Return I(t) = −log(cos²θ/cos²θ_0), accurate at both ends.

        Early it comes from h = (sin²θ − sin²θ_0)/cos²θ_0, a product of sines. Late it comes from
        the angle π/2 − θ that remains.
        """
        time = as_real("t", t, finite=False)
        time_fraction = time / in_dtype(self.horizon, time.dtype)
        angle_width = in_dtype(self.end - self.start, time.dtype)
        start_cosine = in_dtype(apply_to_number(math.cos, jnp.cos, self.start), time.dtype)
        # sin²θ − sin²θ_0 = sin(θ − θ_0) sin(θ + θ_0).
        h = (
            jnp.sin(angle_width * time_fraction)
            * jnp.sin(self._angle(time_fraction) + in_dtype(self.start, time.dtype))
            / start_cosine**2
        )
        # cos θ = sin(π/2 − θ), from an angle that is small at the end.
        remaining_angle = in_dtype(math.pi / 2 - self.end, time.dtype)
        remaining_angle = remaining_angle + angle_width * (1 - time_fraction)
        # Each branch is accurate on its side of h = ½. The minimum keeps the early one finite where
        # it is not used.
        early_integral = -jnp.log1p(-jnp.minimum(h, 0.5))
        late_integral = -2 * jnp.log(jnp.sin(remaining_angle) / start_cosine)
        return jnp.where(h < 0.5, early_integral, late_integral)

    def _time_of_integral(self, integral: Array) -> Array:
        """Return the t whose angle θ has cos θ = cos θ_0 e^{−I/2}."""
        # sin²θ = sin²θ_0 + cos²θ_0 h.
        h = -jnp.expm1(-integral)
        start_sine = in_dtype(apply_to_number(math.sin, jnp.sin, self.start), integral.dtype)
        start_cosine = in_dtype(apply_to_number(math.cos, jnp.cos, self.start), integral.dtype)
        sine = jnp.sqrt(start_sine**2 + start_cosine**2 * h)
        cosine = start_cosine * jnp.exp(-integral / 2)
        # sin(θ − θ_0) as (sin²θ − sin²θ_0)/sin(θ + θ_0): near t = 0 it keeps its digits.
        sine_of_rise = start_cosine**2 * h / (sine * start_cosine + cosine * start_sine)
        cosine_of_rise = cosine * start_cosine + sine * start_sine
        angle_width = in_dtype(self.end - self.start, integral.dtype)
        time_fraction = jnp.arctan2(sine_of_rise, cosine_of_rise) / angle_width
        return time_fraction * in_dtype(self.horizon, integral.dtype)


def vp_sde(
    beta_min: Number = 0.1, beta_max: Number = 20.0, *, horizon: Number = 1.0
) -> LinearVPSDE:
    """Return the variance-preserving process whose rate rises linearly from beta_min to beta_max.

    Use it unless there is a reason not to: it is the usual schedule of score models.

        g(t) = β_min + (β_max − β_min) t/T,   I(t) = β_min t + (β_max − β_min) t²/(2T).

    The numbers may be traced: densities, scores and losses have derivatives in them.

    Args:
        beta_min: g(0) > 0.
        beta_max: g(T) ≥ beta_min.
        horizon: T > 0.

    Returns:
        A :class:`VPSDE` with ``alpha``, ``variance``, ``log_snr``, ``rate``, …

    Raises:
        ValueError: numbers that are not positive, beta_max < beta_min.

    Example:
        >>> round(float(vp_sde().alpha(1.0)), 4)
        0.0066

    Source: Song et al. (2021), arXiv 2011.13456, equation 32.
    """
    beta_min = check_hyperparameter("beta_min", beta_min, above=0)
    beta_max = check_hyperparameter("beta_max", beta_max, above=0)
    horizon = check_hyperparameter("horizon", horizon, above=0)
    if is_concrete(beta_max) and is_concrete(beta_min) and beta_max < beta_min:
        raise ValueError(f"beta_max must be at least beta_min = {beta_min:g}, got {beta_max!r}.")
    return LinearVPSDE(beta_min=beta_min, beta_max=beta_max, horizon=horizon)


def constant_sde(rate: Number = 10.0, *, horizon: Number = 1.0) -> LinearVPSDE:
    """Return the Ornstein–Uhlenbeck process, whose rate is constant: g(t) = rate.

    Use it where a constant rate is assumed, as in the theory.

    Args:
        rate: g > 0.
        horizon: T > 0.

    Returns:
        A :class:`VPSDE`.

    Raises:
        ValueError: numbers that are not positive.

    Example:
        >>> import math
        >>> round(float(constant_sde(2.0, horizon=3.0).alpha(1.0)) / math.exp(-1), 5)
        1.0

    Source: arXiv 2405.03251, the section on diffusion, with g constant.
    """
    rate = check_hyperparameter("rate", rate, above=0)
    # A linear rate of slope zero.
    return vp_sde(rate, rate, horizon=horizon)


def cosine_sde(
    offset: Number = 0.008, final_alpha: Number = 1e-3, *, horizon: Number = 1.0
) -> CosineVPSDE:
    """Return the process with the cosine schedule, ended where its rate is still finite.

    Use it to spend more time at middle noise levels than :func:`vp_sde` does.

        α(t) = cos θ(t)/cos θ(0),

    with θ linear in t, from (π/2) s/(1 + s) to the angle at which α is final_alpha.

    Args:
        offset: s > 0.
        final_alpha: α(T), between 0 and 1.
        horizon: T > 0.

    Returns:
        A :class:`VPSDE`.

    Raises:
        ValueError: numbers that are not positive, final_alpha not below 1.

    Example:
        >>> round(float(cosine_sde().alpha(1.0)), 5)
        0.001

    Source: Nichol and Dhariwal (2021), arXiv 2102.09672, equation 17 (they clip the rate instead).
    """
    offset = check_number("offset", offset, above=0)
    final_alpha = check_number("final_alpha", final_alpha, above=0)
    horizon = check_hyperparameter("horizon", horizon, above=0)
    if is_concrete(final_alpha) and final_alpha >= 1:
        raise ValueError(f"final_alpha must lie between 0 and 1, got {final_alpha!r}.")
    start_angle = math.pi / 2 * offset / (1 + offset)
    # α(T) = cos θ(T)/cos θ(0).
    end_cosine = final_alpha * apply_to_number(math.cos, jnp.cos, start_angle)
    end_angle = apply_to_number(math.acos, jnp.arccos, end_cosine)
    if is_concrete(end_angle) and end_angle - start_angle < MIN_ANGLE_WIDTH:
        raise ValueError(
            f"offset and final_alpha must leave an angle to turn, got {offset!r} and "
            f"{final_alpha!r}: the process adds no noise. Take smaller ones."
        )
    return CosineVPSDE(start=start_angle, end=end_angle, horizon=horizon)
