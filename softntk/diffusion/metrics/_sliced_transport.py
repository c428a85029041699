"""Optimal transport between two samples on random lines."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._linalg.angles import safe_sqrt
from softntk._linalg.intervals import Estimate, normal
from softntk._linalg.norms import binary_scale

DIRECTION_BATCH_SIZE = 16
"""Number of directions that are projected on and sorted at once."""


def coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coupled order statistics of n and of m points and their masses, exactly.

    Breakpoints are integers in units of 1/lcm(n, m).
    """
    denominator = math.lcm(n, m)
    x_step = denominator // n
    y_step = denominator // m
    breakpoints = np.union1d(np.arange(n + 1) * x_step, np.arange(m + 1) * y_step)
    # Between two breakpoints both quantile functions are constant.
    left_ends = breakpoints[:-1]
    return left_ends // x_step, left_ends // y_step, np.diff(breakpoints) / denominator


@partial(jax.jit, static_argnames=("projections", "order"))
def sliced(
    key: Array, x: Array, y: Array, plan: tuple[Array, Array, Array], projections: int, order: int
) -> Estimate:
    """Return SW_p with its interval; the plan is that of :func:`coupling`.

    See ``metrics.sliced_wasserstein``.
    """
    # 1. Scale both samples by a power of two, so that no power of a distance overflows.
    x_indices, y_indices, masses = plan
    unit = binary_scale(jnp.stack([jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))]))[0]
    x = x / unit
    y = y / unit
    # 2. Draw the directions θ. Projections of centred points keep more digits.
    centre = jnp.mean(x, axis=0, keepdims=True)
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    # 3. Solve the transport on each line: W_p^p = Σ mass |u − v|^p over coupled order statistics.
    def transport_cost(direction: Array) -> Array:
        """Return W_p^p of the projections θ·x and θ·y."""
        sorted_x = jnp.sort(jnp.matmul(x - centre, direction, precision="highest"))
        sorted_y = jnp.sort(jnp.matmul(y - centre, direction, precision="highest"))
        distances = jnp.abs(sorted_x[x_indices] - sorted_y[y_indices])
        return jnp.sum(masses.astype(x.dtype) * distances**order)

    costs = lax.map(transport_cost, directions, batch_size=DIRECTION_BATCH_SIZE)
    # 4. Average over the directions; value and ends take the p-th root, and the unit again.
    mean_cost = normal(jnp.mean(costs), jnp.var(costs, ddof=1) / projections, 0.0)
    distance = mean_cost if order == 1 else jax.tree.map(safe_sqrt, mean_cost)
    return jax.tree.map(lambda end: end * unit, distance)
