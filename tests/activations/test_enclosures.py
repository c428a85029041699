"""Enclosures of every activation in the table against mpmath: ranges, rounding, jumps."""

import itertools
from typing import Any

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from activation_references import PRECISE, enclosure_of

from softntk import activations
from softntk.activations import ACTIVATIONS, Enclosure

every = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


def derivatives(name, z):
    """Return u, u', u'', u''' at z in fifty digits, by differences of mpmath."""
    # Differences of numbers of order one must show what is as small as e^{−z²}.
    with mp.workdps(60 + int(0.45 * min(abs(float(z)), 30) ** 2)):
        coefficients = mp.taylor(PRECISE[name], mp.mpf(float(z)), 3)
        return [c * mp.factorial(order) for order, c in enumerate(coefficients)]


def test_references_cover_the_table():
    assert set(PRECISE) == set(ACTIVATIONS)
    assert all(activation.enclosure is not None for activation in ACTIVATIONS.values())


def points_of(name, count, seed):
    """Return points of all magnitudes; exponentials end where float64 does."""
    rng = np.random.default_rng(seed)
    largest = 1.4 if enclosure_of(name).gaussian else 2.8
    z = 10 ** rng.uniform(-6, largest, count) * rng.choice([-1, 1], count)
    return np.concatenate([z, rng.normal(size=count)])


@every
def test_an_interval_of_one_point_holds_its_derivatives_and_is_narrow(name):
    enclosure = enclosure_of(name)
    z = points_of(name, 25, 0)
    found = enclosure.bounds(z, z)
    moduli = enclosure.jet(z, 0.0).moduli
    for i, point in enumerate(z):
        for order, exact in enumerate(derivatives(name, point)):
            lower, upper = found[order].lower[i], found[order].upper[i]
            assert mp.mpf(float(lower)) <= exact <= mp.mpf(float(upper)), (point, order)
            width = 1e-14 * (1 + abs(point) + 2 * point**2) * moduli[order][i] + 1e-300
            assert upper - lower <= width


@every
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_ranges_are_those_of_dense_samples(name, shift):
    """Every sample lies inside, and the ends are approached."""
    enclosure = enclosure_of(name)
    rng = np.random.default_rng(1)
    centre = 2 * rng.normal(size=12)
    half_width = 10 ** rng.uniform(-3, 0.6, 12)
    lower, upper = centre - half_width, centre + half_width
    found = enclosure.bounds(lower, upper, shift)
    suprema = enclosure.suprema(lower, upper, shift)
    for i in range(len(centre)):
        samples = [derivatives(name, z) for z in np.linspace(lower[i], upper[i], 41)]
        for order, values in enumerate(zip(*samples, strict=True)):
            low, high = float(found[order].lower[i]), float(found[order].upper[i])
            if enclosure.jumps and order > enclosure.jump_order and lower[i] <= 0 <= upper[i]:
                assert (low, high) == (-np.inf, np.inf)
                continue
            values = [mp.exp(-mp.mpf(shift)) * value for value in values]
            assert low <= min(values), order
            assert max(values) <= high, order
            spread = float(max(values) - min(values)) + 1e-9
            assert low >= float(min(values)) - 0.2 * spread
            assert high <= float(max(values)) + 0.2 * spread
            assert suprema[order][i] == pytest.approx(
                max(abs(low), abs(high)), rel=1e-12, abs=1e-299
            )


@every
def test_turning_points_are_where_the_next_derivative_changes_its_sign(name):
    """All of them, and no others, in steps of a twentieth over |z| ≤ 5."""
    enclosure = enclosure_of(name)
    grid = np.linspace(-5, 5, 201) + 0.0137
    with mp.workdps(40):
        slopes = [mp.taylor(PRECISE[name], mp.mpf(z), 4)[1:] for z in grid]
    for order in range(4):
        for low, high, before, after in zip(grid, grid[1:], slopes, slopes[1:], strict=False):
            listed = [p for p in enclosure.turning_points[order] if low < p < high]
            if any(low < jump < high for jump in enclosure.jumps):
                continue
            # Differences of zero are rounding.
            signs = [0 if abs(s[order]) < 1e-25 else mp.sign(s[order]) for s in (before, after)]
            assert len(listed) == (signs[0] * signs[1] < 0), (order, low)


@every
def test_the_jet_is_that_of_mpmath_in_its_own_precision(name):
    enclosure = enclosure_of(name)
    z = np.random.default_rng(2).normal(size=8).astype(np.longdouble)
    eps = float(np.finfo(np.longdouble if enclosure.extended else np.float64).eps)
    jet = enclosure.jet(z, np.zeros(1, np.longdouble))
    for i, order in itertools.product(range(len(z)), range(4)):
        with mp.workdps(40):
            error = abs(mp.mpf(str(jet.values[order][i])) - derivatives(name, z[i])[order])
            assert error <= 32 * eps * float(jet.moduli[order][i])


@every
def test_the_shift_is_that_of_the_activation(name):
    activation = ACTIVATIONS[name]
    z = np.random.default_rng(3).normal(size=(4, 5)) * 3
    np.testing.assert_allclose(
        enclosure_of(name).shift(z), activation.log_scale(jnp.asarray(z)), rtol=1e-6
    )


def test_a_range_without_its_turning_points_would_be_too_narrow():
    """The test of ranges can fail."""
    cosh = enclosure_of("cosh")
    straight = Enclosure(cosh.jet)
    lower, upper = np.array([-1.0]), np.array([2.0])
    assert cosh.bounds(lower, upper)[0].lower[0] == pytest.approx(1.0)
    assert straight.bounds(lower, upper)[0].lower[0] > 1.5


def test_an_enclosure_is_checked(untyped):
    jet: Any = enclosure_of("exp").jet
    wrong: dict[str, Any]
    for wrong in ({"jet": 3}, {"shift": 3}, {"convex": 1}, {"gaussian": "no"}, {"extended": None}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            Enclosure(**({"jet": jet} | wrong))
    with pytest.raises(ValueError, match="turning_points must be four tuples"):
        Enclosure(jet, turning_points=((), ()))
    with pytest.raises(ValueError, match="enclosure must be a softntk.activations.Enclosure"):
        activations.from_function(jnp.exp, "own", enclosure=3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("epsilon", [0.5, 1.9])
def test_the_enclosure_of_crrelu_is_for_its_epsilon(epsilon):
    enclosure = activations.crrelu(epsilon).enclosure
    assert enclosure is not None
    z = np.linspace(-4, 4, 4001)
    u = np.maximum(z, 0) + epsilon * z * np.exp(-(z**2) / 2)
    found = enclosure.bounds(z[:1], z[-1:])
    assert found[0].lower[0] == pytest.approx(u.min(), rel=1e-6)
    assert found[0].upper[0] == pytest.approx(u.max(), rel=1e-6)
    assert activations.crrelu(-0.5).enclosure is None
