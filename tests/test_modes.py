"""Every kind of computation in each mode of JAX that teams switch on: x64, strict promotion, NaN
and leak checks.

The result must be that of the plain mode, in the precision of the arguments. CI runs float32
arguments under ``jax_enable_x64`` with strict promotion, which finds most of what the modes find
alone; the rest is ``-m slow``.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, slow_except

import softntk as sn

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(5, 3)).astype(np.float32) / 2
Y = np.sin(3 * X[:, :1])
MASS = np.exp(X[:, 0]) / np.exp(X[:, 0]).sum()


@contextlib.contextmanager
def strict_x64() -> Iterator[None]:
    """Promotion refused, float64 allowed."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


MODES: dict[str, Callable[[], Any]] = {
    "strict and x64": strict_x64,
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "x64": lambda: jax.enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
}

CALLS: dict[str, Callable[[], Any]] = {}


def call(function: Callable[[], Any]) -> Callable[[], Any]:
    """Enter a computation into the table, by its name."""
    CALLS[function.__name__] = function
    return function


@functools.cache
def network(name: str = "softmax", **options: Any) -> tuple[Any, Any]:
    """Return a network and weights that are the same in every mode."""
    net = sn.networks.two_layer(name, width=8, **options)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return net, net.init_fn(jax.random.key(0), (-1, 3))[1]


def regression(name: str = "softmax") -> Any:
    return getattr(sn.regression, name)(jnp.asarray(X), jnp.asarray(MASS), weights=0.1)


def gram() -> jax.Array:
    return jnp.asarray(X @ X.T + np.eye(5, dtype=np.float32))


def kernel_operator() -> Any:
    return sn.ntk.kernel_operator(network()[0].kernel_fn, jnp.asarray(X), block_size=2)


@call
def kernels_of_infinite_width():
    return [
        network(name)[0].kernel_fn(jnp.asarray(X), None, "ntk")
        for name in ("softmax", "res_softmax", "relu", "exp")
    ]


@call
def network_values_and_gradients():
    net, params = network("res_softmax", train_readout=True)
    return jax.value_and_grad(lambda params: jnp.sum(net.apply_fn(params, jnp.asarray(X)) ** 2))(
        params
    )


@call
def empirical_kernels():
    net, params = network(out_dim=2)
    return [
        sn.ntk.empirical(net, params, jnp.asarray(X), outputs=outputs)
        for outputs in ("full", "mean", "diagonal")
    ]


@call
def empirical_kernel_of_a_function():
    _, params = network()
    return sn.ntk.empirical(lambda params, x: jnp.tanh(x @ params.hidden), params, jnp.asarray(X))


@call
def products_with_operators():
    net, params = network()
    operator = sn.ntk.operator(net, params, jnp.asarray(X), block_size=2)
    return (
        operator.mv(jnp.asarray(Y)),
        kernel_operator().mv(jnp.asarray(Y[:, 0])),
        operator.diagonal(),
    )


@call
def solve():
    return sn.ntk.solve(kernel_operator(), jnp.asarray(Y[:, 0]), ridge=0.1).value


@call
def kernel_regression_and_posterior():
    net, _ = network()
    kernel = net.kernel_fn(jnp.asarray(X), None, "ntk")
    targets = jnp.asarray(Y)
    posterior = sn.ntk.gp_posterior(
        kernel, targets, noise=0.1, cross=kernel, prior=jnp.diagonal(kernel)
    )
    return (
        sn.ntk.kernel_regression(kernel, targets, ridge=0.1, cross=kernel),
        posterior.mean,
        posterior.variance,
    )


@call
def dynamics():
    steps = jnp.asarray([0, 3], jnp.int32)
    targets = jnp.asarray(Y)
    times = jnp.asarray([0.0, 2.0], jnp.float32)
    return (
        sn.ntk.predict_gd(gram(), targets, 0.1, steps),
        sn.ntk.predict_flow(gram(), targets, times),
        sn.ntk.gd_coefficients(gram(), targets, 0.1, steps),
        sn.ntk.predict_gd(kernel_operator(), targets[:, 0], 0.1, steps),
    )


@call
def ensembles():
    tests = {"cross": gram()[:2], "nngp_cross": gram()[:2], "prior": jnp.diagonal(gram())[:2]}
    times = jnp.asarray([0.0, 2.0], jnp.float32)
    return (
        sn.ntk.predict_ensemble(gram(), gram(), jnp.asarray(Y), times, **tests),
        sn.ntk.predict_ensemble(
            gram(), gram(), jnp.asarray(Y), jnp.asarray([0, 3], jnp.int32), learning_rate=0.1
        ),
    )


@call
def spectra():
    return (
        tuple(sn.ntk.extreme_eigenvalues(gram())),
        sn.ntk.effective_dimension(gram(), 0.1),
        sn.ntk.target_alignment(gram(), jnp.asarray(Y)),
    )


@call
def limits_of_layers():
    variances = [jnp.asarray(q, jnp.float32) for q in (0.5, 0.2, 0.7)]
    return [
        sn.activations.get(name).limit(*variances, normalized=False)
        for name in sn.activations.ACTIVATIONS
    ]


@call
def losses_and_curvature():
    x = jnp.full(3, 0.1, jnp.float32)
    return [
        (p(x), p.gradient(x), p.hessian(x).as_matrix(), p.gauss_newton(x).mv(x), p.predict(x))
        for p in map(regression, ("softmax", "resnet_softmax", "exponential", "hyperbolic"))
    ]


@call
def curvature():
    weights = jnp.asarray(MASS)
    pi = sn.curvature.sketch.probabilities("leverage", jnp.asarray(X), weights)
    return (
        sn.curvature.leverage.scores(jnp.asarray(X), weights),
        sn.curvature.leverage.approximate_scores(jax.random.key(0), jnp.asarray(X)),
        pi,
        sn.curvature.sketch.draw(jax.random.key(1), pi, 3).scales,
        regression().hessian(jnp.zeros(3, jnp.float32)).factorise().solve(jnp.ones(3, jnp.float32)),
    )


@call
def minimise_a_regression():
    return sn.solvers.minimise(regression(), jnp.zeros(3, jnp.float32)).value


@call
def minimise_with_samples():
    p = regression()
    newton = sn.solvers.approx_newton(p.hessian, sketch_size=5, key=jax.random.key(0))
    return sn.solvers.minimise(p, jnp.zeros(3, jnp.float32), newton, rtol=1e-3).value


@call
def minimise_a_function():
    return sn.solvers.minimise(
        lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3, jnp.float32), optax.sgd(0.4)
    ).value


@call
def train():
    net, params = network()
    x, y = jnp.asarray(X), jnp.asarray(Y)
    descent = sn.solvers.gradient_descent(0.1)
    return sn.solvers.train(
        lambda params: jnp.sum((net.apply_fn(params, x) - y) ** 2) / 2, params, descent, 3
    ).value


@call
def natural_gradient():
    net, params = network()
    x, y = jnp.asarray(X), jnp.asarray(Y)
    transform = sn.solvers.natural_gradient(net, x, y)
    return sn.solvers.minimise(
        lambda params: jnp.sum((net.apply_fn(params, x) - y) ** 2) / 2,
        params,
        transform,
        max_steps=1,
        throw=False,
    ).value


@call
def scores_of_a_mixture():
    mixture = sn.diffusion.GaussianMixture(
        jnp.asarray([0.4, 0.6], jnp.float32),
        jnp.asarray(X[:2]),
        jnp.asarray(np.stack([np.eye(3, dtype=np.float32)] * 2)),
    )
    sde = sn.diffusion.vp_sde()
    return mixture.score(sde, 0.3, jnp.asarray(X)), mixture.log_density(sde, 0.3, jnp.asarray(X))


@call
def sample_a_gaussian():
    sde = sn.diffusion.vp_sde()
    samples = sn.diffusion.sample(jax.random.key(0), sde, lambda t, x: -x, (4, 3), steps=4)
    return jnp.isfinite(samples).astype(jnp.float32)  # noise is drawn in the precision of the mode


@call
def metrics():
    return sn.diffusion.energy_distance(jnp.asarray(X), jnp.asarray(X) + 0.1).value


@call
def calibration():
    probabilities, labels = (
        jnp.asarray([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]]),
        jnp.asarray([1, 0, 0]),
    )
    probabilities = probabilities.astype(jnp.float32)
    gaussians = [jnp.asarray(column) for column in (X[:, 0], X[:, 1] ** 2 + 1, X[:, 2])]
    return (
        sn.calibration.negative_log_likelihood(probabilities, labels),
        [
            sn.calibration.expected_calibration_error(probabilities, labels, bins=2, norm=norm)
            for norm in (1, 2, "max")
        ],
        sn.calibration.reliability_curve(probabilities, labels, bins=2, strategy="quantile"),
        sn.calibration.coverage(*gaussians),
        sn.calibration.gaussian_negative_log_likelihood(*gaussians),
    )


def floating(tree: Any) -> list[Any]:
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
    ]


EXPECTED: dict[str, list[np.ndarray]] = {}


def expected(name: str) -> list[np.ndarray]:
    """Return what the plain mode gives, computed once."""
    if name not in EXPECTED:
        EXPECTED[name] = [np.asarray(leaf) for leaf in floating(CALLS[name]())]
    return EXPECTED[name]


CASES = [(name, mode) for mode in MODES for name in CALLS]


@pytest.mark.parametrize(
    ("name", "mode"), slow_except(CASES, *(case for case in CASES if case[1] == "strict and x64"))
)
def test_modes(name, mode):
    desired = expected(name)
    with MODES[mode]():
        actual = floating(CALLS[name]())
        assert [jnp.asarray(leaf).dtype for leaf in actual] == [leaf.dtype for leaf in desired]
        actual = [np.asarray(leaf) for leaf in actual]
    for got, want in zip(actual, desired, strict=True):
        assert_close(got, want, rtol=1e-3)
