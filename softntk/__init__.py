"""softntk: the theory of softmax learning as a differentiable JAX toolkit.

Network families, their neural tangent kernels, structured regressions, solvers and certificates, as
pure functions. Start with :mod:`softntk.networks` and :mod:`softntk.ntk`; README.md has the map.
"""

import importlib
from types import ModuleType

from softntk import activations as activations
from softntk import curvature as curvature
from softntk import networks as networks
from softntk import ntk as ntk
from softntk import regression as regression
from softntk import solution as solution
from softntk import solvers as solvers
from softntk._core.compilation import compilation_cache as compilation_cache

__version__ = "0.1.0"

# Loaded on first use, because they take long to import or use all other packages.
_LAZY_PACKAGES = ("diffusion", "nt", "stax", "theory")


def __getattr__(name: str) -> ModuleType:
    """Return a lazily imported package."""
    if name in _LAZY_PACKAGES:
        return importlib.import_module(f"softntk.{name}")
    raise AttributeError(f"module 'softntk' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, lazily imported packages included."""
    return sorted([*globals(), *_LAZY_PACKAGES])
