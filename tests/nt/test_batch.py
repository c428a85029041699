"""Kernels in batches through softntk.nt: the direct kernel in every field, flags included."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, points, slow_except

from softntk import nt

stax = nt.stax
pytestmark = pytest.mark.usefixtures("their_rank_promotion")


def assert_same_kernel(actual, desired, rtol=1e-12):
    """All fields of two Kernel objects, arrays and flags."""
    for field in dataclasses.fields(desired):
        a, b = getattr(actual, field.name), getattr(desired, field.name)
        if a is None or b is None:
            assert a is b, field.name
        elif isinstance(b, jax.Array) and b.dtype != bool:
            assert a.dtype == b.dtype, field.name
            assert_close(a, b, rtol=rtol)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)


NETWORKS = {
    "dense": (stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(1)), (5,)),
    "conv": (
        stax.serial(stax.Conv(8, (2, 2)), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(1)),
        (3, 3, 2),
    ),
    "parallel": (
        stax.serial(
            stax.Dense(8),
            stax.FanOut(2),
            stax.parallel(stax.serial(stax.Sin(), stax.Dense(8)), stax.Dense(8)),
            stax.FanInSum(),
        ),
        (5,),
    ),
}


def second_points(case, x1, shape):
    other = np.random.default_rng(1).normal(size=(8, *shape))
    return {
        "none": None,
        "same": x1.copy(),
        "equal beginning": jnp.concatenate([x1[:4], other[:4]]),
        "equal beginning, fewer": x1[:4],
        "other": jnp.asarray(other[:4]),
    }[case]


WAYS = {
    "serial": {"device_count": 0},
    "automatic": {"device_count": -1},
    "off device": {"device_count": 0, "store_on_device": False},
    "composed": {"device_count": 1},
}
CASES = ["none", "same", "equal beginning", "equal beginning, fewer", "other"]
BATCHES = [
    ("dense", WAYS, 2),
    ("dense", ["composed"], 4),
    ("conv", ["composed"], 4),
    ("parallel", ["serial"], 4),
]


@pytest.mark.filterwarnings("ignore:`FanIn` layers assume independent inputs")
@pytest.mark.parametrize("case", slow_except(CASES, "none", "same", "equal beginning", "other"))
@pytest.mark.parametrize(
    ("network", "ways", "batch_size"),
    slow_except(BATCHES, *(batch for batch in BATCHES if batch[0] != "conv")),
)
def test_batch_is_the_direct_kernel_in_every_field(network, ways, batch_size, case, x64):
    (_, _, kernel_fn), shape = NETWORKS[network]
    x1 = jnp.asarray(np.random.default_rng(0).normal(size=(8, *shape)))
    x2 = second_points(case, x1, shape)
    direct = jax.jit(kernel_fn)(x1, x2)
    for way in ways:
        assert_same_kernel(nt.batch(kernel_fn, batch_size=batch_size, **WAYS[way])(x1, x2), direct)
    assert bool(direct.x1_is_x2) == (case in ("none", "same"))


@pytest.mark.parametrize("case", CASES)
def test_composed_batches(case, x64):
    """kernel_fn(kernel_fn(x)): the second takes a Kernel, whose flag is its own."""
    kernel_fn = stax.serial(stax.Dense(8), stax.Erf())[2]
    batched = nt.batch(kernel_fn, batch_size=2, device_count=0)
    x1 = points(0, 8, 5)
    x2 = second_points(case, x1, (5,))
    assert_same_kernel(batched(batched(x1, x2)), kernel_fn(kernel_fn(x1, x2)))


def test_batches_of_batches(x64):
    """Even spread over "all" devices twice, where there is one."""
    kernel_fn = stax.serial(stax.Dense(8), stax.Erf())[2]
    x = points(0, 8, 5)
    batched = nt.batch(nt.batch(kernel_fn, device_count=1), batch_size=4, device_count=1)
    assert_same_kernel(batched(x, None), kernel_fn(x, None))


TWO_DEVICES = """
import jax, numpy as np
from softntk import nt
kernel_fn = nt.stax.serial(nt.stax.Dense(8), nt.stax.Erf())[2]
x, (first, second) = jax.random.normal(jax.random.key(0), (4, 5)), jax.devices()
batched = nt.batch(kernel_fn, device_count=2)
once, twice = batched(jax.device_put(x, second)), batched(batched(x))
np.testing.assert_allclose(once.nngp, kernel_fn(x).nngp, rtol=1e-5)
np.testing.assert_allclose(twice.ntk, kernel_fn(kernel_fn(x)).ntk, rtol=1e-5)
assert once.ntk.devices() == twice.cov1.devices() == {first}
assert bool(once.x1_is_x2) and bool(twice.x1_is_x2)
"""


@pytest.mark.slow
def test_batches_on_two_devices():
    """Points may be on any, kernels compose and are on the first; in a process of its own, for
    which there are two.
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
