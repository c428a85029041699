"""Kernels over several devices: inside ``jax.shard_map``, and of arrays split along explicit axes.

The number of devices is settled before JAX starts: the programs run in a process of their own.
"""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import softntk as sn

jax.config.update("jax_disable_most_optimizations", True)
x = jax.random.normal(jax.random.key(0), (8, 3)) / 2
net = sn.networks.two_layer("softmax", width=16, out_dim=2, antisymmetric=False, train_readout=True)
_, params = net.init_fn(jax.random.key(1), (-1, 3))
W = params.hidden[:, :2]

def tanh(w, x):
    return jnp.tanh(x @ w)

def inner(a, b):
    return a @ b.T

def same(name, ours, desired):
    ours, desired = np.asarray(ours), np.asarray(desired)
    assert ours.shape == desired.shape, (name, ours.shape, desired.shape)
    np.testing.assert_allclose(ours, desired, rtol=1e-5, atol=1e-5 * np.abs(desired).max(), err_msg=name)

calls = {
    "kernel": lambda x: sn.ntk.empirical(net, params, x).sum((1, 3)),
    "mean": lambda x: sn.ntk.empirical(net, params, x, outputs="mean").sum(1),
    "own kernel": lambda x: sn.ntk.empirical(tanh, W, x, vmap_axes=0).sum((1, 3)),
    "own kernel, rows together": lambda x: sn.ntk.empirical(tanh, W, x, outputs="mean").sum(1),
    "product": lambda x: sn.ntk.operator(net, params, x, block_size=3).mv(jnp.ones((len(x), 2))),
    "own product": lambda x: sn.ntk.operator(tanh, W, x, block_size=3).mv(jnp.ones((len(x), 2))),
    "own diagonal": lambda x: sn.ntk.operator(tanh, W, x).diagonal(),
    "tiles": lambda x: sn.ntk.kernel_operator(inner, x, block_size=3).mv(jnp.ones(len(x))),
    "tiles between": lambda x: sn.ntk.kernel_operator(inner, x, block_size=3).cross(x).mv(jnp.ones(len(x))),
    "limit": lambda x: sn.ntk.kernel_operator(net.kernel_fn, x, block_size=3).mv(jnp.ones(len(x))),
}
mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
for name, call in calls.items():
    # Each device has two points, and the kernel among them.
    desired = np.concatenate([np.asarray(call(x[i : i + 2])) for i in range(0, 8, 2)])
    ours = jax.shard_map(call, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))(x)
    same("shard_map: " + name, ours, desired)

mesh = jax.make_mesh((4,), ("rows",))
split = jax.device_put(x, NamedSharding(mesh, P("rows")))
calls |= {
    "as_matrix": lambda x: sn.ntk.operator(net, params, x).as_matrix(),
    "rows": lambda x: sn.ntk.operator(tanh, W, x).rows(jnp.array([5, 0])),
    "matrix between": lambda x: sn.ntk.operator(tanh, W, x).cross(x[:8]).as_matrix(),
}
with jax.set_mesh(mesh):
    results = {name: call(split) for name, call in calls.items()}
for name, call in calls.items():
    same("explicit axes: " + name, results[name], call(x))
same("explicit axes without a context", sn.ntk.operator(net, params, split).mv(jnp.ones((8, 2))), calls["product"](x))
print("done")
"""


def test_several_devices():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "done", ran.stderr[-3000:]
