"""The loop of :mod:`softntk.solvers._minimise.device_loop` in chunks, with the host between them:
it shows, saves, and can be interrupted.
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softntk._core import checkpoint as checkpoints
from softntk._core.closures import compile_with_closure
from softntk._core.progress import Progress
from softntk.solution import Result, Solution
from softntk.solvers._diagnostics import find_diagnostics
from softntk.solvers._minimise.device_loop import (
    RUNNING,
    Carry,
    History,
    Options,
    advance,
    is_doubtful,
    refusal,
    solution_of,
    start_at,
)
from softntk.solvers._minimise.plateaus import has_flattened_on_host

Params = Any
Path = str | os.PathLike

_MAX_CHUNK_STEPS = 256
_CHUNK_SECONDS = 0.3  # that a chunk should take


def in_chunks(
    problem: Any,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
    max_steps: int,
    progress: bool,
    checkpoint: Path | None,
) -> Solution:
    """Return what the loop comes to, run a chunk at a time."""
    begin = compile_with_closure(
        "start", tx, problem, lambda problem, x0: start_at(problem, tx, x0, diagnosed=False), x0
    )
    start = begin(x0)
    if int(start.result) != RUNNING:
        start = start._replace(result=refusal(problem, x0))
    run = compile_with_closure(
        ("advance", options),
        tx,
        problem,
        lambda problem, carry, limit: advance(problem, tx, options, carry, limit, _MAX_CHUNK_STEPS),
        start,
        np.zeros((), np.int32),
    )
    carry, history, mark = start, _no_history(start, options), ""
    if checkpoint is not None:
        mark = checkpoints.fingerprint((start.x, start.value, start.grad, start.state))
        carry, history = _resumed(run, start, history, checkpoint, mark)
    bar, ask = Progress(progress, "minimising"), 1
    try:
        while int(carry.result) == RUNNING and int(carry.count) < max_steps:
            before = int(carry.count)
            limit = min(before + ask, max_steps)
            began = time.perf_counter()
            carry, entries = jax.block_until_ready(run(carry, np.asarray(limit, np.int32)))
            seconds = time.perf_counter() - began
            history = _with_entries(history, entries, int(carry.count) - before)
            if checkpoint is not None:
                checkpoints.save(checkpoint, (carry, history), mark)
            bar.show(_line(start, history))
            ask = _next_steps(ask, seconds)
        # no steps were asked for, or all were made before: only look
        if int(carry.result) == RUNNING:
            carry, _ = run(carry, carry.count)
    except KeyboardInterrupt:
        carry = carry._replace(result=jnp.asarray(Result.INTERRUPTED, jnp.int32))
    finally:
        bar.close()
    if find_diagnostics(carry.state) is None and bool(is_doubtful(options, start, carry)):
        gradient = lambda x: begin(x).grad
        if has_flattened_on_host(gradient, start.x, carry.x, float(carry.path_length)):
            carry = carry._replace(result=jnp.asarray(Result.PLATEAU, jnp.int32))
    return solution_of(start, carry, history)


def _no_history(start: Carry, options: Options) -> History:
    none = np.zeros(0, start.value.dtype)
    path = (
        jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), start.x)
        if options.path
        else None
    )
    return History(none, none, none, none, none, path)


def _with_entries(history: History, entries: History, count: int) -> History:
    """Return the history with the first ``count`` entries of a chunk behind it."""
    return jax.tree.map(
        lambda old, new: np.concatenate([old, np.asarray(new)[:count]]), history, entries
    )


def _resumed(
    run: Any, start: Carry, history: History, checkpoint: Path, mark: str
) -> tuple[Carry, History]:
    """Return where a checkpoint ends, or the start where there is no file.

    Raises:
        ValueError: the first step is another one than the file knows.
    """
    carry, history = checkpoints.load(checkpoint, (start, history), mark) or (start, history)
    history = jax.tree.map(np.asarray, history)
    if len(history.loss):
        _, first = run(start, np.ones((), np.int32))
        same = jax.tree.map(
            lambda old, new: np.array_equal(old[0], np.asarray(new)[0]), history, first
        )
        if not all(jax.tree.leaves(same)):
            raise ValueError(checkpoints.foreign(checkpoint))
    # Whether it is over is for the tolerances of now to say.
    if int(carry.result) in (Result.SUCCESSFUL, Result.MAX_STEPS, Result.INTERRUPTED):
        carry = carry._replace(result=jnp.asarray(RUNNING, jnp.int32))
    return carry, history


def _next_steps(steps: int, seconds: float) -> int:
    """Return how many steps to ask for, after so many took so long."""
    if seconds < _CHUNK_SECONDS / 2:
        return min(2 * steps, _MAX_CHUNK_STEPS)
    return max(steps // 2, 1) if seconds > 2 * _CHUNK_SECONDS else steps


def _line(start: Carry, history: History) -> str:
    if not len(history.loss):
        return ""
    norms = np.append(np.asarray(start.norm), history.gradient_norm).astype(np.float64)
    rate = norms[-1] / norms[-2] if norms[-2] > 0 else 0.0
    return (
        f"step {len(history.loss)}, loss {history.loss[-1]:.8g}, "
        f"gradient {norms[-1] / max(norms[0], 1e-300):.1e} of the first, "
        f"step {history.step_norm[-1]:.1e}, damping {history.damping[-1]:.1e}, rate {rate:.2g}"
    )
