"""What no routine of the curvature can use is refused by the name of the argument, or converted."""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import assert_close
from jax.experimental import sparse

import softntk as sn
from softntk._linalg import design_matrix
from softntk.curvature import leverage, sketch
from softntk.curvature.structured import StructuredOperator, factorise, positive_part, weighted_sum

A = np.arange(6.0).reshape(3, 2)
KEY = jax.random.key(0)
SAMPLE = sketch.Sample(indices=jnp.arange(3), scales=jnp.ones(3))
# The index 3 stands for no row of three only where its scale is zero.
LAST_ROW = sketch.Sample(indices=jnp.array([0, 3]), scales=jnp.ones(2))
BAD_MATRICES = {
    "nothing": None,
    "a name": "A",
    "a dictionary": {"a": 1.0},
    "complex numbers": A * 1j,
    "Booleans": A > 0,
    "words": np.array([["1", "2"]]),
    "a ragged list": [[1.0, 2.0], [3.0]],
    "objects": np.array([[None, 1.0]]),
    "integers": A.astype(int),
    "a vector": A[0],
    "NaN": A * np.nan,
    "a sparse matrix of SciPy": scipy.sparse.csr_matrix(A),
    "numbers beyond float32": A * 1e300,
}
BAD_WEIGHTS = {
    "negative": -np.ones(3),
    "NaN": np.full(3, np.nan),
    "complex": np.ones(3) * 1j,
    "words": np.array(["1", "2", "3"]),
    "Booleans": np.ones(3, bool),
    "too few": np.ones(2),
    "a column": np.ones((3, 1)),
    "beyond float32": np.full(3, 1e300),
    "a name": "weights",
}


def operator(**changes):
    parts = {
        "matrix": A,
        "logit_diagonal": np.ones(3),
        "factors": np.ones((3, 1)),
        "core": np.eye(1),
    }
    return StructuredOperator(**(parts | changes))


@pytest.mark.parametrize("kind", BAD_MATRICES)
def test_matrices(kind, untyped):
    bad = BAD_MATRICES[kind]
    for call in (
        leverage.scores,
        lambda bad: leverage.approximate_scores(KEY, bad),
        lambda bad: sketch.probabilities("row_norm", bad),
        SAMPLE.gram,
    ):
        with pytest.raises(ValueError, match=r"^A(\.data)? must"):
            call(bad)


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights(kind, untyped):
    bad = BAD_WEIGHTS[kind]
    for call in (
        lambda: leverage.scores(A, bad),
        lambda: leverage.approximate_scores(KEY, A, bad),
        lambda: sketch.probabilities("row_norm", A, bad),
    ):
        with pytest.raises(ValueError, match="^weights must"):
            call()


HALF = jnp.ones((3, 2), jnp.bfloat16)
HALF_OPERATOR = StructuredOperator(HALF, np.ones(3), np.ones((3, 1)), np.eye(1))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: leverage.scores(HALF), "A must be float32 or float64"),
        (lambda: leverage.approximate_scores(KEY, HALF), "A must be float32 or float64"),
        (
            lambda: sketch.probabilities("leverage", HALF.astype("float16")),
            "A must be float32 or float64",
        ),
        (lambda: factorise(HALF_OPERATOR), "op must be float32 or float64"),
        (lambda: HALF_OPERATOR.positive_part(), "op must be float32 or float64"),
        (
            lambda: sketch.distortion(HALF[:2].T @ HALF[:2], jnp.eye(2)),
            "approximate must be float32 or float64",
        ),
        (lambda: sketch.draw(KEY, jnp.full(2, 0.5, "float16"), 3), "pi must be float32 or float64"),
        (lambda: leverage.approximate_scores(0, A), "key must be a random key"),
        (lambda: leverage.approximate_scores(KEY, A, rows=True), "rows must be"),
        (lambda: leverage.approximate_scores(KEY, A, rows=2.5), "rows must be"),
        (lambda: leverage.approximate_scores(KEY, A, directions="many"), "directions must be"),
        (lambda: sketch.probabilities(["leverage"], A), "kind must be one of"),
        (lambda: sketch.probabilities(None, A), "kind must be one of"),
        (
            lambda: sketch.probabilities("approximate_leverage", A, key=3),
            "key must be a random key",
        ),
        (lambda: sketch.draw(0, np.ones(2) / 2, 3), "key must be a random key"),
        (lambda: sketch.draw(jax.random.split(KEY), np.ones(2) / 2, 3), "key must be one key"),
        (lambda: sketch.draw(KEY, np.array([1.5, -0.5]), 3), "pi must not be negative"),
        (lambda: sketch.draw(KEY, np.array([np.nan, 1.0]), 3), "pi must be finite"),
        (lambda: sketch.draw(KEY, np.ones(2), 3), "pi must sum to one, got 2"),
        (lambda: sketch.draw(KEY, np.zeros(2), 3), "pi must sum to one, got 0"),
        (lambda: sketch.draw(KEY, np.ones((1, 1)), 3), "pi must have shape"),
        (lambda: sketch.draw(KEY, np.ones(0), 3), "pi must not be empty"),
        (lambda: sketch.draw(KEY, np.array([1, 0]), 3), "pi must be a floating-point array"),
        (lambda: sketch.draw(KEY, "uniform", 3), "pi must be an array"),
        (lambda: sketch.draw(KEY, np.ones(2) / 2, 3.0), "size must be a positive integer"),
        (lambda: sketch.draw(KEY, np.ones(2) / 2, True), "size must be a positive integer"),
        (lambda: SAMPLE.gram(A, np.ones(2)), "weights must have shape"),
        (lambda: SAMPLE.gram(A[:1]), "A must have the rows"),
        (lambda: LAST_ROW.gram(A), "A must have the rows"),
        (lambda: sketch.sketched(operator(), LAST_ROW), "op must have the rows"),
        (lambda: sketch.sketched(A, SAMPLE), "op must be a StructuredOperator"),
        (lambda: sketch.sketched(operator(), np.arange(3)), "sample must be"),
        (
            lambda: sketch.distortion(np.eye(2), np.eye(3)),
            "approximate must have the shape of exact",
        ),
        (lambda: sketch.distortion(np.ones((2, 3)), np.eye(2)), "approximate must be square"),
        (
            lambda: sketch.distortion(np.eye(2), np.array([[1.0, 1.0], [0.0, 1.0]])),
            "exact must be symmetric",
        ),
        (lambda: sketch.distortion(None, np.eye(2)), "approximate must be an array"),
        (lambda: sketch.distortion(np.eye(2), np.eye(2) * np.nan), "exact must be finite"),
        (lambda: positive_part(3), "op must be a StructuredOperator, .* got int"),
        (lambda: factorise(np.eye(2)), "op must be a StructuredOperator, .* got ndarray"),
        (lambda: operator(matrix=None), "matrix must be an array"),
        (lambda: operator(logit_diagonal=np.ones(2)), r"logit_diagonal must have shape \[3\]"),
        (lambda: operator(logit_diagonal=np.ones(3) * 1j), "logit_diagonal must be real"),
        (lambda: operator(factors=np.ones((2, 1))), "factors must have shape"),
        (lambda: operator(factors=np.ones(3)), "factors must have shape"),
        (lambda: operator(core=np.eye(2)), r"core must have shape \[1, 1\]"),
        (lambda: operator(ridge="small"), "ridge must be a finite number"),
        (lambda: operator(ridge=np.nan), "ridge must be a finite number"),
        (lambda: operator(ridge=1e300), "ridge must be finite in float32"),
        (lambda: operator(positive_semidefinite=1), "positive_semidefinite must be True or False"),
        (lambda: operator().with_ridge(None), "ridge must be a finite number"),
        (lambda: operator().with_ridge(1j), "ridge must be a finite number"),
        (lambda: operator().mv(np.ones(2) * 1j), "vector must be real numbers"),
        (lambda: operator().mv(np.array(["1", "2"])), "vector must be real numbers"),
        (lambda: operator().mv(np.ones(2, bool)), "vector must be real numbers"),
        (lambda: operator().mv(np.ones((2, 1))), r"vector must have shape \[2\]"),
        (lambda: operator().mm(np.ones(2)), "vectors must have shape"),
        (lambda: operator().factorise().solve(np.ones(3)), "right must have shape"),
        (lambda: operator().factorise().solve(np.ones((2, 1, 1))), "right must have shape"),
        (lambda: operator().factorise().solve("right"), "right must be an array"),
        (lambda: weighted_sum(operator(), [1.0]), "operators must be a list"),
        (lambda: weighted_sum([], []), "operators must be a list"),
        (
            lambda: weighted_sum([operator(), 3], [1.0, 1.0]),
            r"operators\[1\] must be a StructuredOperator",
        ),
        (lambda: weighted_sum([operator()], 1.0), "weights must have shape"),
        (lambda: weighted_sum([operator()], [np.nan]), r"weights\[0\] must be a finite number"),
        (lambda: weighted_sum([operator()], ["1"]), r"weights\[0\] must be a finite number"),
        (lambda: weighted_sum([operator()], np.array([1j])), "weights must be real"),
    ],
)
def test_the_message_names_the_argument(call, name, untyped):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()


def bcoo(indices, **flags):
    return sparse.BCOO((jnp.ones(len(indices)), jnp.array(indices)), shape=(3, 2), **flags)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (bcoo([[0, 0], [7, 1]]), r"A.indices must lie in \[0, 3\) and \[0, 2\)"),
        (bcoo([[0, 0], [-1, 1]]), "A.indices must lie in"),
        (bcoo([[0, 0], [1, 5]]), "A.indices must lie in"),
        (bcoo([[1, 0], [0, 1]], indices_sorted=True), "A.indices must be sorted"),
        (bcoo([[0, 1], [0, 0]], indices_sorted=True), "A.indices must be sorted"),
        (
            bcoo([[0, 1], [0, 1]], indices_sorted=True, unique_indices=True),
            "A.indices must be unique",
        ),
        (bcoo([[0, 1], [2, 0], [0, 1]], unique_indices=True), "A.indices must be unique"),
    ],
)
def test_sparse_matrices_that_are_not_what_they_say(matrix, message, untyped):
    for call in (leverage.scores, lambda A: sn.regression.softmax(A, np.ones(3) / 3)):
        with pytest.raises(ValueError, match=message):
            call(matrix)


def test_sparse_matrices_with_padding_and_duplicates(x64):
    padded = sparse.BCOO.fromdense(jnp.asarray(A), nse=9)
    assert_close(leverage.scores(padded), leverage.scores(A))
    twice = sparse.BCOO((jnp.ones(3), jnp.array([[0, 0], [0, 0], [1, 1]])), shape=(3, 2))
    assert_close(leverage.scores(twice), [1.0, 1.0, 0.0])
    assert_close(sketch.probabilities("row_norm", twice), [0.8, 0.2, 0.0])
    assert_close(leverage.scores(sparse.BCOO.fromdense(jnp.asarray(A)).T), leverage.scores(A.T))


def test_what_is_converted(x64, untyped):
    wanted = leverage.scores(A, np.array([1.0, 2.0, 3.0]))
    for matrix in (
        A.tolist(),
        pd.DataFrame(A, columns=["a", "b"]),
        jnp.asarray(A),
        lx.MatrixLinearOperator(jnp.asarray(A)),
    ):
        for weights in (np.array([1.0, 2.0, 3.0]), [1, 2, 3], pd.Series([1.0, 2.0, 3.0])):
            assert_close(leverage.scores(matrix, weights), wanted)
    assert_close(
        sketch.draw(KEY, [0.5, 0.5], 4).scales, sketch.draw(KEY, jnp.array([0.5, 0.5]), 4).scales
    )
    same = operator(matrix=A.tolist(), logit_diagonal=[1, 1, 1], ridge=np.float32(0.5))
    assert_close(same.mv([1, 2]), operator(ridge=0.5).mv(jnp.array([1.0, 2.0])))
    assert_close(
        same.factorise().solve([1, 2]), np.linalg.solve(operator(ridge=0.5).as_matrix(), [1.0, 2.0])
    )
    assert_close(weighted_sum((same,), [np.float32(2)]).as_matrix(), 2 * same.as_matrix())


def test_draws_of_numpy_probabilities_in_the_precision_of_jax():
    for given in (np.array([0.5, 0.5], "float32"), np.array([0.25, 0.75])):
        sample = sketch.draw(KEY, given, 3)
        assert sample.scales.dtype == jnp.float32
        assert np.isfinite(sample.scales).all()


def test_numbers_that_may_be_traced(x64):
    op, weights = operator(ridge=0.1), jnp.array([1.0, 2.0, 3.0])
    right = jnp.ones(2)
    solve = lambda ridge: jnp.sum(op.with_ridge(ridge).factorise().solve(right))
    step = 1e-5
    assert_close(
        jax.jit(jax.grad(solve))(0.3),
        (solve(0.3 + step) - solve(0.3 - step)) / (2 * step),
        rtol=1e-6,
    )
    assert_close(jax.jit(lambda w: leverage.scores(A, w))(weights), leverage.scores(A, weights))
    assert_close(
        jax.jit(lambda c: weighted_sum([op, op], c).as_matrix())(weights[:2]), 3 * op.as_matrix()
    )
    by_weights = jax.vmap(lambda w: sketch.probabilities("row_norm", A, w))(
        jnp.stack([weights, 0 * weights])
    )
    assert_close(by_weights[1], np.full(3, 1 / 3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("half", [True, False])
def test_half_precision_where_nothing_is_factorised(dtype, half):
    matrix = jnp.ones((3, 2), dtype)
    if half or dtype == "float32":
        assert design_matrix.check_design_matrix("A", matrix, half=half).dtype == dtype
    else:
        with pytest.raises(ValueError, match="A must be float32 or float64"):
            design_matrix.check_design_matrix("A", matrix, half=half)
