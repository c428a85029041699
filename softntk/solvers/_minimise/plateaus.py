"""Whether the loss flattens out where a run has come to, so that a small gradient does not mean a
minimum near by.

Towards a minimum the gradient g vanishes and the curvature ‖∇²L‖ stays, or vanishes more slowly:
for |x|^p like ‖g‖ to the power (p − 2)/(p − 1). Where a softmax saturates the loss falls to its
level exponentially, and both vanish alike.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._linalg.norms import host_norm, scaled_norm

Params = Any

ALIKE = 3.0
"""By how much the curvature may have fallen less than the gradient and still count as vanished with
it.
"""
POWER_STEPS = 3
"""Products with the Hessian in which its norm is estimated."""


def has_flattened_on_host(
    gradient: Callable[[Params], Params], first: Params, last: Params, path_length: float
) -> bool:
    """Return whether the curvature has vanished with the gradient between two points whose numbers
    are known.

    The Hessian is met in differences of gradients, so that nothing more has to be compiled.

    Args:
        gradient: of the loss.
        first: the start of a run.
        last: where its gradient was small enough.
        path_length: of the run.
    """
    flat = _Flat(first, np)

    def slope(point: np.ndarray) -> np.ndarray:
        return flat.join(gradient(flat.split(point)))

    points = [flat.join(point) for point in (first, last)]
    slopes = [slope(point) for point in points]
    (begin, end), (steep, small) = points, map(host_norm, slopes)
    length = _difference_length(host_norm(end), path_length, end.dtype)
    direction = _mixed_direction(slopes[0], np)
    with np.errstate(all="ignore"):
        product = (slope(begin + length * direction) - slopes[0]) / length
        bound = ALIKE * host_norm(product) * (small / steep)
        direction = _mixed_direction(slopes[1], np)
        for _ in range(POWER_STEPS):
            product = (slope(end + length * direction) - slopes[1]) / length
            size = host_norm(product)
            if not size <= bound:
                return False
            direction = product / size if size > 0 else direction
    return bool(bound > 0 or small == 0)


def has_flattened(
    gradient: Callable[[Params], Params], first: Params, last: Params, path_length: Array
) -> Array:
    """Return what :func:`has_flattened_on_host` does, inside of a program."""
    flat = _Flat(first, jnp)

    def slope(point: Array) -> Array:
        return flat.join(gradient(flat.split(point)))

    points = jnp.stack([flat.join(point) for point in (first, last)])
    slopes = lax.map(slope, points)
    length = _difference_length(
        scaled_norm(points[1]), path_length.astype(points.dtype), points.dtype
    )

    def estimate(point: Array, at_point: Array) -> Array:
        def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            direction, largest = carry
            product = (slope(point + length * direction) - at_point) / length
            size = scaled_norm(product)
            turned = jnp.where(size > 0, product / jnp.where(size > 0, size, 1), direction)
            return turned, jnp.maximum(largest, size)

        start = _mixed_direction(at_point, jnp), jnp.zeros_like(length)
        return lax.fori_loop(0, POWER_STEPS, step, start)[1]

    begin, end = lax.map(lambda both: estimate(*both), (points, slopes))
    steep, small = (scaled_norm(part) for part in slopes)
    bound = ALIKE * begin * (small / steep)
    return (end <= bound) & ((bound > 0) | (small == 0))


def _difference_length(size: Any, path_length: Any, dtype: np.dtype) -> Any:
    """Return the length over which differences of gradients are taken."""
    limits = jnp.finfo(dtype)
    return (size + path_length) * float(limits.eps) ** 0.5 + float(limits.tiny)


def _mixed_direction(slope: Any, numpy: Any) -> Any:
    """Return a unit vector with a part along the gradient and parts along whatever else there is."""
    norm = host_norm(slope) if numpy is np else scaled_norm(slope)
    wave = numpy.cos(1 + numpy.arange(slope.size, dtype=slope.dtype) ** 2)
    mixed = slope / numpy.where(norm > 0, norm, 1) + wave / slope.size**0.5
    return mixed / numpy.sqrt(numpy.sum(mixed**2))


class _Flat:
    """Params as one vector, of NumPy or JAX, and back."""

    def __init__(self, params: Params, numpy: Any) -> None:
        leaves, self.structure = jax.tree.flatten(params)
        self.numpy = numpy
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.dtype = max(self.dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
        if jnp.finfo(self.dtype).bits < 32:
            self.dtype = jnp.dtype("float32")

    def join(self, params: Params) -> Any:
        """Return one vector."""
        leaves = [
            self.numpy.asarray(leaf).astype(self.dtype).reshape(-1)
            for leaf in jax.tree.leaves(params)
        ]
        return self.numpy.concatenate(leaves)

    def split(self, vector: Any) -> Params:
        """Return the params of a vector."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = [
            jnp.asarray(vector[end - int(np.prod(shape)) : end].reshape(shape).astype(dtype))
            for end, shape, dtype in zip(ends, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, parts)
