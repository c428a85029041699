"""Natural gradient with cross-entropy beside Adam and K-FAC: steps and seconds to 1e-3 of the loss.

One softmax network of width 2048, all 1,797 digits of scikit-learn, the whole set in each step, one
start. Steps count; seconds are those of the steps alone, after the first one, which compiles. Adam
has the best of three learning rates. K-FAC is that of kfac-jax, with its adaptive damping, learning
rate and momentum; it runs in an environment of its own, with an older JAX.

    uv run benchmarks/natural_gradient.py
    uv run benchmarks/natural_gradient.py --kfac
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import softntk as sn

GOAL = 1e-3
ADAM_RATES = (1e-3, 1e-2, 1e-1)


class Run(NamedTuple):
    """An optimiser: the step at which the loss was below the goal (None: never), and its time."""

    name: str
    steps_to_goal: int | None
    seconds: float
    last_loss: float


def load(points: int | None) -> tuple[jax.Array, jax.Array]:
    """Return digits of norm about two, and labels."""
    X, labels = load_digits(return_X_y=True)
    return jnp.asarray(X[:points] / 64, jnp.float32), jnp.asarray(labels[:points])


def follow(
    name: str, params: Any, take_step: Callable[[Any, Any, int], tuple], state: Any, steps: int
) -> Run:
    """Run until the loss is below the goal; ``take_step`` gives params, state and the loss before."""
    first, seconds = None, 0.0
    value = np.inf
    for step in range(steps + 1):
        start = time.perf_counter()
        params, state, value = take_step(params, state, step)
        value = float(value)
        if step:
            seconds += time.perf_counter() - start
        first = value if first is None else first
        if value <= GOAL * first:
            return Run(name, step, seconds, value / first)
    return Run(name, None, seconds, value / (first or 1.0))


def by_optax(
    name: str, tx: optax.GradientTransformationExtraArgs, loss: Callable, params: Any, steps: int
) -> Run:
    """Follow an optax transform."""
    value_and_grad = jax.jit(jax.value_and_grad(loss))

    @jax.jit
    def update(grads: Any, state: Any, params: Any, value: Any) -> tuple:
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    def take_step(params: Any, state: Any, step: int) -> tuple:
        value, grads = value_and_grad(params)
        params, state = update(grads, state, params, value)
        return params, state, value

    return follow(name, params, take_step, tx.init(params), steps)


def by_kfac(
    hidden: jax.Array, readout: jax.Array, x: jax.Array, labels: jax.Array, steps: int
) -> Run:
    """Follow kfac-jax on the network z = xW, F = softmax(z)·a, in another process."""
    script = Path(__file__).with_name("natural_gradient_kfac.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.npz"
        np.savez(file, hidden=hidden, readout=readout, x=x, labels=labels, steps=steps, goal=GOAL)
        done = subprocess.run(
            ["uv", "run", "--no-project", str(script), str(file)],
            capture_output=True,
            text=True,
            check=True,
        )
    steps_to_goal, seconds, last_loss = json.loads(done.stdout.splitlines()[-1])
    return Run("K-FAC (kfac-jax)", steps_to_goal, seconds, last_loss)


def main() -> None:
    """Run all contenders, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kfac", action="store_true", help="kfac-jax too")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--points", type=int, default=None, help="digits, all 1,797 if not given")
    parser.add_argument("--steps", type=int, default=300, help="of Adam and K-FAC at most")
    options = parser.parse_args()
    x, labels = load(options.points)
    net = sn.networks.two_layer("softmax", width=options.width, out_dim=10)
    _, params = net.init_fn(jax.random.key(0), (-1, x.shape[1]))

    def loss(params: Any) -> jax.Array:
        outputs = net.apply_fn(params, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    natural = sn.solvers.natural_gradient(net, x, labels, loss="cross_entropy")
    runs = [by_optax("natural gradient", natural, loss, params, 30)]
    adams = [
        by_optax(
            f"Adam, {rate:g}",
            optax.with_extra_args_support(optax.adam(rate)),
            loss,
            params,
            options.steps,
        )
        for rate in ADAM_RATES
    ]
    runs.append(min(adams, key=lambda run: (run.steps_to_goal or np.inf, run.last_loss)))
    if options.kfac:
        # Normalized features are √m softmax(z).
        readout = options.width**0.5 * params.readout
        runs.append(by_kfac(params.hidden, readout, x, labels, options.steps))
    print("| optimiser | steps to 1e-3 of the loss | seconds | last loss |\n|---|---|---|---|")
    for run in runs:
        steps = "not reached" if run.steps_to_goal is None else run.steps_to_goal
        print(f"| {run.name} | {steps} | {run.seconds:.1f} | {run.last_loss:.1e} |")


if __name__ == "__main__":
    main()
