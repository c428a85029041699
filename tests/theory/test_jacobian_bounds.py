"""Bounds of changes of J, against the norms of what they bound."""

import jax
import numpy as np
import pytest
from helpers import assert_close

import softntk as sn
from softntk._linalg.rigorous import Interval
from softntk.theory._certificates import jacobian_bounds, logit_box
from softntk.theory._certificates.logit_box import SlopeBounds


def data_of(family):
    """A network of two outputs at two orthogonal points."""
    net = sn.networks.two_layer(family, width=8, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    data = jacobian_bounds.prepare(net, params, np.eye(2), np.zeros((2, 2)))
    assert not isinstance(data, str)  # a reason why not
    return data


def test_outputs_with_units_of_their_own_share_no_norm(x64, monkeypatch):
    """Half of the units move each output: ‖ΔJ‖² = γ² 3² m/2, and room for two roundings."""
    data = data_of("exp")._replace(readout=np.repeat(np.eye(2), 4, axis=0))
    change = np.full((2, 8), 3.0)
    bound = jacobian_bounds._bound_change_norm(data, change, 0 * change)
    assert_close(bound, data.gamma * 6, rtol=1e-2)
    assert bound >= data.gamma * 6
    monkeypatch.setattr(jacobian_bounds, "slack", lambda terms: 0.01)
    wider = jacobian_bounds._bound_change_norm(data, change, 0 * change)
    assert wider / bound == pytest.approx(1.01**1.5)


def test_without_a_normaliser_straight_units_have_no_curvature(x64):
    """J changes by u'' alone; a normaliser moves with every unit."""
    for family, is_curved in (("exp", False), ("softmax", True)):
        data = data_of(family)
        slopes = SlopeBounds(data.box.centre, data.box.centre, 0 * data.box.centre)
        curvature = jacobian_bounds.bound_jacobian_curvature(data, slopes, 3.0)
        assert (curvature > 0) == is_curved


def test_products_with_a_positive_factor_have_the_ends_of_all_pairs():
    terms = Interval(np.array([[-2.0, -3.0, 1.0]]), np.array([[3.0, -1.0, 2.0]]))
    factor = Interval(np.array([[0.5]]), np.array([[4.0]]))
    lower, upper = logit_box._times_positive(terms, factor)
    assert lower.tolist() == [[-8.0, -12.0, 0.5]]
    assert upper.tolist() == [[12.0, -0.5, 8.0]]


def test_the_residual_is_that_of_the_outputs(x64):
    """‖F − Y‖ = 2 of targets F − 1, four of them."""
    net = sn.networks.two_layer("exp", width=8, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    x = np.eye(2)
    data = jacobian_bounds.prepare(net, params, x, np.asarray(net.apply_fn(params, x)) - 1)
    assert not isinstance(data, str)
    assert 2 <= data.residual_norm < 2 + 1e-6
