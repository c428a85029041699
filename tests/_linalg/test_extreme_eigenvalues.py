"""How far an eigenvalue may lie beyond the Ritz values: the probability that it lies farther."""

import math

import pytest
import scipy.stats
from helpers import assert_close

from softntk._linalg import extreme_eigenvalues as extremes


@pytest.mark.parametrize("size", [2, 30, 1000])
def test_a_component_of_a_random_vector_is_smaller_with_that_probability(size):
    """The square of a component of a unit vector has the distribution Beta(½, (n − 1)/2)."""
    square = math.exp(2 * extremes._log_component_bound(size))
    probability = scipy.stats.beta.cdf(square, 0.5, (size - 1) / 2)
    assert probability <= extremes.FAILURE_PROBABILITY
    if size == 1000:
        assert_close(probability, extremes.FAILURE_PROBABILITY, rtol=1e-3)
