"""Arguments of metrics: probabilities and labels of classes, Gaussian predictions and targets."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from softntk._core.validation import as_floating, as_integers, as_weights, is_concrete
from softntk._core.validation.class_targets import SUM_TOLERANCE, as_labels, check_probabilities

# Types in public signatures.
Probabilities = Float[Array | np.ndarray, "n k"] | Float[Array | np.ndarray, " n"]
Labels = Integer[Array | np.ndarray, " n"]
Outputs = Float[Array | np.ndarray, "n k"] | Float[Array | np.ndarray, " n"]
Variances = (
    Float[Array | np.ndarray, "n k"]
    | Float[Array | np.ndarray, " n"]
    | Float[Array | np.ndarray, ""]
    | float
)

# Rounding units of their own precision by which sums of probabilities may differ from one.
SUM_ROUNDINGS = 4


def as_predictions(
    probabilities: object, labels: object
) -> tuple[Float[Array, "n k"] | Float[Array, " n"], Int[Array, " n"]]:
    """Return checked probabilities and labels; of two classes in one column, that column as [n].

    What rounding put above one is one, and half precision becomes float32. Traced values are not
    checked: negative probabilities count as zero.

    Raises:
        ValueError: no probabilities or labels, or not as many of both.
    """
    # 1. The shape; a single column is the class 1 of two.
    array = as_floating("probabilities", probabilities)
    if array.ndim not in (1, 2):
        raise ValueError(
            "probabilities must have shape [n, k], or [n] for the class 1 of two, "
            f"got shape {array.shape}."
        )
    if array.shape[1:] == (1,):
        array = array[:, 0]

    # 2. The values, where they are known.
    if is_concrete(array):
        _check_values(np.asarray(array))
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    array = jnp.where(array > 1, 1, jnp.where(array < 0, 0, array)).astype(dtype)

    # 3. One label for each row.
    label_shape = as_integers("labels", labels, ("n",)).shape
    if label_shape != array.shape[:1]:
        raise ValueError(
            "labels must have one entry for each row of probabilities, got shapes "
            f"{label_shape} and {array.shape}."
        )
    classes = array.shape[1] if array.ndim == 2 else 2
    return array, as_labels("labels", labels, classes).astype(int)


def _check_values(probabilities: np.ndarray) -> None:
    """Refuse what is no probability, and rows that do not sum to one."""
    # Rounded to half precision, the sum of a row is not as near to one as in float32.
    rounding_error = SUM_ROUNDINGS * float(jnp.finfo(probabilities.dtype).eps)
    tolerance = max(SUM_TOLERANCE, rounding_error)
    numbers = probabilities.astype(np.float64)
    if numbers.ndim == 2:
        check_probabilities("probabilities", numbers, "apply softmax to logits", tolerance)
    elif numbers.min() < 0 or numbers.max() > 1 + tolerance:
        raise ValueError(
            "probabilities must lie in [0, 1], got numbers between "
            f"{numbers.min():.6g} and {numbers.max():.6g}. Apply sigmoid to logits."
        )


def as_gaussians(
    mean: object, variance: object, y: object
) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n k"]]:
    """Return means, variances and targets of one precision, all [n, k].

    Raises:
        ValueError: arrays that are not finite or do not fit, negative variances.
    """
    # 1. Means and targets, [n] being one output.
    means = as_floating("mean", mean)
    targets = as_floating("y", y)
    if means.ndim not in (1, 2):
        raise ValueError(f"mean must have shape [n, k], or [n] for k = 1, got {means.shape}.")
    n = len(means)
    if targets.ndim not in (1, 2) or targets.size != means.size or len(targets) != n:
        raise ValueError(
            f"y must have the shape of mean, [n, k] or [n], got {targets.shape} and {means.shape}."
        )
    dtype = jnp.result_type(means.dtype, targets.dtype, jnp.float32)
    means = means.reshape(n, -1).astype(dtype)

    # 2. Variances: of each entry, of each row, or one for all.
    k = means.shape[1]
    variances = as_weights("variance", variance, dtype, (n,), (n, k), ())
    if variances.ndim == 1:
        variances = variances[:, None]
    return means, jnp.broadcast_to(variances, (n, k)), targets.reshape(n, k).astype(dtype)
