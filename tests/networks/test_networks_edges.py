"""Two-layer networks where users meet the edges: units, traced σ, containers, meshes."""

import copy
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, points

import softntk as sn
from softntk.networks import Parameters, two_layer

RELU = two_layer("relu", width=2)


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
        net: Any
        params: Any

        def __call__(self, x):
            return self.net.apply_fn(self.params, x)

    net = two_layer("softmax", width=16)
    model = Model(net, net.init_fn(jax.random.key(0), (-1, 3))[1])
    x = points(0, 4, 3, "float32")
    assert_close(eqx.filter_jit(lambda m, x: m(x))(model, x), model(x), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(model(x) ** 2)))(model)
    assert gradient.net == net
    assert gradient.params.hidden.shape == (3, 16)


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
