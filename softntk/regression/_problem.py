r"""Regression with u(Ax), normalized, rescaled or plain: loss, gradient and curvature in closed
form.

    normalized    L(x) = ½‖u(Ax)/α − b‖² + ½‖diag(w) A x‖²,      α = 1ᵀu(Ax)
    rescaled      L(x) = ½‖u(Ax) − αb‖²  + ½‖diag(w) A x‖²
    plain         L(x) = ½‖u(Ax) − b‖²   + ½‖diag(w) A x‖²

for A [n, d], b [n], u any :class:`softntk.activations.Activation`. Normalized exp is softmax
regression, normalized e^z + z the unified scheme of ResNet and softmax. In the logits every one of
them has a Hessian that is diagonal plus rank two (``softntk/regression/_forms.py``), so that ∇²L is
a :class:`softntk.curvature.structured.StructuredOperator`.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (50, 4)) / 2
    >>> b = jax.nn.softmax(A @ jnp.ones(4))
    >>> p = sn.regression.problem(A, b, activation="exp", form="normalized", weights=0.1)
    >>> x = jnp.zeros(4)
    >>> bool(p(x) > p(x - p.gradient(x))), p.hessian(x).factors.shape
    (True, (50, 2))
    >>> step = p.hessian(x).with_ridge(1e-3).factorise().solve(-p.gradient(x))
    >>> bool(p(x + step) < p(x)), p.check(x).item()
    (True, 0)
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.records import function_record, static
from softntk._core.validation import (
    as_dtype,
    as_floating,
    as_weights,
    check_choice,
)
from softntk._linalg import design_matrix as matrices
from softntk.activations import Activation
from softntk.curvature.structured import StructuredOperator
from softntk.regression._forms import FORMS, Curvature, Local, as_activation
from softntk.solution import Result


@function_record
class Problem:
    """A regression; a frozen pytree. ``p(x)`` is the loss; works under jit, vmap (over x, b,
    weights or A) and grad.

    Outside of its domain, where α is lost in rounding or the loss exceeds the largest number,
    ``p(x)`` and the gradient are +inf and the operators hold what the weights alone contribute;
    ``check`` says why. Never NaN for finite x.

    Attributes:
        A: [n, d].
        b: the target, [n].
        weights: w, a scalar or [n].
        activation: u.
        form: "normalized", "rescaled" or "plain".
    """

    A: Any
    b: Float[Array, " n"]
    weights: Float[Array, ""] | Float[Array, " n"]
    activation: Activation = static()
    form: str = static()

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, d)."""
        return matrices.shape(self.A)

    @property
    def dtype(self) -> jnp.dtype:
        """Return the dtype of A, b, x and everything computed."""
        return self.b.dtype

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the loss; +inf outside of the domain."""
        return _loss(self, self._checked(x))

    def logits(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """Return A x, z in the formulas; +inf where it exceeds the largest number."""
        return _logits(self, self._checked(x))

    def predict(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """Return what is compared with b (rescaled: with αb): u/α normalized, else u."""
        return _predict(self, self._checked(x))

    def residual(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """Return u/α − b, u − αb or u − b."""
        return _residual(self, self._checked(x))

    def gradient(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return ∇L in closed form: two passes over A."""
        return _value_and_gradient(self, self._checked(x))[1]

    def value_and_gradient(
        self, x: Float[Array, " d"]
    ) -> tuple[Float[Array, ""], Float[Array, " d"]]:
        """Return (L, ∇L), for the price of the gradient."""
        return _value_and_gradient(self, self._checked(x))

    def hessian(self, x: Float[Array, " d"]) -> StructuredOperator:
        """Return ∇²L, with ``.logit_diagonal`` (w² included), ``.factors`` and ``.core``; one pass
        over A to make it.
        """
        return _curvature(self, self._checked(x), gauss_newton=False)

    def gauss_newton(self, x: Float[Array, " d"]) -> StructuredOperator:
        """Return JᵀJ + Aᵀ diag(w²) A, J the Jacobian of the residual: positive semidefinite, ∇²L
        where the residual is zero.
        """
        return _curvature(self, self._checked(x), gauss_newton=True)

    def check(
        self, x: Float[Array, " d"], previous: Float[Array, " d"] | None = None
    ) -> Int[Array, ""]:
        """Return what x is, a :class:`softntk.solution.Result`; works under jit.

        SUCCESSFUL, NONFINITE_INPUT, NEGATIVE_WEIGHTS, NORMALISER_LOST or OVERFLOW (of the loss, its
        gradient or an entry of its curvature's matrix). With ``previous``, the point that a step
        came from, also SIGN_CHANGED, where α has another sign than there. (A negative α is legal.)
        ``Result(int(code)).advice`` has the text.
        """
        code = _check(self, self._checked(x))
        previous = None if previous is None else self._checked(previous, "previous")
        if previous is None or self.form != "normalized":
            return code
        before = jnp.sign(_total(self, previous))
        crossed = jnp.sign(_total(self, self._checked(x))) * before < 0
        return jnp.where((code == Result.SUCCESSFUL) & crossed, Result.SIGN_CHANGED, code).astype(
            jnp.int32
        )

    def _checked(self, x: Any, name: str = "x") -> Float[Array, " d"]:
        return as_dtype(name, x, self.dtype, self.shape[1:], finite=False)

    def _local(self, z: Float[Array, " n"]) -> Local:
        return FORMS[self.form](self.activation, z, self.b)


def problem(
    A: Any,
    b: Float[Array | np.ndarray, " n"],
    activation: str | Activation = "res_exp",
    form: str = "normalized",
    weights: float | int | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"] = 0.0,
) -> Problem:
    r"""Return the regression ½‖residual‖² + ½‖diag(w) A x‖²; the residual is u/α − b, u − αb or u −
    b, with u = u(Ax), α = 1ᵀu.

    Args:
        A: [n, d]: an array, a list of rows or a table of numbers, a
            ``jax.experimental.sparse.BCOO``, or a lineax operator from [d] to [n]. Its dtype is
            that of everything else, which is converted to it. Rows may be sharded over a
            ``jax.sharding.Mesh`` (of automatic axes).
        b: the target, [n]; any real numbers.
        activation: u, by name (``softntk.activations.ACTIVATIONS``) or itself.
        form: "normalized", "rescaled" or "plain".
        weights: w ≥ 0, a scalar or [n]. Large ones make the loss strongly convex:
            :func:`softntk.regression.convexity_weight`.

    Returns:
        A :class:`Problem`. For many targets with one A, ``jax.vmap(lambda b: problem(A,
        b).gradient(x))``.

    Raises:
        ValueError: shapes that do not fit, an empty or integer A, NaN or numbers beyond the
            precision in A, b or w, negative weights, a sparse format other than BCOO, an unknown
            activation or form.

    Example:
        >>> import jax.numpy as jnp
        >>> p = problem(jnp.eye(2), jnp.array([0.5, 0.5]), "exp")
        >>> float(p(jnp.zeros(2))), p.gradient(jnp.zeros(2)).tolist()
        (0.0, [0.0, 0.0])

    Source: arXiv 2309.13482, Definition 1.1 (res_exp, normalized); MATHEMATICS.md#regression-forms
    for the family.
    """
    A = matrices.check_design_matrix("A", A)
    n, _ = matrices.shape(A)
    dtype = matrices.dtype(A)
    target = as_dtype("b", as_floating("b", b, (n,)), dtype, finite=False)
    w = as_weights("weights", weights, dtype, (), (n,))
    return Problem(
        A, target, w, as_activation("activation", activation), check_choice("form", form, FORMS)
    )


def _penalty(p: Problem, z: Float[Array, " n"]) -> Float[Array, ""]:
    return 0.5 * jnp.sum((p.weights * z) ** 2)


def _evaluated(p: Problem, z: Float[Array, " n"]) -> tuple[Local, Float[Array, ""], Array]:
    """Return the form at z, the loss there, and whether it is inside of the domain."""
    local = p._local(z)
    loss = 0.5 * jnp.sum(local.residual**2) + _penalty(p, z)
    return (
        local,
        loss,
        local.kept
        & jnp.isfinite(loss)
        & jnp.isfinite(local.gradient).all()
        & jnp.all(p.weights >= 0),
    )


@jax.jit
def _logits(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    z = matrices.times(p.A, x)
    return jnp.where(jnp.isnan(z), jnp.inf, z)


@jax.jit
def _loss(p: Problem, x: Float[Array, " d"]) -> Float[Array, ""]:
    z = matrices.times(p.A, x)
    inside = _evaluated(p, jax.lax.stop_gradient(z))[2]
    # Nothing depends on anything outside, so that automatic differentiation meets no infinity
    # there.
    z, b, weights = (
        jnp.where(inside, part, jax.lax.stop_gradient(part)) for part in (z, p.b, p.weights)
    )
    loss = _evaluated(dataclasses.replace(p, b=b, weights=weights), z)[1]
    return jnp.where(inside, loss, jnp.inf)


@jax.jit
def _predict(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    local = p._local(matrices.times(p.A, x))
    return jnp.where(local.kept & ~jnp.isnan(local.prediction), local.prediction, jnp.inf)


@jax.jit
def _residual(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    local = p._local(matrices.times(p.A, x))
    return jnp.where(local.kept & jnp.isfinite(local.residual), local.residual, jnp.inf)


@jax.jit
def _value_and_gradient(
    p: Problem, x: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    z = matrices.times(p.A, x)
    local, loss, inside = _evaluated(p, z)
    gradient = matrices.adjoint(p.A, _slope(p, local, z, inside))
    return jnp.where(inside, loss, jnp.inf), jnp.where(
        inside & jnp.isfinite(gradient).all(), gradient, jnp.inf
    )


def _slope(p: Problem, local: Local, z: Float[Array, " n"], inside: Array) -> Float[Array, " n"]:
    """Return the gradient in the logits, zero outside of the domain."""
    return jnp.where(inside, local.gradient + p.weights * (p.weights * z), 0)


def _curvature(p: Problem, x: Float[Array, " d"], *, gauss_newton: bool) -> StructuredOperator:
    part = _logit_curvature(p, x, gauss_newton)
    return StructuredOperator(p.A, *part, positive_semidefinite=gauss_newton)


@jax.jit(static_argnums=2)
def _logit_curvature(p: Problem, x: Float[Array, " d"], gauss_newton: bool) -> Curvature:
    local, _, inside = _evaluated(p, matrices.times(p.A, x))
    part = local.gauss_newton if gauss_newton else local.hessian
    inside &= _is_finite(part)
    diagonal, factors, core = (jnp.where(inside, entry, 0) for entry in part)
    # Infinite weights times zero logits would be NaN.
    squares = jnp.minimum(p.weights**2, float(jnp.finfo(p.dtype).max))
    return Curvature(diagonal + squares, factors, core)


def _is_finite(part: Curvature) -> Array:
    """Return whether the entries of the curvature are finite, products of the factors included."""
    return jnp.isfinite(part.diagonal).all() & jnp.isfinite(
        jnp.sum(part.factors**2) * jnp.sum(jnp.abs(part.core))
    )


def _matrix_is_finite(A: Any, part: Curvature) -> Array:
    """Return whether Aᵀ (diag(D) + U M Uᵀ) A is, by the diagonals of its two parts: no entry of
    either is larger.
    """
    columns = matrices.adjoint(A, part.factors)
    squares = matrices.gram_diagonal(A, jnp.abs(part.diagonal))
    return jnp.isfinite(squares).all() & jnp.isfinite(
        jnp.sum(columns**2) * jnp.sum(jnp.abs(part.core))
    )


@jax.jit
def _total(p: Problem, x: Float[Array, " d"]) -> Float[Array, ""]:
    return p._local(matrices.times(p.A, x)).total


@jax.jit
def _check(p: Problem, x: Float[Array, " d"]) -> Int[Array, ""]:
    z = matrices.times(p.A, x)
    local, loss, inside = _evaluated(p, z)
    data = (x, p.b, p.weights, *jax.tree.leaves(eqx.filter(p.A, eqx.is_inexact_array)))
    finite = jnp.all(jnp.asarray([jnp.isfinite(part).all() for part in data]))
    fits = (
        jnp.isfinite(loss) & jnp.isfinite(matrices.adjoint(p.A, _slope(p, local, z, inside))).all()
    )
    for part in (local.hessian, local.gauss_newton):
        weighted = part._replace(diagonal=part.diagonal + p.weights**2)
        fits &= _is_finite(weighted) & _matrix_is_finite(p.A, weighted)
    # where the logits overflow it is not the normaliser
    resolved = local.kept | ~jnp.isfinite(z).all()
    fits &= jnp.isfinite(local.gradient).all() & jnp.isfinite(z).all()
    code = jnp.where(
        resolved, jnp.where(fits, Result.SUCCESSFUL, Result.OVERFLOW), Result.NORMALISER_LOST
    )
    code = jnp.where(jnp.any(p.weights < 0), Result.NEGATIVE_WEIGHTS, code)
    return jnp.where(finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)
