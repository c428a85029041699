"""Multinomial logistic regression with the interface of scikit-learn."""

from typing import Any, Self

import jax
import numpy as np
import scipy.sparse
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from softntk import regression, solvers
from softntk._core.typing import DesignMatrix
from softntk._core.validation import check_flag, check_number, check_positive_int
from softntk.sklearn._arguments import (
    as_labels,
    as_sample_weight,
    check_has_classes,
    report_result,
)
from softntk.sklearn._padding import MIN_FEATURES, MIN_ROWS, pad_columns, pad_rows, padded_size

CONVERGENCE_HINT = "In SoftmaxRegression: max_iter=, tol=, a smaller C, or scaled features."


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    r"""Multinomial logistic regression by Newton steps, in place of ``LogisticRegression``.

    Use it where scikit-learn's solvers take long or stop early: for many samples, several classes
    or features of different scales. It minimises

        Σ s_i (logsumexp(z_i) − z_{i, y_i}) + ‖W‖² / 2C,        z = Wx + b,

    as ``LogisticRegression(C=C)`` does, for two classes with the logits (0, wᵀx + b). Features of
    float64 are computed with in float64, also where ``jax_enable_x64`` is not set, those of float32
    in float32; the setting of JAX stays as it is.

    Args:
        C: inverse of the strength of the penalty, > 0; infinite for none.
        fit_intercept: whether there is an intercept b, which is not penalised.
        class_weight: weights of the classes as a dict {label: weight}, by which those of the
            samples are multiplied; a class without one has weight 1. "balanced" gives every class
            the same total weight. None for ones.
        tol: largest norm of the gradient of the mean loss, > 0.
        max_iter: largest number of steps.

    Attributes:
        classes_: the labels, sorted, [k].
        coef_: W, [k, d]; [1, d] for two classes.
        intercept_: b, [k]; [1] for two classes. Zeros without intercept.
        n_iter_: number of steps, [1].
        n_features_in_: d.
        feature_names_in_: names of the features, where X is a table whose columns have names.

    Raises:
        ValueError: from ``fit``: parameters out of range, labels of one class, X and y that do not
            fit, NaN, weights that are negative.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from softntk.sklearn import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression(C=10.0).fit(X, y)
        >>> model.coef_.shape, bool(model.score(X, y) > 0.95)
        ((3, 4), True)

    Source: :func:`softntk.regression.cross_entropy`; MATHEMATICS.md#cross-entropy.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-4,
        max_iter: int = 100,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients to data.

        Args:
            X: features, [n, d]: an array, a table, or a sparse matrix of SciPy.
            y: labels, [n]: numbers or strings.
            sample_weight: weights s ≥ 0, [n]; ones if None.

        Returns:
            The estimator. A ``ConvergenceWarning`` says where the minimum was not reached, or does
            not exist.

        Raises:
            ValueError: as for the class.
        """
        # 1. Check the parameters and the data.
        inverse_penalty = check_number("C", self.C, above=0, infinite=True)
        fit_intercept = check_flag("fit_intercept", self.fit_intercept)
        tol = check_number("tol", self.tol, above=0)
        max_iter = check_positive_int("max_iter", self.max_iter)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        self.classes_, labels = as_labels(y)
        weights = as_sample_weight(sample_weight, len(labels), np.float64)
        weights, class_weight = self._with_class_weight(weights, y, labels)
        check_has_classes(labels[weights > 0])

        # 2. The mean loss: a tolerance that does not depend on the data, so that programs are used
        #    again. Filled up: rows of weight zero; features of zeros, whose coefficients stay zero.
        total_weight = weights.sum()
        penalty_weight = (inverse_penalty * total_weight) ** -0.5
        features = X.shape[1]
        rows = padded_size(len(labels), MIN_ROWS)
        columns = padded_size(features, MIN_FEATURES)
        penalties = np.where(np.arange(columns) < features, penalty_weight, 1)
        is_binary = len(self.classes_) == 2

        # 3. Minimise in the precision of the features.
        with jax.enable_x64(True):
            problem = regression.cross_entropy(
                _as_padded_matrix(X, rows, columns),
                pad_rows(labels, rows),
                weights=penalties.astype(X.dtype),
                sample_weight=pad_rows(weights / total_weight, rows).astype(X.dtype),
                intercept=fit_intercept,
                class_weight=class_weight,
                classes=len(self.classes_),
                reference=is_binary,
            )
            solution = solvers.minimise(
                problem,
                problem.zeros(),
                rtol=0.0,
                atol=tol,
                max_steps=max_iter,
                throw=False,
            )
        report_result(solution.result, CONVERGENCE_HINT)

        # 4. The coefficients of the given features.
        coefficients, intercept = solution.value if fit_intercept else (solution.value, None)
        self.coef_ = np.array(coefficients)[:features].T.copy()
        self.intercept_ = np.zeros(len(self.coef_), X.dtype)
        if intercept is not None:
            self.intercept_ = np.array(intercept)
        self.n_iter_ = np.array([int(solution.stats["steps"])], np.int32)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, [n, k]; for two classes those of the second one, [n]."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample, [n]."""
        logits = self.decision_function(X)
        is_binary = logits.ndim == 1
        return self.classes_[(logits > 0).astype(int) if is_binary else logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, [n, k], in the order of ``classes_``."""
        return scipy.special.softmax(self._all_logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities, [n, k], also where these underflow."""
        return scipy.special.log_softmax(self._all_logits(X), axis=1)

    def _all_logits(self, X: Any) -> np.ndarray:
        """Return a logit for each class, [n, k]."""
        logits = self.decision_function(X)
        return np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits

    def _with_class_weight(
        self, weights: np.ndarray, y: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, str | None]:
        """Return weights of samples times those of a dict, and "balanced" or None as it is."""
        if self.class_weight is None or self.class_weight == "balanced":
            return weights, self.class_weight
        class_weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        if np.any(class_weight < 0):
            raise ValueError(f"class_weight must not be negative, got {self.class_weight!r}.")
        return weights * class_weight[labels], None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _as_padded_matrix(X: Any, rows: int, columns: int) -> DesignMatrix:
    """Return features as an array, or as a BCOO where they are sparse, with zeros behind them."""
    if not scipy.sparse.issparse(X):
        return pad_columns(pad_rows(X, rows), columns)
    # Imported here because it takes time, and only sparse features need it.
    from jax.experimental import sparse

    # Entries are filled up too; those beyond the shape are padding to JAX.
    matrix = X.tocsr(copy=True)
    matrix.sum_duplicates()
    matrix = matrix.tocoo()
    entries = padded_size(max(1, matrix.nnz), MIN_ROWS)
    indices = np.full((entries, 2), (rows, columns), np.int32)
    indices[: matrix.nnz] = np.stack([matrix.row, matrix.col], axis=1)
    values = pad_rows(matrix.data, entries)
    return sparse.BCOO(
        (jax.numpy.asarray(values), jax.numpy.asarray(indices)),
        shape=(rows, columns),
        indices_sorted=True,
        unique_indices=True,
    )
