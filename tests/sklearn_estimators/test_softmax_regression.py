"""Softmax regression against scikit-learn's ``LogisticRegression``."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from softntk.sklearn import SoftmaxRegression
from softntk.sklearn._arguments import report_result
from softntk.solution import Result

TOL = 1e-10
"""Tight, and the same everywhere: it is part of the compiled program."""


def data(classes, n=70, d=4):
    rng = np.random.default_rng(classes)
    X = rng.normal(size=(n, d))
    y = np.argmax(X[:, :classes] + rng.normal(size=(n, classes)), axis=1)
    return X, np.array(["b", "c", "a"])[y], rng.uniform(0.1, 2, size=n)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"C": 0.3},
        {"C": np.inf},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {"b": 3.0, "c": 0.5}},
    ],
    ids=str,
)
def test_it_is_logistic_regression(classes, options):
    X, y, weights = data(classes)
    model = SoftmaxRegression(tol=TOL, **options).fit(X, y, weights)
    theirs = LogisticRegression(tol=TOL, max_iter=10_000, solver="newton-cg", **options)
    theirs.fit(X, y, weights)
    for name in ("classes_", "coef_", "intercept_", "n_features_in_"):
        ours = getattr(model, name)
        assert np.shape(ours) == np.shape(getattr(theirs, name))
        if name == "classes_":
            np.testing.assert_array_equal(ours, theirs.classes_)
        else:
            np.testing.assert_allclose(ours, getattr(theirs, name), atol=1e-6)
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        expected = getattr(theirs, method)(X)
        np.testing.assert_allclose(getattr(model, method)(X), expected, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), theirs.predict(X))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_of_the_mean_loss_vanishes(classes):
    X, y, weights = data(classes)
    model = SoftmaxRegression(C=0.5, tol=TOL).fit(X, y, weights)
    labels = np.searchsorted(model.classes_, y)

    def loss(flat):
        W, b = flat[:-classes].reshape(classes, -1), flat[-classes:]
        if classes == 2:
            W, b = W * [[0], [1]], b * [0, 1]
        Z = X @ W.T + b
        lost = np.log(np.exp(Z).sum(1)) - Z[np.arange(len(y)), labels]
        return (weights @ lost + (W**2).sum()) / weights.sum()

    coefficients = np.zeros((classes, X.shape[1])), np.zeros(classes)
    coefficients[0][-len(model.coef_) :] = model.coef_
    coefficients[1][-len(model.intercept_) :] = model.intercept_
    flat = np.concatenate([part.ravel() for part in coefficients])
    gradient = np.asarray(scipy.optimize.approx_fprime(flat, loss, 1e-7))
    assert np.linalg.norm(gradient) < 1e-6  # the rounding of the differences


def test_probabilities_that_underflow_have_logarithms():
    X, y, _ = data(2)
    model = SoftmaxRegression(tol=TOL).fit(X, y)
    far = 1e6 * np.sign(model.coef_)
    expected = -np.logaddexp(0, model.decision_function(far))
    np.testing.assert_allclose(model.predict_log_proba(far)[:, 0], expected)
    np.testing.assert_array_equal(model.predict_proba(far), [[0, 1]])


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array"])
def test_sparse_features_are_those_of_the_array(form):
    X, y, weights = data(3)
    X[np.random.default_rng(0).uniform(size=X.shape) < 0.6] = 0
    model = SoftmaxRegression(tol=TOL).fit(X, y, weights)
    sparse = getattr(scipy.sparse, form)(X)
    other = SoftmaxRegression(tol=TOL).fit(sparse, y, weights)
    np.testing.assert_allclose(other.coef_, model.coef_, atol=1e-9)
    np.testing.assert_allclose(other.predict_proba(sparse), model.predict_proba(X), atol=1e-9)


def test_a_sparse_matrix_without_entries():
    model = SoftmaxRegression(tol=TOL).fit(scipy.sparse.csr_matrix((4, 2)), [0, 0, 0, 1])
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 2))), [[0.75, 0.25]], atol=1e-6)


def test_runs_that_end_early_warn():
    X, y, _ = data(3)
    with pytest.warns(ConvergenceWarning, match="MAX_STEPS.*max_iter"):
        model = SoftmaxRegression(max_iter=1, tol=TOL).fit(X, y)
    assert model.n_iter_.tolist() == [1]
    with pytest.warns(ConvergenceWarning, match="MINIMUM_AT_INFINITY"):
        SoftmaxRegression(C=np.inf, tol=TOL).fit(X, np.where(X[:, 0] > 0, "a", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftmaxRegression(tol=TOL).fit(X, y)


def test_an_interrupted_fit_stops_the_search_around_it():
    with pytest.raises(KeyboardInterrupt):
        report_result(Result.INTERRUPTED, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C must be"),
        ({"C": "1"}, "C must be"),
        ({"tol": 0}, "tol must be"),
        ({"max_iter": 1.5}, "max_iter must be"),
        ({"fit_intercept": 1}, "fit_intercept must be"),
        ({"class_weight": "equal"}, "class_weight"),
        ({"class_weight": {"z": 1}}, "class"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(untyped, options, message):
    X, y, _ = data(2)
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(X, y)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(-1, "negative"), (0, "zero"), ([1.0, 2.0], "one weight a sample"), (np.nan, "NaN")],
)
def test_bad_weights_are_refused(weights, message):
    X, y, _ = data(2)
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression().fit(X, y, weights)
