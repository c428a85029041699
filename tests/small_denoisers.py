"""Denoisers of each kind that are fitted in a moment, for tests of what surrounds a fit."""

import jax
import numpy as np

from softntk import diffusion

SDE = diffusion.vp_sde()
KEY = jax.random.key(0)
X = np.asarray(np.random.default_rng(0).normal(size=(40, 2)), np.float32)


def fit(**options):
    return diffusion.fit_denoiser(
        **{"key": KEY, "sde": SDE, "x0": X, "width": 8, "steps": 2, "batch_size": 8} | options
    )


def kernel(**options):
    return diffusion.kernel_denoiser(
        **{"key": KEY, "sde": SDE, "x0": X, "landmarks": 8, "draws": 1, "sigma": 1.0} | options
    )


def linearised(**options):
    return diffusion.linearised_denoiser(
        **{"key": KEY, "sde": SDE, "x0": X, "width": 8, "steps": 2} | options
    )
