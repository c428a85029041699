r"""The first paper's statements as numbers: how wide, how many steps, how far, for softmax, exp and
ReLU.

With n points, k outputs, λ = λ_min of the infinite-width kernel, failure probability δ and B =
max(Cσ√log(nk/δ), 1) (:func:`growth`), for ``parameterization="ntk"``:

| | softmax, exp | relu |
|---|---|---|
| :func:`required_width` m | λ⁻² n²k² e^{18B} log²(nk/δ) | λ⁻² n²k² log(nk/δ) |
| :func:`required_steps` T | 20 λ⁻² n²k² e^{16B} log(nk/ε) | 20 λ⁻² n²k² log(nk/ε) |
| :func:`learning_rate` η | 0.1 λ/(n²k² e^{16B}) | 0.1 λ/(n²k²) |
| :func:`radius` D | 4 m^{-1/2} λ⁻¹ e^{3B} √(nk) ‖Y − F(0)‖ | 4 m^{-1/2} λ⁻¹ √(nk) ‖Y − F(0)‖ |
| :func:`perturbation_bound` | R n k e^{10B} | 2 R n k/σ |
| :func:`smallest_eigenvalue` | ¾λ − the bound above | ¾λ − the bound above |
| :func:`descent_factor` | 1 − ηλ/2 | 1 − ηλ/2 |

The paper writes F = m⟨a, softmax⟩, √m times our F (``parameterization="paper"``): there kernels are
m times as large, and so is what moves them; learning rates are m times smaller, and D is 4 m⁻¹ λ⁻¹
…, for residuals that are √m times as large. The λ of every function is that of the "ntk" kernel,
λ_min(kernel)/m of the other.

The full text was not at hand. Exponents and constants are as remembered, so they are fields of
:class:`Constants`; those hidden in Ω are 1, but for T, whose 20 = 2/0.1 makes (1 − ηλ/2)^T nk ≤ ε
true. The paper compares with ReLU for k = 1; k and δ stand in its column by analogy. Everything is
computed in logarithms: a width of 1e40 is a number, and +inf one beyond the largest.

Example:
    >>> from softntk.theory import bounds
    >>> for row in bounds.table(100, 0.1, 1e-3, sigma=0.3):
    ...     print(row)
    relu     m ~ λ⁻² n² log n            = 6.9e+06   T ~ λ⁻² n² log(n/ε)         = 2.3e+08
    exp      m ~ λ⁻² n^{2+o(1)} log² n   = 3.1e+15   T ~ λ⁻² n^{2+o(1)} log(n/ε) = 2.0e+15
    softmax  m ~ λ⁻² n^{2+o(1)} log² n   = 3.1e+15   T ~ λ⁻² n^{2+o(1)} log(n/ε) = 2.0e+15

Source: arXiv 2405.03251, the main theorem, its lemmas, and its table;
MATHEMATICS.md#convergence-statements.
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
    exponent,
    kernel_scale,
    log_ratio,
    log_size,
)


class Row(NamedTuple):
    """A line of the paper's table: how width and steps grow, and what they are here."""

    family: str
    width_order: str
    steps_order: str
    width: float
    steps: float

    def __str__(self) -> str:
        """One line of text."""
        width = f"m ~ {self.width_order:<23} = {self.width:<9.1e}"
        return f"{self.family:<8} {width} T ~ {self.steps_order:<23} = {self.steps:.1e}"


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
    """The width from which training provably converges, λ⁻² n²k² e^{18B} log²(nk/δ); relu: λ⁻² n²k²
    log(nk/δ).

    With another exponent (``constants.width_exponent``) it is the one from which ‖H(0) − H*‖_F ≤
    λ/4 at the start. A certificate of the instance asks for far less:
    :func:`softntk.theory.certify_convergence`.

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
        >>> round(required_width("softmax", 100, 0.1, sigma=0.3) / required_width("softmax", 100, 0.2, sigma=0.3), 9)
        4.0

    Source: arXiv 2405.03251, the main theorem; the table for relu.
    """
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    logs = (1 if family == "relu" else 2) * math.log(log_ratio(n, k, failure))
    return exp(
        math.log(constants.width)
        + log_size(n, k, smallest)
        + exponent(family, constants.width_exponent) * B
        + logs
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
    """The steps of size :func:`learning_rate` to ‖F(T) − Y‖² ≤ ε, from nk: 20 λ⁻² n²k² e^{16B}
    log(nk/ε); relu without e^{16B}.

    20 is 2/0.1: since 1 − t ≤ e^{−t}, T = (2/ηλ) log(nk/ε) brings (1 − ηλ/2)^T nk below ε.

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
        ValueError: as :func:`required_width`; ε not positive.

    Example:
        >>> round(required_steps("relu", 10, 1.0, 0.1))
        9210

    Source: arXiv 2405.03251, the main theorem; the table for relu.
    """
    accuracy = known_number("accuracy", accuracy, above=0)
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    rounds = math.log(n) + math.log(k) - math.log(accuracy)
    if rounds <= 0:
        return 0.0
    size = math.log(constants.steps) + log_size(n, k, smallest) + math.log(rounds)
    return exp(size + exponent(family, constants.steps_exponent) * B)


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
    """η = 0.1 λ/(n²k² e^{16B}), and m times less for "paper":
    :func:`softntk.solvers.step_sizes.paper` at this B.

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
        ValueError: as :func:`required_width`; an unknown parameterization; no width where one is
            needed.

    Example:
        >>> learning_rate("relu", 10, 1.0)
        0.001

    Source: arXiv 2405.03251, the main theorem.
    """
    B = checked_growth(family, n, smallest, k, sigma, failure, constants)
    m = kernel_scale(parameterization, width)
    power = exponent(family, constants.step_exponent)
    return float(
        step_sizes.paper(
            float(smallest), int(n), int(k), m, B, constant=constants.step, exponent=power
        )
    )


def descent_factor(
    smallest: float, rate: float, *, parameterization: str = "ntk", width: int | None = None
) -> float:
    """What a step multiplies ‖F − Y‖² by at most: 1 − ηλ/2, or 1 − mηλ/2 for "paper".

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
        >>> descent_factor(0.5, 0.1), descent_factor(0.5, 0.1 / 64, parameterization="paper", width=64)
        (0.975, 0.975)

    Source: arXiv 2405.03251, the induction on the loss.
    """
    smallest = known_number("smallest", smallest, above=0)
    rate = known_number("rate", rate, above=0)
    shrinkage = 0.5 * kernel_scale(parameterization, width) * rate * smallest
    if shrinkage > 1:
        raise ValueError(
            f"rate must be at most {rate / shrinkage:.3g} for this λ (and width), got {rate!r}. Take less."
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
    """The paper's table for ReLU, exp and softmax: how width and steps grow with n, and what they
    are for these numbers.

    Args:
        accuracy: ε.
        n: points.
        smallest: λ of the "ntk" kernel.
        k: outputs.
        sigma: σ.
        failure: δ.
        constants: see :class:`Constants`.

    Returns:
        Three :class:`Row`; ``print(row)``, or ``rich_table.add_row(*map(str, row))``.

    Raises:
        ValueError: as :func:`required_steps`.

    Example:
        >>> [row.family for row in table(10, 0.5, 0.01)]
        ['relu', 'exp', 'softmax']

    Source: arXiv 2405.03251, table 1.
    """
    orders: dict[str, tuple[str, str]] = dict.fromkeys(
        FAMILIES, ("λ⁻² n^{2+o(1)} log² n", "λ⁻² n^{2+o(1)} log(n/ε)")
    )
    orders["relu"] = ("λ⁻² n² log n", "λ⁻² n² log(n/ε)")
    rest = {"k": k, "sigma": sigma, "failure": failure, "constants": constants}
    return [
        Row(
            family,
            *orders[family],
            required_width(family, n, smallest, **rest),
            required_steps(family, n, smallest, accuracy, **rest),
        )
        for family in FAMILIES
    ]
