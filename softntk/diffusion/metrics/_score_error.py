"""The error of a score against that of a known distribution, at given times."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

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
from softntk._linalg.norms import binary_scale
from softntk.diffusion._arguments import as_output, as_times
from softntk.diffusion._denoisers.base import check_score_fn
from softntk.diffusion._noising_process import VPSDE, check_sde
from softntk.diffusion.metrics._intervals import Estimate, normal


class Distribution(Protocol):
    """What :func:`score_error` asks of the truth: draws of X_0, and the score of X_t.

    A pytree, as both in ``mixture`` are.
    """

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Draws of X_0, [n, d]."""
        ...

    def score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """∇log p_t(x), [n, d]."""
        ...


@record
class ScoreError:
    """The error of a score at each time.

    Attributes:
        t: the times, of any one shape.
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
            d]. What is jitted in it stays compiled: it is called, not traced.
        distribution: the truth, e.g. a :class:`~softntk.diffusion.GaussianMixture`.
        t: in (0, T], a scalar or [k].
        n: draws at each time, at least 2.

    Returns:
        A :class:`ScoreError` whose fields have the shape of t.

    Raises:
        ValueError: t outside (0, T], empty or no floating-point numbers; n below 2; a score of
            another shape than x, or one that is not finite (inside jit it is returned).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import diffusion
        >>> sde, normal = diffusion.vp_sde(), diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
        >>> error = score_error(jax.random.key(0), sde, lambda t, x: -1.1 * x, normal, jnp.array([0.1, 0.5]))
        >>> [round(float(v), 4) for v in error.relative.value]
        [0.01, 0.01]

    Source: MATHEMATICS.md#diffusion; van der Vaart (1998), Asymptotic Statistics, chapter 3, for
    the ratio.
    """
    key = check_key("key", key)
    check_sde(sde)
    check_score_fn(score_fn)
    _check_distribution(distribution)
    n = check_count("n", n, at_least=2)
    t = as_floating("t", t, finite=False, empty=True)
    if t.ndim > 1 or t.size == 0:
        raise ValueError(f"t must be a scalar or of shape [k] with k > 0, got shape {t.shape}.")
    as_times(sde, t)
    times = jnp.atleast_1d(t)
    keys = jax.random.split(key, len(times))
    errors = [
        _error_at(k, sde, score_fn, distribution, time, n)
        for k, time in zip(keys, times, strict=True)
    ]
    together = lambda *leaves: jnp.stack(leaves).reshape(t.shape)
    absolute, relative = (
        jax.tree.map(together, *estimates) for estimates in zip(*errors, strict=True)
    )
    return ScoreError(t=t, relative=relative, absolute=absolute)


def _check_distribution(distribution: Any) -> None:
    if not all(callable(getattr(distribution, name, None)) for name in ("sample", "score")):
        raise ValueError(
            "distribution must have methods sample(key, n) and score(sde, t, x), as a GaussianMixture has, "
            f"got {type(distribution).__name__}."
        )
    if jax.tree_util.all_leaves([distribution]):
        raise ValueError(
            f"distribution must be a pytree, got {type(distribution).__name__}: register its class with JAX, e.g. by "
            "jax.tree_util.register_dataclass."
        )


@partial(jax.jit, static_argnames="n")
def _draw(
    key: Array, sde: VPSDE, distribution: Distribution, t: Array, n: int
) -> tuple[Array, Array]:
    data_key, noise_key = jax.random.split(key)
    x = sde.perturb(noise_key, t, distribution.sample(data_key, n))
    return x, distribution.score(sde, t, x)


def _error_at(
    key: Array, sde: VPSDE, score_fn: Callable, distribution: Distribution, t: Array, n: int
) -> tuple[Estimate, Estimate]:
    x, truth = _draw(key, sde, distribution, t, n)
    score = as_output("score_fn", score_fn(t.astype(x.dtype), x), x)
    absolute, relative, bad = _compare(score, truth)
    if is_concrete(bad) and bad:
        raise ValueError(
            f"score_fn must be finite, got {bad} of {n} rows with an error that is NaN or infinite, at t = {t}."
        )
    return absolute, relative


@jax.jit
def _compare(score: Array, truth: Array) -> tuple[Estimate, Estimate, Array]:
    unit = binary_scale(jnp.stack([jnp.max(jnp.abs(score - truth)), jnp.max(jnp.abs(truth))]))[0]
    a = jnp.sum(((score - truth) / unit) ** 2, axis=1)
    b = jnp.sum((truth / unit) ** 2, axis=1)
    n, size = len(a), jnp.mean(b)
    error = jnp.mean(a)
    # A truth of zero has no relative error, but for a score that is zero too.
    ratio = jnp.where(
        size > 0, error / jnp.where(size > 0, size, 1), jnp.where(error > 0, jnp.inf, 0)
    )
    spread = jnp.var(a - jnp.where(size > 0, ratio, 0) * b, ddof=1) / n
    absolute = normal(error, jnp.var(a, ddof=1) / n, 0.0)
    relative = normal(
        ratio, jnp.where(size > 0, spread / jnp.where(size > 0, size, 1) ** 2, 0), 0.0
    )
    return (
        jax.tree.map(lambda end: end * unit * unit, absolute),
        relative,
        jnp.sum(~jnp.isfinite(a)),
    )
