"""A loss bound to what is not minimised over: further arguments, and leaves that are no floats."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from softntk._core.trained_leaves import trained_leaves
from softntk._core.validation import is_concrete

Params = Any


@jax.tree_util.register_pytree_node_class
class BoundLoss:
    """``function(params, *args)`` as a function of the floating-point leaves of params alone.

    A pytree: its arrays may be traced, and it may be differentiated by them.

    Attributes:
        function: the loss.
        args: its further arguments; numbers are arrays.
        constants: params with None in the place of each leaf that is minimised over.
    """

    # A pytree is also made of what is no function: shapes, None, positions.
    def __init__(self, function: Any, args: Any, constants: Params) -> None:
        self.function = function
        self.args = args
        self.constants = constants

    def complete(self, params: Params) -> Params:
        """Return the params with their constant leaves."""
        return eqx.combine(params, self.constants)

    def __call__(self, params: Params) -> Any:
        """Return the loss."""
        return self.function(self.complete(params), *self.args)  # a loss (params, *args)

    def tree_flatten(self) -> tuple[tuple, None]:
        """Return the children: all of it."""
        return (self.function, self.args, self.constants), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple) -> "BoundLoss":
        """Return it from its children."""
        return cls(*children)


def as_argument(leaf: Any) -> Any:
    """Return a number or a NumPy array as a JAX array, as jit does, anything else as it is."""
    numeric = isinstance(leaf, bool | int | float | complex | np.ndarray | np.number | np.bool_)
    return jnp.asarray(leaf) if numeric else leaf


def split_leaves(name: str, params: Params) -> tuple[Params, Params]:
    """Return the floating-point arrays of params, and the rest of its leaves, which are constants.

    So are the running averages of flax's models (:mod:`softntk._core.trained_leaves`).

    Raises:
        ValueError: there are no floating-point arrays, or leaves that are neither numbers nor
            functions; complex ones.
    """
    leaves = jax.tree.leaves(params)
    _check_leaves(name, params, leaves)
    moves = [
        trained and _is_moving(leaf)
        for leaf, trained in zip(leaves, trained_leaves(params), strict=True)
    ]
    structure = jax.tree.structure(params)
    pairs = list(zip(leaves, moves, strict=True))
    moving = jax.tree.unflatten(
        structure, [jnp.asarray(leaf) if moved else None for leaf, moved in pairs]
    )
    constants = jax.tree.unflatten(structure, [None if moved else leaf for leaf, moved in pairs])
    _check_moving(name, leaves, moving)
    return moving, constants


def _check_leaves(name: str, params: Params, leaves: list) -> None:
    """Refuse params without leaves, plain lists of numbers, and leaves that are no arrays or
    constants.
    """
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got an empty pytree.")
    if isinstance(params, list | tuple) and all(isinstance(leaf, int | float) for leaf in leaves):
        raise ValueError(
            f"{name} must be an array, or a pytree of arrays, got a {type(params).__name__} of "
            f"numbers. Write jnp.asarray({name}, float)."
        )
    for leaf in leaves:
        _check_leaf(name, leaf, alone=len(leaves) == 1)


def _check_moving(name: str, leaves: list, moving: Params) -> None:
    """Refuse params of which nothing can be minimised over, and empty arrays."""
    if not jax.tree.leaves(moving):
        first = next((leaf for leaf in leaves if hasattr(leaf, "dtype")), leaves[0])
        kind = f"dtype {first.dtype}" if hasattr(first, "dtype") else type(first).__name__
        raise ValueError(
            f"{name} must be a floating-point array, or hold some, got {kind}. Convert it first, "
            f"e.g. jnp.asarray({name}, float)."
        )
    for leaf in jax.tree.leaves(moving):
        if leaf.size == 0:
            raise ValueError(f"{name} must not hold empty arrays, got shape {leaf.shape}.")


def _is_moving(leaf: Any) -> bool:
    if isinstance(leaf, float):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_leaf(name: str, leaf: Any, *, alone: bool) -> None:
    dtype = getattr(leaf, "dtype", np.dtype(object))
    array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    if isinstance(leaf, complex) or (array and jnp.issubdtype(dtype, jnp.complexfloating)):
        raise ValueError(
            f"{name} must be real, got complex leaves. Minimise over real and imaginary parts."
        )
    if array and not is_concrete(leaf):
        return
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "fiub":
        if jnp.issubdtype(dtype, jnp.floating):  # bfloat16 and its like
            return
        raise ValueError(f"{name} must hold arrays of numbers, got dtype {leaf.dtype}.")
    if not (array or _is_constant(leaf, alone=alone)):
        raise ValueError(
            f"{name} must be an array, or a pytree of arrays, got a leaf of type "
            f"{type(leaf).__name__}. Of a model with other leaves pass the arrays: "
            "eqx.partition(model, eqx.is_inexact_array)."
        )


def _is_constant(leaf: Any, *, alone: bool) -> bool:
    """Return whether a leaf that is no array may stand in params; alone, only a number may."""
    if alone:
        return isinstance(leaf, float | int)
    return isinstance(leaf, bool | int | float | str) or callable(leaf)


def check_scalar(name: str, loss: Any) -> None:
    """Refuse what is no floating-point scalar; the argument has shape and dtype only."""
    shape = getattr(loss, "shape", None)
    if shape != ():
        what = f"a {type(loss).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(
            f"{name} must return a scalar, the loss; got {what}. Sum the losses of rows, and return nothing beside it."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"{name} must return a floating-point scalar, got dtype {loss.dtype}.")
