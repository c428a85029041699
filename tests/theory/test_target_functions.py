"""Hermite polynomials in rational numbers; targets far out."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from softntk.theory import feature_learning as fl


def exact_hermite(degree: int, z: int) -> float:
    before, now = Fraction(0), Fraction(1)
    for j in range(degree):
        before, now = now, z * now - j * before
    if not now:
        return 0.0
    log = math.log(abs(now.numerator)) - 0.5 * math.log(math.factorial(degree))
    return math.copysign(math.exp(log) if log < 709 else math.inf, 1 if now > 0 else -1)


@pytest.mark.parametrize("degree", [1, 2, 5, 20, 60])
def test_hermite_polynomials_at_any_size(degree, dtype):
    z = [-(10**6), -1000, -7, -3, 0, 1, 4, 9, 1000, 10**6]
    desired = np.array([exact_hermite(degree, value) for value in z])
    found = np.asarray(fl.hermite(degree, jnp.asarray(z, dtype)), float)
    limit = float(jnp.finfo(dtype).max)
    infinite = np.abs(desired) > limit
    np.testing.assert_array_equal(found[infinite], np.sign(desired[infinite]) * np.inf)
    scale = np.maximum(np.abs(desired), np.exp(np.minimum(np.square(z, dtype=float), 200) / 4))
    error = np.abs(found[~infinite] - desired[~infinite])
    np.testing.assert_array_less(error, (2e-4 if dtype == "float32" else 1e-11) * scale[~infinite])


def test_targets_are_bounded_or_infinite_far_out_never_nan(dtype):
    huge = float(jnp.finfo(dtype).max)
    x = jnp.asarray([[1e6] * 3, [-1e6] * 3, [huge] * 3, [-huge] * 3, [0.0, huge, huge]], dtype)
    for degree in (1, 20):
        composed = np.asarray(fl.target("composition", jnp.ones(3, dtype), degree)(x))
        assert (np.abs(composed) <= 1).all()
        for kind in ("hermite", "polynomial"):
            assert not np.isnan(fl.target(kind, jnp.ones(3, dtype), degree)(x)).any()
    z = jnp.asarray(
        [[2.0, 3.0, -1.0], [0.0, huge, huge], [huge, huge, -huge], [-huge, 1.0, 1.0]], dtype
    )
    found = np.asarray(fl.target("staircase", jnp.eye(3, dtype=dtype))(z)).ravel()
    assert_close(found[:2], [(2 + 6 - 6) / math.sqrt(3), 0.0], dtype)
    np.testing.assert_array_equal(found[2:], [-np.inf, -np.inf])
    one = fl.target("polynomial", jnp.asarray([0.0, 2.0, 0.0], dtype), 3)(z[:1])
    assert_close(one, [[(3 + 8 / math.sqrt(2) + 18 / math.sqrt(6)) / math.sqrt(3)]], dtype)
