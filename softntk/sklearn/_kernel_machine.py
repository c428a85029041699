"""Linear systems with the kernel of an estimator, on points that are filled up."""

from dataclasses import dataclass

import jax
import numpy as np

from softntk import ntk
from softntk.ntk import GramOperator
from softntk.sklearn._kernels import Kernel
from softntk.sklearn._padding import MIN_ROWS, pad_rows, padded_size

# Unknowns up to which the kernel is formed and factorised; beyond it is never formed.
MAX_DENSE_SIZE = 4096
# Relative residual of solves without the matrix.
SOLVE_RTOL = 1e-8


@dataclass(frozen=True, eq=False)
class TrainingKernel:
    """A kernel on weighted training points.

    Attributes:
        kernel: the kernel.
        x: the points, [n, d].
        weights: their weights s, [n].
    """

    kernel: Kernel
    x: np.ndarray
    weights: np.ndarray

    def operator(self, *, weighted: bool = True) -> GramOperator:
        """Return the operator on the points, filled up by points of weight zero."""
        rows = padded_size(len(self.x), MIN_ROWS)
        roots = np.sqrt(self.weights) if weighted else np.ones_like(self.weights)
        with jax.enable_x64(self.x.dtype == np.float64):
            return self.kernel.operator(_repeat_first(self.x, rows), pad_rows(roots, rows))

    def mean_diagonal(self) -> float:
        """Return the mean of k(x, x) over the points, by their weights.

        Raises:
            ValueError: it is zero, or not finite.
        """
        op = self.operator()
        with jax.enable_x64(op.dtype == np.float64):
            diagonal = np.asarray(op.diagonal(), np.float64)
        outputs = op.in_size() // op.shape[0]
        mean = float(diagonal.sum() / (outputs * self.weights.sum(dtype=np.float64)))
        if not (np.isfinite(mean) and mean > 0):
            raise ValueError(
                f"the kernel must be positive and finite at the points of X, but its mean there is "
                f"{mean:.3g}. Scale the features, e.g. by StandardScaler."
            )
        return mean

    def solve(self, targets: np.ndarray, ridge: float) -> np.ndarray:
        """Return the coefficients α = (K + ridge S⁻¹)⁻¹ targets, [n, r]."""
        # 1. The right-hand sides S^½ Y, filled up, in the shape of the operator.
        op = self.operator()
        roots = np.sqrt(self.weights).astype(np.float64)[:, None]
        columns = as_columns(op, pad_rows(roots * targets, op.shape[0]))
        # 2. Solve, in float64 whatever the precision of the kernel.
        if op.in_size() <= MAX_DENSE_SIZE:
            matrix = as_double_matrix(op)
            with jax.enable_x64(True):
                solution = ntk.kernel_regression(
                    matrix,
                    columns.reshape(len(matrix), -1),
                    ridge=ridge,
                    cross=np.eye(len(matrix)),
                )
        else:
            with jax.enable_x64(op.dtype == np.float64):
                solution = ntk.solve(op, columns, ridge=ridge, rtol=SOLVE_RTOL, refine=True).value
        # 3. The coefficients of the given points.
        solution = np.asarray(solution).reshape(op.shape[0], -1)
        return roots * solution[: len(self.x)]

    def predict(self, x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Return k(x, points) · coefficients, [t, r]."""
        op = self.operator(weighted=False)
        columns = as_columns(op, pad_rows(coefficients, op.shape[0])).astype(op.dtype)
        with jax.enable_x64(op.dtype == np.float64):
            values = op.cross(self._test_points(x)).mm(columns)
        return np.asarray(values).reshape(values.shape[0], -1)[: len(x)]

    def posterior_variance(self, x: np.ndarray, noise: float) -> np.ndarray:
        """Return k(x, x) − k(x, points) (K + noise S⁻¹)⁻¹ k(points, x), [t]."""
        op = self.operator()
        points = self._test_points(x)
        with jax.enable_x64(op.dtype == np.float64):
            prior = op.at(points).diagonal()
            cross = op.cross(points)
            is_dense = op.in_size() <= MAX_DENSE_SIZE
            if is_dense:
                cross = np.asarray(cross.as_matrix(), np.float64)
        gram = as_double_matrix(op) if is_dense else op
        with jax.enable_x64(is_dense or op.dtype == np.float64):
            no_targets = np.zeros(op.shape[0], np.float64 if is_dense else op.dtype)
            posterior = ntk.gp_posterior(gram, no_targets, noise=noise, cross=cross, prior=prior)
        return np.asarray(posterior.variance)[: len(x)]

    def _test_points(self, x: np.ndarray) -> np.ndarray:
        """Return other points, filled up, with weights of one."""
        points = _repeat_first(x.astype(self.x.dtype), padded_size(len(x), MIN_ROWS))
        return self.kernel.weighted_points(points, np.ones(len(points), points.dtype))


def as_columns(op: GramOperator, targets: np.ndarray) -> np.ndarray:
    """Return targets [n, r] as right-hand sides of an operator on [n] or [n, k].

    The kernel of one output serves each target by itself.

    Raises:
        ValueError: the network has several outputs, but not one for each target.
    """
    outputs = op.in_size() // op.shape[0]
    if outputs not in (1, targets.shape[1]):
        raise ValueError(
            f"params must belong to a network of one output, or of one for each of the "
            f"{targets.shape[1]} targets, got one of {outputs} outputs."
        )
    return targets.reshape(*op.shape, targets.shape[1] // outputs)


def as_double_matrix(op: GramOperator) -> np.ndarray:
    """Return the matrix of an operator in float64."""
    with jax.enable_x64(op.dtype == np.float64):
        return np.asarray(op.as_matrix(), np.float64)


def _repeat_first(x: np.ndarray, rows: int) -> np.ndarray:
    """Return points with the first one behind them, until there are so many."""
    # A point of the data is inside the domain of the kernel; zero may be outside.
    return np.concatenate([x, np.broadcast_to(x[:1], (rows - len(x), x.shape[1]))])
