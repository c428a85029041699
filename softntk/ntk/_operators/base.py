r"""Gram matrices that are never formed, as lineax operators: what all of them share.

    GramOperator     the kernel on n points: symmetric, positive semidefinite, on [n, k] or [n]
    CrossOperator    the same kernel between t other points and these n, from [n, …] to [t, …]

The kernels are in :mod:`softntk.ntk._operators.two_layer` (empirical, of softntk networks),
:mod:`softntk.ntk._operators.jacobian` (empirical, of any function) and
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

# What products act on, as arguments of the public methods and as JAX arrays inside.
Vector = Float[Array | np.ndarray, "*shape"]
Vectors = Float[Array, "*shape r"]
VectorsLike = Float[Array | np.ndarray, "*shape r"]
Points = Float[Array | np.ndarray, "t ..."]


class GramOperator(lx.AbstractLinearOperator):
    """A symmetric positive semidefinite matrix that is known by its products with arrays.

    Every function of lineax or matfree that takes a linear operator takes this one; it is tagged
    symmetric and positive semidefinite. Beyond the methods of lineax it has :meth:`mm`,
    :meth:`rows`, :meth:`diagonal`, :meth:`astype` and :meth:`cross`.

    Attributes:
        x: the n points, [n, …].
        block_size: rows that are computed at a time.
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
    def _mm(self, vectors: Vectors) -> Vectors:
        """Return the products with r vectors on x, whose entries are at most of order one."""

    @abc.abstractmethod
    def _cross_mm(self, points: Array, vectors: Vectors) -> Array:
        """Return the products of the kernel between points and x with r vectors on x."""

    @abc.abstractmethod
    def _compute_rows(self, points: Array, outputs: Int[Array, " b"]) -> Float[Array, "b size"]:
        """Return one row of the kernel with x for each point, [b, …], at one of its outputs."""

    @abc.abstractmethod
    def _compute_diagonal(self) -> Float[Array, " size"]:
        """Return the diagonal of the kernel."""

    def _cross_matrix(self, points: Array) -> Float[Array, "rows size"]:
        """Return the kernel between points and x as a matrix."""
        # Each point once for each of its outputs, the output being the fast index.
        outputs = self.in_size() // len(self.x)
        repeat = run_without_explicit_axes(lambda points: jnp.repeat(points, outputs, axis=0))
        repeated = repeat(points)
        return _compiled_rows(self, repeated, jnp.tile(jnp.arange(outputs), len(points)))

    @abc.abstractmethod
    def _cast(self, dtype: jnp.dtype) -> "GramOperator":
        """Return the operator in another precision, which has been checked."""

    def astype(self, dtype: Any) -> "GramOperator":
        """Return the same operator on arrays of another precision.

        Raises:
            ValueError: dtype is no floating-point type, or one that JAX does not work in here.
        """
        try:
            new_dtype = jnp.dtype(dtype)
        except TypeError:
            raise ValueError(f"dtype must be a floating-point type, got {dtype!r}.") from None
        if not jnp.issubdtype(new_dtype, jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, got {new_dtype}.")
        if jax.dtypes.canonicalize_dtype(new_dtype) != new_dtype:
            raise ValueError(
                f"dtype must be one that JAX works in, got {new_dtype}. Enable jax_enable_x64."
            )
        return self._cast(new_dtype)

    def mv(self, vector: Vector) -> Float[Array, "*shape"]:
        """Return the product with one vector, an array of ``shape``."""
        return _compiled_mv(self, _as_vectors("vector", vector, self.shape, self.dtype))

    def mm(self, vectors: VectorsLike) -> Vectors:
        """Return the products with r vectors at once, ``shape`` + (r,).

        They cost little more than one product, so collect vectors where you can.
        """
        return _compiled_mm(self, _as_vectors("vectors", vectors, (*self.shape, "r"), self.dtype))

    def rows(self, indices: Int[Array | np.ndarray, " b"]) -> Float[Array, "b size"]:
        """Return rows of ``as_matrix()``, computed when they are called for: [b, size].

        Negative indices count from the end. Those that are out of range raise a ValueError where
        they are known, and are clipped inside ``jax.jit``.
        """
        indices = as_integers("indices", indices, ("b",))
        size = self.in_size()
        if is_concrete(indices) and indices.size:
            lowest = int(jnp.min(indices))
            highest = int(jnp.max(indices))
            if lowest < -size or highest >= size:
                raise ValueError(
                    f"indices must lie between {-size} and {size - 1}, got {lowest} to {highest}."
                )
        return _compiled_rows_at(self, indices)

    def diagonal(self) -> Float[Array, " size"]:
        """Return the diagonal of ``as_matrix()``, [size]."""
        return _compiled_diagonal(self)

    def cross(self, points: Points) -> "CrossOperator":
        """Return the same kernel between other points, [t, …], and these.

        Use it to predict at test points. It is an operator from [n, k] to [t, k], or from [n] to
        [t]: from coefficients on the n points to values at the t points.

        Raises:
            ValueError: points of another feature shape or dtype, empty or not finite.
        """
        # The points in the precision of x: a mixed product would be in neither.
        array = as_floating("points", points)
        check_shape("points", array, ("t", *self.x.shape[1:]))
        return CrossOperator(self, _in_dtype("points", array, self.x.dtype))

    def at(self, points: Points) -> "GramOperator":
        """Return the same kernel on other points, [t, …]."""
        points = self.cross(points).points
        return dataclasses.replace(self, x=points, block_size=min(self.block_size, len(points)))

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return the matrix, [size, size]; on [n, k] the output is the fast index."""
        return self.rows(jnp.arange(self.in_size()))

    def transpose(self) -> "GramOperator":
        """Return itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the arrays it acts on."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as ``in_structure``."""
        return self.in_structure()


class CrossOperator(lx.AbstractLinearOperator):
    """The kernel between t other points and the n points of a Gram operator.

    It maps coefficients on the n points to predictions at the t points. :meth:`GramOperator.cross`
    makes it. Its transpose is the kernel between the n and the t.

    Attributes:
        gram: the operator on the n points.
        points: the t points.
    """

    gram: GramOperator
    points: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its products: (t, k) or (t,)."""
        return (len(self.points), *self.gram.shape[1:])

    def mv(self, vector: Vector) -> Array:
        """Return the product with one vector on the n points."""
        vector = _as_vectors("vector", vector, self.gram.shape, self.gram.dtype)
        return _compiled_cross_mv(self.gram, self.points, vector)

    def mm(self, vectors: VectorsLike) -> Array:
        """Return the products with r vectors at once: (t, k, r) or (t, r)."""
        columns = _as_vectors("vectors", vectors, (*self.gram.shape, "r"), self.gram.dtype)
        return _compiled_cross_mm(self.gram, self.points, columns)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        """Return the matrix, [t·k, n·k] or [t, n]."""
        return self.gram._cross_matrix(self.points)

    def transpose(self) -> "CrossOperator":
        """Return the operator from the t points to the n."""
        return self.gram.at(self.points).cross(self.gram.x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the arrays it acts on."""
        return self.gram.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of its products."""
        return jax.ShapeDtypeStruct(self.shape, self.gram.dtype)


# --- vectors -------------------------------------------------------------------------------------


def _as_vectors(name: str, x: object, shape: tuple[int | str, ...], dtype: jnp.dtype) -> Array:
    """Return x as an array of this shape and precision.

    NaN and infinities of a JAX array pass through, as they do in any product.
    """
    array = as_floating(name, x, shape, finite=not isinstance(x, jax.Array))
    return _in_dtype(name, array, dtype)


def _in_dtype(name: str, array: Array, dtype: jnp.dtype) -> Array:
    """Return the array in another precision; raise where a finite number would overflow there."""
    if array.dtype == dtype:
        return array
    converted = array.astype(dtype)
    if is_concrete(array) and not bool(jnp.all(jnp.isfinite(converted) == jnp.isfinite(array))):
        raise ValueError(
            f"{name} must fit {dtype}, the precision of the operator: "
            "it is beyond its largest number."
        )
    return converted


# --- programs ------------------------------------------------------------------------------------

# The public methods call these functions, so that they are fast outside of jit. Each is compiled
# once for each structure: static fields of the operator, and shapes.


@jax.jit
def _compiled_mv(op: GramOperator, vector: Vector) -> Float[Array, "*shape"]:
    """Return the product with one vector."""
    return _compiled_mm(op, vector[..., None])[..., 0]


@jax.jit
def _compiled_mm(op: GramOperator, vectors: Vectors) -> Vectors:
    """Return the products with r vectors."""
    return call_without_explicit_axes(_scaled_mm, op.x, op, vectors)


@jax.jit
def _compiled_cross_mv(op: GramOperator, points: Array, vector: Array) -> Array:
    """Return the product of the kernel between points and x with one vector."""
    return _compiled_cross_mm(op, points, vector[..., None])[..., 0]


@jax.jit
def _compiled_cross_mm(op: GramOperator, points: Array, vectors: Vectors) -> Array:
    """Return the products of the kernel between points and x with r vectors."""
    return call_without_explicit_axes(_scaled_cross_mm, points, op, points, vectors)


@jax.jit
def _compiled_rows(
    op: GramOperator, points: Array, outputs: Int[Array, " b"]
) -> Float[Array, "b size"]:
    """Return one row of the kernel for each point, at one of its outputs."""
    return call_without_explicit_axes(
        lambda op, points, outputs: op._compute_rows(points, outputs), None, op, points, outputs
    )


@jax.jit
def _compiled_rows_at(op: GramOperator, indices: Int[Array, " b"]) -> Float[Array, "b size"]:
    """Return the rows of the matrix at these indices."""

    def rows(op: GramOperator, indices: Array) -> Array:
        outputs = op.in_size() // len(op.x)
        return op._compute_rows(op.x[indices // outputs], indices % outputs)

    return call_without_explicit_axes(rows, None, op, indices)


@jax.jit
def _compiled_diagonal(op: GramOperator) -> Float[Array, " size"]:
    """Return the diagonal of the matrix."""
    return call_without_explicit_axes(lambda op: op._compute_diagonal(), op.x, op)


def _scaled_mm(op: GramOperator, vectors: Vectors) -> Vectors:
    """Return K V, with V divided by a power of two for each column before."""
    column_scale = _column_scale(vectors)
    return _unscale(op._mm(vectors / column_scale), column_scale)


def _scaled_cross_mm(op: GramOperator, points: Array, vectors: Vectors) -> Array:
    """Return K V between points and x, with V scaled in the same way."""
    column_scale = _column_scale(vectors)
    return _unscale(op._cross_mm(points, vectors / column_scale), column_scale)


def _unscale(image: Array, scale: Array) -> Array:
    """Return image · scale; what overflows only now becomes the largest number."""
    return jnp.where(jnp.isfinite(image), saturate(image * scale), image)


def _column_scale(vectors: Vectors) -> Float[Array, "..."]:
    """Return a power of two near the largest entry of each vector, at least one.

    Sums of large entries would overflow before the result does.
    """
    exponents = binary_exponent(vectors, axis=tuple(range(vectors.ndim - 1)))
    return power_of_two(jnp.maximum(exponents, 0), vectors.dtype)


# What lineax may assume of the operators, and how it takes their diagonals and matrices.
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
