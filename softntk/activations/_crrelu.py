"""CRReLU, max(0, z) + ε z e^{−z²/2}, for any ε."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from jaxtyping import Array

from softntk._core.validation import check_number, is_concrete
from softntk.activations import _closed_forms as forms
from softntk.activations import _host_jets as host_jets
from softntk.activations._activation import Activation
from softntk.activations._enclosures import Enclosure
from softntk.activations._moments import Moments

MAX_ENCLOSED_EPSILON = 2.0
"""The ε below which there is an enclosure; u' > 0 for z > 0 needs ε < e^{3/2}/2 ≈ 2.24."""


def crrelu(epsilon: float | Array = 0.01) -> Activation:
    """Make CRReLU, max(0, z) + ε z e^{−z²/2}, for another ε than the table's 0.01.

    It is relu with a corrected slope on the negative side. Use it to choose ε, or to differentiate
    in it.

    Args:
        epsilon: ε; it may be traced.

    Returns:
        The activation, with moments in closed form. It has an enclosure, and so certificates and
        bounds, for 0 < ε < 2 if ε is not traced.

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
    # For ε in this interval u decreases up to −1 and increases from there on.
    is_enclosed = not traced and 0 < epsilon < MAX_ENCLOSED_EPSILON
    return Activation(
        "crrelu",
        bind(forms.crrelu_jet, epsilon),
        moments,
        forms.no_scale,
        traced,
        _crrelu_enclosure(bind(host_jets.crrelu_jet, epsilon)) if is_enclosed else None,
    )


def _crrelu_enclosure(jet: Callable) -> Enclosure:
    """Return the enclosure of CRReLU; its derivatives turn at the roots of Hermite polynomials."""
    quartic_roots = [math.sqrt(3 - math.sqrt(6)), math.sqrt(3 + math.sqrt(6))]
    quintic_roots = [math.sqrt(5 - math.sqrt(10)), math.sqrt(5 + math.sqrt(10))]
    return Enclosure(
        jet,
        turning_points=(
            (-1.0,),
            (-math.sqrt(3), math.sqrt(3)),
            (*(-root for root in quartic_roots), *quartic_roots),
            (0.0, *(-root for root in quintic_roots), *quintic_roots),
        ),
        jumps=(0.0,),
        gaussian=True,
    )


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
