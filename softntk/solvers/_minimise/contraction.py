r"""The convergence of approximate Newton: promised by the theory, and measured on a path.

With r_t = ‖x_t − x*‖, l the smallest eigenvalue of ∇²L(x*), M a Lipschitz constant of the Hessian
and ε the distortion of the sample,

    r_{t+1} ≤ 2 (ε + r_t M/(l − r_t M)) r_t        while r_t M < l.

For ε > 0 and an ill-conditioned Hessian this is the papers' promise and not a fact. A (1 ± ε)
approximation bounds errors in the norm of ∇²L(x*) only; in the Euclidean norm there are steps that
contract less (softntk/theory/LEDGER.md).

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

# Radius of the ball for a path that stays at zero.
MIN_BALL_RADIUS = 1e-12
# An infinite M is replaced by this one, so that zero times M is zero.
LARGEST_LIPSCHITZ = 1e300


@record
class Contraction:
    """Factors by which the distance to the minimiser shrinks, the result of :func:`contraction`.

    Attributes:
        distance: r_t, [steps + 1]; the last is zero, x* being the last point.
        measured: r_{t+1}/r_t, [steps].
        promised: 2(ε + r_t M/(l − r_t M)) with the proved M, [steps]; +inf where r_t M ≥ l, because
            nothing is promised there.
        along_path: the same with the M of the path, max ‖∇²L(x_t) − ∇²L(x*)‖/r_t.
        strength: l.
        lipschitz: the proved M, on a ball around zero that contains the path.
        lipschitz_along_path: the M of the path.
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
    r"""Return the promised and the measured contraction at each step of a path.

    Use it to see whether a run converged as fast as the theory says; ``minimise(…, theory=True)``
    calls it for its own path.

    Args:
        problem: a problem of :func:`softntk.regression.problem`.
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
        >>> factors = sn.solvers.minimise(p, jnp.zeros(3), theory=True).stats["contraction"]
        >>> bool((factors.measured <= factors.along_path).all())
        True

    Source: see the module.
    """
    # 1. Check the arguments.
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be one of softntk.regression.problem, got {type(problem).__name__}."
        )
    as_floating("path", path)
    as_floating("distortion", distortion, empty=True)
    path = np.asarray(path, np.float64)
    distortion = np.asarray(distortion, np.float64)
    d = problem.shape[1]
    if path.ndim != 2 or path.shape[1] != d or distortion.shape != (len(path) - 1,):
        raise ValueError(
            f"path must be [T + 1, {d}] and distortion [T], "
            f"got shapes {path.shape} and {distortion.shape}."
        )
    if (distortion < 0).any():
        raise ValueError(f"distortion must not be negative, got {float(distortion.min())}.")

    # 2. The constants l and M, from the Hessians and from the proof.
    distance = host_norm(path - path[-1], axis=1)
    last_hessian = _hessian_at(problem, path[-1])
    strength = float(np.linalg.eigvalsh(last_hessian)[0])
    path_constant = _lipschitz_along_path(problem, path, distance, last_hessian)
    proved_constant = _proved_lipschitz(problem, path)

    # 3. Measured and promised factors.
    step_distance = distance[:-1]
    is_positive = step_distance > 0
    measured = np.where(is_positive, distance[1:] / np.where(is_positive, step_distance, 1), 0)
    return Contraction(
        distance=distance,
        measured=measured,
        promised=_promised_factor(distortion, step_distance, proved_constant, strength),
        along_path=_promised_factor(distortion, step_distance, path_constant, strength),
        strength=strength,
        lipschitz=proved_constant,
        lipschitz_along_path=path_constant,
    )


def _hessian_at(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Return the Hessian at a point as a NumPy matrix in float64."""
    operator = problem.hessian(jnp.asarray(x, problem.dtype))
    return np.asarray(operator.as_matrix(), np.float64)


def _lipschitz_along_path(
    problem: Problem, path: np.ndarray, distance: np.ndarray, last_hessian: np.ndarray
) -> float:
    """Return max ‖∇²L(x_t) − ∇²L(x*)‖/r_t over the points of the path that are not x*."""
    # x* itself has no quotient.
    is_positive = distance > 0
    slopes = [
        np.linalg.norm(_hessian_at(problem, x) - last_hessian, 2) / r
        for x, r in zip(path[is_positive], distance[is_positive], strict=True)
    ]
    return float(max(slopes, default=0.0))


def _proved_lipschitz(problem: Problem, path: np.ndarray) -> float:
    """Return the proved M on a ball that contains the path; +inf where no bound is known."""
    radius = max(float(np.max(host_norm(path, axis=1))), MIN_BALL_RADIUS)
    try:
        return float(lipschitz(problem, radius).hessian.ours)
    except ValueError:  # an activation without bounds
        return float("inf")


def _promised_factor(
    distortion: np.ndarray, distance: np.ndarray, M: float, strength: float
) -> np.ndarray:
    """Return 2(ε + rM/(l − rM)) for each step, +inf where rM ≥ l."""
    curvature_change = np.where(distance > 0, distance * min(M, LARGEST_LIPSCHITZ), 0)
    has_promise = curvature_change < strength
    denominator = np.where(has_promise, strength - curvature_change, 1)
    return np.where(has_promise, 2 * (distortion + curvature_change / denominator), np.inf)


def with_contraction(problem: Problem, solution: Solution) -> Solution:
    """Return the solution with ``stats["contraction"]``."""
    result = contraction(problem, solution.stats["path"], solution.stats["distortion"])
    return dataclasses.replace(solution, stats={**solution.stats, "contraction": result})
