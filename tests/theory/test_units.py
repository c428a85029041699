"""Laws of units, c·y and c·x: nothing depends on what a kernel, a target or a point is measured in,
from 1e-150 to 1e150.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import softntk as sn
from softntk.solution import Result
from softntk.theory import feature_learning as fl
from softntk.theory import generalisation, lazy

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(6, 6))
GRAM = ROOT @ ROOT.T + 0.1 * np.eye(6)
Y = RNG.normal(size=(6, 2))


@pytest.mark.parametrize("kernel_unit", [1e-200, 1e-25, 1e25, 1e200])
@pytest.mark.parametrize("unit", [1e-150, 1e-25, 1e25, 1e150])
def test_kernels_and_targets(unit, kernel_unit):
    gram, y, root = kernel_unit * GRAM, unit * Y, kernel_unit**0.5
    one = generalisation.rkhs_norm(GRAM, Y)
    other = generalisation.rkhs_norm(gram, y)
    for name in ("outputs", "total", "outputs_error", "total_error"):
        assert_close(getattr(other, name) / unit * root, getattr(one, name), rtol=1e-6)
    assert_close(
        generalisation.effective_rank(gram).tail_flatness,
        generalisation.effective_rank(GRAM).tail_flatness,
    )
    assert_close(
        generalisation.noise_level(gram, y) / unit, generalisation.noise_level(GRAM, Y), rtol=1e-6
    )
    one = generalisation.early_stopping_time(GRAM, 0.3, norm=2.0, learning_rate=0.01)
    other = generalisation.early_stopping_time(
        gram, 0.3 * unit, norm=2.0 * unit / root, learning_rate=0.01 / kernel_unit
    )
    assert_close(other.time * kernel_unit, one.time, rtol=1e-9)
    assert other.steps == one.steps
    assert_close(other.critical_radius / root, one.critical_radius, rtol=1e-9)
    assert_close(other.error / unit / unit, one.error, rtol=1e-9)
    one = generalisation.least_risk_time(GRAM, 0.3, norm=2.0)
    other = generalisation.least_risk_time(gram, 0.3 * unit, norm=2.0 * unit / root)
    assert_close(other.time * kernel_unit, one.time, rtol=1e-6)
    assert_close(other.error / unit / unit, one.error, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-150, 1e-25, 1e25, 1e150])
def test_ridge_regression_on_features(unit, x64):
    for options, scaled in (({}, {}), ({"ridge": 0.3}, {"ridge": 0.3 * unit * unit})):
        one = fl.ridge_features(GRAM, Y, GRAM[:2], **options)
        assert_close(fl.ridge_features(unit * GRAM, Y, unit * GRAM[:2], **scaled), one, rtol=1e-9)
        assert_close(fl.ridge_features(GRAM, unit * Y, GRAM[:2], **options) / unit, one, rtol=1e-9)


def test_the_least_risk_is_found_where_noise_outweighs_the_signal():
    """At small times the risk is B²λ (1 − 2λt) + σ² Σλ² t², least at t = B²λ²/(σ² Σλ²)."""
    stop = generalisation.least_risk_time(np.eye(2), 1e5)
    np.testing.assert_allclose(stop.time, 1e-10 / 2, rtol=1e-3)


def test_the_ends_of_the_range_are_zero_or_infinite_never_nan():
    for noise, norm in [
        (1e-200, 1.0),
        (1e200, 1.0),
        (1e-300, 1e300),
        (1e300, 1e-300),
        (5e-324, 1.0),
    ]:
        for stop in (
            generalisation.early_stopping_time(GRAM, noise, norm=norm),
            generalisation.least_risk_time(GRAM, noise, norm=norm),
        ):
            assert stop.time > 0
            assert stop.error >= 0
            assert stop.critical_radius >= 0
    assert generalisation.early_stopping_time(np.eye(2), 1e-300, norm=1e300).time == np.inf
    zero = 0 * Y
    assert (
        generalisation.rkhs_norm(GRAM, zero).total
        == generalisation.rkhs_norm(GRAM, zero).total_error
        == 0
    )
    np.testing.assert_array_equal(generalisation.noise_level(GRAM, zero), [0.0, 0.0])
    for unit in (0.0, 1e-300, 1e300):
        risk = sn.theory.risk_bound(GRAM, unit * Y)
        assert (risk.bound <= 1).all()
        assert (risk.bound > 0).all()
    np.testing.assert_array_equal(
        fl.ridge_features(jnp.zeros((3, 2)), jnp.ones((3, 1)), jnp.ones((2, 2))), np.zeros((2, 1))
    )
    ones = generalisation.rkhs_norm(np.array([[4.0]]), np.array([[6.0]]))
    assert ones.total == 3.0


# --- networks: x → c x and W → W/c leave the logits, and multiply derivatives in the weights by c


def network(family, dtype, width=16):
    net = sn.networks.two_layer(family, width=width, sigma=0.5)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((4, 3), (4, 1)))
    return net, jax.tree.map(lambda leaf: leaf.astype(dtype), params), x, y


def rescaled(params, unit):
    return params.replace(hidden=params.hidden / unit)


@pytest.mark.parametrize("unit", [1e-25, 1e-10, 1e10, 1e25])
def test_certificates(unit, dtype):
    net, params, x, y = network("softmax", dtype, width=2000)
    one = sn.theory.certify_convergence(net, params, x, 1e-4 * y)
    other = sn.theory.certify_convergence(net, rescaled(params, unit), unit * x, 1e-4 * y)
    assert one.holds
    assert other.holds
    rtol = 1e-5 if dtype == "float32" else 1e-9
    assert_close(other.learning_rate * unit**2, one.learning_rate, rtol=rtol)
    assert_close(other.radius * unit, one.radius, rtol=rtol)
    assert_close(other.largest_singular_value / unit, one.largest_singular_value, rtol=rtol)
    assert_close(other.rate, one.rate, rtol=rtol)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_perturbation_and_alignment(unit, dtype):
    net, params, x, _ = network("softmax", dtype)
    options = {"key": jax.random.key(1), "trials": 2, "ascent_steps": 3}
    one = sn.theory.perturbation(net, params, x, [0.1], **options)
    other = sn.theory.perturbation(net, rescaled(params, unit), unit * x, [0.1 / unit], **options)
    for name in (
        "frobenius",
        "spectral",
        "ours_frobenius",
        "ours_spectral",
        "size",
        "smallest",
        "largest",
    ):
        assert_close(np.asarray(getattr(other, name)) / unit**2, getattr(one, name), rtol=1e-4)
    direction = jnp.ones(3, dtype)
    one = fl.alignment(params, params.replace(hidden=2 * params.hidden + 1), direction)
    small = rescaled(params, unit)
    other = fl.alignment(small, small.replace(hidden=2 * small.hidden + 1 / unit), unit * direction)
    for name in ("before", "after", "change", "leading"):
        assert_close(getattr(other, name), getattr(one, name), dtype)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_minima(unit, x64):
    A, b = np.random.default_rng(2).normal(size=(20, 3)), np.full(20, 0.05)
    x = np.array([1e-3, -1e-3, 2e-3])
    one = sn.theory.certify_minimum(sn.regression.softmax(A, b, 0.5), x)
    other = sn.theory.certify_minimum(sn.regression.softmax(unit * A, b, 0.5), x / unit)
    assert one.holds
    assert other.holds
    for name in ("radius", "convex_radius", "error"):
        assert_close(getattr(other, name) * unit, getattr(one, name), rtol=1e-6)
    assert_close(other.strength / unit**2, one.strength, rtol=1e-9)
    assert_close(other.kantorovich, one.kantorovich, rtol=1e-6)


def test_one_step_is_linear_in_the_targets_and_infinite_not_nan_far_out():
    net, params, x, y = network("relu", "float32")
    slope = fl.one_step(net, params, x, y, 1.0).hidden - params.hidden  # F = 0 at the start
    for unit in (1e-25, 1e25):
        moved = fl.one_step(net, params, x, unit * y, 1 / unit).hidden - params.hidden
        assert_close(moved, slope, rtol=1e-4)
    exp = sn.networks.two_layer("exp", width=8)
    _, params = exp.init_fn(jax.random.key(0), (-1, 2))
    x = jnp.array([[9000.0, -1.0], [8000.0, 3.0], [-9000.0, 100.0]])
    for y in (jnp.array([[-2000.0], [1000.0], [10.0]]), 1e30 * jnp.ones((3, 1))):
        assert not np.isnan(fl.one_step(exp, params, x, y, 1e-10).hidden).any()


def test_lazy_distances_of_huge_targets_and_of_nothing():
    """f(0) = 0: with c·y and an output scale c everything is as before, and losses are c² as large,
    or infinite.
    """
    net, params, x, y = network("softmax", "float32")
    options = {"learning_rate": 0.1, "steps": 3, "at": [0, 1, 3]}
    one = lazy.distances(net, params, x, y, **options)
    for unit in (1e-18, 1e18, 1e25):
        other = lazy.distances(net, params, x, unit * y, scale=unit, **options)
        assert other.result == Result.SUCCESSFUL
        for name in ("train", "weights", "neuron", "kernel"):
            assert_close(getattr(other, name), getattr(one, name), rtol=2e-3)
        if unit < 1e20:
            assert_close(other.loss / unit / unit, one.loss, rtol=2e-3)
        else:
            assert np.isposinf(other.loss).all()
    moved = np.asarray(fl.one_step(net, params, x, y, 0.1).hidden - params.hidden)
    hidden = np.asarray(params.hidden)
    assert_close(one.weights[1], np.linalg.norm(moved) / np.linalg.norm(hidden), rtol=1e-3)
    lengths = np.linalg.norm(hidden, axis=0)
    assert_close(
        one.neuron[1], np.linalg.norm(moved, axis=0).max() / np.sqrt(np.mean(lengths**2)), rtol=1e-3
    )
    assert_close(one.loss[0], 0.5 * np.sum(np.square(y)), rtol=1e-5)
    nothing = lazy.distances(net, params, 0 * x, 0 * y, **options)
    for name in ("train", "weights", "neuron", "kernel", "loss"):
        np.testing.assert_array_equal(getattr(nothing, name), 0.0)
