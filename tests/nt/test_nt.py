"""neural_tangents through softntk.nt: every part against a direct computation, fields and flags
included.
"""

import dataclasses
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close, dense_kernels, points, slow_except

from softntk import nt
from softntk.activations import ACTIVATIONS

stax = nt.stax


@pytest.fixture(autouse=True)
def _their_rank_promotion():
    with jax.numpy_rank_promotion("allow"):  # neural_tangents itself promotes ranks
        yield


def assert_same_kernel(actual, desired, rtol=1e-12):
    """All fields of two Kernel objects, arrays and flags."""
    for field in dataclasses.fields(desired):
        a, b = getattr(actual, field.name), getattr(desired, field.name)
        if a is None or b is None:
            assert a is b, field.name
        elif isinstance(b, jax.Array) and b.dtype != bool:
            assert a.dtype == b.dtype, field.name
            assert_close(a, b, rtol=rtol)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


# --- stax: kernels of infinite width
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"), [(stax.Relu, "relu"), (stax.Erf, "erf"), (stax.Exp, "exp")]
)
def test_deep_recursion_agrees_with_our_moments(layer, name, x64):
    w, b = 0.8, 0.3
    kernel_fn = stax.serial(
        stax.Dense(1, w, b), layer(), stax.Dense(1, w, b), layer(), stax.Dense(1, w, b)
    )[2]
    x = points(0, 5, 4) * 2
    moments = ACTIVATIONS[name].moments
    q = w**2 * np.asarray(x @ x.T) / 4 + b**2
    theta = q.copy()
    for _ in range(2):
        q11, q22 = (
            jnp.asarray(v) for v in np.broadcast_arrays(np.diag(q)[:, None], np.diag(q)[None, :])
        )
        nngp, slope = (
            np.asarray(f(q11, jnp.asarray(q), q22, 0.0))
            for f in (moments.covariance, moments.derivative)
        )
        q, theta = w**2 * nngp + b**2, w**2 * (theta * slope + nngp) + b**2
    kernels = jax.jit(kernel_fn)(x, None)
    assert_close(kernels.nngp, q, rtol=1e-6)  # their arccos loses digits at equal points
    assert_close(kernels.ntk, theta, rtol=1e-6)


def test_rbf_is_the_gaussian_kernel(x64):
    kernel_fn = stax.serial(
        stax.Dense(1, W_std=1.0), stax.Rbf(gamma=0.7), stax.Dense(1, W_std=1.0)
    )[2]
    x = points(0, 6, 3)
    squares = np.sum((np.asarray(x)[:, None] - np.asarray(x)[None]) ** 2, -1) / 3
    assert_close(kernel_fn(x, None, "nngp"), np.exp(-0.7 * squares))


def test_convolution_with_pooling_is_its_sum_over_patches(x64):
    kernel_fn = stax.serial(stax.Conv(1, (3,), padding="VALID", W_std=1.0), stax.GlobalAvgPool())[2]
    x = np.random.default_rng(0).normal(size=(4, 6, 2))
    patches = np.stack([x[:, i : i + 3].reshape(4, -1) for i in range(4)], axis=1) / np.sqrt(6)
    assert_close(
        kernel_fn(jnp.asarray(x), None, "nngp"), np.einsum("iap,jbp->ij", patches, patches) / 16
    )


def test_masked_sequences_are_shorter_sequences(x64):
    """A masked token must count for nothing: the kernel of the shorter sequence, in analytic and
    finite network alike.
    """
    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(16), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(1)
    )
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    masked = x.copy()
    masked[:, 3:] = 100.0
    short, long = jnp.asarray(x[:, :3]), jnp.asarray(masked)
    masked_fn = jax.jit(lambda x1, x2: kernel_fn(x1, x2, ("nngp", "ntk"), mask_constant=100.0))
    short_fn = jax.jit(lambda x1, x2: kernel_fn(x1, x2, ("nngp", "ntk")))
    for other in (None, short[:2]):
        for actual, desired in zip(masked_fn(long, other), short_fn(short, other), strict=True):
            assert_close(actual, desired)
    _, params = init_fn(jax.random.key(0), long.shape)
    assert_close(
        stax.unmask_fn(apply_fn)(params, long, mask_constant=100.0), apply_fn(params, short)
    )


# --- batch
# --------------------------------------------------------------------------------------------------------

NETWORKS = {
    "dense": (stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(1)), (5,)),
    "conv": (
        stax.serial(stax.Conv(8, (2, 2)), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(1)),
        (3, 3, 2),
    ),
    "parallel": (
        stax.serial(
            stax.Dense(8),
            stax.FanOut(2),
            stax.parallel(stax.serial(stax.Sin(), stax.Dense(8)), stax.Dense(8)),
            stax.FanInSum(),
        ),
        (5,),
    ),
}


def second_points(case, x1, shape):
    other = np.random.default_rng(1).normal(size=(8, *shape))
    return {
        "none": None,
        "same": x1.copy(),
        "equal beginning": jnp.concatenate([x1[:4], other[:4]]),
        "equal beginning, fewer": x1[:4],
        "other": jnp.asarray(other[:4]),
    }[case]


WAYS = {
    "serial": {"device_count": 0},
    "automatic": {"device_count": -1},
    "off device": {"device_count": 0, "store_on_device": False},
    "composed": {"device_count": 1},
}
CASES = ["none", "same", "equal beginning", "equal beginning, fewer", "other"]
BATCHES = [
    ("dense", WAYS, 2),
    ("dense", ["composed"], 4),
    ("conv", ["composed"], 4),
    ("parallel", ["serial"], 4),
]


@pytest.mark.filterwarnings("ignore:`FanIn` layers assume independent inputs")
@pytest.mark.parametrize("case", slow_except(CASES, "none", "same", "equal beginning", "other"))
@pytest.mark.parametrize(
    ("network", "ways", "batch_size"),
    slow_except(BATCHES, *(batch for batch in BATCHES if batch[0] != "conv")),
)
def test_batch_is_the_direct_kernel_in_every_field(network, ways, batch_size, case, x64):
    (_, _, kernel_fn), shape = NETWORKS[network]
    x1 = jnp.asarray(np.random.default_rng(0).normal(size=(8, *shape)))
    x2 = second_points(case, x1, shape)
    direct = jax.jit(kernel_fn)(x1, x2)
    for way in ways:
        assert_same_kernel(nt.batch(kernel_fn, batch_size=batch_size, **WAYS[way])(x1, x2), direct)
    assert bool(direct.x1_is_x2) == (case in ("none", "same"))


@pytest.mark.parametrize("case", CASES)
def test_composed_batches(case, x64):
    """kernel_fn(kernel_fn(x)): the second takes a Kernel, whose flag is its own."""
    kernel_fn = stax.serial(stax.Dense(8), stax.Erf())[2]
    batched = nt.batch(kernel_fn, batch_size=2, device_count=0)
    x1 = points(0, 8, 5)
    x2 = second_points(case, x1, (5,))
    assert_same_kernel(batched(batched(x1, x2)), kernel_fn(kernel_fn(x1, x2)))


def test_batches_of_batches(x64):
    """Even spread over "all" devices twice, where there is one."""
    kernel_fn = stax.serial(stax.Dense(8), stax.Erf())[2]
    x = points(0, 8, 5)
    batched = nt.batch(nt.batch(kernel_fn, device_count=1), batch_size=4, device_count=1)
    assert_same_kernel(batched(x, None), kernel_fn(x, None))


TWO_DEVICES = """
import jax, numpy as np
from softntk import nt
kernel_fn = nt.stax.serial(nt.stax.Dense(8), nt.stax.Erf())[2]
x, (first, second) = jax.random.normal(jax.random.key(0), (4, 5)), jax.devices()
batched = nt.batch(kernel_fn, device_count=2)
once, twice = batched(jax.device_put(x, second)), batched(batched(x))
np.testing.assert_allclose(once.nngp, kernel_fn(x).nngp, rtol=1e-5)
np.testing.assert_allclose(twice.ntk, kernel_fn(kernel_fn(x)).ntk, rtol=1e-5)
assert once.ntk.devices() == twice.cov1.devices() == {first}
assert bool(once.x1_is_x2) and bool(twice.x1_is_x2)
"""


@pytest.mark.slow
def test_batches_on_two_devices():
    """Points may be on any, kernels compose and are on the first; in a process of its own, for
    which there are two.
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- empirical and Monte Carlo kernels
# ----------------------------------------------------------------------------


def two_outputs():
    init_fn, apply_fn, _ = stax.serial(stax.Dense(16, b_std=0.1), stax.Erf(), stax.Dense(2))
    return apply_fn, init_fn(jax.random.key(0), (-1, 4))[1]


AXES = {
    "full": {"trace_axes": ()},
    "mean": {"trace_axes": (-1,)},
    "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
}
BY_HAND = [1, 2, 3]
"""Every implementation but AUTO, which compiles them all to choose one."""


@pytest.mark.parametrize(
    ("outputs", "implementation", "vmap_axes"),
    slow_except(
        itertools.product(AXES, BY_HAND, [None, 0]),
        ("full", 1, 0),
        ("mean", 2, 0),
        ("diagonal", 3, 0),
        ("full", 3, None),
    ),
)
def test_empirical_kernels_are_products_of_jacobians(outputs, implementation, vmap_axes, x64):
    apply_fn, params = two_outputs()
    x1, x2 = points(1, 4, 4), points(2, 3, 4)
    options = {"vmap_axes": vmap_axes, "implementation": implementation, **AXES[outputs]}
    dense = jax.jit(lambda other: dense_kernels(apply_fn, params, x1, other)[outputs])
    assert_close(jax.jit(nt.empirical_ntk_fn(apply_fn, **options))(x1, None, params), dense(None))
    both = jax.jit(lambda *args: nt.empirical_kernel_fn(apply_fn, **options)(*args, None, params))(
        x1, x2
    )
    assert_close(both.ntk, dense(x2))
    nngp = {"full": "il,jm->ijlm", "mean": "il,jl->ij", "diagonal": "il,jl->ijl"}[outputs]
    f1, f2 = apply_fn(params, x1), apply_fn(params, x2)
    assert_close(both.nngp, jnp.einsum(nngp, f1, f2) / (2 if outputs == "mean" else 1))


@pytest.mark.parametrize("implementation", BY_HAND)
def test_empirical_kernel_outside_jit(implementation, x64):
    """There JAX deprecates ``jnp.dtype`` of an array and ``jnp.size`` of a shape, and a warning is
    an error here.
    """
    x = points(1, 3, 4)
    ntk_fn = nt.empirical_ntk_fn(lambda p, x: x @ p, (), implementation=implementation)
    assert_close(ntk_fn(x, None, jnp.ones((4, 2))), jnp.einsum("ij,lm->ijlm", x @ x.T, jnp.eye(2)))


def test_defaults_and_names_of_implementations(x64):
    apply_fn, params = two_outputs()
    x = points(1, 4, 4)
    desired = dense_kernels(apply_fn, params, x)["mean"]
    for options in (
        {},
        *({"implementation": i} for i in (nt.NtkImplementation.NTK_VECTOR_PRODUCTS, 0)),
    ):
        assert_close(
            jax.jit(nt.empirical_ntk_fn(apply_fn, vmap_axes=0, **options))(x, None, params), desired
        )


# --- structured derivatives
# ---------------------------------------------------------------------------------------


def convolutional():
    layers = (
        stax.Conv(3, (2, 2), b_std=0.1, padding="SAME"),
        stax.Gelu(),
        stax.AvgPool((2, 2)),
        stax.Conv(2, (2, 2), b_std=0.1),
    )
    init_fn, apply_fn, _ = stax.serial(*layers)
    return apply_fn, init_fn(jax.random.key(1), (1, 4, 4, 2))[1], (4, 4, 2)


def by_hand(network):
    keys = jax.random.split(jax.random.key(2), 3)
    params = {
        "w": jax.random.normal(keys[0], (4, 6)),
        "b": jnp.ones(6),
        "v": jax.random.normal(keys[1], (6, 3)),
    }
    return network, params, (4,)


def attention(params, x):
    """Softmax over hidden units: custom_jvp, reductions, a bias, and layer normalisation with a
    scale that is a product.
    """
    h = jax.nn.relu(x @ params["w"] + params["b"])
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1) * params["b"]
    return jax.nn.softmax(h) @ params["v"]


def gated(params, x):
    """``jnp.split``, one primitive of two outputs that neural_tangents would refuse."""
    value, gate = jnp.split(x @ params["w"], 2, axis=-1)
    return value * jax.nn.sigmoid(gate) + params["b"][:3] * params["b"][3:]


def half_used(params, x):
    """A split whose other half no output needs, and a parameter that is itself an output's part."""
    return jnp.split(x @ params["w"], 2, axis=-1)[0] + params["v"][:1]


STRUCTURED = {
    "convolutional": convolutional,
    "attention": lambda: by_hand(attention),
    "checkpoint": lambda: by_hand(
        jax.checkpoint(lambda p, x: jnp.sin(x @ p["w"] + p["b"]) @ p["v"])
    ),
    "gated": lambda: by_hand(jax.jit(gated)),
    "half used": lambda: by_hand(half_used),
}


@pytest.mark.filterwarnings("ignore:No Jacobian rule found for slice")
@pytest.mark.parametrize("name", slow_except(sorted(STRUCTURED), "checkpoint", "gated"))
def test_structured_derivatives_are_products_of_jacobians(name, x64):
    apply_fn, params, shape = STRUCTURED[name]()
    x1, x2 = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(n, *shape)))
        for seed, n in ((0, 3), (1, 2))
    )
    out = apply_fn(params, x1).shape[1:]
    d, axes = len(out), tuple(range(1, 1 + len(out)))
    flat = lambda p, x: apply_fn(p, x).reshape(x.shape[0], -1)
    for other, vmap_axes, options in ((None, None, {}), (x2, 0, {"diagonal_axes": axes})):
        desired = jax.jit(lambda *args: dense_kernels(flat, *args))(params, x1, other)
        shape = desired["mean"].shape
        # nt's order: both copies of an axis together
        pairs = (0, 1, *(axis for i in range(d) for axis in (2 + i, 2 + d + i)))
        full, diagonal = (
            desired["full"].reshape(*shape, *out, *out),
            desired["diagonal"].reshape(*shape, *out),
        )
        ntk_fn = nt.empirical_ntk_fn(apply_fn, (), vmap_axes=vmap_axes, implementation=3, **options)
        assert_close(
            jax.jit(ntk_fn)(x1, other, params), diagonal if options else full.transpose(pairs)
        )


def largest_array(f, *args):
    """Elements of the largest array in the program of f."""
    sizes = lambda jaxpr: (
        [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
        + [
            n
            for eqn in jaxpr.eqns
            for p in eqn.params.values()
            if hasattr(p, "eqns") or hasattr(p, "jaxpr")
            for n in sizes(getattr(p, "jaxpr", p))
        ]
    )
    return max(sizes(jax.make_jaxpr(f)(*args).jaxpr))


def test_structured_derivatives_use_the_structure(x64):
    """The Jacobian of n outputs of size k in a weight matrix is never formed: not even one tenth of
    it.
    """
    width, n, k = 32, 4, 16
    init_fn, apply_fn, _ = stax.serial(
        stax.Dense(width), stax.Relu(), stax.Dense(width), stax.Relu(), stax.Dense(k)
    )
    x, params = points(0, n, 8), init_fn(jax.random.key(0), (-1, 8))[1]
    programs = {i: nt.empirical_ntk_fn(apply_fn, (), vmap_axes=0, implementation=i) for i in (1, 3)}
    assert largest_array(programs[1], x, None, params) >= n * k * width**2
    assert largest_array(programs[3], x, None, params) < n * k * width**2 / 10
    flops = {
        i: jax.jit(f).lower(x, None, params).compile().cost_analysis()["flops"]
        for i, f in programs.items()
    }
    assert flops[3] < flops[1] / 3


@pytest.mark.filterwarnings("ignore:No Jacobian rule found")
@pytest.mark.parametrize("forward", slow_except([None, True, False], None))
def test_structured_derivatives_without_rules_for_jacobians(forward, x64):
    """Each equation is then differentiated forwards or transposed, which has no table of JAX's own
    behind it any more.
    """
    apply_fn, params, _ = by_hand(attention)
    x = points(1, 3, 4)
    for rules in (True, False):
        ntk_fn = nt.empirical_ntk_fn(
            apply_fn, (), implementation=3, _s_rules=rules, _j_rules=False, _fwd=forward
        )
        assert_close(
            jax.jit(ntk_fn)(x, None, params),
            jax.jit(lambda x: dense_kernels(apply_fn, params, x)["full"])(x),
        )


def test_auto_chooses_among_those_that_can_run(x64):
    """STRUCTURED_DERIVATIVES has no rule for a parameter that is convolved with something."""
    apply_fn = lambda p, x: jax.lax.conv(p, x, (1,), "SAME")
    params, x = jnp.ones((2, 1, 5)), jnp.ones((2, 1, 3))
    with pytest.raises(NotImplementedError):
        nt.empirical_ntk_fn(apply_fn, implementation=3)(x, None, params)
    desired = nt.empirical_ntk_fn(apply_fn, implementation=1)(x, None, params)
    assert_close(nt.empirical_ntk_fn(apply_fn, implementation=0)(x, None, params), desired)


# --- vector products, expansions, Monte Carlo
# ---------------------------------------------------------------------


def test_vector_products_linearization_and_taylor_expansion(x64):
    apply_fn, params = two_outputs()
    x1, x2 = points(1, 4, 4), points(2, 3, 4)
    v = points(3, 3, 2)
    full = jax.jit(lambda x1, x2: dense_kernels(apply_fn, params, x1, x2)["full"])(x1, x2)
    assert_close(
        jax.jit(nt.empirical_ntk_vp_fn(apply_fn, x1, x2, params))(v),
        jnp.einsum("ijlm,jm->il", full, v),
    )
    near = jax.tree.map(lambda leaf: leaf + 1e-4 * jnp.cos(leaf), params)
    exact = apply_fn(near, x1) - apply_fn(params, x1)
    gaps = [
        jnp.abs(jax.jit(nt.taylor_expand(apply_fn, params, k))(near, x1) - apply_fn(near, x1)).max()
        for k in (0, 1, 2)
    ]
    assert gaps[2] < 1e-3 * gaps[1] < 1e-6 * gaps[0]
    assert_close(nt.linearize(apply_fn, params)(near, x1) - apply_fn(params, x1), exact, rtol=1e-3)


def test_monte_carlo_kernels_converge(x64):
    init_fn, apply_fn, kernel_fn = stax.serial(stax.Dense(512), stax.Erf(), stax.Dense(1))
    x1, x2 = points(0, 4, 3), points(1, 2, 3)
    sample = nt.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.PRNGKey(0), [1, 64], batch_size=2, device_count=0, vmap_axes=0
    )
    for other in (None, x2):
        exact = jax.jit(kernel_fn)(x1, other)
        _, fine = sample(x1, other, ("nngp", "ntk"))
        assert_close(fine.ntk, exact.ntk, rtol=0.05)
        assert_close(fine.nngp, exact.nngp, rtol=0.4)


# --- predict
# ------------------------------------------------------------------------------------------------------


@pytest.fixture
def problem(x64):
    kernel_fn = stax.serial(stax.Dense(1, 1.2, 0.1), stax.Erf(), stax.Dense(1, 1.2, 0.1))[2]
    x, x_test = points(0, 6, 4), points(1, 3, 4)
    return kernel_fn, x, x_test, points(2, 6, 2)


def test_gradient_descent_mse(problem):
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predict_fn = nt.predict.gradient_descent_mse(gram, y, learning_rate=3.0)
    for t in (0.0, 2.0, 50.0):
        weights = np.linalg.solve(
            gram, (np.eye(6) - scipy.linalg.expm(-np.asarray(gram) * 3 * t / 12)) @ np.asarray(y)
        )
        for call in (predict_fn, jax.jit(predict_fn)):
            train, test = call(t, 0.0, 0.0, cross)
            np.testing.assert_allclose(train, np.asarray(gram) @ weights, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(test, np.asarray(cross) @ weights, rtol=1e-8, atol=1e-12)
    _, test = predict_fn(None, 0.0, 0.0, cross)
    assert_close(test, np.asarray(cross) @ np.linalg.solve(gram, y), rtol=1e-9)


@pytest.mark.parametrize("t", [None, 5.0])
def test_gradient_descent_mse_with_a_traced_kernel(problem, t):
    """The factorisation is taken out of jit and vmap when it can be, and must not be when the
    kernel itself is traced.
    """
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predict = lambda k, c: nt.predict.gradient_descent_mse(k, y)(t, 0.0, 0.0, c)[1]
    desired = predict(gram, cross)
    assert_close(jax.jit(predict)(gram, cross), desired)
    scales = jnp.array([1.0, 2.0])
    assert_close(jax.vmap(lambda s: predict(gram, s * cross))(scales)[1], 2 * desired)
    assert_close(jax.vmap(lambda s: predict(s * gram, s * cross))(scales)[0], desired)
    outside = nt.predict.gradient_descent_mse(gram, y)
    inside = jax.jit(lambda c: outside(t, 0.0, 0.0, c)[1])
    assert_close(inside(cross), desired)
    # nothing leaked from the trace into the cache
    assert_close(outside(t, 0.0, 0.0, cross)[1], desired)


@pytest.mark.parametrize("t", [None, 5.0])
def test_traced_regularisation(problem, t):
    """A regularisation that is differentiated keeps the factorisation inside of the trace, though
    the kernel is known.
    """
    kernel_fn, x, x_test, y = problem
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(x_test, x, "ntk")
    predictions = [
        lambda reg: nt.predict.gradient_descent_mse(gram, y, diag_reg=reg)(t, 0.0, 0.0, cross)[1]
    ]
    if t is None:
        predictions.append(lambda reg: nt.predict.gp_inference(gram, y, diag_reg=reg)("ntk", cross))
    for predict in predictions:
        regs = np.array([0.1 - 1e-5, 0.1 + 1e-5])
        below, above = predict(regs[0]), predict(regs[1])
        for actual, desired in zip(
            jax.vmap(predict)(jnp.asarray(regs)), (below, above), strict=True
        ):
            assert_close(actual, desired)
        assert_close(jax.jit(jax.jacfwd(predict))(0.1), (above - below) / 2e-5, rtol=1e-6)


def test_gradient_descent_ode(problem):
    kernel_fn, x, _, y = problem
    gram = kernel_fn(x, None, "ntk")
    predict_fn = nt.predict.gradient_descent(lambda f, y: 0.5 * jnp.mean((f - y) ** 2), gram, y)
    out = predict_fn(jnp.array([1.0, 10.0]), 0.0)
    for i, t in enumerate((1.0, 10.0)):
        assert_close(
            out[i],
            (np.eye(6) - scipy.linalg.expm(-np.asarray(gram) * t / 12)) @ np.asarray(y),
            rtol=1e-5,
        )


def test_gp_inference_and_ensembles(problem):
    kernel_fn, x, x_test, y = problem
    k = {
        (a, b): kernel_fn(p, q, ("nngp", "ntk"))
        for (a, p), (b, q) in itertools.product([("d", x), ("t", x_test)], repeat=2)
    }
    reg = 1e-3
    nngp, ntk = (np.asarray(getattr(k["d", "d"], g)) for g in ("nngp", "ntk"))
    nngp_reg, ntk_reg = (m + reg * np.trace(m) / 6 * np.eye(6) for m in (nngp, ntk))
    cross, cross_nngp = np.asarray(k["t", "d"].ntk), np.asarray(k["t", "d"].nngp)
    to_data = cross @ np.linalg.inv(ntk_reg)
    mean = to_data @ np.asarray(y)
    covariance = (
        np.asarray(k["t", "t"].nngp)
        + to_data @ nngp @ to_data.T
        - to_data @ cross_nngp.T
        - cross_nngp @ to_data.T
    )
    posterior = np.asarray(k["t", "t"].nngp) - cross_nngp @ np.linalg.solve(nngp_reg, cross_nngp.T)
    direct = nt.predict.gp_inference(k["d", "d"], y, diag_reg=reg)(
        ("nngp", "ntk"), k["t", "d"], k["t", "t"]
    )
    ensemble = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=reg)(
        x_test=x_test, compute_cov=True
    )
    for out in (direct, ensemble):
        assert_close(out.ntk.mean, mean, rtol=1e-8)
        assert_close(out.ntk.covariance, covariance, rtol=1e-8)
        assert_close(out.nngp.covariance, posterior, rtol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_max_learning_rate(problem, momentum):
    kernel_fn, x, _, _ = problem
    gram = kernel_fn(x, None, "ntk")
    desired = 2 * (1 + momentum) * 12 / np.linalg.eigvalsh(gram)[-1]
    assert_close(nt.predict.max_learning_rate(gram, 12, momentum), desired, rtol=1e-9)
    assert_close(
        nt.predict.max_learning_rate(gram[..., None, None] * np.eye(2), None, momentum),
        desired,
        rtol=1e-9,
    )
