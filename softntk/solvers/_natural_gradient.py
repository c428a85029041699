r"""Natural gradient for over-parametrised networks: Gauss–Newton in function space.

For the loss Σ_i ℓ(f_i, y_i) + ½λ‖θ‖², with J the Jacobian of the n·k outputs F, g the gradient of
Σℓ in them and Λ = QQᵀ its Hessian, block-diagonal, the damped Gauss–Newton step is

    (JᵀΛJ + (λ + ρ)I)⁻¹ (Jᵀg + λθ)  =  JᵀQ t + (λ/σ)θ,
    (QᵀJJᵀQ + σI) t  =  w − (λ/σ)QᵀJθ,        Qw = g,        σ = λ + ρ,

so that the system has as many unknowns as there are outputs, whatever the number of weights; and
K = JJᵀ is the empirical neural tangent kernel, an operator that is never formed. For ½‖F − Y‖²,
Q = I and w = g = F − Y; for cross-entropy Λ is the Fisher matrix of softmax
(``softntk/_output_losses.py``). Between different outputs that kernel is small where the network is
wide, so that conjugate gradients preconditioned by its mean over outputs, weighted by the curvature
of each point, need few products.

Under a constant kernel one step without ρ and λ fits the training data exactly: gradient descent
needs thousands of steps, at a rate that the smallest eigenvalue decides, while the rate of this
method does not depend on the eigenvalues.

| symbol | meaning | shape |
|---|---|---|
| F, Y, g | ``outputs``, targets, gradient in the outputs | [n, k] |
| K, K̄ | ``kernel``, an operator, and ``mean_kernel`` | on [n, k]; [n, n] |
| t | the solution in function space | [n, k] |
| ρ | ``damping`` · ``kernel_scale``, the mean of K̄'s diagonal | [] |

Source: Zhang, Martens and Grosse (2019), NeurIPS, Fast convergence of natural gradient descent for
overparameterized neural networks; Cai et al. (2019), arXiv 1905.11675 (Gram–Gauss–Newton); Martens
(2020), JMLR 21, New insights and perspectives on the natural gradient method (the generalised
Gauss–Newton matrix); MATHEMATICS.md#natural-gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from softntk._core.validation import (
    check_callable,
    check_flag,
    check_integer,
    check_number,
)
from softntk._output_losses import (
    OutputLoss,
    PointLoss,
    as_output_loss,
    check_targets,
    complete_targets,
)
from softntk.networks import Network
from softntk.solution import Result
from softntk.solvers._diagnostics import (
    Step,
    StepDiagnostics,
    diagnostics_property,
    initial_diagnostics,
)
from softntk.solvers._function_space import (
    DualSolution,
    Params,
    Scalar,
    fits_targets,
    linearise,
    match_gradient,
    solve_dual,
)
from softntk.solvers._network_at_points import as_points, bind_network
from softntk.solvers._newton.model import LossAlongStep, decrease_ratio

# Relative residuals of the conjugate gradients, if none is given.
SQUARED_LOSS_RTOL = 1e-3
OTHER_LOSS_RTOL = 0.1
# How many ridges are tried in one update, at most.
MAX_RIDGE_TRIALS = 10
# Factor by which the ridge rises after a rejected step, and falls after a good one.
RIDGE_FACTOR = 10
# Ratio of actual to predicted decrease above which a step is taken, and above which ρ falls.
MIN_DECREASE_RATIO = 1e-4
GOOD_DECREASE_RATIO = 0.75
# Roundings of ρ below which it does not fall.
MIN_RIDGE_ROUNDINGS = 4


class NaturalGradientState(NamedTuple):
    """State of the natural gradient.

    Attributes:
        count: number of updates.
        conjugate_gradient_steps: products with the kernel, in all.
        evaluations: evaluations of ``value_fn``, in all.
        diagnostics: what ``minimise`` reads, a :class:`softntk.solvers.StepDiagnostics`. ``kind``
            is GAUSS_NEWTON, CONVERGED where the loss is minimal up to rounding, or REJECTED where
            no ridge decreased it; ``damping`` is ρ relative to the mean of the kernel's diagonal,
            ``model_error`` the relative residual of the last solve; ``result`` is FOREIGN_LOSS if
            the gradient is not that of a multiple of the loss. They are attributes of the state as
            well, ``model_error`` under the name ``distortion``.
    """

    count: Int[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    diagnostics: StepDiagnostics

    kind = diagnostics_property("kind", "Kind of the last update, a :class:`softntk.solvers.Step`.")
    result = diagnostics_property("result", "Result code, a :class:`softntk.solution.Result`.")
    damping = diagnostics_property(
        "damping", "Ridge ρ, relative to the mean of the kernel's diagonal."
    )
    negative_curvature = diagnostics_property(
        "negative_curvature", "Always False: the Gauss–Newton matrix is positive semidefinite."
    )
    distortion = diagnostics_property("model_error", "Relative residual of the last solve.")

    @property
    def fits(self) -> Bool[Array, ""]:
        """True where the loss is minimal up to rounding, so that no step is needed."""
        return self.diagnostics.kind == Step.CONVERGED


class _Attempt(NamedTuple):
    """The last of the steps with a larger and larger ridge.

    Attributes:
        count: number of solutions.
        damping: ρ/kernel_scale for the next one.
        products: with the kernel.
        step: of the params.
        solve_error: relative residual of the solve.
        accepted: whether the loss fell.
    """

    count: Int[Array, ""]
    damping: Scalar
    products: Int[Array, ""]
    step: Params
    solve_error: Scalar
    accepted: Bool[Array, ""]


def natural_gradient(
    net: Network | tuple[Callable, ...] | Callable,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "n ..."] | Int[Array | np.ndarray, " n"],
    *,
    loss: str | PointLoss = "squared",
    weight_decay: float = 0.0,
    ridge: float = 1e-6,
    rtol: float | None = None,
    max_cg_steps: int = 100,
    damped: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Return the transform −(JᵀΛJ + σI)⁻¹∇L, a Gauss–Newton step on L = Σ_i ℓ(f_i, y_i) + ½λ‖θ‖².

    Use it to fit networks with more weights than outputs in a few steps. The loss that is minimised
    may be any multiple of L, for example its mean over the points.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x) -> [n, k]`` whose rows do not interact; [n] counts as k = 1.
        x: training points, [n, …].
        y: targets, [n, k], or [n] for one output. With cross-entropy: integer labels [n],
            probabilities [n, k], or probabilities of class 1 for a network with one output.
        loss: ℓ. "squared", ½‖f − y‖²; "cross_entropy", logsumexp(f) − ⟨y, f⟩, or with one output
            log(1 + e^f) − y f; or a function (f [k], y [k]) → scalar of one point that is convex
            in f: its gradient and its Hessian [k, k] come from automatic differentiation.
        weight_decay: λ ≥ 0. Of a network of ``two_layer`` whose readout is not trained, the hidden
            weights alone decay.
        ridge: the first ρ, relative to the mean of the kernel's diagonal, and for a function to the
            largest eigenvalue of its Hessians. It bounds how far the outputs move.
        rtol: relative residual of the conjugate gradients, in the unit of g. None: 1e-3 for the
            squared loss, where steps inexact by that much lose no convergence but the last digits;
            0.1 for other losses, whose curvature changes along the step.
        max_cg_steps: products with the kernel in one solve, at most.
        damped: evaluate ``value_fn`` after the step; while the loss does not fall ρ grows tenfold,
            and where it falls as the model predicts ρ shrinks tenfold, down to rounding.
            Not damped: ρ stays, for loops without ``value_fn``.

    Returns:
        The transform. It computes the step from the params, and does not use the gradient except
        to test its direction: if it is that of another loss, the step is zero, and ``result`` of
        the state, a :class:`NaturalGradientState`, is FOREIGN_LOSS.

        ``update(…, batch=(x, y))`` takes a step on other points, a minibatch: their number may
        change, and ``value``, ``grad`` and ``value_fn`` must be those of the same points. Curvature
        is that of the batch alone, and not averaged over updates; in the directions that the batch
        does not show, the params do not move (without ``weight_decay``). ρ is carried over.

    Raises:
        ValueError: a net that is none; y that does not fit x or the loss, labels that are negative,
            probabilities that do not sum to one, y not finite; an unknown loss, or a function that
            is no scalar; weight_decay negative; ridge, rtol or max_cg_steps not positive; at
            ``init`` or ``update`` params whose outputs do not fit y, labels beyond the number of
            outputs; at ``update`` no params, no ``value_fn`` if damped, a batch that is no pair.

    Example:
        >>> import jax, jax.numpy as jnp, optax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=512, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> x = jax.random.normal(jax.random.key(1), (20, 4)) / 2
        >>> labels = jnp.arange(20) % 3
        >>> def loss(p):
        ...     losses = optax.softmax_cross_entropy_with_integer_labels
        ...     return jnp.mean(losses(net.apply_fn(p, x), labels))
        >>> tx = natural_gradient(net, x, labels, loss="cross_entropy")
        >>> sol = sn.solvers.minimise(loss, params, tx, rtol=1e-3)
        >>> bool(sol.stats["steps"] <= 20), bool(sol.stats["loss"][-1] < 1e-2)
        (True, True)

    Source: see the module.
    """
    # 1. Check the arguments.
    x = as_points(net, x)
    output_loss = as_output_loss("loss", loss)
    targets = check_targets(output_loss, y, len(x), x.dtype)
    weight_decay = check_number("weight_decay", weight_decay, at_least=0)
    ridge = check_number("ridge", ridge, above=0)
    if rtol is None:
        rtol = SQUARED_LOSS_RTOL if output_loss.name == "squared" else OTHER_LOSS_RTOL
    cg_rtol: float = check_number("rtol", rtol, above=0)
    max_cg_steps = check_integer("max_cg_steps", max_cg_steps, at_least=1)
    damped = check_flag("damped", damped)
    apply_fn: Any = net[1] if isinstance(net, tuple) and len(net) > 1 else net
    check_callable("net", apply_fn, "a network, or a function apply_fn(params, x)")
    dtype = targets.dtype if jnp.issubdtype(targets.dtype, jnp.floating) else x.dtype

    def init(params: Params) -> NaturalGradientState:
        zero_count = jnp.zeros((), jnp.int32)
        return NaturalGradientState(
            count=zero_count,
            conjugate_gradient_steps=zero_count,
            evaluations=zero_count,
            diagnostics=initial_diagnostics(ridge, dtype),
        )

    def update(
        updates: Params,
        state: NaturalGradientState,
        params: Params | None = None,
        *,
        value: ArrayLike | None = None,
        grad: Params | None = None,
        value_fn: Callable[[Params], ArrayLike] | None = None,
        batch: tuple[Any, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, NaturalGradientState]:
        if params is None:
            raise ValueError("update needs params: the kernel is taken there.")
        if damped and (value is None or value_fn is None):
            raise ValueError(
                "damped=True needs value and value_fn at update, as optax' line searches do; "
                "or use damped=False."
            )
        # 1. The linear system.
        points, point_targets = x, targets
        if batch is not None:
            points, point_targets = _as_batch(net, output_loss, batch, x.shape[1:])
        network, rows = bind_network(net, apply_fn, points, params, value_fn)
        outputs, pull_back = jax.vjp(network.outputs, network.params)
        outputs = outputs.astype(dtype)
        y = complete_targets(point_targets, outputs)
        curvature = output_loss.curvature(outputs, y)
        system = linearise(network, rows, curvature, pull_back, weight_decay)

        # 2. Whether there is nothing left to do, or the gradient is that of another loss.
        fits = fits_targets(output_loss, system, network.params, outputs, y)
        gradient = eqx.filter(updates if grad is None else grad, eqx.is_inexact_array)
        match = match_gradient(gradient, system)
        is_foreign = ~fits & match.is_foreign

        # 3. Steps with a larger and larger ridge, until the loss falls.
        def try_step(attempt: _Attempt) -> _Attempt:
            solution = solve_dual(system, attempt.damping, cg_rtol, max_cg_steps)
            damping = attempt.damping
            accepted = jnp.asarray(True)
            if damped:
                assert value is not None
                assert value_fn is not None
                loss_along_step = _loss_along_step(network.params, value, value_fn, dtype)
                ratio = _decrease_ratio(
                    loss_along_step,
                    solution,
                    match.multiple,
                    vanishes=output_loss.name == "squared" and weight_decay == 0,
                )
                damping = _next_damping(damping, ratio)
                accepted = ratio > MIN_DECREASE_RATIO
            return _Attempt(
                attempt.count + 1,
                damping,
                attempt.products + solution.products,
                solution.step,
                solution.solve_error,
                accepted,
            )

        def is_unfinished(attempt: _Attempt) -> Bool[Array, ""]:
            return (attempt.count < MAX_RIDGE_TRIALS) & ~attempt.accepted

        no_attempt = _Attempt(
            count=jnp.zeros((), jnp.int32),
            damping=state.damping,
            products=jnp.zeros((), jnp.int32),
            step=jax.tree.map(jnp.zeros_like, network.params),
            solve_error=jnp.zeros((), dtype),
            accepted=fits | is_foreign,
        )
        attempt = lax.while_loop(is_unfinished, try_step, no_attempt)

        # 4. The step, zero unless it was accepted, and the next state.
        is_finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(attempt.step)]
        is_taken = attempt.accepted & ~is_foreign & jnp.stack(is_finite).all()
        kind = jnp.where(is_taken, Step.GAUSS_NEWTON, Step.REJECTED)
        diagnostics = StepDiagnostics(
            kind=jnp.where(fits, Step.CONVERGED, kind).astype(jnp.int32),
            result=jnp.where(is_foreign, Result.FOREIGN_LOSS, state.result).astype(jnp.int32),
            damping=attempt.damping,
            negative_curvature=jnp.asarray(False),
            model_error=attempt.solve_error,
        )
        next_state = NaturalGradientState(
            count=state.count + 1,
            conjugate_gradient_steps=state.conjugate_gradient_steps + attempt.products,
            evaluations=state.evaluations + (attempt.count if damped else 0),
            diagnostics=diagnostics,
        )
        step = jax.tree.map(lambda leaf: jnp.where(is_taken, leaf, 0), attempt.step)
        # Integer leaves of the params do not move, but optax wants an update of each array.
        zeros = jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_array))
        return eqx.combine(step, zeros), next_state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _as_batch(
    net: Any, loss: OutputLoss, batch: Any, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return the points and targets of a minibatch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (x, y), got {type(batch).__name__}.")
    points = as_points(net, batch[0])
    if points.shape[1:] != shape:
        raise ValueError(f"batch must hold points of shape {shape}, got {points.shape[1:]}.")
    return points, check_targets(loss, batch[1], len(points), points.dtype)


def _loss_along_step(
    params: Params, value: ArrayLike, value_fn: Callable[[Params], ArrayLike], dtype: jnp.dtype
) -> LossAlongStep:
    """Return the loss as a function of the step."""

    def loss_after(step: Params) -> Scalar:
        return jnp.asarray(value_fn(optax.apply_updates(params, step)), dtype)

    def slope_after(step: Params) -> Scalar:
        gradient = jax.grad(loss_after)(step)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, step)
        return jnp.sum(jnp.stack(jax.tree.leaves(products))).astype(dtype)

    return LossAlongStep(jnp.asarray(value, dtype), loss_after, slope_after)


def _decrease_ratio(
    loss: LossAlongStep, solution: DualSolution, multiple: Scalar, *, vanishes: bool
) -> Scalar:
    """Return the actual over the predicted decrease of the loss, −1 where it is not finite.

    Args:
        loss: c times the loss of the solution, along its step.
        solution: a step and its model.
        multiple: c.
        vanishes: whether the smallest loss is zero, so that its differences lose no digits.
    """
    predicted_decrease = multiple * solution.predicted_decrease
    if not vanishes:
        slope = multiple * solution.slope
        return decrease_ratio(loss, solution.step, slope, predicted_decrease)
    actual_decrease = loss.value - loss.at(solution.step)
    divisor = jnp.where(predicted_decrease > 0, predicted_decrease, 1)
    ratio = jnp.where(predicted_decrease > 0, actual_decrease / divisor, -1)
    return jnp.where(jnp.isfinite(ratio), ratio, -1)


def _next_damping(damping: Scalar, ratio: Scalar) -> Scalar:
    """Return a tenth of the damping after a good step, ten times as much after a rejected one."""
    min_damping = MIN_RIDGE_ROUNDINGS * jnp.finfo(damping.dtype).eps
    lowered = jnp.maximum(damping / RIDGE_FACTOR, min_damping)
    damping_if_accepted = jnp.where(ratio > GOOD_DECREASE_RATIO, lowered, damping)
    return jnp.where(ratio > MIN_DECREASE_RATIO, damping_if_accepted, RIDGE_FACTOR * damping)
