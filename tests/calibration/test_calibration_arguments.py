"""What is no probability, label, variance or target is refused by its name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softntk import calibration

GOOD_CLASSES = {
    "probabilities": np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32),
    "labels": np.array([0, 1, 0]),
}
METRICS = [
    calibration.accuracy,
    calibration.brier_score,
    calibration.negative_log_likelihood,
    calibration.expected_calibration_error,
    calibration.reliability_curve,
]
WRONG_CLASSES = [
    ("probabilities", [[0.3, 0.6], [0.5, 0.5], [1.0, 0.0]], "sum to one in each row.*0.9 in row 0"),
    ("probabilities", [[-0.5, 1.5], [0.5, 0.5], [1.0, 0.0]], "hold probabilities, got -0.5"),
    ("probabilities", [[np.nan, 1.0], [0.5, 0.5], [1.0, 0.0]], "finite"),
    ("probabilities", [0.5, 1.5, 0.2], r"lie in \[0, 1\].*1.5.*sigmoid"),
    ("probabilities", [0.5, -0.1, 0.2], r"lie in \[0, 1\]"),
    ("probabilities", np.ones((3, 1, 2)) / 2, "shape"),
    ("probabilities", np.zeros((0, 2)), "empty"),
    ("probabilities", np.array([[0, 1], [1, 0], [0, 1]]), "floating-point"),
    ("probabilities", None, "array of numbers"),
    ("probabilities", [[0.5, 0.5]], r"one entry for each row of probabilities.*\(3,\).*\(1, 2\)"),
    ("labels", [0, 2, 1], "below the number of classes, 2, got 2"),
    ("labels", [0, -1, 1], "from 0 on, got -1"),
    ("labels", [0, 1], r"one entry for each row of probabilities.*\(2,\).*\(3, 2\)"),
    ("labels", [0.0, 1.0, 1.0], "integers"),
    ("labels", [[0], [1], [1]], "shape"),
    ("labels", "abc", "array of numbers"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_CLASSES)
def test_wrong_classes_are_named(name, value, message, untyped):
    for metric in METRICS:
        with pytest.raises(
            ValueError, match=f"{name}.*{message}" if name not in message else message
        ):
            metric(**{**GOOD_CLASSES, name: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bins", 0),
        ("bins", 2.0),
        ("strategy", "uniforn"),
        ("norm", 3),
        ("norm", True),
        ("norm", "mx"),
        ("norm", [1]),
        ("norm", None),
    ],
)
def test_wrong_options_are_named(option, value, untyped):
    with pytest.raises(ValueError, match=option):
        calibration.expected_calibration_error(**GOOD_CLASSES, **{option: value})


GOOD_GAUSSIANS = {
    "mean": np.zeros((3, 2), np.float32),
    "variance": np.ones((3, 2), np.float32),
    "y": np.zeros((3, 2), np.float32),
}
WRONG_GAUSSIANS = [
    ("mean", np.zeros((3, 2, 1), np.float32), "shape"),
    ("mean", np.zeros((3, 2), int), "floating-point"),
    ("mean", np.zeros((0, 2)), "empty"),
    ("mean", np.zeros((2, 3), np.float32), "shape of mean"),
    ("y", np.zeros((3, 1), np.float32), "shape of mean"),
    ("y", [[np.inf, 0.0]] * 3, "finite"),
    ("variance", np.ones((2,), np.float32), "shape"),
    ("variance", -1.0, "negative"),
    ("variance", np.nan, "finite"),
    ("variance", None, "numbers"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_GAUSSIANS)
def test_wrong_gaussians_are_named(name, value, message, untyped):
    for metric in (calibration.coverage, calibration.gaussian_negative_log_likelihood):
        with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
            metric(**{**GOOD_GAUSSIANS, name: value})
        assert message in str(error.value)


@pytest.mark.parametrize("level", [0.0, 1.0, np.nan, "0.5", None, 1 - 1e-12])
def test_wrong_levels_are_named(level, untyped):
    with pytest.raises(ValueError, match="level"):
        calibration.coverage(**GOOD_GAUSSIANS, level=level)


def test_other_containers_and_half_precision(untyped):
    """Lists, NumPy's double precision, small integers as labels; bfloat16 is computed in float32."""
    desired = float(calibration.brier_score(**GOOD_CLASSES))
    lists = {name: value.tolist() for name, value in GOOD_CLASSES.items()}
    assert float(calibration.brier_score(**lists)) == desired
    small = {**GOOD_CLASSES, "labels": GOOD_CLASSES["labels"].astype(np.uint8)}
    assert float(calibration.brier_score(**small)) == desired
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 30)), jnp.bfloat16)
    for metric in METRICS:
        found = metric(jax.nn.softmax(logits), np.zeros(50, int))
        leaf = jax.tree.leaves(found)[0]
        assert leaf.dtype == np.float32


def test_labels_of_a_small_integer_type_do_not_wrap_around(untyped):
    probabilities = np.full((1, 300), 1e-6, np.float32)
    probabilities[0, 299] = 1 - 299e-6
    label = np.array([299 - 256], np.uint8)
    assert float(calibration.accuracy(probabilities, label)) == 0


def test_what_rounding_puts_above_one_is_one():
    above = jnp.asarray([[1.0000001, 0.0], [0.0, 1.0000001]], jnp.float32)
    labels = np.array([0, 1])
    assert float(calibration.negative_log_likelihood(above, labels)) == 0
    assert float(calibration.expected_calibration_error(above, labels)) == 0
    assert float(calibration.negative_log_likelihood(above[:, 1], labels)) == 0


@pytest.mark.parametrize("norm", [1, 2, "max"])
def test_strict_promotion(norm):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        error = partial(calibration.expected_calibration_error, norm=norm)
        for metric in (error, *METRICS):
            found = metric(jnp.asarray(GOOD_CLASSES["probabilities"]), jnp.array([0, 1, 0]))
            assert {leaf.dtype for leaf in jax.tree.leaves(found)} <= {
                np.dtype("float32"),
                np.dtype("int64"),
            }
        found = calibration.coverage(**GOOD_GAUSSIANS)
        assert found.value.dtype == np.float32
        assert (
            calibration.gaussian_negative_log_likelihood(**GOOD_GAUSSIANS).value.dtype == "float32"
        )
