"""Neural tangent kernels.

Empirical kernels in closed form, operators that are never formed, spectra, regression, the training
dynamics that a kernel predicts, and the kernels of deep networks.
"""

import importlib
from typing import Any

from softntk._core.old_paths import keep_old_paths
from softntk._linalg.extreme_eigenvalues import extreme_eigenvalues as extreme_eigenvalues
from softntk.ntk._depth import fixed_point as fixed_point
from softntk.ntk._depth import propagate as propagate
from softntk.ntk._dynamics import gd_coefficients as gd_coefficients
from softntk.ntk._dynamics import predict_flow as predict_flow
from softntk.ntk._dynamics import predict_gd as predict_gd
from softntk.ntk._empirical.kernel import empirical as empirical
from softntk.ntk._ensemble import EnsemblePrediction as EnsemblePrediction
from softntk.ntk._ensemble import predict_ensemble as predict_ensemble
from softntk.ntk._evidence import gp_log_evidence as gp_log_evidence
from softntk.ntk._gp_classification import ClassificationPosterior as ClassificationPosterior
from softntk.ntk._gp_classification import gp_classification as gp_classification
from softntk.ntk._inference import gp_posterior as gp_posterior
from softntk.ntk._inference import kernel_regression as kernel_regression
from softntk.ntk._laplace import LaplacePosterior as LaplacePosterior
from softntk.ntk._laplace import LaplacePrediction as LaplacePrediction
from softntk.ntk._laplace import laplace as laplace
from softntk.ntk._minibatch_dynamics import MinibatchPrediction as MinibatchPrediction
from softntk.ntk._minibatch_dynamics import predict_sgd as predict_sgd
from softntk.ntk._operators.base import GramOperator as GramOperator
from softntk.ntk._operators.factories import kernel_operator as kernel_operator
from softntk.ntk._operators.factories import operator as operator
from softntk.ntk._solve.driver import solve as solve
from softntk.ntk._spectrum import effective_dimension as effective_dimension
from softntk.ntk._spectrum import spectral_density as spectral_density
from softntk.ntk._spectrum import target_alignment as target_alignment

# Modules that had these names before; their public names stay importable from there.
keep_old_paths(
    __name__,
    {
        "spectrum": "_spectrum",
        "dynamics": "_dynamics",
        "inference": "_inference",
        "depth": "_depth",
        "gram_operators": "_operators.base",
    },
)


def __getattr__(name: str) -> Any:
    """Return what builds on the solvers, which build on this package."""
    if name == "fit_hyperparameters":
        return importlib.import_module("softntk.solvers").fit_hyperparameters
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), "fit_hyperparameters"])
