r"""Gram matrices that are never formed, as lineax operators: products, rows, diagonal, all in blocks of rows.

    GramOperator       what they share: symmetric, positive semidefinite, on arrays [n, k] or [n]
    TwoLayerOperator   empirical NTK of a softntk network, by its row factors
    JacobianOperator   empirical NTK of any apply_fn, by one vjp and one jvp
    KernelOperator     an infinite-width kernel, by tiles

Example:
    >>> import jax, softntk as sn
    >>> net = sn.networks.two_layer("softmax", width=64, out_dim=2)
    >>> _, params = net.init_fn(jax.random.key(0), (-1, 3))
    >>> x = jax.random.normal(jax.random.key(1), (5, 3))
    >>> op = sn.ntk.operator(net, params, x)
    >>> op.mv(jax.numpy.ones((5, 2))).shape, op.as_matrix().shape
    ((5, 2), (10, 10))
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk.networks import Architecture, Parameters, RowFactors, row_factors
from softntk.ntk._contractions import product, row_vectors
from softntk.ntk._empirical import two_layer_kernel

Vectors = Float[Array, "*shape r"]


def in_blocks(array: Array, size: int) -> Array:
    """[n, …] as [n/size, size, …], the last block filled up with zeros."""
    short = -len(array) % size
    return jnp.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)).reshape(-1, size, *array.shape[1:])


def out_of_blocks(blocks: Array, n: int) -> Array:
    """The inverse of :func:`in_blocks`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:n]


class GramOperator(lx.AbstractLinearOperator):
    """A symmetric positive semidefinite matrix on arrays of one shape, known by its products.

    Anything that lineax or matfree do with a linear operator works on it; it tells them that it is symmetric and positive
    semidefinite. Beyond lineax' methods: :meth:`mm`, :meth:`rows`, :meth:`diagonal`, :meth:`astype`.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the arrays it acts on: (n, k) or (n,)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """Of the arrays it acts on."""

    @abc.abstractmethod
    def _mm(self, vectors: Vectors) -> Vectors: ...

    @abc.abstractmethod
    def _rows(self, indices: Int[Array, " b"]) -> Float[Array, "b size"]: ...

    @abc.abstractmethod
    def _diagonal(self) -> Float[Array, " size"]: ...

    @abc.abstractmethod
    def astype(self, dtype: Any) -> "GramOperator":
        """The same operator on arrays of another precision."""

    def mv(self, vector: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The product with one vector, an array of ``shape``."""
        if jnp.shape(vector) != self.shape:
            raise ValueError(f"vector must have shape {self.shape}, got {jnp.shape(vector)}.")
        return _mm(self, jnp.asarray(vector, self.dtype)[..., None])[..., 0]

    def mm(self, vectors: Vectors) -> Vectors:
        """The products with r vectors at once, ``shape`` + (r,), for little more than the price of one."""
        if jnp.shape(vectors)[:-1] != self.shape:
            raise ValueError(f"vectors must have shape {(*self.shape, 'r')}, got {jnp.shape(vectors)}.")
        return _mm(self, jnp.asarray(vectors, self.dtype))

    def rows(self, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
        """Rows of ``as_matrix()``, computed on demand: [b, size]."""
        return _rows(self, jnp.asarray(indices))

    def diagonal(self) -> Float[Array, " size"]:
        """The diagonal of ``as_matrix()``, [size]."""
        return _diagonal(self)

    def as_matrix(self) -> Float[Array, "size size"]:
        """The matrix itself, [size, size]; of [n, k] the output is the fast index."""
        return self.rows(jnp.arange(self.in_size()))

    def transpose(self) -> "GramOperator":
        """Itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what it acts on."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """The same as ``in_structure``."""
        return self.in_structure()


# Compiled once for each structure (static fields and shapes); called from methods so that eager use is fast too.
_mm = jax.jit(lambda op, vectors: op._mm(vectors))
_rows = jax.jit(lambda op, indices: op._rows(indices))
_diagonal = jax.jit(lambda op: op._diagonal())

for question, answer in {
    lx.is_symmetric: True,
    lx.is_positive_semidefinite: True,
    lx.is_negative_semidefinite: False,
    lx.is_diagonal: False,
    lx.is_tridiagonal: False,
    lx.is_lower_triangular: False,
    lx.is_upper_triangular: False,
    lx.has_unit_diagonal: False,
}.items():
    question.register(GramOperator, lambda operator, answer=answer: answer)
lx.diagonal.register(GramOperator, lambda operator: operator.diagonal())
lx.linearise.register(GramOperator, lambda operator: operator)
lx.conj.register(GramOperator, lambda operator: operator)


@lx.materialise.register(GramOperator)
def _(operator: GramOperator) -> lx.AbstractLinearOperator:
    matrix = operator.as_matrix().reshape(*operator.shape, *operator.shape)
    return lx.PyTreeLinearOperator(matrix, operator.out_structure(), lx.positive_semidefinite_tag)


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
        return TwoLayerOperator(params, x, self.architecture, self.block_size)

    def as_matrix(self) -> Float[Array, "size size"]:
        """All rows at once, through :func:`softntk.ntk.empirical`."""
        kernel = two_layer_kernel(self.architecture, self.params, self.x, None, "full", None)
        return kernel.transpose(0, 2, 1, 3).reshape(self.in_size(), self.in_size())

    def _inputs(self, x: Float[Array, "b d"], rows: RowFactors) -> Float[Array, "b e"]:
        """What the inner products ⟨x_i, x_j⟩ are taken of: 1 is appended for biases."""
        x = jnp.where(rows.valid[:, None], x, 0)
        return x if self.params.bias is None else jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)

    def _mm(self, vectors: Vectors) -> Vectors:
        a, trained = self.params.readout, self.architecture.train_readout
        blocks = in_blocks(self.x, self.block_size), in_blocks(vectors, self.block_size)

        @jax.checkpoint  # reverse mode computes a block again instead of keeping all of them
        def pull(x: Array, v: Array) -> tuple[Array, Array, Array]:
            rows = row_factors(self.architecture, self.params, x)
            inputs, alone = self._inputs(x, rows), _alone(rows)

            def one(v: Array) -> Array:
                weights = jnp.where(alone, 0, product(v, a.T) - jnp.sum(v * rows.centres, axis=1, keepdims=True))
                weights = weights - jnp.sum(v * rows.offsets, axis=1, keepdims=True)
                return product(inputs.T, rows.slopes * weights)

            features = jax.vmap(lambda v: product(rows.features.T, v), in_axes=-1)(v) if trained else jnp.zeros((), v.dtype)
            return jax.vmap(one, in_axes=-1)(v), features, jnp.any(~rows.valid).astype(v.dtype)

        @jax.checkpoint
        def push(x: Array, q: Array, features: Array) -> Array:
            rows = row_factors(self.architecture, self.params, x)
            inputs, alone = self._inputs(x, rows), _alone(rows)

            def one(q: Array) -> Array:
                moved = product(inputs, q) * rows.slopes
                total = jnp.sum(moved, axis=1, keepdims=True)
                kept = jnp.where(alone, 0, moved)
                return product(kept, a) - rows.centres * jnp.sum(kept, axis=1, keepdims=True) - rows.offsets * total

            out = jax.vmap(one, out_axes=-1)(q)
            return out + jax.vmap(lambda f: product(rows.features, f), out_axes=-1)(features) if trained else out

        shapes = jax.eval_shape(pull, blocks[0][0], blocks[1][0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (q, features, invalid), _ = lax.scan(
            lambda total, block: (jax.tree.map(jnp.add, total, pull(*block)), None), zeros, blocks
        )
        out = lax.map(lambda x: push(x, q, features), blocks[0])
        return jnp.where(invalid > 0, jnp.inf, out_of_blocks(out, self.x.shape[0]))

    def _rows(self, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
        k, a = self.shape[1], self.params.readout
        mine = self.x[indices // k]
        rows = row_factors(self.architecture, self.params, mine)
        inputs = self._inputs(mine, rows)
        g = jnp.take_along_axis(row_vectors(rows, a), (indices % k)[:, None, None], axis=1)[:, 0]
        same = (indices % k)[:, None, None] == jnp.arange(k)[None, None, :]

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
        return JacobianOperator(params, x, self.apply_fn, self.block_size)

    def _pull(self, x: Array, v: Array) -> Any:
        return jax.vjp(lambda p: self.apply_fn(p, x), self.params)[1](v)[0]

    def _push(self, x: Array, tangent: Any) -> Array:
        return jax.jvp(lambda p: self.apply_fn(p, x), (self.params,), (tangent,))[1]

    def _mm(self, vectors: Vectors) -> Vectors:
        n, r = self.shape[0], vectors.shape[-1]
        blocks = in_blocks(self.x, self.block_size), in_blocks(vectors, self.block_size)
        pull = jax.checkpoint(lambda x, v: jax.vmap(lambda w: self._pull(x, w), in_axes=-1)(v))
        push = jax.checkpoint(lambda x, t: jax.vmap(lambda u: self._push(x, u), out_axes=-1)(t))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((r, *leaf.shape), leaf.dtype), self.params)
        tangents, _ = lax.scan(lambda total, block: (jax.tree.map(jnp.add, total, pull(*block)), None), zeros, blocks)
        return out_of_blocks(lax.map(lambda x: push(x, tangents), blocks[0]), n)

    def _rows(self, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
        k = self.shape[1]
        xs = in_blocks(self.x, self.block_size)

        def row(index: Array) -> Array:
            tangent = self._pull(self.x[index // k][None], jax.nn.one_hot(index % k, k, dtype=self.dtype)[None])
            return out_of_blocks(lax.map(lambda x: self._push(x, tangent), xs), len(self.x)).reshape(-1)

        return lax.map(row, indices)

    def _diagonal(self) -> Float[Array, " size"]:
        k = self.shape[1]

        def row(x: Array) -> Array:
            gradients = jax.vmap(lambda v: self._pull(x[None], v[None]))(jnp.eye(k, dtype=self.dtype))
            return jnp.sum(jnp.stack([jnp.sum(g.reshape(k, -1) ** 2, axis=1) for g in jax.tree.leaves(gradients)]), axis=0)

        return lax.map(row, self.x).reshape(-1)


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

    def astype(self, dtype: Any) -> "KernelOperator":
        """The same kernel on points in another precision."""
        return KernelOperator(self.x.astype(dtype), self.kernel_fn, self.block_size)

    def _mm(self, vectors: Vectors) -> Vectors:
        xs, vs = in_blocks(self.x, self.block_size), in_blocks(vectors, self.block_size)
        pairs = jnp.asarray([(i, j) for i in range(len(xs)) for j in range(i, len(xs))])

        @jax.checkpoint
        def tile(pair: Array) -> tuple[Array, Array]:
            i, j = pair
            kernel = self.kernel_fn(xs[i], xs[j])
            return product(kernel, vs[j]), jnp.where(i == j, 0, product(kernel.T, vs[i]))

        def add(out: Array, pair: Array) -> tuple[Array, None]:
            above, below = tile(pair)
            return out.at[pair[0]].add(above).at[pair[1]].add(below), None

        out, _ = lax.scan(add, jnp.zeros_like(vs), pairs)
        return out_of_blocks(out, len(self.x))

    def _rows(self, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
        mine = self.x[indices]
        out = lax.map(lambda x: self.kernel_fn(x, mine), in_blocks(self.x, self.block_size))
        return out_of_blocks(out, len(self.x)).T

    def _diagonal(self) -> Float[Array, " size"]:
        return lax.map(lambda x: self.kernel_fn(x[None], x[None])[0, 0], self.x, batch_size=min(256, len(self.x)))
