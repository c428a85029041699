"""Targets: the recursion through depth and its fixed points, against mpmath and Lambert's function."""

from typing import Any

import mpmath
import numpy as np
import scipy.special

from fuzz.cases import Call, target
from fuzz.draw import Draw
from fuzz.oracles import compare, first_message, gaussian_moments


@target(
    "ntk.fixed_point",
    activation="activation",
    normalized="flag",
    weight_variance="numbers",
    bias_variance="numbers",
    max_steps="count",
)
def fixed_point(draw: Draw) -> Call:
    weight, bias = draw.positive(1e-3, 0.35), draw.pick(0.0, 1e-3)
    arguments = {
        "activation": "exp",
        "normalized": True,
        "weight_variance": weight,
        "bias_variance": bias,
        "max_steps": 500,
    }

    def check(result: Any) -> str | None:
        want = bias - scipy.special.lambertw(-weight * np.exp(bias)).real
        near = weight > 0.3  # close to criticality
        return compare(result.variance, want, 1e-2 if near else 1e3 * draw.eps, draw)

    return Call(arguments, check)


@target(
    "ntk.propagate",
    activation="activation",
    q11="numbers",
    q12="numbers",
    q22="numbers",
    depth="count",
    normalized="flag",
    weight_variance="numbers",
    bias_variance="numbers",
)
def propagate(draw: Draw) -> Call:
    name = draw.pick("exp", "relu", "erf", "res_exp")
    normalized = name in ("exp", "res_exp")
    q = draw.positive(1e-3, 1.0) * (1.0 if draw.mild else draw.pick(1.0, 1e-25))
    rho = draw.pick(0.0, 0.5, -0.5)
    q11, q12, q22 = (float(draw.rounded(np.array(value))) for value in (q, rho * q, q))
    weight, bias = 0.3, draw.pick(0.0, 0.25)
    arguments = {
        "activation": name,
        "q11": q11,
        "q12": q12,
        "q22": q22,
        "depth": 2,
        "normalized": normalized,
    }
    arguments |= {"weight_variance": weight, "bias_variance": bias}

    def check(result: Any) -> str | None:
        first, both, second = q11, q12, q22
        theta = both
        for _ in range(2):
            (covariance, slope), (one, _), (two, _) = (
                gaussian_moments(name, *triple, normalized)
                for triple in (
                    (first, both, second),
                    (first, first, first),
                    (second, second, second),
                )
            )
            both, first, second = (float(weight * value + bias) for value in (covariance, one, two))
            theta = both + float(weight * slope * mpmath.mpf(theta))
        return first_message(
            compare(result.covariance[-1], both, 1e3 * draw.eps, draw, size=first, what="q12"),
            compare(result.ntk[-1], theta, 1e3 * draw.eps, draw, size=abs(theta) + first, what="Θ"),
        )

    return Call(arguments, check)
