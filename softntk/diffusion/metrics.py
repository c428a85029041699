r"""How good a score is, and how good samples are: errors against the truth, distances of two samples, copies of training data.

    relative score error    E‖s − s*‖²/E‖s*‖²                                 on points drawn at time t
    sliced Wasserstein      (E_θ W_p(θ·X, θ·Y)^p)^{1/p}                       θ uniform on the sphere
    energy distance         2E|X − Y| − E|X − X'| − E|Y − Y'|                 zero exactly for equal distributions
    MMD²                    E k(X, X') + E k(Y, Y') − 2E k(X, Y)              the same with 1 − k in the place of |·|

Each is an :class:`Estimate` with an interval of 95 %; each docstring says what that interval covers, and what it does not.
Pairs are compared in blocks, so that 10⁴ × 10⁴ of them need a few megabytes, and by differences of their coordinates, not by
|x|² − 2x·y + |y|²: a copy has distance zero, and near points keep their digits however far from the origin they are.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.diffusion import metrics
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 3))
    >>> moved = metrics.energy_distance(x, y + 1)
    >>> bool(moved.lower > 0), bool(metrics.energy_distance(x, y).lower > 0)
    (True, False)

Source: MATH.md section 5 (score error); the docstrings name the others.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from softntk._records import record
from softntk._validation import check_floating, check_positive, check_positive_int, is_concrete
from softntk.diffusion._estimates import Estimate as Estimate
from softntk.diffusion._estimates import normal, wilson
from softntk.diffusion._pairs import check_samples, discrepancy, median, nearest
from softntk.diffusion._slices import coupling, sliced
from softntk.diffusion.mixture import Points
from softntk.diffusion.sde import VPSDE


class Distribution(Protocol):
    """What :func:`score_error` asks of the truth: draws of X_0, and the score of X_t. A pytree, as both in ``mixture`` are."""

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Draws of X_0, [n, d]."""
        ...

    def score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """∇log p_t(x), [n, d]."""
        ...


@record
class ScoreError:
    """The error of a score at each time.

    Attributes:
        t: the times, of any one shape.
        relative: E‖s − s*‖²/E‖s*‖² at each.
        absolute: E‖s − s*‖² at each.
    """

    t: Float[Array, "..."]
    relative: Estimate
    absolute: Estimate


@record
class Nearest:
    """The nearest training point of each sample.

    Attributes:
        distance: Euclidean, [n].
        index: its row; the first among equals, [n].
    """

    distance: Float[Array, " n"]
    index: Int[Array, " n"]


@record
class Memorisation:
    """Whether samples are nearer to the training points than fresh data are.

    Attributes:
        distance: the median distance of the samples to their nearest training points.
        held_out_distance: that of the held-out points.
        ratio: the first by the second: about 1 without memorisation, 0 for copies.
        fraction: of the samples, no farther from a training point than the stated quantile of the held-out distances.
    """

    distance: Float[Array, ""]
    held_out_distance: Float[Array, ""]
    ratio: Float[Array, ""]
    fraction: Estimate


def score_error(
    key: PRNGKeyArray,
    sde: VPSDE,
    score_fn: Callable[[Array, Array], Array],
    distribution: Distribution,
    t: Float[Array | np.ndarray, " k"] | Float[Array | np.ndarray, ""] | float,
    n: int = 4096,
) -> ScoreError:
    r"""The error of a score at times t, on n independent draws X_t of the distribution at each.

    With a = ‖s − s*‖² and b = ‖s*‖² on each draw the errors are ā and R = ā/b̄, of variances var(a)/n and, to first order,
    var(a − Rb)/(n b̄²): the intervals are normal, cut at 0.

    Args:
        key: randomness.
        sde: the noising process.
        score_fn: the score (t, x) -> [n, d], called with one time as a scalar and x of shape [n, d]. What is jitted in it stays
            compiled: it is called, not traced.
        distribution: the truth, e.g. a :class:`~softntk.diffusion.GaussianMixture`.
        t: in (0, T], a scalar or [k].
        n: draws at each time, at least 2.

    Returns:
        A :class:`ScoreError` whose fields have the shape of t.

    Raises:
        ValueError: t outside (0, T], empty or no floating-point numbers; n below 2; a score of another shape than x, or one
            that is not finite (inside jit it is returned).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde, normal = diffusion.vp_sde(), diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> error = score_error(jax.random.key(0), sde, lambda t, x: -1.1 * x, normal, jnp.array([0.1, 0.5]))
        >>> [round(float(v), 4) for v in error.relative.value]
        [0.01, 0.01]

    Source: MATH.md section 5; van der Vaart (1998), Asymptotic Statistics, chapter 3, for the ratio.
    """
    check_floating("t", t)
    _check_at_least_two("n", n)
    if jnp.ndim(t) > 1 or jnp.size(t) == 0:
        raise ValueError(f"t must be a scalar or of shape [k] with k > 0, got shape {jnp.shape(t)}.")
    sde.check_times(t)
    times = jnp.atleast_1d(jnp.asarray(t))
    keys = jax.random.split(key, len(times))
    errors = [_error_at(k, sde, score_fn, distribution, time, n) for k, time in zip(keys, times, strict=True)]
    together = lambda *leaves: jnp.stack(leaves).reshape(jnp.shape(t))
    absolute, relative = (jax.tree.map(together, *estimates) for estimates in zip(*errors, strict=True))
    return ScoreError(t=jnp.asarray(t), relative=relative, absolute=absolute)


@partial(jax.jit, static_argnames="n")
def _draw(key: Array, sde: VPSDE, distribution: Distribution, t: Array, n: int) -> tuple[Array, Array]:
    of_data, of_noise = jax.random.split(key)
    x = sde.perturb(of_noise, t, distribution.sample(of_data, n))
    return x, distribution.score(sde, t, x)


def _error_at(
    key: Array, sde: VPSDE, score_fn: Callable, distribution: Distribution, t: Array, n: int
) -> tuple[Estimate, Estimate]:
    x, truth = _draw(key, sde, distribution, t, n)
    score = score_fn(t.astype(x.dtype), x)
    if jnp.shape(score) != x.shape:
        raise ValueError(f"score_fn must return the shape of its x, {x.shape}, got {jnp.shape(score)}.")
    absolute, relative, bad = _compare(score, truth)
    if is_concrete(bad) and bad:
        raise ValueError(f"score_fn must be finite, got {bad} of {n} rows with an error that is NaN or infinite, at t = {t}.")
    return absolute, relative


@jax.jit
def _compare(score: Array, truth: Array) -> tuple[Estimate, Estimate, Array]:
    a, b = jnp.sum((score - truth) ** 2, axis=1), jnp.sum(truth**2, axis=1)
    n, size = len(a), jnp.mean(b)
    ratio = jnp.mean(a) / size
    absolute = normal(jnp.mean(a), jnp.var(a, ddof=1) / n, 0.0)
    relative = normal(ratio, jnp.var(a - ratio * b, ddof=1) / n / size**2, 0.0)
    return absolute, relative, jnp.sum(~jnp.isfinite(a))


def sliced_wasserstein(
    key: PRNGKeyArray, x: Points, y: Float[Array | np.ndarray, "m d"], projections: int = 256, order: int = 2
) -> Estimate:
    r"""The sliced Wasserstein distance SW_p of two samples, the p-th root: (E_θ W_p(θ·x, θ·y)^p)^{1/p}.

    On a line W_p^p = ∫₀¹ |F⁻¹(u) − G⁻¹(u)|^p du couples equal quantiles: sorted values for n = m, and for n ≠ m the n + m − 1
    pieces on which both quantile functions are constant, exactly.

    The interval is over the directions: it covers SW_p of the two samples as they are (W_p^p is averaged over independent
    directions, with a normal interval that is cut at 0 and whose ends take the root). It says nothing about how far samples
    are from their distributions: SW_p of two samples of one distribution is positive. Compare with that of two held-out ones.

    Args:
        key: randomness of the directions.
        x: [n, d].
        y: [m, d].
        projections: how many directions, at least 2.
        order: p, 1 or 2.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are no finite floating-point matrices of one dimension and dtype, projections below 2, another
            order.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (1000, 1))
        >>> round(float(sliced_wasserstein(jax.random.key(1), x, x + 3, order=1)), 4)
        3.0

    Source: Bonneel, Rabin, Peyré and Pfister (2015), J. Math. Imaging Vis. 51, 22-45.
    """
    check_samples(1, x=x, y=y)
    _check_at_least_two("projections", projections)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}.")
    return sliced(key, jnp.asarray(x), jnp.asarray(y), coupling(len(x), len(y)), projections, int(order))


def energy_distance(x: Points, y: Float[Array | np.ndarray, "m d"]) -> Estimate:
    r"""The energy distance 2E|X − Y| − E|X − X'| − E|Y − Y'| ≥ 0 of the distributions behind two samples, without bias.

    The estimate is the U-statistic U (no pair of a point with itself), which may be negative. With the differences of row means
    g_i = mean_j |x_i − y_j| − mean_{j≠i} |x_i − x_j|, and likewise for y, it is mean(g_x) + mean(g_y). Its variance is about
    κμ + v, for the true distance μ:

        4 var(g_x)/n + 4 var(g_y)/m ≈ κμ + 2v,        v = 2ζ_x/n² + 2ζ_y/m² + 4ζ_xy/(nm),

    ζ the mean squares of the doubly centred distances. The first is the variance of the influence functions, of which the
    normal limit consists where μ > 0. Where μ = 0 they vanish, and nU tends to a weighted sum of χ² − 1 of variance n²v.
    Between the two, and for one eigenvalue at μ = 0 as well, that variance is small whenever U is, and U ± 1.96 of its roots
    misses too often (down to 81 % measured). The interval is therefore that of all μ with |U − μ| ≤ 1.96 √(κμ + v), as
    Wilson's for fractions, κ the larger of two estimates. It covers μ with 95 % as n, m grow with μ > 0 fixed; 0, if that is
    the truth, with 95 % but for the skewness of χ², about one per cent; in between, measured on normal samples of 64 and more,
    with 92 to 98 %. Of fewer than ten points it is too short (of two, 66 %).

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are no finite floating-point matrices of one dimension and dtype with at least two rows.

    Example:
        >>> import jax.numpy as jnp
        >>> float(energy_distance(jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [4.0]])))  # 2 · 2.5 − 1 − 2
        2.0

    Source: Székely and Rizzo (2013), J. Stat. Plan. Inference 143, 1249-1272; Hoeffding (1948), Ann. Math. Stat. 19, 293-325.
    """
    check_samples(2, x=x, y=y)
    return discrepancy(jnp.asarray(x), jnp.asarray(y), None)


def mmd(x: Points, y: Float[Array | np.ndarray, "m d"], bandwidth: float | Float[Array, ""] | None = None) -> Estimate:
    r"""The squared maximum mean discrepancy with k(x, y) = exp(−|x − y|²/(2b²)), without bias.

    MMD² = E k(X, X') + E k(Y, Y') − 2E k(X, Y) is zero exactly for equal distributions. The estimate may be negative; estimate
    and interval are those of :func:`energy_distance` with 1 − k for the distance. The interval covers MMD² at the bandwidth
    that was used, taken as given.

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.
        bandwidth: b > 0; None for :func:`median_bandwidth`. Fix it to compare several samples.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: samples that are no finite floating-point matrices of one dimension and dtype with at least two rows, a
            bandwidth that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[2.0], [4.0]])
        >>> round(float(mmd(x, y, bandwidth=1.0)), 4)
        0.3652

    Source: Gretton et al. (2012), J. Mach. Learn. Res. 13, 723-773, lemma 6 and section 8 (the median).
    """
    check_samples(2, x=x, y=y)
    x, y = jnp.asarray(x), jnp.asarray(y)
    if bandwidth is None:
        bandwidth = median(x, y)
    check_positive("bandwidth", bandwidth)
    return discrepancy(x, y, jnp.asarray(bandwidth, x.dtype))


def median_bandwidth(x: Points, y: Float[Array | np.ndarray, "m d"]) -> Float[Array, ""]:
    """The median distance of two different points among at most 500 of each sample, evenly spaced rows; 1 if all are equal.

    Args:
        x: [n, d], n ≥ 2.
        y: [m, d], m ≥ 2.

    Returns:
        A positive scalar.

    Raises:
        ValueError: samples that are no finite floating-point matrices of one dimension and dtype with at least two rows.

    Example:
        >>> import jax.numpy as jnp
        >>> float(median_bandwidth(jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [3.0]])))  # of 1, 2, 2, 3, 3
        2.0

    Source: Gretton et al. (2012), J. Mach. Learn. Res. 13, 723-773, section 8.
    """
    check_samples(2, x=x, y=y)
    return median(jnp.asarray(x), jnp.asarray(y))


def nearest_training_point(x: Points, train: Float[Array | np.ndarray, "N d"], exclude_self: bool = False) -> Nearest:
    """The distance of each sample to its nearest training point, and which that is.

    Args:
        x: [n, d].
        train: [N, d].
        exclude_self: x is train, row by row: no point counts as its own neighbour. Copies in other rows do, at distance 0.

    Returns:
        A :class:`Nearest`; a copy has distance exactly 0.

    Raises:
        ValueError: points that are no finite floating-point matrices of one dimension and dtype; exclude_self with another
            number of rows than train, or one row.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest = nearest_training_point(jnp.array([[0.75], [5.0]]), jnp.array([[0.0], [1.0], [5.0]]))
        >>> nearest.distance.tolist(), nearest.index.tolist()
        ([0.25, 0.0], [1, 2])
    """
    check_samples(2 if exclude_self else 1, x=x, train=train)
    if exclude_self and jnp.shape(x) != jnp.shape(train):
        raise ValueError(
            f"x must be train itself where exclude_self, of shape {jnp.shape(train)}, got {jnp.shape(x)}. "
            "Leave exclude_self out for other points."
        )
    distance, index = nearest(jnp.asarray(x), jnp.asarray(train), exclude_self)
    return Nearest(distance=distance, index=index)


def memorisation(
    x: Points, train: Float[Array | np.ndarray, "N d"], held_out: Float[Array | np.ndarray, "m d"], quantile: float = 0.05
) -> Memorisation:
    """Whether samples are copies: their distances to the training points against those of data that were not trained on.

    Samples as good as fresh data have a ratio of about 1 and a fraction of about ``quantile``; copies have 0 and 1. A sampler
    that leaves the data has a large ratio: that is no memorisation, and no good either.

    Args:
        x: samples, [n, d].
        train: what the model has seen, [N, d].
        held_out: data that it has not, [m, d]; some hundreds, or the quantile is rough.
        quantile: of the held-out distances, in (0, 1).

    Returns:
        A :class:`Memorisation`. The interval of ``fraction`` is over the samples, for the held-out points as they are.

    Raises:
        ValueError: points that are no finite floating-point matrices of one dimension and dtype; a quantile outside (0, 1);
            half of held_out in train (inside jit the ratio is then infinite or NaN).

    Example:
        >>> import jax
        >>> train, fresh, x = jax.random.normal(jax.random.key(0), (3, 500, 2))
        >>> float(memorisation(train, train, fresh).fraction), bool(memorisation(x, train, fresh).fraction.upper < 0.2)
        (1.0, True)

    Source: Meehan, Chaudhuri and Dasgupta (2020), arXiv 2004.05675, for the comparison.
    """
    check_samples(1, x=x, train=train, held_out=held_out)
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile!r}.")
    ours, theirs = (nearest(jnp.asarray(points), jnp.asarray(train), False)[0] for points in (x, held_out))
    distance, held_out_distance = jnp.median(ours), jnp.median(theirs)
    if is_concrete(held_out_distance) and held_out_distance == 0:
        raise ValueError("held_out must be points that are not in train, got copies for half of it or more. Take other ones.")
    fraction = jnp.mean(ours <= jnp.quantile(theirs, quantile), dtype=ours.dtype)
    return Memorisation(
        distance=distance,
        held_out_distance=held_out_distance,
        ratio=distance / held_out_distance,
        fraction=wilson(fraction, len(ours)),
    )


def _check_at_least_two(name: str, value: object) -> None:
    check_positive_int(name, value)
    if value == 1:
        raise ValueError(f"{name} must be at least 2, got 1: the interval needs a variance.")
