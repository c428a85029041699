"""Comparisons of all pairs of two samples, in blocks, by the differences of their coordinates."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._validation import check_rows, is_concrete
from softntk.diffusion._estimates import Estimate, root, score_interval

_ROWS = 32  # points compared with a whole sample at once, …
_PAIRS = 2**19  # … fewer where that would be more pairs than this
_SUBSAMPLE = 500  # points of each sample whose distances give the bandwidth


def check_samples(least: int, **samples: Array | np.ndarray) -> None:
    """Matrices of one dimension and dtype with ``least`` rows, whose squared distances do not overflow."""
    (reference, first), *_ = samples.items()
    for name, points in samples.items():
        check_rows(name, points)
        if jnp.shape(points)[1] != jnp.shape(first)[1]:
            raise ValueError(
                f"{name} must have as many columns as {reference}, got shapes {jnp.shape(points)} and {jnp.shape(first)}."
            )
        if jnp.result_type(points) != jnp.result_type(first):
            raise ValueError(f"{name} must have the dtype of {reference}, got {jnp.result_type(points)}. Convert one of them.")
        if len(points) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {len(points)}.")
        largest = math.sqrt(float(jnp.finfo(jnp.result_type(points)).max) / jnp.shape(points)[1]) / 4
        if is_concrete(points) and np.abs(np.asarray(points, np.float64)).max() > largest:
            raise ValueError(f"{name} must stay below {largest:.1g}, or squared distances overflow. Rescale all points alike.")


def _squared_distances(columns: Array, point: Array) -> Array:
    """|y_j − x|² to all points, given as columns [d, m]: summed over the coordinates, so that [m, d] is never formed."""
    add = lambda k, total: total + (columns[k] - point[k]) ** 2
    return lax.fori_loop(0, len(point), add, jnp.zeros(columns.shape[1], point.dtype), unroll=min(4, len(point)))


def _rows_at_once(m: int) -> int:
    return max(1, min(_ROWS, _PAIRS // m))


@jax.jit
def discrepancy(x: Array, y: Array, bandwidth: Array | None) -> Estimate:
    """2E ρ(X, Y) − E ρ(X, X') − E ρ(Y, Y'); see ``metrics.energy_distance``.

    ρ is the distance, or 1 − k of a Gaussian kernel: no digits are lost for a wide one, and ρ(x, x) = 0.
    """
    n, m = len(x), len(y)
    pooled = jnp.concatenate([x, y])
    columns = pooled.T

    def row(item: tuple[Array, Array]) -> tuple[tuple[Array, Array], ...]:
        """Mean and variance of ρ from one point to x and to y, itself left out."""
        i, point = item
        squares = _squared_distances(columns, point)
        rho = root(squares) if bandwidth is None else -jnp.expm1(-squares / bandwidth / (2 * bandwidth))

        def moments(part: Array, itself: Array) -> tuple[Array, Array]:
            pairs = (len(part) - itself).astype(part.dtype)
            mean = jnp.sum(part) / pairs
            return mean, (jnp.sum((part - mean) ** 2) - itself * mean**2) / pairs

        return moments(rho[:n], (i < n).astype(int)), moments(rho[n:], (i >= n).astype(int))

    to_x, to_y = lax.map(row, (jnp.arange(n + m), pooled), batch_size=_rows_at_once(n + m))
    xx, yx, xy, yy = to_x[0][:n], to_x[0][n:], to_y[0][:n], to_y[0][n:]
    within_xx, within_xy, within_yy = jnp.mean(to_x[1][:n]), jnp.mean(to_y[1][:n]), jnp.mean(to_y[1][n:])
    first_order = 4 * jnp.var(xy - xx, ddof=1) / n + 4 * jnp.var(yx - yy, ddof=1) / m
    # ζ, the mean squares of ρ without its row and column means
    zeta_x, zeta_y, zeta_xy = within_xx - jnp.var(xx), within_yy - jnp.var(yy), within_xy - jnp.var(yx)
    second_order = jnp.maximum(2 * zeta_x / n**2 + 2 * zeta_y / m**2 + 4 * zeta_xy / n / m, 0)
    value = jnp.mean(xy - xx) + jnp.mean(yx - yy)
    biased = value + jnp.mean(xx) / n + jnp.mean(yy) / m
    # first_order estimates slope · truth + 2 second_order; were all eigenvalues of ρ equal, it would be slope · biased.
    # Where the value is clear of the noise its own variance, one second_order less, tells the slope without that assumption.
    of_value = _ratio(first_order - second_order, jnp.maximum(value, root(second_order)))
    slope = jnp.maximum(_ratio(first_order, biased), of_value)
    return score_interval(value, slope, second_order)


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


@jax.jit
def median(x: Array, y: Array) -> Array:
    """See ``metrics.median_bandwidth``."""
    some = jnp.concatenate([points[:: -(-len(points) // _SUBSAMPLE)] for points in (x, y)])
    columns = some.T
    distances = root(lax.map(lambda p: _squared_distances(columns, p), some, batch_size=_rows_at_once(len(some))))
    found = jnp.nanmedian(jnp.where(distances > 0, distances, jnp.nan))
    return jnp.where(jnp.isnan(found), 1, found)


@partial(jax.jit, static_argnames="exclude_self")
def nearest(x: Array, train: Array, exclude_self: bool) -> tuple[Array, Array]:
    """Distance and row of the nearest training point of each x, [n] and [n]."""
    columns, numbers = train.T, jnp.arange(len(train))

    def of_row(item: tuple[Array, Array]) -> tuple[Array, Array]:
        i, point = item
        squares = _squared_distances(columns, point)
        if exclude_self:
            squares = jnp.where(numbers == i, jnp.inf, squares)
        index = jnp.argmin(squares)
        return root(squares[index]), index

    return lax.map(of_row, (jnp.arange(len(x)), x), batch_size=_rows_at_once(len(train)))
