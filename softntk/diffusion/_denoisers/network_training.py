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
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core import checkpoint as checkpoints
from softntk._core.progress import Progress
from softntk.networks import Parameters
from softntk.solution import Result

LEARNING_RATE = 0.1
"""Adam's largest step size."""

READOUT_RATE_FACTOR = 0.1
"""Factor on the steps of the readout, which changes all outputs at once."""

MAX_GRADIENT_NORM = 1.0
"""Norm to which gradients are clipped: one unit that takes all of a softmax makes the loss a
thousand times as large for some steps."""

WARM_UP_DIVISOR = 20
"""The step size rises for one step in so many."""

CHUNK_STEPS = 100
"""Number of steps between two looks from the host."""

DIVERGENCE_RATIO = 10.0
"""The fit has diverged where the loss exceeds that of the linear denoiser by this factor."""


class TrainingState(NamedTuple):
    """The state of the training between two steps.

    Attributes:
        params: weights.
        average: averaged weights, which the denoiser uses.
        state: of the optimiser.
        step: number of steps done.
    """

    params: Any
    average: Any
    state: Any
    step: Any


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
        self, data: Any, carry: TrainingState, steps: int
    ) -> tuple[TrainingState, Float[Array, " s"]]:
        """Take some steps; return the new state and the loss before each step."""

        def step(carry: TrainingState, _: None) -> tuple[TrainingState, Array]:
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

        return lax.scan(step, carry, None, length=steps)


def train_in_chunks(
    training: Training,
    data: Any,
    params: Parameters,
    steps: int,
    progress: bool,
    checkpoint: str | os.PathLike | None,
) -> tuple[Parameters, np.ndarray, Result]:
    """Return the averaged weights, the loss before each step, and the result code."""
    # The number of steps is static: all full chunks are one compiled program.
    advance = jax.jit(training.advance, static_argnums=2)
    carry = training.start(params)
    losses = np.zeros(steps, np.asarray(jax.tree.leaves(params)[0]).dtype)
    # 1. Resume. The first step of a fit, to the last bit, identifies it.
    saved_state = None
    fingerprint = ""
    if checkpoint is not None:
        # The data alone do not tell two optimisers apart: one step of the fit does.
        first_step = advance(data, carry, 1)
        fingerprint = checkpoints.fingerprint(
            (data, carry, first_step, training.key, np.asarray([steps, training.ema]))
        )
        saved_state = checkpoints.load(checkpoint, (carry, jnp.asarray(losses)), fingerprint)
    if saved_state is not None:
        carry = saved_state[0]
        losses = np.array(saved_state[1])
    # 2. Train in chunks; stop at Ctrl-C, or at a chunk that diverges, which is dropped.
    initial_loss = float(jax.jit(training.loss)(params, data, training.key))
    # The network is zero at the start, so that the first loss is that of the linear denoiser.
    max_loss = DIVERGENCE_RATIO * initial_loss
    progress_line = Progress(progress, "fit")
    step_count = int(carry.step)
    try:
        while step_count < steps:
            chunk_steps = min(CHUNK_STEPS, steps - step_count)
            next_carry, chunk_losses = advance(data, carry, chunk_steps)
            chunk_losses = np.asarray(chunk_losses)
            mean_loss = float(chunk_losses.mean())
            # The weights before this chunk are the last good ones.
            if _has_diverged(mean_loss, max_loss, next_carry.params):
                return carry.average, losses[:step_count], Result.DIVERGED
            carry = next_carry
            losses[step_count : step_count + chunk_steps] = chunk_losses
            step_count += chunk_steps
            progress_line.show(f"step {step_count} of {steps}, loss {mean_loss:.4g}")
            if checkpoint is not None:
                checkpoints.save(checkpoint, (carry, jnp.asarray(losses)), fingerprint)
    except KeyboardInterrupt:
        return carry.average, losses[:step_count], Result.INTERRUPTED
    finally:
        progress_line.close()
    return carry.average, losses, Result.SUCCESSFUL


def _has_diverged(mean_loss: float, max_loss: float, params: Any) -> bool:
    """Return whether a loss is too large, or loss or weights are not finite."""
    if not np.isfinite(mean_loss) or mean_loss > max_loss:
        return True
    return not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
