"""Kernel ridge regression with neural tangent kernels."""

from typing import Any, Self

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from softntk.sklearn._arguments import as_sample_weight
from softntk.sklearn._ntk_estimator import PRECISIONS, NTKEstimator


class NTKRegressor(RegressorMixin, MultiOutputMixin, NTKEstimator):
    r"""Kernel ridge regression with the neural tangent kernel of a network.

    Use it as a baseline for a trained network, or in place of ``KernelRidge``. Without a ridge it
    is what gradient descent on a network of infinite width converges to; a ridge acts as stopping
    early does:

        F(x) = F₀(x) + Σ_i k(x, x_i) α_i,        α = (K + λ S⁻¹)⁻¹ (y − F₀),

    with S the weights of the samples and F₀ zero but for ``params``. Scale the features before, by
    ``StandardScaler`` in a pipeline, and centre the targets, by ``TransformedTargetRegressor``:
    nothing here does. The kernels of "softmax" and "exp" grow exponentially with ‖x‖²; points of
    equal norm, by ``Normalizer``, suit them.

    Up to 4,096 samples (times outputs) the kernel is formed and factorised, beyond that it is never
    formed. Features of float64 are computed with in float64, also where ``jax_enable_x64`` is not
    set, those of float32 in float32; systems are solved to float64. The setting of JAX stays as it
    is. An estimator can be pickled if its kernel can, as names and networks of ``two_layer`` can.

    Args:
        kernel: one of

            - a name of ``networks.FAMILIES``, as "softmax", "res_softmax", "relu": two layers of
              infinite width, the readout fixed;
            - a network of ``networks.two_layer``, or a triple of ``softntk.stax``: infinite width
              too, with the settings of the network;
            - a function (x1, x2) → [n1, n2], symmetric;
            - with ``params``: an ``apply_fn(params, x)`` or a triple that holds one, for the
              empirical NTK at these weights. It has one output, or one for each target.
        params: the weights of a network, of any library; None for infinite width.
        get: "ntk", or "nngp" for the covariance of the outputs at initialisation, whose regression
            is a Gaussian process and trains the readout alone.
        sigma: σ of the hidden weights, > 0; "scale" for 1/√mean(‖x‖² + 1), by which the logits of a
            training point have a variance of about one. For kernels given by name.
        bias: whether the hidden units have a bias. Without one a homogeneous activation as "relu"
            has a kernel of zero at the point zero. For kernels given by name.
        ridge: ≥ 0, in units of the geometric mean of k(x, x) over the training points: so it means
            the same for every kernel. λ is ``ridge_``.

    Attributes:
        X_fit_: the training points, [n, d].
        dual_coef_: α, [n] or [n, k].
        ridge_: λ, in units of the kernel.
        sigma_: σ; None where the kernel is not given by name.
        amplitude_: with "nngp" the factor of the covariance of each target, that of the largest
            likelihood, [k].
        n_features_in_: d.
        feature_names_in_: names of the features, where X is a table whose columns have names.

    Raises:
        ValueError: from ``fit``: parameters out of range or that do not go together, an unknown
            name, X and y that do not fit, NaN, weights that are negative.
        NumericalError: from ``fit``: the ridge is below rounding, or a solve did not converge.

    Example:
        >>> import numpy as np
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from softntk.sklearn import NTKRegressor
        >>> X = np.linspace(-3, 3, 50)[:, None]
        >>> model = make_pipeline(StandardScaler(), NTKRegressor("relu"))
        >>> bool(model.fit(X, np.sin(X[:, 0])).score(X, np.sin(X[:, 0])) > 0.99)
        True

    Source: :func:`softntk.ntk.kernel_regression`; the kernels: MATHEMATICS.md#infinite-width.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the coefficients to data.

        Args:
            X: points, [n, d].
            y: targets, [n] or [n, k].
            sample_weight: weights s ≥ 0, [n], inverse to the variance of the noise; ones if None.

        Returns:
            The estimator.

        Raises:
            ValueError, NumericalError: as for the class.
        """
        # 1. The data; a target alone is a column.
        X, y = validate_data(self, X, y, dtype=list(PRECISIONS), multi_output=True, y_numeric=True)
        weights = as_sample_weight(sample_weight, len(X), X.dtype)
        targets = np.asarray(y, np.float64).reshape(len(X), -1)

        # 2. The kernel, and the solution for what it must add to the network at its start.
        training_kernel = self._fit_kernel(X, weights)
        residual = targets - training_kernel.outputs_at_start(X, targets.shape[1])
        coefficients = training_kernel.solve(residual, self.ridge_)
        self.dual_coef_ = coefficients.astype(X.dtype).reshape(np.shape(y))

        # 3. The likelihood of N(0, a(K + λS⁻¹)) is largest for a = yᵀ(K + λS⁻¹)⁻¹y/n.
        if self.get == "nngp":
            self.amplitude_ = np.sum(residual * coefficients, axis=0) / weights.sum()
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return predictions, and with ``return_std`` their standard deviations.

        These are of the function without noise, as those of ``GaussianProcessRegressor`` with
        alpha=ridge, the amplitude of the covariance being that of the largest likelihood. They
        cost a factorisation at each call.

        Args:
            X: points, [t, d].
            return_std: return the pair (predictions, standard deviations); with get="nngp" only,
                because a process with the NTK as its covariance does not spread as trained networks
                do.

        Returns:
            Predictions, [t] or [t, k] as y was; or the pair, both of this shape.

        Raises:
            ValueError: ``return_std`` with get="ntk"; X with another number of features.
        """
        # 1. The mean.
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=list(PRECISIONS))
        if return_std and self.get != "nngp":
            raise ValueError(
                'return_std needs get="nngp", whose regression is a Gaussian process; for the '
                "error bars of a trained network use ntk.laplace."
            )
        training_kernel = self._training_kernel()
        coefficients = self.dual_coef_.reshape(len(self.dual_coef_), -1)
        mean = training_kernel.predict(X, coefficients)
        mean = mean + training_kernel.outputs_at_start(X, mean.shape[1])
        shape = (len(X), *self.dual_coef_.shape[1:])
        mean = mean.astype(self.dual_coef_.dtype).reshape(shape)
        if not return_std:
            return mean

        # 2. The deviation.
        variance = training_kernel.posterior_variance(X, self.ridge_)
        deviation = np.sqrt(variance[:, None] * self.amplitude_)
        return mean, deviation.astype(mean.dtype).reshape(shape)
