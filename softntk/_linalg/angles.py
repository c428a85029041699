r"""Angles between two Gaussians, and between points, with all the digits that the input has.

Symbols: (g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]]), θ the angle between them,

    cos θ = q12 / √(q11 q22),    sin θ = √(q11 q22 − q12²) / √(q11 q22).

The cosine alone does not determine a small angle: arccos(1 − ε) = √(2ε). Two things do, and whoever
has them passes sin θ on:

- the variances, taken as exact numbers: q11 q22 − q12² from products that are split so that nothing
  is rounded (:func:`sine`);
- the points: with unit vectors u, v the chord c = ‖u − v‖ is known to rounding, and sin θ = c √(1 −
  c²/4) (:func:`sine_between_rows`). That is θ = 2 atan2(‖u − v‖, ‖u + v‖).

Variances are divided by powers of four before they are multiplied, so that nothing here over- or
underflows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from softntk._core.meshes import vary_like

Scalars = Float[Array, "..."]

MAX_PAIRS_PER_ROW = 8
"""Beyond this many near points a row (plus one for each feature), differences of all points cost
less than of some.
"""


def safe_sqrt(q: Scalars) -> Scalars:
    """Return √q for q ≥ 0, with a finite derivative (zero) at zero, where the true one is infinite."""
    return jnp.where(q > 0, jnp.sqrt(jnp.where(q > 0, q, 1)), 0)


def safe_inverse_sqrt(q: Scalars) -> Scalars:
    """Return 1/√q for q > 0, else 0."""
    return jnp.where(q > 0, lax.rsqrt(jnp.where(q > 0, q, 1)), 0)


def _once(small: Scalars, large: Scalars) -> Scalars:
    """Return ``small``, computed once and not for every entry of the larger array that it is
    broadcast to.
    """
    return lax.optimization_barrier(small) if small.size < large.size else small


def _order_one(q: Scalars) -> tuple[Scalars, Scalars]:
    """Return q 4^-k in [½, 2) and 2^-k; (1, 1) where q is not positive."""
    limits = jnp.finfo(q.dtype)
    positive = q > 0
    _, exponent = jnp.frexp(
        jnp.where(positive, jnp.clip(q, float(limits.tiny), float(limits.max) / 2), 1)
    )
    scale = jnp.ldexp(jnp.ones_like(q), -(exponent // 2))
    return jnp.where(positive, q * scale * scale, 1), jnp.where(positive, scale, 1)


def sine(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
    """Return sin θ ≥ 0, exact for the numbers given, without gradient; one where a variance is
    zero.
    """
    q11, q12, q22 = (jnp.asarray(lax.stop_gradient(q)) for q in (q11, q12, q22))
    limits = jnp.finfo(q12.dtype)
    # Products of halves of the digits are exact, and so are their differences where they cancel.
    half = partial(
        lax.reduce_precision, exponent_bits=limits.nexp, mantissa_bits=(limits.nmant + 1) // 2 - 1
    )
    (a, scale1), (b, scale2) = _order_one(q11), _order_one(q22)
    a1, b1 = (_once(half(v), q12) for v in (a, b))
    a2, b2 = (_once(v - v1, q12) for v, v1 in ((a, a1), (b, b1)))
    c = q12 * _once(scale1, q12) * _once(scale2, q12)
    c1 = half(c)
    c2 = c - c1
    determinant = (a1 * b1 - c1 * c1) + ((a1 * b2 + a2 * b1 - 2 * c1 * c2) + (a2 * b2 - c2 * c2))
    sines = safe_sqrt(determinant) * _once(lax.rsqrt(a), q12) * _once(lax.rsqrt(b), q12)
    return jnp.where((q11 > 0) & (q22 > 0), jnp.minimum(sines, 1), 1)


@jax.custom_jvp
def _cos(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
    return q12 * _once(safe_inverse_sqrt(q11), q12) * _once(safe_inverse_sqrt(q22), q12)


@_cos.defjvp
def _cos_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    # By the chain rule q^{-3/2} would appear, which overflows.
    q11, _, q22 = primals
    d11, d12, d22 = tangents
    cos = _cos(*primals)
    inverse1, inverse2 = safe_inverse_sqrt(q11), safe_inverse_sqrt(q22)
    return cos, d12 * inverse1 * inverse2 - 0.5 * cos * (
        d11 * inverse1 * inverse1 + d22 * inverse2 * inverse2
    )


def cosine(
    q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None
) -> tuple[Scalars, Scalars, Scalars]:
    """Return (√(q11 q22), cos θ, sin θ); (0, 0, 1) where a variance is zero.

    Variances that were computed, and not given, carry rounding: without ``sines`` an angle within a
    few units of it is *set* to 0 or π. So equal points get the exact kernel instead of one that is
    wrong by the root of the precision.
    """
    norms = _once(safe_sqrt(q11), q12) * _once(safe_sqrt(q22), q12)
    cos = _cos(q11, q12, q22)
    if sines is not None:
        return norms, cos, sines
    sines = sine(q11, q12, q22)
    equal = sines**2 < 16 * jnp.finfo(cos.dtype).eps
    # The value is set, the derivative is not: second derivatives at equal points need it.
    return (
        norms,
        cos + lax.stop_gradient(jnp.where(equal, jnp.sign(cos) - cos, 0)),
        jnp.where(equal, 0, sines),
    )


@jax.custom_jvp
def _sine_along(cos: Scalars, sines: Scalars) -> Scalars:
    """Return sin θ with the derivative that it has in cos θ, −cos θ / sin θ; zero at θ = 0 and π."""
    del cos
    return sines


@_sine_along.defjvp
def _sine_along_jvp(
    primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]
) -> tuple[Scalars, Scalars]:
    cos, sines = primals
    inside = sines > 0
    slope = jnp.where(inside, -cos / jnp.where(inside, _sine_along(cos, sines), 1), 0)
    return sines, slope * tangents[0]


@jax.custom_jvp
def angle_to_pi(cos: Scalars, sines: Scalars) -> Scalars:
    """Return π − θ, with a finite derivative (zero) at θ = 0 and π, where the true one is infinite."""
    return jnp.arctan2(sines, -cos)


@angle_to_pi.defjvp
def _angle_left_jvp(
    primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]
) -> tuple[Scalars, Scalars]:
    cos, sines = primals
    inside = sines > 0
    slope = jnp.where(inside, 1 / jnp.where(inside, _sine_along(cos, sines), 1), 0)
    return angle_to_pi(cos, sines), slope * tangents[0]


@jax.custom_jvp
def arc_cosine_1(cos: Scalars, sines: Scalars) -> Scalars:
    """Return sin θ + (π − θ) cos θ.

    Its derivative in cos θ is π − θ; the chain rule would give ∞ − ∞ at θ = 0.
    """
    return sines + angle_to_pi(cos, sines) * cos


@arc_cosine_1.defjvp
def _arc_cosine_1_jvp(
    primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]
) -> tuple[Scalars, Scalars]:
    return arc_cosine_1(*primals), angle_to_pi(*primals) * tangents[0]


@jax.custom_jvp
def _half_root(k: Scalars, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars) -> Scalars:
    trace = jnp.sqrt(0.25 + (0.25 * k * q11 + 0.25 * k * q22))
    rest = (0.5 * k) * (_once(safe_sqrt(q11), q12) * _once(safe_sqrt(q22), q12) * sines)
    larger = jnp.maximum(trace, rest)
    return larger * jnp.sqrt(1 + (jnp.minimum(trace, rest) / larger) ** 2)


@_half_root.defjvp
def _half_root_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    k, q11, q12, q22, _ = primals
    _, d11, d12, d22, _ = tangents
    half = _half_root(*primals)
    around = ((1 + k * q22) / half) * d11 + ((1 + k * q11) / half) * d22
    return half, (k / 8) * (around - 2 * k * (q12 / half) * d12)


def half_sqrt_determinant(
    k: float, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None
) -> Scalars:
    """Return ½ √((1 + k q11)(1 + k q22) − k² q12²), as the root of 1 + k (q11 + q22) + k² q11 q22
    sin² θ: nothing cancels.
    """
    sines = sine(q11, q12, q22) if sines is None else sines
    return _half_root(jnp.asarray(k, q12.dtype), q11, q12, q22, sines)


# --- points
# -------------------------------------------------------------------------------------------------------


def sine_between_rows(
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
    dots: Float[Array, "n1 n2"],
    same: bool = False,
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Return (inner products, sin θ) of the rows of two matrices, also where they are parallel to
    rounding.

    1. Where |cos θ| is far from one, both come from the inner products.
    2. Where it is not, they come from the chord between the unit vectors. As long as a row has few
       such neighbours, these are picked out one a row at a time; otherwise all differences are
       taken.

    A conditional hands over only the sines of 2, −1 elsewhere: what is computed inside of it runs
    on one core and is written to memory, all else is one pass over the pairs with what is made of
    the angles.

    Args:
        x1: of order one.
        x2: of order one.
        dots: x1 x2ᵀ.
        same: x2 is x1, and the diagonal of the dots exact.

    Returns:
        The inner products with the derivative of ``dots``, and the sines, without.
    """
    (unit1, norms1), (unit2, norms2) = (_polar(lax.stop_gradient(x)) for x in (x1, x2))
    values = lax.stop_gradient(dots)
    gap = 4 * float(jnp.finfo(dots.dtype).eps) ** 0.5

    def cosines(values: Array) -> Float[Array, "n1 n2"]:
        return values * _once(1 / norms1, values) * _once(1 / norms2, values).T

    def sizes(cos: Array) -> Float[Array, "n1 n2"]:
        """Return |cos θ|, zero of a point and itself."""
        return jnp.where(jnp.eye(len(cos), dtype=bool), 0, jnp.abs(cos)) if same else jnp.abs(cos)

    def refine(values: Array) -> Float[Array, "n1 n2"]:
        cos = cosines(values)
        near = 1 - sizes(cos) < gap
        sign = jnp.sign(cos)
        squares = lax.cond(
            _largest_of_all(jnp.sum(near, axis=1)) <= MAX_PAIRS_PER_ROW + x1.shape[1],
            lambda: _squares_of_some(unit1, unit2, sign, near),
            lambda: _squares_of_all(unit1, unit2, sign),
        )
        return jnp.where(near, jnp.sqrt(squares * (1 - squares / 4)), -1)

    def leave(values: Array) -> Float[Array, "n1 n2"]:
        return vary_like(jnp.full_like(values, -1), values)

    # The largest first: a maximum is taken of several numbers at a time, as "any" is not.
    some_near = 1 - _largest_of_all(sizes(cosines(values))) < gap
    refined = lax.cond(some_near, refine, leave, values)
    near = refined >= 0
    cos = cosines(values)
    coarse = jnp.sqrt(jnp.maximum((1 - cos) * (1 + cos), 0))
    if same:
        coarse = jnp.where(jnp.eye(len(cos), dtype=bool) & (jnp.abs(cos) > 0.5), 0, coarse)
    sines = jnp.where(near, refined, coarse)
    fine = jnp.sign(cos) * norms1 * norms2.T * jnp.sqrt((1 - sines) * (1 + sines))
    return dots + jnp.where(near, fine - values, 0), sines


@custom_vmap
def _largest_of_all(values: Array) -> Array:
    """Return the largest number, under vmap of the whole batch: then a conditional stays one."""
    return jnp.max(values)


@_largest_of_all.def_vmap
def _(axis_size: int, is_batched: list[bool], values: Array) -> tuple[Array, bool]:
    del axis_size, is_batched
    return _largest_of_all(values), False


def _polar(x: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, "n 1"]]:
    """Return unit vectors and norms of the rows; a row of zeros stays one, of norm 1."""
    norms = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    norms = jnp.where(norms > 0, norms, 1)
    return x / norms, norms


def _squares_of_some(
    unit1: Float[Array, "n1 d"],
    unit2: Float[Array, "n2 d"],
    sign: Float[Array, "n1 n2"],
    near: Bool[Array, "n1 n2"],
) -> Float[Array, "n1 n2"]:
    """Return ‖u − sign · v‖² of the near pairs, zero for the others: in each step the next one of
    every row.
    """
    rows = jnp.arange(unit1.shape[0])

    def step(state: tuple) -> tuple:
        remaining, squares = state
        column = jnp.argmax(remaining, axis=1)
        square = jnp.sum((unit1 - sign[rows, column][:, None] * unit2[column]) ** 2, axis=1)
        squares = squares.at[rows, column].set(
            jnp.where(remaining[rows, column], square, squares[rows, column])
        )
        return remaining.at[rows, column].set(False), squares

    return lax.while_loop(lambda state: jnp.any(state[0]), step, (near, 0 * sign))[1]


def _squares_of_all(
    unit1: Float[Array, "n1 d"], unit2: Float[Array, "n2 d"], sign: Float[Array, "n1 n2"]
) -> Float[Array, "n1 n2"]:
    return jnp.sum((unit1[:, None, :] - sign[:, :, None] * unit2[None, :, :]) ** 2, axis=-1)
