"""When a run of ``minimise`` is over: tolerances, stalled runs, negative curvature, plateaus.

The rules, in the order in which :func:`result_of_step` applies them:

1. A loss or gradient that is not finite: DIVERGED.
2. With curvature, what the transform reports: NO_STEP for a rejected step, its own result code if
   that is no success, SUCCESSFUL if it needs no step.
3. No progress for a number of steps: STAGNATED.
4. A small gradient is doubtful if there is negative curvature or a plateau. After five such steps,
   or where the run ends anyway, it is accepted as SUCCESSFUL, or refused as PLATEAU.
5. A step shorter than the tolerance of steps: SUCCESSFUL (:func:`result_of_short_step`).

The loop itself tests the tolerance of the gradient (:func:`has_converged`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from softntk._linalg.norms import tree_norm
from softntk.solution import Result
from softntk.solvers._diagnostics import Step, StepDiagnostics
from softntk.solvers._minimise.loop_state import (
    RUNNING,
    Carry,
    Options,
    Params,
    Scalar,
    relative_rounding,
)

# Steps without progress after which a method with curvature has stagnated.
PATIENCE_SECOND_ORDER = 20
# The same without curvature. Such methods oscillate, so any change of the loss counts as progress.
PATIENCE_FIRST_ORDER = 200
# A gradient makes progress if its norm is below this fraction of the smallest one so far.
MIN_NORM_DECREASE = 0.9
# Roundings by which losses have to differ to count as different.
LOSS_ROUNDINGS = 8
# Steps at a small but doubtful gradient after which it is accepted or refused.
MAX_DOUBTS = 5
# Towards a minimum a Newton step is shorter than this fraction of the last one, on a plateau not.
SHRINKING_STEP_RATIO = 0.9
# A damped step longer than this fraction of the path so far does not end in a minimum.
MAX_LAST_STEP_RATIO = 0.01
# Relative error of the decrease that Newton's model predicts, above which a step is doubtful.
MAX_PREDICTION_ERROR = 0.1


class Evaluation(NamedTuple):
    """The point after a step, before it is accepted.

    Attributes:
        x: the point.
        updates: the step.
        value: the loss.
        norm: norm of the gradient.
        step_norm: length of the step.
        is_finite: whether loss and gradient are.
        diagnostics: diagnostics of the transform, or None.
    """

    x: Params
    updates: Params
    value: Scalar
    norm: Scalar
    step_norm: Scalar
    is_finite: Bool[Array, ""]
    diagnostics: StepDiagnostics | None


class Improvement(NamedTuple):
    """How the last step compares with those before.

    Attributes:
        smaller_norm: whether the gradient is a new smallest one.
        improved: whether the loss or the gradient made progress.
        stalled: number of steps without progress.
    """

    smaller_norm: Bool[Array, ""]
    improved: Bool[Array, ""]
    stalled: Array


class Verdict(NamedTuple):
    """Whether a run is over after a step.

    Attributes:
        result: a result code, or RUNNING.
        maybe_indefinite: whether something speaks against a minimum.
        doubts: number of successive steps with a small but doubtful gradient.
    """

    result: Int[Array, ""]
    maybe_indefinite: Bool[Array, ""]
    doubts: Int[Array, ""]


def gradient_tolerance(carry: Carry, options: Options) -> Float[Array, ""]:
    """Return the norm of the gradient at which a run is over."""
    eps = jnp.finfo(carry.norm.dtype).eps
    # A start that was stationary already gives no scale: the largest gradient replaces it.
    has_scale = carry.first_norm > jnp.sqrt(eps) * carry.largest_norm
    reference_norm = jnp.where(has_scale, carry.first_norm, carry.largest_norm)
    return jnp.maximum(options.atol, options.rtol * reference_norm)


def has_converged(carry: Carry, options: Options) -> Bool[Array, ""]:
    """Return whether the gradient is small enough and nothing speaks against a minimum."""
    return (carry.norm <= gradient_tolerance(carry, options)) & ~carry.maybe_indefinite


def loss_rounding(carry: Carry, value: Scalar) -> Float[Array, ""]:
    """Return the difference from which on losses near ``value`` count as different."""
    return LOSS_ROUNDINGS * relative_rounding(carry) * jnp.abs(value)


def measure_improvement(carry: Carry, point: Evaluation) -> Improvement:
    """Return whether a step made progress, by its gradient or by its loss."""
    rounding = loss_rounding(carry, point.value)
    smaller_norm = point.norm < MIN_NORM_DECREASE * carry.smallest_norm
    # A method with curvature has to decrease the loss by more than its rounding. For others any
    # change of the loss counts, in either direction.
    if point.diagnostics is None:
        min_decrease = rounding
    else:
        min_decrease = relative_rounding(carry) ** 0.5 * jnp.abs(carry.last_improved_loss)
    improved = smaller_norm | (point.value < carry.last_improved_loss - min_decrease)
    if point.diagnostics is None:
        improved |= ~(jnp.abs(point.value - carry.value) <= rounding)
    return Improvement(smaller_norm, improved, jnp.where(improved, 0, carry.stalled + 1))


def result_of_step(
    carry: Carry, options: Options, point: Evaluation, improvement: Improvement
) -> Verdict:
    """Return whether the run is over after a step, by rules 1 to 4 of the module."""
    # Doubts about a small gradient, for rule 4.
    diagnostics = point.diagnostics
    is_small = point.norm <= gradient_tolerance(carry, options)
    on_plateau = jnp.asarray(False)
    maybe_indefinite = on_plateau
    if diagnostics is not None:
        on_plateau = _is_on_plateau(carry, options, point, diagnostics.kind)
        maybe_indefinite = diagnostics.negative_curvature | (on_plateau & is_small)
    has_fallen = point.value < carry.value - loss_rounding(carry, point.value)
    is_doubtful = point.is_finite & is_small & maybe_indefinite & (on_plateau | ~has_fallen)
    doubts = jnp.where(is_doubtful, carry.doubts + 1, 0).astype(jnp.int32)

    # Rule 1.
    result = jnp.where(point.is_finite, RUNNING, Result.DIVERGED)
    # Rule 2.
    patience = PATIENCE_FIRST_ORDER
    if diagnostics is not None:
        patience = PATIENCE_SECOND_ORDER
        result = jnp.where(diagnostics.kind == Step.REJECTED, Result.NO_STEP, result)
        has_failed = diagnostics.result != Result.SUCCESSFUL
        result = jnp.where(has_failed, diagnostics.result, result)
        needs_no_step = diagnostics.kind == Step.CONVERGED
        result = jnp.where((result == RUNNING) & needs_no_step, Result.SUCCESSFUL, result)
    # Rule 3.
    has_stalled = improvement.stalled >= patience
    result = jnp.where((result == RUNNING) & has_stalled, Result.STAGNATED, result)
    # Rule 4.
    result = _resolve_doubts(result, doubts, is_small, on_plateau)
    return Verdict(result, maybe_indefinite, doubts)


def result_of_short_step(carry: Carry, options: Options) -> Int[Array, ""]:
    """Return the result, SUCCESSFUL after a step that is short enough: rule 5 of the module."""
    if options.step_tol == 0:
        return carry.result
    max_length = options.step_tol * tree_norm(carry.x)
    is_short = (carry.step_norm <= max_length) & ~carry.maybe_indefinite
    is_over = (carry.result == RUNNING) & is_short
    return jnp.where(is_over, Result.SUCCESSFUL, carry.result).astype(jnp.int32)


def _is_on_plateau(
    carry: Carry, options: Options, point: Evaluation, kind: Int[Array, ""]
) -> Bool[Array, ""]:
    """Return whether a second-order step runs along a plateau instead of into a minimum.

    Towards a minimum steps shrink, however flat it is; where the loss flattens out exponentially,
    as a saturated softmax does, each step is as long as the last, though the gradient falls. A long
    step is also doubtful if the loss has not fallen as the model predicted. Where the loss itself
    has vanished, no smaller one exists.
    """
    # 1. Does the loss fall as predicted, by −½ ⟨g, s⟩?
    slopes = jax.tree.map(lambda g, s: jnp.sum(g * s.astype(g.dtype)), carry.grad, point.updates)
    slope = sum(part.astype(point.value.dtype) for part in jax.tree.leaves(slopes))
    predicted_decrease = -0.5 * slope
    prediction_error = jnp.abs(carry.value - point.value - predicted_decrease)
    is_predicted = prediction_error <= MAX_PREDICTION_ERROR * jnp.abs(predicted_decrease)

    # 2. Is the step long, for a step into a minimum?
    eps = jnp.finfo(point.step_norm.dtype).eps
    max_length = jnp.where(
        kind == Step.NEWTON,
        SHRINKING_STEP_RATIO * carry.step_norm,
        MAX_LAST_STEP_RATIO * carry.path_length,
    )
    max_length = jnp.maximum(max_length, jnp.sqrt(eps) * carry.path_length)
    has_vanished = jnp.abs(point.value) <= options.rtol * jnp.abs(carry.first_value)
    return (point.step_norm > max_length) & ~is_predicted & ~has_vanished


def _resolve_doubts(
    result: Int[Array, ""],
    doubts: Int[Array, ""],
    is_small: Bool[Array, ""],
    on_plateau: Bool[Array, ""],
) -> Int[Array, ""]:
    """Return the result after many doubts, or where a run ends at a small gradient.

    Negative curvature is taken for rounding if no step along it decreases the loss.
    """
    has_ended = (result == Result.NO_STEP) | (result == Result.STAGNATED)
    many_doubts = (result == RUNNING) & (doubts >= MAX_DOUBTS)
    resolved = jnp.where(on_plateau, Result.PLATEAU, Result.SUCCESSFUL)
    return jnp.where(is_small & (many_doubts | has_ended), resolved, result)


def needs_plateau_check(options: Options, start: Carry, carry: Carry) -> Bool[Array, ""] | np.bool_:
    """Return whether a run without curvature ended at a small gradient that may be a plateau's.

    The carries may hold numbers of NumPy; nothing is compiled then.
    """
    has_vanished = abs(carry.value) <= options.rtol * abs(start.value)
    return (carry.result == Result.SUCCESSFUL) & (carry.count > 0) & ~has_vanished
