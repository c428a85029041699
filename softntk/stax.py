r"""Layers for deep infinite networks: ``neural_tangents.stax`` with softmax and its family.

``from softntk import stax`` has every layer of ``neural_tangents.stax``, and the layers that it
lacks: :func:`Softmax`, :func:`ResSoftmax`, :func:`NormalizedActivation`, :func:`PlainActivation`,
:func:`CRReLU`, :func:`Threshold`. Each is a triple ``(init_fn, apply_fn, kernel_fn)`` that composes
with all others, under masks, batching and ``nt.predict``.

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

import jax

from softntk import activations
from softntk._core.validation import check_number
from softntk._stax_layer import Layer, make_layer
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


def Softmax(temperature: float | jax.Array = 1.0, channel_axis: int = -1) -> Layer:
    r"""Make softmax over the channels, times their number: C softmax(z / T).

    Use it as a nonlinearity between affine layers. For infinitely many channels

        Σ ↦ e^{q12/T²},    Θ ↦ Θ e^{q12/T²} / T².

    Args:
        temperature: T > 0.
        channel_axis: the axis of the features, the same as in the layers before.

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
    return make_layer(
        "Softmax", exp, normalized=True, scale=1 / temperature, channel_axis=channel_axis
    )


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
        ValueError: as for :func:`Softmax`.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.ResSoftmax(), stax.Dense(1))

    Source: arXiv 2309.13482 (e^z + z, normalized), 2405.03251 (over hidden units).
    """
    return make_layer(
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
            concentrate; a variance of zero where u(0) = 0 (relu); and as for :func:`Softmax`.

    Example:
        >>> from softntk import stax
        >>> cosh = stax.NormalizedActivation("cosh")
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), cosh, stax.Dense(1))

    Source: MATHEMATICS.md#gaussian-moments.
    """
    activation = activations.get(activation)
    return make_layer(
        f"NormalizedActivation({activation.name})",
        activation,
        normalized=True,
        channel_axis=channel_axis,
    )


def PlainActivation(activation: str | Activation) -> Layer:
    r"""Make u(z), elementwise, for any activation.

    Use it for an activation without a layer of its own here. Its kernels are Σ ↦ E[u(g₁)u(g₂)] and
    Θ ↦ Θ E[u'(g₁)u'(g₂)].

    Args:
        activation: a name or an :class:`~softntk.activations.Activation`.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``.

    Raises:
        ValueError: an unknown name; and as for :func:`CRReLU`.

    Example:
        >>> from softntk import stax
        >>> softplus = stax.PlainActivation("softplus")
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), softplus, stax.Dense(1))

    Source: MATHEMATICS.md#gaussian-moments.
    """
    activation = activations.get(activation)
    return make_layer(f"PlainActivation({activation.name})", activation, normalized=False)


def CRReLU(epsilon: float | jax.Array = 0.01) -> Layer:
    r"""Make the layer max(0, z) + ε z e^{−z²/2}.

    Use it in place of ``Relu`` where units must not stop learning on the negative side.

    Args:
        epsilon: ε.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``, with closed forms.

    Raises:
        ValueError: ε not finite; from ``kernel_fn``: an input that is not Gaussian, a variance that
            is negative or not finite.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.CRReLU(), stax.Dense(1))

    Source: see :func:`softntk.activations.crrelu`.
    """
    return make_layer("CRReLU", activations.crrelu(epsilon), normalized=False)


def Threshold() -> Layer:
    r"""Make the layer that is 1 where z > 0, else 0.

    Its kernels are Σ ↦ (π − θ) / 2π and Θ ↦ 0. Use it for random binary features: only the layers
    behind it train.

    Returns:
        ``(init_fn, apply_fn, kernel_fn)``.

    Raises:
        ValueError: as for :func:`CRReLU`.

    Example:
        >>> from softntk import stax
        >>> _, _, kernel_fn = stax.serial(stax.Dense(8), stax.Threshold(), stax.Dense(1))

    Source: Cho and Saul (2009), the arc-cosine kernel of order 0.
    """
    return make_layer("Threshold", activations.get("threshold"), normalized=False)
