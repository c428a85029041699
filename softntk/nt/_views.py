"""Import neural_tangents with views of jax and scipy that have the names it was written for."""

import builtins
import importlib.machinery
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
from jaxtyping import ArrayLike


class View(types.ModuleType):
    """A module with some names replaced or added, for one reader; the module itself is unchanged.

    Attributes:
        names: the names that are replaced or added, with their values, as keyword arguments.
    """

    def __init__(self, module: types.ModuleType, **names: object) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the module that the view does not replace."""
        return getattr(self._module, name)


def _safe_zip(*args: Iterable) -> list[tuple]:
    """Zip iterables of equal length, as ``jax.util.safe_zip`` did."""
    return list(zip(*args, strict=True))


def _safe_map(f: Callable, *args: Iterable) -> list:
    """Map over iterables of equal length, as ``jax.util.safe_map`` did."""
    return [f(*row) for row in _safe_zip(*args)]


def _eigvalsh(a: ArrayLike, eigvals: tuple[int, int] | None = None, **kwargs: Any) -> np.ndarray:
    """Return some eigenvalues, by the argument's old name.

    SciPy 1.12 was the last with ``eigvals``; ``predict.max_learning_rate`` passes it.
    """
    return scipy.linalg.eigvalsh(np.asarray(a), subset_by_index=eigvals, **kwargs)


def _make_views() -> Mapping[str, types.ModuleType]:
    """Return the views by the name under which neural_tangents imports them."""
    extend = jax.extend.core
    program_types = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    core = View(jax.core, **{name: getattr(extend, name) for name in program_types})
    util = View(types.ModuleType("jax.util"), safe_map=_safe_map, safe_zip=_safe_zip)
    # The primitive has left JAX, so no program contains it. A rule is registered for it at import.
    ad = View(jax.interpreters.ad, zeros_like_p=extend.Primitive("zeros_like"))
    interpreters = View(jax.interpreters, ad=ad)
    linalg = View(scipy.linalg, eigvalsh=_eigvalsh)
    return {
        "jax": View(jax, core=core, util=util, interpreters=interpreters),
        "jax.core": core,
        "jax.util": util,
        "jax.interpreters": interpreters,
        "jax.interpreters.ad": ad,
        "scipy": View(scipy, linalg=linalg),
        "scipy.linalg": linalg,
    }


class _Loader(importlib.machinery.SourceFileLoader):
    """Loader that runs a module with an ``__import__`` that returns the views.

    Attributes:
        views: module name → view.
    """

    views = _make_views()

    @classmethod
    def _import(
        cls,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """Import as ``__import__`` does: the top package, or with a fromlist the module itself."""
        top_package = name.partition(".")[0]
        # 1. Relative imports and packages without views are left as they are.
        if level or top_package not in cls.views:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        # 2. A module without a view of its own, below a package that has one.
        if name not in cls.views:
            module = builtins.__import__(name, globals, locals, fromlist or (), 0)
            return module if fromlist else cls.views[top_package]
        # 3. A view.
        return cls.views[name if fromlist else top_package]

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the module with the replaced ``__import__``."""
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)


class _Finder:
    """Finder of neural_tangents, and nothing else, which it loads by :class:`_Loader`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module of neural_tangents, with the loader replaced."""
        if name.partition(".")[0] != "neural_tangents":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def import_neural_tangents() -> types.ModuleType:
    """Return neural_tangents, imported with the views."""
    # 1. Remove what a failed import of neural_tangents alone left behind.
    for name in [name for name in sys.modules if name.partition(".")[0] == "neural_tangents"]:
        del sys.modules[name]
    # 2. Replace the only part that needs TensorFlow; no other part of neural_tangents uses it.
    sys.modules["neural_tangents.experimental"] = types.ModuleType(
        "neural_tangents.experimental", "Not available through softntk.nt."
    )
    # 3. Import, with the finder in place for this import only.
    sys.meta_path.insert(0, _Finder)
    try:
        return importlib.import_module("neural_tangents")
    except ModuleNotFoundError as error:
        if error.name == "neural_tangents":
            raise ModuleNotFoundError(
                "softntk.nt needs neural-tangents 0.6.5: pip install neural-tangents==0.6.5",
                name=error.name,
            ) from None
        raise
    finally:
        sys.meta_path.remove(_Finder)
