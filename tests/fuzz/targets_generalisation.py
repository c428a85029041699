"""Targets: what a kernel promises on unseen data, by its definitions in NumPy."""

import math
from typing import Any

import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, long
from fuzz.targets_spectrum import eigenvalues_of


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
        squares = (
            np.einsum("ik,ij,jk->k", y, np.linalg.inv(matrix / scale), y / (np.abs(y).max() or 1.0))
            / scale
        )
        want = np.sqrt(np.abs(squares)) * np.sqrt(np.abs(y).max() or 1.0)
        error = np.abs(result.outputs - want)
        room = np.asarray(result.outputs_error) + 1e-6 * want + 1e-300
        return (
            None
            if (error <= room).all()
            else f"{result.outputs} ± {result.outputs_error} instead of {want}"
        )

    return Call({"gram": draw.cast(matrix), "y": draw.cast(y)}, check)


@target("theory.effective_rank", gram="gram?", eigenvalues="nonnegatives?")
def effective_rank(draw: Draw) -> Call:
    values = np.abs(draw.normal(draw.n)) * draw.scale(15)
    values = draw.rounded(values)
    matrix = np.diag(values)
    arguments = {"gram": draw.cast(matrix), "eigenvalues": None}

    def check(result: Any) -> str | None:
        return compare(
            result.rank,
            values.sum() / values.max(),
            1e-5 if draw.dtype == "float32" else 1e-12,
            draw,
        )

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
    return Call(
        arguments, lambda result: None if result == want else compare(result, want, 1e-9, draw)
    )


@target("theory.noise_level", laws_only=True, gram="gram", y="array")
def noise_level(draw: Draw) -> Call:
    matrix, y = _gram_and_targets(draw)

    def check(result: Any) -> str | None:
        size = np.sqrt((y**2).sum(0)) if np.abs(y).max() < 1e15 else np.inf
        got = np.asarray(result)
        good = np.isfinite(got).all() and (got >= 0).all() and (got <= 10 * size + draw.tiny).all()
        return (
            None
            if good
            else f"{'NaN ' if np.isnan(got).any() else ''}{got} for targets of norm {size}"
        )

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
        return compare(
            float(reached / level),
            1.0,
            1e-3,
            draw,
            what="t Σ min(tλ, 1)/c²",
        )

    return Call(arguments, check, refusals=NO_KERNEL)


@target(
    "theory.least_risk_time",
    laws_only=True,
    gram="gram?",
    noise="positive",
    norm="positive",
    eigenvalues="nonnegatives?",
)
def least_risk_time(draw: Draw) -> Call:
    matrix, noise, norm = _stopping(draw)
    arguments = {"gram": draw.cast(matrix), "noise": noise, "norm": norm}

    def check(result: Any) -> str | None:
        values = np.maximum(eigenvalues_of(matrix), 0)

        def risk(t: float) -> float:
            return (
                norm**2 * (values * np.exp(-2 * values * t)).max()
                + noise**2 * ((1 - np.exp(-values * t)) ** 2).sum()
            )

        here = risk(result.time)
        around = min(risk(result.time * factor) for factor in (0.1, 0.5, 2.0, 10.0))
        return (
            None
            if here <= around * (1 + 1e-3)
            else f"risk {here} at t = {result.time}, {around} nearby"
        )

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
