"""Accuracy, Brier score and negative log-likelihood against scikit-learn, and how often their
intervals hold the truth.
"""

import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from helpers import assert_close, class_predictions

from softntk import calibration
from softntk.diffusion import metrics


def interval_of(losses):
    """Mean and normal interval, by NumPy."""
    half_width = 1.959964 * np.std(losses, ddof=1) / np.sqrt(len(losses))
    return np.mean(losses), np.mean(losses) - half_width, np.mean(losses) + half_width


def ends(estimate):
    return [estimate.value, estimate.lower, estimate.upper]


def test_several_classes_agree_with_scikit_learn(dtype):
    probabilities, labels = class_predictions(0, dtype=dtype)
    p = np.asarray(probabilities, float)
    p = p / p.sum(1, keepdims=True)
    options: dict[str, Any] = {"labels": range(4), "scale_by_half": False}
    brier = sklearn.metrics.brier_score_loss(labels, p, **options)
    assert_close(float(calibration.brier_score(probabilities, labels)), brier, dtype)
    loss = sklearn.metrics.log_loss(labels, p, labels=range(4))
    assert_close(float(calibration.negative_log_likelihood(probabilities, labels)), loss, dtype)
    share = sklearn.metrics.accuracy_score(labels, p.argmax(1))
    assert_close(float(calibration.accuracy(probabilities, labels)), share, dtype)
    # The intervals, from the losses of single samples.
    losses = -np.log(p[np.arange(len(p)), labels])
    found = calibration.negative_log_likelihood(probabilities, labels)
    assert_close(ends(found), interval_of(losses), dtype)
    losses = ((p - np.eye(4)[labels]) ** 2).sum(1)
    assert_close(ends(calibration.brier_score(probabilities, labels)), interval_of(losses), dtype)


@pytest.mark.parametrize("column", [False, True])
def test_two_classes_agree_with_scikit_learn(column, dtype):
    probabilities, labels = class_predictions(1, k=2, dtype=dtype)
    p = np.asarray(probabilities, float)[:, 1]
    passed = probabilities[:, 1:] if column else probabilities[:, 1]
    brier = sklearn.metrics.brier_score_loss(labels, p)
    assert_close(float(calibration.brier_score(passed, labels)), brier, dtype)
    assert_close(float(calibration.brier_score(probabilities, labels)), 2 * brier, dtype)
    loss = sklearn.metrics.log_loss(labels, p)
    assert_close(float(calibration.negative_log_likelihood(passed, labels)), loss, dtype)
    share = sklearn.metrics.accuracy_score(labels, p > 0.5)
    assert_close(float(calibration.accuracy(passed, labels)), share, dtype)
    assert float(calibration.accuracy(probabilities, labels)) == float(
        calibration.accuracy(passed, labels)
    )


def test_estimates_are_those_of_all_metrics_and_are_saved():
    score = calibration.brier_score(*class_predictions(3, 10, dtype="float32"))
    assert type(score) is calibration.Estimate is metrics.Estimate
    again = pickle.loads(pickle.dumps(score))
    assert type(again) is calibration.Estimate
    assert ends(again) == ends(score)


def test_equal_probabilities_predict_the_first_class():
    assert float(calibration.accuracy(jnp.full((2, 3), 1 / 3), np.array([0, 1]))) == 0.5
    assert float(calibration.accuracy(jnp.array([0.5, 0.5]), np.array([0, 1]))) == 0.5


def test_what_was_called_impossible_costs_infinity():
    certain = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    loss = calibration.negative_log_likelihood(certain, np.array([1, 0, 1]))
    assert ends(loss) == [np.inf, np.inf, np.inf]
    column = calibration.negative_log_likelihood(certain[:, 1], np.array([1, 0, 1]))
    assert ends(column) == [np.inf, np.inf, np.inf]
    right = calibration.negative_log_likelihood(certain[:1], np.array([0]))
    assert ends(right) == [0.0, 0.0, np.inf]
    assert not np.signbit(right.value)


def test_small_probabilities_keep_their_digits(x64):
    """The loss of 1 − p, in one column, is p and not zero."""
    found = calibration.negative_log_likelihood(jnp.array([1e-20, 1e-20]), np.array([0, 0]))
    assert_close(float(found), 1e-20, rtol=1e-12)
    brier = calibration.brier_score(jnp.array([[1.0, 1e-20]] * 2), np.array([0, 0]))
    assert_close(float(brier), 1e-40, rtol=1e-12)


def test_one_sample_has_no_spread():
    probabilities, label = jnp.array([[0.3, 0.7]]), np.array([1])
    for estimate, bounds in (
        (calibration.brier_score(probabilities, label), (0.0, 2.0)),
        (calibration.brier_score(probabilities[:, 1], label), (0.0, 1.0)),
        (calibration.negative_log_likelihood(probabilities, label), (0.0, np.inf)),
    ):
        assert (float(estimate.lower), float(estimate.upper)) == bounds
    share = calibration.accuracy(probabilities, label)
    assert 0 < float(share.lower) < float(share.value) == float(share.upper) == 1.0


def test_derivatives_are_those_of_the_formulas(x64):
    probabilities, labels = class_predictions(2, 20, 3)
    rows = np.arange(20)
    slope = jax.grad(lambda p: calibration.negative_log_likelihood(p, labels).value)(probabilities)
    desired = np.zeros((20, 3))
    desired[rows, labels] = -1 / np.asarray(probabilities)[rows, labels] / 20
    assert_close(slope, desired)
    slope = jax.grad(lambda p: calibration.brier_score(p, labels).value)(probabilities)
    assert_close(slope, 2 * (np.asarray(probabilities) - np.eye(3)[labels]) / 20)
    # Where the probability is one, too, and of the interval.
    one = jax.grad(lambda p: calibration.negative_log_likelihood(p, labels[:1] * 0).value)
    assert_close(one(jnp.array([[1.0, 0.0, 0.0]])), [[-1.0, 0.0, 0.0]])
    certain = jnp.tile(jnp.array([[1.0, 0.0, 0.0]]), (4, 1))
    upper = jax.grad(lambda p: calibration.brier_score(p, np.zeros(4, int)).upper)(certain)
    assert np.isfinite(upper).all()


METRICS = [calibration.accuracy, calibration.brier_score, calibration.negative_log_likelihood]


@pytest.mark.parametrize("metric", METRICS)
def test_in_a_batch_and_compiled(metric, dtype):
    batch = [class_predictions(seed, 30, 3, dtype) for seed in range(3)]
    probabilities = jnp.stack([p for p, _ in batch])
    labels = jnp.stack([jnp.asarray(y) for _, y in batch])
    found = jax.vmap(metric)(probabilities, labels)
    assert found.value.dtype == dtype
    for i in range(3):
        single = metric(probabilities[i], labels[i])
        assert_close([found.value[i], found.lower[i], found.upper[i]], ends(single), dtype)
    compiled = jax.jit(metric)(probabilities[0], labels[0])
    assert_close(ends(compiled), ends(metric(probabilities[0], labels[0])), dtype)


def test_traced_labels_outside_of_the_classes_have_probability_zero():
    probabilities = jnp.array([[0.5, 0.5], [0.5, 0.5]])
    for p in (probabilities, probabilities[:, 1]):
        share, brier, loss = (jax.jit(metric)(p, jnp.array([5, -1])) for metric in METRICS)
        assert float(brier) == (1.5 if p.ndim == 2 else 1.0)
        assert float(loss) == np.inf
        assert float(share) == 0.0


@partial(jax.jit, static_argnames=("metric", "n"))
def simulate(keys, metric, n):
    """A metric of n draws of a predictor whose probabilities are true, once a key."""

    def draw(key):
        point_key, label_key = jax.random.split(key)
        probabilities = jax.nn.softmax(2 * jax.random.normal(point_key, (n, 3)))
        labels = jax.random.categorical(label_key, jnp.log(probabilities))
        return metric(probabilities, labels)

    return jax.lax.map(draw, keys, batch_size=100)


@pytest.mark.optimised
@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_the_truth(metric):
    """The mean over many draws, in 93 % of the intervals or more."""
    large = simulate(jax.random.split(jax.random.key(1), 50), metric, 4000)
    truth = float(large.value.mean())
    found = simulate(jax.random.split(jax.random.key(2), 400), metric, 100)
    share = float(((found.lower <= truth) & (truth <= found.upper)).mean())
    assert 0.93 <= share < 0.99
