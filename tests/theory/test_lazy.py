"""Distances to the linearisation against a loop that does nothing clever, and their laws in scale
and width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, dense_kernels, points, slow_except
from jax.flatten_util import ravel_pytree

from softntk import ntk
from softntk.networks import two_layer
from softntk.solution import Result
from softntk.theory.lazy import distances


def start(family="softmax", width=16, out_dim=2, d=3, seed=0, **options):
    net = two_layer(family, width=width, out_dim=out_dim, sigma=0.5, **options)
    return net, net.init_fn(jax.random.key(seed), (-1, d))[1]


def by_hand(net, params, x, y, tests, rate, steps, scale):
    """One step after the other: the network, and the function that is linear in its weights, F(θ₀)
    + J(θ₀)(θ − θ₀).
    """
    trained = ("hidden", "readout") if net.architecture.train_readout else ("hidden",)
    kernel = jax.jit(lambda v: dense_kernels(net.apply_fn, whole(v), x)["full"])
    flat, back = ravel_pytree({name: getattr(params, name) for name in trained})
    whole = lambda v: params.replace(**back(v))
    f = jax.jit(lambda v, p: scale * net.apply_fn(whole(v), p))
    jacobian = {id(p): jax.jit(jax.jacobian(f))(flat, p).reshape(-1, flat.size) for p in (x, tests)}
    line = lambda v, p: f(flat, p) + (jacobian[id(p)] @ (v - flat)).reshape(len(p), -1)
    out = []
    ours = theirs = flat
    slopes = [
        jax.jit(jax.grad(lambda v, g=g: 0.5 * jnp.sum((g(v, x) - y) ** 2) / scale**2))
        for g in (f, line)
    ]
    for _ in range(steps + 1):
        moved = np.asarray(whole(ours).hidden - params.hidden)
        h0, h = (np.asarray(kernel(v)) for v in (flat, ours))
        norm = np.linalg.norm
        off = [
            norm(f(ours, p) - line(theirs, p)) / max(norm(line(theirs, p) - f(flat, p)), 1e-300)
            for p in (x, tests)
        ]
        out.append(
            [
                *off,
                norm(moved) / norm(params.hidden),
                max(norm(moved, axis=0)) / np.sqrt(np.mean(norm(params.hidden, axis=0) ** 2)),
                norm(h - h0) / norm(h0),
                0.5 * norm(f(ours, x) - y) ** 2,
                0.5 * norm(line(theirs, x) - y) ** 2,
            ]
        )
        ours, theirs = ours - rate * slopes[0](ours), theirs - rate * slopes[1](theirs)
    return np.array(out).T


@pytest.mark.parametrize(
    ("family", "options", "scale"),
    slow_except(
        [
            ("softmax", {}, 1.0),
            ("softmax", {"antisymmetric": False}, 3.0),
            ("relu", {"train_readout": True}, 0.5),
            ("res_softmax", {"antisymmetric": False, "train_readout": True}, 1.0),
        ],
        ("softmax", {}, 1.0),
    ),
)
@pytest.mark.slow
def test_distances_are_those_of_a_loop(family, options, scale, x64):
    net, params = start(family, **options)
    x, tests, y = points(1, 4, 3), points(2, 3, 3), points(3, 4, 2)
    found = distances(
        net, params, x, y, learning_rate=0.1, steps=4, x_test=tests, at=[0, 1, 3, 4], scale=scale
    )
    desired = by_hand(net, params, x, y, tests, 0.1, 4, scale)[:, [0, 1, 3, 4]]
    names = ("train", "test", "weights", "neuron", "kernel", "loss", "linearised_loss")
    for name, row in zip(names, desired, strict=True):
        assert_close(getattr(found, name), row, rtol=1e-8)
    assert found.at.tolist() == [0, 1, 3, 4]
    assert found.result == Result.SUCCESSFUL


@pytest.mark.slow
def test_a_large_scale_is_the_linearisation(x64):
    """f(0) = 0: weights move like 1/s; the network departs from the linearisation by one order more
    if antisymmetric.
    """
    x, y = points(1, 5, 3), points(2, 5, 1)
    net, params = start(width=32, out_dim=1)
    runs = [
        distances(net, params, x, y, learning_rate=0.3, steps=200, at=[200], scale=s)
        for s in (1e2, 1e3)
    ]
    assert runs[1].train[0] < 1e-7
    for name, order in (("train", 2), ("weights", 1), ("neuron", 1), ("kernel", 2)):
        one, ten = (float(getattr(run, name)[0]) for run in runs)
        assert abs(np.log10(one / ten) - order) < 0.01, name
    assert_close(runs[1].loss, runs[1].linearised_loss, rtol=1e-6)
    # The linearisation itself does not depend on the scale.
    assert_close(runs[0].linearised_loss, runs[1].linearised_loss, rtol=1e-9)


@pytest.mark.slow
def test_weights_of_a_homogeneous_network_are_an_output_scale(x64):
    """ReLU: c times the weights is c times the function with the same kernel, so σ and the output
    scale are one knob.
    """
    x, y = points(1, 5, 3), points(2, 5, 1)
    net, params = start("relu", width=32, out_dim=1)
    larger = params.replace(hidden=4 * params.hidden)
    one = distances(net, params, x, y, learning_rate=0.3, steps=200, at=[200], scale=4.0)
    other = distances(net, larger, x, y, learning_rate=0.3, steps=200, at=[200])
    for name in ("train", "weights", "neuron", "kernel", "loss"):
        assert_close(getattr(one, name), getattr(other, name), rtol=1e-8)


@pytest.mark.slow
def test_steps_that_are_measured_by_themselves_in_float32():
    net, params = start(out_dim=1)
    x, y = points(1, 4, 3, "float32"), points(3, 4, 1, "float32")
    found = distances(net, params, x, y, learning_rate=0.1, steps=100)
    assert (found.at[0], found.at[-1], found.test) == (1, 100, None)
    assert found.train.dtype == jnp.float32
    assert np.all(np.diff(found.weights) > 0)


@pytest.mark.slow
def test_divergence_is_infinite_and_says_so():
    net = two_layer(activation="identity", width=16)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, y = points(1, 4, 3, "float32"), points(2, 4, 1, "float32")
    found = distances(net, params, x, y, learning_rate=1e3, steps=300, at=[0, 300])
    assert found.result == Result.DIVERGED
    for name in ("train", "weights", "neuron", "kernel", "loss"):
        assert getattr(found, name)[0] < 1e3
        assert np.isposinf(getattr(found, name)[1]), name


def test_one_point_that_overflows_is_a_divergence():
    """The parameters stay finite, and so does f at the origin."""
    net = two_layer(activation="identity", width=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    x = jnp.array([[1e3, 0.0], [0.0, 0.0]])
    found = distances(net, params, x, jnp.ones((2, 1)), learning_rate=1e33, steps=1, at=[0, 1])
    assert found.result == Result.DIVERGED
    for name in ("train", "weights", "neuron", "kernel", "loss"):
        assert getattr(found, name)[0] < 2
        assert np.isposinf(getattr(found, name)[1]), name


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("family", "antisymmetric", "slope", "within"),
    # Of an independent start what is left is a random sum, which scatters by a factor of four from
    # one to another.
    [("softmax", True, -1.0, 0.15), ("softmax", False, -1.0, 0.4), ("relu", True, -0.5, 0.15)],
)
def test_distances_fall_with_the_width(family, antisymmetric, slope, within, x64):
    """Like m^{-1} for softmax and like m^{-1/2} for ReLU, as units cross its kink; the weights like
    m^{-1/2} for both.
    """
    x, tests, y = points(1, 12, 8), points(2, 40, 8), 0.5 * jnp.sign(points(3, 12, 1))
    widths, names, found = [512, 2048, 8192], ("train", "test", "weights", "neuron", "kernel"), []
    for width in widths:
        net, runs = start(family, width=width, out_dim=1, d=8, antisymmetric=antisymmetric)[0], []
        for seed in range(6):
            params = net.init_fn(jax.random.key(seed), (-1, 8))[1]
            rate = 1 / float(ntk.extreme_eigenvalues(ntk.empirical(net, params, x)).largest)
            seen = y + net.apply_fn(params, x)
            runs.append(
                distances(net, params, x, seen, learning_rate=rate, steps=40, at=[40], x_test=tests)
            )
        found.append(
            [
                np.exp(np.mean([np.log(float(getattr(run, name)[0])) for run in runs]))
                for name in names
            ]
        )
    slopes = dict(zip(names, np.polyfit(np.log(widths), np.log(found), 1)[0], strict=True))
    for name in ("train", "test", "kernel"):
        assert abs(slopes[name] - slope) < within, slopes
    assert abs(slopes["weights"] + 0.5) < 0.03, slopes
    assert abs(slopes["neuron"] + 0.5) < 0.15, slopes


def test_bad_input(untyped):
    net, params = start()
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    good = {"learning_rate": 0.1, "steps": 5}
    half: Any = [0.5]
    for call, message in [
        (
            lambda: distances(net, params, x, y, learning_rate=0.0, steps=5),
            "learning_rate must be a positive",
        ),
        (
            lambda: distances(net, params, x, y, learning_rate=0.1, steps=0),
            "steps must be a positive integer of at most 2147483647, got 0",
        ),
        (lambda: distances(net, params, x, y, **good, scale=-1.0), "scale must be a positive"),
        (
            lambda: distances(net, params, x, y, **good, at=[3, 2]),
            "at must hold ascending integers between 0 and steps = 5",
        ),
        (lambda: distances(net, params, x, y, **good, at=[6]), "at must hold ascending integers"),
        (lambda: distances(net, params, x, y, **good, at=[]), "at must hold ascending integers"),
        (lambda: distances(net, params, x, y, **good, at=half), "at must hold ascending integers"),
        (lambda: distances(net, params, x[:, :2], y, **good), "x must have the 3 features"),
        (
            lambda: distances(net, params, x, y, **good, x_test=x[:, :2]),
            "x_test must have the 3 features",
        ),
        (
            lambda: distances(net, params, x, y[:3], **good),
            r"y must have shape \[n, k\] = \[4, 2\]",
        ),
        (lambda: distances(net, params, x, y * np.nan, **good), "y must be finite"),
        (lambda: distances(net, params, x * np.inf, y, **good), "x must be finite"),
        (
            lambda: distances(net, params, x, y.astype(int), **good),
            "y must be a floating-point array",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
