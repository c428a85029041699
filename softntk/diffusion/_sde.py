r"""Variance-preserving noising processes: dX = −½ g(t) X dt + √g(t) dB on [0, T], started at data.

With I(t) = ∫₀ᵗ g,

    X_t | X_0 ~ N(α(t) X_0, h(t) I),    α = e^{−I/2},    h = 1 − α² = −expm1(−I),    log-SNR λ = log(α²/h) = −log expm1(I).

Everything follows from I and its inverse, so a schedule is three functions: g, I and I⁻¹. h is
never taken as a difference: near t = 0 it keeps all of its digits.

Example:
    >>> from softntk.diffusion import sde
    >>> noising = sde.vp_sde()
    >>> [round(float(v), 4) for v in (noising.alpha(0.5), noising.variance(0.5), noising.log_snr(0.5))]
    [0.2812, 0.9209, -2.4551]

Source: Song et al. (2021), arXiv 2011.13456, section 3.4 (VP); arXiv 2405.03251, the section on
diffusion; MATHEMATICS.md#diffusion.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    as_rows,
    check_choice,
    check_count,
    check_key,
    check_number,
    is_concrete,
)
from softntk.diffusion._arguments import (
    Number,
    as_real,
    as_times,
    check_hyperparameter,
    check_min_time,
    columns_of_times,
)
from softntk.diffusion._process_record import apply_to_number, in_dtype, process_record
from softntk.diffusion._truncated_normal import truncated_normal_quantile

WEIGHTINGS = ("denoising", "noise", "score", "likelihood")

_LEAST_ANGLE = 1e-6  # that a cosine schedule has to turn

_ABSTRACT = "VPSDE is what all schedules share. Take vp_sde(), constant_sde() or cosine_sde()."


class VPSDE:
    """What all schedules share; a schedule adds ``rate`` (g), ``integral`` (I) and
    ``_time_of_integral``.

    The functions of t that make up the schedule take scalars or arrays of real numbers and are
    plain JAX; they do not look at the numbers. Times outside (0, horizon] are for
    :meth:`check_times` to refuse, as every other function of the package does.

    Attributes:
        horizon: T > 0.
    """

    horizon: Number

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) ≥ 0."""
        raise NotImplementedError(_ABSTRACT)

    def integral(self, t: ArrayLike) -> Array:
        """Return I(t) = ∫₀ᵗ g."""
        raise NotImplementedError(_ABSTRACT)

    def _time_of_integral(self, integral: Array) -> Array:
        raise NotImplementedError(_ABSTRACT)

    def alpha(self, t: ArrayLike) -> Array:
        """Return α(t) = e^{−I/2}: what is left of the signal."""
        return jnp.exp(-self.integral(t) / 2)

    def variance(self, t: ArrayLike) -> Array:
        """Return h(t) = 1 − α(t)²: the variance of the noise in each coordinate."""
        return -jnp.expm1(-self.integral(t))

    def log_snr(self, t: ArrayLike) -> Array:
        """Return λ(t) = log(α²/h), decreasing from +inf at t = 0."""
        time = as_real("t", t, finite=False)
        starts = time == 0
        # There it falls like −log t. By the chain rule the derivative would be a sum of infinities
        # of either sign.
        integral = self.integral(jnp.where(starts, jnp.asarray(self.horizon, time.dtype), time))
        later = -integral - jnp.log(-jnp.expm1(-integral))
        return jnp.where(starts, -jnp.log(jnp.where(starts, time, 1)), later)

    def time(self, log_snr: ArrayLike) -> Array:
        """Return the t with λ(t) = log_snr, at most ``horizon``."""
        integral = jax.nn.softplus(-as_real("log_snr", log_snr, finite=False))
        # than the horizon, but not infinite
        later = 2 * self.integral(jnp.asarray(self.horizon, integral.dtype))
        return jnp.minimum(self._time_of_integral(jnp.minimum(integral, later)), self.horizon)

    def check_times(self, t: ArrayLike, name: str = "t") -> None:
        """Refuse times outside (0, T], where they are known.

        Raises:
            ValueError: t not in (0, horizon].
        """
        as_times(self, t, name)

    def perturb(
        self, key: PRNGKeyArray, t: ArrayLike, x0: Float[Array | np.ndarray, "n d"]
    ) -> Float[Array, "n d"]:
        """X_t given X_0: α(t) x0 + √h(t) ε.

        Args:
            key: randomness.
            t: in (0, horizon], a scalar or [n].
            x0: [n, d].

        Returns:
            [n, d].

        Raises:
            ValueError: x0 no finite floating-point matrix; t outside (0, horizon] or of a shape
                that is neither () nor (n,).

        Example:
            >>> import jax, jax.numpy as jnp
            >>> vp_sde().perturb(jax.random.key(0), 1e-3, jnp.ones((2, 3))).shape
            (2, 3)
        """
        key = check_key("key", key)
        x0 = as_rows("x0", x0)
        t = columns_of_times(as_times(self, t), x0)
        return self.alpha(t) * x0 + jnp.sqrt(self.variance(t)) * jax.random.normal(
            key, x0.shape, x0.dtype
        )

    def sample_times(
        self,
        key: PRNGKeyArray,
        n: int,
        min_time: Number = 1e-3,
        *,
        centre: Number | None = None,
        spread: Number = 2.4,
    ) -> Float[Array, " n"]:
        """Random times in [min_time, horizon], uniform, or normal in the log-SNR.

        Args:
            key: randomness.
            n: how many.
            min_time: T₀ > 0.
            centre: None for uniform t. Otherwise λ(t) is N(centre, spread²), cut to the interval:
                the levels at which there is something to learn. For data of variance v a
                coordinate, 1 − log v is where Karras et al. put it.
            spread: standard deviation of λ; theirs is 2.4.

        Returns:
            [n].

        Raises:
            ValueError: n not a positive integer, min_time outside (0, horizon), centre not finite,
                spread not positive.

        Example:
            >>> import jax
            >>> t = vp_sde().sample_times(jax.random.key(0), 1000, 0.01, centre=0.0)
            >>> bool((t >= 0.01 * (1 - 1e-4)).all()), bool((t <= 1).all())
            (True, True)

        Source: Karras et al. (2022), arXiv 2206.00364, table 1 (log-normal σ, mean −1.2, deviation
        1.2, data variance ¼).
        """
        key = check_key("key", key)
        n = check_count("n", n)
        spread = check_hyperparameter("spread", spread, above=0)
        min_time = check_min_time(self, min_time, traced=True)
        uniform = jax.random.uniform(key, (n,))
        if centre is None:
            first = jnp.asarray(min_time, uniform.dtype)
            return first + (jnp.asarray(self.horizon, uniform.dtype) - first) * uniform
        middle = check_hyperparameter("centre", centre)
        lowest = self.log_snr(jnp.asarray(self.horizon, uniform.dtype))
        highest = self.log_snr(jnp.asarray(min_time, uniform.dtype))
        return self.time(truncated_normal_quantile(uniform, lowest, highest, middle, spread))

    def weight(self, t: ArrayLike, kind: str) -> Array:
        """The factor on ‖f(t, X_t) − X_0‖² in a loss.

        Args:
            t: in (0, horizon], any shape.
            kind: "denoising" 1; "noise" α²/h, the loss of a network that predicts the noise;
                "score" α²/h², that of the score; "likelihood" g α²/h², whose integral bounds the
                likelihood of the sampler.

        Returns:
            The shape of t.

        Raises:
            ValueError: an unknown kind; t outside (0, horizon].

        Example:
            >>> round(float(vp_sde().weight(0.5, "noise")), 4)
            0.0859

        Source: Song et al. (2021), arXiv 2101.09258, Theorem 1, for "likelihood".
        """
        kind = check_choice("kind", kind, WEIGHTINGS)
        t = as_times(self, t)
        signal, noise = self.alpha(t) ** 2, self.variance(t)
        if kind == "denoising":
            return jnp.ones_like(noise)
        if kind == "noise":
            return signal / noise
        weight = signal / noise / noise
        return weight * self.rate(t) if kind == "likelihood" else weight


def check_sde(sde: Any) -> VPSDE:
    """Return a noising process.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(sde, VPSDE) or type(sde) is VPSDE:
        what = sde.__name__ if isinstance(sde, type) else type(sde).__name__
        raise ValueError(f"sde must be a noising process, e.g. diffusion.vp_sde(), got {what}.")
    return sde


@process_record
class LinearVPSDE(VPSDE):
    """g rises linearly; see :func:`vp_sde`."""

    beta_min: Number
    beta_max: Number
    horizon: Number

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) = β_min + (β_max − β_min) t/T."""
        passed = as_real("t", t, finite=False)
        passed = passed / in_dtype(self.horizon, passed.dtype)
        slope = in_dtype(self.beta_max - self.beta_min, passed.dtype)
        return in_dtype(self.beta_min, passed.dtype) + slope * passed

    def integral(self, t: ArrayLike) -> Array:
        """Return β_min t + (β_max − β_min) t²/(2T), in units of T: I(t) has none."""
        passed = as_real("t", t, finite=False)
        passed = passed / in_dtype(self.horizon, passed.dtype)
        start = in_dtype(self.beta_min * self.horizon, passed.dtype)
        rise = in_dtype((self.beta_max - self.beta_min) * self.horizon, passed.dtype)
        return passed * (start + rise * passed / 2)

    def _time_of_integral(self, integral: Array) -> Array:
        """Return the root without cancellation, also for a constant rate."""
        start = in_dtype(self.beta_min * self.horizon, integral.dtype)
        rise = in_dtype((self.beta_max - self.beta_min) * self.horizon, integral.dtype)
        root = jnp.sqrt(jnp.maximum(start**2 + 2 * rise * integral, 0))
        return in_dtype(self.horizon, integral.dtype) * (2 * integral / (start + root))


@process_record
class CosineVPSDE(VPSDE):
    """The signal falls as a cosine; see :func:`cosine_sde`."""

    start: Number
    end: Number
    horizon: Number

    def _angle(self, passed: Array) -> Array:
        start = in_dtype(self.start, passed.dtype)
        return start + in_dtype(self.end - self.start, passed.dtype) * passed

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) = 2 θ' tan θ(t)."""
        passed = as_real("t", t, finite=False)
        horizon = in_dtype(self.horizon, passed.dtype)
        passed = passed / horizon
        return (
            2
            * in_dtype(self.end - self.start, passed.dtype)
            / horizon
            * jnp.tan(self._angle(passed))
        )

    def integral(self, t: ArrayLike) -> Array:
        """Return −log(cos²θ/cos²θ_0): early by h, of the difference of squares as a product of
        sines, late by π/2 − θ.
        """
        passed = as_real("t", t, finite=False)
        passed = passed / in_dtype(self.horizon, passed.dtype)
        width = in_dtype(self.end - self.start, passed.dtype)
        cosine = in_dtype(apply_to_number(math.cos, jnp.cos, self.start), passed.dtype)
        h = (
            jnp.sin(width * passed)
            * jnp.sin(self._angle(passed) + in_dtype(self.start, passed.dtype))
            / cosine**2
        )
        left = in_dtype(math.pi / 2 - self.end, passed.dtype) + width * (1 - passed)
        early = -jnp.log1p(-jnp.minimum(h, 0.5))
        return jnp.where(h < 0.5, early, -2 * jnp.log(jnp.sin(left) / cosine))

    def _time_of_integral(self, integral: Array) -> Array:
        h = -jnp.expm1(-integral)
        sine = in_dtype(apply_to_number(math.sin, jnp.sin, self.start), integral.dtype)
        cosine = in_dtype(apply_to_number(math.cos, jnp.cos, self.start), integral.dtype)
        above = jnp.sqrt(sine**2 + cosine**2 * h)  # the sine of θ
        beside = cosine * jnp.exp(-integral / 2)  # its cosine
        # sin(θ − θ_0) as (sin² θ − sin² θ_0)/sin(θ + θ_0): near t = 0 it keeps its digits
        rise = cosine**2 * h / (above * cosine + beside * sine)
        width = in_dtype(self.end - self.start, integral.dtype)
        return (
            jnp.arctan2(rise, beside * cosine + above * sine)
            / width
            * in_dtype(self.horizon, integral.dtype)
        )


def vp_sde(
    beta_min: Number = 0.1, beta_max: Number = 20.0, *, horizon: Number = 1.0
) -> LinearVPSDE:
    """The variance-preserving process whose rate rises linearly from beta_min to beta_max.

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
    """The Ornstein–Uhlenbeck process: g(t) = rate.

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
    return vp_sde(rate, rate, horizon=horizon)


def cosine_sde(
    offset: Number = 0.008, final_alpha: Number = 1e-3, *, horizon: Number = 1.0
) -> CosineVPSDE:
    """The cosine schedule, ended where a little of the signal is left, so that its rate stays
    finite.

    α(t) = cos θ(t)/cos θ(0), θ linear in t, from (π/2) s/(1 + s) to the angle at which α is
    final_alpha.

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
    start = math.pi / 2 * offset / (1 + offset)
    end = apply_to_number(
        math.acos, jnp.arccos, final_alpha * apply_to_number(math.cos, jnp.cos, start)
    )
    if is_concrete(end) and end - start < _LEAST_ANGLE:
        raise ValueError(
            f"offset and final_alpha must leave an angle to turn, got {offset!r} and {final_alpha!r}: "
            "the process adds no noise. Take smaller ones."
        )
    return CosineVPSDE(start=start, end=end, horizon=horizon)
