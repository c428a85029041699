"""Empirical kernels as operators: of softntk networks by their row factors, of any ``apply_fn`` by a vjp and a jvp."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk.networks import Architecture, Parameters, RowFactors, row_factors
from softntk.ntk._contractions import product, row_vectors
from softntk.ntk._empirical import two_layer_kernel
from softntk.ntk._tiles import in_blocks, out_of_blocks
from softntk.ntk.gram_operators import GramOperator, Vectors


def _alone(rows: RowFactors) -> Bool[Array, "n m"]:
    """Where a_ℓ − centres_ℓ is exactly zero: at a row's largest unit, if no other is as large."""
    return rows.largest & (jnp.sum(rows.largest, axis=1, keepdims=True) == 1)


class TwoLayerOperator(GramOperator):
    r"""The empirical NTK of a softntk network on [n, k].

    With Φ(V)_i = Σ_ℓ V_{iℓ} g_{iℓ} and Q = XᵀΦ(V),  (HV)_{iℓ} = ⟨x_i Q, g_{iℓ}⟩: two passes over blocks of rows, 4 n m d
    multiplications and the row factors twice; beside Q [d, m] only one block of rows is held.
    """

    params: Parameters
    x: Float[Array, "n d"]
    architecture: Architecture = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, k)."""
        return (self.x.shape[0], self.params.readout.shape[1])

    @property
    def dtype(self) -> jnp.dtype:
        """That of the points."""
        return self.x.dtype

    def astype(self, dtype: Any) -> "TwoLayerOperator":
        """The same network and points in another precision."""
        params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (self.params, self.x))
        return TwoLayerOperator(params=params, x=x, architecture=self.architecture, block_size=self.block_size)

    def as_matrix(self) -> Float[Array, "size size"]:
        """All rows at once, through :func:`softntk.ntk.empirical`."""
        return self._matrix(None)

    def _matrix(self, points: Array | None) -> Float[Array, "rows size"]:
        """With x, of the points (None: of x itself)."""
        kernel = two_layer_kernel(self.architecture, self.params, self.x, points, "full", None)
        return kernel.transpose(1, 3, 0, 2).reshape(-1, self.in_size())

    def _single(self, rows: RowFactors) -> Float[Array, "b m"] | None:
        """With one output g itself, which is no larger than its factors; made once, behind a barrier to fusion."""
        return lax.optimization_barrier(row_vectors(rows, self.params.readout)[:, 0]) if self.shape[1] == 1 else None

    def _inputs(self, x: Float[Array, "b d"], rows: RowFactors) -> Float[Array, "b e"]:
        """What the inner products ⟨x_i, x_j⟩ are taken of: 1 is appended for biases."""
        x = jnp.where(rows.valid[:, None], x, 0)
        return x if self.params.bias is None else jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross(self.x, vectors)

    def _cross(self, points: Array, vectors: Vectors) -> Array:
        a, trained = self.params.readout, self.architecture.train_readout

        @jax.checkpoint  # reverse mode computes a block again instead of keeping all of them
        def pull(x: Array, v: Array) -> tuple[Array, Array, Array]:
            rows = row_factors(self.architecture, self.params, x)
            inputs, alone, single = self._inputs(x, rows), _alone(rows), self._single(rows)

            def one(v: Array) -> Array:
                if single is not None:
                    return product(inputs.T, single * v)
                weights = jnp.where(alone, 0, product(v, a.T) - jnp.sum(v * rows.centres, axis=1, keepdims=True))
                weights = weights - jnp.sum(v * rows.offsets, axis=1, keepdims=True)
                return product(inputs.T, rows.slopes * weights)

            features = jax.vmap(lambda v: product(rows.features.T, v), in_axes=-1)(v) if trained else jnp.zeros((), v.dtype)
            return jax.vmap(one, in_axes=-1)(v), features, jnp.any(~rows.valid).astype(v.dtype)

        @jax.checkpoint
        def push(x: Array, q: Array, features: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            inputs, alone, single = self._inputs(x, rows), _alone(rows), self._single(rows)

            def one(q: Array) -> Array:
                if single is not None:
                    return product(single * product(inputs, q), jnp.ones_like(a))
                moved = product(inputs, q) * rows.slopes
                total = jnp.sum(moved, axis=1, keepdims=True)
                kept = jnp.where(alone, 0, moved)
                return product(kept, a) - rows.centres * jnp.sum(kept, axis=1, keepdims=True) - rows.offsets * total

            out = jax.vmap(one, out_axes=-1)(q)
            out = out + jax.vmap(lambda f: product(rows.features, f), out_axes=-1)(features) if trained else out
            return jnp.where(rows.valid[:, None, None], out, jnp.inf)

        blocks = in_blocks(self.x, self.block_size), in_blocks(vectors, self.block_size)
        shapes = jax.eval_shape(pull, blocks[0][0], blocks[1][0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (q, features, invalid), _ = lax.scan(
            lambda total, block: (jax.tree.map(jnp.add, total, pull(*block)), None), zeros, blocks
        )
        others = blocks[0] if points is self.x else in_blocks(points, min(len(points), self.block_size))
        out = lax.map(lambda x: push(x, q, features), others)
        return jnp.where(invalid > 0, jnp.inf, out_of_blocks(out, len(points)))

    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        k, a = self.shape[1], self.params.readout
        rows = row_factors(self.architecture, self.params, points)
        inputs = self._inputs(points, rows)
        g = jnp.take_along_axis(row_vectors(rows, a), outputs[:, None, None], axis=1)[:, 0]
        same = outputs[:, None, None] == jnp.arange(k)[None, None, :]

        def block(x: Array) -> Array:
            others = row_factors(self.architecture, self.params, x)
            inner = product(g, row_vectors(others, a).reshape(-1, g.shape[1]).T).reshape(len(g), -1, k)
            out = product(inputs, self._inputs(x, others).T)[..., None] * inner
            if self.architecture.train_readout:
                out = out + jnp.where(same, product(rows.features, others.features.T)[..., None], 0)
            valid = rows.valid[:, None, None] & others.valid[None, :, None]
            return jnp.where(valid, out, jnp.inf).transpose(1, 2, 0)

        out = lax.map(block, in_blocks(self.x, self.block_size))
        return out_of_blocks(out, self.x.shape[0]).reshape(self.in_size(), -1).T

    def _diagonal(self) -> Float[Array, " size"]:
        def block(x: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            squares = jnp.sum(self._inputs(x, rows) ** 2, axis=1, keepdims=True)
            out = squares * jnp.sum(row_vectors(rows, self.params.readout) ** 2, axis=2)
            if self.architecture.train_readout:
                out = out + jnp.sum(rows.features**2, axis=1, keepdims=True)
            return jnp.where(rows.valid[:, None], out, jnp.inf)

        out = lax.map(block, in_blocks(self.x, self.block_size))
        return out_of_blocks(out, self.x.shape[0]).reshape(-1)


class JacobianOperator(GramOperator):
    """The empirical NTK of any ``apply_fn(params, x)`` whose rows do not interact, on [n, k]: a vjp, then a jvp, in blocks."""

    params: Any
    x: Float[Array, "n ..."]
    apply_fn: Callable = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, k)."""
        return jax.eval_shape(self.apply_fn, self.params, self.x).shape

    @property
    def dtype(self) -> jnp.dtype:
        """That of the outputs."""
        return jax.eval_shape(self.apply_fn, self.params, self.x).dtype

    def astype(self, dtype: Any) -> "JacobianOperator":
        """The same function with its floating-point parameters and points in another precision."""
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        params, x = jax.tree.map(cast, (self.params, self.x))
        return JacobianOperator(params=params, x=x, apply_fn=self.apply_fn, block_size=self.block_size)

    def _pull(self, x: Array, v: Array) -> Any:
        return jax.vjp(lambda p: self.apply_fn(p, x), self.params)[1](v)[0]

    def _push(self, x: Array, tangent: Any) -> Array:
        return jax.jvp(lambda p: self.apply_fn(p, x), (self.params,), (tangent,))[1]

    def _mm(self, vectors: Vectors) -> Vectors:
        return self._cross(self.x, vectors)

    def _cross(self, points: Array, vectors: Vectors) -> Array:
        blocks = in_blocks(self.x, self.block_size), in_blocks(vectors, self.block_size)
        pull = jax.checkpoint(lambda x, v: jax.vmap(lambda w: self._pull(x, w), in_axes=-1)(v))
        push = jax.checkpoint(lambda x, t: jax.vmap(lambda u: self._push(x, u), out_axes=-1)(t))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((vectors.shape[-1], *leaf.shape), leaf.dtype), self.params)
        tangents, _ = lax.scan(lambda total, block: (jax.tree.map(jnp.add, total, pull(*block)), None), zeros, blocks)
        others = blocks[0] if points is self.x else in_blocks(points, min(len(points), self.block_size))
        return out_of_blocks(lax.map(lambda x: push(x, tangents), others), len(points))

    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        k = self.shape[1]
        xs = in_blocks(self.x, self.block_size)

        def row(point: Array, output: Array) -> Array:
            tangent = self._pull(point[None], jax.nn.one_hot(output, k, dtype=self.dtype)[None])
            return out_of_blocks(lax.map(lambda x: self._push(x, tangent), xs), len(self.x)).reshape(-1)

        return lax.map(lambda it: row(*it), (points, outputs))

    def _diagonal(self) -> Float[Array, " size"]:
        k = self.shape[1]

        def row(x: Array) -> Array:
            gradients = jax.vmap(lambda v: self._pull(x[None], v[None]))(jnp.eye(k, dtype=self.dtype))
            return jnp.sum(jnp.stack([jnp.sum(g.reshape(k, -1) ** 2, axis=1) for g in jax.tree.leaves(gradients)]), axis=0)

        return lax.map(row, self.x).reshape(-1)
