"""Architecture and weights of a two-layer network, and the factors of the rows of its Jacobian."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from softntk import activations
from softntk._core.records import record
from softntk._core.validation import is_concrete, is_hashable
from softntk._linalg.products import product
from softntk.activations import Activation

Points = Float[Array | np.ndarray, "n d"]
"""Points, one row each."""

TIE_TOLERANCE = 8
"""Rounding units by which activations may differ and still count as equally large."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """The settings of a two-layer network, without its weights; static and hashable.

    A traced σ is equal only to itself.

    Attributes:
        activation: u.
        normalized: whether the activations of a row are divided by their sum α.
        width: m, the number of hidden units.
        out_dim: k, the number of outputs.
        sigma: σ, the standard deviation of the hidden weights.
        antisymmetric: whether the units come in pairs whose outputs cancel at initialisation.
        train_readout: whether the readout is trained.
        parameterization: "ntk" or "paper".
        bias: whether the hidden layer has a bias.
    """

    activation: Activation
    normalized: bool
    width: int
    out_dim: int
    sigma: float | Array
    antisymmetric: bool
    train_readout: bool
    parameterization: str
    bias: bool

    @property
    def kernel_scale(self) -> float:
        """The factor of all kernels in this parameterization: 1 for ``ntk``, m for ``paper``."""
        return float(self.width) if self.parameterization == "paper" else 1.0

    @cached_property
    def is_static(self) -> bool:
        """Whether it can be a static argument of a compiled program: hashable, nothing traced."""
        if self.activation.traced or not is_concrete(self.sigma):
            return False
        return is_hashable(self)

    @cached_property
    def _identity(self) -> tuple:
        """The settings that equality and the hash depend on."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # Tracers cannot be compared or hashed by value.
        if not is_concrete(self.sigma):
            settings["sigma"] = ("traced", id(self.sigma))
        return tuple(settings.values())

    @cached_property
    def _hash(self) -> int:
        """The hash, computed once."""
        return hash(self._identity)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without cached values: hashes of strings differ between processes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __eq__(self, other: object) -> bool:
        """Return whether the settings are equal."""
        if self is other:
            return True
        return isinstance(other, Architecture) and self._identity == other._identity

    def __hash__(self) -> int:
        """Return the hash of the settings."""
        return self._hash


@record
class Parameters:
    """Weights of a two-layer network, a pytree.

    Attributes:
        hidden: W, [d, m].
        readout: a, [m, k]. It has no gradient unless the network was made with
            ``train_readout=True``.
        bias: [m], or None. It acts as the weight of an extra input that is always 1.
    """

    hidden: Float[Array, "d m"]
    readout: Float[Array, "m k"]
    bias: Float[Array, " m"] | None = None


class RowFactors(NamedTuple):
    """The derivative of a two-layer network at n points, as factors of each row.

        ∂F_ℓ(x_i)/∂W = x_i ⊗ g_{iℓ},        g_{iℓ} = slopes_i ∘ (a_ℓ − centres_{iℓ} − offsets_{iℓ}),
        ∂F_ℓ(x_i)/∂a_ℓ = features_i.

    In a normalized network centres + offsets is the mean ⟨a_ℓ, u⟩/α. The centre is the readout at
    the row's largest unit (the mean of several equally large ones), the offset the difference.
    Where a row concentrates on one unit, a_ℓ − ⟨a_ℓ, u⟩/α would lose all digits at that unit;
    a_ℓ − centres is exactly zero there, and the offsets keep all their digits.

    Attributes:
        features: φ, [n, m], F = φ a.
        slopes: S, [n, m]: m^{1/2} u'/α (normalized) or m^{-1/2} u' (plain).
        largest: whether a unit is the largest of the row, or ties with it, [n, m] (normalized), or
            False (plain).
        centres: the mean of a_ℓ over these units, [n, k] (normalized), or zero (plain).
        offsets: ⟨a_ℓ − centres_ℓ, u⟩/α, [n, k] (normalized), or zero (plain).
        valid: [n], False where the row is outside the domain (non-finite input, normaliser lost).
    """

    features: Float[Array, "n m"]
    slopes: Float[Array, "n m"]
    largest: Bool[Array, "n m"]
    centres: Float[Array, "n k"]
    offsets: Float[Array, "n k"]
    valid: Bool[Array, " n"]

    @property
    def means(self) -> Float[Array, "n k"]:
        """⟨a_ℓ, u⟩/α, [n, k] (normalized), or zero (plain)."""
        return self.centres + self.offsets


def _log_largest(dtype: jnp.dtype) -> float:
    """Return the logarithm of the largest number that a dtype can hold."""
    return math.log(float(jnp.finfo(dtype).max))


def row_factors(architecture: Architecture, params: Parameters, x: Points) -> RowFactors:
    """Return features and derivative factors of every row, from one evaluation of the logits.

    Use them where rows of the Jacobian are needed without forming the Jacobian, whose size is
    n × k × (d m).

    Rows outside the domain (not finite, or with logits beyond the precision) are evaluated at zero
    and marked in ``valid``. A plain network of an exponential activation saturates where u' exceeds
    the root of the largest number of the precision, so that products stay finite.

    Symbols: z logits [n, m], c log-scale of the activations, u and du = u' times e⁻ᶜ, α = Σ u.

    Args:
        architecture: settings of the network.
        params: weights of the network.
        x: points, [n, d].

    Returns:
        The :class:`RowFactors`.

    Raises:
        ValueError: params are not the weights of such a network.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from softntk import networks
        >>> net = networks.two_layer("softmax", width=4)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 2))
        >>> rows = networks.row_factors(net.architecture, params, jnp.eye(2))
        >>> outputs = rows.features @ params.readout
        >>> bool(jnp.allclose(outputs, net.apply_fn(params, jnp.eye(2)), atol=1e-6))
        True

    Source: MATHEMATICS.md#empirical-kernel.
    """
    # 1. Logits, zero in rows outside the domain.
    check_parameters(architecture, params)
    x, params = _promote(x, params)
    a = params.readout
    m = params.hidden.shape[1]
    is_finite = jnp.all(jnp.isfinite(x), axis=1)
    z = product(jnp.where(is_finite[:, None], x, 0), params.hidden)
    if params.bias is not None:
        z = z + params.bias[None, :]
    is_finite = is_finite & jnp.all(jnp.isfinite(z), axis=1)
    z = jnp.where(is_finite[:, None], z, 0)
    # 2. Activations and their slopes over the scale e^c of the row.
    c = architecture.activation.log_scale(z)
    u, du, _ = architecture.activation.jet(z, c)
    root_scale = math.sqrt(architecture.kernel_scale)
    # 3. A plain network: multiply by e^c, as far as sums of m such terms do not overflow.
    if not architecture.normalized:
        max_log_scale = _log_largest(z.dtype) - math.log(m)
        features = u * (root_scale / math.sqrt(m) * jnp.exp(jnp.minimum(c, max_log_scale)))
        slopes = du * (root_scale / math.sqrt(m) * jnp.exp(jnp.minimum(c, max_log_scale / 2)))
        zero_means = jnp.zeros((x.shape[0], a.shape[1]), z.dtype)
        no_largest = jnp.zeros(z.shape, bool)
        return RowFactors(features, slopes, no_largest, zero_means, zero_means, is_finite)
    # 4. A normalized network: the scale cancels. Where the sum α is lost to cancellation, the
    #    weights are zero.
    alpha = jnp.sum(u, axis=1, keepdims=True)
    is_resolved = activations.normaliser_is_resolved(u, alpha)
    inverse_alpha = jnp.where(is_resolved, 1, 0) / jnp.where(is_resolved, alpha, 1)
    weights = u * inverse_alpha
    # 5. The largest units. XLA may compute u more than once, rounded differently: hence the
    #    tolerance, and the barrier, so that everything below uses the same units.
    tie_factor = 1 - TIE_TOLERANCE * jnp.finfo(z.dtype).eps
    largest = lax.optimization_barrier(
        jnp.abs(u) >= tie_factor * jnp.max(jnp.abs(u), axis=1, keepdims=True)
    )
    centres, offsets = _split_means(weights, a, largest)
    feature_scale = root_scale * math.sqrt(m)
    valid = is_finite & is_resolved[:, 0]
    return RowFactors(
        feature_scale * weights,
        feature_scale * (du * inverse_alpha),
        largest,
        centres,
        offsets,
        valid,
    )


@jax.custom_jvp
def _split_means(
    weights: Float[Array, "n m"], a: Float[Array, "m k"], largest: Bool[Array, "n m"]
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """Return the means ``weights @ a`` as (centres, offsets), for weights that sum to one.

    See :class:`RowFactors`.
    """
    # Σ w a = c + Σ w (a − c), as Σ w = 1; c is the mean of a over the largest units. These have
    # equal weights, so that they add nothing to the second sum.
    indicator = largest.astype(a.dtype)
    small_weights = jnp.where(largest, 0, weights)
    centres = product(indicator, a) / jnp.sum(indicator, axis=1, keepdims=True)
    offsets = product(small_weights, a)
    return centres, offsets - centres * jnp.sum(small_weights, axis=1, keepdims=True)


@_split_means.defjvp
def _split_means_jvp(primals: tuple, tangents: tuple) -> tuple:
    # The split only affects rounding: the whole derivative belongs to the offsets, also where the
    # largest units are tied.
    weights, a, largest = primals
    dweights, da, _ = tangents
    centres, offsets = _split_means(weights, a, largest)
    return (centres, offsets), (
        jnp.zeros_like(centres),
        product(dweights, a) + product(weights, da),
    )


def _promote(x: Points, params: Parameters) -> tuple[Points, Parameters]:
    """Return points and weights in the wider precision of the two.

    This also works where JAX is configured to refuse implicit promotion.
    """
    # Nothing is converted where all arrays have one precision.
    dtypes = {jnp.dtype(leaf.dtype) for leaf in (x, *jax.tree.leaves(params))}
    if len(dtypes) == 1:
        return x, params
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*dtypes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, params))


def check_parameters(architecture: Architecture, params: object) -> None:
    """Refuse parameters that are no weights of this network.

    Raises:
        ValueError: params of another type, with the shapes of another network, with a bias missing
            or unexpected, or not of floating-point numbers.
    """
    # 1. The type, and whether there is a bias.
    if not isinstance(params, Parameters):
        raise ValueError(
            f"params must be the Parameters of this network, got {type(params).__name__}. Take "
            "them from init_fn: _, params = net.init_fn(key, (-1, d)); apply_fn takes (params, x)."
        )
    required_shapes = {
        "hidden": ("d", architecture.width),
        "readout": (architecture.width, architecture.out_dim),
    }
    if architecture.bias:
        required_shapes["bias"] = (architecture.width,)
    elif params.bias is not None:
        raise ValueError("params.bias must be None: this network was made with bias=False.")
    # 2. Each array; the input dimension d may be any.
    for name, shape in required_shapes.items():
        leaf = getattr(params, name)
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        if not is_array or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"params.{name} must be a floating-point array, "
                f"got {getattr(leaf, 'dtype', type(leaf).__name__)}."
            )
        if len(leaf.shape) != len(shape) or any(
            required != length
            for required, length in zip(shape, leaf.shape, strict=True)
            if required != "d"
        ):
            raise ValueError(
                f"params.{name} must have shape [{', '.join(map(str, shape))}], got {leaf.shape}: "
                "params are those of another network. Take them from this one's init_fn."
            )


def row_vectors(rows: RowFactors, a: Float[Array, "m k"]) -> Float[Array, "n k m"]:
    """Return g, the factors of :class:`RowFactors` for each point and output."""
    # a − centres first: it is exact where a row concentrates on one unit.
    return rows.slopes[:, None, :] * (
        (a.T[None, :, :] - rows.centres[:, :, None]) - rows.offsets[:, :, None]
    )
