"""The loop of :func:`softntk.solvers.minimise` on the device, one ``lax.while_loop``.

:mod:`softntk.solvers._minimise.host_chunks` runs it in chunks, :func:`run_as_one_loop` at once.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from softntk._core.bound_loss import BoundLoss
from softntk._core.closures import without_derivatives
from softntk._core.meshes import vary_like
from softntk._core.trees import select
from softntk._core.visible_constants import with_visible_constants
from softntk._linalg.norms import tree_norm
from softntk.regression import Problem
from softntk.solution import Result, Solution
from softntk.solvers._diagnostics import Step, find_diagnostics
from softntk.solvers._minimise import stopping_rules, units
from softntk.solvers._minimise.default_transform import default_transform
from softntk.solvers._minimise.loop_state import (
    RUNNING,
    Carry,
    History,
    Loss,
    Options,
    Params,
    relative_rounding,
    value_and_gradient,
)
from softntk.solvers._minimise.plateaus import has_flattened
from softntk.solvers._minimise.recession import with_recession
from softntk.solvers._minimise.stopping_rules import Evaluation


def _chosen_transform(
    problem: Loss, tx: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    """Return the transform, or the default one of the problem."""
    return optax.with_extra_args_support(default_transform(problem) if tx is None else tx)


def start_at(
    problem: Loss, tx: optax.GradientTransformation | None, x0: Params, *, diagnosed: bool = True
) -> Carry:
    """Return the carry at x0.

    If loss or gradient are not finite there, its result is a refusal: with ``diagnosed`` the code
    that the problem's ``check`` gives, otherwise NONFINITE_INPUT.
    """
    # 1. The loss and the transform at x0.
    problem = with_visible_constants(problem, x0)
    value, grad = value_and_gradient(problem, x0)
    norm = tree_norm(grad)
    state = _chosen_transform(problem, tx).init(x0)

    # 2. The code of a run that is over before its first step.
    is_finite = jnp.isfinite(value) & jnp.isfinite(norm)
    zero_count = jnp.zeros((), jnp.int32)
    if diagnosed:
        refusal = refusal_code(problem, x0)
    else:
        refusal = jnp.asarray(Result.NONFINITE_INPUT, jnp.int32)

    # 3. The start is the best point so far, and the scale of all norms.
    start = Carry(
        x=x0,
        value=value,
        grad=grad,
        state=state,
        best=x0,
        best_value=value,
        best_norm=norm,
        norm=norm,
        first_norm=norm,
        largest_norm=norm,
        smallest_norm=norm,
        stalled=zero_count,
        last_improved_loss=value,
        # A method with curvature has to take one step, because only that looks at the curvature.
        maybe_indefinite=jnp.asarray(find_diagnostics(state) is not None),
        doubts=zero_count,
        first_value=value,
        step_norm=jnp.zeros_like(norm),
        path_length=jnp.zeros_like(norm),
        count=zero_count,
        result=jnp.where(is_finite, RUNNING, refusal).astype(jnp.int32),
        needs_damping=jnp.asarray(False),
    )

    # 4. A Python number in the state has a weak type. The carry after a chunk has none, so that the
    # first chunk would need a program of its own.
    return jax.tree.map(_without_weak_type, start)


def _without_weak_type(leaf: Array) -> Array:
    """Return the array with a dtype that no other operand changes."""
    return lax.convert_element_type(leaf, jnp.result_type(leaf))


def refusal_code(problem: Loss, x0: Params) -> Int[Array, ""]:
    """Return the result code for a start where the loss or the gradient is not finite."""
    refusal = jnp.asarray(Result.NONFINITE_INPUT, jnp.int32)
    if not hasattr(problem, "check"):
        return refusal
    code = jnp.asarray(problem.check(x0)).astype(jnp.int32)
    return jnp.where(code == Result.SUCCESSFUL, refusal, code)


def _step(
    problem: Loss,
    tx: optax.GradientTransformationExtraArgs,
    options: Options,
    carry: Carry,
    postpones_damping: bool,
) -> tuple[Carry, History]:
    """Return the carry after a step of the transform, and the entry of the history."""
    # 1. The step, and the loss after it.
    # A plain function of one argument: line searches look at its signature.
    value_fn = problem if isinstance(problem, BoundLoss) else lambda x: problem(x)
    extra_args = {"postpones_damping": True} if postpones_damping else {}
    updates, state = tx.update(
        carry.grad,
        carry.state,
        carry.x,
        value=carry.value,
        grad=carry.grad,
        value_fn=value_fn,
        **extra_args,
    )
    x = optax.apply_updates(carry.x, updates)
    value, grad = value_and_gradient(problem, x)
    value = value.astype(carry.value.dtype)
    norm = tree_norm(grad)
    point = Evaluation(
        x=x,
        updates=updates,
        value=value,
        norm=norm,
        step_norm=tree_norm(updates).astype(norm.dtype),
        is_finite=jnp.isfinite(value) & jnp.isfinite(norm),
        diagnostics=find_diagnostics(state),
    )

    # 2. Whether the run is over.
    improvement = stopping_rules.measure_improvement(carry, point)
    verdict = stopping_rules.result_of_step(carry, options, point, improvement)

    # 3. The next carry; a point that is not finite leaves x where it was.
    next_carry = _next_carry(carry, point, grad, state, improvement, verdict)
    result = stopping_rules.result_of_short_step(next_carry, options)
    next_carry = next_carry._replace(result=result)
    entry = _history_entry(options, point, next_carry)

    # 4. A postponed step changes nothing in the carry but the note that the step needs damping.
    if postpones_damping and point.diagnostics is not None:
        is_postponed = point.diagnostics.kind == Step.POSTPONED
        with_note = carry._replace(needs_damping=jnp.ones_like(carry.needs_damping))
        next_carry = select(is_postponed, with_note, next_carry)
    return next_carry, entry


def _next_carry(
    carry: Carry,
    point: Evaluation,
    grad: Params,
    state: PyTree,
    improvement: stopping_rules.Improvement,
    verdict: stopping_rules.Verdict,
) -> Carry:
    """Return the carry at the point; if it is not finite, x, loss and gradient stay as before."""
    value = point.value
    norm = point.norm
    # 1. Is it the best point? Between losses that differ by rounding the smaller gradient decides.
    rounding = stopping_rules.loss_rounding(carry, value)
    is_equal = jnp.abs(value - carry.best_value) <= rounding
    is_better = jnp.where(is_equal, norm < carry.best_norm, value < carry.best_value)
    is_best = point.is_finite & is_better

    # 2. Does its gradient give a scale? A loss above that of the start is an overshoot, whose
    # gradient says nothing about those on the way down.
    has_scale = point.is_finite & (value <= carry.first_value)
    best_loss = jnp.minimum(value, carry.last_improved_loss)
    step_norm = point.step_norm

    # 3. The records. The transform's state and the count advance even if the point is refused.
    return Carry(
        x=select(point.is_finite, point.x, carry.x),
        value=jnp.where(point.is_finite, value, carry.value),
        grad=select(point.is_finite, grad, carry.grad),
        state=state,
        best=select(is_best, point.x, carry.best),
        best_value=jnp.where(is_best, value, carry.best_value),
        best_norm=jnp.where(is_best, norm, carry.best_norm),
        norm=jnp.where(point.is_finite, norm, carry.norm),
        first_norm=carry.first_norm,
        largest_norm=jnp.where(
            has_scale, jnp.maximum(norm, carry.largest_norm), carry.largest_norm
        ),
        smallest_norm=jnp.where(
            point.is_finite & improvement.smaller_norm, norm, carry.smallest_norm
        ),
        stalled=improvement.stalled.astype(jnp.int32),
        last_improved_loss=jnp.where(improvement.improved, best_loss, carry.last_improved_loss),
        maybe_indefinite=verdict.maybe_indefinite,
        doubts=verdict.doubts,
        first_value=carry.first_value,
        step_norm=step_norm,
        path_length=carry.path_length + jnp.where(jnp.isfinite(step_norm), step_norm, 0),
        count=carry.count + 1,
        result=verdict.result.astype(jnp.int32),
        needs_damping=carry.needs_damping,
    )


def _history_entry(options: Options, point: Evaluation, next_carry: Carry) -> History:
    """Return what is recorded of a step."""
    diagnostics = point.diagnostics
    zero = jnp.zeros_like(point.value)
    return History(
        loss=next_carry.value,
        gradient_norm=next_carry.norm,
        step_norm=point.step_norm.astype(point.value.dtype),
        damping=zero if diagnostics is None else diagnostics.damping,
        distortion=zero if diagnostics is None else diagnostics.model_error,
        path=next_carry.x if options.path else None,
    )


def advance(
    problem: Loss,
    tx: optax.GradientTransformation | None,
    options: Options,
    carry: Carry,
    limit: Array | np.ndarray | int,
    capacity: int,
    *,
    postpones_damping: bool = False,
) -> tuple[Carry, History]:
    """Run steps until the run is over, has ``limit`` steps in all, or has made ``capacity`` now.

    With ``postpones_damping``, which is for the default transform of a problem, the program leaves
    out damped steps. A call that needs one ends before it, and says so by ``needs_damping``.

    Returns:
        The carry, and the history of the steps of this call, with ``capacity`` places.
    """
    # 1. A history with a place for each step of this call, in the dtypes of one step's entry.
    transform = _chosen_transform(problem, tx)
    problem = with_visible_constants(problem, carry.x)
    first_count = carry.count

    def take_step(carry: Carry) -> tuple[Carry, History]:
        return _step(problem, transform, options, carry, postpones_damping)

    _, entry = jax.eval_shape(take_step, carry)
    history = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), entry)

    # 2. The steps.
    def is_unfinished(loop: tuple[Carry, History]) -> Bool[Array, ""]:
        carry, _ = loop
        is_running = (carry.result == RUNNING) & ~stopping_rules.has_converged(carry, options)
        if postpones_damping:
            is_running &= ~carry.needs_damping
        return is_running & (carry.count < limit) & (carry.count < first_count + capacity)

    def step(loop: tuple[Carry, History]) -> tuple[Carry, History]:
        carry, history = loop
        next_carry, entry = take_step(carry)
        place = carry.count - first_count
        return next_carry, jax.tree.map(lambda h, leaf: h.at[place].set(leaf), history, entry)

    carry, history = lax.while_loop(is_unfinished, step, (carry, history))

    # 3. The loop ends at the tolerance without a code: that is success.
    is_converged = stopping_rules.has_converged(carry, options)
    code = jnp.where(is_converged, Result.SUCCESSFUL, RUNNING)
    result = jnp.where(carry.result == RUNNING, code, carry.result)
    return carry._replace(result=result.astype(jnp.int32)), history


def as_solution(start: Carry, carry: Carry, history: History) -> Solution:
    """Return the solution of a run, at its last point or at the best one.

    The value is the last point if the run succeeded and no earlier point is as good.
    """
    # On the host all numbers are known: NumPy decides, without a program for each decision.
    on_host = isinstance(history.loss, np.ndarray)
    numpy: ModuleType = np if on_host else jnp
    code, loss, norm = (numpy.asarray(part) for part in (carry.result, carry.value, carry.norm))
    result = numpy.where(code == RUNNING, Result.MAX_STEPS, code).astype(np.int32)

    # 1. The value. Between losses that differ by rounding the smaller gradient decides.
    max_loss = loss + (stopping_rules.LOSS_ROUNDINGS * relative_rounding(carry) * numpy.abs(loss))
    has_smaller_norm = numpy.asarray(carry.best_norm) <= norm
    best_is_as_good = has_smaller_norm & (numpy.asarray(carry.best_value) <= max_loss)
    use_last = (result == Result.SUCCESSFUL) & ~best_is_as_good
    if on_host:
        value = carry.x if use_last else carry.best
    else:
        value = select(use_last, carry.x, carry.best)

    # 2. The history, with the start in front of losses, gradients and points.
    def prepend(first: Array, later: Array | np.ndarray) -> Array | np.ndarray:
        return numpy.concatenate([numpy.asarray(first)[None], later])

    stats = {
        "steps": carry.count,
        "loss": prepend(start.value, history.loss),
        "gradient_norm": prepend(start.norm, history.gradient_norm),
        "step_norm": history.step_norm,
        "damping": history.damping,
        "distortion": history.distortion,
    }
    if history.path is not None:
        stats["path"] = jax.tree.map(prepend, start.x, history.path)
    return Solution(value=value, result=jnp.asarray(result), stats=stats, state=carry.state)


def run_as_one_loop(
    problem: Loss,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
    max_steps: int,
) -> Solution:
    """Return the solution of a run in one loop; use it under jit, vmap and other transformations.

    Places of the history after the last step repeat the last entry.
    """
    has_unit = tx is None and isinstance(problem, Problem)

    # 1. The whole run, in a unit of its own if the problem has one.
    def run(problem: Loss, x0: Params) -> tuple[Array | float, Carry, Carry, History]:
        unit = units.problem_unit(problem) if has_unit else 1.0
        problem, _, options_in_unit, x0 = units.to_unit(unit, problem, tx, options, x0)
        start = start_at(problem, tx, x0)
        carry, history = advance(problem, tx, options_in_unit, start, max_steps, max(max_steps, 1))
        if find_diagnostics(carry.state) is None:
            carry = _check_plateau(problem, options, start, carry)
        if hasattr(problem, "lacks_minimiser"):
            result = jnp.where(carry.result == RUNNING, Result.MAX_STEPS, carry.result)
            result = with_recession(problem, start.x, carry.x, result)
            carry = carry._replace(result=result)
        return unit, start, carry, history

    unit, start, carry, history = without_derivatives(run, problem, x0)

    # 2. A history of max_steps entries.
    last_index = jnp.maximum(carry.count - 1, 0)
    index = jnp.minimum(jnp.arange(max_steps, dtype=jnp.int32), last_index)
    history = jax.tree.map(lambda leaf: leaf[index], history)
    no_steps = carry.count == 0
    history = history._replace(
        loss=jnp.where(no_steps, start.value, history.loss),
        gradient_norm=jnp.where(no_steps, start.norm, history.gradient_norm),
    )
    solution = as_solution(start, carry, history)
    return units.from_unit(unit if has_unit else 1.0, solution)


def _check_plateau(problem: Loss, options: Options, start: Carry, carry: Carry) -> Carry:
    """Return the end of a run without curvature, with result PLATEAU where the loss is flat."""

    def is_flat() -> Bool[Array, ""]:
        def gradient(x: Params) -> Params:
            return value_and_gradient(problem, x)[1]

        return has_flattened(gradient, start.x, carry.x, carry.path_length)

    on_plateau = lax.cond(
        stopping_rules.needs_plateau_check(options, start, carry),
        is_flat,
        lambda: vary_like(jnp.asarray(False), carry.norm),
    )
    result = jnp.where(on_plateau, Result.PLATEAU, carry.result)
    return carry._replace(result=result.astype(jnp.int32))
