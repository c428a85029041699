"""The fit of one noise level by kernel regression: samples, choice of σ, and stopping time."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import check_number
from softntk._linalg.products import product
from softntk.diffusion._arguments import check_known
from softntk.diffusion._denoisers import noisy_samples, spectral_fit
from softntk.diffusion._denoisers.coordinates import Coordinates
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import Points
from softntk.theory import early_stopping_time, least_risk_time

STOPPING_RULES = {
    "rademacher": partial(early_stopping_time, constant=1.0),
    "least_risk": least_risk_time,
}
"""Rules that need no held-out data: (None, noise, norm=, eigenvalues=) -> record with ``time``."""

MAX_TRIAL_SAMPLES = 4096
"""Number of samples on which the candidates for σ are compared."""

MAX_TRIAL_LANDMARKS = 512
"""Number of landmarks with which the candidates for σ are compared."""

EQUAL_ERROR_RATIO = 1 + 1e-3
"""Errors of two σ within this ratio count as equal."""


class FitOptions(NamedTuple):
    """Options that are the same at every noise level.

    Attributes:
        kernel_of: ``(sigma, z1, z2) -> [n1, n2]``.
        landmarks: M, the largest number of landmarks.
        stopping: the name of a rule, or a stopping time.
        filter: one of ``spectral_fit.FILTERS``.
        data_points: n.
    """

    kernel_of: Callable
    landmarks: int
    stopping: str | float
    filter: str
    data_points: int


class LevelSamples(NamedTuple):
    """Noisy samples of one noise level, and the rows of each fold.

    Attributes:
        samples: inputs and targets.
        folds: row numbers; all draws of a data point are in the same fold.
    """

    samples: noisy_samples.Samples
    folds: list[np.ndarray]

    def subset(self, size: int) -> "LevelSamples":
        """Return about ``size`` of the samples, the same fraction of each fold."""
        # A fold has its data points in random order, so that its first rows are a random subset.
        fraction = min(1.0, size / len(self.samples.targets))
        return self._replace(
            folds=[fold[: max(1, round(fraction * len(fold)))] for fold in self.folds]
        )


class LevelFit(NamedTuple):
    """The kernel expansion of one noise level.

    Attributes:
        landmarks: Z, [M, p].
        weights: [M, k].
        stats: "time", "sigma", "noise", "norm" and "validation".
    """

    landmarks: Array
    weights: Array
    stats: dict[str, float]


def split_folds(key: PRNGKeyArray, n: int, validation: float) -> list[np.ndarray]:
    """Return the rows of n data points in folds of equal size, up to one row.

    ``validation`` is the share of each fold.

    Raises:
        ValueError: a share above a half, or one that holds no row.
    """
    fold_share = check_known("validation", check_number("validation", validation))
    # The number of folds is 1/share, rounded; 0 marks a share that is not allowed.
    fold_count = round(1 / fold_share) if 0 < fold_share <= 0.5 else 0
    if not 2 <= fold_count <= n:
        raise ValueError(
            "validation must be a share of at most a half that holds at least one of the "
            f"{n} rows of x0, got {validation!r}: "
            "fit more data, or give sigma and a stopping rule that leaves none out."
        )
    return np.array_split(np.asarray(jax.random.permutation(key, n)), fold_count)


def draw_level_samples(
    sde: VPSDE,
    coordinates: Coordinates,
    x0: Points,
    t: Array,
    folds: list[np.ndarray],
    draws: int,
    key: PRNGKeyArray,
) -> LevelSamples:
    """Draw ``draws`` noisy samples of each data point at time t."""
    # All draws are one batch of n · draws rows.
    repeated_data = jnp.tile(x0, (draws, 1))
    samples = noisy_samples.draw_samples(key, sde, coordinates, repeated_data, t)
    # Draw r of data point i is row i + r n: the draws of one point stay together in its fold.
    draw_offsets = len(x0) * np.arange(draws)[:, None]
    return LevelSamples(samples, [(fold + draw_offsets).T.ravel() for fold in folds])


def fit_level(
    options: FitOptions,
    key: PRNGKeyArray,
    sigmas: tuple[float, ...],
    fit_samples: LevelSamples,
    validation_samples: LevelSamples,
) -> LevelFit:
    """Fit one noise level to ``fit_samples``; σ and τ are chosen by ``validation_samples``.

    Raises:
        ValueError: the kernel over- or underflows at σ.
    """
    # 1. Choose landmarks at random, and σ by its held-out error.
    landmark_order = np.asarray(jax.random.permutation(key, len(fit_samples.samples.targets)))
    sigma = sigmas[0]
    if len(sigmas) > 1:
        # A smaller problem is enough to compare kernels.
        trial_count = min(options.landmarks, MAX_TRIAL_LANDMARKS)
        trial_landmarks = landmark_order[:trial_count]
        sigma = choose_sigma(options, sigmas, fit_samples, validation_samples, trial_landmarks)
    # 2. Sum over the samples, and decompose.
    landmark_rows = landmark_order[: options.landmarks]
    sums = FoldSums(options, sigma, fit_samples, validation_samples, landmark_rows)
    gram = sums.all.gram
    if not bool(jnp.isfinite(gram).all() & (jnp.trace(gram) > 0)):
        raise ValueError(
            f"sigma must give a kernel that {gram.dtype} can hold, got {sigma:g}, of which "
            "entries over- or underflow. Take one nearer to 1, or float64."
        )
    fit_path = spectral_fit.path(sums.all)
    noise, norm = spectral_fit.noise_and_norm(fit_path, sums.all)
    # 3. Choose the stopping time.
    if options.stopping == "holdout":
        tau = sums.best_stopping()[0]
    elif options.stopping in STOPPING_RULES:
        # The rules are for n labels: they take eigenvalues of the n × n kernel, which are n times
        # those of G.
        eigenvalues = options.data_points * np.asarray(fit_path.eigenvalues, np.float64)
        rule = STOPPING_RULES[options.stopping]
        rule_time = rule(None, noise, norm=norm, eigenvalues=eigenvalues).time
        # Their time belongs to the sum of the loss over the data, τ to its mean.
        tau = options.data_points * rule_time
    else:
        tau = float(options.stopping)
    # 4. Map the weights of the features to weights of the kernel at the landmarks.
    # F(z) = k(z, Z) R w.
    feature_weights = fit_path.weights(
        jnp.asarray(tau, fit_samples.samples.targets.dtype), options.filter
    )
    stats = {
        "time": tau,
        "sigma": sigma,
        "noise": noise,
        "norm": norm,
        "validation": sums.error_at(tau),
    }
    return LevelFit(sums.landmarks, product(sums.whitening_matrix, feature_weights), stats)


def choose_sigma(
    options: FitOptions,
    sigmas: tuple[float, ...],
    fit_samples: LevelSamples,
    validation_samples: LevelSamples,
    landmark_rows: np.ndarray,
) -> float:
    """Return the σ of the least held-out error in a fit of fewer samples and landmarks.

    Among equal errors it is the first, which is the smoothest kernel.
    """
    trial_samples = fit_samples.subset(MAX_TRIAL_SAMPLES)
    # Where fit and validation share their samples they share the subset too: one set of sums.
    judged_samples = trial_samples if validation_samples is fit_samples else validation_samples
    trials = [
        FoldSums(options, sigma, trial_samples, judged_samples, landmark_rows) for sigma in sigmas
    ]
    errors = np.array([trial.best_stopping()[1] for trial in trials])
    # argmax returns the first of several that are True.
    return sigmas[int(np.argmax(errors <= EQUAL_ERROR_RATIO * errors.min()))]


class FoldSums:
    """Landmarks, and sums of their features over the samples of each fold and of all.

    Attributes:
        filter: one of ``spectral_fit.FILTERS``.
        landmarks: Z, [M, p].
        whitening_matrix: R, [M, M].
        folds: sums over the samples that are fitted, of each fold.
        validation_folds: sums over the samples that judge a fit, of each fold.
        all: sums over all samples that are fitted.
    """

    def __init__(
        self,
        options: FitOptions,
        sigma: float,
        fit_samples: LevelSamples,
        validation_samples: LevelSamples,
        landmark_rows: np.ndarray,
    ) -> None:
        """Form all sums; nothing is summed twice where both kinds of samples are the same."""
        kernel_scale = jnp.asarray(sigma, fit_samples.samples.network_input.dtype)
        self.filter = options.filter
        self.landmarks = fit_samples.samples.network_input[landmark_rows]
        self.whitening_matrix = spectral_fit.whitening(
            options.kernel_of, kernel_scale, self.landmarks
        )

        def sum_folds(data: LevelSamples) -> list[spectral_fit.Moments]:
            """Return the sums of each fold; all are padded to one size, for one compilation."""
            padded_size = max(map(len, data.folds))
            inputs = data.samples.network_input
            targets = data.samples.targets
            fold_sums = []
            for fold in data.folds:
                # np.resize repeats the fold; the mask gives repeated rows the weight zero.
                rows = np.resize(fold, padded_size)
                mask = jnp.asarray(np.arange(padded_size) < len(fold), self.whitening_matrix.dtype)
                fold_sums.append(
                    spectral_fit.moments(
                        options.kernel_of,
                        kernel_scale,
                        self.landmarks,
                        self.whitening_matrix,
                        inputs[rows],
                        targets[rows],
                        mask,
                    )
                )
            return fold_sums

        self.folds = sum_folds(fit_samples)
        self.validation_folds = self.folds
        if validation_samples is not fit_samples:
            self.validation_folds = sum_folds(validation_samples)
        self.all = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *self.folds)

    @cached_property
    def paths(self) -> list[spectral_fit.Path]:
        """The fits to all but one fold, one for each fold that is left out; none for one fold."""
        if len(self.folds) == 1:
            return []
        return [
            # All sums are additive: leaving a fold out is a subtraction.
            spectral_fit.path(spectral_fit.Moments(*map(jnp.subtract, self.all, fold)))
            for fold in self.folds
        ]

    def errors(self, taus: Float[Array, " g"]) -> Float[Array, " g"]:
        """Return the mean squared held-out error for stopping times, each fold in turn."""
        fold_errors = [
            # Errors are means over a fold: weighted by its size, they add up.
            fold.count * spectral_fit.held_out_errors(path, fold, taus, self.filter)
            for path, fold in zip(self.paths, self.validation_folds, strict=True)
        ]
        total_count = sum(fold.count for fold in self.validation_folds)
        return jnp.sum(jnp.stack(fold_errors), axis=0) / total_count

    def best_stopping(self) -> tuple[float, float]:
        """Return the stopping time of the least held-out error, and that error."""
        # One grid for all folds, whose eigenvalues differ little.
        taus = spectral_fit.stopping_grid(self.paths[0])
        errors = self.errors(taus)
        best_index = int(jnp.argmin(errors))
        return float(taus[best_index]), float(errors[best_index])

    def error_at(self, tau: float) -> float:
        """Return the held-out error at one stopping time; +inf if nothing is left out."""
        if not self.paths:
            return math.inf
        return float(self.errors(jnp.asarray([tau], self.whitening_matrix.dtype))[0])
