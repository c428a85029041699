"""What cross-entropy cannot use is refused by name, with what to do."""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import assert_close

import softntk as sn

A = np.arange(6.0).reshape(3, 2) / 6
LABELS = np.array([0, 1, 1])
cross_entropy = sn.regression.cross_entropy

BAD = {
    "floats that are labels": ((A, [0.0, 1.0, 1.0]), r"^y must be integer labels.*astype\(int\)"),
    "negative": ((A, [0, -1, 1]), "^y must hold labels from 0 on, got -1"),
    "one class": ((A, [0, 0, 0]), "^y must have at least two classes.*Give classes="),
    "a column of labels": ((A, [[0], [1], [1]]), "^y must have at least two classes"),
    "of another length": ((A, [0, 1]), r"^y must have shape \[3\]"),
    "probabilities of another length": ((A, np.full((2, 2), 0.5)), "^y must have shape"),
    "sums": ((A, np.full((3, 2), 0.6)), "^y must hold probabilities that sum to one"),
    "negative probabilities": ((A, [[1.5, -0.5]] * 3), "^y must hold probabilities"),
    "NaN probabilities": ((A, [[np.nan, 1.0]] * 3), "^y must be finite"),
    "words": ((A, ["a", "b", "a"]), "^y must be real numbers"),
    "nothing": ((A, None), "^y must be an array"),
    "NaN features": ((np.where(A > 0.5, np.nan, A), LABELS), "^A must be finite"),
    "integer features": ((A.astype(int), LABELS), "^A must be a floating-point"),
    "CSR": ((scipy.sparse.csr_matrix(A), LABELS), "BCOO"),
    "half": ((A.astype("float16"), LABELS), "^A must be float32 or float64"),
}
OPTIONS = {
    "too few classes": ({"classes": 1}, "^classes must"),
    "labels beyond classes": ({"y": [0, 1, 2], "classes": 2}, "^y must hold labels below"),
    "negative weights": ({"weights": -1.0}, "^weights must not be negative"),
    "weights of rows": ({"weights": np.ones(3)}, r"^weights must be a scalar or have shape \[2\]"),
    "sample weights": ({"sample_weight": np.ones(2)}, "^sample_weight must"),
    "negative sample weights": ({"sample_weight": [1.0, -1.0, 0.0]}, "^sample_weight must not"),
    "class weights": ({"class_weight": np.ones(3)}, r"^class_weight must have shape \[2\]"),
    "unknown class weights": ({"class_weight": "balance"}, "^class_weight must.*balanced"),
    "an intercept": ({"intercept": 2}, "^intercept must"),
    "a reference": ({"reference": "first"}, "^reference must"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case, untyped):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        cross_entropy(*arguments)


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case, untyped):
    options, message = OPTIONS[case]
    options = dict(options)
    y = options.pop("y", LABELS)
    with pytest.raises(ValueError, match=message):
        cross_entropy(A, y, **options)


def test_bad_points(untyped):
    p = cross_entropy(A, LABELS)
    methods = ("__call__", "logits", "predict", "gradient", "value_and_gradient", "hessian")
    for method in (*methods, "check", "preconditioner"):
        for bad in (np.ones((2, 2)), np.ones(2), None, "x", (np.ones((2, 2)),)):
            with pytest.raises(ValueError, match=r"^x must be a pair"):
                getattr(p, method)(bad)
        for bad in ((np.ones((2, 3)), np.ones(2)), (np.ones((2, 2)), np.ones(3)), ("x", "y")):
            with pytest.raises(ValueError, match=r"^x\[[01]\] must"):
                getattr(p, method)(bad)
    with pytest.raises(ValueError, match=r"^vector must be a pair"):
        p.hessian(p.zeros()).mv(np.ones(6))
    with pytest.raises(ValueError, match=r"^direction must be a pair"):
        p.is_recession(np.ones(6))
    alone = cross_entropy(A, LABELS, intercept=False)
    with pytest.raises(ValueError, match=r"^x must have shape \[2, 2\]"):
        alone(np.ones((3, 2)))


def test_traced_labels_need_the_number_of_classes():
    with pytest.raises(ValueError, match="^y must be known.*classes="):
        jax.jit(lambda y: cross_entropy(A, y).target)(LABELS)


def test_known_labels_under_jit_do_not():
    target = jax.jit(lambda w: cross_entropy(A, LABELS, weights=w).target)(1.0)
    assert np.array_equal(target, np.eye(2)[LABELS])
    with pytest.raises(ValueError, match="from 0 on"):
        jax.jit(lambda w: cross_entropy(A, -LABELS, weights=w).target)(1.0)


def test_a_matrix_that_is_too_large():
    n, d = 2, 30_000
    p = cross_entropy(np.ones((n, d), np.float32), np.array([0, 2]), intercept=False)
    H = p.hessian(p.zeros())
    with pytest.raises(ValueError, match=r"\[90000, 90000\], 30 GiB.*cg_steps"):
        H.as_matrix()
    assert H.mv(p.zeros() + 1).shape == (d, 3)


def test_what_is_converted(untyped, x64):
    p = cross_entropy(A, LABELS, weights=2, sample_weight=[1, 2, 3])
    x = p.zeros()
    for other in (
        cross_entropy(A.tolist(), LABELS.tolist(), weights=2, sample_weight=[1, 2, 3]),
        cross_entropy(
            pd.DataFrame(A), pd.Series(LABELS), weights=2.0, sample_weight=pd.Series([1, 2, 3])
        ),
        cross_entropy(A, LABELS.astype("uint8"), weights=np.float32(2), sample_weight=[1, 2, 3]),
    ):
        assert float(other(x)) == float(p(x))
    assert_close(p((np.zeros((2, 2), int), [0, 0])), p(x))


def test_softmax_points_here(untyped):
    for labels in (LABELS, [0, 1, 0], jnp.array([2, 0, 1])):
        with pytest.raises(ValueError, match=r"^b must be.*regression\.cross_entropy"):
            sn.regression.softmax(A, np.asarray(labels))
