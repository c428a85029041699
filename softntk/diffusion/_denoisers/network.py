r"""Score estimation by gradient descent on a two-layer network."""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import networks
from softntk._core import checkpoint as checkpoints
from softntk._core.progress import Progress
from softntk._core.records import function_record, record, static
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
from softntk.diffusion._denoisers import noisy_samples
from softntk.diffusion._denoisers.base import Denoiser, Frame, frame_of
from softntk.diffusion._distributions import Points
from softntk.diffusion._sde import VPSDE, WEIGHTINGS
from softntk.networks import Network, Parameters
from softntk.solution import NumericalError, Result

FAMILIES = ("softmax", "res_softmax", "exp", "relu")

LEVELS = (1.0, 2.4)  # mean and deviation of the log-SNR: Karras et al. (2022), table 1

# of the vector of weights of a unit that is normalized: its features are as sharp in every
# dimension
_WEIGHT_NORM = 7.0
_TIMES = 16  # in a minibatch
_RATE = 0.1  # of Adam, at its largest
_OF_READOUT = 0.1  # the share of it for the readout, which moves all outputs at once
# norm of a gradient: a unit that takes all of a softmax makes a loss a thousand times as large for
# some steps
_LARGEST = 1.0
_WARM_UP = 20  # the share of the steps, one in so many, over which they rise
_CHUNK = 100  # steps between two looks from the host
_HOPELESS = 10.0  # times the loss of the linear denoiser: it diverges


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
        self, place: Float[Array, " r"], lifted: Float[Array, "n p"]
    ) -> Float[Array, "n k"]:
        """Return F: at a single time the weights of its knots are added up first, the network is
        then one of d + 1 inputs.
        """
        knots = len(self.params.hidden) // lifted.shape[1]
        if len(place) > 1:
            return self.net.apply_fn(self.params, noisy_samples.embedded(place, lifted, knots))
        return self.net.apply_fn(at_time(self.params, place, knots), lifted)


def at_time(params: Parameters, place: Float[Array, " 1"], knots: int) -> Parameters:
    """Return the weights of the network of z alone, at a single time: Σ_j ψ_j of those of each
    knot.
    """
    blocks = params.hidden.reshape(knots, -1, params.hidden.shape[1])
    hidden = jnp.einsum(
        "j,jpm->pm", noisy_samples.bumps(place, knots)[0], blocks, precision="highest"
    )
    return Parameters(hidden=hidden, readout=params.readout)


@record
class FullBatch:
    """The noisy samples that full-batch training sees: ``draws`` of each data point, all at once,
    the same at each step.
    """

    inputs: Float[Array, "N Jp"]
    targets: Float[Array, "N d"]
    weights: Float[Array, " N"]


class _Carry(NamedTuple):
    """Between two steps."""

    params: Any
    average: Any
    state: Any
    step: Any


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

    In the coordinates of :mod:`softntk.diffusion._denoisers.base`, f = ℓ + c F, F an antisymmetric
    network (zero at the start: f is then the best linear denoiser) that minimises

        ½ E w(t) ‖F(u(t), z(t, X_t)) − (X_0 − ℓ(t, X_t))/c(t)‖²,

    over fresh noise and times at every step, or over one fixed set of noisy samples
    (``batch_size=None``), as theory has it.

    Args:
        key: of weights, noise, times and batches.
        sde: the noising process.
        x0: data, [n, d]. Columns of very different scales should be standardised: a network's
            errors are of one size in all coordinates, and drown a column of small deviation.
        family: of :func:`softntk.networks.two_layer`.
        width: m, even.
        sigma: σ of the initial weights; None: 7/√(d + 1) for softmax and res_softmax, whose
            features are then as sharp in every dimension (a vector of weights has norm 7); 1 for
            exp and relu.
        train_readout: train the readout too. The paper trains the hidden weights only.
        times: number of knots of the time embedding, evenly in log-SNR, or their times. With one
            time t = that time always.
        min_time: the least time, if ``times`` is a number.
        steps: of the optimiser.
        batch_size: noisy samples a step; None for all of them: ``draws`` of each data point, drawn
            once.
        draws: see there.
        tx: any optax transform, on the loss above (a mean over the batch). None: Adam, of gradients
            clipped to norm 1, with steps of up to 0.1 for the hidden weights and 0.01 for the
            readout, which rise for a twentieth of the steps and fall to zero as a cosine.
        ema: decay of the average of the weights over the steps, which is what the denoiser uses; 0
            for the last weights. It starts with short memory, min(ema, (1 + step)/(10 + step)).
        weighting: None: w = 1, all noise levels count alike, measured by what the linear denoiser
            leaves. Or a kind of :meth:`softntk.diffusion.VPSDE.weight` for the loss on X_0 itself,
            w = weight(t) c(t)².
        levels: mean and standard deviation of the log-SNR of the data in training, log(α²/h ·
            Σλ²/Σλ) for a covariance of eigenvalues λ: the noise levels that count. Ignored with a
            single time.
        progress: show step and loss (rich).
        checkpoint: a file, written after each hundred steps by an atomic rename. If it is there the
            fit goes on from it, and ends with the same bits. A file of another fit is told by its
            data, key and first step; of ``tx`` what that step does not show, as a schedule that
            differs later, must be the same.
        throw: raise if the fit diverges, instead of warning and returning the last good weights.

    Returns:
        A :class:`~softntk.diffusion.Denoiser`. ``stats``: "loss" [steps done], "steps". ``result``:
        ``DIVERGED`` where the loss was no longer finite, or ten times that of the linear denoiser:
            the weights are those of
        the last hundred steps before. Ctrl-C returns what there is with ``INTERRUPTED``.

    Raises:
        ValueError: x0 no finite matrix of at least two different rows; unknown names; numbers that
            are not positive; times outside (0, T]; a checkpoint of another fit or a damaged one.
        NumericalError: under ``throw``, when the fit diverged.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> x0 = jnp.sign(jax.random.normal(jax.random.key(0), (256, 1)))
        >>> f = fit_denoiser(jax.random.key(1), vp_sde(), x0, width=32, steps=300, times=[0.1])
        >>> bool(jnp.max(jnp.abs(f(0.1, jnp.array([[-0.9], [0.9]])) - jnp.array([[-1.0], [1.0]]))) < 0.2)
        True

    Source: arXiv 2405.03251, the section on diffusion; Vincent (2011), Neural Computation 23,
    1661-1674 (denoising score matching); Karras et al. (2022), arXiv 2206.00364 (preconditioning
    and the distribution of noise levels).
    """
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
    frame = frame_of(sde, x0, times, min_time)
    x0 = as_rows("x0", x0)
    net, params = starting_network(key, frame, family, width, sigma, train_readout)
    tx = _adam(steps) if tx is None else tx
    of_batches = jax.random.fold_in(key, 1)
    if batch_size is None:
        data = full_batch(key, sde, frame, x0, draws, weighting, levels)
        loss = lambda params, data, _: mean_loss(net, params, data)
    else:
        data = x0
        loss = lambda params, data, key: _minibatch_loss(
            net, params, key, sde, frame, data, batch_size, weighting, levels
        )
    run = _Run(loss, optax.with_extra_args_support(tx), ema, of_batches)
    params, losses, result = _in_chunks(run, data, params, steps, progress, checkpoint)
    stats = {"loss": losses, "steps": len(losses)}
    if result is Result.DIVERGED:
        if throw:
            raise NumericalError(f"{result.name}: {result.advice}")
        message = f"fit_denoiser stopped after {len(losses)} of {steps} steps. {result.advice}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return Denoiser(sde, frame, NetworkPredictor(params, net), jnp.int32(result), stats)


def _check_levels(levels: Any) -> tuple[float, float]:
    if isinstance(levels, str) or not hasattr(levels, "__len__") or len(levels) != 2:
        raise ValueError(f"levels must be a pair, mean and standard deviation, got {levels!r}.")
    mean, deviation = levels
    return (
        check_known("levels", check_number("the mean in levels", mean)),
        check_known("levels", check_number("the deviation in levels", deviation, above=0)),
    )


def _check_ema(ema: Any) -> float:
    number = check_known("ema", check_number("ema", ema))
    if not 0 <= number < 1:
        raise ValueError(
            f"ema must lie in [0, 1), got {ema!r}. 0 is for the last weights themselves."
        )
    return number


def _check_optimiser(tx: Any) -> Any:
    if tx is not None and not (
        callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    ):
        raise ValueError(f"tx must be an optax transform, e.g. optax.adam(1e-2), got {tx!r}.")
    return tx


def starting_network(
    key: PRNGKeyArray,
    frame: Frame,
    family: str,
    width: int,
    sigma: float | None,
    train_readout: bool,
) -> tuple[Network, Parameters]:
    """Return the antisymmetric network of the frame and its first weights, in the precision of the
    data.

    Raises:
        ValueError: an unknown family, a width that is not even, σ not positive.
    """
    family = check_choice("family", family, FAMILIES)
    width = check_count("width", width)
    train_readout = check_flag("train_readout", train_readout)
    d, knots = len(frame.mean), len(frame.knots)
    if sigma is None:
        sigma = _WEIGHT_NORM / math.sqrt(d + 1) if family in ("softmax", "res_softmax") else 1.0
    deviation = check_known("sigma", check_number("sigma", sigma, above=0))
    net = networks.two_layer(
        family, width=width, out_dim=d, sigma=deviation, train_readout=train_readout
    )
    _, params = net.init_fn(jax.random.fold_in(key, 0), (-1, knots * (d + 1)))
    return net, jax.tree.map(lambda leaf: leaf.astype(frame.mean.dtype), params)


def _adam(steps: int) -> optax.GradientTransformation:
    rising = min(max(steps // _WARM_UP, 1), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, _RATE, rising, steps)

    def slower(updates: Any, _: Any) -> Any:
        return dataclasses.replace(updates, readout=_OF_READOUT * updates.readout)

    return optax.chain(
        optax.clip_by_global_norm(_LARGEST), optax.adam(schedule), optax.stateless(slower)
    )


def full_batch(
    key: PRNGKeyArray,
    sde: VPSDE,
    frame: Frame,
    x0: Float[Array, "n d"],
    draws: int,
    weighting: str | None = None,
    levels: tuple[float, float] = LEVELS,
) -> FullBatch:
    """Return the samples that full-batch training sees for this key, so that other estimators can
    be given the same.
    """
    points = jnp.tile(x0, (draws, 1))
    t = noisy_samples.draw_times(jax.random.fold_in(key, 3), sde, frame, len(points), levels)
    return _examples(noisy_samples.noise_key(key, 0), sde, frame, points, t, weighting)


def mean_loss(net: Network, params: Parameters, batch: FullBatch) -> Float[Array, ""]:
    """Return ½ mean w ‖F − y‖²."""
    errors = net.apply_fn(params, batch.inputs) - batch.targets
    return 0.5 * jnp.mean(batch.weights * jnp.sum(errors**2, axis=1))


def _minibatch_loss(
    net: Network,
    params: Parameters,
    key: PRNGKeyArray,
    sde: VPSDE,
    frame: Frame,
    x0: Float[Array, "n d"],
    size: int,
    weighting: str | None,
    levels: tuple[float, float],
) -> Float[Array, ""]:
    """Return the loss on fresh samples at a few times, one a stratum: at a single time the network
    has d + 1 inputs only.
    """
    of_rows, of_times, of_noise = jax.random.split(key, 3)
    groups = next(g for g in range(min(_TIMES, size), 0, -1) if size % g == 0)
    t = noisy_samples.draw_times(of_times, sde, frame, groups, levels, stratified=True)
    points = x0[jax.random.randint(of_rows, (groups, size // groups), 0, len(x0))]

    def one(t: Array, key: PRNGKeyArray, points: Array) -> Array:
        samples = noisy_samples.noised(key, sde, frame, points, t)
        errors = NetworkPredictor(params, net)(samples.place, samples.lifted) - samples.targets
        return 0.5 * jnp.mean(_weights(sde, t, samples, weighting) * jnp.sum(errors**2, axis=1))

    return jnp.mean(
        jax.vmap(one)(jnp.broadcast_to(t, groups), jax.random.split(of_noise, groups), points)
    )


def _weights(
    sde: VPSDE, t: Array, samples: noisy_samples.Samples, weighting: str | None
) -> Float[Array, " N"]:
    scale = samples.scale[:, 0]
    return jnp.ones_like(scale) if weighting is None else sde.weight(t, weighting) * scale**2


def _examples(
    key: PRNGKeyArray,
    sde: VPSDE,
    frame: Frame,
    points: Float[Array, "N d"],
    t: Array,
    weighting: str | None,
) -> FullBatch:
    samples = noisy_samples.noised(key, sde, frame, points, t)
    weights = _weights(sde, t, samples, weighting)
    inputs = noisy_samples.embedded(samples.place, samples.lifted, len(frame.knots))
    return FullBatch(inputs=inputs, targets=samples.targets, weights=weights)


class _Run(NamedTuple):
    """What a step needs to know besides the data."""

    loss: Callable
    tx: optax.GradientTransformationExtraArgs
    ema: float
    key: PRNGKeyArray

    def start(self, params: Any) -> _Carry:
        return _Carry(params, params, self.tx.init(params), jnp.zeros((), jnp.int32))

    def advance(self, data: Any, carry: _Carry, steps: int) -> tuple[_Carry, Float[Array, " s"]]:
        """Take some steps; return the loss before each."""

        def step(carry: _Carry, _: None) -> tuple[_Carry, Array]:
            key = jax.random.fold_in(self.key, carry.step)
            value_fn = lambda params: self.loss(params, data, key)
            value, grad = jax.value_and_grad(value_fn)(carry.params)
            updates, state = self.tx.update(
                grad, carry.state, carry.params, value=value, grad=grad, value_fn=value_fn
            )
            params = optax.apply_updates(carry.params, updates)
            done = carry.step.astype(value.dtype)
            decay = (
                jnp.minimum(self.ema, (1 + done) / (10 + done))
                if self.ema > 0
                else jnp.zeros_like(done)
            )
            average = jax.tree.map(
                lambda old, new: decay * old + (1 - decay) * new, carry.average, params
            )
            return _Carry(params, average, state, carry.step + 1), value

        return lax.scan(step, carry, None, length=steps)


def _in_chunks(
    run: _Run,
    data: Any,
    params: Parameters,
    steps: int,
    progress: bool,
    checkpoint: str | os.PathLike | None,
) -> tuple[Parameters, np.ndarray, Result]:
    """Return the averaged weights, the loss before each step, and how it ended."""
    advance = jax.jit(run.advance, static_argnums=2)
    carry = run.start(params)
    losses = np.zeros(steps, np.asarray(jax.tree.leaves(params)[0]).dtype)
    kept, mark = None, ""
    # all that the fit depends on shows in what its first step does, to the last bit
    if checkpoint is not None:
        mark = checkpoints.fingerprint(
            (data, carry, advance(data, carry, 1), run.key, np.asarray([steps, run.ema]))
        )
        kept = checkpoints.load(checkpoint, (carry, jnp.asarray(losses)), mark)
    if kept is not None:
        carry, losses = kept[0], np.array(kept[1])
    hopeless = _HOPELESS * float(jax.jit(run.loss)(params, data, run.key))
    shown, done = Progress(progress, "fit"), int(carry.step)
    try:
        while done < steps:
            some = min(_CHUNK, steps - done)
            following, values = advance(data, carry, some)
            values = np.asarray(values)
            average = float(values.mean())
            finite = np.isfinite(average) and all(
                bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(following.params)
            )
            if not finite or average > hopeless:
                return carry.average, losses[:done], Result.DIVERGED
            carry, losses[done : done + some] = following, values
            done += some
            shown.show(f"step {done} of {steps}, loss {average:.4g}")
            if checkpoint is not None:
                checkpoints.save(checkpoint, (carry, jnp.asarray(losses)), mark)
    except KeyboardInterrupt:
        return carry.average, losses[:done], Result.INTERRUPTED
    finally:
        shown.close()
    return carry.average, losses, Result.SUCCESSFUL
