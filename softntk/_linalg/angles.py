r"""Angles between two Gaussians, and between points, accurate to the precision of the input.

Symbols: (g₁, g₂) ~ N(0, [[q11, q12], [q12, q22]]), θ the angle between them,

    cos θ = q12 / √(q11 q22),    sin θ = √(q11 q22 − q12²) / √(q11 q22).

The cosine alone does not determine a small angle: arccos(1 − ε) = √(2ε). The sine does, and there
are two ways to compute it accurately:

- from the variances, taken as exact numbers: q11 q22 − q12², with products that are split so that
  nothing is rounded (:func:`sine`);
- from the points: with unit vectors u, v the chord c = ‖u − v‖ is accurate to rounding, and
  sin θ = c √(1 − c²/4) (:func:`sine_between_rows`). That is θ = 2 atan2(‖u − v‖, ‖u + v‖).

Variances are divided by powers of four before they are multiplied, so that nothing over- or
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
"""How many nearly parallel neighbours a point may have, besides one for each feature, so that their
differences are computed one after the other.

Beyond this, computing the differences of all pairs at once costs less.
"""

MIN_SQUARED_SINE = 16
"""Rounding units below which a squared sine from computed variances counts as zero."""


def safe_sqrt(q: Scalars) -> Scalars:
    """Return √q for q > 0, else zero; the derivative is zero there, though infinite at q = 0."""
    # The inner where keeps 1/√0 out of the derivative, which would be 0 · ∞ = NaN.
    return jnp.where(q > 0, jnp.sqrt(jnp.where(q > 0, q, 1)), 0)


def safe_inverse_sqrt(q: Scalars) -> Scalars:
    """Return 1/√q for q > 0, else 0."""
    return jnp.where(q > 0, lax.rsqrt(jnp.where(q > 0, q, 1)), 0)


def hypotenuse(a: Scalars, b: Scalars) -> Scalars:
    """Return √(a² + b²) for a > 0 and b ≥ 0, divided by the larger one before it is squared."""
    larger = jnp.maximum(a, b)
    return larger * jnp.sqrt(1 + (jnp.minimum(a, b) / larger) ** 2)


def _once(factor: Scalars, product_array: Scalars) -> Scalars:
    """Return a factor, computed once and not for every entry of the array that it multiplies.

    XLA would fuse its computation into that of the larger array.
    """
    return lax.optimization_barrier(factor) if factor.size < product_array.size else factor


def _order_one(q: Scalars) -> tuple[Scalars, Scalars]:
    """Return q 4^-k in [½, 2) and 2^-k; (1, 1) where q is not positive."""
    limits = jnp.finfo(q.dtype)
    is_positive = q > 0
    _, exponent = jnp.frexp(
        jnp.where(is_positive, jnp.clip(q, float(limits.tiny), float(limits.max) / 2), 1)
    )
    scale = jnp.ldexp(jnp.ones_like(q), -(exponent // 2))
    return jnp.where(is_positive, q * scale * scale, 1), jnp.where(is_positive, scale, 1)


def sine(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
    """Return sin θ ≥ 0 for variances that count as exact numbers; one where a variance is zero.

    It carries no gradient. With a, b, c the scaled q11, q22, q12, each split into its upper digits
    (index 1) and the lower ones (index 2),

        ab − c² = (a₁b₁ − c₁²) + (a₁b₂ + a₂b₁ − 2 c₁c₂) + (a₂b₂ − c₂²).
    """
    q11, q12, q22 = (jnp.asarray(lax.stop_gradient(q)) for q in (q11, q12, q22))
    limits = jnp.finfo(q12.dtype)
    # 1. Scale to order one, and split. Products of numbers with half of the digits are exact, and
    #    so are their differences where they cancel.
    upper_digits = partial(
        lax.reduce_precision, exponent_bits=limits.nexp, mantissa_bits=(limits.nmant + 1) // 2 - 1
    )
    a, scale1 = _order_one(q11)
    b, scale2 = _order_one(q22)
    a1, b1 = (_once(upper_digits(v), q12) for v in (a, b))
    a2, b2 = (_once(v - v1, q12) for v, v1 in ((a, a1), (b, b1)))
    c = q12 * _once(scale1, q12) * _once(scale2, q12)
    c1 = upper_digits(c)
    c2 = c - c1
    # 2. The determinant, its largest terms first, and from it the sine.
    determinant = (a1 * b1 - c1 * c1) + ((a1 * b2 + a2 * b1 - 2 * c1 * c2) + (a2 * b2 - c2 * c2))
    sines = safe_sqrt(determinant) * _once(lax.rsqrt(a), q12) * _once(lax.rsqrt(b), q12)
    return jnp.where((q11 > 0) & (q22 > 0), jnp.minimum(sines, 1), 1)


@jax.custom_jvp
def _cos(q11: Scalars, q12: Scalars, q22: Scalars) -> Scalars:
    """Return cos θ, zero where a variance is zero."""
    return q12 * _once(safe_inverse_sqrt(q11), q12) * _once(safe_inverse_sqrt(q22), q12)


@_cos.defjvp
def _cos_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    # The chain rule would use q^{-3/2}, which overflows.
    q11, _, q22 = primals
    d11, d12, d22 = tangents
    cos = _cos(*primals)
    inverse_root1 = safe_inverse_sqrt(q11)
    inverse_root2 = safe_inverse_sqrt(q22)
    return cos, d12 * inverse_root1 * inverse_root2 - 0.5 * cos * (
        d11 * inverse_root1 * inverse_root1 + d22 * inverse_root2 * inverse_root2
    )


def cosine(
    q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None
) -> tuple[Scalars, Scalars, Scalars]:
    """Return (√(q11 q22), cos θ, sin θ); (0, 0, 1) where a variance is zero.

    Pass ``sines`` where they are known from the points. Without them the variances are assumed to
    carry rounding errors, and an angle within a few units of rounding is *set* to 0 or π. So equal
    points get the exact kernel. Otherwise its error would be √ε, with ε the rounding unit.
    """
    norms = _once(safe_sqrt(q11), q12) * _once(safe_sqrt(q22), q12)
    cos = _cos(q11, q12, q22)
    if sines is not None:
        return norms, cos, sines
    sines = sine(q11, q12, q22)
    is_parallel = sines**2 < MIN_SQUARED_SINE * jnp.finfo(cos.dtype).eps
    # The value is set, the derivative is not: second derivatives at equal points need it.
    return (
        norms,
        cos + lax.stop_gradient(jnp.where(is_parallel, jnp.sign(cos) - cos, 0)),
        jnp.where(is_parallel, 0, sines),
    )


@jax.custom_jvp
def _sine_along(cos: Scalars, sines: Scalars) -> Scalars:
    """Return sin θ with its derivative in cos θ, −cos θ / sin θ; set to zero at θ = 0 and π."""
    del cos
    return sines


@_sine_along.defjvp
def _sine_along_jvp(
    primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]
) -> tuple[Scalars, Scalars]:
    cos, sines = primals
    is_regular = sines > 0
    slope = jnp.where(is_regular, -cos / jnp.where(is_regular, _sine_along(cos, sines), 1), 0)
    return sines, slope * tangents[0]


@jax.custom_jvp
def angle_to_pi(cos: Scalars, sines: Scalars) -> Scalars:
    """Return π − θ, with derivative zero at θ = 0 and π, where the true one is infinite."""
    return jnp.arctan2(sines, -cos)


@angle_to_pi.defjvp
def _angle_to_pi_jvp(
    primals: tuple[Scalars, Scalars], tangents: tuple[Scalars, Scalars]
) -> tuple[Scalars, Scalars]:
    cos, sines = primals
    is_regular = sines > 0
    slope = jnp.where(is_regular, 1 / jnp.where(is_regular, _sine_along(cos, sines), 1), 0)
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
    """Return √(trace_root² + sine_term²), the formula of :func:`half_sqrt_determinant`."""
    trace_root = jnp.sqrt(0.25 + (0.25 * k * q11 + 0.25 * k * q22))
    sine_term = (0.5 * k) * (_once(safe_sqrt(q11), q12) * _once(safe_sqrt(q22), q12) * sines)
    return hypotenuse(trace_root, sine_term)


@_half_root.defjvp
def _half_root_jvp(primals: tuple, tangents: tuple) -> tuple[Scalars, Scalars]:
    k, q11, q12, q22, _ = primals
    _, d11, d12, d22, _ = tangents
    half_root = _half_root(*primals)
    variance_terms = ((1 + k * q22) / half_root) * d11 + ((1 + k * q11) / half_root) * d22
    return half_root, (k / 8) * (variance_terms - 2 * k * (q12 / half_root) * d12)


def half_sqrt_determinant(
    k: float, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars | None = None
) -> Scalars:
    """Return ½ √((1 + k q11)(1 + k q22) − k² q12²).

    It is computed as ½ √(1 + k (q11 + q22) + k² q11 q22 sin² θ), where nothing cancels.
    """
    sines = sine(q11, q12, q22) if sines is None else sines
    return _half_root(jnp.asarray(k, q12.dtype), q11, q12, q22, sines)


# --- angles between points ---


def sine_between_rows(
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"],
    dots: Float[Array, "n1 n2"],
    same: bool = False,
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """Return (inner products, sin θ) of the rows of two matrices, accurate also for parallel rows.

    Where |cos θ| is far from one, both come from the inner products. Otherwise they come from the
    chord between the unit vectors. As long as every row has few such neighbours, a loop computes
    one chord of each row at a time. Otherwise the chords of all pairs are computed.

    Args:
        x1: points, [n1, d], with entries of order one.
        x2: points, [n2, d], with entries of order one.
        dots: x1 x2ᵀ.
        same: whether x2 is x1; the diagonal of ``dots`` must then be exact.

    Returns:
        The inner products with the derivative of ``dots``, and the sines, without derivative.
    """
    (unit1, norms1), (unit2, norms2) = (_polar(lax.stop_gradient(x)) for x in (x1, x2))
    values = lax.stop_gradient(dots)
    # Below this 1 − |cos θ| the inner products have lost half of their digits.
    parallel_gap = 4 * float(jnp.finfo(dots.dtype).eps) ** 0.5

    def cosines(values: Array) -> Float[Array, "n1 n2"]:
        return values * _once(1 / norms1, values) * _once(1 / norms2, values).T

    def moduli(cos: Array) -> Float[Array, "n1 n2"]:
        """Return |cos θ|, zero for a point and itself."""
        return jnp.where(jnp.eye(len(cos), dtype=bool), 0, jnp.abs(cos)) if same else jnp.abs(cos)

    def refine(values: Array) -> Float[Array, "n1 n2"]:
        """Return the sines of nearly parallel pairs, −1 elsewhere."""
        cos = cosines(values)
        is_parallel = 1 - moduli(cos) < parallel_gap
        sign = jnp.sign(cos)
        squares = lax.cond(
            _batch_maximum(jnp.sum(is_parallel, axis=1)) <= MAX_PAIRS_PER_ROW + x1.shape[1],
            lambda: _selected_squares(unit1, unit2, sign, is_parallel),
            lambda: _all_squares(unit1, unit2, sign),
        )
        return jnp.where(is_parallel, jnp.sqrt(squares * (1 - squares / 4)), -1)

    def skip(values: Array) -> Float[Array, "n1 n2"]:
        return vary_like(jnp.full_like(values, -1), values)

    # 1. Sines from chords, if there is any nearly parallel pair. The conditional returns only
    #    these: its branches run on one core and write to memory, everything below is fused into
    #    one pass over the pairs. The test is a maximum because XLA vectorises it, unlike "any".
    has_parallel = 1 - _batch_maximum(moduli(cosines(values))) < parallel_gap
    chord_sines = lax.cond(has_parallel, refine, skip, values)
    # 2. Sines of all other pairs, from the cosines.
    is_parallel = chord_sines >= 0
    cos = cosines(values)
    cosine_sines = jnp.sqrt(jnp.maximum((1 - cos) * (1 + cos), 0))
    if same:
        is_itself = jnp.eye(len(cos), dtype=bool) & (jnp.abs(cos) > 0.5)
        cosine_sines = jnp.where(is_itself, 0, cosine_sines)
    sines = jnp.where(is_parallel, chord_sines, cosine_sines)
    # 3. Correct the values of the inner products, and keep their derivatives.
    accurate_dots = jnp.sign(cos) * norms1 * norms2.T * jnp.sqrt((1 - sines) * (1 + sines))
    return dots + jnp.where(is_parallel, accurate_dots - values, 0), sines


@custom_vmap
def _batch_maximum(values: Array) -> Array:
    """Return the maximum; under vmap that of the whole batch.

    A ``lax.cond`` on a number that is the same for the whole batch still runs one branch only.
    """
    return jnp.max(values)


@_batch_maximum.def_vmap
def _(axis_size: int, is_batched: list[bool], values: Array) -> tuple[Array, bool]:
    del axis_size, is_batched
    return _batch_maximum(values), False


def _polar(x: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, "n 1"]]:
    """Return unit vectors and norms of the rows; a row of zeros is returned with norm 1."""
    norms = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    norms = jnp.where(norms > 0, norms, 1)
    return x / norms, norms


def _selected_squares(
    unit1: Float[Array, "n1 d"],
    unit2: Float[Array, "n2 d"],
    sign: Float[Array, "n1 n2"],
    selected: Bool[Array, "n1 n2"],
) -> Float[Array, "n1 n2"]:
    """Return ‖u − sign · v‖² of the selected pairs, and zero for all other pairs."""
    rows = jnp.arange(unit1.shape[0])

    # Each step computes the next pair of every row. A row without further pairs repeats column 0.
    def step(state: tuple) -> tuple:
        remaining, squares = state
        column = jnp.argmax(remaining, axis=1)
        square = jnp.sum((unit1 - sign[rows, column][:, None] * unit2[column]) ** 2, axis=1)
        squares = squares.at[rows, column].set(
            jnp.where(remaining[rows, column], square, squares[rows, column])
        )
        return remaining.at[rows, column].set(False), squares

    return lax.while_loop(lambda state: jnp.any(state[0]), step, (selected, 0 * sign))[1]


def _all_squares(
    unit1: Float[Array, "n1 d"], unit2: Float[Array, "n2 d"], sign: Float[Array, "n1 n2"]
) -> Float[Array, "n1 n2"]:
    """Return ‖u − sign · v‖² of all pairs."""
    return jnp.sum((unit1[:, None, :] - sign[:, :, None] * unit2[None, :, :]) ** 2, axis=-1)
