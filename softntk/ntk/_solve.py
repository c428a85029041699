"""``ntk.solve``: (K + ridge I) V = Y by preconditioned conjugate gradients, with the true residual as the judge."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._progress import Progress
from softntk._validation import check_finite, check_floating, check_positive_int
from softntk.ntk.gram_operators import GramOperator
from softntk.ntk.preconditioner import CompletePreconditioner, Preconditioner, precondition
from softntk.solution import Result, Solution

_CHUNK = 10  # steps between looks at progress and interrupts
_COMPLETE = 7000  # up to this size the whole matrix is factorised: 200 MB of float32
_NUMBERS = 200_000_000  # in the preconditioner of a larger operator: 800 MB of float32

_Inverse = Preconditioner | CompletePreconditioner | None


class _State(NamedTuple):
    x: Array
    residual: Array
    direction: Array
    inner: Array  # ⟨r, P⁻¹r⟩, [1, r]
    step: Array


def solve(
    op: GramOperator,
    y: Float[Array | np.ndarray, "*shape"],
    *,
    ridge: float = 0.0,
    rtol: float | None = None,
    rank: int | None = None,
    key: PRNGKeyArray | None = None,
    max_steps: int = 1000,
    refine: bool = False,
    throw: bool = True,
    progress: bool = False,
) -> Solution:
    r"""Solve (K + ridge·I) V = Y for one or many right-hand sides, without ever holding K.

    Conjugate gradients on all right-hand sides at once (one product with K a step), preconditioned by a partial Cholesky
    factor, a complete one for small sizes (:mod:`softntk.ntk.preconditioner`). The residual that conjugate gradients carry
    along drifts from the true one in finite precision; so when it says "done" the true one, ‖Y − (K + ridge)V‖/‖Y‖, is
    computed, and they start again on what is left. With ``refine`` that true residual, and V, are in float64, while the steps
    stay in the precision of ``op``: float32 products, float64 accuracy.

    Args:
        op: a Gram operator (:func:`~softntk.ntk.operator`, :func:`~softntk.ntk.kernel_operator`).
        y: right-hand sides, ``op.shape`` or ``op.shape`` + (r,).
        ridge: ≥ 0, added to the diagonal.
        rtol: relative residual to reach, for each right-hand side. Default 1e-5, or 1e-10 in float64 and with ``refine``.
        rank: of the preconditioner; 0 for none. Default: the size itself up to 7000, a complete Cholesky factorisation, so that
            the steps only refine it; beyond that 2500, or as many as fit into 800 MB of float32. It costs rank rows of K and
            2 · size · rank² multiplications once (size³/3 if complete).
        key: of the random pivots; ``jax.random.key(0)`` if None, so that a solve can be repeated.
        max_steps: conjugate gradient steps in all.
        refine: judge, and return, in float64.
        throw: raise if it does not succeed, instead of returning the best so far with a result code.
        progress: show step and residual (rich).

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: V, the shape of y. ``stats``: "steps", "residual" (true, the
        largest over the right-hand sides), "history" of the true residual at each restart. Ctrl-C returns the best so far
        with ``Result.INTERRUPTED``. ``state``: the preconditioner.

    Raises:
        ValueError: op not an operator, y of the wrong shape, integer or not finite, ridge negative, rtol not in (0, 1) or below
            what the precision can give (use ``refine``), rank or max_steps out of range.
        NumericalError: under ``throw``, stagnation, too few steps or a non-finite product; the message is the advice.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(1), (200, 8)) / 8**0.5
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, x)
        >>> sol = sn.ntk.solve(op, x[:, 0], ridge=0.1)
        >>> bool(sol.stats["residual"] < 1e-5), sol.value.shape
        (True, (200,))
    """
    y, single = _check(op, y)
    size, r = y.shape
    if not ridge >= 0 or not np.isfinite(ridge):
        raise ValueError(f"ridge must be a finite number of at least 0, got {ridge!r}.")
    check_positive_int("max_steps", max_steps)
    working = "float64" if refine else str(op.dtype)
    rtol = _check_rtol(rtol, working)
    if rank is None:
        rank = size if size <= _COMPLETE else min(2500, _NUMBERS // size)
    elif not 0 <= rank <= size:
        raise ValueError(f"rank must lie between 0 and the size {size} of the operator, got {rank}.")
    ridge_ = jnp.asarray(ridge, op.dtype)
    key = jax.random.key(0) if key is None else key
    inverse = precondition(op, key, rank, ridge_) if rank else None

    y = y.astype(working)
    scale = np.maximum(np.linalg.norm(y, axis=0), np.finfo(working).tiny)
    best: np.ndarray = np.zeros_like(y)
    best_error, history = 1.0, []
    with jax.enable_x64(working == "float64"):
        exact = op.astype(working) if refine else op

    def judged(moved: Array, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The value after a correction, what is left of y, and the largest true relative residual."""
        with np.errstate(invalid="ignore", over="ignore"):
            after = np.asarray(value) + np.asarray(moved, working) * norms
            with jax.enable_x64(working == "float64"):
                image = np.asarray(_product(exact, jnp.asarray(after)))
            rest = y - image - ridge * after
            return after, rest, float(np.max(np.linalg.norm(rest, axis=0) / scale))

    value, left, steps, result = best, y, 0, Result.MAX_STEPS
    norms = np.maximum(np.linalg.norm(left, axis=0), np.finfo(op.dtype).tiny)
    state = None
    bar = Progress(progress, "solving")
    try:
        while True:
            # On what is left, scaled to unit norm so that float32 sees neither overflow nor underflow.
            norms = np.maximum(np.linalg.norm(left, axis=0), np.finfo(op.dtype).tiny)
            state = _start(jnp.asarray(left / norms, op.dtype), inverse)
            goals = jnp.asarray(np.clip(0.5 * rtol * scale / norms, 10 * np.finfo(op.dtype).eps, 1)[None], op.dtype)
            while steps < max_steps:
                asked = min(_CHUNK, max_steps - steps)
                state = _advance(op, ridge_, inverse, state, goals, asked)
                made, state = int(state.step), state._replace(step=jnp.zeros((), int))
                steps += made
                error = float(np.max(np.linalg.norm(np.asarray(state.residual), axis=0) * norms / scale))
                bar.show(f"step {steps}, relative residual {error:.1e}")
                if made < asked:  # every column is there, or no longer finite
                    break
            value, left, error = judged(state.x, norms)
            state = None  # what it found is in the value now
            history.append(error)
            improved = error < 0.5 * best_error
            if error < best_error:
                best, best_error = value, error
            if best_error <= rtol:
                result = Result.SUCCESSFUL
            elif not np.isfinite(error):
                result = Result.NONFINITE_PRODUCT
            elif steps >= max_steps:
                result = Result.MAX_STEPS
            elif not improved:
                result = Result.STAGNATED
            else:
                continue
            break
    except KeyboardInterrupt:
        result = Result.INTERRUPTED
        if state is not None:
            value, _, error = judged(state.x, norms)
            best, best_error = (value, error) if error < best_error else (best, best_error)
    finally:
        bar.close()
    with jax.enable_x64(working == "float64"):
        value = jnp.asarray(best.reshape(op.shape if single else (*op.shape, r)))
    stats = {"steps": np.int64(steps), "residual": np.float64(best_error), "history": np.asarray(history)}
    solution = Solution(value=value, result=jnp.asarray(int(result), jnp.int32), stats=stats, state=inverse)
    return solution.check() if throw and result is not Result.INTERRUPTED else solution


def _check(op: GramOperator, y: Any) -> tuple[np.ndarray, bool]:
    """Y as [size, r], and whether it came without the last axis."""
    if not isinstance(op, GramOperator):
        raise ValueError(
            f"op must be an operator of ntk.operator or ntk.kernel_operator, got {type(op).__name__}. "
            "For a matrix use jax.scipy.linalg.solve, or ntk.kernel_regression."
        )
    check_floating("y", y)
    shape = jnp.shape(y)
    single = shape == op.shape
    if not single and (shape[:-1] != op.shape or shape[-1] == 0):
        raise ValueError(f"y must have shape {op.shape} or {(*op.shape, 'r')}, got {shape}.")
    check_finite("y", y)
    return np.asarray(y).reshape(op.in_size(), -1), single


def _check_rtol(rtol: float | None, dtype: str) -> float:
    if rtol is None:
        return 1e-5 if dtype == "float32" else 1e-10
    least = 10 * float(jnp.finfo(dtype).eps)
    if not least <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {least:.2g}, what {dtype} can give, and 1, got {rtol!r}. "
            "Below that use refine=True, or operators in float64."
        )
    return float(rtol)


@jax.jit
def _product(op: GramOperator, x: Float[Array, "size r"]) -> Float[Array, "size r"]:
    return op.mm(x.reshape(*op.shape, -1)).reshape(x.shape)


@jax.jit
def _start(y: Float[Array, "size r"], inverse: _Inverse) -> _State:
    z = y if inverse is None else inverse(y)
    return _State(jnp.zeros_like(y), y, z, jnp.sum(y * z, axis=0, keepdims=True), jnp.zeros((), int))


@jax.jit
def _advance(op: GramOperator, ridge: Array, inverse: _Inverse, state: _State, goals: Array, steps: Array) -> _State:
    """At most ``steps`` steps, until every column of the residual is below its goal. Columns that are there stand still."""

    def unfinished(s: _State) -> Array:
        return jnp.linalg.norm(s.residual, axis=0, keepdims=True) > goals

    def step(s: _State) -> _State:
        moving = unfinished(s)
        image = _product(op, s.direction) + ridge * s.direction
        curvature = jnp.sum(s.direction * image, axis=0, keepdims=True)
        length = jnp.where(moving & (curvature > 0), s.inner / jnp.where(curvature > 0, curvature, 1), 0)
        residual = s.residual - length * image
        z = residual if inverse is None else inverse(residual)
        inner = jnp.sum(residual * z, axis=0, keepdims=True)
        turn = jnp.where(moving, inner / jnp.where(s.inner > 0, s.inner, 1), 0)
        return _State(s.x + length * s.direction, residual, z + turn * s.direction, inner, s.step + 1)

    return lax.while_loop(lambda s: (s.step < steps) & jnp.any(unfinished(s)), step, state)
