"""Assembly of an array [n1, c, n2] from its tiles, of which symmetry saves about half.

The array is computed in strips of ``size`` rows, and a strip in tiles of ``size`` columns. What
the tiles of a strip share is prepared once and stays in the caches. Every tile is written into the
result as soon as it is computed, so that beside the result only one strip and one tile are held.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softntk._core.meshes import vary_like
from softntk._linalg.blocks import cache_budget
from softntk.ntk._empirical.contractions import Contraction, Readout

MIN_STRIP_ROWS = 16  # thinner products do not use the processor well
MAX_CPU_STRIP_ROWS = 128  # longer strips were slower on CPUs, also where the caches hold them


def rows_per_strip(n: int, numbers_per_row: int, block_size: int | None) -> int:
    """Return how many rows a strip has: ``block_size`` if that is set, else a power of two.

    The power of two is chosen so that what is held for a strip fits the caches, and so that a strip
    is at most a quarter of all rows: with fewer strips, symmetry would save little.
    """
    if block_size is not None:
        return min(n, block_size)
    max_rows = MAX_CPU_STRIP_ROWS if jax.default_backend() == "cpu" else n
    rows_in_cache = max(cache_budget() // numbers_per_row, MIN_STRIP_ROWS)
    rows = min(rows_in_cache, max(n // 4, MIN_STRIP_ROWS), max_rows, n)
    return min(n, 2 ** (rows.bit_length() - 1))


def _slice_rows(tree: Any, start: Array | int, size: int) -> Any:
    """Return ``size`` rows of every array in the tree."""
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), tree)


def rectangular(
    form: Contraction, size: int, a: Readout, prepared1: Any, prepared2: Any
) -> Float[Array, "n1 c n2"]:
    """Return the array for two sets of points, strip by strip.

    Args:
        form: how a tile is computed.
        size: rows per strip.
        a: the readout.
        prepared1: ``form.prepare_rows`` of the points of the rows.
        prepared2: ``form.prepare_rows`` of the points of the columns.
    """
    row_count = len(jax.tree.leaves(prepared1)[0])

    def compute_strip(start: Array) -> Array:
        strip = form.prepare_strip(_slice_rows(prepared1, start, size), a)
        return form.compute_tile(strip, prepared2, a)

    # The last strip may overlap the one before it: both compute the same numbers there.
    starts = jnp.minimum(jnp.arange(0, row_count, size), row_count - size)
    strips = lax.map(compute_strip, starts)
    overlap = size * len(starts) - row_count
    return jnp.concatenate([strips[:-1].reshape(-1, *strips.shape[2:]), strips[-1][overlap:]])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def symmetric(form: Contraction, size: int, a: Readout, prepared: Any) -> Float[Array, "n c n"]:
    """Return the array for one set of points, from the tiles on and above the diagonal.

    The arguments are those of :func:`rectangular`.
    """
    n = len(jax.tree.leaves(prepared)[0])
    k = a.shape[1]

    def add_strip(i: Array | int, matrices: Array) -> Array:
        row_start = jnp.minimum(i * size, n - size)
        strip = form.prepare_strip(_slice_rows(prepared, row_start, size), a)
        # The barrier keeps XLA from computing the strip again in every tile.
        strip = lax.optimization_barrier(strip)

        def add_tile(j: Array | int, matrices: Array) -> Array:
            column_start = jnp.minimum(j * size, n - size)
            tile = form.compute_tile(strip, _slice_rows(prepared, column_start, size), a)
            matrices = lax.dynamic_update_slice(matrices, tile, (row_start, 0, column_start))
            mirrored = form.mirror_tile(tile)
            return lax.dynamic_update_slice(matrices, mirrored, (column_start, 0, row_start))

        return lax.fori_loop(row_start // size, -(-n // size), add_tile, matrices)

    # The carry of the loops: every tile is written into it in place.
    dtype = jax.tree.leaves(prepared)[0].dtype
    zeros = vary_like(jnp.zeros((n, form.matrix_count(k), n), dtype), a, prepared)
    return lax.fori_loop(0, -(-n // size), add_strip, zeros)


@symmetric.defjvp
def _symmetric_jvp(
    form: Contraction, size: int, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """Return value and tangent, the tangent from all tiles of :func:`rectangular`.

    The loops of :func:`symmetric` cannot be differentiated in reverse mode; those of
    :func:`rectangular` can, and compute the same array.
    """

    def from_all_tiles(a: Readout, prepared: Any) -> Array:
        return rectangular(form, size, a, prepared, prepared)

    return symmetric(form, size, *primals), jax.jvp(from_all_tiles, primals, tangents)[1]
