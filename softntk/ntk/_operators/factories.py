"""``ntk.operator`` and ``ntk.kernel_operator``: large Gram matrices as lineax operators that are
never formed.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from softntk._core.meshes import run_without_explicit_axes
from softntk._core.validation import (
    as_rows,
    check_callable,
    check_choice,
    check_positive_int,
    is_concrete,
)
from softntk._linalg.blocks import cache_budget
from softntk.networks import Network
from softntk.ntk._empirical.kernel import as_inputs, as_parameters, same_precision
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._operators.jacobian import JacobianOperator
from softntk.ntk._operators.kernel_function import KernelOperator
from softntk.ntk._operators.two_layer import TwoLayerOperator
from softntk.ntk._user_functions import bind, check_rows_alone, refuse_keywords

Inputs = Float[Array | np.ndarray, "n ..."]


@dataclass(frozen=True)
class _GetKernel:
    """A kernel_fn(·, ·, get) as a function of two arguments; equal to others of the same parts:
    nothing recompiles.
    """

    kernel_fn: Callable
    get: str

    def __call__(self, x1: Array, x2: Array) -> Array:
        return self.kernel_fn(x1, x2, self.get)


def operator(
    net: Network | tuple[Callable, ...] | Callable,
    params: Any,
    x: Inputs,
    *,
    block_size: int | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> GramOperator:
    r"""Return the empirical NTK on n points with k outputs, n·k × n·k, as a lineax operator on [n,
    k] that is never formed.

    (HV)_{iℓ} = Σ_{jℓ'} H[i, j, ℓ, ℓ'] V_{jℓ'}. For a softntk network: two passes over blocks of
    rows, 4 n m d multiplications a product, O(block · m) memory; for any other function a vjp and a
    jvp of blocks of rows.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x, **apply_kwargs)`` that returns one array, [n, k] or [n] (k = 1),
            and whose rows do not interact. Batch normalisation in training mode and one key of
            dropout for all rows are noticed where the values are known.
        params: its weights, as for :func:`softntk.ntk.empirical`: what is no floating-point array
            is a constant.
        x: points, [n, d] for a softntk network, [n, …] for any other.
        block_size: rows at a time. None: so many that an array of a block has about a million
            entries (more on accelerators). The last block is filled up with its last row.
        apply_kwargs: further arguments of apply_fn, as for :func:`softntk.ntk.empirical`.

    Returns:
        A :class:`~softntk.ntk._operators.base.GramOperator`: ``mv`` on [n, k], ``mm`` on [n, k, r],
        ``rows``, ``diagonal``, ``as_matrix`` [n·k, n·k] (the output is the fast index); tagged
        symmetric positive semidefinite; differentiable in params and x. If a row is outside the
        network's domain, known only at run time, products are +inf. Products of a softntk network
        that leave the precision stay its largest number, as entries of ``empirical`` do. Points and
        weights of different precision are computed with in the wider one.

    Raises:
        ValueError: points of wrong rank, feature count or dtype, empty or not finite; block_size
            not positive; params that do not fit the network; an apply_fn that returns anything but
            one array [n] or [n, k], or whose rows interact.

    Example:
        >>> import jax, lineax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=256, out_dim=3)
        >>> _, params = net.init_fn(jax.random.key(0), (-1, 8))
        >>> op = sn.ntk.operator(net, params, jax.random.normal(jax.random.key(1), (100, 8)))
        >>> op.mv(jax.numpy.ones((100, 3))).shape, lineax.is_positive_semidefinite(op)
        ((100, 3), True)

    Source: arXiv 2405.03251, Definition 3.6 (the kernel); MATHEMATICS.md#kernel-operator.
    """
    if block_size is not None:
        block_size = check_positive_int("block_size", block_size)
    if isinstance(net, Network):
        refuse_keywords(apply_kwargs)
        architecture = net.architecture
        params = as_parameters(architecture, params)
        features, width = params.hidden.shape
        params, points = same_precision(params, as_rows("x", x, features))
        size = min(len(points), block_size or max(1, cache_budget() // (2 * width)))
        return TwoLayerOperator(params=params, x=points, architecture=architecture, block_size=size)
    points = as_inputs("x", x)
    function = bind(net, params, points, apply_kwargs)
    check_rows_alone(
        function, points, ", or ntk.empirical with vmap_axes=None, which takes rows together"
    )
    return JacobianOperator(
        function=function, x=points, block_size=min(len(points), block_size or 256)
    )


def kernel_operator(
    kernel_fn: Callable,
    x: Inputs,
    get: Literal["ntk", "nngp"] = "ntk",
    *,
    block_size: int | None = None,
) -> GramOperator:
    """Return a kernel on n points, n × n, as a lineax operator on [n] that is never formed: tile by
    tile.

    Args:
        kernel_fn: symmetric, ``(x1, x2) -> [n1, n2]``, or ``(x1, x2, get)`` as
            ``two_layer(…).kernel_fn`` and those of neural_tangents are.
        x: points, [n, …].
        get: "ntk" or "nngp", for functions that take it.
        block_size: rows and columns of a tile (default 512; more on accelerators). Each tile is
            computed once a product and serves both sides of the diagonal; two tiles are held.

    Returns:
        A :class:`~softntk.ntk._operators.base.GramOperator`: ``mv`` on [n], ``mm`` on [n, r],
        ``rows``, ``diagonal``, ``as_matrix`` [n, n]; tagged symmetric positive semidefinite;
        differentiable in x.

    Raises:
        ValueError: points of wrong dtype, empty or not finite; block_size not positive; get
            unknown; a kernel_fn that does not return [n1, n2] or is not symmetric on the first
            points.

    Example:
        >>> import jax, softntk as sn
        >>> net = sn.networks.two_layer("softmax", width=2)
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, jax.random.normal(jax.random.key(1), (100, 8)))
        >>> op.mv(jax.numpy.ones(100)).shape
        (100,)

    Source: MATHEMATICS.md#infinite-width.
    """
    if block_size is not None:
        block_size = check_positive_int("block_size", block_size)
    check_callable("kernel_fn", kernel_fn, "a function (x1, x2) -> [n1, n2]")
    points = as_inputs("x", x)
    kernel = (
        _GetKernel(kernel_fn, check_choice("get", get, ("nngp", "ntk")))
        if _takes_get(kernel_fn)
        else kernel_fn
    )
    _check_kernel(kernel, points)
    size = min(len(points), block_size or math.isqrt(cache_budget() // 8))
    return KernelOperator(x=points, kernel_fn=kernel, block_size=size)


def _takes_get(kernel_fn: Callable) -> bool:
    try:
        return "get" in inspect.signature(kernel_fn).parameters
    except (TypeError, ValueError):  # functions of compiled modules have no signature
        return False


def _check_kernel(kernel_fn: Callable, x: Array) -> None:
    """Refuse a kernel_fn that does not return [n1, n2], or is not symmetric on the first points."""
    few = run_without_explicit_axes(lambda x: x[: min(8, len(x))])(x)
    single = (1, *few.shape[1:])
    try:
        out = jax.eval_shape(
            kernel_fn,
            jax.ShapeDtypeStruct(few.shape, few.dtype),
            jax.ShapeDtypeStruct(single, few.dtype),
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"kernel_fn(x1, x2) fails for the points x, of shapes {few.shape} and {single}: {reason} "
            "It must take any two sets of points."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(f"kernel_fn must return one array [n1, n2], got {type(out).__name__}.")
    if out.shape != (len(few), 1):
        raise ValueError(
            f"kernel_fn must return [n1, n2], got shape {out.shape} for {len(few)} and 1 points."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"kernel_fn must return floating-point numbers, got dtype {out.dtype}.")
    one = run_without_explicit_axes(lambda x: kernel_fn(x, x[::-1]))(few)
    if not is_concrete(one):
        return
    other = run_without_explicit_axes(lambda x: kernel_fn(x[::-1], x).T)(few)
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    size = np.max(np.abs(one), where=finite, initial=0)
    gap = np.max(np.abs(np.where(finite, one, 0) - np.where(finite, other, 0)))
    if gap > 1e-3 * size:
        raise ValueError(
            f"kernel_fn must be symmetric, but k(x, x') and k(x', x) differ by {gap:.3g} (largest entry {size:.3g})."
        )
