"""Names of the types that several packages use in their signatures."""

from typing import Any

from jaxtyping import Array, Float, PyTree

Params = PyTree
"""Parameters of a model or a point of a minimisation: any pytree."""

Matrix = Float[Array, "d d"]
"""A square matrix."""

Vector = Float[Array, " d"]
"""A vector that such a matrix acts on."""

DesignMatrix = Any
"""A, [n, d]: an array, a ``jax.experimental.sparse.BCOO``, or a lineax operator from [d] to [n]."""
