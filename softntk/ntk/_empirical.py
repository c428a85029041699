"""The empirical neural tangent kernel of a network at its present weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from softntk import activations
from softntk._validation import check_pair
from softntk.networks import Architecture, Network, Parameters, Points, Points1, Points2, RowFactors, row_factors

OUTPUTS = ("full", "mean", "diagonal")

Kernel = Float[Array, "n1 n2"] | Float[Array, "n1 n2 k"] | Float[Array, "n1 n2 k k"]


def empirical(
    net: Network | tuple[Callable, ...] | Callable,
    params: Any,
    x1: Points1,
    x2: Points2 | None = None,
    outputs: str = "full",
    *,
    vmap_axes: int | None = None,
) -> Kernel:
    r"""The empirical NTK, H[i, j, ℓ, ℓ'] = ⟨∂F_ℓ(x1_i)/∂θ, ∂F_ℓ'(x2_j)/∂θ⟩.

    For the networks of softntk it is exact and needs no differentiation. With the row factors g of
    :func:`softntk.networks.row_factors`,

        H[i, j, ℓ, ℓ'] = ⟨x_i, x_j⟩ ⟨g_{iℓ}, g_{jℓ'}⟩  (+ δ_ℓℓ' ⟨φ_i, φ_j⟩ when the readout is trained),

    where 1 is added to ⟨x_i, x_j⟩ for a network with biases. Any other ``apply_fn(params, x)``, and any triple that holds
    one, goes through ``neural_tangents.empirical_ntk_fn``.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an ``apply_fn``.
        params: its weights.
        x1: [n1, d].
        x2: [n2, d]; None means x1 again.
        outputs: "full" for [n1, n2, k, k], "mean" for the mean over outputs [n1, n2] (neural_tangents' trace),
            "diagonal" for [n1, n2, k].
        vmap_axes: for functions that are not softntk networks: 0 if the rows do not interact (no batch normalisation),
            which is very much faster; None (default) assumes nothing.

    Returns:
        The kernel. Entries of rows that are outside the network's domain, known only at run time, are +inf, never NaN.

    Raises:
        ValueError: outputs unknown, or points of wrong rank, feature count or dtype, empty or not finite.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> x = jax.random.normal(jax.random.key(1), (5, 8))
        >>> sn.ntk.empirical(net, params, x).shape, sn.ntk.empirical(net, params, x, outputs="mean").shape
        ((5, 5, 3, 3), (5, 5))

    Source: arXiv 2405.03251, Definition 3.6 (kernel of the softmax network) for one output; MATH.md section 2 for the rest.
    """
    check_pair(x1, x2)
    if outputs not in OUTPUTS:
        raise ValueError(activations.unknown("outputs", outputs, dict.fromkeys(OUTPUTS)))
    if isinstance(net, Network):
        d = params.hidden.shape[0]
        if x1.shape[1] != d:
            raise ValueError(f"x1 must have the {d} features that params.hidden has, got shape {x1.shape}.")
        return _two_layer_kernel(net.architecture, params, x1, x2, outputs)
    return _any_kernel(net[1] if isinstance(net, tuple) else net, params, x1, x2, outputs, vmap_axes)


@partial(jax.jit, static_argnums=(0, 4))
def _two_layer_kernel(architecture: Architecture, params: Parameters, x1: Points1, x2: Points2 | None, outputs: str) -> Kernel:
    one = row_factors(architecture, params, jnp.asarray(x1))
    two = one if x2 is None else row_factors(architecture, params, jnp.asarray(x2))
    constant = 0.0 if params.bias is None else 1.0
    z1 = _clean(jnp.asarray(x1), one)
    z2 = z1 if x2 is None else _clean(jnp.asarray(x2), two)
    dots = _product(z1, z2) + constant
    trailing = {"full": 2, "mean": 0, "diagonal": 1}[outputs]
    kernel = _expand(dots, trailing) * _contract(one, two, params.readout, outputs)
    if architecture.train_readout:
        gram = _expand(_product(one.features, two.features), trailing)
        k = params.readout.shape[1]
        kernel = kernel + (gram * jnp.eye(k, dtype=gram.dtype)[None, None] if outputs == "full" else gram)
    # A plain exponential may saturate: the entry stays the largest number, and infinity is left to mean "outside the domain".
    largest = jnp.finfo(kernel.dtype).max
    valid = _expand(one.valid[:, None] & two.valid[None, :], trailing)
    return jnp.where(valid, jnp.clip(kernel, -largest, largest), jnp.inf)


def _contract(one: RowFactors, two: RowFactors, a: Float[Array, "m k"], outputs: str) -> Kernel:
    """⟨g_{iℓ}, g_{jℓ'}⟩, for all pairs of outputs, their diagonal, or the mean of it."""

    def factors(rows: RowFactors) -> Float[Array, "n k m"]:
        return rows.slopes[:, None, :] * (a.T[None, :, :] - rows.means[:, :, None])

    (n1, m), (n2, _), k = one.slopes.shape, two.slopes.shape, a.shape[1]
    g1 = factors(one)
    g2 = g1 if two is one else factors(two)
    if outputs == "full":
        return _product(g1.reshape(n1 * k, m), g2.reshape(n2 * k, m)).reshape(n1, k, n2, k).transpose(0, 2, 1, 3)
    if outputs == "mean":
        return _product(g1.reshape(n1, k * m), g2.reshape(n2, k * m)) / k
    return jnp.einsum("ilm,jlm->ijl", g1, g2, precision=lax.Precision.HIGHEST)


def _product(x: Float[Array, "n1 m"], y: Float[Array, "n2 m"]) -> Float[Array, "n1 n2"]:
    return jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)


def _clean(x: Points, rows: RowFactors) -> Float[Array, "n d"]:
    return jnp.where(rows.valid[:, None], x, 0)


def _expand(x: Shaped[Array, "n1 n2"], trailing: int) -> Array:
    return jnp.expand_dims(x, tuple(range(2, 2 + trailing)))


def _any_kernel(
    apply_fn: Callable, params: Any, x1: Points1, x2: Points2 | None, outputs: str, vmap_axes: int | None
) -> Kernel:
    from softntk import nt

    axes: dict[str, dict[str, tuple[int, ...]]] = {
        "full": {"trace_axes": (), "diagonal_axes": ()},
        "mean": {"trace_axes": (-1,), "diagonal_axes": ()},
        "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
    }
    kernel_fn = nt.empirical_ntk_fn(apply_fn, vmap_axes=vmap_axes, **axes[outputs])
    x2 = None if x2 is None or x2 is x1 else jnp.asarray(x2)
    return kernel_fn(jnp.asarray(x1), x2, params)
