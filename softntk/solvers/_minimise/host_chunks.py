"""The loop of ``minimise`` in chunks, between which the host shows, saves and can be stopped."""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softntk._core import checkpoint as checkpoints
from softntk._core import host_loop
from softntk._core.closures import compile_with_closure
from softntk.solution import Result, Solution
from softntk.solvers._diagnostics import find_diagnostics
from softntk.solvers._minimise.device_loop import (
    advance,
    as_solution,
    refusal_code,
    start_at,
)
from softntk.solvers._minimise.loop_state import (
    RUNNING,
    Carry,
    History,
    Loss,
    Options,
    Params,
)
from softntk.solvers._minimise.plateaus import has_flattened_on_host
from softntk.solvers._minimise.recession import with_recession
from softntk.solvers._minimise.stopping_rules import needs_plateau_check

FilePath = str | os.PathLike
# (carry, limit of steps in all) → the next carry and the history of the steps made
ChunkProgram = Callable[[Carry, np.ndarray | jax.Array], tuple[Carry, History]]

# Places of the history that a chunk fills, and so the largest number of its steps.
MAX_CHUNK_STEPS = 256
# Seconds that a chunk should take.
CHUNK_SECONDS = 0.3


class _HostState(NamedTuple):
    """State of the loop on the host.

    Attributes:
        carry: state of the loop on the device.
        history: history of all steps, in NumPy arrays.
        chunk_steps: number of steps of the next chunk.
    """

    carry: Carry
    history: History
    chunk_steps: int


def run_in_chunks(
    problem: Loss,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
    max_steps: int,
    progress: bool,
    checkpoint: FilePath | None,
) -> Solution:
    """Return the solution of the loop, run a chunk at a time."""
    # 1. The start.
    start_program = compile_with_closure(
        "start", tx, problem, lambda problem, x0: start_at(problem, tx, x0, diagnosed=False), x0
    )
    start = start_program(x0)
    if int(start.result) != RUNNING:
        start = start._replace(result=refusal_code(problem, x0))
    chunk_program = _chunk_program(problem, tx, options, start)

    # 2. The checkpoint, if there is one.
    carry = start
    history = _empty_history(start, options)
    checkpoint_file = None
    if checkpoint is not None:
        fingerprint = checkpoints.fingerprint((start.x, start.value, start.grad, start.state))
        # What a checkpoint holds: the carry and the history.
        checkpoint_file = host_loop.CheckpointFile(checkpoint, fingerprint, lambda state: state[:2])
        carry, history = _resume(chunk_program, start, history, checkpoint, fingerprint)

    # 3. The chunks.
    state, interrupted = host_loop.run(
        lambda state: _run_chunk(chunk_program, state, max_steps),
        _HostState(carry, history, 1),
        until=lambda state: _is_over(state.carry, max_steps),
        progress=host_loop.ProgressLine(
            progress, "minimising", lambda state: _progress_text(start, state.history)
        ),
        checkpoint=checkpoint_file,
    )
    carry = state.carry
    if interrupted:
        carry = carry._replace(result=jnp.asarray(Result.INTERRUPTED, jnp.int32))
    elif int(carry.result) == RUNNING:
        # A call without steps tests the tolerance: if none were allowed, or if a checkpoint had all
        # of them, nothing has tested it yet.
        carry, _ = chunk_program(carry, carry.count)

    # 4. Without curvature, a small gradient may be that of a plateau.
    if find_diagnostics(carry.state) is None and needs_plateau_check(
        options, _on_host(start), _on_host(carry)
    ):

        def gradient(x: Params) -> Params:
            return start_program(x).grad

        if has_flattened_on_host(gradient, start.x, carry.x, float(carry.path_length)):
            carry = carry._replace(result=jnp.asarray(Result.PLATEAU, jnp.int32))

    # 5. A minimiser may be at infinity, where the gradient becomes small as well.
    if hasattr(problem, "lacks_minimiser"):
        last_result = Result.MAX_STEPS if int(carry.result) == RUNNING else carry.result
        result = with_recession(problem, start.x, carry.x, jnp.asarray(last_result, jnp.int32))
        carry = carry._replace(result=result)
    return as_solution(start, carry, state.history)


def _chunk_program(
    problem: Loss, tx: optax.GradientTransformation | None, options: Options, start: Carry
) -> ChunkProgram:
    """Return the program of a chunk.

    Most regressions need little more than Newton's steps. So a run begins with a program without
    damped steps, which is compiled in half the time. At the first step that needs damping the
    complete program takes over for the rest of the run. Which program takes a step therefore
    depends on the steps before it, not on the chunks.
    """

    def compile_chunk(*, postpones_damping: bool) -> ChunkProgram:
        return compile_with_closure(
            ("advance", options, postpones_damping),
            tx,
            problem,
            lambda problem, carry, limit: advance(
                problem,
                tx,
                options,
                carry,
                limit,
                MAX_CHUNK_STEPS,
                postpones_damping=postpones_damping,
            ),
            start,
            np.zeros((), np.int32),
        )

    if tx is not None or find_diagnostics(start.state) is None:
        return compile_chunk(postpones_damping=False)

    def run_chunk(carry: Carry, limit: np.ndarray | jax.Array) -> tuple[Carry, History]:
        if not carry.needs_damping:
            next_carry, history = compile_chunk(postpones_damping=True)(carry, limit)
            if not next_carry.needs_damping or int(next_carry.count) > int(carry.count):
                return next_carry, history
            carry = next_carry
        return compile_chunk(postpones_damping=False)(carry, limit)

    return run_chunk


def _on_host(carry: Carry) -> Carry:
    """Return a carry whose loss, count and result are numbers of NumPy."""
    return carry._replace(
        value=np.asarray(carry.value),
        count=np.asarray(carry.count),
        result=np.asarray(carry.result),
    )


def _is_over(carry: Carry, max_steps: int) -> bool:
    """Return whether a run has a result, or has made all its steps."""
    return int(carry.result) != RUNNING or int(carry.count) >= max_steps


def _run_chunk(program: ChunkProgram, state: _HostState, max_steps: int) -> _HostState:
    """Return the state after one chunk."""
    # block_until_ready: the clock is to measure the steps, not their dispatch.
    first_count = int(state.carry.count)
    limit = min(first_count + state.chunk_steps, max_steps)
    start_time = time.perf_counter()
    carry, entries = jax.block_until_ready(program(state.carry, np.asarray(limit, np.int32)))
    seconds = time.perf_counter() - start_time
    history = _append_entries(state.history, entries, int(carry.count) - first_count)
    return _HostState(carry, history, _next_chunk_steps(state.chunk_steps, seconds))


def _empty_history(start: Carry, options: Options) -> History:
    """Return a history of no steps, on the host."""
    empty = np.zeros(0, start.value.dtype)
    path = None
    if options.path:
        path = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), start.x)
    return History(empty, empty, empty, empty, empty, path)


def _append_entries(history: History, entries: History, count: int) -> History:
    """Return the history with the first ``count`` entries of a chunk appended."""
    return jax.tree.map(
        lambda old, new: np.concatenate([old, np.asarray(new)[:count]]), history, entries
    )


def _resume(
    program: ChunkProgram, start: Carry, history: History, checkpoint: FilePath, fingerprint: str
) -> tuple[Carry, History]:
    """Return carry and history of a checkpoint, or of the start where there is no file.

    Raises:
        ValueError: the first step is not the one that the file records.
    """
    loaded = checkpoints.load(checkpoint, (start, history), fingerprint)
    carry, history = loaded or (start, history)
    history = jax.tree.map(np.asarray, history)
    if len(history.loss):
        _, first_entries = program(start, np.ones((), np.int32))
        is_same = jax.tree.map(
            lambda old, new: np.array_equal(old[0], np.asarray(new)[0]), history, first_entries
        )
        if not all(jax.tree.leaves(is_same)):
            raise ValueError(checkpoints.foreign_run_message(checkpoint))
    # Tolerances and max_steps may have changed: whether the run is over is tested anew.
    if int(carry.result) in (Result.SUCCESSFUL, Result.MAX_STEPS, Result.INTERRUPTED):
        carry = carry._replace(result=jnp.asarray(RUNNING, jnp.int32))
    return carry, history


def _next_chunk_steps(steps: int, seconds: float) -> int:
    """Return the number of steps of the next chunk, after ``steps`` steps took ``seconds``."""
    # A factor of four lies between the two levels, so that noise of the clock changes nothing.
    if seconds < CHUNK_SECONDS / 2:
        return min(2 * steps, MAX_CHUNK_STEPS)
    return max(steps // 2, 1) if seconds > 2 * CHUNK_SECONDS else steps


def _progress_text(start: Carry, history: History) -> str:
    """Return the line that shows the last step of a run."""
    if not len(history.loss):
        return ""
    # In float64, because norms in half precision would overflow in the quotients.
    norms = np.append(np.asarray(start.norm), history.gradient_norm).astype(np.float64)
    rate = norms[-1] / norms[-2] if norms[-2] > 0 else 0.0
    return (
        f"step {len(history.loss)}, loss {history.loss[-1]:.8g}, "
        f"gradient {norms[-1] / max(norms[0], 1e-300):.1e} of the first, "
        f"step {history.step_norm[-1]:.1e}, damping {history.damping[-1]:.1e}, rate {rate:.2g}"
    )
