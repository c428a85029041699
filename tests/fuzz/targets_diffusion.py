"""Targets: noising processes, mixtures, denoisers, samplers, against formulas in long double."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import compare, finite, long
from fuzz.targets_schedules import SCHEDULE, draw_process, draw_time

METHODS = ("log_density", "score", "denoise")


class MixtureCase:
    """A mixture of Gaussians at a time, by the formulas of the textbook."""

    def __init__(self, draw: Draw, points: bool = False) -> None:
        self.sde, self.t = draw_process(draw), draw_time(draw)
        unit = 1.0 if draw.mild else draw.pick(1.0, 1e-20, 30.0)
        d = draw.d
        if points:
            self.means = draw.points(4, d, unit)
            self.weights, self.covariances = np.full(4, 0.25), np.zeros((4, d, d))
        else:
            self.means = draw.rounded(draw.normal(2, d) * unit)
            self.weights = draw.rounded(np.array([0.25, 0.75]))
            factor = draw.normal(2, d, d) * unit * (0.0 if draw.chance(0.2) else 1.0)
            self.covariances = draw.rounded(factor @ factor.transpose(0, 2, 1))
        self.alpha, self.h = (SCHEDULE[name](self.sde, self.t) for name in ("alpha", "variance"))
        self.x = draw.rounded(
            draw.normal(draw.n, d) * (1.0 if draw.mild else draw.pick(1.0, 0.0, 20.0))
        )
        self.distribution = (
            sn.diffusion.EmpiricalDistribution(jnp.asarray(self.means, draw.dtype))
            if points
            else sn.diffusion.GaussianMixture(
                *(
                    jnp.asarray(array, draw.dtype)
                    for array in (self.weights, self.means, self.covariances)
                )
            )
        )

    def reference(self, method: str) -> np.ndarray:
        """Return the log-density, the score or the denoiser."""
        x, logs, scores = long(self.x), [], []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            matrix = (self.alpha**2 * long(covariance) + self.h * np.eye(len(mean))).astype(float)
            difference = x - self.alpha * long(mean)
            solved = np.linalg.solve(matrix, difference.astype(float).T).T
            square = (difference * solved).sum(1)
            logs.append(np.log(weight) - (square + np.linalg.slogdet(2 * np.pi * matrix)[1]) / 2)
            scores.append(-solved)
        logs = np.array(logs)
        top = logs.max(0)
        total = top + np.log(np.exp(logs - top).sum(0))
        if method == "log_density":
            return total
        score = np.einsum("cn,cnd->nd", np.exp(logs - total), np.array(scores))
        return score if method == "score" else (x + self.h * score) / self.alpha

    def rtol(self, draw: Draw) -> float:
        """Return what rounding can do: log-densities are sums of squares."""
        reach = (np.abs(self.x).max() + np.abs(self.means).max() + 1) ** 2 / float(self.h)
        return 64 * draw.eps * (1 + reach)


def _register_mixture(cls: str, method: str) -> None:
    @target(f"diffusion.{cls}.{method}", sde="object", t="numbers", x="rows")
    def make(draw: Draw) -> Call:
        case = MixtureCase(draw, points=cls == "EmpiricalDistribution")
        want = case.reference(method)

        def check(result: Any) -> str | None:
            if case.rtol(draw) > 1e-2:
                return never_nan(result)
            size = {
                "log_density": 10 + np.abs(want).max(),
                "score": (np.abs(case.x).max() + np.abs(case.means).max() + 1) / case.h,
            }
            size["denoise"] = (
                np.abs(case.x).max() + np.abs(case.means).max()
            ) * 1.0 + case.h / case.alpha
            return compare(result, want, case.rtol(draw), draw, size=float(size[method]))

        arguments = {
            "self": case.distribution,
            "sde": case.sde,
            "t": jnp.asarray(case.t, draw.dtype),
            "x": draw.cast(case.x),
        }
        return Call(arguments, check)


for _class in ("GaussianMixture", "EmpiricalDistribution"):
    for _method in METHODS:
        _register_mixture(_class, _method)


@target("diffusion.GaussianMixture.sample", key="key", n="count")
def mixture_sample(draw: Draw) -> Call:
    case = MixtureCase(draw)
    return Call({"self": case.distribution, "key": draw.key(), "n": 5}, finite)


@target("diffusion.EmpiricalDistribution.sample", key="key", n="count")
def empirical_sample(draw: Draw) -> Call:
    case = MixtureCase(draw, points=True)

    def check(result: Any) -> str | None:
        distance = np.abs(np.asarray(result, np.float64)[:, None] - case.means[None]).max(2).min(1)
        return None if (distance == 0).all() else "points that are not in the data"

    return Call({"self": case.distribution, "key": draw.key(), "n": 5}, check)


@target("diffusion.GaussianMixture", weights="positives", means="rows", covariances="array")
def mixture(draw: Draw) -> Call:
    case = MixtureCase(draw)
    arguments = {
        name: draw.cast(getattr(case, name)) for name in ("weights", "means", "covariances")
    }
    size = np.abs(case.covariances).max()
    return Call(
        arguments,
        lambda result: compare(
            result.covariances, case.covariances, 64 * draw.eps, draw, size=size
        ),
    )


@target("diffusion.EmpiricalDistribution", x0="rows")
def empirical(draw: Draw) -> Call:
    x0 = draw.points(scale=draw.scale(30))
    return Call({"x0": draw.cast(x0)}, finite)


# --- denoisers
# ------------------------------------------------------------------------------------------------------


@target("diffusion.score", sde="object", denoiser="callable")
def score(draw: Draw) -> Call:
    case = MixtureCase(draw)

    def denoiser(t: Any, x: Any) -> Any:
        return case.distribution.denoise(case.sde, t, x)

    def check(function: Any) -> str | None:
        got = function(jnp.asarray(case.t, draw.dtype), jnp.asarray(case.x, draw.dtype))
        size = (np.abs(case.x).max() + np.abs(case.means).max() + 1) / float(case.h)
        return (
            compare(got, case.reference("score"), case.rtol(draw), draw, size=size)
            if case.rtol(draw) < 1e-2
            else never_nan(got)
        )

    return Call({"sde": case.sde, "denoiser": denoiser}, check)


@target("diffusion.Score.__call__", t="numbers", x="rows")
def score_call(draw: Draw) -> Call:
    case = MixtureCase(draw)

    def denoiser(t: Any, x: Any) -> Any:
        return case.distribution.denoise(case.sde, t, x)

    arguments = {
        "self": sn.diffusion.score(case.sde, denoiser),
        "t": case.t,
        "x": draw.cast(case.x),
    }
    return Call(arguments, never_nan)


@functools.cache
def fitted() -> Any:
    """Return one denoiser of a small data set, in float32."""
    with jax.enable_x64(False):
        x0 = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
        return sn.diffusion.linearised_denoiser(
            jax.random.key(0), sn.diffusion.vp_sde(), x0, width=8, times=2, steps=4
        )


@target("diffusion.Denoiser.__call__", slow=True, laws_only=True, t="numbers", x="rows")
def denoiser_call(draw: Draw) -> Call:
    x = draw.points(scale=draw.pick(1.0, 1e-20, 1e6)).astype(np.float32)
    return Call({"self": fitted(), "t": 0.5, "x": jnp.asarray(x)}, finite)


FIT = {
    "key": "key",
    "sde": "object",
    "x0": "rows",
    "family": "choice",
    "sigma": "positive?",
    "train_readout": "flag",
}
FIT |= {"times": "count", "min_time": "positive"}


def _data(draw: Draw) -> np.ndarray:
    return draw.rounded(draw.normal(32, 2) * draw.scale(15))


def _fit_arguments(draw: Draw, x0: np.ndarray) -> dict[str, Any]:
    return {"key": draw.key(), "sde": sn.diffusion.vp_sde(), "x0": draw.cast(x0), "times": 2}


def _denoiser_check(draw: Draw, x0: np.ndarray) -> Any:
    def check(denoiser: Any) -> str | None:
        values = np.asarray(denoiser(0.5, jnp.zeros((3, 2), denoiser.frame.mean.dtype)), np.float64)
        good = np.isfinite(values).all() and np.abs(values).max() <= 1e3 * np.abs(x0).max()
        return (
            None
            if good
            else f"{'NaN ' if np.isnan(values).any() else ''}{values} for data of size {np.abs(x0).max()}"
        )

    return check


@target(
    "diffusion.fit_denoiser",
    slow=True,
    may_fail=True,
    laws_only=True,
    width="count",
    steps="count",
    batch_size="count?",
    draws="count",
    tx="transform?",
    ema="fraction",
    weighting="choice?",
    levels="object",
    progress="flag",
    checkpoint="path?",
    throw="flag",
    **FIT,
)
def fit_denoiser(draw: Draw) -> Call:
    x0 = _data(draw)
    arguments = _fit_arguments(draw, x0) | {"width": 8, "steps": 8, "batch_size": 16}
    return Call(arguments, _denoiser_check(draw, x0))


@target(
    "diffusion.kernel_denoiser",
    slow=True,
    may_fail=True,
    laws_only=True,
    draws="count?",
    landmarks="count",
    stopping="rule",
    filter="choice",
    validation="fraction",
    progress="flag",
    **FIT,
)
def kernel_denoiser(draw: Draw) -> Call:
    x0 = _data(draw)
    arguments = _fit_arguments(draw, x0) | {"landmarks": 8, "draws": 1, "sigma": 1.0}
    return Call(arguments, _denoiser_check(draw, x0))


@target(
    "diffusion.linearised_denoiser",
    slow=True,
    may_fail=True,
    laws_only=True,
    width="count",
    draws="count",
    steps="count",
    learning_rate="positive?",
    **FIT,
)
def linearised_denoiser(draw: Draw) -> Call:
    x0 = _data(draw)
    return Call(_fit_arguments(draw, x0) | {"width": 8, "steps": 4}, _denoiser_check(draw, x0))


# --- samplers
# -------------------------------------------------------------------------------------------------------


def _normal_score(t: Any, x: Any) -> Any:
    return -x


@target(
    "diffusion.sample",
    slow=True,
    may_fail=True,
    laws_only=True,
    key="key",
    sde="object",
    score_fn="callable",
    shape="rows and columns",
    method="choice",
    min_time="positive",
    steps="count",
    corrector_steps="count0",
    corrector_snr="positive",
    moments="mean and covariance?",
    rtol="positive",
    atol="positive",
    max_steps="count",
    batch_size="count?",
    progress="flag",
    throw="flag",
)
def sample(draw: Draw) -> Call:
    arguments = {
        "key": draw.key(),
        "sde": draw_process(draw),
        "score_fn": _normal_score,
        "shape": (4, 2),
        "steps": 8,
    }

    def check(result: Any) -> str | None:
        return finite(result) or (
            None if np.abs(np.asarray(result)).max() < 10 else "not standard normal"
        )

    return Call(arguments, check)


@target(
    "diffusion.log_likelihood",
    slow=True,
    may_fail=True,
    sde="object",
    score_fn="callable",
    x="rows",
    key="key?",
    trace="choice",
    probes="count",
    min_time="positive",
    rtol="positive",
    atol="positive",
    max_steps="count",
    throw="flag",
)
def log_likelihood(draw: Draw) -> Call:
    x = draw.rounded(draw.normal(3, 2))
    want = -(long(x) ** 2).sum(1) / 2 - np.log(2 * np.pi)
    arguments = {"sde": draw_process(draw), "score_fn": _normal_score, "x": draw.cast(x)}
    return Call(arguments, lambda result: compare(result, want, 2e-3, draw, size=5.0))
