"""Repairs of what imports, but behaves differently on current JAX: one function a quirk."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core

from softntk._core.validation import is_concrete
from softntk.nt._views import View


def fix_eval_context(predict: Any) -> None:
    """``predict`` factorises the Gram matrix once, "outside" of jit and vmap, also when the matrix
    itself is traced.

    ``jax.core.eval_context`` used to let traced arrays pass; now it raises on them. So: enter it
    if, and only if, all that the factorisation takes is concrete: the matrix and the
    regularisation.
    """
    predict.jax = View(
        predict.jax, core=View(predict.jax.core, eval_context=contextlib.nullcontext)
    )

    def factorise_outside(fn: Callable) -> Callable:
        @functools.wraps(fn)
        def wrapped(matrix: Any, diag_reg: Any, *args: Any, **kwargs: Any) -> Any:
            outside = is_concrete(matrix) and is_concrete(diag_reg)
            with jax.core.eval_context() if outside else contextlib.nullcontext():
                return fn(matrix, diag_reg, *args, **kwargs)

        return wrapped

    predict._get_cho_solve = factorise_outside(predict._get_cho_solve)
    predict._get_fns_in_eigenbasis = factorise_outside(predict._get_fns_in_eigenbasis)


def fix_batch_flags(batching: Any, utils: Any) -> None:
    """A batched ``Kernel`` took ``x1_is_x2`` from its first block alone (on several devices: from
    unequal shapes).

    That is True whenever the first rows of x2 are those of x1, which JAX's present random bits make
    common: one key now gives arrays with equal beginnings. The flag of the whole is known
    beforehand: for arrays compare them, for a kernel keep its own.
    """
    Kernel = batching.Kernel

    def flag_of(x1_or_kernel: Any, x2: Any) -> jax.Array | bool:
        if utils.is_nt_tree_of(x1_or_kernel, Kernel):
            return utils.nt_tree_fn(reduce=lambda flags: jax.numpy.all(jax.numpy.stack(flags)))(
                lambda k: jax.numpy.asarray(k.x1_is_x2)
            )(x1_or_kernel)
        return True if utils.all_none(x2) else utils.x1_is_x2(x1_or_kernel, x2)

    def with_flag_of_the_whole(make: Callable) -> Callable:
        @functools.wraps(make)
        def wrapped(kernel_fn: Callable, *args: Any, **kwargs: Any) -> Callable:
            fn = make(kernel_fn, *args, **kwargs)

            @utils.wraps(fn)
            def batched(x1_or_kernel: Any, x2: Any = None, *fn_args: Any, **fn_kwargs: Any) -> Any:
                out = fn(x1_or_kernel, x2, *fn_args, **fn_kwargs)
                if not utils.is_nt_tree_of(out, Kernel):
                    return out
                flag = jax.numpy.asarray(flag_of(x1_or_kernel, x2))
                return utils.nt_tree_fn(nargs=1)(lambda k: k.replace(x1_is_x2=flag))(out)

            if hasattr(fn, "device_count"):
                batched.device_count = fn.device_count
            return batched

        return wrapped

    batching._serial = with_flag_of_the_whole(batching._serial)
    batching._parallel = with_flag_of_the_whole(batching._parallel)


def fix_pmap_placement(batching: Any) -> None:
    """``jax.pmap`` spread its inputs over the devices wherever they were, and could be nested where
    devices sufficed.

    Now it refuses what was committed elsewhere, for one all that it returned itself: batched
    kernels did not compose. What is computed from its results stayed on all devices; it was on the
    first, to be combined with anything. Nothing nests; but on a single device there is nothing to
    spread either.
    """

    def pmap(fn: Callable) -> Callable:
        mapped = jax.pmap(fn)

        @jax.jit
        def alone(args: tuple, kwargs: dict) -> Any:
            args, kwargs = jax.tree.map(lambda x: x[0], (args, kwargs))
            return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], fn(*args, **kwargs))

        @functools.wraps(fn)
        def placed(*args: Any, **kwargs: Any) -> Any:
            leaves = jax.tree.leaves((args, kwargs))
            count = leaves[0].shape[0]
            if count == 1:
                return alone(args, kwargs)
            if not all(map(is_concrete, leaves)):
                return mapped(*args, **kwargs)
            devices = jax.local_devices()[:count]
            rows = jax.sharding.NamedSharding(
                jax.sharding.Mesh(devices, "rows"), jax.sharding.PartitionSpec("rows")
            )
            args, kwargs = jax.device_put((args, kwargs), rows)
            return jax.device_put(mapped(*args, **kwargs), devices[0])

        return placed

    batching.pmap = pmap


def fix_size_and_dtype(empirical: Any) -> None:
    """The empirical kernels take ``jnp.size`` of a shape without values and ``jnp.dtype`` of an
    array.

    JAX deprecates both and is about to refuse. The size of a shape is the product of its axes; an
    array has a dtype.
    """
    dtype = lambda x: jax.numpy.dtype(getattr(x, "dtype", x))
    empirical.jnp = View(jax.numpy, size=lambda x: math.prod(jax.numpy.shape(x)), dtype=dtype)
