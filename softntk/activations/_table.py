"""The table of activations."""

import math
from collections.abc import Callable

from softntk._core.validation import check_choice
from softntk.activations import _closed_forms as forms
from softntk.activations import _exponential_family as exponentials
from softntk.activations import _host_jets as host_jets
from softntk.activations import _softplus as softplus
from softntk.activations._activation import Activation
from softntk.activations._crrelu import crrelu
from softntk.activations._enclosures import Enclosure, Suprema
from softntk.activations._moments import Moments

GELU_MINIMUM = -0.7517915246935645
"""Where z Φ(z) is smallest, the root of Φ(z) + z φ(z)."""

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
            enclosure=Enclosure(
                host_jets.exp_jet,
                shift=host_jets.row_maximum,
                convex=True,
                exponential_slope=0.0,
            ),
            families=(("softmax", True), ("exp", False)),
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
            enclosure=Enclosure(
                host_jets.res_exp_jet,
                shift=host_jets.row_maximum_or_zero,
                convex=True,
                exponential_slope=1.0,
            ),
            families=(("res_softmax", True),),
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
            enclosure=Enclosure(
                host_jets.cosh_jet,
                turning_points=((0.0,), (), (0.0,), ()),
                shift=host_jets.row_maximum_modulus,
                convex=True,
            ),
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
            enclosure=Enclosure(
                host_jets.sinh_jet,
                turning_points=((), (0.0,), (), (0.0,)),
                shift=host_jets.row_maximum_modulus,
            ),
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
            enclosure=Enclosure(host_jets.threshold_jet, jumps=(0.0,), jump_order=0),
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
            enclosure=Enclosure(
                host_jets.relu_jet, jumps=(0.0,), convex=True, surrogate="softplus"
            ),
            families=(("relu", False),),
        ),
        # log(1 + e^z)
        Activation(
            "softplus",
            softplus.softplus_jet,
            Moments(
                softplus.softplus_mean,
                softplus.softplus_covariance,
                softplus.softplus_derivative,
                angular=True,
            ),
            forms.no_scale,
            # The third derivative vanishes at zero, the fourth where σ(z) = (1 ± 1/√3)/2.
            enclosure=Enclosure(
                host_jets.softplus_jet,
                turning_points=(
                    (),
                    (),
                    (0.0,),
                    (-math.log(2 + math.sqrt(3)), math.log(2 + math.sqrt(3))),
                ),
                convex=True,
            ),
            families=(("softplus", False),),
        ),
        # z Φ(z), Φ the distribution of N(0, 1)
        Activation(
            "gelu",
            forms.gelu_jet,
            Moments(forms.gelu_mean, forms.gelu_covariance, forms.gelu_derivative, angular=True),
            forms.no_scale,
            # u'' = (2 − z²)φ and the next two vanish at roots of polynomials, u' at one number.
            enclosure=Enclosure(
                host_jets.gelu_jet,
                turning_points=(
                    (GELU_MINIMUM,),
                    (-math.sqrt(2), math.sqrt(2)),
                    (-2.0, 0.0, 2.0),
                    tuple(
                        sign * math.sqrt((7 + other_sign * math.sqrt(33)) / 2)
                        for sign in (-1, 1)
                        for other_sign in (-1, 1)
                    ),
                ),
                gaussian=True,
                extended=False,
            ),
            families=(("gelu", False),),
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
            enclosure=Enclosure(host_jets.identity_jet, convex=True),
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
            # erf'' = −2z erf', and so on: roots of Hermite polynomials in z√2.
            enclosure=Enclosure(
                host_jets.erf_jet,
                turning_points=(
                    (),
                    (0.0,),
                    (-math.sqrt(0.5), math.sqrt(0.5)),
                    (-math.sqrt(1.5), 0.0, math.sqrt(1.5)),
                ),
                gaussian=True,
                extended=False,
            ),
        ),
    )
}
"""Every named activation; ``ACTIVATIONS["mine"] = …`` adds one for the whole library."""


SUPREMA: dict[str, Callable[..., Suprema]] = {
    name: activation.enclosure.suprema
    for name, activation in ACTIVATIONS.items()
    if activation.enclosure is not None and not activation.enclosure.jumps
}
"""``(lower, upper, shift) ->`` suprema on an interval, of the smooth activations of the table."""


def get(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the activation itself.

    Use it where an argument may be either.

    Raises:
        ValueError: the name is not in ``ACTIVATIONS``; the message lists the known ones and
            suggests the nearest.

    Example:
        >>> relu = get("relu")
        >>> get(relu) is relu
        True
    """
    if isinstance(activation, Activation):
        return activation
    return ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]


def missing_enclosure_reason(activation: Activation) -> str:
    """Return why there are no bounds for an activation without an enclosure.

    Use it in the message of a function that needs one.
    """
    enclosed_names = [name for name, entry in ACTIVATIONS.items() if entry.enclosure is not None]
    return (
        f"There are bounds for the activations {', '.join(sorted(enclosed_names))}, none for "
        f"{activation.name!r}: give it a softntk.activations.Enclosure."
    )
