r"""Least-squares problems without a closed form: ½‖F(x) − B‖² + ½‖P(x)‖².

F is a prediction and P a penalty of any pytree x. Gradient, Hessian and Gauss–Newton products come
from automatic differentiation of F and P, a few evaluations each; nothing of the size of a Jacobian
is formed. The interface is that of :class:`softntk.regression.Problem`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk._core.records import function_record, static
from softntk._core.validation import as_dtype
from softntk.solution import Result

Structure = tuple[tuple[jax.ShapeDtypeStruct, ...], Any]


def structure_of(example: PyTree) -> Structure:
    """Return shapes and dtypes of a pytree in a form that is hashable, for a static field."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda: example))
    return tuple(leaves), treedef


def nonnegative(weights: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the weights; +inf for a negative one, so that the loss is outside of its domain."""
    return jnp.where(weights >= 0, weights, jnp.inf)


@function_record
class ResidualProblem:
    """The loss ½‖F(x) − B‖² + ½‖P(x)‖²; a frozen pytree.

    Attributes:
        data: arguments of F and P besides x, a pytree.
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
        """Return ∇²L, zero outside of the domain.

        A product is a forward derivative of the gradient.
        """
        x = self._checked(x)
        return lx.FunctionLinearOperator(
            partial(_hessian_product, self, x), self._structure(), lx.symmetric_tag
        )

    def gauss_newton(self, x: PyTree) -> lx.AbstractLinearOperator:
        """Return JᵀJ, with J the Jacobian of (F, P); zero outside of the domain."""
        x = self._checked(x)
        return lx.FunctionLinearOperator(
            partial(_gauss_newton_product, self, x), self._structure(), lx.positive_semidefinite_tag
        )

    def check(self, x: PyTree) -> Int[Array, ""]:
        """Return SUCCESSFUL, NONFINITE_INPUT or OVERFLOW; works under jit.

        OVERFLOW is that of the loss, its gradient or a product of its curvature with ones, or a
        normaliser that is lost in rounding.
        """
        return _check(self, self._checked(x))

    def _structure(self) -> PyTree:
        """Return shapes and dtypes of x, in the structure of x."""
        leaves, treedef = self.structure
        return jax.tree.unflatten(treedef, leaves)

    def _checked(self, x: PyTree) -> PyTree:
        """Return x with leaves of the right shapes and dtypes, finite or not."""
        structure = self._structure()
        # 1. The structure, by the containers; a leaf may be anything that converts.
        actual_treedef = jax.tree.structure(x)
        expected_treedef = jax.tree.structure(structure)
        if actual_treedef != expected_treedef:
            raise ValueError(f"x must have the structure {expected_treedef}, got {actual_treedef}.")
        # 2. Shape and dtype of each leaf, named by its path in messages.
        expected_leaves = jax.tree_util.tree_leaves_with_path(structure)
        leaves = [
            as_dtype(
                f"x{jax.tree_util.keystr(path)}", leaf, expected.dtype, expected.shape, finite=False
            )
            for (path, expected), leaf in zip(expected_leaves, jax.tree.leaves(x), strict=True)
        ]
        return jax.tree.unflatten(expected_treedef, leaves)


def _evaluate(p: ResidualProblem, x: PyTree) -> Float[Array, ""]:
    """Return the loss, which may be NaN outside of the domain."""
    prediction, penalty = p.maps(p.data, x)
    return 0.5 * jnp.sum((prediction - p.target) ** 2) + 0.5 * jnp.sum(penalty**2)


def _select(condition: Bool[Array, ""], tree: PyTree, otherwise: float | int) -> PyTree:
    """Return the tree if the condition holds, else a tree of its shapes filled with one number."""
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, otherwise), tree)


def _constant_outside_domain(
    p: ResidualProblem, x: PyTree
) -> tuple[Bool[Array, ""], ResidualProblem, PyTree]:
    """Return whether x is inside of the domain; and p and x, whose derivatives are zero if not."""
    # Where the loss is not finite, p and x are replaced by constants: differentiating them would
    # multiply infinities by zeros.
    in_domain = jnp.isfinite(_evaluate(p, jax.lax.stop_gradient(x)))
    return in_domain, *jax.tree.map(
        lambda leaf: jnp.where(in_domain, leaf, jax.lax.stop_gradient(leaf)), (p, x)
    )


@jax.jit
def _predict(p: ResidualProblem, x: PyTree) -> Float[Array, "..."]:
    """Return F(x), +inf where it is NaN."""
    prediction = p.maps(p.data, x)[0]
    return jnp.where(jnp.isnan(prediction), jnp.inf, prediction)


@jax.jit
def _loss(p: ResidualProblem, x: PyTree) -> Float[Array, ""]:
    """Return the loss, with a derivative of zero outside of the domain."""
    in_domain, p, x = _constant_outside_domain(p, x)
    return jnp.where(in_domain, _evaluate(p, x), jnp.inf)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Return whether all entries of a pytree are finite."""
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _value_and_gradient(
    p: ResidualProblem, x: PyTree
) -> tuple[Float[Array, ""], PyTree, Bool[Array, ""]]:
    """Return the loss, its gradient, and whether both are finite."""
    loss, gradient = jax.value_and_grad(_evaluate, argnums=1)(p, x)
    return loss, gradient, jnp.isfinite(loss) & _all_finite(gradient)


# Products with v. Hessian: v → d/dt ∇L(x + tv). Gauss–Newton: v → Jv → JᵀJv.


def _hessian_times(p: ResidualProblem, x: PyTree, v: PyTree) -> PyTree:
    """Return ∇²L(x) v, a forward derivative of the gradient."""
    return jax.jvp(lambda x: jax.grad(_evaluate, argnums=1)(p, x), (x,), (v,))[1]


def _gauss_newton_times(p: ResidualProblem, x: PyTree, v: PyTree) -> PyTree:
    """Return JᵀJ v, with J the Jacobian of (F, P)."""

    def maps(x: PyTree) -> tuple[Array, Array]:
        return p.maps(p.data, x)

    # v → Jv, forward → JᵀJv, backward
    return jax.vjp(maps, x)[1](jax.jvp(maps, (x,), (v,))[1])[0]


@jax.jit
def _gradient(p: ResidualProblem, x: PyTree) -> PyTree:
    """Return ∇L, +inf outside of the domain."""
    _, gradient, in_domain = _value_and_gradient(p, x)
    return _select(in_domain, gradient, jnp.inf)


def _product_or_zero(p: ResidualProblem, x: PyTree, product: PyTree) -> PyTree:
    """Return a product; zero outside of the domain, +inf where it overflows."""
    # NaN stands for infinities of both signs.
    product = jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), jnp.inf, leaf), product)
    return _select(_value_and_gradient(p, x)[2], product, 0)


@jax.jit
def _hessian_product(p: ResidualProblem, x: PyTree, v: PyTree) -> PyTree:
    """Return ∇²L(x) v, never NaN."""
    return _product_or_zero(p, x, _hessian_times(p, x, v))


@jax.jit
def _gauss_newton_product(p: ResidualProblem, x: PyTree, v: PyTree) -> PyTree:
    """Return JᵀJ v, never NaN."""
    return _product_or_zero(p, x, _gauss_newton_times(p, x, v))


@jax.jit
def _check(p: ResidualProblem, x: PyTree) -> Int[Array, ""]:
    """Return the code of :meth:`ResidualProblem.check`."""
    input_arrays = [
        leaf for leaf in jax.tree.leaves((x, p.data, p.target)) if eqx.is_inexact_array(leaf)
    ]
    # A product with ones shows an overflow of the curvature, without its matrix.
    ones = jax.tree.map(jnp.ones_like, x)
    curvature_products = (_hessian_times(p, x, ones), _gauss_newton_times(p, x, ones))
    results_finite = _value_and_gradient(p, x)[2] & _all_finite(curvature_products)
    result_code = jnp.where(results_finite, Result.SUCCESSFUL, Result.OVERFLOW)
    return jnp.where(_all_finite(input_arrays), result_code, Result.NONFINITE_INPUT).astype(
        jnp.int32
    )
