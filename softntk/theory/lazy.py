r"""When does a network leave its linearisation? Distances of function, weights and kernel along
gradient descent.

With an output scale s the network is f = sF and the loss ½ΣΣ(f−Y)²/s², so that the linearised
dynamics of f, with the kernel H of F, are the same for every s, and the weights move like 1/s: the
larger, the lazier.

With the width m, weights move like m^{-1/2} in units of their size, and what that does depends on
the activation. The second order of a smooth network is a sum of terms with the random signs of the
readout, without a mean (and exactly zero if the start is antisymmetric: F(w + δ, w − δ) is odd in
δ): function and kernel depart like m^{-1}. Across the kink of ReLU a unit is switched on where that
helps and off where it does not: the terms have a mean, and both depart like m^{-1/2}. In the scale
s a smooth antisymmetric network departs like s^{-2} (s^{-1} without the antisymmetry), and ReLU
like s^{-1}; its σ is an output scale too, as it is homogeneous.

Example:
    >>> import jax, jax.numpy as jnp, softntk as sn
    >>> from softntk.theory import lazy
    >>> net = sn.networks.two_layer("softmax", width=256, sigma=0.5)
    >>> x = jax.random.normal(jax.random.key(0), (8, 4)) / 2
    >>> _, params = net.init_fn(jax.random.key(1), (-1, 4))
    >>> run = lambda scale: lazy.distances(net, params, x, x[:, :1], learning_rate=0.1, steps=100, scale=scale)
    >>> bool(run(10.0).train[-1] < 0.1 * run(1.0).train[-1])
    True

Source: Chizat, Oyallon and Bach (2019), arXiv 1812.07956 (output scale); the exponents in width and
scale are ours.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from softntk import ntk
from softntk._core.records import record
from softntk._core.validation import (
    as_integers,
    check_integer,
    check_number,
    is_concrete,
)
from softntk._core.validation.on_host import Targets, as_targets, check_known
from softntk._linalg.norms import scaled_norm
from softntk.networks import Network, Parameters, Points
from softntk.solution import Result
from softntk.theory._arguments import as_points, check_network, check_parameters

_MAX_STEPS = 2**31 - 1
"""So many fit the counter on the device."""


@record
class Distances:
    """How far a network is from its linearisation after some steps; each [s], zero at the start.

    Attributes:
        at: the steps.
        train: ‖f − f_lin‖/‖f_lin − f(0)‖ on the training points, Frobenius norms.
        test: the same on the test points, or None.
        weights: ‖W − W(0)‖_F/‖W(0)‖_F.
        neuron: max_r ‖w_r − w_r(0)‖ in units of the root mean square of the ‖w_r(0)‖.
        kernel: ‖H − H(0)‖_F/‖H(0)‖_F on the training points.
        loss: ½ΣΣ(f−Y)², of the network; +inf beyond the largest number of the precision.
        linearised_loss: the same of its linearisation.
        result: DIVERGED where f is not finite in the end (distances are +inf then), an int32
            scalar.
    """

    at: Integer[Array, " s"]
    train: Float[Array, " s"]
    test: Float[Array, " s"] | None
    weights: Float[Array, " s"]
    neuron: Float[Array, " s"]
    kernel: Float[Array, " s"]
    loss: Float[Array, " s"]
    linearised_loss: Float[Array, " s"]
    result: Integer[Array, ""]


def distances(
    net: Network,
    params: Parameters,
    x: Points,
    y: Targets,
    *,
    learning_rate: float,
    steps: int,
    x_test: Float[Array | np.ndarray, "t d"] | None = None,
    at: Sequence[int] | Integer[Array | np.ndarray, " s"] | None = None,
    scale: float = 1.0,
) -> Distances:
    r"""Full-batch gradient descent beside its prediction by the empirical kernel at the start.

    f = sF with the loss ½ΣΣ(f−Y)²/s²:  f_lin(τ) = Y + (I − ηH(0))^τ (f(0) − Y), and on test points
    :func:`softntk.ntk.predict_gd`'s. H and f_lin do not depend on s if f(0) is zero.

    Args:
        net: a network of :func:`softntk.networks.two_layer`. All of its trained parameters move; W
            is its hidden weights.
        params: its weights at the start.
        x: training points, [n, d].
        y: targets, [n, k], or [n] for one output.
        learning_rate: η, below 2/λ_max(H) if descent is to converge.
        steps: number of steps.
        x_test: more points, [t, d].
        at: steps at which to measure, ascending, in [0, steps]; about ten between 1 and ``steps``
            if None. So many copies of the weights, and one kernel [n, n, k, k], are held.
        scale: s > 0.

    Returns:
        :class:`Distances`.

    Raises:
        ValueError: net no network, or params not of it; learning_rate, steps or scale not positive;
            ``at`` not ascending or outside of [0, steps]; points or targets of wrong shape or
            dtype, empty or not finite; points so large that the kernel at the start is not finite.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=64)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 3))
        >>> x = jax.random.normal(jax.random.key(1), (6, 3))
        >>> found = distances(net, params, x, x[:, :1], learning_rate=0.01, steps=50, at=[0, 5, 50])
        >>> found.train.shape, float(found.kernel[0]), bool(found.weights[2] > found.weights[1] > 0)
        ((3,), 0.0, True)

    Source: Chizat, Oyallon and Bach (2019), arXiv 1812.07956.
    """
    rate = check_number("learning_rate", learning_rate, above=0)
    scale = check_number("scale", scale, above=0)
    steps = check_integer("steps", steps, at_least=1, at_most=_MAX_STEPS)
    net = check_network("net", net)
    params = check_parameters("params", params, net)
    x = as_points("x", x, params)
    y = as_targets("y", y, x.shape[0], params.readout.shape[1])
    x_test = None if x_test is None else as_points("x_test", x_test, params)
    measured = _measured_steps(steps, at)
    known = jnp.asarray(measured)
    kernel = _finite_at_start("x", ntk.empirical(net, params, x))
    f0 = _finite_at_start("x", scale * net.apply_fn(params, x))
    line = ntk.predict_gd(kernel, y, rate, known, f0)
    gaps = jnp.asarray(np.diff(measured, prepend=0))
    path = _descend(
        net, params, x, y, gaps, jnp.asarray(rate, params.hidden.dtype), jnp.asarray(scale, y.dtype)
    )

    def relative(f: Array, line: Array, start: Array) -> Array:
        return jnp.where(known == 0, 0, _relative(f, line, start))  # at 0 both are rounding

    def outputs(points: Array) -> Array:
        return scale * lax.map(lambda p: net.apply_fn(p, points), path)

    f = outputs(x)
    test = None
    if x_test is not None:
        cross = _finite_at_start("x_test", ntk.empirical(net, params, x_test, x))
        start = _finite_at_start("x_test", scale * net.apply_fn(params, x_test))
        test = relative(
            outputs(x_test),
            ntk.predict_gd(kernel, y, rate, known, f0, cross=cross, f0_test=start),
            start,
        )
    moved = path.hidden - params.hidden[None]
    size = scaled_norm(params.hidden)
    neurons = jnp.max(scaled_norm(moved, axis=1), axis=1)
    losses = [0.5 * jnp.sum((out - y[None]) ** 2, axis=(1, 2)) for out in (f, line)]
    kernel_size = scaled_norm(kernel)
    changes = []
    finite = jnp.all(jnp.isfinite(f), axis=(1, 2)) & _finite_parameters(path)
    for i in range(len(measured)):
        # There is no kernel of parameters that are not finite: those at the start take their place.
        later = jax.tree.map(
            lambda leaf, first, i=i: jnp.where(finite[i], leaf[i], first), path, params
        )
        changes.append(_ratio(scaled_norm(ntk.empirical(net, later, x) - kernel), kernel_size))

    def bounded(values: Array) -> Array:
        return jnp.where(finite & jnp.isfinite(values), values, jnp.inf)

    return Distances(
        at=known,
        train=bounded(relative(f, line, f0)),
        test=None if test is None else bounded(test),
        weights=bounded(_ratio(scaled_norm(moved, axis=(1, 2)), size)),
        neuron=bounded(_ratio(neurons, size / math.sqrt(params.hidden.shape[1]))),
        kernel=bounded(jnp.stack(changes)),
        loss=bounded(losses[0]),
        linearised_loss=bounded(losses[1]),
        result=jnp.where(finite[-1], Result.SUCCESSFUL, Result.DIVERGED).astype(jnp.int32),
    )


def _finite_parameters(path: Parameters) -> Bool[Array, " s"]:
    """Return at which steps all of the parameters are finite."""
    flags = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(path)
    ]
    return jnp.all(jnp.stack(flags), axis=0)


def _finite_at_start(name: str, values: Array) -> Array:
    """Refuse points that the network at the start makes infinities of."""
    if is_concrete(values) and not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError(
            f"{name} must have finite outputs and a finite kernel at params in {values.dtype}, got others. Take points (or "
            "weights) in another unit."
        )
    return values


def _measured_steps(steps: int, at: Any) -> np.ndarray:
    if at is None:
        return np.unique(np.round(np.geomspace(1, steps, 10)).astype(np.int32))
    check_known("at", at)
    wanted = f"at must hold ascending integers between 0 and steps = {steps}, got "
    try:
        measured = np.asarray(as_integers("at", at, ("s",)))
    except ValueError as error:
        raise ValueError(f"{wanted}{at!r}: {error}") from None
    if (
        not measured.size
        or measured[0] < 0
        or measured[-1] > steps
        or np.any(np.diff(measured) <= 0)
    ):
        raise ValueError(f"{wanted}{measured.tolist()}.")
    return measured.astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _descend(
    net: Network,
    params: Parameters,
    x: Array,
    y: Array,
    gaps: Integer[Array, " s"],
    learning_rate: Array,
    scale: Array,
) -> Parameters:
    """The parameters after each gap of steps, stacked."""

    def loss(p: Parameters) -> Array:
        return 0.5 * jnp.sum((net.apply_fn(p, x) - y / scale) ** 2)

    def step(_: Array, p: Parameters) -> Parameters:
        return jax.tree.map(lambda leaf, slope: leaf - learning_rate * slope, p, jax.grad(loss)(p))

    def leg(p: Parameters, gap: Array) -> tuple[Parameters, Parameters]:
        p = lax.fori_loop(0, gap, step, p)
        return p, p

    return lax.scan(leg, params, gaps)[1]


def _ratio(part: Float[Array, "*s"], whole: Float[Array, ""]) -> Float[Array, "*s"]:
    """Return part/whole, zero for nothing and +inf for something of nothing."""
    return jnp.where(
        part == 0, 0, jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), jnp.inf)
    )


def _relative(
    f: Float[Array, "s n k"], line: Float[Array, "s n k"], start: Float[Array, "n k"]
) -> Float[Array, " s"]:
    """Return ‖f − line‖/‖line − start‖ of each step."""
    gap = scaled_norm(f - line, axis=(1, 2))
    moved = scaled_norm(line - start[None], axis=(1, 2))
    return gap / jnp.where(moved > 0, moved, 1)
