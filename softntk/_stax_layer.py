"""The layer u or C u / Σ u of any activation, behind the functions of :mod:`softntk.stax`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from softntk import activations, nt
from softntk._core.validation import as_floating, check_integer, is_concrete
from softntk.activations import Activation

# isort: split
# neural_tangents, once softntk.nt has made it importable.
from neural_tangents.stax import Diagonal, MaskedArray, layer, requires, supports_masking

Layer = tuple[Callable, Callable, Callable]

Kernel = Any
"""nt.Kernel, a class that is made at run time."""

VARIANCE_ULPS = 16
"""Rounding errors, in units of the largest variance, that may make a variance negative."""


def make_layer(
    name: str,
    activation: Activation,
    *,
    normalized: bool,
    scale: float | jax.Array | None = None,
    channel_axis: int = -1,
) -> Layer:
    """Make the layer u(z), or C u(scale · z) / Σ u(scale · z) over the C channels if normalized.

    Args:
        name: the name of the layer, for messages.
        activation: u.
        normalized: whether u is divided by its mean over the channels.
        scale: factor on the input of a normalized layer; None: 1, without a multiplication. A plain
            layer takes None.
        channel_axis: the axis of the channels, for a normalized layer.

    Raises:
        ValueError: normalized, but E[u] = 0; channel_axis is no integer.
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

    def kernel_fn(k: Kernel, **kwargs: Any) -> Kernel:
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


def _check_kernel(name: str, kernel: Kernel, normalized_activation: Activation | None) -> None:
    """Refuse a kernel that is not of a Gaussian input, or outside of the domain of the layer.

    Args:
        name: the name of the layer, for messages.
        kernel: the kernel before the layer.
        normalized_activation: the activation, if the layer normalizes it; else None.
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
        rounding_error = VARIANCE_ULPS * float(jnp.finfo(values.dtype).eps) * max_modulus
        if values.min() < -rounding_error:
            raise ValueError(
                f"{name} got a negative variance, {values.min():.3g}: the kernel is not positive "
                "semidefinite."
            )
        if normalized_activation is None or has_mask or values.min() > 0:
            continue
        if _mean_at_zero(normalized_activation) == 0:
            raise ValueError(
                f"{name} got a variance of zero, where all of u vanishes and cannot be normalized: "
                "a point of zeros, perhaps. Give the layer before it a bias (b_std)."
            )


def _mean_at_zero(activation: Activation) -> float:
    """Return E[u] at a variance of zero, u(0)."""
    with jax.ensure_compile_time_eval():
        return float(activation.moments.mean(jnp.zeros(()), 0.0))


def _propagate(activation: Activation, normalized: bool, kernel: Kernel) -> Kernel:
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
