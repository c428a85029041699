"""The record of an activation: values, two derivatives and Gaussian moments, without overflow."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from softntk._core.validation import (
    as_floating,
    as_scalars,
    check_callable,
    check_flag,
    check_shapes_broadcast,
    is_hashable,
)
from softntk.activations._closed_forms import Jet, Scalars
from softntk.activations._enclosures import Enclosure
from softntk.activations._moments import Moments, infinite_limit


@dataclass(frozen=True)
class Activation:
    """An activation u with u' and u'', safe against overflow, and its Gaussian moments.

    Attributes:
        name: the name that the table and messages show.
        jet: ``(z, c) -> e^{-c} (u(z), u'(z), u''(z))``, elementwise; c broadcasts against z.
        moments: the :class:`Moments` of u.
        log_scale: ``z [..., m] -> c [..., 1]``, the shift for which e^{-c} u(z) is of order one
            along the last axis. Zero for functions that do not overflow. It carries no gradient:
            it changes nothing but rounding.
        traced: whether u closes over a traced number. Then the activation cannot be a static
            argument of a compiled program.
        enclosure: what is proved about u on intervals, for certificates and bounds; None if
            nothing is proved.
        families: names of the networks that are made of u, each with whether they are normalized.
    """

    name: str
    jet: Callable[[Scalars, Scalars | float], Jet]
    moments: Moments
    log_scale: Callable[[Scalars], Scalars]
    traced: bool = False
    # It follows from the function, and would only make hashes slower.
    enclosure: Enclosure | None = field(default=None, hash=False)
    families: tuple[tuple[str, bool], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        # A wrong type would otherwise show as an error deep inside of a traced program.
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {self.name!r}.")
        check_callable("jet", self.jet, "a function (z, c) -> (u, u', u'')")
        check_callable("log_scale", self.log_scale, "a function of the logits")
        if not isinstance(self.moments, Moments):
            raise ValueError(
                f"moments must be a softntk.activations.Moments, got {self.moments!r}."
            )
        if self.enclosure is not None and not isinstance(self.enclosure, Enclosure):
            raise ValueError(
                f"enclosure must be a softntk.activations.Enclosure, got {self.enclosure!r}."
            )

    def u(self, z: Scalars | float) -> Scalars:
        """Return the values of u, elementwise."""
        return self.jet(_as_values(z), 0.0)[0]

    def du(self, z: Scalars | float) -> Scalars:
        """Return the first derivative u'(z), elementwise."""
        return self.jet(_as_values(z), 0.0)[1]

    def d2u(self, z: Scalars | float) -> Scalars:
        """Return the second derivative u''(z), elementwise."""
        return self.jet(_as_values(z), 0.0)[2]

    def limit(
        self,
        q11: Scalars | float,
        q12: Scalars | float,
        q22: Scalars | float,
        normalized: bool,
        sines: Scalars | None = None,
    ) -> tuple[Scalars, Scalars]:
        r"""Return (E[φφ'], E[φ̇φ̇']), the kernels of a layer of infinitely many units.

        Use it for one step of a kernel recursion of your own. The inputs of the units are Gaussian,
        and φ = u, or u / E[u] normalized: the mean over the units, m⁻¹ Σ u, concentrates on E[u].

        Args:
            q11: variance of the input at the first point.
            q12: covariance.
            q22: variance at the second point; all three broadcast.
            normalized: divide by the mean.
            sines: sin θ = √(1 − q12²/(q11 q22)), if it is known to more digits than the variances
                give; carries no gradient.

        Returns:
            Both kernels, finite wherever the mathematics is, because the shift cancels. Normalized
            ones are +inf where E[u] is zero at this variance (relu at q = 0). What exceeds the
            precision saturates near its largest number.

        Raises:
            ValueError: normalized, but E[u] = 0 for every variance (an odd function); a variance,
                covariance or sine that is no array of real numbers, or does not broadcast with the
                others.

        Example:
            >>> from softntk import activations
            >>> exp = activations.get("exp")
            >>> kernels = exp.limit(0.5, 0.2, 0.7, normalized=True)  # both e^{q12}
            >>> [round(float(kernel), 4) for kernel in kernels]
            [1.2214, 1.2214]

        Source: MATHEMATICS.md#gaussian-moments.
        """
        # 1. Convert the variances to one dtype and check that they broadcast.
        normalized = check_flag("normalized", normalized)
        arguments = {"q11": q11, "q12": q12, "q22": q22}
        if sines is not None:
            arguments["sines"] = sines
        variances = as_scalars(**arguments)
        check_shapes_broadcast(arguments, variances)
        q11, q12, q22 = variances[:3]
        # 2. Evaluate; compiled, if the moments can be a static argument.
        evaluate = infinite_limit if self.traced or not is_hashable(self) else _compiled_limit
        return evaluate(
            self.name,
            self.moments,
            normalized,
            q11,
            q12,
            q22,
            sines=None if sines is None else variances[3],
        )


# Inlined into a surrounding program, so that it leaves no call in it.
_compiled_limit = jax.jit(infinite_limit, static_argnums=(0, 1, 2), inline=True)


def _as_values(z: object) -> Scalars:
    """Return z as an array of floating-point numbers, which may be infinite."""
    return as_floating("z", z, finite=False, empty=True)
