"""[n1, c, n2] from its tiles, one at a time: half of them where the two sets of points are the
same.

A line of tiles shares what its rows are multiplied by, which is made once and stays in the caches;
the results are written into the whole as they come. Beside the whole, one line and one tile are
held.
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


def rows_of_a_line(n: int, numbers: int, block_size: int | None) -> int:
    """How many rows: a power of two, so that the numbers held for them fit, and no more than a
    quarter of all.
    """
    if block_size is not None:
        return min(n, block_size)
    most = 128 if jax.default_backend() == "cpu" else n
    rows = min(max(cache_budget() // numbers, 16), max(n // 4, 16), most, n)
    return min(n, 2 ** (rows.bit_length() - 1))


def _some(tree: Any, start: Array | int, size: int) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), tree)


def rectangular(
    form: Contraction, size: int, a: Readout, one: Any, two: Any
) -> Float[Array, "n1 c n2"]:
    """All tiles, lines of ``size`` rows of what ``form.prepare`` has made of two sets of points."""
    n1 = len(jax.tree.leaves(one)[0])
    # The last line may begin in the one before it: what is computed twice is the same.
    starts = jnp.minimum(jnp.arange(0, n1, size), n1 - size)
    lines = lax.map(lambda start: form.tile(form.line(_some(one, start, size), a), two, a), starts)
    return jnp.concatenate(
        [lines[:-1].reshape(-1, *lines.shape[2:]), lines[-1][size * len(starts) - n1 :]]
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def symmetric(form: Contraction, size: int, a: Readout, one: Any) -> Float[Array, "n c n"]:
    """The same with one set of points, from the tiles on and above the diagonal."""
    n, k = len(jax.tree.leaves(one)[0]), a.shape[1]

    def line(i: Array | int, whole: Array) -> Array:
        start = jnp.minimum(i * size, n - size)
        shared = lax.optimization_barrier(form.line(_some(one, start, size), a))

        def tile(j: Array | int, whole: Array) -> Array:
            first = jnp.minimum(j * size, n - size)
            block = form.tile(shared, _some(one, first, size), a)
            whole = lax.dynamic_update_slice(whole, block, (start, 0, first))
            return lax.dynamic_update_slice(whole, form.mirror(block), (first, 0, start))

        return lax.fori_loop(start // size, -(-n // size), tile, whole)

    dtype = jax.tree.leaves(one)[0].dtype
    zeros = vary_like(jnp.zeros((n, form.count(k), n), dtype), a, one)
    return lax.fori_loop(0, -(-n // size), line, zeros)


@symmetric.defjvp
def _symmetric_jvp(
    form: Contraction, size: int, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    # The loops above cannot be differentiated in reverse; the tangent of all tiles can, and is the
    # same.
    every = lambda a, one: rectangular(form, size, a, one, one)
    return symmetric(form, size, *primals), jax.jvp(every, primals, tangents)[1]
