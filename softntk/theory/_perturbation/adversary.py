"""Kernels at moved weights, and the moves that change them most."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._linalg.norms import host_norm, scaled_norm
from softntk._linalg.products import product
from softntk._two_layer.architecture import row_vectors
from softntk.activations import Activation
from softntk.networks import Architecture, Parameters, Points, row_factors

Move = Float[Array, "c m"]
Matrix = Float[Array | np.ndarray, "p p"]


def _matrix(architecture: Architecture, params: Parameters, x: Points) -> Matrix:
    """H as a matrix [nk, nk] with rows (i, ℓ)."""
    k = params.readout.shape[1]
    rows = row_factors(architecture, params, x)
    g = row_vectors(rows, params.readout).reshape(-1, rows.slopes.shape[1])
    dots = product(x, x.T) + (0.0 if params.bias is None else 1.0)
    spread = lambda matrix: jnp.repeat(jnp.repeat(matrix, k, axis=0), k, axis=1)
    kernel = spread(dots) * product(g, g.T)
    if architecture.train_readout:
        kernel = kernel + jnp.kron(product(rows.features, rows.features.T), jnp.eye(k))
    return jnp.where(spread(rows.valid[:, None] & rows.valid[None, :]), kernel, jnp.inf)


_kernel = jax.jit(_matrix, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _uphill(architecture: Architecture, params: Parameters, x: Points, change: Matrix) -> Move:
    """The gradient of ½‖H(W̃) − H‖² in W̃ at H(W̃) − H = change; [d, m], or [d + 1, m] with the
    bias as the last row.
    """
    kernel = lambda move: _matrix(architecture, _moved(params, move), x)
    rows = params.hidden.shape[0] + (params.bias is not None)
    return jax.vjp(kernel, jnp.zeros((rows, params.hidden.shape[1])))[1](change)[0]


def _moved(params: Parameters, move: Move) -> Parameters:
    if params.bias is None:
        return replace(params, hidden=params.hidden + move)
    return replace(params, hidden=params.hidden + move[:-1], bias=params.bias + move[-1])


def _scaled(params: Parameters, factor: float) -> Parameters:
    bias = None if params.bias is None else factor * params.bias
    return replace(params, hidden=factor * params.hidden, bias=bias)


@lru_cache(maxsize=1)
def _softplus() -> Activation:
    return activations.from_function(jax.nn.softplus, "softplus", activations.get("relu").moments)


class Laboratory:
    """A network, its weights W and its points, in float64, with H(W)."""

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        self.architecture, self.params, self.x = architecture, params, x
        self.sizes = host_norm(
            x if params.bias is None else np.concatenate([x, np.ones((len(x), 1))], axis=1), axis=1
        )
        self.kernel = np.asarray(_kernel(architecture, params, x))
        if not np.isfinite(self.kernel).all():
            raise ValueError(
                "x must be in the domain of the network at params, got rows outside it. Take smaller weights."
            )

    def change(self, params: Parameters) -> np.ndarray:
        """H(W̃) − H(W)."""
        return np.asarray(_kernel(self.architecture, params, self.x)) - self.kernel

    def distance(self, params: Parameters) -> tuple[float, float]:
        """Its (Frobenius, spectral) norm."""
        change = self.change(params)
        if not np.isfinite(change).all():
            return math.inf, math.inf
        return float(host_norm(change)), float(np.abs(np.linalg.eigvalsh(change)).max())

    def length(self, params: Parameters) -> float:
        """The largest move of a neuron, R."""
        moves = [one - two for one, two in zip(_hidden(params), _hidden(self.params), strict=True)]
        return float(jnp.max(scaled_norm(jnp.concatenate(moves), axis=0)))

    def uphill(self, params: Parameters, R: float) -> Move:
        """Where ‖H(W̃) − H(W)‖ grows fastest."""
        architecture = self.architecture
        if architecture.activation.name == "relu":  # piecewise constant: slopes as wide as the move
            architecture = replace(architecture, activation=_softplus())
            return _uphill(
                architecture,
                _scaled(params, 1 / (R * float(self.sizes.mean()))),
                self.x,
                self.change(params),
            )
        return _uphill(architecture, params, self.x, self.change(params))


def _hidden(params: Parameters) -> list[Array]:
    """The weights that move, [d, m] and [1, m]."""
    return [params.hidden, *([] if params.bias is None else [params.bias[None]])]


class Found(NamedTuple):
    kind: str
    radius: float
    params: Parameters
    frobenius: float
    spectral: float


class _Trial(NamedTuple):
    move: Move
    frobenius: float
    spectral: float


def search(
    lab: Laboratory,
    radii: list[float],
    key: PRNGKeyArray,
    kinds: Sequence[str],
    trials: int,
    steps: int,
) -> list[Found]:
    rows, m = sum(len(part) for part in _hidden(lab.params)), lab.params.hidden.shape[1]
    directions = [_unit(d, d) for d in jax.random.normal(key, (trials, rows, m))]
    attempt = lambda move: _Trial(move, *lab.distance(_moved(lab.params, move)))
    found, adversary = [], None
    for R in radii:
        random = [attempt(R * d) for d in directions]
        worst = max(random, key=lambda t: t.frobenius)
        spectral = max(t.spectral for t in random)
        best = {"random": (worst, spectral)}
        if "adversarial" in kinds:
            before = [] if adversary is None else [attempt(R * adversary)]
            start = max([worst, *before], key=lambda t: t.frobenius)
            end = _ascend(lab, attempt, start, R, steps)
            adversary = end.move / R
            best["adversarial"] = (end, max(spectral, end.spectral))
        found += [
            Found(
                kind,
                R,
                _moved(lab.params, best[kind][0].move),
                best[kind][0].frobenius,
                best[kind][1],
            )
            for kind in kinds
        ]
    return found


def _ascend(
    lab: Laboratory, attempt: Callable[[Move], _Trial], start: _Trial, R: float, steps: int
) -> _Trial:
    """Full steps of the generalised power method, halved where they do not help; the best that was
    seen.
    """
    best = start
    for _ in range(steps):
        if not math.isfinite(best.frobenius):
            break
        unit = best.move / R
        target = _unit(lab.uphill(_moved(lab.params, best.move), R), unit)
        trial = attempt(R * target)
        if trial.frobenius <= best.frobenius:
            trial = attempt(R * _unit(unit + target, unit))
        if trial.frobenius <= best.frobenius:
            break
        best = trial
    return best


def _unit(move: Move, otherwise: Move) -> Move:
    """Columns of length one; those without a direction as they were."""
    lengths = scaled_norm(move, axis=0, keepdims=True)
    fine = (lengths > 0) & jnp.isfinite(lengths)
    return jnp.where(fine, move / jnp.where(fine, lengths, 1), otherwise)
