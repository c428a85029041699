r"""Approximate Newton as an optax transform: exact, sampled, or by conjugate gradients that a sample preconditions.

The update is an approximation of H⁻¹∇L, H = ∇²L or any other curvature, in the sign of optax' ``scale_by_…``: chain it with
``optax.scale(-1)`` and a line search, or let it damp itself. It is given ``value``, ``grad`` and ``value_fn``, as every
optax loop passes them, and nothing else.

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

Source: arXiv 2309.13482 and 2304.10411 (the approximate Newton method); MATH.md section 4; for the steps see
``softntk/solvers/_damping.py``, ``_dense.py`` and ``_krylov.py``, for the sample ``_sampled.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softntk._validation import check_positive, check_positive_int
from softntk.activations import unknown
from softntk.curvature.structured import StructuredOperator
from softntk.solution import Result
from softntk.solvers import _dense, _krylov, _sampled
from softntk.solvers._damping import DAMPINGS
from softntk.solvers._sampled import Sampler
from softntk.solvers._trial import Outcome, Step, Trial

Params = Any
Curvature = Callable[[Params], lx.AbstractLinearOperator]

_LOOSEST, _TIGHTEST = 0.1, 1e-4  # relative residuals of the conjugate gradients
_DISTORTION = 0.5  # of a sample that stands for the curvature, at most
_PRECONDITIONED = 4.0  # of one that only preconditions
_MEASURED = 4  # products that measure the ε of a sample which no conjugate gradients use


class NewtonState(NamedTuple):
    """What an approximate Newton transform remembers, and tells.

    Attributes:
        count: updates so far.
        damping: the radius of the trust region or the parameter μ; zero where there is none.
        kind: what the last update was, a :class:`~softntk.solvers.newton.Step`.
        negative_curvature: whether the last curvature had a negative eigenvalue, beyond rounding.
        smallest_curvature: the smallest it looked at, in the metric; zero where it did not look.
        distortion: the measured ε of the sample; zero for exact curvature.
        sample_size: rows of the last sample; zero without one.
        conjugate_gradient_steps: in all.
        evaluations: of ``value_fn``, in all.
        gradient_norm: of the last updates that came in.
        result: a :class:`softntk.solution.Result`; STEP_CHANGED if what comes behind a damped step did not take it as it was.
        proposed: where the last damped step leads, flattened, and its length: to see that.
        sampler: of the rows; None without a sample.
    """

    count: Int[Array, ""]
    damping: Float[Array, ""]
    kind: Int[Array, ""]
    negative_curvature: Bool[Array, ""]
    smallest_curvature: Float[Array, ""]
    distortion: Float[Array, ""]
    sample_size: Int[Array, ""]
    conjugate_gradient_steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    gradient_norm: Float[Array, ""]
    result: Int[Array, ""]
    proposed: tuple[Float[Array, " d"], Float[Array, ""]] | None
    sampler: Sampler | None


class _Options(NamedTuple):
    curvature: Curvature
    gauss_newton: Curvature | None
    sketch_size: int | None
    max_distortion: float
    cg_steps: int | None
    damping: str | None
    initial_damping: float


class _Model(NamedTuple):
    """The curvature at a point, on flat vectors."""

    operator: lx.AbstractLinearOperator
    metric: Callable[[], lx.AbstractLinearOperator] | None
    product: Callable[[Float[Array, " d"]], Float[Array, " d"]]


def scale_by_approx_newton(
    curvature: Curvature,
    *,
    gauss_newton: Curvature | None = None,
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
    | s | None | the papers' method: AᵀDA of s rows, drawn by leverage scores; low-rank part and ridge exact |
    | s | k | at most k conjugate gradient steps on the true H a step, preconditioned by the sample |
    | None | k | the same without preconditioner, for curvature that has no rows, in many dimensions |

    Where H is positive definite the step is Newton's. Where it is not, and there is no damping, it is −M⁻¹g with the
    Gauss–Newton matrix M, or −|H|⁻¹g without one (conjugate gradients: the step to where the curvature turns): a descent
    direction for the line search behind it. Damping, instead of a line search, evaluates ``value_fn`` itself and takes any
    step only if it makes the loss fall; NaN counts as +inf.

    - "trust_region": the exact solution of the model in ‖s‖_M ≤ Δ, which follows directions of negative curvature.
    - "levenberg_marquardt": (H + μM)s = −g, μ raised until the loss falls.

    Args:
        curvature: params → a symmetric lineax operator on them: ``p.hessian`` of a problem, ``p.gauss_newton``, or one of your
            own network and loss. Arrays that it closes over become constants of a function that is jitted around ``update``:
            with large ones build the transform inside, from an argument.
        gauss_newton: params → a positive semidefinite operator: the metric of the damping, and the fallback. None: a diagonal.
        sketch_size: s, rows of the sample, for a curvature that is a
            :class:`softntk.curvature.structured.StructuredOperator`; 10 d to 30 d is good.
        max_distortion: the ε of (1 − ε)H̃ ≼ H ≼ (1 + ε)H̃ from which on scores are estimated anew, and then the sample is
            taken four times as large, and is at last all rows, for the next step; ½, or 4 with cg_steps, if None. ε is
            measured by the Ritz values of H̃⁻¹H, from below.
        cg_steps: k.
        damping: "trust_region", "levenberg_marquardt" or None.
        initial_damping: the first μ.
        key: of the samples; ``jax.random.key(0)`` if None.

    Returns:
        The transform; its state is a :class:`NewtonState`. A line search behind a damped step is refused: the state's
        ``result`` becomes STEP_CHANGED.

    Raises:
        ValueError: an unknown damping, sizes that are not positive, μ or ε not positive; at ``init`` and ``update``, a
            curvature that is not an operator on the params, or has no rows to sample; at ``update``, no params, or no
            ``value`` and ``value_fn`` for a damped step.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> p = sn.regression.problem(jnp.eye(2), jnp.array([2.0, 1.0]), "identity", "plain")
        >>> tx = scale_by_approx_newton(p.hessian)
        >>> tx.update(p.gradient(jnp.zeros(2)), tx.init(jnp.zeros(2)), jnp.zeros(2))[0].tolist()
        [-2.0, -1.0]

    Source: see the module.
    """
    for name, value in (("sketch_size", sketch_size), ("cg_steps", cg_steps)):
        if value is not None:
            check_positive_int(name, value)
    max_distortion = (_DISTORTION if cg_steps is None else _PRECONDITIONED) if max_distortion is None else max_distortion
    check_positive("max_distortion", max_distortion)
    check_positive("initial_damping", initial_damping)
    if damping is not None and damping not in DAMPINGS:
        raise ValueError(unknown("damping", damping, DAMPINGS))
    if not callable(curvature):
        raise ValueError(f"curvature must be a function of the params, got {type(curvature).__name__}. Pass p.hessian, say.")
    options = _Options(curvature, gauss_newton, sketch_size, max_distortion, cg_steps, damping, initial_damping)
    key = jax.random.key(0) if key is None else key

    def init(params: Params) -> NewtonState:
        flat, _ = ravel_pytree(params)
        zero, no = jnp.zeros((), flat.dtype), jnp.zeros((), jnp.int32)
        sampler = None
        if sketch_size is not None:
            sampler = _sampled.start(_structured(_model(options, params, flat).operator), key)
        first = initial_damping if damping == "levenberg_marquardt" else 0.0
        return NewtonState(
            count=no,
            damping=jnp.asarray(first, flat.dtype),
            kind=jnp.asarray(Step.NONE, jnp.int32),
            negative_curvature=jnp.asarray(False),
            smallest_curvature=zero,
            distortion=zero,
            sample_size=no,
            conjugate_gradient_steps=no,
            evaluations=no,
            gradient_norm=zero,
            result=jnp.asarray(Result.SUCCESSFUL, jnp.int32),
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
            raise ValueError(f'damping="{damping}" needs value and value_fn at update, as optax\' line searches do.')
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
        model = _model(options, params, flat)
        step = _METHODS[sketch_size is not None, cg_steps is not None]
        outcome, seen = step(options, model, jnp.where(finite, g, 0), trial, state)
        moved = jnp.where(finite & jnp.isfinite(outcome.step), outcome.step, 0)
        size = jnp.linalg.norm(moved)
        result, proposed = jnp.asarray(Result.SUCCESSFUL), None
        if state.proposed is not None:
            expected, length = state.proposed
            slack = 0.01 * length + 16 * jnp.finfo(flat.dtype).eps * jnp.linalg.norm(flat)
            changed = (state.count > 0) & ~(jnp.linalg.norm(flat - expected) <= slack)
            result = jnp.where(changed, Result.STEP_CHANGED, state.result)
            proposed = (flat + moved, size)
        new = NewtonState(
            count=state.count + 1,
            damping=jnp.where(jnp.isfinite(outcome.damping), outcome.damping, state.damping).astype(flat.dtype),
            kind=jnp.where(finite, outcome.kind, Step.NONE).astype(jnp.int32),
            negative_curvature=outcome.negative,
            smallest_curvature=outcome.smallest.astype(flat.dtype),
            distortion=seen.distortion.astype(flat.dtype),
            sample_size=jnp.asarray(seen.rows, jnp.int32),
            conjugate_gradient_steps=state.conjugate_gradient_steps + seen.products.astype(jnp.int32),
            evaluations=state.evaluations + outcome.evaluations.astype(jnp.int32),
            gradient_norm=jnp.where(finite, jnp.linalg.norm(g), state.gradient_norm),
            result=jnp.where(finite, result, Result.NONFINITE_INPUT).astype(jnp.int32),
            proposed=proposed,
            sampler=seen.sampler,
        )
        return unravel(-moved), new

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def approx_newton(
    curvature: Curvature,
    *,
    gauss_newton: Curvature | None = None,
    sketch_size: int | None = None,
    max_distortion: float | None = None,
    cg_steps: int | None = None,
    damping: str | None = None,
    linesearch: optax.GradientTransformationExtraArgs | None = None,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_approx_newton`, ``optax.scale(-1)`` and a line search, chained; no line search where it damps itself.

    Args:
        curvature: params → a symmetric lineax operator, and the other arguments: as for :func:`scale_by_approx_newton`.
        gauss_newton: the metric and the fallback.
        sketch_size: rows of the sample.
        max_distortion: its largest ε.
        cg_steps: conjugate gradient steps on the true curvature.
        damping: "trust_region", "levenberg_marquardt" or None.
        linesearch: an optax line search; backtracking with at most 30 halvings if None and not damped.
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


class _Seen(NamedTuple):
    distortion: Any
    rows: Any
    products: Any
    sampler: Sampler | None


def _model(options: _Options, params: Params, flat: Float[Array, " d"]) -> _Model:
    operator = _checked("curvature", options.curvature(params), params)
    _, unravel = ravel_pytree(params)

    def product(v: Float[Array, " d"]) -> Float[Array, " d"]:
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    gauss_newton = options.gauss_newton
    metric = None if gauss_newton is None else lambda: _checked("gauss_newton", gauss_newton(params), params)
    return _Model(operator, metric, product)


def _checked(name: str, operator: Any, params: Params) -> lx.AbstractLinearOperator:
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(f"{name} must return a lineax operator, got {type(operator).__name__}.")
    got = jax.tree.map(lambda leaf: leaf.shape, operator.in_structure())
    want = jax.tree.map(jnp.shape, params)
    if got != want:
        raise ValueError(f"{name} must be an operator on the params, of shapes {want}; it is one on {got}.")
    return operator


def _structured(operator: lx.AbstractLinearOperator) -> StructuredOperator:
    if not isinstance(operator, StructuredOperator):
        raise ValueError(
            f"sketch_size needs a curvature with rows to draw, a softntk.curvature.StructuredOperator, got "
            f"{type(operator).__name__}. Without sketch_size any operator will do."
        )
    return operator


def _solved(
    options: _Options,
    H: Float[Array, "d d"],
    metric: Callable[[], Float[Array, "d d"]] | None,
    g: Float[Array, " d"],
    trial: Trial,
    state: NewtonState,
) -> Outcome:
    if options.damping is None:
        return _dense.undamped(H, metric, g)

    def diagonal() -> Float[Array, "d d"]:
        sizes = jnp.abs(jnp.diagonal(H))
        return jnp.diag(jnp.maximum(sizes, jnp.finfo(H.dtype).eps * jnp.max(sizes)))

    metric = diagonal if metric is None else metric
    return _dense.damped(H, metric, g, DAMPINGS[options.damping], trial, state.damping)


def _exact(options: _Options, model: _Model, g: Array, trial: Trial, state: NewtonState) -> tuple[Outcome, _Seen]:
    made = model.metric
    metric = None if made is None else lambda: made().as_matrix().astype(g.dtype)
    outcome = _solved(options, model.operator.as_matrix().astype(g.dtype), metric, g, trial, state)
    return outcome, _Seen(jnp.zeros((), g.dtype), 0, jnp.zeros((), jnp.int32), None)


def _sketched(options: _Options, model: _Model, g: Array, trial: Trial, state: NewtonState) -> tuple[Outcome, _Seen]:
    operator, sizes, before, made = _structured(model.operator), _sizes(options, model), state.sampler, model.metric
    assert before is not None

    def with_rows(size: int) -> tuple[Outcome, _dense.Factor, Sampler]:
        sampler, sample = _sampled.draw(before, operator, size)
        H = _sampled.matrix(operator, sample)
        metric = None if made is None else lambda made=made: _sampled.matrix(_structured(made()), sample)
        return _solved(options, H, metric, g, trial, state), _dense.factorise(H), sampler

    outcome, factor, sampler = lax.switch(before.level, [partial(with_rows, size) for size in sizes])
    space = _krylov.krylov(model.product, factor, g, trial.value, 0.0, _MEASURED)
    distortion = jnp.where(factor.definite, space.distortion, jnp.inf)
    learned = _sampled.learn(sampler, operator, factor, distortion, options.max_distortion, len(sizes) - 1)
    return outcome, _Seen(distortion, jnp.asarray(sizes)[before.level], space.products, learned)


def _by_products(options: _Options, model: _Model, g: Array, trial: Trial, state: NewtonState) -> tuple[Outcome, _Seen]:
    """Conjugate gradients without a preconditioner."""
    assert options.cg_steps is not None
    space = _krylov.krylov(model.product, None, g, trial.value, _rtol(g, state), options.cg_steps)
    if options.damping is None:
        outcome = _krylov.undamped(space)
    else:
        outcome = _krylov.damped(space, DAMPINGS[options.damping], trial, state.damping)
    return outcome, _Seen(jnp.zeros((), g.dtype), 0, space.products, None)


def _preconditioned(options: _Options, model: _Model, g: Array, trial: Trial, state: NewtonState) -> tuple[Outcome, _Seen]:
    """Conjugate gradients preconditioned by a sample where that is convex, dense steps where it is not.

    Those are the sample's own while they get on, and exact when they do not, or when no sample preconditions well.
    """
    operator, sizes, steps, made = _structured(model.operator), _sizes(options, model), options.cg_steps, model.metric
    assert state.sampler is not None
    assert steps is not None
    before = _sampled.judge(state.sampler, trial.value)
    none, nothing = jnp.zeros((), jnp.int32), jnp.zeros((), g.dtype)
    top = len(sizes) - 1

    def exact() -> Outcome:
        return _exact(options, model, g, trial, state)[0]

    def by_sample() -> tuple[Outcome, _Seen]:
        levels = sizes[:-1] or sizes
        drawn = [partial(_sampled.draw, before, operator, size) for size in levels]
        H, sampler = lax.switch(
            before.level, [lambda draw=draw: (_sampled.matrix(operator, draw()[1]), draw()[0]) for draw in drawn]
        )
        factor = _dense.factorise(H)

        def metric() -> Float[Array, "d d"]:
            assert made is not None
            like = _structured(made())
            return lax.switch(before.level, [lambda draw=draw: _sampled.matrix(like, draw()[1]) for draw in drawn])

        def sampled() -> Outcome:
            return _solved(options, H, None if made is None else metric, g, trial, state)

        def dense() -> tuple[Outcome, _Seen]:
            outcome = lax.cond(before.trusted, sampled, exact) if options.damping else sampled()
            return outcome, _Seen(nothing, rows, none, _sampled.watch(sampler, trial.value))

        def products() -> tuple[Outcome, _Seen]:
            space = _krylov.krylov(model.product, factor, g, trial.value, _rtol(g, state), steps)
            if options.damping is None:
                outcome = _krylov.undamped(space)
            else:
                outcome = _krylov.damped(space, DAMPINGS[options.damping], trial, state.damping, exact)
            learned = _sampled.learn(sampler, operator, factor, space.distortion, options.max_distortion, top)
            # Negative curvature says nothing about the sample.
            learned = jax.tree.map(lambda new, old: jnp.where(space.model.negative, old, new), learned, sampler)
            return outcome, _Seen(space.distortion, rows, space.products, learned)

        rows = jnp.asarray(levels, jnp.int32)[jnp.minimum(before.level, len(levels) - 1)]
        return lax.cond(factor.definite, products, dense)

    if options.damping is None:
        return by_sample()
    hopeless = (before.level == top) | (state.negative_curvature & ~before.trusted)
    return lax.cond(hopeless, lambda: (exact(), _Seen(nothing, none, none, before)), by_sample)


def _rtol(g: Float[Array, " d"], state: NewtonState) -> Float[Array, ""]:
    """How exactly to solve: as the gradient has shrunk in the last step, so that convergence is faster than linear."""
    shrunk = jnp.linalg.norm(g) / jnp.where(state.gradient_norm > 0, state.gradient_norm, jnp.inf)
    return jnp.where(state.gradient_norm > 0, jnp.clip(shrunk**1.5, _TIGHTEST, _LOOSEST), _LOOSEST)


def _sizes(options: _Options, model: _Model) -> tuple[int, ...]:
    assert options.sketch_size is not None
    return _sampled.sizes(_structured(model.operator), options.sketch_size)


_METHODS = {(False, False): _exact, (True, False): _sketched, (False, True): _by_products, (True, True): _preconditioned}
"""By whether there is a sample, and whether there are products."""
