r"""How a minimiser moves with its problem: the implicit function theorem as a derivative rule.

∇L(x*(p), p) = 0        ⟹        dx* = −(∇²L)⁺ (∂_p ∇L) dp.

Where the Hessian is singular (an intercept beside a softmax, a column twice) x* is one of many, and
its derivative the one of least norm: what does not see the others has the right derivative then.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from softntk._core.closures import split_arrays
from softntk._linalg.norms import scaled_norm

_DENSE = 4096  # unknowns up to which the Hessian is factorised as a matrix
_ROUNDINGS = 16  # times d ε: eigenvalues below that part of the largest count as zero

Vector = Float[Array, " d"]


def gradient(problem: Any, x: PyTree) -> Any:
    """In closed form where the problem has one."""
    return problem.gradient(x) if hasattr(problem, "gradient") else jax.grad(problem)(x)


def hessian(problem: Any, x: PyTree) -> lx.AbstractLinearOperator:
    """As an operator on x."""
    if hasattr(problem, "hessian"):
        return problem.hessian(x)
    # A product is a forward derivative of the gradient.
    product = lambda v: jax.jvp(jax.grad(problem), (x,), (v,))[1]
    return lx.FunctionLinearOperator(product, jax.eval_shape(lambda: x), lx.symmetric_tag)


def attach(problem: Any, x: PyTree) -> Any:
    """X, a minimiser of the problem that was found without derivatives, with its derivative in the
    problem's arrays.

    The rule uses itself, so that it can be differentiated again.
    """
    arrays, together = split_arrays(problem)
    return _attach(arrays, x, together)


@eqx.filter_custom_jvp
def _attach(arrays: list, x: PyTree, together: Callable[[list], Any]) -> Any:
    return x


@_attach.def_jvp
def _(primals: Any, tangents: Any) -> Any:
    arrays, x, together = primals
    x = _attach(arrays, x, together)
    if not jax.tree.leaves(tangents[0]):
        return x, jax.tree.map(jnp.zeros_like, x)
    _, moved = eqx.filter_jvp(
        lambda arrays: gradient(together(arrays), x), (arrays,), (tangents[0],)
    )
    moved = jax.tree.map(_as_tangent, x, moved, is_leaf=lambda leaf: leaf is None)
    change = _least_norm_solution(hessian(together(arrays), x), moved)
    return x, jax.tree.map(lambda leaf: -leaf, change)


def _as_tangent(leaf: PyTree, part: Any) -> Any:
    """Return the tangent of one leaf of the gradient: leaves that do not move have none at all,
    constants are no leaves.
    """
    if leaf is None:
        return None
    return jnp.zeros_like(leaf) if part is None else part.astype(leaf.dtype)


def _least_norm_solution(operator: lx.AbstractLinearOperator, right: Any) -> Any:
    """Return the solution of least norm of H s = r, H symmetric; linear in r, and differentiable.

    No result is ever raised: what is not finite concerns its own lane of a vmap only.
    """
    flat, unravel = ravel_pytree(right)

    def product(v: Vector) -> Vector:
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    if len(flat) <= _DENSE:
        matrix = lax.stop_gradient(operator.as_matrix()).astype(flat.dtype)
        solution = lax.custom_linear_solve(
            product, flat, lambda _, r: _pseudo_inverse_times(matrix, r), symmetric=True
        )
    else:
        solution = lax.custom_linear_solve(product, flat, _conjugate_gradients, symmetric=True)
    return unravel(solution)


def _pseudo_inverse_times(H: Float[Array, "d d"], r: Vector) -> Vector:
    """Return H⁺r: by Cholesky where H is safely positive definite, else by its eigenvectors."""
    d = len(r)
    cut = _ROUNDINGS * d * float(jnp.finfo(H.dtype).eps)
    largest = jnp.max(jnp.abs(H))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = H / unit
    lower = jnp.linalg.cholesky(scaled)
    pivots = jnp.diagonal(lower)
    regular = jnp.isfinite(lower).all() & (jnp.min(pivots) ** 2 > d * cut)

    def by_cholesky() -> Vector:
        factor = jnp.where(regular, lower, jnp.eye(d, dtype=H.dtype))
        solution = jax.scipy.linalg.cho_solve((factor, True), r)
        return solution + jax.scipy.linalg.cho_solve((factor, True), r - scaled @ solution)

    def by_eigenvectors() -> Vector:
        values, vectors = jnp.linalg.eigh(scaled)
        sizes = jnp.abs(values)
        resolved = sizes > cut * jnp.max(sizes)
        inverse = jnp.where(resolved, 1 / jnp.where(resolved, values, 1), 0)
        solution = vectors @ (inverse * (vectors.T @ r))
        return jnp.where(jnp.isfinite(H).all(), solution, jnp.nan)

    return lax.cond(regular, by_cholesky, by_eigenvectors) / unit


def _conjugate_gradients(product: Callable[[Vector], Vector], r: Vector) -> Vector:
    """Return the solution of least norm of H s = r, H positive semidefinite, from s = 0.

    The point with the smallest residual: beyond it rounding takes over if H is singular.
    """
    eps = float(jnp.finfo(r.dtype).eps)
    size = scaled_norm(r)
    unit = jnp.where(size > 0, size, 1)
    first = r / unit

    def unfinished(state: tuple) -> Array:
        count, _, residual, *_, done = state
        return (count < 2 * len(r)) & (scaled_norm(residual) > 10 * eps) & ~done

    def step(state: tuple) -> tuple:
        count, s, residual, direction, best, least, _ = state
        image = product(direction)
        curvature = jnp.dot(direction, image)
        square = jnp.dot(residual, residual)
        done = ~(curvature > eps * scaled_norm(direction) * scaled_norm(image))
        length = jnp.where(done, 0, square / jnp.where(done, 1, curvature))
        s = s + length * direction
        residual = residual - length * image
        smaller = scaled_norm(residual) < least
        best = jnp.where(smaller, s, best)
        least = jnp.minimum(least, scaled_norm(residual))
        turn = jnp.dot(residual, residual) / jnp.where(square > 0, square, 1)
        return count + 1, s, residual, residual + turn * direction, best, least, done

    zero = jnp.zeros_like(r)
    start = (0, zero, first, first, zero, jnp.ones_like(unit), jnp.asarray(False))
    return unit * lax.while_loop(unfinished, step, start)[4]
