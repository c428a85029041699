"""The training loop of a network denoiser: optimiser, averaged weights, checkpoints."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core import checkpoint as checkpoints
from softntk._core import host_loop
from softntk._core.shared_programs import share_program
from softntk.networks import Parameters
from softntk.solution import Result

LEARNING_RATE = 0.1
"""Adam's largest step size."""

READOUT_RATE_FACTOR = 0.1
"""Factor on the steps of the readout, which changes all outputs at once."""

MAX_GRADIENT_NORM = 1.0
"""Norm to which gradients are clipped. Without it, a single unit that takes all of a softmax makes
the loss a thousand times as large for some steps."""

WARM_UP_DIVISOR = 20
"""The step size rises during the first steps // WARM_UP_DIVISOR steps of a fit."""

CHUNK_STEPS = 100
"""Number of steps after which the host shows progress, saves, and looks for divergence."""

DIVERGENCE_RATIO = 10.0
"""The fit has diverged where the loss exceeds that of the linear denoiser by this factor."""


class TrainingState(NamedTuple):
    """The state of the training between two steps.

    Attributes:
        params: weights.
        average: averaged weights, which the denoiser uses.
        state: the state of the optimiser.
        step: number of steps done.
    """

    params: Any
    average: Any
    state: Any
    step: Any


# (state, number of steps) → (state, losses)
ChunkProgram = Callable[[TrainingState, int], tuple[TrainingState, np.ndarray]]

_Loop = tuple[TrainingState, Array]


def default_optimiser(steps: int) -> optax.GradientTransformation:
    """Return Adam with clipped gradients, a warm-up and a cosine decay, slower for the readout."""
    warm_up_steps = min(max(steps // WARM_UP_DIVISOR, 1), steps - 1)
    # The step size rises linearly, then falls to zero as a cosine. The rise ends before the fit.
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warm_up_steps, steps)

    # Applied after Adam: a factor on the gradient would have no effect there.
    def slow_readout(updates: Any, _: Any) -> Any:
        return dataclasses.replace(updates, readout=READOUT_RATE_FACTOR * updates.readout)

    return optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM),
        optax.adam(schedule),
        optax.stateless(slow_readout),
    )


class Training(NamedTuple):
    """All that a training step needs besides the data.

    Attributes:
        loss: ``(params, data, key) -> scalar``.
        tx: the optimiser.
        ema: decay of the averaged weights.
        key: randomness of the minibatches.
    """

    loss: Callable
    tx: optax.GradientTransformationExtraArgs
    ema: float
    key: PRNGKeyArray

    def start(self, params: Any) -> TrainingState:
        """Return the state before the first step."""
        return TrainingState(params, params, self.tx.init(params), jnp.zeros((), jnp.int32))

    def advance(
        self, data: Any, carry: TrainingState, count: Int[Array, ""]
    ) -> tuple[TrainingState, Float[Array, " chunk"]]:
        """Take at most ``CHUNK_STEPS`` steps; return the new state and the loss before each step.

        The number of steps is an argument of the program: a shorter last chunk compiles nothing.
        """
        dtype = jax.tree.leaves(carry.params)[0].dtype

        def step(index: Int[Array, ""], loop: _Loop) -> _Loop:
            carry, losses = loop
            next_carry, value = self._step(data, carry)
            return next_carry, losses.at[index].set(value.astype(dtype))

        return lax.fori_loop(0, count, step, (carry, jnp.zeros(CHUNK_STEPS, dtype)))

    def _step(self, data: Any, carry: TrainingState) -> tuple[TrainingState, Float[Array, ""]]:
        """Return the state after one step, and the loss before it."""
        # 1. Update the weights; each step has its own key.
        key = jax.random.fold_in(self.key, carry.step)

        def value_fn(params: Any) -> Array:
            return self.loss(params, data, key)

        value, grad = jax.value_and_grad(value_fn)(carry.params)
        updates, state = self.tx.update(
            grad, carry.state, carry.params, value=value, grad=grad, value_fn=value_fn
        )
        params = optax.apply_updates(carry.params, updates)
        # 2. Update their average, with a short memory at the start.
        step_count = carry.step.astype(value.dtype)
        decay = jnp.zeros_like(step_count)
        if self.ema > 0:
            decay = jnp.minimum(self.ema, (1 + step_count) / (10 + step_count))
        # An exponential moving average: it varies less than the weights.
        average = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, carry.average, params
        )
        return TrainingState(params, average, state, carry.step + 1), value


class _Fit(NamedTuple):
    """The state of a fit on the host, between two chunks.

    Attributes:
        carry: the state of the training after the last chunk that did not diverge.
        losses: the loss before each step; zero for steps that are not done, [steps].
        step_count: number of steps done.
        has_diverged: whether the chunk after these steps diverged.
    """

    carry: TrainingState
    losses: np.ndarray
    step_count: int
    has_diverged: bool


def train_in_chunks(
    training: Training,
    data: Any,
    params: Parameters,
    steps: int,
    progress: bool,
    checkpoint: str | os.PathLike | None,
) -> tuple[Parameters, np.ndarray, Result]:
    """Return the averaged weights, the loss before each step, and the result code."""
    # 1. The program of a chunk. Fits with equal settings share it, whatever data and key they have.
    carry = training.start(params)
    advance, constants = share_program(training.advance, (data, carry, jnp.int32(0)))

    def run_chunk(carry: TrainingState, count: int) -> tuple[TrainingState, np.ndarray]:
        next_carry, losses = advance(constants, data, carry, jnp.int32(count))
        return jax.block_until_ready(next_carry), np.asarray(losses)[:count]

    # 2. Resume. The first step of a fit, to the last bit, identifies it.
    fit = _Fit(carry, np.zeros(steps, np.asarray(jax.tree.leaves(params)[0]).dtype), 0, False)
    checkpoint_file = None
    if checkpoint is not None:
        # The data alone do not tell two optimisers apart: one step of the fit does.
        mark = checkpoints.fingerprint(
            (data, carry, run_chunk(carry, 1), training.key, np.asarray([steps, training.ema]))
        )
        checkpoint_file = host_loop.CheckpointFile(checkpoint, mark, _saved_part)
        saved_state = checkpoints.load(checkpoint, _saved_part(fit), mark)
        if saved_state is not None:
            carry, losses = saved_state
            fit = _Fit(carry, np.array(losses), int(carry.step), False)

    # 3. Train in chunks; stop at Ctrl-C, or at a chunk that diverges, which is dropped.
    fit, interrupted = host_loop.run(
        lambda fit: _next_fit(run_chunk, fit),
        fit,
        until=lambda fit: fit.has_diverged or fit.step_count >= steps,
        progress=host_loop.ProgressLine(progress, "fit", _progress_text),
        checkpoint=checkpoint_file,
    )
    result = Result.DIVERGED if fit.has_diverged else Result.SUCCESSFUL
    if interrupted:
        result = Result.INTERRUPTED
    return fit.carry.average, fit.losses[: fit.step_count], result


def _next_fit(run_chunk: ChunkProgram, fit: _Fit) -> _Fit:
    """Return the fit after a chunk, or the fit as it was where the chunk diverges."""
    end = min(fit.step_count + CHUNK_STEPS, len(fit.losses))
    carry, chunk_losses = run_chunk(fit.carry, end - fit.step_count)
    # The network is zero at the start, so that the first loss is that of the linear denoiser.
    initial_loss = fit.losses[0] if fit.step_count else chunk_losses[0]
    max_loss = DIVERGENCE_RATIO * float(initial_loss)
    if _has_diverged(float(chunk_losses.mean()), max_loss, carry.params):
        return fit._replace(has_diverged=True)
    losses = np.concatenate([fit.losses[: fit.step_count], chunk_losses, fit.losses[end:]])
    return _Fit(carry, losses, end, False)


def _saved_part(fit: _Fit) -> tuple[TrainingState, Array]:
    """Return what a checkpoint holds of a fit."""
    return fit.carry, jnp.asarray(fit.losses)


def _progress_text(fit: _Fit) -> str:
    """Return the line that shows the last chunk of a fit."""
    first = max(fit.step_count - CHUNK_STEPS, 0)
    mean_loss = fit.losses[first : fit.step_count].mean() if fit.step_count else np.nan
    return f"step {fit.step_count} of {len(fit.losses)}, loss {mean_loss:.4g}"


def _has_diverged(mean_loss: float, max_loss: float, params: Any) -> bool:
    """Return whether a loss is too large, or loss or weights are not finite."""
    if not np.isfinite(mean_loss) or mean_loss > max_loss:
        return True
    return not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))
