r"""Two-layer networks of any activation, as pure ``(init_fn, apply_fn, kernel_fn)`` triples.

With logits ``z = xW``, readout a and width m (arXiv 2405.03251, section 3; arXiv 2309.13482 for
e^z + z):

- plain:       F(x) = m^{-1/2} u(z) a
- normalized:  F(x) = m^{1/2} (u(z) / 1ᵀu(z)) a,    so softmax is  F(x) = √m softmax(xW) a

These are those of the default ``parameterization="ntk"``; "paper" multiplies them by √m.

Example:
    >>> import jax
    >>> from softntk import networks
    >>> net = networks.two_layer("softmax", width=256, out_dim=3)
    >>> x = jax.random.normal(jax.random.key(0), (5, 8)) / 8**0.5
    >>> _, params = net.init_fn(jax.random.key(1), (-1, 8))
    >>> net.apply_fn(params, x).shape, net.kernel_fn(x, None, "ntk").shape
    ((5, 3), (5, 5))
"""

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from softntk import activations
from softntk._core.meshes import place_automatically
from softntk._core.validation import (
    as_pair,
    as_rows,
    check_choice,
    check_flag,
    check_integer,
    check_key,
    check_number,
    check_positive,
    check_positive_int,
)
from softntk._linalg.products import product
from softntk._two_layer.architecture import Architecture as Architecture
from softntk._two_layer.architecture import Parameters as Parameters
from softntk._two_layer.architecture import Points as Points
from softntk._two_layer.architecture import RowFactors as RowFactors
from softntk._two_layer.architecture import check_parameters
from softntk._two_layer.architecture import row_factors as row_factors
from softntk._two_layer.infinite_width import KERNEL_NAMES, infinite_kernels
from softntk.activations import Activation

Points1 = Float[Array | np.ndarray, "n1 d"]
Points2 = Float[Array | np.ndarray, "n2 d"]

FAMILIES: dict[str, tuple[str, bool]] = {
    family: (activation.name, normalized)
    for activation in activations.ACTIVATIONS.values()
    for family, normalized in activation.families
}
"""Named members of the family: name → (name of the activation, whether it is normalized)."""

KernelName = Literal["nngp", "ntk"]

# Scalings of the output: F of order one, or √m times that.
PARAMETERIZATIONS = ("ntk", "paper")


@jax.tree_util.register_static
class Network(namedtuple("_Triple", ("init_fn", "apply_fn", "kernel_fn"))):
    """A two-layer network: a triple of functions as in ``neural_tangents.stax``.

    It *is* the triple (``init_fn, apply_fn, kernel_fn = net`` works, and so does every function of
    neural_tangents). Networks with equal settings are equal. To JAX it is a static value, like a
    function: a pytree without leaves.

    Attributes:
        init_fn: ``(key, input_shape) -> (output_shape, params)``; input_shape (n, d), -1 for an
            unknown number of rows.
        apply_fn: ``(params, x [n, d]) -> F [n, k]``.
        kernel_fn: ``(x1, x2=None, get=None) -> kernel [n1, n2]`` of infinite width; get is "ntk",
            "nngp", or a tuple of them (None: both) for a named tuple.
        architecture: the static description, :class:`Architecture`.
    """

    __slots__ = ()

    @property
    def architecture(self) -> Architecture:
        """The static description of the network whose functions these are."""
        architectures = [getattr(function, "architecture", None) for function in self]
        architecture = architectures[0]
        if isinstance(architecture, Architecture) and all(
            description == architecture for description in architectures[1:]
        ):
            return architecture
        raise ValueError(
            "net is no network of two_layer any more: one of its functions was replaced. Pass the "
            "function that you need, e.g. net.apply_fn."
        )


@dataclass(frozen=True)
class _Initialise:
    """The ``init_fn`` of a network.

    Attributes:
        architecture: the static description.
    """

    architecture: Architecture

    def __call__(
        self, key: PRNGKeyArray, input_shape: Sequence[int]
    ) -> tuple[tuple[int, ...], Parameters]:
        """Return ``((n, k), params)`` for input shape (n, d), in the default precision."""
        architecture = self.architecture
        key = check_key("key", key)
        rows, features = _as_shape(input_shape)
        params = _draw_parameters(
            key,
            architecture.sigma,
            (features, architecture.width, architecture.out_dim),
            architecture.bias,
            architecture.antisymmetric,
        )
        return (rows, architecture.out_dim), params


@partial(jax.jit, static_argnames=("shape", "bias", "antisymmetric"))
def _draw_parameters(
    key: PRNGKeyArray,
    sigma: float | Array,
    shape: tuple[int, int, int],
    bias: bool,
    antisymmetric: bool,
) -> Parameters:
    """Draw the parameters of a network with shape = (d, m, k), as one program."""
    # | symbol  | meaning                                   | shape  |
    # | hidden  | W, N(0, σ²)                               | [d, m] |
    # | bias    | N(0, σ²), the weights of an input of one  | [m]    |
    # | readout | a, ±1                                     | [m, k] |
    # 1. Draw m units, or m/2 that are duplicated.
    features, width, out_dim = shape
    hidden_key, bias_key, readout_key = jax.random.split(key, 3)
    m = width // 2 if antisymmetric else width
    hidden = jax.random.normal(hidden_key, (features, m))
    sigma = jnp.asarray(sigma, hidden.dtype)
    hidden = sigma * hidden
    bias_weights = sigma * jax.random.normal(bias_key, (m,)) if bias else None
    readout = jax.random.rademacher(readout_key, (m, out_dim), hidden.dtype)
    # 2. The double trick: equal units with opposite readouts, so that F = 0.
    if antisymmetric:
        hidden = jnp.concatenate([hidden, hidden], axis=1)
        readout = jnp.concatenate([readout, -readout], axis=0)
        if bias_weights is not None:
            bias_weights = jnp.concatenate([bias_weights, bias_weights])
    return Parameters(hidden=hidden, readout=readout, bias=bias_weights)


def _as_shape(input_shape: object) -> tuple[int, int]:
    """Return a checked input shape (n, d); n may be −1."""
    message = f"input_shape must be (n, d) with d at least 1 (n may be -1), got {input_shape!r}."
    if not isinstance(input_shape, list | tuple) or len(input_shape) != 2:
        raise ValueError(message)
    try:
        return check_integer("n", input_shape[0], at_least=-1), check_integer(
            "d", input_shape[1], at_least=1
        )
    except ValueError:
        raise ValueError(message) from None


@dataclass(frozen=True)
class _Apply:
    """The ``apply_fn`` of a network.

    Attributes:
        architecture: the static description.
    """

    architecture: Architecture

    def __call__(self, params: Parameters, x: Points, *, rng: object = None) -> Float[Array, "n k"]:
        """Return F(x), [n, k].

        neural_tangents passes ``rng`` to every network; this one is deterministic.
        """
        del rng
        check_parameters(self.architecture, params)
        # Types and finiteness are checked here, once, and not in the compiled part.
        x = as_rows("x", x)
        if x.shape[1] != params.hidden.shape[0]:
            raise ValueError(
                f"x must have the {params.hidden.shape[0]} features that params.hidden has, got "
                f"shape {x.shape}."
            )
        # A traced σ or activation cannot be a static argument.
        outputs = _compiled_outputs if self.architecture.is_static else _outputs
        return place_automatically(partial(outputs, self.architecture), x, params)


def _outputs(architecture: Architecture, x: Points, params: Parameters) -> Float[Array, "n k"]:
    """Return F(x), [n, k]."""
    # x → z = xW → row factors u(z)/α or u(z), scaled → F
    readout = params.readout if architecture.train_readout else lax.stop_gradient(params.readout)
    rows = row_factors(architecture, params, x)
    outputs = product(rows.features, jnp.asarray(readout, rows.features.dtype))
    # Sums of numbers near the largest one of the precision may be ∞ − ∞.
    return jnp.where(rows.valid[:, None] & ~jnp.isnan(outputs), outputs, jnp.inf)


_compiled_outputs = jax.jit(_outputs, static_argnums=0, inline=True)


@dataclass(frozen=True)
class _Kernel:
    """The ``kernel_fn`` of a network.

    Attributes:
        architecture: the static description.
    """

    architecture: Architecture

    def __call__(
        self,
        x1: Points1,
        x2: Points2 | None = None,
        get: KernelName | tuple[KernelName, ...] | None = None,
    ) -> Float[Array, "n1 n2"] | tuple[Float[Array, "n1 n2"], ...]:
        """Return the kernel of the infinitely wide network, [n1, n2]: see :func:`two_layer`."""
        x1, x2 = as_pair(x1, x2)
        names = _kernel_names(get)
        kernels = infinite_kernels(self.architecture, x1, x2)
        # As in neural_tangents: one name gives an array, several a named tuple.
        if isinstance(get, str):
            return kernels[names[0]]
        return namedtuple("Kernels", names)(*(kernels[name] for name in names))


def _kernel_names(get: object) -> tuple[str, ...]:
    """Return the names of the requested kernels; None requests both."""
    requested_names = KERNEL_NAMES if get is None else get
    requested_names = (
        tuple(requested_names) if isinstance(requested_names, list | tuple) else (requested_names,)
    )
    names = tuple(check_choice("get", name, KERNEL_NAMES) for name in requested_names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"get must name each kernel once, of {sorted(KERNEL_NAMES)}, got {get!r}.")
    return names


def two_layer(
    family: str | None = None,
    *,
    width: int,
    out_dim: int = 1,
    sigma: float | Array = 1.0,
    antisymmetric: bool = True,
    train_readout: bool = False,
    parameterization: str = "ntk",
    bias: bool = False,
    activation: str | Activation | None = None,
    normalize: bool | None = None,
) -> Network:
    r"""Return a two-layer network of width m as an ``(init_fn, apply_fn, kernel_fn)`` triple.

    Use it for networks of one hidden layer and their kernels; deeper ones are built of the layers
    in ``softntk.stax``. The network is

        F(x) = s m^{-1/2} u(xW) a,    normalized:  F(x) = s m^{1/2} (u(xW) / 1ᵀu(xW)) a.

    s = 1 for ``parameterization="ntk"``, s = √m for ``"paper"`` (the scaling F = m⟨a, softmax⟩ of
    arXiv 2405.03251, whose step sizes are m times smaller: the same dynamics to first order). W has
    N(0, σ²) entries and a is ±1.

    Infinite width, with q11 = σ²|x|², q12 = σ²⟨x, x'⟩, q22 = σ²|x'|² (1 is added to every inner
    product under ``bias``):

    ===========  =====================================  ==================================
    network      NNGP E[φφ']                            derivative kernel E[φ̇φ̇']
    ===========  =====================================  ==================================
    softmax      exp(q12)                               exp(q12)
    exp          exp((q11+q22)/2 + q12)                 the same
    res_softmax  e^{q12} + q12 r                        e^{q12} + r
    relu         √(q11q22) (sin θ + (π−θ) cos θ) / 2π   (π−θ) / 2π
    ===========  =====================================  ==================================

    with r = e^{-q11/2} + e^{-q22/2} + e^{-(q11+q22)/2}. NTK = ⟨x, x'⟩ × derivative kernel, plus the
    NNGP when the readout is trained too; zero between different outputs.

    To compare with neural_tangents (``nt.stax.serial(Dense(m), Relu(), Dense(k))``, [d] inputs):

    ====================  =====================================================================
    here                  there
    ====================  =====================================================================
    sigma                 W_std = σ√d in the first Dense (W_std = 1 in the second)
    NTK                   NTK with the first-layer term ⟨x,x'⟩ E[φ̇φ̇'] times σ², as they
                          differentiate by the unscaled weight
    learning rate η       η n k: their mean squared loss is divided by n·k, ours is ½ΣΣ(F−Y)²
    ``outputs="mean"``    ``trace_axes=(-1,)``: their trace is a mean
    ====================  =====================================================================

    Args:
        family: a name in ``FAMILIES`` (softmax, res_softmax, relu, exp, …); leave it out to name an
            activation instead.
        width: m, the number of hidden units; even if antisymmetric.
        out_dim: k, the number of outputs.
        sigma: σ, the standard deviation of the hidden weights. It may be traced: kernels, and
            weights that are drawn, have derivatives in it.
        antisymmetric: m/2 hidden units, each duplicated, with readouts a and −a, so that F = 0
            before training ("double trick").
        train_readout: let gradients reach a as well. Otherwise it is under a stop-gradient.
        parameterization: "ntk" or "paper"; see above. ``kernel_fn`` and ``ntk.empirical`` are m
            times larger for "paper".
        bias: add hidden biases drawn from N(0, σ²), the weights of an extra input that is always 1.
        activation: an activation by name or an :class:`~softntk.activations.Activation`, instead of
            a family.
        normalize: with ``activation``: divide by the sum over the hidden units (default False).

    Returns:
        A :class:`Network`. ``apply_fn(params, x)`` is [n, k]. Rows that turn out at run time to be
        outside of the domain (a non-finite input, or a normaliser 1ᵀu lost against 1ᵀ|u| in
        rounding) are +inf, as ``kernel_fn`` is for non-finite rows; never NaN. Logits of ±1e4 are
        inside; plain exponentials saturate near the largest number of the precision.

    Raises:
        ValueError: an unknown name (the nearest known one is suggested); a width below 1, or odd
            where it must be even; out_dim below 1; σ not positive; family and activation both
            given, or neither; a flag that is not True or False. From the functions returned: inputs
            of a wrong rank, number of features or dtype, empty or not finite; parameters of another
            network.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> net = two_layer("softmax", width=512, out_dim=2, sigma=0.5)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 4))
        >>> float(jnp.max(jnp.abs(net.apply_fn(params, jnp.eye(4))))) < 1e-5  # antisymmetric
        True
        >>> ntk = net.kernel_fn(jnp.eye(4), None, "ntk")  # e^{σ²} on the diagonal
        >>> [round(float(entry), 4) for entry in ntk[0, :2]]
        [1.284, 0.0]

    Source: arXiv 2405.03251, Definitions 3.1-3.4 (network, initialisation, NTK); the limits are in
    MATHEMATICS.md#infinite-width: the normaliser concentrates, m⁻¹1ᵀu → E[u], so softmax acts as
    the normalized exponential e^{z − q/2}.
    """
    # 1. A family names an activation and whether it is normalized.
    if (family is None) == (activation is None):
        raise ValueError(
            f"name either a family {sorted(FAMILIES)} or an activation, got family={family!r}, "
            f"activation={activation!r}."
        )
    if family is not None:
        check_choice("family", family, FAMILIES)
        if normalize is not None:
            raise ValueError(
                f"normalize goes with activation=…; the family {family!r} settles it, got "
                f"normalize={normalize!r}."
            )
        activation, normalize = FAMILIES[family]
    # 2. Check the numbers. The width must fit a float: kernels of the "paper" parameterization are
    #    multiplied by it.
    width = check_positive_int("width", width)
    check_number("width", width)
    sigma = check_positive("sigma", sigma)
    if check_flag("antisymmetric", antisymmetric) and width % 2:
        raise ValueError(
            f"width must be even for antisymmetric initialisation, got {width}. Use {width + 1}, "
            "or antisymmetric=False."
        )
    # 3. The three functions of one description.
    architecture = Architecture(
        activation=activations.get(activation),  # pyright: ignore[reportArgumentType]
        normalized=normalize is not None and check_flag("normalize", normalize),
        width=width,
        out_dim=check_positive_int("out_dim", out_dim),
        sigma=sigma,
        antisymmetric=bool(antisymmetric),
        train_readout=check_flag("train_readout", train_readout),
        parameterization=check_choice("parameterization", parameterization, PARAMETERIZATIONS),
        bias=check_flag("bias", bias),
    )
    return Network(_Initialise(architecture), _Apply(architecture), _Kernel(architecture))
