"""``minimise`` at size: a million rows in float32, the sampled method against the exact one, the
price of a nonzero.

    uv run benchmarks/solver_scale.py [million] [sampled] [sparse] [--quick]

million: n 1e6, d 100, float32, to 1e-5 of the first gradient. Prints reads of A (one for A x, for v
A and for a Gram product; an upper count: every evaluation of the loss counts as two, every step as
six more), the time over the bound of ``benchmarks/solvers.py`` (steps × (A x, v A and one Gram
product)), and the peak memory of the process while it minimises. sampled: the default (a sample
that preconditions conjugate gradients) and the exact method, n 2e5, d 1000, to 1e-9. sparse: 1 % of
the entries, n from 25,000 to 400,000: seconds a step, and the slope over the nonzeros in
logarithms.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # of LAPACK; on small matrices its threads cost more than they give

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from timing import alternate

import softntk as sn
from softntk._linalg import design_matrix as matrices
from softntk.regression import Problem

CASES = (
    ("exp", "normalized", 1e2, False, 1e-5),
    ("res_exp", "normalized", 1e3, False, 1e-5),
    ("res_exp", "normalized", 1e3, True, 1.0),
    ("cosh", "normalized", 1e3, False, 1e-5),
    ("exp", "rescaled", 1e3, False, 1e-4),
    ("exp", "plain", 1e3, False, 1e-2),
    ("erf", "plain", 1e3, True, 1e-2),
)
"""Activation, form, condition of A, heavy-tailed rows, weight."""


def gaussian(
    rng: np.random.Generator, n: int, d: int, condition: float, heavy: bool, dtype: str
) -> np.ndarray:
    """Rows of root mean square length 1, block by block so that nothing of the size of A lies
    beside it.
    """
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    root = np.geomspace(1, 1 / condition, d)[:, None] * rotation
    root /= np.linalg.norm(root)
    A = np.empty((n, d), dtype)
    for start in range(0, n, 10_000):
        rows = A[start : start + 10_000]
        rows[:] = rng.normal(size=rows.shape) @ root
        if heavy:
            rows *= np.minimum(np.abs(rng.standard_t(2.0, size=len(rows))), 1e3)[:, None]
    return A


def regression(
    A: Any, activation: str, form: str, weight: float, seed: int = 0
) -> tuple[Problem, jax.Array]:
    """Targets u at logits of standard deviation one, with noise; the start is zero, for cosh (flat
    at zero) it is not.
    """
    rng = np.random.default_rng(seed)
    n, d = A.shape
    logits = np.asarray(matrices.times(A, jnp.asarray(rng.normal(size=d), A.dtype)))
    logits = np.clip(logits / logits.std(), -8, 8)
    u, noise = np.asarray(sn.activations.get(activation).u(jnp.asarray(logits))), rng.normal(size=n)
    b = (u * (np.exp(0.5 * noise) if form == "normalized" else 1 + 0.3 * noise)).astype(A.dtype)
    if form != "plain":
        b /= abs(b.sum(dtype="float64"))
    x0 = jnp.asarray(rng.normal(size=d), A.dtype) if activation == "cosh" else jnp.zeros(d, A.dtype)
    if activation == "cosh":
        x0 /= jnp.std(matrices.times(A, x0))
    return sn.regression.problem(
        A, b, activation, form, weight / (3 * n**0.5) if form == "normalized" else weight
    ), x0


def timed(
    p: Problem, x0: jax.Array, rtol: float, tx: Any = None, repeats: int = 3
) -> tuple[float, sn.solution.Solution, Any]:
    """Median seconds, the solution, and the Newton state, compiled by two steps before."""
    run = lambda steps: sn.solvers.minimise(p, x0, tx, rtol=rtol, max_steps=steps, throw=False)
    seconds, solution = [], run(2)
    for _ in range(repeats):
        began = time.perf_counter()
        solution = run(500)
        seconds.append(time.perf_counter() - began)
    is_newton = lambda part: isinstance(part, sn.solvers.NewtonState)
    state = next(
        leaf for leaf in jax.tree.leaves(solution.state, is_leaf=is_newton) if is_newton(leaf)
    )
    return float(np.median(seconds)), solution, state


def reached(p: Problem, x0: jax.Array, solution: sn.solution.Solution) -> str:
    """The gradient there over the first."""
    ratio = float(jnp.linalg.norm(p.gradient(solution.value)) / jnp.linalg.norm(p.gradient(x0)))
    return f"{int(solution.stats['steps'])} steps to {ratio:.0e} ({sn.solution.Result(int(solution.result)).name})"


def watch_peak() -> None:
    """Forget the largest memory so far (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """GB that the process has held since."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def million(quick: bool) -> None:
    """Reads, bounds, memory."""
    n, d = (100_000, 100) if quick else (1_000_000, 100)
    for activation, form, condition, heavy, weight in CASES:
        jax.clear_caches()
        A = jnp.asarray(gaussian(np.random.default_rng(0), n, d, condition, heavy, "float32"))
        p, x0 = regression(A, activation, form, weight)
        del A
        watch_peak()
        seconds, solution, state = timed(p, x0, 1e-5)
        held = peak()
        steps, ones = int(solution.stats["steps"]), jnp.ones(n, p.dtype)
        reads = 6 * steps + 2 * int(state.evaluations) + 2 * int(state.conjugate_gradient_steps)
        parts = {
            "A x": lambda p=p, x0=x0: matrices.times(p.A, x0),
            "v A": lambda p=p, v=ones: matrices.adjoint(p.A, v),
            "gram": lambda p=p, v=ones: matrices.gram(p.A, v),
        }
        bound = steps * sum(alternate(parts, 5).values())
        name = f"{activation} {form} c{condition:.0e}{' heavy' * heavy}"
        print(
            f"{name}: {reached(p, x0, solution)}, {seconds:.2f} s, {seconds / bound:.2f} of the bound, {reads} reads; peak of "
            f"the process {held:.2f} GB, of which A has {p.A.nbytes / 1e9:.2f}",
            flush=True,
        )


def sampled(quick: bool) -> None:
    """Exact over sampled."""
    n, d = (20_000, 300) if quick else (200_000, 1000)
    with jax.enable_x64(True):
        A = jnp.asarray(gaussian(np.random.default_rng(0), n, d, 1e3, False, "float64"))
        for activation, form, weight in (
            ("exp", "normalized", 1.0),
            ("res_exp", "normalized", 1e-5),
            ("erf", "plain", 1e-2),
        ):
            p, x0 = regression(A, activation, form, weight)
            exact = sn.solvers.approx_newton(
                p.hessian, gauss_newton=p.gauss_newton, damping="levenberg_marquardt"
            )
            ours, found, state = timed(p, x0, 1e-9, repeats=1)
            slow, other, _ = timed(p, x0, 1e-9, exact, repeats=1)
            print(
                f"{activation} {form}: sampled {reached(p, x0, found)}, {int(state.conjugate_gradient_steps)} products, "
                f"{ours:.3g} s; exact {reached(p, x0, other)}, {slow:.3g} s: {slow / ours:.2g} times as long",
                flush=True,
            )


def random_sparse(n: int, d: int, density: float) -> sparse.BCOO:
    """Gaussian entries in random places."""
    rng = np.random.default_rng(0)
    places = np.unique(rng.integers(n * d, size=int(density * n * d)))
    rows, columns = np.divmod(places, d)
    data = rng.normal(size=len(places)) / (density * d) ** 0.5
    indices = jnp.asarray(np.stack([rows, columns], axis=1))
    return sparse.BCOO(
        (jnp.asarray(data), indices), shape=(n, d), indices_sorted=True, unique_indices=True
    )


def sparse_rows(quick: bool) -> None:
    """Seconds a step over the nonzeros."""
    sizes = (10_000, 20_000, 40_000) if quick else (25_000, 50_000, 100_000, 200_000, 400_000)
    with jax.enable_x64(True):
        for activation, form, weight in (("exp", "normalized", 1.0), ("erf", "plain", 1e-2)):
            nonzeros, times = [], []
            for n in sizes:
                jax.clear_caches()
                p, x0 = regression(random_sparse(n, 400, 0.01), activation, form, weight)
                seconds, solution, state = timed(p, x0, 1e-9)
                nonzeros.append(p.A.nse)
                times.append(seconds / int(solution.stats["steps"]))
                print(
                    f"{activation} {form}, n {n}, {p.A.nse} nonzeros: {reached(p, x0, solution)}, "
                    f"{int(state.conjugate_gradient_steps)} products, {1e3 * times[-1]:.1f} ms a step",
                    flush=True,
                )
            slope = np.polyfit(np.log(nonzeros), np.log(times), 1)[0]
            print(f"{activation} {form}: slope {slope:.2f}", flush=True)


CLAIMS = {"million": million, "sampled": sampled, "sparse": sparse_rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("claims", nargs="*", choices=[[], *CLAIMS], default=[])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    for claim in options.claims or CLAIMS:
        CLAIMS[claim](options.quick)


if __name__ == "__main__":
    main()
