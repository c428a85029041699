r"""Approximate Newton as an optax transform: exact, sampled, by products, or both.

The update approximates H⁻¹∇L, with H = ∇²L or any other curvature. It has the sign of optax'
``scale_by_…``: chain it with ``optax.scale(-1)`` and a line search, or give it a damping. A line
search or a damping needs ``value``, ``grad`` and ``value_fn``, as every optax loop passes them.

Example:
    >>> import jax, jax.numpy as jnp, optax, softntk as sn
    >>> A = jax.random.normal(jax.random.key(0), (200, 3))
    >>> p = sn.regression.softmax(A, jax.nn.softmax(A @ jnp.ones(3)), weights=0.01)
    >>> tx = sn.solvers.approx_newton(p.hessian)
    >>> x = jnp.zeros(3)
    >>> state = tx.init(x)
    >>> for _ in range(5):
    ...     value, grad = p.value_and_gradient(x)
    ...     updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=p)
    ...     x = optax.apply_updates(x, updates)
    >>> bool(jnp.linalg.norm(p.gradient(x)) < 1e-4 * jnp.linalg.norm(p.gradient(jnp.zeros(3))))
    True

Source: arXiv 2309.13482 and 2304.10411 (the approximate Newton method);
MATHEMATICS.md#approximate-newton; for the steps see ``globalisation.py``, ``dense_steps.py`` and
``krylov_steps.py`` beside this file, for the sample ``row_sampler.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from softntk._core.typing import Params, Vector
from softntk._core.validation import (
    check_choice,
    check_integer,
    check_key,
    check_number,
)
from softntk._linalg.norms import scaled_norm
from softntk.solution import Result
from softntk.solvers._diagnostics import Step, StepDiagnostics, initial_diagnostics
from softntk.solvers._gradient_descent import check_transform
from softntk.solvers._newton import row_sampler
from softntk.solvers._newton.curvature_model import (
    Curvature,
    Options,
    Preconditioner,
    as_curvature,
    make_model,
    require_rows,
)
from softntk.solvers._newton.globalisation import DAMPINGS
from softntk.solvers._newton.methods import METHODS, SampleDiagnostics
from softntk.solvers._newton.model import LossAlongStep, StepResult
from softntk.solvers._newton.preconditioner import (
    check_preconditioner,
    refresh_preconditioner,
)
from softntk.solvers._newton.state import NewtonState

CurvatureLike = Curvature | lx.AbstractLinearOperator | Float[Array | np.ndarray, "d d"]

# Largest ε of a sample that replaces the curvature, and of a sample that only preconditions it.
MAX_SAMPLE_DISTORTION = 0.5
MAX_PRECONDITIONER_DISTORTION = 4.0
# A damped step counts as changed if the params are further from its end than this fraction of its
# length, plus some roundings of the params.
STEP_CHANGE_TOLERANCE = 0.01
STEP_CHANGE_ROUNDINGS = 16
# The default line search: number of halvings, and roundings by which the loss may rise.
MAX_BACKTRACKING_STEPS = 30
LINESEARCH_ROUNDINGS = 64


def _init(options: Options, params: Params) -> NewtonState:
    """Return the state before the first update."""
    flat, _ = ravel_pytree(params)
    sampler = None
    if options.sketch_size is not None:
        operator = require_rows(make_model(options, params, flat).operator)
        sampler = row_sampler.initial_sampler(operator)
    # A radius of zero says that the first step chooses it.
    is_marquardt = options.damping == "levenberg_marquardt"
    first_damping = options.initial_damping if is_marquardt else 0.0
    zero = jnp.zeros((), flat.dtype)
    zero_count = jnp.zeros((), jnp.int32)
    return NewtonState(
        count=zero_count,
        smallest_curvature=zero,
        sample_size=zero_count,
        conjugate_gradient_steps=zero_count,
        evaluations=zero_count,
        gradient_norm=zero,
        diagnostics=initial_diagnostics(first_damping, flat.dtype),
        proposed=None if options.damping is None else (flat, zero),
        sampler=sampler,
        preconditioner=options.preconditioner and options.preconditioner(params, None),
        last_products=zero_count,
    )


def _update(
    options: Options,
    updates: Params,
    state: NewtonState,
    params: Params | None = None,
    *,
    value: ArrayLike | None = None,
    value_fn: Callable[[Params], ArrayLike] | None = None,
    postpones_damping: bool = False,
    **extra_args: Any,
) -> tuple[Params, NewtonState]:
    """Return H⁻¹ times the updates, and the next state."""
    options = options._replace(postpones_damping=postpones_damping)
    if params is None:
        raise ValueError("update needs params: the curvature is taken there.")
    if options.damping is not None and (value is None or value_fn is None):
        raise ValueError(
            f'damping="{options.damping}" needs value and value_fn at update, '
            "as optax' line searches do."
        )
    # 1. Loss and gradient on flat vectors.
    flat, unravel = ravel_pytree(params)
    gradient = ravel_pytree(updates)[0].astype(flat.dtype)
    loss_value = jnp.asarray(0 if value is None else value, flat.dtype)
    loss = _loss_along_step(loss_value, value_fn, flat, unravel)

    # 2. A step; none where the input is not finite.
    is_finite = jnp.isfinite(gradient).all() & jnp.isfinite(loss_value)
    state = refresh_preconditioner(options, state, params)
    model = make_model(options, params, flat)
    method = METHODS[options.sketch_size is not None, options.cg_steps is not None]
    result, sample = method(options, model, jnp.where(is_finite, gradient, 0), loss, state)
    step = jnp.where(is_finite & jnp.isfinite(result.step), result.step, 0)

    # 3. The next state.
    step_length = scaled_norm(step)
    proposed = None if state.proposed is None else (flat + step, step_length)
    next_state = NewtonState(
        count=state.count + 1,
        smallest_curvature=result.smallest_curvature.astype(flat.dtype),
        sample_size=jnp.asarray(sample.rows, jnp.int32),
        conjugate_gradient_steps=state.conjugate_gradient_steps + sample.products.astype(jnp.int32),
        evaluations=state.evaluations + result.evaluations.astype(jnp.int32),
        gradient_norm=jnp.where(is_finite, scaled_norm(gradient), state.gradient_norm),
        diagnostics=_diagnose(state, flat, is_finite, result, sample),
        proposed=proposed,
        sampler=sample.sampler,
        preconditioner=state.preconditioner,
        last_products=sample.products.astype(jnp.int32),
    )
    # In the sign of a gradient, as optax wants it: the chain multiplies it by −1.
    return unravel(-step), next_state


def _loss_along_step(
    loss_value: Float[Array, ""],
    value_fn: Callable[[Params], ArrayLike] | None,
    flat: Vector,
    unravel: Callable[[Vector], Params],
) -> LossAlongStep:
    """Return the loss as a function of a flat step; it may be called only with a ``value_fn``."""

    def loss_after(step: Vector) -> Float[Array, ""]:
        assert value_fn is not None
        return jnp.asarray(value_fn(unravel(flat + step)), flat.dtype)

    # Outside of its domain, where it is NaN, the loss is too large.
    def loss_or_inf(step: Vector) -> Float[Array, ""]:
        return jnp.nan_to_num(loss_after(step), nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)

    def slope_after(step: Vector) -> Float[Array, ""]:
        return jnp.dot(jax.grad(loss_after)(step), step)

    return LossAlongStep(loss_value, loss_or_inf, slope_after)


def _diagnose(
    state: NewtonState,
    flat: Vector,
    is_finite: Bool[Array, ""],
    result: StepResult,
    sample: SampleDiagnostics,
) -> StepDiagnostics:
    """Return what an update reports to ``minimise``."""
    damping = jnp.where(jnp.isfinite(result.damping), result.damping, state.damping)
    code = _check_last_step(state, flat)
    return StepDiagnostics(
        kind=jnp.where(is_finite, result.kind, Step.NONE).astype(jnp.int32),
        result=jnp.where(is_finite, code, Result.NONFINITE_INPUT).astype(jnp.int32),
        damping=damping.astype(flat.dtype),
        negative_curvature=result.negative_curvature,
        model_error=sample.distortion.astype(flat.dtype),
    )


def _check_last_step(state: NewtonState, flat: Vector) -> Int[Array, ""]:
    """Return STEP_CHANGED if the params are not where the last damped step led."""
    if state.proposed is None:
        return jnp.asarray(Result.SUCCESSFUL)
    # A line search after the step would have moved the params elsewhere.
    expected, length = state.proposed
    params_rounding = STEP_CHANGE_ROUNDINGS * jnp.finfo(flat.dtype).eps * scaled_norm(flat)
    tolerance = STEP_CHANGE_TOLERANCE * length + params_rounding
    is_changed = (state.count > 0) & ~(scaled_norm(flat - expected) <= tolerance)
    return jnp.where(is_changed, Result.STEP_CHANGED, state.result)


def scale_by_approx_newton(
    curvature: CurvatureLike,
    *,
    gauss_newton: CurvatureLike | None = None,
    sketch_size: int | None = None,
    max_distortion: float | None = None,
    cg_steps: int | None = None,
    preconditioner: Preconditioner | None = None,
    damping: str | None = None,
    initial_damping: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiply updates by H⁻¹, for a curvature H that a function gives at every point.

    Use it to build a chain of your own; :func:`approx_newton` is the usual chain.

    | sketch_size | cg_steps | method |
    |---|---|---|
    | None | None | exact: the matrix H, [d, d], and its Cholesky factor |
    | s | None | the papers' method: AᵀDA of s rows, drawn by leverage scores |
    | s | k | at most k CG steps on the true H, preconditioned by the sample |
    | None | k | the same without a sample, for many dimensions; no rows are needed |

    In a sample only the sum over rows is sampled: low-rank part and ridge are exact. Where H is
    positive definite the step is Newton's. Where it is not, and there is no damping, it is −M⁻¹g
    with the Gauss–Newton matrix M, or −|H|⁻¹g without one (with cg_steps: on the Krylov space).
    This is a descent direction for the line search that follows. Damping replaces the line search:
    it evaluates ``value_fn`` itself and takes a step only if the loss falls; NaN counts as +inf.

    - "trust_region": the exact minimiser of the model in ‖s‖_M ≤ Δ, which follows directions of
      negative curvature.
    - "levenberg_marquardt": (H + μM)s = −g, with μ raised until the loss falls.

    Args:
        curvature: params → a symmetric lineax operator on them: ``p.hessian`` of a problem,
            ``p.gauss_newton``, or one of your own network and loss. A matrix [d, d] or an operator
            is a constant curvature. If you jit a function around ``update``, arrays that the
            curvature closes over become constants of its program: where they are large, build the
            transform inside of that function, from an argument.
        gauss_newton: params → a positive semidefinite operator: the metric of the damping, and the
            fallback. None: a diagonal.
        sketch_size: s, rows of the sample, for a curvature that is a
            :class:`softntk.curvature.structured.StructuredOperator`; 10 d to 30 d is good.
        max_distortion: the largest ε of (1 − ε)H̃ ≼ H ≼ (1 + ε)H̃, H̃ the sample. Above it, scores
            are estimated anew for the next step; after that the sample becomes four times as large,
            and in the end all rows. None for ½, or 4 with cg_steps. The Ritz values of H̃⁻¹H give a
            lower bound of ε.
        cg_steps: k, the largest number of products with H in a step.
        preconditioner: (params, previous) → P of the conjugate gradients, an object with the
            methods ``solve_root`` and ``solve_root_transposed``, v ↦ Sv and v ↦ Sᵀv on flattened
            params, P⁻¹ = SSᵀ: ``p.preconditioner`` of :func:`softntk.regression.cross_entropy`. It
            is a pytree of arrays, computed at ``init``, where previous is None, kept, and computed
            again from itself after a step of more products than its attribute ``refresh_above``, or
            8 if it has none. It takes the place of a sample.
        damping: "trust_region", "levenberg_marquardt" or None.
        initial_damping: the first μ of "levenberg_marquardt".
        key: random key of the samples; ``jax.random.key(0)`` if None.

    Returns:
        The transform; its state is a :class:`NewtonState`. A damped step must not be followed by a
        line search: the state's ``result`` then becomes STEP_CHANGED.

    Raises:
        ValueError: an unknown damping, sizes that are not positive, μ or ε not positive; at
            ``init`` and ``update``, a curvature that is not an operator on the params, or has no
            rows to sample; at ``update``, no params, or no ``value`` and ``value_fn`` for a damped
            step.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.problem(jnp.eye(2), jnp.array([2.0, 1.0]), "identity", "plain")
        >>> tx = scale_by_approx_newton(p.hessian)
        >>> tx.update(p.gradient(jnp.zeros(2)), tx.init(jnp.zeros(2)), jnp.zeros(2))[0].tolist()
        [-2.0, -1.0]

    Source: see the module.
    """
    # 1. The curvatures, and sizes.
    curvature = as_curvature("curvature", curvature)
    if gauss_newton is not None:
        gauss_newton = as_curvature("gauss_newton", gauss_newton)
    if sketch_size is not None:
        sketch_size = check_integer("sketch_size", sketch_size, at_least=1)
    if cg_steps is not None:
        cg_steps = check_integer("cg_steps", cg_steps, at_least=1)

    # 2. The sample: one that only preconditions may be worse than one that replaces H.
    if max_distortion is None and cg_steps is None:
        max_distortion = MAX_SAMPLE_DISTORTION
    elif max_distortion is None:
        max_distortion = MAX_PRECONDITIONER_DISTORTION
    distortion_limit: float = check_number("max_distortion", max_distortion, above=0)

    # 3. Damping and key.
    initial_damping = check_number("initial_damping", initial_damping, above=0)
    if damping is not None:
        damping = check_choice("damping", damping, DAMPINGS)
    key = jax.random.key(0) if key is None else check_key("key", key)
    options = Options(
        curvature,
        gauss_newton,
        sketch_size,
        distortion_limit,
        cg_steps,
        damping,
        initial_damping,
        key,
        check_preconditioner(preconditioner, sketch_size, cg_steps),
    )

    update = partial(_update, options)
    return optax.GradientTransformationExtraArgs(partial(_init, options), update)  # pyright: ignore[reportArgumentType]


def approx_newton(
    curvature: CurvatureLike,
    *,
    gauss_newton: CurvatureLike | None = None,
    sketch_size: int | None = None,
    max_distortion: float | None = None,
    cg_steps: int | None = None,
    preconditioner: Preconditioner | None = None,
    damping: str | None = None,
    linesearch: optax.GradientTransformationExtraArgs | None = None,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return approximate Newton with a line search, or with damping instead.

    Use it for losses whose curvature is known, as that of a problem of :mod:`softntk.regression`.
    It is :func:`scale_by_approx_newton`, ``optax.scale(-1)`` and a line search, chained.

    Args:
        curvature: params → a symmetric lineax operator, as for :func:`scale_by_approx_newton`.
        gauss_newton: the metric and the fallback, likewise.
        sketch_size: rows of the sample.
        max_distortion: largest ε of the sample.
        cg_steps: conjugate gradient steps on the true curvature.
        preconditioner: of these steps.
        damping: "trust_region", "levenberg_marquardt" or None.
        linesearch: an optax line search. If None and there is no damping, it is backtracking with
            at most 30 halvings.
        key: random key of the samples.

    Returns:
        The transform.

    Raises:
        ValueError: as for :func:`scale_by_approx_newton`; damping and a line search together.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.problem(jnp.eye(2), jnp.array([2.0, 1.0]), "identity", "plain")
        >>> sn.solvers.minimise(p, jnp.zeros(2), approx_newton(p.hessian)).value.tolist()
        [2.0, 1.0]

    Source: arXiv 2309.13482, the approximate Newton method.
    """
    # 1. The direction. A line search and a damping exclude each other.
    if linesearch is not None:
        check_transform("linesearch", linesearch)
    if damping is not None and linesearch is not None:
        raise ValueError(
            f'damping="{damping}" and a line search exclude each other: '
            "a damped step never learns what the search accepted."
        )
    scaled = scale_by_approx_newton(
        curvature,
        gauss_newton=gauss_newton,
        sketch_size=sketch_size,
        max_distortion=max_distortion,
        cg_steps=cg_steps,
        preconditioner=preconditioner,
        damping=damping,
        key=key,
    )

    # 2. Damped, it is the step; else a line search follows.
    if damping is not None:
        return optax.chain(scaled, optax.scale(-1.0))
    if linesearch is None:
        # Near the minimum the loss falls by less than its rounding: let it rise by that much.
        rounding = LINESEARCH_ROUNDINGS * float(jnp.finfo(jnp.result_type(float)).eps)
        linesearch = optax.scale_by_backtracking_linesearch(MAX_BACKTRACKING_STEPS, rtol=rounding)
    return optax.chain(scaled, optax.scale(-1.0), linesearch)
