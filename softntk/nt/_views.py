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


class View(types.ModuleType):
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
    core = View(
        jax.core,
        **{n: getattr(extend, n) for n in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")},
    )
    util = View(types.ModuleType("jax.util"), safe_map=_safe_map, safe_zip=_safe_zip)
    # The primitive is gone, so no program contains it: it only has to be something that rules can
    # be registered for.
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
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ):
        if name.partition(".")[0] != "neural_tangents":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def import_neural_tangents() -> types.ModuleType:
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
                "softntk.nt needs neural-tangents 0.6.5: pip install neural-tangents==0.6.5",
                name=error.name,
            ) from None
        raise
    finally:
        sys.meta_path.remove(_Finder)
