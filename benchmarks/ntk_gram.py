"""The empirical kernel of a softmax network: ntk.empirical against neural_tangents and the plain
einsum of row factors.

The contenders here run in turn in one process. "rate" is the share of the machine's matrix-product
rate (that of a product of two 2048 × 2048 matrices), counting only the multiplications that the
symmetric form needs: (k² + k + 2)/4 products of n²m for all outputs, ½ for k = 1, 3/2 for the mean.
With --theirs, neural_tangents too: on the same JAX, and where it is at its best, on jax 0.4.24, in
a process of its own right after (ntk_gram_peer.py).
"""

import argparse
import json
import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternate

import softntk as sn

CASES = {
    "full, n 512, d 64, m 2048, k 4": (512, 64, 2048, 4, "full"),
    "full, n 256, d 32, m 1024, k 10": (256, 32, 1024, 10, "full"),
    "full, n 512, d 64, m 4096, k 1": (512, 64, 4096, 1, "full"),
    "mean, n 1024, d 64, m 2048, k 10": (1024, 64, 2048, 10, "mean"),
}
AXES = {"full": {"trace_axes": ()}, "mean": {"trace_axes": (-1,)}}


@jax.jit
def square_product(s: jax.Array) -> jax.Array:
    """The yardstick."""
    return jnp.matmul(s, s, precision="highest")


@partial(jax.jit, static_argnums=0)
def einsum(outputs: str, params: sn.networks.Parameters, x: jax.Array) -> jax.Array:
    """What one would write down: softmax, row factors, one contraction."""
    m = params.hidden.shape[1]
    p, a = jax.nn.softmax(x @ params.hidden), params.readout
    g = m**0.5 * p[:, None, :] * (a.T[None] - (p @ a)[:, :, None])
    if outputs == "mean":
        return (x @ x.T) * jnp.einsum("ilm,jlm->ij", g, g) / a.shape[1]
    return (x @ x.T)[:, :, None, None] * jnp.einsum("ilm,jqm->ijlq", g, g)


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--theirs", action="store_true", help="neural_tangents too: minutes, and gigabytes"
    )
    options = parser.parse_args()
    for name, (n, d, m, k, outputs) in CASES.items():
        net = sn.networks.two_layer("softmax", width=m, out_dim=k)
        _, params = net.init_fn(jax.random.key(0), (-1, d))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)) / d**0.5, jnp.float32)
        square = jax.random.normal(jax.random.key(1), (2048, 2048))
        contenders = {
            "product": lambda s=square: square_product(s),
            "softntk": partial(sn.ntk.empirical, net, params, x, outputs=outputs),  # pyright: ignore
            "einsum": lambda params=params, x=x, o=outputs: einsum(o, params, x),
        }
        seconds = alternate(contenders, options.repeats)
        ours = seconds["softntk"]
        needed = (1.5 if outputs == "mean" else 0.5 if k == 1 else (k * k + k + 2) / 4) * n * n * m
        rate = needed / ours / (2048**3 / seconds["product"])
        print(
            f"{name}: {ours:.4f} s, rate {rate:.0%}; times slower: einsum {seconds['einsum'] / ours:.1f}",
            flush=True,
        )
        if options.theirs:
            compare(name, ours, net, params, x, outputs)


def compare(
    name: str,
    ours: float,
    net: sn.networks.Network,
    params: sn.networks.Parameters,
    x: jax.Array,
    outputs: str,
) -> None:
    """Print how many times slower neural_tangents is, here and on the JAX of its last release."""
    for implementation in (
        sn.nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        sn.nt.NtkImplementation.JACOBIAN_CONTRACTION,
    ):
        kernel_fn = sn.nt.empirical_ntk_fn(
            net.apply_fn, vmap_axes=0, implementation=implementation, **AXES[outputs]
        )
        compiled = jax.jit(kernel_fn)
        theirs = alternate({"theirs": lambda f=compiled: f(x, None, params)}, 3)["theirs"]
        print(f"    {implementation.name} on this JAX: {theirs / ours:.1f}", flush=True)
    script = Path(__file__).parent / "ntk_gram_peer.py"
    run = ["uv", "run", "--script", str(script), json.dumps({name: CASES[name]})]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    for implementation, theirs in found["seconds"].items():
        print(f"    {implementation} on jax 0.4.24: {theirs / ours:.1f}", flush=True)
    for implementation, error in found["failed"].items():
        print(f"    {implementation} on jax 0.4.24: {error}", flush=True)


if __name__ == "__main__":
    main()
