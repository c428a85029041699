"""Laws of what takes any function, on networks as users bring them: against Jacobians by hand."""

import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, slow_except
from own_networks import OWN_NETWORKS, LinenConvolution, draw, interacting_rows, plain_dict

import softntk as sn

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
# Each precision compiles everything anew: one network of each library in float32.
FLOAT32 = [
    ("counters_and_keys", "float32"),
    ("linen_convolution", "float32"),
    ("nnx_module", "float32"),
    ("equinox_convolution", "float32"),
]
FLOAT64 = [(name, "float64") for name in OWN_NETWORKS if name != "nnx_state"]
EVERY = slow_except(itertools.product(OWN_NETWORKS, ("float32", "float64")), *FLOAT32, *FLOAT64)


@pytest.mark.parametrize(("name", "dtype"), EVERY, indirect=["dtype"])
def test_kernels_and_products_are_those_of_the_jacobian(name, dtype):
    own = OWN_NETWORKS[name](dtype)
    others = own.x[1:3] * 0.75
    kernel, between = own.kernel(), own.kernel(others, own.x)
    n, k = kernel.shape[0], kernel.shape[2]
    matrix = kernel.transpose(0, 2, 1, 3).reshape(n * k, n * k)
    cross = between.transpose(0, 2, 1, 3).reshape(2 * k, n * k)
    vectors = np.random.default_rng(0).normal(size=(n, k, 2)).astype(np.float32)
    flat = vectors.reshape(n * k, 2).astype(np.float64)

    def empirical(*points, **options):
        return sn.ntk.empirical(
            own.apply_fn, own.params, *points, apply_kwargs=own.apply_kwargs, **options
        )

    @jax.jit  # one program: compiling is what this test spends its time on
    def evaluate(x, others, vectors):
        operator = sn.ntk.operator(
            own.apply_fn, own.params, x, block_size=3, apply_kwargs=own.apply_kwargs
        )
        return {
            "full": empirical(x),
            "two sets": empirical(others, x, vmap_axes=0),
            "mean": empirical(x, outputs="mean", vmap_axes=0),
            "diagonal": empirical(x, outputs="diagonal", vmap_axes=0),
            "mv": operator.mv(vectors[..., 0]),
            "rows": operator.as_matrix()[:3],
            "operator's diagonal": operator.diagonal(),
            "cross": operator.cross(others).mm(vectors),
        }

    diagonal = np.einsum("ijll->ijl", kernel)
    desired = {
        "full": kernel,
        "two sets": between,
        "mean": diagonal.mean(-1),
        "diagonal": diagonal,
        "mv": (matrix @ flat[:, 0]).reshape(n, k),
        "rows": matrix[:3],
        "operator's diagonal": np.diag(matrix),
        "cross": (cross @ flat).reshape(2, k, 2),
    }
    for law, ours in evaluate(own.x, others, vectors).items():
        assert ours.dtype == dtype, law
        assert_close(ours, desired[law], rtol=TOLERANCE[dtype])


# --- the contract
# -----------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)


def tanh(w, x):
    return jnp.tanh(x @ w)


@pytest.mark.parametrize("name", ["centred", "dropped", "normalised"])
def test_rows_that_interact_are_noticed(name, untyped):
    """All rows together are right, one by one is refused."""
    own = interacting_rows("float32")[name]
    arguments = (own.apply_fn, own.params, own.x)
    ours = sn.ntk.empirical(*arguments, apply_kwargs=own.apply_kwargs)
    assert_close(ours, own.kernel(), rtol=1e-5)
    for call in (sn.ntk.operator, partial(sn.ntk.empirical, vmap_axes=0)):
        with pytest.raises(ValueError, match="apply_fn must treat each row of x alone"):
            call(*arguments, apply_kwargs=own.apply_kwargs)


def test_a_flag_that_is_an_array_is_looked_at_each_time(untyped):
    """The program is the same, what it does is not."""

    def apply_fn(w, x, train):
        return tanh(w, x - jnp.where(train, x.mean(0, keepdims=True), 0))

    sn.ntk.operator(apply_fn, W, X, apply_kwargs={"train": jnp.array(False)})
    with pytest.raises(ValueError, match="apply_fn must treat each row of x alone"):
        sn.ntk.operator(apply_fn, W, X, apply_kwargs={"train": jnp.array(True)})


def test_rows_alone_are_not_suspected(untyped):
    """Outputs that cancel, that sum to one, that are zero; half precision; one row, and equal rows."""
    net = sn.networks.two_layer("softmax", width=64, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    sn.ntk.operator(net.apply_fn, params, X)
    sn.ntk.operator(lambda w, x: jax.nn.softmax(tanh(w, x)), W, X)
    sn.ntk.operator(lambda w, x: tanh(w, x) * 0, W, X)
    sn.ntk.operator(tanh, jnp.asarray(W, jnp.bfloat16), jnp.asarray(X, jnp.bfloat16))
    sn.ntk.operator(tanh, W, X[:1])
    sn.ntk.operator(tanh, W, np.repeat(X[:1], 5, axis=0))
    sn.ntk.operator(lambda w, x: 1e-25 * tanh(w, x), W, X)


@pytest.mark.parametrize("call", [sn.ntk.empirical, sn.ntk.operator])
def test_outputs_and_arguments_are_refused_by_name(call, untyped):
    cases = [
        (
            lambda w, x: (tanh(w, x), {"aux": x}),
            W,
            X,
            {},
            r"apply_fn must return one array.*a tuple of 2",
        ),
        (lambda w, x: {"outputs": tanh(w, x)}, W, X, {}, r"apply_fn must return one array.*a dict"),
        (lambda w, x: None, W, X, {}, "apply_fn must return one array.*NoneType"),
        (
            lambda w, x: tanh(w, x)[:, None],
            W,
            X,
            {},
            r"apply_fn must return \[n\] or \[n, k\].*Flatten them",
        ),
        (lambda w, x: tanh(w, x).T, W, X, {}, r"apply_fn must return \[n\] or \[n, k\]"),
        (lambda w, x: tanh(w, x).sum(), W, X, {}, r"apply_fn must return \[n\] or \[n, k\]"),
        (
            lambda w, x: jnp.argmax(tanh(w, x), axis=1),
            W,
            X,
            {},
            "apply_fn must return floating-point numbers",
        ),
        (lambda w, x: tanh(w, x) * 1j, W, X, {}, "apply_fn must return floating-point numbers"),
        (tanh, X, W, {}, r"apply_fn\(params, x\) fails for x of shape \(3, 2\).*params come first"),
        (tanh, None, X, {}, "params must hold a floating-point array"),
        (tanh, {"w": 3}, X, {}, "params must hold a floating-point array"),
        (tanh, "weights", X, {}, "params must hold a floating-point array"),
        (tanh, jnp.arange(6).reshape(3, 2), X, {}, "params must hold a floating-point array"),
        (tanh, W * 1j, X, {}, "params must be real"),
        (
            tanh,
            {"w": W, "set": {1}},
            X,
            {},
            "params must be a pytree whose leaves.*register_dataclass",
        ),
        (tanh, {"w": W, "names": np.array(["a"])}, X, {}, "params must hold arrays of numbers"),
        (tanh, W, X, {"apply_kwargs": {"train": True}}, r"apply_fn\(params, x, train=…\) fails"),
        (tanh, W, X, {"apply_kwargs": ["train"]}, "apply_kwargs must be a dict"),
        (tanh, W, X, {"apply_kwargs": {1: 2}}, "apply_kwargs must be a dict"),
        (tanh, W, X, {"block_size": 2.5}, "block_size must be a positive integer"),
        (None, W, X, {}, "net must be a network"),
        ((tanh, tanh), W, X, {}, "net must be a network"),
        (eqx.nn.MLP, W, X, {}, "net must be an apply_fn.*MLP"),
        (tanh, W, None, {}, "x1? must be an array of numbers"),
        (tanh, W, X.astype(int), {}, "x1? must be a floating-point array"),
        (tanh, W, X * np.nan, {}, "x1? must be finite"),
        (tanh, W, X[:0], {}, "x1? must not be empty"),
        (tanh, W, np.float32(1), {}, "x1? must have shape"),
    ]
    for net, params, x, options, message in cases:
        with pytest.raises(ValueError, match=message):
            call(net, params, x, **options)


def test_options_of_empirical_are_refused_by_name(untyped):
    for options, message in [
        ({"vmap_axes": 1}, "vmap_axes must be"),
        ({"vmap_axes": "0"}, "vmap_axes must be"),
        ({"vmap_axes": True}, "vmap_axes must be"),
        ({"outputs": "trace"}, "outputs must be one of"),
        ({"outputs": ["full"]}, "outputs must be one of"),
        ({"x2": X[:, :2]}, "x2 must have shape"),
        ({"x2": jnp.asarray(X, jnp.bfloat16)}, "x2 must have the dtype of x1"),
    ]:
        with pytest.raises(ValueError, match=message):
            sn.ntk.empirical(tanh, W, X, **options)


@pytest.mark.parametrize("call", [sn.ntk.empirical, sn.ntk.operator])
def test_parameters_of_another_network_are_refused(call, untyped):
    net = sn.networks.two_layer("softmax", width=4, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    wider = sn.networks.two_layer("softmax", width=8, out_dim=2).init_fn(
        jax.random.key(0), (-1, 3)
    )[1]
    more = sn.networks.two_layer("softmax", width=4, out_dim=3).init_fn(jax.random.key(0), (-1, 3))[
        1
    ]
    biased = sn.networks.two_layer("softmax", width=4, out_dim=2, bias=True).init_fn(
        jax.random.key(0), (-1, 3)
    )[1]
    for wrong in (
        None,
        {},
        W,
        "params",
        (params,),
        wider,
        more,
        biased,
        params.replace(hidden=None),
    ):
        with pytest.raises(ValueError, match="params"):
            call(net, wrong, X)
    with pytest.raises(ValueError, match="x1? must have (the )?3 features"):
        call(net, params, X[:, :2])
    with pytest.raises(ValueError, match="apply_kwargs must be None"):
        call(net, params, X, apply_kwargs={"train": False})


def test_nothing_compiles_again():
    """Arrays among the further arguments may change, equal flags and methods are one program."""
    traces = []

    class Model:
        def __init__(self, widths):
            self.widths = widths

        def __eq__(self, other):  # as a dataclass: not to be hashed
            return self is other

        def apply(self, w, x, scale, train):
            traces.append(train)
            return scale * tanh(w, x) * len(self.widths)

    model = Model([1])
    for step in range(3):
        apply_kwargs = {"scale": jnp.float32(step + 1), "train": False}
        operator = sn.ntk.operator(model.apply, W + step, X, apply_kwargs=apply_kwargs)
        product = operator.mv(jnp.ones((6, 2)))
        kernel = sn.ntk.empirical(model.apply, W + step, X, apply_kwargs=apply_kwargs)
        assert_close(product, kernel.sum((1, 3)), "float32")
        count = len(traces) if step == 0 else count
    assert len(traces) == count
    sn.ntk.empirical(model.apply, W, X, apply_kwargs={"scale": jnp.float32(1), "train": 0})
    assert len(traces) > count  # 0 is not False


def test_floats_of_python_are_weights_outside_of_equinox(x64):
    """As jax.grad has it; equinox itself takes arrays alone."""
    x = draw(0, 4, 3, dtype="float64")
    params = {"w": draw(1, 3, dtype="float64"), "scale": 2.0}
    apply_fn = lambda p, x: p["scale"] * jnp.tanh(x @ p["w"])
    jacobian = jax.jacobian(apply_fn)(params, x)
    jacobian = np.concatenate([jacobian["w"], np.asarray(jacobian["scale"])[:, None]], axis=1)
    assert_close(sn.ntk.empirical(apply_fn, params, x)[..., 0, 0], jacobian @ jacobian.T)


def test_kernels_are_differentiable_in_weights_and_further_arguments(x64):
    own = plain_dict("float64")

    def apply_fn(params, x, scale):
        return scale * own.apply_fn(params, x)

    def ours(params, scale):
        kernel = sn.ntk.empirical(
            apply_fn, params, own.x, vmap_axes=0, apply_kwargs={"scale": scale}
        )
        operator = sn.ntk.operator(
            apply_fn, params, own.x, apply_kwargs={"scale": scale}, block_size=2
        )
        return jnp.sum(jnp.sin(kernel)) + jnp.sum(jnp.cos(operator.mv(jnp.ones((5, 2)))))

    def dense(params, scale):
        leaves = jax.tree.leaves(jax.jacobian(apply_fn)(params, own.x, scale))
        jacobian = jnp.concatenate([leaf.reshape(10, -1) for leaf in leaves], axis=1)
        matrix = jacobian @ jacobian.T
        return jnp.sum(jnp.sin(matrix)) + jnp.sum(jnp.cos(matrix.sum(1)))

    actual = jax.jit(jax.grad(ours, (0, 1)))(own.params, 1.5)
    desired = jax.jit(jax.grad(dense, (0, 1)))(own.params, 1.5)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert_close(one, other, rtol=1e-9)


def test_variables_in_training_mode_say_what_to_return(untyped):
    """A pair comes out under mutable=…: the outputs alone are wanted."""
    model, x = LinenConvolution(), draw(0, 4, 3, 3, 1, dtype="float32")
    variables = model.init(jax.random.key(0), x, train=False)
    apply_kwargs = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    with pytest.raises(ValueError, match="apply_fn must return one array.*mutable"):
        sn.ntk.empirical(model.apply, variables, x, apply_kwargs=apply_kwargs)


@pytest.mark.parametrize(
    "keywords", [3, jnp.sin, object(), float("nan"), np.ones(2), [], (), "", 1j, True]
)
@pytest.mark.parametrize("function", [sn.ntk.empirical, sn.ntk.operator])
def test_keywords_that_are_none_are_named(function, keywords, untyped):
    net = sn.networks.two_layer("softmax", width=4)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    for arguments in ((net, params, jnp.eye(3)), (lambda w, x: x @ w, jnp.ones(3), jnp.eye(3))):
        with pytest.raises(ValueError, match="^apply_kwargs must be a dict"):
            function(*arguments, apply_kwargs=keywords)


def test_vmap_axes_may_be_any_integer(untyped):
    arguments = (lambda w, x: jnp.tanh(x @ w), jnp.ones(3), jnp.eye(3))
    want = sn.ntk.empirical(*arguments, vmap_axes=0)
    zeros: tuple[Any, ...] = (jnp.array(0), np.int64(0), np.array(0))
    for zero in zeros:
        np.testing.assert_array_equal(sn.ntk.empirical(*arguments, vmap_axes=zero), want)
