r"""Least-squares problems without a closed form: ½‖F(x) − B‖² + ½‖P(x)‖², for a prediction F and a
penalty P of any pytree x.

Gradient, Hessian and Gauss–Newton products come from automatic differentiation of F and P, a few
evaluations each; nothing of the size of a Jacobian is formed. The interface is that of
:class:`softntk.regression.Problem`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PyTree

from softntk._core.records import function_record, static
from softntk._core.validation import as_dtype
from softntk.solution import Result

Structure = tuple[tuple[jax.ShapeDtypeStruct, ...], Any]


def structure_of(example: PyTree) -> Structure:
    """Return shapes and dtypes of a pytree, hashable."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda: example))
    return tuple(leaves), treedef


def nonnegative(weights: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the weights; +inf for a negative one, which ends the domain."""
    return jnp.where(weights >= 0, weights, jnp.inf)


@function_record
class ResidualProblem:
    """½‖F(x) − B‖² + ½‖P(x)‖²; a frozen pytree.

    Attributes:
        data: what F and P need, a pytree.
        maps: ``(data, x) -> (F(x), P(x))``; differentiable, finite for finite x inside of the
            domain.
        target: B, of the shape of F(x).
        structure: shapes and dtypes of x, by :func:`structure_of`.
    """

    data: Any
    target: Float[Array, "..."]
    maps: Callable[[Any, Any], tuple[Array, Array]] = static()
    structure: Structure = static()

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        """Return the loss; +inf outside of the domain."""
        return _loss(self, self._checked(x))

    def predict(self, x: PyTree) -> Float[Array, "..."]:
        """Return F(x)."""
        return _predict(self, self._checked(x))

    def residual(self, x: PyTree) -> Float[Array, "..."]:
        """Return F(x) − B."""
        return self.predict(x) - self.target

    def gradient(self, x: PyTree) -> Any:
        """Return ∇L, of the structure of x; +inf outside of the domain."""
        return _gradient(self, self._checked(x))

    def hessian(self, x: PyTree) -> lx.AbstractLinearOperator:
        """Return ∇²L: a product is a forward derivative of the gradient."""
        x = self._checked(x)
        return lx.FunctionLinearOperator(
            partial(_hessian_product, self, x), self._structure(), lx.symmetric_tag
        )

    def gauss_newton(self, x: PyTree) -> lx.AbstractLinearOperator:
        """Return JᵀJ, J the Jacobian of (F, P): positive semidefinite."""
        x = self._checked(x)
        return lx.FunctionLinearOperator(
            partial(_gauss_newton_product, self, x), self._structure(), lx.positive_semidefinite_tag
        )

    def check(self, x: PyTree) -> Int[Array, ""]:
        """Return SUCCESSFUL, NONFINITE_INPUT, or OVERFLOW (or a normaliser that is lost); works
        under jit.

        OVERFLOW is that of the loss, its gradient or a product of its curvature with ones.
        """
        return _check(self, self._checked(x))

    def _structure(self) -> Any:
        leaves, treedef = self.structure
        return jax.tree.unflatten(treedef, leaves)

    def _checked(self, x: PyTree) -> Any:
        structure = self._structure()
        given = jax.tree.structure(x)
        wanted = jax.tree.structure(structure)
        if given != wanted:
            raise ValueError(f"x must have the structure {wanted}, got {given}.")
        paths = [
            f"x{jax.tree_util.keystr(path)}"
            for path, _ in jax.tree_util.tree_leaves_with_path(structure)
        ]
        leaves = [
            as_dtype(path, leaf, s.dtype, s.shape, finite=False)
            for path, leaf, s in zip(
                paths, jax.tree.leaves(x), jax.tree.leaves(structure), strict=True
            )
        ]
        return jax.tree.unflatten(wanted, leaves)


def _evaluated(p: ResidualProblem, x: PyTree) -> Float[Array, ""]:
    prediction, penalty = p.maps(p.data, x)
    return 0.5 * jnp.sum((prediction - p.target) ** 2) + 0.5 * jnp.sum(penalty**2)


def _select(inside: Array, tree: PyTree, otherwise: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.where(inside, leaf, otherwise), tree)


def _fixed_outside(p: ResidualProblem, x: PyTree) -> tuple[Array, ResidualProblem, Any]:
    """Return whether x is inside of the domain, and p and x, on which nothing depends outside:
    derivatives are zero there.
    """
    inside = jnp.isfinite(_evaluated(p, jax.lax.stop_gradient(x)))
    return inside, *jax.tree.map(
        lambda leaf: jnp.where(inside, leaf, jax.lax.stop_gradient(leaf)), (p, x)
    )


@jax.jit
def _predict(p: ResidualProblem, x: PyTree) -> Array:
    prediction = p.maps(p.data, x)[0]
    return jnp.where(jnp.isnan(prediction), jnp.inf, prediction)


@jax.jit
def _loss(p: ResidualProblem, x: PyTree) -> Float[Array, ""]:
    inside, p, x = _fixed_outside(p, x)
    return jnp.where(inside, _evaluated(p, x), jnp.inf)


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _value_and_gradient(p: ResidualProblem, x: PyTree) -> tuple[Array, Any, Array]:
    """Return the loss, its gradient, and whether both are finite."""
    loss, gradient = jax.value_and_grad(_evaluated, argnums=1)(p, x)
    return loss, gradient, jnp.isfinite(loss) & _all_finite(gradient)


def _hessian_times(p: ResidualProblem, x: PyTree, v: PyTree) -> Any:
    return jax.jvp(lambda x: jax.grad(_evaluated, argnums=1)(p, x), (x,), (v,))[1]


def _gauss_newton_times(p: ResidualProblem, x: PyTree, v: PyTree) -> Any:
    def maps(x: PyTree) -> tuple[Array, Array]:
        return p.maps(p.data, x)

    return jax.vjp(maps, x)[1](jax.jvp(maps, (x,), (v,))[1])[0]


@jax.jit
def _gradient(p: ResidualProblem, x: PyTree) -> Any:
    _, gradient, inside = _value_and_gradient(p, x)
    return _select(inside, gradient, jnp.inf)


def _product_or_zero(p: ResidualProblem, x: PyTree, product: PyTree) -> Any:
    """Return a product; zero outside of the domain, +inf where it is lost in an overflow."""
    product = jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), jnp.inf, leaf), product)
    return _select(_value_and_gradient(p, x)[2], product, 0)


@jax.jit
def _hessian_product(p: ResidualProblem, x: PyTree, v: PyTree) -> Any:
    return _product_or_zero(p, x, _hessian_times(p, x, v))


@jax.jit
def _gauss_newton_product(p: ResidualProblem, x: PyTree, v: PyTree) -> Any:
    return _product_or_zero(p, x, _gauss_newton_times(p, x, v))


@jax.jit
def _check(p: ResidualProblem, x: PyTree) -> Int[Array, ""]:
    numbers = [
        leaf for leaf in jax.tree.leaves((x, p.data, p.target)) if eqx.is_inexact_array(leaf)
    ]
    ones = jax.tree.map(jnp.ones_like, x)
    fits = _value_and_gradient(p, x)[2] & _all_finite(
        (_hessian_times(p, x, ones), _gauss_newton_times(p, x, ones))
    )
    code = jnp.where(fits, Result.SUCCESSFUL, Result.OVERFLOW)
    return jnp.where(_all_finite(numbers), code, Result.NONFINITE_INPUT).astype(jnp.int32)
