"""The host's part of a solve: conjugate gradients, restarted on the true residual.

Conjugate gradients run on the device in the precision of the kernel. The value and the true
residual Y − (K + ridge I) V are kept on the host in the precision of Y, which may be higher. Each
run starts at the true residual, and its result is a correction that is added to V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk._core import host_loop
from softntk._linalg.norms import host_norm
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.conjugate_gradients import (
    INDEFINITE_RESIDUAL,
    CgState,
    Inverse,
    advance,
    multiply,
    start,
)
from softntk.solution import Result

CHUNK_STEPS = 10
"""Number of steps between two looks from the host."""


class System(NamedTuple):
    """The system (K + ridge I) V = Y, and when it is solved.

    Attributes:
        op: K, in the precision of the steps.
        true_op: K, in the precision of the true residual.
        inverse: the preconditioner, or None.
        y: Y, [size, r], in the precision of the true residual.
        y_norms: norms of its columns, one for zero, [r].
        ridge: added to the diagonal of K.
        device_ridge: ``ridge`` in the precision of the steps.
        rtol: relative residual to reach.
        max_steps: largest number of steps.
    """

    op: GramOperator
    true_op: GramOperator
    inverse: Inverse
    y: np.ndarray
    y_norms: np.ndarray
    ridge: float
    device_ridge: Array
    rtol: float
    max_steps: int


class SolveState(NamedTuple):
    """State of a solve between two chunks of steps.

    Attributes:
        value: V, [size, r].
        residual: its true residual, [size, r].
        best: the value with the smallest true residual so far, [size, r].
        best_error: relative residual of ``best``, the largest over the columns.
        history: the true relative residual at each restart.
        steps: number of steps.
        run: conjugate gradients on the residual, in columns of norm one; None between two runs.
        run_error: the relative residual that the run updates, the largest over the columns.
        result: why the solve ended, or None.
    """

    value: np.ndarray
    residual: np.ndarray
    best: np.ndarray
    best_error: float
    history: tuple[float, ...]
    steps: int
    run: CgState | None
    run_error: float
    result: Result | None


def make_system(
    op: GramOperator,
    inverse: Inverse,
    y: np.ndarray,
    ridge: float,
    device_ridge: Array,
    rtol: float,
    max_steps: int,
) -> System:
    """Return the system, with Y in the precision of the true residual."""
    with jax.enable_x64(y.dtype == np.float64):
        true_op = op if op.dtype == y.dtype else op.astype(y.dtype)
    return System(
        op=op,
        true_op=true_op,
        inverse=inverse,
        y=y,
        y_norms=nonzero_norms(y),
        ridge=ridge,
        device_ridge=device_ridge,
        rtol=rtol,
        max_steps=max_steps,
    )


def solve_with_restarts(system: System, progress: bool) -> tuple[SolveState, Result]:
    """Return the state at the end of a solve, and why it ended.

    After Ctrl-C the state includes the correction of the run that was interrupted.
    """
    zeros = np.zeros_like(system.y)
    initial = SolveState(
        value=zeros,
        residual=system.y,
        best=zeros,
        best_error=1.0,
        history=(),
        steps=0,
        run=None,
        run_error=1.0,
        result=None,
    )
    state, interrupted = host_loop.run(
        lambda state: _advance(system, state),
        initial,
        until=lambda state: state.result is not None,
        progress=host_loop.ProgressLine(
            progress,
            "solving",
            lambda state: f"step {state.steps}, relative residual {state.run_error:.1e}",
        ),
    )
    if interrupted:
        if state.run is not None:
            state, _ = _add_correction(system, state, state.run)
        return state, Result.INTERRUPTED
    assert state.result is not None
    return state, state.result


def _advance(system: System, state: SolveState) -> SolveState:
    """Return the state after a few steps; at the end of a run with its correction added."""
    # 1. Start a run at the true residual, its columns divided by their norms. It asks for half of
    # rtol, so that the drift of its residual may take the other half.
    dtype = system.op.dtype
    unit = nonzero_norms(state.residual)
    run = state.run
    if run is None:
        run = start(jnp.asarray(state.residual / unit, dtype), system.inverse)
    min_goal = 10 * float(jnp.finfo(dtype).eps)
    goals = np.clip(0.5 * system.rtol * system.y_norms / unit, min_goal, 1)

    # 2. A few steps on the device.
    requested_steps = min(CHUNK_STEPS, system.max_steps - state.steps)
    run = advance(
        system.op,
        system.device_ridge,
        system.inverse,
        run,
        jnp.asarray(goals[None], dtype),
        requested_steps,
    )
    completed_steps = int(run.step)
    # The counter of a run counts the steps of one chunk.
    run = run._replace(step=np.zeros((), run.step.dtype))
    run_norms = host_norm(np.asarray(run.residual), axis=0)
    state = state._replace(
        run=run,
        steps=state.steps + completed_steps,
        run_error=float(np.max(run_norms * unit / system.y_norms)),
    )

    # 3. Fewer steps than requested: every column is below its goal, stuck, or no longer finite. The
    # run is over, and its correction is added.
    if completed_steps == requested_steps and state.steps < system.max_steps:
        return state
    next_state, error = _add_correction(system, state, run)
    result = _result_of_run(system, state, next_state, error, is_stuck=bool(np.any(run.is_stuck)))
    return next_state._replace(history=(*state.history, error), result=result)


def _add_correction(system: System, state: SolveState, run: CgState) -> tuple[SolveState, float]:
    """Return the state with a run's correction added, and its largest true relative residual."""
    unit = nonzero_norms(state.residual)
    with np.errstate(invalid="ignore", over="ignore"):
        # On the host in the precision of y; only the product with K runs on the device.
        value = state.value + np.asarray(run.x, system.y.dtype) * unit
        with jax.enable_x64(system.y.dtype == np.float64):
            image = np.asarray(multiply(system.true_op, jnp.asarray(value)))
        residual = system.y - image - system.ridge * value
        error = float(np.max(host_norm(residual, axis=0) / system.y_norms))
    is_best = error < state.best_error
    next_state = state._replace(
        value=value,
        residual=residual,
        best=value if is_best else state.best,
        best_error=error if is_best else state.best_error,
        run=None,
    )
    return next_state, error


def _result_of_run(
    system: System, before: SolveState, after: SolveState, error: float, *, is_stuck: bool
) -> Result | None:
    """Return why the solve ends after a run, or None if another run is to follow."""
    if after.best_error <= system.rtol:
        return Result.SUCCESSFUL
    if not np.isfinite(error):
        return Result.NONFINITE_PRODUCT
    if after.steps >= system.max_steps:
        return Result.MAX_STEPS
    # A run must halve the residual to go on: less is rounding.
    if error < 0.5 * before.best_error:
        return None
    is_indefinite = is_stuck and after.best_error > INDEFINITE_RESIDUAL
    return Result.NOT_DEFINITE if is_indefinite else Result.STAGNATED


def nonzero_norms(columns: np.ndarray) -> np.ndarray:
    """Return the norms of the columns, one where the norm is zero."""
    norms = host_norm(columns, axis=0)
    return np.where(norms > 0, norms, 1)
