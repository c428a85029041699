"""What the estimators with neural tangent kernels share: their parameters, and their kernel."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from softntk._core.validation import check_number
from softntk.sklearn._kernel_machine import TrainingKernel
from softntk.sklearn._kernels import NamedKernel, choose_kernel

PRECISIONS = (np.float64, np.float32)


class NTKEstimator(BaseEstimator):
    """The base of the estimators with a kernel, and their parameters."""

    def __init__(
        self,
        kernel: Any = "softmax",
        *,
        params: Any = None,
        get: str = "ntk",
        sigma: Any = "scale",
        bias: bool = True,
        ridge: float = 0.1,
    ) -> None:
        self.kernel = kernel
        self.params = params
        self.get = get
        self.sigma = sigma
        self.bias = bias
        self.ridge = ridge

    def _fit_kernel(self, X: np.ndarray, weights: np.ndarray) -> TrainingKernel:
        """Choose the kernel on the training points, and set what it has learnt from them."""
        ridge = check_number("ridge", self.ridge, at_least=0)
        squares = np.sum(np.square(X, dtype=np.float64), axis=1)
        kernel = choose_kernel(
            self.kernel,
            self.params,
            self.get,
            self.sigma,
            self.bias,
            float(np.average(squares, weights=weights)),
        )
        training_kernel = TrainingKernel(kernel, X, weights)
        self.sigma_ = kernel.sigma if isinstance(kernel, NamedKernel) else None
        self.ridge_ = ridge * training_kernel.typical_variance()
        self.X_fit_ = X
        self._weights = weights
        return training_kernel

    def _training_kernel(self) -> TrainingKernel:
        """Return the kernel on the training points, as ``fit`` chose it."""
        sigma = self.sigma if self.sigma_ is None else self.sigma_
        kernel = choose_kernel(self.kernel, self.params, self.get, sigma, self.bias, 1.0)
        return TrainingKernel(kernel, self.X_fit_, self._weights)
