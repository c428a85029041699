"""``ntk.operator`` and ``ntk.kernel_operator``: large Gram matrices as lineax operators that are never formed."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._validation import check_finite, check_floating, check_positive_int, check_rows, is_concrete
from softntk.networks import Network
from softntk.ntk._tiles import numbers_at_a_time
from softntk.ntk.gram_operators import GramOperator
from softntk.ntk.kernel_tiles import KernelOperator
from softntk.ntk.network_operators import JacobianOperator, TwoLayerOperator

Inputs = Float[Array | np.ndarray, "n ..."]


@dataclass(frozen=True)
class _Got:
    """kernel_fn(·, ·, get) as a function of two arguments; equal to others of the same parts, so that nothing recompiles."""

    kernel_fn: Callable
    get: str

    def __call__(self, x1: Array, x2: Array) -> Array:
        return self.kernel_fn(x1, x2, self.get)


def operator(
    net: Network | tuple[Callable, ...] | Callable, params: Any, x: Inputs, *, block_size: int | None = None
) -> GramOperator:
    r"""The empirical NTK on n points with k outputs, n·k × n·k, as a lineax operator on [n, k] that is never formed.

    (HV)_{iℓ} = Σ_{jℓ'} H[i, j, ℓ, ℓ'] V_{jℓ'}. For a softntk network: two passes over blocks of rows, 4 n m d multiplications a
    product, O(block · m) memory; for any other function a vjp and a jvp of blocks of rows.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an ``apply_fn(params, x) -> [n, k]`` whose rows
            do not interact (no batch normalisation).
        params: its weights.
        x: points, [n, d] for a softntk network, [n, …] for any other.
        block_size: rows at a time. None: so many that an array of a block has about a million entries (more on accelerators).

    Returns:
        A :class:`~softntk.ntk.gram_operators.GramOperator`: ``mv`` on [n, k], ``mm`` on [n, k, r], ``rows``, ``diagonal``,
        ``as_matrix`` [n·k, n·k] (the output is the fast index); tagged symmetric positive semidefinite; differentiable in
        params and x. If a row is outside the network's domain, known only at run time, products are +inf.

    Raises:
        ValueError: points of wrong rank, feature count or dtype, empty or not finite; block_size not positive; outputs that
            are not [n, k].

    Example:
        >>> import jax, lineax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> op = sn.ntk.operator(net, params, jax.random.normal(jax.random.key(1), (100, 8)))
        >>> op.mv(jax.numpy.ones((100, 3))).shape, lineax.is_positive_semidefinite(op)
        ((100, 3), True)

    Source: arXiv 2405.03251, Definition 3.6 (the kernel); MATH.md section 2, "H acts on V without being formed".
    """
    if block_size is not None:
        check_positive_int("block_size", block_size)
    if isinstance(net, Network):
        check_rows("x", x)
        d, m = params.hidden.shape
        if x.shape[1] != d:
            raise ValueError(f"x must have the {d} features that params.hidden has, got shape {x.shape}.")
        size = min(len(x), block_size or max(1, numbers_at_a_time() // (2 * m)))
        return TwoLayerOperator(params=params, x=jnp.asarray(x), architecture=net.architecture, block_size=size)
    _check_inputs(x)
    apply_fn = net[1] if isinstance(net, tuple) else net
    out = jax.eval_shape(apply_fn, params, jnp.asarray(x))
    if len(out.shape) != 2 or out.shape[0] != len(x):
        raise ValueError(f"apply_fn must return [n, k], got shape {out.shape} for x of shape {x.shape}.")
    size = min(len(x), block_size or 256)
    return JacobianOperator(params=params, x=jnp.asarray(x), apply_fn=apply_fn, block_size=size)


def kernel_operator(kernel_fn: Callable, x: Inputs, get: str = "ntk", *, block_size: int | None = None) -> GramOperator:
    """A kernel on n points, n × n, as a lineax operator on [n] that is never formed: tile by tile.

    Args:
        kernel_fn: symmetric, ``(x1, x2) -> [n1, n2]``, or ``(x1, x2, get)`` as ``two_layer(…).kernel_fn`` and those of
            neural_tangents are.
        x: points, [n, …].
        get: "ntk" or "nngp", for functions that take it.
        block_size: rows and columns of a tile (default 512; more on accelerators). Each tile is computed once a product and
            serves both sides of the diagonal; two tiles are held.

    Returns:
        A :class:`~softntk.ntk.gram_operators.GramOperator`: ``mv`` on [n], ``mm`` on [n, r], ``rows``, ``diagonal``,
        ``as_matrix`` [n, n]; tagged symmetric positive semidefinite; differentiable in x.

    Raises:
        ValueError: points of wrong dtype, empty or not finite; block_size not positive; a kernel_fn that does not return
            [n1, n2] or is not symmetric on the first points.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, jax.random.normal(jax.random.key(1), (100, 8)))
        >>> op.mv(jax.numpy.ones(100)).shape
        (100,)

    Source: MATH.md section 2, "Infinite width".
    """
    if block_size is not None:
        check_positive_int("block_size", block_size)
    _check_inputs(x)
    x = jnp.asarray(x)
    takes_get = "get" in inspect.signature(kernel_fn).parameters
    two = _Got(kernel_fn, get) if takes_get else kernel_fn
    few = x[: min(8, len(x))]
    shape = jax.eval_shape(two, few, few[:1]).shape
    if shape != (len(few), 1):
        raise ValueError(f"kernel_fn must return [n1, n2], got shape {shape} for {len(few)} and 1 points.")
    one, other = two(few, few[::-1]), two(few[::-1], few).T
    if is_concrete(one):
        gap, size = float(jnp.max(jnp.abs(one - other))), float(jnp.max(jnp.abs(one)))
        if gap > 1e-3 * size:
            raise ValueError(
                f"kernel_fn must be symmetric, but k(x, x') and k(x', x) differ by {gap:.3g} (largest entry {size:.3g})."
            )
    return KernelOperator(x=x, kernel_fn=two, block_size=min(len(x), block_size or math.isqrt(numbers_at_a_time() // 8)))


def _check_inputs(x: Inputs) -> None:
    check_floating("x", x)
    if jnp.ndim(x) < 1 or 0 in jnp.shape(x):
        raise ValueError(f"x must have shape [n, …] and at least one row, got shape {jnp.shape(x)}.")
    check_finite("x", x)
