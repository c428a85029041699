r"""``minimise``: one driver for every optax transform.

A run is a ``lax.while_loop`` on the device, a chunk of steps at a time; between chunks the host
measures the time, shows progress, writes a checkpoint and can be interrupted by Ctrl-C. Chunks
change nothing: the steps are those of one loop, to the last bit.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (500, 4))
    >>> p = sn.regression.resnet_softmax(A, jax.nn.softmax(A @ jnp.ones(4)), weights=0.01)
    >>> sol = sn.solvers.minimise(p, jnp.zeros(4))
    >>> bool(sol.stats["gradient_norm"][-1] <= 1e-5 * sol.stats["gradient_norm"][0])
    True

Source: arXiv 2309.13482 (the iteration), Eisenstat and Walker (1996) and the sources of
:mod:`softntk.solvers._newton.transform`.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree

from softntk._core.bound_loss import (
    BoundLoss,
    as_argument,
    check_scalar,
    split_leaves,
)
from softntk._core.closures import has_arrays
from softntk._core.validation import (
    as_floating,
    check_flag,
    check_integer,
    check_number,
    is_concrete,
)
from softntk.regression import Problem
from softntk.solution import Result, Solution
from softntk.solvers._gradient_descent import check_transform
from softntk.solvers._minimise import device_loop, implicit_diff, units
from softntk.solvers._minimise.contraction import with_contraction
from softntk.solvers._minimise.host_chunks import run_in_chunks
from softntk.solvers._minimise.loop_state import Loss, Options, Params

DEFAULT_RTOL_FLOAT64 = 1e-9
DEFAULT_RTOL_FLOAT32 = 1e-5


def minimise(
    problem: Callable[..., Array],
    x0: Params,
    tx: optax.GradientTransformation | None = None,
    rtol: float | None = None,
    max_steps: int = 1000,
    throw: bool = True,
    progress: bool = False,
    *,
    atol: float = 0.0,
    step_tol: float = 0.0,
    checkpoint: str | os.PathLike | None = None,
    theory: bool = False,
    args: tuple = (),
) -> Solution:
    r"""Minimise a loss from x0, with any optax transform, until ‖∇L‖ ≤ max(atol, rtol ‖∇L(x0)‖).

    Use it where the number of steps is not known; :func:`softntk.solvers.train` runs a fixed
    number. At each step the transform gets ``value``, ``grad`` and ``value_fn``. A stationary point
    where it reports negative curvature (:class:`softntk.solvers.StepDiagnostics`) is not accepted;
    where x0 is stationary already (a saddle) the largest gradient of the run replaces ‖∇L(x0)‖.

    The result is differentiable in the arrays of the problem (A, b, weights; what a function closes
    over), by the implicit function theorem: in forward and reverse mode, under jit and vmap, and
    more than once. Under jit, vmap, or inside of another transformation, the run is one loop.
    Nothing is raised or shown there: test ``result`` instead. Histories then have length max_steps
    (+ 1) and repeat their last entry.

    Args:
        problem: a problem of :mod:`softntk.regression`, or any function (params, *args) → scalar.
            Gradients in closed form (``problem.value_and_gradient``, ``.gradient``) are used if it
            has them.
        x0: the start: an array, or a pytree of arrays. Leaves that are no floating-point arrays
            (functions of an equinox module, counters, keys) are constants, and so are the running
            averages of flax: the problem is given them, the transform is not.
        tx: the transform. None chooses approximate Newton for a problem with a ``hessian``, and
            L-BFGS with a line search for any other function. Newton's method is exact or, where
            that costs more, uses conjugate gradients preconditioned by a sample of rows; its
            damping measures steps by Gauss–Newton.
        rtol: relative tolerance of ‖∇L‖; None for 1e-9, or 1e-5 in float32.
        max_steps: largest number of steps; 0 only evaluates.
        throw: raise if it does not succeed, instead of returning the best point with a result code.
        progress: show step, loss, gradient, step length, damping and rate (rich).
        atol: absolute tolerance of ‖∇L‖.
        step_tol: also end with success after a step no longer than step_tol ‖x‖; zero for never.
        checkpoint: a file. If it exists the run continues from it, and ends with the same bits as
            if it had never stopped; it is written after each chunk of about a third of a second, by
            an atomic rename. A file of another start or first step is refused.
        theory: record the path, and compare it with the contraction that the papers promise. Only
            for problems of :func:`softntk.regression.problem`.
        args: further arguments of the problem, any pytrees. Their numbers and arrays may change
            without anything being compiled again, and the result is differentiable in them.

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: the minimiser, or the best point so far.
        ``stats``: "steps"; "loss" and "gradient_norm", [steps + 1]; "step_norm", "damping" and
        "distortion" (the measured ε), [steps]; with ``theory`` also "path", [steps + 1, d], and
        "contraction", see :func:`softntk.solvers.contraction`. ``state``: of the transform. Ctrl-C
        returns the best point with ``Result.INTERRUPTED``.

    Raises:
        ValueError: x0 without floating-point arrays, a tx that is no optax transform, args that are
            no tuple, a loss that is no scalar, tolerances negative or rtol below what the precision
            gives, max_steps negative; a checkpoint that is damaged or belongs to another run;
            progress, checkpoint or theory under a transformation.
        NumericalError: under ``throw``, when it did not succeed; the message is the advice.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> sol = minimise(lambda x: jnp.sum((x - 1) ** 4 + x**2), jnp.zeros(2))
        >>> [round(float(v), 3) for v in sol.value]
        [0.41, 0.41]
        >>> def minimiser(b):
        ...     return minimise(lambda x: jnp.sum((x - b) ** 2), jnp.zeros(2), optax.sgd(0.5)).value
        >>> bool((jax.jacobian(minimiser)(jnp.ones(2)) == jnp.eye(2)).all())
        True

    Source: MATHEMATICS.md#approximate-newton; implicit differentiation: Griewank and Walther
    (2008), Evaluating Derivatives, chapter 15.
    """
    # 1. Check the arguments.
    _check_types(problem, tx, args, checkpoint)
    throw = check_flag("throw", throw)
    progress = check_flag("progress", progress)
    theory = check_flag("theory", theory)
    max_steps = check_integer("max_steps", max_steps, at_least=0)
    if theory and not isinstance(problem, Problem):
        raise ValueError(
            "theory=True needs a problem of softntk.regression.problem, "
            f"got {type(problem).__name__}."
        )
    problem, x0, constants = _bind_arguments(problem, x0, args)
    dtype = _check_loss(problem, x0)
    options = Options(*_check_tolerances(rtol, atol, step_tol, dtype), theory)

    # 2. A problem and a start without derivatives for the run; `problem` has them, for step 4.
    x0 = lax.stop_gradient(x0)
    problem = _with_closure_arrays(problem, x0)
    fixed_problem = jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, problem
    )

    # 3. Run, as one loop if traced, else in chunks.
    if _is_traced((fixed_problem, x0)):
        _check_untraced(progress, checkpoint, theory)
        solution = device_loop.run_as_one_loop(fixed_problem, tx, options, x0, max_steps)
    else:
        solution = _run_on_host(fixed_problem, tx, options, x0, max_steps, progress, checkpoint)
        if throw and int(solution.result) != Result.INTERRUPTED:
            solution.check()

    # 4. Attach the derivative in the arrays of the problem, and add the constant leaves.
    value = solution.value
    if _is_traced((problem, x0)):
        value = implicit_diff.attach_derivative(problem, value)
    return dataclasses.replace(solution, value=_with_constants(value, constants))


def _bind_arguments(problem: Loss, x0: Params, args: tuple) -> tuple[Loss, Params, Params]:
    """Return the loss as a function of floating-point leaves, these leaves, and the other ones."""
    if isinstance(problem, Problem):
        x0 = as_floating("x0", x0, problem.shape[1:], finite=False)
    x0, constants = split_leaves("x0", x0)
    if args or jax.tree.leaves(constants):
        problem = BoundLoss(problem, jax.tree.map(as_argument, args), constants)
    return problem, x0, constants


def _check_untraced(progress: bool, checkpoint: str | os.PathLike | None, theory: bool) -> None:
    """Raise ValueError for options that need the numbers of a run, where it is traced."""
    if progress or checkpoint is not None or theory:
        raise ValueError(
            "progress, checkpoint and theory need to know the numbers: "
            "they do not work under jit or vmap."
        )


def _with_closure_arrays(problem: Loss, x0: Params) -> Loss:
    """Return the loss as a pytree of the traced arrays that it closes over, if there are some."""
    # Traced arrays inside of a closure are no leaves of it: the derivative by them would be lost.
    may_close_over = isinstance(problem, BoundLoss) or not has_arrays(problem)
    if may_close_over and _closes_over_tracers(problem, x0):
        return eqx.filter_closure_convert(problem, x0)
    return problem


def _run_on_host(
    problem: Loss,
    tx: optax.GradientTransformation | None,
    options: Options,
    x0: Params,
    max_steps: int,
    progress: bool,
    checkpoint: str | os.PathLike | None,
) -> Solution:
    """Return the solution of a problem whose numbers are known, with the unit that it needs."""
    # The learning rate of a user's transform is in the user's unit: only the default transform may
    # work in another.
    unit = units.problem_unit(problem) if tx is None else 1.0
    solution = run_in_chunks(
        *units.to_unit(unit, problem, tx, options, x0), max_steps, progress, checkpoint
    )
    solution = units.from_unit(unit, solution)
    if isinstance(problem, Problem) and options.path:
        return with_contraction(problem, solution)
    return solution


def _with_constants(value: Params, constants: Params) -> Params:
    """Return the minimiser together with the leaves that were constants."""
    return eqx.combine(value, constants) if jax.tree.leaves(constants) else value


def _check_types(problem: Any, tx: Any, args: Any, checkpoint: Any) -> None:
    """Raise ValueError for arguments of another kind."""
    if not callable(problem) or isinstance(problem, type):
        raise ValueError(f"problem must be a function of the params, got {type(problem).__name__}.")
    if tx is not None:
        check_transform("tx", tx)
    if not isinstance(args, tuple):
        raise ValueError(
            f"args must be a tuple of further arguments, got {type(args).__name__}. "
            "Write args=(value,)."
        )
    if args and hasattr(problem, "hessian"):
        raise ValueError("args are for plain functions: a problem takes params only. Use args=().")
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint must be a path or None, got {type(checkpoint).__name__}.")


def _check_loss(problem: Loss, x0: Params) -> jnp.dtype:
    """Return the least precise dtype of x0, after checking that the loss is a scalar."""
    # A lambda, because an error of JAX prints the callable, which would be a problem with all of
    # its numbers.
    check_scalar("problem", jax.eval_shape(lambda x: problem(x), x0))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x0)]
    return min(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def _check_tolerances(
    rtol: Any, atol: Any, step_tol: Any, dtype: jnp.dtype
) -> tuple[float, float, float]:
    """Return (rtol, atol, step_tol) as checked floats; they must not be traced."""
    for name, value in {"rtol": rtol, "atol": atol, "step_tol": step_tol}.items():
        if not is_concrete(value):
            raise ValueError(f"{name} must be known when minimise is traced, got a traced number.")
    atol = check_number("atol", atol, at_least=0)
    step_tol = check_number("step_tol", step_tol, at_least=0)
    if rtol is None:
        default_rtol = DEFAULT_RTOL_FLOAT64 if dtype == np.float64 else DEFAULT_RTOL_FLOAT32
        return default_rtol, atol, step_tol
    rtol = check_number("rtol", rtol)
    min_rtol = float(jnp.finfo(dtype).eps)
    # A relative tolerance of zero is allowed where another one can end the run.
    has_other_tolerance = rtol == 0 and (atol > 0 or step_tol > 0)
    if not has_other_tolerance and not min_rtol <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {min_rtol:.2g}, what {dtype} can give, and 1, got {rtol!r}; "
            "or be 0 with a positive atol or step_tol."
        )
    return rtol, atol, step_tol


def _is_traced(tree: PyTree) -> bool:
    """Return whether any leaf of a pytree is traced."""
    return not all(map(is_concrete, jax.tree.leaves(tree)))


def _closes_over_tracers(problem: Loss, x0: Params) -> bool:
    """Return whether a function closes over traced arrays."""
    return not all(map(is_concrete, jax.make_jaxpr(problem)(x0).consts))
