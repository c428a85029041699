"""What every iterative routine of softntk returns: a value, how it went, and enough to go on from there."""

import enum
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from softntk._records import record


class Result(enum.IntEnum):
    """How an iterative routine ended. The text is the advice: ``Result(code).advice``."""

    SUCCESSFUL = 0
    DIVERGED = 1
    NONFINITE_INPUT = 2
    MAX_STEPS = 3
    STAGNATED = 4
    NONFINITE_PRODUCT = 5
    INTERRUPTED = 6
    NOT_DEFINITE = 7
    NORMALISER_LOST = 8
    SIGN_CHANGED = 9
    OVERFLOW = 10
    NEGATIVE_WEIGHTS = 11
    STEP_CHANGED = 12
    NO_STEP = 13
    NONFINITE_SCORE = 14

    @property
    def advice(self) -> str:
        """What happened and what to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Result.SUCCESSFUL: "The routine did what it was asked for.",
    Result.DIVERGED: (
        "The loss became NaN or infinite, or many times what it was; the value returned is the last one before that. Use a "
        "smaller learning rate: gradient descent on a least-squares loss needs less than 2/λ_max of the kernel "
        "(ntk.extreme_eigenvalues)."
    ),
    Result.NONFINITE_INPUT: "The loss is NaN or infinite at the starting point. Look for non-finite data or parameters.",
    Result.MAX_STEPS: (
        "The steps ran out before the tolerance was reached. Allow more max_steps or a larger tolerance; in ntk.solve also a "
        "larger rank or ridge."
    ),
    Result.STAGNATED: (
        "The true residual, or the gradient, no longer falls: the precision is exhausted. Use float64 or a larger rtol; in "
        "ntk.solve also refine=True or a larger ridge."
    ),
    Result.NONFINITE_PRODUCT: (
        "A product with the operator is NaN or infinite: points outside the network's domain, or an overflow."
    ),
    Result.INTERRUPTED: "Interrupted; the value is the best so far.",
    Result.NOT_DEFINITE: (
        "The kernel plus ridge is not positive definite in this precision: equal or nearly equal points, or a ridge below "
        "rounding (2√n ε λ_max). Use a larger ridge, or float64."
    ),
    Result.NORMALISER_LOST: (
        "The normaliser α = Σu vanishes, or is lost in the rounding of Σ|u|: u/α is not defined here. Start elsewhere, take a "
        "shorter step, or use float64; u of one sign (exp, cosh) has no such points."
    ),
    Result.SIGN_CHANGED: (
        "The normaliser α = Σu has another sign than at the point before: u/α is infinite in between. Take a shorter step."
    ),
    Result.NEGATIVE_WEIGHTS: "A weight w is negative: the loss is defined for w ≥ 0 (it depends on w² only). Use |w|.",
    Result.STEP_CHANGED: (
        "A damped step (trust region, Levenberg–Marquardt) was changed by what is chained behind it, a line search perhaps. "
        "Put nothing behind it but optax.scale(-1), or use damping=None with the line search."
    ),
    Result.NO_STEP: (
        "No step made the loss fall. Is the gradient that of the loss, and the loss smooth? Near a minimum: use float64, or a "
        "larger tolerance."
    ),
    Result.NONFINITE_SCORE: (
        "A score is NaN or infinite on the way from noise to data, or the way leads out of range. Look at score_fn(t, x) for t "
        "from min_time to the horizon; where it is finite: use more steps or a larger min_time."
    ),
    Result.OVERFLOW: (
        "The loss or its curvature exceeds the largest number of this precision. Take a shorter step, scale the rows of A "
        "down, use float64, or the normalized form, which does not overflow."
    ),
}


class NumericalError(RuntimeError):
    """A routine that was called with ``throw=True`` did not succeed; the message is the advice of its result."""


@record
class Solution:
    """The outcome of an iterative routine, a pytree.

    Attributes:
        value: the answer, or the best one so far.
        result: an int32 scalar, a :class:`Result` code.
        stats: quantities recorded on the way, by name.
        state: whatever is needed to go on from here.
    """

    value: Any
    result: Int[Array, ""]
    stats: dict[str, Any]
    state: Any

    @property
    def advice(self) -> str:
        """The text behind ``result``; outside of jit only."""
        return Result(int(np.asarray(self.result))).advice

    def check(self) -> "Solution":
        """The solution itself if it is successful.

        Raises:
            NumericalError: it is not; the message says what happened and what to do.
        """
        code = Result(int(np.asarray(self.result)))
        if code is not Result.SUCCESSFUL:
            raise NumericalError(f"{code.name}: {code.advice}")
        return self
