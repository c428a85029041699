"""What goes into kernels and operators: blocks that do not fill, units, precisions, and wrong
arguments.
"""

# Arguments of the wrong type are what is tested here.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, cast, dense_kernels, points

import softntk as sn
from softntk.networks import two_layer
from softntk.ntk._empirical import assembly
from softntk.ntk._row_scales import scale_rows


def cosine(a, b):
    def unit(z):
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    return unit(a) @ unit(b).T


def distance_ratio(a, b):
    """Return a kernel that is infinite where a row is zero."""
    return 1 / (jnp.sum(a**2, axis=1)[:, None] * jnp.sum(b**2, axis=1)[None])


# --- blocks that points do not fill
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_fn", [cosine, distance_ratio])
def test_kernels_that_are_not_finite_at_zero(kernel_fn):
    """Seven points in blocks of four; a block longer than they are; one point."""
    x = points(0, 7, 3, "float32")
    dense = np.asarray(kernel_fn(x, x), np.float64)
    for block_size in (4, 100):
        operator = sn.ntk.kernel_operator(kernel_fn, x, block_size=block_size)
        assert_close(operator.mv(jnp.ones(7)), dense.sum(1), "float32")
        assert_close(operator.cross(x[:5]).mv(jnp.ones(7)), dense[:5].sum(1), "float32")
        assert_close(operator.rows(jnp.array([6, 0])), dense[[6, 0]], "float32")
        assert_close(operator.diagonal(), np.diag(dense), "float32")
    single = sn.ntk.kernel_operator(kernel_fn, x[:1])
    assert_close(single.mv(jnp.ones(1)), dense[0, :1], "float32")


def test_a_last_row_at_infinity_stays_alone():
    """The block's filling is that row again: it must not meet a weight of zero."""
    x = jnp.concatenate([points(0, 4, 3, "float32"), jnp.zeros((1, 3))])
    operator = sn.ntk.kernel_operator(distance_ratio, x, block_size=3)
    assert np.isposinf(operator.mv(jnp.ones(5))).all()
    assert np.isposinf(operator.cross(x[:2]).mv(jnp.ones(5))).all()


def test_networks_without_a_value_at_zero(x64):
    """Normalized, with u(0) = 0: a row of zeros is outside of the domain."""
    net = two_layer(activation="relu", normalize=True, width=16, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = points(1, 7, 3)
    matrix = (
        np.asarray(dense_kernels(net.apply_fn, params, x)["full"])
        .transpose(0, 2, 1, 3)
        .reshape(14, 14)
    )
    operator = sn.ntk.operator(net, params, x, block_size=4)
    assert_close(operator.mv(jnp.ones((7, 2))).reshape(14), matrix.sum(1))
    assert_close(operator.cross(x[:5]).mv(jnp.ones((7, 2))).reshape(10), matrix[:10].sum(1))
    assert_close(operator.rows(jnp.arange(14)), matrix)
    assert_close(operator.diagonal(), np.diag(matrix))


# --- units
# ------------------------------------------------------------------------------------------------------------


def oracle(net, params, x):
    """Return the kernel in float64, whose range holds it, as the matrix [n k, n k]."""
    with jax.enable_x64(True):
        kernel = dense_kernels(net.apply_fn, cast(params, "float64"), x.astype("float64"))["full"]
        n, k = kernel.shape[0], kernel.shape[2]
        return np.asarray(kernel).transpose(0, 2, 1, 3).reshape(n * k, n * k)


@pytest.mark.parametrize("family", ["softmax", "relu"])
@pytest.mark.parametrize("unit", [1e-25, 1e17, 3e22])
def test_units_of_points(family, unit):
    """At x → c x, W → W/c the kernel is c² times what it was: it, its saturation and its products."""
    net = two_layer(family, width=16, out_dim=2, antisymmetric=False, train_readout=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = unit * points(1, 5, 3, "float32")
    params = params.replace(hidden=params.hidden / unit)
    limit = float(np.finfo(np.float32).max)
    matrix = oracle(net, params, x)
    desired = np.clip(matrix, -limit, limit)
    kernel = np.asarray(sn.ntk.empirical(net, params, x), np.float64)
    assert_close(kernel.transpose(0, 2, 1, 3).reshape(10, 10), desired, rtol=1e-5)
    operator = sn.ntk.operator(net, params, x, block_size=3)
    assert_close(operator.rows(jnp.arange(10)), desired, rtol=1e-5)
    assert_close(operator.diagonal(), np.diag(desired), rtol=1e-5)
    v = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32) / 8
    product = np.clip(matrix @ v, -limit, limit)
    assert_close(operator.mm(v.reshape(5, 2, 2)).reshape(10, 2), product, rtol=1e-5)
    assert_close(operator.cross(x[:2]).mm(v.reshape(5, 2, 2)).reshape(4, 2), product[:4], rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "exp", "sinh", "res_softmax"])
def test_finite_points_never_give_nan(name):
    """Whatever overflows is the largest number, in kernels and in products."""
    family = {"activation": name} if name == "sinh" else {"family": name}
    net = two_layer(**family, width=8, train_readout=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    for unit in (1e15, 1e20):
        x = unit * jax.random.normal(jax.random.key(1), (3, 3))
        kernel = sn.ntk.empirical(net, params, x)
        operator = sn.ntk.operator(net, params, x)
        for result in (
            kernel,
            operator.mv(jnp.ones((3, 1))),
            operator.mm(1e30 * jnp.ones((3, 1, 1))),
            operator.rows(jnp.arange(3)),
            operator.diagonal(),
            operator.cross(x[:2]).mv(jnp.ones((3, 1))),
        ):
            assert np.isfinite(result).all()
        assert_close(operator.diagonal(), np.diag(kernel[:, :, 0, 0]), "float32")


def test_units_of_vectors():
    """H(c v) = c H v where sums of large numbers leave the precision, and where squares of small
    ones do.
    """
    net = two_layer("softmax", width=16, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, v = points(1, 7, 3, "float32"), points(2, 7, 2, "float32")
    kernel = sn.ntk.kernel_operator(lambda a, b: 1e-5 * jnp.exp(a @ b.T), x, block_size=4)
    for operator, vector in ((sn.ntk.operator(net, params, 1e-3 * x), v), (kernel, v[:, 0])):
        for c in (2.0**-80, 2.0**126):
            vectors = vector / jnp.max(jnp.abs(vector))
            once, scaled = operator.mv(vectors), operator.mv(c * vectors)
            assert_close(scaled / c, once, "float32")


def test_relative_squares_in_any_unit():
    x = points(0, 6, 3, "float32") * jnp.array([[1.0], [10.0], [0.1], [1.0], [3.0], [100.0]])
    desired = np.sum(np.asarray(x, np.float64) ** 2, axis=1)
    for unit in (1e-30, 1.0, 1e30):
        ours = np.asarray(assembly._relative_squares(unit * x), np.float64)
        np.testing.assert_allclose(ours / ours.max(), desired / desired.max(), rtol=1e-5)


def test_digits_are_kept_where_one_of_two_sets_concentrates():
    """Either set alone must be enough to leave the quick form, which is wrong by 1e-2 here."""
    net = two_layer("softmax", width=16, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    calm, concentrated = 0.1 * points(1, 4, 3, "float32"), 60 * points(1, 4, 3, "float32")
    logits = float(jnp.max(jnp.abs(concentrated @ params.hidden)))
    for x1, x2 in ((calm, concentrated), (concentrated, calm)):
        with jax.enable_x64(True):
            wide = cast(params, "float64"), x1.astype("float64"), x2.astype("float64")
            desired = {
                name: np.asarray(value)
                for name, value in dense_kernels(net.apply_fn, *wide).items()
            }
        for outputs in ("full", "mean"):
            ours = sn.ntk.empirical(net, params, x1, x2, outputs)
            assert_close(ours, desired[outputs], rtol=1e-6 * (1 + logits))


# --- precisions
# -------------------------------------------------------------------------------------------------------


def test_points_and_weights_of_two_precisions(x64):
    """The wider one is computed with, by kernel and operator alike."""
    net = two_layer("softmax", width=16, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = points(1, 5, 3, "float32")
    desired = sn.ntk.empirical(net, params, x.astype("float64"))
    for p, z in ((params, x), (cast(params, "float32"), x.astype("float64"))):
        kernel, operator = sn.ntk.empirical(net, p, z), sn.ntk.operator(net, p, z, block_size=2)
        assert kernel.dtype == operator.dtype == "float64"
        assert_close(operator.mv(np.ones((5, 2))), kernel.sum((1, 3)))
        if p is params:
            assert_close(kernel, desired)


def test_float32_beside_float64_and_under_strict_promotion(x64):
    """Carries keep their precision, and nothing is promoted silently."""
    net = two_layer("softmax", width=16, out_dim=2, antisymmetric=False, train_readout=True)
    params = cast(net.init_fn(jax.random.key(0), (-1, 3))[1], "float32")
    x, v = points(1, 5, 3, "float32"), points(2, 5, 2, "float32")
    with jax.numpy_dtype_promotion("strict"):
        results = [
            sn.ntk.empirical(net, params, x, outputs=outputs)
            for outputs in ("full", "mean", "diagonal")
        ]
        own = sn.ntk.empirical(lambda w, x: jnp.tanh(x @ w), params.hidden, x, vmap_axes=0)
        for operator, vector in (
            (sn.ntk.operator(net, params, x, block_size=2), v),
            (
                sn.ntk.operator(
                    lambda w, x: jnp.tanh(x @ w), params.hidden[:, :2], x, block_size=2
                ),
                v,
            ),
            (sn.ntk.kernel_operator(lambda a, b: jnp.exp(a @ b.T), x, block_size=2), v[:, 0]),
        ):
            results += [operator.mv(vector), operator.rows(jnp.arange(2)), operator.diagonal()]
            results += [operator.cross(x[:3]).mv(vector)]
    assert all(result.dtype == "float32" for result in [*results, own])


def test_half_precision():
    net = two_layer("softmax", width=16)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = points(1, 5, 3, "float32")
    desired = np.asarray(sn.ntk.empirical(net, params, x), np.float64)[:, :, 0, 0]
    for dtype in ("bfloat16", "float16"):
        kernel = sn.ntk.empirical(net, cast(params, dtype), x.astype(dtype))
        operator = sn.ntk.operator(net, cast(params, dtype), x.astype(dtype), block_size=2)
        assert kernel.dtype == operator.dtype == dtype
        assert_close(kernel[:, :, 0, 0].astype("float32"), desired, rtol=0.05)
        assert_close(
            operator.mv(jnp.ones((5, 1), dtype))[:, 0].astype("float32"), desired.sum(1), rtol=0.05
        )


# --- wrong arguments
# --------------------------------------------------------------------------------------------------

VECTORS = [
    (np.array([1j, 2j, 3j]), "must be real numbers"),
    (np.array(["1", "2", "3"]), "must be real numbers"),
    (np.array([True, False, True]), "must be real numbers|must be a floating-point array"),
    (np.array([1, 2, 3]), "must be a floating-point array"),
    (None, "must be an array"),
    ("vector", "must be an array"),
    ({"v": 1.0}, "must be an array"),
    ([[1.0], [2.0, 3.0]], "must be an array"),
    (np.ones(4), r"must have shape \[3"),
    (np.float32(1), r"must have shape \[3"),
    (np.array([1e300, 0, 0]), "must be finite in float32"),
    (np.array([np.nan, 0, 0]), "must be finite"),
]


@pytest.mark.parametrize(("wrong", "message"), VECTORS)
def test_vectors_are_refused_by_name(wrong, message, untyped):
    operator = sn.ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(3))
    for product in (operator.mv, operator.cross(jnp.eye(3)[:2]).mv):
        with pytest.raises(ValueError, match=f"vector ({message})"):
            product(wrong)
    for product in (operator.mm, operator.cross(jnp.eye(3)[:2]).mm):
        with pytest.raises(ValueError, match=f"vectors ({message})"):
            product(wrong[:, None] if "finite" in message else wrong)


def test_lists_are_converted(untyped):
    operator = sn.ntk.kernel_operator(lambda a, b: a @ b.T, [[1.0, 0.0], [0.0, 2.0]])
    assert_close(operator.mv([1.0, 2.0]), [1.0, 8.0])
    assert_close(operator.rows([1, -2]), [[0.0, 4.0], [1.0, 0.0]])


def test_numbers_of_another_precision_must_fit(x64, untyped):
    operator = sn.ntk.kernel_operator(lambda a, b: a @ b.T, jnp.eye(3, dtype="float32"))
    with pytest.raises(ValueError, match="vector must fit float32"):
        operator.mv(jnp.array([1e300, 0, 0]))
    with pytest.raises(ValueError, match="points must fit float32"):
        operator.cross(jnp.array([[1e300, 0, 0]]))


def test_operators_refuse_by_name(untyped):
    x = jnp.eye(3)
    operator = sn.ntk.kernel_operator(lambda a, b: a @ b.T, x)
    for call, message in [
        (lambda: operator.rows(jnp.array([3])), "indices must lie between -3 and 2, got 3 to 3"),
        (
            lambda: operator.rows(jnp.array([-4, 0])),
            "indices must lie between -3 and 2, got -4 to 0",
        ),
        (lambda: operator.rows(jnp.array([0.0])), "indices must be integers"),
        (lambda: operator.rows(jnp.array([True])), "indices must be"),
        (lambda: operator.rows(1), r"indices must have shape \[b\]"),
        (lambda: operator.rows(None), "indices must be"),
        (lambda: operator.rows(jnp.array([[0]])), r"indices must have shape \[b\]"),
        (lambda: operator.astype("int32"), "dtype must be a floating-point type"),
        (lambda: operator.astype("double trouble"), "dtype must be a floating-point type"),
        (lambda: operator.astype(complex), "dtype must be a floating-point type"),
        (lambda: operator.astype("float64"), "dtype must be one that JAX works in"),
        (lambda: operator.cross(None), "points must be an array"),
        (lambda: operator.cross(x[:, :2]), r"points must have shape \[t, 3\]"),
        (lambda: operator.at(x * jnp.inf), "points must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_kernel_operators_refuse_by_name(untyped):
    x = jnp.eye(3)
    make = sn.ntk.kernel_operator
    net = two_layer("softmax", width=2)
    for call, message in [
        (lambda: make(lambda a, b: None, x), "kernel_fn must return one array.*NoneType"),
        (lambda: make(lambda a, b: (a @ b.T,), x), "kernel_fn must return one array.*tuple"),
        (lambda: make(lambda a, b: a @ b.T > 0, x), "kernel_fn must return floating-point"),
        (lambda: make(lambda a, b: 1j * a @ b.T, x), "kernel_fn must return floating-point"),
        (
            lambda: make(lambda a, b: a @ b, x),
            r"kernel_fn\(x1, x2\) fails|kernel_fn must return \[n1, n2\]",
        ),
        (lambda: make(lambda a: a, x), r"kernel_fn\(x1, x2\) fails"),
        (lambda: make(None, x), "kernel_fn must be a function"),
        (lambda: make(x, lambda a, b: a @ b.T), "kernel_fn must be a function"),
        (lambda: make(jnp.eye(3), x), "kernel_fn must be a function"),
        (lambda: make(net.kernel_fn, x, "nntk"), "get must be one of.*Did you mean"),
        (lambda: make(net.kernel_fn, x, ["ntk"]), "get must be one of"),
        (lambda: make(net.kernel_fn, x, None), "get must be one of"),
        (lambda: make(net.kernel_fn, None), "x must be an array"),
        (lambda: make(net.kernel_fn, x, block_size=0), "block_size must be a positive integer"),
        (lambda: make(net.kernel_fn, x, block_size=True), "block_size must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# --- other platforms
# --------------------------------------------------------------------------------------------------


def test_programs_can_be_exported_for_accelerators():
    """No callback of Python is in them, for softntk's networks nor for others."""
    net = two_layer("softmax", width=16, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x, v = points(1, 5, 3, "float32"), points(2, 5, 2, "float32")
    functions = {
        "kernel": lambda x: sn.ntk.empirical(net, params, x),
        "product": lambda x: sn.ntk.operator(net, params, x, block_size=2).mv(v),
        "own kernel": lambda x: sn.ntk.empirical(net.apply_fn, params, x, vmap_axes=0),
        "own product": lambda x: sn.ntk.operator(net.apply_fn, params, x, block_size=2).mv(v),
    }
    for function in functions.values():
        exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(x)
        assert set(exported.platforms) == {"cuda", "tpu"}


def test_operators_in_another_precision(x64):
    """Weights, points and floating-point constants are cast; integers stay."""
    net = two_layer("softmax", width=16, out_dim=2)
    _, params = net.init_fn(jax.random.key(0), (-1, 3))
    x = points(1, 5, 3)
    weights = {"hidden": params.hidden[:, :2], "count": jnp.array(3)}

    def apply_fn(weights, x, scale):
        return scale * weights["count"].astype(x.dtype) * jnp.tanh(x @ weights["hidden"])

    apply_kwargs = {"scale": jnp.float64(0.5)}
    for operator, vector in (
        (sn.ntk.operator(net, params, x), jnp.ones((5, 2))),
        (sn.ntk.operator(apply_fn, weights, x, apply_kwargs=apply_kwargs), jnp.ones((5, 2))),
        (sn.ntk.kernel_operator(net.kernel_fn, x), jnp.ones(5)),
    ):
        narrow = operator.astype("float32")
        assert narrow.dtype == "float32"
        assert narrow.mv(vector).dtype == "float32"
        assert_close(narrow.mv(vector), operator.mv(vector), "float32")


@pytest.mark.parametrize("exponent", range(-7, 8))
def test_rows_are_split_into_even_powers(exponent):
    """x̂ has its largest entry in [1, 4), and nothing is rounded."""
    x = jnp.asarray([[1.5, -0.3]]) * 2.0**exponent
    values, exponents = scale_rows(x)
    assert int(exponents[0]) % 2 == 0
    assert 1 <= float(jnp.max(jnp.abs(values))) < 4
    assert np.array_equal(values * 2.0 ** float(exponents[0]), x)


def test_a_kernel_that_is_infinite_at_a_pair_is_as_symmetric_as_elsewhere():
    """What is infinite both ways is no difference; the products say where it is met."""

    def kernel_fn(a, b):
        far = (jnp.abs(a[:, :1]) > 5) | (jnp.abs(b[None, :, 0]) > 5)
        return jnp.where(far, jnp.inf, a @ b.T)

    x = jnp.concatenate([points(0, 4, 3, "float32"), jnp.full((1, 3), 9.0)])
    operator = sn.ntk.kernel_operator(kernel_fn, x)
    assert np.isposinf(np.asarray(operator.rows(jnp.array([4])))).all()
    assert np.isfinite(np.asarray(operator.diagonal())[:4]).all()
