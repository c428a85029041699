"""The empirical kernel of any function as an operator, J Jᵀ.

Its products are taken by a vjp and a jvp of blocks of rows; J is never formed.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._core.meshes import vary_like
from softntk._linalg.blocks import join_blocks, split_into_blocks, split_points
from softntk.ntk._operators.base import GramOperator, Vectors
from softntk.ntk._user_functions import OwnFunction

Weights = tuple[Array, ...]


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
        """Precision of the outputs."""
        return self.function.out_structure(self.x).dtype

    def _cast(self, dtype: jnp.dtype) -> "JacobianOperator":
        function = self.function.astype(dtype)
        return JacobianOperator(
            function=function, x=self.x.astype(dtype), block_size=self.block_size
        )

    def _pull_back(self, weights: Weights, x: Array, v: Array) -> Weights:
        """Return Jᵀv at the rows x, in the shape of the weights."""
        return jax.vjp(lambda weights: self.function(weights, x), weights)[1](v)[0]

    def _push_forward(self, weights: Weights, x: Array, tangent: Weights) -> Array:
        """Return J times a tangent of the weights, at the rows x."""
        return jax.jvp(lambda weights: self.function(weights, x), (weights,), (tangent,))[1]

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross_mm(self.x, vectors)

    def _cross_mm(self, points: Array, vectors: Vectors) -> Array:
        # 1. Rows in blocks, with arrays that are placed alike on a mesh.
        weights = vary_like(self.function.weights, self.function, self.x, points, vectors)
        vectors = vary_like(vectors, weights)
        blocks = (
            split_points(self.x, self.block_size),
            split_into_blocks(vectors, self.block_size),
        )

        # Checkpoints: reverse mode computes a block again instead of storing all of them.
        @jax.checkpoint
        def pull_block(x: Array, v: Array) -> Weights:
            return jax.vmap(lambda w: self._pull_back(weights, x, w), in_axes=-1)(v)

        @jax.checkpoint
        def push_block(x: Array) -> Array:
            return jax.vmap(lambda tangent: self._push_forward(weights, x, tangent), out_axes=-1)(
                tangents
            )

        def add_block(total: Weights, block: tuple[Array, Array]) -> tuple[Weights, None]:
            return jax.tree.map(jnp.add, total, pull_block(*block)), None

        # 2. JᵀV, in the shape of the weights, one for each vector: a sum over blocks.
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros((vectors.shape[-1], *leaf.shape), leaf.dtype), weights
        )
        tangents, _ = lax.scan(add_block, vary_like(zeros, weights), blocks)

        # 3. J of the points times that.
        point_blocks = blocks[0]
        if points is not self.x:
            point_blocks = split_points(points, min(len(points), self.block_size))
        return join_blocks(lax.map(push_block, point_blocks), len(points))

    def _compute_rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        structure = self.function.out_structure(self.x)
        weights = vary_like(self.function.weights, self.function, self.x, points, outputs)
        blocks = split_points(self.x, self.block_size)

        # Row (i, ℓ) of J Jᵀ: pull a unit vector back, push the result forward at all points.
        def compute_row(point: Array, output: Array) -> Array:
            cotangent = jax.nn.one_hot(output, structure.shape[1], dtype=structure.dtype)[None]
            tangent = self._pull_back(weights, point[None], vary_like(cotangent, weights))
            images = lax.map(lambda x: self._push_forward(weights, x, tangent), blocks)
            return join_blocks(images, len(self.x)).reshape(-1)

        return lax.map(lambda pair: compute_row(*pair), (points, outputs))

    def _compute_diagonal(self) -> Float[Array, " size"]:
        structure = self.function.out_structure(self.x)
        weights = vary_like(self.function.weights, self.function, self.x)
        basis = vary_like(jnp.eye(structure.shape[1], dtype=structure.dtype), weights)

        # ‖∂F_ℓ(x)/∂θ‖² for all outputs of one point.
        def compute_squares(x: Array) -> Array:
            gradients = jax.vmap(lambda v: self._pull_back(weights, x[None], v[None]))(basis)
            squares = [
                jnp.sum(leaf.reshape(len(basis), -1).astype(structure.dtype) ** 2, axis=1)
                for leaf in gradients
            ]
            return jnp.sum(jnp.stack(squares), axis=0)

        return lax.map(compute_squares, self.x).reshape(-1)
