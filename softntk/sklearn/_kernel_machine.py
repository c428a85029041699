"""A kernel on training points that are filled up: its matrices, and systems with it."""

import contextlib
from dataclasses import dataclass

import jax
import numpy as np

from softntk import ntk
from softntk.ntk import GramOperator
from softntk.sklearn._arguments import check_not_interrupted
from softntk.sklearn._kernels import Kernel
from softntk.sklearn._padding import MIN_ROWS, pad_rows, padded_size

# Unknowns up to which the kernel is formed and factorised; beyond it is never formed.
MAX_DENSE_SIZE = 4096
# Relative residual of solves without the matrix.
SOLVE_RTOL = 1e-8


@dataclass(frozen=True, eq=False)
class TrainingKernel:
    """A kernel on weighted training points, filled up by points of weight zero to N.

    Matrices are in float64, whatever the precision in which their entries were computed.

    Attributes:
        kernel: the kernel, of q outputs.
        x: the points, [n, d].
        weights: their weights s, [n].
    """

    kernel: Kernel
    x: np.ndarray
    weights: np.ndarray

    @property
    def size(self) -> int:
        """N, the number of points after filling up."""
        return padded_size(len(self.x), MIN_ROWS)

    def typical_variance(self) -> float:
        """Return the geometric mean of k(x, x) over the points where it is positive.

        The arithmetic mean would be that of a few points where a kernel grows exponentially.

        Raises:
            ValueError: it is positive nowhere, or not finite.
        """
        with self._precision():
            op = self._operator(np.ones_like(self.weights))
            diagonal = np.asarray(op.diagonal(), np.float64)
        variances = diagonal.reshape(self.size, -1)[: len(self.x)]
        weights = np.broadcast_to(self.weights[:, None], variances.shape)
        is_counted = (variances > 0) & (weights > 0)
        if not (is_counted.any() and np.isfinite(variances).all()):
            raise ValueError(
                "the kernel must be finite, and positive somewhere, at the points of X, but lies "
                f"between {variances.min():.3g} and {variances.max():.3g} there. Scale the "
                "features, e.g. by StandardScaler."
            )
        logarithms = np.log(variances[is_counted])
        return float(np.exp(np.average(logarithms, weights=weights[is_counted])))

    def outputs_at_start(self, x: np.ndarray, targets: int) -> np.ndarray:
        """Return what the network gives before training, [t, targets].

        Raises:
            ValueError: it has several outputs, but not one for each target.
        """
        with self._precision():
            outputs = self.kernel.outputs_at_start(_fill_up(x))[: len(x)]
        if outputs.shape[1] not in (1, targets):
            raise ValueError(
                f"params must belong to a network of one output, or of one for each of the "
                f"{targets} targets, got one of {outputs.shape[1]} outputs."
            )
        return np.broadcast_to(outputs, (len(x), targets))

    def solve(self, targets: np.ndarray, ridge: float) -> np.ndarray:
        """Return the coefficients α = (K + ridge S⁻¹)⁻¹ targets, [n, r]."""
        # 1. The right-hand sides S^½ Y, filled up, in the shape of the operator.
        roots = np.sqrt(self.weights).astype(np.float64)[:, None]
        with self._precision():
            op = self._operator()
            columns = _as_columns(op, pad_rows(roots * targets, self.size))
            # 2. Solve, in float64 whatever the precision of the kernel.
            is_dense = op.in_size() <= MAX_DENSE_SIZE
            if is_dense:
                matrix = np.asarray(op.as_matrix(), np.float64)
            else:
                outcome = ntk.solve(op, columns, ridge=ridge, rtol=SOLVE_RTOL, refine=True)
                check_not_interrupted(outcome.result)
                solution = outcome.value
        if is_dense:
            columns = columns.reshape(len(matrix), -1)
            with jax.enable_x64(True):
                solution = ntk.kernel_regression(
                    matrix, columns, ridge=ridge, cross=np.eye(len(matrix))
                )
        # 3. The coefficients of the given points.
        solution = np.asarray(solution).reshape(-1, targets.shape[1])
        return roots * solution[: len(self.x)]

    def predict(self, x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Return k(x, points) · coefficients, [t, r]."""
        with self._precision():
            # The weights of the points are in the coefficients.
            op = self._operator(np.ones_like(self.weights))
            columns = _as_columns(op, pad_rows(coefficients, self.size)).astype(op.dtype)
            values = np.asarray(op.cross(self._test_points(x)).mm(columns))
        return values.reshape(-1, coefficients.shape[1])[: len(x)]

    def posterior_variance(self, x: np.ndarray, noise: float) -> np.ndarray:
        """Return k(x, x) − k(x, points) (K + noise S⁻¹)⁻¹ k(points, x), [t], of one output."""
        with self._precision():
            gram = self._operator()
            points = self._test_points(x)
            prior = np.asarray(gram.at(points).diagonal())
            cross = gram.cross(points)
            is_dense = gram.in_size() <= MAX_DENSE_SIZE
            if is_dense:
                gram, cross = (np.asarray(op.as_matrix(), np.float64) for op in (gram, cross))
        # The variance does not depend on the targets.
        dtype = np.float64 if is_dense else prior.dtype
        with jax.enable_x64(True) if is_dense else self._precision():
            posterior = ntk.gp_posterior(
                gram,
                np.zeros(self.size, dtype),
                noise=noise,
                cross=cross,
                prior=prior.astype(dtype),
            )
        return np.asarray(posterior.variance)[: len(x)]

    def gram(self) -> np.ndarray:
        """Return the kernel on the points, [N, N], or [N, N, q, q] for several outputs."""
        with self._precision():
            return _by_points(np.asarray(self._operator().as_matrix(), np.float64), self.size)

    def cross(self, x: np.ndarray) -> np.ndarray:
        """Return the kernel between other points, filled up to T, and these: [T, N, …]."""
        with self._precision():
            points = self._test_points(x)
            matrix = np.asarray(self._operator().cross(points).as_matrix(), np.float64)
        return _by_points(matrix, len(points), self.size)

    def prior(self, x: np.ndarray) -> np.ndarray:
        """Return the kernel of other points, filled up to T, with themselves: [T], or [T, q, q]."""
        with self._precision():
            points = self._test_points(x)
            op = self._operator()
            if op.in_size() == self.size:
                return np.asarray(op.at(points).diagonal(), np.float64)
            # Blocks on the diagonal, of as many points at a time as are filled up to anyway.
            blocks = [
                _by_points(np.asarray(op.at(part).as_matrix(), np.float64), len(part))
                for part in points.reshape(-1, MIN_ROWS, points.shape[1])
            ]
        return np.concatenate([np.einsum("iiab->iab", block) for block in blocks])

    def _precision(self) -> contextlib.AbstractContextManager:
        """Return the context in which JAX has the precision of the kernel."""
        return jax.enable_x64(self.kernel.precision(self.x) == np.float64)

    def _operator(self, weights: np.ndarray | None = None) -> GramOperator:
        """Return the operator on the points, filled up by points of weight zero."""
        roots = np.sqrt(self.weights if weights is None else weights)
        return self.kernel.operator(_fill_up(self.x), pad_rows(roots, self.size))

    def _test_points(self, x: np.ndarray) -> np.ndarray:
        """Return other points, filled up, with weights of one."""
        points = _fill_up(x.astype(self.x.dtype))
        return self.kernel.weighted_points(points, np.ones(len(points), points.dtype))


def _as_columns(op: GramOperator, targets: np.ndarray) -> np.ndarray:
    """Return targets [n, r] as right-hand sides of an operator on [n] or [n, q].

    The kernel of one output serves each target by itself.
    """
    outputs = op.in_size() // op.shape[0]
    return targets.reshape(*op.shape, targets.shape[1] // outputs)


def _by_points(matrix: np.ndarray, rows: int, columns: int | None = None) -> np.ndarray:
    """Return a matrix [t·q, n·q] as [t, n, q, q], or as [t, n] for one output."""
    columns = rows if columns is None else columns
    outputs = len(matrix) // rows
    if outputs == 1:
        return matrix
    return matrix.reshape(rows, outputs, columns, outputs).transpose(0, 2, 1, 3)


def _fill_up(x: np.ndarray) -> np.ndarray:
    """Return points with the first one behind them, until there are as many as are computed."""
    # A point of the data is inside the domain of the kernel; zero may be outside.
    missing = padded_size(len(x), MIN_ROWS) - len(x)
    return np.concatenate([x, np.broadcast_to(x[:1], (missing, x.shape[1]))])
