r"""What all denoisers share: coordinates in which the regression is well posed, one signature, and the score.

Learning f*(t, x) = E[X_0 | X_t = x] is split in two. With mean m and covariance S = UΛUᵀ of the data, the best linear denoiser
(the Wiener filter) is known at every t,

    ℓ(t, x) = m + αS(α²S + hI)⁻¹(x − αm),    leaving a mean squared error of c(t)² = tr(S h(α²S + hI)⁻¹)/d a coordinate,

and a kernel or network learns what is left, in units of that error:  f(t, x) = ℓ(t, x) + c(t) F(u(t), z(t, x)).

- z(t, x) ∈ R^{d+1} is (ℓ(t, x) − m)/√E|ℓ − m|² with a 1 appended, divided by its norm: the linear denoiser's answer on the unit
  sphere (stereographically), a typical one at 45° from the pole. There a softmax kernel is a Gaussian one, e^{σ²⟨z,z'⟩} =
  e^{σ²} e^{−σ²|z−z'|²/2}, and the theory's assumption |z| = 1 holds. ℓ tells as much as x, but of directions in which the
  data do not vary; where the noise drowns the data it counts little, so that the network need not learn to disregard it.
- u(t) ∈ [0, J − 1] is the place of the log-SNR among J knots. A network sees the outer product of z and ψ(u), bumps on the
  knots with |ψ| = 1, again of unit norm: what is learnt at one noise level is shared with its neighbours. A kernel fits each
  knot by itself and interpolates between two.

For Gaussian data F = 0 is exact.

Source: MATH.md section 5; Karras et al. (2022), arXiv 2206.00364, section 5, for preconditioning by what is known.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._records import function_record, record
from softntk._validation import check_positive_int, check_rows
from softntk.diffusion.mixture import Points, Times
from softntk.diffusion.sde import VPSDE, check_min_time, check_points, columns_of_times
from softntk.solution import Result

ScoreFn = Callable[[Any, Any], Array]

_LEAST_SNR = -4.0  # below this log-SNR of the data the linear denoiser is all there is


@record
class Frame:
    """Coordinates for the regression, made from the data; see the module.

    Attributes:
        mean: m, [d].
        axes: U, [d, d], the eigenvectors of the covariance, as columns.
        spreads: Λ, [d].
        knots: log-SNR of the knots, [J], ascending.
    """

    mean: Float[Array, " d"]
    axes: Float[Array, "d d"]
    spreads: Float[Array, " d"]
    knots: Float[Array, " J"]

    def linear(self, sde: VPSDE, t: Times, x: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, "n 1"]]:
        """The best linear denoiser ℓ(t, x) and the root c(t) of the error it leaves."""
        time = columns_of_times(t, x)
        alpha, h = sde.alpha(time), sde.variance(time)
        total = alpha**2 * self.spreads[None] + h
        along = (x - alpha * self.mean[None]) @ self.axes
        linear = self.mean[None] + (along * alpha * self.spreads[None] / total) @ self.axes.T
        return linear, jnp.sqrt(jnp.mean(self.spreads[None] * h / total, axis=1, keepdims=True))

    def lift(self, sde: VPSDE, t: Times, linear: Float[Array, "n d"]) -> Float[Array, "n p"]:
        """z(t, x), [n, d + 1], of unit norm, from ℓ(t, x)."""
        time = columns_of_times(t, linear)
        alpha, h = sde.alpha(time), sde.variance(time)
        explained = alpha**2 * self.spreads[None] ** 2 / (alpha**2 * self.spreads[None] + h)
        size = jnp.sqrt(jnp.sum(explained, axis=1, keepdims=True))
        z = jnp.concatenate([(linear - self.mean[None]) / size, jnp.ones((len(linear), 1), linear.dtype)], axis=1)
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    def place(self, sde: VPSDE, t: Times) -> Float[Array, " r"]:
        """u(t): 0 at the first knot and before, J − 1 at the last and after; [1] for a scalar t, [n] for [n]."""
        log_snr = sde.log_snr(jnp.atleast_1d(jnp.asarray(t, self.knots.dtype)))
        return jnp.interp(log_snr, self.knots, jnp.arange(len(self.knots), dtype=self.knots.dtype))

    @property
    def log_spread(self) -> Float[Array, ""]:
        """log(Σλ²/Σλ), of the spread that a typical sample sees: the log-SNR of the data is this above α²/h."""
        return _log_spread(self.spreads)


def _log_spread(spreads: Float[Array, " d"]) -> Float[Array, ""]:
    return jnp.log(jnp.sum(spreads**2) / jnp.sum(spreads))


def frame_of(sde: VPSDE, x0: Points, times: int | Sequence[float], min_time: float) -> Frame:
    """The frame of a data set, with J knots evenly in log-SNR from ``min_time`` on, or at given times.

    Raises:
        ValueError: x0 no finite floating-point matrix of at least two rows that differ; times no positive integer and no
            times in (0, T]; min_time outside (0, T).
    """
    check_rows("x0", x0)
    x0 = jnp.asarray(x0)
    if len(x0) < 2:
        raise ValueError("x0 must hold at least two rows: nothing can be learnt from one sample.")
    mean = jnp.mean(x0, axis=0)
    centred = x0 - mean[None]
    spreads, axes = jnp.linalg.eigh(centred.T @ centred / len(x0))
    spreads = jnp.maximum(spreads, 0)
    if not float(jnp.max(spreads)) > 0:
        raise ValueError("x0 must hold rows that differ: all of them are equal, so the denoiser is a constant.")
    if isinstance(times, int | np.integer):
        check_positive_int("times", times)
        check_min_time(sde, min_time)
        least = max(float(sde.log_snr(sde.horizon)), _LEAST_SNR - float(_log_spread(spreads)))
        most = float(sde.log_snr(min_time))
        knots = np.linspace(min(least, most), most, int(times)) if times > 1 else np.array([most])
    else:
        chosen = np.asarray(times, np.float64)
        if chosen.ndim != 1 or len(chosen) == 0:
            raise ValueError(f"times must be a positive integer or a sequence of times, got shape {chosen.shape}.")
        sde.check_times(chosen, "times")
        knots = np.unique(np.asarray([float(sde.log_snr(t)) for t in chosen]))
    return Frame(mean=mean, axes=axes, spreads=spreads, knots=jnp.asarray(knots, x0.dtype))


@function_record
class Denoiser:
    """f(t, x), an estimate of E[X_0 | X_t = x]: ``denoiser(t, x)``, t scalar or [n], x [n, d]. A pytree, for jit and vmap.

    Attributes:
        sde: the noising process.
        frame: the coordinates.
        predictor: F, ``(place [1 or n], lifted [n, d + 1]) -> [n, d]``.
        result: a :class:`~softntk.solution.Result` code of the fit.
        stats: what the fit recorded, by name.
    """

    sde: VPSDE
    frame: Frame
    predictor: Any
    result: Int[Array, ""]
    stats: dict[str, Any]

    def __call__(self, t: Times, x: Points) -> Float[Array, "n d"]:
        """The estimate of E[X_0 | X_t = x], [n, d].

        Args:
            t: in (0, T], a scalar or [n]. A scalar is cheaper.
            x: [n, d].

        Raises:
            ValueError: t outside (0, T]; x of another dimension, no floating-point matrix or not finite.
        """
        x = check_points(self.sde, t, x, len(self.frame.mean))
        linear, scale = self.frame.linear(self.sde, t, x)
        return linear + scale * self.predictor(self.frame.place(self.sde, t), self.frame.lift(self.sde, t, linear))

    @property
    def advice(self) -> str:
        """The text behind ``result``; outside of jit only."""
        return Result(int(np.asarray(self.result))).advice


@function_record
class Score:
    """What :func:`score` returns: a pytree that is called."""

    sde: VPSDE
    denoiser: Any

    def __call__(self, t: Times, x: Points) -> Float[Array, "n d"]:
        """(α f(t, x) − x)/h, [n, d].

        Raises:
            ValueError: t outside (0, T]; x no finite floating-point matrix; a denoiser that returns another shape.
        """
        x = check_points(self.sde, t, x)
        denoised = self.denoiser(t, x)
        if jnp.shape(denoised) != x.shape:
            raise ValueError(f"the denoiser must return the shape of x, {x.shape}, got {jnp.shape(denoised)}.")
        time = columns_of_times(t, x)
        return (self.sde.alpha(time) * denoised - x) / self.sde.variance(time)


def score(sde: VPSDE, denoiser: Callable[[Times, Points], Array]) -> Score:
    """The score that a denoiser means, ∇log p_t(x) = (α f(t, x) − x)/h (Tweedie's formula).

    Args:
        sde: the noising process.
        denoiser: ``(t, x) -> [n, d]``: any of this package, or any function of that signature. t in (0, T].

    Returns:
        ``(t, x) -> [n, d]``, for :func:`softntk.diffusion.sample` and the metrics. At t → 0 an error of the denoiser is
        divided by h → 0.

    Raises:
        ValueError: a denoiser that is no function.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde = diffusion.vp_sde()
        >>> of_a_point = diffusion.score(sde, lambda t, x: jnp.zeros_like(x))  # all data at the origin: −x/h
        >>> bool(jnp.allclose(of_a_point(0.5, jnp.ones((1, 2))), -1 / sde.variance(0.5)))
        True

    Source: Efron (2011), JASA 106, 1602-1614; MATH.md section 5.
    """
    if not callable(denoiser):
        raise ValueError(f"denoiser must be a function (t, x) -> [n, d], got {type(denoiser).__name__}.")
    return Score(sde, denoiser)
