"""The records that the loop of ``minimise`` carries, and the loss that it evaluates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk._core.typing import Params

Loss = Callable[[Params], Any]
Scalar = Float[Array, ""]

# Result code of a run that is not over; all codes of softntk.solution.Result are larger.
RUNNING = -1


class Options(NamedTuple):
    """When a run is over, and what it records.

    Attributes:
        rtol: tolerance of the gradient relative to the first one.
        atol: absolute tolerance of the gradient.
        step_tol: relative length of a step that ends the run; zero for never.
        path: whether the points are recorded.
    """

    rtol: float
    atol: float
    step_tol: float
    path: bool


class Carry(NamedTuple):
    """State of a run between two steps; with the history it is what a checkpoint holds.

    Attributes:
        x: the current point.
        value: the loss at x.
        grad: its gradient at x.
        state: state of the transform.
        best: the point with the smallest loss; of losses equal up to rounding, with the smallest
            gradient.
        best_value: the loss at ``best``.
        best_norm: norm of the gradient at ``best``.
        norm: norm of the gradient at x.
        first_norm: norm of the first gradient.
        largest_norm: the largest norm of a gradient at a loss not above the first.
        smallest_norm: the smallest norm, updated only where it falls by a tenth.
        stalled: number of steps without progress.
        last_improved_loss: the loss at the last step with progress.
        maybe_indefinite: whether negative curvature or a plateau speaks against a minimum.
        doubts: number of successive steps with a small gradient that is not accepted.
        first_value: the loss at the start.
        step_norm: length of the last step.
        path_length: sum of the lengths of all steps.
        count: number of steps.
        result: a :class:`softntk.solution.Result`, or RUNNING.
        needs_damping: whether a step was postponed; from here on the complete program takes steps.
    """

    x: Params
    value: Scalar
    grad: Params
    state: PyTree
    best: Params
    best_value: Scalar
    best_norm: Scalar
    norm: Scalar
    first_norm: Scalar
    largest_norm: Scalar
    smallest_norm: Scalar
    stalled: Int[Array, ""]
    last_improved_loss: Scalar
    maybe_indefinite: Bool[Array, ""]
    doubts: Int[Array, ""]
    first_value: Scalar
    step_norm: Scalar
    path_length: Scalar
    count: Int[Array, ""]
    result: Int[Array, ""]
    needs_damping: Bool[Array, ""]


class History(NamedTuple):
    """What is recorded after each step: a scalar, or an array with one entry per step.

    Attributes:
        loss: the loss.
        gradient_norm: norm of the gradient.
        step_norm: length of the step.
        damping: damping of the transform; zero without diagnostics.
        distortion: model error of the transform; zero without diagnostics.
        path: the points, or None.
    """

    loss: Float[Array | np.ndarray, "..."]
    gradient_norm: Float[Array | np.ndarray, "..."]
    step_norm: Float[Array | np.ndarray, "..."]
    damping: Float[Array | np.ndarray, "..."]
    distortion: Float[Array | np.ndarray, "..."]
    path: PyTree | None


def value_and_gradient(problem: Loss, x: Params) -> tuple[Array, Params]:
    """Return the loss and its gradient, in closed form if there is one, in the dtypes of x."""
    # Both at once where they share products with A.
    if hasattr(problem, "value_and_gradient"):
        value, grad = problem.value_and_gradient(x)
    elif hasattr(problem, "gradient"):
        value = problem(x)
        grad = problem.gradient(x)
    else:
        value, grad = jax.value_and_grad(problem)(x)
    return jnp.asarray(value), jax.tree.map(lambda leaf, part: part.astype(leaf.dtype), x, grad)


def relative_rounding(carry: Carry) -> float:
    """Return the relative rounding of the less precise of loss and gradient."""
    return max(float(jnp.finfo(part.dtype).eps) for part in (carry.value, carry.norm))
