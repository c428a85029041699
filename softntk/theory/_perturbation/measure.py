"""How far the kernel moves when every hidden weight may move by R: measured, as the paper bounds
it, and as we do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import check_choice, check_key, check_positive_int
from softntk._core.validation.on_host import as_double, check_known, known_number, on_host
from softntk._linalg.norms import host_norm
from softntk.networks import FAMILIES, Network, Parameters, Points
from softntk.theory._arguments import (
    as_host_points,
    check_network,
    check_parameters,
    check_weights,
)
from softntk.theory._perturbation.adversary import Found, Laboratory, search
from softntk.theory._perturbation.interval_bound import LocalBound
from softntk.theory.bounds import AS_REMEMBERED, Constants, perturbation_bound
from softntk.theory.bounds import FAMILIES as STATED
from softntk.theory.bounds._constants import check_constants

KINDS = ("random", "adversarial")


@dataclass(frozen=True)
class Perturbation:
    """What was measured beside what was promised; arrays [r] with an entry for every kind and
    radius, NumPy, float64.

    Attributes:
        kind: "random", "adversarial" or "path".
        radius: R, the largest ‖w̃_r − w_r‖ (with the bias as one more weight).
        frobenius: the largest ‖H(W̃) − H(W)‖_F that was found; +inf if a move leaves the network's
            domain.
        spectral: the largest ‖H(W̃) − H(W)‖₂.
        paper: the paper's bound of both; +inf where it has none.
        ours_frobenius: our bound of the first; +inf where there is none.
        ours_spectral: our bound of the second.
        worst: the weights W̃ of ``frobenius``, a leading axis [r].
        size: ‖H(W)‖_F.
        smallest: λ_min(H(W)).
        largest: λ_max(H(W)).
        converted: whether weights or points were not in float64, in which all of this was computed.
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
        """Return the entries of one kind, in the order of their radii or along the path."""
        check_choice("kind", kind, dict.fromkeys(self.kind))
        chosen = np.array([name == kind for name in self.kind], bool)
        parts: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        worst = jax.tree.map(lambda leaf: leaf[chosen], self.worst)
        scalars = {
            name: getattr(self, name) for name in ("size", "smallest", "largest", "converted")
        }
        return Perturbation(kind=(kind,) * int(chosen.sum()), worst=worst, **parts, **scalars)


_ARRAYS = ("radius", "frobenius", "spectral", "paper", "ours_frobenius", "ours_spectral")


def perturbation(
    net: Network,
    params: Parameters,
    x: Points,
    radii: float | Sequence[float] | Float[np.ndarray | Array, " q"],
    *,
    key: PRNGKeyArray,
    kinds: Sequence[str] = KINDS,
    trials: int = 4,
    ascent_steps: int = 10,
    path: Parameters | Sequence[Parameters] | None = None,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> Perturbation:
    r"""Return ‖H(W̃) − H(W)‖ for ‖w̃_r − w_r‖ ≤ R, over all neurons r: measured, and bounded by the
    paper and by us.

    **Measured.** Random: every neuron moves by exactly R in a direction of its own, uniform on the
    sphere; the largest of some trials. Adversarial: from the worst of these (and from the adversary
    of the radius before) Δ ← R·(G_r/‖G_r‖)_r, with G the gradient of ½‖H(W + Δ) − H(W)‖_F² by
    reverse differentiation. For small R that is the power method for the derivative of H on a
    product of balls, and monotone; a step that does not help is halved. Where H is piecewise
    constant (relu) the gradient is taken through softplus slopes, as wide as the move is in logits.
    Path: weights that training went through.

    **Paper.** R n k e^{10B} for points of the unit ball,
    :func:`softntk.theory.bounds.perturbation_bound`, and that of relu. For s = max‖x_i‖ > 1, H at
    x, W is s² times H at x/s, sW: s² times the bound at sR, sσ. It is a statement about small R
    (below 0.01, as remembered), and for exp, which grows like e^{2R}, false where R is large.

    **Ours** holds for *every* move of at most R. The logit z_ir moves by at most δ_i = ‖x_i‖R (x
    with a 1 appended under bias). So u and u' stay between the extremes that they have on [z_ir −
    δ_i, z_ir + δ_i]: at its ends if they increase, as for exp, res_exp and relu (whose u' changes
    only in units with |z_ir| ≤ δ_i). Then, interval by interval:

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

    **Ours, softmax**, is the least of that and of two more, because here the derivative of H nearly
    cancels. With f the softmax of row i, ζ_r the move of logit (i, r), α_iℓ = a_ℓ − μ_iℓ and s_iℓ =
    f_i∘α_iℓ, ∂f = f∘(ζ − ⟨f, ζ⟩) gives

        ⟨∂g_iℓ, g_jℓ'⟩ = γ² Σ_r f_ir ζ_r q_r,    q = α_iℓ∘(s_jℓ' − ν) − c,    ν = ⟨f_i, s_jℓ'⟩,    c = ⟨s_iℓ, s_jℓ'⟩.

    6. For every distribution h, (Σ f_i ζ q)² ≤ Q Σ_r h_r ζ_r² with Q = Σ_r (f_ir²/h_r) q_r², which
       is a few matrix products. With h = f_i: |DH| ≤ γ²|⟨x_i, x_j⟩|(δ_i √Q + δ_j √Q'), entry by
       entry, Q' = Q with rows exchanged. With one h for all rows, ζ_ir = ⟨x_i, Δ_r⟩ and W_i = Σ
       γ⁴⟨x_i, x_j⟩² Q over ℓ, j, ℓ', ‖DH‖_F ≤ 2 (Σ_r h_r Σ_i W_i ⟨x_i, Δ_r⟩²)^{1/2} ≤ 2 R λ_max(Σ_i
       W_i x_i x_iᵀ)^{1/2}.
    7. On the box f ≤ e^{2δ}f⁰, |ζ − ⟨f, ζ⟩| ≤ 2δ, Var ζ ≤ δ², Var a ≤ A² (A half the range of a_ℓ),
       |a − μ| ≤ b = |α⁰| + Aδ; so
       |∂μ| ≤ Aδ, |∂²μ| = |⟨f, (a − μ)(ζ − ⟨f, ζ⟩)²⟩| ≤ 2Aδ², |∂²f| ≤ 4δ²f, and |g|, |∂g|, |∂²g| ≤ γ e^{2δ}f⁰∘(b, δ(2b + A),
       δ²(4b + 6A)). By Taylor |H̃ − H − DH| ≤ ½|⟨x_i, x_j⟩|(⟨|∂²g|, |g|⟩ + 2⟨|∂g|, |∂g|⟩ + ⟨|g|, |∂²g|⟩), added to 6 in norm.
    8. ‖g_iℓ‖² ≤ γ² max f Var a ≤ γ²A², wherever the weights are: |H̃ − H| ≤ |H| + γ²A_ℓA_ℓ'|⟨x_i,
       x_j⟩|. ∎

    No e^{10B} is left. As σ → 0 f becomes uniform, and for ±1 readouts in pairs ±a q vanishes where
    ℓ = ℓ', and so does the derivative of these blocks (all of H if k = 1): that is what
    normalisation does. For exp it does not vanish.

    Args:
        net: a network of :func:`softntk.networks.two_layer`. Custom activations and crrelu have no
            bound of ours.
        params: W, around which the weights move.
        x: points, [n, d].
        radii: R, one or several, each once.
        key: of the random directions; they are the same at every radius.
        kinds: of "random" and "adversarial"; none if a path is given.
        trials: random moves a radius.
        ascent_steps: of the adversary.
        path: weights with a leading axis, or a sequence of them; each is an entry with the radius
            that it really has.
        failure: δ of the paper's bound.
        constants: of the paper's bound.

    Returns:
        A :class:`Perturbation`, computed in float64 whatever the inputs; for "paper" networks
        kernels, and so all norms, are m
        times as large. Every matrix is formed: nk × nk.

    Raises:
        ValueError: net no network, params not of it, key no key; a radius that is not positive and
            finite or is there twice; an unknown kind or one there twice; nothing to do; trials or
            ascent_steps no positive integers; points or weights not finite or of wrong shape, or
            outside the network's domain; a path of another shape or with another readout.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, sigma=0.3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> x = jax.random.normal(jax.random.key(1), (10, 8)) / 3
        >>> p = sn.theory.perturbation(net, params, x, [0.01, 0.1], key=jax.random.key(2))
        >>> bool((p.frobenius <= p.ours_frobenius).all()), bool((p.ours_frobenius < 0.01 * p.paper).all())
        (True, True)

    Source: arXiv 2405.03251, the lemma on perturbed weights; the bound of ours is ours.
    """
    net = check_network("net", net)
    check_known("params", params)
    key = check_key("key", key)
    radii = _checked_radii(radii)
    kinds = _checked_kinds(kinds, path)
    trials = check_positive_int("trials", trials)
    ascent_steps = check_positive_int("ascent_steps", ascent_steps)
    failure = known_number("failure", failure, above=0, below=1)
    check_constants(constants)
    with on_host():
        params = check_parameters("params", params, net)
        points = as_host_points("x", x, params)
        converted = any(
            np.asarray(leaf).dtype != np.float64 for leaf in jax.tree.leaves((x, params))
        )
        lab = Laboratory(net.architecture, _float64(params), points)
        found = search(lab, radii, key, kinds, trials, ascent_steps) if kinds else []
        if path is not None:
            found += [
                Found("path", lab.length(p), p, *lab.distance(p)) for p in _steps(lab.params, path)
            ]
        radius = np.array([one.radius for one in found])
        bound = LocalBound(lab.architecture, lab.params, lab.x)
        ours = {R: bound(R) for R in set(radius.tolist())}
        worst = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.params for one in found))
    paper = np.array([_paper(lab, R, failure, constants) for R in radius.tolist()])
    return _collected(lab, found, paper, ours, worst, converted)


def _collected(
    lab: Laboratory,
    found: list[Found],
    paper: np.ndarray,
    ours: dict[float, tuple[float, float]],
    worst: Any,
    converted: bool,
) -> Perturbation:
    """Return moves and bounds side by side."""
    radius = np.array([one.radius for one in found])
    eigenvalues = np.linalg.eigvalsh(lab.kernel)
    return Perturbation(
        kind=tuple(one.kind for one in found),
        radius=radius,
        frobenius=np.array([one.frobenius for one in found]),
        spectral=np.array([one.spectral for one in found]),
        paper=paper,
        ours_frobenius=np.array([ours[R][0] for R in radius.tolist()]),
        ours_spectral=np.array([ours[R][1] for R in radius.tolist()]),
        worst=worst,
        size=float(host_norm(lab.kernel)),
        smallest=float(eigenvalues[0]),
        largest=float(eigenvalues[-1]),
        converted=converted,
    )


def _paper(lab: Laboratory, R: float, failure: float, constants: Constants) -> float:
    """The paper's bound, by homogeneity for points outside the unit ball."""
    architecture = lab.architecture
    this = (architecture.activation.name, architecture.normalized)
    family = next((name for name in STATED if FAMILIES[name] == this), None)
    if R == 0:
        return 0.0
    if family is None or architecture.train_readout:
        return math.inf
    s = max(1.0, float(lab.sizes.max()))
    return s**2 * perturbation_bound(
        s * R,
        len(lab.x),
        family=family,
        k=architecture.out_dim,
        sigma=s * float(architecture.sigma),
        failure=failure,
        parameterization=architecture.parameterization,
        width=architecture.width,
        constants=constants,
    )


# --- what comes in
# ------------------------------------------------------------------------------------------------


def _float64(params: Parameters) -> Parameters:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)


def _checked_radii(radii: Any) -> list[float]:
    values = np.atleast_1d(as_double("radii", radii, integers=True))
    if values.ndim != 1:
        raise ValueError(f"radii must be a number or a list of them, got shape {values.shape}.")
    for R in values:
        known_number("radii", float(R), above=0)
    if len(set(values.tolist())) < len(values):
        raise ValueError(f"radii must name each radius once, got {values.tolist()}.")
    return values.tolist()


def _checked_kinds(kinds: Any, path: Any) -> tuple[str, ...]:
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        raise ValueError(f"kinds must be a tuple of names among {sorted(KINDS)}, got {kinds!r}.")
    for kind in kinds:
        check_choice("kinds", kind, KINDS)
    if len(set(kinds)) < len(kinds) or not (kinds or path is not None):
        raise ValueError(
            f"kinds must name each kind once, and at least one where there is no path, got {tuple(kinds)}."
        )
    return tuple(kinds)


def _steps(params: Parameters, path: Any) -> list[Parameters]:
    """Return the weights along the path, in float64."""
    check_known("path", path)
    steps = []
    for step in _listed(path):
        if not isinstance(step, Parameters) or _shapes(step) != _shapes(params):
            got = _shapes(step) if isinstance(step, Parameters) else type(step).__name__
            raise ValueError(
                f"path must have weights of the shapes of params, {_shapes(params)}, got {got}."
            )
        step = _float64(check_weights("path", step))
        if not np.array_equal(np.asarray(step.readout), params.readout):
            raise ValueError(
                "path must keep the readout, got one that moves. Only hidden weights are bounded."
            )
        steps.append(step)
    return steps


def _listed(path: Any) -> Sequence[Any]:
    """Return a path as a list of weights, at least one."""
    if isinstance(path, Parameters):
        leaves = jax.tree.leaves(path)
        length = len(leaves[0]) if np.ndim(leaves[0]) else 0
        if any(np.shape(leaf)[:1] != (length,) for leaf in leaves):
            raise ValueError(
                "path must have the same leading axis in all its weights, got others. Stack whole parameters."
            )
        path = [jax.tree.map(lambda leaf, i=i: leaf[i], path) for i in range(length)]
    if not isinstance(path, Sequence) or isinstance(path, str):
        raise ValueError(
            f"path must be Parameters with a leading axis, or a list of them, got {type(path).__name__}."
        )
    if not path:
        raise ValueError("path must have at least one set of weights, got none.")
    return path


def _shapes(params: Parameters) -> list[tuple[int, ...]]:
    leaves = (params.hidden, params.readout, params.bias)
    return [np.shape(leaf) for leaf in leaves if leaf is not None]
