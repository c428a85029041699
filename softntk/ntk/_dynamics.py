r"""Training dynamics that a kernel predicts: gradient descent and gradient flow.

Both are functions of the kernel H applied to the residual r = F(0) − Y
(:mod:`softntk.ntk._spectral_filters`),

    F(τ) = Y + d_τ(H) r,    F_test(τ) = F_test(0) − H_test c_τ(H) r,    c_τ(λ) = (1 − d_τ(λ))/λ,

with d_τ(λ) = (1 − ηλ)^τ for descent and e^{−λτ} for flow. A matrix is decomposed once for all τ.
With an operator the functions are computed in the Krylov space of r, without eigenvectors of H.
Derivatives are those of a function of a matrix, so that equal eigenvalues cause no trouble. On
another loss, or with momentum, the dynamics are simulated in function space
(``_simulated_dynamics.py``).
"""

import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import is_concrete
from softntk._linalg.gram_arrays import Gram, Number
from softntk._output_losses import PointLoss, as_output_loss
from softntk.ntk._arguments import Cross, Targets, TestTargets, as_problem
from softntk.ntk._closed_form_dynamics import predict_in_closed_form
from softntk.ntk._dynamics_arguments import (
    Labels,
    Steps,
    as_descent,
    as_flow_times,
    as_loss_targets,
    as_momentum,
    as_steps,
    operator_of,
)
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._simulated_dynamics import simulate_descent, simulate_flow
from softntk.ntk._spectral_filters import Flow


def predict_gd(
    gram: Gram | GramOperator,
    y: Targets | Labels,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    loss: str | PointLoss = "squared",
    momentum: Number = 0.0,
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Return outputs of gradient descent on a loss after each number of steps, for a kernel.

    Use it to see what gradient descent on a wide network would do, without training. On ½ΣΣ(F−Y)²
    and under a constant kernel F(τ) = Y + (I − ηH)^τ (F(0) − Y), for all τ at once. The powers are
    computed as sign^τ exp(τ log|1 − ηλ|) without forming 1 − ηλ, so that they are exact to rounding
    for small ηλ and millions of steps. With another loss, or with momentum, the steps are taken one
    after the other in function space, F ← F − ηHa, a ← βa + ∂L/∂F, each for one product with H.

    Args:
        gram: H on the training points: [n, n] (the same for every output, outputs independent) or
            [n, n, k, k] (:func:`softntk.ntk.empirical` with ``outputs="full"``), symmetric; or an
            operator on [n] or [n, k]. An operator is multiplied as often as the accuracy requires:
            at most 512 times, about √(τηλ_max) times for a few digits.
        y: targets, [n, k]; [n] is k = 1, also for f0 and f0_test. With cross-entropy probabilities
            [n, k], or integer labels [n].
        learning_rate: η > 0. That of neural_tangents is n·k times as large: its loss is a mean.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]. None stands for those of the network, if gram is the
            :func:`~softntk.ntk.operator` of one, else for zero (antisymmetric initialisation).
        cross: kernel between t test points and the training points, [t, n], [t, n, k, k], or
            ``op.cross(x_test)``. With it, the outputs at the test points are returned.
        f0_test: outputs at the test points at the start, [t, k]. None stands for those of the
            network, as for f0; but for zero if f0 is given as zeros.
        loss: of the outputs, summed over the points: "squared", ½‖f − y‖²; "cross_entropy",
            logsumexp(f) − ⟨y, f⟩, or of one output log(1 + e^f) − y f; or a function
            (f [k], y [k]) → scalar of one point.
        momentum: β in [0, 1), as in ``optax.sgd``.
        rtol: error of the outputs relative to max|F(0) − Y|, with an operator (default 1e-5, 1e-9
            in float64); where steps are simulated there is no such error.

    Returns:
        [s, n, k], or [s, t, k] with ``cross``. The powers of a divergent component (ηλ > 2)
        saturate at the root of the largest number, and no output exceeds the largest number. It is
        differentiable in gram, y, f0, cross, f0_test and learning_rate, in both modes, also where
        eigenvalues are equal; a second time where they differ. Simulated steps have forward
        derivatives only, and saturate at the largest number.

    Raises:
        ValueError: shapes that do not fit, integer, half precision or non-finite arrays, an
            asymmetric gram, η not positive, steps negative, not integers or beyond the integers of
            JAX.
        NumericalError: an operator whose Krylov space did not reach rtol. Inside jit, where that
            cannot be seen, 128 products are made.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> gram = jnp.diag(jnp.array([1.0, 0.5]))
        >>> out = ntk.predict_gd(gram, jnp.ones((2, 1)), 0.5, jnp.array([0, 1, 2]))
        >>> out[:, :, 0].tolist()
        [[0.0, 0.0], [0.5, 0.25], [0.75, 0.4375]]

    Source: arXiv 2405.03251, Definition 3.8 and Lemma 3.9 (dynamics of the prediction);
    MATHEMATICS.md#training-dynamics.
    """
    # 1. Check the arguments.
    steps = as_steps(steps)
    output_loss = as_output_loss("loss", loss)
    targets = as_loss_targets(output_loss, y, gram, f0)
    problem = as_problem(gram, targets, f0, cross, f0_test, own_start=True)
    times = as_descent(learning_rate, steps, problem)
    beta = as_momentum(momentum, problem.y.dtype)

    # 2. In closed form where there is one, else step by step.
    has_momentum = not is_concrete(beta) or float(beta) != 0
    if output_loss.name == "squared" and not has_momentum:
        return predict_in_closed_form(times, gram, problem, coefficients=False, rtol=rtol)
    return simulate_descent(output_loss, beta, times, operator_of(gram), problem)


def gd_coefficients(
    gram: Gram | GramOperator,
    y: Targets,
    learning_rate: Number,
    steps: Steps,
    f0: Targets | None = None,
    *,
    rtol: float | None = None,
) -> Float[Array, "s n k"]:
    r"""Return the coefficients c of gradient descent, F_test(τ) = F_test(0) + H_test c.

    Use it to evaluate trained networks at many test points, or to reuse one solve for several sets
    of them.

    c = H⁻¹(I − (I − ηH)^τ)(Y − F(0)) = η Σ_{s<τ} (Y − F(s)), which exists for a singular H too. The
    weights of the linearised network have moved by Jᵀc. So the linearised network can be evaluated
    anywhere by one derivative along that direction, while :func:`predict_gd` needs the kernel
    between training and test points.

    Args:
        gram: H, as for :func:`predict_gd`.
        y: targets, [n, k].
        learning_rate: η > 0.
        steps: non-negative integers [s].
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        rtol: error of c relative to its largest entry, with an operator; default as for
            :func:`predict_gd`.

    Returns:
        c, [s, n, k].

    Raises:
        ValueError: as for :func:`predict_gd`.
        NumericalError: as for :func:`predict_gd`.

    Example:
        >>> import jax.numpy as jnp
        >>> gd_coefficients(jnp.eye(1), jnp.ones((1, 1)), 0.5, jnp.array([1, 2]))[:, 0, 0].tolist()
        [0.5, 0.75]

    Source: MATHEMATICS.md#training-dynamics.
    """
    steps = as_steps(steps)
    problem = as_problem(gram, y, f0, None, None, own_start=True)
    times = as_descent(learning_rate, steps, problem)
    # The residual of the problem is F(0) − Y.
    return -predict_in_closed_form(times, gram, problem, coefficients=True, rtol=rtol)


def predict_flow(
    gram: Gram | GramOperator,
    y: Targets | Labels,
    times: Float[Array | np.ndarray, " s"],
    f0: Targets | None = None,
    *,
    loss: str | PointLoss = "squared",
    cross: Cross | None = None,
    f0_test: TestTargets | None = None,
    rtol: float | None = None,
) -> Float[Array, "s rows k"]:
    r"""Return outputs of gradient flow, dθ/dt = −∇L, at each time, for a constant kernel.

    Use it for statements that hold for every small step size; :func:`predict_gd` predicts steps of
    a given size.

    It is the limit of gradient descent at t = ητ as η → 0. On L = ½ΣΣ(F−Y)²,
    F(t) = Y + e^{−Ht} (F(0) − Y); an eigenvalue that is negative by no more than rounding counts as
    zero, along one that is clearly negative F grows, as descent does. On another loss
    dF/dt = −H ∂L/∂F, integrated by diffrax (an extra, ``softntk[diffusion]``).

    Args:
        gram: H on the training points, as for :func:`predict_gd`.
        y: targets, [n, k], or labels, as for :func:`predict_gd`.
        times: ≥ 0, [s], in units of learning rate × steps; on the squared loss infinity is allowed
            (what training converges to).
        f0: outputs at the start, [n, k]; None as for :func:`predict_gd`.
        loss: as for :func:`predict_gd`.
        cross: kernel between test and training points, as for :func:`predict_gd`.
        f0_test: outputs at the test points at the start, [t, k]; None as for :func:`predict_gd`.
        rtol: as for :func:`predict_gd`; on another loss, of each step of the integrator.

    Returns:
        [s, n, k], or [s, t, k] with ``cross``; differentiable as :func:`predict_gd` is, in times
        instead of learning_rate. On another loss it has reverse derivatives only.

    Raises:
        ValueError: as for :func:`predict_gd`; times negative or NaN, infinite on another loss.
        NumericalError: as for :func:`predict_gd`; the integrator needed too many steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> out = ntk.predict_flow(jnp.eye(1), jnp.ones((1, 1)), jnp.array([0.0, 1.0, jnp.inf]))
        >>> [round(float(v), 4) for v in out[:, 0, 0]]  # 1 − e^{−t}
        [0.0, 0.6321, 1.0]

    Source: MATHEMATICS.md#training-dynamics; Jacot, Gabriel and Hongler (2018), arXiv 1806.07572,
    section 5.
    """
    flow_times = as_flow_times(times)
    output_loss = as_output_loss("loss", loss)
    targets = as_loss_targets(output_loss, y, gram, f0)
    problem = as_problem(gram, targets, f0, cross, f0_test, own_start=True)
    flow = Flow(flow_times.astype(problem.y.dtype))
    if output_loss.name == "squared":
        return predict_in_closed_form(flow, gram, problem, coefficients=False, rtol=rtol)
    if is_concrete(flow_times) and not np.isfinite(np.asarray(flow_times)).all():
        raise ValueError("times must be finite on another loss than the squared one.")
    return simulate_flow(output_loss, flow.times, operator_of(gram), problem, rtol)
