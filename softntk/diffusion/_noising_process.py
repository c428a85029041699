r"""The base class of variance-preserving noising processes, and what follows from I(t) alone.

See :mod:`softntk.diffusion._sde` for the equations and the schedules.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import as_rows, check_choice, check_count, check_key
from softntk.diffusion._arguments import (
    as_real,
    as_times,
    check_hyperparameter,
    check_min_time,
    columns_of_times,
)
from softntk.diffusion._truncated_normal import truncated_normal_quantile
from softntk.diffusion._types import Number

# Kinds of weight(t) in a loss on ‖f − X_0‖²; see VPSDE.weight.
WEIGHTINGS = ("denoising", "noise", "score", "likelihood")

_ABSTRACT_MESSAGE = (
    "VPSDE is what all schedules share. Take vp_sde(), constant_sde() or cosine_sde()."
)


class VPSDE:
    """Base class of all noising processes; a schedule adds the rate g, its integral I and I⁻¹.

    A schedule defines ``rate``, ``integral`` and ``_time_of_integral``. The functions of t take
    scalars or arrays of real numbers, which they do not check. :meth:`check_times` refuses times
    outside (0, horizon], as every other function of the package does.

    Attributes:
        horizon: T > 0.
    """

    horizon: Number

    def rate(self, t: ArrayLike) -> Array:
        """Return g(t) ≥ 0."""
        raise NotImplementedError(_ABSTRACT_MESSAGE)

    def integral(self, t: ArrayLike) -> Array:
        """Return I(t) = ∫₀ᵗ g."""
        raise NotImplementedError(_ABSTRACT_MESSAGE)

    def _time_of_integral(self, integral: Array) -> Array:
        """Return the t with I(t) = integral."""
        raise NotImplementedError(_ABSTRACT_MESSAGE)

    def alpha(self, t: ArrayLike) -> Array:
        """Return α(t) = e^{−I/2}, the factor on the signal."""
        return jnp.exp(-self.integral(t) / 2)

    def variance(self, t: ArrayLike) -> Array:
        """Return h(t) = 1 − α(t)², the variance of the noise in each coordinate."""
        # Never 1 − α², which loses all digits near t = 0.
        return -jnp.expm1(-self.integral(t))

    def log_snr(self, t: ArrayLike) -> Array:
        """Return λ(t) = log(α²/h), decreasing from +inf at t = 0."""
        time = as_real("t", t, finite=False)
        at_start = time == 0
        # At t = 0 the formula's derivative would be a sum of infinities of either sign. λ behaves
        # like −log t there, which has the right value and derivative.
        integral = self.integral(jnp.where(at_start, jnp.asarray(self.horizon, time.dtype), time))
        log_ratio = -integral - jnp.log(-jnp.expm1(-integral))
        return jnp.where(at_start, -jnp.log(jnp.where(at_start, time, 1)), log_ratio)

    def time(self, log_snr: ArrayLike) -> Array:
        """Return the t with λ(t) = log_snr, at most ``horizon``."""
        # The inverse of λ = −log(e^I − 1) is I = log(1 + e^{−λ}).
        integral = jax.nn.softplus(-as_real("log_snr", log_snr, finite=False))
        # A finite I beyond the horizon stands in for larger ones, so that nothing is infinite.
        max_integral = 2 * self.integral(jnp.asarray(self.horizon, integral.dtype))
        time = self._time_of_integral(jnp.minimum(integral, max_integral))
        return jnp.minimum(time, self.horizon)

    def check_times(self, t: ArrayLike, name: str = "t") -> None:
        """Check that all times lie in (0, T]; traced times pass.

        Raises:
            ValueError: a time is not in (0, horizon].
        """
        as_times(self, t, name)

    def perturb(
        self, key: PRNGKeyArray, t: ArrayLike, x0: Float[Array | np.ndarray, "n d"]
    ) -> Float[Array, "n d"]:
        """Draw X_t given X_0: α(t) x0 + √h(t) ε with standard normal ε.

        Args:
            key: randomness of the noise.
            t: times in (0, horizon], a scalar or [n].
            x0: X_0, [n, d].

        Returns:
            X_t, [n, d].

        Raises:
            ValueError: x0 is not a finite floating-point matrix; t is outside (0, horizon], or its
                shape is neither () nor (n,).

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from softntk.diffusion import vp_sde
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
        """Draw times in [min_time, horizon], uniformly, or normal in the log-SNR.

        Use it for the times of a training batch.

        Args:
            key: randomness.
            n: how many.
            min_time: T₀ > 0.
            centre: None for uniform t. Otherwise λ(t) is N(centre, spread²), cut to the interval.
                This concentrates training on the noise levels at which there is something to learn.
                Karras et al. use 1 − log v for data of variance v in each coordinate.
            spread: standard deviation of λ; Karras et al. use 2.4.

        Returns:
            [n].

        Raises:
            ValueError: n is not a positive integer, min_time is outside (0, horizon), centre is not
                finite, or spread is not positive.

        Example:
            >>> import jax
            >>> from softntk.diffusion import vp_sde
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
        # Uniform times.
        if centre is None:
            first_time = jnp.asarray(min_time, uniform.dtype)
            return first_time + (jnp.asarray(self.horizon, uniform.dtype) - first_time) * uniform
        # Or quantiles of a cut normal distribution of λ. As λ decreases in t, its lowest value
        # belongs to the horizon.
        mean_snr = check_hyperparameter("centre", centre)
        lowest_snr = self.log_snr(jnp.asarray(self.horizon, uniform.dtype))
        highest_snr = self.log_snr(jnp.asarray(min_time, uniform.dtype))
        log_snr = truncated_normal_quantile(uniform, lowest_snr, highest_snr, mean_snr, spread)
        return self.time(log_snr)

    def weight(self, t: ArrayLike, kind: str) -> Array:
        """Return the factor on ‖f(t, X_t) − X_0‖² in a loss.

        Use it to weight noise levels as in a loss on the noise, the score or the likelihood.

        Args:
            t: times in (0, horizon], of any shape.
            kind: "denoising" 1; "noise" α²/h, the loss of a network that predicts the noise;
                "score" α²/h², that of the score; "likelihood" g α²/h², whose integral bounds the
                likelihood of the sampler.

        Returns:
            The shape of t.

        Raises:
            ValueError: an unknown kind; a time outside (0, horizon].

        Example:
            >>> from softntk.diffusion import vp_sde
            >>> round(float(vp_sde().weight(0.5, "noise")), 4)
            0.0859

        Source: Song et al. (2021), arXiv 2101.09258, Theorem 1, for "likelihood".
        """
        kind = check_choice("kind", kind, WEIGHTINGS)
        t = as_times(self, t)
        signal_power = self.alpha(t) ** 2
        noise_power = self.variance(t)
        if kind == "denoising":
            return jnp.ones_like(noise_power)
        if kind == "noise":
            return signal_power / noise_power
        # Two divisions, as h² underflows where h does not.
        score_weight = signal_power / noise_power / noise_power
        return score_weight * self.rate(t) if kind == "likelihood" else score_weight


def check_sde(sde: object) -> VPSDE:
    """Return sde, checked to be a noising process with a schedule.

    Raises:
        ValueError: sde is not such a process.
    """
    if not isinstance(sde, VPSDE) or type(sde) is VPSDE:
        type_name = sde.__name__ if isinstance(sde, type) else type(sde).__name__
        raise ValueError(
            f"sde must be a noising process, e.g. diffusion.vp_sde(), got {type_name}."
        )
    return sde
