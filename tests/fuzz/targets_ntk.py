"""Targets: kernels and their operators."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, long
from fuzz.targets_activations import factors, network, network_points, well_posed


def empirical_kernel(params: Any, x: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel [n, n, k, k] in long double, and how large its rounding errors can be."""
    _, _, g = factors(params, x, family)
    dots = long(x) @ long(x).T
    norms = np.sqrt(np.diag(dots))
    z = 1 + (np.abs(x) @ np.abs(np.asarray(params.hidden, np.float64))).max(1)
    # ‖a − μ‖ in the place of ‖g‖, which may cancel.
    reach = np.abs(g).sum(2).max(1) + (np.abs(g).max() if family.endswith("softmax") else 0)
    size = (norms * reach * z)[:, None] * (norms * reach * z)[None]
    return np.einsum("ij,iar,jbr->ijab", dots, g, g), size


@target(
    "ntk.empirical",
    net="apply",
    params="params",
    x1="rows",
    x2="rows?",
    outputs="choice",
    block_size="count?",
    vmap_axes="zero?",
    apply_kwargs="keywords?",
)
def empirical(draw: Draw) -> Call:
    net, params, family = network(draw)
    x = network_points(draw)
    outputs = draw.pick("full", "mean", "diagonal")
    arguments = {"net": net, "params": params, "x1": draw.cast(x), "x2": None, "outputs": outputs}
    if draw.chance(0.3):
        arguments |= {"x2": draw.cast(x), "block_size": 2}

    def check(result: Any) -> str | None:
        if not well_posed(params, x, family):
            return never_nan(result)
        full, size = empirical_kernel(params, x, family)
        diagonal = np.einsum("ijaa->ija", full)
        want = {"full": full, "mean": diagonal.mean(-1), "diagonal": diagonal}[outputs]
        return compare(
            result,
            want,
            128 * draw.eps,
            draw,
            size=size.reshape(size.shape + (1,) * (want.ndim - 2)),
        )

    return Call(arguments, check)


def _symmetric_matrix(op: Any) -> np.ndarray:
    return np.asarray(op.as_matrix())


@target(
    "ntk.operator",
    net="apply",
    params="params",
    x="rows",
    block_size="count?",
    apply_kwargs="keywords?",
)
def operator(draw: Draw) -> Call:
    net, params, family = network(draw)
    x = network_points(draw)

    def check(op: Any) -> str | None:
        if not well_posed(params, x, family):
            return never_nan(op.as_matrix())
        full, size = empirical_kernel(params, x, family)
        want = full.transpose(0, 2, 1, 3).reshape(draw.k * draw.n, -1)
        ones = np.ones((draw.n, draw.k))
        product = np.asarray(op.mv(jnp.asarray(ones, draw.dtype))).reshape(-1)
        spread = np.repeat(np.repeat(size, draw.k, 0), draw.k, 1)
        return first_message(
            compare(op.as_matrix(), want, 128 * draw.eps, draw, size=spread),
            compare(product, want.sum(1), 128 * draw.eps, draw, size=spread.sum(1)),
        )

    return Call(
        {"net": net, "params": params, "x": draw.cast(x), "block_size": draw.pick(None, 3)}, check
    )


# --- operators of a kernel in closed form: softmax, σ = 1
# -----------------------------------------------------------


@functools.cache
def softmax_network() -> Any:
    """Return one network, so that programs of its kernel are compiled once."""
    return sn.networks.two_layer("softmax", width=2)


def _softmax_ntk(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    dots = long(x1) @ long(x2).T
    return dots * np.exp(dots)


def _kernel_points(draw: Draw) -> np.ndarray:
    return draw.points(scale=1.0 if draw.mild else draw.pick(1.0, 1e-3, 1e-15, 2.0))


def kernel_operator_of(draw: Draw) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return an operator, its matrix in long double, and its points."""
    net = softmax_network()
    x = _kernel_points(draw)
    op = sn.ntk.kernel_operator(
        net.kernel_fn, jnp.asarray(x, draw.dtype), block_size=draw.pick(None, 3)
    )
    return op, _softmax_ntk(x, x), x


def _size(x1: np.ndarray, x2: np.ndarray | None = None) -> np.ndarray:
    x2 = x1 if x2 is None else x2
    norms1, norms2 = (np.sqrt((long(x) ** 2).sum(1)) for x in (x1, x2))
    product = norms1[:, None] * norms2[None]
    return product * np.exp(np.minimum(long(x1) @ long(x2).T, 700)) * (1 + product)


def _same_matrix(
    draw: Draw, result: Any, x1: np.ndarray, x2: np.ndarray | None = None
) -> str | None:
    want = _softmax_ntk(x1, x1 if x2 is None else x2)
    # A slope that is not a normal number may be zero.
    dots = np.abs(long(x1) @ long(x1 if x2 is None else x2).T)
    return compare(
        result, want, 128 * draw.eps, draw, size=_size(x1, x2) + dots * draw.tiny / draw.eps
    )


@target("ntk.kernel_operator", kernel_fn="callable", x="rows", get="choice", block_size="count?")
def kernel_operator(draw: Draw) -> Call:
    net = softmax_network()
    x = _kernel_points(draw)
    arguments = {
        "kernel_fn": net.kernel_fn,
        "x": draw.cast(x),
        "get": "ntk",
        "block_size": draw.pick(None, 3),
    }
    return Call(arguments, lambda op: _same_matrix(draw, op.as_matrix(), x))


@target("ntk.GramOperator.as_matrix")
def gram_matrix(draw: Draw) -> Call:
    op, _, x = kernel_operator_of(draw)
    return Call({"self": op}, lambda result: _same_matrix(draw, result, x))


@target("ntk.GramOperator.diagonal")
def gram_diagonal(draw: Draw) -> Call:
    op, matrix, x = kernel_operator_of(draw)
    return Call(
        {"self": op},
        lambda result: compare(
            result, np.diag(matrix), 128 * draw.eps, draw, size=np.diag(_size(x))
        ),
    )


@target("ntk.GramOperator.transpose")
def gram_transpose(draw: Draw) -> Call:
    op, _, _ = kernel_operator_of(draw)
    return Call({"self": op}, lambda result: None if result is op else "another operator")


@target("ntk.GramOperator.astype", dtype="dtype")
def gram_astype(draw: Draw) -> Call:
    op, _, _ = kernel_operator_of(draw)
    return Call(
        {"self": op, "dtype": jnp.float32},
        lambda result: None if result.dtype == jnp.float32 else f"{result.dtype}",
    )


@target("ntk.GramOperator.at", points="rows")
def gram_at(draw: Draw) -> Call:
    op, _, _ = kernel_operator_of(draw)
    x = _kernel_points(draw)
    return Call(
        {"self": op, "points": draw.cast(x)},
        lambda result: _same_matrix(draw, result.as_matrix(), x),
    )


@target("ntk.GramOperator.cross", points="rows")
def gram_cross(draw: Draw) -> Call:
    op, _, x = kernel_operator_of(draw)
    points = _kernel_points(draw)
    arguments = {"self": op, "points": draw.cast(points)}
    return Call(arguments, lambda result: _same_matrix(draw, result.as_matrix(), points, x))


def _vectors(draw: Draw, *shape: int) -> np.ndarray:
    return draw.rounded(draw.normal(*shape) * draw.scale(20))


def _product_check(draw: Draw, want: np.ndarray, size: np.ndarray, vectors: np.ndarray) -> Any:
    return lambda result: compare(
        result, want @ long(vectors), 256 * draw.eps, draw, size=size @ np.abs(long(vectors))
    )


@target("ntk.GramOperator.mv", vector="through")
def gram_mv(draw: Draw) -> Call:
    op, matrix, x = kernel_operator_of(draw)
    vector = _vectors(draw, draw.n)
    return Call(
        {"self": op, "vector": draw.cast(vector)}, _product_check(draw, matrix, _size(x), vector)
    )


@target("ntk.GramOperator.mm", vectors="through")
def gram_mm(draw: Draw) -> Call:
    op, matrix, x = kernel_operator_of(draw)
    vectors = _vectors(draw, draw.n, 2)
    return Call(
        {"self": op, "vectors": draw.cast(vectors)}, _product_check(draw, matrix, _size(x), vectors)
    )


@target("ntk.GramOperator.rows", indices="integers")
def gram_rows(draw: Draw) -> Call:
    op, matrix, x = kernel_operator_of(draw)
    indices = np.array([0, draw.n - 1])
    arguments = {"self": op, "indices": jnp.asarray(indices)}
    return Call(
        arguments,
        lambda result: compare(
            result, matrix[indices], 128 * draw.eps, draw, size=_size(x)[indices]
        ),
    )


def _cross(draw: Draw) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    op, _, x = kernel_operator_of(draw)
    points = _kernel_points(draw)
    return op.cross(jnp.asarray(points, draw.dtype)), _softmax_ntk(points, x), points, x


@target("ntk.CrossOperator.as_matrix")
def cross_matrix(draw: Draw) -> Call:
    op, _, points, x = _cross(draw)
    return Call({"self": op}, lambda result: _same_matrix(draw, result, points, x))


@target("ntk.CrossOperator.transpose")
def cross_transpose(draw: Draw) -> Call:
    op, _, points, x = _cross(draw)
    return Call({"self": op}, lambda result: _same_matrix(draw, result.as_matrix(), x, points))


@target("ntk.CrossOperator.mv", vector="through")
def cross_mv(draw: Draw) -> Call:
    op, matrix, points, x = _cross(draw)
    vector = _vectors(draw, draw.n)
    return Call(
        {"self": op, "vector": draw.cast(vector)},
        _product_check(draw, matrix, _size(points, x), vector),
    )


@target("ntk.CrossOperator.mm", vectors="through")
def cross_mm(draw: Draw) -> Call:
    op, matrix, points, x = _cross(draw)
    vectors = _vectors(draw, draw.n, 2)
    return Call(
        {"self": op, "vectors": draw.cast(vectors)},
        _product_check(draw, matrix, _size(points, x), vectors),
    )
