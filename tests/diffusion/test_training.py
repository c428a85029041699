"""Fitting a network to noisy samples: the loss, the run, and what is returned when it goes wrong."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, relative_score_error, ring, slow_except

from softntk import diffusion, networks
from softntk.diffusion._denoisers import network as network_module
from softntk.diffusion._denoisers import network_training
from softntk.diffusion._denoisers.coordinates import fit_coordinates
from softntk.networks import Parameters
from softntk.solution import NumericalError, Result

SDE = diffusion.vp_sde()
X0 = ring().sample(jax.random.key(0), 300)


def fit(steps=250, seed=1, sde=SDE, **options):
    return diffusion.fit_denoiser(
        jax.random.key(seed), sde, X0, **{"width": 16, "batch_size": 32, **options}, steps=steps
    )


def leaves(f):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((f.predictor, f.stats["loss"]))]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.slow
def test_learns_a_ring():
    f = diffusion.fit_denoiser(jax.random.key(1), SDE, X0, width=64, steps=600, times=[0.15])
    assert relative_score_error(SDE, f, ring(), 0.15) < 0.25  # 0.1; the linear denoiser: 0.7
    assert f.stats["loss"][-100:].mean() < 0.85 * f.stats["loss"][:20].mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", networks.FAMILIES)
def test_meets_its_claim_on_the_ring(family):
    """Relative score error at most 0.05 on average over t in [0.05, 1], of 4,096 points."""
    mixture = ring()
    f = diffusion.fit_denoiser(
        jax.random.key(1), SDE, mixture.sample(jax.random.key(0), 4096), family=family
    )
    assert (
        np.mean([relative_score_error(SDE, f, mixture, float(t)) for t in np.linspace(0.05, 1, 20)])
        < 0.05
    )


@pytest.mark.parametrize("weighting", slow_except([None, "score"], "score"))
def test_full_batch_loss_is_what_it_says(weighting):
    f = fit(steps=1, batch_size=None, draws=2, tx=optax.sgd(0.0), ema=0.0, weighting=weighting)
    frame = fit_coordinates(SDE, X0, 8, 1e-3)
    batch = network_module.full_batch(jax.random.key(1), SDE, frame, X0, 2, weighting)
    assert batch.inputs.shape == (600, 8 * 3)
    # F = 0 at the start
    expected = 0.5 * np.mean(np.asarray(batch.weights) * np.sum(np.asarray(batch.targets) ** 2, 1))
    assert_close(f.stats["loss"][0], expected, rtol=1e-4)
    # Fresh samples have the same loss, up to chance.
    fresh = fit(steps=100, batch_size=64, tx=optax.sgd(0.0), ema=0.0, weighting=weighting)
    assert_close(fresh.stats["loss"].mean(), expected, rtol=0.3)


def test_weighting_gives_the_loss_on_the_data_themselves():
    frame, key = fit_coordinates(SDE, X0, [0.3], 1e-3), jax.random.key(1)
    batch = network_module.full_batch(key, SDE, frame, X0, 1, "denoising")
    x = SDE.perturb(
        network_module.noisy_samples.noise_key(key, 0), float(SDE.time(frame.noise_levels[0])), X0
    )
    linear, _ = frame.skip_and_out(SDE, 0.3, x)
    direct = np.mean(np.sum((np.asarray(X0) - np.asarray(linear)) ** 2, 1))
    assert_close(jnp.mean(batch.weights * jnp.sum(batch.targets**2, axis=1)), direct, rtol=1e-3)


@pytest.mark.slow
def test_runs_are_reproducible_and_differ_by_key():
    assert same(fit(), fit())
    assert not same(fit(steps=20), fit(steps=20, seed=2))


def test_resumed_runs_have_the_same_bits(tmp_path, monkeypatch):
    file, whole = tmp_path / "fit", fit()
    save = network_training.checkpoints.save

    def save_once(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(network_training.checkpoints, "save", save_once)
    stopped = fit(checkpoint=file)
    assert stopped.result == Result.INTERRUPTED
    assert stopped.stats["steps"] == 100
    monkeypatch.setattr(network_training.checkpoints, "save", save)
    assert same(fit(checkpoint=file), whole)


@pytest.mark.slow
def test_checkpoints_that_are_over_or_broken(tmp_path):
    file = tmp_path / "fit"
    whole = fit(checkpoint=file)
    assert same(fit(checkpoint=file), whole)
    with pytest.raises(ValueError, match="belongs to another"):
        fit(checkpoint=file, seed=2)
    with pytest.raises(ValueError, match="there is no directory"):
        fit(checkpoint=tmp_path / "none" / "fit")
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged"):
        fit(checkpoint=file)
    assert file.read_bytes() == b"broken"


OTHERS = {
    "batch_size": 8,
    "weighting": "noise",
    "levels": (0.0, 1.0),
    "times": [0.2, 0.5],
    "train_readout": False,
    "family": "relu",
    "tx": optax.sgd(2e-3),
    "sde": diffusion.cosine_sde(),
}


@pytest.mark.parametrize("name", slow_except(OTHERS, "levels"))
def test_a_checkpoint_of_another_fit_is_refused(name, tmp_path):
    plain = {"steps": 5, "tx": optax.sgd(1e-3), "sigma": 1.0}
    fit(checkpoint=tmp_path / "fit", **plain)
    with pytest.raises(ValueError, match="belongs to another"):
        fit(checkpoint=tmp_path / "fit", **plain | {name: OTHERS[name]})


def test_a_fit_that_diverges_stops_and_returns_what_was_good():
    with pytest.warns(RuntimeWarning, match="stopped after 0 of 250 steps"):
        f = fit(family="exp", tx=optax.sgd(1e6))
    assert f.result == Result.DIVERGED
    assert_close(f(0.3, X0), f.frame.skip_and_out(SDE, 0.3, X0)[0], rtol=1e-4)  # the start
    with pytest.raises(NumericalError, match="DIVERGED"):
        fit(tx=optax.sgd(1e8), throw=True)


@pytest.mark.slow
def test_a_fit_that_diverges_late_returns_the_weights_before():
    later = optax.sgd(lambda step: jnp.where(jnp.asarray(step) < 150, 1e-3, 1e8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = fit(tx=later, ema=0.0)
    assert f.stats["steps"] == 100
    assert_close(
        f.predictor.params.hidden,
        fit(steps=100, tx=optax.sgd(1e-3), ema=0.0).predictor.params.hidden,
    )


@pytest.mark.slow
def test_average_of_the_weights():
    tx = optax.sgd(1e-2)
    paths = [fit(steps=s, tx=tx, ema=0.0).predictor.params.hidden for s in (1, 2)]
    frame = fit_coordinates(SDE, X0, 8, 1e-3)
    start = network_module.starting_network(jax.random.key(1), frame, "softmax", 16, None, True)[
        1
    ].hidden
    one = 0.1 * start + 0.9 * paths[0]
    assert_close(
        fit(steps=2, tx=tx).predictor.params.hidden, 2 / 11 * one + 9 / 11 * paths[1], rtol=1e-5
    )


def test_the_readout_of_the_paper_stays():
    frame = fit_coordinates(SDE, X0, 8, 1e-3)
    start = network_module.starting_network(jax.random.key(1), frame, "relu", 16, None, False)[1]
    f = fit(steps=10, family="relu", train_readout=False)
    assert_close(f.predictor.params.readout, start.readout)
    assert not np.allclose(f.predictor.params.hidden, start.hidden)


@pytest.mark.slow
def test_precision(dtype):
    f = diffusion.fit_denoiser(
        jax.random.key(0), SDE, X0.astype(dtype), width=16, steps=5, batch_size=16
    )
    assert f(0.2, X0.astype(dtype)).dtype == dtype
    assert f.predictor.params.hidden.dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "softmx"}, "Did you mean 'softmax'"),
        ({"weighting": "nois"}, "Did you mean 'noise'"),
        ({"steps": 0}, "steps must be a positive"),
        ({"batch_size": 0}, "batch_size must be a positive"),
        ({"width": 15}, "width must be even"),
        ({"sigma": -1.0}, "sigma must be a positive"),
        ({"levels": 1.0}, "levels must be a pair"),
        ({"levels": (float("nan"), 1.0)}, "the mean in levels must be a finite number"),
        ({"levels": (0.0, -1.0)}, "deviation in levels must be"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"steps": 5, **options})


@pytest.mark.parametrize(("size", "times"), [(64, 16), (30, 15), (18, 9), (17, 1), (5, 5)])
def test_a_minibatch_has_as_many_times_as_divide_it(size, times, monkeypatch, untyped):
    """At most sixteen, of equally many rows each."""

    class Drawn(Exception):
        pass

    def draw_times(key, sde, frame, n, *_, **__):
        raise Drawn(n)

    monkeypatch.setattr(network_module.noisy_samples, "draw_times", draw_times)
    unread: Any = None
    with pytest.raises(Drawn, match=rf"^{times}$"):
        network_module._minibatch_loss(
            unread,
            unread,
            X0,
            jax.random.key(0),
            sde=SDE,
            coordinates=unread,
            size=size,
            weighting=None,
            levels=(0.0, 1.0),
        )


@pytest.mark.parametrize("batch_size", [16, None])
def test_a_second_fit_compiles_nothing(compilations, batch_size):
    """With other data, another key, a transform made anew, and a shorter last chunk."""
    for seed, steps in ((0, 130), (1, 130)):
        compilations.clear()
        points = jnp.asarray(np.random.default_rng(seed).normal(size=(32, 2)), jnp.float32)
        f = diffusion.fit_denoiser(
            jax.random.key(seed),
            SDE,
            points,
            width=8,
            steps=steps,
            batch_size=batch_size,
            tx=optax.adam(1e-2),
        )
        assert f.stats["steps"] == steps
    assert compilations == []


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_a_warm_up_ends_before_the_fit(steps):
    """Also one of a single step, which optax would refuse."""
    tx = network_training.default_optimiser(steps)
    weights: Any = Parameters(hidden=jnp.ones((2, 2)), readout=jnp.ones((2, 1)))
    update, _ = tx.update(weights, tx.init(weights), weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
