"""The recursion through depth against stax kernels; fixed points against SciPy, Lambert's function
and plain iteration.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from helpers import assert_close, points, slow_except

import softntk as sn
from softntk import stax
from softntk.activations import ACTIVATIONS

STACKS = [
    ("exp", True, stax.Softmax),
    ("res_exp", True, stax.ResSoftmax),
    ("relu", False, stax.Relu),
    ("erf", False, stax.Erf),
    ("threshold", False, stax.Threshold),
]


@pytest.mark.parametrize(("activation", "normalized", "layer"), STACKS)
def test_recursion_is_that_of_deep_networks(activation, normalized, layer, x64):
    w, b, x = 0.5, 0.3, points(1, 4, 3)
    q = w**2 * np.asarray(x @ x.T) / 3 + b**2
    variances = np.diag(q)
    options = {"normalized": normalized, "weight_variance": w**2, "bias_variance": b**2}
    found = sn.ntk.propagate(activation, variances[:, None], q, variances[None, :], 3, **options)
    for depth in (0, 1, 3):
        inner = [part for _ in range(depth) for part in (stax.Dense(1, w, b), layer())]
        kernels: Any = stax.serial(*inner, stax.Dense(1, w, b))[2](x, None, ("nngp", "ntk"))
        # where θ = 0, theirs is off by the root of rounding
        assert_close(found.covariance[depth], kernels.nngp, rtol=1e-6)
        assert_close(found.ntk[depth], kernels.ntk, rtol=1e-6)
        assert_close(found.variance1[depth], np.diag(kernels.nngp)[:, None] * np.ones(4), rtol=1e-6)


def test_softmax_rests_where_lambert_says_or_explodes(x64):
    weight, bias = np.meshgrid(np.linspace(0.02, 0.5, 13), np.linspace(0, 1, 7))
    found = sn.ntk.fixed_point("exp", normalized=True, weight_variance=weight, bias_variance=bias)
    inside = weight <= np.exp(-1 - bias)
    np.testing.assert_array_equal(found.exists, inside)
    rest = bias - np.real(scipy.special.lambertw(-weight * np.exp(bias)))
    assert_close(found.variance[inside], rest[inside], rtol=1e-8)
    assert_close(found.slope[inside], (rest - bias)[inside], rtol=1e-7)
    assert_close(found.variance_slope[inside], (rest - bias)[inside], rtol=1e-7)
    assert np.all(found.slope[inside] <= 1)
    assert np.isposinf(found.variance[~inside]).all()


@pytest.mark.parametrize(("weight", "bias"), [(0.8, 0.1), (3.0, 0.1), (3.0, 0.0)])
def test_erf_rests_where_a_root_is(weight, bias, x64):
    """Ordered and chaotic: the root of SciPy, quadrature for the slope, and c* by plain iteration
    of the definition.
    """
    found = sn.ntk.fixed_point("erf", normalized=False, weight_variance=weight, bias_variance=bias)
    t = np.linspace(-12, 12, 241)  # the trapezoidal rule is spectrally exact
    w = np.exp(-(t**2) / 2)
    w /= w.sum()
    variance = lambda q: weight * np.sum(w * scipy.special.erf(np.sqrt(q) * t) ** 2) + bias
    rest: Any = scipy.optimize.brentq(lambda q: variance(q) - q, 1e-3, 10)
    assert_close(found.variance, rest, rtol=1e-8)
    slope = weight * np.sum(w * (2 / np.sqrt(np.pi) * np.exp(-rest * t**2)) ** 2)
    assert_close(found.slope, slope, rtol=1e-8)
    assert (float(found.slope) > 1) == (weight > 1)
    c = 0.5
    for _ in range(300):
        second = c * t[:, None] + np.sqrt(1 - min(c, 1) ** 2) * t
        values = np.einsum(
            "a,b,a,ab", w, w, *(scipy.special.erf(np.sqrt(rest) * s) for s in (t, second))
        )
        c = (weight * values + bias) / rest
    assert abs(float(found.correlation) - c) < 1e-6
    if weight < 1:
        assert_close(found.depth_scale, -1 / np.log(slope), rtol=1e-4)


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
@pytest.mark.slow
def test_relu_is_critical_at_two(dtype):
    """V(q) = σ_w² q/2 + σ_b²: at σ_w² = 2 without bias everything is kept, below it vanishes, above
    it explodes.
    """
    found = sn.ntk.fixed_point(
        "relu",
        normalized=False,
        weight_variance=[1.0, 2.0, 2.5, 1.5],
        bias_variance=[0.0, 0.0, 0.0, 0.25],
    )
    assert found.exists.tolist() == [True, True, False, True]
    np.testing.assert_allclose(found.variance[jnp.array([0, 1, 3])], [0, 1, 1], atol=1e-5)
    # σ_w²/2, at any variance
    np.testing.assert_allclose(found.slope[jnp.array([0, 1, 3])], [0.5, 1, 0.75], rtol=1e-4)
    np.testing.assert_allclose(found.correlation[jnp.array([0, 3])], [1, 1], rtol=1e-3)
    assert found.variance.dtype == dtype


@pytest.mark.parametrize(
    ("activation", "cases"),
    [
        (
            "relu",
            [
                (2.0, 0.5, False, np.inf),  # V(q) = q + ½
                # grows slowly; zero is a fixed point, but not a stable one
                (2.001, 0.0, False, np.inf),
                (1.0, 6000.0, True, 12000.0),
            ],
        ),
        ("crrelu", [(2.0, 0.0, False, np.inf)]),  # V(q) > q everywhere
        ("erf", [(2e4, 0.0, True, None)]),  # bounded
        (
            "exp",
            [
                # q = 1 is outside of its basin
                (0.16, 0.0, True, -0.5 * np.real(scipy.special.lambertw(-0.32))),
                (0.19, 0.0, False, np.inf),  # beyond 1/2e
            ],
        ),
    ],
)
def test_what_exists_is_a_root_and_what_does_not_grows(activation, cases, x64):
    weights, biases, exist, variances = zip(*cases, strict=True)
    found = sn.ntk.fixed_point(
        activation,
        normalized=False,
        weight_variance=jnp.array(weights),
        bias_variance=jnp.array(biases),
    )
    assert found.exists.tolist() == list(exist)
    for value, desired in zip(found.variance, variances, strict=True):
        if desired is not None:
            np.testing.assert_allclose(value, desired, rtol=1e-8)


def test_a_network_that_forgets_everything(x64):
    found = sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.0)
    assert [
        float(v) for v in (found.variance, found.slope, found.correlation, found.depth_scale)
    ] == [0, 0, 1, 0]


def test_correlations_decay_by_the_depth_scale(x64):
    found = sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.3, bias_variance=0.05)
    q = found.variance
    path = sn.ntk.propagate(
        "exp", q, 0.5 * q, q, 60, normalized=True, weight_variance=0.3, bias_variance=0.05
    )
    distance = 1 - np.asarray(path.covariance / path.variance1)
    assert_close(-1 / np.log(distance[31] / distance[30]), found.depth_scale, rtol=1e-6)


@pytest.mark.slow
def test_everything_in_the_table_runs_under_jit_and_grad():
    for name, activation in ACTIVATIONS.items():
        normalized = name in ("exp", "res_exp", "cosh")
        depth_one = lambda w, name=name, n=normalized: sn.ntk.propagate(
            name, 0.2, 0.1, 0.2, 1, normalized=n, weight_variance=w
        ).ntk[-1]
        assert np.isfinite(jax.jit(jax.grad(depth_one))(0.3)), activation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "softmax"}, "activation must be one of"),
        ({"depth": 0}, "depth must be"),
        ({"activation": "erf", "normalized": True}, "has no infinite limit"),
    ],
)
def test_bad_names_and_numbers(arguments, message, untyped):
    given = {"activation": "exp", "depth": 2, "normalized": False} | arguments
    with pytest.raises(ValueError, match=message):
        sn.ntk.propagate(
            given["activation"],
            1.0,
            0.5,
            1.0,
            given["depth"],
            normalized=given["normalized"],
            weight_variance=0.3,
        )
    if "depth" not in arguments:
        with pytest.raises(ValueError, match=message):
            sn.ntk.fixed_point(
                given["activation"], normalized=given["normalized"], weight_variance=0.3
            )


def test_variances_are_checked(untyped):
    for value, message in (
        (-1.0, "got -1.0"),
        (float("nan"), "got nan"),
        ([0.3, float("inf")], "got .0.3, inf"),
    ):
        with pytest.raises(
            ValueError, match=f"weight_variance must be a finite variance.*{message}"
        ):
            sn.ntk.fixed_point("exp", normalized=True, weight_variance=value)
    with pytest.raises(ValueError, match="q22 must be a finite variance"):
        sn.ntk.propagate("exp", 1.0, 0.5, -1.0, 2, normalized=True, weight_variance=0.3)
