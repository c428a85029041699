"""Kernels of infinite width through softntk.nt, and their Monte Carlo estimates: against direct
computations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, points

from softntk import nt
from softntk.activations import ACTIVATIONS

stax = nt.stax
pytestmark = pytest.mark.usefixtures("their_rank_promotion")


@pytest.mark.parametrize(
    ("layer", "name"), [(stax.Relu, "relu"), (stax.Erf, "erf"), (stax.Exp, "exp")]
)
def test_deep_recursion_agrees_with_our_moments(layer, name, x64):
    w, b = 0.8, 0.3
    kernel_fn = stax.serial(
        stax.Dense(1, w, b), layer(), stax.Dense(1, w, b), layer(), stax.Dense(1, w, b)
    )[2]
    x = points(0, 5, 4) * 2
    moments = ACTIVATIONS[name].moments
    q = w**2 * np.asarray(x @ x.T) / 4 + b**2
    theta = q.copy()
    for _ in range(2):
        q11, q22 = (
            jnp.asarray(v) for v in np.broadcast_arrays(np.diag(q)[:, None], np.diag(q)[None, :])
        )
        nngp, slope = (
            np.asarray(f(q11, jnp.asarray(q), q22, 0.0))
            for f in (moments.covariance, moments.derivative)
        )
        q, theta = w**2 * nngp + b**2, w**2 * (theta * slope + nngp) + b**2
    kernels = jax.jit(kernel_fn)(x, None)
    assert_close(kernels.nngp, q, rtol=1e-6)  # their arccos loses digits at equal points
    assert_close(kernels.ntk, theta, rtol=1e-6)


def test_rbf_is_the_gaussian_kernel(x64):
    kernel_fn = stax.serial(
        stax.Dense(1, W_std=1.0), stax.Rbf(gamma=0.7), stax.Dense(1, W_std=1.0)
    )[2]
    x = points(0, 6, 3)
    squares = np.sum((np.asarray(x)[:, None] - np.asarray(x)[None]) ** 2, -1) / 3
    assert_close(kernel_fn(x, None, "nngp"), np.exp(-0.7 * squares))


def test_convolution_with_pooling_is_its_sum_over_patches(x64):
    kernel_fn = stax.serial(stax.Conv(1, (3,), padding="VALID", W_std=1.0), stax.GlobalAvgPool())[2]
    x = np.random.default_rng(0).normal(size=(4, 6, 2))
    patches = np.stack([x[:, i : i + 3].reshape(4, -1) for i in range(4)], axis=1) / np.sqrt(6)
    assert_close(
        kernel_fn(jnp.asarray(x), None, "nngp"), np.einsum("iap,jbp->ij", patches, patches) / 16
    )


def test_masked_sequences_are_shorter_sequences(x64):
    """A masked token must count for nothing: the kernel of the shorter sequence, in analytic and
    finite network alike.
    """
    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(16), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(1)
    )
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    masked = x.copy()
    masked[:, 3:] = 100.0
    short, long = jnp.asarray(x[:, :3]), jnp.asarray(masked)
    masked_fn = jax.jit(lambda x1, x2: kernel_fn(x1, x2, ("nngp", "ntk"), mask_constant=100.0))
    short_fn = jax.jit(lambda x1, x2: kernel_fn(x1, x2, ("nngp", "ntk")))
    for other in (None, short[:2]):
        for actual, desired in zip(masked_fn(long, other), short_fn(short, other), strict=True):
            assert_close(actual, desired)
    _, params = init_fn(jax.random.key(0), long.shape)
    assert_close(
        stax.unmask_fn(apply_fn)(params, long, mask_constant=100.0), apply_fn(params, short)
    )


def test_monte_carlo_kernels_converge(x64):
    init_fn, apply_fn, kernel_fn = stax.serial(stax.Dense(512), stax.Erf(), stax.Dense(1))
    x1, x2 = points(0, 4, 3), points(1, 2, 3)
    sample = nt.monte_carlo_kernel_fn(
        init_fn, apply_fn, jax.random.PRNGKey(0), [1, 64], batch_size=2, device_count=0, vmap_axes=0
    )
    for other in (None, x2):
        exact = jax.jit(kernel_fn)(x1, other)
        _, fine = sample(x1, other, ("nngp", "ntk"))
        assert_close(fine.ntk, exact.ntk, rtol=0.05)
        assert_close(fine.nngp, exact.nngp, rtol=0.4)
