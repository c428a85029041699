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

_LAZY = (
    "diffusion",
    "nt",
    "stax",
    "theory",
)  # loaded on first use: they are heavy, or at the top of everything


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"softntk.{name}")
    raise AttributeError(f"module 'softntk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
