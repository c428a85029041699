r"""The Gauss–Newton system of a network in function space, its solution, and tests of both.

Symbols are those of :mod:`softntk.solvers._natural_gradient`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk import ntk
from softntk._linalg import conjugate_gradients
from softntk._linalg.norms import scaled_norm, tree_norm
from softntk.networks import Network

Params = PyTree
Scalar = Float[Array, ""]
Outputs = Float[Array, "n k"]

# Roundings of the terms of F below which the residual is zero.
RESIDUAL_ROUNDINGS = 4
# Roundings of the gradient below which its direction is not tested.
GRADIENT_ROUNDINGS = 1e3
# Cosine between the gradient and that of ½‖F − Y‖², at least.
MIN_GRADIENT_COSINE = 0.99


class NetworkAtPoints(NamedTuple):
    """A network on the training points, as a function of its floating-point params.

    Attributes:
        kernel_of: the argument of :func:`softntk.ntk.operator`, a network or a function.
        params: the params that are not constant.
        outputs: params → F, [n, k].
    """

    kernel_of: Network | Callable[[Params, Array], Array]
    params: Params
    outputs: Callable[[Params], Array]


class FunctionSpaceSystem(NamedTuple):
    """The linear system of a step.

    Attributes:
        kernel: K, an operator on [n, k].
        mean_kernel: K̄.
        kernel_scale: mean of the diagonal of K̄.
        residual: r.
        pull_back: v ↦ Jᵀv.
    """

    kernel: lx.AbstractLinearOperator
    mean_kernel: Float[Array, "n n"]
    kernel_scale: Scalar
    residual: Outputs
    pull_back: Callable[[Outputs], tuple[Params]]


def linearise(
    network: NetworkAtPoints,
    rows: Array,
    residual: Outputs,
    pull_back: Callable[[Outputs], tuple[Params]],
) -> FunctionSpaceSystem:
    """Return the kernel as an operator, and its mean over outputs, which preconditions it."""
    kernel = ntk.operator(network.kernel_of, network.params, rows)
    mean_kernel = ntk.empirical(network.kernel_of, network.params, rows, outputs="mean")
    kernel_scale = jnp.mean(jnp.diagonal(mean_kernel))
    return FunctionSpaceSystem(kernel, mean_kernel, kernel_scale, residual, pull_back)


def fits_targets(
    system: FunctionSpaceSystem, params: Params, outputs: Outputs, y: Outputs
) -> Bool[Array, ""]:
    """Return whether the residual is within the rounding of F."""
    # F is a sum of about ∂F/∂θ ∘ θ, whose terms may cancel (antisymmetric networks).
    eps = float(jnp.finfo(y.dtype).eps)
    param_count = sum(leaf.size for leaf in jax.tree.leaves(params))
    param_size = tree_norm(params) / param_count**0.5
    term_size = (jnp.sqrt(system.kernel_scale) * param_size).astype(y.dtype)
    output_size = _root_mean_square(jnp.stack([outputs, y])) + term_size
    return _root_mean_square(system.residual) <= RESIDUAL_ROUNDINGS * eps * output_size


def _root_mean_square(v: Array) -> Float[Array, ""]:
    """Return the root mean square, the norm of the solver's tolerance."""
    return scaled_norm(v) / v.size**0.5


def is_foreign_gradient(gradient: Params, system: FunctionSpaceSystem) -> Bool[Array, ""]:
    """Return whether a gradient has another direction than Jᵀ(F − Y), beyond rounding."""
    # 1. The bound √(n·scale) ‖r‖ of ‖Jᵀr‖ as a unit of Jᵀr, and the largest entry as one of the
    #    gradient, which may be that of any multiple of the loss: no product overflows.
    expected = jax.tree.leaves(system.pull_back(system.residual)[0])
    actual = jax.tree.leaves(gradient)
    row_count = len(system.mean_kernel)
    eps = float(jnp.finfo(system.residual.dtype).eps)
    largest_norm = jnp.sqrt(row_count * system.kernel_scale) * scaled_norm(system.residual)
    largest_entry = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in actual]))
    units = [jnp.where(unit > 0, unit, 1) for unit in (largest_norm, largest_entry)]

    # 2. The cosine between them.
    pairs = [
        (a / units[0].astype(a.dtype), (b / units[1].astype(b.dtype)).astype(a.dtype))
        for a, b in zip(expected, actual, strict=True)
    ]
    product = sum(jnp.sum(a * b) for a, b in pairs)
    expected_norm = jnp.sqrt(sum(jnp.sum(a * a) for a, _ in pairs))
    actual_norm = jnp.sqrt(sum(jnp.sum(b * b) for _, b in pairs))
    differs = product <= MIN_GRADIENT_COSINE * expected_norm * actual_norm
    has_direction = expected_norm > GRADIENT_ROUNDINGS * eps
    return has_direction & jnp.isfinite(actual_norm) & differs


class DualSolution(NamedTuple):
    """The solution v of (K + ρ)v = r.

    Attributes:
        dual: v.
        products: number of products with K.
        remaining_fraction: ‖r − K v‖²/‖r‖², what the linearisation leaves of the loss.
        solve_error: ‖r − (K + ρ)v‖/‖r‖, as conjugate gradients update it.
    """

    dual: Outputs
    products: Int[Array, ""]
    remaining_fraction: Scalar
    solve_error: Scalar


def solve_dual(
    system: FunctionSpaceSystem, damping: Scalar, rtol: float, max_steps: int
) -> DualSolution:
    """Return v = (K + ρ)⁻¹r by conjugate gradients."""
    # 1. The preconditioner (K̄ + ρ)⁻¹.
    mean_kernel = system.mean_kernel
    ridge = damping * system.kernel_scale
    n = len(mean_kernel)
    rounding = 4 * n * jnp.finfo(mean_kernel.dtype).eps * jnp.mean(jnp.diagonal(mean_kernel))
    factor = jnp.linalg.cholesky(
        mean_kernel + (ridge + rounding) * jnp.eye(n, dtype=mean_kernel.dtype)
    )

    def multiply(v: Array) -> Array:
        outputs = v.reshape(system.residual.shape)
        return (system.kernel.mv(outputs) + ridge * outputs).reshape(v.shape)

    def precondition(v: Array) -> Array:
        outputs = v.reshape(system.residual.shape)
        return jax.scipy.linalg.cho_solve((factor, True), outputs).reshape(v.shape)

    # 2. Solve for a right side of root mean square one, in one column.
    right = system.residual
    right_size = _root_mean_square(right)
    unit = jnp.where(right_size > 0, right_size, 1)
    start = conjugate_gradients.start((right / unit).reshape(-1, 1), precondition)
    goals = jnp.full((1, 1), rtol * right.size**0.5, right.dtype)
    state = conjugate_gradients.advance(multiply, precondition, start, goals, max_steps)
    # 3. Both residuals from the recurrence, in units of r: another product with K would be no more
    #    exact than ε‖K‖‖v‖ either, and make the program half as large again.
    kernel_residual = state.residual + ridge * state.x
    return DualSolution(
        dual=unit * state.x.reshape(right.shape),
        products=state.step.astype(jnp.int32),
        remaining_fraction=jnp.sum(kernel_residual**2) / right.size,
        solve_error=jnp.sqrt(jnp.sum(state.residual**2) / right.size),
    )
