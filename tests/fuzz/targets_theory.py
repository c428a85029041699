"""Targets: theory. Closed forms in long double; certificates by laws."""

import math
from typing import Any

import jax.numpy as jnp
import mpmath
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, first_message, long
from fuzz.targets_activations import factors, network
from fuzz.targets_ntk import eigenvalues_of

SIZES = {"n": "count", "smallest": "positive", "k": "count", "sigma": "positive", "failure": "fraction", "constants": "object"}


class Sizes:
    """n, λ, k, σ, δ, and the logarithm of everything by mpmath."""

    def __init__(self, draw: Draw) -> None:
        self.family = draw.pick("softmax", "exp", "relu")
        self.n, self.k = draw.pick(1, 5, 1000, 10**6), draw.pick(1, 10)
        self.smallest = draw.positive() * (1.0 if draw.mild else draw.pick(1.0, 1e-30, 1e30))
        self.sigma = draw.positive(0.1, 2.0)
        self.failure = draw.pick(0.1, 1e-10, 0.999)

    @property
    def arguments(self) -> dict[str, Any]:
        """What all functions take."""
        return {"n": self.n, "smallest": self.smallest, "k": self.k, "sigma": self.sigma, "failure": self.failure}

    @property
    def growth(self) -> Any:
        """B."""
        return max(mpmath.mpf(self.sigma) * mpmath.sqrt(self.logs), mpmath.mpf(1))

    @property
    def logs(self) -> Any:
        """The logarithm of nk/δ."""
        return mpmath.log(mpmath.mpf(self.n) * self.k / mpmath.mpf(self.failure))

    @property
    def square(self) -> Any:
        """n²k²/λ²."""
        return (mpmath.mpf(self.n) * self.k / mpmath.mpf(self.smallest)) ** 2

    def power(self, exponent: float) -> Any:
        """e^{exponent · B}; one for relu."""
        return mpmath.mpf(1) if self.family == "relu" else mpmath.exp(exponent * self.growth)


def same_number(result: Any, want: Any, rtol: float = 1e-11) -> str | None:
    """Compare floats with a number of mpmath; beyond the largest is infinity, below the smallest zero."""
    got = float(result)
    largest, smallest = mpmath.mpf(1.7976931348623157e308), mpmath.mpf(1e-307)
    if abs(want) > largest * (1 - 1e-9):
        good = math.isinf(got) or abs(got) > 1e307
    else:
        good = abs(got - want) <= rtol * abs(want) + smallest
    return None if good else f"{'NaN, ' if math.isnan(got) else ''}{got} instead of {mpmath.nstr(want, 17)}"


@target("theory.required_width", family="choice", **SIZES)
def required_width(draw: Draw) -> Call:
    s = Sizes(draw)
    want = s.square * s.power(18) * s.logs ** (1 if s.family == "relu" else 2)
    return Call({"family": s.family, **s.arguments}, lambda result: same_number(result, want))


@target("theory.required_steps", family="choice", accuracy="positive", **SIZES)
def required_steps(draw: Draw) -> Call:
    s = Sizes(draw)
    accuracy = draw.pick(1e-3, 1e-300, 1.0)
    want = 20 * s.square * s.power(16) * max(mpmath.log(mpmath.mpf(s.n) * s.k / accuracy), 0)
    return Call({"family": s.family, **s.arguments, "accuracy": accuracy}, lambda result: same_number(result, want))


@target("theory.bounds.growth", n="count", k="count", sigma="positive", failure="fraction", constants="object")
def growth(draw: Draw) -> Call:
    s = Sizes(draw)
    arguments = {"n": s.n, "k": s.k, "sigma": s.sigma, "failure": s.failure}
    return Call(arguments, lambda result: same_number(result, s.growth))


@target("theory.bounds.learning_rate", family="choice", parameterization="choice", width="count?", **SIZES)
def learning_rate(draw: Draw) -> Call:
    s = Sizes(draw)
    parameterization = draw.pick("ntk", "paper")
    want = mpmath.mpf("0.1") * mpmath.mpf(s.smallest) / (mpmath.mpf(s.n) * s.k) ** 2 / s.power(16)
    want = want / 64 if parameterization == "paper" else want
    arguments = {"family": s.family, **s.arguments, "parameterization": parameterization, "width": 64}
    return Call(arguments, lambda result: same_number(result, want))


@target("theory.bounds.descent_factor", smallest="positive", rate="positive", parameterization="choice", width="count?")
def descent_factor(draw: Draw) -> Call:
    smallest = draw.positive() * draw.scale(100)
    share = draw.pick(1.0, 1e-3, 1.9)
    rate = share / smallest
    arguments = {"smallest": smallest, "rate": rate, "parameterization": "ntk", "width": None}
    return Call(arguments, lambda result: compare(result, 1 - share / 2, 1e-12, draw, size=1.0))


@target(
    "theory.bounds.perturbation_bound",
    R="positive",
    family="choice",
    parameterization="choice",
    width="count?",
    **({name: kind for name, kind in SIZES.items() if name != "smallest"}),
)
def perturbation_bound(draw: Draw) -> Call:
    s = Sizes(draw)
    R = draw.positive() * (1.0 if draw.mild else draw.pick(1.0, 1e-300, 1e300))
    move = mpmath.mpf(R) * s.n * s.k
    want = 2 * move / mpmath.mpf(s.sigma) if s.family == "relu" else move * s.power(10)
    arguments = {"R": R, "n": s.n, "family": s.family, "k": s.k, "sigma": s.sigma, "failure": s.failure}
    return Call(arguments, lambda result: same_number(result, want))


@target("theory.bounds.smallest_eigenvalue", R="positive", family="choice", parameterization="choice", width="count?", **SIZES)
def smallest_eigenvalue(draw: Draw) -> Call:
    s = Sizes(draw)
    R = draw.positive() * (1e-6 if draw.mild else draw.pick(1.0, 1e-12, 1e-300))
    move = mpmath.mpf(R) * s.n * s.k
    lost = 2 * move / mpmath.mpf(s.sigma) if s.family == "relu" else move * s.power(10)
    want = mpmath.mpf("0.75") * mpmath.mpf(s.smallest) - lost
    cancels = abs(want) < 1e-6 * lost
    arguments = {"R": R, "family": s.family, **s.arguments}
    return Call(arguments, lambda result: never_nan(result) if cancels else same_number(result, want, 1e-5))


@target("theory.bounds.radius", family="choice", residual="positive", width="count", parameterization="choice", **SIZES)
def radius(draw: Draw) -> Call:
    s = Sizes(draw)
    residual, width = draw.positive() * draw.scale(100), draw.pick(16, 10**9)
    want = (
        4 / mpmath.sqrt(width) / mpmath.mpf(s.smallest) * s.power(3) * mpmath.sqrt(mpmath.mpf(s.n) * s.k) * mpmath.mpf(residual)
    )
    arguments = {"family": s.family, **s.arguments, "residual": residual, "width": width}
    return Call(arguments, lambda result: same_number(result, want))


@target("theory.bounds.table", accuracy="positive", **SIZES)
def table(draw: Draw) -> Call:
    s = Sizes(draw)

    def check(rows: Any) -> str | None:
        for row in rows:
            s.family = row.family
            message = same_number(row.width, s.square * s.power(18) * s.logs ** (1 if s.family == "relu" else 2))
            if message or len(str(row)) < 10:
                return message
        return None

    return Call(s.arguments | {"accuracy": 1e-3}, check)


# --- generalisation -------------------------------------------------------------------------------------------------


def _gram_and_targets(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    matrix = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-20, 1e20))
    y = draw.rounded(draw.normal(draw.n, draw.k) * (0.0 if draw.chance(0.1) else draw.scale(18)))
    return matrix, y


NO_KERNEL = r"(gram|eigenvalues)\b.*(positive|zero)|positive.*eigenvalue"


@target("theory.rkhs_norm", gram="gram", y="array")
def rkhs_norm(draw: Draw) -> Call:
    matrix, y = _gram_and_targets(draw)

    def check(result: Any) -> str | None:
        if int(result.result) != sn.solution.Result.SUCCESSFUL:
            return None if math.isinf(result.total) else f"refused with {result.total}"
        scale = np.abs(matrix).max()
        squares = np.einsum("ik,ij,jk->k", y, np.linalg.inv(matrix / scale), y / (np.abs(y).max() or 1.0)) / scale
        want = np.sqrt(np.abs(squares)) * np.sqrt(np.abs(y).max() or 1.0)
        error = np.abs(result.outputs - want)
        room = np.asarray(result.outputs_error) + 1e-6 * want + 1e-300
        return None if (error <= room).all() else f"{result.outputs} ± {result.outputs_error} instead of {want}"

    return Call({"gram": draw.cast(matrix), "y": draw.cast(y)}, check)


@target("theory.effective_rank", gram="gram?", eigenvalues="nonnegatives?")
def effective_rank(draw: Draw) -> Call:
    values = np.abs(draw.normal(draw.n)) * draw.scale(15)
    values = draw.rounded(values)
    matrix = np.diag(values)
    arguments = {"gram": draw.cast(matrix), "eigenvalues": None}

    def check(result: Any) -> str | None:
        return compare(result.rank, values.sum() / values.max(), 1e-5 if draw.dtype == "float32" else 1e-12, draw)

    return Call(arguments, check, refusals=NO_KERNEL)


def _ranks(draw: Draw) -> tuple[Any, np.ndarray]:
    values = np.sort(np.abs(draw.normal(6)) * draw.scale(15))[::-1]
    return sn.theory.effective_rank(None, eigenvalues=values), values


@target("theory.generalisation.EffectiveRanks.critical", samples="count", b="positive")
def critical(draw: Draw) -> Call:
    ranks, values = _ranks(draw)
    tails = [values[k:].sum() / values[k] for k in range(6)]
    want = next((k for k, tail in enumerate(tails) if tail >= 2), None)
    arguments = {"self": ranks, "samples": 2, "b": 1.0}
    return Call(arguments, lambda result: None if result == want else f"{result} instead of {want}")


@target("theory.generalisation.EffectiveRanks.variance", samples="count", b="positive")
def variance(draw: Draw) -> Call:
    ranks, values = _ranks(draw)
    tails = [values[k:].sum() / values[k] for k in range(6)]
    k = next((k for k, tail in enumerate(tails) if tail >= 2), None)
    want = math.inf if k is None else k / 2 + 2 / (values[k:].sum() ** 2 / (values[k:] ** 2).sum())
    arguments = {"self": ranks, "samples": 2, "b": 1.0}
    return Call(arguments, lambda result: None if result == want else compare(result, want, 1e-9, draw))


@target("theory.noise_level", laws_only=True, gram="gram", y="array")
def noise_level(draw: Draw) -> Call:
    matrix, y = _gram_and_targets(draw)

    def check(result: Any) -> str | None:
        size = np.sqrt((y**2).sum(0)) if np.abs(y).max() < 1e15 else np.inf
        got = np.asarray(result)
        good = np.isfinite(got).all() and (got >= 0).all() and (got <= 10 * size + draw.tiny).all()
        return None if good else f"{'NaN ' if np.isnan(got).any() else ''}{got} for targets of norm {size}"

    return Call({"gram": draw.cast(matrix), "y": draw.cast(y)}, check, refusals=NO_KERNEL)


def _stopping(draw: Draw) -> tuple[np.ndarray, float, float]:
    matrix = draw.gram(scale=1.0 if draw.mild else draw.pick(1.0, 1e-15, 1e15))
    return matrix, draw.positive() * draw.scale(10), draw.positive() * draw.scale(10)


@target(
    "theory.early_stopping_time",
    gram="gram?",
    noise="positive",
    norm="positive",
    learning_rate="positive?",
    eigenvalues="nonnegatives?",
    constant="positive",
)
def early_stopping_time(draw: Draw) -> Call:
    matrix, noise, norm = _stopping(draw)
    arguments = {"gram": draw.cast(matrix), "noise": noise, "norm": norm}

    def check(result: Any) -> str | None:
        values = np.maximum(eigenvalues_of(matrix), 0)
        level = (norm / noise / (2 * math.e)) ** 2
        time = long(result.time)
        reached = (time * np.minimum(time * values, 1)).sum()
        return compare(float(reached / level), 1.0, 1e-3 if draw.dtype == "float32" else 1e-6, draw, what="t Σ min(tλ, 1)/c²")

    return Call(arguments, check, refusals=NO_KERNEL)


@target("theory.least_risk_time", laws_only=True, gram="gram?", noise="positive", norm="positive", eigenvalues="nonnegatives?")
def least_risk_time(draw: Draw) -> Call:
    matrix, noise, norm = _stopping(draw)
    arguments = {"gram": draw.cast(matrix), "noise": noise, "norm": norm}

    def check(result: Any) -> str | None:
        values = np.maximum(eigenvalues_of(matrix), 0)

        def risk(t: float) -> float:
            return norm**2 * (values * np.exp(-2 * values * t)).max() + noise**2 * ((1 - np.exp(-values * t)) ** 2).sum()

        here = risk(result.time)
        around = min(risk(result.time * factor) for factor in (0.1, 0.5, 2.0, 10.0))
        return None if here <= around * (1 + 1e-3) else f"risk {here} at t = {result.time}, {around} nearby"

    return Call(arguments, check, refusals=NO_KERNEL)


@target(
    "theory.risk_bound",
    laws_only=True,
    gram="gram",
    y="array",
    failure="fraction",
    ridge="nonnegative",
    time="time",
    unit="positive",
    ratio="above one",
)
def risk_bound(draw: Draw) -> Call:
    matrix, y = _gram_and_targets(draw)
    arguments = {"gram": draw.cast(matrix), "y": draw.cast(y), "failure": draw.pick(0.1, 1e-6)}

    def check(result: Any) -> str | None:
        return never_nan([result.bound, result.norm, result.training, result.coefficients])

    return Call(arguments, check, refusals=NO_KERNEL)


# --- feature learning -----------------------------------------------------------------------------------------------


@target("theory.feature_learning.hermite", degree="count0", z="elements")
def hermite(draw: Draw) -> Call:
    degree = draw.pick(0, 1, 2, 5)
    z = draw.rounded(draw.normal(draw.m) * draw.pick(1.0, 1e-20, 100.0))
    polynomial = np.polynomial.hermite_e.HermiteE.basis(degree)
    want = polynomial(long(z)) / math.sqrt(math.factorial(degree))
    size = (1 + np.abs(z)) ** degree
    return Call({"degree": degree, "z": draw.cast(z)}, lambda result: compare(result, want, 64 * draw.eps, draw, size=size))


@target("theory.feature_learning.target", kind="choice", direction="array", degree="count")
def feature_target(draw: Draw) -> Call:
    kind = draw.pick("hermite", "polynomial", "composition", "staircase")
    direction = draw.rounded(draw.normal(draw.d) * draw.scale())

    def check(function: Any) -> str | None:
        x = draw.normal(5, draw.d)
        z = x @ (direction / np.abs(direction).max()) / np.linalg.norm(direction / np.abs(direction).max())
        got = function(jnp.asarray(x, draw.dtype))
        if kind != "hermite":
            return finite(got)
        return compare(got[:, 0], (z**2 - 1) / math.sqrt(2), 1e3 * draw.eps, draw, size=10.0)

    return Call({"kind": kind, "direction": draw.cast(direction), "degree": 2}, check)


@target("theory.feature_learning.corrupt", kind="choice", y="array", size="nonnegative", key="key?", gram="gram?")
def corrupt(draw: Draw) -> Call:
    kind = draw.pick("gaussian", "flips", "adversarial")
    y = draw.rounded(draw.normal(4, 1) * draw.scale())
    size = 0.5
    arguments = {"kind": kind, "y": draw.cast(y), "size": size, "key": draw.key(), "gram": jnp.eye(4, dtype=draw.dtype)}

    def check(result: Any) -> str | None:
        got = np.asarray(result, np.float64)
        if kind == "flips":
            return compare(np.abs(got), np.abs(y), 0, draw) or (None if (got * y < 0).sum() in (2, 0) else "not two flips")
        if kind == "adversarial":
            room = 1e3 * draw.eps * np.abs(y).max() + 1e-4
            error = abs(np.linalg.norm(got - y) - 1.0)
            return None if error <= room or np.abs(y).max() * draw.eps > 1e-3 else f"noise of norm {np.linalg.norm(got - y)}"
        return finite(got)

    return Call(arguments, check)


@target("theory.feature_learning.features", net="net", params="params", x="rows")
def features(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x = draw.points(scale=1.0)
    want = factors(params, x, "softmax")[0]

    def check(result: Any) -> str | None:
        return compare(result, want, 1e3 * draw.eps, draw, size=np.abs(want).max() * 3)

    return Call({"net": net, "params": params, "x": draw.cast(x)}, check)


@target("theory.feature_learning.one_step", net="net", params="params", x="rows", y="array", learning_rate="positive")
def one_step(draw: Draw) -> Call:
    net, params, _ = network(draw, "softmax")
    x, y = draw.points(scale=1.0), draw.normal(draw.n, draw.k)
    rate = draw.positive() * draw.scale(5)
    arguments = {"net": net, "params": params, "x": draw.cast(x), "y": draw.cast(y), "learning_rate": rate}

    def check(result: Any) -> str | None:
        _, outputs, g = factors(params, x, "softmax")
        gradient = np.einsum("id,ik,ikm->dm", long(x), outputs - y, g)
        want = long(params.hidden) - rate * gradient
        size = np.abs(long(params.hidden)).max() + rate * np.abs(g).max() * np.abs(x).max() * 30
        return compare(result.hidden, want, 64 * draw.eps, draw, size=size)

    return Call(arguments, check)


@target("theory.feature_learning.ridge_features", train="rows", y="array", test="rows", ridge="positive?")
def ridge_features(draw: Draw) -> Call:
    train, test, y = draw.normal(5, 3), draw.normal(2, 3), draw.normal(5, 2)
    unit = draw.scale(15)
    train, test = draw.rounded(train * unit), draw.rounded(test * unit)
    ridge = float(draw.rounded(np.array(unit**2 * 0.1)))
    want = (test / unit) @ np.linalg.solve(
        (train / unit).T @ (train / unit) + ridge / unit**2 * np.eye(3), (train / unit).T @ y
    )
    arguments = {"train": draw.cast(train), "y": draw.cast(y), "test": draw.cast(test), "ridge": ridge}
    return Call(arguments, lambda result: compare(result, want, 1e3 * draw.eps, draw, size=10.0))


@target("theory.feature_learning.alignment", params="params", params_after="params", direction="array")
def alignment(draw: Draw) -> Call:
    _, params, _ = network(draw, "softmax")
    after = params.replace(hidden=params.hidden + draw.pick(0.0, 1.0, 1e-3))
    direction = draw.rounded(draw.normal(draw.d) * draw.scale())
    unit = direction / np.abs(direction).max()
    unit = unit / np.linalg.norm(unit)
    hidden = np.asarray(params.hidden, float)
    want = np.linalg.norm(unit @ hidden) / np.linalg.norm(hidden)

    def check(result: Any) -> str | None:
        return first_message(never_nan(result), compare(result.before, want, 1e3 * draw.eps, draw, size=1.0))

    return Call({"params": params, "params_after": after, "direction": draw.cast(direction)}, check)
