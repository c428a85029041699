"""The data set itself as a distribution, whose denoiser is attention over the data."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk._core.validation import as_rows, check_count, check_key
from softntk._linalg.norms import binary_scale
from softntk.diffusion._arguments import columns_of_times, widest_dtype
from softntk.diffusion._evaluation import evaluate_compiled
from softntk.diffusion._noising_process import VPSDE
from softntk.diffusion._types import Points, Times

MAX_QUERY_ROWS = 256
"""Number of points that are compared with the whole data set at once."""


@jax.tree_util.register_pytree_node_class
class EmpiricalDistribution:
    r"""The data set itself as a distribution: N points of weight 1/N.

    Its exact denoiser is attention over the data:

        E[X_0 | X_t = x] = Σ_i softmax_i(−|x − αx_i|²/(2h)) x_i.

    Sampling with its score returns the data. It is the estimator that has no error on the training
    loss and does not generalise: use it as the reference for memorisation.

    Args:
        x0: the data, [N, d].

    Raises:
        ValueError: x0 is not a finite floating-point matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from softntk.diffusion import vp_sde
        >>> two = EmpiricalDistribution(jnp.array([[0.0], [1.0]]))
        >>> two.denoise(vp_sde(), 1e-4, jnp.array([[0.9]])).round(4).tolist()
        [[1.0]]

    Source: MATHEMATICS.md#diffusion, for p_0 the empirical measure.
    """

    def __init__(self, x0: Float[Array | np.ndarray, "N d"]) -> None:
        """Check the data, and store their mean: differences from it keep more digits."""
        self.points = as_rows("x0", x0)
        unit = binary_scale(self.points)
        self._centre = jnp.mean(self.points / unit, axis=0) * unit[0]

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Return the data and their mean."""
        return (self.points, self._centre), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "EmpiricalDistribution":
        """Return the distribution with these leaves, which may be any objects."""
        self = object.__new__(cls)
        self.points, self._centre = leaves
        return self

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """Return points drawn with replacement, [n, d].

        Raises:
            ValueError: n is not a positive integer.
        """
        n = check_count("n", n)
        return jax.random.choice(check_key("key", key), self.points, (n,))

    def __repr__(self) -> str:
        rows, d = jnp.shape(self.points)
        return f"EmpiricalDistribution({rows} points in {d} dimensions, {self.points.dtype})"

    def log_density(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, " n"]:
        """Return the log-density log p_t(x), [n].

        Arguments and errors are those of :meth:`GaussianMixture.log_density`.
        """
        method = EmpiricalDistribution._attend
        return evaluate_compiled(method, self, self.points.shape[1], sde, t, x)[0]

    def denoise(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return E[X_0 | X_t = x], [n, d].

        Arguments and errors are those of :meth:`GaussianMixture.log_density`.
        """
        method = EmpiricalDistribution._attend
        return evaluate_compiled(method, self, self.points.shape[1], sde, t, x)[1]

    def score(self, sde: VPSDE, t: Times, x: Points) -> Float[Array, "n d"]:
        """Return ∇log p_t(x) = (αE[X_0 | x] − x)/h, [n, d].

        Arguments and errors are those of :meth:`GaussianMixture.log_density`.
        """
        method = EmpiricalDistribution._score
        return evaluate_compiled(method, self, self.points.shape[1], sde, t, x)

    def _score(self, sde: VPSDE, t: Array, x: Array) -> Float[Array, "n d"]:
        """Return the score by Tweedie's formula."""
        denoised = self._attend(sde, t, x)[1]
        time = columns_of_times(t, denoised)
        return (sde.alpha(time) * denoised - x) / sde.variance(time)

    def _attend(self, sde: VPSDE, t: Array, x: Array) -> tuple[Array, Array]:
        """Return log-densities and denoised points.

        With centred data c_i and a centred point p, the logits are those of −|p − αc_i|²/(2h)
        without the common term in |p|²: (⟨c_i, p⟩ − α|c_i|²/2) α/h. Points and data have units of
        their own, so that no square leaves the range of the precision.
        """
        # 1. Centre the data and bring them to a unit in which their squares do not overflow.
        x = x.astype(widest_dtype(x, self.points))
        times = columns_of_times(t, x)[:, 0]
        centre = self._centre.astype(x.dtype)
        centred = self.points.astype(x.dtype) - centre[None]
        data_unit = binary_scale(centred)[0, 0]
        scaled_data = centred / data_unit
        squared_norms = jnp.sum(scaled_data**2, axis=1)

        def attend_one(query: tuple[Array, Array]) -> tuple[Array, Array]:
            """Return log-density and denoised point of one time and point."""
            # 2. Compute the logits up to the factor α/h, in units of data and point.
            time, point = query
            alpha = sde.alpha(time)
            h = sde.variance(time)
            point = point - alpha * centre
            point_unit = binary_scale(point)[0]
            larger_unit = jnp.maximum(data_unit, point_unit)
            dots = jnp.matmul(scaled_data, point / point_unit, precision="highest")
            scaled_logits = (point_unit / larger_unit) * dots
            scaled_logits = scaled_logits - (data_unit / larger_unit) * (alpha * squared_norms / 2)
            # 3. Subtract the largest logit. XLA computes the logits anew for each use, with other
            # roundings. So the largest is set to zero exactly, and no other may exceed it.
            nearest = jnp.argmax(scaled_logits)
            logit_gaps = scaled_logits - scaled_logits[nearest]
            logits = logit_gaps * (alpha * data_unit) * larger_unit / h
            is_nearest = jnp.arange(len(centred)) == nearest
            logits = jnp.where((logits > 0) | is_nearest, 0, logits)
            # 4. Add the log-density at the nearest data point, and average with softmax weights.
            offset = point - alpha * centred[nearest]
            log_density = jax.nn.logsumexp(logits) - jnp.sum(offset**2) / (2 * h)
            log_density = log_density - math.log(len(centred))
            log_density = log_density - len(point) / 2 * jnp.log(2 * math.pi * h)
            weights = jax.nn.softmax(logits)
            return log_density, centre + jnp.matmul(weights, centred, precision="highest")

        return lax.map(attend_one, (times, x), batch_size=MAX_QUERY_ROWS)
