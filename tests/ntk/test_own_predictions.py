"""Predictions for networks as users bring them, against training of the linearised network with
hand-made Jacobians.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, slow_except

import softntk as sn

own_networks = pytest.importorskip("own_networks")


@pytest.mark.parametrize(
    "name",
    slow_except(
        [
            "plain_dict",
            "dataclass_weights",
            "linen_mlp",
            "nnx_split",
            "equinox_mlp",
            "one_number_a_row",
            "nnx_module",
        ],
        "plain_dict",
        "linen_mlp",
    ),
)
def test_descent_and_regression_of_own_networks(name, dtype):
    net = own_networks.OWN_NETWORKS[name](dtype)
    x, tests = net.x[:3], net.x[3:]
    outputs = np.asarray(net.outputs(net.weights, net.x), np.float64)
    jacobian = np.concatenate([net.jacobian(x), net.jacobian(tests)])
    flat = jacobian.reshape(-1, jacobian.shape[-1])
    train = 3 * outputs.shape[1]
    y = np.cos(np.arange(3.0 * outputs.shape[1])).reshape(3, -1)
    gram = flat[:train] @ flat[:train].T
    rate = 0.7 / np.linalg.eigvalsh(gram)[-1]

    weights = np.zeros(flat.shape[1])
    moved = {}
    for step in range(6):
        moved[step] = outputs + (flat @ weights).reshape(outputs.shape)
        weights = weights - rate * flat[:train].T @ (moved[step][:3] - y).ravel()

    op = sn.ntk.operator(net.apply_fn, net.params, x, apply_kwargs=net.apply_kwargs)
    targets, cross = jnp.asarray(y, dtype), op.cross(tests)
    rtol = 2e-4 if dtype == "float32" else 1e-9
    predicted = sn.ntk.predict_gd(op, targets, rate, [0, 5])
    assert_close(predicted, np.stack([moved[0][:3], moved[5][:3]]), rtol=rtol)
    predicted = sn.ntk.predict_gd(op, targets, rate, [0, 5], cross=cross)
    assert_close(predicted, np.stack([moved[0][3:], moved[5][3:]]), rtol=rtol)

    f0, f0_test = (jnp.asarray(part, dtype) for part in (outputs[:3], outputs[3:]))
    ridge = 0.1 * np.trace(gram) / train
    solved = np.linalg.solve(gram + ridge * np.eye(train), (y - outputs[:3]).ravel())
    desired = outputs[3:] + (flat[train:] @ flat[:train].T @ solved).reshape(-1, outputs.shape[1])
    fitted = sn.ntk.kernel_regression(op, targets, ridge=ridge, cross=cross, f0=f0, f0_test=f0_test)
    assert_close(fitted, desired, rtol=rtol)
