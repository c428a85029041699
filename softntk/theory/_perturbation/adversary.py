"""Kernels at perturbed weights, and a search for the perturbations that change them most.

With W the weights, Δ a perturbation and H the empirical kernel as a matrix [nk, nk], the adversary
maximises ½‖H(W + Δ) − H(W)‖_F² over all Δ whose columns have length R. A column belongs to a
neuron.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._linalg.norms import host_norm, scaled_norm
from softntk._linalg.products import product
from softntk._two_layer.architecture import row_vectors
from softntk.networks import Architecture, Parameters, Points, row_factors
from softntk.theory._arguments import with_bias_feature

Move = Float[Array, "c m"]
"""A perturbation of the hidden weights, [d, m], or [d + 1, m] with the bias as the last row."""

KernelMatrix = Float[Array | np.ndarray, "p p"]


def _kernel_matrix(architecture: Architecture, params: Parameters, x: Points) -> KernelMatrix:
    """Return H as a matrix [nk, nk] with rows (i, ℓ)."""
    # H = ⟨x_i, x_j⟩⟨g_iℓ, g_jℓ'⟩ + (a trained readout) ⟨φ_i, φ_j⟩ δ_ℓℓ'.
    k = params.readout.shape[1]
    rows = row_factors(architecture, params, x)
    g = row_vectors(rows, params.readout).reshape(-1, rows.slopes.shape[1])
    inner_products = product(x, x.T) + (0.0 if params.bias is None else 1.0)

    def repeat_outputs(matrix: Array) -> Array:
        return jnp.repeat(jnp.repeat(matrix, k, axis=0), k, axis=1)

    kernel = repeat_outputs(inner_products) * product(g, g.T)
    if architecture.train_readout:
        kernel = kernel + jnp.kron(product(rows.features, rows.features.T), jnp.eye(k))
    is_valid = repeat_outputs(rows.valid[:, None] & rows.valid[None, :])
    return jnp.where(is_valid, kernel, jnp.inf)


_compiled_kernel_matrix = jax.jit(_kernel_matrix, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _kernel_gradient(
    architecture: Architecture, params: Parameters, x: Points, change: KernelMatrix
) -> Move:
    """Return the gradient of ½‖H(W̃) − H‖² in W̃ where H(W̃) − H is ``change``."""

    def kernel_at(move: Move) -> KernelMatrix:
        return _kernel_matrix(architecture, _perturb(params, move), x)

    # Reverse mode at Δ = 0 of Δ ↦ H(W̃ + Δ): one product with the transposed derivative.
    rows = params.hidden.shape[0] + (params.bias is not None)
    return jax.vjp(kernel_at, jnp.zeros((rows, params.hidden.shape[1])))[1](change)[0]


def _perturb(params: Parameters, move: Move) -> Parameters:
    """Return the weights W + Δ; the last row of the move belongs to a bias."""
    if params.bias is None:
        return replace(params, hidden=params.hidden + move)
    return replace(params, hidden=params.hidden + move[:-1], bias=params.bias + move[-1])


def _scale_weights(params: Parameters, factor: float) -> Parameters:
    """Return the weights with hidden weights and bias times a factor."""
    bias = None if params.bias is None else factor * params.bias
    return replace(params, hidden=factor * params.hidden, bias=bias)


class KernelNeighbourhood:
    """A network at W and its points, in float64, with H(W) and distances from it.

    Attributes:
        architecture: the network.
        params: W.
        x: points, [n, d].
        row_norms: ‖x_i‖, with a 1 appended under bias, [n].
        kernel: H(W), [nk, nk].
    """

    def __init__(self, architecture: Architecture, params: Parameters, x: np.ndarray) -> None:
        self.architecture = architecture
        self.params = params
        self.x = x
        self.row_norms = host_norm(with_bias_feature(x, params), axis=1)
        self.kernel = np.asarray(_compiled_kernel_matrix(architecture, params, x))
        if not np.isfinite(self.kernel).all():
            raise ValueError(
                "x must be in the domain of the network at params, got rows outside it. "
                "Take smaller weights."
            )

    def change(self, params: Parameters) -> np.ndarray:
        """Return H(W̃) − H(W)."""
        return np.asarray(_compiled_kernel_matrix(self.architecture, params, self.x)) - self.kernel

    def distance(self, params: Parameters) -> tuple[float, float]:
        """Return the (Frobenius, spectral) norm of H(W̃) − H(W), +inf outside the domain."""
        change = self.change(params)
        if not np.isfinite(change).all():
            return math.inf, math.inf
        return float(host_norm(change)), float(np.abs(np.linalg.eigvalsh(change)).max())

    def radius(self, params: Parameters) -> float:
        """Return the largest move of a neuron, R = max_r ‖w̃_r − w_r‖."""
        pairs = zip(_moving_weights(params), _moving_weights(self.params), strict=True)
        moves = [perturbed - initial for perturbed, initial in pairs]
        return float(jnp.max(scaled_norm(jnp.concatenate(moves), axis=0)))

    def ascent_direction(self, params: Parameters, R: float) -> Move:
        """Return a direction in which ‖H(W̃) − H(W)‖ increases: its gradient in W̃, up to a factor.

        The kernel of relu is piecewise constant. Its slope is replaced by that of softplus, over a
        range of logits as wide as a move of length R.
        """
        architecture = self.architecture
        # The residual H(W̃) − H(W) is that of the network itself, also where its slope is replaced.
        change = self.change(params)
        enclosure = architecture.activation.enclosure
        if enclosure is not None and enclosure.surrogate is not None:
            surrogate = activations.get(enclosure.surrogate)
            architecture = replace(architecture, activation=surrogate)
            # The slope of softplus rises over logits of order one: divide by the move of a logit.
            logit_move = R * float(self.row_norms.mean())
            params = _scale_weights(params, 1 / (logit_move if logit_move > 0 else 1.0))
        return _kernel_gradient(architecture, params, self.x, change)


def _moving_weights(params: Parameters) -> list[Array]:
    """Return the weights that move, [d, m] and the bias as [1, m]."""
    return [params.hidden, *([] if params.bias is None else [params.bias[None]])]


class Perturbed(NamedTuple):
    """Perturbed weights of one kind and radius.

    Attributes:
        kind: "random", "adversarial" or "path".
        radius: R.
        params: W̃ of the largest Frobenius norm.
        frobenius: ‖H(W̃) − H(W)‖_F.
        spectral: the largest ‖H(W̃) − H(W)‖₂ at this radius; that of an adversarial perturbation
            includes the random ones.
    """

    kind: str
    radius: float
    params: Parameters
    frobenius: float
    spectral: float


class _Trial(NamedTuple):
    """A move with the norms of the change of H that it causes."""

    move: Move
    frobenius: float
    spectral: float


def worst_perturbations(
    neighbourhood: KernelNeighbourhood,
    radii: Sequence[float],
    key: PRNGKeyArray,
    kinds: Sequence[str],
    trials: int,
    steps: int,
) -> list[Perturbed]:
    """Return the worst perturbation that was found for each radius and kind.

    Args:
        neighbourhood: network, points and H(W).
        radii: R.
        key: random key of the directions, which are the same for all radii.
        kinds: one or both of "random" and "adversarial".
        trials: number of random moves for each radius.
        steps: largest number of ascent steps of the adversary.
    """
    # The same directions for all radii, so that results are comparable.
    params = neighbourhood.params
    rows = sum(len(part) for part in _moving_weights(params))
    width = params.hidden.shape[1]
    gaussian = jax.random.normal(key, (trials, rows, width))
    directions = [_unit_columns(direction, direction) for direction in gaussian]

    def evaluate(move: Move) -> _Trial:
        return _Trial(move, *neighbourhood.distance(_perturb(params, move)))

    results = []
    adversary = None
    for R in radii:
        # 1. Random moves of length R.
        random_trials = [evaluate(R * direction) for direction in directions]
        worst_random = max(random_trials, key=lambda trial: trial.frobenius)
        largest_spectral = max(trial.spectral for trial in random_trials)
        worst = {"random": (worst_random, largest_spectral)}
        # 2. Ascent from the worst of these, or from the adversary of the previous radius.
        if "adversarial" in kinds:
            previous = [] if adversary is None else [evaluate(R * adversary)]
            start = max([worst_random, *previous], key=lambda trial: trial.frobenius)
            final = _ascend(neighbourhood, evaluate, start, R, steps)
            adversary = final.move / R
            worst["adversarial"] = (final, max(largest_spectral, final.spectral))
        # 3. One result for each kind, in the order of ``kinds``.
        for kind in kinds:
            trial, spectral = worst[kind]
            perturbed_params = _perturb(params, trial.move)
            results.append(Perturbed(kind, R, perturbed_params, trial.frobenius, spectral))
    return results


def _ascend(
    neighbourhood: KernelNeighbourhood,
    evaluate: Callable[[Move], _Trial],
    start: _Trial,
    R: float,
    steps: int,
) -> _Trial:
    """Return the best trial of a generalised power method; a step that does not help is halved."""
    best = start
    for _ in range(steps):
        if not math.isfinite(best.frobenius):
            break
        # A full step goes to the normalised gradient, a half step halfway between the two.
        direction = best.move / R
        perturbed = _perturb(neighbourhood.params, best.move)
        gradient_direction = _unit_columns(neighbourhood.ascent_direction(perturbed, R), direction)
        trial = evaluate(R * gradient_direction)
        if trial.frobenius <= best.frobenius:
            trial = evaluate(R * _unit_columns(direction + gradient_direction, direction))
        if trial.frobenius <= best.frobenius:
            break  # neither step helps
        best = trial
    return best


def _unit_columns(move: Move, fallback: Move) -> Move:
    """Return the columns scaled to length one, those of ``fallback`` where they have no length."""
    lengths = scaled_norm(move, axis=0, keepdims=True)
    has_direction = (lengths > 0) & jnp.isfinite(lengths)
    return jnp.where(has_direction, move / jnp.where(has_direction, lengths, 1), fallback)
