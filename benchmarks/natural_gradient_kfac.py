# /// script
# requires-python = ">=3.11"
# dependencies = ["jax==0.6.2", "jaxlib==0.6.2", "kfac-jax==0.0.8"]
# ///
"""K-FAC by kfac-jax, which does not run on the JAX that softntk needs, in an environment of its own.
Run by natural_gradient.py --kfac.

Reads the network and the data from the file of the first argument, and prints a line of JSON: steps
to the goal or null, seconds, and the last loss relative to the first.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import kfac_jax  # pyright: ignore[reportMissingImports]  # has an environment of its own
import numpy as np


def main() -> None:
    """Follow K-FAC on the network z = xW, F = softmax(z)·a, whose readout a is fixed."""
    data = np.load(sys.argv[1])
    readout = jnp.asarray(data["readout"])
    labels = jax.nn.one_hot(data["labels"], readout.shape[1])
    batch = (jnp.asarray(data["x"]), labels)

    def loss(params: jax.Array, batch: tuple) -> jax.Array:
        x, targets = batch
        outputs = jax.nn.softmax(x @ params, axis=-1) @ readout
        kfac_jax.register_softmax_cross_entropy_loss(outputs, jnp.argmax(targets, axis=-1))
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1))

    optimizer = kfac_jax.Optimizer(
        value_and_grad_func=jax.value_and_grad(loss),
        l2_reg=0.0,
        value_func_has_aux=False,
        value_func_has_rng=False,
        use_adaptive_learning_rate=True,
        use_adaptive_momentum=True,
        use_adaptive_damping=True,
        initial_damping=1.0,
        min_damping=1e-8,
        num_burnin_steps=0,
        multi_device=False,
    )
    key = jax.random.PRNGKey(0)
    params = jnp.asarray(data["hidden"])
    state = optimizer.init(params, key, batch)
    first, value, seconds = None, np.inf, 0.0
    for step in range(int(data["steps"]) + 1):
        start = time.perf_counter()
        params, state, stats = optimizer.step(params, state, key, batch=batch, global_step_int=step)
        value = float(stats["loss"])
        seconds += time.perf_counter() - start if step else 0.0
        first = value if first is None else first
        if value <= float(data["goal"]) * first:
            print(json.dumps([step, seconds, value / first]))
            return
    print(json.dumps([None, seconds, value / (first or 1.0)]))


if __name__ == "__main__":
    main()
