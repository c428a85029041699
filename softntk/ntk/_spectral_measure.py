"""What a spectral density or an alignment of targets is: a distribution over eigenvalues."""

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
    r"""A distribution over the eigenvalues of a kernel: p rows of s nodes θ with weights w that sum
    to one in each row.

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
        """Return ∫ f dμ of each row."""
        check_callable("function", function)
        return jnp.sum(self.weights * function(self.nodes), axis=1)

    def mean(self, function: Callable[[Array], Array]) -> Float[Array, ""]:
        """Return ∫ f dμ, the mean of the rows."""
        return jnp.mean(self.rows(function))

    def standard_error(self, function: Callable[[Array], Array]) -> Float[Array, ""]:
        """Return that of :meth:`mean`, from the scatter of the rows; zero for one row, as a
        decomposed kernel has.
        """
        rows = self.rows(function)
        return (
            jnp.std(rows, ddof=1) / math.sqrt(len(rows))
            if len(rows) > 1
            else jnp.zeros((), rows.dtype)
        )

    def cumulative(
        self, levels: Number | list | Float[Array | np.ndarray, "*l"]
    ) -> Float[Array, "*l"]:
        """Return the share of the spectrum at or below each level, the mean of the rows."""
        level = _as_levels(levels, self.nodes.dtype)
        below = self.nodes.reshape(-1, 1) <= level.reshape(1, -1)
        shares = jnp.sum(jnp.where(below, self.weights.reshape(-1, 1), 0), axis=0) / len(self.nodes)
        return shares.reshape(level.shape)

    def density(
        self, levels: Number | list | Float[Array | np.ndarray, "*l"], bandwidth: Number
    ) -> Float[Array, "*l"]:
        """Return the density at each level, every node smeared into a Gaussian of standard
        deviation ``bandwidth``.

        Raises:
            ValueError: bandwidth not a positive finite number (in the units of the eigenvalues), a
                level that is NaN.
        """
        level = _as_levels(levels, self.nodes.dtype)
        width = as_scalar("bandwidth", bandwidth, self.nodes.dtype, above=0)
        z = (level.reshape(-1, 1) - self.nodes.reshape(1, -1)) / width
        bumps = jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        shares = product(bumps, self.weights.reshape(-1, 1))[:, 0] / len(self.nodes)
        return (shares / width).reshape(level.shape)


def _as_levels(levels: object, dtype: DTypeLike) -> Float[Array, "..."]:
    """Return levels as an array; infinite ones are as good as any."""
    whole = isinstance(levels, int | np.integer) and not isinstance(levels, bool)
    numbers = check_number("levels", levels) if whole else levels
    array = as_floating("levels", numbers, finite=False, empty=True).astype(dtype)
    if is_concrete(array) and np.isnan(np.asarray(array)).any():
        raise ValueError("levels must not be NaN.")
    return array
