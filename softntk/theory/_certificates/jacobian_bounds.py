"""The Jacobian of a two-layer network in its hidden weights: its singular values, how far it can
change on a box of logits.

The inequalities are those of the theorem in ``convergence.py``: (i) for ``speed``, (iii) for
``largest_change`` and κ.
"""

import math
from typing import NamedTuple

import numpy as np

from softntk._linalg.norms import host_norm
from softntk._linalg.rigorous import perron_norm, slack, smallest_eigenvalue
from softntk.networks import Network, Parameters
from softntk.theory._certificates.logit_box import Box, Slopes

_BLOCK = 20_000_000  # numbers of a block of units


class Data(NamedTuple):
    """Everything in float64; units that occur twice with opposite readouts are kept once."""

    x: np.ndarray  # [n, d], with a column of ones under bias
    dots: np.ndarray  # |⟨x_i, x_j⟩|, rounded up
    squares: np.ndarray  # their squares
    box: Box
    readout: np.ndarray  # [m, k]
    copies: int
    gamma: float
    sizes: np.ndarray  # A, [n, m]
    means: np.ndarray  # what |μ_i| stays below, [n, 1]
    residual: float
    output_error: float  # of F as computed, against the true one


def _double_weights(params: Parameters, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points, hidden weights and readout in float64; a bias is the weight of a coordinate
    that is one.
    """
    W = np.asarray(params.hidden, np.float64)
    if params.bias is not None:
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        W = np.concatenate([W, np.asarray(params.bias, np.float64)[None]])
    return x, W, np.asarray(params.readout, np.float64)


def _are_twins(W: np.ndarray, a: np.ndarray) -> bool:
    """Return whether the second half of the neurons has the weights of the first and the opposite
    readout.
    """
    half, odd = divmod(W.shape[1], 2)
    return (
        not odd and np.array_equal(W[:, :half], W[:, half:]) and np.array_equal(a[:half], -a[half:])
    )


def prepare(net: Network, params: Parameters, x: np.ndarray, y: np.ndarray) -> "Data | str":
    """Return what the proof needs of x [n, d] and y [n, k] in float64, or why there is no proof."""
    x, W, a = _double_weights(params, x)
    d, m = W.shape
    half = m // 2
    twins = _are_twins(W, a)
    if twins:
        W, a = W[:, :half], a[:half]
    architecture = net.architecture
    copies, outer = 1 + twins, math.sqrt(architecture.kernel_scale)
    gamma = outer * (math.sqrt(m) if architecture.normalized else 1 / math.sqrt(m))
    box = Box(architecture.activation.name, architecture.normalized, x, W, copies)
    if not (box.total > 0).all() or box.slopes(box.start) is None:
        row = int(np.argmin(box.total))
        return f"The normaliser of row {row} is not above zero, or the network overflows: there is no proof for such a start."
    with np.errstate(over="ignore", invalid="ignore"):
        F = np.zeros_like(y) if twins else gamma * (box.values @ a)
        moved = np.expm1(box.start)  # what the rounding of the logits does to u and α, relative
        room = 2 * moved.max() + slack(m)
        output_error = (
            0.0
            if twins
            else gamma * room * float(np.max(np.abs(box.values) @ np.abs(a), initial=0.0))
        )
        residual = float(host_norm(F - y)) * (1 + slack(F.size)) + math.sqrt(F.size) * output_error
    if not np.isfinite(residual):
        return "The network overflows at the start: there is no proof for it."
    lengths = host_norm(a, axis=1)[None, :]
    means = np.zeros((len(x), 1))
    if architecture.normalized:
        means = (host_norm(y, axis=1, keepdims=True) + residual) / gamma
    dots = (np.abs(x @ x.T) + (d + 2) * np.finfo(float).eps * (np.abs(x) @ np.abs(x).T)) * (
        1 + slack(d)
    )
    # from above, where they underflow
    squares = np.where(dots > 0, np.maximum(dots**2, np.finfo(float).tiny), 0)
    if not np.isfinite(squares).all():
        return "Squares of inner products of rows of x exceed the largest float: there is no proof. Take another unit."
    return Data(
        x, dots, squares, box, a, copies, gamma, lengths + means, means, residual, output_error
    )


def speed(data: Data, slopes: Slopes) -> np.ndarray:
    """The right-hand side of the equation for δ."""
    grown = (slopes.high * data.sizes) ** 2
    return data.gamma * np.sqrt(data.squares @ grown) * (1 + slack(len(data.x)))


def _norm(data: Data, moved: np.ndarray, rest: np.ndarray) -> float:
    """Of a change of J: γ·moved∘a (moved ≥ 0, [n, m]) and rest, γ·moved∘μ + v∘ΔF, [n, m], by (iii)."""
    lengths = host_norm(data.readout, axis=1)
    root = math.sqrt(data.copies)
    with np.errstate(over="ignore", invalid="ignore"):
        b = root * data.gamma * moved * lengths
        main = perron_norm(data.dots * (b @ b.T))
        if data.readout.shape[1] > 1:
            outer = (data.copies * data.gamma**2) * np.einsum(
                "ir,rk,rl->ikl", moved**2, data.readout, data.readout, optimize=True
            )
            if np.isfinite(outer).all():
                tops = np.sqrt(
                    np.linalg.eigvalsh(outer)[:, -1].clip(0) * (1 + slack(data.readout.shape[0]))
                )
                main = min(main, perron_norm(data.dots * np.outer(tops, tops)))
        other = root * rest
        total = math.sqrt(main) + math.sqrt(perron_norm(data.dots * (other @ other.T)))
    return total * (1 + slack(data.readout.shape[0]))


def largest_change(data: Data, slopes: Slopes) -> float:
    """ΔJ on a box, from J as computed."""
    centre = data.box.centre
    moved = np.maximum(slopes.high - centre, centre - slopes.low)
    drift = 2 * data.residual + data.output_error if data.box.normalized else 0.0
    return _norm(data, moved, data.gamma * moved * data.means + centre * drift)


def curvature(data: Data, slopes: Slopes, largest: float) -> float:
    """κ on a box."""
    moves = speed(data, slopes)
    bent = slopes.bend * moves
    if data.box.normalized:
        bent += slopes.high * (data.copies * np.sum(slopes.high * moves, axis=1, keepdims=True))
    drift = largest**2 if data.box.normalized else 0.0
    return _norm(data, bent, data.gamma * bent * data.means + slopes.high * drift)


def kernel(data: Data) -> tuple[float, float, int, int]:
    """Squares of σ_min(J) from below and of σ_max from above, and the two points that are hardest
    to tell apart.
    """
    a, centre, (n, m) = data.readout, data.box.centre, data.box.centre.shape
    k = a.shape[1]
    means = data.box.values @ a if data.box.normalized and data.output_error else np.zeros((n, k))
    grams = np.zeros((n * k, n * k))
    block = max(_BLOCK // (n * k), 1)
    for start in range(0, m, block):
        part = slice(start, start + block)
        g = data.gamma * centre[:, None, part] * (a[part].T[None] - means[:, :, None])
        g = g.reshape(n * k, -1)
        grams += data.copies * (g @ g.T)
    H = np.repeat(np.repeat(data.x @ data.x.T, k, 0), k, 1) * grams
    H = (H + H.T) / 2
    if not np.isfinite(H).all():
        return -math.inf, math.inf, 0, 0
    error = slack(m + data.x.shape[1]) * float(np.trace(H))
    values, vectors = np.linalg.eigh(H)
    sizes = np.linalg.norm(vectors[:, 0].reshape(n, k), axis=1)
    worst = np.argsort(-sizes)[:2]
    first, second = int(worst.min()), int(worst.max())
    largest = float(values[-1]) + error + slack(n * k) * float(values[-1])
    return smallest_eigenvalue(H, error), largest, first, second
