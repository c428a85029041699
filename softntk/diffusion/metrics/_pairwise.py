"""Comparisons of all pairs of two samples, in blocks, by the differences of their coordinates.

    ========  ================  ============================================
    symbol    name              meaning
    ========  ================  ============================================
    ρ         ``rho``           distance, or 1 − k of a Gaussian kernel
    ζ         ``zeta_x``, …     mean square of the doubly centred ρ
    κ         ``slope``         slope of the variance in the true distance μ
    v         ``second_order``  variance at μ = 0
    ========  ================  ============================================

See ``metrics.energy_distance`` for the formulas.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from softntk._core.validation import as_rows
from softntk._linalg.angles import safe_sqrt
from softntk._linalg.intervals import Estimate, score_interval
from softntk._linalg.norms import binary_scale, scaled_norm

MAX_BLOCK_ROWS = 32
"""Largest number of points that are compared with a whole sample at once."""

MAX_BLOCK_PAIRS = 2**19
"""Largest number of pairs in a block, if a block has more than one row."""

MAX_BANDWIDTH_ROWS = 500
"""Largest number of points of each sample whose distances give the bandwidth."""

MIN_DTYPE_BITS = 32
"""Samples of fewer bits are converted to float32."""

HEADROOM_BITS = 4
"""Binary digits between the rescaled unit and the root of the largest square that is allowed."""

MAX_WIDTHS = 1e3
"""Distance in bandwidths beyond which the kernel is zero in every precision."""

MIN_EIGENVALUE_ROWS = 4
"""Least sample size for which √ζ, corrected for n, bounds the largest eigenvalue of ρ."""

MAX_MMD = 2.0
"""Upper bound of MMD² for a kernel with values between 0 and 1."""


def as_samples(min_rows: int, **samples: Any) -> list[Array]:
    """Return matrices of one dimension and dtype; half precision becomes float32.

    Raises:
        ValueError: no finite floating-point matrices, different dimensions or dtypes, fewer than
            ``min_rows`` rows.
    """
    # The first sample sets dimension and dtype; messages name it.
    reference, *_ = samples
    converted = []
    for name, points in samples.items():
        array = as_rows(name, points)
        converted.append(array)
        if array.shape[1] != converted[0].shape[1]:
            raise ValueError(
                f"{name} must have as many columns as {reference}, got shapes {array.shape} and "
                f"{converted[0].shape}."
            )
        if array.dtype != converted[0].dtype:
            raise ValueError(
                f"{name} must have the dtype of {reference}, got {array.dtype}. "
                "Convert one of them."
            )
        if len(array) < min_rows:
            raise ValueError(f"{name} must have at least {min_rows} rows, got {len(array)}.")
    if jnp.finfo(converted[0].dtype).bits < MIN_DTYPE_BITS:
        return [array.astype(jnp.float32) for array in converted]
    return converted


class _Rescaled(NamedTuple):
    """Two samples in a unit in which sums of squared distances just do not overflow.

    Attributes:
        x: [n, d].
        y: [m, d].
        unit: about the largest entry of both, a power of two.
        headroom: size of one unit after rescaling, a power of two. Sums of d squares of this size
            just do not overflow, so that small differences do not underflow when squared.
    """

    x: Array
    y: Array
    unit: Array
    headroom: float


def _rescale(x: Array, y: Array) -> _Rescaled:
    """Return both samples divided by ``unit`` and multiplied by ``headroom``."""
    largest_entries = jnp.stack([jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))])
    unit = binary_scale(largest_entries)[0]
    max_square = float(jnp.finfo(x.dtype).max) / x.shape[1]
    headroom = 2.0 ** math.floor(math.log2(math.sqrt(max_square)) - HEADROOM_BITS)
    # The barrier keeps the compiler from merging both factors, which would overflow in the
    # derivative.
    x, y = lax.optimization_barrier((x / unit, y / unit))
    return _Rescaled(x * headroom, y * headroom, unit, headroom)


def _squared_distances(columns: Array, point: Array) -> Array:
    """Return |y_j − x|² to all points, given as columns [d, m].

    The sum runs over the coordinates, so that [m, d] is never formed.
    """

    def add_coordinate(k: Array, total: Array) -> Array:
        return total + (columns[k] - point[k]) ** 2

    zeros = jnp.zeros(columns.shape[1], point.dtype)
    return lax.fori_loop(0, len(point), add_coordinate, zeros, unroll=min(4, len(point)))


@jax.custom_jvp
def _distances(columns: Array, point: Array) -> Array:
    """Return |y_j − x| to all points, given as columns.

    The derivative is zero where two points coincide.
    """
    return safe_sqrt(_squared_distances(columns, point))


@_distances.defjvp
def _distances_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # d|y − x| = ⟨y − x, dy − dx⟩/|y − x|. The automatic derivative goes through the squares: there
    # a cotangent is divided by the square of the headroom, and underflows.
    columns, point = primals
    column_tangents, point_tangent = tangents
    distances = _distances(columns, point)
    inverses = jnp.where(distances > 0, 1 / jnp.where(distances > 0, distances, 1), 0)

    def add_coordinate(k: Array, total: Array) -> Array:
        direction = (columns[k] - point[k]) * inverses
        return total + direction * (column_tangents[k] - point_tangent[k])

    zeros = jnp.zeros_like(distances)
    tangent = lax.fori_loop(0, len(point), add_coordinate, zeros, unroll=min(4, len(point)))
    return distances, tangent


def _rows_per_block(m: int) -> int:
    """Return the number of points to compare with m others at once."""
    return max(1, min(MAX_BLOCK_ROWS, MAX_BLOCK_PAIRS // m))


def _dissimilarity(scaled: _Rescaled, bandwidth: Array | None) -> Callable[[Array], Array]:
    """Return ρ as a function of rescaled distances, in units of the samples where it is one."""
    if bandwidth is None:
        return lambda distances: distances / scaled.headroom
    # The bandwidth is rescaled as the samples are, in two steps that must not be merged.
    width = lax.optimization_barrier(bandwidth / scaled.unit) * scaled.headroom
    width = jnp.maximum(width, float(jnp.finfo(width.dtype).tiny))
    # In units of the width: the derivative of a ratio contains the square of its denominator.
    width_unit = binary_scale(width)

    def one_minus_kernel(distances: Array) -> Array:
        """Return 1 − e^{−r²/2} by expm1, which keeps its digits for a wide kernel."""
        distances_in_widths = jnp.minimum(distances / width_unit, MAX_WIDTHS) / (width / width_unit)
        return -jnp.expm1(-0.5 * distances_in_widths**2)

    return one_minus_kernel


@jax.jit
def discrepancy(x: Array, y: Array, bandwidth: Array | None) -> Estimate:
    """Return 2E ρ(X, Y) − E ρ(X, X') − E ρ(Y, Y'); see ``metrics.energy_distance``.

    ρ is the distance, or 1 − k of a Gaussian kernel. So ρ(x, x) = 0, and no digits are lost for a
    wide kernel.
    """
    # 1. Rescale, and pool both samples: each point is compared with all others once.
    n = len(x)
    m = len(y)
    scaled = _rescale(x, y)
    pooled = jnp.concatenate([scaled.x, scaled.y])
    columns = pooled.T
    dissimilarity = _dissimilarity(scaled, bandwidth)

    def row_moments(
        item: tuple[Array, Array],
    ) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
        """Return mean and variance of ρ from one point to x and to y, and its largest distance.

        The pair of the point with itself does not count.
        """
        i, point = item
        distances = _distances(columns, point)
        rho = dissimilarity(distances)

        def moments(part: Array, has_itself: Array) -> tuple[Array, Array]:
            # ρ of the point with itself is 0: it adds nothing to the sum, and mean² to the squares.
            self_count = has_itself.astype(part.dtype)
            pair_count = len(part) - self_count
            mean = jnp.sum(part) / pair_count
            square_sum = jnp.sum((part - mean) ** 2) - self_count * mean**2
            return mean, square_sum / pair_count

        return moments(rho[:n], i < n), moments(rho[n:], i >= n), jnp.max(distances)

    # 2. Mean and variance of ρ in each row, to x and to y. "xy" is from points of x to y.
    (x_means, x_variances), (y_means, y_variances), max_distances = lax.map(
        row_moments, (jnp.arange(n + m), pooled), batch_size=_rows_per_block(n + m)
    )
    xx = x_means[:n]
    yx = x_means[n:]
    xy = y_means[:n]
    yy = y_means[n:]
    # 3. Variances of the U-statistic: of its linear part, estimated from row means, and of its
    # quadratic part, from ζ, the mean squares of ρ without its row and column means.
    first_order = 4 * jnp.var(xy - xx, ddof=1) / n + 4 * jnp.var(yx - yy, ddof=1) / m
    zeta_x = jnp.mean(x_variances[:n]) - jnp.var(xx)
    zeta_y = jnp.mean(y_variances[n:]) - jnp.var(yy)
    zeta_xy = jnp.mean(y_variances[:n]) - jnp.var(yx)
    second_order = jnp.maximum(2 * zeta_x / n**2 + 2 * zeta_y / m**2 + 4 * zeta_xy / n / m, 0)
    # 4. The estimate U, and the V-statistic, which counts pairs of a point with itself.
    value = jnp.mean(xy - xx) + jnp.mean(yx - yy)
    biased_value = value + jnp.mean(xx) / n + jnp.mean(yy) / m
    # 5. The slope κ of the variance in μ. first_order estimates κμ + 2v. If all eigenvalues of ρ
    # were equal, that would be κ times the V-statistic: the first estimate of κ. Where U exceeds
    # its noise, first_order − v over U estimates κ without that assumption: the second. Both are
    # cut at the bound that the largest eigenvalues, at most √ζ, allow: for copies the V-statistic
    # is only rounding.
    max_slope = 4 * _eigenvalue_bound(zeta_x, xx) / n + 4 * _eigenvalue_bound(zeta_y, yy) / m
    biased_slope = _ratio(first_order, jnp.maximum(biased_value, _ratio(first_order, max_slope)))
    unbiased_slope = _ratio(first_order - second_order, jnp.maximum(value, safe_sqrt(second_order)))
    slope = jnp.minimum(jnp.maximum(biased_slope, unbiased_slope), max_slope)
    # 6. The interval; distances return to the unit of the samples.
    if bandwidth is not None:
        return score_interval(value, slope, second_order, MAX_MMD)
    max_value = 2 * jnp.max(max_distances) / scaled.headroom
    interval = score_interval(value, slope, second_order, max_value)
    return jax.tree.map(lambda end: end * scaled.unit, interval)


def _eigenvalue_bound(zeta: Array, row_means: Array) -> Array:
    """Return an upper bound on the largest eigenvalue of ρ: √ζ, corrected for n.

    For two or three points it is the trace.
    """
    n = len(row_means)
    return safe_sqrt(zeta) * n / (n - 3) if n >= MIN_EIGENVALUE_ROWS else jnp.mean(row_means)


def _ratio(a: Array, b: Array) -> Array:
    """Return a/b, or 0 where b is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


@jax.jit
def median(x: Array, y: Array) -> Array:
    """Return the median of the positive distances; see ``metrics.median_bandwidth``."""
    # Evenly spaced rows; the stride is rounded up, so that they are at most MAX_BANDWIDTH_ROWS.
    x_stride = -(-len(x) // MAX_BANDWIDTH_ROWS)
    y_stride = -(-len(y) // MAX_BANDWIDTH_ROWS)
    scaled = _rescale(x[::x_stride], y[::y_stride])
    pooled = jnp.concatenate([scaled.x, scaled.y])
    columns = pooled.T
    scaled_distances = lax.map(
        lambda point: _distances(columns, point), pooled, batch_size=_rows_per_block(len(pooled))
    )
    distances = scaled_distances / scaled.headroom
    median_distance = jnp.nanmedian(jnp.where(distances > 0, distances, jnp.nan))
    return jnp.where(jnp.isnan(median_distance), 1, median_distance * scaled.unit)


@partial(jax.jit, static_argnames="exclude_self")
def nearest(x: Array, train: Array, exclude_self: bool) -> tuple[Array, Array]:
    """Return distance and row of the nearest training point of each x, [n] and [n]."""
    scaled = _rescale(x, train)
    columns = scaled.y.T
    row_numbers = jnp.arange(len(train))

    def nearest_row(item: tuple[Array, Array]) -> Array:
        i, point = item
        squares = _squared_distances(columns, point)
        if exclude_self:
            squares = jnp.where(row_numbers == i, jnp.inf, squares)
        return jnp.argmin(squares)

    index = lax.map(
        nearest_row, (jnp.arange(len(x)), scaled.x), batch_size=_rows_per_block(len(train))
    )
    # Only the search uses squares. The distance itself is computed again from the samples, so that
    # its derivative does not pass through the search.
    return scaled_norm((x - train[index]) / scaled.unit, 1) * scaled.unit, index
