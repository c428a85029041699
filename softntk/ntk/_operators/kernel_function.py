"""A kernel function as an operator: tiles of the Gram matrix, each computed when it is needed."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.meshes import vary_like
from softntk._linalg.blocks import join_blocks, map_row_blocks, split_into_blocks
from softntk._linalg.products import product
from softntk.ntk._operators.base import GramOperator, Vectors


class KernelOperator(GramOperator):
    """A kernel function on n points, on [n]: tile by tile, each serving both sides of the diagonal."""

    x: Float[Array, "n ..."]
    kernel_fn: Callable = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.x.shape[0],)

    @property
    def dtype(self) -> jnp.dtype:
        """That of the points."""
        return self.x.dtype

    def _in_precision(self, dtype: jnp.dtype) -> "KernelOperator":
        return KernelOperator(
            x=self.x.astype(dtype), kernel_fn=self.kernel_fn, block_size=self.block_size
        )

    def _blocks(self) -> tuple[Array, Array]:
        """Return the points in blocks, and which of them were given."""
        given = jnp.arange(-(-len(self.x) // self.block_size) * self.block_size) < len(self.x)
        return map_row_blocks(self.x, self.block_size), given.reshape(-1, self.block_size)

    def _tile(self, one: Array, other: Array, given: Array) -> Float[Array, "b1 b2"]:
        """Return the kernel, zero at columns that only fill up a block: it may be infinite there,
        and 0 · ∞ is no number.
        """
        kernel = self.kernel_fn(one, other)
        return (
            kernel if len(self.x) % self.block_size == 0 else jnp.where(given[None, :], kernel, 0)
        )

    def _mm(self, vectors: Vectors) -> Vectors:
        (xs, given), vs = self._blocks(), split_into_blocks(vectors, self.block_size)
        pairs = jnp.asarray([(i, j) for i in range(len(xs)) for j in range(i, len(xs))])

        @jax.checkpoint
        def tile(pair: Array) -> tuple[Array, Array]:
            i, j = pair
            kernel = self._tile(xs[i], xs[j], given[j])
            return product(kernel, vs[j]), jnp.where(i == j, 0, product(kernel.T, vs[i]))

        def add(out: Array, pair: Array) -> tuple[Array, None]:
            above, below = tile(pair)
            return out.at[pair[0]].add(above).at[pair[1]].add(below), None

        out, _ = lax.scan(add, vary_like(jnp.zeros_like(vs), self.x, vectors), pairs)
        return join_blocks(out, len(self.x))

    def _cross(self, points: Array, vectors: Vectors) -> Array:
        (xs, given), vs = self._blocks(), split_into_blocks(vectors, self.block_size)

        def line(mine: Array) -> Array:
            def add(out: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
                x, filled, v = block
                return out + product(self._tile(mine, x, filled), v), None

            zeros = jnp.zeros((len(mine), vectors.shape[-1]), vectors.dtype)
            return lax.scan(add, vary_like(zeros, mine, self.x, vectors), (xs, given, vs))[0]

        others = map_row_blocks(points, min(len(points), self.block_size))
        return join_blocks(lax.map(jax.checkpoint(line), others), len(points))

    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        out = lax.map(lambda x: self.kernel_fn(x, points), map_row_blocks(self.x, self.block_size))
        return join_blocks(out, len(self.x)).T

    def _diagonal(self) -> Float[Array, " size"]:
        return lax.map(
            lambda x: self.kernel_fn(x[None], x[None])[0, 0],
            self.x,
            batch_size=min(256, len(self.x)),
        )
