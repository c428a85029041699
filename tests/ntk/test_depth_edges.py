"""The recursion through depth at the edges: no limit, two stable fixed points, near zero, wrong
arguments, meshes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from helpers import assert_close, slow_except
from jax.sharding import PartitionSpec as P

import softntk as sn
from softntk.activations import Moments


def with_variance(after):
    """An activation whose variance moves by q ↦ after(q), with correlations kept."""
    moments = Moments(
        lambda q, s: jnp.sqrt(q),
        lambda a, c, b, s: c * after(a) / jnp.where(a > 0, a, 1) + jnp.where(a > 0, 0, after(a)),
        lambda a, c, b, s: after(a) / jnp.where(a > 0, a, 1),
    )
    return sn.activations.from_function(jnp.tanh, "own", moments)


@pytest.mark.parametrize(("boundary", "rest"), [(0.97, 3.0), (1.03, 0.2)])
def test_of_two_stable_variances_the_one_that_one_belongs_to(boundary, rest, x64):
    """V(q) = q − 0.1 (q − 0.2)(q − boundary)(q − 3): the iteration starts from 1, on either side of
    the boundary.
    """
    own = with_variance(lambda q: q - 0.1 * (q - 0.2) * (q - boundary) * (q - 3.0))
    found = sn.ntk.fixed_point(own, normalized=False, weight_variance=1.0)
    assert bool(found.exists)
    assert_close(found.variance, rest, rtol=1e-6)


def test_where_one_explodes_the_iteration_starts_from_zero(x64):
    """V(q) = 400 q³ leaves everything above 0.05, and rests at 0."""
    own = with_variance(lambda q: 400 * q**3)
    found = sn.ntk.fixed_point(own, normalized=False, weight_variance=1.0)
    assert bool(found.exists)
    assert float(found.variance) == 0


@pytest.mark.parametrize(("steps", "exists"), [(4, False), (5, True)])
def test_steps_of_the_iteration_are_those_that_were_asked_for(steps, exists, x64):
    """V(q) = 1000 √q: from 1 the k-th comes to within 1e6^(2^−k) of 1e6, and Newton's method goes
    on from half of it.
    """
    own = with_variance(lambda q: 1000 * jnp.sqrt(q))
    found = sn.ntk.fixed_point(own, normalized=False, weight_variance=1.0, max_steps=steps)
    assert bool(found.exists) == exists
    if exists:
        assert_close(found.variance, 1e6, rtol=1e-12)


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_where_there_is_no_limit_it_stays_infinite(q, dtype):
    found = sn.ntk.propagate("relu", *q, depth=3, normalized=True, weight_variance=0.5)
    for values, outside in (
        (found.variance1, q[0] == 0),
        (found.variance2, q[2] == 0),
        (found.covariance, True),
    ):
        assert not np.isnan(values).any()
        assert np.isposinf(values[1:]).all() == outside
    assert not np.isnan(found.ntk).any()
    assert np.all(found.ntk[1:] > 1e30)


@pytest.mark.parametrize("name", sorted(sn.activations.ACTIVATIONS))
def test_nothing_becomes_nan_over_all_magnitudes(name):
    q = jnp.asarray([0.0, 1e-30, 1.0, 1e10, 1e30])
    cross = 0.5 * jnp.sqrt(q)[:, None] * jnp.sqrt(q)[None, :]
    for normalized in (False, True) if sn.activations.get(name).moments.positive_mean else (False,):
        found = sn.ntk.propagate(
            name, q[:, None], cross, q[None, :], 4, normalized=normalized, weight_variance=2.0
        )
        for values in (found.variance1, found.covariance, found.variance2, found.ntk):
            assert not np.isnan(values).any()


def test_integers_lists_and_numpy_numbers(untyped):
    want = sn.ntk.propagate("exp", 1.0, 0.0, 1.0, 2, normalized=True, weight_variance=0.3)
    cases: list[tuple[Any, Any]] = [
        (1, 2),
        ([1], np.int64(2)),
        (np.float64(1.0), np.int32(2)),
        (np.ones(()), 2),
    ]
    for one, depth in cases:
        found = sn.ntk.propagate(
            "exp", one, 0, one, depth, normalized=True, weight_variance=np.float32(0.3)
        )
        assert found.ntk.dtype == jnp.float32
        assert_close(found.ntk.ravel(), want.ntk, "float32")


BAD = [
    "1",
    None,
    1j,
    {},
    True,
    np.array(["1"]),
    np.array([1j]),
    [[1.0], [1.0, 2.0]],
    -1.0,
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["q11", "q22", "weight_variance", "bias_variance"])
def test_wrong_variances_are_named(name, bad, untyped):
    given = {"q11": 1.0, "q12": 0.5, "q22": 1.0, "weight_variance": 0.3, "bias_variance": 0.0} | {
        name: bad
    }
    with pytest.raises(ValueError, match=f"{name} must be"):
        sn.ntk.propagate("exp", depth=2, normalized=True, **given)
    if name.endswith("variance"):
        given: dict[str, Any] = {
            key: value for key, value in given.items() if key.endswith("variance")
        }
        with pytest.raises(ValueError, match=f"{name} must be"):
            sn.ntk.fixed_point("exp", normalized=True, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"q12": bad}, "q12 must be") for bad in (1.5, "1", None, float("nan"))),
        *(({"depth": bad}, "depth must be") for bad in ("1", None, 2.0, True)),
        *(({"normalized": bad}, "normalized must be") for bad in ("no", 1, None)),
        *(({"activation": bad}, "activation must be one of") for bad in (3, None, [], "rellu")),
    ],
)
def test_wrong_arguments_are_named(options, message, untyped):
    given = {
        "activation": "exp",
        "q11": 1.0,
        "q12": 0.5,
        "q22": 1.0,
        "depth": 1,
        "normalized": True,
    } | options
    with pytest.raises(ValueError, match=message):
        sn.ntk.propagate(**given, weight_variance=0.3)
    if "activation" in options or "normalized" in options:
        with pytest.raises(ValueError, match=message):
            sn.ntk.fixed_point(
                given["activation"], normalized=given["normalized"], weight_variance=0.3
            )
    wrong: tuple[Any, ...] = ("1", 0, 2.0)
    for steps in wrong:
        with pytest.raises(ValueError, match="max_steps must be"):
            sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.3, max_steps=steps)


def test_grids_are_spread_by_shard_map():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    weights = jnp.asarray([0.2, 0.3])

    def both(w):
        path = sn.ntk.propagate("relu", 1.0, 0.5, 1.0, 2, normalized=False, weight_variance=w)
        return (
            sn.ntk.fixed_point("exp", normalized=True, weight_variance=w, max_steps=50).variance
            + path.ntk[-1]
        )

    spread = jax.shard_map(both, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    assert_close(jax.jit(spread)(weights), both(weights), rtol=1e-4)


FIELDS = ("variance", "variance_slope", "slope", "correlation", "correlation_slope")
POINTS = {
    "exp": ("exp", True, 0.3, 0.1),
    "res_exp": ("res_exp", True, 0.1, 0.1),
    "relu": ("relu", False, 1.5, 0.2),
    "crrelu": ("crrelu", False, 1.0, 0.3),
    "erf, chaotic": ("erf", False, 2.0, 0.05),
    "threshold": ("threshold", False, 1.0, 0.1),
}


def all_fields(activation, normalized, weight, bias):
    found = sn.ntk.fixed_point(
        activation, normalized=normalized, weight_variance=weight, bias_variance=bias, max_steps=500
    )
    return jnp.stack([getattr(found, field) for field in FIELDS])


@pytest.mark.parametrize("case", slow_except(POINTS, "exp", "erf, chaotic"))
def test_every_field_has_implicit_derivatives(case, x64):
    """Backwards and forwards, against differences."""
    activation, normalized, *point = POINTS[case]
    fields = jax.jit(lambda v: all_fields(activation, normalized, v[0], v[1]))
    at, h = jnp.array(point), 1e-5
    differences = np.stack(
        [(fields(at + h * e) - fields(at - h * e)) / (2 * h) for e in jnp.eye(2)], axis=1
    )
    for jacobian in (jax.jacrev(fields)(at), jax.jacfwd(fields)(at)):
        np.testing.assert_allclose(jacobian, differences, rtol=1e-5, atol=1e-6)


def test_second_derivatives_of_the_lambert_function(x64):
    """q* = −W(−w) for softmax without bias, so that q' = q/(w (1 − q)) and q'' follows."""
    variance = lambda w: (
        sn.ntk.fixed_point("exp", normalized=True, weight_variance=w, max_steps=500).variance
    )
    w = 0.3
    q = -scipy.special.lambertw(-w).real
    first = q / (w * (1 - q))
    second = first / (w * (1 - q) ** 2) - first / w
    assert_close(jax.grad(variance)(w), first, rtol=1e-9)
    assert_close(jax.grad(jax.grad(variance))(w), second, rtol=1e-8)


def test_derivatives_where_the_variance_vanishes(x64):
    at_zero = jax.jacrev(lambda w: all_fields("relu", False, w, 0.0))(1.2)
    np.testing.assert_allclose(at_zero[:3], [0.0, 0.5, 0.5], atol=1e-9)  # q* = 0, V' = χ = w/2


@pytest.mark.slow
def test_derivatives_in_a_bias_that_is_zero(x64):
    in_bias = jax.jacrev(lambda b: all_fields("erf", False, 0.5, b))(0.0)
    np.testing.assert_allclose(in_bias[0], 1 / (1 - 2 / np.pi), rtol=1e-8)
    np.testing.assert_allclose(in_bias[1:3], [-7.0064, -3.5032], rtol=1e-3)  # one-sided differences
    assert np.isfinite(in_bias).all()


@pytest.mark.slow
def test_derivatives_where_nothing_is_at_rest(x64):
    np.testing.assert_array_equal(
        jax.jacrev(lambda w: all_fields("relu", False, w, 0.1))(2.0), 0
    )  # V = q + b
    grid = jax.grad(lambda w: all_fields("exp", True, w, 0.0)[0, :2].sum())(
        jnp.array([0.2, 0.3, 0.5])
    )
    assert np.isfinite(grid).all()


@pytest.mark.slow
def test_derivatives_in_epsilon(x64):
    variance = lambda e: all_fields(sn.activations.crrelu(e), False, 1.0, 0.3)[0]
    assert_close(
        jax.grad(variance)(0.3), (variance(0.3 + 1e-5) - variance(0.3 - 1e-5)) / 2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("count", [2**31, 2**40, 10**400])
def test_counts_beyond_those_of_a_program_are_named(count, untyped):
    with pytest.raises(ValueError, match="max_steps must be a positive integer of at most"):
        sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.3, max_steps=count)
    with pytest.raises(ValueError, match="depth must be a positive integer of at most"):
        sn.ntk.propagate("exp", 1.0, 0.5, 1.0, count, normalized=True, weight_variance=0.3)
