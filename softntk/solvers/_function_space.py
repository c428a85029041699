r"""The Gauss–Newton system of a network in function space, its solution, and tests of both.

Symbols are those of :mod:`softntk.solvers._natural_gradient`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from softntk import ntk
from softntk._linalg import conjugate_gradients
from softntk._linalg.norms import scaled_norm, tree_norm
from softntk._output_losses import OutputCurvature, OutputLoss
from softntk.solvers._network_at_points import NetworkAtPoints, Params

Scalar = Float[Array, ""]
Outputs = Float[Array, "n k"]

# Roundings of the terms of F below which the residual is zero.
RESIDUAL_ROUNDINGS = 4
# Roundings of the gradient below which its direction is not tested.
GRADIENT_ROUNDINGS = 1e3
# Cosine between the gradient and that of the loss, at least.
MIN_GRADIENT_COSINE = 0.99


class FunctionSpaceSystem(NamedTuple):
    """The linear system of a step.

    Attributes:
        kernel: K, an operator on [n, k].
        mean_kernel: K̄.
        kernel_scale: mean of the diagonal of K̄.
        curvature: g, w and Q of the loss in the outputs.
        decay: λ, of the penalty ½λ‖θ‖²; zero for none.
        decayed_params: θ in the penalty, zeros in place of leaves that are not trained.
        pull_back: v ↦ Jᵀv.
        decayed_outputs: Jθ; None without a penalty.
    """

    kernel: lx.AbstractLinearOperator
    mean_kernel: Float[Array, "n n"]
    kernel_scale: Scalar
    curvature: OutputCurvature
    decay: float
    decayed_params: Params
    pull_back: Callable[[Outputs], tuple[Params]]
    decayed_outputs: Outputs | None

    def gradient(self) -> Params:
        """Return Jᵀg + λθ, of the loss by the params."""
        gradient = self.pull_back(self.curvature.gradient)[0]
        if self.decay == 0:
            return gradient
        return jax.tree.map(
            lambda part, leaf: part + self.decay * leaf, gradient, self.decayed_params
        )


def linearise(
    network: NetworkAtPoints,
    rows: Array,
    curvature: OutputCurvature,
    pull_back: Callable[[Outputs], tuple[Params]],
    decay: float,
) -> FunctionSpaceSystem:
    """Return the kernel as an operator, and its mean over outputs, which preconditions it."""
    kernel = ntk.operator(network.kernel_of, network.params, rows)
    mean_kernel = ntk.empirical(network.kernel_of, network.params, rows, outputs="mean")
    decayed_outputs = None
    if decay:
        _, decayed_outputs = jax.jvp(network.outputs, (network.params,), (network.decayed_params,))
        decayed_outputs = decayed_outputs.astype(curvature.gradient.dtype)
    return FunctionSpaceSystem(
        kernel=kernel,
        mean_kernel=mean_kernel,
        kernel_scale=jnp.mean(jnp.diagonal(mean_kernel)),
        curvature=curvature,
        decay=decay,
        decayed_params=network.decayed_params,
        pull_back=pull_back,
        decayed_outputs=decayed_outputs,
    )


def fits_targets(
    loss: OutputLoss, system: FunctionSpaceSystem, params: Params, outputs: Outputs, y: Outputs
) -> Bool[Array, ""]:
    """Return whether no step can decrease the loss, but for rounding."""
    eps = float(jnp.finfo(y.dtype).eps)
    if system.decay or loss.name == "function":
        # Where the minimum is neither at F = Y nor at infinity, the gradient alone decides.
        return jnp.asarray(False)
    if loss.name == "cross_entropy":
        return jnp.max(jnp.abs(system.curvature.gradient)) <= RESIDUAL_ROUNDINGS * eps
    # F is a sum of about ∂F/∂θ ∘ θ, whose terms may cancel (antisymmetric networks).
    param_count = sum(leaf.size for leaf in jax.tree.leaves(params))
    param_size = tree_norm(params) / param_count**0.5
    term_size = (jnp.sqrt(system.kernel_scale) * param_size).astype(y.dtype)
    output_size = _root_mean_square(jnp.stack([outputs, y])) + term_size
    residual_size = _root_mean_square(system.curvature.gradient)
    return residual_size <= RESIDUAL_ROUNDINGS * eps * output_size


def _root_mean_square(v: Array) -> Float[Array, ""]:
    """Return the root mean square, the norm of the solver's tolerance."""
    return scaled_norm(v) / v.size**0.5


class GradientMatch(NamedTuple):
    """How a gradient compares with that of the loss, Jᵀg + λθ.

    Attributes:
        is_foreign: whether it has another direction, beyond rounding.
        multiple: c, where it is c times that of the loss.
    """

    is_foreign: Bool[Array, ""]
    multiple: Scalar


def match_gradient(gradient: Params, system: FunctionSpaceSystem) -> GradientMatch:
    """Return whether a gradient is that of a multiple of the loss, and of which one."""
    # 1. The bound √(n·scale) ‖g‖ of ‖Jᵀg‖ as a unit of Jᵀg, and the largest entry as one of the
    #    gradient, which may be that of any multiple of the loss: no product overflows.
    expected = jax.tree.leaves(system.gradient())
    actual = jax.tree.leaves(gradient)
    if jax.tree.structure(gradient) != jax.tree.structure(system.decayed_params):
        raise ValueError(
            "updates must be the gradient by params, a pytree of the same structure, got "
            f"{jax.tree.structure(gradient)}."
        )
    output_gradient = system.curvature.gradient
    row_count = len(system.mean_kernel)
    eps = float(jnp.finfo(output_gradient.dtype).eps)
    largest_norm = jnp.sqrt(row_count * system.kernel_scale) * scaled_norm(output_gradient)
    if system.decay:
        largest_norm = largest_norm + system.decay * tree_norm(system.decayed_params)
    largest_entry = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in actual]))
    unit, actual_unit = (
        jnp.where(size > 0, size, 1).astype(output_gradient.dtype)
        for size in (largest_norm, largest_entry)
    )

    # 2. The cosine between them, and the multiple.
    pairs = [
        (a / unit.astype(a.dtype), (b / actual_unit.astype(b.dtype)).astype(a.dtype))
        for a, b in zip(expected, actual, strict=True)
    ]
    inner_product = sum(jnp.sum(a * b) for a, b in pairs)
    expected_square = sum(jnp.sum(a * a) for a, _ in pairs)
    expected_norm = jnp.sqrt(expected_square)
    actual_norm = jnp.sqrt(sum(jnp.sum(b * b) for _, b in pairs))
    differs = inner_product <= MIN_GRADIENT_COSINE * expected_norm * actual_norm
    has_direction = expected_norm > GRADIENT_ROUNDINGS * eps
    ratio = inner_product / jnp.where(expected_square > 0, expected_square, 1)
    return GradientMatch(
        is_foreign=has_direction & jnp.isfinite(actual_norm) & differs,
        multiple=ratio.astype(unit.dtype) * (actual_unit / unit),
    )


class DualSolution(NamedTuple):
    """The solution t of (QᵀKQ + σ) t = w − (λ/σ)QᵀJθ, σ = λ + ρ, and the step that it gives.

    Attributes:
        step: s = −(JᵀQ t + (λ/σ)θ).
        products: number of products with K.
        predicted_decrease: of the loss with the multiple one, by its quadratic model.
        slope: ⟨gradient of that loss, s⟩.
        solve_error: relative residual, as conjugate gradients update it.
    """

    step: Params
    products: Int[Array, ""]
    predicted_decrease: Scalar
    slope: Scalar
    solve_error: Scalar


def solve_dual(
    system: FunctionSpaceSystem, damping: Scalar, rtol: float, max_steps: int
) -> DualSolution:
    """Return the damped Gauss–Newton step, by conjugate gradients in function space."""
    # 1. The preconditioner (D½ K̄ D½ + σ)⁻¹ of every output, D the curvatures of the points.
    curvature = system.curvature
    shape = curvature.gradient.shape
    mean_kernel = system.mean_kernel
    shift = system.decay + damping * system.kernel_scale * curvature.scale
    n = len(mean_kernel)
    root_curvatures = jnp.sqrt(curvature.row_curvatures).astype(mean_kernel.dtype)
    weighted_kernel = root_curvatures[:, None] * mean_kernel * root_curvatures[None]
    rounding = 4 * n * jnp.finfo(mean_kernel.dtype).eps * jnp.mean(jnp.diagonal(weighted_kernel))
    factor = jnp.linalg.cholesky(
        weighted_kernel + (shift + rounding) * jnp.eye(n, dtype=mean_kernel.dtype)
    )

    def multiply(v: Array) -> Array:
        t = v.reshape(shape)
        image = curvature.root_transposed(system.kernel.mv(curvature.root(t)))
        return (image + shift * t).reshape(v.shape)

    def precondition(v: Array) -> Array:
        return jax.scipy.linalg.cho_solve((factor, True), v.reshape(shape)).reshape(v.shape)

    def residual_norm(v: Array) -> Float[Array, "1 1"]:
        return jnp.linalg.norm(curvature.root(v.reshape(shape))).reshape(1, 1)

    # 2. Solve for a right side of root mean square one, in one column.
    # The residual is measured as Q r, in the unit of g: w = g/√Λ is large where points are flat.
    # The step misses −∇L by JᵀQ r, so that it is compared with ∇L, which vanishes at the end, while
    # the right side does not with weight decay.
    right = curvature.whitened
    decay_share = system.decay / shift
    decay_image = jnp.zeros((), right.dtype)
    if system.decayed_outputs is not None:
        decay_image = decay_share * curvature.root_transposed(system.decayed_outputs)
    right = right - decay_image
    right_size = _root_mean_square(right)
    unit = jnp.where(right_size > 0, right_size, 1)
    start = conjugate_gradients.start((right / unit).reshape(-1, 1), precondition)
    right_norm = residual_norm(start.residual)
    if system.decay:
        jacobian_size = jnp.sqrt(jnp.where(system.kernel_scale > 0, system.kernel_scale, 1))
        gradient_size = (tree_norm(system.gradient()) / jacobian_size).astype(right.dtype)
        right_norm = jnp.minimum(right_norm, gradient_size / unit)
    state = conjugate_gradients.advance(
        multiply, precondition, start, rtol * right_norm, max_steps, residual_norm
    )

    # 3. The step.
    t = state.x.reshape(shape)
    step = jax.tree.map(
        lambda leaf: -unit.astype(leaf.dtype) * leaf, system.pull_back(curvature.root(t))[0]
    )
    if system.decay:
        step = jax.tree.map(
            lambda part, leaf: part - decay_share.astype(leaf.dtype) * leaf,
            step,
            system.decayed_params,
        )

    # 4. The model: −QᵀJs, from the residual of the recurrence, in units of the right side. Another
    #    product with K would be no more exact than ε‖K‖‖t‖ either, and make the program half as
    #    large again.
    image = (right / unit).reshape(-1, 1) - state.residual - shift * state.x
    image = image.reshape(shape) + decay_image / unit
    whitened = curvature.whitened / unit
    slope = -unit * (unit * jnp.sum(whitened * image))
    predicted_decrease = unit * (unit * jnp.sum(image * (whitened - 0.5 * image)))
    if system.decay:
        # ⟨λθ, s⟩ and ½λ‖s‖² of the penalty.
        penalty_slope = system.decay * _inner_product(system.decayed_params, step)
        slope = slope + penalty_slope
        half_square = 0.5 * system.decay * _inner_product(step, step)
        predicted_decrease = predicted_decrease - penalty_slope - half_square
    return DualSolution(
        step=step,
        products=state.step.astype(jnp.int32),
        predicted_decrease=predicted_decrease,
        slope=slope,
        solve_error=jnp.squeeze(
            residual_norm(state.residual) / jnp.where(right_norm > 0, right_norm, 1)
        ),
    )


def _inner_product(first: Params, second: Params) -> Scalar:
    """Return the sum of the products of all entries of two pytrees."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))
