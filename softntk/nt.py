"""neural_tangents 0.6.5, usable on current JAX and without TensorFlow: the one place that knows its quirks.

``from softntk import nt`` is the real package: ``nt.stax``, ``nt.predict``, ``nt.batch``, ``nt.monte_carlo_kernel_fn``,
``nt.empirical_ntk_fn``, … Afterwards ``import neural_tangents`` gives the same one.

How. Its last release imports names that have left JAX. Its modules are executed with an ``__import__`` of their own that
hands them *views* of ``jax`` and ``scipy``: the real modules with the missing names in front. Nothing that other code sees
is touched. What imports but then behaves differently from the release on the JAX it was written for is mended below, one
function a quirk, each found by comparing with a direct computation.

All four implementations of the empirical NTK run. ``STRUCTURED_DERIVATIVES`` works on JAX's own programs, through
internals that have changed the most: its mends have a file to themselves, ``_nt_structured``. ``AUTO`` passes over an
implementation that cannot run the network at hand. ``python -m softntk.nt`` prints which parts work on this Python and JAX.

Example:
    >>> import jax
    >>> from softntk import nt
    >>> _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(64), nt.stax.Relu(), nt.stax.Dense(1))
    >>> kernel_fn(jax.numpy.eye(3), None, "ntk").shape
    (3, 3)
"""

import builtins
import contextlib
import functools
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import numpy as np
import scipy.linalg

from softntk import _nt_structured
from softntk._core.validation import is_concrete

VERSION = "0.6.5"
"""The release that the mends below were written for."""


# --- what neural_tangents sees ------------------------------------------------------------------------------------


class _View(types.ModuleType):
    """A module with some names replaced or added, for one reader; the module itself stays as it is."""

    def __init__(self, module: types.ModuleType, **names: object) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def _safe_zip(*args: Iterable) -> list[tuple]:
    return list(zip(*args, strict=True))


def _safe_map(f: Callable, *args: Iterable) -> list:
    return [f(*row) for row in _safe_zip(*args)]


def _eigvalsh(a: Any, eigvals: tuple[int, int] | None = None, **kwargs: Any) -> np.ndarray:
    # SciPy 1.12 was the last with `eigvals`; predict.max_learning_rate passes it.
    return scipy.linalg.eigvalsh(np.asarray(a), subset_by_index=eigvals, **kwargs)


def _views() -> Mapping[str, types.ModuleType]:
    extend = jax.extend.core
    core = _View(jax.core, **{n: getattr(extend, n) for n in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")})
    util = _View(types.ModuleType("jax.util"), safe_map=_safe_map, safe_zip=_safe_zip)
    # The primitive is gone, so no program contains it: it only has to be something that rules can be registered for.
    ad = _View(jax.interpreters.ad, zeros_like_p=extend.Primitive("zeros_like"))
    interpreters = _View(jax.interpreters, ad=ad)
    linalg = _View(scipy.linalg, eigvalsh=_eigvalsh)
    return {
        "jax": _View(jax, core=core, util=util, interpreters=interpreters),
        "jax.core": core,
        "jax.util": util,
        "jax.interpreters": interpreters,
        "jax.interpreters.ad": ad,
        "scipy": _View(scipy, linalg=linalg),
        "scipy.linalg": linalg,
    }


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module with builtins whose ``__import__`` answers with the views."""

    views = _views()

    @classmethod
    def _import(cls, name: str, globals=None, locals=None, fromlist=(), level=0):
        if level or name.partition(".")[0] not in cls.views:
            return builtins.__import__(name, globals, locals, fromlist, level)
        if name not in cls.views:
            module = builtins.__import__(name, globals, locals, fromlist or (), 0)
            return module if fromlist else cls.views[name.partition(".")[0]]
        return cls.views[name if fromlist else name.partition(".")[0]]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)


class _Finder:
    """Finds neural_tangents, and nothing else, through :class:`_Loader`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None):
        if name.partition(".")[0] != "neural_tangents":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _import_neural_tangents() -> types.ModuleType:
    for name in [n for n in sys.modules if n.partition(".")[0] == "neural_tangents"]:
        del sys.modules[name]  # what a failed import of its own left behind
    # The only part that wants TensorFlow; nothing else of neural_tangents uses it.
    sys.modules["neural_tangents.experimental"] = types.ModuleType(
        "neural_tangents.experimental", "Not available through softntk.nt."
    )
    sys.meta_path.insert(0, _Finder)
    try:
        return importlib.import_module("neural_tangents")
    except ModuleNotFoundError as error:
        if error.name == "neural_tangents":
            raise ModuleNotFoundError(
                "softntk.nt needs neural-tangents 0.6.5: pip install neural-tangents==0.6.5", name=error.name
            ) from None
        raise
    finally:
        sys.meta_path.remove(_Finder)


# --- mends: what imports, but behaves differently on current JAX --------------------------------------------------


def _mend_eval_context(predict: Any) -> None:
    """``predict`` factorises the Gram matrix once, "outside" of jit and vmap, also when the matrix itself is traced.

    ``jax.core.eval_context`` used to let traced arrays pass; now it raises on them. So: enter it if, and only if, all
    that the factorisation takes is concrete: the matrix and the regularisation.
    """
    predict.jax = _View(predict.jax, core=_View(predict.jax.core, eval_context=contextlib.nullcontext))

    def factorise_outside(fn: Callable) -> Callable:
        @functools.wraps(fn)
        def wrapped(matrix: Any, diag_reg: Any, *args: Any, **kwargs: Any) -> Any:
            outside = is_concrete(matrix) and is_concrete(diag_reg)
            with jax.core.eval_context() if outside else contextlib.nullcontext():
                return fn(matrix, diag_reg, *args, **kwargs)

        return wrapped

    predict._get_cho_solve = factorise_outside(predict._get_cho_solve)
    predict._get_fns_in_eigenbasis = factorise_outside(predict._get_fns_in_eigenbasis)


def _mend_batch_flags(batching: Any, utils: Any) -> None:
    """A batched ``Kernel`` took ``x1_is_x2`` from its first block alone (on several devices: from unequal shapes).

    That is True whenever the first rows of x2 are those of x1, which JAX's present random bits make common: one key now
    gives arrays with equal beginnings. The flag of the whole is known beforehand: for arrays compare them, for a kernel
    keep its own.
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


def _mend_pmap(batching: Any) -> None:
    """``jax.pmap`` spread its inputs over the devices wherever they were, and could be nested where devices sufficed.

    Now it refuses what was committed elsewhere, for one all that it returned itself: batched kernels did not compose. What
    is computed from its results stayed on all devices; it was on the first, to be combined with anything. Nothing nests;
    but on a single device there is nothing to spread either.
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
            rows = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, "rows"), jax.sharding.PartitionSpec("rows"))
            args, kwargs = jax.device_put((args, kwargs), rows)
            return jax.device_put(mapped(*args, **kwargs), devices[0])

        return placed

    batching.pmap = pmap


def _mend_size_and_dtype(empirical: Any) -> None:
    """The empirical kernels take ``jnp.size`` of a shape without values and ``jnp.dtype`` of an array.

    JAX deprecates both and is about to refuse. The size of a shape is the product of its axes; an array has a dtype.
    """
    dtype = lambda x: jax.numpy.dtype(getattr(x, "dtype", x))
    empirical.jnp = _View(jax.numpy, size=lambda x: math.prod(jax.numpy.shape(x)), dtype=dtype)


_package: Any = _import_neural_tangents()
_source = _package._src
_mend_eval_context(_source.predict)
_mend_pmap(_source.batching)
_mend_batch_flags(_source.batching, _source.utils.utils)
_mend_size_and_dtype(_source.empirical)
_nt_structured.mend(_source.empirical, _View)


def diagonal_outer_products(kernel: Any, operation: Callable) -> tuple[Any, Any, Any]:
    """``operation(variances of the first point, of the second)``, broadcasting against cov1, nngp and cov2 in turn.

    Args:
        kernel: a ``Kernel`` of any layout: cov1 of shape [n1] or [n1, n1], with spatial axes once or twice.
        operation: of two arrays.

    Example:
        >>> kernel = stax.Dense(1)[2](jax.numpy.eye(2))
        >>> [v.shape for v in diagonal_outer_products(kernel, lambda first, second: (first, second))[1]]
        [(2, 1), (1, 2)]
    """
    outer = _source.stax.requirements.get_diagonal_outer_prods
    return outer(kernel.cov1, kernel.cov2, kernel.diagonal_batch, kernel.diagonal_spatial, operation)


def variances(kernel: Any) -> list[Any]:
    """The diagonals [n, …] of cov1 and, if there is one, of cov2 of a ``Kernel`` of any layout.

    Example:
        >>> variances(stax.Dense(1)[2](jax.numpy.eye(2)))[0].tolist()
        [0.5, 0.5]
    """
    diagonal = _source.stax.requirements.get_diagonal
    both = (kernel.cov1, kernel.cov2)
    return [diagonal(cov, kernel.diagonal_batch, kernel.diagonal_spatial) for cov in both if cov is not None]


stax = _package.stax
predict = _package.predict
batch = _package.batch
empirical_kernel_fn = _package.empirical_kernel_fn
empirical_nngp_fn = _package.empirical_nngp_fn
empirical_ntk_fn = _package.empirical_ntk_fn
empirical_ntk_vp_fn = _package.empirical_ntk_vp_fn
linearize = _package.linearize
taylor_expand = _package.taylor_expand
monte_carlo_kernel_fn = _package.monte_carlo_kernel_fn
NtkImplementation = _package.NtkImplementation
Kernel = _package.Kernel

if __name__ == "__main__":
    sys.modules["softntk.nt"] = sys.modules["__main__"]  # the same module under the name by which the table imports it
    from softntk import _nt_compatibility

    sys.exit(_nt_compatibility.main())
