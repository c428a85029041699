r"""What depth does to kernels: the recursion through infinitely wide layers, its fixed points and
their stability.

A layer takes pre-activations of variances q11, q22 and covariance q12, and the kernel Θ of all
layers before it, to

    q12 ↦ σ_w² E[φφ'] + σ_b²,    Θ ↦ q12(new) + σ_w² E[φ̇φ̇'] Θ,

with φ = u, or u/E[u] normalized: ``Dense(W_std=σ_w, b_std=σ_b)`` behind an activation, in
neural_tangents' parameterization.

Two points of equal variance q* = V(q*) keep it, and their correlation moves by c ↦ C(c). Its slope
at c = 1, χ = σ_w² E[φ̇²], decides: below one, near points grow together (ordered), above, apart
(chaotic); the correlation comes to rest at c*, up to e^{−l/ξ} after l layers, ξ = −1/log C'(c*):
depths far beyond ξ do not tell inputs apart and do not train.

For softmax V(q) = σ_w² e^q + σ_b² has a fixed point if and only if σ_w² ≤ e^{−1−σ_b²}; it comes to
rest at the lower one, q* = σ_b² − W(−σ_w² e^{σ_b²}) with Lambert's function, where χ = V'(q*) = q*
− σ_b² ≤ 1: **a deep softmax network is never chaotic**. It is ordered or it explodes.

Example:
    >>> import softntk as sn
    >>> found = sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.3, bias_variance=0.0)
    >>> bool(found.exists), round(float(found.variance), 4), round(float(found.slope), 4)  # q* = χ, as σ_b = 0
    (True, 0.4894, 0.4894)

Source: Poole et al. (2016) and Schoenholz et al. (2017) for the method; MATHEMATICS.md#depth for
the softmax recursion.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk import activations
from softntk._core.records import record
from softntk._core.validation import (
    as_scalars,
    check_count,
    check_flag,
    is_concrete,
)
from softntk.activations import Activation
from softntk.ntk._depth_recursion import Recursion, correlation_at_rest, variance_at_rest

Scalars = Float[Array, "..."]
Values = float | np.floating | list[float] | Float[Array | np.ndarray, "..."]


@record
class Propagation:
    """Kernels of pre-activations behind 0, 1, …, L layers, along the first axis.

    Attributes:
        variance1: q11.
        covariance: q12, the NNGP of the network that ends there.
        variance2: q22.
        ntk: Θ.
    """

    variance1: Float[Array, "layers ..."]
    covariance: Float[Array, "layers ..."]
    variance2: Float[Array, "layers ..."]
    ntk: Float[Array, "layers ..."]


@record
class FixedPoint:
    """Where the variance of a deep stack comes to rest, and the correlation of two inputs. +inf
    where it does not.

    Attributes:
        exists: whether it does, from 1 or, if that explodes, from 0.
        variance: q*.
        variance_slope: V'(q*).
        slope: χ = σ_w² E[φ̇²], the factor by which a layer multiplies the squared distance of near
            points, and gradients.
        correlation: c*, from c = ½.
        correlation_slope: C'(c*).
    """

    exists: Bool[Array, "..."]
    variance: Scalars
    variance_slope: Scalars
    slope: Scalars
    correlation: Scalars
    correlation_slope: Scalars

    @property
    def depth_scale(self) -> Scalars:
        """ξ = −1/log C'(c*), in layers; +inf at criticality, zero where one layer is enough or
        there is no fixed point.
        """
        slope = self.correlation_slope
        inside = (slope > 0) & (slope < 1)
        return jnp.where(
            inside, -1 / jnp.log(jnp.where(inside, slope, 0.5)), jnp.where(slope == 1, jnp.inf, 0)
        )


def propagate(
    activation: str | Activation,
    q11: Values,
    q12: Values,
    q22: Values,
    depth: int,
    *,
    normalized: bool,
    weight_variance: Values,
    bias_variance: Values = 0.0,
) -> Propagation:
    r"""Return the kernels behind each of ``depth`` layers.

    Args:
        activation: u, by name or itself.
        q11: variance of the first pre-activation at the first point: σ_w²|x|²/d + σ_b² for
            neural_tangents.
        q12: covariance.
        q22: variance at the second point; all three broadcast.
        depth: L.
        normalized: φ = u/E[u].
        weight_variance: σ_w².
        bias_variance: σ_b².

    Returns:
        A :class:`Propagation`, [L + 1, …] each; Θ starts as q12. Kernels that explode saturate;
        where a layer has no limit (normalized relu at q = 0) they are +inf from there on.

    Raises:
        ValueError: an unknown activation, depth not positive, normalized with E[u] = 0, a variance
            negative or not finite, a covariance beyond √(q11 q22).

    Example:
        >>> found = propagate("exp", 1.0, 0.0, 1.0, 2, normalized=True, weight_variance=0.3)
        >>> [round(float(v), 3) for v in found.variance1]  # q ↦ 0.3 e^q
        [1.0, 0.815, 0.678]

    Source: MATHEMATICS.md#depth.
    """
    activation = activations.get(activation)
    depth = check_count("depth", depth)
    normalized = check_flag("normalized", normalized)
    q11, q12, q22, weight, bias = _arrays(
        q11=q11, q12=q12, q22=q22, weight_variance=weight_variance, bias_variance=bias_variance
    )
    _check_covariance(q11, q12, q22)

    def layer(state: tuple, _: None) -> tuple[tuple, tuple]:
        q11, q12, q22, ntk = state
        value, slope = activation.limit(q11, q12, q22, normalized)
        new1, new2 = (
            _affine(activation.limit(q, q, q, normalized)[0], q, weight, bias) for q in (q11, q22)
        )
        new = _affine(value, jnp.maximum(q11, q22), weight, bias)
        state = (new1, new, new2, new + weight * activations.chain(ntk, slope))
        return state, state

    start = (q11, q12, q22, q12)
    layers = lax.scan(layer, start, length=depth)[1]
    found = [
        jnp.concatenate([first[None], rest]) for first, rest in zip(start, layers, strict=True)
    ]
    return Propagation(variance1=found[0], covariance=found[1], variance2=found[2], ntk=found[3])


def fixed_point(
    activation: str | Activation,
    *,
    normalized: bool,
    weight_variance: Values,
    bias_variance: Values = 0.0,
    max_steps: int = 5000,
) -> FixedPoint:
    r"""Return where V, iterated from q = 1 or else from q = 0, comes to rest, and how stable it is
    there.

    Where V is increasing (exp, relu, erf, …) its iterates from 0 rise to the smallest fixed point
    there is. Close to criticality they move like 1/steps, and c*, which is iterated only, is then
    not exact.

    Args:
        activation: u, by name or itself.
        normalized: φ = u/E[u].
        weight_variance: σ_w²; broadcasts with
        bias_variance: σ_b².
        max_steps: of the iteration; what Newton's method then adds is exact but at criticality.

    Returns:
        A :class:`FixedPoint` of arrays of the broadcast shape. What exists has derivatives in the
        variances, and in an ε of
        crrelu: those of the equations that it solves. At criticality, where that of q* is infinite,
            it is a large number.

    Raises:
        ValueError: an unknown activation, max_steps not positive, normalized with E[u] = 0, a
            variance negative or not finite.

    Example:
        >>> grid = fixed_point("exp", normalized=True, weight_variance=[0.2, 0.36, 0.38])  # 1/e = 0.3679
        >>> grid.exists.tolist()
        [True, True, False]

    Source: see the module.
    """
    activation = activations.get(activation)
    max_steps = check_count("max_steps", max_steps)
    normalized = check_flag("normalized", normalized)
    weight, bias = _arrays(weight_variance=weight_variance, bias_variance=bias_variance)

    recursion = Recursion(activation, normalized, weight, bias)
    q, exists = variance_at_rest(recursion, max_steps)
    c = correlation_at_rest(recursion, q, exists, max_steps)

    def known(value: Scalars) -> Scalars:
        return jnp.where(exists, value, jnp.inf)

    return FixedPoint(
        exists=exists,
        variance=known(q),
        variance_slope=known(recursion.variance_slope(q)),
        slope=known(recursion.slope(q)),
        correlation=known(c),
        correlation_slope=known(recursion.correlation(q, c)[1]),
    )


def _affine(value: Scalars, q: Scalars, weight: Scalars, bias: Scalars) -> Scalars:
    """Return σ_w² E[φφ'] + σ_b²; +inf where there was no E[φφ'], or no variance q before."""
    outside = jnp.isposinf(value) | jnp.isposinf(q)
    return jnp.where(outside, jnp.inf, weight * jnp.where(outside, 0, value) + bias)


def _arrays(**values: Values) -> list[Array]:
    """Return the numbers, broadcast and of one floating-point dtype; all but q12 are variances."""
    arrays = as_scalars(**values)
    for (name, value), array in zip(values.items(), arrays, strict=True):
        if (
            name != "q12"
            and is_concrete(array)
            and not np.all((np.asarray(array) >= 0) & np.isfinite(np.asarray(array)))
        ):
            raise ValueError(f"{name} must be a finite variance, zero or positive, got {value}.")
    # All of them vary over a mesh if one does, as the carry of a loop must.
    missing = jnp.any(jnp.stack(jnp.broadcast_arrays(*map(jnp.isnan, arrays))), axis=0)
    return [jnp.where(missing, jnp.nan, array) for array in arrays]


def _check_covariance(q11: Scalars, q12: Scalars, q22: Scalars) -> None:
    if not all(map(is_concrete, (q11, q12, q22))):
        return
    a, c, b = (np.asarray(q, np.float64) for q in (q11, q12, q22))
    largest = np.sqrt(a) * np.sqrt(b)
    if not np.all(np.abs(c) <= (1 + 1e-3) * largest + float(jnp.finfo(q12.dtype).tiny)):
        raise ValueError(
            "q12 must be a covariance, between −√(q11 q22) and √(q11 q22), got one beyond, or not a number."
        )
