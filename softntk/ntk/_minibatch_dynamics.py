"""Minibatch gradient descent under a constant kernel: its mean, and how far runs differ."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import check_integer, check_key
from softntk._linalg.gram_arrays import Gram, Number
from softntk._output_losses import PointLoss, as_output_loss
from softntk.ntk._arguments import Cross, Targets, TestTargets, as_problem
from softntk.ntk._dynamics_arguments import (
    Labels,
    Steps,
    as_descent,
    as_loss_targets,
    as_momentum,
    as_steps,
    operator_of,
)
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._simulated_dynamics import simulate_minibatches


@record
class MinibatchPrediction:
    """Outputs of minibatch gradient descent over random batches.

    Attributes:
        mean: over the runs, [s, n, k], or [s, t, k] at test points.
        spread: standard deviation of one run, of the same shape.
        standard_error: of the mean, spread/√runs.
    """

    mean: Float[Array, "s rows k"]
    spread: Float[Array, "s rows k"]
    standard_error: Float[Array, "s rows k"]


def predict_sgd(
    gram: Gram | GramOperator,
    y: Targets | Labels,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    batch_size: int,
    key: PRNGKeyArray,
    runs: int = 32,
    loss: str | PointLoss = "squared",
    momentum: Number = 0.0,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
) -> MinibatchPrediction:
    r"""Return mean and spread of the outputs of minibatch gradient descent, for a constant kernel.

    Use it to see how much of a training curve is the noise of the batches. Each step draws
    ``batch_size`` points without replacement, independently of the last step, and goes along n/b
    times the gradient of their losses, whose mean is the gradient of the sum over all points. On
    the squared loss the mean over all batches is :func:`softntk.ntk.predict_gd`, exactly, since a
    step is linear in the outputs; on other losses it is not.

    Args:
        gram: H, as for :func:`softntk.ntk.predict_gd`.
        y: targets, [n, k], or labels, as for :func:`softntk.ntk.predict_gd`.
        learning_rate: η > 0, of the sum over all points: η n of the mean over a batch.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]; None as for :func:`softntk.ntk.predict_gd`.
        batch_size: b, between 1 and n.
        key: of the batches.
        runs: how many are simulated, at least 2; each costs as many products with H as the largest
            number of steps.
        loss: as for :func:`softntk.ntk.predict_gd`.
        momentum: β in [0, 1).
        cross: kernel between test and training points, as for :func:`softntk.ntk.predict_gd`.
        f0_test: outputs at the test points at the start, [t, k]; None as for f0.

    Returns:
        A :class:`MinibatchPrediction`.

    Raises:
        ValueError: as for :func:`softntk.ntk.predict_gd`; batch_size not between 1 and n, runs
            below 2, no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import ntk
        >>> gram, y = jnp.eye(4), jnp.ones((4, 1))
        >>> options = {"batch_size": 2, "key": jax.random.key(0), "runs": 256}
        >>> prediction = ntk.predict_sgd(gram, y, 0.25, jnp.array([2]), **options)
        >>> exact = ntk.predict_gd(gram, y, 0.25, jnp.array([2]))
        >>> bool((jnp.abs(prediction.mean - exact) < 5 * prediction.standard_error).all())
        True

    Source: MATHEMATICS.md#training-dynamics.
    """
    # 1. Check the arguments.
    output_loss = as_output_loss("loss", loss)
    targets = as_loss_targets(output_loss, y, gram, f0)
    problem = as_problem(gram, targets, f0, cross, f0_test, own_start=True)
    times = as_descent(learning_rate, as_steps(steps), problem)
    beta = as_momentum(momentum, problem.y.dtype)
    n = len(problem.y)
    batch_size = check_integer("batch_size", batch_size, at_least=1)
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the number of points, {n}, got {batch_size}.")
    runs = check_integer("runs", runs, at_least=2)
    keys = jax.random.split(check_key("key", key), runs)

    # 2. Simulate the runs, and take their moments.
    outputs = simulate_minibatches(
        output_loss, batch_size, beta, times, operator_of(gram), problem, keys
    )
    spread = jnp.std(outputs, axis=0, ddof=1)
    return MinibatchPrediction(
        mean=jnp.mean(outputs, axis=0), spread=spread, standard_error=spread / runs**0.5
    )
