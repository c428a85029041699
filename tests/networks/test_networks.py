"""Every network × every law: the paper's formula, readouts, the triple in neural_tangents, huge and
infinite logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_references import REFERENCE
from helpers import assert_close, cast, points, slow_except

import softntk as sn
from softntk import nt
from softntk.networks import FAMILIES, two_layer

# Where float32 is the harder case, and a case takes a second to compile.
every_precision = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True
)
every = pytest.mark.parametrize("family", sorted(FAMILIES))
some = pytest.mark.parametrize("family", slow_except(sorted(FAMILIES), "res_softmax", "relu"))


def naive(family, hidden, readout, x, bias=0.0):
    """F(x), one point at a time, from the definition."""
    x, hidden, readout = (np.asarray(v, np.float64) for v in (x, hidden, readout))
    m, rows = hidden.shape[1], []
    for point in x:
        z = point @ hidden + np.asarray(bias, np.float64)
        activation, normalized = FAMILIES[family]
        u = REFERENCE[activation](z)
        rows.append((m * u / u.sum() if normalized else u) @ readout / np.sqrt(m))
    return np.array(rows)


@pytest.mark.parametrize("family", slow_except(sorted(FAMILIES), "res_softmax", "softmax"))
@pytest.mark.parametrize(
    ("parameterization", "bias"),
    slow_except(
        [("ntk", False), ("ntk", True), ("paper", False), ("paper", True)],
        ("ntk", False),
        ("paper", True),
    ),
)
def test_apply_is_the_definition(family, parameterization, bias, dtype):
    net = two_layer(
        family,
        width=64,
        out_dim=3,
        antisymmetric=False,
        parameterization=parameterization,
        bias=bias,
    )
    shape, params = net.init_fn(jax.random.key(0), (-1, 5))
    assert shape == (-1, 3)
    x = points(1, 7, 5, dtype)
    out = net.apply_fn(params, x)
    assert out.dtype == params.hidden.dtype == params.readout.dtype == dtype
    desired = naive(family, params.hidden, params.readout, x, params.bias if bias else 0.0)
    assert_close(out, desired * (8 if parameterization == "paper" else 1), dtype)
    assert_close(jax.jit(net.apply_fn)(params, x), out, dtype)
    assert_close(jax.vmap(lambda row: net.apply_fn(params, row[None])[0])(x), out, dtype)


@every
def test_antisymmetric_initialisation(family, dtype):
    net = two_layer(family, width=512, out_dim=2, sigma=0.5)
    _, params = net.init_fn(jax.random.key(0), (-1, 6))
    x = points(1, 5, 6, dtype)
    scale = np.abs(
        np.asarray(net.apply_fn(params.replace(readout=jnp.abs(params.readout)), x))
    ).max()
    assert np.abs(net.apply_fn(params, x)).max() < 1e-6 * scale
    assert set(np.unique(params.readout)) == {-1.0, 1.0}
    assert abs(np.std(params.hidden[:, :256]) - 0.5) < 0.03
    np.testing.assert_array_equal(params.hidden[:, :256], params.hidden[:, 256:])


@every
@pytest.mark.parametrize("train_readout", [False, True])
def test_readout_is_frozen_unless_trained(family, train_readout):
    net = two_layer(family, width=16, out_dim=2, train_readout=train_readout, bias=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    grads = jax.grad(
        lambda p: jnp.sum(
            net.apply_fn(p, points(0, 4, 3, "float32")) ** 2
            + net.apply_fn(p, points(0, 4, 3, "float32"))
        )
    )(params)
    assert bool(jnp.any(grads.readout != 0)) == train_readout
    assert jnp.any(grads.hidden != 0)
    assert jnp.any(grads.bias != 0)


@every
def test_trained_readout_adds_the_nngp_and_paper_scales_by_width(family, dtype):
    x = points(0, 4, 3, dtype)
    plain = two_layer(family, width=10).kernel_fn(x)
    trained = two_layer(family, width=10, train_readout=True).kernel_fn(x)
    paper = two_layer(family, width=10, parameterization="paper").kernel_fn(x)
    assert_close(trained.ntk, plain.ntk + plain.nngp, dtype)
    assert_close(paper.ntk, 10 * plain.ntk, dtype)
    assert_close(paper.nngp, 10 * plain.nngp, dtype)


@pytest.mark.optimised
@some
def test_nngp_is_the_covariance_of_outputs(family):
    """Over many plain initialisations, which is what an NNGP means; antisymmetric networks have F =
    0.
    """
    net = two_layer(family, width=1024, sigma=0.5, antisymmetric=False)
    x = points(0, 3, 4, "float32")
    draw = lambda key: net.apply_fn(net.init_fn(key, (-1, 4))[1], x)[:, 0]
    out = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)), np.float64)
    products = out[:, :, None] * out[:, None, :]
    error = products.mean(0) - np.asarray(net.kernel_fn(x, None, "nngp"), np.float64)
    assert np.all(np.abs(error) < 4.5 * products.std(0) / np.sqrt(4000))


def test_get_follows_neural_tangents():
    net, x = two_layer("softmax", width=8), points(0, 3, 2, "float32")
    both = net.kernel_fn(x, None, ("ntk", "nngp"))
    assert both._fields == ("ntk", "nngp")
    np.testing.assert_array_equal(both.ntk, net.kernel_fn(x, x2=None, get="ntk"))
    assert net.kernel_fn(x, None).nngp.shape == (3, 3)
    assert net.kernel_fn(x, x[:2], "nngp").shape == (3, 2)


# --- inside neural_tangents
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", slow_except(sorted(FAMILIES), "softmax"))
@jax.numpy_rank_promotion("allow")  # neural_tangents itself promotes ranks
@pytest.mark.slow
def test_the_triple_goes_through_neural_tangents(family):
    net = two_layer(family, width=2048, sigma=0.4, antisymmetric=False)
    init_fn, apply_fn, kernel_fn = net
    x, y = points(0, 8, 4, "float32"), points(1, 8, 1, "float32")
    ntk = kernel_fn(x, None, "ntk")
    batched = nt.batch(lambda a, b: kernel_fn(a, b, "ntk"), batch_size=4, device_count=0)
    assert_close(batched(x, x[:4]), ntk[:, :4], "float32")

    sampled = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(0), 32, trace_axes=())(
        x, None, "ntk"
    )
    assert_close(sampled[..., 0, 0], ntk, rtol=0.03)

    steps, eta = jnp.array([0, 3, 30]), 0.5 / float(sn.ntk.extreme_eigenvalues(ntk)[1])
    ours = sn.ntk.predict_gd(ntk, y, eta / 50, 50 * steps)
    theirs = nt.predict.gradient_descent_mse(ntk, y, learning_rate=eta * y.size)(
        t=steps.astype(float)
    )
    assert_close(ours, theirs, rtol=0.01)  # gradient flow against small steps

    ensemble = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=1e-4)
    assert ensemble(x_test=x, get="ntk").shape == (8, 1)


@jax.numpy_rank_promotion("allow")
@pytest.mark.slow
def test_relu_network_is_their_relu_network(x64):
    """The table of conventions in two_layer's docstring, both kernels, finite and infinite."""
    d, sigma, k = 6, 0.7, 3
    x = points(0, 5, d)
    theirs = nt.stax.serial(
        nt.stax.Dense(256, W_std=sigma * d**0.5), nt.stax.Relu(), nt.stax.Dense(k)
    )
    ours = two_layer(
        "relu", width=256, out_dim=k, sigma=sigma, antisymmetric=False, train_readout=True
    )
    mine, other = ours.kernel_fn(x), theirs[2](x, None, ("nngp", "ntk"))
    # their arccos loses half the digits on the diagonal
    assert_close(mine.nngp, other.nngp, rtol=1e-7)
    first_layer = mine.ntk - mine.nngp
    assert_close(sigma**2 * first_layer + mine.nngp, other.ntk, rtol=1e-7)

    _, their_params = theirs[0](jax.random.PRNGKey(0), (-1, d))
    (w1, _), _, (w2, _) = their_params
    # Dense multiplies by W_std/√d = σ
    params = sn.networks.Parameters(hidden=sigma * w1, readout=w2)
    assert_close(ours.apply_fn(params, x), theirs[1](their_params, x))
    our_full = sn.ntk.empirical(ours, params, x)
    their_full = nt.empirical_ntk_fn(theirs[1], trace_axes=())(x, None, their_params)
    readout_part = sn.ntk.empirical(ours, params, x) - sn.ntk.empirical(
        two_layer("relu", width=256, out_dim=k), params, x
    )
    assert_close(sigma**2 * (our_full - readout_part) + readout_part, their_full)


# --- hard input
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", slow_except(sorted(FAMILIES), "softmax"))
@every_precision
@pytest.mark.parametrize("scale", slow_except([1e4, -1e4], 1e4))
# operation by operation: compiling every kernel whole would take longer than everything else here
@jax.disable_jit()
@pytest.mark.slow
def test_huge_logits_stay_finite(family, scale, dtype):
    net = two_layer(family, width=32, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x = scale * points(0, 6, 4, dtype)
    assert np.isfinite(net.apply_fn(params, x)).all()
    for outputs in ("full", "mean", "diagonal"):
        assert np.isfinite(sn.ntk.empirical(net, params, x, outputs=outputs)).all()
    if family != "exp":
        assert all(
            np.isfinite(g).all() for g in jax.tree.leaves(jax.jacobian(net.apply_fn)(params, x))
        )
    assert not any(np.isnan(k).any() for k in net.kernel_fn(x))


@pytest.mark.parametrize("family", slow_except(sorted(FAMILIES), "res_softmax"))
@every_precision
@pytest.mark.parametrize("bad", slow_except([np.nan, -np.inf], np.nan))
def test_non_finite_rows_inside_jit_are_infinite_and_nothing_else(family, bad, dtype):
    net = two_layer(family, width=32, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    good = points(0, 5, 4, dtype)
    x = good.at[1, 2].set(bad)
    others = np.array([0, 2, 3, 4])
    out = jax.jit(net.apply_fn)(params, x)
    assert np.isposinf(out[1]).all()
    assert_close(out[others], net.apply_fn(params, good)[others], dtype)
    for kernel, clean in [
        (jax.jit(lambda x: net.kernel_fn(x, None, "ntk"))(x), net.kernel_fn(good, None, "ntk")),
        (
            jax.jit(lambda x: sn.ntk.empirical(net, params, x, outputs="mean"))(x),
            sn.ntk.empirical(net, params, good, outputs="mean"),
        ),
    ]:
        assert np.isposinf(kernel[1]).all()
        assert np.isposinf(kernel[:, 1]).all()
        assert_close(kernel[np.ix_(others, others)], clean[np.ix_(others, others)], dtype)
    gradient = jax.grad(lambda p: jnp.sum(jax.jit(net.apply_fn)(p, x)[others]))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_a_lost_normaliser_is_infinite(dtype):
    """sinh(x) + sinh(−x) = 0 = α: u/α has no value there. With a third unit it has."""
    params = sn.networks.Parameters(
        hidden=jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]), readout=jnp.ones((3, 1))
    )
    net = two_layer(activation="sinh", normalize=True, width=3, antisymmetric=False)
    x = jnp.array([[0.7, 0.0], [0.7, 0.3]])
    out, kernel = jax.jit(net.apply_fn)(params, x), sn.ntk.empirical(net, params, x, outputs="mean")
    np.testing.assert_array_equal(np.isposinf(out[:, 0]), [True, False])
    assert np.isposinf(kernel).tolist() == [[True, True], [True, False]]
    assert_close(out[1, 0], np.sqrt(3), dtype)


GOOD = np.ones((3, 4), np.float32)


def test_parameters_are_a_pytree_that_vmaps():
    net = two_layer("softmax", width=8, bias=True)
    params = jax.vmap(lambda key: net.init_fn(key, (-1, 4))[1])(
        jax.random.split(jax.random.key(0), 5)
    )
    assert params.hidden.shape == (5, 4, 8)
    assert jax.vmap(net.apply_fn, (0, None))(params, jnp.asarray(GOOD)).shape == (5, 3, 1)
    assert cast(params, "float16").bias.dtype == jnp.float16
