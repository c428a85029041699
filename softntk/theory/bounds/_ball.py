"""The first paper's ball around the initial weights: its radius and the change of the kernel in it.

Public in :mod:`softntk.theory.bounds`.
"""

import math

from softntk._core.validation import check_positive_int
from softntk._core.validation.on_host import known_number
from softntk.theory.bounds._constants import (
    AS_REMEMBERED,
    Constants,
    checked_growth,
    exp,
    growth_exponent,
    kernel_scale,
)


def radius(
    family: str,
    n: int,
    smallest: float,
    residual: float,
    width: int,
    *,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    parameterization: str = "ntk",
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the largest move of a neuron, D = 4 m^{-1/2} λ⁻¹ e^{3B} √(nk) ‖Y − F(0)‖_F.

    For "relu" there is no e^{3B}, for "paper" m⁻¹ instead of m^{-1/2}. Use it as the R of
    :func:`perturbation_bound`, to see whether the kernel stays positive definite during training.

    A neuron's gradient is at most e^{3B} √(nk) m^{-1/2} times the residual, which shrinks like
    (1 − ηλ/2)^{τ/2}: the sum of η e^{3B} √(nk) m^{-1/2} (1 − ηλ/2)^{τ/2} over all steps is at most
    D. For "paper" the gradient has no m^{-1/2} and the rate is mηλ/2, which gives m⁻¹; for the same
    move of the weights its residual is √m times ours.

    Args:
        residual: ‖Y − F(0)‖_F, in the scaling of the parameterization.
        width: m.
        parameterization: "ntk" or "paper".
        family: "softmax", "exp" or "relu".
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`softntk.theory.bounds.Constants`.

    Returns:
        D; +inf beyond the largest float.

    Raises:
        ValueError: as for :func:`softntk.theory.required_width`; residual not positive; width no
            positive integer; an unknown parameterization.

    Example:
        >>> round(radius("relu", 4, 0.5, 2.0, 1024), 9)
        1.0

    Source: arXiv 2405.03251, the definition of D and the induction that no neuron leaves the ball.
    """
    residual = known_number("residual", residual, above=0)
    width = check_positive_int("width", width)
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    kernel_scale(parameterization, width)  # only for its checks of both
    # The logarithm of the product, term by term.
    width_power = 1.0 if parameterization == "paper" else 0.5
    log_scale = (
        math.log(constants.radius)
        - width_power * math.log(width)
        - math.log(smallest)
        + math.log(residual)
    )
    log_growth = growth_exponent(family, constants.radius_exponent) * B
    return exp(log_scale + log_growth + 0.5 * (math.log(n) + math.log(k)))


def perturbation_bound(
    R: float,
    n: int,
    *,
    family: str = "softmax",
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    parameterization: str = "ntk",
    width: int | None = None,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the paper's bound ‖H(W̃) − H(W)‖_F ≤ R n k e^{10B} for ‖w̃_r − w_r‖ ≤ R.

    For "relu" it is 2 R n k/σ. The points must lie in the unit ball. Use it to see the paper's
    numbers; :func:`softntk.theory.perturbation` measures the change and has a much smaller, proven
    bound.

    Args:
        R: the largest move of a neuron.
        parameterization: "ntk" or "paper", whose kernel changes m times as much.
        width: m; needed for "paper" alone.
        family: "softmax", "exp" or "relu".
        n: points.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`softntk.theory.bounds.Constants`.

    Returns:
        The bound; +inf beyond the largest float.

    Raises:
        ValueError: as for :func:`softntk.theory.required_width`; R not positive; an unknown
            parameterization; no width where one is needed.

    Example:
        >>> f"{perturbation_bound(0.01, 100, sigma=0.3):.0f}"
        '22026'

    Source: arXiv 2405.03251, the lemma on perturbed weights; relu: Song and Yang, arXiv 1906.03593,
    Lemma 3.2, for σ = 1.
    """
    # λ does not enter the bound: 1 stands for it in the shared check.
    R = known_number("R", R, above=0)
    B = checked_growth(family, n, 1.0, k, sigma, failure, constants)
    scale = kernel_scale(parameterization, width)
    log_size = math.log(R) + math.log(n) + math.log(k) + math.log(scale)
    if family == "relu":  # signs flip with a probability in proportion to R/σ
        return exp(log_size + math.log(constants.relu_perturbation) - math.log(sigma))
    return exp(log_size + constants.perturbation_exponent * B)


def smallest_eigenvalue(
    R: float,
    n: int,
    smallest: float,
    *,
    family: str = "softmax",
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    parameterization: str = "ntk",
    width: int | None = None,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the paper's lower bound of λ_min(H(W̃)), ¾λ − :func:`perturbation_bound`.

    Use it at widths for which ‖H(0) − H*‖ ≤ λ/4: where it is positive, the kernel stays positive
    definite within the ball.

    Args:
        R: the largest move of a neuron.
        parameterization: "ntk" or "paper", whose eigenvalues are m times as large.
        width: m; needed for "paper" alone.
        family: "softmax", "exp" or "relu".
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`softntk.theory.bounds.Constants`.

    Returns:
        The bound; it says nothing where it is not positive.

    Raises:
        ValueError: as for :func:`perturbation_bound`; λ not positive.

    Example:
        >>> round(smallest_eigenvalue(1e-4, 10, 0.4, family="relu"), 3)
        0.298

    Source: arXiv 2405.03251, the lemma on perturbed weights.
    """
    smallest = known_number("smallest", smallest, above=0)
    # Concentration at the start leaves ¾λ, and the move of the weights costs its bound (Weyl).
    change = perturbation_bound(
        R,
        n,
        family=family,
        k=k,
        sigma=sigma,
        failure=failure,
        parameterization=parameterization,
        width=width,
        constants=constants,
    )
    return 0.75 * kernel_scale(parameterization, width) * smallest - change
