"""softntk: the theory of softmax learning as a differentiable JAX toolkit.

Network families, their neural tangent kernels, structured regressions, solvers and certificates, as
pure functions. Start with :mod:`softntk.networks` and :mod:`softntk.ntk`; README.md has the map.

==============  ====================================================================================
package         use it for
==============  ====================================================================================
``networks``    a two-layer network of any activation, with closed forms for its kernels
``ntk``         kernels of your own or our networks: empirical, as operators, solved, and what they
                predict of training
``regression``  softmax-family regressions with gradients and curvature in closed form
``solvers``     minimising a regression or any loss, and training
``calibration`` whether probabilities and error bars are what they say
``curvature``   Hessians as operators, their factors, leverage scores and samples of rows
``theory``      certificates, bounds and statements of the papers, checked on your data
``diffusion``   denoisers, sampling and metrics of samples
``activations`` derivatives and Gaussian moments of an activation, of your own too
``sklearn``     estimators for scikit-learn's pipelines and searches
``stax, nt``    deep infinite networks, and neural_tangents repaired
``solution``    what iterative routines return, and what their result codes mean
==============  ====================================================================================
"""

import importlib
from types import ModuleType

from softntk import activations as activations
from softntk import calibration as calibration
from softntk import curvature as curvature
from softntk import networks as networks
from softntk import ntk as ntk
from softntk import regression as regression
from softntk import solution as solution
from softntk import solvers as solvers
from softntk._core.compilation import compilation_cache as compilation_cache

__version__ = "0.1.0"

# Loaded on first use, because they take long to import or use all other packages.
_LAZY_PACKAGES = ("diffusion", "nt", "sklearn", "stax", "theory")


def __getattr__(name: str) -> ModuleType:
    """Return a lazily imported package."""
    if name in _LAZY_PACKAGES:
        return importlib.import_module(f"softntk.{name}")
    raise AttributeError(f"module 'softntk' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, lazily imported packages included."""
    return sorted([*globals(), *_LAZY_PACKAGES])
