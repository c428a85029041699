"""The error of a score against that of a known distribution, at given times."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.records import record
from softntk._core.validation import (
    as_floating,
    check_count,
    check_key,
    is_concrete,
)
from softntk._linalg.intervals import Estimate, normal
from softntk._linalg.norms import binary_scale
from softntk.diffusion._arguments import as_output, as_times
from softntk.diffusion._denoisers.base import check_score_fn
from softntk.diffusion._noising_process import VPSDE, check_sde


class Distribution(Protocol):
    """A distribution whose score is known at every time, a pytree.

    :class:`~softntk.diffusion.GaussianMixture` and
    :class:`~softntk.diffusion.EmpiricalDistribution` are such distributions.
    """

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Draw n samples of X_0, [n, d]."""
        ...

    def score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """Return ∇log p_t(x), [n, d]."""
        ...


@record
class ScoreError:
    """The error of a score at each time.

    Attributes:
        t: the times, a scalar or [k].
        relative: E‖s − s*‖²/E‖s*‖² at each.
        absolute: E‖s − s*‖² at each.
    """

    t: Float[Array, "..."]
    relative: Estimate
    absolute: Estimate


def score_error(
    key: PRNGKeyArray,
    sde: VPSDE,
    score_fn: Callable[[Array, Array], Array],
    distribution: Distribution,
    t: Float[Array | np.ndarray, " k"] | Float[Array | np.ndarray, ""] | float,
    n: int = 4096,
) -> ScoreError:
    r"""Return the error of a score at times t, on n independent draws X_t at each time.

    Use it where the true score is known, as for a mixture.

    With a = ‖s − s*‖² and b = ‖s*‖² on each draw the errors are ā and R = ā/b̄, of variances
    var(a)/n and, to first order, var(a − Rb)/(n b̄²): the intervals are normal, cut at 0.

    Args:
        key: randomness.
        sde: the noising process.
        score_fn: the score (t, x) -> [n, d], called with one time as a scalar and x of shape [n,
            d]. It is called, not traced, so that compiled functions in it are used as they are.
        distribution: the truth, e.g. a :class:`~softntk.diffusion.GaussianMixture`.
        t: times in (0, T], a scalar or [k].
        n: draws at each time, at least 2.

    Returns:
        A :class:`ScoreError` whose fields have the shape of t.

    Raises:
        ValueError: t is outside (0, T], empty or not of floating-point numbers; n is below 2; a
            score of another shape than x, or one that is not finite (inside jit it is returned).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde, times = diffusion.vp_sde(), jnp.array([0.1, 0.5])
        >>> normal = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> error = score_error(jax.random.key(0), sde, lambda t, x: -1.1 * x, normal, times)
        >>> [round(float(v), 4) for v in error.relative.value]
        [0.01, 0.01]

    Source: MATHEMATICS.md#diffusion; van der Vaart (1998), Asymptotic Statistics, chapter 3, for
    the ratio.
    """
    # 1. Check the arguments.
    key = check_key("key", key)
    check_sde(sde)
    check_score_fn(score_fn)
    _check_distribution(distribution)
    n = check_count("n", n, at_least=2)
    t = as_floating("t", t, finite=False, empty=True)
    if t.ndim > 1 or t.size == 0:
        raise ValueError(f"t must be a scalar or of shape [k] with k > 0, got shape {t.shape}.")
    as_times(sde, t)
    # 2. Estimate at each time, with independent draws. A loop on the host: score_fn need not be
    # traceable.
    times = jnp.atleast_1d(t)
    time_keys = jax.random.split(key, len(times))
    errors = [
        _error_at(time_key, sde, score_fn, distribution, time, n)
        for time_key, time in zip(time_keys, times, strict=True)
    ]

    # 3. Stack the estimates in the shape of t.
    def stack_leaves(*leaves: Array) -> Array:
        return jnp.stack(leaves).reshape(t.shape)

    absolute, relative = (
        jax.tree.map(stack_leaves, *estimates) for estimates in zip(*errors, strict=True)
    )
    return ScoreError(t=t, relative=relative, absolute=absolute)


def _check_distribution(distribution: object) -> None:
    """Check that a distribution has the methods of :class:`Distribution` and is a pytree.

    Raises:
        ValueError: a method is missing, or the class is not registered as a pytree.
    """
    if not all(callable(getattr(distribution, name, None)) for name in ("sample", "score")):
        raise ValueError(
            "distribution must have methods sample(key, n) and score(sde, t, x), as a "
            f"GaussianMixture has, got {type(distribution).__name__}."
        )
    # An object that JAX does not know as a pytree is a single leaf.
    if jax.tree_util.all_leaves([distribution]):
        raise ValueError(
            f"distribution must be a pytree, got {type(distribution).__name__}: register its class "
            "with JAX, e.g. by jax.tree_util.register_dataclass."
        )


@partial(jax.jit, static_argnames="n")
def _draw(
    key: Array, sde: VPSDE, distribution: Distribution, t: Array, n: int
) -> tuple[Array, Array]:
    """Return n draws of X_t, and their true scores, both [n, d]."""
    data_key, noise_key = jax.random.split(key)
    x = sde.perturb(noise_key, t, distribution.sample(data_key, n))
    return x, distribution.score(sde, t, x)


def _error_at(
    key: Array, sde: VPSDE, score_fn: Callable, distribution: Distribution, t: Array, n: int
) -> tuple[Estimate, Estimate]:
    """Return absolute and relative error at one time.

    Raises:
        ValueError: a score of another shape than x, or one that is not finite.
    """
    x, true_score = _draw(key, sde, distribution, t, n)
    score = as_output("score_fn", score_fn(t.astype(x.dtype), x), x)
    absolute, relative, bad_count = _compare(score, true_score)
    if is_concrete(bad_count) and bad_count:
        raise ValueError(
            f"score_fn must be finite, got {bad_count} of {n} rows with an error that is NaN or "
            f"infinite, at t = {t}."
        )
    return absolute, relative


@jax.jit
def _compare(score: Array, true_score: Array) -> tuple[Estimate, Estimate, Array]:
    """Return absolute and relative error, and the number of rows that are not finite.

    Symbols: a = ‖s − s*‖², b = ‖s*‖² of each row, [n], and R the ratio of their means.
    """
    # 1. Squared norms, in units of the largest entry, so that no square over- or underflows.
    largest_entries = [jnp.max(jnp.abs(score - true_score)), jnp.max(jnp.abs(true_score))]
    unit = binary_scale(jnp.stack(largest_entries))[0]
    a = jnp.sum(((score - true_score) / unit) ** 2, axis=1)
    b = jnp.sum((true_score / unit) ** 2, axis=1)
    # 2. Means and their ratio. A true score of zero has an infinite relative error, or zero if the
    # score is zero too.
    n = len(a)
    mean_square = jnp.mean(b)
    error = jnp.mean(a)
    is_nonzero = mean_square > 0
    safe_square = jnp.where(is_nonzero, mean_square, 1)
    ratio = jnp.where(is_nonzero, error / safe_square, jnp.where(error > 0, jnp.inf, 0))
    # 3. Intervals: the ratio's variance to first order is var(a − Rb)/(n b̄²).
    residual_variance = jnp.var(a - jnp.where(is_nonzero, ratio, 0) * b, ddof=1) / n
    ratio_variance = jnp.where(is_nonzero, residual_variance / safe_square**2, 0)
    absolute = normal(error, jnp.var(a, ddof=1) / n, 0.0)
    relative = normal(ratio, ratio_variance, 0.0)
    # Two factors, as the square of the unit may overflow.
    absolute = jax.tree.map(lambda end: end * unit * unit, absolute)
    return absolute, relative, jnp.sum(~jnp.isfinite(a))
