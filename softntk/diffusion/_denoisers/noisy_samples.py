"""Noisy samples of a data set in the coordinates of the regression, for every denoiser's fit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk.diffusion._denoisers.coordinates import Coordinates
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._truncated_normal import truncated_normal_quantile

NOISE_STREAM = 2
"""Number folded into a fit's key for the noise; network and minibatches have others."""


@record
class Samples:
    """Inputs and targets of the regression.

    Attributes:
        noise_coordinate: u(t), [N], or [1] where all are at one time.
        network_input: z(t, X_t), [N, d + 1].
        targets: (X_0 − ℓ(t, X_t))/c(t), [N, d].
        scale: c(t), [N, 1].
    """

    noise_coordinate: Float[Array, " r"]
    network_input: Float[Array, "N p"]
    targets: Float[Array, "N d"]
    scale: Float[Array, "N 1"]


def noise_key(key: PRNGKeyArray, level: int) -> PRNGKeyArray:
    """Return the key for the noise of samples that are drawn once.

    All estimators with one key, time and number of draws get the same samples.
    """
    # Two folds: first the purpose, then the noise level.
    return jax.random.fold_in(jax.random.fold_in(key, NOISE_STREAM), level)


def draw_samples(
    key: PRNGKeyArray,
    sde: VPSDE,
    coordinates: Coordinates,
    x0: Float[Array, "N d"],
    t: Float[Array, "..."],
) -> Samples:
    """Draw one noisy sample of each row of x0 at times t, a scalar or [N]."""
    # X_t = αX_0 + √h ε, then its coordinates ℓ, c, u and z.
    x = sde.perturb(key, t, x0)
    linear, scale = coordinates.skip_and_out(sde, t, x)
    return Samples(
        noise_coordinate=coordinates.noise_coordinate(sde, t),
        network_input=coordinates.network_input(sde, t, linear),
        targets=(x0 - linear) / scale,
        scale=scale,
    )


def time_embedding(noise_coordinate: Float[Array, " r"], level_count: int) -> Float[Array, "r J"]:
    """Return ψ(u) ∝ e^{−(u − j)²/2} for j = 0 … J − 1, [r, J], of unit norm.

    A sum of weights Σψ_j w_j then varies smoothly in u. With normalised hat functions,
    ψ_j ∝ max(1 − |u − j|, 0), the sum of two equal weights would be √2 times as large between their
    levels as at one of them. After 8,000 steps the score error on a ring of eight modes is then
    15 % larger.
    """
    level_indices = jnp.arange(level_count, dtype=noise_coordinate.dtype)
    # A Gaussian bump of width one around each noise level.
    psi = jnp.exp(-((noise_coordinate[:, None] - level_indices[None]) ** 2) / 2)
    return psi / jnp.linalg.norm(psi, axis=1, keepdims=True)


def embed(
    noise_coordinate: Float[Array, " r"], network_input: Float[Array, "n p"], level_count: int
) -> Float[Array, "n Jp"]:
    """Return the outer product of ψ(u) and z, [n, J(d + 1)], of unit norm, for a network."""
    psi = time_embedding(noise_coordinate, level_count)
    # |ψ ⊗ z| = |ψ||z| = 1.
    return (psi[:, :, None] * network_input[:, None, :]).reshape(len(network_input), -1)


def draw_times(
    key: PRNGKeyArray,
    sde: VPSDE,
    coordinates: Coordinates,
    n: int,
    levels: tuple[float, float],
    stratified: bool = False,
) -> Float[Array, "..."]:
    """Draw n times between the first and the last noise level; a single level gives its time.

    The log-SNR of the data is normal with mean and deviation ``levels``, cut to the interval.
    ``stratified`` draws one time in each of n intervals of equal probability.
    """
    noise_levels = coordinates.noise_levels
    if len(noise_levels) == 1:
        return sde.time(noise_levels[0])
    uniform = jax.random.uniform(key, (n,), noise_levels.dtype)
    # One point in each of n equal intervals of [0, 1): less variance, the same mean.
    if stratified:
        uniform = (jnp.arange(n, dtype=uniform.dtype) + uniform) / n
    # The log-SNR of the process is that of the data less the logarithm of their variance.
    centre = levels[0] - coordinates.log_variance
    log_snr = truncated_normal_quantile(
        uniform, noise_levels[0], noise_levels[-1], centre, levels[1]
    )
    return sde.time(log_snr)
