r"""Steps on a curvature that is a matrix, [d, d]: Newton's by Cholesky, and where that will not do
the spectrum.

The metric M is the Gauss–Newton matrix, or the diagonal of |H|. With the first, steps are measured
by how much they move the predictions, so that neither units nor the condition of the data matter:
on rows of heavy-tailed scale half as many steps are taken as with a diagonal. It costs a second
Gram product and the eigenvectors of C⁻¹HC⁻ᵀ, M = CCᵀ, and only where Newton's step is no good.

Gauss–Newton may be blind to a direction that H is not (a loss of the direction of x only: Mx = 0,
Hx = −g), and then hardly gets on: where a step promises little, one in the diagonal metric is tried
as well, and the better one taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._linalg.products import product
from softntk._linalg.scaled_cholesky import Matrix, Vector, factorise
from softntk.solvers._newton.globalisation import GOOD, Damping, search
from softntk.solvers._newton.model import (
    Outcome,
    Spectrum,
    Step,
    Trial,
    judge,
    outcome,
)

_FLOOR = 64  # roundings that the metric is raised by, so that flat directions stay finite
# of the loss: a step that promises to lower it by less is compared with one in the other metric
_POOR = 0.01


def diagonal(H: Matrix) -> Matrix:
    """The metric of Jacobi: |H_ii|."""
    sizes = jnp.abs(jnp.diagonal(H))
    return jnp.diag(jnp.maximum(sizes, jnp.finfo(H.dtype).eps * jnp.max(sizes)))


def spectrum(H: Matrix, M: Matrix, g: Vector, rounding: Vector | None = None) -> Spectrum:
    """Return the spectrum of R⁻ᵀHR⁻¹ for M = RᵀR.

    Args:
        H: the curvature.
        M: the metric.
        g: the gradient.
        rounding: r, where |H_jk| was computed with an error of r_j r_k; None: of a few ε |H_jk|.
    """
    factor = factorise(M, _FLOOR)
    K = factor.solve_root_transposed(factor.solve_root_transposed(H).T)
    values, vectors = jnp.linalg.eigh(0.5 * (K + K.T))
    back = factor.solve_root(vectors)
    # The smallest counts as negative if it is beyond the rounding of the terms that it is the sum
    # of.
    v = back[:, 0]
    smallest = jnp.dot(v, product(H, v))
    noise = jnp.dot(jnp.abs(v), product(jnp.abs(H), jnp.abs(v)))
    error = 4 * len(g) * jnp.finfo(H.dtype).eps * noise
    if rounding is not None:
        error = error + jnp.dot(jnp.abs(v), rounding) ** 2
    negative = smallest < -error
    return Spectrum(values, back, product(back.T, g), negative)


def newton(H: Matrix, g: Vector) -> tuple[Vector, Bool[Array, ""]]:
    """−H⁻¹g, refined once, and whether H is positive definite; zero where it is not."""
    factor = factorise(H)
    step = -factor.inverse(g)
    step = step - factor.inverse(g + product(H, step))
    usable = factor.definite & jnp.isfinite(step).all()
    return jnp.where(usable, step, 0), usable


def damped(
    H: Matrix,
    metric: Callable[[], Matrix] | None,
    g: Vector,
    damping: Damping,
    trial: Trial,
    level: Float[Array, ""],
    rounding: Callable[[], Vector] | None = None,
) -> Outcome:
    """Newton's step where H is positive definite and the loss falls as the model says, else a
    damped one.

    In the metric that is given, if any, or in the diagonal one.
    """
    step, definite = newton(H, g)
    slope = jnp.dot(g, step)
    predicted = -0.5 * slope
    good = lax.cond(
        definite, lambda: judge(trial, step, slope, predicted) > GOOD, lambda: jnp.asarray(False)
    )
    tried = definite.astype(jnp.int32)

    def search_in(M: Matrix, level: Float[Array, ""]) -> Outcome:
        model = spectrum(H, M, g, None if rounding is None else rounding())
        return search(damping, model, trial, level)

    def in_both(metric: Callable[[], Matrix]) -> Outcome:
        """Search in the metric, and where that promises little in the diagonal one: a loop, so that
        it stands here once.
        """

        def better(first: Outcome, other: Outcome) -> Outcome:
            wins = trial.after(other.step) < trial.after(first.step)
            # The metrics have a damping each: that of the other starts anew.
            chosen = jax.tree.map(
                lambda a, b: jnp.where(wins, a, b), other._replace(damping=level), first
            )
            return chosen._replace(evaluations=first.evaluations + other.evaluations + 2)

        def unfinished(carry: tuple[Array, Outcome]) -> Array:
            count, best = carry
            return (count == 0) | ((count == 1) & (best.predicted < _POOR * jnp.abs(trial.value)))

        def search_next(carry: tuple[Array, Outcome]) -> tuple[Array, Outcome]:
            count, best = carry
            first = count == 0
            M = lax.cond(first, metric, lambda: diagonal(H))
            found = search_in(M, jnp.where(first, level, 0))
            return count + 1, lax.cond(first, lambda: found, lambda: better(best, found))

        nothing = outcome(jnp.zeros_like(g), level, Step.NONE)
        return lax.while_loop(unfinished, search_next, (jnp.zeros((), jnp.int32), nothing))[1]

    def searched() -> Outcome:
        found = search_in(diagonal(H), level) if metric is None else in_both(metric)
        return found._replace(evaluations=found.evaluations + tried)

    taken = lambda: outcome(
        step, damping.after_newton(level, predicted), Step.NEWTON, evaluations=tried
    )
    return lax.cond(good, taken, searched)


def undamped(H: Matrix, metric: Callable[[], Matrix] | None, g: Vector) -> Outcome:
    """Newton's step where H is positive definite; else −M⁻¹g, or −|H|⁻¹g without a metric: a
    descent direction in any case.
    """
    step, definite = newton(H, g)

    def modified() -> Outcome:
        d, eps = len(g), jnp.finfo(H.dtype).eps
        values, vectors = jnp.linalg.eigh(H)
        largest = jnp.max(jnp.abs(values))
        negative = values[0] < -4 * d * eps * largest
        turned = -product(
            vectors, product(vectors.T, g) / jnp.maximum(jnp.abs(values), jnp.sqrt(eps) * largest)
        )
        if metric is None:
            return outcome(turned, 0.0, Step.ABSOLUTE, negative, values[0])
        factor = factorise(metric(), _FLOOR)
        kind = jnp.where(factor.definite, Step.GAUSS_NEWTON, Step.ABSOLUTE)
        return outcome(
            jnp.where(factor.definite, -factor.inverse(g), turned), 0.0, kind, negative, values[0]
        )

    found = lax.cond(definite, lambda: outcome(step, 0.0, Step.NEWTON), modified)
    return found._replace(step=jnp.where(jnp.isfinite(found.step).all(), found.step, -g))
