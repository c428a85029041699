r"""Angles between two Gaussians, and between points, with all the digits that the input has.

Symbols: (g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]]), θ the angle between them,

    cos θ = q12 / √(q11 q22),    sin θ = √(q11 q22 − q12²) / √(q11 q22).

The cosine alone does not determine a small angle: arccos(1 − ε) = √(2ε). Two things do, and whoever has them passes sin θ on:

- the variances, taken as exact numbers: q11 q22 − q12² from products that are split so that nothing is rounded
  (:func:`sine`);
- the points: with unit vectors u, v the chord c = ‖u − v‖ is known to rounding, and sin θ = c √(1 − c²/4)
  (:func:`between_rows`). That is θ = 2 atan2(‖u − v‖, ‖u + v‖).

Variances are divided by powers of four before they are multiplied, so that nothing here over- or underflows.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._norms import scaled_norm

Scalars = Float[Array, "..."]

MAX_PAIRS_PER_ROW = 8
"""Beyond this many near points a row (plus one for each feature), differences of all points cost less than of some."""


def root(q: Scalars) -> Scalars:
    """Return √q for q ≥ 0, with a finite derivative (zero) at zero, where the true one is infinite."""
    return jnp.where(q > 0, jnp.sqrt(jnp.where(q > 0, q, 1)), 0)


def _inverse_root_scale(q: Scalars) -> Scalars:
    """Return 2^-k with q 4^-k in [½, 2), without gradient; one where q is not positive."""
    limits = jnp.finfo(q.dtype)
    q = jnp.asarray(lax.stop_gradient(q))
    _, exponent = jnp.frexp(jnp.where(q > 0, jnp.clip(q, float(limits.tiny), float(limits.max) / 2), 1))
    return jnp.ldexp(jnp.ones_like(q), -(exponent // 2))


def _scaled(q11: Scalars, q12: Scalars, q22: Scalars) -> tuple[Scalars, Scalars, Scalars, Bool[Array, "..."]]:
    """Return (q11 4^-j, q12 2^-(j+k), q22 4^-k) of order one, and where both variances are positive."""
    scale1 = _inverse_root_scale(q11)
    scale2 = _inverse_root_scale(q22)
    positive = (q11 > 0) & (q22 > 0)
    a = jnp.where(q11 > 0, q11 * scale1 * scale1, 1)
    b = jnp.where(q22 > 0, q22 * scale2 * scale2, 1)
    return a, jnp.where(positive, q12 * scale1 * scale2, 0), b, positive


def sine(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
    """Return sin θ ≥ 0, exact for the numbers given, without gradient; one where a variance is zero."""
    a, c, b, positive = _scaled(*(jnp.asarray(lax.stop_gradient(q)) for q in (q11, q12, q22)))
    # Products of halves of the digits are exact, and so are their differences where they cancel.
    digits = (jnp.finfo(c.dtype).nmant + 1) // 2 - 1
    exponents = jnp.finfo(c.dtype).nexp
    a1, b1, c1 = (lax.reduce_precision(v, exponents, digits) for v in (a, b, c))
    a2, b2, c2 = a - a1, b - b1, c - c1
    determinant = (a1 * b1 - c1 * c1) + ((a1 * b2 + a2 * b1 - 2 * c1 * c2) + (a2 * b2 - c2 * c2))
    sines = root(determinant) / (jnp.sqrt(a) * jnp.sqrt(b))
    return jnp.where(positive, jnp.minimum(sines, 1), 1)


def cosine(q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None) -> tuple[Scalars, Scalars, Scalars]:
    """Return (√(q11 q22), cos θ, sin θ); (0, 0, 1) where a variance is zero.

    Variances that were computed, and not given, carry rounding: without ``sines`` an angle within a few units of it is *set* to
    0 or π. So equal points get the exact kernel instead of one that is wrong by the root of the precision.
    """
    a, c, b, positive = _scaled(q11, q12, q22)
    cos = c / (jnp.sqrt(a) * jnp.sqrt(b))
    norms = jnp.where(positive, root(q11) * root(q22), 0)
    if sines is not None:
        return norms, cos, sines
    sines = sine(q11, q12, q22)
    equal = sines**2 < 16 * jnp.finfo(cos.dtype).eps
    # The value is set, the derivative is not: second derivatives at equal points need it.
    return norms, cos + lax.stop_gradient(jnp.where(equal, jnp.sign(cos) - cos, 0)), jnp.where(equal, 0, sines)


@jax.custom_jvp
def angle_left(cos: Scalars, sines: Scalars) -> Scalars:
    """Return π − θ, with a finite derivative (zero) at θ = 0 and π, where the true one is infinite."""
    return jnp.arctan2(sines, -cos)


@angle_left.defjvp
def _angle_left_jvp(primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]) -> tuple[Scalars, Scalars]:
    cos, sines = primals
    inside = sines > 0
    return angle_left(cos, sines), jnp.where(inside, tangents[0] / jnp.where(inside, sines, 1), 0)


@jax.custom_jvp
def arc_cosine_1(cos: Scalars, sines: Scalars) -> Scalars:
    """Return sin θ + (π − θ) cos θ. Its derivative in cos θ is π − θ; the chain rule would give ∞ − ∞ at θ = 0."""
    return sines + angle_left(cos, sines) * cos


@arc_cosine_1.defjvp
def _arc_cosine_1_jvp(primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]) -> tuple[Scalars, Scalars]:
    return arc_cosine_1(*primals), angle_left(*primals) * tangents[0]


@jax.custom_jvp
def _half_root(k: Scalars, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars) -> Scalars:
    trace = jnp.sqrt(0.25 + (0.25 * k * q11 + 0.25 * k * q22))
    rest = (0.5 * k) * (root(q11) * root(q22) * sines)
    larger = jnp.maximum(trace, rest)
    return larger * jnp.sqrt(1 + (jnp.minimum(trace, rest) / larger) ** 2)


@_half_root.defjvp
def _half_root_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    k, q11, q12, q22, _ = primals
    _, d11, d12, d22, _ = tangents
    half = _half_root(*primals)
    around = ((1 + k * q22) / half) * d11 + ((1 + k * q11) / half) * d22
    return half, (k / 8) * (around - 2 * k * (q12 / half) * d12)


def half_root_determinant(k: float, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None) -> Scalars:
    """Return ½ √((1 + k q11)(1 + k q22) − k² q12²), as the root of 1 + k (q11 + q22) + k² q11 q22 sin² θ: nothing cancels."""
    sines = sine(q11, q12, q22) if sines is None else sines
    return _half_root(jnp.asarray(k, q12.dtype), q11, q12, q22, sines)


# --- points -------------------------------------------------------------------------------------------------------


def between_rows(
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
    dots: Float[Array, "n1 n2"],
    norms: Float[Array, "n1 n2"],
    equal: Bool[Array, "n1 n2"] | None = None,
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Return (inner products, sin θ) of the rows of two matrices, also where they are parallel to rounding.

    1. Where |cos θ| is far from one, both come from the inner products.
    2. Where it is not, they come from the chord between the unit vectors. As long as a row has few such neighbours, these are
       picked out one a row at a time; otherwise all differences are taken.

    Args:
        x1: of order one.
        x2: of order one.
        dots: x1 x2ᵀ.
        norms: products of the norms.
        equal: pairs that are known to be equal, where the dots are exact.

    Returns:
        The inner products with the derivative of ``dots``, and the sines, without.
    """
    cos = lax.stop_gradient(jnp.where(norms > 0, dots / jnp.where(norms > 0, norms, 1), 0))
    near = 1 - jnp.abs(cos) < 4 * jnp.finfo(cos.dtype).eps ** 0.5
    sines = jnp.sqrt(jnp.maximum((1 - cos) * (1 + cos), 0))
    if equal is not None:
        near = near & ~equal
        sines = jnp.where(equal & (norms > 0), 0, sines)
    sign = jnp.sign(cos)
    unit1, unit2 = (_unit_rows(lax.stop_gradient(x)) for x in (x1, x2))

    def refine() -> tuple[Array, Array]:
        # Under vmap both branches run; the loop must then end where it is not asked for.
        few = jnp.max(jnp.sum(near, axis=1)) <= MAX_PAIRS_PER_ROW + x1.shape[1]
        chords = lax.cond(few, lambda: _picked_chords(unit1, unit2, sign, near & few), lambda: _all_chords(unit1, unit2, sign))
        squares = chords**2
        change = norms * (sign * (1 - squares / 2)) - dots
        return lax.stop_gradient(jnp.where(near, change, 0)), jnp.where(near, chords * jnp.sqrt(1 - squares / 4), sines)

    def keep() -> tuple[Array, Array]:
        return lax.stop_gradient(dots) * 0, sines

    change, sines = lax.cond(jnp.any(near), refine, keep)
    return dots + change, sines


def _unit_rows(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    norms = scaled_norm(x, 1, keepdims=True)
    return x / jnp.where(norms > 0, norms, 1)


def _picked_chords(
    unit1: Float[Array, "n1 d"], unit2: Float[Array, "n2 d"], sign: Float[Array, "n1 n2"], near: Bool[Array, "n1 n2"]
) -> Float[Array, "n1 n2"]:
    """Return ‖u − sign · v‖ of the near pairs, zero for the others: in each step the next one of every row."""
    rows = jnp.arange(unit1.shape[0])

    def step(state: tuple) -> tuple:
        remaining, chords = state
        column = jnp.argmax(remaining, axis=1)
        chord = scaled_norm(unit1 - sign[rows, column][:, None] * unit2[column], 1)
        chords = chords.at[rows, column].set(jnp.where(remaining[rows, column], chord, chords[rows, column]))
        return remaining.at[rows, column].set(False), chords

    return lax.while_loop(lambda state: jnp.any(state[0]), step, (near, 0 * sign))[1]


def _all_chords(unit1: Float[Array, "n1 d"], unit2: Float[Array, "n2 d"], sign: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    return lax.map(lambda row: scaled_norm(row[0][None, :] - row[1][:, None] * unit2, 1), (unit1, sign))
