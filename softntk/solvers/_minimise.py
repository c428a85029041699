r"""``minimise``: one driver for every optax transform.

A run is a ``lax.while_loop`` on the device, a chunk of steps at a time; between chunks the host looks at the clock, shows how
it goes, writes a checkpoint and listens to Ctrl-C. Chunks change nothing: the steps are those of one loop, to the last bit.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (500, 4))
    >>> p = sn.regression.resnet_softmax(A, jax.nn.softmax(A @ jnp.ones(4)), weights=0.01)
    >>> sol = sn.solvers.minimise(p, jnp.zeros(4))
    >>> bool(sol.stats["gradient_norm"][-1] <= 1e-5 * sol.stats["gradient_norm"][0])
    True

Source: arXiv 2309.13482 (the iteration), Eisenstat and Walker (1996) and the sources of :mod:`softntk.solvers.newton`.
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

from softntk._validation import check_floating, is_concrete
from softntk.regression.problem import Problem
from softntk.solution import Result, Solution
from softntk.solvers import _implicit, _run
from softntk.solvers._contraction import with_contraction
from softntk.solvers._programs import has_arrays

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
) -> Solution:
    r"""Minimise a loss from x0, with any optax transform, until ‖∇L‖ ≤ max(atol, rtol ‖∇L(x0)‖).

    At each step the transform is given ``value``, ``grad`` and ``value_fn``. A stationary point where the transform reports
    negative curvature is not accepted; where the loss at x0 is stationary already (a saddle) the largest gradient that is met
    takes the place of ‖∇L(x0)‖.

    The result is differentiable in the arrays of the problem (A, b, weights; what a function closes over), by the implicit
    function theorem: forward and reverse, under jit and vmap, and again. Under jit, vmap, or inside of another
    transformation, the run is one loop: nothing is raised or shown, look at ``result``; histories then have length
    max_steps (+ 1) and repeat their last entry.

    Args:
        problem: a problem of :mod:`softntk.regression`, or any function params → scalar. Gradients in closed form
            (``problem.value_and_gradient``, ``.gradient``) are used where there are some.
        x0: the start: an array, or a pytree of arrays.
        tx: the transform. None: for a problem with a ``hessian`` approximate Newton, exact or, where that is dearer, by
            conjugate gradients that a sample of rows preconditions, in a damping that measures steps by Gauss–Newton; L-BFGS
            with a line search for any other function.
        rtol: 1e-9, or 1e-5 in float32, if None.
        max_steps: at most so many steps; 0 only evaluates.
        throw: raise if it does not succeed, instead of returning the best point with a result code.
        progress: show step, loss, gradient, step length, damping and rate (rich).
        atol: of ‖∇L‖.
        step_tol: also accept where a step is no longer than step_tol ‖x‖; zero for never.
        checkpoint: a file. If it is there the run goes on from it, and ends with the same bits as if it had never stopped; it
            is written after each chunk of about a third of a second, by an atomic rename. It knows its run by the start and by
            the first step.
        theory: keep the path, and compare it with the contraction that the papers promise; for problems of
            :func:`softntk.regression.problem`.

    Returns:
        A :class:`~softntk.solution.Solution`. ``value``: the minimiser, or the best point so far. ``stats``: "steps"; "loss"
        and "gradient_norm", [steps + 1]; "step_norm", "damping" and "distortion" (the measured ε), [steps]; with ``theory``
        also "path", [steps + 1, d], and "contraction", see :func:`softntk.solvers.contraction`. ``state``: of the transform.
        Ctrl-C returns the best point with ``Result.INTERRUPTED``.

    Raises:
        ValueError: x0 not of floating-point arrays, a loss that is no scalar, tolerances negative or rtol below what the
            precision gives, max_steps negative; a checkpoint that is damaged or belongs to another run; progress, checkpoint or
            theory under a transformation.
        NumericalError: under ``throw``, when it did not succeed; the message is the advice.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> [round(float(v), 3) for v in minimise(lambda x: jnp.sum((x - 1) ** 4 + x**2), jnp.zeros(2)).value]
        [0.41, 0.41]
        >>> move = lambda b: minimise(lambda x: jnp.sum((x - b) ** 2), jnp.zeros(2), optax.sgd(0.5)).value
        >>> bool((jax.jacobian(move)(jnp.ones(2)) == jnp.eye(2)).all())
        True

    Source: MATH.md section 4; implicit differentiation: Griewank and Walther (2008), Evaluating Derivatives, chapter 15.
    """
    dtype = _check(problem, x0)
    options = _run.Options(_check_tolerances(rtol, atol, step_tol, dtype), float(atol), float(step_tol), theory)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int | np.integer) or max_steps < 0:
        raise ValueError(f"max_steps must be an integer of at least 0, got {max_steps!r}.")
    if theory and not isinstance(problem, Problem):
        raise ValueError(f"theory=True needs a problem of softntk.regression.problem, got {type(problem).__name__}.")
    x0 = lax.stop_gradient(jax.tree.map(jnp.asarray, x0))
    if not has_arrays(problem) and _closes_over_tracers(problem, x0):
        problem = eqx.filter_closure_convert(problem, x0)  # a pytree of what it may be differentiated by
    fixed = jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, problem)
    if _is_traced((fixed, x0)):
        if progress or checkpoint is not None or theory:
            raise ValueError("progress, checkpoint and theory need to know the numbers: they do not work under jit or vmap.")
        solution = _run.as_one_loop(fixed, tx, options, x0, int(max_steps))
        return dataclasses.replace(solution, value=_implicit.attach(problem, solution.value))
    solution = _run.in_chunks(fixed, tx, options, x0, int(max_steps), progress, checkpoint)
    if isinstance(fixed, Problem) and theory:
        solution = with_contraction(fixed, solution)
    if throw and int(solution.result) != Result.INTERRUPTED:
        solution.check()
    return dataclasses.replace(solution, value=_implicit.attach(problem, solution.value)) if _is_traced(problem) else solution


def _check(problem: Any, x0: Params) -> jnp.dtype:
    leaves = jax.tree.leaves(x0)
    if not leaves:
        raise ValueError("x0 must hold at least one array, got an empty pytree.")
    for leaf in leaves:
        check_floating("x0", leaf)
    if not callable(problem):
        raise ValueError(f"problem must be a function of the params, got {type(problem).__name__}.")
    shape = getattr(jax.eval_shape(problem, x0), "shape", None)
    if shape != ():
        raise ValueError(f"problem must return a scalar, the loss; got shape {shape}.")
    return jnp.result_type(*leaves)


def _check_tolerances(rtol: float | None, atol: float, step_tol: float, dtype: jnp.dtype) -> float:
    for name, value in (("atol", atol), ("step_tol", step_tol)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
    if rtol is None:
        return 1e-9 if dtype == np.float64 else 1e-5
    least = float(jnp.finfo(dtype).eps)
    if not (rtol == 0 and (atol > 0 or step_tol > 0)) and not least <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {least:.2g}, what {dtype} can give, and 1, got {rtol!r}; "
            "or be 0 with a positive atol or step_tol."
        )
    return float(rtol)


def _is_traced(tree: Any) -> bool:
    return not all(map(is_concrete, jax.tree.leaves(tree)))


def _closes_over_tracers(problem: Any, x0: Params) -> bool:
    return not all(map(is_concrete, jax.make_jaxpr(problem)(x0).consts))
