"""Metrics of scores and samples: score error, distances of two samples, memorisation.

    relative score error    E‖s − s*‖²/E‖s*‖²                     on points drawn at time t
    sliced Wasserstein      (E_θ W_p(θ·X, θ·Y)^p)^{1/p}           θ uniform on the sphere
    energy distance         2E|X − Y| − E|X − X'| − E|Y − Y'|     zero for equal distributions only
    MMD²                    E k(X, X') + E k(Y, Y') − 2E k(X, Y)  the same with 1 − k for |·|

Each is an :class:`Estimate` with an interval of 95 %; each docstring says what that interval
covers, and what it does not. Pairs are compared in blocks, so that 10⁴ × 10⁴ of them need a few
megabytes, and by differences of their coordinates, not by
|x|² − 2x·y + |y|²: a copy has distance zero, and near points keep their digits however far from the
origin they are.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from softntk.diffusion import metrics
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 1000, 3))
    >>> moved = metrics.energy_distance(x, y + 1)
    >>> bool(moved.lower > 0), bool(metrics.energy_distance(x, y).lower > 0)
    (True, False)

Source: MATHEMATICS.md#diffusion (score error); the docstrings name the others.
"""

from softntk._linalg.intervals import Estimate as Estimate
from softntk.diffusion.metrics._distances import energy_distance as energy_distance
from softntk.diffusion.metrics._distances import median_bandwidth as median_bandwidth
from softntk.diffusion.metrics._distances import mmd as mmd
from softntk.diffusion.metrics._distances import sliced_wasserstein as sliced_wasserstein
from softntk.diffusion.metrics._memorisation import Memorisation as Memorisation
from softntk.diffusion.metrics._memorisation import Nearest as Nearest
from softntk.diffusion.metrics._memorisation import memorisation as memorisation
from softntk.diffusion.metrics._memorisation import nearest_training_point as nearest_training_point
from softntk.diffusion.metrics._score_error import Distribution as Distribution
from softntk.diffusion.metrics._score_error import ScoreError as ScoreError
from softntk.diffusion.metrics._score_error import score_error as score_error
