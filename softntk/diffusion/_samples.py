"""Noisy samples of a data set in the coordinates of a frame: what every denoiser is fitted to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._records import record
from softntk.diffusion.denoiser import Frame
from softntk.diffusion.sde import VPSDE


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
    """For the noise of samples that stay the same: all estimators with one key, time and number of draws see the same ones."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), level)


def noised(key: PRNGKeyArray, sde: VPSDE, frame: Frame, x0: Float[Array, "N d"], t: Float[Array, "..."]) -> Samples:
    """One noisy sample of each row of x0 at times t, a scalar or [N]."""
    x = sde.perturb(key, t, x0)
    linear, scale = frame.linear(sde, t, x)
    return Samples(place=frame.place(sde, t), lifted=frame.lift(sde, t, linear), targets=(x0 - linear) / scale, scale=scale)


def bumps(place: Float[Array, " r"], knots: int) -> Float[Array, "r J"]:
    """ψ(u) ∝ e^{−(u − j)²/2} for j = 0 … J − 1, [r, J], of unit norm.

    A sum of weights Σψ_j w_j varies smoothly in u. (With hats, 1 − |u − j|, it would be √2 times as large between two knots
    that agree as on them; after 8,000 steps the score error on a ring of eight modes is then 15 % larger.)
    """
    psi = jnp.exp(-((place[:, None] - jnp.arange(knots, dtype=place.dtype)[None]) ** 2) / 2)
    return psi / jnp.linalg.norm(psi, axis=1, keepdims=True)


def embedded(place: Float[Array, " r"], lifted: Float[Array, "n p"], knots: int) -> Float[Array, "n Jp"]:
    """What a network sees: the outer product of ψ and z, [n, J(d + 1)], of unit norm."""
    return (bumps(place, knots)[:, :, None] * lifted[:, None, :]).reshape(len(lifted), -1)


def draw_times(
    key: PRNGKeyArray, sde: VPSDE, frame: Frame, n: int, levels: tuple[float, float], stratified: bool = False
) -> Float[Array, "..."]:
    """Times between the knots, where there is something to learn; the time of a single knot.

    The log-SNR of the data is normal of a mean and deviation, ``levels``. Stratified: one of each of n intervals that are
    equally probable.
    """
    if len(frame.knots) == 1:
        return sde.time(frame.knots[0])
    centre, spread = levels[0] - frame.log_spread, levels[1]
    lower, upper = (jax.scipy.stats.norm.cdf((frame.knots[i] - centre) / spread) for i in (0, -1))
    uniform = jax.random.uniform(key, (n,), frame.knots.dtype)
    if stratified:
        uniform = (jnp.arange(n) + uniform) / n
    log_snr = centre + spread * jax.scipy.stats.norm.ppf(lower + (upper - lower) * uniform)
    return sde.time(jnp.clip(log_snr, frame.knots[0], frame.knots[-1]))
