r"""Score estimation by kernel regression with the infinite-width tangent kernel, stopped early."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations, networks
from softntk._core.progress import Progress
from softntk._core.records import function_record, static, static_record
from softntk._core.validation import (
    as_rows,
    check_choice,
    check_count,
    check_flag,
    check_key,
    check_number,
)
from softntk._linalg.products import product
from softntk.diffusion._arguments import check_known
from softntk.diffusion._denoisers import kernel_fit, noisy_samples, spectral_fit
from softntk.diffusion._denoisers.base import Denoiser
from softntk.diffusion._denoisers.coordinates import Coordinates, fit_coordinates
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import Points
from softntk.solution import Result

STOPPING = ("holdout", *kernel_fit.STOPPING_RULES)

VALIDATION_SAMPLES = 16384
"""About how many noisy samples there are by default, and how many measure a held-out error: as many
draws of each data point as fit into this number, and at least one."""

SIGMA_CANDIDATES = (1.0, 2.0, 4.0, 8.0)
"""The σ that are tried for a family of networks, smoothest kernel first."""

EXPONENTIAL_SIGMA_CANDIDATES = (0.5, 1.0, 2.0, 3.0)
"""The σ that are tried where the kernel grows exponentially: plain networks of e^z and the like."""


@function_record
class KernelPredictor:
    """F as a kernel expansion at each noise level, interpolated linearly in between.

    Attributes:
        landmarks: [J, M, p].
        weights: [J, M, k].
        sigmas: [J].
        kernel_of: ``(sigma, z1, z2) -> [n1, n2]``.
    """

    landmarks: Float[Array, "J M p"]
    weights: Float[Array, "J M k"]
    sigmas: Float[Array, " J"]
    kernel_of: Callable = static()

    def __call__(
        self, noise_coordinate: Float[Array, " r"], network_input: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return Σ_j max(1 − |u − j|, 0) k_j(z, Z_j) w_j, [n, k].

        At a single time only the expansions of its two neighbouring levels are evaluated.
        """

        def expansion_at(j: int | Array) -> Array:
            # k_j(z, Z_j) w_j.
            gram = self.kernel_of(self.sigmas[j], network_input, self.landmarks[j])
            return product(gram, self.weights[j])

        # 1. A single noise level needs no interpolation.
        level_count = len(self.sigmas)
        if level_count == 1:
            return expansion_at(0)
        # 2. A single time lies between two levels.
        if len(noise_coordinate) == 1:
            # u lies in [lower_level, lower_level + 1]; the last level is an upper end.
            lower_level = jnp.clip(noise_coordinate[0].astype(int), 0, level_count - 2)
            upper_share = noise_coordinate[0] - lower_level.astype(noise_coordinate.dtype)
            lower_part = (1 - upper_share) * expansion_at(lower_level)
            return lower_part + upper_share * expansion_at(lower_level + 1)

        # 3. Points at many times use all levels, with hat functions as weights.
        def add_level(j: Array, total: Array) -> Array:
            distance = jnp.abs(noise_coordinate - jnp.asarray(j, noise_coordinate.dtype))
            return total + jnp.maximum(1 - distance, 0)[:, None] * expansion_at(j)

        output_shape = (len(network_input), self.weights.shape[2])
        zeros = jnp.zeros(output_shape, network_input.dtype)
        return jax.lax.fori_loop(0, level_count, add_level, zeros)


@static_record
class TangentKernel:
    """The tangent kernel of a family, with a σ that may be traced.

    The inputs are multiplied by σ instead of the weights.

    Attributes:
        family: the family of the network.
        train_readout: whether its readout is trained too.
    """

    family: str
    train_readout: bool

    def __call__(self, sigma: Array, z1: Array, z2: Array | None = None) -> Array:
        """Return the kernel, [n1, n2]."""
        # Weights of deviation σ on z act as weights of deviation 1 on σz. The NTK of the latter
        # has one factor σ² more, from ⟨x, x'⟩.
        scaled_z2 = None if z2 is None else sigma * z2
        kernel_fn = _infinite_width(self.family).kernel_fn
        nngp, ntk = kernel_fn(sigma * z1, scaled_z2, ("nngp", "ntk"))
        return ntk / sigma**2 + nngp if self.train_readout else ntk / sigma**2


@cache
def _infinite_width(family: str) -> networks.Network:
    """Return the network of a family, for its kernel of infinite width."""
    return networks.two_layer(family, width=2)


def _sigma_candidates(family: str) -> tuple[float, ...]:
    """Return the σ to be tried for a family, by how its activation grows."""
    name, normalized = networks.FAMILIES[family]
    moments = activations.get(name).moments
    # Kernels of homogeneous activations do not depend on the unit of the points.
    if moments.degree is not None:
        return (1.0,)
    with jax.ensure_compile_time_eval():
        grows_exponentially = float(moments.growth(jnp.ones(()))) > 0
    if grows_exponentially and not normalized:
        return EXPONENTIAL_SIGMA_CANDIDATES
    return SIGMA_CANDIDATES


def kernel_denoiser(
    key: PRNGKeyArray,
    sde: VPSDE,
    x0: Points,
    *,
    family: str = "softmax",
    sigma: float | None = None,
    train_readout: bool = False,
    times: int | Sequence[float] = 8,
    min_time: float = 1e-3,
    draws: int | None = None,
    landmarks: int = 1024,
    stopping: str | float = "holdout",
    filter: str = "flow",  # noqa: A002
    validation: float = 0.2,
    progress: bool = False,
) -> Denoiser:
    r"""Fit E[X_0 | X_t] by kernel regression with a network's infinite-width tangent kernel.

    Use it for small data sets, where it takes seconds and has no randomness of training. At each of
    J noise levels the noisy samples (X_t, X_0) are regressed on M landmarks, in the coordinates of
    :mod:`softntk.diffusion._denoisers.coordinates`: f = ℓ + c F. F follows gradient flow on
    1/(2N) Σ‖F(z_i) − y_i‖² for a time τ, or is ridge regression with ridge N/τ. The labels are
    noisy however many there are: at τ = ∞ F reproduces the noise, so the flow is stopped early.

    Args:
        key: randomness of the noise, the landmarks and the folds.
        sde: the noising process.
        x0: data, [n, d].
        family: of the network whose kernel it is, as for :func:`softntk.networks.two_layer`.
        sigma: σ of its weights; 1/σ is the length scale of the kernel on the unit sphere. None: the
            best on held-out data, at each noise level, of 1, 2, 4, 8 (½, 1, 2, 3 for exp; relu and
            other homogeneous functions do not depend on it).
        train_readout: use the kernel of a network whose readout is trained too.
        times: J noise levels, evenly in log-SNR, or the times themselves; in between F is
            interpolated.
        min_time: the first time, if ``times`` is a number.
        draws: noisy samples of each data point and level; None: as many as make at most 16,384
            samples, and at least one.
        landmarks: M, at most the number of samples.
        stopping: "holdout": the τ of the least cross-validation error, then a fit of all data.
            Errors are measured with as many draws as the default of ``draws``, or more, however few
            ``draws`` are, as noise can be drawn anew (in ten seeds of a ring of 1,024 points the
            error was up to 1.21 times that of the best τ with one draw, 1.04 times with sixteen).
            "rademacher":
            :func:`softntk.theory.early_stopping_time` with the constant 1, the fixed point of the
            local Rademacher complexity. "least_risk": :func:`softntk.theory.least_risk_time`. Both
            rules use only the eigenvalues, the noise and the norm of the target; the latter two are
            estimated by generalised cross-validation. They count data points, as the draws of one
            point share its label. A number is τ itself: learning rate × steps on the mean loss.
        filter: "flow" or "ridge".
        validation: the share of the data left out for "holdout" (and for σ), at most a half; each
            fold of that size is left out in turn.
        progress: show which level is fitted.

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. Its ``stats``, each [J], are "log_snr" of the noise
        levels, "time" τ, "sigma", "validation" (mean squared error on data left out, in units of
        c(t)²; +inf if none were), and by generalised cross-validation "noise" (standard deviation
        of the labels, in units of c(t)) and "norm" (of F in the kernel's space).

    Raises:
        ValueError: x0 is not a finite matrix of at least two different rows, or has too few to
            leave some out; unknown names; numbers that are not positive; times outside (0, T].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (500, 1)))
        >>> options = {"times": [0.1], "landmarks": 64, "draws": 1, "sigma": 2.0}
        >>> f = kernel_denoiser(jax.random.key(1), vp_sde(), x0, **options)
        >>> error = f(0.1, jnp.array([[-0.9], [0.9]])) - jnp.array([[-1.0], [1.0]])
        >>> bool(jnp.max(jnp.abs(error)) < 0.1)
        True

    Source: arXiv 2405.03251, the section on diffusion (score estimation by kernel regression with
    the NTK); Raskutti, Wainwright and Yu (2014), JMLR 15, 335-366, for the rule.
    """
    # 1. Check the arguments.
    key = check_known("key", check_key("key", key))
    family = check_choice("family", family, networks.FAMILIES)
    if sigma is not None:
        sigma = check_known("sigma", check_number("sigma", sigma, above=0))
    train_readout = check_flag("train_readout", train_readout)
    landmarks = check_count("landmarks", landmarks)
    stopping = _check_stopping(stopping)
    filter = check_choice("filter", filter, spectral_fit.FILTERS)  # noqa: A001
    progress = check_flag("progress", progress)
    draws = None if draws is None else check_count("draws", draws)
    # 2. Compute the coordinates, and split the data into folds where something is chosen by them.
    coordinates = fit_coordinates(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    # Both the default of draws and the number of draws for validation.
    default_draws = VALIDATION_SAMPLES // len(x0)
    draws = max(1, default_draws) if draws is None else draws
    fold_key, landmark_key = jax.random.split(key)
    # σ is chosen by held-out errors too, whatever the stopping rule.
    sigmas = _sigma_candidates(family) if sigma is None else (sigma,)
    chooses_sigma = len(sigmas) > 1
    if stopping == "holdout" or chooses_sigma:
        folds = kernel_fit.split_folds(fold_key, len(x0), validation)
    else:
        folds = [np.arange(len(x0))]
    # 3. Fit each noise level.
    levels = AllLevels(
        options=kernel_fit.FitOptions(
            TangentKernel(family, train_readout), landmarks, stopping, filter, len(x0)
        ),
        sde=sde,
        coordinates=coordinates,
        x0=x0,
        folds=folds,
        sigmas=sigmas,
        draws=draws,
        validation_draws=max(draws, default_draws),
    )
    return _assemble(levels, levels.fit_all(key, landmark_key, progress))


class AllLevels(NamedTuple):
    """The data and options for the fits of all noise levels.

    Attributes:
        options: the same at every level.
        sde: the noising process.
        coordinates: the coordinates of the regression.
        x0: data, [n, d].
        folds: rows of the data in each fold.
        sigmas: candidates for σ.
        draws: noisy samples of each data point for the fit.
        validation_draws: noisy samples of each data point that measure held-out errors.
    """

    options: kernel_fit.FitOptions
    sde: VPSDE
    coordinates: Coordinates
    x0: Points
    folds: list[np.ndarray]
    sigmas: tuple[float, ...]
    draws: int
    validation_draws: int

    def fit_all(
        self, key: PRNGKeyArray, landmark_key: PRNGKeyArray, progress: bool
    ) -> list[kernel_fit.LevelFit]:
        """Return the fit of each noise level."""
        noise_levels = self.coordinates.noise_levels
        level_count = len(noise_levels)
        # With one fold nothing is held out.
        needs_more_draws = self.validation_draws > self.draws and len(self.folds) > 1
        level_fits = []
        progress_line = Progress(progress, "kernel denoiser")
        try:
            for j, log_snr in enumerate(noise_levels):
                progress_line.show(f"noise level {j + 1} of {level_count}")
                # Fit and validation share their samples unless the latter needs more of them; their
                # keys differ, so that no noise is used twice.
                draw = partial(
                    kernel_fit.draw_level_samples,
                    self.sde,
                    self.coordinates,
                    self.x0,
                    self.sde.time(log_snr),
                    self.folds,
                )
                fit_samples = draw(self.draws, noisy_samples.noise_key(key, j))
                validation_samples = fit_samples
                if needs_more_draws:
                    validation_key = noisy_samples.noise_key(key, level_count + j)
                    validation_samples = draw(self.validation_draws, validation_key)
                level_key = jax.random.fold_in(landmark_key, j)
                level_fits.append(
                    kernel_fit.fit_level(
                        self.options, level_key, self.sigmas, fit_samples, validation_samples
                    )
                )
        finally:
            progress_line.close()
        return level_fits


def _assemble(levels: AllLevels, level_fits: list[kernel_fit.LevelFit]) -> Denoiser:
    """Return the denoiser made of the fits of all noise levels."""
    predictor = KernelPredictor(
        # All levels have the same number of landmarks, and stack.
        landmarks=jnp.stack([fit.landmarks for fit in level_fits]),
        weights=jnp.stack([fit.weights for fit in level_fits]),
        sigmas=jnp.asarray([fit.stats["sigma"] for fit in level_fits], levels.x0.dtype),
        kernel_of=levels.options.kernel_of,
    )
    stats = {
        name: np.array([fit.stats[name] for fit in level_fits]) for name in level_fits[0].stats
    }
    stats["log_snr"] = np.asarray(levels.coordinates.noise_levels)
    result = jnp.int32(Result.SUCCESSFUL)
    return Denoiser(levels.sde, levels.coordinates, predictor, result, stats)


def _check_stopping(stopping: object) -> str | float:
    """Return a stopping rule or a stopping time.

    Raises:
        ValueError: an unknown rule, or a number that is not positive.
    """
    if not isinstance(stopping, str):
        return check_known("stopping", check_number("stopping", stopping, above=0))
    try:
        return check_choice("stopping", stopping, STOPPING)
    except ValueError as error:
        raise ValueError(f"{error} Or give the time itself.") from None
