"""Kernel ridge regression with NTKs against dense formulas in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn.kernel_ridge import KernelRidge

from softntk import networks, stax
from softntk.sklearn import NTKRegressor, _kernel_machine

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
X_TEST = RNG.normal(size=(7, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] ** 2], axis=1) + 0.1 * RNG.normal(size=(30, 2))
WEIGHTS = RNG.uniform(0.1, 2, size=30)


def ntk_of(name, get, x1, x2, sigma, bias):
    """The kernels of two layers as their papers have them, the readout fixed."""
    inner = x1 @ x2.T + bias
    norms1, norms2 = (np.sqrt((x**2).sum(1) + bias) for x in (x1, x2))
    if name == "softmax":
        nngp = np.exp(sigma**2 * inner)
        return nngp if get == "nngp" else inner * nngp
    size = np.outer(norms1, norms2)
    angle = np.arccos(np.clip(inner / size, -1, 1))
    if get == "ntk":
        return inner * (np.pi - angle) / (2 * np.pi)
    return sigma**2 * size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def geometric_mean(values, weights=None):
    return np.exp(np.average(np.log(values), weights=weights))


def ridge_predictions(kernel, y, ridge, weights=None):
    """Predictions of scikit-learn for a kernel (x1, x2) -> matrix, the ridge in its mean."""
    K = kernel(X, X)
    unit = geometric_mean(np.diag(K), weights)
    model = KernelRidge(kernel="precomputed", alpha=ridge * unit).fit(K, y, weights)
    return model.predict(kernel(X_TEST, X))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("get", ["ntk", "nngp"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("softmax", {}), ("softmax", {"sigma": 0.7, "bias": False}), ("relu", {})],
    ids=str,
)
def test_it_is_kernel_ridge_regression(name, options, get, weights):
    bias = int(options.get("bias", True))
    mean_square = np.average((X**2).sum(1) + bias, weights=weights)
    sigma = options.get("sigma", mean_square**-0.5)
    model = NTKRegressor(name, get=get, ridge=0.05, **options).fit(X, Y, weights)
    assert model.sigma_ == pytest.approx(sigma)
    expected = ridge_predictions(
        lambda x1, x2: ntk_of(name, get, x1, x2, sigma, bias), Y, 0.05, weights
    )
    np.testing.assert_allclose(model.predict(X_TEST), expected, atol=1e-7)
    one = NTKRegressor(name, get=get, ridge=0.05, **options).fit(X, Y[:, 0], weights)
    np.testing.assert_allclose(one.predict(X_TEST), expected[:, 0], atol=1e-7)


def test_large_data_are_solved_without_the_matrix(monkeypatch):
    expected = NTKRegressor(get="nngp").fit(X, Y, WEIGHTS).predict(X_TEST, return_std=True)
    monkeypatch.setattr(_kernel_machine, "MAX_DENSE_SIZE", 8)
    monkeypatch.setattr(_kernel_machine.ntk, "kernel_regression", None)
    result = NTKRegressor(get="nngp").fit(X, Y, WEIGHTS).predict(X_TEST, return_std=True)
    np.testing.assert_allclose(result[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(result[1], expected[1], atol=1e-6)


def test_deviations_are_those_of_the_process_of_largest_likelihood():
    model = NTKRegressor("relu", get="nngp", ridge=0.05).fit(X, Y, WEIGHTS)
    mean, deviation = model.predict(X_TEST, return_std=True)
    assert mean.shape == deviation.shape == Y[:7].shape
    sigma = model.sigma_
    K, cross, prior = (
        ntk_of("relu", "nngp", x1, x2, sigma, 1)
        for x1, x2 in ((X, X), (X_TEST, X), (X_TEST, X_TEST))
    )
    noisy = K + 0.05 * geometric_mean(np.diag(K), WEIGHTS) * np.diag(1 / WEIGHTS)
    variance = np.diag(prior - cross @ np.linalg.solve(noisy, cross.T))
    # With equal weights: the likelihood itself, maximised.
    for column in range(2):
        amplitude = Y[:, column] @ np.linalg.solve(noisy, Y[:, column]) / WEIGHTS.sum()
        np.testing.assert_allclose(deviation[:, column], np.sqrt(amplitude * variance), rtol=1e-6)
    equal = NTKRegressor("relu", get="nngp", ridge=0.05).fit(X, Y)
    K = ntk_of("relu", "nngp", X, X, equal.sigma_, 1)
    noisy = K + 0.05 * geometric_mean(np.diag(K)) * np.eye(len(K))

    def surprise(log_amplitude):
        covariance = np.exp(log_amplitude) * noisy
        return -scipy.stats.multivariate_normal(cov=covariance).logpdf(Y[:, 0])

    minimum: Any = scipy.optimize.minimize_scalar(surprise, bracket=(-5, 5))
    found = equal.predict(X_TEST, return_std=True)[1][:, 0]
    # The kernel of the estimator has the unit of σ = 1 on σx, which the amplitude takes up.
    prior = ntk_of("relu", "nngp", X_TEST, X_TEST, equal.sigma_, 1)
    cross = ntk_of("relu", "nngp", X_TEST, X, equal.sigma_, 1)
    variance = np.diag(prior - cross @ np.linalg.solve(noisy, cross.T))
    np.testing.assert_allclose(found, np.sqrt(np.exp(minimum.x) * variance), rtol=1e-5)


def test_the_unit_of_the_targets_and_points_is_theirs():
    model = NTKRegressor(get="nngp").fit(X, Y[:, 0])
    other = NTKRegressor(get="nngp").fit(X, 1000 * Y[:, 0])
    for ours, theirs in zip(model.predict(X_TEST, True), other.predict(X_TEST, True), strict=True):
        np.testing.assert_allclose(theirs, 1000 * ours, rtol=1e-6)


def gaussian(x1, x2):
    return jnp.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1))


TWO_LAYERS = networks.two_layer("relu", width=4, bias=True, sigma=0.3, train_readout=True)
DEEP = stax.serial(stax.Dense(1, W_std=1.2, b_std=0.3), stax.Relu(), stax.Dense(1))


@pytest.mark.parametrize("kernel", [TWO_LAYERS, DEEP, gaussian], ids=["two_layer", "stax", "own"])
def test_networks_triples_and_functions_are_kernels(kernel):
    result = NTKRegressor(kernel, ridge=0.05).fit(X, Y, WEIGHTS).predict(X_TEST)

    def matrix(x1, x2):
        arrays = jnp.asarray(x1), jnp.asarray(x2)
        return np.asarray(gaussian(*arrays) if kernel is gaussian else kernel[2](*arrays, "ntk"))

    with jax.enable_x64(True):
        expected = ridge_predictions(matrix, Y, 0.05, WEIGHTS)
    np.testing.assert_allclose(result, expected, atol=1e-7)


def mlp(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def weights_of(outputs, dtype):
    rng = np.random.default_rng(1)
    shapes = {"hidden": (3, 5), "out": (5, outputs)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_empirical_kernel_is_that_of_the_jacobian(outputs):
    params = weights_of(outputs, np.float64)

    def flat_jacobian(x):
        with jax.enable_x64(True):
            tree = jax.jacrev(mlp)(jax.tree.map(jnp.asarray, params), jnp.asarray(x))
        return np.concatenate(
            [np.asarray(leaf).reshape(len(x) * outputs, -1) for leaf in tree.values()], axis=1
        )

    J, J_test = flat_jacobian(X), flat_jacobian(X_TEST)
    K = J @ J.T
    noise = np.repeat(1 / WEIGHTS, outputs)
    unit = geometric_mean(np.diag(K), 1 / noise)
    with jax.enable_x64(True):
        start, start_test = (np.asarray(mlp(params, jnp.asarray(x))) for x in (X, X_TEST))
    residual = (Y - start).reshape(len(K), -1)
    fitted = J_test @ J.T @ np.linalg.solve(K + 0.05 * unit * np.diag(noise), residual)
    model = NTKRegressor(mlp, params=params, ridge=0.05).fit(X, Y, WEIGHTS)
    np.testing.assert_allclose(model.predict(X_TEST), start_test + fitted.reshape(7, 2), atol=1e-7)


def test_a_network_of_two_layers_at_its_weights():
    net = networks.two_layer("softmax", width=16)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    model = NTKRegressor(net, params=params, ridge=0.05).fit(X, Y[:, 0])
    kernel = lambda x1, x2: np.asarray(
        net_kernel(params, jnp.asarray(x1, "float32"), jnp.asarray(x2, "float32"))
    )

    def net_kernel(params, x1, x2):
        J1, J2 = (jax.jacrev(net.apply_fn)(params, x).hidden[:, 0] for x in (x1, x2))
        return jnp.einsum("idm,jdm->ij", J1, J2)

    expected = ridge_predictions(kernel, Y[:, 0], 0.05)
    np.testing.assert_allclose(model.predict(X_TEST), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "sofmax"}, "kernel must be one of.*Did you mean 'softmax'"),
        ({"kernel": 3}, "kernel must be one of"),
        ({"kernel": NTKRegressor}, "kernel must be one of"),
        ({"params": weights_of(1, np.float64)}, "params must be None where kernel is a name"),
        ({"kernel": mlp, "params": {}}, "params must hold"),
        ({"kernel": mlp, "params": weights_of(3, np.float64)}, "targets, got one of 3 outputs"),
        ({"kernel": mlp, "params": weights_of(1, np.float64), "get": "nngp"}, "get must be"),
        ({"kernel": mlp}, "kernel_fn"),
        ({"kernel": networks.two_layer("relu", width=2), "sigma": 2.0}, "sigma and bias"),
        ({"get": "cov"}, "get must be"),
        ({"sigma": 0}, "sigma must be"),
        ({"sigma": "auto"}, "sigma must be"),
        ({"bias": 1}, "bias must be"),
        ({"ridge": -1}, "ridge must be"),
        ({"ridge": "1"}, "ridge must be"),
    ],
)
def test_bad_parameters_are_refused(untyped, options, message):
    with pytest.raises(ValueError, match=message):
        NTKRegressor(**options).fit(X, Y)


def test_a_kernel_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive somewhere.*StandardScaler"):
        NTKRegressor("relu", bias=False).fit(0 * X, Y)
    assert np.isfinite(NTKRegressor("relu").fit(0 * X, Y).predict(X)).all()


def test_deviations_need_a_process():
    with pytest.raises(ValueError, match='return_std needs get="nngp"'):
        NTKRegressor().fit(X, Y).predict(X, return_std=True)
