r"""A rigorous certificate that a regression has exactly one minimiser near a point.

**Theorem** (Kantorovich). Let H(x₀) ≽ I/β, K a Lipschitz constant of H = ∇²L on the ball ‖x − x₀‖ ≤
R, η ≥ ‖H(x₀)^{-1}∇L(x₀)‖, h = βKη ≤ ½ and t = 2η/(1 + √(1 − 2h)) ≤ R. Then L has a stationary point
x* with ‖x* − x₀‖ ≤ t; by Weyl H ≻ 0 on ‖x − x₀‖ < min(R, 1/βK), so that it is a minimiser and the
only stationary point there. One Newton step from x₀ ends within t − η of it.

**Newton's method from elsewhere.** With β* = β/(1 − βKt) ≥ ‖H(x*)^{-1}‖ a step from distance e to
x* ends at most β*Ke²/(2(1 − β*Ke)) away, which is less than e while e < 2/(3β*K) and everything
stays in the ball. So it converges to x* from all points within min(2/(3β*K), R − t) − t of x₀.

K is that of :func:`softntk.regression.lipschitz` around x₀ and so depends on R: R is chosen where R
and 1/βK(R) meet.

The derivatives at x₀ come from ``logit_derivatives.py``, with bounds of their rounding.
"""

import math

import numpy as np
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation.on_host import as_double, check_known, on_host
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import slack, smallest_eigenvalue
from softntk.activations import missing_enclosure_reason
from softntk.regression import Problem, lipschitz, problem
from softntk.theory._certificates.logit_derivatives import evaluate_derivatives

MAX_RADIUS = 1e300
"""The largest radius R that is tried, so that products with it stay finite."""

RADIUS_BISECTIONS = 14
"""Bisections, on a logarithmic scale, for the radius where R = 1/βK(R)."""

SMALL_RADIUS_FACTORS = (2.0, 1.6, 1.3)
"""Radii R/η that are also tried, for points that are barely close enough to the minimum."""


@record
class MinimumCertificate:
    """The verdict on whether exactly one minimiser is near x₀, with error bars for it.

    Attributes:
        holds: whether the theorem applies, with rounding counted.
        radius: exactly one minimiser lies within this distance of x₀, and Newton's method converges
            to it from every point of that ball (from x₀ alone, if it is no larger than ``error``);
            zero if it does not hold.
        convex_radius: the loss is strictly convex on the ball of this radius, which is larger and
            has no other stationary point either.
        error: ‖x* − x₀‖ is at most that; +inf if it does not hold.
        bars: |x*_j − x₀_j| is at most bars[j], [d].
        strength: the smallest eigenvalue of ∇²L(x₀), from below.
        kantorovich: h; the theorem needs at most ½.
        reason: the inequality that decided it, in words.
    """

    holds: bool
    radius: float
    convex_radius: float
    error: float
    bars: Float[np.ndarray, " d"]
    strength: float
    kantorovich: float
    reason: str


def certify_minimum(p: Problem, x0: Float[Array | np.ndarray, " d"]) -> MinimumCertificate:
    """Return a ball around x₀ that provably contains exactly one minimiser, with error bars.

    Use it on x₀ from :func:`softntk.solvers.minimise`: the bars are error bars of the solution,
    usually a few units in the last place times the condition number. Theorem and proof are at the
    top of ``softntk/theory/_certificates/minimum.py``. The gradient is evaluated in
    ``numpy.longdouble`` (80 bits on x86; float64 elsewhere, and for erf and gelu: the bars are
    wider then), the rest in float64, everything with its rounding error.

    Args:
        p: of :func:`softntk.regression.problem`. For activations without an enclosure, or whose
            slope jumps (relu), the certificate does not hold, with the reason.
        x0: [d].

    Returns:
        A :class:`MinimumCertificate`. float32 inputs are converted to float64 exactly; the
        certificate is about that problem.

    Raises:
        ValueError: p of another kind, or traced; x0 not real floating-point numbers, not finite,
            or not of shape [d].

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> A = jax.random.normal(jax.random.key(0), (50, 3))
        >>> p = sn.regression.softmax(A, jax.nn.softmax(A @ jnp.ones(3)), weights=0.1)
        >>> solution = sn.solvers.minimise(p, jnp.zeros(3), rtol=1e-5)
        >>> ball = sn.theory.certify_minimum(p, solution.value)
        >>> ball.holds, ball.error < 1e-4 < ball.radius
        (True, True)

    Source: Kantorovich (1948), in the form of Ortega and Rheinboldt (1970), 12.6;
    MATHEMATICS.md#newton-kantorovich.
    """
    # 1. Check the arguments; Lipschitz constants come from the enclosure of the activation.
    if not isinstance(p, Problem):
        raise ValueError(f"p must be a problem of softntk.regression, got {type(p).__name__}.")
    check_known("p", p)
    d = p.shape[1]
    x0 = as_double("x0", x0, (d,))
    refusal = _refusal_reason(p)
    if refusal:
        return _failed_certificate(d, refusal)
    # 2. A dense problem in float64: converting float32 is exact.
    with on_host():
        A, b, weights = (
            np.asarray(leaf, np.float64) for leaf in (matrices.to_dense(p.A), p.b, p.weights)
        )
        return _certify_problem(problem(A, b, p.activation, p.form, weights), x0)


def _refusal_reason(p: Problem) -> str:
    """Return why there are no Lipschitz constants for such a problem; empty if there are."""
    enclosure = p.activation.enclosure
    if enclosure is None:
        return missing_enclosure_reason(p.activation)
    if enclosure.jumps:
        return (
            f"The slope of {p.activation.name} jumps where a logit changes sign: the Hessian has "
            "no Lipschitz constant, and the theorem does not apply."
        )
    return ""


def _certify_problem(p: Problem, x0: Float[np.ndarray, " d"]) -> MinimumCertificate:
    """Return the certificate of a dense problem in float64."""
    # 1. ∇L and H = ∇²L at x₀, with bounds of their rounding.
    d = len(x0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        derivatives = evaluate_derivatives(p, x0)
    is_finite = (
        np.isfinite(derivatives.gradient).all()
        and np.isfinite(derivatives.gradient_error)
        and np.isfinite(derivatives.hessian).all()
    )
    if not is_finite:
        return _failed_certificate(
            d, "x0 lies outside of the domain, or the loss overflows there: see p.check(x0)."
        )
    # 2. β = 1/λ_min(H).
    strength = smallest_eigenvalue(derivatives.hessian, derivatives.hessian_error)
    if not strength > 0:
        reason = (
            f"∇²L(x0) is not positive definite beyond rounding (λ_min ≥ {strength:.2g}): a saddle, "
            "a flat direction (columns of A that depend on each other, no weights), or too far "
            "from a minimum."
        )
        return _failed_certificate(d, reason, strength)
    beta = 1 / strength
    # 3. η ≥ ‖H⁻¹∇L‖: the computed step, plus β times its residual and the errors of ∇L and H.
    step = np.linalg.solve(derivatives.hessian, derivatives.gradient)
    step_norm = float(host_norm(step))
    residual = float(host_norm(derivatives.hessian @ step - derivatives.gradient))
    residual = residual + slack(d) * float(host_norm(derivatives.hessian)) * step_norm
    residual += derivatives.gradient_error + derivatives.hessian_error * step_norm
    step_error = beta * residual
    eta = (step_norm + step_error) * (1 + slack(d))
    if not math.isfinite(eta):
        return _failed_certificate(
            d,
            "Newton's step from x0 is beyond the largest number: go closer to the minimum.",
            strength,
        )
    # 4. The first radius R for which h ≤ ½ and t ≤ R; the unit of x is that of 1/A.
    size = float(host_norm(x0)) + 1 / float(host_norm(np.asarray(p.A)))
    for radius in _candidate_radii(p, x0, beta, eta, size):
        K = lipschitz(p, radius, x0).hessian.ours
        h = beta * K * eta * (1 + slack(1))
        if not h <= 0.5:
            continue
        # t = 2η/(1 + √(1 − 2h)) must lie in the ball that K holds on.
        error = 2 * eta / (1 + math.sqrt(1 - 2 * h)) * (1 + slack(1))
        if not error <= radius:
            continue
        # By Weyl H ≻ 0 while the distance from x₀ is below 1/βK.
        convex_radius = min(radius, (1 - slack(1)) / (beta * K)) if K > 0 else radius
        newton_radius = _newton_radius(beta, K, error, radius)
        bars = np.abs(step) + step_error + (error - eta) + slack(1) * error
        return MinimumCertificate(
            holds=True,
            radius=max(error, min(newton_radius, convex_radius)),
            convex_radius=max(error, convex_radius),
            error=error,
            bars=np.minimum(bars, error),
            strength=strength,
            kantorovich=h,
            reason=(
                f"λ_min(∇²L(x0)) ≥ {strength:.3g}, K ≤ {K:.3g} within {radius:.2g}, "
                f"h = {h:.2g} ≤ 1/2."
            ),
        )
    # 5. No radius does: report h on the smallest ball.
    K = lipschitz(p, min(max(2 * eta, 1e-300), MAX_RADIUS), x0).hessian.ours
    h = beta * K * eta
    reason = (
        f"h = ‖H⁻¹‖K‖H⁻¹∇L‖ is {h:.2g}, 1/2 is needed (‖H⁻¹‖ ≤ {beta:.2g}, K ≤ {K:.2g}, Newton's "
        f"step is {eta:.2g}): go closer to the minimum (solvers.minimise), or make the loss more "
        "convex (weights)."
    )
    return _failed_certificate(d, reason, strength, h)


def _newton_radius(beta: float, K: float, error: float, radius: float) -> float:
    """Return the radius of convergence of Newton's method, min(2/(3β*K), R − t) − t.

    β* = β/(1 − βKt) bounds ‖H(x*)⁻¹‖, and t is ``error``.
    """
    contraction = beta * K * error
    final_beta = beta / (1 - contraction) if contraction < 1 else math.inf
    convergence_radius = 2 / (3 * final_beta * K) if K > 0 else math.inf
    return min(convergence_radius, radius - error) * (1 - slack(1)) - error


def _candidate_radii(
    p: Problem, x0: Float[np.ndarray, " d"], beta: float, eta: float, size: float
) -> list[float]:
    """Return values of R to try, best first.

    The first is where R = 1/βK(R). The others are little more than η, for points that are barely
    close enough to the minimum.
    """

    def is_contractive(radius: float) -> bool:
        return beta * lipschitz(p, radius, x0).hessian.ours * radius < 1

    # The search interval: R must exceed t ≤ 2η, and radii far below rounding of x₀ are useless.
    lower = max(2 * eta, 1e-14 * size)
    upper = min(1e6 * size, MAX_RADIUS)
    if not lower < upper:
        return []
    if is_contractive(upper):
        return [upper]
    if not is_contractive(lower):
        return [eta * factor for factor in (*SMALL_RADIUS_FACTORS, 1.1) if eta > 0]
    # βK(R)R increases with R: bisect for the value one.
    for _ in range(RADIUS_BISECTIONS):
        middle = math.sqrt(lower) * math.sqrt(upper)
        if is_contractive(middle):
            lower = middle
        else:
            upper = middle
    return [lower, *(eta * factor for factor in SMALL_RADIUS_FACTORS)]


def _failed_certificate(
    d: int, reason: str, strength: float = 0.0, kantorovich: float = math.inf
) -> MinimumCertificate:
    """Return a certificate that does not hold, for this reason."""
    return MinimumCertificate(
        holds=False,
        radius=0.0,
        convex_radius=0.0,
        error=math.inf,
        bars=np.full(d, math.inf),
        strength=max(strength, 0.0),
        kantorovich=kantorovich,
        reason=reason,
    )
