"""Estimators with the interface of scikit-learn, for its pipelines, searches and scores.

They need scikit-learn: ``pip install "softntk[sklearn]"``. Data of float64 are computed with in
float64, whatever ``jax_enable_x64`` says, and data of float32 in float32; the setting itself, and
arrays outside of the estimators, stay as they are.

Rows are filled up with rows of weight zero, and features with zeros, to a few sizes. So the folds
of a cross-validation share their compiled programs.
"""

try:
    import sklearn as _scikit_learn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "softntk.sklearn needs scikit-learn: pip install 'softntk[sklearn]'."
    ) from error

# isort: split
from softntk.sklearn._ntk_classifier import NTKClassifier as NTKClassifier
from softntk.sklearn._ntk_regressor import NTKRegressor as NTKRegressor
from softntk.sklearn._softmax_regression import SoftmaxRegression as SoftmaxRegression
