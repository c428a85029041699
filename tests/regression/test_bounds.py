"""Every bound holds on a thousand random instances; none is vacuous."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_references import REFERENCE
from helpers import slow_except
from jax.experimental import sparse

import softntk as sn
from softntk.regression import _bounds
from softntk.regression._logit_bounds import Ball, residual_bounds
from softntk.regression._scaled_products import bound_singular_values

FORMS = [
    ("exp", "normalized"),
    ("res_exp", "normalized"),
    ("cosh", "normalized"),
    ("exp", "plain"),
    ("sinh", "rescaled"),
    ("softplus", "normalized"),
    ("gelu", "plain"),
    ("erf", "rescaled"),
]


def instances(activation, form, count):
    """Problems of a few sizes with balls around zero or elsewhere, points of them, and directions."""
    rng = np.random.default_rng(0)
    sizes = list(itertools.product((2, 5, 9), (1, 3)))
    for i in range(count):
        n, d = sizes[i % len(sizes)]
        A = rng.normal(size=(n, d)) * rng.choice([0.1, 0.5, 2.0])
        b = rng.dirichlet(np.full(n, 0.3)) if i % 2 else rng.normal(size=n)
        radius = rng.choice([0.1, 0.5, 2.0])
        x, h, centre = rng.normal(size=(3, d))
        x *= radius * rng.random() ** (1 / d) / np.linalg.norm(x)
        centre = None if i % 3 else centre
        x = jnp.asarray(x if centre is None else centre + x)
        yield (
            sn.regression.problem(A, b, activation, form),
            (radius, centre),
            x,
            jnp.asarray(h / np.linalg.norm(h)),
        )


@jax.jit
def derivatives(p, x, h):
    """The Jacobian of predict, the Hessian, its derivative along h, and the normaliser, by
    automatic differentiation.
    """
    z = lambda x: p.A @ x
    third = jax.jvp(jax.hessian(p), (x,), (h,))[1]
    return jax.jacfwd(p.predict)(x), jax.hessian(p)(x), third, jnp.sum(p.activation.u(z(x)))


@pytest.mark.parametrize(("activation", "form"), slow_except(FORMS, FORMS[0]))
@pytest.mark.slow
def test_bounds_hold(activation, form, x64):
    tightest = np.zeros(4)
    for p, ball, x, h in instances(activation, form, 1000):
        J, H, T, alpha = (np.asarray(part) for part in derivatives(p, x, h))
        found, lower = _bounds.lipschitz(p, *ball), _bounds.normaliser(p, *ball)
        sizes = [np.linalg.norm(J, 2), np.linalg.norm(H, 2), np.linalg.norm(T, 2)]
        for bound, size in zip(found, sizes, strict=True):
            assert size <= bound.ours
        assert alpha >= lower.ours * (1 - 1e-12) or lower.ours == 0
        assert lower.ours >= lower.paper
        least = _bounds.convexity_weight(p, 1.0, float(jnp.linalg.norm(x)) * (1 + 1e-9)).ours
        if math.isfinite(least):
            assert np.linalg.eigvalsh(H + least**2 * np.asarray(p.A.T @ p.A))[0] >= 1.0 - 1e-9
        tightest = np.maximum(
            tightest,
            [
                *(float(s / b.ours) for s, b in zip(sizes, found, strict=True)),
                float(lower.ours / alpha) if alpha > 0 else 0.0,
            ],
        )
    if (activation, form) == ("exp", "normalized"):
        assert np.all(tightest > [0.9, 0.2, 0.1, 0.9])


@pytest.mark.parametrize("name", ["exp", "cosh", "res_exp", "softplus", "gelu"])
@pytest.mark.parametrize("centre", [None, 1.5])
def test_normalisers_are_bounded_closely_from_below(name, centre):
    """Against the least sum on a fine grid of the ball."""
    A = np.array([[0.3], [0.5], [0.4]])
    x = np.linspace(-0.2, 0.2, 4001) + (centre or 0.0)
    u = REFERENCE[name]
    p = sn.regression.problem(A, np.full(3, 1 / 3), name)
    found = _bounds.normaliser(p, 0.2, None if centre is None else np.array([centre]))
    least = u(A * x).sum(axis=0).min()
    if least > 0:
        assert 0.99 * least < found.ours <= least * (1 + 1e-6)
    else:
        assert found.ours == 0


def test_rounding_at_a_centre_is_relative_to_its_norm(x64):
    p = sn.regression.softmax(np.eye(2), np.array([0.5, 0.5]))
    ball, reach = _bounds._ball_and_reach(p, 2.0, np.array([3.0, 4.0]))
    assert (ball.radius, ball.centre_norm, reach) == (2.0, 5.0, 7.0)


def test_derivatives_of_the_rescaled_residual_are_bounded_closely(x64):
    """Equal logits and targets of one negative sign, where ‖diag(u') − b u'ᵀ‖ is 1 + ‖b‖‖𝟏‖ times
    u'.
    """
    p = sn.regression.problem(np.eye(4), np.full(4, -0.5), "exp", "rescaled")
    slopes = np.linalg.norm(jax.jacfwd(p.residual)(jnp.zeros(4)), 2)
    assert slopes == pytest.approx(3)
    ball = Ball(1e-9, np.zeros(4), 0.0)
    assert slopes <= residual_bounds(p, ball)[1] <= slopes * (1 + 1e-6)
    curvature = np.linalg.norm(jax.hessian(p)(jnp.zeros(4)), 2)
    opposite = sn.regression.problem(np.eye(4), -0.5 * np.eye(4)[0], "exp", "rescaled")
    later = jax.jacfwd(jax.jacfwd(opposite.residual))
    for order, derivative in ((2, later), (3, jax.jacfwd(later))):
        size = np.linalg.norm(np.asarray(derivative(jnp.zeros(4)))[(slice(None), *(0,) * order)])
        assert size == pytest.approx(1.5)
        assert size <= residual_bounds(opposite, ball)[order] <= size * (1 + 1e-6)
    assert curvature <= _bounds.lipschitz(p, 1e-9).gradient.ours < 1.5 * curvature


@pytest.mark.parametrize("kind", [jnp.asarray, sparse.BCOO.fromdense])
def test_singular_values_are_bounded_closely_from_outside(kind, x64):
    A = np.diag([3.0, 0.5, 0.01]) @ np.array([[1.0, 0.2, 0.0], [0.0, 1.0, -0.4], [0.3, 0.0, 1.0]])
    A = np.concatenate([A, np.zeros((1, 3))])
    values = np.linalg.svd(A, compute_uv=False)
    largest, smallest = bound_singular_values(sn.regression.problem(kind(A), np.full(4, 0.25)))
    assert values[0] <= largest <= values[0] * (1 + 1e-12)
    assert values[-1] * (1 - 1e-9) <= smallest <= values[-1]


def test_softmax_needs_no_ball_and_others_do(x64):
    p = sn.regression.softmax(np.eye(2), np.array([0.5, 0.5]))
    assert _bounds.convexity_weight(p, 1.0).ours < _bounds.convexity_weight(p, 1.0).paper
    assert _bounds.lipschitz(p, 10.0).hessian.ours == _bounds.lipschitz(p, 1000.0).hessian.ours
    assert _bounds.lipschitz(p, 1.0).hessian.ours < 1e-10 * _bounds.lipschitz(p, 1.0).hessian.paper
    with pytest.raises(ValueError, match="radius must be given for normalized res_exp"):
        _bounds.convexity_weight(sn.regression.resnet_softmax(np.eye(2), np.ones(2)), 1.0)
    with pytest.raises(ValueError, match=r"p must have another.* 'relu', whose slope jumps"):
        _bounds.lipschitz(sn.regression.problem(np.eye(2), np.ones(2), "relu", "plain"), 1.0)
    own = sn.activations.from_function(jnp.tanh, "own")
    with pytest.raises(ValueError, match=r"p must have another.* none for 'own'"):
        _bounds.lipschitz(sn.regression.problem(np.eye(2), np.ones(2), own, "plain"), 1.0)
    assert _bounds.normaliser(sn.regression.problem(np.eye(2), np.ones(2), own), 1.0) == (0, 0)
    with pytest.raises(ValueError, match="strength must be a positive"):
        _bounds.convexity_weight(p, 0.0)
    wide = sn.regression.softmax(np.ones((1, 2)), np.ones(1))
    assert _bounds.convexity_weight(wide, 1.0) == (math.inf, math.inf)
    assert (
        _bounds.lipschitz(sn.regression.problem(np.eye(2), np.ones(2), "sinh"), 1.0).predict.ours
        == math.inf
    )


def test_a_sparse_matrix_without_full_rank_has_no_smallest_singular_value():
    """What rounding leaves of it is measured by the largest eigenvalue of the Gram matrix."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        A = rng.normal(size=(6, 3)) * [100.0, 1.0, 1.0]
        A[:, 2] = A[:, 0] + A[:, 1]
        matrix = sparse.BCOO.fromdense(jnp.asarray(A, jnp.float32))
        p = sn.regression.problem(matrix, jnp.full(6, 1 / 6, jnp.float32))
        largest, smallest = bound_singular_values(p)
        assert smallest == 0
        assert largest >= np.linalg.norm(A.astype("float32").astype(float), 2)
