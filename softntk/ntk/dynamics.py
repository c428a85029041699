r"""Training dynamics that a kernel predicts: gradient descent and gradient flow, on training points and on any others.

Both are functions of the kernel H applied to the residual r = F(0) − Y,

    F(τ) = Y + d_τ(H) r,      F_test(τ) = F_test(0) − H_test c_τ(H) r,      c_τ(λ) = (1 − d_τ(λ))/λ,

with d_τ(λ) = (1 − ηλ)^τ for descent and e^{−λτ} for flow. A matrix is decomposed once for all τ; with an operator they are
taken from the Krylov space of r, which never asks for eigenvectors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from softntk._validation import check_finite, check_floating, check_positive, is_concrete
from softntk.ntk._contractions import product
from softntk.ntk._gram import Gram, as_cross_matrix, as_matrix, rounding
from softntk.ntk._lanczos import Tridiagonal, lanczos
from softntk.ntk.gram_operators import CrossOperator, GramOperator
from softntk.solution import NumericalError, Result

Targets = Float[Array | np.ndarray, "n k"]
TestTargets = Float[Array | np.ndarray, "t k"]
Cross = Float[Array | np.ndarray, "t n"] | Float[Array | np.ndarray, "t n k k"] | CrossOperator
Decay = Callable[[Array], tuple[Array, Array]]  # eigenvalues [p] -> d and c, each [s, p]

_KRYLOV = 512  # most products with an operator, and vectors held
_COEFFICIENTS = object()  # as a cross kernel: return what would be multiplied by one


def predict_gd(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: float | Float[Array, ""],
    steps: Integer[Array | np.ndarray, " s"],
    f0: Targets | None = None,
    *,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Outputs of gradient descent on ½ΣΣ(F−Y)² after each number of steps, under a constant kernel.

    F(τ) = Y + (I − ηH)^τ (F(0) − Y), for all τ at once. The powers are sign^τ exp(τ log|1 − ηλ|) with the logarithm taken of
    ηλ, not of its difference from 1: exact to rounding for small ηλ and millions of steps.

    Args:
        gram: H on the training points: [n, n] (the same for every output, outputs independent) or [n, n, k, k]
            (:func:`softntk.ntk.empirical` with ``outputs="full"``), symmetric; or an operator on [n] or [n, k], then by as
            many products as the accuracy asks for (up to 512; about √(τηλ_max) of them for a few digits).
        y: targets, [n, k].
        learning_rate: η > 0. neural_tangents' is n·k times this one: its loss is a mean.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]; zero if None (antisymmetric initialisation).
        cross: kernel between t test points and the training points, [t, n], [t, n, k, k], or ``op.cross(x_test)``. With it,
            the outputs at the test points are returned.
        f0_test: their outputs at the start, [t, k]; zero if None.
        rtol: of what is returned, against max|F(0) − Y|, with an operator (default 1e-5, 1e-9 in float64).

    Returns:
        [s, n, k], or [s, t, k] with ``cross``. A divergent component (ηλ > 2) saturates at the root of the largest number
        instead of overflowing.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, an asymmetric gram, η not positive, steps negative
            or not integers.
        NumericalError: an operator whose Krylov space did not reach rtol. Inside jit, where that cannot be seen, 128 products
            are made.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> ntk.predict_gd(jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((2, 1)), 0.5, jnp.array([0, 1, 2]))[:, :, 0].tolist()
        [[0.0, 0.0], [0.5, 0.25], [0.75, 0.4375]]

    Source: arXiv 2405.03251, Definition 3.8 and Lemma 3.9 (dynamics of the prediction); MATH.md section 2, "Training".
    """
    return _predict(_descent(learning_rate, steps), gram, y, f0, cross, f0_test, rtol)


def gd_coefficients(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: float | Float[Array, ""],
    steps: Integer[Array | np.ndarray, " s"],
    f0: Targets | None = None,
    *,
    rtol: float | None = None,
) -> Float[Array, "s n k"]:
    r"""What gradient descent has added up after each number of steps: c with F_test(τ) = F_test(0) + H_test c.

    c = H⁻¹(I − (I − ηH)^τ)(Y − F(0)) = η Σ_{s<τ} (Y − F(s)), which exists where H is singular. The weights of the linearised
    network have moved by Jᵀc: with it, the network can be evaluated anywhere by one derivative along that direction, where
    :func:`predict_gd` needs the kernel between training and test points.

    Args:
        gram: H, as for :func:`predict_gd`.
        y: targets, [n, k].
        learning_rate: η > 0.
        steps: non-negative integers [s].
        f0: outputs at the start, [n, k]; zero if None.
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

    Source: MATH.md section 2, "Training".
    """
    return -_predict(_descent(learning_rate, steps), gram, y, f0, _COEFFICIENTS, None, rtol)


def _descent(learning_rate: float | Array, steps: Integer[Array | np.ndarray, " s"]) -> Decay:
    """(1 − ηλ)^τ and (1 − (1 − ηλ)^τ)/λ."""
    check_positive("learning_rate", learning_rate)
    if not jnp.issubdtype(jnp.result_type(steps), jnp.integer) or jnp.ndim(steps) != 1:
        raise ValueError(
            f"steps must be a vector of integers [s], got shape {jnp.shape(steps)}, dtype {jnp.result_type(steps)}."
        )
    if is_concrete(steps) and np.any(np.asarray(steps) < 0):
        raise ValueError(f"steps must not be negative, got {int(np.min(steps))}.")

    def decay(eigenvalues: Array) -> tuple[Array, Array]:
        t, tau = learning_rate * eigenvalues, jnp.asarray(steps)[:, None]
        left = _powers(t, jnp.asarray(steps))
        # τ log(1 − t) through expm1 where nothing is lost by it, so that λ → 0 gives ητ.
        small = -jnp.expm1(tau.astype(t.dtype) * jnp.log1p(-jnp.where(t < 0.5, t, 0))[None, :])
        return left, _divide(jnp.where((t < 0.5)[None, :], small, 1 - left), eigenvalues, learning_rate * tau)

    return decay


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

    F(t) = Y + e^{−Ht} (F(0) − Y): the limit of gradient descent at t = ητ as η → 0.

    Args:
        gram: H on the training points, as for :func:`predict_gd`.
        y: targets, [n, k].
        times: ≥ 0, [s], in units of learning rate × steps; infinity is allowed (what training converges to).
        f0: outputs at the start, [n, k]; zero if None.
        cross: kernel between test and training points, as for :func:`predict_gd`.
        f0_test: outputs at the test points at the start, [t, k]; zero if None.
        rtol: as for :func:`predict_gd`.

    Returns:
        [s, n, k], or [s, t, k] with ``cross``.

    Raises:
        ValueError: as :func:`predict_gd`; times negative or NaN.
        NumericalError: as :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> out = ntk.predict_flow(jnp.eye(1), jnp.ones((1, 1)), jnp.array([0.0, 1.0, jnp.inf]))
        >>> [round(float(v), 4) for v in out[:, 0, 0]]  # 1 − e^{−t}
        [0.0, 0.6321, 1.0]

    Source: MATH.md section 2, "Training"; Jacot, Gabriel and Hongler (2018), arXiv 1806.07572, section 5.
    """
    check_floating("times", times)
    if jnp.ndim(times) != 1:
        raise ValueError(f"times must have shape [s], got {jnp.shape(times)}.")
    if is_concrete(times) and not np.all(np.asarray(times) >= 0):
        raise ValueError(f"times must be non-negative numbers, got {np.asarray(times)}.")

    def decay(eigenvalues: Array) -> tuple[Array, Array]:
        dtype = eigenvalues.dtype
        t = jnp.minimum(jnp.asarray(times, dtype), jnp.finfo(dtype).max)[:, None]
        # An eigenvalue that is zero up to rounding may come out negative; it must not grow without bound.
        tau = jnp.maximum(eigenvalues, 0)[None, :]
        return jnp.exp(-tau * t), _divide(-jnp.expm1(-tau * t), tau[0], t)

    return _predict(decay, gram, y, f0, cross, f0_test, rtol)


def _predict(
    decay: Decay,
    gram: Gram | GramOperator,
    y: Targets,
    f0: Targets | None,
    cross: Any,
    f0_test: TestTargets | None,
    rtol: float | None,
) -> Float[Array, "s rows k"]:
    matrix = None if isinstance(gram, GramOperator) else as_matrix(gram)
    y, residual, start = check_problem(gram, y, f0, cross, f0_test)

    def functions(eigenvalues: Array) -> tuple[Array, Array]:
        # 1/λ of an eigenvalue that rounding may have made is not known: c stays below what the precision resolves.
        left, coefficients = decay(eigenvalues)
        return left, jnp.minimum(coefficients, 1 / rounding(len(y), eigenvalues[-1]))

    if isinstance(gram, GramOperator):
        return _by_krylov(functions, gram, y, residual, cross, start, rtol)
    assert matrix is not None
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    # [n, n] acts on each output alone; [n, n, k, k] on all of them at once, output fastest.
    components = product(vectors.T, residual.reshape(len(eigenvalues), -1))
    left, coefficients = functions(eigenvalues)
    if cross is None:
        moved = product(vectors, left[:, :, None] * components[None])
        return y[None] + moved.reshape(-1, *y.shape)
    if cross is _COEFFICIENTS:
        return product(vectors, coefficients[:, :, None] * components[None]).reshape(-1, *y.shape)
    assert not isinstance(cross, CrossOperator)
    moved = product(as_cross_matrix(cross), product(vectors, coefficients[:, :, None] * components[None]))
    return start[None] - moved.reshape(-1, *start.shape)


def _by_krylov(
    decay: Decay,
    op: GramOperator,
    y: Array,
    residual: Array,
    cross: Any,
    start: Array,
    rtol: float | None,
) -> Array:
    rtol = (1e-5 if op.dtype == jnp.float32 else 1e-9) if rtol is None else rtol
    check_positive("rtol", rtol)
    starts = residual.T if len(op.shape) == 1 else residual[None]

    def outputs(dimension: int) -> Array:
        left, coefficients = _functions(op, starts, decay, dimension)  # [c, s, n] or [1, s, n, k]
        vectors = left if cross is None else coefficients
        stacked = jnp.moveaxis(vectors, 0, -1) if len(op.shape) == 1 else vectors[0]  # [s, n, k]
        if cross is None:
            return y[None] + stacked
        if cross is _COEFFICIENTS:
            return stacked
        columns = jnp.moveaxis(stacked, 0, -1)  # [n, k, s]
        if len(op.shape) == 1:
            columns = columns.reshape(len(columns), -1)
        return start[None] - jnp.moveaxis(cross.mm(columns).reshape(*start.shape, -1), -1, 0)

    size = op.in_size()
    if not is_concrete(residual) or not is_concrete(op.x):
        return _finite(outputs(min(128, size)))
    scale = None if cross is _COEFFICIENTS else float(jnp.max(jnp.abs(residual)))
    dimension = min(16, size)
    coarse = outputs(dimension)
    while True:
        if dimension == size:
            return coarse
        if not np.isfinite(np.asarray(coarse)).all():
            raise NumericalError(f"{Result.NONFINITE_PRODUCT.name}: {Result.NONFINITE_PRODUCT.advice}")
        if dimension >= _KRYLOV:
            raise NumericalError(
                f"{Result.MAX_STEPS.name}: {dimension} products with the operator do not give rtol={rtol:.1g}. Ask for fewer "
                "steps (an earlier time), a larger rtol, or float64."
            )
        dimension = min(2 * dimension, size)
        fine = outputs(dimension)
        if float(jnp.max(jnp.abs(fine - coarse))) <= rtol * (float(jnp.max(jnp.abs(fine))) if scale is None else scale):
            return fine
        coarse = fine


def _functions(op: GramOperator, starts: Array, decay: Decay, dimension: int) -> tuple[Array, Array]:
    """d(H) r and c(H) r for every start vector r: [c, s, *shape] each."""

    def one(found: Tridiagonal) -> tuple[Array, Array]:
        left, coefficients = decay(found.nodes)
        return found.apply(left), found.apply(coefficients)

    return jax.vmap(one)(_krylov(op, starts, dimension))


_krylov = jax.jit(lambda op, starts, dimension: jax.vmap(lambda v: lanczos(op, v, dimension))(starts), static_argnums=2)


def check_problem(
    gram: Gram | GramOperator, y: Targets, f0: Targets | None, cross: Any, f0_test: TestTargets | None
) -> tuple[Array, Array, Array]:
    """Y, F(0) − Y and F_test(0), [n, k], [n, k] and [t, k], checked against each other and the kernels.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, a cross of the wrong kind.
    """
    shape = jnp.shape(gram) if not isinstance(gram, GramOperator) else (gram.shape[0], *gram.shape)
    outputs = shape[2:3]
    y = _check_outputs("y", y, shape[:1] + outputs)
    start = jnp.zeros_like(y) if f0 is None else _check_outputs("f0", f0, shape[:1] + outputs)
    if start.shape != y.shape:
        raise ValueError(f"f0 must have the shape of y, got {start.shape} and {y.shape}.")
    if cross is None:
        if f0_test is not None:
            raise ValueError("f0_test goes with cross, the kernel between test and training points, which is missing.")
        return y, start - y, start
    if cross is _COEFFICIENTS:
        return y, start - y, jnp.zeros_like(y)
    if isinstance(gram, GramOperator) != isinstance(cross, CrossOperator):
        raise ValueError(
            f"cross must be an operator, op.cross(x_test), if gram is one, else an array, got {type(cross).__name__}."
        )
    kernel = cross.shape[:1] + shape[:1] if isinstance(cross, CrossOperator) else jnp.shape(cross)
    if not isinstance(cross, CrossOperator):
        check_floating("cross", cross)
        if kernel[1:] != shape[1:]:
            raise ValueError(f"cross must have shape {('t', *shape[1:])} for a gram of shape {shape}, got {kernel}.")
        check_finite("cross", cross)
    tests = (kernel[0], y.shape[1])
    if f0_test is None:
        return y, start - y, jnp.zeros(tests, y.dtype)
    return y, start - y, _check_outputs("f0_test", f0_test, tests)


def _check_outputs(name: str, y: Targets, expected: tuple[int, ...]) -> Float[Array, "n k"]:
    check_floating(name, y)
    shape = jnp.shape(y)
    if len(shape) != 2 or shape[: len(expected)] != expected:
        wanted = (*expected, "k")[:2]
        raise ValueError(f"{name} must have shape [n, k] with the n (and k) of the kernel, {wanted}, got {shape}.")
    check_finite(name, y)
    return jnp.asarray(y)


def _powers(t: Float[Array, " n"], steps: Integer[Array, " s"]) -> Float[Array, "s n"]:
    """(1 − t)^τ without losing the digits of a small t, saturating where |1 − t| > 1."""
    magnitude = jnp.where(t < 1, jnp.log1p(-jnp.where(t < 1, t, 0)), jnp.log(jnp.where(t > 1, t - 1, 1)))
    tau = steps[:, None].astype(t.dtype)
    room = 0.5 * jnp.log(jnp.finfo(t.dtype).max)
    power = jnp.exp(jnp.minimum(tau * magnitude[None, :], room))
    odd = (steps[:, None] % 2 == 1) & (t > 1)[None, :]
    power = jnp.where(odd, -power, power)
    return jnp.where((t == 1)[None, :], (steps == 0)[:, None].astype(t.dtype), power)


def _divide(learnt: Float[Array, "s p"], eigenvalues: Float[Array, " p"], limit: Array) -> Float[Array, "s p"]:
    """learnt/λ, and its limit where λ is zero."""
    positive = eigenvalues != 0
    return jnp.where(positive[None, :], learnt / jnp.where(positive, eigenvalues, 1)[None, :], limit)


def _finite(values: Array) -> Array:
    """NaN, as a product that overflowed gives, becomes +inf."""
    return jnp.where(jnp.isfinite(values), values, jnp.inf)
