"""Constructors of operators: ``ntk.operator`` and ``ntk.kernel_operator``.

The Gram matrices that they stand for are large and never formed.
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
from softntk.ntk._empirical.kernel import as_parameters, as_points, to_widest_precision
from softntk.ntk._operators.base import GramOperator
from softntk.ntk._operators.jacobian import JacobianOperator
from softntk.ntk._operators.kernel_function import KernelOperator
from softntk.ntk._operators.two_layer import TwoLayerOperator
from softntk.ntk._row_independence import check_rows_independent
from softntk.ntk._user_functions import bind, refuse_keywords

Inputs = Float[Array | np.ndarray, "n ..."]

JACOBIAN_BLOCK_SIZE = 256  # rows of a user's function that are differentiated at a time
MAX_SYMMETRY_POINTS = 8  # points on which a kernel function is tested for symmetry
MAX_ASYMMETRY = 1e-3  # of the largest entry: above the rounding of any kernel in float32


@dataclass(frozen=True)
class _KernelOfKind:
    """A ``kernel_fn(x1, x2, get)`` as a function of two arguments.

    Two of them with equal parts are equal, so that the programs of one serve the other.

    Attributes:
        kernel_fn: the function of three arguments.
        get: "ntk" or "nngp".
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
    r"""Return the empirical NTK on n points with k outputs as a lineax operator on [n, k].

    Use it where the matrix, [n·k, n·k], is too large for memory: it is never formed.

    (HV)_{iℓ} = Σ_{jℓ'} H[i, j, ℓ, ℓ'] V_{jℓ'}. For a softntk network a product is two passes over
    blocks of rows, with 4 n m d multiplications and O(block · m) memory. For any other function it
    is a vjp and a jvp of blocks of rows.

    Args:
        net: a network of :func:`softntk.networks.two_layer`, another triple, or an
            ``apply_fn(params, x, **apply_kwargs)`` that returns one array, [n, k] or [n] (k = 1),
            and whose rows do not interact. Batch normalisation in training mode and one key of
            dropout for all rows are noticed where the values are known.
        params: its weights, as for :func:`softntk.ntk.empirical`: what is no floating-point array
            is a constant.
        x: points, [n, d] for a softntk network, [n, …] for any other.
        block_size: rows at a time. None: as many as make an array of a block about a million
            entries large (more on accelerators). The last block is filled up with its last row.
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

    # 1. A softntk network: products by its row factors.
    if isinstance(net, Network):
        refuse_keywords(apply_kwargs)
        architecture = net.architecture
        params = as_parameters(architecture, params)
        features, width = params.hidden.shape
        params, points = to_widest_precision(params, as_rows("x", x, features))
        rows_per_block = min(len(points), block_size or max(1, cache_budget() // (2 * width)))
        return TwoLayerOperator(
            params=params, x=points, architecture=architecture, block_size=rows_per_block
        )

    # 2. Any other function: products by its derivatives.
    points = as_points("x", x)
    function = bind(net, params, points, apply_kwargs)
    check_rows_independent(
        function, points, ", or ntk.empirical with vmap_axes=None, which takes rows together"
    )
    return JacobianOperator(
        function=function, x=points, block_size=min(len(points), block_size or JACOBIAN_BLOCK_SIZE)
    )


def kernel_operator(
    kernel_fn: Callable,
    x: Inputs,
    get: Literal["ntk", "nngp"] = "ntk",
    *,
    block_size: int | None = None,
) -> GramOperator:
    """Return a kernel on n points as a lineax operator on [n].

    Use it where the matrix, [n, n], is too large for memory: it is computed in tiles, never formed.

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
        >>> x = jax.random.normal(jax.random.key(1), (100, 8))
        >>> op = sn.ntk.kernel_operator(net.kernel_fn, x)
        >>> op.mv(jax.numpy.ones(100)).shape
        (100,)

    Source: MATHEMATICS.md#infinite-width.
    """
    if block_size is not None:
        block_size = check_positive_int("block_size", block_size)
    check_callable("kernel_fn", kernel_fn, "a function (x1, x2) -> [n1, n2]")
    points = as_points("x", x)
    kernel = kernel_fn
    if _takes_get(kernel_fn):
        kernel = _KernelOfKind(kernel_fn, check_choice("get", get, ("nngp", "ntk")))
    _check_kernel_fn(kernel, points)
    tile_size = min(len(points), block_size or math.isqrt(cache_budget() // 8))
    return KernelOperator(x=points, kernel_fn=kernel, block_size=tile_size)


def _takes_get(kernel_fn: Callable) -> bool:
    """Return whether a function has an argument named get."""
    try:
        return "get" in inspect.signature(kernel_fn).parameters
    except (TypeError, ValueError):  # functions of compiled modules have no signature
        return False


def _check_kernel_fn(kernel_fn: Callable, x: Array) -> None:
    """Raise if a kernel_fn does not return [n1, n2], or is not symmetric on a few points."""
    # 1. What it returns for several points and for one, found by tracing.
    sample = run_without_explicit_axes(lambda x: x[: min(MAX_SYMMETRY_POINTS, len(x))])(x)
    single_shape = (1, *sample.shape[1:])
    try:
        structure = jax.eval_shape(
            kernel_fn,
            jax.ShapeDtypeStruct(sample.shape, sample.dtype),
            jax.ShapeDtypeStruct(single_shape, sample.dtype),
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            "kernel_fn(x1, x2) fails for the points x, "
            f"of shapes {sample.shape} and {single_shape}: {reason} "
            "It must take any two sets of points."
        ) from error
    if not isinstance(structure, jax.ShapeDtypeStruct):
        raise ValueError(
            f"kernel_fn must return one array [n1, n2], got {type(structure).__name__}."
        )
    if structure.shape != (len(sample), 1):
        raise ValueError(
            f"kernel_fn must return [n1, n2], got shape {structure.shape} "
            f"for {len(sample)} and 1 points."
        )
    if not jnp.issubdtype(structure.dtype, jnp.floating):
        raise ValueError(
            f"kernel_fn must return floating-point numbers, got dtype {structure.dtype}."
        )

    # 2. Whether k(x, x') = k(x', x), where values are not traced. Entries that are not finite are
    # left out.
    values = run_without_explicit_axes(lambda x: kernel_fn(x, x[::-1]))(sample)
    if not is_concrete(values):
        return
    mirrored = run_without_explicit_axes(lambda x: kernel_fn(x[::-1], x).T)(sample)
    values = np.asarray(values, np.float64)
    mirrored = np.asarray(mirrored, np.float64)
    is_finite = np.isfinite(values) & np.isfinite(mirrored)
    largest_entry = np.max(np.abs(values), where=is_finite, initial=0)
    asymmetry = np.max(np.abs(np.where(is_finite, values, 0) - np.where(is_finite, mirrored, 0)))
    if asymmetry > MAX_ASYMMETRY * largest_entry:
        raise ValueError(
            f"kernel_fn must be symmetric, but k(x, x') and k(x', x) differ by {asymmetry:.3g} "
            f"(largest entry {largest_entry:.3g})."
        )
