"""What the first call of each public entry costs: CPU seconds of a fresh process, and programs.

Every entry runs in a process of its own, twice: the second time with other data, keys and seeds of
the same shapes, so that it should compile nothing. CPU seconds count the compiler's threads and
hardly depend on what else the machine does. The import of softntk is not counted.

    uv run benchmarks/first_call.py                          # all entries
    uv run benchmarks/first_call.py minimise solve           # some
    uv run benchmarks/first_call.py --against ../checkout    # beside another state of the code
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

import softntk as sn

COMPILATION = "/jax/core/compile/backend_compile_duration"


def random_rows(seed: int, n: int, d: int) -> jax.Array:
    """Return n random points of norm about one."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)) / d**0.5, jnp.float32)


def random_network(seed: int) -> tuple[sn.networks.Network, sn.networks.Parameters]:
    """Return a softmax network of width 256 on ten features, and parameters."""
    network = sn.networks.two_layer("softmax", width=256, out_dim=1)
    return network, network.init_fn(jax.random.key(seed), (-1, 10))[1]


def minimise(seed: int) -> object:
    """Minimise a softmax regression, 2,000 × 10."""
    rng = np.random.default_rng(seed)
    A = jnp.asarray(rng.normal(size=(2000, 10)), jnp.float32)
    b = jnp.asarray(rng.dirichlet(np.ones(2000)), jnp.float32)
    problem = sn.regression.softmax(A, b, weights=1e-2)
    return sn.solvers.minimise(problem, jnp.zeros(10)).value


def solve(seed: int) -> object:
    """Solve with the infinite-width kernel of 200 points."""
    network, _ = random_network(seed)
    x = random_rows(seed, 200, 10)
    operator = sn.ntk.kernel_operator(network.kernel_fn, x)
    return sn.ntk.solve(operator, jnp.sin(x[:, :1]), ridge=1e-2).value


def predict_gd(seed: int) -> object:
    """Predict gradient descent on 100 points."""
    network, params = random_network(seed)
    x = random_rows(seed, 100, 10)
    gram = sn.ntk.empirical(network, params, x)
    rate = 1 / sn.ntk.extreme_eigenvalues(gram)[1]
    return sn.ntk.predict_gd(gram, jnp.sin(x[:, :1]), rate, jnp.array([0, 10, 100]))


def empirical(seed: int) -> object:
    """Return the empirical kernel of 100 points."""
    network, params = random_network(seed)
    return sn.ntk.empirical(network, params, random_rows(seed, 100, 10))


def natural_gradient(seed: int) -> object:
    """Fit a network to 100 points by natural gradient."""
    network, params = random_network(seed)
    x = random_rows(seed, 100, 10)
    y = jnp.sin(x[:, :1])
    transform = sn.solvers.natural_gradient(network, x, y)

    def loss(weights: sn.networks.Parameters) -> jax.Array:
        return 0.5 * jnp.sum((network.apply_fn(weights, x) - y) ** 2)

    return sn.solvers.minimise(loss, params, transform, max_steps=10).value


def train(seed: int) -> object:
    """Train a network on 100 points by gradient descent."""
    network, params = random_network(seed)
    x = random_rows(seed, 100, 10)
    y = jnp.sin(x[:, :1])

    def loss(weights: sn.networks.Parameters) -> jax.Array:
        return 0.5 * jnp.sum((network.apply_fn(weights, x) - y) ** 2)

    return sn.solvers.train(loss, params, sn.solvers.gradient_descent(0.01), 50).value


def factorise(seed: int) -> object:
    """Solve with the Hessian of a softmax regression, 2,000 × 10."""
    rng = np.random.default_rng(seed)
    A = jnp.asarray(rng.normal(size=(2000, 10)), jnp.float32)
    problem = sn.regression.softmax(A, jnp.full(2000, 1 / 2000), weights=1e-1)
    return problem.hessian(jnp.zeros(10)).factorise().solve(jnp.ones(10))


def certify_minimum(seed: int) -> object:
    """Prove that a softmax regression, 200 × 5, has one minimum near a point."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        problem = sn.regression.softmax(
            jnp.asarray(rng.normal(size=(200, 5))), jnp.full(200, 1 / 200), weights=1.0
        )
        return sn.theory.certify_minimum(problem, jnp.zeros(5)).radius


def fit_denoiser(seed: int) -> object:
    """Fit a denoiser of width 64 to 512 points."""
    sde = sn.diffusion.vp_sde()
    points = random_rows(seed, 512, 2)
    return sn.diffusion.fit_denoiser(jax.random.key(seed), sde, points, width=64, steps=50)


def sample(seed: int) -> object:
    """Sample a Gaussian by the reverse equation."""
    sde = sn.diffusion.vp_sde()
    mixture = sn.diffusion.GaussianMixture(
        jnp.ones(1), jnp.full((1, 2), float(seed)), jnp.eye(2)[None]
    )
    score = partial(mixture.score, sde)
    return sn.diffusion.sample(jax.random.key(seed), sde, score, (100, 2), steps=20)


ENTRIES: dict[str, Callable[[int], object]] = {
    function.__name__: function
    for function in (
        minimise,
        solve,
        predict_gd,
        empirical,
        natural_gradient,
        train,
        factorise,
        certify_minimum,
        fit_denoiser,
        sample,
    )
}


def measure(name: str) -> dict[str, float]:
    """Run one entry twice in this process; return CPU seconds and numbers of programs."""
    compilations: list[str] = []

    def count(event: str, duration_secs: float, **details: str | int) -> None:
        if event == COMPILATION:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.block_until_ready(jnp.ones(3) + 1)
    result: dict[str, float] = {}
    for call, seed in (("first", 0), ("second", 1)):
        compilations.clear()
        start = time.process_time()
        jax.block_until_ready(ENTRIES[name](seed))
        result[call] = time.process_time() - start
        result[f"{call} programs"] = len(compilations)
    return result


def measure_in_process(name: str, root: Path) -> dict[str, float]:
    """Run one entry in a fresh process with the softntk that lies in a folder."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, "--inside", name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        return {"first": float("nan"), "second": float("nan")}
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entries", nargs="*", help=f"of {', '.join(ENTRIES)}; all by default")
    parser.add_argument("--against", type=Path, help="another checkout of softntk")
    parser.add_argument("--repeats", type=int, default=1, help="processes; the least time counts")
    parser.add_argument("--inside", metavar="ENTRY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside)))
        return
    roots = {"": Path(__file__).parents[1]}
    if options.against:
        roots["against: "] = options.against.resolve()
    for name in options.entries or ENTRIES:
        for label, root in roots.items():
            runs = [measure_in_process(name, root) for _ in range(options.repeats)]
            least = min(runs, key=lambda run: run["first"])
            programs = [int(least.get(f"{call} programs", 0)) for call in ("first", "second")]
            print(
                f"{label + name:28} first {least['first']:6.2f} s ({programs[0]:3d} programs), "
                f"second {least['second']:6.3f} s ({programs[1]} programs)",
                flush=True,
            )


if __name__ == "__main__":
    main()
