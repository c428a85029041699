r"""The reverse stochastic equation, in Z = αX/h and in the signal-to-noise ratio ρ as time.

    ==========  ===========================  ======
    symbol      name                         shape
    ==========  ===========================  ======
    ρ           ``rho``, α²/h                []
    Z           ``z``, αX/h                  [n, d]
    h/α         ``noise_to_signal(rho)``     []
    E[X_0 | x]  ``denoised(rho, z)``         [n, d]
    ΔB_ρ        ``increment``                [n, d]
    ==========  ===========================  ======

See :mod:`softntk.diffusion._sampling.sample` for the equation, its accuracy and its sources.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from softntk._core.records import static_record
from softntk._linalg.angles import safe_sqrt
from softntk._linalg.norms import scaled_norm
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._sampling import score_functions
from softntk.diffusion._types import ScoreFn

MIN_LOG_SNR = -32.0
"""Log-SNR below which X is noise to seven digits: steps start there, and nothing underflows."""


@static_record
class SamplerOptions:
    """Options that are part of the compiled program; see ``sample``.

    Attributes:
        method: "sde" or "ode".
        min_time: T₀.
        steps: number of steps of "sde".
        corrector_steps: Langevin steps after each of them.
        corrector_snr: sets the size of the Langevin steps.
        tolerances: relative and absolute, of each step of "ode".
        max_steps: largest number of steps of "ode".
    """

    method: str
    min_time: float
    steps: int
    corrector_steps: int
    corrector_snr: float
    tolerances: tuple[float, float]
    max_steps: int


def solve_reverse_sde(
    score_fn: ScoreFn,
    key: PRNGKeyArray,
    sde: VPSDE,
    x: Array,
    options: SamplerOptions,
    moments: tuple[Array, Array, Array] | None,
) -> Array:
    """Solve the reverse equation from x at T to min_time, and return x there.

    Time is the signal-to-noise ratio ρ = α²/h, so that α² = ρ/(1 + ρ) and h = 1/(1 + ρ).
    ``moments`` are mean, and eigenvalues and eigenvectors of the covariance of the data.
    """
    # 1. Choose the steps, uniform in log ρ.
    first_snr, last_snr = (
        sde.log_snr(jnp.asarray(t, x.dtype)) for t in (sde.horizon, options.min_time)
    )
    log_ratios = jnp.linspace(jnp.maximum(first_snr, MIN_LOG_SNR), last_snr, options.steps + 1)
    ratios = jnp.exp(log_ratios)

    # As functions of ρ, neither of which cancels: α² = ρ/(1 + ρ), h = 1/(1 + ρ).
    def noise_to_signal(rho: Array) -> Array:
        """Return h/α, the factor from z to x."""
        return 1 / jnp.sqrt(rho * (1 + rho))

    def score(rho: Array, x: Array) -> Array:
        """Return s(t, x) at the time whose signal-to-noise ratio is ρ."""
        return score_functions.score_at(score_fn, sde.time(jnp.log(rho)), x)

    def denoised(rho: Array, z: Array) -> Array:
        """Return E[X_0 | X_t = x] = (x + h s)/α."""
        x = noise_to_signal(rho) * z
        return (x + score(rho, x) / (1 + rho)) * jnp.sqrt((1 + rho) / rho)

    def correct(x: Array, rho: Array, signal_ratio: Array, key: PRNGKeyArray) -> Array:
        """Take Langevin steps at fixed ρ."""

        def langevin_step(x: Array, key: PRNGKeyArray) -> tuple[Array, None]:
            noise = jax.random.normal(key, x.shape, x.dtype)
            drift = score(rho, x)
            # Rows that are not finite must not change the step size of the others.
            drift_norm = scaled_norm(jnp.where(jnp.isfinite(drift), drift, 0))
            safe_norm = jnp.where(drift_norm > 0, drift_norm, 1)
            norm_ratio = jnp.where(drift_norm > 0, scaled_norm(noise) / safe_norm, 0)
            step_size = 2 * signal_ratio * (options.corrector_snr * norm_ratio) ** 2
            return x + step_size * drift + jnp.sqrt(2 * step_size) * noise, None

        keys = jax.random.split(key, options.corrector_steps)
        return lax.scan(langevin_step, x, keys)[0]

    def match_moments(
        z: Array, rho: Array, mean: Array, eigenvalues: Array, eigenvectors: Array
    ) -> Array:
        """Move the batch to the mean ρm and the variances ρ²λ + ρ of Z."""
        # Rows that are not finite are left out: they must not spoil the others.
        finite_rows = jnp.where(jnp.isfinite(z).all(axis=1, keepdims=True), z, jnp.nan)
        rotated = (finite_rows - jnp.nanmean(finite_rows, axis=0)[None]) @ eigenvectors
        variances = rho**2 * jnp.maximum(eigenvalues, 0) + rho
        stretch = jnp.sqrt(variances / jnp.nanmean(rotated**2, axis=0))
        return rho * mean[None] + (rotated * stretch[None]) @ eigenvectors.T

    def add_noise(z: Array, step_size: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Return Z after the Brownian increment, and the point at which to denoise.

        That point lies half-way, shifted from the chord by the area of the path (shifted Euler).
        """
        path_key, area_key = jax.random.split(key)
        # Zero after the last step, where a root has no derivative.
        deviation = safe_sqrt(step_size)
        increment = deviation * jax.random.normal(path_key, z.shape, z.dtype)
        area = deviation / math.sqrt(12) * jax.random.normal(area_key, z.shape, z.dtype)
        return z + increment, z + increment / 2 + area

    # 2. Step. The noise of a step is drawn at the end of the step before, so that it is an array
    # once: XLA would draw it anew for every use of a sum.
    def step(
        carry: tuple[Array, Array], inputs: tuple[Array, Array, Array, PRNGKeyArray]
    ) -> tuple[tuple[Array, Array], None]:
        noisy_z, query_z = carry
        rho, next_rho, following_rho, key = inputs
        noise_key, corrector_key = jax.random.split(key)
        # Z + ∫ E[X_0 | X] dρ + ΔB: the noise is already in noisy_z.
        z = noisy_z + (next_rho - rho) * denoised(rho, query_z)
        if options.corrector_steps:
            # α² before the step, over α² after it.
            signal_ratio = rho * (1 + next_rho) / (next_rho * (1 + rho))
            next_x = noise_to_signal(next_rho) * z
            next_x = correct(next_x, next_rho, signal_ratio, corrector_key)
            z = next_x / noise_to_signal(next_rho)
        if moments is not None:
            z = match_moments(z, next_rho, *moments)
        return add_noise(z, following_rho - next_rho, noise_key), None

    # 3. Run all steps; after the last one there is no noise to add.
    keys = jax.random.split(key, options.steps + 1)
    following_ratios = jnp.append(ratios[2:], ratios[-1])
    start = add_noise(x / noise_to_signal(ratios[0]), ratios[1] - ratios[0], keys[0])
    (z, _), _ = lax.scan(step, start, (ratios[:-1], ratios[1:], following_ratios, keys[1:]))
    return noise_to_signal(ratios[-1]) * z
