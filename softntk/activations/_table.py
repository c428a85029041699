"""The table of activations, and the functions that make an entry."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from softntk._core.validation import (
    check_callable,
    check_choice,
    check_number,
    is_concrete,
)
from softntk.activations import _closed_forms as forms
from softntk.activations import _exponential_family as exponentials
from softntk.activations._activation import Activation
from softntk.activations._closed_forms import Jet, Scalars
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
    u: Callable[[Scalars], Scalars], name: str, moments: Moments | None = None
) -> Activation:
    """Make an :class:`Activation` of any elementwise function, without closed forms.

    Use it for a function that the table lacks. u' and u'' come from forward-mode differentiation,
    moments from quadrature.

    Args:
        u: elementwise, twice differentiable almost everywhere. It is evaluated as it is, so a
            function of exponential growth that must survive huge logits needs a jet with a shift,
            like that of ``exp`` in the table.
        name: for messages.
        moments: closed forms, if there are any; otherwise :func:`quadrature_moments`.

    Returns:
        The activation, ready for ``networks.two_layer(activation=…)``.

    Raises:
        ValueError: u is no elementwise function of an array, name no string, moments no
            :class:`Moments`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> softplus = from_function(jax.nn.softplus, "softplus")
        >>> float(softplus.du(jnp.zeros(())))
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
    return Activation(name, jet, moments or quadrature_moments(jet), forms.no_scale)


def crrelu(epsilon: float | Array = 0.01) -> Activation:
    """Make CRReLU, max(0, z) + ε z e^{−z²/2}, for another ε than the table's 0.01.

    It is relu with a corrected slope on the negative side. Use it to choose ε, or to differentiate
    in it.

    Args:
        epsilon: ε; it may be traced.

    Returns:
        The activation, its moments in closed form.

    Raises:
        ValueError: ε is not a finite number.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(crrelu(0.5).u(jnp.asarray(-1.0))), 4)  # −½ e^{−½}
        -0.3033

    Source: the moments are derived in ``softntk/activations/_closed_forms.py``, by tilting the
    Gaussian with e^{−g²/2}.
    """
    epsilon = check_number("epsilon", epsilon)
    return (
        _concrete_crrelu(float(epsilon)) if is_concrete(epsilon) else _make_crrelu(epsilon, partial)
    )


def _make_crrelu(epsilon: float | Array, bind: Callable) -> Activation:
    """Return CRReLU with ε bound by ``bind(function, epsilon)``."""
    # E[g e^{-g²/2}] = 0: the mean is that of relu.
    covariance = bind(forms.crrelu_covariance, epsilon)
    derivative = bind(forms.crrelu_derivative, epsilon)
    moments = Moments(forms.relu_mean, covariance, derivative, angular=True, in_units=True)
    traced = not is_concrete(epsilon)
    return Activation("crrelu", bind(forms.crrelu_jet, epsilon), moments, forms.no_scale, traced)


@dataclass(frozen=True)
class _BoundFunction:
    """A function with its first argument bound.

    Unlike ``functools.partial`` it compares equal for equal numbers, so that equal activations
    share their compiled programs.

    Attributes:
        function: takes the number first.
        number: the first argument.
    """

    function: Callable
    number: float

    def __call__(self, *args: Any) -> Any:
        """Call the function with the bound number and the arguments."""
        return self.function(self.number, *args)


@lru_cache  # equal activations are one object, so that nothing is compiled again
def _concrete_crrelu(epsilon: float) -> Activation:
    """Return CRReLU for a Python number ε."""
    return _make_crrelu(epsilon, _BoundFunction)


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        # Exponential growth: the shifts are those for which e^{-c} u is of order one along a row.
        # e^z, the numerator of softmax.
        Activation(
            "exp",
            exponentials.exp_jet,
            Moments(
                exponentials.exp_mean,
                exponentials.exp_covariance,
                exponentials.exp_covariance,
                exponentials.half_variance,
                ratios=exponentials.exp_ratios,
            ),
            exponentials.row_maximum,
        ),
        # e^z + z, softmax with a residual connection. z alone counts where all logits are negative.
        Activation(
            "res_exp",
            exponentials.res_exp_jet,
            Moments(
                exponentials.exp_mean,
                exponentials.res_exp_covariance,
                exponentials.res_exp_derivative,
                exponentials.half_variance,
                ratios=exponentials.res_exp_ratios,
            ),
            exponentials.row_maximum_or_zero,
        ),
        # cosh and sinh are each other's derivative, so that their moments change places.
        Activation(
            "cosh",
            exponentials.cosh_jet,
            Moments(
                exponentials.exp_mean,
                exponentials.cosh_covariance,
                exponentials.sinh_covariance,
                exponentials.half_variance,
                ratios=exponentials.cosh_ratios,
            ),
            exponentials.row_maximum_modulus,
        ),
        Activation(
            "sinh",
            exponentials.sinh_jet,
            Moments(
                forms.zero_mean,
                exponentials.sinh_covariance,
                exponentials.cosh_covariance,
                exponentials.half_variance,
                positive_mean=False,
            ),
            exponentials.row_maximum_modulus,
        ),
        # Polynomial growth: no shift. Covariances depend on the angle between g₁ and g₂.
        # max(0, z) + ε z e^{-z²/2}
        crrelu(),
        # 1 for z > 0
        Activation(
            "threshold",
            forms.threshold_jet,
            Moments(
                forms.threshold_mean,
                forms.threshold_covariance,
                forms.threshold_derivative,
                angular=True,
                degree=0,
            ),
            forms.no_scale,
        ),
        # max(0, z)
        Activation(
            "relu",
            forms.relu_jet,
            Moments(
                forms.relu_mean,
                forms.relu_covariance,
                forms.relu_derivative,
                angular=True,
                degree=1,
            ),
            forms.no_scale,
        ),
        # Odd functions: E[u] = 0, so they cannot be normalized.
        Activation(
            "identity",
            forms.identity_jet,
            Moments(
                forms.zero_mean,
                forms.identity_covariance,
                forms.identity_derivative,
                positive_mean=False,
                degree=1,
            ),
            forms.no_scale,
        ),
        Activation(
            "erf",
            forms.erf_jet,
            Moments(
                forms.zero_mean,
                forms.erf_covariance,
                forms.erf_derivative,
                positive_mean=False,
                angular=True,
            ),
            forms.no_scale,
        ),
    )
}
"""Every named activation; ``ACTIVATIONS["mine"] = …`` adds one for the whole library."""


def get(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the activation itself.

    Use it where an argument may be either.

    Raises:
        ValueError: the name is not in ``ACTIVATIONS``; the message lists the known ones and
            suggests the nearest.
    """
    if isinstance(activation, Activation):
        return activation
    return ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
