"""Extreme eigenvalues against NumPy."""

import jax
import numpy as np
import pytest
from tools import assert_close

from softntk import ntk


def test_extreme_eigenvalues(dtype):
    root = np.random.default_rng(0).normal(size=(12, 12)).astype(dtype)
    gram = (root @ root.T).astype(dtype)
    desired = np.linalg.eigvalsh(gram.astype(np.float64))
    for call in (ntk.extreme_eigenvalues, jax.jit(ntk.extreme_eigenvalues)):
        smallest, largest = call(gram)
        assert abs(float(smallest) - desired[0]) < (1e-4 if dtype == "float32" else 1e-12) * desired[-1]
        assert_close(largest, desired[-1], dtype)
    full = gram.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3)
    assert_close(np.array(ntk.extreme_eigenvalues(full))[1], desired[-1], dtype)


def test_bad_input(untyped):
    with pytest.raises(ValueError, match="gram must be symmetric"):
        ntk.extreme_eigenvalues(np.array([[1.0, 2.0], [0.0, 1.0]], np.float32))
    with pytest.raises(ValueError, match="gram must have shape"):
        ntk.extreme_eigenvalues(np.ones((3,), np.float32))
