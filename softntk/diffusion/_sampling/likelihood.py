r"""``log_likelihood``: the density of the model that a score defines, along its probability flow.

The flow carries the distribution at T, which is nearly N(0, I), to that at min_time. In the angle θ
(cos θ = α, sin θ = √h)

    dX/dθ = −tan θ (X + s),        d log p(X)/dθ = tan θ (d + ∇·s),

so log p(x) at min_time is log p_T(X_T) less the integral of the second from there to T. The
divergence is exact, by d directional derivatives, or an average of random ones.

p_T is the Gaussian N(μ, P⁻¹) whose score is the given one at the origin and the unit vectors: P e_i
= s(T, 0) − s(T, e_i) and P μ = s(T, 0). With N(0, I) instead, what is left of the data at T, αE X_0
of the mean and α²(Cov X_0 − I) of the covariance, would be missing from every log-density: 0.09 for
N((3, 3), I/4) and ``vp_sde()``.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import diffusion
    >>> normal_score = lambda t, x: -x  # of N(0, I)
    >>> log_p = diffusion.log_likelihood(diffusion.vp_sde(), normal_score, jnp.zeros((1, 2)))
    >>> bool(abs(log_p[0] + jnp.log(2 * jnp.pi)) < 1e-3)
    True

Source: Song et al. (2021), arXiv 2011.13456, appendix D.2; Grathwohl et al. (2019), arXiv
1810.01367, for the random trace.
"""

import math
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import static_record
from softntk._core.validation import (
    as_rows,
    check_choice,
    check_count,
    check_flag,
    check_key,
)
from softntk.diffusion._arguments import check_min_time
from softntk.diffusion._denoisers.base import check_score_fn
from softntk.diffusion._noising_process import VPSDE, check_sde
from softntk.diffusion._sampling import probability_flow, score_functions
from softntk.diffusion._types import Points, ScoreFn
from softntk.solution import Solution

TRACES = ("exact", "hutchinson")

TRACE_BATCH_SIZE = 16
"""Number of directional derivatives that are taken at once."""


@static_record
class _Options:
    """Options that are part of the compiled program.

    Attributes:
        min_time: T₀.
        tolerances: relative and absolute, of each step.
        max_steps: largest number of steps.
    """

    min_time: float
    tolerances: tuple[float, float]
    max_steps: int


def log_likelihood(
    sde: VPSDE,
    score_fn: ScoreFn,
    x: Points,
    *,
    key: PRNGKeyArray | None = None,
    trace: Literal["exact", "hutchinson"] | str = "exact",
    probes: int = 16,
    min_time: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    throw: bool = True,
) -> Float[Array, " n"]:
    r"""Return the log-density at x of the model with this score, in nats: that of X at min_time.

    Use it to compare models on held-out data. At T the model is the Gaussian that the score there
    describes; see the module. With the exact score of data, the error of log p_{min_time}(x) is of
    the order of the third cumulant of X_T, α(T)³. Data that fill no volume have log-densities that
    grow as −log h(min_time)/2 with each missing dimension: compare models at the same min_time. A
    fitted score is not reliable at times before the first one of its training: choose min_time no
    smaller.

    Differentiable in x, in the arrays of score_fn, and in the rates of a process that are traced.

    Args:
        sde: the process.
        score_fn: (t, x) → ∇log p_t(x), [n, d], for a scalar t and x [n, d]; row by row.
        x: [n, d].
        key: randomness, for "hutchinson".
        trace: "exact", by d directional derivatives an evaluation; "hutchinson", by ``probes``:
            unbiased, as the same random signs are kept along the path.
        probes: number of random directions, for "hutchinson".
        min_time: T₀, between 0 and T: x is taken as X at this time.
        rtol: relative tolerance of each step.
        atol: absolute tolerance of each step.
        max_steps: largest number of steps.
        throw: raise if the score is not finite or max_steps is reached. Otherwise, and always under
            jit and vmap, such rows are −inf.

    Returns:
        The log-densities, [n].

    Raises:
        ValueError: x is not a finite floating-point matrix; an unknown trace; "hutchinson" without
            key; min_time outside (0, T); numbers that are not positive; a score of another shape
            than x.
        NumericalError: a row failed under ``throw``; the message says why, and what to do.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> score, x, key = lambda t, x: -x, jnp.ones((1, 2)), jax.random.key(0)
        >>> log_p = log_likelihood(vp_sde(), score, x, key=key, trace="hutchinson")
        >>> bool(abs(log_p[0] + jnp.log(2 * jnp.pi) + 1) < 1e-3)  # the trace is exact: J = −I
        True

    Source: Song et al. (2021), arXiv 2011.13456, equation 39.
    """
    # 1. Check the arguments.
    check_sde(sde)
    check_score_fn(score_fn)
    x = as_rows("x", x, half=False)
    trace = check_choice("trace", trace, TRACES)
    key = None if key is None else check_key("key", key)
    min_time = check_min_time(sde, min_time)
    probes = check_count("probes", probes)
    max_steps = check_count("max_steps", max_steps)
    throw = check_flag("throw", throw)
    tolerances = probability_flow.check_tolerances(rtol, atol, x.dtype)
    # 2. Choose directions v whose mean vᵀJv is the trace: √d e_i, or random signs.
    n, d = x.shape
    if trace == "exact":
        directions = jnp.broadcast_to(
            jnp.sqrt(jnp.asarray(d, x.dtype)) * jnp.eye(d, dtype=x.dtype)[:, None, :], (d, n, d)
        )
    elif key is None:
        raise ValueError('trace="hutchinson" needs a key, e.g. key=jax.random.key(0).')
    else:
        directions = jax.random.rademacher(key, (probes, n, d), x.dtype)
    # 3. Integrate along the flow.
    options = _Options(min_time=min_time, tolerances=tolerances, max_steps=max_steps)
    score_fn = score_functions.as_pytree(score_fn, (n, d), x.dtype)
    arguments = (directions, x)
    if score_functions.is_traced((score_fn, sde, *arguments)):
        integrate = partial(_integrate_traced, score_fn, sde, options)
    else:
        integrate = score_functions.compile_with_score(
            "log_likelihood", _integrate_density, options, score_fn, sde, *arguments
        )
    value, code = integrate(*arguments)
    if throw and not score_functions.is_traced(code):
        Solution(value=value, result=code, stats={}, state=None).check()
    return value


def _integrate_density(
    score_fn: ScoreFn, sde: VPSDE, options: _Options, directions: Array, x: Array
) -> tuple[Array, Array]:
    """Return log-densities and their result code.

    The mean of vᵀJv over the directions v, [k, n, d], is the trace of J.
    """
    # 1. Differentiate x and log p along the flow; the score is linearised once for all directions.
    d = x.shape[1]
    horizon_angle, data_angle = probability_flow.angles(sde, options.min_time, x.dtype)

    def field(theta: Array, x: Array) -> tuple[Array, Array]:
        t = probability_flow.time_of_angle(sde, theta)
        # x → s(t, x), and v → Jv
        score, jacobian = jax.linearize(lambda x: score_functions.score_at(score_fn, t, x), x)
        traces = lax.map(
            lambda v: jnp.sum(v * jacobian(v), axis=1),
            directions,
            batch_size=min(TRACE_BATCH_SIZE, len(directions)),
        )
        return -jnp.tan(theta) * (x + score), -jnp.tan(theta) * (d + jnp.mean(traces, axis=0))

    # 2. Integrate from the data to T, opposite to the direction of sampling.
    start = (x, jnp.zeros(x.shape[0], x.dtype))
    (x, growth), bad, code = probability_flow.flow(
        field, start, (data_angle, horizon_angle), options.tolerances, options.max_steps
    )
    # 3. Add the log-density at T. Rows that failed have the log-density −∞.
    horizon = probability_flow.time_of_angle(sde, horizon_angle)
    value = growth + _log_density_of_noise(score_fn, horizon, x)
    bad |= ~jnp.isfinite(value)
    return jnp.where(bad | (code != 0), -jnp.inf, value), probability_flow.code_of_rows(bad, code)


_integrate_traced = eqx.filter_jit(_integrate_density)


def _log_density_of_noise(score_fn: ScoreFn, t: Array, x: Array) -> Array:
    """Return log-densities of the Gaussian whose score is the given one at t.

    N(0, I) in its place would neglect the remainder of the data at T.
    """
    # 1. Evaluate the score at the origin and the unit vectors, in batches of n rows: the function
    # was traced for that shape.
    n, d = x.shape
    batch_count = -(-(d + 1) // n)
    points = jnp.eye(batch_count * n, d, -1, x.dtype).reshape(batch_count, n, d)
    scores = lax.map(lambda points: score_functions.score_at(score_fn, t, points), points)
    scores = scores.reshape(-1, d)
    # 2. Factorise the precision P = LLᵀ; then Lᵀ(x − μ) = Lᵀx − L⁻¹s(0).
    precision = scores[:1] - scores[1 : d + 1]
    factor = jnp.linalg.cholesky((precision + precision.T) / 2)
    whitened_mean = jax.scipy.linalg.solve_triangular(factor, scores[0], lower=True)
    whitened = factor.T @ x.T - whitened_mean[:, None]
    return (
        jnp.sum(jnp.log(jnp.diag(factor)))
        - jnp.sum(whitened**2, axis=0) / 2
        - d / 2 * math.log(2 * math.pi)
    )
