"""Curvature of attention regression: a linear operator on matrices [d1, d2]."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from softntk._core.operator_tags import register_tags
from softntk._core.validation import as_dtype
from softntk._linalg.products import product


class AttentionOperator(lx.AbstractLinearOperator):
    """The symmetric map V ↦ A₁ᵀ [(diag(D_i) + U_i M_i U_iᵀ) dz_i]_i A₂, with dZ = A₁ V A₂ᵀ.

    Attributes:
        left: A₁, [n1, d1].
        right: A₂, [n2, d2].
        logit_diagonal: D, [n1, n2].
        factors: U, [n1, n2, 2].
        core: M, [n1, 2, 2].
        positive_semidefinite: whether it is by construction.
    """

    left: Float[Array, "n1 d1"]
    right: Float[Array, "n2 d2"]
    logit_diagonal: Float[Array, "n1 n2"]
    factors: Float[Array, "n1 n2 2"]
    core: Float[Array, "n1 2 2"]
    positive_semidefinite: bool = eqx.field(static=True, default=False)

    def mv(self, vector: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
        """Return the product with one matrix."""
        # Products with overflowing vectors are defined: they are +inf, never NaN.
        structure = self.in_structure()
        V = as_dtype("vector", vector, structure.dtype, structure.shape, finite=False)
        return _product(self, V)

    def as_matrix(self) -> Float[Array, "p p"]:
        """Return the matrix itself, [d1 d2, d1 d2], row-major.

        It takes d1 d2 products, d2 of them at a time.
        """
        return _matrix(self)

    def transpose(self) -> "AttentionOperator":
        """Return itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the matrices that it acts on."""
        return jax.ShapeDtypeStruct((self.left.shape[1], self.right.shape[1]), self.left.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as ``in_structure``."""
        return self.in_structure()


# V → dZ = A₁ V A₂ᵀ → (diag(D_i) + U_i M_i U_iᵀ) dz_i by rows → A₁ᵀ dZ A₂
@jax.jit
def _product(op: AttentionOperator, V: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    """Return the operator times V, +inf where infinities of both signs meet."""
    dZ = product(product(op.left, V), op.right.T)
    coefficients = jnp.einsum("irs,is->ir", op.core, jnp.einsum("ijr,ij->ir", op.factors, dZ))
    dZ = op.logit_diagonal * dZ + jnp.einsum("ijr,ir->ij", op.factors, coefficients)
    dX = product(product(op.left.T, dZ), op.right)
    return jnp.where(jnp.isnan(dX), jnp.inf, dX)


@jax.jit
def _matrix(op: AttentionOperator) -> Float[Array, "p p"]:
    """Return the matrix of the operator, by products with unit matrices."""
    d1, d2 = op.in_structure().shape
    unit_matrices = jnp.eye(d1 * d2, dtype=op.left.dtype).reshape(d1, d2, d1, d2)
    multiply_row = jax.vmap(lambda V: _product(op, V))
    matrix = jax.lax.map(multiply_row, unit_matrices).reshape(d1 * d2, d1 * d2)
    # Rounding makes it slightly unsymmetric. Infinities of both signs would make NaN.
    matrix = 0.5 * (matrix + matrix.T)
    return jnp.where(jnp.isnan(matrix), jnp.inf, matrix)


# How lineax recognises the operator: its tags, its diagonal, and its dense form.
register_tags(AttentionOperator, positive=lambda operator: operator.positive_semidefinite)
lx.diagonal.register(AttentionOperator, lambda operator: jnp.diagonal(operator.as_matrix()))


@lx.materialise.register(AttentionOperator)
def _(operator: AttentionOperator) -> lx.PyTreeLinearOperator:
    """Return the operator as a matrix with the same tags."""
    structure = operator.out_structure()
    tags = {lx.symmetric_tag}
    if operator.positive_semidefinite:
        tags.add(lx.positive_semidefinite_tag)
    matrix_tensor = operator.as_matrix().reshape(*structure.shape, *structure.shape)
    return lx.PyTreeLinearOperator(matrix_tensor, structure, frozenset(tags))
