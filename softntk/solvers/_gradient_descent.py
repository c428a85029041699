"""Gradient descent as an optax transform, and the check of transforms that users pass."""

from typing import Any

import optax

from softntk._core.validation import check_flag, check_number, is_concrete

# Longest representation of an argument that an error message quotes.
MAX_REPR_LENGTH = 60


def check_transform(name: str, tx: Any) -> optax.GradientTransformationExtraArgs:
    """Return the transform with support of the extra arguments ``value``, ``grad``, ``value_fn``.

    Raises:
        ValueError: it is no transform; the message helps where it is the name or factory of one.
    """
    if isinstance(tx, optax.GradientTransformation):
        return optax.with_extra_args_support(tx)
    if isinstance(tx, str):
        advice = f"Write optax.{tx}(learning_rate)." if hasattr(optax, tx) else "See optax."
    elif callable(tx):
        advice = f"Call it: {getattr(tx, '__name__', 'it')}(learning_rate)."
    else:
        advice = "E.g. optax.adam(1e-3), or softntk.solvers.gradient_descent(0.1)."
    description = repr(tx) if len(repr(tx)) <= MAX_REPR_LENGTH else type(tx).__name__
    raise ValueError(f"{name} must be an optax transform, got {description}. {advice}")


def gradient_descent(
    learning_rate: optax.ScalarOrSchedule, momentum: float | None = None, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Return gradient descent, x ← x − η ∇L(x), optionally with momentum.

    Use it to compare training with the theory, which is about this method. For a constant kernel H
    and the loss ½‖F − Y‖² each step multiplies the residual by I − ηH
    (:func:`softntk.ntk.predict_gd`): it converges for η < 2/λ_max(H), fastest for
    η = 2/(λ_max + λ_min).

    Args:
        learning_rate: η, a positive number or an optax schedule of the step count;
            :mod:`softntk.solvers.step_sizes` has those of the theory.
        momentum: decay of the velocity, in [0, 1); None for none.
        nesterov: use Nesterov's form of the momentum.

    Returns:
        The transform. Its ``update`` accepts, and ignores, the extra arguments ``value``, ``grad``
        and ``value_fn``.

    Raises:
        ValueError: η not positive, momentum outside [0, 1), nesterov without momentum.

    Example:
        >>> import jax, jax.numpy as jnp, optax, softntk as sn
        >>> tx = sn.solvers.gradient_descent(0.25)
        >>> x = jnp.array(2.0)
        >>> updates, state = tx.update(jax.grad(lambda x: x**2)(x), tx.init(x), x)
        >>> float(optax.apply_updates(x, updates))
        1.0

    Source: arXiv 2405.03251, Definition 3.5 (gradient descent on the hidden weights).
    """
    if not callable(learning_rate):
        learning_rate = check_number("learning_rate", learning_rate, above=0)
    nesterov = check_flag("nesterov", nesterov)
    if momentum is not None:
        momentum = check_number("momentum", momentum)
    if momentum is None and nesterov:
        raise ValueError(
            "nesterov=True needs a momentum, got momentum=None. Use e.g. momentum=0.9."
        )
    if momentum is not None and is_concrete(momentum) and not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
    return optax.with_extra_args_support(optax.sgd(learning_rate, momentum, nesterov))
