"""Arrays on a mesh whose axes are explicit (the default of ``jax.make_mesh``): who places the results.

There every operation must know where its result lies, and a contraction of two matrices that are both spread over their rows is
refused. Inside of :func:`place_automatically` the compiler decides, and the result is spread as the rows were.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from softntk._validation import is_concrete


def place_automatically(function: Callable, rows: jax.Array, *others: Any) -> Any:
    """Return ``function(rows, *others)``, whose outputs are matrices with the rows of ``rows``, on meshes of any kind."""
    if not any(map(_is_spread, jax.tree.leaves((rows, others)))):
        return function(rows, *others)
    spec = PartitionSpec(jax.typeof(rows).sharding.spec[0] if _is_spread(rows) else None, None)
    placed: Any = spec
    if jax.sharding.get_abstract_mesh().empty:  # outside of jax.set_mesh the arrays know the devices
        spread = next(leaf for leaf in jax.tree.leaves((rows, others)) if _is_spread(leaf))
        if not is_concrete(spread):
            raise ValueError("arrays on a mesh with explicit axes need `with jax.set_mesh(mesh):` around jit, vmap or grad.")
        placed = NamedSharding(spread.sharding.mesh, spec)
    return jax.sharding.auto_axes(function, out_sharding=placed)(rows, *others)


def _is_spread(array: Any) -> bool:
    """Return whether an array is divided along an explicit axis of a mesh."""
    sharding = jax.typeof(array).sharding
    if not any(part is not None for part in sharding.spec):
        return False
    return any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)
