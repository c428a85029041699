r"""A bound on the risk of kernel predictors, with explicit constants and its proof.

Public as :func:`softntk.theory.risk_bound`.

Example:
    >>> import jax, softntk as sn
    >>> net = sn.networks.two_layer("softmax", width=2)
    >>> x = jax.random.normal(jax.random.key(0), (1000, 3))
    >>> x = x / jax.numpy.linalg.norm(x, axis=1, keepdims=True)
    >>> bound = sn.theory.risk_bound(net.kernel_fn(x, None, "ntk"), 0.3 * x[:, :1], ridge=1.0)
    >>> 0.1 < float(bound.bound[0]) < 0.4
    True
"""

import math

import numpy as np
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation.on_host import Targets, known_number
from softntk._linalg.kernel_eigenbasis import as_target_matrix, decompose, target_unit
from softntk._linalg.norms import host_norm


@record
class RiskBound:
    """A bound on the risk of one predictor for each output, with its terms.

    All fields are [k], except the coefficients.

    Attributes:
        bound: training + complexity + deviation, at most 1; with probability 1 − δ all k hold at
            once.
        training: mean clipped absolute error on the training points.
        complexity: 2R√tr(H)/n.
        deviation: 3√(log(2/δ_j)/2n).
        norm: upper bound of the predictor's norm in the kernel's space.
        coefficients: c, [n, k]: the predictor is f(x) = Σ c_i K(x, x_i).
    """

    bound: Float[np.ndarray, " k"]
    training: Float[np.ndarray, " k"]
    complexity: Float[np.ndarray, " k"]
    deviation: Float[np.ndarray, " k"]
    norm: Float[np.ndarray, " k"]
    coefficients: Float[np.ndarray, "n k"]


def risk_bound(
    gram: Float[Array | np.ndarray, "n n"],
    y: Targets,
    failure: float = 0.1,
    *,
    ridge: float = 0.0,
    time: float = math.inf,
    unit: float = 1.0,
    ratio: float = 1.25,
) -> RiskBound:
    r"""Return an upper bound on the risk E min(1, |f(x) − y|) of a kernel predictor.

    Use it to bound the error on new data of the interpolant, of a ridge regression, or of gradient
    flow stopped at a time, without test data. With probability 1 − δ over n independent pairs
    (x_i, y_i), for the predictor f = Σ c_i K(·, x_i) of norm ‖f‖² = cᵀHc,

        E min(1, |f(x) − y|) ≤ 1/n Σ min(1, |f(x_i) − y_i|) + 2R √tr(H)/n + 3 √(log(2/δ_j)/2n),

    Here R is the smallest of the radii unit·ratio^j, j any integer, that is at least ‖f‖, and δ_j =
    ⅔ δ/((|j| + 1)(|j| + 2)k). For the interpolant the first term is zero, and the second is
    2√(yᵀH⁻¹y · (tr H/n)/n), up to the grid of radii: this is the bound of Arora et al.

    **Proof.** Fix R, and let G be the losses ℓ(f(x), y) = min(1, |f(x) − y|) ∈ [0, 1] of all f with
    ‖f‖ ≤ R, and 𝓡 = E_s sup_G 1/n Σ s_i ℓ_i with random signs s.

    1. sup_G(E ℓ − mean ℓ) changes by at most 1/n with one pair. By McDiarmid it exceeds its mean by
       √(log(2/δ)/2n) with probability at most δ/2. That mean is at most 2 E 𝓡 (symmetrisation). 𝓡
       also changes by at most 1/n with one pair, so that E 𝓡 ≤ 𝓡 + √(log(2/δ)/2n) except with
       probability δ/2. Together: E ℓ ≤ mean ℓ + 2𝓡 + 3√(log(2/δ)/2n) for all of G, with probability
       1 − δ.
    2. ℓ is 1-Lipschitz in f(x): 𝓡 is at most that of the functions themselves (contraction; Ledoux
       and Talagrand).
    3. That is E sup ⟨f, 1/n Σ s_i K(·, x_i)⟩ = R/n E‖Σ s_i K(·, x_i)‖
       ≤ R/n √(E Σ s_i s_j K(x_i, x_j)) = R√tr(H)/n.
    4. ‖f‖ depends on the data. Use 1 to 3 for every R_j with δ_j: Σ_j 1/((|j| + 1)(|j| + 2)) = 3/2,
       so Σ_j δ_j = δ/k for each of k outputs; then the bound holds for all f, radii and outputs at
       once. ∎

    ``unit``, ``ratio`` and the kernel function must not depend on the data. The bound is about the
    function with the returned coefficients. The rounding δ_H of the kernel's entries is added to
    its norm, ‖f‖² ≤ cᵀHc + δ_H‖c‖², and to its training errors, as δ_H‖c‖. Eigenvalues below δ_H
    are omitted: a singular kernel gives the least-squares fit of smallest norm.

    Args:
        gram: H, [n, n].
        y: [n, k], or [n] for one output.
        failure: δ, in (0, 1).
        ridge: ≥ 0; c = (H + ridge I)⁻¹y. Zero, without a time, is the interpolant.
        time: > 0; c = H⁻¹(I − e^{−Ht})y, gradient flow on ½ΣΣ(F−Y)² from zero until this time
            (learning rate × steps).
        unit: > 0, a guess of the norm; a wrong guess increases the bound little.
        ratio: > 1, the ratio of consecutive radii.

    Returns:
        :class:`RiskBound`.

    Raises:
        ValueError: failure outside (0, 1), ridge negative, time or unit not positive, ratio not
            above 1, ridge and time both; gram or y as for :func:`softntk.theory.rkhs_norm`.

    Example:
        >>> import numpy as np
        >>> risk = risk_bound(np.eye(2000), np.full((2000, 1), 0.01), ridge=1.0)
        >>> round(float(risk.training[0]), 3), 0.1 < float(risk.bound[0]) < 0.2
        (0.005, True)

    Source: Arora et al. (2019), arXiv 1901.08584, Theorem 5.1; Bartlett and Mendelson (2002), JMLR
    3, 463-482, Lemma 22.
    """
    # 1. Check the arguments.
    failure = known_number("failure", failure, above=0, below=1)
    ridge = known_number("ridge", ridge, at_least=0)
    time = known_number("time", time, above=0, infinite=True)
    if ridge > 0 and time < math.inf:
        raise ValueError("ridge and time are two predictors, got both. Leave one of them out.")
    unit = known_number("unit", unit, above=0)
    ratio = known_number("ratio", ratio, above=1)
    values, vectors, delta = decompose(gram)
    if np.ndim(gram) != 2:
        raise ValueError(
            f"gram must have shape [n, n], got {np.shape(gram)}. Use outputs='mean', or one output "
            "at a time."
        )
    columns = as_target_matrix(gram, y)
    n, k = columns.shape
    # Eigenvalues below the rounding of the kernel are not resolved, and get no coefficient.
    is_resolved = values > delta
    safe_values = np.where(is_resolved, values, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        # 2. The filter of the predictor on the eigenvalues.
        if time == math.inf:
            factors = 1 / (safe_values + ridge)
        else:
            factors = -np.expm1(-safe_values * time) / safe_values
        # 3. Coefficients along the eigenvectors, in the unit of the targets, so that no square
        #    over- or underflows.
        scale = target_unit(columns)
        components = vectors.T @ (columns / scale)
        spectral_coefficients = np.where(is_resolved, factors, 0)[:, None] * components
        coefficient_norms = host_norm(spectral_coefficients, axis=0)
        # 4. ‖f‖² ≤ cᵀHc + δ_H‖c‖², and the clipped training errors.
        rkhs_coefficients = np.sqrt(np.maximum(values, 0))[:, None] * spectral_coefficients
        norm = scale * np.hypot(
            host_norm(rkhs_coefficients, axis=0), math.sqrt(delta) * coefficient_norms
        )
        misfit = vectors @ (values[:, None] * spectral_coefficients - components)
        residual = scale * (np.abs(misfit) + delta * coefficient_norms)
        training = np.mean(np.where(residual < 1, residual, 1), axis=0)
        # 5. The radius R = unit·ratio^j next above the norm, and the three terms of the bound.
        log_norm = np.log(np.maximum(norm, 1e-300))
        j = np.ceil((log_norm - math.log(unit)) / math.log(ratio))
        trace_root = math.sqrt(float(np.trace(np.asarray(gram, np.float64))))
        complexity = 2 * unit * ratio**j * trace_root / n
        # 2/δ_j = 3k(|j| + 1)(|j| + 2)/δ.
        log_confidence = np.log(3 * k * (np.abs(j) + 1) * (np.abs(j) + 2)) - math.log(failure)
        deviation = 3 * np.sqrt(log_confidence / (2 * n))
        total = training + complexity + deviation
    return RiskBound(
        bound=np.where(total < 1, total, 1.0),
        training=training,
        complexity=complexity,
        deviation=deviation,
        norm=norm,
        coefficients=scale * vectors @ spectral_coefficients,
    )
