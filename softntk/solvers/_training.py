"""Full-batch training as one compiled loop."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from softntk._core.bound_loss import (
    BoundLoss,
    as_argument,
    check_scalar,
    split_leaves,
)
from softntk._core.validation import check_callable, check_integer
from softntk.solution import Result, Solution
from softntk.solvers._gradient_descent import check_transform

Params = Any  # a pytree of arrays


def train(
    loss: Callable[..., jax.Array],
    params: Params,
    tx: optax.GradientTransformation,
    steps: int,
    *args: Any,
    snapshot_every: int | None = None,
) -> Solution:
    r"""Run ``steps`` full-batch steps of an optax transform on a loss, in one ``lax.scan``.

    Args:
        loss: ``(params, *args) -> scalar``. Compiled once for each function object and shapes:
            define it outside of your loops, and pass data through ``args``.
        params: a pytree of arrays. Leaves that are no floating-point arrays (functions of an
            equinox module, counters) are constants.
        tx: any optax transform. It is given ``value``, ``grad`` and ``value_fn``, as line searches
            want.
        steps: number of steps, positive.
        args: passed on to the loss.
        snapshot_every: keep the parameters before step 0, s, 2s, … and after the last; must divide
            ``steps``. This holds steps/s + 1 copies in memory.

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: the final parameters. ``stats["loss"]``:
        [steps + 1], the loss before each step and at the end. ``stats["snapshots"]`` (on request):
        a pytree like params with a leading axis of steps/s + 1. ``state``: the state of the
        transform, to continue with. If the loss becomes NaN or infinite the parameters stay at the
        last good ones, the remaining losses are +inf and ``result`` says so (``.check()`` raises).

    Raises:
        ValueError: params without floating-point arrays, a tx that is no optax transform, a loss
            that is no scalar; steps or snapshot_every not positive, or snapshot_every does not
            divide steps.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> sol = sn.solvers.train(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(2), sn.solvers.gradient_descent(0.5), 3)
        >>> sol.stats["loss"].tolist(), sol.advice
        ([1.0, 0.25, 0.0625, 0.015625], 'The routine did what it was asked for.')
    """
    check_callable("loss", loss, "a function of the params")
    tx = check_transform("tx", tx)
    steps = check_integer("steps", steps, at_least=1)
    if snapshot_every is not None:
        snapshot_every = check_integer("snapshot_every", snapshot_every, at_least=1)
        if steps % snapshot_every:
            raise ValueError(f"snapshot_every must divide steps, got {snapshot_every} and {steps}.")
    params, constants = split_leaves("params", params)
    bound = BoundLoss(None, jax.tree.map(as_argument, args), constants)
    arrays, others = eqx.partition(bound, eqx.is_array)
    leaves, structure = jax.tree.flatten(others)
    static = tuple(leaves), structure
    solution = _train(loss, tx, steps, snapshot_every, static, params, arrays)
    if jax.tree.leaves(constants):
        stats = dict(solution.stats)
        if snapshot_every:
            stats["snapshots"] = eqx.combine(stats["snapshots"], constants)
        value = eqx.combine(solution.value, constants)
        solution = dataclasses.replace(solution, value=value, stats=stats)
    return solution


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _train(
    loss: Callable[..., jax.Array],
    tx: optax.GradientTransformationExtraArgs,
    steps: int,
    snapshot_every: int | None,
    static: tuple,
    params: Params,
    arrays: BoundLoss,
) -> Solution:
    bound = eqx.combine(arrays, jax.tree.unflatten(static[1], static[0]))

    def value_fn(p: Params) -> jax.Array:
        return loss(bound.complete(p), *bound.args)

    check_scalar("loss", jax.eval_shape(value_fn, params))

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, last_good, state, alive = carry
        value, grad = jax.value_and_grad(value_fn)(params)
        alive = alive & jnp.isfinite(value)
        updates, new_state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        new_params = optax.apply_updates(params, updates)
        keep = partial(jax.tree.map, partial(jnp.where, alive))
        # A step is known to be bad only at the next evaluation: remember the last parameters whose
        # loss was finite.
        carry = (keep(new_params, params), keep(params, last_good), keep(new_state, state), alive)
        return carry, jnp.where(alive, value, jnp.inf)

    def chunk(carry: tuple, _: None) -> tuple[tuple, tuple[jax.Array, Params]]:
        out, losses = lax.scan(step, carry, None, length=snapshot_every or steps)
        return out, (losses, carry[0] if snapshot_every else None)

    start = (params, params, tx.init(params), jnp.asarray(True))
    (params, last_good, state, alive), (losses, snapshots) = lax.scan(
        chunk, start, None, length=steps // (snapshot_every or steps)
    )
    final = value_fn(params)
    alive = alive & jnp.isfinite(final)
    losses = jnp.append(losses.reshape(steps), jnp.where(alive, final, jnp.inf))
    value = jax.tree.map(partial(jnp.where, alive), params, last_good)
    stats = {"loss": losses}
    if snapshot_every:
        stats["snapshots"] = jax.tree.map(
            lambda all_but_last, last: jnp.append(all_but_last, last[None], axis=0),
            snapshots,
            value,
        )
    result = jnp.where(
        alive,
        Result.SUCCESSFUL,
        jnp.where(jnp.isfinite(losses[0]), Result.DIVERGED, Result.NONFINITE_INPUT),
    )
    return Solution(value=value, result=result.astype(jnp.int32), stats=stats, state=state)
