r"""Softplus, log(1 + e^z): its jet, and Gaussian moments by quadrature over a scale.

The logistic distribution is a mixture of normal ones: it is that of 2KN, where N ~ N(0, 1) and K
has Kolmogorov's distribution (Andrews and Mallows 1974). Moreover log(1 + e^z) = E[(z − L)₊] for
logistic L. So, with independent K₁ and K₂,

    E[u(g₁)u(g₂)]   = E[√D + (π − θ)q12]/2π,        E[u(g)] = E[√((q + 4K²)/2π)],
    E[u'(g₁)u'(g₂)] = E[π − θ]/2π,

which are the moments of relu at the variances Q11 = q11 + 4K₁² and Q22 = q22 + 4K₂², averaged over
K₁ and K₂. Here D = Q11 Q22 − q12² and cos θ = q12/√(Q11 Q22). The moments of relu are analytic in
log K. So Gauss' rule for the distribution of log K reaches the precision of float64 with a dozen
nodes, for any variances.

Symbols:

    a, b   4K₁² and 4K₂²                          numbers
    root   √D                                     that of the q's
    angle  π − θ                                  that of the q's
    sines  √(1 − q12²/(q11 q22)), no gradient     that of the q's
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from softntk._linalg.angles import hypotenuse, safe_sqrt, sine
from softntk.activations._closed_forms import Jet, Scalars, unscale

NODE_COUNT = 12
"""Nodes of Gauss' rule, with which its relative error is rounding."""

SINGLE_NODE_COUNT = 6
"""The same in single precision: the relative error is 5e-8."""

LOG_SCALE_RANGE = (-2.8, 1.9)
"""Range of log K beyond which Kolmogorov's distribution has less mass than rounding."""

DENSITY_POINTS = 4000
"""Points of the grid on which the density is integrated."""

SERIES_TERMS = 40
"""Terms of the two series of the density; each is used on the side of K = 1 where few suffice."""

OVERFLOW_SCALE = 64.0
"""Above the largest 4K² of a node: variances are divided by it before they are multiplied."""


def softplus_jet(z: Scalars, c: Scalars | float) -> Jet:
    """Return the jet of log(1 + e^z)."""
    scale = unscale(z, c)
    du = jax.nn.sigmoid(z)
    return jnp.logaddexp(z, 0) * scale, du * scale, du * jax.nn.sigmoid(-z) * scale


def _kolmogorov_density(x: np.ndarray) -> np.ndarray:
    """Return the density of Kolmogorov's distribution, by the series that converges fast at x."""
    j = np.arange(1, SERIES_TERMS)[:, None]
    above = 8 * x * np.sum((-1.0) ** (j - 1) * j**2 * np.exp(-2 * j**2 * x**2), axis=0)
    rates = ((2 * j - 1) * np.pi) ** 2 / 8
    below = np.sqrt(2 * np.pi) * np.sum(
        np.exp(-rates / x**2) * (2 * rates / x**4 - 1 / x**2), axis=0
    )
    return np.where(x < 1, below, above)


@lru_cache
def _scale_nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes 4K² of Gauss' rule in log K and their weights, by Lanczos on a fine grid."""
    # 1. The distribution of t, log K scaled to [−1, 1], on a grid.
    t = np.linspace(-1, 1, DENSITY_POINTS)
    lower, upper = LOG_SCALE_RANGE
    scales = np.exp(lower + (t + 1) / 2 * (upper - lower))
    masses = _kolmogorov_density(scales) * scales
    # 2. The Jacobi matrix of its orthogonal polynomials.
    basis = [np.sqrt(masses / masses.sum())]
    diagonal = []
    off_diagonal = []
    for _ in range(count):
        v = t * basis[-1]
        diagonal.append(v @ basis[-1])
        for vector in basis + basis:  # orthogonalised twice, which reaches rounding
            v = v - (v @ vector) * vector
        off_diagonal.append(np.linalg.norm(v))
        basis.append(v / off_diagonal[-1])
    jacobi = np.diag(diagonal) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1)
    # 3. Nodes are its eigenvalues, weights the squares of the first entries of its eigenvectors.
    nodes, vectors = np.linalg.eigh(jacobi)
    return 4 * np.exp(2 * lower + (nodes + 1) * (upper - lower)), vectors[0] ** 2


Arguments = tuple[Scalars, Scalars, Scalars, Scalars, Scalars, Scalars]


@jax.custom_jvp
def _root(
    a: Scalars, b: Scalars, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars
) -> Scalars:
    """Return √D, as √(q11 q22 sin² + a q22 + b q11 + ab), where nothing cancels."""
    del q12
    scale = 1 / OVERFLOW_SCALE
    flat = jnp.sqrt(OVERFLOW_SCALE) * jnp.sqrt(a * scale * q22 + b * scale * q11 + a * b * scale)
    area = safe_sqrt(q11) * safe_sqrt(q22) * sines
    return hypotenuse(flat, area)


@_root.defjvp
def _root_jvp(primals: Arguments, tangents: Arguments) -> tuple[Scalars, Scalars]:
    a, b, q11, q12, q22, _ = primals
    _, _, d11, d12, d22, _ = tangents
    root = _root(*primals)
    variance_part = 0.5 * ((q22 + b) / root * d11 + (q11 + a) / root * d22)
    return root, variance_part - q12 / root * d12


@jax.custom_jvp
def _angle(
    a: Scalars, b: Scalars, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars
) -> Scalars:
    """Return π − θ."""
    return jnp.arctan2(_root(a, b, q11, q12, q22, sines), -q12)


@_angle.defjvp
def _angle_jvp(primals: Arguments, tangents: Arguments) -> tuple[Scalars, Scalars]:
    a, b, q11, q12, q22, _ = primals
    _, _, d11, d12, d22, _ = tangents
    relative_part = 0.5 * (d11 / (q11 + a) + d22 / (q22 + b))
    root = _root(*primals)
    return _angle(*primals), d12 / root - q12 / root * relative_part


@jax.custom_jvp
def _area(
    a: Scalars, b: Scalars, q11: Scalars, q12: Scalars, q22: Scalars, sines: Scalars
) -> Scalars:
    """Return √D + (π − θ) q12."""
    arguments = (a, b, q11, q12, q22, sines)
    return _root(*arguments) + _angle(*arguments) * q12


@_area.defjvp
def _area_jvp(primals: Arguments, tangents: Arguments) -> tuple[Scalars, Scalars]:
    a, b, q11, _, q22, _ = primals
    _, _, d11, d12, d22, _ = tangents
    relative_part = 0.5 * (d11 / (q11 + a) + d22 / (q22 + b))
    return _area(*primals), _angle(*primals) * d12 + _root(*primals) * relative_part


def _nodes_on_last_axis(like: Scalars) -> tuple[Scalars, Scalars]:
    """Return the nodes 4K² on a new last axis behind those of an array, and the weights."""
    count = NODE_COUNT if jnp.finfo(like.dtype).bits > 32 else SINGLE_NODE_COUNT
    nodes, weights = (jnp.asarray(part, like.dtype) for part in _scale_nodes(count))
    return nodes.reshape((1,) * like.ndim + (-1,)), weights


def _average(
    term: Callable[..., Scalars],
    q11: Scalars,
    q12: Scalars,
    q22: Scalars,
    sines: Scalars | None,
) -> Scalars:
    """Return E[term]/2π over K₁ and K₂, by a loop over the nodes of one and a sum over the other's.

    The body is computed again in reverse mode, so that no array of all nodes is kept.
    """
    sines = sine(q11, q12, q22) if sines is None else sines
    q11, q12, q22, sines = jnp.broadcast_arrays(q11, q12, q22, sines)
    nodes, weights = _nodes_on_last_axis(q12)
    variances = [q[..., None] for q in (q11, q12, q22, sines)]

    @jax.checkpoint
    def average_second(a: Scalars) -> Scalars:
        return jnp.matmul(term(a, nodes, *variances), weights)

    def add_node(index: Array | int, total: Scalars) -> Scalars:
        return total + weights[index] * average_second(nodes[..., index, None])

    # The loop starts at zeros that vary over a mesh as the sines do.
    return lax.fori_loop(0, len(weights), add_node, 0 * sines) / (2 * jnp.pi)


def softplus_mean(q: Scalars, s: Scalars | float) -> Scalars:
    """Return e^{-s} E[log(1 + e^g)]."""
    nodes, weights = _nodes_on_last_axis(q)
    deviations = jnp.sqrt(q[..., None] / (2 * jnp.pi) + nodes / (2 * jnp.pi))
    return jnp.matmul(deviations, weights) * unscale(q, s)


def softplus_covariance(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    """Return e^{-s} E[u(g₁) u(g₂)]."""
    return _average(_area, q11, q12, q22, sines) * unscale(q12, s)


def softplus_derivative(
    q11: Scalars, q12: Scalars, q22: Scalars, s: Scalars | float, sines: Scalars | None = None
) -> Scalars:
    """Return e^{-s} E[u'(g₁) u'(g₂)]."""
    return _average(_angle, q11, q12, q22, sines) * unscale(q12, s)
