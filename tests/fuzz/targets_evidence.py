"""Targets: evidences, classification by Gaussian processes, hyperparameters."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import scipy.optimize
import scipy.special

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare


@target("ntk.gp_log_evidence", may_fail=True, gram="gram", y="array", noise="nonnegative")
def gp_log_evidence(draw: Draw) -> Call:
    matrix = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e12))
    largest = np.abs(matrix).max() or 1.0
    noise = float(draw.rounded(np.array(draw.pick(0.1, 10.0, 1e-2) * largest)))
    y = draw.rounded(draw.normal(draw.n, draw.k) * largest**0.5)
    arguments = {"gram": draw.cast(matrix), "y": draw.cast(y), "noise": noise}

    def check(result: Any) -> str | None:
        with mpmath.workdps(60):
            covariance = mpmath.matrix((matrix + noise * np.eye(draw.n)).tolist())
            right = mpmath.matrix(y.tolist())
            quadratic = (right.T * covariance**-1 * right)[0, 0]
            for j in range(1, draw.k):
                quadratic += (right[:, j].T * covariance**-1 * right[:, j])[0, 0]
            log_det = mpmath.log(mpmath.det(covariance))
            wanted = -(quadratic + draw.k * (log_det + draw.n * mpmath.log(2 * mpmath.pi))) / 2
            size = float(abs(quadratic) + draw.k * draw.n * (1 + abs(mpmath.log(noise))))
        condition = (largest * draw.n + noise) / noise
        wanted = np.longdouble(mpmath.nstr(wanted, 25))
        return compare(result, wanted, 64 * draw.eps * condition, draw, size=size)

    return Call(arguments, check)


@target("ntk.gp_classification", may_fail=True, gram="gram", y="integers0", classes="count?")
def gp_classification(draw: Draw) -> Call:
    matrix = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e3))
    labels = np.arange(draw.n) % 3
    arguments = {"gram": draw.cast(matrix), "y": labels, "classes": 3}

    # At the mode F̂ = K(Y − softmax(F̂)).
    def check(posterior: Any) -> str | None:
        mode = np.asarray(posterior.mode, float)
        residual = np.eye(3)[labels] - scipy.special.softmax(mode, axis=1)
        size = float(np.abs(matrix).sum(axis=1).max())
        room = 64 * draw.eps * (1 + size)
        return compare(mode, matrix @ residual, room, draw, size=size + 1)

    return Call(arguments, check)


def _evidence(h: Any, gram: Any, y: Any) -> Any:
    """The evidence of a noise, the first number of h."""
    noise = jax.tree.leaves(h)[0].reshape(-1)[0]
    return sn.ntk.gp_log_evidence(gram, y, noise=noise)


@target(
    "solvers.fit_hyperparameters",
    slow=True,
    may_fail=True,
    log_evidence="callable",
    start="tree",
    rtol="fraction?",
    max_steps="count0",
    throw="flag",
    progress="flag",
)
def fit_hyperparameters(draw: Draw) -> Call:
    size = draw.n + 2
    matrix = draw.rounded(np.diag(np.linspace(0.0, 1.0, size)))
    y = draw.rounded(draw.normal(size, 1) * (0.5 + np.linspace(0.0, 1.0, size)[:, None]))
    arguments = {
        "log_evidence": _evidence,
        "start": draw.cast(np.array(1.0)),
        "args": (draw.cast(matrix), draw.cast(y)),
        "throw": False,
    }

    def loss(log_noise: float) -> float:
        variances = np.diag(matrix) + np.exp(log_noise)
        return float(np.sum(y[:, 0] ** 2 / variances + np.log(2 * np.pi * variances)) / 2)

    def check(solution: Any) -> str | None:
        if int(solution.result) != sn.solution.Result.SUCCESSFUL:
            return never_nan(np.asarray(solution.value))
        log_noise = float(jnp.log(solution.value))
        here = loss(log_noise)
        nearby: Any = scipy.optimize.minimize_scalar(
            loss, bounds=(log_noise - 0.3, log_noise + 0.3), method="bounded"
        )
        return None if here <= nearby.fun + 1e-4 else f"{here} is above {nearby.fun} nearby"

    return Call(arguments, check)
