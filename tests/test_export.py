"""Programs for devices that are not here: ``jax.export`` for CUDA and TPU, read for what they hold.

Nothing may call back to the host, compute in float64 where float32 is asked for, or need a custom
call that the platform lacks. The table in benchmarks/README.md says what this does not cover.
"""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import softntk as sn

N, D, K, M = 12, 4, 2, 16
X = jax.ShapeDtypeStruct((N, D), jnp.float32)
Y = jax.ShapeDtypeStruct((N, K), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((D,), jnp.float32)
TARGET = jax.ShapeDtypeStruct((N,), jnp.float32)
LABELS = jax.ShapeDtypeStruct((N,), jnp.int32)
MATRIX = jax.ShapeDtypeStruct((N, N), jnp.float32)
NET = sn.networks.two_layer("softmax", width=M, out_dim=K)
RES_NET = sn.networks.two_layer("res_softmax", width=M, out_dim=1)
PARAMS = jax.eval_shape(lambda key: NET.init_fn(key, (N, D))[1], jax.random.key(0))
RES_PARAMS = jax.eval_shape(lambda key: RES_NET.init_fn(key, (N, D))[1], jax.random.key(0))
KEY = jax.eval_shape(lambda: jax.random.key(0))
SDE = sn.diffusion.vp_sde()
POINTS = jax.ShapeDtypeStruct((N, 2), jnp.float32)


def regression_of(A, b):
    return sn.regression.resnet_softmax(A, b, weights=0.1)


def minimise_regression(A, b, x):
    return sn.solvers.minimise(regression_of(A, b), x, max_steps=5).value


def minimise_classification(A, y):
    p = sn.regression.cross_entropy(A, y, weights=0.1, classes=40)  # by class blocks
    return sn.solvers.minimise(p, p.zeros(), max_steps=5).value


def minimise_function(x):
    return sn.solvers.minimise(lambda x: jnp.sum(x**4 - x), x, max_steps=5).value


def natural_gradient(params, x, y):
    def loss(params):
        return 0.5 * jnp.sum((NET.apply_fn(params, x) - y) ** 2)

    transform = sn.solvers.natural_gradient(NET, x, y)
    return sn.solvers.minimise(loss, params, transform, max_steps=3).value


def train(params, x, y):
    def loss(params):
        return 0.5 * jnp.sum((NET.apply_fn(params, x) - y) ** 2)

    return sn.solvers.train(loss, params, optax.adam(1e-2), 3).value


def solve(x, y):
    operator = sn.ntk.kernel_operator(RES_NET.kernel_fn, x)
    return sn.ntk.solve(operator, y, ridge=1e-2, rank=0, throw=False).value


def stax_kernel(x):
    _, _, kernel_fn = sn.stax.serial(sn.stax.Dense(M), sn.stax.Softmax(), sn.stax.Dense(K))
    return kernel_fn(x, None, "ntk")


def score_of(x0):
    return sn.diffusion.EmpiricalDistribution(x0).score


def draw(key, x0, method):
    score = partial(score_of(x0), SDE)
    return sn.diffusion.sample(key, SDE, score, (N, 2), method, steps=3, throw=False)


CASES: dict[str, tuple[Callable, tuple]] = {
    "apply_fn": (NET.apply_fn, (PARAMS, X)),
    "init_fn": (lambda key: NET.init_fn(key, (N, D))[1], (KEY,)),
    "kernel_fn": (lambda x: NET.kernel_fn(x, None, "ntk"), (X,)),
    "kernel_fn res": (lambda x: RES_NET.kernel_fn(x, None, "ntk"), (X,)),
    "normalize": (partial(sn.activations.normalize, "res_exp"), (X,)),
    "empirical": (partial(sn.ntk.empirical, NET), (PARAMS, X)),
    "empirical mean": (partial(sn.ntk.empirical, NET, outputs="mean"), (PARAMS, X)),
    "operator": (lambda p, x, y: sn.ntk.operator(NET, p, x).mv(y), (PARAMS, X, Y)),
    "kernel_operator": (
        lambda x, y: sn.ntk.kernel_operator(RES_NET.kernel_fn, x).mv(y),
        (X, TARGET),
    ),
    "solve": (solve, (X, TARGET)),
    "predict_gd": (
        lambda gram, y: sn.ntk.predict_gd(gram, y, 0.1, jnp.array([1, 10])),
        (MATRIX, Y),
    ),
    "predict_flow": (
        lambda gram, y: sn.ntk.predict_flow(gram, y, jnp.array([1.0, 10.0])),
        (MATRIX, Y),
    ),
    "predict_ensemble": (
        lambda gram, y: sn.ntk.predict_ensemble(gram, gram, y, jnp.array([1.0, jnp.inf])),
        (MATRIX, Y),
    ),
    "kernel_regression": (
        lambda gram, y: sn.ntk.kernel_regression(gram, y, cross=gram, ridge=0.1),
        (MATRIX, Y),
    ),
    "extreme_eigenvalues": (sn.ntk.extreme_eigenvalues, (MATRIX,)),
    "propagate": (
        lambda q: sn.ntk.propagate("exp", q, q, q, 3, normalized=True, weight_variance=0.3),
        (jax.ShapeDtypeStruct((), jnp.float32),),
    ),
    "loss": (lambda A, b, x: regression_of(A, b)(x), (X, TARGET, VECTOR)),
    "value_and_gradient": (
        lambda A, b, x: regression_of(A, b).value_and_gradient(x),
        (X, TARGET, VECTOR),
    ),
    "hessian": (
        lambda A, b, x: regression_of(A, b).hessian(x).as_matrix(),
        (X, TARGET, VECTOR),
    ),
    "hessian products": (
        lambda A, b, x: regression_of(A, b).hessian(x).mv(x),
        (X, TARGET, VECTOR),
    ),
    "factorise": (
        lambda A, b, x: regression_of(A, b).hessian(x).factorise().solve(x),
        (X, TARGET, VECTOR),
    ),
    "leverage scores": (sn.curvature.leverage.scores, (X,)),
    "minimise": (minimise_regression, (X, TARGET, VECTOR)),
    "minimise a classification": (minimise_classification, (X, LABELS)),
    "minimise a function": (minimise_function, (VECTOR,)),
    "natural gradient": (natural_gradient, (PARAMS, X, Y)),
    "train": (train, (PARAMS, X, Y)),
    "stax": (stax_kernel, (X,)),
    "sample sde": (partial(draw, method="sde"), (KEY, POINTS)),
    "sample ode": (partial(draw, method="ode"), (KEY, POINTS)),
    "calibration": (
        lambda p, y: (
            sn.calibration.expected_calibration_error(p, y, norm="max"),
            sn.calibration.reliability_curve(p, y, strategy="quantile"),
            sn.calibration.brier_score(p, y),
        ),
        (Y, LABELS),
    ),
    "log_likelihood": (
        lambda x: sn.diffusion.log_likelihood(SDE, lambda t, x: -x, x, throw=False),
        (POINTS,),
    ),
}

# Custom calls of JAX's own linear algebra and compiler marks, by platform.
KNOWN_CALLS = {
    "cuda": r"cusolver_\w+|cu_\w+|cublas_\w+|cuhybrid_\w+|Sharding|annotate_\w+",
    "tpu": r"Eigh|LuDecomposition|Qr|QrDecomposition|ProductOfElementaryHouseholderReflectors|Sharding"
    r"|annotate_\w+|ApproxTopK",
}


@pytest.mark.parametrize("name", CASES)
def test_exports(name):
    function, arguments = CASES[name]
    program = jax.jit(function)  # traced once for both platforms
    for platform, known_calls in KNOWN_CALLS.items():
        module = jax.export.export(program, platforms=[platform])(*arguments).mlir_module()
        assert "callback" not in module
        assert "f64" not in module
        assert "?x" not in module  # static shapes
        calls = set(re.findall(r"custom_call @([\w.]+)", module))
        unknown = {call for call in calls if not re.fullmatch(known_calls, call)}
        assert not unknown, platform


def test_a_callback_would_be_seen():
    def log(x):
        jax.debug.print("{}", x)
        return x

    with pytest.raises((NotImplementedError, ValueError), match="callback|specified backend"):
        jax.export.export(jax.jit(log), platforms=["cuda"])(VECTOR)
