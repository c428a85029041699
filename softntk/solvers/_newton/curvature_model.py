"""The curvature of approximate Newton at a point, and the options of the transform."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.typing import Matrix, Params, Vector
from softntk._core.validation import as_floating
from softntk.curvature.sketch import Sample
from softntk.curvature.structured import StructuredOperator
from softntk.solvers._newton import row_sampler

Curvature = Callable[[Params], lx.AbstractLinearOperator]
Preconditioner = Callable[[Params, Any], Any]


class Options(NamedTuple):
    """The checked arguments of :func:`softntk.solvers.scale_by_approx_newton`, by their names.

    Attributes:
        curvature: params → H, an operator.
        gauss_newton: params → M, an operator, or None.
        sketch_size: rows of a sample, or None.
        max_distortion: largest ε of a sample.
        cg_steps: largest number of products in a step, or None.
        damping: a name in ``DAMPINGS``, or None.
        initial_damping: the first μ.
        key: random key of the samples.
        postpones_damping: an argument of ``update``, set by ``minimise``: leave out damped steps,
            whose program is larger than all the rest, and report
            :attr:`softntk.solvers.Step.POSTPONED` in their place.
    """

    curvature: Curvature
    gauss_newton: Curvature | None
    sketch_size: int | None
    max_distortion: float
    cg_steps: int | None
    damping: str | None
    initial_damping: float
    key: PRNGKeyArray
    preconditioner: Preconditioner | None = None
    postpones_damping: bool = False


class CurvatureModel(NamedTuple):
    """The curvature at a point, on flat vectors.

    Attributes:
        operator: H on params.
        metric: computes M on params; None for a diagonal metric.
        product: v ↦ Hv.
    """

    operator: lx.AbstractLinearOperator
    metric: Callable[[], lx.AbstractLinearOperator] | None
    product: Callable[[Vector], Vector]

    def dense_metric(self, dtype: jnp.dtype) -> Callable[[], Matrix] | None:
        """Return a function that computes M as a matrix, or None."""
        metric = self.metric
        if metric is None:
            return None
        return lambda: metric().as_matrix().astype(dtype)

    def sampled_metric(self, sample: Sample) -> Callable[[], Matrix] | None:
        """Return a function that computes M on the rows of a sample, or None."""
        metric = self.metric
        if metric is None:
            return None
        return lambda: row_sampler.sampled_matrix(require_rows(metric()), sample)


def as_curvature(name: str, curvature: Any) -> Curvature:
    """Return the curvature as a function of the params, constant for a matrix or an operator."""
    # 1. Constant curvature: an operator, or a matrix, which is compared with the params later.
    if isinstance(curvature, lx.AbstractLinearOperator):
        return lambda _: curvature
    if isinstance(curvature, jax.Array | np.ndarray | list | tuple):
        matrix = as_floating(name, curvature, ("d", "d"), half=False)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{name} must be a square matrix, got shape {matrix.shape}.")
        return lambda params: _matrix_on_params(matrix, params)

    # 2. A function, whose result is checked where it is called.
    if not callable(curvature):
        raise ValueError(
            f"{name} must be a function of the params, a matrix or a lineax operator, got "
            f"{type(curvature).__name__}. Pass p.hessian, say."
        )
    return curvature  # pyright: ignore[reportReturnType]


def _matrix_on_params(matrix: Float[Array, "d d"], params: Params) -> lx.AbstractLinearOperator:
    """Return a matrix on flattened params as an operator on params."""
    flat, unravel = ravel_pytree(params)
    if flat.shape != matrix.shape[:1]:
        raise ValueError(
            f"curvature must be a matrix of the {flat.size} numbers of the params, or a function "
            f"that returns an operator, got a matrix of shape {matrix.shape}."
        )
    # A matrix that users pass may be symmetric up to rounding only.
    symmetric = (0.5 * (matrix + matrix.T)).astype(flat.dtype)
    if params is flat or getattr(params, "ndim", 0) == 1:
        return lx.MatrixLinearOperator(symmetric, lx.symmetric_tag)
    return lx.FunctionLinearOperator(
        lambda v: unravel(symmetric @ ravel_pytree(v)[0]),
        jax.eval_shape(lambda: params),
        lx.symmetric_tag,
    )


def make_model(options: Options, params: Params, flat: Vector) -> CurvatureModel:
    """Return the curvature at the params, after checking that it is an operator on them."""
    operator = _check_operator("curvature", options.curvature(params), params)
    _, unravel = ravel_pytree(params)

    # flat v → v on the params → H v on the params → flat
    def multiply(v: Float[Array, " d"]) -> Float[Array, " d"]:
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    gauss_newton = options.gauss_newton
    if gauss_newton is None:
        return CurvatureModel(operator, None, multiply)

    # M is computed only where Newton's step fails, hence a function.
    def metric() -> lx.AbstractLinearOperator:
        return _check_operator("gauss_newton", gauss_newton(params), params)

    return CurvatureModel(operator, metric, multiply)


def _check_operator(name: str, operator: Any, params: Params) -> lx.AbstractLinearOperator:
    """Return a lineax operator on the params, or raise ValueError."""
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise ValueError(f"{name} must return a lineax operator, got {type(operator).__name__}.")
    # Shapes alone: products are cast to the dtype of the params.
    operator_shapes = jax.tree.map(lambda leaf: leaf.shape, operator.in_structure())
    params_shapes = jax.tree.map(jnp.shape, params)
    if operator_shapes != params_shapes:
        raise ValueError(
            f"{name} must be an operator on the params, of shapes {params_shapes}; "
            f"it is one on {operator_shapes}."
        )
    return operator


def require_rows(operator: lx.AbstractLinearOperator) -> StructuredOperator:
    """Return the operator itself if it has rows to draw, or raise ValueError."""
    if not isinstance(operator, StructuredOperator):
        raise ValueError(
            "sketch_size needs a curvature with rows to draw, a "
            f"softntk.curvature.StructuredOperator, got {type(operator).__name__}. "
            "Without sketch_size any operator will do; rows of a cross-entropy are drawn by "
            "preconditioner=p.preconditioner."
        )
    return operator
