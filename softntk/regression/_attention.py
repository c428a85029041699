r"""Attention as regression: min over X of ½‖softmax_rows(A₁ X A₂ᵀ) − B‖².

With a value matrix the minimum is over (X, Y).

The rows of the logits Z = A₁ X A₂ᵀ are n1 normalized regressions that share X. With D_i, U_i and
M_i of row i, by ``softntk/regression/_forms.py``, and a matrix V of the shape of X,

    ∇²L · V = A₁ᵀ [row i: (diag(D_i) + U_i M_i U_iᵀ) dz_i] A₂,        dZ = A₁ V A₂ᵀ,

which costs two products with A₁ and two with A₂. The n1·n2 × d1·d2 Kronecker matrix A₁ ⊗ A₂ is
never formed.

| symbol | meaning | shape |
|---|---|---|
| A₁, A₂, A₃ | queries, keys, values | [n1, d1], [n2, d2], [n2, d3] |
| X, Y | unknowns: of the logits, of the values | [d1, d2], [d3, k] |
| Z | logits | [n1, n2] |

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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from softntk import activations
from softntk._core.records import function_record, static
from softntk._core.validation import as_dtype, as_rows, as_weights
from softntk._linalg.products import product
from softntk.activations import Activation
from softntk.regression._attention_operator import AttentionOperator
from softntk.regression._forms import Curvature, FormValues, as_activation, normalized
from softntk.regression._residual_problem import ResidualProblem, nonnegative, structure_of
from softntk.solution import Result

Weights = float | Float[Array | np.ndarray, ""]
"""The weight w of the penalty, one number."""


@function_record
class Attention:
    """The loss ½‖u/α − B‖² + ½w²‖Z‖², where u = u(Z), Z = A₁ X A₂ᵀ, and α is the sum of a row of u.

    It is a frozen pytree with the interface of :class:`softntk.regression.Problem`.

    Attributes:
        A1: queries, [n1, d1].
        A2: keys, [n2, d2].
        B: the target, [n1, n2].
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
        """Return u/α by rows, minus B."""
        return self.predict(x) - self.B

    def gradient(self, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
        """Return ∇L in closed form; +inf outside of the domain."""
        return _gradient(self, self._checked(x))

    def hessian(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """Return ∇²L; outside of the domain the weights' part of it only."""
        return AttentionOperator(self.A1, self.A2, *_curvature(self, self._checked(x), False))

    def gauss_newton(self, x: Float[Array, "d1 d2"]) -> AttentionOperator:
        """Return JᵀJ, plus the curvature of the weights: positive semidefinite."""
        return AttentionOperator(
            self.A1, self.A2, *_curvature(self, self._checked(x), True), positive_semidefinite=True
        )

    def check(self, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
        """Return a :class:`softntk.solution.Result` that says whether x is inside of the domain.

        It is SUCCESSFUL, NONFINITE_INPUT, NEGATIVE_WEIGHTS, NORMALISER_LOST or OVERFLOW. This works
        under jit.
        """
        return _check(self, self._checked(x))

    def _checked(self, x: object) -> Float[Array, "d1 d2"]:
        """Return x as a matrix [d1, d2] of the problem's dtype, finite or not."""
        return as_dtype("x", x, self.A1.dtype, (self.A1.shape[1], self.A2.shape[1]), finite=False)


class AttentionParameters(NamedTuple):
    """Parameters of an attention layer with values.

    Attributes:
        x: X, [d1, d2].
        y: Y, [d3, k].
    """

    x: Float[Array, "d1 d2"]
    y: Float[Array, "d3 k"]


@overload
def attention(
    A1: Float[Array | np.ndarray, "n1 d1"],
    A2: Float[Array | np.ndarray, "n2 d2"],
    B: Float[Array | np.ndarray, "n1 m"],
    *,
    values: None = None,
    weights: Weights = ...,
    activation: str | Activation = ...,
) -> Attention: ...
@overload
def attention(
    A1: Float[Array | np.ndarray, "n1 d1"],
    A2: Float[Array | np.ndarray, "n2 d2"],
    B: Float[Array | np.ndarray, "n1 m"],
    *,
    values: Float[Array | np.ndarray, "n2 d3"],
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
    r"""Return attention regression, ½‖softmax_rows(A₁ X A₂ᵀ) − B‖² + ½w²‖A₁ X A₂ᵀ‖².

    With values A₃ the residual is softmax_rows(A₁ X A₂ᵀ) A₃ Y − B. Use it to fit one attention
    layer to an attention matrix, or to its output.

    Args:
        A1: queries, [n1, d1].
        A2: keys, [n2, d2].
        B: the target, [n1, n2], or [n1, k] with values.
        values: A₃, [n2, d3]. With it the unknowns are
            ``AttentionParameters(x=X [d1, d2], y=Y [d3, k])``.
        weights: w ≥ 0, a scalar.
        activation: u; rows are u/1ᵀu.

    Returns:
        A problem p: ``p(X)``, ``predict``, ``residual``, ``gradient``, ``check``, and ``hessian``
        and ``gauss_newton``, which are lineax operators on [d1, d2], or on the pair of both.

    Raises:
        ValueError: shapes that do not fit, integers, NaN or numbers beyond the precision, negative
            weights, an unknown activation.

    Example:
        >>> import jax.numpy as jnp
        >>> p = attention(jnp.eye(2), jnp.eye(2), jnp.eye(2), values=jnp.eye(2))
        >>> parameters = AttentionParameters(x=jnp.zeros((2, 2)), y=jnp.eye(2))
        >>> float(p(parameters)), p.gradient(parameters).y.shape
        (0.5, (2, 2))

    Source: arXiv 2307.02419; MATHEMATICS.md#related-regressions.
    """
    # 1. Check the arguments; A1 decides the dtype.
    A1 = as_rows("A1", A1)
    n1 = len(A1)
    dtype = A1.dtype
    A2 = as_dtype("A2", as_rows("A2", A2), dtype)
    n2 = len(A2)
    w = as_weights("weights", weights, dtype, ())
    u = as_activation("activation", activation)
    # 2. Without values there is a closed form.
    if values is None:
        return Attention(A1, A2, as_dtype("B", as_rows("B", B), dtype, (n1, n2)), w, u)
    # 3. With values, automatic differentiation.
    A3 = as_dtype("values", as_rows("values", values), dtype)
    if len(A3) != n2:
        raise ValueError(f"values must have one row for each of A2's {n2}, got shape {A3.shape}.")
    target = as_dtype("B", as_rows("B", B), dtype, (n1, "k"))
    parameters = AttentionParameters(
        x=jnp.zeros((A1.shape[1], A2.shape[1]), dtype),
        y=jnp.zeros((A3.shape[1], target.shape[1]), dtype),
    )
    return ResidualProblem(
        data=(A1, A2, A3, w),
        target=target,
        maps=_maps_with_values(u),
        structure=structure_of(parameters),
    )


@lru_cache  # one function for each activation, so that nothing is compiled again
def _maps_with_values(u: Activation) -> Callable[[tuple, AttentionParameters], tuple[Array, Array]]:
    """Return (data, parameters) -> the prediction and the penalty wZ."""

    def maps(data: tuple, parameters: AttentionParameters) -> tuple[Array, Array]:
        # (X, Y) → Z = A₁ X A₂ᵀ → normalized rows → times A₃ Y
        A1, A2, A3, w = data
        Z = product(product(A1, parameters.x), A2.T)
        return product(product(activations.normalize(u, Z), A3), parameters.y), nonnegative(w) * Z

    return maps


def _form_of_rows(p: Attention, Z: Float[Array, "n1 n2"]) -> Any:
    """Return the normalized form of every row: ``FormValues`` with a leading axis n1."""
    return jax.vmap(lambda z, b: normalized(p.activation, z, b))(Z, p.B)


def _evaluate(
    p: Attention, Z: Float[Array, "n1 n2"]
) -> tuple[FormValues, Float[Array, ""], Bool[Array, ""]]:
    """Return the forms of the rows at Z, the loss there, and whether Z is inside of the domain."""
    # Inside: every α is more than rounding, loss and gradient are finite, and w ≥ 0.
    form = _form_of_rows(p, Z)
    loss = 0.5 * jnp.sum(form.residual**2) + 0.5 * jnp.sum((p.weights * Z) ** 2)
    in_domain = (
        form.resolved.all()
        & jnp.isfinite(loss)
        & jnp.isfinite(form.gradient).all()
        & (p.weights >= 0)
    )
    return form, loss, in_domain


@jax.jit
def _logits(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
    """Return A₁ X A₂ᵀ, +inf where infinities of both signs meet."""
    Z = product(product(p.A1, x), p.A2.T)
    return jnp.where(jnp.isnan(Z), jnp.inf, Z)


@jax.jit
def _predict(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "n1 n2"]:
    """Return u/α by rows, +inf where a normaliser is lost or an entry overflows."""
    form = _form_of_rows(p, _logits(p, x))
    in_domain = form.resolved[:, None] & ~jnp.isnan(form.prediction)
    return jnp.where(in_domain, form.prediction, jnp.inf)


@jax.jit
def _loss(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, ""]:
    """Return the loss, with a derivative of zero outside of the domain."""
    Z = _logits(p, x)
    in_domain = _evaluate(p, jax.lax.stop_gradient(Z))[2]
    # The domain is decided without gradients, so that it is evaluated once more below with them.
    # Outside of the domain the loss is a constant: differentiating it would multiply infinities.
    Z, B, weights = (
        jnp.where(in_domain, part, jax.lax.stop_gradient(part)) for part in (Z, p.B, p.weights)
    )
    loss = _evaluate(dataclasses.replace(p, B=B, weights=weights), Z)[1]
    return jnp.where(in_domain, loss, jnp.inf)


def _gradient_at(p: Attention, Z: Float[Array, "n1 n2"]) -> Float[Array, "d1 d2"]:
    """Return ∇L at logits Z, +inf outside of the domain."""
    # Z → gradient in Z by rows → A₁ᵀ · A₂
    form, _, in_domain = _evaluate(p, Z)
    logit_gradient = jnp.where(in_domain, form.gradient + p.weights * (p.weights * Z), 0)
    return jnp.where(in_domain, product(product(p.A1.T, logit_gradient), p.A2), jnp.inf)


@jax.jit
def _gradient(p: Attention, x: Float[Array, "d1 d2"]) -> Float[Array, "d1 d2"]:
    """Return ∇L, +inf outside of the domain or where an entry overflows."""
    gradient = _gradient_at(p, _logits(p, x))
    return jnp.where(jnp.isfinite(gradient).all(), gradient, jnp.inf)


@jax.jit(static_argnums=2)
def _curvature(p: Attention, x: Float[Array, "d1 d2"], gauss_newton: bool) -> Curvature:
    """Return the curvature of every row, w² included; w² alone outside of the domain."""
    # As for ``Problem``, with a leading axis of rows.
    form, _, in_domain = _evaluate(p, _logits(p, x))
    curvature = form.gauss_newton if gauss_newton else form.hessian
    in_domain &= _is_finite(curvature)
    diagonal, factors, core = (jnp.where(in_domain, entry, 0) for entry in curvature)
    squared_weights = jnp.minimum(p.weights**2, float(jnp.finfo(diagonal.dtype).max))
    return Curvature(diagonal + squared_weights, factors, core)


def _is_finite(curvature: Curvature) -> Bool[Array, ""]:
    """Return whether the entries of D_i and U_i M_i U_iᵀ are finite, for all rows i."""
    # Every entry of U_i M_i U_iᵀ is at most ‖U_i‖² Σ|M_i|.
    factor_squares = jnp.sum(curvature.factors**2, axis=(1, 2))
    core_moduli = jnp.sum(jnp.abs(curvature.core), axis=(1, 2))
    row_bounds = factor_squares * core_moduli
    return jnp.isfinite(curvature.diagonal).all() & jnp.isfinite(row_bounds).all()


def _matrix_is_finite(p: Attention, curvature: Curvature) -> Bool[Array, ""]:
    """Return whether the matrix of the operator is finite.

    The diagonals of its two parts decide: no entry of either is larger.
    """
    gram_diagonal = product(product((p.A1**2).T, jnp.abs(curvature.diagonal)), p.A2**2)
    projected_factors = jnp.einsum("ijr,jk->irk", curvature.factors, p.A2)
    factor_squares = jnp.sum(projected_factors**2, axis=(1, 2))
    core_moduli = jnp.sum(jnp.abs(curvature.core), axis=(1, 2))
    row_bounds = jnp.sum(p.A1**2, axis=1) * factor_squares * core_moduli
    return jnp.isfinite(gram_diagonal).all() & jnp.isfinite(jnp.sum(row_bounds))


@jax.jit
def _check(p: Attention, x: Float[Array, "d1 d2"]) -> Int[Array, ""]:
    """Return the code of :meth:`Attention.check`."""
    # 1. The loss and its gradient.
    Z = _logits(p, x)
    form, loss, _ = _evaluate(p, Z)
    input_arrays = (x, p.A1, p.A2, p.B, p.weights)
    inputs_finite = jnp.all(jnp.asarray([jnp.isfinite(part).all() for part in input_arrays]))
    gradient = _gradient_at(p, Z)
    results_finite = jnp.isfinite(loss) & jnp.isfinite(Z).all() & jnp.isfinite(gradient).all()
    # 2. Both curvatures, in the logits and in x.
    for curvature in (form.hessian, form.gauss_newton):
        weighted_curvature = curvature._replace(diagonal=curvature.diagonal + p.weights**2)
        results_finite &= _is_finite(weighted_curvature) & _matrix_is_finite(p, weighted_curvature)
    # 3. Where the logits overflow, that is the reason and not the normaliser.
    resolved = form.resolved.all() | ~jnp.isfinite(Z).all()
    # 4. The most general reason is reported: it is set last.
    code = jnp.where(results_finite, Result.SUCCESSFUL, Result.OVERFLOW)
    code = jnp.where(resolved, code, Result.NORMALISER_LOST)
    code = jnp.where(p.weights < 0, Result.NEGATIVE_WEIGHTS, code)
    return jnp.where(inputs_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)
