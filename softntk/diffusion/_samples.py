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
        hats: ψ(t), [N, J], or [1, J] where all are at one time.
        lifted: z(t, X_t), [N, d + 1].
        targets: (X_0 − ℓ(t, X_t))/c(t), [N, d].
        scale: c(t), [N, 1].
    """

    hats: Float[Array, "r J"]
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
    return Samples(hats=frame.hats(sde, t), lifted=frame.lift(sde, t, x), targets=(x0 - linear) / scale, scale=scale)


def embedded(hats: Float[Array, "r J"], lifted: Float[Array, "n p"]) -> Float[Array, "n Jp"]:
    """What a network sees: the outer product of ψ/|ψ| and z, [n, J(d + 1)], of unit norm."""
    unit = hats / jnp.linalg.norm(hats, axis=1, keepdims=True)
    return (unit[:, :, None] * lifted[:, None, :]).reshape(len(lifted), -1)


def draw_times(key: PRNGKeyArray, sde: VPSDE, frame: Frame, n: int, stratified: bool = False) -> Float[Array, "..."]:
    """Times between the knots, where there is something to learn (normal in the log-SNR); the time of a single knot.

    Stratified: one of each of n intervals that are equally probable.
    """
    if len(frame.knots) == 1:
        return sde.time(frame.knots[0])
    centre, spread = 1.0 - jnp.log(jnp.mean(frame.spreads)), 2.4  # Karras et al. (2022), table 1
    lower, upper = (jax.scipy.stats.norm.cdf((frame.knots[i] - centre) / spread) for i in (0, -1))
    uniform = jax.random.uniform(key, (n,), frame.knots.dtype)
    if stratified:
        uniform = (jnp.arange(n) + uniform) / n
    log_snr = centre + spread * jax.scipy.stats.norm.ppf(lower + (upper - lower) * uniform)
    return sde.time(jnp.clip(log_snr, frame.knots[0], frame.knots[-1]))
