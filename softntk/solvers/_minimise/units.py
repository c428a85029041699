"""Units of problems whose numbers are so small or so large that their squares are out of range.

A regression depends on A x alone: with A/c and c x, c a power of two, nothing changes but the
exponents of the numbers (:func:`to_unit`). A plain function L(x) is replaced by L(ℓy)/s in y = x/ℓ,
with s near |L| and ℓ near |L|/‖∇L‖ at the start (:func:`in_own_units`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from softntk._core.validation import is_concrete
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale, tree_norm
from softntk.regression import Problem
from softntk.solution import Solution
from softntk.solvers._minimise.loop_state import Loss, Options, Params

Unit = float | Array

# Numbers between tiny^0.3 and its inverse, tiny the smallest normal number, need no unit: products
# of three of them are in range.
HARMLESS_EXPONENT = 0.3


def problem_unit(problem: Loss) -> Unit:
    """Return c, near the largest entry of a very large or small A; one for any other problem.

    It is an array where A is traced, else a number.
    """
    if not isinstance(problem, Problem) or matrices.is_operator(problem.A):
        return 1.0
    data = problem.A.data if matrices.is_sparse(problem.A) else problem.A
    if not data.size:
        return 1.0
    # A traced unit is always an array; its value is one where no unit is needed.
    lower_bound = float(jnp.finfo(data.dtype).tiny) ** HARMLESS_EXPONENT
    if not is_concrete(data):
        scale = jnp.reshape(binary_scale(data), ())
        return jnp.where((lower_bound <= scale) & (scale <= 1 / lower_bound), 1, scale)
    largest = float(_largest_size(data))
    is_harmless = lower_bound <= largest <= 1 / lower_bound
    if not np.isfinite(largest) or largest == 0 or is_harmless:
        return 1.0
    return float(jnp.max(binary_scale(data)))


def _is_one(unit: Unit) -> bool:
    """Return whether a unit is the number one, so that nothing has to be scaled."""
    return not isinstance(unit, jax.Array) and unit == 1


@jax.jit
def _largest_size(data: Float[Array, "..."]) -> Float[Array, ""]:
    """Return max |a|."""
    return jnp.max(jnp.abs(data))


def to_unit(
    unit: Unit,
    problem: Loss,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
) -> tuple[Loss, optax.GradientTransformation | None, Options, Params]:
    """Return problem, transform, options and start with A/c for A, and c x for x."""
    if _is_one(unit):
        return problem, tx, options, x0
    # (A/c)(c x) = A x: the loss is the same, and its gradient in c x is ∇L/c.
    assert isinstance(problem, Problem)
    A = problem.A
    if matrices.is_sparse(A):
        flags = {"indices_sorted": A.indices_sorted, "unique_indices": A.unique_indices}
        A = type(A)((A.data / unit, A.indices), shape=A.shape, **flags)
    else:
        A = A / unit
    options = options._replace(atol=options.atol / unit)
    return dataclasses.replace(problem, A=A), tx, options, x0 * unit


def from_unit(unit: Unit, solution: Solution) -> Solution:
    """Return the solution for the original A; ``state`` stays in the unit."""
    if _is_one(unit):
        return solution
    stats = dict(solution.stats)
    stats["gradient_norm"] = stats["gradient_norm"] * unit
    stats["step_norm"] = stats["step_norm"] / unit
    if "path" in stats:
        stats["path"] = stats["path"] / unit
    return dataclasses.replace(solution, value=solution.value / unit, stats=stats)


class UnitState(NamedTuple):
    """State of :func:`in_own_units`.

    Attributes:
        inner: the state of the transform.
        loss: s, the unit of the loss; zero before the first update.
        length: ℓ, the unit of the params.
    """

    inner: PyTree
    loss: Float[Array, ""]
    length: Float[Array, ""]


def in_own_units(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Return the transform in units of loss and length that the first update chooses.

    Use it for a transform that has no scale of its own, like L-BFGS. With it, squares in the
    transform neither over- nor underflow.
    """

    def init(params: Params) -> UnitState:
        zero = jnp.zeros_like(tree_norm(params))
        return UnitState(tx.init(params), zero, zero + 1)

    def update(
        updates: Params,
        state: UnitState,
        params: Params | None = None,
        *,
        value: ArrayLike,
        grad: Params,
        value_fn: Callable[[Params], Array],
        **extra_args: Any,
    ) -> tuple[Params, UnitState]:
        # 1. The units.
        value = jnp.asarray(value)
        first_loss, first_length = _first_units(value, grad)
        loss_unit = jnp.where(state.loss > 0, state.loss, first_loss)
        length_unit = jnp.where(state.loss > 0, state.length, first_length)

        # 2. The update in these units: ∇ of L(ℓy)/s is ℓ∇L/s.
        def scale_gradient(tree: Params) -> Params:
            return _scale_tree(_scale_tree(tree, 1 / loss_unit), length_unit)

        def scaled_loss(params: Params) -> Array:
            loss = value_fn(_scale_tree(params, length_unit))
            return loss / loss_unit.astype(loss.dtype)

        scaled_updates, inner = tx.update(
            scale_gradient(updates),
            state.inner,
            _scale_tree(params, 1 / length_unit),
            value=value / loss_unit.astype(value.dtype),
            grad=scale_gradient(grad),
            value_fn=scaled_loss,
            **extra_args,
        )
        return _scale_tree(scaled_updates, length_unit), UnitState(inner, loss_unit, length_unit)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _first_units(value: Array, grad: Params) -> tuple[Array, Array]:
    """Return powers of two near |L| and |L|/‖∇L‖; ones where the gradient is zero or infinite."""
    norm = tree_norm(grad)
    loss_size = jnp.where(value == 0, norm, jnp.abs(value).astype(norm.dtype))
    loss_unit = jnp.reshape(binary_scale(loss_size), ())
    length_unit = jnp.reshape(binary_scale(loss_unit / norm), ())
    is_usable = (norm > 0) & jnp.isfinite(norm)
    return jnp.where(is_usable, loss_unit, 1), jnp.where(is_usable, length_unit, 1)


def _scale_tree(tree: Params, factor: Array) -> Params:
    """Return the pytree times a factor, in its dtypes."""
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)
