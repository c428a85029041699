"""Compiled functions whose closed-over arrays are arguments of the program.

A transform closes over its curvature, and the curvature over the data matrix A. Compiled directly,
A would be copied into the program as a constant, slowly and more than once. Instead the function is
traced first, and the arrays that it closes over are passed to the compiled program as arguments.

Programs are stored per transform or problem and released together with it. What XLA compiled is
shared by transforms and problems whose traces are equal. So a new one, with other data, is traced
again but not compiled again (:mod:`softntk._core.shared_programs`).
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from softntk._core.bound_loss import BoundLoss
from softntk._core.shared_programs import share_program
from softntk._core.validation import is_concrete

# owner (see `_cache_owner`) → {key: (compiled function, its constants)}
_PROGRAM_CACHE: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()

MAX_PROGRAMS_PER_OWNER = 128
"""How many programs an owner keeps: those that were stored last.

The limit is for owners that outlive their problems, which are types.
"""


def split_arrays(tree: PyTree) -> tuple[list, Callable[[list], PyTree]]:
    """Return the arrays of a pytree, and a function that puts arrays back into their places.

    The list has one entry for each leaf, None where a leaf is no array.
    """
    leaves, structure = jax.tree.flatten(tree)
    static_leaves = [None if eqx.is_array(leaf) else leaf for leaf in leaves]

    def merge(arrays: list) -> PyTree:
        pairs = zip(arrays, static_leaves, strict=True)
        return jax.tree.unflatten(
            structure, [static if array is None else array for array, static in pairs]
        )

    return [leaf if eqx.is_array(leaf) else None for leaf in leaves], merge


def has_arrays(tree: PyTree) -> bool:
    """Return whether any leaf of a pytree is an array."""
    return any(map(eqx.is_array, jax.tree.leaves(tree)))


def compile_with_closure(
    name: Hashable,
    tx: Any,
    problem: PyTree,
    function: Callable[..., PyTree],
    *example: PyTree,
    differentiable: bool = False,
) -> Callable[..., PyTree]:
    """Return a compiled ``function(problem, *arguments)`` as a function of the arguments alone.

    Use it for functions that are called repeatedly with a large problem: the compiled program is
    cached.

    Args:
        name: says what the function is; together with tx and the static part of the problem it must
            determine the function.
        tx: a transform, or None.
        problem: a callable. The arrays of a pytree are arguments of the program; what a plain
            function closes over becomes its constants.
        function: the function to compile, of the problem and the arguments.
        example: arguments of the shapes and dtypes that the result is called with.
        differentiable: whether the result has derivatives by the arrays that ``function`` closes
            over. False for a search: its derivatives are implicit, and the host must be able to
            read its numbers.

    Returns:
        A function of the arguments alone.
    """
    # 1. The key: everything that the program depends on but the values of arrays.
    arrays, merge = split_arrays(problem)
    arguments = (arrays, *example)
    shapes = tuple(map(_shape_and_dtype, jax.tree.leaves(arguments)))
    owner = _cache_owner(tx, problem)
    leaves, structure = jax.tree.flatten(problem)
    # The owner must not appear in its own entry, or it would keep itself alive.
    leaves = tuple(None if leaf is owner or eqx.is_array(leaf) else leaf for leaf in leaves)
    precision = jax.config.jax_enable_x64  # pyright: ignore
    key = (name, leaves, structure, jax.tree.structure(arguments), shapes, precision)
    # 2. Compile on the first call. A program with traced constants must not be stored: they would
    #    leak out of the surrounding transformation.
    programs = _PROGRAM_CACHE.setdefault(owner, {})
    if key not in programs:
        run_program, constants = share_program(
            lambda arrays, *arguments: function(merge(arrays), *arguments), arguments
        )
        if not differentiable:
            constants = list(map(jax.lax.stop_gradient, constants))
        if not all(map(is_concrete, constants)):
            return lambda *arguments: run_program(constants, arrays, *arguments)
        programs[key] = run_program, constants
        if len(programs) > MAX_PROGRAMS_PER_OWNER:
            programs.pop(next(iter(programs)))
    run_program, constants = programs[key]
    return lambda *arguments: run_program(constants, arrays, *arguments)


def _shape_and_dtype(leaf: Any) -> tuple:
    """Return all properties of an argument that a compiled program depends on."""
    if not isinstance(leaf, jax.Array):
        leaf = jax.numpy.asarray(leaf)
    return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)


def without_derivatives(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Return ``function(*arguments)`` as a constant for every array that the function closes over.

    Derivatives by the arguments remain.
    """
    arrays, merge = split_arrays(arguments)
    run_program, constants = share_program(lambda arrays: function(*merge(arrays)), (arrays,))
    return run_program(list(map(jax.lax.stop_gradient, constants)), arrays)


def _cache_owner(tx: Any, problem: PyTree) -> Any:
    """Return the object whose lifetime a compiled program shares.

    It is the transform if there is one, else the problem's function; for functions that are pytrees
    it is their type, so that all problems of one kind share their programs.
    """
    if tx is not None:
        return tx.update
    function = problem.function if isinstance(problem, BoundLoss) else problem
    is_pytree = has_arrays(function) or isinstance(function, eqx.Module)
    return type(function) if is_pytree else function
