"""Division of rows into blocks of equal size, and how large a block should be."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def cache_budget() -> int:
    """Return how many numbers to work on at a time.

    On a CPU as many as stay in its caches, on accelerators enough to keep them busy.
    """
    return 2**21 if jax.default_backend() == "cpu" else 2**26


def split_into_blocks(array: Array, size: int) -> Array:
    """Return an array [n, …] as blocks [⌈n/size⌉, size, …], the last one padded with zeros."""
    missing_rows = -len(array) % size
    return jnp.pad(array, [(0, missing_rows)] + [(0, 0)] * (array.ndim - 1)).reshape(
        -1, size, *array.shape[1:]
    )


def split_points(rows: Array, size: int) -> Array:
    """Return points [n, …] as blocks [⌈n/size⌉, size, …], padded with copies of the last point.

    Use it for points that a user's function is applied to: it need not be defined at zero.
    """
    missing_rows = -len(rows) % size
    if missing_rows:
        padding = jnp.broadcast_to(rows[-1:], (missing_rows, *rows.shape[1:]))
        rows = jnp.concatenate([rows, padding])
    return rows.reshape(-1, size, *rows.shape[1:])


def join_blocks(blocks: Array, n: int) -> Array:
    """Return the first n rows of blocks, without the padding: the inverse of a split."""
    return blocks.reshape(-1, *blocks.shape[2:])[:n]
