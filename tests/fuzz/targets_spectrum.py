"""Targets: spectra of kernels."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fuzz.cases import Call, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite
from softntk.ntk._spectral_measure import SpectralMeasure


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
    return SpectralMeasure(
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
