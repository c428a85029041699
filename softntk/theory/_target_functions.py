"""Targets that depend on a few directions, and the Hermite polynomials that they are made of.

Public in :mod:`softntk.theory.feature_learning`.
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

_HEADROOM = 16
"""Powers of two between a product of two factors and the largest number."""

_Scaled = tuple[Array, ...]
Directions = Float[Array | np.ndarray, " d"] | Float[Array | np.ndarray, "d r"]


def orthonormal(direction: Directions, d: int | None = None) -> Float[Array, "d r"]:
    columns = as_floating("direction", direction, half=False)
    if columns.ndim not in (1, 2) or d not in (None, columns.shape[0]):
        wanted = "" if d is None else f" with d = {d}"
        raise ValueError(f"direction must have shape [d] or [d, r]{wanted}, got {columns.shape}.")
    columns = columns.reshape(columns.shape[0], -1)
    columns = columns / binary_scale(columns, axis=0)
    basis, triangle = jnp.linalg.qr(columns)
    dependent = columns.shape[1] > columns.shape[0]
    if is_concrete(triangle):
        pivots = np.abs(np.asarray(jnp.diagonal(triangle), np.float64))
        dependent = dependent or not pivots.min() > 1e-5 * pivots.max()
    if dependent:
        raise ValueError(
            "direction must have linearly independent columns that are not zero. Leave out those that repeat others."
        )
    return basis


def hermite(degree: int, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return He_k(z)/√k!, the Hermite polynomials that are orthonormal under N(0, 1), by √(k+1)
    h_{k+1} = z h_k − √k h_{k−1}.

    Args:
        degree: k ≥ 0.
        z: any shape.

    Returns:
        The values, of the shape of z.

    Raises:
        ValueError: degree negative or no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(hermite(2, jnp.array(3.0)) * 2**0.5), 4)  # z² − 1
        8.0

    Source: Szegő (1939), Orthogonal Polynomials, 5.5.
    """
    degree = check_integer("degree", degree, at_least=0)
    return _hermite_and_sum(degree, as_floating("z", z, empty=True))[0]


def _polynomial(degree: int, z: Array) -> Array:
    return _hermite_and_sum(degree, z)[1] / math.sqrt(degree)


@partial(jax.jit, static_argnums=0)
def _hermite_and_sum(degree: int, z: Array) -> tuple[Array, Array]:
    """Return h_k and h_1 + … + h_k, ±inf beyond the largest number: all terms share a power of two
    that is split off.
    """
    one = jnp.ones_like(z)
    if degree <= 1:
        return (z, z) if degree else (one, jnp.zeros_like(z))
    limit = float(jnp.finfo(z.dtype).max) / 1024
    near = jnp.clip(z, -limit, limit)  # further out h_2 and all that follow are infinite

    def step(state: tuple[_Scaled, Array], roots: Array) -> tuple[tuple[_Scaled, Array], None]:
        (before, now, total), exponent = state
        following = (near * now - roots[0] * before) / roots[1]
        return _split_off((now, following, total + following), exponent), None

    start = _split_off((one, near, near), jnp.zeros(z.shape, jnp.int32))
    roots = jnp.sqrt(
        jnp.stack([jnp.arange(1, degree), jnp.arange(2, degree + 1)], axis=1).astype(z.dtype)
    )
    ((_, now, total), exponent), _ = jax.lax.scan(step, start, roots)
    return _times_power(now, exponent), _times_power(total, exponent)


@jax.jit
def _staircase(z: Array) -> Array:
    """Return Σ_j z₁⋯z_j, ±inf beyond the largest number."""

    def step(state: tuple[_Scaled, Array], factor: Array) -> tuple[tuple[_Scaled, Array], None]:
        (product, total), exponent = state
        product = product * (factor * 2.0**-_HEADROOM)
        return _split_off((product, total * 2.0**-_HEADROOM + product), exponent + _HEADROOM), None

    start = (jnp.ones(z.shape[:1], z.dtype), jnp.zeros(z.shape[:1], z.dtype))
    ((_, total), exponent), _ = jax.lax.scan(step, (start, jnp.zeros(z.shape[:1], jnp.int32)), z.T)
    return _times_power(total, exponent)


def _split_off(values: _Scaled, exponent: Array) -> tuple[_Scaled, Array]:
    """Return the values over the power of two that puts the largest of them into [¼, ½), and the
    sum of the exponents.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(jnp.stack(values)), axis=0))
    limit = int(jnp.finfo(largest.dtype).maxexp) - 4
    _, power = jnp.frexp(largest)
    power = jnp.where((largest > 0) & jnp.isfinite(largest), jnp.clip(power + 1, -limit, limit), 0)
    factor = jnp.ldexp(jnp.ones_like(largest), -power)
    return tuple(value * factor for value in values), exponent + power


def _times_power(value: Array, exponent: Array) -> Array:
    """Return value · 2^exponent in two steps, of which neither leaves the range where the result is
    in it.
    """
    limit = int(jnp.finfo(value.dtype).maxexp)
    exponent = jnp.clip(exponent, -2 * limit + 8, 2 * limit - 8)
    half = exponent // 2
    one = jnp.ones_like(value)
    return value * jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)


def _hermite_target(degree: int, z: Array) -> Array:
    return _hermite_and_sum(degree, z[:, 0])[0]


def _polynomial_target(degree: int, z: Array) -> Array:
    return _polynomial(degree, z[:, 0])


def _staircase_target(degree: int, z: Array) -> Array:
    return _staircase(z) / math.sqrt(z.shape[1])


def _composition_target(degree: int, z: Array) -> Array:
    return jnp.tanh(_polynomial(degree, z[:, 0]))


TARGETS: dict[str, Callable[[int, Array], Array]] = {
    "hermite": _hermite_target,
    "polynomial": _polynomial_target,
    "staircase": _staircase_target,
    "composition": _composition_target,
}
"""Functions of the degree and of z = Uᵀx, [n, r] -> [n]; an entry of your own is known to
:func:`target`.
"""


def target(
    kind: str, direction: Directions, degree: int = 2
) -> Callable[[Points], Float[Array, "n 1"]]:
    r"""Return a target that depends on x through a few directions, z = Uᵀx with U orthonormal.

    ===========  ========================
    ===================================================================================== kind
    f(x)                      for x ~ N(0, I) ===========  ========================
    ===================================================================================== hermite
    He_k(z)/√k!               single index: the first gradient sees θ to order d^{(1−k)/2} only
    polynomial   Σ_{1≤j≤k} He_j(z)/√(k j!) single index with every degree up to k: the linear part
    shows the way to the others staircase    Σ_j z₁⋯z_j/√r             hierarchical: each of the r
    directions can be found once the ones before are known composition  tanh of the polynomial
    hierarchical, and bounded ===========  ========================
    =====================================================================================

    All have variance 1, but for the last, which is in [−1, 1]; ±inf beyond the largest number,
    never NaN.

    Args:
        kind: a name in ``TARGETS``.
        direction: [d] or [d, r]; more than one is used by the staircase alone. Orthonormalised,
            signs kept.
        degree: k ≥ 1; the staircase's is r.

    Returns:
        ``f(x [n, d]) -> [n, 1]``.

    Raises:
        ValueError: kind unknown, degree not a positive integer, direction as for :func:`alignment`.

    Example:
        >>> import jax.numpy as jnp
        >>> target("hermite", jnp.array([1.0, 0.0]), degree=2)(jnp.array([[3.0, 7.0]]))  # (9 − 1)/√2
        Array([[5.656854]], dtype=float32)

    Source: Damian, Lee and Soltanolkotabi (2022), arXiv 2206.15144; Abbe, Boix-Adsera and
    Misiakiewicz, arXiv 2202.08658.
    """
    function = TARGETS[check_choice("kind", kind, TARGETS)]
    degree = check_positive_int("degree", degree)
    basis = orthonormal(direction)
    given = as_floating("direction", direction).reshape(basis.shape)
    given = given / binary_scale(given, axis=0)
    signs = jnp.sign(jnp.sum(basis * given, axis=0, keepdims=True))
    largest = float(jnp.finfo(basis.dtype).max)

    def evaluate(x: Points) -> Float[Array, "n 1"]:
        """Return the target at points [n, d], as [n, 1]."""
        x = as_rows("x", x, len(basis))
        unit = binary_scale(x, axis=1)
        z = unit * jnp.matmul(x / unit, (basis * signs).astype(x.dtype), precision="highest")
        return function(degree, jnp.clip(z, -largest, largest))[:, None]

    return evaluate
