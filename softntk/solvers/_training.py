"""Full-batch training with a fixed number of steps, as one compiled loop."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import PyTree

from softntk._core.bound_loss import BoundLoss, as_argument, check_scalar, split_leaves
from softntk._core.closures import compile_with_closure
from softntk._core.trees import select
from softntk._core.typing import Params
from softntk._core.validation import check_callable, check_integer
from softntk._core.visible_constants import with_visible_constants
from softntk.solution import Result, Solution
from softntk.solvers._gradient_descent import check_transform


class _TrainingState(NamedTuple):
    """State of the scan over steps.

    Attributes:
        params: after the last step.
        last_finite: the last params whose loss is known to be finite.
        state: state of the transform.
        is_finite: whether all losses were finite so far.
    """

    params: Params
    last_finite: Params
    state: PyTree
    is_finite: jax.Array


def train(
    loss: Callable[..., jax.Array],
    params: Params,
    tx: optax.GradientTransformation,
    steps: int,
    *args: Any,
    snapshot_every: int | None = None,
) -> Solution:
    r"""Run ``steps`` full-batch steps of an optax transform on a loss, in one ``lax.scan``.

    Use it for a path of known length; :func:`softntk.solvers.minimise` ends at a tolerance.

    Args:
        loss: ``(params, *args) -> scalar``. If a function or a transform is made anew for every
            call, with other arrays inside, it is traced again but not compiled again.
        params: a pytree of arrays. Leaves that are no floating-point arrays (functions of an
            equinox module, counters) are constants.
        tx: any optax transform. It gets ``value``, ``grad`` and ``value_fn``, which line searches
            need.
        steps: number of steps, positive.
        args: passed on to the loss.
        snapshot_every: s; record the parameters before the steps 0, s, 2s, … and after the last
            step. It must divide ``steps``. This needs steps/s + 1 copies in memory.

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: the final parameters. ``stats["loss"]``:
        [steps + 1], the loss before each step and at the end. ``stats["snapshots"]``, with
        ``snapshot_every``: a pytree like params with a leading axis of steps/s + 1. ``state``: the
        state of the transform, to continue with. If the loss becomes NaN or infinite, the
        parameters stay at the last ones with a finite loss, the remaining losses are +inf and
        ``result`` is DIVERGED, or NONFINITE_INPUT if the first loss is not finite (``.check()``
        raises).

    Raises:
        ValueError: params without floating-point arrays, a tx that is no optax transform, a loss
            that is no scalar; steps or snapshot_every not positive, or snapshot_every does not
            divide steps.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> tx = sn.solvers.gradient_descent(0.5)
        >>> sol = sn.solvers.train(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(2), tx, 3)
        >>> sol.stats["loss"].tolist(), sol.advice
        ([1.0, 0.25, 0.0625, 0.015625], 'The routine did what it was asked for.')
    """
    # 1. Check the arguments.
    check_callable("loss", loss, "a function of the params")
    transform = check_transform("tx", tx)
    steps = check_integer("steps", steps, at_least=1)
    if snapshot_every is not None:
        snapshot_every = check_integer("snapshot_every", snapshot_every, at_least=1)
        if steps % snapshot_every:
            raise ValueError(f"snapshot_every must divide steps, got {snapshot_every} and {steps}.")

    # 2. Split what the loss gets into floating-point params, and all that is constant.
    params, constants = split_leaves("params", params)
    bound_loss = BoundLoss(loss, jax.tree.map(as_argument, args), constants)

    # 3. Train, and put the constant leaves back.
    run_program = compile_with_closure(
        ("train", steps, snapshot_every),
        tx,
        bound_loss,
        partial(_train, transform, steps, snapshot_every),
        params,
        differentiable=True,
    )
    solution = run_program(params)
    if jax.tree.leaves(constants):
        stats = dict(solution.stats)
        if snapshot_every:
            stats["snapshots"] = eqx.combine(stats["snapshots"], constants)
        value = eqx.combine(solution.value, constants)
        solution = dataclasses.replace(solution, value=value, stats=stats)
    return solution


def _train(
    tx: optax.GradientTransformationExtraArgs,
    steps: int,
    snapshot_every: int | None,
    value_fn: BoundLoss,
    params: Params,
) -> Solution:
    """Run :func:`train` as one program."""
    # 1. The loss of the params.
    check_scalar("loss", jax.eval_shape(value_fn, params))
    value_fn = with_visible_constants(value_fn, params)

    # 2. A scan of steps in a scan of chunks, between which snapshots are taken.
    def step(carry: _TrainingState, _: None) -> tuple[_TrainingState, jax.Array]:
        value, grad = jax.value_and_grad(value_fn)(carry.params)
        is_finite = carry.is_finite & jnp.isfinite(value)
        updates, next_state = tx.update(
            grad, carry.state, carry.params, value=value, grad=grad, value_fn=value_fn
        )
        next_params = optax.apply_updates(carry.params, updates)
        # Only the next evaluation shows whether the loss is still finite after a step, so that
        # `last_finite` is one step behind `params`.
        next_carry = _TrainingState(
            params=select(is_finite, next_params, carry.params),
            last_finite=select(is_finite, carry.params, carry.last_finite),
            state=select(is_finite, next_state, carry.state),
            is_finite=is_finite,
        )
        return next_carry, jnp.where(is_finite, value, jnp.inf)

    def chunk(
        carry: _TrainingState, _: None
    ) -> tuple[_TrainingState, tuple[jax.Array, Params | None]]:
        next_carry, losses = lax.scan(step, carry, None, length=snapshot_every or steps)
        return next_carry, (losses, carry.params if snapshot_every else None)

    start = _TrainingState(params, params, tx.init(params), jnp.asarray(True))
    carry, (losses, snapshots) = lax.scan(
        chunk, start, None, length=steps // (snapshot_every or steps)
    )

    # 3. The loss at the end, and the last parameters where it is finite.
    final_loss = value_fn(carry.params)
    is_finite = carry.is_finite & jnp.isfinite(final_loss)
    losses = jnp.append(losses.reshape(steps), jnp.where(is_finite, final_loss, jnp.inf))
    value = select(is_finite, carry.params, carry.last_finite)
    stats = {"loss": losses}
    if snapshot_every:
        stats["snapshots"] = jax.tree.map(
            lambda all_but_last, last: jnp.append(all_but_last, last[None], axis=0),
            snapshots,
            value,
        )
    # A first loss that is not finite is the fault of the start, not of the steps.
    failure = jnp.where(jnp.isfinite(losses[0]), Result.DIVERGED, Result.NONFINITE_INPUT)
    result = jnp.where(is_finite, Result.SUCCESSFUL, failure)
    return Solution(value=value, result=result.astype(jnp.int32), stats=stats, state=carry.state)
