"""Structured operators against dense NumPy linear algebra."""

import dataclasses

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from helpers import assert_close, slow_except
from jax.experimental import sparse

import softntk as sn
from softntk._linalg import design_matrix
from softntk.curvature import sketch
from softntk.curvature.structured import StructuredOperator, weighted_sum
from softntk.solution import Result


def operator(n=20, d=5, r=2, seed=0, negative=False, ridge=0.3, dtype="float64"):
    rng = np.random.default_rng(seed)
    A, D, U, M = (
        rng.normal(size=(n, d)),
        rng.random(n) + 0.1,
        rng.normal(size=(n, r)),
        rng.normal(size=(r, r)),
    )
    D = D - 0.6 if negative else D
    parts = [jnp.asarray(part, dtype) for part in (A, D, U, M + M.T)]
    return StructuredOperator(*parts, ridge=ridge)


def dense(op):
    A, D, U, M = (
        np.asarray(part, np.float64) for part in (op.matrix, op.logit_diagonal, op.factors, op.core)
    )
    return A.T @ (np.diag(D) + U @ M @ U.T) @ A + float(op.ridge) * np.eye(A.shape[1])


def test_products_and_pieces(dtype):
    op = operator(dtype=dtype)
    H, V = dense(op), np.random.default_rng(1).normal(size=(5, 3))
    assert_close(op.as_matrix(), H, dtype)
    assert_close(op.as_matrix(), np.asarray(op.as_matrix()).T, rtol=0)
    assert_close(op.mv(jnp.asarray(V[:, 0], dtype)), H @ V[:, 0], dtype)
    assert_close(op.mm(jnp.asarray(V, dtype)), H @ V, dtype)
    assert_close(op.diagonal(), np.diag(H), dtype)
    assert_close(lx.diagonal(op), np.diag(H), dtype)
    assert_close(op.trace(), np.trace(H), dtype)
    assert_close(op.with_ridge(2.0).as_matrix(), H + 2 * np.eye(5), dtype)
    assert op.transpose() is op
    assert op.mv(jnp.zeros(5)).dtype == dtype
    # What is known of it is no number, which jit would make an unknown one.
    assert not any(isinstance(leaf, bool) for leaf in jax.tree.leaves(op))


def test_nearly_equal_columns_are_regular(x64):
    """A pivot of 1e-11 is far above rounding, and so is no other power of it."""
    A = np.array([[1.0, 1.0], [0.0, 3e-6]])
    op = StructuredOperator(A, np.ones(2), np.zeros((2, 0)), np.zeros((0, 0)))
    factorisation = op.factorise()
    assert int(factorisation.result) == Result.SUCCESSFUL
    assert_close(factorisation.solve(jnp.asarray(A[0])), [1.0, 0.0], rtol=1e-4)


@pytest.mark.parametrize("kind", [jnp.asarray, sparse.BCOO.fromdense])
def test_a_row_beyond_the_last_is_one_of_zeros(kind):
    A = np.arange(1.0, 7.0).reshape(3, 2)
    assert_close(design_matrix.take_rows(kind(A), jnp.array([0, 2, 3])), [[1, 2], [5, 6], [0, 0]])


@pytest.mark.parametrize("n", slow_except([1, 700, 5000], 5000))
def test_blocks_and_tiles_of_the_gram_product(n, x64):
    op = operator(n=n, d=300)
    assert_close(op.as_matrix(), dense(op), rtol=1e-12)


@pytest.mark.parametrize("case", slow_except([{}, {"r": 0}, {"d": 1, "r": 2}, {"r": 4}], {}))
def test_solves_and_determinants(case, dtype):
    op = operator(**case, dtype=dtype)
    H, right = dense(op), np.random.default_rng(1).normal(size=(op.shape[0], 2))
    found = op.factorise()
    assert int(found.result) == Result.SUCCESSFUL
    assert_close(
        found.solve(jnp.asarray(right, dtype)),
        np.linalg.solve(H, right),
        rtol=2e-3 if dtype == "float32" else 1e-9,
    )
    assert_close(
        found.solve(jnp.asarray(right[:, 0], dtype)),
        np.linalg.solve(H, right[:, 0]),
        rtol=2e-3 if dtype == "float32" else 1e-9,
    )
    sign, value = found.log_determinant()
    assert_close(
        jnp.stack([sign, value]), np.linalg.slogdet(H), rtol=1e-3 if dtype == "float32" else 1e-9
    )
    assert int(found.negative_eigenvalues()) == np.sum(np.linalg.eigvalsh(H) < 0)


def test_inertia_of_many(x64):
    """Indefinite low-rank parts of all sizes: the count of negative eigenvalues is that of the
    matrix.
    """
    counts = set()
    for seed in range(30):
        op = operator(n=12, d=4, seed=seed, ridge=0.0)
        op = StructuredOperator(
            op.matrix, op.logit_diagonal, op.factors, 3.0 ** (seed % 4 - 2) * op.core
        )
        count = int(op.factorise().negative_eigenvalues())
        assert count == np.sum(np.linalg.eigvalsh(dense(op)) < 0)
        counts.add(count)
    assert counts >= {0, 1}


def test_what_cannot_be_factorised_says_so(dtype):
    for op in (
        operator(negative=True, ridge=-3.0, dtype=dtype),
        operator(n=3, d=5, ridge=0.0, dtype=dtype),
    ):
        found = op.factorise()
        assert int(found.result) == Result.NOT_DEFINITE
        assert np.isposinf(found.solve(jnp.ones(5, dtype))).all()
        assert [float(v) for v in found.log_determinant()] == [0, -np.inf]


def test_singular_and_nearly_singular_hessians(x64):
    """Softmax with an intercept: H is singular, R is not.

    With a small ridge, solutions are as good as rounding allows.
    """
    rng = np.random.default_rng(0)
    A, x = np.c_[np.ones(30), 0.3 * rng.normal(size=(30, 3))], jnp.asarray(0.3 * rng.normal(size=4))
    p = sn.regression.softmax(A, sn.regression.softmax(A, np.full(30, 1 / 30)).predict(x))
    assert int(p.hessian(x).factorise().result) == Result.NOT_DEFINITE
    for ridge in (1e-6, 1e-9, 1e-12):
        H = p.gauss_newton(x).with_ridge(ridge)
        solution = H.factorise().solve(jnp.ones(4))
        residual = np.abs(dense(H) @ np.asarray(solution) - 1).max()
        assert residual <= 1e-14 * np.linalg.norm(dense(H)) * np.linalg.norm(solution)


def test_positive_part(x64):
    for seed in range(10):
        op = operator(negative=True, seed=seed)
        part = op.positive_part()
        assert lx.is_positive_semidefinite(part)
        assert np.linalg.eigvalsh(dense(part))[0] > -1e-10
        assert np.linalg.eigvalsh(dense(part) - dense(op))[0] > -1e-10  # at least as large
    assert_close(operator(r=0).positive_part().as_matrix(), dense(operator(r=0)))


def test_sums(x64):
    one, other = operator(seed=0), operator(seed=1)
    shared = StructuredOperator(one.matrix, other.logit_diagonal, other.factors, other.core, 0.1)
    assert_close(
        weighted_sum([one, shared], [2.0, -1.0]).as_matrix(), 2 * dense(one) - dense(shared)
    )
    assert_close(
        weighted_sum([one, other], jnp.array([2.0, 3.0])).as_matrix(),
        2 * dense(one) + 3 * dense(other),
    )
    gauss_newton = sn.regression.softmax(one.matrix, jnp.full(20, 0.05)).gauss_newton(jnp.ones(5))
    assert lx.is_positive_semidefinite(weighted_sum([gauss_newton, gauss_newton], [1.0, 2.0]))
    assert not lx.is_positive_semidefinite(weighted_sum([gauss_newton, gauss_newton], [1.0, -2.0]))
    assert not lx.is_positive_semidefinite(gauss_newton.with_ridge(-1.0))
    with pytest.raises(ValueError, match="operators and weights must be as many"):
        weighted_sum([one], [1.0, 2.0])
    by_rows = dataclasses.replace(one, matrix=sparse.BCOO.fromdense(one.matrix))
    with pytest.raises(ValueError, match="must share one matrix"):
        weighted_sum([one, by_rows], [1.0, 1.0])
    assert_close(
        weighted_sum([by_rows, by_rows.positive_part()], [1.0, 0.0]).as_matrix(), dense(one)
    )
    copied = dataclasses.replace(by_rows, matrix=sparse.BCOO.fromdense(2 * one.matrix))
    assert_close(
        weighted_sum([by_rows, copied], [1.0, 1.0]).as_matrix(),
        dense(one) + 4 * dense(one) - 3 * 0.3 * np.eye(5),
    )


def test_extreme_eigenvalues(x64):
    op = operator(n=60, d=40)
    values = np.linalg.eigvalsh(dense(op))
    for dense_size in (1024, 8):
        found = op.extreme_eigenvalues(dense_size=dense_size, steps=30)
        assert abs(float(found.smallest) - values[0]) <= float(found.smallest_error)
        assert abs(float(found.largest) - values[-1]) <= float(found.largest_error)
    with pytest.raises(ValueError, match="op must be tagged symmetric"):
        sn.ntk.extreme_eigenvalues(lx.MatrixLinearOperator(jnp.eye(2)))


def test_matrices_that_are_operators(x64):
    op = operator()
    of_function = lx.FunctionLinearOperator(
        lambda v: op.matrix @ v, jax.ShapeDtypeStruct((5,), "float64")
    )
    same = dataclasses.replace(op, matrix=of_function)
    assert_close(same.mv(jnp.ones(5)), dense(op) @ np.ones(5))
    assert_close(jax.jit(lambda op: op.as_matrix())(same), dense(op))
    sample = sketch.draw(jax.random.key(0), jnp.full(20, 0.05), 10)
    assert_close(sample.gram(of_function), sample.gram(op.matrix))


def test_lineax_solves_with_it(x64):
    op = sn.regression.softmax(operator().matrix, jnp.full(20, 0.05), weights=0.5).gauss_newton(
        jnp.ones(5)
    )
    right = jnp.arange(1.0, 6.0)
    for solver in (lx.CG(1e-12, 1e-12), lx.Cholesky()):
        assert_close(
            lx.linear_solve(op, right, solver).value, np.linalg.solve(dense(op), right), rtol=1e-8
        )
    assert_close(
        jax.jit(lambda op, v: op.factorise().solve(v))(op, right),
        np.linalg.solve(dense(op), right),
        rtol=1e-9,
    )


def test_the_derivative_of_a_determinant_has_that_of_the_low_rank_part(x64):
    A, D, U, M = (np.asarray(part) for part in dataclasses.astuple(operator(n=10, d=4))[:4])

    def ours(D, M):
        return StructuredOperator(A, D, U, M, 0.3).factorise().log_determinant()[1]

    def plain(D, M):
        inner = jnp.diag(D) + U @ M @ U.T
        return jnp.linalg.slogdet(A.T @ inner @ A + 0.3 * jnp.eye(4))[1]

    for found, wanted in zip(
        *(jax.grad(f, (0, 1))(jnp.asarray(D), jnp.asarray(M)) for f in (ours, plain)), strict=True
    ):
        assert_close(found, wanted, rtol=1e-9)


def test_a_singular_diagonal_part_is_told_from_a_definite_one():
    """A column that is the sum of others: the last pivot is rounding, of either sign."""
    results = []
    for seed in range(12):
        A = np.random.default_rng(seed).normal(size=(10, 3))
        A[:, 2] = A[:, 0] + A[:, 1]
        op = StructuredOperator(
            jnp.asarray(A, jnp.float32),
            jnp.ones(10, jnp.float32),
            jnp.zeros((10, 1), jnp.float32),
            jnp.eye(1, dtype=jnp.float32),
            0.0,
        )
        results.append(int(op.factorise().result))
    assert set(results) == {Result.NOT_DEFINITE}
