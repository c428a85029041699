r"""The coordinates in which all denoisers solve their regression, computed from the data.

The regression function is f*(t, x) = E[X_0 | X_t = x]. With mean m and covariance S = UΛUᵀ of the
data, the best linear denoiser (the Wiener filter) is known at every t,

    ℓ(t, x) = m + αS(α²S + hI)⁻¹(x − αm).

It leaves a mean squared error of c(t)² = tr(S h(α²S + hI)⁻¹)/d in each coordinate. A kernel or
network learns the remainder, in units of c(t):

    f(t, x) = ℓ(t, x) + c(t) F(u(t), z(t, x)).

- z(t, x) ∈ R^{d+1} is the network input. It is (ℓ(t, x) − m)/√E|ℓ − m|² with a 1 appended, divided
  by its norm. So z lies on the unit sphere, for a typical x at 45° from the pole (0, …, 0, 1).
  There a softmax kernel is a Gaussian one, e^{σ²⟨z,z'⟩} = e^{σ²} e^{−σ²|z−z'|²/2},
  and the theory's assumption |z| = 1 holds. ℓ has the same information as x, except in directions
  in which the data do not vary. Where the noise exceeds the data ℓ is close to m, so that the
  network need not learn to ignore x.
- u(t) ∈ [0, J − 1] is the noise coordinate: the position of the log-SNR among J noise levels. A
  network sees the outer product of z and the time embedding ψ(u), |ψ| = 1, again of unit norm. What
  is learnt at one noise level is shared with its neighbours. A kernel fits each noise level by
  itself and interpolates between two.

For Gaussian data F = 0 is exact. In the notation of Karras et al., with x a noisy point,

    ==========================  =======================  =======================================
    Karras et al.               here                     method of :class:`Coordinates`
    ==========================  =======================  =======================================
    c_skip(σ) x                 ℓ(t, x), a matrix on x   ``skip_and_out``, first
    c_out(σ)                    c(t)                     ``skip_and_out``, second
    c_in(σ) x                   z(t, x)                  ``network_input``
    c_noise(σ)                  u(t)                     ``noise_coordinate``
    ==========================  =======================  =======================================

Source: MATHEMATICS.md#diffusion; Karras et al. (2022), arXiv 2206.00364, section 5, for
preconditioning by the known part.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from softntk._core.records import record
from softntk._core.shared_programs import evaluate_shared
from softntk._core.validation import (
    as_rows,
    check_count,
    is_concrete,
)
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.diffusion._arguments import (
    as_real,
    as_times,
    check_known,
    check_min_time,
    columns_of_times,
)
from softntk.diffusion._noising_process import VPSDE, check_sde
from softntk.diffusion._types import Points, Times

MIN_DATA_SNR = -4.0
"""Log-SNR of the data below which the linear denoiser is used alone."""


@record
class Coordinates:
    """Coordinates for the regression, computed from the data; see the module.

    Attributes:
        mean: m, [d].
        eigenvectors: U, [d, d], of the covariance, as columns.
        eigenvalues: Λ, [d], of the covariance.
        noise_levels: log-SNR of the J noise levels, [J], ascending.
    """

    mean: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"]
    eigenvalues: Float[Array, " d"]
    noise_levels: Float[Array, " J"]

    def skip_and_out(
        self, sde: VPSDE, t: Times, x: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "n 1"]]:
        """Return the best linear denoiser ℓ(t, x) and the root c(t) of the error it leaves."""
        time = columns_of_times(t, x)
        alpha = sde.alpha(time)
        h = sde.variance(time)
        # Λ/(α²Λ + h), the diagonal of S(α²S + hI)⁻¹ in the basis U.
        relative_variance = self.eigenvalues[None] / (alpha**2 * self.eigenvalues[None] + h)
        rotated = (x - alpha * self.mean[None]) @ self.eigenvectors
        linear = self.mean[None] + (rotated * (alpha * relative_variance)) @ self.eigenvectors.T
        return linear, jnp.sqrt(jnp.mean(h * relative_variance, axis=1, keepdims=True))

    def network_input(
        self, sde: VPSDE, t: Times, linear: Float[Array, "n d"]
    ) -> Float[Array, "n p"]:
        """Return z(t, x), [n, d + 1], of unit norm, from ℓ(t, x)."""
        time = columns_of_times(t, linear)
        alpha = sde.alpha(time)
        h = sde.variance(time)
        # √E|ℓ − m|², by roots: squares of eigenvalues leave the range of float32 for data in
        # nanometres or in counts.
        signal_fraction = (
            alpha**2 * self.eigenvalues[None] / (alpha**2 * self.eigenvalues[None] + h)
        )
        deviations = jnp.sqrt(self.eigenvalues)[None] * jnp.sqrt(signal_fraction)
        typical_size = scaled_norm(deviations, 1, keepdims=True)
        direction = jnp.where(
            typical_size > 0,
            (linear - self.mean[None]) / jnp.where(typical_size > 0, typical_size, 1),
            0,
        )
        # The appended 1 keeps the length of the direction after normalisation.
        z = jnp.concatenate([direction, jnp.ones((len(linear), 1), linear.dtype)], axis=1)
        return z / scaled_norm(z, 1, keepdims=True)

    def noise_coordinate(self, sde: VPSDE, t: Times) -> Float[Array, " r"]:
        """Return u(t), [1] for a scalar t and [n] for [n].

        It is 0 up to the first noise level and J − 1 from the last one on.
        """
        # jnp.interp is constant beyond the ends.
        log_snr = sde.log_snr(jnp.atleast_1d(jnp.asarray(t, self.noise_levels.dtype)))
        indices = jnp.arange(len(self.noise_levels), dtype=self.noise_levels.dtype)
        return jnp.interp(log_snr, self.noise_levels, indices)

    @property
    def log_variance(self) -> Float[Array, ""]:
        """The logarithm of Σλ²/Σλ, the variance along a typical sample.

        The log-SNR of the data is this plus log(α²/h).
        """
        return _log_typical_variance(self.eigenvalues)


def _log_typical_variance(eigenvalues: Float[Array, " d"]) -> Float[Array, ""]:
    """Return log(Σλ²/Σλ), scaled by the largest eigenvalue so that no square overflows."""
    largest = jnp.max(eigenvalues)
    scaled_values = eigenvalues / largest
    return jnp.log(largest) + jnp.log(jnp.sum(scaled_values**2) / jnp.sum(scaled_values))


def fit_coordinates(
    sde: VPSDE, x0: Points, times: int | Sequence[float], min_time: float
) -> Coordinates:
    """Return the coordinates of a data set, with J noise levels.

    An integer ``times`` spaces J levels evenly in log-SNR from ``min_time`` on; fewer than J where
    the noise exceeds the data already at ``min_time``. A sequence gives the times themselves.

    Raises:
        ValueError: x0 is not a finite floating-point matrix of at least two rows that differ, or
            its entries are so large that rounding exceeds the least noise; times is neither a
            positive integer nor a sequence of times in (0, T]; min_time is outside (0, T); traced
            arguments.
    """
    # 1. Check the data. Under jit all results are traced, even those of arrays that are not.
    check_known("sde", check_sde(sde))
    x0 = as_rows("x0", check_known("x0", x0), half=False)
    if not is_concrete(x0 + 0):
        raise ValueError(
            "x0 must be fitted outside of jit, vmap and grad, as a fit runs on the host. "
            "Pass the denoiser, which is a pytree, into the transformation."
        )
    if len(x0) < 2:
        raise ValueError("x0 must hold at least two rows: nothing can be learnt from one sample.")
    # 2. Decompose the covariance.
    axes = _principal_axes(x0)
    # 3. Choose the noise levels.
    if isinstance(times, int | np.integer):
        level_count = check_count("times", times)
        noise_levels = _even_noise_levels(sde, level_count, min_time, float(axes.log_variance))
    else:
        noise_levels = _noise_levels_at(sde, times)
    coordinates = Coordinates(
        mean=axes.mean,
        eigenvectors=axes.eigenvectors,
        eigenvalues=axes.eigenvalues,
        noise_levels=jnp.asarray(noise_levels, x0.dtype),
    )
    # 4. Check that the precision resolves the least noise.
    _check_resolved(sde, coordinates, x0)
    return coordinates


def _even_noise_levels(
    sde: VPSDE, level_count: int, min_time: float, log_variance: float
) -> np.ndarray:
    """Return log-SNRs, evenly spaced from ``min_time`` to where the noise exceeds the data."""
    min_time = check_min_time(sde, min_time)
    highest_snr, horizon_snr = _log_snrs(sde, [min_time, float(sde.horizon)])
    if level_count == 1:
        return np.array([highest_snr])
    # Where the noise far exceeds the data, ℓ alone is accurate: no level is needed there.
    lowest_snr = max(horizon_snr, MIN_DATA_SNR - log_variance)
    return np.unique(np.linspace(min(lowest_snr, highest_snr), highest_snr, level_count))


def _noise_levels_at(sde: VPSDE, times: Sequence[float]) -> np.ndarray:
    """Return the log-SNRs at the given times, ascending."""
    host_times = np.atleast_1d(np.asarray(as_real("times", times), np.float64))
    if np.ndim(times) != 1:
        raise ValueError(f"times must be a positive integer or a sequence of times, got {times!r}.")
    as_times(sde, host_times, "times")
    return np.unique(np.asarray(_log_snrs(sde, host_times)))


def _log_snrs(sde: VPSDE, times: Sequence[float] | np.ndarray) -> list[float]:
    """Return the log-SNR at each time."""
    # One program for a scalar time serves any number of times.
    return [float(evaluate_shared(sde.log_snr, jnp.asarray(t))) for t in times]


class _Axes(NamedTuple):
    """Mean and principal axes of data.

    Attributes:
        mean: the mean of the rows, [d].
        eigenvalues: λ, of the covariance, [d]; they may over- or underflow.
        eigenvectors: eigenvectors of the covariance, as columns, [d, d].
        unit: a power of two near the largest deviation.
        largest_deviation: the root of the largest eigenvalue, in that unit.
        rows_are_equal: whether all rows of the data are equal.
        log_variance: log(Σλ²/Σλ), the variance along a typical sample.
    """

    mean: Float[Array, " d"]
    eigenvalues: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"]
    unit: Float[Array, ""]
    largest_deviation: Float[Array, ""]
    rows_are_equal: Bool[Array, ""]
    log_variance: Float[Array, ""]


def _principal_axes(x0: Float[Array, "n d"]) -> _Axes:
    """Return mean, and eigenvalues and eigenvectors of the covariance.

    They are computed in units of the largest entries, so that no square over- or underflows.

    Raises:
        ValueError: all rows are equal, or an eigenvalue over- or underflows.
    """
    # 1. Decompose; all of it is one program.
    axes = _scaled_axes(x0)
    if bool(axes.rows_are_equal) or not float(axes.largest_deviation) > 0:
        raise ValueError(
            "x0 must hold rows that differ: all of them are equal, so the denoiser is a constant."
        )
    # 2. Check that the eigenvalues fit the precision in the unit of the data.
    largest_deviation = float(axes.largest_deviation) * float(axes.unit)
    limits = jnp.finfo(x0.dtype)
    smallest_root = math.sqrt(float(limits.tiny))
    largest_root = math.sqrt(float(limits.max))
    if not smallest_root < largest_deviation / 8 < 8 * largest_deviation < largest_root:
        raise ValueError(
            f"x0 must have a variance that {x0.dtype} can hold, got a deviation of "
            f"{largest_deviation:.2g}: standardise x0, i.e. subtract the mean and divide by the "
            "deviation."
        )
    return axes


@jax.jit
def _scaled_axes(x0: Float[Array, "n d"]) -> _Axes:
    """Return the principal axes, computed in units of the largest entries."""
    # 1. Centre in units of the largest entry; scale again by the largest difference from the mean.
    data_unit = binary_scale(x0)
    mean = jnp.mean(x0 / data_unit, axis=0)
    centred = x0 / data_unit - mean[None]
    centred_unit = binary_scale(centred)
    scaled_data = centred / centred_unit
    # 2. Decompose; rounding may make an eigenvalue negative.
    eigenvalues, eigenvectors = jnp.linalg.eigh(scaled_data.T @ scaled_data / len(x0))
    eigenvalues = jnp.maximum(eigenvalues, 0)
    # 3. Return to the unit of the data.
    unit = data_unit[0, 0] * centred_unit[0, 0]
    return _Axes(
        mean=mean * data_unit[0],
        eigenvalues=eigenvalues * unit * unit,
        eigenvectors=eigenvectors,
        unit=unit,
        largest_deviation=jnp.sqrt(jnp.max(eigenvalues)),
        rows_are_equal=jnp.all(x0 == x0[:1]),
        log_variance=_log_typical_variance(eigenvalues * unit * unit),
    )


def _check_resolved(sde: VPSDE, coordinates: Coordinates, x0: Float[Array, "n d"]) -> None:
    """Check that the rounding of the data is below the least noise and the linear error there.

    Raises:
        ValueError: the rounding of the data exceeds both.
    """

    def deviations(x0: Array, noise_level: Array) -> tuple[Array, Array, Array]:
        least_noise_time = sde.time(noise_level)
        _, scale = coordinates.skip_and_out(sde, least_noise_time, x0[:1])
        return jnp.max(jnp.abs(x0)), jnp.sqrt(sde.variance(least_noise_time)), scale[0, 0]

    # Three deviations in the unit of the data: of rounding, of the noise, and of the error of ℓ.
    largest_entry, least_noise, linear_error = map(
        float, evaluate_shared(deviations, x0, coordinates.noise_levels[-1])
    )
    rounding = largest_entry * float(jnp.finfo(x0.dtype).eps)
    if rounding > linear_error and rounding > least_noise:
        raise ValueError(
            f"x0 must be resolved beside the noise, got entries of up to {largest_entry:.2g}, "
            f"whose rounding in {x0.dtype} drowns the least noise level: standardise x0, i.e. "
            "subtract the mean and divide by the deviation, or use a larger min_time."
        )
