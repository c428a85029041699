"""Targets: kernels, their operators and spectra."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, first_message, long
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


# --- spectra
# --------------------------------------------------------------------------------------------------------


def eigenvalues_of(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a matrix of any unit, in float64."""
    size = np.abs(matrix).max() or 1.0
    return np.linalg.eigvalsh(matrix / size) * size


@target("ntk.extreme_eigenvalues", op="gram", steps="count", key="key?", dense_size="count0")
def extreme_eigenvalues(draw: Draw) -> Call:
    matrix = draw.gram()

    def check(result: Any) -> str | None:
        want = eigenvalues_of(matrix)
        room = 8 * draw.eps * np.abs(want).max() * len(matrix) + 16 * draw.tiny
        for got, right, error in (
            (result.smallest, want[0], result.smallest_error),
            (result.largest, want[-1], result.largest_error),
        ):
            if not abs(float(got) - right) <= float(error) + room:
                return f"{float(got)} ± {float(error)} instead of {right}"
        return None

    return Call({"op": draw.cast(matrix), "steps": 20, "key": None, "dense_size": 1024}, check)


@target(
    "ntk.spectral_density",
    op="gram",
    steps="count",
    probes="count",
    key="key?",
    dense_size="count0",
)
def spectral_density(draw: Draw) -> Call:
    matrix = draw.gram()
    arguments = {"op": draw.cast(matrix), "steps": 8, "probes": 2, "key": None, "dense_size": 1024}
    return Call(
        arguments,
        lambda result: compare(result.nodes[0], eigenvalues_of(matrix), 32 * draw.eps, draw),
    )


def _measure(draw: Draw) -> tuple[Any, np.ndarray]:
    values = np.sort(np.abs(draw.normal(draw.n)) * draw.scale(10))
    values = draw.rounded(values)
    nodes = jnp.asarray(values, draw.dtype)[None]
    return sn.ntk.spectrum.SpectralMeasure(
        nodes=nodes, weights=jnp.full_like(nodes, 1 / draw.n), size=jnp.asarray(draw.n)
    ), values


def _double(t: Any) -> Any:
    return 2 * t


@target("ntk.SpectralMeasure.mean", function="callable")
def measure_mean(draw: Draw) -> Call:
    measure, values = _measure(draw)
    arguments = {"self": measure, "function": _double}
    return Call(arguments, lambda result: compare(result, 2 * values.mean(), 16 * draw.eps, draw))


@target("ntk.SpectralMeasure.rows", function="callable")
def measure_rows(draw: Draw) -> Call:
    measure, values = _measure(draw)
    arguments = {"self": measure, "function": _double}
    return Call(arguments, lambda result: compare(result, [2 * values.mean()], 16 * draw.eps, draw))


@target("ntk.SpectralMeasure.standard_error", function="callable")
def measure_error(draw: Draw) -> Call:
    measure, _ = _measure(draw)
    return Call(
        {"self": measure, "function": _double}, lambda result: compare(result, 0.0, 0, draw)
    )


@target("ntk.SpectralMeasure.cumulative", levels="numbers")
def measure_cumulative(draw: Draw) -> Call:
    measure, values = _measure(draw)
    levels = np.array([0.0, values[0] * 2, values[-1] * 2])
    want = (values[:, None] <= draw.rounded(levels)[None]).mean(0)
    arguments = {"self": measure, "levels": jnp.asarray(levels, draw.dtype)}
    return Call(arguments, lambda result: compare(result, want, 16 * draw.eps, draw))


@target("ntk.SpectralMeasure.density", levels="elements", bandwidth="positive")
def measure_density(draw: Draw) -> Call:
    measure, values = _measure(draw)
    levels, bandwidth = draw.rounded(values * 1.1), float(draw.rounded(np.array(0.5 * values[-1])))
    z = (levels[:, None] - values[None]) / bandwidth
    want = (np.exp(-0.5 * z**2) / (bandwidth * np.sqrt(2 * np.pi))).mean(1)
    arguments = {"self": measure, "levels": jnp.asarray(levels, draw.dtype), "bandwidth": bandwidth}
    return Call(arguments, lambda result: compare(result, want, 64 * draw.eps, draw))


@target("ntk.target_alignment", op="gram", y="array", steps="count", dense_size="count0")
def target_alignment(draw: Draw) -> Call:
    matrix = draw.gram()
    y = draw.rounded(draw.normal(draw.n, draw.k) * (0.0 if draw.chance(0.2) else draw.scale(30)))

    def check(result: Any) -> str | None:
        if not np.abs(y).max() > draw.tiny * 1e3:
            return finite(result.weights)
        mean = np.sum(
            np.asarray(result.weights, np.float64) * np.asarray(result.nodes, np.float64), 1
        )
        unit = y / np.abs(y).max(0)
        size = np.abs(matrix).max() or 1.0
        want = np.einsum("ik,ij,jk->k", unit, matrix / size, unit) / (unit**2).sum(0) * size
        return compare(mean, want, 64 * draw.eps, draw, size=np.abs(matrix).max())

    return Call({"op": draw.cast(matrix), "y": draw.cast(y), "steps": 8, "dense_size": 1024}, check)


@target("ntk.effective_dimension", op="gram", ridge="numbers")
def effective_dimension(draw: Draw) -> Call:
    matrix = draw.gram()
    top = np.abs(matrix).max() or 1.0
    ridge = float(draw.rounded(np.array(top * draw.pick(1e-2, 1.0, 1e5))))

    def check(result: Any) -> str | None:
        values = eigenvalues_of(matrix)
        return compare(result, np.sum(values / (values + ridge)), 1e4 * draw.eps, draw, size=1.0)

    return Call({"op": draw.cast(matrix), "ridge": ridge}, check)
