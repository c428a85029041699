"""Processes, distributions and denoisers are pickled and copied; kernels of equal settings are
equal.
"""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_denoisers import SDE, X, fit, kernel, linearised

from softntk import diffusion
from softntk.diffusion import metrics

MIXTURE = diffusion.GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None])
DATA = diffusion.EmpiricalDistribution(X)


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in leaves)


@pytest.mark.parametrize("fitted", ["kernel", "fit", "linearised"])
def test_denoisers_are_saved_and_copied(fitted):
    f = {"kernel": kernel, "fit": fit, "linearised": linearised}[fitted](times=[0.3])
    for again in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f), copy.copy(f)):
        assert same(again(0.3, X), f(0.3, X))
        assert again.stats.keys() == f.stats.keys()
    assert len(repr(f)) < 200
    assert "2 dimensions, 1 noise levels" in repr(f)


@pytest.mark.parametrize(
    "thing", [SDE, diffusion.cosine_sde(), MIXTURE, DATA, metrics.energy_distance(X, X + 1)]
)
def test_processes_and_distributions_are_saved_and_copied(thing):
    for again in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
        assert same(again, thing)
        assert type(again) is type(thing)
    assert len(repr(thing)) < 200
    assert pickle.loads(pickle.dumps(SDE)) == SDE


def test_kernels_of_equal_settings_are_equal():
    """So that nothing compiles twice for two fits."""
    one, other = kernel(times=[0.3]).predictor.kernel_of, kernel(times=[0.5]).predictor.kernel_of
    assert one == other
    assert hash(one) == hash(other)
    assert one != kernel(times=[0.3], train_readout=True).predictor.kernel_of
