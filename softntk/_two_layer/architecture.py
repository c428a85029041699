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


@dataclass(frozen=True, eq=False)
class Architecture:
    """Everything about a two-layer network but its weights; static and hashable.

    The fields are those of :func:`softntk.networks.two_layer`. A traced σ is equal only to itself.
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
        """The factor of every kernel that the parameterization stands for: 1 for ``ntk``, the width
        for ``paper``.
        """
        return float(self.width) if self.parameterization == "paper" else 1.0

    @cached_property
    def is_static(self) -> bool:
        """Whether it may stay behind in a compiled program: nothing in it is traced, all of it can
        be hashed.
        """
        if self.activation.traced or not is_concrete(self.sigma):
            return False
        return is_hashable(self)

    @cached_property
    def _identity(self) -> tuple:
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not is_concrete(self.sigma):
            settings["sigma"] = ("traced", id(self.sigma))
        return tuple(settings.values())

    @cached_property
    def _hash(self) -> int:
        return hash(self._identity)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is computed from the fields: hashes of strings differ between processes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __eq__(self, other: object) -> bool:
        """Compare the settings."""
        if self is other:
            return True
        return isinstance(other, Architecture) and self._identity == other._identity

    def __hash__(self) -> int:
        """Hash the settings."""
        return self._hash


@record
class Parameters:
    """Weights of a two-layer network, a pytree.

    Attributes:
        hidden: W, [d, m].
        readout: a, [m, k]. Behind a stop-gradient unless the network was made with
            ``train_readout=True``.
        bias: [m], or None. It acts as the weight of an extra input that is always 1.
    """

    hidden: Float[Array, "d m"]
    readout: Float[Array, "m k"]
    bias: Float[Array, " m"] | None = None


class RowFactors(NamedTuple):
    """The derivative of a two-layer network at n points, as factors of each row.

    ∂F_ℓ(x_i)/∂W = x_i ⊗ g_{iℓ}  with  g_{iℓ} = slopes_i ∘ (a_ℓ − centres_{iℓ} − offsets_{iℓ}),
    ∂F_ℓ(x_i)/∂a_ℓ = features_i.

    Normalized, ⟨a_ℓ, u⟩/α is the sum of centres and offsets: the readout at the row's largest unit
    (their mean, if several are equally large), and the rest. Where the row concentrates on that
    unit, a_ℓ − ⟨a_ℓ, u⟩/α would cancel to nothing there; a_ℓ − centres is exactly zero instead, and
    the offsets keep all their digits.

    Attributes:
        features: φ, [n, m], F = φ a.
        slopes: S, [n, m]: m^{1/2} u'/α (normalized) or m^{-1/2} u' (plain).
        largest: the units that carry most of the row, all those that are equally large, [n, m].
        centres: a_ℓ at that unit, [n, k] (normalized), or zero (plain).
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
    return math.log(float(jnp.finfo(dtype).max))


def row_factors(architecture: Architecture, params: Parameters, x: Points) -> RowFactors:
    """Return features and derivative factors of every row, from one evaluation of the logits
    (MATHEMATICS.md#empirical-kernel).

    Rows outside the domain (not finite, or with logits beyond the precision) are evaluated at zero
    and marked in ``valid``. A plain network of an exponential activation saturates where the
    precision ends (u' beyond the root of its largest number), so that products stay finite.

    Args:
        architecture: of the network.
        params: its weights.
        x: [n, d].

    Returns:
        The :class:`RowFactors`.

    Raises:
        ValueError: params are no weights of such a network.
    """
    check_parameters(architecture, params)
    x, params = _of_one_dtype(x, params)
    a, m = params.readout, params.hidden.shape[1]
    finite = jnp.all(jnp.isfinite(x), axis=1)
    z = product(jnp.where(finite[:, None], x, 0), params.hidden)
    if params.bias is not None:
        z = z + params.bias[None, :]
    finite = finite & jnp.all(jnp.isfinite(z), axis=1)
    z = jnp.where(finite[:, None], z, 0)
    c = architecture.activation.log_scale(z)
    u, du, _ = architecture.activation.jet(z, c)
    outer = math.sqrt(architecture.kernel_scale)
    if not architecture.normalized:
        room = _log_largest(z.dtype) - math.log(m)
        features = u * (outer / math.sqrt(m) * jnp.exp(jnp.minimum(c, room)))
        slopes = du * (outer / math.sqrt(m) * jnp.exp(jnp.minimum(c, room / 2)))
        none = jnp.zeros((x.shape[0], a.shape[1]), z.dtype)
        return RowFactors(features, slopes, jnp.zeros(z.shape, bool), none, none, finite)
    alpha = jnp.sum(u, axis=1, keepdims=True)
    kept = activations.normaliser_is_resolved(u, alpha)
    inverse = jnp.where(kept, 1, 0) / jnp.where(kept, alpha, 1)
    weights = u * inverse
    # With a tolerance, because u may be computed twice, differently rounded; and once for all that
    # depends on it.
    near = 1 - 8 * jnp.finfo(z.dtype).eps
    largest = lax.optimization_barrier(
        jnp.abs(u) >= near * jnp.max(jnp.abs(u), axis=1, keepdims=True)
    )
    centres, offsets = _split_means(weights, a, largest)
    scale = outer * math.sqrt(m)
    return RowFactors(
        scale * weights, scale * (du * inverse), largest, centres, offsets, finite & kept[:, 0]
    )


@jax.custom_jvp
def _split_means(
    weights: Float[Array, "n m"], a: Float[Array, "m k"], largest: Bool[Array, "n m"]
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """The means ``weights @ a`` as centres + offsets (see :class:`RowFactors`), for weights that
    sum to one.
    """
    ones, rest = largest.astype(a.dtype), jnp.where(largest, 0, weights)
    centres = product(ones, a) / jnp.sum(ones, axis=1, keepdims=True)
    return centres, product(rest, a) - centres * jnp.sum(rest, axis=1, keepdims=True)


@_split_means.defjvp
def _split_means_jvp(primals: tuple, tangents: tuple) -> tuple:
    # The split is for rounding only: all of the derivative goes to the offsets, also that of units
    # that are equally large now.
    (weights, a, largest), (dweights, da, _) = primals, tangents
    centres, offsets = _split_means(weights, a, largest)
    return (centres, offsets), (
        jnp.zeros_like(centres),
        product(dweights, a) + product(weights, da),
    )


def _of_one_dtype(x: Points, params: Parameters) -> tuple[Points, Parameters]:
    """Return points and weights in the wider precision of the two, also where nothing is promoted
    silently.
    """
    dtypes = {jnp.dtype(leaf.dtype) for leaf in (x, *jax.tree.leaves(params))}
    if len(dtypes) == 1:
        return x, params
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*dtypes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, params))


def check_parameters(architecture: Architecture, params: object) -> None:
    """Refuse what are no weights of this network.

    Raises:
        ValueError: another type, another network's shapes, a bias missing or too many, no
            floating-point numbers.
    """
    if not isinstance(params, Parameters):
        raise ValueError(
            f"params must be the Parameters of this network, got {type(params).__name__}. Take them from init_fn: "
            "_, params = net.init_fn(key, (-1, d)); apply_fn takes (params, x)."
        )
    wanted = {
        "hidden": ("d", architecture.width),
        "readout": (architecture.width, architecture.out_dim),
    }
    if architecture.bias:
        wanted["bias"] = (architecture.width,)
    elif params.bias is not None:
        raise ValueError("params.bias must be None: this network was made with bias=False.")
    for name, shape in wanted.items():
        leaf = getattr(params, name)
        if not isinstance(leaf, jax.Array | np.ndarray) or not jnp.issubdtype(
            leaf.dtype, jnp.floating
        ):
            raise ValueError(
                f"params.{name} must be a floating-point array, got {getattr(leaf, 'dtype', type(leaf).__name__)}."
            )
        if len(leaf.shape) != len(shape) or any(
            w != n for w, n in zip(shape, leaf.shape, strict=True) if w != "d"
        ):
            raise ValueError(
                f"params.{name} must have shape [{', '.join(map(str, shape))}], got {leaf.shape}: params are those of another "
                "network. Take them from this one's init_fn."
            )


def row_vectors(rows: RowFactors, a: Float[Array, "m k"]) -> Float[Array, "n k m"]:
    """g; a − centres is taken first, so that nothing is lost where a row concentrates."""
    return rows.slopes[:, None, :] * (
        (a.T[None, :, :] - rows.centres[:, :, None]) - rows.offsets[:, :, None]
    )
