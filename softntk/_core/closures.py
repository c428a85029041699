"""Compiled once for each transform and problem: functions whose large constants are arguments of
the program.

A transform closes over its curvature, and that over A. Jitted as it is, A would be copied into the
program, slowly and more than once. So the function is traced by itself first, and what it closed
over is handed to the compiled one.
"""

import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core

from softntk._core.bound_loss import BoundLoss
from softntk._core.validation import is_concrete

_CACHE: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


def split_arrays(tree: Any) -> tuple[list, Callable[[list], Any]]:
    """The arrays of a pytree, None where a leaf is something else, and how to put it together
    again.
    """
    leaves, structure = jax.tree.flatten(tree)
    others = [None if eqx.is_array(leaf) else leaf for leaf in leaves]

    def together(arrays: list) -> Any:
        pairs = zip(arrays, others, strict=True)
        return jax.tree.unflatten(
            structure, [other if array is None else array for array, other in pairs]
        )

    return [leaf if eqx.is_array(leaf) else None for leaf in leaves], together


def has_arrays(tree: Any) -> bool:
    """Whether any leaf of a pytree is an array."""
    return any(map(eqx.is_array, jax.tree.leaves(tree)))


def compile_with_closure(
    name: Any, tx: Any, problem: Any, function: Callable[..., Any], *example: Any
) -> Callable[..., Any]:
    """``function(problem, *arguments)`` for arguments like the example, compiled; from the cache if
    it was there.

    Args:
        name: what the function is; with tx and the static part of the problem it must determine the
            function.
        tx: a transform, or None.
        problem: a callable; the arrays of a pytree are arguments of the program, what a function
            closes over its constants.
        function: to be compiled.
        example: arguments.

    Returns:
        A function of the arguments alone.
    """
    arrays, together = split_arrays(problem)
    arguments = (arrays, *example)
    shapes = tuple(map(_shape_and_dtype, jax.tree.leaves(arguments)))
    owner = _owner(tx, problem)
    leaves, structure = jax.tree.flatten(problem)
    # it must not keep itself alive
    leaves = tuple(None if leaf is owner or eqx.is_array(leaf) else leaf for leaf in leaves)
    precision = jax.config.jax_enable_x64  # pyright: ignore
    key = (name, leaves, structure, jax.tree.structure(arguments), shapes, precision)
    known = _CACHE.setdefault(owner, {})
    if key not in known:
        run, constants = _compiled(
            lambda arrays, *rest: function(together(arrays), *rest), arguments
        )
        if not all(map(is_concrete, constants)):
            return lambda *rest: run(constants, arrays, *rest)
        known[key] = run, constants
    run, constants = known[key]
    return lambda *rest: run(constants, arrays, *rest)


def _shape_and_dtype(leaf: Any) -> tuple:
    """Return all that a program depends on of an argument."""
    if not isinstance(leaf, jax.Array):
        leaf = jax.numpy.asarray(leaf)
    return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)


def without_derivatives(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, whose result has no derivative by anything that the function closes
    over.
    """
    arrays, together = split_arrays(arguments)
    run, constants = _compiled(lambda arrays: function(*together(arrays)), (arrays,))
    return run(constants, arrays)


def _owner(tx: Any, problem: Any) -> Any:
    """Whose life the compiled program shares: the transform's, the function's, or that of all
    problems of a kind.
    """
    if tx is not None:
        return tx.update
    function = problem.function if isinstance(problem, BoundLoss) else problem
    return type(function) if has_arrays(function) else function


def _compiled(function: Callable[..., Any], arguments: tuple) -> tuple[Callable[..., Any], list]:
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure = jax.tree.structure(shapes)

    @jax.jit
    def run(constants: list, *arguments: Any) -> Any:
        filled = jax.extend.core.ClosedJaxpr(closed.jaxpr, constants)
        return jax.tree.unflatten(
            structure, jax.extend.core.jaxpr_as_fun(filled)(*jax.tree.leaves(arguments))
        )

    return run, [jax.lax.stop_gradient(constant) for constant in closed.consts]
