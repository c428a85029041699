r"""Gram matrices that are never formed, as lineax operators: what all of them share.

    GramOperator    symmetric, positive semidefinite, on arrays [n, k] or [n]; by points and a kernel between them
    CrossOperator   the same kernel between other points and these, on the way from [n, …] to [t, …]

The kernels themselves: :mod:`softntk.ntk._operators.two_layer` (empirical),
:mod:`softntk.ntk._operators.kernel_function` (infinite width).

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

from softntk._core.meshes import call_without_explicit_axes, run_without_explicit_axes
from softntk._core.operator_tags import register_tags
from softntk._core.validation import (
    as_floating,
    as_integers,
    check_shape,
    is_concrete,
)
from softntk._linalg.norms import binary_exponent, power_of_two
from softntk.ntk._row_scales import saturate

Vector = Float[Array | np.ndarray, "*shape"]
Vectors = Float[Array, "*shape r"]
AnyVectors = Float[Array | np.ndarray, "*shape r"]
Points = Float[Array | np.ndarray, "t ..."]


class GramOperator(lx.AbstractLinearOperator):
    """A symmetric positive semidefinite matrix on arrays of one shape, known by its products.

    Anything that lineax or matfree do with a linear operator works on it; it tells them that it is
    symmetric and positive semidefinite. Beyond lineax' methods: :meth:`mm`, :meth:`rows`,
    :meth:`diagonal`, :meth:`astype`, :meth:`cross`.
    """

    x: eqx.AbstractVar[Array]
    block_size: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the arrays it acts on: (n, k) or (n,)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """Precision of the arrays it acts on."""

    @abc.abstractmethod
    def _mm(self, vectors: Vectors) -> Vectors: ...

    @abc.abstractmethod
    def _cross(self, points: Array, vectors: Vectors) -> Array:
        """Return the kernel between points and x, applied to vectors on x."""

    @abc.abstractmethod
    def _rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        """Return one row of the kernel with x for each of the points, [b, …], at one of its
        outputs.
        """

    @abc.abstractmethod
    def _diagonal(self) -> Float[Array, " size"]: ...

    def _matrix(self, points: Array) -> Float[Array, "rows size"]:
        """Return the kernel between points and x, all rows of it."""
        outputs = self.in_size() // len(self.x)
        repeated = run_without_explicit_axes(lambda points: jnp.repeat(points, outputs, axis=0))(
            points
        )
        return _rows(self, repeated, jnp.tile(jnp.arange(outputs), len(points)))

    @abc.abstractmethod
    def _in_precision(self, dtype: jnp.dtype) -> "GramOperator": ...

    def astype(self, dtype: Any) -> "GramOperator":
        """Return the same operator on arrays of another precision.

        Raises:
            ValueError: dtype is no floating-point type, or one that JAX does not work in here.
        """
        try:
            wanted = jnp.dtype(dtype)
        except TypeError:
            raise ValueError(f"dtype must be a floating-point type, got {dtype!r}.") from None
        if not jnp.issubdtype(wanted, jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, got {wanted}.")
        if jax.dtypes.canonicalize_dtype(wanted) != wanted:
            raise ValueError(
                f"dtype must be one that JAX works in, got {wanted}. Enable jax_enable_x64."
            )
        return self._in_precision(wanted)

    def mv(self, vector: Vector) -> Float[Array, "*shape"]:
        """Return the product with one vector, an array of ``shape``."""
        return _mv(self, _as_vectors("vector", vector, self.shape, self.dtype))

    def mm(self, vectors: AnyVectors) -> Vectors:
        """Return the products with r vectors at once, ``shape`` + (r,), for little more than the
        price of one.
        """
        return _mm(self, _as_vectors("vectors", vectors, (*self.shape, "r"), self.dtype))

    def rows(self, indices: Int[Array | np.ndarray, " b"]) -> Float[Array, "b size"]:
        """Return rows of ``as_matrix()``, computed on demand: [b, size].

        Negative indices count from the end. Those that are out of range raise a ValueError where
        they are known, and are clipped inside ``jax.jit``.
        """
        indices, size = as_integers("indices", indices, ("b",)), self.in_size()
        if is_concrete(indices) and indices.size:
            least, largest = int(jnp.min(indices)), int(jnp.max(indices))
            if least < -size or largest >= size:
                raise ValueError(
                    f"indices must lie between {-size} and {size - 1}, got {least} to {largest}."
                )
        return _rows_at(self, indices)

    def diagonal(self) -> Float[Array, " size"]:
        """Return the diagonal of ``as_matrix()``, [size]."""
        return _diagonal(self)

    def cross(self, points: Points) -> "CrossOperator":
        """Return the same kernel between other points, [t, …], and these.

        It is an operator from [n, k] to [t, k], or from [n] to [t].

        Raises:
            ValueError: points of another feature shape or dtype, empty or not finite.
        """
        array = as_floating("points", points)
        check_shape("points", array, ("t", *self.x.shape[1:]))
        return CrossOperator(self, _in_dtype("points", array, self.x.dtype))

    def at(self, points: Points) -> "GramOperator":
        """Return the same kernel on other points, [t, …]."""
        points = self.cross(points).points
        return dataclasses.replace(self, x=points, block_size=min(self.block_size, len(points)))

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return the matrix itself, [size, size]; of [n, k] the output is the fast index."""
        return self.rows(jnp.arange(self.in_size()))

    def transpose(self) -> "GramOperator":
        """Return itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of what it acts on."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as ``in_structure``."""
        return self.in_structure()


class CrossOperator(lx.AbstractLinearOperator):
    """The kernel between t other points and the n of a Gram operator: what carries coefficients to
    predictions.

    Made by :meth:`GramOperator.cross`. Its transpose is the kernel between the n and the t.
    """

    gram: GramOperator
    points: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what comes out: (t, k) or (t,)."""
        return (len(self.points), *self.gram.shape[1:])

    def mv(self, vector: Vector) -> Array:
        """Return the product with one vector on the n points."""
        vector = _as_vectors("vector", vector, self.gram.shape, self.gram.dtype)
        return _cross_mv(self.gram, self.points, vector)

    def mm(self, vectors: AnyVectors) -> Array:
        """Return the products with r vectors at once: (t, k, r) or (t, r)."""
        columns = _as_vectors("vectors", vectors, (*self.gram.shape, "r"), self.gram.dtype)
        return _cross(self.gram, self.points, columns)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        """Return the matrix itself, [t·k, n·k] or [t, n]."""
        return self.gram._matrix(self.points)

    def transpose(self) -> "CrossOperator":
        """Return the operator from the t points to the n."""
        return self.gram.at(self.points).cross(self.gram.x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of what it acts on."""
        return self.gram.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of what comes out."""
        return jax.ShapeDtypeStruct(self.shape, self.gram.dtype)


# --- vectors
# ----------------------------------------------------------------------------------------------------------


def _as_vectors(name: str, x: object, shape: tuple[int | str, ...], dtype: jnp.dtype) -> Array:
    """Return x in that precision; NaN and infinities of an array of JAX go through, as they do in
    any product.
    """
    array = as_floating(name, x, shape, finite=not isinstance(x, jax.Array))
    return _in_dtype(name, array, dtype)


def _in_dtype(name: str, array: Array, dtype: jnp.dtype) -> Array:
    """Return the array in another precision, which must hold it."""
    if array.dtype == dtype:
        return array
    converted = array.astype(dtype)
    if is_concrete(array) and not bool(jnp.all(jnp.isfinite(converted) == jnp.isfinite(array))):
        raise ValueError(
            f"{name} must fit {dtype}, the precision of the operator: it is beyond its largest number."
        )
    return converted


# --- programs: compiled once for each structure (static fields and shapes), called from methods so
# that eager use is fast ----


@jax.jit
def _mv(op: GramOperator, vector: Vector) -> Float[Array, "*shape"]:
    return _mm(op, vector[..., None])[..., 0]


@jax.jit
def _mm(op: GramOperator, vectors: Vectors) -> Vectors:
    return call_without_explicit_axes(_scaled_mm, op.x, op, vectors)


@jax.jit
def _cross_mv(op: GramOperator, points: Array, vector: Array) -> Array:
    return _cross(op, points, vector[..., None])[..., 0]


@jax.jit
def _cross(op: GramOperator, points: Array, vectors: Vectors) -> Array:
    return call_without_explicit_axes(_scaled_cross, points, op, points, vectors)


@jax.jit
def _rows(op: GramOperator, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
    return call_without_explicit_axes(
        lambda op, points, outputs: op._rows(points, outputs), None, op, points, outputs
    )


@jax.jit
def _rows_at(op: GramOperator, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
    def rows(op: GramOperator, indices: Array) -> Array:
        outputs = op.in_size() // len(op.x)
        return op._rows(op.x[indices // outputs], indices % outputs)

    return call_without_explicit_axes(rows, None, op, indices)


@jax.jit
def _diagonal(op: GramOperator) -> Float[Array, " size"]:
    return call_without_explicit_axes(lambda op: op._diagonal(), op.x, op)


def _scaled_mm(op: GramOperator, vectors: Vectors) -> Vectors:
    scale = _column_scale(vectors)
    return _unscale(op._mm(vectors / scale), scale)


def _scaled_cross(op: GramOperator, points: Array, vectors: Vectors) -> Array:
    scale = _column_scale(vectors)
    return _unscale(op._cross(points, vectors / scale), scale)


def _unscale(out: Array, scale: Array) -> Array:
    """Return out · scale; what leaves the precision only now stays its largest number."""
    return jnp.where(jnp.isfinite(out), saturate(out * scale), out)


def _column_scale(vectors: Vectors) -> Float[Array, "..."]:
    """Return the power of two near the largest entry of each vector, at least one: sums of large
    ones overflow.
    """
    exponents = binary_exponent(vectors, axis=tuple(range(vectors.ndim - 1)))
    return power_of_two(jnp.maximum(exponents, 0), vectors.dtype)


register_tags(GramOperator, positive=lambda operator: True)
register_tags(CrossOperator, symmetric=False)
lx.diagonal.register(GramOperator, lambda operator: operator.diagonal())


@lx.materialise.register(GramOperator)
def _(operator: GramOperator) -> lx.AbstractLinearOperator:
    matrix = operator.as_matrix().reshape(*operator.shape, *operator.shape)
    return lx.PyTreeLinearOperator(matrix, operator.out_structure(), lx.positive_semidefinite_tag)


@lx.materialise.register(CrossOperator)
def _(operator: CrossOperator) -> lx.AbstractLinearOperator:
    matrix = operator.as_matrix().reshape(*operator.shape, *operator.gram.shape)
    return lx.PyTreeLinearOperator(matrix, operator.out_structure())
