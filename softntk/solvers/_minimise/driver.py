r"""``minimise``: one driver for every optax transform.

A run is a ``lax.while_loop`` on the device, a chunk of steps at a time; between chunks the host
looks at the clock, shows how it goes, writes a checkpoint and listens to Ctrl-C. Chunks change
nothing: the steps are those of one loop, to the last bit.

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
from jaxtyping import Array

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
from softntk.solvers._minimise.host_chunks import in_chunks

Params = Any


def minimise(
    problem: Callable[[Params], Array],
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

    At each step the transform is given ``value``, ``grad`` and ``value_fn``. A stationary point
    where the transform reports negative curvature is not accepted; where the loss at x0 is
    stationary already (a saddle) the largest gradient that is met takes the place of ‖∇L(x0)‖.

    The result is differentiable in the arrays of the problem (A, b, weights; what a function closes
    over), by the implicit function theorem: forward and reverse, under jit and vmap, and again.
    Under jit, vmap, or inside of another transformation, the run is one loop: nothing is raised or
    shown, look at ``result``; histories then have length max_steps (+ 1) and repeat their last
    entry.

    Args:
        problem: a problem of :mod:`softntk.regression`, or any function (params, *args) → scalar.
            Gradients in closed form (``problem.value_and_gradient``, ``.gradient``) are used where
            there are some.
        x0: the start: an array, or a pytree of arrays. Leaves that are no floating-point arrays
            (functions of an equinox module, counters, keys) are constants, and so are the running
            averages of flax: the problem is given them, the transform is not.
        tx: the transform. None: for a problem with a ``hessian`` approximate Newton, exact or,
            where that is dearer, by conjugate gradients that a sample of rows preconditions, in a
            damping that measures steps by Gauss–Newton; L-BFGS with a line search for any other
            function.
        rtol: 1e-9, or 1e-5 in float32, if None.
        max_steps: at most so many steps; 0 only evaluates.
        throw: raise if it does not succeed, instead of returning the best point with a result code.
        progress: show step, loss, gradient, step length, damping and rate (rich).
        atol: of ‖∇L‖.
        step_tol: also accept where a step is no longer than step_tol ‖x‖; zero for never.
        checkpoint: a file. If it is there the run goes on from it, and ends with the same bits as
            if it had never stopped; it is written after each chunk of about a third of a second, by
            an atomic rename. It knows its run by the start and by the first step.
        theory: keep the path, and compare it with the contraction that the papers promise; for
            problems of :func:`softntk.regression._problem`.
        args: further arguments of the problem: pytrees, whose numbers and arrays may change without
            anything being compiled again, and by which the result may be differentiated.

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
        >>> [round(float(v), 3) for v in minimise(lambda x: jnp.sum((x - 1) ** 4 + x**2), jnp.zeros(2)).value]
        [0.41, 0.41]
        >>> move = lambda b: minimise(lambda x: jnp.sum((x - b) ** 2), jnp.zeros(2), optax.sgd(0.5)).value
        >>> bool((jax.jacobian(move)(jnp.ones(2)) == jnp.eye(2)).all())
        True

    Source: MATHEMATICS.md#approximate-newton; implicit differentiation: Griewank and Walther
    (2008), Evaluating Derivatives, chapter 15.
    """
    _check_kinds(problem, tx, args, checkpoint)
    throw = check_flag("throw", throw)
    progress = check_flag("progress", progress)
    theory = check_flag("theory", theory)
    max_steps = check_integer("max_steps", max_steps, at_least=0)
    if theory and not isinstance(problem, Problem):
        raise ValueError(
            f"theory=True needs a problem of softntk.regression._problem, got {type(problem).__name__}."
        )
    problem, x0, constants = _bound(problem, x0, args)
    dtype = _check_loss(problem, x0)
    options = device_loop.Options(*_check_tolerances(rtol, atol, step_tol, dtype), theory)
    x0 = lax.stop_gradient(x0)
    problem = _with_its_arrays(problem, x0)
    fixed = jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, problem
    )
    if _is_traced((fixed, x0)):
        _check_untraced(progress, checkpoint, theory)
        solution = device_loop.as_one_loop(fixed, tx, options, x0, max_steps)
        value = implicit_diff.attach(problem, solution.value)
        return dataclasses.replace(solution, value=_complete(value, constants))
    solution = _run_on_host(fixed, tx, options, x0, max_steps, progress, checkpoint)
    if throw and int(solution.result) != Result.INTERRUPTED:
        solution.check()
    value = implicit_diff.attach(problem, solution.value) if _is_traced(problem) else solution.value
    return dataclasses.replace(solution, value=_complete(value, constants))


def _bound(
    problem: Callable[[Params], Array], x0: Params, args: tuple
) -> tuple[Callable[[Params], Array], Params, Params]:
    """Return a loss of floating-point leaves alone, these leaves at the start, and the others,
    which are constants.
    """
    if isinstance(problem, Problem):
        x0 = as_floating("x0", x0, problem.shape[1:], finite=False)
    x0, constants = split_leaves("x0", x0)
    if args or jax.tree.leaves(constants):
        problem = BoundLoss(problem, jax.tree.map(as_argument, args), constants)
    return problem, x0, constants


def _check_untraced(progress: bool, checkpoint: str | os.PathLike | None, theory: bool) -> None:
    """Refuse what looks at the numbers of a run, which is traced."""
    if progress or checkpoint is not None or theory:
        raise ValueError(
            "progress, checkpoint and theory need to know the numbers: they do not work under jit or vmap."
        )


def _with_its_arrays(problem: Callable[[Params], Array], x0: Params) -> Callable[[Params], Array]:
    """Return the problem as a pytree of what it may be differentiated by, where that is not known
    already.
    """
    plain = isinstance(problem, BoundLoss) or not has_arrays(problem)
    return (
        eqx.filter_closure_convert(problem, x0)
        if plain and _closes_over_tracers(problem, x0)
        else problem
    )


def _run_on_host(
    problem: Callable[[Params], Array],
    tx: optax.GradientTransformation | None,
    options: device_loop.Options,
    x0: Params,
    max_steps: int,
    progress: bool,
    checkpoint: str | os.PathLike | None,
) -> Solution:
    """Return the solution of a problem whose numbers are known, found in a unit in which squares of
    its data are numbers.
    """
    unit = units.unit_of(problem) if tx is None else 1.0
    problem_in_unit, tx_in_unit, options_in_unit, start = units.measured(
        unit, problem, tx, options, x0
    )
    solution = in_chunks(
        problem_in_unit, tx_in_unit, options_in_unit, start, max_steps, progress, checkpoint
    )
    solution = units.measured_back(unit, solution)
    if isinstance(problem, Problem) and options.path:
        return with_contraction(problem, solution)
    return solution


def _complete(value: Params, constants: Params) -> Params:
    """Return the minimiser with the leaves that were constants."""
    return eqx.combine(value, constants) if jax.tree.leaves(constants) else value


def _check_kinds(problem: Any, tx: Any, args: Any, checkpoint: Any) -> None:
    if not callable(problem) or isinstance(problem, type):
        raise ValueError(f"problem must be a function of the params, got {type(problem).__name__}.")
    if tx is not None:
        check_transform("tx", tx)
    if not isinstance(args, tuple):
        raise ValueError(
            f"args must be a tuple of further arguments, got {type(args).__name__}. Write args=(value,)."
        )
    if args and hasattr(problem, "hessian"):
        raise ValueError("args are for plain functions: a problem takes params only. Use args=().")
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint must be a path or None, got {type(checkpoint).__name__}.")


def _check_loss(problem: Any, x0: Params) -> jnp.dtype:
    # Not the problem itself: JAX prints a callable to name it, with all of its numbers.
    check_scalar("problem", jax.eval_shape(lambda x: problem(x), x0))
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x0)]
    return min(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def _check_tolerances(
    rtol: Any, atol: Any, step_tol: Any, dtype: jnp.dtype
) -> tuple[float, float, float]:
    """Return (rtol, atol, step_tol) as numbers that are known now."""
    given = {"rtol": rtol, "atol": atol, "step_tol": step_tol}
    for name, value in given.items():
        if not is_concrete(value):
            raise ValueError(f"{name} must be known when minimise is traced, got a traced number.")
    atol = check_number("atol", atol, at_least=0)
    step_tol = check_number("step_tol", step_tol, at_least=0)
    if rtol is None:
        return 1e-9 if dtype == np.float64 else 1e-5, atol, step_tol
    rtol = check_number("rtol", rtol)
    least = float(jnp.finfo(dtype).eps)
    if not (rtol == 0 and (atol > 0 or step_tol > 0)) and not least <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {least:.2g}, what {dtype} can give, and 1, got {rtol!r}; "
            "or be 0 with a positive atol or step_tol."
        )
    return rtol, atol, step_tol


def _is_traced(tree: Any) -> bool:
    return not all(map(is_concrete, jax.tree.leaves(tree)))


def _closes_over_tracers(problem: Any, x0: Params) -> bool:
    return not all(map(is_concrete, jax.make_jaxpr(problem)(x0).consts))
