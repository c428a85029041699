"""Which leaves of a model are trained: several libraries store other data next to the weights."""

import sys
from collections.abc import Mapping

import equinox as eqx
import jax

from softntk._core.typing import Params

FLAX_CONSTANTS = ("batch_stats", "cache", "intermediates")
"""Collections of flax.linen's variables that no gradient reaches."""


def trained_leaves(params: Params) -> list[bool]:
    """Return for each leaf, in order, whether its library trains it.

    The flag matters for floating-point leaves only; others are never trained. Not trained are: in
    flax.linen the collections of ``FLAX_CONSTANTS``, in flax.nnx all variables but ``nnx.Param``,
    and in equinox modules Python's floats (rates, probabilities).
    """
    # 1. Variables of flax.linen: a mapping of collections.
    if isinstance(params, Mapping) and "params" in params:
        leaf_paths, _ = jax.tree_util.tree_flatten_with_path(params)
        return [getattr(path[0], "key", None) not in FLAX_CONSTANTS for path, _ in leaf_paths]
    # 2. If params hold variables of flax.nnx, that module is loaded already: never import it here.
    nnx = sys.modules.get("flax.nnx")
    variable_types = () if nnx is None else (nnx.Variable,)
    trained_types = () if nnx is None else (nnx.Param,)
    # 3. Each variable or equinox module decides for all leaves below it.
    flags = []
    for node in jax.tree.leaves(
        params, is_leaf=lambda node: isinstance(node, (*variable_types, eqx.Module))
    ):
        if isinstance(node, variable_types):
            flags += [isinstance(node, trained_types)] * len(jax.tree.leaves(node))
        elif isinstance(node, eqx.Module):
            flags += [not isinstance(leaf, float) for leaf in jax.tree.leaves(node)]
        else:
            flags.append(True)
    return flags
