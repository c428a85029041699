"""Losses as functions of the trained leaves alone, with every other input bound.

A loss ``function(params, *args)`` may have further arguments, and ``params`` may hold leaves that
are not floating-point arrays. :class:`BoundLoss` stores both, so that solvers see a function of
floating-point arrays only.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from softntk._core.trained_leaves import trained_leaves
from softntk._core.typing import Params
from softntk._core.validation import is_concrete


@jax.tree_util.register_pytree_node_class
class BoundLoss:
    """A loss ``function(params, *args)`` as a function of the trained leaves of params alone.

    It is a pytree: its arrays may be traced, and the loss may be differentiated by them.

    Attributes:
        function: the loss.
        args: its further arguments; numbers among them are stored as arrays.
        constants: params with None in the place of each leaf that is minimised over.
    """

    # The arguments carry no precise types: JAX also builds this pytree from placeholders, such as
    # shapes, None and positions.
    def __init__(self, function: Any, args: PyTree, constants: Params) -> None:
        self.function = function
        self.args = args
        self.constants = constants

    def complete(self, params: Params) -> Params:
        """Return the params together with their constant leaves."""
        return eqx.combine(params, self.constants)

    def __call__(self, params: Params) -> Any:
        """Return the loss at the trained leaves ``params``."""
        return self.function(self.complete(params), *self.args)

    def tree_flatten(self) -> tuple[tuple, None]:
        """Return the three attributes as children, without static data."""
        return (self.function, self.args, self.constants), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple) -> "BoundLoss":
        """Return the loss made of these children."""
        return cls(*children)


def as_argument(leaf: object) -> Any:
    """Return a number or a NumPy array as a JAX array, as jit does, and anything else unchanged."""
    is_numeric = isinstance(leaf, bool | int | float | complex | np.ndarray | np.number | np.bool_)
    return jnp.asarray(leaf) if is_numeric else leaf


def split_leaves(name: str, params: Params) -> tuple[Params, Params]:
    """Return the trained floating-point arrays of params, and all other leaves as constants.

    Constants include the running averages of flax's models (:mod:`softntk._core.trained_leaves`).
    Both results have the structure of ``params``, with None in the place of the missing leaves.

    Raises:
        ValueError: params hold no floating-point array, an empty one, a complex leaf, or a leaf
            that is neither a number nor a string nor a function.
    """
    # 1. Refuse leaves that cannot be part of params at all.
    leaves = jax.tree.leaves(params)
    _check_leaves(name, params, leaves)
    # 2. Decide for each leaf whether it is minimised over, and split accordingly.
    is_variable = [
        is_trained and _is_floating(leaf)
        for leaf, is_trained in zip(leaves, trained_leaves(params), strict=True)
    ]
    structure = jax.tree.structure(params)
    flagged_leaves = list(zip(leaves, is_variable, strict=True))
    variables = jax.tree.unflatten(
        structure, [jnp.asarray(leaf) if flag else None for leaf, flag in flagged_leaves]
    )
    constants = jax.tree.unflatten(
        structure, [None if flag else leaf for leaf, flag in flagged_leaves]
    )
    # 3. Something must be left to minimise over.
    _check_variables(name, leaves, variables)
    return variables, constants


def _check_leaves(name: str, params: Params, leaves: list) -> None:
    """Refuse params without leaves, plain lists of numbers, and leaves of unsupported types."""
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got an empty pytree.")
    # [1.0, 2.0] is a pytree of two leaves, but an array of two entries is meant.
    if isinstance(params, list | tuple) and all(isinstance(leaf, int | float) for leaf in leaves):
        raise ValueError(
            f"{name} must be an array, or a pytree of arrays, got a {type(params).__name__} of "
            f"numbers. Write jnp.asarray({name}, float)."
        )
    for leaf in leaves:
        _check_leaf(name, leaf, is_only_leaf=len(leaves) == 1)


def _check_variables(name: str, leaves: list, variables: Params) -> None:
    """Refuse params with nothing to minimise over, and empty arrays."""
    if not jax.tree.leaves(variables):
        example_leaf = next((leaf for leaf in leaves if hasattr(leaf, "dtype")), leaves[0])
        has_dtype = hasattr(example_leaf, "dtype")
        kind = f"dtype {example_leaf.dtype}" if has_dtype else type(example_leaf).__name__
        raise ValueError(
            f"{name} must be a floating-point array, or hold some, got {kind}. Convert it first, "
            f"e.g. jnp.asarray({name}, float)."
        )
    for leaf in jax.tree.leaves(variables):
        if leaf.size == 0:
            raise ValueError(f"{name} must not hold empty arrays, got shape {leaf.shape}.")


def _is_floating(leaf: Any) -> bool:
    """Return whether a leaf is a Python float or a floating-point array."""
    if isinstance(leaf, float):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_leaf(name: str, leaf: Any, *, is_only_leaf: bool) -> None:
    """Refuse a complex leaf, an array of no numbers, and an object that is no constant either."""
    dtype = getattr(leaf, "dtype", np.dtype(object))
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    if isinstance(leaf, complex) or (is_array and jnp.issubdtype(dtype, jnp.complexfloating)):
        raise ValueError(
            f"{name} must be real, got complex leaves. Minimise over real and imaginary parts."
        )
    # The dtype of a traced array is numeric in any case.
    if is_array and not is_concrete(leaf):
        return
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "fiub":
        # NumPy does not know bfloat16 and similar types as floating-point kinds; JAX does.
        if jnp.issubdtype(dtype, jnp.floating):
            return
        raise ValueError(f"{name} must hold arrays of numbers, got dtype {leaf.dtype}.")
    if not (is_array or _is_constant(leaf, is_only_leaf=is_only_leaf)):
        raise ValueError(
            f"{name} must be an array, or a pytree of arrays, got a leaf of type "
            f"{type(leaf).__name__}. If a model has such leaves, pass its arrays only: "
            "eqx.partition(model, eqx.is_inexact_array)."
        )


def _is_constant(leaf: object, *, is_only_leaf: bool) -> bool:
    """Return whether a leaf that is no array may be a constant; an only leaf must be a number."""
    if is_only_leaf:
        return isinstance(leaf, float | int)
    return isinstance(leaf, bool | int | float | str) or callable(leaf)


def check_scalar(name: str, loss: Any) -> None:
    """Refuse a loss that is no floating-point scalar; only its shape and dtype are read."""
    shape = getattr(loss, "shape", None)
    if shape != ():
        description = f"a {type(loss).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(
            f"{name} must return a scalar, the loss; got {description}. Sum the losses of rows, "
            "and return nothing beside it."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"{name} must return a floating-point scalar, got dtype {loss.dtype}.")
