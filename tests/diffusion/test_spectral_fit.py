"""Least squares in the span of landmarks: filters, paths and errors in closed form, with a linear
kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close

from softntk.diffusion._denoisers import spectral_fit
from softntk.diffusion._denoisers.kernel import KernelPredictor
from softntk.diffusion._denoisers.kernel_fit import split_folds
from softntk.diffusion._denoisers.network import _check_levels


def linear(sigma, z1, z2=None):
    return sigma * z1 @ (z1 if z2 is None else z2).T


RNG = np.random.default_rng(0)
LANDMARKS = RNG.normal(size=(3, 3))


def sums(z, y, present=None):
    present = np.ones(len(z)) if present is None else present
    root = spectral_fit.whitening(linear, jnp.asarray(1.0), jnp.asarray(LANDMARKS))
    arrays = (jnp.asarray(each) for each in (LANDMARKS, root, z, y, present))
    return spectral_fit.moments(linear, jnp.asarray(1.0), *arrays)


@pytest.mark.parametrize("tau", [1e-9, 0.3, 40.0])
def test_filters(tau, x64):
    e = np.array([0.0, 1e-9, 0.5, 3.0])
    with np.errstate(invalid="ignore"):
        flow = np.where(tau * e > 1e-12, -np.expm1(-tau * e) / e, tau)
    assert_close(
        spectral_fit.filter_function(jnp.asarray(e), jnp.asarray(tau), "flow"), flow, rtol=1e-6
    )
    assert_close(
        spectral_fit.filter_function(jnp.asarray(e), jnp.asarray(tau), "ridge"),
        1 / (e + 1 / tau),
        rtol=1e-12,
    )


def test_paths_and_their_errors(x64):
    """Features are an orthonormal basis of linear functions; half of the other samples are absent."""
    z, y = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2))
    others_z, others_y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    there = np.array([1.0, 1, 1, 1, 1, 0, 0, 0])
    root = np.asarray(spectral_fit.whitening(linear, jnp.asarray(1.0), jnp.asarray(LANDMARKS)))
    assert_close(root @ root.T @ (LANDMARKS @ LANDMARKS.T), np.eye(3), rtol=1e-8)
    features, others = z @ LANDMARKS.T @ root, others_z @ LANDMARKS.T @ root
    kept, held = sums(z, y), sums(others_z, others_y, there)
    assert float(held.count) == 5
    assert_close(held.squares, (others_y[:5] ** 2).sum(0))
    assert_close(kept.right, features.T @ y)
    path = spectral_fit.path(kept)
    gram, right = features.T @ features / 20, features.T @ y / 20
    assert_close(path.eigenvalues, np.linalg.eigvalsh(gram))
    for kind in ("flow", "ridge"):
        taus = np.array([0.2, 3.0])
        weights = [
            np.linalg.solve(gram, (np.eye(3) - scipy.linalg.expm(-tau * gram)) @ right)
            if kind == "flow"
            else np.linalg.solve(gram + np.eye(3) / tau, right)
            for tau in taus
        ]
        assert_close(path.weights(jnp.asarray(taus[1]), kind), weights[1], rtol=1e-9)
        direct = [np.sum((others[:5] @ w - others_y[:5]) ** 2) / 5 for w in weights]
        assert_close(
            spectral_fit.held_out_errors(path, held, jnp.asarray(taus), kind), direct, rtol=1e-9
        )
    grid = np.asarray(spectral_fit.stopping_grid(path)) * float(path.eigenvalues[-1])
    assert len(grid) == 81
    assert_close(grid[[0, 8, -1]] / [1e-2, 1e-1, 1e8], np.ones(3), rtol=1e-6)


def test_noise_and_norm_of_a_function_in_the_span(x64):
    z = RNG.normal(size=(4000, 3))
    truth = RNG.normal(size=(3, 2))  # ⟨w, z⟩ has norm |w| for a linear kernel
    y = z @ truth + 0.3 * RNG.normal(size=(4000, 2))
    moments = sums(z, y)
    noise, norm = spectral_fit.noise_and_norm(spectral_fit.path(moments), moments)
    assert noise == pytest.approx(0.3, rel=0.05)
    assert norm == pytest.approx(np.sqrt(np.sum(truth**2) / 2), rel=0.05)


def test_landmarks_that_are_equal_count_once(x64):
    landmarks = np.concatenate([LANDMARKS[:2], LANDMARKS[:1]])
    root = np.asarray(spectral_fit.whitening(linear, jnp.asarray(1.0), jnp.asarray(landmarks)))
    assert (np.abs(root).max(axis=0) == 0).sum() == 1


def test_between_knots_kernels_are_interpolated(x64):
    weights, landmarks = RNG.normal(size=(3, 1, 1)), RNG.normal(size=(3, 1, 2))
    sigmas = np.array([1.0, 2.0, 0.5])
    f = KernelPredictor(
        *(jnp.asarray(each) for each in (landmarks, weights, sigmas)), kernel_of=linear
    )
    z = RNG.normal(size=(6, 2))
    at = [sigmas[j] * z @ landmarks[j].T @ weights[j] for j in range(3)]
    places = np.array([0.0, 0.25, 1.0, 1.3, 1.999, 2.0])
    lower = np.minimum(places.astype(int), 1)
    expected = np.array(
        [
            (1 - p + j) * at[j][i] + (p - j) * at[j + 1][i]
            for i, (p, j) in enumerate(zip(places, lower, strict=True))
        ]
    )
    assert_close(f(jnp.asarray(places), jnp.asarray(z)), expected)
    for i, place in enumerate(places):
        assert_close(f(jnp.asarray([place]), jnp.asarray(z))[i], expected[i])
    single = KernelPredictor(
        *(jnp.asarray(each[1:2]) for each in (landmarks, weights, sigmas)), kernel_of=linear
    )
    assert_close(single(jnp.zeros(1), jnp.asarray(z)), at[1])


def test_folds_are_a_partition():
    folds = split_folds(jax.random.key(0), 23, 0.25)
    assert sorted(map(len, folds)) == [5, 6, 6, 6]
    assert sorted(np.concatenate(folds)) == list(range(23))
    assert len(split_folds(jax.random.key(0), 2, 0.5)) == 2
    with pytest.raises(ValueError, match="share of at most a half"):
        split_folds(jax.random.key(0), 3, 0.2)


def test_levels_come_back_in_order():
    assert _check_levels((0.5, 2)) == (0.5, 2.0)
    assert _check_levels(np.array([0.5, 2.0])) == (0.5, 2.0)


@pytest.mark.parametrize("product", [1e-9, 1.5e-6, 1e-3])
def test_the_filter_of_flow_at_small_times(product, x64):
    """(1 − e^{−τe})/e, right to half of the 10⁻⁶ below which it counts as τ."""
    found = spectral_fit.filter_function(jnp.asarray([product / 2]), jnp.asarray(2.0), "flow")
    assert_close(found, [-np.expm1(-product) / (product / 2)], rtol=5.1e-7)
