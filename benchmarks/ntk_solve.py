"""Solving with the infinite-width softmax kernel: steps and true residuals, with and without
preconditioner, and peers.

"true": ‖Y − (K + ridge)V‖/‖Y‖ recomputed in float64 with the dense matrix (n 5,000), or by products
in float64 (n 50,000, with --large, where nothing of size n² is ever held). "error": against a dense
float64 Cholesky solve. Peers: conjugate gradients of jax.scipy and of SciPy on our float32
products.
"""

import argparse
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import numpy as np
import scipy.linalg
import scipy.sparse.linalg

import softntk as sn

D = 64
NET = sn.networks.two_layer("softmax", width=2)


def data(kind: str, n: int) -> tuple[jax.Array, jax.Array]:
    """Points spread evenly, or in fifty narrow clusters; random targets, which ask for every
    eigenvector.
    """
    rng = np.random.default_rng(0)
    if kind == "even":
        x = rng.normal(size=(n, D)) / D**0.5
    else:
        x = (rng.normal(size=(50, D)) / D**0.5)[rng.integers(0, 50, n)] + 0.02 * rng.normal(
            size=(n, D)
        )
    return jnp.asarray(x, jnp.float32), jnp.asarray(rng.normal(size=n), jnp.float32)


def small(kind: str, n: int = 5000) -> None:
    """Steps, seconds, true residual and error of each way."""
    x, y = data(kind, n)
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    ridge = 1e-3 * float(jnp.mean(op.diagonal()))
    with jax.enable_x64(True):
        matrix = np.array(NET.kernel_fn(np.asarray(x, np.float64), None, "ntk"))
    matrix[np.diag_indices(n)] += ridge
    right = np.asarray(y, np.float64)
    desired = scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), right)

    def report(name: str, value: np.ndarray, steps: int, seconds: float) -> None:
        true = np.linalg.norm(right - matrix @ value) / np.linalg.norm(right)
        error = np.linalg.norm(value - desired) / np.linalg.norm(desired)
        print(
            f"{kind}, n {n}, {name}: {steps} steps, {seconds:.1f} s, true residual {true:.1e}, error {error:.1e}",
            flush=True,
        )

    for name, rank in (
        ("softntk", None),
        ("softntk, rank 1000", 1000),
        ("softntk without preconditioner", 0),
    ):
        start = time.perf_counter()
        sol = sn.ntk.solve(op, y, ridge=ridge, rtol=1e-6, refine=True, rank=rank, throw=False)
        report(name, np.asarray(sol.value), int(sol.stats["steps"]), time.perf_counter() - start)

    product = jax.jit(lambda v: op.mv(v) + ridge * v)
    calls: list[int] = []

    def counted(v: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.asarray(product(jnp.asarray(v.reshape(-1), jnp.float32)))

    start = time.perf_counter()
    linear: Any = scipy.sparse.linalg.LinearOperator
    linear = linear((n, n), matvec=counted, dtype=np.float32)
    value, _ = scipy.sparse.linalg.cg(linear, np.asarray(y), rtol=1e-6, maxiter=1000)
    report("SciPy cg", value, len(calls), time.perf_counter() - start)
    start = time.perf_counter()
    value, _ = jax.scipy.sparse.linalg.cg(product, y, tol=1e-6, maxiter=1000)
    report(
        "jax.scipy cg (of at most 1000 steps)",
        np.asarray(value, np.float64),
        1000,
        time.perf_counter() - start,
    )


def large(n: int = 50_000) -> None:
    """One solve that never holds n² numbers, with the residual recomputed in float64 afterwards."""
    x, y = data("even", n)
    op = sn.ntk.kernel_operator(NET.kernel_fn, x)
    ridge = 1e-3 * float(jnp.mean(op.diagonal()))
    start = time.perf_counter()
    sol = sn.ntk.solve(op, y, ridge=ridge, rtol=1e-6, refine=True, throw=False, progress=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with jax.enable_x64(True):
        left = (
            np.asarray(y, np.float64)
            - np.asarray(op.astype("float64").mv(sol.value))
            - ridge * np.asarray(sol.value)
        )
    true = np.linalg.norm(left) / np.linalg.norm(y)
    steps, restarts = int(sol.stats["steps"]), ", ".join(f"{r:.0e}" for r in sol.stats["history"])
    print(
        f"even, n {n}, softntk: {steps} steps, {seconds:.0f} s, true residual {true:.1e}, peak {peak:.1f} GB"
    )
    print(f"restarts at {restarts}")


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="n 50,000: minutes")
    if parser.parse_args().large:
        large()
        return
    for kind in ("even", "clustered"):
        small(kind)


if __name__ == "__main__":
    main()
