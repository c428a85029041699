"""Norms against NumPy's long double, in every unit that the precision has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from softntk._linalg.norms import (
    binary_scale,
    host_norm,
    scaled_norm,
    tree_norm,
)

UNITS = {
    "float32": (1e-34, 1e-30, 1e-20, 1.0, 1e20, 1e30, 1e38),
    "float64": (1e-300, 1e-160, 1.0, 1e160, 1e307),
}


def long_norm(x, axis=None):
    return np.sqrt(np.sum(np.asarray(x, np.longdouble) ** 2, axis=axis)).astype(np.float64)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_norms_hold_in_every_unit(dtype, axis):
    x = np.random.default_rng(0).normal(size=(4, 3))
    for unit in UNITS[dtype]:
        scaled = jnp.asarray(x * unit, dtype)
        for norm in (scaled_norm, host_norm):
            assert_close(
                np.asarray(norm(scaled, axis), np.float64) / unit,
                long_norm(scaled, axis) / unit,
                dtype,
                rtol=1e-6,
            )
        assert scaled_norm(scaled, axis).dtype == dtype
        assert_close(
            scaled_norm(scaled, axis, keepdims=True),
            host_norm(scaled, axis, keepdims=True),
            rtol=1e-6,
        )


def test_a_power_of_two_changes_no_bit(dtype):
    x = jnp.asarray(np.random.default_rng(1).normal(size=7), dtype)
    for power in (-100, -1, 1, 100):
        assert scaled_norm(x * 2.0**power) == scaled_norm(x) * 2.0**power
        assert host_norm(np.asarray(x * 2.0**power)) == host_norm(np.asarray(x)) * 2.0**power


def test_zeros_infinities_and_nan(dtype):
    for norm in (scaled_norm, host_norm):
        assert norm(jnp.zeros(3, dtype)) == 0
        assert norm(jnp.zeros(0, dtype)) == 0
        assert norm(jnp.asarray([jnp.inf, 1], dtype)) == jnp.inf
        assert np.isnan(norm(jnp.asarray([jnp.nan, 1], dtype)))
    assert binary_scale(jnp.zeros(2, dtype)) == 1
    assert binary_scale(jnp.asarray([3.0, -5.0], dtype)) == 4


def test_the_derivative_is_the_direction(dtype):
    for unit in UNITS[dtype][1:-1]:
        direction = jax.grad(scaled_norm)(jnp.asarray([3.0, -4.0], dtype) * unit)
        assert_close(direction, [0.6, -0.8], dtype)
    assert_close(jax.grad(scaled_norm)(jnp.zeros(2, dtype)), [0, 0], dtype)


def test_trees_of_mixed_precision_and_with_integers(x64):
    tree = {"a": jnp.full(2, 1e200), "b": [jnp.full(2, 2.0, jnp.float32)], "steps": jnp.arange(3)}
    assert_close(tree_norm(tree) / 1e200, 2**0.5)
    assert tree_norm({"b": jnp.ones(4, jnp.float32), "c": 2}) == 2
    assert tree_norm({"steps": 3}) == 0
