"""Means over the samples: accuracy, Brier score and negative log-likelihood of classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from softntk._linalg.intervals import Estimate, mean_interval, wilson
from softntk.calibration._arguments import Labels, Probabilities, as_predictions


def accuracy(probabilities: Probabilities, labels: Labels) -> Estimate:
    """Return the share of samples whose label has the largest probability.

    Use it beside a calibration error, which says nothing about accuracy. The first of several
    equal probabilities is the prediction.

    Args:
        probabilities: of the classes, [n, k]; or of class 1 of two, [n] or [n, 1].
        labels: integers from 0 on, [n].

    Returns:
        An :class:`Estimate` with Wilson's interval.

    Raises:
        ValueError: probabilities that are negative, NaN or do not sum to one, labels outside of
            the classes, lengths that differ, no samples. Inside jit, vmap and grad values are not
            checked: a label outside of the classes is never predicted.

    Example:
        >>> import jax.numpy as jnp
        >>> share = accuracy(jnp.array([[0.9, 0.1], [0.4, 0.6]]), jnp.array([0, 0]))
        >>> float(share), round(float(share.lower), 3), round(float(share.upper), 3)
        (0.5, 0.095, 0.905)

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212; MATHEMATICS.md#calibration.
    """
    return _accuracy(*as_predictions(probabilities, labels))


def brier_score(probabilities: Probabilities, labels: Labels) -> Estimate:
    r"""Return the mean squared distance of the probabilities from what happened.

    Use it to compare predictors: it is a proper score, smallest in expectation at the true
    probabilities, and bounded, so that its interval holds for a few dozen samples.

    Of [n, k] it is Σ_c (p_c − 1{y = c})², in [0, 2] (Brier's definition); of one column
    (p − y)², in [0, 1], as in ``sklearn.metrics.brier_score_loss``. So [n, 2] gives twice the value
    of its second column.

    Args:
        probabilities: of the classes, [n, k]; or of class 1 of two, [n] or [n, 1].
        labels: integers from 0 on, [n].

    Returns:
        An :class:`Estimate` with the normal interval of a mean, cut at the bounds.

    Raises:
        ValueError: as for :func:`accuracy`. A label outside of the classes that is traced is an
            event of probability zero.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(brier_score(jnp.array([0.9, 0.2, 0.7]), jnp.array([1, 0, 0]))), 4)
        0.18

    Source: Brier (1950), Monthly Weather Review 78, 1-3; MATHEMATICS.md#calibration.
    """
    return _brier_score(*as_predictions(probabilities, labels))


def negative_log_likelihood(probabilities: Probabilities, labels: Labels) -> Estimate:
    r"""Return the mean of −log p_y, the cross-entropy of probabilities and labels, in nats.

    Use it to compare predictors where confident errors must cost much. A probability of zero for
    what happened costs infinity: value and interval are +inf then. Where one rare error dominates
    the mean the interval is too short, and :func:`brier_score` is the safer one.

    Args:
        probabilities: of the classes, [n, k]; or of class 1 of two, [n] or [n, 1].
        labels: integers from 0 on, [n].

    Returns:
        An :class:`Estimate` with the normal interval of a mean, cut at zero; differentiable in the
        probabilities.

    Raises:
        ValueError: as for :func:`brier_score`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(negative_log_likelihood(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])))
        0.0
        >>> float(negative_log_likelihood(jnp.array([0.5, 0.0]), jnp.array([1, 1])))
        inf

    Source: Gneiting and Raftery (2007), J. Am. Stat. Assoc. 102, 359-378, section 3;
    MATHEMATICS.md#calibration.
    """
    return _negative_log_likelihood(*as_predictions(probabilities, labels))


def is_correct(probabilities: Array, labels: Array) -> Bool[Array, " n"]:
    """Return where the label has the largest probability, the first of equal ones."""
    if probabilities.ndim == 1:
        return labels == (probabilities > 0.5).astype(labels.dtype)
    return labels == jnp.argmax(probabilities, axis=1).astype(labels.dtype)


def _true_classes(probabilities: Array, labels: Array) -> Bool[Array, "n k"]:
    """Return the labels as rows of Booleans."""
    return labels[:, None] == jnp.arange(probabilities.shape[1], dtype=labels.dtype)[None, :]


@jax.jit
def _accuracy(probabilities: Array, labels: Array) -> Estimate:
    """Return the share of correct predictions."""
    share = jnp.mean(is_correct(probabilities, labels), dtype=probabilities.dtype)
    return wilson(share, len(labels))


@jax.jit
def _brier_score(probabilities: Array, labels: Array) -> Estimate:
    """Return the mean of squared distances."""
    # 1 − p of the true class is squared by itself: 1 − 2p + Σp² would cancel.
    if probabilities.ndim == 1:
        missing = jnp.where(labels == 1, 1 - probabilities, probabilities)
        is_class = (labels == 0) | (labels == 1)
        return mean_interval(jnp.where(is_class, missing, 1) ** 2, 0.0, 1.0)
    is_true = _true_classes(probabilities, labels)
    true_probability = jnp.sum(jnp.where(is_true, probabilities, 0), axis=1)
    excess = jnp.sum(jnp.where(is_true, 0, probabilities) ** 2, axis=1)
    return mean_interval((1 - true_probability) ** 2 + excess, 0.0, 2.0)


@jax.jit
def _negative_log_likelihood(probabilities: Array, labels: Array) -> Estimate:
    """Return the mean of −log p_y."""
    if probabilities.ndim == 1:
        # log(1 − p) keeps the digits of a small p.
        losses = jnp.where(labels == 1, jnp.log(probabilities), jnp.log1p(-probabilities))
        is_class = (labels == 0) | (labels == 1)
        return mean_interval(0 - jnp.where(is_class, losses, -jnp.inf), 0.0)
    is_true = _true_classes(probabilities, labels)
    true_probability = jnp.sum(jnp.where(is_true, probabilities, 0), axis=1)
    return mean_interval(0 - jnp.log(true_probability), 0.0)  # no −0
