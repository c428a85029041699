"""Activations made of any elementwise function, without closed forms."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from softntk._core.validation import check_callable
from softntk.activations import _closed_forms as forms
from softntk.activations._activation import Activation
from softntk.activations._closed_forms import Jet, Scalars
from softntk.activations._enclosures import Enclosure
from softntk.activations._moments import Moments
from softntk.activations._quadrature import quadrature_moments


@dataclass(frozen=True)
class _ForwardModeJet:
    """The jet of any function: u' and u'' by forward-mode differentiation.

    Attributes:
        function: u, elementwise.
    """

    function: Callable[[Scalars], Scalars]

    def __call__(self, z: Scalars, c: Scalars | float) -> Jet:
        """Return e^{-c} (u, u', u'') at z."""

        def first_derivative(z: Scalars) -> Scalars:
            return jax.jvp(self.function, (z,), (jnp.ones_like(z),))[1]

        du, d2u = jax.jvp(first_derivative, (z,), (jnp.ones_like(z),))
        scale = forms.unscale(z, c)
        return self.function(z) * scale, du * scale, d2u * scale


def from_function(
    u: Callable[[Scalars], Scalars],
    name: str,
    moments: Moments | None = None,
    enclosure: Enclosure | None = None,
) -> Activation:
    """Make an :class:`Activation` of any elementwise function, without closed forms.

    Use it for a function that the table lacks. u' and u'' come from forward-mode differentiation,
    moments from quadrature.

    Args:
        u: elementwise, twice differentiable almost everywhere. It is evaluated as it is, so a
            function of exponential growth that must survive huge logits needs a jet with a shift,
            like that of ``exp`` in the table.
        name: the name that messages show.
        moments: closed forms, if there are any; otherwise :func:`quadrature_moments`.
        enclosure: what is proved about u on intervals; without it there are no certificates.

    Returns:
        The activation, ready for ``networks.two_layer(activation=…)``.

    Raises:
        ValueError: u is not an elementwise function of an array, name is not a string, moments are
            not :class:`Moments`, or enclosure is not an :class:`Enclosure`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> swish = from_function(jax.nn.swish, "swish")
        >>> float(swish.du(jnp.zeros(())))
        0.5
    """
    # 1. Check the arguments; u by its shape on three numbers.
    check_callable("u", u, "an elementwise function of an array")
    if not isinstance(name, str):
        raise ValueError(f"name must be a string, got {name!r}.")
    if moments is not None and not isinstance(moments, Moments):
        raise ValueError(f"moments must be a softntk.activations.Moments, got {moments!r}.")
    default_dtype = jax.dtypes.canonicalize_dtype(float)
    try:
        value = jax.eval_shape(lambda z: u(z), jax.ShapeDtypeStruct((3,), default_dtype))
    except Exception as error:
        error_reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            "u must be an elementwise function of an array, of jax.numpy, but it fails: "
            f"{error_reason}"
        ) from error
    if getattr(value, "shape", None) != (3,) or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"u must be elementwise: of 3 floating-point numbers it must make 3, got {value}."
        )
    # 2. Differentiate, and take the moments by quadrature where none are given.
    jet = _ForwardModeJet(u)
    return Activation(
        name, jet, moments or quadrature_moments(jet), forms.no_scale, enclosure=enclosure
    )
