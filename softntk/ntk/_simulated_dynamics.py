r"""Training under a constant kernel without a closed form: other losses, momentum, minibatches.

A linear network, F(θ) = F(0) + J(θ − θ₀), moves by θ − θ₀ = Jᵀc, so that its outputs follow the
coefficients c [n, k] alone, F = F(0) + H c with H = JJᵀ. With g(F) the gradient of the loss in the
outputs, gradient descent with momentum β (``optax.sgd``) and gradient flow are

    a_{τ+1} = β a_τ + g(F_τ),      c_{τ+1} = c_τ − η a_{τ+1};        dc/dt = −g(F(0) + H c).

A step costs one product with H. Test points need the product of their kernel with c where outputs
are asked for, and nowhere else.

Source: MATHEMATICS.md#training-dynamics.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._core.ode import diffrax, step_controller
from softntk._core.validation import check_number, is_concrete
from softntk._linalg.products import product
from softntk._output_losses import OutputLoss
from softntk.ntk._arguments import Problem, apply_cross, saturate_outputs
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._spectral_filters import Descent
from softntk.solution import NumericalError, Result

Outputs = Float[Array, "n k"]

# Steps of the integrator, at most.
MAX_FLOW_STEPS = 16384
# Default tolerances of a step of the flow, by precision.
FLOW_RTOL = {"float32": 1e-5, "float64": 1e-9}


class TrainingState(NamedTuple):
    """Outputs and coefficients during descent.

    Attributes:
        outputs: F, [n, k].
        coefficients: c, [n, k].
        velocity: a, [n, k].
        step: τ.
    """

    outputs: Outputs
    coefficients: Outputs
    velocity: Outputs
    step: Int[Array, ""]


def multiply(op: GramOperator | None, problem: Problem, vectors: Outputs) -> Outputs:
    """Return H v for v [n, k]: a matrix, an operator on [n], or one on [n, k]."""
    if op is None:
        assert problem.matrix is not None
        columns = vectors.reshape(len(problem.matrix), -1)
        return product(problem.matrix, columns).reshape(vectors.shape)
    image = op.mm(vectors) if len(op.shape) == 1 else op.mv(vectors)
    return image.astype(vectors.dtype)


def initial_state(problem: Problem) -> TrainingState:
    """Return F(0), and no movement."""
    zeros = jnp.zeros_like(problem.y)
    outputs = problem.y + problem.scale * problem.residual
    return TrainingState(outputs, zeros, zeros, jnp.zeros((), int))


def _select_result(problem: Problem, state: TrainingState) -> Outputs:
    """Return what is recorded: F, or c where test points are asked for."""
    return state.outputs if problem.cross is None else state.coefficients


def _at_points(problem: Problem, recorded: Float[Array, "s n k"]) -> Float[Array, "s rows k"]:
    """Return F, or F_test = F_test(0) + H_test c."""
    if problem.cross is None:
        return saturate_outputs(recorded)
    return saturate_outputs(problem.start[None] + apply_cross(recorded, problem))


def _descend(
    gradient: Callable[[TrainingState], Outputs],
    momentum: Float[Array, ""],
    times: Descent,
    op: GramOperator | None,
    problem: Problem,
) -> Float[Array, "s n k"]:
    """Return what is recorded after each number of steps, in any order."""
    # 1. One step: one product with H.
    rate = times.rates[0] if times.rates.size else jnp.zeros((), problem.y.dtype)

    def take_step(_: Array | int, state: TrainingState) -> TrainingState:
        velocity = momentum * state.velocity + gradient(state)
        return TrainingState(
            outputs=state.outputs - rate * multiply(op, problem, velocity),
            coefficients=state.coefficients - rate * velocity,
            velocity=velocity,
            step=state.step + 1,
        )

    # 2. From one requested number of steps to the next, in ascending order.
    def advance(state: TrainingState, target: Array) -> tuple[TrainingState, Outputs]:
        state = lax.fori_loop(state.step, target.astype(state.step.dtype), take_step, state)
        return state, _select_result(problem, state)

    order = jnp.argsort(times.steps)
    _, recorded = lax.scan(advance, initial_state(problem), times.steps[order])
    return recorded[jnp.argsort(order)]


@partial(jax.jit, static_argnums=0)
def simulate_descent(
    loss: OutputLoss,
    momentum: Float[Array, ""],
    times: Descent,
    op: GramOperator | None,
    problem: Problem,
) -> Float[Array, "s rows k"]:
    """Return outputs of gradient descent after each number of steps."""

    def gradient(state: TrainingState) -> Outputs:
        return loss.gradient(state.outputs, problem.y)

    return _at_points(problem, _descend(gradient, momentum, times, op, problem))


@partial(jax.jit, static_argnums=(0, 1))
def simulate_minibatches(
    loss: OutputLoss,
    batch_size: int,
    momentum: Float[Array, ""],
    times: Descent,
    op: GramOperator | None,
    problem: Problem,
    keys: Array,
) -> Float[Array, "r s rows k"]:
    """Return outputs of minibatch gradient descent, one run for each key.

    A step takes ``batch_size`` points without replacement, and the gradient of their losses times
    n/batch_size, whose mean is that of the sum over all points.
    """
    n = len(problem.y)

    def run(key: PRNGKeyArray) -> Float[Array, "s rows k"]:
        def gradient(state: TrainingState) -> Outputs:
            step_key = jax.random.fold_in(key, state.step)
            is_chosen = jax.random.permutation(step_key, jnp.arange(n) < batch_size)
            gradient = loss.gradient(state.outputs, problem.y) * (n / batch_size)
            return jnp.where(is_chosen[:, None], gradient, 0)

        return _at_points(problem, _descend(gradient, momentum, times, op, problem))

    return lax.map(run, keys)


def simulate_flow(
    loss: OutputLoss,
    times: Float[Array, " s"],
    op: GramOperator | None,
    problem: Problem,
    rtol: float | None,
) -> Float[Array, "s rows k"]:
    """Return outputs of gradient flow at each time.

    Raises:
        NumericalError: more steps were needed than there are. Under a transformation the outputs
            are then +inf.
    """
    if rtol is None:
        rtol = FLOW_RTOL[str(problem.y.dtype)]
    tolerance: float = check_number("rtol", rtol, above=0)
    outputs, reached = _integrate(loss, tolerance, times, op, problem)
    if is_concrete(reached) and not bool(reached):
        raise NumericalError(
            f"{Result.MAX_STEPS.name}: {MAX_FLOW_STEPS} steps do not reach the last time, "
            f"{float(np.max(np.asarray(times))):.3g}. Ask for earlier times, a larger rtol, or "
            "predict_gd with steps near 1/λ_max."
        )
    return outputs


@partial(jax.jit, static_argnums=(0, 1))
def _integrate(
    loss: OutputLoss, rtol: float, times: Array, op: GramOperator | None, problem: Problem
) -> tuple[Float[Array, "s rows k"], Array]:
    """Return the outputs at each time, and whether the last one was reached."""
    dfx = diffrax()

    # 1. The state is F, and c where test points need it, so that both are as exact as asked for.
    def field(_: Array, state: TrainingState, __: None) -> TrainingState:
        gradient = loss.gradient(state.outputs, problem.y)
        still = jnp.zeros_like(gradient)
        return TrainingState(
            outputs=-multiply(op, problem, gradient),
            coefficients=-gradient if problem.cross is not None else still,
            velocity=still,
            step=jnp.zeros_like(state.step),
        )

    # 2. Integrate from zero to the last time, and keep the times on the way, in ascending order.
    start = initial_state(problem)._replace(step=jnp.zeros((), problem.y.dtype))
    order = jnp.argsort(times)
    last_time = jnp.max(times, initial=0)
    # The interval must not be empty.
    end = jnp.where(last_time > 0, last_time, 1)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(field),
        dfx.Tsit5(),
        jnp.zeros_like(end),
        end,
        None,
        start,
        saveat=dfx.SaveAt(ts=times[order]),
        stepsize_controller=step_controller()(rtol=rtol, atol=rtol),
        max_steps=MAX_FLOW_STEPS,
        throw=False,
    )
    recorded = jax.vmap(lambda state: _select_result(problem, state))(solution.ys)
    reached = solution.result == dfx.RESULTS.successful
    outputs = _at_points(problem, recorded[jnp.argsort(order)])
    return jnp.where(reached, outputs, jnp.inf), reached
