r"""Regression with u(Ax): loss, gradient and curvature in closed form.

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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from softntk._core.records import function_record, static
from softntk._core.typing import DesignMatrix as Matrix
from softntk._core.validation import (
    as_dtype,
    as_floating,
    as_weights,
    check_choice,
)
from softntk._linalg import design_matrix as matrices
from softntk.activations import Activation
from softntk.curvature.structured import StructuredOperator
from softntk.regression._forms import FORMS, Curvature, FormValues, as_activation
from softntk.solution import Result


@function_record
class Problem:
    """A regression; ``p(x)`` is the loss.

    It is a frozen pytree and works under jit, grad and vmap (over x, b, weights or A).

    Outside of its domain, where α is lost in rounding or the loss exceeds the largest number,
    ``p(x)`` and the gradient are +inf, and the operators contain the weights only. ``check`` says
    why. Nothing is NaN for finite x.

    Attributes:
        A: [n, d].
        b: the target, [n].
        weights: w, a scalar or [n].
        activation: u.
        form: "normalized", "rescaled" or "plain".
    """

    A: Matrix
    b: Float[Array, " n"]
    weights: Float[Array, ""] | Float[Array, " n"]
    activation: Activation = static()
    form: str = static()

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of A, (n, d)."""
        return matrices.shape(self.A)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of A, b, x and of everything that is computed."""
        return self.b.dtype

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the loss; +inf outside of the domain."""
        return _loss(self, self._checked(x))

    def logits(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """Return A x, z in the formulas; +inf where it exceeds the largest number."""
        return _logits(self, self._checked(x))

    def predict(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """Return the prediction of b (rescaled: of αb): u/α normalized, else u."""
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
        """Return ∇²L, which one pass over A makes.

        Its ``.logit_diagonal`` (w² included), ``.factors`` and ``.core`` are D, U and M. Outside of
        the domain only w² remains.
        """
        return _curvature(self, self._checked(x), gauss_newton=False)

    def gauss_newton(self, x: Float[Array, " d"]) -> StructuredOperator:
        """Return JᵀJ + Aᵀ diag(w²) A, with J the Jacobian of the residual.

        It is positive semidefinite, and equal to ∇²L where the residual is zero.
        """
        return _curvature(self, self._checked(x), gauss_newton=True)

    def check(
        self, x: Float[Array, " d"], previous: Float[Array, " d"] | None = None
    ) -> Int[Array, ""]:
        """Return a :class:`softntk.solution.Result` that says whether x is inside of the domain.

        Use it when a loss is +inf; it works under jit. The result is SUCCESSFUL, NONFINITE_INPUT,
        NEGATIVE_WEIGHTS, NORMALISER_LOST or OVERFLOW (of the loss, its gradient or an entry of its
        curvature's matrix). With ``previous``, the point before a step, it may also be
        SIGN_CHANGED: α has another sign than at that point. (A negative α is legal.)
        ``Result(int(code)).advice`` has the text.
        """
        # A normaliser changes its sign only where there is one.
        code = _check(self, self._checked(x))
        previous = None if previous is None else self._checked(previous, "previous")
        if previous is None or self.form != "normalized":
            return code
        previous_sign = jnp.sign(_total(self, previous))
        sign_changed = jnp.sign(_total(self, self._checked(x))) * previous_sign < 0
        is_reported = (code == Result.SUCCESSFUL) & sign_changed
        return jnp.where(is_reported, Result.SIGN_CHANGED, code).astype(jnp.int32)

    def _checked(self, x: object, name: str = "x") -> Float[Array, " d"]:
        """Return x as a vector [d] of the problem's dtype, finite or not."""
        return as_dtype(name, x, self.dtype, self.shape[1:], finite=False)

    def _form_at(self, z: Float[Array, " n"]) -> FormValues:
        """Return the form at the logits z."""
        return FORMS[self.form](self.activation, z, self.b)


def problem(
    A: Matrix,
    b: Float[Array | np.ndarray, " n"],
    activation: str | Activation = "res_exp",
    form: str = "normalized",
    weights: float | int | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " n"] = 0.0,
) -> Problem:
    r"""Return the regression ½‖residual‖² + ½‖diag(w) A x‖² of any activation and form.

    The residual is u/α − b, u − αb or u − b, with u = u(Ax), α = 1ᵀu. Use it where no named member
    of the family (``softmax``, ``resnet_softmax``, ``exponential``, ``hyperbolic``) fits.

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
        A :class:`Problem`. For many targets with one A, use
        ``jax.vmap(lambda b: problem(A, b).gradient(x))``.

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
    # A decides the dtype; b and w are converted to it.
    A = matrices.check_design_matrix("A", A)
    n, _ = matrices.shape(A)
    dtype = matrices.dtype(A)
    target = as_dtype("b", as_floating("b", b, (n,)), dtype, finite=False)
    w = as_weights("weights", weights, dtype, (), (n,))
    u = as_activation("activation", activation)
    return Problem(A, target, w, u, check_choice("form", form, FORMS))


def _penalty(p: Problem, z: Float[Array, " n"]) -> Float[Array, ""]:
    """Return ½‖diag(w) z‖²."""
    return 0.5 * jnp.sum((p.weights * z) ** 2)


def _evaluate(
    p: Problem, z: Float[Array, " n"]
) -> tuple[FormValues, Float[Array, ""], Bool[Array, ""]]:
    """Return the form at z, the loss there, and whether z is inside of the domain."""
    # Inside: α is more than rounding, loss and gradient are finite, and no weight is negative.
    form = p._form_at(z)
    loss = 0.5 * jnp.sum(form.residual**2) + _penalty(p, z)
    in_domain = (
        form.resolved
        & jnp.isfinite(loss)
        & jnp.isfinite(form.gradient).all()
        & jnp.all(p.weights >= 0)
    )
    return form, loss, in_domain


@jax.jit
def _logits(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    """Return A x, +inf where infinities of both signs meet."""
    z = matrices.times(p.A, x)
    return jnp.where(jnp.isnan(z), jnp.inf, z)


@jax.jit
def _loss(p: Problem, x: Float[Array, " d"]) -> Float[Array, ""]:
    """Return the loss, with a derivative of zero outside of the domain."""
    z = matrices.times(p.A, x)
    in_domain = _evaluate(p, jax.lax.stop_gradient(z))[2]
    # Outside of the domain the loss is a constant: differentiating it would multiply infinities.
    z, b, weights = (
        jnp.where(in_domain, part, jax.lax.stop_gradient(part)) for part in (z, p.b, p.weights)
    )
    loss = _evaluate(dataclasses.replace(p, b=b, weights=weights), z)[1]
    return jnp.where(in_domain, loss, jnp.inf)


@jax.jit
def _predict(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    """Return the prediction, +inf where the normaliser is lost or an entry overflows."""
    form = p._form_at(matrices.times(p.A, x))
    return jnp.where(form.resolved & ~jnp.isnan(form.prediction), form.prediction, jnp.inf)


@jax.jit
def _residual(p: Problem, x: Float[Array, " d"]) -> Float[Array, " n"]:
    """Return the residual, +inf where the normaliser is lost or an entry overflows."""
    form = p._form_at(matrices.times(p.A, x))
    return jnp.where(form.resolved & jnp.isfinite(form.residual), form.residual, jnp.inf)


@jax.jit
def _value_and_gradient(
    p: Problem, x: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Return (L, ∇L), +inf outside of the domain or where the gradient overflows."""
    # x → z = Ax → gradient in z → Aᵀ times it
    z = matrices.times(p.A, x)
    form, loss, in_domain = _evaluate(p, z)
    gradient = matrices.adjoint(p.A, _logit_gradient(p, form, z, in_domain))
    return jnp.where(in_domain, loss, jnp.inf), jnp.where(
        in_domain & jnp.isfinite(gradient).all(), gradient, jnp.inf
    )


def _logit_gradient(
    p: Problem, form: FormValues, z: Float[Array, " n"], in_domain: Bool[Array, ""]
) -> Float[Array, " n"]:
    """Return the gradient in the logits, zero outside of the domain."""
    return jnp.where(in_domain, form.gradient + p.weights * (p.weights * z), 0)


def _curvature(p: Problem, x: Float[Array, " d"], *, gauss_newton: bool) -> StructuredOperator:
    """Return the Hessian or the Gauss–Newton matrix at x."""
    curvature = _logit_curvature(p, x, gauss_newton)
    return StructuredOperator(p.A, *curvature, positive_semidefinite=gauss_newton)


@jax.jit(static_argnums=2)
def _logit_curvature(p: Problem, x: Float[Array, " d"], gauss_newton: bool) -> Curvature:
    """Return the curvature in the logits, w² included; w² alone outside of the domain."""
    form, _, in_domain = _evaluate(p, matrices.times(p.A, x))
    curvature = form.gauss_newton if gauss_newton else form.hessian
    in_domain &= _is_finite(curvature)
    diagonal, factors, core = (jnp.where(in_domain, entry, 0) for entry in curvature)
    # w² is cut at the largest number: infinite weights times zero logits would be NaN.
    squared_weights = jnp.minimum(p.weights**2, float(jnp.finfo(p.dtype).max))
    return Curvature(diagonal + squared_weights, factors, core)


def _is_finite(curvature: Curvature) -> Bool[Array, ""]:
    """Return whether the entries of D and of U M Uᵀ are finite."""
    # Every entry of U M Uᵀ is at most ‖U‖² Σ|M|.
    return jnp.isfinite(curvature.diagonal).all() & jnp.isfinite(
        jnp.sum(curvature.factors**2) * jnp.sum(jnp.abs(curvature.core))
    )


def _matrix_is_finite(A: Matrix, curvature: Curvature) -> Bool[Array, ""]:
    """Return whether Aᵀ (diag(D) + U M Uᵀ) A is finite.

    The diagonals of its two parts decide: no entry of either is larger.
    """
    projected_factors = matrices.adjoint(A, curvature.factors)
    gram_diagonal = matrices.gram_diagonal(A, jnp.abs(curvature.diagonal))
    return jnp.isfinite(gram_diagonal).all() & jnp.isfinite(
        jnp.sum(projected_factors**2) * jnp.sum(jnp.abs(curvature.core))
    )


@jax.jit
def _total(p: Problem, x: Float[Array, " d"]) -> Float[Array, ""]:
    """Return the normaliser α up to a positive factor."""
    return p._form_at(matrices.times(p.A, x)).total


@jax.jit
def _check(p: Problem, x: Float[Array, " d"]) -> Int[Array, ""]:
    """Return the code of :meth:`Problem.check`, without a previous point."""
    # 1. The loss and its gradient.
    z = matrices.times(p.A, x)
    form, loss, in_domain = _evaluate(p, z)
    input_arrays = (x, p.b, p.weights, *jax.tree.leaves(eqx.filter(p.A, eqx.is_inexact_array)))
    inputs_finite = jnp.all(jnp.asarray([jnp.isfinite(part).all() for part in input_arrays]))
    gradient = matrices.adjoint(p.A, _logit_gradient(p, form, z, in_domain))
    results_finite = jnp.isfinite(loss) & jnp.isfinite(gradient).all()
    # 2. Both curvatures, in the logits and in x.
    for curvature in (form.hessian, form.gauss_newton):
        weighted_curvature = curvature._replace(diagonal=curvature.diagonal + p.weights**2)
        results_finite &= _is_finite(weighted_curvature) & _matrix_is_finite(
            p.A, weighted_curvature
        )
    # 3. Where the logits overflow, that is the reason and not the normaliser.
    resolved = form.resolved | ~jnp.isfinite(z).all()
    results_finite &= jnp.isfinite(form.gradient).all() & jnp.isfinite(z).all()
    # 4. The most general reason is reported: it is set last.
    code = jnp.where(results_finite, Result.SUCCESSFUL, Result.OVERFLOW)
    code = jnp.where(resolved, code, Result.NORMALISER_LOST)
    code = jnp.where(jnp.any(p.weights < 0), Result.NEGATIVE_WEIGHTS, code)
    return jnp.where(inputs_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)
