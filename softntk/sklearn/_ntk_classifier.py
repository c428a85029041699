"""Classification by the Gaussian process of an infinitely wide network."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from softntk import ntk
from softntk._core.validation import check_flag
from softntk.sklearn._arguments import as_labels
from softntk.sklearn._ntk_estimator import PRECISIONS, NTKEstimator


class NTKClassifier(ClassifierMixin, NTKEstimator):
    r"""Multinomial logistic regression with the neural tangent kernel of a network.

    Use it for calibrated probabilities on some hundreds or a few thousand samples, in place of
    ``GaussianProcessClassifier`` or a support vector machine. The logits are a Gaussian process
    with the covariance k/λ, one for each class, and the labels have the probabilities softmax of
    the logits. Their most probable values minimise the cross-entropy with the penalty
    ½λ⟨F, K⁻¹F⟩. For two classes there is one process, of the logit of the second class.

    The kernel is formed, [n, n], and factorised for each class at each Newton step, of some ten;
    the estimator keeps the factors for its predictions. Where that is too much, regression on
    one-hot targets by :class:`~softntk.sklearn.NTKRegressor` needs a single factorisation.

    Scale the features before, by ``StandardScaler`` in a pipeline: nothing here does. Features of
    float64 are computed with in float64, also where ``jax_enable_x64`` is not set, the kernel of
    those of float32 in float32; the posterior is found in float64. The setting of JAX stays as it
    is. An estimator can be pickled if its kernel can, as names and networks of ``two_layer`` can.

    Args:
        kernel: a name of ``networks.FAMILIES``, a network or triple, a function, or with ``params``
            an ``apply_fn``: as for :class:`~softntk.sklearn.NTKRegressor`. A network at its weights
            has one output, or one for each class, one for two classes; its outputs at these weights
            do not count, only its kernel does (:func:`softntk.ntk.laplace` is for one that is
            trained).
        params: the weights of a network, of any library; None for infinite width.
        get: "ntk", or "nngp" for the covariance of the outputs at initialisation.
        sigma: σ of the hidden weights, > 0; "scale" for 1/√mean(‖x‖² + 1). For kernels given by
            name.
        bias: whether the hidden units have a bias. For kernels given by name.
        ridge: > 0, in units of the geometric mean of k(x, x) over the training points: the inverse
            of the variance that logits have before the labels are seen. Larger means smoother.
        average: average probabilities over the posterior (Laplace's approximation), instead of
            those of the most probable logits. They are less sure, as a rule too little: Laplace's
            posterior of labels is too wide (Kuss and Rasmussen 2005). They do say where there are
            no data.

    Attributes:
        classes_: the labels, sorted, [k].
        log_marginal_likelihood_value_: log p(y), by Laplace's approximation, to compare kernels by.
        X_fit_: the training points, [n, d].
        ridge_: λ, in units of the kernel.
        sigma_: σ; None where the kernel is not given by name.
        n_features_in_: d.
        feature_names_in_: names of the features, where X is a table whose columns have names.

    Raises:
        ValueError: from ``fit``: parameters out of range or that do not go together, an unknown
            name, labels of one class, X and y that do not fit, NaN.
        NumericalError: from ``fit``: no mode was found.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from softntk.sklearn import NTKClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = NTKClassifier("relu").fit(X, y)
        >>> bool(model.score(X, y) > 0.95), model.predict_proba(X[:2]).shape
        (True, (2, 3))

    Source: :func:`softntk.ntk.gp_classification`; the kernels: MATHEMATICS.md#infinite-width; Kuss
    and Rasmussen (2005), J. Mach. Learn. Res. 6, 1679–1704.
    """

    def __init__(
        self,
        kernel: Any = "softmax",
        *,
        params: Any = None,
        get: str = "ntk",
        sigma: Any = "scale",
        bias: bool = True,
        ridge: float = 0.01,
        average: bool = False,
    ) -> None:
        super().__init__(kernel, params=params, get=get, sigma=sigma, bias=bias, ridge=ridge)
        self.average = average

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the posterior to data.

        Args:
            X: points, [n, d].
            y: labels, [n]: numbers or strings.

        Returns:
            The estimator.

        Raises:
            ValueError, NumericalError: as for the class.
        """
        # 1. The data and the kernel.
        check_flag("average", self.average)
        X, y = validate_data(self, X, y, dtype=list(PRECISIONS))
        self.classes_, labels = as_labels(y)
        training_kernel = self._fit_kernel(X, np.ones(len(X), X.dtype))
        if self.ridge_ == 0:
            raise ValueError("ridge must be positive for a classifier, got 0.")

        # 2. The posterior. Points without weight have logits of zero, whatever their labels.
        classes = len(self.classes_)
        outputs = 1 if classes == 2 else classes
        gram = training_kernel.gram() / self.ridge_
        _check_outputs(gram, outputs)
        missing = len(gram) - len(X)
        with jax.enable_x64(True):
            posterior = ntk.gp_classification(gram, np.pad(labels, (0, missing)), classes=outputs)
            # JAX reads float64 arrays back from a pickle as float32, where float64 is not set.
            self._posterior = jax.tree.map(np.asarray, posterior)
        log_evidence = float(posterior.log_evidence) + missing * np.log(classes)
        self.log_marginal_likelihood_value_ = log_evidence
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample, [n]."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, [n, k], in the order of ``classes_``.

        They are those of the most probable logits, or with ``average`` means over the posterior, by
        the probit approximation.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=list(PRECISIONS))
        if self.average:
            probabilities = self._average_probabilities(X)
        else:
            probabilities = scipy.special.softmax(self._logits(X), axis=1)
        return probabilities[: len(X)].astype(self.X_fit_.dtype)

    def _logits(self, X: np.ndarray) -> np.ndarray:
        """Return the most probable logits, [T, k], with a logit of zero before a single one."""
        cross = self._training_kernel().cross(X) / self.ridge_
        weights = np.asarray(self._posterior.weights)
        axes = "tn,nc->tc" if self._posterior.has_class_kernel else "tnce,ne->tc"
        logits = np.einsum(axes, cross, weights, optimize=True)
        return logits if logits.shape[1] > 1 else np.pad(logits, ((0, 0), (1, 0)))

    def _average_probabilities(self, X: np.ndarray) -> np.ndarray:
        """Return the probabilities of the posterior, [T, k]."""
        training_kernel = self._training_kernel()
        cross = training_kernel.cross(X) / self.ridge_
        prior = training_kernel.prior(X) / self.ridge_
        with jax.enable_x64(True):
            posterior = jax.tree.map(jnp.asarray, self._posterior)
            probabilities = np.asarray(posterior.predict(cross, prior).probabilities)
        if probabilities.shape[1] > 1:
            return probabilities
        return np.concatenate([1 - probabilities, probabilities], axis=1)


def _check_outputs(gram: np.ndarray, outputs: int) -> None:
    """Refuse the kernel of a network of several outputs, but not one for each process."""
    if gram.ndim == 4 and gram.shape[2] != outputs:
        raise ValueError(
            f"params must belong to a network of one output, or of {outputs}, one for each class "
            f"(one for two classes), got one of {gram.shape[2]} outputs."
        )
