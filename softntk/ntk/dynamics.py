"""Training dynamics that a kernel predicts, in closed form."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from softntk._validation import check_finite, check_floating, check_positive, is_concrete
from softntk.ntk._gram import Gram, as_matrix

Targets = Float[Array | np.ndarray, "n k"]


def predict_gd(
    gram: Gram,
    y: Targets,
    learning_rate: float | Float[Array, ""],
    steps: Integer[Array | np.ndarray, " s"],
    f0: Targets | None = None,
) -> Float[Array, "s n k"]:
    r"""Outputs of gradient descent on ½ΣΣ(F−Y)² after each number of steps, under a constant kernel.

    F(τ) = Y + (I − ηH)^τ (F(0) − Y), for all τ at once through the eigenvectors of H. The powers are
    sign^τ exp(τ log|1 − ηλ|) with the logarithm taken of ηλ, not of its difference from 1: exact to rounding for small ηλ
    and millions of steps.

    Args:
        gram: H on the training points: [n, n] (the same for every output, outputs independent) or [n, n, k, k]
            (:func:`softntk.ntk.empirical` with ``outputs="full"``). Symmetric.
        y: targets, [n, k].
        learning_rate: η > 0. neural_tangents' is n·k times this one: its loss is a mean.
        steps: non-negative integers [s], in any order.
        f0: outputs at the start, [n, k]; zero if None (antisymmetric initialisation).

    Returns:
        [s, n, k]. A divergent component (ηλ > 2) saturates at the root of the largest number instead of overflowing.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, an asymmetric gram, η not positive, steps negative
            or not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk import ntk
        >>> ntk.predict_gd(jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((2, 1)), 0.5, jnp.array([0, 1, 2]))[:, :, 0].tolist()
        [[0.0, 0.0], [0.5, 0.25], [0.75, 0.4375]]

    Source: arXiv 2405.03251, Definition 3.8 and Lemma 3.9 (dynamics of the prediction); MATH.md section 2, "Training".
    """
    matrix = as_matrix(gram)
    y = _check_outputs("y", y, jnp.shape(gram))
    check_positive("learning_rate", learning_rate)
    if not jnp.issubdtype(jnp.result_type(steps), jnp.integer) or jnp.ndim(steps) != 1:
        raise ValueError(
            f"steps must be a vector of integers [s], got shape {jnp.shape(steps)}, dtype {jnp.result_type(steps)}."
        )
    if is_concrete(steps) and np.any(np.asarray(steps) < 0):
        raise ValueError(f"steps must not be negative, got {int(np.min(steps))}.")
    start = jnp.zeros_like(y) if f0 is None else _check_outputs("f0", f0, jnp.shape(gram))
    if start.shape != y.shape:
        raise ValueError(f"f0 must have the shape of y, got {start.shape} and {y.shape}.")
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    # [n, n] acts on each output alone; [n, n, k, k] on all of them at once, output fastest.
    residual = (start - y).reshape(matrix.shape[0], -1)
    powers = _powers(learning_rate * eigenvalues, jnp.asarray(steps))
    moved = jnp.einsum("pq,sq,qr->spr", vectors, powers, vectors.T @ residual, precision=lax.Precision.HIGHEST)
    return y[None] + moved.reshape(len(steps), *y.shape)


def _check_outputs(name: str, y: Targets, gram: tuple[int, ...]) -> Float[Array, "n k"]:
    check_floating(name, y)
    shape = jnp.shape(y)
    if len(shape) != 2 or shape[0] != gram[0] or (len(gram) == 4 and shape[1] != gram[2]):
        raise ValueError(f"{name} must have shape [n, k] with the n (and k) of gram, got {shape} for a gram of shape {gram}.")
    check_finite(name, y)
    return jnp.asarray(y)


def _powers(t: Float[Array, " n"], steps: Integer[Array, " s"]) -> Float[Array, "s n"]:
    """(1 − t)^τ without losing the digits of a small t, saturating where |1 − t| > 1."""
    magnitude = jnp.where(t < 1, jnp.log1p(-jnp.where(t < 1, t, 0)), jnp.log(jnp.where(t > 1, t - 1, 1)))
    tau = steps[:, None].astype(t.dtype)
    room = 0.5 * jnp.log(jnp.finfo(t.dtype).max)
    power = jnp.exp(jnp.minimum(tau * magnitude[None, :], room))
    odd = (steps[:, None] % 2 == 1) & (t > 1)[None, :]
    power = jnp.where(odd, -power, power)
    return jnp.where((t == 1)[None, :], (steps == 0)[:, None].astype(t.dtype), power)
