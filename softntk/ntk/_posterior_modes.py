r"""Mode and curvature of a Gaussian process whose observations are classes.

With the kernel K as prior covariance of the outputs F [n, k], F = K a, ℓ the cross-entropy, g and
Λ = QQᵀ its gradient and Hessian in the outputs, the mode solves a + g(Ka) = 0, and

    E = (K + Λ⁻¹)⁻¹ = Q (I + QᵀKQ)⁻¹ Qᵀ,      Newton's step  δa = −(I − EK)(a + g).

Two ways to E, one for each shape of the kernel:

| kernel | factorised | operations |
|---|---|---|
| [n, n, k, k] | I + QᵀKQ = LLᵀ | (nk)³/3 |
| [n, n], of every class | I + √π_c K √π_c = L_c L_cᵀ for each class, Σ_c E_c = MMᵀ | ~ k n³ |

Newton's equations are solved by conjugate gradients, which cost a product with K each, and only
those of the last step by factors. In the second row E = diag(E_c) − [E_c (MMᵀ)⁻¹ E_c'] with
E_c = √π_c (L_c L_cᵀ)⁻¹ √π_c, because Λ is diag(π_c) less a matrix of rank n.

Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, algorithms 3.3 and
3.4, with steps in the form of a residual; MATHEMATICS.md#laplace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from softntk._linalg.gram_arrays import as_cross_matrix
from softntk._linalg.products import product
from softntk._output_losses import OUTPUT_LOSSES
from softntk.ntk._laplace_formulas import output_factor, sum_log_diagonal

Outputs = Float[Array, "n k"]

LOSS = OUTPUT_LOSSES["cross_entropy"]
MAX_STEPS = 100
# Conjugate gradients: iterations, and the residual in the norm of K relative to the first.
MAX_ITERATIONS = 500
RELATIVE_RESIDUAL = 1e-3
# Halvings of a step that does not lower the objective.
MAX_HALVINGS = 30


class ClassFactor(NamedTuple):
    """Factors of E for a kernel that is the same for every class.

    Attributes:
        roots: √π_c, [n, k].
        triangles: L_c, [k, n, n].
        coupling: M, [n, n].
    """

    roots: Float[Array, "n k"]
    triangles: Float[Array, "k n n"]
    coupling: Float[Array, "n n"]


class FullFactor(NamedTuple):
    """Factor of E for a kernel of all outputs.

    Attributes:
        triangle: L, [n·k, n·k].
    """

    triangle: Float[Array, "p p"]


Factor = ClassFactor | FullFactor


class Mode(NamedTuple):
    """The mode of the posterior, differentiable in the kernel.

    Attributes:
        weights: a = K⁻¹F, [n, k].
        outputs: F, [n, k].
        factor: of E at the mode.
        log_evidence: log p(Y), by Laplace's approximation, [].
        has_converged: whether the last step was small, in standard deviations of the posterior.
        steps: Newton steps.
    """

    weights: Outputs
    outputs: Outputs
    factor: Factor
    log_evidence: Float[Array, ""]
    has_converged: Bool[Array, ""]
    steps: Int[Array, ""]


@jax.jit
def find_mode(kernel: Float[Array, "n n"] | Float[Array, "n n k k"], targets: Outputs) -> Mode:
    """Return the mode, by Newton's method with halved steps.

    Under differentiation the last step alone is followed: its derivative at a root is that of the
    implicit function theorem.
    """
    # 1. The mode, by a loop that is not differentiated.
    fixed_kernel = lax.stop_gradient(kernel)
    start = jnp.zeros_like(targets)
    weights, steps, has_converged = _iterate(fixed_kernel, targets, start)

    # 2. One step more, from constant weights, with the kernel that may have derivatives.
    outputs = apply_kernel(fixed_kernel, weights)
    factor = factorise(fixed_kernel, outputs, targets)
    residual = weights + LOSS.gradient(apply_kernel(kernel, weights), targets)
    weights = (
        weights
        - residual
        + apply_inverse(factor, outputs, targets, apply_kernel(fixed_kernel, residual))
    )

    # 3. Curvature and evidence there.
    outputs = apply_kernel(kernel, weights)
    factor = factorise(kernel, outputs, targets)
    log_likelihood = -jnp.sum(LOSS.values(outputs, targets))
    log_prior = -0.5 * jnp.sum(weights * outputs)
    log_evidence = log_likelihood + log_prior - half_log_determinant(factor)
    return Mode(weights, outputs, factor, log_evidence, has_converged, steps)


def _iterate(
    kernel: Array, targets: Outputs, start: Outputs
) -> tuple[Outputs, Int[Array, ""], Bool[Array, ""]]:
    """Return weights at the mode, the number of steps, and whether they suffice.

    Steps end where Newton's decrement δFᵀ(K⁻¹ + Λ)δF, the square of the step in standard deviations
    of the posterior, is below the rounding of the objective, or where the objective falls no more.
    """
    eps = float(jnp.finfo(targets.dtype).eps)

    def is_running(state: _State) -> Bool[Array, ""]:
        return (
            (state.decrement > eps * state.objective)
            & ~state.has_stalled
            & (state.step < MAX_STEPS)
        )

    def take_step(state: _State) -> _State:
        # 1. Newton's direction.
        residual = state.weights + LOSS.gradient(state.outputs, targets)
        direction = _iterated_direction(kernel, state.outputs, targets, residual)
        output_change = apply_kernel(kernel, direction)

        # 2. The first of its halves that does not raise the objective.
        objective, length = _search(state, direction, output_change, targets)
        return _State(
            weights=state.weights + length * direction,
            outputs=state.outputs + length * output_change,
            objective=objective,
            decrement=jnp.abs(jnp.sum(residual * output_change)),
            has_stalled=~(objective < state.objective),
            step=state.step + 1,
        )

    zero = jnp.zeros((), targets.dtype)
    at_start = _objective(start, start, targets)
    start_state = _State(start, start, at_start, zero + jnp.inf, zero > 0, jnp.zeros((), jnp.int32))
    state = lax.while_loop(is_running, take_step, start_state)
    # A decrement that has stalled is rounding: of it more is allowed.
    return state.weights, state.step, state.decrement <= eps**0.5 * state.objective


def _exact_direction(
    kernel: Array, outputs: Outputs, targets: Outputs, residual: Outputs
) -> Outputs:
    """Return −(I − EK) residual by the factors of E."""
    factor = factorise(kernel, outputs, targets)
    image = apply_kernel(kernel, residual)
    return apply_inverse(factor, outputs, targets, image) - residual


def _iterated_direction(
    kernel: Array, outputs: Outputs, targets: Outputs, residual: Outputs
) -> Outputs:
    """Solve (I + ΛK) δa = −residual by conjugate gradients in the inner product of K.

    The matrix is symmetric in it, and the error is smallest in the metric K⁻¹ + Λ of the outputs,
    that of the decrement.
    """
    curvature = LOSS.curvature(outputs, targets)

    def is_running(state: _Iteration) -> Bool[Array, ""]:
        return (state.square > goal) & (state.iteration < MAX_ITERATIONS)

    def iterate(state: _Iteration) -> _Iteration:
        # With p the direction, the product K p is carried along, so that each needs one with K.
        bent = curvature.root(curvature.root_transposed(state.direction_image))
        product_of_matrix = state.direction + bent
        step = state.square / jnp.sum(state.direction_image * product_of_matrix)
        remainder = state.remainder - step * product_of_matrix
        image = apply_kernel(kernel, remainder)
        square = jnp.sum(remainder * image)
        ratio = square / state.square
        return _Iteration(
            solution=state.solution + step * state.direction,
            remainder=remainder,
            square=square,
            direction=remainder + ratio * state.direction,
            direction_image=image + ratio * state.direction_image,
            iteration=state.iteration + 1,
        )

    image = apply_kernel(kernel, -residual)
    square = jnp.sum(-residual * image)
    goal = RELATIVE_RESIDUAL**2 * square
    start = _Iteration(
        solution=jnp.zeros_like(residual),
        remainder=-residual,
        square=square,
        direction=-residual,
        direction_image=image,
        iteration=jnp.zeros((), jnp.int32),
    )
    return lax.while_loop(is_running, iterate, start).solution


class _Iteration(NamedTuple):
    """What conjugate gradients carry: ``square`` is that of the remainder in the norm of K."""

    solution: Outputs
    remainder: Outputs
    square: Float[Array, ""]
    direction: Outputs
    direction_image: Outputs
    iteration: Int[Array, ""]


class _State(NamedTuple):
    """What Newton's method carries: F = K a, the objective, the last decrement."""

    weights: Outputs
    outputs: Outputs
    objective: Float[Array, ""]
    decrement: Float[Array, ""]
    has_stalled: Bool[Array, ""]
    step: Int[Array, ""]


def _objective(weights: Outputs, outputs: Outputs, targets: Outputs) -> Float[Array, ""]:
    """Return −log p(Y|F) + ½⟨a, F⟩."""
    return jnp.sum(LOSS.values(outputs, targets)) + 0.5 * jnp.sum(weights * outputs)


def _search(
    state: _State, direction: Outputs, output_change: Outputs, targets: Outputs
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the objective and the length, the first of 1, ½, ¼ … that does not raise it."""

    def objective(length: Array) -> Array:
        return _objective(
            state.weights + length * direction, state.outputs + length * output_change, targets
        )

    def is_too_long(trial: tuple) -> Bool[Array, ""]:
        value, _, halvings = trial
        return ~(value <= state.objective) & (halvings < MAX_HALVINGS)

    def halve(trial: tuple) -> tuple:
        _, length, halvings = trial
        return objective(0.5 * length), 0.5 * length, halvings + 1

    one = jnp.ones((), targets.dtype)
    start = (objective(one), one, jnp.zeros((), jnp.int32))
    value, length, _ = lax.while_loop(is_too_long, halve, start)
    is_lower = value <= state.objective
    return jnp.where(is_lower, value, state.objective), jnp.where(is_lower, length, 0)


def apply_kernel(kernel: Array, vectors: Outputs) -> Outputs:
    """Return K v for a kernel of each class by itself, or of all outputs."""
    if kernel.ndim == 2:
        return product(kernel, vectors)
    return product(as_cross_matrix(kernel), vectors.reshape(-1)).reshape(-1, kernel.shape[2])


def factorise(kernel: Array, outputs: Outputs, targets: Outputs) -> Factor:
    """Return what E is applied by."""
    if kernel.ndim == 4:
        one = jnp.ones((), outputs.dtype)
        return FullFactor(output_factor("softmax", one, one, outputs, targets, kernel))

    # 1. I + √π_c K √π_c of each class.
    # Probabilities whose products would underflow are raised: subnormal numbers are slow.
    roots = jnp.sqrt(jax.nn.softmax(outputs, axis=1))
    roots = jnp.maximum(roots, float(jnp.finfo(roots.dtype).tiny) ** 0.25)
    scales = roots.T[:, :, None]  # [k, n, 1]
    identity = jnp.eye(len(kernel), dtype=kernel.dtype)[None]
    triangles = jnp.linalg.cholesky(identity + scales * kernel[None] * scales.transpose(0, 2, 1))

    # 2. Σ_c E_c, E_c = HᵀH with H = L_c⁻¹ diag(√π_c).
    halves = jax.scipy.linalg.solve_triangular(triangles, scales * identity, lower=True)
    stacked = halves.reshape(-1, len(kernel))
    return ClassFactor(roots, triangles, jnp.linalg.cholesky(product(stacked.T, stacked)))


def apply_inverse(factor: Factor, outputs: Outputs, targets: Outputs, vectors: Outputs) -> Outputs:
    """Return E v."""
    if isinstance(factor, FullFactor):
        curvature = LOSS.curvature(outputs, targets)
        columns = curvature.root_transposed(vectors).reshape(-1)
        solved = jax.scipy.linalg.cho_solve((factor.triangle, True), columns)
        return curvature.root(solved.reshape(vectors.shape))
    own = _apply_class_inverses(factor, vectors)
    shared = jax.scipy.linalg.cho_solve((factor.coupling, True), jnp.sum(own, axis=1))
    return own - _apply_class_inverses(factor, jnp.broadcast_to(shared[:, None], own.shape))


def _apply_class_inverses(factor: ClassFactor, vectors: Outputs) -> Outputs:
    """Return the columns E_c v_c."""
    columns = (factor.roots * vectors).T[:, :, None]
    solved = jax.scipy.linalg.cho_solve((factor.triangles, True), columns)
    return factor.roots * solved[:, :, 0].T


def half_log_determinant(factor: Factor) -> Float[Array, ""]:
    """Return ½ log det(I + QᵀKQ)."""
    if isinstance(factor, FullFactor):
        return sum_log_diagonal(factor.triangle)
    return sum_log_diagonal(factor.triangles) + sum_log_diagonal(factor.coupling)


@jax.jit
def class_covariance(
    factor: ClassFactor, cross: Float[Array, "t n"], prior: Float[Array, " t"]
) -> Float[Array, "t k k"]:
    """Return K_** − K_*X E K_X* of each test point, for a kernel of each class by itself."""
    # 1. E_c K_X* and L_c⁻¹ √π_c K_X*, columns for each class.
    columns = factor.roots.T[:, :, None] * cross.T[None]  # [k, n, t]
    halves = jax.scipy.linalg.solve_triangular(factor.triangles, columns, lower=True)
    solved = jax.scipy.linalg.solve_triangular(factor.triangles, halves, lower=True, trans=1)
    images = factor.roots.T[:, :, None] * solved

    # 2. What the data explain, class by class, and what they leave open together.
    explained = jnp.sum(halves**2, axis=1)  # [k, t]
    triangles = jnp.broadcast_to(factor.coupling, factor.triangles.shape)
    coupled = jax.scipy.linalg.solve_triangular(triangles, images, lower=True)
    shared = jnp.einsum("cnt,ent->tce", coupled, coupled, precision="highest")
    own = jnp.maximum(prior[:, None] - explained.T, 0)
    identity = jnp.eye(len(factor.triangles), dtype=cross.dtype)
    return own[:, :, None] * identity[None] + shared
