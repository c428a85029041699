"""``ntk.solve``: (K + ridge I) V = Y by preconditioned conjugate gradients, with the true residual
as the judge.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.progress import Progress
from softntk._core.validation import (
    as_floating,
    check_flag,
    check_integer,
    check_key,
    check_number,
    check_positive_int,
    is_concrete,
)
from softntk._linalg.gram_arrays import Number, as_scalar
from softntk._linalg.norms import host_norm
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.conjugate_gradients import (
    Inverse,
    State,
    advance,
    multiply,
    rescaled,
    solve_traced,
    start,
    without_derivatives,
)
from softntk.ntk._solve.preconditioner import precondition
from softntk.solution import Result, Solution

_CHUNK = 10  # steps between looks at progress and interrupts
_COMPLETE = 7000  # up to this size the whole matrix is factorised: 200 MB of float32
_NUMBERS = 200_000_000  # in the preconditioner of a larger operator: 800 MB of float32
# relative residual above which a direction without positive curvature is the reason
_UNSOLVED = 0.1


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

    Conjugate gradients on all right-hand sides at once (one product with K a step), preconditioned
    by a partial Cholesky factor, a complete one for small sizes
    (:mod:`softntk.ntk._solve.preconditioner`). The residual that conjugate gradients carry along
    drifts from the true one in finite precision; so when it says "done" the true one, ‖Y − (K +
    ridge)V‖/‖Y‖, is computed, and they start again on what is left. With ``refine`` that true
    residual, and V, are in float64, while the steps stay in the precision of ``op``: float32
    products, float64 accuracy. Right-hand sides are solved for in units of their own.

    Inside jit, vmap and grad the same is one program on the device: nothing is raised, shown or
    refined in float64, ``result`` is a traced code; and V is differentiable in y, ridge, and the
    arrays of op, by one more solve.

    Args:
        op: a Gram operator (:func:`~softntk.ntk.operator`, :func:`~softntk.ntk.kernel_operator`).
        y: right-hand sides, ``op.shape`` or ``op.shape`` + (r,).
        ridge: ≥ 0, added to the diagonal.
        rtol: relative residual to reach, for each right-hand side. Default 1e-5, or 1e-10 in
            float64 and with ``refine``.
        rank: of the preconditioner; 0 for none. Default: the size itself up to 7000, a complete
            Cholesky factorisation, so that the steps only refine it; beyond that 2500, or as many
            as fit into 800 MB of float32. It costs rank rows of K and 2 · size · rank²
            multiplications once (size³/3 if complete).
        key: of the random pivots; ``jax.random.key(0)`` if None, so that a solve can be repeated.
        max_steps: conjugate gradient steps in all.
        refine: judge, and return, in float64.
        throw: raise if it does not succeed, instead of returning the best so far with a result
            code.
        progress: show step and residual (rich).

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: V, the shape of y. ``stats``: "steps",
        "residual" (true, the largest over the right-hand sides), "history" of the true residual at
        each restart. Ctrl-C returns the best so far
        with ``Result.INTERRUPTED``. ``state``: the preconditioner.

    Raises:
        ValueError: op not an operator, y of the wrong shape, integer or not finite, ridge negative,
            rtol not in (0, 1) or below what the precision can give (use ``refine``), rank or
            max_steps out of range.
        NumericalError: under ``throw``, outside jit: stagnation, too few steps, a kernel that is
            not definite or a non-finite product; the message is the advice.

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
    key = _as_key(key)
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
    iteration = _Iteration(
        op, inverse, y / unit, ridge, ridge_, rtol, max_steps, Progress(progress, "solving")
    )
    result = iteration.run()
    residual = iteration.best_error
    solved, loss = _in_units(iteration.best, unit)
    if result is Result.SUCCESSFUL and not loss <= rtol:
        result = Result.STAGNATED if np.isfinite(loss) else Result.NONFINITE_PRODUCT
        residual = max(residual, loss)
    with jax.enable_x64(working == "float64"):
        value = jnp.asarray(solved.reshape(op.shape if single else (*op.shape, y.shape[1])))
    stats = {
        "steps": np.int64(iteration.steps),
        "residual": np.float64(residual),
        "history": np.asarray(iteration.history),
    }
    solution = Solution(
        value=value, result=jnp.asarray(int(result), jnp.int32), stats=stats, state=inverse
    )
    return solution.check() if throw and result is not Result.INTERRUPTED else solution


class _Iteration:
    """Conjugate gradients that start again on the true residual until that is small enough.

    Attributes:
        best: the value of the smallest true residual so far, [size, r].
        best_error: that residual, the largest over the columns, relative.
        steps: made so far.
        history: the true residual at each restart.
    """

    def __init__(
        self,
        op: GramOperator,
        inverse: Inverse,
        y: np.ndarray,
        ridge: float,
        device_ridge: Array,
        rtol: float,
        max_steps: int,
        bar: Progress,
    ):
        """Take the system, (K + ridge I) V = Y with Y in the precision to judge in, and when to
        end.
        """
        self.op = op
        self.inverse = inverse
        self.y = y
        self.ridge = ridge
        self.device_ridge = device_ridge
        self.rtol = rtol
        self.max_steps = max_steps
        self.bar = bar
        self.scale = _divisors(y)
        self.in_float64 = y.dtype == np.float64
        with jax.enable_x64(self.in_float64):
            self.exact = op if op.dtype == y.dtype else op.astype(y.dtype)
        self.best = np.zeros_like(y)
        self.best_error = 1.0
        self.steps = 0
        self.history: list[float] = []
        self._value = self.best
        self._left = y
        self._norms = self.scale
        self._state: State | None = None

    def run(self) -> Result:
        """Return how it ended; Ctrl-C keeps the best so far."""
        result = None
        try:
            while result is None:
                result = self._attempt()
        except KeyboardInterrupt:
            if self._state is not None:
                self._keep(self._correct(self._state.x))
            return Result.INTERRUPTED
        finally:
            self.bar.close()
        return result

    def _attempt(self) -> Result | None:
        """Return the result of one start on what is left, None if another is to follow."""
        state, stuck = self._descend()
        error = self._correct(state.x)
        self._state = None  # what it found is in the value now
        self.history.append(error)
        improved = error < 0.5 * self.best_error
        self._keep(error)
        if self.best_error <= self.rtol:
            return Result.SUCCESSFUL
        if not np.isfinite(error):
            return Result.NONFINITE_PRODUCT
        if self.steps >= self.max_steps:
            return Result.MAX_STEPS
        if improved:
            return None
        return Result.NOT_DEFINITE if stuck and self.best_error > _UNSOLVED else Result.STAGNATED

    def _descend(self) -> tuple[State, bool]:
        """Return the state of conjugate gradients at their goals, and whether a column is stuck."""
        # On what is left, again in units of its own.
        dtype = self.op.dtype
        self._norms = _divisors(self._left)
        self._state = state = start(jnp.asarray(self._left / self._norms, dtype), self.inverse)
        smallest = 10 * float(jnp.finfo(dtype).eps)
        goals = np.clip(0.5 * self.rtol * self.scale / self._norms, smallest, 1)
        goals = jnp.asarray(goals[None], dtype)
        stuck = False
        while self.steps < self.max_steps:
            asked = min(_CHUNK, self.max_steps - self.steps)
            state = advance(self.op, self.device_ridge, self.inverse, state, goals, asked)
            stuck = bool(np.any(np.asarray(state.stuck)))
            made = int(state.step)
            self._state = state = state._replace(step=np.zeros((), state.step.dtype))
            self.steps += made
            lengths = host_norm(np.asarray(state.residual), axis=0)
            error = float(np.max(lengths * self._norms / self.scale))
            self.bar.show(f"step {self.steps}, relative residual {error:.1e}")
            if made < asked:  # every column is there, stuck, or no longer finite
                break
        return state, stuck

    def _correct(self, moved: Array) -> float:
        """Add a correction to the value, and return the largest true relative residual."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._value = self._value + np.asarray(moved, self.y.dtype) * self._norms
            with jax.enable_x64(self.in_float64):
                image = np.asarray(multiply(self.exact, jnp.asarray(self._value)))
            self._left = self.y - image - self.ridge * self._value
            return float(np.max(host_norm(self._left, axis=0) / self.scale))

    def _keep(self, error: float) -> None:
        """Remember the value if its residual is the smallest so far."""
        if error < self.best_error:
            self.best = self._value
            self.best_error = error


def _in_units(value: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, float]:
    """Return unit · value, and how much of it the range of the precision has cost, as
    :func:`rescaled` does.

    Where all numbers keep their digits that is nothing, and needs no program.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = value * unit
        sizes = np.abs(moved)
        ordinary = np.where(value == 0, 1, sizes) >= np.finfo(value.dtype).tiny
    if ordinary.all() and np.isfinite(sizes).all():
        return moved, 0.0
    with jax.enable_x64(value.dtype == np.float64):
        solved, loss = rescaled(jnp.asarray(value), jnp.asarray(unit[None], value.dtype))
        return np.asarray(solved), float(loss)


def _solve_inside(
    op: GramOperator,
    y: object,
    ridge: Array,
    rtol: float,
    rank: int,
    key: PRNGKeyArray,
    max_steps: int,
    refine: bool,
) -> Solution:
    """Solve under a transformation."""
    if refine and op.dtype != jnp.float64:
        raise ValueError(
            "refine must be False inside jit, vmap and grad. Make the operator of float64 points instead."
        )
    y, single = _as_columns(op, y)
    inverse = (
        precondition(without_derivatives(op), key, rank, jax.lax.stop_gradient(ridge))
        if rank
        else None
    )
    value, stats = solve_traced(op, inverse, y.astype(op.dtype), ridge, rtol, max_steps)
    result = stats.pop("result")
    stats["history"] = stats["residual"][None]
    value = value.reshape(op.shape if single else (*op.shape, y.shape[1]))
    return Solution(value=value, result=result, stats=stats, state=inverse)


def _check_operator(op: object) -> None:
    if not isinstance(op, GramOperator):
        raise ValueError(
            f"op must be an operator of ntk.operator or ntk.kernel_operator, got {type(op).__name__}. "
            "For a matrix use jax.scipy.linalg.solve, or ntk.kernel_regression."
        )
    if jnp.finfo(op.dtype).bits < 32:
        raise ValueError(
            f"op must be float32 or float64, got an operator on {op.dtype}. Make it of points in float32."
        )


def _as_columns(op: GramOperator, y: object) -> tuple[Float[Array, "size r"], bool]:
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


def _as_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    return jax.random.key(0) if key is None else check_key("key", key)


def _check_rank(rank: object, size: int) -> int:
    if rank is None:
        return size if size <= _COMPLETE else min(2500, _NUMBERS // size)
    number = check_integer("rank", rank)
    if not 0 <= number <= size:
        raise ValueError(
            f"rank must lie between 0 and the size {size} of the operator, got {number}."
        )
    return number


def _check_rtol(rtol: object, dtype: str) -> float:
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
