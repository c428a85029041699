"""The linearised Laplace posterior against the dense formulas in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_close, cast, dense_jacobian, points, slow_except

import softntk as sn

N, T, D = 7, 3, 4


def network(k, train_readout=False):
    net = sn.networks.two_layer(
        "softmax", width=12, out_dim=k, antisymmetric=False, train_readout=train_readout
    )
    _, params = net.init_fn(jax.random.key(0), (-1, D))
    return net, cast(jax.tree.map(lambda leaf: 2 * leaf, params), "float64")


def targets(likelihood, k):
    rng = np.random.default_rng(0)
    if likelihood == "gaussian":
        return jnp.asarray(rng.normal(size=(N, k)))
    if k == 1:
        return jnp.asarray(rng.random((N, 1)))
    return jnp.asarray(rng.dirichlet(np.ones(k), size=N))


def log_likelihood(likelihood, f, y, noise):
    if likelihood == "gaussian":
        return jnp.sum(jax.scipy.stats.norm.logpdf(y, f, jnp.sqrt(noise)))
    if f.shape[-1] == 1:
        return jnp.sum(y * jax.nn.log_sigmoid(f) + (1 - y) * jax.nn.log_sigmoid(-f))
    return jnp.sum(y * jax.nn.log_softmax(f))


def dense(net, params, x, x_test, y, likelihood, ridge, noise, trained):
    """Posterior covariance of the outputs at test points, and the evidence, from the weights."""
    F = net.apply_fn(params, x)
    n, k = F.shape
    J, J_test = (
        np.asarray(dense_jacobian(net.apply_fn, params, part)).reshape(len(part) * k, -1)[
            :, trained
        ]
        for part in (x, x_test)
    )
    theta = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])[trained]
    point = jax.hessian(lambda f, y: -log_likelihood(likelihood, f[None], y[None], noise))
    blocks = np.asarray(jax.vmap(point)(F, y))
    Lambda = np.zeros((n * k, n * k))
    for i, block in enumerate(blocks):
        Lambda[i * k : (i + 1) * k, i * k : (i + 1) * k] = block
    precision = J.T @ Lambda @ J + ridge * np.eye(len(theta))
    covariance = J_test @ np.linalg.solve(precision, J_test.T)
    covariance = covariance.reshape(len(x_test), k, len(x_test), k)
    evidence = (
        float(log_likelihood(likelihood, F, y, noise))
        + np.sum(scipy.stats.norm.logpdf(theta, 0, ridge**-0.5))
        + 0.5 * len(theta) * np.log(2 * np.pi)
        - 0.5 * np.linalg.slogdet(precision)[1]
    )
    return np.stack([covariance[i, :, i] for i in range(len(x_test))]), evidence


CASES = [("gaussian", 1), ("gaussian", 3), ("softmax", 1), ("softmax", 3)]


@pytest.mark.parametrize("train_readout", slow_except([False, True], False))
@pytest.mark.parametrize(("likelihood", "k"), CASES)
def test_covariance_and_evidence_are_the_dense_ones(likelihood, k, train_readout, x64):
    net, params = network(k, train_readout)
    x, x_test, y = points(1, N, D, "float64"), points(2, T, D, "float64"), targets(likelihood, k)
    ridge = 0.3
    noise = 0.2 if likelihood == "gaussian" else 1.0
    marks = params.replace(
        hidden=jnp.ones_like(params.hidden),
        readout=jnp.full_like(params.readout, float(train_readout)),
    )
    trained = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(marks)]) > 0
    covariance, evidence = dense(net, params, x, x_test, y, likelihood, ridge, noise, trained)
    options = {"likelihood": likelihood, "ridge": ridge, "noise": noise}
    posterior = sn.ntk.laplace(net, params, x, y, **options)
    prediction = posterior.predict(x_test)
    assert_close(prediction.mean, net.apply_fn(params, x_test), rtol=1e-12)
    assert_close(prediction.covariance, covariance, rtol=1e-9)
    assert_close(prediction.variance, np.einsum("tii->ti", covariance), rtol=1e-9)
    assert_close(posterior.log_evidence, evidence, rtol=1e-10)
    if likelihood == "softmax":
        scaled = prediction.mean / jnp.sqrt(1 + np.pi / 8 * prediction.variance)
        wanted = jax.nn.softmax(scaled) if k > 1 else jax.nn.sigmoid(scaled)
        assert_close(prediction.probabilities, wanted, rtol=1e-12)
    else:
        assert prediction.probabilities is None


@pytest.mark.parametrize("likelihood", ["gaussian", "softmax"])
def test_gradients_of_the_evidence(likelihood, x64):
    net, params = network(2)
    x, y = points(1, N, D, "float64"), targets(likelihood, 2)

    def evidence(ridge, noise):
        options = {"noise": noise} if likelihood == "gaussian" else {}
        return sn.ntk.laplace(
            net, params, x, y, likelihood=likelihood, ridge=ridge, **options
        ).log_evidence

    at = (jnp.asarray(0.4), jnp.asarray(0.3))
    step = 1e-5
    gradient = jax.jit(jax.grad(evidence))(*at)
    difference = (evidence(at[0] + step, at[1]) - evidence(at[0] - step, at[1])) / (2 * step)
    assert_close(gradient, difference, rtol=1e-6)
    if likelihood == "gaussian":
        gradient = jax.jit(jax.grad(evidence, argnums=1))(*at)
        difference = (evidence(at[0], at[1] + step) - evidence(at[0], at[1] - step)) / (2 * step)
        assert_close(gradient, difference, rtol=1e-6)


def test_a_linear_network_is_bayesian_regression(x64):
    """With the weights at their optimum, mean and variance are those of the exact posterior."""
    rng = np.random.default_rng(0)
    x, y, x_test = (jnp.asarray(rng.normal(size=shape)) for shape in ((9, 3), (9,), (4, 3)))
    ridge, noise = 0.5, 0.1
    A = np.asarray(x).T @ np.asarray(x) / noise + ridge * np.eye(3)
    weights = np.linalg.solve(A, np.asarray(x).T @ np.asarray(y) / noise)
    posterior = sn.ntk.laplace(
        lambda params, x: x @ params, jnp.asarray(weights), x, y, ridge=ridge, noise=noise
    )
    prediction = posterior.predict(x_test)
    assert_close(prediction.mean[:, 0], np.asarray(x_test) @ weights, rtol=1e-12)
    variance = np.einsum("ti,ij,tj->t", x_test, np.linalg.inv(A), x_test)
    assert_close(prediction.variance[:, 0], variance, rtol=1e-10)
    marginal = np.asarray(x) @ np.asarray(x).T / ridge + noise * np.eye(9)
    exponent = np.asarray(y) @ np.linalg.solve(marginal, np.asarray(y))
    wanted = -0.5 * (exponent + np.linalg.slogdet(2 * np.pi * marginal)[1])
    assert_close(posterior.log_evidence, wanted, rtol=1e-10)


@pytest.mark.parametrize("ridge", [0.05, 50.0])
def test_draws_agree_with_quadrature(ridge, x64):
    """Where the variance is large and where it is small."""
    net, params = network(1)
    x, x_test = points(1, N, D, "float64"), points(2, T, D, "float64")
    posterior = sn.ntk.laplace(net, params, x, np.arange(N) % 2, likelihood="softmax", ridge=ridge)
    prediction = posterior.predict(x_test, draws=20_000, key=jax.random.key(0))
    assert (np.asarray(prediction.variance) < 1).all() == (ridge > 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    f = prediction.mean + jnp.sqrt(prediction.variance) * nodes[None]
    wanted = np.asarray(jax.nn.sigmoid(f)) @ weights / weights.sum()
    assert prediction.probabilities is not None
    assert_close(prediction.probabilities[:, 0], wanted, rtol=0.02 if ridge < 1 else 0.005)


def test_own_networks_prior_means_and_many_test_points(x64):
    """An apply_fn on images with a constant leaf; the evidence knows where the prior is."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(6, 5))), "v": jnp.asarray(rng.normal(size=(5, 2)))}

    def apply_fn(p, x, scale):
        return scale * jnp.tanh(x.reshape(len(x), -1) @ p["w"]) @ p["v"]

    x, y = points(1, N, 6, "float64").reshape(N, 2, 3), targets("softmax", 2)
    options = {"likelihood": "softmax", "ridge": 0.7, "apply_kwargs": {"scale": 0.5}}
    at_zero = sn.ntk.laplace(apply_fn, params, x, y, **options)
    at_start = sn.ntk.laplace(apply_fn, params, x, y, prior_mean=params, **options)
    square = sum(float(jnp.sum(leaf**2)) for leaf in params.values())
    assert_close(at_start.log_evidence - at_zero.log_evidence, 0.35 * square, rtol=1e-10)
    x_test = points(2, 70, 6, "float64").reshape(70, 2, 3)
    together = at_zero.predict(x_test).covariance
    apart = jnp.concatenate([at_zero.predict(x_test[i : i + 1]).covariance for i in (0, 65, 69)])
    assert_close(together[np.array([0, 65, 69])], apart, rtol=1e-9)


def test_bad_input(x64, untyped):
    net, params = network(3)
    x, labels = points(1, N, D, "float64"), np.arange(N) % 3
    with pytest.raises(ValueError, match="likelihood"):
        sn.ntk.laplace(net, params, x, labels, likelihood="softmaxx")
    with pytest.raises(ValueError, match="y"):
        sn.ntk.laplace(net, params, x, labels)
    with pytest.raises(ValueError, match="ridge"):
        sn.ntk.laplace(net, params, x, labels, likelihood="softmax", ridge=0.0)
    with pytest.raises(ValueError, match="noise"):
        sn.ntk.laplace(net, params, x, labels, likelihood="softmax", noise=0.5)
    with pytest.raises(ValueError, match="number of classes"):
        sn.ntk.laplace(net, params, x, labels + 1, likelihood="softmax")
    for prior_mean in (1.5, {"a": 1.0}, params.replace(hidden=params.hidden[:2])):
        with pytest.raises(ValueError, match="prior_mean"):
            sn.ntk.laplace(net, params, x, labels, likelihood="softmax", prior_mean=prior_mean)
    posterior = sn.ntk.laplace(net, params, x, labels, likelihood="softmax")
    with pytest.raises(ValueError, match="x"):
        posterior.predict(x[:, :2])
    with pytest.raises(ValueError, match="key"):
        posterior.predict(x, draws=3)


def test_a_matrix_that_does_not_fit_is_refused(x64):
    net, params = network(3)
    with pytest.raises(ValueError, match="GiB"):
        sn.ntk.laplace(
            net, params, jnp.zeros((20_000, D)), jnp.zeros(20_000, int), likelihood="softmax"
        )
