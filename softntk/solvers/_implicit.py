r"""How a minimiser moves with its problem: the implicit function theorem as a derivative rule.

∇L(x*(p), p) = 0        ⟹        dx* = −(∇²L)⁻¹ (∂_p ∇L) dp.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

from softntk.solvers._programs import taken_apart

_DENSE = 4096  # unknowns up to which the Hessian is factorised as a matrix


def gradient(problem: Any, x: Any) -> Any:
    """In closed form where the problem has one."""
    return problem.gradient(x) if hasattr(problem, "gradient") else jax.grad(problem)(x)


def hessian(problem: Any, x: Any) -> lx.AbstractLinearOperator:
    """As an operator on x."""
    if hasattr(problem, "hessian"):
        return problem.hessian(x)
    # A product is a forward derivative of the gradient.
    product = lambda v: jax.jvp(jax.grad(problem), (x,), (v,))[1]
    return lx.FunctionLinearOperator(product, jax.eval_shape(lambda: x), lx.symmetric_tag)


def attach(problem: Any, x: Any) -> Any:
    """X, a minimiser of the problem that was found without derivatives, with its derivative in the problem's arrays.

    The rule uses itself, so that it can be differentiated again.
    """
    arrays, together = taken_apart(problem)
    return _attach(arrays, x, together)


@eqx.filter_custom_jvp
def _attach(arrays: list, x: Any, together: Callable[[list], Any]) -> Any:
    return x


@_attach.def_jvp
def _(primals: Any, tangents: Any) -> Any:
    arrays, x, together = primals
    x = _attach(arrays, x, together)
    if not jax.tree.leaves(tangents[0]):
        return x, jax.tree.map(jnp.zeros_like, x)
    _, moved = eqx.filter_jvp(lambda arrays: gradient(together(arrays), x), (arrays,), (tangents[0],))
    operator = hessian(together(arrays), x)
    if operator.in_size() <= _DENSE:
        solver = lx.LU()
    else:
        operator, solver = lx.TaggedLinearOperator(operator, lx.positive_semidefinite_tag), lx.CG(rtol=1e-10, atol=0.0)
    change = lx.linear_solve(operator, moved, solver).value
    return x, jax.tree.map(lambda leaf: -leaf, change)
