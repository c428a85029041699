r"""Kernels of deep, infinitely wide networks: the recursion through layers and its fixed points.

    symbol          meaning
    q11, q22, q12   variances of the pre-activations of two points, and their covariance
    Θ               the NTK of all layers so far
    u, φ            the activation; φ = u, or u/E[u] if normalized
    σ_w², σ_b²      variances of weights and biases
    V(q), C(c)      variance and correlation after the next layer
    χ               slope of C at c = 1, σ_w² E[φ̇²]

A layer is an activation followed by ``Dense(W_std=σ_w, b_std=σ_b)`` in the parameterization of
neural_tangents. It maps

    q12 ↦ σ_w² E[φφ'] + σ_b²,    Θ ↦ q12(new) + σ_w² E[φ̇φ̇'] Θ.

Two points whose variance is the fixed point q* = V(q*) keep it, and their correlation follows c ↦
C(c). If χ < 1, nearby points approach each other (ordered); if χ > 1, they separate (chaotic). The
correlation converges to c*, with an error like e^{−l/ξ} after l layers, ξ = −1/log C'(c*). Networks
much deeper than ξ do not distinguish inputs, and do not train.

For softmax, V(q) = σ_w² e^q + σ_b² has a fixed point if and only if σ_w² ≤ e^{−1−σ_b²}. Iteration
converges to the lower one, q* = σ_b² − W(−σ_w² e^{σ_b²}) with Lambert's function, where χ = V'(q*)
= q* − σ_b² ≤ 1. So **a deep softmax network is never chaotic**: it is ordered or it explodes.

Example:
    >>> import softntk as sn
    >>> fixed = sn.ntk.fixed_point("exp", normalized=True, weight_variance=0.3, bias_variance=0.0)
    >>> bool(fixed.exists)
    True
    >>> round(float(fixed.variance), 4), round(float(fixed.slope), 4)  # q* = χ, as σ_b = 0
    (0.4894, 0.4894)

Source: Poole et al. (2016) and Schoenholz et al. (2017) for the method; MATHEMATICS.md#depth for
the softmax recursion.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk import activations
from softntk._core.records import record
from softntk._core.shared_programs import evaluate_shared
from softntk._core.validation import (
    as_scalars,
    check_count,
    check_flag,
    is_concrete,
)
from softntk.activations import Activation
from softntk.ntk._depth_recursion import Recursion, fixed_correlation, fixed_variance

Scalars = Float[Array, "..."]
Values = float | np.floating | list[float] | Float[Array | np.ndarray, "..."]


@record
class Propagation:
    """Kernels of pre-activations after 0, 1, …, L layers, along the first axis.

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
    """The fixed points of variance and correlation in a deep stack; +inf where there is none.

    Attributes:
        exists: whether V, iterated from q = 1 or, if that explodes, from 0, reaches a fixed point.
        variance: q*.
        variance_slope: V'(q*).
        slope: χ = σ_w² E[φ̇²], the factor by which a layer multiplies the squared distance of
            nearby points, and of gradients.
        correlation: c*, the limit of C iterated from c = ½.
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
        """ξ = −1/log C'(c*), in layers.

        +inf at criticality; zero where one layer is enough, or there is no fixed point.
        """
        # A slope outside of (0, 1) has no logarithm to use: criticality, or convergence at once.
        slope = self.correlation_slope
        is_finite = (slope > 0) & (slope < 1)
        return jnp.where(
            is_finite,
            -1 / jnp.log(jnp.where(is_finite, slope, 0.5)),
            jnp.where(slope == 1, jnp.inf, 0),
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
    r"""Return the kernels after each of ``depth`` layers.

    Use it to see how kernels change with depth; :func:`fixed_point` gives their limit.

    Args:
        activation: u, an activation or its name.
        q11: variance of the first pre-activation at the first point; in the parameterization of
            neural_tangents σ_w²|x|²/d + σ_b².
        q12: covariance of the two points.
        q22: variance at the second point; all three broadcast.
        depth: L, the number of layers.
        normalized: whether φ = u/E[u].
        weight_variance: σ_w².
        bias_variance: σ_b².

    Returns:
        A :class:`Propagation`, [L + 1, …] each; Θ starts as q12. Kernels that explode saturate;
        where a layer has no limit (normalized relu at q = 0) they are +inf from there on.

    Raises:
        ValueError: an unknown activation, depth not positive, normalized with E[u] = 0, a variance
            negative or not finite, a covariance beyond √(q11 q22).

    Example:
        >>> kernels = propagate("exp", 1.0, 0.0, 1.0, 2, normalized=True, weight_variance=0.3)
        >>> [round(float(v), 3) for v in kernels.variance1]  # q ↦ 0.3 e^q
        [1.0, 0.815, 0.678]

    Source: MATHEMATICS.md#depth.
    """
    activation = activations.get(activation)
    depth = check_count("depth", depth)
    normalized = check_flag("normalized", normalized)
    q11, q12, q22, weight, bias = _as_parameters(
        q11=q11, q12=q12, q22=q22, weight_variance=weight_variance, bias_variance=bias_variance
    )
    _check_covariance(q11, q12, q22)

    # 1. One layer: both variances, the covariance and the NTK.
    def apply_layer(state: tuple, _: None) -> tuple[tuple, tuple]:
        q11, q12, q22, ntk = state
        value, slope = activation.limit(q11, q12, q22, normalized)
        new_variance1, new_variance2 = (
            _affine(activation.limit(q, q, q, normalized)[0], q, weight, bias) for q in (q11, q22)
        )
        new_covariance = _affine(value, jnp.maximum(q11, q22), weight, bias)
        state = (
            new_variance1,
            new_covariance,
            new_variance2,
            new_covariance + weight * activations.chain(ntk, slope),
        )
        return state, state

    # 2. All layers, with the first pre-activations in front.
    def apply_layers(*initial_state: Array) -> list[Array]:
        layer_states = lax.scan(apply_layer, initial_state, length=depth)[1]
        return [
            jnp.concatenate([initial[None], later])
            for initial, later in zip(initial_state, layer_states, strict=True)
        ]

    kernels = evaluate_shared(apply_layers, q11, q12, q22, q12)
    return Propagation(
        variance1=kernels[0], covariance=kernels[1], variance2=kernels[2], ntk=kernels[3]
    )


def fixed_point(
    activation: str | Activation,
    *,
    normalized: bool,
    weight_variance: Values,
    bias_variance: Values = 0.0,
    max_steps: int = 5000,
) -> FixedPoint:
    r"""Return the fixed points of variance and correlation of a deep stack, and their stability.

    Use it to choose the variances of weights and biases. V is iterated from q = 1 and, if that
    explodes, from q = 0.

    Where V is increasing (exp, relu, erf, …) its iterates from 0 rise to the smallest fixed point
    there is. Close to criticality they move like 1/steps, and c*, which is iterated only, is then
    not exact.

    Args:
        activation: u, an activation or its name.
        normalized: whether φ = u/E[u].
        weight_variance: σ_w².
        bias_variance: σ_b²; the two broadcast.
        max_steps: largest number of iterations; Newton's method then makes q* exact, except at
            criticality.

    Returns:
        A :class:`FixedPoint` of arrays of the broadcast shape. Fixed points have implicit
        derivatives in the variances, and in ε of crrelu. At criticality, where the derivative of q*
        is infinite, it is a large number.

    Raises:
        ValueError: an unknown activation, max_steps not positive, normalized with E[u] = 0, a
            variance negative or not finite.

    Example:
        >>> weights = [0.2, 0.36, 0.38]  # the last is above 1/e = 0.3679
        >>> grid = fixed_point("exp", normalized=True, weight_variance=weights)
        >>> grid.exists.tolist()
        [True, True, False]

    Source: see the module.
    """
    activation = activations.get(activation)
    max_steps = check_count("max_steps", max_steps)
    normalized = check_flag("normalized", normalized)
    weight, bias = _as_parameters(weight_variance=weight_variance, bias_variance=bias_variance)

    def compute(weight: Array, bias: Array) -> FixedPoint:
        # 1. The fixed points of variance and correlation.
        recursion = Recursion(activation, normalized, weight, bias)
        q, exists = fixed_variance(recursion, max_steps)
        c = fixed_correlation(recursion, q, exists, max_steps)

        # 2. Their slopes; infinity where there is no fixed point.
        def mask_missing(value: Scalars) -> Scalars:
            return jnp.where(exists, value, jnp.inf)

        return FixedPoint(
            exists=exists,
            variance=mask_missing(q),
            variance_slope=mask_missing(recursion.variance_slope(q)),
            slope=mask_missing(recursion.slope(q)),
            correlation=mask_missing(c),
            correlation_slope=mask_missing(recursion.correlation(q, c)[1]),
        )

    return evaluate_shared(compute, weight, bias)


def _affine(value: Scalars, q: Scalars, weight: Scalars, bias: Scalars) -> Scalars:
    """Return σ_w² E[φφ'] + σ_b²; +inf where E[φφ'] or the variance q before is infinite."""
    is_infinite = jnp.isposinf(value) | jnp.isposinf(q)
    return jnp.where(is_infinite, jnp.inf, weight * jnp.where(is_infinite, 0, value) + bias)


def _as_parameters(**values: Values) -> list[Array]:
    """Return the numbers, broadcast and of one floating-point dtype, the variances checked."""
    arrays = as_scalars(**values)
    for (name, value), array in zip(values.items(), arrays, strict=True):
        if (
            name != "q12"
            and is_concrete(array)
            and not np.all((np.asarray(array) >= 0) & np.isfinite(np.asarray(array)))
        ):
            raise ValueError(f"{name} must be a finite variance, zero or positive, got {value}.")
    # All of them must vary over a mesh if one does, because they become the carry of a loop.
    is_nan = jnp.any(jnp.stack(jnp.broadcast_arrays(*map(jnp.isnan, arrays))), axis=0)
    return [jnp.where(is_nan, jnp.nan, array) for array in arrays]


def _check_covariance(q11: Scalars, q12: Scalars, q22: Scalars) -> None:
    """Raise if q12 is larger than √(q11 q22), up to rounding."""
    if not all(map(is_concrete, (q11, q12, q22))):
        return
    # √q11 √q22 instead of the root of the product, which may overflow.
    variance1, covariance, variance2 = (np.asarray(q, np.float64) for q in (q11, q12, q22))
    max_covariance = np.sqrt(variance1) * np.sqrt(variance2)
    if not np.all(
        np.abs(covariance) <= (1 + 1e-3) * max_covariance + float(jnp.finfo(q12.dtype).tiny)
    ):
        raise ValueError(
            "q12 must be a covariance, between −√(q11 q22) and √(q11 q22), "
            "got one beyond, or not a number."
        )
