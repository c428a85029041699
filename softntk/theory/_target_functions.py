"""Target functions that depend on a few directions, and the Hermite polynomials they are made of.

Public in :mod:`softntk.theory.feature_learning`.

Overflow: recurrences carry their terms divided by a common power of two, with its exponent beside
them (``_ScaledTerms``), so that only a result beyond the largest number is ±inf, and none is NaN.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import (
    as_floating,
    as_rows,
    check_choice,
    check_integer,
    check_positive_int,
    is_concrete,
)
from softntk._linalg.norms import binary_scale
from softntk.networks import Points

HEADROOM_BITS = 16
"""Factors are divided by two to this power, so that their product stays in range."""

MIN_PIVOT_RATIO = 1e-5
"""Columns count as dependent if the smallest pivot of QR is below this part of the largest."""

_ScaledTerms = tuple[Array, ...]
"""Terms of a recurrence divided by a common power of two."""

Directions = Float[Array | np.ndarray, " d"] | Float[Array | np.ndarray, "d r"]


def orthonormalise(direction: Directions, d: int | None = None) -> Float[Array, "d r"]:
    """Return an orthonormal basis of the span of the directions; refuse dependent columns.

    Args:
        direction: [d], or [d, r].
        d: the number of rows that is required; None allows any.
    """
    columns = as_floating("direction", direction, half=False)
    if columns.ndim not in (1, 2) or d not in (None, columns.shape[0]):
        required_rows = "" if d is None else f" with d = {d}"
        raise ValueError(
            f"direction must have shape [d] or [d, r]{required_rows}, got {columns.shape}."
        )
    # Each column in its own unit, so that QR neither over- nor underflows.
    columns = columns.reshape(columns.shape[0], -1)
    columns = columns / binary_scale(columns, axis=0)
    basis, triangle = jnp.linalg.qr(columns)
    # More columns than rows are always dependent; otherwise the values must be known to tell.
    is_dependent = columns.shape[1] > columns.shape[0]
    if is_concrete(triangle):
        pivots = np.abs(np.asarray(jnp.diagonal(triangle), np.float64))
        is_dependent = is_dependent or not pivots.min() > MIN_PIVOT_RATIO * pivots.max()
    if is_dependent:
        raise ValueError(
            "direction must have linearly independent columns that are not zero. "
            "Leave out those that repeat others."
        )
    return basis


def hermite(degree: int, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return He_k(z)/√k!, the Hermite polynomial of degree k that is orthonormal under N(0, 1).

    Use it to build targets of a given information exponent. It is computed by the recurrence √(k+1)
    h_{k+1} = z h_k − √k h_{k−1}.

    Args:
        degree: k ≥ 0.
        z: any shape.

    Returns:
        The values, in the shape of z; ±inf beyond the largest number of the precision.

    Raises:
        ValueError: degree negative or no integer; z integer or not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(hermite(2, jnp.array(3.0)) * 2**0.5), 4)  # z² − 1
        8.0

    Source: Szegő (1939), Orthogonal Polynomials, 5.5.
    """
    degree = check_integer("degree", degree, at_least=0)
    return _hermite_and_sum(degree, as_floating("z", z, empty=True))[0]


def _polynomial(degree: int, z: Array) -> Array:
    """Return (h_1 + … + h_k)/√k, which has variance one under N(0, 1)."""
    return _hermite_and_sum(degree, z)[1] / math.sqrt(degree)


@partial(jax.jit, static_argnums=0)
def _hermite_and_sum(degree: int, z: Array) -> tuple[Array, Array]:
    """Return h_k and h_1 + … + h_k, ±inf beyond the largest number.

    All terms of the recurrence share a power of two that is split off.
    """
    unit = jnp.ones_like(z)
    if degree <= 1:
        return (z, z) if degree else (unit, jnp.zeros_like(z))
    # 1. Clip z: beyond the limit h_2 and all that follow are infinite anyway.
    limit = float(jnp.finfo(z.dtype).max) / 1024
    clipped = jnp.clip(z, -limit, limit)

    # 2. The carry is (h_{j−1}, h_j, h_1 + … + h_j)/2^exponent and the exponent.
    def step(
        state: tuple[_ScaledTerms, Array], roots: Array
    ) -> tuple[tuple[_ScaledTerms, Array], None]:
        (previous, current, partial_sum), exponent = state
        following = (clipped * current - roots[0] * previous) / roots[1]
        terms = (current, following, partial_sum + following)
        return _split_exponent(terms, exponent), None

    initial = _split_exponent((unit, clipped, clipped), jnp.zeros(z.shape, jnp.int32))
    # 3. Row j of the roots is (√j, √(j+1)), the coefficients of the recurrence.
    roots = jnp.sqrt(
        jnp.stack([jnp.arange(1, degree), jnp.arange(2, degree + 1)], axis=1).astype(z.dtype)
    )
    ((_, current, partial_sum), exponent), _ = jax.lax.scan(step, initial, roots)
    return _times_power(current, exponent), _times_power(partial_sum, exponent)


@jax.jit
def _staircase(z: Array) -> Array:
    """Return Σ_j z₁⋯z_j of each row, ±inf beyond the largest number."""

    # A large factor times a large product would overflow: both terms of the carry are divided by
    # 2^HEADROOM_BITS before the product, and the new power of two is split off after it.
    def step(
        state: tuple[_ScaledTerms, Array], factor: Array
    ) -> tuple[tuple[_ScaledTerms, Array], None]:
        (product, total), exponent = state
        product = product * (factor * 2.0**-HEADROOM_BITS)
        terms = (product, total * 2.0**-HEADROOM_BITS + product)
        return _split_exponent(terms, exponent + HEADROOM_BITS), None

    initial_terms = (jnp.ones(z.shape[:1], z.dtype), jnp.zeros(z.shape[:1], z.dtype))
    initial = (initial_terms, jnp.zeros(z.shape[:1], jnp.int32))
    ((_, total), exponent), _ = jax.lax.scan(step, initial, z.T)
    return _times_power(total, exponent)


def _split_exponent(terms: _ScaledTerms, exponent: Array) -> tuple[_ScaledTerms, Array]:
    """Return the terms divided by a power of two, and the exponent increased by its logarithm.

    The power puts the largest term into [¼, ½). It carries no gradient.
    """
    # Scaling is exact, so that its derivative is one whatever the power is.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(jnp.stack(terms)), axis=0))
    limit = int(jnp.finfo(largest.dtype).maxexp) - 4
    _, power = jnp.frexp(largest)
    power = jnp.where((largest > 0) & jnp.isfinite(largest), jnp.clip(power + 1, -limit, limit), 0)
    factor = jnp.ldexp(jnp.ones_like(largest), -power)
    return tuple(term * factor for term in terms), exponent + power


def _times_power(value: Array, exponent: Array) -> Array:
    """Return value · 2^exponent in two steps that stay in range wherever the result does."""
    # Beyond twice the range the result is zero or infinite in any case.
    limit = int(jnp.finfo(value.dtype).maxexp)
    exponent = jnp.clip(exponent, -2 * limit + 8, 2 * limit - 8)
    first_exponent = exponent // 2
    unit = jnp.ones_like(value)
    return value * jnp.ldexp(unit, first_exponent) * jnp.ldexp(unit, exponent - first_exponent)


def _hermite_target(degree: int, z: Array) -> Array:
    """Return h_k of the first direction."""
    return _hermite_and_sum(degree, z[:, 0])[0]


def _polynomial_target(degree: int, z: Array) -> Array:
    """Return the sum of the first k Hermite polynomials of the first direction."""
    return _polynomial(degree, z[:, 0])


def _staircase_target(degree: int, z: Array) -> Array:
    """Return the staircase of all directions; it does not depend on the degree."""
    return _staircase(z) / math.sqrt(z.shape[1])


def _composition_target(degree: int, z: Array) -> Array:
    """Return tanh of the polynomial target."""
    return jnp.tanh(_polynomial(degree, z[:, 0]))


TARGETS: dict[str, Callable[[int, Array], Array]] = {
    "hermite": _hermite_target,
    "polynomial": _polynomial_target,
    "staircase": _staircase_target,
    "composition": _composition_target,
}
"""Functions of the degree and of z = Uᵀx, [n, r] -> [n]; :func:`target` also takes new entries."""


def target(
    kind: str, direction: Directions, degree: int = 2
) -> Callable[[Points], Float[Array, "n 1"]]:
    r"""Return a target that depends on x through a few directions, z = Uᵀx with U orthonormal.

    Use it to ask what a network learns that a fixed kernel does not. For x ~ N(0, I):

    - hermite: He_k(z)/√k!. It has one direction θ, and the part of the first gradient along θ is
      of order d^{(1−k)/2} only.
    - polynomial: Σ_{1≤j≤k} He_j(z)/√(k j!). It has one direction and every degree up to k; the
      linear part shows the direction that the other degrees need.
    - staircase: Σ_j z₁⋯z_j/√r. It is hierarchical: each of the r directions can be found once the
      previous ones are.
    - composition: tanh of the polynomial. It is hierarchical and bounded.

    All have variance 1, except the last, which is in [−1, 1]. Values beyond the largest number are
    ±inf, never NaN.

    Args:
        kind: a name in ``TARGETS``.
        direction: [d] or [d, r]; only the staircase uses more than one. The columns are
            orthonormalised and keep their signs.
        degree: k ≥ 1; the staircase ignores it, its degree is r.

    Returns:
        ``f(x [n, d]) -> [n, 1]``.

    Raises:
        ValueError: kind unknown, degree not a positive integer, direction as for :func:`alignment`.

    Example:
        >>> import jax.numpy as jnp
        >>> target("hermite", jnp.array([1.0, 0.0]), degree=2)(jnp.array([[3.0, 7.0]]))  # 8/√2
        Array([[5.656854]], dtype=float32)

    Source: Damian, Lee and Soltanolkotabi (2022), arXiv 2206.15144; Abbe, Boix-Adsera and
    Misiakiewicz, arXiv 2202.08658.
    """
    # 1. An orthonormal basis with the signs of the columns that were passed (QR may flip them).
    function = TARGETS[check_choice("kind", kind, TARGETS)]
    degree = check_positive_int("degree", degree)
    basis = orthonormalise(direction)
    columns = as_floating("direction", direction).reshape(basis.shape)
    columns = columns / binary_scale(columns, axis=0)
    signs = jnp.sign(jnp.sum(basis * columns, axis=0, keepdims=True))
    largest_number = float(jnp.finfo(basis.dtype).max)

    def evaluate(x: Points) -> Float[Array, "n 1"]:
        """Return the target at points [n, d], as [n, 1]."""
        # 2. z = Uᵀx, each row in its own unit, and finite.
        x = as_rows("x", x, len(basis))
        row_units = binary_scale(x, axis=1)
        oriented_basis = (basis * signs).astype(x.dtype)
        z = row_units * jnp.matmul(x / row_units, oriented_basis, precision="highest")
        return function(degree, jnp.clip(z, -largest_number, largest_number))[:, None]

    return evaluate
