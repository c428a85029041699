"""Arguments of dynamics and regressions, checked and converted to one problem."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from softntk._core.validation import as_floating, is_concrete
from softntk._linalg.gram_arrays import Gram, as_cross_matrix, as_gram
from softntk._linalg.norms import binary_scale
from softntk._linalg.products import product
from softntk.networks import row_factors
from softntk.ntk._operators.base import CrossOperator, GramOperator
from softntk.ntk._operators.jacobian import JacobianOperator
from softntk.ntk._operators.two_layer import TwoLayerOperator
from softntk.ntk._row_scales import saturate

# Types in public signatures: targets of training and of test points, and cross kernels.
Targets = Float[Array | np.ndarray, "n k"] | Float[Array | np.ndarray, " n"]
TestTargets = Float[Array | np.ndarray, "t k"] | Float[Array | np.ndarray, " t"]
Cross = Float[Array | np.ndarray, "t n"] | Float[Array | np.ndarray, "t n k k"] | CrossOperator
# The same before they are checked, when anything may have been passed.
TargetsLike = ArrayLike | Sequence | None
CrossLike = ArrayLike | Sequence | CrossOperator | None


# An output below this many rounding errors of its terms counts as zero.
ROUNDING_UNITS = 16


class Problem(NamedTuple):
    """A kernel, its targets, and the outputs where the fit starts, in one precision.

    Attributes:
        matrix: H, [p, p]; None for an operator.
        cross: the kernel between test and training points, [q, p], an operator, or None.
        y: Y, [n, k].
        residual: (F(0) − Y)/scale, [n, k].
        scale: a power of two that keeps products with diverging components from overflowing; one
            for ordinary targets.
        start: F(0) of the test points, [t, k]; without test points that of the training points.
    """

    matrix: Float[Array, "p p"] | None
    cross: Float[Array, "q p"] | CrossOperator | None
    y: Float[Array, "n k"]
    residual: Float[Array, "n k"]
    scale: Float[Array, ""]
    start: Float[Array, "t k"]


def as_problem(
    gram: Gram | GramOperator,
    y: TargetsLike,
    f0: TargetsLike,
    cross: CrossLike,
    f0_test: TargetsLike,
    *,
    own_start: bool = False,
) -> Problem:
    """Return the kernel, targets and starts as a :class:`Problem`, checked against each other.

    Args:
        gram: H, an array or an operator.
        y: targets, [n, k], or [n] for k = 1.
        f0: F(0) of the training points in the shape of y, or None.
        cross: the kernel between test and training points, an array or an operator as gram is, or
            None.
        f0_test: F(0) of the test points, [t, k], [t], or None.
        own_start: whether a start that is None is that of the network behind the operator, instead
            of zero.

    Raises:
        ValueError: shapes that do not fit, integer, complex or non-finite arrays, half precision, a
            cross of the wrong kind.
    """
    # 1. Convert and check: the kernel, the targets, the test points.
    gram_array, gram_shape = _as_gram_array(gram)
    y = as_outputs("y", y, gram_shape[:1] + gram_shape[2:3])
    f0 = _as_initial_outputs(f0, y, gram_shape)
    cross_kernel, test_count = _as_cross(gram, cross, gram_shape)
    f0_test = _as_initial_test_outputs(f0_test, cross, (test_count, y.shape[1]))

    # 2. Where the fit starts, if the caller does not say.
    if own_start and isinstance(gram, GramOperator):
        f0, f0_test = _initial_outputs_of_network(gram, cross_kernel, f0, f0_test, y.shape[1])

    # 3. One precision, and a unit in which nothing overflows.
    arrays = [
        part for part in (gram_array, y, f0, f0_test, cross_kernel) if isinstance(part, jax.Array)
    ]
    operators = [gram] if isinstance(gram, GramOperator) else []
    dtype = jnp.result_type(*(part.dtype for part in [*arrays, *operators]))
    y = y.astype(dtype)
    start = jnp.zeros_like(y) if f0 is None else f0.astype(dtype)
    scale, residual = _scaled_residual(y, start)
    if cross is not None:
        start = (
            jnp.zeros((test_count, y.shape[1]), dtype) if f0_test is None else f0_test.astype(dtype)
        )
    return Problem(
        matrix=None if gram_array is None else as_cross_matrix(gram_array).astype(dtype),
        cross=as_cross_matrix(cross_kernel).astype(dtype)
        if isinstance(cross_kernel, jax.Array)
        else cross_kernel,
        y=y,
        residual=residual,
        scale=scale,
        start=start,
    )


def _as_gram_array(gram: Gram | GramOperator) -> tuple[Array | None, tuple[int, ...]]:
    """Return the Gram array, or None for an operator, and its shape, [n, n] or [n, n, k, k]."""
    if not isinstance(gram, GramOperator):
        array = as_gram(gram)
        return array, array.shape
    if jnp.finfo(gram.dtype).bits < 32:
        raise ValueError(
            f"gram must be float32 or float64, got an operator on {gram.dtype}. "
            "Make it of points in float32."
        )
    return None, (gram.shape[0], *gram.shape)


def _as_initial_outputs(
    f0: TargetsLike, y: Array, shape: tuple[int, ...]
) -> Float[Array, "n k"] | None:
    """Return F(0) of the training points in the shape of the targets, or None."""
    if f0 is None:
        return None
    start = as_outputs("f0", f0, shape[:1] + shape[2:3])
    if start.shape != y.shape:
        raise ValueError(f"f0 must have the shape of y, got {start.shape} and {y.shape}.")
    return start


def _as_initial_test_outputs(
    f0_test: TargetsLike, cross: CrossLike, shape: tuple[int, int]
) -> Float[Array, "t k"] | None:
    """Return F(0) of the test points as [t, k], or None."""
    if f0_test is None:
        return None
    if cross is None:
        raise ValueError(
            "f0_test goes with cross, the kernel between test and training points, "
            "which is missing."
        )
    return as_outputs("f0_test", f0_test, shape)


def _initial_outputs_of_network(
    gram: GramOperator,
    cross: Array | CrossOperator | None,
    f0: Array | None,
    f0_test: Array | None,
    outputs: int,
) -> tuple[Array | None, Array | None]:
    """Return F(0) of training and test points; the network fills in what is None.

    If zeros are given as f0, the test points start at zero too.
    """
    # A user who passes zeros as f0 says that the network starts at zero everywhere.
    is_zero = f0 is not None and is_concrete(f0) and not np.any(np.asarray(f0))
    if f0_test is None and isinstance(cross, CrossOperator) and not is_zero:
        f0_test = _evaluate_network(cross.gram, cross.points, outputs)
    if f0 is None:
        f0 = _evaluate_network(gram, gram.x, outputs)
    return f0, f0_test


def as_outputs(name: str, y: TargetsLike, expected: tuple[int, ...]) -> Float[Array, "n k"]:
    """Return y as [n, k] with the expected n (and k); [n] is k = 1.

    Raises:
        ValueError: another shape, integer, complex or not finite.
    """
    y = as_floating(name, y, empty=True)
    outputs = y[:, None] if y.ndim == 1 else y
    if outputs.ndim != 2 or 0 in outputs.shape or outputs.shape[: len(expected)] != expected:
        expected_shape = (*expected, "k")[:2]
        raise ValueError(
            f"{name} must have shape [n, k] with the n (and k) of the kernel, {expected_shape}, "
            f"or [n] for k = 1, got {y.shape}."
        )
    return outputs


def _as_cross(
    gram: Gram | GramOperator, cross: CrossLike, shape: tuple[int, ...]
) -> tuple[Array | CrossOperator | None, int]:
    """Return the cross kernel, checked, and the number of its test points."""
    if cross is None:
        return None, 0
    # An array goes with an array, an operator with an operator of the same kernel.
    if isinstance(gram, GramOperator) != isinstance(cross, CrossOperator):
        raise ValueError(
            "cross must be an operator, op.cross(x_test), if gram is one, else an array, "
            f"got {type(cross).__name__}."
        )
    if isinstance(cross, CrossOperator) and isinstance(gram, GramOperator):
        if cross.gram.shape != gram.shape:
            raise ValueError(
                f"cross must be made of this gram, of shape {gram.shape}, "
                f"got one of {cross.gram.shape}."
            )
        return cross, len(cross.points)
    kernel = as_floating("cross", cross, empty=True)
    if kernel.shape[1:] != shape[1:] or 0 in kernel.shape:
        raise ValueError(
            f"cross must have shape {('t', *shape[1:])} for a gram of shape {shape}, "
            f"got {kernel.shape}."
        )
    return kernel, len(kernel)


def as_prior(prior: object, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return prior variances at the test points, [t] or [t, k], checked.

    Raises:
        ValueError: another shape, integers, not finite, or negative.
    """
    variances = as_floating("prior", prior, empty=True)
    if variances.shape != shape:
        raise ValueError(f"prior must have shape {shape}, got {variances.shape}.")
    if is_concrete(variances) and np.any(np.asarray(variances) < 0):
        raise ValueError(
            f"prior must not be negative, got a variance of {float(jnp.min(variances)):.3g}."
        )
    return variances


@jax.jit
def _scaled_residual(y: Array, start: Array) -> tuple[Float[Array, ""], Float[Array, "n k"]]:
    """Return the scale and (F(0) − Y)/scale.

    The scale is one, unless outputs have exponents above a quarter of the largest exponent; then it
    brings them down to that.
    """
    # Products with diverging components, up to the root of the largest number, must not overflow.
    max_output = jnp.maximum(jnp.max(jnp.abs(y)), jnp.max(jnp.abs(start)))
    quarter_range = 2.0 ** (jnp.finfo(y.dtype).maxexp // 4)
    scale = jnp.maximum(binary_scale(max_output).reshape(()) / quarter_range, 1)
    return scale, start / scale - y / scale


def _evaluate_network(op: GramOperator, points: Array, outputs: int) -> Float[Array, "t k"] | None:
    """Return the outputs of the network behind an operator at these points; None without one.

    If a softntk network is zero up to rounding, as antisymmetric ones are at the start, exact zeros
    are returned.
    """
    # 1. The operator of a user's network holds the function; that of a kernel function has none.
    if isinstance(op, JacobianOperator):
        return _map_in_blocks(
            lambda x: op.function(op.function.weights, x).reshape(len(x), outputs),
            points,
            op.block_size,
        )
    if not isinstance(op, TwoLayerOperator):
        return None

    # 2. Ours has outputs and the magnitudes of their terms.
    readout = op.params.readout
    if not op.architecture.train_readout:
        readout = lax.stop_gradient(readout)

    def evaluate(x: Array) -> tuple[Array, Array]:
        features = row_factors(op.architecture, op.params, x).features
        return product(features, readout), product(jnp.abs(features), jnp.abs(readout))

    values, magnitudes = _map_in_blocks(evaluate, points, op.block_size)
    # 3. Each output is a sum of terms: its rounding error is in proportion to their magnitudes.
    rounding_error = ROUNDING_UNITS * float(jnp.finfo(values.dtype).eps) * jnp.max(magnitudes)
    return jnp.where(jnp.max(jnp.abs(values)) <= rounding_error, 0, values)


def _map_in_blocks(function: Callable[[Array], Any], points: Array, size: int) -> Any:
    """Return function(points), computed for ``size`` rows at a time.

    The last block is smaller instead of filled up, because the function may not be defined at
    other points.
    """
    block_count = len(points) // size
    parts = []
    if block_count:
        blocks = lax.map(
            function, points[: block_count * size].reshape(block_count, size, *points.shape[1:])
        )
        parts.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), blocks))
    if len(points) % size:
        parts.append(function(points[block_count * size :]))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def saturate_outputs(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the values within the range of their precision; NaN becomes +inf."""
    return jnp.where(jnp.isnan(values), jnp.inf, saturate(values))


def apply_cross(vectors: Float[Array, "s n k"], problem: Problem) -> Float[Array, "s rows k"]:
    """Return the products of the cross kernel with the vectors; the vectors without one."""
    if problem.cross is None:
        return vectors
    if not isinstance(problem.cross, CrossOperator):
        # A matrix [q, p] on each output by itself, or on all outputs together.
        size = problem.cross.shape[1]
        columns = vectors.reshape(len(vectors), size, math.prod(vectors.shape[1:]) // size)
        return product(problem.cross, columns).reshape(len(vectors), *problem.start.shape)
    # The s times are the columns of one product.
    columns = jnp.moveaxis(vectors, 0, -1)  # [n, k, s]
    if len(problem.cross.gram.shape) == 1:
        columns = columns.reshape(len(columns), -1)
    images = problem.cross.mm(columns).reshape(*problem.start.shape, -1)
    return jnp.moveaxis(images, -1, 0).astype(vectors.dtype)
