r"""The derivative of a minimiser x* in the arrays p of its problem, by implicit differentiation.

    ∇L(x*(p), p) = 0        ⟹        dx* = −(∇²L)⁺ (∂_p ∇L) dp.

Where the Hessian is singular (an intercept beside a softmax, a column twice) x* is one of many
minimisers, and its derivative is the one of least norm. Functions of x* that are the same for all
minimisers then have the right derivative.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk._core.closures import split_arrays
from softntk._core.typing import Vector
from softntk._linalg.norms import scaled_norm
from softntk.solvers._minimise.loop_state import Loss, Params

# Unknowns up to which the Hessian is factorised as a matrix.
MAX_DENSE_SIZE = 4096
# In units of d ε: eigenvalues below this part of the largest count as zero.
EIGENVALUE_ROUNDINGS = 16
# In units of ε: the relative residual at which conjugate gradients end.
RESIDUAL_ROUNDINGS = 10

Scalar = Float[Array, ""]


def problem_gradient(problem: Loss, x: Params) -> Params:
    """Return the gradient, in closed form if the problem has one."""
    return problem.gradient(x) if hasattr(problem, "gradient") else jax.grad(problem)(x)


def problem_hessian(problem: Loss, x: Params) -> lx.AbstractLinearOperator:
    """Return the Hessian as an operator on x, in closed form if the problem has one."""
    if hasattr(problem, "hessian"):
        return problem.hessian(x)

    # v → the derivative of the gradient along v, in forward mode.
    def multiply(v: Params) -> Params:
        return jax.jvp(jax.grad(problem), (x,), (v,))[1]

    return lx.FunctionLinearOperator(multiply, jax.eval_shape(lambda: x), lx.symmetric_tag)


def attach_derivative(problem: Loss, x: Params) -> Params:
    """Return a minimiser x with its derivative in the arrays of the problem.

    Use it on an x that was found without derivatives. The rule uses itself, so that it can be
    differentiated again.
    """
    arrays, merge = split_arrays(problem)
    return _minimiser(arrays, x, merge)


@eqx.filter_custom_jvp
def _minimiser(arrays: list, x: Params, merge: Callable[[list], Any]) -> Params:
    """Return x; ``merge(arrays)`` is the problem that it minimises."""
    return x


@_minimiser.def_jvp
def _(primals: Any, tangents: Any) -> tuple[Params, Params]:
    """Return x and its tangent, −(∇²L)⁺ times the tangent of the gradient at fixed x."""
    arrays, x, merge = primals
    x = _minimiser(arrays, x, merge)
    if not jax.tree.leaves(tangents[0]):
        return x, jax.tree.map(jnp.zeros_like, x)
    # (∂_p ∇L) dp at fixed x.
    _, gradient_tangent = eqx.filter_jvp(
        lambda arrays: problem_gradient(merge(arrays), x), (arrays,), (tangents[0],)
    )
    gradient_tangent = jax.tree.map(
        _as_tangent, x, gradient_tangent, is_leaf=lambda leaf: leaf is None
    )
    solution = _least_norm_solution(problem_hessian(merge(arrays), x), gradient_tangent)
    return x, jax.tree.map(lambda leaf: -leaf, solution)


def _as_tangent(leaf: Array | None, tangent: Array | None) -> Array | None:
    """Return the tangent of one leaf of the gradient; zeros if it has none, None for no leaf."""
    if leaf is None:
        return None
    return jnp.zeros_like(leaf) if tangent is None else tangent.astype(leaf.dtype)


def _least_norm_solution(operator: lx.AbstractLinearOperator, right: PyTree) -> PyTree:
    """Return the solution of least norm of H s = r, H symmetric; linear in r, and differentiable.

    Nothing is raised: under vmap a result that is not finite concerns its own problem only.
    """
    flat, unravel = ravel_pytree(right)

    def multiply(v: Vector) -> Vector:
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    # custom_linear_solve differentiates the equation H s = r, so that the method of solution needs
    # no derivatives; the products with H need them.
    if len(flat) <= MAX_DENSE_SIZE:
        matrix = lax.stop_gradient(operator.as_matrix()).astype(flat.dtype)
        solution = lax.custom_linear_solve(
            multiply, flat, lambda _, r: _pseudo_inverse_times(matrix, r), symmetric=True
        )
    else:
        solution = lax.custom_linear_solve(multiply, flat, _conjugate_gradients, symmetric=True)
    return unravel(solution)


def _pseudo_inverse_times(H: Float[Array, "d d"], r: Vector) -> Vector:
    """Return H⁺r: by Cholesky where H is safely positive definite, else by its eigenvectors."""
    # 1. Scale H, factorise it, and test its pivots.
    d = len(r)
    min_ratio = EIGENVALUE_ROUNDINGS * d * float(jnp.finfo(H.dtype).eps)
    largest = jnp.max(jnp.abs(H))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = H / unit
    lower = jnp.linalg.cholesky(scaled)
    pivots = jnp.diagonal(lower)
    is_regular = jnp.isfinite(lower).all() & (jnp.min(pivots) ** 2 > d * min_ratio)

    # 2. Solve, by Cholesky with one refinement, or without the eigenvalues that are zero.
    def solve_by_cholesky() -> Vector:
        factor = jnp.where(is_regular, lower, jnp.eye(d, dtype=H.dtype))
        solution = jax.scipy.linalg.cho_solve((factor, True), r)
        return solution + jax.scipy.linalg.cho_solve((factor, True), r - scaled @ solution)

    def solve_by_eigenvectors() -> Vector:
        eigenvalues, vectors = jnp.linalg.eigh(scaled)
        sizes = jnp.abs(eigenvalues)
        resolved = sizes > min_ratio * jnp.max(sizes)
        inverse = jnp.where(resolved, 1 / jnp.where(resolved, eigenvalues, 1), 0)
        solution = vectors @ (inverse * (vectors.T @ r))
        return jnp.where(jnp.isfinite(H).all(), solution, jnp.nan)

    return lax.cond(is_regular, solve_by_cholesky, solve_by_eigenvectors) / unit


class _CgState(NamedTuple):
    """State of conjugate gradients on H s = r, r a unit vector.

    Attributes:
        count: number of steps.
        solution: s.
        residual: r − H s.
        direction: direction of the next step.
        best: the s with the smallest residual.
        least_residual: norm of its residual.
        is_exhausted: whether the curvature along the direction is zero up to rounding.
    """

    count: Int[Array, ""]
    solution: Vector
    residual: Vector
    direction: Vector
    best: Vector
    least_residual: Scalar
    is_exhausted: Bool[Array, ""]


def _conjugate_gradients(multiply: Callable[[Vector], Vector], r: Vector) -> Vector:
    """Return the solution of least norm of H s = r, H positive semidefinite, from s = 0.

    Differs from the textbook: it returns the point with the smallest residual, since rounding takes
    over after it if H is singular.
    """
    eps = float(jnp.finfo(r.dtype).eps)
    norm = scaled_norm(r)
    unit = jnp.where(norm > 0, norm, 1)

    def is_unfinished(state: _CgState) -> Bool[Array, ""]:
        is_solved = ~(scaled_norm(state.residual) > RESIDUAL_ROUNDINGS * eps)
        return (state.count < 2 * len(r)) & ~is_solved & ~state.is_exhausted

    def step(state: _CgState) -> _CgState:
        # 1. The length of the step, zero where the direction has no curvature.
        direction = state.direction
        image = multiply(direction)
        curvature = jnp.dot(direction, image)
        square = jnp.dot(state.residual, state.residual)
        rounding = eps * scaled_norm(direction) * scaled_norm(image)
        is_exhausted = ~(curvature > rounding)
        length = jnp.where(is_exhausted, 0, square / jnp.where(is_exhausted, 1, curvature))

        # 2. The next point, and the best one.
        solution = state.solution + length * direction
        residual = state.residual - length * image
        residual_norm = scaled_norm(residual)
        is_best = residual_norm < state.least_residual
        next_square = jnp.dot(residual, residual)
        conjugation = next_square / jnp.where(square > 0, square, 1)
        return _CgState(
            count=state.count + 1,
            solution=solution,
            residual=residual,
            direction=residual + conjugation * direction,
            best=jnp.where(is_best, solution, state.best),
            least_residual=jnp.minimum(state.least_residual, residual_norm),
            is_exhausted=is_exhausted,
        )

    zero = jnp.zeros_like(r)
    start = _CgState(
        count=jnp.zeros((), jnp.int32),
        solution=zero,
        residual=r / unit,
        direction=r / unit,
        best=zero,
        least_residual=jnp.ones_like(unit),
        is_exhausted=jnp.asarray(False),
    )
    return unit * lax.while_loop(is_unfinished, step, start).best
