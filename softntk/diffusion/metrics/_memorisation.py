"""Copies of training data among samples, found by distances to the nearest training points."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from softntk._core.records import record
from softntk._core.validation import (
    check_flag,
    check_number,
    is_concrete,
)
from softntk._linalg.intervals import Estimate, wilson
from softntk._linalg.norms import binary_scale
from softntk.diffusion._types import Points
from softntk.diffusion.metrics._pairwise import (
    as_samples,
    nearest,
)


@record
class Nearest:
    """The nearest training point of each sample.

    Attributes:
        distance: the Euclidean distance to it, [n].
        index: the row of that point in the training data, [n]; the first of several at equal
            distance.
    """

    distance: Float[Array, " n"]
    index: Int[Array, " n"]


@record
class Memorisation:
    """Whether samples are nearer to the training points than fresh data are.

    Attributes:
        distance: the median distance of the samples to their nearest training points.
        held_out_distance: that of the held-out points.
        ratio: the first by the second: about 1 without memorisation, 0 for copies.
        fraction: the fraction of the samples that are no farther from a training point than the
            stated quantile of the held-out distances.
    """

    distance: Float[Array, ""]
    held_out_distance: Float[Array, ""]
    ratio: Float[Array, ""]
    fraction: Estimate


def nearest_training_point(
    x: Points, train: Float[Array | np.ndarray, "N d"], exclude_self: bool = False
) -> Nearest:
    """Return the distance of each sample to its nearest training point, and its index.

    Use it to look at the training points that samples resemble; :func:`memorisation` compares
    the distances with those of fresh data.

    Args:
        x: [n, d].
        train: [N, d].
        exclude_self: x is train, row by row: no point counts as its own neighbour. Copies in other
            rows do, at distance 0.

    Returns:
        A :class:`Nearest`; a copy has distance exactly 0.

    Raises:
        ValueError: points that are not finite floating-point matrices of one dimension and dtype;
            exclude_self where x has not the shape of train, or one row.

    Example:
        >>> import jax.numpy as jnp
        >>> x, train = jnp.array([[0.75], [5.0]]), jnp.array([[0.0], [1.0], [5.0]])
        >>> nearest = nearest_training_point(x, train)
        >>> nearest.distance.tolist(), nearest.index.tolist()
        ([0.25, 0.0], [1, 2])
    """
    exclude_self = check_flag("exclude_self", exclude_self)
    x, train = as_samples(2 if exclude_self else 1, x=x, train=train)
    if exclude_self and x.shape != train.shape:
        raise ValueError(
            f"x must be train itself where exclude_self, of shape {train.shape}, got {x.shape}. "
            "Leave exclude_self out for other points."
        )
    distance, index = nearest(x, train, exclude_self)
    return Nearest(distance=distance, index=index)


def memorisation(
    x: Points,
    train: Float[Array | np.ndarray, "N d"],
    held_out: Float[Array | np.ndarray, "m d"],
    quantile: float = 0.05,
) -> Memorisation:
    """Compare the samples' distances to training points with those of held-out data.

    Use it to detect copies of training data.

    Samples as good as fresh data have a ratio of about 1 and a fraction of about ``quantile``;
    copies have 0 and 1. A sampler whose samples lie off the data has a large ratio: that is no
    memorisation, but such samples are bad too.

    Args:
        x: samples, [n, d].
        train: the data that the model was trained on, [N, d].
        held_out: data that it was not trained on, [m, d]; take some hundreds, or the quantile is
            inaccurate.
        quantile: which quantile of the held-out distances counts as near, in (0, 1).

    Returns:
        A :class:`Memorisation`. The interval of ``fraction`` is over the samples, for the held-out
        points as they are.

    Raises:
        ValueError: points that are not finite floating-point matrices of one dimension and dtype; a
            quantile outside (0, 1); half of held_out or more in train (inside jit the ratio is then
            infinite or NaN).

    Example:
        >>> import jax
        >>> train, fresh, x = jax.random.normal(jax.random.key(0), (3, 500, 2))
        >>> copies, samples = memorisation(train, train, fresh), memorisation(x, train, fresh)
        >>> float(copies.fraction), bool(samples.fraction.upper < 0.2)
        (1.0, True)

    Source: Meehan, Chaudhuri and Dasgupta (2020), arXiv 2004.05675, for the comparison.
    """
    x, train, held_out = as_samples(1, x=x, train=train, held_out=held_out)
    quantile = check_number("quantile", quantile, above=0, below=1)
    # 1. Distances to the nearest training points, and their medians.
    sample_distances, _ = nearest(x, train, False)
    held_out_distances, _ = nearest(held_out, train, False)
    distance = jnp.median(sample_distances)
    held_out_distance = jnp.median(held_out_distances)
    if is_concrete(held_out_distance) and held_out_distance == 0:
        raise ValueError(
            "held_out must be points that are not in train, got copies for half of it or more. "
            "Take other ones."
        )
    # 2. The fraction of samples below the quantile. The ratio is formed in units of the
    # denominator, because its derivative contains the denominator's square.
    unit = binary_scale(held_out_distance)
    is_close = sample_distances <= jnp.quantile(held_out_distances, quantile)
    fraction = jnp.mean(is_close, dtype=sample_distances.dtype)
    return Memorisation(
        distance=distance,
        held_out_distance=held_out_distance,
        ratio=(distance / unit) / (held_out_distance / unit),
        fraction=wilson(fraction, len(sample_distances)),
    )
