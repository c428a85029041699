r"""A rigorous certificate that gradient descent converges, for one network and its data.

Loss ½‖F(W) − Y‖², r = F − Y, J the Jacobian of F in the hidden weights, s = σ_min(J(W₀)) > 0. The
path of gradient descent is measured by its mass τ = Σ η‖r_t‖, not by its length: a step moves unit
r by −η γ Σ_j x_j v_jr ⟨r_j, a_r − μ_j⟩, with v = u'/α, μ_j = ⟨a, u/α⟩ = F_j/γ, γ = √m (plain
networks: v = u', μ = 0, γ = 1/√m; √m times both for "paper").

**Theorem.** Write A_jr = ‖a_r‖ + (‖y_j‖ + ‖r₀‖)/γ, and v⁺(δ), v⁻(δ) for the enclosures of v on the
box |z_ir − z⁰_ir| ≤ δ_ir (``_boxes.py``). Let δ(τ) solve

    dδ_ir/dτ = γ (Σ_j ⟨x_i, x_j⟩² (v⁺_jr A_jr)²)^{1/2},        δ(0) = 0,

let ΔJ(τ) bound ‖J(W) − J(W₀)‖ on the box δ(τ), s(τ) = s − ΔJ(τ), β(τ) = ‖J(W₀)‖ + ΔJ(τ), κ(τ) bound
the change of J per unit of τ there, and let T be the mass at which ‖r₀‖ − (1 − θ)∫₀ᵀ s(τ)² dτ = 0.
If s(T) > 0, then gradient descent with

    η ≤ 1/β²,        η κ β ‖r₀‖ ≤ 2 θ s²        (s, β, κ at T)

stays in the box δ(T), ‖r_{t+1}‖² ≤ (1 − η(1 − θ)s²)² ‖r_t‖² at every step, and so r_t → 0. Gradient
flow: dt‖r‖² ≤ −2s²‖r‖².

**Proof**, by induction over steps and, within a step, by continuity. (i) Σ_ℓ r_jℓ(a_ℓr − μ_jℓ) is
at most ‖r_j‖A_jr, because ‖F_j‖ ≤ ‖y_j‖ + ‖r₀‖ while ‖r‖ does not grow. By Cauchy and Schwarz over
j a step from mass τ changes logit (i, r) by at most η‖r_t‖ times the right-hand side at τ; as that
increases with τ, the sum over steps is below the integral, and W_t lies in the box δ(τ_t). A box is
convex, so the segment to W_{t+1} lies in that of τ_{t+1}. (ii) r_{t+1} = (I − ηJJᵀ)r_t − η(J̄ −
J)Jᵀr_t, J̄ the mean of J over the segment, ‖J̄ − J‖ ≤ ½κη‖r_t‖. As ηβ² ≤ 1, ‖r_{t+1}‖ ≤ (1 −
ηs(τ_t)²)‖r_t‖ + ½η²κβ‖r₀‖‖r_t‖ ≤ ‖r_t‖ − (1 − θ)s(τ_t)²(τ_{t+1} − τ_t). Summed, ‖r_t‖ is below ‖r₀‖
− (1 − θ)∫s², which keeps τ_t below T (and τ_t + η‖r_t‖ too, as η ≤ 1/s²). (iii) g_{iℓ} = γ v_i∘(a_ℓ
− μ_iℓ) changes by γΔv∘(a_ℓ − μ_iℓ) − v⁰ΔF_iℓ, |Δv| ≤ max(v⁺ − v⁰, v⁰ − v⁻), |ΔF_i| ≤ 2‖r₀‖. Rows of
J are x_i ⊗ g_iℓ, so that ‖ΔJᵀR‖² = Σ_r‖Σ_i x_i Δv_ir ⟨R_i, a_r⟩‖² is at most the quadratic form in
‖R_i‖ of
|⟨x_i, x_j⟩| Σ_r b_ir b_jr, b_ir = γ|Δv_ir|‖a_r‖, and also that of |⟨x_i, x_j⟩|(λ_iλ_j)^{1/2}, for
several outputs the better one, λ_i = λ_max(γ²Σ_r Δv_ir² a_ra_rᵀ). A non-negative matrix bounds the
norm of every smaller one. κ in the same way, with
|dv| ≤ |u''/α||h| + v⟨v, |h|⟩, h the right-hand side of the equation for δ, and |dF| ≤ β².
(iv) ‖W_t − W₀‖: as ‖(I − ηJJᵀ)r‖ ≤ ‖r‖ − η(1 − ½ηβ²)‖Jᵀr‖²/‖r‖, the residual falls by at least
η‖Jᵀr‖((1 − ½ηβ²)s − ½κη‖r₀‖) a step. ∎

The argument with one Lipschitz constant (MATHEMATICS.md#one-lipschitz-constant) needs, on the same
data, twenty times the width and more: here a unit moves in proportion to its own weight v, and what
heavy units do is summed, not maximised.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from softntk import activations
from softntk._core.records import record
from softntk._core.validation.on_host import Targets, as_host_targets, check_known, on_host
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import slack
from softntk.networks import Network, Parameters, Points
from softntk.theory._arguments import as_host_points, check_network, check_parameters
from softntk.theory._certificates.jacobian_bounds import (
    Data,
    curvature,
    kernel,
    largest_change,
    prepare,
    speed,
)
from softntk.theory._certificates.logit_box import INCREASING, Slopes

_PIECES = 40  # of the mass that would do if s did not shrink
_SHARE = 0.05  # θ
_TRIES = 12  # to find an enclosure of a piece


@record
class ConvergenceCertificate:
    """Whether gradient descent provably converges, and how.

    Attributes:
        holds: whether all inequalities hold with rounding counted.
        learning_rate: η, for ½‖F − Y‖²; zero if it does not hold. Smaller ones have the same
            guarantee, with their own rate.
        radius: ‖W_t − W₀‖_F stays below it; +inf if it does not hold.
        rate: the factor on ‖r‖² a step; one if it does not hold.
        flow_rate: under gradient flow ‖r(t)‖² ≤ e^{−flow_rate·t}‖r₀‖².
        reason: what decided it, in words.
        smallest_singular_value: of J at the start, from below.
        final_singular_value: of J wherever gradient descent can be, from below.
        largest_singular_value: β, the same from above.
        residual_norm: ‖r₀‖.
        progress: the part of the way, in ‖r‖, for which the proof reached; one if it holds.
    """

    holds: bool
    learning_rate: float
    radius: float
    rate: float
    flow_rate: float
    reason: str
    smallest_singular_value: float
    final_singular_value: float
    largest_singular_value: float
    residual_norm: float
    progress: float


class _Piece(NamedTuple):
    """The end of a piece of the mass."""

    delta: np.ndarray
    slopes: Slopes
    growth: float  # of the speed over the piece, relative


class _Reach(NamedTuple):
    """Where the proof got to."""

    delta: np.ndarray
    mass: float
    smallest: float
    largest: float
    left: float  # of ‖r₀‖
    reason: str


def certify_convergence(
    net: Network, params: Parameters, x: Points, y: Targets
) -> ConvergenceCertificate:
    """Return whether full-batch gradient descent from these weights provably fits y: step size,
    radius and rate.

    Inequalities that this network and these data satisfy or not, with every rounding error of
    float64 counted; the theorem and its proof stand above, in
    ``softntk/theory/_certificates/convergence.py``. A certificate that does not hold says nothing:
    gradient descent may well converge. Wider networks, smaller targets and points further apart
    help.

    Args:
        net: softmax, res_softmax or exp (or their activations, normalized or not), with only the
            hidden weights trained. For others the certificate does not hold, with the reason: the
            slope of relu jumps, so that its Jacobian has no Lipschitz constant.
        params: where gradient descent starts.
        x: [n, d].
        y: targets, [n, k], or [n] for one output.

    Returns:
        A :class:`ConvergenceCertificate`. float32 inputs are converted to float64, and the reason
        says so; what it guarantees is about exact arithmetic, which float64 follows to about 1e-12.

    Raises:
        ValueError: net not of ``networks.two_layer``, or params not of it; shapes that do not fit;
            what is no real floating-point number, NaN, or traced.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=20_000)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> cert = sn.theory.certify_convergence(net, params, jnp.eye(4), 0.1 * jnp.ones((4, 1)))
        >>> cert.holds, cert.rate < 1
        (True, True)

    Source: the theorem is ours; its plan (σ_min of the Jacobian against its change) is that of
    Oymak and Soltanolkotabi (2019); the per-unit moves are those of arXiv 2405.03251.
    MATHEMATICS.md#certificates.
    """
    net = check_network("net", net)
    check_known("params", params)
    with on_host():  # what is float64 stays so
        params = check_parameters("params", params, net)
    points = as_host_points("x", x, params)
    targets = as_host_targets("y", y, len(points), params.readout.shape[1])
    note = "" if _is_double(params, x, y) else " (float32 inputs were converted to float64)"
    refusal = _refusal(net)
    if refusal:
        return _fails(refusal + note)
    with np.errstate(
        over="ignore", invalid="ignore", divide="ignore"
    ):  # what overflows is not below any bound
        data = prepare(net, params, points, targets)
        certificate = _fails(data) if isinstance(data, str) else _certified(data, targets.size)
    return dataclasses.replace(certificate, reason=certificate.reason + note)


def _is_double(*trees: Any) -> bool:
    return all(np.asarray(leaf).dtype == np.float64 for leaf in jax.tree.leaves(trees))


def _refusal(net: Network) -> str:
    """Why there is no theorem for such a network, or nothing."""
    architecture, name = net.architecture, net.architecture.activation.name
    if architecture.train_readout:
        return "The proof is for trained hidden weights: make the network with train_readout=False."
    if name in ("relu", "crrelu", "threshold"):
        return (
            f"The slope of {name} jumps where a logit changes sign: the Jacobian has no Lipschitz constant, and no radius "
            "is small enough for this proof."
        )
    if name not in INCREASING or architecture.activation != activations.get(name):
        return f"There is a proof for the activations {', '.join(INCREASING)}, none for {name!r}."
    return ""


def _advance(
    data: Data, delta: np.ndarray, slopes: Slopes, step: float, growth: float
) -> _Piece | None:
    """One piece of the mass on: δ from above, the slopes there, and by how much its speed has
    grown.
    """
    before = speed(data, slopes)
    candidate = delta + (1 + 1.2 * growth) * step * before
    for _ in range(_TRIES):
        there = data.box.slopes(candidate)
        if there is None:
            return None
        # On the whole piece the speed is at most that on the candidate, as long as the piece does
        # not leave it.
        moves = speed(data, there)
        reached = delta + step * moves
        if (reached <= candidate).all():
            end = data.box.slopes(reached)
            increase = np.divide(moves, before, out=np.ones_like(moves), where=before > 0)
            return None if end is None else _Piece(reached, end, float(increase.max()) - 1)
        candidate = delta + 1.1 * (reached - delta)
    return None


def _reach(data: Data, smallest: float, largest: float) -> _Reach:
    """How far the mass can grow before s is used up or ‖r‖ is."""
    slopes = data.box.slopes(data.box.start)
    assert slopes is not None
    piece, left, mass = _Piece(data.box.start, slopes, 0.02), data.residual, 0.0
    s, change = smallest, 0.0
    step = data.residual / smallest**2 / _PIECES
    while left > 0:
        advanced = _advance(data, piece.delta, piece.slopes, step, piece.growth)
        if advanced is None:
            return _Reach(
                piece.delta, mass, s, largest + change, left, "the enclosure of the logits explodes"
            )
        piece = advanced
        change = largest_change(data, piece.slopes)
        if not change < smallest:
            return _Reach(
                piece.delta,
                mass,
                0.0,
                largest + change,
                left,
                "the smallest singular value is used up",
            )
        s, mass = smallest - change, mass + step
        left -= (1 - _SHARE) * step * s**2 * (1 - slack(1))
    if not left <= 0:
        return _Reach(piece.delta, mass, 0.0, largest + change, data.residual, "numbers overflow")
    return _Reach(piece.delta, mass, s, largest + change, 0.0, "")


def _certified(data: Data, unknowns: int) -> ConvergenceCertificate:
    low, high, first, second = kernel(data)
    largest = math.sqrt(high)
    if not low > 0:
        return _fails(
            _degenerate(data, unknowns, first, second), largest=largest, residual=data.residual
        )
    smallest = math.sqrt(low) * (1 - slack(1))
    reach = _reach(data, smallest, largest)
    if not reach.left <= 0:
        done = 1 - reach.left / data.residual
        reason = (
            f"On the way {reach.reason}: σ_min(J) = {smallest:.3g} at the start, ‖r₀‖ = {data.residual:.3g}, and the proof "
            f"reaches for {100 * done:.0f} % of it. Use a wider network, smaller targets or smaller sigma."
        )
        return _fails(reason, smallest, largest, data.residual, done)
    s, beta, mass = reach.smallest, reach.largest, reach.mass
    slopes = data.box.slopes(reach.delta)
    assert slopes is not None
    kappa = curvature(data, slopes, beta)
    bending = kappa * beta * data.residual if data.residual > 0 else 0.0
    rate = 1 / beta**2
    if bending > 0:
        rate = min(rate, 2 * _SHARE * s**2 / bending)
    rate *= 1 - slack(1)
    if not (math.isfinite(bending) and s > 0 and rate > 0 and rate * beta**2 <= 1):
        reason = "The curvature on the way, or a step size, is beyond the numbers of float64: there is no proof."
        return _fails(reason, smallest, largest, data.residual)
    fall = (1 - rate * beta**2 / 2) * s - kappa * rate * data.residual / 2
    radius = min(beta * mass, data.residual / fall if fall > 0 else math.inf) * (1 + slack(1))
    reason = (
        f"On the whole way σ_min(J) ≥ {s:.3g} (at the start {smallest:.3g}), ‖J‖ ≤ {beta:.3g}, and no logit moves by more than "
        f"{reach.delta.max():.2g}."
    )
    return ConvergenceCertificate(
        holds=True,
        learning_rate=rate,
        radius=radius,
        rate=(1 - rate * (1 - _SHARE) * s**2) ** 2,
        flow_rate=2 * s**2,
        reason=reason,
        smallest_singular_value=smallest,
        final_singular_value=s,
        largest_singular_value=beta,
        residual_norm=data.residual,
        progress=1.0,
    )


def _degenerate(data: Data, unknowns: int, first: int, second: int) -> str:
    """Why λ_min is not above zero."""
    n, d = data.x.shape
    weights = d * data.readout.shape[0] * data.copies
    if unknowns > weights:
        return f"λ_min of the kernel is zero: {unknowns} targets and {weights} trained weights. Use a wider network."
    lengths = host_norm(data.x, axis=1)
    if not lengths.all():
        return f"λ_min of the kernel is zero: row {int(np.argmin(lengths))} of x is zero, so that no weight moves its output."
    _, groups = np.unique(data.x, axis=0, return_inverse=True)
    groups = groups.ravel()
    for i in range(n):
        same = np.flatnonzero(groups == groups[i])
        if len(same) > 1:
            return f"λ_min of the kernel is zero: rows {same.tolist()} of x are equal. Keep one of them."
    return (
        f"λ_min of the kernel is not above zero in float64; rows {first} and {second} of x weigh most in its eigenvector: "
        "nearly equal points, or units that do not see them."
    )


def _fails(
    reason: str,
    smallest: float = 0.0,
    largest: float = math.inf,
    residual: float = math.inf,
    progress: float = 0.0,
) -> ConvergenceCertificate:
    return ConvergenceCertificate(
        holds=False,
        learning_rate=0.0,
        radius=math.inf,
        rate=1.0,
        flow_rate=0.0,
        reason=reason,
        smallest_singular_value=smallest,
        final_singular_value=0.0,
        largest_singular_value=largest,
        residual_norm=residual,
        progress=progress,
    )
