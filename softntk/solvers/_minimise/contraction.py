r"""Theory beside practice: how fast approximate Newton should have converged, and how fast it did.

With r_t = ‖x_t − x*‖, l the smallest eigenvalue of ∇²L(x*), M a Lipschitz constant of the Hessian
and ε that of the sample,

    r_{t+1} ≤ 2 (ε + r_t M/(l − r_t M)) r_t        while r_t M < l.

For ε > 0 and an ill-conditioned Hessian that is the papers' promise and not a fact: a (1 ± ε)
approximation says something in the norm of ∇²L(x*) only, and in the Euclidean one steps are seen
that contract less (softntk/theory/LEDGER.md).

Source: arXiv 2309.13482 and 2304.10411, the approximate Newton method;
MATHEMATICS.md#approximate-newton.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation import as_floating
from softntk._linalg.norms import host_norm
from softntk.regression import Problem, lipschitz
from softntk.solution import Solution


@record
class Contraction:
    """Factors from one step to the next, as :func:`contraction` finds them.

    Attributes:
        distance: r_t, [steps + 1]; the last is zero, x* being the last point.
        measured: r_{t+1}/r_t, [steps].
        promised: 2(ε + r_t M/(l − r_t M)) with the proved M, [steps]; +inf where r_t M ≥ l: nothing
            is promised there.
        along_path: the same with the M that was seen on the path, max ‖∇²L(x_t) − ∇²L(x*)‖/r_t.
        strength: l.
        lipschitz: the proved M, on a ball around zero that holds the path.
        lipschitz_along_path: the M that was seen.
    """

    distance: Float[Array | np.ndarray, " t"]
    measured: Float[Array | np.ndarray, " s"]
    promised: Float[Array | np.ndarray, " s"]
    along_path: Float[Array | np.ndarray, " s"]
    strength: float
    lipschitz: float
    lipschitz_along_path: float


def contraction(
    problem: Problem,
    path: Float[Array | np.ndarray, "t d"],
    distortion: Float[Array | np.ndarray, " s"],
) -> Contraction:
    r"""The factor that the papers promise for the measured ε and r, beside the measured one.

    Args:
        problem: of :func:`softntk.regression._problem`.
        path: x_0 … x_T, [T + 1, d]; x_T counts as the minimiser.
        distortion: ε of each step, [T]; zeros for exact Hessians.

    Returns:
        A :class:`Contraction`.

    Raises:
        ValueError: shapes that do not fit, NaN, negative distortions, another problem.

    Example:
        >>> import jax, jax.numpy as jnp, softntk as sn
        >>> A = jax.random.normal(jax.random.key(0), (200, 3)) / 4
        >>> p = sn.regression.softmax(A, jax.nn.softmax(A @ jnp.ones(3)), weights=0.1)
        >>> found = sn.solvers.minimise(p, jnp.zeros(3), theory=True).stats["contraction"]
        >>> bool((found.measured <= found.along_path).all())
        True

    Source: see the module.
    """
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be one of softntk.regression._problem, got {type(problem).__name__}."
        )
    as_floating("path", path)
    as_floating("distortion", distortion, empty=True)
    path = np.asarray(path, np.float64)
    distortion = np.asarray(distortion, np.float64)
    d = problem.shape[1]
    if path.ndim != 2 or path.shape[1] != d or distortion.shape != (len(path) - 1,):
        raise ValueError(
            f"path must be [T + 1, {d}] and distortion [T], got shapes {path.shape} and {distortion.shape}."
        )
    if (distortion < 0).any():
        raise ValueError(f"distortion must not be negative, got {float(distortion.min())}.")
    hessian = lambda x: np.asarray(
        problem.hessian(jnp.asarray(x, problem.dtype)).as_matrix(), np.float64
    )
    last = hessian(path[-1])
    strength = float(np.linalg.eigvalsh(last)[0])
    distance = host_norm(path - path[-1], axis=1)
    moved = distance > 0
    changes = [
        np.linalg.norm(hessian(x) - last, 2) / r
        for x, r in zip(path[moved], distance[moved], strict=True)
    ]
    seen = float(max(changes, default=0.0))
    try:
        proved = float(
            lipschitz(problem, max(float(np.max(host_norm(path, axis=1))), 1e-12)).hessian.ours
        )
    except ValueError:  # an activation without bounds
        proved = float("inf")
    before = distance[:-1]
    safe = np.where(before > 0, before, 1)
    measured = np.where(before > 0, distance[1:] / safe, 0)
    return Contraction(
        distance=distance,
        measured=measured,
        promised=_promised(distortion, before, proved, strength),
        along_path=_promised(distortion, before, seen, strength),
        strength=strength,
        lipschitz=proved,
        lipschitz_along_path=seen,
    )


def _promised(
    distortion: np.ndarray, distance: np.ndarray, M: float, strength: float
) -> np.ndarray:
    bent = np.where(distance > 0, distance * min(M, 1e300), 0)
    inside = bent < strength
    return np.where(inside, 2 * (distortion + bent / np.where(inside, strength - bent, 1)), np.inf)


def with_contraction(problem: Problem, solution: Solution) -> Solution:
    """The solution with ``stats["contraction"]``."""
    found = contraction(problem, solution.stats["path"], solution.stats["distortion"])
    return dataclasses.replace(solution, stats={**solution.stats, "contraction": found})
