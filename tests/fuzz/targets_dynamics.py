"""Targets: training dynamics, regression with a kernel, solves."""

from typing import Any

import jax.numpy as jnp
import mpmath
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, long
from fuzz.targets_activations import network
from fuzz.targets_ntk import kernel_operator_of
from fuzz.targets_spectrum import eigenvalues_of

DYNAMICS: dict[str, Any] = {"gram": "gram", "y": "array", "f0": "array?", "rtol": "positive?"}
TESTS: dict[str, Any] = {"cross": "array?", "f0_test": "array?"}


def _spectrum(matrix: np.ndarray) -> tuple[Any, Any]:
    values, vectors = mpmath.eigsy(mpmath.matrix(matrix.tolist()))
    return values, vectors


def evolve(matrix: np.ndarray, residual: np.ndarray, function: Any) -> np.ndarray:
    """Return Q f(λ) Qᵀ r in forty digits, r [n, k]."""
    with mpmath.workdps(40):
        values, vectors = _spectrum(matrix)
        n = len(matrix)
        right = vectors.T * mpmath.matrix(residual.tolist())
        for i in range(n):
            factor = function(values[i])
            for j in range(residual.shape[1]):
                right[i, j] *= factor
        result = vectors * right
        return np.array(
            [
                [np.longdouble(mpmath.nstr(result[i, j], 25)) for j in range(residual.shape[1])]
                for i in range(n)
            ]
        )


def _targets(draw: Draw, n: int | None = None) -> np.ndarray:
    size = 0.0 if draw.chance(0.1) else draw.scale(18)
    return draw.rounded(draw.normal(draw.n if n is None else n, draw.k) * size)


def _rate(draw: Draw, matrix: np.ndarray) -> float:
    top = float(eigenvalues_of(matrix).max())
    share = 0.5 if draw.mild else draw.pick(0.5, 1.0, 1.9, 1e-3, 2.5)
    rate = share / top if top > 0 else 1.0
    return float(draw.rounded(np.array(rate)))


def _problem(draw: Draw) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    matrix = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1.0, 1e-12, 1e12))
    steps = np.array([0, 1, 7]) if draw.mild or draw.random() < 0.7 else np.array([1000, 3, 10**6])
    return matrix, _targets(draw), _rate(draw, matrix), steps


def _sensitivity(matrix: np.ndarray, rate: float, steps: np.ndarray) -> np.ndarray:
    """Return how much rounding of λ is amplified by a power, for each number of steps."""
    return 1 + np.minimum(steps.astype(float), 1e7)


def _dynamics_check(
    draw: Draw, matrix: np.ndarray, y: np.ndarray, factors: list[Any], growth: np.ndarray
) -> Any:
    def check(result: Any) -> str | None:
        for i, function in enumerate(factors):
            want = long(y) + evolve(matrix, -y, function)
            if growth[i] > 1e3 or np.abs(want).max() > 1e3 * max(np.abs(y).max(), draw.tiny):
                message = never_nan(result[i])
            else:
                message = compare(
                    result[i], want, 64 * draw.eps * growth[i], draw, size=np.abs(y).max()
                )
            if message:
                return message
        return None

    return check


@target(
    "ntk.predict_gd",
    **DYNAMICS,
    **TESTS,
    loss="choice",
    momentum="momentum?",
    learning_rate="positive",
    steps="integers0",
)
def predict_gd(draw: Draw) -> Call:
    matrix, y, rate, steps = _problem(draw)
    arguments = {
        "gram": draw.cast(matrix),
        "y": draw.cast(y),
        "learning_rate": rate,
        "steps": jnp.asarray(steps),
    }
    if draw.mild:
        arguments |= {
            "f0": None,
            "cross": jnp.asarray(matrix, draw.dtype),
            "f0_test": jnp.zeros(y.shape, draw.dtype),
        }

    def power(tau: int) -> Any:
        return lambda value: (1 - mpmath.mpf(rate) * value) ** int(tau)

    values = eigenvalues_of(matrix)
    slow = rate * values.max() < 1.99
    growth = 1 + np.minimum(steps, 20.0) if slow else _sensitivity(matrix, rate, steps)
    # in many steps the rounding of what should be zero shows
    if values.min() < 1e3 * draw.eps * values.max():
        growth = growth + rate * float(values.max()) * steps
    check = _dynamics_check(draw, matrix, y, [power(tau) for tau in steps], growth)
    return Call(arguments, check)


@target("ntk.predict_flow", **DYNAMICS, **TESTS, loss="choice", times="times")
def predict_flow(draw: Draw) -> Call:
    matrix, y, rate, _ = _problem(draw)
    times = draw.rounded(rate * np.array([0.0, 1.0, 30.0]))
    arguments = {"gram": draw.cast(matrix), "y": draw.cast(y), "times": draw.cast(times)}
    if draw.mild:
        arguments |= {
            "f0": None,
            "cross": jnp.asarray(matrix, draw.dtype),
            "f0_test": jnp.zeros(y.shape, draw.dtype),
        }

    def decay(time: float) -> Any:
        return lambda value: mpmath.exp(-mpmath.mpf(time) * value)

    return Call(
        arguments,
        _dynamics_check(draw, matrix, y, [decay(time) for time in times], 1 + np.array([0, 3, 90])),
    )


@target(
    "ntk.predict_sgd",
    slow=True,
    gram="gram",
    y="array",
    f0="array?",
    **TESTS,
    loss="choice",
    momentum="momentum?",
    learning_rate="positive",
    steps="integers0",
    batch_size="count",
    key="key",
    runs="count",
)
def predict_sgd(draw: Draw) -> Call:
    matrix, y, rate, _ = _problem(draw)
    steps = np.array([0, 1, 7])
    arguments = {
        "gram": draw.cast(matrix),
        "y": draw.cast(y),
        "learning_rate": rate,
        "steps": jnp.asarray(steps),
        "batch_size": len(matrix),
        "key": draw.key(),
        "runs": 2,
    }

    # With all points in each batch every run is descent.
    def check(result: Any) -> str | None:
        def power(tau: int) -> Any:
            return lambda value: (1 - mpmath.mpf(rate) * value) ** int(tau)

        growth = 8 * (1 + steps.astype(float))
        is_slow = rate * eigenvalues_of(matrix).max() < 1.99
        growth = growth if is_slow else _sensitivity(matrix, rate, steps) * 1e4
        factors = [power(tau) for tau in steps]
        return _dynamics_check(draw, matrix, y, factors, growth)(result.mean)

    return Call(arguments, check)


@target("ntk.gd_coefficients", **DYNAMICS, learning_rate="positive", steps="integers0")
def gd_coefficients(draw: Draw) -> Call:
    matrix, y, rate, _ = _problem(draw)
    steps = np.array([0, 1, 7])
    arguments = {
        "gram": draw.cast(matrix),
        "y": draw.cast(y),
        "learning_rate": rate,
        "steps": jnp.asarray(steps),
    }

    def check(result: Any) -> str | None:
        messages = []
        for i, tau in enumerate(steps):
            want = evolve(
                matrix,
                y,
                lambda value, tau=tau: (
                    rate * sum((1 - mpmath.mpf(rate) * value) ** s for s in range(int(tau)))
                ),
            )
            messages.append(
                compare(
                    result[i],
                    want,
                    512 * draw.eps,
                    draw,
                    size=max(np.abs(want).max(), rate * np.abs(y).max()),
                )
            )
        return first_message(*messages)

    return Call(arguments, check)


@target(
    "ntk.predict_ensemble",
    gram="gram",
    nngp="gram",
    y="array",
    times="times",
    learning_rate="positive?",
    cross="array?",
    nngp_cross="array?",
    prior="nonnegatives?",
)
def predict_ensemble(draw: Draw) -> Call:
    matrix, y, rate, _ = _problem(draw)
    nngp = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e12))
    times = draw.rounded(rate * np.array([0.0, 1.0, 30.0]))
    arguments = {
        "gram": draw.cast(matrix),
        "nngp": draw.cast(nngp),
        "y": draw.cast(y),
        "times": draw.cast(times),
    }
    # The training points as test points have the same predictions.
    if draw.mild:
        prior = jnp.asarray(np.diag(nngp), draw.dtype)
        arguments |= {"cross": arguments["gram"], "nngp_cross": arguments["nngp"], "prior": prior}
    factors = [lambda value, time=time: mpmath.exp(-mpmath.mpf(time) * value) for time in times]
    mean_check = _dynamics_check(draw, matrix, y, factors, 1 + np.array([0, 3, 90]))

    def check(result: Any) -> str | None:
        messages = [mean_check(result.mean)]
        for i, function in enumerate(factors):
            decay = evolve(matrix, np.eye(len(matrix)), function)
            want = np.einsum("ij,jk,ik->i", decay, long(nngp), decay)
            size = float(np.abs(nngp).max())
            rtol = 64 * (1 + (0, 3, 90)[i]) * draw.eps
            messages.append(
                compare(result.variance[i], want, rtol, draw, size=size, what="variance")
            )
        return first_message(*messages)

    return Call(arguments, check)


# --- regression
# -----------------------------------------------------------------------------------------------------


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    with mpmath.workdps(60):
        inverse = mpmath.matrix(matrix.tolist()) ** -1
        result = inverse * mpmath.matrix(right.tolist())
        rows, columns = right.shape
        return np.array(
            [
                [np.longdouble(mpmath.nstr(result[i, j], 25)) for j in range(columns)]
                for i in range(rows)
            ]
        )


def _regression(draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]:
    matrix, y = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-12, 1e12)), _targets(draw)
    top = np.abs(matrix).max() or 1.0
    ridge = float(draw.rounded(np.array(draw.pick(0.1, 10.0, 1e-3) * top)))
    cross = draw.rounded(draw.normal(3, draw.n) * top)
    return matrix, y, cross, ridge, True


@target(
    "ntk.kernel_regression",
    may_fail=True,
    gram="gram",
    y="array",
    ridge="nonnegative",
    cross="array",
    f0="array?",
    f0_test="array?",
    rtol="positive?",
    progress="flag",
)
def kernel_regression(draw: Draw) -> Call:
    matrix, y, cross, ridge, _ = _regression(draw)
    arguments = {
        "gram": draw.cast(matrix),
        "y": draw.cast(y),
        "ridge": ridge,
        "cross": draw.cast(cross),
    }

    def check(result: Any) -> str | None:
        want = long(cross) @ _solved(matrix + ridge * np.eye(draw.n), y)
        condition = (np.abs(matrix).max() * draw.n + ridge) / ridge
        size = np.abs(cross).sum(1)[:, None] * np.abs(y).max() / ridge
        return compare(result, want, 32 * draw.eps * condition, draw, size=size)

    return Call(arguments, check)


@target(
    "ntk.gp_posterior",
    may_fail=True,
    gram="gram",
    y="array",
    noise="nonnegative",
    cross="array",
    prior="array",
    rtol="positive?",
    progress="flag",
)
def gp_posterior(draw: Draw) -> Call:
    matrix, y, cross, ridge, _ = _regression(draw)
    prior = draw.rounded((cross**2).sum(1) / ridge + 1e-3)
    arguments = {
        "gram": draw.cast(matrix),
        "y": draw.cast(y),
        "noise": ridge,
        "cross": draw.cast(cross),
    }

    def check(result: Any) -> str | None:
        shifted = matrix + ridge * np.eye(draw.n)
        condition = (np.abs(matrix).max() * draw.n + ridge) / ridge
        reduction = np.einsum("ti,it->t", long(cross), _solved(shifted, cross.T))
        size = np.abs(cross).sum(1)[:, None] * np.abs(y).max() / ridge
        return first_message(
            compare(
                result.mean,
                long(cross) @ _solved(shifted, y),
                32 * draw.eps * condition,
                draw,
                size=size,
                what="mean",
            ),
            compare(
                result.variance,
                long(prior) - reduction,
                64 * draw.eps * condition,
                draw,
                size=prior,
                what="variance",
            ),
        )

    return Call(arguments | {"prior": draw.cast(prior)}, check)


@target(
    "ntk.laplace",
    slow=True,
    net="apply",
    params="object",
    likelihood="choice",
    prior_mean="object?",
    apply_kwargs="keywords?",
    x="rows",
    y="array",
    ridge="positive",
    noise="positive",
)
def laplace(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x = draw.cast(draw.points(scale=1.0))
    ridge, noise = draw.pick(0.1, 10.0), draw.pick(0.1, 10.0)
    y = draw.rounded(draw.normal(draw.n, draw.k))
    arguments = {
        "net": net,
        "params": params,
        "x": x,
        "y": draw.cast(y),
        "ridge": ridge,
        "noise": noise,
    }

    # The same posterior from the weights, by the kernel as a matrix in double precision.
    def check(posterior: Any) -> str | None:
        prediction = posterior.predict(x)
        K = np.asarray(sn.ntk.empirical(net, params, x), float).transpose(0, 2, 1, 3)
        K = K.reshape(y.size, y.size)
        total = np.linalg.inv(K / noise + ridge * np.eye(y.size))
        covariance = (K - K @ total @ K / noise) / ridge
        want = np.diag(covariance).reshape(y.shape)
        size = float(np.abs(K).max()) / ridge
        return compare(prediction.variance, want, 4096 * draw.eps, draw, size=size)

    return Call(arguments, check)


@target(
    "ntk.solve",
    may_fail=True,
    op="object",
    y="array",
    ridge="nonnegative",
    rtol="fraction?",
    rank="count0?",
    key="key?",
    max_steps="count",
    refine="flag",
    throw="flag",
    progress="flag",
)
def solve(draw: Draw) -> Call:
    op, matrix, _ = kernel_operator_of(draw)
    y = draw.rounded(draw.normal(draw.n) * draw.scale(30))
    ridge = float(draw.rounded(np.array(draw.pick(0.1, 1.0) * float(np.abs(matrix).max() or 1.0))))
    arguments = {"op": op, "y": draw.cast(y), "ridge": ridge, "rank": None, "throw": False}

    def check(solution: Any) -> str | None:
        value = np.asarray(solution.value)
        if int(solution.result) != sn.solution.Result.SUCCESSFUL:
            return never_nan(value)
        residual = long(y) - (matrix @ long(value) + ridge * long(value))
        room = (
            256 * draw.eps * (np.abs(matrix).max() * draw.n + ridge) * np.linalg.norm(long(value))
        )
        allowed = (
            (3e-5 if draw.dtype == "float32" else 3e-10) * np.linalg.norm(long(y))
            + room
            + 16 * draw.tiny
        )
        error = np.linalg.norm(residual)
        return (
            None
            if error <= allowed
            else f"SUCCESSFUL with a residual of {float(error)}, allowed {float(allowed)}"
        )

    return Call(arguments, check)
