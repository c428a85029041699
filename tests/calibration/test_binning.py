"""Calibration errors and reliability curves against loops over bins, and how often their intervals
hold the truth.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.calibration
from helpers import assert_close, class_predictions

from softntk import calibration
from softntk._linalg.intervals import chernoff


def bins_by_hand(confidences, bins, strategy):
    """The indices of the samples of each bin, by a loop."""
    ends = np.linspace(0, 1, bins + 1)
    edges = ends if strategy == "uniform" else np.quantile(confidences, ends)
    members = [[] for _ in range(bins)]
    for i, confidence in enumerate(confidences):
        position = 0
        while position < bins - 1 and confidence > edges[position + 1]:
            position += 1
        members[position].append(i)
    return [np.array(indices, int) for indices in members if indices]


def error_by_hand(confidences, outcomes, bins, strategy, norm):
    """The formulas of the docstring; the squares by all pairs of different samples."""
    total = 0.0
    for indices in bins_by_hand(confidences, bins, strategy):
        differences = outcomes[indices] - confidences[indices]
        share = len(indices) / len(outcomes)
        if norm == 1:
            total += share * abs(differences.mean())
        elif norm == "max":
            total = max(total, abs(differences.mean()))
        elif len(indices) > 1:
            pairs = [a * b for i, a in enumerate(differences) for b in np.delete(differences, i)]
            total += share * np.mean(pairs)
    return np.sqrt(max(total, 0)) if norm == 2 else total


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("norm", [1, 2, "max"])
def test_errors_by_hand(norm, strategy, dtype):
    probabilities, labels = class_predictions(3, 90, 4, dtype)
    p = np.asarray(probabilities)
    overconfident = p**2 / (p**2).sum(1, keepdims=True)
    for passed, confidences, outcomes in (
        (overconfident, overconfident.max(1), overconfident.argmax(1) == labels),
        (p[:, 0], p[:, 0], labels == 1),
    ):
        found = calibration.expected_calibration_error(
            passed, np.minimum(labels, passed.ndim * 2 - 1), bins=7, norm=norm, strategy=strategy
        )
        outcomes = outcomes if passed.ndim == 2 else np.minimum(labels, 1) == 1
        desired = error_by_hand(confidences.astype(float), outcomes, 7, strategy, norm)
        assert_close(float(found), desired, rtol=1e-9 if dtype == "float64" else 1e-4)
        assert float(found.lower) <= float(found) <= float(found.upper) <= 1


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_the_curve_is_that_of_scikit_learn(strategy, x64):
    probabilities, labels = class_predictions(4, 300, 2)
    p = probabilities[:, 1]
    curve = calibration.reliability_curve(p, labels, bins=9, strategy=strategy)
    accuracies, confidences = sklearn.calibration.calibration_curve(
        labels, np.asarray(p), n_bins=9, strategy=strategy
    )
    occupied = np.asarray(curve.count) > 0
    assert_close(curve.accuracy.value[occupied], accuracies)
    assert_close(curve.confidence[occupied], confidences)
    assert curve.count.sum() == 300
    assert strategy == "uniform" or set(np.asarray(curve.count)) <= {32, 33, 34}


def test_a_bin_without_samples_says_nothing():
    curve = calibration.reliability_curve(jnp.array([0.1, 0.2]), np.array([0, 0]), bins=4)
    assert curve.count.tolist() == [2, 0, 0, 0]
    assert curve.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (
        curve.confidence[1:].tolist() == curve.accuracy.value[1:].tolist() == [0.375, 0.625, 0.875]
    )
    assert curve.accuracy.lower[1:].tolist() == [0, 0, 0]
    assert curve.accuracy.upper[1:].tolist() == [1, 1, 1]
    # Wilson's interval for none of two.
    assert_close(float(curve.accuracy.upper[0]), 1.959964**2 / (2 + 1.959964**2), "float32")


def test_a_bin_holds_its_upper_end():
    curve = calibration.reliability_curve(
        jnp.array([0.0, 0.25, 0.5, 1.0]), np.array([0, 0, 1, 1]), bins=4
    )
    assert curve.count.tolist() == [2, 1, 0, 1]


def test_the_order_of_samples_does_not_matter_and_ties_share_a_bin(x64):
    generator = np.random.default_rng(5)
    p = generator.choice([0.1, 0.3, 0.30001, 0.9], size=50)
    labels = np.sort((generator.random(50) < p).astype(int))
    order = generator.permutation(50)
    for strategy in ("uniform", "quantile"):
        for norm in (1, 2, "max"):
            one, other = (
                calibration.expected_calibration_error(
                    p[rows], labels[rows], bins=6, norm=norm, strategy=strategy
                )
                for rows in (np.arange(50), order)
            )
            assert_close(float(one), float(other))
            assert_close(float(one.upper), float(other.upper))
    counts = calibration.reliability_curve(p, labels, bins=6, strategy="quantile").count
    assert set(np.asarray(counts)) <= {0, *(int((p == value).sum()) for value in set(p))}


def test_a_constant_predictor_of_the_base_rate_has_no_error(dtype):
    labels = np.tile([0, 0, 0, 1], 100)
    p = jnp.full(400, 0.25, dtype)
    for norm in (1, 2, "max"):
        found = calibration.expected_calibration_error(p, labels, norm=norm)
        assert float(found) <= 1e-6
        assert float(found.lower) == 0
        assert 0.03 < float(found.upper) < 0.2


def test_one_bin_is_the_difference_of_the_means(dtype):
    probabilities, labels = class_predictions(6, 60, 3, dtype)
    p = np.asarray(probabilities, float)
    desired = abs((p.argmax(1) == labels).mean() - p.max(1).mean())
    for strategy in ("uniform", "quantile"):
        found = calibration.expected_calibration_error(
            probabilities, labels, bins=1, strategy=strategy
        )
        assert_close(float(found), desired, rtol=1e-5 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("n", [1, 2])
def test_the_fewest_samples_tell_next_to_nothing(n):
    p = jnp.array([0.7, 0.2])[:n]
    for norm in (1, 2, "max"):
        found = calibration.expected_calibration_error(p, np.array([1, 0])[:n], norm=norm)
        assert np.isfinite([found.value, found.lower, found.upper]).all()
        assert float(found.lower) == 0
        assert float(found.upper) > 0.5


def test_in_a_batch_compiled_and_differentiable(dtype):
    batch = [class_predictions(seed, 40, 3, dtype) for seed in range(3)]
    probabilities = jnp.stack([p for p, _ in batch])
    labels = jnp.stack([jnp.asarray(y) for _, y in batch])
    for norm in (1, 2, "max"):
        metric = partial(calibration.expected_calibration_error, norm=norm, bins=5)
        found = jax.vmap(metric)(probabilities, labels)
        for i in range(3):
            single = metric(probabilities[i], labels[i])
            assert single.value.dtype == dtype
            assert_close(
                [found.value[i], found.lower[i], found.upper[i]],
                [single.value, single.lower, single.upper],
                "float32",
            )
        slope = jax.jit(jax.grad(lambda p, y, metric=metric: metric(p, y).value))(
            probabilities[0], labels[0]
        )
        assert np.isfinite(slope).all()
    curve = jax.vmap(partial(calibration.reliability_curve, bins=5))(probabilities, labels)
    assert curve.count.shape == (3, 5)


def test_chernoff_intervals_solve_their_equation(x64):
    fractions = jnp.array([0.0, 0.2, 0.5, 1.0, 0.3])
    counts = jnp.array([4.0, 10.0, 1000.0, 7.0, 0.0])
    found = chernoff(fractions, counts, 0.01)
    limit = np.log(2 / 0.01)
    for a, n, low, high in zip(fractions, counts, found.lower, found.upper, strict=True):
        a, n = float(a), float(n)
        for end, is_bound in ((float(low), a == 0), (float(high), a == 1)):
            if n == 0 or is_bound:
                assert_close(end, round(end), rtol=1e-9)
                continue
            divergence = sum(q * np.log(q / p) for q, p in ((a, end), (1 - a, 1 - end)) if q > 0)
            assert_close(n * divergence, limit, rtol=1e-6)
    assert (found.lower <= fractions).all()
    assert (fractions <= found.upper).all()


def true_error(confidences, probabilities, bins, norm):
    """The norm of the true gaps of the bins at these confidences."""
    total = 0.0
    for indices in bins_by_hand(confidences, bins, "uniform"):
        gap = abs((probabilities[indices] - confidences[indices]).mean())
        share = len(indices) / len(confidences)
        if norm == "max":
            total = max(total, gap)
        elif norm == 1 or len(indices) > 1:
            total += share * gap**norm
    return np.sqrt(total) if norm == 2 else total


@partial(jax.jit, static_argnames=("n", "norm"))
def simulate(keys, temperature, n, norm):
    """Confidences, true probabilities and errors of n draws, once a key."""

    def draw(key):
        point_key, label_key = jax.random.split(key)
        logits = 2 * jax.random.normal(point_key, (n,))
        p = jax.nn.sigmoid(logits)
        labels = (jax.random.uniform(label_key, (n,)) < p).astype(int)
        confidences = jax.nn.sigmoid(logits / temperature)
        metric = calibration.expected_calibration_error
        return confidences, p, metric(confidences, labels, bins=10, norm=norm)

    return jax.lax.map(draw, keys, batch_size=100)


@pytest.mark.optimised
@pytest.mark.parametrize("norm", [1, 2, "max"])
@pytest.mark.parametrize(("temperature", "n"), [(1.0, 30), (1.0, 400), (0.4, 400)])
def test_intervals_hold_the_truth(temperature, n, norm):
    """Of a calibrated predictor zero, of an overconfident one its error: in 93 % or more."""
    keys = jax.random.split(jax.random.key(n), 400)
    confidences, p, found = simulate(keys, temperature, n, norm)
    truths = np.array(
        [
            true_error(c, q, 10, norm)
            for c, q in zip(np.asarray(confidences, float), np.asarray(p, float), strict=True)
        ]
    )
    truths = truths if temperature != 1 else 0 * truths
    share = np.mean((found.lower <= truths + 1e-6) & (truths <= found.upper))
    assert share >= 0.93
    # The plain numbers are too large, the squares of norm 2 are right on average.
    squares = np.asarray(found.value, float) ** 2
    if norm == 2 and temperature != 1:
        deviation = squares.std() / np.sqrt(400)
        assert abs(squares.mean() - (truths**2).mean()) < 4 * deviation
    elif norm != 2:
        assert found.value.mean() > truths.mean() + 0.005
    # An overconfident predictor of 400 samples is found out.
    if temperature != 1 and norm != "max":
        assert np.mean(found.lower > 0) > 0.8
