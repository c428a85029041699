"""Evidence of Gaussian processes, and its maximum, against SciPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from helpers import assert_close, points

import softntk as sn

N = 12
NET = sn.networks.two_layer("softmax", width=2)
KERNEL: Any = NET.kernel_fn


def regression_data(dtype="float64"):
    x = points(1, N, 3, dtype)
    y = jnp.sin(x[:, :2]) + 0.1 * points(3, N, 2, dtype)
    return KERNEL(x, None, "nngp"), y


def normal_log_density(gram, y, noise):
    covariance = np.asarray(gram, float) + noise * np.eye(N)
    return sum(
        scipy.stats.multivariate_normal.logpdf(column, np.zeros(N), covariance)
        for column in np.asarray(y, float).T
    )


def evidence_of(h, gram, y):
    return sn.ntk.gp_log_evidence(h["scale"] * gram, y, noise=h["noise"])


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_log_evidence_is_a_normal_density(unit, x64):
    gram, y = regression_data()
    gram, y = unit**2 * gram, unit * y
    noise = 0.1 * unit**2
    assert_close(
        sn.ntk.gp_log_evidence(gram, y, noise=noise), normal_log_density(gram, y, noise), rtol=1e-9
    )


def test_log_evidence_of_all_outputs_together(x64):
    gram, y = regression_data()
    root = np.array([[1.0, 0.3], [0.2, 0.8]])
    full = jnp.einsum("ij,cd->ijcd", gram, root @ root.T)
    matrix = np.kron(gram, root @ root.T) + 0.1 * np.eye(2 * N)
    wanted = scipy.stats.multivariate_normal.logpdf(np.ravel(y), np.zeros(2 * N), matrix)
    assert_close(sn.ntk.gp_log_evidence(full, y, noise=0.1), wanted, rtol=1e-10)


def test_log_evidence_float32():
    gram, y = regression_data("float32")
    result = sn.ntk.gp_log_evidence(gram, y, noise=0.1)
    assert result.dtype == jnp.float32
    assert_close(result, normal_log_density(gram, y, 0.1), rtol=1e-4)


def test_gradient_of_the_log_evidence(x64):
    gram, y = regression_data()
    for name in ("scale", "noise"):
        at = {"scale": 0.7, "noise": 0.2}
        gradient = jax.jit(jax.grad(evidence_of))(at, gram, y)[name]
        step = 1e-6
        ends = [evidence_of({**at, name: at[name] + s}, gram, y) for s in (step, -step)]
        assert_close(gradient, (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


def test_the_maximum_is_that_of_scipy(x64):
    gram, y = regression_data()
    start = {"scale": 1.0, "noise": 1.0}
    solution = sn.ntk.fit_hyperparameters(evidence_of, start, args=(gram, y))
    best = scipy.optimize.minimize(
        lambda logs: -normal_log_density(np.exp(logs[0]) * gram, y, np.exp(logs[1])),
        [0.0, 0.0],
        tol=1e-10,
    )
    assert_close(solution.stats["log_evidence"], -best.fun, rtol=1e-8)
    values = [solution.value["scale"], solution.value["noise"]]
    assert_close(np.array(values), np.exp(best.x), rtol=1e-3)


def test_sigma_is_chosen_by_the_evidence_of_labels(x64):
    x = points(1, N, 3, "float64")
    labels = (np.asarray(x)[:, 0] > 0).astype(int)

    def evidence(sigma):
        net = sn.networks.two_layer("softmax", width=2, sigma=sigma)
        return sn.ntk.gp_classification(5 * net.kernel_fn(x, None, "nngp"), labels).log_evidence

    solution = sn.ntk.fit_hyperparameters(evidence, 1.0, max_steps=30, throw=False)
    reached = float(solution.stats["log_evidence"])
    grid = [float(evidence(s)) for s in np.geomspace(0.2, 2, 7)]
    assert reached >= max(grid) - 1e-6


def test_laplace_chooses_its_ridge(x64):
    net = sn.networks.two_layer("softmax", width=12, out_dim=1)
    params = net.init_fn(jax.random.key(0), (-1, 3))[1]
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
    x = points(1, N, 3, "float64")
    y = net.apply_fn(params, x) + 0.1 * points(2, N, 1, "float64")

    def evidence(h):
        return sn.ntk.laplace(net, params, x, y, ridge=1.0, noise=h).log_evidence

    solution = sn.ntk.fit_hyperparameters(evidence, 1.0)
    best = float(solution.value)
    for factor in (0.9, 1.1):
        assert float(evidence(factor * best)) < float(solution.stats["log_evidence"])


def test_a_start_of_integers():
    solution = sn.ntk.fit_hyperparameters(lambda h: -((jnp.log(h["a"]) - 1) ** 2), {"a": 2})
    assert_close(solution.value["a"], np.e, rtol=1e-3)


def test_an_evidence_without_maximum_is_told(x64):
    with pytest.raises(sn.solution.NumericalError, match="MINIMUM_AT_INFINITY"):
        sn.ntk.fit_hyperparameters(
            lambda h: sn.ntk.gp_log_evidence(h * jnp.eye(4), jnp.zeros(4), noise=0.0), 1.0
        )


# What is called with arguments of wrong types.
FIT: Any = sn.ntk.fit_hyperparameters
LOG_EVIDENCE: Any = sn.ntk.gp_log_evidence


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIT(lambda h: -h, -1.0), "positive"),
        (lambda: FIT(lambda h: -h, {}), "positive"),
        (lambda: FIT(3.0, 1.0), "log_evidence"),
        (lambda: FIT(lambda h: -h, 1.0, throw=2), "throw"),
        (lambda: LOG_EVIDENCE(np.eye(3), np.ones(4), noise=1.0), "y must"),
        (lambda: LOG_EVIDENCE(np.eye(3), np.ones(3), noise=-1.0), "noise"),
        (
            lambda: LOG_EVIDENCE(
                sn.ntk.kernel_operator(NET.kernel_fn, np.ones((3, 2))), np.ones(3), noise=1.0
            ),
            "operator",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
