"""The layers of softntk.stax: against networks, Monte Carlo, shorter inputs, batches, and
neural_tangents' own tools.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, points, slow_except

import softntk as sn
from softntk import nt, stax

LAYERS = {
    "Softmax": stax.Softmax,
    "Softmax(2)": lambda: stax.Softmax(temperature=2.0),
    "ResSoftmax": stax.ResSoftmax,
    "Normalized relu": lambda: stax.NormalizedActivation("relu"),
    "CRReLU": lambda: stax.CRReLU(0.3),
    "Threshold": stax.Threshold,
    "Plain softplus": lambda: stax.PlainActivation("softplus"),
    "Normalized gelu": lambda: stax.NormalizedActivation("gelu"),
}


def each(*kept, depths=None):
    """Every layer by its name, with every depth if there are some; those that are not kept are
    slow.
    """
    if depths is None:
        return pytest.mark.parametrize("layer", slow_except(LAYERS, *kept))
    return pytest.mark.parametrize(
        ("layer", "depth"), slow_except(list(itertools.product(LAYERS, depths)), *kept)
    )


def stack(layer: str, width: int, depth: int, outputs: int) -> Any:
    """Depth times Dense and the layer; the deeper, the smaller the weights, so that the kernels do
    not explode.
    """
    inner = (
        (stax.Dense(width, W_std=0.55 if depth < 4 else 0.3, b_std=0.1), LAYERS[layer]())
        for _ in range(depth)
    )
    return stax.serial(*itertools.chain.from_iterable(inner), stax.Dense(outputs))


def test_everything_of_neural_tangents_is_here():
    names = {name for name in vars(nt.stax) if not name.startswith("_")}
    assert names <= set(vars(stax))
    assert all(getattr(stax, name) is getattr(nt.stax, name) for name in names)


@pytest.mark.parametrize(
    ("layer", "network"),
    [
        ("Softmax", {"family": "softmax"}),
        ("ResSoftmax", {"family": "res_softmax"}),
        ("Normalized relu", {"activation": "relu", "normalize": True}),
        ("Threshold", {"activation": "threshold"}),
        ("Plain softplus", {"family": "softplus"}),
        ("Normalized gelu", {"activation": "gelu", "normalize": True}),
    ],
)
def test_two_layers_agree_with_networks(layer, network, x64):
    """W_std = σ√d; their first layer's part of the NTK is σ² times ours, and they train the
    readout.
    """
    sigma, d, x1, x2 = 0.8, 5, points(1, 6, 5), points(2, 4, 5)
    ours = sn.networks.two_layer(**network, width=8, sigma=sigma).kernel_fn(x1, x2, ("nngp", "ntk"))
    _, _, kernel_fn = stax.serial(
        stax.Dense(8, W_std=sigma * d**0.5), LAYERS[layer](), stax.Dense(1)
    )
    theirs: Any = kernel_fn(x1, x2, ("nngp", "ntk"))
    assert_close(theirs.nngp, ours.nngp, rtol=1e-12)
    assert_close(theirs.ntk, sigma**2 * ours.ntk + ours.nngp, rtol=1e-12)


def approach(build, x1, x2, get, widths, draws=12):
    """Finite kernels, one at a time: the distance to the infinite one falls with the width, within
    four standard errors.
    """
    distances = []
    for width in widths:
        init_fn, apply_fn, kernel_fn = build(width)
        finite = {
            "nngp": nt.empirical_nngp_fn,
            "ntk": lambda f: nt.empirical_ntk_fn(f, vmap_axes=0),
        }[get](apply_fn)
        sample = lambda key, f=finite, init_fn=init_fn: f(x1, x2, init_fn(key, x1.shape)[1])
        samples = np.asarray(
            jax.lax.map(sample, jax.random.split(jax.random.key(width), draws)), np.float64
        )
        exact, error = np.asarray(kernel_fn(x1, x2, get)), samples.std(0, ddof=1) / draws**0.5
        distances.append(np.mean([np.linalg.norm(s - exact) for s in samples]))
    assert np.all(np.abs(samples.mean(0) - exact) <= 4 * error)
    assert np.all(np.diff(distances) < 0)


@each(("CRReLU", 1), depths=(1, 2, 4))
@pytest.mark.slow
def test_finite_networks_approach_the_kernel(layer, depth):
    x1, x2 = points(1, 3, 4, "float32"), points(2, 2, 4, "float32")
    approach(lambda width: stack(layer, width, depth, width), x1, x2, "nngp", (16, 128, 1024))


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "depth"), list(itertools.product(LAYERS, (1, 2, 4))))
def test_empirical_kernels_approach_the_ntk(layer, depth):
    x1, x2 = points(1, 3, 4, "float32"), points(2, 2, 4, "float32")
    approach(lambda width: stack(layer, width, depth, 1), x1, x2, "ntk", (16, 64, 512))


def branches(layer, width):
    """Two paths to one sum."""
    path = lambda: stax.serial(layer(), stax.Dense(width, W_std=0.5))
    short = stax.Dense(width, W_std=0.5)
    split = stax.serial(
        stax.Dense(width, W_std=0.5), stax.FanOut(2), stax.parallel(short, path()), stax.FanInSum()
    )
    return stax.serial(split, path())


def images(layer, width):
    """Convolutions, pooling in between and at the end."""
    conv = lambda: stax.serial(stax.Conv(width, (2, 2), W_std=0.5), layer())
    return stax.serial(conv(), stax.AvgPool((2, 2)), conv(), stax.GlobalAvgPool())


@pytest.mark.filterwarnings("ignore:.FanIn. layers assume independent inputs")
@pytest.mark.parametrize(
    ("build", "shape"),
    slow_except([(branches, (3, 4)), (images, (2, 5, 5, 2))], (branches, (3, 4))),
)
@each("Softmax")
def test_branches_and_images_approach_their_kernels(build, shape, layer):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    approach(lambda width: build(LAYERS[layer], width), x, None, "nngp", (16, 64, 512))


@each("ResSoftmax")
@pytest.mark.slow
def test_masked_rows_are_as_if_they_were_not_there(layer, x64):
    """A sequence with masked positions has the kernel, and the function, of the shorter sequence."""
    x, constant = np.random.default_rng(0).normal(size=(3, 6, 4)), 1e4
    masked = x.copy()
    masked[:, 4:] = constant
    layers: Any = stax.serial(
        stax.Conv(8, (1,), W_std=0.5, b_std=0.2),
        LAYERS[layer](),
        stax.Conv(8, (1,), W_std=0.5),
        LAYERS[layer](),
        stax.GlobalAvgPool(),
    )
    init_fn, apply_fn, kernel_fn = layers
    for get in ("nngp", "ntk"):
        assert_close(
            kernel_fn(masked, None, get, mask_constant=constant), kernel_fn(x[:, :4], None, get)
        )
    _, params = init_fn(jax.random.key(0), x.shape)
    unmasked = stax.unmask_fn(apply_fn)(params, jnp.asarray(masked), mask_constant=constant)
    assert_close(unmasked, apply_fn(params, jnp.asarray(x[:, :4])))


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_batches_and_diagonals(layer, x64):
    x1, x2 = points(1, 6, 4), points(2, 4, 4)
    kernel_fn = stack(layer, 8, 2, 1)[2]
    whole, batched = (
        kernel_fn(x1, x2, ("nngp", "ntk")),
        nt.batch(kernel_fn, batch_size=2)(x1, x2, ("nngp", "ntk")),
    )
    for a, b in zip(whole, batched, strict=True):
        assert_close(b, a, rtol=1e-12)
    diagonal = kernel_fn(x1, None, "cov1")
    assert_close(
        diagonal, np.diag(kernel_fn(x1, None, "nngp")), rtol=1e-7 if layer == "Threshold" else 1e-12
    )
    image = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
    by_pixels: Any = stax.serial(stax.Conv(8, (1, 1), W_std=0.5), LAYERS[layer]())[2]
    # Theirs stores the spatial axes of an odd number of convolutions in reverse.
    full, short = (by_pixels(image, None, "nngp", diagonal_spatial=d) for d in (False, True))
    assert_close(np.einsum("ijaabb->ijba", full), short, rtol=1e-12)


@each("CRReLU")
def test_gradients_at_equal_points_are_finite(layer):
    """Where arc-cosine kernels have their trap: ∞ − ∞ at angle zero."""
    x, kernel_fn = points(1, 3, 4, "float32"), stack(layer, 8, 2, 1)[2]
    for other in (None, x, -x):
        gradient = jax.grad(
            lambda x, other=other: sum(jnp.sum(k) for k in kernel_fn(x, other, ("nngp", "ntk")))
        )(x)
        assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Softmax", "CRReLU", "Normalized relu", "Softplus"])
def test_second_derivatives_at_equal_points(layer, x64):
    """∂²k/∂x∂x' at x = x', forward over reverse, against finite differences."""
    smooth = sn.activations.from_function(jax.nn.softplus, "softplus")
    activation = {**LAYERS, "Softplus": lambda: stax.NormalizedActivation(smooth)}[layer]
    kernel_fn: Any = stax.serial(stax.Dense(8, b_std=0.1), activation(), stax.Dense(1))[2]
    x, h = points(1, 1, 3)[0], 1e-3
    k = lambda a, b: kernel_fn(a[None], b[None], "nngp")[0, 0]
    found = jax.jacfwd(jax.jacrev(k, 0), 1)(x, x)
    e = h * jnp.eye(3)
    corner = lambda a, b: np.array(
        [[k(x + a * e[i], x + b * e[j]) for j in range(3)] for i in range(3)]
    )
    wanted = (corner(1, 1) - corner(1, -1) - corner(-1, 1) + corner(-1, -1)) / (4 * h * h)
    assert_close(found, wanted, rtol=2e-3)


@pytest.mark.slow
def test_points_of_zeros():
    """Black patches of an image: refused where u vanishes; masked ones do no harm."""
    x = jnp.zeros((2, 3)).at[1].set(1.0)
    with pytest.raises(ValueError, match=r"NormalizedActivation.relu. got a variance of zero"):
        stax.serial(stax.Dense(8), LAYERS["Normalized relu"]())[2](x)
    masked = (
        jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32).at[:, 3:].set(1e4)
    )
    layers = (stax.Conv(8, (1,)), LAYERS["Normalized relu"](), stax.GlobalAvgPool())
    pooled: Any = stax.serial(*layers)[2]
    assert np.isfinite(
        jax.grad(lambda s: jnp.sum(pooled(s, s[:1], "nngp", mask_constant=1e4)))(masked)
    ).all()


@pytest.mark.slow
def test_derivatives_at_points_of_zeros():
    x = jnp.zeros((2, 3)).at[1].set(1.0)
    smooth = sn.activations.from_function(jax.nn.softplus, "softplus")
    for layer in (stax.CRReLU(), stax.NormalizedActivation(smooth), stax.Softmax()):
        kernel_fn: Any = stax.serial(stax.Dense(8), layer, stax.Dense(1))[2]
        assert np.isfinite(jax.grad(lambda s, f=kernel_fn: jnp.sum(f(s, None, "ntk")))(x)).all()


@pytest.mark.slow
def test_large_inputs_and_pooled_rounding():
    """CRReLU keeps its digits where variances are large; pooled variances that rounding has left
    below zero are zero.
    """
    x = 3e4 * points(1, 40, 4, "float32")
    crrelu, relu = (
        stax.serial(stax.Dense(1), layer, stax.Dense(1))[2](x, None, "nngp")
        for layer in (stax.CRReLU(), stax.Relu())
    )
    assert_close(crrelu, relu, "float32")
    rng = np.random.default_rng(0)
    kernel_fn: Any = stax.serial(stax.Conv(1, (1,)), stax.AvgPool((3,)), stax.Softmax())[2]
    for _ in range(8):
        a, b = rng.normal(size=(2, 2, 1, 4)).astype(np.float32)
        assert_close(
            kernel_fn(np.concatenate([a, b, -(a + b)], axis=1), None, "nngp"),
            np.ones((2, 2, 1, 1)),
            "float32",
        )


@pytest.mark.slow
def test_monte_carlo_of_neural_tangents():
    x = points(1, 3, 4, "float32")
    init_fn, apply_fn, kernel_fn = stack("Softmax", 512, 2, 1)
    found = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 100, vmap_axes=0)(
        x, None, ("nngp", "ntk")
    )
    assert_close(found.ntk, kernel_fn(x, None, "ntk"), rtol=0.05)
    assert_close(
        found.nngp, kernel_fn(x, None, "nngp"), rtol=0.5
    )  # one output a network: 100 squares of Gaussians


@pytest.mark.slow
def test_predictions_of_neural_tangents_equal_ours(x64):
    """Gradient descent at finite time, and the posterior of the Gaussian process; their loss is
    divided by n k.
    """
    x, test, y = points(1, 12, 4), points(2, 5, 4), points(3, 12, 2)
    kernel_fn = stack("Softmax", 8, 2, 1)[2]
    gram, cross = kernel_fn(x, None, "ntk"), kernel_fn(test, x, "ntk")
    predict = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x, y, learning_rate=1.0, diag_reg=0.0
    )
    times = np.array([3.0, 200.0])
    ours = sn.ntk.predict_flow(gram, y, times / y.size, cross=cross)
    for t, wanted in zip(times, ours, strict=True):
        assert_close(predict(t=t, x_test=test, get="ntk"), wanted, rtol=1e-6)
    gram_nngp, cross_nngp, prior = (
        kernel_fn(x, None, "nngp"),
        kernel_fn(test, x, "nngp"),
        kernel_fn(test, None, "nngp"),
    )
    theirs = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x, y, diag_reg=0.1, diag_reg_absolute_scale=True
    )
    mean, covariance = theirs(x_test=test, get="nngp", compute_cov=True)
    posterior = sn.ntk.gp_posterior(
        gram_nngp, y, noise=0.1, cross=cross_nngp, prior=jnp.diag(prior)
    )
    assert_close(posterior.mean, mean, rtol=1e-8)
    assert_close(posterior.variance, np.diag(covariance), rtol=1e-8)
    inferred = nt.predict.gp_inference(gram_nngp, y, diag_reg=0.1, diag_reg_absolute_scale=True)
    assert_close(inferred("nngp", cross_nngp), mean, rtol=1e-8)
    explicit = nt.predict.gradient_descent_mse(gram, y, learning_rate=0.5)
    fx = explicit(
        t=7.0, fx_train_0=jnp.zeros_like(y), fx_test_0=jnp.zeros((5, 2)), k_test_train=cross
    )
    assert_close(
        fx[1], sn.ntk.predict_flow(gram, y, np.array([3.5 / y.size]), cross=cross)[0], rtol=1e-8
    )
    assert_close(fx[0], sn.ntk.predict_flow(gram, y, np.array([3.5 / y.size]))[0], rtol=1e-8)


@pytest.mark.parametrize("layer", [stax.Softmax, stax.ResSoftmax])
def test_a_kernel_that_explodes_is_infinite_and_never_nan(layer):
    """Opposite points and large weights, seven layers deep; inside of jit, where nothing can be
    refused.
    """
    x = jnp.asarray([[1.0, -2.0], [-1.0, 2.0], [0.5, 0.5]])
    kernel_fn = stax.serial(
        *(part for _ in range(7) for part in (stax.Dense(1, 3.0, 0.1), layer())), stax.Dense(1)
    )[2]
    for kernel in jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk")))(x):
        assert not np.isnan(kernel).any()
        assert np.max(kernel) > 1e15


def test_nan_stays_nan():
    for layer in LAYERS.values():
        assert np.isnan(layer()[1]((), jnp.full((2, 3), jnp.nan))).all()


def test_the_width_of_a_kernel_does_not_matter():
    x = points(1, 3, 4, "float32")
    one, many = (stack("Softmax", width, 2, 1)[2](x, None, "ntk") for width in (1, 64))
    np.testing.assert_array_equal(one, many)


def test_channels_elsewhere_and_negative_variances(x64):
    image: Any = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
    with pytest.raises(ValueError, match=r"Softmax.*channel_axis == 1"):
        stax.serial(stax.Conv(4, (1, 1)), stax.Softmax(channel_axis=1))[2](image)
    kernel: Any = stax.Dense(4)[2](points(1, 3, 2))
    with pytest.raises(ValueError, match="CRReLU got a negative variance, -"):
        stax.CRReLU()[2](kernel.replace(cov1=-kernel.cov1))
    channels: Any = stax.serial(
        stax.Conv(4, (1, 1), dimension_numbers=("NCHW", "HWIO", "NCHW")),
        stax.Softmax(channel_axis=1),
    )
    _, params = channels[0](jax.random.key(0), (2, 2, 3, 3))
    assert_close(
        channels[1](params, jnp.asarray(np.moveaxis(image, -1, 1))).mean(1), np.ones((2, 3, 3))
    )
