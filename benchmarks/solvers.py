"""Minimisers of the regressions: ``minimise`` against SciPy, optax, jaxopt and optimistix, on a
registry of problems.

    uv run --with jaxopt --with optimistix benchmarks/solvers.py [--quick] [--only NAME] [--json PATH | --from-json PATH]

Every problem of ``_solver_problems.py`` is given to every solver; jaxopt and optimistix are left
out where they are not installed. All stop at the same gradient, ‖∇L‖ ≤ 1e-9 ‖∇L(x0)‖, which is
computed again at the point that they return, or are stopped at 20 times our time. They get what
there is to give: values and gradients in closed form, products with the Hessian that remember what
they need of x, a dense Jacobian, the penalty of a least-squares residual as d rows instead of n,
losses of order one. Programs are compiled and run for a step or two before the clock starts. Prints
a line a problem and a summary, and draws ``benchmarks/solvers.png``: which fraction of the problems
is solved within which multiple of the time of the fastest.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # of LAPACK; on small matrices its threads cost more than they give

import argparse
import importlib
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from _solver_problems import (
    ENDLESS,
    LEFT_OUT,
    QUICK,
    SPECS,
    Clock,
    Given,
    Over,
    Spec,
    Task,
    Watched,
    build,
)
from timing import alternate

import softntk as sn
from softntk._linalg import design_matrix as matrices

LIMIT = 20.0  # times our time
CHUNK = 32  # steps on the device, at most, before the host looks at the clock
SECOND_RUN = 1.0  # seconds below which a contender runs twice
OURS, ASSEMBLED = "softntk", "SciPy trust-exact, our Hessian"


class Contender(NamedTuple):
    """A solver: ``run(task, clock)`` returns a point or raises Over; ``refuse(task)`` says why it
    should not even try.
    """

    run: Callable[[Task, Clock], Any]
    refuse: Callable[[Task], str | None] = lambda task: None


# --- SciPy: functions on the host
# --------------------------------------------------------------------------------


def scipy_minimise(
    method: str, curvature: dict[str, str], **options: Any
) -> Callable[[Task, Clock], Any]:
    """``scipy.optimize.minimize``, its own tests of convergence switched off."""

    def run(task: Task, clock: Clock) -> Any:
        watched = Watched(task, clock)
        second = {key: getattr(watched, name) for key, name in curvature.items()}
        return scipy.optimize.minimize(
            watched.value_and_gradient,
            np.asarray(task.x0),
            jac=True,
            method=method,
            options=options,
            **second,
        ).x

    return run


def scipy_least_squares(task: Task, clock: Clock) -> Any:
    """``scipy.optimize.least_squares``."""
    watched = Watched(task, clock)
    options: dict[str, Any] = {
        "ftol": None,
        "xtol": 1e-15,
        "gtol": None,
        "max_nfev": ENDLESS,
        "x_scale": "jac",
    }
    jac: Any = watched.jacobian
    return scipy.optimize.least_squares(watched.residual, np.asarray(task.x0), jac, **options).x


# --- JAX: loops on the device, some steps at a time
# --------------------------------------------------------------


@eqx.filter_jit
def _advance(
    step: Any, look: Any, given: Given, carry: Any, tolerance: jax.Array, limit: jax.Array
) -> Any:
    """At most ``limit`` steps; returns the carry, the point, the norm of its gradient, and how many
    there were.
    """
    dynamic, static = eqx.partition(carry, eqx.is_array)

    def again(loop: tuple) -> jax.Array:
        _, norm, count = loop
        return (count < limit) & ~(norm <= tolerance) & ((count == 0) | jnp.isfinite(norm))

    def body(loop: tuple) -> tuple:
        carry = step(given, eqx.combine(loop[0], static))
        new = eqx.filter(carry, eqx.is_array)
        return new, jnp.linalg.norm(look(given, carry)[1]), loop[2] + 1

    dynamic, norm, count = jax.lax.while_loop(
        again, body, (dynamic, jnp.asarray(jnp.inf), jnp.zeros((), int))
    )
    carry = eqx.combine(dynamic, static)
    return carry, look(given, carry)[0], norm, count


def jitted(start: Any, step: Any, look: Any) -> Contender:
    """``start(given, x0)`` makes what ``step(given, carry)`` carries; ``look(given, carry)`` tells
    (x, ∇L).
    """
    begin = eqx.filter_jit(start)

    def run(task: Task, clock: Clock) -> Any:
        carry, limit = begin(task.given, task.x0), 1
        while True:
            began = time.perf_counter()
            asked = jnp.asarray(min(limit, clock.steps - clock.count))
            carry, x, norm, count = jax.block_until_ready(
                _advance(step, look, task.given, carry, jnp.asarray(task.tolerance), asked)
            )
            clock.tick(x, norm, int(count))
            if not np.isfinite(norm):
                return x
            took = time.perf_counter() - began
            limit = min(2 * limit, CHUNK) if took < clock.seconds / 50 else max(limit // 2, 1)

    return Contender(run)


def optax_lbfgs() -> Contender:
    """``optax.lbfgs``, zoom line search."""
    tx = optax.lbfgs()

    def step(given: Given, carry: tuple) -> tuple:
        x, state = carry
        loss = given.loss()
        value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state

    look = lambda given, carry: (carry[0], optax.tree_utils.tree_get(carry[1], "grad"))
    return jitted(lambda given, x0: (x0, tx.init(x0)), step, look)


def jaxopt_solver(solver: Any, gradient: str) -> Contender:
    """A solver of jaxopt by its ``update``."""

    def start(given: Given, x0: jax.Array) -> tuple:
        state = solver.init_state(x0, given)
        _, after = jax.eval_shape(solver.update, x0, state, given)
        return x0, jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state, after)

    step = lambda given, carry: tuple(solver.update(*carry, given))
    return jitted(start, step, lambda given, carry: (carry[0], getattr(carry[1], gradient)))


def optimistix_solver(solver: Any, least_squares: bool) -> Contender:
    """A solver of optimistix by its ``step``."""
    none = frozenset()

    def function(x: jax.Array, given: Given) -> tuple[jax.Array, None]:
        return (given.residual(x) if least_squares else given.loss()(x)), None

    def start(given: Given, x0: jax.Array) -> tuple:
        like, _ = jax.eval_shape(function, x0, given)
        return x0, solver.init(function, x0, given, {}, like, None, none)

    def step(given: Given, carry: tuple) -> tuple:
        return solver.step(function, carry[0], given, {}, carry[1], none)[:2]

    def look(given: Given, carry: tuple) -> tuple:
        return carry[0], given.value_and_gradient(carry[0])[1] if least_squares else carry[
            1
        ].f_info.grad

    return jitted(start, step, look)


def contenders() -> dict[str, Contender]:
    """All that are installed."""
    endless = {"maxiter": ENDLESS}
    trust = {"gtol": 0.0, **endless}
    products, theirs, ours = {"hessp": "product"}, {"hess": "jax_hessian"}, {"hess": "our_hessian"}
    found = {
        "SciPy L-BFGS-B": Contender(
            scipy_minimise("L-BFGS-B", {}, ftol=0.0, gtol=0.0, maxfun=ENDLESS, **endless)
        ),
        "SciPy Newton-CG": Contender(scipy_minimise("Newton-CG", products, xtol=0.0, **endless)),
        "SciPy trust-ncg": Contender(scipy_minimise("trust-ncg", products, **trust)),
        "SciPy trust-krylov": Contender(scipy_minimise("trust-krylov", products, **trust)),
        "SciPy trust-exact": Contender(
            scipy_minimise("trust-exact", theirs, **trust), Task.hessian_too_large
        ),
        ASSEMBLED: Contender(scipy_minimise("trust-exact", ours, **trust)),
        "SciPy least_squares": Contender(scipy_least_squares, Task.jacobian_too_large),
        "optax L-BFGS": optax_lbfgs(),
    }
    try:
        jaxopt = importlib.import_module("jaxopt")
        lbfgs = jaxopt.LBFGS(lambda x, given: given.value_and_gradient(x), value_and_grad=True)
        lm = jaxopt.LevenbergMarquardt(
            lambda x, given: given.residual(x), solver="cholesky", materialize_jac=True
        )
        found["jaxopt L-BFGS"] = jaxopt_solver(lbfgs, "grad")
        found["jaxopt LM"] = jaxopt_solver(lm, "gradient")
    except Exception as error:
        print(f"without jaxopt: {type(error).__name__}: {error}")
    try:
        optimistix, lineax = (importlib.import_module(name) for name in ("optimistix", "lineax"))
        normal = optimistix.LevenbergMarquardt(
            0.0, 0.0, linear_solver=lineax.Normal(lineax.Cholesky())
        )
        found["optimistix BFGS"] = optimistix_solver(optimistix.BFGS(0.0, 0.0), False)
        found["optimistix Dogleg"] = optimistix_solver(optimistix.Dogleg(0.0, 0.0), True)
        found["optimistix LM"] = optimistix_solver(optimistix.LevenbergMarquardt(0.0, 0.0), True)
        found["optimistix LM, Cholesky"] = optimistix_solver(normal, True)
    except Exception as error:
        print(f"without optimistix: {type(error).__name__}: {error}")
    return found


# --- measuring
# ---------------------------------------------------------------------------------------------------


def theirs(contender: Contender, task: Task, seconds: float) -> dict[str, Any]:
    """How a contender does on a problem, if it may take so many seconds."""
    reason = contender.refuse(task)
    if reason is not None:
        return {"refused": reason, "solved": False}
    found: dict[str, Any] = {}
    try:
        for steps in (2, ENDLESS, ENDLESS):
            clock = Clock(task, seconds if steps == ENDLESS else 60 + seconds, steps)
            try:
                x = contender.run(task, clock)
            except Over:
                x = clock.x
            took = time.perf_counter() - clock.began
            if steps == ENDLESS and took < found.get("seconds", np.inf):
                found = {"seconds": took, "count": clock.count, **task.judge(x)}
                found["solved"] = bool(found["solved"] and took <= seconds)
            if found and (took > SECOND_RUN or not found["solved"]):
                break
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200], "solved": False}
    return found


def ours(task: Task, repeats: int, tx: Any = None) -> tuple[dict[str, Any], sn.solution.Solution]:
    """How ``minimise`` does, and its solution."""
    run = lambda steps: sn.solvers.minimise(task.problem, task.x0, tx, max_steps=steps, throw=False)
    seconds, solution = [], run(2)
    for _ in range(repeats):
        began = time.perf_counter()
        solution = run(1000)
        seconds.append(time.perf_counter() - began)
    state = jax.tree.leaves(
        solution.state, is_leaf=lambda part: isinstance(part, sn.solvers.NewtonState)
    )[0]
    found = {
        "seconds": float(np.median(seconds)),
        "steps": int(solution.stats["steps"]),
        "result": sn.solution.Result(int(solution.result)).name,
        "evaluations": int(state.evaluations),
        "products": int(state.conjugate_gradient_steps),
        "distortion": float(np.max(solution.stats["distortion"], initial=0.0)),
        "sampled": state.sampler is not None,
        **task.judge(solution.value),
    }
    return found, solution


def variants(task: Task, sampled: bool) -> dict[str, Any]:
    """The transform that ``minimise`` did not choose, where there is a choice."""
    p = task.problem
    options: dict[str, Any] = {"gauss_newton": p.gauss_newton, "damping": "levenberg_marquardt"}
    if sampled:
        return {f"{OURS}, exact": sn.solvers.approx_newton(p.hessian, **options)}
    if p.shape[1] < 300:
        return {}
    return {
        f"{OURS}, sampled": sn.solvers.approx_newton(
            p.hessian, sketch_size=10 * p.shape[1], cg_steps=40, **options
        )
    }


def measure(spec: Spec, found: dict[str, Contender]) -> dict[str, Any]:
    """Everything about one problem."""
    task = Task(*build(spec))
    p, ones = task.problem, jnp.ones(spec.n)
    mine, solution = ours(task, 3)
    times = alternate(
        {
            "A x": lambda: matrices.times(p.A, task.x0),
            "v A": lambda: matrices.adjoint(p.A, ones),
            "gram": lambda: matrices.gram(p.A, ones),
        },
        5,
    )
    eigenvalues = np.linalg.eigvalsh(np.asarray(p.hessian(solution.value).as_matrix()))
    mine["smallest"], mine["largest"] = float(eigenvalues[0]), float(eigenvalues[-1])
    mine["solved"] = bool(mine["solved"] and mine["smallest"] >= -1e-10 * mine["largest"])
    record = {
        "n": spec.n,
        "d": spec.d,
        "bound": mine["steps"] * sum(times.values()),
        **times,
        "runs": {OURS: mine},
    }
    for name, tx in variants(task, mine["sampled"]).items():
        record["runs"][name] = ours(task, 1, tx)[0]
    for name, contender in found.items():
        record["runs"][name] = theirs(contender, task, LIMIT * mine["seconds"])
    return record


# --- telling
# -----------------------------------------------------------------------------------------------------


def others(record: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """The runs that are not ours."""
    return {
        name: run
        for name, run in record["runs"].items()
        if not name.startswith(OURS) and name not in without
    }


def advantage(record: dict[str, Any], without: tuple[str, ...] = ()) -> float:
    """Seconds of the best other over ours; the limit where none solved it, zero where we did not."""
    mine = record["runs"][OURS]
    best = min(
        (run["seconds"] for run in others(record, without).values() if run["solved"]),
        default=LIMIT * mine["seconds"],
    )
    return best / mine["seconds"] if mine["solved"] else 0.0


def line(name: str, record: dict[str, Any]) -> str:
    """One problem."""
    mine, rivals = record["runs"][OURS], others(record)
    text = f"{name}: {mine['seconds']:.3g} s, {mine['steps']} steps, {mine['seconds'] / record['bound']:.1f} of the bound"
    text += (
        ""
        if mine["solved"]
        else f", NOT SOLVED ({mine['result']}, gradient {mine['gradient']:.0e})"
    )
    best = min(
        (key for key in rivals if rivals[key]["solved"]),
        key=lambda key: rivals[key]["seconds"],
        default=None,
    )
    if best is not None:
        return (
            f"{text}; {best} {rivals[best]['seconds']:.3g} s, {advantage(record):.2g} times as long"
        )
    tried = {key: run for key, run in rivals.items() if np.isfinite(run.get("gradient", np.inf))}
    closest = min(tried, key=lambda key: tried[key]["gradient"], default="nobody")
    reached = (
        f" reached a gradient of {tried[closest]['gradient']:.0e} in {tried[closest]['seconds']:.3g} s"
        if tried
        else ""
    )
    return f"{text}; no other solved it, {closest}{reached}: at least {LIMIT:.0f} times as long"


def summary(records: dict[str, dict[str, Any]]) -> None:
    """Fractions solved, and how much longer the best other takes."""
    names = dict.fromkeys(name for record in records.values() for name in record["runs"])
    for name in names:
        runs = [record["runs"][name] for record in records.values() if name in record["runs"]]
        solved, refused = sum(run["solved"] for run in runs), sum("refused" in run for run in runs)
        print(
            f"{name}: {solved} of {len(runs)} solved"
            + (f", {refused} not tried" if refused else "")
        )
    for what, without in (("all", ()), ("those without our Hessian matrix", (ASSEMBLED,))):
        ratios = [advantage(record, without) for record in records.values()]
        print(
            f"best of {what} / ours: median {np.median(ratios):.3g}, 5th percentile {np.percentile(ratios, 5):.3g}"
        )
    bounds = [record["runs"][OURS]["seconds"] / record["bound"] for record in records.values()]
    print(
        f"ours / bound: median {np.median(bounds):.2g}, 95th percentile {np.percentile(bounds, 95):.2g}",
        flush=True,
    )


def draw(records: dict[str, dict[str, Any]], path: Path) -> None:
    """The performance profile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fastest = [
        min((run["seconds"] for run in record["runs"].values() if run["solved"]), default=np.inf)
        for record in records.values()
    ]
    factors = {}
    for name in dict.fromkeys(
        [OURS, *(name for record in records.values() for name in others(record))]
    ):
        runs = [record["runs"].get(name, {"solved": False}) for record in records.values()]
        found = [
            run["seconds"] / best for run, best in zip(runs, fastest, strict=True) if run["solved"]
        ]
        factors[name] = np.sort(found)
    colours, styles = (
        ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#7F7F7F"),
        ("-", "--", ":"),
    )
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for i, (name, found) in enumerate(
        sorted(factors.items(), key=lambda item: (item[0] != OURS, -len(item[1])))
    ):
        x, y = [0.9, *found, 1e3], np.append(np.arange(len(found) + 1), len(found)) / len(records)
        style: dict[str, Any] = {
            "color": colours[(i - 1) % 7],
            "linewidth": 2,
            "linestyle": styles[(i - 1) // 7],
        }
        style |= {"label": f"{name}: {100 * y[-1]:.0f} %"} | (
            {} if i else {"color": "black", "linewidth": 4, "linestyle": "-"}
        )
        axes.step(x, y, where="post", zorder=20 - i, **style)
    axes.set(
        xscale="log",
        xlim=(0.95, 100),
        ylim=(-0.02, 1.03),
        xlabel="time, in times of the fastest solver of the problem",
    )
    axes.set(
        xticks=(ticks := (1, 2, 5, 10, 20, 50, 100)),
        xticklabels=map(str, ticks),
        ylabel="fraction of the problems solved",
    )
    axes.set_title(f"{len(records)} regressions, to ‖∇L‖ ≤ 1e-9 ‖∇L(x0)‖")
    axes.grid(alpha=0.3)
    figure.legend(
        loc="outside right center",
        fontsize=10,
        frameon=False,
        title=f"solved within\n{LIMIT:.0f} times our time",
    )
    figure.savefig(path, dpi=200)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ten small problems")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="problems whose name contains this"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="where raw results go as they come; what is there already is not run again",
    )
    parser.add_argument("--from-json", type=Path, help="only summary and picture, of these results")
    options = parser.parse_args()
    source = options.from_json or options.json
    records = json.loads(source.read_text()) if source is not None and source.exists() else {}
    chosen = [] if options.from_json else [spec for spec in SPECS if options.only in spec.name]
    if options.quick:
        chosen = [spec for spec in chosen if spec.name in QUICK]
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, last = contenders() if chosen else {}, ()
        for spec in chosen:
            kind = (spec.activation, spec.form, spec.n, spec.d)
            if kind != last:
                jax.clear_caches()  # a new kind shares no programs with the last
            last = kind
            if spec.name not in records:
                records[spec.name] = measure(spec, found)
                if options.json:
                    partial = options.json.with_suffix(".partial")
                    partial.write_text(json.dumps(records, indent=1))
                    os.replace(partial, options.json)
            print(line(spec.name, records[spec.name]), flush=True)
    for what, why in LEFT_OUT.items():
        print(f"left out: {what}: {why}")
    if records:
        summary(records)
        draw(records, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
