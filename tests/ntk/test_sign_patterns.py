"""Products by sign patterns against products of the row vectors themselves, and what happens when
the signs do not fit.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, dense_kernels, points, slow_except

import softntk as sn
from softntk.networks import RowFactors, two_layer
from softntk.ntk._empirical.sign_patterns import (
    Plan,
    cheapest_plan,
    gather_units,
    multiply_by_patterns,
)


def factors(n: int, m: int, k: int, normalized: bool) -> RowFactors:
    rng = np.random.default_rng(n)
    means = jnp.asarray(rng.normal(size=(n, k)) if normalized else np.zeros((n, k)))
    slopes = jnp.asarray(rng.uniform(size=(n, m)))
    return RowFactors(slopes, slopes, slopes > 2, means, 0 * means, jnp.ones(n, bool))


def plan_of(m: int, k: int, normalized: bool) -> Plan:
    """Return the cheapest plan, where there is one."""
    plan = cheapest_plan(m, k, normalized)
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("normalized", "k"),
    slow_except([(True, 2), (True, 4), (True, 10), (False, 3), (False, 7)], (True, 4)),
)
def test_equals_products_of_row_vectors(normalized, k, x64):
    m = 64
    signs = np.random.default_rng(k).choice([-1.0, 1.0], size=(m, k))
    planned = plan_of(4096, k, normalized)._replace(capacity=m)
    units, found = gather_units(planned, signs, np)
    assert found
    p, q = factors(5, m, k, normalized), factors(4, m, k, normalized)
    g1, g2 = (
        np.asarray(r.slopes)[:, None] * (signs.T - np.asarray(r.means)[:, :, None]) for r in (p, q)
    )
    with jax.disable_jit():
        assert_close(
            multiply_by_patterns(planned, jnp.asarray(units), p, q, 2),
            np.einsum("ilm,jqm->ijlq", g1, g2),
        )
        assert_close(
            multiply_by_patterns(planned, jnp.asarray(units), p, p, None),
            np.einsum("ilm,jqm->ijlq", g1, g1),
        )


@pytest.mark.parametrize(("m", "k"), [(1024, 3), (2048, 4), (2048, 10), (65536, 17)])
def test_plans_hold_every_pair_once(m, k):
    for normalized in (False, True):
        planned = plan_of(m, k, normalized)
        held = [pair for pairs in planned.pairs for pair in pairs if pair[0] != pair[1]]
        assert sorted(held) == list(combinations(range(0 if normalized else 1, k + 1), 2))
        assert all(
            set(pair) <= set(s)
            for s, pairs in zip(planned.sets, planned.pairs, strict=True)
            for pair in pairs
        )
        assert any(p == q for pairs in planned.pairs for p, q in pairs)


def test_there_is_no_plan_where_it_would_cost_more():
    assert cheapest_plan(24, 3, True) is None
    assert cheapest_plan(2048, 4, True) is not None


def test_units_are_gathered_by_their_signs():
    planned = plan_of(1024, 3, True)
    readout = np.random.default_rng(0).choice([-1.0, 1.0], size=(1024, 3))
    known, found = gather_units(planned, readout, np)
    traced, also = jax.jit(lambda a: gather_units(planned, a, jnp))(readout)
    assert found
    assert also
    np.testing.assert_array_equal(known, traced)
    for s, units in zip(planned.sets, known, strict=True):
        assert sorted(units[units < 1024]) == list(range(1024))
        for group in units:
            signs = np.concatenate([np.ones((1024, 1)), readout], axis=1)[group[group < 1024]][:, s]
            assert (signs * signs[:, :1] == (signs * signs[:, :1])[:1]).all()


@pytest.mark.parametrize("family", slow_except(["softmax", "relu"], "relu"))
def test_kernels_by_patterns_and_their_refuge(family, x64):
    """Random signs; one weight that is not a sign; signs that crowd into one pattern.

    The readout known, and under jit.
    """
    net = two_layer(family, width=1024, out_dim=3, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    params, x = cast(params, "float64"), points(1, 4, 2)
    jitted = jax.jit(lambda p: sn.ntk.empirical(net, p, x))
    a = params.readout
    for readout in (a, a.at[0, 0].set(0.3), a.at[:600].set(jnp.array([[1.0, -1.0, 1.0]]))):
        p = params.replace(readout=readout)
        desired = np.asarray(dense_kernels(net.apply_fn, p, x)["full"])
        assert_close(sn.ntk.empirical(net, p, x), desired)
        assert_close(jitted(p), desired)


@pytest.mark.slow
def test_derivatives_by_patterns(x64):
    """In the hidden weights as dense autodiff; in a readout that is not trained none, as of the
    network itself.
    """
    net = two_layer("softmax", width=512, out_dim=3, antisymmetric=False)
    assert cheapest_plan(512, 3, True) is not None
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    params, x = cast(params, "float64"), points(1, 3, 2)
    ours = jax.grad(lambda p: jnp.sum(jnp.sin(sn.ntk.empirical(net, p, x))))(params)
    known = jax.grad(
        lambda w: jnp.sum(jnp.sin(sn.ntk.empirical(net, params.replace(hidden=w), x)))
    )(params.hidden)
    dense = jax.grad(lambda p: jnp.sum(jnp.sin(dense_kernels(net.apply_fn, p, x)["full"])))(params)
    assert_close(ours.hidden, dense.hidden, rtol=1e-8)
    assert_close(known, dense.hidden, rtol=1e-8)
    assert not np.any(ours.readout)
