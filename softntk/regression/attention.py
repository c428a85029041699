r"""Attention as regression: min over X of ½‖softmax_rows(A₁ X A₂ᵀ) − B‖², and with a value matrix over (X, Y).

The rows of the logits Z = A₁ X A₂ᵀ are n coupled problems: with the row-wise structure of ``softntk/regression/_forms.py``,

    ∇²L · V = A₁ᵀ [row i: (diag(D_i) + U_i M_i U_iᵀ) dz_i] A₂,        dZ = A₁ V A₂ᵀ,

which costs two products with A₁ and A₂ each. The n₁n₂ × d₁d₂ Kronecker matrix A₁ ⊗ A₂ is never formed.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A1, A2 = (jax.random.normal(jax.random.key(i), (6, 3)) for i in range(2))
    >>> p = sn.regression.attention(A1, A2, jnp.eye(6))
    >>> X = jnp.zeros((3, 3))
    >>> p.predict(X).shape, p.hessian(X).mv(X + 1).shape
    ((6, 6), (3, 3))

Source: arXiv 2307.02419 (the tensor trick for many softmax regressions); MATH.md section 4, neighbours.
"""

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
from softntk._operators import answer
from softntk._records import function_record, static
from softntk._validation import check_finite, check_floating, check_rows, is_concrete
from softntk.activations import Activation
from softntk.curvature._matrices import product
from softntk.regression._forms import Curvature, normalized
from softntk.regression.implicit import ResidualProblem, nonnegative, structure_of
from softntk.solution import Result

Weights = float | Float[Array | np.ndarray, ""]


class AttentionOperator(lx.AbstractLinearOperator):
    """V ↦ A₁ᵀ [(diag(D_i) + U_i M_i U_iᵀ) dz_i]_i A₂ with dZ = A₁ V A₂ᵀ: symmetric, on matrices [d1, d2].

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
        """The product with one matrix."""
        structure = self.in_structure()
        if jnp.shape(vector) != structure.shape:
            raise ValueError(f"vector must have shape {structure.shape}, got {jnp.shape(vector)}.")
        return _product(self, jnp.asarray(vector, structure.dtype))

    def as_matrix(self) -> Float[Array, "p p"]:
        """The matrix itself, [d1 d2, d1 d2], row-major; d1 d2 products, one row of A₁ at a time."""
        return _matrix(self)

    def transpose(self) -> "AttentionOperator":
        """Itself."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what it acts on."""
        return jax.ShapeDtypeStruct((self.left.shape[1], self.right.shape[1]), self.left.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """The same as ``in_structure``."""
        return self.in_structure()


@function_record
class Attention:
    """½‖u/α by rows − B‖² + ½w²‖Z‖², Z = A₁ X A₂ᵀ; a frozen pytree with the interface of ``softntk.regression.Problem``.

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
        """The loss; +inf outside of the domain."""
        return _loss(self, self._checked(x))

    def logits(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """Z = A₁ X A₂ᵀ."""
        return _logits(self, self._checked(x))

    def predict(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """u/α by rows: the attention matrix."""
        return activations.normalize(self.activation, self.logits(x))

    def residual(self, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
        """The same minus B."""
        return self.predict(x) - self.B

    def gradient(self, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
        """∇L in closed form; +inf outside of the domain."""
        return _gradient(self, self._checked(x))

    def hessian(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """∇²L."""
        return AttentionOperator(self.A1, self.A2, *_curvature(self, self._checked(x), False))

    def gauss_newton(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """JᵀJ, and the weights' part: positive semidefinite."""
        return AttentionOperator(self.A1, self.A2, *_curvature(self, self._checked(x), True), positive_semidefinite=True)

    def check(self, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
        """SUCCESSFUL, NONFINITE_INPUT, NEGATIVE_WEIGHTS, NORMALISER_LOST or OVERFLOW; works under jit."""
        return _check(self, self._checked(x))

    def _checked(self, x: Any) -> Float[Array, "d1 d2"]:
        shape = (self.A1.shape[1], self.A2.shape[1])
        if jnp.shape(x) != shape:
            raise ValueError(f"x must have shape {shape}, got {jnp.shape(x)}.")
        return jnp.asarray(x, self.A1.dtype)


class AttentionParameters(NamedTuple):
    """What an attention layer with values is fitted by."""

    x: Float[Array, "d1 d2"]
    y: Float[Array, "d3 k"]


@overload
def attention(
    A1: Any, A2: Any, B: Any, *, values: None = None, weights: Weights = ..., activation: str | Activation = ...
) -> Attention: ...
@overload
def attention(
    A1: Any, A2: Any, B: Any, *, values: Any, weights: Weights = ..., activation: str | Activation = ...
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
    r"""Attention regression ½‖softmax_rows(A₁ X A₂ᵀ) − B‖² + ½w²‖A₁ X A₂ᵀ‖²; with values A₃, softmax_rows(A₁ X A₂ᵀ) A₃ Y − B.

    Args:
        A1: queries, [n1, d1].
        A2: keys, [n2, d2].
        B: the target, [n1, n2], or [n1, k] with values.
        values: A₃, [n2, d3]; then the unknowns are ``AttentionParameters(x=X [d1, d2], y=Y [d3, k])``.
        weights: w ≥ 0, a scalar.
        activation: u; rows are u/1ᵀu.

    Returns:
        A problem p: ``p(X)``, ``predict``, ``residual``, ``gradient``, ``hessian``, ``gauss_newton`` (lineax operators on
        [d1, d2], or on the two together), ``check``.

    Raises:
        ValueError: shapes that do not fit, integers, NaN, negative weights.

    Example:
        >>> import jax.numpy as jnp
        >>> p = attention(jnp.eye(2), jnp.eye(2), jnp.eye(2), values=jnp.eye(2))
        >>> start = AttentionParameters(x=jnp.zeros((2, 2)), y=jnp.eye(2))
        >>> float(p(start)), p.gradient(start).y.shape
        (0.5, (2, 2))

    Source: arXiv 2307.02419; MATH.md section 4.
    """
    check_rows("A1", A1)
    check_rows("A2", A2)
    check_floating("B", B)
    check_finite("B", B)
    dtype = jnp.result_type(A1)
    if is_concrete(weights) and not (np.ndim(weights) == 0 and np.isfinite(weights) and weights >= 0):
        raise ValueError(f"weights must be a finite scalar, zero or positive, got {weights}.")
    A1, A2, B, w = (jnp.asarray(part, dtype) for part in (A1, A2, B, weights))
    u = activations.get(activation)
    if values is None:
        if B.shape != (len(A1), len(A2)):
            raise ValueError(f"B must have shape {(len(A1), len(A2))}, got {B.shape}.")
        return Attention(A1, A2, B, w, u)
    check_rows("values", values)
    if len(values) != len(A2) or B.ndim != 2 or len(B) != len(A1):
        raise ValueError(
            f"values must have one row for each of A2's {len(A2)} and B one for each of A1's {len(A1)}, got shapes "
            f"{jnp.shape(values)} and {B.shape}."
        )
    A3, k = jnp.asarray(values, dtype), B.shape[1]
    start = AttentionParameters(x=jnp.zeros((A1.shape[1], A2.shape[1]), dtype), y=jnp.zeros((A3.shape[1], k), dtype))
    return ResidualProblem(data=(A1, A2, A3, w), target=B, maps=_with_values(u), structure=structure_of(start))


@lru_cache  # one function for each activation, so that nothing is compiled again
def _with_values(u: Activation) -> Callable[[tuple, AttentionParameters], tuple[Array, Array]]:
    def maps(data: tuple, parameters: AttentionParameters) -> tuple[Array, Array]:
        A1, A2, A3, w = data
        Z = product(product(A1, parameters.x), A2.T)
        return product(product(activations.normalize(u, Z), A3), parameters.y), nonnegative(w) * Z

    return maps


def _rows(p: Attention, Z: Float[Array, "n1 n2"]) -> Any:
    return jax.vmap(lambda z, b: normalized(p.activation, z, b))(Z, p.B)


def _inside(p: Attention, Z: Float[Array, "n1 n2"]) -> tuple[Any, Float[Array, ""], Array]:
    local = _rows(p, Z)
    loss = 0.5 * jnp.sum(local.residual**2) + 0.5 * p.weights**2 * jnp.sum(Z**2)
    return local, loss, local.kept.all() & jnp.isfinite(loss) & (p.weights >= 0)


@jax.jit
def _logits(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
    return product(product(p.A1, x), p.A2.T)


@jax.jit
def _loss(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, ""]:
    Z = _logits(p, x)
    inside = _inside(p, jax.lax.stop_gradient(Z))[2]
    return jnp.where(inside, _inside(p, jnp.where(inside, Z, 0))[1], jnp.inf)


@jax.jit
def _gradient(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    Z = _logits(p, x)
    local, _, inside = _inside(p, Z)
    slope = jnp.where(inside, local.gradient + p.weights**2 * Z, 0)
    return jnp.where(inside, product(product(p.A1.T, slope), p.A2), jnp.inf)


@jax.jit(static_argnums=2)
def _curvature(p: Attention, x: Float[Array, "d1 d2"], gauss_newton: bool) -> Curvature:
    local, _, inside = _inside(p, _logits(p, x))
    part = local.gauss_newton if gauss_newton else local.hessian
    diagonal, factors, core = (jnp.where(inside, entry, 0) for entry in part)
    return Curvature(diagonal + p.weights**2, factors, core)


@jax.jit
def _check(p: Attention, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
    local, loss, _ = _inside(p, _logits(p, x))
    finite = jnp.all(jnp.asarray([jnp.isfinite(part).all() for part in (x, p.A1, p.A2, p.B, p.weights)]))
    code = jnp.where(
        local.kept.all(), jnp.where(jnp.isfinite(loss), Result.SUCCESSFUL, Result.OVERFLOW), Result.NORMALISER_LOST
    )
    code = jnp.where(p.weights < 0, Result.NEGATIVE_WEIGHTS, code)
    return jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)


@jax.jit
def _product(op: AttentionOperator, V: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    dZ = product(product(op.left, V), op.right.T)
    small = jnp.einsum("irs,is->ir", op.core, jnp.einsum("ijr,ij->ir", op.factors, dZ))
    dZ = op.logit_diagonal * dZ + jnp.einsum("ijr,ir->ij", op.factors, small)
    return product(product(op.left.T, dZ), op.right)


@jax.jit
def _matrix(op: AttentionOperator) -> Float[Array, "p p"]:
    d1, d2 = op.in_structure().shape
    units = jnp.eye(d1 * d2, dtype=op.left.dtype).reshape(d1, d2, d1, d2)
    found = jax.lax.map(lambda row: jax.vmap(lambda v: _product(op, v))(row), units).reshape(d1 * d2, d1 * d2)
    return 0.5 * (found + found.T)


answer(AttentionOperator, positive=lambda operator: operator.positive_semidefinite)
lx.diagonal.register(AttentionOperator, lambda operator: jnp.diagonal(operator.as_matrix()))


@lx.materialise.register(AttentionOperator)
def _(operator: AttentionOperator) -> lx.PyTreeLinearOperator:
    structure = operator.out_structure()
    tags = [lx.symmetric_tag, *([lx.positive_semidefinite_tag] if operator.positive_semidefinite else [])]
    return lx.PyTreeLinearOperator(operator.as_matrix().reshape(*structure.shape, *structure.shape), structure, frozenset(tags))
