"""Arguments of predicted training: what is wrong is named, lists, tables and vectors of targets are
converted.
"""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import softntk as sn

BAD = [
    (
        {"gram": np.ones((2, 3), np.float32)},
        r"gram must have shape \[n, n\] or \[n, n, k, k\], got \(2, 3\)",
    ),
    ({"gram": np.ones((2, 2, 2), np.float32)}, "gram must have shape"),
    ({"gram": np.ones((0, 0), np.float32)}, "gram must have shape"),
    ({"gram": np.eye(2, dtype=int)}, "gram must be a floating-point array"),
    ({"gram": np.array([[1, np.nan], [np.nan, 1]], np.float32)}, "gram must be finite"),
    ({"gram": np.array([[1, 2], [0, 1]], np.float32)}, "gram must be symmetric"),
    (
        {"gram": lambda x1, x2: x1 @ x2.T},
        "gram must be an array or an operator, got function.*kernel_operator",
    ),
    ({"y": np.ones(3, np.float32)}, r"y must have shape \[n, k\]"),
    ({"y": np.ones((3, 1), np.float32)}, "y must have shape"),
    ({"y": np.ones((2, 1), int)}, "y must be a floating-point array"),
    ({"y": np.full((2, 1), np.nan, np.float32)}, "y must be finite"),
    ({"f0": np.ones((2, 2), np.float32)}, "f0 must have the shape of y"),
    ({"learning_rate": -1.0}, "learning_rate must be a positive finite number, got -1.0"),
    ({"steps": np.array([-1])}, "steps must not be negative, got -1"),
    ({"steps": np.array([0.5])}, "steps must be a vector of integers"),
    ({"steps": np.array(3)}, "steps must be a vector of integers"),
    ({"f0_test": np.ones((1, 1), np.float32)}, "f0_test goes with cross"),
    ({"cross": np.ones((1, 3), np.float32)}, r"cross must have shape \('t', 2\)"),
    ({"cross": np.full((1, 2), np.nan, np.float32)}, "cross must be finite"),
    (
        {"cross": np.ones((1, 2), np.float32), "f0_test": np.ones((2, 1), np.float32)},
        "f0_test must have shape",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change, message, untyped):
    good = {
        "gram": np.eye(2, dtype=np.float32),
        "y": np.ones((2, 1), np.float32),
        "learning_rate": 0.1,
        "steps": np.array([1]),
    }
    with pytest.raises(ValueError, match=message):
        sn.ntk.predict_gd(**{**good, **change})


def test_bad_times_and_mixed_kinds(untyped):
    gram, y = np.eye(2, dtype=np.float32), np.ones((2, 1), np.float32)
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, gram)
    for call, message in [
        (
            lambda: sn.ntk.predict_flow(gram, y, np.array([-1.0], np.float32)),
            "times must be non-negative",
        ),
        (
            lambda: sn.ntk.predict_flow(gram, y, np.array([np.nan], np.float32)),
            "times must be non-negative",
        ),
        (
            lambda: sn.ntk.predict_flow(gram, y, np.array(1.0, np.float32)),
            r"times must have shape \[s\]",
        ),
        (
            lambda: sn.ntk.predict_flow(op, y, np.ones(1, np.float32), rtol=0.0),
            "rtol must be a positive finite number",
        ),
        (
            lambda: sn.ntk.predict_flow(op, y, np.ones(1, np.float32), cross=gram),
            "cross must be an operator",
        ),
        (
            lambda: sn.ntk.predict_flow(gram, y, np.ones(1, np.float32), cross=op.cross(gram)),
            "cross must be an operator",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_many_steps_are_refused_where_they_do_not_fit(untyped):
    exact = -np.expm1(2e9 * np.log1p(-0.5e-9))
    gram, y = jnp.diag(jnp.array([1.0, 1e-9])), jnp.ones((2, 1))
    assert_close(
        sn.ntk.predict_gd(gram, y, 0.5, np.array([2_000_000_000]))[0, :, 0], [1, exact], rtol=1e-3
    )
    for steps in (np.array([3_000_000_000]), [5_000_000_000]):
        with pytest.raises(ValueError, match="steps must lie between.*jax_enable_x64"):
            sn.ntk.predict_gd(gram, y, 0.5, steps)
    with jax.enable_x64(True):
        exact = -np.expm1(3e9 * np.log1p(-0.5e-9))
        gram = jnp.diag(jnp.array([1.0, 1e-9]))
        assert_close(
            sn.ntk.predict_gd(gram, np.ones(2), 0.5, np.array([3_000_000_000]))[0, :, 0],
            [1, exact],
            rtol=1e-9,
        )


def test_targets_without_an_axis_of_outputs(dtype):
    gram = jnp.asarray([[2.0, 1.0], [1.0, 3.0]], dtype)
    y, f0, cross, f0_test = (
        jnp.asarray(v, dtype) for v in ([1.0, -1.0], [0.5, 0.0], [[1.0, 0.5]], [0.25])
    )
    column = lambda v: v[:, None]
    for function, moments in (
        (lambda gram, y, *a, **k: sn.ntk.predict_gd(gram, y, 0.1, [3], *a, **k), ()),
        (_flow, ()),
    ):
        assert_close(function(gram, y, f0, *moments), function(gram, column(y), column(f0)), dtype)
        one = function(gram, y, f0, cross=cross, f0_test=f0_test)
        assert one.shape == (1, 1, 1)
        assert_close(
            one, function(gram, column(y), column(f0), cross=cross, f0_test=column(f0_test)), dtype
        )
    assert sn.ntk.gd_coefficients(gram[:, :, None, None], y, 0.1, [1, 2]).shape == (2, 2, 1)
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, gram)
    assert sn.ntk.predict_gd(op, y, 0.1, [1, 2], f0).shape == (2, 2, 1)


def _flow(gram, y, f0, **options):
    return sn.ntk.predict_flow(gram, y, jnp.asarray([0.3], gram.dtype), f0, **options)


WRONG = {
    "gram": [
        "K",
        None,
        {},
        1.0,
        np.eye(2) * 1j,
        np.eye(2, dtype=bool),
        np.eye(2, dtype=np.float16),
        np.diag([1e39, 1.0]),
    ],
    "y": [
        "y",
        None,
        [[1j], [0]],
        np.array([["1"], ["2"]]),
        np.ones((2, 1), bool),
        [[1.0], [1.0, 2.0]],
        np.full(2, 1e300),
    ],
    "f0": ["f", {}, np.array([[1e300], [0.0]]), np.ones((2, 1), int), np.ones((3, 1), np.float32)],
    "learning_rate": [
        None,
        "1",
        1j,
        {},
        True,
        np.nan,
        0,
        -1.0,
        np.inf,
        [0.1],
        1e39,
        1e-60,
        lambda count: 0.1,
    ],
    "steps": [None, "1", {}, 3, [1.5], [True], ["a"], [[1]], [-1], [10**30]],
    "cross": ["k", np.eye(2) * 1j, lambda a, b: a, np.eye(3, dtype=np.float32)],
    "rtol": ["1", -1.0, np.nan],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_arguments_are_named(name, value, untyped):
    good = {
        "gram": np.eye(2, dtype=np.float32),
        "y": np.ones((2, 1), np.float32),
        "learning_rate": 0.1,
        "steps": [1],
    }
    with pytest.raises(ValueError, match=name):
        sn.ntk.predict_gd(**{**good, name: value})


def test_lists_and_frames_are_arrays(untyped):
    out = sn.ntk.predict_gd(
        [[1.0, 0.0], [0.0, 0.5]], [1.0, 1.0], np.float32(0.5), [1, 2], f0=[0.0, 0.0]
    )
    assert_close(out[:, :, 0], [[0.5, 0.25], [0.75, 0.4375]], rtol=1e-6)
    out = sn.ntk.predict_flow([[1.0]], [1.0], [0.0, np.log(2.0)], cross=[[2.0]], f0_test=[1.0])
    assert_close(out[:, 0, 0], [1.0, 2.0], rtol=1e-6)


def test_points_in_bfloat16_are_refused_by_name():
    op = sn.ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(2, dtype="bfloat16"))
    for call in (
        lambda: sn.ntk.predict_gd(op, jnp.ones(2), 0.1, [1]),
        lambda: sn.ntk.kernel_regression(
            op, jnp.ones(2), ridge=0.1, cross=op.cross(jnp.eye(2, dtype="bfloat16"))
        ),
        lambda: sn.ntk.solve(op, jnp.ones(2)),
        lambda: sn.ntk.extreme_eigenvalues(op),
        lambda: sn.ntk.spectral_density(op),
        lambda: sn.ntk.target_alignment(op, jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match="(op|gram) must be float32 or float64.*bfloat16"):
            call()


@pytest.mark.parametrize("cross", [None, np.ones((3, 2))])
def test_of_no_times_there_are_no_predictions(cross):
    tests = {} if cross is None else {"cross": cross, "f0_test": np.zeros((3, 1))}
    rows = 2 if cross is None else 3
    gram, y = np.eye(2), np.ones((2, 1))
    assert sn.ntk.predict_flow(gram, y, np.zeros(0), **tests).shape == (0, rows, 1)
    assert sn.ntk.predict_gd(gram, y, 0.1, np.zeros(0, int), **tests).shape == (0, rows, 1)
