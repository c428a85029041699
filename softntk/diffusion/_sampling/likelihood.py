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
    >>> log_p = diffusion.log_likelihood(diffusion.vp_sde(), lambda t, x: -x, jnp.zeros((1, 2)))  # N(0, I)
    >>> bool(abs(log_p[0] + jnp.log(2 * jnp.pi)) < 1e-3)
    True

Source: Song et al. (2021), arXiv 2011.13456, appendix D.2; Grathwohl et al. (2019), arXiv
1810.01367, for the random trace.
"""

import math
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
from softntk.diffusion._distributions import Points
from softntk.diffusion._sampling import probability_flow
from softntk.diffusion._sde import VPSDE, check_sde
from softntk.solution import Solution

TRACES = ("exact", "hutchinson")

_TOGETHER = 16  # directional derivatives taken at once


@static_record
class _Options:
    min_time: float
    tolerances: tuple[float, float]
    max_steps: int


def log_likelihood(
    sde: VPSDE,
    score_fn: probability_flow.ScoreFn,
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

    At T the model is the Gaussian that the score there describes; see the module. With the exact
    score of data what is missing from log p_{min_time}(x) is the third cumulant of X_T, of order
    α(T)³. Data that fill no volume have log-densities that grow as −log h(min_time)/2 with each
    missing dimension: compare models at the same min_time. A min_time below the level at which a
    fitted score is trained asks it for what it has never seen.

    Differentiable in x, in the arrays of score_fn, and in the rates of a process that are traced.

    Args:
        sde: the process.
        score_fn: (t, x) → ∇log p_t(x), [n, d], for a scalar t and x [n, d]; row by row.
        x: [n, d].
        key: randomness, for "hutchinson".
        trace: "exact", by d directional derivatives an evaluation; "hutchinson", by ``probes``:
            unbiased, as the same random signs are kept along the path.
        probes: how many random directions.
        min_time: T₀, between 0 and T: x is taken as X at this time.
        rtol: of each step.
        atol: of each step.
        max_steps: at most so many.
        throw: raise if the score is not finite or max_steps is reached. If not, and always under
            jit and vmap: such rows are −inf.

    Returns:
        [n].

    Raises:
        ValueError: x no finite floating-point matrix, an unknown trace, "hutchinson" without key,
            min_time outside (0, T), numbers that are not positive, a score of another shape than x.
        NumericalError: under ``throw``; the message is the advice.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> random = log_likelihood(vp_sde(), lambda t, x: -x, jnp.ones((1, 2)), key=jax.random.key(0), trace="hutchinson")
        >>> bool(abs(random[0] + jnp.log(2 * jnp.pi) + 1) < 1e-3)  # of a score this simple the random trace is exact
        True

    Source: Song et al. (2021), arXiv 2011.13456, equation 39.
    """
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
    n, d = x.shape
    if trace == "exact":  # √d e_i: the mean of their vᵀJv is the trace
        directions = jnp.broadcast_to(
            jnp.sqrt(jnp.asarray(d, x.dtype)) * jnp.eye(d, dtype=x.dtype)[:, None, :], (d, n, d)
        )
    elif key is None:
        raise ValueError('trace="hutchinson" needs a key, e.g. key=jax.random.key(0).')
    else:
        directions = jax.random.rademacher(key, (probes, n, d), x.dtype)
    options = _Options(min_time=min_time, tolerances=tolerances, max_steps=max_steps)
    score_fn = probability_flow.as_pytree(score_fn, (n, d), x.dtype)
    value, code = _along_the_flow(score_fn, directions, x, sde, options)
    if throw and not probability_flow.is_traced(code):
        Solution(value=value, result=code, stats={}, state=None).check()
    return value


@eqx.filter_jit
def _along_the_flow(
    score_fn: probability_flow.ScoreFn, directions: Array, x: Array, sde: VPSDE, options: _Options
) -> tuple[Array, Array]:
    """Return log-densities, and their code.

    The mean of vᵀJv over the directions v, [k, n, d], is the trace of J.
    """
    d = x.shape[1]
    last, first = probability_flow.angles(sde, options.min_time, x.dtype)

    def field(theta: Array, x: Array) -> tuple[Array, Array]:
        t = probability_flow.time_of_angle(sde, theta)
        score, push = jax.linearize(lambda x: probability_flow.score_at(score_fn, t, x), x)
        traces = lax.map(
            lambda v: jnp.sum(v * push(v), axis=1),
            directions,
            batch_size=min(_TOGETHER, len(directions)),
        )
        return -jnp.tan(theta) * (x + score), -jnp.tan(theta) * (d + jnp.mean(traces, axis=0))

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    (x, growth), bad, code = probability_flow.flow(
        field, start, (first, last), options.tolerances, options.max_steps
    )
    value = growth + _log_density_of_noise(score_fn, probability_flow.time_of_angle(sde, last), x)
    bad |= ~jnp.isfinite(value)
    return jnp.where(bad | (code != 0), -jnp.inf, value), probability_flow.code_of_rows(bad, code)


def _log_density_of_noise(score_fn: probability_flow.ScoreFn, t: Array, x: Array) -> Array:
    """Return log-densities of the Gaussian with the score at t: a start at N(0, I) forgets what is
    left of the data.
    """
    n, d = x.shape
    batches = -(-(d + 1) // n)  # of n rows, which is what the function was traced for
    points = jnp.eye(batches * n, d, -1, x.dtype).reshape(batches, n, d)
    scores = lax.map(lambda points: probability_flow.score_at(score_fn, t, points), points).reshape(
        -1, d
    )
    slopes = scores[:1] - scores[1 : d + 1]
    root = jnp.linalg.cholesky((slopes + slopes.T) / 2)
    solve = lambda b: jax.scipy.linalg.solve_triangular(root, b, lower=True)
    away = root.T @ x.T - solve(scores[0])[:, None]
    return (
        jnp.sum(jnp.log(jnp.diag(root)))
        - jnp.sum(away**2, axis=0) / 2
        - d / 2 * math.log(2 * math.pi)
    )
