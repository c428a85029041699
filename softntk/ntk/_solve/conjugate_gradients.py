"""Preconditioned conjugate gradients for many right-hand sides, and a solve as one program.

    symbol      meaning                                       shape
    K, P        the kernel, its preconditioner                [size, size]
    x, r, p     solution, residual, search direction          [size, columns]
    α, β        step length, weight of the old direction      [1, columns]

The columns share the products with K and nothing else. Differences from the textbook: a column that
has reached its goal stops while others go on, and a column whose direction has no positive
curvature stops for good.

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

from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.preconditioner import CompletePreconditioner, Preconditioner
from softntk.solution import Result

Inverse = Preconditioner | CompletePreconditioner | None
_NOT_FINISHED = -1  # no code of a result is negative

# Relative residual above which a direction without positive curvature means an indefinite kernel.
# Below it, rounding is the likelier reason.
INDEFINITE_RESIDUAL = 0.1


class CgState(NamedTuple):
    """State of conjugate gradients between steps.

    Attributes:
        x: the approximate solution, [size, r].
        residual: y − K x as the recurrence updates it, [size, r].
        direction: the next search direction p, [size, r].
        inner_products: ⟨r, P⁻¹r⟩ of the residual r, [1, r].
        is_stuck: columns whose direction has no positive curvature, [1, r].
        step: number of steps.
    """

    x: Array
    residual: Array
    direction: Array
    inner_products: Array
    is_stuck: Array
    step: Array


@jax.jit
def multiply(op: GramOperator, x: Float[Array, "size r"]) -> Float[Array, "size r"]:
    """Return K x, the columns of x flattened."""
    return op.mm(x.reshape(*op.shape, -1)).reshape(x.shape)


@jax.jit
def start(y: Float[Array, "size r"], inverse: Inverse) -> CgState:
    """Return the state of conjugate gradients at x = 0."""
    preconditioned = y if inverse is None else inverse(y)
    inner_products = jnp.sum(y * preconditioned, axis=0, keepdims=True)
    return CgState(
        x=jnp.zeros_like(y),
        residual=y,
        direction=preconditioned,
        inner_products=inner_products,
        is_stuck=jnp.zeros(inner_products.shape, bool),
        step=jnp.zeros((), int),
    )


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

    A column stops when its residual is below its goal, or its direction has no positive curvature.

    Args:
        op: K.
        ridge: added to the diagonal of K.
        inverse: v ↦ P⁻¹v, or None.
        state: where to start.
        goals: norms of the residual to reach, [1, r].
        steps: maximal number of steps.
    """

    def is_unfinished(s: CgState) -> Array:
        return (jnp.linalg.norm(s.residual, axis=0, keepdims=True) > goals) & ~s.is_stuck

    def take_step(s: CgState) -> CgState:
        # 1. The step along p: α = ⟨r, P⁻¹r⟩ / ⟨p, K p⟩.
        is_active = is_unfinished(s)
        image = multiply(op, s.direction) + ridge * s.direction
        curvature = jnp.sum(s.direction * image, axis=0, keepdims=True)
        is_positive = curvature > 0
        step_length = jnp.where(
            is_active & is_positive, s.inner_products / jnp.where(is_positive, curvature, 1), 0
        )
        residual = s.residual - step_length * image

        # 2. The next direction: P⁻¹r + β p with β = ⟨r, P⁻¹r⟩ / its last value.
        preconditioned = residual if inverse is None else inverse(residual)
        inner_products = jnp.sum(residual * preconditioned, axis=0, keepdims=True)
        last_products = jnp.where(s.inner_products > 0, s.inner_products, 1)
        direction_weight = jnp.where(is_active, inner_products / last_products, 0)
        return CgState(
            x=s.x + step_length * s.direction,
            residual=residual,
            direction=preconditioned + direction_weight * s.direction,
            inner_products=inner_products,
            is_stuck=s.is_stuck | (is_active & ~is_positive),
            step=s.step + 1,
        )

    return lax.while_loop(lambda s: (s.step < steps) & jnp.any(is_unfinished(s)), take_step, state)


class _RestartState(NamedTuple):
    """State between restarts of conjugate gradients.

    Attributes:
        value: the approximate solution, in units of the scale of y, [size, r].
        residual: the true residual of value, [size, r].
        best: the value with the smallest residual so far, [size, r].
        best_error: relative residual of best, the largest over the columns.
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
    def restart(a: _RestartState) -> _RestartState:
        residual_norms = nonzero_norms(a.residual)
        goals = jnp.clip(0.5 * rtol * y_norms / residual_norms, 10 * eps, 1)
        state = advance(
            op,
            ridge,
            inverse,
            start(a.residual / residual_norms, inverse),
            goals,
            max_steps - a.steps,
        )

        # The true residual, not the one that the recurrence updates.
        value = a.value + state.x * residual_norms
        residual = y - multiply(op, value) - ridge * value
        relative_residual = jnp.max(column_norms(residual) / y_norms)
        steps = a.steps + state.step.astype(a.steps.dtype)
        has_improved = relative_residual < 0.5 * a.best_error
        # NaN compares as false, so a value that is not finite never becomes the best.
        best = jnp.where(relative_residual < a.best_error, value, a.best)
        best_error = jnp.minimum(
            a.best_error, jnp.where(jnp.isnan(relative_residual), jnp.inf, relative_residual)
        )
        is_indefinite = jnp.any(state.is_stuck) & (best_error > INDEFINITE_RESIDUAL)
        # 3. Why to end, the strongest reason last.
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
    final = lax.while_loop(lambda a: a.result == _NOT_FINISHED, restart, initial)

    # 4. The units of Y again; what that costs counts as residual.
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
