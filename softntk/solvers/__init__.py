"""Optimisers as optax transforms, and the loops that run them."""

from softntk._core.old_paths import keep_old_paths
from softntk.solvers import step_sizes as step_sizes
from softntk.solvers._diagnostics import Step as Step
from softntk.solvers._diagnostics import StepDiagnostics as StepDiagnostics
from softntk.solvers._gradient_descent import gradient_descent as gradient_descent
from softntk.solvers._hyperparameters import fit_hyperparameters as fit_hyperparameters
from softntk.solvers._minimise.contraction import Contraction as Contraction
from softntk.solvers._minimise.contraction import contraction as contraction
from softntk.solvers._minimise.driver import minimise as minimise
from softntk.solvers._natural_gradient import NaturalGradientState as NaturalGradientState
from softntk.solvers._natural_gradient import natural_gradient as natural_gradient
from softntk.solvers._newton.transform import NewtonState as NewtonState
from softntk.solvers._newton.transform import approx_newton as approx_newton
from softntk.solvers._newton.transform import scale_by_approx_newton as scale_by_approx_newton
from softntk.solvers._training import train as train

# Modules that had these names before; their public names stay importable from there.
keep_old_paths(
    __name__,
    {
        "transforms": "_gradient_descent",
        "natural_gradient": "_natural_gradient",
        "training": "_training",
        "newton": "_newton.transform",
    },
)
