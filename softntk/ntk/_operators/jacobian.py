"""The empirical kernel of any function as an operator, by a vjp and a jvp of blocks of rows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.meshes import vary_like
from softntk._linalg.blocks import join_blocks, map_row_blocks, split_into_blocks
from softntk.ntk._operators.base import GramOperator, Vectors
from softntk.ntk._user_functions import OwnFunction


class JacobianOperator(GramOperator):
    """The empirical NTK of any ``apply_fn`` whose rows do not interact, on [n, k].

    Attributes:
        function: apply_fn with its parameters bound.
        x: points, [n, …].
        block_size: rows at a time.
    """

    function: OwnFunction
    x: Float[Array, "n ..."]
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, k)."""
        return self.function.out_structure(self.x).shape

    @property
    def dtype(self) -> jnp.dtype:
        """That of the outputs."""
        return self.function.out_structure(self.x).dtype

    def _in_precision(self, dtype: jnp.dtype) -> "JacobianOperator":
        function = self.function.astype(dtype)
        return JacobianOperator(
            function=function, x=self.x.astype(dtype), block_size=self.block_size
        )

    def _pull(self, weights: Any, x: Array, v: Array) -> Any:
        return jax.vjp(lambda weights: self.function(weights, x), weights)[1](v)[0]

    def _push(self, weights: Any, x: Array, tangent: Any) -> Array:
        return jax.jvp(lambda weights: self.function(weights, x), (weights,), (tangent,))[1]

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross(self.x, vectors)

    def _cross(self, points: Array, vectors: Vectors) -> Array:
        weights = vary_like(self.function.weights, self.function, self.x, points, vectors)
        vectors = vary_like(vectors, weights)
        blocks = (
            map_row_blocks(self.x, self.block_size),
            split_into_blocks(vectors, self.block_size),
        )

        @jax.checkpoint
        def pull(x: Array, v: Array) -> Any:
            return jax.vmap(lambda w: self._pull(weights, x, w), in_axes=-1)(v)

        @jax.checkpoint
        def push(x: Array) -> Array:
            return jax.vmap(lambda tangent: self._push(weights, x, tangent), out_axes=-1)(tangents)

        def add(total: Any, block: tuple[Array, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, pull(*block)), None

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros((vectors.shape[-1], *leaf.shape), leaf.dtype), weights
        )
        tangents, _ = lax.scan(add, vary_like(zeros, weights), blocks)
        others = blocks[0]
        if points is not self.x:
            others = map_row_blocks(points, min(len(points), self.block_size))
        return join_blocks(lax.map(push, others), len(points))

    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        out = self.function.out_structure(self.x)
        weights = vary_like(self.function.weights, self.function, self.x, points, outputs)
        blocks = map_row_blocks(self.x, self.block_size)

        def row(point: Array, output: Array) -> Array:
            cotangent = jax.nn.one_hot(output, out.shape[1], dtype=out.dtype)[None]
            tangent = self._pull(weights, point[None], vary_like(cotangent, weights))
            images = lax.map(lambda x: self._push(weights, x, tangent), blocks)
            return join_blocks(images, len(self.x)).reshape(-1)

        return lax.map(lambda pair: row(*pair), (points, outputs))

    def _diagonal(self) -> Float[Array, " size"]:
        out = self.function.out_structure(self.x)
        weights = vary_like(self.function.weights, self.function, self.x)
        basis = vary_like(jnp.eye(out.shape[1], dtype=out.dtype), weights)

        def row(x: Array) -> Array:
            gradients = jax.vmap(lambda v: self._pull(weights, x[None], v[None]))(basis)
            squares = [
                jnp.sum(leaf.reshape(len(basis), -1).astype(out.dtype) ** 2, axis=1)
                for leaf in gradients
            ]
            return jnp.sum(jnp.stack(squares), axis=0)

        return lax.map(row, self.x).reshape(-1)
