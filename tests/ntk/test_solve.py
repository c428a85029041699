"""Preconditioned conjugate gradients against dense float64 solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, points

import softntk as sn
from softntk.networks import two_layer
from softntk.ntk._solve.arguments import as_key
from softntk.ntk._solve.preconditioner import make_preconditioner, pivoted_cholesky
from softntk.solution import NumericalError, Result

NET = two_layer("softmax", width=2)


def data(kind, n=200, d=6):
    rng = np.random.default_rng(0)
    if kind == "clustered":
        return (
            (rng.normal(size=(8, d)) / d**0.5)[rng.integers(0, 8, n)]
            + 0.02 * rng.normal(size=(n, d))
        ).astype(np.float32)
    return np.asarray(points(0, n, d, "float32"))


def dense_solution(x, y, ridge):
    with jax.enable_x64(True):
        kernel = np.asarray(NET.kernel_fn(np.asarray(x, np.float64), None, "ntk"))
    return kernel, np.linalg.solve(kernel + ridge * np.eye(len(x)), np.asarray(y, np.float64))


@pytest.mark.parametrize("kind", ["even", "clustered"])
def test_refined_solve_equals_the_dense_one_in_float64(kind):
    x, y = data(kind), points(1, 200, 3, "float32")
    op, ridge = sn.ntk.kernel_operator(NET.kernel_fn, x), 3e-3
    kernel, desired = dense_solution(x, y, ridge)
    sol = sn.ntk.solve(op, y, ridge=ridge, rtol=1e-7, refine=True)
    assert sol.value.dtype == np.float64
    assert_close(sol.value, desired, rtol=1e-5)
    # The residual is the true one: recomputed here with the dense matrix.
    left = np.asarray(y, float) - (kernel + ridge * np.eye(200)) @ np.asarray(sol.value)
    true = np.max(np.linalg.norm(left, axis=0) / np.linalg.norm(y, axis=0))
    assert true < 1e-7
    assert abs(sol.stats["residual"] / true - 1) < 0.01
    plain = sn.ntk.solve(op, y, ridge=ridge, rtol=1e-7, refine=True, rank=0, throw=False)
    assert sol.stats["steps"] < 0.5 * plain.stats["steps"]


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_steps_are_those_of_plain_conjugate_gradients(size, x64):
    """Without a preconditioner, down to half of the tolerance relative to the right-hand side,
    whatever its size.
    """
    A = np.asarray(points(0, 30, 30))
    y = size * np.random.default_rng(1).normal(size=30)
    K = A @ A.T + 0.1 * np.eye(30)
    residual = direction = y
    steps = 0
    while np.linalg.norm(residual) > 0.5 * 0.03 * np.linalg.norm(y):
        length = residual @ residual / (direction @ K @ direction)
        later = residual - length * K @ direction
        direction = later + later @ later / (residual @ residual) * direction
        residual = later
        steps += 1
    sol = sn.ntk.solve(
        sn.ntk.kernel_operator(lambda a, b: a @ b.T, A), y, ridge=0.1, rtol=0.03, rank=0
    )
    assert int(sol.stats["steps"]) == steps


def test_empirical_kernel_and_one_right_hand_side(x64):
    net = two_layer("softmax", width=64, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 5))
    x, y = points(0, 20, 5), points(1, 20, 2)
    op = sn.ntk.operator(net, params, x)
    sol = sn.ntk.solve(op, y, ridge=0.1)
    matrix = np.asarray(op.as_matrix()) + 0.1 * np.eye(40)
    assert_close(
        sol.value.reshape(40), np.linalg.solve(matrix, np.asarray(y).reshape(40)), rtol=1e-8
    )


def test_pivoted_cholesky_is_exact_on_its_rank(x64):
    """A kernel of rank 6 and with equal points: the factor explains everything, and repeats
    nothing.
    """
    x = np.repeat(np.asarray(points(0, 30, 6)), 2, axis=0)
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, x)
    factor, left = pivoted_cholesky(op, jax.random.key(0), 16, 8)
    assert_close(factor @ factor.T, x @ x.T, rtol=1e-8)
    assert float(jnp.max(left)) < 1e-8


def test_a_preconditioner_is_the_inverse_of_its_factors(x64):
    """Of a kernel of rank two: P = K + δI, for which two rows are enough."""
    x = np.random.default_rng(0).normal(size=(12, 2))
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, jnp.asarray(x))
    inverse = make_preconditioner(op, jax.random.key(0), 4, jnp.asarray(0.1))
    v = np.random.default_rng(1).normal(size=(12, 3))
    assert_close(inverse(jnp.asarray(v)), np.linalg.solve(x @ x.T + 0.1 * np.eye(12), v), rtol=1e-9)


def test_the_default_key_is_that_of_zero():
    default, zero = (jax.random.key_data(key) for key in (as_key(None), jax.random.key(0)))
    assert np.array_equal(default, zero)


def test_a_kernel_that_is_indefinite_by_its_errors_is_still_preconditioned(x64):
    """Eigenvalues of −0.05, as inaccurate entries make them, and a right-hand side that does not
    see them.
    """
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    matrix = jnp.asarray(basis @ np.diag([1.0] * 9 + [-0.05] * 3) @ basis.T)
    op = sn.ntk.kernel_operator(lambda a, b: a @ matrix @ b.T, np.eye(12))
    y = basis[:, :9] @ np.ones(9)
    sol = sn.ntk.solve(op, y, ridge=0.01)
    assert_close(sol.value, y / 1.01, rtol=1e-8)


def test_what_cannot_be_reached_says_so():
    x, y = data("clustered"), points(1, 200, 1, "float32")
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    with pytest.raises(NumericalError, match="STAGNATED.*refine=True"):
        sn.ntk.solve(op, y, ridge=1e-5, rtol=3e-6)
    sol = sn.ntk.solve(op, y, ridge=1e-5, max_steps=3, rank=0, throw=False)
    assert Result(int(sol.result)) is Result.MAX_STEPS
    assert sol.stats["steps"] == 3
    assert np.isfinite(sol.value).all()


def test_ends_when_no_step_is_made(monkeypatch):
    """A residual at its goal up to rounding: the loop on the device has ended, and the one around
    it must too.
    """
    from softntk.ntk._solve import restarts

    monkeypatch.setattr(restarts, "advance", lambda op, ridge, inverse, state, goals, steps: state)
    op = sn.ntk.kernel_operator(NET.kernel_fn, data("even", n=10))
    sol = sn.ntk.solve(op, np.ones(10, np.float32), ridge=0.1, throw=False)
    assert Result(int(sol.result)) is Result.STAGNATED
    assert sol.stats["steps"] == 0


def test_interrupt_returns_the_best_so_far(monkeypatch):
    from softntk.ntk._solve import restarts

    whole, calls = restarts.advance, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(restarts, "advance", interrupted)
    x, y = data("clustered"), points(1, 200, 1, "float32")
    sol = sn.ntk.solve(sn.ntk.kernel_operator(NET.kernel_fn, x), y, ridge=1.0, rank=0, refine=True)
    assert Result(int(sol.result)) is Result.INTERRUPTED
    assert 0 < sol.stats["residual"] < 1


def test_bad_input(untyped):
    op = sn.ntk.kernel_operator(NET.kernel_fn, data("even", n=10))
    y = np.ones(10, np.float32)
    for change, message in [
        ({"op": np.eye(10, dtype=np.float32)}, "op must be an operator.*got ndarray"),
        ({"ridge": -1.0}, "ridge must be a finite number (of )?at least 0, got -1.0"),
        ({"rtol": 1e-9}, "rtol must lie between.*refine=True"),
        ({"rtol": 1.0}, "rtol must lie between"),
        ({"rank": 11}, "rank must lie between 0 and the size 10"),
        ({"max_steps": 0}, "max_steps must be a positive integer"),
        ({"y": y[:9]}, r"y must have shape \(10,\)"),
        ({"y": y * np.nan}, "y must be finite"),
        ({"y": y.astype(int)}, "y must be a floating-point array"),
    ]:
        with pytest.raises(ValueError, match=message):
            sn.ntk.solve(**{"op": op, "y": y, "ridge": 0.1, **change})


@pytest.mark.parametrize("refine", [False, True])
def test_units_of_the_right_hand_sides(refine):
    """Columns of very different units, one of zeros: each is solved for as if it were alone."""
    x = np.asarray(points(0, 12, 3, "float32"))
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    units = np.array([1.0, 1e-30, 1e20, 1e30, 0.0, 1e-25])
    y = (np.asarray(points(1, 12, 1, "float32"), np.float64) * units).astype(np.float32)
    kernel, desired = dense_solution(x, y, 0.1)
    sol = sn.ntk.solve(op, y, ridge=0.1, refine=refine)
    value = np.asarray(sol.value, np.float64)
    for column, unit in enumerate(units):
        assert_close(
            value[:, column] / (unit or 1.0), desired[:, column] / (unit or 1.0), rtol=1e-5
        )
    residual = ((kernel + 0.1 * np.eye(12)) @ value - y) / np.where(units > 0, units, 1)
    true = np.max(np.linalg.norm(residual, axis=0) / np.linalg.norm(y[:, 0]))
    assert 0.1 * true < sol.stats["residual"] < 1e-5
    assert not np.asarray(sn.ntk.solve(op, np.zeros(12, np.float32), ridge=0.1).value).any()


@pytest.mark.parametrize("rank", [0, 4, None])
@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_of_the_kernel(unit, rank):
    x, y = np.asarray(points(0, 12, 12, "float32")), np.asarray(points(1, 12, 1, "float32"))[:, 0]
    op = sn.ntk.kernel_operator(lambda a, b: np.float32(unit) * (a @ b.T), x)
    value = np.asarray(sn.ntk.solve(op, y, ridge=0.1 * unit, rank=rank).value, np.float64)
    desired = np.linalg.solve(np.asarray(x, float) @ np.asarray(x, float).T + 0.1 * np.eye(12), y)
    assert_close(value * unit, desired, rtol=1e-4)


def test_what_does_not_fit_the_precision_says_so():
    op = sn.ntk.kernel_operator(
        lambda a, b: np.float32(1e25) * (a @ b.T), np.eye(3, dtype=np.float32)
    )
    sol = sn.ntk.solve(op, np.full(3, 1e-25, np.float32), throw=False)  # 1e-50
    assert Result(int(sol.result)) is Result.STAGNATED
    assert sol.stats["residual"] > 0.5
    op = sn.ntk.kernel_operator(
        lambda a, b: np.float32(1e-25) * (a @ b.T), np.eye(3, dtype=np.float32)
    )
    sol = sn.ntk.solve(op, np.full(3, 1e25, np.float32), throw=False)  # 1e50
    assert Result(int(sol.result)) is Result.NONFINITE_PRODUCT


@pytest.mark.parametrize("traced", [False, True])
def test_a_singular_kernel_is_not_solved(traced):
    """Zeros, and a direction of negative curvature, without a ridge."""
    for matrix in (np.zeros((4, 4)), np.diag([1.0, 1.0, 1.0, -1.0])):
        matrix = matrix.astype(np.float32)
        op = sn.ntk.kernel_operator(lambda a, b, m=matrix: a @ m @ b.T, np.eye(4, dtype=np.float32))
        solve = lambda y, op=op: sn.ntk.solve(op, y, rank=0, throw=False)
        sol = (jax.jit(solve) if traced else solve)(np.eye(4, dtype=np.float32)[3])
        assert Result(int(sol.result)) is Result.NOT_DEFINITE
        assert sol.stats["residual"] > 0.5
        assert np.isfinite(sol.value).all()


def test_inside_transformations(dtype):
    """Derivatives in y, ridge and the points are those of a dense solve; codes are traced, nothing
    is raised.
    """
    x, y = points(0, 8, 3, dtype), points(1, 8, 2, dtype)
    w = points(2, 8, 2, dtype)

    def ours(x, y, ridge):
        sol = sn.ntk.solve(sn.ntk.kernel_operator(NET.kernel_fn, x), y, ridge=ridge)
        return jnp.sum(w * jnp.sin(sol.value))

    def dense(x, y, ridge):
        value = jnp.linalg.solve(NET.kernel_fn(x, None, "ntk") + ridge * jnp.eye(8, dtype=dtype), y)
        return jnp.sum(w * jnp.sin(value))

    ridge = jnp.asarray(0.3, dtype)
    one, other = (jax.jit(jax.grad(f, (0, 1, 2)))(x, y, ridge) for f in (ours, dense))
    for left, right in zip(one, other, strict=True):
        assert_close(left, right, rtol=2e-4 if dtype == "float32" else 1e-8)
    forward = jax.jvp(lambda y: ours(x, y, ridge), (y,), (w,))[1]
    assert_close(forward, jnp.sum(other[1] * w), rtol=1e-4 if dtype == "float32" else 1e-8)

    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    sol = jax.jit(jax.vmap(lambda r: sn.ntk.solve(op, y[:, 0], ridge=r)))(
        jnp.asarray([0.3, 1.0], dtype)
    )
    assert sol.result.shape == (2,)
    assert not np.asarray(sol.result).any()
    for value, r in zip(sol.value, (0.3, 1.0), strict=True):
        assert_close(
            value,
            sn.ntk.solve(op, y[:, 0], ridge=r).value,
            rtol=1e-4 if dtype == "float32" else 1e-8,
        )
    few = jax.jit(lambda y: sn.ntk.solve(op, y, ridge=1e-3, rank=0, max_steps=1))(y)
    assert Result(int(few.result)) is Result.MAX_STEPS
    assert few.stats["steps"] == 1


def test_units_inside_jit():
    x, y = np.asarray(points(0, 8, 3, "float32")), np.asarray(points(1, 8, 1, "float32"))
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    units = np.array([1.0, 1e-30, 1e30, 0.0], np.float32)
    sol = jax.jit(lambda y: sn.ntk.solve(op, y, ridge=0.1))(y * units)
    assert int(sol.result) == 0
    for column, unit in enumerate(units[:3]):
        assert_close(np.asarray(sol.value[:, column], float) / unit, sol.value[:, 0], rtol=1e-5)
    assert not np.asarray(sol.value[:, 3]).any()


WRONG = {
    "op": [None, "op", lambda v: v],
    "y": [
        None,
        "y",
        np.ones(4) * 1j,
        np.ones(4, bool),
        np.array(["1"] * 4),
        np.full(4, 1e300),
        [[1.0], [2.0, 3.0]],
    ],
    "ridge": [None, "1", 1j, True, np.inf, np.ones(4), 1e39],
    "rtol": ["1", 1j, np.nan, 2.0],
    "rank": [1.5, "1", -1, True],
    "key": [0, "key", np.ones(2)],
    "max_steps": [None, 1.5, True, -1],
    "refine": [None, 1, "no"],
    "throw": [None, 1],
    "progress": ["yes", 0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_arguments_are_named(name, value, untyped):
    good = {
        "op": sn.ntk.kernel_operator(lambda a, b: a @ b.T, np.eye(4, dtype=np.float32)),
        "y": [1.0, 2.0, 3.0, 4.0],
    }
    with pytest.raises(ValueError, match=name):
        sn.ntk.solve(**{**good, name: value})


def test_refining_is_not_for_jit(untyped):
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="refine must be False inside jit"):
        jax.jit(lambda y: sn.ntk.solve(op, y, refine=True).value)(jnp.ones(4))


def test_one_column_without_a_solution_is_enough_to_say_why():
    """An indefinite kernel, along whose negative direction one of two right-hand sides lies."""
    D = jnp.array([[1.0, 2, 3, -1]])
    op = sn.ntk.kernel_operator(lambda a, b: (a * D) @ b.T, jnp.eye(4))
    y = jnp.eye(4)[:, [0, 3]]
    found = sn.ntk.solve(op, y, rank=0, throw=False)
    assert found.result == Result.NOT_DEFINITE


def test_right_hand_sides_up_to_the_largest_number():
    op = sn.ntk.kernel_operator(lambda a, b: 4 * a @ b.T, jnp.eye(3))
    y = jnp.array([[3e38, 1.0], [-2e38, 2.0], [1e37, 0.0]], jnp.float32)
    found = sn.ntk.solve(op, y, rtol=1e-5, rank=0)
    sizes = np.max(np.abs(y), axis=0)
    assert_close(np.asarray(found.value) / sizes, np.asarray(y) / 4 / sizes, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_the_residual_inside_jit_is_relative_to_the_right_hand_side(size, x64):
    A = np.asarray(points(0, 30, 30))
    K = A @ A.T + 0.1 * np.eye(30)
    y = size * np.random.default_rng(1).normal(size=(30, 2))
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, np.linalg.cholesky(K))
    solve = jax.jit(lambda y: sn.ntk.solve(op, y, max_steps=4, rank=0, throw=False))
    found = solve(jnp.asarray(y))
    left = np.linalg.norm(y - K @ np.asarray(found.value), axis=0) / np.linalg.norm(y, axis=0)
    assert found.result == Result.MAX_STEPS
    assert left.max() < 0.9
    assert float(found.stats["residual"]) == pytest.approx(left.max(), rel=1e-9)
