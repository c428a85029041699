r"""A rigorous certificate that a regression has exactly one minimiser near a point, and error bars
for it.

**Theorem** (Kantorovich). Let H(x₀) ≽ I/β, K a Lipschitz constant of H = ∇²L on the ball ‖x − x₀‖ ≤
R, η ≥ ‖H(x₀)^{-1}∇L(x₀)‖, h = βKη ≤ ½ and t = 2η/(1 + √(1 − 2h)) ≤ R. Then L has a stationary point
x* with ‖x* − x₀‖ ≤ t; by Weyl H ≻ 0 on ‖x − x₀‖ < min(R, 1/βK), so that it is a minimiser and the
only stationary point there. One Newton step from x₀ ends within t − η of it.

**Newton's method from elsewhere.** With β* = β/(1 − βKt) ≥ ‖H(x*)^{-1}‖ a step from distance e to
x* ends at most β*Ke²/(2(1 − β*Ke)) away, which is less than e while e < 2/(3β*K) and everything
stays in the ball. So it converges to x* from all points within min(2/(3β*K), R − t) − t of x₀.

K is that of :func:`softntk.regression.lipschitz` around x₀ and so depends on R: R is chosen where R
and 1/βK(R) meet.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk import activations
from softntk._core.records import record
from softntk._core.validation.on_host import as_double, check_known, on_host
from softntk._linalg import design_matrix as matrices
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import slack, smallest_eigenvalue
from softntk.regression import Problem, lipschitz, problem

_MAX_REACH = 1e300
"""What a radius is at most, so that it is a number."""

_PROVED = ("exp", "res_exp", "cosh", "sinh", "identity")
# rounding of a sum of one term, with room; grows with the terms
_WIDE = 4 * 64 * float(np.finfo(np.longdouble).eps)


@record
class MinimumCertificate:
    """Where the minimiser is.

    Attributes:
        holds: whether the theorem applies, with rounding counted.
        radius: exactly one minimiser within it of x₀, to which Newton's method converges from all
            of that ball (from x₀ alone, if it is no larger than ``error``); zero if it does not
            hold.
        convex_radius: the loss is strictly convex on that ball, which is larger: no other
            stationary point in it either.
        error: ‖x* − x₀‖ is at most that; +inf if it does not hold.
        bars: |x*_j − x₀_j| is at most bars[j], [d].
        strength: the smallest eigenvalue of ∇²L(x₀), from below.
        kantorovich: h; the theorem needs at most ½.
        reason: what decided it, in words.
    """

    holds: bool
    radius: float
    convex_radius: float
    error: float
    bars: Float[np.ndarray, " d"]
    strength: float
    kantorovich: float
    reason: str


class _Derivatives(NamedTuple):
    """At x₀, and by how much they may be off, in norm."""

    gradient: np.ndarray
    gradient_error: float
    hessian: np.ndarray
    hessian_error: float


def certify_minimum(p: Problem, x0: Float[Array | np.ndarray, " d"]) -> MinimumCertificate:
    """Return a ball around x₀ that provably holds exactly one minimiser, and how far from x₀ that
    can be.

    For x₀ from :func:`softntk.solvers.minimise` the bars are error bars of the solution, usually a
    few units in the last place times the condition number. Theorem and proof stand above, in
    ``softntk/theory/_certificates/minimum.py``. The gradient is evaluated in ``numpy.longdouble``
    (80 bits on x86, float64 elsewhere, and the bars say which), the rest in float64, everything
    with its rounding error.

    Args:
        p: of :func:`softntk.regression._problem`, with u exp, res_exp, cosh, sinh or identity.
        x0: [d].

    Returns:
        A :class:`MinimumCertificate`. What is float32 is converted to float64 exactly; the
        certificate is about that problem.

    Raises:
        ValueError: p of another kind, or traced; x0 no real floating-point numbers, not finite, or
            of another shape than [d].

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> A = jax.random.normal(jax.random.key(0), (50, 3))
        >>> p = sn.regression.softmax(A, jax.nn.softmax(A @ jnp.ones(3)), weights=0.1)
        >>> ball = sn.theory.certify_minimum(p, sn.solvers.minimise(p, jnp.zeros(3), rtol=1e-5).value)
        >>> ball.holds, ball.error < 1e-4 < ball.radius
        (True, True)

    Source: Kantorovich (1948), in the form of Ortega and Rheinboldt (1970), 12.6;
    MATHEMATICS.md#newton-kantorovich.
    """
    if not isinstance(p, Problem):
        raise ValueError(
            f"p must be a problem of softntk.regression._problem, got {type(p).__name__}."
        )
    check_known("p", p)
    d = p.shape[1]
    x0 = as_double("x0", x0, (d,))
    if p.activation.name not in _PROVED or p.activation != activations.get(p.activation.name):
        return _fails(
            d,
            f"There are Lipschitz constants for the activations {', '.join(_PROVED)}, none for {p.activation.name!r}.",
        )
    with on_host():
        A, b, weights = (
            np.asarray(leaf, np.float64) for leaf in (matrices.to_dense(p.A), p.b, p.weights)
        )
        return _certified(problem(A, b, p.activation, p.form, weights), x0)


def _certified(p: Problem, x0: np.ndarray) -> MinimumCertificate:
    d = len(x0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = _derivatives(p, x0)
    if not (
        np.isfinite(found.gradient).all()
        and np.isfinite(found.gradient_error)
        and np.isfinite(found.hessian).all()
    ):
        return _fails(
            d, "x0 lies outside of the domain, or the loss overflows there: see p.check(x0)."
        )
    strength = smallest_eigenvalue(found.hessian, found.hessian_error)
    if not strength > 0:
        return _fails(
            d,
            f"∇²L(x0) is not positive definite beyond rounding (λ_min ≥ {strength:.2g}): a saddle, a flat direction (columns "
            "of A that depend on each other, no weights), or too far from a minimum.",
            strength,
        )
    inverse = 1 / strength
    step = np.linalg.solve(found.hessian, found.gradient)
    # H⁻¹g as computed, its residual, and what g and H may be off by.
    length = float(host_norm(step))
    missing = (
        float(host_norm(found.hessian @ step - found.gradient))
        + slack(d) * float(host_norm(found.hessian)) * length
    )
    missing += found.gradient_error + found.hessian_error * length
    room = inverse * missing
    eta = (length + room) * (1 + slack(d))
    if not math.isfinite(eta):
        return _fails(
            d,
            "Newton's step from x0 is beyond the largest number: go closer to the minimum.",
            strength,
        )
    # the unit of x is that of 1/A
    size = float(host_norm(x0)) + 1 / float(host_norm(np.asarray(p.A)))
    for reach in _reaches(p, x0, inverse, eta, size):
        K = lipschitz(p, reach, x0).hessian.ours
        h = inverse * K * eta * (1 + slack(1))
        if not h <= 0.5:
            continue
        error = 2 * eta / (1 + math.sqrt(1 - 2 * h)) * (1 + slack(1))
        if not error <= reach:
            continue
        convex = min(reach, (1 - slack(1)) / (inverse * K)) if K > 0 else reach
        there = inverse / (1 - inverse * K * error) if inverse * K * error < 1 else math.inf
        newton = (
            min(2 / (3 * there * K) if K > 0 else math.inf, reach - error) * (1 - slack(1)) - error
        )
        return MinimumCertificate(
            holds=True,
            radius=max(error, min(newton, convex)),
            convex_radius=max(error, convex),
            error=error,
            bars=np.minimum(np.abs(step) + room + (error - eta) + slack(1) * error, error),
            strength=strength,
            kantorovich=h,
            reason=f"λ_min(∇²L(x0)) ≥ {strength:.3g}, K ≤ {K:.3g} within {reach:.2g}, h = {h:.2g} ≤ 1/2.",
        )
    K = lipschitz(p, min(max(2 * eta, 1e-300), _MAX_REACH), x0).hessian.ours
    h = inverse * K * eta
    reason = (
        f"h = ‖H⁻¹‖K‖H⁻¹∇L‖ is {h:.2g}, 1/2 is needed (‖H⁻¹‖ ≤ {inverse:.2g}, K ≤ {K:.2g}, Newton's step is {eta:.2g}): "
        "go closer to the minimum (solvers.minimise), or make the loss more convex (weights)."
    )
    return _fails(d, reason, strength, h)


def _reaches(p: Problem, x0: np.ndarray, inverse: float, eta: float, size: float) -> list[float]:
    """Values of R worth trying: where R = 1/βK(R), and, for points that are barely near enough,
    little more than η.
    """
    wide = lambda reach: inverse * lipschitz(p, reach, x0).hessian.ours * reach < 1
    low = max(2 * eta, 1e-14 * size)
    high = min(1e6 * size, _MAX_REACH)
    if not low < high:
        return []
    if wide(high):
        return [high]
    if not wide(low):
        return [eta * factor for factor in (2.0, 1.6, 1.3, 1.1) if eta > 0]
    for _ in range(14):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if wide(middle) else (low, middle)
    return [low, *(eta * factor for factor in (2.0, 1.6, 1.3))]


def _derivatives(p: Problem, x0: np.ndarray) -> _Derivatives:
    """∇L in long double, ∇²L in float64."""
    A, w, x = (np.asarray(part, np.longdouble) for part in (p.A, p.weights, x0))
    n, d = A.shape
    z, spread = A @ x, np.abs(A) @ np.abs(x)
    parts = _parts(p, z)
    sizes_s, sizes_v = parts.sizes_s, parts.sizes_v
    terms = n + d + 64
    wide = terms * _WIDE * parts.condition
    in_logits = parts.v * parts.s + w * w * z
    sizes = sizes_v * sizes_s + w * w * np.abs(z)
    gradient = A.T @ in_logits
    H = p.hessian(jnp.asarray(x0))
    D, U, M = (np.asarray(part, np.float64) for part in (H.logit_diagonal, H.factors, H.core))
    A64 = np.asarray(p.A)
    projected = A64.T @ U
    hessian = A64.T @ (D[:, None] * A64) + projected @ M @ projected.T
    curved = (
        float(np.max(sizes_v**2 + np.abs(parts.bend) * sizes_s + w * w)) + parts.factors
    )  # ‖∇²L‖ in the logits, from moduli
    spectral = float(host_norm(A64))
    error = float(host_norm(np.abs(A.T) @ sizes)) * wide + 1.01 * spectral * curved * wide * float(
        host_norm(spread)
    )
    hessian_error = slack(terms) * parts.condition * spectral**2 * curved
    return _Derivatives(
        np.asarray(gradient, np.float64),
        error + slack(1) * float(host_norm(np.asarray(gradient, np.float64))),
        (hessian + hessian.T) / 2,
        hessian_error,
    )


class _Parts(NamedTuple):
    """∇L in the logits is v∘s + w²z; moduli of what v and s are sums of; factors: what rank two can
    add to the norm.
    """

    v: np.ndarray
    bend: np.ndarray
    sizes_v: np.ndarray
    s: np.ndarray
    sizes_s: np.ndarray
    factors: float
    condition: float


def _parts(p: Problem, z: np.ndarray) -> _Parts:
    """In long double, independent of ``regression/_forms.py``."""
    b, name = np.asarray(p.b, np.longdouble), p.activation.name
    shift = np.longdouble(0)
    if p.form == "normalized" and name != "identity":
        shift = (
            z.max()
            if name == "exp"
            else max(shift, np.abs(z).max() if name != "res_exp" else z.max())
        )
    up, one, far = np.exp(z - shift), np.exp(-shift), np.exp(np.abs(z) - shift)
    # Without a difference of two numbers that are nearly equal.
    cosh, sinh = (
        far * (1 + np.exp(-2 * np.abs(z))) / 2,
        -np.sign(z) * far * np.expm1(-2 * np.abs(z)) / 2,
    )
    # u, u', u'', and moduli of what u and u' are sums of.
    u, du, d2u, sizes, slopes = {
        "exp": (up, up, up, up, up),
        "res_exp": (up + one * z, up + one, up, up + one * np.abs(z), up + one),
        "cosh": (cosh, sinh, cosh, cosh, cosh),
        "sinh": (sinh, cosh, sinh, cosh, cosh),
        "identity": (z, np.ones_like(z), np.zeros_like(z), np.abs(z), np.ones_like(z)),
    }[name]
    condition = float(4 + np.abs(z - shift).max() + np.abs(z).max())
    if p.form == "plain":
        return _Parts(du, d2u, slopes, u - b, sizes + np.abs(b), 0.0, condition)
    total, largest = u.sum(), sizes.sum()
    if p.form == "rescaled":
        r, sizes_r = u - total * b, sizes + largest * np.abs(b)
        s, sizes_s = r - b @ r, sizes_r + np.abs(b) @ sizes_r
        factors = float(
            (slopes @ slopes) * (b @ b)
            + 2 * np.sqrt((slopes @ slopes) * ((slopes * b) @ (slopes * b)))
        )
        return _Parts(du, d2u, slopes, s, sizes_s, factors, condition)
    f, v, bend, sizes_f, sizes_v = (
        u / total,
        du / total,
        d2u / total,
        sizes / abs(total),
        slopes / abs(total),
    )
    r, sizes_r = f - b, sizes_f + np.abs(b)
    s, sizes_s = r - r @ f, sizes_r + sizes_r @ sizes_f
    second, square = sizes_v * (sizes_f + sizes_s), sizes_v @ sizes_v
    factors = float(square * (sizes_f @ sizes_f) + 2 * np.sqrt(square * (second @ second)))
    lost = float(largest / abs(total))
    return _Parts(v, bend, sizes_v, s, sizes_s, factors, condition * (1 + lost) ** 2)


def _fails(
    d: int, reason: str, strength: float = 0.0, kantorovich: float = math.inf
) -> MinimumCertificate:
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
