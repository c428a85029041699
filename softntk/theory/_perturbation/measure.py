"""The change of the kernel when every hidden weight vector may move by R: measured and bounded.

Measurements come from ``adversary.py``, our bound from ``interval_bound.py`` and
``softmax_bound.py``, the paper's from :mod:`softntk.theory.bounds`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._core.validation import check_choice, check_key, check_positive_int
from softntk._core.validation.on_host import check_known, known_number, on_host
from softntk._linalg.norms import host_norm
from softntk.networks import FAMILIES, Architecture, Network, Parameters, Points
from softntk.theory._arguments import as_host_points, check_network, check_parameters
from softntk.theory._perturbation.adversary import (
    KernelNeighbourhood,
    Perturbed,
    worst_perturbations,
)
from softntk.theory._perturbation.arguments import (
    PERTURBATION_KINDS,
    check_kinds,
    check_path,
    check_radii,
    to_double,
)
from softntk.theory._perturbation.interval_bound import IntervalBound
from softntk.theory.bounds import AS_REMEMBERED, Constants, perturbation_bound
from softntk.theory.bounds import FAMILIES as PAPER_FAMILIES
from softntk.theory.bounds._constants import check_constants

ARRAY_FIELDS = ("radius", "frobenius", "spectral", "paper", "ours_frobenius", "ours_spectral")
"""Fields of :class:`Perturbation` that are arrays with one entry for each kind and radius."""

SCALAR_FIELDS = ("size", "smallest", "largest", "converted")
"""Fields of :class:`Perturbation` that do not depend on kind or radius."""


@dataclass(frozen=True)
class Perturbation:
    """Measured changes of the kernel beside their bounds, for every kind and radius.

    Arrays are [r], NumPy, float64.

    Attributes:
        kind: "random", "adversarial" or "path".
        radius: R, the largest ‖w̃_r − w_r‖ (with the bias as one more weight).
        frobenius: the largest ‖H(W̃) − H(W)‖_F that was found; +inf if a move leaves the network's
            domain.
        spectral: the largest ‖H(W̃) − H(W)‖₂ that was found; that of the adversary includes the
            random moves.
        paper: the paper's bound of both norms; +inf where it has none.
        ours_frobenius: our bound of the Frobenius norm; +inf where there is none.
        ours_spectral: our bound of the spectral norm.
        worst: the weights W̃ at which ``frobenius`` was found, with a leading axis [r].
        size: ‖H(W)‖_F.
        smallest: λ_min(H(W)).
        largest: λ_max(H(W)).
        converted: whether weights or points were not in float64, in which everything is computed.
    """

    kind: tuple[str, ...]
    radius: Float[np.ndarray, " r"]
    frobenius: Float[np.ndarray, " r"]
    spectral: Float[np.ndarray, " r"]
    paper: Float[np.ndarray, " r"]
    ours_frobenius: Float[np.ndarray, " r"]
    ours_spectral: Float[np.ndarray, " r"]
    worst: Parameters = field(repr=False)
    size: float
    smallest: float
    largest: float
    converted: bool

    def of(self, kind: str) -> "Perturbation":
        """Return the entries of one kind, in the order of their radii or along the path.

        Raises:
            ValueError: there are no entries of this kind.
        """
        check_choice("kind", kind, dict.fromkeys(self.kind))
        # Every array field and every leaf of the weights has the same leading axis.
        selected = np.array([name == kind for name in self.kind], bool)
        arrays = {name: getattr(self, name)[selected] for name in ARRAY_FIELDS}
        worst = jax.tree.map(lambda leaf: leaf[selected], self.worst)
        scalars = {name: getattr(self, name) for name in SCALAR_FIELDS}
        return Perturbation(kind=(kind,) * int(selected.sum()), worst=worst, **arrays, **scalars)


def perturbation(
    net: Network,
    params: Parameters,
    x: Points,
    radii: float | Sequence[float] | Float[np.ndarray | Array, " q"],
    *,
    key: PRNGKeyArray,
    kinds: Sequence[str] = PERTURBATION_KINDS,
    trials: int = 4,
    ascent_steps: int = 10,
    path: Parameters | Sequence[Parameters] | None = None,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> Perturbation:
    r"""Return ‖H(W̃) − H(W)‖ for ‖w̃_r − w_r‖ ≤ R: measured, bounded by the paper, and by us.

    Use it to see how far the weights of a network may move before its kernel changes, and how loose
    a bound on that is. Every neuron r may move by R.

    **Measured.**

    - random: every neuron moves by exactly R in a direction of its own, uniform on the sphere. The
      largest change of some trials counts.
    - adversarial: ascent from the worst of these, or from the adversary of the previous radius, Δ ←
      R·(G_r/‖G_r‖)_r, with G the gradient of ½‖H(W + Δ) − H(W)‖_F² by reverse differentiation. For
      small R this is the power method for the derivative of H on a product of balls, and monotone;
      a step that does not help is halved. Where H is piecewise constant (relu) the gradient is
      taken through the slopes of softplus, stretched to the range of logits that a move covers.
    - path: weights that training passed through.

    **The paper's bound** is R n k e^{10B} for points of the unit ball, and another one for relu
    (:func:`softntk.theory.bounds.perturbation_bound`). For s = max‖x_i‖ > 1, H at x, W is s² times
    H at x/s, sW: the bound is then s² times that at sR, sσ. It is a statement about small R (below
    0.01, as remembered). For exp, whose kernel grows like e^{2R}, it is false where R is large.

    **Our bound** holds for *every* move of at most R. The logit z_ir moves by at most δ_i = ‖x_i‖R
    (x with a 1 appended under bias). So u and u' stay between the extremes that they have on [z_ir
    − δ_i, z_ir + δ_i]. These are at the ends of the interval if u and u' increase, as for exp,
    res_exp and relu (whose u' changes only in units with |z_ir| ≤ δ_i). Then, interval by interval:

    1. α_i = Σ_r u(z_ir) lies in [Σu⁻, Σu⁺]. If Σu⁻ > 0 (always for exp; else there is no bound), v
       = u'/α lies between u'⁻/Σu⁺ and u'⁺/Σu⁻ for u' ≥ 0.
    2. μ_iℓ = ⟨a_ℓ, u⟩/α lies in [μ⁻, μ⁺], its exact range over the box: μ increases in u_r if a_ℓr
       > μ and decreases otherwise, so it is extreme at a corner where u_r = u⁺ for a_ℓr above a
       threshold and u⁻ below it (or the reverse).
    3. g_iℓr = γ v_ir (a_ℓr − μ_iℓ) lies in the product of these intervals; write it as c + e, |e| ≤
       w, c the middle.
    4. H = ⟨x_i, x_j⟩⟨g_iℓ, g_jℓ'⟩, so |H̃ − H| ≤ |⟨x_i, x_j⟩| (|⟨c, c'⟩ − ⟨g, g'⟩| + ⟨|c|, w'⟩ +
       ⟨w, |c'|⟩ + ⟨w, w'⟩) =: E, entry by entry (a trained readout adds the same for the features,
       γu/α).
    5. ‖H̃ − H‖_F ≤ ‖E‖_F, and |⟨p, (H̃ − H)q⟩| ≤ ⟨|p|, E|q|⟩ makes ‖H̃ − H‖₂ ≤ ‖E‖₂. ∎

    Moves below about 1e-12 of the weights are lost in rounding.

    **For softmax** our bound is the smallest of this one and two more, because here the derivative
    of H nearly cancels. With f the softmax of row i, ζ_r the move of logit (i, r), α_iℓ = a_ℓ −
    μ_iℓ and s_iℓ = f_i∘α_iℓ, ∂f = f∘(ζ − ⟨f, ζ⟩) gives

        ⟨∂g_iℓ, g_jℓ'⟩ = γ² Σ_r f_ir ζ_r q_r,    q = α_iℓ∘(s_jℓ' − ν) − c,
        ν = ⟨f_i, s_jℓ'⟩,    c = ⟨s_iℓ, s_jℓ'⟩.

    6. For every distribution h, (Σ f_i ζ q)² ≤ Q Σ_r h_r ζ_r² with Q = Σ_r (f_ir²/h_r) q_r², which
       is a few matrix products. With h = f_i: |DH| ≤ γ²|⟨x_i, x_j⟩|(δ_i √Q + δ_j √Q'), entry by
       entry, Q' = Q with rows exchanged. With one h for all rows, ζ_ir = ⟨x_i, Δ_r⟩ and W_i = Σ
       γ⁴⟨x_i, x_j⟩² Q over ℓ, j, ℓ', ‖DH‖_F ≤ 2 (Σ_r h_r Σ_i W_i ⟨x_i, Δ_r⟩²)^{1/2} ≤ 2 R λ_max(Σ_i
       W_i x_i x_iᵀ)^{1/2}.
    7. On the box f ≤ e^{2δ}f⁰, |ζ − ⟨f, ζ⟩| ≤ 2δ, Var ζ ≤ δ², Var a ≤ A² (A half the range of a_ℓ),
       |a − μ| ≤ b = |α⁰| + Aδ; so
       |∂μ| ≤ Aδ, |∂²μ| = |⟨f, (a − μ)(ζ − ⟨f, ζ⟩)²⟩| ≤ 2Aδ², |∂²f| ≤ 4δ²f, and
       |g|, |∂g|, |∂²g| ≤ γ e^{2δ}f⁰∘(b, δ(2b + A), δ²(4b + 6A)). By Taylor
       |H̃ − H − DH| ≤ ½|⟨x_i, x_j⟩|(⟨|∂²g|, |g|⟩ + 2⟨|∂g|, |∂g|⟩ + ⟨|g|, |∂²g|⟩), added to 6 in
       norm.
    8. ‖g_iℓ‖² ≤ γ² max f Var a ≤ γ²A², wherever the weights are: |H̃ − H| ≤ |H| + γ²A_ℓA_ℓ'|⟨x_i,
       x_j⟩|. ∎

    No factor e^{10B} remains. As σ → 0, f becomes uniform. For ±1 readouts in pairs ±a, q then
    vanishes where ℓ = ℓ', and so does the derivative of these blocks (all of H if k = 1): this is
    the effect of normalisation. For exp the derivative does not vanish.

    Args:
        net: a network of :func:`softntk.networks.two_layer`. Activations without an enclosure have
            no bound of ours.
        params: W, around which the weights move.
        x: points, [n, d].
        radii: R, one or several, each once.
        key: random key of the directions, which are the same at every radius.
        kinds: one or both of "random" and "adversarial"; may be empty if a path is given.
        trials: number of random moves for each radius.
        ascent_steps: largest number of steps of the adversary.
        path: weights with a leading axis, or a sequence of them; each is an entry with its own
            radius.
        failure: δ of the paper's bound.
        constants: those of the paper's bound.

    Returns:
        A :class:`Perturbation`, computed in float64 whatever the inputs. For "paper" networks
        kernels, and so all norms, are m times as large. Kernels are formed as matrices [nk, nk].

    Raises:
        ValueError: net no network, params not of it, key no key; a radius that is not positive and
            finite or is repeated; a kind that is unknown or repeated; neither kinds nor a path;
            trials or ascent_steps no positive integers; points or weights not finite or of wrong
            shape, or outside the network's domain; a path of another shape or readout.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, sigma=0.3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> x = jax.random.normal(jax.random.key(1), (10, 8)) / 3
        >>> p = sn.theory.perturbation(net, params, x, [0.01, 0.1], key=jax.random.key(2))
        >>> bool((p.frobenius <= p.ours_frobenius).all())
        True
        >>> bool((p.ours_frobenius < 0.01 * p.paper).all())
        True

    Source: arXiv 2405.03251, the lemma on perturbed weights; our bound and its proof are ours.
    """
    # 1. Check the arguments.
    net = check_network("net", net)
    check_known("params", params)
    key = check_key("key", key)
    radii = check_radii(radii)
    kinds = check_kinds(kinds, path)
    trials = check_positive_int("trials", trials)
    ascent_steps = check_positive_int("ascent_steps", ascent_steps)
    failure = known_number("failure", failure, above=0, below=1)
    check_constants(constants)
    with on_host():
        params = check_parameters("params", params, net)
        points = as_host_points("x", x, params)
        is_converted = any(
            np.asarray(leaf).dtype != np.float64 for leaf in jax.tree.leaves((x, params))
        )
        # 2. Measure, in float64: random moves, the adversary, and the weights of a path.
        neighbourhood = KernelNeighbourhood(net.architecture, to_double(params), points)
        results: list[Perturbed] = []
        if kinds:
            results = worst_perturbations(neighbourhood, radii, key, kinds, trials, ascent_steps)
        if path is not None:
            results += [
                Perturbed(
                    "path", neighbourhood.radius(weights), weights, *neighbourhood.distance(weights)
                )
                for weights in check_path(neighbourhood.params, path)
            ]
        # 3. Bound every radius once; a random and an adversarial move share theirs.
        bound = IntervalBound(neighbourhood.architecture, neighbourhood.params, neighbourhood.x)
        our_bounds = {R: bound(R) for R in {float(result.radius) for result in results}}
        worst = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(result.params for result in results)
        )
    paper_bounds = np.array(
        [_paper_bound(neighbourhood, float(r.radius), failure, constants) for r in results]
    )
    return _collect(neighbourhood, results, paper_bounds, our_bounds, worst, is_converted)


def _collect(
    neighbourhood: KernelNeighbourhood,
    results: list[Perturbed],
    paper_bounds: Float[np.ndarray, " r"],
    our_bounds: dict[float, tuple[float, float]],
    worst: Parameters,
    is_converted: bool,
) -> Perturbation:
    """Return measurements and bounds side by side."""
    # Size and extreme eigenvalues of H(W) are the scale that the changes are compared with.
    radii = [float(result.radius) for result in results]
    eigenvalues = np.linalg.eigvalsh(neighbourhood.kernel)
    return Perturbation(
        kind=tuple(result.kind for result in results),
        radius=np.array(radii),
        frobenius=np.array([result.frobenius for result in results]),
        spectral=np.array([result.spectral for result in results]),
        paper=paper_bounds,
        ours_frobenius=np.array([our_bounds[R][0] for R in radii]),
        ours_spectral=np.array([our_bounds[R][1] for R in radii]),
        worst=worst,
        size=float(host_norm(neighbourhood.kernel)),
        smallest=float(eigenvalues[0]),
        largest=float(eigenvalues[-1]),
        converted=is_converted,
    )


def _paper_bound(
    neighbourhood: KernelNeighbourhood, R: float, failure: float, constants: Constants
) -> float:
    """Return the paper's bound, +inf where it has none.

    Points outside the unit ball are scaled into it, by homogeneity.
    """
    architecture = neighbourhood.architecture
    # The paper states a bound for three families, with the hidden weights trained.
    family = next((name for name in PAPER_FAMILIES if _is_family(architecture, name)), None)
    if R == 0:
        return 0.0
    if family is None or architecture.train_readout:
        return math.inf
    # For s = max‖x_i‖ > 1, H at x, W is s² times H at x/s, sW.
    s = max(1.0, float(neighbourhood.row_norms.max()))
    return s**2 * perturbation_bound(
        s * R,
        len(neighbourhood.x),
        family=family,
        k=architecture.out_dim,
        sigma=s * float(architecture.sigma),
        failure=failure,
        parameterization=architecture.parameterization,
        width=architecture.width,
        constants=constants,
    )


def _is_family(architecture: Architecture, family: str) -> bool:
    """Return whether a network is of this family."""
    activation, normalized = FAMILIES[family]
    return architecture.activation == activations.get(activation) and (
        architecture.normalized == normalized
    )
