"""Computations over several devices: explicit mesh axes, and values that vary over a mesh.

A mesh of ``jax.make_mesh`` has explicit axes by default: every operation must know where its result
lies, and a contraction of two matrices that are both spread over their rows is refused.
:func:`place_automatically` and :func:`call_without_explicit_axes` let the compiler decide; results
are spread as the rows were. Inside ``jax.shard_map``, :func:`vary_like` marks arrays that differ
between devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from softntk._core.validation import is_concrete


def place_automatically(function: Callable, rows: jax.Array, *arguments: PyTree) -> PyTree:
    """Return ``function(rows, *arguments)`` with outputs spread as ``rows`` is, on any mesh.

    Use it for functions whose outputs are matrices with one row for each row of ``rows``. Without
    arrays on explicit axes it is a plain call.
    """
    # 1. Nothing lies on an explicit axis: call the function as it is.
    if not any(map(_is_spread, jax.tree.leaves((rows, arguments)))):
        return function(rows, *arguments)
    spec = PartitionSpec(jax.typeof(rows).sharding.spec[0] if _is_spread(rows) else None, None)
    out_sharding: Any = spec
    # 2. Outside of jax.set_mesh the result needs the mesh too, which only concrete arrays know.
    if jax.sharding.get_abstract_mesh().empty:
        spread_array = next(leaf for leaf in jax.tree.leaves((rows, arguments)) if _is_spread(leaf))
        if not is_concrete(spread_array):
            raise ValueError(
                "arrays on a mesh with explicit axes need `with jax.set_mesh(mesh):` around jit, "
                "vmap or grad."
            )
        out_sharding = NamedSharding(spread_array.sharding.mesh, spec)
    # 3. The compiler chooses where intermediate results lie.
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)(rows, *arguments)


def _is_spread(array: object) -> bool:
    """Return whether an array is divided along an explicit axis of a mesh."""
    sharding = jax.typeof(array).sharding
    if not any(part is not None for part in sharding.spec):
        return False
    return any(axis_type == AxisType.Explicit for axis_type in sharding.mesh.axis_types)


def vary_like(tree: PyTree, *data: PyTree) -> PyTree:
    """Mark the arrays of a pytree as varying over every mesh axis that the data vary over.

    Use it inside ``jax.shard_map`` for the initial zeros of a loop that sums over the rows of one
    device, and for shared weights, whose derivatives would otherwise be summed over all devices.
    Outside of it nothing changes.
    """
    data_types = map(jax.typeof, jax.tree.leaves(data))
    data_axes = frozenset().union(*map(varying_axes, data_types))
    if not data_axes:
        return tree

    def add_axes(leaf: Any) -> Any:
        missing_axes = tuple(sorted(data_axes - varying_axes(jax.typeof(leaf))))
        return lax.pcast(leaf, missing_axes, to="varying") if missing_axes else leaf

    return jax.tree.map(add_axes, tree)


def varying_axes(array_type: Any) -> frozenset[str]:
    """Return the manual mesh axes over which arrays of a type, an abstract value, vary."""
    # Newer versions of JAX store the axes in `mat.varying`, older ones in `vma`.
    if hasattr(array_type, "mat"):
        return array_type.mat.varying
    return getattr(array_type, "vma", frozenset())


def call_without_explicit_axes(
    function: Callable, rows: jax.Array | np.ndarray | None, *arguments: PyTree
) -> PyTree:
    """Return ``function(*arguments)``, computed with automatic axes in place of explicit ones.

    Use it where a product of two arrays that are split over the same explicit axis is needed, which
    JAX does not define. The compiler divides the work instead. The result is split along its first
    axis as ``rows`` is; None: it is not split.
    """
    for leaf in jax.tree.leaves((rows, arguments)):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            spec = PartitionSpec() if rows is None else _first_axis_spec(rows)
            out_sharding = NamedSharding(mesh, spec)
            return jax.sharding.auto_axes(function, out_sharding=out_sharding)(*arguments)
    return function(*arguments)


def _first_axis_spec(rows: object) -> PartitionSpec:
    """Return the partition of the first axis of an array alone."""
    spec = jax.typeof(rows).sharding.spec
    return PartitionSpec(spec[0]) if len(spec) else PartitionSpec()


def run_without_explicit_axes(function: Callable) -> Callable:
    """Return a function that computes with automatic axes and leaves its result on every device."""
    return partial(call_without_explicit_axes, function, None)
