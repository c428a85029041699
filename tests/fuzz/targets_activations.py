"""Targets: activations, networks, stax."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import softntk as sn
from fuzz.cases import Call, never_nan, target
from fuzz.draw import Draw
from fuzz.oracles import ACTIVATIONS, compare, first_message, gaussian_moments, long, normalised

EXPONENTIAL = ("exp", "res_exp", "cosh", "sinh")


def _logits(draw: Draw) -> np.ndarray:
    scale = 1.0 if draw.mild else draw.pick(1.0, 1e-30, 1e-6, 30.0, 1e4)
    return draw.rounded(draw.normal(draw.n, draw.m) * scale)


def _register_jet(method: str, order: int) -> None:
    @target(f"activations.Activation.{method}", z="elements")
    def make(draw: Draw) -> Call:
        name = draw.pick(*ACTIVATIONS)
        z = _logits(draw)

        def check(result: Any) -> str | None:
            with np.errstate(over="ignore", invalid="ignore"):
                want = ACTIVATIONS[name][order](long(z))
                size = np.abs(want) * (1 + np.abs(z)) + (np.abs(z) if name == "res_exp" else 0)
            return compare(
                result, want, 32 * draw.eps, draw, size=np.where(np.isfinite(size), size, 0)
            )

        return Call({"self": sn.activations.get(name), "z": draw.cast(z)}, check)


for _method, _order in (("u", 0), ("du", 1), ("d2u", 2)):
    _register_jet(_method, _order)


@target(
    "activations.Activation.limit",
    q11="elements",
    q12="elements",
    q22="elements",
    normalized="flag",
    sines="elements?",
)
def limit(draw: Draw) -> Call:
    name = draw.pick("exp", "res_exp", "cosh", "relu", "identity", "erf", "sinh")
    normalized = name in ("exp", "res_exp", "cosh", "relu") and draw.random() < 0.5
    decades = 0.5 if draw.mild else draw.pick(1.0, 30.0)
    q11, q22 = draw.rounded(10.0 ** draw.generator.uniform(-decades, decades, size=(2, draw.n)))
    if draw.chance(0.3):
        q22 = q11
    rho = (
        draw.pick(0.0, 1.0, -1.0, 0.5, 1e-20)
        if draw.chance(0.5)
        else draw.generator.uniform(-0.99, 0.99)
    )
    q12 = draw.rounded(rho * np.sqrt(q11) * np.sqrt(q22))

    def check(result: Any) -> str | None:
        pairs = [gaussian_moments(name, *q, normalized) for q in zip(q11, q12, q22, strict=True)]
        covariance, slope = (
            np.array([np.longdouble(str(pair[i])) for pair in pairs]) for i in (0, 1)
        )
        exponent = np.abs(q12) + (0 if normalized or name not in EXPONENTIAL else q11 + q22)
        bends = name == "relu" or (name == "erf" and abs(rho) == 1)
        loose = 8 * draw.eps**0.5 if bends and abs(rho) > 0.9 else 64 * draw.eps
        ends = 1 + exponent if name in EXPONENTIAL else 1
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = [np.abs(value) * ends for value in (covariance, slope)]
        sizes = [np.where(np.isfinite(size), size, 0) for size in sizes]
        if name == "relu":
            norms = 1.0 if not normalized else 1 / np.sqrt(q11 * q22)
            sizes = [np.sqrt(q11 * q22) * norms, np.ones(draw.n) * norms]
        return first_message(
            compare(
                result[0],
                covariance,
                64 * draw.eps if name != "relu" else loose,
                draw,
                size=sizes[0],
                what="φφ'",
            ),
            compare(result[1], slope, loose, draw, size=sizes[1], what="φ̇φ̇'"),
        )

    arrays = {"q11": draw.cast(q11), "q12": draw.cast(q12), "q22": draw.cast(q22)}
    return Call({"self": sn.activations.get(name), **arrays, "normalized": normalized}, check)


@target("activations.crrelu", epsilon="real")
def crrelu(draw: Draw) -> Call:
    epsilon = draw.positive() if draw.mild else draw.pick(0.0, 0.01, -1.0, 1e10, 1e-30)

    def check(result: Any) -> str | None:
        z = draw.normal(draw.m)
        want = np.maximum(z, 0) + epsilon * z * np.exp(-(z**2) / 2)
        return compare(result.u(jnp.asarray(z, draw.dtype)), want, 16 * draw.eps, draw)

    return Call({"epsilon": epsilon}, check)


@target(
    "activations.from_function", u="callable", name="text", moments="object?", enclosure="object?"
)
def from_function(draw: Draw) -> Call:
    def check(result: Any) -> str | None:
        z = draw.normal(draw.m)
        given = jnp.asarray(z, draw.dtype)
        return first_message(
            compare(result.u(given), np.tanh(z), 16 * draw.eps, draw),
            compare(result.du(given), 1 - np.tanh(z) ** 2, 16 * draw.eps, draw),
        )

    return Call({"u": jnp.tanh, "name": "tanh"}, check)


@target("activations.get", activation="activation")
def get(draw: Draw) -> Call:
    name = draw.pick(*ACTIVATIONS)
    return Call(
        {"activation": name}, lambda result: None if result.name == name else "another name"
    )


@target("activations.normalize", activation="activation", z="elements")
def normalize(draw: Draw) -> Call:
    name = draw.pick("exp", "res_exp", "cosh")
    z = _logits(draw)

    def check(result: Any) -> str | None:
        want = normalised(z, name)
        near = np.abs(want).max() < 1e-2 / draw.eps  # otherwise the normaliser is lost
        message = compare(
            result, want, 64 * draw.eps, draw, size=np.abs(want).max() * (1 + np.abs(z).max())
        )
        return message if near else never_nan(result)

    activation = sn.activations.get(name)
    return Call({"activation": activation, "z": draw.cast(z)}, check)


@target("activations.quadrature_moments", jet="callable", order="count")
def quadrature_moments(draw: Draw) -> Call:
    def jet(z: Any, c: Any) -> tuple:
        return jnp.sin(z) + z, jnp.cos(z) + 1, -jnp.sin(z)

    def check(result: Any) -> str | None:
        q = jnp.asarray(0.5, draw.dtype)
        want = 0.5 * (1 - np.exp(-1.0)) + 0.5 + 2 * 0.5 * np.exp(-0.25)
        return compare(result.covariance(q, q, q, 0.0), want, 1e-5, draw)

    return Call({"jet": jet, "order": 24}, check)


# --- networks
# -----------------------------------------------------------------------------------------------------

FAMILIES = {
    "softmax": ("exp", True),
    "res_softmax": ("res_exp", True),
    "relu": ("relu", False),
    "exp": ("exp", False),
}


@functools.cache
def _network(family: str, width: int, out_dim: int) -> Any:
    return sn.networks.two_layer(family, width=width, out_dim=out_dim)


def network(draw: Draw, family: str | None = None) -> tuple[Any, Any, str]:
    """Return a small network, its parameters and its family."""
    chosen: str = draw.pick(*FAMILIES) if family is None else family
    net = _network(chosen, draw.m, draw.k)
    generator = np.random.default_rng(draw.integers(3))
    hidden = generator.normal(size=(draw.d, draw.m)).astype(draw.dtype)
    readout = np.sign(generator.normal(size=(draw.m, draw.k))).astype(draw.dtype)
    params = sn.networks.Parameters(hidden=jnp.asarray(hidden), readout=jnp.asarray(readout))
    return net, params, chosen


def network_points(draw: Draw) -> np.ndarray:
    """Return points at which the logits stay within what exponentials take."""
    return draw.points(scale=1.0 if draw.mild else draw.pick(1.0, 1.0, 1e-3, 1e-25, 5.0))


def factors(params: Any, x: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return φ [n, m], F [n, k] and g [n, k, m] of a network, in long double."""
    name, normalized = FAMILIES[family]
    z, a = long(x) @ long(params.hidden), long(params.readout)
    m = z.shape[1]
    u, du = ACTIVATIONS[name][0](z), ACTIVATIONS[name][1](z)
    if not normalized:
        features = u / np.sqrt(np.longdouble(m))
        return features, features @ a, du[:, None, :] * a.T[None] / np.sqrt(np.longdouble(m))
    total = u.sum(1, keepdims=True)
    features = np.sqrt(np.longdouble(m)) * u / total
    means = (u / total) @ a
    slopes = np.sqrt(np.longdouble(m)) * du / total
    return features, features @ a, slopes[:, None, :] * (a.T[None] - means[:, :, None])


def well_posed(params: Any, x: np.ndarray, family: str) -> bool:
    """Return whether no normaliser nearly vanishes."""
    if family != "res_softmax":
        return True
    z = long(x) @ long(params.hidden)
    u = np.exp(z) + z
    return bool((np.abs(u.sum(1)) > 0.1 * np.abs(u).sum(1)).all())


@target(
    "networks.two_layer",
    family="choice?",
    width="count",
    out_dim="count",
    sigma="positive",
    antisymmetric="flag",
    train_readout="flag",
    parameterization="choice",
    bias="flag",
    normalize="flag?",
)
def two_layer(draw: Draw) -> Call:
    arguments = {
        "family": draw.pick(*FAMILIES),
        "width": draw.m,
        "out_dim": draw.k,
        "sigma": draw.positive(0.5, 2.0),
        "antisymmetric": draw.pick(True, False),
        "train_readout": draw.pick(True, False),
        "parameterization": draw.pick("ntk", "paper"),
        "bias": draw.pick(True, False),
    }

    def check(net: Any) -> str | None:
        shape, params = net.init_fn(jax.random.key(0), (-1, draw.d))
        right = shape == (-1, draw.k) and params.hidden.shape == (draw.d, draw.m)
        return None if right else f"shapes {shape}, {params.hidden.shape}"

    return Call(arguments, check)


def _init(net: Any, key: Any, input_shape: Any) -> Any:
    return net.init_fn(key, input_shape)


@target("networks.Network.init_fn", _init, laws_only=True, key="key", input_shape="shape")
def init_fn(draw: Draw) -> Call:
    return Call({"net": network(draw)[0], "key": draw.key(), "input_shape": (-1, draw.d)})


def _apply(net: Any, params: Any, x: Any) -> Any:
    return net.apply_fn(params, x)


@target("networks.Network.apply_fn", _apply, params="params through", x="rows")
def apply_fn(draw: Draw) -> Call:
    net, params, family = network(draw)
    x = network_points(draw)

    def check(result: Any) -> str | None:
        if not well_posed(params, x, family):
            return never_nan(result)
        features, outputs, _ = factors(params, x, family)
        spread = 1 + (np.abs(x) @ np.abs(np.asarray(params.hidden, np.float64))).max(1)
        size = (np.abs(features) @ np.abs(long(params.readout))) * spread[:, None]
        return compare(result, outputs, 64 * draw.eps, draw, size=size)

    return Call({"net": net, "params": params, "x": draw.cast(x)}, check)


def pairs_of(first: np.ndarray, second: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return the pairs whose inner products are q11, q12, q22."""
    return (first, first), (first, second), (second, second)


def _kernel(net: Any, x1: Any, x2: Any = None, get: Any = "ntk") -> Any:
    return net.kernel_fn(x1, x2, get)


@target("networks.Network.kernel_fn", _kernel, x1="rows", x2="rows?", get="names?")
def kernel_fn(draw: Draw) -> Call:
    net, _, family = network(draw)
    name, normalized = FAMILIES[family]
    x = draw.points(scale=1.0 if draw.mild else draw.pick(1.0, 1e-10, 1e-25, 3.0, 1e6, 1e18))
    get = draw.pick("ntk", "nngp")

    def check(result: Any) -> str | None:
        dots = long(x) @ long(x).T
        want = np.zeros(dots.shape, np.longdouble)
        for i, j in np.ndindex(*dots.shape):
            exponent = (
                float(dots[i, j])
                if normalized
                else float(dots[i, j] + (dots[i, i] + dots[j, j]) / 2)
            )
            if name != "relu" and exponent > 600:
                sign = np.sign(dots[i, j]) if get == "ntk" else 1
                want[i, j] = sign * np.inf if sign else 0
                continue
            with mpmath.workdps(60):  # of opposite points no digit may be lost
                products: list[Any] = [
                    mpmath.fdot(zip(map(float, p), map(float, q), strict=True))
                    for p, q in pairs_of(x[i], x[j])
                ]
                pair = gaussian_moments(name, *products, normalized=normalized)
                want[i, j] = np.longdouble(str(pair[0] if get == "nngp" else products[1] * pair[1]))
        norms = np.sqrt(np.diag(dots))
        sizes = norms[:, None] * norms[None]
        size = (np.abs(want) + (sizes if get == "ntk" or name == "relu" else 0)) * (
            1 + (0 if name == "relu" else sizes)
        )
        size = np.where(np.isfinite(size), size, 0)
        return compare(result, want, 256 * draw.eps, draw, size=size)

    return Call({"net": net, "x1": draw.cast(x), "x2": None, "get": get}, check)


# --- stax
# ---------------------------------------------------------------------------------------------------------


def _layer_check(draw: Draw, name: str, scale: float = 1.0) -> Any:
    z = draw.rounded(draw.normal(draw.n, draw.m) * draw.pick(1.0, 1e-10, 10.0))

    def check(layer: Any) -> str | None:
        want = draw.m * normalised(z * scale, name)
        if np.abs(want).max() > 1e3:
            return None
        return compare(
            layer[1]((), jnp.asarray(z, draw.dtype)),
            want,
            64 * draw.eps * (1 + np.abs(z * scale).max()),
            draw,
        )

    return check


@target("stax.Softmax", temperature="positive", channel_axis="integer")
def softmax_layer(draw: Draw) -> Call:
    temperature = draw.positive()
    return Call(
        {"temperature": temperature, "channel_axis": -1}, _layer_check(draw, "exp", 1 / temperature)
    )


@target("stax.ResSoftmax", channel_axis="integer")
def res_softmax_layer(draw: Draw) -> Call:
    return Call({"channel_axis": -1}, _layer_check(draw, "res_exp"))


@target("stax.NormalizedActivation", activation="activation", channel_axis="integer")
def normalized_layer(draw: Draw) -> Call:
    return Call({"activation": "cosh", "channel_axis": -1}, _layer_check(draw, "cosh"))


@target("stax.PlainActivation", activation="activation")
def plain_layer(draw: Draw) -> Call:
    name = draw.pick("softplus", "relu", "identity", "threshold")
    z = draw.rounded(draw.normal(draw.n, draw.m))

    def check(layer: Any) -> str | None:
        want = ACTIVATIONS[name][0](long(z))
        return compare(layer[1]((), jnp.asarray(z, draw.dtype)), want, 32 * draw.eps, draw)

    return Call({"activation": name}, check)


@target("stax.CRReLU", epsilon="real")
def crrelu_layer(draw: Draw) -> Call:
    z = draw.normal(draw.m)

    def check(layer: Any) -> str | None:
        want = np.maximum(z, 0) + 0.5 * z * np.exp(-(z**2) / 2)
        return compare(layer[1]((), jnp.asarray(z, draw.dtype)), want, 32 * draw.eps, draw)

    return Call({"epsilon": 0.5}, check)


@target("stax.Threshold")
def threshold_layer(draw: Draw) -> Call:
    z = draw.normal(draw.m)
    return Call({}, lambda layer: compare(layer[1]((), jnp.asarray(z, draw.dtype)), z > 0, 0, draw))
