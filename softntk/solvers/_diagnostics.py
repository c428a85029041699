"""What second-order transforms report to :func:`softntk.solvers.minimise`."""

import enum
from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from softntk.solution import Result


class Step(enum.IntEnum):
    """Kind of the step that an update was: ``state.diagnostics.kind`` of second-order transforms.

    Attributes:
        NONE: no step yet, or none because the input was not finite.
        NEWTON: the minimiser of a convex quadratic model.
        TRUST_REGION: the minimiser of the model in a trust region.
        LEVENBERG_MARQUARDT: the minimiser of a model with μM added to its curvature.
        NEGATIVE_CURVATURE: a damped step on a model that is not convex.
        GAUSS_NEWTON: −M⁻¹g with the Gauss–Newton matrix M.
        ABSOLUTE: −|H|⁻¹g, for an H that is not positive definite.
        REJECTED: no step decreased the loss; :func:`softntk.solvers.minimise` ends the run.
        CONVERGED: no step is needed, the residual is zero up to rounding; the run ends in success.
        POSTPONED: no step, since it needs a part of the program that was left out to compile less;
            ``minimise`` takes the step with the complete program. No result reports it.
    """

    NONE = 0
    NEWTON = 1
    TRUST_REGION = 2
    LEVENBERG_MARQUARDT = 3
    NEGATIVE_CURVATURE = 4
    GAUSS_NEWTON = 5
    ABSOLUTE = 6
    REJECTED = 7
    CONVERGED = 8
    POSTPONED = 9


class StepDiagnostics(NamedTuple):
    r"""Diagnostics that a second-order transform reports to ``minimise`` after each update.

    Use it to write your own transform: put it into a field of the transform's state. ``minimise``
    finds the first one in a chained or injected state by its type, and then applies the rules for
    methods with curvature. A stationary point with negative curvature, or on a plateau, is not
    accepted. A rejected step ends the run, and so do twenty steps without progress, instead of two
    hundred. Damping and model error appear in ``stats``. A state without diagnostics counts as that
    of a first-order method.

    Attributes:
        kind: a :class:`softntk.solvers.Step`.
        result: a :class:`softntk.solution.Result`; any but SUCCESSFUL ends the run.
        damping: trust-region radius, μ, or ridge; zero without damping.
        negative_curvature: whether the last model had a negative eigenvalue, beyond rounding.
        model_error: ε of a sampled model, or the relative residual of an inexact solve; zero if
            exact.

    Example:
        A Levenberg step, (H + μI)s = −g with μ raised until the loss falls. It starts near a saddle
        at the origin, where the gradient is below the tolerance, and goes on because the curvature
        is negative there.

        >>> from typing import NamedTuple
        >>> import jax, jax.numpy as jnp, optax, softntk as sn
        >>> class LevenbergState(NamedTuple):
        ...     diagnostics: sn.solvers.StepDiagnostics
        >>> def report(kind, damping, negative=False):
        ...     kind, result = jnp.int32(kind), jnp.int32(sn.solution.Result.SUCCESSFUL)
        ...     error = jnp.zeros_like(damping)
        ...     return LevenbergState(
        ...         sn.solvers.StepDiagnostics(kind, result, damping, jnp.bool(negative), error)
        ...     )
        >>> def levenberg(hessian, max_damping=1e8):
        ...     def init(params):
        ...         return report(sn.solvers.Step.NONE, jnp.asarray(1e-3, params.dtype))
        ...     def update(updates, state, params=None, *, value=None, value_fn=None, **extra_args):
        ...         curvatures, basis = jnp.linalg.eigh(hessian(params))
        ...         convex_shift = jnp.maximum(-curvatures[0], 0)
        ...         def step_at(mu):
        ...             return -basis @ (basis.T @ updates / (curvatures + convex_shift + mu))
        ...         def is_rejected(mu):
        ...             return ~(value_fn(params + step_at(mu)) <= value) & (mu < max_damping)
        ...         mu = state.diagnostics.damping
        ...         mu = jax.lax.while_loop(is_rejected, lambda mu: 4 * mu, mu)
        ...         steps = sn.solvers.Step
        ...         kind = jnp.where(mu < max_damping, steps.LEVENBERG_MARQUARDT, steps.REJECTED)
        ...         return step_at(mu), report(kind, mu / 10, curvatures[0] < 0)
        ...     return optax.GradientTransformationExtraArgs(init, update)
        >>> loss = lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2
        >>> x0 = jnp.array([1e-3, 1.0])
        >>> sol = sn.solvers.minimise(loss, x0, levenberg(jax.hessian(loss)), rtol=1e-2)
        >>> [round(abs(float(x)), 2) for x in sol.value]
        [1.0, 0.0]
        >>> stopped = sn.solvers.minimise(loss, x0, optax.sgd(0.5), rtol=1e-2)
        >>> [round(abs(float(x)), 2) for x in stopped.value]
        [0.0, 0.0]
    """

    kind: Int[Array, ""]
    result: Int[Array, ""]
    damping: Float[Array, ""]
    negative_curvature: Bool[Array, ""]
    model_error: Float[Array, ""]


def diagnostics_property(field: str, meaning: str) -> property:
    """Return a property that reads one field of ``state.diagnostics``.

    Use it in the body of a state, which as a NamedTuple cannot inherit properties.

    Args:
        field: name of the field in :class:`StepDiagnostics`.
        meaning: the docstring, which says what the field is for this transform.
    """
    return property(attrgetter(f"diagnostics.{field}"), doc=meaning)


def initial_diagnostics(damping: float, dtype: DTypeLike) -> StepDiagnostics:
    """Return the diagnostics before the first update."""
    return StepDiagnostics(
        kind=jnp.asarray(Step.NONE, jnp.int32),
        result=jnp.asarray(Result.SUCCESSFUL, jnp.int32),
        damping=jnp.asarray(damping, dtype),
        negative_curvature=jnp.asarray(False),
        model_error=jnp.zeros((), dtype),
    )


def find_diagnostics(state: PyTree) -> StepDiagnostics | None:
    """Return the diagnostics of the first second-order transform in a chained state, or None."""
    parts = jax.tree.leaves(state, is_leaf=_is_diagnostics)
    return next(filter(_is_diagnostics, parts), None)


def _is_diagnostics(part: PyTree) -> bool:
    """Return whether a part of a state is a :class:`StepDiagnostics`."""
    return isinstance(part, StepDiagnostics)
