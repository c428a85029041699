"""The denoiser that all estimators return: one signature, and its score."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from softntk._core.records import function_record
from softntk._core.validation import check_callable
from softntk.diffusion._arguments import (
    as_output,
    as_points,
    check_known,
    columns_of_times,
)
from softntk.diffusion._denoisers.coordinates import Coordinates
from softntk.diffusion._noising_process import VPSDE, check_sde
from softntk.diffusion._types import Points, ScoreFn, Times
from softntk.solution import Result


@function_record
class Denoiser:
    """An estimate f(t, x) of E[X_0 | X_t = x], a pytree for jit and vmap.

    Call it as ``denoiser(t, x)`` with t a scalar or [n] and x [n, d].

    Attributes:
        sde: the noising process.
        frame: the coordinates of the regression.
        predictor: F, ``(noise_coordinate [1 or n], network_input [n, d + 1]) -> [n, d]``.
        result: a :class:`~softntk.solution.Result` code of the fit.
        stats: records of the fit, by name.
    """

    sde: VPSDE
    frame: Coordinates
    predictor: Any
    result: Int[Array, ""]
    stats: dict[str, Any]

    def __call__(self, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return the estimate of E[X_0 | X_t = x], [n, d].

        Args:
            t: times in (0, T], a scalar or [n]. A scalar is cheaper.
            x: noisy points, [n, d].

        Raises:
            ValueError: t is outside (0, T]; x is not a finite floating-point matrix of the
                dimension of the data.
        """
        # The estimate ℓ + c F(u, z), in the precision of the fit; the result has that of x.
        coordinates = self.frame
        t, points = as_points(self.sde, t, x, len(coordinates.mean))
        x = points.astype(coordinates.mean.dtype)
        linear, scale = coordinates.skip_and_out(self.sde, t, x)
        estimate = self.predictor(
            coordinates.noise_coordinate(self.sde, t),
            coordinates.network_input(self.sde, t, linear),
        )
        return (linear + scale * estimate).astype(points.dtype)

    @property
    def advice(self) -> str:
        """The text behind ``result``; outside of jit only."""
        return Result(int(check_known("result", self.result))).advice

    def __repr__(self) -> str:
        d = jnp.shape(self.frame.mean)[-1]
        level_count = jnp.shape(self.frame.noise_levels)[-1]
        predictor_name = type(self.predictor).__name__
        return f"Denoiser({predictor_name}, {d} dimensions, {level_count} noise levels, {self.sde})"


@function_record
class Score:
    """The score that belongs to a denoiser, a callable pytree; made by :func:`score`.

    Attributes:
        sde: the noising process.
        denoiser: ``(t, x) -> [n, d]``.
    """

    sde: VPSDE
    denoiser: Any

    def __call__(self, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return (α f(t, x) − x)/h, [n, d].

        Raises:
            ValueError: t is outside (0, T]; x is not a finite floating-point matrix; the denoiser
                returns another shape.
        """
        t, x = as_points(self.sde, t, x)
        time = columns_of_times(t, x)
        denoised = as_output("denoiser", self.denoiser(t, x), x)
        return (self.sde.alpha(time) * denoised - x) / self.sde.variance(time)


def score(sde: VPSDE, denoiser: Callable[[Times, Points], Array]) -> Score:
    """Return the score of a denoiser, ∇log p_t(x) = (α f(t, x) − x)/h (Tweedie's formula).

    Use it to sample with a fitted denoiser, or to measure its score error.

    Args:
        sde: the noising process.
        denoiser: ``(t, x) -> [n, d]``: any of this package, or any function of that signature. t in
            (0, T].

    Returns:
        ``(t, x) -> [n, d]``, for :func:`softntk.diffusion.sample` and the metrics. At t → 0 an
        error of the denoiser is divided by h → 0.

    Raises:
        ValueError: denoiser is not a function, or is a score; sde is not a noising process.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde = diffusion.vp_sde()
        >>> at_origin = diffusion.score(sde, lambda t, x: jnp.zeros_like(x))  # all data at 0: −x/h
        >>> bool(jnp.allclose(at_origin(0.5, jnp.ones((1, 2))), -1 / sde.variance(0.5)))
        True

    Source: Efron (2011), JASA 106, 1602-1614; MATHEMATICS.md#diffusion.
    """
    check_sde(sde)
    if isinstance(denoiser, Score):
        raise ValueError(
            "denoiser must be an estimate of E[X_0 | X_t], got a Score, which is one already."
        )
    return Score(sde, check_callable("denoiser", denoiser, "a function (t, x) -> [n, d]"))


def check_score_fn(score_fn: object) -> ScoreFn:
    """Return score_fn, checked to be callable and no denoiser.

    Raises:
        ValueError: score_fn is not a function, or is a denoiser.
    """
    if isinstance(score_fn, Denoiser):
        raise ValueError(
            "score_fn must be a score, got a Denoiser. Use diffusion.score(sde, denoiser)."
        )
    return check_callable("score_fn", score_fn, "a function (t, x) -> [n, d]")
