"""The linearised network in closed form, against training it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, slow_except

import softntk as sn
from softntk import diffusion
from softntk.diffusion._denoisers import linearised
from softntk.diffusion._denoisers.coordinates import fit_coordinates
from softntk.diffusion._denoisers.linearised import LinearisedPredictor
from softntk.diffusion._denoisers.network import full_batch, starting_network
from softntk.diffusion._denoisers.noisy_samples import embed
from softntk.networks import Parameters

SDE = diffusion.vp_sde()


def circle(n, dtype="float32"):
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, n)
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), dtype)


@pytest.mark.parametrize("by", slow_except(["eigenvectors", "krylov"], "eigenvectors"))
def test_closed_form_is_gradient_descent_on_the_linearised_network(by, x64, monkeypatch):
    if by == "krylov":
        monkeypatch.setattr(linearised, "MAX_DENSE_SIZE", 0)
    x0, key = circle(20, "float64"), jax.random.key(2)
    f = diffusion.linearised_denoiser(
        key, SDE, x0, width=32, sigma=1.0, times=3, draws=2, steps=40, train_readout=True
    )
    frame = fit_coordinates(SDE, x0, 3, 1e-3)
    net, start = starting_network(key, frame, "softmax", 32, 1.0, True)
    batch = full_batch(key, SDE, frame, x0, 2)
    outputs, derivative = jax.linearize(lambda p: net.apply_fn(p, batch.inputs), start)
    pull = jax.linear_transpose(derivative, start)
    move = jax.tree.map(jnp.zeros_like, start)
    for _ in range(40):
        residual = (outputs + derivative(move) - batch.targets) / 40
        move = jax.tree.map(lambda p, g: p - f.stats["learning_rate"] * g, move, pull(residual)[0])
    assert_close(f.predictor.move.hidden, move.hidden, rtol=1e-6)
    assert_close(f.predictor.move.readout, move.readout, rtol=1e-6)


def coupling(width, steps=200):
    """Distances of network, linearised network and kernel, on the same samples, relative to the
    kernel.
    """
    x0, key = circle(128), jax.random.key(1)
    options = {"times": [0.2], "sigma": 1.0}
    linearised = diffusion.linearised_denoiser(key, SDE, x0, width=width, steps=steps, **options)
    rate = linearised.stats["learning_rate"]
    network = diffusion.fit_denoiser(
        key,
        SDE,
        x0,
        width=width,
        steps=steps,
        batch_size=None,
        ema=0.0,
        tx=optax.sgd(rate),
        train_readout=False,
        **options,
    )
    kernel = diffusion.kernel_denoiser(
        key, SDE, x0, draws=1, landmarks=128, stopping=rate * steps, **options
    )
    x = SDE.perturb(jax.random.key(5), 0.2, circle(500))
    outs = [f(0.2, x) for f in (network, linearised, kernel)]
    size = jnp.linalg.norm(outs[2])
    return [float(jnp.linalg.norm(outs[i] - outs[j]) / size) for i, j in ((0, 1), (1, 2), (0, 2))]


@pytest.mark.slow
def test_a_wide_network_its_linearisation_and_the_kernel_agree():
    assert max(coupling(4096, steps=50)) < 0.06


@pytest.mark.slow
def test_network_and_linearisation_approach_each_other_with_width():
    widths = np.array([256, 1024, 4096, 16384])
    distances = np.array([coupling(int(width)) for width in widths])
    print(distances)
    slopes = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert (slopes < -0.25).all()
    assert distances[-1].max() < 0.05


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
@pytest.mark.slow
def test_coefficients_are_what_predictions_multiply(dtype):
    rng = np.random.default_rng(0)
    half, cross, y = rng.normal(size=(6, 4)), rng.normal(size=(3, 6)), rng.normal(size=(6, 2))
    # singular
    gram, cross, y = (jnp.asarray(a, dtype) for a in (half @ half.T, cross @ half @ half.T, y))
    steps = jnp.array([0, 1, 300])
    c = sn.ntk.gd_coefficients(gram, y, 0.02, steps)
    added = np.zeros((6, 2))
    f, expected = np.zeros((6, 2)), []
    for step in range(301):
        if step in (0, 1, 300):
            expected.append(added.copy())
        added += 0.02 * (np.asarray(y, np.float64) - f)
        f = np.asarray(gram, np.float64) @ added
    assert_close(c, np.array(expected), rtol=1e-3 if dtype == "float32" else 1e-9)
    assert_close(cross @ c[2], sn.ntk.predict_gd(gram, y, 0.02, steps, cross=cross)[2], rtol=1e-3)


@pytest.mark.parametrize("place", [0.0, 0.4, 2.0])
def test_the_predictor_is_the_tangent_of_the_network(place, x64):
    """At one time, whose weights are added up, and at many: against a difference of networks."""
    net = sn.networks.two_layer("softmax", width=4, out_dim=2, sigma=1.0, train_readout=True)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    start, move = (Parameters(hidden=draw(9, 4), readout=draw(4, 2)) for _ in range(2))
    lifted = draw(5, 3)
    at = lambda step: net.apply_fn(
        jax.tree.map(lambda p, q: p + step * q, start, move),
        embed(jnp.full(5, place), lifted, 3),
    )
    desired = at(0.0) + (at(1e-5) - at(-1e-5)) / 2e-5
    predictor = LinearisedPredictor(params=start, move=move, net=net)
    assert_close(predictor(jnp.full(1, place), lifted), desired, rtol=1e-7)
    assert_close(predictor(jnp.full(5, place), lifted), desired, rtol=1e-7)


def test_samples_and_first_weights_are_by_default_those_of_the_network():
    ours, theirs = (
        {name: part.default for name, part in inspect.signature(fit).parameters.items()}
        for fit in (diffusion.linearised_denoiser, diffusion.fit_denoiser)
    )
    shared = ("family", "width", "sigma", "times", "min_time", "draws")
    assert [ours[name] for name in shared] == [theirs[name] for name in shared]
