r"""Steps from a few products with the true curvature: its model on a Krylov space.

With P = RᵀR the preconditioner, k Lanczos steps on K = R⁻ᵀHR⁻¹ from R⁻ᵀg give an orthonormal Q and
a tridiagonal T = QᵀKQ. On that space the minimiser of the model is the result of k conjugate
gradient steps. And since the space is stored, a damped step with another radius costs no further
product. The eigenvalues of T, the Ritz values, lie inside of the spectrum of P⁻¹H, so that

    ε = max |θ − 1|

measures, from below and at no cost, how far the preconditioner is from (1 − ε)P ≼ H ≼ (1 + ε)P.

| symbol | meaning | shape |
|---|---|---|
| Qᵀ | ``vectors``, one row for each product and one more | [k + 1, d] |
| T | ``diagonal``, ``off_diagonal`` | [k], [k] |
| θ | ``ritz_values``, ascending | [k] |

Source: Gould, Lucidi, Roma and Toint (1999), SIAM J. Optim. 9, 504–525; Golub and Van Loan (2013),
Matrix Computations, chapter 10; Eisenstat and Walker (1996), SIAM J. Sci. Comput. 17, 16–32 (to
which accuracy to solve).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._core.typing import Vector
from softntk._linalg.norms import scaled_norm
from softntk._linalg.products import product
from softntk.solvers._diagnostics import Step
from softntk.solvers._newton.globalisation import (
    Damping,
    NewtonCandidate,
    newton_or_damped_step,
    search,
)
from softntk.solvers._newton.model import (
    DiagonalModel,
    LossAlongStep,
    Scalar,
    StepResult,
    step_result,
)

# Products after the first negative curvature, to find directions where it is more negative.
PRODUCTS_AFTER_INDEFINITE = 8

LinearMap = Callable[[Vector], Vector]


@runtime_checkable
class Root(Protocol):
    """A root of a preconditioner P: P⁻¹ = R⁻¹R⁻ᵀ. R⁻¹ need not be square."""

    def solve_root(self, V: Float[Array, "q *r"]) -> Float[Array, "d *r"]:
        """Return R⁻¹V."""
        ...

    def solve_root_transposed(self, V: Float[Array, "d *r"]) -> Float[Array, "q *r"]:
        """Return R⁻ᵀV."""
        ...


class KrylovModel(NamedTuple):
    """The quadratic model on a Krylov space, and what it cost.

    Attributes:
        model: the quadratic model in the Ritz vectors.
        products: number of products with the curvature.
        distortion: a lower bound of ε.
    """

    model: DiagonalModel
    products: Int[Array, ""]
    distortion: Scalar


class _LanczosState(NamedTuple):
    """State of the Lanczos iteration.

    Attributes:
        count: number of products.
        vectors: the rows of Qᵀ; those of later steps are zero.
        diagonal: the diagonal of T.
        off_diagonal: the entries below the diagonal of T.
        pivot: the last pivot of T = LDLᵀ.
        residual: relative residual that conjugate gradients would have.
        products_left: how many more products are allowed.
        is_indefinite: whether T has shown a negative curvature.
        done: whether the residual is small enough or the space is exhausted.
    """

    count: Int[Array, ""]
    vectors: Float[Array, "k_plus_one d"]
    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k"]
    pivot: Scalar
    residual: Scalar
    products_left: Int[Array, ""]
    is_indefinite: Bool[Array, ""]
    done: Bool[Array, ""]


def krylov_model(
    multiply: LinearMap,
    factor: Root | None,
    g: Vector,
    value: Scalar,
    rtol: float | Scalar,
    max_steps: int,
) -> KrylovModel:
    """Return the model on the Krylov space of the preconditioned gradient.

    Run reorthogonalised Lanczos until the equivalent CG residual falls below rtol, the Krylov space
    is exhausted, or max_steps products are used. At a stationary point the first vector is random:
    there is no other way to find negative curvature.

    Args:
        multiply: v ↦ Hv.
        factor: a root of the preconditioner, R⁻¹ and R⁻ᵀ; None for the identity.
        g: the gradient.
        value: the loss, which tells a zero gradient from a small one.
        rtol: relative residual to reach.
        max_steps: largest number of products.
    """
    # 1. The first vector, R⁻ᵀg or random.
    solve_root = _identity if factor is None else factor.solve_root
    solve_root_transposed = _identity if factor is None else factor.solve_root_transposed
    eps = jnp.finfo(g.dtype).eps
    first_vector = solve_root_transposed(g)
    # A root need not be square: the space is that of its columns.
    d = len(first_vector)
    gradient_norm = scaled_norm(first_vector)
    # Preconditioned, ‖g‖² has the unit of the loss; otherwise there is nothing to compare with.
    min_gradient_norm = 0.0 if factor is None else eps * jnp.sqrt(jnp.abs(value))
    is_stationary = ~(gradient_norm > min_gradient_norm)
    random_vector = jax.random.normal(jax.random.key(0), (d,), g.dtype)
    first_vector = jnp.where(is_stationary, random_vector, first_vector)
    k = min(max_steps, d)
    first_state = _LanczosState(
        count=jnp.asarray(0, jnp.int32),
        vectors=jnp.zeros((k + 1, d), g.dtype).at[0].set(first_vector / scaled_norm(first_vector)),
        diagonal=jnp.zeros(k, g.dtype),
        off_diagonal=jnp.zeros(k, g.dtype),
        pivot=jnp.ones((), g.dtype),
        residual=jnp.ones((), g.dtype),
        products_left=jnp.asarray(k, jnp.int32),
        is_indefinite=jnp.asarray(False),
        done=~jnp.isfinite(gradient_norm),
    )

    # 2. Lanczos.
    def is_unfinished(state: _LanczosState) -> Bool[Array, ""]:
        return ~state.done & (state.products_left > 0)

    def step(state: _LanczosState) -> _LanczosState:
        q = state.vectors[state.count]
        return _lanczos_step(state, q, solve_root_transposed(multiply(solve_root(q))), rtol)

    state = lax.while_loop(is_unfinished, step, first_state)

    # 3. Ritz values and vectors.
    return _ritz_model(state, solve_root, g, scale_by_norm=factor is None)


def _identity(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the argument."""
    return v


def _lanczos_step(
    state: _LanczosState, q: Vector, image: Vector, rtol: float | Scalar
) -> _LanczosState:
    """Return the state after one product, ``image`` = K q with the last vector q.

    The pivots of T = LDLᵀ and the residual are those of conjugate gradients: pivot ≤ 0 is the first
    sign of negative curvature, and residual · off/|pivot| the next residual.
    """
    # 1. Orthogonalise against all vectors, twice (once is not enough in floating point).
    eps = jnp.finfo(image.dtype).eps
    diagonal = jnp.dot(q, image)
    for _ in range(2):
        image = image - product(product(state.vectors, image), state.vectors)
    off_diagonal = scaled_norm(image)

    # 2. Pivot and residual.
    last_off = jnp.where(state.count > 0, state.off_diagonal[state.count - 1], 0)
    pivot = diagonal - last_off * (last_off / state.pivot)
    residual = state.residual * off_diagonal / jnp.abs(pivot)
    is_convex = pivot > 0

    # 3. The products that are left: all while T is definite, few after it has become indefinite.
    products_left = jnp.where(
        is_convex | state.is_indefinite,
        state.products_left - 1,
        jnp.minimum(state.products_left - 1, PRODUCTS_AFTER_INDEFINITE),
    )
    is_exhausted = ~(off_diagonal > 8 * eps * (jnp.abs(diagonal) + last_off))
    next_vector = jnp.where(is_exhausted, 0, image / jnp.where(off_diagonal > 0, off_diagonal, 1))
    # A pivot of zero is replaced by a tiny one, by which the next step can divide.
    tiny_pivot = jnp.where(off_diagonal > 0, eps * off_diagonal, eps)
    return _LanczosState(
        count=state.count + 1,
        vectors=state.vectors.at[state.count + 1].set(next_vector),
        diagonal=state.diagonal.at[state.count].set(diagonal),
        off_diagonal=state.off_diagonal.at[state.count].set(off_diagonal),
        pivot=jnp.where(pivot == 0, tiny_pivot, pivot),
        residual=residual,
        products_left=products_left,
        is_indefinite=state.is_indefinite | ~is_convex,
        done=is_exhausted | (is_convex & ~state.is_indefinite & (residual <= rtol)),
    )


def _ritz_model(
    state: _LanczosState, solve_root: LinearMap, g: Vector, *, scale_by_norm: bool
) -> KrylovModel:
    """Return the model in the Ritz vectors; ``scale_by_norm`` makes ‖H‖ I the metric."""
    # 1. T. Unused places get an eigenvalue above its spectrum, and will have no part of the
    # gradient.
    d = len(g)
    eps = jnp.finfo(g.dtype).eps
    k = len(state.diagonal)
    is_used = jnp.arange(k, dtype=jnp.int32) < state.count
    T = jnp.diag(jnp.where(is_used, state.diagonal, 0))
    off_diagonal = jnp.where(is_used[1:], state.off_diagonal[:-1], 0)
    T = T + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    T = jnp.where(jnp.isfinite(T).all(), T, 0)
    largest_entry = jnp.max(jnp.abs(T))
    unused_value = jnp.where(largest_entry > 0, 4 * largest_entry, 1)
    T = T + jnp.diag(jnp.where(is_used, 0, unused_value))

    # 2. Its eigenvalues. The eigenvector of a Ritz value lies in the places that were used.
    ritz_values, ritz_vectors = jnp.linalg.eigh(T)
    used_weights = jnp.sum(jnp.where(is_used[:, None], ritz_vectors**2, 0), axis=0)
    is_ritz_value = used_weights > 0.5
    lanczos_vectors = jnp.where(is_used[:, None], state.vectors[:k], 0)
    basis = solve_root(product(lanczos_vectors.T, ritz_vectors))
    gradient = product(basis.T, g)
    largest_ritz = jnp.max(jnp.abs(jnp.where(is_ritz_value, ritz_values, 0)))
    is_indefinite = ritz_values[0] < -4 * d * eps * largest_ritz
    distortion = jnp.max(jnp.where(is_ritz_value, jnp.abs(ritz_values - 1), 0))

    # 3. Without a preconditioner the metric is ‖H‖ times the identity, so that no unit matters.
    if scale_by_norm:
        curvature_norm = jnp.where(largest_ritz > 0, largest_ritz, 1)
        metric_root = jnp.sqrt(curvature_norm)
        ritz_values = ritz_values / curvature_norm
        basis = basis / metric_root
        gradient = gradient / metric_root
    model = DiagonalModel(ritz_values, basis, gradient, is_indefinite)
    return KrylovModel(model, state.count, distortion)


def damped_step(
    space: KrylovModel,
    method: Damping,
    loss: LossAlongStep,
    damping: Scalar,
    fallback: Callable[[], StepResult] | None = None,
    *,
    postpones_damping: bool = False,
) -> StepResult:
    """Return the minimiser on the space if the loss falls as predicted, else a damped step.

    ``fallback`` replaces the damped step on the space: the space has only a small part of a
    curvature that is not convex. With ``postpones_damping`` no damped step is taken; the kind is
    then POSTPONED.
    """
    # 1. The minimiser y = −c/θ, where the model is convex.
    model = space.model
    is_convex = model.curvatures[0] > 0
    y = jnp.where(is_convex, -model.gradient / jnp.where(is_convex, model.curvatures, 1), 0)
    step = model.step(y)
    predicted_decrease = model.decrease(y)
    slope = jnp.dot(model.gradient, y)
    candidate = NewtonCandidate(step, slope, predicted_decrease, is_convex, model.curvatures[0])

    # 2. That step, or a damped one.
    def search_on_space() -> StepResult:
        return search(method, model, loss, damping)

    return newton_or_damped_step(
        candidate,
        method,
        loss,
        damping,
        search_on_space if fallback is None else fallback,
        postpones_damping=postpones_damping,
    )


def undamped_step(space: KrylovModel) -> StepResult:
    """Return −|T|⁻¹ times the gradient on the space, which is a descent direction for any T.

    Where the model is convex it is Newton's step.
    """
    model = space.model
    sizes = jnp.abs(model.curvatures)
    min_curvature = jnp.sqrt(jnp.finfo(sizes.dtype).eps) * jnp.max(sizes)
    y = -model.gradient / jnp.maximum(sizes, min_curvature)
    kind = jnp.where(model.curvatures[0] > 0, Step.NEWTON, Step.ABSOLUTE)
    return step_result(model.step(y), 0.0, kind, model.is_indefinite, model.curvatures[0])
