"""Classification with neural tangent kernels."""

from typing import Any, Self

import numpy as np
import scipy.special
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from softntk.sklearn._arguments import as_labels
from softntk.sklearn._ntk_estimator import PRECISIONS, NTKEstimator


class NTKClassifier(ClassifierMixin, NTKEstimator):
    """Classification with the neural tangent kernel of a network."""

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the kernel to labelled data."""
        X, y = validate_data(self, X, y, dtype=list(PRECISIONS))
        self.classes_, labels = as_labels(y)
        training_kernel = self._fit_kernel(X, np.ones(len(X), X.dtype))
        targets = np.eye(len(self.classes_))[labels] - 1 / len(self.classes_)
        self.dual_coef_ = training_kernel.solve(targets, self.ridge_).astype(X.dtype)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, [n, k], in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=list(PRECISIONS))
        scores = self._training_kernel().predict(X, self.dual_coef_)
        return scipy.special.softmax(scores, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample, [n]."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
