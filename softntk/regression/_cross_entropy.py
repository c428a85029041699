r"""Multinomial logistic regression: cross-entropy of softmax(AX + 1cᵀ), with its curvature.

    L(X, c) = Σ_i s_i (logsumexp(z_i) − ⟨y_i, z_i⟩) + ½‖w ∘ X‖²,        Z = AX + 1cᵀ.

Its Hessian is also the Fisher and the Gauss–Newton matrix, a
:class:`~softntk.regression.CrossEntropyOperator`.

| symbol | meaning | shape |
|---|---|---|
| A, Y, s | design matrix, targets in the simplex, weights of rows | [n, d], [n, k], [n] |
| X, c | coefficients, and the intercept, which is not penalised | [d, k], [k] |
| Z, P | logits, probabilities softmax(z_i) | [n, k] |
| V | stacked parameters, c the last row | [d + 1, k] |

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (200, 3))
    >>> y = jnp.argmax(A + 0.1 * jax.random.normal(jax.random.key(1), (200, 3)), axis=1)
    >>> p = sn.regression.cross_entropy(A, y, weights=1.0)
    >>> X, c = sn.solvers.minimise(p, p.zeros()).value
    >>> X.shape, c.shape, bool(jnp.mean(jnp.argmax(p.predict((X, c)), axis=1) == y) > 0.8)
    ((3, 3), (3,), True)

Source: MATHEMATICS.md#cross-entropy.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from softntk._core.records import function_record, static
from softntk._core.typing import DesignMatrix as Matrix
from softntk._core.validation import as_weights, check_flag
from softntk._core.validation.class_targets import as_targets
from softntk._linalg import design_matrix as matrices
from softntk._linalg.row_passes import adjoint_of_rows, map_rows, times_with_intercept
from softntk.regression import _recession
from softntk.regression._class_blocks import ClassBlocks, class_blocks
from softntk.regression._cross_entropy_operator import (
    CrossEntropyOperator,
    CrossEntropyParameters,
    split_parameters,
    stack_parameters,
)
from softntk.regression._cross_entropy_rows import (
    differentiate_rows,
    find_probabilities,
    sum_losses,
    with_reference,
)
from softntk.regression._row_weights import as_row_weights
from softntk.solution import Result

# X [d, k], or a pair (X [d, k], c [k]) where there is an intercept.
Parameters = Any


@function_record
class CrossEntropy:
    """A classification; ``p(x)`` is the loss, and x is X or a pair (X, c).

    It is a frozen pytree and works under jit, grad and vmap (over x, A, targets or weights). The
    pair may be any tuple of two; derivatives have its type.

    Where logits overflow ``p(x)`` and the gradient are +inf, and the operators contain the penalty
    only. ``check`` says why. Nothing is NaN for finite x. Rows of weight zero count for nothing,
    whatever their logits.

    **The gauge.** Without ``reference`` a vector that is added to the columns of X and c for every
    class changes no probability. The loss is flat along it but for the penalty. Gradients and
    Newton steps are orthogonal to it, so that a run from :meth:`zeros` ends at the minimiser whose
    columns sum to zero.

    Attributes:
        A: [n, d].
        target: Y, probabilities [n, k].
        sample_weight: s, the weight of each row, that of its class included, [n].
        weights: w, a scalar or [d].
        intercept: whether there is an intercept c.
        reference: whether class 0 has logits of zero, and X and c have k − 1 columns.
    """

    A: Matrix
    target: Float[Array, "n k"]
    sample_weight: Float[Array, " n"]
    weights: Float[Array, ""] | Float[Array, " d"]
    intercept: bool = static()
    reference: bool = static()

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, d)."""
        return matrices.shape(self.A)

    @property
    def classes(self) -> int:
        """Return k, the number of classes."""
        return self.target.shape[1]

    @property
    def dtype(self) -> jnp.dtype:
        """Return the dtype of A, x and everything computed."""
        return self.target.dtype

    def zeros(self) -> Parameters:
        """Return parameters that are zero, a good start: X, or the pair of X and c."""
        rows = self.shape[1] + self.intercept
        container = CrossEntropyParameters if self.intercept else None
        return split_parameters(jnp.zeros((rows, self._columns), self.dtype), container)

    def __call__(self, x: Parameters) -> Float[Array, ""]:
        """Return the loss; +inf outside of the domain."""
        return _loss(self, self._stacked(x))

    def logits(self, x: Parameters) -> Float[Array, "n k"]:
        """Return Z = AX + 1cᵀ, one column for each class; +inf beyond the largest number."""
        return _logits(self, self._stacked(x))

    def predict(self, x: Parameters) -> Float[Array, "n k"]:
        """Return the probabilities softmax(z_i) of the rows of A; +inf where logits overflow."""
        return _predict(self, self._stacked(x))

    def gradient(self, x: Parameters) -> Parameters:
        """Return ∇L, of the structure of x: Aᵀ(s∘(P − Y)) + w²∘X, and for c the sum of rows."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Parameters) -> tuple[Float[Array, ""], Parameters]:
        """Return (L, ∇L), from one pass over A."""
        value, gradient = _value_and_gradient(self, self._stacked(x))
        return value, split_parameters(gradient, self._container(x))

    def hessian(self, x: Parameters) -> CrossEntropyOperator:
        """Return ∇²L, positive semidefinite: a product is one pass over A."""
        probabilities, row_weights = _curvature(self, self._stacked(x))
        # Infinite weights times zero coefficients would be NaN.
        largest = float(jnp.finfo(self.dtype).max)
        squared_weights = jnp.minimum(self.weights**2, largest)
        return CrossEntropyOperator(
            self.A, probabilities, row_weights, squared_weights, self._container(x)
        )

    def gauge_fixed_hessian(self, x: Parameters) -> CrossEntropyOperator:
        """Return ∇²L with a term that makes it regular along the gauge, for factorisations.

        Newton steps with it are those of least norm. With ``reference`` it is ∇²L.
        """
        return dataclasses.replace(self.hessian(x), fixes_gauge=not self.reference)

    def gauss_newton(self, x: Parameters) -> CrossEntropyOperator:
        """Return the Gauss–Newton matrix, which is ∇²L."""
        return self.hessian(x)

    def preconditioner(self, x: Parameters, previous: ClassBlocks | None = None) -> ClassBlocks:
        """Return a preconditioner of the curvature for ``approx_newton(…, preconditioner=…)``.

        Without ``previous`` it is the constant bound of the curvature, up to factors for classes;
        else it is made of rows that are drawn by their leverage scores at x. A function of
        (x, previous) that returns ``previous`` where there is one keeps to the bound, factored
        once.
        """
        return class_blocks(self.hessian(x), previous, has_gauge=not self.reference)

    def is_recession(self, direction: Parameters) -> Bool[Array, ""]:
        """Return whether the loss falls forever along the part of a direction without penalty.

        If so it has no minimiser: the data are separable, or a class is absent. True is a proof up
        to rounding; False proves nothing.
        """
        return _is_recession(self, self._stacked(direction, "direction"))

    def lacks_minimiser(self, x: Parameters, start: Parameters) -> Bool[Array, ""]:
        """Return whether x, or the way from a start to x, is a direction of recession.

        ``minimise`` asks for it at the end of a run. Also true where an intercept falls forever.
        """
        return _lacks_minimiser(self, self._stacked(x), self._stacked(start, "start"))

    def check(self, x: Parameters) -> Int[Array, ""]:
        """Return a :class:`softntk.solution.Result` for the point x; works under jit.

        It is SUCCESSFUL, NONFINITE_INPUT, NEGATIVE_WEIGHTS, OVERFLOW (of the logits, the loss or
        its gradient), or MINIMUM_AT_INFINITY, where x itself separates the classes or one of them
        is absent beside an intercept, and no penalty holds the minimiser back.
        """
        return _check(self, self._stacked(x))

    @property
    def _columns(self) -> int:
        """Return the number of columns of X."""
        return self.classes - self.reference

    def _container(self, x: Parameters) -> type | None:
        """Return the type of the pair x, or None where x is X alone."""
        return type(x) if self.intercept else None

    def _stacked(self, x: Parameters, name: str = "x") -> Float[Array, "e c"]:
        """Return x as one array of the problem's dtype, the intercept as the last row."""
        return stack_parameters(
            name, x, self._columns, self.shape[1], self.dtype, intercept=self.intercept
        )


def cross_entropy(
    A: Matrix,
    y: Int[Array | np.ndarray, " n"] | Shaped[Array | np.ndarray, "n k"],
    *,
    weights: float | Float[Array | np.ndarray, ""] | Float[Array | np.ndarray, " d"] = 0.0,
    sample_weight: Float[Array | np.ndarray, " n"] | None = None,
    intercept: bool = True,
    class_weight: str | Float[Array | np.ndarray, " k"] | None = None,
    classes: int | None = None,
    reference: bool = False,
) -> CrossEntropy:
    r"""Return multinomial logistic regression, Σ s_i (logsumexp(z_i) − ⟨y_i, z_i⟩) + ½‖w ∘ X‖².

    The logits are Z = AX + 1cᵀ. Use it for class labels, or for targets that are a distribution in
    each row; :func:`softntk.regression.softmax` is for one distribution over all rows. Minimise it
    from ``p.zeros()``.

    | scikit-learn's ``LogisticRegression`` | here |
    |---|---|
    | ``C`` (of a sum over samples) | ``weights=C**-0.5`` |
    | ``C=np.inf``, ``penalty=None`` | ``weights=0.0`` |
    | ``fit_intercept=True`` | ``intercept=True``; not penalised in either |
    | ``class_weight``, ``sample_weight`` | the same; a dict of weights becomes an array [k] |
    | two classes, one column of ``coef_`` | ``reference=True`` and ``weights=C**-0.5`` |
    | ``coef_``, ``intercept_`` | ``X.T`` and ``c`` of ``sol.value`` |
    | ``tol`` (of the mean gradient) | ``minimise(p, x0, rtol=0, atol=tol * sum(s))`` |

    Args:
        A: [n, d]: an array, a list of rows or a table of numbers, a
            ``jax.experimental.sparse.BCOO``, or a lineax operator from [d] to [n]. Its dtype is
            that of everything else.
        y: labels 0 … k − 1, integers [n]; or probabilities, [n, k].
        weights: w ≥ 0, a scalar or one for each feature, [d]. The penalty is ½ Σ w_j² X_jc².
        sample_weight: s ≥ 0, [n]; ones if None.
        intercept: whether the logits have an intercept c.
        class_weight: weights of the classes, [k], by which s is multiplied; or "balanced":
            Σs/(k n_c), with n_c the weight of the rows of class c.
        classes: k; the largest label and one if None. Needed where labels are traced, or the last
            classes absent.
        reference: give class 0 logits of zero and no column, so that X is [d, k − 1]. Two classes
            are then logistic regression, and nothing is left to the gauge.

    Returns:
        A :class:`CrossEntropy`.

    Raises:
        ValueError: shapes that do not fit, an empty or integer A, NaN; labels that are negative, no
            integers, or not below ``classes``; one class; probabilities that are negative or do not
            sum to one; negative weights; traced labels without ``classes``.

    Example:
        >>> import jax.numpy as jnp
        >>> p = cross_entropy(jnp.eye(2), jnp.array([0, 1]))
        >>> round(float(p(p.zeros())), 4), p.gradient(p.zeros()).coefficients.tolist()
        (1.3863, [[-0.5, 0.5], [0.5, -0.5]])

    Source: MATHEMATICS.md#cross-entropy.
    """
    # A decides the dtype; everything else is converted to it.
    A = matrices.check_design_matrix("A", A, half=False)
    n, d = matrices.shape(A)
    dtype = matrices.dtype(A)
    target = as_targets(y, n, classes, dtype)
    return CrossEntropy(
        A,
        target,
        as_row_weights(sample_weight, class_weight, target),
        as_weights("weights", weights, dtype, (), (d,)),
        check_flag("intercept", intercept),
        check_flag("reference", reference),
    )


def _penalty_column(p: CrossEntropy) -> Float[Array, "e 1"]:
    """Return w for each row of stacked parameters, zero for the intercept."""
    w = jnp.broadcast_to(p.weights, (p.shape[1],))
    return jnp.append(w, jnp.zeros((p.intercept,), w.dtype))[:, None]


def _penalty(p: CrossEntropy, V: Float[Array, "e c"]) -> Float[Array, ""]:
    """Return ½‖w ∘ X‖²."""
    return 0.5 * jnp.sum((_penalty_column(p) * V) ** 2)


def _all_logits(p: CrossEntropy, V: Float[Array, "e c"]) -> Float[Array, "n k"]:
    """Return the logits of all classes; infinities of both signs may have met."""
    return with_reference(times_with_intercept(p.A, V), p.reference)


@jax.jit
def _logits(p: CrossEntropy, V: Float[Array, "e c"]) -> Float[Array, "n k"]:
    """Return the logits, +inf where they are NaN."""
    Z = _all_logits(p, V)
    return jnp.where(jnp.isnan(Z), jnp.inf, Z)


@jax.jit
def _predict(p: CrossEntropy, V: Float[Array, "e c"]) -> Float[Array, "n k"]:
    """Return the probabilities, +inf in rows whose logits overflow."""
    Z = _all_logits(p, V)
    in_domain = jnp.isfinite(Z).all(axis=1, keepdims=True)
    return jnp.where(in_domain, jax.nn.softmax(jnp.where(in_domain, Z, 0), axis=1), jnp.inf)


def _has_legal_weights(p: CrossEntropy) -> Bool[Array, ""]:
    """Return whether no weight is negative, as traced ones may be."""
    return jnp.all(p.sample_weight >= 0) & jnp.all(p.weights >= 0)


@jax.jit
def _loss(p: CrossEntropy, V: Float[Array, "e c"]) -> Float[Array, ""]:
    """Return the loss, with a derivative of zero outside of the domain."""
    # 1. The rows; those outside of the domain have a loss of zero, so that nothing infinite is
    #    differentiated.
    is_finite = jnp.isfinite(V).all()
    V = jnp.where(is_finite, V, 0)
    _, (data_loss, lost_rows) = map_rows(sum_losses, p.A, V, (p.target, p.sample_weight))
    # 2. The penalty, a constant where it overflows.
    penalty = _penalty(p, V)
    fits = jnp.isfinite(jax.lax.stop_gradient(penalty))
    V, weights = (jnp.where(fits, part, 0) for part in (V, p.weights))
    loss = data_loss + _penalty(dataclasses.replace(p, weights=weights), V)
    in_domain = is_finite & fits & (lost_rows == 0) & jnp.isfinite(loss) & _has_legal_weights(p)
    return jnp.where(in_domain, loss, jnp.inf)


@jax.jit
def _value_and_gradient(
    p: CrossEntropy, V: Float[Array, "e c"]
) -> tuple[Float[Array, ""], Float[Array, "e c"]]:
    """Return (L, ∇L), +inf outside of the domain or where the gradient overflows."""
    data_gradient, (data_loss, lost_rows) = adjoint_of_rows(
        differentiate_rows, p.A, V, (p.target, p.sample_weight)
    )
    loss = data_loss + _penalty(p, V)
    w = _penalty_column(p)
    gradient = data_gradient + w * (w * V)
    in_domain = (lost_rows == 0) & jnp.isfinite(loss) & _has_legal_weights(p)
    return jnp.where(in_domain, loss, jnp.inf), jnp.where(
        in_domain & jnp.isfinite(gradient).all(), gradient, jnp.inf
    )


@jax.jit
def _curvature(
    p: CrossEntropy, V: Float[Array, "e c"]
) -> tuple[Float[Array, "n c"], Float[Array, " n"]]:
    """Return the probabilities of the columns of V, and s; s = 0 outside of the domain."""
    probabilities, (data_loss, lost_rows) = map_rows(
        find_probabilities, p.A, V, (p.target, p.sample_weight)
    )
    loss = data_loss + _penalty(p, V)
    in_domain = (lost_rows == 0) & jnp.isfinite(loss) & _has_legal_weights(p)
    return probabilities, jnp.where(in_domain, p.sample_weight, 0)


@jax.jit
def _is_recession(p: CrossEntropy, V: Float[Array, "e c"]) -> Bool[Array, ""]:
    """Return whether V is a direction of recession."""
    return _recession.is_recession(
        p.A, p.target, p.sample_weight, _penalty_column(p), with_reference(V, p.reference)
    )


@jax.jit
def _lacks_minimiser(
    p: CrossEntropy, V: Float[Array, "e c"], start: Float[Array, "e c"]
) -> Bool[Array, ""]:
    """Return whether V, V − start, or the intercept of an absent class is one of recession."""
    falls_forever = _is_recession(p, V) | jax.lax.cond(
        jnp.all(start == 0), lambda: jnp.asarray(False), lambda: _is_recession(p, V - start)
    )
    if p.intercept:
        falls_forever |= jnp.any(_recession.absent_classes(p.target, p.sample_weight))
    return falls_forever


@jax.jit
def _check(p: CrossEntropy, V: Float[Array, "e c"]) -> Int[Array, ""]:
    """Return the code of :meth:`CrossEntropy.check`."""
    # 1. Is there a direction of recession: V itself, or the intercept of an absent class?
    falls_forever = _lacks_minimiser(p, V, jnp.zeros_like(V))
    # 2. The loss, its gradient, and all that they are computed from.
    loss, gradient = _value_and_gradient(p, V)
    arrays = (V, p.target, p.sample_weight, p.weights)
    arrays += tuple(jax.tree.leaves(eqx.filter(p.A, eqx.is_inexact_array)))
    inputs_finite = jnp.all(jnp.asarray([jnp.isfinite(part).all() for part in arrays]))
    results_finite = jnp.isfinite(loss) & jnp.isfinite(gradient).all()
    # 3. The most general reason is reported: it is set last.
    code = jnp.where(falls_forever, Result.MINIMUM_AT_INFINITY, Result.SUCCESSFUL)
    code = jnp.where(results_finite, code, Result.OVERFLOW)
    code = jnp.where(_has_legal_weights(p), code, Result.NEGATIVE_WEIGHTS)
    return jnp.where(inputs_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32)
