"""Rows in blocks of equal size, and how many numbers to work on at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def cache_budget() -> int:
    """How many numbers to work on: on a CPU what stays in its caches, on accelerators enough to
    keep them busy.
    """
    return 2**21 if jax.default_backend() == "cpu" else 2**26


def split_into_blocks(array: Array, size: int) -> Array:
    """[n, …] as [n/size, size, …], the last block filled up with zeros."""
    short = -len(array) % size
    return jnp.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)).reshape(
        -1, size, *array.shape[1:]
    )


def map_row_blocks(rows: Array, size: int) -> Array:
    """Return [n, …] as [n/size, size, …], the last block filled up with its last row.

    A function of the user's need not be defined at a row of zeros.
    """
    short = -len(rows) % size
    if short:
        rows = jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], (short, *rows.shape[1:]))])
    return rows.reshape(-1, size, *rows.shape[1:])


def join_blocks(blocks: Array, n: int) -> Array:
    """The inverse of :func:`in_blocks`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:n]
