"""Enclosures of every activation in the table against mpmath: ranges, rounding, jumps."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from activation_references import PRECISE, enclosure_of

import softntk as sn
from softntk import activations
from softntk.activations import ACTIVATIONS, Enclosure
from softntk.activations._enclosures import HostJet

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


def hard_tanh_jet(z, shift):
    scale = np.exp(-np.asarray(shift, z.dtype))
    slope = np.where(np.abs(z) < 1, scale, 0)
    u = np.clip(z, -1, 1) * scale
    zero = 0 * slope
    return HostJet((u, slope, zero, zero), (np.abs(u), slope, zero, zero))


HARD_TANH = Enclosure(hard_tanh_jet, jumps=(-1.0, 1.0))


def test_jumps_beside_zero_have_both_limits():
    """Also where both ends of the interval lie on the same side of all jumps in value."""
    (slope,) = HARD_TANH.bounds(np.array([-2.0]), np.array([2.0]), orders=(1,))
    assert slope.upper[0] >= 1
    assert slope.lower[0] <= 0
    assert HARD_TANH.suprema(np.array([0.5]), np.array([1.0])).du[0] == 1
    assert HARD_TANH.suprema(np.array([1.0]), np.array([2.0])).du[0] == 1


def test_the_perturbation_of_a_hard_tanh_grows_with_the_radius(x64):
    """All units lie beyond the jump: within R = 1.5 the bound is at least what is measured."""

    def hard_tanh(z):
        return jnp.clip(z, -1, 1)

    activation = activations.from_function(hard_tanh, "hard_tanh", enclosure=HARD_TANH)
    net = sn.networks.two_layer(
        activation=activation, width=64, normalize=False, train_readout=False, antisymmetric=False
    )
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    hidden = jnp.stack([jnp.full(64, -2.0), jnp.zeros(64)])
    params = dataclasses.replace(params, hidden=hidden)
    found = sn.theory.perturbation(
        net, params, jnp.array([[1.0, 0.0]]), [1.5, 4.0], key=jax.random.key(1)
    )
    random_moves, worst_moves = found.of("random"), found.of("adversarial")
    for moves in (random_moves, worst_moves):
        assert moves.ours_frobenius[0] <= moves.ours_frobenius[1]
        assert (moves.ours_frobenius >= worst_moves.frobenius[0]).all()
        assert (moves.ours_frobenius >= moves.frobenius).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_ends_of_other_types_are_converted(dtype):
    gelu = enclosure_of("gelu")
    lower, upper = np.array([-3], dtype), np.array([3], dtype)
    for found, wanted in zip(
        gelu.bounds(lower, upper), gelu.bounds(lower * 1.0, upper * 1.0), strict=True
    ):
        assert found.lower == wanted.lower
        assert found.upper == wanted.upper
    point = np.array([0.3], np.float32)
    exp = enclosure_of("exp").bounds(point, point)[0]
    assert exp.lower[0] < np.exp(np.float64(point[0])) < exp.upper[0]


@pytest.mark.parametrize(
    ("name", "z", "shift", "order"),
    [
        ("cosh", -300.1, -300.3, 0),
        ("sinh", -300.1, -300.3, 0),
        ("gelu", -40.0, -700.0, 1),
        ("erf", -27.0, -700.0, 1),
        ("res_exp", -1e300, 800.0, 0),
    ],
)
def test_any_shift_is_counted(name, z, shift, order):
    """Shifts that the activation would not choose, beyond which exponentials underflow."""
    found = enclosure_of(name).bounds(np.array([z]), np.array([z]), shift, orders=(order,))[0]
    with mp.workdps(60):
        scaled = derivatives(name, z)[order] * mp.exp(-mp.mpf(shift))
        assert mp.mpf(float(found.lower[0])) <= scaled <= mp.mpf(float(found.upper[0]))
