"""Score functions of users as pytrees, and their evaluation."""

import types
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from softntk._core.validation import is_concrete
from softntk.diffusion._arguments import as_output
from softntk.diffusion._types import ScoreFn

_CONVERSIONS: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()
"""Functions that were converted already: owner → (method, shape, dtype) → pytree."""


def as_pytree(score_fn: ScoreFn, shape: tuple[int, int], dtype: DTypeLike) -> ScoreFn:
    """Return the same function as a pytree whose leaves are its arrays.

    So the arrays are arguments of compiled programs, not constants copied into them. A pytree with
    arrays stays, and a bound method of one too. Any other function is traced once for each shape;
    the arrays that it closes over become the leaves.
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
        converted = eqx.filter_closure_convert(score_fn, *example)
        if is_traced(converted):
            return converted
        conversions[cache_key] = converted
    return conversions[cache_key]


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
        ValueError: no array of real numbers of the shape of x.
    """
    return as_output("score_fn", score_fn(jnp.asarray(t, x.dtype), x), x)
