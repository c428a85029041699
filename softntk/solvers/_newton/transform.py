r"""Approximate Newton as an optax transform: exact, sampled, or by conjugate gradients that a
sample preconditions.

The update is an approximation of H⁻¹∇L, H = ∇²L or any other curvature, in the sign of optax'
``scale_by_…``: chain it with ``optax.scale(-1)`` and a line search, or let it damp itself. It is
given ``value``, ``grad`` and ``value_fn``, as every optax loop passes them, and nothing else.

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
MATHEMATICS.md#approximate-newton; for the steps see ``softntk/solvers/_newton/globalisation.py``,
``_dense.py`` and ``_krylov.py``, for the sample ``_sampled.py``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    as_floating,
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
from softntk.solvers._newton.globalisation import DAMPINGS
from softntk.solvers._newton.methods import (
    METHODS,
    Curvature,
    Options,
    make_model,
    structured,
)
from softntk.solvers._newton.model import Trial
from softntk.solvers._newton.state import NewtonState

Params = Any

_DISTORTION = 0.5  # of a sample that stands for the curvature, at most
_PRECONDITIONED = 4.0  # of one that only preconditions


def _as_curvature(name: str, curvature: Any) -> Curvature:
    """Return a function of the params; a matrix, or an operator, is the same everywhere."""
    if isinstance(curvature, lx.AbstractLinearOperator):
        return lambda _: curvature
    if isinstance(curvature, jax.Array | np.ndarray | list | tuple):
        matrix = as_floating(name, curvature, ("d", "d"), half=False)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{name} must be a square matrix, got shape {matrix.shape}.")
        return lambda params: _on_params(matrix, params)
    if not callable(curvature):
        raise ValueError(
            f"{name} must be a function of the params, a matrix or a lineax operator, got "
            f"{type(curvature).__name__}. Pass p.hessian, say."
        )
    return curvature  # pyright: ignore[reportReturnType]


def _on_params(matrix: Float[Array, "d d"], params: Params) -> lx.AbstractLinearOperator:
    """Return a matrix on flattened params as an operator on params."""
    flat, unravel = ravel_pytree(params)
    if flat.shape != matrix.shape[:1]:
        raise ValueError(
            f"curvature must be a matrix of the {flat.size} numbers of the params, or a function "
            f"that returns an operator, got a matrix of shape {matrix.shape}."
        )
    symmetric = (0.5 * (matrix + matrix.T)).astype(flat.dtype)
    if params is flat or getattr(params, "ndim", 0) == 1:
        return lx.MatrixLinearOperator(symmetric, lx.symmetric_tag)
    return lx.FunctionLinearOperator(
        lambda v: unravel(symmetric @ ravel_pytree(v)[0]),
        jax.eval_shape(lambda: params),
        lx.symmetric_tag,
    )


def scale_by_approx_newton(
    curvature: Curvature | lx.AbstractLinearOperator | Float[Array | np.ndarray, "d d"],
    *,
    gauss_newton: Curvature
    | lx.AbstractLinearOperator
    | Float[Array | np.ndarray, "d d"]
    | None = None,
    sketch_size: int | None = None,
    max_distortion: float | None = None,
    cg_steps: int | None = None,
    damping: str | None = None,
    initial_damping: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""H⁻¹ times the updates, for a curvature H that a function gives at every point.

    | sketch_size | cg_steps | |
    |---|---|---|
    | None | None | exact: the matrix H, [d, d], and its Cholesky factor |
    | s | None | the papers' method: AᵀDA of s rows, drawn by leverage scores; low-rank part and
    ridge exact |
    | s | k | at most k conjugate gradient steps on the true H a step, preconditioned by the sample
    |
    | None | k | the same without preconditioner, for curvature that has no rows, in many dimensions
    |

    Where H is positive definite the step is Newton's. Where it is not, and there is no damping, it
    is −M⁻¹g with the Gauss–Newton matrix M, or −|H|⁻¹g without one (by products: on the Krylov
    space): a descent direction for the line search behind it. Damping, instead of a line search,
    evaluates ``value_fn`` itself and takes any step only if it makes the loss fall; NaN counts as
    +inf.

    - "trust_region": the exact solution of the model in ‖s‖_M ≤ Δ, which follows directions of
      negative curvature.
    - "levenberg_marquardt": (H + μM)s = −g, μ raised until the loss falls.

    Args:
        curvature: params → a symmetric lineax operator on them: ``p.hessian`` of a problem,
            ``p.gauss_newton``, or one of your own network and loss. A matrix [d, d] or an operator
            itself stands for one that is the same everywhere. Arrays that it closes over become
            constants of a function that is jitted around ``update``: with large ones build the
            transform inside, from an argument.
        gauss_newton: params → a positive semidefinite operator: the metric of the damping, and the
            fallback. None: a diagonal.
        sketch_size: s, rows of the sample, for a curvature that is a
            :class:`softntk.curvature.structured.StructuredOperator`; 10 d to 30 d is good.
        max_distortion: the ε of (1 − ε)H̃ ≼ H ≼ (1 + ε)H̃ from which on scores are estimated anew,
            and then the sample is taken four times as large, and is at last all rows, for the next
            step; ½, or 4 with cg_steps, if None. ε is measured by the Ritz values of H̃⁻¹H, from
            below.
        cg_steps: k.
        damping: "trust_region", "levenberg_marquardt" or None.
        initial_damping: the first μ.
        key: of the samples; ``jax.random.key(0)`` if None.

    Returns:
        The transform; its state is a :class:`NewtonState`. A line search behind a damped step is
        refused: the state's ``result`` becomes STEP_CHANGED.

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
    curvature = _as_curvature("curvature", curvature)
    gauss_newton = None if gauss_newton is None else _as_curvature("gauss_newton", gauss_newton)
    sketch_size = (
        None if sketch_size is None else check_integer("sketch_size", sketch_size, at_least=1)
    )
    cg_steps = None if cg_steps is None else check_integer("cg_steps", cg_steps, at_least=1)
    if max_distortion is None:
        max_distortion = _DISTORTION if cg_steps is None else _PRECONDITIONED
    distortion_limit: float = check_number("max_distortion", max_distortion, above=0)
    initial_damping = check_number("initial_damping", initial_damping, above=0)
    damping = None if damping is None else check_choice("damping", damping, DAMPINGS)
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
    )

    def init(params: Params) -> NewtonState:
        flat, _ = ravel_pytree(params)
        zero, no = jnp.zeros((), flat.dtype), jnp.zeros((), jnp.int32)
        sampler = None
        if sketch_size is not None:
            sampler = row_sampler.start(structured(make_model(options, params, flat).operator))
        first = initial_damping if damping == "levenberg_marquardt" else 0.0
        return NewtonState(
            count=no,
            smallest_curvature=zero,
            sample_size=no,
            conjugate_gradient_steps=no,
            evaluations=no,
            gradient_norm=zero,
            diagnostics=initial_diagnostics(first, flat.dtype),
            proposed=None if damping is None else (flat, zero),
            sampler=sampler,
        )

    def update(
        updates: Params,
        state: NewtonState,
        params: Params | None = None,
        *,
        value: Any = None,
        value_fn: Callable[[Params], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Params, NewtonState]:
        if params is None:
            raise ValueError("update needs params: the curvature is taken there.")
        if damping is not None and (value is None or value_fn is None):
            raise ValueError(
                f'damping="{damping}" needs value and value_fn at update, as optax\' line searches do.'
            )
        flat, unravel = ravel_pytree(params)
        g = ravel_pytree(updates)[0].astype(flat.dtype)
        value = jnp.zeros((), flat.dtype) if value is None else jnp.asarray(value, flat.dtype)

        def after(step: Float[Array, " d"]) -> Float[Array, ""]:
            assert value_fn is not None
            return jnp.asarray(value_fn(unravel(flat + step)), flat.dtype)

        trial = Trial(
            value,
            lambda step: jnp.nan_to_num(after(step), nan=jnp.inf, posinf=jnp.inf, neginf=-jnp.inf),
            lambda step: jnp.dot(jax.grad(after)(step), step),
        )
        finite = jnp.isfinite(g).all() & jnp.isfinite(value)
        model = make_model(options, params, flat)
        step = METHODS[sketch_size is not None, cg_steps is not None]
        outcome, seen = step(options, model, jnp.where(finite, g, 0), trial, state)
        moved = jnp.where(finite & jnp.isfinite(outcome.step), outcome.step, 0)
        size = scaled_norm(moved)
        result, proposed = jnp.asarray(Result.SUCCESSFUL), None
        if state.proposed is not None:
            expected, length = state.proposed
            slack = 0.01 * length + 16 * jnp.finfo(flat.dtype).eps * scaled_norm(flat)
            changed = (state.count > 0) & ~(scaled_norm(flat - expected) <= slack)
            result = jnp.where(changed, Result.STEP_CHANGED, state.result)
            proposed = (flat + moved, size)
        new_damping = jnp.where(jnp.isfinite(outcome.damping), outcome.damping, state.damping)
        diagnostics = StepDiagnostics(
            kind=jnp.where(finite, outcome.kind, Step.NONE).astype(jnp.int32),
            result=jnp.where(finite, result, Result.NONFINITE_INPUT).astype(jnp.int32),
            damping=new_damping.astype(flat.dtype),
            negative_curvature=outcome.negative,
            model_error=seen.distortion.astype(flat.dtype),
        )
        new = NewtonState(
            count=state.count + 1,
            smallest_curvature=outcome.smallest.astype(flat.dtype),
            sample_size=jnp.asarray(seen.rows, jnp.int32),
            conjugate_gradient_steps=state.conjugate_gradient_steps
            + seen.products.astype(jnp.int32),
            evaluations=state.evaluations + outcome.evaluations.astype(jnp.int32),
            gradient_norm=jnp.where(finite, scaled_norm(g), state.gradient_norm),
            diagnostics=diagnostics,
            proposed=proposed,
            sampler=seen.sampler,
        )
        return unravel(-moved), new

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def approx_newton(
    curvature: Curvature | lx.AbstractLinearOperator | Float[Array | np.ndarray, "d d"],
    *,
    gauss_newton: Curvature
    | lx.AbstractLinearOperator
    | Float[Array | np.ndarray, "d d"]
    | None = None,
    sketch_size: int | None = None,
    max_distortion: float | None = None,
    cg_steps: int | None = None,
    damping: str | None = None,
    linesearch: optax.GradientTransformationExtraArgs | None = None,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_approx_newton`, ``optax.scale(-1)`` and a line search, chained; no line
    search where it damps itself.

    Args:
        curvature: params → a symmetric lineax operator, and the other arguments: as for
            :func:`scale_by_approx_newton`.
        gauss_newton: the metric and the fallback.
        sketch_size: rows of the sample.
        max_distortion: its largest ε.
        cg_steps: conjugate gradient steps on the true curvature.
        damping: "trust_region", "levenberg_marquardt" or None.
        linesearch: an optax line search; backtracking with at most 30 halvings if None and not
            damped.
        key: of the samples.

    Returns:
        The transform.

    Raises:
        ValueError: as :func:`scale_by_approx_newton`; damping and a line search together.

    Example:
        >>> import jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.problem(jnp.eye(2), jnp.array([2.0, 1.0]), "identity", "plain")
        >>> sn.solvers.minimise(p, jnp.zeros(2), approx_newton(p.hessian)).value.tolist()
        [2.0, 1.0]

    Source: arXiv 2309.13482, the approximate Newton method.
    """
    if linesearch is not None:
        check_transform("linesearch", linesearch)
    if damping is not None and linesearch is not None:
        raise ValueError(
            f'damping="{damping}" and a line search exclude each other: a damped step never learns what the search accepted.'
        )
    scaled = scale_by_approx_newton(
        curvature,
        gauss_newton=gauss_newton,
        sketch_size=sketch_size,
        max_distortion=max_distortion,
        cg_steps=cg_steps,
        damping=damping,
        key=key,
    )
    if damping is not None:
        return optax.chain(scaled, optax.scale(-1.0))
    if linesearch is None:
        # Near the end the loss falls by less than its rounding: that much it may rise.
        rounding = 64 * float(jnp.finfo(jnp.result_type(float)).eps)
        linesearch = optax.scale_by_backtracking_linesearch(30, rtol=rounding)
    return optax.chain(scaled, optax.scale(-1.0), linesearch)
