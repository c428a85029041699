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
    output_size = _root_mean_square(outputs) + _root_mean_square(y) + term_size
    return _root_mean_square(system.residual) <= RESIDUAL_ROUNDINGS * eps * output_size


def _root_mean_square(v: Array) -> Float[Array, ""]:
    """Return the root mean square, the norm of the solver's tolerance."""
    return scaled_norm(v) / v.size**0.5


def relative_norm(v: Array, reference: Array) -> Float[Array, ""]:
    """Return ‖v‖/‖reference‖; zero for a zero reference."""
    norm = scaled_norm(reference)
    return jnp.where(norm > 0, scaled_norm(v) / jnp.where(norm > 0, norm, 1), 0)


def is_foreign_gradient(gradient: Params, system: FunctionSpaceSystem) -> Bool[Array, ""]:
    """Return whether a gradient has another direction than Jᵀ(F − Y), beyond rounding."""
    residual_norm = scaled_norm(system.residual)
    row_count = len(system.mean_kernel)
    eps = float(jnp.finfo(system.residual.dtype).eps)
    rounding = GRADIENT_ROUNDINGS * eps * jnp.sqrt(row_count * system.kernel_scale) * residual_norm
    expected, expected_norm = _normalise_leaves(system.pull_back(system.residual)[0])
    actual, actual_norm = _normalise_leaves(gradient)
    # In unit vectors, so that no product overflows.
    products = [jnp.sum(a * b.astype(a.dtype)) for a, b in zip(expected, actual, strict=True)]
    cosine = sum(part.astype(expected_norm.dtype) for part in products)
    differs = cosine < MIN_GRADIENT_COSINE
    return (expected_norm > rounding) & jnp.isfinite(actual_norm) & differs


def _normalise_leaves(tree: Params) -> tuple[list, Scalar]:
    """Return the leaves of a pytree divided by its norm, and the norm."""
    norm = tree_norm(tree)
    divisor = jnp.where(norm > 0, norm, 1)
    return [leaf / divisor.astype(leaf.dtype) for leaf in jax.tree.leaves(tree)], norm


class DualSolution(NamedTuple):
    """The solution v of (K + ρ)v = r.

    Attributes:
        dual: v.
        products: number of products with K.
        kernel_product: K v.
        solve_error: ‖r − (K + ρ)v‖/‖r‖.
    """

    dual: Outputs
    products: Int[Array, ""]
    kernel_product: Outputs
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
    dual = unit * state.x.reshape(right.shape)
    kernel_product = system.kernel.mv(dual)
    return DualSolution(
        dual=dual,
        products=state.step.astype(jnp.int32),
        kernel_product=kernel_product,
        solve_error=relative_norm(right - (kernel_product + ridge * dual), right),
    )
