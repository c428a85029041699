"""Arguments of activations, their moments and limits: what is no function, jet or shift is named;
what can be converted is.
"""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import difflib

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from softntk import activations, networks
from softntk.activations import ACTIVATIONS, Moments

every = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


def test_get():
    assert activations.get("exp") is ACTIVATIONS["exp"]
    assert activations.get(ACTIVATIONS["erf"]) is ACTIVATIONS["erf"]
    near = difflib.get_close_matches("rellu", ACTIVATIONS)[0]
    with pytest.raises(
        ValueError, match=f"activation must be one of.*'cosh'.*Did you mean '{near}'"
    ):
        activations.get("rellu")


def test_quadrature_order_is_checked():
    with pytest.raises(ValueError, match="order must be a positive integer, got 0"):
        activations.quadrature_moments(ACTIVATIONS["exp"].jet, order=0)


def test_what_has_no_units_or_does_not_fit_the_precision_is_refused(untyped):
    with pytest.raises(ValueError, match="z must have at least one unit"):
        activations.normalize("exp", jnp.zeros((2, 0)))
    assert activations.normalize("exp", jnp.zeros((0, 2))).shape == (0, 2)
    for function in (
        ACTIVATIONS["exp"].u,
        ACTIVATIONS["erf"].d2u,
        lambda z: activations.normalize("exp", z),
    ):
        with pytest.raises(ValueError, match="z must be finite in float32"):
            function(np.array([1e39, 0.0]))


@pytest.mark.parametrize(
    "u",
    [
        float,
        str,
        dict,
        np.tanh,
        lambda: 3,
        lambda z: 1 / 0,
        lambda z: z if z > 0 else 0,
        lambda z: z[0],
    ],
)
def test_what_is_no_elementwise_function_is_named(u, untyped):
    with pytest.raises(ValueError, match="^u must be"):
        activations.from_function(u, "own")


@pytest.mark.parametrize(
    "jet",
    [
        float,
        lambda z: z,
        lambda z, c: 3,
        lambda z, c: (z, z),
        lambda z, c: (z[:2], z, z),
        lambda z, c: (z > 0, z, 1j * z),
    ],
)
def test_what_is_no_jet_is_named(jet, untyped):
    with pytest.raises(ValueError, match="^jet must"):
        activations.quadrature_moments(jet)


class Unhashable:
    """A function that is no key of a cache."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # Python's way to say so

    def __call__(self, z):
        return jnp.tanh(z)


def test_a_function_need_not_be_hashable():
    own, same = (
        activations.from_function(Unhashable(), "own"),
        activations.from_function(jnp.tanh, "own"),
    )
    for values, want in zip(
        own.limit(1.0, 0.5, 1.0, False), same.limit(1.0, 0.5, 1.0, False), strict=True
    ):
        assert_close(values, want, rtol=1e-6)
    x = jnp.eye(3)
    kernels = [
        networks.two_layer(activation=a, width=2).kernel_fn(x, None, "ntk") for a in (own, same)
    ]
    assert_close(*kernels, rtol=1e-6)


def test_parts_of_an_activation_and_of_moments_are_checked(untyped):
    moments = ACTIVATIONS["exp"].moments
    good = {
        "name": "own",
        "jet": ACTIVATIONS["exp"].jet,
        "moments": moments,
        "log_scale": ACTIVATIONS["exp"].log_scale,
    }
    for part in good:
        with pytest.raises(ValueError, match=f"^{part} must be"):
            activations.Activation(**good | {part: 3})
    good = {"mean": jnp.exp, "covariance": jnp.exp, "derivative": jnp.exp}
    for part in (*good, "growth", "ratios", "positive_mean", "angular", "in_units"):
        with pytest.raises(ValueError, match=f"^{part} must be"):
            activations.Moments(**good | {part: 3})
    with pytest.raises(ValueError, match="^degree must be an integer"):
        activations.Moments(**good, degree="one")


@pytest.mark.parametrize("s", [1j, "0", None, {}, True, object(), 10**400])
def test_a_wrong_shift_is_named(s, untyped):
    with pytest.raises(ValueError, match="^s must be"):
        ACTIVATIONS["exp"].moments.mean(1.0, s)
    with pytest.raises(ValueError, match="^s must be"):
        ACTIVATIONS["relu"].moments.covariance(1.0, 0.5, 1.0, s)


def test_shifts_of_any_size_and_variances_below_zero():
    mean = ACTIVATIONS["exp"].moments.mean
    assert float(mean(1.0, 2**40)) == 0
    assert_close(mean([1.0, 1.0], [0.0, 0.5]), [np.exp(0.5), 1.0], rtol=1e-6)
    for name in ("exp", "relu"):
        moments = ACTIVATIONS[name].moments
        assert float(moments.mean(-1.5, 0.0)) == float(moments.mean(0.0, 0.0))
        assert float(moments.covariance(-1.5, 0.0, 1.0, 0.0)) == float(
            moments.covariance(0.0, 0.0, 1.0, 0.0)
        )


@every
@pytest.mark.parametrize(
    "sines", ["0.5", {}, 1j, True, object(), np.ma.masked_array([0.5], [True])]
)
def test_wrong_sines_are_named(name, sines, untyped):
    with pytest.raises(ValueError, match="^sines must"):
        ACTIVATIONS[name].limit(1.0, 0.5, 1.0, False, sines)


@every
def test_sines_are_converted(name, untyped):
    want = ACTIVATIONS[name].limit(1.0, 0.5, 1.0, False, jnp.array([0.5, 0.25]))
    for sines in ([0.5, 0.25], (0.5, 0.25), np.array([0.5, 0.25])):
        for values, wanted in zip(
            ACTIVATIONS[name].limit(1.0, 0.5, 1.0, False, sines), want, strict=True
        ):
            np.testing.assert_array_equal(values, wanted)


def test_shapes_of_a_limit_broadcast(untyped):
    with pytest.raises(ValueError, match="^q11, q12, q22 must have shapes that broadcast"):
        ACTIVATIONS["exp"].limit(np.ones(2), np.ones(3), 1.0, False)


def test_numbers_of_any_kind_are_taken(dtype, untyped):
    want = ACTIVATIONS["exp"].limit(*jnp.asarray([0.5, 0.2, 0.7]), normalized=True)
    for kind in (float, np.float32, np.asarray):
        got = ACTIVATIONS["exp"].limit(kind(0.5), kind(0.2), kind(0.7), True)
        assert_close(got, want, "float32")
    assert ACTIVATIONS["exp"].limit(0.5, 0.2, 0.7, True)[0].dtype == dtype
    assert ACTIVATIONS["relu"].limit([1, 2], 0, 1, False)[0].shape == (2,)
    assert ACTIVATIONS["relu"].moments.mean(1.0, 0.0).dtype == dtype
    assert ACTIVATIONS["relu"].u([1.0, -1.0]).tolist() == [1, 0]


@pytest.mark.parametrize(
    "bad", ["1", None, 1j, {}, np.array([1j]), np.array(["1"]), np.array([True])]
)
def test_wrong_numbers_are_named(bad, untyped):
    exp = ACTIVATIONS["exp"]
    calls = {
        "q11": lambda: exp.limit(bad, 0.0, 1.0, True),
        "q12": lambda: exp.limit(1.0, bad, 1.0, True),
        "q22": lambda: exp.moments.covariance(1.0, 0.0, bad, 0.0),
        "q must": lambda: exp.moments.mean(bad, 0.0),
        "z": lambda: exp.du(bad),
        "z must": lambda: activations.normalize("exp", bad),
        "epsilon": lambda: activations.crrelu(bad),
        "order": lambda: activations.quadrature_moments(exp.jet, bad),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ACTIVATIONS["exp"].limit(1.0, 0.0, 1.0, "no"),
            "normalized must be True or False, got 'no'",
        ),
        (lambda: activations.crrelu(float("nan")), "epsilon must be a finite number, got nan"),
        (lambda: activations.get([]), "activation must be one of"),
        (lambda: activations.get(None), "activation must be one of"),
        (lambda: activations.normalize("exp", 1.0), "z must have shape"),
        (lambda: activations.from_function("relu", "relu"), "u must be an elementwise function"),
        (lambda: activations.from_function(jnp.sum, "sum"), "u must be elementwise"),
        (lambda: activations.from_function(jnp.exp, 3), "name must be a string"),
        (lambda: activations.from_function(jnp.exp, "exp", "exp"), "moments must be"),
        (lambda: activations.quadrature_moments(3), "jet must be"),
        (lambda: Moments(3, 3, 3), "mean must be"),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()
