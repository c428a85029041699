r"""Two-layer networks as pure ``(init_fn, apply_fn, kernel_fn)`` triples: softmax, res_softmax, relu, exp, any activation.

With logits ``z = xW``, readout a and width m (arXiv 2405.03251, section 3; arXiv 2309.13482 for e^z + z):

- plain:       F(x) = m^{-1/2} u(z) a
- normalized:  F(x) = m^{-1/2} · m · (u(z) / 1ᵀu(z)) a,    so softmax is  F(x) = √m softmax(xW) a

Example:
    >>> import jax
    >>> from softntk import networks
    >>> net = networks.two_layer("softmax", width=256, out_dim=3)
    >>> x = jax.random.normal(jax.random.key(0), (5, 8)) / 8**0.5
    >>> _, params = net.init_fn(jax.random.key(1), (-1, 8))
    >>> net.apply_fn(params, x).shape, net.kernel_fn(x, None, "ntk").shape
    ((5, 3), (5, 5))
"""

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softntk import activations
from softntk._records import record
from softntk._validation import check_pair, check_positive, check_positive_int, check_rows
from softntk.activations import Activation

Points = Float[Array | np.ndarray, "n d"]
Points1 = Float[Array | np.ndarray, "n1 d"]
Points2 = Float[Array | np.ndarray, "n2 d"]

FAMILIES: dict[str, tuple[str, bool]] = {
    "softmax": ("exp", True),
    "res_softmax": ("res_exp", True),
    "relu": ("relu", False),
    "exp": ("exp", False),
}
"""Named members of the family: (activation, normalized)."""

PARAMETERIZATIONS = ("ntk", "paper")


@dataclass(frozen=True)
class Architecture:
    """Everything about a two-layer network but its weights; static and hashable. The fields are those of :func:`two_layer`."""

    activation: Activation
    normalized: bool
    width: int
    out_dim: int
    sigma: float
    antisymmetric: bool
    train_readout: bool
    parameterization: str
    bias: bool

    @property
    def kernel_scale(self) -> float:
        """What the parameterization multiplies every kernel by: 1 for ``ntk``, the width for ``paper``."""
        return float(self.width) if self.parameterization == "paper" else 1.0


@record
class Parameters:
    """Weights of a two-layer network, a pytree.

    Attributes:
        hidden: W, [d, m].
        readout: a, [m, k]. Behind a stop-gradient unless the network was made with ``train_readout=True``.
        bias: [m], or None. It acts as the weight of an extra input that is always 1.
    """

    hidden: Float[Array, "d m"]
    readout: Float[Array, "m k"]
    bias: Float[Array, " m"] | None = None


class RowFactors(NamedTuple):
    """The derivative of a two-layer network at n points, as factors of each row.

    ∂F_ℓ(x_i)/∂W = x_i ⊗ g_{iℓ}  with  g_{iℓ} = slopes_i ∘ (a_ℓ − centres_{iℓ} − offsets_{iℓ}),   ∂F_ℓ(x_i)/∂a_ℓ = features_i.

    Normalized, ⟨a_ℓ, u⟩/α is the sum of centres and offsets: the readout at the row's largest unit (their mean, if several
    are equally large), and the rest. Where the row concentrates on that unit, a_ℓ − ⟨a_ℓ, u⟩/α would cancel to nothing
    there; a_ℓ − centres is exactly zero instead, and the offsets keep all their digits.

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


class Network(namedtuple("_Triple", ("init_fn", "apply_fn", "kernel_fn"))):
    """A two-layer network: a triple of functions in the manner of ``neural_tangents.stax``, with its architecture behind it.

    It *is* the triple (``init_fn, apply_fn, kernel_fn = net`` works, and so does every function of neural_tangents).

    Attributes:
        init_fn: ``(key, input_shape) -> (output_shape, params)``; input_shape (…, d), -1 for an unknown number of rows.
        apply_fn: ``(params, x [n, d]) -> F [n, k]``.
        kernel_fn: ``(x1, x2=None, get=None) -> kernel [n1, n2]`` of infinite width; get is "ntk", "nngp", or a tuple of
            them (None: both) for a named tuple.
        architecture: the static description, :class:`Architecture`.
    """

    architecture: Architecture

    def __new__(cls, init_fn: Callable, apply_fn: Callable, kernel_fn: Callable, architecture: Architecture) -> "Network":
        """Build the triple and attach the architecture."""
        self = super().__new__(cls, init_fn, apply_fn, kernel_fn)
        self.architecture = architecture
        return self


_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _log_largest(dtype: jnp.dtype) -> float:
    return math.log(float(jnp.finfo(dtype).max))


def row_factors(architecture: Architecture, params: Parameters, x: Points) -> RowFactors:
    """Features and derivative factors of every row, from one evaluation of the logits (MATH.md section 2).

    Rows outside the domain are evaluated at x = 0 and marked in ``valid``. A plain network of an exponential activation
    saturates where the precision ends (u' beyond the root of its largest number), so that products stay finite.

    Args:
        architecture: of the network.
        params: its weights.
        x: [n, d].

    Returns:
        The :class:`RowFactors`.
    """
    a, m = params.readout, params.hidden.shape[1]
    finite = jnp.all(jnp.isfinite(x), axis=1)
    z = _product(jnp.where(finite[:, None], x, 0), params.hidden)
    if params.bias is not None:
        z = z + params.bias[None, :]
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
    kept = activations.is_kept(u, alpha)
    inverse = jnp.where(kept, 1, 0) / jnp.where(kept, alpha, 1)
    weights = u * inverse
    # With a tolerance, because u may be computed twice, differently rounded; and once for all that depends on it.
    near = 1 - 8 * jnp.finfo(z.dtype).eps
    largest = lax.optimization_barrier(jnp.abs(u) >= near * jnp.max(jnp.abs(u), axis=1, keepdims=True))
    centres, offsets = _split_means(weights, a, largest)
    scale = outer * math.sqrt(m)
    return RowFactors(scale * weights, scale * (du * inverse), largest, centres, offsets, finite & kept[:, 0])


@jax.custom_jvp
def _split_means(
    weights: Float[Array, "n m"], a: Float[Array, "m k"], largest: Bool[Array, "n m"]
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """The means ``weights @ a`` as centres + offsets (see :class:`RowFactors`), for weights that sum to one."""
    ones, rest = largest.astype(a.dtype), jnp.where(largest, 0, weights)
    centres = _product(ones, a) / jnp.sum(ones, axis=1, keepdims=True)
    return centres, _product(rest, a) - centres * jnp.sum(rest, axis=1, keepdims=True)


@_split_means.defjvp
def _split_means_jvp(primals: tuple, tangents: tuple) -> tuple:
    # The split is for rounding only: all of the derivative goes to the offsets, also that of units that are equally large now.
    (weights, a, largest), (dweights, da, _) = primals, tangents
    centres, offsets = _split_means(weights, a, largest)
    return (centres, offsets), (jnp.zeros_like(centres), _product(dweights, a) + _product(weights, da))


def _initialise(
    architecture: Architecture, key: PRNGKeyArray, input_shape: Sequence[int]
) -> tuple[tuple[int, ...], Parameters]:
    if len(input_shape) != 2 or input_shape[-1] < 1:
        raise ValueError(f"input_shape must be (n, d) with d at least 1 (n may be -1), got {tuple(input_shape)}.")
    hidden_key, bias_key, readout_key = jax.random.split(key, 3)
    m = architecture.width // 2 if architecture.antisymmetric else architecture.width
    hidden = architecture.sigma * jax.random.normal(hidden_key, (input_shape[-1], m))
    bias = architecture.sigma * jax.random.normal(bias_key, (m,)) if architecture.bias else None
    readout = jax.random.rademacher(readout_key, (m, architecture.out_dim), hidden.dtype)
    if architecture.antisymmetric:
        hidden, readout = jnp.concatenate([hidden, hidden], axis=1), jnp.concatenate([readout, -readout], axis=0)
        bias = None if bias is None else jnp.concatenate([bias, bias])
    params = Parameters(hidden=hidden, readout=readout, bias=bias)
    return (*input_shape[:-1], architecture.out_dim), params


def _apply(architecture: Architecture, params: Parameters, x: Points) -> Float[Array, "n k"]:
    check_rows("x", x)
    if x.shape[1] != params.hidden.shape[0]:
        raise ValueError(f"x must have the {params.hidden.shape[0]} features that params.hidden has, got shape {x.shape}.")
    readout = params.readout if architecture.train_readout else lax.stop_gradient(params.readout)
    rows = row_factors(architecture, params, jnp.asarray(x))
    out = _product(rows.features, readout)
    return jnp.where(rows.valid[:, None], out, jnp.inf)


def _infinite_kernels(architecture: Architecture, x1: Points1, x2: Points2 | None) -> dict[str, Float[Array, "n1 n2"]]:
    """{"nngp", "ntk"} of infinite width: E[φφ'] and ⟨x, x'⟩ E[φ̇φ̇'] (+ E[φφ'] with a trained readout)."""
    x1 = jnp.asarray(x1)
    symmetric = x2 is None
    x2 = x1 if x2 is None else jnp.asarray(x2)
    finite = jnp.all(jnp.isfinite(x1), axis=1)[:, None] & jnp.all(jnp.isfinite(x2), axis=1)[None, :]
    constant = 1.0 if architecture.bias else 0.0
    dots = _product(x1, x2.T) + constant
    squares1, squares2 = (jnp.sum(x * x, axis=1) + constant for x in (x1, x2))
    if symmetric:  # the diagonal to the last bit, so that θ is exactly zero there
        dots = jnp.where(jnp.eye(x1.shape[0], dtype=bool), squares1[:, None], dots)
    variance = architecture.sigma**2
    q11, q12, q22 = variance * squares1[:, None], variance * dots, variance * squares2[None, :]
    nngp, slopes = architecture.activation.limit(q11, q12, q22, architecture.normalized)
    nngp, ntk = architecture.kernel_scale * nngp, architecture.kernel_scale * dots * slopes
    if architecture.train_readout:
        ntk = ntk + nngp
    return {"nngp": jnp.where(finite, nngp, jnp.inf), "ntk": jnp.where(finite, ntk, jnp.inf)}


def _kernel_fn(architecture: Architecture) -> Callable:
    def kernel_fn(
        x1: Points1, x2: Points2 | None = None, get: str | tuple[str, ...] | None = None
    ) -> Float[Array, "n1 n2"] | tuple[Float[Array, "n1 n2"], ...]:
        """Kernel of the infinitely wide network, [n1, n2]: see :func:`two_layer`."""
        check_pair(x1, x2)
        names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
        for name in names:
            if name not in ("nngp", "ntk"):
                raise ValueError(activations.unknown("get", name, {"nngp": None, "ntk": None}))
        kernels = _infinite_kernels(architecture, x1, x2)
        if isinstance(get, str):
            return kernels[get]
        return namedtuple("Kernels", names)(*(kernels[name] for name in names))

    return kernel_fn


def two_layer(
    family: str | None = None,
    *,
    width: int,
    out_dim: int = 1,
    sigma: float = 1.0,
    antisymmetric: bool = True,
    train_readout: bool = False,
    parameterization: str = "ntk",
    bias: bool = False,
    activation: str | Activation | None = None,
    normalize: bool | None = None,
) -> Network:
    r"""A two-layer network of width m as an ``(init_fn, apply_fn, kernel_fn)`` triple.

    F(x) = s m^{-1/2} u(xW) a, or F(x) = s m^{1/2} (u(xW) / 1ᵀu(xW)) a when normalized; s = 1 for ``parameterization="ntk"``,
    s = √m for ``"paper"`` (the scaling F = m⟨a, softmax⟩ of arXiv 2405.03251, whose step sizes are m times smaller: the
    same dynamics to first order). W has N(0, σ²) entries and a is ±1.

    Infinite width, with q11 = σ²|x|², q12 = σ²⟨x, x'⟩, q22 = σ²|x'|² (1 is added to every inner product under ``bias``):

    ===========  ====================================  =============================================================
    network      NNGP E[φφ']                           derivative kernel E[φ̇φ̇']
    ===========  ====================================  =============================================================
    softmax      exp(q12)                              exp(q12)
    exp          exp((q11+q22)/2 + q12)                the same
    res_softmax  e^{q12} + q12 r                       e^{q12} + r,  r = e^{-q11/2} + e^{-q22/2} + e^{-(q11+q22)/2}
    relu         √(q11q22) (sin θ + (π−θ) cos θ) / 2π  (π−θ) / 2π
    ===========  ====================================  =============================================================

    NTK = ⟨x, x'⟩ × derivative kernel, plus the NNGP when the readout is trained too; zero between different outputs.

    To compare with neural_tangents (``nt.stax.serial(Dense(m), Relu(), Dense(k))``, [d] inputs):

    =====================  =========================================================================================
    here                   there
    =====================  =========================================================================================
    sigma                  W_std = σ√d in the first Dense (W_std = 1 in the second)
    NTK                    NTK with the first-layer term ⟨x,x'⟩ E[φ̇φ̇'] times σ²: they differentiate by the unscaled weight
    learning rate η        η n k: their mean squared loss is divided by n·k, ours is ½ΣΣ(F−Y)²
    ``outputs="mean"``     ``trace_axes=(-1,)``: their trace is a mean
    =====================  =========================================================================================

    Args:
        family: "softmax", "res_softmax", "relu" or "exp"; leave it out to name an activation instead.
        width: m, the number of hidden units; even if antisymmetric.
        out_dim: k, the number of outputs.
        sigma: σ, the standard deviation of the hidden weights.
        antisymmetric: m/2 hidden units, each twice, with readouts a and −a, so that F = 0 at the start ("double trick").
        train_readout: let gradients reach a as well. Otherwise it stands behind a stop-gradient.
        parameterization: "ntk" or "paper"; see above. ``kernel_fn`` and ``ntk.empirical`` are m times larger for "paper".
        bias: add hidden biases drawn from N(0, σ²), the weights of an extra input that is always 1.
        activation: an activation by name or an :class:`~softntk.activations.Activation`, instead of a family.
        normalize: with ``activation``: divide by the sum over the hidden units (default False).

    Returns:
        A :class:`Network`. ``apply_fn(params, x)`` is [n, k]. For rows outside the domain (a non-finite input, or a normaliser
        1ᵀu lost against 1ᵀ|u| in rounding) known only at run time it is +inf, as ``kernel_fn`` is for non-finite rows;
        never NaN. Logits of ±1e4 are inside; plain exponentials saturate near the largest number of the precision.

    Raises:
        ValueError: an unknown name (the nearest known one is suggested), zero, negative or odd width where it must be
            even, out_dim below 1, σ not positive, family and activation both or neither; and from the functions returned:
            inputs of wrong rank, feature count or dtype, empty or not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> net = two_layer("softmax", width=512, out_dim=2, sigma=0.5)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> float(jnp.max(jnp.abs(net.apply_fn(params, jnp.eye(4))))) < 1e-5  # antisymmetric: zero at the start
        True
        >>> [round(float(v), 4) for v in net.kernel_fn(jnp.eye(4), None, "ntk")[0, :2]]  # e^{σ²} on the diagonal
        [1.284, 0.0]

    Source: arXiv 2405.03251, Definitions 3.1-3.4 (network, initialisation, NTK); the limits are derived in MATH.md section 2:
    the normaliser concentrates, m⁻¹1ᵀu → E[u], so softmax acts as the normalized exponential e^{z − q/2}.
    """
    if (family is None) == (activation is None):
        raise ValueError(
            f"name either a family {sorted(FAMILIES)} or an activation, got family={family!r}, activation={activation!r}."
        )
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(activations.unknown("family", family, FAMILIES))
        if normalize is not None:
            raise ValueError(
                f"normalize goes with activation=…; the family {family!r} settles it, got normalize={normalize!r}."
            )
        activation, normalize = FAMILIES[family]
    check_positive_int("width", width)
    check_positive_int("out_dim", out_dim)
    check_positive("sigma", sigma)
    if antisymmetric and width % 2:
        raise ValueError(
            f"width must be even for antisymmetric initialisation, got {width}. Use {width + 1}, or antisymmetric=False."
        )
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(activations.unknown("parameterization", parameterization, dict.fromkeys(PARAMETERIZATIONS)))
    architecture = Architecture(
        activation=activations.get(activation or ""),
        normalized=bool(normalize),
        width=int(width),
        out_dim=int(out_dim),
        sigma=float(sigma),
        antisymmetric=bool(antisymmetric),
        train_readout=bool(train_readout),
        parameterization=parameterization,
        bias=bool(bias),
    )

    def init_fn(key: PRNGKeyArray, input_shape: Sequence[int]) -> tuple[tuple[int, ...], Parameters]:
        """Draw the weights: ``(key, (n, d)) -> ((n, k), params)``, in the default floating-point precision."""
        return _initialise(architecture, key, input_shape)

    def apply_fn(params: Parameters, x: Points, *, rng: PRNGKeyArray | None = None) -> Float[Array, "n k"]:
        """F(x), [n, k]. ``rng`` is what neural_tangents passes to every network; this one is deterministic."""
        del rng
        return _apply(architecture, params, x)

    return Network(init_fn, apply_fn, _kernel_fn(architecture), architecture)
