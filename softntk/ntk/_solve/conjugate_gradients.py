"""Preconditioned conjugate gradients on many right-hand sides, and a solve that runs as one
program, with its derivatives.

Inside jit, vmap and grad nothing can be looked at on the way, and nothing raised:
:func:`solve_traced` restarts on what is left until the true residual is small enough or no longer
falls, in one ``lax.while_loop``. The derivative of V = (K + ridge I)⁻¹ Y is that of the linear
system, dV = (K + ridge I)⁻¹ (dY − (dK + dridge I) V): another solve.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.preconditioner import CompletePreconditioner, Preconditioner
from softntk.solution import Result

Inverse = Preconditioner | CompletePreconditioner | None
_RUNNING = -1


class State(NamedTuple):
    """Conjugate gradients under way.

    Attributes:
        x: the solution so far, [size, r].
        residual: as it is carried along, [size, r].
        direction: of the next step, [size, r].
        inner: ⟨r, P⁻¹r⟩, [1, r].
        stuck: columns whose direction has no positive curvature, [1, r].
        step: number of steps.
    """

    x: Array
    residual: Array
    direction: Array
    inner: Array
    stuck: Array
    step: Array


@jax.jit
def multiply(op: GramOperator, x: Float[Array, "size r"]) -> Float[Array, "size r"]:
    """Return K x."""
    return op.mm(x.reshape(*op.shape, -1)).reshape(x.shape)


@jax.jit
def start(y: Float[Array, "size r"], inverse: Inverse) -> State:
    """Return the state at x = 0."""
    z = y if inverse is None else inverse(y)
    inner = jnp.sum(y * z, axis=0, keepdims=True)
    return State(jnp.zeros_like(y), y, z, inner, jnp.zeros(inner.shape, bool), jnp.zeros((), int))


@jax.jit
def advance(
    op: GramOperator, ridge: Array, inverse: Inverse, state: State, goals: Array, steps: Array | int
) -> State:
    """Make at most ``steps`` steps, until every column of the residual is below its goal.

    Columns that are there stand still, as do those that meet a direction without positive
    curvature.
    """

    def unfinished(s: State) -> Array:
        return (jnp.linalg.norm(s.residual, axis=0, keepdims=True) > goals) & ~s.stuck

    def step(s: State) -> State:
        moving = unfinished(s)
        image = multiply(op, s.direction) + ridge * s.direction
        curvature = jnp.sum(s.direction * image, axis=0, keepdims=True)
        positive = curvature > 0
        length = jnp.where(moving & positive, s.inner / jnp.where(positive, curvature, 1), 0)
        residual = s.residual - length * image
        z = residual if inverse is None else inverse(residual)
        inner = jnp.sum(residual * z, axis=0, keepdims=True)
        turn = jnp.where(moving, inner / jnp.where(s.inner > 0, s.inner, 1), 0)
        stuck = s.stuck | (moving & ~positive)
        return State(
            s.x + length * s.direction, residual, z + turn * s.direction, inner, stuck, s.step + 1
        )

    return lax.while_loop(lambda s: (s.step < steps) & jnp.any(unfinished(s)), step, state)


class _Attempts(NamedTuple):
    value: Array  # [size, r], in units of scale
    residual: Array  # true, of value
    best: Array
    best_error: Array  # the largest relative residual of best
    steps: Array
    result: Array


def solve_traced(
    op: GramOperator,
    inverse: Inverse,
    y: Float[Array, "size r"],
    ridge: Float[Array, ""],
    rtol: float,
    max_steps: int,
) -> tuple[Float[Array, "size r"], dict[str, Array]]:
    """Return (K + ridge I)⁻¹ Y, differentiable in the arrays of op, in y and in ridge; and steps,
    residual and result.
    """
    fixed_op = without_derivatives(op)
    fixed_ridge = lax.stop_gradient(ridge)

    def solution(_: Any, right: Array) -> tuple[Array, dict[str, Array]]:
        return _attempts(fixed_op, fixed_ridge, inverse, right, rtol, max_steps)

    return lax.custom_linear_solve(
        lambda v: multiply(op, v) + ridge * v, y, solve=solution, symmetric=True, has_aux=True
    )


def without_derivatives(tree: Any) -> Any:
    """Return the tree with arrays that carry no derivatives."""
    return jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )


def _attempts(
    op: GramOperator, ridge: Array, inverse: Inverse, y: Array, rtol: float, max_steps: int
) -> tuple[Array, dict[str, Array]]:
    eps = float(jnp.finfo(y.dtype).eps)
    scale = binary_scale(y, axis=0)
    y = y / scale

    def lengths_of(x: Array) -> Array:
        return jnp.linalg.norm(x, axis=0, keepdims=True)

    def divisors(x: Array) -> Array:
        length = lengths_of(x)
        return jnp.where(length > 0, length, 1)

    targets = divisors(y)

    def attempt(a: _Attempts) -> _Attempts:
        norms = divisors(a.residual)
        goals = jnp.clip(0.5 * rtol * targets / norms, 10 * eps, 1)
        state = advance(
            op, ridge, inverse, start(a.residual / norms, inverse), goals, max_steps - a.steps
        )
        value = a.value + state.x * norms
        residual = y - multiply(op, value) - ridge * value
        error = jnp.max(lengths_of(residual) / targets)
        steps = a.steps + state.step.astype(a.steps.dtype)
        improved = error < 0.5 * a.best_error
        best = jnp.where(error < a.best_error, value, a.best)
        best_error = jnp.minimum(a.best_error, jnp.where(jnp.isnan(error), jnp.inf, error))
        lost = jnp.any(state.stuck) & (best_error > 0.1)
        result = jnp.where(
            improved, _RUNNING, jnp.where(lost, Result.NOT_DEFINITE, Result.STAGNATED)
        )
        result = jnp.where(steps >= max_steps, Result.MAX_STEPS, result)
        result = jnp.where(jnp.isfinite(error), result, Result.NONFINITE_PRODUCT)
        result = jnp.where(best_error <= rtol, Result.SUCCESSFUL, result)
        return _Attempts(value, residual, best, best_error, steps, result.astype(jnp.int32))

    zeros = jnp.zeros_like(y)
    first = _Attempts(
        zeros,
        y,
        zeros,
        jnp.ones((), y.dtype),
        jnp.zeros((), jnp.int32),
        jnp.full((), _RUNNING, jnp.int32),
    )
    last = lax.while_loop(lambda a: a.result == _RUNNING, attempt, first)
    value, loss = rescaled(last.best, scale)
    residual = jnp.maximum(last.best_error, loss)
    result = jnp.where(
        (last.result == Result.SUCCESSFUL) & (loss > rtol), Result.STAGNATED, last.result
    )
    result = jnp.where(jnp.isfinite(loss), result, Result.NONFINITE_PRODUCT).astype(jnp.int32)
    return value, {"steps": last.steps, "residual": residual, "result": result}


def rescaled(
    value: Float[Array, "size r"], scale: Float[Array, "1 r"]
) -> tuple[Float[Array, "size r"], Float[Array, ""]]:
    """Return scale · value, and how much of it the range of the precision has cost, relative; NaN
    where it overflows.
    """
    moved = value * scale
    loss = scaled_norm(moved / scale - value, axis=0)
    length = scaled_norm(value, axis=0)
    return moved, jnp.max(loss / jnp.where(length > 0, length, 1))
