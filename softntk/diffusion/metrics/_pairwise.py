"""Comparisons of all pairs of two samples, in blocks, by the differences of their coordinates."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from softntk._core.validation import as_rows
from softntk._linalg.norms import binary_scale, scaled_norm
from softntk.diffusion.metrics._intervals import Estimate, safe_sqrt, score_interval

_ROWS = 32  # points compared with a whole sample at once, …
_PAIRS = 2**19  # … fewer where that would be more pairs than this
_SUBSAMPLE = 500  # points of each sample whose distances give the bandwidth


def as_samples(least: int, **samples: Any) -> list[Array]:
    """Return matrices of one dimension and dtype with ``least`` rows, half precision in float32."""
    reference, *_ = samples
    converted = []
    for name, points in samples.items():
        array = as_rows(name, points)
        converted.append(array)
        if array.shape[1] != converted[0].shape[1]:
            raise ValueError(
                f"{name} must have as many columns as {reference}, got shapes {array.shape} and {converted[0].shape}."
            )
        if array.dtype != converted[0].dtype:
            raise ValueError(
                f"{name} must have the dtype of {reference}, got {array.dtype}. Convert one of them."
            )
        if len(array) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {len(array)}.")
    half = jnp.finfo(converted[0].dtype).bits < 32
    return [array.astype(jnp.float32) for array in converted] if half else converted


class _Rescaled(NamedTuple):
    """Two samples in a unit in which sums of squared distances just do not overflow.

    Attributes:
        x: [n, d].
        y: [m, d].
        unit: about the largest entry of both, a power of two.
        headroom: what entries of one unit are after rescaling, a power of two: of their squares a
            sum just does not overflow.
    """

    x: Array
    y: Array
    unit: Array
    headroom: float


def _rescale(x: Array, y: Array) -> _Rescaled:
    largest = jnp.stack([jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))])
    unit = binary_scale(largest)[0]
    limit = float(jnp.finfo(x.dtype).max) / x.shape[1]
    headroom = 2.0 ** math.floor(math.log2(math.sqrt(limit)) - 4)
    # A compiler that takes both factors together, for the derivative, would overflow.
    x, y = lax.optimization_barrier((x / unit, y / unit))
    return _Rescaled(x * headroom, y * headroom, unit, headroom)


def _squared_distances(columns: Array, point: Array) -> Array:
    """Return |y_j − x|² to all points, given as columns [d, m].

    The sum runs over the coordinates, so that [m, d] is never formed.
    """
    add = lambda k, total: total + (columns[k] - point[k]) ** 2
    return lax.fori_loop(
        0, len(point), add, jnp.zeros(columns.shape[1], point.dtype), unroll=min(4, len(point))
    )


@jax.custom_jvp
def _distances(columns: Array, point: Array) -> Array:
    """Return |y_j − x| to all points, given as columns; with derivative zero where they coincide."""
    return safe_sqrt(_squared_distances(columns, point))


@_distances.defjvp
def _distances_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # By way of the squares a cotangent would be divided by the square of the headroom, and
    # underflow.
    columns, point = primals
    column_moves, point_move = tangents
    distances = _distances(columns, point)
    inverse = jnp.where(distances > 0, 1 / jnp.where(distances > 0, distances, 1), 0)

    def add(k: Array, total: Array) -> Array:
        return total + (columns[k] - point[k]) * inverse * (column_moves[k] - point_move[k])

    return distances, lax.fori_loop(
        0, len(point), add, jnp.zeros_like(distances), unroll=min(4, len(point))
    )


def _rows_at_once(m: int) -> int:
    return max(1, min(_ROWS, _PAIRS // m))


def _dissimilarity(scaled: _Rescaled, bandwidth: Array | None) -> Callable[[Array], Array]:
    """Return ρ as a function of rescaled distances."""
    if bandwidth is None:
        return lambda distances: distances / scaled.headroom
    width = lax.optimization_barrier(bandwidth / scaled.unit) * scaled.headroom
    width = jnp.maximum(width, float(jnp.finfo(width.dtype).tiny))
    unit = binary_scale(width)  # the derivative of a ratio has the square of what it is divided by

    def one_minus_kernel(distances: Array) -> Array:
        in_widths = jnp.minimum(distances / unit, 1e3) / (width / unit)
        return -jnp.expm1(-0.5 * in_widths**2)

    return one_minus_kernel


@jax.jit
def discrepancy(x: Array, y: Array, bandwidth: Array | None) -> Estimate:
    """Return 2E ρ(X, Y) − E ρ(X, X') − E ρ(Y, Y'); see ``metrics.energy_distance``.

    ρ is the distance, or 1 − k of a Gaussian kernel: no digits are lost for a wide one, and ρ(x, x)
    = 0.
    """
    n, m = len(x), len(y)
    scaled = _rescale(x, y)
    pooled = jnp.concatenate([scaled.x, scaled.y])
    columns = pooled.T
    dissimilarity = _dissimilarity(scaled, bandwidth)

    def row(item: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
        """Return mean and variance of ρ from one point to x and to y, and its largest distance.

        The point itself is left out.
        """
        i, point = item
        distances = _distances(columns, point)
        rho = dissimilarity(distances)

        def moments(part: Array, itself: Array) -> tuple[Array, Array]:
            itself = itself.astype(part.dtype)
            pairs = len(part) - itself
            mean = jnp.sum(part) / pairs
            return mean, (jnp.sum((part - mean) ** 2) - itself * mean**2) / pairs

        return moments(rho[:n], i < n), moments(rho[n:], i >= n), jnp.max(distances)

    to_x, to_y, farthest = lax.map(
        row, (jnp.arange(n + m), pooled), batch_size=_rows_at_once(n + m)
    )
    xx, yx, xy, yy = to_x[0][:n], to_x[0][n:], to_y[0][:n], to_y[0][n:]
    within_xx, within_xy, within_yy = (
        jnp.mean(to_x[1][:n]),
        jnp.mean(to_y[1][:n]),
        jnp.mean(to_y[1][n:]),
    )
    first_order = 4 * jnp.var(xy - xx, ddof=1) / n + 4 * jnp.var(yx - yy, ddof=1) / m
    # ζ, the mean squares of ρ without its row and column means
    zeta_x, zeta_y, zeta_xy = (
        within_xx - jnp.var(xx),
        within_yy - jnp.var(yy),
        within_xy - jnp.var(yx),
    )
    second_order = jnp.maximum(2 * zeta_x / n**2 + 2 * zeta_y / m**2 + 4 * zeta_xy / n / m, 0)
    value = jnp.mean(xy - xx) + jnp.mean(yx - yy)
    biased = value + jnp.mean(xx) / n + jnp.mean(yy) / m
    # first_order estimates slope · truth + 2 second_order; were all eigenvalues of ρ equal, it
    # would be slope · biased. Where the value is clear of the noise its own variance, one
    # second_order less, tells the slope without that assumption. Neither is more than the largest
    # eigenvalues allow, which √ζ bounds: of copies biased is nothing but rounding.
    largest_slope = 4 * _eigenvalue_bound(zeta_x, xx) / n + 4 * _eigenvalue_bound(zeta_y, yy) / m
    of_biased = _ratio(first_order, jnp.maximum(biased, _ratio(first_order, largest_slope)))
    of_value = _ratio(first_order - second_order, jnp.maximum(value, safe_sqrt(second_order)))
    slope = jnp.minimum(jnp.maximum(of_biased, of_value), largest_slope)
    if bandwidth is not None:
        return score_interval(value, slope, second_order, 2.0)
    most = 2 * jnp.max(farthest) / scaled.headroom
    return jax.tree.map(
        lambda end: end * scaled.unit, score_interval(value, slope, second_order, most)
    )


def _eigenvalue_bound(zeta: Array, row_means: Array) -> Array:
    """Return an upper bound on the largest eigenvalue of ρ: √ζ, corrected for n.

    For two or three points it is the trace.
    """
    n = len(row_means)
    return safe_sqrt(zeta) * n / (n - 3) if n > 3 else jnp.mean(row_means)


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


@jax.jit
def median(x: Array, y: Array) -> Array:
    """Return what ``metrics.median_bandwidth`` says."""
    scaled = _rescale(*(points[:: -(-len(points) // _SUBSAMPLE)] for points in (x, y)))
    pooled = jnp.concatenate([scaled.x, scaled.y])
    columns = pooled.T
    distances = (
        lax.map(lambda p: _distances(columns, p), pooled, batch_size=_rows_at_once(len(pooled)))
        / scaled.headroom
    )
    middle = jnp.nanmedian(jnp.where(distances > 0, distances, jnp.nan))
    return jnp.where(jnp.isnan(middle), 1, middle * scaled.unit)


@partial(jax.jit, static_argnames="exclude_self")
def nearest(x: Array, train: Array, exclude_self: bool) -> tuple[Array, Array]:
    """Return distance and row of the nearest training point of each x, [n] and [n]."""
    scaled = _rescale(x, train)
    columns = scaled.y.T
    numbers = jnp.arange(len(train))

    def nearest_of(item: tuple[Array, Array]) -> Array:
        i, point = item
        squares = _squared_distances(columns, point)
        if exclude_self:
            squares = jnp.where(numbers == i, jnp.inf, squares)
        return jnp.argmin(squares)

    index = lax.map(
        nearest_of, (jnp.arange(len(x)), scaled.x), batch_size=_rows_at_once(len(train))
    )
    return scaled_norm((x - train[index]) / scaled.unit, 1) * scaled.unit, index
