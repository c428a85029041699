"""Arguments of dynamics: numbers of steps, learning rates, and targets of a loss."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from softntk._core.validation import as_integers, is_concrete
from softntk._core.validation.class_targets import as_targets
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk._output_losses import OutputLoss, check_targets, complete_targets
from softntk.ntk._arguments import Problem
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_filters import Descent

Steps = Integer[Array | np.ndarray, " s"] | Sequence[int]
Labels = Integer[Array | np.ndarray, " n"]


def as_steps(steps: Steps) -> Integer[Array, " s"]:
    """Return numbers of steps as an integer array, checked."""
    if isinstance(steps, list | tuple) and not steps:
        return jnp.zeros(0, int)
    if isinstance(steps, np.ndarray | jax.Array) and (
        steps.ndim != 1 or not jnp.issubdtype(steps.dtype, jnp.integer)
    ):
        raise ValueError(
            f"steps must be a vector of integers [s], got shape {steps.shape}, dtype {steps.dtype}."
        )
    step_counts = as_integers("steps", steps, ("s",))
    if is_concrete(step_counts) and np.any(np.asarray(step_counts) < 0):
        raise ValueError(f"steps must not be negative, got {int(np.min(step_counts))}.")
    return step_counts


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
    """Return targets as numbers; labels as unit vectors of as many classes as there are outputs."""
    if loss.name != "cross_entropy":
        return y
    # 1. The number of outputs, as far as the kernel or the start knows it. What does not fit is
    #    refused by :func:`as_problem`, which knows what to say.
    shape = gram.shape if isinstance(gram, GramOperator) else np.shape(gram)[1:3]
    if not shape or np.ndim(y) not in (1, 2):
        return y
    known = shape[1] if len(shape) == 2 else None
    if known is None and np.ndim(f0) in (1, 2) and f0 is not None:
        known = 1 if np.ndim(f0) == 1 else np.shape(f0)[1]
    # 2. Labels of an unknown number of classes have as many as the largest says.
    dtype = jnp.result_type(float)
    if isinstance(gram, GramOperator | jax.Array | np.ndarray):
        dtype = jax.dtypes.canonicalize_dtype(gram.dtype)
    if isinstance(y, jax.Array | np.ndarray) and jnp.issubdtype(y.dtype, jnp.floating):
        dtype = jnp.result_type(dtype, jax.dtypes.canonicalize_dtype(y.dtype))
    targets = check_targets(loss, y, np.shape(y)[0], dtype)
    if targets.ndim == 2:
        return targets
    if known is None:
        return as_targets(y, len(targets), None, dtype, "Give f0, or probabilities, [n, k].")
    return complete_targets(targets, jnp.zeros((len(targets), known), dtype))
