r"""The step sizes of the theory, for :func:`softntk.solvers.gradient_descent`.

The loss has a Hessian (or a kernel) with eigenvalues in [λ_min, λ_max], and κ = λ_max/λ_min. The
last column is the factor on the distance to the minimum in each step. It is an upper bound for
``fastest``, holds in the limit of many steps for ``heavy_ball``, and up to a constant for
``nesterov``.

| | η | momentum | factor |
|---|---|---|---|
| :func:`fastest` | 2/(λ_max + λ_min) | – | (κ − 1)/(κ + 1) |
| :func:`heavy_ball` | 4/(√λ_max + √λ_min)² | ((√κ − 1)/(√κ + 1))² | (√κ − 1)/(√κ + 1) |
| :func:`nesterov` | 1/λ_max | (√κ − 1)/(√κ + 1) | √(1 − 1/√κ) |
| :func:`paper` | 0.1 λ/(m n²k² e^{16B}) | – | 1 − mηλ/2, of ‖F − Y‖² |

Example:
    >>> import softntk as sn
    >>> sn.solvers.step_sizes.fastest(1.0, 3.0)
    0.5
    >>> tx = sn.solvers.gradient_descent(*sn.solvers.step_sizes.heavy_ball(1.0, 9.0))

Source: Polyak (1964); Nesterov (2004), Introductory Lectures on Convex Optimization, 2.2; arXiv
2405.03251 (the paper's η).
"""

import math
from typing import Any

import jax.numpy as jnp

from softntk._core.validation import check_integer, check_number, is_concrete


def fastest(smallest: float, largest: float) -> float:
    """Return 2/(λ_max + λ_min), the constant step that shrinks the worst error most.

    Use it for plain gradient descent on a quadratic loss.

    Args:
        smallest: λ_min > 0, as of :func:`softntk.ntk.extreme_eigenvalues`.
        largest: λ_max.

    Returns:
        η.

    Raises:
        ValueError: not 0 < λ_min ≤ λ_max.

    Example:
        >>> fastest(0.5, 1.5)
        1.0

    Source: see the module.
    """
    smallest, largest = _check_spectrum(smallest, largest)
    # The sum of the halves does not overflow.
    return 1 / (0.5 * largest + 0.5 * smallest)


def heavy_ball(smallest: float, largest: float) -> tuple[float, float]:
    """Return Polyak's step and momentum for a quadratic loss.

    Use it where κ is large: the error shrinks as plain descent's would for a condition number √κ.

    Args:
        smallest: λ_min > 0.
        largest: λ_max.

    Returns:
        (η, momentum), the first two arguments of :func:`softntk.solvers.gradient_descent`.

    Raises:
        ValueError: not 0 < λ_min ≤ λ_max.

    Example:
        >>> heavy_ball(1.0, 9.0)
        (0.25, 0.25)

    Source: see the module.
    """
    smallest, largest = _check_spectrum(smallest, largest)
    root_sum = _square_root(largest) + _square_root(smallest)
    root_difference = _square_root(largest) - _square_root(smallest)
    return 4 / root_sum**2, _below_one((root_difference / root_sum) ** 2)


def nesterov(smallest: float, largest: float) -> tuple[float, float]:
    """Return Nesterov's step and momentum for a strongly convex loss.

    Use it with ``gradient_descent(…, nesterov=True)`` where the loss is not quadratic.

    Args:
        smallest: λ_min > 0.
        largest: λ_max.

    Returns:
        (η, momentum).

    Raises:
        ValueError: not 0 < λ_min ≤ λ_max.

    Example:
        >>> nesterov(1.0, 4.0)[0]
        0.25

    Source: see the module.
    """
    smallest, largest = _check_spectrum(smallest, largest)
    # By 1/√κ, which underflows to zero where κ overflows.
    inverse_root_kappa = _square_root(smallest / largest)
    return 1 / largest, _below_one((1 - inverse_root_kappa) / (1 + inverse_root_kappa))


def paper(
    smallest: float,
    n: int,
    k: int,
    width: int,
    B: float = 1.0,
    *,
    constant: float = 0.1,
    exponent: float = 16.0,
) -> float:
    """Return 0.1 λ/(m n²k² e^{16B}), the step for which the paper proves convergence.

    Use it to compare a step with the theory: it is far too short for practice. Constant and
    exponent are from memory, and therefore arguments. The step is for ``parameterization="paper"``,
    whose kernel is m times that of "ntk"; for "ntk" use width 1.

    Args:
        smallest: λ, the smallest eigenvalue of the infinite-width kernel.
        n: points.
        k: outputs.
        width: m.
        B: the bound on logits, max(Cσ√log(nk/δ), 1); :func:`softntk.theory.bounds.growth`.
        constant: the factor 0.1.
        exponent: the power 16 of e^{−B}.

    Returns:
        η; zero if it underflows.

    Raises:
        ValueError: λ, B or the constant not positive, a negative exponent; n, k or width no
            positive integers, or beyond the largest float.

    Example:
        >>> paper(0.5, 10, 1, 100) < 1e-11
        True

    Source: arXiv 2405.03251, the main theorem.
    """
    smallest = check_number("smallest", smallest, above=0)
    B = check_number("B", B, above=0)
    constant = check_number("constant", constant, above=0)
    exponent = check_number("exponent", exponent, at_least=0)
    # As floats: the product of the integers may be beyond the largest integer of an array.
    points = _check_size("n", n)
    outputs = _check_size("k", k)
    units = _check_size("width", width)
    is_known = is_concrete(B * exponent)
    shrinkage: Any = math.exp(-exponent * B) if is_known else jnp.exp(-exponent * B)
    return constant * smallest / (units * points * points * outputs * outputs) * shrinkage


def _check_size(name: str, size: int) -> float:
    """Return a positive integer as the float that formulas take."""
    return check_number(name, check_integer(name, size, at_least=1))


def _check_spectrum(smallest: float, largest: float) -> tuple[float, float]:
    """Return λ_min and λ_max as positive numbers, or raise ValueError."""
    smallest = check_number("smallest", smallest, above=0)
    largest = check_number("largest", largest, above=0)
    if is_concrete(smallest) and is_concrete(largest) and smallest > largest:
        raise ValueError(f"smallest must be at most largest, got {smallest!r} and {largest!r}.")
    return smallest, largest


def _below_one(momentum: Any) -> Any:
    """Return a momentum that rounding has not brought to one."""
    if is_concrete(momentum):
        return min(momentum, math.nextafter(1.0, 0.0))
    return jnp.minimum(momentum, jnp.nextafter(jnp.ones_like(momentum), 0))


def _square_root(value: Any) -> Any:
    """Return √value, without a program if the number is known."""
    return math.sqrt(value) if is_concrete(value) else jnp.sqrt(value)
