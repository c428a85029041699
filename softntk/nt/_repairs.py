"""Repairs of neural_tangents where it imports but behaves differently on current JAX.

There is one function for each quirk. Its docstring says what the release expects, what JAX does
now, and what the repair does.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core

from softntk._core.validation import is_concrete
from softntk.nt._views import View

# A module of neural_tangents, whose attributes the repairs replace.
Module = Any
# A Kernel or an array, or a tree of them, as neural_tangents allows.
KernelOrArray = Any


def fix_eval_context(predict: Module) -> None:
    """Let ``predict`` factorise a traced Gram matrix.

    Expected: it factorises once, in ``jax.core.eval_context``, which lets traced arrays pass.
    Now: the context raises on them. Repair: enter it only if the matrix and the regularisation,
    all that the factorisation takes, are concrete.
    """
    # 1. ``predict`` enters the context itself: its view of jax gets one that does nothing.
    predict.jax = View(
        predict.jax, core=View(predict.jax.core, eval_context=contextlib.nullcontext)
    )

    def factorise_concretely(fn: Callable) -> Callable:
        """Return the factorisation, in ``eval_context`` if its arguments are concrete."""

        @functools.wraps(fn)
        def wrapped(matrix: Any, diag_reg: Any, *args: Any, **kwargs: Any) -> Any:
            all_concrete = is_concrete(matrix) and is_concrete(diag_reg)
            with jax.core.eval_context() if all_concrete else contextlib.nullcontext():
                return fn(matrix, diag_reg, *args, **kwargs)

        return wrapped

    # 2. The context is entered around its two factorisations instead.
    predict._get_cho_solve = factorise_concretely(predict._get_cho_solve)
    predict._get_fns_in_eigenbasis = factorise_concretely(predict._get_fns_in_eigenbasis)


def fix_batch_flags(batching: Module, utils: Module) -> None:
    """Give a batched ``Kernel`` the flag ``x1_is_x2`` of the whole arrays, not of the first block.

    Expected: the first block decides (on several devices: unequal shapes do). Now: JAX draws arrays
    of one key with equal beginnings, so that the first rows of x1 and x2 are often equal where the
    arrays are not. Repair: compare the whole arrays; a kernel as argument keeps its own flag.
    """
    # A tree is a nested list or tuple, for layers of several inputs.
    Kernel = batching.Kernel

    def whole_flag(x1_or_kernel: KernelOrArray, x2: KernelOrArray) -> jax.Array | bool:
        """Return whether x1 and x2 are equal, all rows compared."""
        if utils.is_nt_tree_of(x1_or_kernel, Kernel):
            return utils.nt_tree_fn(reduce=lambda flags: jax.numpy.all(jax.numpy.stack(flags)))(
                lambda kernel: jax.numpy.asarray(kernel.x1_is_x2)
            )(x1_or_kernel)
        return True if utils.all_none(x2) else utils.x1_is_x2(x1_or_kernel, x2)

    def with_whole_flag(make: Callable) -> Callable:
        """Return a maker of batched kernel functions whose results have the right flag."""

        @functools.wraps(make)
        def wrapped(kernel_fn: Callable, *args: Any, **kwargs: Any) -> Callable:
            fn = make(kernel_fn, *args, **kwargs)

            @utils.wraps(fn)
            def batched(
                x1_or_kernel: KernelOrArray,
                x2: KernelOrArray = None,
                *fn_args: Any,
                **fn_kwargs: Any,
            ) -> Any:
                kernel = fn(x1_or_kernel, x2, *fn_args, **fn_kwargs)
                if not utils.is_nt_tree_of(kernel, Kernel):
                    return kernel
                flag = jax.numpy.asarray(whole_flag(x1_or_kernel, x2))
                return utils.nt_tree_fn(nargs=1)(lambda k: k.replace(x1_is_x2=flag))(kernel)

            # Parallel kernel functions carry the number of devices, which callers read.
            if hasattr(fn, "device_count"):
                batched.device_count = fn.device_count
            return batched

        return wrapped

    # ``batch`` composes these two.
    batching._serial = with_whole_flag(batching._serial)
    batching._parallel = with_whole_flag(batching._parallel)


def fix_pmap_placement(batching: Module) -> None:
    """Give ``batching`` a ``pmap`` that takes inputs from any device and may be nested.

    Expected: ``jax.pmap`` spreads its inputs over the devices wherever they are, its results can be
    combined with arrays on the first device, and it nests if there are devices enough. Now: it
    refuses inputs that were committed elsewhere, its own results among them, so that batched
    kernels do not compose; and it does not nest. Repair: spread concrete inputs, and collect
    results on the first device. On a single device run without pmap, which then nests.
    """

    def pmap(fn: Callable) -> Callable:
        """Map fn over the leading axis, one row on each device."""
        mapped_fn = jax.pmap(fn)

        @jax.jit
        def run_unmapped(args: tuple, kwargs: dict) -> Any:
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], fn(*args, **kwargs))

        @functools.wraps(fn)
        def placed(*args: Any, **kwargs: Any) -> Any:
            leaves = jax.tree.leaves((args, kwargs))
            device_count = leaves[0].shape[0]
            # 1. One device: nothing to spread.
            if device_count == 1:
                return run_unmapped(args, kwargs)
            # 2. Traced inputs have no placement yet.
            if not all(map(is_concrete, leaves)):
                return mapped_fn(*args, **kwargs)
            # 3. Spread the rows, and collect the results on the first device.
            devices = jax.local_devices()[:device_count]
            device_mesh = jax.sharding.Mesh(devices, "rows")
            by_rows = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec("rows"))
            args, kwargs = jax.device_put((args, kwargs), by_rows)
            return jax.device_put(mapped_fn(*args, **kwargs), devices[0])

        return placed

    batching.pmap = pmap


def fix_size_and_dtype(empirical: Module) -> None:
    """Give ``empirical`` a ``jnp.size`` that takes shapes and a ``jnp.dtype`` that takes arrays.

    Expected: the empirical kernels call both so. Now: JAX deprecates it and is about to refuse.
    Repair: the size of a shape is the product of its axes; an array has a dtype.
    """

    def size(x: Any) -> int:
        """Return the number of entries of an array or a shape structure."""
        return math.prod(jax.numpy.shape(x))

    def dtype(x: Any) -> Any:
        """Return the dtype of an array, or the dtype itself."""
        return jax.numpy.dtype(getattr(x, "dtype", x))

    empirical.jnp = View(jax.numpy, size=size, dtype=dtype)
