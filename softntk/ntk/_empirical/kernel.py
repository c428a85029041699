"""The empirical neural tangent kernel of a network at its present weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from softntk._core.meshes import call_without_explicit_axes, vary_like
from softntk._core.validation import (
    as_floating,
    as_jax_array,
    as_pair,
    check_choice,
    check_finite,
    check_integer,
    check_positive_int,
    check_shape,
)
from softntk._linalg.products import product
from softntk._two_layer.architecture import check_parameters
from softntk.networks import Architecture, Network, Parameters
from softntk.ntk._empirical.assembly import two_layer_kernel
from softntk.ntk._empirical.contractions import Block
from softntk.ntk._row_independence import check_rows_independent
from softntk.ntk._user_functions import OwnFunction, bind, refuse_keywords

# Values of the argument ``outputs``.
OUTPUT_KINDS = ("full", "mean", "diagonal")

Inputs1 = Float[Array | np.ndarray, "n1 ..."]
Inputs2 = Float[Array | np.ndarray, "n2 ..."]
Kernel = Block


def empirical(
    net: Network | tuple[Callable, ...] | Callable,
    params: Any,
    x1: Inputs1,
    x2: Inputs2 | None = None,
    outputs: Literal["full", "mean", "diagonal"] = "full",
    *,
    block_size: int | None = None,
    vmap_axes: int | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Kernel:
    r"""Return the empirical NTK, H[i, j, ℓ, ℓ'] = ⟨∂F_ℓ(x1_i)/∂θ, ∂F_ℓ'(x2_j)/∂θ⟩.

    For the networks of softntk it is exact and needs no differentiation. With the row factors g of
    :func:`softntk.networks.row_factors`,

        H[i, j, ℓ, ℓ'] = ⟨x_i, x_j⟩ ⟨g_{iℓ}, g_{jℓ'}⟩

    plus δ_ℓℓ' ⟨φ_i, φ_j⟩ if the readout is trained, and with 1 added to ⟨x_i, x_j⟩ for a network
    with biases. For any other ``apply_fn(params, x)``, and any triple that holds one, the kernel is
    the product of two Jacobians. Use it where the kernel fits into memory; beyond that,
    :func:`softntk.ntk.operator` multiplies by it without forming it.

    Cost for a softntk network on one set of points, in products of n²m multiplications: (k² + k +
    2)/4 for all outputs of a ±1 readout, ½ for k = 1 and 3/2 for the mean, instead of k², 1 and k.
    ``softntk/ntk/_empirical/contractions.py`` has the algebra, and the slower form that is chosen
    where the fast one would lose digits. For several outputs of a wide network
    ``softntk/ntk/_empirical/sign_patterns.py`` needs fewer still: about one product up to k = 4.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x, **apply_kwargs)`` that returns one array, [n, k] or [n] (k = 1).
            The function must flatten outputs with more axes.
        params: its weights. For functions of your own any pytree: a module of equinox or flax.nnx,
            the variables of flax.linen, a dataclass. Derivatives are taken by its floating-point
            arrays; integers, flags, keys, functions and names are constants. Constants are also
            ``batch_stats``, ``cache`` and ``intermediates`` in the variables of flax.linen,
            everything but ``nnx.Param`` in flax.nnx, and Python floats in equinox modules.
        x1: [n1, d]; for functions of your own [n1, …], e.g. images.
        x2: [n2, …]; None means x1 again.
        outputs: "full" for [n1, n2, k, k], "mean" for the mean over outputs [n1, n2]
            (neural_tangents' trace), "diagonal" for [n1, n2, k].
        block_size: rows computed at a time, for softntk networks; the memory in use is in
            proportion to it. None (default) takes as many as fit into the caches, and at most a
            quarter of all, so that symmetry saves work.
        vmap_axes: for functions that are not softntk networks: 0 if the rows do not interact (no
            batch normalisation in training mode), which is much faster; None (default) assumes
            nothing.
        apply_kwargs: further arguments of apply_fn, e.g. ``{"train": False, "rngs": {"dropout":
            key}}``. Arrays among them may change without compiling anew; everything else is part of
            the program.

    Returns:
        The kernel. Entries of rows that are outside the network's domain, known only at run time,
        are +inf, never NaN. Entries beyond the largest number of the precision are that number,
        with their sign. Points and weights of different precision are converted to the wider one.

    Raises:
        ValueError: outputs unknown, block_size not positive, or points of wrong rank, feature count
            or dtype, empty or not finite; params that do not fit the network; an apply_fn that
            returns anything but one array [n] or [n, k], or whose rows interact while vmap_axes is
            0.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> x = jax.random.normal(jax.random.key(1), (5, 8))
        >>> sn.ntk.empirical(net, params, x).shape
        (5, 5, 3, 3)
        >>> sn.ntk.empirical(net, params, x, outputs="mean").shape
        (5, 5)
        >>> apply_fn = lambda w, x, scale: scale * jax.numpy.tanh(x @ w)
        >>> sn.ntk.empirical(apply_fn, jax.numpy.ones(8), x, apply_kwargs={"scale": 2.0}).shape
        (5, 5, 1, 1)

    Source: arXiv 2405.03251, Definition 3.6 (kernel of the softmax network) for one output;
    MATHEMATICS.md#empirical-kernel for the rest.
    """
    # 1. Check what needs no conversion.
    if block_size is not None:
        block_size = check_positive_int("block_size", block_size)
    if vmap_axes is not None:
        vmap_axes = check_integer("vmap_axes", vmap_axes, at_least=0, at_most=0)
    check_choice("outputs", outputs, OUTPUT_KINDS)

    # 2. A softntk network: the closed form.
    if isinstance(net, Network):
        refuse_keywords(apply_kwargs)
        architecture = net.architecture
        params = as_parameters(architecture, params)
        points1, points2 = as_pair(x1, x2)
        if points1.shape[1] != len(params.hidden):
            raise ValueError(
                f"x1 must have the {len(params.hidden)} features that params.hidden has, "
                f"got shape {points1.shape}."
            )
        params, points1, points2 = to_widest_precision(params, points1, points2)
        return two_layer_kernel(architecture, params, points1, points2, outputs, block_size)

    # 3. Any other function: the product of two Jacobians.
    points1 = as_points("x1", x1)
    points2 = None if x2 is None or x2 is x1 else as_points("x2", x2)
    if points2 is not None:
        check_shape("x2", points2, ("n2", *points1.shape[1:]))
        if points2.dtype != points1.dtype:
            raise ValueError(
                f"x2 must have the dtype of x1, got {points2.dtype} and {points1.dtype}. "
                "Convert one of them."
            )
    function = bind(net, params, points1, apply_kwargs)
    if vmap_axes == 0:
        check_rows_independent(function, points1, ", or vmap_axes=None")
    return call_without_explicit_axes(
        partial(_jacobian_kernel, outputs, vmap_axes == 0), points1, function, points1, points2
    )


def as_points(name: str, x: object) -> Float[Array, "n ..."]:
    """Return points of any shape, [n, …], as a floating-point array."""
    array = as_floating(name, x)
    if array.ndim < 1:
        raise ValueError(f"{name} must have shape [n, …], one entry a point, got shape ().")
    return array


def as_parameters(architecture: Architecture, params: object) -> Parameters:
    """Return params as JAX arrays.

    Raises:
        ValueError: params are no finite weights of this network; the message names the first fault.
    """
    check_parameters(architecture, params)
    for name in ("hidden", "readout", "bias"):
        leaf = getattr(params, name)
        if leaf is not None:
            check_finite(f"params.{name}", leaf)
    return jax.tree.map(as_jax_array, params)


def to_widest_precision(params: Parameters, *points: Array | None) -> tuple[Any, ...]:
    """Return weights and points in the widest precision among them."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, points))}
    if len(dtypes) == 1:
        return (params, *points)
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    # Neither of float16 and bfloat16 contains the other; float32 contains both.
    common_dtype = jnp.float32 if widest.itemsize == 2 else widest
    return jax.tree.map(lambda leaf: leaf.astype(common_dtype), (params, *points))


# --- functions of the user -----------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1))
def _jacobian_kernel(
    outputs: str, rows_independent: bool, function: OwnFunction, x1: Array, x2: Array | None
) -> Kernel:
    """Return the product of two Jacobians, summed over the leaves of the weights."""
    dtype = function.out_structure(x1).dtype
    jacobians1 = _jacobians(function, x1, rows_independent, dtype)
    jacobians2 = jacobians1 if x2 is None else _jacobians(function, x2, rows_independent, dtype)
    terms = [
        _contract_jacobians(outputs, jacobian1, jacobian2)
        for jacobian1, jacobian2 in zip(jacobians1, jacobians2, strict=True)
    ]
    return jnp.sum(jnp.stack(terms), axis=0) if len(terms) > 1 else terms[0]


def _jacobians(
    function: OwnFunction, x: Array, rows_independent: bool, dtype: jnp.dtype
) -> list[Float[Array, "n k p"]]:
    """Return ∂F/∂θ for each leaf of the weights, the leaf flattened."""
    weights = vary_like(function.weights, function, x)
    if rows_independent:
        # Each row by itself: one pass for each output, instead of one for each output of each row.
        row_jacobian = jax.jacrev(lambda weights, point: function(weights, point[None])[0])
        leaves = jax.vmap(row_jacobian, in_axes=(None, 0))(weights, x)
    else:
        leaves = jax.jacrev(function)(weights, x)
    return [
        leaf.reshape(len(x), -1, weight.size).astype(dtype)
        for leaf, weight in zip(leaves, weights, strict=True)
    ]


def _contract_jacobians(
    outputs: str, jacobian1: Float[Array, "n1 k p"], jacobian2: Float[Array, "n2 k p"]
) -> Kernel:
    """Return the inner products over the weights of one leaf, for these outputs."""
    n1, k, p = jacobian1.shape
    n2 = len(jacobian2)
    if outputs == "full":
        matrix = product(jacobian1.reshape(n1 * k, p), jacobian2.reshape(n2 * k, p).T)
        return matrix.reshape(n1, k, n2, k).transpose(0, 2, 1, 3)
    if outputs == "mean":
        return product(jacobian1.reshape(n1, k * p), jacobian2.reshape(n2, k * p).T) / k
    return jnp.einsum("ilp,jlp->ijl", jacobian1, jacobian2, precision=lax.Precision.HIGHEST)
