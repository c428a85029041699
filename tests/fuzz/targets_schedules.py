"""Targets: noising processes, against their integrals in long double."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import softntk as sn
from fuzz.cases import Call, target
from fuzz.draw import Draw
from fuzz.oracles import compare, long


def draw_process(draw: Draw) -> Any:
    """Return a noising process."""
    if draw.mild:
        return sn.diffusion.vp_sde()
    return draw.pick(
        sn.diffusion.vp_sde(),
        sn.diffusion.vp_sde(0.1, 0.1),
        sn.diffusion.constant_sde(2.0),
        sn.diffusion.cosine_sde(),
    )


def draw_time(draw: Draw, *options: float) -> float:
    """Return a time that the precision represents."""
    return float(
        draw.rounded(np.array(draw.pick(0.5, 1.0, 0.01, *options) if not draw.mild else 0.5))
    )


def _integral(sde: Any, t: float) -> Any:
    time = long(t)
    if hasattr(sde, "beta_min"):
        slope = (long(sde.beta_max) - long(sde.beta_min)) / sde.horizon
        return time * (long(sde.beta_min) + slope * time / 2)
    angle = long(sde.start) + (long(sde.end) - long(sde.start)) * time / sde.horizon
    return -2 * np.log(np.cos(angle) / np.cos(long(sde.start)))


def _rate(sde: Any, t: float) -> Any:
    if hasattr(sde, "beta_min"):
        return (
            long(sde.beta_min) + (long(sde.beta_max) - long(sde.beta_min)) * long(t) / sde.horizon
        )
    turn = (long(sde.end) - long(sde.start)) / sde.horizon
    return 2 * turn * np.tan(long(sde.start) + turn * long(t))


SCHEDULE = {
    "integral": _integral,
    "alpha": lambda sde, t: np.exp(-_integral(sde, t) / 2),
    "variance": lambda sde, t: -np.expm1(-_integral(sde, t)),
    "log_snr": lambda sde, t: -_integral(sde, t) - np.log(-np.expm1(-_integral(sde, t))),
    "rate": _rate,
}


def _register_schedule(method: str) -> None:
    @target(f"diffusion.VPSDE.{method}", t="elements")
    def make(draw: Draw) -> Call:
        sde, t = draw_process(draw), draw_time(draw, 1e-4, 1e-6)
        want = SCHEDULE[method](sde, t)
        cancels = 1e3 if not hasattr(sde, "beta_min") else 64  # a cosine near one
        size = np.abs(want) + (cancels * 1e-3 if method in ("log_snr",) else 0)
        loose = 1e-3 if method == "rate" else cancels * draw.eps / (t if cancels > 64 else 1)
        arguments = {"self": sde, "t": jnp.asarray([t], draw.dtype)}
        return Call(
            arguments,
            lambda result: compare(
                result, [want], loose + 2e-7 * (method == "rate"), draw, size=size + 1e-30
            ),
        )


for _method in SCHEDULE:
    _register_schedule(_method)


@target("diffusion.VPSDE.time", log_snr="elements")
def time(draw: Draw) -> Call:
    sde, t = draw_process(draw), draw_time(draw)
    arguments = {
        "self": sde,
        "log_snr": jnp.asarray([float(SCHEDULE["log_snr"](sde, t))], draw.dtype),
    }
    return Call(
        arguments,
        lambda result: compare(result, [t], 1e-3 if draw.dtype == "float32" else 1e-9, draw),
    )


@target("diffusion.VPSDE.check_times", t="numbers")
def check_times(draw: Draw) -> Call:
    return Call({"self": draw_process(draw), "t": draw_time(draw)}, lambda result: None)


@target("diffusion.VPSDE.weight", t="numbers", kind="choice")
def weight(draw: Draw) -> Call:
    sde, t = draw_process(draw), draw_time(draw)
    kind = draw.pick("denoising", "noise", "score", "likelihood")
    alpha, h = SCHEDULE["alpha"](sde, t), SCHEDULE["variance"](sde, t)
    want = {
        "denoising": 1.0,
        "noise": alpha**2 / h,
        "score": (alpha / h) ** 2,
        "likelihood": _rate(sde, t) * (alpha / h) ** 2,
    }
    arguments = {"self": sde, "t": jnp.asarray(t, draw.dtype), "kind": kind}
    return Call(
        arguments,
        lambda result: compare(result, want[kind], 1e-2 if draw.dtype == "float32" else 1e-6, draw),
    )


@target("diffusion.VPSDE.perturb", key="key", t="numbers", x0="rows")
def perturb(draw: Draw) -> Call:
    sde, t, key = draw_process(draw), draw_time(draw), draw.key()
    x0 = draw.points(scale=draw.scale(30))

    def check(result: Any) -> str | None:
        noise = np.asarray(sde.perturb(key, t, jnp.zeros(x0.shape, draw.dtype)), np.float64)
        want = SCHEDULE["alpha"](sde, t) * x0 + noise
        return compare(
            result, want, 1e3 * draw.eps, draw, size=np.abs(x0).max() + np.abs(noise).max()
        )

    return Call({"self": sde, "key": key, "t": t, "x0": draw.cast(x0)}, check)


@target(
    "diffusion.VPSDE.sample_times",
    key="key",
    n="count",
    min_time="positive",
    centre="real?",
    spread="positive",
)
def sample_times(draw: Draw) -> Call:
    sde = draw_process(draw)
    centre = None if draw.mild else draw.pick(None, 0.0, -100.0, 100.0, 5.0)
    low = draw.pick(1e-3, 0.3)

    def check(result: Any) -> str | None:
        times = np.asarray(result, np.float64)
        good = ((times >= low * (1 - 1e-4)) & (times <= sde.horizon * (1 + 1e-6))).all()
        return (
            None
            if good
            else f"{'NaN ' if np.isnan(times).any() else ''}{times} outside [{low}, {sde.horizon}]"
        )

    return Call(
        {"self": sde, "key": draw.key(), "n": 8, "min_time": low, "centre": centre, "spread": 2.4},
        check,
    )


@target("diffusion.vp_sde", beta_min="positive", beta_max="positive", horizon="positive")
def vp_sde(draw: Draw) -> Call:
    low = draw.positive()
    high = low * draw.pick(1.0, 10.0)
    want = np.exp(-(low + high) / 4 * 1.0)
    arguments = {"beta_min": low, "beta_max": high, "horizon": 1.0}
    return Call(arguments, lambda sde: compare(sde.alpha(1.0), want, 1e-4, draw))


@target("diffusion.constant_sde", rate="positive", horizon="positive")
def constant_sde(draw: Draw) -> Call:
    rate = draw.positive()
    return Call(
        {"rate": rate, "horizon": 2.0},
        lambda sde: compare(sde.alpha(1.0), np.exp(-rate / 2), 1e-5, draw),
    )


@target("diffusion.cosine_sde", offset="positive", final_alpha="fraction", horizon="positive")
def cosine_sde(draw: Draw) -> Call:
    last = draw.pick(1e-3, 0.1, 0.9)
    arguments = {"offset": 0.008, "final_alpha": last, "horizon": draw.pick(1.0, 10.0)}
    return Call(arguments, lambda sde: compare(sde.alpha(arguments["horizon"]), last, 1e-3, draw))
