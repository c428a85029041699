"""Classification with NTKs against scikit-learn's Gaussian process and dense formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from softntk import networks, ntk
from softntk.sklearn import NTKClassifier

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3))
X_TEST = RNG.normal(size=(7, 3))
SCORES = X[:, :3] + 0.7 * RNG.normal(size=(30, 3))
TWO = np.where(SCORES[:, 0] > 0, "yes", "no")
THREE = np.array(["b", "c", "a"])[SCORES.argmax(axis=1)]


def gaussian(x1, x2):
    return jnp.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1) / 2)


def test_two_classes_are_the_process_of_scikit_learn():
    model = NTKClassifier(gaussian, ridge=0.25, average=True).fit(X, TWO)
    options: Any = {"optimizer": None}
    theirs = GaussianProcessClassifier(ConstantKernel(4.0) * RBF(1.0), **options).fit(X, TWO)
    evidence: Any = theirs.log_marginal_likelihood_value_
    np.testing.assert_allclose(model.log_marginal_likelihood_value_, evidence, rtol=1e-8)
    # Two approximations of one integral.
    expected = theirs.predict_proba(X_TEST)
    np.testing.assert_allclose(model.predict_proba(X_TEST), expected, atol=0.02)
    np.testing.assert_array_equal(model.predict(X_TEST), theirs.predict(X_TEST))


def test_three_classes_have_the_evidence_of_dense_formulas():
    """Rasmussen and Williams (2006), equations 3.33 to 3.44, in matrices [n·k, n·k]."""
    model = NTKClassifier(gaussian, ridge=0.25).fit(X, THREE)
    K = np.kron(np.eye(3), 4 * np.exp(-((X[:, None] - X[None]) ** 2).sum(-1) / 2))
    Y = (np.array([["a"], ["b"], ["c"]]) == THREE).astype(float)

    def log_likelihood(f):
        return (Y * scipy.special.log_softmax(f.reshape(3, -1), axis=0)).sum()

    # The mode is f = Kα with α = Y − softmax(f).
    def energy(a):
        return 0.5 * a @ K @ a - log_likelihood(K @ a)

    def slope(a):
        return K @ (a - (Y - scipy.special.softmax((K @ a).reshape(3, -1), axis=0)).ravel())

    a = scipy.optimize.minimize(energy, np.zeros(90), jac=slope, method="BFGS", tol=1e-10).x
    P = scipy.special.softmax((K @ a).reshape(3, -1), axis=0)
    W = np.diag(P.ravel()) - np.block([[np.diag(P[i] * P[j]) for j in range(3)] for i in range(3)])
    evidence = -energy(a) - 0.5 * np.linalg.slogdet(np.eye(90) + W @ K)[1]
    np.testing.assert_allclose(model.log_marginal_likelihood_value_, evidence, rtol=1e-6)


@pytest.mark.parametrize("average", [True, False])
def test_probabilities_are_those_of_the_posterior(average):
    model = NTKClassifier("relu", ridge=0.05, average=average).fit(X, THREE)
    scale = np.sqrt(1 / ((X**2).sum(1) + 1).mean())
    net = networks.two_layer("relu", width=2, bias=True)
    with jax.enable_x64(True):
        kernel = lambda x1, x2: net.kernel_fn(x1, x2, "ntk") * scale**2 / model.ridge_
        labels = np.searchsorted(model.classes_, THREE)
        posterior = ntk.gp_classification(kernel(X, X), labels)
        prior = jnp.diagonal(kernel(X_TEST, X_TEST))
        prediction = posterior.predict(kernel(X_TEST, X), prior)
        averages: Any = prediction.probabilities
        expected = np.asarray(averages if average else jax.nn.softmax(prediction.mean))
    np.testing.assert_allclose(model.predict_proba(X_TEST), expected, atol=1e-7)
    best = np.asarray(expected).argmax(axis=1)
    np.testing.assert_array_equal(model.predict(X_TEST), model.classes_[best])


def mlp(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def weights_of(outputs):
    rng = np.random.default_rng(1)
    return {"hidden": rng.normal(size=(3, 5)), "out": rng.normal(size=(5, outputs))}


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize(("outputs", "labels"), [(1, TWO), (1, THREE), (3, THREE)])
def test_networks_at_their_weights(outputs, labels, average):
    params = weights_of(outputs)
    model = NTKClassifier(mlp, params=params, ridge=0.05, average=average).fit(X, labels)
    with jax.enable_x64(True):
        both = ntk.empirical(mlp, params, np.concatenate([X, X_TEST])) / model.ridge_
        gram, cross, prior = both[:30, :30], both[30:, :30], both[30:, 30:]
        prior = jnp.einsum("iiab->iab", prior)
        classes = len(model.classes_)
        if outputs == 1 and classes > 2:
            gram, cross, prior = gram[..., 0, 0], cross[..., 0, 0], prior[..., 0, 0]
        posterior = ntk.gp_classification(
            gram, np.searchsorted(model.classes_, labels), classes=1 if classes == 2 else classes
        )
        prediction = posterior.predict(cross, prior)
        expected = np.asarray(prediction.probabilities)
        if not average:
            mean = prediction.mean
            expected = np.asarray(jax.nn.softmax(mean) if classes > 2 else jax.nn.sigmoid(mean))
    result = model.predict_proba(X_TEST)
    np.testing.assert_allclose(result[:, -expected.shape[1] :], expected, atol=1e-7)
    np.testing.assert_allclose(result.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "sofmax"}, "kernel must be one of.*Did you mean 'softmax'"),
        ({"ridge": 0}, "ridge must be positive"),
        ({"average": 2}, "average must"),
        ({"kernel": mlp, "params": weights_of(2)}, "one for each class.*got one of 2 outputs"),
        ({"params": weights_of(1)}, "params must be None where kernel is a name"),
    ],
)
def test_bad_parameters_are_refused(untyped, options, message):
    with pytest.raises(ValueError, match=message):
        NTKClassifier(**options).fit(X, THREE)


def test_numbers_that_are_no_labels_are_refused():
    with pytest.raises(ValueError, match="Unknown label type"):
        NTKClassifier().fit(X, X[:, 0])
