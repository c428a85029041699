"""Attention, two-layer and leverage problems: against automatic differentiation of losses written
plainly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.optimize
from helpers import assert_close, slow_except
from jax.experimental import sparse
from jax.flatten_util import ravel_pytree

import softntk as sn
from softntk.regression._attention import AttentionParameters
from softntk.solution import Result


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def check_problem(p, loss, x, residuals):
    """Loss, gradient, Hessian, Gauss–Newton and their products against dense ones on the raveled
    unknowns.
    """
    flat, unravel = ravel_pytree(x)
    at = lambda v: loss(unravel(v))
    H = jax.hessian(at)(flat)
    J = jax.jacfwd(lambda v: residuals(unravel(v)))(flat)
    assert_close(p(x), loss(x))
    assert_close(ravel_pytree(p.gradient(x))[0], jax.grad(at)(flat))
    v = jnp.sin(jnp.arange(len(flat)) + 1.0)
    for op, matrix in ((p.hessian(x), H), (p.gauss_newton(x), J.T @ J)):
        assert_close(ravel_pytree(op.mv(unravel(v)))[0], matrix @ v)
        assert_close(op.as_matrix(), matrix)
        assert lx.is_symmetric(op)
    assert lx.is_positive_semidefinite(p.gauss_newton(x))
    assert_close(ravel_pytree(jax.grad(p)(x))[0], jax.grad(at)(flat))
    assert int(jax.jit(p.check)(x)) == Result.SUCCESSFUL


@pytest.mark.parametrize("activation", slow_except(["exp", "res_exp"], "exp"))
@pytest.mark.slow
def test_attention(activation, x64):
    A1, A2, B, X = arrays((6, 2), (5, 3), (6, 5), (2, 3))
    u = {"exp": jnp.exp, "res_exp": lambda z: jnp.exp(z) + z}[activation]

    def residuals(X):
        Z = A1 @ X @ A2.T
        return jnp.concatenate([(u(Z) / u(Z).sum(1, keepdims=True) - B).ravel(), 0.3 * Z.ravel()])

    p = sn.regression.attention(A1, A2, B, weights=0.3, activation=activation)
    check_problem(p, lambda X: 0.5 * jnp.sum(residuals(X) ** 2), X, residuals)
    assert_close(p.residual(X), residuals(X)[:30].reshape(6, 5))
    H = p.hessian(X)
    assert_close(lx.materialise(H).mv(X), H.mv(X))
    assert_close(lx.diagonal(H), jnp.diag(H.as_matrix()))


@pytest.mark.slow
def test_attention_with_values(x64):
    A1, A2, A3, B, X, Y = arrays((6, 2), (5, 3), (5, 4), (6, 2), (2, 3), (4, 2))

    def residuals(theta):
        Z = A1 @ theta.x @ A2.T
        return jnp.concatenate([(jax.nn.softmax(Z) @ A3 @ theta.y - B).ravel(), 0.3 * Z.ravel()])

    p = sn.regression.attention(A1, A2, B, values=A3, weights=0.3)
    check_problem(
        p, lambda t: 0.5 * jnp.sum(residuals(t) ** 2), AttentionParameters(x=X, y=Y), residuals
    )


def test_attention_at_huge_logits_and_outside_of_the_domain(x64):
    A1, A2, B, X = arrays((4, 2), (3, 2), (4, 3), (2, 2))
    p = sn.regression.attention(A1, A2, B)
    for value in (p(1e4 * X), p.gradient(1e4 * X), p.hessian(1e4 * X).as_matrix()):
        assert np.isfinite(value).all()
    # What is known of an operator is no number, which jit would make an unknown one.
    assert not any(isinstance(leaf, bool) for leaf in jax.tree.leaves(p.gauss_newton(X)))
    odd = sn.regression.attention(A1, jnp.stack([A2[0], -A2[0]]), B[:, :2], activation="sinh")
    assert np.isposinf(odd(X))
    assert int(odd.check(X)) == Result.NORMALISER_LOST
    assert not np.isnan(odd.gradient(X)).any()
    assert int(p.check(X * jnp.nan)) == Result.NONFINITE_INPUT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "outer"),
    [("relu", "softmax"), ("softmax", "cosh"), ("softmax", "identity"), ("res_softmax", "exp")],
)
def test_two_layer(inner, outer, x64):
    A1, A2, b, x, w = arrays((5, 3), (4, 5), (4,), (3,), (5,))
    layers = {
        "relu": jax.nn.relu,
        "softmax": jax.nn.softmax,
        "identity": lambda z: z,
        "cosh": jnp.cosh,
        "exp": jnp.exp,
        "res_softmax": lambda z: (jnp.exp(z) + z) / jnp.sum(jnp.exp(z) + z),
    }

    def residuals(x):
        z = A1 @ x
        return jnp.concatenate([layers[outer](A2 @ layers[inner](z)) - b, jnp.abs(w) * z])

    p = sn.regression.two_layer(A1, A2, b, inner=inner, outer=outer, weights=jnp.abs(w))
    check_problem(p, lambda x: 0.5 * jnp.sum(residuals(x) ** 2), x, residuals)


def test_two_layer_in_short(x64):
    """Gradient and Gauss–Newton products of softmax(A₂ relu(A₁x)); the rest is with -m slow."""
    A1, A2, b, x = arrays((5, 3), (4, 5), (4,), (3,))
    p, residual = (
        sn.regression.two_layer(A1, A2, b),
        lambda x: jax.nn.softmax(A2 @ jax.nn.relu(A1 @ x)) - b,
    )
    J = jax.jacfwd(residual)(x)
    assert_close(p.gradient(x), J.T @ residual(x))
    assert_close(p.gauss_newton(x).mv(x), J.T @ (J @ x))


def test_two_layer_overflow_is_infinite(x64):
    A1, A2, b, x = arrays((5, 3), (4, 5), (4,), (3,))
    p = sn.regression.two_layer(A1, 1e4 * A2, b, inner="softmax", outer="exp")
    assert np.isposinf(p(x))
    assert int(p.check(x)) == Result.OVERFLOW
    assert np.isposinf(p.gradient(x)).all()


@pytest.mark.slow
def test_leverage_is_a_gradient(x64):
    A, t = arrays((7, 3), (7,))
    target = jnp.full(7, 3 / 7)
    p = sn.regression.leverage(A, target)

    def loss(t):
        value = jnp.linalg.slogdet(A.T @ (jnp.exp(t)[:, None] * A))[1]
        return value - target @ t + 0.5 * jnp.sum(t) ** 2 / 7

    assert_close(p(t), loss(t))
    assert_close(p.gradient(t), jax.grad(loss)(t))
    assert_close(jax.grad(p)(t), jax.grad(loss)(t))
    assert_close(p.hessian(t).as_matrix(), jax.hessian(loss)(t))
    S = jnp.diag(1 / p.scalings(t)) @ A
    assert_close(p.predict(t), jnp.diag(S @ jnp.linalg.inv(S.T @ S) @ S.T))
    assert np.isfinite(p(t + 1e4))  # a common factor of a thousand decades


@pytest.mark.parametrize("row", [0, 3])
def test_leverage_of_rows_of_very_different_scales(row, x64):
    """One row e⁵⁰ times as heavy: its score is one, the others are those of what it leaves over."""
    (A,) = arrays((6, 3))
    p = sn.regression.leverage(A, jnp.full(6, 0.5))
    t = jnp.zeros(6).at[row].set(100.0)
    direction = A[row] / jnp.linalg.norm(A[row])
    rest = np.asarray(A - jnp.outer(A @ direction, direction))
    wanted = np.einsum("ij,ji->i", rest, np.linalg.pinv(rest, rcond=1e-8))
    wanted[row] = 1
    assert_close(p.predict(t), wanted, rtol=1e-9)
    for lost in (t.at[row].set(2000.0), jnp.array([-2000.0] * 4 + [0, 0])):
        assert int(p.check(lost)) == Result.NOT_DEFINITE
        assert np.isposinf(p(lost))
        assert np.isposinf(p.gradient(lost)).all()
        assert not np.isnan(jax.grad(p)(lost)).any()
    with pytest.raises(NotImplementedError, match="not in A"):
        jax.grad(lambda A: sn.regression.leverage(A, jnp.full(6, 0.5))(t))(A)


def test_leverage_of_rows_that_underflow(x64):
    """They have no part of the determinant, which two rows make definite."""
    (A,) = arrays((5, 2))
    t = jnp.asarray([0.5, -0.5, -1600.0, -1600.0, -1600.0])
    p = sn.regression.leverage(A, jnp.full(5, 0.4))
    wanted = 2 * np.linalg.slogdet(np.asarray(A[:2]))[1] - 0.4 * t.sum() + 0.1 * t.sum() ** 2
    assert_close(p(t), wanted)


def test_targets_of_rows_that_split_off():
    A = jnp.array([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    p = sn.regression.leverage(A, jnp.full(4, 0.5))
    t = -2 * jnp.log(jnp.array([1.0, 2.0, 1.0, 3.0]))
    assert_close(p.predict(t), np.full(4, 0.5), "float32")
    coloop = sn.regression.leverage(A[1:], jnp.array([1.0, 0.5, 0.5]))
    assert_close(coloop.predict(t[1:]), [1.0, 0.5, 0.5], "float32")


def test_outside_of_the_domain_of_two_layers_nothing_is_nan(x64):
    eye, x = jnp.eye(2), jnp.array([800.0, 0.0])
    p = sn.regression.two_layer(eye, eye, jnp.ones(2), inner="identity", outer="exp")
    for value in (jax.grad(p)(x), p.hessian(x).mv(x), p.gauss_newton(x).mv(x), p.predict(x)):
        assert not np.isnan(value).any()
    assert not np.isnan(
        sn.regression.two_layer(eye, eye, jnp.ones(2), inner="exp").predict(x)
    ).any()
    traced = jax.jit(lambda w: sn.regression.two_layer(eye, eye, jnp.ones(2), weights=w)(x))
    assert np.isposinf(traced(-1.0))


def test_leverage_is_inverted(x64):
    """Scores of a random scaling are found again, and the scaling with them: it is unique up to the
    gauge.
    """
    A, t = arrays((12, 3), (12,))
    t = t - jnp.mean(t)
    rows = jnp.exp(t / 2)[:, None] * A
    target = jnp.diag(rows @ jnp.linalg.inv(rows.T @ rows) @ rows.T)
    p = sn.regression.leverage(A, target)
    found = scipy.optimize.minimize(
        lambda v: float(p(jnp.asarray(v))),
        np.zeros(12),
        jac=lambda v: np.asarray(p.gradient(jnp.asarray(v))),
        hess=lambda v: np.asarray(p.hessian(jnp.asarray(v)).as_matrix()),
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    assert_close(p.scalings(jnp.asarray(found.x)), jnp.exp(-t / 2), rtol=1e-6)


leverage: Any = sn.regression.leverage


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sn.regression.attention(np.eye(2), np.eye(3), np.eye(2)),
            r"B must have shape \[2, 3\]",
        ),
        (
            lambda: sn.regression.attention(np.eye(2), np.eye(3), np.full((2, 3), np.nan)),
            "B must be finite",
        ),
        (
            lambda: sn.regression.attention(np.eye(2), np.eye(2), np.eye(2), weights=-1.0),
            "weights must not be negative",
        ),
        (
            lambda: sn.regression.attention(np.eye(2), np.eye(3), np.eye(2), values=np.eye(2)),
            "values must have one row",
        ),
        (
            lambda: sn.regression.attention(np.eye(2), np.eye(2), np.eye(2))(jnp.zeros((3, 2))),
            r"x must have shape \[2, 2\]",
        ),
        (
            lambda: sn.regression.two_layer(np.eye(2), np.eye(3), np.ones(3)),
            "A2 must have 2 features",
        ),
        (
            lambda: sn.regression.two_layer(np.eye(2), np.eye(2), np.ones(2), inner="sofmax"),
            "Did you mean 'softmax'",
        ),
        (
            lambda: sn.regression.two_layer(np.eye(2), np.eye(2), np.ones(2), weights=-1.0),
            "weights must not be negative",
        ),
        (
            lambda: sn.regression.two_layer(np.eye(2), np.eye(2), np.ones(2))(jnp.zeros(3)),
            r"x must have shape \[2\]",
        ),
        (lambda: sn.regression.leverage(np.ones((3, 2)), np.ones(3) / 3), "full column rank"),
        (lambda: sn.regression.leverage(np.eye(3)[:, :2], np.ones(3) / 1.5), "no rows of zeros"),
        (
            lambda: sn.regression.leverage(np.array([[1.0], [2.0]]), np.ones(2)),
            "must sum to the rank",
        ),
        (
            lambda: sn.regression.leverage(np.array([[1.0], [2.0]]), np.array([0.0, 1.0])),
            "target must lie between 0 and 1, got 0 … 1",
        ),
        (
            lambda: sn.regression.leverage(
                np.array([[1.0, 0], [0, 1], [1, 1]]), np.array([1.2, 0.4, 0.4])
            ),
            "target must lie between 0 and 1",
        ),
        (
            lambda: sn.regression.leverage(
                np.array([[1.0, 0], [2, 0], [1, 1], [0, 1]]), np.array([0.6, 0.6, 0.4, 0.4])
            ),
            r"less than one over the parallel rows .0, 1., got 1.2",
        ),
        (
            lambda: sn.regression.leverage(np.eye(2), np.array([1.0, 1.0]) - 1e-5),
            "target must sum to one over the parallel rows",
        ),
        (
            lambda: leverage(sparse.BCOO.fromdense(jnp.eye(2)), np.ones(2)),
            "A must be a dense array, got BCOO",
        ),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_of_a_scaling_move_as_the_squares_of_the_projection_say(x64):
    """dσ = σ∘v − (P∘P)v, with P the projection on the columns of diag(e^{t/2})A."""
    rng = np.random.default_rng(5)
    A, t, v = rng.normal(size=(8, 3)), rng.normal(size=8), rng.normal(size=8)
    p = sn.regression.leverage(A, np.full(8, 3 / 8))
    rows = np.exp(t / 2)[:, None] * A
    P = rows @ np.linalg.pinv(rows)
    found = jax.jvp(p.predict, (jnp.asarray(t),), (jnp.asarray(v),))[1]
    assert_close(found, np.diag(P) * v - P**2 @ v, rtol=1e-9)


def test_a_loss_of_leverage_that_overflows_is_told():
    """(Σt)² leaves the range of float32 where Σt, which the gradient has, does not."""
    A = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    p = sn.regression.leverage(A, jnp.full(4, 0.5, jnp.float32))
    t = jnp.full(4, 1e20, jnp.float32)
    assert np.isfinite(p.gradient(t)).all()
    assert int(p.check(t)) == Result.OVERFLOW


def test_an_attention_whose_matrix_alone_overflows_is_told():
    """Rows of 1e11 on both sides: their products are in the range of float32, the squares not."""
    rng = np.random.default_rng(0)
    A1, A2 = (jnp.asarray(1e11 * rng.normal(size=(3, 2)), jnp.float32) for _ in range(2))
    p = sn.regression.attention(A1, A2, jnp.full((3, 3), 1 / 3, jnp.float32))
    x = jnp.zeros((2, 2), jnp.float32)
    assert np.isfinite(p.gradient(x)).all()
    assert int(p.check(x)) == Result.OVERFLOW


def test_an_attention_whose_curvature_in_the_logits_alone_overflows_is_told():
    """For f = (1, 0), v = (0, c) and b = 0 an entry of U M Uᵀ is 3c², beyond float32, where ‖U‖² is
    2c²; products with short keys are in its range.
    """
    c = 1.2e19
    wave = sn.activations.from_function(lambda z: jnp.sin(c * z), "wave")
    A1, A2 = jnp.ones((1, 1), jnp.float32), jnp.diag(jnp.array([1.0, 1e-3], jnp.float32))
    p = sn.regression.attention(A1, A2, jnp.zeros((1, 2), jnp.float32), activation=wave)
    x = jnp.array([[np.pi / 2 / c, 0.0]], jnp.float32)
    np.testing.assert_allclose(p.predict(x), [[1.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(p.gradient(x) / c, [[0.0, -1e-3]], atol=1e-6)
    assert int(p.check(x)) == Result.OVERFLOW
    tamer = sn.activations.from_function(lambda z: jnp.sin(c / 4 * z), "wave")
    p = sn.regression.attention(A1, A2, p.B, activation=tamer)
    assert int(p.check(4 * x)) == Result.SUCCESSFUL
