"""Leverage scores and samples of rows against dense linear algebra; where each kind of sampling
fails.
"""

import itertools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
from helpers import assert_close, slow_except
from jax.experimental import sparse

import softntk as sn
from softntk.curvature import leverage, sketch


def coherent(n=4000, d=12, seed=0):
    """Heavy tails, and rows that alone span a direction."""
    rng = np.random.default_rng(seed)
    A = rng.standard_t(1.5, size=(n, d))
    A[:, -1] = 0
    A[[3, n // 2], -1] = [1.0, 2.0]
    return jnp.asarray(A)


def exact(A, weights=None):
    A = np.asarray(A, np.float64) * (
        1 if weights is None else np.sqrt(np.asarray(weights))[:, None]
    )
    return np.einsum("ij,ji->i", A, np.linalg.pinv(A))


KINDS = {
    "dense": lambda A: A,
    "sparse": sparse.BCOO.fromdense,
    "operator": lambda A: (
        lx.MatrixLinearOperator(A)
        @ lx.IdentityLinearOperator(jax.ShapeDtypeStruct((A.shape[1],), A.dtype))
    ),
}


@pytest.mark.parametrize("sizes", [[1.0, 1.0, 1.0], [1e-6, 1.0, 1e4]])
def test_the_right_factor_makes_an_orthonormal_basis(sizes, x64):
    """M R⁺ = Q, whatever the units of the columns."""
    M = np.random.default_rng(0).normal(size=(8, 3)) * np.array(sizes)
    found = leverage._column_basis(jnp.asarray(M))
    assert_close(M @ np.asarray(found.right), found.basis)
    assert_close(np.asarray(found.basis).T @ found.basis, np.eye(3))


@pytest.mark.parametrize("kind", slow_except(KINDS, "sparse"))
def test_exact_scores(kind, x64):
    A, D = coherent(60, 5), np.random.default_rng(1).random(60)
    assert_close(leverage.scores(KINDS[kind](A)), exact(A), rtol=1e-9)
    assert_close(leverage.scores(KINDS[kind](A), D), exact(A, D), rtol=1e-9)


def test_scores_of_deficient_and_wide_matrices(x64):
    A = np.array(coherent(40, 6))
    A[:, 2] = A[:, 0] + A[:, 1]
    assert_close(leverage.scores(jnp.asarray(A)), exact(A), rtol=1e-8)
    assert_close(leverage.scores(jnp.asarray(A[:3])), np.ones(3), rtol=1e-9)
    assert_close(leverage.scores(jnp.zeros((3, 2))) + 1, np.ones(3))


@pytest.mark.parametrize("kind", slow_except(KINDS, "sparse"))
@pytest.mark.optimised
def test_approximate_scores_are_within_a_factor_of_two(kind, x64):
    A, D = coherent(), np.random.default_rng(1).random(4000)
    for seed, weights in itertools.product(range(3), (None, D)):
        ratio = leverage.approximate_scores(
            jax.random.key(seed), KINDS[kind](A), weights
        ) / leverage.scores(A, weights)
        assert np.all((ratio > 0.5) & (ratio < 2))


@pytest.mark.slow
@pytest.mark.optimised
def test_random_directions(x64):
    """Fewer directions than columns: still within the factor, for every row."""
    rng = np.random.default_rng(0)
    A = jnp.asarray(rng.normal(size=(3000, 400)) * rng.standard_t(2, size=(3000, 1)))
    found = leverage.approximate_scores(jax.random.key(0), A, rows=2400, directions=300)
    ratio = found / leverage.scores(A)
    # a sketch of 6 d rows only: its singular values are off by 40 %
    assert np.all((ratio > 0.4) & (ratio < 2.5))


@pytest.mark.optimised
@pytest.mark.slow
def test_samples_by_leverage_keep_the_spectrum_and_uniform_ones_do_not(x64):
    A, d = coherent(2000, 8), 8
    gram, size = A.T @ A, int(20 * d * np.log(d))
    keys = jax.random.split(jax.random.key(0), 200)
    share = {}
    for kind in ("leverage", "approximate_leverage", "row_norm", "uniform"):
        pi = sketch.probabilities(kind, A)
        measure = lambda key, pi=pi: sketch.distortion(sketch.draw(key, pi, size).gram(A), gram)
        share[kind] = np.mean(np.asarray(jax.lax.map(measure, keys)) <= 0.5)
    assert share["leverage"] >= 0.99
    assert share["approximate_leverage"] >= 0.99
    assert share["uniform"] < 0.05  # it misses the rows that alone span a direction
    assert share["row_norm"] < 0.9
    incoherent = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 8)))
    measure = lambda key: sketch.distortion(
        sketch.draw(key, sketch.probabilities("uniform", incoherent), size).gram(incoherent),
        incoherent.T @ incoherent,
    )
    assert np.mean(np.asarray(jax.lax.map(measure, keys)) <= 0.5) >= 0.99


def test_heavy_rows_in_float32():
    """Three rows a million times as heavy, and a matrix of 200,000 rows and condition 100: no
    direction is lost.
    """
    rng = np.random.default_rng(1)
    A = rng.normal(size=(3000, 6))
    A[:3] *= 1e6
    assert_close(leverage.scores(jnp.asarray(A, "float32")) / exact(A), np.ones(3000), rtol=0.1)
    tall = np.c_[np.ones(200_000), 1 + 0.02 * rng.normal(size=200_000)]
    assert abs(float(leverage.scores(jnp.asarray(tall, "float32")).sum()) - 2) < 1e-3
    A[:, 4] = A[:, 0]
    ratio = leverage.approximate_scores(jax.random.key(0), jnp.asarray(A, "float32")) / exact(A)
    # a column that repeats another one costs nothing but the rank
    assert np.all((ratio > 0.5) & (ratio < 2))


def test_draws_are_unbiased(x64):
    pi = jnp.array([0.1, 0.0, 0.6, 0.3])
    total = np.zeros(5)
    for seed in range(200):
        sample = sketch.draw(jax.random.key(seed), pi, 10)
        np.add.at(total, np.asarray(sample.indices), np.asarray(sample.scales))
        assert np.all(np.diff(np.unique(sample.indices)) > 0)
    np.testing.assert_allclose(total[:4] / 200, [1, 0, 1, 1], atol=0.25)


@pytest.mark.parametrize("kind", slow_except(KINDS, "sparse"))
@pytest.mark.slow
def test_a_sketched_hessian_keeps_its_low_rank_part(kind, x64):
    A = coherent(50, 4)
    p = sn.regression.problem(KINDS[kind](0.1 * A), jnp.full(50, 0.02), "res_exp", weights=0.5)
    H = p.hessian(jnp.ones(4) / 10)
    every = sketch.Sample(indices=jnp.arange(50), scales=jnp.ones(50))
    assert_close(sketch.sketched(H, every).as_matrix(), H.as_matrix())
    some = sketch.draw(jax.random.key(0), jnp.full(50, 0.02), 30)
    weights = np.zeros(50)
    kept = np.asarray(some.indices) < 50
    weights[np.asarray(some.indices)[kept]] = np.asarray(some.scales)[kept]
    dense = 0.1 * np.asarray(A)
    wanted = (
        dense.T @ (np.diag(weights * H.logit_diagonal) + H.factors @ H.core @ H.factors.T) @ dense
    )
    assert_close(sketch.sketched(H, some).as_matrix(), wanted)
    assert not lx.is_positive_semidefinite(sketch.sketched(p.gauss_newton(jnp.ones(4) / 10), some))


def test_distortion_is_a_generalized_eigenvalue(x64):
    rng = np.random.default_rng(0)
    for _ in range(5):
        X, Y = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
        H, K = X.T @ X, Y.T @ Y
        wanted = np.max(np.abs(scipy.linalg.eigh(K, H, eigvals_only=True) - 1))
        assert_close(sketch.distortion(jnp.asarray(K), jnp.asarray(H)), wanted, rtol=1e-8)
    singular = jnp.diag(jnp.array([2.0, 0.0]))
    assert float(sketch.distortion(1.25 * singular, singular)) == pytest.approx(0.25)
    assert np.isposinf(sketch.distortion(jnp.eye(2), singular))
    assert np.isposinf(sketch.distortion(jnp.eye(2), -jnp.eye(2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leverage.scores(np.eye(2, dtype=int)), "A must be a floating-point"),
        (lambda: leverage.scores(np.eye(2), np.ones(3)), "weights must have shape"),
        (lambda: leverage.scores(np.eye(2), -np.ones(2)), "weights must not be negative"),
        (
            lambda: leverage.approximate_scores(jax.random.key(0), np.eye(3), rows=2),
            "rows must be at least the number",
        ),
        (
            lambda: leverage.approximate_scores(jax.random.key(0), np.eye(3), directions=0),
            "directions must be a positive",
        ),
        (
            lambda: sketch.probabilities("levrage", np.eye(3)),
            "kind must be one of .* Did you mean 'leverage'",
        ),
        (
            lambda: sketch.draw(jax.random.key(0), jnp.ones(2) / 2, 0),
            "size must be a positive integer",
        ),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_move_with_the_rows_and_the_weights(x64):
    """Against automatic differentiation of D_i a_iᵀ(AᵀDA)⁻¹a_i."""
    rng = np.random.default_rng(7)
    A, dA = (jnp.asarray(part) for part in rng.normal(size=(2, 9, 3)))
    D, dD = jnp.asarray(rng.uniform(0.5, 2, size=9)), jnp.asarray(rng.normal(size=9))

    def plain(A, D):
        return D * jnp.sum(A * jnp.linalg.solve(A.T @ (D[:, None] * A), A.T).T, axis=1)

    for moves in ((dA, 0 * dD), (0 * dA, dD), (dA, dD)):
        found, wanted = (jax.jvp(f, (A, D), moves)[1] for f in (leverage.scores, plain))
        assert_close(found, wanted, rtol=1e-9)
