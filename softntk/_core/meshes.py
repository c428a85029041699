"""Computations over several devices: explicit mesh axes, and carries that vary over a mesh inside
``jax.shard_map``.

A mesh of ``jax.make_mesh`` has explicit axes by default: every operation must know where its result
lies, and a contraction of two matrices that are both spread over their rows is refused.
:func:`place_automatically` and :func:`call_automatic` let the compiler decide; results are spread
as the rows were.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from softntk._core.validation import is_concrete


def place_automatically(function: Callable, rows: jax.Array, *others: Any) -> Any:
    """Return ``function(rows, *others)``, whose outputs are matrices with the rows of ``rows``, on
    meshes of any kind.
    """
    if not any(map(_is_spread, jax.tree.leaves((rows, others)))):
        return function(rows, *others)
    spec = PartitionSpec(jax.typeof(rows).sharding.spec[0] if _is_spread(rows) else None, None)
    placed: Any = spec
    # outside of jax.set_mesh the arrays know the devices
    if jax.sharding.get_abstract_mesh().empty:
        spread = next(leaf for leaf in jax.tree.leaves((rows, others)) if _is_spread(leaf))
        if not is_concrete(spread):
            raise ValueError(
                "arrays on a mesh with explicit axes need `with jax.set_mesh(mesh):` around jit, vmap or grad."
            )
        placed = NamedSharding(spread.sharding.mesh, spec)
    return jax.sharding.auto_axes(function, out_sharding=placed)(rows, *others)


def _is_spread(array: Any) -> bool:
    """Return whether an array is divided along an explicit axis of a mesh."""
    sharding = jax.typeof(array).sharding
    if not any(part is not None for part in sharding.spec):
        return False
    return any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)


def vary_like(tree: Any, *data: Any) -> Any:
    """Return the arrays of a tree as varying over every mesh axis that the data vary over.

    Inside ``jax.shard_map`` a loop that adds up rows of one device must begin with zeros that are
    that device's own, and a derivative in weights that all devices share would be summed over all
    of them. Anywhere else nothing changes.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(data)))
    if not axes:
        return tree

    def vary(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _varying_axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _varying_axes(leaf: Any) -> frozenset[str]:
    """Return the manual axes that an array varies over; its type says so, by a name that JAX has
    changed.
    """
    kind = jax.typeof(leaf)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())


def call_without_explicit_axes(function: Callable, rows: Any, *arguments: Any) -> Any:
    """Return ``function(*arguments)``, computed with automatic axes where the arguments' are
    explicit.

    A mesh of ``jax.make_mesh`` has explicit axes, along which a product of two arrays that are
    split over them is not defined. The compiler divides the work instead; the result is split along
    its first axis as ``rows`` (None: not at all).
    """
    for leaf in jax.tree.leaves((rows, arguments)):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            spec = PartitionSpec() if rows is None else _first_axis(rows)
            out_sharding = NamedSharding(mesh, spec)
            return jax.sharding.auto_axes(function, out_sharding=out_sharding)(*arguments)
    return function(*arguments)


def _first_axis(rows: Any) -> PartitionSpec:
    spec = jax.typeof(rows).sharding.spec
    return PartitionSpec(spec[0]) if len(spec) else PartitionSpec()


def run_without_explicit_axes(function: Callable) -> Callable:
    """Return the function with its arguments' explicit axes as automatic and a result on every
    device.
    """
    return partial(call_without_explicit_axes, function, None)
