r"""Losses of a network's outputs F [n, k], and their derivatives by the outputs of each point.

    L(F) = Σ_i ℓ(f_i, y_i),     g_i = ∂ℓ/∂f_i,     Λ_i = ∂²ℓ/∂f_i² = Q_i Q_iᵀ,     Q_i w_i = g_i.

| loss | ℓ(f, y) | g | Q |
|---|---|---|---|
| squared | ½‖f − y‖² | f − y | I |
| cross_entropy | logsumexp(f) − ⟨y, f⟩ | p − y | diag(√p)(I − √p √pᵀ) |
| cross_entropy, k = 1 | log(1 + e^f) − y f | p − y, p = 1/(1 + e^{−f}) | √(p(1 − p)) |
| a function ℓ of its own | ℓ(f, y) | ∇ℓ | Λ^½ by eigenvectors |

Λ = diag(p) − ppᵀ of the second row is QQᵀ since I − √p √pᵀ is a projection (Σp = 1), and
w = g/√p since 1ᵀg = 0.

Source: MATHEMATICS.md#natural-gradient, MATHEMATICS.md#cross-entropy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from softntk._core.validation import as_dtype, as_floating, as_real_array, check_choice
from softntk._core.validation.class_targets import as_labels, as_targets

Outputs = Float[Array, "n k"]
OutputMap = Callable[[Outputs], Outputs]
PointLoss = Callable[..., Any]

# Roundings of the largest eigenvalue of all Λ_i to which smaller ones are raised.
MIN_CURVATURE_ROUNDINGS = 4


class OutputCurvature(NamedTuple):
    """Derivatives of a loss by the outputs.

    Attributes:
        gradient: g, [n, k].
        whitened: w, with Q w = g, [n, k].
        row_curvatures: the mean eigenvalue of each Λ_i on its range, [n].
        root: t ↦ Q t.
        root_transposed: t ↦ Qᵀt.
    """

    gradient: Outputs
    whitened: Outputs
    row_curvatures: Float[Array, " n"]
    root: OutputMap
    root_transposed: OutputMap


class OutputLoss(NamedTuple):
    """A loss of outputs.

    Attributes:
        name: "squared", "cross_entropy", or "function".
        values: (F, Y) → ℓ of each point, [n].
        gradient: (F, Y) → g, [n, k].
        curvature: (F, Y) → :class:`OutputCurvature`.
    """

    name: str
    values: Callable[[Outputs, Outputs], Float[Array, " n"]]
    gradient: Callable[[Outputs, Outputs], Outputs]
    curvature: Callable[[Outputs, Outputs], OutputCurvature]


def as_output_loss(name: str, loss: Any) -> OutputLoss:
    """Return a loss of the table by its name, or that of a function ℓ(f [k], y [k]) of a point."""
    if callable(loss):
        return _of_function(loss)
    return OUTPUT_LOSSES[check_choice(name, loss, OUTPUT_LOSSES)]


def check_targets(loss: OutputLoss, y: object, n: int, dtype: jnp.dtype) -> Array:
    """Return targets [n, k], or labels [n], whose number of classes the network decides.

    A vector of floating-point numbers is one column.
    """
    if loss.name != "cross_entropy":
        targets = as_floating("y", y)
        _check_rows(targets, n)
        return targets.reshape(n, -1)
    targets = as_real_array("y", y)
    _check_rows(targets, n)
    is_label = jnp.issubdtype(targets.dtype, jnp.integer) and targets.ndim == 1
    if is_label:
        return as_labels("y", targets)
    if targets.size > n:
        return as_targets(targets, n, None, dtype)
    # One column: probabilities of class 1, checked with those of class 0.
    column = as_dtype("y", targets, dtype).reshape(n, 1)
    return as_targets(jnp.concatenate([1 - column, column], axis=1), n, 2, dtype)[:, 1:]


def complete_targets(targets: Array, outputs: Outputs) -> Outputs:
    """Return targets [n, k] of the shape of the outputs, labels as unit vectors."""
    n, k = outputs.shape
    if targets.ndim == 1:
        as_labels("y", targets, max(k, 2))
        if k == 1:
            return targets[:, None].astype(outputs.dtype)
        return jax.nn.one_hot(targets, k, dtype=outputs.dtype)
    if targets.shape != (n, k):
        raise ValueError(
            "y must have the shape of the outputs of net, or be integer labels [n] with "
            f'loss="cross_entropy", got {targets.shape} and {outputs.shape}.'
        )
    return targets


def _check_rows(targets: Any, n: int) -> None:
    """Refuse targets that are no vector or matrix with n rows."""
    if targets.ndim not in (1, 2) or len(targets) != n:
        raise ValueError(
            f"y must have shape [n, k] with as many rows as x, {n}, got shape {targets.shape}."
        )


def _squared_values(outputs: Outputs, targets: Outputs) -> Float[Array, " n"]:
    """Return ½‖f_i − y_i‖²."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


def _squared_gradient(outputs: Outputs, targets: Outputs) -> Outputs:
    """Return F − Y."""
    return outputs - targets


def _squared_curvature(outputs: Outputs, targets: Outputs) -> OutputCurvature:
    """Return the first row of the table."""
    residual = outputs - targets
    ones = jnp.ones(len(outputs), outputs.dtype)
    return OutputCurvature(residual, residual, ones, lambda t: t, lambda t: t)


def _cross_entropy_values(outputs: Outputs, targets: Outputs) -> Float[Array, " n"]:
    """Return logsumexp(f_i) − ⟨y_i, f_i⟩, or log(1 + e^f) − y f of one column."""
    if outputs.shape[1] == 1:
        # log(1 + e^f) − y f, with the two terms of the targets apart so that neither cancels.
        losses = targets * jax.nn.softplus(-outputs) + (1 - targets) * jax.nn.softplus(outputs)
        return jnp.sum(losses, axis=1)
    # Relative to the largest logit: the difference of two large numbers would lose digits.
    log_probabilities = jax.nn.log_softmax(outputs, axis=1)
    return -jnp.sum(jnp.where(targets == 0, 0, targets * log_probabilities), axis=1)


def _cross_entropy_gradient(outputs: Outputs, targets: Outputs) -> Outputs:
    """Return P − Y."""
    if outputs.shape[1] > 1:
        return jax.nn.softmax(outputs, axis=1) - targets
    # p − y as (1 − y) p − y (1 − p), and 1 − p = σ(−f), so that nothing cancels.
    return (1 - targets) * jax.nn.sigmoid(outputs) - targets * jax.nn.sigmoid(-outputs)


def _cross_entropy_curvature(outputs: Outputs, targets: Outputs) -> OutputCurvature:
    """Return the second or third row of the table."""
    if outputs.shape[1] == 1:
        return _logistic_curvature(outputs, targets)
    # Probabilities below rounding are raised to it, in Q alone: w = g/√p stays a number, and a
    # point that is wrong beyond all doubt has a small curvature, not none.
    probabilities = jax.nn.softmax(outputs, axis=1)
    gradient = _cross_entropy_gradient(outputs, targets)
    roots = jnp.sqrt(jnp.maximum(probabilities, float(jnp.finfo(outputs.dtype).eps)))
    directions = roots / jnp.linalg.norm(roots, axis=1, keepdims=True)

    def project(t: Outputs) -> Outputs:
        return t - directions * jnp.sum(directions * t, axis=1, keepdims=True)

    spread = jnp.sum(probabilities * (1 - probabilities), axis=1)
    return OutputCurvature(
        gradient=gradient,
        whitened=project(gradient / roots),
        row_curvatures=spread / (outputs.shape[1] - 1),
        root=lambda t: roots * project(t),
        root_transposed=lambda t: project(roots * t),
    )


def _logistic_curvature(outputs: Outputs, targets: Outputs) -> OutputCurvature:
    """Return the third row of the table."""
    variances = jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)
    gradient = _cross_entropy_gradient(outputs, targets)
    eps = float(jnp.finfo(outputs.dtype).eps)
    roots = jnp.sqrt(jnp.maximum(variances, eps))
    return OutputCurvature(
        gradient=gradient,
        whitened=gradient / roots,
        row_curvatures=variances[:, 0],
        root=lambda t: roots * t,
        root_transposed=lambda t: roots * t,
    )


def _of_function(point_loss: PointLoss) -> OutputLoss:
    """Return the loss of a function of one point, its derivatives by automatic differentiation."""

    def values(outputs: Outputs, targets: Outputs) -> Float[Array, " n"]:
        return jax.vmap(point_loss)(outputs, targets)

    def gradient_of(outputs: Outputs, targets: Outputs) -> Outputs:
        return jax.vmap(jax.grad(point_loss))(outputs, targets)

    def curvature(outputs: Outputs, targets: Outputs) -> OutputCurvature:
        # 1. Gradient and Hessian of every point, which must be a scalar function.
        shape = jax.eval_shape(point_loss, outputs[0], targets[0])
        if getattr(shape, "shape", None) != ():
            raise ValueError(
                "loss must be a function (outputs [k], targets [k]) → scalar of one point, got a "
                f"result of {getattr(shape, 'shape', type(shape).__name__)}."
            )
        gradient = gradient_of(outputs, targets)
        hessians = jax.vmap(jax.hessian(point_loss))(outputs, targets)

        # 2. Λ^½, with eigenvalues that are positive.
        eigenvalues, vectors = jnp.linalg.eigh(hessians)
        largest = jnp.max(eigenvalues)
        eps = float(jnp.finfo(outputs.dtype).eps)
        least = jnp.where(largest > 0, MIN_CURVATURE_ROUNDINGS * eps * largest, 1)
        root_eigenvalues = jnp.sqrt(jnp.maximum(eigenvalues, least))

        def in_eigenbasis(t: Outputs, factors: Outputs) -> Outputs:
            coordinates = factors * jnp.einsum("nij,ni->nj", vectors, t, precision="highest")
            return jnp.einsum("nij,nj->ni", vectors, coordinates, precision="highest")

        return OutputCurvature(
            gradient=gradient,
            whitened=in_eigenbasis(gradient, 1 / root_eigenvalues),
            row_curvatures=jnp.mean(root_eigenvalues**2, axis=1),
            root=lambda t: in_eigenbasis(t, root_eigenvalues),
            root_transposed=lambda t: in_eigenbasis(t, root_eigenvalues),
        )

    return OutputLoss("function", values, gradient_of, curvature)


OUTPUT_LOSSES = {
    "squared": OutputLoss("squared", _squared_values, _squared_gradient, _squared_curvature),
    "cross_entropy": OutputLoss(
        "cross_entropy", _cross_entropy_values, _cross_entropy_gradient, _cross_entropy_curvature
    ),
}
"""The losses by name; a new one is one more entry."""
