"""Optimal transport between two samples on random lines."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._linalg.norms import binary_scale
from softntk.diffusion.metrics._intervals import Estimate, normal, safe_sqrt

_DIRECTIONS = 16  # projected and sorted at once


def coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coupled order statistics of n and of m points and their masses, exactly.

    Breakpoints are integers in units of 1/lcm(n, m).
    """
    unit = math.lcm(n, m)
    breaks = np.union1d(np.arange(n + 1) * (unit // n), np.arange(m + 1) * (unit // m))
    return breaks[:-1] // (unit // n), breaks[:-1] // (unit // m), np.diff(breaks) / unit


@partial(jax.jit, static_argnames=("projections", "order"))
def sliced(
    key: Array, x: Array, y: Array, plan: tuple[Array, Array, Array], projections: int, order: int
) -> Estimate:
    """Return what ``metrics.sliced_wasserstein`` says; the plan is that of :func:`coupling`."""
    of_x, of_y, mass = plan
    unit = binary_scale(jnp.stack([jnp.max(jnp.abs(x)), jnp.max(jnp.abs(y))]))[0]
    x, y = x / unit, y / unit
    # products of what is near to the origin keep more digits
    centre = jnp.mean(x, axis=0, keepdims=True)
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def along(direction: Array) -> Array:
        u, v = (
            jnp.sort(jnp.matmul(points - centre, direction, precision="highest"))
            for points in (x, y)
        )
        return jnp.sum(mass.astype(x.dtype) * jnp.abs(u[of_x] - v[of_y]) ** order)

    powers = lax.map(along, directions, batch_size=_DIRECTIONS)
    power = normal(jnp.mean(powers), jnp.var(powers, ddof=1) / projections, 0.0)
    distance = power if order == 1 else jax.tree.map(safe_sqrt, power)
    return jax.tree.map(lambda end: end * unit, distance)
