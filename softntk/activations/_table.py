"""The table of activations, and how to make more of them."""

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
from softntk.activations._activation import Activation
from softntk.activations._closed_forms import Jet, Scalars
from softntk.activations._moments import Moments, quadrature_moments


@dataclass(frozen=True)
class _Derivatives:
    """The jet of any function: u' and u'' by forward-mode differentiation."""

    function: Callable[[Scalars], Scalars]

    def __call__(self, z: Scalars, c: Scalars | float) -> Jet:
        def slope(z: Scalars) -> Scalars:
            return jax.jvp(self.function, (z,), (jnp.ones_like(z),))[1]

        d1, d2 = jax.jvp(slope, (z,), (jnp.ones_like(z),))
        s = forms.unscale(z, c)
        return self.function(z) * s, d1 * s, d2 * s


def from_function(
    u: Callable[[Scalars], Scalars], name: str, moments: Moments | None = None
) -> Activation:
    """Make an :class:`Activation` of any elementwise function: u', u'' by forward-mode
    differentiation, moments by quadrature.

    Args:
        u: elementwise, twice differentiable almost everywhere. It is evaluated as it is, so a
            function of exponential growth that must survive huge logits deserves a jet of its own,
            like those in this file.
        name: for messages.
        moments: closed forms, where you have them; otherwise :func:`quadrature_moments`.

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
    check_callable("u", u, "an elementwise function of an array")
    if not isinstance(name, str):
        raise ValueError(f"name must be a string, got {name!r}.")
    if moments is not None and not isinstance(moments, Moments):
        raise ValueError(f"moments must be a softntk.activations.Moments, got {moments!r}.")
    try:
        out = jax.eval_shape(
            lambda z: u(z), jax.ShapeDtypeStruct((3,), jax.dtypes.canonicalize_dtype(float))
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"u must be an elementwise function of an array, of jax.numpy, but it fails: {reason}"
        ) from error
    if getattr(out, "shape", None) != (3,) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"u must be elementwise: of 3 floating-point numbers it must make 3, got {out}."
        )
    jet = _Derivatives(u)
    return Activation(name, jet, moments or quadrature_moments(jet), forms.no_scale)


def crrelu(epsilon: float | Array = 0.01) -> Activation:
    """Make CRReLU, max(0, z) + ε z e^{−z²/2}: relu with a corrected slope on the negative side; ε =
    0.01 in the table.

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
    return _known_crrelu(float(epsilon)) if is_concrete(epsilon) else _crrelu(epsilon, partial)


def _crrelu(epsilon: float | Array, bind: Callable) -> Activation:
    covariance = bind(forms.crrelu_covariance, epsilon)
    derivative = bind(forms.crrelu_derivative, epsilon)
    moments = Moments(forms.relu_mean, covariance, derivative, angular=True, in_units=True)
    traced = not is_concrete(epsilon)
    return Activation("crrelu", bind(forms.crrelu_jet, epsilon), moments, forms.no_scale, traced)


@dataclass(frozen=True)
class _WithNumber:
    """A function with its first argument set: equal for equal numbers, as ``functools.partial`` is
    not.
    """

    function: Callable
    number: float

    def __call__(self, *args: Any) -> Any:
        return self.function(self.number, *args)


@lru_cache  # equal activations are one object, so that nothing is compiled again
def _known_crrelu(epsilon: float) -> Activation:
    return _crrelu(epsilon, _WithNumber)


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation(
            "exp",
            forms.exp_jet,
            Moments(
                forms.exp_mean,
                forms.exp_covariance,
                forms.exp_covariance,
                forms.half,
                ratios=forms.exp_ratios,
            ),
            forms.largest,
        ),
        Activation(
            "res_exp",
            forms.res_exp_jet,
            Moments(
                forms.exp_mean,
                forms.res_exp_covariance,
                forms.res_exp_derivative,
                forms.half,
                ratios=forms.res_exp_ratios,
            ),
            forms.largest_or_zero,
        ),
        Activation(
            "cosh",
            forms.cosh_jet,
            Moments(
                forms.exp_mean,
                forms.cosh_covariance,
                forms.sinh_covariance,
                forms.half,
                ratios=forms.cosh_ratios,
            ),
            forms.largest_modulus,
        ),
        Activation(
            "sinh",
            forms.sinh_jet,
            Moments(
                forms.zero_mean,
                forms.sinh_covariance,
                forms.cosh_covariance,
                forms.half,
                positive_mean=False,
            ),
            forms.largest_modulus,
        ),
        crrelu(),
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
"""Every named activation; ``ACTIVATIONS["mine"] = …`` makes a new one known to the whole library.
"""


def get(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the activation itself.

    Raises:
        ValueError: the name is not in ``ACTIVATIONS``; the message lists the known ones and
            suggests the nearest.
    """
    if isinstance(activation, Activation):
        return activation
    return ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
