"""Operators that are never formed, against the matrices that they stand for."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from helpers import assert_close, cache_size, cast, dense_jacobian, points, slow_except

import softntk as sn
from softntk.networks import two_layer


def network_operator(name, dtype, block_size=4):
    net = two_layer(
        name,
        width=24,
        out_dim=2,
        sigma=0.8,
        antisymmetric=False,
        train_readout=name != "softmax",
        bias=name != "softmax",
    )
    params = cast(net.init_fn(jax.random.key(0), (-1, 4))[1], dtype)
    x = points(1, 7, 4, dtype)
    jacobian = np.asarray(dense_jacobian(net.apply_fn, params, x)).reshape(14, -1)
    return (
        net,
        params,
        x,
        sn.ntk.operator(net, params, x, block_size=block_size),
        jacobian @ jacobian.T,
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_except(
        [
            ("softmax", "float32"),
            ("softmax", "float64"),
            ("res_softmax", "float64"),
            ("relu", "float32"),
        ],
        ("softmax", "float32"),
    ),
    indirect=["dtype"],
)
def test_network_operator_is_its_matrix(name, dtype):
    net, params, x, op, matrix = network_operator(name, dtype)
    v = points(2, 14, 3, dtype).reshape(7, 2, 3)
    image = (matrix @ np.asarray(v).reshape(14, 3)).reshape(7, 2, 3)
    for ours in (op, sn.ntk.operator(net.apply_fn, params, x, block_size=4)):
        assert_close(ours.mm(v), image, dtype)
        assert_close(ours.mv(v[..., 0]), image[..., 0], dtype)
        assert_close(ours.rows(jnp.array([3, 0, 13])), matrix[[3, 0, 13]], dtype)
        assert_close(ours.diagonal(), np.diag(matrix), dtype)
        assert_close(ours.as_matrix(), matrix, dtype)


def test_products_of_a_network_whose_readout_is_trained():
    net = two_layer("exp", width=3, antisymmetric=False, train_readout=True)
    _, params = net.init_fn(jax.random.key(0), (-1, 2))
    x, v = points(1, 5, 2, "float32"), points(2, 5, 1, "float32")
    jacobian = np.asarray(dense_jacobian(net.apply_fn, params, x), np.float64).reshape(5, -1)
    op = sn.ntk.operator(net, params, x, block_size=4)
    assert_close(op.mv(v), jacobian @ (jacobian.T @ np.asarray(v)), "float32")
    assert_close(op.diagonal(), np.sum(jacobian**2, axis=1), "float32")


@pytest.mark.slow
def test_cross_operator_is_its_matrix(x64):
    net, params, x, op, _ = network_operator("res_softmax", "float64")
    v = points(2, 7, 2)
    others = points(3, 9, 4)
    between = np.asarray(dense_jacobian(net.apply_fn, params, others)).reshape(18, -1)
    between = between @ np.asarray(dense_jacobian(net.apply_fn, params, x)).reshape(14, -1).T
    for ours in (op, sn.ntk.operator(net.apply_fn, params, x, block_size=4)):
        cross = ours.cross(others)
        assert_close(cross.mv(v), (between @ np.asarray(v).reshape(14)).reshape(9, 2))
        assert_close(cross.as_matrix(), between)
        w = points(4, 9, 2)
        assert_close(cross.T.mv(w).reshape(14), between.T @ np.asarray(w).reshape(18))


def test_lineax_takes_it(x64):
    _, _, _, op, matrix = network_operator("softmax", "float64")
    assert lineax.is_symmetric(op)
    assert lineax.is_positive_semidefinite(op)
    assert op.T is op
    assert_close(lineax.diagonal(op), np.diag(matrix))
    assert_close(lineax.materialise(op).as_matrix(), matrix)
    assert_close(lineax.materialise(op.cross(op.x[:3])).as_matrix(), matrix[:6])
    assert not lineax.is_symmetric(op.cross(op.x))
    v = points(2, 7, 2)
    shifted = lineax.TaggedLinearOperator(
        op + lineax.IdentityLinearOperator(op.in_structure()), lineax.positive_semidefinite_tag
    )
    solved = lineax.linear_solve(shifted, v, lineax.CG(1e-12, 1e-12)).value
    assert_close(
        solved.reshape(14),
        np.linalg.solve(matrix + np.eye(14), np.asarray(v).reshape(14)),
        rtol=1e-9,
    )


def test_network_operator_is_differentiable(x64):
    net, params, x, _, _ = network_operator("softmax", "float64")
    v = points(2, 7, 2)
    through_operator = lambda p: jnp.sum(jnp.sin(sn.ntk.operator(net, p, x, block_size=4).mv(v)))

    def dense(p):
        jacobian = dense_jacobian(net.apply_fn, p, x).reshape(14, -1)
        return jnp.sum(jnp.sin(jacobian @ (jacobian.T @ v.reshape(14))))

    # (The dense one does not see the frozen readout, which the kernel depends on.)
    ours, desired = jax.grad(through_operator)(params).hidden, jax.grad(dense)(params).hidden
    assert_close(ours, desired, rtol=1e-9)


@pytest.mark.parametrize("get", ["ntk", pytest.param("nngp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", slow_except(["float32", "float64"], "float32"), indirect=True)
def test_kernel_operator_is_its_matrix(get, dtype):
    net = two_layer("softmax", width=2, sigma=0.7, train_readout=True)
    x = points(1, 11, 3, dtype)
    matrix, v = np.asarray(net.kernel_fn(x, None, get)), points(2, 11, 2, dtype)
    op = sn.ntk.kernel_operator(net.kernel_fn, x, get, block_size=4)
    assert_close(op.mm(v), matrix @ np.asarray(v), dtype)
    assert_close(op.rows(jnp.array([10, 2])), matrix[[10, 2]], dtype)
    assert_close(op.diagonal(), np.diag(matrix), dtype)
    others = points(3, 6, 3, dtype)
    between = np.asarray(net.kernel_fn(others, x, get))
    assert_close(op.cross(others).mm(v), between @ np.asarray(v), dtype)
    assert_close(op.cross(others).as_matrix(), between, dtype)
    assert_close(op.cross(others).T.as_matrix(), between.T, dtype)
    assert_close(
        op.at(others).diagonal(), np.diag(np.asarray(net.kernel_fn(others, None, get))), dtype
    )
    plain = sn.ntk.kernel_operator(lambda a, b: jnp.exp(a @ b.T), x)
    assert_close(plain.mv(v[:, 0]), np.exp(np.asarray(x @ x.T)) @ np.asarray(v[:, 0]), dtype)


@pytest.mark.slow
def test_rows_concentrated_on_few_units_keep_their_digits():
    """At logits of ±100 the kernel is what is left of terms that cancel: products and entries
    against float64.
    """
    net = two_layer("softmax", width=128, out_dim=2, antisymmetric=False)
    _, params = net.init_fn(jax.random.key(0), (-1, 8))
    x, v = points(1, 20, 8, "float32") * 30, points(2, 20, 2, "float32")
    with jax.enable_x64(True):
        exact = sn.ntk.operator(net, cast(params, "float64"), x.astype("float64"))
        jacobian = dense_jacobian(
            net.apply_fn, cast(params, "float64"), x.astype("float64")
        ).reshape(40, -1)
        matrix = np.asarray(jacobian @ jacobian.T)
        assert_close(exact.as_matrix(), matrix, rtol=1e-7)
        logits = float(jnp.max(jnp.abs(x @ params.hidden)))
    op = sn.ntk.operator(net, params, x)
    assert_close(op.as_matrix(), matrix, rtol=1e-6 * (1 + logits))
    assert_close(
        op.mv(v).reshape(40), matrix @ np.asarray(v, float).reshape(40), rtol=1e-6 * (1 + logits)
    )


@pytest.mark.slow
def test_second_operator_of_the_same_shapes_does_not_compile_again():
    from softntk.ntk._operators import base

    net = two_layer("softmax", width=24)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    jax.clear_caches()  # the programs of all functions share one table, and a full one forgets
    before = cache_size(base._compiled_mv)
    for seed in (1, 2):
        sn.ntk.kernel_operator(net.kernel_fn, points(seed, 6, 4, "float32")).mv(jnp.ones(6))
        sn.ntk.operator(net, params, points(seed, 6, 4, "float32")).mv(jnp.ones((6, 1)))
    assert cache_size(base._compiled_mv) == before + 2


def test_a_row_outside_the_domain_known_only_at_run_time():
    net = two_layer("softmax", width=24)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    product = jax.jit(lambda x: sn.ntk.operator(net, params, x).mv(jnp.ones((5, 1))))
    x = points(1, 5, 4, "float32")
    assert np.isfinite(product(x)).all()
    assert np.isposinf(product(x.at[2, 1].set(jnp.nan))).all()


def test_bad_input(untyped):
    net = two_layer("softmax", width=24)
    _, params = net.init_fn(jax.random.key(0), (-1, 4))
    x = np.ones((5, 4), np.float32)
    op = sn.ntk.operator(net, params, x)
    for call, message in [
        (lambda: op.mv(jnp.ones(5)), r"vector must have shape \[5, 1\], got shape \(5,\)"),
        (lambda: op.mm(jnp.ones((5, 2, 3))), "vectors must have shape"),
        (lambda: op.cross(x).mv(jnp.ones(5)), r"vector must have shape \[5, 1\], got shape \(5,\)"),
        (lambda: op.cross(x[:, :3]), r"points must have shape \[t, 4\], got shape \(5, 3\)"),
        (lambda: op.cross(x * np.nan), "points must be finite"),
        (lambda: sn.ntk.operator(net, params, x[:, :3]), "x must have 4 features"),
        (lambda: sn.ntk.operator(net, params, x * np.nan), "x must be finite"),
        (
            lambda: sn.ntk.operator(net, params, x, block_size=0),
            "block_size must be a positive integer",
        ),
        (
            lambda: sn.ntk.operator(lambda p, x: x[:, :, None], params, x),
            r"apply_fn must return \[n\] or \[n, k\]",
        ),
        (
            lambda: sn.ntk.kernel_operator(
                lambda a, b: a @ b.T + a[:, :1], np.arange(20.0).reshape(5, 4)
            ),
            "must be symmetric",
        ),
        (lambda: sn.ntk.kernel_operator(lambda a, b: a, x), r"kernel_fn must return \[n1, n2\]"),
        (
            lambda: sn.ntk.kernel_operator(net.kernel_fn, x.astype(int)),
            "x must be a floating-point array",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
