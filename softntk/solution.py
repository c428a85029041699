"""What iterative routines return: a value, a code that says how they ended, a state to resume."""

import enum
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from softntk._core.records import record
from softntk._core.validation import is_concrete


class Result(enum.IntEnum):
    """Code that says how an iterative routine ended, or why a point is outside of a domain.

    ``Result(code).advice`` says what happened and what to do about it.
    """

    # Saved results hold the number, so a code keeps its number.
    SUCCESSFUL = 0
    DIVERGED = 1
    NONFINITE_INPUT = 2
    MAX_STEPS = 3
    STAGNATED = 4
    NONFINITE_PRODUCT = 5
    INTERRUPTED = 6
    NOT_DEFINITE = 7
    # Codes of regressions.
    NORMALISER_LOST = 8
    SIGN_CHANGED = 9
    OVERFLOW = 10
    NEGATIVE_WEIGHTS = 11
    # Codes of solvers and samplers.
    STEP_CHANGED = 12
    NO_STEP = 13
    NONFINITE_SCORE = 14
    PLATEAU = 15
    FOREIGN_LOSS = 16
    MINIMUM_AT_INFINITY = 17

    @property
    def advice(self) -> str:
        """The text: what happened and what to do about it."""
        return _ADVICE_TEXTS[self]


# What happened and what to do about it, by code.
_ADVICE_TEXTS = {
    Result.SUCCESSFUL: "The routine did what it was asked for.",
    Result.DIVERGED: (
        "The loss became NaN or infinite, or many times what it was; the value returned is the "
        "last one before that. Use a smaller learning rate: gradient descent on a least-squares "
        "loss needs less than 2/λ_max of the kernel (ntk.extreme_eigenvalues)."
    ),
    Result.NONFINITE_INPUT: (
        "The loss is NaN or infinite at the starting point. Look for non-finite data or parameters."
    ),
    Result.MAX_STEPS: (
        "The steps ran out before the tolerance was reached. Allow more max_steps or a larger "
        "tolerance."
    ),
    Result.STAGNATED: (
        "The true residual, or the gradient, no longer falls: the precision is exhausted. Use "
        "float64 or a larger rtol."
    ),
    Result.NONFINITE_PRODUCT: (
        "A product with the operator is NaN or infinite: points outside the network's domain, or "
        "an overflow."
    ),
    Result.INTERRUPTED: "Interrupted; the value is the best so far.",
    Result.NOT_DEFINITE: (
        "The kernel plus ridge is not positive definite in this precision: equal or nearly equal "
        "points, or a ridge below rounding (2√n ε λ_max). Use a larger ridge, or float64."
    ),
    Result.NORMALISER_LOST: (
        "The normaliser α = Σu vanishes, or is lost in the rounding of Σ|u|: u/α is not defined "
        "here. Start elsewhere, take a shorter step, or use float64; u of one sign (exp, cosh) has "
        "no such points."
    ),
    Result.SIGN_CHANGED: (
        "The normaliser α = Σu has another sign than at the point before: u/α is infinite in "
        "between. Take a shorter step."
    ),
    Result.NEGATIVE_WEIGHTS: (
        "A weight w is negative: the loss is defined for w ≥ 0 (it depends on w² only). Use |w|."
    ),
    Result.STEP_CHANGED: (
        "A damped step (trust region, Levenberg–Marquardt) was changed by what is chained behind "
        "it, a line search perhaps. Put nothing behind it but optax.scale(-1), or use damping=None "
        "with the line search."
    ),
    Result.NO_STEP: (
        "No step made the loss fall. Is the gradient that of the loss, and the loss smooth? Near a "
        "minimum: use float64, or a larger tolerance."
    ),
    Result.PLATEAU: (
        "The gradient vanished, but so did the curvature: a plateau (a saturated softmax, dead "
        "units), which is no minimum. Start elsewhere, or shorten the first steps: "
        'approx_newton(…, damping="trust_region").'
    ),
    Result.MINIMUM_AT_INFINITY: (
        "The loss falls forever along a direction, so that no minimiser exists: the classes are "
        "separable, or one of them is absent beside an intercept. Use weights > 0 and leave absent "
        "classes out, or intercept=False."
    ),
    Result.FOREIGN_LOSS: (
        "natural_gradient minimises its own loss, or a multiple of it, and the gradient that it "
        "was given is that of another one. Give it the loss that is minimised: "
        'loss="cross_entropy" or a function of one point, weight_decay= for a penalty, batch= for '
        "a minibatch. For losses that are no sum over points use approx_newton or optax.lbfgs."
    ),
    Result.NONFINITE_SCORE: (
        "A score is NaN or infinite on the way from noise to data, or the way leads out of range. "
        "Look at score_fn(t, x) for t from min_time to the horizon; where it is finite: use more "
        "steps or a larger min_time."
    ),
    Result.OVERFLOW: (
        "The loss or its curvature exceeds the largest number of this precision. Take a shorter "
        "step, scale the rows of A down, use float64, or the normalized form, which does not "
        "overflow."
    ),
}


# Quantities that only one routine records, by which the routine is recognised.
_ROUTINE_BY_STAT = {"gradient_norm": "minimise", "residual": "ntk.solve"}
# Sentences that a routine adds to the advice of a code.
_ADVICE_OF_ROUTINE = {
    (Result.MAX_STEPS, "minimise"): (
        "In minimise: max_steps=, rtol= (relative to the first gradient) or atol=; of a problem "
        "with a Hessian also the default transform, tx=None."
    ),
    (Result.MAX_STEPS, "ntk.solve"): (
        "In ntk.solve: max_steps=, rtol=, or a larger rank= or ridge=."
    ),
    (Result.STAGNATED, "minimise"): "In minimise: rtol= or atol=.",
    (Result.STAGNATED, "ntk.solve"): "In ntk.solve also refine=True, or a larger ridge=.",
}


# Leaves of a value that ``repr`` describes.
_MAX_DESCRIBED_LEAVES = 3


class NumericalError(RuntimeError):
    """Error of a routine that did not succeed; its message is the advice of the result.

    :meth:`Solution.check` and routines that are called with ``throw=True`` raise it.
    """


@record
class Solution:
    """The outcome of an iterative routine, a pytree.

    Attributes:
        value: the solution, or the best approximation so far.
        result: an int32 scalar, a :class:`Result` code.
        stats: quantities recorded during the iteration, by name.
        state: the state from which the routine can be resumed.
    """

    value: Any
    result: Int[Array, ""]
    stats: dict[str, Any]
    state: Any

    @property
    def advice(self) -> str:
        """The meaning of the result and what to do; for many solutions, each result with its count.

        Raises:
            ValueError: under jit or vmap, where the result is not known.
        """
        # One solution has one outcome; a batch, under vmap, one for each code that occurs.
        outcomes = list(self._outcomes())
        if np.ndim(self.result) == 0:
            return outcomes[0][2]
        total = np.size(self.result)
        return " ".join(f"{count} of {total} {code.name}: {text}" for code, count, text in outcomes)

    def check(self) -> "Solution":
        """Return the solution itself if it is successful; of many solutions, if all are.

        Use it to stop a program at the first routine that failed.

        Raises:
            NumericalError: a result is not SUCCESSFUL; the message says what happened and what to
                do.
            ValueError: under jit or vmap, where the result is not known.
        """
        outcomes = list(self._outcomes())
        if all(code is Result.SUCCESSFUL for code, _, _ in outcomes):
            return self
        is_single = np.ndim(self.result) == 0
        raise NumericalError(f"{outcomes[0][0].name}: {self.advice}" if is_single else self.advice)

    def _outcomes(self) -> Iterator[tuple[Result, int, str]]:
        """Yield each code that occurs, its count, and its advice for the routine."""
        if not is_concrete(self.result):
            raise ValueError(
                "advice and check() need a result that is known: under jit or vmap look at "
                "solution.result, and ask for advice outside."
            )
        # JAX replaces the fields of a pytree, so that stats need not be a dict.
        stats = self.stats if isinstance(self.stats, dict) else {}
        recognised_routines = [
            routine for name, routine in _ROUTINE_BY_STAT.items() if name in stats
        ]
        occurring_codes, code_counts = np.unique(np.asarray(self.result), return_counts=True)
        for number, count in zip(occurring_codes, code_counts, strict=True):
            code = Result(int(number))
            added_advice = [
                _ADVICE_OF_ROUTINE[code, routine]
                for routine in recognised_routines
                if (code, routine) in _ADVICE_OF_ROUTINE
            ]
            yield code, int(count), " ".join([code.advice, *added_advice])

    def __repr__(self) -> str:
        """Return the result, the shapes of the value and the names of the stats.

        Nothing is printed in full: values may be large. Any field may be replaced by JAX, e.g. by
        a tracer or a sharding, so its type is checked first.
        """
        # 1. Shapes of the first leaves of the value.
        leaves = jax.tree.leaves(self.value)
        leaf_shapes = [_describe(leaf) for leaf in leaves[:_MAX_DESCRIBED_LEAVES]]
        if len(leaves) > _MAX_DESCRIBED_LEAVES:
            leaf_shapes.append("…")
        # 2. The number of steps, if it is one number.
        steps = self.stats.get("steps") if isinstance(self.stats, dict) else None
        is_numeric = isinstance(steps, np.ndarray | np.number | jax.Array | int)
        is_number = is_numeric and is_concrete(steps) and np.ndim(steps) == 0
        step_text = f", steps={int(np.asarray(steps))}" if is_number else ""
        # 3. Names of the other fields.
        stats = list(self.stats) if isinstance(self.stats, dict) else type(self.stats).__name__
        text = f"result={self._result_names()}, value={', '.join(leaf_shapes)}{step_text}"
        return f"Solution({text}, stats={stats}, state={type(self.state).__name__})"

    def _result_names(self) -> str:
        """Return the name of the result, or the names that occur."""
        # Under a transformation the result may be a sharding, a tracer or None.
        if not isinstance(self.result, np.ndarray | np.number | jax.Array | int):
            return repr(self.result)
        if not is_concrete(self.result):
            return "traced"
        occurring_codes = np.unique(np.asarray(self.result))
        return "/".join(Result(int(code)).name for code in occurring_codes)


def _describe(leaf: Any) -> str:
    """Return dtype and shape of an array, or the type of another leaf."""
    shape = getattr(leaf, "shape", None)
    return type(leaf).__name__ if shape is None else f"{leaf.dtype}{list(shape)}"
