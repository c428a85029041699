r"""Attention as regression: min over X of ½‖softmax_rows(A₁ X A₂ᵀ) − B‖², and with a value matrix
over (X, Y).

The rows of the logits Z = A₁ X A₂ᵀ are n coupled problems: with the row-wise structure of
``softntk/regression/_forms.py``,

    ∇²L · V = A₁ᵀ [row i: (diag(D_i) + U_i M_i U_iᵀ) dz_i] A₂,        dZ = A₁ V A₂ᵀ,

which costs two products with A₁ and A₂ each. The n₁n₂ × d₁d₂ Kronecker matrix A₁ ⊗ A₂ is never
formed.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A1, A2 = (jax.random.normal(jax.random.key(i), (6, 3)) for i in range(2))
    >>> p = sn.regression.attention(A1, A2, jnp.eye(6))
    >>> X = jnp.zeros((3, 3))
    >>> p.predict(X).shape, p.hessian(X).mv(X + 1).shape
    ((6, 6), (3, 3))

Source: arXiv 2307.02419 (the tensor trick for many softmax regressions);
MATHEMATICS.md#related-regressions.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from softntk import activations
from softntk._core.operator_tags import register_tags
from softntk._core.records import function_record, static
from softntk._core.validation import as_dtype, as_rows, as_weights
from softntk._linalg.products import product
from softntk.activations import Activation
from softntk.regression._forms import Curvature, Local, as_activation, normalized
from softntk.regression._residual_problem import ResidualProblem, nonnegative, structure_of
from softntk.solution import Result

Weights = float | Float[Array | np.ndarray, ""]


class AttentionOperator(lx.AbstractLinearOperator):
    """V ↦ A₁ᵀ [(diag(D_i) + U_i M_i U_iᵀ) dz_i]_i A₂ with dZ = A₁ V A₂ᵀ: symmetric, on matrices
    [d1, d2].

    Attributes:
        left: A₁, [n1, d1].
        right: A₂, [n2, d2].
        logit_diagonal: D, [n1, n2].
        factors: U, [n1, n2, 2].
        core: M, [n1, 2, 2].
        positive_semidefinite: whether it is known to be, by construction.
    """

    left: Float[Array, "n1 d1"]
    right: Float[Array, "n2 d2"]
    logit_diagonal: Float[Array, "n1 n2"]
    factors: Float[Array, "n1 n2 2"]
    core: Float[Array, "n1 2 2"]
    positive_semidefinite: bool = eqx.field(static=True, default=False)

    def mv(self, vector: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
        """Return the product with one matrix."""
        structure = self.in_structure()
        return _product(
            self, as_dtype("vector", vector, structure.dtype, structure.shape, finite=False)
        )

    def as_matrix(self) -> Float[Array, "p p"]:
        """Return the matrix itself, [d1 d2, d1 d2], row-major; d1 d2 products, one row of A₁ at a
        time.
        """
        return _matrix(self)

    def transpose(self) -> "AttentionOperator":
        """Return itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of what it acts on."""
        return jax.ShapeDtypeStruct((self.left.shape[1], self.right.shape[1]), self.left.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Return the same as ``in_structure``."""
        return self.in_structure()


@function_record
class Attention:
    """½‖u/α by rows − B‖² + ½w²‖Z‖², Z = A₁ X A₂ᵀ; a frozen pytree with the interface of
    ``softntk.regression.Problem``.

    Attributes:
        A1: [n1, d1].
        A2: [n2, d2].
        B: [n1, n2].
        weights: w, a scalar.
        activation: u; exp for softmax.
    """

    A1: Float[Array, "n1 d1"]
    A2: Float[Array, "n2 d2"]
    B: Float[Array, "n1 n2"]
    weights: Float[Array, ""]
    activation: Activation = static()

    def __call__(self, x: Float[Array, "d1 d2"]) -> Float[Array, ""]:
        """Return the loss; +inf outside of the domain."""
        return _loss(self, self._checked(x))

    def logits(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """Return Z = A₁ X A₂ᵀ; +inf where it exceeds the largest number."""
        return _logits(self, self._checked(x))

    def predict(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """Return u/α by rows: the attention matrix."""
        return _predict(self, self._checked(x))

    def residual(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """Return the same minus B."""
        return self.predict(x) - self.B

    def gradient(self, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
        """Return ∇L in closed form; +inf outside of the domain."""
        return _gradient(self, self._checked(x))

    def hessian(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """Return ∇²L."""
        return AttentionOperator(self.A1, self.A2, *_curvature(self, self._checked(x), False))

    def gauss_newton(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """Return JᵀJ, and the weights' part: positive semidefinite."""
        return AttentionOperator(
            self.A1, self.A2, *_curvature(self, self._checked(x), True), positive_semidefinite=True
        )

    def check(self, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
        """Return SUCCESSFUL, NONFINITE_INPUT, NEGATIVE_WEIGHTS, NORMALISER_LOST or OVERFLOW; works
        under jit.
        """
        return _check(self, self._checked(x))

    def _checked(self, x: Any) -> Float[Array, "d1 d2"]:
        return as_dtype("x", x, self.A1.dtype, (self.A1.shape[1], self.A2.shape[1]), finite=False)


class AttentionParameters(NamedTuple):
    """What an attention layer with values is fitted by."""

    x: Float[Array, "d1 d2"]
    y: Float[Array, "d3 k"]


@overload
def attention(
    A1: Any,
    A2: Any,
    B: Any,
    *,
    values: None = None,
    weights: Weights = ...,
    activation: str | Activation = ...,
) -> Attention: ...
@overload
def attention(
    A1: Any,
    A2: Any,
    B: Any,
    *,
    values: Any,
    weights: Weights = ...,
    activation: str | Activation = ...,
) -> ResidualProblem: ...
def attention(
    A1: Float[Array | np.ndarray, "n1 d1"],
    A2: Float[Array | np.ndarray, "n2 d2"],
    B: Float[Array | np.ndarray, "n1 m"],
    *,
    values: Float[Array | np.ndarray, "n2 d3"] | None = None,
    weights: Weights = 0.0,
    activation: str | Activation = "exp",
) -> Attention | ResidualProblem:
    r"""Attention regression ½‖softmax_rows(A₁ X A₂ᵀ) − B‖² + ½w²‖A₁ X A₂ᵀ‖²; with values A₃,
    softmax_rows(A₁ X A₂ᵀ) A₃ Y − B.

    Args:
        A1: queries, [n1, d1].
        A2: keys, [n2, d2].
        B: the target, [n1, n2], or [n1, k] with values.
        values: A₃, [n2, d3]; then the unknowns are ``AttentionParameters(x=X [d1, d2], y=Y [d3,
            k])``.
        weights: w ≥ 0, a scalar.
        activation: u; rows are u/1ᵀu.

    Returns:
        A problem p: ``p(X)``, ``predict``, ``residual``, ``gradient``, ``hessian``,
            ``gauss_newton`` (lineax operators on
        [d1, d2], or on the two together), ``check``.

    Raises:
        ValueError: shapes that do not fit, integers, NaN or numbers beyond the precision, negative
            weights, an unknown activation.

    Example:
        >>> import jax.numpy as jnp
        >>> p = attention(jnp.eye(2), jnp.eye(2), jnp.eye(2), values=jnp.eye(2))
        >>> start = AttentionParameters(x=jnp.zeros((2, 2)), y=jnp.eye(2))
        >>> float(p(start)), p.gradient(start).y.shape
        (0.5, (2, 2))

    Source: arXiv 2307.02419; MATHEMATICS.md#related-regressions.
    """
    A1 = as_rows("A1", A1)
    dtype, n1 = A1.dtype, len(A1)
    A2 = as_dtype("A2", as_rows("A2", A2), dtype)
    n2 = len(A2)
    w = as_weights("weights", weights, dtype, ())
    u = as_activation("activation", activation)
    if values is None:
        return Attention(A1, A2, as_dtype("B", as_rows("B", B), dtype, (n1, n2)), w, u)
    A3 = as_dtype("values", as_rows("values", values), dtype)
    if len(A3) != n2:
        raise ValueError(f"values must have one row for each of A2's {n2}, got shape {A3.shape}.")
    target = as_dtype("B", as_rows("B", B), dtype, (n1, "k"))
    start = AttentionParameters(
        x=jnp.zeros((A1.shape[1], A2.shape[1]), dtype),
        y=jnp.zeros((A3.shape[1], target.shape[1]), dtype),
    )
    return ResidualProblem(
        data=(A1, A2, A3, w), target=target, maps=_with_values(u), structure=structure_of(start)
    )


@lru_cache  # one function for each activation, so that nothing is compiled again
def _with_values(u: Activation) -> Callable[[tuple, AttentionParameters], tuple[Array, Array]]:
    def maps(data: tuple, parameters: AttentionParameters) -> tuple[Array, Array]:
        A1, A2, A3, w = data
        Z = product(product(A1, parameters.x), A2.T)
        return product(product(activations.normalize(u, Z), A3), parameters.y), nonnegative(w) * Z

    return maps


def _rows(p: Attention, Z: Float[Array, "n1 n2"]) -> Any:
    return jax.vmap(lambda z, b: normalized(p.activation, z, b))(Z, p.B)


def _inside(p: Attention, Z: Float[Array, "n1 n2"]) -> tuple[Local, Float[Array, ""], Array]:
    """Return the rows' forms at Z, the loss there, and whether it is inside of the domain."""
    local = _rows(p, Z)
    loss = 0.5 * jnp.sum(local.residual**2) + 0.5 * jnp.sum((p.weights * Z) ** 2)
    return (
        local,
        loss,
        local.kept.all()
        & jnp.isfinite(loss)
        & jnp.isfinite(local.gradient).all()
        & (p.weights >= 0),
    )


@jax.jit
def _logits(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
    Z = product(product(p.A1, x), p.A2.T)
    return jnp.where(jnp.isnan(Z), jnp.inf, Z)


@jax.jit
def _predict(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
    local = _rows(p, _logits(p, x))
    kept = local.kept[:, None] & ~jnp.isnan(local.prediction)
    return jnp.where(kept, local.prediction, jnp.inf)


@jax.jit
def _loss(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, ""]:
    Z = _logits(p, x)
    inside = _inside(p, jax.lax.stop_gradient(Z))[2]
    # Nothing depends on anything outside, so that automatic differentiation meets no infinity
    # there.
    Z, B, weights = (
        jnp.where(inside, part, jax.lax.stop_gradient(part)) for part in (Z, p.B, p.weights)
    )
    return jnp.where(inside, _inside(dataclasses.replace(p, B=B, weights=weights), Z)[1], jnp.inf)


def _gradient_at(p: Attention, Z: Float[Array, "n1 n2"]) -> Float[Array, "d1 d2"]:
    local, _, inside = _inside(p, Z)
    slope = jnp.where(inside, local.gradient + p.weights * (p.weights * Z), 0)
    return jnp.where(inside, product(product(p.A1.T, slope), p.A2), jnp.inf)


@jax.jit
def _gradient(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    gradient = _gradient_at(p, _logits(p, x))
    return jnp.where(jnp.isfinite(gradient).all(), gradient, jnp.inf)


@jax.jit(static_argnums=2)
def _curvature(p: Attention, x: Float[Array, "d1 d2"], gauss_newton: bool) -> Curvature:
    local, _, inside = _inside(p, _logits(p, x))
    part = local.gauss_newton if gauss_newton else local.hessian
    inside &= _is_finite(part)
    diagonal, factors, core = (jnp.where(inside, entry, 0) for entry in part)
    squares = jnp.minimum(p.weights**2, float(jnp.finfo(diagonal.dtype).max))
    return Curvature(diagonal + squares, factors, core)


def _is_finite(part: Curvature) -> Array:
    """Return whether the rows' curvatures are finite, products of the factors included."""
    sizes = jnp.sum(part.factors**2, axis=(1, 2)) * jnp.sum(jnp.abs(part.core), axis=(1, 2))
    return jnp.isfinite(part.diagonal).all() & jnp.isfinite(sizes).all()


def _matrix_is_finite(p: Attention, part: Curvature) -> Array:
    """Return whether the matrix is, by the diagonals of its two parts: no entry of either is
    larger.
    """
    squares = product(product((p.A1**2).T, jnp.abs(part.diagonal)), p.A2**2)
    columns = jnp.sum(jnp.einsum("ijr,jk->irk", part.factors, p.A2) ** 2, axis=(1, 2))
    sizes = jnp.sum(p.A1**2, axis=1) * columns * jnp.sum(jnp.abs(part.core), axis=(1, 2))
    return jnp.isfinite(squares).all() & jnp.isfinite(jnp.sum(sizes))


@jax.jit
def _check(p: Attention, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
    Z = _logits(p, x)
    local, loss, _ = _inside(p, Z)
    finite = jnp.all(
        jnp.asarray([jnp.isfinite(part).all() for part in (x, p.A1, p.A2, p.B, p.weights)])
    )
    fits = jnp.isfinite(loss) & jnp.isfinite(Z).all() & jnp.isfinite(_gradient_at(p, Z)).all()
    for part in (local.hessian, local.gauss_newton):
        weighted = part._replace(diagonal=part.diagonal + p.weights**2)
        fits &= _is_finite(weighted) & _matrix_is_finite(p, weighted)
    # where the logits overflow it is not the normaliser
    resolved = local.kept.all() | ~jnp.isfinite(Z).all()
    code = jnp.where(
        resolved, jnp.where(fits, Result.SUCCESSFUL, Result.OVERFLOW), Result.NORMALISER_LOST
    )
    code = jnp.where(p.weights < 0, Result.NEGATIVE_WEIGHTS, code)
    return jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)


@jax.jit
def _product(op: AttentionOperator, V: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    dZ = product(product(op.left, V), op.right.T)
    small = jnp.einsum("irs,is->ir", op.core, jnp.einsum("ijr,ij->ir", op.factors, dZ))
    dZ = op.logit_diagonal * dZ + jnp.einsum("ijr,ir->ij", op.factors, small)
    dX = product(product(op.left.T, dZ), op.right)
    return jnp.where(jnp.isnan(dX), jnp.inf, dX)


@jax.jit
def _matrix(op: AttentionOperator) -> Float[Array, "p p"]:
    d1, d2 = op.in_structure().shape
    units = jnp.eye(d1 * d2, dtype=op.left.dtype).reshape(d1, d2, d1, d2)
    matrix = jax.lax.map(lambda row: jax.vmap(lambda v: _product(op, v))(row), units).reshape(
        d1 * d2, d1 * d2
    )
    matrix = 0.5 * (matrix + matrix.T)
    return jnp.where(jnp.isnan(matrix), jnp.inf, matrix)  # of infinities of both signs


register_tags(AttentionOperator, positive=lambda operator: operator.positive_semidefinite)
lx.diagonal.register(AttentionOperator, lambda operator: jnp.diagonal(operator.as_matrix()))


@lx.materialise.register(AttentionOperator)
def _(operator: AttentionOperator) -> lx.PyTreeLinearOperator:
    structure = operator.out_structure()
    tags = [
        lx.symmetric_tag,
        *([lx.positive_semidefinite_tag] if operator.positive_semidefinite else []),
    ]
    return lx.PyTreeLinearOperator(
        operator.as_matrix().reshape(*structure.shape, *structure.shape), structure, frozenset(tags)
    )
