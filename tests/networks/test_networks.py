"""Every network × every law: the paper's formula, the infinite-width limit, the triple in
neural_tangents, bad input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
        u = {"relu": lambda z: np.maximum(z, 0), "res_softmax": lambda z: np.exp(z) + z}.get(
            family, np.exp
        )(z)
        rows.append((m * u / u.sum() if "softmax" in family else u) @ readout / np.sqrt(m))
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


# --- infinite width
# -----------------------------------------------------------------------------------------------


def quadrature_kernels(family, sigma, x, y):
    """(NNGP, NTK without readout) at two points from E over a plane of Gaussian logits, normaliser
    replaced by its mean.
    """
    t = np.linspace(-12, 12, 1601)
    w = np.exp(-(t**2) / 2)
    w /= w.sum()
    u = {"res_softmax": lambda z: np.exp(z) + z}.get(family, np.exp)
    du = {"res_softmax": lambda z: np.exp(z) + 1}.get(family, np.exp)
    q11, q12, q22 = sigma**2 * x @ x, sigma**2 * x @ y, sigma**2 * y @ y
    g1 = np.sqrt(q11) * t[:, None] + 0 * t
    g2 = q12 / np.sqrt(q11) * t[:, None] + np.sqrt(max(0.0, q22 - q12**2 / q11)) * t
    mean = lambda f: np.einsum("a,b,ab", w, w, f)
    norm = mean(u(g1)) * mean(u(g2)) if "softmax" in family else 1.0
    return mean(u(g1) * u(g2)) / norm, x @ y * mean(du(g1) * du(g2)) / norm


@pytest.mark.parametrize("family", ["softmax", "res_softmax", "exp"])
@pytest.mark.parametrize("bias", slow_except([False, True], True))
def test_infinite_kernels_equal_quadrature(family, bias, x64):
    x1, x2 = points(0, 4, 3), points(1, 3, 3)
    net = two_layer(family, width=8, sigma=0.8, bias=bias)
    for other in (None, x2):
        kernels = net.kernel_fn(x1, other)
        lift = lambda x: (
            np.concatenate([x, np.ones((len(x), 1))], axis=1) if bias else np.asarray(x)
        )
        pairs = [
            [quadrature_kernels(family, 0.8, p, q) for q in lift(x1 if other is None else other)]
            for p in lift(x1)
        ]
        assert_close(kernels.nngp, np.array(pairs)[..., 0])
        assert_close(kernels.ntk, np.array(pairs)[..., 1])


def test_relu_kernels_equal_neural_tangents_and_are_exact_on_the_diagonal(x64):
    """The relu oracle by quadrature is in test_activations; here the kernel of the whole network."""
    x = points(0, 5, 3)
    ours = two_layer("relu", width=8, sigma=0.7).kernel_fn(x)
    squares = np.sum(np.asarray(x) ** 2, axis=1)
    np.testing.assert_array_equal(np.diag(ours.ntk), squares / 2)
    assert_close(np.diag(ours.nngp), 0.49 * squares / 2, rtol=1e-15)


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


# --- hard and bad input
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


OPTIONS = [
    ({"width": 0}, "width must be a positive integer, got 0"),
    ({"width": 2.5}, "width must be a positive integer, got 2.5"),
    (
        {"width": 7},
        "width must be even for antisymmetric initialisation, got 7. Use 8, or antisymmetric=False",
    ),
    ({"out_dim": 0}, "out_dim must be a positive integer, got 0"),
    ({"sigma": 0.0}, "sigma must be a positive finite number, got 0.0"),
    ({"sigma": float("nan")}, "sigma must be a positive finite number, got nan"),
    ({"parameterization": "papr"}, "parameterization must be one of.*Did you mean 'paper'"),
    (
        {"family": "sofmax"},
        r"family must be one of \['exp', 'relu', 'res_softmax', 'softmax'\], got 'sofmax'. Did you mean 'softmax'",
    ),
    (
        {"family": None},
        "name either a family .* or an activation, got family=None, activation=None",
    ),
    ({"activation": "relu"}, "name either a family .* got family='softmax', activation='relu'"),
    ({"normalize": True}, "normalize goes with activation"),
    ({"family": None, "activation": "tanhh"}, "activation must be one of"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_options(options, message, untyped):
    options = {"family": "softmax", "width": 8, "out_dim": 2, **options}
    with pytest.raises(ValueError, match=message):
        two_layer(options.pop("family"), **options)


GOOD = np.ones((3, 4), np.float32)
POINTS = [
    (GOOD[0], "must have shape \\[n, d\\], one row a point, got shape \\(4,\\)"),
    (GOOD[None], "must have shape"),
    (GOOD.astype(int), "must be a floating-point array, got dtype int"),
    (GOOD[:0], "(at least one row and one column|must not be empty), got shape \\(0, 4\\)"),
    (
        np.where(np.eye(3, 4) > 0, np.nan, GOOD),
        "must be finite, got 3 NaN or infinite entries, the first at x1?\\[0, 0\\]",
    ),
    (np.where(np.eye(3, 4) > 0, np.inf, GOOD), "must be finite"),
]


@pytest.mark.parametrize(("x", "message"), POINTS)
def test_bad_points(x, message, untyped):
    net = two_layer("softmax", width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    for call in (
        lambda: net.apply_fn(params, x),
        lambda: net.kernel_fn(x, None, "ntk"),
        lambda: sn.ntk.empirical(net, params, x),
        lambda: sn.ntk.empirical(net.apply_fn, params, x),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_points_that_do_not_fit(untyped):
    net = two_layer("softmax", width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    for call in (
        lambda x1, x2: net.kernel_fn(x1, x2, "ntk"),
        lambda x1, x2: sn.ntk.empirical(net, params, x1, x2),
    ):
        with pytest.raises(
            ValueError, match="x2 must have the dtype of x1, got float32 and float16"
        ):
            call(GOOD, GOOD.astype(np.float16))
        with pytest.raises(ValueError, match="x2 must have as many features as x1"):
            call(GOOD, GOOD[:, :3])
    for call in (lambda x: net.apply_fn(params, x), lambda x: sn.ntk.empirical(net, params, x)):
        with pytest.raises(
            ValueError,
            match="must have the 4 features that params.hidden has, got shape \\(3, 3\\)",
        ):
            call(GOOD[:, :3])
    with pytest.raises(
        ValueError, match="get must be one of.*'nngp', 'ntk'.*got 'ntkk'. Did you mean 'ntk'"
    ):
        net.kernel_fn(GOOD, None, "ntkk")
    with pytest.raises(ValueError, match="input_shape must be"):
        net.init_fn(jax.random.key(0), (4,))


@pytest.mark.parametrize("activation", ["sinh", "erf", "identity"])
def test_a_normalized_odd_activation_has_no_limit(activation):
    net = two_layer(activation=activation, normalize=True, width=8)
    with pytest.raises(ValueError, match="has no infinite limit"):
        net.kernel_fn(GOOD, None, "ntk")
    assert two_layer(activation=activation, width=8).kernel_fn(
        jnp.asarray(GOOD), None, "ntk"
    ).shape == (3, 3)


def test_parameters_are_a_pytree_that_vmaps():
    net = two_layer("softmax", width=8, bias=True)
    params = jax.vmap(lambda key: net.init_fn(key, (-1, 4))[1])(
        jax.random.split(jax.random.key(0), 5)
    )
    assert params.hidden.shape == (5, 4, 8)
    assert jax.vmap(net.apply_fn, (0, None))(params, jnp.asarray(GOOD)).shape == (5, 3, 1)
    assert cast(params, "float16").bias.dtype == jnp.float16
