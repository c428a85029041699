"""Optimisers as optax gradient transformations: they chain with everything in optax and run inside other people's loops."""

import optax

from softntk._validation import check_positive


def gradient_descent(
    learning_rate: optax.ScalarOrSchedule, momentum: float | None = None, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent, x ← x − η ∇L(x), optionally with momentum.

    Under a constant kernel H and the loss ½‖F − Y‖² the residual is multiplied by I − ηH a step
    (:func:`softntk.ntk.predict_gd`): it converges for η < 2/λ_max(H), fastest for η = 2/(λ_max + λ_min).

    Args:
        learning_rate: η, a positive number or an optax schedule of the step count; :mod:`softntk.solvers.step_sizes` has those
            of the theory.
        momentum: decay of the velocity, in [0, 1); None for none.
        nesterov: use Nesterov's form of the momentum.

    Returns:
        The transform. Its ``update`` accepts, and ignores, the extra arguments ``value``, ``grad`` and ``value_fn``.

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
        check_positive("learning_rate", learning_rate)
    if momentum is None and nesterov:
        raise ValueError("nesterov=True needs a momentum, got momentum=None. Use e.g. momentum=0.9.")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
    return optax.with_extra_args_support(optax.sgd(learning_rate, momentum, nesterov))
