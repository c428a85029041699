r"""Variance-preserving noising processes: dX = −½ g(t) X dt + √g(t) dB on [0, T], started at data.

With I(t) = ∫₀ᵗ g,

    X_t | X_0 ~ N(α(t) X_0, h(t) I),    α = e^{−I/2},    h = 1 − α² = −expm1(−I),    log-SNR λ = log(α²/h) = −log expm1(I).

Everything follows from I and its inverse, so a schedule is three functions: g, I and I⁻¹. h is never taken as a difference:
near t = 0 it keeps all of its digits.

Example:
    >>> from softntk.diffusion import sde
    >>> noising = sde.vp_sde()
    >>> [round(float(v), 4) for v in (noising.alpha(0.5), noising.variance(0.5), noising.log_snr(0.5))]
    [0.2812, 0.9209, -2.4551]

Source: Song et al. (2021), arXiv 2011.13456, section 3.4 (VP); arXiv 2405.03251, the section on diffusion; MATH.md section 5.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._records import static_record
from softntk._validation import check_finite, check_positive, check_positive_int, check_rows, is_concrete

WEIGHTINGS = ("denoising", "noise", "score", "likelihood")


def _real(t: ArrayLike) -> Array:
    return jnp.asarray(t, jnp.result_type(t, float))


class VPSDE:
    """What all schedules share; a schedule adds ``rate`` (g), ``integral`` (I) and ``_time_of_integral``.

    The functions of t that make up the schedule take scalars or arrays and are plain JAX, without checks. Times outside
    (0, horizon] are for :meth:`check_times` to refuse, which every other function of the package that takes times calls.

    Attributes:
        horizon: T > 0.
    """

    horizon: float

    def rate(self, t: ArrayLike) -> Array:
        """g(t) ≥ 0."""
        raise NotImplementedError

    def integral(self, t: ArrayLike) -> Array:
        """I(t) = ∫₀ᵗ g."""
        raise NotImplementedError

    def _time_of_integral(self, integral: Array) -> Array:
        raise NotImplementedError

    def alpha(self, t: ArrayLike) -> Array:
        """α(t) = e^{−I/2}: what is left of the signal."""
        return jnp.exp(-self.integral(t) / 2)

    def variance(self, t: ArrayLike) -> Array:
        """h(t) = 1 − α(t)²: the variance of the noise in each coordinate."""
        return -jnp.expm1(-self.integral(t))

    def log_snr(self, t: ArrayLike) -> Array:
        """λ(t) = log(α²/h), decreasing from +inf at t = 0."""
        integral = self.integral(t)
        return -integral - jnp.log(-jnp.expm1(-integral))

    def time(self, log_snr: ArrayLike) -> Array:
        """The t with λ(t) = log_snr, at most ``horizon``."""
        integral = jax.nn.softplus(-_real(log_snr))
        return jnp.minimum(self._time_of_integral(integral), self.horizon)

    def check_times(self, t: ArrayLike, name: str = "t") -> None:
        """Refuse times outside (0, T], where they are known.

        Raises:
            ValueError: t not in (0, horizon].
        """
        if not is_concrete(t):
            return
        values = np.asarray(t, np.float64)
        if not ((values > 0) & (values <= self.horizon * (1 + 1e-6))).all():
            raise ValueError(
                f"{name} must lie in (0, {self.horizon:g}], got {values.min():g} … {values.max():g}. At 0 there is no noise, "
                "and the score of data that fill no volume is infinite."
            )

    def perturb(self, key: PRNGKeyArray, t: ArrayLike, x0: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n d"]:
        """X_t given X_0: α(t) x0 + √h(t) ε.

        Args:
            key: randomness.
            t: in (0, horizon], a scalar or [n].
            x0: [n, d].

        Returns:
            [n, d].

        Raises:
            ValueError: x0 no finite floating-point matrix; t outside (0, horizon] or of a shape that is neither () nor (n,).

        Example:
            >>> import jax, jax.numpy as jnp
            >>> vp_sde().perturb(jax.random.key(0), 1e-3, jnp.ones((2, 3))).shape
            (2, 3)
        """
        check_rows("x0", x0)
        self.check_times(t)
        x0 = jnp.asarray(x0)
        t = columns_of_times(t, x0)
        return self.alpha(t) * x0 + jnp.sqrt(self.variance(t)) * jax.random.normal(key, x0.shape, x0.dtype)

    def sample_times(
        self, key: PRNGKeyArray, n: int, min_time: float = 1e-3, *, centre: float | None = None, spread: float = 2.4
    ) -> Float[Array, " n"]:
        """Random times in [min_time, horizon], uniform, or normal in the log-SNR.

        Args:
            key: randomness.
            n: how many.
            min_time: T₀ > 0.
            centre: None for uniform t. Otherwise λ(t) is N(centre, spread²), cut to the interval: the levels at which there
                is something to learn. For data of variance v a coordinate, 1 − log v is where Karras et al. put it.
            spread: standard deviation of λ; theirs is 2.4.

        Returns:
            [n].

        Raises:
            ValueError: n not a positive integer, min_time outside (0, horizon), centre not finite, spread not positive.

        Example:
            >>> import jax
            >>> t = vp_sde().sample_times(jax.random.key(0), 1000, 0.01, centre=0.0)
            >>> bool((t >= 0.01 * (1 - 1e-4)).all()), bool((t <= 1).all())
            (True, True)

        Source: Karras et al. (2022), arXiv 2206.00364, table 1 (log-normal σ, mean −1.2, deviation 1.2, data variance ¼).
        """
        check_positive_int("n", n)
        check_positive("spread", spread)
        check_min_time(self, min_time)
        check_finite("centre", 0.0 if centre is None else centre)
        if centre is None:
            return jax.random.uniform(key, (n,), minval=min_time, maxval=self.horizon)
        lower, upper = ((self.log_snr(t) - centre) / spread for t in (self.horizon, min_time))
        return self.time(centre + spread * jax.random.truncated_normal(key, lower, upper, (n,)))

    def weight(self, t: ArrayLike, kind: str) -> Array:
        """The factor on ‖f(t, X_t) − X_0‖² in a loss.

        Args:
            t: in (0, horizon], any shape.
            kind: "denoising" 1; "noise" α²/h, the loss of a network that predicts the noise; "score" α²/h², that of the
                score; "likelihood" g α²/h², whose integral bounds the likelihood of the sampler.

        Returns:
            The shape of t.

        Raises:
            ValueError: an unknown kind; t outside (0, horizon].

        Example:
            >>> round(float(vp_sde().weight(0.5, "noise")), 4)
            0.0859

        Source: Song et al. (2021), arXiv 2101.09258, Theorem 1, for "likelihood".
        """
        if kind not in WEIGHTINGS:
            raise ValueError(activations.unknown("kind", kind, dict.fromkeys(WEIGHTINGS)))
        self.check_times(t)
        signal, noise = self.alpha(t) ** 2, self.variance(t)
        if kind == "denoising":
            return jnp.ones_like(noise)
        if kind == "noise":
            return signal / noise
        return signal / noise**2 * (self.rate(t) if kind == "likelihood" else 1)


def columns_of_times(t: ArrayLike, x: Array) -> Float[Array, "n 1"]:
    """A scalar or [n] as [n, 1], in the dtype of x.

    Raises:
        ValueError: another shape.
    """
    n = x.shape[0]
    if jnp.shape(t) not in ((), (n,)):
        raise ValueError(f"t must be a scalar or of shape ({n},), one time a row of x, got shape {jnp.shape(t)}.")
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), (n,))[:, None]


def check_points(sde: VPSDE, t: ArrayLike, x: ArrayLike, d: int | None = None) -> Array:
    """The points [n, d] at times t in (0, T], as an array; of any dimension if none is given.

    Raises:
        ValueError: times or points that are refused.
    """
    check_rows("x", x)
    sde.check_times(t)
    if d is not None and jnp.shape(x)[1] != d:
        raise ValueError(f"x must have shape [n, {d}], the dimension of the distribution, got {jnp.shape(x)}.")
    return jnp.asarray(x)


def check_min_time(sde: VPSDE, min_time: float) -> None:
    """Refuse a first time outside (0, horizon)."""
    if not 0 < min_time < sde.horizon:
        raise ValueError(
            f"min_time must lie between 0 and the horizon {sde.horizon:g}, got {min_time!r}: at 0 the score diverges. "
            "1e-3 is a usual choice."
        )


@static_record
class LinearVPSDE(VPSDE):
    """g rises linearly; see :func:`vp_sde`."""

    beta_min: float
    beta_max: float
    horizon: float

    def rate(self, t: ArrayLike) -> Array:
        """g(t) = β_min + (β_max − β_min) t/T."""
        return self.beta_min + (self.beta_max - self.beta_min) * _real(t) / self.horizon

    def integral(self, t: ArrayLike) -> Array:
        """β_min t + (β_max − β_min) t²/(2T)."""
        t = _real(t)
        return t * (self.beta_min + (self.beta_max - self.beta_min) * t / (2 * self.horizon))

    def _time_of_integral(self, integral: Array) -> Array:
        slope = (self.beta_max - self.beta_min) / self.horizon  # the root without cancellation, also for slope 0
        return 2 * integral / (self.beta_min + jnp.sqrt(jnp.maximum(self.beta_min**2 + 2 * slope * integral, 0)))


@static_record
class CosineVPSDE(VPSDE):
    """The signal falls as a cosine; see :func:`cosine_sde`."""

    start: float
    end: float
    horizon: float

    def _angle(self, t: ArrayLike) -> Array:
        return self.start + (self.end - self.start) * _real(t) / self.horizon

    def rate(self, t: ArrayLike) -> Array:
        """g(t) = 2 θ' tan θ(t)."""
        return 2 * (self.end - self.start) / self.horizon * jnp.tan(self._angle(t))

    def integral(self, t: ArrayLike) -> Array:
        """−log(cos²θ/cos²θ_0): early by h, of the difference of squares as a product of sines, late by π/2 − θ."""
        passed = _real(t) / self.horizon
        h = jnp.sin((self.end - self.start) * passed) * jnp.sin(self._angle(t) + self.start) / math.cos(self.start) ** 2
        left = math.pi / 2 - self.end + (self.end - self.start) * (1 - passed)
        late = -2 * jnp.log(jnp.sin(left) / math.cos(self.start))
        return jnp.where(h < 0.5, -jnp.log1p(-jnp.minimum(h, 0.5)), late)

    def _time_of_integral(self, integral: Array) -> Array:
        h, sine, cosine = -jnp.expm1(-integral), math.sin(self.start), math.cos(self.start)
        above, beside = jnp.sqrt(sine**2 + cosine**2 * h), cosine * jnp.exp(-integral / 2)  # sine and cosine of θ
        # sin(θ − θ_0) as (sin² θ − sin² θ_0)/sin(θ + θ_0): near t = 0 it keeps its digits
        rise = cosine**2 * h / (above * cosine + beside * sine)
        return jnp.arctan2(rise, beside * cosine + above * sine) / (self.end - self.start) * self.horizon


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0, *, horizon: float = 1.0) -> LinearVPSDE:
    """The variance-preserving process whose rate rises linearly from beta_min to beta_max.

    g(t) = β_min + (β_max − β_min) t/T,   I(t) = β_min t + (β_max − β_min) t²/(2T).

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
    for name, value in (("beta_min", beta_min), ("beta_max", beta_max), ("horizon", horizon)):
        check_positive(name, value)
    if beta_max < beta_min:
        raise ValueError(f"beta_max must be at least beta_min = {beta_min:g}, got {beta_max!r}.")
    return LinearVPSDE(beta_min=float(beta_min), beta_max=float(beta_max), horizon=float(horizon))


def constant_sde(rate: float = 10.0, *, horizon: float = 1.0) -> LinearVPSDE:
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
    check_positive("rate", rate)
    return vp_sde(rate, rate, horizon=horizon)


def cosine_sde(offset: float = 0.008, final_alpha: float = 1e-3, *, horizon: float = 1.0) -> CosineVPSDE:
    """The cosine schedule, ended where a little of the signal is left, so that its rate stays finite.

    α(t) = cos θ(t)/cos θ(0), θ linear in t, from (π/2) s/(1 + s) to the angle at which α is final_alpha.

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
    for name, value in (("offset", offset), ("final_alpha", final_alpha), ("horizon", horizon)):
        check_positive(name, value)
    if final_alpha >= 1:
        raise ValueError(f"final_alpha must lie between 0 and 1, got {final_alpha!r}.")
    start = math.pi / 2 * offset / (1 + offset)
    return CosineVPSDE(start=start, end=math.acos(final_alpha * math.cos(start)), horizon=float(horizon))
