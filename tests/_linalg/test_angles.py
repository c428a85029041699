"""Sines of small angles, against mpmath."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from softntk._linalg.angles import sine


@pytest.mark.parametrize("dtype", ["float64", "float32"], indirect=True)
def test_sines_of_small_angles_are_those_of_the_variances_as_numbers(dtype):
    """Of a determinant that is a few roundings of its terms, half of the digits are right."""
    eps = float(jnp.finfo(dtype).eps)
    a, b = np.random.default_rng(0).uniform(0.5, 2, size=(2, 20)).astype(dtype)
    c = (np.sqrt(a.astype(float) * b) * (1 - 50 * eps)).astype(dtype)
    found = np.asarray(sine(*map(jnp.asarray, (a, c, b))), float)
    with mp.workdps(60):
        ratios = [
            mp.mpf(float(z)) ** 2 / float(x) / float(y) for x, y, z in zip(a, b, c, strict=True)
        ]
        wanted = np.array([float(mp.sqrt(1 - ratio)) for ratio in ratios])
    assert np.max(np.abs(found / wanted - 1)) < 0.1 * eps**0.5
