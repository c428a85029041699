r"""Curvature of cross-entropy: a linear operator on coefficients [d, k] and an intercept [k].

The intercept is one more row of coefficients, that of a feature which is one everywhere. With it
the curvature is, d̃ = d + 1,

    V ↦ Ãᵀ [row i: s_i (p_i∘dz_i − p_i⟨p_i, dz_i⟩)] + w²∘V,        dZ = Ã V,    Ã = (A, 1).

| symbol | meaning | shape |
|---|---|---|
| A, s | design matrix, weights of its rows | [n, d], [n] |
| P | probabilities, one column for each class with coefficients | [n, k] |
| V | coefficients, stacked: the intercept is the last row | [d̃, k] |
| w² | squared weights of the penalty, zero for the intercept | [d̃] |
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from softntk._core.operator_tags import register_tags
from softntk._core.typing import DesignMatrix
from softntk._core.validation import as_dtype
from softntk._linalg import design_matrix as matrices
from softntk._linalg.row_passes import adjoint_of_rows

MAX_MATRIX_BYTES = 2**34
"""Size above which a matrix is refused, before the memory runs out."""


class CrossEntropyParameters(NamedTuple):
    """Parameters of a classification with an intercept.

    Attributes:
        coefficients: X, [d, k].
        intercept: c, [k].
    """

    coefficients: Float[Array, "d k"]
    intercept: Float[Array, " k"]


def stack_parameters(
    name: str, x: Any, columns: int, features: int, dtype: jnp.dtype, *, intercept: bool
) -> Float[Array, "e k"]:
    """Return parameters as one array, the intercept as the last row; finite or not."""
    if not intercept:
        return as_dtype(name, x, dtype, (features, columns), finite=False)
    if not isinstance(x, tuple) or len(x) != 2:
        raise ValueError(
            f"{name} must be a pair (coefficients [{features}, {columns}], intercept "
            f"[{columns}]), got {type(x).__name__}. Without an intercept make the problem with "
            "intercept=False."
        )
    coefficients = as_dtype(f"{name}[0]", x[0], dtype, (features, columns), finite=False)
    intercept_row = as_dtype(f"{name}[1]", x[1], dtype, (columns,), finite=False)
    return jnp.concatenate([coefficients, intercept_row[None]])


def split_parameters(V: Float[Array, "e k"], container: type | None) -> Any:
    """Return stacked parameters as a pair of a given type, or as they are if it is None."""
    if container is None:
        return V
    pair = (V[:-1], V[-1])
    return container(*pair) if hasattr(container, "_fields") else container(pair)


class CrossEntropyOperator(lx.AbstractLinearOperator):
    """The curvature of cross-entropy at a point; symmetric and positive semidefinite.

    Attributes:
        matrix: A, [n, d]: dense, a BCOO, or a wrapped lineax operator.
        probabilities: P, [n, k].
        row_weights: s, [n].
        squared_weights: w², a scalar or [d].
        container: type of the pair that it acts on; None without intercept.
        fixes_gauge: whether a term is added that makes the curvature regular along the gauge: for
            coefficients without penalty their mean over classes, times the diagonal.
    """

    matrix: DesignMatrix
    probabilities: Float[Array, "n k"]
    row_weights: Float[Array, " n"]
    squared_weights: Float[Array, ""] | Float[Array, " d"]
    container: type | None = eqx.field(static=True)
    fixes_gauge: bool = eqx.field(static=True, default=False)

    def mv(self, vector: Any) -> Any:
        """Return the product with parameters, of their structure, by one pass over A."""
        # Products with overflowing vectors are defined: they are +inf, never NaN.
        d = matrices.shape(self.matrix)[1]
        columns = self.probabilities.shape[1]
        dtype = self.probabilities.dtype
        has_intercept = self.container is not None
        V = stack_parameters("vector", vector, columns, d, dtype, intercept=has_intercept)
        return split_parameters(_product(self, V), None if not has_intercept else type(vector))

    def as_matrix(self) -> Float[Array, "p p"]:
        """Return the matrix itself, row-major, the intercept last; exactly symmetric.

        One Gram product for each pair of classes.

        Raises:
            ValueError: it is too large.
        """
        size = self.in_size()
        byte_count = size**2 * self.probabilities.dtype.itemsize
        if byte_count > MAX_MATRIX_BYTES:
            raise ValueError(
                f"the matrix of the curvature would have shape [{size}, {size}], "
                f"{byte_count / 2**30:.0f} GiB. Use products, mv, as "
                "approx_newton(p.hessian, cg_steps=…) does."
            )
        return _matrix(self)

    def transpose(self) -> "CrossEntropyOperator":
        """Return itself."""
        return self

    def in_structure(self) -> PyTree:
        """Return shapes and dtypes of the parameters that it acts on."""
        d = matrices.shape(self.matrix)[1]
        columns = self.probabilities.shape[1]
        dtype = self.probabilities.dtype
        coefficients = jax.ShapeDtypeStruct((d, columns), dtype)
        if self.container is None:
            return coefficients
        pair = (coefficients, jax.ShapeDtypeStruct((columns,), dtype))
        return self.container(*pair) if hasattr(self.container, "_fields") else pair

    def out_structure(self) -> PyTree:
        """Return the same as ``in_structure``."""
        return self.in_structure()


def penalty_column(op: CrossEntropyOperator) -> Float[Array, "e 1"]:
    """Return w² for each row of stacked parameters, zero for the intercept."""
    d = matrices.shape(op.matrix)[1]
    squared_weights = jnp.broadcast_to(op.squared_weights, (d,))
    if op.container is not None:
        squared_weights = jnp.append(squared_weights, jnp.zeros((), squared_weights.dtype))
    return squared_weights[:, None]


def _curve_rows(
    dZ: Float[Array, "n k"], rows: tuple[Array, Array]
) -> tuple[Float[Array, "n k"], tuple]:
    """Return the rows s_i (p_i∘dz_i − p_i⟨p_i, dz_i⟩)."""
    probabilities, row_weights = rows
    mean = jnp.sum(probabilities * dZ, axis=1, keepdims=True)
    curved = row_weights[:, None] * (probabilities * (dZ - mean))
    # Rows without weight are zero even where their products overflow.
    return jnp.where(row_weights[:, None] > 0, curved, 0), ()


@jax.jit
def _product(op: CrossEntropyOperator, V: Float[Array, "e k"]) -> Float[Array, "e k"]:
    """Return the operator times stacked V, +inf where infinities of both signs meet."""
    rows = (op.probabilities, op.row_weights)
    curved, _ = adjoint_of_rows(_curve_rows, op.matrix, V, rows)
    product = curved + penalty_column(op) * V
    if op.fixes_gauge:
        product = product + gauge_column(op) * jnp.mean(V, axis=1, keepdims=True)
    return jnp.where(jnp.isnan(product), jnp.inf, product)


@jax.jit
def _matrix(op: CrossEntropyOperator) -> Float[Array, "p p"]:
    """Return the matrix, one block [d̃, d̃] for each pair of classes.

    Block (b, c) is Ãᵀ diag(s∘p_b∘(δ_bc − p_c)) Ã, symmetric, and equal to block (c, b).
    """
    # 1. The pairs b ≤ c, and the diagonal of each in the logits.
    columns = op.probabilities.shape[1]
    first_class, second_class = jnp.triu_indices(columns)
    P = op.probabilities.T

    def block(pair: tuple[Array, Array]) -> Float[Array, "e e"]:
        b, c = pair
        D = op.row_weights * (P[b] * (jnp.where(b == c, 1, 0) - P[c]))
        return gram_with_intercept(op.matrix, D, intercept=op.container is not None)

    # 2. The blocks, and their places.
    blocks = lax.map(block, (first_class, second_class))
    blocks = (
        jnp.zeros((columns, columns, *blocks.shape[1:]), blocks.dtype)
        .at[first_class, second_class]
        .set(blocks)
        .at[second_class, first_class]
        .set(blocks)
    )
    matrix = blocks.transpose(2, 0, 3, 1).reshape(blocks.shape[2] * columns, -1)
    matrix = matrix + jnp.diag(jnp.repeat(penalty_column(op), columns))
    if op.fixes_gauge:
        means = jnp.full((columns, columns), 1 / columns, matrix.dtype)
        matrix = matrix + jnp.kron(jnp.diag(gauge_column(op)[:, 0]), means)
    return jnp.where(jnp.isnan(matrix), jnp.inf, matrix)


def gram_with_intercept(
    A: DesignMatrix, D: Float[Array, " n"], *, intercept: bool
) -> Float[Array, "e e"]:
    """Return Ãᵀ diag(D) Ã, exactly symmetric."""
    G = matrices.gram(A, D)
    if not intercept:
        return G
    column = matrices.adjoint(A, D)[:, None]
    return jnp.block([[G, column], [column.T, jnp.sum(D)[None, None]]])


def _diagonal(op: CrossEntropyOperator) -> Float[Array, " p"]:
    """Return the diagonal of the matrix."""
    D = op.row_weights[:, None] * (op.probabilities * (1 - op.probabilities))
    diagonal = jax.vmap(lambda column: matrices.gram_diagonal(op.matrix, column), 1, 1)(D)
    if op.container is not None:
        diagonal = jnp.concatenate([diagonal, jnp.sum(D, axis=0)[None]])
    diagonal = diagonal + penalty_column(op)
    if op.fixes_gauge:
        diagonal = diagonal + gauge_column(op) / op.probabilities.shape[1]
    return diagonal.reshape(-1)


def gauge_column(op: CrossEntropyOperator) -> Float[Array, "e 1"]:
    """Return the mean diagonal over classes of rows of coefficients without penalty, zero else."""
    without_gauge = dataclasses.replace(op, fixes_gauge=False)
    diagonal = _diagonal(without_gauge).reshape(-1, op.probabilities.shape[1])
    mean = jnp.mean(diagonal, axis=1, keepdims=True)
    return jnp.where(penalty_column(op) == 0, mean, 0)


# How lineax recognises the operator: its tags, its diagonal, and its dense form.
register_tags(CrossEntropyOperator, positive=lambda _: True)
lx.diagonal.register(CrossEntropyOperator, _diagonal)


@lx.materialise.register(CrossEntropyOperator)
def _(operator: CrossEntropyOperator) -> lx.AbstractLinearOperator:
    """Return the operator on its parameters by products with its matrix."""
    matrix = operator.as_matrix()

    def multiply(vector: Any) -> Any:
        flat, unravel = ravel_pytree(vector)
        return unravel(matrices.times(matrix, flat))

    tags = frozenset({lx.symmetric_tag, lx.positive_semidefinite_tag})
    return lx.FunctionLinearOperator(multiply, operator.in_structure(), tags)
