"""Arguments of metrics: what is wrong is named."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from helpers import normal

from softntk import diffusion
from softntk.diffusion import metrics

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)


X = np.ones((4, 2), np.float32)
BAD_PAIRS = [
    ("x", "floating-point", X.astype(int), X),
    ("x", "shape", X[0], X),
    ("{second}", "columns", X, X[:, :1]),
    ("{second}", "finite", X, np.full_like(X, np.nan)),
    ("{second}", "dtype", X, X.astype(np.float64)),
]


@pytest.mark.parametrize(("name", "message", "x", "y"), BAD_PAIRS)
def test_bad_samples(name, message, x, y, untyped, x64):
    for second, metric in (
        ("y", partial(metrics.sliced_wasserstein, KEY)),
        ("y", metrics.energy_distance),
        ("y", metrics.mmd),
        ("y", metrics.median_bandwidth),
        ("train", metrics.nearest_training_point),
        ("train", lambda x, train: metrics.memorisation(x, train, x)),
    ):
        with pytest.raises(ValueError, match=f"^{name.format(second=second)} must .*{message}"):
            metric(x, y)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must have at least 2 rows", lambda: metrics.energy_distance(X[:1], X)),
        ("y must have at least 2 rows", lambda: metrics.mmd(X, X[:1])),
        (
            "x must have at least 2 rows",
            lambda: metrics.nearest_training_point(X[:1], X[:1], exclude_self=True),
        ),
        (
            "x must be train itself",
            lambda: metrics.nearest_training_point(X[:3], X, exclude_self=True),
        ),
        (
            "projections must be an integer of at least 2, got 0",
            lambda: metrics.sliced_wasserstein(KEY, X, X, projections=0),
        ),
        (
            "projections must be an integer of at least 2, got 1",
            lambda: metrics.sliced_wasserstein(KEY, X, X, projections=1),
        ),
        (
            "order must be a positive integer of at most 2",
            lambda: metrics.sliced_wasserstein(KEY, X, X, order=3),
        ),
        ("bandwidth must be a positive", lambda: metrics.mmd(X, X, bandwidth=0.0)),
        (
            "quantile must be a finite number above 0 and below 1",
            lambda: metrics.memorisation(X, X, X + 1, quantile=1.0),
        ),
        ("held_out must be points that are not in train", lambda: metrics.memorisation(X, X, X)),
        ("held_out must have as many columns", lambda: metrics.memorisation(X, X, X[:, :1])),
        (
            "n must be an integer of at least",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 0.1, n=1),
        ),
        (
            "t must be a floating-point",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 1),
        ),
        (
            "t must be a scalar or of shape",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), np.ones(0)),
        ),
        (
            "t must lie in",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), 0.0),
        ),
        (
            "t must lie in",
            lambda: metrics.score_error(KEY, SDE, lambda t, x: x, normal("float32"), math.nan),
        ),
    ],
)
def test_bad_arguments(message, call, untyped):
    with pytest.raises(ValueError, match=message):
        call()
