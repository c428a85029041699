"""Distributions over eigenvalues: a spectral density, or an alignment of targets."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from softntk._core.records import record
from softntk._core.validation import (
    as_floating,
    check_callable,
    check_number,
    is_concrete,
)
from softntk._linalg.gram_arrays import Number, as_scalar
from softntk._linalg.products import product


@record
class SpectralMeasure:
    r"""A distribution over eigenvalues: p rows of s nodes θ, with weights w that sum to one.

    For :func:`spectral_density` the rows are random probes, each an unbiased estimate of 1/n Σ δ(λ
    − λ_i); for :func:`target_alignment` they are the targets, Σ ⟨q_i, y⟩²/‖y‖² δ(λ − λ_i). With a
    decomposed kernel, the nodes are its eigenvalues. With an operator they are Gauss quadrature
    nodes, exact for polynomials of degree 2s − 1.

    Attributes:
        nodes: θ, [p, s], ascending in each row.
        weights: w, [p, s].
        size: n, the number of eigenvalues.
    """

    nodes: Float[Array, "p s"]
    weights: Float[Array, "p s"]
    size: Array

    def rows(self, function: Callable[[Array], Array]) -> Float[Array, " p"]:
        """Return ∫ f dμ of each row; f maps an array of eigenvalues to an array of that shape."""
        check_callable("function", function)
        return jnp.sum(self.weights * function(self.nodes), axis=1)

    def mean(self, function: Callable[[Array], Array]) -> Float[Array, ""]:
        """Return ∫ f dμ, the mean of the rows."""
        return jnp.mean(self.rows(function))

    def standard_error(self, function: Callable[[Array], Array]) -> Float[Array, ""]:
        """Return the standard error of :meth:`mean` from the scatter of the rows; zero for one."""
        row_means = self.rows(function)
        if len(row_means) == 1:
            return jnp.zeros((), row_means.dtype)
        return jnp.std(row_means, ddof=1) / math.sqrt(len(row_means))

    def cumulative(
        self, levels: Number | list | Float[Array | np.ndarray, "*l"]
    ) -> Float[Array, "*l"]:
        """Return the share of the spectrum at or below each level, the mean over the rows.

        Raises:
            ValueError: a level that is NaN; infinite ones are allowed.
        """
        level_array = _as_levels(levels, self.nodes.dtype)
        # The weights of the nodes at or below each level, divided by the number of rows.
        is_below = self.nodes.reshape(-1, 1) <= level_array.reshape(1, -1)
        shares = jnp.sum(jnp.where(is_below, self.weights.reshape(-1, 1), 0), axis=0) / len(
            self.nodes
        )
        return shares.reshape(level_array.shape)

    def density(
        self, levels: Number | list | Float[Array | np.ndarray, "*l"], bandwidth: Number
    ) -> Float[Array, "*l"]:
        """Return the density at each level, smoothed by a Gaussian of deviation ``bandwidth``.

        Raises:
            ValueError: bandwidth not a positive finite number (in the units of the eigenvalues), a
                level that is NaN.
        """
        level_array = _as_levels(levels, self.nodes.dtype)
        bandwidth_array = as_scalar("bandwidth", bandwidth, self.nodes.dtype, above=0)
        # A sum of Gaussians, one at each node.
        distances = (level_array.reshape(-1, 1) - self.nodes.reshape(1, -1)) / bandwidth_array
        gaussians = jnp.exp(-0.5 * distances**2) / math.sqrt(2 * math.pi)
        shares = product(gaussians, self.weights.reshape(-1, 1))[:, 0] / len(self.nodes)
        return (shares / bandwidth_array).reshape(level_array.shape)


def _as_levels(levels: object, dtype: DTypeLike) -> Float[Array, "..."]:
    """Return levels as an array; infinite ones are allowed."""
    # Integers are allowed as levels, although they are no floating-point numbers.
    is_integer = isinstance(levels, int | np.integer) and not isinstance(levels, bool)
    numbers = check_number("levels", levels) if is_integer else levels
    level_array = as_floating("levels", numbers, finite=False, empty=True).astype(dtype)
    if is_concrete(level_array) and np.isnan(np.asarray(level_array)).any():
        raise ValueError("levels must not be NaN.")
    return level_array
