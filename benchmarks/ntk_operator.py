"""Products with Gram matrices that are never formed: time against the matrix products they consist
of, and peak memory.

Each case runs in a process of its own, so that its peak resident memory is its own. "products": the
four n·m·d matrix products of the network's operator in the same blocks of rows, nothing else; for
the infinite width, the n²d/2 product and the n²/2 exponentials.
"""

import argparse
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from timing import alternate

import softntk as sn

CASES = [
    *({"kind": "network", "n": n, "m": 1024} for n in (1000, 3000, 10_000, 30_000, 100_000)),
    *({"kind": "network", "n": 10_000, "m": m} for m in (256, 4096)),
    *({"kind": "infinite", "n": n, "m": 2} for n in (1000, 3000, 10_000, 30_000, 100_000)),
]
D = 64


def products(x: jax.Array, hidden: jax.Array, block_size: int) -> jax.Array:
    """The matrix products of the network's operator, block by block."""
    blocks = x[: len(x) // block_size * block_size].reshape(-1, block_size, D)

    def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        z = lax.optimization_barrier(block @ hidden)
        return total + lax.optimization_barrier(block.T @ z), None

    q, _ = lax.scan(add, jnp.zeros_like(hidden), blocks)

    def out(block: jax.Array) -> jax.Array:
        first, second = lax.optimization_barrier((block @ hidden, block @ q))
        return first[:, 0] + second[:, 0]

    return lax.map(out, blocks)


def tiles(x: jax.Array, block_size: int) -> jax.Array:
    """The n²d/2 product and as many exponentials."""
    blocks = x[: len(x) // block_size * block_size].reshape(-1, block_size, D)
    pairs = jnp.asarray([(i, j) for i in range(len(blocks)) for j in range(i, len(blocks))])
    body = lambda total, pair: (
        total + jnp.sum(jnp.exp(blocks[pair[0]] @ blocks[pair[1]].T), axis=1),
        None,
    )
    return lax.scan(body, jnp.zeros(block_size), pairs)[0]


def run(case: dict) -> dict:
    """Time one case; memory before the yardstick is allocated."""
    n, m = case["n"], case["m"]
    net = sn.networks.two_layer("softmax", width=m)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, D)) / D**0.5, jnp.float32)
    if case["kind"] == "network":
        _, params = net.init_fn(jax.random.key(0), (-1, D))
        op, v = sn.ntk.operator(net, params, x), jnp.ones((n, 1))
        yardstick = jax.jit(lambda: products(x, params.hidden, op.block_size))
    else:
        op, v = sn.ntk.kernel_operator(net.kernel_fn, x), jnp.ones(n)
        yardstick = jax.jit(lambda: tiles(x, op.block_size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(op.mv(v))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    repeats = 3 if n * (n if case["kind"] == "infinite" else 20 * m) > 1e9 else 7
    seconds = alternate({"ours": lambda: op.mv(v), "products": yardstick}, repeats)
    return {
        **case,
        **seconds,
        "peak GB": after / 1e6,
        "of which the product": (after - before) / 1e6,
    }


def main() -> None:
    """Print one row a case, and the slopes against n."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", help="one case as JSON, in this process")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(json.loads(options.case))))
        return
    rows = []
    for case in CASES:
        call = [sys.executable, __file__, "--case", json.dumps(case)]
        rows.append(
            json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
        )
        r = rows[-1]
        print(
            f"{r['kind']}, n {r['n']}, m {r['m']}: {r['ours']:.4f} s, {r['ours'] / r['products']:.2f} times its products; "
            f"peak {r['peak GB']:.2f} GB, {r['of which the product']:.2f} of them by the product",
            flush=True,
        )
    for kind in ("network", "infinite"):
        of = [r for r in rows if r["kind"] == kind and r["m"] in (2, 1024) and r["n"] >= 10_000]
        slope = np.polyfit(np.log([r["n"] for r in of]), np.log([r["ours"] for r in of]), 1)[0]
        print(f"{kind}: time grows as n^{slope:.2f} from 10,000 on")


if __name__ == "__main__":
    main()
