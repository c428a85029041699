r"""Natural gradient for over-parametrised networks: Gauss–Newton in function space.

For the loss ½‖F(θ) − Y‖², with J the Jacobian of the n·k outputs and r = F − Y,

    (JᵀJ + ρI)⁻¹ Jᵀr  =  Jᵀ (JJᵀ + ρI)⁻¹ r,

so that the system has as many unknowns as there are outputs, whatever the number of weights; and
K = JJᵀ is the empirical neural tangent kernel, an operator that is never formed. Between different
outputs that kernel is small where the network is wide, so that conjugate gradients preconditioned
by I ⊗ K̄, K̄ its mean over outputs, need few products.

Under a constant kernel one step without ρ fits the training data exactly: gradient descent needs
thousands of steps, at a rate that the smallest eigenvalue decides, while the rate of this method
does not depend on the eigenvalues.

| symbol | meaning | shape |
|---|---|---|
| F, Y, r | ``outputs``, ``y``, ``residual`` = F − Y | [n, k] |
| K, K̄ | ``kernel``, an operator, and ``mean_kernel`` | on [n, k]; [n, n] |
| v | ``dual``, the solution of (K + ρI) v = r | [n, k] |
| −Jᵀv | ``step`` | as the params |
| ρ | ``damping`` · ``kernel_scale``, the mean of K̄'s diagonal | [] |

Source: Zhang, Martens and Grosse (2019), NeurIPS, Fast convergence of natural gradient descent for
overparameterized neural networks; Cai et al. (2019), arXiv 1905.11675 (Gram–Gauss–Newton);
MATHEMATICS.md#natural-gradient.
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
    as_floating,
    check_callable,
    check_flag,
    check_integer,
    check_number,
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
    NetworkAtPoints,
    Outputs,
    Params,
    Scalar,
    fits_targets,
    is_foreign_gradient,
    linearise,
    solve_dual,
)

# Solutions with a larger ridge, at most.
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
            is GAUSS_NEWTON, CONVERGED where F = Y up to rounding, or REJECTED where no ridge
            decreased the loss; ``damping`` is ρ relative to the mean of the kernel's diagonal,
            ``model_error`` the relative residual of the last solve; ``result`` is FOREIGN_LOSS if
            the gradient is not that of a multiple of ½‖F − Y‖². They are attributes of the state
            as well, ``model_error`` under the name ``distortion``.
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
        """True where F = Y up to rounding, so that no step is needed."""
        return self.diagnostics.kind == Step.CONVERGED


class _Attempt(NamedTuple):
    """The last of the steps with a larger and larger ridge.

    Attributes:
        count: number of solutions.
        damping: ρ/kernel_scale for the next one.
        products: with the kernel.
        step: −Jᵀv.
        solve_error: relative residual of the solve.
        accepted: whether the loss fell.
    """

    count: Int[Array, ""]
    damping: Scalar
    products: Int[Array, ""]
    step: Params
    solve_error: Scalar
    accepted: Bool[Array, ""]


def _as_training_data(
    net: Any, x: Any, y: Any
) -> tuple[Float[Array, "n ..."], Float[Array, "n k"]]:
    """Return points and targets as floating-point arrays, targets [n, k]; refuse other shapes."""
    x = as_floating("x", x)
    y = as_floating("y", y)
    if x.ndim == 0 or y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
        raise ValueError(
            f"y must have shape [n, k] with as many rows as x, got shapes {y.shape} and {x.shape}."
        )
    if isinstance(net, Network) and x.ndim != 2:
        raise ValueError(
            "x must have shape [n, d], one row a point, for a network of two_layer, "
            f"got shape {x.shape}."
        )
    return x, y.reshape(len(x), -1)


def natural_gradient(
    net: Network | tuple[Callable, ...] | Callable,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "n ..."],
    *,
    ridge: float = 1e-6,
    rtol: float = 1e-3,
    max_cg_steps: int = 100,
    damped: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Return the transform −Jᵀ(JJᵀ + ρI)⁻¹(F − Y), a Gauss–Newton step on ½‖F(θ) − Y‖².

    Use it to fit networks with more weights than outputs in a few steps. The loss may be any
    multiple of ½‖F(θ) − Y‖².

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x) -> [n, k]`` whose rows do not interact; [n] counts as k = 1.
        x: training points, [n, …].
        y: targets, [n, k], or [n] for one output.
        ridge: the first ρ, relative to the mean of the kernel's diagonal. It stands for the change
            of the outputs beyond the linearisation.
        rtol: relative residual of the conjugate gradients; steps inexact by that much lose no
            convergence but the last digits.
        max_cg_steps: products with the kernel in one solve, at most.
        damped: evaluate ``value_fn`` after the step; while the loss does not fall ρ grows tenfold,
            and where it falls as the linearisation predicts ρ shrinks tenfold, down to rounding.
            Not damped: ρ stays, for loops without ``value_fn``.

    Returns:
        The transform. It computes the residual from the params, and does not use the gradient
        except to test its direction: if it is that of another loss, the step is zero, and
        ``result`` of the state, a :class:`NaturalGradientState`, is FOREIGN_LOSS.

    Raises:
        ValueError: a net that is none, y not [n, k] or [n] or not finite, x not [n, …]; ridge, rtol
            or max_cg_steps not positive; at ``init`` or ``update`` params whose outputs are not of
            the shape of y; at ``update`` no params, or no ``value_fn`` if damped.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=512, out_dim=1)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> x = jax.random.normal(jax.random.key(1), (20, 4)) / 2
        >>> y = jnp.sin(x[:, :1])
        >>> loss = lambda p: 0.5 * jnp.sum((net.apply_fn(p, x) - y) ** 2)
        >>> sol = sn.solvers.minimise(loss, params, natural_gradient(net, x, y), rtol=1e-4)
        >>> bool(sol.stats["steps"] <= 8), bool(sol.stats["loss"][-1] < 1e-6 * sol.stats["loss"][0])
        (True, True)

    Source: see the module.
    """
    # 1. Check the arguments.
    x, y = _as_training_data(net, x, y)
    ridge = check_number("ridge", ridge, above=0)
    rtol = check_number("rtol", rtol, above=0)
    max_cg_steps = check_integer("max_cg_steps", max_cg_steps, at_least=1)
    damped = check_flag("damped", damped)
    apply_fn: Any = net[1] if isinstance(net, tuple) and len(net) > 1 else net
    check_callable("net", apply_fn, "a network, or a function apply_fn(params, x)")
    rows = x if isinstance(net, Network) else x.reshape(len(x), -1)

    def bind_network(params: Params, value_fn: Callable | None) -> NetworkAtPoints:
        """Return the network on the training points."""
        if isinstance(net, Network):
            return NetworkAtPoints(net, params, lambda params: apply_fn(params, x))
        # minimise hides constant leaves from the transform; its value_fn completes the params.
        complete = getattr(value_fn, "complete", lambda params: params)
        params, constants = eqx.partition(params, eqx.is_inexact_array)

        def apply_to_rows(params: Params, rows: Array) -> Array:
            points = rows.reshape(-1, *x.shape[1:])
            outputs = apply_fn(complete(eqx.combine(params, constants)), points)
            return jnp.reshape(outputs, (len(points), -1))

        return NetworkAtPoints(apply_to_rows, params, lambda params: apply_to_rows(params, rows))

    def init(params: Params) -> NaturalGradientState:
        zero_count = jnp.zeros((), jnp.int32)
        return NaturalGradientState(
            count=zero_count,
            conjugate_gradient_steps=zero_count,
            evaluations=zero_count,
            diagnostics=initial_diagnostics(ridge, y.dtype),
        )

    def update(
        updates: Params,
        state: NaturalGradientState,
        params: Params | None = None,
        *,
        value: ArrayLike | None = None,
        grad: Params | None = None,
        value_fn: Callable[[Params], ArrayLike] | None = None,
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
        network = bind_network(params, value_fn)
        _check_outputs(jax.eval_shape(network.outputs, network.params), y)
        outputs, pull_back = jax.vjp(network.outputs, network.params)
        outputs = outputs.astype(y.dtype)
        system = linearise(network, rows, outputs - y, pull_back)

        # 2. Whether F = Y already, or the gradient is that of another loss.
        fits = fits_targets(system, network.params, outputs, y)
        gradient = eqx.filter(updates if grad is None else grad, eqx.is_inexact_array)
        is_foreign = ~fits & is_foreign_gradient(gradient, system)

        # 3. Steps with a larger and larger ridge, until the loss falls.
        def try_step(attempt: _Attempt) -> _Attempt:
            solution = solve_dual(system, attempt.damping, rtol, max_cg_steps)
            step = jax.tree.map(lambda leaf: -leaf, pull_back(solution.dual)[0])
            damping = attempt.damping
            accepted = jnp.asarray(True)
            if damped:
                assert value is not None
                assert value_fn is not None
                value_after = value_fn(optax.apply_updates(network.params, step))
                ratio = _decrease_ratio(solution.remaining_fraction, value, value_after)
                damping = _next_damping(damping, ratio)
                accepted = ratio > MIN_DECREASE_RATIO
            return _Attempt(
                attempt.count + 1,
                damping,
                attempt.products + solution.products,
                step,
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
            solve_error=jnp.zeros((), y.dtype),
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


def _check_outputs(outputs: Any, y: Outputs) -> None:
    """Raise ValueError for outputs that have not the shape of the targets."""
    shape = getattr(outputs, "shape", None)
    if shape != y.shape:
        raise ValueError(
            f"y must have the shape of the outputs of net, got {y.shape} and "
            f"{type(outputs).__name__ if shape is None else shape}."
        )


def _decrease_ratio(remaining_fraction: Scalar, value: ArrayLike, value_after: ArrayLike) -> Scalar:
    """Return the actual over the predicted decrease of the loss, −1 where it is not finite.

    The loss may be any multiple of ½‖r‖²: the prediction is relative to its present value.
    """
    # The linearisation predicts the residual r + J s = r − K v after the step s = −Jᵀv.
    dtype = remaining_fraction.dtype
    predicted_decrease = jnp.asarray(value, dtype) * (1 - remaining_fraction)
    actual_decrease = value - jnp.asarray(value_after, dtype)
    divisor = jnp.where(predicted_decrease > 0, predicted_decrease, 1)
    ratio = jnp.where(predicted_decrease > 0, actual_decrease / divisor, -1)
    return jnp.where(jnp.isfinite(ratio), ratio, -1)


def _next_damping(damping: Scalar, ratio: Scalar) -> Scalar:
    """Return a tenth of the damping after a good step, ten times as much after a rejected one."""
    min_damping = MIN_RIDGE_ROUNDINGS * jnp.finfo(damping.dtype).eps
    lowered = jnp.maximum(damping / RIDGE_FACTOR, min_damping)
    kept_or_lowered = jnp.where(ratio > GOOD_DECREASE_RATIO, lowered, damping)
    return jnp.where(ratio > MIN_DECREASE_RATIO, kept_or_lowered, RIDGE_FACTOR * damping)
