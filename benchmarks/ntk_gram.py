"""The empirical kernel of a softmax network: ntk.empirical against neural_tangents and the plain einsum of row factors.

Every contender runs in turn in one process, on the same JAX. "rate" is the share of the machine's measured matrix-product rate,
counting only the multiplications that the symmetric form needs: (k² + k + 2)/4 products of n²m for all outputs, ½ for k = 1,
3/2 for the mean.
"""

import argparse
from functools import partial

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
    """The yardstick: one n²m product."""
    return jnp.matmul(s, s.T, precision="highest")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--theirs", action="store_true", help="neural_tangents too: minutes, and gigabytes")
    options = parser.parse_args()
    for name, (n, d, m, k, outputs) in CASES.items():
        net = sn.networks.two_layer("softmax", width=m, out_dim=k)
        _, params = net.init_fn(jax.random.key(0), (-1, d))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)) / d**0.5, jnp.float32)
        s = jax.random.normal(jax.random.key(1), (n, m))
        contenders = {
            "n²m product": lambda s=s: square_product(s),
            "softntk": lambda net=net, params=params, x=x, o=outputs: sn.ntk.empirical(net, params, x, outputs=o),
            "einsum": lambda params=params, x=x, o=outputs: einsum(o, params, x),
        }
        if options.theirs:
            for implementation in sn.nt.NtkImplementation:
                kernel_fn = jax.jit(
                    sn.nt.empirical_ntk_fn(net.apply_fn, vmap_axes=0, implementation=implementation, **AXES[outputs])
                )
                contenders[implementation.name] = lambda f=kernel_fn, x=x, params=params: f(x, None, params)
        seconds = alternate(contenders, options.repeats)
        needed = 1.5 if outputs == "mean" else 0.5 if k == 1 else (k * k + k + 2) / 4
        rate = needed * seconds["n²m product"] / seconds["softntk"]
        ratios = ", ".join(
            f"{c} {t / seconds['softntk']:.1f}" for c, t in seconds.items() if c not in ("softntk", "n²m product")
        )
        print(f"{name}: {seconds['softntk']:.4f} s, rate {rate:.0%}; times slower: {ratios}", flush=True)


if __name__ == "__main__":
    main()
