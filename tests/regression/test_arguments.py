"""What no regression can use is refused by the name of the argument, or converted."""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import assert_close
from jax.experimental import sparse

import softntk as sn
from softntk.regression import _bounds
from softntk.regression._attention import AttentionParameters

A, B, X = np.arange(6.0).reshape(3, 2) / 6, np.full(3, 1 / 3), np.array([0.5, -0.5])
NO_NUMBERS = {
    "nothing": None,
    "a name": "x",
    "a dictionary": {"a": 1.0},
    "complex": np.array([1j, 2j]),
    "words": np.array(["1", "2"]),
    "Booleans": np.array([True, False]),
    "objects": np.array([1.0, None]),
    "a matrix": np.ones((2, 1)),
    "too long": np.ones(3),
    "ragged": [[1.0], [1.0, 2.0]],
    "beyond float32": np.array([1e300, 0.0]),
}
softmax = sn.regression.softmax
PROBLEM = softmax(A, B)
ATTENTION = sn.regression.attention(np.eye(2), np.eye(2), np.eye(2))
TWO_LAYER = sn.regression.two_layer(np.eye(2), np.eye(2), np.ones(2) / 2)
LEVERAGE = sn.regression.leverage(np.array([[1.0], [2.0]]), np.ones(2) / 2)


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_points(kind, untyped):
    bad = NO_NUMBERS[kind]
    for method in (
        "__call__",
        "logits",
        "predict",
        "residual",
        "gradient",
        "value_and_gradient",
        "hessian",
        "check",
    ):
        with pytest.raises(ValueError, match=r"^x must"):
            getattr(PROBLEM, method)(bad)
    for method in ("__call__", "predict", "gradient", "hessian", "gauss_newton", "check"):
        for p in (ATTENTION, TWO_LAYER):
            with pytest.raises(ValueError, match=r"^x must"):
                getattr(p, method)(bad)
        with pytest.raises(ValueError, match=r"^t must"):
            getattr(LEVERAGE, method)(bad)
    if bad is not None:
        with pytest.raises(ValueError, match=r"^previous must"):
            PROBLEM.check(X, previous=bad)
    with pytest.raises(ValueError, match=r"^vector must"):
        PROBLEM.hessian(X).mv(bad)


def test_points_that_are_converted(x64, untyped):
    for p in (PROBLEM, TWO_LAYER, LEVERAGE):
        p = jax.tree.map(lambda leaf: leaf.astype("float64"), p)
        for x in (
            [1, 2],
            (1.0, 2.0),
            np.array([1, 2]),
            pd.Series([1.0, 2.0]),
            np.array([1, 2], "float16"),
        ):
            if not hasattr(p, "structure") or not isinstance(
                x, list | tuple
            ):  # a list is another pytree
                assert_close(p.gradient(x), p.gradient(jnp.array([1.0, 2.0])))


def test_data_that_are_converted(x64, untyped):
    wanted = softmax(A, B, weights=np.array([1.0, 2.0, 3.0])).gradient(X)
    for matrix in (
        A.tolist(),
        pd.DataFrame(A, columns=["a", "b"]),
        sparse.BCOO.fromdense(jnp.asarray(A)),
    ):
        assert_close(softmax(matrix, B.tolist(), weights=[1, 2, 3]).gradient(X), wanted)
    assert_close(softmax(A, pd.Series(B), weights=np.int64(2))(X), softmax(A, B, weights=2.0)(X))
    assert_close(sn.regression.attention([[1.0]], [[2.0]], [[1.0]])([[0.5]]), 0.0)


NUMBERS = {
    "b": [
        (None, "must be an array"),
        ("b", "must be an array"),
        (B * 1j, "must be real"),
        (B > 0, "must be real"),
        (B[:, None], r"must have shape \[3\]"),
        (B[:2], r"must have shape \[3\]"),
        (np.ones(3, int), "must be a floating-point"),
        (B * np.nan, "must be finite"),
        (B * 1e300, "must be finite in float32"),
    ],
    "weights": [
        (None, "must be an array"),
        ("0.1", "must be an array"),
        (True, "must be real"),
        (1j, "must be real"),
        (-1, "must not be negative"),
        (-B, "must not be negative"),
        (np.nan, "must be finite"),
        (1e300, "must be finite in float32"),
        (np.ones(2), r"must be a scalar or have shape \[3\]"),
        (np.ones((3, 1)), r"must be a scalar or have shape \[3\]"),
    ],
    "activation": [
        (["exp"], "must be one of"),
        (None, "must be one of"),
        (3, "must be one of"),
        (np.exp, "must be one of"),
    ],
    "form": [(["plain"], "must be one of"), (None, "must be one of"), ({}, "must be one of")],
    "A": [
        (None, "must be an array"),
        ("A", "must be an array"),
        (A * 1j, "must be real"),
        (A > 0, "must be real"),
        (A[0], r"must have shape \[n, d\]"),
        (A * 1e300, "must be finite in float32"),
        ([[1, 2]], "must be a floating-point"),
        (
            scipy.sparse.eye(3).tocoo(),
            "must be an array, a jax.experimental.sparse.BCOO .*from_scipy_sparse",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "bad", "message"), [(name, *case) for name, cases in NUMBERS.items() for case in cases]
)
def test_data(name, bad, message, untyped):
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        sn.regression.problem(**({"A": A, "b": B} | {name: bad}))


E2 = np.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sn.regression.hyperbolic(A, B, ["cosh"]), "kind must be one of"),
        (lambda: sn.regression.attention(None, E2, E2), "A1 must be an array"),
        (lambda: sn.regression.attention(E2, E2 * 1j, E2), "A2 must be real"),
        (lambda: sn.regression.attention(E2, E2, np.ones(2)), "B must have shape"),
        (lambda: sn.regression.attention(E2, E2, E2.astype(int)), "B must be a floating-point"),
        (
            lambda: sn.regression.attention(E2, E2, E2, weights=np.ones(2)),
            "weights must be a scalar",
        ),
        (lambda: sn.regression.attention(E2, E2, E2, weights=np.nan), "weights must be finite"),
        (lambda: sn.regression.attention(E2, E2, E2, weights="w"), "weights must be an array"),
        (
            lambda: sn.regression.attention(E2, E2, E2, activation=["exp"]),
            "activation must be one of",
        ),
        (lambda: sn.regression.attention(E2, E2, E2, values="A3"), "values must be an array"),
        (
            lambda: sn.regression.attention(E2, E2, np.ones((3, 1)), values=E2),
            r"B must have shape \[2, k\]",
        ),
        (lambda: ATTENTION.hessian(E2).mv(np.ones(4)), r"vector must have shape \[2, 2\]"),
        (lambda: sn.regression.two_layer(E2, None, B), "A2 must be an array"),
        (lambda: sn.regression.two_layer(E2, E2, np.ones((2, 1))), r"b must have shape \[2\]"),
        (
            lambda: sn.regression.two_layer(E2, E2, np.ones(2), weights=np.ones(3)),
            "weights must be a scalar or have shape",
        ),
        (lambda: sn.regression.two_layer(E2, E2, np.ones(2), inner=None), "inner must be one of"),
        (
            lambda: sn.regression.two_layer(E2, E2, np.ones(2), outer=["softmax"]),
            "outer must be one of",
        ),
        (
            lambda: sn.regression.leverage(E2.astype("float16"), np.ones(2)),
            "A must be float32 or float64",
        ),
        (
            lambda: sn.regression.leverage(scipy.sparse.eye(2), np.ones(2)),
            "A must be a dense array",
        ),
        (lambda: sn.regression.leverage(E2, np.ones((2, 1))), r"target must have shape \[2\]"),
        (lambda: sn.regression.leverage(E2, None), "target must be an array"),
        (lambda: _bounds.lipschitz(None, 1.0), "p must be a regression, .* got NoneType"),
        (lambda: _bounds.lipschitz(ATTENTION, 1.0), "p must be a regression, .* got Attention"),
        (lambda: _bounds.normaliser(1.0, PROBLEM), "p must be a regression, .* got float"),
        (lambda: _bounds.normaliser(PROBLEM, -1.0), "radius must be a positive"),
        (lambda: _bounds.normaliser(PROBLEM, True), "radius must be a positive"),
        (lambda: _bounds.normaliser(PROBLEM, 1.0, np.ones(3)), r"centre must have shape \[2\]"),
        (lambda: _bounds.normaliser(PROBLEM, 1.0, "0"), "centre must be an array"),
        (lambda: _bounds.lipschitz(PROBLEM, np.nan), "radius must be a positive"),
        (lambda: _bounds.lipschitz(PROBLEM, None), "radius must be a positive"),
        (lambda: _bounds.lipschitz(PROBLEM, 1.0, np.array([np.nan, 0.0])), "centre must be finite"),
        (lambda: _bounds.lipschitz(PROBLEM, 1.0, exponents=2.0), "exponents must be three numbers"),
        (
            lambda: _bounds.lipschitz(PROBLEM, 1.0, exponents=(1.0, 2.0)),
            "exponents must be three numbers",
        ),
        (
            lambda: _bounds.lipschitz(PROBLEM, 1.0, exponents=(1.0, "x", 2.0)),
            r"exponents\[1\] must be",
        ),
        (lambda: _bounds.convexity_weight(PROBLEM, "x"), "strength must be a positive"),
        (lambda: _bounds.convexity_weight(PROBLEM, -1.0), "strength must be a positive"),
        (lambda: _bounds.convexity_weight(PROBLEM, 1.0, radius=-1.0), "radius must be a positive"),
        (lambda: _bounds.convexity_weight(PROBLEM, 1.0, radius="x"), "radius must be a positive"),
        (lambda: _bounds.convexity_weight(PROBLEM, 1.0, constant=np.nan), "constant must be"),
        (lambda: _bounds.convexity_weight(PROBLEM, 1.0, constant=-1.0), "constant must be"),
        (
            lambda: _bounds.convexity_weight(softmax(A.astype("float16"), B), 1.0),
            "p must be float32 or float64",
        ),
        (
            lambda: jax.jit(lambda b: _bounds.lipschitz(softmax(A, b), 1.0).predict.ours)(B),
            "p must not be traced",
        ),
        (
            lambda: jax.jit(lambda r: _bounds.lipschitz(PROBLEM, r).predict.ours)(1.0),
            "radius must not be traced",
        ),
    ],
)
def test_the_message_names_the_argument(call, message, untyped):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_leaves_of_pytrees_are_named(untyped):
    p = sn.regression.attention(E2, E2, np.ones((2, 1)), values=E2)
    with pytest.raises(ValueError, match=r"^x\.y must have shape \[2, 1\]"):
        p(AttentionParameters(x=E2, y=E2))
    with pytest.raises(ValueError, match=r"^x\.x must be real"):
        p.gradient(AttentionParameters(x=E2 * 1j, y=np.ones((2, 1))))
    with pytest.raises(ValueError, match=r"^x must have the structure"):
        p(E2)


def test_values_beyond_the_precision_of_a_float32_matrix_beside_float64(x64, untyped):
    with pytest.raises(ValueError, match="^b must be finite in float32, got 1 entries beyond"):
        softmax(A.astype("float32"), np.array([1e300, 0.0, 0.0]))
    p = softmax(A.astype("float32"), B)
    with pytest.raises(ValueError, match="^x must be finite in float32"):
        p(np.array([1e300, 0.0]))
    assert int(p.check(np.array([np.inf, 0.0]))) == sn.solution.Result.NONFINITE_INPUT
    for value in (
        p(X),
        p.gradient(X),
        p.predict(X),
        p.hessian(X).as_matrix(),
        p.hessian(X).factorise().solve(X),
    ):
        assert value.dtype == jnp.float32


def test_problems_are_hashed_and_compared_by_identity():
    """As functions are: they hold arrays, which have no hash."""
    one, two = (sn.regression.softmax(np.eye(2), np.full(2, 0.5)) for _ in range(2))
    assert {one: 1, two: 2}[one] == 1
    assert one == one
    assert one != two
