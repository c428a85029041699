"""``ntk.solve``: (K + ridge I) V = Y by preconditioned conjugate gradients.

This module checks the arguments, scales Y, and scales the solution back. The loop on the host,
which decides by the true residual, is in :mod:`softntk.ntk._solve.restarts`. The steps, and the
solve inside jit, are in :mod:`softntk.ntk._solve.conjugate_gradients`.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    check_flag,
    check_positive_int,
    is_concrete,
)
from softntk._linalg.gram_arrays import Number, as_scalar
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._solve.arguments import (
    as_columns,
    as_key,
    check_operator,
    check_rank,
    check_rtol,
)
from softntk.ntk._solve.conjugate_gradients import (
    rescale,
    solve_traced,
    stop_gradients,
)
from softntk.ntk._solve.preconditioner import make_preconditioner
from softntk.ntk._solve.restarts import make_system, solve_with_restarts
from softntk.solution import Result, Solution


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
    r"""Solve (K + ridge·I) V = Y for one or many right-hand sides, without forming K.

    Use it for kernel regression with operators whose matrix is too large for memory. The method is
    conjugate gradients on all right-hand sides at once; each step is one product with K. The
    preconditioner is a partial Cholesky factor, or a complete one for small sizes
    (:mod:`softntk.ntk._solve.preconditioner`).

    In finite precision the residual that conjugate gradients update drifts from the true one, ‖Y −
    (K + ridge)V‖/‖Y‖. So when they have converged the true residual is computed, and they restart
    on it until it is small enough. With ``refine`` the true residual and V are in float64, while
    the steps stay in the precision of ``op``: float32 products, float64 accuracy. Each right-hand
    side is scaled by a power of two, so that none over- or underflows.

    Inside jit, vmap and grad the solve is one program on the device. There nothing is raised, shown
    or refined in float64, and ``result`` is a traced code. V is differentiable in y, ridge and the
    arrays of op, by one more solve.

    Args:
        op: a Gram operator (:func:`~softntk.ntk.operator`, :func:`~softntk.ntk.kernel_operator`).
        y: right-hand sides, ``op.shape`` or ``op.shape`` + (r,).
        ridge: ≥ 0, added to the diagonal.
        rtol: relative residual to reach, for each right-hand side. Default 1e-5, or 1e-10 in
            float64 and with ``refine``.
        rank: rank of the preconditioner; 0 for none. The default up to size 7000 is the size
            itself, that is a complete Cholesky factorisation; beyond that it is 2500, or as many as
            fit into 800 MB of float32. It costs rank rows of K and 2 · size · rank² multiplications
            once (size³/3 if complete).
        key: random key of the pivots; ``jax.random.key(0)`` if None, so that a solve can be
            repeated.
        max_steps: largest number of conjugate gradient steps, over all restarts.
        refine: compute the true residual, and return V, in float64.
        throw: raise if the solve fails, instead of returning the best V with a result code.
        progress: show step and residual (rich).

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: V, in the shape of y. ``stats``: "steps",
        "residual" (the true one, the largest over the right-hand sides), "history" (the true
        residual at each restart; inside jit the last one alone). ``state``: the preconditioner.
        Ctrl-C returns the best V with ``Result.INTERRUPTED``.

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

    Source: Hestenes and Stiefel (1952), J. Res. Natl. Bur. Stand. 49(6), 409-436 (conjugate
    gradients); arXiv 2207.06503 and 2110.02820 (the preconditioner).
    """
    # 1. Check the arguments.
    check_operator(op)
    check_flag("refine", refine)
    check_flag("throw", throw)
    check_flag("progress", progress)
    check_positive_int("max_steps", max_steps)
    size = op.in_size()
    device_ridge = as_scalar("ridge", ridge, op.dtype, at_least=0)
    true_dtype = "float64" if refine else str(op.dtype)
    rtol = check_rtol(rtol, true_dtype)
    rank = check_rank(rank, size)
    key = as_key(key)

    # 2. Inside a transformation, one program without a host loop.
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((op, y, ridge, key))):
        return _solve_under_transformation(op, y, device_ridge, rtol, rank, key, max_steps, refine)

    # 3. The right-hand sides in the precision of the true residual, and the preconditioner.
    with jax.enable_x64(True) if refine else contextlib.nullcontext():
        y, is_single_vector = as_columns(op, y)
    y = np.asarray(y).astype(true_dtype)
    ridge = float(ridge)
    inverse = make_preconditioner(op, key, rank, device_ridge) if rank else None

    # 4. Divide each column by a power of two, so that float32 neither over- nor underflows.
    max_entries = np.max(np.abs(y), axis=0)
    exponents = np.frexp(np.where(max_entries > 0, max_entries, 1))[1] - 1
    column_units = np.ldexp(
        np.ones_like(max_entries), np.maximum(exponents, np.finfo(true_dtype).minexp)
    )

    # 5. Solve, and scale back; digits that are lost there count as residual.
    system = make_system(op, inverse, y / column_units, ridge, device_ridge, rtol, max_steps)
    final, result = solve_with_restarts(system, progress)
    residual = final.best_error
    scaled_solution, rounding_loss = _to_units(final.best, column_units)
    if result is Result.SUCCESSFUL and not rounding_loss <= rtol:
        result = Result.STAGNATED if np.isfinite(rounding_loss) else Result.NONFINITE_PRODUCT
        residual = max(residual, rounding_loss)

    # 6. The solution in the shape of y, with its statistics.
    with jax.enable_x64(true_dtype == "float64"):
        value = jnp.asarray(
            scaled_solution.reshape(op.shape if is_single_vector else (*op.shape, y.shape[1]))
        )
    stats = {
        "steps": np.int64(final.steps),
        "residual": np.float64(residual),
        "history": np.asarray(final.history),
    }
    solution = Solution(
        value=value, result=jnp.asarray(int(result), jnp.int32), stats=stats, state=inverse
    )
    return solution.check() if throw and result is not Result.INTERRUPTED else solution


def _to_units(value: np.ndarray, column_units: np.ndarray) -> tuple[np.ndarray, float]:
    """Return column_units · value, and the relative error of that product, as :func:`rescale` does.

    Where all numbers keep their digits the error is zero, and no program is compiled.
    """
    # The product is exact if no number has left the normal range.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled_value = value * column_units
        magnitudes = np.abs(scaled_value)
        is_normal = np.where(value == 0, 1, magnitudes) >= np.finfo(value.dtype).tiny
    if is_normal.all() and np.isfinite(magnitudes).all():
        return scaled_value, 0.0
    with jax.enable_x64(value.dtype == np.float64):
        solved, rounding_loss = rescale(
            jnp.asarray(value), jnp.asarray(column_units[None], value.dtype)
        )
        return np.asarray(solved), float(rounding_loss)


def _solve_under_transformation(
    op: GramOperator,
    y: object,
    ridge: Array,
    rtol: float,
    rank: int,
    key: PRNGKeyArray,
    max_steps: int,
    refine: bool,
) -> Solution:
    """Solve inside jit, vmap or grad."""
    if refine and op.dtype != jnp.float64:
        raise ValueError(
            "refine must be False inside jit, vmap and grad. "
            "Make the operator of float64 points instead."
        )
    y, is_single_vector = as_columns(op, y)
    inverse = None
    if rank:
        fixed_ridge = jax.lax.stop_gradient(ridge)
        inverse = make_preconditioner(stop_gradients(op), key, rank, fixed_ridge)
    # The preconditioner is a constant of the derivative: it changes the steps, not the solution.
    value, stats = solve_traced(op, inverse, y.astype(op.dtype), ridge, rtol, max_steps)
    result = stats.pop("result")
    stats["history"] = stats["residual"][None]
    value = value.reshape(op.shape if is_single_vector else (*op.shape, y.shape[1]))
    return Solution(value=value, result=result, stats=stats, state=inverse)
