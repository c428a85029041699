"""Gaussian processes with class labels, against a dense posterior by Newton's method in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from helpers import assert_close, points

import softntk as sn

N, T, K = 9, 3, 3
NET = sn.networks.two_layer("softmax", width=2)
KERNEL: Any = NET.kernel_fn


def kernels(scale: Any = 4.0, dtype="float64") -> tuple[Any, Any, Any]:
    """Kernel of each class by itself: gram, cross, and prior."""
    x, x_test = points(1, N, 4, dtype), points(2, T, 4, dtype)
    prior = jnp.diagonal(KERNEL(x_test, None, "ntk"))
    return tuple(scale * part for part in (KERNEL(x, None, "ntk"), KERNEL(x_test, x, "ntk"), prior))


def full_kernels(seed=0) -> tuple[Any, Any, Any]:
    """A kernel [n, n, k, k] that couples the classes: sums of Kronecker products."""
    gram, cross, prior = kernels()
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(K, K))
    coupling = root @ root.T
    x, x_test = points(1, N, 4, "float64"), points(2, T, 4, "float64")
    eye = np.eye(K)
    return (
        jnp.einsum("ij,cd->ijcd", gram, coupling) + jnp.einsum("ij,cd->ijcd", x @ x.T, eye),
        jnp.einsum("ij,cd->ijcd", cross, coupling) + jnp.einsum("ij,cd->ijcd", x_test @ x.T, eye),
        jnp.einsum("i,cd->icd", prior, coupling)
        + jnp.einsum("i,cd->icd", jnp.sum(x_test**2, axis=1), eye),
    )


def as_full(gram, cross, prior, k):
    eye = np.eye(k)
    return (
        np.einsum("ij,cd->ijcd", gram, eye),
        np.einsum("ij,cd->ijcd", cross, eye),
        np.einsum("i,cd->icd", prior, eye),
    )


def flat(kernel) -> np.ndarray:
    a, b, k, _ = kernel.shape
    return np.asarray(kernel).transpose(0, 2, 1, 3).reshape(a * k, b * k)


def dense(gram, cross, prior, y) -> tuple[Any, Any, Any, Any]:
    """Mode, means, covariances and evidence from matrices [n·k, n·k]; SciPy finds the mode."""
    matrix, cross_matrix = flat(gram), flat(cross)
    n, k = y.shape

    def split(weights):
        f = (matrix @ weights).reshape(n, k)
        if k == 1:
            p = scipy.special.expit(f)
            loss = np.sum(np.logaddexp(0, f) - y * f)
        else:
            p = scipy.special.softmax(f, axis=1)
            loss = np.sum(jax.nn.logsumexp(f, axis=1)) - np.sum(y * f)
        return f, p, loss

    weights = scipy.optimize.root(
        lambda a: a + (split(a)[1] - y).ravel(), np.zeros(n * k), tol=1e-13
    ).x
    f, p, loss = split(weights)
    Lambda = np.zeros((n * k, n * k))
    for i in range(n):
        block = np.diag(p[i]) - np.outer(p[i], p[i]) if k > 1 else p[i] * (1 - p[i])
        Lambda[i * k : (i + 1) * k, i * k : (i + 1) * k] = block
    inner = np.eye(n * k) + matrix @ Lambda
    explained = cross_matrix @ Lambda @ np.linalg.solve(inner, cross_matrix.T)
    explained = explained.reshape(len(cross), k, len(cross), k)
    covariance = np.asarray(prior) - np.stack([explained[i, :, i] for i in range(len(cross))])
    evidence = -loss - 0.5 * weights @ f.ravel() - 0.5 * np.linalg.slogdet(inner)[1]
    return f, (cross_matrix @ weights).reshape(-1, k), covariance, evidence


def check(posterior, prediction, want, rtol=1e-9):
    mode, mean, covariance, evidence = want
    assert bool(posterior.has_converged)
    assert_close(posterior.mode, mode, rtol=rtol)
    assert_close(prediction.mean, mean, rtol=rtol)
    assert_close(prediction.covariance, covariance, rtol=rtol)
    assert_close(posterior.log_evidence, evidence, rtol=rtol)


@pytest.mark.parametrize("scale", [1e-3, 4.0, 1e3])
def test_one_kernel_for_all_classes(scale, x64):
    gram, cross, prior = kernels(scale=scale)
    labels = np.arange(N) % K
    want = dense(*as_full(gram, cross, prior, K), np.eye(K)[labels])
    posterior = sn.ntk.gp_classification(gram, labels)
    prediction = posterior.predict(cross, prior)
    check(posterior, prediction, want, rtol=1e-8)
    scaled = prediction.mean / np.sqrt(1 + np.pi / 8 * prediction.variance)
    assert_close(prediction.probabilities, scipy.special.softmax(scaled, axis=1), rtol=1e-12)
    assert_close(posterior.weights, np.eye(K)[labels] - scipy.special.softmax(want[0], axis=1))


def test_a_kernel_of_all_outputs_and_probabilities(x64):
    gram, cross, prior = full_kernels()
    y = np.random.default_rng(0).dirichlet(np.ones(K), size=N)
    posterior = sn.ntk.gp_classification(gram, y)
    check(posterior, posterior.predict(cross, prior), dense(gram, cross, prior, y))


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_one_latent_function_for_two_classes(shape, x64):
    gram, cross, prior = kernels()
    labels = np.arange(N) % 2
    y = labels if shape == (N,) else labels[:, None].astype(float)
    want = dense(*as_full(gram, cross, prior, 1), labels[:, None].astype(float))
    posterior = sn.ntk.gp_classification(gram, y, classes=1)
    check(posterior, posterior.predict(cross, prior), want)


def test_an_operator_is_formed(x64):
    x = points(1, N, 4, "float64")
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    labels = np.arange(N) % K
    by_operator = sn.ntk.gp_classification(op, labels)
    by_array = sn.ntk.gp_classification(KERNEL(x, None, "ntk"), labels)
    assert_close(by_operator.mode, by_array.mode, rtol=1e-10)
    network = sn.networks.two_layer("softmax", width=16, out_dim=K)
    params = jax.tree.map(
        lambda leaf: leaf.astype("float64"), network.init_fn(jax.random.key(0), (-1, 4))[1]
    )
    by_operator = sn.ntk.gp_classification(sn.ntk.operator(network, params, x), labels)
    by_array = sn.ntk.gp_classification(sn.ntk.empirical(network, params, x), labels)
    assert_close(by_operator.mode, by_array.mode, rtol=1e-8)


@pytest.mark.parametrize("form", ["one", "full"])
def test_gradient_of_the_evidence(form, x64):
    gram = kernels()[0] if form == "one" else full_kernels()[0]
    labels = np.arange(N) % K
    slopes = points(5, N, 1, "float64").reshape(N, *[1] * (gram.ndim - 1))

    def evidence(t):
        factors = 1 + t * slopes
        scaled = gram * factors * jnp.swapaxes(factors, 0, 1)
        return sn.ntk.gp_classification(scaled, labels).log_evidence

    step = 1e-5
    difference = (evidence(step) - evidence(-step)) / (2 * step)
    assert_close(jax.jit(jax.grad(evidence))(0.0), difference, rtol=1e-7)


def test_the_mean_has_a_derivative_in_the_kernel(x64):
    gram, cross, prior = kernels()
    labels = np.arange(N) % K

    def mean(scale):
        posterior = sn.ntk.gp_classification(scale * gram, labels)
        return posterior.predict(scale * cross, scale * prior).mean

    step = 1e-5
    difference = (mean(1 + step) - mean(1 - step)) / (2 * step)
    assert_close(jax.jacobian(mean)(1.0), difference, rtol=1e-7)


def test_float32():
    gram, cross, prior = kernels(dtype="float32")
    labels = np.arange(N) % K
    posterior = sn.ntk.gp_classification(gram, labels)
    prediction = posterior.predict(cross, prior)
    doubles = [np.asarray(part, float) for part in (gram, cross, prior)]
    want = dense(*as_full(doubles[0], doubles[1], doubles[2], K), np.eye(K)[labels])
    assert prediction.mean.dtype == jnp.float32
    check(posterior, prediction, want, rtol=2e-4)


def test_draws_converge_to_the_mean_probability(x64):
    gram, cross, prior = kernels()
    posterior = sn.ntk.gp_classification(gram, np.arange(N) % K)
    drawn = posterior.predict(cross, prior, draws=20_000, key=jax.random.key(0))
    assert drawn.probabilities is not None
    rng = np.random.default_rng(0)
    for i in range(T):
        f = rng.multivariate_normal(drawn.mean[i], drawn.covariance[i], size=20_000)
        assert_close(drawn.probabilities[i], scipy.special.softmax(f, axis=1).mean(0), rtol=0.02)


def test_many_kernels_at_once(x64):
    gram = kernels()[0]
    labels = np.arange(N) % K
    scales = jnp.array([0.1, 1.0, 10.0])
    together = jax.vmap(lambda s: sn.ntk.gp_classification(s * gram, labels).mode)(scales)
    for scale, mode in zip(scales, together, strict=True):
        assert_close(mode, sn.ntk.gp_classification(scale * gram, labels).mode, rtol=1e-9)


GRAM = np.eye(4)
CLASSIFY: Any = sn.ntk.gp_classification  # lists and wrong shapes too


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CLASSIFY(GRAM, [0, 1, 2]), "y must"),
        (lambda: CLASSIFY(GRAM, [0, 1, 2, -1]), "from 0 on"),
        (lambda: CLASSIFY(GRAM, [0, 0, 0, 0]), "two classes"),
        (lambda: CLASSIFY(GRAM, [0.0, 1.0, 1.0, 2.0]), "y must"),
        (lambda: CLASSIFY(GRAM, [0, 1, 2, 3], classes=3), "below the number"),
        (lambda: CLASSIFY(GRAM, np.full((4, 2), 0.4)), "sum to one"),
        (lambda: CLASSIFY(GRAM[:, :3], [0, 1, 2, 3]), "gram must"),
        (lambda: CLASSIFY(np.triu(np.ones((4, 4))), [0, 1, 2, 3]), "symmetric"),
        (
            lambda: CLASSIFY(np.ones((4, 4, 2, 2)), [0, 1, 1, 0], classes=3),
            "classes must be that of gram",
        ),
        (
            lambda: CLASSIFY(GRAM, [0, 1, 1, 0]).predict(np.ones((2, 3)), [1, 1]),
            "cross must",
        ),
        (
            lambda: CLASSIFY(GRAM, [0, 1, 1, 0]).predict(np.ones((2, 4)), [1.0, -1.0]),
            "prior must not be negative",
        ),
        (
            lambda: CLASSIFY(GRAM, [0, 1, 1, 0]).predict(np.ones((2, 4)), [1.0, 1.0], draws=3),
            "key",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_an_indefinite_kernel_is_told(x64):
    with pytest.raises(sn.solution.NumericalError, match="NOT_DEFINITE"):
        CLASSIFY(-100 * np.eye(4), np.array([0, 1, 1, 0]))
