"""``ntk.solve``: (K + ridge I) V = Y by preconditioned conjugate gradients, with the true residual as the judge."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._norms import host_norm
from softntk._progress import Progress
from softntk._validation import as_floating, check_flag, check_integer, check_key, check_number, check_positive_int, is_concrete
from softntk.ntk._conjugate_gradients import advance as _advance
from softntk.ntk._conjugate_gradients import multiply as _product
from softntk.ntk._conjugate_gradients import rescaled, solve_traced, without_derivatives
from softntk.ntk._conjugate_gradients import start as _start
from softntk.ntk._gram import Number, as_scalar
from softntk.ntk.gram_operators import GramOperator
from softntk.ntk.preconditioner import precondition
from softntk.solution import Result, Solution

_CHUNK = 10  # steps between looks at progress and interrupts
_COMPLETE = 7000  # up to this size the whole matrix is factorised: 200 MB of float32
_NUMBERS = 200_000_000  # in the preconditioner of a larger operator: 800 MB of float32
_UNSOLVED = 0.1  # relative residual above which a direction without positive curvature is the reason


def solve(
    op: GramOperator,
    y: Float[Array | np.ndarray, "*shape"],
    *,
    ridge: Number = 0.0,
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
    stay in the precision of ``op``: float32 products, float64 accuracy. Right-hand sides are solved for in units of their own.

    Inside jit, vmap and grad the same is one program on the device: nothing is raised, shown or refined in float64, ``result``
    is a traced code; and V is differentiable in y, ridge, and the arrays of op, by one more solve.

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
        NumericalError: under ``throw``, outside jit: stagnation, too few steps, a kernel that is not definite or a non-finite
            product; the message is the advice.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(1), (200, 8)) / 8**0.5
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, x)
        >>> sol = sn.ntk.solve(op, x[:, 0], ridge=0.1)
        >>> bool(sol.stats["residual"] < 1e-5), sol.value.shape
        (True, (200,))
    """
    _check_operator(op)
    check_flag("refine", refine)
    check_flag("throw", throw)
    check_flag("progress", progress)
    check_positive_int("max_steps", max_steps)
    size = op.in_size()
    ridge_ = as_scalar("ridge", ridge, op.dtype, at_least=0)
    working = "float64" if refine else str(op.dtype)
    rtol = _check_rtol(rtol, working)
    rank = _check_rank(rank, size)
    key = jax.random.key(0) if key is None else check_key("key", key)
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((op, y, ridge, key))):
        return _solve_inside(op, y, ridge_, rtol, rank, key, max_steps, refine)
    with jax.enable_x64(True) if refine else contextlib.nullcontext():
        y, single = _as_columns(op, y)
    y = np.asarray(y).astype(working)
    ridge = float(ridge)
    inverse = precondition(op, key, rank, ridge_) if rank else None

    # Each column in a power of two of its own, so that float32 sees neither overflow nor underflow.
    largest = np.max(np.abs(y), axis=0)
    exponents = np.frexp(np.where(largest > 0, largest, 1))[1] - 1
    unit = np.ldexp(np.ones_like(largest), np.maximum(exponents, np.finfo(working).minexp))
    y = y / unit
    scale = _divisors(y)
    best: np.ndarray = np.zeros_like(y)
    best_error = 1.0
    history = []
    with jax.enable_x64(working == "float64"):
        exact = op.astype(working) if refine else op

    def judged(moved: Array, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the value after a correction, what is left of y, and the largest true relative residual."""
        with np.errstate(invalid="ignore", over="ignore"):
            after = np.asarray(value) + np.asarray(moved, working) * norms
            with jax.enable_x64(working == "float64"):
                image = np.asarray(_product(exact, jnp.asarray(after)))
            residual = y - image - ridge * after
            return after, residual, float(np.max(host_norm(residual, axis=0) / scale))

    value = best
    left = y
    steps = 0
    result = Result.MAX_STEPS
    norms = _divisors(left)
    state = None
    bar = Progress(progress, "solving")
    try:
        while True:
            # On what is left, again in units of its own.
            norms = _divisors(left)
            state = _start(jnp.asarray(left / norms, op.dtype), inverse)
            goals = np.clip(0.5 * rtol * scale / norms, 10 * float(jnp.finfo(op.dtype).eps), 1)
            goals = jnp.asarray(goals[None], op.dtype)
            stuck = False
            while steps < max_steps:
                asked = min(_CHUNK, max_steps - steps)
                state = _advance(op, ridge_, inverse, state, goals, asked)
                stuck = bool(np.any(np.asarray(state.stuck)))
                made = int(state.step)
                state = state._replace(step=jnp.zeros((), int))
                steps += made
                error = float(np.max(host_norm(np.asarray(state.residual), axis=0) * norms / scale))
                bar.show(f"step {steps}, relative residual {error:.1e}")
                if made < asked:  # every column is there, stuck, or no longer finite
                    break
            value, left, error = judged(state.x, norms)
            state = None  # what it found is in the value now
            history.append(error)
            improved = error < 0.5 * best_error
            if error < best_error:
                best = value
                best_error = error
            if best_error <= rtol:
                result = Result.SUCCESSFUL
            elif not np.isfinite(error):
                result = Result.NONFINITE_PRODUCT
            elif steps >= max_steps:
                result = Result.MAX_STEPS
            elif not improved:
                result = Result.NOT_DEFINITE if stuck and best_error > _UNSOLVED else Result.STAGNATED
            else:
                continue
            break
    except KeyboardInterrupt:
        result = Result.INTERRUPTED
        if state is not None:
            value, _, error = judged(state.x, norms)
            if error < best_error:
                best = value
                best_error = error
    finally:
        bar.close()
    with jax.enable_x64(working == "float64"):
        solved, loss = rescaled(jnp.asarray(best), jnp.asarray(unit[None], working))
        value = solved.reshape(op.shape if single else (*op.shape, y.shape[1]))
    loss = float(loss)
    if result is Result.SUCCESSFUL and not loss <= rtol:
        result = Result.STAGNATED if np.isfinite(loss) else Result.NONFINITE_PRODUCT
        best_error = max(best_error, loss)
    stats = {"steps": np.int64(steps), "residual": np.float64(best_error), "history": np.asarray(history)}
    solution = Solution(value=value, result=jnp.asarray(int(result), jnp.int32), stats=stats, state=inverse)
    return solution.check() if throw and result is not Result.INTERRUPTED else solution


def _solve_inside(
    op: GramOperator,
    y: Any,
    ridge: Array,
    rtol: float,
    rank: int,
    key: PRNGKeyArray,
    max_steps: int,
    refine: bool,
) -> Solution:
    """Solve under a transformation."""
    if refine and op.dtype != jnp.float64:
        raise ValueError("refine must be False inside jit, vmap and grad. Make the operator of float64 points instead.")
    y, single = _as_columns(op, y)
    inverse = precondition(without_derivatives(op), key, rank, jax.lax.stop_gradient(ridge)) if rank else None
    value, stats = solve_traced(op, inverse, y.astype(op.dtype), ridge, rtol, max_steps)
    result = stats.pop("result")
    stats["history"] = stats["residual"][None]
    value = value.reshape(op.shape if single else (*op.shape, y.shape[1]))
    return Solution(value=value, result=result, stats=stats, state=inverse)


def _check_operator(op: Any) -> None:
    if not isinstance(op, GramOperator):
        raise ValueError(
            f"op must be an operator of ntk.operator or ntk.kernel_operator, got {type(op).__name__}. "
            "For a matrix use jax.scipy.linalg.solve, or ntk.kernel_regression."
        )
    if jnp.finfo(op.dtype).bits < 32:
        raise ValueError(f"op must be float32 or float64, got an operator on {op.dtype}. Make it of points in float32.")


def _as_columns(op: GramOperator, y: Any) -> tuple[Float[Array, "size r"], bool]:
    """Return y as [size, r], and whether it came without the last axis."""
    array = as_floating("y", y, empty=True)
    single = array.shape == op.shape
    if not single and (array.shape[:-1] != op.shape or array.shape[-1] == 0):
        raise ValueError(f"y must have shape {op.shape} or {(*op.shape, 'r')}, got {array.shape}.")
    return array.reshape(op.in_size(), -1), single


def _divisors(columns: np.ndarray) -> np.ndarray:
    """Return the norms of the columns, one where it is zero."""
    norms = host_norm(columns, axis=0)
    return np.where(norms > 0, norms, 1)


def _check_rank(rank: Any, size: int) -> int:
    if rank is None:
        return size if size <= _COMPLETE else min(2500, _NUMBERS // size)
    number = check_integer("rank", rank)
    if not 0 <= number <= size:
        raise ValueError(f"rank must lie between 0 and the size {size} of the operator, got {number}.")
    return number


def _check_rtol(rtol: Any, dtype: str) -> float:
    if rtol is None:
        return 1e-5 if dtype == "float32" else 1e-10
    least = 10 * float(jnp.finfo(dtype).eps)
    number = check_number("rtol", rtol)
    if not is_concrete(number) or not least <= number < 1:
        raise ValueError(
            f"rtol must lie between {least:.2g}, what {dtype} can give, and 1, got {rtol!r}. "
            "Below that use refine=True, or operators in float64."
        )
    return number
