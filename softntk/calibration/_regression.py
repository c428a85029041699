r"""Calibration of Gaussian predictions N(m, s²) of real targets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.validation import is_concrete
from softntk._linalg.angles import safe_sqrt
from softntk._linalg.gram_arrays import Number, as_scalar
from softntk._linalg.intervals import Estimate, mean_interval, wilson
from softntk.calibration._arguments import Outputs, Variances, as_gaussians


def coverage(mean: Outputs, variance: Variances, y: Outputs, level: Number = 0.95) -> Estimate:
    r"""Return the share of targets inside of their central intervals, m ± z s.

    Use it to see whether error bars are as long as they should be: of a calibrated predictor the
    share is about the level. Too long bars have more: look at several levels.

    Args:
        mean: predicted means m, [n, k] or [n].
        variance: predicted variances s² ≥ 0 of the targets, the noise included: [n, k], [n] for all
            outputs of a row, or one number. To that of :func:`softntk.ntk.gp_posterior`,
            :func:`softntk.ntk.laplace` or :func:`softntk.ntk.predict_ensemble` add the noise.
        y: targets in the shape of mean.
        level: the probability of the intervals, in (0, 1).

    Returns:
        An :class:`Estimate` with Wilson's interval of n draws: the k outputs of a row may depend
        on each other, so that they count as one.

    Raises:
        ValueError: shapes that do not fit, integer or non-finite arrays, a negative variance, no
            samples, a level outside of (0, 1). Inside jit, vmap and grad values are not checked;
            there a negative variance counts as zero.

    Example:
        >>> import jax.numpy as jnp
        >>> share = coverage(jnp.zeros(4), 1.0, jnp.array([0.0, 1.0, -1.5, 3.0]), level=0.9)
        >>> float(share)  # within ± 1.645
        0.75

    Source: Gneiting, Balabdaoui and Raftery (2007), J. R. Stat. Soc. B 69, 243-268;
    MATHEMATICS.md#calibration.
    """
    arrays = as_gaussians(mean, variance, y)
    return _coverage(*arrays, as_scalar("level", level, arrays[0].dtype, above=0, below=1))


def gaussian_negative_log_likelihood(mean: Outputs, variance: Variances, y: Outputs) -> Estimate:
    r"""Return the mean over the rows of Σ_j ½ log(2πs²) + (y − m)²/(2s²).

    Use it to compare predictors of real targets: it is a proper score of mean and variance
    together, in nats. It is negative where densities are above one, and moves with the unit of y.

    Args:
        mean: predicted means m, [n, k] or [n].
        variance: predicted variances s² > 0 of the targets, as for :func:`coverage`.
        y: targets in the shape of mean.

    Returns:
        An :class:`Estimate` with the normal interval of a mean over n rows; differentiable in all
        arguments.

    Raises:
        ValueError: as for :func:`coverage`; a variance of zero, which inside jit gives +inf.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = gaussian_negative_log_likelihood(jnp.zeros(2), 1.0, jnp.array([1.0, -1.0]))
        >>> round(float(loss), 4)  # ½ log 2π + ½
        1.4189

    Source: Gneiting and Raftery (2007), J. Am. Stat. Assoc. 102, 359-378, section 4.1;
    MATHEMATICS.md#calibration.
    """
    means, variances, targets = as_gaussians(mean, variance, y)
    if is_concrete(variances) and not np.all(np.asarray(variances) > 0):
        raise ValueError(
            "variance must be positive, got 0. Add the variance of the noise of the targets."
        )
    return _gaussian_loss(means, variances, targets)


@jax.jit
def _coverage(means: Array, variances: Array, targets: Array, level: Float[Array, ""]) -> Estimate:
    """Return the share of covered targets."""
    half_widths = math.sqrt(2) * jax.scipy.special.erfinv(level) * safe_sqrt(variances)
    is_covered = jnp.abs(targets - means) <= half_widths
    return wilson(jnp.mean(is_covered, dtype=means.dtype), len(means))


@jax.jit
def _gaussian_loss(means: Array, variances: Array, targets: Array) -> Estimate:
    """Return the mean of −log N(y; m, s²), +inf without variance."""
    is_positive = variances > 0
    safe_variances = jnp.where(is_positive, variances, 1)
    # Divided before it is squared, so that the unit does not matter.
    residuals = (targets - means) / jnp.sqrt(safe_variances)
    losses = 0.5 * (jnp.log(2 * math.pi * safe_variances) + residuals**2)
    return mean_interval(jnp.sum(jnp.where(is_positive, losses, jnp.inf), axis=1))
