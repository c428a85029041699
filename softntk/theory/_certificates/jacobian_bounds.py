"""Bounds on the Jacobian of a two-layer network in its hidden weights, and on its change on a box.

The inequalities are those of the theorem in ``convergence.py``: (i) for ``bound_logit_speed``,
(iii) for ``bound_jacobian_change`` and ``bound_jacobian_curvature``.

Symbols, with n points, d features, m units and k outputs:

    J     Jacobian of F in the hidden weights               [nk, dm]
    v     u'/α (u' without the normaliser)                  [n, m]
    a     readout                                           [m, k]
    μ_i   ⟨a, u⟩/α = F_i/γ (zero without the normaliser)    [n, k]
    γ     √m or 1/√m, times the root of the kernel's scale  number
    g     γ v∘(a − μ), so that row (i, ℓ) of J is x_i ⊗ g   [n, k, m]
    A     ‖a_r‖ + (‖y_i‖ + ‖r₀‖)/γ                          [n, m]
    δ     half-widths of the box of logits                  [n, m]
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import perron_norm, slack, smallest_eigenvalue
from softntk.networks import Network, Parameters
from softntk.theory._certificates.logit_box import LogitBox, Matrix, SlopeBounds

MAX_BLOCK_ENTRIES = 20_000_000
"""Largest number of entries of g, [nk, units], that one block of units may have."""


class ProofData(NamedTuple):
    """A network and its data in the form that the proof uses, all in float64.

    Units that occur twice with opposite readouts are stored once.

    Attributes:
        x: [n, d], with a column of ones under bias.
        inner_products: |⟨x_i, x_j⟩|, rounded up, [n, n].
        squared_products: their squares, [n, n].
        box: the logits.
        readout: a, [m, k].
        copies: how often each unit occurs, 1 or 2.
        gamma: γ.
        gradient_sizes: A, [n, m].
        mean_bounds: above ‖μ_i‖, [n, 1].
        residual_norm: ‖r₀‖, rounded up.
        output_error: the largest error of an entry of F as computed.
    """

    x: Float[np.ndarray, "n d"]
    inner_products: Float[np.ndarray, "n n"]
    squared_products: Float[np.ndarray, "n n"]
    box: LogitBox
    readout: Float[np.ndarray, "m k"]
    copies: int
    gamma: float
    gradient_sizes: Matrix
    mean_bounds: Float[np.ndarray, "n 1"]
    residual_norm: float
    output_error: float


def _double_weights(params: Parameters, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points, hidden weights and readout in float64, with a bias as one more weight.

    The bias is the weight of an additional feature that is one.
    """
    hidden = np.asarray(params.hidden, np.float64)
    if params.bias is not None:
        # ⟨(x, 1), (w, b)⟩ = ⟨x, w⟩ + b.
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        hidden = np.concatenate([hidden, np.asarray(params.bias, np.float64)[None]])
    return x, hidden, np.asarray(params.readout, np.float64)


def _has_opposite_pairs(hidden: np.ndarray, readout: np.ndarray) -> bool:
    """Return whether the second half of the units repeats the first with the opposite readout."""
    # An antisymmetric start stores its pairs as two halves: (W, W) and (a, −a).
    pair_count, remainder = divmod(hidden.shape[1], 2)
    return (
        not remainder
        and np.array_equal(hidden[:, :pair_count], hidden[:, pair_count:])
        and np.array_equal(readout[:pair_count], -readout[pair_count:])
    )


def prepare(net: Network, params: Parameters, x: np.ndarray, y: np.ndarray) -> "ProofData | str":
    """Return the data of the proof for x [n, d] and y [n, k], or the reason why there is none."""
    # 1. Weights in float64; F = 0 exactly for an antisymmetric start, of which half is enough.
    x, hidden, readout = _double_weights(params, x)
    d, m = hidden.shape
    is_antisymmetric = _has_opposite_pairs(hidden, readout)
    if is_antisymmetric:
        hidden = hidden[:, : m // 2]
        readout = readout[: m // 2]
    architecture = net.architecture
    copies = 1 + is_antisymmetric
    kernel_root = math.sqrt(architecture.kernel_scale)
    gamma = kernel_root * (math.sqrt(m) if architecture.normalized else 1 / math.sqrt(m))
    # 2. The logits; the normaliser must be positive.
    enclosure = architecture.activation.enclosure
    assert enclosure is not None
    box = LogitBox(enclosure, architecture.normalized, x, hidden, copies)
    if not (box.total > 0).all() or box.slopes(box.start) is None:
        row = int(np.argmin(box.total))
        return (
            f"The normaliser of row {row} is not above zero, or the network overflows: "
            "there is no proof for such a start."
        )
    # 3. Outputs and residual, from above.
    with np.errstate(over="ignore", invalid="ignore"):
        outputs = np.zeros_like(y) if is_antisymmetric else gamma * (box.values @ readout)
        output_error = 0.0 if is_antisymmetric else _output_error(box, readout, gamma, m)
        residual_norm = (
            float(host_norm(outputs - y)) * (1 + slack(outputs.size))
            + math.sqrt(outputs.size) * output_error
        )
    if not np.isfinite(residual_norm):
        return "The network overflows at the start: there is no proof for it."
    # 4. A, and |⟨x_i, x_j⟩| with its square, rounded up.
    readout_norms = host_norm(readout, axis=1)[None, :]
    mean_bounds = np.zeros((len(x), 1))
    if architecture.normalized:
        mean_bounds = (host_norm(y, axis=1, keepdims=True) + residual_norm) / gamma
    rounding = (d + 2) * np.finfo(float).eps * (np.abs(x) @ np.abs(x).T)
    inner_products = (np.abs(x @ x.T) + rounding) * (1 + slack(d))
    # Squares that underflow are replaced by the smallest normal number, which is above them.
    squared_products = np.where(
        inner_products > 0, np.maximum(inner_products**2, np.finfo(float).tiny), 0
    )
    if not np.isfinite(squared_products).all():
        return (
            "Squares of inner products of rows of x exceed the largest float: there is no proof. "
            "Take another unit."
        )
    return ProofData(
        x=x,
        inner_products=inner_products,
        squared_products=squared_products,
        box=box,
        readout=readout,
        copies=copies,
        gamma=gamma,
        gradient_sizes=readout_norms + mean_bounds,
        mean_bounds=mean_bounds,
        residual_norm=residual_norm,
        output_error=output_error,
    )


def _output_error(box: LogitBox, readout: np.ndarray, gamma: float, m: int) -> float:
    """Return the largest error of an entry of F = γ (u/α) a as computed."""
    # Errors of u/α from the rounding of the logits, and that of the sum over units.
    errors = box.value_errors() + slack(m) * np.abs(box.values)
    return gamma * float(np.max(errors @ np.abs(readout), initial=0.0))


def bound_logit_speed(data: ProofData, slopes: SlopeBounds) -> Matrix:
    """Return the right-hand side of δ's equation, γ (Σ_j ⟨x_i, x_j⟩² (|v|⁺_jr A_jr)²)^{1/2}."""
    # Cauchy and Schwarz over the points j, for all units at once.
    squares = (slopes.modulus * data.gradient_sizes) ** 2
    return data.gamma * np.sqrt(data.squared_products @ squares) * (1 + slack(len(data.x)))


def _bound_change_norm(data: ProofData, slope_change: Matrix, mean_change: Matrix) -> float:
    """Return a bound by (iii) of the norm of a change of J.

    Args:
        data: the network.
        slope_change: Δv ≥ 0; this part of the change of g is γ Δv∘a.
        mean_change: γ Δv∘μ + v∘ΔF, the part of the change of g that does not depend on a.
    """
    # 1. Σ_r b_ir b_jr with b_ir = γ|Δv_ir|‖a_r‖, and the norm of a matrix with these entries.
    readout_norms = host_norm(data.readout, axis=1)
    copies_root = math.sqrt(data.copies)
    with np.errstate(over="ignore", invalid="ignore"):
        b = copies_root * data.gamma * slope_change * readout_norms
        slope_square = perron_norm(data.inner_products * (b @ b.T))
        # 2. Several outputs: also (λ_iλ_j)^{1/2}, λ_i = λ_max(γ²Σ_r Δv_ir² a_ra_rᵀ); the smaller.
        if data.readout.shape[1] > 1:
            output_grams = (data.copies * data.gamma**2) * np.einsum(
                "ir,rk,rl->ikl", slope_change**2, data.readout, data.readout, optimize=True
            )
            if np.isfinite(output_grams).all():
                top_eigenvalues = np.linalg.eigvalsh(output_grams)[:, -1].clip(0)
                roots = np.sqrt(top_eigenvalues * (1 + slack(data.readout.shape[0])))
                slope_square = min(
                    slope_square, perron_norm(data.inner_products * np.outer(roots, roots))
                )
        # 3. The part without a, by the triangle inequality.
        scaled_change = copies_root * mean_change
        mean_square = perron_norm(data.inner_products * (scaled_change @ scaled_change.T))
        total = math.sqrt(slope_square) + math.sqrt(mean_square)
    return total * (1 + slack(data.readout.shape[0]))


def bound_jacobian_change(data: ProofData, slopes: SlopeBounds) -> float:
    """Return ΔJ, a bound of ‖J(W) − J(W₀)‖ on the box of these slopes, J(W₀) as computed."""
    centre = data.box.centre
    # |v − v⁰| is largest at an end of the enclosure.
    slope_change = np.maximum(slopes.upper - centre, centre - slopes.lower)
    # ‖ΔF_i‖ ≤ 2‖r₀‖ while the residual does not grow.
    output_change = 2 * data.residual_norm + data.output_error if data.box.normalized else 0.0
    mean_change = data.gamma * slope_change * data.mean_bounds + np.abs(centre) * output_change
    return _bound_change_norm(data, slope_change, mean_change)


def bound_jacobian_curvature(data: ProofData, slopes: SlopeBounds, largest: float) -> float:
    """Return κ, a bound of the change of J per unit of mass on the box of these slopes.

    |dv| ≤ |u''/α||h| + |v|⟨|v|, |h|⟩, h the speed of the logits, and |dF| ≤ β², β = ``largest``.
    """
    # The first term is the unit's own move, the second the change of its normaliser.
    speed = bound_logit_speed(data, slopes)
    largest_slopes = slopes.modulus
    slope_change = slopes.second * speed
    if data.box.normalized:
        mean_speed = data.copies * np.sum(largest_slopes * speed, axis=1, keepdims=True)
        slope_change += largest_slopes * mean_speed
    output_change = largest**2 if data.box.normalized else 0.0
    mean_change = data.gamma * slope_change * data.mean_bounds + largest_slopes * output_change
    return _bound_change_norm(data, slope_change, mean_change)


def bound_singular_values(data: ProofData) -> tuple[float, float, int, int]:
    """Return bounds of the extreme singular values of J, and the rows that are hardest to separate.

    Returns:
        σ_min² from below, σ_max² from above, and the two rows of x with the largest shares of the
        lowest eigenvector.
    """
    # 1. The Gram matrix of g over (i, ℓ), in blocks of units that fit into memory.
    readout = data.readout
    centre = data.box.centre
    n, m = centre.shape
    k = readout.shape[1]
    has_means = data.box.normalized and data.output_error
    means = data.box.values @ readout if has_means else np.zeros((n, k))
    grams = np.zeros((n * k, n * k))
    block_size = max(MAX_BLOCK_ENTRIES // (n * k), 1)
    for start in range(0, m, block_size):
        units = slice(start, start + block_size)
        centred_readout = readout[units].T[None] - means[:, :, None]
        g = data.gamma * centre[:, None, units] * centred_readout
        g = g.reshape(n * k, -1)
        grams += data.copies * (g @ g.T)
    # 2. H = JJᵀ has the entries ⟨x_i, x_j⟩⟨g_iℓ, g_jℓ'⟩.
    H = np.repeat(np.repeat(data.x @ data.x.T, k, 0), k, 1) * grams
    H = (H + H.T) / 2
    if not np.isfinite(H).all():
        return -math.inf, math.inf, 0, 0
    # 3. Eigenvalues with their rounding, and the rows that dominate the lowest eigenvector.
    error = slack(m + data.x.shape[1]) * float(np.trace(H))
    eigenvalues, eigenvectors = np.linalg.eigh(H)
    row_shares = np.linalg.norm(eigenvectors[:, 0].reshape(n, k), axis=1)
    closest_rows = np.argsort(-row_shares)[:2]
    first_row = int(closest_rows.min())
    second_row = int(closest_rows.max())
    top_eigenvalue = float(eigenvalues[-1])
    largest_squared = top_eigenvalue + error + slack(n * k) * top_eigenvalue
    return smallest_eigenvalue(H, error), largest_squared, first_row, second_row
