r"""A rigorous certificate that gradient descent converges, for one network and its data.

Loss ½‖F(W) − Y‖², r = F − Y, J the Jacobian of F in the hidden weights, s = σ_min(J(W₀)) > 0. The
path of gradient descent is measured by its mass τ = Σ η‖r_t‖, not by its length: a step moves unit
r by −η γ Σ_j x_j v_jr ⟨r_j, a_r − μ_j⟩, with v = u'/α, μ_j = ⟨a, u/α⟩ = F_j/γ, γ = √m (plain
networks: v = u', μ = 0, γ = 1/√m; √m times both for "paper").

**Theorem.** Write A_jr = ‖a_r‖ + (‖y_j‖ + ‖r₀‖)/γ, v⁺(δ), v⁻(δ) for the enclosures of v on the box
|z_ir − z⁰_ir| ≤ δ_ir (``logit_box.py``), and |v|⁺ for the larger of v⁺ and −v⁻. Let δ(τ) solve

    dδ_ir/dτ = γ (Σ_j ⟨x_i, x_j⟩² (|v|⁺_jr A_jr)²)^{1/2},        δ(0) = 0,

let ΔJ(τ) bound ‖J(W) − J(W₀)‖ on the box δ(τ), s(τ) = s − ΔJ(τ), β(τ) = ‖J(W₀)‖ + ΔJ(τ), κ(τ) bound
the change of J per unit of τ there, and let T be the mass at which ‖r₀‖ − (1 − θ)∫₀ᵀ s(τ)² dτ = 0.
If s(T) > 0, then gradient descent with

    η ≤ 1/β²,        η κ β ‖r₀‖ ≤ 2 θ s²        (s, β, κ at T)

stays in the box δ(T), ‖r_{t+1}‖² ≤ (1 − η(1 − θ)s²)² ‖r_t‖² at every step, and so r_t → 0. Gradient
flow: dt‖r‖² ≤ −2s²‖r‖².

**Proof**, by induction over steps and, within a step, by continuity.

(i) Σ_ℓ r_jℓ(a_ℓr − μ_jℓ) is at most ‖r_j‖A_jr, because ‖F_j‖ ≤ ‖y_j‖ + ‖r₀‖ while ‖r‖ does not
grow. By Cauchy and Schwarz over j a step from mass τ changes logit (i, r) by at most η‖r_t‖ times
the right-hand side at τ; as that increases with τ, the sum over steps is below the integral, and
W_t lies in the box δ(τ_t). A box is convex, so the segment to W_{t+1} lies in that of τ_{t+1}.

(ii) r_{t+1} = (I − ηJJᵀ)r_t − η(J̄ − J)Jᵀr_t, J̄ the mean of J over the segment,
‖J̄ − J‖ ≤ ½κη‖r_t‖. As ηβ² ≤ 1,

    ‖r_{t+1}‖ ≤ (1 − ηs(τ_t)²)‖r_t‖ + ½η²κβ‖r₀‖‖r_t‖ ≤ ‖r_t‖ − (1 − θ)s(τ_t)²(τ_{t+1} − τ_t).

Summed, ‖r_t‖ is below ‖r₀‖ − (1 − θ)∫s², which keeps τ_t below T (and τ_t + η‖r_t‖ too, as
η ≤ 1/s²).

(iii) g_{iℓ} = γ v_i∘(a_ℓ − μ_iℓ) changes by γΔv∘(a_ℓ − μ_iℓ) − v⁰ΔF_iℓ,
|Δv| ≤ max(v⁺ − v⁰, v⁰ − v⁻), |ΔF_i| ≤ 2‖r₀‖. Rows of J are x_i ⊗ g_iℓ, so that
‖ΔJᵀR‖² = Σ_r‖Σ_i x_i Δv_ir ⟨R_i, a_r⟩‖² is at most the quadratic form in ‖R_i‖ of

    |⟨x_i, x_j⟩| Σ_r b_ir b_jr,        b_ir = γ|Δv_ir|‖a_r‖,

and also that of

    |⟨x_i, x_j⟩|(λ_iλ_j)^{1/2},        λ_i = λ_max(γ²Σ_r Δv_ir² a_ra_rᵀ),

which is the smaller one for several outputs. A non-negative matrix bounds the norm of every smaller
one. κ in the same way, with |dv| ≤ |u''/α||h| + |v|⟨|v|, |h|⟩, h the right-hand side of the
equation for δ, and |dF| ≤ β².

(iv) ‖W_t − W₀‖: as ‖(I − ηJJᵀ)r‖ ≤ ‖r‖ − η(1 − ½ηβ²)‖Jᵀr‖²/‖r‖, the residual falls by at least
η‖Jᵀr‖((1 − ½ηβ²)s − ½κη‖r₀‖) a step. ∎

The argument with one Lipschitz constant (MATHEMATICS.md#one-lipschitz-constant) needs, on the same
data, at least twenty times the width: here a unit moves in proportion to its own weight v, and the
effects of heavy units are summed, not maximised.
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import PyTree

from softntk._core.records import record
from softntk._core.validation.on_host import Targets, as_host_targets, check_known, on_host
from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import slack
from softntk.activations import missing_enclosure_reason
from softntk.networks import Network, Parameters, Points
from softntk.theory._arguments import as_host_points, check_network, check_parameters
from softntk.theory._certificates.jacobian_bounds import (
    ProofData,
    bound_jacobian_curvature,
    bound_singular_values,
    prepare,
)
from softntk.theory._certificates.proof_path import (
    CURVATURE_SHARE,
    ProofProgress,
    integrate_bounds,
)


@record
class ConvergenceCertificate:
    """The verdict on whether gradient descent provably converges, with step size and rate.

    Attributes:
        holds: whether all inequalities hold with rounding counted.
        learning_rate: η, for ½‖F − Y‖²; zero if it does not hold. Smaller ones have the same
            guarantee, with their own rate.
        radius: ‖W_t − W₀‖_F stays below it; +inf if it does not hold.
        rate: the factor on ‖r‖² a step; one if it does not hold.
        flow_rate: under gradient flow ‖r(t)‖² ≤ e^{−flow_rate·t}‖r₀‖².
        reason: the inequality that decided it, in words.
        smallest_singular_value: of J at the start, from below.
        final_singular_value: of J wherever gradient descent can be, from below.
        largest_singular_value: β, the same from above.
        residual_norm: ‖r₀‖.
        progress: the part of ‖r₀‖ whose decrease the proof covers; one if it holds.
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


def certify_convergence(
    net: Network, params: Parameters, x: Points, y: Targets
) -> ConvergenceCertificate:
    """Return whether full-batch gradient descent from these weights provably fits y, and how fast.

    Use it to obtain a step size, a radius and a rate that are guaranteed for this network and these
    data: inequalities that they satisfy or not, with every rounding error of float64 counted. The
    theorem and its proof are at the top of ``softntk/theory/_certificates/convergence.py``. A
    certificate that does not hold proves nothing: gradient descent may well converge. Wider
    networks, smaller targets and points further apart help.

    Args:
        net: of any activation with an enclosure, normalized or not, with only the hidden weights
            trained. For others the certificate does not hold, with the reason: the slope of relu
            jumps, so that its Jacobian has no Lipschitz constant.
        params: the weights where gradient descent starts.
        x: [n, d].
        y: targets, [n, k], or [n] for one output.

    Returns:
        A :class:`ConvergenceCertificate`. float32 inputs are converted to float64, and the reason
        says so; its guarantee is about exact arithmetic, which float64 follows to about 1e-12.

    Raises:
        ValueError: net not of ``networks.two_layer``, or params not of it; shapes that do not fit;
            arrays that are not real floating-point numbers, NaN, or traced.

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
    # 1. Check the arguments, in float64 on the host.
    net = check_network("net", net)
    check_known("params", params)
    with on_host():  # float64 stays float64 here, whatever the precision of JAX
        params = check_parameters("params", params, net)
    points = as_host_points("x", x, params)
    targets = as_host_targets("y", y, len(points), params.readout.shape[1])
    precision_note = ""
    if not _is_double(params, x, y):
        precision_note = " (float32 inputs were converted to float64)"
    # 2. Networks without a theorem are refused.
    refusal = _refusal_reason(net)
    if refusal:
        return _failed_certificate(refusal + precision_note)
    # 3. Certify; a bound that overflows is infinite, and fails every inequality.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        data = prepare(net, params, points, targets)
        if isinstance(data, str):
            certificate = _failed_certificate(data)
        else:
            certificate = _certify_data(data, targets.size)
    return dataclasses.replace(certificate, reason=certificate.reason + precision_note)


def _is_double(*trees: PyTree) -> bool:
    """Return whether all leaves are in float64."""
    return all(np.asarray(leaf).dtype == np.float64 for leaf in jax.tree.leaves(trees))


def _refusal_reason(net: Network) -> str:
    """Return why there is no theorem for such a network; empty if there is one."""
    architecture = net.architecture
    activation = architecture.activation
    # The theorem is about the Jacobian in the hidden weights alone.
    if architecture.train_readout:
        return "The proof is for trained hidden weights: make the network with train_readout=False."
    if activation.enclosure is None:
        return missing_enclosure_reason(activation)
    if activation.enclosure.jumps:
        return (
            f"The slope of {activation.name} jumps where a logit changes sign: the Jacobian has no "
            "Lipschitz constant, and no radius is small enough for this proof."
        )
    return ""


def _certify_data(data: ProofData, target_count: int) -> ConvergenceCertificate:
    """Return the certificate of the theorem, for data without an overflow."""
    # 1. Singular values at the start, rounded outward.
    smallest_squared, largest_squared, first_row, second_row = bound_singular_values(data)
    largest = math.sqrt(largest_squared)
    if not smallest_squared > 0:
        reason = _singular_kernel_reason(data, target_count, first_row, second_row)
        return _failed_certificate(reason, largest=largest, residual=data.residual_norm)
    smallest = math.sqrt(smallest_squared) * (1 - slack(1))
    # 2. The box, s, β at the mass T where the bound on ‖r‖ is zero.
    reached = integrate_bounds(data, smallest, largest)
    if not reached.remaining_residual <= 0:
        progress = 1 - reached.remaining_residual / data.residual_norm
        reason = (
            f"On the way {reached.reason}: σ_min(J) = {smallest:.3g} at the start, "
            f"‖r₀‖ = {data.residual_norm:.3g}, and the proof reaches for {100 * progress:.0f} % "
            "of it. Use a wider network, smaller targets or smaller sigma."
        )
        return _failed_certificate(reason, smallest, largest, data.residual_norm, progress)
    s = reached.smallest
    beta = reached.largest
    # 3. The step size: η ≤ 1/β² and η κ β ‖r₀‖ ≤ 2 θ s².
    slopes = data.box.slopes(reached.delta)
    assert slopes is not None
    kappa = bound_jacobian_curvature(data, slopes, beta)
    curvature_term = kappa * beta * data.residual_norm if data.residual_norm > 0 else 0.0
    step_size = 1 / beta**2
    if curvature_term > 0:
        step_size = min(step_size, 2 * CURVATURE_SHARE * s**2 / curvature_term)
    step_size *= 1 - slack(1)
    is_proved = (
        math.isfinite(curvature_term) and s > 0 and step_size > 0 and step_size * beta**2 <= 1
    )
    if not is_proved:
        reason = (
            "The curvature on the way, or a step size, is beyond the numbers of float64: "
            "there is no proof."
        )
        return _failed_certificate(reason, smallest, largest, data.residual_norm)
    return _proved_certificate(data, reached, smallest, step_size, kappa)


def _proved_certificate(
    data: ProofData, reached: ProofProgress, smallest: float, step_size: float, kappa: float
) -> ConvergenceCertificate:
    """Return the certificate that holds, with the radius of step (iv) of the proof."""
    s = reached.smallest
    beta = reached.largest
    residual_norm = data.residual_norm
    # Two bounds of ‖W_t − W₀‖: β times the mass, and ‖r₀‖ over the decrease of ‖r‖ per unit of
    # path length (the residual falls by at least η‖Jᵀr‖ times this number a step).
    decrease = (1 - step_size * beta**2 / 2) * s - kappa * step_size * residual_norm / 2
    residual_radius = residual_norm / decrease if decrease > 0 else math.inf
    radius = min(beta * reached.mass, residual_radius) * (1 + slack(1))
    reason = (
        f"On the whole way σ_min(J) ≥ {s:.3g} (at the start {smallest:.3g}), ‖J‖ ≤ {beta:.3g}, "
        f"and no logit moves by more than {reached.delta.max():.2g}."
    )
    return ConvergenceCertificate(
        holds=True,
        learning_rate=step_size,
        radius=radius,
        rate=(1 - step_size * (1 - CURVATURE_SHARE) * s**2) ** 2,
        flow_rate=2 * s**2,
        reason=reason,
        smallest_singular_value=smallest,
        final_singular_value=s,
        largest_singular_value=beta,
        residual_norm=residual_norm,
        progress=1.0,
    )


def _singular_kernel_reason(
    data: ProofData, target_count: int, first_row: int, second_row: int
) -> str:
    """Return why λ_min of the kernel is not above zero."""
    # 1. Fewer weights than targets.
    n, d = data.x.shape
    weight_count = d * data.readout.shape[0] * data.copies
    if target_count > weight_count:
        return (
            f"λ_min of the kernel is zero: {target_count} targets and {weight_count} trained "
            "weights. Use a wider network."
        )
    # 2. A point at zero.
    row_norms = host_norm(data.x, axis=1)
    if not row_norms.all():
        return (
            f"λ_min of the kernel is zero: row {int(np.argmin(row_norms))} of x is zero, "
            "so that no weight moves its output."
        )
    # 3. Equal points.
    _, row_groups = np.unique(data.x, axis=0, return_inverse=True)
    row_groups = row_groups.ravel()
    for i in range(n):
        equal_rows = np.flatnonzero(row_groups == row_groups[i])
        if len(equal_rows) > 1:
            return (
                f"λ_min of the kernel is zero: rows {equal_rows.tolist()} of x are equal. "
                "Keep one of them."
            )
    # 4. Otherwise name the rows that dominate the lowest eigenvector.
    return (
        f"λ_min of the kernel is not above zero in float64; rows {first_row} and {second_row} "
        "of x weigh most in its eigenvector: nearly equal points, or units that do not see them."
    )


def _failed_certificate(
    reason: str,
    smallest: float = 0.0,
    largest: float = math.inf,
    residual: float = math.inf,
    progress: float = 0.0,
) -> ConvergenceCertificate:
    """Return a certificate that does not hold, for this reason."""
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
