"""Comparisons, and the dumb reference implementations that several targets share: NumPy in long
double, mpmath, SciPy.
"""

from collections.abc import Callable
from typing import Any

import jax
import mpmath
import numpy as np

from fuzz.draw import Draw

ACTIVATIONS: dict[str, tuple[Callable, Callable, Callable]] = {
    "exp": (np.exp, np.exp, np.exp),
    "res_exp": (lambda z: np.exp(z) + z, lambda z: np.exp(z) + 1, np.exp),
    "cosh": (np.cosh, np.sinh, np.cosh),
    "sinh": (np.sinh, np.cosh, np.sinh),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0, lambda z: 0 * z),
    "softplus": (
        lambda z: np.logaddexp(z, 0),
        lambda z: 1 / (1 + np.exp(-z)),
        lambda z: 1 / ((1 + np.exp(-z)) * (1 + np.exp(z))),
    ),
    "identity": (lambda z: z, lambda z: 0 * z + 1, lambda z: 0 * z),
    "threshold": (lambda z: (z > 0) * 1.0, lambda z: 0 * z, lambda z: 0 * z),
}
"""u, u', u'' by NumPy, in the precision of what they are given."""


def long(x: Any) -> np.ndarray:
    """Return numbers in long double."""
    return np.asarray(x).astype(np.float64).astype(np.longdouble)


def compare(
    actual: Any, desired: Any, rtol: float, draw: Draw, *, size: Any = None, what: str = ""
) -> str | None:
    """Return None, or how far numbers are from the right ones.

    Where the right number is beyond the precision, infinity and large numbers of its sign are
    right; what is smaller than the smallest normal numbers counts as zero.

    Args:
        actual: what was computed.
        desired: the right numbers, in float64 or long double.
        rtol: relative to ``size``.
        draw: of the case; its precision counts.
        size: by default the largest desired number.
        what: the name of the quantity.
    """
    got = np.asarray(actual).astype(np.float64)
    with np.errstate(over="ignore"):
        want = np.asarray(desired, np.longdouble)
    if got.shape != want.shape:
        return f"{what} shape {got.shape} instead of {want.shape}"
    if np.isnan(got).any():
        return f"{what} NaN: {got.tolist()} instead of {want.astype(float).tolist()}"
    limit = draw.largest * 1e-3
    beyond = ~(np.abs(want) < limit)
    right_beyond = (np.sign(got) == np.sign(want)) & (np.abs(got) >= 1e-9 * np.sqrt(draw.largest))
    inside = np.abs(want[~beyond])
    scale = np.max(inside, initial=0) if size is None else size
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    near = error <= rtol * scale + 16 * draw.tiny
    good = np.where(beyond, right_beyond, near)
    if good.all():
        return None
    return (
        f"{what} {np.array2string(got, precision=8, threshold=20)} instead of "
        f"{np.array2string(want.astype(np.float64), precision=8, threshold=20)}"
    )


def first_message(*messages: str | None) -> str | None:
    """Return the first complaint, or None."""
    return next((message for message in messages if message), None)


def finite(result: Any) -> str | None:
    """Refuse anything but finite numbers in the leaves."""
    for leaf in jax.tree.leaves(result):
        array = np.asarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{'NaN' if np.isnan(array).any() else 'not finite'}: {array.tolist()}"
    return None


def normalised(z: np.ndarray, name: str) -> np.ndarray:
    """Return u(z)/1ᵀu(z) along the last axis, in long double with a shift."""
    z = long(z)
    shift = np.maximum(np.max(z, axis=-1, keepdims=True), 0 if name == "res_exp" else -np.inf)
    if name in ("cosh", "sinh"):
        shift = np.max(np.abs(z), axis=-1, keepdims=True)
        sign = 1 if name == "cosh" else -1
        u = (np.exp(z - shift) + sign * np.exp(-z - shift)) / 2
    elif name in ("exp", "res_exp"):
        u = np.exp(z - shift) + (z * np.exp(-shift) if name == "res_exp" else 0)
    else:
        u = ACTIVATIONS[name][0](z)
    return u / np.sum(u, axis=-1, keepdims=True)


def gaussian_moments(
    name: str, q11: float, q12: float, q22: float, normalized: bool
) -> tuple[float, float]:
    """Return (E[φφ'], E[φ̇φ̇']) in fifty digits, from closed forms of the activations."""
    with mpmath.workdps(50):
        a, b, c = (
            q if isinstance(q, mpmath.mpf) else mpmath.mpf(float(q)) for q in (q11, q12, q22)
        )
        covariance, slope = _MOMENTS[name](a, b, c)
        if normalized:
            total = _mean(name, a) * _mean(name, c)
            covariance, slope = covariance / total, slope / total
        return covariance, slope


def _mean(name: str, q: Any) -> Any:
    return (
        mpmath.exp(q / 2)
        if name in ("exp", "res_exp", "cosh")
        else mpmath.sqrt(q / (2 * mpmath.pi))
    )


def _exp(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    value = mpmath.exp((a + c) / 2 + b)
    return value, value


def _res_exp(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    around = mpmath.exp(a / 2) + mpmath.exp(c / 2) + 1
    value = mpmath.exp((a + c) / 2 + b)
    return value + b * around, value + around


def _cosh(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    scale = mpmath.exp((a + c) / 2)
    return scale * mpmath.cosh(b), scale * mpmath.sinh(b)


def _sinh(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    return _cosh(a, b, c)[::-1]


def _relu(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    norms = mpmath.sqrt(a * c)
    if norms == 0:
        return mpmath.mpf(0), mpmath.mpf("0.25")
    cosine = max(-1, min(1, b / norms))
    angle = mpmath.acos(cosine)
    value = norms * (mpmath.sin(angle) + (mpmath.pi - angle) * cosine) / (2 * mpmath.pi)
    return value, (mpmath.pi - angle) / (2 * mpmath.pi)


def _identity(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    return b, mpmath.mpf(1)


def _erf(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    total = (1 + 2 * a) * (1 + 2 * c)
    return 2 / mpmath.pi * mpmath.asin(2 * b / mpmath.sqrt(total)), 4 / mpmath.pi / mpmath.sqrt(
        total - 4 * b**2
    )


_MOMENTS: dict[str, Callable] = {
    "exp": _exp,
    "res_exp": _res_exp,
    "cosh": _cosh,
    "sinh": _sinh,
    "relu": _relu,
    "identity": _identity,
    "erf": _erf,
}
