r"""The probability-flow equation, for samples and likelihoods.

A VP process is a rotation, X_t = cos θ X_0 + sin θ ε with cos θ = α and sin θ = √h, and in the
angle θ its probability flow is

    dX/dθ = −tan θ (X + s(t, X)) = E[−sin θ X_0 + cos θ ε | X],

for every schedule. The right-hand side is of the size of data and noise at every θ. In t and in
the log-SNR the same accuracy takes more evaluations (see ``_sampling/sample.py``).

Source: the angle, Salimans and Ho (2022), arXiv 2202.00512, section 4 and appendix D.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from softntk._core.ode import diffrax, step_controller
from softntk._core.validation import check_number
from softntk.diffusion._arguments import check_known
from softntk.diffusion._noising_process import VPSDE
from softntk.solution import Result


def angles(sde: VPSDE, min_time: float, dtype: DTypeLike) -> tuple[Array, Array]:
    """Return θ with cos θ = α and sin θ = √h at T and at min_time, accurate at both.

    The first is cut where α is the unit of rounding.
    """
    # arctan2 of both, as α is tiny at T and √h at min_time: neither arccos nor arcsin is accurate
    # at both ends.
    t = jnp.stack([jnp.asarray(sde.horizon, dtype), jnp.asarray(min_time, dtype)])
    first_angle, last_angle = jnp.arctan2(jnp.sqrt(sde.variance(t)), sde.alpha(t))
    max_angle = jnp.arctan(1 / jnp.finfo(dtype).eps).astype(dtype)
    return jnp.minimum(first_angle, max_angle), last_angle


def time_of_angle(sde: VPSDE, theta: Array) -> Array:
    """Return the time at which the angle is θ."""
    # tan θ = √h/α, so that the log-SNR is −2 log tan θ.
    return sde.time(-2 * jnp.log(jnp.tan(theta)))


def flow(
    field: Callable[[Array, Array], tuple[Array, ...]],
    state: tuple[Array, ...],
    ends: tuple[Array, Array],
    tolerances: tuple[float, float],
    max_steps: int,
) -> tuple[tuple[Array, ...], Array, Array]:
    """Integrate all rows of a state with the same steps, each to the tolerance.

    A row whose derivative is not finite stands still from there on, and does not stop the others.

    Args:
        field: (θ, x) → the derivatives of the state, whose first entry is x.
        state: x, [n, d], and quantities integrated along its path, each [n].
        ends: first and last θ.
        tolerances: relative and absolute, of a step: the root mean square over the coordinates of
            x, the most demanding row.
        max_steps: largest number of steps.

    Returns:
        The state at the end; which rows met a derivative that was not finite, [n]; a code, 0 or
        ``Result.MAX_STEPS``.
    """
    dfx = diffrax()

    # 1. Stop rows whose derivative is not finite, and record them in one more integral.
    def guarded_field(
        theta: Array, carry: tuple[tuple[Array, ...], Array], _: None
    ) -> tuple[tuple[Array, ...], Array]:
        derivatives = field(theta, carry[0][0])
        finite = [jnp.isfinite(part).reshape(len(part), -1).all(axis=1) for part in derivatives]
        bad = ~jnp.stack(finite).all(axis=0)
        stopped = tuple(
            jnp.where(jnp.expand_dims(bad, range(1, part.ndim)), 0, part) for part in derivatives
        )
        # The integral of this indicator is positive for rows that were bad at any time.
        return stopped, jnp.where(bad, 1.0, 0.0).astype(carry[1].dtype)

    # 2. Measure the error of a step by the worst row. The second part of the state is the record
    # of stopped rows, which does not count.
    def worst_row_norm(scaled: tuple[tuple[Array, ...], Array]) -> Array:
        return jnp.sqrt(jnp.max(jnp.stack([_mean_squares(part) for part in scaled[0]])))

    # 3. Integrate, from T to min_time or back.
    first_angle, last_angle = ends
    solution = dfx.diffeqsolve(
        dfx.ODETerm(guarded_field),
        dfx.Tsit5(),
        first_angle,
        last_angle,
        None,
        (state, jnp.zeros(state[0].shape[0], state[0].dtype)),
        stepsize_controller=step_controller()(*tolerances, norm=worst_row_norm),
        max_steps=max_steps,
        throw=False,
    )
    # 4. Return the last saved state, the only one.
    state, bad_indicator = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    code = jnp.where(solution.result == dfx.RESULTS.successful, Result.SUCCESSFUL, Result.MAX_STEPS)
    return state, bad_indicator != 0, code.astype(jnp.int32)


def _mean_squares(part: Array) -> Array:
    """Return the mean square of each row, [n]."""
    return jnp.mean(part.reshape(part.shape[0], -1) ** 2, axis=1)


def code_of_rows(bad: Array, code: Array) -> Array:
    """Return ``Result.NONFINITE_SCORE`` if any row is bad, the code otherwise."""
    # Rows that are not finite explain a failure better than the number of steps.
    return lax.select(bad.any(), jnp.asarray(Result.NONFINITE_SCORE, jnp.int32), code)


def check_tolerances(rtol: float, atol: float, dtype: DTypeLike) -> tuple[float, float]:
    """Return the tolerances, checked to be possible in the precision.

    Raises:
        ValueError: rtol not between 10 ε and 1, atol not positive.
    """
    # Below this the error estimate of a step is rounding, and steps would be refused for ever.
    min_rtol = 10 * float(jnp.finfo(dtype).eps)
    rtol = check_known("rtol", check_number("rtol", rtol, infinite=True))
    if not min_rtol <= rtol < 1:
        raise ValueError(
            f"rtol must lie between {min_rtol:.2g}, what {jnp.dtype(dtype)} can give, and 1, got "
            f"{rtol!r}."
        )
    return rtol, check_known("atol", check_number("atol", atol, above=0))
