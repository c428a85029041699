"""A test whether the loss flattens out at the end of a run, where no minimum needs to be near.

Towards a minimum the gradient g vanishes and the curvature ‖∇²L‖ stays, or vanishes more slowly:
for |x|^p like ‖g‖ to the power (p − 2)/(p − 1). Where a softmax saturates, the loss falls to its
limit exponentially, and gradient and curvature vanish alike. So the test compares by how much the
two have fallen between the start and the end of a run. Products with the Hessian are differences of
gradients.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk._core.typing import Params
from softntk._linalg.norms import host_norm, scaled_norm

FlatPoint = Float[Array | np.ndarray, " d"]

# The curvature counts as vanished if it has fallen like the gradient, up to this factor.
MAX_CURVATURE_RATIO = 3.0
# Power steps, products with the Hessian, that estimate its norm.
POWER_STEPS = 3


def has_flattened_on_host(
    gradient: Callable[[Params], Params], first: Params, last: Params, path_length: float
) -> bool:
    """Return whether the curvature has vanished with the gradient, for known numbers.

    Differences of gradients need no program but that of the gradient, so nothing is compiled.

    Args:
        gradient: the gradient of the loss, a function of the params.
        first: the start of a run.
        last: the end of the run, where the gradient is small.
        path_length: sum of the lengths of all steps of the run.
    """
    # 1. Gradients at both ends.
    flattener = _Flattener(first, np)

    def flat_gradient(point: np.ndarray) -> np.ndarray:
        return flattener.join(gradient(flattener.split(point)))

    start = flattener.join(first)
    end = flattener.join(last)
    start_gradient = flat_gradient(start)
    end_gradient = flat_gradient(end)
    start_norm = host_norm(start_gradient)
    end_norm = host_norm(end_gradient)
    length = _difference_length(host_norm(end), path_length, end.dtype)

    # 2. The largest curvature at the end that counts as vanished.
    direction = _mixed_direction(start_gradient, np)
    with np.errstate(all="ignore"):
        product = (flat_gradient(start + length * direction) - start_gradient) / length
        bound = MAX_CURVATURE_RATIO * host_norm(product) * (end_norm / start_norm)

        # 3. Power steps at the end, until the curvature exceeds that bound.
        direction = _mixed_direction(end_gradient, np)
        for _ in range(POWER_STEPS):
            product = (flat_gradient(end + length * direction) - end_gradient) / length
            curvature = host_norm(product)
            if not curvature <= bound:
                return False
            direction = product / curvature if curvature > 0 else direction
    return bool(bound > 0 or end_norm == 0)


def has_flattened(
    gradient: Callable[[Params], Params],
    first: Params,
    last: Params,
    path_length: Float[Array, ""],
) -> Bool[Array, ""]:
    """Return the same as :func:`has_flattened_on_host`, inside of a program."""
    # 1. Gradients at both ends.
    flattener = _Flattener(first, jnp)

    def flat_gradient(point: Float[Array, " d"]) -> Float[Array, " d"]:
        return flattener.join(gradient(flattener.split(point)))

    points = jnp.stack([flattener.join(point) for point in (first, last)])
    gradients = lax.map(flat_gradient, points)
    path_length = path_length.astype(points.dtype)
    length = _difference_length(scaled_norm(points[1]), path_length, points.dtype)

    # 2. The curvature there, by power steps.
    def estimate_curvature(point: Float[Array, " d"], at_point: Float[Array, " d"]) -> Array:
        def power_step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            direction, largest = carry
            product = (flat_gradient(point + length * direction) - at_point) / length
            size = scaled_norm(product)
            next_direction = jnp.where(size > 0, product / jnp.where(size > 0, size, 1), direction)
            return next_direction, jnp.maximum(largest, size)

        start = _mixed_direction(at_point, jnp), jnp.zeros_like(length)
        return lax.fori_loop(0, POWER_STEPS, power_step, start)[1]

    start_curvature, end_curvature = lax.map(
        lambda pair: estimate_curvature(*pair), (points, gradients)
    )

    # 3. Has it fallen as the gradient has?
    start_norm, end_norm = (scaled_norm(part) for part in gradients)
    bound = MAX_CURVATURE_RATIO * start_curvature * (end_norm / start_norm)
    return (end_curvature <= bound) & ((bound > 0) | (end_norm == 0))


def _difference_length(point_norm: Any, path_length: Any, dtype: np.dtype) -> Any:
    """Return √ε times the size of the points, over which differences of gradients are taken."""
    limits = jnp.finfo(dtype)
    return (point_norm + path_length) * float(limits.eps) ** 0.5 + float(limits.tiny)


def _mixed_direction(gradient: FlatPoint, numpy: ModuleType) -> Any:
    """Return a unit vector, half along the gradient, half a wave with a part in any direction."""
    norm = host_norm(gradient) if numpy is np else scaled_norm(jnp.asarray(gradient))
    # cos(1 + j²) has no period: in practice it has a part along every eigenvector, without a key.
    wave = numpy.cos(1 + numpy.arange(gradient.size, dtype=gradient.dtype) ** 2)
    mixed = gradient / numpy.where(norm > 0, norm, 1) + wave / gradient.size**0.5
    return mixed / numpy.sqrt(numpy.sum(mixed**2))


class _Flattener:
    """The conversion of params to one vector, of NumPy or JAX, and back; in float32 at least.

    Attributes:
        numpy: the module of the vectors, ``numpy`` or ``jax.numpy``.
        structure: the pytree structure of the params.
        shapes: shapes of their leaves.
        dtypes: dtypes of their leaves.
        dtype: dtype of the vectors, the widest of them.
    """

    def __init__(self, params: Params, numpy: ModuleType) -> None:
        leaves, self.structure = jax.tree.flatten(params)
        self.numpy = numpy
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.dtype = max(self.dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
        if jnp.finfo(self.dtype).bits < 32:
            self.dtype = jnp.dtype("float32")

    def join(self, params: Params) -> Any:
        """Return the params as one vector."""
        leaves = [
            self.numpy.asarray(leaf).astype(self.dtype).reshape(-1)
            for leaf in jax.tree.leaves(params)
        ]
        return self.numpy.concatenate(leaves)

    def split(self, vector: FlatPoint) -> Params:
        """Return the params of a vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = [
            jnp.asarray(vector[end - size : end].reshape(shape).astype(dtype))
            for end, size, shape, dtype in zip(
                np.cumsum(sizes), sizes, self.shapes, self.dtypes, strict=True
            )
        ]
        return jax.tree.unflatten(self.structure, parts)
