"""Units: what is so small or so large that squares leave the range is measured in its own.

A regression depends on A x alone: with A/c and c x, c a power of two, nothing changes but
exponents. A plain function L(x) is L(ℓy)/s in y = x/ℓ, with s near |L| and ℓ near |L|/‖∇L‖ at the
start.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from softntk._core.validation import is_concrete
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import binary_scale, tree_norm
from softntk.regression import Problem
from softntk.solution import Solution

Params = Any

_ORDINARY = 0.3  # power of the smallest number from which to whose inverse squares are harmless


def unit_of(problem: Any) -> float | Array:
    """Return c of a regression whose A is far from one, otherwise one; an array where A is traced."""
    if not isinstance(problem, Problem) or matrices.is_operator(problem.A):
        return 1.0
    data = problem.A.data if matrices.is_sparse(problem.A) else problem.A
    if not data.size:
        return 1.0
    least = float(jnp.finfo(data.dtype).tiny) ** _ORDINARY
    if not is_concrete(data):
        scale = jnp.reshape(binary_scale(data), ())
        return jnp.where((least <= scale) & (scale <= 1 / least), 1, scale)
    largest = float(_largest(data))
    if not np.isfinite(largest) or largest == 0 or least <= largest <= 1 / least:
        return 1.0
    return float(jnp.max(binary_scale(data)))


def _is_one(unit: float | Array) -> bool:
    return not isinstance(unit, jax.Array) and unit == 1


@jax.jit
def _largest(data: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(data))


def measured(unit: float | Array, problem: Any, tx: Any, options: Any, x0: Params) -> tuple:
    """Return problem, transform, options and start with A in the unit."""
    if _is_one(unit):
        return problem, tx, options, x0
    A = problem.A
    if matrices.is_sparse(A):
        flags = {"indices_sorted": A.indices_sorted, "unique_indices": A.unique_indices}
        A = type(A)((A.data / unit, A.indices), shape=A.shape, **flags)
    else:
        A = A / unit
    options = options._replace(atol=options.atol / unit)
    return dataclasses.replace(problem, A=A), tx, options, x0 * unit


def measured_back(unit: float | Array, solution: Solution) -> Solution:
    """Return the solution of the problem as it was given; ``state`` stays in the unit."""
    if _is_one(unit):
        return solution
    stats = dict(solution.stats)
    stats["gradient_norm"] = stats["gradient_norm"] * unit
    stats["step_norm"] = stats["step_norm"] / unit
    if "path" in stats:
        stats["path"] = stats["path"] / unit
    return dataclasses.replace(solution, value=solution.value / unit, stats=stats)


class UnitState(NamedTuple):
    """What :func:`in_own_units` remembers.

    Attributes:
        inner: the state of the transform.
        loss: the unit of the loss; zero before the first update.
        length: the unit of the params.
    """

    inner: Any
    loss: Float[Array, ""]
    length: Float[Array, ""]


def in_own_units(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Return a transform without a unit of its own (L-BFGS) that neither over- nor underflows."""

    def init(params: Params) -> UnitState:
        zero = jnp.zeros_like(tree_norm(params))
        return UnitState(tx.init(params), zero, zero + 1)

    def first_units(value: Array, grad: Params) -> tuple[Array, Array]:
        norm = tree_norm(grad)
        size = jnp.where(value == 0, norm, jnp.abs(value).astype(norm.dtype))
        loss = jnp.reshape(binary_scale(size), ())
        length = jnp.reshape(binary_scale(loss / norm), ())
        known = (norm > 0) & jnp.isfinite(norm)
        return jnp.where(known, loss, 1), jnp.where(known, length, 1)

    def update(
        updates: Params,
        state: UnitState,
        params: Params | None = None,
        *,
        value: Any,
        grad: Params,
        value_fn: Callable[[Params], Array],
        **extra: Any,
    ) -> tuple[Params, UnitState]:
        loss, length = first_units(jnp.asarray(value), grad)
        loss = jnp.where(state.loss > 0, state.loss, loss)
        length = jnp.where(state.loss > 0, state.length, length)

        def times(tree: Params, factor: Array) -> Params:
            return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)

        def slope(tree: Params) -> Params:
            return times(times(tree, 1 / loss), length)

        def scaled_value(params: Params) -> Array:
            found = value_fn(times(params, length))
            return found / loss.astype(found.dtype)

        inner_updates, inner = tx.update(
            slope(updates),
            state.inner,
            times(params, 1 / length),
            value=value / loss.astype(value.dtype),
            grad=slope(grad),
            value_fn=scaled_value,
            **extra,
        )
        return times(inner_updates, length), UnitState(inner, loss, length)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
