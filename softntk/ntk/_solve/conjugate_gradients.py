"""Conjugate gradients with the kernel, and a solve as one program.

Inside jit, vmap and grad no value can be inspected and nothing can be raised. There
:func:`solve_traced` restarts conjugate gradients on the true residual, until that is small enough
or no longer falls, in one ``lax.while_loop``. The derivative of V = (K + ridge I)⁻¹ Y is that of
the linear system, dV = (K + ridge I)⁻¹ (dY − (dK + dridge I) V): one more solve.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softntk._linalg import conjugate_gradients
from softntk._linalg.conjugate_gradients import CgState as CgState
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.preconditioner import CompletePreconditioner, Preconditioner
from softntk.solution import Result

Inverse = Preconditioner | CompletePreconditioner | None
_NOT_FINISHED = -1  # no code of a result is negative

# Relative residual above which a direction without positive curvature means an indefinite kernel.
# Below it, rounding is the likelier reason.
INDEFINITE_RESIDUAL = 0.1


@jax.jit
def multiply(op: GramOperator, x: Float[Array, "size r"]) -> Float[Array, "size r"]:
    """Return K x, the columns of x flattened."""
    return op.mm(x.reshape(*op.shape, -1)).reshape(x.shape)


start = jax.jit(conjugate_gradients.start)


@jax.jit
def advance(
    op: GramOperator,
    ridge: Array,
    inverse: Inverse,
    state: CgState,
    goals: Array,
    steps: Array | int,
) -> CgState:
    """Return the state after at most ``steps`` steps, or when all columns are below their goals.

    The other arguments are those of :func:`softntk._linalg.conjugate_gradients.advance`.
    """
    return conjugate_gradients.advance(
        lambda v: multiply(op, v) + ridge * v, inverse, state, goals, steps
    )


class _RestartState(NamedTuple):
    """State between restarts of conjugate gradients, with all columns in the units of step 1.

    Attributes:
        value: the approximate solution, [size, r].
        residual: the true residual of ``value``, [size, r].
        best: the value with the smallest residual so far, [size, r].
        best_error: relative residual of ``best``, the largest over the columns.
        steps: number of steps so far.
        result: a code of :class:`~softntk.solution.Result`, or ``_NOT_FINISHED``.
    """

    value: Array
    residual: Array
    best: Array
    best_error: Array
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
    """Return (K + ridge I)⁻¹ Y and its diagnostics: "steps", "residual", "result".

    It is differentiable in the arrays of op, in y and in ridge.
    """
    # custom_linear_solve differentiates the system, so nothing inside the solve needs derivatives.
    fixed_op = stop_gradients(op)
    fixed_ridge = lax.stop_gradient(ridge)

    def solve_system(_: Any, rhs: Array) -> tuple[Array, dict[str, Array]]:
        return _solve_with_restarts(fixed_op, fixed_ridge, inverse, rhs, rtol, max_steps)

    return lax.custom_linear_solve(
        lambda v: multiply(op, v) + ridge * v, y, solve=solve_system, symmetric=True, has_aux=True
    )


def stop_gradients(tree: Any) -> Any:
    """Return the tree with arrays that carry no derivatives."""
    return jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )


def _solve_with_restarts(
    op: GramOperator, ridge: Array, inverse: Inverse, y: Array, rtol: float, max_steps: int
) -> tuple[Array, dict[str, Array]]:
    """Return the solution and its diagnostics, without derivatives."""
    # 1. Units in which no column of Y overflows.
    eps = float(jnp.finfo(y.dtype).eps)
    scale = binary_scale(y, axis=0)
    y = y / scale

    def column_norms(x: Array) -> Array:
        return jnp.linalg.norm(x, axis=0, keepdims=True)

    def nonzero_norms(x: Array) -> Array:
        norms = column_norms(x)
        return jnp.where(norms > 0, norms, 1)

    y_norms = nonzero_norms(y)

    # 2. One run of conjugate gradients on the residual, then the true residual of the sum.
    def restart(before: _RestartState) -> _RestartState:
        residual_norms = nonzero_norms(before.residual)
        # Half of rtol, so that the drift of the updated residual may take the other half.
        goals = jnp.clip(0.5 * rtol * y_norms / residual_norms, 10 * eps, 1)
        state = advance(
            op,
            ridge,
            inverse,
            start(before.residual / residual_norms, inverse),
            goals,
            max_steps - before.steps,
        )

        # The true residual, not the one that the recurrence updates.
        value = before.value + state.x * residual_norms
        residual = y - multiply(op, value) - ridge * value
        relative_residual = jnp.max(column_norms(residual) / y_norms)
        steps = before.steps + state.step.astype(before.steps.dtype)
        has_improved = relative_residual < 0.5 * before.best_error
        # NaN compares as false, so a value that is not finite never becomes the best.
        best = jnp.where(relative_residual < before.best_error, value, before.best)
        best_error = jnp.minimum(
            before.best_error, jnp.where(jnp.isnan(relative_residual), jnp.inf, relative_residual)
        )
        is_indefinite = jnp.any(state.is_stuck) & (best_error > INDEFINITE_RESIDUAL)

        # 3. Why to end, the strongest reason last. A restart must halve the residual to go on:
        # less is rounding.
        result = jnp.where(
            has_improved,
            _NOT_FINISHED,
            jnp.where(is_indefinite, Result.NOT_DEFINITE, Result.STAGNATED),
        )
        result = jnp.where(steps >= max_steps, Result.MAX_STEPS, result)
        result = jnp.where(jnp.isfinite(relative_residual), result, Result.NONFINITE_PRODUCT)
        result = jnp.where(best_error <= rtol, Result.SUCCESSFUL, result)
        return _RestartState(value, residual, best, best_error, steps, result.astype(jnp.int32))

    zeros = jnp.zeros_like(y)
    initial = _RestartState(
        value=zeros,
        residual=y,
        best=zeros,
        best_error=jnp.ones((), y.dtype),
        steps=jnp.zeros((), jnp.int32),
        result=jnp.full((), _NOT_FINISHED, jnp.int32),
    )
    final = lax.while_loop(lambda state: state.result == _NOT_FINISHED, restart, initial)

    # 4. The units of Y again; digits that are lost there count as residual.
    value, rounding_loss = rescale(final.best, scale)
    residual = jnp.maximum(final.best_error, rounding_loss)
    result = jnp.where(
        (final.result == Result.SUCCESSFUL) & (rounding_loss > rtol), Result.STAGNATED, final.result
    )
    result = jnp.where(jnp.isfinite(rounding_loss), result, Result.NONFINITE_PRODUCT).astype(
        jnp.int32
    )
    return value, {"steps": final.steps, "residual": residual, "result": result}


def rescale(
    value: Float[Array, "size r"], scale: Float[Array, "1 r"]
) -> tuple[Float[Array, "size r"], Float[Array, ""]]:
    """Return scale · value, and the relative error of that product; NaN where it overflows.

    Multiplying by a power of two is exact, unless the result leaves the range of the precision.
    """
    scaled_value = value * scale
    rounding_error = scaled_norm(scaled_value / scale - value, axis=0)
    value_norms = scaled_norm(value, axis=0)
    return scaled_value, jnp.max(rounding_error / jnp.where(value_norms > 0, value_norms, 1))
