"""kernel_fn of a deep softmax network: softntk.stax against neural_tangents' own activations, on
the same JAX.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternate

from softntk import stax

LAYERS = {
    "Softmax": stax.Softmax,
    "ResSoftmax": stax.ResSoftmax,
    "NormalizedActivation(relu)": lambda: stax.NormalizedActivation("relu"),
    "CRReLU": stax.CRReLU,
    "Threshold": stax.Threshold,
    "Erf (theirs)": stax.Erf,
    "Relu (theirs)": stax.Relu,
    "Gelu (theirs)": stax.Gelu,
}


def main() -> None:
    """Print one row a layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(options.points, 64)), jnp.float32)
    contenders: dict[str, Callable[[], object]] = {}
    for name, layer in LAYERS.items():
        layers = [
            part for _ in range(options.depth) for part in (stax.Dense(1, W_std=0.5), layer())
        ]
        kernel_fn = stax.serial(*layers, stax.Dense(1))[2]
        called = lambda f=kernel_fn: f(x, None, "ntk")
        compiled = jax.jit(lambda x, f=kernel_fn: f(x, None, "ntk"))
        contenders |= {f"{name}, called": called, f"{name}, compiled": lambda f=compiled: f(x)}
    seconds = alternate(contenders, options.repeats)
    print(
        f"n {options.points}, depth {options.depth}, NTK, float32; in brackets: times as long as Erf"
    )
    for name in LAYERS:
        ways = [f"{name}, {how}" for how in ("compiled", "called")]
        ratios = [seconds[way] / seconds["Erf (theirs)," + way.rpartition(",")[2]] for way in ways]
        print(
            "; ".join(
                f"{way} {seconds[way]:.3f} s ({ratio:.2f})"
                for way, ratio in zip(ways, ratios, strict=True)
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
