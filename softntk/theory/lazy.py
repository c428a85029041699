r"""Distances between a network and its linearisation along gradient descent.

Lazy training means that outputs, weights and kernel stay close to those of the network linearised
at the start. This module measures how close.

**Output scale.** With an output scale s the network is f = sF and the loss ½ΣΣ(f−Y)²/s². The
linearised dynamics of f, with the kernel H of F, are then the same for every s, and the weights
move like 1/s: a larger scale is lazier. A smooth antisymmetric network departs from its
linearisation like s^{-2} (s^{-1} without the antisymmetry), and a ReLU network like s^{-1}. For
ReLU, which is homogeneous, σ acts as an output scale too.

**Width.** Relative to their size, weights move like m^{-1/2}; what that does depends on the
activation. The second-order term of a smooth network is a sum with the random signs of the readout.
It has mean zero (and is exactly zero if the start is antisymmetric: F(w + δ, w − δ) is odd in δ),
so function and kernel change like m^{-1}. At the kink of ReLU, training switches a unit on where
that lowers the loss and off where it does not: the terms have a mean, and both change like
m^{-1/2}.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> from softntk.theory import lazy
    >>> net = sn.networks.two_layer("softmax", width=256, sigma=0.5)
    >>> x = jax.random.normal(jax.random.key(0), (8, 4)) / 2
    >>> _, params = net.init_fn(jax.random.key(1), (-1, 4))
    >>> def run(scale):
    ...     options = {"learning_rate": 0.1, "steps": 100, "scale": scale}
    ...     return lazy.distances(net, params, x, x[:, :1], **options)
    >>> bool(run(10.0).train[-1] < 0.1 * run(1.0).train[-1])
    True

Source: Chizat, Oyallon and Bach (2019), arXiv 1812.07956 (output scale); the exponents in width and
scale are ours.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from softntk import ntk
from softntk._core.records import record
from softntk._core.shared_programs import evaluate_shared
from softntk._core.validation import as_integers, check_integer, check_number, is_concrete
from softntk._core.validation.on_host import Targets, as_targets, check_known
from softntk._linalg.norms import scaled_norm
from softntk.networks import Network, Parameters, Points
from softntk.solution import Result
from softntk.theory._arguments import as_points, check_network, check_parameters

MAX_DESCENT_STEPS = 2**31 - 1
"""Largest number of steps: the counter on the device is an int32."""

DEFAULT_SAMPLE_COUNT = 10
"""Number of steps, spaced geometrically, at which distances are measured by default."""

StepIndices = Sequence[int] | Integer[Array | np.ndarray, " s"]


@record
class Distances:
    """Distances of a network from its linearisation after the steps ``at``; zero at the start.

    Attributes:
        at: the steps, [s].
        train: ‖f − f_lin‖/‖f_lin − f(0)‖ on the training points, Frobenius norms.
        test: the same on the test points; None without test points.
        weights: ‖W − W(0)‖_F/‖W(0)‖_F.
        neuron: max_r ‖w_r − w_r(0)‖ relative to the root mean square of the ‖w_r(0)‖.
        kernel: ‖H − H(0)‖_F/‖H(0)‖_F on the training points.
        loss: ½ΣΣ(f−Y)², of the network; +inf beyond the largest number of the precision.
        linearised_loss: the loss of its linearisation.
        result: a code of :class:`~softntk.solution.Result`, an int32 scalar; DIVERGED where outputs
            or weights are not finite at the last measured step. Distances and losses are +inf from
            the step on at which that happens.
    """

    at: Integer[Array, " s"]
    train: Float[Array, " s"]
    test: Float[Array, " s"] | None
    weights: Float[Array, " s"]
    neuron: Float[Array, " s"]
    kernel: Float[Array, " s"]
    loss: Float[Array, " s"]
    linearised_loss: Float[Array, " s"]
    result: Integer[Array, ""]


def distances(
    net: Network,
    params: Parameters,
    x: Points,
    y: Targets,
    *,
    learning_rate: float,
    steps: int,
    x_test: Float[Array | np.ndarray, "t d"] | None = None,
    at: StepIndices | None = None,
    scale: float = 1.0,
) -> Distances:
    r"""Return distances between full-batch gradient descent and its prediction by the kernel.

    Use it to find out whether a network of this width and scale trains lazily, so that the
    empirical kernel at the start predicts it. The network is f = sF, its loss ½ΣΣ(f−Y)²/s², and its
    prediction

        f_lin(τ) = Y + (I − ηH(0))^τ (f(0) − Y).

    On test points the prediction is that of :func:`softntk.ntk.predict_gd`. H does not depend on s,
    and neither does f_lin if f(0) is zero.

    Args:
        net: a network of :func:`softntk.networks.two_layer`. All of its trained parameters move; W
            is its hidden weights.
        params: its weights at the start.
        x: training points, [n, d].
        y: targets, [n, k], or [n] for one output.
        learning_rate: η, below 2/λ_max(H) if descent is to converge.
        steps: number of steps.
        x_test: more points, [t, d].
        at: steps at which to measure, ascending, in [0, steps]; None for about ten between 1 and
            ``steps``. Memory holds one copy of the weights for each measured step, and a few
            kernels [n, n, k, k].
        scale: s > 0.

    Returns:
        :class:`Distances`.

    Raises:
        ValueError: net no network, or params not of it; learning_rate, steps or scale not positive;
            ``at`` not ascending or outside of [0, steps]; points or targets of wrong shape or
            dtype, empty or not finite; points so large that the kernel at the start is not finite.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=64)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 3))
        >>> x = jax.random.normal(jax.random.key(1), (6, 3))
        >>> options = {"learning_rate": 0.01, "steps": 50, "at": [0, 5, 50]}
        >>> path = distances(net, params, x, x[:, :1], **options)
        >>> path.train.shape, float(path.kernel[0]), bool(path.weights[2] > path.weights[1] > 0)
        ((3,), 0.0, True)

    Source: Chizat, Oyallon and Bach (2019), arXiv 1812.07956.
    """
    # 1. Check the arguments.
    rate = check_number("learning_rate", learning_rate, above=0)
    scale = check_number("scale", scale, above=0)
    steps = check_integer("steps", steps, at_least=1, at_most=MAX_DESCENT_STEPS)
    net = check_network("net", net)
    params = check_parameters("params", params, net)
    x = as_points("x", x, params)
    y = as_targets("y", y, x.shape[0], params.readout.shape[1])
    x_test = None if x_test is None else as_points("x_test", x_test, params)
    measured_steps = _as_measured_steps(steps, at)
    step_array = jnp.asarray(measured_steps)

    # 2. The prediction f_lin by the kernel at the start, and the weights that descent goes through.
    kernel = _check_finite_start("x", ntk.empirical(net, params, x))
    initial_outputs = _check_finite_start("x", scale * net.apply_fn(params, x))
    linearised = ntk.predict_gd(kernel, y, rate, step_array, initial_outputs)
    step_counts = jnp.asarray(np.diff(measured_steps, prepend=0))
    step_size = jnp.asarray(rate, params.hidden.dtype)
    path = _descend(net, params, x, y, step_counts, step_size, jnp.asarray(scale, y.dtype))

    def relative_distance(outputs: Array, linearised: Array, initial: Array) -> Array:
        # At step 0 both norms are rounding.
        return jnp.where(step_array == 0, 0, _relative_gap(outputs, linearised, initial))

    def outputs_on_path(points: Array) -> Array:
        def outputs(path: Parameters, points: Array) -> Array:
            return lax.map(lambda weights: net.apply_fn(weights, points), path)

        return scale * evaluate_shared(outputs, path, points)

    # 3. Functions: on the training points, then on test points through the cross kernel.
    outputs = outputs_on_path(x)
    test_distance = None
    if x_test is not None:
        cross = _check_finite_start("x_test", ntk.empirical(net, params, x_test, x))
        initial_test = _check_finite_start("x_test", scale * net.apply_fn(params, x_test))
        test_distance = relative_distance(
            outputs_on_path(x_test),
            ntk.predict_gd(
                kernel, y, rate, step_array, initial_outputs, cross=cross, f0_test=initial_test
            ),
            initial_test,
        )
    # 4. Weights, losses and kernels.
    weight_change = path.hidden - params.hidden[None]
    weight_norm = scaled_norm(params.hidden)
    largest_change = jnp.max(scaled_norm(weight_change, axis=1), axis=1)
    loss, linearised_loss = (
        0.5 * jnp.sum((f - y[None]) ** 2, axis=(1, 2)) for f in (outputs, linearised)
    )
    is_finite = jnp.all(jnp.isfinite(outputs), axis=(1, 2)) & _are_finite_parameters(path)
    kernel_change = _kernel_changes(net, params, path, is_finite, x, kernel)

    # 5. Distances are +inf once descent has diverged.
    def infinite_if_diverged(distance: Array) -> Array:
        return jnp.where(is_finite & jnp.isfinite(distance), distance, jnp.inf)

    rms_neuron_norm = weight_norm / math.sqrt(params.hidden.shape[1])
    return Distances(
        at=step_array,
        train=infinite_if_diverged(relative_distance(outputs, linearised, initial_outputs)),
        test=None if test_distance is None else infinite_if_diverged(test_distance),
        weights=infinite_if_diverged(_ratio(scaled_norm(weight_change, axis=(1, 2)), weight_norm)),
        neuron=infinite_if_diverged(_ratio(largest_change, rms_neuron_norm)),
        kernel=infinite_if_diverged(kernel_change),
        loss=infinite_if_diverged(loss),
        linearised_loss=infinite_if_diverged(linearised_loss),
        result=jnp.where(is_finite[-1], Result.SUCCESSFUL, Result.DIVERGED).astype(jnp.int32),
    )


def _kernel_changes(
    net: Network,
    params: Parameters,
    path: Parameters,
    is_finite: Bool[Array, " s"],
    x: Array,
    kernel: Array,
) -> Float[Array, " s"]:
    """Return ‖H − H(0)‖_F/‖H(0)‖_F at each measured step, one kernel at a time."""
    kernel_norm = scaled_norm(kernel)
    changes = []
    for i in range(len(is_finite)):
        # Parameters that are not finite have no kernel: those at the start stand for them, and the
        # caller replaces the distance by +inf.
        weights = jax.tree.map(
            lambda leaf, initial, i=i: jnp.where(is_finite[i], leaf[i], initial), path, params
        )
        changes.append(_ratio(scaled_norm(ntk.empirical(net, weights, x) - kernel), kernel_norm))
    return jnp.stack(changes)


def _are_finite_parameters(path: Parameters) -> Bool[Array, " s"]:
    """Return, for each measured step, whether all of the parameters are finite."""
    # All axes but the leading one, which counts the measured steps.
    leaf_flags = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(path)
    ]
    return jnp.all(jnp.stack(leaf_flags), axis=0)


def _check_finite_start(name: str, values: Array) -> Array:
    """Return outputs or kernels at the start; refuse points at which they are not finite."""
    if is_concrete(values) and not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError(
            f"{name} must have finite outputs and a finite kernel at params in {values.dtype}, "
            "got others. Take points (or weights) in another unit."
        )
    return values


def _as_measured_steps(steps: int, at: StepIndices | None) -> np.ndarray:
    """Return the steps at which to measure, ascending, as int32 on the host."""
    if at is None:
        geometric = np.geomspace(1, steps, DEFAULT_SAMPLE_COUNT)
        return np.unique(np.round(geometric).astype(np.int32))
    # They decide the shapes of the result, so that they must not be traced.
    check_known("at", at)
    requirement = f"at must hold ascending integers between 0 and steps = {steps}, got "
    try:
        measured_steps = np.asarray(as_integers("at", at, ("s",)))
    except ValueError as error:
        raise ValueError(f"{requirement}{at!r}: {error}") from None
    if (
        not measured_steps.size
        or measured_steps[0] < 0
        or measured_steps[-1] > steps
        or np.any(np.diff(measured_steps) <= 0)
    ):
        raise ValueError(f"{requirement}{measured_steps.tolist()}.")
    return measured_steps.astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _descend(
    net: Network,
    params: Parameters,
    x: Array,
    y: Array,
    step_counts: Integer[Array, " s"],
    learning_rate: Array,
    scale: Array,
) -> Parameters:
    """Return the parameters on a path of gradient descent on ½‖F − Y/s‖², stacked.

    Entry i is that after the first i + 1 of the ``step_counts``.
    """

    # ½‖f − Y‖²/s² with f = sF, written without the large numbers sF.
    def loss(weights: Parameters) -> Array:
        return 0.5 * jnp.sum((net.apply_fn(weights, x) - y / scale) ** 2)

    def step(_: Array, weights: Parameters) -> Parameters:
        gradient = jax.grad(loss)(weights)
        return jax.tree.map(lambda leaf, slope: leaf - learning_rate * slope, weights, gradient)

    # The outer scan stacks the weights at the measured steps only; the inner loop keeps nothing.
    def advance(weights: Parameters, step_count: Array) -> tuple[Parameters, Parameters]:
        weights = lax.fori_loop(0, step_count, step, weights)
        return weights, weights

    return lax.scan(advance, params, step_counts)[1]


def _ratio(part: Float[Array, "*s"], total: Float[Array, ""]) -> Float[Array, "*s"]:
    """Return part/total; 0/0 is zero, and a positive part of zero is +inf."""
    # The inner where keeps the quotient finite, so that no NaN enters its derivative.
    safe_total = jnp.where(total > 0, total, 1)
    return jnp.where(part == 0, 0, jnp.where(total > 0, part / safe_total, jnp.inf))


def _relative_gap(
    outputs: Float[Array, "s n k"], linearised: Float[Array, "s n k"], initial: Float[Array, "n k"]
) -> Float[Array, " s"]:
    """Return ‖f − f_lin‖/‖f_lin − f(0)‖ at each measured step, zero without any movement."""
    # Frobenius norms over points and outputs.
    gap = scaled_norm(outputs - linearised, axis=(1, 2))
    movement = scaled_norm(linearised - initial[None], axis=(1, 2))
    return gap / jnp.where(movement > 0, movement, 1)
