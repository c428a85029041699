"""Two-layer networks where users meet the edges: units, near points, traced σ, containers, meshes,
wrong arguments.
"""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pandas as pd
import pytest
import sweep_moments
from helpers import assert_close, points

import softntk as sn
from softntk.networks import Parameters, two_layer

RELU = two_layer("relu", width=2)


def exact_relu(a, b):
    """NTK of relu in float64, the angle by differences of unit vectors."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    norms_a, norms_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    u, v = a / norms_a[..., None], b / norms_b[..., None]
    theta = 2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    return norms_a * norms_b * np.cos(theta) * (np.pi - theta) / (2 * np.pi)


# --- near points
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_nearly_equal_and_nearly_opposite_points(bias):
    """A few copies a row (picked out one by one), and more than that (all differences)."""
    noise = np.random.default_rng(0).normal(size=(60, 3))
    near = np.asarray([1.0, 0.3, 0.2]) + noise * 10.0 ** -np.arange(60)[:, None].clip(0, 7)
    x = jnp.asarray(near * np.where(np.arange(60) % 3, 1, -1)[:, None], jnp.float32)
    net = two_layer("relu", width=2, bias=bias)
    lift = lambda x: np.concatenate([x, np.ones((len(x), 1))], 1) if bias else x
    for count in (4, 60):
        for other in (None, x[:count]):
            want = exact_relu(lift(x[:count]), lift(x[:count]))
            assert_close(net.kernel_fn(x[:count], other, "ntk"), want, rtol=2e-6)


def test_crrelu_at_near_points():
    """The slope is that of an angle of 2e-4, which products of float32 do not know."""
    x = np.float32([0.6, 0.8, 0.1])
    y = x + np.float32([1e-4, -2e-4, 1e-4])
    q11, q12, q22 = (mpmath.fdot(a.tolist(), b.tolist()) for a, b in ((x, x), (x, y), (y, y)))
    kernel = two_layer(activation="crrelu", width=2).kernel_fn(
        jnp.asarray(x[None]), jnp.asarray(y[None]), "ntk"
    )
    assert_close(kernel, [[q12 * sweep_moments.crrelu_moments(q11, q12, q22)[1].value]], rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "threshold", "erf", "crrelu"])
def test_equal_points_in_two_sets_have_the_kernel_of_one(activation):
    net = two_layer(activation=activation, width=2, sigma=8.0)
    x = points(0, 20, 300, "float32")
    for one, two in zip(net.kernel_fn(x), net.kernel_fn(x, x + 0.0), strict=True):
        assert_close(two, one, rtol=2e-6)
        assert_close(np.diag(two), np.diag(one), rtol=2e-6)


def test_near_points_under_transformations():
    x = jnp.asarray([[1.0, 0.3], [1.0, 0.3001], [-1.0, -0.3]])
    kernel = lambda a, b: RELU.kernel_fn(a, b, "ntk")
    want = exact_relu(x, x)
    by_pairs = jax.vmap(jax.vmap(lambda a, b: kernel(a[None], b[None])[0, 0], (None, 0)), (0, None))
    assert_close(by_pairs(x, x), want, rtol=2e-6)
    assert_close(jax.jit(kernel)(x, x), want, rtol=2e-6)
    for gradient in jax.grad(lambda a, b: jnp.sum(kernel(a, b)), (0, 1))(x, x):
        assert np.isfinite(gradient).all()
    with jax.enable_x64(True):
        far = points(0, 3, 2)
        gradient = jax.grad(lambda a: jnp.sum(kernel(a, far[:2]) ** 2))(far)
        differences = [
            (
                jnp.sum(kernel(far.at[i, j].add(1e-6), far[:2]) ** 2)
                - jnp.sum(kernel(far.at[i, j].add(-1e-6), far[:2]) ** 2)
            )
            / 2e-6
            for i in range(3)
            for j in range(2)
        ]
        assert_close(gradient.ravel(), differences, rtol=1e-6)


# --- units
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e18])
def test_homogeneous_networks_in_any_unit(scale):
    x, net = points(0, 4, 3, "float32"), two_layer("relu", width=4)
    if scale**2 > 1e-38:
        assert_close(
            net.kernel_fn(scale * x, None, "nngp") / scale / scale,
            net.kernel_fn(x, None, "nngp"),
            "float32",
        )
        assert_close(
            net.kernel_fn(scale * x, None, "ntk") / scale / scale,
            net.kernel_fn(x, None, "ntk"),
            "float32",
        )
    for activation, normalize in (("relu", True), ("threshold", False), ("threshold", True)):
        net = two_layer(activation=activation, normalize=normalize, width=4, sigma=0.3)
        for scaled, plain in zip(net.kernel_fn(scale * x, x), net.kernel_fn(x, x), strict=True):
            assert_close(scaled, plain * 1.0, "float32")
    small, large = 1e-15 * x, 1e25 * x
    assert_close(RELU.kernel_fn(small, large, "ntk") / 1e10, RELU.kernel_fn(x, x, "ntk"), "float32")


@pytest.mark.parametrize("scale", [1e20, 1e30, 3e37])
@pytest.mark.parametrize(
    "options",
    [{"family": f} for f in sn.networks.FAMILIES] + [{"activation": "erf"}, {"activation": "cosh"}],
)
def test_squares_beyond_the_precision_are_infinite_and_nothing_is_nan(options, scale):
    net = two_layer(**options, width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = jnp.concatenate([scale * points(1, 3, 3, "float32"), points(2, 2, 3, "float32")])
    for kernel in net.kernel_fn(x):
        assert not np.isnan(kernel).any()
        assert np.isposinf(kernel[:3, :3]).all() or options == {"family": "relu"}
        assert np.isfinite(kernel[3:, 3:]).all()
    assert not np.isnan(net.apply_fn(params, x)).any()
    assert np.isfinite(net.apply_fn(params, x)[3:]).all()
    ordinary = jax.grad(lambda x: jnp.sum(net.kernel_fn(x, None, "ntk")[3:, 3:]))(x)
    assert np.isfinite(ordinary).all()


def test_logits_beyond_the_precision_are_outside():
    params = Parameters(
        hidden=jnp.full((2, 2), 10.0).at[0, 1].set(-10), readout=jnp.asarray([[1.0], [-1.0]])
    )
    x = jnp.asarray([[2e38, 2e38], [1.0, 2.0]])
    rows = sn.networks.row_factors(RELU.architecture, params, x)
    assert rows.valid.tolist() == [False, True]
    out = RELU.apply_fn(params, x)
    assert np.isposinf(out[0, 0])
    assert_close(out[1], [(30 - 10) / np.sqrt(2)], "float32")


# --- traced σ
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"family": "softmax"}, {"family": "relu", "bias": True}, {"activation": "erf"}]
)
def test_the_evidence_has_a_derivative_in_sigma(options, x64):
    x, y = points(0, 6, 3), points(1, 6, 1)

    def evidence(sigma):
        gram = two_layer(**options, width=2, sigma=sigma).kernel_fn(
            x, None, "nngp"
        ) + 0.1 * jnp.eye(6)
        return -0.5 * jnp.sum(y * jnp.linalg.solve(gram, y)) - 0.5 * jnp.linalg.slogdet(gram)[1]

    difference = (evidence(1.3 + 1e-5) - evidence(1.3 - 1e-5)) / 2e-5
    assert_close(jax.grad(evidence)(1.3), difference, rtol=1e-7)
    assert_close(
        jax.jit(jax.vmap(evidence))(jnp.asarray([0.7, 1.3])), [evidence(0.7), evidence(1.3)]
    )


def test_traced_settings_in_networks(x64):
    x = points(0, 3, 2)

    def outputs(sigma, epsilon):
        net = two_layer(
            activation=sn.activations.crrelu(epsilon), width=4, sigma=sigma, antisymmetric=False
        )
        assert hash(net.architecture) == hash(net.architecture)
        params = net.init_fn(jax.random.key(0), (-1, 2))[1]
        return jnp.sum(net.apply_fn(params, x)) + jnp.sum(net.kernel_fn(x, None, "ntk"))

    for i, gradient in enumerate(jax.grad(outputs, (0, 1))(0.8, 0.2)):
        step = 1e-6 * np.eye(2)[i]
        assert_close(
            gradient,
            (outputs(0.8 + step[0], 0.2 + step[1]) - outputs(0.8 - step[0], 0.2 - step[1])) / 2e-6,
            rtol=1e-7,
        )


def test_equal_networks_share_programs():
    from softntk._two_layer import infinite_width

    x = points(0, 5, 7, "float32")
    two_layer("softmax", width=4, sigma=0.3).kernel_fn(x)
    before = infinite_width._kernels._cache_size()
    two_layer("softmax", width=8, sigma=0.7).kernel_fn(x)
    assert infinite_width._kernels._cache_size() == before
    assert (
        two_layer("relu", width=4)
        == two_layer("relu", width=4)
        != two_layer("relu", width=4, sigma=2.0)
    )
    assert hash(two_layer("relu", width=4)) == hash(two_layer("relu", width=4))


# --- containers
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["exp", "crrelu"])
def test_a_network_survives_what_rebuilds_it(activation):
    net = two_layer(activation=activation, width=16)
    rebuilt = {
        "tree.map": jax.tree.map(lambda leaf: leaf, net),
        "tree.map in a pytree": jax.tree.map(lambda leaf: 2 * leaf, {"net": net, "step": 1.0})[
            "net"
        ],
        "copy": copy.copy(net),
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "replace": net._replace(init_fn=net.init_fn),
        "jit": jax.jit(lambda x, net=net: (x, net))(1.0)[1],
    }
    for name, again in rebuilt.items():
        assert again == net, name
        assert again.architecture == net.architecture, name
        assert isinstance(again, sn.networks.Network), name
        assert isinstance(again, tuple), name
    with pytest.raises(ValueError, match="net is no network of two_layer any more"):
        _ = net._replace(apply_fn=lambda params, x: x).architecture


def test_a_network_lives_in_a_module():
    class Model(eqx.Module):
        net: object
        params: object

        def __call__(self, x):
            return self.net.apply_fn(self.params, x)

    net = two_layer("softmax", width=16)
    model = Model(net, net.init_fn(jax.random.key(0), (-1, 3))[1])
    x = points(0, 4, 3, "float32")
    assert_close(eqx.filter_jit(lambda m, x: m(x))(model, x), model(x), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(model(x) ** 2)))(model)
    assert gradient.net == net
    assert gradient.params.hidden.shape == (3, 16)


# --- arguments
# ----------------------------------------------------------------------------------------------------


def test_lists_frames_and_two_precisions(x64, untyped):
    net = two_layer("softmax", width=4)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    x = np.asarray([[1.0, 2.0], [0.5, 0.1]])
    want = net.apply_fn(params, x)
    assert_close(net.apply_fn(params, x.tolist()), want)
    assert_close(net.apply_fn(params, pd.DataFrame(x, columns=["a", "b"])), want)
    assert_close(net.kernel_fn(x.tolist(), None, "ntk"), net.kernel_fn(x, None, "ntk"))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with jax.numpy_dtype_promotion("strict"):
        assert net.apply_fn(single, x).dtype == jnp.float64
        assert net.kernel_fn(jnp.asarray(x, jnp.float32), None, "ntk").dtype == jnp.float32


WIDE = two_layer("relu", width=64, out_dim=3)
BIASED = two_layer("softmax", width=4, bias=True)
NET = two_layer("softmax", width=4)
KEY = jax.random.key(0)
PARAMS = NET.init_fn(KEY, (-1, 2))[1]
X = jnp.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (lambda p=p: NET.apply_fn(p, X), "params must be the Parameters")
            for p in (None, {}, "p", X, (None, PARAMS), [1], 3)
        ],
        (lambda: NET.apply_fn(X, PARAMS), "params must be the Parameters"),
        (lambda: WIDE.apply_fn(PARAMS, X), r"params.hidden must have shape \[d, 64\]"),
        (
            lambda: NET.apply_fn(PARAMS.replace(readout=jnp.ones((4, 2))), X),
            r"params.readout must have shape \[4, 1\]",
        ),
        (lambda: BIASED.apply_fn(PARAMS, X), "params.bias must be a floating-point array"),
        (lambda: NET.apply_fn(PARAMS.replace(bias=jnp.ones(4)), X), "params.bias must be None"),
        (
            lambda: NET.apply_fn(PARAMS.replace(hidden=None), X),
            "params.hidden must be a floating-point array",
        ),
        (
            lambda: NET.apply_fn(PARAMS.replace(hidden=jnp.ones((2, 4), int)), X),
            "params.hidden must be a floating-point",
        ),
        (
            lambda: NET.apply_fn(jax.tree.map(lambda leaf: leaf[None], PARAMS), X),
            "params.hidden must have shape",
        ),
        *[
            (lambda x=x: NET.apply_fn(PARAMS, x), "x must be")
            for x in (None, "x", {"a": 1}, np.array([[1j]]), [[True]], PARAMS)
        ],
        *[
            (lambda x=x: NET.kernel_fn(x), "x1 must be")
            for x in (None, "x", np.array([["1"]]), [[1, 2]], [[1.0], [1.0, 2.0]])
        ],
        (lambda: NET.kernel_fn(X, "ntk"), "x2 must be"),
        (lambda: NET.kernel_fn(np.full((2, 2), 1e39)), "x1 must be finite in float32"),
        *[
            (lambda g=g: NET.kernel_fn(X, None, g), "get must")
            for g in (3, (), ("ntk", "ntk"), ["x"], [[]], {"ntk"}, b"ntk")
        ],
        *[
            (lambda k=k: NET.init_fn(k, (-1, 3)), "key must be")
            for k in (0, "k", None, jnp.zeros(2), jax.random.split(KEY, 3), 1.5, [0, 1])
        ],
        *[
            (lambda s=s: NET.init_fn(KEY, s), "input_shape must be")
            for s in (
                None,
                3,
                "ab",
                (3,),
                (-1, 0),
                (-1, 2.5),
                (-1, -1),
                (-1, True),
                (-2, 3),
                (None, 3),
                (1, 2, 3),
                {"a": 1},
            )
        ],
        (lambda: NET.init_fn((-1, 3), KEY), "key must be"),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"sigma": bad}
            for bad in ("1", None, 1j, {}, True, [1.0], np.ones(2), float("inf"), -1.0)
        ),
        *({"width": bad} for bad in ("8", None, True, 8.0, [8], -2)),
        *({"out_dim": bad} for bad in ("1", None, 1.0)),
        *({"bias": bad} for bad in ("no", 1, None)),
        *({"train_readout": bad} for bad in ("no", 0, None)),
        *({"antisymmetric": bad} for bad in ("no", 1, None)),
        *({"parameterization": bad} for bad in (None, 3, [], "NTK")),
        *({"family": bad} for bad in (3, [], {}, b"relu")),
        *({"family": None, "activation": bad} for bad in (3, [], jnp.tanh)),
        *({"family": None, "activation": "relu", "normalize": bad} for bad in ("yes", 1)),
    ],
)
def test_wrong_settings_are_named(options, untyped):
    given = {"family": "relu", "width": 8} | options
    name = list(options)[-1]
    with pytest.raises(ValueError, match=f"{name} must be"):
        two_layer(**given)


# --- meshes
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["softmax", "relu"])
def test_rows_on_a_mesh_with_explicit_axes(family):
    mesh = jax.make_mesh((1,), ("rows",))
    net = two_layer(family, width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    plain = points(0, 4, 3, "float32")
    x = jax.device_put(plain, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    with jax.set_mesh(mesh):
        assert_close(net.kernel_fn(x, None, "ntk"), net.kernel_fn(plain, None, "ntk"), "float32")
        assert_close(net.kernel_fn(x, x, "nngp"), net.kernel_fn(plain, plain, "nngp"), "float32")
        assert_close(jax.jit(net.apply_fn)(params, x), net.apply_fn(params, plain), "float32")
        assert jax.typeof(
            net.kernel_fn(x, None, "ntk")
        ).sharding.spec == jax.sharding.PartitionSpec("rows", None)
    assert_close(net.kernel_fn(x, None, "ntk"), net.kernel_fn(plain, None, "ntk"), "float32")
    with pytest.raises(ValueError, match="jax.set_mesh"):
        jax.jit(lambda x: net.kernel_fn(x, None, "ntk"))(x)


@pytest.mark.parametrize("family", ["softmax", "relu"])
def test_blocks_inside_of_shard_map(family):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    net, x = two_layer(family, width=8), points(0, 4, 3, "float32")
    block = lambda x: net.kernel_fn(x, x[:2] * 1.0001, "ntk")
    spread = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec))
    assert_close(spread(x), block(x), "float32")


@pytest.mark.parametrize("activation", ["relu", "crrelu"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("unit1", "unit2"),
    [(1e-25, 1e-25), (1e-19, 1e-19), (1e-25, 1.0), (1e25, 1e-20), (1e10, 1e10), (1e-3, 1e3)],
)
def test_kernels_in_float32_whatever_the_unit(activation, normalize, unit1, unit2, x64):
    """As in float64, whose range is wide enough for the squares of the points; the exact point is
    zero nowhere.
    """
    net = sn.networks.two_layer(activation=activation, width=2, normalize=normalize, sigma=1.5)
    rng = np.random.default_rng(0)
    x1, x2 = (
        (unit * rng.normal(size=(n, 4))).astype(np.float32) for unit, n in ((unit1, 4), (unit2, 3))
    )
    limits = np.finfo(np.float32)
    for kernel, want in zip(
        net.kernel_fn(x1, x2), net.kernel_fn(x1.astype(float), x2.astype(float)), strict=True
    ):
        want = np.clip(want, -limits.max, limits.max)
        np.testing.assert_allclose(
            kernel, want, rtol=1e-5, atol=1e-6 * np.max(np.abs(want)) + 8 * limits.tiny
        )


def test_near_zero_crrelu_is_relu_with_another_slope(x64):
    """u(z) = max(0, z) + ε z + O(z³): the normalized limit of small points is that of a homogeneous
    function.
    """
    near = lambda x: sn.networks.two_layer(
        activation=sn.activations.crrelu(0.3), width=2, normalize=True
    ).kernel_fn(x, None)
    points = np.random.default_rng(1).normal(size=(3, 2))
    for unit in (1e-12, 1e-25, 1e-30):
        for kernel, want in zip(
            near((unit * points).astype(np.float32)), near(1e-9 * points), strict=True
        ):
            np.testing.assert_allclose(kernel, want, rtol=2e-5, atol=1e-6)


def test_an_activation_that_is_traced_is_no_constant_of_a_program(x64):
    """Two values of ε, through one compiled function, and the derivative in it."""
    x = points(0, 3, 2)
    start = two_layer("relu", width=8, antisymmetric=False)
    params = start.init_fn(jax.random.key(0), (-1, 2))[1]

    def outputs(epsilon):
        activation = sn.activations.crrelu(epsilon)
        net = two_layer(activation=activation, width=8, antisymmetric=False)
        return net.apply_fn(params, x)

    compiled = jax.jit(outputs)
    for epsilon in (0.1, 0.7):
        assert_close(compiled(epsilon), outputs(epsilon), rtol=1e-6)
    assert np.abs(compiled(0.1) - compiled(0.7)).max() > 1e-3
