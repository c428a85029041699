# /// script
# requires-python = "==3.11.*"
# dependencies = ["jax==0.4.24", "jaxlib==0.4.24", "numpy<2", "scipy<1.13",
# "neural-tangents==0.6.5"]
#
# [tool.uv]
# override-dependencies = ["tensorflow ; python_version < '3'", "tf2jax ; python_version < '3'"]
# ///
"""neural_tangents 0.6.5 where it is at its best: on jax 0.4.24, in an environment of its own. Run
by ntk_gram.py --theirs.

Prints a line of JSON for each case: the median seconds of each implementation, and what failed.
"""

import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

sys.modules["neural_tangents.experimental"] = types.ModuleType(
    "neural_tangents.experimental"
)  # all that wants TensorFlow

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402

AXES = {"full": {"trace_axes": ()}, "mean": {"trace_axes": (-1,)}}


def main() -> None:
    """Time each implementation on the cases given as JSON in the first argument: {name: [n, d, m,
    k, outputs]}.
    """
    for name, (n, d, m, k, outputs) in json.loads(sys.argv[1]).items():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(n, d)) / d**0.5, jnp.float32)
        half = rng.normal(size=(d, m // 2))
        hidden = jnp.asarray(np.concatenate([half, half], axis=1), jnp.float32)
        signs = rng.choice([-1.0, 1.0], size=(m // 2, k))
        readout = jnp.asarray(np.concatenate([signs, -signs]), jnp.float32)
        apply_fn: Any = lambda w, x, a=readout, m=m: m**0.5 * jax.nn.softmax(x @ w) @ a
        contenders: dict[str, Callable[[], object]] = {}
        for implementation in (i for i in nt.NtkImplementation if i.name != "AUTO"):
            f = jax.jit(
                nt.empirical_ntk_fn(
                    apply_fn, vmap_axes=0, implementation=implementation, **AXES[outputs]
                )
            )
            contenders[implementation.name] = lambda f=f, x=x, w=hidden: f(x, None, w)
        times, failures = {}, {}
        for contender, call in contenders.items():
            try:
                jax.block_until_ready(call())
                laps = []
                for _ in range(1 if contender == "NTK_VECTOR_PRODUCTS" else 7):
                    start = time.perf_counter()
                    jax.block_until_ready(call())
                    laps.append(time.perf_counter() - start)
                times[contender] = statistics.median(laps)
            except Exception as error:
                failures[contender] = f"{type(error).__name__}: {str(error)[:80]}"
        print(json.dumps({"case": name, "seconds": times, "failed": failures}), flush=True)


if __name__ == "__main__":
    main()
