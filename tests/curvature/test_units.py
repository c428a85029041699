"""Units drop out where they should; what is called successful leaves no residual; derivatives at
the edges of the domain.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, slow_except
from jax.experimental import sparse
from jax.test_util import check_grads

from softntk.curvature import leverage, sketch
from softntk.curvature.structured import StructuredOperator, weighted_sum
from softntk.solution import Result

KEY = jax.random.key(3)
UNITS = [1e-25, 1e-12, 1e12, 1e25]


def matrix(n=12, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype("float32")


def exact_scores(A, weights=None):
    A = np.asarray(A, np.float64) * (
        1 if weights is None else np.sqrt(np.asarray(weights, np.float64))[:, None]
    )
    return np.einsum("ij,ji->i", A, np.linalg.pinv(A))


@pytest.mark.parametrize("make", [jnp.asarray, sparse.BCOO.fromdense])
@pytest.mark.parametrize("c", UNITS)
def test_scores_and_probabilities_have_no_unit(make, c):
    A, D = matrix(), np.linspace(0.1, 2, 12, dtype="float32")
    wide = A * np.array([1, 1e-20, 1e10], "float32")  # nor do the columns
    assert_close(leverage.scores(make(c * A), c * D), exact_scores(A, D), "float32")
    assert_close(leverage.scores(make(wide), D), exact_scores(A, D), "float32")
    row_norm = D * np.sum(A.astype("float64") ** 2, axis=1)
    assert_close(
        sketch.probabilities("row_norm", make(c * A), c * D), row_norm / row_norm.sum(), "float32"
    )
    assert_close(sketch.probabilities("leverage", make(c * A)), exact_scores(A) / 3, "float32")


@pytest.mark.parametrize("c", [1e-25, 1e25])
@pytest.mark.optimised
def test_approximate_scores_of_deficient_matrices_in_any_unit(c):
    A = matrix(2000, 5)
    A[:, 4] = A[:, 1]
    A[:, 2] = 0
    ratio = leverage.approximate_scores(KEY, jnp.asarray(np.float32(c) * A)) / exact_scores(A)
    assert np.all((ratio > 0.5) & (ratio < 2))
    pi = sketch.probabilities("approximate_leverage", np.float32(c) * A, key=KEY)
    assert_close(jnp.sum(pi), 1.0, "float32")


@pytest.mark.parametrize("kind", ["leverage", "approximate_leverage", "row_norm", "uniform"])
def test_probabilities_of_nothing_are_uniform(kind, dtype):
    for A, weights in (
        (np.zeros((4, 2)), None),
        (np.ones((4, 2)), np.zeros(4)),
        (np.zeros((1, 1)), None),
    ):
        pi = sketch.probabilities(kind, A.astype(dtype), weights)
        assert_close(pi, np.full(len(A), 1 / len(A)), dtype)
        sample = sketch.draw(KEY, pi, 5)
        assert np.isfinite(sample.gram(A.astype(dtype))).all()


def test_draws_say_what_the_draws_weigh(x64):
    """Of probabilities that miss one by rounding, and of traced ones that are all zero."""
    pi = np.array([0.3, 0.0, 0.7]) * (1 + 5e-5)
    sample = sketch.draw(KEY, pi, 1000)
    counts = np.asarray(sample.scales[:2]) * np.array([0.3, 0.7]) * 1000
    assert_close(counts, np.round(counts), rtol=1e-9)
    assert_close(counts.sum(), 1000.0)
    assert not np.isnan(jax.jit(lambda pi: sketch.draw(KEY, pi, 3).scales)(jnp.zeros(3))).any()


@pytest.mark.parametrize("c", UNITS)
def test_distortion_has_no_unit(c):
    approximate, exact = (
        jnp.asarray(c * np.diag(v).astype("float32")) for v in ([1.0, 3.0], [1.0, 2.0])
    )
    assert_close(sketch.distortion(approximate, exact), 0.5, "float32")


def structured(A, D, U, M, ridge=0.0, dtype="float32"):
    return StructuredOperator(*(jnp.asarray(part, dtype) for part in (A, D, U, M)), ridge=ridge)


def dense(op):
    A, D, U, M = (
        np.asarray(part, np.longdouble)
        for part in (op.matrix, op.logit_diagonal, op.factors, op.core)
    )
    return np.asarray(
        (A.T * D) @ A + (A.T @ U) @ M @ (U.T @ A) + np.longdouble(op.ridge) * np.eye(A.shape[1]),
        np.float64,
    )


@pytest.mark.parametrize("unit", [1e-20, 1e-10, 1e10, 1e20])
def test_solves_are_homogeneous(unit):
    """Of H → cH and of A → cA, where the matrix itself leaves float32: its solutions in the inverse
    unit do not.
    """
    A, D, U = matrix(), np.linspace(0.5, 2, 12), matrix(12, 2, seed=1)
    one = structured(A, D, U, np.diag([1.0, -0.01]), 0.1)
    right = np.array([1.0, -2.0, 0.5])
    solution = np.linalg.solve(dense(one), right)
    by_value = structured(A, unit * D, U, unit * np.diag([1.0, -0.01]), 0.1 * unit).factorise()
    by_matrix = structured(unit * A, D, U, np.diag([1.0, -0.01])).factorise()
    without_ridge = np.linalg.solve(dense(structured(A, D, U, np.diag([1.0, -0.01]))), right)
    for factored, wanted, scale in ((by_value, solution, unit), (by_matrix, without_ridge, unit)):
        assert int(factored.result) == Result.SUCCESSFUL
        assert_close(
            np.asarray(factored.solve(jnp.asarray(scale * right, "float32")), np.float64)
            * (scale / unit),
            wanted / (1 if factored is by_value else unit),
            rtol=1e-4,
        )
    sign, log_det = by_matrix.log_determinant()
    wanted = np.linalg.slogdet(dense(structured(A, D, U, np.diag([1.0, -0.01]))))
    assert_close(jnp.stack([sign, log_det]), [wanted[0], wanted[1] + 6 * np.log(unit)], rtol=1e-4)
    matrix_of_it = np.asarray(structured(unit * A, D, U, np.eye(2)).as_matrix())
    assert not np.isnan(matrix_of_it).any()


@pytest.mark.parametrize(("n", "d", "r"), [(2, 2, 1), (20, 5, 2), (6, 1, 1), (3, 3, 3)])
def test_a_low_rank_part_that_outweighs_the_rest(n, d, r, dtype):
    """By up to 10¹²: the solution is right or refused, and along the axes, where rounding is
    harmless, it is right.
    """
    rng = np.random.default_rng(n)
    codes = set()
    for ratio, aligned in itertools.product([1.0, 1e4, 1e8, 1e12], [True, False]):
        A, U = (
            (np.eye(n, d), np.eye(n, r))
            if aligned
            else (rng.normal(size=(n, d)), rng.normal(size=(n, r)))
        )
        op = structured(A, rng.random(n) + 0.5, np.sqrt(ratio) * U, np.eye(r), 0.125, dtype)
        factored = op.factorise()
        codes.add(int(factored.result))
        solution = np.asarray(factored.solve(jnp.ones(d, dtype)), np.float64)
        if int(factored.result) == Result.SUCCESSFUL:
            assert np.linalg.norm(dense(op) @ solution - 1) <= 0.05 * np.sqrt(d)
            assert_close(solution, np.linalg.solve(dense(op), np.ones(d)), rtol=1e-2)
        else:
            assert np.isposinf(solution).all()
        assert not aligned or int(factored.result) == Result.SUCCESSFUL
    assert codes <= {Result.SUCCESSFUL, Result.STAGNATED, Result.NOT_DEFINITE}
    if dtype == "float64":
        assert codes == {Result.SUCCESSFUL}


def test_right_hand_sides_that_cannot_be_met_are_refused_alone():
    """In float32 at a condition of 10⁵: what lies along the stiff direction is solved for, what
    lies across may not be.
    """
    v = np.ones(4) / 2
    op = structured(np.eye(4), np.ones(4), 10**2.3 * v[:, None], np.eye(1))
    rights = np.stack([v, np.array([1.0, -1.0, 0.0, 0.0])], axis=1).astype("float32")
    factored = op.factorise()
    solutions = np.asarray(factored.solve(jnp.asarray(rights)), np.float64)
    residual = np.linalg.norm(dense(op) @ solutions - rights, axis=0)
    assert int(factored.result) == Result.SUCCESSFUL
    assert np.all(residual <= 0.02 * np.linalg.norm(rights, axis=0))
    assert_close(factored.solve(jnp.zeros(4)) + 1, np.ones(4))


def test_what_is_not_finite_says_so():
    for part in ({"D": np.array([1.0, np.inf])}, {"U": np.full((2, 1), np.nan)}):
        op = structured(
            np.eye(2), part.get("D", np.ones(2)), part.get("U", np.ones((2, 1))), np.eye(1)
        )
        assert int(op.factorise().result) == Result.NONFINITE_INPUT
        assert np.isposinf(op.factorise().solve(jnp.ones(2))).all()
        assert not np.isnan(op.as_matrix()).any()


def test_solves_and_determinants_are_differentiated_as_such(x64):
    """Also where columns are zero or alike, so that their QR decomposition has no derivative."""
    A, right = jnp.asarray(matrix(), "float64"), jnp.array([1.0, -1.0, 2.0])
    for U in (np.zeros((12, 2)), np.repeat(matrix(12, 1, seed=1), 2, axis=1)):

        def of(D, M, g, U=U):
            factored = StructuredOperator(A, D, U, M, 0.1).factorise()
            return factored.solve(jnp.asarray(g)), factored.log_determinant()[1]

        check_grads(
            of,
            (jnp.linspace(0.5, 2, 12), 0.1 * jnp.eye(2), right),
            order=1,
            modes=("fwd", "rev"),
            rtol=1e-5,
        )
    batch = jax.vmap(lambda D: StructuredOperator(A, D, U, np.eye(2), 0.1).factorise().solve(right))
    assert_close(
        batch(jnp.ones((2, 12)))[1],
        StructuredOperator(A, jnp.ones(12), U, np.eye(2), 0.1).factorise().solve(right),
    )


def test_scores_have_derivatives_where_weights_vanish_and_singular_values_agree(x64):
    A = jnp.asarray(matrix(8, 3), "float64")
    for rows in (A, jnp.linalg.qr(A)[0]):
        for D in (jnp.ones(8), jnp.ones(8).at[jnp.array([0, 3])].set(0.0)):
            gradient = jax.jacfwd(lambda D, rows=rows: leverage.scores(rows, D))(D)
            step = 1e-5
            moved = [leverage.scores(rows, D.at[i].add(step)) for i in range(8)]
            differences = np.stack(
                [(after - leverage.scores(rows, D)) / step for after in moved], axis=1
            )
            assert_close(gradient, differences, rtol=1e-3)
            assert_close(jax.jacrev(lambda D, rows=rows: leverage.scores(rows, D))(D), gradient)
    check_grads(
        leverage.scores, (A, jnp.linspace(0.5, 1.5, 8)), order=1, modes=("fwd", "rev"), rtol=1e-5
    )
    assert np.isfinite(jax.grad(lambda D: leverage.scores(A, D)[0])(jnp.zeros(8))).all()


def everything(dtype):
    """One call of each routine, and what must be of the dtype of the matrix."""
    A, D = jnp.asarray(matrix(600, 3), dtype), jnp.linspace(0.1, 1, 600, dtype=dtype)
    op = StructuredOperator(
        A, D, jnp.ones((600, 2), dtype), jnp.eye(2, dtype=dtype), jnp.asarray(0.5, dtype)
    )
    sample = sketch.draw(KEY, sketch.probabilities("approximate_leverage", A, D), 50)
    factored = op.factorise()
    return {
        "scores": leverage.scores(A, D),
        "approximate": leverage.approximate_scores(KEY, A, directions=2),
        "uniform": sketch.probabilities("uniform", A),
        "row_norm": sketch.probabilities("row_norm", A, D),
        "scales": sample.scales,
        "gram": sample.gram(A, D),
        "sketched": sketch.sketched(op, sample).as_matrix(),
        "distortion": sketch.distortion(op, op.as_matrix()),
        "matrix": op.as_matrix(),
        "product": op.mv(jnp.ones(3, dtype)),
        "diagonal": op.diagonal(),
        "positive": op.positive_part().as_matrix(),
        "solution": factored.solve(jnp.ones(3, dtype)),
        "log determinant": factored.log_determinant()[1],
        "sum": weighted_sum([op, op], [1.0, 2.0]).as_matrix(),
    }


@pytest.mark.parametrize("wide", slow_except([False, True], True))
def test_strict_promotion_and_float32_beside_float64(wide):
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        for name, value in everything("float32").items():
            assert value.dtype == jnp.float32, name
    with jax.enable_x64(True):
        for name, value in everything("float64").items():
            assert value.dtype == jnp.float64, name
