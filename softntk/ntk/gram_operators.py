r"""Gram matrices that are never formed, as lineax operators: what all of them share.

    GramOperator    symmetric, positive semidefinite, on arrays [n, k] or [n]; by points and a kernel between them
    CrossOperator   the same kernel between other points and these, on the way from [n, …] to [t, …]

The kernels themselves: :mod:`softntk.ntk.network_operators` (empirical), :mod:`softntk.ntk.kernel_tiles` (infinite width).

Example:
    >>> import jax, softntk as sn
    >>> net = sn.networks.two_layer("softmax", width=64, out_dim=2)
    >>> _, params = net.init_fn(jax.random.key(0), (-1, 3))
    >>> x = jax.random.normal(jax.random.key(1), (5, 3))
    >>> op = sn.ntk.operator(net, params, x)
    >>> op.mv(jax.numpy.ones((5, 2))).shape, op.as_matrix().shape
    ((5, 2), (10, 10))
    >>> op.cross(x[:3] + 0.1).mv(jax.numpy.ones((5, 2))).shape
    (3, 2)
"""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._operators import answer
from softntk._validation import check_finite, check_floating

Vectors = Float[Array, "*shape r"]
Points = Float[Array | np.ndarray, "t ..."]


class GramOperator(lx.AbstractLinearOperator):
    """A symmetric positive semidefinite matrix on arrays of one shape, known by its products.

    Anything that lineax or matfree do with a linear operator works on it; it tells them that it is symmetric and positive
    semidefinite. Beyond lineax' methods: :meth:`mm`, :meth:`rows`, :meth:`diagonal`, :meth:`astype`, :meth:`cross`.
    """

    x: eqx.AbstractVar[Array]
    block_size: eqx.AbstractVar[int]

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
    def _cross(self, points: Array, vectors: Vectors) -> Array:
        """The kernel between points and x, applied to vectors on x."""

    @abc.abstractmethod
    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        """One row of the kernel with x for each of the points, [b, …], at one of its outputs."""

    @abc.abstractmethod
    def _diagonal(self) -> Float[Array, " size"]: ...

    def _matrix(self, points: Array) -> Float[Array, "rows size"]:
        """The kernel between points and x, all rows of it."""
        outputs = self.in_size() // len(self.x)
        return _rows(self, jnp.repeat(points, outputs, axis=0), jnp.tile(jnp.arange(outputs), len(points)))

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
        indices, outputs = jnp.asarray(indices), self.in_size() // len(self.x)
        return _rows(self, self.x[indices // outputs], indices % outputs)

    def diagonal(self) -> Float[Array, " size"]:
        """The diagonal of ``as_matrix()``, [size]."""
        return _diagonal(self)

    def cross(self, points: Points) -> "CrossOperator":
        """The same kernel between other points, [t, …], and these: an operator from [n, k] to [t, k], or from [n] to [t].

        Raises:
            ValueError: points of another feature shape or dtype, empty or not finite.
        """
        check_floating("points", points)
        if jnp.shape(points)[1:] != self.x.shape[1:] or 0 in jnp.shape(points):
            raise ValueError(f"points must have shape {('t', *self.x.shape[1:])}, got {jnp.shape(points)}.")
        check_finite("points", points)
        return CrossOperator(self, jnp.asarray(points, self.x.dtype))

    def at(self, points: Points) -> "GramOperator":
        """The same kernel on other points, [t, …]."""
        points = self.cross(points).points
        return dataclasses.replace(self, x=points, block_size=min(self.block_size, len(points)))

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


class CrossOperator(lx.AbstractLinearOperator):
    """The kernel between t other points and the n of a Gram operator: what carries coefficients to predictions.

    Made by :meth:`GramOperator.cross`. Its transpose is the kernel between the n and the t.
    """

    gram: GramOperator
    points: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what comes out: (t, k) or (t,)."""
        return (len(self.points), *self.gram.shape[1:])

    def mv(self, vector: Float[Array, "*shape"]) -> Array:
        """The product with one vector on the n points."""
        if jnp.shape(vector) != self.gram.shape:
            raise ValueError(f"vector must have shape {self.gram.shape}, got {jnp.shape(vector)}.")
        return _cross(self.gram, self.points, jnp.asarray(vector, self.gram.dtype)[..., None])[..., 0]

    def mm(self, vectors: Vectors) -> Array:
        """The products with r vectors at once: (t, k, r) or (t, r)."""
        if jnp.shape(vectors)[:-1] != self.gram.shape:
            raise ValueError(f"vectors must have shape {(*self.gram.shape, 'r')}, got {jnp.shape(vectors)}.")
        return _cross(self.gram, self.points, jnp.asarray(vectors, self.gram.dtype))

    def as_matrix(self) -> Float[Array, "rows columns"]:
        """The matrix itself, [t·k, n·k] or [t, n]."""
        return self.gram._matrix(self.points)

    def transpose(self) -> "CrossOperator":
        """From the t points to the n."""
        return self.gram.at(self.points).cross(self.gram.x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what it acts on."""
        return self.gram.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what comes out."""
        return jax.ShapeDtypeStruct(self.shape, self.gram.dtype)


# Compiled once for each structure (static fields and shapes); called from methods so that eager use is fast too.
_mm = jax.jit(lambda op, vectors: op._mm(vectors))
_cross = jax.jit(lambda op, points, vectors: op._cross(points, vectors))
_rows = jax.jit(lambda op, points, outputs: op._rows(points, outputs))
_diagonal = jax.jit(lambda op: op._diagonal())

answer(GramOperator, positive=lambda operator: True)
answer(CrossOperator, symmetric=False)
lx.diagonal.register(GramOperator, lambda operator: operator.diagonal())


@lx.materialise.register(GramOperator)
def _(operator: GramOperator) -> lx.AbstractLinearOperator:
    matrix = operator.as_matrix().reshape(*operator.shape, *operator.shape)
    return lx.PyTreeLinearOperator(matrix, operator.out_structure(), lx.positive_semidefinite_tag)


@lx.materialise.register(CrossOperator)
def _(operator: CrossOperator) -> lx.AbstractLinearOperator:
    matrix = operator.as_matrix().reshape(*operator.shape, *operator.gram.shape)
    return lx.PyTreeLinearOperator(matrix, operator.out_structure())
