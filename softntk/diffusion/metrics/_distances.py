"""Distances between the distributions of two samples: sliced Wasserstein, energy, MMD."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import (
    check_count,
    check_integer,
    check_key,
    check_number,
)
from softntk._linalg.intervals import Estimate
from softntk.diffusion._types import Points
from softntk.diffusion.metrics._pairwise import (
    as_samples,
    discrepancy,
    median,
)
from softntk.diffusion.metrics._sliced_transport import coupling, sliced


def sliced_wasserstein(
    key: PRNGKeyArray,
    x: Points,
    y: Float[Array | np.ndarray, "m d"],
    projections: int = 256,
    order: int = 2,
) -> Estimate:
    r"""Return the sliced Wasserstein distance SW_p = (E_θ W_p(θ·x, θ·y)^p)^{1/p} of two samples.

    Use it to measure how far mass must move, in the unit of the data, also in many dimensions.

    On a line W_p^p = ∫₀¹ |F⁻¹(u) − G⁻¹(u)|^p du couples equal quantiles: sorted values for n = m,
    and for n ≠ m the n + m − 1 pieces on which both quantile functions are constant, exactly.

    The interval is over the directions: it covers SW_p of the two samples as they are (W_p^p is
    averaged over independent directions, with a normal interval that is cut at 0 and whose ends
    take the root). It says nothing about how far samples are from their distributions: SW_p of two
    samples of one distribution is positive. Compare with that of two held-out ones.

    Args:
        key: randomness of the directions.
        x: [n, d].
        y: [m, d].
        projections: number of directions, at least 2.
        order: p, 1 or 2.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are not finite floating-point matrices of one dimension and dtype,
            projections below 2, another order.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (1000, 1))
        >>> round(float(sliced_wasserstein(jax.random.key(1), x, x + 3, order=1)), 4)
        3.0

    Source: Bonneel, Rabin, Peyré and Pfister (2015), J. Math. Imaging Vis. 51, 22-45.
    """
    key = check_key("key", key)
    x, y = as_samples(1, x=x, y=y)
    projections = check_count("projections", projections, at_least=2)
    order = check_integer("order", order, at_least=1, at_most=2)
    # The coupling depends on n and m only: it is computed once, on the host.
    return sliced(key, x, y, coupling(len(x), len(y)), projections, order)


def energy_distance(x: Points, y: Float[Array | np.ndarray, "m d"]) -> Estimate:
    r"""Return an unbiased estimate of the energy distance of two distributions, from samples.

    Use it as a test of equality that needs no bandwidth and no choice of directions.

        2E|X − Y| − E|X − X'| − E|Y − Y'| ≥ 0,    zero exactly for equal distributions.

    The estimate is the U-statistic U (no pair of a point with itself), which may be negative. With
    the differences of row means g_i = mean_j |x_i − y_j| − mean_{j≠i} |x_i − x_j|, and likewise for
    y, it is mean(g_x) + mean(g_y). Its variance is about κμ + v, for the true distance μ:

        4 var(g_x)/n + 4 var(g_y)/m ≈ κμ + 2v,        v = 2ζ_x/n² + 2ζ_y/m² + 4ζ_xy/(nm),

    with ζ the mean squares of the doubly centred distances. The left side is the variance of the
    influence functions, of which the normal limit consists where μ > 0. Where μ = 0 they vanish,
    and nU tends to a weighted sum of χ² − 1 of variance n²v.

    Between the two, and at μ = 0 with a single eigenvalue, the estimated variance is small whenever
    U is. Then U ± 1.96 standard deviations misses μ too often (it covered 81 % at worst). The
    interval is therefore that of all μ with |U − μ| ≤ 1.96 √(κμ + v), as Wilson's for fractions.
    Here κ is the larger of two estimates, but at most 4√ζ_x/n + 4√ζ_y/m. The interval is cut at the
    largest energy distance that there can be, twice the diameter of the points.

    It covers μ > 0 with 95 % as n and m grow. It covers μ = 0 with 95 %, but for about one per cent
    by the skewness of χ². In between it covered 92 to 98 %, measured on normal samples of 64 points
    and more. For fewer than ten points it is too short (for two it covers 66 %).

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are not finite floating-point matrices of one dimension and dtype
            with at least two rows.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [4.0]])
        >>> float(energy_distance(x, y))  # 2 · 2.5 − 1 − 2
        2.0

    Source: Székely and Rizzo (2013), J. Stat. Plan. Inference 143, 1249-1272; Hoeffding (1948),
    Ann. Math. Stat. 19, 293-325.
    """
    x, y = as_samples(2, x=x, y=y)
    return discrepancy(x, y, None)


def mmd(
    x: Points,
    y: Float[Array | np.ndarray, "m d"],
    bandwidth: float | Float[Array, ""] | None = None,
) -> Estimate:
    r"""Return an unbiased estimate of the squared maximum mean discrepancy, from samples.

    Use it where one length scale matters, that of the kernel k(x, y) = exp(−|x − y|²/(2b²)).

        MMD² = E k(X, X') + E k(Y, Y') − 2E k(X, Y) ≥ 0,    zero exactly for equal distributions.

    The estimate may be negative; estimate and interval are those of :func:`energy_distance` with
    1 − k for the distance. The interval covers MMD² at the bandwidth that was used; it does not
    include the uncertainty of an estimated bandwidth.

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.
        bandwidth: b > 0; None for :func:`median_bandwidth`. Fix it to compare several samples.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are not finite floating-point matrices of one dimension and dtype
            with at least two rows, a bandwidth that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [4.0]])
        >>> round(float(mmd(x, y, bandwidth=1.0)), 4)
        0.3652

    Source: Gretton et al. (2012), J. Mach. Learn. Res. 13, 723-773, lemma 6 and section 8 (the
    median).
    """
    x, y = as_samples(2, x=x, y=y)
    width = median(x, y) if bandwidth is None else check_number("bandwidth", bandwidth, above=0)
    # Outside the range of the precision the result no longer depends on the bandwidth.
    if isinstance(width, float):
        limits = jnp.finfo(x.dtype)
        width = min(max(width, float(limits.tiny)), float(limits.max))
    return discrepancy(x, y, jnp.asarray(width, x.dtype))


def median_bandwidth(x: Points, y: Float[Array | np.ndarray, "m d"]) -> Float[Array, ""]:
    """Return the median distance of two different points, a bandwidth for :func:`mmd`.

    Use it once, on reference data, where several samples are compared by one bandwidth. At most 500
    evenly spaced rows of each sample are used. It is 1 if all of them are equal.

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.

    Returns:
        A positive scalar.

    Raises:
        ValueError: samples that are not finite floating-point matrices of one dimension and dtype
            with at least two rows.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [3.0]])
        >>> float(median_bandwidth(x, y))  # of 1, 2, 2, 3, 3
        2.0

    Source: Gretton et al. (2012), J. Mach. Learn. Res. 13, 723-773, section 8.
    """
    x, y = as_samples(2, x=x, y=y)
    return median(x, y)
