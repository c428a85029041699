"""Scalar activations u with their derivatives and Gaussian moments: the object under every network and regression.

An :class:`Activation` answers two questions, both in a form that does not overflow:

- ``jet(z, c)`` is ``e^{-c} (u, u', u'')`` at z, for a shift c that ``log_scale(z)`` proposes, one number a row.
  In a normalized quantity such as ``u / 1ᵀu`` the shift cancels, so logits of ±1e4 are harmless.
- ``moments`` are Gaussian expectations times ``e^{-s}``, for a shift s that ``growth(q)`` proposes: in the ratios that
  the infinite limit of a normalized network consists of it cancels, and they stay finite.

``ACTIVATIONS`` is the table of them; a new activation is one entry, and everything in softntk works for it.

Example:
    >>> import jax.numpy as jnp
    >>> from softntk import activations
    >>> res_exp = activations.get("res_exp")
    >>> float(res_exp.u(jnp.zeros(()))), float(res_exp.du(jnp.zeros(())))
    (1.0, 2.0)
    >>> swish = activations.from_function(lambda z: z / (1 + jnp.exp(-z)), "swish")
    >>> round(float(swish.moments.mean(jnp.ones(()), 0.0)), 4)  # E[swish(g)], g ~ N(0, 1), by quadrature
    0.2066
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from softntk import _closed_forms as forms
from softntk._closed_forms import Jet, Scalars
from softntk._core.validation import (
    as_floating,
    as_scalars,
    check_callable,
    check_choice,
    check_flag,
    check_number,
    check_shapes_broadcast,
    is_concrete,
    is_hashable,
)
from softntk._linalg.norms import binary_scale
from softntk._moments import Moments, infinite_limit, quadrature_moments


@dataclass(frozen=True)
class Activation:
    """An activation u with u' and u'', safe against overflow, and its Gaussian moments.

    Attributes:
        name: as it appears in the table and in messages.
        jet: ``(z, c) -> e^{-c} (u(z), u'(z), u''(z))``, elementwise; c broadcasts against z.
        log_scale: ``z [..., m] -> c [..., 1]``, the shift for which e^{-c} u(z) is of order one along the last axis.
            Zero for functions that do not overflow. It carries no gradient: nothing depends on it but rounding.
        moments: the :class:`Moments` of u.
    """

    name: str
    jet: Callable[[Scalars, Scalars | float], Jet]
    moments: Moments
    log_scale: Callable[[Scalars], Scalars]

    traced: bool = False
    """Closes over a traced number: then it is no static argument of a compiled program."""

    def __post_init__(self) -> None:
        """Refuse what are no parts of an activation."""
        if not isinstance(self.name, str):
            raise ValueError(f"name must be a string, got {self.name!r}.")
        check_callable("jet", self.jet, "a function (z, c) -> (u, u', u'')")
        check_callable("log_scale", self.log_scale, "a function of the logits")
        if not isinstance(self.moments, Moments):
            raise ValueError(f"moments must be a softntk.activations.Moments, got {self.moments!r}.")

    def u(self, z: Scalars | float) -> Scalars:
        """Return the function's values, elementwise."""
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
        r"""Return what a layer of infinitely many units makes of a Gaussian input: (E[φφ'], E[φ̇φ̇']).

        φ = u, or u / E[u] normalized: the mean over the units, m⁻¹ Σ u, concentrates on E[u].

        Args:
            q11: variance of the input at the first point.
            q12: covariance.
            q22: variance at the second point; all three broadcast.
            normalized: divide by the mean.
            sines: sin θ = √(1 − q12²/(q11 q22)), if it is known to more digits than the q's give; carries no gradient.

        Returns:
            Both kernels; finite wherever the mathematics is, because the shift cancels. +inf where E[u] is zero at this
            variance (relu at q = 0). What exceeds the precision saturates near its largest number.

        Raises:
            ValueError: normalized, but E[u] = 0; a q, or sines, that is no array of real numbers or does not broadcast with the
                others.

        Example:
            >>> [round(float(v), 4) for v in get("exp").limit(0.5, 0.2, 0.7, normalized=True)]  # both e^{q12}
            [1.2214, 1.2214]

        Source: MATHEMATICS.md#gaussian-moments.
        """
        normalized = check_flag("normalized", normalized)
        given = {"q11": q11, "q12": q12, "q22": q22} | ({} if sines is None else {"sines": sines})
        variances = as_scalars(**given)
        check_shapes_broadcast(given, variances)
        evaluate = infinite_limit if self.traced or not is_hashable(self) else _compiled_limit
        q11, q12, q22 = variances[:3]
        return evaluate(self.name, self.moments, normalized, q11, q12, q22, sines=None if sines is None else variances[3])


_compiled_limit = jax.jit(infinite_limit, static_argnums=(0, 1, 2), inline=True)


def _as_values(z: object) -> Scalars:
    return as_floating("z", z, finite=False, empty=True)


def chain(ntk: Scalars, slope: Scalars) -> Scalars:
    """Return Θ E[φ̇φ̇'] of a layer, from Θ before it.

    It saturates far below infinity, where the next layer's sum would make NaN of it, and where the slope is infinite: there the
    point is outside of the domain, whatever Θ.

    Example:
        >>> import jax.numpy as jnp
        >>> float(chain(jnp.asarray(jnp.inf), jnp.asarray(0.0)))
        0.0
    """
    largest = 1e-6 * float(jnp.finfo(slope.dtype).max)
    outside = jnp.isposinf(slope)
    inside = jnp.where(outside | (slope == 0), 0, ntk) * jnp.where(outside, 0, slope)
    return jnp.where(outside, largest, jnp.clip(inside, -largest, largest))


def normalize(activation: str | Activation, z: Scalars) -> Scalars:
    """Return u(z) / 1ᵀu(z) along the last axis; +inf where 1ᵀu is lost against 1ᵀ|u| in rounding, NaN only if z is.

    Args:
        activation: u, by name or itself.
        z: logits [..., m]; ±1e4 are harmless. −∞ gets its share of zero where u vanishes there (exp).

    Returns:
        [..., m], summing to one; +inf also where a sum is infinite.

    Raises:
        ValueError: an unknown name; z is no array of real numbers with an axis of units.

    Example:
        >>> import jax.numpy as jnp
        >>> normalize("exp", jnp.array([1e4, 1e4])).tolist()
        [0.5, 0.5]

    Source: MATHEMATICS.md#activations (the shift, and where the domain ends).
    """
    activation = get(activation)
    z = as_floating("z", z, ("…", "m"), finite=False, empty=True)
    if z.shape[-1] == 0:
        raise ValueError(f"z must have at least one unit along its last axis, got shape {z.shape}.")
    u = activation.jet(z, activation.log_scale(z))[0]
    u = u / binary_scale(u, -1)  # its derivative divides by the square of the sum, which would underflow
    total = jnp.sum(u, axis=-1, keepdims=True)
    kept = is_kept(u, total)
    shares = jnp.where(kept, u, 0) / jnp.where(kept, total, 1)
    missing = jnp.any(jnp.isnan(z), axis=-1, keepdims=True)
    return jnp.where(missing, jnp.nan, jnp.where(kept, shares, jnp.inf))


def is_kept(u: Scalars, total: Scalars) -> Bool[Array, "..."]:
    """Return whether the normaliser 1ᵀu along the last axis is more than what rounding of 1ᵀ|u| may leave."""
    return jnp.abs(total) > 4 * jnp.finfo(u.dtype).eps * jnp.sum(jnp.abs(u), axis=-1, keepdims=True)


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


def from_function(u: Callable[[Scalars], Scalars], name: str, moments: Moments | None = None) -> Activation:
    """Make an :class:`Activation` of any elementwise function: u', u'' by forward-mode differentiation, moments by quadrature.

    Args:
        u: elementwise, twice differentiable almost everywhere. It is evaluated as it is, so a function of exponential
            growth that must survive huge logits deserves a jet of its own, like those in this file.
        name: for messages.
        moments: closed forms, where you have them; otherwise :func:`quadrature_moments`.

    Returns:
        The activation, ready for ``networks.two_layer(activation=…)``.

    Raises:
        ValueError: u is no elementwise function of an array, name no string, moments no :class:`Moments`.

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
        out = jax.eval_shape(lambda z: u(z), jax.ShapeDtypeStruct((3,), jax.dtypes.canonicalize_dtype(float)))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"u must be an elementwise function of an array, of jax.numpy, but it fails: {reason}") from error
    if getattr(out, "shape", None) != (3,) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"u must be elementwise: of 3 floating-point numbers it must make 3, got {out}.")
    jet = _Derivatives(u)
    return Activation(name, jet, moments or quadrature_moments(jet), forms.no_scale)


def crrelu(epsilon: float | Array = 0.01) -> Activation:
    """Make CRReLU, max(0, z) + ε z e^{−z²/2}: relu with a corrected slope on the negative side; ε = 0.01 in the table.

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

    Source: the moments are derived in ``softntk/_closed_forms.py``, by tilting the Gaussian with e^{−g²/2}.
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
    """A function with its first argument set: equal for equal numbers, as ``functools.partial`` is not."""

    function: Callable
    number: float

    def __call__(self, *args: Any) -> Any:
        return self.function(self.number, *args)


@lru_cache  # equal activations are one object, so that nothing is compiled again
def _known_crrelu(epsilon: float) -> Activation:
    return _crrelu(epsilon, _WithNumber)


# --- the table ----------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation(
            "exp",
            forms.exp_jet,
            Moments(forms.exp_mean, forms.exp_covariance, forms.exp_covariance, forms.half, ratios=forms.exp_ratios),
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
            Moments(forms.exp_mean, forms.cosh_covariance, forms.sinh_covariance, forms.half, ratios=forms.cosh_ratios),
            forms.largest_modulus,
        ),
        Activation(
            "sinh",
            forms.sinh_jet,
            Moments(forms.zero_mean, forms.sinh_covariance, forms.cosh_covariance, forms.half, positive_mean=False),
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
            Moments(forms.relu_mean, forms.relu_covariance, forms.relu_derivative, angular=True, degree=1),
            forms.no_scale,
        ),
        Activation(
            "identity",
            forms.identity_jet,
            Moments(forms.zero_mean, forms.identity_covariance, forms.identity_derivative, positive_mean=False, degree=1),
            forms.no_scale,
        ),
        Activation(
            "erf",
            forms.erf_jet,
            Moments(forms.zero_mean, forms.erf_covariance, forms.erf_derivative, positive_mean=False, angular=True),
            forms.no_scale,
        ),
    )
}
"""Every named activation; ``ACTIVATIONS["mine"] = …`` makes a new one known to the whole library."""


def get(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the activation itself.

    Raises:
        ValueError: the name is not in ``ACTIVATIONS``; the message lists the known ones and suggests the nearest.
    """
    if isinstance(activation, Activation):
        return activation
    return ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]


def unknown(what: str, name: object, known: Mapping[str, object]) -> str:
    """Return the message for a name that is in no table: what was got, what there is, and the nearest to it."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} must be one of {sorted(known)}, got {name!r}.{hint}"
