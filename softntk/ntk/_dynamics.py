r"""Training dynamics that a kernel predicts: gradient descent and gradient flow, on training points
and on any others.

Both are functions of the kernel H applied to the residual r = F(0) − Y
(:mod:`softntk.ntk._spectral_filters`),

    F(τ) = Y + d_τ(H) r,      F_test(τ) = F_test(0) − H_test c_τ(H) r,      c_τ(λ) = (1 − d_τ(λ))/λ,

with d_τ(λ) = (1 − ηλ)^τ for descent and e^{−λτ} for flow. A matrix is decomposed once for all τ;
with an operator they are taken from the Krylov space of r, which never asks for eigenvectors.
Derivatives go through neither: they are those of a function of a matrix, whether eigenvalues are
equal or not.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from softntk._core.validation import (
    as_floating,
    as_integers,
    check_number,
    is_concrete,
)
from softntk._linalg.gram_arrays import Gram, Number, as_scalar
from softntk._linalg.lanczos import Tridiagonal, lanczos
from softntk._linalg.products import product
from softntk.ntk._arguments import (
    Cross,
    Problem,
    Targets,
    TestTargets,
    as_problem,
    saturated,
)
from softntk.ntk._operators.base import CrossOperator, GramOperator
from softntk.ntk._spectral_filters import (
    Clock,
    Descent,
    Flow,
    filtered,
)
from softntk.solution import NumericalError, Result

Steps = Integer[Array | np.ndarray, " s"] | Sequence[int]

_KRYLOV = 512  # most products with an operator, and vectors held
_DENSE = 256  # operators up to this size are formed: that takes no longer than the products would


def predict_gd(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Outputs of gradient descent on ½ΣΣ(F−Y)² after each number of steps, under a constant
    kernel.

    F(τ) = Y + (I − ηH)^τ (F(0) − Y), for all τ at once. The powers are sign^τ exp(τ log|1 − ηλ|)
    with the logarithm taken of ηλ, not of its difference from 1: exact to rounding for small ηλ and
    millions of steps.

    Args:
        gram: H on the training points: [n, n] (the same for every output, outputs independent) or
            [n, n, k, k] (:func:`softntk.ntk.empirical` with ``outputs="full"``), symmetric; or an
            operator on [n] or [n, k], then by as many products as the accuracy asks for (up to 512;
            about √(τηλ_max) of them for a few digits).
        y: targets, [n, k]; [n] is k = 1, also for f0 and f0_test.
        learning_rate: η > 0. neural_tangents' is n·k times this one: its loss is a mean.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]. None: those of the network, if gram is the
            :func:`~softntk.ntk.operator` of one, else zero (antisymmetric initialisation).
        cross: kernel between t test points and the training points, [t, n], [t, n, k, k], or
            ``op.cross(x_test)``. With it, the outputs at the test points are returned.
        f0_test: their outputs at the start, [t, k]. None: those of the network likewise, unless f0
            is given as zeros.
        rtol: of what is returned, against max|F(0) − Y|, with an operator (default 1e-5, 1e-9 in
            float64).

    Returns:
        [s, n, k], or [s, t, k] with ``cross``. A divergent component (ηλ > 2) saturates at the root
        of the largest number times that of the residual, and nothing exceeds the largest number.
        Differentiable in gram, y, f0, cross, f0_test and learning_rate, in both modes, also where
        eigenvalues are equal; a second time where they are not.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, an
            asymmetric gram, η not positive, steps negative, not integers or beyond the integers of
            JAX.
        NumericalError: an operator whose Krylov space did not reach rtol. Inside jit, where that
            cannot be seen, 128 products are made.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> ntk.predict_gd(jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((2, 1)), 0.5, jnp.array([0, 1, 2]))[:, :, 0].tolist()
        [[0.0, 0.0], [0.5, 0.25], [0.75, 0.4375]]

    Source: arXiv 2405.03251, Definition 3.8 and Lemma 3.9 (dynamics of the prediction);
    MATHEMATICS.md#training-dynamics.
    """
    steps = _as_steps(steps)
    problem = as_problem(gram, y, f0, cross, f0_test, own_start=True)
    return _predict(_descent(learning_rate, steps, problem), gram, problem, False, rtol)


def gd_coefficients(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    rtol: float | None = None,
) -> Float[Array, "s n k"]:
    r"""What gradient descent has added up after each number of steps: c with F_test(τ) = F_test(0)
    + H_test c.

    c = H⁻¹(I − (I − ηH)^τ)(Y − F(0)) = η Σ_{s<τ} (Y − F(s)), which exists where H is singular. The
    weights of the linearised network have moved by Jᵀc: with it, the network can be evaluated
    anywhere by one derivative along that direction, where :func:`predict_gd` needs the kernel
    between training and test points.

    Args:
        gram: H, as for :func:`predict_gd`.
        y: targets, [n, k].
        learning_rate: η > 0.
        steps: non-negative integers [s].
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        rtol: of c against its largest entry, with an operator.

    Returns:
        [s, n, k].

    Raises:
        ValueError: as :func:`predict_gd`.
        NumericalError: as :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> gd_coefficients(jnp.eye(1), jnp.ones((1, 1)), 0.5, jnp.array([1, 2]))[:, 0, 0].tolist()
        [0.5, 0.75]

    Source: MATHEMATICS.md#training-dynamics.
    """
    steps = _as_steps(steps)
    problem = as_problem(gram, y, f0, None, None, own_start=True)
    return -_predict(_descent(learning_rate, steps, problem), gram, problem, True, rtol)


def _as_steps(steps: Steps) -> Integer[Array, " s"]:
    """Return numbers of steps, checked."""
    if isinstance(steps, np.ndarray | jax.Array) and (
        steps.ndim != 1 or not jnp.issubdtype(steps.dtype, jnp.integer)
    ):
        raise ValueError(
            f"steps must be a vector of integers [s], got shape {steps.shape}, dtype {steps.dtype}."
        )
    counts = as_integers("steps", steps, ("s",))
    if is_concrete(counts) and np.any(np.asarray(counts) < 0):
        raise ValueError(f"steps must not be negative, got {int(np.min(counts))}.")
    return counts


def _descent(learning_rate: Number, steps: Array, problem: Problem) -> Descent:
    """Return the moments of descent in the precision of the problem."""
    rate = as_scalar("learning_rate", learning_rate, problem.y.dtype, above=0)
    return Descent(jnp.broadcast_to(rate, steps.shape), steps)


def predict_flow(
    gram: Gram | GramOperator,
    y: Targets,
    times: Float[Array | np.ndarray, " s"],
    f0: Targets | None = None,
    *,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Outputs of gradient flow, dθ/dt = −∇ ½ΣΣ(F−Y)², at each time, under a constant kernel.

    F(t) = Y + e^{−Ht} (F(0) − Y): the limit of gradient descent at t = ητ as η → 0. An eigenvalue
    that is negative by no more than rounding counts as zero; along one that is clearly negative F
    grows, as descent does.

    Args:
        gram: H on the training points, as for :func:`predict_gd`.
        y: targets, [n, k].
        times: ≥ 0, [s], in units of learning rate × steps; infinity is allowed (what training
            converges to).
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        cross: kernel between test and training points, as for :func:`predict_gd`.
        f0_test: outputs at the test points at the start, [t, k]; None as for :func:`predict_gd`.
        rtol: as for :func:`predict_gd`.

    Returns:
        [s, n, k], or [s, t, k] with ``cross``; differentiable as :func:`predict_gd` is, in times
        instead of learning_rate.

    Raises:
        ValueError: as :func:`predict_gd`; times negative or NaN.
        NumericalError: as :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> out = ntk.predict_flow(jnp.eye(1), jnp.ones((1, 1)), jnp.array([0.0, 1.0, jnp.inf]))
        >>> [round(float(v), 4) for v in out[:, 0, 0]]  # 1 − e^{−t}
        [0.0, 0.6321, 1.0]

    Source: MATHEMATICS.md#training-dynamics; Jacot, Gabriel and Hongler (2018), arXiv 1806.07572,
    section 5.
    """
    moments = as_floating("times", times, ("s",), finite=False, empty=True)
    if is_concrete(moments) and not np.all(np.asarray(moments) >= 0):
        raise ValueError(f"times must be non-negative numbers, got {np.asarray(moments)}.")
    problem = as_problem(gram, y, f0, cross, f0_test, own_start=True)
    return _predict(Flow(moments.astype(problem.y.dtype)), gram, problem, False, rtol)


def _predict(
    clock: Clock,
    gram: Gram | GramOperator,
    problem: Problem,
    coefficients: bool,
    rtol: float | None,
) -> Float[Array, "s rows k"]:
    """Return F, or c(H) r if ``coefficients`` are asked for."""
    if rtol is not None:
        check_number("rtol", rtol, above=0)
    adds_up = coefficients or problem.cross is not None
    if not isinstance(gram, GramOperator):
        return _by_matrix(adds_up, clock, problem)
    if gram.in_size() <= _DENSE:
        outputs = _by_formed_operator(adds_up, clock, gram, problem)
        if is_concrete(outputs) and np.isinf(np.asarray(outputs)).any():
            raise NumericalError(
                f"{Result.NONFINITE_PRODUCT.name}: {Result.NONFINITE_PRODUCT.advice}"
            )
        return outputs
    return _by_krylov(adds_up, clock, gram, problem, rtol)


def _moved(adds_up: bool, clock: Clock, matrix: Array, residual: Array) -> Float[Array, "s n k"]:
    """Return f(H) r; [n, n] acts on each output alone, [n·k, n·k] on all of them at once, output
    fastest.
    """
    vectors = filtered(adds_up, len(matrix), clock, matrix, residual.reshape(len(matrix), -1))
    return vectors.reshape(-1, *residual.shape)


@partial(jax.jit, static_argnums=0)
def _by_matrix(adds_up: bool, clock: Clock, problem: Problem) -> Array:
    assert problem.matrix is not None
    vectors = _moved(adds_up, clock, problem.matrix, problem.residual)
    if adds_up and problem.cross is not None:
        size = len(problem.matrix)
        vectors = product(
            problem.cross, vectors.reshape(len(vectors), size, problem.residual.size // size)
        ).reshape(-1, *problem.start.shape)
    return _outputs(adds_up, vectors, problem)


@partial(jax.jit, static_argnums=0)
def _by_formed_operator(adds_up: bool, clock: Clock, op: GramOperator, problem: Problem) -> Array:
    matrix = op.as_matrix().astype(problem.y.dtype)
    return _outputs(
        adds_up, _carried(_moved(adds_up, clock, matrix, problem.residual), problem), problem
    )


def _outputs(adds_up: bool, vectors: Float[Array, "s rows k"], problem: Problem) -> Array:
    """Return what is asked for from d(H) r, c(H) r, or the cross kernel times that."""
    if not adds_up:
        return saturated(problem.scale * (problem.y[None] / problem.scale + vectors))
    if problem.cross is None:
        return saturated(problem.scale * vectors)
    return saturated(problem.scale * (problem.start[None] / problem.scale - vectors))


def _carried(vectors: Float[Array, "s n k"], problem: Problem) -> Float[Array, "s rows k"]:
    """Return the products of a cross operator, if there is one, with the vectors."""
    if not isinstance(problem.cross, CrossOperator):
        return vectors
    columns = jnp.moveaxis(vectors, 0, -1)  # [n, k, s]
    if len(problem.cross.gram.shape) == 1:
        columns = columns.reshape(len(columns), -1)
    carried = problem.cross.mm(columns).reshape(*problem.start.shape, -1)
    return jnp.moveaxis(carried, -1, 0).astype(vectors.dtype)


def _by_krylov(
    adds_up: bool, clock: Clock, op: GramOperator, problem: Problem, rtol: float | None
) -> Array:
    if rtol is None:
        rtol = 1e-5 if op.dtype == jnp.float32 else 1e-9
    residual = problem.residual.astype(op.dtype)
    starts = residual.T if len(op.shape) == 1 else residual[None]

    def moved(dimension: int) -> Array:
        vectors = _functions(adds_up, op, starts, clock, dimension)  # [c, s, n] or [1, s, n, k]
        stacked = jnp.moveaxis(vectors, 0, -1) if len(op.shape) == 1 else vectors[0]  # [s, n, k]
        return _carried(stacked.astype(problem.y.dtype), problem)

    size = op.in_size()
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((op, clock, problem))):
        return _outputs(adds_up, moved(min(128, size)), problem)
    coefficients = adds_up and problem.cross is None
    largest = float(jnp.max(jnp.abs(residual)))
    dimension = min(16, size)
    coarse = moved(dimension)
    while dimension < size:
        if not np.isfinite(np.asarray(coarse)).all():
            raise NumericalError(
                f"{Result.NONFINITE_PRODUCT.name}: {Result.NONFINITE_PRODUCT.advice}"
            )
        if dimension >= _KRYLOV:
            raise NumericalError(
                f"{Result.MAX_STEPS.name}: {dimension} products with the operator do not give rtol={rtol:.1g}. Ask for fewer "
                "steps (an earlier time), a larger rtol, or float64."
            )
        dimension = min(2 * dimension, size)
        fine = moved(dimension)
        change = float(jnp.max(jnp.abs(fine - coarse)))
        coarse = fine
        if change <= rtol * (float(jnp.max(jnp.abs(fine))) if coefficients else largest):
            break
    return _outputs(adds_up, coarse, problem)


def _functions(
    adds_up: bool, op: GramOperator, starts: Array, clock: Clock, dimension: int
) -> Array:
    """Return f(H) r for every start vector r: [c, s, *shape]."""
    size = op.in_size()

    def one(found: Tridiagonal) -> Array:
        first = jnp.zeros((dimension, 1), found.matrix.dtype).at[0].set(1)
        small = filtered(adds_up, size, clock, found.matrix, first)
        return found.combine(small[:, :, 0])

    return jax.vmap(one)(_krylov(op, starts, dimension))


_krylov = jax.jit(
    lambda op, starts, dimension: jax.vmap(lambda v: lanczos(op, v, dimension))(starts),
    static_argnums=2,
)
