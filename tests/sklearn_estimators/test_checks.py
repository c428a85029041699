"""scikit-learn's own checks of estimators, and what all three share: searches, copies, programs."""

import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from softntk.sklearn import NTKClassifier, NTKRegressor, SoftmaxRegression

pytestmark = pytest.mark.usefixtures("untyped")

ESTIMATORS = (SoftmaxRegression(), NTKRegressor(), NTKClassifier())
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def data(estimator, n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.sin(X[:, 0]) + 0.1 * rng.normal(size=n)
    if is_classifier(estimator):
        y = np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]
    return X, y


def fresh(estimator) -> Any:
    return clone(estimator)


def outputs(estimator, X):
    return getattr(estimator, "predict_proba", estimator.predict)(X)


@parametrize_with_checks(list(ESTIMATORS))
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@every_estimator
def test_search_pipeline_clone_and_pickle(estimator):
    X, y = data(estimator)
    name = "C" if isinstance(estimator, SoftmaxRegression) else "ridge"
    step = type(estimator).__name__.lower()
    pipeline = make_pipeline(StandardScaler(), fresh(estimator))
    search = GridSearchCV(pipeline, {f"{step}__{name}": [1e-6, 0.5]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.5
    copy = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(outputs(copy, X), outputs(search.best_estimator_, X))
    again = fresh(search.best_estimator_).fit(X, y)
    np.testing.assert_array_equal(outputs(again, X), outputs(copy, X))


@every_estimator
def test_similar_data_compile_nothing(estimator, compilations):
    is_linear = isinstance(estimator, SoftmaxRegression)
    # Steps that need damping have a program of their own, compiled on demand: some seeds need it.
    for seed in range(4 if is_linear else 1):
        X, y = data(estimator, seed=seed)
        outputs(fresh(estimator).fit(X, y), X)
    compilations.clear()
    # Another fold, other features, other parameters.
    X, y = data(estimator, n=43, d=4, seed=5)
    other = {"C": 0.7} if is_linear else {"ridge": 0.2, "sigma": 0.6}
    outputs(fresh(estimator).set_params(**other).fit(X, y), X[:41])
    assert not compilations


@every_estimator
@pytest.mark.parametrize("has_x64", [False, True])
def test_the_setting_of_jax_changes_nothing_and_stays(estimator, has_x64):
    X, y = data(estimator)
    expected = outputs(fresh(estimator).fit(X, y), X)
    with jax.enable_x64(has_x64):
        result = outputs(fresh(estimator).fit(X, y), X)
        assert jnp.zeros(1).dtype == (jnp.float64 if has_x64 else jnp.float32)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float64


@every_estimator
def test_float32_stays(estimator):
    X, y = data(estimator)
    expected = outputs(fresh(estimator).fit(X, y), X)
    result = outputs(fresh(estimator).fit(X.astype(np.float32), y), X.astype(np.float32))
    assert result.dtype == np.float32
    assert 0 < np.abs(result - expected).max() < 1e-3


@every_estimator
def test_bad_data_is_refused(estimator):
    X, y = data(estimator)
    with pytest.raises(ValueError, match="NaN"):
        fresh(estimator).fit(np.where(X[0, 0] == X, np.nan, X), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fresh(estimator).fit(X, y[:-1])
    with pytest.raises(ValueError, match="3 features"):
        fresh(estimator).fit(X, y).predict(X[:, :2])
    if is_classifier(estimator):
        with pytest.raises(ValueError, match="two classes"):
            fresh(estimator).fit(X, np.full(len(X), "same"))


def test_a_missing_scikit_learn_is_named():
    code = "import sys; sys.modules['sklearn'] = None\nimport softntk\nsoftntk.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: softntk.sklearn needs scikit-learn: pip install 'softntk[sklearn]'" in (
        done.stderr
    )
