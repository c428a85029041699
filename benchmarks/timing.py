"""What every benchmark here shares: warm up, block, alternate, median."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def alternate(contenders: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each contender; one round of all of them after the other, ``repeats``
    times, after one to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(s)) for name, s in seconds.items()}
