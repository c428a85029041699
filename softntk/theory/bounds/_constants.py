"""The constants of the first paper's statements, and the logarithms they are computed in.

Public in :mod:`softntk.theory.bounds`.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass

from softntk._core.validation import check_choice, check_number, check_positive_int
from softntk._core.validation.on_host import known_number
from softntk.networks import PARAMETERIZATIONS

FAMILIES = ("relu", "exp", "softmax")
"""The families of networks that the paper's table compares."""


@dataclass(frozen=True)
class Constants:
    """Constants and exponents of the paper's statements; the defaults are as remembered.

    Use it to see how much a statement depends on what is not known for certain.

    Attributes:
        concentration: C in B.
        width: factor that Ω hides in the width.
        width_exponent: power of e^B in the width.
        step: factor of the learning rate.
        step_exponent: power of e^{-B} in the learning rate.
        steps: factor that Ω hides in the number of steps; 2/step.
        steps_exponent: power of e^B in the number of steps.
        radius: factor of D.
        radius_exponent: power of e^B in D.
        perturbation_exponent: power of e^B in the perturbation bound.
        relu_perturbation: factor of the perturbation bound of ReLU, which holds with probability
            1 − n² e^{−mR/10} (Song and Yang).
    """

    concentration: float = 1.0
    width: float = 1.0
    width_exponent: float = 18.0
    step: float = 0.1
    step_exponent: float = 16.0
    steps: float = 20.0
    steps_exponent: float = 16.0
    radius: float = 4.0
    radius_exponent: float = 3.0
    perturbation_exponent: float = 10.0
    relu_perturbation: float = 2.0

    def __post_init__(self) -> None:
        """Refuse factors that are not positive; exponents and C may be any number."""
        # C may be zero or negative, because B is at least one in any case.
        factor_names = ("width", "step", "steps", "radius", "relu_perturbation")
        for constant in dataclasses.fields(self):
            value = getattr(self, constant.name)
            lower_limit = 0 if constant.name in factor_names else None
            number = known_number(constant.name, value, above=lower_limit)
            object.__setattr__(self, constant.name, number)


AS_REMEMBERED = Constants()
"""The constants of the paper, as remembered."""


def exp(t: float) -> float:
    """Return e^t, +inf beyond the largest number."""
    return math.exp(t) if t < math.log(sys.float_info.max) else math.inf


def log_ratio(n: int, k: int, failure: float) -> float:
    """Check n, k and δ, and return the logarithm of nk/δ."""
    check_positive_int("n", n)
    check_positive_int("k", k)
    failure = known_number("failure", failure, above=0, below=1)
    # A sum of logarithms: nk may be beyond the largest float.
    return math.log(n) + math.log(k) - math.log(failure)


def log_size(n: int, k: int, smallest: float) -> float:
    """Return the logarithm of n²k²/λ²."""
    return 2 * (math.log(n) + math.log(k) - math.log(smallest))


def growth(
    n: int,
    k: int = 1,
    sigma: float = 1.0,
    failure: float = 0.1,
    constants: Constants = AS_REMEMBERED,
) -> float:
    """Return B = max(Cσ√log(nk/δ), 1), the paper's bound on logits of points in the unit ball.

    Use it to see how fast the exponential factors e^{cB} of the statements grow with n and σ.

    Args:
        n: points.
        k: outputs.
        sigma: σ, the standard deviation of the hidden weights.
        failure: δ.
        constants: C is ``constants.concentration``.

    Returns:
        B.

    Raises:
        ValueError: n or k no positive integer, σ not positive, δ not in (0, 1).

    Example:
        >>> growth(100, sigma=0.3), round(growth(100), 3)
        (1.0, 2.628)

    Source: arXiv 2405.03251, definition of B.
    """
    # The largest of nk Gaussian logits of deviation σ is below B with probability 1 − δ.
    sigma = known_number("sigma", sigma, above=0)
    check_constants(constants)
    return max(constants.concentration * sigma * math.sqrt(log_ratio(n, k, failure)), 1.0)


def check_constants(constants: object) -> None:
    """Refuse objects that are no :class:`Constants`."""
    if not isinstance(constants, Constants):
        raise ValueError(
            f"constants must be theory.bounds.Constants, got {type(constants).__name__}."
        )


def checked_growth(
    family: str, n: int, smallest: float, k: int, sigma: float, failure: float, constants: Constants
) -> float:
    """Check the arguments that all statements share, and return B."""
    check_choice("family", family, FAMILIES)
    known_number("smallest", smallest, above=0)
    return growth(n, k, sigma, failure, constants)


def growth_exponent(family: str, power: float) -> float:
    """Return the power of e^B in a statement: zero for ReLU, whose values are not exponential."""
    return 0.0 if family == "relu" else power


def kernel_scale(parameterization: str, width: int | None) -> int:
    """Return the factor of kernels in a parameterization: m for "paper", 1 for "ntk"."""
    check_choice("parameterization", parameterization, PARAMETERIZATIONS)
    if width is None and parameterization != "paper":
        return 1
    # A width that no float holds would overflow later, without a name.
    width = check_positive_int("width", width)
    check_number("width", width)
    return width if parameterization == "paper" else 1
