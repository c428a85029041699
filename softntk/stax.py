r"""Layers for deep infinite networks: ``neural_tangents.stax`` with softmax and its family.

``from softntk import stax`` has every layer of ``neural_tangents.stax``, and the layers that it
lacks: :func:`Softmax`, :func:`ResSoftmax`, :func:`NormalizedActivation`, :func:`CRReLU`,
:func:`Threshold`. Each is a triple ``(init_fn, apply_fn, kernel_fn)`` that composes with all
others, under masks, batching and ``nt.predict``.

A softmax over m units tends to zero as m grows; m times it does not. Its normaliser m⁻¹ Σ e^z
concentrates on E[e^z] = e^{q/2}, so that the layer acts as e^{z − q/2}, and the kernels (Σ, Θ) of
its Gaussian input become

    Σ ↦ e^{q12},    Θ ↦ Θ e^{q12}.

In general φ = u/E[u] gives E[φφ'] and Θ E[φ̇φ̇'] with the moments of :mod:`softntk.activations`.
Two conventions differ from :func:`softntk.networks.two_layer`: ``Dense`` has W_std = σ√d for our σ,
and differentiates by the unscaled weight, which multiplies the first layer's part of the NTK by σ².

The fixed point of a deep stack, q = W_std² e^q + b_std², exists only for small weights
(W_std² ≤ 1/e without bias). For larger ones the kernels of deep softmax networks explode, and a
finite width must be much larger than e^q.

Example:
    >>> import jax
    >>> from softntk import stax
    >>> _, _, kernel_fn = stax.serial(stax.Dense(512, W_std=0.5), stax.Softmax(), stax.Dense(1))
    >>> x = jax.numpy.eye(3)
    >>> nngp = kernel_fn(x, None, "nngp")  # e^{q12} with q = 0.25/3 on the diagonal
    >>> [round(float(entry), 4) for entry in nngp[0]]
    [1.0869, 1.0, 1.0]

Source: arXiv 2405.03251 (the scaling, two layers); MATHEMATICS.md#depth (the deep recursion).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk import activations, nt
from softntk._core.validation import as_floating, check_integer, check_number, is_concrete
from softntk.activations import Activation

# isort: split
# Everything that neural_tangents has, once softntk.nt has made it importable.
from neural_tangents.stax import (  # noqa: F401
    ABRelu,
    Abs,
    Aggregate,
    AggregateImplementation,
    AttentionMechanism,
    AvgPool,
    Bool,
    Conv,
    ConvLocal,
    ConvTranspose,
    Cos,
    Dense,
    Diagonal,
    DotGeneral,
    Dropout,
    Elementwise,
    ElementwiseNumerical,
    Erf,
    Exp,
    ExpNormalized,
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    Flatten,
    Gabor,
    Gaussian,
    Gelu,
    GlobalAvgPool,
    GlobalSelfAttention,
    GlobalSumPool,
    Hermite,
    Identity,
    ImageResize,
    Index,
    LayerNorm,
    LeakyRelu,
    MaskedArray,
    Monomial,
    Padding,
    Polynomial,
    PositionalEmbedding,
    Rbf,
    RectifiedMonomial,
    Relu,
    Sigmoid_like,
    Sign,
    Sin,
    Slice,
    SumPool,
    layer,
    parallel,
    repeat,
    requires,
    serial,
    supports_masking,
    unmask_fn,
)

Layer = tuple[Callable, Callable, Callable]
# nt.Kernel, a class that is made at run time.
_Kernel = Any

# Rounding errors, in units of the largest variance, that may make a variance negative.
_VARIANCE_ULPS = 16


def Softmax(temperature: float | jax.Array = 1.0, channel_axis: int = -1) -> Layer:
    r"""Make softmax over the channels, times their number: C softmax(z / T).

    Use it as a nonlinearity between affine layers. For infinitely many channels

        Σ ↦ e^{q12/T²},    Θ ↦ Θ e^{q12/T²} / T².

    Args:
        temperature: T > 0.
        channel_axis: the axis of the features, as of the layers before.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``. The input must be Gaussian, that is follow ``Dense``,
        ``Conv`` or the like.

    Raises:
        ValueError: temperature not positive; from ``init_fn`` and ``apply_fn``, outside of jit: a
            single channel; from ``kernel_fn``, whose channels are infinitely many: an input that is
            not Gaussian or has its channels elsewhere, a variance that is negative or not finite.

    Example:
        >>> import jax
        >>> from softntk import stax
        >>> init_fn, apply_fn, _ = stax.serial(stax.Dense(4), stax.Softmax())
        >>> _, params = init_fn(jax.random.key(0), (-1, 3))
        >>> float(apply_fn(params, jax.numpy.ones((1, 3))).mean())
        1.0

    Source: arXiv 2405.03251 for two layers; MATHEMATICS.md#depth for the recursion.
    """
    temperature = check_number("temperature", temperature, above=0)
    exp = activations.get("exp")
    return _layer("Softmax", exp, normalized=True, scale=1 / temperature, channel_axis=channel_axis)


def ResSoftmax(channel_axis: int = -1) -> Layer:
    r"""Make the layer of both papers: C (e^z + z) / Σ (e^z + z) over the channels.

    Use it for softmax with a residual connection. For infinitely many channels, with
    r = e^{−q11/2} + e^{−q22/2} + e^{−(q11+q22)/2},

        Σ ↦ e^{q12} + q12 r,    Θ ↦ Θ (e^{q12} + r).

    Args:
        channel_axis: the axis of the features.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``; see :func:`Softmax`. The sum may vanish for a finite
        width: where it is lost in rounding, the output is +inf, never NaN.

    Raises:
        ValueError: as of :func:`Softmax`.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.ResSoftmax(), stax.Dense(1))

    Source: arXiv 2309.13482 (e^z + z, normalized), 2405.03251 (over hidden units).
    """
    return _layer(
        "ResSoftmax", activations.get("res_exp"), normalized=True, channel_axis=channel_axis
    )


def NormalizedActivation(activation: str | Activation, channel_axis: int = -1) -> Layer:
    r"""Make C u(z) / Σ u(z) over the channels, for any activation of positive mean.

    Use it for an activation without a layer of its own here. For infinitely many channels it acts
    as φ = u / E[u].

    Args:
        activation: a name or an :class:`~softntk.activations.Activation`.
        channel_axis: the axis of the features.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``; see :func:`ResSoftmax`.

    Raises:
        ValueError: an unknown name; E[u] = 0 (erf, sinh, identity), where the sum does not
            concentrate; a variance of zero where u(0) = 0 (relu); and as of :func:`Softmax`.

    Example:
        >>> from softntk import stax
        >>> cosh = stax.NormalizedActivation("cosh")
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), cosh, stax.Dense(1))

    Source: MATHEMATICS.md#gaussian-moments.
    """
    activation = activations.get(activation)
    return _layer(
        f"NormalizedActivation({activation.name})",
        activation,
        normalized=True,
        channel_axis=channel_axis,
    )


def CRReLU(epsilon: float | jax.Array = 0.01) -> Layer:
    r"""Make the layer max(0, z) + ε z e^{−z²/2}.

    Use it in place of ``Relu`` where units must not stop learning on the negative side.

    Args:
        epsilon: ε.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``, with closed forms.

    Raises:
        ValueError: ε not finite; from ``kernel_fn``: an input that is not Gaussian, a variance
            negative or not a number.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.CRReLU(), stax.Dense(1))

    Source: see :func:`softntk.activations.crrelu`.
    """
    return _layer("CRReLU", activations.crrelu(epsilon), normalized=False)


def Threshold() -> Layer:
    r"""Make the layer that is 1 where z > 0, else 0.

    Its kernels are Σ ↦ (π − θ) / 2π and Θ ↦ 0. Use it for random binary features: only the layers
    behind it train.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``.

    Raises:
        ValueError: as of :func:`CRReLU`.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.Threshold(), stax.Dense(1))

    Source: Cho and Saul (2009), the arc-cosine kernel of order 0.
    """
    return _layer("Threshold", activations.get("threshold"), normalized=False)


def _layer(
    name: str,
    activation: Activation,
    *,
    normalized: bool,
    scale: float | jax.Array | None = None,
    channel_axis: int = -1,
) -> Layer:
    """Make the layer u(scale · z), or C u / Σ u over the channels if normalized.

    Args:
        name: of the layer, in messages.
        activation: u.
        normalized: divide by the mean over the channels.
        scale: of the input; None: 1, without a multiplication.
        channel_axis: the axis of the channels.
    """
    # 1. Refuse an activation without a limit at once, and not at the first kernel.
    if normalized:
        activation.limit(*jnp.ones(3), normalized=True)
    channel_axis = check_integer(f"channel_axis of {name}", channel_axis)

    # 2. The functions of a finite width.
    def init_fn(rng: object, input_shape: object) -> tuple[Any, tuple]:
        if not isinstance(input_shape, list | tuple):
            raise ValueError(
                f"input_shape of {name} must be a tuple of integers, got {input_shape!r}."
            )
        _check_channels(rng, tuple(input_shape))
        return input_shape, ()

    def apply_fn(params: object, inputs: Array, **kwargs: Any) -> Array:
        if not normalized:
            return activation.u(inputs)
        _check_channels(inputs, inputs.shape)
        z = jnp.moveaxis(inputs if scale is None else scale * inputs, channel_axis, -1)
        return jnp.moveaxis(z.shape[-1] * activations.normalize(activation, z), -1, channel_axis)

    def _check_channels(argument: object, shape: tuple[int, ...]) -> None:
        """Refuse a shape without an axis of channels, or with one channel."""
        if normalized and not (-len(shape) < channel_axis < len(shape) and channel_axis):
            raise ValueError(
                f"{name} normalizes over channel_axis {channel_axis}, which is no axis of channels "
                f"of the shape {tuple(shape)}."
            )
        # neural_tangents traces both functions for the shapes of a kernel, whose layers may have
        # any width, one for example.
        if normalized and is_concrete(argument) and shape[channel_axis] < 2:
            raise ValueError(
                f"{name} needs at least two channels: over one it is the constant 1. Got the shape "
                f"{tuple(shape)}."
            )

    # 3. The function of infinite width, with what it requires of the kernel before it.
    channels = {"channel_axis": channel_axis} if normalized else {}
    kernel_requirements: dict[str, Any] = {"diagonal_spatial": Diagonal(), **channels}

    def kernel_fn(k: _Kernel, **kwargs: Any) -> _Kernel:
        _check_kernel(name, k, activation if normalized else None)
        scaled_kernel = k if scale is None else k * scale
        return _propagate(activation, normalized, scaled_kernel).replace(is_gaussian=False)

    # 4. Let neural_tangents add masks; it shows the names in messages.
    def make() -> Layer:
        return init_fn, apply_fn, requires(**kernel_requirements)(kernel_fn)

    kernel_fn.__name__ = kernel_fn.__qualname__ = make.__name__ = name
    masked_init, masked_apply, masked_kernel = layer(supports_masking(remask_kernel=True)(make))()

    @functools.wraps(masked_apply)
    def apply_converted(params: object, inputs: Any, **kwargs: Any) -> Any:
        # Converted before neural_tangents applies masks, which takes the shape of any argument.
        converted_inputs: Any = inputs if isinstance(inputs, MaskedArray) else _as_inputs(inputs)
        return masked_apply(params, converted_inputs, **kwargs)

    return masked_init, apply_converted, masked_kernel


def _as_inputs(inputs: object) -> Array:
    """Return an array of floating-point numbers, of any shape and finite or not."""
    return as_floating("inputs", inputs, finite=False, empty=True)


def _check_kernel(name: str, kernel: _Kernel, normalized: Activation | None) -> None:
    """Refuse a kernel that is not of a Gaussian input, or outside of the domain of the layer.

    Args:
        name: of the layer.
        kernel: before the layer.
        normalized: the activation, if the layer normalizes it.
    """
    if not kernel.is_gaussian:
        raise ValueError(
            f"{name} needs a Gaussian input: put a random affine layer (Dense, Conv, …) before it."
        )
    # Traced variances cannot be looked at. Masked positions have variances of zero.
    has_mask = kernel.mask1 is not None or kernel.mask2 is not None
    for variances in filter(is_concrete, nt.variances(kernel)):
        values = np.asarray(variances)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} got a kernel that is not finite: look at the inputs, or at what the "
                "layers before made."
            )
        max_modulus = max(1.0, float(np.abs(values).max()))
        rounding_error = _VARIANCE_ULPS * float(jnp.finfo(values.dtype).eps) * max_modulus
        if values.min() < -rounding_error:
            raise ValueError(
                f"{name} got a negative variance, {values.min():.3g}: the kernel is not positive "
                "semidefinite."
            )
        if normalized is None or has_mask or values.min() > 0:
            continue
        if _mean_at_zero(normalized) == 0:
            raise ValueError(
                f"{name} got a variance of zero, where all of u vanishes and cannot be normalized: "
                "a point of zeros, perhaps. Give the layer before it a bias (b_std)."
            )


def _mean_at_zero(activation: Activation) -> float:
    """Return E[u] at a variance of zero, u(0)."""
    with jax.ensure_compile_time_eval():
        return float(activation.moments.mean(jnp.zeros(()), 0.0))


def _propagate(activation: Activation, normalized: bool, kernel: _Kernel) -> _Kernel:
    """Return the kernel behind the layer, for any layout of the kernel before it."""
    # Variances of the first and of the second point, broadcasting against each covariance.
    variances1, variances12, variances2 = nt.diagonal_outer_products(
        kernel, lambda first, second: (first, second)
    )

    def evaluate_limit(covariance: Array, variances: tuple) -> tuple[Array, Array]:
        return activation.limit(variances[0], covariance, variances[1], normalized)

    # Covariances of the points with themselves and with each other; Θ is multiplied by E[φ̇φ̇'].
    cov1 = evaluate_limit(kernel.cov1, variances1)[0]
    cov2 = None if kernel.cov2 is None else evaluate_limit(kernel.cov2, variances2)[0]
    nngp, derivative_kernel = evaluate_limit(kernel.nngp, variances12)
    ntk = None if kernel.ntk is None else activations.chain(kernel.ntk, derivative_kernel)
    return kernel.replace(cov1=cov1, cov2=cov2, nngp=nngp, ntk=ntk)
