"""A kernel function as an operator: tiles of the Gram matrix, computed when they are needed."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.meshes import vary_like
from softntk._linalg.blocks import join_blocks, split_into_blocks, split_points
from softntk._linalg.products import product
from softntk.ntk._operators.base import GramOperator, Vectors


class KernelOperator(GramOperator):
    """A kernel function on n points as an operator on [n], computed in tiles.

    Each tile above the diagonal also serves as its mirror image below.

    Attributes:
        x: points, [n, …].
        kernel_fn: ``(x1, x2) -> [n1, n2]``, symmetric.
        block_size: rows and columns of a tile.
    """

    x: Float[Array, "n ..."]
    kernel_fn: Callable = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,)."""
        return (self.x.shape[0],)

    @property
    def dtype(self) -> jnp.dtype:
        """Precision of the points."""
        return self.x.dtype

    def _cast(self, dtype: jnp.dtype) -> "KernelOperator":
        return KernelOperator(
            x=self.x.astype(dtype), kernel_fn=self.kernel_fn, block_size=self.block_size
        )

    def _split_points(self) -> tuple[Array, Array]:
        """Return the points in blocks, and masks that are False where a block is filled up."""
        padded_size = -(-len(self.x) // self.block_size) * self.block_size
        is_point = jnp.arange(padded_size) < len(self.x)
        return split_points(self.x, self.block_size), is_point.reshape(-1, self.block_size)

    def _compute_tile(
        self, rows: Array, columns: Array, column_mask: Array
    ) -> Float[Array, "b1 b2"]:
        """Return the kernel of two blocks, zero at columns that only fill up their block.

        The kernel may be infinite there, and a product of infinity with a zero vector is NaN.
        """
        kernel = self.kernel_fn(rows, columns)
        if len(self.x) % self.block_size == 0:
            return kernel
        return jnp.where(column_mask[None, :], kernel, 0)

    def _mm(self, vectors: Vectors) -> Vectors:
        # 1. Blocks of points and vectors, and the tiles on and above the diagonal.
        point_blocks, column_masks = self._split_points()
        vector_blocks = split_into_blocks(vectors, self.block_size)
        block_count = len(point_blocks)
        tile_indices = jnp.asarray(
            [(i, j) for i in range(block_count) for j in range(i, block_count)]
        )

        # 2. A tile acts on the vectors at its columns, and transposed on those at its rows.
        @jax.checkpoint  # reverse mode computes a tile again instead of storing all of them
        def multiply_tile(tile_index: Array) -> tuple[Array, Array]:
            i, j = tile_index
            kernel = self._compute_tile(point_blocks[i], point_blocks[j], column_masks[j])
            return product(kernel, vector_blocks[j]), jnp.where(
                i == j, 0, product(kernel.T, vector_blocks[i])
            )

        def add_tile(images: Array, tile_index: Array) -> tuple[Array, None]:
            row_image, column_image = multiply_tile(tile_index)
            return images.at[tile_index[0]].add(row_image).at[tile_index[1]].add(column_image), None

        # 3. Their sum.
        images, _ = lax.scan(
            add_tile, vary_like(jnp.zeros_like(vector_blocks), self.x, vectors), tile_indices
        )
        return join_blocks(images, len(self.x))

    def _cross_mm(self, points: Array, vectors: Vectors) -> Array:
        # 1. A strip of the kernel is summed over the blocks of its columns.
        column_blocks, column_masks = self._split_points()
        vector_blocks = split_into_blocks(vectors, self.block_size)

        def multiply_strip(rows: Array) -> Array:
            def add_tile(image: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
                x, column_mask, v = block
                return image + product(self._compute_tile(rows, x, column_mask), v), None

            zeros = jnp.zeros((len(rows), vectors.shape[-1]), vectors.dtype)
            return lax.scan(
                add_tile,
                vary_like(zeros, rows, self.x, vectors),
                (column_blocks, column_masks, vector_blocks),
            )[0]

        # 2. Strip by strip; reverse mode computes a strip again instead of storing it.
        row_blocks = split_points(points, min(len(points), self.block_size))
        return join_blocks(lax.map(jax.checkpoint(multiply_strip), row_blocks), len(points))

    def _compute_rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        columns = lax.map(
            lambda x: self.kernel_fn(x, points), split_points(self.x, self.block_size)
        )
        return join_blocks(columns, len(self.x)).T

    def _compute_diagonal(self) -> Float[Array, " size"]:
        # A point at a time costs n kernel values; tiles on the diagonal would cost block_size times
        # as many.
        return lax.map(
            lambda x: self.kernel_fn(x[None], x[None])[0, 0],
            self.x,
            batch_size=min(256, len(self.x)),
        )
