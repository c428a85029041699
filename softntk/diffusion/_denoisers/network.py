r"""Score estimation by gradient descent on a two-layer network."""

import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import networks
from softntk._core.records import function_record, record, static
from softntk._core.shared_programs import evaluate_shared
from softntk._core.validation import (
    as_rows,
    check_choice,
    check_count,
    check_flag,
    check_key,
    check_number,
    check_positive_int,
)
from softntk.diffusion._arguments import check_known
from softntk.diffusion._denoisers import network_training, noisy_samples
from softntk.diffusion._denoisers.base import Denoiser
from softntk.diffusion._denoisers.coordinates import Coordinates, fit_coordinates
from softntk.diffusion._noising_process import VPSDE, WEIGHTINGS
from softntk.diffusion._types import Points
from softntk.networks import Network, Parameters
from softntk.solution import NumericalError, Result

LEVELS = (1.0, 2.4)
"""Mean and deviation of the log-SNR of the data: Karras et al. (2022), table 1."""

WEIGHT_NORM = 7.0
"""Norm of a normalised unit's weight vector, so that features are as sharp in every dimension."""

MINIBATCH_TIMES = 16
"""Largest number of different times in a minibatch."""


@function_record
class NetworkPredictor:
    """F(u, z), a two-layer network of the outer product of ψ(u) and z.

    Attributes:
        params: hidden [J·(d + 1), m], readout [m, d].
        net: the network.
    """

    params: Parameters
    net: Network = static()

    def __call__(
        self, noise_coordinate: Float[Array, " r"], network_input: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return F, [n, k].

        At a single time the weights of the noise levels are added up first: that network has only
        d + 1 inputs.
        """
        # The network's input is J copies of z, weighted by ψ.
        level_count = len(self.params.hidden) // network_input.shape[1]
        if len(noise_coordinate) > 1:
            inputs = noisy_samples.embed(noise_coordinate, network_input, level_count)
            return self.net.apply_fn(self.params, inputs)
        return self.net.apply_fn(at_time(self.params, noise_coordinate, level_count), network_input)


def at_time(
    params: Parameters, noise_coordinate: Float[Array, " 1"], level_count: int
) -> Parameters:
    """Return the weights Σ_j ψ_j W_j of the network of z alone, at a single time."""
    # ⟨W, ψ ⊗ z⟩ = ⟨Σ_j ψ_j W_j, z⟩, with W_j the rows of W that belong to noise level j.
    blocks = params.hidden.reshape(level_count, -1, params.hidden.shape[1])
    psi = noisy_samples.time_embedding(noise_coordinate, level_count)[0]
    hidden = jnp.einsum("j,jpm->pm", psi, blocks, precision="highest")
    return Parameters(hidden=hidden, readout=params.readout)


@record
class FullBatch:
    """The noisy samples of full-batch training, the same at each step.

    Attributes:
        inputs: inputs of the network, [N, J(d + 1)].
        targets: targets of the regression, [N, d].
        weights: weights of the samples in the loss, [N].
    """

    inputs: Float[Array, "N Jp"]
    targets: Float[Array, "N d"]
    weights: Float[Array, " N"]


def fit_denoiser(
    key: PRNGKeyArray,
    sde: VPSDE,
    x0: Points,
    *,
    family: str = "softmax",
    width: int = 512,
    sigma: float | None = None,
    train_readout: bool = True,
    times: int | Sequence[float] = 8,
    min_time: float = 1e-3,
    steps: int = 16000,
    batch_size: int | None = 512,
    draws: int = 1,
    tx: optax.GradientTransformation | None = None,
    ema: float = 0.998,
    weighting: str | None = None,
    levels: tuple[float, float] = LEVELS,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    throw: bool = False,
) -> Denoiser:
    r"""Fit E[X_0 | X_t] by training a two-layer network on noisy samples: denoising score matching.

    Use it for more data than a kernel can be fitted to, or where features should be learnt. In the
    coordinates of :mod:`softntk.diffusion._denoisers.coordinates` f = ℓ + c F. F is an
    antisymmetric network, which is zero at the start, so that f is then the best linear denoiser. F
    minimises

        ½ E w(t) ‖F(u(t), z(t, X_t)) − (X_0 − ℓ(t, X_t))/c(t)‖²,

    over fresh noise and times at every step, or, as in the theory, over one fixed set of noisy
    samples (``batch_size=None``). Fits with equal settings share their compiled programs, for any
    data and key.

    Args:
        key: randomness of weights, noise, times and batches.
        sde: the noising process.
        x0: data, [n, d]. Columns of very different scales should be standardised: a network's
            errors are of one size in all coordinates, which hides a column of small deviation.
        family: of the network, as for :func:`softntk.networks.two_layer`.
        width: m, even.
        sigma: σ of the initial weights; None: 7/√(d + 1) for normalized families (softmax), whose
            features are then as sharp in every dimension (a vector of weights has norm 7); 1 for
            the others.
        train_readout: train the readout too. The paper trains the hidden weights only.
        times: number of noise levels of the time embedding, evenly spaced in log-SNR, or their
            times. With a single time, t is always that time.
        min_time: the least time, if ``times`` is a number.
        steps: number of steps of the optimiser.
        batch_size: noisy samples in each step; None for all of them: ``draws`` of each data point,
            drawn once.
        draws: noisy samples of each data point where ``batch_size`` is None.
        tx: any optax transform, on the loss above (a mean over the batch). None: Adam, of gradients
            clipped to norm 1, with steps of up to 0.1 for the hidden weights and 0.01 for the
            readout, which rise for a twentieth of the steps and fall to zero as a cosine.
        ema: decay of the average of the weights over the steps, which is what the denoiser uses; 0
            for the last weights. It starts with short memory, min(ema, (1 + step)/(10 + step)).
        weighting: None: w = 1, so that all noise levels count alike, in units of the error that
            the linear denoiser leaves. Or a kind of :meth:`softntk.diffusion.VPSDE.weight` for the
            loss on X_0 itself, w = weight(t) c(t)².
        levels: mean and standard deviation of the log-SNR of the data, log(α²/h · Σλ²/Σλ) for a
            covariance of eigenvalues λ, over the times drawn in training: on which noise levels
            training concentrates. Ignored with a single time.
        progress: show step and loss (rich).
        checkpoint: a file, written after each hundred steps by an atomic rename. If it exists, the
            fit resumes from it, and ends with the same bits. A file of another fit is recognised by
            its data, key and first step, and refused. A difference in ``tx`` that the first step
            does not show, as in a later part of a schedule, is not recognised: keep ``tx`` the
            same.
        throw: raise if the fit diverges, instead of warning and returning the last good weights.

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. Its ``stats`` are "loss", of each step that was
        done, and "steps", their number. Its ``result`` is ``DIVERGED`` where the loss was no longer
        finite, or exceeded ten times that of the linear denoiser; the weights are then those before
        the hundred steps in which that happened. Ctrl-C returns the weights so far, with
        ``INTERRUPTED``.

    Raises:
        ValueError: x0 is not a finite matrix of at least two different rows; unknown names; numbers
            that are not positive; times outside (0, T]; a checkpoint of another fit, or a damaged
            one.
        NumericalError: under ``throw``, when the fit diverged.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (256, 1)))
        >>> f = fit_denoiser(jax.random.key(1), vp_sde(), x0, width=32, steps=300, times=[0.1])
        >>> error = f(0.1, jnp.array([[-0.9], [0.9]])) - jnp.array([[-1.0], [1.0]])
        >>> bool(jnp.max(jnp.abs(error)) < 0.2)
        True

    Source: arXiv 2405.03251, the section on diffusion; Vincent (2011), Neural Computation 23,
    1661-1674 (denoising score matching); Karras et al. (2022), arXiv 2206.00364 (preconditioning
    and the distribution of noise levels).
    """
    # 1. Check the arguments.
    key = check_known("key", check_key("key", key))
    weighting = None if weighting is None else check_choice("weighting", weighting, WEIGHTINGS)
    levels = _check_levels(levels)
    steps = check_count("steps", steps)
    draws = check_count("draws", draws)
    batch_size = None if batch_size is None else check_positive_int("batch_size", batch_size)
    ema = _check_ema(ema)
    tx = _check_optimiser(tx)
    progress = check_flag("progress", progress)
    throw = check_flag("throw", throw)
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint must be the path of a file, got {checkpoint!r}.")
    # 2. Compute the coordinates, and draw the first weights.
    coordinates = fit_coordinates(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    net, params = starting_network(key, coordinates, family, width, sigma, train_readout)
    # 3. Choose the loss, (params, data, key) -> scalar: over all samples, drawn once, or over fresh
    # samples at each step.
    if batch_size is None:
        data = full_batch(key, sde, coordinates, x0, draws, weighting, levels)
        loss = partial(_full_batch_loss, net)
    else:
        data = x0
        loss = partial(
            _minibatch_loss,
            net,
            sde=sde,
            coordinates=coordinates,
            size=batch_size,
            weighting=weighting,
            levels=levels,
        )
    # 4. Train. Minibatches have a key that no other draw of the fit uses.
    tx = network_training.default_optimiser(steps) if tx is None else tx
    training = network_training.Training(
        loss, optax.with_extra_args_support(tx), ema, jax.random.fold_in(key, 1)
    )
    params, losses, result = network_training.train_in_chunks(
        training, data, params, steps, progress, checkpoint
    )
    # 5. Report a fit that diverged.
    stats = {"loss": losses, "steps": len(losses)}
    if result is Result.DIVERGED:
        if throw:
            raise NumericalError(f"{result.name}: {result.advice}")
        message = f"fit_denoiser stopped after {len(losses)} of {steps} steps. {result.advice}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    predictor = NetworkPredictor(params, net)
    return Denoiser(sde, coordinates, predictor, jnp.int32(result), stats)


def _check_levels(levels: Any) -> tuple[float, float]:
    """Return mean and deviation of the log-SNR as numbers."""
    # A string has a length, but is no pair of numbers.
    if isinstance(levels, str) or not hasattr(levels, "__len__") or len(levels) != 2:
        raise ValueError(f"levels must be a pair, mean and standard deviation, got {levels!r}.")
    mean, deviation = levels
    return (
        check_known("levels", check_number("the mean in levels", mean)),
        check_known("levels", check_number("the deviation in levels", deviation, above=0)),
    )


def _check_ema(ema: object) -> float:
    """Return the decay of the averaged weights, in [0, 1)."""
    number = check_known("ema", check_number("ema", ema))
    if not 0 <= number < 1:
        raise ValueError(
            f"ema must lie in [0, 1), got {ema!r}. 0 is for the last weights themselves."
        )
    return number


def _check_optimiser(tx: Any) -> Any:
    """Return tx, checked to be an optax transform or None."""
    if tx is not None and not (
        callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    ):
        raise ValueError(f"tx must be an optax transform, e.g. optax.adam(1e-2), got {tx!r}.")
    return tx


def starting_network(
    key: PRNGKeyArray,
    coordinates: Coordinates,
    family: str,
    width: int,
    sigma: float | None,
    train_readout: bool,
) -> tuple[Network, Parameters]:
    """Return the antisymmetric network and its first weights, in the precision of the data.

    Raises:
        ValueError: an unknown family, a width that is not even, σ not positive.
    """
    family = check_choice("family", family, networks.FAMILIES)
    width = check_count("width", width)
    train_readout = check_flag("train_readout", train_readout)
    # 1. Choose σ by the dimension of z, which is d + 1.
    d = len(coordinates.mean)
    level_count = len(coordinates.noise_levels)
    if sigma is None:
        _, normalized = networks.FAMILIES[family]
        sigma = WEIGHT_NORM / math.sqrt(d + 1) if normalized else 1.0
    deviation = check_known("sigma", check_number("sigma", sigma, above=0))
    # 2. Draw the weights. The default of two_layer is antisymmetric, so that F = 0 at the start.
    net = networks.two_layer(
        family, width=width, out_dim=d, sigma=deviation, train_readout=train_readout
    )
    _, params = net.init_fn(jax.random.fold_in(key, 0), (-1, level_count * (d + 1)))
    return net, jax.tree.map(lambda leaf: leaf.astype(coordinates.mean.dtype), params)


def full_batch(
    key: PRNGKeyArray,
    sde: VPSDE,
    coordinates: Coordinates,
    x0: Float[Array, "n d"],
    draws: int,
    weighting: str | None = None,
    levels: tuple[float, float] = LEVELS,
) -> FullBatch:
    """Draw the samples of full-batch training for this key; other estimators use the same."""

    def draw_batch(key: PRNGKeyArray, coordinates: Coordinates, x0: Array) -> FullBatch:
        # Each draw of a data point has its own time and noise.
        points = jnp.tile(x0, (draws, 1))
        time_key = jax.random.fold_in(key, 3)
        t = noisy_samples.draw_times(time_key, sde, coordinates, len(points), levels)
        noise_key = noisy_samples.noise_key(key, 0)
        samples = noisy_samples.draw_samples(noise_key, sde, coordinates, points, t)
        # The network's inputs are embedded once.
        inputs = noisy_samples.embed(
            samples.noise_coordinate, samples.network_input, len(coordinates.noise_levels)
        )
        weights = _sample_weights(sde, t, samples, weighting)
        return FullBatch(inputs=inputs, targets=samples.targets, weights=weights)

    return evaluate_shared(draw_batch, key, coordinates, x0)


def mean_loss(net: Network, params: Parameters, batch: FullBatch) -> Float[Array, ""]:
    """Return ½ mean w ‖F − y‖²."""
    errors = net.apply_fn(params, batch.inputs) - batch.targets
    return 0.5 * jnp.mean(batch.weights * jnp.sum(errors**2, axis=1))


def _full_batch_loss(
    net: Network, params: Parameters, batch: FullBatch, _: PRNGKeyArray
) -> Float[Array, ""]:
    """Return the loss on samples that are the same at each step; no randomness is used."""
    return mean_loss(net, params, batch)


def _minibatch_loss(
    net: Network,
    params: Parameters,
    x0: Float[Array, "n d"],
    key: PRNGKeyArray,
    *,
    sde: VPSDE,
    coordinates: Coordinates,
    size: int,
    weighting: str | None,
    levels: tuple[float, float],
) -> Float[Array, ""]:
    """Return the loss on fresh samples at a few times, one in each stratum.

    The samples are grouped by time: at a single time the network has d + 1 inputs only.
    """
    # 1. Draw times, the largest number of them that divides the batch, and rows of the data.
    row_key, time_key, noise_key = jax.random.split(key, 3)
    group_count = next(g for g in range(min(MINIBATCH_TIMES, size), 0, -1) if size % g == 0)
    t = noisy_samples.draw_times(time_key, sde, coordinates, group_count, levels, stratified=True)
    group_shape = (group_count, size // group_count)
    points = x0[jax.random.randint(row_key, group_shape, 0, len(x0))]

    # 2. Add noise, and average the loss over the groups.
    def group_loss(t: Array, key: PRNGKeyArray, points: Array) -> Array:
        samples = noisy_samples.draw_samples(key, sde, coordinates, points, t)
        predictor = NetworkPredictor(params, net)
        errors = predictor(samples.noise_coordinate, samples.network_input) - samples.targets
        weights = _sample_weights(sde, t, samples, weighting)
        return 0.5 * jnp.mean(weights * jnp.sum(errors**2, axis=1))

    # With a single noise level draw_times returns a scalar: all groups are at that time.
    group_keys = jax.random.split(noise_key, group_count)
    return jnp.mean(jax.vmap(group_loss)(jnp.broadcast_to(t, group_count), group_keys, points))


def _sample_weights(
    sde: VPSDE, t: Array, samples: noisy_samples.Samples, weighting: str | None
) -> Float[Array, " N"]:
    """Return w of each sample: 1, or weight(t) c(t)²."""
    # The regression target is divided by c(t), so that its loss lacks a factor c².
    scale = samples.scale[:, 0]
    return jnp.ones_like(scale) if weighting is None else sde.weight(t, weighting) * scale**2
