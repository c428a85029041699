"""Programs of samplers: compiled once for scores with the same trace, and free of the host."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_except

from softntk import diffusion
from softntk._core import shared_programs

KINDS = ["closure", "jitted", "denoiser", "method"]


@pytest.mark.parametrize(
    ("method", "kind"),
    slow_except(itertools.product(["sde", "ode"], KINDS), ("sde", "method"), ("ode", "jitted")),
)
def test_scores_made_anew_compile_nothing_and_give_their_own_samples(compilations, kind, method):
    """With equal shapes and options; the samples are those of a run that shares nothing."""

    def draw(seed):
        sde = diffusion.vp_sde()
        slope = jnp.asarray(1.0 + seed, jnp.float32)
        mixture = diffusion.GaussianMixture(
            jnp.ones(1), jnp.full((1, 2), float(seed)), jnp.eye(2)[None]
        )
        denoiser: Any = lambda t, x: x * slope / 8
        score_fn = {
            "closure": lambda t, x: -slope * x,
            "jitted": jax.jit(lambda t, x: -slope * x),
            "denoiser": diffusion.score(sde, denoiser),
            "method": partial(mixture.score, sde),
        }[kind]
        key = jax.random.key(seed)
        return diffusion.sample(key, sde, score_fn, (16, 2), method, steps=8)

    draw(0)
    compilations.clear()
    shared = draw(1)
    assert compilations == []
    shared_programs._PROGRAMS.clear()
    np.testing.assert_array_equal(shared, draw(1))


def test_likelihoods_of_other_scores_compile_nothing(compilations):
    def likelihood(seed):
        slope = jnp.asarray(1.0 + seed, jnp.float32)
        points = jnp.full((4, 2), 0.1 * seed)
        sde = diffusion.vp_sde()
        return diffusion.log_likelihood(sde, jax.jit(lambda t, x: -slope * x), points)

    likelihood(0)
    compilations.clear()
    shared = likelihood(1)
    assert compilations == []
    shared_programs._PROGRAMS.clear()
    np.testing.assert_array_equal(shared, likelihood(1))
