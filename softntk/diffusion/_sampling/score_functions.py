"""Users' score functions as pytrees, and their evaluation."""

import types
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from softntk._core.closures import compile_with_closure, split_arrays
from softntk._core.validation import is_concrete
from softntk._core.visible_constants import trace_function
from softntk.diffusion._arguments import as_output
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import ScoreFn

_CONVERSIONS: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()
"""Functions that were converted already: owner → (method, shape, dtype) → pytree."""


def as_pytree(score_fn: ScoreFn, shape: tuple[int, int], dtype: DTypeLike) -> ScoreFn:
    """Return the same function as a pytree whose leaves are its arrays.

    So the arrays are arguments of compiled programs, not constants copied into them. A pytree with
    arrays, or a bound method of one, is not traced. Any other function is traced once for each
    shape, and the arrays that it closes over become the leaves.
    """
    # 1. Pytrees and their methods need no tracing.
    is_method = isinstance(score_fn, types.MethodType)
    if is_method and _has_arrays(score_fn.__self__):
        return jax.tree_util.Partial(score_fn.__func__, _on_device(score_fn.__self__))
    if _has_arrays(score_fn):
        return _on_device(score_fn)
    # 2. Look for an earlier conversion. The cache lives as long as the function, or as the object
    # whose method it is; one that is neither hashable nor weakly referable is traced each time.
    owner = score_fn.__self__ if is_method else score_fn
    method = score_fn.__func__ if is_method else None
    try:
        conversions = _CONVERSIONS.setdefault(owner, {})
    except TypeError:
        conversions = {}
    cache_key = (method, shape, jnp.dtype(dtype))
    # 3. Convert; what holds traced arrays must not outlive its trace in the cache.
    if cache_key not in conversions:
        example = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct(shape, dtype)
        converted = trace_function(score_fn, *example)
        if is_traced(converted):
            return converted
        conversions[cache_key] = converted
    return conversions[cache_key]


def compile_with_score(
    name: str,
    function: Callable[..., PyTree],
    static_arguments: Hashable,
    score_fn: ScoreFn,
    sde: VPSDE,
    *example: PyTree,
) -> Callable[..., PyTree]:
    """Return ``function``, compiled, as a function of ``*arguments`` alone.

    Scores and processes that differ in their arrays only share the program, and so do different
    scores with equal traces. Use it where nothing is traced.

    Args:
        name: says what the function is.
        function: the function to compile, of (score_fn, sde, static_arguments, *arguments).
        static_arguments: shapes and options.
        score_fn: the score, converted by :func:`as_pytree`.
        sde: the process; its numbers are part of the program, its arrays are not.
        example: arguments of the shapes and dtypes that the result is called with.
    """
    arrays, merge = split_arrays(sde)
    leaves, structure = jax.tree.flatten(sde)
    numbers = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    program = compile_with_closure(
        (name, static_arguments, structure, numbers),
        None,
        score_fn,
        lambda score_fn, arrays, *arguments: function(
            score_fn, merge(arrays), static_arguments, *arguments
        ),
        arrays,
        *example,
    )
    return partial(program, arrays)


def is_traced(tree: PyTree) -> bool:
    """Return whether any leaf is traced."""
    return not all(map(is_concrete, jax.tree.leaves(tree)))


def _has_arrays(tree: PyTree) -> bool:
    """Return whether any leaf is an array."""
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(tree))


def _on_device(tree: PyTree) -> Any:
    """Return the pytree with NumPy arrays as JAX arrays."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree
    )


def score_at(score_fn: ScoreFn, t: Array, x: Array) -> Array:
    """Return the score in the dtype of x.

    Raises:
        ValueError: the score is not an array of real numbers of the shape of x.
    """
    return as_output("score_fn", score_fn(jnp.asarray(t, x.dtype), x), x)
