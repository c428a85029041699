"""Which leaves of a model are trained: libraries keep other things beside the weights."""

import sys
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax

FLAX_CONSTANTS = ("batch_stats", "cache", "intermediates")
"""Collections of flax.linen's variables that no gradient reaches."""


def trained_leaves(params: Any) -> list[bool]:
    """Return, for each leaf in order, whether it is trained if it is a floating-point number or
    array.

    Of flax.linen's variables the collections of ``FLAX_CONSTANTS`` are not, of flax.nnx's nothing
    but ``nnx.Param`` is, and of an equinox module Python's floats are not (rates, probabilities).
    """
    if isinstance(params, Mapping) and "params" in params:  # variables of flax.linen
        paths, _ = jax.tree_util.tree_flatten_with_path(params)
        return [getattr(path[0], "key", None) not in FLAX_CONSTANTS for path, _ in paths]
    nnx = sys.modules.get("flax.nnx")  # loaded, if one of its variables is here
    variable = () if nnx is None else (nnx.Variable,)
    trained = () if nnx is None else (nnx.Param,)
    flags = []
    for node in jax.tree.leaves(
        params, is_leaf=lambda node: isinstance(node, (*variable, eqx.Module))
    ):
        if isinstance(node, variable):
            flags += [isinstance(node, trained)] * len(jax.tree.leaves(node))
        elif isinstance(node, eqx.Module):
            flags += [not isinstance(leaf, float) for leaf in jax.tree.leaves(node)]
        else:
            flags.append(True)
    return flags
