r"""What all denoisers share: coordinates in which the regression is well posed, one signature, and
the score.

Learning f*(t, x) = E[X_0 | X_t = x] is split in two. With mean m and covariance S = UΛUᵀ of the
data, the best linear denoiser (the Wiener filter) is known at every t,

    ℓ(t, x) = m + αS(α²S + hI)⁻¹(x − αm),    leaving a mean squared error of c(t)² = tr(S h(α²S + hI)⁻¹)/d a coordinate,

and a kernel or network learns what is left, in units of that error:  f(t, x) = ℓ(t, x) + c(t)
F(u(t), z(t, x)).

- z(t, x) ∈ R^{d+1} is (ℓ(t, x) − m)/√E|ℓ − m|² with a 1 appended, divided by its norm: the linear
  denoiser's answer on the unit sphere (stereographically), a typical one at 45° from the pole.
  There a softmax kernel is a Gaussian one, e^{σ²⟨z,z'⟩} = e^{σ²} e^{−σ²|z−z'|²/2}, and the theory's
  assumption |z| = 1 holds. ℓ tells as much as x, but of directions in which the data do not vary;
  where the noise drowns the data it counts little, so that the network need not learn to disregard
  it.
- u(t) ∈ [0, J − 1] is the place of the log-SNR among J knots. A network sees the outer product of z
  and ψ(u), bumps on the knots with |ψ| = 1, again of unit norm: what is learnt at one noise level
  is shared with its neighbours. A kernel fits each knot by itself and interpolates between two.

For Gaussian data F = 0 is exact.

Source: MATHEMATICS.md#diffusion; Karras et al. (2022), arXiv 2206.00364, section 5, for
preconditioning by what is known.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.records import function_record, record
from softntk._core.validation import (
    as_rows,
    check_callable,
    check_count,
    is_concrete,
)
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.diffusion._arguments import (
    as_output,
    as_points,
    as_real,
    as_times,
    check_known,
    check_min_time,
    columns_of_times,
)
from softntk.diffusion._distributions import Points, Times
from softntk.diffusion._sde import VPSDE, check_sde
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

    def linear(
        self, sde: VPSDE, t: Times, x: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n 1"]]:
        """Return the best linear denoiser ℓ(t, x) and the root c(t) of the error it leaves."""
        time = columns_of_times(t, x)
        alpha, h = sde.alpha(time), sde.variance(time)
        relative = self.spreads[None] / (alpha**2 * self.spreads[None] + h)
        along = (x - alpha * self.mean[None]) @ self.axes
        linear = self.mean[None] + (along * (alpha * relative)) @ self.axes.T
        return linear, jnp.sqrt(jnp.mean(h * relative, axis=1, keepdims=True))

    def lift(self, sde: VPSDE, t: Times, linear: Float[Array, "n d"]) -> Float[Array, "n p"]:
        """Return z(t, x), [n, d + 1], of unit norm, from ℓ(t, x)."""
        time = columns_of_times(t, linear)
        alpha, h = sde.alpha(time), sde.variance(time)
        # √E|ℓ − m|², by roots: squares of eigenvalues leave the range of float32 for data in
        # nanometres or in counts.
        share = alpha**2 * self.spreads[None] / (alpha**2 * self.spreads[None] + h)
        size = scaled_norm(jnp.sqrt(self.spreads)[None] * jnp.sqrt(share), 1, keepdims=True)
        direction = jnp.where(
            size > 0, (linear - self.mean[None]) / jnp.where(size > 0, size, 1), 0
        )
        z = jnp.concatenate([direction, jnp.ones((len(linear), 1), linear.dtype)], axis=1)
        return z / scaled_norm(z, 1, keepdims=True)

    def place(self, sde: VPSDE, t: Times) -> Float[Array, " r"]:
        """Return u(t): 0 at the first knot and before, J − 1 at the last and after; [1] for a
        scalar t, [n] for [n].
        """
        log_snr = sde.log_snr(jnp.atleast_1d(jnp.asarray(t, self.knots.dtype)))
        return jnp.interp(log_snr, self.knots, jnp.arange(len(self.knots), dtype=self.knots.dtype))

    @property
    def log_spread(self) -> Float[Array, ""]:
        """Return log(Σλ²/Σλ), of the spread that a typical sample sees: the log-SNR of the data is
        this above α²/h.
        """
        return _log_spread(self.spreads)


def _log_spread(spreads: Float[Array, " d"]) -> Float[Array, ""]:
    largest = jnp.max(spreads)
    shares = spreads / largest
    return jnp.log(largest) + jnp.log(jnp.sum(shares**2) / jnp.sum(shares))


def frame_of(sde: VPSDE, x0: Points, times: int | Sequence[float], min_time: float) -> Frame:
    """Return the frame of a data set, with J knots evenly in log-SNR from ``min_time`` on, or at
    given times.

    Fewer than J where the noise drowns the data already at ``min_time``.

    Raises:
        ValueError: x0 no finite floating-point matrix of at least two rows that differ, or of a
            size that its precision cannot tell from the noise; times no positive integer and no
            times in (0, T]; min_time outside (0, T); traced arguments.
    """
    check_known("sde", check_sde(sde))
    x0 = as_rows("x0", check_known("x0", x0), half=False)
    # under jit all results are traced, even those of arrays that are not
    if not is_concrete(jnp.max(x0)):
        raise ValueError(
            "x0 must be fitted outside of jit, vmap and grad, as a fit runs on the host. "
            "Pass the denoiser, which is a pytree, into the transformation."
        )
    if len(x0) < 2:
        raise ValueError("x0 must hold at least two rows: nothing can be learnt from one sample.")
    mean, spreads, axes = _principal_axes(x0)
    if isinstance(times, int | np.integer):
        count = check_count("times", times)
        min_time = check_min_time(sde, min_time)
        most = float(sde.log_snr(min_time))
        least = max(float(sde.log_snr(sde.horizon)), _LEAST_SNR - float(_log_spread(spreads)))
        knots = (
            np.unique(np.linspace(min(least, most), most, count)) if count > 1 else np.array([most])
        )
    else:
        chosen = np.atleast_1d(np.asarray(as_real("times", times), np.float64))
        if np.ndim(times) != 1:
            raise ValueError(
                f"times must be a positive integer or a sequence of times, got {times!r}."
            )
        as_times(sde, chosen, "times")
        knots = np.unique(np.asarray([float(sde.log_snr(t)) for t in chosen]))
    frame = Frame(mean=mean, axes=axes, spreads=spreads, knots=jnp.asarray(knots, x0.dtype))
    _check_resolved(sde, frame, x0)
    return frame


def _principal_axes(x0: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
    """Return the mean, and eigenvalues and eigenvectors of the covariance, computed in units of the
    largest entry.

    Raises:
        ValueError: rows that are all equal; eigenvalues that are no numbers of the precision.
    """
    unit = binary_scale(x0)
    mean = jnp.mean(x0 / unit, axis=0)
    centred = x0 / unit - mean[None]
    own = binary_scale(centred)
    eigenvalues, axes = jnp.linalg.eigh((centred / own).T @ (centred / own) / len(x0))
    spreads = jnp.maximum(eigenvalues, 0)
    if bool(jnp.all(x0 == x0[:1])) or not float(jnp.max(spreads)) > 0:
        raise ValueError(
            "x0 must hold rows that differ: all of them are equal, so the denoiser is a constant."
        )
    scale = unit[0, 0] * own[0, 0]
    largest = float(jnp.sqrt(jnp.max(spreads))) * float(scale)
    limits = jnp.finfo(x0.dtype)
    if not math.sqrt(float(limits.tiny)) < largest / 8 < 8 * largest < math.sqrt(float(limits.max)):
        raise ValueError(
            f"x0 must have a variance that {x0.dtype} can hold, got a deviation of {largest:.2g}: "
            "standardise x0, i.e. subtract the mean and divide by the deviation."
        )
    return mean * unit[0], spreads * scale * scale, axes


def _check_resolved(sde: VPSDE, frame: Frame, x0: Float[Array, "n d"]) -> None:
    """Refuse data so large that their rounding is more than what the linear denoiser leaves at the
    least noise level.
    """
    _, scale = frame.linear(sde, sde.time(frame.knots[-1]), x0[:1])
    largest = float(jnp.max(jnp.abs(x0)))
    rounding = largest * float(jnp.finfo(x0.dtype).eps)
    if rounding > float(scale[0, 0]) and rounding > math.sqrt(
        float(sde.variance(sde.time(frame.knots[-1])))
    ):
        raise ValueError(
            f"x0 must be resolved beside the noise, got entries of up to {largest:.2g}, whose rounding in {x0.dtype} "
            "drowns the least noise level: standardise x0, i.e. subtract the mean and divide by the deviation, or use "
            "a larger min_time."
        )


@function_record
class Denoiser:
    """f(t, x), an estimate of E[X_0 | X_t = x]: ``denoiser(t, x)``, t scalar or [n], x [n, d]. A
    pytree, for jit and vmap.

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
        """Return the estimate of E[X_0 | X_t = x], [n, d].

        Args:
            t: in (0, T], a scalar or [n]. A scalar is cheaper.
            x: [n, d].

        Raises:
            ValueError: t outside (0, T]; x of another dimension, no floating-point matrix or not
                finite.
        """
        t, points = as_points(self.sde, t, x, len(self.frame.mean))
        x = points.astype(self.frame.mean.dtype)
        linear, scale = self.frame.linear(self.sde, t, x)
        estimate = self.predictor(
            self.frame.place(self.sde, t), self.frame.lift(self.sde, t, linear)
        )
        return (linear + scale * estimate).astype(points.dtype)

    @property
    def advice(self) -> str:
        """Return the text behind ``result``; outside of jit only."""
        return Result(int(check_known("result", self.result))).advice

    def __repr__(self) -> str:
        d, knots = jnp.shape(self.frame.mean)[-1], jnp.shape(self.frame.knots)[-1]
        return f"Denoiser({type(self.predictor).__name__}, {d} dimensions, {knots} noise levels, {self.sde})"


@function_record
class Score:
    """What :func:`score` returns: a pytree that is called."""

    sde: VPSDE
    denoiser: Any

    def __call__(self, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return (α f(t, x) − x)/h, [n, d].

        Raises:
            ValueError: t outside (0, T]; x no finite floating-point matrix; a denoiser that returns
                another shape.
        """
        t, x = as_points(self.sde, t, x)
        time = columns_of_times(t, x)
        denoised = as_output("denoiser", self.denoiser(t, x), x)
        return (self.sde.alpha(time) * denoised - x) / self.sde.variance(time)


def score(sde: VPSDE, denoiser: Callable[[Times, Points], Array]) -> Score:
    """Return the score that a denoiser means, ∇log p_t(x) = (α f(t, x) − x)/h (Tweedie's formula).

    Args:
        sde: the noising process.
        denoiser: ``(t, x) -> [n, d]``: any of this package, or any function of that signature. t in
            (0, T].

    Returns:
        ``(t, x) -> [n, d]``, for :func:`softntk.diffusion.sample` and the metrics. At t → 0 an
        error of the denoiser is divided by h → 0.

    Raises:
        ValueError: a denoiser that is no function; an sde that is no process.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde = diffusion.vp_sde()
        >>> of_a_point = diffusion.score(sde, lambda t, x: jnp.zeros_like(x))  # all data at the origin: −x/h
        >>> bool(jnp.allclose(of_a_point(0.5, jnp.ones((1, 2))), -1 / sde.variance(0.5)))
        True

    Source: Efron (2011), JASA 106, 1602-1614; MATHEMATICS.md#diffusion.
    """
    check_sde(sde)
    if isinstance(denoiser, Score):
        raise ValueError(
            "denoiser must be an estimate of E[X_0 | X_t], got a Score, which is one already."
        )
    return Score(sde, check_callable("denoiser", denoiser, "a function (t, x) -> [n, d]"))


def check_score_fn(score_fn: Any) -> Any:
    """Return a score function.

    Raises:
        ValueError: no function, or a denoiser.
    """
    if isinstance(score_fn, Denoiser):
        raise ValueError(
            "score_fn must be a score, got a Denoiser. Use diffusion.score(sde, denoiser)."
        )
    return check_callable("score_fn", score_fn, "a function (t, x) -> [n, d]")
