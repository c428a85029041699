"""Choosing hyperparameters by their evidence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from softntk._core.validation import as_floating, check_callable, check_flag, is_concrete
from softntk.solution import NumericalError, Result, Solution
from softntk.solvers._minimise.driver import minimise

# Relative tolerance of the gradient, in the logarithms: far below what the data can tell.
DEFAULT_RTOL = {"float32": 1e-3, "float64": 1e-6}
# A factor by which no hyperparameter is moved unless the evidence has no maximum.
MAX_FACTOR = 1e8


def fit_hyperparameters(
    log_evidence: Callable[..., Array],
    start: PyTree,
    *,
    args: tuple = (),
    rtol: float | None = None,
    max_steps: int = 100,
    throw: bool = True,
    progress: bool = False,
) -> Solution:
    r"""Return the positive hyperparameters of largest log evidence, found from a start.

    Use it to choose ridge, noise, σ or the scale of a kernel without held-out data, by
    :func:`softntk.ntk.gp_log_evidence`, ``gp_classification(…).log_evidence`` or
    ``laplace(…).log_evidence``. It is :func:`softntk.solvers.minimise` (L-BFGS) on
    −log p(Y | e^s) in the logarithms s of the hyperparameters. The maximum is a local one.

    Args:
        log_evidence: (hyperparameters, *args) → log p(Y), a scalar. Where it is not finite (a
            matrix that is not definite in this precision) it counts as −inf.
        start: positive numbers: a scalar or a pytree, e.g. ``{"ridge": 1.0, "noise": 0.1}``.
        args: further arguments, any pytrees. With a function that is defined once, other data of
            the same shapes compile nothing.
        rtol: relative tolerance of the gradient by s; None for 1e-6, or 1e-3 in float32.
        max_steps: largest number of steps.
        throw: raise if it does not succeed, instead of returning the best point.
        progress: show the progress (rich).

    Returns:
        A :class:`~softntk.solution.Solution`: ``value`` has the structure of start,
        ``stats["log_evidence"]`` is the evidence reached, the rest that of ``minimise``.

    Raises:
        ValueError: a start that is not positive and finite, an evidence that is no scalar.
        NumericalError: under ``throw``: no success; or a hyperparameter moved by more than 1e8
            times, where the evidence has no maximum (``Result.MINIMUM_AT_INFINITY``).

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> x = jax.random.normal(jax.random.key(0), (30, 2))
        >>> y = x[:, :1] + 0.1 * jax.random.normal(jax.random.key(1), (30, 1))
        >>> gram = net.kernel_fn(x, None, "nngp")
        >>> def log_evidence(h, gram, y):
        ...     return sn.ntk.gp_log_evidence(h["scale"] * gram, y, noise=h["noise"])
        >>> start = {"scale": 1.0, "noise": 1.0}
        >>> sol = sn.ntk.fit_hyperparameters(log_evidence, start, args=(gram, y))
        >>> 0.005 < float(sol.value["noise"]) < 0.02
        True

    Source: MacKay (1992), Neural Computation 4, 415–447 (the evidence framework);
    MATHEMATICS.md#laplace.
    """
    # 1. Check the arguments, and take logarithms.
    check_callable("log_evidence", log_evidence)
    throw = check_flag("throw", throw)
    logs = jax.tree.map(_as_log, start)
    if not jax.tree.leaves(logs):
        raise ValueError("start must hold positive numbers, got none.")
    if rtol is None:
        rtol = max(DEFAULT_RTOL[str(leaf.dtype)] for leaf in jax.tree.leaves(logs))

    # 2. Minimise −log p.
    solution = minimise(
        _Objective(log_evidence),
        logs,
        rtol=rtol,
        max_steps=max_steps,
        throw=False,
        progress=progress,
        args=args,
    )

    # 3. A maximum that was sought further away than any scale of the data is none.
    moves = [
        jnp.max(jnp.abs(end - begin))
        for end, begin in zip(jax.tree.leaves(solution.value), jax.tree.leaves(logs), strict=True)
    ]
    is_far = jnp.max(jnp.stack(moves)) > np.log(MAX_FACTOR)
    result = jnp.where(is_far, jnp.int32(Result.MINIMUM_AT_INFINITY), solution.result)
    losses = solution.stats["loss"]
    # Known losses have a length that differs from run to run: no program of JAX for each.
    lowest = np.min(np.asarray(losses)) if is_concrete(losses) else jnp.min(losses)
    solution = Solution(
        value=jax.tree.map(jnp.exp, solution.value),
        result=result,
        stats={**solution.stats, "log_evidence": -jnp.asarray(lowest)},
        state=solution.state,
    )
    if throw and is_concrete(result):
        if int(result) == Result.MINIMUM_AT_INFINITY:
            raise NumericalError(
                f"{Result.MINIMUM_AT_INFINITY.name}: the evidence still rises where a "
                f"hyperparameter is {MAX_FACTOR:.0e} times its start, {solution.value}. Fix it, or "
                "give log_evidence a prior of it."
            )
        return solution.check()
    return solution


class _Objective:
    """−log p in the logarithms; two of one function are equal, so that programs are found again."""

    def __init__(self, log_evidence: Callable[..., Array]) -> None:
        self.log_evidence = log_evidence

    def __call__(self, logs: PyTree, *args: Any) -> Float[Array, ""]:
        loss = -self.log_evidence(jax.tree.map(jnp.exp, logs), *args)
        return jnp.where(jnp.isfinite(loss), loss, jnp.inf)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objective) and other.log_evidence == self.log_evidence

    def __hash__(self) -> int:
        return hash(self.log_evidence)


def _as_log(value: object) -> Float[Array, "..."]:
    """Return the logarithm of a positive hyperparameter."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    number = as_floating("start", value)
    if is_concrete(number) and not np.all(np.asarray(number) > 0):
        raise ValueError(f"start must hold positive numbers, got {value!r}.")
    return jnp.log(number)
