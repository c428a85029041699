"""The first paper's statements on width, number of steps and learning rate, and its table.

Public in :mod:`softntk.theory.bounds`.
"""

import math
from typing import NamedTuple

from softntk._core.validation.on_host import known_number
from softntk.solvers import step_sizes
from softntk.theory.bounds._constants import (
    AS_REMEMBERED,
    FAMILIES,
    Constants,
    checked_growth,
    exp,
    growth_exponent,
    kernel_scale,
    log_ratio,
    log_size,
)


class Row(NamedTuple):
    """A line of the paper's table: how width and steps grow, and their values for these numbers.

    Attributes:
        family: "relu", "exp" or "softmax".
        width_order: the growth of the width with n and λ.
        steps_order: the growth of the number of steps with n, λ and ε.
        width: the required width.
        steps: the required number of steps.
    """

    family: str
    width_order: str
    steps_order: str
    width: float
    steps: float

    def __str__(self) -> str:
        """Return one line of text."""
        width_text = f"m ~ {self.width_order:<23} = {self.width:<9.1e}"
        return f"{self.family:<8} {width_text} T ~ {self.steps_order:<23} = {self.steps:.1e}"


def required_width(
    family: str,
    n: int,
    smallest: float,
    *,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the width from which training provably converges, λ⁻² n²k² e^{18B} log²(nk/δ).

    For "relu" it is λ⁻² n²k² log(nk/δ). Use it to see how the requirement grows. A certificate for
    one network and its data needs a much smaller width:
    :func:`softntk.theory.certify_convergence`. With another exponent
    (``constants.width_exponent``) it is the width from which the initial kernel is close to its
    limit, ‖H(0) − H*‖_F ≤ λ/4.

    Args:
        family: "softmax", "exp" or "relu".
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ, the standard deviation of the hidden weights.
        failure: δ.
        constants: see :class:`Constants`.

    Returns:
        m, not rounded; +inf beyond the largest float.

    Raises:
        ValueError: an unknown family, λ or σ not positive, n or k no positive integer, δ not in (0,
            1).

    Example:
        >>> wider = required_width("softmax", 100, 0.1, sigma=0.3)
        >>> round(wider / required_width("softmax", 100, 0.2, sigma=0.3), 9)
        4.0

    Source: arXiv 2405.03251, the main theorem; the table for relu.
    """
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    # The logarithm of the product, term by term; log(nk/δ) is squared except for ReLU.
    log_power = 1 if family == "relu" else 2
    log_factor = log_power * math.log(log_ratio(n, k, failure))
    return exp(
        math.log(constants.width)
        + log_size(n, k, smallest)
        + growth_exponent(family, constants.width_exponent) * B
        + log_factor
    )


def required_steps(
    family: str,
    n: int,
    smallest: float,
    accuracy: float,
    *,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the number of steps to ‖F(T) − Y‖² ≤ ε, 20 λ⁻² n²k² e^{16B} log(nk/ε).

    For "relu" there is no e^{16B}. It is for steps of size :func:`learning_rate` and an initial
    loss of at most nk. Use it to see how training time grows. The factor 20 is 2/0.1: since 1 − t ≤
    e^{−t}, T = (2/ηλ) log(nk/ε) brings (1 − ηλ/2)^T nk below ε.

    Args:
        accuracy: ε, of the sum of squares over all points and outputs.
        family: "softmax", "exp" or "relu".
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`Constants`.

    Returns:
        T, not rounded; zero for ε ≥ nk, +inf beyond the largest float.

    Raises:
        ValueError: as for :func:`required_width`; ε not positive.

    Example:
        >>> round(required_steps("relu", 10, 1.0, 0.1))
        9210

    Source: arXiv 2405.03251, the main theorem; the table for relu.
    """
    accuracy = known_number("accuracy", accuracy, above=0)
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    # log(nk/ε); no step is needed where the initial loss is below ε already.
    log_reduction = math.log(n) + math.log(k) - math.log(accuracy)
    if log_reduction <= 0:
        return 0.0
    log_steps = math.log(constants.steps) + log_size(n, k, smallest) + math.log(log_reduction)
    return exp(log_steps + growth_exponent(family, constants.steps_exponent) * B)


def learning_rate(
    family: str,
    n: int,
    smallest: float,
    *,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    parameterization: str = "ntk",
    width: int | None = None,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return the paper's step size, η = 0.1 λ/(n²k² e^{16B}), and m times less for "paper".

    For "relu" there is no e^{16B}. Use it with :func:`required_steps`; it is
    :func:`softntk.solvers.step_sizes.paper` at the B of these arguments.

    Args:
        parameterization: "ntk" or "paper".
        width: m; needed for "paper" alone.
        family: "softmax", "exp" or "relu".
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`Constants`.

    Returns:
        η; zero if it underflows.

    Raises:
        ValueError: as for :func:`required_width`; an unknown parameterization; no width where it is
            needed.

    Example:
        >>> learning_rate("relu", 10, 1.0)
        0.001

    Source: arXiv 2405.03251, the main theorem.
    """
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    m = kernel_scale(parameterization, width)
    step_exponent = growth_exponent(family, constants.step_exponent)
    options = {"constant": constants.step, "exponent": step_exponent}
    return float(step_sizes.paper(float(smallest), int(n), int(k), m, B, **options))


def descent_factor(
    smallest: float, rate: float, *, parameterization: str = "ntk", width: int | None = None
) -> float:
    """Return the factor by which a step shrinks ‖F − Y‖² at least, 1 − ηλ/2.

    For "paper" it is 1 − mηλ/2. Use it to bound the loss after a number of steps, as long as the
    kernel stays near its start.

    Args:
        smallest: λ of the "ntk" kernel.
        rate: η, at most 2/λ (or 2/(mλ)); the paper's is :func:`learning_rate`.
        parameterization: "ntk" or "paper".
        width: m; needed for "paper" alone.

    Returns:
        A factor in [0, 1].

    Raises:
        ValueError: λ or η not positive, or η too large; an unknown parameterization; no width where
            one is needed.

    Example:
        >>> descent_factor(0.5, 0.1)
        0.975
        >>> descent_factor(0.5, 0.1 / 64, parameterization="paper", width=64)
        0.975

    Source: arXiv 2405.03251, the induction on the loss.
    """
    smallest = known_number("smallest", smallest, above=0)
    rate = known_number("rate", rate, above=0)
    # Above 2/λ the statement would promise a negative factor.
    shrinkage = 0.5 * kernel_scale(parameterization, width) * rate * smallest
    if shrinkage > 1:
        raise ValueError(
            f"rate must be at most {rate / shrinkage:.3g} for this λ (and width), got {rate!r}. "
            "Take less."
        )
    return 1 - shrinkage


def table(
    n: int,
    smallest: float,
    accuracy: float,
    *,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> list[Row]:
    """Return the paper's table for ReLU, exp and softmax, with its values for these numbers.

    Use it to compare how width and number of steps grow with n.

    Args:
        accuracy: ε.
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`Constants`.

    Returns:
        Three :class:`Row`, which ``print(row)`` shows as lines of text.

    Raises:
        ValueError: as for :func:`required_steps`.

    Example:
        >>> [row.family for row in table(10, 0.5, 0.01)]
        ['relu', 'exp', 'softmax']

    Source: arXiv 2405.03251, table 1.
    """
    # Growth with n for a fixed σ: B grows like √log n, so that e^{cB} is n^{o(1)}.
    orders: dict[str, tuple[str, str]] = dict.fromkeys(
        FAMILIES, ("λ⁻² n^{2+o(1)} log² n", "λ⁻² n^{2+o(1)} log(n/ε)")
    )
    orders["relu"] = ("λ⁻² n² log n", "λ⁻² n² log(n/ε)")
    options = {"k": k, "sigma": sigma, "failure": failure, "constants": constants}
    return [
        Row(
            family,
            *orders[family],
            required_width(family, n, smallest, **options),
            required_steps(family, n, smallest, accuracy, **options),
        )
        for family in FAMILIES
    ]
