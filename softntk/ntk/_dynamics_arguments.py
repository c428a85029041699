"""Arguments of dynamics: numbers of steps, learning rates, and targets of a loss."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from softntk._core.validation import as_floating, as_integers, is_concrete
from softntk._core.validation.class_targets import as_targets
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk._output_losses import OutputLoss, check_targets, complete_targets
from softntk.ntk._arguments import Problem
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_filters import Descent

Steps = Integer[Array | np.ndarray, " s"] | Sequence[int]
Labels = Integer[Array | np.ndarray, " n"]


def as_steps(steps: Steps, name: str = "steps") -> Integer[Array, " s"]:
    """Return numbers of steps as an integer array, checked; ``name`` is that of the argument."""
    if isinstance(steps, list | tuple) and not steps:
        return jnp.zeros(0, int)
    if isinstance(steps, np.ndarray | jax.Array) and (
        steps.ndim != 1 or not jnp.issubdtype(steps.dtype, jnp.integer)
    ):
        raise ValueError(
            f"{name} must be a vector of integers [s], got shape {steps.shape}, "
            f"dtype {steps.dtype}."
        )
    step_counts = as_integers(name, steps, ("s",))
    if is_concrete(step_counts) and np.any(np.asarray(step_counts) < 0):
        raise ValueError(f"{name} must not be negative, got {int(np.min(step_counts))}.")
    return step_counts


def as_flow_times(times: Any) -> Float[Array, " s"]:
    """Return times of gradient flow, checked; infinity is one of them."""
    flow_times = as_floating("times", times, ("s",), finite=False, empty=True)
    if is_concrete(flow_times) and not np.all(np.asarray(flow_times) >= 0):
        raise ValueError(f"times must be non-negative numbers, got {np.asarray(flow_times)}.")
    return flow_times


def as_descent(learning_rate: Number, steps: Array, problem: Problem) -> Descent:
    """Return the training times of descent in the precision of the problem."""
    rates = as_scalar("learning_rate", learning_rate, problem.y.dtype, above=0)
    return Descent(jnp.broadcast_to(rates, steps.shape), steps)


def as_momentum(momentum: Number, dtype: jnp.dtype) -> Float[Array, ""]:
    """Return β in [0, 1)."""
    beta = as_scalar("momentum", momentum, dtype, at_least=0)
    if is_concrete(beta) and float(beta) >= 1:
        raise ValueError(f"momentum must lie in [0, 1), got {float(beta)!r}.")
    return beta


def operator_of(gram: Gram | GramOperator) -> GramOperator | None:
    """Return an operator, None for an array."""
    return gram if isinstance(gram, GramOperator) else None


def as_loss_targets(
    loss: OutputLoss, y: Any, gram: Gram | GramOperator, f0: Any
) -> Float[Array, "n k"] | Any:
    """Return targets as numbers; labels as unit vectors of as many classes as there are outputs.

    What does not fit is returned as it is: :func:`as_problem` knows what to say.
    """
    if loss.name != "cross_entropy" or np.ndim(y) not in (1, 2):
        return y
    shape = gram.shape if isinstance(gram, GramOperator) else np.shape(gram)[1:3]
    if not shape:
        return y
    targets = check_targets(loss, y, np.shape(y)[0], _common_dtype(gram, y))
    if targets.ndim == 2:
        return targets
    # Labels of an unknown number of classes have as many as the largest says.
    outputs = _count_outputs(shape, f0)
    dtype = _common_dtype(gram, y)
    if outputs is None:
        return as_targets(y, len(targets), None, dtype, "Give f0, or probabilities, [n, k].")
    return complete_targets(targets, jnp.zeros((len(targets), outputs), dtype))


def _count_outputs(shape: tuple[int, ...], f0: Any) -> int | None:
    """Return k, as far as a kernel on [n] or [n, k], or the outputs at the start, know it."""
    if len(shape) == 2:
        return shape[1]
    if f0 is None or np.ndim(f0) not in (1, 2):
        return None
    return 1 if np.ndim(f0) == 1 else np.shape(f0)[1]


def _common_dtype(gram: Any, y: Any) -> jnp.dtype:
    """Return the widest floating-point dtype of the kernel and the targets."""
    dtypes = [
        jax.dtypes.canonicalize_dtype(part.dtype)
        for part in (gram, y)
        if isinstance(part, GramOperator | jax.Array | np.ndarray)
        and jnp.issubdtype(part.dtype, jnp.floating)
    ]
    return jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)
