r"""Score estimation by kernel regression with the neural tangent kernel of infinite width, stopped
early.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import networks
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
from softntk.diffusion._denoisers import noisy_samples, spectral_fit
from softntk.diffusion._denoisers.base import Denoiser, Frame, frame_of
from softntk.diffusion._distributions import Points
from softntk.diffusion._sde import VPSDE
from softntk.solution import Result
from softntk.theory import early_stopping_time, least_risk_time

_RULES = {"rademacher": partial(early_stopping_time, constant=1.0), "least_risk": least_risk_time}
STOPPING = ("holdout", *_RULES)
# noisy samples by default, if the data are fewer; and at least so many to judge by
_SAMPLES = 16384
_TRIAL_SAMPLES, _TRIAL_LANDMARKS = 4096, 512  # for the choice of σ
_EQUAL = 1 + 1e-3
_SIGMAS = {
    "softmax": (1.0, 2.0, 4.0, 8.0),
    "res_softmax": (1.0, 2.0, 4.0, 8.0),
    "exp": (0.5, 1.0, 2.0, 3.0),
    "relu": (1.0,),
}


@function_record
class KernelPredictor:
    """F at each knot: one kernel expansion over its landmarks; between knots, their interpolation.

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
        self, place: Float[Array, " r"], lifted: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return Σ_j max(1 − |u − j|, 0) k_j(z, Z_j) w_j; at a single time, of its two knots only."""
        at = lambda j: product(
            self.kernel_of(self.sigmas[j], lifted, self.landmarks[j]), self.weights[j]
        )
        knots = len(self.sigmas)
        if knots == 1:
            return at(0)
        if len(place) == 1:
            below = jnp.clip(place[0].astype(int), 0, knots - 2)
            share = place[0] - below.astype(place.dtype)
            return (1 - share) * at(below) + share * at(below + 1)

        def add(j: Array, total: Array) -> Array:
            return total + jnp.maximum(1 - jnp.abs(place - jnp.asarray(j, place.dtype)), 0)[
                :, None
            ] * at(j)

        return jax.lax.fori_loop(
            0, knots, add, jnp.zeros((len(lifted), self.weights.shape[2]), lifted.dtype)
        )


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
    filter: str = "flow",
    validation: float = 0.2,
    progress: bool = False,
) -> Denoiser:
    r"""Fit E[X_0 | X_t] by least squares in the space of a network's infinite-width tangent kernel,
    stopped early.

    At each of J noise levels the noisy samples (X_t, X_0) are regressed on M landmarks, in the
    coordinates of :mod:`softntk.diffusion._denoisers.base`: f = ℓ + c F, and F follows gradient
    flow on 1/(2N) Σ‖F(z_i) − y_i‖² for a time τ, or is ridge regression with ridge N/τ. The labels
    are noisy however many there are: F at τ = ∞ reproduces the noise.

    Args:
        key: of the noise, the landmarks and the split.
        sde: the noising process.
        x0: data, [n, d].
        family: of :func:`softntk.networks.two_layer`, whose kernel it is.
        sigma: σ of its weights: on the unit sphere the kernel looks as far as 1/σ. None: the best
            on held-out data, at each noise level, of 1, 2, 4, 8 (½, 1, 2, 3 for exp; relu does not
            depend on it).
        train_readout: the kernel of a network whose readout learns too.
        times: J noise levels, evenly in log-SNR, or the times themselves; in between F is
            interpolated.
        min_time: the first of them, if ``times`` is a number.
        draws: noisy samples of each data point and level; None: enough to make 16,384, at least
            one.
        landmarks: M, at most the number of samples.
        stopping: "holdout": the τ of the least error on data left out, in turns, then a fit of all.
            Noise can be drawn anew, so what is left out is judged by 16,384 noisy samples or more,
            however few ``draws`` are (in ten seeds of a ring of 1,024 points the error was up to
            1.21 times that of the best τ with one draw, 1.04 times with sixteen). "rademacher" and
            "least_risk": from the eigenvalues, the noise and the norm of the target alone, the
            latter two estimated by generalised cross-validation; they count data points, as the
            draws of one point share its label. The one is
            :func:`softntk.theory.early_stopping_time` with the constant 1, the fixed point of the
            local Rademacher complexity, the other :func:`softntk.theory.least_risk_time`. Or τ
            itself: learning rate × steps on the mean loss.
        filter: "flow" or "ridge".
        validation: the share of the data left out for "holdout" (and for σ), at most a half; every
            part of that size in turn.
        progress: show which level is fitted.

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. ``stats``, each [J]: "log_snr" of the knots, "time"
        τ, "sigma", "validation" (mean squared error on data left out, in units of c(t)²; +inf if
        none were), "noise" (standard deviation of the labels, in units of c(t)) and "norm" (of F in
        the kernel's space), both by generalised cross-validation.

    Raises:
        ValueError: x0 no finite matrix of at least two different rows, or too few to leave some
            out; unknown names; numbers that are not positive; times outside (0, T].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (500, 1)))
        >>> f = kernel_denoiser(jax.random.key(1), vp_sde(), x0, times=[0.1], landmarks=64, draws=1, sigma=2.0)
        >>> bool(jnp.max(jnp.abs(f(0.1, jnp.array([[-0.9], [0.9]])) - jnp.array([[-1.0], [1.0]]))) < 0.1)
        True

    Source: arXiv 2405.03251, the section on diffusion (score estimation by kernel regression with
    the NTK); Raskutti, Wainwright and Yu (2014), JMLR 15, 335-366, for the rule.
    """
    key = check_known("key", check_key("key", key))
    family = check_choice("family", family, _SIGMAS)
    if sigma is not None:
        sigma = check_known("sigma", check_number("sigma", sigma, above=0))
    train_readout = check_flag("train_readout", train_readout)
    landmarks = check_count("landmarks", landmarks)
    stopping = _check_stopping(stopping)
    filter = check_choice("filter", filter, spectral_fit.FILTERS)
    progress = check_flag("progress", progress)
    draws = None if draws is None else check_count("draws", draws)
    frame = frame_of(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    draws = max(1, _SAMPLES // len(x0)) if draws is None else draws
    of_split, of_landmarks = jax.random.split(key)
    leaves_out = stopping == "holdout" or (sigma is None and len(_SIGMAS[family]) > 1)
    parts = _folds(of_split, len(x0), validation if leaves_out else None)
    enough = max(draws, _SAMPLES // len(x0))
    plan = _Plan(TangentKernel(family, train_readout), landmarks, stopping, filter, len(x0))
    sigmas = _SIGMAS[family] if sigma is None else (sigma,)
    levels = _Levels(plan, sde, frame, x0, parts, sigmas, draws, enough)
    return _assembled(levels, levels.fits(key, of_landmarks, progress))


class _Plan(NamedTuple):
    """What is the same at every noise level."""

    kernel_of: Callable
    landmarks: int
    stopping: str | float
    filter: str
    data_points: int


class _Levels(NamedTuple):
    """All noise levels: the data, their folds, and how many draws of each are fitted and judged by."""

    plan: _Plan
    sde: VPSDE
    frame: Frame
    x0: Points
    parts: list[np.ndarray]
    sigmas: tuple[float, ...]
    draws: int
    enough: int

    def fits(self, key: PRNGKeyArray, of_landmarks: PRNGKeyArray, progress: bool) -> list["_Fit"]:
        """Return the fit of each level."""
        knots, fits = self.frame.knots, []
        shown = Progress(progress, "kernel denoiser")
        fresh = self.enough > self.draws and len(self.parts) > 1
        try:
            for j, log_snr in enumerate(knots):
                shown.show(f"noise level {j + 1} of {len(knots)}")
                noisy = partial(
                    _noisy, self.sde, self.frame, self.x0, self.sde.time(log_snr), self.parts
                )
                data = noisy(self.draws, noisy_samples.noise_key(key, j))
                judged = (
                    noisy(self.enough, noisy_samples.noise_key(key, len(knots) + j))
                    if fresh
                    else data
                )
                fits.append(
                    _fit(self.plan, jax.random.fold_in(of_landmarks, j), self.sigmas, data, judged)
                )
        finally:
            shown.close()
        return fits


def _assembled(levels: _Levels, fits: list["_Fit"]) -> Denoiser:
    """Return the fits of all levels as one denoiser."""
    predictor = KernelPredictor(
        landmarks=jnp.stack([fit.landmarks for fit in fits]),
        weights=jnp.stack([fit.weights for fit in fits]),
        sigmas=jnp.asarray([fit.stats["sigma"] for fit in fits], levels.x0.dtype),
        kernel_of=levels.plan.kernel_of,
    )
    stats = {name: np.array([fit.stats[name] for fit in fits]) for name in fits[0].stats}
    stats["log_snr"] = np.asarray(levels.frame.knots)
    return Denoiser(levels.sde, levels.frame, predictor, jnp.int32(Result.SUCCESSFUL), stats)


class _Data(NamedTuple):
    """Noisy samples of one noise level, and the rows of each fold: all draws of a data point are in
    the same one.
    """

    samples: noisy_samples.Samples
    folds: list[np.ndarray]

    def some(self, many: int) -> "_Data":
        """Return about so many of them, of each fold its share."""
        share = min(1.0, many / len(self.samples.targets))
        return self._replace(
            folds=[fold[: max(1, round(share * len(fold)))] for fold in self.folds]
        )


def _noisy(
    sde: VPSDE,
    frame: Frame,
    x0: Points,
    t: Array,
    parts: list[np.ndarray],
    draws: int,
    key: PRNGKeyArray,
) -> _Data:
    samples = noisy_samples.noised(key, sde, frame, jnp.tile(x0, (draws, 1)), t)
    return _Data(
        samples, [(part + len(x0) * np.arange(draws)[:, None]).T.ravel() for part in parts]
    )


class _Fit(NamedTuple):
    """One noise level."""

    landmarks: Array
    weights: Array
    stats: dict[str, float]


@static_record
class TangentKernel:
    """The tangent kernel of a family with σ as a number that may be traced: inputs take it instead
    of the weights.

    Attributes:
        family: of the network.
        train_readout: whether its readout learns too.
    """

    family: str
    train_readout: bool

    def __call__(self, sigma: Array, z1: Array, z2: Array | None = None) -> Array:
        """Return the kernel, [n1, n2]."""
        scaled = None if z2 is None else sigma * z2
        nngp, ntk = _infinite_width(self.family).kernel_fn(sigma * z1, scaled, ("nngp", "ntk"))
        return ntk / sigma**2 + nngp if self.train_readout else ntk / sigma**2


@cache
def _infinite_width(family: str) -> networks.Network:
    return networks.two_layer(family, width=2)


def _folds(key: PRNGKeyArray, n: int, validation: float | None) -> list[np.ndarray]:
    """Return the data points in parts of equal size, but for one; a single part if nothing is to be
    left out.
    """
    if validation is None:
        return [np.arange(n)]
    share = check_known("validation", check_number("validation", validation))
    many = round(1 / share) if 0 < share <= 0.5 else 0
    if not 2 <= many <= n:
        raise ValueError(
            f"validation must be a share of at most a half that holds at least one of the {n} rows of x0, got {validation!r}: "
            "fit more data, or give sigma and a stopping rule that leaves none out."
        )
    return np.array_split(np.asarray(jax.random.permutation(key, n)), many)


def _fit(
    plan: _Plan, key: PRNGKeyArray, sigmas: tuple[float, ...], data: _Data, judged: _Data
) -> _Fit:
    """Fit one noise level: fits of ``data``, chosen by their errors on the folds of ``judged`` left
    out.
    """
    order = np.asarray(jax.random.permutation(key, len(data.samples.targets)))
    sigma = sigmas[0]
    if len(sigmas) > 1:
        some = data.some(_TRIAL_SAMPLES)
        others = some if judged is data else judged
        trials = [
            _Sums(plan, each, some, others, order[: min(plan.landmarks, _TRIAL_LANDMARKS)])
            for each in sigmas
        ]
        least = np.array([trial.held_out()[1] for trial in trials])
        sigma = sigmas[int(np.argmax(least <= _EQUAL * least.min()))]  # of equals the smoothest
    sums = _Sums(plan, sigma, data, judged, order[: plan.landmarks])
    if not bool(jnp.isfinite(sums.all.gram).all() & (jnp.trace(sums.all.gram) > 0)):
        raise ValueError(
            f"sigma must give a kernel that {sums.all.gram.dtype} can hold, got {sigma:g}, of which entries over- or "
            "underflow. Take one nearer to 1, or float64."
        )
    found = spectral_fit.path(sums.all)
    noise, norm = spectral_fit.noise_and_norm(found, sums.all)
    if plan.stopping == "holdout":
        tau = sums.held_out()[0]
    elif plan.stopping in _RULES:
        eigenvalues = plan.data_points * np.asarray(found.eigenvalues, np.float64)
        tau = (
            plan.data_points
            * _RULES[plan.stopping](None, noise, norm=norm, eigenvalues=eigenvalues).time
        )
    else:
        tau = float(plan.stopping)
    weights = found.weights(jnp.asarray(tau, data.samples.targets.dtype), plan.filter)
    stats = {
        "time": tau,
        "sigma": sigma,
        "noise": noise,
        "norm": norm,
        "validation": sums.error_at(tau),
    }
    return _Fit(sums.landmarks, product(sums.root, weights), stats)


class _Sums:
    """Landmarks, and sums over the samples of each fold, of all, and over those to judge by."""

    def __init__(
        self, plan: _Plan, sigma: float, data: _Data, judged: _Data, landmarks: np.ndarray
    ) -> None:
        scale = jnp.asarray(sigma, data.samples.lifted.dtype)
        self.filter = plan.filter
        self.landmarks = data.samples.lifted[landmarks]
        self.root = spectral_fit.whitening(plan.kernel_of, scale, self.landmarks)

        def over(data: _Data) -> list[spectral_fit.Moments]:
            size = max(map(len, data.folds))  # of one size, so that the program is compiled once
            rows = [np.resize(fold, size) for fold in data.folds]
            there = [
                jnp.asarray(np.arange(size) < len(fold), self.root.dtype) for fold in data.folds
            ]
            z, y = data.samples.lifted, data.samples.targets
            sums = lambda rows, there: spectral_fit.moments(
                plan.kernel_of, scale, self.landmarks, self.root, z[rows], y[rows], there
            )
            return list(map(sums, rows, there))

        self.folds = over(data)
        self.judged = self.folds if judged is data else over(judged)
        self.all = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *self.folds)

    @cached_property
    def paths(self) -> list[spectral_fit.Path]:
        """Return the fits of all but one fold, for each fold."""
        if len(self.folds) == 1:
            return []
        return [
            spectral_fit.path(spectral_fit.Moments(*map(jnp.subtract, self.all, fold)))
            for fold in self.folds
        ]

    def errors(self, taus: Float[Array, " g"]) -> Float[Array, " g"]:
        """Return the mean squared error on what is left out, each fold in turn."""
        each = [
            other.count * spectral_fit.held_out_errors(path, other, taus, self.filter)
            for path, other in zip(self.paths, self.judged, strict=True)
        ]
        return jnp.sum(jnp.stack(each), axis=0) / sum(other.count for other in self.judged)

    def held_out(self) -> tuple[float, float]:
        """Return the stopping time of the least error on what is left out, and that error."""
        taus = spectral_fit.grid(self.paths[0])
        errors = self.errors(taus)
        best = int(jnp.argmin(errors))
        return float(taus[best]), float(errors[best])

    def error_at(self, tau: float) -> float:
        """Return the error on what is left out at one stopping time; +inf if nothing is."""
        return (
            float(self.errors(jnp.asarray([tau], self.root.dtype))[0]) if self.paths else math.inf
        )


def _check_stopping(stopping: Any) -> str | float:
    if not isinstance(stopping, str):
        return check_known("stopping", check_number("stopping", stopping, above=0))
    try:
        return check_choice("stopping", stopping, STOPPING)
    except ValueError as error:
        raise ValueError(f"{error} Or give the time itself.") from None
