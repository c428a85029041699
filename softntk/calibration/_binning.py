r"""Calibration error and reliability curve: events compared with probabilities, bin by bin.

A prediction is an event with a probability c, its confidence: that the most probable class is the
label, or of two classes in one column that class 1 is. With z = 1 if it happened, else 0, and the
n_b samples of bin b,

| symbol | meaning | shape |
|---|---|---|
| w_b = n_b/n | share of the samples, ``shares`` | [bins] |
| d_b | mean of z − c, ``gaps`` | [bins] |
| δ_b = E d_b | the true gap, whose norm is estimated | [bins] |
| s_b² | variance of z − c with n_b − 1 in the denominator, ``spreads`` | [bins] |
| v_b | the larger of s_b² and the mean of c(1 − c), ``variances`` | [bins] |

The last is what a calibrated predictor would have: without it a bin of one sample, or one where the
same happened every time, would count as known exactly.

Source: MATHEMATICS.md#calibration.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softntk._core.records import record
from softntk._core.validation import check_choice, check_count
from softntk._linalg.angles import safe_sqrt
from softntk._linalg.intervals import NORMAL_QUANTILE, Estimate, chernoff, score_interval, wilson
from softntk.calibration._arguments import Labels, Probabilities, as_predictions
from softntk.calibration._scores import is_correct

STRATEGIES = ("uniform", "quantile")
NORMS = (1, 2, "max")

# Probability with which the interval of the largest gap holds.
CONFIDENCE_LEVEL = 0.95


@record
class ReliabilityCurve:
    """Confidence against accuracy, bin by bin.

    A bin without samples has a count of zero, the middle of the bin as confidence and accuracy, and
    the interval [0, 1]; leave it out of a picture.

    Attributes:
        edges: the ends of the bins, [bins + 1]; a bin holds its upper end but not its lower one.
        confidence: mean confidence of each bin, [bins].
        accuracy: share of the events that happened, with Wilson's interval, [bins].
        count: number of samples, [bins].
    """

    edges: Float[Array, " edges"]
    confidence: Float[Array, " bins"]
    accuracy: Estimate
    count: Int[Array, " bins"]


def reliability_curve(
    probabilities: Probabilities, labels: Labels, *, bins: int = 15, strategy: str = "uniform"
) -> ReliabilityCurve:
    """Return mean confidence and accuracy in bins of the confidence.

    Use it to see where a predictor is too confident: there the accuracy lies below the confidence.
    For one class c of several pass ``probabilities[:, c]`` and the labels ``labels == c`` as
    integers.

    Args:
        probabilities: of the classes, [n, k], where confidence is the largest probability of a
            row and the event that it is the label's; or of class 1 of two, [n] or [n, 1], where
            confidence is that probability and the event is class 1.
        labels: integers from 0 on, [n].
        bins: how many, at least 1.
        strategy: "uniform", bins of equal width in [0, 1]; "quantile", of equally many samples,
            for confidences that crowd together. Equal confidences share a bin, so that some bins
            may be empty.

    Returns:
        A :class:`ReliabilityCurve`.

    Raises:
        ValueError: as for :func:`accuracy`; bins or strategy that are none.

    Example:
        >>> import jax.numpy as jnp
        >>> p, y = jnp.array([0.1, 0.2, 0.7, 0.9]), jnp.array([0, 1, 1, 1])
        >>> curve = reliability_curve(p, y, bins=2)
        >>> [round(float(v), 2) for v in curve.confidence], curve.accuracy.value.tolist()
        ([0.15, 0.8], [0.5, 1.0])

    Source: Niculescu-Mizil and Caruana (2005), ICML, Predicting good probabilities with supervised
    learning; MATHEMATICS.md#calibration.
    """
    probabilities, labels = as_predictions(probabilities, labels)
    bins = check_count("bins", bins)
    strategy = check_choice("strategy", strategy, STRATEGIES)
    return _reliability_curve(probabilities, labels, bins, strategy)


def expected_calibration_error(
    probabilities: Probabilities,
    labels: Labels,
    *,
    bins: int = 15,
    norm: int | str = 1,
    strategy: str = "uniform",
) -> Estimate:
    r"""Return the norm of the gaps between confidence and accuracy in bins of the confidence.

    Use ``norm=1``, the mean gap, to compare with published numbers, and ``norm=2``, the root of the
    mean squared gap, to decide whether a predictor is calibrated.

        norm 1      Σ_b w_b |d_b|                            the gaps as they are
        norm 2      √ max(Σ_b w_b (d_b² − s_b²/n_b), 0)      without bias under the root
        norm "max"  max_b |d_b|                              the gaps as they are

    Noise makes gaps of its own: of a perfectly calibrated predictor the first number is about
    √(2 bins p(1 − p)/(πn)), the third larger still. So the plain number means nothing by itself
    for small n or many bins, and predictors measured on different n or bins cannot be compared by
    it. The interval accounts for that: its lower end is zero in most samples of a calibrated
    predictor. The number is that of the binned predictor, a lower bound of the error without bins;
    and a predictor that always states the base rate has none: look at :func:`brier_score` too.

    Args:
        probabilities: of the classes, [n, k], of which the largest of each row counts; or of class
            1 of two, [n] or [n, 1]; see :func:`reliability_curve`.
        labels: integers from 0 on, [n].
        bins: how many, at least 1.
        norm: 1, 2 or "max". For norm 2 bins of a single sample are left out.
        strategy: "uniform" or "quantile", see :func:`reliability_curve`.

    Returns:
        An :class:`Estimate`. The interval is for the error of these bins at these confidences, the
        labels being random. For norm 1 and "max" it is conservative: it covers every pattern of
        true gaps. The upper end of norm 1 holds since the plain number is at least the true one
        plus noise of mean zero, the lower end since noise adds at most its own modulus.

    Raises:
        ValueError: as for :func:`reliability_curve`; a norm that is none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> p = jax.random.uniform(jax.random.key(0), (500,))
        >>> y = (jax.random.uniform(jax.random.key(1), (500,)) < p).astype(int)
        >>> calibrated = expected_calibration_error(p, y)
        >>> confident = expected_calibration_error(jnp.where(p < 0.5, 0.1 * p, 1 - 0.1 * p), y)
        >>> float(calibrated) > 0.02, float(calibrated.lower), float(confident.lower) > 0.1
        (True, 0.0, True)

    Source: Guo, Pleiss, Sun and Weinberger (2017), arXiv 1706.04599; Kumar, Liang and Ma (2019),
    arXiv 1909.10155 (norm 2); MATHEMATICS.md#calibration.
    """
    probabilities, labels = as_predictions(probabilities, labels)
    bins = check_count("bins", bins)
    strategy = check_choice("strategy", strategy, STRATEGIES)
    if not isinstance(norm, int | str) or isinstance(norm, bool) or norm not in NORMS:
        raise ValueError(f'norm must be 1, 2 or "max", got {norm!r:.60}.')
    return _calibration_error(probabilities, labels, bins, strategy, norm)


class _Bins(NamedTuple):
    """Sums over the samples of each bin.

    Attributes:
        edges: the ends of the bins, [bins + 1].
        totals: n_b as integers, [bins].
        counts: n_b, in the precision of the confidences, [bins].
        confidences: mean c, [bins]; the middle of a bin without samples.
        accuracies: mean z, [bins]; likewise.
        gaps: d_b, [bins].
        spreads: s_b², zero for less than two samples, [bins].
        variances: v_b, [bins].
    """

    edges: Float[Array, " edges"]
    totals: Int[Array, " bins"]
    counts: Float[Array, " bins"]
    confidences: Float[Array, " bins"]
    accuracies: Float[Array, " bins"]
    gaps: Float[Array, " bins"]
    spreads: Float[Array, " bins"]
    variances: Float[Array, " bins"]


def _find_edges(confidences: Float[Array, " n"], bins: int, strategy: str) -> Array:
    """Return the ends of the bins, [bins + 1]."""
    ends = jnp.linspace(0, 1, bins + 1, dtype=confidences.dtype)
    return ends if strategy == "uniform" else jnp.quantile(confidences, ends)


def _sum_bins(probabilities: Array, labels: Array, bins: int, strategy: str) -> _Bins:
    """Return the means and variances of each bin."""
    # 1. Events and their probabilities.
    is_column = probabilities.ndim == 1
    confidences = probabilities if is_column else jnp.max(probabilities, axis=1)
    happened = labels == 1 if is_column else is_correct(probabilities, labels)
    outcomes = happened.astype(confidences.dtype)

    # 2. The bin of each sample: as many edges inside as lie below it. NaN goes to the first bin.
    edges = _find_edges(confidences, bins, strategy)
    positions = jnp.sum(confidences[:, None] > edges[None, 1:-1], axis=1)
    is_inside = positions[None, :] == jnp.arange(bins, dtype=positions.dtype)[:, None]
    totals = jnp.sum(is_inside, axis=1)
    counts = totals.astype(confidences.dtype)
    divisors = jnp.maximum(counts, 1)

    # 3. Means. Sums over masks, not scattered ones: their order, and so the result, is fixed.
    def average(values: Array) -> Float[Array, " bins"]:
        return _masked_sum(is_inside, values) / divisors

    middles = (edges[1:] + edges[:-1]) / 2
    mean_confidences = jnp.where(counts > 0, average(confidences), middles)
    accuracies = jnp.where(counts > 0, average(outcomes), middles)
    gaps = average(outcomes - confidences)

    # 4. Variances, about the mean of the own bin.
    deviations = (outcomes - confidences)[None, :] - gaps[:, None]
    squares = jnp.sum(jnp.where(is_inside, deviations**2, 0), axis=1)
    spreads = squares / jnp.maximum(counts - 1, 1)
    return _Bins(
        edges=edges,
        totals=totals,
        counts=counts,
        confidences=mean_confidences,
        accuracies=accuracies,
        gaps=gaps,
        spreads=spreads,
        variances=jnp.maximum(spreads, average(confidences * (1 - confidences))),
    )


def _masked_sum(mask: Bool[Array, "bins n"], values: Float[Array, " n"]) -> Float[Array, " bins"]:
    """Return the sum of the values of each bin."""
    return jnp.sum(jnp.where(mask, values[None, :], 0), axis=1)


@partial(jax.jit, static_argnums=(2, 3))
def _reliability_curve(
    probabilities: Array, labels: Array, bins: int, strategy: str
) -> ReliabilityCurve:
    """Return the curve of checked arguments."""
    sums = _sum_bins(probabilities, labels, bins, strategy)
    return ReliabilityCurve(
        edges=sums.edges,
        confidence=sums.confidences,
        accuracy=wilson(sums.accuracies, sums.counts),
        count=sums.totals,
    )


@partial(jax.jit, static_argnums=(2, 3, 4))
def _calibration_error(
    probabilities: Array, labels: Array, bins: int, strategy: str, norm: int | str
) -> Estimate:
    """Return the norm of the gaps of checked arguments."""
    sums = _sum_bins(probabilities, labels, bins, strategy)
    norms = {1: _mean_gap, 2: _root_mean_square_gap, "max": _largest_gap}
    return norms[norm](sums, len(labels))


def _mean_gap(sums: _Bins, n: int) -> Estimate:
    """Return Σ w_b |d_b|."""
    # With noise ε_b of variance v_b/n_b: w_b² v_b/n_b = w_b v_b/n.
    shares = sums.counts / n
    value = jnp.sum(shares * jnp.abs(sums.gaps))
    variance = jnp.sum(shares * sums.variances) / n
    # Upper end: |δ + ε| ≥ |δ| ± ε with the sign of δ, and Σ ±w_b ε_b has mean zero.
    upper_end = value + NORMAL_QUANTILE * safe_sqrt(variance)
    # Lower end: |δ + ε| ≤ |δ| + |ε|, where Σ w_b |ε_b| has this mean and 1 − 2/π of the variance.
    noise_deviations = safe_sqrt(sums.variances / jnp.maximum(sums.counts, 1))
    noise_mean = math.sqrt(2 / math.pi) * jnp.sum(shares * noise_deviations)
    noise_quantile = noise_mean + NORMAL_QUANTILE * safe_sqrt((1 - 2 / math.pi) * variance)
    return Estimate(
        value=value,
        lower=jnp.maximum(value - noise_quantile, 0),
        upper=jnp.clip(upper_end, value, jnp.maximum(value, 1)),
    )


def _root_mean_square_gap(sums: _Bins, n: int) -> Estimate:
    """Return √Σ w_b (d_b² − s_b²/n_b) over the bins with two samples or more."""
    # 1. The estimate Σ_{i≠j} of products of different samples, which has no bias.
    is_used = sums.counts > 1
    divisors = jnp.maximum(sums.counts, 2)
    shares = jnp.where(is_used, sums.counts / n, 0)
    square = jnp.maximum(jnp.sum(shares * (sums.gaps**2 - sums.spreads / divisors)), 0)

    # 2. Its variance Σ w_b² (4 δ_b² v_b/n_b + 2 v_b²/(n_b (n_b − 1))); the first part is at most
    # slope · Σ w_b δ_b².
    slope = 4 * jnp.max(jnp.where(is_used, sums.variances, 0)) / n
    variance = jnp.sum(2 * shares**2 * sums.variances**2 / (divisors * (divisors - 1)))
    squares = score_interval(square, slope, variance, 1.0)

    # 3. Roots. Where no bin has two samples nothing is known.
    return Estimate(
        value=safe_sqrt(squares.value),
        lower=safe_sqrt(squares.lower),
        upper=jnp.where(jnp.any(is_used), safe_sqrt(squares.upper), 1),
    )


def _largest_gap(sums: _Bins, n: int) -> Estimate:
    """Return max_b |d_b|, with an interval by those of all bins at once."""
    del n  # each bin has its own count
    # Each bin misses with a probability of 5 % over their number, so that all hold with 95 %.
    error = (1 - CONFIDENCE_LEVEL) / len(sums.counts)
    accuracies = chernoff(sums.accuracies, sums.counts, error)
    overconfidence = sums.confidences - accuracies.upper
    underconfidence = accuracies.lower - sums.confidences
    smallest_gaps = jnp.maximum(jnp.maximum(overconfidence, underconfidence), 0)
    largest_gaps = jnp.maximum(
        sums.confidences - accuracies.lower, accuracies.upper - sums.confidences
    )

    # Bins without samples take no part.
    def find_maximum(gaps: Array) -> Float[Array, ""]:
        return jnp.max(jnp.where(sums.counts > 0, gaps, 0))

    value = find_maximum(jnp.abs(sums.gaps))
    return Estimate(
        value=value,
        lower=jnp.minimum(find_maximum(smallest_gaps), value),
        upper=jnp.maximum(find_maximum(largest_gaps), value),
    )
