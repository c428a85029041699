"""Noisy samples of a data set in the coordinates of a frame: what every denoiser is fitted to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk.diffusion._denoisers.base import Frame
from softntk.diffusion._sde import VPSDE
from softntk.diffusion._truncated_normal import truncated_normal_quantile


@record
class Samples:
    """Inputs and targets of the regression.

    Attributes:
        place: u(t), [N], or [1] where all are at one time.
        lifted: z(t, X_t), [N, d + 1].
        targets: (X_0 − ℓ(t, X_t))/c(t), [N, d].
        scale: c(t), [N, 1].
    """

    place: Float[Array, " r"]
    lifted: Float[Array, "N p"]
    targets: Float[Array, "N d"]
    scale: Float[Array, "N 1"]


def noise_key(key: PRNGKeyArray, level: int) -> PRNGKeyArray:
    """Return the key for the noise of samples that stay the same.

    All estimators with one key, time and number of draws see the same ones.
    """
    return jax.random.fold_in(jax.random.fold_in(key, 2), level)


def noised(
    key: PRNGKeyArray, sde: VPSDE, frame: Frame, x0: Float[Array, "N d"], t: Float[Array, "..."]
) -> Samples:
    """Return one noisy sample of each row of x0 at times t, a scalar or [N]."""
    x = sde.perturb(key, t, x0)
    linear, scale = frame.linear(sde, t, x)
    return Samples(
        place=frame.place(sde, t),
        lifted=frame.lift(sde, t, linear),
        targets=(x0 - linear) / scale,
        scale=scale,
    )


def bumps(place: Float[Array, " r"], knots: int) -> Float[Array, "r J"]:
    """Return ψ(u) ∝ e^{−(u − j)²/2} for j = 0 … J − 1, [r, J], of unit norm.

    A sum of weights Σψ_j w_j varies smoothly in u. (With hats, 1 − |u − j|, it would be √2 times as
    large between two knots that agree as on them; after 8,000 steps the score error on a ring of
    eight modes is then 15 % larger.)
    """
    psi = jnp.exp(-((place[:, None] - jnp.arange(knots, dtype=place.dtype)[None]) ** 2) / 2)
    return psi / jnp.linalg.norm(psi, axis=1, keepdims=True)


def embedded(
    place: Float[Array, " r"], lifted: Float[Array, "n p"], knots: int
) -> Float[Array, "n Jp"]:
    """Return what a network sees: the outer product of ψ and z, [n, J(d + 1)], of unit norm."""
    return (bumps(place, knots)[:, :, None] * lifted[:, None, :]).reshape(len(lifted), -1)


def draw_times(
    key: PRNGKeyArray,
    sde: VPSDE,
    frame: Frame,
    n: int,
    levels: tuple[float, float],
    stratified: bool = False,
) -> Float[Array, "..."]:
    """Return times between the knots, where there is something to learn; the time of a single knot.

    The log-SNR of the data is normal of a mean and deviation, ``levels``. Stratified: one of each
    of n intervals that are equally probable.
    """
    if len(frame.knots) == 1:
        return sde.time(frame.knots[0])
    uniform = jax.random.uniform(key, (n,), frame.knots.dtype)
    if stratified:
        uniform = (jnp.arange(n, dtype=uniform.dtype) + uniform) / n
    centre = levels[0] - frame.log_spread
    return sde.time(
        truncated_normal_quantile(uniform, frame.knots[0], frame.knots[-1], centre, levels[1])
    )
