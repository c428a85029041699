"""One large step and what it is worth, against gradients by hand, dense regression and quadrature."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, points
from numpy.polynomial import hermite_e

from softntk.networks import two_layer
from softntk.theory import feature_learning as fl
from softntk.theory.generalisation._norms_and_ranks import rkhs_norm

KINDS = sorted(fl.TARGETS)


def start(family="relu", width=64, d=6, dtype="float64", **options):
    net = two_layer(family, width=width, sigma=d**-0.5, **options)
    return net, cast(net.init_fn(jax.random.key(0), (-1, d))[1], dtype)


def gaussian(seed, n, d, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), dtype)


# --- targets


def test_hermite_polynomials_are_orthonormal(x64):
    z, weights = hermite_e.hermegauss(40)
    rows = np.array([fl.hermite(k, jnp.asarray(z)) for k in range(8)])
    for k in range(8):
        assert_close(rows[k], hermite_e.hermeval(z, np.eye(8)[k]) / math.sqrt(math.factorial(k)))
    assert_close((rows * weights) @ rows.T / math.sqrt(2 * math.pi), np.eye(8), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_see_their_directions_only(kind, dtype):
    directions = (
        np.random.default_rng(0).normal(size=(5, 2 if kind == "staircase" else 1)).astype(dtype)
    )
    f = fl.target(kind, directions, degree=3)
    x = gaussian(1, 30, 5, dtype)
    q, r = np.linalg.qr(directions.astype(float))
    q = q * np.sign(np.diag(r))
    z = np.asarray(x, float) @ q
    he = lambda j: hermite_e.hermeval(z[:, 0], np.eye(4)[j]) / math.sqrt(math.factorial(j))
    polynomial = (he(1) + he(2) + he(3)) / math.sqrt(3)
    desired = {
        "hermite": he(3),
        "polynomial": polynomial,
        "composition": np.tanh(polynomial),
        "staircase": (z[:, 0] + z[:, 0] * z[:, -1]) / math.sqrt(2),
    }
    assert_close(f(x)[:, 0], desired[kind], dtype)
    assert_close(jax.jit(f)(x), f(x), dtype)
    away = np.random.default_rng(2).normal(size=(30, 5))
    away = jnp.asarray(away - away @ q @ q.T, dtype)
    assert_close(f(x + away), f(x), rtol=1e-4 if dtype == "float32" else 1e-10)
    if kind != "composition":
        assert abs(np.var(np.asarray(f(gaussian(3, 200_000, 5, dtype)), float)) - 1) < 0.05


# --- the step


def test_the_step_is_that_of_the_gradient_by_hand(dtype):
    net, params = start(dtype=dtype)
    x, y = gaussian(1, 20, 6, dtype), gaussian(2, 20, 1, dtype)
    w, a, rows = (np.asarray(v, float) for v in (params.hidden, params.readout, x))
    gradient = -rows.T @ ((rows @ w > 0) * (np.asarray(y, float) @ a.T)) / 8
    after = fl.one_step(net, params, x, y, 0.3)
    assert_close(after.hidden, w - 0.3 * gradient, dtype)
    assert np.all(after.readout == params.readout)
    assert after.hidden.dtype == dtype


@pytest.mark.parametrize("family", ["softmax", "exp", "res_softmax"])
def test_the_step_is_a_derivative(family, x64):
    net, params = start(family, antisymmetric=False, train_readout=True)
    x, y, move = gaussian(1, 20, 6), gaussian(2, 20, 1), gaussian(3, 6, 64)
    loss = lambda t: (
        0.5 * jnp.sum((net.apply_fn(params.replace(hidden=params.hidden + t * move), x) - y) ** 2)
    )
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert_close(
        jnp.sum(move * (params.hidden - fl.one_step(net, params, x, y, 2.0).hidden)) / 2,
        slope,
        rtol=1e-6,
    )


def test_alignment(dtype):
    _, params = start(dtype=dtype)
    directions = np.random.default_rng(0).normal(size=(6, 2)).astype(dtype)
    change = np.random.default_rng(1).normal(size=(6, 64)).astype(dtype)
    after = params.replace(hidden=params.hidden + change)
    found = fl.alignment(params, after, directions)
    q = np.linalg.qr(directions.astype(float))[0]
    norm = np.linalg.norm
    for name, part in (
        ("before", params.hidden),
        ("after", after.hidden),
        ("change", after.hidden - params.hidden),
    ):
        assert_close(
            getattr(found, name),
            norm(q.T @ np.asarray(part, float)) / norm(np.asarray(part, float)),
            dtype,
        )
    first = np.linalg.svd(np.asarray(after.hidden - params.hidden, float))[0][:, 0]
    assert_close(found.leading, norm(q.T @ first), rtol=1e-3 if dtype == "float32" else 1e-9)
    still = fl.alignment(params, params, directions)
    assert (float(still.change), float(still.leading)) == (0.0, 0.0)
    assert_close(still.before, still.after)


@pytest.mark.parametrize("family", ["relu", "softmax"])
def test_one_step_finds_the_direction_of_a_target_with_a_linear_part_only(family):
    d, n = 50, 4000
    net, params = start(family, width=256, d=d, dtype="float32")
    theta, x = jnp.eye(d)[0], gaussian(1, n, d, "float32")
    found = {}
    for kind in ("polynomial", "hermite"):
        y = fl.target(kind, theta, degree=3 if kind == "hermite" else 2)(x)
        found[kind] = fl.alignment(params, fl.one_step(net, params, x, y, 16.0 / n), theta)
    assert found["polynomial"].leading > 0.95
    assert found["polynomial"].change > 0.8
    assert found["hermite"].leading < 0.75
    assert found["hermite"].change < 0.5


# --- features and regression


def test_features_make_the_output(dtype):
    for family in ("softmax", "relu", "res_softmax"):
        net, params = start(family, dtype=dtype, antisymmetric=False, bias=True)
        x = points(1, 9, 6, dtype)
        phi = fl.features(net, params, x)
        assert_close(phi @ params.readout, net.apply_fn(params, x), dtype)


def test_ridge_regression_on_features(x64):
    phi, tests = gaussian(1, 30, 8), gaussian(2, 5, 8)
    y = phi[:, :2] + gaussian(3, 30, 2)
    primal = lambda rho: (
        np.asarray(tests) @ np.linalg.solve(phi.T @ phi + rho * np.eye(8), phi.T @ y)
    )
    assert_close(fl.ridge_features(phi, y, tests, ridge=0.4), primal(0.4), rtol=1e-9)
    wide, wide_tests = gaussian(4, 30, 90), gaussian(5, 5, 90)
    dual = (
        np.asarray(wide_tests)
        @ np.asarray(wide).T
        @ np.linalg.solve(wide @ wide.T + 0.4 * np.eye(30), y)
    )
    assert_close(fl.ridge_features(wide, y, wide_tests, ridge=0.4), dual, rtol=1e-9)

    def criterion(log):
        left = np.eye(30) - np.asarray(
            phi @ jnp.linalg.solve(phi.T @ phi + np.exp(log) * jnp.eye(8), phi.T)
        )
        return np.sum((left @ y) ** 2) / np.trace(left) ** 2

    grid = np.linspace(-12, 8, 801)
    best = np.exp(grid[np.argmin([criterion(log) for log in grid])])
    assert_close(fl.ridge_features(phi, y, tests), primal(best), rtol=0.02)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("family", ["relu", "softmax"])
def test_one_step_beats_random_features(family):
    """In 30 dimensions a polynomial of one direction: on new samples, ridge by cross-validation."""
    d, m, n = 30, 512, 2000
    net, params = start(family, width=m, d=d, dtype="float32", antisymmetric=False)
    f = fl.target("polynomial", jnp.eye(d)[0], degree=2)
    x, fresh, tests = (gaussian(seed, n, d, "float32") for seed in range(3))
    after = fl.one_step(net, params, x, f(x) + net.apply_fn(params, x), 1.0 * m**0.5 / n)
    errors = []
    for p in (params, after):
        predicted = fl.ridge_features(
            fl.features(net, p, fresh), f(fresh), fl.features(net, p, tests)
        )
        errors.append(float(jnp.mean((predicted - f(tests)) ** 2)))
    assert errors[1] < 0.5 * errors[0], errors


# --- noise


def test_noise(dtype):
    y = points(0, 40, 2, dtype)
    root = np.random.default_rng(1).normal(size=(40, 40))
    gram = root @ root.T + np.eye(40)
    key = jax.random.key(0)
    flipped = fl.corrupt("flips", y, 0.25, key=key)
    assert int(jnp.sum(jnp.all(flipped == -y, axis=1))) == 10
    assert int(jnp.sum(jnp.all(flipped == y, axis=1))) == 30
    noisy = fl.corrupt("gaussian", jnp.tile(y, (100, 1)), 0.3, key=key) - jnp.tile(y, (100, 1))
    assert abs(float(jnp.std(noisy)) / 0.3 - 1) < 0.05
    worst = fl.corrupt("adversarial", y, 0.5, gram=gram)
    assert worst.dtype == dtype
    moved = np.asarray(worst, float) - np.asarray(y, float)
    assert_close(np.linalg.norm(moved, axis=0), [0.5 * np.sqrt(40)] * 2, dtype)
    norms = lambda labels: rkhs_norm(gram, labels).outputs
    assert_close(
        norms(moved) ** 2,
        [40 * 0.25 / np.linalg.eigvalsh(gram)[0]] * 2,
        rtol=1e-4 if dtype == "float32" else 1e-9,
    )
    for seed in range(20):
        other = np.random.default_rng(seed).normal(size=(40, 2))
        other *= 0.5 * np.sqrt(40) / np.linalg.norm(other, axis=0)
        assert np.all(norms(moved) > norms(other))
    assert np.all(norms(np.asarray(y, float) + moved) >= norms(np.asarray(y, float) - moved))
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("gaussian", {"key": key}),
        ("flips", {"key": key}),
        ("adversarial", {"gram": gram}),
    )
    for kind, options in kinds:
        np.testing.assert_array_equal(fl.corrupt(kind, y, 0.0, **options), y)


# --- bad input


def test_bad_input(untyped):
    net, params = start(dtype="float32")
    x, y, theta = np.ones((4, 6), np.float32), np.ones((4, 1), np.float32), np.ones(6, np.float32)
    for call, message in [
        (lambda: fl.target("hermit", theta), "kind must be one of .* Did you mean 'hermite'?"),
        (lambda: fl.target("hermite", theta, degree=0), "degree must be a positive integer, got 0"),
        (
            lambda: fl.target("hermite", 0 * theta),
            "direction must have linearly independent columns",
        ),
        (
            lambda: fl.target("staircase", np.ones((6, 2), np.float32)),
            "direction must have linearly independent columns",
        ),
        (
            lambda: fl.target("staircase", np.ones((1, 2), np.float32)),
            "direction must have linearly independent columns",
        ),
        (lambda: fl.target("hermite", theta * np.nan), "direction must be finite"),
        (
            lambda: fl.target("hermite", theta.astype(int)),
            "direction must be a floating-point array",
        ),
        (lambda: fl.target("hermite", theta)(x[:, :5]), "x must have 6 features"),
        (lambda: fl.one_step(net, params, x, y, 0.0), "learning_rate must be a positive"),
        (
            lambda: fl.one_step(net, params, x, y[:3], 1.0),
            r"y must have shape \[n, k\] = \[4, 1\], .* got shape \(3, 1\)",
        ),
        (lambda: fl.one_step(net, params, x, y * np.nan, 1.0), "y must be finite"),
        (
            lambda: fl.alignment(params, params, theta[:5]),
            r"direction must have shape \[d\] or \[d, r\] with d = 6",
        ),
        (lambda: fl.features(net, params, x[:, :5]), "x must have the 6 features"),
        (lambda: fl.ridge_features(x, y, x[:, :5]), "test must have as many features as train"),
        (lambda: fl.ridge_features(x, y[:3], x), r"y must have shape \[n, k\] = \[4, k\]"),
        (
            lambda: fl.ridge_features(x, y, x, ridge=-1.0),
            "ridge must be a positive finite number, got -1.0",
        ),
        (lambda: fl.ridge_features(x * np.nan, y, x), "train must be finite"),
        (lambda: fl.corrupt("flip", y, 0.1), "kind must be one of .* Did you mean 'flips'?"),
        (
            lambda: fl.corrupt("flips", y, 1.1, key=jax.random.key(0)),
            "size must be a finite number at least 0 and at most 1, got 1.1",
        ),
        (
            lambda: fl.corrupt("gaussian", y, -0.1, key=jax.random.key(0)),
            "size must be a finite number at least 0",
        ),
        (lambda: fl.corrupt("gaussian", y, 0.1), "key is needed for gaussian noise"),
        (lambda: fl.corrupt("adversarial", y, 0.1), "gram is needed for adversarial noise"),
        (
            lambda: fl.corrupt("adversarial", y, 0.1, gram=np.eye(3)),
            r"gram must have shape \[n, n\] with the n = 4 rows of y",
        ),
        (
            lambda: fl.corrupt("gaussian", y * np.nan, 0.1, key=jax.random.key(0)),
            "y must be finite",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_kernel_that_is_not_symmetric_is_refused_even_where_it_is_not_used():
    y, skew = jnp.ones((3, 1)), jnp.eye(3).at[0, 1].set(1.0)
    with pytest.raises(ValueError, match="gram must be symmetric"):
        fl.corrupt("gaussian", y, 0.1, key=jax.random.key(0), gram=skew)


@pytest.mark.parametrize("kind", ["hermite", "polynomial", "composition"])
def test_single_index_targets_follow_the_first_direction(kind, x64):
    x = points(0, 5, 3)
    several = fl.target(kind, jnp.eye(3)[:, :2], degree=3)(x)
    assert np.array_equal(several, fl.target(kind, jnp.eye(3)[:, 0], degree=3)(x))
    if kind == "hermite":
        z = np.asarray(x)[:, 0]
        assert_close(several[:, 0], (z**3 - 3 * z) / np.sqrt(6), rtol=1e-12)
