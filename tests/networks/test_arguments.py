"""Arguments of two-layer networks: wrong settings, weights and points are named; lists, tables and
two precisions are converted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import assert_close

import softntk as sn
from softntk.networks import two_layer

OPTIONS = [
    ({"width": 0}, "width must be a positive integer, got 0"),
    ({"width": 2.5}, "width must be a positive integer, got 2.5"),
    (
        {"width": 7},
        "width must be even for antisymmetric initialisation, got 7. Use 8, or antisymmetric=False",
    ),
    ({"out_dim": 0}, "out_dim must be a positive integer, got 0"),
    ({"sigma": 0.0}, "sigma must be a positive finite number, got 0.0"),
    ({"sigma": float("nan")}, "sigma must be a positive finite number, got nan"),
    ({"parameterization": "papr"}, "parameterization must be one of.*Did you mean 'paper'"),
    (
        {"family": "sofmax"},
        r"family must be one of \['exp', 'gelu', 'relu', .*'softplus'\], got 'sofmax'. Did you mean 'softmax'",
    ),
    (
        {"family": None},
        "name either a family .* or an activation, got family=None, activation=None",
    ),
    ({"activation": "relu"}, "name either a family .* got family='softmax', activation='relu'"),
    ({"normalize": True}, "normalize goes with activation"),
    ({"family": None, "activation": "tanhh"}, "activation must be one of"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_options(options, message, untyped):
    options = {"family": "softmax", "width": 8, "out_dim": 2, **options}
    with pytest.raises(ValueError, match=message):
        two_layer(options.pop("family"), **options)


GOOD = np.ones((3, 4), np.float32)
POINTS = [
    (GOOD[0], "must have shape \\[n, d\\], one row a point, got shape \\(4,\\)"),
    (GOOD[None], "must have shape"),
    (GOOD.astype(int), "must be a floating-point array, got dtype int"),
    (GOOD[:0], "(at least one row and one column|must not be empty), got shape \\(0, 4\\)"),
    (
        np.where(np.eye(3, 4) > 0, np.nan, GOOD),
        "must be finite, got 3 NaN or infinite entries, the first at x1?\\[0, 0\\]",
    ),
    (np.where(np.eye(3, 4) > 0, np.inf, GOOD), "must be finite"),
]


@pytest.mark.parametrize(("x", "message"), POINTS)
def test_bad_points(x, message, untyped):
    net = two_layer("softmax", width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    for call in (
        lambda: net.apply_fn(params, x),
        lambda: net.kernel_fn(x, None, "ntk"),
        lambda: sn.ntk.empirical(net, params, x),
        lambda: sn.ntk.empirical(net.apply_fn, params, x),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_points_that_do_not_fit(untyped):
    net = two_layer("softmax", width=8)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    for call in (
        lambda x1, x2: net.kernel_fn(x1, x2, "ntk"),
        lambda x1, x2: sn.ntk.empirical(net, params, x1, x2),
    ):
        with pytest.raises(
            ValueError, match="x2 must have the dtype of x1, got float32 and float16"
        ):
            call(GOOD, GOOD.astype(np.float16))
        with pytest.raises(ValueError, match="x2 must have as many features as x1"):
            call(GOOD, GOOD[:, :3])
    for call in (lambda x: net.apply_fn(params, x), lambda x: sn.ntk.empirical(net, params, x)):
        with pytest.raises(
            ValueError,
            match="must have the 4 features that params.hidden has, got shape \\(3, 3\\)",
        ):
            call(GOOD[:, :3])
    with pytest.raises(
        ValueError, match="get must be one of.*'nngp', 'ntk'.*got 'ntkk'. Did you mean 'ntk'"
    ):
        net.kernel_fn(GOOD, None, "ntkk")
    with pytest.raises(ValueError, match="input_shape must be"):
        net.init_fn(jax.random.key(0), (4,))


@pytest.mark.parametrize("activation", ["sinh", "erf", "identity"])
def test_a_normalized_odd_activation_has_no_limit(activation):
    net = two_layer(activation=activation, normalize=True, width=8)
    with pytest.raises(ValueError, match="has no infinite limit"):
        net.kernel_fn(GOOD, None, "ntk")
    assert two_layer(activation=activation, width=8).kernel_fn(
        jnp.asarray(GOOD), None, "ntk"
    ).shape == (3, 3)


def test_lists_frames_and_two_precisions(x64, untyped):
    net = two_layer("softmax", width=4)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    x = np.asarray([[1.0, 2.0], [0.5, 0.1]])
    want = net.apply_fn(params, x)
    assert_close(net.apply_fn(params, x.tolist()), want)
    assert_close(net.apply_fn(params, pd.DataFrame(x, columns=["a", "b"])), want)
    assert_close(net.kernel_fn(x.tolist(), None, "ntk"), net.kernel_fn(x, None, "ntk"))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with jax.numpy_dtype_promotion("strict"):
        assert net.apply_fn(single, x).dtype == jnp.float64
        assert net.kernel_fn(jnp.asarray(x, jnp.float32), None, "ntk").dtype == jnp.float32


WIDE = two_layer("relu", width=64, out_dim=3)
BIASED = two_layer("softmax", width=4, bias=True)
NET = two_layer("softmax", width=4)
KEY = jax.random.key(0)
PARAMS = NET.init_fn(KEY, (-1, 2))[1]
X = jnp.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (lambda p=p: NET.apply_fn(p, X), "params must be the Parameters")
            for p in (None, {}, "p", X, (None, PARAMS), [1], 3)
        ],
        (lambda: NET.apply_fn(X, PARAMS), "params must be the Parameters"),
        (lambda: WIDE.apply_fn(PARAMS, X), r"params.hidden must have shape \[d, 64\]"),
        (
            lambda: NET.apply_fn(PARAMS.replace(readout=jnp.ones((4, 2))), X),
            r"params.readout must have shape \[4, 1\]",
        ),
        (lambda: BIASED.apply_fn(PARAMS, X), "params.bias must be a floating-point array"),
        (lambda: NET.apply_fn(PARAMS.replace(bias=jnp.ones(4)), X), "params.bias must be None"),
        (
            lambda: NET.apply_fn(PARAMS.replace(hidden=None), X),
            "params.hidden must be a floating-point array",
        ),
        (
            lambda: NET.apply_fn(PARAMS.replace(hidden=jnp.ones((2, 4), int)), X),
            "params.hidden must be a floating-point",
        ),
        (
            lambda: NET.apply_fn(jax.tree.map(lambda leaf: leaf[None], PARAMS), X),
            "params.hidden must have shape",
        ),
        *[
            (lambda x=x: NET.apply_fn(PARAMS, x), "x must be")
            for x in (None, "x", {"a": 1}, np.array([[1j]]), [[True]], PARAMS)
        ],
        *[
            (lambda x=x: NET.kernel_fn(x), "x1 must be")
            for x in (None, "x", np.array([["1"]]), [[1, 2]], [[1.0], [1.0, 2.0]])
        ],
        (lambda: NET.kernel_fn(X, "ntk"), "x2 must be"),
        (lambda: NET.kernel_fn(np.full((2, 2), 1e39)), "x1 must be finite in float32"),
        *[
            (lambda g=g: NET.kernel_fn(X, None, g), "get must")
            for g in (3, (), ("ntk", "ntk"), ["x"], [[]], {"ntk"}, b"ntk")
        ],
        *[
            (lambda k=k: NET.init_fn(k, (-1, 3)), "key must be")
            for k in (0, "k", None, jnp.zeros(2), jax.random.split(KEY, 3), 1.5, [0, 1])
        ],
        *[
            (lambda s=s: NET.init_fn(KEY, s), "input_shape must be")
            for s in (
                None,
                3,
                "ab",
                (3,),
                (-1, 0),
                (-1, 2.5),
                (-1, -1),
                (-1, True),
                (-2, 3),
                (None, 3),
                (1, 2, 3),
                {"a": 1},
            )
        ],
        (lambda: NET.init_fn((-1, 3), KEY), "key must be"),
    ],
)
def test_wrong_arguments_are_named(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"sigma": bad}
            for bad in ("1", None, 1j, {}, True, [1.0], np.ones(2), float("inf"), -1.0)
        ),
        *({"width": bad} for bad in ("8", None, True, 8.0, [8], -2)),
        *({"out_dim": bad} for bad in ("1", None, 1.0)),
        *({"bias": bad} for bad in ("no", 1, None)),
        *({"train_readout": bad} for bad in ("no", 0, None)),
        *({"antisymmetric": bad} for bad in ("no", 1, None)),
        *({"parameterization": bad} for bad in (None, 3, [], "NTK")),
        *({"family": bad} for bad in (3, [], {}, b"relu")),
        *({"family": None, "activation": bad} for bad in (3, [], jnp.tanh)),
        *({"family": None, "activation": "relu", "normalize": bad} for bad in ("yes", 1)),
    ],
)
def test_wrong_settings_are_named(options, untyped):
    given = {"family": "relu", "width": 8} | options
    name = list(options)[-1]
    with pytest.raises(ValueError, match=f"{name} must be"):
        two_layer(**given)
