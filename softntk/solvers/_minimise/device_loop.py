"""The loop under :func:`softntk.solvers.minimise`, one ``lax.while_loop``;
:mod:`softntk.solvers._minimise.host_chunks` runs it in chunks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array

from softntk._core.bound_loss import BoundLoss
from softntk._core.closures import without_derivatives
from softntk._core.meshes import vary_like
from softntk._linalg.norms import tree_norm
from softntk.regression import Problem
from softntk.solution import Result, Solution
from softntk.solvers._diagnostics import Step, find_diagnostics
from softntk.solvers._minimise import units
from softntk.solvers._minimise.default_transform import default_transform
from softntk.solvers._minimise.plateaus import has_flattened

Params = Any

# steps without a smaller gradient or a smaller loss (beyond rounding), after which Newton will do
# no more
_PATIENCE = 20
# the same for transforms without curvature, which may swing; only while the loss stands still
_LONGER = 200
# of the smallest gradient: what is not below that may be luck, at the floor of rounding
_PROGRESS = 0.9
_DOUBTS = 5  # steps at a small enough gradient after which what still speaks against it is judged
_FLAT = 0.9  # of the step before: steps towards a minimum shrink, on a plateau's slope they do not
_FAR = 0.01  # of the way so far: a damped step of that length is no last one
# by which the loss falls more or less than Newton's model says, before a step is doubted
_UNLIKE = 0.1
RUNNING = -1


class Options(NamedTuple):
    """When a run is over, and what it keeps."""

    rtol: float
    atol: float
    step_tol: float
    path: bool


class Carry(NamedTuple):
    """Between two steps; with the history, what a checkpoint holds."""

    x: Params
    value: Array
    grad: Params
    state: Any
    best: Params
    best_value: Array
    best_norm: Array  # of the gradient there
    norm: Array  # of the gradient
    first_norm: Array
    largest_norm: Array
    smallest_norm: Array  # when it was last smaller by more than noise
    stalled: Array  # steps for which nothing got better
    anchor: Array  # the loss when something last did
    uncertain: Array  # whether the curvature is negative, or a plateau, as far as is known
    doubts: Array  # steps in a row whose gradient is small enough and which are uncertain
    first_value: Array
    step_norm: Array
    path_length: Array
    count: Array
    result: Array


class History(NamedTuple):
    """After each step."""

    loss: Any
    gradient_norm: Any
    step_norm: Any
    damping: Any
    distortion: Any
    path: Any


def _value_and_gradient(problem: Any, x: Params) -> tuple[Array, Params]:
    """Return the loss and its gradient, in closed form where there is one, in the dtypes of x."""
    if hasattr(problem, "value_and_gradient"):
        value, grad = problem.value_and_gradient(x)
    elif hasattr(problem, "gradient"):
        value, grad = problem(x), problem.gradient(x)
    else:
        value, grad = jax.value_and_grad(problem)(x)
    return jnp.asarray(value), jax.tree.map(lambda leaf, part: part.astype(leaf.dtype), x, grad)


def _rounding(carry: Carry) -> float:
    """Return the rounding of the loss, relative: that of the coarser of loss and gradient."""
    return max(float(jnp.finfo(part.dtype).eps) for part in (carry.value, carry.norm))


def _transform(
    problem: Any, tx: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(default_transform(problem) if tx is None else tx)


def start_at(
    problem: Any, tx: optax.GradientTransformation | None, x0: Params, *, diagnosed: bool = True
) -> Carry:
    """Return the carry at x0; diagnosed, with the problem's own word for what is not finite there."""
    value, grad = _value_and_gradient(problem, x0)
    norm = tree_norm(grad)
    state = _transform(problem, tx).init(x0)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    zero = jnp.zeros((), jnp.int32)
    refused = refusal(problem, x0) if diagnosed else jnp.asarray(Result.NONFINITE_INPUT, jnp.int32)
    return Carry(
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
        stalled=zero,
        anchor=value,
        uncertain=jnp.asarray(find_diagnostics(state) is not None),
        doubts=zero,
        first_value=value,
        step_norm=jnp.zeros_like(norm),
        path_length=jnp.zeros_like(norm),
        count=zero,
        result=jnp.where(finite, RUNNING, refused).astype(jnp.int32),
    )


def refusal(problem: Any, x0: Params) -> Array:
    """Return why a start is refused."""
    refused = jnp.asarray(Result.NONFINITE_INPUT, jnp.int32)
    if not hasattr(problem, "check"):
        return refused
    code = jnp.asarray(problem.check(x0)).astype(jnp.int32)
    return jnp.where(code == Result.SUCCESSFUL, refused, code)


def _tolerance(carry: Carry, options: Options) -> Array:
    """Return the norm of the gradient that is asked for."""
    eps = jnp.finfo(carry.norm.dtype).eps
    # A start that was stationary already is no measure.
    measure = jnp.where(
        carry.first_norm > jnp.sqrt(eps) * carry.largest_norm, carry.first_norm, carry.largest_norm
    )
    return jnp.maximum(options.atol, options.rtol * measure)


def _is_there(carry: Carry, options: Options) -> Array:
    return (carry.norm <= _tolerance(carry, options)) & ~carry.uncertain


def _is_plateau(
    carry: Carry, options: Options, updates: Params, size: Array, value: Array, kind: Array
) -> Array:
    """Return whether a step of Newton's kind runs along a plateau instead of into a minimum.

    Towards a minimum steps shrink, however flat it is; where the loss flattens out exponentially,
    as a saturated softmax does, each is as long as the last, though the gradient falls. Nor is a
    leap trusted after which the loss has not fallen as the model said. Where the loss itself has
    vanished there is nothing more to be had.
    """
    slopes = jax.tree.map(lambda g, s: jnp.sum(g * s.astype(g.dtype)), carry.grad, updates)
    predicted = -0.5 * sum(slope.astype(value.dtype) for slope in jax.tree.leaves(slopes))
    fall = carry.value - value
    as_said = jnp.abs(fall - predicted) <= _UNLIKE * jnp.abs(predicted)
    eps = jnp.finfo(size.dtype).eps
    length = jnp.where(kind == Step.NEWTON, _FLAT * carry.step_norm, _FAR * carry.path_length)
    length = jnp.maximum(length, jnp.sqrt(eps) * carry.path_length)
    vanished = jnp.abs(value) <= options.rtol * jnp.abs(carry.first_value)
    return (size > length) & ~as_said & ~vanished


def _step(problem: Any, tx: Any, options: Options, carry: Carry) -> tuple[Carry, History]:
    # A plain function of one argument: line searches look at its signature.
    value_fn = problem if isinstance(problem, BoundLoss) else lambda x: problem(x)
    updates, state = tx.update(
        carry.grad, carry.state, carry.x, value=carry.value, grad=carry.grad, value_fn=value_fn
    )
    x = optax.apply_updates(carry.x, updates)
    value, grad = _value_and_gradient(problem, x)
    value = value.astype(carry.value.dtype)
    norm = tree_norm(grad)
    size = tree_norm(updates).astype(norm.dtype)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    told, rounding = find_diagnostics(state), 8 * _rounding(carry) * jnp.abs(value)
    # Of losses that differ by rounding alone the smaller gradient decides.
    equal = jnp.abs(value - carry.best_value) <= rounding
    better = good & jnp.where(equal, norm < carry.best_norm, value < carry.best_value)
    smaller = norm < _PROGRESS * carry.smallest_norm
    # Of a method with curvature more is expected than to creep along the floor of rounding.
    least_fall = rounding if told is None else _rounding(carry) ** 0.5 * jnp.abs(carry.anchor)
    improved = smaller | (value < carry.anchor - least_fall)
    if told is None:
        improved |= ~(jnp.abs(value - carry.value) <= rounding)
    stalled = jnp.where(improved, 0, carry.stalled + 1)
    patience = _LONGER if told is None else _PATIENCE
    small = norm <= _tolerance(carry, options)
    plateau = jnp.asarray(False)
    uncertain = plateau
    if told is not None:
        plateau = _is_plateau(carry, options, updates, size, value, told.kind)
        uncertain = told.negative_curvature | (plateau & small)
    fell = value < carry.value - rounding
    doubted = good & small & uncertain & (plateau | ~fell)
    doubts = jnp.where(doubted, carry.doubts + 1, 0).astype(jnp.int32)
    result = jnp.where(good, RUNNING, Result.DIVERGED)
    if told is not None:
        result = jnp.where(told.kind == Step.REJECTED, Result.NO_STEP, result)
        result = jnp.where(told.result != Result.SUCCESSFUL, told.result, result)
        result = jnp.where(
            (result == RUNNING) & (told.kind == Step.CONVERGED), Result.SUCCESSFUL, result
        )
    result = jnp.where((result == RUNNING) & (stalled >= patience), Result.STAGNATED, result)
    result = _judge_doubts(result, doubts, small, plateau)
    new = Carry(
        x=keep(x, carry.x),
        value=jnp.where(good, value, carry.value),
        grad=keep(grad, carry.grad),
        state=state,
        best=jax.tree.map(lambda a, b: jnp.where(better, a, b), x, carry.best),
        best_value=jnp.where(better, value, carry.best_value),
        best_norm=jnp.where(better, norm, carry.best_norm),
        norm=jnp.where(good, norm, carry.norm),
        first_norm=carry.first_norm,
        # A point above the start is an overshoot: its gradient measures nothing that is on the way
        # down.
        largest_norm=jnp.where(
            good & (value <= carry.first_value),
            jnp.maximum(norm, carry.largest_norm),
            carry.largest_norm,
        ),
        smallest_norm=jnp.where(good & smaller, norm, carry.smallest_norm),
        stalled=stalled.astype(jnp.int32),
        anchor=jnp.where(improved, jnp.minimum(value, carry.anchor), carry.anchor),
        uncertain=uncertain,
        doubts=doubts,
        first_value=carry.first_value,
        step_norm=size,
        path_length=carry.path_length + jnp.where(jnp.isfinite(size), size, 0),
        count=carry.count + 1,
        result=result.astype(jnp.int32),
    )
    short = (options.step_tol > 0) & (size <= options.step_tol * tree_norm(new.x)) & ~new.uncertain
    new = new._replace(
        result=jnp.where((new.result == RUNNING) & short, Result.SUCCESSFUL, new.result).astype(
            jnp.int32
        )
    )
    zero = jnp.zeros_like(value)
    damping, distortion = (zero, zero) if told is None else (told.damping, told.model_error)
    entry = History(
        new.value,
        new.norm,
        size.astype(value.dtype),
        damping,
        distortion,
        new.x if options.path else None,
    )
    return new, entry


def _judge_doubts(result: Array, doubts: Array, small: Array, plateau: Array) -> Array:
    """Return the result where the gradient is small enough and something speaks against it.

    Negative curvature along which nothing is won, or no step is found, is rounding.
    """
    ended = (result == Result.NO_STEP) | (result == Result.STAGNATED)
    over = small & (((result == RUNNING) & (doubts >= _DOUBTS)) | ended)
    return jnp.where(over, jnp.where(plateau, Result.PLATEAU, Result.SUCCESSFUL), result)


def advance(
    problem: Any, tx: Any, options: Options, carry: Carry, limit: Array | int, capacity: int
) -> tuple[Carry, History]:
    """Steps until it is over or ``limit`` of them are made in all; at most ``capacity``, each of
    which is recorded.
    """
    transform, base = _transform(problem, tx), carry.count
    _, entry = jax.eval_shape(lambda carry: _step(problem, transform, options, carry), carry)
    history = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), entry)

    def again(both: tuple[Carry, History]) -> Array:
        carry, _ = both
        running = (carry.result == RUNNING) & ~_is_there(carry, options)
        return running & (carry.count < limit) & (carry.count < base + capacity)

    def step(both: tuple[Carry, History]) -> tuple[Carry, History]:
        carry, history = both
        new, entry = _step(problem, transform, options, carry)
        return new, jax.tree.map(
            lambda kept, leaf: kept.at[carry.count - base].set(leaf), history, entry
        )

    carry, history = lax.while_loop(again, step, (carry, history))
    over = jnp.where(_is_there(carry, options), Result.SUCCESSFUL, RUNNING)
    return carry._replace(
        result=jnp.where(carry.result == RUNNING, over, carry.result).astype(jnp.int32)
    ), history


def solution_of(start: Carry, carry: Carry, history: History) -> Solution:
    # Between chunks everything is known: decisions are made on the host, without a program each.
    on_host = isinstance(history.loss, np.ndarray)
    numpy = np if on_host else jnp
    code, loss, norm = (numpy.asarray(part) for part in (carry.result, carry.value, carry.norm))
    result = numpy.where(code == RUNNING, Result.MAX_STEPS, code).astype(np.int32)
    # Of points whose losses are equal but for rounding the one with the smaller gradient.
    limit = loss + 8 * _rounding(carry) * numpy.abs(loss)
    best_is_as_good = (numpy.asarray(carry.best_norm) <= norm) & (
        numpy.asarray(carry.best_value) <= limit
    )
    last = (result == Result.SUCCESSFUL) & ~best_is_as_good
    if on_host:
        value = carry.x if last else carry.best
    else:
        value = jax.tree.map(lambda a, b: jnp.where(last, a, b), carry.x, carry.best)

    def prepend(first: Array, rest: Any) -> Any:
        return numpy.concatenate([numpy.asarray(first)[None], rest])

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


def as_one_loop(
    problem: Any,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
    max_steps: int,
) -> Solution:
    """For tracing; places of the history that were not reached repeat the last entry that was."""
    has_unit = tx is None and isinstance(problem, Problem)

    def run(problem: Any, x0: Params) -> tuple[Array | float, Carry, Carry, History]:
        unit = units.unit_of(problem) if has_unit else 1.0
        problem, _, options_in_unit, x0 = units.measured(unit, problem, tx, options, x0)
        start = start_at(problem, tx, x0)
        carry, history = advance(problem, tx, options_in_unit, start, max_steps, max(max_steps, 1))
        if find_diagnostics(carry.state) is None:
            carry = _with_plateau(problem, options, start, carry)
        return unit, start, carry, history

    unit, start, carry, history = without_derivatives(run, problem, x0)
    index = jnp.minimum(jnp.arange(max_steps, dtype=jnp.int32), jnp.maximum(carry.count - 1, 0))
    history = jax.tree.map(lambda kept: kept[index], history)
    none = carry.count == 0
    history = history._replace(
        loss=jnp.where(none, start.value, history.loss),
        gradient_norm=jnp.where(none, start.norm, history.gradient_norm),
    )
    return units.measured_back(unit if has_unit else 1.0, solution_of(start, carry, history))


def _with_plateau(problem: Any, options: Options, start: Carry, carry: Carry) -> Carry:
    """Return the end of a run without curvature, whose success is none where the loss flattens out."""

    def look() -> Array:
        gradient = lambda x: _value_and_gradient(problem, x)[1]
        return has_flattened(gradient, start.x, carry.x, carry.path_length)

    flat = lax.cond(
        is_doubtful(options, start, carry), look, lambda: vary_like(jnp.asarray(False), carry.norm)
    )
    return carry._replace(result=jnp.where(flat, Result.PLATEAU, carry.result).astype(jnp.int32))


def is_doubtful(options: Options, start: Carry, carry: Carry) -> Array:
    """Return whether a run without curvature has found a small gradient and may have found no
    minimum.
    """
    vanished = jnp.abs(carry.value) <= options.rtol * jnp.abs(start.value)
    return (carry.result == Result.SUCCESSFUL) & (carry.count > 0) & ~vanished
