r"""Steps from a few products with the true curvature: its model on the Krylov space of the
preconditioned gradient.

With P = RᵀR the preconditioner, k Lanczos steps on K = R⁻ᵀHR⁻¹ from R⁻ᵀg give an orthonormal Q and
a tridiagonal T = QᵀKQ. On that space the minimiser of the model is that of k conjugate gradient
steps; and since the space is kept, so is every damped step: another trust region costs no product.
The eigenvalues of T, the Ritz values, lie inside of the spectrum of P⁻¹H, so that

    ε = max |θ − 1|

measures, from below and for nothing, how far the preconditioner is from (1 − ε)P ≼ H ≼ (1 + ε)P.

Source: Gould, Lucidi, Roma and Toint (1999), SIAM J. Optim. 9, 504–525; Golub and Van Loan (2013),
Matrix Computations, chapter 10; Eisenstat and Walker (1996), SIAM J. Sci. Comput. 17, 16–32 (how
exactly to solve).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from softntk._linalg.norms import scaled_norm
from softntk._linalg.products import product
from softntk._linalg.scaled_cholesky import Factor
from softntk.solvers._newton.globalisation import GOOD, Damping, search
from softntk.solvers._newton.model import (
    Outcome,
    Spectrum,
    Step,
    Trial,
    judge,
    outcome,
)

_BEYOND = 8  # products after the first negative curvature, which learn how it goes on

Vector = Float[Array, " d"]
Apply = Callable[[Vector], Vector]


class Krylov(NamedTuple):
    """The model on the space, and what it cost to make."""

    model: Spectrum
    products: Int[Array, ""]
    distortion: Float[Array, ""]
    """ε as far as it was seen."""


class _State(NamedTuple):
    count: Array
    basis: Array  # Q, [k + 1, d]
    diagonal: Array  # of T
    off: Array  # below it
    pivot: Array  # of T = LDLᵀ, the last one
    residual: Array  # of the conjugate gradients, relative
    room: Array  # products that are left
    indefinite: Array  # whether T is
    done: Array


def krylov(
    multiply: Apply,
    factor: Factor | None,
    g: Vector,
    value: Array,
    rtol: float | Array,
    max_steps: int,
) -> Krylov:
    """Lanczos, reorthogonalised, until conjugate gradients would have reached ``rtol``, the space
    is exhausted or k is.

    At a stationary point the first vector is random: there is no other way to see negative
    curvature.
    """
    halved, transposed = (
        (lambda v: v, lambda v: v)
        if factor is None
        else (factor.solve_root, factor.solve_root_transposed)
    )
    d, eps = len(g), jnp.finfo(g.dtype).eps
    first = transposed(g)
    size = scaled_norm(first)
    # Preconditioned, ‖g‖² is in the unit of the loss; otherwise there is nothing to compare with.
    least = 0.0 if factor is None else eps * jnp.sqrt(jnp.abs(value))
    stationary = ~(size > least)
    first = jnp.where(stationary, jax.random.normal(jax.random.key(0), (d,), g.dtype), first)
    k = min(max_steps, d)
    start = _State(
        count=jnp.asarray(0, jnp.int32),
        basis=jnp.zeros((k + 1, d), g.dtype).at[0].set(first / scaled_norm(first)),
        diagonal=jnp.zeros(k, g.dtype),
        off=jnp.zeros(k, g.dtype),
        pivot=jnp.ones((), g.dtype),
        residual=jnp.ones((), g.dtype),
        room=jnp.asarray(k, jnp.int32),
        indefinite=jnp.asarray(False),
        done=~jnp.isfinite(size),
    )

    def step(s: _State) -> _State:
        q = s.basis[s.count]
        image = transposed(multiply(halved(q)))
        diagonal = jnp.dot(q, image)
        for _ in range(2):
            image = image - product(product(s.basis, image), s.basis)
        off = scaled_norm(image)
        before = jnp.where(s.count > 0, s.off[s.count - 1], 0)
        pivot = diagonal - before * (before / s.pivot)
        residual = s.residual * off / jnp.abs(pivot)
        convex = pivot > 0
        room = jnp.where(convex | s.indefinite, s.room - 1, jnp.minimum(s.room - 1, _BEYOND))
        exhausted = ~(off > 8 * eps * (jnp.abs(diagonal) + before))
        return _State(
            count=s.count + 1,
            basis=s.basis.at[s.count + 1].set(
                jnp.where(exhausted, 0, image / jnp.where(off > 0, off, 1))
            ),
            diagonal=s.diagonal.at[s.count].set(diagonal),
            off=s.off.at[s.count].set(off),
            pivot=jnp.where(pivot == 0, jnp.where(off > 0, eps * off, eps), pivot),
            residual=residual,
            room=room,
            indefinite=s.indefinite | ~convex,
            done=exhausted | (convex & ~s.indefinite & (residual <= rtol)),
        )

    s = lax.while_loop(lambda s: ~s.done & (s.room > 0), step, start)
    used = jnp.arange(k, dtype=jnp.int32) < s.count
    T = jnp.diag(jnp.where(used, s.diagonal, 0))
    off = jnp.where(used[1:], s.off[:-1], 0)
    T = T + jnp.diag(off, 1) + jnp.diag(off, -1)
    T = jnp.where(jnp.isfinite(T).all(), T, 0)
    # Places that were not used become values above all others, without slope.
    largest = jnp.max(jnp.abs(T))
    T = T + jnp.diag(jnp.where(used, 0, jnp.where(largest > 0, 4 * largest, 1)))
    values, vectors = jnp.linalg.eigh(T)
    weights = jnp.sum(jnp.where(used[:, None], vectors**2, 0), axis=0) > 0.5
    basis = jnp.where(used[:, None], s.basis[:k], 0)
    back = halved(product(basis.T, vectors))
    slope = product(back.T, g)
    negative = values[0] < -4 * d * eps * jnp.max(jnp.abs(jnp.where(weights, values, 0)))
    distortion = jnp.max(jnp.where(weights, jnp.abs(values - 1), 0))
    if factor is None:
        # Without a preconditioner the metric is ‖H‖ times the identity, so that no unit matters.
        top = jnp.max(jnp.where(weights, jnp.abs(values), 0))
        root = jnp.sqrt(jnp.where(top > 0, top, 1))
        values = values / jnp.where(top > 0, top, 1)
        back = back / root
        slope = slope / root
    return Krylov(Spectrum(values, back, slope, negative), s.count, distortion)


def damped(
    space: Krylov,
    damping: Damping,
    trial: Trial,
    level: Float[Array, ""],
    otherwise: Callable[[], Outcome] | None = None,
) -> Outcome:
    """The minimiser on the space where the model is convex there and the loss falls as it says,
    else a damped step.

    ``otherwise`` is taken instead of the damped step on the space, which sees little of a curvature
    that is not convex.
    """
    model = space.model
    convex = model.values[0] > 0
    y = jnp.where(convex, -model.slope / jnp.where(convex, model.values, 1), 0)
    step, predicted = model.step(y), model.decrease(y)
    slope = jnp.dot(model.slope, y)
    good = lax.cond(
        convex, lambda: judge(trial, step, slope, predicted) > GOOD, lambda: jnp.asarray(False)
    )
    tried = convex.astype(jnp.int32)

    def searched() -> Outcome:
        found = search(damping, model, trial, level) if otherwise is None else otherwise()
        return found._replace(evaluations=found.evaluations + tried)

    def taken() -> Outcome:
        return outcome(
            step, damping.after_newton(level, predicted), Step.NEWTON, False, model.values[0], tried
        )

    return lax.cond(good, taken, searched)


def undamped(space: Krylov) -> Outcome:
    """−|T|⁻¹ times the gradient, on the space: Newton's step where the model is convex, a descent
    direction in any case.
    """
    model = space.model
    sizes = jnp.abs(model.values)
    y = -model.slope / jnp.maximum(sizes, jnp.sqrt(jnp.finfo(sizes.dtype).eps) * jnp.max(sizes))
    kind = jnp.where(model.values[0] > 0, Step.NEWTON, Step.ABSOLUTE)
    return outcome(model.step(y), 0.0, kind, model.negative, model.values[0])
